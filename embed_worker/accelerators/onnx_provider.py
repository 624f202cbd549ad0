"""Another of onnxruntime's providers, such as CUDA: what it gives is compared with the CPU before it serves."""

from __future__ import annotations

import threading

import numpy as np

from embed_worker.accelerators.agreement import ProofError, agreement_with_cpu, golden_batches
from embed_worker.config import RuntimeOptions
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError, brief
from embed_worker.inference.backend import Backend
from embed_worker.inference.buckets import Buckets, Padding
from embed_worker.inference.onnx_backend import OnnxBackend, choose_provider
from embed_worker.inference.ort import available_providers
from embed_worker.inference.pooling import Float32
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.plan import ModelPlan

_GOLDEN_ROWS, _GOLDEN_TOKENS = 8, 64
# Steps of buckets: memory for every shape comes from the same arena, and some providers compile for every shape.
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
# One computes while the next is prepared; more would only hold memory.
_RUNS_AT_ONCE = 2


class PaddedBackend:
    """A graph on another provider, in batches of few shapes and few at once, so that its memory has a bound."""

    def __init__(self, inner: OnnxBackend, padding: Padding) -> None:
        self.provider = inner.provider
        self.precision = inner.precision
        self.scales_by_batch = inner.scales_by_batch
        self.is_end_to_end = inner.is_end_to_end
        self.max_rows = inner.max_rows
        self.tolerance = inner.tolerance
        self._inner = inner
        self._padding = padding
        self._room = threading.BoundedSemaphore(_RUNS_AT_ONCE)

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the bucket of a batch, or what those of its turns are together."""
        return self._padding.buckets.together(rows, tokens)

    def use_all_cores(self) -> None:
        """There is nothing to do: one session serves all."""

    def close(self) -> None:
        """There is nothing that outlives the process."""

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        """Run a padded batch and pool it; see `Backend.embed`."""
        return np.concatenate([self._embed(turn, exclusive=exclusive) for turn in self._padding.turns(batch)])

    def _embed(self, turn: TokenBatch, *, exclusive: bool) -> Float32:
        filled = self._padding.fill(turn)
        with self._room:
            return self._inner.embed(filled, exclusive=exclusive)[: len(turn.ids)]


def accelerate(
    cpu: OnnxBackend, plan: ModelPlan, tokenizer: TextTokenizer, runtime: RuntimeOptions, threads: int
) -> Backend:
    """Open the same graph on the provider that was asked for by its name, and compare.

    Args:
        cpu: The model on the CPU.
        plan: The model's folder.
        tokenizer: The model's own.
        runtime: The provider, and the budget of a micro-batch.
        threads: Cores that a batch alone may use.

    Raises:
        ConfigError: The provider is not there, or could not be set up.
        ModelError: It does not give the model's vectors.
        OutOfMemoryError: There is no memory for it.
    """
    (provider, *_), _ = choose_provider(runtime.provider, available_providers())
    there = OnnxBackend.load(plan, runtime, threads=threads, provider=provider)
    if there.provider.chosen != provider:
        raise ConfigError(f"--provider {runtime.provider}: {there.provider.reason}")
    batches = golden_batches(tokenizer, _GOLDEN_ROWS, _GOLDEN_TOKENS, pad_left=plan.pad_left)
    try:
        embed = _padded(there, plan, tokenizer, runtime).embed
        cosine = agreement_with_cpu(lambda batch: embed(batch, exclusive=False), cpu, batches, there.precision)
    except OutOfMemoryError:
        raise
    except Exception as error:
        problem = str(error) if isinstance(error, ProofError) else f"fails: {brief(error)}"
        raise ModelError(f"--provider {runtime.provider}: {provider} {problem}") from error
    proved = there.chosen_because(f"asked for; its smallest cosine to the CPU is {cosine:.7f}")
    return _padded(proved, plan, tokenizer, runtime)


def _padded(there: OnnxBackend, plan: ModelPlan, tokenizer: TextTokenizer, runtime: RuntimeOptions) -> Backend:
    """Pad its batches, unless its graph would see what is padding."""
    if not there.graph_io.has_mask or there.scales_by_batch or there.max_rows is not None:
        return there
    buckets = buckets_of(runtime.batch_tokens, plan.max_tokens)
    return PaddedBackend(there, Padding(buckets, tokenizer.pad_id, plan.pad_left))


def buckets_of(batch_tokens: int, max_tokens: int) -> Buckets:
    """Return the buckets of a worker with this budget for a model of this limit."""
    return Buckets(_ROWS, _TOKENS, batch_tokens=batch_tokens, max_tokens=max_tokens)
