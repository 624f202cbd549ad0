"""`embed-worker inspect`: show how a model folder is read and why, and what its graph needs.

The model is loaded as a worker loads it: a folder that a worker refuses is refused with the same sentence.

The JSON form (`--json`) is for programs: its member `format` changes when a member gets another meaning or is removed.
"""

from embed_worker.tools.inspect.command import add_arguments, run

__all__ = ["add_arguments", "run"]
