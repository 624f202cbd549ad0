"""Parts on disk: what a disk without room says, whoever writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bridge_client.bulk.arrow_parts import ArrowParts
from bridge_client.bulk.parts import Form, JsonlParts, NpyParts, Output, Rows
from bridge_client.bulk.rows import CorpusError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size")

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


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__ + form.suffix)
def test_a_part_without_room_is_a_sentence_and_leaves_nothing(form: Form, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be written: File too large"):
        form.write(ROWS, tmp_path / "part")
    assert not list(tmp_path.iterdir())
