"""The documents are held to the code: the picture, the errors, the defaults."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from bridge_client import ClientOptions, Timing, errors
from bridge_client.calls import EmbedKeywords, Parameters, TokenizeKeywords, TokenizeParameters
from bridge_client.lifecycle import TRANSITIONS, Policy, picture
from bridge_client.options import OptionKeywords
from bridge_client.testing.fake_faults import make_parser

DOCS = Path(__file__).resolve().parents[2] / "docs"
SUPERVISION = (DOCS / "supervision.md").read_text("utf-8")
TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text("utf-8")


def test_the_picture_is_the_table() -> None:
    [drawn] = re.findall(r"```mermaid\n(.*?)\n```", SUPERVISION, re.DOTALL)
    assert drawn == picture()
    assert len(drawn.splitlines()) == len(TRANSITIONS) + 3


def test_every_error_is_explained() -> None:
    defined = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.BridgeError) and value.__module__ == errors.__name__
    }
    explained = set(re.findall(r"^\| `(\w+)`", TROUBLESHOOTING, re.MULTILINE))
    assert explained == defined - {"BridgeError", "WorkerError"}


def test_options_that_are_named_exist() -> None:
    known = {field.name for kind in (ClientOptions, Timing) for field in dataclasses.fields(kind)}
    named = set(re.findall(r"`(\w+_(?:s|requests|bytes|budget))=?`", SUPERVISION + TROUBLESHOOTING))
    assert named - known <= {"timeout_s", "retry_in_s"}


def test_the_numbers_of_the_table_are_the_defaults() -> None:
    policy, timing = Policy(), Timing()
    rows = dict(re.findall(r"^\| ([a-z -]+) \| (.*?) \|", SUPERVISION, re.MULTILINE))
    assert f"{policy.backoff_initial_s} s, doubling to {policy.backoff_max_s:g} s" in rows["back-off"]
    assert f"full at {policy.restart_budget}" in rows["restart budget"]
    assert f"every {policy.restart_forgive_s:g} s" in rows["restart budget"]
    assert f"{policy.half_open_initial_s:g} s, doubling to {policy.half_open_max_s:g} s" in rows["half-open attempts"]
    assert f"{timing.ping_every_s:g} s of silence; two misses of {timing.pong_timeout_s:g} s" in rows["ping"]
    assert f"for {timing.stuck_after_s:g} s" in rows["no progress"]
    assert f"{timing.drain_s:g} s → SIGTERM → {timing.terminate_s:g} s → SIGKILL" in rows["close"]
    assert ClientOptions().policy() == policy, "the options pass every default on"
    assert f"{ClientOptions().request_timeout_s:g} s" in rows["time-out"]


def test_the_keywords_are_the_fields() -> None:
    for keywords, made, apart in (
        (OptionKeywords, ClientOptions, {"model"}),
        (EmbedKeywords, Parameters, set()),
        (TokenizeKeywords, TokenizeParameters, set()),
    ):
        fields = {field.name: field.type for field in dataclasses.fields(made) if field.name not in apart}
        assert {name: hint.__forward_arg__ for name, hint in keywords.__annotations__.items()} == fields


def test_coreml_gets_more_time() -> None:
    for args in (("--provider", "coreml"), ("--provider=coreml",), ("--provider", "CoreMLExecutionProvider")):
        assert ClientOptions(worker_args=args).policy().start_timeout_s == 300.0
    assert ClientOptions(worker_args=("--provider", "auto")).policy().start_timeout_s == 60.0
    assert ClientOptions(start_timeout_s=7.0, worker_args=("--provider", "coreml")).policy().start_timeout_s == 7.0


def test_every_fault_of_the_fake_worker_is_tried_by_a_test() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    faults = {action.dest for action in make_parser()._actions} - {"help", "supervised", "model", "ignore_parent"}
    untried = {fault for fault in faults if not re.search(rf"\b{fault}\b", tests)}
    assert untried <= {"max_in_flight"}
