"""A handful of the same stories with the real worker and its model."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bridge_client import ClientOptions, EmbedClient, RequestError, WorkerStartError
from bridge_client.testing.processes import send_signal
from tests.client.conftest import WAIT_S, wait_until

# A model is loaded as slowly as a test waits for it, where the machine is emulated.
PATIENT = ClientOptions(start_timeout_s=WAIT_S, request_timeout_s=2 * WAIT_S)
TEXTS = [f"sentence number {number} about {topic}" for number in range(20) for topic in ("cats", "rivers", "law")]


@pytest.fixture(scope="module")
def peaceful() -> np.ndarray:
    """The right vectors, computed in peace."""
    with EmbedClient(PATIENT) as client:
        return client.embed(TEXTS)


def test_embed_detailed_tells_what_the_worker_tells(peaceful: np.ndarray) -> None:
    with EmbedClient(PATIENT) as client:
        result = client.embed_detailed(["hello world", "word " * 1000])
        info = client.info()
    assert result.vectors.shape == (2, info["dimension"])
    assert np.allclose(np.linalg.norm(result.vectors, axis=1), 1.0, atol=1e-5)
    assert result.tokens == (4, 1002)
    assert result.truncated == (1,)
    assert (result.fingerprint, result.model) == (info["fingerprint"], info["model"])
    assert peaceful.shape == (len(TEXTS), info["dimension"])


def test_blocks_and_single_texts_give_the_same_vectors(peaceful: np.ndarray) -> None:
    with EmbedClient(PATIENT) as client:
        blocks = np.concatenate(list(client.embed_iter(iter(TEXTS), block_inputs=7)))
        singles = np.concatenate([future.result(WAIT_S).vectors for future in map(client.submit, TEXTS)])
        with pytest.raises(RequestError) as caught:
            client.embed(["fine", "word " * 1000], truncate=False)
    assert np.allclose(blocks, peaceful, atol=1e-5)
    assert np.allclose(singles, peaceful, atol=1e-5)
    assert (caught.value.code, caught.value.index) == ("input_too_long", 1)


def test_kills_under_load_lose_nothing(peaceful: np.ndarray) -> None:
    wrong: list[int] = []
    options = replace(PATIENT, restart_budget=100, backoff_initial_s=0.01, backoff_max_s=0.1)

    def load(first: int) -> None:
        for turn in range(6):
            number = (first * 6 + turn) % len(TEXTS)
            if not np.allclose(client.embed([TEXTS[number]])[0], peaceful[number], atol=1e-5):
                wrong.append(number)

    with EmbedClient(options) as client:
        client.info()
        threads = [threading.Thread(target=load, args=(first,)) for first in range(16)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            wait_until(lambda: client.stats().pid is not None)
            if (pid := client.stats().pid) is not None:
                send_signal(pid, "KILL")
            generation = client.stats().generation
            wait_until(lambda was=generation: client.stats().generation > was or not any(map(alive, threads)))
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        assert client.stats().blamed == 0
        assert client.stats().restarts >= 1
    assert wrong == []


def alive(thread: threading.Thread) -> bool:
    return thread.is_alive()


def test_a_model_that_does_not_exist_is_permanent() -> None:
    with EmbedClient(replace(PATIENT, model="no-such-model")) as client:
        with pytest.raises(WorkerStartError) as caught:
            client.embed(["a"])
        assert caught.value.exit_status == 78
        assert client.stats().restarts == 0


def test_queries_documents_and_other_models_are_those_of_the_folders() -> None:
    models = Path(__file__).resolve().parents[1] / "models"
    both = ("--model", str(models / "e5-prefix"))
    with EmbedClient(replace(PATIENT, model=models / "extra-prompt-options", worker_args=both)) as client:
        assert np.array_equal(client.embed_query("a"), client.embed("a", prompt="Find an answer for: "))
        assert np.array_equal(client.embed_documents(["a"]), client.embed("a", prompt_name="document"))
        other = client.embed_detailed("a", model="e5-prefix", prompt_name="query")
        assert other.model == "e5-prefix"
        assert other.fingerprint != client.info()["fingerprint"]
        with pytest.raises(RequestError) as caught:
            client.embed("a", model="no-such-model")
    assert caught.value.code == "model_not_found"
    # Its default model publishes `passage` and an empty `document`.
    with EmbedClient(replace(PATIENT, model=models / "e5-prefix")) as client:
        assert np.array_equal(client.embed_documents("a"), client.embed("a", prompt="passage: "))
        assert np.array_equal(client.embed("a", prompt_name="query"), other.vectors)
