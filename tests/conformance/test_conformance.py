"""The transcripts against this project's worker and clients, the page against the transcripts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from bridge_client.testing.conformance.checks import KINDS, RETRYABLE
from bridge_client.testing.conformance.run import Report, Target, choose, play, play_all
from bridge_client.testing.conformance.transcript import TRANSCRIPTS as FOLDER
from bridge_client.testing.conformance.transcript import Side, Transcript, read_transcripts, rules_of
from embed_worker.protocol import ErrorCode
from tests.hosts.adapters import CLIENTS, why_not
from tests.patience import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
TRANSCRIPTS = {transcript.name: transcript for transcript in read_transcripts(FOLDER)}
PAGE = (ROOT / "docs" / "protocol.md").read_text("utf-8")
JOBS = 4  # they wait more than they compute

WORKER = (sys.executable, "-m", "embed_worker")
FAKE_WORKER = (sys.executable, "-m", "bridge_client.testing.fake_worker", "--fingerprint=0123456789abcdef")

# What no transcript can show: why, and where it is shown.
SERVER, LIFECYCLE = "tests/worker/test_server.py", "tests/worker/test_lifecycle.py"
PROVED_ELSEWHERE = {
    "F7": ("time", "tests/worker/test_wire.py", "test_a_line_of_thirty_megabytes_is_read"),
    "F9": ("a library that prints", LIFECYCLE, "test_what_a_library_prints_lands_on_standard_error"),
    "S2": ("a runtime that fails", SERVER, "test_a_failed_batch_is_tried_row_by_row_and_only_the_guilty_request_fails"),
    "S4": ("a quantised graph", "tests/worker/test_engine.py", "test_batch_invariance_is_measured_and_a_graph"),
    "S6": ("a broken descriptor", LIFECYCLE, "test_a_read_error_is_not_an_end_of_input"),
    "S7": ("ten seconds", SERVER, "test_a_bounded_drain_answers_the_rest_with_shutting_down"),
    "S18": ("what is refused before input", "tests/worker/test_cli.py", "test_what_cannot_be_meant_is_usage"),
    "E13": ("a failed allocation", SERVER, "test_out_of_memory_answers_every_live_request_and_exits_with_75"),
    "E14": (
        "a runtime that fails",
        SERVER,
        "test_a_failed_batch_is_tried_row_by_row_and_only_the_guilty_request_fails",
    ),
    "X70": ("a bug", SERVER, "test_a_reader_that_meets_a_bug_ends_the_worker_instead_of_hanging_it"),
    "X75": ("a failed allocation", SERVER, "test_out_of_memory_answers_every_live_request_and_exits_with_75"),
    "T5": (
        "a folder with a chat template",
        "tests/worker/test_tokenize.py",
        "test_a_text_that_its_template_changes_has_no_ranges_but_is_counted",
    ),
    "V2": ("a promise of later versions", "docs/protocol.md", "Adding members, methods or codes does not change it"),
}


def names(side: Side) -> list[str]:
    return [name for name, transcript in TRANSCRIPTS.items() if transcript.side is side]


@pytest.fixture(scope="module")
def playing(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Report]]]:
    """The selected transcripts, played some at a time; each test waits for its own."""
    with ThreadPoolExecutor(JOBS) as pool:
        futures = {}
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.originalname == "test_it_keeps_the_rules":
                who, name = str(item.callspec.params["who"]), str(item.callspec.params["name"])
                target = Target(command=COMMANDS[who], timeout_s=60.0)
                futures[who, name] = pool.submit(play, TRANSCRIPTS[name], target)
        yield futures


COMMANDS = {"worker": WORKER, "client": CLIENTS["Python"], "fake worker": FAKE_WORKER}
CASES = [
    *(("worker", name) for name in names(Side.WORKER)),
    *(("client", name) for name in names(Side.CLIENT)),
    ("fake worker", "worker-essentials"),
    ("fake worker", "worker-nothing"),
]


@pytest.mark.parametrize(("who", "name"), CASES)
def test_it_keeps_the_rules(playing: dict[tuple[str, str], Future[Report]], who: str, name: str) -> None:
    report = playing[who, name].result(2 * WAIT_S)
    if report.result == "skipped":
        pytest.skip(report.why)
    assert report.result == "ok", f"{name}.jsonl:{report.line}, {report.heading}: {report.why}"


@pytest.mark.parametrize("language", sorted(CLIENTS.keys() - {"Python"}))
def test_the_client_of_another_language_keeps_the_rules(language: str) -> None:
    if why := why_not(language):
        pytest.skip(why)
    target = Target(command=CLIENTS[language], timeout_s=60.0)
    chosen = choose(list(TRANSCRIPTS.values()), Side.CLIENT, None)
    reports = list(play_all(chosen, target, JOBS))
    assert [f"{report.transcript}:{report.line}: {report.why}" for report in reports if report.result == "failed"] == []


# The page and the suite name each other's rules -------------------------------------------------------------------


def test_every_rule_of_the_page_is_proved_by_a_transcript_or_elsewhere() -> None:
    proved = frozenset().union(*(transcript.rules for transcript in TRANSCRIPTS.values()))
    assert set(rules_of(PAGE)) - proved == set(PROVED_ELSEWHERE)


def test_no_transcript_names_a_rule_that_is_not_on_the_page() -> None:
    unknown = {transcript.name: sorted(transcript.rules - set(rules_of(PAGE))) for transcript in TRANSCRIPTS.values()}
    assert {name: rules for name, rules in unknown.items() if rules} == {}


@pytest.mark.parametrize("rule", PROVED_ELSEWHERE)
def test_what_is_proved_elsewhere_is_there(rule: str) -> None:
    _, path, name = PROVED_ELSEWHERE[rule]
    assert name in (ROOT / path).read_text("utf-8")


def test_every_sentence_of_the_page_that_is_a_rule_has_a_name() -> None:
    """A bullet, a numbered rule or a row of a table of definitions without a name would be one that nobody proves."""
    body = PAGE[PAGE.index("## 1 Framing") :]
    bullets = re.findall(r"^(?:- |\d+\. )(?:.|\n(?! *\n|- |\d+\. |#))*", body, re.MULTILINE)
    rows = [row for row in re.findall(r"^\| `.*$", body, re.MULTILINE) if "| default |" not in row]
    assert len(bullets) > 30
    assert len(rows) > 30
    nameless = [part.splitlines()[0] for part in (*bullets, *rows) if not re.search(r"\[[A-Z]\d+\]", part)]
    assert nameless == []


def test_each_rule_is_named_once() -> None:
    rules = list(rules_of(PAGE[PAGE.index("## 1 Framing") :]))
    assert len(rules) == len(set(rules))


def test_the_suites_own_tables_are_those_of_the_protocol() -> None:
    assert {code.value: code.retryable for code in ErrorCode} == RETRYABLE


def test_the_contract_of_the_adapters_lists_the_kinds_of_error() -> None:
    page = (ROOT / "docs" / "hosts.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page[page.index("### Kinds of error") :], re.MULTILINE)) == KINDS


def test_transcripts_are_of_both_sides_and_named_after_them() -> None:
    for transcript in TRANSCRIPTS.values():
        assert transcript.name.startswith(f"{transcript.side}-")
    assert all(isinstance(transcript, Transcript) for transcript in TRANSCRIPTS.values())
