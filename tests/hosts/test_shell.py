"""Every line of the README's section "Debugging from a shell" does what it shows."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
SECTION = README[README.index("## Debugging from a shell") :].split("\n## ")[0]
LINES: list[str] = re.findall(r"^\$ (.*)$", SECTION, re.MULTILINE)

pytestmark = [
    pytest.mark.skipif(shutil.which("bash") is None or sys.platform == "win32", reason="there is no bash"),
    pytest.mark.timeout(6 * WAIT_S),
]


def beginning(start: str) -> str:
    """Return the one line of the README that begins so."""
    (line,) = [line for line in LINES if line.startswith(start)]
    return line


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A PATH on which `embed-worker` is the one of this checkout."""
    folder = tmp_path_factory.mktemp("bin")
    wrapper = folder / "embed-worker"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m embed_worker "$@"\n', "utf-8")
    wrapper.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def tour(environment: dict[str, str]) -> dict[str, str]:
    """What each line printed, when all were run one after the other; nothing may go to standard error."""
    script = ROOT / "examples" / "shell" / "tour.sh"
    # A dozen workers start, one after the other.
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=5 * WAIT_S)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    said: dict[str, str] = {}
    for part in re.split(r"^\$ ", done.stdout, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        said[line] = output
    return said


def said_by(tour: dict[str, str], start: str) -> str:
    line = beginning(start)
    if re.search(r"\bjq\b", line) and shutil.which("jq") is None:
        pytest.skip("there is no jq")
    return tour[line]


def test_the_tour_runs_every_line_of_the_section(tour: dict[str, str]) -> None:
    assert len(LINES) >= 10
    assert list(tour) == LINES


def test_a_text_becomes_a_vector(tour: dict[str, str]) -> None:
    assert len(json.loads(said_by(tour, """echo '{"inputs": "hello"}'"""))) == 3


def test_info_tells_the_model(tour: dict[str, str]) -> None:
    told = json.loads(said_by(tour, """echo '{"method": "info"}'"""))
    assert (told["model"], told["dimension"]) == ("all-MiniLM-L6-v2", 384)


def test_a_file_is_answered_in_its_order_so_that_paste_fits(tour: dict[str, str]) -> None:
    rows = [row.split("\t") for row in said_by(tour, "paste ").splitlines()]
    assert [text for text, _ in rows] == ["a cat", "a dog", "a house"]
    assert len({vector for _, vector in rows}) == 3
    assert all(len(json.loads(vector)) == 2 for _, vector in rows)


def test_a_text_on_the_command_line_needs_no_json(tour: dict[str, str]) -> None:
    assert len(json.loads(said_by(tour, "embed-worker embed 'say"))) == 3
    assert said_by(tour, "embed-worker embed texts.txt") == ""


def test_a_reader_that_has_enough_ends_an_endless_input(tour: dict[str, str]) -> None:
    assert said_by(tour, "yes ").startswith('{"id":null,"line":1,"status":"ok"')


def test_the_worker_behind_head_ends_with_74_and_without_a_word(environment: dict[str, str]) -> None:
    command = """yes '{"inputs": "hello"}' | embed-worker | head -1 > /dev/null; echo ${PIPESTATUS[1]}"""
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=WAIT_S)
    assert (done.stdout, done.stderr) == ("74\n", "")


def test_errors_are_answers(tour: dict[str, str]) -> None:
    assert json.loads(said_by(tour, "echo 'oops'"))["code"] == "parse_error"
    assert "did you mean `dimensions`?" in said_by(tour, """echo '{"inputs": "hello", "dimension": 4}'""")


def test_control_requests_are_answered_at_once(tour: dict[str, str]) -> None:
    assert json.loads(said_by(tour, """echo '{"method": "ping"}'"""))["message"] == "pong"
    assert json.loads(said_by(tour, """echo '{"method": "metrics"}'"""))["rss_bytes"] > 10**6


def test_shutdown_finishes_what_came_before_it(tour: dict[str, str]) -> None:
    rows = [json.loads(row) for row in said_by(tour, """printf '%s\\n' '{"inputs": "last"}'""").splitlines()]
    assert rows == [[1, "ok", None], [2, "ok", None], [3, "error", "shutting_down"]]


def test_the_recorded_session_is_what_a_terminal_shows(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "PATH", environment["PATH"])
    record = runpy.run_path(str(ROOT / "examples" / "shell" / "record.py"))

    def without_numbers(picture: str) -> str:
        """Leave out the numbers, and the ellipsis and the rows that move with their lengths."""
        text = re.sub(r"<text [^>]*>|</text>\n", "", picture.partition("<circle")[2])
        return re.sub(r"[-+]?\d[\d.e+-]*", "0", text)

    def lines(picture: str) -> list[str]:
        return [row[:60] for row in re.split(r"(?=\$ )", without_numbers(picture))]

    assert lines((ROOT / "docs" / "images" / "session.svg").read_text("utf-8")) == lines(
        record["draw"](record["session"]())
    )
