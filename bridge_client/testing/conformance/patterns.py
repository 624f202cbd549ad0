"""The patterns of the conformance suite: what an answer must look like, written as JSON.

A scalar stands for itself, type included (`1` is neither `1.0` nor `true`). A list fits a list of the same length. An
object fits an object that has at least its members. An object with members that begin with `$` asks for more; all of
its operators must hold:

| operator | holds when the value |
|---|---|
| `$type` | is a `string`, `integer`, `number`, `boolean`, `null`, `array` or `object` |
| `$regex` | is a string in which the expression is found |
| `$approx` | `[number, tolerance]`: is a number so near |
| `$between` | `[least, most]`: is a number from … to |
| `$one_of` | fits one of these patterns |
| `$not` | does not fit this pattern |
| `$length` | has a length that fits |
| `$each` | is a list, and each item fits |
| `$contains` | is a list, and an item fits each of these patterns |
| `$exactly` | is this object, without further members |
| `$absent` | (of a member) is not there |
| `$save` | always; it is remembered under this name |
| `$saved` | is what was remembered |
| `$matrix` | is an answer with vectors that fit: see `matrices.py` |
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from bridge_client.testing.conformance import matrices

Memory: TypeAlias = dict[str, Any]  # what `$save` remembers

_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def mismatch(pattern: Any, value: Any, memory: Memory) -> str | None:
    """Return where and why a value does not fit, or None where it does; only then `memory` has what was to be saved."""
    draft = dict(memory)
    why = _mismatch(pattern, value, draft, "")
    if why is None:
        memory.update(draft)
    return why


def check_pattern(pattern: Any) -> None:
    """Look for what no pattern may contain.

    Raises:
        ValueError: An unknown operator or type.
    """
    match pattern:
        case dict():
            for name, inner in pattern.items():
                if name.startswith("$") and name not in _OPERATORS and name != "$absent":
                    raise ValueError(f"unknown operator {name!r}")
                if name == "$type" and inner not in _TYPES:
                    raise ValueError(f"unknown type {inner!r}")
                if name == "$matrix":
                    matrices.check_wish(inner)
                    check_pattern({key: part for key, part in inner.items() if key in ("shape", "norms")})
                elif name not in ("$regex", "$save", "$saved"):
                    check_pattern(inner)
        case list():
            for inner in pattern:
                check_pattern(inner)
        case _:
            pass


def shortened(value: Any, length: int = 400) -> str:
    """Write a value for people."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"


def _mismatch(pattern: Any, value: Any, memory: Memory, path: str) -> str | None:
    match pattern:
        case dict():
            return _object_mismatch(pattern, value, memory, path)
        case list():
            if not isinstance(value, list) or len(value) != len(pattern):
                return f"{path or 'it'} is not a list of {len(pattern)}"
            return _first(
                _mismatch(inner, item, memory, f"{path}[{index}]")
                for index, (inner, item) in enumerate(zip(pattern, value, strict=True))
            )
        case _:
            if type(pattern) is type(value) and pattern == value:
                return None
            return f"{path or 'it'} is {shortened(json.dumps(value), 120)}, not {shortened(json.dumps(pattern), 120)}"


def _object_mismatch(pattern: dict[str, Any], value: Any, memory: Memory, path: str) -> str | None:
    members = {name: inner for name, inner in pattern.items() if not name.startswith("$")}
    if members or not pattern:
        if not isinstance(value, dict):
            return f"{path or 'it'} is not an object"
        for name, inner in members.items():
            is_there = name in value
            if isinstance(inner, dict) and inner.get("$absent"):
                if is_there:
                    return f"{path}.{name} is there"
            elif not is_there:
                return f"{path}.{name} is missing"
            elif why := _mismatch(inner, value[name], memory, f"{path}.{name}"):
                return why
    for name, argument in pattern.items():
        if name.startswith("$") and (why := _OPERATORS[name](argument, value, memory, path)):
            return why
    return None


def _first(findings: Any) -> str | None:
    return next((why for why in findings if why is not None), None)


# Operators --------------------------------------------------------------------------------------------------------


def _type(name: str, value: Any, memory: Memory, path: str) -> str | None:
    return None if _TYPES[name](value) else f"{path or 'it'} is {shortened(json.dumps(value), 80)}, not of type {name}"


def _regex(expression: str, value: Any, memory: Memory, path: str) -> str | None:
    is_found = isinstance(value, str) and re.search(expression, value)
    return None if is_found else f"{path or 'it'} has no match for {expression!r}: {shortened(value, 200)}"


def _approx(argument: list[float], value: Any, memory: Memory, path: str) -> str | None:
    wanted, tolerance = argument
    is_near = _TYPES["number"](value) and math.isclose(value, wanted, rel_tol=0.0, abs_tol=tolerance)
    return None if is_near else f"{path or 'it'} is {value!r}, not {wanted} ± {tolerance}"


def _between(argument: list[float], value: Any, memory: Memory, path: str) -> str | None:
    least, most = argument
    is_inside = _TYPES["number"](value) and least <= value <= most
    return None if is_inside else f"{path or 'it'} is {value!r}, not from {least} to {most}"


def _one_of(patterns: list[Any], value: Any, memory: Memory, path: str) -> str | None:
    reasons = []
    for pattern in patterns:
        draft = dict(memory)
        why = _mismatch(pattern, value, draft, path)
        if why is None:
            memory.update(draft)
            return None
        reasons.append(why)
    return " and ".join(reasons)


def _not(pattern: Any, value: Any, memory: Memory, path: str) -> str | None:
    fits = _mismatch(pattern, value, dict(memory), path) is None
    return f"{path or 'it'} must not be like {shortened(pattern, 120)}" if fits else None


def _length(pattern: Any, value: Any, memory: Memory, path: str) -> str | None:
    if not isinstance(value, (str, list, dict)):
        return f"{path or 'it'} has no length"
    return _mismatch(pattern, len(value), memory, f"the length of {path or 'it'}")


def _each(pattern: Any, value: Any, memory: Memory, path: str) -> str | None:
    if not isinstance(value, list):
        return f"{path or 'it'} is not a list"
    return _first(_mismatch(pattern, item, memory, f"{path}[{index}]") for index, item in enumerate(value))


def _contains(patterns: list[Any], value: Any, memory: Memory, path: str) -> str | None:
    if not isinstance(value, list):
        return f"{path or 'it'} is not a list"
    for pattern in patterns:
        if all(_one_of([pattern], item, memory, path) for item in value):
            return f"nothing in {path or 'it'} is like {shortened(pattern, 200)}"
    return None


def _save(name: str, value: Any, memory: Memory, path: str) -> str | None:
    memory[name] = value
    return None


def _saved(name: str, value: Any, memory: Memory, path: str) -> str | None:
    if name not in memory:
        return f"nothing was saved as {name!r}"
    return _mismatch(_literal(memory[name]), value, memory, path)


def _literal(value: Any) -> Any:
    """A remembered object must be equal, not only have some members: compare it as its text."""
    return value if not isinstance(value, dict) else {"$exactly": value}


def _exactly(wanted: Any, value: Any, memory: Memory, path: str) -> str | None:
    is_same = json.dumps(wanted, sort_keys=True) == json.dumps(value, sort_keys=True)
    return None if is_same else f"{path or 'it'} is {shortened(value, 120)}, not {shortened(wanted, 120)}"


def _matrix(wish: dict[str, Any], value: Any, memory: Memory, path: str) -> str | None:
    try:
        matrix = matrices.read_matrix(value)
    except ValueError as error:
        return str(error)
    for name in ("shape", "norms"):
        if name in wish:
            facts = matrix.shape if name == "shape" else matrix.norms()
            if why := _mismatch(wish[name], facts, memory, name):
                return why
    return matrices.mismatch(wish, matrix, memory)


_OPERATORS: dict[str, Callable[[Any, Any, Memory, str], str | None]] = {
    "$type": _type,
    "$regex": _regex,
    "$approx": _approx,
    "$between": _between,
    "$one_of": _one_of,
    "$not": _not,
    "$length": _length,
    "$each": _each,
    "$contains": _contains,
    "$exactly": _exactly,
    "$save": _save,
    "$saved": _saved,
    "$matrix": _matrix,
}
