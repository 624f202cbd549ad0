"""Token ids, true counts and cuts, against sentence-transformers for every family of fixtures."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_worker.config import ModelOptions
from embed_worker.errors import ModelError
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.plan import ModelPlan
from embed_worker.protocol import ExitCode
from tests.worker.harness import WorkerProcess
from tests.worker.test_model_folder import EXPECTED, MODELS


def plan_for(name: str, **changes: Any) -> ModelPlan:
    """Read a folder's plan and change some of it."""
    plan = read_model_folder(MODELS / name, ModelOptions(name_or_path=name, pooling="mean"))
    of_tokenizer = {
        key: changes.pop(key) for key in ("file", "pad_token", "pad_left", "truncate_left") if key in changes
    }
    return dataclasses.replace(plan, tokenizer=dataclasses.replace(plan.tokenizer, **of_tokenizer), **changes)


def prompt_of(case: dict[str, Any], plan: ModelPlan) -> str:
    name = case["prompt_name"] or plan.default_prompt_name
    return plan.prompts[name] if name else ""


@pytest.mark.parametrize("name", EXPECTED)
def test_counts_and_cuts_are_those_of_sentence_transformers(name: str) -> None:
    plan = plan_for(name)
    tokenizer = TextTokenizer.load(plan)
    for case in EXPECTED[name]["cases"]:
        texts = tokenizer.encode(case["texts"], prompt_of(case, plan))
        assert [text.count for text in texts] == case["token_counts"], case["name"]
        truncated = [index for index, text in enumerate(texts) if text.is_truncated]
        told = case["truncated"]
        assert truncated == ([i for i, cut in enumerate(told) if cut] if told and told[0] in (True, False) else told)
        assert all(len(text.ids) == min(text.count, plan.max_tokens) for text in texts)
        assert all(text.ids.dtype == np.int64 for text in texts)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_padding_id_is_the_folders(name: str) -> None:
    assert TextTokenizer.load(plan_for(name)).pad_id == EXPECTED[name]["model"]["pad_token_id"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_cut_keeps_the_special_tokens_at_both_ends(name: str) -> None:
    tokenizer = TextTokenizer.load(plan_for(name))
    short, long = tokenizer.encode(["word", "word " * 500], "")
    assert long.is_truncated
    assert not short.is_truncated
    assert long.ids[-1] == short.ids[-1]
    if name != "qwen3-last":  # which begins with the text itself
        assert long.ids[0] == short.ids[0]


def test_a_cut_may_take_the_beginning() -> None:
    text = " ".join(["one"] * 200 + ["two"] * 200)
    right, left = (TextTokenizer.load(plan_for("bert-mean", truncate_left=side)) for side in (False, True))
    (kept_first,), (kept_last,) = right.encode([text], ""), left.encode([text], "")
    assert len(kept_first.ids) == len(kept_last.ids)
    assert not set(kept_first.ids[1:-1]) & set(kept_last.ids[1:-1])


def test_settings_that_the_published_file_carries_are_reset() -> None:
    # This folder's tokenizer.json truncates to 32 and pads to 32.
    texts = TextTokenizer.load(plan_for("bert-mean")).encode(["a", "a " * 50], "")
    assert [len(text.ids) for text in texts] == [3, 52]


def test_texts_are_not_stripped_and_prompts_are_put_before_them_verbatim() -> None:
    tokenizer = TextTokenizer.load(plan_for("qwen3-last"))
    plain, spaced = tokenizer.encode(["text", " text\n"], "")
    assert plain.count < spaced.count
    (prompted,), (literal,) = tokenizer.encode(["text"], "ask: "), tokenizer.encode(["ask: text"], "")
    np.testing.assert_array_equal(prompted.ids, literal.ids)
    assert tokenizer.encode([], "") == []


def test_a_prompt_that_pooling_leaves_out_is_counted_once_and_remembered() -> None:
    tokenizer = TextTokenizer.load(plan_for("extra-prompt-options"))
    prompt = "Text: "
    first, second = tokenizer.encode(["some words", ""], prompt)
    assert first.skipped == second.skipped > 1
    assert tokenizer.encode(["x"], prompt)[0].skipped == first.skipped
    assert tokenizer.encode(["x"], "")[0].skipped == 0
    # Literal prompts come from requests: what is remembered is bounded.
    for number in range(600):
        tokenizer.encode(["x"], f"prompt {number} ")
    assert tokenizer.encode(["x"], prompt)[0].skipped == first.skipped
    included = TextTokenizer.load(plan_for("extra-prompt-options", include_prompt=True))
    assert included.encode(["x"], prompt)[0].skipped == 0


def test_threads_that_cut_do_not_disturb_threads_that_count() -> None:
    tokenizer = TextTokenizer.load(plan_for("bert-mean"))
    texts = ["word " * length for length in (1, 10, 100, 300)]
    expected = [(text.count, text.ids.tolist()) for text in tokenizer.encode(texts, "")]
    wrong: list[object] = []

    def encode() -> None:
        for _ in range(50):
            found = [(text.count, text.ids.tolist()) for text in tokenizer.encode(texts, "")]
            if found != expected:
                wrong.append(found)

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


@pytest.mark.parametrize("pad_token", [None, "no such token"])
def test_any_id_pads_where_the_folder_names_none(pad_token: str | None) -> None:
    assert TextTokenizer.load(plan_for("xlmr-unigram", pad_token=pad_token)).pad_id == 0


def test_a_limit_that_leaves_no_room_for_a_text_is_refused() -> None:
    with pytest.raises(ModelError, match="leave no room for a text"):
        TextTokenizer.load(plan_for("bert-mean", max_tokens=2))
    assert len(TextTokenizer.load(plan_for("bert-mean", max_tokens=3)).encode(["a b c"], "")[0].ids) == 3


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"model": {"type": "Mystery"}}'])
def test_a_damaged_tokenizer_is_refused_with_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"has a tokenizer\.json that cannot be"):
        TextTokenizer.load(plan_for("bert-mean", file=tmp_path / "tokenizer.json"))


def test_texts_are_lower_cased_first_where_the_folder_says_so() -> None:
    cased = TextTokenizer.load(plan_for("qwen3-last"))
    lowered = TextTokenizer.load(plan_for("qwen3-last", lowercase=True))
    for text in ("A Text", "ÄÖ"):
        (of_lower,) = cased.encode([text.lower()], "")
        (found,) = lowered.encode([text], "")
        assert found.ids.tolist() == of_lower.ids.tolist() != cased.encode([text], "")[0].ids.tolist()
    uncased = TextTokenizer.load(plan_for("bert-mean", lowercase=True))
    assert uncased.encode(["A Text"], "")[0].ids.tolist() == uncased.encode(["a text"], "")[0].ids.tolist()


def test_a_tokenizer_that_panics_at_its_first_text_ends_the_worker_with_78(tmp_path: Path) -> None:
    folder = tmp_path / "panics"
    shutil.copytree(MODELS / "bert-mean", folder)
    for name, changes in {
        "tokenizer.json": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    }.items():
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")
    with WorkerProcess(model=folder) as worker:
        worker.send({"id": 1, "inputs": "a"})
        assert worker.receive()["code"] == "model_load_failed"
        worker.close_input()
        assert worker.wait() == ExitCode.UNUSABLE_MODEL


_TOKENISE_MANY = """
import sys
from pathlib import Path
from embed_worker.config import ModelOptions
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.folder import read_model_folder
folder = Path(sys.argv[1])
tokenizer = TextTokenizer.load(read_model_folder(folder, ModelOptions(name_or_path=folder.name)))
before = len(list(Path("/proc/self/task").iterdir()))
tokenizer.encode(["some words of a text"] * 1000, "")
print(len(list(Path("/proc/self/task").iterdir())) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.parametrize(("stated", "is_none"), [(None, True), ("true", False)])
def test_tokenising_starts_no_threads_of_its_own_unless_the_host_wants_them(stated: str | None, is_none: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    if stated is not None:
        environment["TOKENIZERS_PARALLELISM"] = stated
    command = [sys.executable, "-c", _TOKENISE_MANY, str(MODELS / "bert-mean")]
    started = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60, text=True)
    assert (int(started.stdout) == 0) is is_none
