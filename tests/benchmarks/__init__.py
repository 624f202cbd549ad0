"""Benchmarks: `make bench` compares with others, `python -m tests.benchmarks --help` measures the worker itself."""
