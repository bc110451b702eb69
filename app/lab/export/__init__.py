"""Turns networks published in other forms into the ONNX files a model pack holds.

One file a noun: where a network comes from (`recogniser`, `detector`, `torch_source`), what it
becomes (`graph`, `artefact`), and what shows that it is still the same network (`faces`, `parity`).
Needs ONNX, of the extra `export` or `lab`; the service itself never imports this package.
"""
