"""The thread on which the host's code runs: callbacks of futures and of state changes, and logging handlers.

Neither the reader of a worker nor the supervisor ever waits for such code.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from bridge_client.futures import CallFuture

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MOST_WAITING = 1000


class CallbackThread:
    """Runs what it is given, in order."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_alone = threading.Lock()  # taken for good by the one thread
        self._has_ended = False
        self.ended: Future[None] = Future()

    def start(self) -> None:
        """Begin to run, if that has not been done.

        Raises:
            RuntimeError: The system has no thread to spare.
        """
        if self._thread is None:
            threading.Thread(target=self._run, name="bridge-callbacks", daemon=True).start()

    def put(self, callback: Callable[[], object]) -> None:
        """Run this in its turn; once the thread has ended, on the caller's."""
        self._queue.put(callback)
        if self._has_ended:
            self._run_what_is_left()

    def put_if_room(self, callback: Callable[[], object]) -> None:
        """Run this in its turn, or never where too much is waiting: for what may be lost."""
        if self._queue.qsize() < _MOST_WAITING:
            self._queue.put(callback)

    def log(
        self, logger: logging.Logger, level: int, message: str, *values: object, error: BaseException | None = None
    ) -> None:
        """Log in its turn: what handlers do is the host's code."""
        self.put(functools.partial(logger.log, level, message, *values, exc_info=error))

    def stop(self) -> None:
        """End after what has been given so far."""
        self._queue.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the end, unless called from a callback."""
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        if not self._is_alone.acquire(blocking=False):
            return  # an interrupted start had started the thread
        self._thread = threading.current_thread()
        while (callback := self._queue.get()) is not None:
            _call(callback)
        self._has_ended = True
        self._run_what_is_left()
        self.ended.set_result(None)

    def _run_what_is_left(self) -> None:
        while True:
            try:
                callback = self._queue.get_nowait()
            except queue.Empty:
                return
            if callback is not None:
                _call(callback)


class HostFuture(CallFuture[T]):
    """A future in the host's hands: it is done when its answer is there, and its callbacks run on their thread."""

    def __init__(self, callbacks: CallbackThread) -> None:
        super().__init__()
        self._callbacks = callbacks

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have this called on the thread for callbacks once the future is done."""
        super().add_done_callback(lambda future: self._callbacks.put(functools.partial(fn, future)))


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except BaseException as error:  # noqa: BLE001 - the host's code must not end the thread
        _log.error("a callback failed", exc_info=error)
