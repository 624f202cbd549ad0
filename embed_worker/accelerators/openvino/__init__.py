"""OpenVINO: the same ONNX file on Intel's runtime, in bfloat16 where the processor multiplies it."""
