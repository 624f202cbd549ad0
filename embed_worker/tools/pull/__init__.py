"""`embed-worker pull`: a model from the Hugging Face hub, verified, into the folder where the worker finds it.

It fetches what a worker reads and nothing else: configurations, tokenizer, Dense weights, one graph and its data. The
folder appears whole, with a manifest, or not at all; what an interrupted pull received is used by the next one.
"""

from embed_worker.tools.pull.command import add_arguments, run

__all__ = ["add_arguments", "run"]
