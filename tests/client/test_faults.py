"""Everything a worker can do wrong, one fault a test: each is handled as `docs/supervision.md` says."""

from __future__ import annotations

import logging
import os
import queue
import sys
import textwrap
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from bridge_client import (
    Cause,
    CircuitOpenError,
    ClientOptions,
    EmbedClient,
    ModelChangedError,
    PoisonedInputError,
    ProtocolMismatchError,
    RequestError,
    State,
    Timing,
    WorkerDiedError,
    WorkerHungError,
    WorkerStartError,
)
from bridge_client.testing import fake_client, fake_command
from bridge_client.testing.processes import freeze, is_there, send_signal, status_of
from bridge_client.worker_process import WorkerProcess
from tests.client.conftest import WAIT_S, wait_until
from tests.client.test_client import expected
from tests.patience import PATIENCE

QUICK = ClientOptions(backoff_initial_s=0.01, timing=Timing(drain_s=0.3, terminate_s=0.3))
IMPATIENT = ClientOptions(
    backoff_initial_s=0.01,
    timing=Timing(ping_every_s=0.1, pong_timeout_s=0.4, stuck_after_s=0.5, drain_s=0.3, terminate_s=0.3),
)


def last_cause(client: EmbedClient) -> Cause:
    report = client.stats().last_exit
    assert report is not None
    return report.cause


# Starting ---------------------------------------------------------------------------------------------------------


def test_nothing_to_execute_is_permanent_and_says_what_was_tried() -> None:
    with EmbedClient(worker_command=("/nonexistent/embed-worker", "--flag")) as client:
        with pytest.raises(WorkerStartError) as caught:
            client.embed(["a"])
        assert caught.value.argv == ("/nonexistent/embed-worker", "--flag", "--supervised")
        wait_until(lambda: client.stats().state is State.FAILED)
        with pytest.raises(WorkerStartError):
            client.info()


def test_a_command_that_the_system_cannot_even_take_is_permanent() -> None:
    with EmbedClient(worker_command=("embed-worker", "a null \0 byte")) as client, pytest.raises(WorkerStartError):
        client.embed(["a"])


def test_a_file_that_cannot_be_executed_is_permanent(tmp_path: Path) -> None:
    for name, mode in (("not to be executed", 0o600), ("no program", 0o700)):
        script = tmp_path / name
        script.write_bytes(b"\x00\x01 no program of any system")
        script.chmod(mode)
        with EmbedClient(worker_command=(str(script),)) as client, pytest.raises(WorkerStartError):
            client.embed(["a"])


@pytest.mark.parametrize("status", [2, 78, 126, 127])
def test_exit_statuses_that_another_start_cannot_help_are_never_retried(status: int, count_file: str) -> None:
    with fake_client(QUICK, fail_start=status, count_file=count_file) as client:
        with pytest.raises(WorkerStartError) as caught:
            client.embed(["a"])
        assert caught.value.exit_status == status
        assert "fake worker: told to fail" in caught.value.stderr_tail
        assert client.stats().state is State.FAILED
    assert Path(count_file).stat().st_size == 1


@pytest.mark.parametrize("status", [0, 1, 70, 74])
def test_starts_that_fail_are_retried_until_the_budget_is_spent(status: int, count_file: str) -> None:
    with fake_client(QUICK, fail_start=status, count_file=count_file) as client:
        with pytest.raises(CircuitOpenError) as caught:
            client.embed(["a"])
        assert isinstance(caught.value.last_cause, WorkerStartError)
        assert caught.value.retry_in_s == pytest.approx(60.0, abs=5.0)
        with pytest.raises(CircuitOpenError):
            client.embed(["b"])
    assert Path(count_file).stat().st_size == 5


def test_a_start_that_fails_a_few_times_is_invisible_to_the_caller(count_file: str) -> None:
    with fake_client(QUICK, fail_start=1, count_file=count_file, processes=3) as client:
        assert np.array_equal(client.embed(["a"]), expected("a"))
        assert client.stats().restarts == 3


@pytest.mark.parametrize(("is_retryable", "state"), [(True, State.READY), (False, State.FAILED)])
def test_a_worker_that_refuses_info_and_stays_is_tried_again_only_if_that_can_help(
    is_retryable: bool, state: State, tmp_path: Path
) -> None:
    """As one that had no memory to load its model, and then none to leave."""
    refusal = {"status": "error", "code": "out_of_memory", "message": "no memory", "retryable": is_retryable}
    source = f"""
    import json, os, runpy, sys, time
    if os.path.exists({str(tmp_path / "second")!r}):
        sys.exit(runpy.run_module({fake_command()[-1]!r}, run_name="__main__"))
    open({str(tmp_path / "second")!r}, "w").close()
    request = json.loads(sys.stdin.readline())
    print(json.dumps({{"id": request["id"]}} | {refusal!r}), flush=True)
    time.sleep(3600)
    """
    command = (sys.executable, "-c", textwrap.dedent(source))
    options = ClientOptions(worker_command=command, backoff_initial_s=0.01, timing=Timing(terminate_s=0.2))
    with EmbedClient(options) as client:
        client.start()
        wait_until(lambda: client.stats().state is state)
        report = client.stats().last_exit
        assert report is not None
        assert report.detail == "no memory"


def test_a_start_that_hangs_is_killed() -> None:
    # Not too soon for a slow machine: a process killed while it is made leaves its pipes to the console helper of Wine.
    options = ClientOptions(start_timeout_s=0.4 * PATIENCE, restart_budget=1)
    with fake_client(options, start_delay=3600.0) as client:
        with pytest.raises(CircuitOpenError):
            client.embed(["a"])
        assert last_cause(client) is Cause.START_TIMEOUT


def test_garbage_before_ready_is_tolerated_up_to_a_bound() -> None:
    with fake_client(QUICK, garbage_before_ready=20) as client:
        assert np.array_equal(client.embed(["a"]), expected("a"))
    with fake_client(ClientOptions(restart_budget=1), garbage_before_ready=100) as client:
        with pytest.raises(CircuitOpenError):
            client.embed(["a"])
        assert last_cause(client) is Cause.BROKE_PROTOCOL


def test_another_protocol_is_permanent() -> None:
    with fake_client(QUICK, protocol=2) as client:
        with pytest.raises(ProtocolMismatchError, match="protocol 2"):
            client.embed(["a"])
        with pytest.raises(ProtocolMismatchError):
            client.embed(["a"])


def test_another_model_after_a_restart_is_permanent_until_it_is_accepted(count_file: str) -> None:
    with fake_client(QUICK, change_model=True, kill_after=1, count_file=count_file) as client:
        client.embed(["a"])
        with pytest.raises(ModelChangedError):
            client.embed(["b"])
        wait_until(lambda: client.stats().state is State.FAILED)
        with pytest.raises(ModelChangedError):
            client.embed(["c"])
        client.restart()
        wait_until(lambda: client.stats().generation == 3 and client.stats().state is State.FAILED)
        with pytest.raises(ModelChangedError):
            client.embed(["c"])
        client.restart(accept_model=True)
        wait_until(lambda: client.stats().state is State.READY)
        assert client.embed_detailed(["d"]).fingerprint == "0000000000000003"


def test_a_worker_command_that_prints_and_exits_is_told_apart() -> None:
    command = (sys.executable, "-c", "print('hello'); import sys; sys.exit('cannot')")
    with EmbedClient(worker_command=command, restart_budget=1) as client:
        with pytest.raises(CircuitOpenError) as caught:
            client.embed(["a"])
        assert isinstance(caught.value.last_cause, WorkerStartError)
        assert "cannot" in caught.value.last_cause.stderr_tail


# Dying ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill_after", "exit_after"])
def test_a_worker_that_dies_again_and_again_is_replaced_and_nothing_is_lost(fault: str) -> None:
    options = ClientOptions(backoff_initial_s=0.001, backoff_max_s=0.01, restart_budget=1000)
    with fake_client(options, **{fault: "7"}) as client:
        futures = [client.submit(str(number)) for number in range(200)]
        for number, future in enumerate(futures):
            assert np.array_equal(future.result(WAIT_S).vectors, expected(str(number)))
        assert client.stats().restarts >= 28
        assert client.stats().blamed == 0


def test_a_crash_loop_with_a_successful_start_each_time_ends_in_failed() -> None:
    with fake_client(QUICK, exit_after="0") as client:
        with pytest.raises(CircuitOpenError) as caught:
            client.embed(["a"])
        assert isinstance(caught.value.last_cause, WorkerDiedError)
        assert client.stats().state is State.FAILED
        assert client.stats().generation == 5


def test_half_open_recovery(count_file: str) -> None:
    options = ClientOptions(backoff_initial_s=0.01, timing=Timing(half_open_initial_s=0.05, half_open_max_s=0.2))
    with fake_client(options, exit_after="0", count_file=count_file, processes=7) as client:
        with pytest.raises(CircuitOpenError):
            client.embed(["a"])
        wait_until(lambda: client.stats().state is State.READY)
        while client.stats().generation < 8:
            with pytest.raises(CircuitOpenError):
                client.embed(["a"])
            wait_until(lambda: client.stats().state is State.READY)
        assert np.array_equal(client.embed(["a"]), expected("a"))


def test_restart_leaves_failed_at_once_and_replaces_a_ready_worker(count_file: str) -> None:
    with fake_client(QUICK, exit_after="0", count_file=count_file, processes=5) as client:
        with pytest.raises(CircuitOpenError):
            client.embed(["a"])
        client.restart()
        wait_until(lambda: client.stats().state is State.READY)
        pid = client.stats().pid
        client.restart()
        wait_until(lambda: client.stats().pid not in (None, pid))
        assert np.array_equal(client.embed(["a"]), expected("a"))
        assert client.stats().workers[0].budget_level == 0.0


def test_restart_finishes_or_replays_what_is_in_flight() -> None:
    with fake_client(QUICK, latency=0.05) as client:
        futures = [client.submit(str(number)) for number in range(20)]
        wait_until(lambda: client.stats().in_flight > 0)
        client.restart()
        for number, future in enumerate(futures):
            assert np.array_equal(future.result(WAIT_S).vectors, expected(str(number)))


def test_recycling_is_free_and_loses_nothing(count_file: str) -> None:
    with fake_client(QUICK, exit_after="3:79", count_file=count_file, processes=1) as client:
        futures = [client.submit(str(number)) for number in range(20)]
        for number, future in enumerate(futures):
            assert np.array_equal(future.result(WAIT_S).vectors, expected(str(number)))
        assert last_cause(client) is Cause.RECYCLED
        assert (client.stats().restarts, client.stats().workers[0].budget_level) == (1, 0.0)


def test_a_line_that_breaks_off_is_dropped_and_told() -> None:
    options = ClientOptions(backoff_initial_s=0.01, replay=False)
    with fake_client(options, partial_line_after=0) as client:
        with pytest.raises(WorkerDiedError, match="broke off after") as caught:
            client.embed(["a"])
        assert caught.value.report.partial_line_bytes > 10
        assert caught.value.report.status == status_of("KILL")
        assert sys.platform == "win32" or "out of memory?" in str(caught.value)


def test_without_replay_the_request_fails_with_the_cause_and_the_next_one_succeeds(count_file: str) -> None:
    options = ClientOptions(backoff_initial_s=0.01, replay=False)
    with fake_client(options, kill_after="0:SEGV", say="last words", count_file=count_file, processes=1) as client:
        with pytest.raises(WorkerDiedError) as caught:
            client.embed(["a"])
        assert caught.value.report.status == status_of("SEGV")
        assert "last words" in caught.value.stderr_tail
        assert np.array_equal(client.embed(["a"]), expected("a"))


def test_the_end_of_standard_error_has_lines_and_no_carriage_returns() -> None:
    """As text on Windows would have, and progress bars everywhere."""
    with fake_client(QUICK, fail_start=2, say="one\r\n 10 %\r 20 %\r\r\nlast") as client:
        with pytest.raises(WorkerStartError) as caught:
            client.embed(["a"])
        assert caught.value.stderr_tail.splitlines() == ["one", " 10 %", " 20 %", "last", "fake worker: told to fail"]


def test_a_worker_that_closes_its_output_and_lives_on_is_replaced(count_file: str) -> None:
    with fake_client(QUICK, close_output_after=0, count_file=count_file, processes=1) as client:
        assert np.array_equal(client.embed(["a"]), expected("a"))
        assert last_cause(client) is Cause.EXITED


@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows is killed without its children")
def test_a_grandchild_that_holds_the_pipes_delays_nothing_and_goes_too(tmp_path: Path, count_file: str) -> None:
    pid_file = tmp_path / "grandchild"
    faults = {"grandchild": str(pid_file), "kill_after": "0", "count_file": count_file, "processes": 1}
    with fake_client(QUICK, **faults) as client:
        assert np.array_equal(client.embed(["a"]), expected("a"))
        wait_until(lambda: not is_there(int(pid_file.read_text("ascii"))))


@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows is killed without its children")
def test_a_grandchild_is_gone_after_close(tmp_path: Path) -> None:
    pid_file = tmp_path / "grandchild"
    with fake_client(QUICK, grandchild=str(pid_file)) as client:
        client.embed(["a"])
        pid = int(pid_file.read_text("ascii"))
        assert is_there(pid)
    wait_until(lambda: not is_there(pid))


# Poison and memory ------------------------------------------------------------------------------------------------


def test_a_poison_among_256_innocents_in_mixed_requests_is_found_within_the_default_budget() -> None:
    texts = [f"innocent {number}" for number in range(256)]
    with fake_client(ClientOptions(), poison="poison") as client:
        blamed = client.submit([*texts[:100], "a poison text", *texts[100:150]])
        others = [client.submit(texts[start : start + 10]) for start in range(150, 250, 10)]
        others += [client.submit(text) for text in texts[250:]]
        vectors = np.concatenate([future.result(60.0).vectors for future in others])
        with pytest.raises(PoisonedInputError) as caught:
            blamed.result(60.0)
        assert (caught.value.index, caught.value.indexes) == (100, (100,))
        assert caught.value.others is not None
        assert np.array_equal(np.concatenate([caught.value.others.vectors, vectors]), expected(*texts))
        assert client.stats().state is State.READY
        restarts = client.stats().restarts
        with pytest.raises(PoisonedInputError) as caught:
            client.embed(["fine", "a poison text"])
        assert (caught.value.index, caught.value.others) == (1, None)
        assert client.stats().restarts == restarts, "refused without a worker"
        assert np.array_equal(client.embed(["fine"]), expected("fine"))


def test_two_poisons_in_one_request_are_both_found() -> None:
    texts = [str(number) for number in range(16)]
    with fake_client(QUICK, poison="bad") as client:
        with pytest.raises(PoisonedInputError) as caught:
            client.embed([*texts[:3], "bad 1", *texts[3:], "bad 2"])
        assert caught.value.indexes == (3, 17)
        assert caught.value.others is not None
        assert np.array_equal(caught.value.others.vectors, expected(*texts))


def test_the_same_poison_in_many_requests_is_blamed_once() -> None:
    with fake_client(QUICK, poison="bad") as client:
        futures = [client.submit(["bad", f"innocent {number}"]) for number in range(5)]
        for future in futures:
            with pytest.raises(PoisonedInputError) as caught:
                future.result(WAIT_S)
            assert caught.value.index == 0
        assert client.stats().blamed == 1
        assert client.stats().restarts <= 4


@pytest.mark.parametrize("fault", [{"poison_status": 70}, {"poison_signal": "ABRT"}, {"poison_signal": "BUS"}])
def test_other_ways_to_die_of_an_input(fault: dict[str, str | int]) -> None:
    with fake_client(QUICK, poison="bad", **fault) as client:
        with pytest.raises(PoisonedInputError):
            client.embed(["bad"])
        assert client.stats().blamed == 1


def test_an_input_that_hangs_the_worker_is_blamed() -> None:
    with fake_client(IMPATIENT, poison="bad", poison_hangs=True) as client:
        with pytest.raises(PoisonedInputError):
            client.embed(["bad"])
        assert last_cause(client) is Cause.HUNG


@pytest.mark.skipif(sys.platform == "win32", reason="Windows kills nobody for memory: allocations fail")
def test_a_request_that_takes_too_much_memory_is_cut_smaller(count_file: str) -> None:
    texts = [str(number) for number in range(64)]
    with fake_client(QUICK, oom_above=8, count_file=count_file) as client:
        assert np.array_equal(client.embed(texts), expected(*texts))
        assert client.stats().restarts == 2
        assert np.array_equal(client.embed(texts), expected(*texts))
        assert client.stats().restarts == 2, "the ceiling is remembered"
        assert client.stats().blamed == 0


def test_an_out_of_memory_answer_is_an_answer_and_the_retry_is_smaller() -> None:
    texts = [str(number) for number in range(32)]
    with fake_client(QUICK, exit_75_above=8) as client:
        with pytest.raises(RequestError) as caught:
            client.embed(texts)
        assert (caught.value.code, caught.value.retryable) == ("out_of_memory", True)
        assert np.array_equal(client.embed(texts), expected(*texts))


def test_a_kill_from_outside_blames_nobody_and_the_request_ends_with_its_own_timeout() -> None:
    options = ClientOptions(backoff_initial_s=0.01, backoff_max_s=0.01, restart_budget=1000)
    with fake_client(options, kill_after="0") as client:
        began = time.monotonic()
        client.info()
        start_s = time.monotonic() - began
        with pytest.raises(TimeoutError):
            client.embed(["a"], timeout_s=1.0 + 10 * start_s)  # time for a few deaths, however slow a start is here
        assert client.stats().blamed == 0
        assert client.stats().replays > 2


# Hanging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["hang_after", "stop_reading_after", "stop_after", "stall_after"])
def test_a_hung_worker_is_killed_and_its_request_replayed(fault: str, count_file: str) -> None:
    with fake_client(IMPATIENT, count_file=count_file, processes=1, **{fault: 1}) as client:
        client.embed(["a"])
        assert np.array_equal(client.embed(["b"]), expected("b"))
        assert last_cause(client) is Cause.HUNG


def test_a_hang_without_replay_is_told_as_one() -> None:
    options = ClientOptions(replay=False, timing=IMPATIENT.timing)
    with fake_client(options, hang_after=0) as client, pytest.raises(WorkerHungError):
        client.embed(["a"])


def test_an_idle_worker_that_is_stopped_is_noticed() -> None:
    with fake_client(IMPATIENT) as client:
        client.embed(["a"])
        pid = client.stats().pid
        assert pid is not None
        freeze(pid)
        wait_until(lambda: client.stats().restarts == 1)
        assert last_cause(client) is Cause.HUNG
        assert np.array_equal(client.embed(["b"]), expected("b"))


def test_a_slow_worker_that_answers_pings_is_left_alone() -> None:
    with fake_client(QUICK, latency=0.4) as client:
        assert client.embed(["a"]).shape == (1, 8)
        assert client.stats().restarts == 0


def test_a_worker_that_hangs_after_the_timeout_of_its_request_is_still_noticed(count_file: str) -> None:
    with fake_client(IMPATIENT, stall_after=0, count_file=count_file, processes=1) as client:
        client.info()
        with pytest.raises(TimeoutError):
            client.embed(["a"], timeout_s=0.01)
        wait_until(lambda: client.stats().restarts == 1)
        assert np.array_equal(client.embed(["a"]), expected("a"))


# Lines that are no answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "garbage_after",
        "wrong_count_after",
        "wrong_dimension_after",
        "truncated_base64_after",
        "nan_after",
        "other_fingerprint_after",
    ],
)
def test_an_answer_that_cannot_be_trusted_ends_the_worker_and_is_never_used(fault: str, count_file: str) -> None:
    with fake_client(QUICK, count_file=count_file, processes=1, **{fault: 1}) as client:
        client.embed(["a"])
        assert np.array_equal(client.embed(["b"]), expected("b"))
        assert last_cause(client) is Cause.BROKE_PROTOCOL
        assert client.stats().blamed == 0


def test_answers_in_any_order_doubled_or_for_nobody_are_sorted_out() -> None:
    with fake_client(QUICK, reorder=10, duplicate_after=0, unknown_ids=True) as client:
        futures = [client.submit(str(number)) for number in range(100)]
        for number, future in enumerate(futures):
            assert np.array_equal(future.result(WAIT_S).vectors, expected(str(number)))
        wait_until(lambda: client.stats().unknown_answers == 200)
        assert client.stats().restarts == 0


def test_an_error_is_an_answer_and_is_not_replayed() -> None:
    with fake_client(QUICK, error_after="0:inference_failed") as client:
        with pytest.raises(RequestError) as caught:
            client.embed(["a"])
        assert (caught.value.code, caught.value.index) == ("inference_failed", 0)
        assert client.stats().replays == 0


def test_a_refusal_of_a_worker_that_shuts_down_is_no_answer(count_file: str) -> None:
    options = ClientOptions(backoff_initial_s=0.01, timing=Timing(drain_s=0.1, terminate_s=0.1))
    faults = {"error_after": "1:shutting_down", "count_file": count_file, "processes": 1}
    with fake_client(options, **faults) as client:
        client.embed(["a"])
        future = client.submit("b")
        wait_until(lambda: client.stats().queued == 1)
        pid = client.stats().pid
        assert pid is not None
        send_signal(pid, "TERM")
        assert np.array_equal(future.result(WAIT_S).vectors, expected("b"))


def test_answers_that_come_in_small_pieces_are_put_together() -> None:
    with fake_client(QUICK, slow_write="7:0.0005") as client:
        assert np.array_equal(client.embed(["a", "b"]), expected("a", "b"))


# Volume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without_newline", [True, False])
def test_ten_mebibytes_on_standard_error_block_nobody(without_newline: bool) -> None:
    size = 10 * 2**20
    with fake_client(QUICK, stderr_flood=size, stderr_no_newline=without_newline) as client:
        assert np.array_equal(client.embed(["a"]), expected("a"))


def test_all_of_standard_error_is_passed_on_in_parts_where_a_line_is_long_or_has_no_end() -> None:
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    gone = threading.Event()
    hears = {"on_stderr": lambda process, text: said.put(text), "on_gone": lambda process, report: gone.set()}
    owner = Mock(**{f"{name}.side_effect": hear for name, hear in hears.items()})
    command = (sys.executable, "-c", r"import os; os.write(2, b'first\n' + b'z' * 10_000 + b'\nlast')")
    process = WorkerProcess.spawn(command, environment=os.environ, cwd=None, owner=owner, number=0)
    process.begin()
    heard = ""
    while not heard.endswith("last"):
        heard += said.get(timeout=WAIT_S)
    assert heard == f"first{'z' * 10_000}last"
    assert gone.wait(WAIT_S)


def test_the_end_of_standard_error_is_kept_and_bounded() -> None:
    options = ClientOptions(replay=False)
    with fake_client(options, stderr_flood=2**20, kill_after="1", say="start") as client:
        client.embed(["a"])
        with pytest.raises(WorkerDiedError) as caught:
            client.embed(["b"])
        assert 1000 < len(caught.value.stderr_tail) <= 8192
        assert "start" not in caught.value.stderr_tail


def test_what_the_worker_says_is_logged_with_control_characters_escaped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bridge_client.worker"), fake_client(QUICK, say="red \x1b[31malert") as client:
        client.embed(["a"])
        wait_until(lambda: any("alert" in record.message for record in caplog.records))
    [message] = [record.message for record in caplog.records if "alert" in record.message]
    assert "\x1b" not in message
    assert r"\x1b[31m" in message


def test_megabytes_in_both_directions_do_not_deadlock() -> None:
    texts = [f"{number} " + "x" * 20_000 for number in range(400)]
    with fake_client(QUICK, dimension=512) as client:
        futures = [client.submit(texts[start : start + 20]) for start in range(0, 400, 20)]
        rows = sum(len(future.result(60.0).vectors) for future in futures)
    assert rows == 400


def test_thousands_of_answers_outstanding_at_once_do_not_deadlock() -> None:
    with fake_client(QUICK, dimension=1024) as client:
        futures = [client.submit([f"{number}"] * 4) for number in range(900)]
        for future in futures:
            assert future.result(60.0).vectors.shape == (4, 1024)


# Closing against resistance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        {"ignore_eof": True},
        {"ignore_eof": True, "ignore_term": True},
        {"stop_after": 0},
        {"stop_reading_after": 0, "ignore_term": True},
    ],
)
def test_close_is_bounded_whatever_the_worker_ignores(faults: dict[str, bool | int]) -> None:
    with fake_client(QUICK, **faults) as client:
        client.info()
        future = client.submit("a")
        if "ignore_eof" in faults:
            future.result(WAIT_S)
        pid = client.stats().pid
    assert pid is not None
    assert not is_there(pid)
    assert future.done()


@pytest.mark.parametrize("faults", [{"start_delay": 3600.0}, {"fail_start": 1}, {"fail_start": 78}])
def test_close_while_starting_backing_off_and_failed(faults: dict[str, float]) -> None:
    options = ClientOptions(backoff_initial_s=3600.0, backoff_max_s=3600.0, timing=QUICK.timing)
    states = {3600.0: State.STARTING, 1: State.BACKING_OFF, 78: State.FAILED}
    with fake_client(options, **faults) as running:
        [value] = faults.values()
        wait_until(lambda: running.stats().state is states[value])
    assert running.stats().state is State.CLOSED


def test_fake_command_spells_flags() -> None:
    assert fake_command(kill_after=3, ignore_term=True, poison_hangs=False)[3:] == ("--kill-after=3", "--ignore-term")
