"""`embed-worker export`: an ONNX graph from a published folder's safetensors, without torch.

It reads config.json and model.safetensors, writes the graph, compares it with a plain numpy forward pass of the same
weights, and only then puts it in place, with a manifest. An architecture is one class that fulfils `Encoder`; `bert.py`
has the one there is. B, T and D are batch, tokens and hidden size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from embed_worker.manifest import Manifest, ManifestError, file_sha256
from embed_worker.safetensors import SafetensorsError, SafetensorsFile
from embed_worker.tools.bert import Bert
from embed_worker.tools.onnx_writer import (
    WEIGHTS,
    CheckFailedError,
    ExportError,
    Floats,
    Int64,
    Storage,
    chosen,
)

# 17 is the first opset with LayerNormalization and what onnxruntime has read since 1.13; 21 is the last that the oldest
# onnxruntime we support reads.
DEFAULT_OPSET = 17
OPSETS = range(17, 22)

_GRAPH = Path("onnx", "model.onnx")
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
    f"[0-9]*_*/{WEIGHTS}",
)


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
        weights_hash = f"{WEIGHTS} SHA-256 {file_sha256(folder / WEIGHTS)}, exported by embed-worker export"
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
    read = chosen(config, "model_type", None, _ENCODERS)
    try:
        return read(config, SafetensorsFile.open(folder / WEIGHTS))
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


_ENCODERS: Mapping[str, Callable[[Mapping[str, Any], SafetensorsFile], Encoder]] = {"bert": Bert.read}
