"""The default model through the real pipe against vectors of sentence-transformers, and the limits it is promised."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.worker.harness import ROOT, WAIT_S, WorkerProcess, cosines, matrix_of

GOLDEN = json.loads((ROOT / "tests" / "goldens" / "minilm_golden.json").read_text("utf-8"))
TEXTS: list[str] = GOLDEN["texts"]


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess(model=None) as process:
        yield process
        process.close_input()
        assert process.wait() == 0


@pytest.fixture(scope="module")
def alone(worker: WorkerProcess) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(texts, 384): every text in a request of its own, one after the other."""
    return np.concatenate([matrix_of(worker.ask({"id": 1, "inputs": text})) for text in TEXTS])


def test_every_text_has_the_vector_of_sentence_transformers(alone: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    assert cosines(alone, GOLDEN["embeddings"]).min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)


def test_token_counts_and_cuts_are_those_of_sentence_transformers(worker: WorkerProcess) -> None:
    answer = worker.ask({"id": 1, "inputs": TEXTS})
    assert answer["tokens"] == GOLDEN["token_counts"]
    assert answer["truncated"] == [index for index, cut in enumerate(GOLDEN["truncated"]) if cut]
    assert cosines(matrix_of(answer), GOLDEN["embeddings"]).min() >= 0.99999


def test_a_text_has_the_same_vector_alone_and_in_a_mixed_batch_of_64(
    worker: WorkerProcess, alone: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    together = matrix_of(worker.ask({"id": 1, "inputs": TEXTS[:64], "encoding_format": "base64"}))
    assert cosines(alone[:64], together).min() >= 0.999999


def test_similar_texts_are_near_and_different_texts_are_far(worker: WorkerProcess) -> None:
    similar = [("A man is playing a guitar.", "Someone plays the guitar."), ("The sky is blue.", "The blue sky.")]
    different = [("A man is playing a guitar.", "The stock market fell."), ("The sky is blue.", "I lost my password.")]
    for pairs, low, high in ((similar, 0.6, 1.01), (different, -1.01, 0.4)):
        for left, right in pairs:
            vectors = matrix_of(worker.ask({"id": 1, "inputs": [left, right]}))
            assert low < float(vectors[0] @ vectors[1]) < high


def test_dimensions_keep_the_first_components_and_normalise_again(worker: WorkerProcess) -> None:
    full = matrix_of(worker.ask({"id": 1, "inputs": TEXTS[0]}))[0]
    cut = worker.ask({"id": 1, "inputs": TEXTS[0], "dimensions": 64})
    assert cut["dimension"] == 64
    np.testing.assert_allclose(matrix_of(cut)[0], full[:64] / np.linalg.norm(full[:64]), atol=1e-6)
    raw = matrix_of(worker.ask({"id": 1, "inputs": TEXTS[0], "dimensions": 64, "normalize": False}))[0]
    assert abs(np.linalg.norm(raw) - 1) > 1e-3
    assert cosines(raw, full[:64]) > 0.999999


def test_a_prompt_is_put_before_the_text_verbatim(worker: WorkerProcess) -> None:
    joined = matrix_of(worker.ask({"id": 1, "inputs": "query: red shoes"}))
    prompted = worker.ask({"id": 1, "inputs": "red shoes", "prompt": "query: "})
    assert cosines(joined, matrix_of(prompted)) > 0.999999
    assert prompted["tokens"] == worker.ask({"id": 1, "inputs": "query: red shoes"})["tokens"]
    named = worker.ask({"id": 1, "inputs": "red shoes", "prompt_name": "query"})  # empty for this model
    assert named["embeddings"] == worker.ask({"id": 1, "inputs": "red shoes"})["embeddings"]


def test_a_request_of_three_thousand_texts_is_answered_in_order_while_others_overtake_it(worker: WorkerProcess) -> None:
    inputs = [f"number {number}" for number in range(3_000)]
    worker.send({"id": "bulk", "inputs": inputs, "encoding_format": "base64"})
    worker.send({"id": "query", "inputs": "number 77"}, {"id": "p", "method": "ping"})
    order = [worker.receive() for _ in range(3)]
    assert [answer["id"] for answer in order] == ["p", "query", "bulk"]
    bulk = matrix_of(order[2])
    assert len(bulk) == 3_000
    assert cosines(bulk[77], matrix_of(order[1])[0]) > 0.999999


def test_pings_are_answered_while_a_text_of_16_mb_and_long_ones_are_dealt_with(worker: WorkerProcess) -> None:
    """Counted, not timed: the host sends the next ping when the last is answered, and work must not hold them up."""
    worker.send({"id": "huge", "inputs": "word " * 3_400_000})
    assert worker.receive()["code"] == "input_too_long"
    worker.send({"id": "long", "inputs": ["word " * 200_000] * 3, "truncate": True})
    pings = 0
    pending: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        while True:
            answer = worker.receive()
            pending.put(answer)
            if answer["id"] == "long":
                return

    reader = threading.Thread(target=read)
    reader.start()
    worker.send({"id": "p", "method": "ping"})
    while (answer := pending.get(timeout=WAIT_S))["id"] != "long":
        pings += 1
        worker.send({"id": "p", "method": "ping"})
    reader.join(WAIT_S)
    assert worker.receive()["id"] == "p"
    assert pings > 20
    assert answer["tokens"] == [200_002] * 3
    assert answer["truncated"] == [0, 1, 2]
