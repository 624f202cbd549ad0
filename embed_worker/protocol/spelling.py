"""Which of some names was meant: for messages about names that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the name that a word was probably meant to be, upper and lower case alike; None where none is close."""
    by_spelling = {name[:64].lower(): name for name in known}
    close = difflib.get_close_matches(word[:64].lower(), by_spelling, n=1, cutoff=likeness)
    return by_spelling[close[0]] if close else None
