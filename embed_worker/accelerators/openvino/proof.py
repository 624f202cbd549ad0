"""The proof that OpenVINO's vectors are the CPU's: in every bucket, by every compiled graph, all of them at once.

One compiled graph with two streams has given wrong vectors for the rows of some shapes, for good and without an error,
in 8 of 88 starts; see docs/decisions.md. So nothing is believed for a single run of one shape.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from embed_worker.accelerators.agreement import ProofError, golden_batches
from embed_worker.config import OpenvinoPrecision
from embed_worker.inference.backend import Backend
from embed_worker.inference.buckets import Bucket, Buckets
from embed_worker.inference.pooling import Float32, cosine_distances
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer

# The smallest cosine to the CPU's vectors that passes.
MIN_COSINE = {OpenvinoPrecision.FLOAT32: 0.9999, OpenvinoPrecision.BFLOAT16: 0.999}
_TIMED_RUNS = 5
_SHORT_TOKENS = 64
_MOST_SPARE_TOKENS = 64

Embed = Callable[[TokenBatch], Float32]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Batches of every number of tokens, and the CPU's vectors of their rows.

    Attributes:
        batches: By tokens: as many rows as the largest bucket has, some shorter than the others.
        vectors: (rows, D) float32 of each batch.
    """

    buckets: Sequence[Bucket]
    batches: Mapping[int, TokenBatch]
    vectors: Mapping[int, Float32]

    @classmethod
    def of(
        cls, cpu: Backend, tokenizer: TextTokenizer, buckets: Buckets, *, pad_left: bool, threads: int = 1
    ) -> Reference:
        """Embed on so many cores of the CPU."""
        batches = {}
        for tokens in sorted({bucket.tokens for bucket in buckets}):
            rows = max(bucket.rows for bucket in buckets if bucket.tokens == tokens)
            whole = golden_batches(tokenizer, rows, tokens, pad_left=pad_left)[0]
            mask = whole.mask.copy()
            for row in range(1, rows, 2):  # every second text is padded
                length = max(1, int(mask[row].sum()) * (1 + row % 7) // 8)
                mask[row, slice(None, -length) if pad_left else slice(length, None)] = 0
            batches[tokens] = TokenBatch(whole.ids, mask)
        with ThreadPoolExecutor(threads) as pool:
            vectors = pool.map(lambda batch: cpu.embed(batch, exclusive=False), batches.values())
            return cls(tuple(buckets), batches, dict(zip(batches, vectors, strict=True)))

    def compare(self, embeds: Sequence[Embed], at_least: float) -> float:
        """Run all buckets by all backends at once; return the smallest cosine to the CPU.

        Args:
            embeds: The backends.
            at_least: The smallest cosine that passes. All stop at the first that does not.

        Raises:
            ProofError: A cosine is smaller, or a vector is not finite, has no length, or another shape.
            Exception: Whatever a backend raises.
        """
        is_over = threading.Event()
        with ThreadPoolExecutor(len(embeds)) as pool:
            # Each begins elsewhere, so that different shapes meet.
            share = len(self.buckets) // len(embeds)
            runs = [
                pool.submit(self._compare, embed, number * share, at_least, is_over)
                for number, embed in enumerate(embeds)
            ]
            wait(runs, return_when=FIRST_EXCEPTION)
            is_over.set()
            return min(run.result() for run in runs)

    def _compare(self, embed: Embed, first: int, at_least: float, is_over: threading.Event) -> float:
        smallest = 1.0
        for bucket in (*self.buckets[first:], *self.buckets[:first]):
            if is_over.is_set():
                break
            batch, expected = self._batch(bucket)
            vectors = embed(batch)
            if vectors.shape != expected.shape:
                raise ProofError(f"gives an output of shape {vectors.shape} where the CPU gives {expected.shape}")
            cosine = 1 - float(cosine_distances(vectors, expected).max())
            if not cosine > 0:  # NaN too
                raise ProofError(f"gives other vectors than the CPU for {bucket.rows} texts of {bucket.tokens} tokens")
            if not cosine >= at_least:
                raise ProofError(f"differs from the CPU: a cosine is {cosine:.6f}, and {at_least} is needed")
            smallest = min(smallest, cosine)
        return smallest

    def _batch(self, bucket: Bucket) -> tuple[TokenBatch, Float32]:
        whole, vectors = self.batches[bucket.tokens], self.vectors[bucket.tokens]
        return TokenBatch(whole.ids[: bucket.rows], whole.mask[: bucket.rows]), vectors[: bucket.rows]

    def spare_tokens(self, embed: Embed, clock: Clock = time.perf_counter) -> int:
        """Return how many tokens of a text alone take as long as a change of shape; 0 where nothing tells.

        Both are those of two short buckets in turns, in each of which the first run is behind a change; the shortest
        of some runs is what one takes without other processes.
        """
        alone = [bucket for bucket in self.buckets if bucket.rows == 1 and bucket.tokens <= _SHORT_TOKENS]
        shorter, longer = min(alone), max(alone)
        changed = {shorter: math.inf, longer: math.inf}
        steady = dict(changed)
        for _ in range(_TIMED_RUNS):
            for bucket in (shorter, longer):
                batch, _ = self._batch(bucket)
                for shortest in (changed, steady, steady):
                    started = clock()
                    embed(batch)
                    shortest[bucket] = min(shortest[bucket], clock() - started)
        a_token = (steady[longer] - steady[shorter]) / max(1, longer.tokens - shorter.tokens)
        a_change = (changed[shorter] - steady[shorter] + changed[longer] - steady[longer]) / 2
        return int(min(max(0.0, a_change / a_token), _MOST_SPARE_TOKENS)) if a_token > 0 else 0

    def speed_ratio(self, embed: Embed, other: Embed, bucket: Bucket, clock: Clock = time.perf_counter) -> float:
        """Return the time of a bucket over that of another's, each the shortest of some runs in turns.

        Other processes only make a run longer; what it takes without them shows in the shortest.
        """
        batch, _ = self._batch(bucket)
        shortest = [math.inf, math.inf]
        for number in range(1 + _TIMED_RUNS):
            for place, each in enumerate((embed, other)):
                started = clock()
                each(batch)
                if number:  # a shape's first run prepares it
                    shortest[place] = min(shortest[place], clock() - started)
        return shortest[0] / max(shortest[1], 1e-9)
