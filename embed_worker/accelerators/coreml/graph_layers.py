"""The layers of an encoder as CoreML takes them whole: float inputs, plain operators, shapes that a bucket fixes.

Reshapes name the lengths that they keep by 0, so that constants suffice. B, S and H are texts, tokens and hidden size;
W is the width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embed_worker.accelerators.coreml.graph import BATCH_DIMENSION, LENGTH_DIMENSION
from embed_worker.encoders.bert import Bert
from embed_worker.encoders.checkpoint import Floats
from embed_worker.encoders.onnx_writer import GraphWriter, Storage
from embed_worker.encoders.qwen3 import Qwen3

# 20 is the first opset with Gelu.
_OPSET = 20


def dedicated_graph(encoder: Bert | Qwen3) -> Any:
    """Build the `onnx.ModelProto` of everything behind the embeddings, pooling included.

    Its inputs are those of `CoremlModel.feeds`; its output is `pooled`, (B, H).
    """
    return _bert_graph(encoder) if isinstance(encoder, Bert) else _qwen3_graph(encoder)


class _CoremlGraph(GraphWriter):
    """A graph of float inputs, with the steps that both architectures have."""

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        super().__init__(Storage.FLOAT32, _OPSET)
        self._tensors = tensors
        self._inputs: list[Any] = []

    def input(self, name: str, *shape: int | str) -> str:
        """Declare a float32 input."""
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, shape))
        return name

    def gelu(self, name: str, x: str, approximate: str) -> str:
        """Apply GELU, exact ("none") or by the tangent ("tanh")."""
        self._nodes.append(self._onnx.helper.make_node("Gelu", [x], [name], name=name, approximate=approximate))
        return name

    def vector(self, name: str) -> str:
        """Store a norm's scale, or a bias."""
        return self.constant(name, self._tensors[name].astype(np.float32))

    def linear(self, scope: str, x: str) -> str:
        """Multiply with a layer's weight, and add its bias if it has one."""
        product = self.node(
            f"{scope}.product", "MatMul", x, self.weight(f"{scope}.weight", self._tensors[f"{scope}.weight"].T)
        )
        if f"{scope}.bias" not in self._tensors:
            return product
        return self.node(f"{scope}.output", "Add", product, self.vector(f"{scope}.bias"))

    def reshaped(self, name: str, x: str, *shape: int) -> str:
        """Reshape; 0 keeps the length of that axis, and -1 takes the rest."""
        lengths = self.constant(f"shape.{'_'.join(map(str, shape))}", np.array(shape, np.int64))
        return self.node(name, "Reshape", x, lengths)

    def attention(
        self, scope: str, query: str, key: str, value: str, heads: int, num_kv_heads: int, head_dim: int
    ) -> str:
        """Attend: (B, heads, S, W), (B, num_kv_heads, W, S), (B, num_kv_heads, S, W) to (B, S, heads * W).

        The queries that share a key head become rows of one matrix: keys and values need not be repeated, for which
        there is no operator that every version of the provider has.
        """
        is_shared = heads != num_kv_heads
        if is_shared:
            query = self.reshaped(f"{scope}.query.shared", query, 0, num_kv_heads, -1, head_dim)
        products = self.node(f"{scope}.products", "MatMul", query, key)
        scores = self.node(f"{scope}.scores", "Mul", products, self.scalar(1 / math.sqrt(head_dim)))
        if is_shared:
            scores = self.reshaped(f"{scope}.scores.by_head", scores, 0, heads, -1, 0)
        masked = self.node(f"{scope}.masked", "Add", scores, "attention_bias")
        weights = self.node(f"{scope}.weights", "Softmax", masked, axis=3)
        if is_shared:
            weights = self.reshaped(f"{scope}.weights.shared", weights, 0, num_kv_heads, -1, 0)
        context = self.node(f"{scope}.context", "MatMul", weights, value)
        if is_shared:
            context = self.reshaped(f"{scope}.context.by_head", context, 0, heads, -1, head_dim)
        by_token = self.node(f"{scope}.context.by_token", "Transpose", context, perm=[0, 2, 1, 3])
        return self.reshaped(f"{scope}.context.rows", by_token, 0, 0, heads * head_dim)

    def pooled(self, hidden: str, hidden_size: int) -> Any:
        """Finish: sum the vectors of the tokens with the pooling's weights, and build the `onnx.ModelProto`."""
        helper = self._onnx.helper
        summed = self.node("summed", "MatMul", "pooling_weights", hidden)
        self.node("pooled", "Squeeze", summed, self.constant("pooled.axes", np.array([1], np.int64)))
        output = helper.make_tensor_value_info("pooled", self._onnx.TensorProto.FLOAT, [BATCH_DIMENSION, hidden_size])
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(
            helper.make_graph(self._nodes, "encoder", self._inputs, [output]),
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="embed-worker export --for coreml",
        )
        # One by one: weights may be 2 GB, and whoever makes a model copies them.
        while self._initializers:
            model.graph.initializer.append(self._initializers.pop(next(iter(self._initializers))))
        return model


_GELUS = {"gelu": "none", "gelu_tanh": "tanh"}


def _bert_graph(encoder: Bert) -> Any:
    """Build the layers of a BERT from its first norm on."""
    graph = _CoremlGraph(encoder.tensors)
    _declare_inputs(graph, encoder.hidden_size, 1)

    def norm(scope: str, x: str) -> str:
        scale, shift = graph.vector(f"{scope}.weight"), graph.vector(f"{scope}.bias")
        return graph.node(scope, "LayerNormalization", x, scale, shift, axis=-1, epsilon=encoder.epsilon)

    def heads(scope: str, x: str, axes: Sequence[int]) -> str:
        head_dim = encoder.hidden_size // encoder.heads
        split = graph.reshaped(f"{scope}.split", graph.linear(scope, x), 0, 0, encoder.heads, head_dim)
        return graph.node(f"{scope}.heads", "Transpose", split, perm=axes)

    def activated(scope: str, x: str) -> str:
        if (gelu := _GELUS.get(encoder.activation.name)) is not None:
            return graph.gelu(scope, x, gelu)
        return encoder.activation.write(graph, scope, x)

    hidden = norm("embeddings.LayerNorm", "inputs_embeds")
    for layer in range(encoder.layers):
        scope = f"encoder.layer.{layer}"
        attended = graph.attention(
            f"{scope}.attention.self",
            heads(f"{scope}.attention.self.query", hidden, [0, 2, 1, 3]),
            heads(f"{scope}.attention.self.key", hidden, [0, 2, 3, 1]),
            heads(f"{scope}.attention.self.value", hidden, [0, 2, 1, 3]),
            encoder.heads,
            encoder.heads,
            encoder.hidden_size // encoder.heads,
        )
        attended = graph.linear(f"{scope}.attention.output.dense", attended)
        summed = graph.node(f"{scope}.attention.output.summed", "Add", attended, hidden)
        hidden = norm(f"{scope}.attention.output.LayerNorm", summed)
        inner = graph.linear(f"{scope}.intermediate.dense", hidden)
        inner = graph.linear(f"{scope}.output.dense", activated(f"{scope}.intermediate.activation", inner))
        hidden = norm(f"{scope}.output.LayerNorm", graph.node(f"{scope}.output.summed", "Add", inner, hidden))
    return graph.pooled(hidden, encoder.hidden_size)


def _qwen3_graph(encoder: Qwen3) -> Any:
    """Build the layers of a Qwen3. Cosines and sines of the positions are inputs, with the signs of the rotation."""
    graph = _CoremlGraph(encoder.tensors)
    _declare_inputs(graph, encoder.hidden_size, LENGTH_DIMENSION if encoder.is_causal else 1)
    for name in ("rotary_cos", "rotary_sin"):
        graph.input(name, 1, 1, LENGTH_DIMENSION, encoder.head_dim)

    def norm(scope: str, x: str) -> str:
        square = graph.node(f"{scope}.square", "Mul", x, x)
        raised = graph.node(
            f"{scope}.raised", "Add", graph.mean(f"{scope}.mean", square), graph.scalar(encoder.epsilon)
        )
        normal = graph.node(f"{scope}.normal", "Div", x, graph.node(f"{scope}.root", "Sqrt", raised))
        return graph.node(scope, "Mul", normal, graph.vector(f"{scope}.weight"))

    def projected(scope: str, part: str, x: str, heads: int) -> str:
        linear = graph.linear(f"{scope}.{part}_proj", x)
        return graph.reshaped(f"{scope}.{part}_split", linear, 0, 0, heads, encoder.head_dim)

    def rotated(scope: str, part: str, x: str, heads: int) -> str:
        normal = norm(f"{scope}.{part}_norm", projected(scope, part, x, heads))
        rows = graph.node(f"{scope}.{part}_rows", "Transpose", normal, perm=[0, 2, 1, 3])
        first, second = graph.halves(f"{scope}.{part}_pairs", rows, encoder.head_dim)
        swapped = graph.node(f"{scope}.{part}_swapped", "Concat", second, first, axis=3)
        along = graph.node(f"{scope}.{part}_along", "Mul", rows, "rotary_cos")
        across = graph.node(f"{scope}.{part}_across", "Mul", swapped, "rotary_sin")
        return graph.node(f"{scope}.{part}_rotated", "Add", along, across)

    hidden = "inputs_embeds"
    for layer in range(encoder.layers):
        scope = f"layers.{layer}.self_attn"
        normal = norm(f"layers.{layer}.input_layernorm", hidden)
        query = rotated(scope, "q", normal, encoder.heads)
        key = rotated(scope, "k", normal, encoder.num_kv_heads)
        key = graph.node(f"{scope}.k_columns", "Transpose", key, perm=[0, 1, 3, 2])
        value = projected(scope, "v", normal, encoder.num_kv_heads)
        value = graph.node(f"{scope}.v_rows", "Transpose", value, perm=[0, 2, 1, 3])
        context = graph.attention(scope, query, key, value, encoder.heads, encoder.num_kv_heads, encoder.head_dim)
        hidden = graph.node(f"layers.{layer}.attended", "Add", hidden, graph.linear(f"{scope}.o_proj", context))
        scope = f"layers.{layer}.mlp"
        normal = norm(f"layers.{layer}.post_attention_layernorm", hidden)
        gate = graph.linear(f"{scope}.gate_proj", normal)
        gate = graph.node(f"{scope}.silu", "Mul", gate, graph.node(f"{scope}.sigmoid", "Sigmoid", gate))
        inner = graph.node(f"{scope}.inner", "Mul", gate, graph.linear(f"{scope}.up_proj", normal))
        hidden = graph.node(f"layers.{layer}.hidden", "Add", hidden, graph.linear(f"{scope}.down_proj", inner))
    return graph.pooled(norm("norm", hidden), encoder.hidden_size)


def _declare_inputs(graph: _CoremlGraph, hidden_size: int, queries: int | str) -> None:
    graph.input("inputs_embeds", BATCH_DIMENSION, LENGTH_DIMENSION, hidden_size)
    graph.input("attention_bias", BATCH_DIMENSION, 1, queries, LENGTH_DIMENSION)
    graph.input("pooling_weights", BATCH_DIMENSION, 1, LENGTH_DIMENSION)
