"""BERT and its kin: published weights as an ONNX graph, and as a plain numpy forward pass that it is compared with.

RoBERTa counts positions otherwise, MPNet adds relative ones, and DistilBERT has other names for the same. B, T and D
are batch, tokens and hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np

from embed_worker.encoders.activation_functions import ACTIVATIONS, Activation
from embed_worker.encoders.bert_layouts import LAYOUTS, checkpoint_names
from embed_worker.encoders.checkpoint import ExportError, Floats, Int64, Weights, chosen, epsilon, size
from embed_worker.encoders.onnx_writer import GraphWriter, Storage, shown
from embed_worker.encoders.relative_positions import bucket_of, write_relative_bias
from embed_worker.model_files.safetensors import Tensor

_RELATIVE_TABLE = "encoder.relative_attention_bias.weight"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bert:
    """A BERT encoder: learned absolute positions, post-norm layers. Its pooler, where it has one, is left out.

    `tensors` have the names of BERT without the prefix `bert.`, whatever the architecture calls them; linear
    weights are (out, in).

    Attributes:
        token_types: 0 where the model has no such input; a table of types then has one row that all tokens get.
        max_tokens: The longest text for which there are positions.
        padding_id: Positions are counted over the tokens that are not padding, from the row after this one. None: they
            are places in the sequence, from row 0.
        relative_buckets: Rows of the table of relative positions, which MPNet has beside the absolute ones; 0: none.
    """

    vocabulary: int
    token_types: int
    max_tokens: int
    hidden_size: int
    heads: int
    layers: int
    epsilon: float
    activation: Activation
    tensors: Weights
    padding_id: int | None = None
    relative_buckets: int = 0

    @classmethod
    def read(cls, config: Mapping[str, Any], file: Mapping[str, Tensor]) -> Self:
        """Check a checkpoint's configuration and its tensors.

        Raises:
            ExportError: It is a variant that is not written here, or a tensor is missing or has another shape.
        """
        layout = chosen(config, "model_type", "bert", LAYOUTS)
        chosen(config, "position_embedding_type", "absolute", {"absolute": None})
        if config.get("is_decoder"):
            raise ExportError("a BERT decoder cannot be exported, only an encoder")

        def size_of(key: str) -> int:
            return size(config, layout.keys.get(key, key))

        hidden_size, heads = size_of("hidden_size"), size_of("num_attention_heads")
        if hidden_size % heads:
            raise ExportError(
                f"config.json has a hidden_size of {hidden_size} that {heads} attention heads do not divide"
            )
        checkpoint_name = checkpoint_names(layout, file)
        has_types = checkpoint_name("embeddings.token_type_embeddings.weight") in file
        positions, types = size_of("max_position_embeddings"), size_of("type_vocab_size") if has_types else 0
        padding_id = _padding_id(config, positions, layout.padding_id) if layout.counts_tokens else None
        buckets = 0 if layout.relative_buckets is None else _relative_buckets(config, layout.relative_buckets)
        vocabulary, layers = size_of("vocab_size"), size_of("num_hidden_layers")
        shapes = _bert_shapes(
            vocabulary=vocabulary,
            positions=positions,
            types=types,
            hidden_size=hidden_size,
            layers=layers,
            intermediate_size=size_of("intermediate_size"),
            relative=(buckets, heads),
        )
        return cls(
            vocabulary=vocabulary,
            token_types=0 if layout.counts_tokens else types,
            max_tokens=positions if padding_id is None else positions - padding_id - 1,
            hidden_size=hidden_size,
            heads=heads,
            layers=layers,
            epsilon=epsilon(config) if layout.epsilon is None else layout.epsilon,
            activation=chosen(config, layout.keys.get("hidden_act", "hidden_act"), "gelu", ACTIVATIONS),
            tensors=Weights(file, shapes, checkpoint_name),
            padding_id=padding_id,
            relative_buckets=buckets,
        )

    @property
    def counts_tokens(self) -> bool:
        """Whether positions are counted over the tokens, wherever the padding is."""
        return self.padding_id is not None

    def graph(self, storage: Storage, opset: int, data: BinaryIO | None = None) -> Any:
        """Build the `onnx.ModelProto` with the inputs and the output that published exports have; see `Encoder`.

        Between embeddings and output the tokens are the rows of one matrix, (B * T, D): only then does onnxruntime fuse
        a MatMul and its bias into one Gemm. Measured against (B, T, D) and two lanes: 4 to 5 % more texts a second.
        docs/decisions.md has the layouts that were slower.
        """
        graph = GraphWriter(storage, opset, data)
        shape = graph.node("batch_and_length", "Shape", "input_ids")
        bias = self._write_attention_bias(graph)
        hidden = self._write_embeddings(graph)
        for layer in shown(range(self.layers), "graph"):
            scope = f"encoder.layer.{layer}"
            hidden = self._write_attention(graph, f"{scope}.attention", hidden, bias, shape)
            expanded = self._write_linear(graph, f"{scope}.intermediate.dense", hidden)
            expanded = self.activation.write(graph, f"{scope}.intermediate.activation", expanded)
            hidden = self._write_residual(graph, f"{scope}.output", expanded, hidden)
        hidden_size = graph.constant("hidden.width", np.array([self.hidden_size], np.int64))
        output_shape = graph.node("output.shape", "Concat", shape, hidden_size, axis=0)
        output = graph.node("last_hidden_state", "Reshape", hidden, output_shape)
        inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if self.token_types else [])]
        return graph.model(inputs, output, self.hidden_size)

    def _write_attention_bias(self, graph: GraphWriter) -> str:
        """Turn the mask into (B, 1, 1, T): 0 for a token, -10,000 for padding, whose weight is then exactly 0.

        Relative positions are added here, once for all layers: (B, heads, T, T).
        """
        axes = graph.constant("attention_mask.axes", np.array([1, 2], np.int64))
        mask = graph.node("attention_mask.unsqueezed", "Unsqueeze", "attention_mask", axes)
        padding = graph.node("padding", "Sub", graph.scalar(1), graph.cast("attention_mask.float32", mask))
        if not self.relative_buckets:
            return graph.node("attention_bias", "Mul", padding, graph.scalar(-10000))
        unseen = graph.node("padding.bias", "Mul", padding, graph.scalar(-10000))
        relative = write_relative_bias(graph, self.tensors[_RELATIVE_TABLE], self.max_tokens)
        return graph.node("attention_bias", "Add", unseen, relative)

    def _write_embeddings(self, graph: GraphWriter) -> str:
        scope = "embeddings"
        words = self._write_lookup(graph, f"{scope}.word_embeddings", "input_ids")
        if (types := self._write_types(graph, f"{scope}.token_type_embeddings")) is not None:
            words = graph.node(f"{scope}.words_and_types", "Add", words, types)
        summed = graph.node(
            f"{scope}.summed", "Add", words, self._write_positions(graph, f"{scope}.position_embeddings")
        )
        return self._write_rows(graph, f"{scope}.hidden", self._write_layer_norm(graph, f"{scope}.LayerNorm", summed))

    def _write_types(self, graph: GraphWriter, table: str) -> str | None:
        if self.token_types:
            return self._write_lookup(graph, table, "token_type_ids")
        if f"{table}.weight" not in self.tensors:
            return None
        return self._write_lookup(graph, table, graph.constant("token_type", np.array(0, np.int64)))

    def _write_positions(self, graph: GraphWriter, table: str) -> str:
        if self.padding_id is not None:
            return self._write_lookup(graph, table, self._write_counted_positions(graph, self.padding_id))
        # The first T rows of the table: a text that is longer than it fails in the addition.
        rows = graph.node(
            f"{table}.rows",
            "Slice",
            graph.stored(f"{table}.weight", self.tensors[f"{table}.weight"]),
            graph.constant(f"{table}.start", np.array([0], np.int64)),
            # Without an end: CoreML's provider throws where that is the rank.
            graph.node("sequence_length", "Shape", "input_ids", start=1),
        )
        return graph.picked(table, rows)

    def _write_counted_positions(self, graph: GraphWriter, padding_id: int) -> str:
        """Count as transformers does, by ids; the mask is a second reference, for padding with other ids."""
        padding = graph.constant("padding_id", np.array(padding_id, np.int64))
        is_padding = graph.node("input_ids.is_padding", "Equal", "input_ids", padding)
        others = graph.integers("input_ids.others", graph.node("input_ids.is_token", "Not", is_padding))
        tokens = graph.node("tokens", "Mul", others, "attention_mask")
        counts = graph.node("tokens.counts", "CumSum", tokens, graph.constant("tokens.axis", np.array(1, np.int64)))
        return graph.node("position_ids", "Add", graph.node("tokens.places", "Mul", counts, tokens), padding)

    def _write_rows(self, graph: GraphWriter, name: str, x: str) -> str:
        return graph.node(name, "Reshape", x, graph.constant("rows.shape", np.array([-1, self.hidden_size], np.int64)))

    def _write_lookup(self, graph: GraphWriter, table: str, ids: str) -> str:
        stored = graph.stored(f"{table}.weight", self.tensors[f"{table}.weight"])
        return graph.picked(table, graph.node(f"{table}.rows", "Gather", stored, ids))

    def _write_attention(self, graph: GraphWriter, scope: str, hidden: str, bias: str, shape: str) -> str:
        heads_and_width = graph.constant(
            "heads.width", np.array([self.heads, self.hidden_size // self.heads], np.int64)
        )
        split = graph.node(f"{scope}.self.shape", "Concat", shape, heads_and_width, axis=0)
        heads = {}
        for part, axes in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            name = f"{scope}.self.{part}"
            projected = graph.node(f"{name}.split", "Reshape", self._write_linear(graph, name, hidden), split)
            heads[part] = graph.node(f"{name}.heads", "Transpose", projected, perm=axes)
        scores = graph.node(f"{scope}.self.products", "MatMul", heads["query"], heads["key"])
        scores = graph.node(
            f"{scope}.self.scores", "Div", scores, graph.scalar(math.sqrt(self.hidden_size // self.heads))
        )
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

    def forward(self, ids: Int64, types: Int64) -> Floats:
        """Compute the (T, D) last hidden state of one sequence in float64, as the paper has it: no batch, no mask.

        Reference: Devlin et al., BERT, and Vaswani et al., Attention is all you need.
        """
        tensors = self.tensors
        x: Floats = tensors["embeddings.word_embeddings.weight"][ids].astype(np.float64)
        x = x + tensors["embeddings.position_embeddings.weight"][self._positions(ids)]
        if "embeddings.token_type_embeddings.weight" in tensors:
            x = x + tensors["embeddings.token_type_embeddings.weight"][types]
        x = self._layer_norm("embeddings.LayerNorm", x)
        relative = self._relative_bias(len(ids))
        for layer in shown(range(self.layers), "check"):
            scope = f"encoder.layer.{layer}"
            query, key, value = (
                self._linear(f"{scope}.attention.self.{part}", x).reshape(len(ids), self.heads, -1).swapaxes(0, 1)
                for part in ("query", "key", "value")
            )
            scores = query @ key.swapaxes(1, 2) / math.sqrt(self.hidden_size // self.heads) + relative
            weights = np.exp(scores - scores.max(axis=2, keepdims=True))
            context = (weights / weights.sum(axis=2, keepdims=True)) @ value
            context = context.swapaxes(0, 1).reshape(len(ids), self.hidden_size)
            attended = self._linear(f"{scope}.attention.output.dense", context)
            x = self._layer_norm(f"{scope}.attention.output.LayerNorm", x + attended)
            expanded = self.activation.compute(self._linear(f"{scope}.intermediate.dense", x))
            x = self._layer_norm(f"{scope}.output.LayerNorm", x + self._linear(f"{scope}.output.dense", expanded))
        return x

    def _positions(self, ids: Int64) -> Int64:
        if self.padding_id is None:
            return np.arange(len(ids))
        tokens = ids != self.padding_id
        positions: Int64 = np.cumsum(tokens) * tokens + self.padding_id
        return positions

    def _relative_bias(self, tokens: int) -> Floats:
        """What MPNet's relative positions add to the scores: (heads, T, T); else nothing."""
        if not self.relative_buckets:
            return np.zeros((1, 1, 1))
        places = np.arange(tokens)
        rows = bucket_of(places[None, :] - places[:, None], self.relative_buckets)
        bias: Floats = self.tensors[_RELATIVE_TABLE][rows].transpose(2, 0, 1).astype(np.float64)
        return bias

    def _linear(self, scope: str, x: Floats) -> Floats:
        projected: Floats = x @ self.tensors[f"{scope}.weight"].T.astype(np.float64) + self.tensors[f"{scope}.bias"]
        return projected

    def _layer_norm(self, scope: str, x: Floats) -> Floats:
        centred = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.epsilon)
        normal: Floats = centred / deviation * self.tensors[f"{scope}.weight"] + self.tensors[f"{scope}.bias"]
        return normal


def _relative_buckets(config: Mapping[str, Any], key: str) -> int:
    # transformers sizes its table by the configuration and looks rows up as if it had 32.
    if (buckets := size(config, key, 32)) != 32:
        raise ExportError(f"config.json needs a {key} of 32, not {buckets}")
    return buckets


def _padding_id(config: Mapping[str, Any], positions: int, fixed: int | None) -> int:
    value = config.get("pad_token_id", 1) if fixed is None else fixed
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < positions - 1:
        raise ExportError(f"config.json needs a pad_token_id from 0 to below {positions - 1}, not {value!r}")
    return value


def _bert_shapes(
    *,
    vocabulary: int,
    positions: int,
    types: int,
    hidden_size: int,
    layers: int,
    intermediate_size: int,
    relative: tuple[int, int],
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of the tensors of a BERT encoder, lazily: a damaged `layers` may be any number."""
    yield "embeddings.word_embeddings.weight", (vocabulary, hidden_size)
    yield "embeddings.position_embeddings.weight", (positions, hidden_size)
    if types:
        yield "embeddings.token_type_embeddings.weight", (types, hidden_size)
    if relative[0]:
        yield _RELATIVE_TABLE, relative
    yield from _norm_shapes("embeddings", hidden_size)
    for layer in range(layers):
        scope = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            yield from _linear_shapes(f"{scope}.attention.{part}", hidden_size, hidden_size)
        yield from _norm_shapes(f"{scope}.attention.output", hidden_size)
        yield from _linear_shapes(f"{scope}.intermediate.dense", intermediate_size, hidden_size)
        yield from _linear_shapes(f"{scope}.output.dense", hidden_size, intermediate_size)
        yield from _norm_shapes(f"{scope}.output", hidden_size)


def _linear_shapes(scope: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{scope}.weight", (outputs, inputs)
    yield f"{scope}.bias", (outputs,)


def _norm_shapes(scope: str, hidden_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{scope}.LayerNorm.weight", (hidden_size,)
    yield f"{scope}.LayerNorm.bias", (hidden_size,)
