"""Whether a shape of a model is right on CoreML, and faster than on the CPU.

CoreML compiles a graph for one shape: a number of texts and a number of tokens. Every shape is compiled by a child,
then opened, and proved in four steps before it serves: its inputs are fixed, one subgraph holds the nodes, its vectors
are the CPU's, and it takes less time. What was found is remembered until something changes that it depends on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embed_worker import __version__
from embed_worker.accelerators.agreement import ProofError, agreement_with_cpu, golden_batches
from embed_worker.accelerators.coreml.cache import Entry, ProofState, ProofVerdict, sweep
from embed_worker.accelerators.coreml.cache_key import compiled_model, read_cache_key
from embed_worker.accelerators.coreml.child import PROVIDER, ChildFailedError, ChildTask, StoppedError
from embed_worker.accelerators.coreml.environment import CoremlEnvironment, provider_options
from embed_worker.accelerators.coreml.graph import (
    BATCH_DIMENSION,
    FOLDER,
    GRAPH,
    LENGTH_DIMENSION,
    CoremlModel,
    CoremlModelError,
    OldFormatError,
    pooling_weights,
)
from embed_worker.accelerators.coreml.shapes import MAX_SPEED_RATIO, SHAPES, Shape
from embed_worker.accelerators.coreml.static_session import StaticSession, Subgraph
from embed_worker.config import CoremlPrecision, RuntimeOptions
from embed_worker.errors import brief
from embed_worker.inference.backend import Backend
from embed_worker.inference.ort import is_out_of_memory
from embed_worker.inference.pooling import Float32
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.manifest import file_sha256
from embed_worker.model_files.plan import ModelPlan, PoolingMode

_log = logging.getLogger(__name__)

_MIN_SHARE_OF_NODES = 0.95
_TIMED_RUNS = 5


class _RefusedError(Exception):
    """Why CoreML is not used; `is_lasting` says whether it would be the same at the next start."""

    def __init__(self, reason: str, *, is_lasting: bool = True) -> None:
        super().__init__(reason)
        self.is_lasting = is_lasting


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """An open session of one shape, and how batches get into it."""

    session: StaticSession
    model: CoremlModel
    shape: Shape
    mode: PoolingMode

    def feeds(self, batch: TokenBatch) -> dict[str, Float32]:
        """Look up the embeddings of a batch and pad it to the shape.

        Raises:
            IndexError: An id is beyond the table.
        """
        weights = pooling_weights(batch.mask, self.mode, batch.skipped)
        assert weights is not None
        return self.model.feeds(batch.ids, batch.mask, weights, self.shape.batch, self.shape.length)

    def run(self, feeds: dict[str, Float32], rows: int) -> Float32:
        """Return (rows, D) pooled vectors; see `StaticSession.run`."""
        return self.session.run(feeds)[:rows]

    def embed(self, batch: TokenBatch) -> Float32:
        """Return (B, D) pooled vectors."""
        return self.run(self.feeds(batch), len(batch.ids))


class Prover:
    """Compiles, opens and proves the sessions of one model, one at a time; `stop` may come from any thread."""

    def __init__(
        self,
        cpu: Backend,
        plan: ModelPlan,
        tokenizer: TextTokenizer,
        runtime: RuntimeOptions,
        environment: CoremlEnvironment,
    ) -> None:
        self._cpu = cpu
        self._plan = plan
        self._tokenizer = tokenizer
        self._units = runtime.coreml_units
        self._precision = runtime.coreml_precision
        self._environment = environment
        self._graph: tuple[CoremlModel, Path] | None = None
        self._problem: _RefusedError | None = None
        self._in_use: set[Path] = set()
        self.max_sessions = len(SHAPES)  # fewer once the size of the graph is known

    def stop(self) -> None:
        """Kill what is being compiled, and compile nothing more."""
        self._environment.children.stop()

    def remembered(self) -> list[Shape]:
        """Return the shapes that an earlier start has compiled and proved, so that opening them takes no time."""
        try:
            found = self._find_graph(may_make=False)
        except (_RefusedError, CoremlModelError, OSError):
            return []
        entries = {shape: self._entry(shape, found[0]) for shape in SHAPES}
        verdicts = {shape: entry.verdict() for shape, entry in entries.items() if entry.is_complete}
        return [
            shape for shape, verdict in verdicts.items() if verdict is not None and verdict.state is ProofState.PROVED
        ]

    def prove(self, shape: Shape) -> tuple[ProofVerdict, Compiled | None]:
        """Do what is missing until a shape may serve, and tell what was found. It never raises."""
        verdict = ProofVerdict(state=ProofState.REFUSED)
        try:
            model, graph = self._prepared()
            return self._prove(self._entry(shape, model), shape, model, graph)
        except StoppedError:
            return ProofVerdict(reason="the worker is ending"), None
        except _RefusedError as refused:
            verdict.reason = str(refused)
        except Exception as error:  # noqa: BLE001 - whatever it is, the CPU serves
            _log.exception("a proof met a bug shape=%s", shape)
            verdict.reason = f"the proof could not be made: {type(error).__name__}: {brief(error)}"
        return verdict, None

    def withdraw(self, shape: Shape, verdict: ProofVerdict | None = None) -> None:
        """Remove the compiled model of a shape that failed while it served.

        Args:
            shape: It was proved.
            verdict: What every start from now on should know; None: it may be compiled and proved again.
        """
        entry = self._entry(shape, self._prepared()[0])
        self._in_use.discard(entry.folder)
        entry.discard()
        if verdict is not None:
            entry.remember(verdict)

    def _entry(self, shape: Shape, model: CoremlModel) -> Entry:
        """Return the place of a compiled model, named by everything that it, or its verdict, depends on."""
        host = self._environment.host
        content = model.description.graph_sha256[:16]
        # What it was compared with: a quantised variant, or weights that were there for a while, condemn no others.
        against = self._graph_digest[:8]
        bucket = f"b{shape.batch}s{shape.length}"
        parts = (content, against, host.onnxruntime, host.macos_build, self._units, self._precision, bucket)
        return Entry(self._environment.cache / "-".join(parts))

    def _prove(
        self, entry: Entry, shape: Shape, model: CoremlModel, graph: Path
    ) -> tuple[ProofVerdict, Compiled | None]:
        remembered = entry.verdict()
        if remembered is not None and remembered.state in (ProofState.SLOWER, ProofState.REFUSED):
            return remembered, None
        was_complete = entry.is_complete
        verdict = ProofVerdict(state=ProofState.REFUSED)
        try:
            try:
                compiled = self._compiled(entry, shape, model, graph, verdict, remembered)
            except _RefusedError as refused:
                entry.discard()
                if not (was_complete and refused.is_lasting):
                    raise
                # What was good once may have gone bad on disk: once more, from the beginning.
                _log.warning("a compiled model is made anew shape=%s reason=%s", shape, refused)
                verdict = ProofVerdict(state=ProofState.REFUSED)
                compiled = self._compiled(entry, shape, model, graph, verdict, None)
        except _RefusedError as refused:
            verdict.reason = str(refused)
            if refused.is_lasting:
                entry.discard()
                entry.remember(verdict)
            return verdict, None
        return verdict, self._judged(entry, compiled, verdict)

    def _judged(self, entry: Entry, compiled: Compiled, verdict: ProofVerdict) -> Compiled | None:
        """Decide by the time that it takes, and remember."""
        ratio = verdict.speed_ratio
        is_faster = ratio is not None and ratio <= MAX_SPEED_RATIO
        verdict.state = ProofState.PROVED if is_faster else ProofState.SLOWER
        verdict.reason = f"its vectors are the CPU's, and it takes {ratio:.2f} of the CPU's time"
        if not is_faster:
            verdict.reason += f", where at most {MAX_SPEED_RATIO} is worth it"
        entry.remember(verdict)
        if not is_faster:
            compiled.session.close()
            entry.discard()
            return None
        self._in_use.add(entry.folder)
        sweep(self._environment.cache, self._environment.max_cache_bytes, self._in_use)
        return compiled

    def _compiled(
        self,
        entry: Entry,
        shape: Shape,
        model: CoremlModel,
        graph: Path,
        verdict: ProofVerdict,
        remembered: ProofVerdict | None,
    ) -> Compiled:
        """Compile and time where that has not been done, open, and prove placement and vectors; note the findings."""
        options = provider_options(self._units, entry.folder)
        dimensions = {BATCH_DIMENSION: shape.batch, LENGTH_DIMENSION: shape.length}
        verdict.cache_hit = entry.is_complete and _is_kept(entry, graph)
        if entry.is_complete and not verdict.cache_hit:
            entry.discard()  # what would be opened is compiled in the worker, without a limit
        if not verdict.cache_hit:
            started_s = self._environment.clock()
            task = ChildTask("compile", str(entry.folder), str(graph), options, dimensions)
            self._run_child(task, self._environment.compile_limit_s, "compiling it failed")
            verdict.build_ms = round((self._environment.clock() - started_s) * 1e3, 1)
        try:
            session = self._environment.open_session(graph, provider=PROVIDER, options=options, dimensions=dimensions)
        except Exception as error:
            problem = f"the compiled model cannot be opened: {brief(error)}"
            raise _RefusedError(problem, is_lasting=not _is_passing(error)) from error
        compiled = Compiled(session, model, shape, self._plan.pooling[0])
        try:
            _check_inputs(session)
            _check_placement(session.placement(), verdict)
            precision = "float32" if self._precision is CoremlPrecision.FP32 else "float16"
            verdict.cosine = agreement_with_cpu(compiled.embed, self._cpu, self._golden_batches(shape), precision)
            if remembered is None or remembered.speed_ratio is None:
                self._time(compiled, verdict)
            else:
                verdict.coreml_ms, verdict.cpu_ms = remembered.coreml_ms, remembered.cpu_ms
                verdict.build_ms = remembered.build_ms
            entry.mark_complete()  # also: used just now
        except Exception as error:
            session.close()
            match error:
                case _RefusedError():
                    raise
                case ProofError():
                    raise _RefusedError(f"CoreML {error}") from error
                case _:
                    problem = f"CoreML fails: {brief(error)}"
                    raise _RefusedError(problem, is_lasting=not _is_passing(error)) from error
        return compiled

    def _golden_batches(self, shape: Shape) -> list[TokenBatch]:
        return golden_batches(self._tokenizer, shape.batch, shape.length, pad_left=self._plan.pad_left)

    def _time(self, compiled: Compiled, verdict: ProofVerdict) -> None:
        """Run a full batch on CoreML and on all cores of the CPU in turn, and note the medians."""
        full, *_ = self._golden_batches(compiled.shape)
        clock = self._environment.clock
        coreml_s, cpu_s = [], []
        for _ in range(_TIMED_RUNS):
            started_s = clock()
            compiled.embed(full)
            between_s = clock()
            self._cpu.embed(full, exclusive=True)
            coreml_s.append(between_s - started_s)
            cpu_s.append(clock() - between_s)
        verdict.coreml_ms, verdict.cpu_ms = (
            round(sorted(times_s)[_TIMED_RUNS // 2] * 1e3, 3) for times_s in (coreml_s, cpu_s)
        )

    # The graph

    def _prepared(self) -> tuple[CoremlModel, Path]:
        """Find or make the dedicated graph, once: its tables, and the file to compile."""
        if self._problem is not None:
            raise self._problem
        if self._graph is None:
            try:
                self._graph = self._find_graph(may_make=True)
                fitting = self._environment.max_session_bytes // self._graph[1].stat().st_size
                self.max_sessions = max(1, min(len(SHAPES), fitting))
                sweep(self._environment.cache, self._environment.max_cache_bytes, self._in_use)
            except CoremlModelError as error:
                self._problem = _RefusedError(str(error), is_lasting=False)
            except _RefusedError as refused:
                self._problem = refused
            if self._graph is None:
                assert self._problem is not None
                raise self._problem
        return self._graph

    @functools.cached_property
    def _graph_digest(self) -> str:
        return file_sha256(self._plan.graph)

    def _find_graph(self, *, may_make: bool) -> tuple[CoremlModel, Path]:
        folder = self._plan.folder.absolute() / FOLDER
        if not self._is_current(folder):
            # In the cache: the model's folder may not be ours to write to.
            content = f"{self._graph_digest[:16]}-{__version__}"
            entry = Entry(self._environment.cache / f"graph-{content}")
            self._make_graph(entry, "export", self._plan.folder.absolute(), may_make=may_make)
            folder = entry.folder / FOLDER
        model = CoremlModel.open(folder)
        if self._precision is CoremlPrecision.FP32:
            return model, model.graph
        entry = Entry(self._environment.cache / f"graph-{model.description.graph_sha256[:16]}-fp16")
        self._make_graph(entry, "float16", model.graph, may_make=may_make)
        return model, entry.folder / GRAPH

    def _is_current(self, folder: Path) -> bool:
        """Return whether a model's folder has a graph for CoreML that is made of the weights that it has now."""
        if not (folder / GRAPH).is_file():
            return False
        try:
            if CoremlModel.open(folder).is_made_of(self._plan.folder):
                return True
            problem = "it was made of other weights"
        except OldFormatError as error:
            problem = str(error)
        _log.warning("the folder coreml/ is not used model=%s reason=%s", self._plan.name, problem)
        return False

    def _make_graph(self, entry: Entry, kind: str, source: Path, *, may_make: bool) -> None:
        self._in_use.add(entry.folder)
        if entry.is_complete:
            with contextlib.suppress(OSError):
                entry.mark_complete()  # also: used just now
            return
        if not may_make:
            raise _RefusedError("it has not been made yet", is_lasting=False)
        if not self._environment.host.has_onnx:
            how = "install the extra `tools`, or run `embed-worker export --for coreml` where it is installed"
            raise _RefusedError(f"the graph for CoreML is not there, and making it needs onnx: {how}")
        task = ChildTask(kind, str(entry.folder), str(source))
        self._run_child(task, self._environment.graph_limit_s, "making the graph for CoreML failed")

    def _run_child(self, task: ChildTask, limit_s: float, what: str) -> None:
        try:
            self._environment.children.run(task, limit_s)
        except ChildFailedError as error:
            raise _RefusedError(f"{what}: {error}", is_lasting=error.is_lasting) from error


def _is_kept(entry: Entry, graph: Path) -> bool:
    """Return whether the provider will find what it has compiled, wherever the graph lies now."""
    key = read_cache_key(graph)
    return key is not None and compiled_model(entry.folder, key).exists()


def _check_inputs(session: StaticSession) -> None:
    """Insist on fixed sizes: the override of a name that the graph does not have is ignored without a word."""
    for name, sizes in session.inputs.items():
        if not all(isinstance(size, int) for size in sizes):
            raise _RefusedError(f"the graph's input {name} keeps a free dimension: {list(sizes)}")


def _check_placement(subgraphs: Sequence[Subgraph], verdict: ProofVerdict) -> None:
    taken = [subgraph.nodes for subgraph in subgraphs if subgraph.provider == PROVIDER]
    verdict.partitions = len(taken)
    verdict.coreml_nodes = sum(taken)
    verdict.nodes = sum(subgraph.nodes for subgraph in subgraphs)
    if verdict.partitions != 1:
        raise _RefusedError(f"CoreML takes the graph in {verdict.partitions} pieces, not as one")
    if not verdict.coreml_nodes >= _MIN_SHARE_OF_NODES * verdict.nodes:
        raise _RefusedError(f"CoreML takes {verdict.coreml_nodes} of the graph's {verdict.nodes} nodes")


def _is_passing(error: Exception) -> bool:
    """Whether an error tells of the machine at this moment rather than of CoreML."""
    return isinstance(error, OSError) or is_out_of_memory(error)
