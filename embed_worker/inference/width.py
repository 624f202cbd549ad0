"""Whether a batch that runs alone is faster on all cores or on one, learned from how long batches take.

Beside processes that compute, the threads of one run wait for each other, and all cores may take twice as long as one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_TRIED = 3  # runs of the other way that are compared with what the chosen one usually takes
_WIN = 0.9  # the other way must take less than this of the time of the chosen one
_LOSS = 1.1  # and where it takes more than this, the trial is over
_CHANGE = 1.3  # the chosen way takes so much longer, or shorter, than it did: another time to try
# A run counts as so much longer than usual at the most, and usual is at most so much longer than any run. The first
# ones, and those after a rest, may take many times as long either way: pages of the weights come back, threads wake.
_OUTLIER = 2.0
_WEIGHT = 1 / 8  # of the latest run in what a run usually takes
_FIXED_TOKENS = 16  # about what a run costs beside its tokens
_SOONEST = 16  # runs until the other way is tried
# And at the most. One core tells little of what others do with the rest, so all cores are tried more often.
_LATEST = {True: 512, False: 64}
# Threads that have slept for long are woken on one core, and it takes some runs until they are on several.
_WARM_UP = {True: 3, False: 0}


class Width:
    """The choice for each size of a batch, in powers of two: what threads gain depends on it.

    Each keeps to one way. Now and then it tries the other one for a few runs, and changes when that was faster. Where
    the first run that counts was slower that was all, so that a quiet machine pays for one run in some hundred. Any
    thread may call; two at once spoil at most one trial.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin with all cores for every size; the clock tells seconds."""
        self._choices: dict[int, _Choice] = {}
        self._clock = clock

    def run(self, tokens: int, *, wide: Callable[[], T], narrow: Callable[[], T]) -> T:
        """Run a batch of so many tokens, padding included, one way or the other, and learn how long it took."""
        is_wide = self.is_wide_for(tokens)
        started_s = self._clock()
        result = wide() if is_wide else narrow()
        self.took(tokens, self._clock() - started_s, is_wide=is_wide)
        return result

    def is_wide_for(self, tokens: int) -> bool:
        """Choose for a batch of so many tokens, padding included; `took` is to be told of the run."""
        choice = self._choices.get(tokens.bit_length())
        if choice is None:
            choice = self._choices[tokens.bit_length()] = _Choice()
        return choice.next_is_wide

    def took(self, tokens: int, seconds: float, *, is_wide: bool) -> None:
        """Learn how long a run took."""
        self._choices[tokens.bit_length()].learn(seconds / (tokens + _FIXED_TOKENS), is_wide=is_wide)


@dataclass(slots=True)
class _Choice:
    """For one size; costs are in seconds a token.

    Attributes:
        runs_left: Before the other way is tried; 0 while it is.
        tried: Runs of the other way so far, without those that warm up, which count from below 0.
        ratio: The product of what they cost over what is usual.
        usual: What the chosen way costs, smoothed; 0 before its first run.
        compared: What was usual at the last trial.
    """

    is_wide: bool = True
    interval: int = _SOONEST
    runs_left: int = _SOONEST
    tried: int = 0
    ratio: float = 1.0
    usual: float = 0.0
    compared: float = 0.0

    @property
    def next_is_wide(self) -> bool:
        return self.is_wide if self.runs_left else not self.is_wide

    def learn(self, cost: float, *, is_wide: bool) -> None:
        if is_wide is not self.is_wide:
            self._try(cost)
            return
        before = min(self.usual or cost, _OUTLIER * cost)
        # In proportion: a run that waited for long weighs no more than one that was as much too short.
        self.usual = before ** (1 - _WEIGHT) * min(cost, _OUTLIER * before) ** _WEIGHT
        self.runs_left = max(0, self.runs_left - 1)
        if self.compared and not 1 / _CHANGE < self.usual / self.compared < _CHANGE:
            self.interval, self.runs_left, self.compared = _SOONEST, 0, self.usual
        if not self.runs_left:
            self.tried, self.ratio = -_WARM_UP[not self.is_wide], 1.0

    def _try(self, cost: float) -> None:
        self.tried += 1
        if self.tried <= 0:
            return
        self.ratio *= cost / self.usual
        mean = self.ratio ** (1 / self.tried)
        if self.tried < _TRIED and mean <= _LOSS:
            return
        if mean < _WIN:
            self.is_wide, self.usual, self.interval = not self.is_wide, self.usual * mean, _SOONEST
        self.compared = self.usual
        self.interval = self.runs_left = min(2 * self.interval, _LATEST[self.is_wide])
