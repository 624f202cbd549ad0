"""What may run a model instead of the CPU, and the proof that each must give first."""
