"""Chroma: `EmbedBridgeFunction`, whose configuration has the fingerprint, and `collection`, which compares it.

Chroma compares the name of an embedding function with the one that a collection was made with, and nothing else. What
must not be mixed is told apart here: by `collection`, and with every batch of vectors. A collection's `modify` raises,
too, but Chroma has stored the new configuration by then: make a new collection instead.
"""

from __future__ import annotations

from typing import Any

from chromadb.api.types import Documents, EmbeddingFunction
from chromadb.errors import NotFoundError
from chromadb.utils.embedding_functions import register_embedding_function

from bridge_client.integrations.embedder import Embedder

_NAME = "embed-bridge"


@register_embedding_function  # type: ignore[misc, unused-ignore]
class EmbedBridgeFunction(EmbeddingFunction[Documents]):  # type: ignore[misc, unused-ignore]
    """Vectors of a local worker that is started at the first call and supervised."""

    def __init__(self, model: str = "all-MiniLM-L6-v2", *, fingerprint: str | None = None, **options: Any) -> None:
        """Note what is to be used; nothing is started.

        Args:
            model: A model's name or folder.
            fingerprint: Of the vectors that the collection holds already: a model of another space is refused.
            options: Of the client; numbers and texts alone, because Chroma stores them as JSON.
        """
        self._embedder = Embedder(model, fingerprint, **options)

    def __call__(self, input: Documents) -> Any:
        """Embed what is stored."""
        return list(self._embedder.vectors(input, "document"))

    def embed_query(self, input: Documents) -> Any:
        """Embed questions."""
        return list(self._embedder.vectors(input, "query"))

    @staticmethod
    def name() -> str:
        """Return the name under which Chroma finds the class."""
        return _NAME

    def default_space(self) -> Any:
        """Return the distance that suits vectors of length 1."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """Return what makes an equal function; Chroma keeps it with the collection."""
        return self._embedder.config()

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> EmbedBridgeFunction:
        """Make the function that a collection was made with; it refuses a model that has changed since."""
        return EmbedBridgeFunction(config["model"], fingerprint=config.get("fingerprint"), **config.get("options", {}))

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse another vector space.

        Raises:
            OtherVectorSpaceError: The vectors that are there are of another one.
        """
        Embedder.of_config(new_config).check(old_config)


def collection(client: Any, name: str, function: EmbedBridgeFunction, **keywords: Any) -> Any:
    """Get or create a collection, and refuse one whose vectors are of another space.

    Args:
        client: Of Chroma.
        name: The collection's.
        function: What embeds for it.
        keywords: As `get_or_create_collection` takes them.

    Raises:
        OtherVectorSpaceError: The collection was made with another model, or with another state of its folder.
    """
    try:
        # Without the function: Chroma would write its configuration over the one that is to be compared.
        stored = client.get_collection(name, embedding_function=None).configuration_json or {}
    except NotFoundError:
        return client.create_collection(name, embedding_function=function, **keywords)
    function._embedder.check((stored.get("embedding_function") or {}).get("config") or {})
    return client.get_collection(name, embedding_function=function)
