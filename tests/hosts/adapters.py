"""A client in another language, driven through its conformance adapter, and what every such client must show."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from bridge_client import EmbedClient
from bridge_client.embeddings import Matrix
from bridge_client.testing import fake_client, fake_command, fake_vector
from bridge_client.testing.conformance_process import Driven
from tests.client.conftest import WAIT_S, is_alive, wait_until

ROOT = Path(__file__).resolve().parents[2]
REAL_WORKER = (sys.executable, "-m", "embed_worker", "--supervised")

TEXTS = (
    "",
    " ",
    "a cat sat on the mat",
    "naïve 🎈 \u2028 \x00 \x1b \x7f \ufeff",
    '<b>&amp;</b> \\ " \r\n',
    "\U0010ffff" * 100,
    *(f"text {number} " + "word " * (number % 50) for number in range(500)),
)


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


def check_kills_under_load(command: Sequence[str]) -> None:
    """Kill the worker again and again: each call ends once, with vectors or as `worker_died`; the next ones work."""
    kills, calls_each = 4, 60
    with Adapter(command, fake_command(latency=0.005), max_restarts=100, backoff_initial_s=0.01) as adapter:
        begun: dict[int, str] = {}
        killed: set[int] = set()
        for kill in range(kills):
            # It takes the client a moment to see that the last one is dead.
            wait_until(lambda: adapter.ask("info")["pid"] not in killed, "the worker is not replaced")
            pid = adapter.ask("info")["pid"]
            texts = [f"call {kill}.{number}" for number in range(calls_each)]
            round_begun = {adapter.begin("embed", inputs=[text]): text for text in texts}
            begun |= round_begun
            adapter.wait(min(round_begun))  # the others are in flight
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        for number, text in begun.items():
            outcome = adapter.wait(number)
            if outcome["ok"]:
                assert matrix_of(outcome).tolist() == [fake_vector(text)]
            else:
                assert outcome["error"] == "worker_died", outcome
        assert adapter.embed(["next"]).tolist() == [fake_vector("next")]
        assert adapter.ask("stats")["restarts"] == kills
        adapter.finish()


def check_no_orphan(command: Sequence[str], *, worker: Sequence[str]) -> None:
    """Kill the host while a call is in flight: its worker goes, too."""
    with Adapter(command, worker) as adapter:
        pid = adapter.ask("info")["pid"]
        adapter.begin("embed", inputs=["in flight"])
        adapter.ask("ping")  # so that it has been sent
        os.kill(adapter.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the worker outlives its host")


def check_fake_vectors(command: Sequence[str]) -> None:
    """Compare with the Python client, bit for bit: one call of several pieces, and many calls at once."""
    with Adapter(command, fake_command()) as adapter, fake_client() as client:
        expected = client.embed(TEXTS)
        assert adapter.embed(TEXTS).tobytes() == expected.tobytes()
        calls = [adapter.begin("embed", inputs=[text]) for text in TEXTS]
        for row, number in enumerate(calls):
            assert matrix_of(adapter.wait(number)).tobytes() == expected[row].tobytes()
        adapter.finish()


def check_real_vectors(command: Sequence[str]) -> None:
    """Compare with the Python client, within 1e-6 for each number."""
    texts = TEXTS[:60]
    with Adapter(command, REAL_WORKER) as adapter, EmbedClient(worker_command=REAL_WORKER) as client:
        vectors, expected = adapter.embed(texts), client.embed(texts)
        assert vectors.shape == expected.shape
        assert float(np.abs(vectors - expected).max()) <= 1e-6
        adapter.finish()
