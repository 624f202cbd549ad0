"""What people see while a corpus is embedded: a bar on a terminal, else a line a minute; and the sum at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from bridge_client.bulk.pipeline import Pipeline

_LINE_EVERY_S = 60.0


class Progress:
    """Rows, rows a second, the time that is left, and restarts of the worker."""

    def __init__(self, total: int | None, unit: str, restarts: Callable[[], int], *, is_quiet: bool) -> None:
        """Set up.

        Args:
            total: How much there is to read, in `unit`; None where nobody knows.
            unit: `rows` or `B`.
            restarts: How often the worker was restarted.
            is_quiet: Show nothing.
        """
        self._total = total
        self._unit = unit
        self._restarts = restarts
        self._is_quiet = is_quiet or sys.stderr is None
        self._bar: Any = None
        self._begun_s = self._line_s = time.monotonic()
        self._rows_before: int | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[Callable[[Pipeline], None]]:
        """Return what is to be called after each part."""
        if not self._is_quiet and sys.stderr.isatty() and find_spec("tqdm") is not None:
            from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

            self._bar = tqdm(total=self._total, unit=self._unit, unit_scale=True, file=sys.stderr, leave=False)
        try:
            yield self._update
        finally:
            if self._bar is not None:
                self._bar.close()

    def _update(self, pipeline: Pipeline) -> None:
        if self._is_quiet:
            return
        if self._rows_before is None:  # what an earlier run did is no speed of this one
            self._rows_before = pipeline.counts.rows
            self._begun_s = time.monotonic()
        if self._bar is not None:
            self._bar.n = pipeline.done
            self._bar.set_postfix_str(self._words(pipeline), refresh=True)
            return
        if time.monotonic() - self._line_s >= _LINE_EVERY_S:
            self._line_s = time.monotonic()
            share = f" {pipeline.done / self._total:.1%}" if self._total else ""
            sys.stderr.write(f"embed-worker embed:{share} {self._words(pipeline)}\n")
            sys.stderr.flush()

    def _words(self, pipeline: Pipeline) -> str:
        seconds = max(1e-9, time.monotonic() - self._begun_s)
        speed = (pipeline.counts.rows - (self._rows_before or 0)) / seconds
        return f"rows {pipeline.counts.rows:,}, {speed:,.0f} rows/s, restarts {self._restarts()}"
