"""CoreML through onnxruntime: a graph of its own, in fixed shapes, compiled in a child, proved before it serves."""
