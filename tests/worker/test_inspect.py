"""`embed-worker inspect`: every decision with its reason, for people and for programs."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from embed_worker import machine
from embed_worker.model_files.manifest import Manifest
from embed_worker.tools.inspect import command as inspect
from tests.worker.harness import ROOT
from tests.worker.test_model_folder import EXPECTED, MODELS

MEMBERS = {
    "format", "name", "folder", "fingerprint", "source", "license", "is_verified_at_load", "known_as", "graph_file",
    "other_graphs", "pooling", "include_prompt", "dense", "normalize", "max_tokens", "prompts", "default_prompt_name",
    "dimension", "precision", "batch_invariant",
        "one_by_one",
        "tolerance", "vocabulary", "ignored_of_tokenizer_json", "graph", "decisions",
    "warnings",
}  # fmt: skip
GRAPH_MEMBERS = {
    "opset", "domains", "producer", "inputs", "outputs", "operators", "parameters", "weight_bytes", "table_rows",
    "quantization", "external_files", "resident_bytes",
}  # fmt: skip


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args(list(arguments)))


def report_on(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    report: dict[str, Any] = json.loads(line)
    return report


def options_of(name: str) -> list[str]:
    return [] if (MODELS / name / "modules.json").exists() else ["--pooling", "mean"]


@pytest.mark.parametrize("name", ["vocabulary-only-mpnet", "potion-base-8M", "static-retrieval-mrl-en-v1", "chat-flat"])
def test_folders_without_a_graph_or_a_tokenizer_json_are_explained(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if "chat" in name:
        pytest.importorskip("jinja2")
    report = report_on(capsys, str(MODELS.parent / "layouts" / name / "model"))
    assert set(report) == MEMBERS
    assert (report["graph"] is None) == ("chat" not in name and "vocabulary" not in name)
    assert report["ignored_of_tokenizer_json"] == {}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_family_is_explained(capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder, told = MODELS / name, EXPECTED[name]["model"]
    report = report_on(capsys, str(folder), *options_of(name))
    assert set(report) == MEMBERS
    assert set(report["graph"]) == GRAPH_MEMBERS
    assert (report["format"], report["name"], report["graph_file"]) == (inspect.FORMAT, name, "onnx/model.onnx")
    assert (report["max_tokens"], report["prompts"]) == (told["max_seq_length"], told["prompts"])
    assert report["normalize"] == told["normalize"]
    assert report["pooling"] == told["pooling"]
    assert report["fingerprint"]
    sources = {decision["subject"]: decision["source"] for decision in report["decisions"]}
    assert {"graph", "pooling", "normalize", "max_tokens", "prompts"} <= sources.keys()
    assert ("vectors" in sources) == (name == "gemma-graph-pooled")
    assert {"input_ids", "attention_mask"} <= {tensor["name"] for tensor in report["graph"]["inputs"]}
    assert report["graph"]["table_rows"] >= report["vocabulary"]
    assert 80e6 < report["graph"]["resident_bytes"] < 100e6
    assert 1e4 < report["graph"]["parameters"] < 1e6


@pytest.mark.parametrize("name", EXPECTED)
def test_people_read_what_programs_read(capsys: pytest.CaptureFixture[str], name: str) -> None:
    report = report_on(capsys, str(MODELS / name), *options_of(name))
    assert run(str(MODELS / name), *options_of(name)) == 0
    text = capsys.readouterr().out
    for decision in report["decisions"]:
        assert re.search(rf"{decision['subject']} .* {re.escape(decision['source'])}$", text, re.MULTILINE)
    for wanted in (report["fingerprint"], *report["prompts"], *report["other_graphs"], *report["warnings"]):
        assert wanted in text


def test_the_default_model_is_what_is_inspected_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_on(capsys)
    assert (report["name"], report["license"], report["is_verified_at_load"]) == (
        "all-MiniLM-L6-v2",
        "Apache-2.0",
        True,
    )
    assert set(report["ignored_of_tokenizer_json"]) == {"truncation", "padding"}
    assert report["graph"]["parameters"] == pytest.approx(22.6e6, rel=0.01)
    assert report["warnings"] == []


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ('---\nlicense: "mit"  # as the paper says\n---\n', "mit"),
        ("---\r\nlicense: cc-by-4.0\r\n---\r\n", "cc-by-4.0"),
        ("---\nlicense:\n- mit\n- gemma\ntags:\n- license: none\n---\n", "mit, gemma"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\nlicense: other\nlicense_name: a-name\n---\n", "a-name"),
        ("---\nmodel:\n  license: mit\n---\n", None),
        ("# A model\n\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_the_licence_is_read_from_the_head_of_the_model_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str, licence: str | None
) -> None:
    folder = Path(shutil.copytree(MODELS / "bert-mean", tmp_path / "m"))
    (folder / "README.md").write_bytes(head.encode())
    assert report_on(capsys, str(folder))["license"] == licence


def test_a_quantised_graph_is_flagged(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_on(capsys, str(MODELS / "xenova-bare"), "--variant", "quantized", "--pooling", "mean")
    assert report["graph"]["quantization"] == "int8"
    assert any("--batch-invariant" in warning for warning in report["warnings"])
    assert report_on(capsys, str(MODELS / "bert-mean"))["graph"]["quantization"] is None


def changed(tmp_path: Path, change: str) -> Path:
    """Copy a folder whose graph has inputs of a fixed shape, for one text, or a smaller table than the tokenizer."""
    folder = tmp_path / "changed"
    shutil.copytree(MODELS / "bert-mean", folder)
    model = onnx.load(folder / "onnx/model.onnx")
    if change in ("fixed", "single"):
        for tensor in model.graph.input:
            axis, size = (1, 128) if change == "fixed" else (0, 1)
            tensor.type.tensor_type.shape.dim[axis].dim_value = size
    else:
        table = max(model.graph.initializer, key=lambda tensor: tensor.dims[0] if len(tensor.dims) == 2 else 0)
        width = table.dims[1]
        table.raw_data = table.raw_data[: 990 * width * 4]
        table.dims[0] = 990
    onnx.save(model, folder / "onnx/model.onnx")
    return folder


@pytest.mark.parametrize(("change", "words"), [("single", "one text at a time"), ("table", "a table of 990")])
def test_what_would_fail_later_is_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, change: str, words: str
) -> None:
    report = report_on(capsys, str(changed(tmp_path, change)))
    assert any(words in warning for warning in report["warnings"])


def test_what_a_worker_refuses_gets_no_clean_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(str(changed(tmp_path, "fixed"))) == 78
    assert "a graph for texts of one fixed shape" in capsys.readouterr().err


def test_a_file_that_nobody_reads_and_that_is_none_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS / "bert-mean", tmp_path / "m"))
    (folder / "README.md").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "utf-8")
    (warning,) = report_on(capsys, str(folder))["warnings"]
    assert warning.startswith("README.md is a Git LFS pointer")


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (None, "no manifest.json: files are not verified"),
        ((), "verified at load, but for files that manifest.json does not list"),
        (("onnx/model.onnx", "tokenizer.json"), "verified at load"),
    ],
)
def test_what_is_verified_is_told_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, listed: tuple[str, ...] | None, words: str
) -> None:
    folder = Path(shutil.copytree(MODELS / "bert-mean", tmp_path / "m"))
    if listed is not None:
        every = Manifest.of_folder(folder, name="m", source="here", license="none")
        files = {path: record for path, record in every.files.items() if path in listed}
        replace(every, files=files).write(folder)
    assert run(str(folder)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "fingerprint" in line]
    assert line.partition(", ")[2] == words


def test_without_the_package_onnx_the_plan_is_told_and_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    report = report_on(capsys, str(MODELS / "bert-mean"))
    assert report["graph"] is None
    assert any("embed-bridge[tools]" in warning for warning in report["warnings"])
    assert report["pooling"] == ["mean"]
    assert run(str(MODELS / "bert-mean")) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([str(MODELS / "xenova-bare")], "decide it with --pooling"),
        (["no-such-model"], "no model 'no-such-model'"),
        ([str(MODELS / "bert-mean"), "--variant", "int4"], "has no onnx/model_int4.onnx"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(*arguments) == 78
    written = capsys.readouterr()
    assert written.out == ""
    assert words in written.err
    assert len(written.err.splitlines()) == 1


def test_the_forecast_for_coreml_tells_of_both_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    forecast = report_on(capsys, str(MODELS / "bert-cls-new"), "--provider", "coreml")["forecast"]
    assert {(found["batch"], found["length"]) for found in forecast["dedicated"]} >= {(1, 32), (8, 64)}
    assert all((found["partitions"], found["cpu_nodes"]) == (1, []) for found in forecast["dedicated"])
    assert forecast["own"]["nodes"] == forecast["own"]["coreml_nodes"] + len(forecast["own"]["cpu_nodes"])
    assert any("one partition" in sentence for sentence in forecast["sentences"])


def test_a_model_that_has_no_dedicated_graph_is_told_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(MODELS / "bert-mean", folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nomic_bert"}), "utf-8")
    forecast = report_on(capsys, str(folder), "--provider", "coreml")["forecast"]
    assert forecast["dedicated"] == []
    assert any(sentence.startswith("no dedicated graph: ") for sentence in forecast["sentences"])


def test_how_texts_share_a_run_is_told_as_the_warm_up_has_found_it(capsys: pytest.CaptureFixture[str]) -> None:
    cases = ROOT / "tests" / "cases"
    alone = report_on(capsys, str(cases / "13-no-attention-mask" / "model"))
    assert (alone["one_by_one"], alone["tolerance"]) == ("neighbours would change its vector", 1e-6)
    assert any("each text runs by itself" in warning for warning in alone["warnings"])
    moved = report_on(capsys, str(cases / "14-left-padding-absolute" / "model"))
    assert moved["one_by_one"] is None
    assert {"subject": "padding", "value": "right"}.items() <= next(
        decision for decision in moved["decisions"] if decision["subject"] == "padding"
    ).items()


def test_the_sample_on_the_page_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "choose_threads", lambda stated, environment: machine.Threads(value=2, reason="two"))
    assert run() == 0
    printed = capsys.readouterr().out.replace(str(ROOT), "…").replace(os.sep, "/")
    printed = re.sub(r"SHA-256 (\w{4})\w+", r"SHA-256 \1…", printed)
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    assert f"$ embed-worker inspect\n{printed}```" in page
