"""LlamaIndex: `EmbedBridgeEmbedding`, blocking and async, with the model's prompts told apart."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr

from bridge_client.integrations.embedder import Embedder

_BATCH_SIZE = 256  # LlamaIndex hands over 10 texts at a time by itself, which takes 2.4 times as long


class EmbedBridgeEmbedding(BaseEmbedding):  # type: ignore[misc, unused-ignore]
    """Vectors of a local worker that is started at the first call and supervised.

    `fingerprint` is that of the vectors that an index holds already: a model of another space is refused.
    """

    model_config = ConfigDict(extra="forbid")  # `model=` would be passed over, and the default model embed
    # Frozen: a name that is changed later would say one model, and another would embed.
    model_name: str = Field(description="The model's name or folder.", frozen=True)
    fingerprint: str | None = Field(default=None, description="The vector space that the model must have.", frozen=True)
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the client.", frozen=True)
    _embedder: Embedder = PrivateAttr()

    def __init__(self, model_name: str = "all-MiniLM-L6-v2", **fields: Any) -> None:
        super().__init__(model_name=model_name, **{"embed_batch_size": _BATCH_SIZE, **fields})
        self._embedder = Embedder(self.model_name, self.fingerprint, **self.options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex stores it."""
        return "EmbedBridgeEmbedding"

    def vector_space(self) -> str:
        """Return the fingerprint of the vectors: keep it beside the index, and give it back the next time."""
        return self._embedder.fingerprint()

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._embedder.vectors([query], "query")[0].tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.vectors(texts, "document").tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = (await self._embedder.avectors([query], "query"))[0].tolist()
        return vector

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = (await self._embedder.avectors(texts, "document")).tolist()
        return vectors
