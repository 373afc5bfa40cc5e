"""ONNX graphs: read, run, check."""
