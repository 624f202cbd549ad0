"""The only file that touches onnxruntime: a model's graph behind the small contract that every backend fulfils."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embed_worker.backend import ProviderReport, TokenBatch
from embed_worker.config import RuntimeOptions
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError, brief
from embed_worker.external_data import MappedTensor, external_files, map_linked
from embed_worker.graph_inputs import check_is_dynamic, feeder, hidden_output
from embed_worker.model_plan import ModelPlan
from embed_worker.onnx_file import Outline, read_outline
from embed_worker.pooling import Float32, pool

# From 1.29 on it reports to its maker from the moment that it is loaded; a call of its own to stop that comes too late.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

_log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
_POOLED_OUTPUT = "sentence_embedding"


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
        self._output = _POOLED_OUTPUT if self.is_end_to_end else hidden_output(outputs, plan.name)
        # "tensor(float)" is 32 bits wide.
        kind = outputs[self._output].type.removeprefix("tensor(").removesuffix(")")
        self.precision = "float32" if kind == "float" else kind
        inputs = self._lane.get_inputs()
        check_is_dynamic(inputs, plan.name)
        batch_axis = next((node.shape[0] for node in inputs if node.name == "input_ids" and node.shape), None)
        self._inputs = [feeder(node, batch_axis, plan.name) for node in inputs]

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


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a failed allocation from other failures; onnxruntime has no type for it."""
    if isinstance(error, MemoryError):
        return True
    message = str(error).lower()
    return any(
        sign in message for sign in ("bad_alloc", "failed to allocate memory", "out of memory", "bad allocation")
    )
