"""A graph that CoreML takes in one piece, with the tables that stay on the host.

Its inputs are all float, its operators plain, and with the lengths of a bucket its shapes are fixed. Embeddings are
looked up on the host, so that no table is copied into CoreML's packages; pooling is a matrix product, so that one form
serves every mode that is a weighted sum. `graph_layers.py` writes the graph, `graph.py` makes its inputs. T and
H are the tokens of a text and the hidden size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from embed_worker.accelerators.coreml.cache_key import write_with_cache_key
from embed_worker.accelerators.coreml.graph import (
    FOLDER,
    GRAPH,
    POSITIONS,
    WORDS,
    CoremlModel,
    CoremlModelError,
    Description,
    pooling_weights,
)
from embed_worker.accelerators.coreml.graph_layers import dedicated_graph
from embed_worker.atomic import replace_folder
from embed_worker.encoders.architectures import ACCELERATED, reader_for
from embed_worker.encoders.bert import Bert
from embed_worker.encoders.checkpoint import (
    INDEX,
    CheckFailedError,
    ExportError,
    Floats,
    Int64,
    open_weights,
    read_json_object,
    transformer_folder,
    weight_files,
)
from embed_worker.encoders.onnx_writer import open_session
from embed_worker.encoders.parity import Parity, check_parity
from embed_worker.encoders.qwen3 import Qwen3
from embed_worker.errors import without_frames
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.model_files.layout import USUAL_GRAPHS, WEIGHTS
from embed_worker.model_files.manifest import file_sha256
from embed_worker.model_files.plan import PoolingMode
from embed_worker.model_files.safetensors import Tensor

_Encoder: TypeAlias = Bert | Qwen3
_Reference: TypeAlias = Callable[[Int64], Floats]

# CoreML's provider reads weights from the graph alone, and a protobuf holds no more.
_MAX_GRAPH_BYTES = 2**31 - 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class CoremlExportReport:
    """What an export did; the `--json` output has these names. Sizes are in bytes."""

    folder: str
    architecture: str
    graph_size: int
    tables_size: int
    graph_sha256: str
    sources: list[str]
    max_difference: float
    min_cosine: float


def export_for_coreml(folder: Path, *, output: Path) -> CoremlExportReport:
    """Make `coreml/` in `output`: the graph, the tables and coreml.json, all of them or none.

    The weights are those of the folder's safetensors, or where it has none those of its ONNX file.

    Raises:
        ExportError: The folder cannot be used, or the output not be written.
        CheckFailedError: The graph differs from what it was made of.
    """
    source = _Source.read(folder)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".coreml-", dir=output) as staging:
            staged = Path(staging, FOLDER)
            staged.mkdir()
            _write(source, staged)
            try:
                parity = _check(source, staged)
            except CheckFailedError as error:  # Windows does not delete what is mapped, and frames hold the tables
                raise without_frames(error) from None
            replace_folder(staged, output / FOLDER, Path(staging, "old"))
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error}") from error
    made = output / FOLDER
    return CoremlExportReport(
        folder=str(made),
        architecture=source.architecture,
        graph_size=(made / GRAPH).stat().st_size,
        tables_size=sum(file.stat().st_size for file in made.glob("*.npy")),
        graph_sha256=file_sha256(made / GRAPH),
        sources=[file.relative_to(folder).as_posix() for file in source.files],
        max_difference=parity.max_difference,
        min_cosine=parity.min_cosine,
    )


# What it is made of -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A model that was read from its folder.

    Attributes:
        files: Those that it was read from.
        forward: The reference: (T,) ids to the (T, H) last hidden state of one text.
    """

    architecture: str
    encoder: _Encoder
    files: Sequence[Path]
    folder: Path
    forward: _Reference

    @classmethod
    def read(cls, folder: Path) -> _Source:
        """Read a model with the class of its architecture.

        Raises:
            ExportError: Something is missing or damaged, or no class is for this architecture.
        """
        home = transformer_folder(folder)
        config = read_json_object(home / "config.json")
        read = reader_for(folder, config, ACCELERATED)
        graphs = (place / path for place in dict.fromkeys((home, folder)) for path in USUAL_GRAPHS)
        graph = next((file for file in graphs if file.is_file()), None)
        has_weights = (home / WEIGHTS).exists() or (home / INDEX).exists()
        if has_weights or graph is None:
            encoder = read(config, open_weights(home))
            files, forward = weight_files(home), _without_types(encoder)
        else:
            encoder, files, forward = _read_graph(graph, lambda tensors: read(config, tensors))
        return cls(
            architecture=config["model_type"],
            encoder=encoder,
            files=[home / "config.json", *files],
            folder=folder,
            forward=forward,
        )


def _without_types(encoder: _Encoder) -> _Reference:
    return lambda ids: encoder.forward(ids, np.zeros_like(ids))


def _read_graph(
    graph: Path, read: Callable[[Mapping[str, Tensor]], _Encoder]
) -> tuple[_Encoder, list[Path], _Reference]:
    try:
        from embed_worker.encoders.onnx_weights import GraphReference, graph_files, read_onnx_weights
    except ImportError as error:
        raise ExportError("the package onnx is missing: pip install 'embed-bridge[tools]'") from error
    tensors = read_onnx_weights(graph)
    try:
        encoder = read(tensors)
    except ExportError as error:
        raise ExportError(f"there is no {WEIGHTS}, and {graph} does not serve in its place: {error}") from error
    padding_position = encoder.padding_id if isinstance(encoder, Bert) else None
    return encoder, graph_files(graph), GraphReference(graph, padding_position).forward


# Writing ------------------------------------------------------------------------------------------------------------


def _write(source: _Source, folder: Path) -> None:
    encoder = source.encoder
    graph_bytes = 4 * (encoder.tensors.parameters - encoder.vocabulary * encoder.hidden_size)
    if graph_bytes > _MAX_GRAPH_BYTES:
        raise ExportError(
            f"the model needs {graph_bytes / 1e9:.1f} GB in one file, and a graph for CoreML can have 2 GB"
        )
    _write_tables(encoder, folder)
    write_with_cache_key(dedicated_graph(encoder), folder / GRAPH)
    Description(
        architecture=source.architecture,
        hidden_size=encoder.hidden_size,
        vocabulary=encoder.vocabulary,
        max_tokens=encoder.max_tokens,
        padding_id=encoder.padding_id if isinstance(encoder, Bert) else None,
        is_causal=isinstance(encoder, Qwen3) and encoder.is_causal,
        inv_freq=tuple(map(float, encoder.inv_freq)) if isinstance(encoder, Qwen3) else None,
        graph_sha256=file_sha256(folder / GRAPH),
        sources={file.relative_to(source.folder).as_posix(): file_sha256(file) for file in source.files},
    ).write(folder)


def _write_tables(encoder: _Encoder, folder: Path) -> None:
    """Write the words as wide as they are stored, and the positions with the vector of token type 0."""
    tensors = encoder.tensors
    words = tensors["embeddings.word_embeddings.weight" if isinstance(encoder, Bert) else "embed_tokens.weight"]
    np.save(folder / WORDS, words.astype(np.float16 if words.dtype == np.float16 else np.float32, copy=False))
    if isinstance(encoder, Bert):
        positions = tensors["embeddings.position_embeddings.weight"].astype(np.float32)
        if "embeddings.token_type_embeddings.weight" in tensors:
            positions += tensors["embeddings.token_type_embeddings.weight"][0]
        np.save(folder / POSITIONS, positions)


# The check ----------------------------------------------------------------------------------------------------------

# Of pooled vectors, relative to the largest component, and as a cosine: what float32 explains, also in 24 layers.
_ALLOWED = Parity(max_difference=1e-4, min_cosine=0.999999)


def _check(source: _Source, folder: Path) -> Parity:
    """Run the graph on texts of three lengths in one padded bucket and compare it with the reference.

    Raises:
        CheckFailedError: It differs from the reference by more than float32 explains.
    """
    try:
        model = CoremlModel.open(folder)
    except CoremlModelError as error:
        raise CheckFailedError(f"what was written cannot be read: {error}") from error
    session = open_session(model.graph)
    random = np.random.default_rng(0)
    lengths = [min(length, source.encoder.max_tokens) for length in (1, 9, 33)]
    texts = [random.integers(0, source.encoder.vocabulary, length) for length in lengths]
    hidden = [source.forward(ids) for ids in texts]
    batch = TokenBatch.of_rows(texts, pad_id=0, pad_left=False)
    found, expected = [], []
    for mode in (PoolingMode.MEAN, PoolingMode.CLS, PoolingMode.LAST_TOKEN):
        weights = pooling_weights(batch.mask, mode)
        assert weights is not None
        feeds = model.feeds(batch.ids, batch.mask, weights, len(texts) + 1, max(lengths) + 7)
        found.append(session.run(["pooled"], feeds)[0][: len(texts)])
        expected.append([row[: len(vectors)] @ vectors for row, vectors in zip(weights, hidden, strict=True)])
    return check_parity(np.concatenate(found), np.concatenate(expected), _ALLOWED, of="what it was made of")
