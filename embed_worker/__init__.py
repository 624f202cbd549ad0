"""A worker that turns lines of JSON into text embeddings. Importing this package imports nothing else."""

__version__ = "0.2.0"
