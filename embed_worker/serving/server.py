"""The worker as a whole: its parts put together, and its life, which `lifecycle.py` has as a table.

The *main* thread waits for what happens, looks it up there, and does what it says.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from embed_worker.config import WorkerConfig
from embed_worker.errors import OutOfMemoryError
from embed_worker.machine import Threads, release_freed_memory, rss_bytes
from embed_worker.protocol import ErrorCode, ExitCode
from embed_worker.serving.answers import Answers
from embed_worker.serving.lanes import Lanes
from embed_worker.serving.lifecycle import Life, On, State, next_life
from embed_worker.serving.metrics import WorkerMetrics
from embed_worker.serving.model_store import ModelEntry, ModelStore, too_slow
from embed_worker.serving.requests import Requests
from embed_worker.serving.stdio import LineReader, LineWriter
from embed_worker.serving.work import WorkQueue

_log = logging.getLogger(__name__)

_TICK_S = 0.25  # how often the main thread looks at the parent and at standard output
_LAST_WORDS_S = 1.0  # after a failed start, lines are still answered for so long
_STUCK_WRITE_S = 1.0

_LAST_ANSWERS = {
    ErrorCode.SHUTTING_DOWN: "the worker ended before this request's turn",
    ErrorCode.OUT_OF_MEMORY: "the worker ran out of memory and ends",
    ErrorCode.INTERNAL_ERROR: "internal error; the worker ends, and the traceback is on standard error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the server needs of the process it lives in, so that tests can fake it."""

    lines: LineReader
    writer_descriptor: int
    is_parent_alive: Callable[[], bool]
    threads: Threads
    clock: Callable[[], float] = time.monotonic


class Server:
    """One worker. `run` returns its exit status; the process should end then, whatever threads are left."""

    def __init__(self, config: WorkerConfig, store: ModelStore, environment: Environment, *, lanes: int) -> None:
        self._config = config
        self._store = store
        self._environment = environment
        # What happens, what everything that is owed is to be answered with, and None: look again.
        self._happenings: queue.SimpleQueue[On | ErrorCode | None] = queue.SimpleQueue()
        self._writer = LineWriter(environment.writer_descriptor, lambda: self.happens(On.OUTPUT_BROKEN))
        metrics = WorkerMetrics()
        self._answers = Answers(self._writer, metrics, config.limits)
        queue_of_work = WorkQueue(
            self._answers.lock,
            lanes=lanes,
            batch_tokens=config.runtime.batch_tokens,
            max_rows=1 if config.runtime.batch_invariant else None,
        )
        self._lanes = Lanes(
            lanes=lanes,
            answers=self._answers,
            queue=queue_of_work,
            metrics=metrics,
            clock=environment.clock,
            happens=self.happens,
        )
        self._requests = Requests(
            config,
            environment.lines,
            store,
            threads=environment.threads,
            lanes=self._lanes,
            answers=self._answers,
            queue=queue_of_work,
            metrics=metrics,
            clock=environment.clock,
            worker=self,
        )
        self._life = Life()
        self._state_since_s = time.monotonic()
        self._default: ModelEntry | None = None

    def happens(self, on: On) -> None:
        """Tell the main thread of something that happens to the worker; safe in a signal handler."""
        self._happenings.put(on)

    def run(self) -> int:
        """Serve until there is a reason to stop; return the exit status.

        Accepted work has been answered by then, as far as the reason allows, and nothing is written afterwards.
        """
        self._store.start(lambda: self.happens(On.THREAD_DIED))
        first, *others = self._config.models
        self._default = self._store.open(first, self._on_default_known)
        for options in others:
            self._store.open(options, lambda entry: None)
        self._lanes.start(self._requests.read_line)
        while self._life.state is not State.ENDED or not self._happenings.empty():
            match self._next():
                case On() as on:
                    self.step(on)
                case ErrorCode() as fails:
                    self._fail_owed(fails)
                case None:
                    pass  # another thread has made a step, or the last answer is written
        return self._close()

    @property
    def state(self) -> State:
        """Where the worker is in its life."""
        return self._life.state

    @property
    def what_is_wrong(self) -> str | None:
        """Why there is no default model; None while there may still be one."""
        return None if self._default is None or self._default.error is None else str(self._default.error)

    # The life of the worker, on the main thread

    def _next(self) -> On | ErrorCode | None:
        """Wait for the next thing that happens, also for what nobody reports."""
        while True:
            left_s = self._seconds_left()
            if self._happenings.empty():
                if self._life.state is State.DRAINING and not self._answers.owed:
                    return On.NOTHING_OWED
                if left_s is not None and left_s <= 0:
                    return On.TIMEOUT
            try:
                return self._happenings.get(timeout=_TICK_S if left_s is None else max(0.0, min(_TICK_S, left_s)))
            except queue.Empty:
                if (on := self._look_around()) is not None:
                    return on

    def _seconds_left(self) -> float | None:
        """Return how long the state may still last; None without a limit."""
        limits_s = {State.DRAINING: self._config.drain_timeout_s, State.LAST_WORDS: _LAST_WORDS_S}
        limit_s = limits_s.get(self._life.state)
        return None if limit_s is None else self._state_since_s + limit_s - time.monotonic()

    def _look_around(self) -> On | None:
        if self._config.is_supervised and not self._environment.is_parent_alive():
            return On.PARENT_DIED
        if self._writer.is_abandoned():
            return On.OUTPUT_BROKEN
        if self._is_too_large():
            return On.RECYCLE
        limit_s = self._config.start_limit_s
        slow = self._store.loading_for_longer_than(limit_s)
        if slow is None:
            return None
        if slow is self._default:
            slow.error = too_slow(slow, limit_s)
            _log.error("model not loaded name=%s reason=%s", slow.name, slow.error)
            return On.START_LIMIT
        self._store.give_up(slow, limit_s)
        return None

    def _look_again(self) -> None:
        self._happenings.put(None)

    def _is_too_large(self) -> bool:
        limit = self._config.rss_limit_bytes
        if limit is None or self._life.state is not State.READY or rss_bytes() <= limit:
            return False
        release_freed_memory()  # it may only be kept, not used
        return rss_bytes() > limit

    def step(self, on: On) -> None:
        """Go where the table says, at once and on any thread; the main thread does what follows from it."""
        with self._answers.lock:
            before = self._life
            after, fails = next_life(before, on)
            if fails is not None or after.state is not before.state:
                self._happenings.put(fails)
            if after.state is not before.state:
                _log.info("lifecycle state=%s after=%s owed=%d", after.state, on, self._answers.owed)
                self._state_since_s = time.monotonic()
            if after.state is State.DRAINING:
                self._answers.on_nothing_owed = self._look_again
            if after.refusal is not None:
                self._answers.refuse_work(after.refusal)
            self._requests.is_deaf = after.is_deaf
            self._life = after

    def _fail_owed(self, code: ErrorCode) -> None:
        """Answer everything that is owed, for as long as somebody reads."""
        message = self.what_is_wrong or _LAST_ANSWERS[code]
        # Not from this thread: a host that does not read must not keep the worker from its exit.
        thread = threading.Thread(target=self._answers.fail_all, args=(code, message), name="last-answers", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had: then they go unanswered, and the end of the pipe tells
            _log.exception("the last answers could not be written")
            return
        thread.join(_STUCK_WRITE_S)
        self._answers.wait_until_written(_STUCK_WRITE_S)

    def _close(self) -> int:
        """Let what is being written end; then nothing moves any more."""
        if self._life.status == ExitCode.UNUSABLE_MODEL:
            self._answers.wait_until_written(_STUCK_WRITE_S)
        self._answers.end()
        self._lanes.stop()
        return self._life.status if self._writer.try_acquire(_STUCK_WRITE_S) else ExitCode.PIPE_FAILED

    def _on_default_known(self, entry: ModelEntry) -> None:
        """Take the step at once: whoever hears what became of the model, and asks, must find it taken."""
        if entry.error is None:
            self.step(On.MODEL_READY)
        elif isinstance(entry.error, OutOfMemoryError):
            self.step(On.OUT_OF_MEMORY)
        else:  # whatever is wrong, also a name that is not found: the host asked for a worker with this model
            self.step(On.NO_MODEL)
