"""Which files of a repository a worker needs: one graph with its data, and what says how to use it."""

from __future__ import annotations

import fnmatch
import json
import mmap
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from embed_worker.tools.pull.hub import HubError, Repository

WEIGHTS = "model.safetensors"
MODULES = "modules.json"

_USUAL_GRAPHS = ("onnx/model.onnx", "model.onnx")
# What a worker reads besides the graph, and the terms under which it may.
_PUBLISHED = (
    "config.json",
    "config_sentence_transformers.json",
    MODULES,
    "sentence_*_config.json",  # bert, roberta, distilbert …
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)


def usual_graph(files: Collection[str]) -> str | None:
    """Find the graph that a folder is served with unless an option says otherwise."""
    return next((graph for graph in _USUAL_GRAPHS if graph in files), None)


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
        raise HubError(f"{repository.name} has {missing}; --onnx-file can choose one of: {', '.join(graphs)}.")
    if asked is not None:
        advice = "without --onnx-file and --variant its weights are pulled, for `embed-worker export`"
        raise HubError(f"{repository.name} has no ONNX graph at all; {advice}.")
    return None


def check_usable(repository: Repository, graph: str | None, *, weights: bool) -> None:
    """Refuse a repository that no worker could use, or that lacks the weights that were asked for.

    Raises:
        HubError: It has no fast tokenizer, or no weights that are needed.
    """
    if "tokenizer.json" not in repository.files:
        raise HubError(f"{repository.name} has no tokenizer.json: only fast tokenizers can be used.")
    if WEIGHTS in repository.files:
        return
    if weights:
        raise HubError(f"{repository.name} has no {WEIGHTS}: leave --weights out.")
    if graph is None:
        raise HubError(
            f"{repository.name} has no ONNX graph, and no {WEIGHTS} that `embed-worker export` could make one of: "
            "look for an ONNX export of it, in the organisations onnx-community and Xenova for instance."
        )


def published_files(files: Collection[str]) -> list[str]:
    """List the configurations, the tokenizer and the terms at a repository's root."""
    return sorted(
        file for file in files if "/" not in file and any(fnmatch.fnmatchcase(file, pattern) for pattern in _PUBLISHED)
    )


def module_files(modules_file: Path, files: Collection[str]) -> list[str]:
    """List the configurations of the modules after the transformer, and the weights of its Dense layers."""
    try:
        modules = json.loads(modules_file.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return []  # a bare folder, or one whose modules the worker will refuse with a sentence
    paths = []
    for module in modules if isinstance(modules, list) else []:
        match module:
            case {"path": str(path), "type": str(kind)} if path:
                paths.append(f"{path}/config.json")
                if kind.endswith(".Dense"):
                    paths.append(f"{path}/{WEIGHTS}")
            case _:
                pass
    return [path for path in paths if path in files]


def external_data(graph: Path, name: str, files: Collection[str]) -> list[str]:
    """List the files beside a graph that it names: ONNX states the relative paths of a graph's data as plain bytes.

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


def inner_path(path: str) -> str:
    """Pass a path that stays inside the folder on every platform.

    Raises:
        HubError: It does not; no honest repository has such a file.
    """
    if re.search(r"[\\:\x00-\x1f]", path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise HubError(f"The repository names a file {path!r}, which would lie outside its folder.")
    return path
