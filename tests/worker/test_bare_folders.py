"""Folders as people get them from packages: a graph and a tokenizer, outputs with odd names, no configurations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from embed_worker.config import ModelOptions, RuntimeOptions, Verify
from embed_worker.errors import ModelError
from embed_worker.inference.engine import LoadedModel
from embed_worker.loading import load_model
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.onnx_outline import read_outline
from embed_worker.model_files.plan import ModelPlan, PoolingMode
from tests.worker.test_inspect import report_on, run
from tests.worker.test_model_folder import MODELS

TEXTS = ("hello world", "The quick brown fox", "größer")


def load(folder: Path, **options: object) -> LoadedModel:
    return load_model(folder, ModelOptions(**options), RuntimeOptions(verify=Verify.NEVER), 1)  # type: ignore[arg-type]


def plan_of(folder: Path, **options: object) -> ModelPlan:
    return read_model_folder(folder, ModelOptions(**options))  # type: ignore[arg-type]


def vectors_of(model: LoadedModel) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return model.finish(model.engine.embed(model.engine.tokenizer.encode(TEXTS, ""), exclusive=False), None, None)


# The graph's output -------------------------------------------------------------------------------------------------


def with_outputs(tmp_path: Path, names: Sequence[str]) -> Path:
    """Copy a folder and give its graph other outputs: `tokens` and `twice` have an axis of tokens, `text` has none."""
    folder = Path(shutil.copytree(MODELS / "bert-mean", tmp_path / "odd"))
    model = onnx.load(folder / "onnx/model.onnx")
    hidden = model.graph.output[0].name
    made = {
        "output": helper.make_node("Identity", [hidden], ["output"]),
        "461": helper.make_node("Add", [hidden, hidden], ["461"]),
        "prediction_logits": helper.make_node("Neg", [hidden], ["prediction_logits"]),
        "463": helper.make_node("ReduceMean", [hidden], ["463"], axes=[1], keepdims=0),
    }
    del model.graph.output[:]
    for name in names:
        axes = ["batch", 32] if name == "463" else ["batch", "tokens", 32]
        model.graph.node.append(made[name])
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, axes))
    onnx.save(model, folder / "onnx/model.onnx")
    return folder


def test_the_only_output_of_tokens_is_taken_whatever_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_outputs(tmp_path, ["463", "output"])
    np.testing.assert_array_equal(vectors_of(load(folder)), vectors_of(load(MODELS / "bert-mean")))
    decisions = {item["subject"]: item for item in report_on(capsys, str(folder))["decisions"]}
    assert decisions["output"]["value"] == "output"
    assert decisions["output"]["source"] == "the only output of tokens in floats"


def test_of_several_outputs_of_tokens_an_option_names_the_one_to_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_outputs(tmp_path, ["output", "463", "461"])
    with pytest.raises(
        ModelError, match=r"it has output \(float, 3 axes\), 463 \(float, 2 axes\), 461 .*--onnx-output"
    ):
        load(folder)
    assert run(str(folder)) == 78
    assert "--onnx-output names the one to take" in capsys.readouterr().err

    first, other = load(folder, onnx_output="output"), load(folder, onnx_output="461", normalize=False)
    np.testing.assert_array_equal(vectors_of(first), vectors_of(load(MODELS / "bert-mean")))
    assert np.linalg.norm(vectors_of(other), axis=1).min() > 1.5
    assert first.fingerprint != load(folder, onnx_output="461").fingerprint
    report = report_on(capsys, str(folder), "--onnx-output", "461")
    assert {"subject": "output", "value": "461", "source": "--onnx-output"} in report["decisions"]
    with pytest.raises(ModelError, match="without the output '462' of --onnx-output: it has output"):
        load(folder, onnx_output="462")


def test_a_graph_that_leaves_the_shape_of_its_output_open_is_inspected_as_it_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_outputs(tmp_path, ["output"])
    graph = onnx.load(folder / "onnx/model.onnx")
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(graph, folder / "onnx/model.onnx")
    np.testing.assert_array_equal(vectors_of(load(folder)), vectors_of(load(MODELS / "bert-mean")))
    decisions = {item["subject"]: item["value"] for item in report_on(capsys, str(folder))["decisions"]}
    assert decisions["output"] == "output"


def test_scores_of_a_language_model_are_no_token_vectors(tmp_path: Path) -> None:
    folder = with_outputs(tmp_path, ["prediction_logits"])
    with pytest.raises(
        ModelError, match=r"gives prediction_logits \(float, 3 axes\), the scores .* feature extraction"
    ):
        load(folder)
    assert np.isfinite(vectors_of(load(folder, onnx_output="prediction_logits"))).all()


def test_an_output_of_whole_texts_may_be_named_too(tmp_path: Path) -> None:
    folder = with_outputs(tmp_path, ["output", "463", "461"])
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    model = load(folder, onnx_output="463")
    assert model.engine.backend.is_end_to_end
    assert (model.plan.pooling, model.dimension) == ((), 32)


# The limit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "rows", "limit"),
    [
        ("bert-mean", {}, 160, 160),
        ("xlmr-unigram", {}, 90, 88),
        ("xlmr-unigram", {"model_type": "luke", "max_position_embeddings": 90}, 90, 88),
        ("xlmr-unigram", {"model_type": "opt", "max_position_embeddings": 88}, 90, 88),
    ],
)
def test_a_limit_never_exceeds_the_table_in_the_graph(
    tmp_path: Path, name: str, config: dict[str, object], rows: int, limit: int
) -> None:
    folder = Path(shutil.copytree(MODELS / name, tmp_path / "m"))
    (folder / "config.json").write_text(json.dumps(config))
    assert read_outline(folder / "onnx/model.onnx").positions == rows
    model = load(folder, max_tokens=1024)
    assert model.plan.max_tokens == limit
    assert any("the graph: its position table is smaller" in decision.source for decision in model.plan.decisions)
    long = model.engine.tokenizer.encode(["word " * 700], "")
    assert len(long[0].ids) == limit
    assert np.isfinite(model.engine.embed(long, exclusive=True)).all()


def test_a_graph_without_a_table_of_positions_bounds_nothing() -> None:
    assert read_outline(MODELS / "qwen3-last/onnx/model.onnx").positions is None


# What is missing ----------------------------------------------------------------------------------------------------


def bare(tmp_path: Path, name: str, *, graph: str = "onnx/model.onnx", tokenizer: str = "tokenizer.json") -> Path:
    folder = tmp_path / name
    (folder / graph).parent.mkdir(parents=True)
    shutil.copy(MODELS / "bert-mean/onnx/model.onnx", folder / graph)
    shutil.copy(MODELS / "bert-mean/tokenizer.json", folder / tokenizer)
    return folder


@pytest.mark.parametrize(
    ("name", "pooling"), [("bge-small-en-v1.5", PoolingMode.CLS), ("e5-small-v2", PoolingMode.MEAN)]
)
def test_a_known_model_needs_a_graph_and_a_tokenizer_and_nothing_else(tmp_path: Path, name: str, pooling: str) -> None:
    plan = plan_of(bare(tmp_path, name))
    assert (plan.pooling, plan.normalize) == ((PoolingMode(pooling),), True)
    # 512 is known of both; the fixture's graph has fewer positions.
    assert plan.max_tokens == 160
    (limit,) = [decision.source for decision in plan.decisions if decision.subject == "max_tokens"]
    assert limit == f"the graph: its position table is smaller than known_models.toml: {name}"
    assert plan.prompts["query"]


def test_what_is_missing_is_told_at_once(tmp_path: Path) -> None:
    folder = bare(tmp_path, "unknown", graph="some.onnx", tokenizer="some-tokenizer.json")
    with pytest.raises(ModelError) as refused:
        plan_of(folder)
    message = str(refused.value)
    wanted = ("rename some-tokenizer.json", "--onnx-file can choose one of: some.onnx", "--pooling", "--max-tokens")
    assert all(words in message for words in wanted)
    assert message.count("the model folder") == 1
    (folder / "some-tokenizer.json").rename(folder / "tokenizer.json")
    assert plan_of(folder, onnx_file="some.onnx", pooling="cls", max_tokens=99).max_tokens == 99


def test_a_hint_does_not_guess_how_to_pool(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not say how to pool; decide it with --pooling, as its model card says"):
        plan_of(bare(tmp_path, "unknown"), max_tokens=9)


def test_a_pooling_configuration_counts_where_modules_json_is_missing(tmp_path: Path) -> None:
    folder = bare(tmp_path, "unknown")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    plan = plan_of(folder, max_tokens=99)
    assert plan.pooling == (PoolingMode.CLS,)
    assert any("there is no modules.json" in warning and "--normalize" in warning for warning in plan.warnings)
    assert any("does not read 1_Pooling/config.json: followed here" in warning for warning in plan.warnings)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q: "}}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    plan = plan_of(folder, max_tokens=99)
    assert plan.prompts["query"] == "q: "
    assert any(warning.count(".json") == 4 and "does not read 1_Pooling" in warning for warning in plan.warnings)
