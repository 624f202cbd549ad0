"""The only file that touches onnxruntime: a model's graph behind the small contract that every backend fulfils."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from embed_worker.config import RuntimeOptions
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError
from embed_worker.pooling import Float32, Int64

_log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
_POOLED_OUTPUT = "sentence_embedding"
_HIDDEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_INTEGER_TYPES: dict[str, Any] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, **_INTEGER_TYPES}


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Padded token ids: `ids` and `mask` are (B, T) int64; the mask is 1 for a token and 0 for padding."""

    ids: Int64
    mask: Int64


_Feed: TypeAlias = Callable[[TokenBatch], NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderReport:
    """What `info` tells of the provider: the one asked for, the one that runs, and why."""

    asked: str
    chosen: str
    reason: str


class Backend(Protocol):
    """A loaded graph. CPU fulfils it here; CoreML and MLX in files of their own."""

    @property
    def provider(self) -> ProviderReport:
        """What runs the graph."""

    @property
    def precision(self) -> str:
        """The type that the graph computes in."""

    @property
    def pools_itself(self) -> bool:
        """Whether `run` returns finished vectors, (B, D), instead of token vectors, (B, T, D)."""

    def run(self, batch: TokenBatch, *, is_alone: bool) -> Float32:
        """Run a padded batch.

        Args:
            batch: At least one row of at least one token.
            is_alone: Nothing else runs: all cores may be used for it.

        Returns:
            (B, T, D) token vectors, or (B, D) where the graph pools.

        Raises:
            OutOfMemoryError: An allocation failed.
            Exception: Whatever the runtime raises for this batch.
        """


class OnnxBackend:
    """An ONNX graph in onnxruntime. `run` is safe from several threads at once."""

    def __init__(self, session: onnxruntime.InferenceSession, provider: ProviderReport, name: str) -> None:
        self.provider = provider
        self._session = session
        outputs = {output.name: output for output in session.get_outputs()}
        self.pools_itself = _POOLED_OUTPUT in outputs
        self._output = _POOLED_OUTPUT if self.pools_itself else _hidden_output(outputs, name)
        # "tensor(float)" is 32 bits wide.
        self.precision = {"tensor(float)": "float32"}.get(
            outputs[self._output].type, outputs[self._output].type.removeprefix("tensor(").removesuffix(")")
        )
        self._inputs = [_feeder(node, name) for node in session.get_inputs()]

    @classmethod
    def load(cls, graph: Path, name: str, options: RuntimeOptions, *, threads: int) -> OnnxBackend:
        """Open a graph.

        Raises:
            ModelError: Not a graph, or one whose inputs or outputs are not those of a text encoder.
            ConfigError: The provider that was asked for is not in this onnxruntime.
        """
        providers, report = choose_provider(options.provider, onnxruntime.get_available_providers())
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        # A worker waits most of its life: a pool that spins would burn the host's cores between requests.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(graph), settings, providers=providers)
        except MemoryError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(f"no memory to load the model {name!r}") from error
            raise ModelError(
                f"the model {name!r} has a graph {graph.name!r} that cannot be used: {_brief(error)}"
            ) from error
        return cls(session, _as_chosen(report, session.get_providers()), name)

    def run(self, batch: TokenBatch, *, is_alone: bool) -> Float32:
        """Run a padded batch; see `Backend.run`."""
        feeds = {name: feed(batch) for name, feed in self._inputs}
        try:
            (output,) = self._session.run([self._output], feeds)
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(f"no memory for a batch of {batch.ids.shape}") from error
            raise
        return np.asarray(output, np.float32)


def choose_provider(asked: str, available: Sequence[str]) -> tuple[list[str], ProviderReport]:
    """Map the provider that was asked for to onnxruntime's names, the CPU always last.

    Args:
        asked: `auto`, `cpu`, or a provider's name with or without `ExecutionProvider`, in any case.
        available: What this onnxruntime has.

    Raises:
        ConfigError: This onnxruntime has no such provider.
    """
    if asked in ("auto", "cpu"):
        reason = "asked for" if asked == "cpu" else "no faster provider has been proved on this machine"
        return [_CPU], ProviderReport(asked=asked, chosen=_CPU, reason=reason)
    by_name = {provider.lower().removesuffix("executionprovider"): provider for provider in available}
    chosen = by_name.get(asked.lower().removesuffix("executionprovider"))
    if chosen is None:
        known = ", ".join(sorted(by_name))
        raise ConfigError(f"this onnxruntime has no provider {asked!r}; it has: {known}")
    return list(dict.fromkeys([chosen, _CPU])), ProviderReport(asked=asked, chosen=chosen, reason="asked for")


def _as_chosen(report: ProviderReport, active: Sequence[str]) -> ProviderReport:
    """Report what the session really got: onnxruntime falls back without an error."""
    if report.chosen in active:
        return report
    return ProviderReport(
        asked=report.asked, chosen=active[0], reason=f"{report.chosen} could not be set up; see standard error"
    )


def _hidden_output(outputs: Mapping[str, Any], name: str) -> str:
    found = next((output for output in _HIDDEN_OUTPUTS if output in outputs), None)
    if found is None:
        raise ModelError(
            f"the model {name!r} has a graph without an output {' or '.join(_HIDDEN_OUTPUTS)}: "
            f"it has {', '.join(outputs)}"
        )
    rank = len(outputs[found].shape)
    if rank != 3:
        raise ModelError(f"the model {name!r} has a graph whose {found} has {rank} dimensions, not batch, tokens, size")
    return found


def _feeder(node: Any, name: str) -> tuple[str, _Feed]:
    """Pair an input of the graph with the function that makes it from a batch."""
    if node.name in _KNOWN_INPUTS:
        dtype = _INTEGER_TYPES.get(node.type)
        if dtype is None:
            raise ModelError(f"the model {name!r} has a graph whose {node.name} is {node.type}, not integers")
        return node.name, _FEEDS[node.name](dtype)
    # What a decoder carries from one token to the next is empty here; the graph says in which dimension.
    dtype = _TYPES.get(node.type)
    empty = [axis for axis, size in enumerate(node.shape) if axis > 0 and not isinstance(size, int)]
    if dtype is None or not empty:
        raise ModelError(f"the model {name!r} has a graph with an input that is not known: {node.name} {node.type}")
    shape = [size if isinstance(size, int) else 0 for size in node.shape]

    def feed(batch: TokenBatch) -> NDArray[Any]:
        return np.zeros([len(batch.ids), *shape[1:]], dtype)

    return node.name, feed


def _positions(mask: Int64) -> Int64:
    """Count the tokens of each text from 0, wherever its padding is; padding gets 0."""
    positions: Int64 = np.maximum(mask.cumsum(axis=1) - 1, 0) * mask
    return positions


_FEEDS: dict[str, Callable[[Any], _Feed]] = {
    "input_ids": lambda dtype: lambda batch: batch.ids.astype(dtype, copy=False),
    "attention_mask": lambda dtype: lambda batch: batch.mask.astype(dtype, copy=False),
    "token_type_ids": lambda dtype: lambda batch: np.zeros(batch.ids.shape, dtype),
    "position_ids": lambda dtype: lambda batch: _positions(batch.mask).astype(dtype, copy=False),
}


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a failed allocation from other failures; onnxruntime has no type for it."""
    if isinstance(error, MemoryError):
        return True
    message = str(error).lower()
    return any(
        sign in message for sign in ("bad_alloc", "failed to allocate memory", "out of memory", "bad allocation")
    )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
