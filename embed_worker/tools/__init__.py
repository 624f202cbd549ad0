"""Commands beside the worker: nothing here is imported while serving."""
