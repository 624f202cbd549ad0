"""`embed-worker models` lists what is really there; a name that is nowhere gets one suggestion."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embed_worker.__main__ import run_tool
from embed_worker.config import ModelOptions, RuntimeOptions
from embed_worker.errors import ModelError, ModelNotFoundError
from embed_worker.inference.engine import LoadedModel
from embed_worker.loading import load_model
from embed_worker.model_files.known_models import known_models, names_elsewhere
from embed_worker.model_files.search import find_by_name, find_model, models_folders
from embed_worker.tools.pull.command import pull
from embed_worker.tools.pull.wanted import PullError
from tests.worker.harness import ROOT, TINY_MODEL

FIXTURES = ROOT / "tests" / "models"


@pytest.fixture(autouse=True)
def _nothing_but_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMBED_WORKER_MODELS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run_tool("models", ["--json", *arguments]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report | {"here": {model["name"]: model for model in report["here"]}}


def test_the_default_model_is_here_and_the_others_of_the_table_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    report = listed(capsys)
    default = report["here"]["all-MiniLM-L6-v2"]
    assert (default["dimension"], default["max_tokens"], default["problem"]) == (384, 256, None)
    assert Path(default["folder"], default["graph"]).is_file()
    known = {model["name"]: (model["license"], model["is_here"]) for model in report["known"]}
    assert known == {model.name: (model.license, model.name in report["here"]) for model in known_models()}


def test_what_is_listed_is_what_a_worker_makes_of_each_folder(capsys: pytest.CaptureFixture[str]) -> None:
    here = listed(capsys, "--models-dir", str(FIXTURES))["here"]
    names = {folder.name for folder in FIXTURES.iterdir() if (folder / "tokenizer.json").is_file()}
    assert names <= set(here)
    for name in names:
        model: LoadedModel | None = None
        problem: str | None = None
        try:
            model = load_model(FIXTURES / name, ModelOptions(), RuntimeOptions(provider="cpu"), threads=1)
        except ModelError as error:
            problem = str(error)
        assert here[name]["problem"] == problem
        if model is None:
            continue
        assert (here[name]["dimension"], here[name]["max_tokens"]) == (model.dimension, model.plan.max_tokens), name
        (graph,) = (graph for graph in here[name]["graphs"] if graph["file"] == here[name]["graph"])
        assert graph["weights"] == model.engine.backend.precision


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda folder: (folder / "onnx" / "model.onnx").write_bytes(b""), "'model.onnx' that is empty"),
        (lambda folder: (folder / "onnx" / "model.onnx").write_bytes(b"nonsense"), "that is no ONNX graph"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json"),
        (lambda folder: (folder / "modules.json").write_text("[]"), "modules.json"),
        (lambda folder: shutil.rmtree(folder / "onnx"), "embed-worker export"),
    ],
)
def test_what_is_broken_is_listed_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], object], problem: str
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(TINY_MODEL, folder)
    (folder / "model.safetensors").touch()
    harm(folder)
    mine = listed(capsys, "--models-dir", str(tmp_path))["here"]["mine"]
    assert problem in mine["problem"]
    assert (mine["graph"], mine["dimension"]) == (None, None)
    assert run_tool("models", ["--models-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(str(folder)) == 1


def test_the_first_of_a_name_is_listed_and_other_folders_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("a", "b"):
        shutil.copytree(TINY_MODEL, tmp_path / place / "mine")
    (tmp_path / "a" / "notes").mkdir()
    (tmp_path / "a" / "notes" / "README.md").touch()
    shutil.copytree(TINY_MODEL, tmp_path / "a" / "models--org--hub" / "snapshots" / "c0ffee")
    for no_name in ("two words", *(() if sys.platform == "win32" else ("two\nlines",))):  # where a disk can have it
        shutil.copytree(TINY_MODEL, tmp_path / "a" / no_name)
    arguments = ["--models-dir", str(tmp_path / "a"), "--models-dir", str(tmp_path / "b")]
    here = listed(capsys, *arguments)["here"]
    assert set(here) - {"all-MiniLM-L6-v2"} == {"mine", "hub"}
    assert here["mine"]["folder"] == str(tmp_path / "a" / "mine")
    assert here["hub"]["folder"].endswith("c0ffee")


def test_a_variant_is_listed_by_the_name_of_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(FIXTURES / "qwen3-last", tmp_path / "qwen3-last")
    graphs = listed(capsys, "--models-dir", str(tmp_path))["here"]["qwen3-last"]["graphs"]
    assert {graph["variant"]: graph["weights"] for graph in graphs} == {
        None: "float32",
        "ext": "float32",
        "fp16": "float16",
    }
    by_variant = {graph["variant"]: graph["size"] for graph in graphs}
    data = next((tmp_path / "qwen3-last" / "onnx").glob("model_ext.onnx?*"))
    assert by_variant["ext"] > data.stat().st_size


@pytest.mark.parametrize(
    "control",
    [
        pytest.param(
            "\x1b[", marks=pytest.mark.skipif(sys.platform == "win32", reason="its names have no such characters")
        ),
        "\x9b",  # the same in one character, which names have everywhere
    ],
)
def test_nothing_that_a_folder_is_called_moves_a_terminals_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], control: str
) -> None:
    red = f"red{control}31m"
    shutil.copytree(TINY_MODEL, tmp_path / red / "mine")
    assert run_tool("models", ["--models-dir", str(tmp_path / red)]) == 0
    out = capsys.readouterr().out
    assert control[0] not in out
    assert ascii(red)[1:-1] in out


# Suggestions


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("all-minilm-l6-v2", "did you mean `all-MiniLM-L6-v2`?"),
        ("all-MinLM-L6-v2", "did you mean `all-MiniLM-L6-v2`?"),
        ("all-minilm", "did you mean `all-MiniLM-L6-v2`?"),
        ("all-minilm:latest", "did you mean `all-MiniLM-L6-v2`?"),
        ("sentence-transformers/all-minilm-l6-v2", "did you mean `all-MiniLM-L6-v2`?"),
        (
            "nomic-embed-text",
            "did you mean `nomic-embed-text-v1.5`? `embed-worker pull nomic-embed-text-v1.5` fetches it",
        ),
        (
            "mxbai-embed-large",
            "did you mean `mxbai-embed-large-v1`? `embed-worker pull mxbai-embed-large-v1` fetches it",
        ),
        ("bge-m3", "did you mean `BAAI/bge-m3`? `embed-worker pull BAAI/bge-m3` fetches it"),
        ("E5-Small-V2", ": fetch it with `embed-worker pull e5-small-v2`"),
        ("org/nothing-like-it", ": fetch it with `embed-worker pull org/nothing-like-it`"),
        ("nothing-like-it", ": `embed-worker models` lists those that there are"),
    ],
)
def test_a_name_that_is_nowhere_gets_one_suggestion(name: str, meant: str) -> None:
    for find in (find_by_name, find_model):
        if any((folder / name.rpartition("/")[2]).exists() for folder in models_folders([])):
            # Where the file system ignores case, another spelling is no other name.
            assert find(name, models_folders([])).name == "all-MiniLM-L6-v2"
            continue
        with pytest.raises(ModelNotFoundError) as refused:
            find(name, models_folders([]))
        assert str(refused.value).endswith(meant)


@pytest.mark.parametrize("tool", ["inspect", "check"])
def test_the_tools_that_read_a_model_suggest_one_too(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(tool, ["all-minilm"]) == 78
    err = capsys.readouterr().err
    assert (err.count("\n"), err.endswith("did you mean `all-MiniLM-L6-v2`?\n")) == (1, True)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("all-minilm", "; did you mean `all-MiniLM-L6-v2`?"),
        ("bge-m3", "; did you mean `BAAI/bge-m3`?"),
        ("e5-smal-v2", "; did you mean `e5-small-v2`?"),
        ("nothing-like-it", ", which `embed-worker models` lists; name any other as `org/name`"),
    ],
)
def test_pull_suggests_what_it_could_fetch(name: str, meant: str) -> None:
    with pytest.raises(PullError) as refused:
        pull(name)
    assert str(refused.value) == f"{name!r} is not a known model{meant}"


def test_what_other_programs_call_a_model_is_known_or_a_repository() -> None:
    names = {model.name for model in known_models()}
    assert all(meant in names or meant.count("/") == 1 for meant in names_elsewhere().values())
    assert all(name == name.casefold() for name in names_elsewhere())
