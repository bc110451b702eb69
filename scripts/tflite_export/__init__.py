"""TFLite -> ONNX: how the default pack's recogniser was made (needs the `export` extra)."""
