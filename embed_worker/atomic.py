"""Files and folders that appear whole or not at all, and locks that processes share."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_aside(file: Path) -> Iterator[Path]:
    """Yield a hidden name in the same folder to write to; if all goes well it becomes `file`, else nothing is left.

    A reader sees the old file or the new one. Two processes, or two threads of one, do not meet at the hidden name.

    Raises:
        OSError: The folder cannot be written, which is known before the work.
    """
    aside = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        aside.touch()
        yield aside
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def replace_folder(made: Path, folder: Path, old: Path) -> None:
    """Put a folder where another may be; if that fails, the other one is there as before.

    Args:
        made: The new one, on the same file system.
        folder: Its place.
        old: Where the other one is meanwhile; it is deleted. If that is in `made`, it comes along and stays.

    Raises:
        OSError: It cannot be.
    """
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(made, folder)
    except OSError:
        recover_folder(folder, old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path, old: Path) -> None:
    """Undo a replacement that ended between its two renames."""
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file until it is closed; the system unlocks it when the process ends, however that ends.

    Args:
        descriptor: Of a file that is open for writing.
        wait: Until it is free; without, False is what a lock gives that somebody else holds.
    """
    if sys.platform == "win32":
        import msvcrt

        # LK_LOCK gives up after ten seconds; a byte beyond the end may be locked.
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked_by_file(path: Path) -> Iterator[None]:
    """Hold a lock that is a file of its own; nothing is left of it afterwards, whatever happens.

    Raises:
        BlockingIOError: Somebody else holds it.
        OSError: The file cannot be made.
    """
    descriptor = _open_locked(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
        if sys.platform == "win32":  # where an open file cannot be removed, also one that somebody else is looking at
            with suppress(OSError):
                path.unlink()


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        if not lock(descriptor, wait=False):
            os.close(descriptor)
            raise BlockingIOError(f"{path} is locked")
        # The process before may have removed the file between our opening and our locking it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
