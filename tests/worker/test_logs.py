"""What is logged: fields for programs, sentences for people, and nothing that forges a line of either."""

from __future__ import annotations

import ast
import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from embed_worker.logs import JsonFormatter, TextFormatter
from tests import walls
from tests.worker.harness import ROOT, TINY_MODEL, lines_of, run_worker

HOSTILE = "red\x1b[31m\n2030-01-01 00:00:00,000 ERROR forged\r\x9b2J\x85\u2028\u202eend"
TEXT = TextFormatter("%(levelname)s %(name)s %(message)s")


def record_of(message: object, *values: object, name: str = "embed_worker.loading", **more: Any) -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, "file.py", 1, message, values, more.get("exc_info"))


def json_of(*arguments: Any, **more: Any) -> dict[str, Any]:
    line = JsonFormatter().format(record_of(*arguments, **more))
    assert re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", line) is None
    loaded: dict[str, Any] = json.loads(line)
    return {name: value for name, value in loaded.items() if name not in ("time", "level", "logger")}


def test_a_template_is_an_event_and_its_fields() -> None:
    template = "model loaded name=%s dimension=%d share=%.2f ms=%.0f"
    values = ("mine", 384, 0.123, 1234.5678)
    assert json_of(template, *values) == {
        "message": "model loaded",
        "name": "mine",
        "dimension": 384,
        "share": 0.12,
        "ms": 1235,
    }
    assert TEXT.format(record_of(template, *values)).endswith("model loaded name=mine dimension=384 share=0.12 ms=1235")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("a micro-batch failed rows=%d reason=%s; each row is tried alone", 3, "x y=z"),
         {"message": "a micro-batch failed; each row is tried alone", "rows": 3, "reason": "x y=z"}),
        (("model=%s each text runs by itself: %s", "m", "it has no mask"),
         {"message": "each text runs by itself", "model": "m", "detail": "it has no mask"}),
        (("model=%s %s", "m", "100 % of it"), {"message": "100 % of it", "model": "m"}),
        (("inference failed code=inference_failed tokens=%d", 7),
         {"message": "inference failed", "code": "inference_failed", "tokens": 7}),
        (("shape=%s ms=%d", (1, 2), 3), {"message": "shape=(1, 2) ms=3", "shape": "(1, 2)", "ms": 3}),
        (("out of memory",), {"message": "out of memory"}),
        (("[%d] %s", 12, "name=value"), {"message": "[12] name=value"}),
        ((ValueError("no template"),), {"message": "no template"}),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_the_event_is_the_same_words_whatever_the_fields_are(
    arguments: tuple[Any, ...], expected: dict[str, object]
) -> None:
    assert json_of(*arguments) == expected


def test_records_of_other_packages_are_sentences() -> None:
    assert json_of("retry=%d of %s", 1, "x", name="urllib3") == {"message": "retry=1 of x"}


def test_no_value_forges_a_line_or_moves_a_cursor() -> None:
    told = json_of("model not loaded name=%s reason=%s", HOSTILE, "a=b code=ok")
    assert told == {"message": "model not loaded", "name": HOSTILE, "reason": "a=b code=ok"}
    line = TEXT.format(record_of("model not loaded name=%s", HOSTILE))
    assert line.isprintable()
    assert "forged" in line


def test_no_error_forges_a_record() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        failed = record_of("internal error line=%d", 3, exc_info=sys.exc_info())
    head, *traceback = TEXT.format(failed).split("\n")
    assert head.endswith("internal error line=3")
    assert all(line.startswith("  ") and line.isprintable() for line in traceback)
    told = json.loads(JsonFormatter().format(failed))
    assert (told["line"], HOSTILE in told["traceback"]) == (3, True)


@pytest.mark.skipif(sys.platform == "win32", reason="its names have no such characters")
def test_a_worker_with_hostile_names_logs_one_line_a_record(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b[2Jb\nc"
    shutil.copytree(TINY_MODEL, folder / "mine")
    (folder / "mine" / "adapter_config.json").write_text("{}")
    hostile = {"id": HOSTILE, "method": "load_model", "model": HOSTILE}
    data = lines_of({"id": 1, "inputs": "x"}, hostile, {"id": 2, "method": "load_model", "model": str(folder)})
    for model in (folder / "mine", folder):
        options = ("--model", str(model), "--log-level", "debug")
        text = run_worker(data, *options, model=None)[2]
        assert all(line.isprintable() for line in text.split("\n"))
        assert all(re.match(r"\d{4}-\d\d-\d\d |  ", line) for line in text.splitlines())
        lines = run_worker(data, *options, "--log-format", "json", model=None)[2].split("\n")
        assert all(line.isprintable() for line in lines)
        records = [json.loads(line) for line in lines if line]
        assert all(record["message"].isprintable() for record in records)
        events = {record["message"]: record for record in records}
        if model is folder:
            assert "rename it" in events["model not loaded"]["reason"]
        else:
            assert (events["model loaded"]["name"], events["model loaded"]["dimension"]) == ("mine", 32)


def test_our_templates_have_one_value_without_a_name_at_most() -> None:
    for module, path in walls.modules(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_log")), args=[ast.Constant(value=str(text)), *_]):
                    unnamed = len(re.findall(r"(?<!=)%[\d.]*[a-z]", text))
                    assert unnamed == 0 or (unnamed == 1 and "=%" in text), f"{module}: {text}"
                    words = re.sub(r"\w+=(%[\d.]*[a-z]|\w+)", "", text)
                    assert "=%" not in text or words.strip(), f"{module}: {text} names no event"
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"), attr="error" | "warning" | "info")):
                    raise AssertionError(f"{module} line {node.lineno}: the message is no template")
                case _:
                    pass
