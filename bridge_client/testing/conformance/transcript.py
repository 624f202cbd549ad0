"""Transcripts: the files of the conformance suite, read and checked. No processes.

A transcript is a file of JSON lines. The first is its head, `{"drives": "worker"}` or `{"drives": "client"}`:

| member of the head | meaning |
|---|---|
| `arguments` | added to the worker's command; `{models}` in them is the folder of the test models |
| `environment` | set for the worker, likewise |
| `workers` | (client) flags of the fake worker: the n-th process takes the n-th list, the last one again and again |
| `worker` | (client) `"real"`: the client drives the real worker, with `arguments` |
| `launcher` | (client) `true`: a process that waits for the worker stands between the client and it |
| `options` | (client) what is put into `CONFORMANCE_OPTIONS` |

Every other line is one step. `{"rules": ["F2"], "about": "…"}` is a heading: the steps below prove these rules.

| step | what the runner does |
|---|---|
| `send` | writes a JSON value as one line |
| `raw`, `raw_base64` | writes these bytes as they are, without a newline of its own |
| `expect` | reads one answer, which must fit the pattern |
| `expect_any_order` | reads as many answers as there are patterns; each must fit another one |
| `expect_silence` | waits so many seconds, in which nothing may be answered |
| `expect_stderr` | waits until all of standard error so far fits |
| `reference` | (client) asks the real worker itself, and remembers its answer's vectors under the name of `save` |
| `expect_sent` | (client) waits until what the client's workers have seen of it fits |
| `close` | closes standard input |
| `close_output` | closes the reading end of standard output |
| `signal` | sends this signal, `to` the process whose pid was saved under a name; on Windows KILL terminates |
| `expect_gone` | waits until the process whose pid was saved has ended and been reaped |
| `expect_exit` | waits for the end; the status must fit, and no answer may be left |

A transcript without `expect_exit` ends with `close` and `expect_exit` 0. `times` repeats a step; in it
`{"$n": 5}` is 5, 6, 7 … and `{"$n": "text {}"}` counts from `text 0`. `{"$repeat": ["x", 257]}` is a long string, or
list. Patterns are described in `patterns.py`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bridge_client.testing.conformance.patterns import check_pattern

TRANSCRIPTS = Path(__file__).with_name("transcripts")


class Side(StrEnum):
    """What a transcript drives."""

    WORKER = "worker"
    CLIENT = "client"


_KINDS = {
    "send": {"times"},
    "raw": {"times"},
    "raw_base64": {"times"},
    "expect": {"times"},
    "expect_any_order": {"times"},
    "expect_silence": set(),
    "expect_stderr": set(),
    "expect_sent": set(),
    "reference": {"save"},
    "close": set(),
    "close_output": set(),
    "signal": {"to"},
    "expect_gone": set(),
    "expect_exit": set(),
}
_HEAD = {"drives", "arguments", "environment", "workers", "worker", "launcher", "options"}
_CLIENT_ONLY = {"workers", "worker", "launcher", "options"}


class TranscriptError(Exception):
    """A transcript that cannot be played; the message says which line is wrong, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that the runner does; `value` is a list of values where the step has several.

    Attributes:
        line: Where it stands in its file, 1-based.
        kind: The name of its member.
        to: The saved pid that a signal goes to.
        save: The name of what is remembered.
        heading: The rules and the subject that it stands under.
    """

    line: int
    kind: str
    value: Any
    to: str | None = None
    save: str = ""
    heading: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """One file; `rules` are all that its headings name."""

    name: str
    side: Side
    steps: tuple[Step, ...]
    rules: frozenset[str] = frozenset()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: tuple[tuple[str, ...], ...] = ((),)
    is_with_real_worker: bool = False
    is_behind_launcher: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def why_not_on_windows(self) -> str:
        """Why it cannot be played on Windows; empty where it can."""
        for step in self.steps:
            if step.kind == "signal" and step.value != "KILL":
                return f"Windows has no SIG{step.value} from another process"
            if step.kind == "close_output":
                return "a read that waits cannot be ended on Windows, so nobody can close the output under it"
        return ""


def read_transcripts(folder: Path) -> list[Transcript]:
    """Read every `*.jsonl` of a folder, in the order of their names.

    Raises:
        TranscriptError: One of them cannot be played, or there is none.
    """
    transcripts = [read_transcript(path) for path in sorted(folder.glob("*.jsonl"))]
    if not transcripts:
        raise TranscriptError(f"there is no transcript in {folder}: name the folder with --transcripts")
    return transcripts


def read_transcript(path: Path) -> Transcript:
    """Read one transcript.

    Raises:
        TranscriptError: It cannot be played.
    """
    lines = path.read_text("utf-8").splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    head: dict[str, Any] = {}
    rules: list[str] = []
    steps: list[Step] = []
    heading = ""
    number = 0
    try:
        for number, line in numbered:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("a step is an object")
            if not head:
                head = _checked_head(value)
            elif "rules" in value:
                heading = _heading(value)
                rules += value["rules"]
            else:
                steps.append(_step(number, value, heading))
        if not head:
            raise ValueError("there is no head")
    except (ValueError, KeyError, TypeError) as error:
        raise TranscriptError(f"{path.name}:{number}: {error}") from None
    if not any(step.kind == "expect_exit" for step in steps):
        end = "the end, and all that was written before"
        steps.append(Step(line=number, kind="close", value=True, heading=end))
        steps.append(Step(line=number, kind="expect_exit", value=0, heading=end))
    return Transcript(
        name=path.stem,
        side=Side(head["drives"]),
        steps=tuple(steps),
        rules=frozenset(rules),
        arguments=tuple(head.get("arguments", ())),
        environment=head.get("environment", {}),
        workers=tuple(tuple(flags) for flags in head.get("workers", ((),))),
        is_behind_launcher=head.get("launcher") is True,
        is_with_real_worker=head.get("worker") == "real",
        options=head.get("options", {}),
    )


def _checked_head(head: dict[str, Any]) -> dict[str, Any]:
    if unknown := set(head) - _HEAD:
        raise ValueError(f"the head has an unknown member {sorted(unknown)[0]!r}")
    if Side(head["drives"]) is Side.WORKER and (stray := set(head) & _CLIENT_ONLY):
        raise ValueError(f"{sorted(stray)[0]!r} is for transcripts that drive a client")
    return head


def _heading(value: dict[str, Any]) -> str:
    if set(value) != {"rules", "about"}:
        raise ValueError("a heading has `rules` and `about`")
    return f"{', '.join(value['rules'])}: {value['about']}"


def _step(number: int, value: dict[str, Any], heading: str) -> Step:
    kinds = set(value) & set(_KINDS)
    if len(kinds) != 1:
        raise ValueError(f"a step does one thing: {', '.join(sorted(value))}")
    (kind,) = kinds
    if stray := set(value) - {kind} - _KINDS[kind]:
        raise ValueError(f"`{kind}` has no member {sorted(stray)[0]!r}")
    if not heading:
        raise ValueError("a step stands under a heading with the rules that it proves")
    expanded: Any = value[kind]
    if "times" in _KINDS[kind]:
        expanded = [_expand(value[kind], count) for count in range(value.get("times", 1))]
    match kind:
        case "raw":
            expanded = b"".join(text.encode() for text in expanded)
        case "raw_base64":
            expanded = b"".join(base64.b64decode(text, validate=True) for text in expanded)
        case "expect_any_order":
            expanded = [pattern for patterns in expanded for pattern in patterns]
        case _:
            pass
    if kind.startswith("expect"):
        check_pattern(expanded)
    return Step(line=number, kind=kind, value=expanded, to=value.get("to"), save=value.get("save", ""), heading=heading)


def _expand(value: Any, count: int) -> Any:
    """Write out `$repeat` and `$n`."""
    match value:
        case {"$repeat": [inner, int() as times]} if len(value) == 1:
            return _expand(inner, count) * times
        case {"$n": int() as first} if len(value) == 1:
            return first + count
        case {"$n": str() as template} if len(value) == 1:
            return template.replace("{}", str(count))
        case dict():
            return {name: _expand(inner, count) for name, inner in value.items()}
        case list():
            return [_expand(inner, count) for inner in value]
        case _:
            return value


def rules_of(page: str) -> Iterator[str]:
    """Yield the names of the rules of a protocol page, in its order: `[F1]`."""
    for part in page.split("[")[1:]:
        name = part.partition("]")[0]
        if name[:1].isupper() and name[1:].isdigit():
            yield name
