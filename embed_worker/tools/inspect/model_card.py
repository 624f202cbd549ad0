"""The licence that a model's card states: the head of its README.md, between two lines of three dashes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

# A card may be long, its head is not.
_MAX_CHARACTERS = 65536
_MEMBER = re.compile(r"(license|license_name)\s*:\s*(.*)")


def licence_of(folder: Path) -> str | None:
    """Return the licence as the card abbreviates it, `mit` for instance; None where it has none.

    `license: other` has its name in `license_name`; a list of licences is told with commas.

    Reference: the description of model cards in the documentation of the Hugging Face hub.
    """
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as opened:
            lines = opened.read(_MAX_CHARACTERS).splitlines()
    except OSError:
        return None
    found: dict[str, list[str]] = {}
    key = ""
    for line in _head(lines):
        if match := _MEMBER.fullmatch(line):
            key = match[1]
            found[key] = _values(match[2])
        elif key and (item := re.fullmatch(r"\s*-\s+(.+)", line)):
            found[key] += _values(item[1])
        else:
            key = ""
    names = found.get("license", [])
    if names == ["other"]:
        names = found.get("license_name") or names
    return ", ".join(names) or None


def _head(lines: list[str]) -> Iterator[str]:
    """Yield the lines of the head; none where it never ends."""
    body = [place for place, line in enumerate(lines) if line.rstrip() == "---"]
    if len(body) > 1 and body[0] == 0:
        yield from (line.rstrip() for line in lines[1 : body[1]])


def _values(text: str) -> list[str]:
    """Read a scalar, or a list in one line, without comments and quotes."""
    text = re.sub(r"\s+#.*", "", text).strip()
    parts = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else [text]
    return [part for part in (part.strip().strip("\"'") for part in parts) if part]
