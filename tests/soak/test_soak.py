"""`make soak`: the chaos runs as tests, with the figures in their output."""

from __future__ import annotations

import pytest

from tests.soak.chaos import SLOW_FAKE, is_clean, kill_under_load, measured, random_rounds

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
