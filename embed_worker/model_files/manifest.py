"""A model folder's `manifest.json`: where its files came from, and the hashes that they are verified against.

It owns the manifest's form, the verification and the memory of what was verified before. It reads no model and
imports the standard library only, because the worker needs it before anything else of a folder is believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias, assert_never

from embed_worker.atomic import written_aside
from embed_worker.config import Verify
from embed_worker.errors import ModelError
from embed_worker.machine import cache_dir
from embed_worker.model_files.damage import damage_of
from embed_worker.model_files.layout import OutsideError, check_link, inner_path, read_json

MANIFEST_NAME = "manifest.json"
FORMAT = 1
MAX_REMEMBERED_FILES = 1024

_HIDDEN = re.compile(r"(^|/)\.")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERIFIED_NAME = "verified.json"


class ManifestError(ValueError):
    """A manifest is not one, or its folder is not what it says; the message is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """What a file must be: its SHA-256 in lower-case hex and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Name, origin, licence and files of a model folder. Keys of `files` are POSIX paths relative to it, sorted."""

    name: str
    source: str
    license: str
    files: Mapping[str, FileRecord]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the manifest of a folder, or give None where it has none.

        Raises:
            ManifestError: The file cannot be read, is not a manifest, or names a path outside the folder.
        """
        try:
            document = read_json(folder / MANIFEST_NAME)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ManifestError(f"{MANIFEST_NAME} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise ManifestError(f"{MANIFEST_NAME} is {error}") from error
        return cls._of_json(document)

    @classmethod
    def _of_json(cls, document: Any) -> Self:
        match document:
            case {"format": 1, "name": str(name), "source": str(source), "license": str(licence), "files": dict(files)}:
                records = {_inner_path(path): _record(path, entry) for path, entry in sorted(files.items())}
                return cls(name=name, source=source, license=licence, files=records)
            case {"format": int(other)} if other != FORMAT:
                raise ManifestError(f"{MANIFEST_NAME} has format {other}; this version reads format {FORMAT}")
            case _:
                raise ManifestError(f"{MANIFEST_NAME} needs format {FORMAT}, name, source, license and files")

    @classmethod
    def of_folder(cls, folder: Path, *, name: str, source: str, license: str) -> Self:
        """Hash every file of a folder except its manifest, and hidden ones: git's, a file manager's, a download's.

        Raises:
            ManifestError: A file's name cannot stand in a manifest.
            OSError: A file cannot be read.
        """
        files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
        files = {path: file for path, file in files.items() if path != MANIFEST_NAME and not _HIDDEN.search(path)}
        records = {
            _inner_path(path): FileRecord(sha256=file_sha256(file), size=file.stat().st_size)
            for path, file in sorted(files.items())
        }
        return cls(name=name, source=source, license=license, files=records)

    def write(self, folder: Path) -> None:
        """Put the manifest into a folder, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        document = {
            "format": FORMAT,
            "name": self.name,
            "source": self.source,
            "license": self.license,
            "files": {
                path: {"sha256": record.sha256, "size": record.size} for path, record in sorted(self.files.items())
            },
        }
        _write_whole(folder / MANIFEST_NAME, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def verify(folder: Path, manifest: Manifest, mode: Verify, *, allow_links: bool = False) -> dict[str, str]:
    """Compare the files of a folder with its manifest; files that it does not list are no error.

    With `AUTO`, a file that was verified before and has the same size, times of its content and of its entry, and inode
    is not hashed again: hashing the default model takes 0.05 to 0.1 s, about as long as loading it.

    Returns:
        The SHA-256 of each file that is what the manifest says, by its path; empty with `NEVER`.

    Raises:
        ManifestError: A file is missing, differs in size or hash, or is a link out of the folder.
    """
    match mode:
        case Verify.NEVER:
            return {}
        case Verify.AUTO | Verify.ALWAYS:
            pass
        case _:
            assert_never(mode)
    remembered = _read_verified()
    learned: _Verified = {}
    advice = _advice(manifest)
    for path, record in manifest.files.items():
        file = folder / path
        if not allow_links:
            _check_link(file, folder)  # before its size and its hash are told to anybody
        state = _state(file, path, record, advice)
        key = os.path.abspath(file)
        if mode is Verify.AUTO and remembered.get(key) == state:
            continue
        _check_hash(file, path, record, advice)
        # A file that changed while it was read has proved nothing about what it is now.
        if _state(file, path, record, advice) == state:
            learned[key] = state
    if learned:
        _write_verified({key: state for key, state in remembered.items() if key not in learned} | learned)
    return {path: record.sha256 for path, record in manifest.files.items()}


def _advice(manifest: Manifest) -> str:
    again = "get the model again"
    return f"export the graph again, or {again}" if "exported by" in manifest.source else again


def _check_link(file: Path, folder: Path) -> None:
    try:
        check_link(file, folder)
    except ModelError as error:
        raise ManifestError(str(error)) from error


def file_sha256(file: Path) -> str:
    """Hash a file's bytes, in lower-case hex.

    Raises:
        OSError: It cannot be read.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _inner_path(path: str) -> str:
    """Pass a path by the rule of all paths of a folder, in its plain form only: it is a key."""
    try:
        plain = inner_path(path)
    except OutsideError as error:
        raise ManifestError(f"{MANIFEST_NAME} names {error}") from error
    if plain != path:
        raise ManifestError(f"{MANIFEST_NAME} names {path!a}, which is not a path inside the folder in its plain form")
    return path


def _record(path: str, entry: Any) -> FileRecord:
    match entry:
        # A bool is an int to Python, and `true` is no size.
        case {"sha256": str(sha256), "size": int(size)} if (
            _SHA256.fullmatch(sha256) and size >= 0 and not isinstance(size, bool)
        ):
            return FileRecord(sha256=sha256, size=size)
        case _:
            raise ManifestError(f"{MANIFEST_NAME} gives {path!r} no sha256 of 64 hex digits and size in bytes")


def _check_hash(file: Path, path: str, record: FileRecord, advice: str) -> None:
    try:
        actual = file_sha256(file)
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    if actual != record.sha256:
        raise ManifestError(
            f"{path} is not the file of its manifest: its SHA-256 is {actual} and not {record.sha256}: {advice}"
        )


# What was verified before ------------------------------------------------------------------------------------------

# A file's absolute path → [size, modification time in ns, its entry's in ns, inode, SHA-256]; a list, because JSON
# gives one back. Whoever changes a file can set the first time back, and not the second.
_Verified: TypeAlias = dict[str, list[int | str]]


def _state(file: Path, path: str, record: FileRecord, advice: str) -> list[int | str]:
    """Describe a file as it is now, with the hash that it should have.

    Raises:
        ManifestError: It is missing, is a pipe or a device, or has another size.
    """
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ManifestError(f"{path} is missing, and {MANIFEST_NAME} lists it: {advice}") from error
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ManifestError(f"{path} is not a regular file, and {MANIFEST_NAME} lists it: {advice}")
    if status.st_size != record.size:
        other = f"it has {status.st_size} bytes and not {record.size}: {advice}"
        damage = damage_of(file)
        raise ManifestError(f"{path} is not the file of its manifest: {other if damage is None else f'it is {damage}'}")
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, record.sha256]


def _read_verified() -> _Verified:
    """Read the cache. Whatever is wrong with it costs a few hashes, never an error."""
    if (cache := cache_dir()) is None:
        return {}
    try:
        document = json.loads((cache / _VERIFIED_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _write_verified(verified: _Verified) -> None:
    if (cache := cache_dir()) is None:
        return
    newest = dict(list(verified.items())[-MAX_REMEMBERED_FILES:])
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        _write_whole(cache / _VERIFIED_NAME, json.dumps(newest))


def _write_whole(file: Path, content: str) -> None:
    with written_aside(file) as aside:
        aside.write_bytes(content.encode())
