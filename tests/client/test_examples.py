"""The examples run as they stand, and say what they promise."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_client.testing import fake_command
from tests.client.conftest import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
# Windows cannot do without SYSTEMROOT, nor find a home without USERPROFILE.
NO_SETTINGS = {name: os.environ[name] for name in ("SYSTEMROOT", "USERPROFILE") if name in os.environ}


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=ROOT,
        # A pipe of Windows takes only what its code page has.
        env=NO_SETTINGS | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_demo_ends_with_metrics_that_have_counted_what_it_did() -> None:
    last = next(line for line in run("demo.py").splitlines() if line.startswith('<-- {"id": "bye"'))
    metrics = json.loads(last.removeprefix("<-- "))["metrics"]
    assert (metrics["requests"], metrics["texts"]) == ({"ok": 2, "invalid_request": 1}, 4)
    assert metrics["tokens"] == 33
    assert metrics["micro_batches"] > 0
    assert metrics["latency_ms"]["p50"] > 0


def test_quickstart() -> None:
    said = run("quickstart.py")
    assert "(3, 384) float32" in said
    assert "embedded 1000 lines" in said


def test_semantic_search_finds_what_is_meant() -> None:
    said = run("semantic_search.py", "can I send it back and be repaid?")
    assert "refund policy" in said.splitlines()[1]


def test_the_service_keeps_answering_while_its_worker_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("async_service", ROOT / "examples" / "async_service.py")
    assert spec is not None
    assert spec.loader is not None
    service = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(service)
    command = fake_command(latency=0.02)
    asyncio.run(asyncio.wait_for(service.main(4, 20, 0.4, command), WAIT_S))
    said = capsys.readouterr().out
    assert said.startswith("80 of 80 answered")
    assert " 0 restarts" not in said
