"""Cores, memory and the parent, on this platform and as the others would tell."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_worker import machine
from embed_worker.machine import (
    PARENT_VARIABLE,
    available_cores,
    cgroup_cores,
    name_this_process,
    rss_bytes,
    watch_parent,
)

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX systems")

V2 = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/cpu"


def cores_of(files: dict[str, str]) -> int | None:
    def read_text(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return cgroup_cores(read_text)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "200000 100000\n"}, 2),
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "150000 100000\n"}, 2),
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "1000 100000\n"}, 1),
        ({f"{V2}/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "/proc/self/cgroup": "1:name=systemd:/x\n0::/a/b\n",
                f"{V2}/a/b/cpu.max": "max 100000",
                f"{V2}/a/cpu.max": "400000 100000",
                f"{V2}/cpu.max": "800000 100000",
            },
            4,
        ),
        ({f"{V1}/cpu.cfs_quota_us": "250000\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, 3),
        ({f"{V1}/cpu.cfs_quota_us": "-1\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, None),
        ({f"{V1}/cpu.cfs_quota_us": "1\n", f"{V1}/cpu.cfs_period_us": "0\n"}, None),
        ({f"{V1}/cpu.cfs_quota_us": "1\n"}, None),
        ({f"{V2}/cpu.max": ""}, None),
        ({f"{V2}/cpu.max": "nonsense"}, None),
        ({f"{V2}/cpu.max": "1 2 3"}, None),
        (
            {
                f"{V2}/cpu.max": "300000 100000",
                f"{V1}/cpu.cfs_quota_us": "200000",
                f"{V1}/cpu.cfs_period_us": "100000",
            },
            2,
        ),
    ],
)
def test_the_smallest_quota_on_the_way_to_the_root_holds(files: dict[str, str], cores: int | None) -> None:
    assert cores_of(files) == cores


def test_a_file_that_is_not_text_tells_nothing() -> None:
    def read_text(path: str) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    assert cgroup_cores(read_text) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_no_content_of_these_files_is_an_error(membership: str, limit: str, quota: str) -> None:
    files = {"/proc/self/cgroup": f"0::{membership}", f"{V2}/cpu.max": limit, f"{V1}/cpu.cfs_quota_us": quota}
    cores = cores_of(files)
    assert cores is None or cores >= 1


@pytest.mark.parametrize(("affinity", "quota", "cores"), [(8, None, 8), (8, 2, 2), (2, 8, 2), (1, 1, 1)])
def test_cores_are_those_that_affinity_and_quota_leave(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: int | None, cores: int
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(machine, "cgroup_cores", lambda read_text: quota)
    assert available_cores() == cores


@pytest.mark.parametrize(("count", "cores"), [(None, 1), (6, 6)])
def test_elsewhere_cores_are_those_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, count: int | None, cores: int
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert available_cores() == cores


def test_this_machine_has_a_core_and_this_process_some_memory() -> None:
    assert available_cores() >= 1
    assert rss_bytes() > 2**20 or sys.platform not in ("linux", "darwin", "win32")


def test_memory_is_zero_where_the_platform_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(sys, "platform", "freebsd")
    monkeypatch.setattr(Path, "read_text", read_text)
    assert rss_bytes() == 0


@pytest.mark.parametrize(("failed", "memory"), [(0, 123_456), (5, 0)])
def test_memory_on_macos_is_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch, failed: int, memory: int) -> None:
    def task_info(task: Any, flavor: int, info: Any, words: Any) -> int:
        assert (task.value, flavor) == (77, 20)
        assert words._obj.value == ctypes.sizeof(info._obj) // 4
        info._obj.resident_size = 123_456
        return failed

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(task_info=task_info))
    words = SimpleNamespace(in_dll=lambda system, name: SimpleNamespace(value=77))
    real = ctypes.c_uint32

    class Word(real):  # type: ignore[misc, valid-type]
        in_dll = words.in_dll

    monkeypatch.setattr(ctypes, "c_uint32", Word)
    monkeypatch.setattr(ctypes, "byref", lambda value: SimpleNamespace(_obj=value))
    assert rss_bytes() == memory


class Function:
    """A foreign function: types may be set, calls are answered."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, *arguments: Any) -> Any:
        return self.answer(*arguments)


class Kernel32:
    """What the parent's watch calls of it; processes are handles, and the handle 7 was created at 1000."""

    def __init__(self, handle: int | None, waited: int = 0) -> None:
        self.opened: list[int] = []
        self._handle = handle
        self.GetCurrentProcess = Function(lambda: -1)
        self.K32GetProcessMemoryInfo = Function(lambda *_: 0)
        self.OpenProcess = Function(self._open)
        self.WaitForSingleObject = Function(lambda *_: waited)
        self.GetProcessTimes = Function(self._times)

    def _open(self, access: int, inherit: bool, pid: int) -> int | None:
        self.opened.append(pid)
        return self._handle

    def _times(self, handle: int, created: int, *_: int) -> int:
        ctypes.c_uint64.from_address(created).value = 1000
        return 1


@pytest.mark.parametrize(("done", "memory"), [(1, 4096), (0, 0)])
def test_memory_on_windows_is_the_working_set(monkeypatch: pytest.MonkeyPatch, done: int, memory: int) -> None:
    def measure(process: int, counters: Any, size: int) -> int:
        assert (process, size) == (-1, counters._obj.size)
        counters._obj.working_set = 4096
        return done

    kernel = Kernel32(handle=None)
    kernel.K32GetProcessMemoryInfo.answer = measure
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: kernel)
    monkeypatch.setattr(ctypes, "byref", lambda value: SimpleNamespace(_obj=value))
    assert rss_bytes() == memory


def test_the_process_that_started_this_one_is_there() -> None:
    assert watch_parent()()


@pytest.mark.parametrize("later", [1, 4242])
def test_another_parent_means_that_the_first_has_died(monkeypatch: pytest.MonkeyPatch, later: int) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "getppid", lambda: 100)
    is_parent_alive = watch_parent()
    assert is_parent_alive()
    monkeypatch.setattr(os, "getppid", lambda: later)
    assert not is_parent_alive()


def test_the_parent_that_the_host_names_is_watched_and_not_what_started_the_worker() -> None:
    named = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with named, pytest.MonkeyPatch.context() as patch:
        patch.setenv(PARENT_VARIABLE, str(named.pid))
        is_there = watch_parent()
        assert PARENT_VARIABLE not in os.environ, "it is nobody else's"
        assert is_there()
        named.kill()
        if sys.platform != "win32":
            os.waitid(os.P_PID, named.pid, os.WEXITED | os.WNOWAIT)
            assert not is_there(), "a zombie is not there any more"
        named.wait(60)
        assert not is_there()


def test_a_process_names_itself_so_that_a_later_owner_of_its_number_is_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = name_this_process()
    pid, _, start = name.partition(":")
    assert pid == str(os.getpid())
    if not start:
        pytest.skip("this system does not tell when a process started")
    for named, is_it in ((name, True), (pid, True), (f"{pid}:{int(start) + 1}", False)):
        monkeypatch.setenv(PARENT_VARIABLE, named)
        assert watch_parent()() is is_it


@POSIX
def test_a_named_process_that_may_not_be_looked_at_is_taken_for_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", Function(lambda pid, number: None))
    monkeypatch.setattr(machine, "_start_in_proc", lambda pid: 0)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv(PARENT_VARIABLE, "4242:17")
    assert watch_parent()()


def test_a_named_process_that_is_gone_before_the_worker_looks_is_seen_to_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for named in ("4000000000", "4000000000:17"):
        monkeypatch.setenv(PARENT_VARIABLE, named)
        assert not watch_parent()()


@POSIX
def test_numbers_of_another_namespace_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "getppid", lambda: 0)
    monkeypatch.setenv(PARENT_VARIABLE, f"{os.getpid()}:1")
    assert watch_parent()()


@pytest.mark.parametrize("named", ["0", "1:", ":1", "-5", "12 34", "1:2:3", "١", "12345678901"])
def test_a_parent_that_is_no_process_number_is_refused(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, named)
    with pytest.raises(ValueError, match="not PID or PID:START"):
        watch_parent()


@pytest.mark.parametrize(("size", "failure", "start"), [(136, 0, 5_000_007), (0, 3, None), (0, 1, 0)])
def test_the_start_of_a_process_on_a_mac_is_its_bsd_info(
    monkeypatch: pytest.MonkeyPatch, size: int, failure: int, start: int | None
) -> None:
    def proc_pidinfo(pid: int, kind: int, argument: object, info: Any, length: int) -> int:
        assert (pid, kind, length) == (os.getpid(), 3, 136)
        info._obj.start_s, info._obj.start_us = 5, 7
        ctypes.set_errno(failure)
        return size

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "kill", Function(lambda pid, number: None))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(proc_pidinfo=proc_pidinfo))
    monkeypatch.setattr(ctypes, "byref", lambda value: SimpleNamespace(_obj=value))
    assert machine.process_start(os.getpid()) == start


@pytest.mark.parametrize(
    ("handle", "waited", "error", "is_alive"),
    [(7, 0x102, 0, True), (7, 0, 0, False), (None, 0, 87, False), (None, 0, 5, True)],
    ids=["runs", "ended", "gone before", "may not be watched"],
)
def test_on_windows_a_handle_tells_whether_the_parent_is_there(
    monkeypatch: pytest.MonkeyPatch, handle: int | None, waited: int, error: int, is_alive: bool
) -> None:
    kernel = Kernel32(handle, waited)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: kernel)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    assert watch_parent()() is is_alive
    assert kernel.opened == [os.getppid()]


@pytest.mark.parametrize(("start", "is_alive"), [("1000", True), ("999", False)])
def test_on_windows_the_time_of_creation_tells_a_reused_number_apart(
    monkeypatch: pytest.MonkeyPatch, start: str, is_alive: bool
) -> None:
    kernel = Kernel32(7, 0x102)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: kernel)
    monkeypatch.setenv(PARENT_VARIABLE, f"4242:{start}")
    assert watch_parent()() is is_alive
    assert kernel.opened == [4242]


def test_giving_memory_back_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(machine, "release_freed_memory"):
        pytest.skip("this worker does not do it")

    def no_library(_: object) -> Any:
        raise OSError

    machine.release_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    machine.release_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    machine.release_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    machine.release_freed_memory()
