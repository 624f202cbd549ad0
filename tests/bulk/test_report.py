"""What people see while a corpus is embedded."""

from __future__ import annotations

import importlib.util
import io
import sys
from typing import Any

import pytest

from bridge_client.bulk import report
from bridge_client.bulk.pipeline import SoFar


class Screen(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def shown(
    monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool, total: int | None = 10_000, is_quiet: bool = False
) -> str:
    """Show a job that an earlier run brought to 2,000 of 10,000 rows, and that goes on with 100 rows a second."""
    screen, now = Screen(is_terminal=is_terminal), [0.0]
    monkeypatch.setattr(sys, "stderr", screen)
    progress = report.Progress(total, lambda: 3, is_quiet=is_quiet, clock=lambda: now[0])
    with progress.shown() as update:
        for second in range(71):
            now[0] = 5.0 + second  # the worker starts meanwhile
            update(SoFar(rows=2000 + 100 * second, done=2000 + 100 * second))
    return screen.getvalue()


def test_a_log_gets_a_line_a_minute_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, is_terminal=False) == (
        "embed-worker embed: 75.0% 7,500 rows, 100 rows/s, 0:25 left, 3 restarts\n"
    )


def test_without_a_known_end_there_is_no_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, is_terminal=False, total=None) == (
        "embed-worker embed: 7,500 rows, 100 rows/s, 3 restarts\n"
    )


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_a_terminal_gets_one_line_that_changes_and_is_gone_at_the_end(
    has_tqdm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str, *rest: Any) -> Any:
        return importlib.util.find_spec(name, *rest) if has_tqdm else None

    monkeypatch.setattr(report, "find_spec", find_spec)
    said = shown(monkeypatch, is_terminal=True)
    lines = said.split("\r")
    assert "\n" not in said
    assert any("3,000 rows, 100 rows/s, 1:10 left, 3 restarts" in line for line in lines)
    assert any("9,000 rows, 100 rows/s, 0:10 left, 3 restarts" in line for line in lines)
    assert not lines[-1].removeprefix("\x1b[K").strip()


def test_hours_have_their_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "2:46:16 left" in shown(monkeypatch, is_terminal=False, total=7_500 + 997_600)


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, is_terminal=True, is_quiet=True) == ""
