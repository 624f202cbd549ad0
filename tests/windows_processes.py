"""What `ps` and /proc tell elsewhere."""

from __future__ import annotations

import ctypes


def children_on_windows(pid: int) -> list[tuple[int, str]]:
    """Walk through a snapshot of all processes; return the children of one, and the names of their programs."""

    class Entry(ctypes.Structure):  # PROCESSENTRY32W in <tlhelp32.h>
        _fields_ = (
            ("size", ctypes.c_uint32),
            ("usage", ctypes.c_uint32),
            ("pid", ctypes.c_uint32),
            ("heap", ctypes.c_void_p),
            ("module", ctypes.c_uint32),
            ("threads", ctypes.c_uint32),
            ("parent", ctypes.c_uint32),
            ("priority", ctypes.c_int32),
            ("flags", ctypes.c_uint32),
            ("program", ctypes.c_wchar * 260),
        )

    kernel = ctypes.CDLL("kernel32")
    kernel.CreateToolhelp32Snapshot.restype = ctypes.c_void_p
    all_processes = 2
    snapshot = ctypes.c_void_p(kernel.CreateToolhelp32Snapshot(all_processes, 0))
    entry = Entry(size=ctypes.sizeof(Entry))
    found = []
    more = kernel.Process32FirstW(snapshot, ctypes.byref(entry))
    while more:
        if entry.parent == pid:
            found.append((entry.pid, entry.program.lower()))
        more = kernel.Process32NextW(snapshot, ctypes.byref(entry))
    kernel.CloseHandle(snapshot)
    return found
