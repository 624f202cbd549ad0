"""Export from safetensors to ONNX: what is written of a tiny BERT, and folders that cannot be exported.

What other architectures are worth, and what the fixtures give, is in test_export_bert.py and test_export_qwen3.py.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import os
import shutil
import sys
import types
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tqdm  # type: ignore[import-untyped, unused-ignore]

from embed_worker.config import ModelOptions, Verify
from embed_worker.encoders import bert, onnx_writer
from embed_worker.encoders.checkpoint import ExportError
from embed_worker.encoders.onnx_writer import Storage
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.layout import TRANSFORMER_CONFIGS, files_of_a_model
from embed_worker.model_files.limits import UNLIMITED
from embed_worker.model_files.manifest import Manifest, verify
from embed_worker.tools import export, exported_folder
from tests.worker.export_fixtures import (
    CONFIG,
    MODELS,
    assert_goldens,
    graph_of,
    make_folder,
    publish,
    published_tensors,
    random_tensors,
    refusal,
    run,
    session_of,
    write_shards,
)

ACTIVATIONS = ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny")


# What is written ----------------------------------------------------------------------------------------------------


def test_the_graph_has_the_interface_that_published_exports_have(folder: Path) -> None:
    assert run(folder) == 0
    session = session_of(graph_of(folder))
    axes = ["batch_size", "sequence_length"]
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", axes),
        ("attention_mask", "tensor(int64)", axes),
        ("token_type_ids", "tensor(int64)", axes),
    ]
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("last_hidden_state", "tensor(float)", [*axes, 24])
    ]


@pytest.mark.parametrize("weights", list(Storage))
@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_variant_agrees_with_the_reference(tmp_path: Path, weights: str, opset: int, activation: str) -> None:
    folder = make_folder(tmp_path / "tiny", hidden_act=activation)
    assert run(folder, "--weights", weights, "--opset", str(opset)) == 0
    imported = onnx.load(graph_of(folder)).opset_import
    assert [(entry.domain, entry.version) for entry in imported] == [("", opset)]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 1},
        {"num_attention_heads": 24},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 5},
        {"layer_norm_eps": 0.01},
        {"max_position_embeddings": 5},
        {"type_vocab_size": 1},
    ],
    ids=str,
)
def test_sizes_come_from_the_configuration(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert run(make_folder(tmp_path / "tiny", **changes), "--weights", "float32") == 0


def test_names_may_have_the_prefix_bert_and_the_pooler_may_be_absent(folder: Path, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    prefixed = {f"bert.{name}": tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    other = make_folder(tmp_path / "prefixed", tensors=prefixed | {"cls.predictions.bias": np.zeros(70, np.float32)})
    assert run(folder) == run(other) == 0
    assert graph_of(folder).read_bytes() == graph_of(other).read_bytes()


def test_a_model_without_token_types_has_no_such_input(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["embeddings.token_type_embeddings.weight"]
    folder = make_folder(tmp_path / "tiny", tensors=tensors)
    assert run(folder) == 0
    assert [value.name for value in session_of(graph_of(folder)).get_inputs()] == ["input_ids", "attention_mask"]


def test_bfloat16_and_float16_weights_are_read(tmp_path: Path) -> None:
    halves = {name: tensor.astype(np.float16) for name, tensor in random_tensors(CONFIG).items()}
    assert run(make_folder(tmp_path / "bfloat16", bfloat16=True)) == 0
    assert run(make_folder(tmp_path / "float16", tensors=halves), "--weights", "float32") == 0


def test_the_same_weights_give_the_same_bytes_anywhere(folder: Path, tmp_path: Path) -> None:
    assert run(folder) == 0
    first = graph_of(folder).read_bytes()
    assert run(make_folder(tmp_path / "elsewhere"), "--output", tmp_path / "out") == 0
    assert graph_of(tmp_path / "out").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_tables_stay_float16_and_matrices_are_widened_and_fused_when_loaded(folder: Path, tmp_path: Path) -> None:
    assert run(folder) == 0
    session_of(graph_of(folder), tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    types = {tuple(tensor.dims): tensor.data_type for tensor in optimized.initializer if len(tensor.dims) == 2}
    assert types.pop((70, 24)) == types.pop((48, 24)) == types.pop((2, 24)) == onnx.TensorProto.FLOAT16
    assert set(types.values()) == {onnx.TensorProto.FLOAT}

    operators = collections.Counter(node.op_type for node in optimized.node)
    # What is left to convert: the rows of three tables, and the mask.
    assert operators["Cast"] == 4
    # Six projections a layer with their biases; the scale and the key's transposition go into the scores' product.
    assert (operators["Gemm"], operators["FusedMatMul"], operators["MatMul"]) == (12, 2, 2)
    assert (operators["Gelu"], operators["Erf"], operators["Div"]) == (2, 0, 0)


def test_no_shape_has_an_end_which_makes_coremls_provider_throw(folder: Path) -> None:
    assert run(folder) == 0
    shapes = [node for node in onnx.load(graph_of(folder)).graph.node if node.op_type == "Shape"]
    assert shapes
    assert not [attribute for node in shapes for attribute in node.attribute if attribute.name == "end"]


def test_a_vector_does_not_depend_on_padding_or_neighbours(folder: Path) -> None:
    assert run(folder) == 0
    session = session_of(graph_of(folder))
    ids = np.random.default_rng(3).integers(0, 70, (3, 20))
    mask = np.ones_like(ids)
    mask[0, 7:] = mask[1, 19:] = 0
    types = np.zeros_like(ids)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    (batch,) = session.run(None, feeds)
    (alone,) = session.run(None, {name: values[:1, :7] for name, values in feeds.items()})
    np.testing.assert_allclose(batch[0, :7], alone[0], atol=1e-6)


def test_a_text_beyond_the_position_table_fails_rather_than_wraps(folder: Path) -> None:
    assert run(folder) == 0
    ids = np.zeros((1, 49), np.int64)
    with pytest.raises(Exception, match=r"(?i)broadcast|dimension"):
        session_of(graph_of(folder)).run(None, {"input_ids": ids, "attention_mask": ids + 1, "token_type_ids": ids})


# Checkpoints -------------------------------------------------------------------------------------------------------


def test_old_names_of_norms_and_buffers_of_positions_change_nothing(folder: Path, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): values
        for name, values in tensors.items()
    }
    other = make_folder(tmp_path / "old", tensors=renamed | {"embeddings.position_ids": np.arange(48)[None]})
    assert run(folder) == run(other) == 0
    assert graph_of(folder).read_bytes() == graph_of(other).read_bytes()


def test_shards_give_the_same_bytes_and_each_is_named_in_the_manifest(folder: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "sharded")
    (other / "model.safetensors").unlink()
    write_shards(other, random_tensors(CONFIG), 3)
    assert run(folder) == run(other) == 0
    assert graph_of(folder).read_bytes() == graph_of(other).read_bytes()
    manifest = Manifest.read(other)
    assert manifest is not None
    for number in (1, 2, 3):
        record = manifest.files[f"model-0000{number}-of-00003.safetensors"]
        assert f"model-0000{number}-of-00003.safetensors SHA-256 {record.sha256}, " in manifest.source


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/model.safetensors", "C:model.safetensors", "a\\b.safetensors", "model.bin", 7]
)
def test_an_index_that_leaves_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: Any
) -> None:
    folder = make_folder(tmp_path / "inner" / "sharded")
    (folder / "model.safetensors").rename(tmp_path / "inner" / "model.safetensors")
    index = {"weight_map": dict.fromkeys(random_tensors(CONFIG), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names {name!r}, which is not a safetensors file of the folder" in refusal(capsys, folder)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ("{", "is cut off at 1 bytes"),
        ("[]", "is not a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors cannot be read"),
        ('{"weight_map": {"a": "shard.safetensors"}}', "says that 'a' is in shard.safetensors, and it is not"),
    ],
)
def test_a_damaged_index_is_named(folder: Path, capsys: pytest.CaptureFixture[str], index: str, sentence: str) -> None:
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert sentence in refusal(capsys, folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_pickle_is_never_read(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert "a pickle, which is never read" in refusal(capsys, folder)


# External data -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every graph be too large to hold its weights."""
    monkeypatch.setattr(export, "MAX_WEIGHTS_IN_GRAPH_BYTES", 0)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "onnx").iterdir()}


@pytest.mark.parametrize("weights", list(Storage))
def test_weights_beyond_a_protobuf_lie_in_a_file_beside_the_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, weights: Storage
) -> None:
    whole = make_folder(tmp_path / "whole")
    assert run(whole, "--weights", weights) == 0
    monkeypatch.setattr(export, "MAX_WEIGHTS_IN_GRAPH_BYTES", 0)
    folder, elsewhere = make_folder(tmp_path / "tiny"), make_folder(tmp_path / "elsewhere")
    capsys.readouterr()
    assert run(folder, "--weights", weights, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert run(elsewhere, "--weights", weights) == 0
    assert content(folder) == content(elsewhere)
    assert content(folder).keys() == {"model.onnx", "model.onnx_data"}
    assert "with its data file" in capsys.readouterr().out

    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.files["onnx/model.onnx_data"].size == report["data_size"] > report["size"] / 2
    initializers = onnx.load(graph_of(folder), load_external_data=False).graph.initializer
    large = {tensor.data_location for tensor in initializers if np.prod(tensor.dims) > 512}
    assert large == {onnx.TensorProto.EXTERNAL}
    ids = np.arange(40).reshape(2, 20)
    feeds = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    np.testing.assert_array_equal(
        session_of(graph_of(folder)).run(None, feeds)[0], session_of(graph_of(whole)).run(None, feeds)[0]
    )


@pytest.mark.usefixtures("small_graphs")
def test_a_graph_with_external_data_is_served(tmp_path: Path) -> None:
    folder = publish("bert-mean", tmp_path / "tiny", published_tensors("bert-mean"))
    assert run(folder, "--weights", "float32") == 0
    assert_goldens(folder, "bert-mean", together=True)


@pytest.mark.usefixtures("small_graphs")
def test_data_of_a_graph_that_is_no_more_goes_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder) == 0
    monkeypatch.undo()
    (folder / "onnx" / "model_fp16.onnx_data").write_bytes(b"of another graph")
    assert run(folder) == 0
    assert content(folder).keys() == {"model.onnx", "model_fp16.onnx_data"}


@pytest.mark.usefixtures("small_graphs")
def test_a_failed_check_leaves_graph_and_data_as_they_were(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder) == 0
    before = content(folder)
    capsys.readouterr()
    monkeypatch.setattr(bert.Bert, "_write_attention_bias", unmasked)
    refusal(capsys, folder, "--weights", "float32", status=1)
    assert content(folder) == before


# Progress, and other targets ---------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # no thread that outlives the test
    for terminal, is_shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", terminal)
        assert run(folder) == 0
        assert all((word in terminal.getvalue()) == is_shown for word in ("graph:", "check:", "0/2"))


def test_progress_is_no_reason_to_fail_without_tqdm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert run(folder) == 0
    assert terminal.getvalue() == ""


def test_a_graph_for_coreml_is_another_writers_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[Path, Path]] = []

    def refuse(source: Path, *, output: Path) -> None:
        seen.append((source, output))
        raise ExportError("not this one")

    other = types.SimpleNamespace(export_for_coreml=refuse)
    monkeypatch.setitem(sys.modules, "embed_worker.accelerators.coreml.graph_export", other)
    assert run(folder, "--for", "coreml", "--output", "made", "--json") == 78
    assert seen == [(folder, Path("made"))]
    assert "not this one" in capsys.readouterr().err
    assert not (folder / "onnx").exists()


# The folder and its manifest ----------------------------------------------------------------------------------------


def test_an_export_in_place_leaves_one_more_file_and_a_manifest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder) == 0
    assert sorted(file.name for file in folder.rglob("*") if file.is_file()) == [
        "config.json",
        "manifest.json",
        "model.onnx",
        "model.safetensors",
    ]
    out = capsys.readouterr().out
    assert "opset 17, weights stored as float16" in out
    assert "manifest.json lists 3 files" in out
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.source.startswith("model.safetensors SHA-256 ")
    assert manifest.license == "not stated"


def test_another_output_gets_tokenizer_configs_and_modules_but_no_published_weights(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "made" / "tiny"
    shutil.copytree(MODELS / "bert-cls-new", source)
    (source / "data_config.json").write_text("{}")
    assert run(source, "--output", output, "--source", "a hub", "--license", "MIT") == 0
    manifest = Manifest.read(output)
    assert manifest is not None
    verify(output, manifest, Verify.ALWAYS)
    assert (manifest.name, manifest.license) == ("tiny", "MIT")
    assert manifest.source.startswith("a hub, model.safetensors SHA-256 ")
    assert manifest.source.endswith(", exported by embed-worker export")
    assert list(manifest.files) == [
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "onnx/model.onnx",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("limits", TRANSFORMER_CONFIGS)
def test_another_output_keeps_the_limit_under_each_of_its_names(tmp_path: Path, limits: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(MODELS / "bert-cls-new", source)
    (source / "sentence_bert_config.json").unlink(missing_ok=True)
    (source / limits).write_text(json.dumps({"max_seq_length": 11}))
    assert run(source, "--output", tmp_path / "made") == 0
    assert read_model_folder(tmp_path / "made", ModelOptions()).max_tokens == 11


def test_another_output_keeps_modules_wherever_their_folders_are(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(MODELS / "bert-cls-new", source)
    (source / "1_Pooling").rename(source / "how to pool")
    modules = json.loads((source / "modules.json").read_bytes())
    modules[1]["path"] = "how to pool"
    (source / "modules.json").write_text(json.dumps(modules))
    assert run(source, "--output", tmp_path / "made") == 0
    assert [str(mode) for mode in read_model_folder(tmp_path / "made", ModelOptions()).pooling] == ["cls"]


def test_files_that_another_model_has_left_in_the_output_are_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "source", tmp_path / "made"
    shutil.copytree(MODELS / "bert-cls-new", source)
    (source / "sentence_bert_config.json").unlink(missing_ok=True)
    output.mkdir()
    (output / "sentence_roberta_config.json").write_text(json.dumps({"max_seq_length": 7}))
    sentence = refusal(capsys, source, "--output", output, status=1)
    assert sentence.startswith("what was exported is read as another model than its source: max_tokens is 7 and not ")
    assert not (output / "manifest.json").exists()


def test_a_file_that_would_be_lost_fails_the_export_before_anything_is_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "source", tmp_path / "made"
    shutil.copytree(MODELS / "bert-cls-new", source)
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 11}))
    everything = files_of_a_model

    def without_limits(files: Collection[str], modules: object) -> list[str]:
        return [name for name in everything(files, modules) if "sentence_bert" not in name]

    monkeypatch.setattr(exported_folder, "files_of_a_model", without_limits)
    assert "and not 11" in refusal(capsys, source, "--output", output, status=1)
    assert not any(file.is_file() for file in output.rglob("*"))


def test_a_table_of_known_models_that_knows_the_source_by_its_name_must_know_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "all-MiniLM-L6-v2"
    shutil.copytree(MODELS / "bert-cls-new", source)
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (source / name).unlink(missing_ok=True)
    for name in ("1_Pooling", "2_Normalize"):
        shutil.rmtree(source / name)
    sentence = refusal(capsys, source, "--output", tmp_path / "renamed", status=1)
    assert sentence.startswith("what was exported cannot be served, and its source could: ")
    assert run(source, "--output", tmp_path / "same" / source.name) == 0


def test_the_report_in_json_names_what_was_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--json", "--weights", "float32") == 0
    report = json.loads(capsys.readouterr().out)
    manifest = Manifest.read(folder)
    assert manifest is not None
    record = manifest.files["onnx/model.onnx"]
    assert (report["sha256"], report["size"], report["files"]) == (record.sha256, record.size, 3)
    assert (report["opset"], report["weights"], report["graph"]) == (17, "float32", str(graph_of(folder)))
    assert 0 <= report["max_difference"] < 1e-5
    assert 0.999999 < report["min_cosine"] < 1.000001


def test_the_default_model_is_what_its_manifest_says() -> None:
    folder = Path(__file__).parents[2] / "models" / "all-MiniLM-L6-v2"
    manifest = Manifest.read(folder)
    assert manifest is not None
    verify(folder, manifest, Verify.ALWAYS)
    assert "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" in manifest.source


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model_type": "new", "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"}},
            "model_type is 'new' cannot be exported; "
            "what can be: bert, camembert, distilbert, mpnet, roberta, xlm-roberta, modernbert, qwen3; for others, "
            "sentence-transformers with backend='onnx'",
        ),
        ({"model_type": "nomic_bert"}, "model_type is 'nomic_bert' cannot be exported"),
        ({"auto_map": {"AutoModel": "modeling.Other"}}, "code of its own for its model (auto_map)"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["bert"]}, "model_type is ['bert']"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi' cannot be exported"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu' cannot be exported; what can be: gelu, gelu_new, "),
        ({"model_type": "xlm-roberta", "pad_token_id": 47}, "pad_token_id from 0 to below 47, not 47"),
        ({"model_type": "xlm-roberta", "pad_token_id": None}, "pad_token_id from 0 to below 47, not None"),
        ({"model_type": "distilbert"}, "positive integer dim, not None"),
        ({"is_decoder": True}, "decoder"),
        ({"num_attention_heads": 5}, "hidden_size of 24 that 5 attention heads do not divide"),
        ({"num_attention_heads": 0}, "positive integer num_attention_heads, not 0"),
        ({"hidden_size": "24"}, "positive integer hidden_size, not '24'"),
        ({"vocab_size": True}, "positive integer vocab_size, not True"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        (
            {"vocab_size": 71},
            "'embeddings.word_embeddings.weight' as float32 [70, 24], and config.json says float [71, 24]",
        ),
        ({"num_hidden_layers": 10**12}, "no tensor 'encoder.layer.2.attention.self.query.weight'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_that_cannot_be_exported_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    folder = make_folder(tmp_path / "tiny", tensors=random_tensors(CONFIG), **changes)
    assert sentence in refusal(capsys, folder)
    assert not (folder / "onnx").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]"])
def test_a_damaged_configuration_is_named(folder: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json is " in refusal(capsys, folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(capsys, folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", "config.json is not a regular file"),
        ("model.safetensors", "has no model.safetensors"),
        ("modules.json", None),
    ],
)
def test_a_pipe_is_not_waited_for(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, told: str | None
) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if told is None:
        assert run(folder) == 0
    else:
        assert told in refusal(capsys, folder)


def test_damaged_weights_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors is no usable safetensors file" in refusal(capsys, folder)


def test_integer_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = random_tensors(CONFIG)
    tensors["encoder.layer.1.output.dense.weight"] = np.zeros((24, 40), np.int8)
    folder = make_folder(tmp_path / "tiny", tensors=tensors)
    assert "'encoder.layer.1.output.dense.weight' as int8 [24, 40]" in refusal(capsys, folder)


def test_weights_beyond_float16_are_refused_and_fit_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = random_tensors(CONFIG)
    tensors["encoder.layer.0.attention.self.value.weight"][0, 0] = 1e5
    folder = make_folder(tmp_path / "tiny", tensors=tensors)
    assert "'encoder.layer.0.attention.self.value.weight' has values that float16 cannot hold" in refusal(
        capsys, folder
    )
    assert run(folder, "--weights", "float32") == 0


def test_weights_that_are_no_numbers_are_told_from_large_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = random_tensors(CONFIG)
    tensors["encoder.layer.0.attention.self.value.weight"][0, 0] = np.nan
    folder = make_folder(tmp_path / "tiny", tensors=tensors)
    assert "'encoder.layer.0.attention.self.value.weight' has values that are not finite" in refusal(capsys, folder)


def test_an_output_that_cannot_be_written_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "onnx").write_text("a file where the folder should be")
    assert "cannot be written" in refusal(capsys, folder)


def test_a_missing_onnx_package_names_the_extra(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert refusal(capsys, folder).endswith("pip install 'embed-bridge[tools]'")


@pytest.mark.parametrize(
    "arguments", [[], ["DIR", "--opset", "16"], ["DIR", "--opset", "x"], ["DIR", "--weights", "int8"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        run(*arguments)
    assert raised.value.code == 2
    assert "usage: embed-worker export" in capsys.readouterr().err


# The check, tested by breaking what it guards -----------------------------------------------------------------------


def unmasked(self: bert.Bert, graph: onnx_writer.GraphWriter) -> str:
    return graph.scalar(0)


def misnormed(self: bert.Bert, graph: onnx_writer.GraphWriter, scope: str, x: str) -> str:
    scale = graph.constant(f"{scope}.weight", self.tensors[f"{scope}.weight"])
    return graph.node(scope, "LayerNormalization", x, scale, epsilon=0.1)


def not_a_number(self: bert.Bert, graph: onnx_writer.GraphWriter) -> str:
    return graph.scalar(float("nan"))


@pytest.mark.parametrize(
    ("method", "broken"),
    [
        ("_write_attention_bias", unmasked),
        ("_write_attention_bias", not_a_number),
        ("_write_layer_norm", misnormed),
    ],
)
@pytest.mark.parametrize("weights", list(Storage))
def test_a_wrong_graph_fails_the_check_and_what_was_there_stays(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    broken: Any,
    weights: str,
) -> None:
    assert run(folder, "--weights", weights) == 0
    capsys.readouterr()
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    monkeypatch.setattr(bert.Bert, method, broken)
    assert refusal(capsys, folder, "--weights", weights, status=1).startswith("the graph differs from its weights: ")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_graph_that_does_not_load_fails_the_check(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Adding integers to floats passes the checker of onnx, which infers no types.
    monkeypatch.setattr(bert.Bert, "_write_attention_bias", lambda self, graph: "input_ids")
    assert refusal(capsys, folder, status=1).startswith("onnxruntime cannot load the graph: ")
    assert list((folder / "onnx").iterdir()) == []


def test_a_model_without_a_limit_is_compared_with_texts_that_memory_holds() -> None:
    plan = read_model_folder(MODELS / "bert-mean", ModelOptions(name_or_path="bert-mean"))
    assert max(map(len, exported_folder._texts(plan))) > plan.max_tokens
    unlimited = dataclasses.replace(plan, max_tokens=UNLIMITED)
    assert max(map(len, exported_folder._texts(unlimited))) < 1000
