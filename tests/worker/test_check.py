"""`embed-worker check`: its gates on vectors made for them, and whole runs. No time is asserted."""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embed_worker.__main__ import run_tool
from embed_worker.arguments.running import running_arguments
from embed_worker.arguments.serve import make_config, make_parser
from embed_worker.config import RuntimeOptions
from embed_worker.model_files.known_models import Quality
from embed_worker.protocol import ErrorCode
from embed_worker.tools import check, worker_process
from embed_worker.tools.check import SpeedVerdict
from embed_worker.tools.quality import Embedded, Gate, judge_pairs, judge_references
from embed_worker.tools.references import References, ReferencesError, ReferenceSet, find_references
from embed_worker.tools.texts import SAMPLE_TEXTS, SIMILAR_PAIRS
from embed_worker.tools.worker_process import WorkerError, WorkerProcess, passed_on, worker_arguments
from tests.worker.harness import ROOT, TINY_MODEL, cosines

STORED = ROOT / "models" / "references"
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
    return [gate["name"] for gate in report["gates"] if gate["passed"] is False]


def write_json(file: Path, document: object) -> Path:
    file.write_text(json.dumps(document), "utf-8")
    return file


# The gates, on vectors made for them --------------------------------------------------------------------------------


class Pairs:
    """Gives the texts of a pair vectors at an angle, and every pair its own plane."""

    def __init__(self, similarity: float = 0.9, *, length: float = 1, common: float = 0) -> None:
        self.similarity, self.length, self.common = similarity, length, common
        self.prompts: list[str | None] = []

    def __call__(self, texts: Sequence[str], **request: Any) -> Embedded:
        self.prompts.append(request.get("prompt_name"))
        vectors = np.zeros((len(texts), 2 * len(SIMILAR_PAIRS) + 1), np.float32)
        for row, text in enumerate(texts):
            number, side = next((n, pair.index(text)) for n, pair in enumerate(SIMILAR_PAIRS) if text in pair)
            vectors[row, 2 * number] = self.similarity if side else 1
            vectors[row, 2 * number + 1] = np.sqrt(1 - self.similarity**2) if side else 0
            vectors[row, -1] = self.common
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors *= self.length / lengths
        return Embedded(vectors=vectors, tokens=(3,) * len(texts), truncated=())


def names_of_failed(gates: list[Gate]) -> list[str]:
    return [gate.name for gate in gates if gate.passed is False]


def test_good_vectors_pass_and_each_fault_fails_its_own_gates() -> None:
    assert names_of_failed(judge_pairs(Pairs(), QUALITY, normalizes=True)) == []
    assert names_of_failed(judge_pairs(Pairs(0.55), QUALITY, normalizes=True)) == ["similar_pairs_min"]
    assert names_of_failed(judge_pairs(Pairs(length=1.02), QUALITY, normalizes=True)) == ["norm_error"]
    assert names_of_failed(judge_pairs(Pairs(length=1.02), QUALITY, normalizes=False)) == []
    crowded = names_of_failed(judge_pairs(Pairs(common=2), QUALITY, normalizes=True))
    assert crowded == ["different_pairs_max", "separation"]


def test_without_limits_of_its_own_the_pairs_of_a_model_are_figures_and_no_judgement() -> None:
    gates = judge_pairs(Pairs(-0.1), None, normalizes=True)
    assert [gate.passed for gate in gates] == [True, None, None, None]
    assert {gate.name: gate.measured for gate in gates[1:]} == {
        "similar_pairs_min": -0.1,
        "different_pairs_max": 0,
        "separation": -0.1,
    }


def test_the_first_of_a_pair_is_a_query_and_the_second_a_document() -> None:
    embed = Pairs()
    judge_pairs(embed, QUALITY, normalizes=True)
    assert embed.prompts == ["query", "document"]


def test_what_is_not_a_number_passes_no_gate() -> None:
    assert not Gate.of("g", float("nan"), ">", 0).passed
    assert not Gate.of("g", float("nan"), "<", 0).passed


# Reference vectors, on answers made for them -------------------------------------------------------------------------

RIGHT = np.eye(3, 4, dtype=np.float32)
SETTINGS = {
    "dimension": 4,
    "pooling": ["cls"],
    "normalize": True,
    "max_tokens": 512,
    "default_prompt_name": None,
    "prompts": {"query": "query: ", "document": ""},
}
INFO = SETTINGS | {"precision": "float32", "prompts": {"query": "query: ", "document": "", "other": "x"}}


def references(min_cosine: float | None = None, settings: dict[str, Any] | None = None) -> References:
    texts = ("a", "b", "a long one")
    sets = [
        ReferenceSet(request=request, texts=texts, vectors=RIGHT, tokens=(3, 3, 600), truncated=(2,))
        for request in ({}, {"prompt_name": "query"})
    ]
    return References(source="s", sets=tuple(sets), settings=settings or {}, min_cosine=min_cosine)


class Answers:
    """Gives the right answer, except where it is told to be wrong."""

    def __init__(
        self, *, query: float = 0, cut: float = 0, plain: float = 0, length: float = 1, tokens: int = 3
    ) -> None:
        self.query, self.cut, self.plain, self.length, self.tokens = query, cut, plain, length, tokens

    def __call__(self, texts: Sequence[str], **request: Any) -> Embedded:
        wrong = np.zeros_like(RIGHT)
        wrong[2, 3] = self.cut
        wrong[:2, 3] = self.query if request else self.plain
        return Embedded(vectors=(RIGHT + wrong) * self.length, tokens=(3, self.tokens, 600), truncated=(2,))


def failed_references(answers: Answers, **info: Any) -> list[str]:
    return names_of_failed(judge_references(answers, references(settings=SETTINGS), INFO | info))


def test_each_fault_of_a_model_with_references_fails_under_its_own_name() -> None:
    assert failed_references(Answers()) == []
    assert failed_references(Answers(plain=0.1), pooling=["mean"]) == ["pooling", "references"]
    other_prompt = {"query": "Frage: ", "document": ""}
    assert failed_references(Answers(query=0.1), prompts=other_prompt) == ["prompt_query", "references_query"]
    assert failed_references(Answers(), default_prompt_name="query") == ["default_prompt_name"]
    assert failed_references(Answers(cut=0.1), max_tokens=256) == ["max_tokens", "references_cut"]
    assert failed_references(Answers(length=3), normalize=False) == ["normalize", "vector_length"]
    assert failed_references(Answers(tokens=4)) == ["wrong_tokens"]


def test_references_are_met_as_closely_as_the_precision_allows() -> None:
    near = Answers(plain=0.1, query=0.1, cut=0.1)  # cosines of 0.995
    for precision, passed in [("float32", False), ("float16", False), ("int8", True), ("int4", True)]:
        gates = judge_references(near, references(), INFO | {"precision": precision})
        assert (names_of_failed(gates) == []) is passed
    coarse = Answers(plain=0.3, query=0.3, cut=0.3)  # of 0.958: none of them is a full stop
    gates = judge_references(coarse, references(), INFO | {"precision": "int8"})
    assert names_of_failed(gates) == ["references_mean"]
    # What the file asks for is never made stricter.
    assert names_of_failed(judge_references(near, references(min_cosine=0.9), INFO)) == []


def test_references_of_another_dimension_fail_with_a_note() -> None:
    def embed(texts: Sequence[str], **request: Any) -> Embedded:
        return Embedded(vectors=np.eye(3, dtype=np.float32), tokens=(1, 1, 1), truncated=())

    (gate,) = judge_references(embed, references(), INFO)
    assert (gate.passed, gate.measured, gate.note) == (False, None, "3 components, and the references have 4")


@pytest.mark.parametrize(
    ("p95_ms", "verdict"), [(14.99, "excellent"), (15, "target"), (20, "close"), (29.9, "close"), (30, "miss")]
)
def test_the_verdict_is_that_of_the_95th_percentile(p95_ms: float, verdict: str) -> None:
    assert SpeedVerdict.of(p95_ms) == verdict


def test_speed_gates_fail_one_by_one() -> None:
    good: dict[str, Any] = {"single_p95_ms": 19.9, "batch_8_ms": 49.9, "batch_32_ms": 149.9, "texts_per_s": 100.1}
    others: dict[str, Any] = {"single_p50_ms": 1, "single_p99_ms": 1, "rounds": ()}
    assert names_of_failed(check.judge_speed(check.Speed(**good, **others))) == []
    for name, bad in {"single_p95_ms": 20.0, "batch_8_ms": 50.0, "batch_32_ms": 150.0, "texts_per_s": 100.0}.items():
        assert names_of_failed(check.judge_speed(check.Speed(**good | {name: bad}, **others))) == [name]


# Files of references ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(STORED.glob("*.json")), ids=lambda file: file.stem)
def test_what_is_stored_names_its_source_and_its_weights_and_knows_every_setting(file: Path) -> None:
    stored = find_references(file.stem.lower())
    assert stored is not None
    assert "sentence-transformers 6." in stored.source
    assert stored.settings.keys() >= {*SETTINGS, "weights"}
    assert all(len(sha256) == 64 for sha256 in stored.settings["weights"].values())
    plain, queries = stored.sets[:2]
    assert (plain.request, plain.texts) == ({}, SAMPLE_TEXTS)
    assert queries.request == {"prompt_name": "query"}
    assert plain.truncated is not None
    assert plain.tokens is not None
    assert max(plain.tokens) > stored.settings["max_tokens"]
    np.testing.assert_allclose(np.linalg.norm(plain.vectors, axis=1), 1, atol=1e-3)
    assert file.stat().st_size < 120_000


def test_references_are_found_by_the_name_or_in_the_folder(tmp_path: Path) -> None:
    assert find_references("no-such-model", tmp_path) is None
    write_json(tmp_path / "references.json", {"texts": ["x"], "embeddings": [[1, 2]]})
    own = find_references("all-MiniLM-L6-v2", tmp_path)
    assert own is not None
    assert own.sets[0].texts == ("x",)


def test_vectors_may_be_numbers_or_packed(tmp_path: Path) -> None:
    numbers = References.read(write_json(tmp_path / "a.json", {"texts": ["x"], "embeddings": [[1, 2]]}))
    for form, kind in [("embeddings_base64", "<f4"), ("embeddings_float16", "<f2")]:
        packed = base64.b64encode(np.array([1, 2], kind).tobytes()).decode()
        same = References.read(write_json(tmp_path / "b.json", {"sets": [{"texts": ["x"], form: [packed]}]}))
        np.testing.assert_array_equal(numbers.sets[0].vectors, same.sets[0].vectors)
    assert (numbers.min_cosine, numbers.sets[0].request, numbers.source, numbers.settings) == (
        None,
        {},
        "not stated",
        {},
    )


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
        ({"texts": ["a"], "embeddings": [[1]], "model": []}, "wrong type"),
        ({"texts": ["a"], "embeddings": [[1]], "request": {"model": "m"}}, "other members"),
        ({"texts": ["a"], "embeddings": [[1]], "tokens": [1, 2]}, "2 counts"),
        ({"texts": ["a"], "embeddings": [[1]], "truncated": [True]}, "whole numbers"),
        ({"sets": []}, "`sets`"),
        ({"sets": [1]}, "`texts`"),
    ],
    ids=str,
)
def test_what_are_no_references_is_refused(tmp_path: Path, document: object, sentence: str) -> None:
    with pytest.raises(ReferencesError, match=sentence):
        References.read(write_json(tmp_path / "r.json", document))


# Quickly ------------------------------------------------------------------------------------------------------------


def test_a_quick_check_loads_embeds_one_text_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, TINY_MODEL, "--quick", "--provider", "CPU", "--threads", "1", status=0)
    assert (report["model"], report["dimension"], report["precision"]) == ("bert-mean", 32, "float32")
    assert (report["provider"]["asked"], report["provider"]["chosen"]) == ("cpu", "CPUExecutionProvider")
    assert run(TINY_MODEL, "--quick") == 0
    assert capsys.readouterr().out.startswith("bert-mean: serves, float32, dimension 32, ")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--provider", "cudda"], 2, "did you mean `cuda`?"),
        (["--coreml-units", "some"], 2, "--coreml-units"),
        (["--mlx-precision", "float8"], 2, "--mlx-precision"),
        (["--openvino-precision", "float8"], 2, "--openvino-precision"),
        (["--threads", "0"], 2, "--threads"),
        (["--provider", "tvm"], 78, "no provider 'tvm'"),
        (["--variant", "nothing"], 78, "onnx/model_nothing.onnx"),
        (["--onnx-output", "nothing"], 78, "nothing"),
    ],
    ids=str,
)
def test_a_quick_check_ends_with_the_status_that_says_what_is_wrong(
    arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = 0
    try:
        ended = run_tool("check", [str(TINY_MODEL), "--quick", *arguments])
    except SystemExit as usage:
        ended = int(usage.code or 0)
    captured = capsys.readouterr()
    assert (ended, captured.out, captured.err.count("\n")) == (status, "", 1)
    assert says in captured.err


def test_every_option_of_a_provider_reaches_the_worker(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    options = [
        *("--provider", "openvino", "--threads", "3", "--coreml-units", "CPUOnly", "--coreml-precision", "fp16"),
        *("--coreml-cache", str(tmp_path), "--mlx-precision", "float16", "--openvino-precision", "bfloat16"),
    ]
    given = running_arguments(parser.parse_args(["m", *options]))
    assert given == options
    runtime = make_config(make_parser().parse_args(given)).runtime
    changed = {
        field.name for field in fields(runtime) if getattr(runtime, field.name) != getattr(RuntimeOptions(), field.name)
    }
    assert changed == {field.name for field in fields(runtime)} - {"batch_tokens", "batch_invariant", "verify"}
    assert running_arguments(parser.parse_args(["m"])) == []


# Whole runs ---------------------------------------------------------------------------------------------------------


def test_the_default_model_passes_its_gates(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, "--quality-only", status=0)
    measured = {gate["name"]: gate["measured"] for gate in report["gates"]}
    assert list(measured) == [
        "unusable_vectors",
        *("norm_error", "similar_pairs_min", "different_pairs_max", "separation"),
        *("dimension", "pooling", "normalize", "max_tokens", "default_prompt_name", "prompt_query", "prompt_document"),
        *("references", "references_query", "references_cut", "vector_length", "wrong_tokens", "wrong_truncated"),
    ]
    assert report["passed"] is True
    assert report["is_known"] is True
    assert report["speed"] is report["verdict"] is None
    assert report["provider"]["chosen"] == "CPUExecutionProvider"
    assert min(measured["references"], measured["references_query"], measured["references_cut"]) > 0.99999


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--pooling", "cls"], ["pooling", "references"]),
        (["--pooling", "weightedmean"], ["pooling", "references"]),
        (["--max-tokens", "200"], ["max_tokens", "references_cut"]),
        (["--no-normalize"], ["normalize", "vector_length"]),
    ],
    ids=str,
)
def test_a_known_model_served_wrongly_fails_and_the_fault_is_named(
    option: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(failed(report_of(capsys, "--quality-only", *option, status=1))) >= set(expected)


def test_a_known_model_with_another_prompt_fails_and_the_prompt_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "all-MiniLM-L6-v2"
    shutil.copytree(ROOT / "models/all-MiniLM-L6-v2", folder, ignore=shutil.ignore_patterns("manifest.json"))
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    report = report_of(capsys, folder, "--quality-only", status=1)
    assert set(failed(report)) >= {"prompt_query", "references_query"}


def test_a_model_without_references_is_not_judged_and_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(capsys, TINY_MODEL, status=3)
    assert failed(report) == []
    assert (report["passed"], report["references"], report["verdict"]) == (None, None, None)
    speed = report["speed"]
    assert len(speed["rounds"]) == 3
    for name in ("single_p50_ms", "single_p95_ms", "single_p99_ms", "batch_8_ms", "batch_32_ms"):
        assert speed[name] == min(measured[name] for measured in speed["rounds"]) > 0
    assert speed["texts_per_s"] == max(measured["texts_per_s"] for measured in speed["rounds"]) > 0


def test_a_file_of_references_judges_any_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads(TINY_MODEL.with_name("bert-mean.expected.json").read_text("utf-8"))
    case = next(case for case in expected["cases"] if case["dimensions"] is None and case["prompt_name"] is None)
    file = write_json(tmp_path / "r.json", {"texts": case["texts"], "embeddings": case["embeddings"]})
    report = report_of(capsys, TINY_MODEL, "--references", file, "--quality-only", status=0)
    assert (report["is_known"], report["references"], report["passed"]) == (False, "not stated", True)
    report = report_of(capsys, TINY_MODEL, "--references", file, "--quality-only", "--pooling", "max", status=1)
    assert "references" in failed(report)


def test_the_readable_report_ends_with_its_conclusion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TINY_MODEL, "--quality-only") == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("not judged: there is no reference to judge by")
    assert any(line.startswith("references: none are stored for it") for line in lines)
    assert next(line for line in lines if line.startswith("norm_error")).split()[-1] == "pass"
    assert next(line for line in lines if line.startswith("separation")).split()[0] == "separation"
    assert run("--quality-only", "--pooling", "cls") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("FAILED: ")
    assert next(line for line in lines if line.startswith("pooling")).split() == ["pooling", "cls", "=", "mean", "FAIL"]


def test_what_cannot_be_used_exits_with_78_and_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = shutil.copytree(TINY_MODEL, tmp_path / "damaged")
    (damaged / "onnx" / "model.onnx").write_bytes(b"not a graph")
    bare = ROOT / "tests" / "models" / "xenova-bare"
    unusable: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "nothing"], "no folder"),
        ([bare], "--pooling"),
        ([damaged], "cannot be used"),
        ([TINY_MODEL, "--provider", "tensorrt"], "tensorrt"),
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

        def embed(self, texts: Sequence[str], **request: Any) -> Embedded:
            raise WorkerError("input 1", exit_status=70, code=ErrorCode.NON_FINITE_EMBEDDING)

    worker: Any = Worker()
    (gate,) = check.judge_quality(worker, None, None)
    assert (gate.name, gate.passed, gate.measured, gate.note) == ("unusable_vectors", False, None, "input 1")


def test_limits_for_pairs_judge_nothing_where_there_is_no_reference() -> None:
    class Worker:
        def __init__(self) -> None:
            self.info = {"normalize": True}
            self.embed = Pairs(-0.1)

    worker: Any = Worker()
    assert names_of_failed(check.judge_quality(worker, QUALITY, None)) == []


# The worker process -------------------------------------------------------------------------------------------------


def test_a_worker_that_ends_is_an_error_and_not_a_hang() -> None:
    with WorkerProcess(["--model", str(TINY_MODEL)]) as worker:
        vectors = worker.embed(["a text", "another"]).vectors
        assert vectors.shape == (2, worker.info["dimension"])
        assert cosines(vectors[:1], worker.embed(["a text"]).vectors).min() > 0.999999
        assert worker.time_s(["a text"]) > 0
        with pytest.raises(WorkerError) as refused:
            worker.embed(["a text"], prompt_name="no-such-prompt")
        assert refused.value.code == ErrorCode.INVALID_REQUEST
        os.kill(worker.info["pid"], getattr(signal, "SIGKILL", signal.SIGTERM))
        with pytest.raises(WorkerError, match="ended with status") as ended:
            worker.embed(["a text"])
        assert ended.value.exit_status == 70


@pytest.mark.parametrize(
    ("status", "then"),
    [(0, 70), (-9, 70), (1, 70), (3, 70), (9, 70), (15, 70), (0xC0000005, 70), (70, 70), (2, 2), (75, 75), (78, 78)],
)
def test_the_death_of_a_worker_is_no_verdict_on_its_model(status: int, then: int) -> None:
    """With 1 and 3 `check` says that a gate failed, and that there is no reference."""
    assert passed_on(status) == then


def test_options_that_settle_a_folder_reach_the_worker(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    settled = ["--pooling", "max", "--no-normalize", "--max-tokens", "9", "--variant", "fp16"]
    arguments = worker_arguments(parser.parse_args(["m", *settled]), tmp_path)
    given = set(zip(arguments, [*arguments[1:], ""], strict=True))
    assert {("--model", str(tmp_path)), ("--pooling", "max"), ("--max-tokens", "9"), ("--variant", "fp16")} <= given
    assert "--no-normalize" in arguments
    assert worker_arguments(parser.parse_args(["m"]), tmp_path) == ["--model", str(tmp_path)]


def test_a_worker_that_closes_its_output_and_stays_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stays = [sys.executable, "-c", "import os, time; os.close(1); time.sleep(600)"]
    popen = subprocess.Popen
    monkeypatch.setattr(worker_process, "_END_TIMEOUT_S", 2.0)
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: popen(stays, **options))
    with pytest.raises(WorkerError, match="the worker ended with status"):
        WorkerProcess([])
