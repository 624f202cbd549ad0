"""What a model folder says, what it leaves open, and what is refused with a sentence that helps."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embed_worker.config import ModelOptions
from embed_worker.errors import ModelError, ModelNotFoundError
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.plan import ModelPlan, PoolingMode
from embed_worker.model_files.search import (
    find_by_name,
    find_model,
    model_name,
    models_folders,
    short_name,
    user_models_folder,
)
from tests.worker.harness import ROOT

MODELS = ROOT / "tests" / "models"
EXPECTED = {
    path.name.removesuffix(".expected.json"): json.loads(path.read_text("utf-8"))
    for path in sorted(MODELS.glob("*.expected.json"))
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


def write(folder: Path, **files: Any) -> Path:
    """Write JSON files into a folder; `__` in a name stands for `/`."""
    defaults: dict[str, Any] = {
        "tokenizer": {},
        "config": {"model_type": "bert", "max_position_embeddings": 64},
        "modules": MODULES,
        "1_Pooling__config": {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8},
    }
    for name, content in (defaults | files).items():
        path = folder / f"{name.replace('__', '/')}.json"
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx/model.onnx").touch()
    return folder


def plan_of(folder: Path, **options: Any) -> ModelPlan:
    return read_model_folder(folder, ModelOptions(**options))


def test_there_are_twelve_families_of_fixtures() -> None:
    assert len(EXPECTED) == 12


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_folder_is_read_as_sentence_transformers_reads_it(name: str) -> None:
    expected = EXPECTED[name]["model"]
    is_bare = not (MODELS / name / "modules.json").exists()
    options = ModelOptions(name_or_path=name, pooling="mean" if is_bare else None)
    plan = read_model_folder(MODELS / name, options)
    assert len(plan.dense) == expected["modules"].count("Dense")
    assert plan.max_tokens == expected["max_seq_length"]
    assert [str(mode).removesuffix("_tokens") for mode in plan.pooling] == expected["pooling"]
    assert plan.normalize == expected["normalize"]
    assert dict(plan.prompts) == expected["prompts"]
    assert plan.default_prompt_name == expected["default_prompt_name"]
    assert plan.pad_left == (expected["padding_side"] == "left")
    assert plan.tokenizer_file.is_file()
    assert all(decision.source for decision in plan.decisions)


def test_a_bare_folder_is_refused_with_the_option_that_settles_it() -> None:
    with pytest.raises(ModelError, match="--pooling, as its model card says"):
        plan_of(MODELS / "xenova-bare")


def test_the_table_of_known_models_settles_a_bare_folder_of_that_name(tmp_path: Path) -> None:
    for name, pooling in (("all-MiniLM-L6-v2", "mean"), ("bge-small-en-v1.5", "cls")):
        shutil.copytree(MODELS / "xenova-bare", tmp_path / name)
        plan = plan_of(tmp_path / name)
        assert (plan.pooling, plan.normalize) == ((PoolingMode(pooling),), True)
        sources = {decision.subject: decision.source for decision in plan.decisions}
        assert sources["pooling"] == sources["normalize"] == f"known_models.toml: {name}"
        settled = plan_of(tmp_path / name, pooling="max", normalize=False)
        assert (settled.pooling, settled.normalize) == ((PoolingMode.MAX,), False)


def test_the_table_has_the_prompts_of_models_that_publish_none_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "e5-small-v2").mkdir()
    plan = plan_of(write(tmp_path / "e5-small-v2"))
    assert (plan.prompts["query"], plan.prompts["passage"]) == ("query: ", "passage: ")
    assert plan.default_prompt_name is None  # it is asked for by name, as the folder asks for none
    own = {"prompts": {"query": "own: "}}
    plan = plan_of(write(tmp_path / "e5-small-v2", config_sentence_transformers=own))
    assert plan.prompts == {"query": "own: ", "document": ""}
    assert plan_of(write(tmp_path)).prompts == {"query": "", "document": ""}


def test_every_decision_has_a_source(tmp_path: Path) -> None:
    subjects = {
        "graph", "pooling", "normalize", "max_tokens", "prompts", "padding_side", "truncation_side",
    }  # fmt: skip
    for plan in (plan_of(MODELS / "bert-mean"), plan_of(MODELS / "qwen3-last"), plan_of(write(tmp_path))):
        assert subjects <= {decision.subject for decision in plan.decisions}
        assert all(decision.source for decision in plan.decisions)


# The graph


def test_the_graph_is_in_the_usual_place_or_at_the_root_or_where_an_option_says(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for name in ("model.onnx", "onnx/model_int8.onnx", "other.onnx"):
        (folder / name).touch()
    assert plan_of(folder).graph == folder / "onnx/model.onnx"
    assert plan_of(folder, variant="int8").graph == folder / "onnx/model_int8.onnx"
    assert plan_of(folder, onnx_file="other.onnx").graph == folder / "other.onnx"
    (folder / "onnx/model.onnx").unlink()
    assert plan_of(folder).graph == folder / "model.onnx"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no onnx/model.onnx and no model.onnx; --onnx-file can choose one of: onnx/odd.onnx"),
        ({"variant": "fp16"}, "has no onnx/model_fp16.onnx, which --variant asks for; --onnx-file can choose"),
        ({"onnx_file": "x.onnx"}, "has no x.onnx, which --onnx-file asks for"),
        ({"onnx_file": "../x.onnx"}, "leaves the folder"),
        ({"onnx_file": "/x.onnx"}, "leaves the folder"),
        ({"onnx_file": "C:x.onnx"}, "leaves the folder"),
        ({"onnx_file": "a\\..\\..\\x.onnx"}, "leaves the folder"),
        ({"variant": "/../../x"}, "leaves the folder"),
    ],
)
def test_a_graph_that_is_not_there_is_said_with_those_that_are(
    tmp_path: Path, options: dict[str, str], words: str
) -> None:
    folder = write(tmp_path)
    (folder / "onnx/model.onnx").rename(folder / "onnx/odd.onnx")
    with pytest.raises(ModelError) as refused:
        plan_of(folder, **options)
    assert words in str(refused.value)


def test_two_different_graphs_are_reported_and_equal_ones_are_not(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.onnx").touch()
    assert not plan_of(tmp_path).warnings
    (tmp_path / "model.onnx").write_bytes(b"another")
    assert "different graphs" in plan_of(tmp_path).warnings[0]
    assert not plan_of(tmp_path, onnx_file="model.onnx").warnings


def test_a_folder_without_any_graph_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "onnx/model.onnx").unlink()
    with pytest.raises(ModelError, match=r"no model\.onnx$"):
        plan_of(folder)


# Modules, pooling, normalisation


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
        (
            {
                "pooling_mode_lasttoken": True,
                "pooling_mode_weightedmean_tokens": True,
                "pooling_mode_mean_sqrt_len_tokens": True,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_max_tokens": True,
                "pooling_mode_cls_token": True,
            },
            ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"],
        ),
        ({"pooling_mode": "lasttoken"}, ["lasttoken"]),
        ({"pooling_mode": ["mean", "cls"]}, ["mean", "cls"]),
    ],
)
def test_pooling_is_what_either_generation_of_configuration_says(
    tmp_path: Path, config: dict[str, Any], modes: list[str]
) -> None:
    plan = plan_of(write(tmp_path, **{"1_Pooling__config": config}))
    assert list(plan.pooling) == modes
    assert plan.include_prompt
    assert plan.pooling_dimension is None


def test_options_settle_what_the_folder_says_otherwise(tmp_path: Path) -> None:
    plan = plan_of(write(tmp_path), pooling="cls,max", normalize=True, max_tokens=7)
    assert (plan.pooling, plan.normalize, plan.max_tokens) == ((PoolingMode.CLS, PoolingMode.MAX), True, 7)
    assert plan_of(write(tmp_path, modules=[*MODULES, NORMALIZE]), normalize=False).normalize is False


def test_normalisation_needs_no_folder_of_its_own(tmp_path: Path) -> None:
    assert plan_of(write(tmp_path, modules=[*MODULES, NORMALIZE])).normalize is True
    assert plan_of(write(tmp_path, modules=MODULES)).normalize is False


@pytest.mark.parametrize("name", ["sentence_bert_config", "sentence_roberta_config", "sentence_xlnet_config"])
def test_the_transformer_may_lower_case_and_set_a_limit_under_any_of_its_names(tmp_path: Path, name: str) -> None:
    assert not plan_of(write(tmp_path)).lowercase
    plan = plan_of(write(tmp_path, **{name: {"max_seq_length": 9, "do_lower_case": True}}))
    assert (plan.lowercase, plan.max_tokens) == (True, 9)


def module(kind: str, path: str = "") -> dict[str, str]:
    return {"path": path or kind, "name": path or kind, "type": f"sentence_transformers.models.{kind}"}


def test_modules_of_both_generations_are_known_by_the_last_part_of_their_names(tmp_path: Path) -> None:
    new = [
        dict(old, type=f"sentence_transformers.base.modules.{str(old['type']).rpartition('.')[2]}") for old in MODULES
    ]
    assert plan_of(write(tmp_path, modules=[*new, module("Dropout")])).pooling == (PoolingMode.MEAN,)


@pytest.mark.parametrize(
    "kind", ["my_pooling.Pooling", "custom_st.Transformer", "Pooling", "sentence_transformers_x.Dense"]
)
def test_a_class_of_another_package_is_a_program_whatever_its_last_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError, match="a class of its own"):
        plan_of(write(tmp_path, modules=[MODULES[0], dict(MODULES[1], type=kind)]))


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="two modules of the name '1'"):
        plan_of(write(tmp_path, modules=[*MODULES, dict(NORMALIZE, name="1")]))


def test_a_pooling_module_may_lie_at_the_root_of_its_folder(tmp_path: Path) -> None:
    modules = [MODULES[0], dict(MODULES[1], path="")]
    config = {"model_type": "bert", "max_position_embeddings": 64, "pooling_mode_cls_token": True}
    assert plan_of(write(tmp_path, modules=modules, config=config)).pooling == (PoolingMode.CLS,)


def test_the_prompt_may_be_left_out_of_the_pooling(tmp_path: Path) -> None:
    config = {"pooling_mode": "mean", "include_prompt": False, "embedding_dimension": 5}
    plan = plan_of(write(tmp_path, **{"1_Pooling__config": config}))
    assert (plan.include_prompt, plan.pooling_dimension) == (False, 5)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer": None}, "has no tokenizer.json"),
        ({"modules": {}}, "modules.json that is not a list"),
        ({"sentence_bert_config": {"transformer_task": "fill-mask"}}, "is for the task 'fill-mask'"),
        ({"modules": [5]}, "an entry without `type` and `path`"),
        ({"modules": [{"type": "Transformer"}]}, "an entry without `type` and `path`"),
        ({"modules": [module("Transformer", "../x")]}, "leaves the folder"),
        ({"modules": [module("Transformer", "/x")]}, "leaves the folder"),
        ({"modules": MODULES[:1]}, "cannot be served: Transformer"),
        ({"modules": [*MODULES, module("Mystery")]}, "Mystery"),
        ({"modules": [*MODULES, module("CNN", "2_CNN"), NORMALIZE]}, "CNN"),
        ({"1_Pooling__config": None}, "has no 1_Pooling/config.json"),
        ({"1_Pooling__config": []}, "1_Pooling/config.json that is not a JSON object"),
        ({"1_Pooling__config": b"{}}"}, "1_Pooling/config.json that is not JSON"),
        ({"1_Pooling__config": {"pooling_mode": "magic"}}, "unknown pooling"),
        ({"1_Pooling__config": {"pooling_mode": []}}, "no pooling at all"),
        ({"1_Pooling__config": {"pooling_mode_cls_token": "yes"}}, "neither true nor false"),
        ({"config": b"\xff\xfe\x00"}, "config.json that is not JSON"),
        ({"config": b"[" * 100_000}, "config.json that is not JSON"),
        (
            {"modules": [*MODULES, NORMALIZE], "2_Normalize__config": {"module_input_name": "other"}},
            "a Normalize module over",
        ),
        ({"config": {"model_type": "odd"}}, "decide it with --max-tokens"),
        ({"sentence_bert_config": {"max_seq_length": "64"}}, "not a positive integer"),
        ({"sentence_bert_config": {"max_seq_length": 0}}, "not a positive integer"),
        ({"sentence_bert_config": {"max_seq_length": True}}, "not a positive integer"),
        ({"config": {"model_type": "bert", "max_position_embeddings": -1}}, "not a positive integer"),
        ({"config_sentence_transformers": {"prompts": []}, "x": {}}, None),
        ({"config_sentence_transformers": {"prompts": ["a"]}}, "prompts"),
        ({"config_sentence_transformers": {"prompts": {"query": 5}}}, "not strings"),
        ({"config_sentence_transformers": {"default_prompt_name": "nobody"}}, "not among its prompts"),
        ({"tokenizer_config": {"pad_token": 5}}, "a pad_token in tokenizer_config.json that is not a token"),
        ({"tokenizer_config": {"padding_side": "top"}}, "padding_side"),
        ({"tokenizer_config": {"truncation_side": "top"}}, "truncation_side"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(tmp_path: Path, files: dict[str, Any], words: str | None) -> None:
    folder = write(tmp_path, **files)
    if words is None:
        plan_of(folder)
        return
    with pytest.raises(ModelError) as refused:
        plan_of(folder)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "config.json").chmod(0)
    with pytest.raises(ModelError, match="cannot be read"):
        plan_of(folder)


def test_a_name_that_the_system_cannot_open_is_said(tmp_path: Path) -> None:
    modules = [MODULES[0], dict(MODULES[1], path="x" * 300)]
    # Windows takes such a name for one that is not there.
    with pytest.raises(ModelError, match="has no x" if sys.platform == "win32" else "cannot be read"):
        plan_of(write(tmp_path, modules=modules))


# Limits


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 64),
        ({"tokenizer_config": {"model_max_length": 32}}, 32),
        ({"tokenizer_config": {"model_max_length": 1e30}}, 64),
        ({"tokenizer_config": {"model_max_length": 32}, "special_tokens_map": {"model_max_length": 9}}, 9),
        (
            {
                "tokenizer_config": {"model_max_length": 32, "added_tokens_decoder": {}},
                "special_tokens_map": {"model_max_length": 9},
            },
            32,
        ),
        ({"tokenizer_config": {"model_max_length": 512}}, 64),
        ({"sentence_bert_config": {"max_seq_length": 16}, "tokenizer_config": {"model_max_length": 8}}, 16),
        ({"sentence_bert_config": {"max_seq_length": 500}}, 64),
        ({"sentence_bert_config": {"max_seq_length": None}}, 64),
        ({"config": {"model_type": "xlm-roberta", "max_position_embeddings": 66}}, 64),
        (
            {
                "config": {"model_type": "roberta", "max_position_embeddings": 66},
                "sentence_bert_config": {"max_seq_length": 66},
            },
            64,
        ),
        (
            {
                "config": {"model_type": "qwen3", "max_position_embeddings": 32},
                "sentence_bert_config": {"max_seq_length": 99},
            },
            99,
        ),
        ({"config": {"model_type": "t5"}, "tokenizer_config": {"model_max_length": 77}}, 77),
        ({"config": {"model_type": "gptj", "n_positions": 48}, "sentence_bert_config": {"max_seq_length": 99}}, 48),
        ({"config": {"model_type": "gpt_bigcode", "n_positions": 48}}, 48),
    ],
)
def test_the_limit_is_the_one_that_counts_and_fits_the_position_table(
    tmp_path: Path, files: dict[str, Any], limit: int
) -> None:
    assert plan_of(write(tmp_path, **files)).max_tokens == limit


@pytest.mark.parametrize("limit", [0, -1])
def test_a_tokenizer_with_a_limit_that_leaves_nothing_is_refused(tmp_path: Path, limit: int) -> None:
    stated = {"tokenizer_config": {"model_max_length": limit}}
    with pytest.raises(ModelError, match=f"a model_max_length of {limit} .* --max-tokens decides"):
        plan_of(write(tmp_path, **stated))
    assert plan_of(tmp_path, max_tokens=9).max_tokens == 9
    assert plan_of(write(tmp_path, **stated, sentence_bert_config={"max_seq_length": 7})).max_tokens == 7


# Prompts and sides


def test_query_and_document_always_exist(tmp_path: Path) -> None:
    assert plan_of(write(tmp_path)).prompts == {"query": "", "document": ""}
    config = {"prompts": {"query": "q: ", "passage": "p: "}, "default_prompt_name": "document"}
    plan = plan_of(write(tmp_path, config_sentence_transformers=config))
    assert plan.prompts == {"query": "q: ", "document": "", "passage": "p: "}
    assert plan.default_prompt_name == "document"


@pytest.mark.parametrize(
    ("token", "pad"), [("[PAD]", "[PAD]"), ({"content": "<pad>", "__type": "AddedToken"}, "<pad>"), (None, None)]
)
def test_the_padding_token_is_the_tokenizers(tmp_path: Path, token: Any, pad: str | None) -> None:
    assert plan_of(write(tmp_path, tokenizer_config={"pad_token": token})).tokenizer.pad_token == pad


def test_the_sides_are_the_tokenizers(tmp_path: Path) -> None:
    plan = plan_of(write(tmp_path, tokenizer_config={"padding_side": "left", "truncation_side": "left"}))
    assert (plan.pad_left, plan.tokenizer.truncate_left) == (True, True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 99) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = {
    "config": ["model_type", "max_position_embeddings"],
    "tokenizer_config": ["model_max_length", "pad_token", "padding_side", "truncation_side"],
    "sentence_bert_config": ["max_seq_length"],
    "config_sentence_transformers": ["prompts", "default_prompt_name"],
    "1_Pooling__config": ["pooling_mode", "include_prompt", "word_embedding_dimension", "pooling_mode_mean_tokens"],
    "2_Normalize__config": ["module_input_name"],
}
FILES = st.fixed_dictionaries(
    {}, optional={name: st.dictionaries(st.sampled_from(keys), JSON, max_size=3) for name, keys in KEYS.items()}
)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(FILES, JSON)
def test_whatever_the_files_say_is_a_plan_or_a_model_error(tmp_path: Path, files: dict[str, Any], modules: Any) -> None:
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    chosen = [*MODULES, NORMALIZE] if modules is None else modules
    write(folder, **{"modules": chosen if isinstance(modules, list | None) else [*MODULES, NORMALIZE], **files})
    try:
        plan = plan_of(folder)
    except ModelError:
        return
    assert plan.pooling
    assert {"query", "document"} <= set(plan.prompts)


# Finding


@pytest.mark.parametrize(
    ("name", "short"), [("a", "a"), ("org/a-b_c.1", "a-b_c.1"), ("A/9", "9"), ("x" * 200, "x" * 200)]
)
def test_only_the_part_after_the_slash_counts(name: str, short: str) -> None:
    assert short_name(name) == short


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "../a", "a/..", "a/b/c", ".", "..", "a b", "ä", "a\n", "a\\b", "~"]
)
def test_a_path_is_no_name(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        short_name(name)


def test_the_first_folder_that_has_a_name_wins(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "m").mkdir(parents=True)
    (tmp_path / "one" / "file").touch()
    folders = [tmp_path / "missing", tmp_path / "two", tmp_path / "one"]
    assert find_by_name("org/m", folders) == tmp_path / "two" / "m"
    for name in ("file", "nowhere", "x" * 255, "x" * 5000):
        with pytest.raises(ModelNotFoundError):
            find_by_name(name, folders)


def hub_repository(cache: Path, *commits: str, main: str | None) -> Path:
    repository = cache / "models--org--m"
    for commit in commits:
        (repository / "snapshots" / commit).mkdir(parents=True)
    if main is not None:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(main)
    return repository


@pytest.mark.parametrize(
    ("commits", "main", "found"),
    [(["a", "b"], "b", "b"), (["a"], None, "a"), (["a"], "c", "a"), (["a"], "../../x", "a"), (["a", "b"], None, None)],
)
def test_the_cache_of_the_hub_is_a_models_folder(
    tmp_path: Path, commits: list[str], main: str | None, found: str | None
) -> None:
    repository = hub_repository(tmp_path, *commits, main=main)
    if found is None:
        with pytest.raises(ModelNotFoundError, match="name one of them"):
            find_model(str(repository), [])
        return
    for name in ("m", "org/m", str(repository), str(repository / "snapshots" / found)):
        folder = find_model(name, [tmp_path])
        assert folder == repository / "snapshots" / found
        assert model_name(folder) == model_name(repository) == "m"


def test_a_plan_from_the_cache_of_the_hub_has_the_name_of_the_repository(tmp_path: Path) -> None:
    snapshot = hub_repository(tmp_path, "abc", main="abc") / "snapshots" / "abc"
    assert plan_of(write(snapshot)).name == "m"


def test_a_model_option_is_a_path_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models/m").mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USERPROFILE" if sys.platform == "win32" else "HOME", str(tmp_path))
    assert find_model("models/m", []) == tmp_path / "models/m"
    assert find_model("~/models/m", []) == tmp_path / "models/m"
    assert find_model("m", [tmp_path / "models"]) == tmp_path / "models/m"
    for name, words in (("file", "is a file"), ("./x", "there is no folder"), ("/x/y/z", "there is no folder"),
                        ("~/x", "there is no folder"), ("x", "no model 'x'")):  # fmt: skip
        with pytest.raises(ModelNotFoundError, match=words):
            find_model(name, [tmp_path / "models"])


def test_an_empty_name_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shutil.copytree(MODELS / "bert-mean", tmp_path / "m"))
    with pytest.raises(ModelNotFoundError, match="the name of the model is empty"):
        find_model("", [])
    assert find_model(".", []) == tmp_path / "m"


@pytest.mark.parametrize(
    ("platform", "variable", "end"),
    [
        ("win32", "LOCALAPPDATA", "base/embed-bridge/models"),
        ("win32", None, "AppData/Local/embed-bridge/models"),
        ("darwin", None, "Library/Application Support/embed-bridge/models"),
        ("linux", "XDG_DATA_HOME", "base/embed-bridge/models"),
        ("linux", None, ".local/share/embed-bridge/models"),
    ],
)
def test_downloaded_models_lie_where_the_platform_keeps_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, variable: str | None, end: str
) -> None:
    for name in ("LOCALAPPDATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path / "base"))
    monkeypatch.setattr(sys, "platform", platform)
    found = user_models_folder()
    assert found is not None
    assert found.as_posix().endswith(end)


def test_names_are_looked_for_in_the_configured_folders_first(tmp_path: Path) -> None:
    folders = models_folders([tmp_path])
    assert folders[0] == tmp_path
    assert ROOT / "models" in folders
