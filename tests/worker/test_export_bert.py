"""BERT and its kin after export, served by the engine, against sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_worker.encoders.architectures import read_encoder
from embed_worker.model_files.safetensors import SafetensorsFile
from tests.worker.export_fixtures import (
    CONFIG,
    MODELS,
    assert_goldens,
    config_of,
    graph_of,
    make_folder,
    pad_on_the,
    publish,
    published_tensors,
    random_tensors,
    run,
    served_vectors,
    session_of,
)
from tests.worker.harness import cosines

# Every fixture of the family; most have their weights in a graph only.
FIXTURES = sorted(
    path.parent.name for path in MODELS.glob("*/config.json") if config_of(path.parent.name)["model_type"] != "qwen3"
)


@pytest.mark.parametrize("name", ["bert-mean", "bert-cls-new"])
def test_what_is_taken_out_of_a_fixtures_graph_is_what_was_published(name: str) -> None:
    published = SafetensorsFile.open(MODELS / name / "model.safetensors")
    taken = published_tensors(name)
    assert {tensor for tensor in published if not tensor.startswith("pooler.")} == taken.keys()
    for tensor, values in taken.items():
        np.testing.assert_array_equal(values, published[tensor])


@pytest.mark.parametrize("name", FIXTURES)
def test_every_fixture_gives_the_goldens_after_export_alone_and_in_batches(tmp_path: Path, name: str) -> None:
    folder = publish(name, tmp_path / "published", published_tensors(name))
    assert run(folder, "--output", tmp_path / name, "--weights", "float32") == 0
    for together in (True, False):
        assert_goldens(tmp_path / name, name, together=together)


@pytest.mark.parametrize("name", ["bert-mean", "bert-cls-new", "xlmr-unigram"])
def test_float16_weights_cost_less_than_a_ten_thousandth_of_cosine(tmp_path: Path, name: str) -> None:
    assert run(publish(name, tmp_path / name, published_tensors(name))) == 0
    for case, vectors in served_vectors(tmp_path / name, name):
        assert cosines(vectors, case["embeddings"]).min() > 0.9999, case["name"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_of_roberta_are_counted_so_padding_may_be_on_either_side(tmp_path: Path, side: str) -> None:
    folder = publish("xlmr-unigram", tmp_path / "xlmr", published_tensors("xlmr-unigram"))
    assert run(folder, "--weights", "float32") == 0
    pad_on_the(side, folder)
    assert_goldens(folder, "xlmr-unigram", together=True)


def test_roberta_skips_a_padding_token_within_a_text_as_transformers_does(tmp_path: Path) -> None:
    folder = publish("xlmr-unigram", tmp_path / "xlmr", published_tensors("xlmr-unigram"))
    assert run(folder, "--weights", "float32") == 0
    ids = np.random.default_rng(0).integers(0, 1500, (3, 20))
    ids[0, 4] = ids[1, 7] = ids[1, 8] = 1  # the literal <pad> is this token
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (ours,) = session_of(graph_of(folder)).run(["last_hidden_state"], feeds)
    (theirs,) = session_of(graph_of(MODELS / "xlmr-unigram")).run(["last_hidden_state"], feeds)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize("padding_id", [0, 1, 5])
def test_roberta_begins_behind_the_position_of_padding(tmp_path: Path, model_type: str, padding_id: int) -> None:
    changes: dict[str, Any] = {"model_type": model_type, "pad_token_id": padding_id, "type_vocab_size": 1}
    tensors = {f"roberta.{name}": values for name, values in random_tensors(CONFIG | changes).items()}
    folder = make_folder(tmp_path / "tiny", tensors=tensors, **changes)
    assert run(folder, "--weights", "float32") == 0
    session = session_of(graph_of(folder))
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    longest = np.full((1, CONFIG["max_position_embeddings"] - padding_id - 1), 7)
    assert read_encoder(folder).max_tokens == longest.size
    assert np.isfinite(session.run(None, {"input_ids": longest, "attention_mask": longest * 0 + 1})[0]).all()
    longer = np.full((1, longest.size + 1), 7)
    with pytest.raises(Exception, match=r"(?i)out of data bounds|out of bounds"):
        session.run(None, {"input_ids": longer, "attention_mask": longer * 0 + 1})


def as_distilbert(fixture: str, folder: Path, **own: Any) -> Path:
    """Say a BERT fixture in DistilBERT's names: the row of the only token type goes into the words."""
    tensors = published_tensors(fixture)
    types = tensors.pop("embeddings.token_type_embeddings.weight")
    tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"] + types[0]
    renamed = {}
    for name, values in tensors.items():
        for ours, theirs in (
            ("encoder.layer", "transformer.layer"),
            ("attention.self.query", "attention.q_lin"),
            ("attention.self.key", "attention.k_lin"),
            ("attention.self.value", "attention.v_lin"),
            ("attention.output.dense", "attention.out_lin"),
            ("attention.output.LayerNorm", "sa_layer_norm"),
            ("intermediate.dense", "ffn.lin1"),
            ("output.dense", "ffn.lin2"),
            ("output.LayerNorm", "output_layer_norm"),
        ):
            name = name.replace(ours, theirs)
        renamed[f"distilbert.{name}"] = values
    assert "distilbert.transformer.layer.0.attention.out_lin.bias" in renamed
    config = config_of(fixture)
    sizes = {"vocab_size": config["vocab_size"], "max_position_embeddings": config["max_position_embeddings"]}
    sizes |= {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 2}
    return publish(fixture, folder, renamed, {"model_type": "distilbert", "activation": "gelu", **sizes, **own})


def test_distilbert_is_bert_in_other_words(tmp_path: Path) -> None:
    """Its norms have their own epsilon, whatever the configuration says: DistilBertModel reads none."""
    folder = as_distilbert("e5-prefix", tmp_path / "distil", layer_norm_eps=0.1)
    assert run(folder, "--weights", "float32") == 0
    assert_goldens(folder, "e5-prefix", together=True)
