"""Where models are looked for, and what they are called: names, paths, and the cache of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from embed_worker.errors import ModelNotFoundError
from embed_worker.machine import data_dir
from embed_worker.model_files.suggestions import advice

# The cache of the Hugging Face hub keeps a repository at `models--ORG--NAME/snapshots/COMMIT`.
_HUB_PREFIX, _HUB_SNAPSHOTS = "models--", "snapshots"

_SIGNS = ("config.json", "modules.json", "tokenizer.json", "manifest.json", "model.safetensors", "model.onnx", "onnx")

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def models_folders(configured: Sequence[Path]) -> list[Path]:
    """Return where names are looked for: the configured folders, the user's data folder, the packaged models."""
    package = Path(__file__).parents[1]
    users = user_models_folder()
    # The wheel carries models/ inside the package; in a checkout it lies beside it.
    return [*configured, *([] if users is None else [users]), package / "models", package.parent / "models"]


def user_models_folder() -> Path | None:
    """Return the folder of downloaded models in the user's data folder; None without a home."""
    data = data_dir()
    return None if data is None else data / "models"


def model_name(folder: Path) -> str:
    """Return the name by which requests call a folder's model: its own, or in a hub's cache that of the repository."""
    snapshots = folder.parent
    repository = snapshots.parent if snapshots.name == _HUB_SNAPSHOTS else folder
    if repository.name.startswith(_HUB_PREFIX):
        return repository.name.removeprefix(_HUB_PREFIX).rpartition("--")[2]
    return folder.name


def as_listed(folder: Path) -> Path:
    """Return a folder by its absolute path and its own name: where case does not count, `BERT` opens `bert`, too.

    A link's own name is kept: it is the one that people chose. Windows leaves out dots and blanks at the end.
    """
    try:
        absolute = Path(os.path.abspath(folder))
    except FileNotFoundError:  # the working directory is deleted: nothing is beside it
        return folder
    if not absolute.name:
        return absolute  # the root has no name
    try:
        names = os.listdir(absolute.parent)
        if absolute.name in names:
            return absolute
        wanted = os.lstat(absolute)
        return next(
            (found for name in names if os.path.samestat(os.lstat(found := absolute.with_name(name)), wanted)), absolute
        )
    except OSError:
        return absolute  # not there, or not to be looked into: whoever opens it says so


def _snapshot(folder: Path) -> Path:
    """Find the commit that a repository of a hub's cache stands at; any other folder is itself."""
    if not folder.name.startswith(_HUB_PREFIX) or not (folder / _HUB_SNAPSHOTS).is_dir():
        return folder
    with contextlib.suppress(OSError, ValueError):
        commit = (folder / "refs" / "main").read_text("ascii").strip()
        if re.fullmatch(r"[0-9a-f]{1,64}", commit) and (folder / _HUB_SNAPSHOTS / commit).is_dir():
            return folder / _HUB_SNAPSHOTS / commit
    commits = [path for path in (folder / _HUB_SNAPSHOTS).iterdir() if path.is_dir()]
    if len(commits) != 1:
        raise ModelNotFoundError(
            f"{folder.name!r} has {len(commits)} snapshots and none is its `main`: name one of them"
        )
    return commits[0]


def short_name(name: str) -> str:
    """Reduce `org/name` to the name that a folder has.

    Raises:
        ModelNotFoundError: Not the form of a name; a path, for instance.
    """
    organisation, slash, last = name.rpartition("/")
    if not _MODEL_NAME.fullmatch(last) or (slash and not _MODEL_NAME.fullmatch(organisation)):
        raise ModelNotFoundError(f"{name[:80]!a} is not a model's name, such as `org/name` or `name`")
    return last


def find_by_name(name: str, folders: Sequence[Path]) -> Path:
    """Find the folder of a model.

    Raises:
        ModelNotFoundError: In none of the folders.
    """
    return _find_by_name(name, folders, "no model")


def _find_by_name(name: str, folders: Sequence[Path], nothing: str) -> Path:
    try:
        wanted = short_name(name)
    except ModelNotFoundError as error:
        plain, tag, _ = name.partition(":")  # as Ollama has them: `all-minilm:latest`
        if not tag or not _MODEL_NAME.fullmatch(plain):
            raise
        raise ModelNotFoundError(f"{error}{advice(name, names_in(folders))}") from None
    for folder in folders:
        if os.path.isdir(folder / wanted):  # False too where the folder may not be looked into
            return as_listed(folder / wanted)
        for repository in sorted(folder.glob(f"{_HUB_PREFIX}*--{wanted}")):
            return _snapshot(repository)
    raise ModelNotFoundError(f"{nothing} {wanted!r} in any models folder{advice(name, names_in(folders))}")


def folders_of_models(folders: Sequence[Path]) -> list[Path]:
    """Return every folder that a name finds in some models folders, in their order, sorted; the first of each name."""
    found: dict[str, Path] = {}
    for folder in folders:
        with contextlib.suppress(OSError):  # not there, or not to be looked into
            for path in sorted(folder.iterdir()):
                name = model_name(path)
                if _MODEL_NAME.fullmatch(name) and looks_like_a_model(path):
                    found.setdefault(name, path)
    return list(found.values())


def looks_like_a_model(folder: Path) -> bool:
    """Whether a folder has any of the files that only models have, or is a repository in the hub's cache."""
    if folder.name.startswith(_HUB_PREFIX):
        return (folder / _HUB_SNAPSHOTS).is_dir()
    return any((folder / name).exists() for name in _SIGNS)


def names_in(folders: Sequence[Path]) -> list[str]:
    """Return the names by which the models in some models folders are found."""
    return [model_name(folder) for folder in folders_of_models(folders)]


def find_model(name_or_path: str, folders: Sequence[Path]) -> Path:
    """Find the folder that `--model` means: a path, or a name in one of the folders.

    Raises:
        ModelNotFoundError: Neither an existing folder nor a known name.
    """
    if not name_or_path:  # a variable that is not set; as a path it would be the working directory
        raise ModelNotFoundError("the name of the model is empty")
    path = Path(os.path.expanduser(name_or_path))
    try:
        if path.is_dir():
            return _snapshot(as_listed(path))
        is_file = path.exists()
    except OSError as error:  # too long, or not to be looked at
        raise ModelNotFoundError(f"there is no folder {name_or_path[:200]!r}: {error.strerror}") from error
    if is_file:
        raise ModelNotFoundError(f"{name_or_path!r} is a file: --model takes the folder that holds the model")
    if path.anchor or name_or_path.startswith((".", "~")):  # on Windows a path of the current drive is not absolute
        raise ModelNotFoundError(f"there is no folder {name_or_path!r}")
    return _find_by_name(name_or_path, folders, "no such folder, and no model")
