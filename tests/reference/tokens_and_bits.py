"""Write tests/goldens/tokens_and_bits.json: transformers' offsets of tokens, sentence-transformers' sign bits.

For the environment of `make reference`: `python -m tests.reference.tokens_and_bits`. tests/worker/test_tokenize.py asks
the worker's own tokenizers for the same, and packs the same vectors.
"""

from __future__ import annotations

import base64
import json
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import sentence_transformers
import transformers
from sentence_transformers.util import quantize_embeddings
from transformers import AutoTokenizer

from tests.reference.hostile_texts import hostile_texts

ROOT = Path(__file__).parents[1]
OUT = ROOT / "goldens" / "tokens_and_bits.json"
_TEXTS = [
    "",
    "  two  spaces \t\r\n",
    "a\u0000b\u200bc\u00ad",
    "Größe, Crème BRÛLÉE; e\u0301 É",
    "😀👩\u200d👩\u200d👧x",
    "İİ ﬁ ß ½",
    "世界 한국어 ｶﾞ",
    "[SEP] x </s> <s>",
    "word " * 90,
    *hostile_texts()[::40],
]


def ranges_of(tokenizer: Any, text: str) -> list[list[int]]:
    """Return where the tokens of a text are, without special ones."""
    told = tokenizer([text], return_offsets_mapping=True, return_special_tokens_mask=True)
    pairs = zip(told["offset_mapping"][0], told["special_tokens_mask"][0], strict=True)
    return [list(pair) for pair, is_special in pairs if not is_special]


def main() -> None:
    """Write the file."""
    folders = sorted(path for path in (ROOT / "models").iterdir() if path.is_dir())
    offsets = {}
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        offsets[folder.name] = [ranges_of(tokenizer, text) for text in _TEXTS]
    vectors = np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)
    vectors[0, :4] = [0.0, -0.0, 1e-45, -1e-45]
    with warnings.catch_warnings(action="ignore"):
        bits = quantize_embeddings(vectors, precision="ubinary")
    document = {
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "texts": _TEXTS,
        "offsets": offsets,
        "vectors": base64.b64encode(vectors.tobytes()).decode(),
        "ubinary": bits.tolist(),
    }
    OUT.write_text(json.dumps(document, ensure_ascii=True, separators=(",", ":")) + "\n", "ascii")
    print(f"{len(_TEXTS)} texts, {len(folders)} folders, {OUT.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
