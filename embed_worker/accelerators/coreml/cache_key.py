"""The key by which CoreML's provider finds what it has compiled, and where it keeps that.

Without a key of the graph's own, the provider names its folder by a hash of the graph's path: a model that was moved
would be compiled again, and in the worker instead of the child.

Reference: microsoft/onnxruntime, `core/providers/coreml/builders/model_builder.cc`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

_METADATA = "COREML_CACHE_KEY"
_LENGTH = 48  # at most 64 letters and digits are allowed


def write_with_cache_key(model: Any, file: Path) -> None:
    """Write an `onnx.ModelProto` with a key made of its content.

    Raises:
        OSError: The file cannot be written.
    """
    del model.metadata_props[:]
    key = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()[:_LENGTH]
    model.metadata_props.add(key=_METADATA, value=key)
    file.write_bytes(model.SerializeToString(deterministic=True))


def read_cache_key(graph: Path) -> str | None:
    """Return the key of a graph that was written so; None where there is none."""
    # Metadata are written behind the graph, and a key and its value are short.
    with graph.open("rb") as file:
        file.seek(max(0, graph.stat().st_size - 4096))
        _, found, behind = file.read().rpartition(_METADATA.encode())
    value = behind[2 : 2 + _LENGTH].decode("ascii", "replace")  # behind the value's field and its length
    return value if found and value.isalnum() else None


def compiled_model(cache: Path, key: str) -> Path:
    """Return the path of what the provider has compiled of a graph that it took whole."""
    return cache / key / "0_static_mlprogram" / "model" / "compiled_model.mlmodelc"
