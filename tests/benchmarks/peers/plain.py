"""What a program has to do by itself around a bare runtime: tokens, batches of similar length, lanes, pooling."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

MAX_TOKENS = 256
GPU_BATCH_TOKENS = 8192  # of a batch on a GPU: nobody has measured yet what is best there

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
# (B, T) token ids and mask to (B, T, D) hidden states.
Run = Callable[[Int64, Int64], Float32]


def plain_tokenizer(model: str | Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(Path(model, "tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


class Arrangement:
    """Rows sorted by length, cut by tokens, run by lanes of one core each; a text alone runs on all cores.

    Args:
        tokenizer: Of `plain_tokenizer`.
        pooling: "mean" or "cls".
        lanes: What runs a batch, one for each lane.
        alone: What runs a text alone.
        batch_tokens: Rows times the longest of a batch.
    """

    def __init__(
        self, tokenizer: Tokenizer, pooling: str, *, lanes: Sequence[Run], alone: Run, batch_tokens: int = 512
    ) -> None:
        self._tokenizer = tokenizer
        self._pooling = pooling
        self._lanes = lanes
        self._alone = alone
        self._batch_tokens = batch_tokens

    def embed(self, texts: list[str]) -> Float32:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        if len(rows) == 1:
            return run_rows(self._alone, rows, self._pooling)
        batches: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for batch in cut([len(row) for row in rows], self._batch_tokens):
            batches.put(batch)
        pieces: list[tuple[list[int], Float32]] = []

        def work(run: Run) -> None:
            while True:
                try:
                    batch = batches.get_nowait()
                except queue.Empty:
                    return
                pieces.append((batch, run_rows(run, [rows[place] for place in batch], self._pooling)))

        threads = [threading.Thread(target=work, args=(run,)) for run in self._lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        vectors = np.empty((len(texts), pieces[0][1].shape[1]), np.float32)
        for batch, piece in pieces:
            vectors[batch] = piece
        return vectors


def cut(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return the places of the rows of each batch, the longest rows first."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def run_rows(run: Run, rows: Sequence[Sequence[int]], pooling: str) -> Float32:
    """Pad, run, pool, normalise: (rows, D)."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return pool(run(ids, mask), mask, pooling)


def pool(hidden: Float32, mask: Int64, pooling: str) -> Float32:
    """(B, T, D) to (B, D) of length 1."""
    weights = mask.astype(np.float32)
    pooled = hidden[:, 0] if pooling == "cls" else np.matmul(weights[:, None, :], hidden)[:, 0, :]
    vectors: Float32 = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return vectors


def feeds(names: Sequence[str], ids: Int64, mask: Int64) -> dict[str, Any]:
    """What a graph with inputs of these names is fed."""
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: known[name] for name in names}
