"""From a corpus to parts, with vectors that say which text they are of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bridge_client.bulk import corpus, pipeline
from bridge_client.bulk.corpus import Corpus, find_sources
from bridge_client.bulk.job import Job
from bridge_client.bulk.parts import NpyParts
from bridge_client.bulk.pipeline import Pipeline
from bridge_client.embeddings import Embeddings


def test_texts_are_asked_for_ahead_as_far_as_there_is_room_for_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BLOCK_SIZE", 20)
    monkeypatch.setattr(pipeline, "_WAITING_SIZE", 60)
    file = tmp_path / "a.txt"
    file.write_text("".join(f"{number:09}\n" for number in range(100)))
    ahead: list[int] = []

    def embed(texts: Iterable[str]) -> Iterator[Embeddings]:
        asked = list(texts)  # as far ahead as it may
        ahead.append(len(asked))
        for text in asked:
            vectors = np.full((1, 2), int(text), np.float32)
            yield Embeddings(
                vectors=vectors, dimension=2, tokens=(1,), truncated=(), model="m", fingerprint="f", timing_ms={}
            )

    job, out = Job(tmp_path / "out.npy", ".npy"), tmp_path / "out.npy"
    with job.locked():
        job.begin({})
        run = Pipeline(
            job, Corpus(find_sources([str(file)], None), None, []), NpyParts(), embed, None,
            part_rows=50, dimension=2, dtype=np.dtype(np.float32), is_strict=True, on_progress=lambda so_far: None,
        )  # fmt: skip
        run.run()
        job.finish({}, lambda target: NpyParts().join([job.part(number) for number in range(run.parts)], target, 2))
    assert run.counts.rows == 100
    assert np.load(out)[:, 0].tolist() == list(range(100))
    assert max(ahead) <= 9
