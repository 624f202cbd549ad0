"""A job's end: whenever a kill comes, no part is lost before the output is there, and nobody else's is taken for it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge_client.bulk.job import Counts, Job, PartRecord
from bridge_client.bulk.rows import CorpusError

ASKED = {"model": "this"}
SUMMARY = {"rows": 7, "failed": 0}
OLD, NEW = b"other", b"parts"  # of one size


class Killed(BaseException):
    """What ends the process in these tests."""


class Process:
    """Ends at a given change of names, before it is made; nothing that comes later, such as `finally`, changes any."""

    def __init__(self, last: int) -> None:
        self._left = last

    def __call__(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise Killed
            return change(*arguments, **keywords)

        return counted

    @property
    def is_dead(self) -> bool:
        return self._left < 0


@contextlib.contextmanager
def killed_after(changes: int) -> Iterator[Process]:
    process = Process(changes)
    with pytest.MonkeyPatch.context() as system, contextlib.suppress(Killed):
        for name in ("replace", "unlink", "rmdir"):
            system.setattr(os, name, process(getattr(os, name)))
        yield process


def begun(folder: Path) -> Job:
    """Return a job whose two parts are finished."""
    job = Job(folder / "out", ".npy")
    job.begin(ASKED)
    for number in range(2):
        job.write_record(number, PartRecord(counts=Counts(rows=1), sources=1, digest=""))
        job.part(number).write_bytes(NEW)
    return job


def finish(job: Job, *, is_folder: bool) -> None:
    job.finish(SUMMARY, None if is_folder else join)


def join(file: Path) -> None:
    file.write_bytes(NEW)


def content(output: Path) -> bytes | None:
    if output.is_dir():
        return (output / "part-000000.npy").read_bytes()
    return output.read_bytes() if output.exists() else None


def put(output: Path, data: bytes, *, is_folder: bool) -> None:
    if is_folder:
        output.mkdir()
        (output / "part-000000.npy").write_bytes(data)
        (output / "part-000007.npy").write_bytes(data)
    else:
        output.write_bytes(data)


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("has_old", [False, True])
def test_a_kill_at_any_moment_of_the_end_loses_nothing(is_folder: bool, has_old: bool, tmp_path: Path) -> None:
    kills = 0
    while True:
        place = tmp_path / str(kills)
        place.mkdir()
        if has_old:
            put(place / "out", OLD, is_folder=is_folder)
        job = begun(place)
        with killed_after(kills) as process:
            finish(job, is_folder=is_folder)
        with job.locked():
            summary, is_new = job.earlier_summary(ASKED), content(job.output) == NEW
            assert summary in (None, SUMMARY)
            if summary is None and not is_new:
                assert content(job.output) == (OLD if has_old else None)
                job.begin(ASKED)
                assert len(job.finished()) == 2
                finish(job, is_folder=is_folder)
            else:
                assert is_new
        assert content(job.output) == NEW
        parts = ["part-000000.npy", "part-000001.npy"] if is_folder else []
        assert sorted(path.name for path in place.rglob("*")) == ["out", *parts], kills
        if not process.is_dead:
            break
        kills += 1
    assert kills >= 5


def test_an_output_of_another_job_is_none_of_this_one(tmp_path: Path) -> None:
    job = begun(tmp_path)
    with killed_after(3):
        finish(job, is_folder=False)
    assert content(job.output) == NEW
    assert job.earlier_summary({"model": "another"}) is None
    other = job.output.with_name("other")
    other.write_bytes(NEW)  # as large, and somebody has put it there since
    os.replace(other, job.output)
    assert job.earlier_summary(ASKED) is None
    assert len(job.finished()) == 2


def test_what_kills_leave_half_written_is_gone_after_the_next_run(tmp_path: Path) -> None:
    job = begun(tmp_path)
    for name in (".joined", "..joined.1.2", ".part-000002.npy.1.2", ".summary.json"):
        (job.folder / name).touch()
    job.begin(ASKED)
    assert sorted(file.name for file in job.folder.glob(".*")) == [
        ".job.json",
        ".part-000000.json",
        ".part-000001.json",
    ]


def test_a_job_without_a_finished_part_makes_way_for_another(tmp_path: Path) -> None:
    """A row without a vector ends a job; its input mended, the same command begins again."""
    Job(tmp_path / "out", ".npy").begin({"inputs": [{"path": "a", "size": 1}]})
    Job(tmp_path / "out", ".npy").begin({"inputs": [{"path": "a", "size": 2}]})
    (tmp_path / "other").mkdir()
    job = begun(tmp_path / "other")
    with pytest.raises(CorpusError, match="model was"):
        job.begin({"model": "another"})
    job.begin(ASKED)


def test_a_folder_that_is_no_jobs_is_left_alone(tmp_path: Path) -> None:
    letter = tmp_path / "out.parts" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("mine")
    with pytest.raises(CorpusError, match=r"with other files than parts, such as letter\.txt"):
        Job(tmp_path / "out", ".npy").begin(ASKED)
    assert [file.name for file in letter.parent.iterdir()] == ["letter.txt"]


def test_what_the_system_refuses_at_the_end_is_a_sentence_and_keeps_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "out", OLD, is_folder=True)
    job, real = begun(tmp_path), os.replace

    def busy(source: Any, target: Any) -> None:
        if target == job.output and source == job.folder:
            raise OSError(16, "Device or resource busy")
        real(source, target)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(CorpusError, match="out cannot be written: Device or resource busy"):
        finish(job, is_folder=True)
    assert content(job.output) == OLD
    assert len(job.finished()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_path_that_is_not_utf_8_is_told_from_others(tmp_path: Path) -> None:
    one, other = ({"inputs": [{"path": os.fsdecode(name)}]} for name in (b"a\xfe", b"a\xff"))
    job = Job(tmp_path / "out", ".npy")
    job.begin(one)
    job.part(0).write_bytes(NEW)
    job.begin(one)
    with pytest.raises(CorpusError, match="the input changed"):
        job.begin(other)
