"""What must happen to running clients when the host forks or ends: registered once, at the first start."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Protocol


class _Running(Protocol):
    def close_soon(self) -> None: ...

    def close(self) -> None: ...

    def forget_in_child(self) -> None: ...


_lock = threading.Lock()
_running: set[_Running] = set()
_is_installed = False


def register(running: _Running) -> None:
    """Close this at the interpreter's end, and let go of its pipes in forked children."""
    global _is_installed
    with _lock:
        _running.add(running)
        if not _is_installed:
            _is_installed = True
            atexit.register(_close_all)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_forget_all)


def unregister(running: _Running) -> None:
    """Forget one that is closed."""
    with _lock:
        _running.discard(running)


def _close_all() -> None:
    for running in list(_running):
        running.close_soon()  # all of them at the same time
    for running in list(_running):
        running.close()


def _forget_all() -> None:
    # The lock may have been held by a thread that does not exist here: it gets a new one.
    global _lock
    _lock = threading.Lock()
    for running in list(_running):
        running.forget_in_child()
    _running.clear()
