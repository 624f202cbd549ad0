"""What is wanted of which repositories of the hub: what a name on the command line means."""

from __future__ import annotations

from dataclasses import dataclass

from embed_worker.errors import ModelNotFoundError
from embed_worker.model_files.known_models import find_known_model
from embed_worker.model_files.search import short_name
from embed_worker.model_files.suggestions import meant_model


class PullError(Exception):
    """The model cannot be had as asked; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is wanted of which repositories; no revision: the main branch; no graph: the usual one."""

    repository: str
    revision: str | None
    onnx_repository: str
    onnx_revision: str | None
    license: str | None
    graph: str | None
    weights: bool

    def source(self, commit: str, onnx_commit: str) -> str:
        """Return where a folder is from, for its manifest."""
        source = f"{self.repository}@{commit}"
        return source if self.is_one_repository else f"{source}, graph from {self.onnx_repository}@{onnx_commit}"

    @property
    def is_one_repository(self) -> bool:
        """Whether the graph is where the rest is."""
        return self.onnx_repository == self.repository


def wanted_of(name: str, revision: str | None, graph: str | None, weights: bool) -> tuple[Wanted, str]:
    """Return what a name means, and how the folder is called.

    Args:
        name: Of a known model, or `org/name`.
        revision: A commit, branch or tag; None for what is pinned, or else the main branch.
        graph: Its path in the repository; None for the usual one.
        weights: Whether the weights are wanted, too.

    Raises:
        PullError: It means no repository.
    """
    known = find_known_model(name)
    if known is None and "/" not in name:
        meant = meant_model(name, ())
        hint = ", which `embed-worker models` lists; name any other as `org/name`"
        raise PullError(f"{name!r} is not a known model{hint if meant is None else f'; did you mean `{meant}`?'}")
    if known is not None and ("/" not in name or name.casefold() == known.repository.casefold()):
        wanted = Wanted(
            repository=known.repository,
            revision=revision or known.revision,
            onnx_repository=known.onnx_repository or known.repository,
            onnx_revision=known.onnx_revision if known.onnx_repository is not None else revision or known.revision,
            license=known.license,
            graph=graph,
            weights=weights,
        )
        return wanted, known.name
    try:
        folder_name = short_name(name)
    except ModelNotFoundError as error:
        raise PullError(str(error)) from error
    wanted = Wanted(
        repository=name,
        revision=revision,
        onnx_repository=name,
        onnx_revision=revision,
        license=known.license if known is not None else None,
        graph=graph,
        weights=weights,
    )
    return wanted, folder_name
