"""`embed-worker quantize`: make an int8 variant of a model's float32 graph, for `--variant int8`.

Weights are rounded by column, and activations by row while the model runs, so that a text's vector does not depend on
the texts beside it. The variant is compared with the float graph before it is put in place, and timed against it
afterwards. It appears whole or not at all, and is entered in the folder's manifest.json where there is one.
Exit status: 0 the variant is made, 1 it is too inexact, 2 wrong usage, 75 no memory or no threads for it now, 78 the
model cannot be used or its folder cannot be written.
"""

from embed_worker.tools.quantize.command import add_arguments, run

__all__ = ["add_arguments", "run"]
