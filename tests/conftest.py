"""What holds for every test."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

from tests.platforms import wine_gaps

# A machine under load, or an emulated one, proves nothing by its time.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under Wine, skip by name what is Wine's own fault."""
    if not wine_gaps.is_wine():
        return
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname in wine_gaps.SKIPPED:
            item.add_marker(pytest.mark.skip(reason=wine_gaps.SKIPPED[item.originalname]))


def pytest_configure() -> None:
    """A shell starts background jobs with Ctrl-C ignored, and every child would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
