"""What a tool says: its report on standard output, what it refuses on standard error.

A folder, a file or a model card may be called anything; each line stays one line, and moves no terminal's cursor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from embed_worker.errors import printable


def show(lines: Iterable[str]) -> None:
    """Print a report for people."""
    for line in lines:
        print(printable(line))


def refuse(tool: str, problem: object, status: int) -> int:
    """Return the exit status of a tool that could not do something, after it has said what in one line."""
    print(f"embed-worker {tool}: {printable(str(problem))}", file=sys.stderr)
    return status
