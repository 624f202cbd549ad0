"""`make bench`: our worker beside what users would pick instead, in turns, on the same model, texts and cores.

Every contestant is a process of its own (`tests/benchmarks/peers/`). All start some times, in turns: from spawn to the
first vector. Those of the last time stay; their vectors are compared with our worker's, and who computes something else
is not timed. Then come rounds, in each of which all take their turns in another order: texts one by one, and each
corpus in bulk. Peak memory is read at the end. Who is left out, and why, is said. Linux, for it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from embed_worker.machine import available_cores
from tests.benchmarks import machine_load
from tests.benchmarks.contestants import MODEL, ROOT
from tests.benchmarks.corpus import compared_corpora, read_corpus
from tests.benchmarks.peers.plain import MAX_TOKENS, plain_tokenizer
from tests.benchmarks.peers.process import ContestantError, Running, start
from tests.benchmarks.peers.roster import ROSTER, Entry
from tests.benchmarks.peers.serve import Settings

MIN_COSINE = 0.999
_OURS = "embed-worker"
_WARM_UP = 10  # texts that do not count: threads that have slept are on several cores only after some runs

Results = dict[str, Any]


class Field:
    """The contestants that are still in it, and why the others are not."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = list(entries)
        self.left_out: dict[str, str] = {}

    def leave_out(self, entry: Entry, reason: str) -> None:
        self.entries.remove(entry)
        self.left_out[entry.name] = reason
        say(f"  left out: {entry.name}: {reason}")

    @contextmanager
    def turn(self, entry: Entry) -> Iterator[None]:
        """What fails in a turn costs its contestant its place, and ours the run."""
        try:
            yield
        except (ContestantError, RuntimeError) as error:
            if entry.key == _OURS:
                raise
            self.leave_out(entry, str(error))


class Comparison:
    """One run of all contestants on one model."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self._options = options
        self._random = random.Random(1)
        self._cores = available_cores()
        self._pooling, self._dimension = described(options.model)
        self.corpora = load_corpora(options)
        self.first = next(iter(self.corpora.values()))
        self.field = Field([entry for entry in ROSTER if wanted(entry, options.contestants)])
        self._running: dict[str, Running] = {}
        self._scratch = scratch
        self.start_s: dict[str, list[float]] = {}
        self.min_cosine: dict[str, float] = {}
        self.singles_ms: dict[str, list[list[float]]] = {}
        self.speeds: dict[str, dict[str, list[float]]] = {}
        self.peak_mb: dict[str, float] = {}
        self.facts: dict[str, dict[str, str]] = {}
        self.load = machine_load.Load(self._cores)

    def run(self) -> Results:
        for entry in list(self.field.entries):
            if why := entry.why_not(self._options.environments, self._model(entry), machine_load.processor_flags()):
                self.field.leave_out(entry, why)
        try:
            self._starts()
            self._same_work()
            self._rounds()
            for entry in self.field.entries:
                self.peak_mb[entry.key] = machine_load.peak_mb(self._running[entry.key].pid)
                self.facts[entry.key] = dict(self._running[entry.key].facts())
        finally:
            self._close_all()
        return self._results()

    def _model(self, entry: Entry) -> Path:
        """Weights of torch may lie in another folder than the graph."""
        model: Path = self._options.model
        if entry.made == "openvino":
            return intermediate(model, self._scratch)
        weights: Path | None = self._options.weights
        return weights if weights is not None and entry.file.endswith(".safetensors") else model

    def _made(self, entry: Entry) -> Path:
        """What the contestant is told to load: the model's folder, or a file that is made of it."""
        model = self._model(entry)
        if entry.made != "gguf":
            return model
        file = self._scratch / "model.gguf"
        if not file.exists():
            made = subprocess.run(
                [*entry.command(self._options.environments), str(model), str(file)],
                cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
            )  # fmt: skip
            if made.returncode:
                file.unlink(missing_ok=True)
                raise ContestantError(made.stderr.strip().rpartition("\n")[2][:200] or f"ended with {made.returncode}")
        return file

    def _start(self, entry: Entry, cores: int) -> Running:
        settings = Settings(
            model=str(self._made(entry)),
            pooling=self._pooling,
            dimension=self._dimension,
            threads=cores,
            variant=entry.variant,
        )
        return start(entry, settings, self._options.environments)

    def _in_turns(self) -> list[Entry]:
        return self._random.sample(self.field.entries, len(self.field.entries))

    def _starts(self) -> None:
        for number in range(self._options.starts):
            say(f"start {number + 1} of {self._options.starts}")
            for entry in self._in_turns():
                with self.field.turn(entry):
                    self._made(entry)
                    began = time.perf_counter()
                    running = self._running[entry.key] = self._start(entry, self._cores)
                    running.embed(self.first[:1])
                    self.start_s.setdefault(entry.key, []).append(time.perf_counter() - began)
                    if number < self._options.starts - 1:
                        self._running.pop(entry.key).close()

    def _same_work(self) -> None:
        """Compare everybody's vectors of all texts with ours; this warms everybody up, too."""
        say("vectors")
        texts = [text for corpus in self.corpora.values() for text in corpus]
        ours = self._running[_OURS].embed(texts)
        for entry in list(self.field.entries):
            with self.field.turn(entry):
                cosines = (np.vstack([self._running[entry.key].embed(c) for c in self.corpora.values()]) * ours).sum(1)
                self.min_cosine[entry.key] = nearest = float(cosines.min())
                say(f"  {entry.name}: smallest cosine {nearest:.6f}")
                if not nearest >= MIN_COSINE:
                    raise ContestantError(f"it computes other vectors: the smallest cosine to ours is {nearest:.4f}")

    def _rounds(self) -> None:
        for number in range(self._options.rounds):
            say(f"round {number + 1} of {self._options.rounds}, load {os.getloadavg()[0]:.1f}")
            self.load.begin_round()
            for entry in self._in_turns():
                with self.field.turn(entry), self.load.turn(self._running[entry.key].pid):
                    running = self._running[entry.key]
                    running.singles_s(self.first[:_WARM_UP])
                    singles = running.singles_s(self.first[: self._options.singles])
                    self.singles_ms.setdefault(entry.key, []).append([seconds * 1e3 for seconds in singles])
                    for name, texts in self.corpora.items():
                        speed = len(texts) / running.bulk_s(texts)
                        self.speeds.setdefault(entry.key, {}).setdefault(name, []).append(speed)

    def scaling(self, counts: Sequence[int]) -> dict[str, dict[str, float]]:
        """Measure texts a second of the first corpus with so many cores: by the affinity mask, which all obey."""
        cores = sorted(os.sched_getaffinity(0))
        medians: dict[str, dict[str, float]] = {}
        for count in counts:
            say(f"scaling: {count} cores")
            speeds: dict[str, list[float]] = {}
            os.sched_setaffinity(0, cores[:count])
            try:
                for entry in list(self.field.entries):
                    with self.field.turn(entry):
                        self._running[entry.key] = self._start(entry, count)
                        self._running[entry.key].embed(self.first)
                for _ in range(self._options.rounds):
                    for entry in self._in_turns():
                        with self.field.turn(entry):
                            seconds = self._running[entry.key].bulk_s(self.first)
                            speeds.setdefault(entry.key, []).append(len(self.first) / seconds)
            finally:
                self._close_all()
                os.sched_setaffinity(0, cores)
            for key, values in speeds.items():
                medians.setdefault(key, {})[str(count)] = round(float(np.median(values)), 1)
        return medians

    def _close_all(self) -> None:
        while self._running:
            self._running.popitem()[1].close()

    def _results(self) -> Results:
        tokenizer = plain_tokenizer(self._options.model)
        return {
            "model": self._options.model.name,
            "dimension": self._dimension,
            "max_tokens": MAX_TOKENS,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine_load.about(),
            "python": platform.python_version(),
            "rounds": self._options.rounds,
            "starts": self._options.starts,
            "singles": self._options.singles,
            "load": self.load.results(),
            "corpora": {name: describe_corpus(texts, tokenizer) for name, texts in self.corpora.items()},
            "contestants": [self._row(entry) for entry in self.field.entries],
            "left_out": self.field.left_out,
        }

    def _row(self, entry: Entry) -> Results:
        singles = self.singles_ms[entry.key]
        p50_of_rounds = quartiles([float(np.median(values)) for values in singles], 2)
        return {
            "key": entry.key,
            "name": entry.name,
            "arrangement": entry.arrangement,
            "facts": self.facts[entry.key],
            "min_cosine": round(self.min_cosine[entry.key], 6),
            "start_s": quartiles(self.start_s[entry.key], 2),
            "peak_mb": round(self.peak_mb[entry.key]),
            "one_text_ms": {
                "p50": p50_of_rounds["median"],
                "p95": round(float(np.percentile(np.concatenate(singles), 95)), 2),
                "p50_of_rounds": p50_of_rounds,
            },
            "texts_per_s": {name: quartiles(values, 1) for name, values in self.speeds[entry.key].items()},
        }


def quartiles(values: Sequence[float], digits: int) -> dict[str, float]:
    low, middle, high = (round(float(np.percentile(values, share)), digits) for share in (25, 50, 75))
    return {"median": middle, "q1": low, "q3": high}


def wanted(entry: Entry, keys: str | None) -> bool:
    return keys is None or entry.key == _OURS or entry.key in keys.split(",")


def described(model: Path) -> tuple[str, int]:
    """Return how the folder says that it pools, and the dimension."""
    file = model / "1_Pooling" / "config.json"
    said: dict[str, Any] = json.loads(file.read_text("utf-8"))
    mode = said.get("pooling_mode") or ("cls" if said.get("pooling_mode_cls_token") else "mean")
    dimension = said.get("word_embedding_dimension") or said["embedding_dimension"]
    return str(mode), int(dimension)


def load_corpora(options: argparse.Namespace) -> dict[str, list[str]]:
    tokenizer = plain_tokenizer(options.model)
    if options.corpus:
        found = {file.stem: read_corpus(file)[: options.texts] for file in options.corpus}
    else:
        # The default model's tokenizer, so that all models get the same texts.
        found = compared_corpora(options.texts, plain_tokenizer(MODEL))
    return {name: [fitted(text, tokenizer) for text in texts] for name, texts in found.items()}


def fitted(text: str, tokenizer: Any) -> str:
    """Cut a text so that the whole of it is read: then nobody's truncation makes a difference.

    `tokenizer` truncates; a text that it does not truncate comes back as it is.
    """
    encoding = tokenizer.encode(text)
    while encoding.overflowing:
        text = text[: encoding.offsets[-2][1]].rpartition(" ")[0]
        encoding = tokenizer.encode(text)
    return text


def describe_corpus(texts: Sequence[str], tokenizer: Any) -> Results:
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    return {
        "texts": len(texts),
        "tokens": {"mean": round(float(np.mean(lengths)), 1), "least": min(lengths), "most": max(lengths)},
    }


def say(what: str) -> None:
    print(what, flush=True)


def intermediate(model: Path, scratch: Path) -> Path:
    """Return the folder as it is after an export: with the graph in OpenVINO's format, too, made from the same file."""
    folder = scratch / model.name
    if not folder.exists() and find_spec("openvino") is not None:
        import openvino

        folder.mkdir()
        for file in model.iterdir():
            if file.name != "openvino":  # what is written must not go through a link into the model's own folder
                (folder / file.name).symlink_to(file)
        (folder / "openvino").mkdir()
        graph = openvino.Core().read_model(str(model / "onnx" / "model.onnx"))
        openvino.save_model(graph, str(folder / "openvino" / "openvino_model.xml"), compress_to_fp16=False)
    return folder


def published_weights(model: Path) -> Path | None:
    """The default model's folder has a graph only; its published weights come from where the tests have them."""
    if model != MODEL:
        return None
    fetch = [sys.executable, "-m", "tests.real_models.fetch", "all-MiniLM-L6-v2"]
    done = subprocess.run(fetch, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    folder = Path(lines[-1].rpartition(": ")[2]) if done.returncode == 0 and lines else None
    return folder if folder is not None and (folder / "model.safetensors").is_file() else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="any folder with onnx/model.onnx (the default model)")
    parser.add_argument("--weights", type=Path, help="a folder with model.safetensors, for torch (the model's own)")
    parser.add_argument("--contestants", help=f"some of {','.join(entry.key for entry in ROSTER)}; ours always")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of turns (5)")
    parser.add_argument("--starts", type=int, default=3, help="starts of each (3)")
    parser.add_argument("--texts", type=int, default=320, help="texts of a corpus, of the mixed one half (320)")
    parser.add_argument("--singles", type=int, default=50, help="texts one by one in a round (50)")
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="a file of texts, one a line, instead")
    parser.add_argument(
        "--cores", help="scaling with so many cores, as 1,2,4 (powers of two, where there are more than 2)"
    )
    parser.add_argument("--quick", action="store_true", help="a look: two rounds, one start, fewer texts")
    parser.add_argument(
        "--environments", type=Path, default=ROOT / ".venv-bench", help="what make bench-environments made"
    )
    parser.add_argument("--json", type=Path, default=ROOT / "bench-results" / "compared.json", help="where results go")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.starts, options.texts, options.singles = 2, 1, 96, 20
    options.model = options.model.resolve()
    options.weights = options.weights.resolve() if options.weights else published_weights(options.model)
    return options


def scaled_cores(option: str | None, available: int) -> list[int]:
    if option:
        return [int(count) for count in option.split(",")]
    doubled = [2**power for power in range(available.bit_length()) if 2**power <= available]
    return sorted({*doubled, available}) if available > 2 else []


def main() -> None:
    if sys.platform != "linux":
        sys.exit("the comparison reads /proc and runs on Linux")
    options = parse_arguments()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        comparison = Comparison(options, Path(scratch))
        results = comparison.run()
        if counts := scaled_cores(options.cores, available_cores()):
            results["scaling"] = comparison.scaling(counts)
    results["minutes"] = round((time.monotonic() - began) / 60, 1)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
    from tests.benchmarks.report import full_table

    say(f"\n{full_table(results)}\n\n{results['minutes']} minutes, written to {options.json}")


if __name__ == "__main__":
    main()
