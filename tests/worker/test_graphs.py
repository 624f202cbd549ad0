"""Graphs that are unlike their folder or unlike each other: what is taken of them, and how their texts share a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from embed_worker.config import ModelOptions, RuntimeOptions, Verify
from embed_worker.errors import ModelError, brief
from embed_worker.inference.engine import _WARM_UP, LoadedModel
from embed_worker.inference.pooling import Float32
from embed_worker.loading import load_model
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.graph_tail import read_tail
from embed_worker.model_files.plan import PoolingMode
from tests.worker.export_fixtures import run
from tests.worker.harness import ROOT, cosines
from tests.worker.test_cases import CASES
from tests.worker.test_model_folder import MODELS

TEXTS = ["a", "the quick brown fox jumps over the lazy dog", "größer, 東京!", "one two three"]


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(folder, ModelOptions(**options), RuntimeOptions(verify=Verify.NEVER), 1)


def vectors_of(model: LoadedModel, *, together: bool, prompt: str = "") -> Float32:
    rows = model.engine.tokenizer.encode(TEXTS, prompt)
    groups = [rows] if together else [[row] for row in rows]
    return model.finish(np.concatenate([model.engine.embed(group, exclusive=False) for group in groups]), None, None)


def remade(fixture: Path, folder: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """Copy a folder with another graph."""
    shutil.copytree(fixture, folder)
    graph = folder / "onnx/model.onnx"
    model = onnx.load(graph)
    change(model)
    onnx.save(model, graph)
    return folder


def configure(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def drop_output(model: onnx.ModelProto, *names: str) -> None:
    kept = [output for output in model.graph.output if output.name not in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def without_tokens(model: onnx.ModelProto) -> None:
    drop_output(model, "last_hidden_state", "token_embeddings")


# Token vectors and a sentence vector ---------------------------------------------------------------------------------

MEAN_GRAPH = CASES / "31-pooled-graph-other-pooling/model"  # its sentence vector is a mean, its folder says cls


def test_a_graph_of_both_goes_through_the_folders_own_modules(tmp_path: Path) -> None:
    model = load(MODELS / "gemma-graph-pooled")
    assert not model.engine.backend.is_end_to_end
    assert len(model.engine.dense) == 1
    bare = remade(MODELS / "gemma-graph-pooled", tmp_path / "pooled", without_tokens)
    own = load(bare)
    assert own.engine.backend.is_end_to_end
    assert cosines(vectors_of(model, together=True), vectors_of(own, together=True)).min() > 0.999999
    assert own.fingerprint != model.fingerprint


def test_a_graph_of_both_without_the_weights_of_dense_is_taken_at_its_word(tmp_path: Path) -> None:
    folder = tmp_path / "gemma"
    shutil.copytree(MODELS / "gemma-graph-pooled", folder)
    right = vectors_of(load(folder), together=False)
    (folder / "2_Dense/model.safetensors").unlink()
    model = load(folder)
    assert model.engine.backend.is_end_to_end
    assert cosines(vectors_of(model, together=True), right).min() > 0.999999


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as refused:
        load(folder, **options)
    return str(refused.value)


def test_a_sentence_vector_of_another_pooling_than_the_folders_is_refused(tmp_path: Path) -> None:
    folder = remade(MEAN_GRAPH, tmp_path / "pooled", without_tokens)
    sentence = refusal(folder)
    assert "it pools by mean or mean_sqrt_len_tokens or weightedmean, not by cls as the folder says" in sentence
    assert "as --pooling says" in refusal(folder, pooling="max")
    assert load(folder, pooling="mean").engine.backend.is_end_to_end


def test_a_sentence_vector_of_a_folder_that_says_nothing_needs_no_option(tmp_path: Path) -> None:
    folder = remade(MEAN_GRAPH, tmp_path / "bare", without_tokens)
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    model = load(folder)
    assert (model.plan.pooling, model.engine.dimension, model.normalizes) == ((), 32, True)
    mean = load(MEAN_GRAPH, pooling="mean")
    assert cosines(vectors_of(model, together=True), vectors_of(mean, together=True)).min() > 0.999999


def test_what_a_sentence_vector_cannot_honour_is_refused_by_name(tmp_path: Path) -> None:
    # Dense in the folder, and not in the graph.
    dense = remade(CASES / "16-pooled-graph-without-dense/model", tmp_path / "dense", without_tokens)
    assert "its dimension is 32, where the folder's modules give 24" in refusal(dense)
    configure(dense, "2_Dense/config.json", out_features=32)
    assert "it has 0 linear layers behind the pooling, where the folder has 1" in refusal(dense)
    mean = remade(MEAN_GRAPH, tmp_path / "mean", without_tokens)
    pooling = next(mean.glob("1_Pooling/config.json")).relative_to(mean).as_posix()
    (mean / pooling).write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode": "mean"}))
    assert load(mean).engine.dimension == 32
    configure(mean, pooling, include_prompt=False)
    assert "it cannot leave a prompt out of the pooling" in refusal(mean)
    configure(mean, pooling, include_prompt=True)
    modules = json.loads((mean / "modules.json").read_bytes())[:2]
    (mean / "modules.json").write_text(json.dumps(modules))
    assert "that has length 1, where the folder does not normalise" in refusal(mean)
    norm = {"name": "2", "path": "2_LayerNorm", "type": "sentence_transformers.models.LayerNorm"}
    (mean / "modules.json").write_text(json.dumps([*modules, norm]))
    assert "nothing shows whether the folder's norms before its other modules are inside" in refusal(mean)


def three_times_as_long(model: onnx.ModelProto) -> None:
    without_tokens(model)
    (last,) = (node for node in model.graph.node if "sentence_embedding" in node.output)
    last.output[0] = "of_some_length"
    model.graph.initializer.append(helper.make_tensor("three", TensorProto.FLOAT, [], [3]))
    model.graph.node.append(helper.make_node("Mul", ["of_some_length", "three"], ["sentence_embedding"]))


@pytest.mark.parametrize("change", [without_tokens, three_times_as_long])
def test_truncate_dim_cuts_a_sentence_vector_behind_the_normalize_of_the_folder(
    tmp_path: Path, change: Callable[[onnx.ModelProto], object]
) -> None:
    tokens = Path(shutil.copytree(MEAN_GRAPH, tmp_path / "tokens"))
    configure(tokens, "1_Pooling/config.json", pooling_mode="mean")
    (tokens / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 8}))
    right = vectors_of(load(tokens), together=False)
    assert np.linalg.norm(right, axis=1).max() < 0.9
    pooled = load(remade(tokens, tmp_path / "pooled", change))
    assert pooled.engine.backend.is_end_to_end
    np.testing.assert_allclose(vectors_of(pooled, together=False), right, atol=1e-6)


def sentence_graph(*nodes: tuple[str, list[str], str]) -> onnx.ModelProto:
    """Make the end of a graph from `tokens` on; `weight` and `zero` are constants."""
    made = [helper.make_node(operator, inputs, [output]) for operator, inputs, output in nodes]
    values = [
        helper.make_tensor("weight", TensorProto.FLOAT, [2, 2], [1, 0, 0, 1]),
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
    ]
    ends = [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["B", "T", 2])]
    ends.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["B", 1, "T"]))
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["B", 2])
    return helper.make_model(helper.make_graph(made, "end", ends, [output], values))


SUMS = frozenset({PoolingMode.MEAN, PoolingMode.MEAN_SQRT_LEN, PoolingMode.WEIGHTED_MEAN})


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Gather", ["tokens", "zero"], "sentence_embedding")], ({PoolingMode.CLS, PoolingMode.LAST_TOKEN}, 0)),
        ([("ReduceMax", ["tokens"], "top"), ("Tanh", ["top"], "sentence_embedding")], ({PoolingMode.MAX}, 0)),
        ([("MatMul", ["mask", "tokens"], "sum"), ("Squeeze", ["sum"], "sentence_embedding")], (SUMS, 0)),
        (
            [
                ("ReduceSum", ["tokens"], "sum"),
                ("Transpose", ["weight"], "turned"),
                ("MatMul", ["sum", "turned"], "first"),
                ("Gemm", ["first", "weight"], "second"),
                ("LpNormalization", ["second"], "sentence_embedding"),
            ],
            (SUMS, 2),
        ),
        ([("Softmax", ["tokens"], "sentence_embedding")], None),
        ([], None),
    ],
)
def test_the_end_of_a_graph_shows_how_it_pools(
    tmp_path: Path, nodes: list[tuple[str, list[str], str]], expected: tuple[frozenset[PoolingMode], int] | None
) -> None:
    onnx.save(sentence_graph(*nodes), tmp_path / "model.onnx")
    tail = read_tail(tmp_path / "model.onnx", "sentence_embedding")
    assert (None if tail is None else (tail.modes, tail.linear_layers)) == expected


# Neighbours ----------------------------------------------------------------------------------------------------------


def test_a_graph_without_a_mask_runs_each_text_by_itself_and_says_so() -> None:
    model = load(CASES / "13-no-attention-mask/model")
    assert model.engine.one_by_one == "neighbours would change its vector"
    assert model.engine.is_batch_invariant
    np.testing.assert_array_equal(vectors_of(model, together=True), vectors_of(model, together=False))


def test_padding_goes_to_the_right_where_a_graph_takes_it_there_alone() -> None:
    model = load(CASES / "14-left-padding-absolute/model")
    assert model.plan.pad_left
    assert (model.engine.pad_left, model.engine.one_by_one, model.engine.is_batch_invariant) == (False, None, True)
    assert cosines(vectors_of(model, together=True), vectors_of(model, together=False)).min() > 0.999999


def test_padding_stays_on_the_left_where_a_graph_takes_it_there() -> None:
    engine = load(MODELS / "qwen3-last").engine
    assert (engine.plan.pad_left, engine.pad_left, engine.one_by_one) == (True, True, None)


def test_a_graph_for_one_text_at_a_time_serves_any_number(tmp_path: Path) -> None:
    def fix_batch(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1

    folder = remade(MODELS / "bert-mean", tmp_path / "single", fix_batch)
    model = load(folder)
    assert model.engine.one_by_one == "the graph takes one text at a time"
    right = vectors_of(load(MODELS / "bert-mean"), together=True)
    assert cosines(vectors_of(model, together=True), right).min() > 0.999999


def test_axes_that_are_dynamic_by_name_only_are_found_out(tmp_path: Path) -> None:
    def add_by_shape(rows: int, tokens: int) -> Callable[[onnx.ModelProto], None]:
        def change(model: onnx.ModelProto) -> None:
            zeros = helper.make_tensor("zeros", TensorProto.FLOAT, [rows, tokens, 1], [0.0] * (rows * tokens))
            model.graph.initializer.append(zeros)
            (last,) = (node for node in model.graph.node if "last_hidden_state" in node.output)
            last.output[0] = "before"
            model.graph.node.append(helper.make_node("Add", ["before", "zeros"], ["last_hidden_state"]))

        return change

    tokens = [len(row.ids) for row in load(MODELS / "bert-mean").engine.tokenizer.encode(_WARM_UP, "")]
    for name, length, sentence in (
        (
            "first",
            tokens[0],
            f"runs with some numbers of tokens and not with {tokens[1]}; its axes are dynamic by name",
        ),
        ("none", 4, "does not run: "),
    ):
        found = refusal(remade(MODELS / "bert-mean", tmp_path / name, add_by_shape(1, length)))
        assert sentence in found
        assert "its axes are dynamic by name only: export it again" in found
    # A graph that insists on one text is given one at a time.
    single = load(remade(MODELS / "bert-mean", tmp_path / "single", one_text))
    assert single.engine.one_by_one == "the graph takes one text at a time"


def one_text(model: onnx.ModelProto) -> None:
    shape = helper.make_tensor("of one text", TensorProto.INT64, [3], [1, -1, 32])
    model.graph.initializer.append(shape)
    (last,) = (node for node in model.graph.node if "last_hidden_state" in node.output)
    last.output[0] = "before"
    reshaped = helper.make_node("Reshape", ["before", "of one text"], ["reshaped"])
    lengths = helper.make_node("Shape", ["input_ids"], ["lengths"])
    width = helper.make_tensor("width", TensorProto.INT64, [1], [32])
    model.graph.initializer.append(width)
    wanted = helper.make_node("Concat", ["lengths", "width"], ["wanted"], axis=0)
    expanded = helper.make_node("Expand", ["reshaped", "wanted"], ["last_hidden_state"])
    model.graph.node.extend([reshaped, lengths, wanted, expanded])


def test_a_float_mask_gives_the_same_vectors(tmp_path: Path) -> None:
    def take_floats(model: onnx.ModelProto) -> None:
        (mask,) = (value for value in model.graph.input if value.name == "attention_mask")
        mask.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in model.graph.node:
            node.input[:] = ["mask.integers" if name == "attention_mask" else name for name in node.input]
        cast = helper.make_node("Cast", ["attention_mask"], ["mask.integers"], to=TensorProto.INT64)
        model.graph.node.insert(0, cast)

    model = load(remade(MODELS / "bert-mean", tmp_path / "floats", take_floats))
    np.testing.assert_array_equal(
        vectors_of(model, together=True), vectors_of(load(MODELS / "bert-mean"), together=True)
    )


# Positions -----------------------------------------------------------------------------------------------------------


def test_the_fingerprint_tells_of_positions_only_where_the_graph_takes_them() -> None:
    folder = CASES / "12-roberta-position-ids/model"
    assert load(folder).plan.padding_position == 1
    assert load(MODELS / "xlmr-unigram").plan.padding_position == 1


# Inner hidden states --------------------------------------------------------------------------------------------------

HIDDEN = CASES / "19-hidden-states/model"


def with_hidden_state(folder: Path, target: Path, index: object) -> Path:
    shutil.copytree(folder, target)
    entry = {"method": "forward", "method_output_name": ["hidden_states", index]}
    (target / "sentence_bert_config.json").write_text(json.dumps({"modality_config": {"text": entry}}))
    return target


def test_any_hidden_state_of_a_graph_can_be_pooled_and_each_is_another(tmp_path: Path) -> None:
    found = {}
    for index in (0, 1, 2, -1, -2, -3):
        model = load(with_hidden_state(HIDDEN, tmp_path / str(index), index))
        found[index] = vectors_of(model, together=True)
    plain = load(with_hidden_state(HIDDEN, tmp_path / "plain", 2))
    for same in ((0, -3), (1, -2), (2, -1)):
        np.testing.assert_array_equal(found[same[0]], found[same[1]])
    np.testing.assert_array_equal(found[2], vectors_of(plain, together=True))
    assert cosines(found[0], found[1]).max() < 0.99


def test_a_graph_that_we_have_written_gives_its_hidden_states_too(tmp_path: Path) -> None:
    folder = with_hidden_state(MODELS / "bert-mean", tmp_path / "ours", 1)
    expected = vectors_of(load(folder), together=True)
    export = load_exported(folder, tmp_path / "made" / "ours")
    assert cosines(vectors_of(export, together=True), expected).min() > 0.99999


def load_exported(folder: Path, output: Path) -> LoadedModel:
    assert run(folder, "--output", output, "--weights", "float32") == 0
    return load(output)


def test_a_hidden_state_that_cannot_be_found_is_refused_by_name(tmp_path: Path) -> None:
    beyond = with_hidden_state(HIDDEN, tmp_path / "beyond", 3)
    assert "pools the hidden state 3 of 3" in refusal(beyond)
    configure(beyond, "config.json", num_hidden_layers=5)
    assert "its graph does not show where its layers begin" in refusal(beyond)
    assert "does not show where" in refusal(with_hidden_state(MODELS / "qwen3-last", tmp_path / "qwen3", -2))


# What libraries say ---------------------------------------------------------------------------------------------------


def test_what_the_runtime_says_of_a_node_is_said_without_its_sources() -> None:
    said = (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Add node. "
        "Name:'x/Add' Status Message: /onnxruntime_src/onnxruntime/core/providers/cpu/math/ops.h:583 void Append(int) "
        "axis == 1 was false.\nAttempting to broadcast 4 by 7"
    )
    expected = "Add x/Add: void Append(int) axis == 1 was false. Attempting to broadcast 4 by 7"
    assert brief(RuntimeError(said)) == expected


@pytest.mark.parametrize("kind", ["data2vec-text", "ibert", "roberta-prelayernorm", "xmod"])
def test_the_kin_of_roberta_count_positions_from_the_padding_too(tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(CASES / "12-roberta-position-ids/model", tmp_path / "m"))
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    plan = read_model_folder(folder, ModelOptions())
    assert (plan.padding_position, plan.max_tokens) == (1, config["max_position_embeddings"] - 2)


def test_token_types_that_would_be_words_are_refused(tmp_path: Path) -> None:
    def take_types(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["b", "t"]))

    sgpt = ROOT / "tests/layouts/SGPT-125M/model"
    folder = remade(sgpt, tmp_path / "types", take_types)
    with pytest.raises(ModelError, match="token types, which a gpt_neo adds as words: export it without them"):
        read_model_folder(folder, ModelOptions())
    assert read_model_folder(sgpt, ModelOptions()).max_tokens == 40
