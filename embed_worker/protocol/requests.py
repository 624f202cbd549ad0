"""A request and its line: read by the worker, written by hosts."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import orjson

from embed_worker.protocol.messages import (
    MAX_ID_BYTES,
    MAX_ID_INTEGER,
    Cancel,
    Embed,
    EncodingFormat,
    ErrorCode,
    Info,
    Limits,
    LoadModel,
    Metrics,
    Ping,
    ProtocolError,
    Request,
    RequestId,
    Shutdown,
    Tokenize,
    UnloadModel,
)
from embed_worker.protocol.spelling import closest


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A line that is a JSON object with a usable id; its members are not checked yet."""

    id: RequestId
    members: dict[str, Any]
    has_lone_surrogates: bool


_SHAPE = ' such as {"inputs": "…"}'


def parse_line(line: bytes) -> Envelope:
    """Read one line as far as its id, so that whatever is wrong further on is answered under that id.

    Raises:
        ProtocolError: `parse_error`, or `invalid_request` for an id that cannot be used. Never another exception.
    """
    value, is_suspect = _parse_json(line)
    if not isinstance(value, dict):
        raise ProtocolError(ErrorCode.PARSE_ERROR, f"the line must be a JSON object{_SHAPE}, not {kind_of(value)}")
    request_id = value.pop("id", None)
    if request_id is not None:
        request_id = _check_id("id", request_id)
    return Envelope(id=request_id, members=value, has_lone_surrogates=is_suspect)


def decode_request(envelope: Envelope, limits: Limits) -> Request:
    """Check the method and its members.

    Raises:
        ProtocolError: What is wrong, with the index of the input where one is to blame. Never another exception.
    """
    members = envelope.members
    params = members.get("params", {})
    method = _method(members, params)
    if "params" in members:
        if not isinstance(params, dict):
            _refuse(f"`params` must be an object, not {kind_of(params)}")
        stray = sorted(set(members) - {"method", "params"})
        if stray:
            _refuse(f"beside `params` stand only `id` and `method`, not {_quoted(stray[0])}: move it into `params`")
        members = params
    elif "method" in members:
        members = {name: value for name, value in members.items() if name != "method"}
    if envelope.has_lone_surrogates:
        _refuse_lone_surrogates(members)
    spec = METHODS[method]
    for name in members:
        if name not in spec.parameters:
            _refuse_unknown_member(method, name, spec.parameters)
    checked = {}
    for name, parameter in spec.parameters.items():
        if parameter.check is None:
            continue
        if members.get(name) is not None or (parameter.is_required and name in members):
            checked[name] = parameter.check(name, members[name], limits)
        elif parameter.is_required:
            _refuse(f"`{method}` needs the member `{name}`")
    if "prompt" in checked and "prompt_name" in checked:
        _refuse("`prompt` and `prompt_name` exclude each other")
    return spec.kind(**checked)


def _parse_json(line: bytes) -> tuple[Any, bool]:
    """Parse with orjson; what it refuses although it is JSON (a lone surrogate, 1e400) is read again, slower."""
    try:
        return orjson.loads(line), False
    except orjson.JSONDecodeError as error:
        position = error.pos
        if "limit" in error.msg:  # of the depth; from Python 3.14 on the standard library has a far higher one
            raise ProtocolError(ErrorCode.PARSE_ERROR, _TOO_DEEP) from None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(ErrorCode.PARSE_ERROR, f"the line is not UTF-8 at byte {error.start}") from None
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_integer), True
    except RecursionError:
        raise ProtocolError(ErrorCode.PARSE_ERROR, _TOO_DEEP) from None
    except ValueError:
        # Who sends plain text has not seen the shape yet; who sends an object that is broken has.
        shape = "" if text.lstrip().startswith("{") else f"; a request is an object{_SHAPE}"
        raise ProtocolError(ErrorCode.PARSE_ERROR, f"the line is not JSON at character {position}{shape}") from None


_TOO_DEEP = "the line is not usable JSON: nested too deeply"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are not JSON


def _parse_integer(digits: str) -> int | float:
    # int() refuses more than 4,300 digits, and nobody means such a number.
    return int(digits) if len(digits) < 400 else math.inf


def _check_id(name: str, value: object) -> str | int:
    match value:
        case bool():
            pass
        case int() if abs(value) <= MAX_ID_INTEGER:
            return value
        case str() if not _has_lone_surrogate(value) and len(value.encode()) <= MAX_ID_BYTES:
            return value
        case _:
            pass
    return _refuse(f"`{name}` must be a string of at most {MAX_ID_BYTES} bytes or an integer within ±(2^53-1)")


def _method(members: Mapping[str, Any], params: object) -> str:
    if "method" not in members:
        if "inputs" in members or (isinstance(params, dict) and "inputs" in params):
            return "embed"
        given = [*members, *params] if isinstance(params, dict) else list(members)
        meant = next((told for name in given if (told := _meant(name, _EMBED.parameters))), "")
        _refuse(f"the request has neither `method` nor `inputs`{meant}")
    method = members["method"]
    if not isinstance(method, str):
        _refuse(f"`method` must be a string, not {kind_of(method)}")
    if method not in METHODS:
        raise ProtocolError(ErrorCode.UNKNOWN_METHOD, f"unknown method {_quoted(method)}{_meant(method, METHODS)}")
    return method


def _refuse_unknown_member(method: str, name: str, known: Mapping[str, object]) -> NoReturn:
    _refuse(f"`{method}` has no member {_quoted(name)}{_meant(name, known)}")


def _refuse_lone_surrogates(members: Mapping[str, Any]) -> None:
    inputs = members.get("inputs")
    for index, text in enumerate(inputs if isinstance(inputs, list) else [inputs]):
        if isinstance(text, str) and _has_lone_surrogate(text):
            _refuse(f"input {index} holds a lone surrogate, which is not Unicode text", index=index)
    for name, value in members.items():
        if _has_lone_surrogate(name) or (isinstance(value, str) and _has_lone_surrogate(value)):
            _refuse(f"the member {_quoted(name)} holds a lone surrogate, which is not Unicode text")


_SURROGATE = re.compile("[\ud800-\udfff]")


def _has_lone_surrogate(text: str) -> bool:
    return _SURROGATE.search(text) is not None


def _refuse(message: str, *, index: int | None = None) -> NoReturn:
    raise ProtocolError(ErrorCode.INVALID_REQUEST, message, index=index)


def _quoted(name: str) -> str:
    """A name from the request, safe and short enough for a message."""
    return ascii(name if len(name) <= 64 else name[:64] + "...")


# What other interfaces call a member: no likeness of spelling leads from `documents` to `inputs`.
_ELSEWHERE = dict.fromkeys(("input", "text", "texts", "document", "documents", "sentences"), "inputs")


def _meant(name: str, known: Mapping[str, object]) -> str:
    ours = _ELSEWHERE.get(name.lower())
    meant = ours if ours in known else closest(name, known)
    return "" if meant is None else f"; did you mean `{meant}`?"


def kind_of(value: object) -> str:
    """Return what a JSON value is, for a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


# Parameters -------------------------------------------------------------------------------------------------------

Check: TypeAlias = Callable[[str, Any, Limits], Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One member of a method. An optional one may be null.

    Attributes:
        check: Returns its value, or refuses it; None: older hosts send it, and it means nothing.
        is_required: It may not be left out.
    """

    check: Check | None
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """The members of a method, and the request that is made of them."""

    kind: type[Request]
    parameters: dict[str, Parameter]


def _string(name: str, value: Any, limits: Limits) -> str:
    if not isinstance(value, str):
        _refuse(f"`{name}` must be a string, not {kind_of(value)}")
    return value


def _boolean(name: str, value: Any, limits: Limits) -> bool:
    if not isinstance(value, bool):
        _refuse(f"`{name}` must be true or false, not {kind_of(value)}")
    return value


def _positive_integer(name: str, value: Any, limits: Limits) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _refuse(f"`{name}` must be an integer of at least 1")
    return value


def _milliseconds(name: str, value: Any, limits: Limits) -> float:
    # orjson reads an integer of 2^64 or more as a float; it is an integer all the same.
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer and not (isinstance(value, float) and 2**64 <= value < math.inf):
        _refuse(f"`{name}` must be an integer of at least 0")
    if value < 0:
        _refuse(f"`{name}` must be an integer of at least 0")
    return float(min(value, 10**18))  # beyond any clock, and float() refuses the largest integers


def _encoding_format(name: str, value: Any, limits: Limits) -> EncodingFormat:
    try:
        return EncodingFormat(value)
    except ValueError:
        known = ", ".join(f'"{each}"' for each in EncodingFormat)
        _refuse(f"`{name}` must be one of {known}")


def _prompt(name: str, value: Any, limits: Limits) -> str:
    if len(_string(name, value, limits).encode()) > limits.max_text_bytes:
        _refuse(f"`{name}` has more than {limits.max_text_bytes} bytes")
    return str(value)


def _inputs(name: str, value: Any, limits: Limits) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        _refuse(f"`{name}` must be a string or a list of strings, not {kind_of(value)}")
    if len(texts) > limits.max_inputs:
        message = f"{len(texts)} inputs, the limit is {limits.max_inputs}"
        raise ProtocolError(ErrorCode.TOO_MANY_INPUTS, message)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            _refuse(f"input {index} must be a string, not {kind_of(text)}", index=index)
        # No character takes more than four bytes: most texts need not be encoded to be measured.
        if len(text) * 4 > limits.max_text_bytes and (size := len(text.encode())) > limits.max_text_bytes:
            message = f"input {index} has {size} bytes, the limit is {limits.max_text_bytes}"
            raise ProtocolError(ErrorCode.INPUT_TOO_LONG, message, index=index)
    return texts


def _target(name: str, value: Any, limits: Limits) -> str | int:
    return _check_id(name, value)


_EMBED = MethodSpec(
    Embed,
    {
        "inputs": Parameter(_inputs, is_required=True),
        "model": Parameter(_string),
        "normalize": Parameter(_boolean),
        "dimensions": Parameter(_positive_integer),
        "prompt_name": Parameter(_string),
        "prompt": Parameter(_prompt),
        "truncate": Parameter(_boolean),
        "encoding_format": Parameter(_encoding_format),
        "deadline_ms": Parameter(_milliseconds),
    },
)

METHODS: dict[str, MethodSpec] = {
    "embed": _EMBED,
    "embed_batch": _EMBED,
    "tokenize": MethodSpec(
        Tokenize,
        {
            "inputs": Parameter(_inputs, is_required=True),
            "model": Parameter(_string),
            "prompt_name": Parameter(_string),
            "prompt": Parameter(_prompt),
            "truncate": Parameter(_boolean),
            "offsets": Parameter(_boolean),
            "deadline_ms": Parameter(_milliseconds),
        },
    ),
    "info": MethodSpec(Info, {"model": Parameter(_string)}),
    "ping": MethodSpec(Ping, {}),
    "metrics": MethodSpec(Metrics, {}),
    "cancel": MethodSpec(Cancel, {"target": Parameter(_target, is_required=True)}),
    "load_model": MethodSpec(LoadModel, {"model": Parameter(_string, is_required=True), "cache_dir": Parameter(None)}),
    "unload_model": MethodSpec(UnloadModel, {"model": Parameter(_string, is_required=True)}),
    "shutdown": MethodSpec(Shutdown, {}),
}


# Writing ----------------------------------------------------------------------------------------------------------

# An older name of a method stands behind the one of today, which is written.
_METHOD_NAMES: dict[type, str] = {spec.kind: name for name, spec in reversed(METHODS.items())}
_MEMBER_NAMES = {kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in _METHOD_NAMES}


def encode_request(request_id: str | int, request: Request) -> bytes:
    """Write one request line, newline included; members that are None are left to the worker's defaults.

    Raises:
        ProtocolError: A string that cannot be UTF-8.
    """
    kind = type(request)
    members: dict[str, Any] = {"id": request_id, "method": _METHOD_NAMES[kind]}
    for name in _MEMBER_NAMES[kind]:
        if (value := getattr(request, name)) is not None:
            members[name] = int(value) if name == "deadline_ms" else value
    try:
        return orjson.dumps(members, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise ProtocolError(ErrorCode.INVALID_REQUEST, f"the request cannot be written: {error}") from None
