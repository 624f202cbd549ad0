"""Progress on standard error, for people: only on a terminal, and only with the package tqdm."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from typing import TypeVar

T = TypeVar("T")


def shown(items: Collection[T], what: str, unit: str) -> Iterable[T]:
    """Iterate with a bar that says how many of the items are done."""
    if sys.stderr is None or not sys.stderr.isatty() or find_spec("tqdm") is None:
        return items
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    bar: Iterable[T] = tqdm(items, desc=what, unit=unit, leave=False, file=sys.stderr)
    return bar
