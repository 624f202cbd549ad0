"""Folders damaged in every file: a clear error, or exactly what the folder still says; never a crash or a hang.

Each damaged folder is loaded by a real worker, where a crash of a library would be seen.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from embed_worker.model_files.manifest import Manifest
from tests.worker.harness import WorkerProcess, matrix_of, place
from tests.worker.test_model_folder import EXPECTED, MODELS

# What the worker reads of a folder's JSON files: each is tried with a value of another type.
READ = {
    "activation_function", "default_prompt_name", "do_lower_case", "embedding_dimension", "include_prompt",
    "max_position_embeddings", "max_seq_length", "model_max_length", "model_type", "module_input_name", "padding_side",
    "path", "pooling_mode", "pooling_mode_cls_token", "pooling_mode_mean_tokens", "prompts", "transformer_task", "type",
    "use_residual", "word_embedding_dimension",
}  # fmt: skip
# What a worker does not read: weights for other runtimes, and what tokenizer.json says again.
UNREAD = {"merges.txt", "model.safetensors", "vocab.json", "vocab.txt"}
# A tokenizer without a part is another tokenizer, and this is what its folder says. A manifest would tell.
OTHER_TOKENIZER = re.compile(r"no (normalizer|pre_tokenizer|post_processor|added_tokens|model)")


def damages(path: str, content: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Yield what may have happened to a file, and its content then; None for a file that is gone."""
    yield "deleted", None
    yield "emptied", b""
    yield "truncated", content[: len(content) // 2]
    if path.endswith(".json"):
        yield from json_damages(json.loads(content))
    else:
        yield "zeros", bytes(len(content))
    if path.endswith(".onnx"):
        yield from onnx_damages(content)


def json_damages(document: Any) -> Iterator[tuple[str, bytes]]:
    others: dict[str, Any] = {"list": [], "number": 7, "null": None}
    members = document if isinstance(document, dict) else document[-1] if isinstance(document, list) else {}
    for key in READ & members.keys():
        value: Any = [] if isinstance(members[key], str | int | float) else 7
        changed = members | {key: value}
        others[f"{key} of another type"] = changed if isinstance(document, dict) else [*document[:-1], changed]
    if isinstance(document, dict) and "model" in document:  # tokenizer.json
        others |= {f"no {key}": {k: v for k, v in document.items() if k != key} for key in document}
    for what, value in others.items():
        yield what, json.dumps(value).encode()


def onnx_damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield graphs whose largest matrix is not a number, or has another shape or type."""
    for what in ("NaN", "another shape", "another type"):
        model = onnx.load_from_string(content)
        matrices = [t for t in model.graph.initializer if t.raw_data and len(t.dims) == 2 and t.data_type in (1, 10)]
        if not matrices:  # they lie in another file, which is damaged on its own
            return
        tensor = max(matrices, key=lambda tensor: len(tensor.raw_data))
        values = numpy_helper.to_array(tensor)
        if what == "NaN":
            values = np.full_like(values, np.nan)
        elif what == "another shape":
            values = np.ascontiguousarray(values[:, :-1])
        else:
            values = values.astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        yield what, model.SerializeToString()


def damaged_copy(folder: Path, target: Path, path: str, content: bytes | None) -> None:
    """Copy a folder with one of its files replaced, or left out; the others are the originals."""
    for file in (file for file in folder.rglob("*") if file.is_file()):
        here = target / file.relative_to(folder)
        is_damaged = file.relative_to(folder).as_posix() == path
        if is_damaged and content is None:
            continue
        here.parent.mkdir(parents=True, exist_ok=True)
        if is_damaged and content is not None:
            here.write_bytes(content)
        else:
            place(file, here)


def files_of(name: str) -> list[str]:
    """The files of a family; of its graphs only the one that is served by itself."""
    files = sorted(file.relative_to(MODELS / name).as_posix() for file in (MODELS / name).rglob("*") if file.is_file())
    return [file for file in files if ".onnx" not in file or file == "onnx/model.onnx"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_damaged_folder_is_an_error_or_what_it_still_says(name: str, tmp_path: Path) -> None:
    case = next(case for case in EXPECTED[name]["cases"] if case["name"] == "short")
    whole = [index for index, cut in enumerate(case["truncated"]) if not cut]  # limits may be other ones
    texts, vectors = [case["texts"][index] for index in whole], np.array(case["embeddings"])[whole]
    told = EXPECTED[name]["model"]
    prompt = told["prompts"][told["default_prompt_name"]] if told["default_prompt_name"] else ""
    refused = served = 0
    with WorkerProcess("--models-dir", str(tmp_path), "--threads", "1", "--allow-links") as worker:
        for path in files_of(name):
            for what, content in damages(path, (MODELS / name / path).read_bytes()):
                damaged_copy(MODELS / name, tmp_path / "damaged", path, content)
                answer = worker.ask({"id": 1, "method": "load_model", "model": "damaged"})
                if answer["status"] == "error":
                    refused += 1
                    assert path not in UNREAD or what in ("emptied", "truncated"), (path, what, answer)
                    assert answer["code"] == "model_load_failed", (path, what, answer)
                    assert re.fullmatch(r"[^\n]{20,450}", answer["message"]), (path, what, answer)
                    assert str(tmp_path) not in answer["message"], (path, what, answer)
                else:
                    served += 1
                    ask = {"id": 2, "model": "damaged", "inputs": texts, "prompt": prompt}
                    found = matrix_of(worker.ask(ask))
                    # Without modules.json a folder says less, which is told: that vectors are normalised, for one.
                    if (path, what) != ("modules.json", "deleted"):
                        is_same = np.abs(found - vectors).max() < EXPECTED[name]["tolerance"]
                        assert is_same or (path == "tokenizer.json" and OTHER_TOKENIZER.match(what)), (path, what)
                    worker.ask({"id": 3, "method": "unload_model", "model": "damaged"})
                shutil.rmtree(tmp_path / "damaged")
        assert refused > 20 if (MODELS / name / "modules.json").exists() else served == 0
        assert worker.ask({"inputs": "a"})["status"] == "ok"
        worker.close_input()
        assert worker.wait() == 0
        assert "Traceback" not in worker.stderr


@pytest.mark.parametrize("name", ["bert-mean", "dense-module", "qwen3-last"])
def test_a_bit_flipped_in_any_file_is_found_by_the_manifest(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "flipped"
    shutil.copytree(MODELS / name, folder)
    Manifest.of_folder(folder, name=name, source="the tests", license="none").write(folder)
    with WorkerProcess("--models-dir", str(tmp_path), env={"XDG_CACHE_HOME": str(tmp_path / "cache")}) as worker:
        ask = {"method": "load_model", "model": "flipped"}
        assert worker.ask(ask)["status"] == "ok"
        worker.ask({"method": "unload_model", "model": "flipped"})
        for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json"):
            content = file.read_bytes()
            middle = len(content) // 2
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
            answer = worker.ask(ask)
            assert answer["code"] == "model_load_failed", file.name
            assert file.name in answer["message"]
            file.write_bytes(content)
        assert worker.ask(ask)["status"] == "ok"
