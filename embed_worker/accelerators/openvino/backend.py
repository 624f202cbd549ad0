"""A model in OpenVINO, behind the contract of every backend: compiled graphs of one core each, and one of all cores.

It reads the graph that onnxruntime reads, and is fed and pooled alike. Before it serves, every compiled graph has given
the CPU's vectors in every bucket, while the others ran.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embed_worker.accelerators.agreement import ProofError
from embed_worker.accelerators.openvino.proof import MIN_COSINE, Embed, Reference
from embed_worker.accelerators.openvino.runtime import CompiledGraph, OpenvinoError, Runtime, runtime_version
from embed_worker.config import OpenvinoPrecision, RuntimeOptions
from embed_worker.errors import ConfigError, ModelError, OutOfMemoryError, brief
from embed_worker.inference.backend import Backend, ProviderReport
from embed_worker.inference.buckets import Buckets, Padding, SteadyLength
from embed_worker.inference.graph_io import GraphIo
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.pooling import Float32
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.inference.width import Width
from embed_worker.model_files.onnx_outline import HIDDEN_STATE
from embed_worker.model_files.plan import ModelPlan

_log = logging.getLogger(__name__)

# Each compiled graph has its own copy of the weights; with more cores each gets several.
_MAX_GRAPHS = 4
# Steps of buckets. A new shape costs about 10 ms and a megabyte or more: 60 random shapes took 830 MB in a worker. What
# is not among these, such as 44 and 60, takes as long as the next.
_TOKENS = (
    *(8, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160, 176, 192, 208),
    *(224, 240, 256, 320, 384, 448, 512),
)
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)


@dataclass(frozen=True, kw_only=True)
class OpenvinoReport(ProviderReport):
    """What `info` tells of OpenVINO.

    Attributes:
        version: Of the package openvino.
        graphs: How many were compiled.
        threads: Cores of the first of them; where they cannot be shared out evenly others have one less.
        buckets: Shapes that batches are padded to, and that were proved.
        cosine: The smallest to the CPU's vectors.
        speed_ratio: Its time over that of one core of the CPU for a full batch.
    """

    version: str
    graphs: int
    threads: int
    buckets: int
    cosine: float
    speed_ratio: float


class OpenvinoBackend:
    """A model in OpenVINO. Any number of lanes may call it; a lane waits where all compiled graphs run."""

    scales_by_batch = False
    max_rows = None

    def __init__(
        self,
        runtime: Runtime,
        graphs: Sequence[CompiledGraph],
        graph_io: GraphIo,
        reference: Reference,
        padding: Padding,
        provider: ProviderReport,
        *,
        precision: OpenvinoPrecision,
        threads: int,
    ) -> None:
        self.provider = provider
        self.precision = str(precision)
        self.is_end_to_end = graph_io.is_end_to_end
        self._graph_io = graph_io
        self._padding = padding
        self._idle: queue.SimpleQueue[CompiledGraph] = queue.SimpleQueue()
        for graph in graphs:
            self._idle.put(graph)
        self._wide: CompiledGraph | None = None
        self._steady = SteadyLength(0)
        self._width = Width()
        # Until all cores are used: both hold memory.
        self._to_compile: tuple[Runtime, Reference, int] | None = (runtime, reference, threads)

    @property
    def tolerance(self) -> float | None:
        """What every compiled graph has kept to in every bucket."""
        return 1 - MIN_COSINE[OpenvinoPrecision(self.precision)]

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the bucket of a batch, or what those of its turns are together."""
        return self._padding.buckets.together(rows, tokens)

    def use_all_cores(self) -> None:
        """Compile the graph for batches that run alone, where it is right. It never raises."""
        if self._to_compile is None:
            return
        (runtime, reference, threads), self._to_compile = self._to_compile, None
        if threads == 1:
            return
        try:
            precision = OpenvinoPrecision(self.precision)
            wide = runtime.compile(precision, threads=threads, output=self._graph_io.output)
            reference.compare([self._by(wide)], MIN_COSINE[precision])
            self._steady = SteadyLength(reference.spare_tokens(self._by(wide)))
        except Exception as error:  # noqa: BLE001 - the model serves without it
            _log.warning("single texts stay on fewer cores reason=%s", brief(error))
            return
        self._wide = wide

    def close(self) -> None:
        """There is nothing that outlives the process."""

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        """Run a padded batch and pool it; see `Backend.embed`."""
        turns = self._padding.turns(batch)
        if len(turns) > 1:
            return np.concatenate([self._embed_on_one(turn) for turn in turns])
        wide = self._wide
        if exclusive and wide is not None:
            return self._width.run(
                batch.ids.size, wide=lambda: self._embed_steadily(wide, batch), narrow=lambda: self._embed_on_one(batch)
            )
        return self._embed_on_one(batch)

    def _embed_on_one(self, batch: TokenBatch) -> Float32:
        graph = self._idle.get()
        try:
            return self._embed(graph, batch)
        finally:
            self._idle.put(graph)

    def _by(self, graph: CompiledGraph) -> Embed:
        return lambda batch: self._embed(graph, batch)

    def _embed_steadily(self, graph: CompiledGraph, batch: TokenBatch) -> Float32:
        rows, tokens = batch.ids.shape
        return self._embed(graph, batch, self._steady.of(tokens) if rows == 1 else 0)

    def _embed(self, graph: CompiledGraph, batch: TokenBatch, at_least: int = 0) -> Float32:
        rows, tokens = batch.ids.shape
        try:
            output = graph.run(self._graph_io.feeds(self._padding.fill(batch, at_least)))
        except MemoryError as error:
            raise OutOfMemoryError(f"no memory for a batch of {batch.ids.shape}") from error
        if output.ndim == 3:
            output = output[:, -tokens:] if self._padding.pad_left else output[:, :tokens]
        return self._graph_io.pooled(np.ascontiguousarray(output[:rows]), batch)


# Loading and proof ----------------------------------------------------------------------------------------------------


def buckets_of(batch_tokens: int, max_tokens: int) -> Buckets:
    """Return the buckets of a worker with this budget for a model of this limit."""
    return Buckets(_ROWS, _TOKENS, batch_tokens=batch_tokens, max_tokens=max_tokens)


def accelerate(
    cpu: OnnxBackend, plan: ModelPlan, tokenizer: TextTokenizer, options: RuntimeOptions, threads: int
) -> Backend:
    """Compile a model with OpenVINO and compare it with the CPU, which is not needed any more after that.

    Args:
        cpu: The model in onnxruntime.
        plan: The model's folder.
        tokenizer: The model's own.
        options: The precision and the budget of a micro-batch.
        threads: Cores that may be used.

    Raises:
        ConfigError: OpenVINO is not there.
        ModelError: It cannot run the model in the precision that was asked for, or does not give its vectors.
        OutOfMemoryError: There is no memory for it.
    """
    refusal = f"--provider openvino: the model {plan.name!r} cannot be run by OpenVINO"
    try:
        _check_graph(cpu)
        runtime = Runtime(plan.graph)
        buckets = buckets_of(options.batch_tokens, plan.max_tokens)
        reference = Reference.of(cpu, tokenizer, buckets, pad_left=plan.pad_left, threads=threads)
        padding = Padding(buckets, tokenizer.pad_id, plan.pad_left)
        attempt = _Attempt(runtime, reference, padding, cpu, options, threads)
        return attempt.first_that_is_right()
    except (ConfigError, OutOfMemoryError):
        raise
    except (ModelError, OpenvinoError) as error:
        raise ModelError(f"{refusal}: {error}") from error
    except ProofError as error:
        raise ModelError(f"{refusal}: it {error}") from error
    except MemoryError as error:
        raise OutOfMemoryError(f"no memory to load the model {plan.name!r} for OpenVINO") from error


def _check_graph(cpu: OnnxBackend) -> None:
    if cpu.max_rows is not None:
        raise ModelError("its graph takes a fixed number of texts, and batches are padded here")
    if cpu.graph_io.output == HIDDEN_STATE:
        raise ModelError("it pools an inner hidden state")
    if cpu.scales_by_batch:
        raise ModelError("its graph quantises by the values of the whole batch, and batches are padded here")
    if not cpu.graph_io.has_mask:
        raise ModelError("its graph has no attention mask, and batches are padded here")


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """What is needed to try one precision after the other."""

    runtime: Runtime
    reference: Reference
    padding: Padding
    cpu: OnnxBackend
    options: RuntimeOptions
    threads: int

    def first_that_is_right(self) -> Backend:
        """Return the backend of the precision that was asked for; by itself bfloat16, unless float32 is faster."""
        asked = self.options.openvino_precision
        if asked is not OpenvinoPrecision.AUTO:
            return self._proved(asked, "asked for")[0]
        if not self.runtime.lists(OpenvinoPrecision.BFLOAT16):
            return self._proved(OpenvinoPrecision.FLOAT32, "the processor does not have bfloat16")[0]
        try:
            rounded, ratio = self._proved(OpenvinoPrecision.BFLOAT16, "the processor multiplies bfloat16")
        except (OpenvinoError, ProofError) as error:
            reason = f"in bfloat16 {'it ' if isinstance(error, ProofError) else ''}{error}"
            return self._proved(OpenvinoPrecision.FLOAT32, reason)[0]
        if ratio < 1:
            return rounded
        # Some processors have bfloat16, and are slow at it.
        with contextlib.suppress(OpenvinoError, ProofError):
            reason = f"bfloat16 takes {ratio:.2f} of the CPU's time"
            exact, exact_ratio = self._proved(OpenvinoPrecision.FLOAT32, reason)
            return exact if exact_ratio <= ratio else rounded
        return rounded

    def _proved(self, precision: OpenvinoPrecision, why: str) -> tuple[OpenvinoBackend, float]:
        """Compile a graph for each lane and let all prove themselves together.

        Returns:
            The backend, and its time over that of one core of the CPU.

        Raises:
            OpenvinoError: It does not compile, or computes in another precision.
            ProofError: Its vectors are not the CPU's.
        """
        output, cores = self.cpu.graph_io.output, shared_out(self.threads)
        graphs = [self.runtime.compile(precision, threads=share, output=output) for share in cores]
        backends = [self._backend([graph], precision, self.cpu.provider) for graph in graphs]
        embeds: list[Embed] = [_lane(backend) for backend in backends]
        cosine = self.reference.compare(embeds, MIN_COSINE[precision])
        for graph in graphs:
            if graph.precision is not precision:
                raise OpenvinoError(f"it computes in {graph.precision or 'another precision'} instead of {precision}")
        # A batch of about 32 tokens a text, on one core of either.
        bucket = max(bucket for bucket in self.reference.buckets if bucket.tokens <= 32)
        ratio = self.reference.speed_ratio(embeds[0], _lane(self.cpu), bucket)
        judgement = "" if ratio <= 1 else ", so the CPU is faster"
        report = OpenvinoReport(
            asked=self.options.provider,
            chosen="openvino",
            reason=f"{precision} ({why}): its smallest cosine to the CPU is {cosine:.6f} over "
            f"{len(self.reference.buckets)} shapes, and it takes {ratio:.2f} of the CPU's time{judgement}",
            version=runtime_version(),
            graphs=len(cores),
            threads=cores[0],
            buckets=len(self.reference.buckets),
            cosine=round(cosine, 7),
            speed_ratio=round(ratio, 3),
        )
        return self._backend(graphs, precision, report), ratio

    def _backend(
        self, graphs: Sequence[CompiledGraph], precision: OpenvinoPrecision, provider: ProviderReport
    ) -> OpenvinoBackend:
        return OpenvinoBackend(
            self.runtime,
            graphs,
            self.cpu.graph_io,
            self.reference,
            self.padding,
            provider,
            precision=precision,
            threads=self.threads,
        )


def shared_out(threads: int) -> list[int]:
    """Return the cores of each compiled graph, the most first; together they are all."""
    count = min(threads, _MAX_GRAPHS)
    return [threads // count + (number < threads % count) for number in range(count)]


def _lane(backend: Backend) -> Embed:
    return lambda batch: backend.embed(batch, exclusive=False)
