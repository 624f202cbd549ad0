"""Compare folders with the arbiter: `make reference ARGS="FOLDER …"`; without a folder, every one of `tests/models`.

For each folder the arbiter (newest sentence-transformers, newest transformers) and a real worker embed the same texts.
The worker embeds each text alone and all of them in one request; vectors and counts are compared. A folder without a
graph is exported first. `--write FILE` keeps what the arbiter gave, as an expected file; `--expected FILE` takes texts
and requests from one, and compares its vectors too. Exit status 1: something differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_worker.tools.references import Float32, ReferenceSet
from embed_worker.tools.worker_process import WorkerError, WorkerProcess
from tests.reference.expected import read_expected

ROOT = Path(__file__).parents[2]
_MODELS = ROOT / "tests/models"
_SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"
PYTHON = ROOT / ".venv-reference" / _SCRIPTS / "python"
_TEXTS = [
    "hello world",
    "The Quick Brown Fox JUMPS over the lazy dog.",
    "Crème brûlée, naïve façade",
    "今天天气很好",
    "a",
    "",
]
_OPTIONS = {"xenova-bare": ["--pooling=mean"]}  # where the folder itself does not say
_MIN_COSINE = 0.9999
_TOLERANCE = 1e-3  # of a component in the size of its vector, for folders that do not normalise


def main() -> int:
    """Compare every folder; give the exit status."""
    args = _arguments()
    folders = args.folders or sorted(path for path in _MODELS.iterdir() if path.is_dir())
    differs = 0
    for folder in folders:
        expected = args.expected or (folder.parent / f"{folder.name}.expected.json")
        known = read_expected(expected) if expected.is_file() else None
        try:
            right = _ask_arbiter(args, folder, known)
            options = args.worker_options or _OPTIONS.get(folder.name, [])
            notes = list(_differences(folder, right, known, options))
        except (subprocess.CalledProcessError, WorkerError) as error:
            notes = [str(error)]
        differs += bool(notes)
        print(f"{'DIFFERS' if notes else 'ok':<8}{folder}", *notes, sep="\n        ")
    return int(bool(differs))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="a JSON list of texts, or one text a line")
    parser.add_argument(
        "--request", action="append", type=json.loads, metavar="JSON", help='members to send, {"prompt_name": "query"}'
    )
    parser.add_argument("--expected", type=Path, metavar="FILE", help="an expected file to take and to compare")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write an expected file")
    parser.add_argument("--python", type=Path, default=PYTHON, help="the arbiter's interpreter (%(default)s)")
    parser.add_argument(
        "--worker-option", dest="worker_options", action="append", default=[], metavar="OPTION", help="--pooling=cls"
    )
    return parser.parse_args()


def _ask_arbiter(
    args: argparse.Namespace, folder: Path, known: Sequence[ReferenceSet] | None
) -> Sequence[ReferenceSet]:
    sets: list[dict[str, Any]] = [{"texts": item.texts, "request": dict(item.request)} for item in known or []]
    if args.texts is not None or args.request is not None or not sets:
        texts = _TEXTS if args.texts is None else _read_texts(args.texts)
        sets = [{"texts": texts, "request": request} for request in args.request or [{}]]
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch, "sets.json"), Path(scratch, "answer.json")
        asked.write_text(json.dumps(sets), encoding="utf-8")
        arguments = ["-m", "tests.reference.arbiter", str(folder.resolve()), str(answer), "--sets", str(asked)]
        subprocess.run([str(args.python), *arguments], check=True, cwd=ROOT)
        if args.write is not None:
            args.write.write_bytes(_formatted(json.loads(answer.read_bytes())))
        return read_expected(answer)


def _read_texts(file: Path) -> list[str]:
    content = file.read_text(encoding="utf-8")
    return [str(text) for text in json.loads(content)] if content.startswith("[") else content.splitlines()


def _formatted(document: dict[str, Any]) -> bytes:
    """Write one set at the top level, as most files have it."""
    sets = document["sets"]
    if len(sets) == 1:
        document = {name: value for name, value in document.items() if name != "sets"} | sets[0]
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def _differences(
    folder: Path, right: Sequence[ReferenceSet], known: Sequence[ReferenceSet] | None, options: Sequence[str]
) -> Iterator[str]:
    """Say where the worker, or a file that was made earlier, is not the arbiter."""
    for of_file, item in zip(known or right, right, strict=False):
        if of_file.texts == item.texts and (note := _difference(of_file.vectors, item.vectors)):
            yield f"the file's vectors for {item.request}: {note}"
    with tempfile.TemporaryDirectory() as scratch:
        served = folder if any(folder.rglob("*.onnx")) else _export(folder, Path(scratch, folder.resolve().name))
        with WorkerProcess(["--model", str(served), *options]) as worker:
            for item in right:
                yield from _differences_of_worker(worker, item)


def _export(folder: Path, out: Path) -> Path:
    arguments = ["export", str(folder), "--output", str(out), "--weights", "float32"]
    subprocess.run([sys.executable, "-m", "embed_worker", *arguments], check=True, stdout=subprocess.DEVNULL)
    return out


def _differences_of_worker(worker: WorkerProcess, item: ReferenceSet) -> Iterator[str]:
    alone = [worker.embed([text], **item.request).vectors for text in item.texts]
    together = worker.embed(item.texts, **item.request)
    for way, vectors in (("alone", np.concatenate(alone)), ("in one request", together.vectors)):
        if note := _difference(vectors, item.vectors):
            yield f"the worker's vectors for {item.request}, {way}: {note}"
    if item.tokens is not None and together.tokens != item.tokens:
        yield f"the worker counts {together.tokens} tokens, the arbiter {item.tokens}"
    if item.truncated is not None and together.truncated != item.truncated:
        yield f"the worker cuts {together.truncated}, the arbiter {item.truncated}"


def _difference(found: Float32, right: Float32) -> str | None:
    if found.shape != right.shape:
        return f"shape {found.shape}, not {right.shape}"
    wide_found, wide_right = found.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(wide_right, axis=1)
    cosines = (wide_found * wide_right).sum(axis=1) / (np.linalg.norm(wide_found, axis=1) * lengths)
    distance = np.abs(wide_found - wide_right).max(axis=1) / lengths
    if cosines.min() > _MIN_COSINE and distance.max() < _TOLERANCE:
        return None
    return f"smallest cosine {cosines.min():.6f}, text {int(cosines.argmin())}; largest distance {distance.max():.1e}"


if __name__ == "__main__":
    sys.exit(main())
