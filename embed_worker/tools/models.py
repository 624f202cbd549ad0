"""`embed-worker models`: list the models that are here, and those that `embed-worker pull` knows.

  embed-worker models
  embed-worker models --json | jq -r '.here[] | select(.problem == null).name'

Names are looked for in each --models-dir, in the folders of $EMBED_WORKER_MODELS, in the user's models and in those of
the package. Nothing is loaded: a model that is listed without a complaint may still be refused by its runtime, and
`embed-worker check --quick NAME` tells. Exit status: 0, also where there are none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embed_worker.config import ModelOptions
from embed_worker.errors import ModelError, printable
from embed_worker.model_files.damage import damage_of
from embed_worker.model_files.external_data import external_files
from embed_worker.model_files.fingerprint import files_that_shape
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.known_models import known_models
from embed_worker.model_files.onnx_outline import Outline, read_outline
from embed_worker.model_files.plan import ModelPlan
from embed_worker.model_files.safetensors import SafetensorsError, SafetensorsFile
from embed_worker.model_files.search import find_by_name, folders_of_models, model_name
from embed_worker.tools.model_options import add_search_argument, searched_folders
from embed_worker.tools.report import show

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """A graph of a model's folder; the `--json` output has these names.

    Attributes:
        file: Relative to the folder.
        variant: What `--variant` calls it; None where that does not reach it.
        weights: The type that most of its weights have in the file; None where that is not to be seen.
        size: In bytes, with the files that it keeps its data in.
    """

    file: str
    variant: str | None
    weights: str | None
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHere:
    """A model that a name finds; the `--json` output has these names.

    Attributes:
        dimension: Of its answers, as far as its files tell without being run.
        size: Of what a worker reads of it, in bytes.
        graph: What is run without `--variant` and `--onnx-file`; None where it cannot be.
        problem: Why it cannot be served as it is, in one sentence.
    """

    name: str
    folder: str
    dimension: int | None
    max_tokens: int | None
    size: int | None
    graph: str | None
    graphs: tuple[GraphFile, ...]
    problem: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_search_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(args: argparse.Namespace) -> int:
    """List on standard output; return the exit status."""
    report = describe(searched_folders(args))
    show([json.dumps(report)] if args.json else _lines(report))
    return 0


def describe(folders: Sequence[Path]) -> dict[str, Any]:
    """Describe what some models folders hold, and the table of known models, with the names of the JSON form."""
    here = [_model_here(model_name(folder), folders) for folder in folders_of_models(folders)]
    names = {model.name for model in here}
    known = [
        {
            "name": model.name,
            "repository": model.repository,
            "license": model.license,
            "dimension": model.dimension,
            "max_tokens": model.max_tokens,
            "is_here": model.name in names,
        }
        for model in known_models()
    ]
    searched = [str(folder) for folder in folders if folder.is_dir()]
    return {"format": FORMAT, "folders": searched, "here": [asdict(model) for model in here], "known": known}


def _model_here(name: str, folders: Sequence[Path]) -> ModelHere:
    folder: Path | None = None
    graphs: tuple[GraphFile, ...] = ()
    try:
        folder = find_by_name(name, folders)
        graphs = tuple(_graphs(folder))
        plan = read_model_folder(folder, ModelOptions())
        size = _checked_size(plan)
    except (ModelError, OSError) as error:
        return ModelHere(
            name=name,
            folder=str(folder or ""),
            dimension=None,
            max_tokens=None,
            size=None,
            graph=None,
            graphs=graphs,
            problem=str(error),
        )
    return ModelHere(
        name=name,
        folder=str(folder),
        dimension=_dimension(plan),
        max_tokens=plan.max_tokens,
        size=size,
        graph=plan.graph.relative_to(folder).as_posix(),
        graphs=graphs,
        problem=None,
    )


def _graphs(folder: Path) -> Iterator[GraphFile]:
    for file in sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")]):
        outline = read_outline(file)
        try:
            files = [file, *external_files(file, outline.external)]
        except ModelError:  # of the graph that is run, the problem tells
            files = [file]
        is_variant = file.parent != folder and file.stem.startswith("model_")
        yield GraphFile(
            file=file.relative_to(folder).as_posix(),
            variant=file.stem.removeprefix("model_") if is_variant else None,
            weights=outline.quantization or outline.stored,
            size=sum(each.stat().st_size for each in files),
        )


def _checked_size(plan: ModelPlan) -> int:
    """Return the size of what is read of a model, in bytes.

    Raises:
        ModelError: Its graph is none, or files are missing or not what they should be.
    """
    files = files_that_shape(plan)
    for file in files:
        if (damage := damage_of(file)) is not None:
            raise ModelError(f"the model {plan.name!r} has a file {file.name!r} that is {damage}")
    if not plan.is_static and read_outline(plan.graph) == Outline():
        raise ModelError(f"the model {plan.name!r} has a file {plan.graph.name!r} that is no ONNX graph")
    return sum(file.stat().st_size for file in files)


def _dimension(plan: ModelPlan) -> int | None:
    if plan.is_static:
        width = _table_width(plan.graph)
    elif plan.dense:
        width = plan.dense[-1].out_features
    else:
        outline = read_outline(plan.graph)
        modes = 1 if outline.sentence_outputs and not plan.takes_tokens else max(1, len(plan.pooling))
        token_width = outline.width or plan.pooling_dimension
        width = None if token_width is None else token_width * modes
    return width if width is None or plan.truncate_dim is None else min(width, plan.truncate_dim)


def _table_width(file: Path) -> int | None:
    try:
        tensors = SafetensorsFile.open(file)
    except SafetensorsError:
        return None
    return max((tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 2), default=None)


# For people ---------------------------------------------------------------------------------------------------------


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    usable = [model for model in report["here"] if model["problem"] is None]
    broken = [model for model in report["here"] if model["problem"] is not None]
    yield "Here, for --model and `load_model`:" if usable else "No model is here that can be served"
    if usable:
        yield from _table(_HEAD_HERE, [_row_here(model) for model in usable])
    for model in broken:
        yield f"  ! {model['problem']} ({model['folder']})"
    missing = [model for model in report["known"] if not model["is_here"]]
    if missing:
        yield ""
        yield "Known to `embed-worker pull NAME`, which also fetches any `org/name` of the hub:"
        yield from _table(_HEAD_KNOWN, [_row_known(model) for model in missing])


_HEAD_HERE = ("name", "dimension", "tokens", "size", "weights", "folder")
_HEAD_KNOWN = ("name", "dimension", "tokens", "licence", "repository")


def _row_here(model: Mapping[str, Any]) -> tuple[str, ...]:
    weights = [
        graph["weights"] or "?"
        if graph["file"] == model["graph"]
        else f"--variant {graph['variant']}"
        if graph["variant"] is not None
        else f"--onnx-file {graph['file']}"
        for graph in sorted(model["graphs"], key=lambda graph: graph["file"] != model["graph"])
    ]
    size = f"{model['size'] / 1e6:,.1f} MB"
    return (
        model["name"],
        _figure(model["dimension"]),
        _figure(model["max_tokens"]),
        size,
        ", ".join(weights) or "a table",
        model["folder"],
    )


def _row_known(model: Mapping[str, Any]) -> tuple[str, ...]:
    figures = _figure(model["dimension"]), _figure(model["max_tokens"])
    return (model["name"], *figures, model["license"], model["repository"])


def _figure(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    rows = [head, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = (
            cell.rjust(width) if column in ("dimension", "tokens", "size") else cell.ljust(width)
            for column, cell, width in zip(head, row, widths, strict=True)
        )
        yield f"  {'  '.join(cells).rstrip()}"
