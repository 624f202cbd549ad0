"""The arbiter: what the newest sentence-transformers makes of a folder, and whether a worker gives the same.

`arbiter.py` runs in an environment of its own (`make reference`), everything else in the project's.
"""
