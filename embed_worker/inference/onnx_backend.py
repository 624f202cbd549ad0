"""A model's graph in onnxruntime, behind the small contract that every backend fulfils."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embed_worker.config import RuntimeOptions, short_provider
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError, brief
from embed_worker.inference import ort
from embed_worker.inference.backend import CPU_TOLERANCE, TOLERANCES, ProviderReport
from embed_worker.inference.graph_io import GraphIo
from embed_worker.inference.hidden_states import graph_with_hidden_state
from embed_worker.inference.ort import CPU
from embed_worker.inference.placement import own_cores, run_on
from embed_worker.inference.pooling import Float32
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.width import Width
from embed_worker.model_files.damage import damage_of
from embed_worker.model_files.external_data import external_files, map_linked
from embed_worker.model_files.onnx_outline import Outline, read_outline
from embed_worker.model_files.plan import ModelPlan

_log = logging.getLogger(__name__)

# Beyond some threads a batch of one text is all synchronisation.
_MAX_THREADS_OF_ONE_BATCH = 8


class OnnxBackend:
    """An ONNX graph in onnxruntime: one session for lanes that run side by side, one for a batch that runs alone.

    A session's threads are fixed when it is made. Lanes of one thread each give the best throughput, all cores on one
    batch the best latency, unless other processes compute: `Width` chooses. The two sessions share the lookup tables,
    which are a third of a small model.
    """

    def __init__(
        self,
        open_session: _OpenSession,
        provider: ProviderReport,
        plan: ModelPlan,
        *,
        threads: int,
        outline: Outline,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.scales_by_batch = outline.scales_by_batch
        self._plan = plan
        self._open_session = open_session
        self._threads_alone = threads if provider.chosen == CPU else 1
        self._cores = own_cores(self._threads_alone)
        self._lane = open_session(1 if provider.chosen == CPU else threads)
        self._alone = self._lane
        self._width = Width(clock)
        self.provider = _as_chosen(provider, self._lane.get_providers())
        self.graph_io = GraphIo(self._lane.get_inputs(), self._lane.get_outputs(), plan)
        self.is_end_to_end = self.graph_io.is_end_to_end
        self.max_rows = self.graph_io.max_rows
        # "tensor(float)" is 32 bits wide.
        kind = self.graph_io.output_type
        self.precision = outline.quantization or ("float32" if kind == "float" else kind)

    @classmethod
    def load(
        cls,
        plan: ModelPlan,
        options: RuntimeOptions,
        *,
        threads: int,
        provider: str = CPU,
        clock: Callable[[], float] = time.perf_counter,
    ) -> OnnxBackend:
        """Open the graph of a model.

        Args:
            plan: Its graph and pooling.
            options: What was asked for, for the report.
            threads: Cores that a batch alone may use.
            provider: What runs it, by onnxruntime's name.
            clock: Seconds; it times batches that run alone.

        Raises:
            ModelError: Not a graph, or one whose inputs or outputs are not those of a text encoder.
            OutOfMemoryError: There is no memory for it.
        """
        report = ProviderReport(asked=options.provider, chosen=provider, reason="asked for")
        graph, name = plan.graph, plan.name
        outline = read_outline(graph)
        tables = _read_tables(graph, outline) if provider == CPU and threads > 1 else []
        providers = ort.with_options(list(dict.fromkeys([provider, CPU])))
        external_files(graph, outline.external, home=plan.home)
        linked = map_linked(graph, outline.external)
        deeper = graph_with_hidden_state(plan)

        def open_session(threads: int) -> ort.Session:
            settings = ort.session_options(threads, own_cores(threads)[1:] if provider == CPU else ())
            for table in tables:  # kept by this function: a session does not hold the memory
                settings.add_initializer(table.name, table.value)
            # The runtime would plan a block of memory for every shape that it sees: a device's memory would come apart.
            settings.enable_mem_pattern = provider == CPU
            if linked:
                values = [ort.value_of(tensor.values, tensor.kind) for tensor in linked]
                settings.add_external_initializers([tensor.name for tensor in linked], values)
            if deeper is not None:
                ort.look_for_data_in(settings, graph.parent)
            return ort.open_session(deeper or graph, settings, providers=providers)

        try:
            wide = min(threads, _MAX_THREADS_OF_ONE_BATCH)
            return cls(open_session, report, plan, threads=wide, outline=outline, clock=clock)
        except ModelError:
            raise
        except Exception as error:
            if ort.is_out_of_memory(error):
                raise OutOfMemoryError(f"no memory to load the model {name!r}") from error
            damage = damage_of(graph)
            what = f"cannot be used: {brief(error)}" if damage is None else f"is {damage}"
            problem = f"has a graph {graph.name!r} that {what}"
            raise ModelError(f"the model {name!r} {problem}") from error

    @property
    def tolerance(self) -> float | None:
        """See `Backend`: another provider was compared with the CPU, and not every CPU computes 16 bits alike."""
        is_exact = self.precision == "float32" and self.provider.chosen == CPU
        return CPU_TOLERANCE if is_exact else TOLERANCES.get(self.precision)

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the batch's own shape."""
        return rows, tokens

    def use_all_cores(self) -> None:
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

    def close(self) -> None:
        """There is nothing that outlives the process."""

    def chosen_because(self, reason: str) -> OnnxBackend:
        """Return the same sessions under a report with another reason."""
        explained = copy.copy(self)
        explained.provider = replace(self.provider, reason=reason)
        return explained

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        """Run a padded batch and pool it; see `Backend.embed`."""
        try:
            output = self._run_alone(batch) if exclusive else self._run(self._lane, batch)
        except Exception as error:
            if ort.is_out_of_memory(error):
                raise OutOfMemoryError(f"no memory for a batch of {batch.ids.shape}") from error
            raise
        return self.graph_io.pooled(output, batch)

    def _run_alone(self, batch: TokenBatch) -> Float32:
        if self._alone is self._lane:
            return self._run(self._lane, batch)
        return self._width.run(
            batch.ids.size,
            wide=lambda: run_on(self._cores, lambda: self._run(self._alone, batch)),
            narrow=lambda: self._run(self._lane, batch),
        )

    def _run(self, session: ort.Session, batch: TokenBatch) -> Float32:
        (output,) = session.run([self.graph_io.output], self.graph_io.feeds(batch))
        return np.asarray(output, np.float32)


_OpenSession: TypeAlias = Callable[[int], ort.Session]  # of so many threads


@dataclass(frozen=True, slots=True, eq=False)
class _SharedTable:
    """A lookup table that all sessions of a model use; `value` points into `memory`."""

    name: str
    memory: NDArray[Any]
    value: ort.Value


def _read_tables(graph: Path, outline: Outline) -> list[_SharedTable]:
    """Read the lookup tables once for all sessions. Not memory-mapped: a file may be overwritten under a worker."""
    tables = []
    for table in outline.tables:
        dtype = np.float16 if table.item_bytes == 2 else np.float32
        values = np.fromfile(graph, dtype, count=math.prod(table.shape), offset=table.offset).reshape(table.shape)
        tables.append(_SharedTable(table.name, values, ort.value_of(values)))
    return tables


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
        return [CPU], ProviderReport(asked=asked, chosen=CPU, reason=reason)
    by_name = {short_provider(provider): provider for provider in available}
    chosen = by_name.get(short_provider(asked))
    if chosen is None:
        known = ", ".join(sorted(by_name))
        hint = "; docs/installing.md tells how to get one for NVIDIA's GPUs" if asked in ("cuda", "tensorrt") else ""
        raise ConfigError(f"this onnxruntime has no provider {asked!r}; it has: {known}{hint}")
    return list(dict.fromkeys([chosen, CPU])), ProviderReport(asked=asked, chosen=chosen, reason="asked for")


def _as_chosen(report: ProviderReport, active: Sequence[str]) -> ProviderReport:
    """Report what the session really got: onnxruntime falls back without an error."""
    if report.chosen in active:
        return report
    return ProviderReport(
        asked=report.asked, chosen=active[0], reason=f"{report.chosen} could not be set up; see standard error"
    )
