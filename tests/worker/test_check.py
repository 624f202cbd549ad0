"""`embed-worker check`: its gates on vectors made for them, and whole runs. No time is asserted."""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embed_worker.model_files.known_models import Quality
from embed_worker.protocol import ErrorCode
from embed_worker.tools import check
from embed_worker.tools.check import Verdict
from embed_worker.tools.quality import (
    Gate,
    References,
    ReferencesError,
    find_references,
    is_quantized,
    judge_pairs,
    judge_references,
)
from embed_worker.tools.texts import SIMILAR_PAIRS
from embed_worker.tools.worker_process import WorkerError, WorkerProcess, worker_arguments
from tests.worker.harness import ROOT, TINY_MODEL, cosines

GOLDEN = json.loads((ROOT / "tests" / "goldens" / "minilm_golden.json").read_text("utf-8"))
STORED = ROOT / "models" / "references" / "all-MiniLM-L6-v2.json"
QUALITY = Quality(similar_min=0.6, different_max=0.4, separation_min=0.2)

Float32 = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _no_models_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBED_WORKER_MODELS", raising=False)


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="embed-worker check")
    check.add_arguments(parser)
    return check.run(parser.parse_args([str(argument) for argument in arguments]))


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int) -> dict[str, Any]:
    """Run a check with `--json`; return its report."""
    assert run(*arguments, "--json") == status
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert isinstance(report, dict)
    return report


def failed(report: dict[str, Any]) -> list[str]:
    return [gate["name"] for gate in report["gates"] if not gate["passed"]]


def write_json(file: Path, document: object) -> Path:
    file.write_text(json.dumps(document), "utf-8")
    return file


# The gates, on vectors made for them --------------------------------------------------------------------------------


class Pairs:
    """Gives the texts of a pair vectors at an angle, and every pair its own plane."""

    def __init__(self, similarity: float = 0.9, *, length: float = 1, common: float = 0) -> None:
        self.similarity, self.length, self.common = similarity, length, common
        self.prompts: list[str | None] = []

    def __call__(self, texts: Sequence[str], *, prompt_name: str | None = None) -> Float32:
        self.prompts.append(prompt_name)
        vectors = np.zeros((len(texts), 2 * len(SIMILAR_PAIRS) + 1), np.float32)
        for row, text in enumerate(texts):
            number, side = next((n, pair.index(text)) for n, pair in enumerate(SIMILAR_PAIRS) if text in pair)
            vectors[row, 2 * number] = self.similarity if side else 1
            vectors[row, 2 * number + 1] = np.sqrt(1 - self.similarity**2) if side else 0
            vectors[row, -1] = self.common
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors *= self.length / lengths
        return vectors


def names_of_failed(gates: list[Gate]) -> list[str]:
    return [gate.name for gate in gates if not gate.passed]


def test_good_vectors_pass_and_each_fault_fails_its_own_gates() -> None:
    assert names_of_failed(judge_pairs(Pairs(), QUALITY, normalizes=True)) == []
    assert names_of_failed(judge_pairs(Pairs(0.55), QUALITY, normalizes=True)) == ["similar_pairs_min"]
    assert names_of_failed(judge_pairs(Pairs(length=1.02), QUALITY, normalizes=True)) == ["norm_error"]
    assert names_of_failed(judge_pairs(Pairs(length=1.02), QUALITY, normalizes=False)) == []
    crowded = names_of_failed(judge_pairs(Pairs(common=2), QUALITY, normalizes=True))
    assert crowded == ["different_pairs_max", "separation"]


def test_any_model_must_bring_a_pair_nearer_than_two_texts_of_two_pairs() -> None:
    gates = judge_pairs(Pairs(0.3, common=2), None, normalizes=True)
    assert [gate.name for gate in gates] == ["norm_error", "separation"]
    assert names_of_failed(gates) == []
    assert names_of_failed(judge_pairs(Pairs(-0.1), None, normalizes=True)) == ["separation"]


def test_the_first_of_a_pair_is_a_query_and_the_second_a_document() -> None:
    embed = Pairs()
    judge_pairs(embed, QUALITY, normalizes=True)
    assert embed.prompts == ["query", "document"]


def test_what_is_not_a_number_passes_no_gate() -> None:
    assert not Gate.of("g", float("nan"), ">", 0).passed
    assert not Gate.of("g", float("nan"), "<", 0).passed


def references(vectors: Float32, min_cosine: float = 0.9999) -> References:
    return References(source="s", texts=("a", "b"), vectors=vectors, min_cosine=min_cosine, prompt_name=None)


def test_references_are_met_as_closely_as_the_precision_allows() -> None:
    exact = np.eye(2, 3, dtype=np.float32)
    near = exact + np.array([0, 0, 0.1], np.float32)  # a cosine of 0.995

    def embed(texts: Sequence[str], *, prompt_name: str | None = None) -> Float32:
        return near

    assert judge_references(lambda texts, *, prompt_name=None: 3 * exact, references(exact), "float32", set()).passed
    for precision, operators, passed in [
        ("float32", {"MatMul"}, False),
        ("float16", {"MatMul"}, False),
        ("float32", {"MatMulIntegerToFloat"}, True),
    ]:
        assert judge_references(embed, references(exact), precision, operators).passed is passed
    # What the file asks for is never made stricter.
    assert judge_references(embed, references(exact, min_cosine=0.9), "float32", set()).passed


def test_references_of_another_dimension_fail_with_a_note() -> None:
    gate = judge_references(
        lambda texts, *, prompt_name=None: np.eye(2, 4, dtype=np.float32),
        references(np.eye(2, 3, dtype=np.float32)),
        "float32",
        set(),
    )
    assert (gate.passed, gate.measured, gate.note) == (False, None, "dimension 4, and the references have 3")


@pytest.mark.parametrize(
    "operator",
    ["DynamicQuantizeLinear", "DequantizeLinear", "MatMulInteger", "MatMulNBits", "QLinearMatMul", "QAttention"],
)
def test_quantized_graphs_are_known_by_their_operators(operator: str) -> None:
    assert is_quantized({"MatMul", operator})
    assert not is_quantized({"MatMul", "Gather", "LayerNormalization", "Cast"})


@pytest.mark.parametrize(
    ("p95_ms", "verdict"), [(14.99, "excellent"), (15, "target"), (20, "close"), (29.9, "close"), (30, "miss")]
)
def test_the_verdict_is_that_of_the_95th_percentile(p95_ms: float, verdict: str) -> None:
    assert Verdict.of(p95_ms) == verdict


def test_speed_gates_fail_one_by_one() -> None:
    good: dict[str, Any] = {"single_p95_ms": 19.9, "batch_8_ms": 49.9, "batch_32_ms": 149.9, "texts_per_s": 100.1}
    others: dict[str, Any] = {"single_p50_ms": 1, "single_p99_ms": 1, "rounds": ()}
    assert names_of_failed(check.judge_speed(check.Speed(**good, **others))) == []
    for name, bad in {"single_p95_ms": 20.0, "batch_8_ms": 50.0, "batch_32_ms": 150.0, "texts_per_s": 100.0}.items():
        assert names_of_failed(check.judge_speed(check.Speed(**good | {name: bad}, **others))) == [name]


# Files of references ------------------------------------------------------------------------------------------------


def test_the_stored_references_are_vectors_of_the_goldens() -> None:
    stored = find_references("all-MiniLM-L6-v2")
    assert stored is not None
    assert GOLDEN["reference"] in stored.source
    assert len(stored.texts) >= 8
    for text, vector in zip(stored.texts, stored.vectors, strict=True):
        np.testing.assert_array_equal(vector, np.array(GOLDEN["embeddings"][GOLDEN["texts"].index(text)], np.float32))
    assert STORED.stat().st_size < 40_000
    assert find_references("no-such-model") is None


def test_references_may_be_numbers_or_base64(tmp_path: Path) -> None:
    numbers = References.read(write_json(tmp_path / "a.json", {"texts": ["x"], "embeddings": [[1, 2]]}))
    packed = base64.b64encode(np.array([1, 2], np.float32).tobytes()).decode()
    same = References.read(write_json(tmp_path / "b.json", {"texts": ["x"], "embeddings_base64": [packed]}))
    np.testing.assert_array_equal(numbers.vectors, same.vectors)
    assert (numbers.min_cosine, numbers.prompt_name, numbers.source) == (0.9999, None, "not stated")
    assert len(References.read(ROOT / "tests" / "goldens" / "minilm_golden.json").texts) == 96


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([], "`texts`"),
        ({"texts": [], "embeddings": []}, "`texts`"),
        ({"texts": ["a", 1], "embeddings": [[1], [1]]}, "`texts`"),
        ({"texts": ["a"]}, "no usable"),
        ({"texts": ["a"], "embeddings": [["x"]]}, "no usable"),
        ({"texts": ["a"], "embeddings": 1}, "not of one size"),
        ({"texts": ["a", "b"], "embeddings": [[1], [1, 2]]}, "no usable"),
        ({"texts": ["a"], "embeddings": [[0, 0]]}, "zero"),
        ({"texts": ["a"], "embeddings": [[]]}, "zero"),
        ({"texts": ["a"], "embeddings": [[float("nan")]]}, "not finite"),
        ({"texts": ["a"], "embeddings_base64": ["!"]}, "no usable"),
        ({"texts": ["a"], "embeddings_base64": ["AAAA"]}, "no usable"),
        ({"texts": ["a"], "embeddings": [[1], [1]]}, "1 texts and 2 vectors"),
        ({"texts": ["a"], "embeddings": [[1]], "min_cosine": "0.9"}, "wrong type"),
        ({"texts": ["a"], "embeddings": [[1]], "prompt_name": 1}, "wrong type"),
    ],
    ids=str,
)
def test_what_are_no_references_is_refused(tmp_path: Path, document: object, sentence: str) -> None:
    with pytest.raises(ReferencesError, match=sentence):
        References.read(write_json(tmp_path / "r.json", document))


# Whole runs ---------------------------------------------------------------------------------------------------------


def test_the_default_model_passes_its_gates(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, "--quality-only", status=0)
    assert [gate["name"] for gate in report["gates"]] == [
        "unusable_vectors",
        "norm_error",
        "similar_pairs_min",
        "different_pairs_max",
        "separation",
        "references",
    ]
    assert report["passed"] is True
    assert report["is_known"] is True
    assert report["speed"] is report["verdict"] is None
    assert report["provider"]["chosen"] == "CPUExecutionProvider"
    assert report["gates"][-1]["measured"] > 0.99999


def test_with_the_wrong_pooling_the_default_model_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert "references" in failed(report_of(capsys, "--quality-only", "--pooling", "cls", status=1))
    # Pairs alone do not see this one.
    assert failed(report_of(capsys, "--no-latency", "--pooling", "weightedmean", status=1)) == ["references"]


def test_a_model_that_is_not_known_has_the_gates_of_any_and_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads(TINY_MODEL.with_name("bert-mean.expected.json").read_text("utf-8"))
    case = next(case for case in expected["cases"] if case["dimensions"] is None and case["prompt_name"] is None)
    file = write_json(tmp_path / "r.json", {"texts": case["texts"], "embeddings": case["embeddings"]})
    report = report_of(capsys, TINY_MODEL, "--references", file, status=1)
    # Its weights are random: nothing is similar to anything.
    assert failed(report) == ["separation"]
    assert [gate["name"] for gate in report["gates"]] == ["unusable_vectors", "norm_error", "separation", "references"]
    assert (report["is_known"], report["references"]) == (False, "not stated")

    speed = report["speed"]
    assert len(speed["rounds"]) == 3
    for name in ("single_p50_ms", "single_p95_ms", "single_p99_ms", "batch_8_ms", "batch_32_ms"):
        assert speed[name] == min(measured[name] for measured in speed["rounds"]) > 0
    assert speed["texts_per_s"] == max(measured["texts_per_s"] for measured in speed["rounds"]) > 0
    assert report["verdict"] == Verdict.of(speed["single_p95_ms"])


def test_the_readable_report_ends_with_the_verdict_and_says_which_gates_apply(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(TINY_MODEL, "--quality-only") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "FAILED: 1 of 3 gates failed: separation"
    assert "the table of known models has no gates for it: those of any model apply" in lines
    assert next(line for line in lines if line.startswith("norm_error")).split()[-1] == "pass"
    assert next(line for line in lines if line.startswith("separation")).split()[-1] == "FAIL"


def test_what_cannot_be_used_exits_with_78_and_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = shutil.copytree(TINY_MODEL, tmp_path / "damaged")
    (damaged / "onnx" / "model.onnx").write_bytes(b"not a graph")
    bare = ROOT / "tests" / "models" / "xenova-bare"
    unusable: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "nothing"], "no folder"),
        ([bare], "--pooling"),
        ([damaged], "cannot be used"),
        ([TINY_MODEL, "--provider", "nonsense"], "nonsense"),
        ([TINY_MODEL, "--references", tmp_path / "none.json"], "none.json cannot be read"),
    ]
    for arguments, sentence in unusable:
        assert run(*arguments, "--quality-only") == 78
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert captured.err.startswith("embed-worker check: ")
        assert sentence in captured.err


def test_vectors_that_cannot_be_used_fail_a_gate() -> None:
    class Worker:
        def __init__(self) -> None:
            self.info = {"normalize": True}

        def embed(self, texts: Sequence[str], *, prompt_name: str | None = None) -> Float32:
            raise WorkerError("input 1", exit_status=70, code=ErrorCode.NON_FINITE_EMBEDDING)

    worker: Any = Worker()
    (gate,) = check.judge_quality(worker, None, None, frozenset())
    assert (gate.name, gate.passed, gate.measured, gate.note) == ("unusable_vectors", False, None, "input 1")


# The worker process -------------------------------------------------------------------------------------------------


def test_a_worker_that_ends_is_an_error_and_not_a_hang() -> None:
    with WorkerProcess(["--model", str(TINY_MODEL)]) as worker:
        vectors = worker.embed(["a text", "another"])
        assert vectors.shape == (2, worker.info["dimension"])
        assert cosines(vectors[:1], worker.embed(["a text"])).min() > 0.999999
        assert worker.time_s(["a text"]) > 0
        with pytest.raises(WorkerError) as refused:
            worker.embed(["a text"], prompt_name="no-such-prompt")
        assert refused.value.code == ErrorCode.INVALID_REQUEST
        os.kill(worker.info["pid"], getattr(signal, "SIGKILL", signal.SIGTERM))
        with pytest.raises(WorkerError, match="ended with status") as ended:
            worker.embed(["a text"])
        assert ended.value.exit_status == 70


def test_options_that_settle_a_folder_reach_the_worker(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    settled = ["--pooling", "max", "--no-normalize", "--max-tokens", "9", "--variant", "fp16"]
    arguments = worker_arguments(parser.parse_args(["m", *settled]), tmp_path)
    given = set(zip(arguments, [*arguments[1:], ""], strict=True))
    assert {("--model", str(tmp_path)), ("--pooling", "max"), ("--max-tokens", "9"), ("--variant", "fp16")} <= given
    assert "--no-normalize" in arguments
    assert worker_arguments(parser.parse_args(["m"]), tmp_path) == ["--model", str(tmp_path)]
