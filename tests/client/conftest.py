"""After every test: no worker, no zombie and no thread of a client may be left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import WAIT_S as WAIT_S
from tests.windows_processes import children_on_windows


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = set(children())
    yield
    wait_until(lambda: not bridge_threads(), "threads are left: " + ", ".join(bridge_threads()))
    wait_until(lambda: set(children()) <= before, f"processes are left: {set(children()) - before}")


@pytest.fixture
def count_file(tmp_path: Path) -> str:
    """A file in which the processes of one fake worker count themselves."""
    return str(tmp_path / "processes")


def bridge_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("bridge-")]


def children() -> list[int]:
    """Return the pids of this process's children, zombies included."""
    if Path("/proc/self/task").is_dir():  # a hundredth of what `ps` costs, before and after every test
        tasks = Path("/proc/self/task").glob("*/children")
        found: list[int] = []
        for task in tasks:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
                found += [int(pid) for pid in task.read_text("ascii").split()]
        return found
    if sys.platform == "win32":
        # A helper of the console is no worker.
        return [pid for pid, program in children_on_windows(os.getpid()) if program != "conhost.exe"]
    told = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True)
    rows = [line.split(maxsplit=2) for line in told.stdout.splitlines()]
    return [int(pid) for pid, parent, name in rows if parent == str(os.getpid()) and not name.endswith("ps")]


def wait_until(condition: object, message: str = "it did not happen") -> None:
    """Wait for a condition that must come true, within a bound that says nothing about speed."""
    assert callable(condition)
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, message
        time.sleep(0.005)
