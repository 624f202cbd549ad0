"""Nobody listens: a worker opens no socket of an internet family, and writes no file but its own.

onnxruntime reports to its maker unless it is told not to, and a variable `CI` hides that. So the worker lives here
without that variable, with an empty home, and, where the system allows it, without a network and watched by strace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.worker.harness import ROOT, TINY_MODEL, WAIT_S, parse_answer

OWN_FILE = "embed-bridge/verified.json"
_HIDING = ("CI", "XDG_CACHE_HOME", "XDG_DATA_HOME", "ORT_DISABLE_TELEMETRY")


def live(tmp_path: Path, *, idle_s: float = 0.0, env: dict[str, str] | None = None) -> tuple[list[str], list[str]]:
    """Let a worker embed a text, idle and end; return the files that are in its home, and its internet sockets."""
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    command = [sys.executable, "-m", "embed_worker", "--model", str(TINY_MODEL)]
    is_traced = works(["strace", "-f", "-o", os.devnull, "true"])
    if is_traced:
        command = ["strace", "-f", "-qq", "-e", "trace=socket", "-o", str(trace), *command]
    if works(["unshare", "-rn", "true"]):
        command = ["unshare", "-rn", *command]
    bare = {name: value for name, value in os.environ.items() if name not in _HIDING}
    worker = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**bare, "HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home), **(env or {})},
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker:
        worker.stdin.write(b'{"id": 1, "inputs": "a"}\n')
        worker.stdin.flush()
        assert parse_answer(worker.stdout.readline())["status"] == "ok"
        threading.Event().wait(idle_s)
        sockets = [] if is_traced else open_sockets(worker.pid)
        worker.stdin.close()
        assert worker.wait(WAIT_S) == 0
    if is_traced:
        sockets = [line for line in trace.read_text("utf-8").splitlines() if "AF_INET" in line]
    return sorted(file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file()), sockets


def works(command: list[str]) -> bool:
    return (
        shutil.which(command[0]) is not None
        and not subprocess.run(command, check=False, capture_output=True).returncode
    )


def open_sockets(pid: int) -> list[str]:
    """Return the internet sockets that a process has open, where /proc tells."""
    tables = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")]
    known = {line.split()[9] for table in tables if table.exists() for line in table.read_text().splitlines()[1:]}
    folder = Path(f"/proc/{pid}/fd")
    links = [os.readlink(entry) for entry in folder.iterdir()] if folder.exists() else []
    return [link for link in links if link.removeprefix("socket:[").rstrip("]") in known]


def strange(files: list[str]) -> list[str]:
    return [file for file in files if not file.endswith(OWN_FILE)]


def test_a_worker_opens_no_internet_socket_and_leaves_no_file_but_its_own(tmp_path: Path) -> None:
    files, sockets = live(tmp_path)
    assert (strange(files), sockets) == ([], [])


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_nor_does_one_that_idles_for_a_minute(tmp_path: Path) -> None:
    files, sockets = live(tmp_path, idle_s=60)
    assert (strange(files), sockets) == ([], [])


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="where the runtime is known to report")
@pytest.mark.timeout(300)
def test_a_runtime_that_is_let_report_is_caught_by_these_tests(tmp_path: Path) -> None:
    files, sockets = live(tmp_path, idle_s=60, env={"ORT_DISABLE_TELEMETRY": "0"})
    if not files:
        pytest.skip("this onnxruntime does not report")
    assert strange(files)
    assert sockets
