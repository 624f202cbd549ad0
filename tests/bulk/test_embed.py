"""`embed-worker embed` with a real worker and a tiny model: formats, order, nulls, resuming, refusals."""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridge_client import ClientOptions, EmbedClient
from bridge_client.bulk.command import _OF_A_CORPUS, add_arguments
from bridge_client.bulk.job import Job
from bridge_client.testing.processes import send_signal
from embed_worker.__main__ import run_tool
from tests.patience import WAIT_S
from tests.worker.harness import ROOT, worker_of

MODEL = str(ROOT / "tests" / "models" / "bert-mean")
RAIN = "rain on a hill"
TEXTS: list[str | None] = [RAIN, "a river", None, "", RAIN, "größer als 東京", 'say "no",	then go']


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """The vectors of all texts, one call each."""
    with EmbedClient(model=MODEL) as client:
        return {text: client.embed(text)[0] for text in TEXTS if text is not None}


def embed(*arguments: str | Path) -> int:
    return run_tool("embed", [*map(str, arguments), "--model", MODEL, "--quiet"])


def written(folder: Path, form: str, texts: list[str | None] = TEXTS) -> Path:
    """Write the texts, with a column of numbers beside them where the form has columns."""
    file = folder / f"corpus.{form}"
    rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
    match form:
        case "txt":
            file.write_text("".join(f"{text or ''}\n" for text in texts), "utf-8")
        case "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        case "csv" | "tsv":
            out = io.StringIO(newline="")
            writer = csv.DictWriter(out, ["id", "text"], dialect="excel" if form == "csv" else "excel-tab")
            writer.writeheader()
            writer.writerows(rows)
            file.write_text(out.getvalue(), "utf-8", newline="")
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        case _:
            with pa.ipc.new_file(file, pa.Table.from_pylist(rows).schema) as out:
                out.write_table(pa.Table.from_pylist(rows))
    return file


def vectors_of(file: Path) -> list[Any]:
    """Return the vectors of an output of any kind, None where there is none."""
    match file.suffix:
        case ".npy":
            return [None if np.isnan(row).all() else row for row in np.load(file)]
        case ".jsonl":
            return [json.loads(line)["embedding"] for line in file.read_text("utf-8").splitlines()]
        case ".parquet":
            return list(pq.read_table(file)["embedding"].to_pylist())
        case _:
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_file(mapped) as reader:
                return list(reader.read_all()["embedding"].to_pylist())


def assert_same(found: list[Any], expected: dict[str, Any], *, texts: list[str | None]) -> None:
    assert [vector is None for vector in found] == [text is None for text in texts]
    for vector, text in zip(found, texts, strict=True):
        if text is not None:
            np.testing.assert_allclose(np.asarray(vector, np.float32), expected[text], atol=2e-6)


# txt has no null, and in csv and tsv an empty cell is one.
@pytest.mark.parametrize(
    ("form", "output"),
    [
        ("txt", "npy"), ("jsonl", "jsonl"), ("csv", "parquet"), ("tsv", "npy"), ("parquet", "arrow"),
        ("arrow", "parquet"), ("parquet", "jsonl"), ("jsonl", "parquet"),
    ],
)  # fmt: skip
def test_rows_keep_their_order_and_their_nulls_in_every_format(
    form: str, output: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / f"out.{output}"
    assert embed(written(tmp_path, form), "-o", out, "--part-rows", "3", "--column", "text") == 0
    texts = {"txt": [text or "" for text in TEXTS], "csv": [text or None for text in TEXTS]}
    assert_same(vectors_of(out), expected, texts=texts.get("csv" if form == "tsv" else form, TEXTS))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"corpus.{form}", out.name])


def test_who_reads_a_null_vector_in_parquet_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, told = written(tmp_path, "jsonl"), []
    for name, texts in (("null.parquet", file), ("null.npy", file), ("all.parquet", written(tmp_path, "txt"))):
        assert run_tool("embed", [str(texts), "-o", str(tmp_path / name), "--model", MODEL]) == 0
        told.append("pyarrow can read from version 26 on" in capsys.readouterr().out)
    assert told == [True, False, False]


def test_a_parquet_file_says_what_its_vectors_are(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert embed(written(tmp_path, "parquet"), "-o", out, "--keep", "id", "--query", "--dimensions", "8") == 0
    schema = pq.read_schema(out)
    assert schema.names == ["id", "embedding"]
    assert schema.field("id").type == pa.int64()
    assert schema.field("embedding").type == pa.list_(pa.float32(), 8)
    metadata = {key.decode().removeprefix("embed_bridge."): value for key, value in schema.metadata.items()}
    assert metadata["model"] == b"bert-mean"
    assert metadata["dimension"] == b"8"
    assert set(metadata) == {"model", "fingerprint", "dimension", "prompt", "version"}
    column = pq.ParquetFile(out).metadata.row_group(0).column(1)
    assert column.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in column.encodings


def test_a_folder_of_parts_is_read_as_one_table(expected: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert embed(written(tmp_path, "parquet"), "-o", out, "--part-rows", "2", "--keep", "*") == 0
    assert [path.name for path in sorted(out.iterdir())] == [f"part-{n:06}.parquet" for n in range(4)]
    table = pq.read_table(out)
    assert table["id"].to_pylist() == list(range(len(TEXTS)))
    assert_same(table["embedding"].to_pylist(), expected, texts=TEXTS)


def test_half_precision_is_half_the_size_and_nearly_the_same(expected: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    assert embed(written(tmp_path, "jsonl"), "-o", out, "--dtype", "float16") == 0
    found = np.load(out)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found[0].astype(np.float32), expected["rain on a hill"], atol=1e-3)


def test_texts_on_the_command_line_are_printed(
    expected: dict[str, Any], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert embed("a river", "rain on a hill") == 0
    first, second = map(json.loads, capfdbinary.readouterr().out.splitlines())
    np.testing.assert_allclose(first, expected["a river"], atol=2e-6)
    np.testing.assert_allclose(second, expected["rain on a hill"], atol=2e-6)


def test_a_text_that_looks_like_a_file_is_embedded_and_told(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--model", MODEL]
    assert run_tool("embed", ["nothere.jsonl", "a river", "shards/*.parquet", *options]) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 3
    told = [line for line in err.splitlines() if "is embedded as a text" in line]
    assert [line.split("'")[1] for line in told] == ["nothere.jsonl", "shards/*.parquet"]
    assert embed("nothere.jsonl") == 0
    assert "nothere" not in capfd.readouterr().err


def test_rows_without_a_text_cost_themselves_alone_and_are_listed(
    expected: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_bytes(b'{"text":"a river"}\n{"text":5}\nnot json\n\n"rain on a hill"\n[]\n{"other":1}\n')
    out, errors = tmp_path / "out.npy", tmp_path / "errors.jsonl"
    assert embed(file, "-o", out) == 2
    assert "row 1 has no vector" in capfd.readouterr().err
    assert embed(file, "-o", out, "--on-error", "null", "--errors", errors) == 1
    assert_same(vectors_of(out), expected, texts=["a river", None, None, "rain on a hill", None, None])
    rows = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [(row["row"], row["code"]) for row in rows] == [(n, "invalid_row") for n in (1, 2, 4)]
    assert "json" not in errors.read_text().replace("JSON", "")  # the text of row 2


def test_a_text_that_is_refused_is_listed_with_its_code_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{'x ' * 2**19}y\n{RAIN}\n")
    errors = tmp_path / "errors.jsonl"
    assert embed(tmp_path / "a.txt", "-o", tmp_path / "o.npy", "--on-error", "null", "--errors", errors) == 1
    message = "its text has 1048577 bytes, the limit is 1048576"
    assert json.loads(errors.read_text()) == {"row": 0, "code": "input_too_long", "message": message}


def test_a_summary_counts_what_happened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        run_tool("embed", [str(written(tmp_path, "jsonl")), "-o", str(tmp_path / "o.npy"), "--model", MODEL, "--json"])
        == 0
    )
    summary = json.loads(capfd.readouterr().out)
    assert (summary["rows"], summary["unique"], summary["null"], summary["failed"]) == (7, 5, 1, 0)
    assert summary["tokens"] > 0
    assert len(summary["fingerprint"]) == 16


def test_chunks_of_texts_fit_the_model_and_say_where_they_are_from(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = [RAIN * 40, None, "", "größer als 東京 " * 30, "a river"]
    file, out = written(tmp_path, "parquet", texts), tmp_path / "out.parquet"
    assert embed(file, "-o", out, "--chunk", "63") == 2
    assert "the largest is 62" in capfd.readouterr().err
    arguments: list[str | Path] = ["-o", out, "--chunk", "20,4", "--keep", "*", "--json", "--part-rows", "2"]
    assert embed(file, *arguments) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["truncated"], summary["null"]) == (0, 1)
    rows = pq.read_table(out).to_pylist()
    assert list(rows[0]) == ["source_row", "chunk", "start", "end", "id", "text", "embedding"]
    chunks = {number: [row for row in rows if row["source_row"] == number] for number in range(5)}
    assert [len(found) for found in chunks.values()][1:3] == [1, 1]
    assert (chunks[1][0]["start"], chunks[1][0]["embedding"]) == (None, None)
    assert (chunks[4][0]["start"], chunks[4][0]["end"]) == (0, len("a river"))
    with EmbedClient(model=MODEL) as client:
        for number in (0, 3):
            whole, found = texts[number] or "", chunks[number]
            assert [row["chunk"] for row in found] == list(range(len(found)))
            assert [row["id"] for row in found] == [number] * len(found)
            assert [whole[row["start"] : row["end"]] for row in found] == [row["text"] for row in found]
            assert len(found) > 5
            assert max(client.tokenize([row["text"] for row in found], truncate=False).tokens) <= 20 + 2
            covered = {at for row in found for at in range(row["start"], row["end"])}
            assert all(at in covered or character.isspace() for at, character in enumerate(whole))
            np.testing.assert_allclose(found[1]["embedding"], client.embed(found[1]["text"])[0], atol=2e-6)


# Refusals


def test_every_option_of_a_corpus_is_refused_without_an_output() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    groups = {group.title: group._group_actions for group in parser._action_groups}
    of_texts = {"help", "inputs", "output", "json", "quiet", "query", "document", "prompt_name", "dimensions"}
    found = {action.dest: action.default for group in groups.values() for action in group}
    assert {name: default for name, default in found.items() if name not in of_texts} == _OF_A_CORPUS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt", "-o", "o.npy"], "there is no file"),
        (["corpus.jsonl", "-o", "o.vec"], "an output ends in"),
        (["corpus.jsonl", "-o", "o.npy", "--column", "body"], "has no column 'body'"),
        (["corpus.jsonl", "-o", "o.parquet", "--keep", "body"], "has no column 'body'"),
        (["corpus.jsonl", "-o", "o.npy", "--keep", "id"], "vectors alone"),
        (["corpus.jsonl", "corpus.parquet", "-o", "o.npy"], "cannot be read as one corpus"),
        (["corpus.jsonl"], "say with -o"),
        (["a river", "--chunk", "9"], "--chunk is for a corpus"),
        (["a river", "--dtype", "float16"], "--dtype is for a corpus"),
        (["a river", "--on-error", "null"], "--on-error is for a corpus"),
        (["a river", "--overwrite"], "--overwrite is for a corpus"),
        (["corpus.strange", "-o", "o.npy"], "--format"),
        ([".", "-o", "o.npy"], "or name other files alone, by a pattern"),
        (["corpus.parquet", "-o", "o.npy", "--column", "id"], "is of the type int64"),
        (["corpus.jsonl", "-o", "o.npy", "--format", "parquet"], "is not a file of the format parquet"),
        (["corpus.jsonl", "-o", "corpus.jsonl", "--overwrite"], "corpus.jsonl is an input, too"),
        (["corpus.jsonl", "-o", "folder.npy", "--overwrite"], "folder.npy is a folder"),
        (["corpus.jsonl", "-o", "o.npy", "--errors", "nowhere/e.jsonl"], "there is no such folder"),
        (["taken.jsonl", "-o", "o.jsonl", "--keep", "*"], "the output has a column 'embedding' of its own"),
        (["corpus.jsonl", "-o", "o.npy", "--chunk", "9"], "cannot say which chunk"),
        (["corpus.jsonl", "-o", "o.npy", "--dimensions", "999"], "dimensions"),
        (["corpus.jsonl", "-o", "o.npy", "--prompt-name", "nobody", "--on-error", "null"], "nobody"),
        (["corpus.jsonl", "-o", "mine", "--overwrite"], "with other files than parts, such as letter.txt"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "jsonl")
    written(tmp_path, "parquet")
    (tmp_path / "corpus.strange").write_text("a\n")
    (tmp_path / "taken.jsonl").write_text('{"text":"a","embedding":1}\n')
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    assert embed(*arguments) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "mine" / "letter.txt").exists()
    assert not list(tmp_path.glob(".*"))


def test_parquet_is_refused_before_the_work_where_pyarrow_could_not_write_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge_client.bulk.command.version", lambda name: "24.0.0")
    assert embed(written(tmp_path, "txt"), "-o", tmp_path / "out.parquet") == 2
    assert "written by pyarrow 25 or newer, and this is 24.0.0" in capsys.readouterr().err
    assert embed(written(tmp_path, "txt"), "-o", tmp_path / "out.arrow") == 0


def test_an_output_that_is_there_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    file = written(tmp_path, "jsonl")
    assert embed(file, "-o", out) == 0
    before = out.read_bytes()
    assert embed(file, "-o", out, "--dimensions", "4") == 2
    assert out.read_bytes() == before
    assert embed(file, "-o", out, "--dimensions", "4", "--overwrite") == 0
    assert np.load(out).shape == (7, 4)


# Interruptions


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows enough to be interrupted, some of them null or repeated."""
    texts = [None if n % 97 == 0 else f"text number {n % 5000} of many" for n in range(12_000)]
    return written(tmp_path_factory.mktemp("many"), "parquet", texts)


def begin(file: Path, out: Path, *arguments: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "embed_worker", "embed", str(file), "-o", str(out), "--model", MODEL]
    return subprocess.Popen(
        [*command, "--part-rows", "500", "--keep", "*", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr
    )


def wait_for_parts(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until and process.poll() is None:
        if out.with_name(f"{out.name}.parts").joinpath(f"part-{count - 1:06}.arrow").exists():
            return
        time.sleep(0.005)
    pytest.fail(f"part {count} did not come")


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("part-*")}


@pytest.fixture(scope="module")
def whole(many: Path) -> pa.Table:
    out = many.with_name("whole.parquet")
    assert begin(many, out).wait(WAIT_S) == 0
    return pq.read_table(out)


def test_a_job_that_was_killed_goes_on_where_it_was(many: Path, whole: pa.Table, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    for parts in (2, 7):
        process = begin(many, out)
        wait_for_parts(out, parts, process)
        process.kill()
        process.wait(WAIT_S)
        assert not out.exists()
        finished = hashes(tmp_path / "out.parquet.parts")
    process = begin(many, out)
    assert process.wait(WAIT_S) == 0
    assert len(finished) >= 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet"]
    found = pq.read_table(out)
    assert found.schema.equals(whole.schema, check_metadata=True)
    assert found["id"].equals(whole["id"])
    assert found["text"].equals(whole["text"])
    assert_vectors_equal(found, whole)


@pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="children are read from /proc, or Windows tells")
def test_a_worker_that_is_killed_again_and_again_costs_no_more_than_its_restarts(
    many: Path, whole: pa.Table, tmp_path: Path
) -> None:
    """More often than a client puts up with when it serves questions."""
    out = tmp_path / "out.parquet"
    process = begin(many, out, "--part-rows", "200")
    killed: set[int | None] = {None}
    for kill in range(int(ClientOptions().restart_budget) + 4):
        wait_for_parts(out, 1 + 5 * kill, process)
        until = time.monotonic() + WAIT_S
        while (worker := worker_of(process.pid)) in killed and time.monotonic() < until:
            time.sleep(0.005)
        assert worker is not None
        assert worker not in killed
        send_signal(worker, "KILL")
        killed.add(worker)
    assert process.wait(WAIT_S) == 0
    assert_vectors_equal(pq.read_table(out), whole)


def assert_vectors_equal(found: pa.Table, expected: pa.Table) -> None:
    assert found["embedding"].is_null().equals(expected["embedding"].is_null())
    here, there = (np.array(table["embedding"].drop_null().to_pylist()) for table in (found, expected))
    cosines = (here * there).sum(1) / np.linalg.norm(here, axis=1) / np.linalg.norm(there, axis=1)
    assert cosines.min() > 1 - 1e-6


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_was_interrupted_says_so_and_keeps_its_parts(number: int, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    process = begin(many, out)
    wait_for_parts(out, 2, process)
    process.send_signal(number)
    assert process.wait(WAIT_S) == 130
    assert len(hashes(tmp_path / "out.parquet.parts")) >= 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_a_second_ctrl_c_waits_for_nobody(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with begin(many, out, stderr=subprocess.PIPE) as process:
        wait_for_parts(out, 1, process)
        for _ in range(50):
            process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert b"Traceback" not in error


def test_texts_without_an_output_that_were_interrupted_are_no_job_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EmbedClient, "embed_detailed", Mock(side_effect=KeyboardInterrupt))
    assert embed("a text") == 130
    assert capsys.readouterr().err == "embed-worker embed: interrupted\n"


def test_who_interrupts_when_all_is_done_gets_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command would not go on: it would find an output that is there."""

    class Interrupted(EmbedClient):
        def close(self) -> None:
            super().close()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("bridge_client.bulk.command.EmbedClient", Interrupted)
    assert embed(written(tmp_path, "jsonl"), "-o", tmp_path / "out.npy") == 0
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("corpus")] == ["out.npy"]


@pytest.fixture
def interrupted(many: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A corpus of its own and a job that has begun."""
    file, out = tmp_path / "corpus.parquet", tmp_path / "out.parquet"
    file.write_bytes(many.read_bytes())
    process = begin(file, out)
    wait_for_parts(out, 1, process)
    process.kill()
    process.wait(WAIT_S)
    yield file, out
    assert not out.exists()


def test_another_job_in_the_same_place_is_refused_by_what_is_different(
    interrupted: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    file, out = interrupted
    again: list[str | Path] = ["-o", out, "--part-rows", "500", "--keep", "*"]
    assert embed(file, *again, "--dimensions", "4") == 2
    assert "dimensions was" in capfd.readouterr().err
    assert embed(file, *again, "--chunk", "9") == 2
    assert 'chunk was not given and is {"tokens":9,"overlap":0}' in capfd.readouterr().err
    assert embed(file, *again, "--column", "text", "--prompt-name", "query") in (1, 2)
    other = str(ROOT / "tests" / "models" / "e5-prefix")
    assert run_tool("embed", [str(file), *map(str, again), "--model", other, "-q"]) == 2
    error = capfd.readouterr().err
    assert "fingerprint was" in error
    assert "model was" in error
    os.utime(file, (1, 1))
    assert embed(file, *again) == 2
    assert f"the input changed ({file})" in capfd.readouterr().err


def test_standard_input_is_known_by_its_texts(tmp_path: Path) -> None:
    def run(texts: list[str], *, cut: bool) -> tuple[int, bytes]:
        lines = "".join(f"{text}\n" for text in texts).encode()
        command = [sys.executable, "-m", "embed_worker", "embed", "-", "-o", str(tmp_path / "o.npy"), "--model", MODEL]
        done = subprocess.run(
            [*command, "--part-rows", "10", "--on-error", "fail"],
            cwd=ROOT, input=lines + (b"\xff\n" if cut else b""), capture_output=True, timeout=WAIT_S,
        )  # fmt: skip
        return done.returncode, done.stderr

    texts = [f"text {n}" for n in range(25)]
    assert run(texts, cut=True)[0] == 2  # the last part has a bad row: two parts are finished
    status, error = run([*texts[:5], "another", *texts[6:]], cut=False)
    assert status == 2
    assert b"other texts" in error
    assert run(texts, cut=False)[0] == 0
    assert np.load(tmp_path / "o.npy").shape[0] == 25


def test_standard_input_has_the_columns_that_are_asked_for(expected: dict[str, Any], tmp_path: Path) -> None:
    out, lines = tmp_path / "o.jsonl", f'{{"id":{2**64 + 1}}}\n{{"body":"a river","id":2}}\n"{RAIN}"\n'
    command = [sys.executable, "-m", "embed_worker", "embed", "-", "-o", str(out), "--model", MODEL]
    options = ["--format", "jsonl", "--column", "body", "--keep", "id"]
    subprocess.run([*command, *options], cwd=ROOT, input=lines.encode(), check=True, timeout=WAIT_S)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [2**64 + 1, 2, None]
    assert_same(vectors_of(out), expected, texts=[None, "a river", None])


def test_nothing_is_left_of_a_lock_whatever_happens(tmp_path: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), Job(tmp_path / "out", ".npy").locked():
        assert list(tmp_path.iterdir())
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_two_commands_do_not_work_on_one_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, out = written(tmp_path, "jsonl"), tmp_path / "out.npy"
    with Job(out, ".npy").locked():
        assert embed(file, "-o", out) == 2
        assert embed(file, "-o", out) == 2, "who is refused takes no lock away"
    assert "another command is at work" in capfd.readouterr().err
    assert embed(file, "-o", out) == 0


def test_a_full_disk_is_said_and_keeps_the_finished_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file, out, real, left = written(tmp_path, "jsonl"), tmp_path / "out.npy", os.fsync, iter(range(8))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        assert embed(file, "-o", out, "--part-rows", "2") == 2
    assert "cannot be written: No space left on device" in capfd.readouterr().err
    parts = tmp_path / "out.npy.parts"
    finished = hashes(parts)
    assert [name for name in finished if name.endswith(".npy")]
    assert {file.suffix for file in parts.glob(".*")} == {".json"}
    assert embed(file, "-o", out, "--part-rows", "2") == 0
    assert len(np.load(out)) == len(TEXTS)
