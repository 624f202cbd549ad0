"""MLX: the same encoders on the GPU of Apple silicon."""
