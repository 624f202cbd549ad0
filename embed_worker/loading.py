"""From a folder to a model that has run: verify, resolve, tokenizer, graph, warm-up. It imports everything heavy."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embed_worker.accelerators.choose import choose_backend
from embed_worker.config import ModelOptions, RuntimeOptions, Verify
from embed_worker.errors import ModelError
from embed_worker.inference.dense import load_dense
from embed_worker.inference.engine import Engine, LoadedModel
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.fingerprint import fingerprint
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.manifest import Manifest, ManifestError, verify

_log = logging.getLogger(__name__)


def load_model(folder: Path, options: ModelOptions, runtime: RuntimeOptions, threads: int) -> LoadedModel:
    """Load a folder: verify, resolve, tokenizer, graph, warm-up.

    Raises:
        ModelError: The folder cannot be used; one sentence says why.
        ConfigError: The runtime options cannot be met.
    """
    started = time.monotonic()
    try:
        manifest = Manifest.read(folder) if runtime.verify is not Verify.NEVER else None
        if manifest is not None:
            verify(folder, manifest, runtime.verify)
    except ManifestError as error:
        raise ModelError(str(error)) from error
    plan = read_model_folder(folder, options)
    for warning in plan.warnings:
        _log.warning("model=%s %s", plan.name, warning)
    with ThreadPoolExecutor(1) as beside:  # onnxruntime leaves the interpreter lock while it reads the graph
        opening = beside.submit(OnnxBackend.load, plan, runtime, threads=threads)
        tokenizer = TextTokenizer.load(plan)
        cpu = opening.result()
    backend = choose_backend(cpu, plan, tokenizer, runtime, threads)
    # A graph that pools itself has its Dense modules inside.
    engine = Engine.warm_up(plan, tokenizer, backend, () if backend.is_end_to_end else load_dense(plan))
    if engine.one_by_one is not None:
        _log.warning("model=%s each text runs by itself: %s", plan.name, engine.one_by_one)
    if engine.pad_left != plan.pad_left:
        _log.warning("model=%s texts are padded on the right: on the left the graph gives other vectors", plan.name)
    model = LoadedModel(name=plan.name, engine=engine, fingerprint=fingerprint(plan, manifest))
    _log.info(
        "model loaded name=%s dimension=%d fingerprint=%s provider=%s ms=%.0f",
        model.name,
        engine.dimension,
        model.fingerprint,
        backend.provider.chosen,
        (time.monotonic() - started) * 1e3,
    )
    return model
