"""`embed-worker quantize`: an int8 variant of a model's float32 graph, beside it, for `--variant int8`.

Weights are rounded by column and activations by row as they come, so that batches do not matter; int8.py has how.
The variant is compared with the float graph before it is put in place, and timed against it afterwards. It appears
whole or not at all, and a manifest.json learns of it. Exit status: 0 done, 1 the variant is too inexact, 2 usage,
78 the model cannot be used or its folder not be written.
"""

from embed_worker.tools.quantize.command import add_arguments, run

__all__ = ["add_arguments", "run"]
