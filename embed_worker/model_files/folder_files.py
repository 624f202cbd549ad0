"""The configurations of one folder, read as JSON: without what is to be ignored, and with a sentence for each fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from embed_worker.errors import ModelError
from embed_worker.model_files import keys
from embed_worker.model_files.layout import OutsideError, check_link, inner_path, read_file, read_json


class UndecidedError(ModelError):
    """Something is missing that the folder should have or an option could say.

    Attributes:
        problem: What, and the way out; it completes a sentence that begins with the folder.
    """

    def __init__(self, folder: str, problem: str) -> None:
        super().__init__(f"the model folder {folder!a} {problem}")
        self.problem = problem


class FolderFiles:
    """Reads files of a folder; `warnings` grows with what is told of them, `ignored` with keys that are left out."""

    def __init__(self, folder: Path, *, ignore: tuple[str, ...] = (), allow_links: bool = False) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        self.ignored: dict[str, str] = {}
        self._ignore = ignore
        self._allow_links = allow_links

    def error(self, problem: str) -> ModelError:
        """Make the error of this folder; the problem completes its sentence."""
        return ModelError(f"the model folder {self.folder.name!a} {problem}")

    def undecided(self, *problems: str) -> UndecidedError:
        """Make the error of what is missing in this folder, all of it at once."""
        return UndecidedError(self.folder.name, "; it also ".join(problems))

    def path(self, path: str, source: str) -> Path:
        """Return the place of a file that the folder or an option names.

        Raises:
            ModelError: It would lie outside, by its name or as a link.
        """
        try:
            file = self.folder / inner_path(path)
        except OutsideError as error:
            raise self.error(f"has a path in {source} that leaves the folder: {error}") from error
        self.check(file)
        return file

    def check(self, file: Path) -> None:
        """Pass a file that is no link out of the folder, or any where links are allowed."""
        if not self._allow_links:
            check_link(file, self.folder)

    def read_json(self, path: str, default: Any) -> Any:
        """Read a file; return the default where there is none.

        Raises:
            ModelError: It cannot be read, or is no JSON.
        """
        file = self.folder / path
        try:
            self.check(file)
            return read_json(file)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return default
        except OSError as error:
            raise self.error(f"has a {path} that cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise self.error(f"has a {path} that is {error}") from error

    def read_object(self, path: str, kind: str | None = None) -> dict[str, Any]:
        """Read a JSON object; empty where there is no such file.

        Args:
            path: Relative to the folder.
            kind: Whose keys they are (`keys.KEYS`); None for a file that is not of sentence-transformers.

        Raises:
            ModelError: Not an object, or it has a key that is refused.
        """
        value = self.read_json(path, {})
        if not isinstance(value, dict):
            raise self.error(f"has a {path} that is not a JSON object")
        for key in self._ignore:
            if key in value:
                self.ignored.setdefault(key, path)
        value = {key: item for key, item in value.items() if key not in self._ignore}
        if kind is not None:
            self.check_keys(path, kind, value)
        return value

    def check_keys(self, path: str, kind: str, config: Mapping[str, Any]) -> None:
        """Tell the keys that nobody reads, and refuse those that would change vectors."""
        if names := keys.refused(kind, config):
            raise self.error(f"asks for {', '.join(names)} ({path}), which is not followed: {ignore_hint(names[0])}")
        if names := keys.unread(kind, config):
            self.warnings.append(
                f"{path} has what sentence-transformers does not read either: {', '.join(map(ascii, names))}"
            )

    def read_text(self, path: str) -> str | None:
        """Read a text; None where there is none.

        Raises:
            ModelError: It cannot be read, or is no UTF-8.
        """
        file = self.folder / path
        if not file.is_file():
            return None
        self.check(file)
        try:
            return read_file(file).decode()
        except OSError as error:
            raise self.error(f"has a {path} that cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise self.error(f"has a {path} that is not text") from error

    def positive(self, value: object, source: str) -> int:
        """Return a positive integer.

        Raises:
            ModelError: It is none.
        """
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"has a number that is not a positive integer ({source})")
        return value

    def truth(self, config: Mapping[str, Any], key: str, source: str, *, default: bool = False) -> bool:
        """Return a boolean; older folders have 0 and 1, and null is false where it is written.

        Raises:
            ModelError: It is something else.
        """
        value = config.get(key, default)
        if value not in (None, True, False, 0, 1) or isinstance(value, float):
            raise self.error(f"has a {key} that is neither true nor false ({source})")
        return bool(value)

    def check_ignored(self) -> None:
        """Refuse a key that was to be ignored and is nowhere.

        Raises:
            ModelError: There is one.
        """
        for key in self._ignore:
            if key not in self.ignored:
                raise self.error(f"has no key {key!a} that --ignore-config could leave out")


def ignore_hint(key: str) -> str:
    """Return the advice to leave a key out."""
    return f"--ignore-config {key} serves the model without it"


def config_of(module_path: str) -> str:
    """Return the name of a module's configuration; the path may be empty."""
    return (PurePosixPath(module_path) / "config.json").as_posix()
