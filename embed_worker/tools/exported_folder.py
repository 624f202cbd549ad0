"""Whether an exported folder says all that its source says: its modules, its limits, the tokens of any text."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from embed_worker.config import ModelOptions
from embed_worker.encoders.checkpoint import CheckFailedError, transformer_folder, weight_files
from embed_worker.errors import ModelError
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.fingerprint import fingerprint
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.layout import MODULES, USUAL_GRAPHS, files_of_a_model, read_json
from embed_worker.model_files.limits import UNLIMITED
from embed_worker.model_files.plan import ModelPlan

_GRAPH = USUAL_GRAPHS[0]
# What no worker reads, by its ending.
_WEIGHTS_OF_OTHERS = (".bin", ".onnx", ".onnx_data", ".h5", ".msgpack", ".ot", ".gguf", ".pt")


def files_of(folder: Path) -> list[str]:
    """Return what makes a folder a model besides its graph and its weights, as POSIX paths."""
    try:
        modules = read_json(folder / MODULES)
    except (OSError, ValueError):
        modules = []
    return files_of_a_model(_all_files(folder), modules)


def _all_files(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def original_folder(folder: Path, beside: Path, graph: Path) -> Path:
    """Make a copy of a source with everything that it has, but with a graph in place of its weights.

    Args:
        folder: The source.
        beside: Where to make it.
        graph: What was exported.

    Raises:
        OSError: It cannot be made.
    """
    copy = beside / folder.resolve().name
    weights = {file.relative_to(folder).as_posix() for file in weight_files(transformer_folder(folder))}
    for name in _all_files(folder):
        if name not in weights and not name.endswith(_WEIGHTS_OF_OTHERS):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, copy / name)
    link_graph(graph, copy / _GRAPH)
    return copy


def link_graph(graph: Path, target: Path) -> None:
    """Have a graph and its data at another place, without a copy where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in (graph, graph.with_name(f"{graph.name}_data")):
        place = target.with_name(file.name)
        place.unlink(missing_ok=True)
        if file.exists():
            try:
                os.link(file, place)
            except OSError:
                shutil.copyfile(file, place)


def compare_folders(original: Path, made: Path) -> None:
    """Compare how two folders with the same graph are read.

    Raises:
        CheckFailedError: They are not read alike, or cut or encode a text differently.
    """
    try:
        expected = read_model_folder(original, ModelOptions())
        tokenizer = TextTokenizer.load(expected)
    except ModelError:
        return  # an option must decide something, or it is no whole model: there is nothing to compare with
    try:
        found = read_model_folder(made, ModelOptions())
        other = TextTokenizer.load(found)
    except ModelError as error:
        raise CheckFailedError(f"What was exported cannot be served, and its source could: {error}") from error
    if _space(found) != _space(expected):
        here, there = _said(found), _said(expected)
        lost = [
            f"{subject} is {here.get(subject)} and not {there.get(subject)}"
            for subject in {**there, **here}
            if here.get(subject) != there.get(subject)
        ]
        raise CheckFailedError(f"What was exported is read as another model than its source: {'; '.join(lost)}")
    if _encoded(tokenizer, expected) != _encoded(other, found):
        raise CheckFailedError("What was exported has other tokens for a text than its source")


def _said(plan: ModelPlan) -> dict[str, str]:
    return {decision.subject: repr(decision.value) for decision in plan.decisions}


def _space(plan: ModelPlan) -> str:
    """Return what names a model's vector space but for its graph, which is the same."""
    graph = plan.graph.relative_to(plan.folder).as_posix()
    return fingerprint(plan, dict.fromkeys((graph, f"{graph}_data"), "the same"))


def _texts(plan: ModelPlan) -> list[str]:
    sentence = "A row for every text, größer als Straßen in 東京; "
    beyond = 0 if plan.max_tokens == UNLIMITED else plan.max_tokens
    return ["a", sentence, sentence * (beyond // 8 + 2)]


def _encoded(tokenizer: TextTokenizer, plan: ModelPlan) -> list[tuple[list[int], int]]:
    return [(row.ids.tolist(), row.count) for row in tokenizer.encode(_texts(plan), "")]
