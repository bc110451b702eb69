"""Turns networks published in other forms into the ONNX files a model pack holds.

One file a noun: where a network comes from (`flatbuffer`, `tflite`, `detector`), what it becomes
(`graph`, `artefact`), and what shows that it is still the same network (`faces`, `parity`). Needs
the `export` extra; the service itself never imports this package.
"""
