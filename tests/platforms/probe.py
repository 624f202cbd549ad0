r"""What only Windows has shown to be wrong, one line each, beside the tests: `ok` or `FAIL`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "tests" / "models" / "bert-mean")
ONE = b'{"id":1,"inputs":"x"}\n'

sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

from bridge_client import BridgeError, EmbedClient  # noqa: E402
from bridge_client.exits import Cause, cause_of  # noqa: E402
from bridge_client.testing import fake_command  # noqa: E402
from bridge_client.testing.processes import is_there, status_of  # noqa: E402


def show(name: str, is_right: bool, *more: object) -> None:
    print("ok  " if is_right else "FAIL", name, *more, flush=True)


def worker(data: bytes, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "embed_worker", *arguments]
    return subprocess.run(command, input=data, capture_output=True, env=env, timeout=300)


def probe_the_wire() -> None:
    data = b'\x1a\n{"id":1,"inputs":["a\\r\\n"]}\r\n' + ONE.replace(b"1", b"2")
    done = worker(data, "--model", MODEL)
    is_right = done.returncode == 0 and done.stdout.count(b"\n") == 3 and b"\r" not in done.stdout
    show("worker: CRLF and 0x1A come in, no CR goes out", is_right)


def probe_the_client() -> None:
    with EmbedClient(model=MODEL, restart_budget=1) as client:
        try:
            client.embed(["a"])
            show("client: starts with its own environment", True)
        except BridgeError as error:
            show("client: starts with its own environment", False, type(error).__name__, str(error)[-90:].strip())
    with EmbedClient(model=MODEL) as client:
        client.embed(["a"])
        calls = [client.submit([f"text {n}"] * 20) for n in range(40)]
        pid = client.stats().workers[0].pid
        assert pid is not None
        os.kill(pid, 15)  # on Windows TerminateProcess, with the status 15
        show("client: all 40 calls outlive a TerminateProcess", all(call.result(300) is not None for call in calls))


def probe_ends() -> None:
    abort = [sys.executable, "-X", "faulthandler", "-c", "import os; os.abort()"]
    status = subprocess.run(abort, capture_output=True).returncode
    show("client: abort() in the worker is a crash", cause_of(status, None) is Cause.CRASHED, "status", status)
    if sys.platform == "win32":
        cause = cause_of(0xC000013A, None)  # STATUS_CONTROL_C_EXIT
        show("client: an end by Ctrl-C or logoff blames no input", not cause.may_blame_input, cause)
    poisoned = fake_command(poison="evil", poison_status=status_of("ABRT") if sys.platform == "win32" else 70)
    with EmbedClient(worker_command=poisoned, backoff_initial_s=0.01) as client:
        calls = [client.submit([text]) for text in ("good", "evil", "fine")]
        ends = [type(call.exception(300)).__name__ for call in calls]
    show(
        "client: a text that aborts the worker is blamed alone", ends == ["NoneType", "PoisonedInputError", "NoneType"]
    )


def probe_text(scratch: Path) -> None:
    folder = scratch / "Пётр 日本" / "bert mean"
    shutil.copytree(MODEL, folder)
    show("worker: a folder with blanks, Cyrillic and Japanese", worker(ONE, "--model", str(folder)).returncode == 0)
    inspect = [sys.executable, "-m", "embed_worker", "inspect", str(folder)]
    done = subprocess.run(inspect, capture_output=True)
    show("inspect: the same folder, into a pipe", done.returncode == 0, done.stderr[-90:])
    logged = worker(ONE, "--model", str(scratch / "nö😀"), "--log-format", "json").stderr
    try:
        json.loads(next(line for line in logged.splitlines() if line.startswith(b"{")).decode("utf-8"))
        show("worker: JSON log lines are UTF-8 JSON", True)
    except ValueError as error:
        show("worker: JSON log lines are UTF-8 JSON", False, error)


def probe_the_surroundings() -> None:
    bare = {name: os.environ[name] for name in ("SYSTEMROOT", "PYTHONPATH") if name in os.environ}
    done = worker(ONE, "--model", MODEL, env=bare)
    show("worker: no home in the environment", done.returncode == 0, done.returncode, done.stderr[-60:])
    host = f"""
import subprocess, sys, time
p = subprocess.Popen([sys.executable, "-m", "embed_worker", "--supervised", "--model", {MODEL!r}], stdin=-1, stdout=-1)
p.stdin.write({ONE!r}); p.stdin.flush(); p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", host], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        is_there(pid)  # from now on the number is watched
        parent.kill()
    began = time.monotonic()
    while is_there(pid) and time.monotonic() - began < 10:
        time.sleep(0.05)
    show("worker: gone after its host was terminated", not is_there(pid), f"{time.monotonic() - began:.2f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        probe_the_wire()
        probe_the_client()
        probe_ends()
        probe_text(Path(folder))
        probe_the_surroundings()
