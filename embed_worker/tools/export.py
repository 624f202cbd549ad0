"""`embed-worker export`: an ONNX graph from a published folder's safetensors, without torch.

It reads config.json and model.safetensors, writes the graph, compares it with a plain numpy forward pass of the same
weights, and only then puts it in place, with a manifest. An architecture is one class that fulfils `Encoder`; BERT is
the one there is. B, T and D are batch, tokens and hidden size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed_worker.manifest import Manifest, ManifestError, file_sha256
from embed_worker.safetensors import SafetensorsError, SafetensorsFile

Floats: TypeAlias = NDArray[np.floating[Any]]
Int64: TypeAlias = NDArray[np.int64]

# 17 is the first opset with LayerNormalization and what onnxruntime has read since 1.13; 21 is the last that the oldest
# onnxruntime we support reads.
DEFAULT_OPSET = 17
OPSETS = range(17, 22)

# Constants, so that the same weights give the same bytes. The version is that of the graph's layout.
_PRODUCER = "embed-worker export"
_PRODUCER_VERSION = "1"

_GRAPH = Path("onnx", "model.onnx")
_WEIGHTS = "model.safetensors"
# What a worker reads besides the graph, and what a person wants to know of a model.
_PUBLISHED = (
    "README.md",
    "LICENSE",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "[0-9]*_*/config.json",
    f"[0-9]*_*/{_WEIGHTS}",
)


class ExportError(Exception):
    """The folder cannot be exported; the message is one sentence."""

    exit_status: ClassVar[int] = 78


class CheckFailedError(ExportError):
    """The graph does not compute what the weights say."""

    exit_status: ClassVar[int] = 1


class Storage(StrEnum):
    """The type that weight matrices and tables have in the file; the graph computes in float32 either way."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far a graph may be, or is, from the witness: over components, and over token vectors."""

    max_difference: float
    min_cosine: float


# The difference is relative to the largest component of the witness. Measured on 24 random layers: 4e-3 and 0.99999
# with float16, 4e-6 with float32; a mistake in the graph is far beyond either.
_TOLERANCES: Mapping[Storage, Parity] = {
    Storage.FLOAT16: Parity(max_difference=2e-2, min_cosine=0.9999),
    Storage.FLOAT32: Parity(max_difference=1e-4, min_cosine=0.999999),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an export did; the `--json` output has these names."""

    graph: str
    size: int
    sha256: str
    opset: int
    weights: Storage
    max_difference: float
    min_cosine: float
    files: int


class Encoder(Protocol):
    """A model read from its folder, as a graph and as its own witness."""

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""

    @property
    def token_types(self) -> int:
        """The number of token types; 0 where the model has none."""

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the position table holds."""

    def graph(self, storage: Storage, opset: int) -> Any:
        """Build the `onnx.ModelProto`."""

    def hidden(self, ids: Int64, types: Int64) -> Floats:
        """Compute the (T, D) last hidden state of one sequence, (T,) ids and types, with numpy alone."""


# The command --------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder with config.json and model.safetensors")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="folder to make of it, with tokenizer and configs (default: DIR)"
    )
    parser.add_argument(
        "--weights",
        choices=[storage.value for storage in Storage],
        default=Storage.FLOAT16.value,
        help="how weights are stored; computing is in float32 either way (default: %(default)s)",
    )
    parser.add_argument(
        "--opset", metavar="N", type=int, choices=OPSETS, default=DEFAULT_OPSET, help="default: %(default)s"
    )
    parser.add_argument("--source", metavar="TEXT", help="where the weights were published, for the manifest")
    parser.add_argument("--license", metavar="TEXT", default="not stated", help="their licence, for the manifest")
    parser.add_argument("--json", action="store_true", help="report in JSON")


def run(args: argparse.Namespace) -> int:
    """Export a folder and report on standard output; give the exit status."""
    try:
        report = export(
            args.folder,
            output=args.output or args.folder,
            storage=Storage(args.weights),
            opset=args.opset,
            source=args.source,
            license=args.license,
        )
    except ExportError as error:
        print(f"embed-worker export: {error}", file=sys.stderr)
        return error.exit_status
    if args.json:
        print(json.dumps(asdict(report)))
        return 0
    print(f"{report.graph}: {report.size / 1e6:.1f} MB, opset {report.opset}, weights stored as {report.weights}")
    print(f"checked with onnxruntime against numpy: largest difference {report.max_difference:.1e}, ", end="")
    print(f"smallest cosine {report.min_cosine:.8f}")
    print(f"manifest.json lists {report.files} files")
    return 0


def export(folder: Path, *, output: Path, storage: Storage, opset: int, source: str | None, license: str) -> Report:
    """Make `onnx/model.onnx` and `manifest.json` in `output`, and copy there what else a worker reads.

    Nothing is in place before it was checked, and what was there stays if it fails.

    Raises:
        ExportError: The folder cannot be used, or the output not be written.
        CheckFailedError: The graph differs from the weights.
    """
    encoder = read_encoder(folder)
    model = encoder.graph(storage, opset)
    graph = output / _GRAPH
    try:
        graph.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(graph) as temporary:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
            parity = check(temporary, encoder, storage)
        _copy_published(folder, output)
        weights_hash = f"{_WEIGHTS} SHA-256 {file_sha256(folder / _WEIGHTS)}, exported by embed-worker export"
        manifest = Manifest.of_folder(
            output,
            name=output.resolve().name,
            source=weights_hash if source is None else f"{source}, {weights_hash}",
            license=license,
        )
        manifest.write(output)
    except (OSError, ManifestError) as error:
        raise ExportError(f"{output} cannot be written: {error}") from error
    record = manifest.files[_GRAPH.as_posix()]
    return Report(
        graph=str(graph),
        size=record.size,
        sha256=record.sha256,
        opset=opset,
        weights=storage,
        max_difference=parity.max_difference,
        min_cosine=parity.min_cosine,
        files=len(manifest.files),
    )


def read_encoder(folder: Path) -> Encoder:
    """Read config.json and model.safetensors with the class of the architecture that the first names.

    Raises:
        ExportError: One of them is missing or damaged, or no class is for this architecture.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except OSError as error:
        raise ExportError(f"{folder} has no readable config.json: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{folder / 'config.json'} is not JSON.") from error
    if not isinstance(config, dict):
        raise ExportError(f"{folder / 'config.json'} is not a JSON object.")
    read = _chosen(config, "model_type", None, _ENCODERS)
    try:
        return read(config, SafetensorsFile.open(folder / _WEIGHTS))
    except SafetensorsError as error:
        raise ExportError(f"{folder}: {error}") from error


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Give a name in the same folder to write to; it replaces `file` if all goes well, and is removed if not."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_published(folder: Path, output: Path) -> None:
    if output.resolve() == folder.resolve():
        return
    for pattern in _PUBLISHED:
        for file in sorted(folder.glob(pattern)):
            target = output / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            # Content only: the modes of a package's files mean nothing here.
            shutil.copyfile(file, target)


# The check ----------------------------------------------------------------------------------------------------------


def check(graph: Path, encoder: Encoder, storage: Storage) -> Parity:
    """Run a graph with onnxruntime, each sequence alone and all in one padded batch, against the witness.

    Raises:
        CheckFailedError: It differs by more than the storage explains.
    """
    session = _session(graph)
    inputs = {tensor.name for tensor in session.get_inputs()}
    sequences = _check_sequences(encoder)
    witness = np.concatenate([encoder.hidden(ids, types) for ids, types in sequences])
    alone = np.concatenate([_run(session, inputs, [sequence]) for sequence in sequences])
    results = np.stack([alone, _run(session, inputs, sequences)])

    scale = max(1.0, float(np.abs(witness).max()))
    lengths = np.linalg.norm(results, axis=-1) * np.linalg.norm(witness, axis=-1)
    with np.errstate(invalid="ignore"):
        cosines = (results * witness).sum(axis=-1) / lengths
    found = Parity(max_difference=float(np.abs(results - witness).max()), min_cosine=float(cosines.min()))
    allowed = _TOLERANCES[storage]
    # The comparisons are written so that NaN fails.
    if not (found.max_difference <= allowed.max_difference * scale and found.min_cosine >= allowed.min_cosine):
        raise CheckFailedError(
            f"The graph differs from its weights: largest difference {found.max_difference:.1e} of "
            f"{allowed.max_difference * scale:.1e} allowed, smallest cosine {found.min_cosine:.7f} of "
            f"{allowed.min_cosine} required."
        )
    return found


def _session(graph: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no narrower base
        raise CheckFailedError(f"onnxruntime cannot load the graph: {error}") from error


def _check_sequences(encoder: Encoder) -> list[tuple[Int64, Int64]]:
    """Choose token ids and types: one token, a few, and some dozens; the same for the same model."""
    random = np.random.default_rng(0)
    lengths = [min(length, encoder.max_tokens) for length in (1, 9, 33)]
    return [
        (random.integers(0, encoder.vocabulary, length), random.integers(0, max(1, encoder.token_types), length))
        for length in lengths
    ]


def _run(session: Any, inputs: set[str], sequences: Sequence[tuple[Int64, Int64]]) -> Floats:
    """Run sequences as one batch, padded on the right; give the vectors of their tokens, one text after another."""
    longest = max(len(ids) for ids, _ in sequences)
    mask = np.array([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in sequences], np.int64)
    feeds = {"input_ids": np.zeros_like(mask), "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    for row, (ids, types) in enumerate(sequences):
        feeds["input_ids"][row, : len(ids)] = ids
        feeds["token_type_ids"][row, : len(ids)] = types
    (hidden,) = session.run(["last_hidden_state"], {name: feeds[name] for name in inputs})
    tokens: Floats = hidden[mask == 1]
    return tokens


# Writing a graph ----------------------------------------------------------------------------------------------------


class GraphWriter:
    """Collects nodes and initializers. Each method adds one step and gives the name of the tensor that it makes."""

    def __init__(self, storage: Storage) -> None:
        """Start an empty graph.

        Raises:
            ExportError: The package `onnx` is not installed.
        """
        try:
            import onnx
        except ImportError as error:
            raise ExportError("The package onnx is missing: pip install 'embed-bridge[tools]'.") from error
        self._onnx = onnx
        self._storage = storage
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}

    def node(self, name: str, operator: str, *inputs: str, **attributes: int | float | Sequence[int]) -> str:
        """Add an operator whose one output is called `name`."""
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def cast(self, name: str, tensor: str) -> str:
        """Convert a tensor to float32."""
        return self.node(name, "Cast", tensor, to=int(self._onnx.TensorProto.FLOAT))

    def constant(self, name: str, values: Floats | Int64) -> str:
        """Store values as they are; the same name again is the same constant."""
        if name not in self._initializers:
            self._initializers[name] = self._onnx.numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def scalar(self, value: float) -> str:
        """Store a float32 scalar."""
        return self.constant(f"scalar_{value:.9g}", np.array(value, np.float32))

    def stored(self, name: str, values: Floats) -> str:
        """Store a matrix in the storage type.

        Raises:
            ExportError: Its values do not fit.
        """
        with np.errstate(over="ignore"):
            stored = values.astype(self._storage.value)
        if not np.isfinite(stored).all():
            raise ExportError(f"Tensor {name!r} has values that {self._storage} cannot hold.")
        return self.constant(name, stored)

    def weight(self, name: str, values: Floats) -> str:
        """Store a matrix and widen it; onnxruntime folds the two into one float32 constant as it loads."""
        stored = self.stored(name, values)
        return stored if self._storage is Storage.FLOAT32 else self.cast(f"{name}.float32", stored)

    def picked(self, name: str, rows: str) -> str:
        """Widen the rows picked from a stored table: after picking, so that the table is never widened as a whole."""
        return rows if self._storage is Storage.FLOAT32 else self.cast(f"{name}.float32", rows)

    def model(self, inputs: Sequence[str], output: str, width: int, opset: int) -> Any:
        """Finish: int64 `inputs` of (batch_size, sequence_length), a float32 output with `width` more."""
        helper, types, axes = self._onnx.helper, self._onnx.TensorProto, ["batch_size", "sequence_length"]
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [helper.make_tensor_value_info(name, types.INT64, axes) for name in inputs],
            [helper.make_tensor_value_info(output, types.FLOAT, [*axes, width])],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name=_PRODUCER,
            producer_version=_PRODUCER_VERSION,
        )
        self._onnx.checker.check_model(model)
        return model


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
        _chosen(config, "position_embedding_type", "absolute", {"absolute": None})
        if config.get("is_decoder"):
            raise ExportError("A BERT decoder cannot be exported, only an encoder.")
        width, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        if width % heads:
            raise ExportError(f"config.json has a hidden_size of {width} that {heads} attention heads do not divide.")
        prefix = "" if "embeddings.word_embeddings.weight" in file else "bert."
        type_table = f"{prefix}embeddings.token_type_embeddings.weight"
        sizes = {
            "vocabulary": _size(config, "vocab_size"),
            "token_types": _size(config, "type_vocab_size") if type_table in file else 0,
            "max_tokens": _size(config, "max_position_embeddings"),
            "width": width,
            "layers": _size(config, "num_hidden_layers"),
        }
        shapes = _bert_shapes(**sizes, inner=_size(config, "intermediate_size"))
        return cls(
            **sizes,
            heads=heads,
            epsilon=_epsilon(config),
            activation=_chosen(config, "hidden_act", "gelu", _ACTIVATIONS),
            tensors={name: _tensor(file, prefix + name, shape) for name, shape in shapes},
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


# Reading a folder that may be damaged -------------------------------------------------------------------------------

_Choice = TypeVar("_Choice")


def _chosen(config: Mapping[str, Any], key: str, default: str | None, choices: Mapping[str, _Choice]) -> _Choice:
    value = config.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise ExportError(f"A model whose {key} is {value!r} cannot be exported; what can be: {', '.join(choices)}.")
    return choices[value]


def _epsilon(config: Mapping[str, Any]) -> float:
    value = config.get("layer_norm_eps", 1e-12)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ExportError(f"config.json needs a layer_norm_eps of at least 0 and below 1, not {value!r}.")
    return float(value)


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExportError(f"config.json needs a positive integer {key}, not {value!r}.")
    return value


def _tensor(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> Floats:
    tensor = file.get(name)
    if tensor is None:
        raise ExportError(f"{_WEIGHTS} has no tensor {name!r}.")
    if tensor.shape != shape or not np.issubdtype(tensor.dtype, np.floating):
        raise ExportError(
            f"{_WEIGHTS} has {name!r} as {tensor.dtype} {list(tensor.shape)}, and config.json says float {list(shape)}."
        )
    return tensor


_ENCODERS: Mapping[str, Callable[[Mapping[str, Any], SafetensorsFile], Encoder]] = {"bert": Bert.read}
