"""Recipes of docs/engines.md for libraries of one machine: datasets, Dask, polars, DuckDB and Daft."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_client import EmbedClient, RequestError, shared_client
from bridge_client.integrations.engines import EmbedBatch
from tests.integrations.rows import MODEL

pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("default")]
TEXTS = [f"text number {number % 50}" for number in range(400)]


@pytest.fixture(scope="module")
def worker() -> Iterator[EmbedClient]:
    client = shared_client(MODEL)
    yield client
    client.close()


@pytest.fixture(scope="module")
def expected(worker: EmbedClient) -> Any:
    return worker.embed(TEXTS)


def test_datasets_maps_in_two_processes(expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    datasets = pytest.importorskip("datasets", reason="datasets is not there: make integrations")
    rows = datasets.Dataset.from_dict({"text": [None, *TEXTS]}).with_format("arrow")
    found = rows.map(EmbedBatch(MODEL), batched=True, batch_size=64, num_proc=2).with_format(None)
    assert found.features["embedding"] == datasets.List(datasets.Value("float32"), length=len(expected[0]))
    assert found["embedding"][0] is None
    np.testing.assert_allclose(np.array(found["embedding"][1:]), expected, atol=2e-5)


def test_datasets_says_which_row_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    datasets = pytest.importorskip("datasets", reason="datasets is not there: make integrations")
    rows = datasets.Dataset.from_dict({"text": [*TEXTS, "x" * (2**20 + 1)]})  # more than a worker takes
    with pytest.raises(RequestError, match="input_too_long"):  # not a hang: it came back through a pickle
        rows.map(EmbedBatch(MODEL), batched=True, batch_size=64, num_proc=2)


def test_dask_maps_partitions(expected: Any) -> None:
    frames = pytest.importorskip("dask.dataframe", reason="Dask is not there: make integrations")
    pandas = pytest.importorskip("pandas")
    rows = frames.from_pandas(pandas.DataFrame({"text": TEXTS}), npartitions=4)
    meta = {"text": rows["text"].dtype, "embedding": object}
    found = rows.map_partitions(EmbedBatch(MODEL), meta=meta).compute(scheduler="threads")
    np.testing.assert_allclose(np.stack(found["embedding"].to_list()), expected, atol=2e-5)


def test_polars_adds_a_column(expected: Any) -> None:
    polars = pytest.importorskip("polars", reason="polars is not there: make integrations")
    found = polars.DataFrame({"text": TEXTS}).pipe(EmbedBatch(MODEL))
    np.testing.assert_allclose(found["embedding"].to_numpy(), expected, atol=2e-5)


def test_duckdb_calls_it_from_sql(expected: Any) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not there: make integrations")
    pa = pytest.importorskip("pyarrow")
    embed = EmbedBatch(MODEL, fixed_size=False)
    database = duckdb.connect()
    database.create_function(
        "embed", lambda texts: embed(pa.table({"text": texts}))["embedding"], ["VARCHAR"], "FLOAT[]", type="arrow"
    )
    database.execute("CREATE TABLE rows AS SELECT unnest(?::VARCHAR[]) AS text", [TEXTS])
    found = database.sql("SELECT embed(text) AS v FROM rows").fetchall()
    np.testing.assert_allclose(np.array([row[0] for row in found], np.float32), expected, atol=2e-5)
    nearest = database.sql(
        "SELECT text FROM rows ORDER BY list_cosine_distance(embed(text), embed('text number 7')) LIMIT 1"
    ).fetchall()
    assert nearest == [("text number 7",)]


def test_daft_adds_a_column(expected: Any) -> None:
    daft = pytest.importorskip("daft", reason="Daft is not there: make integrations")
    pa = pytest.importorskip("pyarrow")
    embed = EmbedBatch(MODEL)
    dimension = expected.shape[1]

    @daft.func.batch(return_dtype=daft.DataType.fixed_size_list(daft.DataType.float32(), dimension))  # type: ignore[untyped-decorator, unused-ignore]
    def vectors(texts: Any) -> Any:
        return embed(pa.table({"text": texts.to_arrow()}))["embedding"].combine_chunks()

    frame = daft.from_pydict({"text": [*TEXTS, None]})
    found = frame.with_column("embedding", vectors(frame["text"])).to_arrow()["embedding"].to_pylist()
    assert found.pop() is None
    np.testing.assert_allclose(np.array(found, np.float32), expected, atol=2e-5)
