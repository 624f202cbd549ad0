"""Models come and go in one process while thousands of requests run: none is lost, none answered by another model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.worker.harness import WorkerProcess, matrix_of
from tests.worker.test_model_folder import MODELS

REQUESTS = 5000
SWAPS = 20
TEXTS = ["a", "two words", "a text of some more words than the others", "größer", ""]


def put(folder: Path, source: str) -> None:
    """Put another model where one lies, whole at every moment."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.copytree(MODELS / source, fresh)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        folder.rename(old)
        shutil.rmtree(old)
    fresh.rename(folder)


def vectors_of(source: str) -> tuple[str, list[np.ndarray[Any, Any]]]:
    """Fingerprint, and the vector of each text, from a worker that serves nothing else."""
    with WorkerProcess("--model", str(MODELS / source), model=None) as worker:
        answer = worker.ask({"inputs": TEXTS})
        return answer["fingerprint"], list(matrix_of(answer))


def test_a_model_is_swapped_under_load_and_nothing_is_lost_or_mixed(tmp_path: Path) -> None:
    versions = ["bert-mean", "bert-cls-new"]
    expected = [vectors_of(source) for source in versions]
    steady = vectors_of("onnx-only-max")
    swapped = tmp_path / "swapped"
    put(swapped, versions[0])
    arguments = ["--model", str(MODELS / "onnx-only-max"), "--model", str(swapped), "--models-dir", str(tmp_path)]
    with WorkerProcess(*arguments, model=None) as worker:
        promised: dict[int, tuple[str, np.ndarray[Any, Any]]] = {}
        answered: dict[int | str, dict[str, Any]] = {}

        def receive_until(wanted: int | str) -> None:
            while wanted not in answered:
                answer = worker.receive()
                assert answer["id"] not in answered
                answered[answer["id"]] = answer

        worker.send({"id": "load -1", "method": "load_model", "model": "swapped"})
        per_swap = REQUESTS // SWAPS
        for swap in range(SWAPS):
            # Everything before the swap is still on its way when the model's folder is replaced.
            for number in range(swap * per_swap, (swap + 1) * per_swap):
                place = number % len(TEXTS)
                fingerprint, vectors = steady if number % 3 == 0 else expected[swap % 2]
                model = "onnx-only-max" if number % 3 == 0 else "swapped"
                promised[number] = (fingerprint, vectors[place])
                worker.send({"id": number, "model": model, "inputs": TEXTS[place], "encoding_format": "base64"})
            receive_until(f"load {swap - 1}")  # a folder may be replaced once it is read
            put(swapped, versions[(swap + 1) % 2])
            worker.send(
                {"id": f"unload {swap}", "method": "unload_model", "model": "swapped"},
                {"id": f"broken {swap}", "method": "load_model", "model": "nowhere"},
                {"id": f"load {swap}", "method": "load_model", "model": "swapped"},
            )
        for promise in promised:
            receive_until(promise)
        receive_until(f"load {SWAPS - 1}")
        for number, (fingerprint, vector) in promised.items():
            assert answered[number]["status"] == "ok", answered[number]
            assert answered[number]["fingerprint"] == fingerprint
            np.testing.assert_allclose(matrix_of(answered[number])[0], vector, atol=1e-5)
        for swap in range(SWAPS):
            assert answered[f"unload {swap}"]["status"] == "ok"
            assert answered[f"load {swap}"]["fingerprint"] == expected[(swap + 1) % 2][0]
            assert answered[f"broken {swap}"]["code"] == "model_not_found"
        worker.close_input()
        assert worker.wait() == 0
        assert "Traceback" not in worker.stderr


def test_a_model_that_fails_harms_no_other_at_the_start_or_later(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(MODELS / "bert-cls-new", broken)
    (broken / "onnx/model.onnx").write_bytes(b"not a graph")
    with WorkerProcess("--model", str(broken), "--models-dir", str(tmp_path)) as worker:
        assert worker.ask({"method": "info"})["models"] == ["bert-mean"]
        assert worker.ask({"inputs": "a"})["model"] == "bert-mean"
        # Asked while it is being loaded, one hears why it cannot be; later, that it is not there.
        assert worker.ask({"inputs": "a", "model": "broken"})["code"] in ("model_load_failed", "model_not_found")
        failed = worker.ask({"method": "load_model", "model": "broken"})
        assert failed["code"] == "model_load_failed"
        shutil.copyfile(MODELS / "bert-cls-new/onnx/model.onnx", broken / "onnx/model.onnx")
        assert worker.ask({"method": "load_model", "model": "broken"})["status"] == "ok"  # it is tried again
        assert worker.ask({"inputs": "a", "model": "broken"})["status"] == "ok"
        assert worker.ask({"method": "info"})["models"] == ["bert-mean", "broken"]
