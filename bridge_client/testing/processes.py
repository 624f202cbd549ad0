"""Processes as tests need them on every system: is one there, how is it killed, and how does it die of a signal.

Windows has no signals. A process is terminated there with a number that becomes its exit status, and dies of its own
faults with an NTSTATUS.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from embed_worker import machine

# What a process of Windows ends with where one of POSIX dies of this signal.
_WINDOWS_STATUSES = {
    "KILL": 9,
    "TERM": 15,
    "ABRT": 3,
    "SEGV": 0xC0000005,
    "BUS": 0xC0000006,
    "ILL": 0xC000001D,
    "FPE": 0xC0000094,
}


def status_of(name: str) -> int:
    """Return the status of a process that died of a signal, such as `SEGV`: negative on POSIX."""
    return _WINDOWS_STATUSES[name] if sys.platform == "win32" else -signal.Signals[f"SIG{name}"]


def send_signal(pid: int, name: str) -> None:
    """Send a signal to another process; on Windows, where only `KILL` and `TERM` are sent, terminate it."""
    os.kill(pid, abs(status_of(name)))


def die(name: str) -> NoReturn:
    """End this process as a signal would; does not return, and runs nothing on the way."""
    if sys.platform == "win32":
        status = status_of(name)
        os._exit(status if status < 2**31 else status - 2**32)
    send_signal(os.getpid(), name)
    while True:
        signal.pause()


def freeze(pid: int) -> None:
    """Stop every thread of a process, as SIGSTOP does; it may be this one."""
    if sys.platform == "win32":
        import ctypes

        kernel, native = ctypes.CDLL("kernel32"), ctypes.CDLL("ntdll")
        kernel.OpenProcess.restype = ctypes.c_void_p
        suspend_resume = 0x0800
        native.NtSuspendProcess(ctypes.c_void_p(kernel.OpenProcess(suspend_resume, False, pid)))
    else:
        os.kill(pid, signal.SIGSTOP)


def is_there(pid: int) -> bool:
    """Return whether a process lives; one that nobody has reaped does not."""
    return _watch(pid)()


@functools.cache  # on Windows a watch holds the process, so that its number stays its own
def _watch(pid: int) -> Callable[[], bool]:
    return machine.watch_process(pid)
