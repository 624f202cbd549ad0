"""`embed-worker quantize`: make an int8 variant of a model's float32 graph, for `--variant int8`.

Weights are rounded by column, and activations by row while the model runs, so that a text's vector does not depend on
the texts beside it. The variant is compared with the float graph before it is put in place, and timed against it
afterwards. It appears whole or not at all, and is entered in the folder's manifest.json where there is one.
Exit status: 0 the variant is made, 1 it is too inexact, 2 wrong usage, 75 no memory or no threads for it now, 78 the
model cannot be used or its folder cannot be written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from embed_worker.atomic import written_aside
from embed_worker.config import RuntimeOptions, Verify, path_argument
from embed_worker.errors import ModelError, OutOfMemoryError, brief
from embed_worker.inference.engine import LoadedModel
from embed_worker.loading import load_model
from embed_worker.model_files.external_data import external_files
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.manifest import FileRecord, Manifest, ManifestError, file_sha256
from embed_worker.model_files.onnx_outline import read_outline
from embed_worker.model_files.plan import ModelPlan
from embed_worker.protocol import ExitCode
from embed_worker.tools.model_options import add_model_arguments, model_folder, model_options
from embed_worker.tools.progress import shown
from embed_worker.tools.quality import cosines
from embed_worker.tools.quantize.activations import sample_activations
from embed_worker.tools.quantize.int8 import Changed, Float32, FloatGraph, QuantizeError, choose_rounding
from embed_worker.tools.references import ReferencesError, find_references
from embed_worker.tools.report import refuse, show
from embed_worker.tools.texts import SAMPLE_TEXTS, TEXTS_BY_KIND, bulk_texts
from embed_worker.tools.worker_process import WorkerError, WorkerProcess, worker_arguments

_TOO_INEXACT = 1
_CPU = RuntimeOptions(provider="cpu")
_MAX_BYTES = 2_000_000_000  # a protobuf message holds 2 GiB, of which the nodes take some

_MIN_COSINE = 0.95
_MAX_BATCH_DISTANCE = 1e-6
_BATCH = 6

_ROUNDS = 7
_ROUND_S = 2.0
_OUTPUT_NAME = re.compile(r"model_[A-Za-z0-9][A-Za-z0-9._-]*\.onnx")


class TooInexactError(Exception):
    """The variant's vectors are not those of the float graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """The variant's vectors against others of the same texts, each text embedded alone.

    Attributes:
        min_cosine, mean_cosine: To the float graph's vectors.
        kinds: The smallest cosine of each kind of text, the worst first.
        reference_min_cosine: To stored vectors of another implementation; None where there are none.
        batch_max_distance: Cosine distance of a text's vector alone to that in a mixed batch.
    """

    min_cosine: float
    mean_cosine: float
    kinds: Mapping[str, float]
    reference_min_cosine: float | None
    batch_max_distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedComparison:
    """Throughput through two worker processes, asked in turns: medians of the rounds, and the ratios of each round."""

    float_texts_per_s: float
    int8_texts_per_s: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """What was made; the `--json` output has these names. Sizes are in bytes, external data included."""

    graph: str
    sha256: str
    size: int
    source_size: int
    products: int
    tables: int
    likeness: Likeness
    is_batch_invariant: bool
    speed: SpeedComparison | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quantize`."""
    add_model_arguments(parser)
    parser.add_argument(
        "--output-name",
        type=_output_name,
        default="model_int8.onnx",
        metavar="model_NAME.onnx",
        help="name of the new file in onnx/; `--variant NAME` runs it (%(default)s)",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="DIR",
        help="leave MODEL as it is, and make a copy of it in DIR that has the variant",
    )
    parser.add_argument(
        "--min-cosine",
        type=float,
        default=_MIN_COSINE,
        metavar="X",
        help="refuse a variant whose smallest cosine to the float graph is lower (%(default)s)",
    )
    parser.add_argument("--no-speed", dest="is_timed", action="store_false", help="do not measure the throughput")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _output_name(text: str) -> str:
    if not _OUTPUT_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("must be model_NAME.onnx: `--variant NAME` looks for that")
    return text


def run(args: argparse.Namespace) -> int:
    """Quantise a model and report on standard output; return the exit status."""
    try:
        report = quantize(args)
    except TooInexactError as error:
        return refuse("quantize", error, _TOO_INEXACT)
    except (ModelError, QuantizeError, ReferencesError, ManifestError) as error:
        return refuse("quantize", error, ExitCode.UNUSABLE_MODEL)
    except OutOfMemoryError as error:
        return refuse("quantize", error, ExitCode.TRY_AGAIN)
    except WorkerError as error:
        return refuse("quantize", error, error.exit_status)
    show([json.dumps(asdict(report))] if args.json else _readable(report))
    return ExitCode.OK


def quantize(args: argparse.Namespace) -> QuantizeReport:
    """Make the variant, compare it, put it in place, and time it.

    Raises:
        ModelError: The folder cannot be used.
        QuantizeError: There is nothing to quantise, it is quantised already, or the folder cannot be written.
        TooInexactError: The variant's vectors are too far from the float graph's.
        OutOfMemoryError: There is no memory for it.
        WorkerError: The variant is in place, and a worker could not serve to be timed.
    """
    source, options = model_folder(args), model_options(args)
    plan = read_model_folder(source, options)
    if plan.is_static:
        raise QuantizeError(f"{plan.name} is a table of vectors: it has no graph, and nothing to gain")
    outline = read_outline(plan.graph)
    if outline.quantization is not None:
        raise QuantizeError(f"{plan.graph.name} is quantised already; --onnx-file or --variant can name a float graph")
    if plan.graph.name == args.output_name:
        raise QuantizeError(f"{plan.graph.name} is what is to be quantised: give another --output-name")
    source_files = [plan.graph, *external_files(plan.graph, outline.external)]
    expected = _embed_each(load_model(source, options, _CPU, threads=1), SAMPLE_TEXTS)
    try:
        with _folder_to_write(source, args.output) as folder, _replacing(folder / "onnx" / args.output_name) as file:
            changed = write_variant(read_model_folder(folder, options), file)
            graph = file.relative_to(folder).as_posix()
            variant = load_model(folder, replace(options, onnx_file=graph, variant=None), _unverified(), threads=1)
            likeness = compare(variant, expected)
            if not likeness.min_cosine >= args.min_cosine:
                raise TooInexactError(
                    f"the smallest cosine to the float graph is {likeness.min_cosine:.4f}, and {args.min_cosine:g} is "
                    "required: nothing was written"
                )
            # Of few texts at the warm-up, and of all that were compared here.
            is_batch_invariant = variant.engine.is_batch_invariant and likeness.batch_max_distance < _MAX_BATCH_DISTANCE
    except OSError as error:
        where = error.filename or args.output or source
        hint = "" if args.output else "; --output DIR makes a copy of the folder with the variant"
        raise QuantizeError(f"{where} cannot be written: {error.strerror or error}{hint}") from error
    made = (args.output or source) / "onnx" / args.output_name
    return QuantizeReport(
        graph=str(made),
        sha256=file_sha256(made),
        size=made.stat().st_size,
        source_size=sum(file.stat().st_size for file in source_files),
        products=changed.products,
        tables=changed.tables,
        likeness=likeness,
        is_batch_invariant=is_batch_invariant,
        speed=measure_speed(args, source, made) if args.is_timed else None,
    )


def _unverified() -> RuntimeOptions:
    return replace(_CPU, verify=Verify.NEVER)


# Writing ------------------------------------------------------------------------------------------------------------


def write_variant(plan: ModelPlan, file: Path) -> Changed:
    """Quantise the graph of a plan into a file: the same bytes for the same graph.

    Raises:
        QuantizeError: It cannot be read or quantised, or is too large for one file.
        OSError: The file cannot be written.
    """
    graph = _read_graph(plan.graph)
    samples = sample_activations(graph, plan)
    if not samples:
        raise QuantizeError(f"{plan.graph.name} multiplies nothing by weights that has a row for each token")
    roundings = {
        name: choose_rounding(samples[name], graph.weights_of(name), may_divide=not graph.shares_weights(name))
        for name in shown(list(samples), "quantizing", "product")
    }
    changed = graph.quantize(roundings)
    if sum(tensor.ByteSize() for tensor in graph.model.graph.initializer) > _MAX_BYTES:
        raise QuantizeError(f"{plan.graph.name} is over 2 GB as int8, which one ONNX file cannot hold")
    file.write_bytes(graph.model.SerializeToString(deterministic=True))
    return changed


def _read_graph(file: Path) -> FloatGraph:
    try:
        import onnx
    except ImportError as error:
        raise QuantizeError("the package onnx is missing: pip install 'embed-bridge[tools]'") from error
    try:
        return FloatGraph(onnx.load(file))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        hint = "--output DIR copies the folder with its links followed"
        raise QuantizeError(f"{file.name} cannot be read with its data: {brief(error)}; {hint}") from error


@contextmanager
def _folder_to_write(source: Path, output: Path | None) -> Iterator[Path]:
    """Yield the folder that gets the variant: the model's own, or a copy that becomes `output` if all goes well.

    Raises:
        QuantizeError: `output` is there already.
        OSError: It cannot be written.
    """
    if output is None:
        yield source
        return
    if output.exists():
        raise QuantizeError(f"{output} exists: --output makes a new folder")
    hidden = output.parent / f".{output.name}.{os.getpid()}"
    copy = hidden / output.name  # a folder's name tells what is known of the model
    try:
        for file in sorted(source.rglob("*")):
            path = file.relative_to(source)
            if file.is_file() and not any(part.startswith(".") for part in path.parts):
                (copy / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy / path)  # content only: the modes of a package's files mean nothing here
        yield copy
        os.rename(copy, output)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Yield a hidden name beside `file` to write to; if all goes well it becomes `file`, and the manifest learns of it.

    Raises:
        OSError: The folder cannot be written.
        ManifestError: Its manifest is none.
    """
    folder = file.parents[1]
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(file) as aside:
        yield aside
        manifest = Manifest.read(folder)
        path = file.relative_to(folder).as_posix()
        if manifest is not None and path in manifest.files:
            # At no moment does the manifest list a file that is another.
            files = {listed: record for listed, record in manifest.files.items() if listed != path}
            manifest = replace(manifest, files=files)
            manifest.write(folder)
    if manifest is not None:
        record = FileRecord(sha256=file_sha256(file), size=file.stat().st_size)
        replace(manifest, files={**manifest.files, path: record}).write(folder)


# Measuring ----------------------------------------------------------------------------------------------------------


def compare(variant: LoadedModel, expected: Float32) -> Likeness:
    """Compare a variant with what the float graph gives for `SAMPLE_TEXTS`, and with references where there are any."""
    alone = _embed_each(variant, SAMPLE_TEXTS)
    similar = cosines(alone, expected)
    starts = np.cumsum([0, *map(len, TEXTS_BY_KIND.values())])[:-1]
    kinds = dict(zip(TEXTS_BY_KIND, np.minimum.reduceat(similar, starts).round(6).tolist(), strict=True))
    return Likeness(
        min_cosine=round(float(similar.min()), 6),
        mean_cosine=round(float(similar.mean()), 6),
        kinds=dict(sorted(kinds.items(), key=lambda kind: kind[1])),
        reference_min_cosine=_reference_min_cosine(variant),
        batch_max_distance=float(f"{1 - cosines(alone, _embed_together(variant, SAMPLE_TEXTS)).min():.1e}"),
    )


def _reference_min_cosine(variant: LoadedModel) -> float | None:
    references = find_references(variant.name, variant.plan.folder)
    plain = next((item for item in references.sets if not item.request), None) if references is not None else None
    if plain is None:
        return None
    vectors = _embed_each(variant, plain.texts)
    return round(float(cosines(vectors, plain.vectors).min()), 6) if vectors.shape == plain.vectors.shape else None


def _embed_together(model: LoadedModel, texts: Sequence[str]) -> Float32:
    """Embed texts in batches of several lengths, as pooled: (B, D)."""
    rows = model.engine.tokenizer.encode(texts, "")
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    vectors = np.concatenate(
        [model.engine.embed([rows[place] for place in batch], exclusive=False) for batch in batches]
    )
    return vectors[np.argsort(order)]


def _embed_each(model: LoadedModel, texts: Sequence[str]) -> Float32:
    """Embed texts one at a time, as pooled: (B, D)."""
    rows = model.engine.tokenizer.encode(texts, "")
    return np.concatenate([model.engine.embed([row], exclusive=False) for row in rows])


def measure_speed(args: argparse.Namespace, source: Path, variant: Path) -> SpeedComparison:
    """Time the float graph and the variant on the same texts, in turns, through a worker process each.

    Raises:
        WorkerError: One of them could not serve.
    """
    of_variant = vars(args) | {"variant": None, "onnx_file": f"{variant.parent.name}/{variant.name}"}
    arguments = worker_arguments(argparse.Namespace(**of_variant), variant.parents[1])
    with (
        WorkerProcess([*worker_arguments(args, source), "--provider", "cpu"]) as exact,
        WorkerProcess([*arguments, "--provider", "cpu"]) as rounded,
    ):
        for worker in (exact, rounded):
            worker.time_s(bulk_texts(32))  # the first run of a process is none to measure
        slow_s = exact.time_s(bulk_texts(32))
        texts = bulk_texts(int(np.clip(32 * _ROUND_S / slow_s, 32, 256)))
        times: dict[WorkerProcess, list[float]] = {exact: [], rounded: []}
        for number in shown(range(_ROUNDS), "timing", "round"):
            for worker in (exact, rounded) if number % 2 else (rounded, exact):
                times[worker].append(worker.time_s(texts))
    exact_s, rounded_s = times[exact], times[rounded]
    ratios = [before / after for before, after in zip(exact_s, rounded_s, strict=True)]
    return SpeedComparison(
        float_texts_per_s=round(len(texts) / statistics.median(exact_s), 1),
        int8_texts_per_s=round(len(texts) / statistics.median(rounded_s), 1),
        ratio=round(statistics.median(exact_s) / statistics.median(rounded_s), 3),
        lowest_ratio=round(min(ratios), 3),
        highest_ratio=round(max(ratios), 3),
        rounds=_ROUNDS,
    )


def _readable(report: QuantizeReport) -> list[str]:
    likeness, speed = report.likeness, report.speed
    kinds = ", ".join(f"{kind} {cosine:.4f}" for kind, cosine in likeness.kinds.items())
    lines = [
        f"{report.graph}: {report.size / 1e6:.1f} MB, {report.size / report.source_size:.2f} of the float graph",
        f"quantized: {report.products} matrix products, {report.tables} lookup tables",
        f"cosine to the float graph over {len(SAMPLE_TEXTS)} texts: smallest {likeness.min_cosine:.4f}, "
        f"mean {likeness.mean_cosine:.4f}",
        f"smallest by kind of text, the worst first: {kinds}",
    ]
    if likeness.reference_min_cosine is not None:
        lines.append(f"smallest cosine to the stored reference vectors: {likeness.reference_min_cosine:.4f}")
    invariant = "a text's vector does not depend" if report.is_batch_invariant else "A TEXT'S VECTOR DEPENDS"
    lines.append(f"{invariant} on its neighbours (largest cosine distance {likeness.batch_max_distance:.0e})")
    if speed is not None:
        lines.append(
            f"throughput: {speed.ratio:.2f} × the float graph's ({speed.int8_texts_per_s:.0f} and "
            f"{speed.float_texts_per_s:.0f} texts/s through a worker process each, medians of {speed.rounds} rounds in "
            f"turns, {speed.lowest_ratio:.2f} to {speed.highest_ratio:.2f})"
        )
    name = Path(report.graph).stem.removeprefix("model_")
    return [*lines, f"run it with: --variant {name}"]
