"""`embed-worker pull`: fetch a model from the Hugging Face hub, verify it, and put it where the worker finds it.

It fetches what a worker reads and nothing else: configurations, tokenizer, Dense weights, one graph and its data. The
folder appears whole, with a manifest, or not at all. The next pull goes on where an interrupted one stopped.
"""

from embed_worker.tools.pull.command import add_arguments, run

__all__ = ["add_arguments", "run"]
