"""Whole models in this process against sentence-transformers' vectors, and what an engine refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embed_worker.config import ModelOptions, RuntimeOptions
from embed_worker.errors import ModelError
from embed_worker.inference.backend import CPU_TOLERANCE, ProviderReport
from embed_worker.inference.engine import Engine, LoadedModel
from embed_worker.inference.pooling import Float32
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.loading import load_model
from embed_worker.model_files.plan import PoolingSource
from tests.worker.harness import cosines, tolerance_of
from tests.worker.test_model_folder import EXPECTED, MODELS
from tests.worker.test_tokenizer import plan_for, prompt_of

_loaded: dict[tuple[str, str | None], LoadedModel] = {}


def model_of(name: str, onnx_file: str | None = None) -> LoadedModel:
    """Load a fixture once."""
    is_bare = not (MODELS / name / "modules.json").exists()
    options = ModelOptions(name_or_path=name, onnx_file=onnx_file, pooling="mean" if is_bare else None)
    if (name, onnx_file) not in _loaded:
        _loaded[name, onnx_file] = load_model(MODELS / name, options, RuntimeOptions(), 1)
    return _loaded[name, onnx_file]


def embed(model: LoadedModel, case: dict[str, Any], *, together: bool) -> Float32:
    rows = model.engine.tokenizer.encode(case["texts"], prompt_of(case, model.plan))
    groups = [rows] if together else [[row] for row in rows]
    raw = np.concatenate([model.engine.embed(group, exclusive=not together) for group in groups])
    assert raw.dtype == np.float32
    return model.finish(raw, case["dimensions"], case["normalize"])


GRAPHS = [(name, graph) for name, expected in EXPECTED.items() for graph in expected["graphs"]]


@pytest.mark.parametrize(("name", "graph"), GRAPHS)
@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "alone"])
def test_vectors_are_those_of_sentence_transformers(name: str, graph: str, together: bool) -> None:
    model = model_of(name, graph)
    assert model.engine.dimension == EXPECTED[name]["model"]["dimension"]
    for case in EXPECTED[name]["cases"]:
        vectors = embed(model, case, together=together)
        np.testing.assert_allclose(
            vectors, case["embeddings"], rtol=0, atol=EXPECTED[name]["tolerance"], err_msg=case["name"]
        )


VARIANTS = [(name, variant["file"]) for name, expected in EXPECTED.items() for variant in expected["variants"]]


@pytest.mark.parametrize(("name", "graph"), VARIANTS)
def test_reduced_precision_stays_within_what_was_measured(name: str, graph: str) -> None:
    model = model_of(name, graph)
    variant = next(variant for variant in EXPECTED[name]["variants"] if variant["file"] == graph)
    for case in EXPECTED[name]["cases"]:
        alone, batched = embed(model, case, together=False), embed(model, case, together=True)
        assert np.abs(alone - np.array(case["embeddings"])).max() <= tolerance_of(variant, "tolerance"), case["name"]
        assert np.abs(batched - np.array(case["embeddings"])).max() <= tolerance_of(variant, "tolerance_batched"), case[
            "name"
        ]
        assert cosines(alone, case["embeddings"]).min() >= variant["min_cosine"], case["name"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_text_does_not_depend_on_its_neighbours(name: str) -> None:
    model = model_of(name)
    case = next(case for case in EXPECTED[name]["cases"] if case["name"] == "mixed-lengths")
    assert (1 - cosines(embed(model, case, together=True), embed(model, case, together=False))).max() < 1e-6


def test_a_fingerprint_names_the_space_and_not_the_machine() -> None:
    names = ("bert-mean", "e5-prefix", "qwen3-last", "no-normalize-dot")
    assert len({model_of(name).fingerprint for name in names}) == len(names)
    again = load_model(MODELS / "bert-mean", ModelOptions(name_or_path="bert-mean"), RuntimeOptions(threads=2), 2)
    assert again.fingerprint == model_of("bert-mean").fingerprint
    cut = load_model(MODELS / "bert-mean", ModelOptions(max_tokens=9), RuntimeOptions(), 1)
    pooled = load_model(MODELS / "bert-mean", ModelOptions(pooling="cls"), RuntimeOptions(), 1)
    assert len({again.fingerprint, cut.fingerprint, pooled.fingerprint}) == 3
    assert all(len(found.fingerprint) == 16 and int(found.fingerprint, 16) >= 0 for found in (cut, pooled))


# What cannot be embeddings, with a backend that gives what a test says


class FakeBackend:
    """Gives vectors of any shape and value; each of them depends on the batch where a test says so."""

    provider = ProviderReport(asked="cpu", chosen="Fake", reason="it is a fake")
    precision = "float32"
    scales_by_batch = False
    max_rows: int | None = None
    tolerance: float | None = CPU_TOLERANCE

    def __init__(
        self,
        shape: tuple[int | str, ...],
        value: float = 1.0,
        *,
        is_end_to_end: bool = False,
        dependence: float = 0.0,
    ) -> None:
        self.shape = shape
        self.value = value
        self.is_end_to_end = is_end_to_end
        self.dependence = dependence
        self.batches: list[TokenBatch] = []

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        return 2 * rows, tokens

    def use_all_cores(self) -> None:
        """Open nothing more."""

    def close(self) -> None:
        """Hold nothing."""

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        self.batches.append(batch)
        sizes = {"B": batch.ids.shape[0]}
        if self.value > 1e300:
            raise RuntimeError("the graph\nfailed")
        vectors = np.full([sizes.get(str(size), size) for size in self.shape], self.value, np.float32)
        vectors[..., 0] += self.dependence * len(batch.ids)
        return vectors


def warm_up(backend: FakeBackend, **changes: Any) -> Engine:
    plan = plan_for("bert-mean", **{"pooling_dimension": None, **changes})
    return Engine.warm_up(plan, TextTokenizer.load(plan), backend)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (FakeBackend(("B", 4), float("nan")), "not finite or have no length"),
        (FakeBackend(("B", 4), 0.0), "not finite or have no length"),
        (FakeBackend(("B", 4), 1e301), "does not run: the graph failed"),
        (FakeBackend(("B", 2, 4)), "an output of shape"),
        (FakeBackend((7, 4)), "an output of shape"),
    ],
)
def test_what_cannot_be_embeddings_is_refused_at_warm_up(backend: FakeBackend, words: str) -> None:
    with pytest.raises(ModelError) as refused:
        warm_up(backend)
    assert words in str(refused.value)


@pytest.mark.parametrize(("value", "normalizes"), [(0.5, True), (0.6, False)])
def test_finished_vectors_of_length_one_cannot_be_had_without(value: float, normalizes: bool) -> None:
    engine = warm_up(FakeBackend(("B", 4), value, is_end_to_end=True), pooling_source=PoolingSource.TABLE)
    assert (engine.dimension, engine.normalizes_itself) == (4, normalizes)


@pytest.mark.parametrize(
    ("dependence", "scales_by_batch", "expected"),
    [(0.0, False, (True, True)), (1e-5, False, (True, True)), (0.1, False, (True, False)), (0.1, True, (False, True))],
)
def test_batch_invariance_is_measured_and_a_graph_that_scales_by_batch_never_has_it(
    dependence: float, scales_by_batch: bool, expected: tuple[bool, bool]
) -> None:
    backend = FakeBackend(("B", 4), dependence=dependence)
    backend.scales_by_batch = scales_by_batch
    engine = warm_up(backend)
    assert (engine.is_batch_invariant, engine.one_by_one is None) == expected
    assert engine.padded_to(3, 5) == ((6, 5) if engine.one_by_one is None else (3, 5))  # each is run by itself
    if engine.one_by_one is not None:
        assert {len(batch.ids) for batch in backend.batches[-3:]} == {1}


def test_another_provider_may_differ_as_far_as_its_proof_lets_it_and_shares_runs() -> None:
    backend = FakeBackend(("B", 4), dependence=0.01)
    backend.tolerance = 1e-3
    engine = warm_up(backend)
    assert (engine.is_batch_invariant, engine.one_by_one) == (False, None)
    backend.provider = replace(backend.provider, chosen="CPUExecutionProvider")
    assert warm_up(backend).one_by_one == "neighbours would change its vector"


class RoundingBackend(FakeBackend):
    """Gives a full stop another vector in a batch than alone, and every other text the same."""

    def __init__(self, precision: str) -> None:
        super().__init__(("B", 4))
        self.precision = precision
        self.full_stop: int | None = None  # its id, once it is known

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        vectors = super().embed(batch, exclusive=exclusive)
        if len(batch.ids) > 1:
            vectors[(batch.ids == self.full_stop).any(axis=1) & (batch.mask.sum(axis=1) == 3), 1] *= 1.1
        return vectors


@pytest.mark.parametrize(("precision", "expected"), [("int8", False), ("int4", False), ("float32", True)])
def test_a_quantised_graph_is_batch_invariant_only_if_no_text_of_many_says_otherwise(
    precision: str, expected: bool
) -> None:
    backend = RoundingBackend(precision)
    plan = plan_for("bert-mean", pooling_dimension=None)
    tokenizer = TextTokenizer.load(plan)
    backend.full_stop = int(tokenizer.encode(["."], "")[0].ids[1])
    assert Engine.warm_up(plan, tokenizer, backend).is_batch_invariant is expected


@pytest.mark.parametrize("pad_left", [False, True])
def test_rows_are_padded_to_the_longest_on_the_folders_side(pad_left: bool) -> None:
    backend = FakeBackend(("B", 4))
    engine = warm_up(backend, pad_left=pad_left)
    short, long = engine.tokenizer.encode(["a", "a b c"], "")
    engine.embed([short, long], exclusive=False)
    batch = backend.batches[-1]
    padding = [0] * (len(long.ids) - len(short.ids))
    ones = [1] * len(short.ids)
    assert batch.mask.tolist() == [padding + ones if pad_left else ones + padding, [1] * len(long.ids)]
    assert batch.ids[0][batch.mask[0] == 1].tolist() == short.ids.tolist()
    assert set(batch.ids[0][batch.mask[0] == 0].tolist()) <= {engine.tokenizer.pad_id}


def test_an_engine_makes_room() -> None:
    assert warm_up(FakeBackend(("B", 4))).new_matrix(3).shape == (3, 4)
