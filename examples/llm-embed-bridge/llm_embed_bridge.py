"""A plugin of `llm`: every model in a models folder, over one supervised worker for each process and model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
import llm

from bridge_client.integrations.embedder import Embedder, OtherVectorSpaceError
from embed_worker.config import stated_models_dirs
from embed_worker.model_files.search import models_folders, names_in

PREFIX = "embed-bridge/"


@llm.hookimpl  # type: ignore[untyped-decorator, unused-ignore]
def register_embedding_models(register: Callable[..., None]) -> None:
    """List what is there; nothing is started."""
    for name in model_names():
        register(EmbedBridgeModel(name))


def model_names() -> list[str]:
    """Return the names that the worker finds, as `embed-worker models` lists them."""
    return names_in(models_folders(stated_models_dirs([])))


class EmbedBridgeModel(llm.EmbeddingModel):  # type: ignore[misc, unused-ignore]
    """One model by name."""

    def __init__(self, name: str) -> None:
        self.model_id = PREFIX + name
        self._name = name

    def embed_batch(self, items: Iterable[Any]) -> Iterator[list[float]]:
        """Embed texts, unless the model's folder holds another model than when vectors were first made."""
        noted = Fingerprints()
        embedder = Embedder(self._name, noted.of(self._name))
        try:
            vectors = embedder.vectors(list(items), "document")
        except OtherVectorSpaceError as error:
            raise click.ClickException(f"{error}; then take {self._name!r} out of {noted.path}") from error
        noted.note(self._name, embedder.fingerprint())
        yield from vectors.tolist()


class Fingerprints:
    """Which vector space each model has had so far, in llm's own folder: its collections keep a model's id alone."""

    def __init__(self) -> None:
        self.path = llm.user_dir() / "embed-bridge.json"
        try:
            self._noted: dict[str, str] = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            self._noted = {}

    def of(self, model: str) -> str | None:
        """Return a model's fingerprint, if there is one."""
        return self._noted.get(model)

    def note(self, model: str, fingerprint: str) -> None:
        """Keep a model's fingerprint from now on."""
        if self._noted.get(model) == fingerprint:
            return
        self._noted[model] = fingerprint
        written = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        written.write_text(json.dumps(self._noted, indent=1), "utf-8")
        os.replace(written, self.path)
