"""One job on disk: what it was asked to do, which parts are finished, and where its output goes.

`OUT.parts/` holds `.job.json` and the finished parts until the output appears. A part is a file of the vectors and,
there before it, a record of its rows: the part counts once its own file is there. When all are, `.summary.json` comes
before the output, so that after a kill between the two, or before everything is tidy, it is known whose output that is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bridge_client.bulk.parts import sync_folder, written_whole
from bridge_client.bulk.rows import CorpusError
from embed_worker import atomic

# Hidden, so that readers of a folder of parts pass over what a kill has left there.
_JOB = ".job.json"
_SUMMARY = ".summary.json"
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


class Job:
    """The folder of a job. Use it inside `locked`."""

    def __init__(self, output: Path, suffix: str) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self._suffix = suffix

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from the same job.

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
            yield

    def earlier_summary(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the summary of an output that this very job has brought about already; tidy up behind it.

        None where the output is not there, or is somebody else's.
        """
        for folder in (self.folder, self.output):
            try:
                summary = orjson.loads((folder / _SUMMARY).read_bytes())
                is_same = orjson.loads((folder / _JOB).read_bytes()) == _as_written(asked)
            except (OSError, orjson.JSONDecodeError):
                continue
            if is_same and self.output.exists():
                self._tidy() if folder == self.output else self._discard()
                return dict(summary)
        return None

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Write down what is asked for, or compare it with what was.

        Raises:
            CorpusError: The folder is another job's; the message names what is different.
        """
        file = self.folder / _JOB
        self.folder.mkdir(exist_ok=True)
        try:
            begun = orjson.loads(file.read_bytes())
        except FileNotFoundError:
            with written_whole(file) as out:
                out.write(orjson.dumps(_as_written(asked), option=orjson.OPT_INDENT_2))
            return
        except (OSError, orjson.JSONDecodeError) as error:
            raise CorpusError(f"{file} is damaged: remove {self.folder} to begin again") from error
        asked = _as_written(asked)
        if changed := [name for name in {**begun, **asked} if begun.get(name) != asked.get(name)]:
            differences = "; ".join(_difference(name, begun.get(name), asked.get(name)) for name in changed)
            raise CorpusError(
                f"{self.folder} was begun with something else: {differences}. "
                f"Repeat the earlier command, or remove the folder to begin again"
            )

    def finished(self) -> list[PartRecord]:
        """Return the records of the parts that are finished, in order."""
        records: list[PartRecord] = []
        while self.part(len(records)).exists():
            records.append(self._record(len(records)))
        return records

    def part(self, number: int) -> Path:
        """Return the file of a part's vectors."""
        return self.folder / f"part-{number:06}{self._suffix}"

    def write_record(self, number: int, record: PartRecord) -> None:
        """Write what is known of a part, before its vectors."""
        with written_whole(self._record_file(number)) as out:
            out.write(orjson.dumps(record))

    @contextmanager
    def finishing(self, summary: Mapping[str, Any]) -> Iterator[None]:
        """Let the output appear inside; afterwards nothing of the job is left."""
        with written_whole(self.folder / _SUMMARY) as out:
            out.write(orjson.dumps(summary))
        yield
        if self.folder.exists():
            self._discard()
        else:
            self._tidy()

    def move_folder(self) -> None:
        """Let the folder of parts be the output."""
        os.replace(self.folder, self.output)
        sync_folder(self.output.parent)

    def _discard(self) -> None:
        """Remove the parts; what tells the job goes last, so that a removal that is cut can be repeated."""
        for file in sorted(self.folder.iterdir(), key=lambda file: file.name in (_JOB, _SUMMARY)):
            file.unlink(missing_ok=True)
        self.folder.rmdir()

    def _tidy(self) -> None:
        for file in sorted(self.output.glob(".*.json"), key=lambda file: file.name in (_JOB, _SUMMARY)):
            file.unlink(missing_ok=True)

    def _record_file(self, number: int) -> Path:
        return self.folder / f".part-{number:06}.json"

    def _record(self, number: int) -> PartRecord:
        try:
            record = orjson.loads(self._record_file(number).read_bytes())
            errors = [RowError(**error) for error in record["errors"]]
            return PartRecord(**record | {"counts": Counts(**record["counts"]), "errors": errors})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorpusError(f"{self._record_file(number)} is damaged: remove {self.folder} to begin again") from error


def _as_written(asked: Mapping[str, Any]) -> dict[str, Any]:
    return dict(orjson.loads(orjson.dumps({"version": _VERSION, **asked})))


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "inputs" and isinstance(before, list) and isinstance(now, list):
        old, new = ({entry["path"]: entry for entry in entries} for entries in (before, now))
        changed = sorted(path for path in {**old, **new} if old.get(path) != new.get(path)) or ["their order"]
        return f"the input changed ({', '.join(changed[:3])})"
    return f"{name} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    return "not given" if value is None else orjson.dumps(value).decode()
