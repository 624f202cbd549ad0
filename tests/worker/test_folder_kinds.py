"""What requests see of unusual folders: texts without a token, options that stay, files that no manifest lists."""

from __future__ import annotations

import json
import os
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_worker.config import ModelOptions, RuntimeOptions, Verify
from embed_worker.errors import InvalidInput, ModelError, NothingLeft
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.loading import load_model
from embed_worker.model_files.manifest import Manifest
from tests.worker.harness import ROOT, WorkerProcess, matrix_of
from tests.worker.test_cases import CASES
from tests.worker.test_model_folder import MODELS
from tests.worker.test_tokenizer import plan_for

LAYOUTS = ROOT / "tests" / "layouts"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that are made of others."""
    folder = tmp_path_factory.mktemp("models")
    general = folder / "no-unknown-token"
    shutil.copytree(CASES / "25-unigram-no-unk/model", general)
    config = json.loads((general / "tokenizer_config.json").read_bytes())
    (general / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    sparse = folder / "no-token-for-much"
    shutil.copytree(LAYOUTS / "potion-base-8M/model", sparse)
    document = json.loads((sparse / "tokenizer.json").read_bytes())
    pieces = [[character, -1.0] for character in string.printable]
    document["model"] = {"type": "Unigram", "unk_id": None, "vocab": pieces, "byte_fallback": True}
    document |= {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": []}
    (sparse / "tokenizer.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def worker(models: Path) -> Iterator[WorkerProcess]:
    arguments = ["--model", str(MODELS / "bert-mean"), "--pooling", "cls", "--ignore-config", "max_seq_length"]
    with WorkerProcess(*arguments, "--models-dir", str(models), model=None) as process:
        yield process
        process.close_input()
        assert process.wait() == 0


def test_a_text_that_cannot_be_encoded_is_the_callers_error_and_the_others_are_none(worker: WorkerProcess) -> None:
    name = "no-unknown-token"
    assert worker.ask({"method": "load_model", "model": name})["status"] == "ok"
    answer = worker.ask({"model": name, "inputs": ["hello world", "a", "今天天气很好 😀", "a"]})
    assert (answer["code"], answer["retryable"], answer["index"]) == ("invalid_request", False, 2)
    assert "cannot be encoded" in answer["message"]
    assert worker.ask({"model": name, "inputs": ["hello world", "a"]})["status"] == "ok"


def test_a_text_without_a_known_token_has_no_vector_and_says_so_with_its_index(worker: WorkerProcess) -> None:
    name = "no-token-for-much"
    assert worker.ask({"method": "load_model", "model": name})["status"] == "ok", worker.stderr
    answer = worker.ask({"model": name, "inputs": ["hello", " "]})
    assert (answer["code"], answer["index"]) == ("non_finite_embedding", 1)
    assert worker.ask({"model": name, "inputs": ["hello"]})["status"] == "ok"


@pytest.mark.parametrize("name", ["layouts/potion-base-8M/model", "models/bert-mean"])
def test_a_tokenizer_of_another_model_is_told_for_what_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(ROOT / "tests" / name, folder)
    document = json.loads((folder / "tokenizer.json").read_bytes())
    words = document["model"]["vocab"]
    document["model"]["vocab"] = words | {"fox": len(words) + 9_000}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="fewer rows than its tokenizer has tokens: they are not of one model"):
        load_model(folder, ModelOptions(), RuntimeOptions(verify=Verify.NEVER), 1)


def test_a_model_that_is_loaded_again_keeps_what_the_command_line_said(worker: WorkerProcess) -> None:
    before = worker.ask({"method": "info"})
    assert (before["pooling"], before["max_tokens"]) == (["cls"], 128)
    assert worker.ask({"method": "unload_model", "model": "bert-mean"})["status"] == "ok"
    assert worker.ask({"method": "load_model", "model": "bert-mean"})["status"] == "ok"
    after = worker.ask({"method": "info", "model": "bert-mean"})
    assert (after["pooling"], after["max_tokens"]) == (["cls"], 128)
    assert after["fingerprint"] == before["fingerprint"]


def test_a_name_that_is_not_found_is_told_with_the_whole_name_and_no_advice_that_a_request_cannot_follow(
    worker: WorkerProcess,
) -> None:
    message = worker.ask({"method": "load_model", "model": "org/nowhere"})["message"]
    assert "embed-worker pull org/nowhere" in message
    assert "folder: fetch" in message
    assert "name its folder" not in message


def test_a_prompt_that_leaves_nothing_of_a_text_says_so() -> None:
    tokenizer = TextTokenizer.load(plan_for("bert-mean", include_prompt=False, max_tokens=8))
    assert tokenizer.encode(["a"], "b c ")[0].skipped == 3
    with pytest.raises(NothingLeft, match=r"the prompt has 12 tokens, .* its limit is 8: nothing of a text is left"):
        tokenizer.encode(["a"], "b " * 10)


def test_a_file_that_no_manifest_lists_is_told_and_refused_where_everything_is_verified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bert-mean"
    shutil.copytree(MODELS / "bert-mean", folder)
    manifest = Manifest.of_folder(folder, name="bert-mean", source="here", license="none")
    files = {path: record for path, record in manifest.files.items() if path != "onnx/model.onnx"}
    Manifest(name="bert-mean", source="here", license="none", files=files).write(folder)
    load_model(folder, ModelOptions(), RuntimeOptions(), 1)
    assert "onnx/model.onnx is not in manifest.json" in caplog.text
    with pytest.raises(ModelError, match=r"cannot be verified: onnx/model.onnx is not in manifest.json"):
        load_model(folder, ModelOptions(), RuntimeOptions(verify=Verify.ALWAYS), 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among the files here")
def test_a_pipe_among_the_files_of_a_folder_ends_in_a_sentence(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "modules.json"):
        folder = tmp_path / name
        shutil.copytree(MODELS / "bert-mean", folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ModelError, match=rf"has a {name} that is not a regular file"):
            load_model(folder, ModelOptions(), RuntimeOptions(), 1)


def test_a_chat_template_is_refused_without_jinja_and_with_a_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(LAYOUTS / "chat-structured/model", folder)
    with monkeypatch.context() as patched:
        patched.setitem(__import__("sys").modules, "jinja2", None)
        with pytest.raises(ModelError, match=r"the extra `chat`: pip install 'embed-bridge\[chat\]'"):
            load_model(folder, ModelOptions(), RuntimeOptions(), 1)
    pytest.importorskip("jinja2")
    for template, words in (("{{ strftime_now('%d') }}", "today's date"), ("{% for %}", "cannot be used")):
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(ModelError, match=words):
            load_model(folder, ModelOptions(), RuntimeOptions(), 1)


@pytest.mark.parametrize(
    ("template", "limit", "text", "ids"),  # of sentence-transformers 6.2
    [
        ("{{ messages[0].content }}e", 4, "a b th", [70, 226, 71, 74]),  # fits, its last token is "the"
        ("{{ messages[0].content }}e", 5, "a b th", [70, 226, 71, 264]),
        (
            "{% generation %}{% set x = messages[0].content %}[{{ x }}]{% endgeneration %}{{ x }}!",
            12,
            "a",
            [64, 70, 66, 6],
        ),
    ],
)
def test_a_text_is_put_into_its_chat_template_as_transformers_does(
    tmp_path: Path, template: str, limit: int, text: str, ids: list[int]
) -> None:
    pytest.importorskip("jinja2")
    folder = tmp_path / "chat"
    shutil.copytree(LAYOUTS / "chat-flat/model", folder)
    config = json.loads((folder / "sentence_bert_config.json").read_bytes())
    config |= {"max_seq_length": limit, "processing_kwargs": {}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    model = load_model(folder, ModelOptions(), RuntimeOptions(), 1)
    (encoded,) = model.engine.tokenizer.encode([text], "")
    assert encoded.ids.tolist() == ids


def test_normalize_false_gives_what_truncate_dim_leaves_and_true_its_direction(tmp_path: Path) -> None:
    with WorkerProcess("--model", str(CASES / "02-truncate-dim/model"), model=None) as process:
        info = process.ask({"method": "info"})
        assert (info["dimension"], info["max_dimension"], info["normalize"]) == (16, 32, False)
        usual, scaled, whole = (
            matrix_of(process.ask({"inputs": ["hello"], **more}))
            for more in ({}, {"normalize": True}, {"dimensions": 32})
        )
        assert process.ask({"inputs": ["hello"], "dimensions": 33})["code"] == "invalid_request"
    assert (usual.shape, whole.shape) == ((1, 16), (1, 32))
    assert np.linalg.norm(usual) < 0.99
    assert np.linalg.norm(whole) == pytest.approx(1, abs=1e-5)
    assert np.allclose(scaled, usual / np.linalg.norm(usual), atol=1e-6)
    assert np.allclose(whole[:, :16], usual, atol=1e-6)


def test_a_folder_is_named_as_before_unless_its_vectors_are_others(tmp_path: Path) -> None:
    def fingerprint_of(folder: Path, **options: Any) -> str:
        return load_model(folder, ModelOptions(**options), RuntimeOptions(), 1).fingerprint

    folder = tmp_path / "bert-mean"
    shutil.copytree(MODELS / "bert-mean", folder)
    before = fingerprint_of(folder)
    assert before == fingerprint_of(MODELS / "bert-mean")
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    changed = fingerprint_of(folder)
    assert changed != before
    assert fingerprint_of(folder, ignore_config=("do_lower_case",)) == before
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"clean_up_tokenization_spaces": True}))
    assert fingerprint_of(folder) == before


def test_a_chat_template_that_refuses_a_text_is_told_with_its_index_and_without_the_text(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    folder = tmp_path / "chat"
    shutil.copytree(LAYOUTS / "chat-structured/model", folder)
    template = "{% if 'secret' in messages[0].content[0].text %}{{ raise_exception(messages[0].content) }}{% endif %}a"
    (folder / "chat_template.jinja").write_text(template)
    model = load_model(folder, ModelOptions(), RuntimeOptions(), 1)
    with pytest.raises(InvalidInput, match="chat template: TemplateError") as refused:
        model.engine.tokenizer.encode(["a", "a secret"], "")
    assert refused.value.index == 1
    assert "secret" not in str(refused.value)
