"""Every family of model folders through the pipe, all in one worker: the vectors, counts and cuts of the goldens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.worker.harness import WorkerProcess, cosines, matrix_of, place, tolerance_of
from tests.worker.test_model_folder import EXPECTED, MODELS

# Everything that one worker serves, by the name that it has there: a folder's default graph, or another of its graphs.
GRAPHS = {
    f"{name}.{index}" if index else name: (name, graph)
    for name, expected in EXPECTED.items()
    for index, graph in enumerate([*expected["graphs"], *(variant["file"] for variant in expected["variants"])])
}
VARIANTS = {(name, variant["file"]): variant for name, expected in EXPECTED.items() for variant in expected["variants"]}


# Azure's provider computes on the CPU, but batches are padded for it as for every other provider.
@pytest.fixture(scope="module", params=["cpu", "azure"])
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    if request.param == "azure" and "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CPU alone")
    folders = tmp_path_factory.mktemp("models")
    arguments = ["--provider", request.param]
    for served, (name, graph) in GRAPHS.items():
        place(MODELS / name, folders / served)
        arguments += ["--model", str(folders / served), "--onnx-file", graph]
        if not (MODELS / name / "modules.json").exists():
            arguments += ["--pooling", "mean"]
    with WorkerProcess(*arguments, model=None) as process:
        yield process
        process.close_input()
        assert process.wait() == 0
        assert process.stderr == ""


def request_of(case: dict[str, Any], served: str) -> dict[str, Any]:
    options = {key: case[key] for key in ("prompt_name", "dimensions", "normalize") if case[key] is not None}
    return {"model": served, "encoding_format": "base64", **options}


def ask_all(worker: WorkerProcess, requests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Send all at once, so that texts of all of them share micro-batches; give the answers by id."""
    worker.send(*({"id": key, **request} for key, request in requests.items()))
    answers = [worker.receive() for _ in requests]
    return {str(answer["id"]): answer for answer in answers}


@pytest.mark.parametrize("served", GRAPHS)
def test_answers_are_those_of_sentence_transformers(worker: WorkerProcess, served: str) -> None:
    name, graph = GRAPHS[served]
    expected, variant = EXPECTED[name], VARIANTS.get((name, graph))
    cases = {case["name"]: case for case in expected["cases"]}
    together = {key: {**request_of(case, served), "inputs": case["texts"]} for key, case in cases.items()}
    alone = {
        f"{key} {place}": {**request_of(case, served), "inputs": text}
        for key, case in cases.items()
        for place, text in enumerate(case["texts"])
    }
    answers = ask_all(worker, together | alone)
    tolerance = tolerance_of(variant, "tolerance_batched") if variant else expected["tolerance"]
    for key, case in cases.items():
        answer = answers[key]
        vectors = matrix_of(answer)
        single = np.concatenate([matrix_of(answers[f"{key} {place}"]) for place in range(len(case["texts"]))])
        assert answer["tokens"] == case["token_counts"], key
        assert answer["truncated"] == [index for index, cut in enumerate(case["truncated"]) if cut], key
        for found in (vectors, single):
            assert np.abs(found - np.array(case["embeddings"], np.float32)).max() <= tolerance, key
            assert cosines(found, case["embeddings"]).min() >= (variant["min_cosine"] if variant else 0.99999), key
        if variant is None:
            assert (1 - cosines(vectors, single)).max() < 1e-6, key


@pytest.mark.parametrize("served", GRAPHS)
def test_info_says_what_the_folder_says(worker: WorkerProcess, served: str) -> None:
    name, graph = GRAPHS[served]
    told = EXPECTED[name]["model"]
    info = worker.ask({"method": "info", "model": served})
    assert (info["model"], info["dimension"], info["max_tokens"]) == (served, told["dimension"], told["max_seq_length"])
    assert info["prompts"] == told["prompts"]
    assert info["normalize"] == told["normalize"]
    if (name, graph) not in VARIANTS:
        assert info["batch_invariant"] is True
        assert info["precision"] == "float32"


def test_a_graph_that_is_quantised_by_batch_says_so_and_runs_alone_where_asked() -> None:
    folder = MODELS / "xenova-bare"
    model = ["--model", str(folder), "--variant", "quantized", "--pooling", "mean"]
    texts = ["a", "a much longer text of some more words than the other one", "b c d"]
    with WorkerProcess(*model, model=None) as scaling, WorkerProcess(*model, "--batch-invariant", model=None) as alone:
        assert scaling.ask({"method": "info"})["batch_invariant"] is False
        assert alone.ask({"method": "info"})["batch_invariant"] is True
        together = matrix_of(alone.ask({"inputs": texts}))
        single = np.concatenate([matrix_of(alone.ask({"inputs": text})) for text in texts])
    assert (together == single).all()


def test_graphs_of_one_folder_have_spaces_of_their_own(worker: WorkerProcess) -> None:
    found = {served: worker.ask({"method": "info", "model": served})["fingerprint"] for served in GRAPHS}
    same_bytes = {"e5-prefix": "e5-prefix.1"}  # the root's model.onnx may be the same file
    for first, second in same_bytes.items():
        same = (MODELS / "e5-prefix/model.onnx").read_bytes() == (MODELS / "e5-prefix/onnx/model.onnx").read_bytes()
        assert (found.pop(second) == found[first]) == same
    assert len(set(found.values())) == len(found)


def test_every_fixture_is_here() -> None:
    assert {name for name, _ in GRAPHS.values()} == {path.name for path in Path(MODELS).iterdir() if path.is_dir()}
