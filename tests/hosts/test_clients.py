"""The clients of other languages, seen from outside, and all clients with hostile workers.

Their own tests are in `examples/`, and `make clients` runs them; it also builds what is driven here.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_client import BridgeError, EmbedClient
from bridge_client.testing import fake_client, fake_command, fake_vector, hostile_worker
from bridge_client.testing.conformance import adapter as python_adapter
from bridge_client.testing.conformance.matrices import read_matrix
from bridge_client.testing.processes import is_there, send_signal
from tests.client.conftest import wait_until
from tests.hosts.adapters import CLIENTS, Adapter, matrix_of, why_not

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


def each(languages: list[str]) -> list[Any]:
    """Return the languages as parameters; those that cannot run here are skipped with the reason."""
    return [pytest.param(name, marks=pytest.mark.skipif(bool(why := why_not(name)), reason=why)) for name in languages]


other_languages = pytest.mark.parametrize("language", each(sorted(CLIENTS.keys() - {"Python"})))
all_languages = pytest.mark.parametrize("language", each(sorted(CLIENTS)))


@other_languages
def test_every_call_ends_once_when_the_worker_is_killed_under_load(language: str) -> None:
    """Each call ends with its vectors or as `worker_died`, and the next ones work."""
    kills, calls_each = 4, 60
    worker = fake_command(latency=0.005)
    with Adapter(CLIENTS[language], worker, max_restarts=100, backoff_initial_s=0.01) as adapter:
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
            send_signal(pid, "KILL")
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


@pytest.mark.parametrize("worker", [fake_command(latency=3600), REAL_WORKER], ids=["fake", "real"])
@other_languages
def test_no_worker_outlives_a_killed_host(language: str, worker: tuple[str, ...]) -> None:
    with Adapter(CLIENTS[language], worker) as adapter:
        pid = adapter.ask("info")["pid"]
        adapter.begin("embed", inputs=["in flight"])
        adapter.ask("ping")  # so that it has been sent
        send_signal(adapter.pid, "KILL")
        wait_until(lambda: not is_there(pid), "the worker outlives its host")


@other_languages
def test_vectors_of_the_fake_worker_are_those_of_the_python_client_bit_for_bit(language: str) -> None:
    """One call of several pieces, and many calls at once."""
    with Adapter(CLIENTS[language], fake_command()) as adapter, fake_client() as client:
        expected = client.embed(TEXTS)
        assert adapter.embed(TEXTS).tobytes() == expected.tobytes()
        calls = [adapter.begin("embed", inputs=[text]) for text in TEXTS]
        for row, number in enumerate(calls):
            assert matrix_of(adapter.wait(number)).tobytes() == expected[row].tobytes()
        adapter.finish()


@other_languages
def test_vectors_of_the_real_worker_are_those_of_the_python_client(language: str) -> None:
    texts = TEXTS[:60]
    with Adapter(CLIENTS[language], REAL_WORKER) as adapter, EmbedClient(worker_command=REAL_WORKER) as client:
        vectors, expected = adapter.embed(texts), client.embed(texts)
        assert vectors.shape == expected.shape
        assert float(np.abs(vectors - expected).max()) <= 1e-6
        adapter.finish()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@all_languages
def test_the_worker_sees_of_the_hosts_environment_only_what_it_needs(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with Adapter(CLIENTS[language], fake_command()) as adapter:
        passed = Path(f"/proc/{adapter.ask('info')['pid']}/environ").read_bytes().split(b"\0")
        assert b"OMP_NUM_THREADS=1" in passed
        assert b"ORT_DISABLE_TELEMETRY=1" in passed
        assert b"DATABASE_PASSWORD=secret" not in passed
        adapter.finish()


# Hostile workers ---------------------------------------------------------------------------------------------------

HOSTILE_WORKER = (sys.executable, "-m", "bridge_client.testing.hostile_worker", "--supervised")
HOSTILE_OPTIONS = {"backoff_initial_s": 0.001, "backoff_max_s": 0.001, "max_attempts": 1, "ping_every_s": 0.1}
STARTS_AT_ONCE = 4


def complaint_about(case: hostile_worker.Case, outcome: dict[str, Any]) -> str:
    """Return what is wrong with the end of a call, if something is."""
    if outcome["ok"]:
        vector = hostile_worker.VECTOR
        if case.get("precision") == "ubinary":
            vector = tuple(1.0 if number > 0 else -1.0 for number in vector)
        end = "ok" if read_matrix(outcome).rows == (vector,) * case.get("inputs", 1) else "other vectors"
    else:
        end = outcome["code"] if outcome["error"] == "request" else outcome["error"]
    return "" if end in case["then"] else f"{end} instead of {' or '.join(case['then'])}: {outcome.get('message')}"


def test_a_hostile_answer_ends_its_call_as_the_table_says() -> None:
    """Those of the other languages play this section in their own tests, which take it from the same table."""
    complaints = {}
    with Adapter(CLIENTS["Python"], HOSTILE_WORKER, max_restarts=10_000, **HOSTILE_OPTIONS) as adapter:
        for name, case in hostile_worker.cases("answers"):
            outcome = adapter.wait(
                adapter.begin("embed", inputs=[name] * case.get("inputs", 1), **case.get("request", {}))
            )
            complaints[name] = complaint_about(case, outcome)
        adapter.finish()
    assert {name: why for name, why in complaints.items() if why} == {}


@all_languages
def test_a_hostile_answer_in_fewer_bits_ends_its_call_as_the_table_says(language: str) -> None:
    complaints = {}
    with Adapter(CLIENTS[language], HOSTILE_WORKER, max_restarts=10_000, **HOSTILE_OPTIONS) as adapter:
        for name, case in hostile_worker.cases("precision"):
            inputs = [name] * case.get("inputs", 1)
            outcome = adapter.wait(adapter.begin("embed", inputs=inputs, precision=case["precision"]))
            complaints[name] = complaint_about(case, outcome)
        adapter.finish()
    assert {name: why for name, why in complaints.items() if why} == {}


@all_languages
def test_a_hostile_answer_to_tokenize_ends_its_call_as_the_table_says(language: str) -> None:
    ends = {}
    with Adapter(CLIENTS[language], HOSTILE_WORKER, max_restarts=10_000, **HOSTILE_OPTIONS) as adapter:
        for name, case in hostile_worker.cases("tokenize"):
            count = case.get("inputs", 1)
            outcome = adapter.wait(adapter.begin("tokenize", inputs=[name] * count, offsets=True))
            if outcome["ok"]:
                ranges = case["value"][0] if case.get("member") == "offsets" else [[0, 1]]
                end = "ok" if outcome["offsets"] == [ranges] * count else f"other offsets: {outcome['offsets']}"
            else:
                end = outcome["code"] if outcome["error"] == "request" else outcome["error"]
            if end not in case["then"]:
                ends[name] = f"{end} instead of {' or '.join(case['then'])}: {outcome.get('message')}"
        adapter.finish()
    assert ends == {}


@all_languages
def test_a_hostile_start_ends_the_call_as_the_table_says(language: str) -> None:
    def play(name: str, case: hostile_worker.Case) -> str:
        worker, options = (*HOSTILE_WORKER, "--start", name), HOSTILE_OPTIONS | {"max_restarts": 0}
        if language == "Python":  # here: an interpreter for each client would cost ten times as much as the clients
            with EmbedClient(python_adapter.client_options(list(worker), options)) as client:
                try:
                    return complaint_about(case, {"ok": True} | python_adapter.outcome_of(client.embed_detailed(["x"])))
                except BridgeError as error:
                    return complaint_about(case, python_adapter.failure_of(error))
        with Adapter(CLIENTS[language], worker, **options) as adapter:
            complaint = complaint_about(case, adapter.wait(adapter.begin("embed", inputs=["x"])))
            adapter.finish()
            return complaint

    cases = dict(hostile_worker.cases("starts"))
    with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
        complaints = dict(zip(cases, pool.map(play, cases, cases.values()), strict=True))
    assert {name: why for name, why in complaints.items() if why} == {}
