"""The clients of all languages, each driven through its conformance adapter."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from bridge_client.embeddings import Matrix
from bridge_client.testing.conformance.process import Driven
from tests.client.conftest import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
EXE = ".exe" if sys.platform == "win32" else ""
CLIENTS = {
    "Python": (sys.executable, "-m", "bridge_client.testing.conformance.adapter"),
    "Rust": (str(ROOT / f"examples/rust/target/release/examples/conformance-adapter{EXE}"),),
    "Go": (str(ROOT / f"examples/go/bin/conformance-adapter{EXE}"),),
    "Node": (shutil.which("node") or "node", str(ROOT / "examples/node/conformance-adapter.mjs")),
}
_OLDEST_NODE = (20, 4)


def why_not(language: str) -> str:
    """Return why the client of a language cannot run here, if it cannot."""
    command = CLIENTS[language]
    if language == "Node":
        if shutil.which("node") is None:
            return "node is not installed"
        told = subprocess.run([command[0], "--version"], capture_output=True, text=True, timeout=30).stdout.strip()
        if tuple(int(number) for number in told.lstrip("v").split(".")[:2]) < _OLDEST_NODE:
            return f"node {told} is too old"
    elif not Path(command[0]).exists():
        return f"the {language} client is not built: make clients"
    return ""


class Adapter:
    """Calls go in, outcomes come out, every wait is bounded."""

    def __init__(self, command: Sequence[str], worker: Sequence[str], **options: float) -> None:
        own = {
            "PYTHONPATH": str(ROOT),
            "CONFORMANCE_WORKER": json.dumps(worker),
            "CONFORMANCE_OPTIONS": json.dumps(options),
        }
        self._driven = Driven(command, os.environ | own)
        self._numbers = itertools.count(1)
        self._outcomes: dict[int, dict[str, Any]] = {}
        self.pid = self._driven.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._driven.__exit__()

    def begin(self, operation: str, **members: object) -> int:
        """Start a call; return its number."""
        number = next(self._numbers)
        line = json.dumps({"call": number, "op": operation} | members)
        self._driven.write(line.encode() + b"\n")
        return number

    def wait(self, number: int) -> dict[str, Any]:
        """Return how a call ended."""
        while number not in self._outcomes:
            assert self._read(), f"the adapter ended without an answer to call {number}: {self._driven.stderr}"
        return self._outcomes[number]

    def ask(self, operation: str, **members: object) -> dict[str, Any]:
        """Start a call that must succeed, and wait for it."""
        outcome = self.wait(self.begin(operation, **members))
        assert outcome["ok"] is True, outcome
        return outcome

    def embed(self, texts: Sequence[str]) -> Matrix:
        """Embed with success."""
        return matrix_of(self.ask("embed", inputs=list(texts)))

    def finish(self) -> None:
        """End the input; nothing may follow but the outcomes of what has begun, and status 0."""
        self._driven.close_input()
        while self._read():
            pass
        assert self._driven.wait(WAIT_S) == 0, self._driven.stderr

    def _read(self) -> bool:
        line = self._driven.read_line(WAIT_S)
        if line is None:
            return False
        outcome = json.loads(line)
        number = outcome.pop("call")
        assert number not in self._outcomes, f"call {number} ended twice"
        self._outcomes[number] = outcome
        return True


def matrix_of(outcome: dict[str, Any]) -> Matrix:
    """Decode the vectors of an outcome: (B, D) float32."""
    flat = np.frombuffer(base64.b64decode(outcome["vectors_base64"], validate=True), "<f4")
    return flat.reshape(outcome["count"], outcome["dimension"])
