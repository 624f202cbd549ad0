"""Where a job writes: nothing that it reads, and nothing that nobody asked to replace, is written over."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bridge_client.bulk.corpus import find_sources
from bridge_client.bulk.parts import JsonlParts
from bridge_client.bulk.places import check_places, place_of, refuse_changed
from bridge_client.bulk.rows import CorpusError
from embed_worker.__main__ import run_tool
from tests.worker.harness import ROOT

MODEL = str(ROOT / "tests" / "models" / "bert-mean")
needs_links = pytest.mark.skipif(os.name == "nt", reason="Windows asks for a privilege to make links")


def embed(*arguments: str | Path) -> int:
    return run_tool("embed", [*map(str, arguments), "--model", MODEL, "--quiet", "--part-rows", "2"])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: a corpus, and a folder `deep` with another."""
    monkeypatch.chdir(tmp_path)
    for name in ("x.jsonl", "deep/part-1.jsonl", "x.npy.parts/part-1.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('{"text": "rain"}\n')
    return tmp_path


def check(source: str, output: str, errors: str | None = None) -> None:
    place = place_of(Path(output), None)
    check_places(place, find_sources([source], None), None if errors is None else Path(errors))


@pytest.mark.parametrize(
    ("source", "output", "errors", "message"),
    [
        ("x.jsonl", "x.jsonl", None, "x.jsonl is an input, too"),
        ("deep/../x.jsonl", "x.jsonl", None, "x.jsonl is an input, too"),
        ("x.jsonl", "deep/../x.jsonl", None, "x.jsonl is an input, too"),
        ("deep", "deep", None, "deep has inputs in it, such as"),
        ("deep/part-1.jsonl", "deep", None, "deep has inputs in it, such as"),
        ("x.npy.parts", "x.npy", None, r"x\.npy\.parts has inputs in it"),
        ("x.jsonl", "o.npy", "deep/../x.jsonl", "x.jsonl is an input, too"),
        ("x.jsonl", "o.jsonl", "deep/../o.jsonl", "o.jsonl is the output, too"),
        ("x.jsonl", "deep", "deep/errors.jsonl", "errors.jsonl is in .*deep, which is replaced"),
        ("x.jsonl", "o.npy", "deep", "deep is a folder"),
        ("x.jsonl", "-", None, "an output appears whole, which standard output cannot"),
        ("x.jsonl", "o.npy", "-", "for standard error, name /dev/stderr"),
        ("x.jsonl", "o.npy", "o.npy.parts", "is the output, too"),
        ("x.jsonl", "x.npy", "x.npy.parts/errors.jsonl", r"is in .*x\.npy\.parts, which is replaced"),
        ("deep", "x.jsonl/o.npy", None, None),  # what the system says of it is told when the lock is made
        ("deep", "x", None, None),
        ("x.jsonl", "file", None, "file is there already and is no folder"),
        ("x.jsonl", "file.npy", None, r"file\.npy\.parts is not a folder of its own"),
        ("x.jsonl", os.sep, None, "is no place for an output"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_would_destroy_something_is_refused(
    source: str, output: str, errors: str | None, message: str | None
) -> None:
    Path("file").touch()
    Path("file.npy.parts").touch()
    if message is None:
        check(source, output, errors)
        return
    with pytest.raises(CorpusError, match=message):
        check(source, output, errors)


@needs_links
@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_link_means_what_it_leads_to(link: object, here: Path) -> None:
    assert callable(link)
    link(here / "x.jsonl", here / "z.jsonl")
    for source, output in (("z.jsonl", "x.jsonl"), ("x.jsonl", "z.jsonl")):
        with pytest.raises(CorpusError, match="is an input, too"):
            check(source, output)
        with pytest.raises(CorpusError, match="is an input, too"):
            check(source, "o.npy", output)


@needs_links
def test_a_linked_output_is_written_where_it_leads(here: Path) -> None:
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    (here / "link.npy").symlink_to("real/o.npy")
    assert embed("x.jsonl", "-o", "link") == 0
    assert [file.name for file in (here / "real").iterdir()] == ["part-000000.parquet"]
    assert embed("x.jsonl", "-o", "link.npy") == 0
    assert (here / "real" / "o.npy").is_file()
    assert (here / "link").is_symlink()
    assert (here / "link.npy").is_symlink()
    (here / "o.npy.parts").symlink_to("deep")
    with pytest.raises(CorpusError, match=r"o\.npy\.parts is not a folder of its own"):
        check("x.jsonl", "o.npy")


@pytest.mark.usefixtures("here")
def test_a_mount_point_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "out")
    with pytest.raises(CorpusError, match="out is a mount point, which cannot be replaced"):
        check("x.jsonl", "out")


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither, and keeps a folder that somebody is in")
def test_what_is_no_file_and_what_is_gone_is_a_sentence(here: Path) -> None:
    os.mkfifo("pipe.npy")
    with pytest.raises(CorpusError, match="is a pipe or a device"):
        check("x.jsonl", "pipe.npy")
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    with pytest.raises(CorpusError, match="the working directory is not there any more"):
        place_of(Path("o.npy"), None)
    assert place_of(here / "o.npy", None).path == here / "o.npy"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf_8_are_names(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"x\xff")
    os.rename("x.jsonl", f"{name}.jsonl")
    assert embed(f"{name}.jsonl", "-o", f"{name}.npy", "--json") == 0
    assert json.loads(capfd.readouterr().out)["output"] == str(here / f"{name}.npy")
    with pytest.raises(CorpusError, match="its name is not UTF-8"):
        check(f"{name}.jsonl", f"{name}.parquet")


@pytest.mark.skipif(os.name == "nt", reason="Windows counts the characters of the whole path")
@pytest.mark.parametrize("length", [249, 250, 300])
def test_a_name_is_written_or_too_long_before_the_work(
    length: int, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if length >= 250:
        monkeypatch.setattr(JsonlParts, "write", None)
    assert embed("x.jsonl", "-o", "n" * (length - 6) + ".jsonl") == (0 if length < 250 else 2)
    assert capfd.readouterr().err.count("File name too long") == (length >= 250)
    assert len(list(here.iterdir())) == (4 if length < 250 else 3)


# What is written


@pytest.fixture
def faulty(here: Path) -> Path:
    """A corpus with a row that has no text."""
    (here / "faulty.jsonl").write_text('{"text": "rain"}\n{"text": 5}\n')
    return here / "faulty.jsonl"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_errors_go_into_a_device_a_pipe_or_what_a_link_leads_to(faulty: Path) -> None:
    link, file, pipe = (faulty.with_name(name) for name in ("link", "file", "pipe"))
    link.symlink_to(file)
    assert embed(faulty, "-o", "o.npy", "--on-error", "null", "--errors", link) == 1
    assert link.is_symlink()
    assert json.loads(file.read_text())["row"] == 1
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert embed(faulty, "-o", "p.npy", "--on-error", "null", "--errors", pipe) == 1
        assert os.read(reader, 2**16) == file.read_bytes()
    finally:
        os.close(reader)
    assert pipe.is_fifo()


class Joins:
    """Stands in for the join of jsonl parts; remembers which files the parts were, and fails while it has a fault."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
        self.fault: BaseException | None = fault
        self.parts: list[list[tuple[int, int]]] = []
        real = JsonlParts.join

        def join(form: JsonlParts, parts: Sequence[Path], target: Path, dimension: int) -> None:
            self.parts.append([(part.stat().st_ino, part.stat().st_mtime_ns) for part in parts])
            if self.fault is not None:
                raise self.fault
            real(form, parts, target, dimension)

        monkeypatch.setattr(JsonlParts, "join", join)


@pytest.mark.parametrize(
    ("fault", "status"), [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 2)]
)
def test_an_earlier_output_is_not_taken_for_that_of_a_job_whose_end_failed(
    fault: BaseException, status: int, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus, out = here / "x.jsonl", here / "out.jsonl"
    assert embed(corpus, "-o", out) == 0
    old = out.read_bytes()
    corpus.write_text('{"text": "snow"}\n{"text": "hail"}\n{"text": "sun"}\n')
    joins = Joins(monkeypatch, fault)
    assert embed(corpus, "-o", out, "--overwrite") == status
    joins.fault = None
    capfd.readouterr()
    assert embed(corpus, "-o", out) == 2
    assert "--overwrite goes on with these parts" in capfd.readouterr().err
    assert out.read_bytes() == old
    assert embed(corpus, "-o", out, "--overwrite") == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["snow", "hail", "sun"]
    assert joins.parts[0] == joins.parts[1], "no part is computed again"
    assert not (here / "out.jsonl.parts").exists()


def test_an_output_that_somebody_makes_meanwhile_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, write = here / "out.jsonl", JsonlParts.write

    def meanwhile(form: JsonlParts, rows: object, file: Path) -> None:
        write(form, rows, file)  # type: ignore[arg-type]
        out.write_text("mine")

    monkeypatch.setattr(JsonlParts, "write", meanwhile)
    assert embed(here / "x.jsonl", "-o", out) == 2
    assert "is there already" in capfd.readouterr().err
    assert out.read_text() == "mine"


def test_inputs_that_change_while_they_are_read_make_no_output(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus, out, write = here / "x.jsonl", here / "out.jsonl", JsonlParts.write
    os.utime(corpus, (1, 1))

    def meanwhile(form: JsonlParts, rows: object, file: Path) -> None:
        write(form, rows, file)  # type: ignore[arg-type]
        corpus.write_text('{"text": "snow"}\n')  # of one size

    monkeypatch.setattr(JsonlParts, "write", meanwhile)
    assert embed(corpus, "-o", out) == 2
    assert f"{corpus} changed while it was read" in capfd.readouterr().err
    assert not out.exists()
    sources = find_sources([str(corpus)], None)
    refuse_changed(sources, here)
    corpus.unlink()
    with pytest.raises(CorpusError, match="changed while it was read"):
        refuse_changed(sources, here)


def test_what_standard_input_has_is_not_known_by_an_earlier_summary(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill behind the output, and then another text."""

    def run(text: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return embed("-", "-o", "out.jsonl", *arguments)

    with monkeypatch.context() as system:
        system.setattr("bridge_client.bulk.job.Job._discard", lambda job: None)  # the kill
        assert run("rain\n") == 0
    assert run("snow\n") == 2
    assert run("snow\n", "--overwrite") == 0
    assert json.loads((here / "out.jsonl").read_text())["text"] == "snow"
