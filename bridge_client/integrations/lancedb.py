"""LanceDB: the embedding function `embed-bridge`, whose stored arguments have the fingerprint.

LanceDB stores the arguments of `create` with a table, and makes the function of them again when the table is opened. So
`create` is where the vector space is written down: use `embed_bridge`, which does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lancedb.embeddings import TextEmbeddingFunction, get_registry, register
from pydantic import ConfigDict, PrivateAttr

from bridge_client.integrations.embedder import Embedder

_NAME = "embed-bridge"


@register(_NAME)  # type: ignore[misc, unused-ignore]
class EmbedBridgeLance(TextEmbeddingFunction):  # type: ignore[misc, unused-ignore]
    """Vectors of a local worker that is started at the first call and supervised.

    A text that is null has no vector: give `on_bad_vectors="null"` where there are some.
    """

    # `create(model=…)` would be passed over, and the default model embed; so would a name that is changed later.
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = "all-MiniLM-L6-v2"
    fingerprint: str | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    max_retries: int = 0  # the client tries again where that helps
    _embedder: Embedder = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._embedder = Embedder(self.name, self.fingerprint, **self.options)

    def ndims(self) -> int:
        """Return the number of components of a vector."""
        return self._embedder.dimension()

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Embed what is stored; null for null."""
        return self._vectors(list(texts), "document")

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Embed questions."""
        return self._vectors(list(self.sanitize_input(query)), "query")

    # LanceDB would try again, and lose the type of the last error: what can be tried again the client has tried.

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Embed questions, once."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Embed what is stored, once."""
        embedded: list[Any] = self.compute_source_embeddings(*args, **kwargs)
        return embedded

    def _vectors(self, texts: list[Any], input_type: Any) -> list[Any]:
        there = [text for text in texts if isinstance(text, str)]
        vectors = iter(self._embedder.vectors(there, input_type) if there else np.empty((0, 0), np.float32))
        return [next(vectors) if isinstance(text, str) else None for text in texts]


def embed_bridge(model: str = "all-MiniLM-L6-v2", **options: Any) -> Any:
    """Make the embedding function of a new table, with the fingerprint that its vectors will have."""
    fingerprint = Embedder(model, **options).fingerprint()
    return get_registry().get(_NAME).create(name=model, fingerprint=fingerprint, options=options)
