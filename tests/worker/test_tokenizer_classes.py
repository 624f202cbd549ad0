"""Tokenizers of every class and setting against the ids of transformers, which tests/reference/tokenizers.py made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from embed_worker.config import ModelOptions
from embed_worker.errors import InvalidInput, ModelError
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.plan import ModelPlan
from embed_worker.model_files.tokenizer_builds import BUILDS
from embed_worker.model_files.tokenizer_classes import FROM_THE_JSON, IN_PYTHON, builder_of
from embed_worker.model_files.tokenizer_sections import lacks_its_prefix
from tests.reference.tokenizer_variants import TEXTS, VARIANTS, files_of
from tests.worker.harness import ROOT

RIGHT = json.loads((ROOT / "tests/reference/tokenizers.json").read_bytes())
LIMIT = RIGHT["limit"]


def name_of(variant: dict[str, Any]) -> str:
    changed = [
        f"{key}={value}"
        for key, value in variant.items()
        if key in ("config", "json", "model", "map", "added", "vocab")
    ]
    return f"{variant['tokenizer_class']} {variant['model_type']} {' '.join(changed)}"[:90]


def plan_of(folder: Path, variant: dict[str, Any], **options: Any) -> ModelPlan:
    for name, content in files_of(RIGHT["bases"][variant["base"]], variant).items():
        (folder / name).write_text(content, "utf-8")
    (folder / "model.onnx").touch()
    return read_model_folder(folder, ModelOptions(pooling="mean", **options))


def encode(tokenizer: TextTokenizer, text: str) -> list[int] | None:
    try:
        return [int(index) for index in tokenizer.encode([text], "")[0].ids]
    except InvalidInput:
        return None


def test_the_variants_are_those_that_were_compared() -> None:
    assert [
        {**variant, "right": found["right"]} for variant, found in zip(VARIANTS, RIGHT["variants"], strict=True)
    ] == (RIGHT["variants"])
    assert {found["right"]["class"] for found in RIGHT["variants"] if found["right"]} >= set(BUILDS) - {
        "DistilBertTokenizer"
    }


@pytest.mark.parametrize("variant", RIGHT["variants"], ids=name_of)
def test_ids_are_those_of_transformers(tmp_path: Path, variant: dict[str, Any]) -> None:
    right = variant["right"]
    if right is None:
        with pytest.raises(ModelError):
            TextTokenizer.load(plan_of(tmp_path, variant))
        return
    whole, cut = (TextTokenizer.load(plan_of(tmp_path, variant, max_tokens=limit)) for limit in (62, LIMIT))
    for text, ids, short in zip(TEXTS, right["ids"], right["cut"], strict=True):
        assert encode(whole, text) == ids, text
        assert encode(cut, text) == short, text


@pytest.mark.parametrize(
    ("model_type", "declared", "builder"),
    [
        ("bert", "BertJapaneseTokenizer", IN_PYTHON),
        ("bert", "PreTrainedTokenizerFast", FROM_THE_JSON),
        ("bert", "PreTrainedTokenizer", FROM_THE_JSON),
        ("modernbert", "BertTokenizer", FROM_THE_JSON),
        ("mistral", "LlamaTokenizer", FROM_THE_JSON),
        ("qwen2", "GPT2Tokenizer", "Qwen2Tokenizer"),
        ("roberta", "GPT2Tokenizer", "GPT2Tokenizer"),
        ("nobody's", None, FROM_THE_JSON),
        (None, "BertTokenizerFast", "BertTokenizer"),
    ],
)
def test_the_class_is_the_declared_one_unless_the_architecture_knows_better(
    model_type: str | None, declared: str | None, builder: str
) -> None:
    assert builder_of(model_type, declared, is_byte_level=False) == builder


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("BertJapaneseTokenizer", "is a program"),
        ("FunnelTokenizer", "--ignore-config tokenizer_class"),
        ("T5Tokenizer", "which is Unigram"),
    ],
)
def test_a_class_that_is_not_followed_is_refused_by_name(tmp_path: Path, declared: str, words: str) -> None:
    variant = {"base": "bert", "model_type": "bert", "tokenizer_class": declared}
    with pytest.raises(ModelError, match=words):
        plan_of(tmp_path, variant)
    ignored = plan_of(tmp_path, variant | {"model_type": "nobody's"}, ignore_config=("tokenizer_class",))
    assert encode(TextTokenizer.load(ignored), "hello") is not None


def test_a_folder_whose_files_agree_is_read_as_it_lies_there_and_one_whose_files_differ_is_told(tmp_path: Path) -> None:
    agreeing = {"base": "bert", "model_type": "bert", "tokenizer_class": "BertTokenizer"}
    plan = plan_of(tmp_path, agreeing)
    assert (plan.tokenizer.shape, plan.warnings) == ({}, ())
    plan = plan_of(tmp_path, agreeing | {"config": {"do_lower_case": False}})
    assert list(plan.tokenizer.shape) == ["normalizer"]
    assert "what transformers 5 builds for BertTokenizer differ in normalizer" in plan.warnings[0]
    eos = {
        "base": "llama",
        "model_type": "mistral",
        "tokenizer_class": "LlamaTokenizer",
        "config": {"add_eos_token": True},
    }
    assert any("add_eos_token" in warning for warning in plan_of(tmp_path, eos).warnings)


def test_token_types_that_are_not_fed_are_refused_where_the_graph_takes_them(tmp_path: Path) -> None:
    pieces = [{"SpecialToken": {"id": "[CLS]", "type_id": 2}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
    template = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}
    variant = {"base": "bert", "model_type": "bert", "json": {"post_processor": template}}
    general = variant | {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert plan_of(tmp_path, general).tokenizer.sets_types
    shutil.copyfile(ROOT / "tests/models/bert-mean/onnx/model.onnx", tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="token types other than 0"):
        read_model_folder(tmp_path, ModelOptions(pooling="mean"))
    without = general | {"config": {"model_input_names": ["input_ids", "attention_mask"]}}
    assert not plan_of(tmp_path, without).tokenizer.sets_types
    assert not plan_of(tmp_path, variant | {"tokenizer_class": "BertTokenizer"}).tokenizer.sets_types


def test_what_a_general_tokenizer_would_do_at_random_is_not_done_and_told(tmp_path: Path) -> None:
    variant = {"base": "roberta", "model_type": "roberta", "tokenizer_class": "PreTrainedTokenizerFast"}
    plan = plan_of(tmp_path, variant | {"model": {"dropout": 0.9}})
    assert plan.warnings == (
        "tokenizer.json drops merges at random (dropout), which is for training: every text gets all merges here",
    )
    first = encode(TextTokenizer.load(plan), TEXTS[1])
    assert first == encode(TextTokenizer.load(plan_of(tmp_path, variant)), TEXTS[1])


@pytest.mark.parametrize("program", [{"AutoTokenizer": [None, "mine.MyTokenizer"]}, ["mine.MyTokenizer", None]])
def test_a_tokenizer_that_is_a_program_is_refused_and_its_class_may_be_taken_for_it(
    tmp_path: Path, program: object
) -> None:
    variant = {"base": "gpt2", "model_type": "qwen2", "tokenizer_class": "Qwen2Tokenizer"}
    mine = variant | {"config": {"auto_map": program}}
    with pytest.raises(ModelError, match=r"a program \(auto_map .* --ignore-config auto_map serves the model without"):
        plan_of(tmp_path, mine)
    ignored = plan_of(tmp_path, mine, ignore_config=("auto_map",))
    assert ignored.tokenizer == plan_of(tmp_path, variant).tokenizer
    other = plan_of(tmp_path, variant | {"config": {"auto_map": {"AutoProcessor": "mine.Mine"}}})
    assert other.tokenizer == ignored.tokenizer


def test_merges_that_would_end_the_process_are_refused_and_a_class_without_a_prefix_ignores_it(tmp_path: Path) -> None:
    variant = {
        "base": "llama",
        "model_type": "llama",
        "tokenizer_class": None,
        "model": {"continuing_subword_prefix": "##"},
    }
    with pytest.raises(ModelError, match="merges that lack its continuing_subword_prefix"):
        plan_of(tmp_path, variant)
    tokenizer = TextTokenizer.load(plan_of(tmp_path, variant | {"tokenizer_class": "LlamaTokenizer"}))
    assert encode(tokenizer, "hello world")
    vocabulary = {"a": 0, "##b": 1, "ab": 2}
    right = {"type": "BPE", "continuing_subword_prefix": "##", "vocab": vocabulary, "merges": ["a ##b"]}
    assert not lacks_its_prefix(right)
    assert lacks_its_prefix(right | {"merges": [["a", "b"]]})


@pytest.mark.parametrize("name", ["additional_special_tokens", "extra_special_tokens"])
def test_an_empty_list_of_further_special_tokens_says_that_there_are_none(tmp_path: Path, name: str) -> None:
    variant = {"base": "t5", "model_type": "t5", "tokenizer_class": "T5Tokenizer"}
    text = "x<extra_id_3>y"
    assert encode(TextTokenizer.load(plan_of(tmp_path, variant)), text) == [3, 54, 82, 3, 19, 1]  # of transformers 5.24
    configs: list[dict[str, Any]] = [{name: []}, {name: None}]
    for config in configs:
        found = TextTokenizer.load(plan_of(tmp_path, variant | {"config": config}))
        assert encode(found, text) == [3, 54, 2, 4, 54, 7, 8, 6, 2, 16, 14, 2, 19, 1]


def test_tokenizers_for_several_versions_are_refused(tmp_path: Path) -> None:
    variant = {"base": "bert", "model_type": "bert", "tokenizer_class": None}
    files = {"fast_tokenizer_files": ["tokenizer.4.0.0.json", "tokenizer.json"]}
    with pytest.raises(ModelError, match="--ignore-config fast_tokenizer_files"):
        plan_of(tmp_path, variant | {"config": files})
    plan_of(tmp_path, variant | {"config": files}, ignore_config=("fast_tokenizer_files",))


@pytest.mark.parametrize(
    ("base", "name", "config", "words"),
    [
        ("bert", "BertTokenizer", {"do_lower_case": None}, "a setting do_lower_case that is neither true nor false"),
        ("bert", "BertTokenizer", {"tokenize_chinese_chars": "no"}, "a setting tokenize_chinese_chars that is neither"),
        ("bert", "BertTokenizer", {"strip_accents": 1}, "a setting strip_accents that is neither"),
        ("roberta", "RobertaTokenizer", {"add_prefix_space": None}, "a setting add_prefix_space that is neither"),
        ("bert", "BertTokenizer", {"additional_special_tokens": "own"}, "special tokens .* that are no list"),
        ("bert", "BertTokenizer", {"cls_token": None}, "a setting cls_token that is null"),
        ("roberta", "HerbertTokenizer", {"cls_token": "</s>"}, "a setting cls_token that is not the token 0"),
        ("xlm-roberta", "XLMRobertaTokenizer", {"eos_token": None}, "a setting eos_token that is null"),
        ("t5", "T5Tokenizer", {"extra_ids": "100"}, "a setting extra_ids that is no number from 0 to 10,000"),
        ("t5", "T5Tokenizer", {"extra_ids": 10**12}, "a setting extra_ids that is no number from 0 to 10,000"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_its_name_as_transformers_does(
    tmp_path: Path, base: str, name: str, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        plan_of(tmp_path, {"base": base, "tokenizer_class": name, "model_type": base, "config": config})


_LETTERS = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_SINGLE_LETTERS = {"type": "Sequence", "pretokenizers": [_LETTERS, _BYTES]}
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
# Of transformers 5.24.
_MENDED = [263, 286, 297, 94, 41, 52, 44, 12, 88, 226, 22, 23]
_PLAIN = [89, 77, 74, 226, 81, 70, 95, 94, 41, 52, 44, 12, 88, 226, 22, 23]


@pytest.mark.parametrize(
    ("asked_in", "model_type", "version", "size", "words", "ids"),
    [
        ("tokenizer_config.json", "mistral", "4.57.0", 100_001, _SINGLE_LETTERS, _MENDED),
        ("tokenizer_args", "mistral", None, 100_001, _METASPACE, _MENDED),
        ("tokenizer_config.json", "pixtral", "5.0.0rc1", 100_001, _BYTES, _MENDED),
        ("tokenizer_config.json", "mistral", "5.0.0", 100_001, _SINGLE_LETTERS, _PLAIN),
        ("tokenizer_config.json", "mistral", "4.57.0", 100_000, _SINGLE_LETTERS, _PLAIN),
        ("tokenizer_args", "llama", "4.57.0", 100_001, _SINGLE_LETTERS, _PLAIN),
        (None, "mistral", "4.57.0", 100_001, _SINGLE_LETTERS, _PLAIN),
    ],
)
def test_the_words_of_an_old_mistral_are_mended_where_its_folder_asks(
    tmp_path: Path, asked_in: str | None, model_type: str, version: str | None, size: int, words: Any, ids: list[int]
) -> None:
    vocabulary = RIGHT["bases"]["gpt2"]["model"]["vocab"]
    larger = vocabulary | {f"§{index}": index for index in range(len(vocabulary), size)}
    flag = {"fix_mistral_regex": True}
    variant = {
        "base": "gpt2",
        "model_type": model_type,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "config": flag if asked_in == "tokenizer_config.json" else {},
        "json": {"pre_tokenizer": words},
        "model": {"vocab": larger},
    }
    files = files_of(RIGHT["bases"]["gpt2"], variant)
    files["config.json"] = json.dumps({**json.loads(files["config.json"]), "transformers_version": version})
    stated = {"max_seq_length": 62, "tokenizer_args": flag if asked_in == "tokenizer_args" else {}}
    for name, content in (files | {"sentence_bert_config.json": json.dumps(stated)}).items():
        (tmp_path / name).write_text(content, "utf-8")
    (tmp_path / "model.onnx").touch()
    plan = read_model_folder(tmp_path, ModelOptions(pooling="mean"))
    assert encode(TextTokenizer.load(plan), "the lazyDOG's 12") == ids
