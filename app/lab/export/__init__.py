"""Turns networks published in other forms into the ONNX files a model pack holds.

One file a noun: where a network comes from (`recogniser`, `detector`), what it
becomes (`graph`, `artefact`), and what shows that it is still the same network (`faces`, `parity`).
Networks that PyTorch or TFLite hold are read under `scripts/`.
Needs ONNX, of the extra `export` or `lab`; the service itself never imports this package.
"""
