"""Graphs whose weights lie in other files: beside the graph, behind the links of a hub's cache, or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from embed_worker.config import ModelOptions, RuntimeOptions
from embed_worker.errors import ModelError
from embed_worker.inference.engine import LoadedModel
from embed_worker.loading import load_model
from embed_worker.model_files.external_data import external_files, map_linked
from embed_worker.model_files.onnx_outline import ExternalTensor, read_outline
from tests.worker.test_model_folder import MODELS

SOURCE = MODELS / "qwen3-last"
GRAPH = "onnx/model_ext.onnx"
DATA = "onnx/model_ext.onnx_data"

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


def load(folder: Path, *, allow_links: bool = False) -> LoadedModel:
    options = ModelOptions(name_or_path=str(folder), onnx_file=GRAPH, allow_links=allow_links)
    return load_model(folder, options, RuntimeOptions(), 2)


def vector_of(model: LoadedModel) -> list[float]:
    row = model.engine.tokenizer.encode(["a text"], "")
    vectors: list[float] = model.engine.embed(row, exclusive=True)[0].tolist()
    return vectors


def linked(target: Path, *, keep_graph: bool) -> Path:
    """Make the folder that the hub's cache makes: links to blobs, whose names say nothing; perhaps the graph itself."""
    repository = target / "models--org--q"
    folder = repository / "snapshots" / "abc"
    for number, file in enumerate(sorted(path for path in SOURCE.rglob("*") if path.is_file())):
        here = folder / file.relative_to(SOURCE)
        blob = repository / "blobs" / f"{number:x}"
        here.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        if keep_graph and file.suffix == ".onnx":
            shutil.copyfile(file, here)
        else:
            here.symlink_to(os.path.relpath(blob, here.parent))
    return folder


@needs_links
@pytest.mark.parametrize("keep_graph", [True, False])
def test_data_behind_links_are_read_wherever_they_lie(tmp_path: Path, keep_graph: bool) -> None:
    plain, through_links = load(SOURCE), load(linked(tmp_path, keep_graph=keep_graph))
    through_links.use_all_cores()
    assert vector_of(through_links) == vector_of(plain)
    assert through_links.fingerprint == plain.fingerprint


@needs_links
@pytest.mark.parametrize("name", [DATA, GRAPH, "config.json", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_followed_where_that_is_allowed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "q"
    shutil.copytree(SOURCE, folder)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="a link out of the folder: --allow-links"):
        load(folder)
    assert load(folder, allow_links=True).fingerprint == load(SOURCE).fingerprint


@needs_links
def test_what_cannot_be_mapped_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "data").write_bytes(b"12345678")
    (tmp_path / "data").symlink_to("far/data")
    graph = tmp_path / "model.onnx"
    packed = ExternalTensor("packed", (4,), onnx.TensorProto.INT4, "data", 0, 2)
    with pytest.raises(ModelError, match="cp -RL"):
        map_linked(graph, [packed])
    other_length = ExternalTensor("short", (4,), onnx.TensorProto.FLOAT, "data", 0, 2)
    with pytest.raises(ModelError, match="2 bytes, and its shape takes 16"):
        map_linked(graph, [other_length])
    beyond_the_end = ExternalTensor("long", (4,), onnx.TensorProto.FLOAT, "data", 0, None)
    with pytest.raises(ModelError, match="cannot be mapped"):
        map_linked(graph, [beyond_the_end])


@needs_links
def test_tensors_may_be_empty_or_lie_at_any_byte(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "data").write_bytes(b"12345678")
    (tmp_path / "data").symlink_to("far/data")
    empty = ExternalTensor("empty", (0, 4), onnx.TensorProto.FLOAT, "data", 0, 0)
    unaligned = ExternalTensor("unaligned", (1,), onnx.TensorProto.FLOAT, "data", 1, 4)
    found = map_linked(tmp_path / "model.onnx", [empty, unaligned])
    assert [tensor.values.shape for tensor in found] == [(0, 4), (1,)]
    assert found[1].values.tobytes() == b"2345"
    assert found[1].values.flags.aligned


@pytest.mark.parametrize(
    "location",
    ["../outside", "/etc/passwd", "a/../../b", "", "C:\\data", "\\\\host\\share", "..\\outside", "da\0ta", "\ud800"],
)
def test_data_outside_the_folder_by_name_are_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(ModelError, match="not a path inside the folder"):
        external_files(tmp_path / "model.onnx", [ExternalTensor("t", (1,), 1, location, 0, 4)])


@pytest.mark.parametrize(("size", "words"), [(None, "needs the file"), (100, "is truncated: 100 bytes")])
def test_data_that_are_missing_or_short_are_named(tmp_path: Path, size: int | None, words: str) -> None:
    folder = tmp_path / "q"
    shutil.copytree(SOURCE, folder)
    if size is None:
        (folder / DATA).unlink()
    else:
        os.truncate(folder / DATA, size)
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_the_fingerprint_covers_the_data_whatever_their_file_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "q"
    shutil.copytree(SOURCE, folder)
    model = onnx.load(folder / GRAPH)
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=1024)
    (folder / DATA).unlink()
    onnx.save(model, folder / GRAPH)
    assert {tensor.location for tensor in read_outline(folder / GRAPH).external} == {"weights.bin"}
    before = load(folder)
    assert np.allclose(vector_of(before), vector_of(load(SOURCE)), atol=1e-6)
    with (folder / "onnx/weights.bin").open("r+b") as file:
        file.seek(4096)
        bits = file.read(1)
        file.seek(4096)
        file.write(bytes([bits[0] ^ 1]))
    assert load(folder).fingerprint != before.fingerprint
