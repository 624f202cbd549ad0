"""Qwen3 after export: the goldens on either side of padding, every variant against numpy, and what is refused."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from embed_worker.encoders import onnx_writer, qwen3
from embed_worker.encoders.architectures import read_encoder
from embed_worker.encoders.onnx_writer import Storage
from embed_worker.tools import export
from tests.worker.export_fixtures import (
    assert_goldens,
    graph_of,
    pad_on_the,
    publish,
    published_tensors,
    refusal,
    run,
    served_vectors,
    session_of,
    write_folder,
    write_shards,
)
from tests.worker.harness import cosines

FIXTURE = "qwen3-last"
# As Qwen3-Embedding has it, with other numbers: three queries share a key, and heads are wider than hidden / heads.
CONFIG: dict[str, Any] = {
    "attention_bias": False,
    "head_dim": 10,
    "hidden_act": "silu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "max_window_layers": 3,
    "model_type": "qwen3",
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 70,
}


def random_tensors(config: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Make every published tensor of a Qwen3, with the head of a language model."""
    random = np.random.default_rng(11)
    hidden_size, intermediate_size, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"] or config["num_attention_heads"]
    tensors = {"embed_tokens.weight": random.normal(0, 1, (config["vocab_size"], hidden_size))}

    def linear(name: str, outputs: int, inputs: int, *, biased: bool = False) -> None:
        tensors[f"{name}.weight"] = random.normal(0, 1.2 / np.sqrt(inputs), (outputs, inputs))
        if biased:
            tensors[f"{name}.bias"] = random.normal(0, 0.3, outputs)

    for layer in range(config["num_hidden_layers"]):
        scope = f"layers.{layer}"
        for part, outputs in (("q", heads), ("k", num_kv_heads), ("v", num_kv_heads)):
            linear(f"{scope}.self_attn.{part}_proj", outputs * head_dim, hidden_size, biased=config["attention_bias"])
        linear(f"{scope}.self_attn.o_proj", hidden_size, heads * head_dim, biased=config["attention_bias"])
        for part in ("gate", "up"):
            linear(f"{scope}.mlp.{part}_proj", intermediate_size, hidden_size)
        linear(f"{scope}.mlp.down_proj", hidden_size, intermediate_size)
        for part, length in (("q", head_dim), ("k", head_dim)):
            tensors[f"{scope}.self_attn.{part}_norm.weight"] = random.normal(1.5, 0.3, length)
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{scope}.{part}.weight"] = random.normal(1, 0.3, hidden_size)
    tensors["norm.weight"] = random.normal(1, 0.3, hidden_size)
    tensors["lm_head.weight"] = random.normal(0, 1, (config["vocab_size"], hidden_size))
    return {name: values.astype(np.float32) for name, values in tensors.items()}


def make_folder(folder: Path, *, bfloat16: bool = False, **changes: Any) -> Path:
    config = CONFIG | changes
    return write_folder(folder, config, random_tensors(config), bfloat16=bfloat16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny")


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in CONFIG.items() if key not in keys}


# The goldens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "alone"])
def test_the_goldens_come_out_wherever_the_padding_is(tmp_path: Path, side: str, together: bool) -> None:
    folder = publish(FIXTURE, tmp_path / "published", published_tensors(FIXTURE))
    pad_on_the(side, folder)
    assert run(folder, "--output", tmp_path / FIXTURE, "--weights", "float32") == 0
    assert_goldens(tmp_path / FIXTURE, FIXTURE, together=together)


def test_float16_weights_cost_less_than_a_ten_thousandth_of_cosine(tmp_path: Path) -> None:
    folder = publish(FIXTURE, tmp_path / FIXTURE, published_tensors(FIXTURE))
    assert run(folder) == 0
    for case, vectors in served_vectors(folder, FIXTURE):
        assert cosines(vectors, case["embeddings"]).min() > 0.9999, case["name"]


def test_shards_and_external_data_give_the_goldens_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MAX_WEIGHTS_IN_GRAPH_BYTES", 10_000)
    tensors = published_tensors(FIXTURE)
    folder = publish(FIXTURE, tmp_path / "published", tensors)
    (folder / "model.safetensors").unlink()
    write_shards(folder, {f"model.{name}": values for name, values in tensors.items()}, 4)
    assert run(folder, "--output", tmp_path / FIXTURE, "--weights", "float32") == 0
    assert (tmp_path / FIXTURE / "onnx" / "model.onnx_data").stat().st_size > 4 * 1008 * 32
    assert_goldens(tmp_path / FIXTURE, FIXTURE, together=True)


# The graph ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True},
        {"head_dim": 2},
        {"hidden_act": "swish"},
        {"is_causal": False},
        {"num_attention_heads": 1, "num_key_value_heads": 1},
        {"num_hidden_layers": 1},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": None},
        {"rms_norm_eps": 0.1},
        {"rope_theta": 10000.0},
        {"layer_types": ["full_attention"] * 3},
        {"use_sliding_window": True, "sliding_window": 4},  # from the layer max_window_layers on: of three, none
    ],
    ids=str,
)
def test_every_variant_agrees_with_the_reference(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert run(make_folder(tmp_path / "tiny", **changes), "--weights", "float32") == 0


@pytest.mark.parametrize("weights", list(Storage))
@pytest.mark.parametrize("opset", onnx_writer.OPSETS)
def test_every_opset_agrees_with_the_reference(folder: Path, weights: str, opset: int) -> None:
    assert run(folder, "--weights", weights, "--opset", str(opset)) == 0
    assert [entry.version for entry in onnx.load(graph_of(folder)).opset_import] == [opset]


def test_sizes_that_the_configuration_leaves_out_are_those_of_transformers(tmp_path: Path) -> None:
    config = without("head_dim", "max_position_embeddings", "rms_norm_eps", "num_key_value_heads")
    config |= {"num_attention_heads": 32, "num_hidden_layers": 1}
    tensors = random_tensors(config | {"head_dim": 128, "num_key_value_heads": 32})
    encoder = read_encoder(write_folder(tmp_path / "tiny", config, tensors))
    assert isinstance(encoder, qwen3.Qwen3)
    assert (encoder.head_dim, encoder.num_kv_heads, encoder.max_tokens, encoder.epsilon) == (128, 32, 32768, 1e-6)


def test_prefix_bfloat16_shards_and_the_language_models_head_change_nothing(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    halves = {name: (values.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, values in tensors.items()}
    bare = {name: values for name, values in halves.items() if name != "lm_head.weight"}
    prefixed = {f"model.{name}" if name != "lm_head.weight" else name: values for name, values in halves.items()}
    folders = [
        write_folder(tmp_path / "bare", CONFIG, bare),
        write_folder(tmp_path / "prefixed", CONFIG, prefixed),
        write_folder(tmp_path / "bfloat16", CONFIG, tensors, bfloat16=True),
        write_folder(tmp_path / "shards", CONFIG, {}),
    ]
    (folders[-1] / "model.safetensors").unlink()
    write_shards(folders[-1], prefixed, 5)
    assert [run(folder) for folder in folders] == [0] * 4
    assert len({graph_of(folder).read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1000000}}, "rope_theta": 5},
        {"rope_scaling": {"type": "default"}, "rope_theta": 1000000},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 1000000}, "partial_rotary_factor": 1.0},
    ],
    ids=str,
)
def test_the_base_of_rotation_is_found_wherever_transformers_has_put_it(tmp_path: Path, rope: dict[str, Any]) -> None:
    folder = make_folder(tmp_path / "old")
    other = write_folder(tmp_path / "new", without("rope_theta", "rope_scaling") | rope, random_tensors(CONFIG))
    assert run(folder) == run(other) == 0
    assert graph_of(folder).read_bytes() == graph_of(other).read_bytes()


def batch_of_three(pad_left: bool) -> tuple[dict[str, NDArray[np.int64]], list[int]]:
    """Make texts of 20, 7 and 1 tokens in one batch, with garbage in the padding."""
    lengths = [20, 7, 1]
    ids = np.random.default_rng(3).integers(0, 70, (3, 20))
    mask = np.array([[int(place < length) for place in range(20)] for length in lengths])
    return {"input_ids": ids, "attention_mask": mask[:, ::-1].copy() if pad_left else mask}, lengths


@pytest.mark.parametrize("pad_left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_vector_depends_on_no_padding_and_no_neighbour_and_nothing_is_nan(
    tmp_path: Path, pad_left: bool, is_causal: bool
) -> None:
    folder = make_folder(tmp_path / "tiny", is_causal=is_causal)
    assert run(folder) == 0
    session = session_of(graph_of(folder))
    feeds, lengths = batch_of_three(pad_left)
    (batch,) = session.run(None, feeds)
    assert np.isfinite(batch).all()  # padding before a text sees nothing at all
    for row, length in enumerate(lengths):
        here = slice(20 - length, None) if pad_left else slice(length)
        (alone,) = session.run(None, {name: values[row : row + 1, here] for name, values in feeds.items()})
        np.testing.assert_allclose(batch[row, here], alone[0], atol=1e-5)


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_token_sees_what_comes_after_it_only_where_the_model_is_not_causal(tmp_path: Path, is_causal: bool) -> None:
    folder = make_folder(tmp_path / "tiny", is_causal=is_causal)
    assert run(folder) == 0
    session = session_of(graph_of(folder))
    ids = np.arange(12)[None] % 70
    other = ids.copy()
    other[0, 8] = 69
    one, two = (session.run(None, {"input_ids": x, "attention_mask": x * 0 + 1})[0][0] for x in (ids, other))
    assert (np.abs(one[:8] - two[:8]).max() < 1e-6) == is_causal
    assert np.abs(one[8:] - two[8:]).max(axis=1).min() > 1e-3


def test_norms_activations_and_scales_are_fused_and_keys_never_repeated(folder: Path, tmp_path: Path) -> None:
    assert run(folder) == 0
    session_of(graph_of(folder), tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    operators = collections.Counter(node.op_type for node in optimized.node)
    assert operators["SimplifiedLayerNormalization"] == 4 * 3 + 1
    assert operators["QuickGelu"] == 3
    # The scale and the key's transposition go into the scores' product; seven projections and the context are left.
    assert (operators["FusedMatMul"], operators["MatMul"]) == (3, 8 * 3)
    assert operators.keys().isdisjoint({"Expand", "Tile", "Pow", "ReduceMean", "Sigmoid", "Div"})
    types = {tuple(tensor.dims): tensor.data_type for tensor in optimized.initializer if len(tensor.dims) == 2}
    assert types.pop((70, 24)) == onnx.TensorProto.FLOAT16
    assert set(types.values()) == {onnx.TensorProto.FLOAT}


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu' cannot be exported; what can be: silu, swish"),
        ({"num_key_value_heads": 4}, "6 attention heads that 4 key heads do not divide"),
        ({"num_key_value_heads": 0}, "positive integer num_key_value_heads, not 0"),
        ({"head_dim": 9}, "head_dim of 9, and rotary positions need pairs"),
        (
            {"head_dim": 8},
            "'layers.0.self_attn.q_proj.weight' as float32 [60, 24], and config.json says float [48, 24]",
        ),
        ({"hidden_size": None}, "positive integer hidden_size, not None"),
        ({"attention_bias": True}, "no tensor 'layers.0.self_attn.q_proj.bias'"),
        ({"num_hidden_layers": 10**12}, "no tensor 'layers.3.self_attn.q_proj.weight'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps of at least 0 and below 1, not -1"),
        ({"rope_theta": None}, "rope_theta above 1, not None"),
        ({"rope_theta": True}, "rope_theta above 1, not True"),
        ({"rope_theta": float("inf")}, "rope_theta above 1, not inf"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary positions of the kind 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rotary positions of the kind 'linear'"),
        ({"rope_scaling": "yarn"}, "rope parameters that are not an object: 'yarn'"),
        ({"rope_parameters": {"full_attention": 3}}, "rope parameters that are not an object: 3"),
        ({"partial_rotary_factor": 0.5}, "rotary positions of the kind 'default' cannot be exported, only"),
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}, "sliding window of 4 tokens"),
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": None}, "sliding window of 4 tokens"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "other than full_attention"),
        ({"layer_types": "full_attention"}, "other than full_attention"),
        ({"auto_map": {"AutoModel": "modeling.Other"}}, "code of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_that_cannot_be_exported_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    folder = write_folder(tmp_path / "tiny", CONFIG | changes, random_tensors(CONFIG))
    assert sentence in refusal(capsys, folder)
    assert not (folder / "onnx").exists()


def test_a_tensor_that_no_shard_has_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    tensors = random_tensors(CONFIG)
    del tensors["norm.weight"]
    write_shards(folder, tensors, 2)
    assert "has no tensor 'norm.weight'" in refusal(capsys, folder)


# The check, tested by breaking what it guards ----------------------------------------------------------------------


def bidirectional(self: qwen3.Qwen3, graph: onnx_writer.GraphWriter) -> str:
    return graph.scalar(0)


def overflowing(self: qwen3.Qwen3, graph: onnx_writer.GraphWriter) -> str:
    return graph.scalar(float("-inf"))


def unrotated(
    self: qwen3.Qwen3, graph: onnx_writer.GraphWriter, scope: str, part: str, x: str, heads: int, rope: Any
) -> str:
    normal = self._write_norm(graph, f"{scope}.{part}_norm", self._write_heads(graph, scope, part, x, heads))
    return graph.node(f"{scope}.{part}_rows", "Transpose", normal, perm=[0, 2, 1, 3])


def unraised(self: qwen3.Qwen3, graph: onnx_writer.GraphWriter, scope: str, x: str) -> str:
    return graph.node(scope, "Mul", x, graph.constant(f"{scope}.weight", self.tensors[f"{scope}.weight"]))


@pytest.mark.parametrize(
    ("method", "broken"),
    [
        ("_write_attention_bias", bidirectional),
        ("_write_attention_bias", overflowing),
        ("_write_rotated_heads", unrotated),
        ("_write_norm", unraised),
    ],
)
def test_a_wrong_graph_fails_the_check(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: str, broken: Any
) -> None:
    monkeypatch.setattr(qwen3.Qwen3, method, broken)
    assert refusal(capsys, folder, status=1).startswith("the graph differs from its weights: ")
    assert not list((folder / "onnx").iterdir())
