"""The bridge that most projects write first: one line in, one batch in the given order, one line out."""

from __future__ import annotations

import json
import sys

from embed_worker.machine import available_cores
from tests.benchmarks.contestants import MAX_TOKENS, open_session, plain_tokenizer, run_batch


def main() -> None:
    tokenizer = plain_tokenizer()
    tokenizer.enable_truncation(MAX_TOKENS)
    session = open_session(available_cores())
    for line in sys.stdin:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(json.loads(line)["inputs"])]
        print(json.dumps({"embeddings": run_batch(session, rows).tolist()}), flush=True)


if __name__ == "__main__":
    main()
