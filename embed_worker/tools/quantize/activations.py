"""What a graph multiplies by its weights, on some texts: a sample that quantisation is decided by."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from embed_worker.inference import ort
from embed_worker.inference.backend import ProviderReport
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.token_batch import TokenBatch
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.onnx_outline import Outline
from embed_worker.model_files.plan import ModelPlan
from embed_worker.tools.quantize.int8 import Float32, FloatGraph
from embed_worker.tools.texts import CALIBRATION_TEXTS

_ROWS_OF_A_TEXT = 8


def sample_activations(graph: FloatGraph, plan: ModelPlan) -> dict[str, Float32]:
    """Run the float graph on texts and keep some rows of whatever is multiplied by weights: (rows, K) each.

    What has not one row for each token, after a pooling for instance, is left out, and so stays as it is.

    Raises:
        ModelError: The graph does not run.
    """
    tokenizer = TextTokenizer.load(plan)
    cpu = ProviderReport(asked="cpu", chosen="CPUExecutionProvider", reason="asked for")
    rows: dict[str, list[Float32]] = {name: [] for name in graph.products}
    with _listening_session(graph) as session:
        backend = OnnxBackend(lambda threads: session, cpu, plan, threads=1, outline=Outline())
        for text in tokenizer.encode(CALIBRATION_TEXTS, ""):
            backend.embed(TokenBatch(text.ids[None], np.ones((1, len(text.ids)), np.int64)), exclusive=False)
            for name, values in session.heard.items():
                found = values.reshape(-1, values.shape[-1])
                if len(found) != len(text.ids):
                    rows.pop(name, None)
                elif name in rows:
                    picked = np.linspace(0, len(found) - 1, min(_ROWS_OF_A_TEXT, len(found))).astype(int)
                    rows[name].append(found[picked])
    return {name: np.concatenate(pieces) for name, pieces in rows.items()}


class _ListeningSession:
    """An onnxruntime session that keeps, of each run, the tensors that it listens to: `heard`, by name."""

    def __init__(self, session: Any, names: Sequence[str]) -> None:
        self._session = session
        self._names = list(names)
        self.heard: dict[str, Float32] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def close(self) -> None:
        """Let go of the session, whoever still holds this: Windows removes no file that is mapped."""
        self._session = None

    def run(self, names: Sequence[str], feeds: Any) -> list[Any]:
        values = self._session.run([*names, *self._names], feeds)
        self.heard = dict(zip(self._names, values[len(names) :], strict=True))
        return list(values[: len(names)])


@contextmanager
def _listening_session(graph: FloatGraph) -> Iterator[_ListeningSession]:
    """Open a graph that tells what is multiplied by weights. On one thread, so that sums are always added alike."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        with graph.listening():
            # Beside the graph, because one file holds 2 GB at most. Saving takes the data from the model, too.
            onnx.save(graph.model, file, save_as_external_data=True, location="weights")
            onnx.external_data_helper.load_external_data_for_model(graph.model, folder)
        session = _ListeningSession(ort.open_session(file), list(graph.products))
        try:
            yield session
        finally:
            session.close()
