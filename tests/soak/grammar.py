"""Lines made by a grammar, right ones and wrong ones, and an oracle of what a worker may answer to each.

The oracle knows of every line whether it is numbered, which codes it may be answered with, and, where its vectors are
the model's plain ones, what they are. Every text has a mark in it, which must be on neither stream.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.worker.harness import ROOT, WorkerProcess, cosines, matrix_of, parse_answer

MARK = "planted"
_SECOND = "e5-prefix"  # comes and goes
_OK = frozenset({"ok"})
_INVALID = frozenset({"invalid_request"})
_NOT_A_LINE = frozenset({"parse_error"})
# A model that comes and goes may be anything at the moment that a request is looked at.
_PASSING = frozenset({"ok", "model_not_found", "model_load_failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What may be answered to one line.

    Attributes:
        id: None for an unnumbered answer.
        codes: The codes that are right; `ok` for a success.
        texts: Whose plain vectors the answer has; None where they are others.
    """

    line: int
    id: str | None
    codes: frozenset[str]
    texts: tuple[str, ...] | None = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    lines: int = 0
    answers: int = 0
    vectors: int = 0
    worst: float = 0.0


class Grammar:
    """Lines by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.texts = [f"{MARK} {seed} {number} " + "word " * (number % 40) for number in range(60)]
        self._line = 0
        self._number = 0

    def lines(self, count: int) -> Iterator[tuple[bytes, Expected | None]]:
        """Yield lines with what may be answered; None for a line that is not answered."""
        makers = [self._embed] * 10 + [self._control] * 3 + [self._wrong] * 3 + [self._noise] * 2 + [self._second] * 2
        for _ in range(count):
            self._line += 1
            yield self._random.choice(makers)()

    def _message(self, members: dict[str, Any], codes: frozenset[str], texts: Any = None) -> tuple[bytes, Expected]:
        request_id = None
        if self._random.random() < 0.6:
            self._number += 1
            request_id = f"r{self._number}"
            members = {"id": request_id, **members}
        if self._random.random() < 0.2 and "inputs" in members:
            members = {key: value for key, value in members.items() if key == "id"} | {
                "method": "embed",
                "params": {key: value for key, value in members.items() if key not in ("id", "method")},
            }
        expected = Expected(line=self._line, id=request_id, codes=codes, texts=texts)
        line = json.dumps(members, ensure_ascii="\\ud800" in json.dumps(members) or self._random.random() < 0.5)
        return line.encode() + self._end(), expected

    def _end(self) -> bytes:
        return self._random.choice([b"\n", b"\n", b"\r\n", b" \n"])

    def _some_texts(self) -> list[str]:
        return self._random.choices(self.texts, k=self._random.choice([0, 1, 1, 1, 2, 5, 40]))

    def _embed(self) -> tuple[bytes, Expected]:
        texts = self._some_texts()
        members: dict[str, Any] = {"inputs": texts[0] if len(texts) == 1 and self._random.random() < 0.5 else texts}
        plain = True
        if self._random.random() < 0.3:
            members["encoding_format"] = "base64"
        if self._random.random() < 0.2:
            members["dimensions"] = self._random.randint(1, 8)
            plain = False
        if self._random.random() < 0.1:
            members["deadline_ms"] = self._random.choice([0, 2**63 - 1])
        codes = frozenset({"deadline_exceeded"}) if members.get("deadline_ms") == 0 else _OK
        return self._message(members, codes, tuple(texts) if plain and codes == _OK else None)

    def _control(self) -> tuple[bytes, Expected]:
        members = self._random.choice(
            [{"method": "ping"}, {"method": "metrics"}, {"method": "info"}, {"method": "cancel", "target": "nobody"}]
        )
        return self._message(dict(members), _OK)

    def _wrong(self) -> tuple[bytes, Expected]:
        wrong: list[dict[str, Any]] = [
            {"inputs": 7}, {"inputs": [MARK, None]}, {"inputs": {"a": MARK}}, {"inputs": MARK, "dimensions": 0},
            {"inputs": MARK, "dimensions": 10**6}, {"inputs": MARK, "normalize": "yes"},
            {"inputs": MARK, "truncate": 1}, {"inputs": MARK, "prompt": 7}, {"inputs": MARK, "prompt_name": "nobody"},
            {"input": MARK}, {"inputs": MARK, "deadline_ms": -1}, {"inputs": MARK, "encoding_format": "hex"},
            {"method": "cancel"},
            {"method": "nothing"}, {"inputs": f"{MARK} \ud800"},
            {"inputs": MARK, "prompt": "a", "prompt_name": "query"},
        ]  # fmt: skip
        members = self._random.choice(wrong)
        codes = frozenset({"unknown_method"}) if members == {"method": "nothing"} else _INVALID
        line, expected = self._message(members, codes)
        return line, expected

    def _noise(self) -> tuple[bytes, Expected | None]:
        if self._random.random() < 0.3:
            return self._random.choice([b"\n", b"  \n", b"\r\n", b"\t\n"]), None
        content = self._random.choice([
            b"{", b"]", b'{"inputs": "' + MARK.encode(), MARK.encode(), b"\xff\xfe", b"[1,2]", b"null", b"7",
            bytes(self._random.choices([*range(32, 127)], k=30)) + b"{", b'{"inputs": "a"} {"inputs": "b"}',
        ])  # fmt: skip
        return content + b"\n", Expected(line=self._line, id=None, codes=_NOT_A_LINE | _INVALID)

    def _second(self) -> tuple[bytes, Expected]:
        method = self._random.choice(["load_model", "unload_model", "embed", "embed"])
        if method == "embed":
            return self._message({"inputs": self._some_texts(), "model": _SECOND}, _PASSING)
        return self._message({"method": method, "model": _SECOND}, _PASSING)


def play(seed: int, count: int) -> Outcome:
    """Send lines, cut anywhere, to a real worker; check every answer, their order, and both streams.

    Raises:
        AssertionError: A line is not answered once, in its place and rightly; or a text is on a stream.
    """
    grammar = Grammar(seed)
    cuts = random.Random(seed + 1)
    expected: list[Expected] = []
    sent = bytearray()
    with WorkerProcess("--models-dir", str(ROOT / "tests" / "models"), "--log-level", "debug") as worker:
        plain = {text: matrix_of(worker.ask({"inputs": text}))[0] for text in grammar.texts}
        asked = len(plain)
        for line, right in grammar.lines(count):
            sent += line
            if right is not None:
                expected.append(right)
            if len(sent) > cuts.randint(1, 60_000):
                cut = cuts.randint(1, len(sent))
                worker.send_raw(bytes(sent[:cut]))
                del sent[:cut]
        worker.send_raw(bytes(sent))
        worker.close_input()
        answers = []
        while (raw := worker.receive_line()) is not None:
            assert MARK.encode() not in raw
            answers.append(parse_answer(raw))
        assert worker.wait() == 0
        assert MARK not in worker.all_stderr()
    return _judge(expected, answers, plain, first_line=asked)


def _judge(
    expected: list[Expected], answers: list[dict[str, Any]], plain: dict[str, Any], *, first_line: int
) -> Outcome:
    outcome = Outcome(lines=len(expected), answers=len(answers))
    numbered = {answer["id"]: answer for answer in answers if answer["id"] is not None}
    sequence = [answer for answer in answers if answer["id"] is None]
    assert len(numbered) + len(sequence) == len(answers), "an id is answered twice"
    unnumbered = [right for right in expected if right.id is None]
    assert [answer["line"] - first_line for answer in sequence] == [right.line for right in unnumbered]
    assert numbered.keys() == {right.id for right in expected if right.id is not None}
    pairs = [*zip(unnumbered, sequence, strict=True)]
    pairs += [(right, numbered[right.id]) for right in expected if right.id is not None]
    for right, answer in pairs:
        code = answer["status"] if answer["status"] == "ok" else answer["code"]
        assert code in right.codes, (right, answer)
        if right.texts:
            wanted = np.stack([plain[text] for text in right.texts])
            outcome.worst = max(outcome.worst, float((1 - cosines(matrix_of(answer), wanted)).max()))
            outcome.vectors += len(wanted)
    assert outcome.worst < 1e-6
    return outcome
