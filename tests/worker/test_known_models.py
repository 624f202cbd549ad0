"""The table of known models: whole, sourced, found by every name, and never a reason for the worker to fail."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from embed_worker.config import ModelOptions
from embed_worker.model_files import known_models as module
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.known_models import KnownModel, find_known_model, known_models
from embed_worker.model_files.plan import PoolingMode
from embed_worker.model_files.search import short_name
from tests.worker.harness import ROOT

TABLE = ROOT / "models" / "known_models.toml"
ENTRIES: list[dict[str, Any]] = tomllib.loads(TABLE.read_text("utf-8"))["models"]
MODELS = known_models()
KEYS = set(KnownModel.__dataclass_fields__)
ENTRY = """
[[models]]
name = "tiny"
repository = "org/tiny"
license = "mit"
pooling = ["mean"]
normalize = true
dimension = 8
max_tokens = 16
sources = ["a test"]
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of the test's own, as the wheel carries it: inside the package."""
    (tmp_path / "package" / "models").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "package" / "model_files" / "known_models.py"))
    return tmp_path / "package" / "models" / "known_models.toml"


def test_every_entry_is_read(caplog: pytest.LogCaptureFixture) -> None:
    assert [model.name for model in known_models()] == [entry["name"] for entry in ENTRIES]
    assert caplog.records == []
    for entry in ENTRIES:
        assert set(entry) <= KEYS, entry["name"]


def test_the_models_of_the_field_are_there() -> None:
    names = {model.name for model in MODELS}
    assert names >= {
        "all-MiniLM-L6-v2",
        "all-MiniLM-L12-v2",
        "e5-small-v2",
        "e5-base-v2",
        "multilingual-e5-small",
        "bge-small-en-v1.5",
        "bge-base-en-v1.5",
        "gte-small",
        "nomic-embed-text-v1.5",
        "mxbai-embed-large-v1",
        "snowflake-arctic-embed-s",
        "snowflake-arctic-embed-m",
        "Qwen3-Embedding-0.6B",
        "embeddinggemma-300m",
    }


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_an_entry_is_of_the_form_that_others_rely_on(model: KnownModel) -> None:
    for repository in (model.repository, *model.aliases, *filter(None, [model.onnx_repository])):
        assert repository.count("/") == 1
        assert short_name(repository)
    assert short_name(model.name) == model.name
    for commit in (model.revision, model.onnx_revision):
        assert commit is None or re.fullmatch(r"[0-9a-f]{40}", commit)
    assert model.onnx_revision is None or model.onnx_repository is not None
    assert model.pooling
    assert set(model.pooling) <= set(PoolingMode)
    assert min(model.dimension, model.max_tokens) > 0
    if model.quality is not None:
        assert 0 < model.quality.separation_min < 1
        assert max(model.quality.similar_min, model.quality.different_max) < 1


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_every_fact_has_a_source(entry: dict[str, Any]) -> None:
    # A source begins with the facts that it is for, then a colon.
    sourced = {fact.strip() for source in entry["sources"] for fact in source.partition(":")[0].split(",")}
    facts = set(entry) - {"name", "repository", "aliases", "sources"}
    assert facts <= sourced


def test_families_that_state_their_prompts_in_the_model_card_have_them_here() -> None:
    for model in MODELS:
        if "e5" in model.name:
            assert (model.prompts["query"], model.prompts["document"]) == ("query: ", "passage: ")
        if model.name.startswith("bge"):
            assert model.prompts == {"query": "Represent this sentence for searching relevant passages: "}
    qwen = find_known_model("Qwen3-Embedding-0.6B")
    assert qwen is not None
    assert qwen.prompts["query"].endswith("\nQuery:")


def test_names_are_unique_and_found_in_every_spelling() -> None:
    spellings = [name.casefold() for model in MODELS for name in (model.name, model.repository, *model.aliases)]
    assert len(spellings) == len(set(spellings))
    for model in MODELS:
        for name in (model.name, model.repository, *model.aliases, model.repository.upper()):
            assert find_known_model(name) == model
        for alias in model.aliases:
            assert find_known_model(alias.rpartition("/")[2]) == model


@pytest.mark.parametrize("name", ["nobody", "nobody/all-MiniLM-L6-v2", "", "/", "all-MiniLM-L6-v2/", "../e5-small-v2"])
def test_other_names_are_not_known(name: str) -> None:
    assert find_known_model(name) is None


def test_the_default_model_is_as_its_folder_says() -> None:
    model = find_known_model("all-MiniLM-L6-v2")
    assert model is not None
    plan = read_model_folder(ROOT / "models" / "all-MiniLM-L6-v2", ModelOptions())
    assert model.pooling == plan.pooling
    assert (model.normalize, model.max_tokens, model.dimension) == (
        plan.normalize,
        plan.max_tokens,
        plan.pooling_dimension,
    )


def test_the_table_inside_the_package_comes_first(table: Path) -> None:
    table.write_text(ENTRY)
    assert [model.name for model in known_models()] == ["tiny"]


def test_without_the_table_nothing_is_known_and_nothing_fails(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert known_models() == ()
    assert find_known_model("e5-small-v2") is None
    assert "there is no known_models.toml" in caplog.text


@pytest.mark.parametrize("content", [b"[[models", b"\xff\xfe", b"models = 3", b"", b'models = ["tiny"]'])
def test_a_damaged_table_is_as_none(table: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    table.write_bytes(content)
    assert known_models() == ()
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("fact", ['name = "tiny"', "dimension = 8", "normalize = true", 'pooling = ["mean"]'])
@pytest.mark.parametrize("wrong", ["", "= 1.5", "= [3]", "= {}"])
def test_a_damaged_entry_costs_that_entry_alone(
    table: Path, caplog: pytest.LogCaptureFixture, fact: str, wrong: str
) -> None:
    damaged = f"{fact.partition(' ')[0]} {wrong}" if wrong else ""
    table.write_text(ENTRY.replace(fact, damaged) + ENTRY.replace("tiny", "other"))
    assert [model.name for model in known_models()] == ["other"]
    assert "an entry that is not used" in caplog.text


def test_a_truth_is_not_a_number(table: Path) -> None:
    table.write_text(ENTRY.replace("dimension = 8", "dimension = true"))
    assert known_models() == ()


def test_the_page_on_models_has_the_table() -> None:
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| ([\d,]+) \| ([^|]+) \|", page, re.MULTILINE)
    documented = [(name, int(d.replace(",", "")), int(t.replace(",", "")), terms.strip()) for name, d, t, terms in rows]
    assert documented == [(model.name, model.dimension, model.max_tokens, model.license) for model in MODELS]
