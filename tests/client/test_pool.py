"""Several workers: the work is shared, one that dies disturbs nobody, all vectors lie in one space."""

from __future__ import annotations

import numpy as np
import pytest

from bridge_client import ClientOptions, ModelChangedError, State, Timing
from bridge_client.testing import fake_client
from bridge_client.testing.processes import send_signal
from tests.client.conftest import WAIT_S, wait_until
from tests.client.test_client import expected

POOL = ClientOptions(workers=3, backoff_initial_s=0.01, restart_budget=100, timing=Timing(drain_s=0.3))


def all_ready(client: object) -> bool:
    return all(worker.state is State.READY for worker in client.stats().workers)  # type: ignore[attr-defined]


def test_work_goes_to_the_one_with_the_least_outstanding_tokens() -> None:
    with fake_client(POOL, latency=3600.0) as client:
        wait_until(lambda: all_ready(client))
        client.submit(["word " * 200])
        for _ in range(10):
            client.submit("short")
        wait_until(lambda: client.stats().in_flight == 11)
        assert sorted(worker.in_flight for worker in client.stats().workers) == [1, 5, 5]


def test_a_large_call_is_shared() -> None:
    texts = [f"{number} " * 50 for number in range(3000)]
    with fake_client(POOL) as client:
        wait_until(lambda: all_ready(client))
        assert np.array_equal(client.embed(texts), expected(*texts))
        for worker in range(3):
            assert client.metrics(worker=worker)["micro_batches"] > 0


def test_one_that_dies_disturbs_nobody() -> None:
    with fake_client(POOL, latency=0.01) as client:
        wait_until(lambda: all_ready(client))
        futures = [client.submit(str(number)) for number in range(100)]
        pid = client.stats().workers[1].pid
        assert pid is not None
        send_signal(pid, "KILL")
        for number, future in enumerate(futures):
            assert np.array_equal(future.result(WAIT_S).vectors, expected(str(number)))
        generations = [worker.generation for worker in client.stats().workers]
        assert generations[0] == generations[2] == 1


def test_calls_are_answered_while_one_worker_waits_for_its_restart() -> None:
    options = ClientOptions(workers=2, backoff_initial_s=3600.0, backoff_max_s=3600.0, timing=Timing(drain_s=0.3))
    with fake_client(options) as client:
        wait_until(lambda: all_ready(client))
        pid = client.stats().workers[0].pid
        assert pid is not None
        send_signal(pid, "KILL")
        wait_until(lambda: client.stats().workers[0].state is State.BACKING_OFF)
        assert np.array_equal(client.embed(["a", "b"]), expected("a", "b"))
        assert client.stats().workers[0].state is State.BACKING_OFF


def test_a_poison_is_blamed_once_for_the_whole_pool() -> None:
    with fake_client(POOL, poison="bad") as client:
        wait_until(lambda: all_ready(client))
        futures = [client.submit(["bad", str(number)]) for number in range(6)]
        innocents = [client.submit(str(number)) for number in range(50)]
        for future in futures:
            assert type(future.exception(WAIT_S)).__name__ == "PoisonedInputError"
        for number, innocent in enumerate(innocents):
            assert np.array_equal(innocent.result(WAIT_S).vectors, expected(str(number)))


def test_a_worker_with_another_model_is_not_used(count_file: str) -> None:
    with fake_client(POOL, change_model=True, count_file=count_file) as client:
        wait_until(lambda: [worker.state for worker in client.stats().workers].count(State.FAILED) == 2)
        fingerprints = {client.embed_detailed(str(number)).fingerprint for number in range(20)}
        assert len(fingerprints) == 1
        failed = [number for number, worker in enumerate(client.stats().workers) if worker.state is State.FAILED]
        with pytest.raises(ModelChangedError):
            client.info(worker=failed[0])
