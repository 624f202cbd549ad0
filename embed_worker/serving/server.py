"""The life of the worker between its first line and its exit: read, dispatch, drain.

The *reader* thread decodes lines, answers at once what can be, and hands the rest to the loader and the lanes. The
*main* thread waits for a reason to stop. `answers.py` and `lanes.py` own what happens in between.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, assert_never

from embed_worker import __version__, protocol
from embed_worker.config import WorkerConfig
from embed_worker.errors import ModelNotFoundError, OutOfMemoryError
from embed_worker.machine import Threads, describe_machine, release_freed_memory, rss_bytes
from embed_worker.model_files.search import short_name
from embed_worker.protocol import ErrorCode, ExitCode, ProtocolError
from embed_worker.serving.answers import Answer, Answers
from embed_worker.serving.lanes import Job, Lanes
from embed_worker.serving.metrics import Metrics
from embed_worker.serving.model_store import ModelSlot, ModelStore
from embed_worker.serving.stdio import Line, LineWriter, WireError

if TYPE_CHECKING:
    from embed_worker.inference.engine import LoadedModel

_log = logging.getLogger(__name__)

_TICK_S = 0.25  # how often the main thread looks at the parent and at standard output
_LAST_WORDS_S = 1.0  # after a failed start, lines are still answered for so long
_STUCK_WRITE_S = 1.0
_MAX_HELD_ANSWERS = 32_768  # unnumbered control answers behind a long request


class Stop(Enum):
    """Why the worker should end."""

    END_OF_INPUT = auto()
    SHUTDOWN = auto()
    TERMINATED = auto()
    INTERRUPTED = auto()
    PARENT_DIED = auto()
    OUTPUT_BROKEN = auto()
    INPUT_BROKEN = auto()
    OUT_OF_MEMORY = auto()
    NO_MODEL = auto()
    RECYCLE = auto()
    READER_FAILED = auto()
    NOTHING_OWED = auto()  # not a reason by itself: a drain may be complete


class State(Enum):
    """What `ping` tells."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the server needs of the process it lives in, so that tests can fake it."""

    lines: Iterable[Line]
    writer_descriptor: int
    is_parent_alive: Callable[[], bool]
    threads: Threads
    clock: Callable[[], float] = time.monotonic


class Server:
    """One worker. `run` returns its exit status; the process should end then, whatever threads are left."""

    def __init__(self, config: WorkerConfig, store: ModelStore, surroundings: Surroundings, *, lanes: int) -> None:
        self._config = config
        self._limits = config.limits
        self._store = store
        self._around = surroundings
        self._clock = surroundings.clock
        self._stops: queue.SimpleQueue[Stop] = queue.SimpleQueue()
        self._writer = LineWriter(surroundings.writer_descriptor, lambda: self.stop(Stop.OUTPUT_BROKEN))
        self._answers = Answers(self._writer, self._on_settled)
        self._metrics = Metrics()
        self._lanes = Lanes(
            lanes=lanes,
            batch_tokens=config.runtime.batch_tokens,
            max_rows=1 if config.runtime.batch_invariant else None,
            metrics=self._metrics,
            clock=self._clock,
            on_over=self._on_over,
            on_out_of_memory=lambda: self.stop(Stop.OUT_OF_MEMORY),
        )
        self._gate = threading.Lock()  # held while a line is handled; kept for ever by the exit
        self._room = threading.Condition()  # guards the three fields below
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._jobs_by_id: dict[str | int, Job] = {}
        self._started_s = self._clock()
        self._state = State.LOADING
        self._has_no_model = False  # the default model failed at start
        self._is_deaf = False  # after a signal nothing more is read
        self._is_input_over = False
        self._refusal: tuple[ErrorCode, str] | None = None  # what new work is answered with, once there is none to be

    def stop(self, why: Stop) -> None:
        """Ask for an end; safe in a signal handler."""
        self._stops.put(why)

    def run(self) -> int:
        """Serve until there is a reason to stop; return the exit status.

        Accepted work has been answered by then, as far as the reason allows, and nothing is written afterwards.
        """
        self._store.start()
        for number, options in enumerate(self._config.models):
            self._store.open(options, self._on_default_settled if number == 0 else lambda slot: None)
        self._lanes.start()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while True:
            status = self._end(self._wait(None))
            if status is not None:
                return status

    # Stopping

    def _wait(self, timeout_s: float | None) -> Stop | None:
        """Wait for a reason to stop, and look for those that nobody reports; None after the time-out."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                return self._stops.get(timeout=_TICK_S)
            except queue.Empty:
                pass
            if self._config.is_supervised and not self._around.is_parent_alive():
                return Stop.PARENT_DIED
            if self._writer.is_abandoned():
                return Stop.OUTPUT_BROKEN
            if self._is_too_large():
                return Stop.RECYCLE
            if until is not None and time.monotonic() >= until:
                return None

    def _is_too_large(self) -> bool:
        limit = self._config.rss_limit_bytes
        if limit is None or self._state is not State.READY or rss_bytes() <= limit:
            return False
        release_freed_memory()  # it may only be kept, not used
        return rss_bytes() > limit

    def _on_settled(self) -> None:
        if self._state is State.DRAINING:
            self.stop(Stop.NOTHING_OWED)

    def _end(self, why: Stop | None) -> int | None:
        """Do what a reason asks for; return the exit status, or None to go on."""
        match why:
            case None | Stop.NOTHING_OWED:
                return None
            case Stop.END_OF_INPUT | Stop.SHUTDOWN:
                return self._drain(ExitCode.OK)
            case Stop.TERMINATED:
                self._is_deaf = True
                return self._drain(ExitCode.OK)
            case Stop.INTERRUPTED:
                self._is_deaf = True
                return self._drain(ExitCode.INTERRUPTED)
            case Stop.RECYCLE:
                _log.warning("recycling rss_bytes=%d", rss_bytes())
                self._is_deaf = True
                return self._drain(ExitCode.RECYCLED)
            case Stop.PARENT_DIED | Stop.OUTPUT_BROKEN:
                return ExitCode.PIPE_FAILED
            case Stop.INPUT_BROKEN:
                return self._drain(ExitCode.PIPE_FAILED)
            case Stop.OUT_OF_MEMORY:
                self._abandon(ErrorCode.OUT_OF_MEMORY, "the worker ran out of memory and ends")
                return self._close(ExitCode.OUT_OF_MEMORY)
            case Stop.READER_FAILED:
                self._abandon(ErrorCode.INTERNAL_ERROR, "the worker met a bug and ends")
                return self._close(ExitCode.INTERNAL)
            case Stop.NO_MODEL:
                return self._say_last_words()
            case _:
                assert_never(why)

    def _drain(self, status: int) -> int:
        """Finish accepted work, for as long as allowed; a second stop signal drops it."""
        self._refuse(ErrorCode.SHUTTING_DOWN, "the worker is shutting down")
        _log.info("draining owed=%d", self._answers.owed)
        until = None if self._config.drain_timeout_s is None else time.monotonic() + self._config.drain_timeout_s
        while self._answers.owed:
            left = None if until is None else until - time.monotonic()
            why = None if left is not None and left <= 0 else self._wait(left)
            match why:
                case Stop.TERMINATED | Stop.INTERRUPTED if not self._is_deaf:  # the first signal: only stop reading
                    self._is_deaf = True
                    status = ExitCode.INTERRUPTED if why is Stop.INTERRUPTED else status
                case None | Stop.TERMINATED | Stop.INTERRUPTED:
                    self._abandon(ErrorCode.SHUTTING_DOWN, "the worker ended before this request's turn")
                    break
                case Stop.END_OF_INPUT | Stop.INPUT_BROKEN | Stop.SHUTDOWN | Stop.NOTHING_OWED | Stop.RECYCLE:
                    continue
                case _:
                    return self._end(why) or status
        return self._close(status)

    def _say_last_words(self) -> int:
        """Answer what is asked of a worker without a model, for a moment: its host should hear why it ends."""
        until = time.monotonic() + _LAST_WORDS_S
        while not self._is_input_over and (left := until - time.monotonic()) > 0:
            if self._wait(left) in (Stop.PARENT_DIED, Stop.OUTPUT_BROKEN, Stop.TERMINATED, Stop.INTERRUPTED):
                break
        return self._close(ExitCode.UNUSABLE_MODEL)

    def _refuse(self, code: ErrorCode, message: str) -> None:
        if self._refusal is None:
            self._refusal = (code, message)
        self._state = State.DRAINING
        with self._room:
            self._room.notify_all()

    def _abandon(self, code: ErrorCode, message: str) -> None:
        """Answer everything that is owed with an error, running work too."""
        self._refuse(code, message)
        # Not from this thread: a host that does not read must not keep the worker from its exit.
        thread = threading.Thread(target=self._fail_everything, args=(code, message), name="last-answers", daemon=True)
        thread.start()
        thread.join(_STUCK_WRITE_S)

    def _fail_everything(self, code: ErrorCode, message: str) -> None:
        self._lanes.fail_all(code, message)
        self._answers.fail_all(code, message)
        self._answers.wait_until_written(_STUCK_WRITE_S)

    def _close(self, status: int) -> int:
        """Let the line that is being handled and the one that is being written end; then nothing moves any more."""
        self._gate.acquire(timeout=_STUCK_WRITE_S)
        if self._has_no_model:  # a drain for another reason may have been quicker
            status = ExitCode.UNUSABLE_MODEL
        return status if self._writer.try_acquire(_STUCK_WRITE_S) else ExitCode.PIPE_FAILED

    # Reading

    def _read(self) -> None:
        try:
            for line in self._around.lines:
                with self._gate:
                    if self._is_deaf:
                        return
                    self._handle(line)
            self._is_input_over = True
            self.stop(Stop.END_OF_INPUT)
        except WireError as error:
            _log.error("%s", error)
            self._is_input_over = True
            self.stop(Stop.INPUT_BROKEN)
        except MemoryError:
            self.stop(Stop.OUT_OF_MEMORY)
        except BaseException:  # noqa: BLE001 - a worker that no longer reads must not pretend to live
            _log.exception("the reader met a bug")
            self.stop(Stop.READER_FAILED)

    def _handle(self, line: Line) -> None:
        """Answer one line, or see to it that it will be."""
        if line.is_blank:
            return
        self._answers.wait_for_room(_MAX_HELD_ANSWERS, lambda: self._refusal is not None)
        if line.data is None:
            message = f"the line has more than {self._limits.max_line_bytes} bytes"
            self._fail(self._answers.expect(None, line.number), ErrorCode.LINE_TOO_LONG, message)
            return
        try:
            envelope = protocol.parse_line(line.data)
        except ProtocolError as error:
            self._fail(self._answers.expect(None, line.number), error.code, str(error), error.index)
            return
        if self._answers.is_outstanding(envelope.id):
            message = f"the id {envelope.id!a} is outstanding: an id is free again once its answer begins"
            self._fail(self._answers.expect(None, line.number), ErrorCode.DUPLICATE_ID, message)
            return
        answer = self._answers.expect(envelope.id, line.number)
        try:
            request = protocol.decode_request(envelope, self._limits)
            self._dispatch(request, answer, line)
        except ProtocolError as error:
            self._fail(answer, error.code, str(error), error.index)
        except ModelNotFoundError as error:
            self._fail(answer, ErrorCode.MODEL_NOT_FOUND, str(error))
        except MemoryError:
            self._fail(answer, ErrorCode.OUT_OF_MEMORY, "no memory for this request")
            raise
        except Exception:  # noqa: BLE001 - the reader must survive, and the line gets its answer
            _log.exception("a request met a bug line=%d", line.number)
            message = "the worker met a bug; its traceback is on standard error"
            self._fail(answer, ErrorCode.INTERNAL_ERROR, message)

    def _fail(self, answer: Answer, code: ErrorCode, message: str, index: int | None = None) -> None:
        if answer.fail(code, message, index):
            self._metrics.count_error(code)

    def _dispatch(self, request: protocol.Request, answer: Answer, line: Line) -> None:
        refusal = self._refusal
        if refusal is not None and refusal[0] is ErrorCode.MODEL_LOAD_FAILED:
            self._fail(answer, *refusal)
            return
        match request:
            case protocol.Ping():
                answer.succeed(self._pong())
            case protocol.Metrics():
                answer.succeed({"metrics": self._metrics_now()})
            case protocol.Cancel():
                answer.succeed({"cancelled": self._cancel(request.target)})
            case protocol.Shutdown():
                pending = self._answers.pending - 1
                self._refuse(ErrorCode.SHUTTING_DOWN, "the worker is shutting down")
                answer.succeed({"pending": pending})
                self.stop(Stop.SHUTDOWN)
            case _ if refusal is not None:
                self._fail(answer, *refusal)
            case protocol.Embed():
                self._embed(request, answer, line)
            case protocol.Info():
                slot = self._store.find(request.model)
                self._store.when_settled(slot, functools.partial(self._answer_info, answer))
            case protocol.LoadModel():
                self._store.load(request.model, functools.partial(self._answer_load, answer))
            case protocol.UnloadModel():
                name = short_name(request.model)
                self._store.unload(request.model, lambda: answer.succeed({"model": name}))
            case _:
                assert_never(request)

    # Embedding

    def _embed(self, request: protocol.Embed, answer: Answer, line: Line) -> None:
        arrived_s = self._clock() if line.completed_s is None else line.completed_s
        size_bytes = len(line.data or b"")
        slot = self._store.acquire(request.model)
        if not self._wait_for_flow(size_bytes):
            self._store.release(slot)
            assert self._refusal is not None
            self._fail(answer, *self._refusal)
            return
        deadline_s = None if request.deadline_ms is None else arrived_s + request.deadline_ms / 1e3
        job = Job(
            answer=answer,
            request=request,
            slot=slot,
            arrived_s=arrived_s,
            size_bytes=size_bytes,
            deadline_s=deadline_s,
        )
        if answer.request_id is not None:
            self._jobs_by_id[answer.request_id] = job
        self._lanes.submit(job)
        self._store.when_settled(slot, functools.partial(self._begin, job))

    def _wait_for_flow(self, size_bytes: int) -> bool:
        """Wait until a request of this size may be admitted; False once there is no more admission."""
        limits = self._limits
        with self._room:
            while self._in_flight and (
                self._in_flight >= limits.max_in_flight
                or self._in_flight_bytes + size_bytes > limits.max_in_flight_bytes
            ):
                if self._refusal is not None:
                    return False
                self._room.wait(1.0)
            self._in_flight += 1
            self._in_flight_bytes += size_bytes
            return True

    def _begin(self, job: Job, slot: ModelSlot) -> None:
        if slot.error is None:
            self._lanes.begin(job)
        else:
            self._lanes.fail(job, _code_of(slot.error), str(slot.error))

    def _on_over(self, job: Job) -> None:
        with self._room:
            self._in_flight -= 1
            self._in_flight_bytes -= job.size_bytes
            self._room.notify()
        if job.answer.request_id is not None:
            self._jobs_by_id.pop(job.answer.request_id, None)
        self._store.release(job.slot)

    def _cancel(self, target: str | int) -> bool:
        job = self._jobs_by_id.get(target)
        return job is not None and self._lanes.fail(job, ErrorCode.CANCELLED, "cancelled by its host")

    # Control

    def _on_default_settled(self, slot: ModelSlot) -> None:
        if slot.error is None:
            if self._state is State.LOADING:
                self._state = State.READY
            return
        if isinstance(slot.error, OutOfMemoryError):
            self.stop(Stop.OUT_OF_MEMORY)
            return
        # Whatever is wrong, also a name that is not found: the host asked for a worker with this model.
        self._has_no_model = True
        self._refuse(ErrorCode.MODEL_LOAD_FAILED, str(slot.error))
        self._fail_everything(ErrorCode.MODEL_LOAD_FAILED, str(slot.error))
        self.stop(Stop.NO_MODEL)

    def _pong(self) -> dict[str, Any]:
        return {
            "message": "pong",
            "state": self._state.value,
            "micro_batches": self._metrics.micro_batches,
            "queued": self._lanes.queued,
            "in_flight": self._in_flight,
        }

    def _metrics_now(self) -> dict[str, Any]:
        return {
            "uptime_s": round(self._clock() - self._started_s, 3),
            **self._metrics.snapshot(),
            "queued": self._lanes.queued,
            "in_flight": self._in_flight,
            "in_flight_bytes": self._in_flight_bytes,
            "rss_bytes": rss_bytes(),
        }

    def _answer_info(self, answer: Answer, slot: ModelSlot) -> None:
        if slot.model is None:
            assert slot.error is not None
            self._fail(answer, _code_of(slot.error), str(slot.error))
            return
        answer.succeed(self._info(slot.model))

    def _info(self, model: LoadedModel) -> dict[str, Any]:
        plan, engine = model.plan, model.engine
        return {
            "protocol": protocol.PROTOCOL_VERSION,
            "version": __version__,
            "pid": os.getpid(),
            "model": model.name,
            "models": self._store.names(),
            "fingerprint": model.fingerprint,
            "dimension": model.dimension,
            "max_dimension": engine.dimension,
            "max_tokens": plan.max_tokens,
            "pooling": [str(mode) for mode in plan.pooling],
            "normalize": model.normalizes,
            "prompts": dict(plan.prompts),
            "default_prompt_name": plan.default_prompt_name,
            "provider": dict(vars(engine.backend.provider)),
            "precision": engine.backend.precision,
            "machine": describe_machine(),
            "threads": dataclasses.asdict(self._around.threads),
            "batch_invariant": engine.is_batch_invariant or self._config.runtime.batch_invariant,
            "one_by_one": engine.one_by_one,
            "tolerance": engine.backend.tolerance,
            "limits": {
                "max_line_bytes": self._limits.max_line_bytes,
                "max_inputs": self._limits.max_inputs,
                "max_text_bytes": self._limits.max_text_bytes,
                "max_in_flight": self._limits.max_in_flight,
                "max_in_flight_bytes": self._limits.max_in_flight_bytes,
            },
        }

    def _answer_load(self, answer: Answer, slot: ModelSlot) -> None:
        if isinstance(slot.error, OutOfMemoryError):
            self.stop(Stop.OUT_OF_MEMORY)
        if slot.model is None:
            assert slot.error is not None
            self._fail(answer, _code_of(slot.error), str(slot.error))
            return
        engine = slot.model.engine
        answer.succeed(
            {
                "model": slot.model.name,
                "dimension": slot.model.dimension,
                "fingerprint": slot.model.fingerprint,
                "providers": [engine.backend.provider.chosen],
                "message": f"the model {slot.model.name} is loaded",
            }
        )


def _code_of(error: Exception) -> ErrorCode:
    match error:
        case OutOfMemoryError():
            return ErrorCode.OUT_OF_MEMORY
        case _:
            return ErrorCode.MODEL_LOAD_FAILED
