"""`embed-worker inspect`: how a model folder is read and why, and what its graph needs.

The model is loaded as a worker loads it, so that nothing is told of a folder that a worker refuses.

The JSON form (`--json`) is for programs: `format` changes when a member changes its meaning or goes.
"""

from embed_worker.tools.inspect.command import add_arguments, run

__all__ = ["add_arguments", "run"]
