"""Encoder architectures: read from checkpoints, computed in numpy, written as ONNX graphs."""
