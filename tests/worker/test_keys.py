"""Every key of the files of sentence-transformers is read, refused by name, or told: against the arbiter's list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embed_worker.config import ModelOptions
from embed_worker.errors import ModelError
from embed_worker.model_files.keys import KEYS, Key
from embed_worker.model_files.limits import UNLIMITED
from embed_worker.model_files.plan import ModelPlan, NormalizePlan, PoolingMode
from tests.worker.harness import ROOT
from tests.worker.test_model_folder import MODULES, NORMALIZE, module, plan_of, write

ARBITER = json.loads((ROOT / "tests/reference/keys.json").read_bytes())
FILES = {
    "Transformer": "sentence_bert_config",
    "Pooling": "1_Pooling__config",
    "Dense": "2_Dense__config",
    "LayerNorm": "2_LayerNorm__config",
    "Normalize": "2_Normalize__config",
    "Dropout": "2_Dropout__config",
    "config_sentence_transformers.json": "config_sentence_transformers",
}
USUAL: dict[str, dict[str, Any]] = {
    "Pooling": {"pooling_mode": "mean"},
    "Dense": {"in_features": 8, "out_features": 4},
    "LayerNorm": {"dimension": 8},
}
REFUSED = [(kind, key) for kind, keys in KEYS.items() for key, what in keys.items() if what is Key.REFUSED]


def folder_with(folder: Path, kind: str, **keys: Any) -> Path:
    """Write a folder with a module of a kind, whose file says some keys more."""
    behind = [module(kind, f"2_{kind}")] if kind in ("Dense", "LayerNorm", "Normalize", "Dropout") else []
    files: dict[str, Any] = {FILES[kind]: USUAL.get(kind, {}) | keys}
    return write(folder, modules=[*MODULES, *behind], **files)


def test_the_table_knows_every_key_that_the_arbiter_reads() -> None:
    assert ARBITER["sentence_transformers"].startswith("6.2")
    missing = {kind: sorted(set(keys) - set(KEYS[kind])) for kind, keys in ARBITER["keys"].items()}
    assert not any(missing.values()), missing


@pytest.mark.parametrize(("kind", "key"), REFUSED)
def test_a_key_that_is_not_followed_is_refused_by_name_and_may_be_ignored(tmp_path: Path, kind: str, key: str) -> None:
    folder = folder_with(tmp_path, kind, **{key: 5})
    with pytest.raises(ModelError, match=rf"asks for {key} .*--ignore-config {key} serves"):
        plan_of(folder)
    plan = plan_of(folder, ignore_config=(key,))
    assert [decision.source for decision in plan.decisions if key in decision.subject] == ["--ignore-config"]
    plan_of(folder_with(tmp_path, kind, **{key: None}))


@pytest.mark.parametrize("kind", FILES)
def test_a_key_that_nobody_reads_is_told_once_and_serves(tmp_path: Path, kind: str) -> None:
    plan = plan_of(folder_with(tmp_path, kind, nobody=1, reads=2))
    (warning,) = plan.warnings
    assert warning.endswith("has what sentence-transformers does not read either: 'nobody', 'reads'")


def test_an_ignored_key_must_be_somewhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no key 'nowhere' that --ignore-config could leave out"):
        plan_of(write(tmp_path), ignore_config=("nowhere",))


# Values


def transformer(folder: Path, **keys: Any) -> ModelPlan:
    return plan_of(folder_with(folder, "Transformer", **keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"model_args": {"trust_remote_code": True, "attn_implementation": "eager", "torch_dtype": "float16"}},
        {"config_kwargs": {"use_cache": True}},
        {"tokenizer_args": {"use_fast": True}},
        {"processing_kwargs": {"text": {"padding": "max_length", "truncation": True}, "image": {"x": 1}}},
        {"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}},
        {"unpad_inputs": True, "module_output_name": "token_embeddings"},
    ],
)
def test_arguments_that_shape_no_vector_are_nobodys_concern(tmp_path: Path, keys: dict[str, Any]) -> None:
    plan = transformer(tmp_path, **keys)
    assert plan.warnings == ()
    assert plan == transformer(tmp_path, max_seq_length=None)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_args": {"num_hidden_layers": 3}}, "asks for model_args.num_hidden_layers"),
        ({"model_kwargs": {"file_name": "x.onnx"}}, "--ignore-config model_kwargs"),
        ({"config_kwargs": {"is_decoder": True}}, "asks for config_kwargs.is_decoder"),
        ({"tokenizer_args": {"tokenizer_file": "/etc/passwd"}}, "asks for tokenizer_args.tokenizer_file"),
        ({"processing_kwargs": {"text": {"stride": 3}}}, "asks for processing_kwargs.stride"),
        ({"processing_kwargs": {"common": {"truncation": False}}}, "asks for processing_kwargs.truncation"),
        ({"processing_kwargs": {"text": {"max_length": 0}}}, "not a positive integer"),
        (
            {"processing_kwargs": {"chat_template": {"continue_final_message": True}}},
            "processing_kwargs.continue_final",
        ),
        ({"processing_kwargs": {"chat_template": 5}}, "chat_template that is not an object"),
        ({"processing_kwargs": []}, "processing_kwargs that is not an object"),
        ({"modality_config": {"image": {}}}, "takes no text"),
        ({"modality_config": {"text": {"method": "get_text_features"}}}, "method 'get_text_features'"),
        (
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            "method_output_name 'pooler_output'",
        ),
        (
            {"modality_config": {"text": {"method": "forward"}}, "module_output_name": "sentence_embedding"},
            "not token vectors",
        ),
        ({"max_seq_length": 0}, "not a positive integer"),
        ({"do_lower_case": "yes"}, "neither true nor false"),
    ],
)
def test_arguments_that_would_change_vectors_are_refused_by_name(
    tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError) as refused:
        transformer(tmp_path, **keys)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "limit"),
    [
        ({"max_seq_length": 9}, 9),
        ({"max_seq_length": 1e30}, 64),
        ({"max_seq_length": 10**30}, 64),
        ({"max_seq_length": 9, "tokenizer_args": {"model_max_length": 7}}, 7),
        ({"max_seq_length": 9, "processing_kwargs": {"text": {"max_length": 5}}}, 5),
        ({"processing_kwargs": {"text": {"max_length": 5}, "common": {"max_length": 6}}}, 6),
        ({"max_seq_length": 9, "processor_kwargs": {}, "tokenizer_args": {"model_max_length": 8}}, 8),
        ({"tokenizer_args": {"max_len": 7}}, 7),
        ({"max_seq_length": 9, "tokenizer_args": {"max_len": 7}}, 9),
        ({"max_seq_length": 9, "tokenizer_args": {"model_max_length": None, "max_len": 7}}, 64),
    ],
)
def test_the_limit_is_the_one_that_wins_in_sentence_transformers(
    tmp_path: Path, keys: dict[str, Any], limit: int
) -> None:
    assert transformer(tmp_path, **keys).max_tokens == limit


@pytest.mark.parametrize("keys", [{"max_seq_length": 1e30}, {"tokenizer_args": {"model_max_length": None}}])
def test_a_folder_that_states_no_limit_has_none_where_positions_are_computed(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    for kind, limit in (("modernbert", UNLIMITED), ("t5", UNLIMITED), ("gpt2", 64)):
        config = {"model_type": kind, "max_position_embeddings": 64, "n_positions": 64}
        assert plan_of(write(tmp_path, config=config, sentence_bert_config=keys)).max_tokens == limit


def test_arguments_of_the_tokenizer_win_over_its_configuration(tmp_path: Path) -> None:
    sides = {"tokenizer_args": {"truncation_side": "left", "padding_side": "left"}}
    folder = folder_with(tmp_path, "Transformer", **sides)
    (folder / "tokenizer_config.json").write_text('{"truncation_side": "right"}')
    plan = plan_of(folder)
    assert (plan.tokenizer.truncate_left, plan.pad_left) == (True, True)


@pytest.mark.parametrize("padding", [{"padding": "max_length"}, {"pad_to_multiple_of": 8}])
@pytest.mark.parametrize(
    ("kind", "side", "include_prompt", "words"),
    [
        ("bert", "right", False, "makes the part of a prompt that is left out longer"),
        ("bert", "left", True, "on the left shifts the positions"),
        ("gpt2", "left", True, "on the left shifts the positions"),
        ("bert", "right", True, None),
        ("roberta", "left", True, None),
        ("qwen3", "left", True, None),
    ],
)
def test_padding_of_a_text_alone_is_refused_where_it_would_shape_vectors(
    tmp_path: Path, padding: dict[str, Any], kind: str, side: str, include_prompt: bool, words: str | None
) -> None:
    call = {"processing_kwargs": {"text": {**padding, "padding_side": side}}, "max_seq_length": 16}
    pooling = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "include_prompt": include_prompt}
    folder = write(
        tmp_path,
        sentence_bert_config=call,
        config={"model_type": kind, "max_position_embeddings": 64, "n_positions": 64},
        **{"1_Pooling__config": pooling},
    )
    if words is None:
        assert plan_of(folder).max_tokens == 16
        return
    with pytest.raises(ModelError, match=words):
        plan_of(folder)
    assert plan_of(folder, ignore_config=("processing_kwargs",)).max_tokens == 16


def test_special_tokens_may_be_left_out(tmp_path: Path) -> None:
    assert not transformer(tmp_path, processing_kwargs={"text": {"add_special_tokens": False}}).adds_special_tokens


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"word_embedding_dimension": 8}, ["mean"]),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, ["mean"]),
        ({"pooling_mode_cls_token": 1, "pooling_mode_mean_tokens": 0}, ["cls"]),
    ],
)
def test_pooling_without_a_mode_is_mean_and_zero_and_one_are_booleans(
    tmp_path: Path, config: dict[str, Any], modes: list[str]
) -> None:
    assert list(plan_of(write(tmp_path, **{"1_Pooling__config": config})).pooling) == modes


@pytest.mark.parametrize(("value", "included"), [(True, True), (1, True), (False, False), (0, False), (None, False)])
def test_a_prompt_is_pooled_unless_the_folder_says_what_is_false(tmp_path: Path, value: Any, included: bool) -> None:
    config = {"pooling_mode": "mean", "include_prompt": value}
    assert plan_of(write(tmp_path, **{"1_Pooling__config": config})).include_prompt is included


def test_truncate_dim_cuts_what_the_modules_gave(tmp_path: Path) -> None:
    config = {"truncate_dim": 4}
    plan = plan_of(write(tmp_path, modules=[*MODULES, NORMALIZE], config_sentence_transformers=config))
    assert (plan.truncate_dim, plan.modules, plan.normalize) == (4, (NormalizePlan(),), False)
    asked = plan_of(tmp_path, normalize=True)
    assert (asked.truncate_dim, asked.modules, asked.normalize) == (4, (), True)
    with pytest.raises(ModelError, match="not a positive integer"):
        plan_of(write(tmp_path, config_sentence_transformers={"truncate_dim": -4}))
    assert plan_of(tmp_path, ignore_config=("truncate_dim",)).truncate_dim is None


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a 'SparseEncoder'"):
        plan_of(write(tmp_path, config_sentence_transformers={"model_type": "SparseEncoder"}))


def test_modules_may_stand_in_any_order_behind_the_pooling(tmp_path: Path) -> None:
    behind = [module("Normalize", "2"), module("LayerNorm", "3"), module("Dropout", "4"), module("Dense", "5")]
    dense = {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.modules.linear.Identity"}
    plan = plan_of(write(tmp_path, modules=[*MODULES, *behind], **{"3__config": {"dimension": 8}, "5__config": dense}))
    assert [type(one).__name__ for one in plan.modules] == ["NormalizePlan", "LayerNormPlan", "DensePlan"]
    assert plan.normalize is False


@pytest.mark.parametrize("activation", ["my.Activation", "torch.nn.functional.relu", None, 5])
def test_an_activation_of_its_own_is_a_program(tmp_path: Path, activation: Any) -> None:
    with pytest.raises(ModelError, match="an activation of its own"):
        plan_of(folder_with(tmp_path, "Dense", activation_function=activation))


@pytest.mark.parametrize("name", ["torch.nn.ReLU", "torch.nn.modules.activation.ReLU"])
def test_an_activation_may_have_its_short_name(tmp_path: Path, name: str) -> None:
    (dense,) = plan_of(folder_with(tmp_path, "Dense", activation_function=name)).dense
    assert dense.activation == "ReLU"


def test_a_head_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path, modules=[dict(MODULES[0], path="0_Transformer"), MODULES[1]])
    for name in ("tokenizer.json", "config.json"):
        (folder / "0_Transformer").mkdir(exist_ok=True)
        (folder / name).rename(folder / "0_Transformer" / name)
    (folder / "0_Transformer/sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    plan = plan_of(folder)
    assert (plan.max_tokens, plan.tokenizer_file) == (9, folder / "0_Transformer/tokenizer.json")
    assert plan.graph == folder / "onnx/model.onnx"


def test_model2vecs_own_form_and_an_adapter_beside_the_graph_are_told(tmp_path: Path) -> None:
    folder = write(tmp_path, modules=None, config={"model_type": "model2vec"})
    (folder / "onnx/model.onnx").unlink()
    with pytest.raises(ModelError, match=r"StaticEmbedding\.from_model2vec"):
        plan_of(folder)
    (folder / "onnx/model.onnx").touch()
    (folder / "adapter_config.json").write_text("{}")
    plan = plan_of(write(tmp_path))
    assert any("whether it has the adapter is not known" in warning for warning in plan.warnings)


def test_half_of_a_surrogate_pair_is_no_prompt(tmp_path: Path) -> None:
    config = b'{"prompts": {"query": "\\ud800"}}'
    with pytest.raises(ModelError, match="not text"):
        plan_of(write(tmp_path, config_sentence_transformers=config))


def test_pooling_modes_are_the_six_of_sentence_transformers() -> None:
    assert len(PoolingMode) == 6
    assert ModelOptions().ignore_config == ()
