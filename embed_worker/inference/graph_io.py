"""What a text encoder's graph must look like: the inputs that are made from a batch, and the output that is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embed_worker.errors import ModelError
from embed_worker.inference.backend import TokenBatch
from embed_worker.inference.pooling import Int64

HIDDEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_INTEGER_TYPES: dict[str, Any] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, **_INTEGER_TYPES}

Feed: TypeAlias = Callable[[TokenBatch], NDArray[Any]]


def hidden_output(outputs: Mapping[str, Any], name: str) -> str:
    """Find the output with the token vectors, (B, T, D).

    Args:
        outputs: By name, as onnxruntime describes them.
        name: The model's, for messages.

    Raises:
        ModelError: There is none, or it has another rank.
    """
    found = next((output for output in HIDDEN_OUTPUTS if output in outputs), None)
    if found is None:
        raise ModelError(
            f"the model {name!r} has a graph without an output {' or '.join(HIDDEN_OUTPUTS)}: "
            f"it has {', '.join(outputs)}"
        )
    rank = len(outputs[found].shape)
    if rank != 3:
        raise ModelError(f"the model {name!r} has a graph whose {found} has {rank} dimensions, not batch, tokens, size")
    return found


def check_is_dynamic(inputs: Sequence[Any], name: str) -> None:
    """Check that texts of any length and any number fit.

    Raises:
        ModelError: The shape of `input_ids` has a fixed dimension.
    """
    shape: Sequence[object] = next((node.shape for node in inputs if node.name == "input_ids"), ())
    if any(isinstance(size, int) for size in shape):
        problem = f"has a graph for texts of one fixed shape, {list(shape)}: export it with dynamic axes"
        raise ModelError(f"the model {name!r} {problem}")


def feeder(node: Any, batch_axis: object, name: str) -> tuple[str, Feed]:
    """Pair an input of the graph with the function that makes it from a batch.

    Args:
        node: Name, type and shape, as onnxruntime describes an input.
        batch_axis: What the graph calls the first axis of `input_ids`.
        name: The model's, for messages.

    Raises:
        ModelError: Nothing is known to feed it with.
    """
    if node.name in KNOWN_INPUTS:
        dtype = _INTEGER_TYPES.get(node.type)
        if dtype is None:
            raise ModelError(f"the model {name!r} has a graph whose {node.name} is {node.type}, not integers")
        return node.name, _FEEDS[node.name](dtype)
    # What a decoder carries from one token to the next is empty here, and so are images and sounds; the graph says in
    # which dimension. The batch's own is not it.
    dtype = _TYPES.get(node.type)
    follows_batch = bool(node.shape) and not isinstance(node.shape[0], int) and node.shape[0] == batch_axis
    shape = [size if isinstance(size, int) else 0 for size in node.shape]
    if dtype is None or 0 not in (shape[1:] if follows_batch else shape):
        raise ModelError(f"the model {name!r} has a graph with an input that is not known: {node.name} {node.type}")

    def feed(batch: TokenBatch) -> NDArray[Any]:
        return np.zeros([len(batch.ids), *shape[1:]] if follows_batch else shape, dtype)

    return node.name, feed


def _positions(mask: Int64) -> Int64:
    """Count the tokens of each text from 0, wherever its padding is; padding gets 0."""
    positions: Int64 = np.maximum(mask.cumsum(axis=1) - 1, 0) * mask
    return positions


_FEEDS: dict[str, Callable[[Any], Feed]] = {
    "input_ids": lambda dtype: lambda batch: batch.ids.astype(dtype, copy=False),
    "attention_mask": lambda dtype: lambda batch: batch.mask.astype(dtype, copy=False),
    "token_type_ids": lambda dtype: lambda batch: np.zeros(batch.ids.shape, dtype),
    "position_ids": lambda dtype: lambda batch: _positions(batch.mask).astype(dtype, copy=False),
}
