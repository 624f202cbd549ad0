"""The Hugging Face hub: what a repository holds at a commit, and each of its files whole and verified or not at all.

huggingface_hub knows the addresses, the tokens, the proxies and what the hub's errors mean. The bytes are received
here, because its own downloads begin a file again when the process before was interrupted.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from embed_worker import __version__

_RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)
_HASHED_BYTES = 1 << 20
_MOST_UNSTATED_BYTES = 64 << 20  # of a file whose size the server does not say: configurations are smaller
_T = TypeVar("_T")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(Exception):
    """The hub cannot give what is wanted; the message is a sentence that says what to do."""


class VerificationError(Exception):
    """A file that was received is not the file that the hub described."""


class Progress(Protocol):
    """What a transfer tells, as `tqdm` hears it."""

    def update(self, n: float) -> Any:
        """Add to the bytes that are there; negative where some of them must be received again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository at one commit: its files as POSIX paths, and its licence as the model card states it."""

    name: str
    commit: str
    files: frozenset[str]
    license: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file at a commit.

    Attributes:
        size: In bytes; None where the server does not say.
        etag: SHA-256 of a large file, git's blob hash of a small one; another form cannot be verified.
    """

    repository: str
    path: str
    url: str
    size: int | None
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """The hub, or a mirror or a test's server that speaks as it does.

    Attributes:
        endpoint: None: what `HF_ENDPOINT` says.
        retry_delays_s: The pauses after attempts that brought nothing; one that brought bytes starts the count again.
    """

    endpoint: str | None = None
    retry_delays_s: Sequence[float] = (1.0, 2.0, 4.0, 8.0)

    def repository(self, name: str, revision: str | None) -> Repository:
        """Look a repository up; `revision` is a commit, a branch or a tag, None the main branch.

        Raises:
            HubError: It is not there, or nobody answers.
        """
        import huggingface_hub
        from huggingface_hub import constants

        api = huggingface_hub.HfApi(endpoint=self.endpoint, library_name="embed-bridge", library_version=__version__)
        timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with self._explained(name, revision):
            info = self._asked(lambda: api.model_info(name, revision=revision or "main", timeout=timeout_s))
        if info.sha is None:
            raise HubError(f"the answer for {name} does not name a commit: {self._address()} is not a hub")
        if revision is not None and _COMMIT.fullmatch(revision) and info.sha != revision:
            raise HubError(f"{self._address()} answers for the commit {revision} of {name} with {info.sha}")
        files = frozenset(sibling.rfilename for sibling in info.siblings or [])
        return Repository(name=name, commit=info.sha, files=files, license=_license(info.card_data))

    def describe(self, repository: Repository, path: str) -> RemoteFile:
        """Ask for the size and the hash of a file, by a HEAD request.

        Raises:
            HubError: It is not there, may not be had, or nobody answers.
        """
        import huggingface_hub

        url = huggingface_hub.hf_hub_url(repository.name, path, revision=repository.commit, endpoint=self.endpoint)
        with self._explained(repository.name, repository.commit):
            found = self._asked(lambda: huggingface_hub.get_hf_file_metadata(url, endpoint=self.endpoint))
        return RemoteFile(repository=repository.name, path=path, url=url, size=found.size, etag=found.etag or "")

    def fetch(self, file: RemoteFile, target: Path, progress: Progress) -> None:
        """Receive a file, from where an earlier attempt ended, and put it at `target` when it is whole and verified.

        What is there of it lies beside the target under a hidden name and survives a failure.

        Raises:
            HubError: It could not be received whole.
            VerificationError: It has another hash than the hub said; nothing of it is kept.
            OSError: It cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{_plain(file.etag)}.part")
        # Whoever put a link there wants something else to be written; and nobody knows how much of a file is missing
        # whose size is not stated: a server that is asked for what is behind its end refuses, for ever.
        if part.is_symlink() or file.size is None:
            part.unlink(missing_ok=True)
        part.touch()
        progress.update(part.stat().st_size)
        if file.size is None or part.stat().st_size < file.size:
            try:
                self._receive(file, part, progress)
            except VerificationError:
                part.unlink()
                raise
        if not matches(part, file):
            received = part.stat().st_size
            part.unlink()
            progress.update(-received)
            raise VerificationError(
                f"{file.path} of {file.repository} was received with another content ({received} bytes) than the hub "
                f"describes (hash {file.etag}, {file.size} bytes); it was thrown away"
            )
        os.replace(part, target)

    def _asked(self, ask: Callable[[], _T]) -> _T:
        """Ask, and again where the server is busy; a server that cannot be reached is told at once."""
        for delay_s in self.retry_delays_s:
            try:
                return ask()
            except _transport_error() as error:
                if _status_of(error) not in _RETRIED_STATUSES:
                    raise
            time.sleep(delay_s)
        return ask()

    def _receive(self, file: RemoteFile, part: Path, progress: Progress) -> None:
        failures = 0
        with self._explained(file.repository, None):
            while True:
                before = part.stat().st_size
                try:
                    return self._receive_once(file, part, progress)
                except _transport_error() as error:
                    status = _status_of(error)
                    failures = 1 if part.stat().st_size > before else failures + 1
                    is_final = status is not None and status not in _RETRIED_STATUSES
                    if is_final or failures > len(self.retry_delays_s):
                        raise
                    time.sleep(self.retry_delays_s[failures - 1])

    def _receive_once(self, file: RemoteFile, part: Path, progress: Progress) -> None:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined, unused-ignore]

        have = part.stat().st_size
        # The client drops the token where a redirect leads to another origin.
        headers = build_hf_headers(library_name="embed-bridge", library_version=__version__)
        headers["Accept-Encoding"] = "identity"
        if have:
            headers["Range"] = f"bytes={have}-"
        timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
        session = huggingface_hub.get_session()
        with session.stream("GET", file.url, headers=headers, timeout=timeout_s, follow_redirects=True) as response:
            huggingface_hub.hf_raise_for_status(response)
            continues = have and response.status_code == 206
            if have and not continues:
                progress.update(-have)
            # Nothing is unpacked: a few bytes of a bomb would become gigabytes, and hashes are of what is stored.
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise HubError(f"{self._address()} sends {file.path} as {encoding}, which was not asked for")
            size, most = have if continues else 0, _MOST_UNSTATED_BYTES if file.size is None else file.size
            with part.open("ab" if continues else "wb") as opened:
                for chunk in response.iter_raw():
                    opened.write(chunk)
                    progress.update(len(chunk))
                    size += len(chunk)
                    if size > most:
                        raise VerificationError(_too_much(file, most))

    def _address(self) -> str:
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    @contextmanager
    def _explained(self, name: str, revision: str | None) -> Iterator[None]:
        """Turn what huggingface_hub raises into a sentence with advice."""
        from huggingface_hub import errors

        page = f"{self._address()}/{name}"
        try:
            yield
        except (HubError, VerificationError):
            raise
        except errors.OfflineModeIsEnabled as error:
            raise HubError("HF_HUB_OFFLINE is set: unset it to download") from error
        except errors.GatedRepoError as error:
            advice = "accept its terms there, then set HF_TOKEN to a token of that account"
            raise HubError(f"{page} is gated: {advice}") from error
        except errors.RepositoryNotFoundError as error:
            advice = "check the name; if it is private, set HF_TOKEN to a token that may read it"
            raise HubError(f"there is no {page}: {advice}") from error
        except errors.RevisionNotFoundError as error:
            raise HubError(f"{page} has no revision {revision!r}") from error
        except errors.EntryNotFoundError as error:
            raise HubError(f"{page} has lost a file that it lists: try again") from error
        except errors.HfHubHTTPError as error:
            raise HubError(f"{page} answers with status {error.response.status_code}: try again later") from error
        except _transport_error() as error:
            problem = f"{type(error).__name__}: {error}".rstrip(": ")
            advice = "check the network, the proxy and HF_ENDPOINT; the same command goes on from here"
            raise HubError(f"{self._address()} cannot be reached ({problem}): {advice}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # JSON of another shape, odd headers
            raise HubError(f"{page} answers with something else than a hub ({type(error).__name__})") from error


def _transport_error() -> type[Exception]:
    """Return the base of every transport error: of httpx in huggingface_hub 1, of httpx2 in 2."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast("type[Exception]", HfHubHTTPError.__bases__[0])


def _status_of(error: Exception) -> int | None:
    """Return the status that a server answered with; None where it did not answer."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _plain(etag: str) -> str:
    """Return a piece of a file's name for a hash of any form."""
    return etag[:16] if re.fullmatch(r"[0-9a-f]{16,}", etag) else hashlib.sha256(etag.encode()).hexdigest()[:16]


def _too_much(file: RemoteFile, most: int) -> str:
    return f"{file.path} of {file.repository} goes on after the {most} bytes that it may have; it was thrown away"


def matches(path: Path, file: RemoteFile) -> bool:
    """Return whether a file on disk is the one that the hub describes; one without a hash is judged by its size.

    Raises:
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return False
    match len(file.etag):
        case 64:
            digest = hashlib.sha256()
        case 40:
            digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)  # as git names its blobs
        case _:
            return True
    with path.open("rb") as opened:
        while chunk := opened.read(_HASHED_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == file.etag


def is_verifiable(file: RemoteFile) -> bool:
    """Return whether the hub gave a hash for a file; some mirrors do not."""
    return len(file.etag) in (40, 64)


def _license(card: Any) -> str | None:
    """Read the licence of a model card; one that is `other` has a name of its own."""
    stated = getattr(card, "license", None)
    if stated == "other":
        stated = getattr(card, "license_name", None) or stated
    return stated if isinstance(stated, str) else None
