"""Turns networks published in other forms into the ONNX files a model pack holds.

One file for each noun: where a network comes from (`recogniser`, `detector`), what it
becomes (`graph`, `artefact`), and what proves that it is still the same network
(`faces`, `parity`).
Networks that PyTorch or TFLite hold are read under `scripts/`.
Needs ONNX, of the extra `export` or `lab`; the service itself never imports this package.
"""
