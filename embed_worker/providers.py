"""Which backend serves a model: the CPU, or what has proved itself against it.

A provider is believed for its vectors and not for its name: zeros, NaN and wrong values have all come without an error.
B and T are batch and tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from embed_worker.backend import Backend, TokenBatch
from embed_worker.config import RuntimeOptions
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError, brief
from embed_worker.model_plan import ModelPlan
from embed_worker.pooling import Float32, cosine_distances, norms
from embed_worker.session import OnnxBackend, available_providers, choose_provider
from embed_worker.tokenizer import TextTokenizer

# The smallest cosine to the CPU's vectors that passes, by the precision that is computed in.
MIN_COSINE = {"float32": 0.9995, "float16": 0.999, "bfloat16": 0.995}
_MIN_NORM = 0.1

_GOLDEN_ROWS, _GOLDEN_TOKENS = 8, 64
_GOLDEN_TEXT = (
    "a vector database keeps one row for every text and finds the nearest of them by the angle between two rows while "
    "rain falls on 47 green hills, größer als Straßen in 東京, et l'été passe à pied: 3.14 € per kg; SELECT * FROM t;"
)


class ProofError(Exception):
    """A provider's vectors are not the CPU's; the message says how they differ."""


def accelerate(
    cpu: OnnxBackend, plan: ModelPlan, tokenizer: TextTokenizer, runtime: RuntimeOptions, threads: int
) -> Backend:
    """Return the backend to serve with. `auto` takes what is proved; what was asked for by name must be.

    Args:
        cpu: The model on the CPU: it serves, or it is what another provider is compared with.
        plan: The model's folder.
        tokenizer: The model's own.
        runtime: The provider that is asked for.
        threads: Cores that a batch alone may use.

    Raises:
        ConfigError: The provider that is asked for is not there.
        ModelError: It is there and does not give the model's vectors.
    """
    match runtime.provider.lower().removesuffix("executionprovider"):
        case "cpu":
            return cpu
        case "auto" if not _is_mac():
            reason = "no other provider is chosen by itself but CoreML, which needs a Mac"
            cpu.provider = replace(cpu.provider, reason=reason)
            return cpu
        case "auto" | "coreml":
            from embed_worker import coreml, coreml_gate  # nothing of it is loaded anywhere else

            return coreml.accelerate(cpu, plan, tokenizer, runtime, coreml_gate.surroundings(runtime))
        case "mlx":
            from embed_worker import mlx_backend  # as above

            return mlx_backend.accelerate(cpu, plan, tokenizer, runtime)
        case _:
            return _other_provider(cpu, plan, tokenizer, runtime, threads)


def _is_mac() -> bool:
    return sys.platform == "darwin"


def _other_provider(
    cpu: OnnxBackend, plan: ModelPlan, tokenizer: TextTokenizer, runtime: RuntimeOptions, threads: int
) -> Backend:
    """Open the same graph on another of onnxruntime's providers, and compare."""
    (provider, *_), _ = choose_provider(runtime.provider, available_providers())
    backend = OnnxBackend.load(plan, runtime, threads=threads, provider=provider)
    if backend.provider.chosen != provider:
        raise ConfigError(f"--provider {runtime.provider}: {backend.provider.reason}")
    batches = golden_batches(tokenizer, _GOLDEN_ROWS, _GOLDEN_TOKENS, pad_left=plan.pad_left)
    try:
        cosine = golden_cosine(lambda batch: backend.embed(batch, is_alone=False), cpu, batches, backend.precision)
    except OutOfMemoryError:
        raise
    except Exception as error:
        problem = str(error) if isinstance(error, ProofError) else f"fails: {brief(error)}"
        raise ModelError(f"--provider {runtime.provider}: {provider} {problem}") from error
    backend.provider = replace(backend.provider, reason=f"asked for; its smallest cosine to the CPU is {cosine:.7f}")
    return backend


# The golden test ----------------------------------------------------------------------------------------------------


def golden_batches(tokenizer: TextTokenizer, rows: int, tokens: int, *, pad_left: bool) -> list[TokenBatch]:
    """Make the batches that every provider is compared on: a full one, and one with padding and fewer rows.

    Args:
        tokenizer: Its limit may keep the full one below `tokens`.
        rows: Of the full one.
        tokens: Of its rows.
        pad_left: On which side padding goes, as the model has it.
    """
    words = _GOLDEN_TEXT.split()
    texts = [" ".join((words[row:] + words[:row]) * (tokens // len(words) + 1)) for row in range(rows)]
    ids = [text.ids[:tokens] for text in tokenizer.encode(texts, "")]
    lengths = [max(1, tokens * share // 8) for share in (1, 3, 5, 7, 2)][: max(1, rows - 1)]
    shorter = [row[:length] for row, length in zip(ids, lengths, strict=False)]
    return [_padded(some, tokenizer.pad_id, pad_left=pad_left) for some in (ids, shorter)]


def _padded(rows: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]], pad_id: int, *, pad_left: bool) -> TokenBatch:
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        here = slice(longest - len(row), None) if pad_left else slice(len(row))
        ids[place, here] = row
        mask[place, here] = 1
    return TokenBatch(ids, mask)


def golden_cosine(
    embed: Callable[[TokenBatch], Float32], cpu: Backend, batches: Sequence[TokenBatch], precision: str
) -> float:
    """Compare a provider's vectors with the CPU's; return the smallest cosine.

    Raises:
        ProofError: They are not finite, have no length, have another shape, or another direction.
    """
    smallest = 1.0
    for batch in batches:
        expected, vectors = cpu.embed(batch, is_alone=True), embed(batch)
        if vectors.shape != expected.shape:
            raise ProofError(f"gives an output of shape {vectors.shape} where the CPU gives {expected.shape}")
        if not np.isfinite(vectors).all():
            raise ProofError("gives values that are not finite")
        shortest = float(norms(vectors).min())
        if not shortest > _MIN_NORM:
            raise ProofError(f"gives vectors of length {shortest:.2g}")
        smallest = min(smallest, 1 - float(cosine_distances(vectors, expected).max()))
    if not smallest >= MIN_COSINE[precision]:
        raise ProofError(f"differs from the CPU: a cosine is {smallest:.6f}, and {MIN_COSINE[precision]} is needed")
    return smallest
