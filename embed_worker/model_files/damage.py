"""What a file really is that cannot be read: a pointer, a web page, a part of itself. Each answer completes "it is"."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

from embed_worker.model_files.onnx_outline import is_whole

_HEAD_BYTES = 512
_AGAIN = "get it again"


def damage_of(file: Path) -> str | None:
    """Return what a file is instead of a whole one of its kind, with the way out.

    None where it may be right, or cannot be read.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
            if (impostor := impostor_in(head)) is not None:
                return impostor
            if file.suffix == ".json":
                return json_damage(head + opened.read())
            if file.suffix != ".onnx":
                return None
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return None if is_whole(data) else f"cut off at {len(data)} bytes: {_AGAIN}"
    except OSError:
        return None


def impostor_in(head: bytes) -> str | None:
    """Return what a file is by its first bytes, if it is none of a model."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return f"empty: {_AGAIN}"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer and not the file itself: install git-lfs and run `git lfs pull` in the folder"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page and not the file itself: download the file and not the page that shows it"
    return None


def json_damage(content: bytes) -> str | None:
    """Return why some bytes are not JSON; None where they are."""
    if (impostor := impostor_in(content[:_HEAD_BYTES])) is not None:
        return impostor
    try:
        json.loads(content)
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos :].rstrip()
        is_part = any(literal.startswith(rest) for literal in ("true", "false", "null", "-", "."))
        is_part = is_part or error.msg.startswith("Unterminated string")
    except UnicodeDecodeError as error:
        is_part = error.reason == "unexpected end of data"
    except (ValueError, RecursionError):
        is_part = False
    else:
        return None
    return f"cut off at {len(content)} bytes: {_AGAIN}" if is_part else "not JSON"
