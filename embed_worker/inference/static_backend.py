"""A table of vectors in place of a graph: a text's vector is the mean of its tokens' rows. numpy, and no runtime."""

from __future__ import annotations

from typing import Self

import numpy as np

from embed_worker.config import RuntimeOptions
from embed_worker.errors import ModelError
from embed_worker.inference.backend import CPU_TOLERANCE, ProviderReport
from embed_worker.inference.pooling import Float32
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.model_files.plan import ModelPlan
from embed_worker.model_files.safetensors import SafetensorsError, SafetensorsFile

_CHUNK_TOKENS = 4096  # a text has no limit, and its rows side by side are many times its size


class StaticBackend:
    """A `StaticEmbedding`: see `Backend`. Texts share nothing, so a batch is a loop."""

    precision = "float32"
    scales_by_batch = False
    is_end_to_end = False
    max_rows = None
    tolerance: float | None = CPU_TOLERANCE

    def __init__(self, table: Float32, provider: ProviderReport) -> None:
        """Hold the table, (vocabulary, D) float32."""
        self._table = table
        self.provider = provider

    @classmethod
    def load(cls, plan: ModelPlan, options: RuntimeOptions) -> Self:
        """Read the table of a model.

        Raises:
            ModelError: It is missing, damaged, or not of numbers with a fraction.
        """
        try:
            table = _read_table(SafetensorsFile.open(plan.graph))
        except (SafetensorsError, OSError, ValueError, IndexError) as error:
            raise ModelError(f"the model {plan.name!r} has a table that cannot be used: {error}") from error
        return cls(table, ProviderReport(asked=options.provider, chosen="numpy", reason="a table needs no runtime"))

    def padded_to(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the batch's own shape."""
        return rows, tokens

    def use_all_cores(self) -> None:
        """Do nothing: one thread takes the rows."""

    def close(self) -> None:
        """Do nothing: the table ends with the model."""

    def embed(self, batch: TokenBatch, *, exclusive: bool) -> Float32:
        """Average the rows of each text; see `Backend.embed`. A text without tokens has no vector: zeros."""
        vectors = np.zeros((len(batch.ids), self._table.shape[1]), np.float32)
        for vector, ids, mask in zip(vectors, batch.ids, batch.mask, strict=True):
            tokens = ids[mask > 0]
            for first in range(0, len(tokens), _CHUNK_TOKENS):
                vector += self._table[tokens[first : first + _CHUNK_TOKENS]].sum(axis=0, dtype=np.float32)
            vector /= max(len(tokens), 1)
        return vectors


def _read_table(file: SafetensorsFile) -> Float32:
    """Return one row a token. model2vec may keep fewer, with a mapping to them and a weight for each token.

    Reference: sentence-transformers, `StaticEmbedding.load`.
    """
    name = "embedding.weight" if "embedding.weight" in file else "embeddings"
    if name not in file:
        raise ValueError("it has neither embedding.weight nor embeddings")
    stored = file[name]
    # Whole numbers are model2vec's, quantised; the weights of the tokens give them their fraction.
    is_scaled = name == "embeddings" and "weights" in file and stored.dtype.kind in "iu"
    if stored.ndim != 2 or not (stored.dtype.kind == "f" or is_scaled):
        raise ValueError(f"{name} is {stored.dtype} of shape {stored.shape}, not a table of numbers with a fraction")
    table = np.ascontiguousarray(stored, np.float32)
    if name == "embeddings" and "mapping" in file:
        table = table[np.asarray(file["mapping"], np.int64)]
    if name == "embeddings" and "weights" in file:
        table = table * np.asarray(file["weights"], np.float32)[:, None]
    return table
