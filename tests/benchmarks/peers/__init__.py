"""The contestants of `python -m tests.benchmarks.compare`: each a program of its own, in an environment of its own."""
