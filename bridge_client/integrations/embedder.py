"""What every adapter shares: a model with its options, and the vector space that it must have.

A database keeps vectors for years, and a model's folder is replaced in a minute. So an adapter keeps the fingerprint of
the vectors that it made, beside them, and refuses to mix in those of another space.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from bridge_client.aio import AsyncEmbedClient
from bridge_client.client import EmbedClient, options_of
from bridge_client.embeddings import Embeddings, Matrix
from bridge_client.shared import shared_client

InputType = Literal["query", "document"]


class OtherVectorSpaceError(ValueError):
    """Vectors of one space were to be mixed with those of another.

    Attributes:
        stored: The fingerprint of the vectors that are there.
        found: That of the model as it is now.
    """

    def __init__(self, model: str, stored: str, found: str) -> None:
        super().__init__(
            f"the vectors that are stored have the fingerprint {stored}, and the model {model!r} has {found} now: "
            f"use the model that made them, or embed the texts again"
        )
        self.stored = stored
        self.found = found


class Embedder:
    """A model by name, its client's options, and the fingerprint that its vectors must have, once there is one."""

    def __init__(self, model: str, fingerprint: str | None = None, **options: Any) -> None:
        """Note what is to be used; nothing is started.

        Args:
            model: A model's name or folder.
            fingerprint: Of the vectors that are stored already; None where there are none.
            options: Of the client.
        """
        self.model = model
        self.options = options
        self._stored = fingerprint
        self._client_options = options_of(model, options)  # type: ignore[arg-type]

    @property
    def client(self) -> EmbedClient:
        """The client of this process; nobody here closes it."""
        return shared_client(self._client_options)

    def fingerprint(self) -> str:
        """Return the fingerprint of the vectors; it starts the worker where none has been stored."""
        if self._stored is None:
            self._stored = str(self.client.info()["fingerprint"])
        return self._stored

    def dimension(self) -> int:
        """Return the number of components of a vector."""
        return int(self.client.info()["dimension"])

    def config(self) -> dict[str, Any]:
        """Return what makes an equal embedder: JSON, with the fingerprint."""
        return {"model": self.model, "fingerprint": self.fingerprint(), "options": self.options}

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Embedder:
        """Make an embedder of what `config` returned."""
        return cls(config["model"], config.get("fingerprint"), **config.get("options", {}))

    def check(self, other: dict[str, Any]) -> None:
        """Compare with another's `config`.

        Raises:
            OtherVectorSpaceError: Its vectors are of another space.
        """
        stored = other.get("fingerprint")
        if stored is not None and stored != self.fingerprint():
            raise OtherVectorSpaceError(self.model, stored, self.fingerprint())

    def vectors(self, texts: Iterable[str], input_type: InputType) -> Matrix:
        """Embed texts: (B, D) float32; a string is one text, and not as many as it has characters.

        Raises:
            OtherVectorSpaceError: The model is not the one whose vectors are stored.
        """
        return self._checked(self.client.embed_detailed(_listed(texts), input_type=input_type))

    async def avectors(self, texts: Iterable[str], input_type: InputType) -> Matrix:
        """Do as `vectors`, awaiting."""
        client = AsyncEmbedClient(client=self.client)
        return self._checked(await client.embed_detailed(_listed(texts), input_type=input_type))

    def _checked(self, found: Embeddings) -> Matrix:
        if self._stored is None:
            self._stored = found.fingerprint
        if found.fingerprint != self._stored:
            raise OtherVectorSpaceError(self.model, self._stored, found.fingerprint)
        return found.vectors


def _listed(texts: Iterable[str]) -> list[str]:
    # Frames and arrays of texts have no truth value, and a string has characters.
    return [texts] if isinstance(texts, str) else list(texts)
