"""A folder that appears whole or not at all: made beside its place under a hidden name, by one process at a time.

What was made so far survives a failure, so that the next attempt can go on from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from embed_worker.atomic import locked_by_file, recover_folder, replace_folder


class BusyError(Exception):
    """Another process is making the same folder."""


@dataclass(frozen=True, slots=True)
class Staging:
    """The hidden folder beside `folder`, claimed by this process: `files` becomes `folder` in the end."""

    folder: Path
    hidden: Path

    @property
    def files(self) -> Path:
        """What has been made so far."""
        return self.hidden / "files"

    @property
    def _old(self) -> Path:
        return self.hidden / "old"

    def take_over(self, path: str) -> None:
        """Have a file of the folder that is to be replaced, without a copy where the file system can."""
        target = self.files / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(self.folder / path, target, follow_symlinks=False)
        except (OSError, NotImplementedError):
            shutil.copyfile(self.folder / path, target, follow_symlinks=False)

    def others(self, ours: Collection[str]) -> list[str]:
        """Return the files of the folder that are not among `ours`, links as they are, as POSIX paths."""
        found = (Path(parent, name) for parent, _, names in os.walk(self.folder) for name in names)
        links = (Path(parent, name) for parent, names, _ in os.walk(self.folder) for name in names)
        paths = [*found, *(path for path in links if path.is_symlink())]
        return [path for path in (each.relative_to(self.folder).as_posix() for each in paths) if path not in ours]

    def keep_only(self, paths: Iterable[str]) -> None:
        """Remove every other file, what earlier attempts left included."""
        kept = {self.files / path for path in paths}
        for file in list(self.files.rglob("*")):
            if not file.is_dir() and file not in kept:
                file.unlink()
        _remove_empty_folders(self.files)

    def put_in_place(self) -> None:
        """Make `files` the folder; one that was there is replaced.

        Raises:
            OSError: It cannot be; then the folder is as it was.
        """
        replace_folder(self.files, self.folder, self._old)

    def recover(self) -> None:
        """Undo a replacement that was interrupted between its two renames."""
        recover_folder(self.folder, self._old)


@contextmanager
def staging(folder: Path) -> Iterator[Staging]:
    """Claim the making of a folder; nothing empty is left behind.

    Raises:
        BusyError: Another process has claimed it.
        OSError: Its parent cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = folder.parent / f".{folder.name}.pull"
    with ExitStack() as claim:
        try:
            claim.enter_context(locked_by_file(folder.parent / f".{folder.name}.pull.lock"))
        except BlockingIOError as error:
            raise BusyError(str(error)) from error
        claimed = Staging(folder, hidden)
        _remove_links(hidden)
        claimed.recover()
        try:
            yield claimed
        finally:
            _remove_empty_folders(hidden)


def _remove_links(hidden: Path) -> None:
    """Remove links from what an earlier attempt left: a pull makes none, and would write through them."""
    if hidden.is_symlink():
        hidden.unlink()
    for parent, folders, names in os.walk(hidden):
        for name in (*folders, *names):
            if (path := Path(parent, name)).is_symlink():
                path.unlink()


def _remove_empty_folders(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(path)
