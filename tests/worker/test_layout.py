"""The files of a model folder: which they are, which paths stay inside, and how they are read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from embed_worker.errors import ModelError
from embed_worker.model_files.layout import (
    TRANSFORMER_CONFIGS,
    OutsideError,
    check_link,
    files_of_a_model,
    inner_path,
    read_file,
    read_json,
)

MODULES = [
    {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "deeper/2_Dense", "type": "sentence_transformers.models.Dense"},
]


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "..", "./", "../x", "a/../b", "a/../../b", "/etc/passwd", "//host/share/x"),
        *("C:/x", "C:x", "a:b", "a\\b", "..\\x", "\\\\host\\share\\x", "a\0b", "a\nb", "a\x7fb", "a\ud800b"),
    ],
)
def test_a_path_that_could_leave_the_folder_on_any_platform_is_refused(path: str) -> None:
    with pytest.raises(OutsideError, match="not a path inside the folder"):
        inner_path(path)


@pytest.mark.parametrize(
    ("path", "plain"), [("a", "a"), ("a/b.c", "a/b.c"), ("./a", "a"), ("a//b/", "a/b"), ("a/..b", "a/..b"), ("é", "é")]
)
def test_a_path_inside_has_one_plain_form(path: str, plain: str) -> None:
    assert inner_path(path) == plain


def test_the_files_of_a_model_are_its_configurations_its_modules_and_its_terms() -> None:
    kept = [
        *("config.json", "tokenizer.json", "modules.json", "config_sentence_transformers.json", *TRANSFORMER_CONFIGS),
        *("1_Pooling/config.json", "deeper/2_Dense/config.json", "deeper/2_Dense/model.safetensors"),
        *(
            "0_Transformer/config.json",
            "0_Transformer/vocab.txt",
            "README.md",
            "LICENSE.txt",
            "chat_template.jinja",
        ),
    ]
    left = [
        "model.safetensors",
        "onnx/model.onnx",
        "training_args.bin",
        "3_Dense/config.json",
        "a/LICENSE",
        "a/README.md",
    ]
    assert files_of_a_model([*left, *kept], MODULES) == sorted(kept)
    at_the_root = [name for name in kept if "/" not in name]
    assert files_of_a_model([*left, *kept], None) == sorted(at_the_root)
    several = ["additional_chat_templates/rag.jinja", "chat_template.jinja"]
    assert files_of_a_model([*left, *several], None) == several
    static = [{"path": "0_StaticEmbedding", "type": "sentence_transformers.models.StaticEmbedding"}]
    both = ["0_StaticEmbedding/model.safetensors", "0_StaticEmbedding/tokenizer.json"]
    assert files_of_a_model([*left, *both], static) == both


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among the files here")
def test_a_pipe_or_a_device_is_no_file_of_a_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_file(Path("/dev/zero"))


def test_a_file_is_read_up_to_a_limit_and_a_folder_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="larger than"):
        read_file(tmp_path / "file", 4)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{}}", "not JSON"), (b"\xff", "not JSON"), (b"[" * 100_000, "not JSON"), (b'["\\ud800"]', "half")],
)
def test_what_is_not_json_or_not_text_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_json(tmp_path / "x.json")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_link_leads_nowhere_but_into_the_hubs_store(tmp_path: Path) -> None:
    store = tmp_path / "hub/models--org--name"
    folder = store / "snapshots/c0ffee"
    for made in (folder / "onnx", store / "blobs", tmp_path / "elsewhere"):
        made.mkdir(parents=True)
    (store / "blobs/1234").write_text("{}")
    (tmp_path / "elsewhere/1234").write_text("{}")
    (folder / "onnx/model.onnx").symlink_to("../../../blobs/1234")
    (folder / "own.json").symlink_to("onnx/model.onnx")
    (folder / "wire.json").symlink_to("/proc/self/fd/0")
    (folder / "other.json").symlink_to(tmp_path / "elsewhere/1234")
    check_link(folder / "onnx/model.onnx", folder)
    check_link(folder / "own.json", folder)
    for name in ("wire.json", "other.json"):
        with pytest.raises(ModelError, match=r"link out of the folder: --allow-links"):
            check_link(folder / name, folder)
    (tmp_path / "chosen").symlink_to(folder)
    check_link(tmp_path / "chosen" / "own.json", tmp_path / "chosen")
    assert json.loads(read_file(folder / "own.json")) == {}
