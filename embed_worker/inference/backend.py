"""The contract that every backend fulfils: from padded token ids to one vector a text. It imports no runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from embed_worker.inference.pooling import Float32
from embed_worker.inference.token_batch import TokenBatch


@dataclass(frozen=True, kw_only=True)
class ProviderReport:
    """What `info` tells of the provider: the one asked for, the one that runs, and why.

    A provider with more to tell has a subclass: all fields become members of `info`, and so must be JSON.
    """

    asked: str
    chosen: str
    reason: str


# The largest cosine distance to the CPU's float32 vectors with which a model is served, by the precision of computing.
TOLERANCES = {"double": 5e-4, "float32": 5e-4, "float16": 1e-3, "bfloat16": 5e-3}
# The same for a float32 graph on the CPU: what is left is the order in which numbers are added.
CPU_TOLERANCE = 1e-6


class Backend(Protocol):
    """A loaded model, from token ids to one vector a text. onnxruntime fulfils it here, others elsewhere."""

    @property
    def provider(self) -> ProviderReport:
        """What runs the graph."""

    @property
    def precision(self) -> str:
        """The type of the weights where they are quantised, else that of what the graph gives."""

    @property
    def scales_by_batch(self) -> bool:
        """Whether it is known to quantise by the values of the whole batch, so that neighbours matter."""

    @property
    def is_end_to_end(self) -> bool:
        """Whether `embed` gives the model's final vectors: `Dense` modules, and perhaps L2, are inside the graph."""

    @property
    def max_rows(self) -> int | None:
        """The most texts that a batch may have; None: any number."""

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the rows and tokens that are run for a batch of this shape: what fits in there costs nothing more."""

    @property
    def tolerance(self) -> float | None:
        """The largest cosine distance to what the graph gives on a CPU for the text alone; None: there is no bound."""

    def use_all_cores(self) -> None:
        """Do what makes the model faster and may wait until it serves. It never raises."""

    def close(self) -> None:
        """Give back what would outlive the process, such as temporary files and children: the model is not needed.

        Within a second, from any thread; a batch that runs may fail. It never raises.
        """

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        """Run a padded batch and pool it.

        Args:
            batch: At least one row of at least one token.
            exclusive: Nothing else runs: all cores may be used for it.

        Returns:
            (B, D) float32 as pooled: not cut, not normalised, not checked.

        Raises:
            OutOfMemoryError: An allocation failed.
            ModelError: The model gives something else than vectors of its folder.
            Exception: Whatever the runtime raises for this batch.
        """
