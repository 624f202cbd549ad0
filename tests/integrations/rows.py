"""Rows for the engines, and a look at the processes that they leave."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from tests.worker.harness import ROOT

MODEL = str(ROOT / "tests" / "models" / "bert-mean")
DISTINCT = 997


def text_of(number: int) -> str | None:
    return None if number % 1000 == 7 else f"text number {number % DISTINCT}"


def workers() -> set[int]:
    """Return the processes that embed for this test, by their command line."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return {int(line.split()[0]) for line in listed.splitlines() if "-m embed_worker" in line and MODEL in line}


def wait_until(condition: Any, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return bool(condition())
