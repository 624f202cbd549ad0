"""What must happen to running clients when the host forks or ends: registered once, at the first start."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Protocol

_FORK_WAIT_S = 2.0


class _Running(Protocol):
    def close_soon(self) -> None: ...

    def close(self) -> None: ...

    def forget_in_child(self) -> None: ...


class _Forking(threading.local):
    """Of this thread's forks, which may be nested by a signal handler: whether each has taken the lock."""

    def __init__(self) -> None:
        self.has_lock: list[bool] = []


# Held around every spawn until the process is known to its client: a child that is forked meanwhile would inherit the
# pipe on which `Popen` waits for the end of the spawn, and the pipes of a worker that nobody tells it to close.
spawning = threading.RLock()
_forking = _Forking()
_lock = threading.RLock()
_running: set[_Running] = set()
_is_installed = False


def register(running: _Running) -> None:
    """Close this at the interpreter's end, and let go of its pipes in forked children."""
    global _is_installed
    with _lock:
        _running.add(running)
        if not _is_installed:
            atexit.register(_close_all)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(
                    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_forget_all
                )
            _is_installed = True


def unregister(running: _Running) -> None:
    """Forget one that is closed."""
    with _lock:
        _running.discard(running)


def _close_all() -> None:
    for running in list(_running):
        running.close_soon()  # all of them at the same time
    for running in list(_running):
        running.close()


def _before_fork() -> None:
    # Bounded: a spawn that the system holds up must not freeze the host's own fork.
    _forking.has_lock.append(spawning.acquire(timeout=_FORK_WAIT_S))


def _after_fork_in_parent() -> None:
    if _forking.has_lock and _forking.has_lock.pop():
        spawning.release()


def _forget_all() -> None:
    # The locks may have been held by threads that do not exist here: there are new ones.
    global _lock, spawning, _forking
    _lock, spawning, _forking = threading.RLock(), threading.RLock(), _Forking()
    for running in list(_running):
        running.forget_in_child()
    _running.clear()
