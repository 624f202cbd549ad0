"""Facts about the machine and this process: its folders, cores, memory, and who started it.

Each fact that the platforms tell in their own way stands here once. Stdlib only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ReadText = Callable[[str], str]  # raises OSError for a missing file


def home_dir() -> Path | None:
    """Return the user's home; None where neither the environment nor the system's accounts tell of one."""
    home = os.path.expanduser("~")  # "~" itself where there is none, which would be a folder's name
    return Path(home) if os.path.isabs(home) else None


def cache_dir() -> Path | None:
    """Return this program's folder under the user's cache folder; it need not exist. None without a home."""
    return _user_dir(windows="AppData/Local", macos="Library/Caches", xdg="XDG_CACHE_HOME", other=".cache")


def data_dir() -> Path | None:
    """Return this program's folder under the user's data folder; it need not exist. None without a home."""
    macos = "Library/Application Support"
    return _user_dir(windows="AppData/Local", macos=macos, xdg="XDG_DATA_HOME", other=".local/share")


def _user_dir(*, windows: str, macos: str, xdg: str, other: str) -> Path | None:
    """Find a folder by the platform's convention; the variable holds on Windows (LOCALAPPDATA) and as XDG says."""
    in_home = {"win32": windows, "darwin": macos}.get(sys.platform, other)
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, xdg)
    stated = os.environ.get(variable, "")
    if os.path.isabs(stated):  # the XDG specification says that a relative path is to be ignored
        return Path(stated, "embed-bridge")
    home = home_dir()
    return None if home is None else home / in_home / "embed-bridge"


def available_cores() -> int:
    """Count the cores that this process may really use: the affinity mask and the cgroup quota, at least 1."""
    # Not os.cpu_count(), which counts the host's cores: 28 threads on a quota of two halve the throughput.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = cgroup_cores(lambda path: Path(path).read_text("utf-8")) if sys.platform == "linux" else None
    return max(1, cores if quota is None else min(cores, quota))


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """How many threads compute, and why so many."""

    value: int
    reason: str


def choose_threads(asked: int | None, environment: Mapping[str, str]) -> Threads:
    """Take what was asked for, else all cores, but no more than OMP_NUM_THREADS says.

    Ray, Spark and Dask set that variable for each of their tasks; who starts ten workers on ten cores means one each.
    """
    if asked is not None:
        return Threads(value=asked, reason="--threads")
    cores = available_cores()
    stated = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a number for each level of nesting
    if stated.isdecimal() and 0 < int(stated) < cores:
        return Threads(value=int(stated), reason=f"OMP_NUM_THREADS={int(stated)} of {cores} cores")
    return Threads(value=cores, reason="all cores that the affinity mask and the cgroup quota leave")


def describe_machine() -> dict[str, str]:
    """Return what a report of a fault needs: system and version, the processor's architecture, float16, the Python."""
    if sys.platform == "win32":  # not `platform`, which asks WMI and may wait for it
        version = sys.getwindowsversion()
        system = f"Windows {version.major}.{version.minor}.{version.build}"
        architecture = os.environ.get("PROCESSOR_ARCHITECTURE", "")
    else:
        told = os.uname()
        system, architecture = f"{told.sysname} {told.release}", told.machine
    return {
        "system": system,
        "architecture": architecture,
        "float16": "computed" if computes_float16(architecture) else "widened to float32",
        "python": f"{sys.implementation.name} {sys.version.partition(' ')[0]}",
    }


def computes_float16(architecture: str) -> bool:
    """Return whether onnxruntime's CPU kernels compute 16 bits as such: on ARM with vector instructions for them."""
    if architecture.lower() not in ("aarch64", "arm64"):
        return False
    if sys.platform != "linux":
        return True  # every Mac of Apple's; Windows on ARM does not tell, and runs on cores that have them
    try:
        return "asimdhp" in Path("/proc/cpuinfo").read_text("utf-8", "replace").split()
    except OSError:
        return False


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

    kernel = _kernel32()
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


# The variable by which a host tells its worker whom to watch: `PID` or `PID:START`.
PARENT_VARIABLE = "EMBED_WORKER_PARENT"


def name_this_process() -> str:
    """Return what `PARENT_VARIABLE` says of this process: its number, and what tells a later owner of it apart."""
    pid = os.getpid()
    start = _creation_time(_kernel32().GetCurrentProcess()) if sys.platform == "win32" else process_start(pid)
    return f"{pid}:{start}" if start else str(pid)


def watch_parent() -> Callable[[], bool]:
    """Remember whose worker this is; the returned function tells whether that process is still there.

    It is the process that `PARENT_VARIABLE` names, which is taken out of the environment, and without it the one that
    started this one, which may be a launcher. A pipe's end does not tell: a sibling may hold it open. Nor does "the
    parent is 1": a container's host may be 1, and an orphan may go to a subreaper.

    Raises:
        ValueError: The variable is not of the form `PID` or `PID:START`; the message is one sentence.
    """
    parent = os.getppid()
    named = os.environ.pop(PARENT_VARIABLE, "")
    match = re.fullmatch(r"([1-9][0-9]{0,9})(?::([0-9]{1,20}))?|", named)
    if match is None:
        raise ValueError(f"{PARENT_VARIABLE} is {named[:40]!a}, not PID or PID:START")
    pid, start = int(match[1] or parent), int(match[2] or 0)
    if sys.platform != "win32" and (pid == parent or parent == 0):
        return lambda: os.getppid() == parent  # 0: the host is in another namespace, where numbers mean other processes
    return watch_process(pid, start)


def watch_process(pid: int, start: int = 0) -> Callable[[], bool]:
    """Remember a process; the returned function tells whether it still lives.

    Args:
        pid: Its number.
        start: When it started, as its name says; 0: whoever has the number now is the one.
    """
    if sys.platform == "win32":
        return _watch_process_handle(pid, start)
    first = start or process_start(pid)

    def is_there() -> bool:
        now = process_start(pid)
        return None not in (first, now) and (first == now or 0 in (first, now))

    return is_there


def process_start(pid: int) -> int | None:
    """Return when a process of a POSIX system started: clock ticks since the boot on Linux, microseconds on macOS.

    0 where the system does not tell; None for a process that is not there any more, or only as a zombie.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # gone, or never a number of this system
        return None
    except PermissionError:
        pass  # somebody else's is one, too
    return _start_of_bsd_info(pid) if sys.platform == "darwin" else _start_in_proc(pid)


def _start_in_proc(pid: int) -> int | None:
    try:
        # Of the first thread, which is as old as the process: qemu makes up what a process reads of itself.
        stat = Path(f"/proc/{pid}/task/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
    return None if state in "ZX" else int(fields[18])  # field 22 of proc(5)


def _start_of_bsd_info(pid: int) -> int | None:
    class BsdInfo(ctypes.Structure):  # proc_bsdinfo in <sys/proc_info.h>
        _fields_ = (
            ("flags_and_status", ctypes.c_uint32 * 2),
            ("unused", ctypes.c_uint32 * 28),
            ("start_s", ctypes.c_uint64),
            ("start_us", ctypes.c_uint64),
        )

    info = BsdInfo()
    system = ctypes.CDLL(None, use_errno=True)
    bsd_info = 3  # PROC_PIDTBSDINFO
    size = system.proc_pidinfo(pid, bsd_info, ctypes.c_uint64(0), ctypes.byref(info), ctypes.sizeof(info))
    if size > 0:
        return int(info.start_s * 10**6 + info.start_us)
    return None if ctypes.get_errno() == errno.ESRCH else 0  # of zombies it knows nothing


def _kernel32() -> ctypes.CDLL:
    kernel = ctypes.CDLL("kernel32", use_last_error=True)
    kernel.GetCurrentProcess.restype = kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    kernel.GetProcessTimes.argtypes = (ctypes.c_void_p,) * 5
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    return kernel


def _watch_process_handle(pid: int, start: int) -> Callable[[], bool]:
    """Hold a handle of the process, so that its number cannot go to another one meanwhile."""
    kernel = _kernel32()
    synchronize, query_limited_information, timed_out, invalid_parameter = 0x00100000, 0x1000, 0x102, 87
    handle = kernel.OpenProcess(synchronize | query_limited_information, False, pid)
    if not handle:  # it has died already, or may not be watched: then the pipe has to tell
        has_died = _last_error() == invalid_parameter
        return lambda: not has_died
    if start and _creation_time(handle) not in (start, 0):
        return lambda: False
    return lambda: bool(kernel.WaitForSingleObject(handle, 0) == timed_out)


def _last_error() -> int:
    if sys.platform == "win32":
        return ctypes.get_last_error()
    return 0


def _creation_time(handle: int) -> int:
    """Return when a process was created, in 100 ns since 1601; 0 where it may not be asked."""
    times = (ctypes.c_uint64 * 4)()  # creation, exit, kernel, user: a FILETIME each
    addresses = (ctypes.addressof(times) + 8 * number for number in range(4))
    return int(times[0]) if _kernel32().GetProcessTimes(handle, *addresses) else 0
