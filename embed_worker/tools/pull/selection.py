"""Which files of a repository a worker needs: one graph with its data, and what says how to use it."""

from __future__ import annotations

import mmap
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from embed_worker.encoders.checkpoint import INDEX, ExportError, weight_files
from embed_worker.model_files.layout import USUAL_GRAPHS, WEIGHTS, files_of_a_model, read_json
from embed_worker.tools.pull.hub import HubError, Repository


def usual_graph(files: Collection[str]) -> str | None:
    """Find the graph that a folder is served with unless an option says otherwise."""
    return next((graph for graph in USUAL_GRAPHS if graph in files), None)


def choose_graph(repository: Repository, asked: str | None) -> str | None:
    """Choose the graph; None where the repository has none.

    Raises:
        HubError: It has graphs, and not the one that was asked for or is usual.
    """
    graph = usual_graph(repository.files) if asked is None else asked
    if graph in repository.files:
        return graph
    graphs = sorted(file for file in repository.files if file.endswith(".onnx"))
    if graphs:
        missing = "no onnx/model.onnx and no model.onnx" if asked is None else f"no {asked}"
        raise HubError(f"{repository.name} has {missing}; --onnx-file can choose one of: {', '.join(graphs)}")
    if asked is not None:
        advice = "without --onnx-file and --variant its weights are pulled, for `embed-worker export`"
        raise HubError(f"{repository.name} has no ONNX graph at all; {advice}")
    return None


def weights_of(files: Collection[str]) -> str | None:
    """Find the weights that `export` reads: one file, or the index of several; None where there are none."""
    return next((name for name in (WEIGHTS, INDEX) if name in files), None)


def shards_of(folder: Path) -> list[str]:
    """Return the files that the index of a folder's weights names.

    Raises:
        HubError: It is damaged, or names a file that cannot be one of them.
    """
    try:
        return [file.name for file in weight_files(folder)]
    except ExportError as error:
        raise HubError(str(error)) from error


def check_usable(repository: Repository, graph: str | None, *, weights: bool) -> None:
    """Refuse a repository that no worker could use, or that lacks the weights that were asked for.

    Raises:
        HubError: It has no fast tokenizer, or no weights that are needed.
    """
    if not {"tokenizer.json", "vocab.txt"} & set(repository.files):
        raise HubError(f"{repository.name} has no tokenizer.json and no vocab.txt: other tokenizers cannot be used")
    if weights_of(repository.files) is not None:
        return
    if weights:
        raise HubError(f"{repository.name} has no {WEIGHTS}: leave --weights out")
    if graph is None:
        raise HubError(
            f"{repository.name} has no ONNX graph, and no {WEIGHTS} that `embed-worker export` could make one of: "
            "look for an ONNX export of it, in the organisations onnx-community and Xenova for instance"
        )


def files_of_a_worker(modules_file: Path, files: Collection[str]) -> list[str]:
    """Return the configurations, the tokenizer, the modules behind the transformer, and the terms of a repository."""
    try:
        modules = read_json(modules_file)
    except (OSError, ValueError):
        modules = None  # a bare folder, or one whose modules the worker will refuse with a sentence
    return files_of_a_model(files, modules)


def external_data(graph: Path, name: str, files: Collection[str]) -> list[str]:
    """Return the files beside a graph that it names: ONNX states the relative paths of a graph's data as plain bytes.

    Raises:
        OSError: The graph cannot be read.
    """
    if graph.stat().st_size == 0:
        return []  # which cannot be mapped
    folder = PurePosixPath(name).parent
    beside = [PurePosixPath(file) for file in sorted(files) if not file.endswith((".onnx", ".json"))]
    with graph.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [
            str(file)
            for file in beside
            if file.is_relative_to(folder) and content.find(str(file.relative_to(folder)).encode()) >= 0
        ]
