"""What sentence-transformers makes of a folder: `python -m tests.reference.arbiter FOLDER OUT.json --sets FILE.json`.

For the environment of `make reference`; it imports nothing of the two packages. `--sets` is a list of
`{"texts": […], "request": {…}}`; the answer repeats them with vectors, counts and versions. Each text is run alone, in
float32 on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import sentence_transformers
import torch
import transformers
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tests.reference.graph_weights import missing_weights, with_weights

Float32: TypeAlias = NDArray[np.float32]

_NO_LIMIT = 10**9


def main() -> None:
    """Load the folder once, run every set, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--prompts", type=json.loads, help="for a folder that publishes none, as JSON")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as beside:
        folder = with_weights(args.folder, Path(beside))
        model, found = load(folder), _weights(folder)
        if args.prompts is not None and not any(model.prompts.values()):
            model.prompts |= args.prompts
        if folder != args.folder and (missing := missing_weights(model[0].auto_model, folder / "model.safetensors")):
            parser.error(f"the graph of {args.folder} has no {', '.join(missing)}")
    sets = [
        run_set(model, members["texts"], members.get("request", {})) for members in json.loads(args.sets.read_bytes())
    ]
    document = {"format": 1, "reference": _versions(), "model": describe(model) | {"weights": found}, "sets": sets}
    args.out.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def load(folder: Path) -> SentenceTransformer:
    """Load a folder in float32, whatever its configuration says, with the plain attention."""
    kwargs = {"attn_implementation": "eager", "dtype": torch.float32}
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=kwargs).eval().float()


def describe(model: SentenceTransformer) -> dict[str, Any]:
    """Return what sentence-transformers understood."""
    pooling = [module for module in model if type(module).__name__ == "Pooling"]
    modes = [mode for module in pooling for mode in _listed(module.pooling_mode)]
    return {
        "dimension": model.get_embedding_dimension(),
        "max_tokens": _limit(model),
        "modules": [type(module).__name__ for module in model],
        "pooling": modes,
        "normalize": bool(_trailing_normalize(model)),
        "prompts": {name: prompt for name, prompt in model.prompts.items() if prompt is not None},
        "default_prompt_name": model.default_prompt_name,
    }


def run_set(model: SentenceTransformer, texts: list[str], request: dict[str, Any]) -> dict[str, Any]:
    """Embed each text alone as the request asks, and count its tokens."""
    prompt = _prompt(model, request)
    cut = [_count(model, text, prompt) for text in texts]
    with _without_limit(model):
        tokens = [_count(model, text, prompt) for text in texts]
    return {
        "request": request,
        "texts": texts,
        "tokens": tokens,
        "truncated": [index for index, count in enumerate(tokens) if count > cut[index]],
        "embeddings": [[float(str(number)) for number in row] for row in embed(model, texts, request)],
    }


@contextlib.contextmanager
def _without_limit(model: SentenceTransformer) -> Iterator[None]:
    """Count whole texts; a table of vectors has no limit but for the truncation that its tokenizer was saved with."""
    head = model[0]
    limit = getattr(head, "max_seq_length", None)
    if limit is None or limit == float("inf"):
        truncation = getattr(head.tokenizer, "truncation", None)
        if truncation is not None:
            head.tokenizer.no_truncation()
        yield
        if truncation is not None:
            head.tokenizer.enable_truncation(**truncation)
        return
    calls = getattr(head, "processing_kwargs", {})
    head.processing_kwargs = {
        part: {key: value for key, value in given.items() if key != "max_length"} for part, given in calls.items()
    }
    model.max_seq_length = _NO_LIMIT
    yield
    model.max_seq_length = limit
    head.processing_kwargs = calls


def embed(model: SentenceTransformer, texts: list[str], request: dict[str, Any]) -> Float32:
    """Return (B, D) float32. `dimensions` cuts before a Normalize at the end, which then normalises what is left."""
    prompts = {name: request[name] for name in ("prompt", "prompt_name") if request.get(name) is not None}
    dimensions, normalize = request.get("dimensions"), request.get("normalize")
    if dimensions is None and normalize is None:
        return np.concatenate([model.encode([text], **prompts) for text in texts])
    normalizes = _trailing_normalize(model)
    bare = SentenceTransformer(
        modules=list(model)[: len(model) - normalizes],
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
        device="cpu",
    )
    size = dimensions if dimensions is not None else model.truncate_dim
    rows = np.concatenate([bare.encode([text], **prompts) for text in texts]).astype(np.float64)[:, :size]
    if normalize if normalize is not None else normalizes:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows.astype(np.float32)


def _prompt(model: SentenceTransformer, request: dict[str, Any]) -> str | None:
    if request.get("prompt") is not None:
        return str(request["prompt"])
    name = request.get("prompt_name") or model.default_prompt_name
    return None if name is None else model.prompts[name]


def _count(model: SentenceTransformer, text: str, prompt: str | None) -> int:
    features = model.preprocess([text], prompt=prompt)
    if "attention_mask" in features:
        return int(features["attention_mask"].sum())
    return int(features["input_ids"].shape[-1])


def _limit(model: SentenceTransformer) -> int | None:
    limit = model.max_seq_length
    return None if limit is None or limit >= _NO_LIMIT else int(limit)


def _trailing_normalize(model: SentenceTransformer) -> int:
    """Count the Normalize modules at the end: none, or one."""
    return int(type(model[len(model) - 1]).__name__ == "Normalize")


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _weights(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each weights file by its path."""
    files = sorted(file for file in folder.rglob("*.safetensors") if file.is_file())
    return {file.relative_to(folder).as_posix(): _sha256(file) for file in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _versions() -> str:
    return (
        f"sentence-transformers {sentence_transformers.__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__}, float32 on CPU, each text alone"
    )


if __name__ == "__main__":
    main()
