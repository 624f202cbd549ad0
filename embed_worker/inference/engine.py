"""Rows to vectors: pad, run, pool. One engine serves one model, from any number of lanes at once."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed_worker.errors import InvalidInput, ModelError, OutOfMemoryError, brief
from embed_worker.inference.backend import CPU_TOLERANCE, TOLERANCES, Backend
from embed_worker.inference.dense import Module
from embed_worker.inference.ort import CPU
from embed_worker.inference.pooled_graph import check_pooled_graph
from embed_worker.inference.pooling import (
    Float32,
    are_lengths,
    are_usable,
    at_precision,
    cosine_distances,
    finish_and_measure,
    norms,
)
from embed_worker.inference.token_batch import TokenBatch
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Engine:
    """A model that has run.

    Attributes:
        dimension: Components of a vector.
        normalizes_itself: The graph's own vectors have length 1 and cannot be had without.
        is_batch_invariant: At the warm-up a text's vector did not depend on its neighbours, and nothing in the graph
            says that it may.
        one_by_one: Why each text runs by itself whatever it came with; None where texts share a run.
        pad_left: Whether padding goes before the text.
    """

    plan: ModelPlan
    tokenizer: TextTokenizer
    backend: Backend
    dimension: int
    normalizes_itself: bool
    is_batch_invariant: bool
    one_by_one: str | None = None
    pad_left: bool = False
    dense: Sequence[Module] = ()

    @classmethod
    def warm_up(
        cls, plan: ModelPlan, tokenizer: TextTokenizer, backend: Backend, dense: Sequence[Module] = ()
    ) -> Engine:
        """Run the model, and learn its dimension and how its texts may share a run.

        Raises:
            ModelError: The model does not run, or what it gives cannot be embeddings of this folder.
        """
        engine = cls(
            plan=plan,
            tokenizer=tokenizer,
            backend=backend,
            dimension=0,
            normalizes_itself=False,
            is_batch_invariant=False,
            one_by_one=None if backend.max_rows is None else "the graph takes one text at a time",
            pad_left=plan.pad_left,
            dense=dense,
        )
        rows = _encodable(tokenizer, _WARM_UP)
        if not rows:
            raise ModelError(f"the model {plan.name!r} has a tokenizer without a token for any of the first texts")
        try:
            engine = engine._learned(rows)
            vectors = engine.embed(rows, exclusive=False)
        except (ModelError, OutOfMemoryError):
            raise
        except Exception as error:
            hint = "; its axes are dynamic by name only: export it again" if _is_about_shapes(error) else ""
            raise ModelError(f"the model {plan.name!r} does not run: {brief(error)}{hint}") from error
        if not are_usable(vectors).all():
            raise ModelError(f"the model {plan.name!r} gives vectors that are not finite or have no length")
        # What is normalised here tells nothing of the graph.
        is_graphs_own = backend.is_end_to_end and not plan.last_normalize
        normalizes = is_graphs_own and bool(np.abs(norms(vectors) - 1).max() < 1e-3)
        if backend.is_end_to_end:
            check_pooled_graph(plan, vectors.shape[1], normalizes=normalizes)
        return replace(engine, dimension=vectors.shape[1], normalizes_itself=normalizes)

    def _learned(self, rows: Sequence[TokenizedText]) -> Engine:
        """Compare a text among others with itself alone, and choose how texts share a run."""
        if self.one_by_one is not None or self.backend.scales_by_batch:
            return replace(self, is_batch_invariant=not self.backend.scales_by_batch)
        alone = self.embed(rows[:1], exclusive=False)
        other_side = replace(self, pad_left=not self.pad_left)
        for engine in (self, other_side) if self.pad_left else (self,):
            distance = engine._dependence(rows, alone)
            if distance < CPU_TOLERANCE:
                return replace(engine, is_batch_invariant=engine._is_batch_invariant_when_rounded())
        return self if self._is_rounded and not math.isinf(distance) else self._in_spite_of(distance)

    @property
    def _is_rounded(self) -> bool:
        return self.backend.precision not in TOLERANCES

    def _is_batch_invariant_when_rounded(self) -> bool:
        """Look for a text whose vector depends on its neighbours; a float graph is believed after the first."""
        if not self._is_rounded:
            return True
        rows = _encodable(self.tokenizer, _QUANTIZED_WARM_UP)
        together = self.embed(rows, exclusive=False)
        alone = np.concatenate([self.embed([row], exclusive=False) for row in rows])
        return bool(cosine_distances(together, alone).max() < CPU_TOLERANCE)

    def _dependence(self, rows: Sequence[TokenizedText], alone: Float32) -> float:
        """Return the cosine distance between the first text's vector among the others and alone; infinity for none."""
        try:
            return float(cosine_distances(self.embed(rows, exclusive=False)[:1], alone)[0])
        except OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the runtime's have no narrower base
            self._check_lengths(rows, error)
            return math.inf

    def _check_lengths(self, rows: Sequence[TokenizedText], problem: Exception) -> None:
        """Find out whether texts that fail together run alone: axes may be dynamic by name only."""
        for row in rows:
            try:
                self.embed([row], exclusive=False)
            except Exception as error:
                some = f"runs with some numbers of tokens and not with {len(row.ids)}"
                what = f"has a graph that {some}; its axes are dynamic by name only: export it again"
                if _is_about_rows(error):
                    what = "has a table with fewer rows than its tokenizer has tokens: they are not of one model"
                raise ModelError(f"the model {self.plan.name!r} {what} ({brief(problem)})") from error

    def _in_spite_of(self, distance: float) -> Engine:
        """Run each text by itself on the CPU; another provider may differ as far as its proof lets it."""
        allowed = CPU_TOLERANCE if self.backend.provider.chosen == CPU else self.backend.tolerance
        if allowed is None or distance <= allowed:
            return self
        why = "the graph takes one text at a time" if math.isinf(distance) else "neighbours would change its vector"
        return replace(self, one_by_one=why, is_batch_invariant=True)

    def embed(self, rows: Sequence[TokenizedText], *, exclusive: bool) -> Float32:
        """Embed rows, in one run or, where neighbours matter, in a run each.

        Args:
            rows: At least one. Padded to the longest.
            exclusive: Nothing else runs: all cores may be used for it.

        Returns:
            (rows, dimension) float32 as pooled: not cut, not normalised, not checked.
        """
        if self.one_by_one is None:
            vectors = self._run(rows, exclusive=exclusive)
        else:
            vectors = np.concatenate([self._run([row], exclusive=exclusive) for row in rows])
        for layer in self.dense:
            vectors = layer(vectors)
        return vectors

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the shape that is computed for a batch of this one; see `Backend.padded_to`."""
        return self.backend.padded_to(rows, tokens) if self.one_by_one is None else (rows, tokens)

    def _run(self, rows: Sequence[TokenizedText], *, exclusive: bool) -> Float32:
        ids, skipped = [row.ids for row in rows], [row.skipped for row in rows]
        batch = TokenBatch.of_rows(ids, pad_id=self.tokenizer.pad_id, pad_left=self.pad_left, skipped=skipped)
        vectors = self.backend.embed(batch, exclusive=exclusive)
        if vectors.ndim != 2 or len(vectors) != len(rows):
            problem = f"gives an output of shape {vectors.shape} for {len(rows)} texts"
            raise ModelError(f"the model {self.plan.name!r} {problem}")
        return vectors

    def new_matrix(self, rows: int) -> Float32:
        """Make room for the vectors of a request: (rows, dimension) float32, not filled."""
        return np.empty((rows, self.dimension), np.float32)


def _is_about_shapes(error: Exception) -> bool:
    """Return whether an error is about shapes, so that others may run; onnxruntime has no type for it."""
    message = str(error).lower()
    return any(sign in message for sign in ("broadcast", "dimension", "reshape", "shape mismatch"))


def _is_about_rows(error: Exception) -> bool:
    """Return whether a row of a table was asked for that is not there, in the words of numpy or onnxruntime."""
    message = str(error).lower()
    return "out of bounds" in message or "out of data bounds" in message


def _encodable(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[TokenizedText]:
    """Tokenise texts, but for those that the vocabulary has no token for."""
    rows: list[TokenizedText] = []
    for text in texts:
        with contextlib.suppress(InvalidInput):
            rows += tokenizer.encode([text], "")
    return [row for row in rows if len(row.ids)]


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
    def dimension(self) -> int:
        """Components of an answer that asks for no other number: the engine's, or what the folder cuts them to."""
        stated = self.plan.truncate_dim
        return self.engine.dimension if stated is None else min(stated, self.engine.dimension)

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
            dimensions: Components to keep; None for the model's usual number.
            normalize: None for what the folder says.

        Returns:
            (B, dimensions) little-endian float32, C-contiguous.
        """
        return self._finish_and_measure(raw, dimensions, normalize)[0].astype("<f4", copy=False)

    def _finish_and_measure(
        self, raw: Float32, dimensions: int | None, normalize: bool | None
    ) -> tuple[Float32, list[float]]:
        wanted = self.normalizes if normalize is None else normalize
        return finish_and_measure(raw, dimensions or self.dimension, normalize=wanted)

    def finish_and_check(
        self, raw: Float32, dimensions: int | None, normalize: bool | None, precision: str = "float32"
    ) -> tuple[NDArray[Any], int | None]:
        """Do what `finish` does; return with it the index of the first vector that cannot be used, where one is.

        One that is not finite or has no length cannot, be it whole, cut, or rounded to float16. `precision` is that of
        `at_precision`.
        """
        finished, lengths = self._finish_and_measure(raw, dimensions, normalize)
        told = at_precision(finished, precision)
        good = are_lengths(lengths)
        if finished.shape != raw.shape:
            good = list(map(operator.and_, good, are_usable(raw).tolist()))
        if precision == "float16":
            good = list(map(operator.and_, good, are_usable(told).tolist()))
        return told, None if all(good) else good.index(False)
