"""`make soak`: the chaos runs as tests, with the figures in their output."""

from __future__ import annotations

import importlib.util
import os
import time

import numpy as np
import pytest

from tests.client import interruptions
from tests.soak import grammar
from tests.soak.chaos import SLOW_FAKE, is_clean, kill_under_load, measured, random_rounds
from tests.worker.harness import ROOT, WorkerProcess, cosines, matrix_of

STREAMS_S = float(os.environ.get("SOAK_STREAMS_S", "120"))

DEFAULT_MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def test_two_hundred_kills_under_twenty_thousand_requests_lose_nothing_and_blame_nobody() -> None:
    tally = measured(lambda tally: kill_under_load(tally, 1, 20_000, 32, 200, ()))
    print(tally.describe())
    assert is_clean(tally)
    assert (tally.kills, tally.blamed) == (200, 0)
    assert tally.right == 20_000


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_with_a_worker_that_starts_at_once(seed: int) -> None:
    tally = measured(lambda tally: kill_under_load(tally, seed, 20_000, 32, 200, SLOW_FAKE))
    print(tally.describe())
    assert is_clean(tally)
    assert tally.blamed == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_faults_lose_nothing(seed: int) -> None:
    tally = measured(lambda tally: random_rounds(tally, seed, 20))
    print(tally.describe())
    assert is_clean(tally)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_hundred_forks_at_a_start_hang_nobody() -> None:
    interruptions.fork_at_a_start(100)


def test_a_thousand_signals_into_a_busy_client_hang_nobody() -> None:
    answered, refused = interruptions.signals_into_a_busy_client(1000)
    print(f"{answered} calls of handlers were answered, {refused} refused")
    assert answered + refused >= 1000
    interruptions.signals_that_close(100)


@pytest.mark.timeout(STREAMS_S + 600)
def test_half_read_streams_that_the_collector_frees_hang_nobody() -> None:
    until = time.monotonic() + STREAMS_S
    count = interruptions.collected_iterators(iter(lambda: time.monotonic() < until, False))
    print(f"{count} streams in {STREAMS_S:g} s")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not there")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_gives_right_vectors_in_every_start(precision: str) -> None:
    """Wrong vectors came in one start of eleven, for good, where two requests ran at once in some shapes."""
    texts = [" ".join(["rain", "on", "a", "hill"] * 64)[: 4 + 9 * number % 600] for number in range(240)]
    with WorkerProcess(model=DEFAULT_MODEL) as cpu:
        expected = matrix_of(cpu.ask({"inputs": texts}))
    smallest = []
    for start in range(20):
        with WorkerProcess("--provider", "openvino", "--openvino-precision", precision, model=DEFAULT_MODEL) as worker:
            pieces = [texts[first : first + 6] for first in range(0, len(texts), 6)]
            worker.send(*({"id": number, "inputs": piece} for number, piece in enumerate(pieces)))
            answers = {answer["id"]: answer for answer in (worker.receive() for _ in pieces)}
            if answers[0].get("code") == "model_load_failed":
                pytest.skip(answers[0]["message"])
            found = np.concatenate([matrix_of(answers[number]) for number in range(len(pieces))])
        smallest.append(float(cosines(found, expected).min()))
        print(f"start {start}: {smallest[-1]:.7f}")
    assert min(smallest) >= {"float32": 0.9999, "bfloat16": 0.999}[precision]


@pytest.mark.parametrize("seed", range(1, 7))
def test_lines_made_by_a_grammar_are_each_answered_once_rightly_and_in_order(seed: int) -> None:
    outcome = grammar.play(seed, 10_000)
    print(outcome)
    assert outcome.lines > 9_000
    assert outcome.vectors > 10_000
