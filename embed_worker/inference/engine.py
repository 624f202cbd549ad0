"""Rows to vectors: pad, run, pool. One engine serves one model, from any number of lanes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embed_worker.errors import ModelError, brief
from embed_worker.inference.backend import Backend, TokenBatch
from embed_worker.inference.dense import DenseLayer
from embed_worker.inference.pooling import Float32, are_usable, cosine_distances, finish_vectors, norms
from embed_worker.inference.tokenizer import TextTokenizer, TokenizedText
from embed_worker.machine import release_freed_memory, return_large_blocks
from embed_worker.model_files.plan import ModelPlan

# Every loaded model has run on these: short, long enough to fill words, and not English.
_WARM_UP = ("warm up", "The quick brown fox jumps over the lazy dog.", "größer 東京")
# What decides whether a quantised graph is batch-invariant. Rounding makes much of a difference that float hides, and
# not in every text: with one kernel in a text of 30 tokens, with another in a full stop.
_PROSE = (
    "a row for every text and rain on 47 green hills while nobody counts the boats (3.14 € each) down in the harbour"
)
_QUANTIZED_WARM_UP = (".", "?!", "42", "東京", *(" ".join(_PROSE.split()[:words]) for words in range(1, 24, 2)))
_MAX_BATCH_DISTANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Engine:
    """A model that has run.

    Attributes:
        dimension: Components of a vector.
        normalizes_itself: The graph's own vectors have length 1 and cannot be had without.
        is_batch_invariant: At the warm-up a text's vector did not depend on its neighbours, and nothing in the graph
            says that it may.
    """

    plan: ModelPlan
    tokenizer: TextTokenizer
    backend: Backend
    dimension: int
    normalizes_itself: bool
    is_batch_invariant: bool
    dense: Sequence[DenseLayer] = ()

    @classmethod
    def warm_up(
        cls, plan: ModelPlan, tokenizer: TextTokenizer, backend: Backend, dense: Sequence[DenseLayer] = ()
    ) -> Engine:
        """Run the model once and learn its dimension.

        Raises:
            ModelError: The model does not run, or what it gives cannot be embeddings of this folder.
        """
        rows = tokenizer.encode(_WARM_UP, "")
        engine = cls(
            plan=plan,
            tokenizer=tokenizer,
            backend=backend,
            dimension=0,
            normalizes_itself=False,
            is_batch_invariant=False,
            dense=dense,
        )
        try:
            vectors = engine.embed(rows, exclusive=False)
            alone = engine.embed(rows[:1], exclusive=False)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the model {plan.name!r} does not run: {brief(error)}") from error
        if not are_usable(vectors).all():
            raise ModelError(f"the model {plan.name!r} gives vectors that are not finite or have no length")
        lengths = norms(vectors)
        return replace(
            engine,
            dimension=vectors.shape[1],
            normalizes_itself=backend.is_end_to_end and bool(np.abs(lengths - 1).max() < 1e-3),
            is_batch_invariant=bool(cosine_distances(vectors[:1], alone)[0] < _MAX_BATCH_DISTANCE)
            and engine._is_batch_invariant_when_rounded(),
        )

    def _is_batch_invariant_when_rounded(self) -> bool:
        """Look for a text whose vector depends on its neighbours; a float graph is believed after the first."""
        if self.backend.scales_by_batch:
            return False
        if not self.backend.precision.startswith("int"):
            return True
        rows = self.tokenizer.encode(_QUANTIZED_WARM_UP, "")
        together = self.embed(rows, exclusive=False)
        alone = np.concatenate([self.embed([row], exclusive=False) for row in rows])
        return bool(cosine_distances(together, alone).max() < _MAX_BATCH_DISTANCE)

    def embed(self, rows: Sequence[TokenizedText], *, exclusive: bool) -> Float32:
        """Embed rows in one run.

        Args:
            rows: At least one. Padded to the longest.
            exclusive: Nothing else runs: all cores may be used for it.

        Returns:
            (rows, dimension) float32 as pooled: not cut, not normalised, not checked.
        """
        vectors = self.backend.embed(self._pad(rows), exclusive=exclusive)
        if vectors.ndim != 2 or len(vectors) != len(rows):
            problem = f"gives an output of shape {vectors.shape} for {len(rows)} texts"
            raise ModelError(f"the model {self.plan.name!r} {problem}")
        for layer in self.dense:
            vectors = layer(vectors)
        return vectors

    def _pad(self, rows: Sequence[TokenizedText]) -> TokenBatch:
        longest = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), longest), self.tokenizer.pad_id, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for place, row in enumerate(rows):
            here = slice(longest - len(row.ids), None) if self.plan.pad_left else slice(len(row.ids))
            ids[place, here] = row.ids
            mask[place, here] = 1
        skipped = np.array([row.skipped for row in rows], np.int64) if any(row.skipped for row in rows) else None
        return TokenBatch(ids, mask, skipped)

    def are_usable(self, vectors: Float32) -> NDArray[np.bool_]:
        """Tell which vectors are finite and have a length: (B, D) → (B,)."""
        return are_usable(vectors)

    def new_matrix(self, rows: int) -> Float32:
        """Make room for the vectors of a request: (rows, dimension) float32, not filled."""
        return np.empty((rows, self.dimension), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """An engine and the name of its vector space."""

    name: str
    engine: Engine
    fingerprint: str

    @property
    def plan(self) -> ModelPlan:
        """What its folder says."""
        return self.engine.plan

    @property
    def normalizes(self) -> bool:
        """Whether vectors have length 1 unless a request says otherwise."""
        return self.plan.normalize or self.engine.normalizes_itself

    def use_all_cores(self) -> None:
        """Do what may be done after the model has begun to serve; it never raises."""
        self.engine.backend.use_all_cores()
        return_large_blocks()
        release_freed_memory()  # reading a graph takes twice its size for a moment

    def close(self) -> None:
        """Give back what would outlive the process; the model is not needed any more."""
        self.engine.backend.close()

    def finish(self, raw: Float32, dimensions: int | None, normalize: bool | None) -> Float32:
        """Cut and normalise the vectors of a request as it asks, or else as the model's folder says.

        Args:
            raw: (B, dimension) as `Engine.embed` returns them.
            dimensions: Components to keep; None for all.
            normalize: None for what the folder says.

        Returns:
            (B, dimensions) little-endian float32, C-contiguous.
        """
        wanted = self.normalizes if normalize is None else normalize
        return finish_vectors(raw, dimensions, normalize=wanted).astype("<f4", copy=False)
