"""Parts on disk: what a disk without room says, whoever writes, and values that JSON or parquet has no type for."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridge_client.bulk.arrow_parts import ArrowParts
from bridge_client.bulk.corpus import Corpus, find_sources
from bridge_client.bulk.parts import Form, JsonlParts, NpyParts, Output, Rows
from bridge_client.bulk.rows import CorpusError

NOTHING = pa.schema([])
FORMS = [
    NpyParts(),
    JsonlParts(),
    ArrowParts(NOTHING, {}, Output.ARROW, is_folder=True),
    ArrowParts(NOTHING, {}, Output.PARQUET, is_folder=True),
]
VECTORS = np.random.default_rng(1).standard_normal((500, 64), np.float32)
ROWS = Rows(vectors=VECTORS, has_vector=np.ones(500, np.bool_), columns={})


@pytest.fixture
def small_files() -> Iterator[None]:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size")
@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__ + form.suffix)
def test_a_part_without_room_is_a_sentence_and_leaves_nothing(form: Form, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be written: File too large"):
        form.write(ROWS, tmp_path / "part")
    assert not list(tmp_path.iterdir())


def as_json(folder: Path, column: Any) -> list[Any]:
    """Return the values of a column as a jsonl file has them."""
    count = len(column)
    vectors = np.zeros((count, 1), np.float32)
    rows = Rows(vectors=vectors, has_vector=np.ones(count, np.bool_), columns={"it": [column]})
    JsonlParts().write(rows, folder / "part")
    return [json.loads(line)["it"] for line in (folder / "part").read_text("utf-8").splitlines()]


NANOSECONDS = 1_577_836_800_123_456_789
ZONE = pa.timestamp("ns", "+01:00")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([NANOSECONDS, None], pa.timestamp("ns")), ["2020-01-01T00:00:00.123456789", None]),
        (pa.array([-1], pa.timestamp("ns")), ["1969-12-31T23:59:59.999999999"]),
        (pa.array([NANOSECONDS], ZONE), ["2020-01-01T01:00:00.123456789+01:00"]),
        (pa.array([10**9], pa.timestamp("ns")), ["1970-01-01T00:00:01"]),
        (pa.array([10**6], pa.timestamp("us")), ["1970-01-01T00:00:01"]),
        (pa.array([1001], pa.time64("ns")), ["00:00:00.000001001"]),
        (pa.array([90_500_000_000, -1, 10**9], pa.duration("ns")), ["PT90.5S", "-PT0.000000001S", "PT1S"]),
        (pa.array([2**62], pa.duration("s")), [f"PT{2**62}S"]),
        (pa.array([datetime.timedelta(days=1, microseconds=1)]), ["PT86400.000001S"]),
        (pa.array([[1], None, []], pa.list_(pa.timestamp("ns"))), [["1970-01-01T00:00:00.000000001"], None, []]),
        (pa.array([{"a": {"b": 1}}], pa.struct([("a", pa.struct([("b", pa.duration("ns"))]))])),
         [{"a": {"b": "PT0.000000001S"}}]),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.time64("ns"))), [[["k", "00:00:00.000000001"]]]),
        (pa.array([b"\xff\x00", None, b""]), ["/wA=", None, ""]),
        (pa.array([[b"a"]], pa.list_(pa.binary(1))), [["YQ=="]]),
    ],
)  # fmt: skip
def test_times_in_json_have_all_their_digits_and_bytes_are_kept(
    column: Any, expected: list[Any], tmp_path: Path
) -> None:
    assert as_json(tmp_path, column) == expected


def test_a_value_without_a_form_in_json_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"the column 'it' cannot be written as JSON: .*out of range"):
        as_json(tmp_path, pa.array([2**62], pa.timestamp("us")))
    assert not list(tmp_path.iterdir())


def test_a_column_that_parquet_has_no_type_for_is_refused_before_the_work() -> None:
    for kind in (pa.month_day_nano_interval(), pa.struct([]), pa.dense_union([pa.field("a", pa.int8())])):
        kept = pa.schema([("id", pa.int64()), ("it", kind)])
        with pytest.raises(CorpusError, match=r"the column 'it' is of the type .*, which parquet does not have"):
            ArrowParts(kept, {}, Output.PARQUET, is_folder=False)
        ArrowParts(kept, {}, Output.ARROW, is_folder=False)


def test_integers_beyond_64_bits_are_written_with_all_their_digits(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text":"a","id":{2**64 + 1}}}\n{{"text":"b","id":{{"of":[{-(2**70)}]}}}}\n')
    (block,) = Corpus(find_sources([str(file)], None), None, ["id"]).blocks(2)
    rows = Rows(vectors=VECTORS[:2], has_vector=np.ones(2, np.bool_), columns=block.columns)
    JsonlParts().write(rows, tmp_path / "part.jsonl")
    written = [json.loads(line)["id"] for line in (tmp_path / "part.jsonl").read_text("utf-8").splitlines()]
    assert written == [2**64 + 1, {"of": [-(2**70)]}]
    ArrowParts(pa.schema([("id", pa.string())]), {}, Output.PARQUET, is_folder=True).write(rows, tmp_path / "p.parquet")
    assert [json.loads(value) for value in pq.read_table(tmp_path / "p.parquet")["id"].to_pylist()] == written
