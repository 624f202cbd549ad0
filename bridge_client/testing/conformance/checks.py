"""What holds for every line, whatever a transcript expects.

Three kinds: a worker's answers, a client's outcomes, and what a client writes to its workers. Written against the page
and not with the codec of `embed_worker`: the suite is a second reading of the protocol.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from bridge_client.testing.conformance.matrices import read_matrix

RETRYABLE = {
    "parse_error": False,
    "line_too_long": False,
    "invalid_request": False,
    "unknown_method": False,
    "duplicate_id": False,
    "too_many_inputs": False,
    "input_too_long": False,
    "model_not_found": False,
    "model_load_failed": False,
    "deadline_exceeded": True,
    "cancelled": False,
    "shutting_down": True,
    "out_of_memory": True,
    "inference_failed": False,
    "non_finite_embedding": False,
    "internal_error": True,
}
KINDS = {
    "request", "timeout", "queue_full", "closed", "poisoned_input", "start", "worker_died", "worker_hung",
    "protocol_mismatch", "model_changed", "circuit_open", "cancelled", "invalid_argument",
}  # fmt: skip


class BrokenRule(Exception):
    """A line that no worker, or no client, may write; the message says why."""


def read_object(line: bytes) -> dict[str, Any]:
    """Read one line as strictly as the protocol is.

    Raises:
        BrokenRule: It is not one JSON object in UTF-8 that ends with a newline.
    """
    if not line.endswith(b"\n"):
        raise BrokenRule("the last line has no newline")
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise BrokenRule(f"the line is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BrokenRule("the line is not an object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# A worker's answers -----------------------------------------------------------------------------------------------


def check_answer(answer: Mapping[str, Any]) -> None:
    """Check what every answer of a worker must be.

    Raises:
        BrokenRule: It is not.
    """
    _require(next(iter(answer), None) == "id", "`id` is not the first member")
    request_id = answer["id"]
    _require(request_id is None or type(request_id) in (str, int), "the id is not one")
    if request_id is None:
        line = answer.get("line")
        _require(type(line) is int and line >= 1, "an answer without an id has no `line`")
    else:
        _require("line" not in answer, "an answer with an id has a `line`")
    match answer.get("status"):
        case "ok":
            if "embeddings" in answer or "embeddings_base64" in answer:
                _check_vectors(answer)
            elif "tokens" in answer:
                _check_tokens(answer)
        case "error":
            _check_error(answer)
        case _:
            raise BrokenRule('`status` is neither "ok" nor "error"')


def _check_error(answer: Mapping[str, Any]) -> None:
    code = answer.get("code")
    _require(code in RETRYABLE, f"{code!r} is not an error code")
    _require(answer.get("retryable") is RETRYABLE[str(code)], f"`retryable` of {code} is not {RETRYABLE[str(code)]}")
    _require(isinstance(answer.get("message"), str) and bool(answer["message"]), "an error without a message")
    index = answer.get("index", 0)
    _require(type(index) is int and index >= 0, "`index` is not the place of an input")


def _check_vectors(answer: Mapping[str, Any]) -> None:
    _require(not {"embeddings", "embeddings_base64"} <= set(answer), "the vectors are there twice")
    _check_results(answer)
    _require(bool(re.fullmatch("[0-9a-f]{16}", str(answer.get("fingerprint")))), "`fingerprint` is not 16 hex digits")
    timing = answer.get("timing_ms")
    _require(isinstance(timing, dict) and {"queue", "tokenize", "inference", "total"} <= set(timing), "no `timing_ms`")


def _check_results(answer: Mapping[str, Any]) -> None:
    """Check what answers and outcomes have in common."""
    try:
        matrix = read_matrix(answer)
    except ValueError as error:
        raise BrokenRule(str(error)) from None
    _require(all(norm > 0 for norm in matrix.norms()), "a vector is zero")
    _check_lengths(answer)


def _check_tokens(answer: Mapping[str, Any]) -> None:
    """Check a `tokenize`: an answer or an outcome."""
    _require(type(answer.get("count")) is int, "`count` is not an integer")
    _check_lengths(answer)
    offsets = answer.get("offsets", [[]] * answer["count"])
    _require(isinstance(offsets, list) and len(offsets) == answer["count"], "`offsets` is not one list for each input")
    for index, ranges in enumerate(offsets):
        are_ranges = isinstance(ranges, list) and all(
            isinstance(each, list)
            and len(each) == 2
            and all(type(place) is int for place in each)
            and 0 <= each[0] <= each[1]
            for each in ranges
        )
        _require(are_ranges, "`offsets` does not hold ranges")
        _require(len(ranges) <= answer["tokens"][index], "there are more ranges than tokens")


def _check_lengths(answer: Mapping[str, Any]) -> None:
    count, tokens, truncated = answer["count"], answer.get("tokens"), answer.get("truncated")
    are_numbers = isinstance(tokens, list) and all(type(number) is int and number >= 0 for number in tokens)
    _require(are_numbers and len(answer["tokens"]) == count, "`tokens` is not one number for each input")
    _require(isinstance(truncated, list), "`truncated` is not a list")
    are_indexes = all(type(index) is int and 0 <= index < count for index in answer["truncated"])
    _require(are_indexes, "`truncated` does not hold indexes of inputs")
    _require(isinstance(answer.get("model"), str) and isinstance(answer.get("fingerprint"), str), "no model is named")


# A client's outcomes ----------------------------------------------------------------------------------------------


def check_outcome(outcome: Mapping[str, Any], open_calls: dict[int, str]) -> None:
    """Check what every line of an adapter must be.

    Args:
        outcome: The line.
        open_calls: The operations of the calls that have no outcome yet; this one is taken out.

    Raises:
        BrokenRule: It is not.
    """
    call = outcome.get("call")
    _require(type(call) is int and call in open_calls, f"an outcome of call {call!r}, which is not open")
    operation = open_calls.pop(int(str(call)))
    if outcome.get("ok") is True:
        if operation == "embed":
            _check_results(outcome)
        elif operation == "tokenize":
            _check_tokens(outcome)
        return
    _require(outcome.get("ok") is False, "`ok` is neither true nor false")
    _require(outcome.get("error") in KINDS, f"{outcome.get('error')!r} is not a kind of error")
    _require(type(outcome.get("retryable")) is bool, "`retryable` is neither true nor false")
    _require(isinstance(outcome.get("message"), str), "there is no `message`")
    _require(
        ("code" in outcome) == (outcome["error"] == "request"), "`code` belongs to the kind `request`, and only to it"
    )


# What a client's workers were sent --------------------------------------------------------------------------------


def read_sent(folder: Path) -> list[dict[str, Any]]:
    """Read what the processes of a played worker noted, in the order of their starts.

    Returns:
        For each: `pid`; `gap_s` since the start of the process before; `requests`, and how many of each method:
        `counts`; `bytes` of the longest line;
        `is_complete`: the last line has its newline; `end_of_input`: its standard input was closed.

    Raises:
        BrokenRule: Something that was written is not one request in a line.
    """
    told: list[dict[str, Any]] = []
    before_s: float | None = None
    for number in itertools.count():
        if not (folder / f"{number}.json").exists():
            break
        born = json.loads((folder / f"{number}.json").read_text("ascii"))
        *lines, rest = (folder / f"{number}.sent").read_bytes().split(b"\n")
        requests = [read_object(line + b"\n") for line in lines]
        told.append(
            {
                "pid": born["pid"],
                "gap_s": None if before_s is None else born["started_s"] - before_s,
                "requests": requests,
                "counts": Counter(str(request.get("method", "embed")) for request in requests),
                "bytes": max(map(len, lines), default=0),
                "is_complete": not rest,
                "end_of_input": (folder / f"{number}.end").exists(),
            }
        )
        before_s = born["started_s"]
    return told


def check_sent(sent: list[dict[str, Any]], flags: list[list[str]]) -> None:
    """Check what every host must do, whatever its worker does.

    Args:
        sent: As `read_sent` returns it.
        flags: The n-th process's, the last ones again and again.

    Raises:
        BrokenRule: It did something else.
    """
    used: set[str] = set()
    for number, process in enumerate(sent):
        limits = _limits(flags[min(number, len(flags) - 1)])
        is_introduced = False
        for request in process["requests"]:
            key = json.dumps(request.get("id"))
            _require(type(request.get("id")) in (str, int), f"a request without an id: {request.get('method')}")
            _require(key not in used, f"the id {key} was used before")
            used.add(key)
            is_introduced |= request.get("method") == "info"
            if request.get("method") not in ("embed", "tokenize") and "inputs" not in request:
                continue
            _require(is_introduced, "an `embed` or a `tokenize` before any `info`")
            parameters = request.get("params", request)
            is_packed = str(parameters.get("encoding_format")).startswith("base64")
            _require(is_packed or request.get("method") == "tokenize", "an `embed` that does not ask for base64")
            most = limits.get("--max-inputs", 16_384)
            _require(len(parameters["inputs"]) <= most, f"more than {most} inputs in a request")
        most = limits.get("--max-line-bytes", 32 * 2**20)
        _require(process["bytes"] <= most, f"a line of {process['bytes']} bytes, the limit is {most}")
        is_whole = process["is_complete"] or not process["end_of_input"]
        _require(is_whole, "the input was closed in the middle of a line")


def _limits(flags: list[str]) -> dict[str, int]:
    named = dict(flag.split("=", 1) for flag in flags if "=" in flag)
    return {name: int(value) for name, value in named.items() if name in ("--max-inputs", "--max-line-bytes")}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise BrokenRule(message)
