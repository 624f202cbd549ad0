"""Where the threads of one run are: each on a core of its own, where a process has no more cores than threads.

A thread that sleeps between two runs may be woken on the core of the one that wakes it, and the two share that core for
milliseconds while the other is idle. On many cores the kernel finds a free one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def own_cores(threads: int) -> tuple[int, ...]:
    """Return a core for each thread of a run, numbered as the system does; none where it may choose better itself.

    Linux alone: macOS pins no thread to a core, and Windows has an ideal one for each.
    """
    if sys.platform != "linux":
        return ()
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return cores if len(cores) == threads > 1 else ()


def run_on(cores: Sequence[int], run: Callable[[], T]) -> T:
    """Run with the calling thread on the first of these cores; the others are its helpers'.

    It just runs where the thread may not be on exactly these, because there are none, or somebody has changed that.
    """
    if sys.platform != "linux" or not cores or os.sched_getaffinity(0) != set(cores):
        return run()
    try:
        os.sched_setaffinity(0, cores[:1])
    except OSError:  # a sandbox may forbid it
        return run()
    try:
        return run()
    finally:
        # Threads that it starts later would inherit the one core.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cores)
