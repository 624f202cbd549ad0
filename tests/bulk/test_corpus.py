"""Files as people have them become the rows that they mean; what cannot be read is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridge_client.bulk import corpus as corpora
from bridge_client.bulk.corpus import Corpus, find_sources
from bridge_client.bulk.rows import CorpusError, Format


def read(*names: str | Path, column: str | None = None, keep: list[str] | None = None, rows: int = 2) -> Any:
    """Return texts, problems by row, and the kept columns."""
    corpus = Corpus(find_sources([str(name) for name in names], None), column, keep or [])
    texts: list[str | None] = []
    problems: dict[int, str] = {}
    columns: dict[str, list[Any]] = {name: [] for name in corpus.kept}
    for block in corpus.blocks(rows):
        problems |= {len(texts) + row: what for row, what in block.problems.items()}
        texts += block.texts
        for name, pieces in block.columns.items():
            columns[name] += [
                value for piece in pieces for value in (piece if isinstance(piece, list) else piece.to_pylist())
            ]
    return texts, problems, columns


def test_lines_lose_their_ends_and_a_file_its_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\x0cthree\n\xff\nlast")
    texts, problems, _ = read(file)
    assert texts == ["one", "", "two\x0cthree", None, "last"]
    assert problems == {3: "the line is not UTF-8"}


def test_jsonl_has_objects_and_strings(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text":"one","id":1}\r\n\n"two"\r\n{"text":null}\n{"text":["three"]}\nfour\n[]\n')
    texts, problems, columns = read(file, keep=["id"])
    assert texts == ["one", "two", None, None, None, None]
    assert sorted(problems) == [3, 4, 5]
    assert not any("three" in problem or "four" in problem for problem in problems.values())
    assert columns == {"id": [1, None, None, None, None, None]}


def test_csv_has_quotes_line_breaks_and_rows_of_other_lengths(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeffid,text\r\n1,"say ""no"",\nthen go"\r\n2,\r\n3\r\n4,größe,more\r\n'.encode())
    texts, problems, columns = read(file, keep=["id"])
    assert texts == ['say "no",\nthen go', None, None, "größe"]
    assert problems == {}
    assert columns == {"id": ["1", "2", "3", "4"]}


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_tables_have_strings_of_every_kind_beside_columns_of_any(kind: str, tmp_path: Path) -> None:
    values = ["one", None, "", "one"]
    column = pa.array(values).dictionary_encode() if kind == "dictionary" else pa.array(values, getattr(pa, kind)())
    nested: list[Any] = [{"a": [1, None]}, None, {"a": []}, {"a": None}]
    table = pa.table({"body": column, "nested": nested, "when": pa.array([0, None, 1, 2], pa.timestamp("us"))})
    file = tmp_path / "a.arrow"
    with pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=3)
    texts, _, columns = read(file, column="body", keep=["nested"])
    assert texts == values
    assert columns["nested"] == nested


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv"])
def test_a_file_without_rows_has_none(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert read(tmp_path / name) == ([], {}, {})


def test_a_folder_and_a_pattern_are_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.jsonl"):
        (tmp_path / name).write_text(f'"{name}"\n')
    (tmp_path / ".hidden.txt").write_text("no\n")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "below").mkdir()
    assert read(tmp_path)[0] == ['"a.txt"', '"b.txt"', "c.jsonl"]
    assert read(tmp_path / "*.txt")[0] == ['"a.txt"', '"b.txt"']


def test_blocks_end_where_their_texts_are_long_and_go_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "BLOCK_CHARACTERS", 10)
    file = tmp_path / "a.txt"
    file.write_text("\n".join(["aaaa", "bbbb", "cccc", "d" * 99, "e", "f", "g"]))
    corpus = Corpus(find_sources([str(file)], None), None, [])
    sizes = [len(block.texts) for block in corpus.blocks(3)]
    assert sizes == [3, 1, 3]
    assert [block.texts for block in corpus.blocks(3, skip=4)] == [["e", "f", "g"]]


def test_progress_is_told_in_bytes_or_in_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"aaa\n" * 10)  # bytes that are the same on every system
    corpus = Corpus(find_sources([str(file)], None), None, [])
    assert (corpus.total, corpus.unit) == (40, "B")
    assert [(block.begun, block.done) for block in corpus.blocks(4)] == [(0, 16), (16, 32), (32, 40)]
    pq.write_table(pa.table({"text": ["a"] * 10}), tmp_path / "a.parquet")
    corpus = Corpus(find_sources([str(tmp_path / "a.parquet")], None), None, [])
    assert (corpus.total, corpus.unit) == (10, "rows")
    assert [(block.begun, block.done) for block in corpus.blocks(4, skip=4)] == [(4, 8), (8, 10)]


def test_what_is_compressed_or_read_once_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").touch()
    with pytest.raises(CorpusError, match=r"a\.txt\.gz' is compressed"):
        find_sources([str(tmp_path / "a.txt.gz")], None)
    with pytest.raises(CorpusError, match="cannot be parquet"):
        find_sources(["-"], Format.PARQUET)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jsonl")
        with pytest.raises(CorpusError, match="is a pipe or a device"):
            find_sources([str(tmp_path / "pipe.jsonl")], None)
