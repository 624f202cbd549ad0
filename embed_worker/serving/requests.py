"""Request lines: each is decoded, and answered or handed on. One thread at a time is here: the one that reads.

What is answered at once is answered here; an `embed` or a `tokenize` becomes a task of the lanes, and what needs a
model that is being loaded waits in the store.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Protocol, assert_never

from embed_worker import protocol
from embed_worker.config import WorkerConfig
from embed_worker.errors import ModelNotFoundError, OutOfMemoryError, RequestFailed
from embed_worker.machine import Threads, rss_bytes
from embed_worker.model_files.search import short_name
from embed_worker.protocol import ErrorCode, ProtocolError
from embed_worker.serving import describe
from embed_worker.serving.answers import Answer, Answers
from embed_worker.serving.lanes import Lanes
from embed_worker.serving.lifecycle import On, State
from embed_worker.serving.metrics import WorkerMetrics
from embed_worker.serving.model_store import ModelEntry, ModelStore
from embed_worker.serving.stdio import Line, LineReader, WireError
from embed_worker.serving.tasks import EmbedTask, Task, TokenizeTask
from embed_worker.serving.work import WorkQueue

_log = logging.getLogger(__name__)


class Worker(Protocol):
    """What a request may need of the worker as a whole."""

    @property
    def what_is_wrong(self) -> str | None:
        """Why there is no default model."""

    @property
    def state(self) -> State:
        """Where it is in its life."""

    def step(self, on: On) -> None:
        """Let something happen to it, at once."""

    def happens(self, on: On) -> None:
        """Tell its main thread of something that happens."""


class Requests:
    """What each line asks for.

    Attributes:
        is_deaf: What is read from now on is not looked at.
    """

    def __init__(
        self,
        config: WorkerConfig,
        lines: LineReader,
        store: ModelStore,
        *,
        threads: Threads,
        lanes: Lanes,
        answers: Answers,
        queue: WorkQueue,
        metrics: WorkerMetrics,
        clock: Callable[[], float],
        worker: Worker,
    ) -> None:
        self._config = config
        self._lines = lines
        self._store = store
        self._threads = threads
        self._lanes = lanes
        self._answers = answers
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._worker = worker
        self._started_s = clock()
        self.is_deaf = False

    def read_line(self) -> Task | None:
        """Read a line, and answer it or see to it that it will be.

        Returns:
            The task that the calling thread is to do itself, where there is one.
        """
        try:
            line = next(self._lines, None)
        except WireError as error:
            _log.error("reading ended reason=%s", error)
            self._lanes.stop_reading()
            self._worker.happens(On.INPUT_BROKEN)
            return None
        if line is None or self.is_deaf:
            self._lanes.stop_reading()
            if line is None:
                self._worker.happens(On.END_OF_INPUT)
            return None
        return None if line.is_blank else self._handle(line)

    def _handle(self, line: Line) -> Task | None:
        answer = Answer(request_id=None, line_number=line.number)
        try:
            if line.data is None:
                message = f"the line has more than {self._config.limits.max_line_bytes} bytes"
                raise ProtocolError(ErrorCode.LINE_TOO_LONG, message)
            envelope = protocol.parse_line(line.data)
            if envelope.id in self._answers.outstanding:
                message = f"the id {envelope.id!a} is outstanding: an id is free again once its answer begins"
                raise ProtocolError(ErrorCode.DUPLICATE_ID, message)
            answer.request_id = envelope.id
            request = protocol.decode_request(envelope, self._config.limits)
            if self._answers.refusal is not None:
                self._refuse(request, self._answers.refusal)
            kind: type[Task]
            match request:
                case protocol.Embed():
                    kind = EmbedTask
                case protocol.Tokenize():
                    kind = TokenizeTask
                case _:
                    self._answers.accept(answer)
                    self._dispatch(request, answer)
                    return None
            entry = self._store.acquire(request.model)
            answer = task = kind.of_line(line, envelope.id, request, entry, self._clock)
            if (model := entry.model) is not None:
                task.meet(model)
            is_admitted, own = self._lanes.submit(task, more_lines=bool(self._lines.ready))
            if not is_admitted:
                self._refuse(request, self._answers.refusal or ErrorCode.SHUTTING_DOWN)
            if model is None:
                self._store.when_known(entry, functools.partial(self._begin, task))
            return own
        except MemoryError as error:
            self._fail(answer, error)
            raise
        except BaseException as error:  # noqa: BLE001 - the worker must survive, and the line gets its answer
            self._fail(answer, error)
        return None

    def _refuse(self, request: protocol.Request, code: ErrorCode) -> None:
        """Refuse new work in a drain, and everything without a model.

        Raises:
            RequestFailed: It is refused.
        """
        if code is ErrorCode.MODEL_LOAD_FAILED:
            raise RequestFailed(code, self._worker.what_is_wrong or "there is no model")
        needs_model = protocol.Embed | protocol.Tokenize | protocol.Info | protocol.LoadModel | protocol.UnloadModel
        if isinstance(request, needs_model):
            raise RequestFailed(code, "the worker is shutting down")

    def _begin(self, task: Task, entry: ModelEntry) -> None:
        """Go on with a task that has waited for its model, on the thread that has loaded it."""
        try:
            if entry.model is None:
                raise _failure(entry)
            task.meet(entry.model)
            self._lanes.begin(task)
        except BaseException as error:  # noqa: BLE001 - that thread must survive, and the line gets its answer
            self._fail(task, error)

    def _dispatch(self, request: protocol.Request, answer: Answer) -> None:
        succeed = self._answers.succeed
        match request:
            case protocol.Ping():
                succeed(answer, self._pong())
            case protocol.Metrics():
                succeed(answer, {"metrics": self._metrics_now()})
            case protocol.Cancel():
                succeed(answer, {"cancelled": self._cancel(request.target)})
            case protocol.Shutdown():
                pending = self._answers.pending - 1
                self._worker.step(On.SHUTDOWN)
                succeed(answer, {"pending": pending})
            case protocol.Info():
                self._store.when_known(self._store.find(request.model), functools.partial(self._tell, answer, False))
            case protocol.LoadModel():
                self._store.load(request.model, functools.partial(self._tell, answer, True))
            case protocol.UnloadModel():
                members = {"model": short_name(request.model)}
                self._store.unload(request.model, functools.partial(succeed, answer, members))
            case protocol.Embed() | protocol.Tokenize():
                raise AssertionError("they are tasks")
            case _:
                assert_never(request)

    def _cancel(self, target: str | int) -> bool:
        task = self._answers.outstanding.get(target)
        return isinstance(task, Task) and self._answers.fail(task, ErrorCode.CANCELLED, "cancelled by its host")

    def _pong(self) -> dict[str, Any]:
        with self._answers.lock:
            return {
                "message": "pong",
                "state": str(self._worker.state),
                "micro_batches": self._metrics.micro_batches,
                "queued": self._queue.not_begun,
                "in_flight": self._answers.in_flight,
            }

    def _metrics_now(self) -> dict[str, Any]:
        with self._answers.lock:
            return {
                "uptime_s": round(self._clock() - self._started_s, 3),
                **self._metrics.snapshot(),
                "queued": self._queue.not_begun,
                "in_flight": self._answers.in_flight,
                "in_flight_bytes": self._answers.in_flight_bytes,
                "rss_bytes": rss_bytes(),
            }

    def _tell(self, answer: Answer, is_load: bool, entry: ModelEntry) -> None:
        """Answer `info` or `load_model`, now that it is known what became of the model."""
        try:
            if isinstance(entry.error, OutOfMemoryError):
                self._worker.happens(On.OUT_OF_MEMORY)
            if entry.model is None:
                raise _failure(entry)
            if is_load:
                members = describe.loaded(entry.model)
            else:
                members = describe.info(entry.model, self._store.names(), self._config, self._threads)
            self._answers.succeed(answer, members)
        except BaseException as error:  # noqa: BLE001 - see `_begin`
            self._fail(answer, error)

    def _fail(self, answer: Answer, error: BaseException) -> None:
        """Answer with what has gone wrong."""
        if not answer.is_accepted:
            self._answers.accept(answer)
        match error:
            case ProtocolError() | RequestFailed():
                self._answers.fail(answer, error.code, str(error), error.index)
            case ModelNotFoundError():
                self._answers.fail(answer, ErrorCode.MODEL_NOT_FOUND, str(error))
            case MemoryError():
                self._answers.fail(answer, ErrorCode.OUT_OF_MEMORY, "no memory for this request")
            case _:
                _log.error("internal error code=internal_error line=%d", answer.line_number, exc_info=error)
                message = "internal error; the traceback is on standard error"
                self._answers.fail(answer, ErrorCode.INTERNAL_ERROR, message)


def _failure(entry: ModelEntry) -> RequestFailed:
    is_shortage = isinstance(entry.error, OutOfMemoryError)
    return RequestFailed(ErrorCode.OUT_OF_MEMORY if is_shortage else ErrorCode.MODEL_LOAD_FAILED, str(entry.error))
