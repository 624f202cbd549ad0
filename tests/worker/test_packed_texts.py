"""Texts that are kept as UTF-8 until their turn."""

from __future__ import annotations

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_worker.serving.packed_texts import PackedTexts
from embed_worker.serving.tasks import pack_where_it_pays


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_packed_texts_are_the_texts(texts: list[str]) -> None:
    packed = PackedTexts(texts)
    assert len(packed) == len(texts)
    assert [packed[index] for index in range(len(packed))] == texts


def test_a_line_of_many_tiny_texts_holds_no_more_than_twice_its_bytes() -> None:
    for texts in (["a"] * 16_384, [""] * 16_384, ["x" * 1000 + "😀"] * 100):
        line = orjson.dumps({"inputs": texts})
        packed = pack_where_it_pays(texts, len(line))
        assert isinstance(packed, PackedTexts)
        assert packed.size_bytes <= 2 * len(line)


def test_usual_texts_are_left_as_they_are() -> None:
    texts = ["a text of usual length, which a Python string does not make much longer than it is"] * 100
    assert pack_where_it_pays(texts, len(orjson.dumps({"inputs": texts}))) is texts
