"""From a folder to a model that has run: verify, resolve, tokenizer, graph, warm-up. It imports everything heavy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embed_worker.accelerators.choose import choose_backend
from embed_worker.config import ModelOptions, RuntimeOptions, Verify
from embed_worker.errors import ModelError
from embed_worker.inference.backend import Backend
from embed_worker.inference.dense import load_modules
from embed_worker.inference.engine import Engine, LoadedModel
from embed_worker.inference.onnx_backend import OnnxBackend
from embed_worker.inference.static_backend import StaticBackend
from embed_worker.inference.tokenizer import TextTokenizer
from embed_worker.model_files.fingerprint import fingerprint, unlisted_files
from embed_worker.model_files.folder import read_model_folder
from embed_worker.model_files.manifest import Manifest, ManifestError, verify
from embed_worker.model_files.plan import ModelPlan

_log = logging.getLogger(__name__)


def load_model(
    folder: Path,
    options: ModelOptions,
    runtime: RuntimeOptions,
    threads: int,
    note: Callable[[str], None] = lambda step: None,
) -> LoadedModel:
    """Load a folder: verify, resolve, tokenizer, graph, warm-up.

    Args:
        folder: The model's.
        options: What was decided about it on the command line.
        runtime: How it is to be run.
        threads: Cores that a batch alone may use.
        note: Told what is being done.

    Raises:
        ModelError: The folder cannot be used; one sentence says why.
        ConfigError: The runtime options cannot be met.
    """
    started = time.monotonic()
    note("verifying its files")
    verified = _verify(folder, options, runtime.verify)
    note("reading its folder")
    plan = read_model_folder(folder, options)
    warnings = [*plan.warnings, *_warn_of_unlisted(plan, verified, runtime.verify)]
    for warning in warnings:
        _log.warning("model=%s %s", plan.name, warning)
    note("opening its graph and its tokenizer, and proving its provider")
    tokenizer, backend = _open(plan, runtime, threads)
    note("warming up")
    engine = Engine.warm_up(plan, tokenizer, backend, load_modules(plan, is_pooled=backend.is_end_to_end))
    if engine.one_by_one is not None:
        _log.warning("model=%s each text runs by itself: %s", plan.name, engine.one_by_one)
    if engine.pad_left != plan.pad_left:
        _log.warning("model=%s texts are padded on the right: on the left the graph gives other vectors", plan.name)
    model = LoadedModel(name=plan.name, engine=engine, fingerprint=fingerprint(plan, verified or {}))
    _log.info(
        "model loaded name=%s dimension=%d fingerprint=%s provider=%s ms=%.0f",
        model.name,
        model.dimension,
        model.fingerprint,
        backend.provider.chosen,
        (time.monotonic() - started) * 1e3,
    )
    return model


def _verify(folder: Path, options: ModelOptions, mode: Verify) -> dict[str, str] | None:
    """Verify a folder; None where nothing says what its files should be."""
    try:
        manifest = Manifest.read(folder) if mode is not Verify.NEVER else None
        return None if manifest is None else verify(folder, manifest, mode, allow_links=options.allow_links)
    except ManifestError as error:
        raise ModelError(str(error)) from error


def _warn_of_unlisted(plan: ModelPlan, verified: dict[str, str] | None, mode: Verify) -> list[str]:
    """Return a warning for each file that shapes vectors and that the manifest does not list; `ALWAYS` refuses them."""
    if verified is None:
        return []
    names = unlisted_files(plan, verified)
    problems = [f"{name} is not in manifest.json: nothing says whether it is what it was" for name in names]
    if problems and mode is Verify.ALWAYS:
        raise ModelError(f"the model folder {plan.folder.name!r} cannot be verified: {problems[0]}")
    return problems


def _open(plan: ModelPlan, runtime: RuntimeOptions, threads: int) -> tuple[TextTokenizer, Backend]:
    if plan.is_static:
        return TextTokenizer.load(plan), StaticBackend.load(plan, runtime)
    with ThreadPoolExecutor(1) as beside:  # onnxruntime leaves the interpreter lock while it reads the graph
        opening = beside.submit(OnnxBackend.load, plan, runtime, threads=threads)
        tokenizer = TextTokenizer.load(plan)
        cpu = opening.result()
    return tokenizer, choose_backend(cpu, plan, tokenizer, runtime, threads)
