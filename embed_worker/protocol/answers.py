"""An answer and its line: written by the worker, read by hosts."""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, assert_never

import orjson

from embed_worker.protocol.messages import (
    EncodingFormat,
    ErrorCode,
    Failure,
    ProtocolError,
    RequestId,
    Response,
    Success,
)
from embed_worker.protocol.requests import kind_of


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


# Reading ----------------------------------------------------------------------------------------------------------


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
        raise ProtocolError(ErrorCode.PARSE_ERROR, f"{kind_of(members)} instead of an object")
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
