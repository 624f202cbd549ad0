"""The only file that touches onnxruntime: a model's graph behind the small contract that every backend fulfils."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from embed_worker.config import RuntimeOptions
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError, brief
from embed_worker.external_data import MappedTensor, external_files, map_linked
from embed_worker.model_folder import ModelPlan
from embed_worker.onnx_file import Outline, read_outline
from embed_worker.pooling import Float32, Int64, pool

_log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
_POOLED_OUTPUT = "sentence_embedding"
_HIDDEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_INTEGER_TYPES: dict[str, Any] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, **_INTEGER_TYPES}


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Padded token ids of some texts.

    Attributes:
        ids: (B, T) int64.
        mask: (B, T) int64, 1 for a token and 0 for padding.
        skipped: (B,) int64, the leading tokens of each text that pooling leaves out; None where there are none.
    """

    ids: Int64
    mask: Int64
    skipped: Int64 | None = None


_Feed: TypeAlias = Callable[[TokenBatch], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class ProviderReport:
    """What `info` tells of the provider: the one asked for, the one that runs, and why.

    A provider with more to tell has a subclass: all fields become members of `info`, and so must be JSON.
    """

    asked: str
    chosen: str
    reason: str


class Backend(Protocol):
    """A loaded model, from token ids to one vector a text. onnxruntime fulfils it here, others elsewhere."""

    @property
    def provider(self) -> ProviderReport:
        """What runs the graph."""

    @property
    def precision(self) -> str:
        """The type that the graph computes in."""

    @property
    def scales_by_batch(self) -> bool:
        """Whether it is known to quantise by the values of the whole batch, so that neighbours matter."""

    @property
    def is_end_to_end(self) -> bool:
        """Whether `embed` gives the model's final vectors: `Dense` modules, and perhaps L2, are inside the graph."""

    def widen(self) -> None:
        """Do what makes the model faster and may wait until it serves. It never raises."""

    def embed(self, batch: TokenBatch, *, is_alone: bool) -> Float32:
        """Run a padded batch and pool it.

        Args:
            batch: At least one row of at least one token.
            is_alone: Nothing else runs: all cores may be used for it.

        Returns:
            (B, D) float32 as pooled: not cut, not normalised, not checked.

        Raises:
            OutOfMemoryError: An allocation failed.
            ModelError: The model gives something else than vectors of its folder.
            Exception: Whatever the runtime raises for this batch.
        """


class OnnxBackend:
    """An ONNX graph in onnxruntime: one session for lanes that run side by side, one for a batch that runs alone.

    A session's threads are fixed when it is made. Lanes of one thread each give the best throughput, all cores on one
    batch the best latency; the two sessions share the lookup tables, which are a third of a small model.
    """

    def __init__(
        self,
        open_session: _OpenSession,
        provider: ProviderReport,
        plan: ModelPlan,
        *,
        threads: int,
        scales_by_batch: bool,
    ) -> None:
        self.scales_by_batch = scales_by_batch
        self._plan = plan
        self._open_session = open_session
        self._threads_alone = threads if provider.chosen == _CPU else 1
        self._lane = open_session(1 if provider.chosen == _CPU else threads)
        self._alone = self._lane
        self.provider = _as_chosen(provider, self._lane.get_providers())
        outputs = {output.name: output for output in self._lane.get_outputs()}
        self.is_end_to_end = _POOLED_OUTPUT in outputs
        self._output = _POOLED_OUTPUT if self.is_end_to_end else _hidden_output(outputs, plan.name)
        # "tensor(float)" is 32 bits wide.
        kind = outputs[self._output].type.removeprefix("tensor(").removesuffix(")")
        self.precision = "float32" if kind == "float" else kind
        inputs = self._lane.get_inputs()
        _check_is_dynamic(inputs, plan.name)
        batch_axis = next((node.shape[0] for node in inputs if node.name == "input_ids" and node.shape), None)
        self._inputs = [_feeder(node, batch_axis, plan.name) for node in inputs]

    @classmethod
    def load(cls, plan: ModelPlan, options: RuntimeOptions, *, threads: int, provider: str = _CPU) -> OnnxBackend:
        """Open the graph of a model.

        Args:
            plan: Its graph and pooling.
            options: What was asked for, for the report.
            threads: Cores that a batch alone may use.
            provider: What runs it, by onnxruntime's name.

        Raises:
            ModelError: Not a graph, or one whose inputs or outputs are not those of a text encoder.
            OutOfMemoryError: There is no memory for it.
        """
        report = ProviderReport(asked=options.provider, chosen=provider, reason="asked for")
        graph, name = plan.graph, plan.name
        outline = read_outline(graph)
        tables = _read_tables(graph, outline) if provider == _CPU and threads > 1 else []
        providers = list(dict.fromkeys([provider, _CPU]))
        external_files(graph, outline.external)
        linked = map_linked(graph, outline.external)

        def open_session(threads: int) -> onnxruntime.InferenceSession:
            settings = _session_options(threads)
            for table in tables:  # kept by this function: a session does not hold the memory
                settings.add_initializer(table.name, table.value)
            if linked:
                values = [_value_of(tensor) for tensor in linked]
                settings.add_external_initializers([tensor.name for tensor in linked], values)
            # With its fallback, onnxruntime prints to standard output and opens another session than was asked for.
            return onnxruntime.InferenceSession(str(graph), settings, providers=providers, enable_fallback=0)

        try:
            wide = min(threads, _MAX_THREADS_OF_ONE_BATCH)
            return cls(open_session, report, plan, threads=wide, scales_by_batch=outline.scales_by_batch)
        except ModelError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(f"no memory to load the model {name!r}") from error
            problem = f"has a graph {graph.name!r} that cannot be used: {brief(error)}"
            raise ModelError(f"the model {name!r} {problem}") from error

    def widen(self) -> None:
        """Open the session for batches that run alone; until then they run on one thread. It never raises.

        Apart from `load`, because a worker should answer before it is there.
        """
        if self._threads_alone == 1:
            return
        try:
            session = self._open_session(self._threads_alone)
            one = np.ones((1, 1), np.int64)
            self._run(session, TokenBatch(one, one))
            self._alone = session
        except Exception as error:  # noqa: BLE001 - the model serves without it
            _log.warning("single texts stay on one thread model=%s reason=%s", self._plan.name, brief(error))

    def embed(self, batch: TokenBatch, *, is_alone: bool) -> Float32:
        """Run a padded batch and pool it; see `Backend.embed`."""
        try:
            output = self._run(self._alone if is_alone else self._lane, batch)
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(f"no memory for a batch of {batch.ids.shape}") from error
            raise
        if self.is_end_to_end:
            return output
        if output.ndim != 3 or output.shape[:2] != batch.ids.shape:
            problem = f"an output of shape {output.shape} for token ids of shape {batch.ids.shape}"
            raise ModelError(f"the model {self._plan.name!r} gives {problem}")
        stated = self._plan.pooling_dimension
        if stated is not None and output.shape[2] != stated:
            raise ModelError(
                f"the model {self._plan.name!r} has a graph of dimension {output.shape[2]}, "
                f"but its pooling configuration says {stated}"
            )
        return pool(output, batch.mask, self._plan.pooling, batch.skipped)

    def _run(self, session: onnxruntime.InferenceSession, batch: TokenBatch) -> Float32:
        feeds = {name: feed(batch) for name, feed in self._inputs}
        (output,) = session.run([self._output], feeds)
        return np.asarray(output, np.float32)


_OpenSession: TypeAlias = Callable[[int], onnxruntime.InferenceSession]  # of so many threads

# Beyond some threads a batch of one text is all synchronisation.
_MAX_THREADS_OF_ONE_BATCH = 8


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # Threads spin while a batch runs, which takes a third off a short text, and stop with it: idling costs nothing.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


@dataclass(frozen=True, slots=True, eq=False)
class _SharedTable:
    """A lookup table that all sessions of a model use; `value` points into `memory`."""

    name: str
    memory: NDArray[Any]
    value: onnxruntime.OrtValue


def _read_tables(graph: Path, outline: Outline) -> list[_SharedTable]:
    """Read the lookup tables once for all sessions. Not memory-mapped: a file may be overwritten under a worker."""
    tables = []
    for table in outline.tables:
        dtype = np.float16 if table.item_bytes == 2 else np.float32
        values = np.fromfile(graph, dtype, count=math.prod(table.shape), offset=table.offset).reshape(table.shape)
        tables.append(_SharedTable(table.name, values, onnxruntime.OrtValue.ortvalue_from_numpy(values)))
    return tables


def _value_of(tensor: MappedTensor) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.values, tensor.kind)


# Onnxruntime's Python class, or what stands for it in a test.
SessionFactory: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Subgraph:
    """Nodes that one provider runs as a whole; the CPU runs each of its nodes alone."""

    provider: str
    nodes: int


class StaticSession:
    """One graph with every dimension fixed, on one provider: what a proof must see of it, and one run at a time.

    It may be closed while another thread wants to run it, or still does.
    """

    def __init__(
        self,
        graph: Path,
        *,
        provider: str,
        options: Mapping[str, str],
        dimensions: Mapping[str, int],
        factory: SessionFactory | None = None,
    ) -> None:
        """Open a graph.

        Args:
            graph: An ONNX file with one output.
            provider: By onnxruntime's name; the CPU takes what it leaves.
            options: Of the provider.
            dimensions: The sizes of the graph's free dimensions by name. onnxruntime ignores a name that is wrong.
            factory: Stands for `onnxruntime.InferenceSession`.

        Raises:
            Exception: Whatever the runtime raises.
        """
        settings = _session_options(1)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for name, size in dimensions.items():
            settings.add_free_dimension_override_by_name(name, size)
        self._lock = threading.Lock()
        self._session: Any = (factory or onnxruntime.InferenceSession)(
            str(graph),
            settings,
            providers=[(provider, dict(options)), _CPU],
            enable_fallback=0,
            # The provider writes the weights of its Gemm nodes as text, by the gigabyte: microsoft/onnxruntime#32212.
            disabled_optimizers=["MatMulAddFusion"],
        )

    @property
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        """The shapes of the inputs by name; a dimension that is not fixed has a name, or none."""
        return {node.name: tuple(node.shape) for node in self._session.get_inputs()}

    def placement(self) -> list[Subgraph]:
        """Tell what really runs where; `get_providers` only tells what was registered."""
        entries = self._session.get_provider_graph_assignment_info()
        return [Subgraph(entry.ep_name, len(entry.get_nodes())) for entry in entries]

    def run(self, feeds: Mapping[str, Float32]) -> Float32:
        """Run the graph: the value of its one output.

        Raises:
            SessionClosedError: It was closed before this run's turn.
            Exception: Whatever the runtime raises.
        """
        with self._lock:
            if self._session is None:
                raise SessionClosedError
            (output,) = self._session.run(None, dict(feeds))
        return np.asarray(output, np.float32)

    def close(self, timeout_s: float = 1.0) -> None:
        """Let the runtime free it and its files; a run that takes longer than this keeps it."""
        if self._lock.acquire(timeout=timeout_s):
            self._session = None
            self._lock.release()


class SessionClosedError(Exception):
    """The session was closed meanwhile."""


def write_float16(graph: Path, target: Path) -> None:
    """Write a graph that computes in float16 and keeps its inputs and outputs in float32. Needs the package `onnx`.

    Raises:
        ImportError: The package is not there.
        OSError: The file cannot be written.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # Shape inference would write a copy beside the graph, where writing may not be allowed.
    model = convert_float_to_float16(str(graph), keep_io_types=True, disable_shape_infer=True)
    # The converter appends the casts of the inputs; ONNX wants them before what reads them.
    inputs = {node.name for node in model.graph.input}
    nodes = sorted(model.graph.node, key=lambda node: not inputs.intersection(node.input))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    target.write_bytes(model.SerializeToString(deterministic=True))


def runtime_version() -> str:
    """Tell the version of onnxruntime."""
    return str(onnxruntime.__version__)


def available_providers() -> list[str]:
    """List the providers of this onnxruntime."""
    return list(onnxruntime.get_available_providers())


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


def _check_is_dynamic(inputs: Sequence[Any], name: str) -> None:
    shape: Sequence[object] = next((node.shape for node in inputs if node.name == "input_ids"), ())
    if any(isinstance(size, int) for size in shape):
        problem = f"has a graph for texts of one fixed shape, {list(shape)}: export it with dynamic axes"
        raise ModelError(f"the model {name!r} {problem}")


def _feeder(node: Any, batch_axis: object, name: str) -> tuple[str, _Feed]:
    """Pair an input of the graph with the function that makes it from a batch.

    Args:
        node: Name, type and shape, as onnxruntime describes an input.
        batch_axis: What the graph calls the first axis of `input_ids`.
        name: The model's, for messages.
    """
    if node.name in _KNOWN_INPUTS:
        dtype = _INTEGER_TYPES.get(node.type)
        if dtype is None:
            raise ModelError(f"the model {name!r} has a graph whose {node.name} is {node.type}, not integers")
        return node.name, _FEEDS[node.name](dtype)
    # What a decoder carries from one token to the next is empty here, and so are images and sounds; the graph says in
    # which dimension. The batch's own is not it.
    dtype = _TYPES.get(node.type)
    follows_batch = bool(node.shape) and not isinstance(node.shape[0], int) and node.shape[0] == batch_axis
    shape = [size if isinstance(size, int) else 0 for size in node.shape]
    if dtype is None or 0 not in (shape[1:] if follows_batch else shape):
        raise ModelError(f"the model {name!r} has a graph with an input that is not known: {node.name} {node.type}")

    def feed(batch: TokenBatch) -> NDArray[Any]:
        return np.zeros([len(batch.ids), *shape[1:]] if follows_batch else shape, dtype)

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
