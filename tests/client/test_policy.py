"""The Python client keeps to the policy file that the clients of all languages share."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import bridge_client.testing
from bridge_client import (
    ClientOptions,
    Timing,
    chunks,
    dispatcher,
    environment,
    handshake,
    health,
    listener,
    worker_process,
    worker_slot,
)
from bridge_client.calls import EmbedCall, Parameters
from bridge_client.exits import Cause, cause_of
from bridge_client.health import Check, Health
from bridge_client.lifecycle import Event, Life, Loss, On, Policy, State, step
from embed_worker.protocol import Limits

POLICY: dict[str, Any] = json.loads(
    (Path(bridge_client.testing.__file__).parent / "conformance" / "policy.json").read_text("utf-8")
)
ELSEWHERE = {"max_attempts", "special_tokens"}  # this client isolates the blamed input; test_chunks counts the tokens


def cases(section: str) -> list[Any]:
    return [pytest.param(case, id=case.get("name")) for case in POLICY[section]["cases"]]


def test_every_number_is_the_one_of_the_policy() -> None:
    ours = {
        "piece_tokens": chunks.CHUNK_TOKENS,
        "piece_bytes": chunks.CHUNK_BYTES,
        "bytes_per_token": chunks._BYTES_PER_TOKEN,
        "most_tokens": chunks._MOST_TOKENS,
        "short_tokens": chunks.SHORT_TOKENS,
        "window_requests": worker_slot.WINDOW_REQUESTS,
        "window_tokens": worker_slot._WINDOW_TOKENS,
        "window_bytes": worker_slot._WINDOW_BYTES,
        "max_dimension": handshake.MAX_DIMENSION,
        "max_answer_bytes": worker_process._MAX_ANSWER_BYTES,
        "stderr_tail_bytes": worker_process._STDERR_TOLD_BYTES,
        "nonsense_before_ready": listener._INVALID_LINES_BEFORE_READY,
        "pipe_grace_s": worker_process._PIPE_GRACE_S,
        "pipe_lost_s": listener._PIPE_LOST_S,
        "longest_drain_s": dispatcher._LONGEST_DRAIN_S,
        "pong_misses": health._MISSES,
        "slow_factor": health._SLOW_FACTOR,
        "average_weight": health._AVERAGE_WEIGHT,
        "start_timeout_s": ClientOptions().policy().start_timeout_s,
    }
    told = {name: value for name, value in POLICY["numbers"].items() if name not in ELSEWHERE}
    for defaults in (ClientOptions(), Timing(), Policy()):
        ours |= {name: getattr(defaults, name) for name in told.keys() - ours.keys() if hasattr(defaults, name)}
    assert ours == told
    chosen = ClientOptions().policy()
    assert chosen == Policy(), "the state machine's defaults are the client's"


def test_the_limits_of_a_worker_that_tells_none_are_those_of_the_policy() -> None:
    assert {name: getattr(Limits(), name) for name in POLICY["default_limits"]} == POLICY["default_limits"]


# Environment -------------------------------------------------------------------------------------------------------


def test_the_allow_list_is_the_one_of_the_policy() -> None:
    assert list(environment.PASSED_ENVIRONMENT) == POLICY["environment"]["passed"]
    assert POLICY["environment"]["by_default"] == environment.ENVIRONMENT_BY_DEFAULT


@pytest.mark.parametrize("case", cases("environment"))
def test_a_worker_gets_of_the_environment_what_the_policy_says(case: dict[str, Any]) -> None:
    is_windows = case["system"] == "windows"
    assert environment.worker_environment(case["host"], case["option"], is_windows=is_windows) == case["passed"]


def test_the_client_starts_its_worker_with_that_environment() -> None:
    host = {"HOME": "/home/me", "API_KEY": "secret"}
    passed = ClientOptions(env={"WANTED": "yes"}).environment(host)
    passed.pop("PYTHONPATH", None)  # of a checkout
    assert passed.pop("EMBED_WORKER_PARENT").partition(":")[0] == str(os.getpid())
    assert passed == {"HOME": "/home/me", "WANTED": "yes", "ORT_DISABLE_TELEMETRY": "1"}


# Decisions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", POLICY["ends"]["cases"], ids=str)
def test_an_end_means_what_the_policy_says(case: dict[str, Any]) -> None:
    number = getattr(signal, case.get("signal", ""), None)
    if "signal" in case and number is None:
        pytest.skip("this system has no such signal")
    ours = Cause(case["killed_for"]) if "killed_for" in case else None
    status = case["status"] if number is None else -number
    cause = cause_of(status, ours, is_windows=case["system"] == "windows")
    assert cause == case["cause"]
    assert (cause.may_blame_input, cause.is_permanent) == (case["blames_input"], case["is_permanent"])


@pytest.mark.parametrize("case", cases("restarts"))
def test_restarts_are_those_of_the_policy(case: dict[str, Any]) -> None:
    policy, now = Policy(**case.get("numbers", {})), 0.0
    life, _ = step(Life(), Event(On.START), now, policy)
    for number, lived in enumerate(case["lives"]):
        for name, on in (("ready_s", On.ANSWERED_INFO), ("useful_s", On.EMBEDDED)):
            if name in lived:
                life, _ = step(life, Event(on), now + lived[name], policy)
        now += lived["gone_s"]
        facts = {
            name: lived[name] for name in ("is_recycle", "is_investigation", "is_charged", "jitter") if name in lived
        }
        life, _ = step(life, Event(On.GONE, Loss(**facts)), now, policy)
        if life.state is State.STARTING:
            assert lived["then"] == {"restart_in_s": 0}, number
            continue
        assert life.wake_at is not None
        decision = "refuse_for_s" if life.state is State.FAILED else "restart_in_s"
        assert {decision: life.wake_at - now} == pytest.approx(lived["then"]), number
        now = life.wake_at
        life, _ = step(life, Event(On.TIMEOUT), now, policy)


@pytest.mark.parametrize("case", cases("health"))
def test_hangs_are_those_of_the_policy(case: dict[str, Any]) -> None:
    record = Health(0.0, Timing())
    for event in case["events"]:
        now, is_busy = event["at_s"], event.get("is_busy", False)
        match event["on"]:
            case "work":
                record.work_began(now)
            case "line":
                record.received(now)
            case "answer":
                record.received(now)
                record.embedded(now)
            case "pong":
                record.received(now)
                record.ponged(now, event["micro_batches"], is_busy=is_busy)
            case "check":
                assert record.check(now, is_busy=is_busy) is Check[event["then"].upper()], event
            case other:
                raise AssertionError(other)


@pytest.mark.parametrize("case", POLICY["commands"]["cases"], ids=str)
def test_commands_are_those_of_the_policy(case: dict[str, Any]) -> None:
    assert list(ClientOptions(worker_command=tuple(case["given"])).argv()) == case["started"]


@pytest.mark.parametrize("case", cases("pieces"))
def test_chunks_are_those_of_the_policy(case: dict[str, Any]) -> None:
    repeated = case.get("input_repeated", [[1, size] for size in case.get("input_bytes", [])])
    inputs = [text for count, size in repeated for text in itertools.repeat("x" * size, count)]
    call = EmbedCall(inputs, Parameters(), timeout_s=1.0)
    assert [[chunk.start, chunk.stop] for chunk in call.chunks()] == case["pieces"]
