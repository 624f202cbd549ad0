"""The wire protocol, version 1: every message, its JSON form and its codec, and the closed set of error codes.

The single definition, used by both packages. No I/O, no threads, no clock; stdlib and orjson only. The prose is
`docs/protocol.md`, and a test holds its tables and the ones below together.
"""

from __future__ import annotations

import binascii
import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NoReturn, TypeAlias, assert_never

import orjson

PROTOCOL_VERSION = 1
MAX_ID_BYTES = 256
MAX_ID_INTEGER = 2**53 - 1  # what every JSON implementation keeps exactly

RequestId: TypeAlias = str | int | None  # None: unnumbered


class ErrorCode(StrEnum):
    """Why a request was not answered with vectors. Hosts branch on these, never on messages."""

    PARSE_ERROR = "parse_error"
    LINE_TOO_LONG = "line_too_long"
    INVALID_REQUEST = "invalid_request"
    UNKNOWN_METHOD = "unknown_method"
    DUPLICATE_ID = "duplicate_id"
    TOO_MANY_INPUTS = "too_many_inputs"
    INPUT_TOO_LONG = "input_too_long"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_LOAD_FAILED = "model_load_failed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    SHUTTING_DOWN = "shutting_down"
    OUT_OF_MEMORY = "out_of_memory"
    INFERENCE_FAILED = "inference_failed"
    NON_FINITE_EMBEDDING = "non_finite_embedding"
    INTERNAL_ERROR = "internal_error"

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed when it is sent again."""
        match self:
            case (
                ErrorCode.DEADLINE_EXCEEDED
                | ErrorCode.SHUTTING_DOWN
                | ErrorCode.OUT_OF_MEMORY
                | ErrorCode.INTERNAL_ERROR
            ):
                return True
            case (
                ErrorCode.PARSE_ERROR
                | ErrorCode.LINE_TOO_LONG
                | ErrorCode.INVALID_REQUEST
                | ErrorCode.UNKNOWN_METHOD
                | ErrorCode.DUPLICATE_ID
                | ErrorCode.TOO_MANY_INPUTS
                | ErrorCode.INPUT_TOO_LONG
                | ErrorCode.MODEL_NOT_FOUND
                | ErrorCode.MODEL_LOAD_FAILED
                | ErrorCode.CANCELLED
                | ErrorCode.INFERENCE_FAILED
                | ErrorCode.NON_FINITE_EMBEDDING
            ):
                return False
            case _:
                assert_never(self)


class ExitCode:
    """The exit statuses of the worker process."""

    OK = 0
    USAGE = 2
    INTERNAL = 70
    PIPE_FAILED = 74
    TRY_AGAIN = 75  # no memory or no threads, or a start that took too long
    UNUSABLE_MODEL = 78
    RECYCLED = 79
    INTERRUPTED = 130


class ProtocolError(Exception):
    """A line that cannot be served as it is; `code`, the message and `index` are the answer's."""

    def __init__(self, code: ErrorCode, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.index = index


def _limit(default: int, what: str) -> int:
    limit: int = dataclasses.field(default=default, metadata={"what": what})
    return limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a host must stay within; `info` advertises them, and the command line has an option for each."""

    max_line_bytes: int = _limit(32 * 2**20, "bytes of a request line")
    max_inputs: int = _limit(16_384, "texts of a request")
    max_text_bytes: int = _limit(2**20, "bytes of a text")
    max_in_flight: int = _limit(1024, "embed requests being worked on; reading stops beyond")
    max_in_flight_bytes: int = _limit(64 * 2**20, "bytes of their lines; reading stops beyond")


class EncodingFormat(StrEnum):
    """How the matrix of an answer is written. `float` and `base64` decode to identical bits; the others keep fewer."""

    FLOAT = "float"
    BASE64 = "base64"
    BASE64_FLOAT16 = "base64_float16"
    BASE64_UBINARY = "base64_ubinary"

    @property
    def precision(self) -> Literal["float32", "float16", "ubinary"]:
        """What the numbers are, in the words of sentence-transformers: `float32`, `float16` or `ubinary`."""
        match self:
            case EncodingFormat.FLOAT | EncodingFormat.BASE64:
                return "float32"
            case EncodingFormat.BASE64_FLOAT16:
                return "float16"
            case EncodingFormat.BASE64_UBINARY:
                return "ubinary"
            case _:
                assert_never(self)

    def row_bytes(self, dimension: int) -> int:
        """Return the bytes of a vector of so many components, before base64 makes them a third more."""
        bits = {"float32": 32, "float16": 16, "ubinary": 1}[self.precision]
        return (dimension * bits + 7) // 8


# Requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Turn `inputs` into vectors. `None` stands for what the model's folder says."""

    inputs: list[str]
    model: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    truncate: bool = True
    encoding_format: EncodingFormat = EncodingFormat.FLOAT
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize:
    """Count the tokens of `inputs`, and say where in them they are. `None` stands for what the model's folder says."""

    inputs: list[str]
    model: str | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    truncate: bool = True
    offsets: bool = False
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """Describe a model and the worker once the model is ready: the readiness handshake."""

    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Is the reader alive, and is there progress?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Counters, gauges and percentiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop the outstanding `embed` or `tokenize` whose id is `target`."""

    target: str | int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModel:
    """Load a model by name, or find it loaded."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadModel:
    """Release a model once its running work is done."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Finish accepted work, then exit 0."""


Request: TypeAlias = Embed | Tokenize | Info | Ping | Metrics | Cancel | LoadModel | UnloadModel | Shutdown


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
        raise ProtocolError(ErrorCode.PARSE_ERROR, f"the line must be a JSON object{_SHAPE}, not {_kind(value)}")
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
            _refuse(f"`params` must be an object, not {_kind(params)}")
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
        if members.get(name) is not None or (parameter.is_required and name in members):
            checked[name] = parameter.check(name, members[name], limits)
        elif parameter.is_required:
            _refuse(f"`{method}` needs the member `{name}`")
    return spec.build(checked)


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
        _refuse(f"`method` must be a string, not {_kind(method)}")
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


def closest(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the name that a word was probably meant to be, upper and lower case alike; None where none is close."""
    by_spelling = {name[:64].lower(): name for name in known}
    close = difflib.get_close_matches(word[:64].lower(), by_spelling, n=1, cutoff=likeness)
    return by_spelling[close[0]] if close else None


def _kind(value: object) -> str:
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
    """One member of a method: how it is checked, and whether it may be left out. An optional one may be null."""

    check: Check
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """The members of a method and the request that they build."""

    build: Callable[[dict[str, Any]], Request]
    parameters: dict[str, Parameter]


def _string(name: str, value: Any, limits: Limits) -> str:
    if not isinstance(value, str):
        _refuse(f"`{name}` must be a string, not {_kind(value)}")
    return value


def _boolean(name: str, value: Any, limits: Limits) -> bool:
    if not isinstance(value, bool):
        _refuse(f"`{name}` must be true or false, not {_kind(value)}")
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
        _refuse(f"`{name}` must be a string or a list of strings, not {_kind(value)}")
    if len(texts) > limits.max_inputs:
        message = f"{len(texts)} inputs, the limit is {limits.max_inputs}"
        raise ProtocolError(ErrorCode.TOO_MANY_INPUTS, message)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            _refuse(f"input {index} must be a string, not {_kind(text)}", index=index)
        # No character takes more than four bytes: most texts need not be encoded to be measured.
        if len(text) * 4 > limits.max_text_bytes and (size := len(text.encode())) > limits.max_text_bytes:
            message = f"input {index} has {size} bytes, the limit is {limits.max_text_bytes}"
            raise ProtocolError(ErrorCode.INPUT_TOO_LONG, message, index=index)
    return texts


def _target(name: str, value: Any, limits: Limits) -> str | int:
    return _check_id(name, value)


def _anything(name: str, value: Any, limits: Limits) -> Any:
    return value


def _build_embed(members: dict[str, Any]) -> Embed:
    _refuse_two_prompts(members)
    return Embed(**members)


def _build_tokenize(members: dict[str, Any]) -> Tokenize:
    _refuse_two_prompts(members)
    return Tokenize(**members)


def _refuse_two_prompts(members: Mapping[str, Any]) -> None:
    if "prompt" in members and "prompt_name" in members:
        _refuse("`prompt` and `prompt_name` exclude each other")


def _build_load_model(members: dict[str, Any]) -> LoadModel:
    return LoadModel(model=members["model"])


_EMBED = MethodSpec(
    _build_embed,
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
        _build_tokenize,
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
    "info": MethodSpec(lambda members: Info(**members), {"model": Parameter(_string)}),
    "ping": MethodSpec(lambda members: Ping(), {}),
    "metrics": MethodSpec(lambda members: Metrics(), {}),
    "cancel": MethodSpec(lambda members: Cancel(**members), {"target": Parameter(_target, is_required=True)}),
    "load_model": MethodSpec(
        _build_load_model, {"model": Parameter(_string, is_required=True), "cache_dir": Parameter(_anything)}
    ),
    "unload_model": MethodSpec(lambda members: UnloadModel(**members), {"model": Parameter(_string, is_required=True)}),
    "shutdown": MethodSpec(lambda members: Shutdown(), {}),
}


# Responses --------------------------------------------------------------------------------------------------------


def encode_success(request_id: RequestId, line_number: int, members: Mapping[str, Any]) -> bytes:
    """Write one successful answer, newline included.

    Args:
        request_id: Echoed as the first member.
        line_number: 1-based; written only when the id is null.
        members: What the method answers beside `id` and `status`.
    """
    return orjson.dumps(_success_head(request_id, line_number) | dict(members), option=orjson.OPT_APPEND_NEWLINE)


def encode_vectors(
    request_id: RequestId,
    line_number: int,
    before: Mapping[str, Any],
    vectors: Any,
    encoding: EncodingFormat,
    after: Mapping[str, Any],
) -> bytes:
    """Write the answer to an `embed`, newline included.

    The matrix is encoded in pieces: the encoders hold the interpreter lock, and a reader must get its turn meanwhile.

    Args:
        request_id: Echoed as the first member.
        line_number: 1-based; written only when the id is null.
        before: The members that stand before the vectors.
        vectors: numpy array with a row for each input, C-contiguous, of the encoding's precision: little-endian
            float32 or float16 (count, dimension), or bytes of sign bits (count, dimension / 8 rounded up).
        encoding: How they are written.
        after: The members that stand after them; at least one.
    """
    head = orjson.dumps(_success_head(request_id, line_number) | dict(before))
    tail = orjson.dumps(dict(after), option=orjson.OPT_APPEND_NEWLINE)
    pieces = [vectors[first : first + _PIECE_ROWS] for first in range(0, len(vectors), _PIECE_ROWS)]
    match encoding:
        case EncodingFormat.FLOAT:
            rows = (orjson.dumps(piece, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for piece in pieces)
            return b"".join((head[:-1], b',"embeddings":[', b",".join(rows), b"],", tail[1:]))
        case EncodingFormat.BASE64 | EncodingFormat.BASE64_FLOAT16 | EncodingFormat.BASE64_UBINARY:
            packed = (binascii.b2a_base64(piece.data, newline=False) for piece in pieces)
            return b"".join((head[:-1], b',"embeddings_base64":"', *packed, b'",', tail[1:]))
        case _:
            assert_never(encoding)


_PIECE_ROWS = 384  # some milliseconds of work, and a multiple of 3, so that base64 pieces need no padding between them


def encode_tokens(
    request_id: RequestId, line_number: int, members: Mapping[str, Any], offsets: Sequence[Any] | None
) -> bytes:
    """Write the answer to a `tokenize`, newline included; in pieces, as `encode_vectors` does.

    Args:
        request_id: Echoed as the first member.
        line_number: 1-based; written only when the id is null.
        members: The members beside the ranges.
        offsets: For each input a (tokens, 2) numpy array of integers, C-contiguous; None where nobody asked for them.
    """
    head = orjson.dumps(_success_head(request_id, line_number) | dict(members))
    if offsets is None:
        return head + b"\n"
    texts = (b",".join(_range_pieces(ranges)) for ranges in offsets)
    return b"".join((head[:-1], b',"offsets":[', b",".join(b"[%b]" % text for text in texts), b"]}\n"))


def _range_pieces(ranges: Any) -> Iterator[bytes]:
    for first in range(0, len(ranges), _PIECE_RANGES):
        yield orjson.dumps(ranges[first : first + _PIECE_RANGES], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


_PIECE_RANGES = 32_768  # some milliseconds of work


def _success_head(request_id: RequestId, line_number: int) -> dict[str, Any]:
    if request_id is None:
        return {"id": None, "line": line_number, "status": "ok"}
    return {"id": request_id, "status": "ok"}


def encode_error(
    request_id: RequestId, line_number: int, code: ErrorCode, message: str, index: int | None = None
) -> bytes:
    """Write one error answer, newline included; `line_number` (1-based) only when the id is null."""
    members: dict[str, Any] = {"id": request_id}
    if request_id is None:
        members["line"] = line_number
    members |= {"status": "error", "code": str(code), "message": message, "retryable": code.retryable}
    if index is not None:
        members["index"] = index
    return orjson.dumps(members, option=orjson.OPT_APPEND_NEWLINE)


# The host's side --------------------------------------------------------------------------------------------------

_METHOD_NAMES: dict[type, str] = {
    Embed: "embed",
    Tokenize: "tokenize",
    Info: "info",
    Ping: "ping",
    Metrics: "metrics",
    Cancel: "cancel",
    LoadModel: "load_model",
    UnloadModel: "unload_model",
    Shutdown: "shutdown",
}
_MEMBER_NAMES = {kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in _METHOD_NAMES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """An answer with what was asked for: the method's members, `id` and `status` taken away."""

    id: RequestId
    members: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An answer that is an error. `code` may be one that this version does not know."""

    id: RequestId
    code: str
    message: str
    is_retryable: bool
    index: int | None


Response: TypeAlias = Success | Failure


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


def decode_response(line: bytes) -> Response:
    """Read one answer; members that nobody knows are kept in `Success.members`.

    Raises:
        ProtocolError: `parse_error`: not an answer of this protocol. Never another exception.
    """
    try:
        members = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(ErrorCode.PARSE_ERROR, f"not JSON at byte {error.pos}") from None
    if not isinstance(members, dict):
        raise ProtocolError(ErrorCode.PARSE_ERROR, f"{_kind(members)} instead of an object")
    request_id = members.pop("id", None)
    match members.pop("status", None):
        case "ok":
            return Success(id=request_id, members=members)
        case "error":
            code, message = members.get("code"), members.get("message")
            retryable, index = members.get("retryable", False), members.get("index")
            if not (isinstance(code, str) and isinstance(message, str) and isinstance(retryable, bool)):
                raise ProtocolError(ErrorCode.PARSE_ERROR, "an error without code, message or `retryable`")
            if index is not None and (type(index) is not int or index < 0):
                raise ProtocolError(ErrorCode.PARSE_ERROR, "an error whose `index` is none")
            return Failure(id=request_id, code=code, message=message, is_retryable=retryable, index=index)
        case _:
            raise ProtocolError(ErrorCode.PARSE_ERROR, 'an object whose `status` is neither "ok" nor "error"')


def decode_matrix(
    members: Mapping[str, Any], count: int, dimension: int, encoding: EncodingFormat = EncodingFormat.BASE64
) -> bytes:
    """Decode `embeddings_base64` into the rows of its encoding, after checking that it is what was asked for.

    Raises:
        ProtocolError: `parse_error`: another count, dimension or length.
    """
    told = (members.get("count"), members.get("dimension"))
    if told != (count, dimension) or bool in map(type, told):
        raise ProtocolError(ErrorCode.PARSE_ERROR, f"count and dimension {told}, expected {(count, dimension)}")
    encoded = members.get("embeddings_base64")
    if not isinstance(encoded, str):
        raise ProtocolError(ErrorCode.PARSE_ERROR, "no `embeddings_base64`")
    try:
        matrix = binascii.a2b_base64(encoded, strict_mode=True) if encoded else b""
    except ValueError as error:  # binascii.Error is one; so is a character beyond ASCII
        raise ProtocolError(ErrorCode.PARSE_ERROR, f"`embeddings_base64`: {error}") from None
    if len(matrix) != count * (row_bytes := encoding.row_bytes(dimension)):
        message = f"{len(matrix)} bytes of vectors, expected {count} x {row_bytes}"
        raise ProtocolError(ErrorCode.PARSE_ERROR, message)
    return matrix
