"""Published layouts with tiny weights, exported, against sentence-transformers; see tests/exported/make.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from embed_worker.config import ModelOptions, RuntimeOptions, Verify
from embed_worker.encoders.architectures import read_encoder
from embed_worker.encoders.bert import Bert
from embed_worker.encoders.checkpoint import ExportError, open_weights, read_json_object
from embed_worker.encoders.relative_positions import bucket_of
from embed_worker.loading import load_model
from tests.reference.expected import read_expected
from tests.worker.export_fixtures import graph_of, run, session_of
from tests.worker.harness import cosines
from tests.worker.test_safetensors import file_of_tensors

EXPORTED = Path(__file__).parents[1] / "exported"
NAMES = sorted(file.parent.name for file in EXPORTED.glob("*/config.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_gives_the_vectors_of_sentence_transformers_after_export(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    assert run(EXPORTED / name, "--output", output, "--weights", "float32") == 0
    model = load_model(output, ModelOptions(), RuntimeOptions(verify=Verify.NEVER), 1)
    (expected,) = read_expected(EXPORTED / f"{name}.expected.json")
    rows = model.engine.tokenizer.encode(expected.texts, "")
    assert tuple(row.count for row in rows) == expected.tokens
    together = model.engine.embed(rows, exclusive=False)
    alone = np.concatenate([model.engine.embed([row], exclusive=True) for row in rows])
    for raw in (together, alone):
        vectors = model.finish(raw, None, None)
        assert cosines(vectors, expected.vectors).min() > 0.999999
        np.testing.assert_allclose(vectors, expected.vectors, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_takes_padding_on_either_side(tmp_path: Path, name: str) -> None:
    assert run(EXPORTED / name, "--output", tmp_path) == 0
    encoder = read_encoder(EXPORTED / name)
    assert encoder.counts_tokens  # the export has then compared both sides with the checkpoint
    assert onnx.load(graph_of(tmp_path)).graph.input[1].name == "attention_mask"


def test_near_distances_have_a_bucket_each_and_far_ones_share_it() -> None:
    near = np.arange(-7, 8)
    assert bucket_of(near, 32).tolist() == [7, 6, 5, 4, 3, 2, 1, 0, 17, 18, 19, 20, 21, 22, 23]
    # Where a power of two begins the next bucket, as transformers computes it in float32.
    assert bucket_of(np.array([8, 15, 16, 31, 32, 63, 64, 127, 128, 4000]), 32).tolist() == [
        24, 25, 26, 27, 28, 29, 30, 31, 31, 31,
    ]  # fmt: skip
    assert bucket_of(np.array([-8, -16, -128, -4000]), 32).tolist() == [8, 10, 15, 15]


def test_a_text_beyond_the_distances_of_mpnet_fails_rather_than_wraps(tmp_path: Path) -> None:
    assert run(EXPORTED / "mpnet", "--output", tmp_path) == 0
    encoder = read_encoder(EXPORTED / "mpnet")
    assert encoder.max_tokens == 180
    session = session_of(graph_of(tmp_path))
    for length, fits in ((180, True), (181, False)):
        feeds = {"input_ids": np.full((1, length), 7), "attention_mask": np.ones((1, length), np.int64)}
        if fits:
            assert np.isfinite(session.run(None, feeds)[0]).all()
            continue
        with pytest.raises(Exception, match=r"(?i)out of (data )?bounds"):
            session.run(None, feeds)


def test_mpnet_with_another_number_of_buckets_is_refused() -> None:
    config = read_json_object(EXPORTED / "mpnet/config.json") | {"relative_attention_num_buckets": 16}
    with pytest.raises(ExportError, match="relative_attention_num_buckets of 32, not 16"):
        Bert.read(config, open_weights(EXPORTED / "mpnet"))


def changed(folder: Path, changes: dict[str, Any]) -> Path:
    """Copy the ModernBERT with another configuration; None takes a key out."""
    shutil.copytree(EXPORTED / "modernbert", folder)
    config = read_json_object(folder / "config.json") | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def test_a_modernbert_saved_by_older_transformers_gives_the_same_graph(tmp_path: Path) -> None:
    older = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3}
    folder = changed(tmp_path / "older", {"rope_parameters": None, "layer_types": None, **older})
    assert run(folder) == run(EXPORTED / "modernbert", "--output", tmp_path / "newer") == 0
    assert graph_of(folder).read_bytes() == graph_of(tmp_path / "newer").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True},
        {"local_attention": 4, "hidden_activation": "gelu_pytorch_tanh"},
        {"layer_types": ["full_attention"] * 5},
        {"layer_types": ["sliding_attention"] * 5, "rope_parameters": {"sliding_attention": {"rope_theta": 50}}},
    ],
)
def test_variants_of_modernbert_agree_with_numpy(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = changed(tmp_path / "variant", changes)
    # Copies: Windows lets nobody write a file that is mapped.
    tensors = {name: np.array(values) for name, values in open_weights(folder).items()}
    random = np.random.default_rng(3)
    for name, values in list(tensors.items()):  # biases wherever the configuration may ask for them
        tensors[name.replace(".weight", ".bias")] = random.normal(0, 0.2, values.shape[:1]).astype(np.float32)
    (folder / "model.safetensors").write_bytes(file_of_tensors(tensors))
    assert run(folder, "--weights", "float32") == 0  # it compares


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 10**15}, r"no tensor 'layers\.999999999999999\.mlp_norm\.weight'"),
        ({"layer_types": ["full_attention"]}, "needs 5 layer_types"),
        ({"num_attention_heads": 5}, "hidden_size of 24 that 5 heads of pairs do not divide"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "only 'default'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 0}}}, "rope_theta above 1 for full_attention, not 0"),
    ],
)
def test_what_a_modernbert_cannot_be_is_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        read_encoder(changed(tmp_path / "variant", changes))


def in_a_folder_of_its_own(name: str, target: Path, path: str) -> Path:
    """Copy a layout with its first module in a folder, as older versions of sentence-transformers wrote it."""
    shutil.copytree(EXPORTED / name, target)
    modules = json.loads((target / "modules.json").read_bytes())
    modules[0]["path"] = path
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "0_Transformer").mkdir()
    for file in [file for file in target.iterdir() if file.is_file() and "modules" not in file.name]:
        if file.name != "config_sentence_transformers.json":
            file.rename(target / "0_Transformer" / file.name)
    return target


def test_a_transformer_in_a_folder_of_its_own_is_exported(tmp_path: Path) -> None:
    folder = in_a_folder_of_its_own("mpnet", tmp_path / "mpnet", "0_Transformer")
    assert run(folder, "--output", tmp_path / "made" / "mpnet", "--weights", "float32") == 0
    model = load_model(tmp_path / "made" / "mpnet", ModelOptions(), RuntimeOptions(verify=Verify.NEVER), 1)
    (expected,) = read_expected(EXPORTED / "mpnet.expected.json")
    rows = model.engine.tokenizer.encode(expected.texts, "")
    vectors = model.finish(model.engine.embed(rows, exclusive=False), None, None)
    assert cosines(vectors, expected.vectors).min() > 0.999999


def test_a_transformer_outside_its_folder_is_refused(tmp_path: Path) -> None:
    folder = in_a_folder_of_its_own("mpnet", tmp_path / "mpnet", "../elsewhere")
    with pytest.raises(ExportError, match="names a path that leaves the folder"):
        read_encoder(folder)
