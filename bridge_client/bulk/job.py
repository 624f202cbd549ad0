"""One job on disk: what it was asked to do, which parts are finished, and how its output appears.

`OUT.parts/` holds `.job.json` and the finished parts until the output appears. A part is a file of the vectors and,
there before it, a record of its rows: the part counts once its own file is there. When all are, `.summary.json` says
which file becomes the output, and then that file is renamed. So after a kill, wherever it comes, it is known whether
what stands at OUT is this job's or somebody else's. What a kill leaves half written lies in `OUT.parts/`, too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bridge_client.bulk.parts import sync_folder, told, written_whole
from bridge_client.bulk.rows import CorpusError
from embed_worker import atomic

# Hidden, so that readers of a folder of parts pass over what a kill has left there.
_JOB = ".job.json"
_SUMMARY = ".summary.json"
_JOINED = ".joined"
_REPLACED = ".replaced"
_PART = "part-"
OURS = (_PART, f".{_PART}", _JOB, _SUMMARY, _REPLACED)  # how the names in an output of parts begin
_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """A row without a vector: its number from 0, a code of the protocol or of this command, and why."""

    row: int
    code: str
    message: str


@dataclass(slots=True, kw_only=True)
class Counts:
    """What the rows of a part, or of all, came to. `unique` counts the texts of each part once."""

    rows: int = 0
    unique: int = 0
    null: int = 0
    failed: int = 0
    truncated: int = 0
    tokens: int = 0

    def add(self, other: Counts) -> None:
        """Add another part's."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(slots=True, kw_only=True)
class PartRecord:
    """What is known of a finished part beside its vectors.

    Attributes:
        counts: Of its rows.
        sources: How many rows of the corpus it was made of: as many, but for chunks.
        digest: A hash over their texts.
        errors: Its rows without a vector, but for nulls.
    """

    counts: Counts
    sources: int
    digest: str
    errors: list[RowError] = field(default_factory=list)


def parts_folder(output: Path) -> Path:
    """Return where the parts of an output are kept."""
    return output.with_name(f"{output.name}.parts")


class Job:
    """The folder of a job. Use it inside `locked`."""

    def __init__(self, output: Path, suffix: str) -> None:
        self.output = output
        self.folder = parts_folder(output)
        self._suffix = suffix

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from the same job; an output that a kill left half replaced is put back.

        Raises:
            CorpusError: One is at work on it, or the folder cannot be made.
        """
        # Beside the folder and not in it: Windows does not rename a folder with an open file.
        beside = self.output.with_name(f".{self.output.name}.lock")
        with ExitStack() as held:
            try:
                self.output.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(atomic.locked_by_file(beside))
            except BlockingIOError:
                raise CorpusError(f"another command is at work on {self.output}") from None
            except OSError as error:
                raise CorpusError(f"{beside} cannot be made: {error.strerror}") from error
            with told(f"{self.output} cannot be put back from {self.folder}"):
                atomic.recover_folder(self.output, self.folder / _REPLACED)
            with suppress(OSError):
                self.folder.rmdir()  # where a kill came when nothing else was left to remove
            yield

    def earlier_summary(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the summary of an output that this very job has brought about already; tidy up behind it.

        None where the output is not there, or is somebody else's.

        Raises:
            CorpusError: What is left of the job cannot be removed.
        """
        if (summary := self._summary_in(self.folder, asked)) is not None:
            self._discard()
        elif (summary := self._summary_in(self.output, asked)) is not None:
            self._tidy()
        return summary

    def _summary_in(self, folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            ended = json.loads((folder / _SUMMARY).read_bytes())
            # A folder of parts that has become the output has brought its summary along.
            is_there = folder == self.output or ended["file"] == _identity(self.output)
            return dict(ended["summary"]) if is_there and ended["job"] == _as_written(asked) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Write down what is asked for, or compare it with what was; remove what a kill has left half written.

        Raises:
            CorpusError: The folder has another job's parts, or is no job's; the message names what is different.
        """
        asked, file = _as_written(asked), self.folder / _JOB
        with told(f"{self.folder} cannot be written"):
            self.folder.mkdir(exist_ok=True)
            if not file.exists():
                self._refuse_strangers()
            if not any(self.folder.glob(f"{_PART}*")):  # nothing is finished, so nothing of another job is lost
                with written_whole(file) as out:
                    out.write(json.dumps(asked, indent=2).encode())
        try:
            begun = dict(json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise CorpusError(f"{file} is damaged: remove {self.folder} to begin again") from error
        if changed := [name for name in {**begun, **asked} if begun.get(name) != asked.get(name)]:
            differences = "; ".join(_difference(name, begun.get(name), asked.get(name)) for name in changed)
            raise CorpusError(
                f"{self.folder} was begun with something else: {differences}. "
                f"Repeat the earlier command, or remove the folder to begin again"
            )
        with told(f"{self.folder} cannot be written"):
            for left in self.folder.glob(".*"):
                if left.suffix != ".json" or left.name == _SUMMARY:
                    left.unlink(missing_ok=True)

    def _refuse_strangers(self) -> None:
        """Refuse a folder that no job has begun: the files there would be removed in the end."""
        for file in self.folder.iterdir():
            if not file.name.startswith((f".{_JOB}.", _SUMMARY)):  # a kill came before all else, or after it
                raise CorpusError(f"{self.folder} is there already, with other files than parts, such as {file.name}")

    def finished(self) -> list[PartRecord]:
        """Return the records of the parts that are finished, in order."""
        records: list[PartRecord] = []
        while self.part(len(records)).exists():
            records.append(self._record(len(records)))
        return records

    def part(self, number: int) -> Path:
        """Return the file of a part's vectors."""
        return self.folder / f"{_PART}{number:06}{self._suffix}"

    def write_record(self, number: int, record: PartRecord) -> None:
        """Write what is known of a part, before its vectors."""
        with written_whole(self._record_file(number)) as out:
            out.write(orjson.dumps(record))

    def finish(self, summary: Mapping[str, Any], join: Callable[[Path], None] | None) -> None:
        """Let the output appear, whole; afterwards nothing of the job is left.

        Args:
            summary: What a repetition of the command reports, if it finds the output there.
            join: Writes all parts as one file; None where the folder of parts is the output.

        Raises:
            CorpusError: It cannot appear: the parts stay, and so does what was there before.
        """
        joined = self.folder / _JOINED
        with told(f"{self.output} cannot be written"):
            if join is not None:
                join(joined)
            ended = {
                "job": json.loads((self.folder / _JOB).read_bytes()),
                "file": None if join is None else _identity(joined),
                "summary": summary,
            }
            with written_whole(self.folder / _SUMMARY) as out:
                out.write(json.dumps(ended).encode())
            if join is None:
                atomic.replace_folder(self.folder, self.output, self.folder / _REPLACED)
            else:
                os.replace(joined, self.output)
            sync_folder(self.output.parent)
        self._tidy() if join is None else self._discard()

    def _discard(self) -> None:
        """Remove the parts. From the last one on, so that after a kill those that stay are the first ones, whole."""
        with told(f"{self.output} is written, but {self.folder} cannot be removed"):
            for file in sorted(self.folder.iterdir(), key=_removal, reverse=True):
                file.unlink(missing_ok=True)
            self.folder.rmdir()

    def _tidy(self) -> None:
        """Remove what is beside the parts in an output of parts."""
        with told(f"{self.output} is written, but what was needed for it cannot be removed"):
            if (replaced := self.output / _REPLACED).exists():
                shutil.rmtree(replaced)
            for file in sorted(self.output.glob(".*.json"), key=_removal, reverse=True):
                file.unlink(missing_ok=True)

    def _record_file(self, number: int) -> Path:
        return self.folder / f".{_PART}{number:06}.json"

    def _record(self, number: int) -> PartRecord:
        try:
            record = orjson.loads(self._record_file(number).read_bytes())
            errors = [RowError(**error) for error in record["errors"]]
            return PartRecord(**record | {"counts": Counts(**record["counts"]), "errors": errors})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorpusError(f"{self._record_file(number)} is damaged: remove {self.folder} to begin again") from error


def _identity(file: Path) -> list[int]:
    """Return what stays the same when a file is renamed, and is another's in no other file."""
    facts = file.stat()
    return [facts.st_ino, facts.st_size, facts.st_mtime_ns]


def _removal(file: Path) -> tuple[bool, bool, str]:
    """Sort what is removed last to the front: the summary, for it tells whose all is, the job, records, vectors."""
    return file.name != _SUMMARY, file.name != _JOB, file.name


def _as_written(asked: Mapping[str, Any]) -> dict[str, Any]:
    # Not with orjson: a path that is not UTF-8 has characters that it refuses.
    return dict(json.loads(json.dumps({"version": _VERSION, **asked})))


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "inputs" and isinstance(before, list) and isinstance(now, list):
        old, new = ({entry["path"]: entry for entry in entries} for entries in (before, now))
        changed = sorted(path for path in {**old, **new} if old.get(path) != new.get(path)) or ["their order"]
        return f"the input changed ({', '.join(changed[:3])})"
    return f"{name} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
