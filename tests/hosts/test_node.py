"""The Node client, seen from outside: its own tests are in examples/node, and `make clients` runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from bridge_client.testing import fake_command
from tests.hosts import adapters

NODE = shutil.which("node") or ""
COMMAND = (NODE, str(adapters.ROOT / "examples/node/conformance-adapter.mjs"))


def why_not() -> str:
    """Return why the tests cannot run here, if they cannot."""
    if sys.platform == "win32":
        return "POSIX signals"
    if not NODE:
        return "node is not installed"
    told = subprocess.run([NODE, "--version"], capture_output=True, text=True, timeout=30).stdout.strip()
    if [int(number) for number in told.lstrip("v").split(".")[:2]] < [20, 4]:
        return f"node {told} is older than 20.4"
    return ""


pytestmark = pytest.mark.skipif(bool(REASON := why_not()), reason=REASON)


def test_every_call_ends_once_when_the_worker_is_killed_under_load() -> None:
    adapters.check_kills_under_load(COMMAND)


@pytest.mark.parametrize("worker", [fake_command(latency=3600), adapters.REAL_WORKER], ids=["fake", "real"])
def test_no_worker_outlives_a_killed_host(worker: tuple[str, ...]) -> None:
    adapters.check_no_orphan(COMMAND, worker=worker)


def test_vectors_of_the_fake_worker_are_those_of_the_python_client_bit_for_bit() -> None:
    adapters.check_fake_vectors(COMMAND)


def test_vectors_of_the_real_worker_are_those_of_the_python_client() -> None:
    adapters.check_real_vectors(COMMAND)
