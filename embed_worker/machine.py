"""Facts about the machine and this process: how many cores it may use, how much memory it holds, who started it.

Each fact that the platforms tell in their own way stands here once. Stdlib only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

ReadText = Callable[[str], str]  # raises OSError for a missing file


def cache_dir() -> Path:
    """Give this program's folder under the user's cache folder; it need not exist."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~\\AppData\\Local")
    elif sys.platform == "darwin":
        root = os.path.expanduser("~/Library/Caches")
    else:
        root = os.environ.get("XDG_CACHE_HOME") or ""
        # The XDG specification says that a relative path is to be ignored.
        root = root if os.path.isabs(root) else os.path.expanduser("~/.cache")
    return Path(root, "embed-bridge")


def available_cores() -> int:
    """Count the cores that this process may really use: the affinity mask and the cgroup quota, at least 1."""
    # Not os.cpu_count(), which counts the host's cores: 28 threads on a quota of two halve the throughput.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = cgroup_cores(lambda path: Path(path).read_text("utf-8")) if sys.platform == "linux" else None
    return max(1, cores if quota is None else min(cores, quota))


def cgroup_cores(read_text: ReadText) -> int | None:
    """Read the cgroup's CPU quota, version 2 or 1, in whole cores rounded up; None where there is none.

    In version 2 every group on the way up to the root may set one; the smallest holds.
    """
    stated = [_first_line(read_text, f"/sys/fs/cgroup{group}/cpu.max") for group in _groups_v2(read_text)]
    quotas = [_cores_of(text) for text in (_quota_v1(read_text), *stated)]
    known = [quota for quota in quotas if quota is not None]
    return min(known) if known else None


def _groups_v2(read_text: ReadText) -> list[str]:
    membership = _first_line(read_text, "/proc/self/cgroup", prefix="0::")
    parts = [part for part in membership.removeprefix("0::").split("/") if part]
    return ["".join(f"/{part}" for part in parts[:depth]) for depth in range(len(parts), -1, -1)]


def _quota_v1(read_text: ReadText) -> str:
    folder = "/sys/fs/cgroup/cpu"
    quota = _first_line(read_text, f"{folder}/cpu.cfs_quota_us")
    return f"{quota} {_first_line(read_text, f'{folder}/cpu.cfs_period_us')}"


def _first_line(read_text: ReadText, path: str, prefix: str = "") -> str:
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return next((line for line in lines if line.startswith(prefix)), "")


def _cores_of(quota_and_period: str) -> int | None:
    try:
        quota, period = (int(part) for part in quota_and_period.split())
    except ValueError:  # "max 100000": no quota; or nothing to read
        return None
    return max(1, -(-quota // period)) if quota > 0 and period > 0 else None


def rss_bytes() -> int:
    """Measure the memory of this process that is resident now, in bytes; 0 where the platform does not tell."""
    if sys.platform == "darwin":
        return _rss_bytes_of_mach_task()
    if sys.platform == "win32":
        return _working_set_bytes()
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _rss_bytes_of_mach_task() -> int:
    """Ask the Mach kernel; getrusage() knows only the peak."""

    class TaskBasicInfo(ctypes.Structure):  # mach_task_basic_info in <mach/task_info.h>
        _fields_ = (
            ("virtual_size", ctypes.c_uint64),
            ("resident_size", ctypes.c_uint64),
            ("resident_size_max", ctypes.c_uint64),
            ("user_time", ctypes.c_uint32 * 2),
            ("system_time", ctypes.c_uint32 * 2),
            ("policy", ctypes.c_int32),
            ("suspend_count", ctypes.c_int32),
        )

    system = ctypes.CDLL(None)
    info = TaskBasicInfo()
    words = ctypes.c_uint32(ctypes.sizeof(info) // 4)
    task = ctypes.c_uint32.in_dll(system, "mach_task_self_")
    mach_task_basic_info = 20
    failed = system.task_info(task, mach_task_basic_info, ctypes.byref(info), ctypes.byref(words))
    return 0 if failed else int(info.resident_size)


def _working_set_bytes() -> int:
    class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS in <psapi.h>
        _fields_ = (
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            *((name, ctypes.c_size_t) for name in ("peak_working_set", "working_set")),
            *((f"pool_{number}", ctypes.c_size_t) for number in range(6)),
        )

    kernel = ctypes.CDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    counters = Counters(size=ctypes.sizeof(Counters))
    done = kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size)
    return int(counters.working_set) if done else 0


def share_heaps() -> None:
    """Keep the C library from making a heap for every thread; only glibc can be asked, and only early."""
    _mallopt(_M_ARENA_MAX, 2)


def return_large_blocks() -> None:
    """Keep the C library from holding on to large blocks that were freed; only glibc can be asked.

    Without it, an answer of 50 MB stays in the heap for good. Call it once a model is loaded: loading takes and frees
    many such blocks, and is a sixth slower when each is mapped anew.
    """
    _mallopt(_M_MMAP_THRESHOLD, 2**20)
    _mallopt(_M_TRIM_THRESHOLD, 16 * 2**20)


def _mallopt(parameter: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(parameter, value)


# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def release_freed_memory() -> None:
    """Give back to the system what the C library keeps after a large piece of work; only glibc can be asked."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def watch_parent() -> Callable[[], bool]:
    """Remember who started this process; the returned function tells whether that one is still there.

    A pipe's end does not tell: a sibling may hold it open. Nor does "the parent is 1": a container's host may be 1,
    and an orphan may go to a subreaper.
    """
    if sys.platform == "win32":
        return _watch_process_handle(os.getppid())
    parent = os.getppid()
    return lambda: os.getppid() == parent


def _watch_process_handle(pid: int) -> Callable[[], bool]:
    """Hold a handle of the process, so that its number cannot go to another one meanwhile."""
    kernel = ctypes.CDLL("kernel32")
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    synchronize, timed_out = 0x00100000, 0x00000102
    handle = kernel.OpenProcess(synchronize, False, pid)
    if not handle:  # it has died already, or may not be watched: the pipe has to tell
        return lambda: True
    return lambda: bool(kernel.WaitForSingleObject(handle, 0) == timed_out)
