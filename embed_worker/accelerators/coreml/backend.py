"""CoreML where it is proved, and the CPU everywhere else.

Batches are padded up to a shape that CoreML has compiled. What is known of a shape is its *bucket*. No request waits
for a proof: a bucket is proved on a background thread when a batch first asks for it, and the CPU serves until then,
and for good where the proof fails. proof.py has the proof, shapes.py the shapes, docs/apple-silicon.md the whole story.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from embed_worker.accelerators.coreml.cache import ProofState, ProofVerdict
from embed_worker.accelerators.coreml.child import PROVIDER
from embed_worker.accelerators.coreml.environment import CoremlEnvironment, unsupported_reason
from embed_worker.accelerators.coreml.graph import pooling_weights
from embed_worker.accelerators.coreml.proof import Compiled, Prover
from embed_worker.accelerators.coreml.shapes import BATCHES, SHAPES, Shape, is_worth, shape_for
from embed_worker.accelerators.coreml.static_session import SessionClosedError
from embed_worker.config import CoremlPrecision, RuntimeOptions
from embed_worker.errors import ConfigError, ModelError, brief
from embed_worker.inference.backend import TOLERANCES, Backend, ProviderReport
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.pooling import Float32, are_usable
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.plan import ModelPlan

_log = logging.getLogger(__name__)

_IDLE_S = 60.0  # a session that was used since then is not closed for another
_CLOSE_S = 1.0


def accelerate(
    cpu: OnnxBackend, plan: ModelPlan, tokenizer: TextTokenizer, runtime: RuntimeOptions, environment: CoremlEnvironment
) -> Backend:
    """Return the CPU with CoreML beside it, or the CPU alone where CoreML is out of the question.

    Raises:
        ConfigError: It is, and CoreML was asked for by name.
        ModelError: It was asked for by name, and the proof of the smallest shape fails.
    """
    is_demanded = runtime.provider != "auto"
    problem = unsupported_reason(environment.host) or _unfit(cpu, plan)
    if problem is not None:
        if is_demanded:
            raise ConfigError(f"--provider {runtime.provider}: {problem}")
        return cpu.chosen_because(problem)
    backend = CoremlBackend(cpu, Prover(cpu, plan, tokenizer, runtime, environment), runtime, environment)
    if runtime.coreml_precision is CoremlPrecision.FP16:
        backend.open_remembered()
    if is_demanded:
        backend.demand(SHAPES[0])
    return backend


def _unfit(cpu: OnnxBackend, plan: ModelPlan) -> str | None:
    """Return why a model cannot have a graph of its own for CoreML; None where it may."""
    if cpu.is_end_to_end:
        return "the model's graph pools by itself"
    if plan.hidden_state is not None:
        return "the model pools an inner hidden state"
    if cpu.scales_by_batch:
        return "the model's graph is quantised, and CoreML gets none but float graphs"
    one = np.ones((1, 1), np.int64)
    if len(plan.pooling) != 1 or pooling_weights(one, plan.pooling[0]) is None:
        return f"pooling by {', '.join(plan.pooling)} is no single matrix product"
    return None


@dataclass(frozen=True, kw_only=True)
class CoremlReport(ProviderReport):
    """What `info` tells where CoreML may be used: what it was asked to be, and a verdict for every shape in use."""

    units: str
    precision: str
    cache: str
    buckets: Sequence[dict[str, Any]]


@dataclass(slots=True, eq=False)
class _Bucket:
    """What is known of a shape; guarded by the backend's lock.

    Attributes:
        compiled: The session that serves; None where the CPU does.
        used_s: When a batch last asked for it; None for never.
        failures: How often it failed while it served.
    """

    shape: Shape
    verdict: ProofVerdict = field(default_factory=ProofVerdict)
    compiled: Compiled | None = None
    used_s: float | None = None
    failures: int = 0

    def report(self) -> dict[str, Any]:
        return {
            "batch": self.shape.batch,
            "length": self.shape.length,
            **asdict(self.verdict),
            "speed_ratio": self.verdict.speed_ratio,
        }


class CoremlBackend:
    """The CPU, and beside it the shapes of which CoreML is proved to give the same vectors sooner."""

    def __init__(self, cpu: Backend, prover: Prover, runtime: RuntimeOptions, environment: CoremlEnvironment) -> None:
        # A client must not see the precision change: in float16, sessions are opened at the start or not at all.
        self._changes_precision = runtime.coreml_precision is CoremlPrecision.FP16
        self.is_end_to_end = cpu.is_end_to_end
        # Neighbours decide which bucket a text is in, and so whether CoreML's float16 or the CPU computes it.
        self.scales_by_batch = cpu.scales_by_batch or self._changes_precision
        self._cpu = cpu
        self._prover = prover
        self._runtime = runtime
        self._environment = environment
        self._lock = threading.Condition()
        self._buckets = {shape: _Bucket(shape) for shape in SHAPES}
        self._cpu_uses_all_cores = False
        self._is_closed = False
        self._tasks: queue.SimpleQueue[_Bucket | None] = queue.SimpleQueue()
        weakref.finalize(self, self._tasks.put, None)  # the thread of an unloaded model ends

    @property
    def provider(self) -> CoremlReport:
        """What serves now, and what was found of every shape that a batch has asked for."""
        with self._lock:
            asked_for = [bucket for bucket in self._buckets.values() if bucket.used_s is not None]
            serving = [bucket.shape for bucket in asked_for if bucket.compiled is not None]
            return CoremlReport(
                asked=self._runtime.provider,
                chosen=PROVIDER if serving else self._cpu.provider.chosen,
                reason=_reason(serving, asked_for),
                units=str(self._runtime.coreml_units),
                precision=str(self._runtime.coreml_precision),
                cache=str(self._environment.cache),
                buckets=[bucket.report() for bucket in asked_for],
            )

    @property
    def max_rows(self) -> int | None:
        """That of the CPU's graph."""
        return self._cpu.max_rows

    @property
    def tolerance(self) -> float | None:
        """That of the proof where CoreML serves, else the CPU's."""
        proved = TOLERANCES["float16" if self._changes_precision else "float32"]
        return proved if self._serving() else self._cpu.tolerance

    @property
    def precision(self) -> str:
        """The type that is computed in: that of the CPU's graph, unless CoreML serves in another."""
        return "float16" if self._changes_precision and self._serving() else self._cpu.precision

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the batch's own shape."""
        return rows, tokens

    def use_all_cores(self) -> None:
        """Let the CPU use all cores, then prove what is asked for, in the background. It never raises."""
        self._let_cpu_use_all_cores()
        threading.Thread(target=_work, args=(weakref.ref(self), self._tasks), name="coreml", daemon=True).start()

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        """Run a padded batch and pool it, on CoreML as far as that is proved; see `Backend.embed`."""
        rows = len(batch.ids)
        pieces = [np.arange(first, min(first + BATCHES[-1], rows)) for first in range(0, rows, BATCHES[-1])]
        parts = [(piece, self._accelerated(batch.only(piece))) for piece in pieces]
        left = [piece for piece, vectors in parts if vectors is None]
        if len(left) == len(parts):
            return self._cpu.embed(batch, exclusive=exclusive)
        if left:
            rest = np.concatenate(left)
            parts.append((rest, self._cpu.embed(batch.only(rest), exclusive=exclusive)))
        done = [(piece, vectors) for piece, vectors in parts if vectors is not None]
        order = np.concatenate([piece for piece, _ in done])
        pooled: Float32 = np.concatenate([vectors for _, vectors in done])[np.argsort(order)]
        return pooled

    def open_remembered(self) -> None:
        """Open what an earlier start has proved, before anything is served."""
        for shape in self._prover.remembered():
            if len(self._serving()) < self._prover.max_sessions:
                bucket = self._buckets[shape]
                bucket.used_s = self._environment.clock()
                self._conclude(bucket, *self._prover.prove(shape))

    def demand(self, shape: Shape) -> None:
        """Prove a shape now.

        Raises:
            ModelError: CoreML cannot give the model's vectors in it. That it takes longer is no failure.
        """
        self._let_cpu_use_all_cores()  # what CoreML's time is compared with
        bucket = self._buckets[shape]
        bucket.used_s = self._environment.clock()
        if bucket.compiled is None:
            self._conclude(bucket, *self._prover.prove(shape))
        if bucket.verdict.state not in (ProofState.PROVED, ProofState.SLOWER):
            self.close()
            told = f"--provider {self._runtime.provider}: {shape}: {bucket.verdict.reason}"
            raise ModelError(f"{told} (verdicts are remembered in {self._environment.cache}: empty it to try again)")

    def wait_for_proofs(self, timeout_s: float) -> bool:
        """Wait until everything that was asked for has its verdict; False after the time-out."""
        with self._lock:
            return self._lock.wait_for(
                lambda: all(bucket.verdict.state is not ProofState.PROVING for bucket in self._buckets.values()),
                timeout_s,
            )

    def close(self) -> None:
        """End what is being compiled and close the sessions, which may have temporary files; the CPU still serves."""
        with self._lock:
            self._is_closed = True
            compiled = self._serving()
            for bucket in self._buckets.values():
                bucket.compiled = None
        self._prover.stop()
        self._tasks.put(None)
        until_s = time.monotonic() + _CLOSE_S
        for each in compiled:
            each.session.close(max(0.0, until_s - time.monotonic()))

    def _let_cpu_use_all_cores(self) -> None:
        if not self._cpu_uses_all_cores:
            self._cpu_uses_all_cores = True
            self._cpu.use_all_cores()

    def _serving(self) -> list[Compiled]:
        return [bucket.compiled for bucket in self._buckets.values() if bucket.compiled is not None]

    # A batch

    def _accelerated(self, batch: TokenBatch) -> Float32 | None:
        """Run a batch on CoreML; None where it is the CPU's."""
        rows, tokens = batch.ids.shape
        shape = shape_for(rows, tokens)
        if shape is None or (compiled := self._compiled_for(self._buckets[shape], rows, tokens)) is None:
            return None
        try:
            feeds = compiled.feeds(batch)
        except IndexError:  # an id beyond the table: the CPU's own error says whose fault it is
            return None
        try:
            vectors = compiled.run(feeds, rows)
            if are_usable(vectors).all():
                return vectors
            problem = "gave vectors that are not finite or have no length"
        except SessionClosedError:
            return None
        except Exception as error:  # noqa: BLE001 - whatever it is, the CPU has not failed
            problem = f"failed: {brief(error)}"
        self._withdraw(self._buckets[shape], compiled, problem)
        return None

    def _compiled_for(self, bucket: _Bucket, rows: int, tokens: int) -> Compiled | None:
        """Return the session for a batch where it is worth it; ask for one where there is none."""
        with self._lock:
            bucket.used_s = self._environment.clock()
            if bucket.compiled is not None:
                ratio = bucket.verdict.speed_ratio
                assert ratio is not None
                return bucket.compiled if is_worth(ratio, rows, tokens, bucket.shape) else None
            if bucket.verdict.state is ProofState.UNTRIED and not self._is_closed:
                bucket.verdict = ProofVerdict(state=ProofState.PROVING, reason="it is being compiled and proved")
                self._tasks.put(bucket)
            return None

    def _idle(self) -> _Bucket | None:
        """Find the session that was not used for longest, if that is long enough."""
        opened = [bucket for bucket in self._buckets.values() if bucket.compiled is not None]
        oldest = min(opened, key=lambda bucket: bucket.used_s or 0.0, default=None)
        if oldest is None or self._changes_precision or self._environment.clock() - (oldest.used_s or 0.0) < _IDLE_S:
            return None
        return oldest

    def _withdraw(self, bucket: _Bucket, compiled: Compiled, problem: str) -> None:
        """Take out of service what failed: the first time to be made anew, the second time for good."""
        with self._lock:
            if bucket.compiled is not compiled:  # another lane has done it
                return
            bucket.compiled = None
            bucket.failures += 1
            is_second = bucket.failures > 1
            is_over = is_second or self._changes_precision
            bucket.verdict.state = ProofState.REFUSED if is_over else ProofState.PROVING
            bucket.verdict.reason = f"CoreML {problem}, while it served"
        _log.error("coreml shape=%s %s", bucket.shape, problem)
        compiled.session.close()
        self._prover.withdraw(bucket.shape, bucket.verdict if is_second else None)
        if not is_over:
            self._tasks.put(bucket)

    # In the background

    def process(self, bucket: _Bucket) -> None:
        """Prove a bucket that is PROVING, in the place of an idle one if need be."""
        with self._lock:
            if len(self._serving()) >= self._prover.max_sessions:
                idle = self._idle()
                if idle is None:
                    bucket.verdict = ProofVerdict(reason="there is no memory for another session, and none is idle")
                    self._lock.notify_all()
                    return
                compiled, idle.compiled = idle.compiled, None
                idle.verdict.state = ProofState.UNTRIED
                idle.verdict.reason = "it was proved and closed again: no batch of this shape has come for a while"
                assert compiled is not None
                compiled.session.close()
        verdict, compiled = self._prover.prove(bucket.shape)
        if compiled is not None and self._changes_precision:
            compiled.session.close()
            compiled = None
            verdict.reason += "; it serves from the next start on, because the precision is another"
        self._conclude(bucket, verdict, compiled)

    def _conclude(self, bucket: _Bucket, verdict: ProofVerdict, compiled: Compiled | None) -> None:
        _log.info("coreml shape=%s state=%s reason=%s", bucket.shape, verdict.state, verdict.reason)
        with self._lock:
            bucket.verdict = verdict
            if compiled is not None and self._is_closed:
                compiled.session.close()
            else:
                bucket.compiled = compiled
            self._lock.notify_all()


def _work(backend: weakref.ref[CoremlBackend], tasks: queue.SimpleQueue[_Bucket | None]) -> None:
    """Prove one bucket after the other, without keeping an unloaded model alive."""
    while (bucket := tasks.get()) is not None:
        if (alive := backend()) is not None:
            alive.process(bucket)
        del alive, bucket


def _reason(serving: Iterable[Shape], asked_for: Sequence[_Bucket]) -> str:
    """Put what was found into one sentence."""
    if served := ", ".join(map(str, serving)):
        return f"proved on this machine for batches of up to {served} (texts x tokens)"
    if not asked_for:
        return "CoreML is proved for a shape when a batch of that shape has come"
    last = max(asked_for, key=lambda bucket: bucket.verdict.state is not ProofState.PROVING)
    return f"{last.shape}: {last.verdict.reason}"
