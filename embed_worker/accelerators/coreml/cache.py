"""What is made once for a machine and kept: compiled models, dedicated graphs, and the verdicts of their proofs.

An *entry* is a folder that some process fills under a lock, and marks as complete when what is in it has really run.
onnxruntime takes any folder that exists for a finished one, so an entry without the mark is rubbish.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from embed_worker.atomic import lock, written_aside

_log = logging.getLogger(__name__)

_MARK = ".complete"


class ProofState(StrEnum):
    """How far the proof of a bucket has come."""

    UNTRIED = "untried"
    PROVING = "proving"
    PROVED = "proved"
    SLOWER = "slower"  # right, but the CPU is as fast
    REFUSED = "refused"


@dataclass(slots=True, kw_only=True)
class ProofVerdict:
    """What a proof found, in the order in which it finds it; None is what it has not come to.

    Attributes:
        reason: Why the state is what it is, in a sentence.
        cache_hit: Whether the compiled model was there already.
        build_ms: What compiling took when it was done.
        partitions, coreml_nodes, nodes: Subgraphs and nodes that CoreML runs, and the nodes of the whole graph.
        cosine: The smallest one to the CPU's vectors.
        coreml_ms, cpu_ms: Medians of a full batch.
    """

    state: ProofState = ProofState.UNTRIED
    reason: str = "no batch of this shape has come yet"
    cache_hit: bool | None = None
    build_ms: float | None = None
    partitions: int | None = None
    coreml_nodes: int | None = None
    nodes: int | None = None
    cosine: float | None = None
    coreml_ms: float | None = None
    cpu_ms: float | None = None

    @property
    def speed_ratio(self) -> float | None:
        """CoreML's time over the CPU's: below 1, CoreML is faster."""
        return self.coreml_ms / self.cpu_ms if self.coreml_ms is not None and self.cpu_ms else None


@dataclass(frozen=True, slots=True)
class Entry:
    """One folder of the cache. Its lock and its verdict lie beside it, and so outlive it."""

    folder: Path

    @property
    def is_complete(self) -> bool:
        """Whether what is in it has run."""
        return (self.folder / _MARK).exists()

    def mark_complete(self) -> None:
        """Tell every process that it may be used; also, that it was used now.

        Raises:
            OSError: The mark cannot be written.
        """
        (self.folder / _MARK).touch()

    def remove(self) -> None:
        """Delete the folder, its mark first."""
        with contextlib.suppress(OSError):
            (self.folder / _MARK).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Remove it, unless somebody is filling it just now."""
        try:
            with self.locked(wait=False) as is_ours:
                if is_ours:
                    _log.info("removed from the cache entry=%s", self.folder.name)
                    self.remove()
        except OSError as error:
            _log.warning("an entry of the cache stays entry=%s reason=%s", self.folder.name, error.strerror)

    @contextlib.contextmanager
    def locked(self, *, wait: bool) -> Iterator[bool]:
        """Hold the entry's lock, across processes; the system releases it when a process dies.

        Args:
            wait: Until it is free; without, False is what a lock gives that somebody else holds.

        Raises:
            OSError: There is no place for the lock.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self._beside("lock").open("a+b") as file:
            yield lock(file.fileno(), wait=wait)

    def verdict(self) -> ProofVerdict | None:
        """Read what a proof found, perhaps of another process; None where there is none that can be read."""
        try:
            document = json.loads(self._beside("json").read_bytes())
            return ProofVerdict(**{**document, "state": ProofState(document["state"])})
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def remember(self, verdict: ProofVerdict) -> None:
        """Keep what a proof found, whole or not at all; a verdict that is lost costs one more proof."""
        file = self._beside("json")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(file) as aside:
                aside.write_text(json.dumps(asdict(verdict)), "utf-8")
        except OSError as error:
            _log.warning("a verdict could not be kept reason=%s", error.strerror)

    def _beside(self, suffix: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{suffix}")


def sweep(root: Path, max_bytes: int, in_use: Collection[Path] = ()) -> None:
    """Remove entries that nobody finished, then those that were not used for longest, until the rest is small enough.

    What another process is filling is left alone: it holds the lock.

    Args:
        root: Its folders are the entries.
        max_bytes: Of all entries together.
        in_use: Folders that stay in any case.
    """
    entries = [Entry(path) for path in _folders(root) if path not in in_use]
    for entry in entries:
        if not entry.is_complete:
            entry.discard()
    complete = sorted((entry for entry in entries if entry.is_complete), key=_used_s)
    sizes = {path: _bytes_of(path) for path in _folders(root)}
    for entry in complete:
        if sum(sizes.values()) <= max_bytes:
            return
        entry.discard()
        sizes.pop(entry.folder, None)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return []


def _used_s(entry: Entry) -> float:
    try:
        return (entry.folder / _MARK).stat().st_mtime
    except OSError:
        return 0.0


def _bytes_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # somebody may be removing it
            total += path.lstat().st_size
    return total
