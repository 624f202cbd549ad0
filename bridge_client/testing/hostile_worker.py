"""A worker gone mad: `python -m bridge_client.testing.hostile_worker [--start ID]`, as conformance/hostile.json says.

The first text of a request names the case that is played; with `--start` the process plays a case of `starts` and
answers every `embed` rightly. An id is the case's name, and ` #n` behind it where it has several values.
Vectors are of 8 numbers, the first of them 1 and the others 0.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Case: TypeAlias = dict[str, Any]

DIMENSION = 8
VECTOR = (1.0, *[0.0] * (DIMENSION - 1))
_ANSWERS = ("answers", "tokenize", "precision")
TABLE = Path(__file__).parent / "conformance" / "hostile.json"


def cases(section: str) -> Iterator[tuple[str, Case]]:
    """Yield each case of the table with its id; one with `values` once for each, as `value`."""
    for case in json.loads(TABLE.read_text("utf-8"))[section]["cases"]:
        if "values" not in case:
            yield case["name"], case
        for number, value in enumerate(case.get("values", [])):
            yield f"{case['name']} #{number}", {**case, "value": value}


class HostileWorker:
    """One process; it reads a line, answers it, and reads the next."""

    def __init__(self, start: Case | None) -> None:
        self._start = start
        self._answers = {name: case for section in _ANSWERS for name, case in cases(section)}
        self._micro_batches = 0

    def run(self) -> int:
        """Serve until the end of input."""
        start = self._start or {}
        for _ in range(start.get("times", 1)):
            text = "\n".join(start.get("first", []))
            _write((text if start.get("is_glued") or not text else f"{text}\n").encode("latin-1"))
        for line in sys.stdin.buffer:
            request = json.loads(line)
            members = {"id": request["id"], "status": "ok"}
            match request["method"]:
                case "info":
                    self._play(start, members | _info())
                case "embed" | "tokenize" as method:
                    inputs = request["inputs"]
                    self._micro_batches += 1
                    played = self._answers[inputs[0]] if self._start is None else {}
                    right = _tokens(len(inputs)) if method == "tokenize" else _vectors(request)
                    self._play(played, members | right)
                case "ping":
                    _write(_line(members | {"message": "pong", "micro_batches": self._micro_batches}))
                case _:
                    _write(_line(members | {"cancelled": False}))
        return 0

    def _play(self, case: Case, right: dict[str, Any]) -> None:
        if size := case.get("stderr_bytes"):
            os.write(2, b"x" * size)
        wrong = {name: value for name, value in right.items() if name != case.get("without")}
        if "member" in case:
            wrong[case["member"]] = case["value"]
        told = json.dumps(right)
        lines = case.get("lines") or [json.dumps(wrong)]
        if deep := case.get("deep"):
            lines = [told[:-1] + ',"x":' + "[" * deep + "]" * deep + "}"]
        text = "\n".join(lines) + ("" if case.get("no_newline") else "\n")
        for name, value in (("{id}", str(right["id"])), ("{right}", told), ("{half}", told[: len(told) // 2])):
            text = text.replace(name, value)
        times = 1 if "first" in case else case.get("times", 1)
        _write(text.encode("latin-1") * times)
        if case.get("before") == "right":
            _write(_line(right))
        if "end" in case:
            os._exit(case["end"])


def _info() -> dict[str, Any]:
    limits = {
        "max_line_bytes": 2**25,
        "max_inputs": 2**14,
        "max_text_bytes": 2**20,
        "max_in_flight": 2**10,
        "max_in_flight_bytes": 2**26,
    }
    return {
        "protocol": 1,
        "version": "hostile",
        "pid": os.getpid(),
        "model": "hostile",
        "fingerprint": "00000000000000aa",
        "dimension": DIMENSION,
        "max_tokens": 512,
        "limits": limits,
    }


def _vectors(request: dict[str, Any]) -> dict[str, Any]:
    count = len(request["inputs"])
    row = {
        "base64_float16": struct.pack(f"<{DIMENSION}e", *VECTOR),
        "base64_ubinary": b"\x80",
    }.get(request["encoding_format"], struct.pack(f"<{DIMENSION}f", *VECTOR))
    return {
        "model": "hostile",
        "fingerprint": "00000000000000aa",
        "dimension": DIMENSION,
        "count": count,
        "embeddings_base64": base64.b64encode(row * count).decode("ascii"),
        "tokens": [1] * count,
        "truncated": [],
        "timing_ms": {"queue": 0.0, "tokenize": 0.0, "inference": 0.0, "total": 0.0},
    }


def _tokens(count: int) -> dict[str, Any]:
    return {
        "model": "hostile",
        "fingerprint": "00000000000000aa",
        "count": count,
        "tokens": [1] * count,
        "truncated": [],
        "offsets": [[[0, 1]]] * count,
    }


def _line(members: dict[str, Any]) -> bytes:
    return json.dumps(members).encode("ascii") + b"\n"


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def main(argv: Sequence[str] | None = None) -> int:
    """Be the hostile worker."""
    parser = argparse.ArgumentParser(prog="hostile_worker", description=__doc__, allow_abbrev=False)
    parser.add_argument("--supervised", action="store_true", help="accepted for the sake of the real command line")
    parser.add_argument("--start", metavar="ID", help="the case of `starts` to play")
    chosen = parser.parse_args(argv).start
    try:
        return HostileWorker(None if chosen is None else dict(cases("starts"))[chosen]).run()
    except OSError:  # nobody reads any more
        return 74


if __name__ == "__main__":
    sys.exit(main())
