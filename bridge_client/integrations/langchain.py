"""LangChain: `EmbedBridgeEmbeddings`, blocking and async, with the model's prompts told apart."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings

from bridge_client.integrations.embedder import Embedder


class EmbedBridgeEmbeddings(Embeddings):  # type: ignore[misc, unused-ignore]
    """Vectors of a local worker that is started at the first call and supervised."""

    def __init__(self, model: str = "all-MiniLM-L6-v2", *, fingerprint: str | None = None, **options: Any) -> None:
        """Note what is to be used; nothing is started.

        Args:
            model: A model's name or folder.
            fingerprint: Of the vectors that the store holds already: a model of another space is refused.
            options: Of the client.
        """
        self._embedder = Embedder(model, fingerprint, **options)

    @property
    def fingerprint(self) -> str:
        """The name of the vector space: keep it beside the vectors, and give it back the next time."""
        return self._embedder.fingerprint()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed what is searched."""
        vectors: list[list[float]] = self._embedder.vectors(texts, "document").tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a question."""
        vector: list[float] = self._embedder.vectors([text], "query")[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Do as `embed_documents`, awaiting."""
        vectors: list[list[float]] = (await self._embedder.avectors(texts, "document")).tolist()
        return vectors

    async def aembed_query(self, text: str) -> list[float]:
        """Do as `embed_query`, awaiting."""
        vector: list[float] = (await self._embedder.avectors([text], "query"))[0].tolist()
        return vector
