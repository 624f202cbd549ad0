"""Chunks cover their text, overlap as asked, and have no more tokens than they may, whatever the tokenizer does."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge_client.bulk.chunks import Chunker, ChunkSize, Tokens
from bridge_client.bulk.rows import Block, CorpusError

Ranges = list[tuple[int, int]]


def words(text: str) -> Ranges:
    """A token for each word."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def characters(text: str) -> Ranges:
    """A token for each character that is no white space."""
    return [(at, at + 1) for at, character in enumerate(text) if not character.isspace()]


def bytes_of(text: str) -> Ranges:
    """A token for each byte, white space too; those of a character have its range."""
    return [(at, at + 1) for at, character in enumerate(text) for _ in character.encode()]


def pieces(text: str) -> Ranges:
    """Words in pieces of four, and of two where a text begins inside a word: more than they were in the whole."""
    found, first = [], True
    for start, end in words(text):
        step = 2 if first and text[start].islower() else 4
        found += [(at, min(end, at + step)) for at in range(start, end, step)]
        first = False
    return found


TOKENIZERS = [words, characters, bytes_of, pieces]


def tokenizer(find: Callable[[str], Ranges]) -> Callable[[Sequence[str]], list[Tokens | None]]:
    def tokenize(texts: Sequence[str]) -> list[Tokens | None]:
        found = [find(text) for text in texts]
        return [Tokens(len(ranges), np.array(ranges, np.int64).reshape(-1, 2)) for ranges in found]

    return tokenize


TEXTS = st.text(alphabet="abAB é東😀 \n", max_size=120)


@pytest.mark.parametrize("find", TOKENIZERS)
@given(text=TEXTS, tokens=st.integers(1, 12), data=st.data())
def test_chunks_cover_overlap_and_fit(
    find: Callable[[str], Ranges], text: str, tokens: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tokens // 2))
    [chunks] = Chunker(ChunkSize(tokens, overlap), tokenizer(find), "text").ranges([text])
    whole = find(text)
    if len(whole) <= tokens:
        assert chunks == [(0, len(text))]
        return
    assert chunks == sorted(chunks)
    for token in whole:  # nothing is lost, and no token is torn
        assert any(start <= token[0] and token[1] <= end for start, end in chunks)
    for start, end in chunks:
        inside = {token for token in whole if start <= token[0] and token[1] <= end}
        assert len(find(text[start:end])) <= tokens or len(inside) == 1
    for (start, end), (later, later_end) in itertools.pairwise(chunks):
        assert start < later
        assert end < later_end
        if not overlap:
            assert later >= end


@example(text="AAAA AAAAA", overlap=4)
@given(text=TEXTS, overlap=st.integers(0, 4))
def test_the_overlap_is_what_was_asked_for_or_goes_back_to_a_word(text: str, overlap: int) -> None:
    size = ChunkSize(8, overlap)
    [chunks] = Chunker(size, tokenizer(characters), "text").ranges([text])
    for (_, end), (later, _) in itertools.pairwise(chunks):
        repeated = len(characters(text[later:end]))
        assert overlap <= repeated <= overlap + size.tokens // 4
        if repeated > overlap:
            assert text[later - 1].isspace()


def test_words_stay_whole_where_one_ends_in_the_second_half() -> None:
    text = "rain on a hill above the river"
    [chunks] = Chunker(ChunkSize(8), tokenizer(characters), "text").ranges([text])
    assert [text[start:end] for start, end in chunks] == ["rain on a", "hill", "above the", "river"]


def test_a_character_of_several_tokens_is_never_torn() -> None:
    [chunks] = Chunker(ChunkSize(6), tokenizer(bytes_of), "text").ranges(["a😀😀東b"])
    assert chunks == [(0, 2), (2, 3), (3, 5)]
    [chunks] = Chunker(ChunkSize(2), tokenizer(bytes_of), "text").ranges(["a😀b"])
    assert chunks == [(0, 1), (1, 2), (2, 3)]


def test_a_text_that_cannot_be_counted_is_one_chunk() -> None:
    assert Chunker(ChunkSize(2), lambda texts: [None] * len(texts), "text").ranges(["a b c d"]) == [[(0, 7)]]


def test_rows_become_chunks_and_keep_their_neighbours() -> None:
    pa = pytest.importorskip("pyarrow")
    block = Block(
        texts=["a b c", None, "", None, "a b c"],
        problems={3: "bad"},
        columns={"id": [[1, 2], pa.array([3, 4, 5])], "text": [["a b c", None, "", None, "a b c"]]},
    )
    made = Chunker(ChunkSize(2), tokenizer(words), "text").cut(block, 10)
    assert made.texts == ["a b", "c", None, "", None, "a b", "c"]
    assert made.problems == {4: "bad"}
    columns = {name: [value for piece in pieces for value in _values(piece)] for name, pieces in made.columns.items()}
    assert columns == {
        "source_row": [10, 10, 11, 12, 13, 14, 14],
        "chunk": [0, 1, 0, 0, 0, 0, 1],
        "start": [0, 4, None, 0, None, 0, 4],
        "end": [3, 5, None, 0, None, 3, 5],
        "id": [1, 1, 2, 3, 4, 5, 5],
        "text": made.texts,
    }
    assert made.sources == columns["source_row"]


def _values(piece: object) -> Iterator[object]:
    return iter(piece if isinstance(piece, list) else piece.to_pylist())  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "8,5", "8,-1", "8,2,1", "8;1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        ChunkSize.parse(text)


def test_a_size_without_room_names_the_largest() -> None:
    ChunkSize(254).check_room(254, 2, "a model")
    ChunkSize(9999).check_room(None, 0, "a model without a limit")
    with pytest.raises(CorpusError, match="the largest is 254"):
        ChunkSize(255).check_room(254, 2, "a model")
