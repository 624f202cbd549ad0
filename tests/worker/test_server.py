"""The life of requests in a server with a fake model: order, limits, deadlines, cancels, drains, failures."""

from __future__ import annotations

import gc
import json
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from embed_worker.config import RuntimeOptions
from embed_worker.errors import OutOfMemoryError
from embed_worker.protocol import ErrorCode, ExitCode, Limits
from embed_worker.serving.lifecycle import On
from embed_worker.serving.tasks import EmbedTask
from tests.worker.fakes import (
    DIMENSION,
    MAX_TOKENS,
    WAIT_S,
    FakeClock,
    FakeEngine,
    FakeLoader,
    FakeTokenizer,
    Worker,
    expected_vector,
    running_worker,
)
from tests.worker.harness import lines_of, matrix_of

BUSY = {"id": "busy", "inputs": "the lane is busy with this"}


def hold_the_lane(worker: Worker) -> None:
    """Keep the only lane in a run until the gate opens."""
    worker.ask({"id": "warm", "inputs": "x"})
    worker.engine.gate.clear()
    worker.engine.entered.get(timeout=WAIT_S)
    worker.send(BUSY)
    worker.engine.entered.get(timeout=WAIT_S)


def meet_a_bug(*_: object) -> Any:
    raise KeyError("missing")


def test_a_text_is_answered_with_its_own_vector() -> None:
    with running_worker() as worker:
        answer = worker.ask({"id": 7, "inputs": ["one text", "another text here"]})
    np.testing.assert_array_equal(
        matrix_of(answer), [expected_vector("one text"), expected_vector("another text here")]
    )
    assert answer | {"embeddings": [], "timing_ms": {}} == {
        "id": 7,
        "status": "ok",
        "model": "first",
        "fingerprint": answer["fingerprint"],
        "dimension": DIMENSION,
        "count": 2,
        "embeddings": [],
        "tokens": [3, 4],
        "truncated": [],
        "timing_ms": {},
    }
    assert set(answer["timing_ms"]) == {"queue", "tokenize", "inference", "total"}


def test_prompts_dimensions_and_normalisation_are_the_callers() -> None:
    with running_worker() as worker:
        plain = worker.ask({"id": 1, "inputs": "ask me", "normalize": False})
        named = worker.ask({"id": 2, "inputs": "me", "prompt_name": "query", "normalize": False})
        literal = worker.ask({"id": 3, "inputs": "me", "prompt": "ask ", "normalize": False})
        cut = worker.ask({"id": 4, "inputs": "ask me", "dimensions": 2})
        unknown = worker.ask({"id": 5, "inputs": "me", "prompt_name": "nobody"})
        wide = worker.ask({"id": 6, "inputs": "me", "dimensions": DIMENSION + 1})
    assert matrix_of(plain).tolist() == matrix_of(named).tolist() == matrix_of(literal).tolist()
    assert cut["dimension"] == 2
    assert np.linalg.norm(matrix_of(cut)) == pytest.approx(1)
    assert (unknown["code"], wide["code"]) == ("invalid_request", "invalid_request")


def test_one_text_at_a_time_when_vectors_must_not_depend_on_neighbours() -> None:
    with running_worker(runtime=RuntimeOptions(batch_invariant=True)) as worker:
        worker.ask({"id": 1, "inputs": ["a", "b", "c"]})
        assert worker.engine.runs == [1, 1, 1]


def test_texts_of_several_requests_share_a_micro_batch() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send(*({"id": n, "inputs": f"a text {n}"} for n in range(5)))
        assert worker.is_silent()
        worker.engine.gate.set()
        worker.receive_many(6)
        assert max(worker.engine.runs) > 1


@pytest.mark.parametrize(("row_step", "runs"), [(1, [1, 1]), (2, [2])])
def test_a_short_text_takes_the_place_of_padding_beside_a_long_one(row_step: int, runs: list[int]) -> None:
    texts = [" ".join(f"word{number}" for number in range(20)), "short"]
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.engine.row_step = row_step
        worker.send(*({"id": number, "inputs": text} for number, text in enumerate(texts)))
        assert worker.is_silent()
        worker.engine.gate.set()
        answers = worker.receive_many(3)
        assert worker.engine.runs[2:] == runs  # after those that warm up and hold the lane
    for number, text in enumerate(texts):
        np.testing.assert_array_equal(matrix_of(answers[number]), [expected_vector(text)])


def test_the_same_text_is_computed_once_for_all_who_wait_for_it() -> None:
    texts = ["twice", "once", "twice"]
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": 1, "inputs": texts}, {"id": 2, "inputs": "twice"}, {"id": 3, "inputs": "an own one"})
        assert worker.is_silent()
        worker.engine.gate.set()
        answers = worker.receive_many(4)
        assert sum(worker.engine.runs) == 2 + 3  # warm and busy, then each text once
    np.testing.assert_array_equal(matrix_of(answers[1]), [expected_vector(text) for text in texts])
    np.testing.assert_array_equal(matrix_of(answers[2]), [expected_vector("twice")])


def test_a_text_that_was_to_be_computed_for_others_too_is_when_its_own_request_is_cancelled() -> None:
    with running_worker(lanes=2) as worker:
        worker.ask({"id": "warm", "inputs": "x"})
        worker.engine.entered.get(timeout=WAIT_S)
        worker.engine.gate.clear()
        for number in range(2):
            worker.send({"id": f"busy {number}", "inputs": f"text {number}"})
            worker.engine.entered.get(timeout=WAIT_S)
        worker.send(*({"id": number, "inputs": ["same", f"own {number}"]} for number in range(3)))
        worker.send({"id": "c", "method": "cancel", "target": 0}, {"id": "d", "method": "cancel", "target": 1})
        answers = worker.receive_many(4)
        assert (answers[0]["code"], answers[1]["code"]) == ("cancelled", "cancelled")
        worker.engine.gate.set()
        rest = worker.receive_many(3)
    np.testing.assert_array_equal(matrix_of(rest[2]), [expected_vector("same"), expected_vector("own 2")])


def test_a_graph_that_depends_on_its_batch_computes_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "is_batch_invariant", False)
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": 1, "inputs": ["twice", "twice"]})
        assert worker.is_silent()
        worker.engine.gate.set()
        worker.receive_many(2)
        assert sum(worker.engine.runs) == 2 + 2


def test_an_empty_list_is_answered_with_nothing() -> None:
    with running_worker() as worker:
        answer = worker.ask({"id": 1, "inputs": [], "encoding_format": "base64"})
    assert (answer["count"], answer["embeddings_base64"], answer["tokens"], answer["truncated"]) == (0, "", [], [])


# Limits of a text


def test_truncation_is_reported_and_may_be_refused() -> None:
    long, longer = "word " * 20, "word " * 30
    with running_worker() as worker:
        cut = worker.ask({"id": 1, "inputs": ["a", long]})
        refused = worker.ask({"id": 2, "inputs": ["a", long, longer], "truncate": False})
    assert (cut["tokens"], cut["truncated"]) == ([2, 21], [1])
    assert (refused["code"], refused["index"]) == ("input_too_long", 1)
    assert str(MAX_TOKENS) in refused["message"]


def test_the_lowest_index_is_named_when_many_chunks_hold_long_texts() -> None:
    texts = ["short"] * 300 + ["word " * 20] * 300
    with running_worker(lanes=2) as worker:
        refused = worker.ask({"id": 1, "inputs": texts, "truncate": False})
    assert (refused["code"], refused["index"]) == ("input_too_long", 300)


def test_a_text_without_tokens_has_no_vector() -> None:
    with running_worker() as worker:
        answer = worker.ask({"id": 1, "inputs": ["a", "nothing"]})
    assert (answer["code"], answer["index"]) == ("non_finite_embedding", 1)


@pytest.mark.parametrize("batch_tokens", [16, 512, 4096, 100_000])
@pytest.mark.parametrize("count", [1, 127, 128, 129, 700])
def test_every_text_of_a_request_is_embedded_whatever_the_budget(batch_tokens: int, count: int) -> None:
    texts = [f"text {number}" for number in range(count)]
    with running_worker(runtime=RuntimeOptions(batch_tokens=batch_tokens)) as worker:
        worker.send({"id": 1, "inputs": texts})
        answer = worker.receive()
    np.testing.assert_array_equal(matrix_of(answer), [expected_vector(text) for text in texts])


# Bad rows


@pytest.mark.parametrize("word", ["nan", "zero"])
def test_a_vector_without_a_length_is_blamed_with_its_index_and_harms_no_neighbour(word: str) -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": "bad", "inputs": ["a", "b", f"this is {word}"]}, {"id": "good", "inputs": ["c", "d"]})
        assert worker.is_silent()
        worker.engine.gate.set()
        answers = worker.receive_many(3)
    assert (answers["bad"]["code"], answers["bad"]["index"]) == ("non_finite_embedding", 2)
    assert answers["good"]["count"] == 2


def test_a_cut_that_leaves_no_length_is_blamed_with_its_index() -> None:
    class Halved(FakeLoader):
        def __call__(self, *arguments: Any) -> Any:
            model = super().__call__(*arguments)
            original = model.engine.embed

            def embed(rows: Any, **options: Any) -> Any:
                vectors = original(rows, **options)
                vectors[-1, :2] = 0
                return vectors

            setattr(model.engine, "embed", embed)  # noqa: B010 - the static type is the real engine's
            return model

    with running_worker(loader=Halved()) as worker:
        whole = worker.ask({"id": 1, "inputs": "a"})
        cut = worker.ask({"id": 2, "inputs": "a", "dimensions": 2})
    assert whole["status"] == "ok"
    assert (cut["code"], cut["index"]) == ("non_finite_embedding", 0)


def test_a_failed_batch_is_tried_row_by_row_and_only_the_guilty_request_fails() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": "bad", "inputs": ["a", "this is poison", "b"]}, {"id": "good", "inputs": ["c", "d"]})
        assert worker.is_silent()
        worker.engine.gate.set()
        answers = worker.receive_many(3)
        again = worker.ask({"id": "after", "inputs": "e"})
    assert (answers["bad"]["code"], answers["bad"]["index"]) == ("inference_failed", 1)
    assert not answers["bad"]["retryable"]
    assert "poison" not in json.dumps(answers["bad"])
    np.testing.assert_array_equal(matrix_of(answers["good"]), [expected_vector("c"), expected_vector("d")])
    assert again["status"] == "ok"


def test_a_tokenizer_that_fails_on_one_request_does_not_fail_the_others() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": "bad", "inputs": "this is untokenizable"}, {"id": "good", "inputs": "c"})
        assert worker.is_silent()
        worker.engine.gate.set()
        answers = worker.receive_many(3)
    assert answers["bad"]["code"] in ("inference_failed", "internal_error")
    assert answers["good"]["status"] == answers["busy"]["status"] == "ok"


def test_out_of_memory_answers_every_live_request_and_exits_with_75() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": 1, "inputs": "this takes memory"}, {"id": 2, "inputs": ["x"] * 300}, {"inputs": "third"})
        assert worker.is_silent()
        worker.engine.gate.set()
        rest = worker.receive_rest()
        assert worker.wait() == ExitCode.TRY_AGAIN
    by_id = {answer["id"]: answer for answer in rest}
    assert set(by_id) == {"busy", 1, 2, None}
    assert by_id[1]["code"] == "out_of_memory"
    assert {by_id[key].get("code", "ok") for key in (2, None, "busy")} <= {"out_of_memory", "ok"}
    assert all(answer.get("retryable", True) for answer in rest)


# Deadlines


def test_a_deadline_of_zero_has_passed_already() -> None:
    with running_worker() as worker:
        for inputs in ("a", [], ["a"] * 300):
            answer = worker.ask({"id": 1, "inputs": inputs, "deadline_ms": 0})
            assert (answer["code"], answer["retryable"]) == ("deadline_exceeded", True)


def test_a_queued_request_whose_deadline_passes_is_dropped_before_the_next_micro_batch() -> None:
    clock = FakeClock()
    with running_worker(clock=clock) as worker:
        hold_the_lane(worker)
        worker.send({"id": "late", "inputs": "a", "deadline_ms": 500}, {"id": "in time", "inputs": "b"})
        assert worker.is_silent()
        clock.advance(0.5)
        worker.engine.gate.set()
        answers = worker.receive_many(3)
        assert sum(worker.engine.runs) == 3  # warm, busy, in time
    assert answers["late"]["code"] == "deadline_exceeded"
    assert answers["in time"]["status"] == "ok"


def test_a_deadline_that_passes_during_the_run_is_never_a_late_success() -> None:
    clock = FakeClock()
    with running_worker(clock=clock) as worker:
        worker.ask({"id": "warm", "inputs": "x"})
        worker.engine.entered.get(timeout=WAIT_S)
        worker.engine.gate.clear()
        worker.send({"id": 1, "inputs": "a", "deadline_ms": 500})
        worker.engine.entered.get(timeout=WAIT_S)
        clock.advance(10)
        worker.engine.gate.set()
        assert worker.receive()["code"] == "deadline_exceeded"


def test_a_deadline_passes_while_an_earlier_unnumbered_answer_is_held_back() -> None:
    clock = FakeClock()
    with running_worker(clock=clock, lanes=2) as worker:
        worker.ask({"id": "warm", "inputs": "x"})
        worker.engine.entered.get(timeout=WAIT_S)
        worker.engine.gate.clear()
        worker.send({"inputs": "first in line"})
        worker.engine.entered.get(timeout=WAIT_S)
        worker.send({"inputs": [], "deadline_ms": 1000})  # ready at once, but not its turn
        assert worker.is_silent()
        clock.advance(2)
        worker.engine.gate.set()
        first, second = worker.receive(), worker.receive()
    assert (first["status"], first["line"]) == ("ok", 2)
    assert (second["code"], second["line"]) == ("deadline_exceeded", 3)


def test_a_deadline_holds_while_the_model_loads() -> None:
    loader = FakeLoader()
    loader.gate.clear()
    with running_worker(loader=loader) as worker:
        assert worker.is_silent()
        worker.send({"id": 1, "inputs": "a", "deadline_ms": 50})
        assert worker.receive()["code"] == "deadline_exceeded"
        assert worker.ask({"id": 2, "method": "ping"})["state"] == "loading"


def test_a_deadline_beyond_what_a_wait_can_take_is_no_deadline() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": "far", "inputs": "a", "deadline_ms": 2**63 - 1})
        worker.engine.gate.set()
        assert worker.receive_many(2)["far"]["count"] == 1
        assert worker.ask({"id": "after", "inputs": "b", "deadline_ms": 2**63 - 1})["count"] == 1


def test_a_thread_that_waits_for_such_a_deadline_waits_as_long_as_the_system_can() -> None:
    loader = FakeLoader()
    loader.gate.clear()
    with running_worker(loader=loader) as worker:  # nothing can run yet, so that a thread waits for the deadline
        worker.send({"id": "far", "inputs": "a", "deadline_ms": 2**63 - 1})
        assert worker.is_silent()
        assert worker.ask({"id": "ping", "method": "ping"})["state"] == "loading"
        loader.gate.set()
        assert worker.receive()["count"] == 1


class Panic(BaseException):
    """What Rust's panics are in Python: no Exception."""


def test_a_panic_of_the_tokenizer_fails_its_request_and_the_lane_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_worker() as worker:
        worker.ask({"id": 0, "inputs": "a"})
        encode = FakeTokenizer.encode

        def panic(self: FakeTokenizer, texts: Any, prompt: str) -> Any:
            if "panic" in texts:
                raise Panic
            return encode(self, texts, prompt)

        monkeypatch.setattr(FakeTokenizer, "encode", panic)
        assert worker.ask({"id": 1, "inputs": "panic"})["code"] == "internal_error"
        assert worker.ask({"id": 2, "inputs": "a"})["count"] == 1


def test_a_panic_of_a_run_is_answered_and_the_lane_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_worker() as worker:
        worker.ask({"id": 0, "inputs": "a"})
        with monkeypatch.context() as broken:
            broken.setattr(worker.engine, "embed", Mock(side_effect=Panic))
            assert worker.ask({"id": 1, "inputs": "a"})["status"] == "error"
        assert worker.ask({"id": 2, "inputs": "a"})["count"] == 1


def test_a_deadline_of_a_request_that_is_over_keeps_nothing_of_it() -> None:
    with running_worker() as worker:
        for number in range(40):
            worker.ask({"id": number, "inputs": ["a marked text"] * 3, "deadline_ms": 10**9})
        worker.ask({"id": "last", "inputs": "x"})
        gc.collect()
        # By type, not by name: the client has a class of that name too, and its objects may still await collection.
        kept = [job for job in gc.get_objects() if type(job) is EmbedTask and job.is_settled]
        of_this_worker = [job for job in kept if job.deadline_s is not None and len(job.texts) == 3]
        assert len(of_this_worker) <= 2


# Cancel


def test_cancel_drops_queued_work_and_promises_the_answer() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": "target", "inputs": ["a"] * 50}, {"id": "c", "method": "cancel", "target": "target"})
        answers = worker.receive_many(2)
        worker.engine.gate.set()
        assert worker.receive()["id"] == "busy"
        worker.ask({"id": "after", "inputs": "x"})
        assert sum(worker.engine.runs) == 3  # nothing of the target ran
    assert answers["c"]["cancelled"] is True
    assert (answers["target"]["code"], answers["target"]["retryable"]) == ("cancelled", False)


def test_cancel_throws_running_work_away_and_frees_the_id() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": "c", "method": "cancel", "target": "busy"})
        answers = worker.receive_many(2)
        assert (answers["c"]["cancelled"], answers["busy"]["code"]) == (True, "cancelled")
        worker.send(BUSY)
        worker.engine.gate.set()
        assert worker.receive()["status"] == "ok"


def test_cancel_of_anything_else_is_false() -> None:
    with running_worker() as worker:
        worker.ask({"id": 1, "inputs": "x"})
        targets: tuple[int | str, ...] = (1, "1", "nobody", "c")
        for target in targets:
            assert worker.ask({"id": "c", "method": "cancel", "target": target})["cancelled"] is False
        hold_the_lane(worker)
        assert worker.ask({"id": 5, "method": "cancel", "target": "warm"})["cancelled"] is False
        for unusable in (None, True, 1.5, ["busy"]):
            assert worker.ask({"id": 6, "method": "cancel", "target": unusable})["code"] == "invalid_request"
        worker.engine.gate.set()
        assert worker.receive()["status"] == "ok"


def test_cancel_reaches_a_request_that_waits_for_its_model() -> None:
    loader = FakeLoader()
    loader.gate.clear()
    with running_worker(loader=loader) as worker:
        worker.send({"id": 1, "inputs": "a"}, {"id": "c", "method": "cancel", "target": 1})
        answers = worker.receive_many(2)
        loader.gate.set()
        assert worker.ask({"id": 2, "inputs": "b"})["status"] == "ok"
    assert (answers[1]["code"], answers["c"]["cancelled"]) == ("cancelled", True)


def test_an_unnumbered_answer_waits_for_a_cancelled_one_before_it() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"inputs": "a"}, {"method": "ping"})
        assert worker.is_silent()
        worker.engine.gate.set()
        answers = [worker.receive() for _ in range(3)]
    assert [answer["line"] for answer in answers if answer["id"] is None] == [3, 4]


# Ids and order


def test_an_outstanding_id_is_refused_under_null_whatever_else_is_wrong() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send({"id": "busy", "method": "nonsense"}, {"id": "busy", "inputs": 5}, {"id": "busy", "inputs": "b"})
        refused = [worker.receive() for _ in range(3)]
        worker.engine.gate.set()
        assert worker.receive()["status"] == "ok"
        assert worker.ask(BUSY)["status"] == "ok"
    assert [(answer["id"], answer["line"], answer["code"]) for answer in refused] == [
        (None, line, "duplicate_id") for line in (3, 4, 5)
    ]


def test_everything_under_null_leaves_in_input_order() -> None:
    lines = [b'{"inputs": "slow"}', b"", b"{", b'{"id": [1], "inputs": "x"}', b"[]", b'{"method": "ping"}', b"\xff"]
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.send_raw(b"\n".join([*lines, b'{"id": "busy", "inputs": "x"}', b'{"method": "nonsense"}', b""]))
        assert worker.is_silent()
        worker.engine.gate.set()
        answers = [answer for answer in (worker.receive() for _ in range(9)) if answer["id"] is None]
    assert [(answer["line"], answer.get("code", "ok")) for answer in answers] == [
        (3, "ok"),
        (5, "parse_error"),
        (6, "invalid_request"),
        (7, "parse_error"),
        (8, "ok"),
        (9, "parse_error"),
        (10, "duplicate_id"),
        (11, "unknown_method"),
    ]


def test_an_over_long_line_is_answered_in_its_turn_and_the_worker_goes_on() -> None:
    with running_worker(limits=Limits(max_line_bytes=100)) as worker:
        worker.send_raw(b'{"id": 1, "inputs": "' + b"x" * 100 + b'"}\n')
        refused = worker.receive()
        assert worker.ask({"id": 2, "inputs": "x"})["status"] == "ok"
    assert (refused["id"], refused["line"], refused["code"]) == (None, 1, "line_too_long")


def test_a_bug_in_one_request_is_an_internal_error_of_that_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_worker() as worker:
        monkeypatch.setattr(worker.server._requests, "_pong", meet_a_bug)
        broken = worker.ask({"id": 1, "method": "ping"})
        assert worker.ask({"id": 2, "inputs": "x"})["status"] == "ok"
    assert (broken["code"], broken["retryable"]) == ("internal_error", True)


# Flow control


def test_reading_stops_beyond_the_number_in_flight_and_goes_on_later() -> None:
    with running_worker(limits=Limits(max_in_flight=2)) as worker:
        hold_the_lane(worker)
        worker.send({"id": 1, "inputs": "a"}, {"id": "at the limit", "method": "ping"})
        assert worker.receive()["in_flight"] == 2
        worker.send({"id": 2, "inputs": "b"}, {"id": "beyond", "method": "ping"})
        assert worker.received.empty()
        worker.engine.gate.set()
        answers = worker.receive_many(4)
        assert answers["beyond"]["in_flight"] <= 2
    assert all(answer["status"] == "ok" for answer in answers.values())


def test_reading_stops_beyond_the_bytes_in_flight_and_a_larger_request_is_admitted_alone() -> None:
    with running_worker(limits=Limits(max_in_flight_bytes=200)) as worker:
        larger = {"id": "larger", "inputs": ["word"] * 100}
        assert worker.ask(larger)["count"] == 100
        hold_the_lane(worker)
        worker.send(larger, {"id": "behind", "method": "ping"})
        assert worker.received.empty()
        worker.engine.gate.set()
        answers = worker.receive_many(3)
    assert answers["larger"]["count"] == 100
    assert answers["behind"]["in_flight"] <= 1


def test_room_is_given_back_by_every_kind_of_end() -> None:
    clock = FakeClock()
    endings: list[dict[str, Any]] = [
        {"inputs": "fine"},
        {"inputs": []},
        {"inputs": "this is poison"},
        {"inputs": "this is nan"},
        {"inputs": "nothing"},
        {"inputs": "x", "deadline_ms": 0},
        {"inputs": "x", "dimensions": 99},
        {"inputs": "x", "prompt_name": "nobody"},
        {"inputs": "x " * 50, "truncate": False},
        {"inputs": "x", "model": "second"},
        {"inputs": 5},
    ]
    with running_worker(limits=Limits(max_in_flight=1), clock=clock) as worker:
        for number, ending in enumerate(endings * 2):
            assert worker.ask({"id": number, **ending})["id"] == number
        metrics = worker.ask({"id": "m", "method": "metrics"})["metrics"]
        slot = worker.store.find(None)
        assert slot.users == 0
    assert (metrics["in_flight"], metrics["in_flight_bytes"], metrics["queued"]) == (0, 0, 0)
    assert metrics["requests"] == {
        "ok": 4,
        "inference_failed": 2,
        "non_finite_embedding": 4,
        "deadline_exceeded": 2,
        "invalid_request": 6,
        "input_too_long": 2,
        "model_not_found": 2,
    }


def test_a_short_request_overtakes_a_long_one() -> None:
    with running_worker(runtime=RuntimeOptions(batch_tokens=32)) as worker:
        hold_the_lane(worker)
        worker.send({"id": "long", "inputs": ["some words here"] * 400}, {"id": "short", "inputs": "a"})
        assert worker.is_silent()
        worker.engine.gate.set()
        order = [worker.receive()["id"] for _ in range(3)]
    assert order == ["busy", "short", "long"]


# Control


def test_ping_tells_the_state_and_the_progress() -> None:
    loader = FakeLoader()
    loader.gate.clear()
    with running_worker(loader=loader) as worker:
        loading = worker.ask({"id": 1, "method": "ping"})
        loader.gate.set()
        worker.ask({"id": 2, "method": "info"})
        ready = worker.ask({"id": 3, "method": "ping"})
        hold_the_lane(worker)
        worker.send({"id": "queued", "inputs": "a"}, {"id": "s", "method": "shutdown"}, {"id": 4, "method": "ping"})
        shutdown, draining = worker.receive(), worker.receive()
        worker.engine.gate.set()
        assert len(worker.receive_rest()) == 2
    assert (loading["state"], loading["message"], loading["micro_batches"]) == ("loading", "pong", 0)
    assert (ready["state"], ready["in_flight"]) == ("ready", 0)
    assert shutdown["pending"] == 2
    assert (draining["state"], draining["micro_batches"], draining["in_flight"]) == ("draining", 1, 2)
    assert draining["queued"] == 1


def test_info_is_the_readiness_handshake() -> None:
    loader = FakeLoader()
    loader.gate.clear()
    with running_worker(loader=loader, limits=Limits(max_inputs=7)) as worker:
        worker.send({"id": 1, "method": "info"})
        assert worker.is_silent()
        loader.gate.set()
        info = worker.receive()
        unknown = worker.ask({"id": 2, "method": "info", "model": "second"})
    assert (info["protocol"], info["model"], info["models"]) == (1, "first", ["first"])
    assert (info["dimension"], info["max_tokens"], info["pooling"]) == (DIMENSION, MAX_TOKENS, ["mean"])
    assert info["limits"]["max_inputs"] == 7
    assert info["prompts"] == {"query": "ask ", "document": ""}
    assert info["provider"]["chosen"] == "FakeProvider"
    assert unknown["code"] == "model_not_found"


def test_metrics_count_what_was_done() -> None:
    with running_worker() as worker:
        worker.ask({"id": 1, "inputs": ["a", "b c"]})
        worker.ask({"id": 2, "method": "nonsense"})
        metrics = worker.ask({"id": 3, "method": "metrics"})["metrics"]
    assert (metrics["texts"], metrics["tokens"], metrics["micro_batches"]) == (2, 5, 1)
    assert metrics["requests"] == {"ok": 1, "unknown_method": 1}
    assert metrics["rss_bytes"] > 2**20


# Models


def test_a_model_is_loaded_served_and_unloaded_by_name() -> None:
    with running_worker() as worker:
        unknown = worker.ask({"id": 1, "inputs": "a", "model": "org/second"})
        loaded = worker.ask({"id": 2, "method": "load_model", "model": "org/second", "cache_dir": "/ignored"})
        again = worker.ask({"id": 3, "method": "load_model", "model": "second"})
        answer = worker.ask({"id": 4, "inputs": "a", "model": "second"})
        names = worker.ask({"id": 5, "method": "info", "model": "second"})["models"]
        unloaded = worker.ask({"id": 6, "method": "unload_model", "model": "org/second"})
        gone = worker.ask({"id": 7, "inputs": "a", "model": "second"})
        twice = worker.ask({"id": 8, "method": "unload_model", "model": "second"})
    assert unknown["code"] == "model_not_found"
    assert "load_model" in unknown["message"]
    assert (loaded["model"], loaded["dimension"], loaded["providers"]) == ("second", DIMENSION, ["FakeProvider"])
    assert again["fingerprint"] == loaded["fingerprint"] == answer["fingerprint"]
    assert names == ["first", "second"]
    assert unloaded["model"] == "second"
    assert (gone["code"], twice["code"]) == ("model_not_found", "model_not_found")


def test_a_model_in_use_is_unloaded_when_its_work_is_done_and_can_be_loaded_meanwhile() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        old = worker.engine  # before the new one is loaded under its name
        worker.send({"id": "queued", "inputs": "a"}, {"id": "u", "method": "unload_model", "model": "first"})
        worker.send({"id": "none", "inputs": "b"}, {"id": "l", "method": "load_model", "model": "first"})
        answers = worker.receive_many(2)
        assert answers["none"]["code"] == "model_not_found"
        assert answers["l"]["status"] == "ok"
        assert worker.ask({"id": "p", "method": "ping"})["in_flight"] == 2
        old.gate.set()
        rest = worker.receive_many(3)
        assert worker.ask({"id": "new", "inputs": "c"})["status"] == "ok"
        assert sum(old.runs) == 3
    assert all(answer["status"] == "ok" for answer in rest.values())


def test_an_unloaded_model_is_given_back() -> None:
    with running_worker(lanes=2) as worker:
        worker.ask({"id": 1, "method": "load_model", "model": "second"})
        worker.ask({"id": 2, "inputs": ["a", "b"] * 100, "model": "second"})
        engine = weakref.ref(worker.loader.models.pop("second").engine)
        worker.ask({"id": 3, "method": "unload_model", "model": "second"})
        gc.collect()
        assert engine() is None


@pytest.mark.parametrize("name", ["nowhere", "../first", "/etc", "a/b/c", "", "x" * 300, "x" * 5000])
@pytest.mark.parametrize("method", ["embed", "info", "load_model", "unload_model"])
def test_a_name_that_is_no_model_is_model_not_found(name: str, method: str) -> None:
    with running_worker() as worker:
        inputs = {"inputs": "a"} if method == "embed" else {}
        answer = worker.ask({"id": 1, "method": method, "model": name, **inputs})
    assert (answer["code"], answer["retryable"]) == ("model_not_found", False)
    assert len(answer["message"]) < 500


def test_a_model_that_fails_to_load_later_harms_nobody_else_and_may_be_tried_again() -> None:
    with running_worker() as worker:
        first = worker.ask({"id": 1, "method": "load_model", "model": "bad"})
        second = worker.ask({"id": 2, "method": "load_model", "model": "bad"})
        info = worker.ask({"id": 3, "method": "info", "model": "bad"})
        assert worker.ask({"id": 4, "inputs": "a"})["status"] == "ok"
    assert first["code"] == second["code"] == "model_load_failed"
    assert info["code"] == "model_not_found"


def test_requests_wait_for_a_second_model_that_is_loading_and_hear_when_it_fails() -> None:
    loader = FakeLoader()
    with running_worker(loader=loader) as worker:
        worker.ask({"id": 0, "inputs": "x"})
        loader.gate.clear()
        worker.send({"id": 1, "method": "load_model", "model": "bad"}, {"id": 2, "inputs": "a", "model": "bad"})
        worker.send({"id": 3, "inputs": "a", "model": "bad", "dimensions": 99}, {"id": 4, "inputs": [], "model": "bad"})
        assert worker.is_silent()
        assert worker.ask({"id": 5, "inputs": "b"})["status"] == "ok"
        loader.gate.set()
        answers = worker.receive_many(4)
    assert {answer["code"] for answer in answers.values()} == {"model_load_failed"}


# The default model fails


@pytest.mark.parametrize("name", ["bad", "missing"])
def test_without_a_default_model_lines_are_answered_for_a_moment_and_the_worker_exits_with_78(name: str) -> None:
    loader = FakeLoader()
    loader.gate.clear()
    with running_worker(models=[name], loader=loader) as worker:
        worker.send({"id": 1, "inputs": "a"}, {"id": 2, "method": "info"}, {"inputs": "b"})
        loader.gate.set()
        answers = worker.receive_many(3)
        worker.send({"id": 4, "inputs": "late"}, {"id": 5, "method": "ping"})
        late = worker.receive_many(2)
        worker.close_input()
        assert worker.wait() == ExitCode.UNUSABLE_MODEL
    codes = {answer["code"] for answer in (*answers.values(), *late.values())}
    assert codes == {"model_load_failed"}


def test_a_default_model_that_fails_after_the_end_of_input_is_still_78() -> None:
    loader = FakeLoader()
    loader.gate.clear()
    with running_worker(models=["bad"], loader=loader) as worker:
        worker.send({"id": 1, "inputs": "a"})
        assert worker.is_silent()
        worker.close_input()
        loader.gate.set()
        assert [answer["code"] for answer in worker.receive_rest()] == ["model_load_failed"]
        assert worker.wait() == ExitCode.UNUSABLE_MODEL


def test_a_default_model_without_memory_exits_with_75() -> None:
    loader = FakeLoader()
    loader.error = OutOfMemoryError("no memory to load the model")
    loader.gate.clear()
    with running_worker(loader=loader) as worker:
        worker.send({"id": 1, "inputs": "a"})
        assert worker.is_silent()
        loader.gate.set()
        assert worker.receive()["code"] == "out_of_memory"
        assert worker.wait() == ExitCode.TRY_AGAIN


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), ImportError("x.so: failed to map segment")])
def test_a_default_model_without_threads_or_room_for_a_library_exits_with_75(error: Exception) -> None:
    loader = FakeLoader()
    loader.error = error
    with running_worker(loader=loader) as worker:
        assert worker.wait() == ExitCode.TRY_AGAIN


def test_a_default_model_that_takes_too_long_ends_the_worker_with_75_and_says_what_it_waited_for() -> None:
    loader = FakeLoader()
    loader.gate.clear()
    with running_worker(loader=loader, start_limit_s=0.01) as worker:
        worker.send({"id": 1, "inputs": "a"}, {"id": 2, "method": "info"})
        worker.close_input()
        rest = worker.receive_rest()
        assert worker.wait() == ExitCode.TRY_AGAIN
        loader.gate.set()
    assert {answer["id"] for answer in rest} <= {1, 2}
    assert {(answer["code"], answer["message"]) for answer in rest} <= {
        ("shutting_down", "the model 'first' was not ready within 0.01 s: waiting at its gate")
    }


def test_another_model_that_takes_too_long_fails_and_the_next_one_is_loaded() -> None:
    loader = FakeLoader()
    with running_worker(loader=loader, start_limit_s=0.01) as worker:
        worker.ask({"id": 0, "inputs": "x"})
        loader.gate.clear()
        slow = worker.ask({"id": 1, "method": "load_model", "model": "second"})
        assert (slow["code"], slow["message"][-19:]) == ("model_load_failed", "waiting at its gate")
        loader.gate.set()
        loaded = {"id": 2, "method": "load_model", "model": "third"}
        assert worker.ask(loaded)["status"] == "ok"
        assert worker.ask({"id": 3, "inputs": "x"})["status"] == "ok"
        assert worker.ask({"id": 4, "method": "info"})["models"] == ["first", "third"]


def test_a_second_model_that_fails_at_start_leaves_the_first_in_service() -> None:
    with running_worker(models=["first", "bad"]) as worker:
        answers = [worker.ask({"id": number, "inputs": "a", "model": "bad"}) for number in range(2)]
        assert worker.ask({"id": "x", "inputs": "a"})["status"] == "ok"
    assert {answer["code"] for answer in answers} <= {"model_load_failed", "model_not_found"}


# The drain


def owe_three_answers(worker: Worker) -> None:
    hold_the_lane(worker)
    worker.send({"id": 1, "inputs": ["a", "b"]}, {"inputs": "c"})
    assert worker.is_silent()


class WatchedStops:
    """The server's queue of stops, which tells when the main thread has come back for more than there is."""

    def __init__(self, stops: queue.SimpleQueue[On | ErrorCode | None]) -> None:
        self.stops = stops
        self.put = stops.put
        self.empty = stops.empty
        self.is_armed = False
        self.all_seen = threading.Event()

    def get(self, *, timeout: float) -> On | ErrorCode | None:
        if self.is_armed and self.stops.empty():
            self.all_seen.set()
        return self.stops.get(timeout=timeout)


def stop_and_wait_until_seen(worker: Worker, *stops: On) -> None:
    watched = WatchedStops(worker.server._happenings)
    for stop in stops:
        worker.server.happens(stop)
    watched.is_armed = True
    setattr(worker.server, "_happenings", watched)  # noqa: B010 - another type, for this test
    assert watched.all_seen.wait(WAIT_S)


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (lambda worker: worker.close_input(), ExitCode.OK),
        (lambda worker: worker.send({"id": "s", "method": "shutdown"}), ExitCode.OK),
        (lambda worker: worker.server.happens(On.TERMINATED), ExitCode.OK),
        (lambda worker: worker.server.happens(On.INTERRUPTED), ExitCode.INTERRUPTED),
        (lambda worker: worker.server.happens(On.INPUT_BROKEN), ExitCode.PIPE_FAILED),
    ],
    ids=["end of input", "shutdown", "SIGTERM", "SIGINT", "read error"],
)
def test_accepted_work_is_answered_before_the_worker_exits(stop: Callable[[Worker], object], status: int) -> None:
    with running_worker() as worker:
        owe_three_answers(worker)
        stop(worker)
        worker.engine.gate.set()
        rest = [answer for answer in worker.receive_rest() if answer["id"] != "s"]
        assert worker.wait() == status
    assert {answer["id"] for answer in rest} == {"busy", 1, None}
    assert all(answer["status"] == "ok" for answer in rest)


def test_nothing_owed_at_the_end_of_input_exits_at_once_even_while_the_model_loads() -> None:
    loader = FakeLoader()
    loader.gate.clear()
    with running_worker(loader=loader) as worker:
        worker.close_input()
        assert worker.wait() == ExitCode.OK
        assert worker.receive_rest() == []


def test_what_comes_after_shutdown_is_refused_until_the_drain_ends() -> None:
    with running_worker() as worker:
        owe_three_answers(worker)
        worker.send({"id": "s", "method": "shutdown"}, {"id": 5, "inputs": "x"}, {"id": 6, "method": "info"})
        worker.send({"id": 7, "inputs": 5}, {"id": 8, "method": "cancel", "target": 1})
        answers = worker.receive_many(6)
        worker.engine.gate.set()
        rest = worker.receive_rest()
        assert worker.wait() == ExitCode.OK
    assert answers["s"]["pending"] == 3
    assert [answers[key]["code"] for key in (5, 6, 7, 1)] == [
        "shutting_down",
        "shutting_down",
        "invalid_request",
        "cancelled",
    ]
    assert answers[5]["retryable"] is True
    assert answers[8]["cancelled"] is True
    assert {answer["id"] for answer in rest} == {"busy", None}


@pytest.mark.parametrize("first", [On.TERMINATED, On.INTERRUPTED])
@pytest.mark.parametrize("second", [On.TERMINATED, On.INTERRUPTED])
def test_a_second_stop_signal_drops_queued_work_with_an_answer(first: On, second: On) -> None:
    with running_worker() as worker:
        owe_three_answers(worker)
        worker.server.happens(first)
        worker.server.happens(second)
        rest = worker.receive_rest()
        assert worker.wait() == (ExitCode.OK if first is On.TERMINATED else ExitCode.INTERRUPTED)
        assert not worker.engine.gate.is_set()
    assert {answer["id"] for answer in rest} == {"busy", 1, None}
    assert {answer["code"] for answer in rest} == {"shutting_down"}


@pytest.mark.parametrize(("signal", "status"), [(On.TERMINATED, ExitCode.OK), (On.INTERRUPTED, 130)])
def test_the_first_stop_signal_after_the_end_of_input_still_lets_accepted_work_end(signal: On, status: int) -> None:
    with running_worker() as worker:
        owe_three_answers(worker)
        stop_and_wait_until_seen(worker, On.END_OF_INPUT, signal)
        worker.engine.gate.set()
        rest = worker.receive_rest()
        assert worker.wait() == status
    assert [answer["status"] for answer in rest] == ["ok"] * 3


def test_nothing_more_is_read_after_a_stop_signal() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        stop_and_wait_until_seen(worker, On.TERMINATED)
        worker.send({"id": 9, "inputs": "never read"})
        worker.engine.gate.set()
        assert [answer["id"] for answer in worker.receive_rest()] == ["busy"]
        assert worker.wait() == ExitCode.OK


def test_a_bounded_drain_answers_the_rest_with_shutting_down() -> None:
    with running_worker(is_supervised=True, drain_timeout_s=0.01) as worker:
        owe_three_answers(worker)
        worker.close_input()
        rest = worker.receive_rest()
        assert worker.wait() == ExitCode.OK
        assert not worker.engine.gate.is_set()
    assert {answer["id"] for answer in rest} == {"busy", 1, None}
    assert {answer["code"] for answer in rest} == {"shutting_down"}


def test_a_reader_that_waits_for_room_does_not_hold_up_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_worker(limits=Limits(max_in_flight=1)) as worker:
        hold_the_lane(worker)
        waits = threading.Event()
        admit = worker.server._answers.admit

        def wait(*arguments: Any) -> bool:
            waits.set()
            return admit(*arguments)

        monkeypatch.setattr(worker.server._answers, "admit", wait)
        worker.send({"id": "blocked", "inputs": "a"}, {"id": "behind", "inputs": "b"})
        assert waits.wait(WAIT_S)
        worker.server.happens(On.TERMINATED)
        refused = worker.receive()
        worker.engine.gate.set()
        rest = worker.receive_rest()
        assert worker.wait() == ExitCode.OK
    assert (refused["id"], refused["code"]) == ("blocked", "shutting_down")
    assert [answer["id"] for answer in rest] == ["busy"]


def test_a_supervised_worker_ends_when_its_parent_dies_and_a_plain_one_does_not() -> None:
    is_alive = threading.Event()
    is_alive.set()
    with running_worker(is_supervised=True, is_parent_alive=is_alive.is_set) as worker:
        hold_the_lane(worker)
        is_alive.clear()
        assert worker.wait() == ExitCode.PIPE_FAILED
    with running_worker(is_parent_alive=is_alive.is_set) as worker:
        assert worker.ask({"id": 1, "inputs": "x"})["status"] == "ok"


@pytest.mark.skipif(os.name == "nt", reason="poll tells of a closed pipe on POSIX")
def test_nobody_reading_the_answers_any_more_ends_the_worker() -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        worker.server.happens(On.OUTPUT_BROKEN)
        assert worker.wait() == ExitCode.PIPE_FAILED


def test_an_answer_that_cannot_be_written_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_worker() as worker:
        worker.ask({"id": "warm", "inputs": "x"})

        def fail(*_: object) -> None:
            raise BrokenPipeError

        monkeypatch.setattr(worker.server._writer, "_write_all", fail)
        worker.send({"id": 1, "inputs": "x"})
        assert worker.wait() == ExitCode.PIPE_FAILED
        assert worker.receive_rest() == []


def test_a_thread_that_ends_unexpectedly_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_worker() as worker:
        hold_the_lane(worker)
        monkeypatch.setattr(worker.server._lanes, "_choose", Mock(side_effect=Panic))
        worker.engine.gate.set()
        assert worker.wait() == ExitCode.INTERNAL


def test_a_loader_that_ends_unexpectedly_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_worker() as worker:
        worker.ask({"id": 0, "inputs": "x"})
        monkeypatch.setattr(worker.store, "_tell", Mock(side_effect=Panic))
        worker.send({"id": 1, "method": "load_model", "model": "second"})
        assert [answer["code"] for answer in worker.receive_rest()] == ["internal_error"]
        assert worker.wait() == ExitCode.INTERNAL


def test_a_task_that_meets_a_bug_is_answered_and_the_lane_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_worker() as worker:
        worker.ask({"id": 0, "inputs": "a"})
        with monkeypatch.context() as broken:
            broken.setattr(worker.server._lanes, "_tokenize", Mock(side_effect=Panic))
            for inputs in ("small", ["bulk"] * 1000):
                assert worker.ask({"id": 1, "inputs": inputs})["code"] == "internal_error"
        for inputs in ("small", ["bulk"] * 1000):
            assert worker.ask({"id": 1, "inputs": inputs})["status"] == "ok"


def test_ping_is_answered_by_another_thread_while_the_one_that_read_a_request_tokenises_it() -> None:
    with running_worker() as worker:
        worker.ask({"id": "warm", "inputs": "x"})
        worker.engine.tokenizer.entered.get(timeout=WAIT_S)
        worker.engine.tokenizer.gate.clear()
        worker.send({"id": "small", "inputs": "a"})
        worker.engine.tokenizer.entered.get(timeout=WAIT_S)
        assert worker.is_silent()
        worker.send({"id": "queued", "inputs": "b"})
        assert worker.is_silent()
        worker.engine.tokenizer.gate.set()
        assert set(worker.receive_many(2)) == {"small", "queued"}


def test_the_thread_that_read_a_small_request_does_it_when_nothing_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[str] = []
    workers: list[str] = []
    with running_worker() as worker:
        for _ in range(2):  # the first waits for the model, and so may end with the thread that loads it
            worker.ask({"id": "warm", "inputs": "x"})
        handle = worker.server._requests._handle
        embed = worker.engine.embed

        def note_reader(line: Any) -> Any:
            readers.append(threading.current_thread().name)
            return handle(line)

        def note_worker(*arguments: Any, **named: Any) -> Any:
            workers.append(threading.current_thread().name)
            return embed(*arguments, **named)

        monkeypatch.setattr(worker.server._requests, "_handle", note_reader)
        monkeypatch.setattr(worker.engine, "embed", note_worker)
        for number in range(10):
            assert worker.ask({"id": number, "inputs": "a"})["status"] == "ok"
    assert readers == workers
    assert len(workers) == 10


def ask_until_reading_is_watched(worker: Worker) -> None:
    """Ask brief requests until the thread that reads them does them without waking another."""
    for number in range(100):
        worker.ask({"id": f"brief {number}", "inputs": "a"})
        if worker.server._lanes._is_watched:
            return
    raise AssertionError("nobody watches")


def hold_a_run_of(worker: Worker, request: dict[str, Any]) -> None:
    """Send a request, and keep it in its run until the gate opens."""
    worker.engine.gate.clear()
    while not worker.engine.entered.empty():
        worker.engine.entered.get()
    worker.send(request)
    worker.engine.entered.get(timeout=WAIT_S)


def test_in_a_stream_of_brief_requests_one_thread_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed_worker.serving.lanes._ACTIVE_S", 1e9)
    monkeypatch.setattr("embed_worker.serving.lanes._WATCH_S", WAIT_S)
    with running_worker(lanes=2) as worker:
        ask_until_reading_is_watched(worker)
        workers: list[int] = []
        embed = worker.engine.embed

        def note_worker(*arguments: Any, **named: Any) -> Any:
            workers.append(threading.get_ident())
            return embed(*arguments, **named)

        monkeypatch.setattr(worker.engine, "embed", note_worker)
        for number in range(20):
            assert worker.ask({"id": number, "inputs": "a"})["status"] == "ok"
    assert len(workers) == 20
    assert len(set(workers)) == 1


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_brief_request_that_takes_long_does_not_keep_lines_from_being_read(
    lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embed_worker.serving.lanes._ACTIVE_S", 1e9)
    with running_worker(lanes=lanes) as worker:
        ask_until_reading_is_watched(worker)
        for number in range(3):
            hold_a_run_of(worker, {"id": number, "inputs": "a"})
            assert worker.is_silent()
            worker.send({"id": "queued", "inputs": "b"})
            assert worker.is_silent()
            worker.engine.gate.set()
            assert set(worker.receive_many(2)) == {number, "queued"}
            ask_until_reading_is_watched(worker)
        hold_a_run_of(worker, {"id": "last", "inputs": "a"})
        worker.close_input()
        assert worker.status.empty()
        worker.engine.gate.set()
        assert worker.receive()["id"] == "last"
        assert worker.wait() == ExitCode.OK


def test_a_brief_request_that_was_begun_before_a_pause_of_the_process_is_watched_after_it() -> None:
    clock = FakeClock()
    with running_worker(lanes=1, clock=clock) as worker:
        for number in range(3):  # the watch may have been begun before the pause, which proves nothing
            ask_until_reading_is_watched(worker)
            hold_a_run_of(worker, {"id": number, "inputs": "a"})
            clock.advance(60.0)
            assert worker.is_silent()
            worker.engine.gate.set()
            assert worker.receive()["id"] == number


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_long_request_is_never_kept_from_other_lines(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed_worker.serving.lanes._ACTIVE_S", 1e9)
    with running_worker(lanes=lanes) as worker:
        ask_until_reading_is_watched(worker)
        monkeypatch.setattr("embed_worker.serving.lanes._WATCH_S", 1e9)
        worker.ask({"id": "the last brief one", "inputs": "a"})
        hold_a_run_of(worker, {"id": "long", "inputs": "word " * 100})
        assert worker.is_silent()
        worker.engine.gate.set()
        assert worker.receive()["id"] == "long"


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_brief_request_that_is_several_runs_is_not_left_to_the_thread_that_reads_on(
    lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embed_worker.serving.lanes._ACTIVE_S", 1e9)
    monkeypatch.setattr("embed_worker.serving.lanes._WATCH_S", 1e6)
    with running_worker(lanes=lanes, runtime=RuntimeOptions(batch_invariant=True)) as worker:
        for number in range(5):  # a thread that has done its share meanwhile may help once by chance
            ask_until_reading_is_watched(worker)
            answer = worker.ask({"id": number, "inputs": ["a", "b", "c"]})
            np.testing.assert_array_equal(matrix_of(answer), [expected_vector(text) for text in "abc"])


def test_a_deadline_that_passes_while_all_lanes_are_busy_is_waited_for_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    with running_worker(lanes=1, clock=clock) as worker:
        hold_the_lane(worker)
        worker.send({"id": "late", "inputs": "b", "deadline_ms": 1})
        assert worker.is_silent()
        clock.advance(1.0)
        looked = threading.Event()
        looks = [0]
        choose = worker.server._lanes._choose

        def count_looks() -> Any:
            looks[0] += 1
            if looks[0] > 100:
                looked.set()
            return choose()

        monkeypatch.setattr(worker.server._lanes, "_choose", count_looks)
        worker.close_input()
        assert not looked.wait(0.2)
        worker.engine.gate.set()
        answers = worker.receive_many(2)
        assert (answers["busy"]["status"], answers["late"]["code"]) == ("ok", "deadline_exceeded")


def test_brief_and_long_runs_between_pauses_are_all_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    monkeypatch.setattr("embed_worker.serving.lanes._WATCH_S", 0.002)
    monkeypatch.setattr("embed_worker.serving.lanes._ACTIVE_S", 0.02)
    with running_worker(lanes=2) as worker:
        worker.ask({"id": "warm", "inputs": "x"})
        embed = worker.engine.embed

        def take_some_time(*arguments: Any, **named: Any) -> Any:
            time.sleep(rng.choice([0, 0, 0, 0.001, 0.004]))
            return embed(*arguments, **named)

        monkeypatch.setattr(worker.engine, "embed", take_some_time)
        expected: set[int] = set()
        for number in range(400):
            worker.send({"id": number, "inputs": "a"} if rng.random() < 0.9 else {"id": number, "method": "ping"})
            expected.add(number)
            if rng.random() < 0.8:
                answers = [worker.receive()["id"] for _ in range(len(expected))]
                assert set(answers) == expected
                expected.clear()
            time.sleep(rng.choice([0, 0, 0, 0, 0, 0.003, 0.03]) if rng.random() < 0.2 else 0)
        assert {worker.receive()["id"] for _ in range(len(expected))} == expected


def test_a_reader_that_meets_a_bug_ends_the_worker_instead_of_hanging_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with running_worker() as worker:
        monkeypatch.setattr(worker.server._requests, "_handle", meet_a_bug)
        worker.send({"id": 1, "method": "ping"})
        try:
            assert worker.wait() == ExitCode.INTERNAL
        finally:
            worker.server.happens(On.END_OF_INPUT)


# Exactly one answer


def request_lines(seed: int) -> tuple[bytes, list[int | str | None]]:
    """Write a few dozen lines of every kind, and the ids that their answers must bear."""
    rng = random.Random(seed)
    lines: list[bytes] = []
    ids: list[int | str | None] = []
    for number in range(rng.randint(1, 60)):
        request_id = rng.choice([number, f"n{number}", None])
        message: dict[str, Any] = rng.choice(
            [
                {"inputs": [rng.choice(["a", "b c", "this is nan", "d e f"]) for _ in range(rng.randint(0, 5))]},
                {"inputs": ["a long one"] * rng.randint(100, 300)},
                {"inputs": ["x", "some poison"]},
                {"inputs": "x", "deadline_ms": rng.choice([0, 1, 10**6])},
                {"inputs": "a " * 30, "truncate": rng.choice([True, False])},
                {"method": "cancel", "target": rng.randint(0, 60)},
                {"method": "ping"},
                {"method": "info", "model": rng.choice(["first", "second", "bad", "nowhere"])},
                {"method": "load_model", "model": rng.choice(["second", "third", "bad"])},
                {"method": "unload_model", "model": rng.choice(["second", "third"])},
                {"inputs": ["y"] * 3, "model": rng.choice(["second", "third", "bad"])},
                {"method": "metrics"},
                {"nonsense": 1},
            ]
        )
        if rng.random() < 0.1:
            lines.append(rng.choice([b"{", b"\xff\xfe", b"[1]", b'{"id": true, "inputs": "x"}', b"x" * 9000]))
            ids.append(None)
            continue
        if request_id is not None:
            message = {"id": request_id, **message}
        lines.append(json.dumps(message).encode())
        ids.append(request_id)
    return b"\n".join(lines) + b"\n", ids


# Not shrunk: a lost answer costs the whole time-out each time.
@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 2**32), lanes=st.integers(1, 3), in_flight=st.sampled_from([1, 3, 1024]))
def test_every_line_gets_exactly_one_answer_and_the_unnumbered_in_order(seed: int, lanes: int, in_flight: int) -> None:
    data, ids = request_lines(seed)
    limits = Limits(max_in_flight=in_flight, max_line_bytes=8000)

    def feed() -> None:
        worker.send_raw(data)
        worker.close_input()

    with running_worker(lanes=lanes, limits=limits, runtime=RuntimeOptions(batch_tokens=64)) as worker:
        feeder = threading.Thread(target=feed)
        feeder.start()
        answers = worker.receive_rest()
        feeder.join(WAIT_S)
        assert worker.wait() == ExitCode.OK
    numbered = [answer["id"] for answer in answers if answer["id"] is not None]
    assert sorted(map(str, numbered)) == sorted(str(i) for i in ids if i is not None)
    lines = [answer["line"] for answer in answers if answer["id"] is None]
    assert lines == [number for number, i in enumerate(ids, 1) if i is None]


def test_vectors_are_the_texts_own_under_load() -> None:
    rng = random.Random(5)
    requests = {
        number: [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 11))) for _ in range(rng.choice([1, 1, 3, 200]))]
        for number in range(60)
    }
    with running_worker(lanes=3, runtime=RuntimeOptions(batch_tokens=40)) as worker:
        data = lines_of(*({"id": number, "inputs": texts} for number, texts in requests.items()))
        feeder = threading.Thread(target=lambda: worker.send_raw(data))
        feeder.start()
        answers = worker.receive_many(len(requests))
        feeder.join(WAIT_S)
    for number, texts in requests.items():
        np.testing.assert_array_equal(matrix_of(answers[number]), [expected_vector(text) for text in texts])
