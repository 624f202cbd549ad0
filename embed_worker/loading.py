"""From a folder to a model that has run: verify, resolve, tokenizer, graph, warm-up. It imports everything heavy."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embed_worker.config import ModelOptions, RuntimeOptions
from embed_worker.dense import load_dense
from embed_worker.engine import Engine, LoadedModel
from embed_worker.errors import ModelError
from embed_worker.external_data import external_files
from embed_worker.manifest import Manifest, ManifestError, Verify, file_sha256, verify
from embed_worker.model_folder import read_model_folder
from embed_worker.model_plan import ModelPlan
from embed_worker.onnx_file import read_outline
from embed_worker.providers import accelerate
from embed_worker.session import OnnxBackend
from embed_worker.tokenizer import TextTokenizer

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
    backend = accelerate(cpu, plan, tokenizer, runtime, threads)
    # A graph that pools itself has its Dense modules inside.
    engine = Engine.warm_up(plan, tokenizer, backend, () if backend.is_end_to_end else load_dense(plan))
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


def fingerprint(plan: ModelPlan, manifest: Manifest | None) -> str:
    """Name the vector space of a plan in 16 hex digits: everything on disk that shapes a vector, nothing else.

    The provider, the precision it computes in and the machine have no part in it.
    """
    data = external_files(plan.graph, read_outline(plan.graph).external)
    files = [
        plan.graph,
        *data,
        plan.tokenizer_file,
        *(layer.weights for layer in plan.dense if layer.weights.is_file()),
    ]
    shape: dict[str, object] = {
        "files": [_content_hash(file, plan.folder, manifest) for file in files],
        "pooling": list(plan.pooling),
        "include_prompt": plan.include_prompt,
        "dense": [[layer.activation, layer.use_residual] for layer in plan.dense],
        "normalize": plan.normalize,
        "max_tokens": plan.max_tokens,
        "truncate_left": plan.truncate_left,
        "prompts": dict(sorted(plan.prompts.items())),
        "default_prompt_name": plan.default_prompt_name,
    }
    if plan.lowercase:
        shape["lowercase"] = True
    canonical = json.dumps(shape, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _content_hash(file: Path, folder: Path, manifest: Manifest | None) -> str:
    if manifest is not None and (entry := manifest.files.get(file.relative_to(folder).as_posix())) is not None:
        return entry.sha256
    return file_sha256(file)
