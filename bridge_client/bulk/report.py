"""What people see while a corpus is embedded: one line that changes on a terminal, else a line a minute."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from bridge_client.bulk.pipeline import SoFar

_LINE_EVERY_S = 60.0
_TERMINAL_EVERY_S = 0.2
_ERASE = "\r\x1b[K"


class Progress:
    """Rows, rows a second, the time that is left, and restarts of the worker."""

    def __init__(
        self,
        total: int | None,
        restarts: Callable[[], int],
        *,
        is_quiet: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up.

        Args:
            total: How much there is to read, in rows or bytes; None where nobody knows.
            restarts: How often the worker was restarted.
            is_quiet: Show nothing.
            clock: Monotonic seconds.
        """
        self._total = total
        self._restarts = restarts
        self._is_quiet = is_quiet or sys.stderr is None
        self._is_terminal = not self._is_quiet and sys.stderr.isatty()
        self._every_s = _TERMINAL_EVERY_S if self._is_terminal else _LINE_EVERY_S
        self._clock = clock
        self._bar: Any = None
        self._begun_s = self._shown_s = clock()
        self._before: SoFar | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[Callable[[SoFar], None]]:
        """Return what is to be told, as often as one likes, how far the work is."""
        if self._is_terminal and find_spec("tqdm") is not None:
            from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

            # The words are ours: tqdm would take what an earlier run did for the speed of this one.
            form = "{percentage:3.0f}% |{bar}| {desc}" if self._total else "{desc}"
            self._bar = tqdm(total=self._total, bar_format=form, file=sys.stderr, leave=False, dynamic_ncols=True)
        try:
            yield self._update
        finally:
            if self._bar is not None:
                self._bar.close()
            elif self._is_terminal:
                sys.stderr.write(_ERASE)
                sys.stderr.flush()

    def _update(self, so_far: SoFar) -> None:
        now_s = self._clock()
        if self._before is None:  # what an earlier run did is no speed of this one
            self._before, self._begun_s = so_far, now_s
        if self._is_quiet or now_s - self._shown_s < self._every_s:
            return
        self._shown_s = now_s
        words = self._words(so_far, self._before, max(1e-9, now_s - self._begun_s))
        if self._bar is not None:
            self._bar.n = so_far.done
            self._bar.set_description_str(words, refresh=True)
            return
        share = f"{so_far.done / self._total:.1%} " if self._total else ""
        line = f"embed-worker embed: {share}{words}"
        sys.stderr.write(f"{_ERASE}{line}" if self._is_terminal else f"{line}\n")
        sys.stderr.flush()

    def _words(self, so_far: SoFar, before: SoFar, seconds: float) -> str:
        words = [f"{so_far.rows:,} rows", f"{(so_far.rows - before.rows) / seconds:,.0f} rows/s"]
        if self._total and (done := so_far.done - before.done) > 0:
            words.append(f"{_clock_time((self._total - so_far.done) / done * seconds)} left")
        return ", ".join([*words, f"{self._restarts()} restarts"])


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
