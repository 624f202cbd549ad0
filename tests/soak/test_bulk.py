"""`embed-worker embed` over a corpus while the command, or its worker, is killed again and again.

The output must be that of a run that nobody disturbed: rows, order, nulls, schema, metadata, vectors; parts that were
finished before a kill stay as they are, byte for byte; and memory stays flat.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.worker.harness import ROOT, worker_of

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="memory and children are read from /proc"),
]
SEED = int(os.environ.get("SOAK_SEED", "15"))
KILLS = 20
TINY = ROOT / "tests" / "models" / "bert-mean"
DEFAULT = ROOT / "models" / "all-MiniLM-L6-v2"
WORDS = ["rain", "hill", "river", "stone", "quiet", "engine", "paints", "bridge", "winter", "letter", "museum", "baker"]
FLAT_BYTES = 96 * 2**20  # a few blocks, and what an allocator keeps


@dataclass(slots=True)
class Watched:
    """What was seen of the commands: resident bytes by the number of finished parts, and the parts' hashes."""

    resident: list[tuple[int, int]] = field(default_factory=list)
    peak: int = 0
    hashes: dict[str, str] = field(default_factory=dict)


def write_corpus(file: Path, rows: int, words: int) -> None:
    """Write rows of some words; every 1,000th is null, every 50th repeats the one before."""
    chance = random.Random(SEED)
    with pq.ParquetWriter(file, pa.schema({"id": pa.int64(), "text": pa.string()}), compression="zstd") as writer:
        for start in range(0, rows, 50_000):
            ids = range(start, min(rows, start + 50_000))
            texts: list[str | None] = []
            for row in ids:
                if row % 1000 == 7:
                    texts.append(None)
                elif row % 50 == 49:
                    texts.append(texts[-1])
                else:
                    texts.append(" ".join([*chance.choices(WORDS, k=words), str(row)]))
            writer.write_batch(pa.record_batch({"id": pa.array(ids, pa.int64()), "text": texts}))


def begin(corpus: Path, out: Path, model: Path, part_rows: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "embed_worker", "embed", str(corpus), "-o", str(out), "--model", str(model)]
    return subprocess.Popen([*command, "--part-rows", str(part_rows), "--keep", "*", "-q"], cwd=ROOT)


def folder_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def parts_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("part-*") if file.suffix != ".json")


def watch(process: subprocess.Popen[bytes], out: Path, watched: Watched, *, until_parts: int | None) -> bool:
    """Wait for so many parts, or for the end; return whether the process runs still."""
    while process.poll() is None:
        count = len(parts_of(folder_of(out)))
        if status := memory_of(process.pid):
            watched.resident.append((count, status["VmRSS"]))
            watched.peak = max(watched.peak, status["VmHWM"])
        if until_parts is not None and count >= until_parts:
            return True
        time.sleep(0.05)
    return False


def memory_of(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return {name: int(found[name][0]) * 1024 for name in ("VmRSS", "VmHWM")} if "VmRSS" in found else {}


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in parts_of(folder)}


def embed_undisturbed(corpus: Path, out: Path, model: Path, part_rows: int) -> Watched:
    watched = Watched()
    process = begin(corpus, out, model, part_rows)
    watch(process, out, watched, until_parts=None)
    assert process.returncode == 0
    return watched


def embed_with_kills(corpus: Path, out: Path, model: Path, part_rows: int, rows: int) -> Watched:
    """Embed while at 20 random moments the command or its worker is killed; begin again until it ends by itself."""
    chance, watched, killed = random.Random(SEED), Watched(), []
    moments = sorted(chance.randrange(-(-rows // part_rows)) for _ in range(KILLS))
    process = begin(corpus, out, model, part_rows)
    for moment in moments:
        delay_s, victim = chance.uniform(0, 0.5), chance.choice(["command", "worker"])
        if not watch(process, out, watched, until_parts=moment):
            break
        time.sleep(delay_s)
        pid = process.pid if victim == "command" else worker_of(process.pid)
        if process.poll() is not None:
            break
        if pid is None:  # it has none at this moment: then the command is killed
            pid, victim = process.pid, "command"
        os.kill(pid, signal.SIGKILL)
        killed.append(f"{victim} at part {len(parts_of(folder_of(out)))}")
        if victim == "command":
            process.wait(60)
            assert not out.exists()
            keep_hashes(watched, hashes(folder_of(out)))
            process = begin(corpus, out, model, part_rows)
    watch(process, out, watched, until_parts=None)
    print(f"seed {SEED}: killed {', '.join(killed)}")
    assert process.returncode == 0
    assert len(killed) == KILLS
    assert not folder_of(out).exists()
    return watched


def keep_hashes(watched: Watched, found: dict[str, str]) -> None:
    """What was finished before must be there as it was."""
    assert {name: found.get(name) for name in watched.hashes} == watched.hashes
    watched.hashes = found


def assert_flat(watched: Watched, parts: int) -> None:
    """Compare the memory of the last three quarters with that of the first one."""
    early = max(resident for count, resident in watched.resident if count <= max(4, parts // 4))
    late = max(resident for _, resident in watched.resident)
    print(f"memory of the command: {early / 2**20:.0f} MiB early, {late / 2**20:.0f} MiB at most")
    assert late <= early + FLAT_BYTES


def columns_of(out: Path) -> tuple[pa.Schema, list[Any], list[Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return schema, ids, texts, whether each row is null, and the vectors of those that are not."""
    table = pq.read_table(out)
    column = table["embedding"]
    dimension = column.type.list_size
    vectors = np.concatenate([chunk.drop_null().flatten().to_numpy().reshape(-1, dimension) for chunk in column.chunks])
    return table.schema, table["id"].to_pylist(), table["text"].to_pylist(), np.asarray(column.is_null()), vectors


def assert_same(found: Path, expected: Path, rows: int) -> None:
    schema, ids, texts, nulls, vectors = columns_of(found)
    other_schema, other_ids, other_texts, other_nulls, other_vectors = columns_of(expected)
    assert schema.equals(other_schema, check_metadata=True)
    assert ids == other_ids == list(range(rows))
    assert texts == other_texts
    assert (nulls == other_nulls).all()
    assert nulls.tolist() == [row % 1000 == 7 for row in range(rows)]
    distance = 1 - cosines(vectors, other_vectors)
    print(f"greatest cosine distance {distance.max():.1e}, {(vectors == other_vectors).all(1).mean():.1%} bit for bit")
    assert distance.max() < 1e-6


def cosines(these: Any, those: Any) -> Any:
    these, those = these.astype(np.float64), those.astype(np.float64)
    return (these * those).sum(1) / np.linalg.norm(these, axis=1) / np.linalg.norm(those, axis=1)


def assert_readable(out: Path, rows: int) -> None:
    """Let DuckDB and pandas read it, where they are: in the environment of `make integrations`."""
    nulls = len(range(7, rows, 1000))
    files = f"{out}/*.parquet" if out.is_dir() else str(out)
    if importlib.util.find_spec("duckdb") is None:
        print("DuckDB is not there")
    else:
        duckdb = importlib.import_module("duckdb")
        query = f"select count(*), count(embedding), sum(id), min(len(embedding)) from read_parquet('{files}')"
        (counts,) = duckdb.sql(query).fetchall()
        assert counts[:3] == (rows, rows - nulls, rows * (rows - 1) // 2)
        print(f"DuckDB {duckdb.__version__} read {counts}")
    if importlib.util.find_spec("pandas") is None:
        print("pandas is not there")
    else:
        pandas = importlib.import_module("pandas")
        frame = pandas.read_parquet(out, columns=["id", "embedding"])
        assert (len(frame), int(frame["embedding"].isna().sum())) == (rows, nulls)
        print(f"pandas {pandas.__version__} read {len(frame)} rows")


@pytest.mark.parametrize(
    ("rows", "words", "part_rows", "model", "output"),
    [
        pytest.param(int(os.environ.get("SOAK_ROWS", "1000000")), 3, 8192, TINY, "out.parquet", id="short-rows"),
        pytest.param(20_000, 12, 512, DEFAULT, "out", id="default-model"),
    ],
)
def test_twenty_kills_change_nothing_of_what_a_corpus_becomes(
    rows: int, words: int, part_rows: int, model: Path, output: str, tmp_path: Path
) -> None:
    corpus, parts = tmp_path / "corpus.parquet", -(-rows // part_rows)
    write_corpus(corpus, rows, words)
    whole, out = tmp_path / "whole" / output, tmp_path / "killed" / output
    whole.parent.mkdir()
    out.parent.mkdir()
    begun_s = time.monotonic()
    undisturbed = embed_undisturbed(corpus, whole, model, part_rows)
    seconds = time.monotonic() - begun_s
    print(f"\n{rows} rows in {seconds:.0f} s, {rows / seconds:.0f} rows/s; peak {undisturbed.peak / 2**20:.0f} MiB")
    assert_flat(undisturbed, parts)
    watched = embed_with_kills(corpus, out, model, part_rows, rows)
    print(f"peak with kills {watched.peak / 2**20:.0f} MiB")
    if out.is_dir():
        keep_hashes(watched, hashes(out))
    assert sorted(path.name for path in out.parent.iterdir()) == [output]
    assert_same(out, whole, rows)
    assert_readable(out, rows)
