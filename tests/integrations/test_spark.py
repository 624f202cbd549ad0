"""Spark with `mapInArrow` and `predict_batch_udf`, on the machine's own cores, with a worker that is killed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bridge_client import EmbedClient
from bridge_client.integrations.engines import EmbedBatch
from tests.integrations.rows import DISTINCT, MODEL, text_of, wait_until, workers
from tests.worker.harness import ROOT

pyspark = pytest.importorskip("pyspark", reason="Spark is not there: make integrations")
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java for Spark"),
]

ROWS = 50_000


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    session = (
        pyspark.sql.SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "1g")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "1000")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def expected() -> Any:
    with EmbedClient(MODEL) as client:
        return client.embed([f"text number {number}" for number in range(DISTINCT)])


class Fragile(EmbedBatch):
    """Kills its worker once in each process, in the middle."""

    _batches = 0

    def __call__(self, batch: Any) -> Any:
        self._batches += 1
        if self._batches == 3:
            for stats in self.client().stats().workers:
                if stats.pid:
                    os.kill(stats.pid, 9)
        return super().__call__(batch)


def test_map_in_arrow_embeds_every_row_once_though_workers_are_killed(spark: Any, expected: Any) -> None:
    rows = spark.createDataFrame([(number, text_of(number)) for number in range(ROWS)], "id long, text string")
    embed = Fragile(MODEL, fixed_size=False)
    embedded = rows.repartition(4).mapInArrow(embed.over, "id long, text string, embedding array<float>")
    found = embedded.toArrow()
    ids = found["id"].to_numpy()
    assert sorted(ids) == list(range(ROWS))
    assert found["embedding"].is_null().to_numpy().tolist() == [bool(number % 1000 == 7) for number in ids]
    vectors = np.array(found["embedding"].drop_null().to_pylist(), np.float32)
    np.testing.assert_allclose(vectors, expected[ids[ids % 1000 != 7] % DISTINCT], atol=2e-5)


def test_a_udf_embeds_a_column(spark: Any, expected: Any) -> None:
    functions = pytest.importorskip("pyspark.ml.functions")
    types = pytest.importorskip("pyspark.sql.types")
    embed = EmbedBatch(MODEL)

    def make() -> Any:
        return lambda texts: embed.vectors(list(texts))[0]

    udf = functions.predict_batch_udf(make, return_type=types.ArrayType(types.FloatType()), batch_size=256)
    rows = spark.createDataFrame([(f"text number {number}",) for number in range(100)], "text string")
    vectors = np.array([row.v for row in rows.select(udf("text").alias("v")).collect()], np.float32)
    np.testing.assert_allclose(vectors, expected[:100], atol=2e-5)


def test_no_process_is_left_when_spark_has_stopped(spark: Any) -> None:
    spark.stop()
    assert wait_until(lambda: not workers(), 10.0), workers()
