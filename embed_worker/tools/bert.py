"""BERT: its published weights as an ONNX graph, and as a plain numpy forward pass that the graph is compared with.

B, T and D are batch, tokens and hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from embed_worker.safetensors import SafetensorsFile
from embed_worker.tools.onnx_writer import (
    ExportError,
    Floats,
    GraphWriter,
    Int64,
    Storage,
    chosen,
    epsilon,
    size,
    tensor_of,
)

# Activations: as a graph and in numpy. The graphs are the patterns that onnxruntime fuses into one operator. ---------


def _write_gelu(graph: GraphWriter, scope: str, x: str) -> str:
    scaled = graph.node(f"{scope}.scaled", "Div", x, graph.scalar(math.sqrt(2)))
    raised = graph.node(f"{scope}.raised", "Add", graph.node(f"{scope}.erf", "Erf", scaled), graph.scalar(1))
    return graph.node(scope, "Mul", graph.node(f"{scope}.doubled", "Mul", x, raised), graph.scalar(0.5))


def _write_gelu_new(graph: GraphWriter, scope: str, x: str) -> str:
    cube = graph.node(f"{scope}.cube", "Pow", x, graph.scalar(3))
    bent = graph.node(f"{scope}.bent", "Mul", cube, graph.scalar(0.044715))
    inner = graph.node(f"{scope}.inner", "Add", x, bent)
    scaled = graph.node(f"{scope}.scaled", "Mul", inner, graph.scalar(math.sqrt(2 / math.pi)))
    raised = graph.node(f"{scope}.raised", "Add", graph.node(f"{scope}.tanh", "Tanh", scaled), graph.scalar(1))
    return graph.node(scope, "Mul", graph.node(f"{scope}.half", "Mul", x, graph.scalar(0.5)), raised)


def _write_relu(graph: GraphWriter, scope: str, x: str) -> str:
    return graph.node(scope, "Relu", x)


def _gelu(x: Floats) -> Floats:
    # numpy has no erf; the check's few tokens can afford the slow one.
    erf = np.vectorize(math.erf, otypes=[np.float64])
    activated: Floats = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return activated


def _gelu_new(x: Floats) -> Floats:
    activated: Floats = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return activated


def _relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Activation:
    write: Callable[[GraphWriter, str, str], str]
    compute: Callable[[Floats], Floats]


_ACTIVATIONS: Mapping[str, _Activation] = {
    "gelu": _Activation(write=_write_gelu, compute=_gelu),
    "gelu_new": _Activation(write=_write_gelu_new, compute=_gelu_new),
    "relu": _Activation(write=_write_relu, compute=_relu),
}


# BERT ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bert:
    """A BERT encoder: learned absolute positions, post-norm layers. Its pooler, where it has one, is left out.

    `tensors` have the published names without the prefix `bert.`; linear weights are (out, in).
    """

    vocabulary: int
    token_types: int
    max_tokens: int
    width: int
    heads: int
    layers: int
    epsilon: float
    activation: _Activation
    tensors: Mapping[str, Floats]

    @classmethod
    def read(cls, config: Mapping[str, Any], file: SafetensorsFile) -> Self:
        """Check a published configuration and its tensors.

        Raises:
            ExportError: It is a variant that is not written here, or a tensor is missing or has another shape.
        """
        chosen(config, "position_embedding_type", "absolute", {"absolute": None})
        if config.get("is_decoder"):
            raise ExportError("A BERT decoder cannot be exported, only an encoder.")
        width, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
        if width % heads:
            raise ExportError(f"config.json has a hidden_size of {width} that {heads} attention heads do not divide.")
        prefix = "" if "embeddings.word_embeddings.weight" in file else "bert."
        type_table = f"{prefix}embeddings.token_type_embeddings.weight"
        sizes = {
            "vocabulary": size(config, "vocab_size"),
            "token_types": size(config, "type_vocab_size") if type_table in file else 0,
            "max_tokens": size(config, "max_position_embeddings"),
            "width": width,
            "layers": size(config, "num_hidden_layers"),
        }
        shapes = _bert_shapes(**sizes, inner=size(config, "intermediate_size"))
        return cls(
            **sizes,
            heads=heads,
            epsilon=epsilon(config),
            activation=chosen(config, "hidden_act", "gelu", _ACTIVATIONS),
            tensors={name: tensor_of(file, prefix + name, shape) for name, shape in shapes},
        )

    def graph(self, storage: Storage, opset: int) -> Any:
        """Build the `onnx.ModelProto` with the inputs and the output that published exports have.

        Between embeddings and output the tokens are the rows of one matrix, (B * T, D): only then does onnxruntime fuse
        a MatMul and its bias into one Gemm. Measured against (B, T, D) and two lanes: 4 to 5 % more texts a second.
        docs/decisions.md has the layouts that were slower.
        """
        graph = GraphWriter(storage)
        shape = graph.node("batch_and_length", "Shape", "input_ids")
        bias = self._write_attention_bias(graph)
        hidden = self._write_embeddings(graph)
        for layer in range(self.layers):
            scope = f"encoder.layer.{layer}"
            hidden = self._write_attention(graph, f"{scope}.attention", hidden, bias, shape)
            inner = self._write_linear(graph, f"{scope}.intermediate.dense", hidden)
            inner = self.activation.write(graph, f"{scope}.intermediate.activation", inner)
            hidden = self._write_residual(graph, f"{scope}.output", inner, hidden)
        width = graph.constant("hidden.width", np.array([self.width], np.int64))
        output_shape = graph.node("output.shape", "Concat", shape, width, axis=0)
        output = graph.node("last_hidden_state", "Reshape", hidden, output_shape)
        inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if self.token_types else [])]
        return graph.model(inputs, output, self.width, opset)

    def _write_attention_bias(self, graph: GraphWriter) -> str:
        """Turn the mask into (B, 1, 1, T): 0 for a token, -10,000 for padding, whose weight is then exactly 0."""
        axes = graph.constant("attention_mask.axes", np.array([1, 2], np.int64))
        mask = graph.node("attention_mask.unsqueezed", "Unsqueeze", "attention_mask", axes)
        padding = graph.node("padding", "Sub", graph.scalar(1), graph.cast("attention_mask.float32", mask))
        return graph.node("attention_bias", "Mul", padding, graph.scalar(-10000))

    def _write_embeddings(self, graph: GraphWriter) -> str:
        scope = "embeddings"
        words = self._write_lookup(graph, f"{scope}.word_embeddings", "input_ids")
        if self.token_types:
            types = self._write_lookup(graph, f"{scope}.token_type_embeddings", "token_type_ids")
            words = graph.node(f"{scope}.words_and_types", "Add", words, types)
        # The first T rows of the table: a text that is longer than it fails in the addition.
        table = f"{scope}.position_embeddings"
        rows = graph.node(
            f"{table}.rows",
            "Slice",
            graph.stored(f"{table}.weight", self.tensors[f"{table}.weight"]),
            graph.constant(f"{table}.start", np.array([0], np.int64)),
            graph.node("sequence_length", "Shape", "input_ids", start=1, end=2),
        )
        summed = graph.node(f"{scope}.summed", "Add", words, graph.picked(table, rows))
        return self._write_rows(graph, f"{scope}.hidden", self._write_layer_norm(graph, f"{scope}.LayerNorm", summed))

    def _write_rows(self, graph: GraphWriter, name: str, x: str) -> str:
        return graph.node(name, "Reshape", x, graph.constant("rows.shape", np.array([-1, self.width], np.int64)))

    def _write_lookup(self, graph: GraphWriter, table: str, ids: str) -> str:
        stored = graph.stored(f"{table}.weight", self.tensors[f"{table}.weight"])
        return graph.picked(table, graph.node(f"{table}.rows", "Gather", stored, ids))

    def _write_attention(self, graph: GraphWriter, scope: str, hidden: str, bias: str, shape: str) -> str:
        heads_and_width = graph.constant("heads.width", np.array([self.heads, self.width // self.heads], np.int64))
        split = graph.node(f"{scope}.self.shape", "Concat", shape, heads_and_width, axis=0)
        heads = {}
        for part, axes in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            name = f"{scope}.self.{part}"
            projected = graph.node(f"{name}.split", "Reshape", self._write_linear(graph, name, hidden), split)
            heads[part] = graph.node(f"{name}.heads", "Transpose", projected, perm=axes)
        scores = graph.node(f"{scope}.self.products", "MatMul", heads["query"], heads["key"])
        scores = graph.node(f"{scope}.self.scores", "Div", scores, graph.scalar(math.sqrt(self.width // self.heads)))
        masked = graph.node(f"{scope}.self.masked", "Add", scores, bias)
        weights = graph.node(f"{scope}.self.weights", "Softmax", masked, axis=3)
        context = graph.node(f"{scope}.self.context", "MatMul", weights, heads["value"])
        context = graph.node(f"{scope}.self.context.by_token", "Transpose", context, perm=[0, 2, 1, 3])
        context = self._write_rows(graph, f"{scope}.self.context.rows", context)
        return self._write_residual(graph, f"{scope}.output", context, hidden)

    def _write_residual(self, graph: GraphWriter, scope: str, x: str, residual: str) -> str:
        summed = graph.node(f"{scope}.summed", "Add", self._write_linear(graph, f"{scope}.dense", x), residual)
        return self._write_layer_norm(graph, f"{scope}.LayerNorm", summed)

    def _write_linear(self, graph: GraphWriter, scope: str, x: str) -> str:
        weight = graph.weight(f"{scope}.weight", self.tensors[f"{scope}.weight"].T)
        bias = graph.constant(f"{scope}.bias", self.tensors[f"{scope}.bias"].astype(np.float32))
        return graph.node(f"{scope}.output", "Add", graph.node(f"{scope}.product", "MatMul", x, weight), bias)

    def _write_layer_norm(self, graph: GraphWriter, scope: str, x: str) -> str:
        scale, shift = (
            graph.constant(f"{scope}.{part}", self.tensors[f"{scope}.{part}"].astype(np.float32))
            for part in ("weight", "bias")
        )
        return graph.node(scope, "LayerNormalization", x, scale, shift, axis=-1, epsilon=self.epsilon)

    def hidden(self, ids: Int64, types: Int64) -> Floats:
        """Compute the (T, D) last hidden state of one sequence in float64, as the paper has it: no batch, no mask.

        Reference: Devlin et al., BERT, and Vaswani et al., Attention is all you need.
        """
        tensors = self.tensors
        x: Floats = tensors["embeddings.word_embeddings.weight"][ids].astype(np.float64)
        x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
        if self.token_types:
            x = x + tensors["embeddings.token_type_embeddings.weight"][types]
        x = self._layer_norm("embeddings.LayerNorm", x)
        for layer in range(self.layers):
            scope = f"encoder.layer.{layer}"
            query, key, value = (
                self._linear(f"{scope}.attention.self.{part}", x).reshape(len(ids), self.heads, -1).swapaxes(0, 1)
                for part in ("query", "key", "value")
            )
            scores = query @ key.swapaxes(1, 2) / math.sqrt(self.width // self.heads)
            weights = np.exp(scores - scores.max(axis=2, keepdims=True))
            context = (weights / weights.sum(axis=2, keepdims=True)) @ value
            context = context.swapaxes(0, 1).reshape(len(ids), self.width)
            attended = self._linear(f"{scope}.attention.output.dense", context)
            x = self._layer_norm(f"{scope}.attention.output.LayerNorm", x + attended)
            inner = self.activation.compute(self._linear(f"{scope}.intermediate.dense", x))
            x = self._layer_norm(f"{scope}.output.LayerNorm", x + self._linear(f"{scope}.output.dense", inner))
        return x

    def _linear(self, scope: str, x: Floats) -> Floats:
        projected: Floats = x @ self.tensors[f"{scope}.weight"].T.astype(np.float64) + self.tensors[f"{scope}.bias"]
        return projected

    def _layer_norm(self, scope: str, x: Floats) -> Floats:
        centred = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.epsilon)
        normal: Floats = centred / deviation * self.tensors[f"{scope}.weight"] + self.tensors[f"{scope}.bias"]
        return normal


def _bert_shapes(
    *, vocabulary: int, token_types: int, max_tokens: int, width: int, layers: int, inner: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give the names and shapes of the tensors of a BERT encoder, lazily: a damaged `layers` may be any number."""
    yield "embeddings.word_embeddings.weight", (vocabulary, width)
    yield "embeddings.position_embeddings.weight", (max_tokens, width)
    if token_types:
        yield "embeddings.token_type_embeddings.weight", (token_types, width)
    yield from _norm_shapes("embeddings", width)
    for layer in range(layers):
        scope = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            yield from _linear_shapes(f"{scope}.attention.{part}", width, width)
        yield from _norm_shapes(f"{scope}.attention.output", width)
        yield from _linear_shapes(f"{scope}.intermediate.dense", inner, width)
        yield from _linear_shapes(f"{scope}.output.dense", width, inner)
        yield from _norm_shapes(f"{scope}.output", width)


def _linear_shapes(scope: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{scope}.weight", (outputs, inputs)
    yield f"{scope}.bias", (outputs,)


def _norm_shapes(scope: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{scope}.LayerNorm.weight", (width,)
    yield f"{scope}.LayerNorm.bias", (width,)
