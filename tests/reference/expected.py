"""Files of expected vectors: one or several sets of texts, each with the members of its request and its answer.

A file has `sets`, or is itself one set: `texts`, `request` (members to send along), `embeddings` (lists of numbers) or
`embeddings_base64` (for each text its little-endian float32), and where they are known `tokens` (before truncation) and
`truncated` (indexes). `tests/models/*.expected.json` have `cases`, an older form of the same.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpectedSet:
    """Texts of one request, and its right answer; `vectors` is (B, D) float32."""

    request: dict[str, Any]
    texts: list[str]
    vectors: Float32
    tokens: list[int] | None
    truncated: list[int] | None


def read_expected(file: Path) -> list[ExpectedSet]:
    """Read the sets of a file."""
    document = json.loads(file.read_bytes())
    return [_set(members) for members in document.get("sets") or document.get("cases") or [document]]


def _set(members: dict[str, Any]) -> ExpectedSet:
    request = members.get("request")
    if request is None:
        names = ("prompt_name", "dimensions", "normalize")
        request = {name: members[name] for name in names if members.get(name) is not None}
    truncated = members.get("truncated")
    if truncated is not None and any(isinstance(item, bool) for item in truncated):
        truncated = [index for index, is_cut in enumerate(truncated) if is_cut]
    return ExpectedSet(
        request=request,
        texts=members["texts"],
        vectors=_vectors(members),
        tokens=members.get("tokens", members.get("token_counts")),
        truncated=truncated,
    )


def _vectors(members: dict[str, Any]) -> Float32:
    if "embeddings_base64" in members:
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in members["embeddings_base64"]]
        return np.array(rows, np.float32)
    return np.array(members["embeddings"], np.float32)
