"""Ray Data with actors that embed, some of which are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_client import EmbedClient
from bridge_client.integrations.engines import EmbedBatch
from tests.integrations.rows import DISTINCT, MODEL, text_of, wait_until, workers
from tests.worker.harness import ROOT

ray = pytest.importorskip("ray", reason="Ray is not there: make integrations")

ROWS = 50_000

pytestmark = [pytest.mark.timeout(400), pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=300 * 10**6,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


class Fragile(EmbedBatch):
    """Kills its worker, and then itself, once each, somewhere in the middle."""

    def __init__(self, marks: str, **keywords: Any) -> None:
        super().__init__(MODEL, **keywords)
        self._marks = marks
        self._batches = 0

    def __call__(self, batch: Any) -> Any:
        self._batches += 1
        if self._batches == 4 and self._claim("worker"):
            (pid,) = {stats.pid for stats in self.client().stats().workers if stats.pid}
            os.kill(pid, signal.SIGKILL)
        if self._batches == 8 and self._claim("actor"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)

    def _claim(self, name: str) -> bool:
        try:
            Path(self._marks, name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def test_every_row_is_embedded_once_though_an_actor_and_a_worker_are_killed(cluster: None, tmp_path: Path) -> None:
    items = [{"id": number, "text": text_of(number)} for number in range(ROWS)]
    source = ray.data.from_items(items, override_num_blocks=40)
    embedded = source.map_batches(
        Fragile,
        fn_constructor_kwargs={"marks": str(tmp_path)},
        batch_format="pyarrow",
        batch_size=1024,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=0.5,
    )
    with EmbedClient(MODEL) as client:
        expected = client.embed([f"text number {number}" for number in range(DISTINCT)])
    seen = np.zeros(ROWS, np.int64)
    for batch in embedded.iter_batches(batch_format="pyarrow", batch_size=4096):
        ids = batch["id"].to_numpy()
        seen[ids] += 1
        column = batch["embedding"].combine_chunks()
        is_null = np.asarray(column.is_null())
        assert (is_null == (ids % 1000 == 7)).all()
        found = np.stack(column.drop_null().to_numpy(zero_copy_only=False))
        np.testing.assert_allclose(found, expected[ids[~is_null] % DISTINCT], atol=2e-5)
    assert (seen == 1).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["actor", "worker"]


def test_no_process_is_left_after_a_shutdown(cluster: None) -> None:
    rows = ray.data.from_items([{"text": "a river"}] * 8).map_batches(
        EmbedBatch, fn_constructor_kwargs={"model": MODEL}, batch_format="pyarrow", num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(size=1),
    )  # fmt: skip
    assert rows.count() == 8
    ray.shutdown()
    assert wait_until(lambda: not workers(), 4.0), workers()
