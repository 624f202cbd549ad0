"""The layouts of much used models, reconstructed with tiny weights, against sentence-transformers: all in one worker.

tests/reference/layout_table.py says which configurations they are; `python -m tests.reference.layouts` makes them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.reference.layout_table import LAYOUTS, TEXTS
from tests.worker.harness import ROOT, WorkerProcess, cosines, matrix_of, place
from tests.worker.test_cases import ask_all

FOLDERS = ROOT / "tests" / "layouts"
EXPECTED: dict[str, dict[str, Any]] = {
    path.parent.name: json.loads(path.read_bytes()) for path in sorted(FOLDERS.glob("*/expected.json"))
}


# Their texts go through chat templates.
IS_SKIPPED = importlib.util.find_spec("jinja2") is None
SERVED = [name for name in EXPECTED if not (IS_SKIPPED and name.startswith("chat-"))]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Every answer by its id: `NAME load`, `NAME 0` for the first set of requests and `NAME 0 2` for its third text."""
    folders = tmp_path_factory.mktemp("models")
    for name in SERVED:
        place(FOLDERS / name / "model", folders / name)
    with WorkerProcess("--models-dir", str(folders)) as worker:
        found = ask_all(worker, [{"id": f"{name} load", "method": "load_model", "model": name} for name in SERVED])
        assert {answer["status"] for answer in found.values()} == {"ok"}, found
        yield found | ask_all(worker, [request for name in SERVED for request in requests_of(name)])
        worker.close_input()
        assert worker.wait() == 0


def requests_of(name: str) -> Iterator[dict[str, Any]]:
    for number, expected in enumerate(EXPECTED[name]["sets"]):
        common = {"model": name, "encoding_format": "base64", **expected["request"]}
        yield {"id": f"{name} {number}", "inputs": TEXTS, **common}
        for index, text in enumerate(TEXTS):
            yield {"id": f"{name} {number} {index}", "inputs": text, **common}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_layout_gives_the_vectors_of_sentence_transformers(answers: dict[str, dict[str, Any]], name: str) -> None:
    if name not in SERVED:
        pytest.skip("Jinja is not installed: the extra `chat`")
    for number, expected in enumerate(EXPECTED[name]["sets"]):
        together = answers[f"{name} {number}"]
        alone = [matrix_of(answers[f"{name} {number} {index}"]) for index in range(len(TEXTS))]
        assert together["tokens"] == expected["tokens"]
        assert together["truncated"] == expected["truncated"]
        right = np.array(expected["embeddings"], np.float32)
        for found in (matrix_of(together), np.concatenate(alone)):
            assert found.shape == right.shape
            assert cosines(found, right).min() > 0.99999
            lengths = np.linalg.norm(right, axis=1) / np.linalg.norm(found, axis=1)
            # `dimensions` of a request cuts before the last Normalize, sentence-transformers' truncate_dim after it.
            assert "dimensions" in expected["request"] or np.abs(lengths - 1).max() < 1e-4


def test_every_layout_is_here_and_small() -> None:
    assert set(EXPECTED) == set(LAYOUTS)
    assert all(file.stat().st_size < 100_000 for file in FOLDERS.rglob("*") if file.is_file())
