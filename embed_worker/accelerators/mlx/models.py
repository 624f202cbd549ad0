"""BERT and its kin, and Qwen3, in MLX: from token ids to token vectors.

This module is imported where a model is loaded for MLX and nowhere else: it needs the package mlx, and everything in it
runs on one thread. B, T, D and W are batch, tokens, hidden size and the width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from embed_worker.encoders.bert import Bert
from embed_worker.encoders.qwen3 import Qwen3
from embed_worker.inference.pooling import Int64
from embed_worker.inference.token_batch import position_ids
from embed_worker.model_files.safetensors import Tensor

_Activation: TypeAlias = Callable[[mx.array], mx.array]


class MlxModel(Protocol):
    """A model's weights on MLX's device."""

    def forward(self, ids: Int64, mask: Int64) -> mx.array:
        """Compute the last hidden state of a padded batch, not evaluated: (B, T), (B, T) → (B, T, D).

        Args:
            ids: Token ids.
            mask: 1 for a token and 0 for padding, which may be on either side.

        Raises:
            ValueError: An id, or a text's length, is beyond its table: MLX would read what lies behind it.
        """


def make_mlx_model(encoder: Bert | Qwen3, precision: str) -> MlxModel:
    """Copy the weights of a model to MLX's device.

    Args:
        encoder: Read and checked.
        precision: MLX's name of the type to compute in.
    """
    dtype = getattr(mx, precision)
    if isinstance(encoder, Qwen3):
        return _MlxQwen3(encoder, dtype)
    return _MlxBert(encoder, dtype)


def device() -> str:
    """Return what MLX computes on: `gpu`, or `cpu` where there is no other."""
    return str(mx.default_device().type.name)


# What the architectures share ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Parameters:
    """Weights by their names in the checkpoint, in the type that is computed in; linear weights are (out, in)."""

    arrays: Mapping[str, mx.array]

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], names: Iterable[str], dtype: mx.Dtype) -> _Parameters:
        return cls({name: _on_device(tensors[name], dtype) for name in names})

    def linear(self, scope: str, x: mx.array) -> mx.array:
        weight, bias = self.arrays[f"{scope}.weight"].T, self.arrays.get(f"{scope}.bias")
        return x @ weight if bias is None else mx.addmm(bias, x, weight)

    def layer_norm(self, scope: str, x: mx.array, epsilon: float) -> mx.array:
        return mx.fast.layer_norm(x, self.arrays[f"{scope}.weight"], self.arrays[f"{scope}.bias"], epsilon)

    def rms_norm(self, scope: str, x: mx.array, epsilon: float) -> mx.array:
        return mx.fast.rms_norm(x, self.arrays[f"{scope}.weight"], epsilon)


def _on_device(values: NDArray[Any], dtype: mx.Dtype) -> mx.array:
    array = mx.array(values).astype(dtype)
    mx.eval(array)  # one by one: what is still to be converted would be in memory twice
    return array


class _Words:
    """The table of words, in 16 bits where that loses nothing: rows are widened as they are looked up."""

    def __init__(self, table: NDArray[Any], dtype: mx.Dtype) -> None:
        self._dtype = dtype
        stored = mx.array(table)
        if stored.itemsize > dtype.size:
            stored = stored.astype(dtype)
        # The readers widen bfloat16, because numpy has no such type.
        narrow = stored.astype(mx.bfloat16)
        self._table = narrow if mx.array_equal(narrow, stored).item() else stored
        mx.eval(self._table)

    def look_up(self, ids: Int64) -> mx.array:
        """Return the rows of ids: (B, T) → (B, T, D).

        Raises:
            ValueError: An id is beyond the table.
        """
        if ids.min() < 0 or ids.max() >= len(self._table):
            found = f"token ids from {ids.min()} to {ids.max()}"
            raise ValueError(f"a batch has {found}, and the model a vocabulary of {len(self._table)}")
        return self._table[mx.array(ids.astype(np.int32))].astype(self._dtype)


def _heads(x: mx.array, heads: int) -> mx.array:
    """(B, T, heads * W) → (B, heads, T, W)."""
    return mx.unflatten(x, -1, (heads, -1)).transpose(0, 2, 1, 3)


def _attend(query: mx.array, key: mx.array, value: mx.array, attended: mx.array | str | None) -> mx.array:
    """Attend: three of (B, heads, T, W) → (B, T, heads * W); key and value may have fewer heads."""
    scale = 1 / math.sqrt(query.shape[-1])
    context = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=attended)
    return context.transpose(0, 2, 1, 3).flatten(2)


def _attended_by_all(mask: Int64) -> mx.array | None:
    """Return which tokens all of a text's tokens see: (B, 1, 1, T), or None for all."""
    return None if mask.all() else mx.array(mask[:, None, None, :] > 0)


def _attended_before(mask: Int64) -> mx.array | str:
    """Return which tokens each token sees, itself and those before it: (B, 1, T, T), or MLX's word for it."""
    if mask[:, 0].all():
        return "causal"  # padding comes last, and nothing that counts sees it
    length = mask.shape[1]
    # Padding sees itself: before the text it would see nothing at all, and some kernels divide 0 by 0.
    attended = ((mask[:, None, None, :] > 0) & np.tri(length, dtype=np.bool_)) | np.eye(length, dtype=np.bool_)
    return mx.array(attended)


# Activations are not compiled: on a CPU `mx.compile` needs a C++ compiler, and its caches have no bound.


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x * math.sqrt(0.5))) * 0.5


def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


_ACTIVATIONS: Mapping[str, _Activation] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "silu": _silu,
}


# The architectures --------------------------------------------------------------------------------------------------

_WORDS, _POSITIONS, _TYPES = (f"embeddings.{table}_embeddings.weight" for table in ("word", "position", "token_type"))


class _MlxBert:
    """BERT, RoBERTa and DistilBERT. Reference: Devlin et al., BERT; `Bert.forward` is the same in numpy."""

    def __init__(self, bert: Bert, dtype: mx.Dtype) -> None:
        tensors = bert.tensors
        positions = tensors[_POSITIONS].astype(np.float32)
        if _TYPES in tensors:  # every token is of the first type
            positions = positions + tensors[_TYPES][0].astype(np.float32)
        self._words = _Words(tensors[_WORDS], dtype)
        self._positions = _on_device(positions, dtype)
        self._parameters = _Parameters.read(tensors, set(tensors) - {_WORDS, _POSITIONS, _TYPES}, dtype)
        self._activation = _ACTIVATIONS[bert.activation.name]
        self._heads, self._layers, self._epsilon = bert.heads, bert.layers, bert.epsilon
        self._padding_id = bert.padding_id

    def forward(self, ids: Int64, mask: Int64) -> mx.array:
        """See `MlxModel`."""
        x = self._words.look_up(ids) + self._positions[mx.array(self._position_rows(ids, mask))]
        x = self._norm("embeddings", x)
        attended = _attended_by_all(mask)
        for layer in range(self._layers):
            scope = f"encoder.layer.{layer}"
            query, key, value = (
                _heads(self._parameters.linear(f"{scope}.attention.self.{part}", x), self._heads)
                for part in ("query", "key", "value")
            )
            x = self._residual(f"{scope}.attention.output", _attend(query, key, value, attended), x)
            inner = self._activation(self._parameters.linear(f"{scope}.intermediate.dense", x))
            x = self._residual(f"{scope}.output", inner, x)
        return x

    def _residual(self, scope: str, x: mx.array, residual: mx.array) -> mx.array:
        return self._norm(scope, self._parameters.linear(f"{scope}.dense", x) + residual)

    def _norm(self, scope: str, x: mx.array) -> mx.array:
        return self._parameters.layer_norm(f"{scope}.LayerNorm", x, self._epsilon)

    def _position_rows(self, ids: Int64, mask: Int64) -> NDArray[np.int32]:
        """Count the tokens of each text, wherever its padding is; RoBERTa begins behind the padding's own row."""
        rows = position_ids(ids, mask, self._padding_id).astype(np.int32)
        if rows.max() >= len(self._positions):
            raise ValueError(f"a text of {mask.sum(axis=1).max()} tokens has no positions in the model")
        return rows


class _MlxQwen3:
    """Qwen3 as an encoder. Reference: the Qwen3 technical report; `Qwen3.forward` is the same in numpy."""

    def __init__(self, qwen3: Qwen3, dtype: mx.Dtype) -> None:
        tensors = qwen3.tensors
        self._words = _Words(tensors["embed_tokens.weight"], dtype)
        self._parameters = _Parameters.read(tensors, set(tensors) - {"embed_tokens.weight"}, dtype)
        self._heads, self._num_kv_heads, self._head_dim = qwen3.heads, qwen3.num_kv_heads, qwen3.head_dim
        self._layers, self._epsilon, self._rope_theta = qwen3.layers, qwen3.epsilon, qwen3.rope_theta
        self._is_causal = qwen3.is_causal

    def forward(self, ids: Int64, mask: Int64) -> mx.array:
        """See `MlxModel`."""
        x = self._words.look_up(ids)
        attended = _attended_before(mask) if self._is_causal else _attended_by_all(mask)
        # Positions begin with the text, wherever its padding is: in 16 bits the same angle between others is not equal.
        first = mx.array(-mask.argmax(axis=1).astype(np.int32))
        for layer in range(self._layers):
            scope = f"layers.{layer}"
            x = x + self._attention(f"{scope}.self_attn", self._norm(f"{scope}.input_layernorm", x), attended, first)
            normal = self._norm(f"{scope}.post_attention_layernorm", x)
            gate = _silu(self._parameters.linear(f"{scope}.mlp.gate_proj", normal))
            inner = gate * self._parameters.linear(f"{scope}.mlp.up_proj", normal)
            x = x + self._parameters.linear(f"{scope}.mlp.down_proj", inner)
        return self._norm("norm", x)

    def _attention(self, scope: str, x: mx.array, attended: mx.array | str | None, first: mx.array) -> mx.array:
        query = self._rotated_heads(scope, "q", x, self._heads, first)
        key = self._rotated_heads(scope, "k", x, self._num_kv_heads, first)
        value = _heads(self._parameters.linear(f"{scope}.v_proj", x), self._num_kv_heads)
        return self._parameters.linear(f"{scope}.o_proj", _attend(query, key, value, attended))

    def _rotated_heads(self, scope: str, part: str, x: mx.array, heads: int, first: mx.array) -> mx.array:
        """Project to heads, normalise each, and rotate its pairs by the position; `first` (B,) is that of column 0."""
        projected = _heads(self._parameters.linear(f"{scope}.{part}_proj", x), heads)
        normal = self._norm(f"{scope}.{part}_norm", projected)
        return mx.fast.rope(normal, self._head_dim, traditional=False, base=self._rope_theta, scale=1.0, offset=first)

    def _norm(self, scope: str, x: mx.array) -> mx.array:
        return self._parameters.rms_norm(scope, x, self._epsilon)
