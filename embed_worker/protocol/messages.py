"""What is said over the wire: requests, answers, error codes, exit statuses, and what a host must stay within."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias, assert_never

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


# Answers, as a host reads them ------------------------------------------------------------------------------------


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
