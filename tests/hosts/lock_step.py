"""A lock-step host for tests: no ids, a line for a line, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bridge_client.testing.processes import is_there, send_signal
from tests.worker.harness import ROOT, WAIT_S

FOLDER = ROOT / "examples" / "lockstep"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SCRIPT = (sys.executable, str(FOLDER / "embed_server.py"))
COMMAND = (sys.executable, "-m", "bridge_client.lockstep", "/opt/akidb/python/embed_server.py")


class LockStep:
    """The whole of such a host: started without arguments, no ids, a line for a line."""

    def __init__(self, environment: dict[str, str], command: Sequence[str] = SCRIPT) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT | environment,
        )

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(WAIT_S)
        assert self.process.stdout.read() == b"", "a line that nobody asked for"
        self.process.stdout.close()
        return status


@contextlib.contextmanager
def lock_step(environment: dict[str, str], command: Sequence[str] = SCRIPT) -> Iterator[LockStep]:
    host = LockStep(environment, command)
    try:
        yield host
    finally:
        if host.process.poll() is None:
            host.process.kill()
        host.process.wait(WAIT_S)
        for pipe in (host.process.stdin, host.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


def worker_of(host: LockStep, model: str | None = None) -> int:
    """Return the number of the process that serves a model."""
    pid = int(host.ask(json.dumps({"method": "info", "model": model}))["pid"])
    assert is_there(pid)
    return pid


def gone(pid: int) -> bool:
    """Wait until a process is no more; it is not ours to wait for."""
    waiting, until = threading.Event(), time.monotonic() + WAIT_S
    while is_there(pid) and time.monotonic() < until:
        waiting.wait(0.02)
    return not is_there(pid)


def killed_between(model: str, texts: Sequence[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """Ask as a database's bridge does, and kill the worker before each request but the first two; return the answers.

    Such a bridge spawns "an interpreter and a script", writes a line and reads one.
    """
    ping = {"method": "ping", "params": {}}
    load = {"method": "load_model", "params": {"model": model, "cache_dir": "~/.cache/akidb/models"}}
    embed = {"method": "embed_batch", "params": {"model": model, "inputs": list(texts), "normalize": True}}
    with lock_step(environment, COMMAND) as host:
        answers = [host.ask(json.dumps(ping)), host.ask(json.dumps(load))]
        pids = [worker_of(host, model)]
        for request in (embed, ping, load, embed):
            send_signal(pids[-1], "KILL")
            answers.append(host.ask(json.dumps(request)))
            pids.append(worker_of(host, model))
        assert host.end() == 0
    assert len(set(pids)) == 5, "every one of them was another process"
    assert all(gone(pid) for pid in pids)
    return answers
