"""Files of expected vectors: those that `embed-worker check` reads, and the older `tests/models/*.expected.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_worker.tools.references import References, ReferenceSet


def read_expected(file: Path) -> Sequence[ReferenceSet]:
    """Read the sets of a file, one for each request."""
    cases = json.loads(file.read_bytes()).get("cases")
    return References.read(file).sets if cases is None else [_of_case(case) for case in cases]


def _of_case(case: dict[str, Any]) -> ReferenceSet:
    names = ("prompt_name", "dimensions", "normalize")
    return ReferenceSet(
        request={name: case[name] for name in names if case[name] is not None},
        texts=tuple(case["texts"]),
        vectors=np.array(case["embeddings"], np.float32),
        tokens=tuple(case["token_counts"]),
        truncated=tuple(index for index, is_cut in enumerate(case["truncated"]) if is_cut),
    )
