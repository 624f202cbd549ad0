"""The calls of `EmbedClient` against a well-behaved fake worker."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from bridge_client import (
    ClientClosedError,
    ClientOptions,
    EmbedClient,
    Embeddings,
    PoisonedInputError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    State,
    Timing,
)
from bridge_client.calls import EmbedCall
from bridge_client.testing import fake_client, fake_command, fake_vector
from bridge_client.testing.processes import is_there
from tests.client.conftest import WAIT_S, bridge_threads, wait_until


def expected(*texts: str) -> np.ndarray:
    return np.array([fake_vector(text) for text in texts], np.float32).reshape(len(texts), 8)


def test_vectors_come_back_in_order_as_a_writable_float32_matrix() -> None:
    texts = [f"text {number} ✓" for number in range(100)]
    with fake_client() as client:
        vectors = client.embed(texts)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, expected(*texts))
    vectors[0] = 0.0


def test_one_text_is_a_list_of_one_and_no_text_is_an_empty_matrix() -> None:
    with fake_client() as client:
        assert np.array_equal(client.embed("hello"), expected("hello"))
        assert client.embed([]).shape == (0, 8)
        assert np.array_equal(client.embed([""]), expected(""))


def test_detailed_results_say_what_the_matrix_cannot() -> None:
    with fake_client() as client:
        result = client.embed_detailed(["one two", "word " * 600, "three"])
    assert result.tokens == (4, 602, 3)
    assert result.truncated == (1,)
    assert (result.model, result.fingerprint) == ("fake-model", "fake000000000001")
    assert "total" in result.timing_ms


def test_tokens_are_counted_and_found_without_vectors() -> None:
    with fake_client() as client:
        counted = client.tokenize(["one two", "word " * 600])
        found = client.tokenize([" one  two😀", ""], offsets=True, truncate=False)
        whole = client.tokenize("word " * 600, offsets=True, truncate=False)
        assert client.tokenize([], offsets=True).offsets == ()
    assert (counted.tokens, counted.truncated, counted.offsets) == ((4, 602), (1,), None)
    assert (counted.model, counted.fingerprint) == ("fake-model", "fake000000000001")
    assert found.offsets is not None
    assert [ranges.tolist() for ranges in found.offsets] == [[[1, 4], [6, 10]], []]
    assert whole.offsets is not None
    assert (whole.offsets[0].shape, whole.truncated) == ((600, 2), ())


def test_a_worker_that_dies_over_tokens_is_replaced_and_the_text_that_kills_it_is_named() -> None:
    texts = ["good", "poison", "fine"]
    with fake_client(poison="poison") as client, pytest.raises(PoisonedInputError) as caught:
        client.tokenize(texts)
    assert (caught.value.indexes, caught.value.others) == ((1,), None)


def test_fewer_bits_come_as_numpys_own() -> None:
    texts = ["one", "two", "three"]
    with fake_client() as client:
        halves = client.embed_detailed(texts, precision="float16")
        signs = client.embed_detailed(texts, precision="ubinary")
        few = client.embed(texts, precision="ubinary", dimensions=3)
        with pytest.raises(ValueError, match="precision"):
            client.embed(texts, precision="int8")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="null"):
            next(client.embed_iter(texts, on_error="null", precision="ubinary"))
        [rows] = client.embed_iter(["fine", 7], on_error="null", precision="float16")  # type: ignore[list-item]
    assert np.array_equal(halves.vectors, expected(*texts).astype(np.float16))
    assert np.array_equal(signs.vectors, np.packbits(expected(*texts) > 0, axis=1))
    assert (halves.vectors.dtype.name, signs.vectors.dtype.name, signs.dimension) == ("float16", "uint8", 8)
    assert (few.shape, few.dtype.name, rows.dtype.name) == ((3, 1), "uint8", "float16")
    assert np.isnan(rows[1]).all()


def test_parameters_reach_the_worker() -> None:
    with fake_client() as client:
        assert client.embed(["a"], dimensions=4).shape == (1, 4)
        for none in (9, 2**63):  # as a real worker says
            with pytest.raises(RequestError, match=f"`dimensions` is {none}, the model has 8"):
                client.embed(["a"], dimensions=none)
        with pytest.raises(RequestError, match="exclude") as caught:
            client.embed(["a"], prompt="x: ", prompt_name="query")
    assert caught.value.code == "invalid_request"
    assert not caught.value.retryable


def test_a_large_call_is_split_at_the_limits_and_joined_again() -> None:
    texts = [f"{number}" for number in range(1000)]
    with fake_client(max_inputs=64, reorder=2) as client:
        assert np.array_equal(client.embed(texts), expected(*texts))
        assert client.stats().requests == 1
        metrics = client.metrics()
    assert metrics["micro_batches"] == 16


def test_an_error_of_a_piece_names_the_index_in_the_call() -> None:
    texts = [f"{number}" for number in range(100)]
    with fake_client(max_inputs=64, error_after="1:input_too_long") as client:
        with pytest.raises(RequestError) as caught:
            client.embed(texts)
        assert caught.value.index == 64
        wait_until(lambda: client.stats().in_flight == 0)


def test_a_text_that_no_line_can_carry_is_refused_before_it_is_written() -> None:
    with fake_client(max_line_bytes=2000) as client:
        with pytest.raises(RequestError) as caught:
            client.embed(["short", "x" * 3000])
        assert (caught.value.code, caught.value.index) == ("input_too_long", 1)
        with pytest.raises(RequestError) as caught:
            client.embed(["fine", "\ud800"])
        assert (caught.value.code, caught.value.index) == ("invalid_request", 1)
        with pytest.raises(TypeError, match="input 1"):
            client.embed(["fine", 7])  # type: ignore[list-item]
        assert client.embed(["fine"]).shape == (1, 8)


def test_embed_iter_yields_blocks_in_order_and_reads_no_further_than_it_must() -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for number in range(10_000):
            read += 1
            yield str(number)

    with fake_client() as client:
        stream = client.embed_iter(texts(), block_inputs=10)
        assert np.array_equal(next(stream), expected(*map(str, range(10))))
        assert read <= 200
        stream.close()
        with pytest.raises(TypeError, match="many texts"):
            next(client.embed_iter("one text"))
        with pytest.raises(ValueError, match="`block_inputs` must be at least 1"):
            next(client.embed_iter(["a"], block_inputs=0))
        with pytest.raises(ValueError, match="'raise' or 'null'"):
            next(client.embed_iter(["a"], on_error="ignore"))  # type: ignore[arg-type]
        stream = client.embed_iter(map(str, range(95)), block_inputs=10)
        assert np.array_equal(np.concatenate(list(stream)), expected(*map(str, range(95))))


def test_an_abandoned_embed_iter_leaves_nothing_in_flight() -> None:
    with fake_client(latency=0.05) as client:
        stream = client.embed_iter(map(str, range(1000)), block_inputs=10)
        next(stream)
        stream.close()
        wait_until(lambda: client.stats().in_flight == client.stats().queued == 0)


def test_a_thousand_futures_are_all_answered() -> None:
    with fake_client() as client:
        futures = [client.submit(f"text {number}") for number in range(1000)]
        for number, future in enumerate(futures):
            assert np.array_equal(future.result(WAIT_S).vectors, expected(f"text {number}"))


def test_threads_get_their_own_answers() -> None:
    wrong: list[str] = []

    def ask(name: int) -> None:
        for number in range(50):
            text = f"{name}-{number}"
            if not np.array_equal(client.embed([text]), expected(text)):
                wrong.append(text)

    with fake_client(reorder=2) as client:
        threads = [threading.Thread(target=ask, args=(name,)) for name in range(16)]
        for thread in threads:
            thread.start()
        # An odd request may be held back by the fake for a second one: keep them coming until all are done.
        while any(thread.is_alive() for thread in threads):
            client.submit("one more").cancel()
            for thread in threads:
                thread.join(0.01)
    assert wrong == []


def test_callbacks_of_futures_may_block_and_call_the_client() -> None:
    got: Future[np.ndarray] = Future()
    with fake_client() as client:
        client.submit("first").add_done_callback(lambda _: got.set_result(client.embed(["second"])))
        assert np.array_equal(got.result(WAIT_S), expected("second"))


def test_info_ping_metrics_and_stats() -> None:
    with fake_client() as client:
        assert client.info()["dimension"] == 8
        assert client.ping()["message"] == "pong"
        assert client.metrics()["micro_batches"] == 0
        client.embed(["a"])
        stats = client.stats()
        assert (stats.state, stats.requests, stats.restarts, stats.queued) == (State.READY, 1, 0, 0)
        assert stats.latency_ms["p50"] is not None
        assert repr(client) == f"<EmbedClient ready pid={stats.pid} in_flight=0 restarts=0>"
        with pytest.raises(ValueError, match="worker"):
            client.info(worker=1)
    assert client.stats().state is State.CLOSED


def test_nothing_is_started_before_the_first_use() -> None:
    client = EmbedClient(worker_command=fake_command())
    assert client.stats().state is State.STOPPED
    assert bridge_threads() == []
    assert client.embed(["a"]).shape == (1, 8)
    client.close()


def test_a_call_that_is_over_is_in_no_circle_that_keeps_its_texts_and_vectors() -> None:
    gc.collect()
    gc.disable()
    try:
        with fake_client(ClientOptions(max_queued_requests=1), start_delay=0.2) as client:
            queued = client.submit("queued")
            with contextlib.suppress(QueueFullError):
                client.submit("refused")
            client.embed("answered")
            client.submit("cancelled").cancel()
            del queued
            wait_until(lambda: client.stats().in_flight == client.stats().queued == 0)
            wait_until(lambda: not [each for each in gc.get_objects() if isinstance(each, EmbedCall)])
    finally:
        gc.enable()


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="workers"):
        EmbedClient(workers=0)
    with pytest.raises(TypeError, match="no shell"):
        EmbedClient(worker_command="embed-worker")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        EmbedClient(ClientOptions(), workers=2)
    with pytest.raises(TypeError):
        EmbedClient(modell="x")  # type: ignore[call-arg]


# Time-outs and cancellation ---------------------------------------------------------------------------------------


def test_a_timeout_cancels_the_request_and_spares_the_worker() -> None:
    with fake_client(latency=3600.0) as client:
        client.info()
        with pytest.raises(RequestTimeoutError) as caught:
            client.embed(["slow"], timeout_s=0.05)
        assert isinstance(caught.value, TimeoutError)
        wait_until(lambda: client.stats().in_flight == 0)
        assert client.stats().restarts == 0
        assert client.ping()["message"] == "pong"


def test_the_default_timeout_counts_from_being_sent() -> None:
    options = ClientOptions(request_timeout_s=0.05)
    with fake_client(options, latency=3600.0, start_delay=0.5) as client, pytest.raises(RequestTimeoutError):
        client.embed(["slow"])


def test_a_timeout_covers_a_worker_that_stops_reading() -> None:
    options = ClientOptions(timing=Timing(drain_s=0.1, terminate_s=0.5))
    with fake_client(options, stop_reading_after=0) as client:
        client.info()
        big = ["x" * 100_000] * 20
        futures = [client.submit(big, timeout_s=0.3) for _ in range(3)]
        for future in futures:
            with pytest.raises(RequestTimeoutError):
                future.result(WAIT_S)


def test_a_late_answer_is_ignored_and_the_next_request_is_right() -> None:
    with fake_client(latency=0.3) as client:
        client.info()
        with pytest.raises(RequestTimeoutError):
            client.embed(["late"], timeout_s=0.05)
        assert np.array_equal(client.embed(["next"]), expected("next"))


def test_a_cancelled_future_frees_the_worker() -> None:
    with fake_client(latency=3600.0) as client:
        client.info()
        futures = [client.submit(str(number)) for number in range(5)]
        assert all(future.cancel() for future in futures)
        wait_until(lambda: client.stats().in_flight == 0)
        with pytest.raises(CancelledError):
            futures[0].result(WAIT_S)


def test_a_full_queue_makes_submit_raise_and_embed_wait() -> None:
    options = ClientOptions(max_queued_requests=3)
    with fake_client(options, start_delay=1.0) as client:
        futures = [client.submit(str(number)) for number in range(3)]
        with pytest.raises(QueueFullError):
            client.submit("too many")
        with pytest.raises(RequestTimeoutError, match="full"):
            client.embed(["too many"], timeout_s=0.05)
        assert np.array_equal(client.embed(["patient"]), expected("patient"))
        assert all(future.result(WAIT_S) is not None for future in futures)


def test_a_call_larger_than_the_queue_is_admitted_when_alone() -> None:
    options = ClientOptions(max_queued_bytes=10)
    with fake_client(options, start_delay=0.3) as client:
        large = client.submit("x" * 100)
        with pytest.raises(QueueFullError):
            client.submit("y")
        assert large.result(WAIT_S).vectors.shape == (1, 8)


def test_short_texts_do_not_wait_behind_a_long_call() -> None:
    # The long call is a hundred chunks, of which the window lets a few into the worker.
    with fake_client(latency=0.02) as client:
        client.info()
        long = client.submit(["word " * 400] * 10_000)
        client.embed(["short"])
        assert not long.done()
        long.cancel()


# Closing ----------------------------------------------------------------------------------------------------------


def test_close_twice_and_from_many_threads() -> None:
    with fake_client() as client:
        client.embed(["a"])
        threads = [threading.Thread(target=client.close) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        client.close()
        with pytest.raises(ClientClosedError):
            client.embed(["a"])
        with pytest.raises(ClientClosedError):
            client.restart()
        with pytest.raises(ClientClosedError):
            client.info()


def test_close_before_the_start() -> None:
    client = EmbedClient(worker_command=fake_command())
    client.close()
    for use in (client.start, lambda: client.embed(["a"]), client.info):
        with pytest.raises(ClientClosedError):
            use()
    assert bridge_threads() == []


def test_what_was_begun_may_still_be_answered_while_closing_and_the_rest_fails() -> None:
    with fake_client(ClientOptions(), latency=0.2) as client:
        client.info()
        begun = client.submit("begun")
        wait_until(lambda: client.stats().in_flight == 1)
    assert np.array_equal(begun.result(0).vectors, expected("begun"))
    with fake_client(start_delay=0.3) as client:
        waiting = client.submit("waiting")
    with pytest.raises(ClientClosedError):
        waiting.result(0)


def test_a_forgotten_client_takes_its_worker_along() -> None:
    client = EmbedClient(worker_command=fake_command())
    client.embed(["a"])
    pid = client.stats().pid
    assert pid is not None
    del client
    gc.collect()
    wait_until(lambda: not is_there(pid))


def test_state_changes_are_told_in_order() -> None:
    told: list[State] = []
    options = ClientOptions(on_state_change=lambda worker, state: told.append(state))
    with fake_client(options) as client:
        client.embed(["a"])
    assert told == [State.STARTING, State.READY, State.CLOSING, State.CLOSED]


def test_a_failing_callback_harms_nobody() -> None:
    def fail(worker: int, state: State) -> None:
        raise RuntimeError("the host's own bug")

    with fake_client(ClientOptions(on_state_change=fail)) as client:
        future: Future[Embeddings] = client.submit("a")
        assert future.result(WAIT_S).vectors.shape == (1, 8)
