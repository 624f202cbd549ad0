"""All cores or one for a batch alone: the choice, with made-up times."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest

from embed_worker.config import RuntimeOptions
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.width import Width
from tests.worker.test_tokenizer import plan_for

QUIET = {True: 3.0, False: 5.0}
BUSY = {True: 9.0, False: 5.0}  # another core is somebody else's


def wide_runs(width: Width, count: int, cost: Callable[[bool], float], tokens: int = 24) -> list[bool]:
    """Run a batch so often; return which runs used all cores."""
    chosen = []
    for _ in range(count):
        is_wide = width.is_wide_for(tokens)
        width.took(tokens, cost(is_wide) * tokens, is_wide=is_wide)
        chosen.append(is_wide)
    return chosen


def test_on_a_quiet_machine_one_run_in_some_hundred_is_on_one_core() -> None:
    runs = wide_runs(Width(), 5000, QUIET.__getitem__)
    assert runs[:4] == [True] * 4
    assert 10 <= runs.count(False) <= 20
    assert runs[1000:].count(False) <= 8


def test_beside_others_a_lone_text_is_soon_on_one_core_and_returns_when_they_are_gone() -> None:
    width = Width()
    wide_runs(width, 3000, QUIET.__getitem__)
    busy = wide_runs(width, 1000, BUSY.__getitem__)
    assert busy[:20].count(True) <= 12
    assert busy[20:].count(True) <= 1000 / 15
    quiet = wide_runs(width, 1000, QUIET.__getitem__)
    assert quiet[75:].count(False) <= 10


def test_a_worker_that_begins_beside_others_finds_out() -> None:
    assert wide_runs(Width(), 100, BUSY.__getitem__)[12:].count(True) <= 12


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_move_the_choice(seed: int) -> None:
    chance = random.Random(seed)
    runs = wide_runs(Width(), 3000, lambda is_wide: QUIET[is_wide] * chance.lognormvariate(0, 0.3))
    assert runs[200:].count(False) < 0.05 * len(runs)


def test_threads_that_are_slow_to_wake_are_not_judged_by_their_first_runs() -> None:
    width = Width()
    wide_runs(width, 100, BUSY.__getitem__)
    in_a_row = 0

    def cost(is_wide: bool) -> float:
        nonlocal in_a_row
        in_a_row = in_a_row + 1 if is_wide else 0
        return QUIET[is_wide] * (3 if is_wide and in_a_row <= 2 else 1)

    assert wide_runs(width, 300, cost)[150:].count(False) <= 5


def test_a_first_run_that_takes_long_does_not_make_one_core_look_fast() -> None:
    taken = iter([20 * QUIET[True]])
    runs = wide_runs(Width(), 100, lambda is_wide: next(taken, QUIET[is_wide]))
    assert runs.count(False) <= 8


def test_some_long_runs_after_each_rest_are_no_change() -> None:
    width = Width()
    wide_runs(width, 1000, QUIET.__getitem__)
    slower = itertools.cycle([15.0, 4.0, 2.0, *[1.0] * 47])
    assert wide_runs(width, 1000, lambda is_wide: QUIET[is_wide] * next(slower)).count(False) <= 8


def test_sizes_are_told_apart() -> None:
    """A neighbour may cost a long text nothing and a short one much; and a long one after a short one is no change."""
    width = Width()
    runs: dict[int, list[bool]] = {8: [], 200: []}
    for _ in range(500):
        for tokens, cost in ((8, BUSY), (200, QUIET)):
            runs[tokens] += wide_runs(width, 1, cost.__getitem__, tokens)
    assert runs[8].count(True) < 50
    assert runs[200].count(False) < 15


class Clock:
    """Seconds that pass only in a session."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_backend_takes_what_is_faster_alone_and_one_thread_in_company(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    backend = OnnxBackend.load(plan_for("bert-mean"), RuntimeOptions(), threads=2, clock=clock)
    backend.use_all_cores()
    wide, run, sessions = backend._alone, backend._run, []

    def slowly(session: object, batch: TokenBatch) -> object:
        sessions.append("wide" if session is wide else "narrow")
        clock.now += BUSY[session is wide]
        return run(session, batch)

    monkeypatch.setattr(backend, "_run", slowly)
    batch = TokenBatch(np.ones((1, 8), np.int64), np.ones((1, 8), np.int64))
    for _ in range(30):
        backend.embed(batch, exclusive=True)
    assert sessions[:4] == ["wide"] * 4
    assert sessions[12:].count("narrow") > 12
    sessions.clear()
    for _ in range(30):
        backend.embed(batch, exclusive=False)
    assert set(sessions) == {"narrow"}
