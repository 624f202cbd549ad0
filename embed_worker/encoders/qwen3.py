"""Qwen3 as an encoder (Qwen3-Embedding): an ONNX graph, and the numpy forward pass that it is compared with.

B, T, D and W are batch, tokens, hidden size and the width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from embed_worker.encoders.checkpoint import ExportError, Floats, Int64, Weights, chosen, epsilon, size
from embed_worker.encoders.onnx_writer import GraphWriter, Storage, shown
from embed_worker.encoders.rope import WrittenRope, apply_rope, inv_freq, rope_of, write_positions
from embed_worker.model_files.safetensors import Tensor

# Of the scores: added to what a token does not see. A weight of e to this power is 0, and it is far from overflowing.
_MASKED = -1e9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Qwen3:
    """A Qwen3 without its language-model head: rotary positions, grouped queries, an RMS norm before each part.

    `tensors` have the names of the checkpoint without the prefix `model.`; linear weights are (out, in).

    Attributes:
        heads: Of the queries; a multiple of `num_kv_heads`.
        num_kv_heads: Of keys and values; `heads // num_kv_heads` neighbouring query heads share each.
        head_dim: Of every head, whatever `hidden_size` and `heads` are.
        has_biases: The four projections of the attention have biases.
        is_causal: A token sees itself and the tokens before it; else it sees all.
    """

    vocabulary: int
    max_tokens: int
    hidden_size: int
    intermediate_size: int
    heads: int
    num_kv_heads: int
    head_dim: int
    layers: int
    epsilon: float
    rope_theta: float
    has_biases: bool
    is_causal: bool
    tensors: Weights

    @classmethod
    def read(cls, config: Mapping[str, Any], file: Mapping[str, Tensor]) -> Self:
        """Check a checkpoint's configuration and its tensors. Defaults are those of transformers.

        Raises:
            ExportError: It is a variant that is not written here, or a tensor is missing or has another shape.
        """
        chosen(config, "hidden_act", "silu", {"silu": None, "swish": None})
        layers = size(config, "num_hidden_layers")
        _refuse_sliding_windows(config, layers)
        heads = size(config, "num_attention_heads")
        shared = config.get("num_key_value_heads", 32)
        num_kv_heads = heads if shared is None else size(config, "num_key_value_heads", 32)
        if heads % num_kv_heads:
            raise ExportError(f"config.json has {heads} attention heads that {num_kv_heads} key heads do not divide")
        head_dim = size(config, "head_dim", 128)
        if head_dim % 2:
            raise ExportError(f"config.json has a head_dim of {head_dim}, and rotary positions need pairs")
        sizes = {
            "vocabulary": size(config, "vocab_size"),
            "hidden_size": size(config, "hidden_size"),
            "intermediate_size": size(config, "intermediate_size"),
            "heads": heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "layers": layers,
        }
        has_biases = bool(config.get("attention_bias", False))
        prefix = "" if "embed_tokens.weight" in file else "model."
        return cls(
            **sizes,
            max_tokens=size(config, "max_position_embeddings", 32768),
            epsilon=epsilon(config, "rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(config),
            has_biases=has_biases,
            is_causal=bool(config.get("is_causal", True)),
            tensors=Weights(file, _shapes(**sizes, has_biases=has_biases), lambda name: prefix + name),
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
    def inv_freq(self) -> Floats:
        """Angles by which the pairs of a head are rotated from one position to the next: (W / 2,) float32."""
        return inv_freq(self.rope_theta, self.head_dim)

    def graph(self, storage: Storage, opset: int, data: BinaryIO | None = None) -> Any:
        """Build the `onnx.ModelProto`: `input_ids` and `attention_mask` to `last_hidden_state`; see `Encoder`."""
        graph = GraphWriter(storage, opset, data)
        bias = self._write_attention_bias(graph)
        rope = WrittenRope.write(graph, write_positions(graph), self.inv_freq)
        table = graph.stored("embed_tokens.weight", self.tensors["embed_tokens.weight"])
        hidden = graph.picked("embed_tokens", graph.node("embed_tokens.rows", "Gather", table, "input_ids"))
        for layer in shown(range(self.layers), "graph"):
            scope = f"layers.{layer}"
            normal = self._write_norm(graph, f"{scope}.input_layernorm", hidden)
            attended = self._write_attention(graph, f"{scope}.self_attn", normal, bias, rope)
            hidden = graph.node(f"{scope}.attended", "Add", hidden, attended)
            normal = self._write_norm(graph, f"{scope}.post_attention_layernorm", hidden)
            hidden = graph.node(f"{scope}.hidden", "Add", hidden, self._write_mlp(graph, f"{scope}.mlp", normal))
        output = graph.node("last_hidden_state", "Identity", self._write_norm(graph, "norm", hidden))
        return graph.model(["input_ids", "attention_mask"], output, self.hidden_size)

    def _write_attention_bias(self, graph: GraphWriter) -> str:
        """Turn the mask into (B, 1, T, T): 0 where a token is attended to, else so low that its weight is exactly 0.

        It is finite: what stands in padding before a text sees nothing, and its softmax must not be 0 / 0.
        """
        one = graph.constant("one", np.array(1, np.int64))
        axes = graph.constant("attention_mask.axes", np.array([1, 2], np.int64))
        keys = graph.node("attention_mask.unsqueezed", "Unsqueeze", "attention_mask", axes)
        is_attended = graph.node("is_token", "Equal", keys, one)
        if self.is_causal:
            length = graph.node("sequence_length", "Gather", graph.node("shape", "Shape", "input_ids"), one)
            places = graph.node("places", "Range", graph.constant("zero", np.array(0, np.int64)), length, one)
            column = graph.constant("places.axis", np.array([1], np.int64))
            rows = graph.node("places.column", "Unsqueeze", places, column)
            is_attended = graph.node(
                "is_seen", "And", is_attended, graph.node("is_before", "GreaterOrEqual", rows, places)
            )
        return graph.node("attention_bias", "Where", is_attended, graph.scalar(0), graph.scalar(_MASKED))

    def _write_attention(self, graph: GraphWriter, scope: str, x: str, bias: str, rope: WrittenRope) -> str:
        """Attend. The queries that share a key head are rows of one matrix, so that keys are not repeated.

        Measured on three layers of the 0.6B size, one thread, 384 tokens as 16, 3 and 1 texts: keys and values repeated
        are 3 to 8 % slower, broadcast over a fifth axis 1 to 8 %.
        """
        query = self._write_rotated_heads(graph, scope, "q", x, self.heads, rope)
        query = self._write_reshaped(graph, f"{scope}.q_groups", query, 0, self.num_kv_heads, -1, self.head_dim)
        key = self._write_rotated_heads(graph, scope, "k", x, self.num_kv_heads, rope)
        key = graph.node(f"{scope}.k_columns", "Transpose", key, perm=[0, 1, 3, 2])
        value = self._write_heads(graph, scope, "v", x, self.num_kv_heads)
        value = graph.node(f"{scope}.v_rows", "Transpose", value, perm=[0, 2, 1, 3])
        products = graph.node(f"{scope}.products", "MatMul", query, key)
        scores = graph.node(f"{scope}.scores", "Div", products, graph.scalar(math.sqrt(self.head_dim)))
        scores = self._write_reshaped(graph, f"{scope}.scores_by_head", scores, 0, self.heads, -1, 0)
        masked = graph.node(f"{scope}.masked", "Add", scores, bias)
        weights = graph.node(f"{scope}.weights", "Softmax", masked, axis=3)
        weights = self._write_reshaped(graph, f"{scope}.weights_by_group", weights, 0, self.num_kv_heads, -1, 0)
        context = graph.node(f"{scope}.context", "MatMul", weights, value)
        context = self._write_reshaped(graph, f"{scope}.context_by_head", context, 0, self.heads, -1, self.head_dim)
        context = graph.node(f"{scope}.context_by_token", "Transpose", context, perm=[0, 2, 1, 3])
        context = self._write_reshaped(graph, f"{scope}.context_rows", context, 0, 0, self.heads * self.head_dim)
        return self._write_linear(graph, f"{scope}.o_proj", context)

    def _write_heads(self, graph: GraphWriter, scope: str, part: str, x: str, heads: int) -> str:
        """Project to heads: (B, T, D) to (B, T, heads, W)."""
        projected = self._write_linear(graph, f"{scope}.{part}_proj", x)
        return self._write_reshaped(graph, f"{scope}.{part}_heads", projected, 0, 0, heads, self.head_dim)

    def _write_rotated_heads(
        self, graph: GraphWriter, scope: str, part: str, x: str, heads: int, rope: WrittenRope
    ) -> str:
        """Project to heads, normalise each and rotate its pairs by the position: (B, T, D) to (B, heads, T, W)."""
        normal = self._write_norm(graph, f"{scope}.{part}_norm", self._write_heads(graph, scope, part, x, heads))
        rows = graph.node(f"{scope}.{part}_rows", "Transpose", normal, perm=[0, 2, 1, 3])
        return rope.write_applied(graph, f"{scope}.{part}", rows, self.head_dim)

    def _write_mlp(self, graph: GraphWriter, scope: str, x: str) -> str:
        gate = self._write_linear(graph, f"{scope}.gate_proj", x)
        gate = graph.node(f"{scope}.silu", "Mul", gate, graph.node(f"{scope}.sigmoid", "Sigmoid", gate))
        expanded = graph.node(f"{scope}.inner", "Mul", gate, self._write_linear(graph, f"{scope}.up_proj", x))
        return self._write_linear(graph, f"{scope}.down_proj", expanded)

    def _write_linear(self, graph: GraphWriter, scope: str, x: str) -> str:
        weight = graph.weight(f"{scope}.weight", self.tensors[f"{scope}.weight"].T)
        product = graph.node(f"{scope}.product", "MatMul", x, weight)
        if f"{scope}.bias" not in self.tensors:
            return product
        bias = graph.constant(f"{scope}.bias", self.tensors[f"{scope}.bias"].astype(np.float32))
        return graph.node(f"{scope}.output", "Add", product, bias)

    def _write_norm(self, graph: GraphWriter, scope: str, x: str) -> str:
        """Divide by the root mean square; onnxruntime fuses these six into one operator."""
        square = graph.node(f"{scope}.square", "Pow", x, graph.scalar(2))
        raised = graph.node(f"{scope}.raised", "Add", graph.mean(f"{scope}.mean", square), graph.scalar(self.epsilon))
        normal = graph.node(f"{scope}.normal", "Div", x, graph.node(f"{scope}.root", "Sqrt", raised))
        weight = graph.constant(f"{scope}.weight", self.tensors[f"{scope}.weight"].astype(np.float32))
        return graph.node(scope, "Mul", normal, weight)

    def _write_reshaped(self, graph: GraphWriter, name: str, x: str, *shape: int) -> str:
        """Reshape; 0 keeps the length of that axis, and -1 takes the rest."""
        sizes = graph.constant(f"shape.{'_'.join(map(str, shape))}", np.array(shape, np.int64))
        return graph.node(name, "Reshape", x, sizes)

    def forward(self, ids: Int64, types: Int64) -> Floats:
        """Compute the (T, D) last hidden state of one sequence in float64: no batch, no mask; types mean nothing.

        Reference: the Qwen3 technical report; Su et al., RoFormer; Ainslie et al., GQA; Zhang and Sennrich, RMSNorm.
        """
        x: Floats = self.tensors["embed_tokens.weight"][ids].astype(np.float64)
        rope = rope_of(len(ids), self.inv_freq)
        for layer in shown(range(self.layers), "check"):
            scope = f"layers.{layer}"
            x = x + self._attend(f"{scope}.self_attn", self._norm(f"{scope}.input_layernorm", x), rope)
            normal = self._norm(f"{scope}.post_attention_layernorm", x)
            gate = self._linear(f"{scope}.mlp.gate_proj", normal)
            expanded = gate / (1 + np.exp(-gate)) * self._linear(f"{scope}.mlp.up_proj", normal)
            x = x + self._linear(f"{scope}.mlp.down_proj", expanded)
        return self._norm("norm", x)

    def _attend(self, scope: str, x: Floats, rope: NDArray[np.complex128]) -> Floats:
        tokens = len(x)
        query, key, value = (
            self._linear(f"{scope}.{part}_proj", x).reshape(tokens, heads, self.head_dim).swapaxes(0, 1)
            for part, heads in (("q", self.heads), ("k", self.num_kv_heads), ("v", self.num_kv_heads))
        )
        query = apply_rope(self._norm(f"{scope}.q_norm", query), rope)
        key = apply_rope(self._norm(f"{scope}.k_norm", key), rope)
        key, value = (np.repeat(part, self.heads // self.num_kv_heads, axis=0) for part in (key, value))
        scores = query @ key.swapaxes(1, 2) / math.sqrt(self.head_dim)
        if self.is_causal:
            scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        context = weights / weights.sum(axis=2, keepdims=True) @ value
        return self._linear(f"{scope}.o_proj", context.swapaxes(0, 1).reshape(tokens, -1))

    def _linear(self, scope: str, x: Floats) -> Floats:
        projected: Floats = x @ self.tensors[f"{scope}.weight"].T.astype(np.float64)
        return projected + self.tensors[f"{scope}.bias"] if f"{scope}.bias" in self.tensors else projected

    def _norm(self, scope: str, x: Floats) -> Floats:
        root = np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.epsilon)
        normal: Floats = x / root * self.tensors[f"{scope}.weight"]
        return normal


def _refuse_sliding_windows(config: Mapping[str, Any], layers: int) -> None:
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ExportError("a model with layer_types other than full_attention cannot be exported")
    window, first = config.get("sliding_window", 4096), config.get("max_window_layers", 28)
    is_used = bool(config.get("use_sliding_window", False)) and window is not None and not kinds
    if is_used and not (isinstance(first, int) and first >= layers):
        raise ExportError(f"a model with a sliding window of {window!r} tokens cannot be exported")


def _rope_theta(config: Mapping[str, Any]) -> float:
    """Return the base of the rotary positions, wherever this version of transformers has put it.

    Raises:
        ExportError: It is missing, or positions are scaled.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if isinstance(rope, dict):
        rope = rope.get("full_attention", rope)
    if not isinstance(rope, dict):
        raise ExportError(f"config.json has rope parameters that are not an object: {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1)) != 1:
        raise ExportError(
            f"a model with rotary positions of the kind {kind!r} cannot be exported, only 'default' whole"
        )
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if not isinstance(theta, int | float) or isinstance(theta, bool) or not 1 < theta < math.inf:
        raise ExportError(f"config.json needs a rope_theta above 1, not {theta!r}")
    return float(theta)


def _shapes(
    *,
    vocabulary: int,
    hidden_size: int,
    intermediate_size: int,
    heads: int,
    num_kv_heads: int,
    head_dim: int,
    layers: int,
    has_biases: bool,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of the tensors of a Qwen3, lazily: a damaged `layers` may be any number."""
    yield "embed_tokens.weight", (vocabulary, hidden_size)
    projections = {
        "self_attn.q_proj": (heads * head_dim, hidden_size),
        "self_attn.k_proj": (num_kv_heads * head_dim, hidden_size),
        "self_attn.v_proj": (num_kv_heads * head_dim, hidden_size),
        "self_attn.o_proj": (hidden_size, heads * head_dim),
        "mlp.gate_proj": (intermediate_size, hidden_size),
        "mlp.up_proj": (intermediate_size, hidden_size),
        "mlp.down_proj": (hidden_size, intermediate_size),
    }
    norms = {
        "input_layernorm": hidden_size,
        "post_attention_layernorm": hidden_size,
        "self_attn.q_norm": head_dim,
        "self_attn.k_norm": head_dim,
    }
    for layer in range(layers):
        scope = f"layers.{layer}"
        for part, shape in projections.items():
            yield f"{scope}.{part}.weight", shape
            if has_biases and part.startswith("self_attn"):
                yield f"{scope}.{part}.bias", shape[:1]
        for part, length in norms.items():
            yield f"{scope}.{part}.weight", (length,)
    yield "norm.weight", (hidden_size,)
