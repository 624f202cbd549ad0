"""Files that are not what they seem: pointers of Git LFS, web pages, halves. Each is told for what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embed_worker.config import ModelOptions, RuntimeOptions
from embed_worker.errors import ModelError
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.model_files.damage import damage_of, json_damage
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.layout import read_json
from embed_worker.model_files.safetensors import SafetensorsError, SafetensorsFile
from tests.worker.export_fixtures import run as export
from tests.worker.test_model_folder import MODELS
from tests.worker.test_safetensors import file_of_tensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 90405214\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>model.onnx</title></head></html>\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [(POINTER, "git lfs pull"), (PAGE, "web page"), (b"", "empty"), (b"\xef\xbb\xbf" + PAGE, "page")],
)
def test_an_impostor_is_known_by_its_first_bytes(tmp_path: Path, content: bytes, words: str) -> None:
    for name in ("model.onnx", "config.json", "model.safetensors", "model.onnx_data"):
        (tmp_path / name).write_bytes(content)
        assert words in (damage_of(tmp_path / name) or "")
    assert words in (json_damage(content) or "")


@pytest.mark.parametrize(
    "graph", sorted(MODELS.glob("*/onnx/*.onnx")), ids=lambda path: f"{path.parts[-3]}-{path.stem}"
)
def test_a_graph_is_whole_or_a_part_of_one(tmp_path: Path, graph: Path) -> None:
    content = graph.read_bytes()
    assert damage_of(graph) is None
    for size in (len(content) // 2, len(content) - 1, 100):
        (tmp_path / "half.onnx").write_bytes(content[:size])
        assert damage_of(tmp_path / "half.onnx") == f"cut off at {size} bytes: get it again"
    (tmp_path / "other.onnx").write_bytes(b"not a graph")
    assert damage_of(tmp_path / "other.onnx") is None


def test_json_that_ends_too_soon_is_told_apart_from_what_is_none(tmp_path: Path) -> None:
    whole = json.dumps({"a": [1, {"b": "größer 東京"}], "c": {"d": [True, 1.5]}}, ensure_ascii=False).encode()
    for size in range(1, len(whole)):
        assert json_damage(whole[:size]) == f"cut off at {size} bytes: get it again"
    assert json_damage(b"{'a': 1}") == json_damage(b"[1] x") == "not JSON"
    (tmp_path / "c.json").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"^a Git LFS pointer"):
        read_json(tmp_path / "c.json")


def test_the_graph_that_a_worker_cannot_open_is_told_for_what_it_is(tmp_path: Path) -> None:
    folder = shutil.copytree(MODELS / "bert-mean", tmp_path / "m")
    graph = folder / "onnx/model.onnx"
    half = graph.read_bytes()[: graph.stat().st_size // 2]
    for content, words in [(POINTER, "is a Git LFS pointer"), (PAGE, "is a web page"), (half, "is cut off at")]:
        graph.write_bytes(content)
        with pytest.raises(ModelError, match=f"'model.onnx' that {words}"):
            OnnxBackend.load(read_model_folder(folder, ModelOptions()), RuntimeOptions(), threads=1)


@pytest.mark.parametrize("path", ["tokenizer.json", "modules.json", "1_Pooling/config.json"])
def test_an_export_keeps_no_file_that_is_none(tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(MODELS / "bert-mean", tmp_path / "m"))
    content = (folder / path).read_bytes()
    for damaged, words in [(POINTER, "a Git LFS pointer"), (PAGE, "a web page"), (content[:-9], "cut off at")]:
        (folder / path).write_bytes(damaged)
        assert export(folder, "--output", tmp_path / "out") == 78
        assert f"{Path(path)} is {words}" in capsys.readouterr().err


def test_weights_and_data_beside_a_graph_are_told_too(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    half = file_of_tensors({"a": np.zeros((8, 8), np.float32)})[:200]
    for content, words in [(POINTER, "is a Git LFS pointer"), (PAGE, "is a web page"), (half, "get it again")]:
        weights.write_bytes(content)
        with pytest.raises(SafetensorsError, match=words):
            SafetensorsFile.open(weights)
    folder = shutil.copytree(MODELS / "qwen3-last", tmp_path / "q")
    plan = read_model_folder(folder, ModelOptions(onnx_file="onnx/model_ext.onnx"))
    (folder / "onnx/model_ext.onnx_data").write_bytes(POINTER)
    with pytest.raises(ModelError, match=r"'model_ext\.onnx_data' is a Git LFS pointer"):
        OnnxBackend.load(plan, RuntimeOptions(), threads=1)
