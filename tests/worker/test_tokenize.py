"""`tokenize` and vectors of fewer bits: against transformers, sentence-transformers and numpy, and in the server."""

from __future__ import annotations

import base64
import json
import queue
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_worker.errors import InvalidInput
from embed_worker.inference.pooling import at_precision
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.plan import ChatPlan
from embed_worker.protocol import EncodingFormat, Limits
from tests.worker.fakes import WAIT_S, FakeClock, running_worker
from tests.worker.harness import ROOT
from tests.worker.test_tokenizer import plan_for

RIGHT: dict[str, Any] = json.loads((ROOT / "tests/goldens/tokens_and_bits.json").read_bytes())
TEXTS: list[str] = RIGHT["texts"]


def ranges_of(tokenizer: TextTokenizer, text: str, prompt: str = "", *, cuts: bool = False) -> list[list[int]]:
    (found,) = tokenizer.encode([text], prompt, cuts=cuts, ranges=True)
    assert found.ranges is not None
    ranges: list[list[int]] = found.ranges.tolist()
    return ranges


# Where tokens are -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RIGHT["offsets"])
def test_ranges_are_those_of_transformers(name: str) -> None:
    tokenizer = TextTokenizer.load(plan_for(name))
    for text, right in zip(TEXTS, RIGHT["offsets"][name], strict=True):
        assert ranges_of(tokenizer, text) == right, ascii(text)
        (plain,), (found,) = tokenizer.encode([text], ""), tokenizer.encode([text], "", ranges=True)
        assert plain.ids.tolist() == found.ids.tolist()
        assert plain.count == found.count


@pytest.mark.parametrize("name", ["bert-mean", "qwen3-last", "xlmr-unigram"])
@settings(max_examples=10, deadline=None)
@given(text=st.text(max_size=30), prompt=st.text(max_size=8))
def test_ranges_lie_in_the_text_whatever_stands_before_it(name: str, text: str, prompt: str) -> None:
    tokenizer = TOKENIZERS.setdefault(name, TextTokenizer.load(plan_for(name)))
    (found,) = tokenizer.encode([text], prompt, cuts=False, ranges=True)
    assert found.ranges is not None
    assert found.count == tokenizer.encode([text], prompt)[0].count
    assert len(found.ranges) <= found.count
    assert all(0 <= start <= end <= len(text) for start, end in found.ranges.tolist())


TOKENIZERS: dict[str, TextTokenizer] = {}


def test_a_token_that_is_partly_the_prompts_has_the_part_in_the_text() -> None:
    tokenizer = TextTokenizer.load(plan_for("bert-mean"))
    assert ranges_of(tokenizer, "the", "") == [[0, 3]]
    assert ranges_of(tokenizer, "he", "t") == [[0, 2]]
    assert ranges_of(tokenizer, "", "the") == []


def test_a_cut_leaves_the_ranges_of_what_the_model_sees() -> None:
    right, left = (TextTokenizer.load(plan_for("bert-mean", truncate_left=side)) for side in (False, True))
    text = "a " * 100
    assert ranges_of(right, text, cuts=True) == [[2 * n, 2 * n + 1] for n in range(62)]
    assert ranges_of(left, text, cuts=True) == [[2 * n, 2 * n + 1] for n in range(38, 100)]
    assert ranges_of(right, text, "b ", cuts=True) == [[2 * n, 2 * n + 1] for n in range(61)]


def test_pieces_of_a_long_text_make_no_difference() -> None:
    tokenizer = TextTokenizer.load(plan_for("bert-mean"))
    assert ranges_of(tokenizer, "a " * 33_000) == [[2 * n, 2 * n + 1] for n in range(33_000)]


def chat_tokenizer(template: str, *, restores_suffix: bool = False) -> TextTokenizer:
    pytest.importorskip("jinja2", reason="the extra `chat`")
    chat = ChatPlan(template=template, is_structured=False, restores_suffix=restores_suffix, variables={})
    return TextTokenizer.load(plan_for("bert-mean", chat=chat))


def test_a_chat_template_has_no_ranges() -> None:
    tokenizer = chat_tokenizer("{% for m in messages %}the {{ m.content }} text{% endfor %}")
    assert ranges_of(tokenizer, "a b") == [[0, 1], [2, 3]]
    assert ranges_of(tokenizer, "the text") == ranges_of(TextTokenizer.load(plan_for("bert-mean")), "the text")
    assert ranges_of(tokenizer, "") == []


def test_a_text_that_its_template_strips_is_counted_as_it_was_sent() -> None:
    tokenizer = chat_tokenizer("the {{ messages[-1].content | trim }} a")
    assert ranges_of(tokenizer, " \n a b  ") == [[3, 4], [5, 6]]
    assert ranges_of(tokenizer, "  ") == []


def test_a_text_that_its_template_changes_has_no_ranges_but_is_counted() -> None:
    tokenizer = chat_tokenizer("{{ messages[-1].content | upper }} a")
    assert [text.count for text in tokenizer.encode(["1", "a"], "")] == [4, 4]
    with pytest.raises(InvalidInput, match="chat template changes") as refused:
        tokenizer.encode(["1", "a"], "", ranges=True)
    assert refused.value.index == 1


def test_tokens_that_a_template_puts_behind_a_cut_have_no_ranges() -> None:
    tokenizer = chat_tokenizer("{{ messages[-1].content }} the text", restores_suffix=True)
    whole = len(tokenizer.encode(["a"], "")[0].ids) - 3  # what is the template's
    ranges = ranges_of(tokenizer, "a " * 100, cuts=True)
    assert ranges == [[2 * n, 2 * n + 1] for n in range(len(ranges))]
    assert len(ranges) == 62 - whole


# Fewer bits -------------------------------------------------------------------------------------------------------


def test_sign_bits_are_those_of_sentence_transformers() -> None:
    vectors = np.frombuffer(base64.b64decode(RIGHT["vectors"]), np.float32).reshape(5, 32)
    assert at_precision(vectors, "ubinary").tolist() == RIGHT["ubinary"]


@pytest.mark.parametrize("dimension", [1, 7, 8, 9, 384])
def test_fewer_bits_are_numpys_own_and_as_many_as_the_protocol_says(dimension: int) -> None:
    vectors = np.random.default_rng(dimension).standard_normal((7, dimension)).astype(np.float32)
    vectors[0, 0] = -0.0
    for encoding in EncodingFormat:
        made = at_precision(vectors, encoding.precision)
        assert made.nbytes == 7 * encoding.row_bytes(dimension)
    assert np.array_equal(at_precision(vectors, "float16"), vectors.astype(np.float16))
    bits = np.unpackbits(at_precision(vectors, "ubinary"), axis=1)
    assert np.array_equal(bits[:, :dimension], vectors > 0)
    assert not bits[:, dimension:].any()


def test_a_vector_that_rounding_makes_infinite_or_zero_is_refused() -> None:
    with running_worker() as worker:
        members = {"encoding_format": "base64_float16", "normalize": False}
        good = worker.ask({"id": 1, "inputs": "one", **members})
        worker.engine.scale = 1e9
        large = worker.ask({"id": 2, "inputs": ["x", "y"], **members})
        worker.engine.scale = 1e-20
        small = worker.ask({"id": 3, "inputs": ["z"], **members})
        signs = worker.ask({"id": 4, "inputs": ["z"], "encoding_format": "base64_ubinary", "normalize": False})
    assert (good["status"], signs["status"], signs["embeddings_base64"]) == ("ok", "ok", "8A==")
    assert (large["code"], large["index"], small["code"]) == ("non_finite_embedding", 0, "non_finite_embedding")
    assert "float16" in large["message"]


# In the server ----------------------------------------------------------------------------------------------------


def test_counts_are_those_of_embed_and_nothing_is_run() -> None:
    texts = ["one two", "", "many " * 20, "nothing"]
    with running_worker() as worker:
        embedded = worker.ask({"id": 1, "inputs": texts[:3], "prompt_name": "query"})
        runs = list(worker.engine.runs)
        counted = worker.ask({"id": 2, "method": "tokenize", "inputs": texts, "prompt_name": "query"})
        found = worker.ask({"id": 3, "method": "tokenize", "inputs": texts, "offsets": True, "truncate": False})
        metrics = worker.ask({"id": 4, "method": "metrics"})["metrics"]
        assert worker.engine.runs == runs
    assert counted | {"tokens": counted["tokens"][:3]} == {
        "id": 2,
        "status": "ok",
        "model": "first",
        "fingerprint": embedded["fingerprint"],
        "count": 4,
        "tokens": embedded["tokens"],
        "truncated": embedded["truncated"],
    }
    assert embedded["truncated"] == [2]
    assert [len(ranges) for ranges in found["offsets"]] == [2, 0, 20, 0]
    assert (found["tokens"], found["truncated"]) == ([3, 1, 21, 0], [])
    assert (metrics["texts"], metrics["tokenized_texts"], metrics["requests"]) == (3, 8, {"ok": 3})


def test_many_texts_are_tokenised_in_pieces_and_told_in_their_order() -> None:
    texts = [" ".join(["w"] * (number % 9)) for number in range(1000)]
    with running_worker(lanes=2) as worker:
        answer = worker.ask({"id": 1, "method": "tokenize", "inputs": texts, "offsets": True})
        pieces = worker.ask({"id": 2, "method": "ping"})["micro_batches"]
        assert not worker.engine.runs
    assert answer["tokens"] == [number % 9 + 1 for number in range(1000)]
    assert answer["offsets"] == [[[2 * n, 2 * n + 1] for n in range(number % 9)] for number in range(1000)]
    assert pieces == 8, "each is a sign of progress"


def test_it_is_cancelled_late_and_refused_like_an_embed() -> None:
    clock = FakeClock()
    with running_worker(clock=clock) as worker:
        worker.ask({"id": 0, "inputs": "x"})
        gate, entered = worker.engine.tokenizer.gate, worker.engine.tokenizer.entered
        while not entered.empty():
            entered.get_nowait()
        gate.clear()
        worker.send({"id": 1, "method": "tokenize", "inputs": ["a"]})
        entered.get(timeout=WAIT_S)
        worker.send({"id": 2, "method": "tokenize", "inputs": ["b"]}, {"id": 3, "method": "cancel", "target": 2})
        first = worker.receive_many(2)
        worker.send({"id": 4, "method": "tokenize", "inputs": ["c"], "deadline_ms": 50})
        assert worker.ask({"id": 5, "method": "ping"})["in_flight"] == 2
        clock.advance(1.0)
        gate.set()
        last = worker.receive_many(2)
        broken = worker.ask({"id": 6, "method": "tokenize", "inputs": ["fine", "untokenizable"]})
        missing = worker.ask({"id": 7, "method": "tokenize", "inputs": "a", "model": "second"})
    assert (first[3]["cancelled"], first[2]["code"]) == (True, "cancelled")
    assert (last[1]["tokens"], last[4]["code"], broken["code"]) == ([2], "deadline_exceeded", "internal_error")
    assert missing["code"] == "model_not_found"


def test_it_counts_towards_what_is_in_flight() -> None:
    with running_worker(limits=Limits(max_in_flight=1)) as worker:
        worker.ask({"id": 0, "inputs": "x"})
        worker.engine.tokenizer.gate.clear()
        worker.send(*({"id": number, "method": "tokenize", "inputs": "a"} for number in (1, 2, 3)))
        with pytest.raises(queue.Empty):
            worker.received.get(timeout=0.05)
        worker.engine.tokenizer.gate.set()
        assert set(worker.receive_many(3)) == {1, 2, 3}


@pytest.mark.parametrize("lanes", [1, 2])
def test_neither_bulk_keeps_the_other_from_its_end(lanes: int) -> None:
    with running_worker(lanes=lanes) as worker:
        worker.send(
            {"id": 1, "inputs": [f"row {number}" for number in range(2000)], "encoding_format": "base64"},
            {"id": 2, "method": "tokenize", "inputs": ["some words"] * 4000},
            {"id": 3, "inputs": [f"line {number}" for number in range(500)], "encoding_format": "base64"},
        )
        answers = worker.receive_many(3)
    assert [answers[number]["count"] for number in (1, 2, 3)] == [2000, 4000, 500]
    assert answers[2]["tokens"] == [3] * 4000
