"""What Wine 8 lacks, as the tests meet it: patches of the interpreter, and the tests that are skipped there by name.

`windows.sh` installs this file as the `sitecustomize` of the Windows CPython; `tests/conftest.py` reads `SKIPPED`. On a
real Windows neither does anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_CONSOLE = "Wine's console helper inherits the standard handles of a process without a window, and holds them open"

# The names of tests, without their parameters, and what of Wine they cannot pass with.
SKIPPED = {
    "test_a_worker_that_closes_its_output_and_lives_on_is_replaced": _CONSOLE,
    "test_a_worker_without_a_home_serves_and_makes_no_folder_of_that_name": (
        "the worker of this test has a sitecustomize of its own in place of the one that Wine needs"
    ),
}

# The same for the clients in other languages: patterns as the test runner of each takes them.
SKIPPED_OF = {
    "Go": {"^Test(WhatWasInFlightIsSentAgain|ADeathAtEveryAttemptIsOneClearError)$/close-output": _CONSOLE},
    "Node": {"close-output": _CONSOLE},
    "Rust": {"a_worker_that_closes_its_output_and_lives_on_is_replaced": _CONSOLE},
}


def is_wine() -> bool:
    """Tell whether this Windows is Wine."""
    import ctypes

    return sys.platform == "win32" and hasattr(ctypes.CDLL("ntdll"), "wine_get_version")


def _parent_pid() -> Callable[[], int]:
    """Return what stands for `os.getppid`; CPython 3.12 asks PssCaptureSnapshot, which Wine 8 lacks."""
    import ctypes

    class BasicInformation(ctypes.Structure):  # PROCESS_BASIC_INFORMATION in <winternl.h>
        _fields_ = tuple((name, ctypes.c_void_p) for name in ("exit", "peb", "affinity", "priority", "pid", "parent"))

    # Looked up once: tests put other libraries in the place of the system's.
    query = ctypes.CDLL("ntdll").NtQueryInformationProcess
    size, address_of = ctypes.sizeof(BasicInformation), ctypes.byref
    query.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
    this_process = ctypes.c_void_p(-1)

    def getppid() -> int:
        told = BasicInformation()
        query(this_process, 0, address_of(told), size, None)
        return told.parent or 0

    return getppid


_NO_PRIVILEGE = 1314  # ERROR_PRIVILEGE_NOT_HELD in <winerror.h>


def _no_link(*names: Any, **_: Any) -> NoReturn:
    """Stand for `os.symlink`: Wine 8 says that it has made a link, and makes none."""
    raise OSError(0, "A required privilege is not held by the client", str(names[0]), _NO_PRIVILEGE, str(names[1]))


def patch() -> None:
    """Patch this interpreter."""
    import _winapi

    os.getppid = _parent_pid()
    os.symlink = _no_link
    if hasattr(_winapi, "CopyFile2"):  # Wine 8 has no CopyFile2; shutil then copies by itself
        del _winapi.CopyFile2


if __name__ == "sitecustomize" and is_wine():
    patch()
