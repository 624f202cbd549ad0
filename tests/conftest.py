"""What holds for every test."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell starts background jobs with Ctrl-C ignored, and every child would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
