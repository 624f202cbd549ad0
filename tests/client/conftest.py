"""After every test: no worker, no zombie and no thread of a client may be left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import WAIT_S as WAIT_S


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
        return _children_on_windows()
    told = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True)
    rows = [line.split(maxsplit=2) for line in told.stdout.splitlines()]
    return [int(pid) for pid, parent, name in rows if parent == str(os.getpid()) and not name.endswith("ps")]


def _children_on_windows() -> list[int]:
    """Walk through a snapshot of all processes."""

    class Entry(ctypes.Structure):  # PROCESSENTRY32 in <tlhelp32.h>
        _fields_ = (
            ("size", ctypes.c_uint32),
            ("usage", ctypes.c_uint32),
            ("pid", ctypes.c_uint32),
            ("heap", ctypes.c_size_t),
            ("module", ctypes.c_uint32),
            ("threads", ctypes.c_uint32),
            ("parent", ctypes.c_uint32),
            ("priority", ctypes.c_int32),
            ("flags", ctypes.c_uint32),
            ("file", ctypes.c_char * 260),
        )

    kernel = ctypes.CDLL("kernel32")
    kernel.CreateToolhelp32Snapshot.restype = ctypes.c_void_p
    processes = 2
    snapshot = ctypes.c_void_p(kernel.CreateToolhelp32Snapshot(processes, 0))
    entry = Entry(size=ctypes.sizeof(Entry))
    found = []
    has_one = kernel.Process32First(snapshot, ctypes.byref(entry))
    while has_one:
        # A helper of the console is no worker.
        if entry.parent == os.getpid() and entry.file.lower() != b"conhost.exe":
            found.append(int(entry.pid))
        has_one = kernel.Process32Next(snapshot, ctypes.byref(entry))
    kernel.CloseHandle(snapshot)
    return found


def wait_until(condition: object, message: str = "it did not happen") -> None:
    """Wait for a condition that must come true, within a bound that says nothing about speed."""
    assert callable(condition)
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, message
        time.sleep(0.005)
