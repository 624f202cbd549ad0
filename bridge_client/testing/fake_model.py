"""What the fake worker computes, pure: a vector from a hash of the text, a token for each word. No model, no numpy."""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Sequence
from typing import Any

from embed_worker.protocol import Embed, EncodingFormat, Tokenize

MAX_TOKENS = 512  # of a text


def vector_of(text: str, dimension: int) -> list[float]:
    """Return float32 values of unit length that depend on every byte of the text."""
    digest = hashlib.shake_128(text.encode()).digest(2 * dimension)
    raw = [number + 0.5 for number in struct.unpack(f"<{dimension}h", digest)]
    norm = math.sqrt(sum(number * number for number in raw))
    values = struct.unpack(f"<{dimension}f", struct.pack(f"<{dimension}f", *(number / norm for number in raw)))
    return list(values)


def pack_rows(rows: Sequence[Sequence[float]], encoding: EncodingFormat) -> bytes:
    """Return rows as `embeddings_base64` holds them, before base64."""
    match encoding.precision:
        case "float16":
            return b"".join(struct.pack(f"<{len(row)}e", *row) for row in rows)
        case "ubinary":
            return b"".join(_signs(row) for row in rows)
        case _:
            return b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)


def _signs(row: Sequence[float]) -> bytes:
    bits = "".join("1" if number > 0 else "0" for number in row)
    return bytes(int(bits[first : first + 8].ljust(8, "0"), 2) for first in range(0, len(bits), 8))


def counts_of(request: Embed | Tokenize) -> dict[str, Any]:
    """Return the members of an answer that tell of tokens: two special ones, and one for each word, prompt or not."""
    words = [list(re.finditer(r"\S+", text)) for text in request.inputs]
    most = MAX_TOKENS - 2 if request.truncate else None
    told: dict[str, Any] = {
        "tokens": [2 + len(each) for each in words],
        "truncated": [index for index, each in enumerate(words) if request.truncate and 2 + len(each) > MAX_TOKENS],
    }
    if isinstance(request, Tokenize) and request.offsets:
        told["offsets"] = [[word.span() for word in each[:most]] for each in words]
    return told
