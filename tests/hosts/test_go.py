"""The Go client, seen from outside: its own tests are in examples/go, and `make clients` runs them."""

from __future__ import annotations

import shutil
import sys

import pytest

from bridge_client.testing import fake_command
from tests.hosts import adapters

BINARY = adapters.ROOT / "examples/go/bin/conformance-adapter"
COMMAND = (str(BINARY),)

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
    pytest.mark.skipif(shutil.which("go") is None and not BINARY.exists(), reason="go is not installed"),
    pytest.mark.skipif(not BINARY.exists(), reason="the Go client is not built: make clients"),
]


def test_every_call_ends_once_when_the_worker_is_killed_under_load() -> None:
    adapters.check_kills_under_load(COMMAND)


@pytest.mark.parametrize("worker", [fake_command(latency=3600), adapters.REAL_WORKER], ids=["fake", "real"])
def test_no_worker_outlives_a_killed_host(worker: tuple[str, ...]) -> None:
    adapters.check_no_orphan(COMMAND, worker=worker)


def test_vectors_of_the_fake_worker_are_those_of_the_python_client_bit_for_bit() -> None:
    adapters.check_fake_vectors(COMMAND)


def test_vectors_of_the_real_worker_are_those_of_the_python_client() -> None:
    adapters.check_real_vectors(COMMAND)
