"""The thread on which the host's code runs: callbacks of futures and of state changes, and logging handlers.

Neither the reader of a worker nor the supervisor ever waits for such code.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

_MOST_WAITING = 1000


class CallbackThread:
    """Runs what it is given, in order."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="bridge-callbacks", daemon=True)

    def start(self) -> None:
        """Begin to run."""
        self._thread.start()

    def put(self, callback: Callable[[], object]) -> None:
        """Run this in its turn."""
        self._queue.put(callback)

    def put_if_room(self, callback: Callable[[], object]) -> None:
        """Run this in its turn, or never where too much is waiting: for what may be lost."""
        if self._queue.qsize() < _MOST_WAITING:
            self._queue.put(callback)

    def stop(self) -> None:
        """End after what has been given so far."""
        self._queue.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the end, unless called from a callback."""
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (callback := self._queue.get()) is not None:
            try:
                callback()
            except Exception:  # noqa: BLE001 - the host's code must not end the thread
                _log.exception("a callback failed")
