"""Files as people have them become the rows that they mean; what cannot be read is refused by name."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bridge_client.bulk import corpus as corpora
from bridge_client.bulk import tables, text_files
from bridge_client.bulk.arrow_parts import ArrowParts
from bridge_client.bulk.corpus import Corpus, find_sources
from bridge_client.bulk.parts import Output, Rows
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
    assert problems[4].startswith("the line cannot be read as JSON: ")
    file.write_bytes(b'{"text":"half a \\ud83d"}\n')
    assert "surrogate" in read(file)[1][0]
    assert columns == {"id": [1, None, None, None, None, None]}


def test_csv_has_quotes_line_breaks_and_rows_of_other_lengths(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeffid,text\r\n1,"say ""no"",\nthen go"\r\n2,\r\n3\r\n4,größe,, \r\n5,no, go\r\n'.encode())
    texts, problems, columns = read(file, keep=["id"])
    assert texts == ['say "no",\nthen go', None, None, "größe", None]
    assert problems == {4: "line 7 has 3 cells, and the head has 2"}
    assert columns == {"id": ["1", "2", "3", "4", None]}


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_quoted_cell_of_csv_that_does_not_end_is_no_text(end: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f'id,text\n1,"one\nline"\n2,5" wide\n3,"two\n4,three{end}')
    texts, problems, _ = read(tmp_path / "a.csv")
    assert texts == ["one\nline", '5" wide', None]
    assert problems == {2: "a quoted cell begins in line 5 and does not end before the file does"}


@pytest.mark.parametrize(("name", "head"), [("a.csv", "id;text"), ("a.csv", "id\ttext"), ("a.tsv", "id,text")])
def test_a_head_of_one_cell_that_looks_like_several_is_the_texts_only_if_that_is_said(
    name: str, head: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(f"{head}\nhello\n")
    with pytest.raises(CorpusError, match=r"the head is one cell, .* --column"):
        read(tmp_path / name)
    assert read(tmp_path / name, column=head)[0] == ["hello"]


def twice(folder: Path, form: str) -> Path:
    """Write a column `text` and two columns `id`."""
    names, cells = ["id", "text", "id"], ["1", "hello", "2"]
    if form == "csv":
        (folder / "a.csv").write_text(f"{','.join(names)}\n{','.join(cells)}\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array([cell]) for cell in cells], names=names), folder / "a.parquet")
    return folder / f"a.{form}"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_of_columns_with_one_name_none_is_taken(form: str, tmp_path: Path) -> None:
    file = twice(tmp_path, form)
    for wanted in ({"column": "id"}, {"keep": ["id"]}, {"keep": ["*"]}):
        with pytest.raises(CorpusError, match="has 2 columns named 'id'"):
            read(file, **wanted)
    assert read(file, keep=["text"]) == (["hello"], {}, {"text": ["hello"]})


def test_a_stream_of_arrow_in_a_file_is_a_table(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["one", None, "one", "two"]).dictionary_encode(), "id": [1, 2, 3, 4]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table, max_chunksize=3)
    corpus = Corpus(find_sources([str(tmp_path)], None), None, ["id"])
    assert corpus.total == 4
    assert read(tmp_path, keep=["id"]) == (["one", None, "one", "two"], {}, {"id": [1, 2, 3, 4]})
    whole = (tmp_path / "a.arrow").read_bytes()
    for cut in (0, 3, 100, len(whole) // 2):
        (tmp_path / "a.arrow").write_bytes(whole[:cut])
        with pytest.raises(CorpusError, match="is not a file of the format arrow"):
            read(tmp_path)


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
    for content in (b"", b"\xef\xbb\xbf"):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == ([], {}, {})


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv"])
def test_a_file_of_utf_16_is_refused_as_such(name: str, tmp_path: Path) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / name).write_bytes('\ufefftext\n"hello"\n'.encode(encoding))
        with pytest.raises(CorpusError, match="is UTF-16: convert it"):
            read(tmp_path / name)


def test_a_folder_and_a_pattern_are_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.jsonl"):
        (tmp_path / name).write_text(f'"{name}"\n')
    (tmp_path / ".hidden.txt").write_text("no\n")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "below").mkdir()
    assert read(tmp_path)[0] == ['"a.txt"', '"b.txt"', "c.jsonl"]
    assert read(tmp_path / "*.txt")[0] == ['"a.txt"', '"b.txt"']


def test_blocks_end_where_their_texts_are_long_and_go_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "BLOCK_SIZE", 10)
    file = tmp_path / "a.txt"
    file.write_text("\n".join(["aaaa", "bbbb", "cccc", "d" * 99, "e", "f", "g"]))
    corpus = Corpus(find_sources([str(file)], None), None, [])
    sizes = [len(block.texts) for block in corpus.blocks(3)]
    assert sizes == [3, 1, 3]
    assert [block.texts for block in corpus.blocks(3, skip=4)] == [["e", "f", "g"]]


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "parquet", "arrow"])
def test_a_block_is_bounded_by_all_that_it_holds(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By texts, and by what is kept beside them; what is read at a time has the bound, too."""
    for module in (corpora, text_files, tables):
        monkeypatch.setattr(module, "BLOCK_SIZE", 1000)
    page, kept = "a page " * 20, [] if form == "txt" else ["page", "more"]
    table = pa.table({"text": [page if form == "txt" else "a"] * 60, "page": [page] * 60, "more": [[page]] * 60})
    file = tmp_path / f"a.{form}"
    match form:
        case "txt":
            file.write_text(f"{page}\n" * 60)
        case "jsonl":
            file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in table.to_pylist()))
        case "csv":
            file.write_text("text,page,more\n" + f"a,{page},{page}\n" * 60)
        case "parquet":
            pq.write_table(table, file, use_dictionary=False, row_group_size=50)
        case _:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
    corpus = Corpus(find_sources([str(file)], None), None, kept)
    sizes = [len(block.texts) for block in corpus.blocks(1000)]
    assert sum(sizes) == 60
    assert 2 <= min(sizes[:-1]) <= max(sizes) <= 8
    assert max(len(piece.texts) for reader in corpus._readers for piece in reader.blocks("text", kept)) <= 8


def test_a_value_that_is_nested_too_deep_costs_its_row(tmp_path: Path) -> None:
    file, deep = tmp_path / "a.jsonl", "[" * 300 + "]" * 300
    file.write_text(f'{{"text":"one","tree":[[1]]}}\n{{"text":"two","tree":{deep}}}\n{{"text":"three"}}\n')
    texts, problems, columns = read(file, keep=["tree"])
    assert texts == ["one", None, "three"]
    assert problems == {1: "the value of 'tree' is nested too deep"}
    assert [orjson.dumps(value) for value in columns["tree"]] == [b"[[1]]", b"null", b"null"]
    assert read(file)[0] == ["one", "two", "three"]


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


# Columns of jsonl: each row has its own


def jsonl(folder: Path, *rows: str, name: str = "a.jsonl") -> Path:
    (folder / name).write_text("".join(f"{row}\n" for row in rows), "utf-8")
    return folder / name


MANY = ['{"id":"k"}'] * 1024  # as many as are looked at
LATE = '{"id":"z","text":"hello","lang":"en"}'


def test_the_columns_of_jsonl_are_those_of_its_first_rows_and_not_of_the_first_alone(tmp_path: Path) -> None:
    file = jsonl(tmp_path, '{"id":"k1"}', '{"id":"k2","text":"hello"}', '{"text":"b","lang":"en"}')
    texts, _, columns = read(file, keep=["*"])
    assert texts == [None, "hello", "b"]
    assert columns == {"id": ["k1", "k2", None], "text": texts, "lang": [None, None, "en"]}
    assert read(file, column="text", keep=["lang"])[2] == {"lang": [None, None, "en"]}


def test_the_columns_of_jsonl_are_those_of_all_files(tmp_path: Path) -> None:
    jsonl(tmp_path, '{"id":"k1"}')
    jsonl(tmp_path, '{"id":"k2","text":"hello"}', name="b.jsonl")
    texts, _, columns = read(tmp_path, keep=["*"])
    assert texts == [None, "hello"]
    assert columns == {"id": ["k1", "k2"], "text": texts}


def test_a_column_of_jsonl_that_is_stated_is_believed_unless_no_row_can_have_it(tmp_path: Path) -> None:
    file = jsonl(tmp_path, *MANY, LATE)
    texts, _, columns = read(file, column="text", keep=["lang", "id"], rows=500)
    assert texts == [None] * 1024 + ["hello"]
    assert columns["lang"] == [*texts[:-1], "en"]
    assert read(file, keep=["*"])[2].keys() == {"id"}  # as documented: of the rows that were looked at
    small = jsonl(tmp_path, LATE, name="b.jsonl")
    for options in ({"column": "body"}, {"column": "text", "keep": ["body"]}):
        with pytest.raises(CorpusError, match=r"b\.jsonl has no column 'body'; it has id, text, lang"):
            read(small, **options)
    late = jsonl(tmp_path, *MANY, '{"body":"late"}', name="c.jsonl")
    assert read(small, late, column="body")[0] == [None] * 1025 + ["late"]


def test_a_column_of_jsonl_that_no_row_has_is_refused_once_that_is_known(tmp_path: Path) -> None:
    file = jsonl(tmp_path, *MANY, LATE)
    with pytest.raises(CorpusError, match="no row has the column 'txet'; the first ones have id"):
        read(file, column="txet")
    assert read(jsonl(tmp_path, *['{"text":null}'] * 2000), column="text")[0] == [None] * 2000


def test_a_table_of_text_still_has_all_columns_that_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n1\n")
    jsonl(tmp_path, *MANY, LATE, name="b.jsonl")
    with pytest.raises(CorpusError, match=r"a\.csv has no column 'text'; it has id"):
        read(tmp_path, column="text")


@pytest.mark.parametrize(
    ("form", "data"),
    [
        (Format.JSONL, b'{"id":"1"}\n{"id":"2","body":"b"}\n' + b'{"body":"c"}\n' * 1500),
        (Format.CSV, b"id,body\n1,\n2,b\n" + b",c\n" * 1500),
    ],
)
def test_standard_input_has_columns_too(form: Format, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    corpus = Corpus(find_sources(["-"], form), "body", ["*"])
    blocks = list(corpus.blocks(2000))
    texts = [None, "b", *["c"] * 1500]
    assert [block.texts for block in blocks] == [texts]
    values = {name: [value for piece in pieces for value in piece] for name, pieces in blocks[0].columns.items()}
    assert values == {"id": ["1", "2", *[None] * 1500], "body": texts}


def test_integers_of_jsonl_keep_all_their_digits(tmp_path: Path) -> None:
    numbers = [2**64 + 1, 2**64 - 1, -(2**63) - 1, -(2**63), 10**30, 0.1234567890123456789, 5]
    file = jsonl(tmp_path, *(f'{{"text":"a","id":[{number!r}]}}' for number in numbers))
    ids = read(file, keep=["id"])[2]["id"]
    assert [orjson.dumps(each).decode() for each in ids] == [f"[{number!r}]" for number in numbers]
    assert read(jsonl(tmp_path, '{"text":"a","id":1%s}' % ("0" * 299)), keep=["id"])[1] == {}


# What is not UTF-8, and lines without anything


def test_empty_lines_before_the_head_of_a_csv_are_no_head(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf\n , \r\ntext,id\n\nhello,1\n")
    assert read(tmp_path / "a.csv", keep=["id"]) == (["hello"], {}, {"id": ["1"]})


def test_a_row_of_csv_that_is_not_utf8_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,"one\nline"\n\n2,"tw\xffo\n"\n3,gr\xc3\xb6\xc3\x9fer\n4,\xe2\x82')
    texts, problems, columns = read(tmp_path / "a.csv", keep=["id"])
    assert texts == ["one\nline", None, "größer", None]
    assert problems == {1: "line 5 is not UTF-8", 3: "line 8 is not UTF-8"}
    assert columns == {"id": ["1", None, "3", None]}
    (tmp_path / "a.csv").write_bytes("größe,text\n1,a\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"the head of .*a\.csv is not UTF-8"):
        read(tmp_path / "a.csv")


def not_utf8(kind: pa.DataType) -> pa.Array:
    array = pa.array(
        [b"ok", b"\xff\xfe bad", b"fine", None], pa.large_binary() if "large" in str(kind) else pa.binary()
    )
    if kind == pa.string_view():
        return array.cast(pa.binary_view()).view(kind)
    return array.view(kind)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_row_of_a_table_that_is_not_utf8_costs_itself_alone(kind: pa.DataType, tmp_path: Path) -> None:
    bad, good = not_utf8(kind), ["a", "b", "c", "d"]
    nested = pa.ListArray.from_arrays([0, 1, 2, 3, 4], bad)
    pq.write_table(pa.table({"text": bad, "id": good}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": good, "note": bad, "notes": nested}), tmp_path / "b.parquet")
    texts, problems, columns = read(tmp_path / "a.parquet", keep=["text", "id"])
    assert texts == columns["text"] == ["ok", None, "fine", None]
    assert problems == {1: "the value of 'text' is not UTF-8"}
    assert columns["id"] == good
    for name, value in (("note", "ok"), ("notes", ["ok"])):
        texts, problems, columns = read(tmp_path / "b.parquet", keep=[name])
        assert texts == ["a", None, "c", "d"]
        assert problems == {1: f"the value of {name!r} is not UTF-8"}
        assert columns[name][:2] == [value, None]
    assert read(tmp_path / "b.parquet")[1] == {}, "a column that nobody reads has no faults"


# Dictionaries: each piece of a table has its own


def categories(label: str) -> dict[str, pa.Array]:
    each = pa.array([label] * 3).dictionary_encode()
    return {
        "text": each,
        "label": each,
        "view": pa.array([label] * 3, pa.string_view()),
        "views": pa.array([[label]] * 3, pa.list_(pa.string_view())),
        "list": pa.ListArray.from_arrays([0, 1, 2, 3], each),
        "fixed": pa.FixedSizeListArray.from_arrays(each, 1),
        "struct": pa.StructArray.from_arrays([each], ["name"]),
        "map": pa.MapArray.from_arrays([0, 1, 2, 3], pa.array(["k"] * 3), each),
    }


@pytest.mark.parametrize("is_one_file", [True, False])
@pytest.mark.parametrize("output", [Output.ARROW, Output.PARQUET])
def test_dictionaries_and_views_become_their_values(output: Output, is_one_file: bool, tmp_path: Path) -> None:
    tables = [pa.table(categories(label)) for label in ("lab0", "lab1")]
    if is_one_file:
        with pq.ParquetWriter(tmp_path / "0.parquet", tables[0].schema) as out:
            for table in tables:
                out.write_table(table)
    else:
        for number, table in enumerate(tables):
            pq.write_table(table, tmp_path / f"{number}.parquet")
    corpus = Corpus(find_sources([str(tmp_path / "*.parquet")], None), None, ["*"])
    form = ArrowParts(corpus.schema(), {}, output, is_folder=False)
    parts = []
    for number, block in enumerate(corpus.blocks(4)):
        parts.append(tmp_path / f"part-{number}")
        count = len(block.texts)
        form.write(
            Rows(vectors=np.zeros((count, 2), np.float32), has_vector=np.ones(count, np.bool_), columns=block.columns),
            parts[-1],
        )
    form.join(parts, tmp_path / "out", 2)
    if output is Output.PARQUET:
        found = pq.read_table(tmp_path / "out")
    else:
        with pa.memory_map(str(tmp_path / "out")) as mapped, pa.ipc.open_file(mapped) as reader:
            found = reader.read_all()
    assert found.drop("embedding").to_pylist() == pa.concat_tables(tables).to_pylist()
    assert found.schema.field("label").type == pa.string()


def test_runs_become_their_values(tmp_path: Path) -> None:
    table = pa.table({"text": pc.run_end_encode(pa.array(["a", "a", None]))})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as out:
        out.write_table(table)
    assert read(tmp_path / "a.arrow", keep=["text"]) == (["a", "a", None], {}, {"text": ["a", "a", None]})


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
@pytest.mark.parametrize("format_", [Format.PARQUET, Format.ARROW])
def test_a_table_whose_name_is_not_utf8_is_refused_by_name(tmp_path: Path, format_: Format) -> None:
    file = tmp_path / f"bad\udcff.{format_}"
    file.touch()
    with pytest.raises(CorpusError, match=r"bad\\udcff.* has a name that is not UTF-8"):
        Corpus(find_sources([str(file)], None), None, [])
