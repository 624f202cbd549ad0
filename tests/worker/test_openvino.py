"""OpenVINO: the goldens of every family through the pipe, precisions that are what ran, buckets, and refusals."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embed_worker.accelerators.agreement import ProofError
from embed_worker.accelerators.openvino.backend import buckets_of, shared_out
from embed_worker.accelerators.openvino.proof import Reference
from embed_worker.accelerators.openvino.runtime import OpenvinoError
from embed_worker.config import OpenvinoPrecision, RuntimeOptions
from embed_worker.inference.buckets import SteadyLength
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.pooling import Float32, cosine_distances
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.inference.width import Width
from tests.worker.harness import ROOT, WAIT_S, WorkerProcess, cosines, matrix_of
from tests.worker.test_boundaries import loaded_after
from tests.worker.test_families import ask_all, request_of
from tests.worker.test_golden import GOLDEN, TEXTS
from tests.worker.test_model_folder import EXPECTED, MODELS
from tests.worker.test_tokenizer import plan_for

try:
    import openvino

    assert openvino
except ImportError as error:
    WHY_NOT = f"OpenVINO is not there: {error}"
else:
    WHY_NOT = ""

needs_openvino = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "it is there")
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.999}
FLOAT32 = OpenvinoPrecision.FLOAT32


# Serving


def worker_of(names: list[str], precision: str) -> WorkerProcess:
    arguments = ["--provider", "openvino", "--openvino-precision", precision]
    for name in names:
        arguments += ["--model", str(MODELS / name)]
        if not (MODELS / name / "modules.json").exists():
            arguments += ["--pooling", "mean"]
    return WorkerProcess(*arguments, model=None, wait_s=4 * WAIT_S)  # each model runs in some eighty shapes first


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def worker(request: pytest.FixtureRequest) -> Iterator[WorkerProcess]:
    with worker_of(list(EXPECTED), request.param) as process:
        info = process.ask({"method": "info"})
        if info["status"] == "error" and request.param == "bfloat16":
            pytest.skip(f"not on this processor: {info['message']}")
        yield process


@needs_openvino
@pytest.mark.parametrize("name", EXPECTED)
def test_answers_are_those_of_sentence_transformers(worker: WorkerProcess, name: str) -> None:
    cases = {case["name"]: case for case in EXPECTED[name]["cases"]}
    info = worker.ask({"method": "info", "model": name})
    answers = ask_all(worker, {key: {**request_of(case, name), "inputs": case["texts"]} for key, case in cases.items()})
    for key, case in cases.items():
        assert answers[key]["tokens"] == case["token_counts"], key
        found = cosines(matrix_of(answers[key]), case["embeddings"]).min()
        assert found >= MIN_COSINE[info["precision"]], (key, found)
    assert info["provider"]["chosen"] == "openvino"


@needs_openvino
def test_a_text_alone_and_among_others_is_the_same_and_the_space_is_that_of_the_cpu(worker: WorkerProcess) -> None:
    texts = ["a", "some words of a text that is longer than the others here", "b c d"]
    together = matrix_of(worker.ask({"inputs": texts, "model": "bert-mean"}))
    alone = np.concatenate([matrix_of(worker.ask({"inputs": text, "model": "bert-mean"})) for text in texts])
    assert (1 - cosines(together, alone)).max() < 1e-5
    info = worker.ask({"method": "info", "model": "bert-mean"})
    with WorkerProcess(model=MODELS / "bert-mean") as cpu:
        assert cpu.ask({"method": "info"})["fingerprint"] == info["fingerprint"]


@needs_openvino
def test_a_text_alone_is_run_on_all_cores_while_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    from embed_worker.accelerators.openvino.backend import OpenvinoBackend, accelerate

    plan, options = plan_for("bert-mean"), RuntimeOptions(provider="openvino")
    cpu = OnnxBackend.load(plan, options, threads=2)
    backend = accelerate(cpu, plan, TextTokenizer.load(plan), options, 2)
    assert isinstance(backend, OpenvinoBackend)
    backend.use_all_cores()
    run, seconds = backend._embed, {True: 1.0, False: 2.0}
    now, ran = [0.0], list[bool]()

    def timed(graph: Any, batch: TokenBatch, at_least: int = 0) -> object:
        ran.append(graph is backend._wide)
        now[0] += seconds[ran[-1]]
        return run(graph, batch, at_least)

    monkeypatch.setattr(backend, "_embed", timed)
    monkeypatch.setattr(backend, "_width", Width(lambda: now[0]))
    batch = TokenBatch(np.ones((1, 8), np.int64), np.ones((1, 8), np.int64))
    for _ in range(30):
        backend.embed(batch, exclusive=True)
    assert ran.count(True) > 24
    seconds[True] = 4.0  # somebody computes beside it
    ran.clear()
    for _ in range(60):
        backend.embed(batch, exclusive=True)
    assert ran[20:].count(False) > 30
    ran.clear()
    backend.embed(batch, exclusive=False)
    assert ran == [False]


@needs_openvino
def test_a_text_alone_takes_the_shape_of_those_before_it_where_a_change_takes_time() -> None:
    from embed_worker.accelerators.openvino.backend import OpenvinoBackend, accelerate

    plan, options = plan_for("bert-mean"), RuntimeOptions(provider="openvino", openvino_precision=FLOAT32)
    backend = accelerate(OnnxBackend.load(plan, options, threads=2), plan, TextTokenizer.load(plan), options, 2)
    assert isinstance(backend, OpenvinoBackend)
    backend.use_all_cores()
    assert backend._wide is not None
    backend._steady = SteadyLength(20)
    run, shapes = backend._wide.run, list[tuple[int, ...]]()

    def noted(feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        shapes.append(feeds["input_ids"].shape)
        return run(feeds)

    backend._wide.run = noted  # type: ignore[method-assign]
    backend._width = Width(lambda: 0.0)  # all cores, and no trial of the other way
    for tokens in (5, 19, 6, 40, 18, 39):
        batch = TokenBatch(np.arange(10, 10 + tokens)[None], np.ones((1, tokens), np.int64))
        found, expected = backend.embed(batch, exclusive=True), backend.embed(batch, exclusive=False)
        assert cosine_distances(found, expected).max() < 1e-5
    two = TokenBatch(np.full((2, 5), 10), np.ones((2, 5), np.int64))
    backend.embed(two, exclusive=True)
    assert shapes == [(1, 8), (1, 20), (1, 20), (1, 40), (1, 20), (1, 40), (2, 8)]


def test_what_a_change_of_shape_costs_is_told_in_tokens() -> None:
    plan = plan_for("bert-mean")
    cpu, tokenizer = OnnxBackend.load(plan, RuntimeOptions(), threads=1), TextTokenizer.load(plan)
    reference = Reference.of(cpu, tokenizer, buckets_of(384, plan.max_tokens), pad_left=False)
    now, last = [0.0], [0]

    def spare(a_token: float, a_change: float) -> int:
        def embed(batch: TokenBatch) -> Float32:
            tokens = batch.ids.shape[1]
            now[0] += 1 + a_token * tokens + a_change * (tokens != last[0])
            last[0] = tokens
            return np.zeros((1, 1), np.float32)

        return reference.spare_tokens(embed, lambda: now[0])

    assert spare(0.5, 15.25) == 30
    assert spare(0.5, 0.0) == 0
    assert spare(0.5, -0.25) == 0
    assert spare(0.0, 1.0) == 0
    assert spare(0.25, 1000.0) == 64


def test_a_proof_ends_at_the_first_bucket_that_is_wrong() -> None:
    """A large model takes half a minute for all."""
    plan = plan_for("bert-mean")
    cpu, tokenizer = OnnxBackend.load(plan, RuntimeOptions(), threads=1), TextTokenizer.load(plan)
    reference = Reference.of(cpu, tokenizer, buckets_of(384, plan.max_tokens), pad_left=False, threads=2)
    runs = {"right": 0, "wrong": 0}
    never = threading.Event()

    def right(batch: TokenBatch) -> Float32:
        runs["right"] += 1
        if runs["wrong"]:
            never.wait(0.05)  # so that it cannot be done before the other is
        return cpu.embed(batch, exclusive=False)

    def wrong(batch: TokenBatch) -> Float32:
        runs["wrong"] += 1
        vectors = cpu.embed(batch, exclusive=False)
        if runs["wrong"] == 3:
            vectors[0, :8] += 1
        return vectors

    assert reference.compare([right, right], 0.999999) > 0.999999
    assert runs == {"right": 2 * len(reference.buckets), "wrong": 0}
    with pytest.raises(ProofError, match=r"a cosine is 0\.\d+, and 0\.999 is needed"):
        reference.compare([right, wrong], 0.999)
    assert runs["wrong"] == 3
    assert runs["right"] < 3 * len(reference.buckets)


def test_other_processes_do_not_make_a_graph_look_slow() -> None:
    plan = plan_for("bert-mean")
    cpu, tokenizer = OnnxBackend.load(plan, RuntimeOptions(), threads=1), TextTokenizer.load(plan)
    reference = Reference.of(cpu, tokenizer, buckets_of(384, plan.max_tokens), pad_left=False)
    now = [0.0]

    def taking(*seconds: float) -> Callable[[TokenBatch], Float32]:
        turns = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def embed(_: TokenBatch) -> Float32:
            now[0] += next(turns)
            return np.zeros((1, 1), np.float32)

        return embed

    ours, others = taking(0.001, 9, 1, 9), taking(0.001, 4, 4)  # the first run of a shape prepares it
    assert reference.speed_ratio(ours, others, reference.buckets[0], lambda: now[0]) == 0.25


@given(st.integers(1, 200))
def test_no_core_is_left_out(threads: int) -> None:
    shares = shared_out(threads)
    assert sum(shares) == threads
    assert len(shares) == min(threads, 4)
    assert max(shares) - min(shares) <= 1
    assert shares[0] == max(shares)


RIGHT, WRONG, SLOW = 0.5, ProofError("differs from the CPU"), 1.3


@pytest.mark.parametrize(
    ("bfloat16", "float32", "chosen", "reason"),
    [
        (RIGHT, None, "bfloat16", "the processor multiplies bfloat16"),
        (None, RIGHT, "float32", "the processor does not have bfloat16"),
        (WRONG, RIGHT, "float32", "in bfloat16 it differs from the CPU"),
        (OpenvinoError("does not compile"), RIGHT, "float32", "in bfloat16 does not compile"),
        (SLOW, RIGHT, "float32", "bfloat16 takes 1.30 of the CPU's time"),
        (SLOW, 1.2, "float32", "bfloat16 takes 1.30 of the CPU's time"),
        (SLOW, 1.4, "bfloat16", "the processor multiplies bfloat16"),
        (SLOW, WRONG, "bfloat16", "the processor multiplies bfloat16"),
    ],
)
def test_by_itself_it_computes_in_bfloat16_where_that_is_right_and_not_slow(
    monkeypatch: pytest.MonkeyPatch,
    bfloat16: float | Exception | None,
    float32: float | Exception | None,
    chosen: str,
    reason: str,
) -> None:
    from embed_worker.accelerators.openvino.backend import _Attempt

    found = {OpenvinoPrecision.BFLOAT16: bfloat16, OpenvinoPrecision.FLOAT32: float32}

    def proved(_: object, precision: OpenvinoPrecision, why: str) -> tuple[tuple[str, str], float]:
        ratio = found[precision]
        if isinstance(ratio, Exception):
            raise ratio
        assert ratio is not None, "it was not to be tried"
        return (str(precision), why), ratio

    monkeypatch.setattr(_Attempt, "_proved", proved)
    runtime = SimpleNamespace(lists=lambda precision: found[precision] is not None)
    there: Any = None
    attempt = _Attempt(cast(Any, runtime), there, there, there, RuntimeOptions(provider="openvino"), 2)
    assert cast(Any, attempt.first_that_is_right()) == (chosen, reason)


@needs_openvino
def test_two_hundred_requests_at_once_are_answered_as_one_by_one(worker: WorkerProcess) -> None:
    texts = [" ".join(["word"] * (1 + number % 40)) for number in range(200)]
    worker.send(*({"id": number, "inputs": text, "model": "bert-mean"} for number, text in enumerate(texts)))
    answers = {answer["id"]: matrix_of(answer)[0] for answer in (worker.receive() for _ in texts)}
    alone = {text: matrix_of(worker.ask({"inputs": text, "model": "bert-mean"}))[0] for text in set(texts)}
    found = cosines(np.stack([answers[number] for number in range(200)]), np.stack([alone[text] for text in texts]))
    assert found.min() > 1 - 1e-4


@needs_openvino
def test_the_default_model_agrees_with_sentence_transformers() -> None:
    # Its graphs and their proof take twelve seconds of two cores, and many times that beside others.
    with WorkerProcess(
        "--provider", "openvino", model=ROOT / "models" / "all-MiniLM-L6-v2", wait_s=4 * WAIT_S
    ) as worker:
        info = worker.ask({"method": "info"})
        found = cosines(matrix_of(worker.ask({"inputs": TEXTS})), GOLDEN["embeddings"])
    assert found.min() >= MIN_COSINE[info["precision"]]
    assert info["precision"] in info["provider"]["reason"]
    assert info["provider"]["buckets"] > 50


def answers_of(*arguments: str, environment: dict[str, str] | None = None) -> tuple[dict[str, Any], int]:
    """Ask a worker for its `info` and for a vector."""
    done = subprocess.run(
        [sys.executable, "-m", "embed_worker", "--provider", "openvino", *arguments],
        input=b'{"id":1,"method":"info"}\n',
        env={**os.environ, **(environment or {})},
        cwd=ROOT,
        capture_output=True,
        timeout=2 * WAIT_S,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[0])
    return answer, done.returncode


@needs_openvino
def test_a_lesser_processor_serves_in_float32_with_the_reason_or_refuses() -> None:
    model = ("--model", str(MODELS / "bert-mean"))
    lesser = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    served, status = answers_of(*model, environment=lesser)
    assert (served["status"], served["precision"], status) == ("ok", "float32", 0)
    assert "bfloat16" in served["provider"]["reason"]
    refused, status = answers_of(*model, "--openvino-precision", "bfloat16", environment=lesser)
    assert (refused["status"], refused["code"], status) == ("error", "model_load_failed", 78)
    assert "cannot be run by OpenVINO" in refused["message"]


@needs_openvino
def test_a_graph_that_quantises_by_batch_is_refused_by_name() -> None:
    model = ("--model", str(MODELS / "xenova-bare"), "--variant", "quantized", "--pooling", "mean")
    refused, status = answers_of(*model)
    assert (refused["code"], status) == ("model_load_failed", 78)
    assert "values of the whole batch" in refused["message"]


@needs_openvino
def test_the_package_that_reports_its_use_is_not_loaded() -> None:
    statement = "from embed_worker.accelerators.openvino import runtime; runtime._import()"
    assert not [name for name in loaded_after(statement) if "telemetry" in name and not name.startswith("openvino.")]


def test_without_the_package_it_is_named() -> None:
    statement = (
        "import sys; sys.modules['openvino'] = None\n"
        "from embed_worker.accelerators.openvino import runtime\n"
        "from embed_worker.errors import ConfigError\n"
        "try: runtime._import()\n"
        "except ConfigError as error: assert 'the package openvino' in str(error), error\n"
        "else: raise SystemExit('it was there')"
    )
    loaded_after(statement)
