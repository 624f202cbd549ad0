"""A contestant that runs: started, asked, measured, ended; ours over its own protocol, the others over `serve`."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embed_worker import __version__
from tests.benchmarks.contestants import Worker
from tests.benchmarks.peers.roster import Entry, runtime_library
from tests.benchmarks.peers.serve import Settings

Vectors = NDArray[np.float32]


class ContestantError(Exception):
    """It did not start, or ended; the message is the last line that it left on standard error."""


class Running(Protocol):
    """A contestant that runs."""

    @property
    def pid(self) -> int:
        """The process whose memory counts."""

    def embed(self, texts: list[str]) -> Vectors:
        """Return (texts, D) float32."""

    def bulk_s(self, texts: list[str]) -> float:
        """Return how long all texts take, from the texts to the vectors."""

    def singles_s(self, texts: list[str]) -> list[float]:
        """Return how long each text takes, one after the other."""

    def facts(self) -> Mapping[str, str]:
        """Return versions, and what else it tells of itself."""

    def close(self) -> None:
        """End it."""


def start(entry: Entry, settings: Settings, environments: Path) -> Running:
    """Start it; it may still be loading.

    Raises:
        ContestantError: It ended at once.
    """
    return OurWorker(entry, settings) if entry.is_ours else Peer(entry, settings, environments)


class OurWorker:
    """Our worker, spoken to through its pipe; the times hold the JSON and the base64 of both sides."""

    def __init__(self, entry: Entry, settings: Settings) -> None:
        options = [*entry.variant.split(), "--threads", str(settings.threads)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the contestant
        try:
            self._worker = Worker(*options, model=Path(settings.model), stderr=self._log)
        except Exception as error:
            raise ContestantError(_last_line(self._log) or str(error)) from error

    @property
    def pid(self) -> int:
        return self._worker.process.pid

    def embed(self, texts: list[str]) -> Vectors:
        return self._worker.embed(texts)

    def bulk_s(self, texts: list[str]) -> float:
        started = time.perf_counter()
        self._worker.embed(texts)
        return time.perf_counter() - started

    def singles_s(self, texts: list[str]) -> list[float]:
        seconds = []
        for text in texts:
            started = time.perf_counter()
            self._worker.embed_one(text)
            seconds.append(time.perf_counter() - started)
        return seconds

    def facts(self) -> Mapping[str, str]:
        self._worker.send({"id": 0, "method": "info"})
        info = self._worker.receive()
        return {"embed-bridge": __version__, "precision": str(info.get("precision"))}

    def close(self) -> None:
        self._worker.close()
        self._log.close()


class Peer:
    """Another contestant, over the line protocol of `serve`."""

    def __init__(self, entry: Entry, settings: Settings, environments: Path) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the contestant
        self._facts: dict[str, str] = {}
        offline = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
        library = {"ORT_DYLIB_PATH": runtime_library()}
        self._process = subprocess.Popen(
            [*entry.command(environments), json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | offline | library,
            cwd=Path(__file__).resolve().parents[3],
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def embed(self, texts: list[str]) -> Vectors:
        answer = self._ask({"inputs": texts, "vectors": True})
        return np.frombuffer(base64.b64decode(answer["vectors"]), "<f4").reshape(len(texts), -1)

    def bulk_s(self, texts: list[str]) -> float:
        return float(self._ask({"inputs": texts})["seconds"][0])

    def singles_s(self, texts: list[str]) -> list[float]:
        return [float(seconds) for seconds in self._ask({"inputs": texts, "one_by_one": True})["seconds"]]

    def facts(self) -> Mapping[str, str]:
        return self._facts

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the end of its output says so too
        answered = self._process.stdout.readline()
        if not answered:
            self._process.wait(60)
            raise ContestantError(_last_line(self._log) or f"it ended with {self._process.returncode}")
        answer: dict[str, Any] = json.loads(answered)
        self._facts |= answer["versions"]
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._process.stdout.close()
        self._log.close()


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
