"""`embed-worker export`: make an ONNX graph from a published folder's safetensors, without torch.

It reads config.json and model.safetensors (or its shards), writes the graph, compares it with a plain numpy forward
pass of the same weights, and only then puts it in place, with a manifest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embed_worker.config import folder_argument, path_argument
from embed_worker.encoders.architectures import Encoder, read_encoder
from embed_worker.encoders.checkpoint import (
    CheckFailedError,
    ExportError,
    Floats,
    Int64,
    transformer_folder,
    weight_files,
)
from embed_worker.encoders.onnx_writer import DEFAULT_OPSET, OPSETS, Storage, open_session
from embed_worker.encoders.parity import Parity, check_parity
from embed_worker.errors import without_frames
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.model_files.damage import damage_of
from embed_worker.model_files.manifest import Manifest, ManifestError, file_sha256
from embed_worker.tools.exported_folder import compare_folders, files_of, link_graph, original_folder
from embed_worker.tools.report import refuse, show

# A protobuf message ends at 2 GiB; the rest is for nodes, norms and biases. Larger weights get a file of their own.
MAX_WEIGHTS_IN_GRAPH_BYTES = 2**31 - 2**26

_GRAPH = Path("onnx", "model.onnx")
_HASHES = re.compile(r"(?:^|, )[^ ,]+\.safetensors SHA-256 ")  # what an export adds to a source begins so


# The difference is relative to the largest component of the reference. Measured on 24 random layers: 4e-3 and 0.99999
# with float16, 4e-6 with float32; a mistake in the graph is far beyond either.
_TOLERANCES: Mapping[Storage, Parity] = {
    Storage.FLOAT16: Parity(max_difference=2e-2, min_cosine=0.9999),
    Storage.FLOAT32: Parity(max_difference=1e-4, min_cosine=0.999999),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export did; the `--json` output has these names. Sizes are in bytes; `data_size` is external data's."""

    graph: str
    size: int
    data_size: int
    sha256: str
    opset: int
    weights: Storage
    max_difference: float
    min_cosine: float
    files: int


# The command --------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "folder", metavar="DIR", type=folder_argument, help="folder with config.json and model.safetensors"
    )
    parser.add_argument(
        "--for",
        dest="target",
        choices=["cpu", "coreml"],
        default="cpu",
        help="what is to run the graph: cpu, or coreml for a graph of its own (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=path_argument,
        help="the folder to make, with tokenizer and configurations (default: add the graph to DIR)",
    )
    parser.add_argument(
        "--weights",
        choices=[storage.value for storage in Storage],
        default=Storage.FLOAT16.value,
        help="for cpu: how weights are stored; they are computed with in float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--opset",
        metavar="N",
        type=int,
        choices=OPSETS,
        default=DEFAULT_OPSET,
        help="for cpu: the version of ONNX's operators (default: %(default)s)",
    )
    parser.add_argument("--source", metavar="TEXT", help="where the weights were published, for the manifest")
    parser.add_argument("--license", metavar="TEXT", help="their licence, for the manifest")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Export a folder and report on standard output; return the exit status."""
    if args.target == "coreml":
        return _run_for_coreml(args)
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
        return refuse("export", error, error.exit_status)
    if args.json:
        show([json.dumps(asdict(report))])
        return 0
    size = f"{(report.size + report.data_size) / 1e6:.1f} MB" + (" with its data file" if report.data_size else "")
    found = f"largest difference {report.max_difference:.1e}, smallest cosine {report.min_cosine:.8f}"
    show(
        [
            f"{report.graph}: {size}, opset {report.opset}, weights stored as {report.weights}",
            f"checked with onnxruntime against numpy: {found}",
            f"manifest.json lists {report.files} files",
        ]
    )
    return 0


def _run_for_coreml(args: argparse.Namespace) -> int:
    from embed_worker.accelerators.coreml.graph_export import export_for_coreml

    try:
        report = export_for_coreml(args.folder, output=args.output or args.folder)
    except ExportError as error:
        return refuse("export", error, error.exit_status)
    if args.json:
        show([json.dumps(asdict(report))])
        return 0
    sizes = f"graph {report.graph_size / 1e6:.1f} MB, tables {report.tables_size / 1e6:.1f} MB"
    found = f"largest difference {report.max_difference:.1e}, smallest cosine {report.min_cosine:.8f}"
    show(
        [
            f"{report.folder}: {sizes}, made of {', '.join(report.sources)}",
            f"checked with onnxruntime: {found}",
        ]
    )
    return 0


def export(
    folder: Path, *, output: Path, storage: Storage, opset: int, source: str | None, license: str | None
) -> ExportReport:
    """Make `onnx/model.onnx` and `manifest.json` in `output`, and copy there what else a worker reads.

    Nothing is in place before it was checked, and what was there stays if it fails. Where no source and no licence are
    given, they are those of the folder's own manifest: a pull would not know its folder again.

    Raises:
        ExportError: The folder cannot be used, or the output not be written.
        CheckFailedError: The graph differs from the weights, or what was made is read as another model.
    """
    encoder = read_encoder(folder)
    graph = output / _GRAPH
    try:
        graph.parent.mkdir(parents=True, exist_ok=True)
        # Windows does not delete what onnxruntime has mapped, should a session still be there.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output, ignore_cleanup_errors=True) as staging:
            try:
                staged = Path(staging, "made", output.resolve().name)
                _copy(folder, staged, files_of(folder))
                (staged / _GRAPH).parent.mkdir(exist_ok=True)
                _write_graph(staged / _GRAPH, encoder, storage, opset)
                parity = check(staged / _GRAPH, encoder, storage)
                if output.resolve() != folder.resolve():
                    original = original_folder(folder, Path(staging, "original"), staged / _GRAPH)
                    compare_folders(original, staged)
                    _copy(staged, output, files_of(staged))
                    _put_in_place(staged / _GRAPH, graph)
                    link_graph(graph, original / _GRAPH)
                    compare_folders(original, output)  # another model may have left its files there
                else:
                    _put_in_place(staged / _GRAPH, graph)
            except CheckFailedError as error:  # whose frames hold the session of the check
                raise without_frames(error) from None
        weights = {file: file_sha256(file) for file in weight_files(transformer_folder(folder))}
        origin = _origin(folder, weights)
        if source is None and origin is not None:
            source = _HASHES.split(origin.source)[0]
        hashes = [f"{file.name} SHA-256 {digest}" for file, digest in weights.items()]
        manifest = Manifest.of_folder(
            output,
            name=output.resolve().name,
            source=", ".join([*([source] if source else []), *hashes, "exported by embed-worker export"]),
            license=license or (origin.license if origin else "not stated"),
        )
        manifest.write(output)
    except (OSError, ManifestError) as error:
        raise ExportError(f"{output} cannot be written: {error}") from error
    record, data = (manifest.files.get(path.as_posix()) for path in (_GRAPH, _data_file(_GRAPH)))
    assert record is not None  # it has just been written
    return ExportReport(
        graph=str(graph),
        size=record.size,
        data_size=0 if data is None else data.size,
        sha256=record.sha256,
        opset=opset,
        weights=storage,
        max_difference=parity.max_difference,
        min_cosine=parity.min_cosine,
        files=len(manifest.files),
    )


def _origin(folder: Path, weights: Mapping[Path, str]) -> Manifest | None:
    """Return the manifest that a folder has, if its weights are those that it lists."""
    try:
        manifest = Manifest.read(folder)
    except ManifestError:
        return None
    listed = {folder / path: record.sha256 for path, record in manifest.files.items()} if manifest else {}
    return manifest if weights.items() <= listed.items() else None


def _write_graph(file: Path, encoder: Encoder, storage: Storage, opset: int) -> None:
    weights_bytes = encoder.tensors.parameters * np.dtype(storage.value).itemsize
    if weights_bytes <= MAX_WEIGHTS_IN_GRAPH_BYTES:
        model = encoder.graph(storage, opset)
    else:
        with _data_file(file).open("wb") as data:
            model = encoder.graph(storage, opset, data)
    file.write_bytes(model.SerializeToString(deterministic=True))


def _data_file(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}_data")


def _put_in_place(staged: Path, graph: Path) -> None:
    """Replace a graph and its external data; data of the graph that was there before would be orphaned."""
    if _data_file(staged).exists():
        os.replace(_data_file(staged), _data_file(graph))
        os.replace(staged, graph)
    else:
        os.replace(staged, graph)
        _data_file(graph).unlink(missing_ok=True)


def _copy(folder: Path, output: Path, names: Sequence[str]) -> None:
    for name in names:
        if (damage := damage_of(folder / name)) is not None:
            raise ExportError(f"{folder / name} is {damage}")
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Content only: the modes of a package's files mean nothing here.
        shutil.copyfile(folder / name, target)


# The check ----------------------------------------------------------------------------------------------------------


def check(graph: Path, encoder: Encoder, storage: Storage) -> Parity:
    """Run a graph with onnxruntime, each sequence alone and all in padded batches, against the reference.

    Raises:
        CheckFailedError: It differs by more than the storage explains.
    """
    session = open_session(graph)
    inputs = {tensor.name for tensor in session.get_inputs()}
    sequences = _check_sequences(encoder)
    reference = np.concatenate([encoder.forward(ids, types) for ids, types in sequences])
    alone = np.concatenate([_run(session, inputs, [sequence]) for sequence in sequences])
    sides = (False, True) if encoder.counts_tokens else (False,)
    results = [alone, *(_run(session, inputs, sequences, pad_left=pad_left) for pad_left in sides)]
    expected = np.concatenate([reference] * len(results))
    return check_parity(np.concatenate(results), expected, _TOLERANCES[storage], of="its weights")


def _check_sequences(encoder: Encoder) -> list[tuple[Int64, Int64]]:
    """Choose token ids and types: one token, a few, some dozens, and more than a window or a bucket of distances."""
    random = np.random.default_rng(0)
    lengths = [min(length, encoder.max_tokens) for length in (1, 9, 33, 150)]
    return [
        (random.integers(0, encoder.vocabulary, length), random.integers(0, max(1, encoder.token_types), length))
        for length in lengths
    ]


def _run(session: Any, inputs: set[str], sequences: Sequence[tuple[Int64, Int64]], *, pad_left: bool = False) -> Floats:
    """Run sequences as one padded batch; return the vectors of their tokens, one text after another."""
    batch = TokenBatch.of_rows([ids for ids, _ in sequences], pad_id=0, pad_left=pad_left)
    types = TokenBatch.of_rows([types for _, types in sequences], pad_id=0, pad_left=pad_left)
    feeds = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": types.ids}
    (hidden,) = session.run(["last_hidden_state"], {name: feeds[name] for name in inputs})
    tokens: Floats = hidden[batch.mask == 1]
    return tokens
