"""ModernBERT: an ONNX graph, and the numpy forward pass that it is compared with.

Rotary positions, a norm before each part, gated feed-forward parts, and layers that attend to all tokens or to those
within a window. B, T, D and W are batch, tokens, hidden size and the width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from embed_worker.encoders.activation_functions import ACTIVATIONS, Activation
from embed_worker.encoders.checkpoint import ExportError, Floats, Int64, Weights, chosen, epsilon, size, tensor_of
from embed_worker.encoders.onnx_writer import GraphWriter, Storage, shown
from embed_worker.encoders.rope import WrittenRope, apply_rope, inv_freq, rope_of, write_positions
from embed_worker.model_files.safetensors import Tensor

# Of the scores: added to what a token does not attend to. Its weight is then exactly 0, and nothing overflows.
_MASKED = -1e9

FULL, SLIDING = "full_attention", "sliding_attention"
_DEFAULT_THETA = {FULL: 160_000.0, SLIDING: 10_000.0}
_OLD_THETA_KEYS = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModernBert:
    """A ModernBERT without its heads.

    `tensors` have the names of the checkpoint without the prefix `model.`; linear weights are (out, in).

    Attributes:
        layer_types: Of each layer, `FULL` or `SLIDING`.
        window: How far the tokens are that a sliding layer's token attends to, on either side.
        theta: The base of the rotary positions by the type of the layer.
    """

    vocabulary: int
    max_tokens: int
    hidden_size: int
    intermediate_size: int
    heads: int
    layer_types: tuple[str, ...]
    window: int
    theta: Mapping[str, float]
    epsilon: float
    activation: Activation
    tensors: Weights

    @classmethod
    def read(cls, config: Mapping[str, Any], file: Mapping[str, Tensor]) -> Self:
        """Check a checkpoint's configuration and its tensors. Defaults are those of transformers.

        Raises:
            ExportError: It is a variant that is not written here, or a tensor is missing or has another shape.
        """
        hidden_size, heads = size(config, "hidden_size", 768), size(config, "num_attention_heads", 12)
        if hidden_size % (2 * heads):
            raise ExportError(
                f"config.json has a hidden_size of {hidden_size} that {heads} heads of pairs do not divide"
            )
        prefix = "" if "embeddings.tok_embeddings.weight" in file else "model."
        layers = size(config, "num_hidden_layers", 22)
        # A damaged number may be any: the last layer is looked for before all are counted.
        tensor_of(file, f"{prefix}layers.{layers - 1}.mlp_norm.weight", (hidden_size,))
        layer_types = _layer_types(config, layers)
        sizes = {
            "vocabulary": size(config, "vocab_size", 50368),
            "hidden_size": hidden_size,
            "intermediate_size": size(config, "intermediate_size", 1152),
        }
        biases = {part: bool(config.get(f"{part}_bias", False)) for part in ("attention", "mlp", "norm")}
        return cls(
            **sizes,
            max_tokens=size(config, "max_position_embeddings", 8192),
            heads=heads,
            layer_types=layer_types,
            window=size(config, "local_attention", 128) // 2,
            theta={kind: _theta(config, kind) for kind in dict.fromkeys(layer_types)},
            epsilon=epsilon(config, "norm_eps", 1e-5),
            activation=chosen(config, "hidden_activation", "gelu", ACTIVATIONS),
            tensors=Weights(file, _shapes(**sizes, layers=len(layer_types), biases=biases), lambda name: prefix + name),
        )

    @property
    def token_types(self) -> int:
        """There are none."""
        return 0

    @property
    def counts_tokens(self) -> bool:
        """Positions are counted over the tokens, wherever the padding is."""
        return True

    @property
    def _head_dim(self) -> int:
        return self.hidden_size // self.heads

    # As a graph

    def graph(self, storage: Storage, opset: int, data: BinaryIO | None = None) -> Any:
        """Build the `onnx.ModelProto`: `input_ids` and `attention_mask` to `last_hidden_state`; see `Encoder`."""
        graph = GraphWriter(storage, opset, data)
        biases = self._write_attention_biases(graph)
        positions = write_positions(graph)
        ropes = {
            kind: WrittenRope.write(graph, positions, inv_freq(theta, self._head_dim), f"{kind}.")
            for kind, theta in self.theta.items()
        }
        table = graph.stored("embeddings.tok_embeddings.weight", self.tensors["embeddings.tok_embeddings.weight"])
        words = graph.picked("embeddings", graph.node("embeddings.rows", "Gather", table, "input_ids"))
        hidden = self._write_norm(graph, "embeddings.norm", words)
        for layer in shown(range(len(self.layer_types)), "graph"):
            scope, kind = f"layers.{layer}", self.layer_types[layer]
            normal = self._write_norm(graph, f"{scope}.attn_norm", hidden) if layer else hidden
            attended = self._write_attention(graph, f"{scope}.attn", normal, biases[kind], ropes[kind])
            hidden = graph.node(f"{scope}.attended", "Add", hidden, attended)
            normal = self._write_norm(graph, f"{scope}.mlp_norm", hidden)
            hidden = graph.node(f"{scope}.hidden", "Add", hidden, self._write_mlp(graph, f"{scope}.mlp", normal))
        output = graph.node("last_hidden_state", "Identity", self._write_norm(graph, "final_norm", hidden))
        return graph.model(["input_ids", "attention_mask"], output, self.hidden_size)

    def _write_attention_biases(self, graph: GraphWriter) -> dict[str, str]:
        """Turn the mask into what is added to the scores: (B, 1, 1, T) of full layers, (B, 1, T, T) of sliding ones."""
        one = graph.constant("one", np.array(1, np.int64))
        axes = graph.constant("attention_mask.axes", np.array([1, 2], np.int64))
        keys = graph.node("attention_mask.unsqueezed", "Unsqueeze", "attention_mask", axes)
        attended = {FULL: graph.node("is_token", "Equal", keys, one)}
        if SLIDING in self.theta:
            length = graph.node("sequence_length", "Gather", graph.node("shape", "Shape", "input_ids"), one)
            places = graph.node("places", "Range", graph.constant("zero", np.array(0, np.int64)), length, one)
            column = graph.constant("places.axis", np.array([1], np.int64))
            rows = graph.node("places.column", "Unsqueeze", places, column)
            distances = graph.node("distances", "Abs", graph.node("distances.signed", "Sub", rows, places))
            window = graph.constant("window", np.array(self.window, np.int64))
            is_near = graph.node("is_near", "LessOrEqual", distances, window)
            attended[SLIDING] = graph.node("is_near_token", "And", attended[FULL], is_near)
        return {
            kind: graph.node(f"{kind}.bias", "Where", attended[kind], graph.scalar(0), graph.scalar(_MASKED))
            for kind in self.theta
        }

    def _write_attention(self, graph: GraphWriter, scope: str, x: str, bias: str, rope: WrittenRope) -> str:
        shape = graph.constant("shape.qkv", np.array([0, 0, 3, self.heads, self._head_dim], np.int64))
        split = graph.node(f"{scope}.split", "Reshape", self._write_linear(graph, f"{scope}.Wqkv", x), shape)
        rows = graph.node(f"{scope}.rows", "Transpose", split, perm=[2, 0, 3, 1, 4])
        query, key, value = (
            graph.node(f"{scope}.{part}", "Gather", rows, graph.constant(f"part.{place}", np.array(place, np.int64)))
            for place, part in enumerate(("query", "key", "value"))
        )
        query = rope.write_applied(graph, f"{scope}.query", query, self._head_dim)
        key = rope.write_applied(graph, f"{scope}.key", key, self._head_dim)
        columns = graph.node(f"{scope}.key_columns", "Transpose", key, perm=[0, 1, 3, 2])
        products = graph.node(f"{scope}.products", "MatMul", query, columns)
        scores = graph.node(f"{scope}.scores", "Div", products, graph.scalar(math.sqrt(self._head_dim)))
        weights = graph.node(f"{scope}.weights", "Softmax", graph.node(f"{scope}.masked", "Add", scores, bias), axis=3)
        context = graph.node(f"{scope}.context", "MatMul", weights, value)
        by_token = graph.node(f"{scope}.context_by_token", "Transpose", context, perm=[0, 2, 1, 3])
        joined = graph.constant("shape.joined", np.array([0, 0, self.hidden_size], np.int64))
        return self._write_linear(graph, f"{scope}.Wo", graph.node(f"{scope}.joined", "Reshape", by_token, joined))

    def _write_mlp(self, graph: GraphWriter, scope: str, x: str) -> str:
        expanded, gate = graph.halves(
            f"{scope}.halves", self._write_linear(graph, f"{scope}.Wi", x), 2 * self.intermediate_size
        )
        activated = self.activation.write(graph, f"{scope}.activation", expanded)
        return self._write_linear(graph, f"{scope}.Wo", graph.node(f"{scope}.gated", "Mul", activated, gate))

    def _write_linear(self, graph: GraphWriter, scope: str, x: str) -> str:
        product = graph.node(
            f"{scope}.product", "MatMul", x, graph.weight(f"{scope}.weight", self.tensors[f"{scope}.weight"].T)
        )
        if f"{scope}.bias" not in self.tensors:
            return product
        bias = graph.constant(f"{scope}.bias", self.tensors[f"{scope}.bias"].astype(np.float32))
        return graph.node(f"{scope}.output", "Add", product, bias)

    def _write_norm(self, graph: GraphWriter, scope: str, x: str) -> str:
        parts = [
            graph.constant(name, self.tensors[name].astype(np.float32))
            for name in (f"{scope}.weight", f"{scope}.bias")
            if name in self.tensors
        ]
        return graph.node(scope, "LayerNormalization", x, *parts, axis=-1, epsilon=self.epsilon)

    # In numpy

    def forward(self, ids: Int64, types: Int64) -> Floats:
        """Compute the (T, D) last hidden state of one sequence in float64: no batch, no padding; types mean nothing.

        Reference: Warner et al., ModernBERT.
        """
        ropes = {kind: rope_of(len(ids), inv_freq(theta, self._head_dim)) for kind, theta in self.theta.items()}
        distances = np.abs(np.subtract.outer(np.arange(len(ids)), np.arange(len(ids))))
        masks = {FULL: np.full_like(distances, True, dtype=bool), SLIDING: distances <= self.window}
        x = self._norm("embeddings.norm", self.tensors["embeddings.tok_embeddings.weight"][ids].astype(np.float64))
        for layer in shown(range(len(self.layer_types)), "check"):
            scope, kind = f"layers.{layer}", self.layer_types[layer]
            normal = self._norm(f"{scope}.attn_norm", x) if layer else x
            x = x + self._attend(f"{scope}.attn", normal, ropes[kind], masks[kind])
            expanded, gate = np.split(self._linear(f"{scope}.mlp.Wi", self._norm(f"{scope}.mlp_norm", x)), 2, axis=1)
            x = x + self._linear(f"{scope}.mlp.Wo", self.activation.compute(expanded) * gate)
        return self._norm("final_norm", x)

    def _attend(self, scope: str, x: Floats, rope: NDArray[np.complex128], mask: NDArray[np.bool_]) -> Floats:
        tokens = len(x)
        projected = self._linear(f"{scope}.Wqkv", x).reshape(tokens, 3, self.heads, self._head_dim)
        query, key, value = projected.transpose(1, 2, 0, 3)
        products = apply_rope(query, rope) @ apply_rope(key, rope).swapaxes(1, 2)
        scores = np.where(mask, products / math.sqrt(self._head_dim), -np.inf)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        context = weights / weights.sum(axis=2, keepdims=True) @ value
        return self._linear(f"{scope}.Wo", context.swapaxes(0, 1).reshape(tokens, -1))

    def _linear(self, scope: str, x: Floats) -> Floats:
        projected: Floats = x @ self.tensors[f"{scope}.weight"].T.astype(np.float64)
        return projected + self.tensors[f"{scope}.bias"] if f"{scope}.bias" in self.tensors else projected

    def _norm(self, scope: str, x: Floats) -> Floats:
        centred = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.epsilon)
        normal: Floats = centred / deviation * self.tensors[f"{scope}.weight"]
        return normal + self.tensors[f"{scope}.bias"] if f"{scope}.bias" in self.tensors else normal


def _layer_types(config: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    """Return which layers attend to all tokens: those that are listed, or each third beginning with the first."""
    kinds = config.get("layer_types")
    if kinds is None:
        every = size(config, "global_attn_every_n_layers", 3)
        return tuple(SLIDING if layer % every else FULL for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers or not {FULL, SLIDING}.issuperset(map(str, kinds)):
        raise ExportError(f"config.json needs {layers} layer_types, each {FULL} or {SLIDING}")
    return tuple(kinds)


def _theta(config: Mapping[str, Any], kind: str) -> float:
    """Return the base of the rotary positions of a type of layers, wherever this version of transformers has put it.

    Raises:
        ExportError: It is no number above 1, or positions are scaled.
    """
    if config.get("rope_scaling") is not None:
        raise ExportError("a ModernBERT with rope_scaling cannot be exported")
    parameters = config.get("rope_parameters") or {}
    rope = (parameters.get(kind) if isinstance(parameters, dict) else None) or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise ExportError(f"a ModernBERT with the rotary positions {rope!r} cannot be exported, only 'default'")
    theta = rope.get("rope_theta", config.get(_OLD_THETA_KEYS[kind], _DEFAULT_THETA[kind]))
    if not isinstance(theta, int | float) or isinstance(theta, bool) or not 1 < theta < math.inf:
        raise ExportError(f"config.json needs a rope_theta above 1 for {kind}, not {theta!r}")
    return float(theta)


def _shapes(
    *, vocabulary: int, hidden_size: int, intermediate_size: int, layers: int, biases: Mapping[str, bool]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of the tensors."""

    def with_bias(kind: str, scope: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{scope}.weight", shape
        if biases[kind]:
            yield f"{scope}.bias", shape[:1]

    yield "embeddings.tok_embeddings.weight", (vocabulary, hidden_size)
    yield from with_bias("norm", "embeddings.norm", hidden_size)
    for layer in range(layers):
        scope = f"layers.{layer}"
        if layer:
            yield from with_bias("norm", f"{scope}.attn_norm", hidden_size)
        yield from with_bias("attention", f"{scope}.attn.Wqkv", 3 * hidden_size, hidden_size)
        yield from with_bias("attention", f"{scope}.attn.Wo", hidden_size, hidden_size)
        yield from with_bias("norm", f"{scope}.mlp_norm", hidden_size)
        yield from with_bias("mlp", f"{scope}.mlp.Wi", 2 * intermediate_size, hidden_size)
        yield from with_bias("mlp", f"{scope}.mlp.Wo", hidden_size, intermediate_size)
    yield from with_bias("norm", "final_norm", hidden_size)
