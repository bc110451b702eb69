"""Model packs, ONNX Runtime sessions and the threads that run them."""
