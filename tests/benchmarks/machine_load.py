"""The machine while it is measured: what processor it is, what else runs, what a process took. Linux, from /proc."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from embed_worker.machine import available_cores

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# What decides how fast products of matrices are, and in which precision.
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


class Load:
    """What else ran: the load average at each round, and how many cores others took during each turn."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._averages: list[float] = []
        self._others: list[float] = []

    def begin_round(self) -> None:
        self._averages.append(round(os.getloadavg()[0], 1))

    @contextmanager
    def turn(self, pid: int) -> Iterator[None]:
        """Count what neither this process nor the contestant took."""
        busy, own, began = _busy_s(), _process_s(pid) + time.process_time(), time.monotonic()
        yield
        busy, own = _busy_s() - busy, _process_s(pid) + time.process_time() - own
        self._others.append(max(0.0, busy - own) / max(1e-9, time.monotonic() - began))

    def results(self) -> dict[str, Any]:
        """Return the load averages and the median of the cores that others took."""
        return {"averages": self._averages, "cores_taken_by_others": round(median(self._others), 2)}


def about() -> dict[str, Any]:
    """Describe the machine."""
    flags = processor_flags()
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": [flag for flag in _TELLING if flag in flags],
        "cores": available_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "niceness": _niceness(),
    }


def _niceness() -> int:
    """The session's where the kernel shares cores out by sessions (autogroup): `nice` alone does nothing there."""
    group = Path("/proc/self/autogroup")
    is_grouped = Path("/proc/sys/kernel/sched_autogroup_enabled")
    if is_grouped.exists() and is_grouped.read_text("ascii").strip() == "1" and group.exists():
        return int(group.read_text("ascii").split()[-1])
    return os.nice(0)


def processor_flags() -> frozenset[str]:
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features") or "").split())


def peak_mb(pid: int) -> float:
    """The most memory that a process had at a time, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"the system does not tell the peak of process {pid}")


def wait_until_idle(pid: int, limit_s: float = 120) -> None:
    """Wait until a process has let a second pass without computing: what it does after its start is done.

    Raises:
        TimeoutError: It still computes.
    """
    give_up = time.monotonic() + limit_s
    before, now = -1.0, _process_s(pid)
    while now - before > _TICK_S:
        if time.monotonic() > give_up:
            raise TimeoutError(f"process {pid} still computes after {limit_s:.0f} s")
        time.sleep(1)
        before, now = now, _process_s(pid)


def _cpuinfo(key: str) -> str | None:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _busy_s() -> float:
    """Seconds of all cores but those idle, waiting for disks, or counted twice (guests)."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK_S


def _process_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S
