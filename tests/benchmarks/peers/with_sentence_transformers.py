"""sentence-transformers, batches of 32, which it sorts by length; the variant is its backend or torch's precision."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from tests.benchmarks.peers.serve import Embed, Settings, serve


def load(settings: Settings) -> Embed:
    torch.set_num_threads(settings.threads)
    backends: dict[str, dict[str, Any]] = {
        "float32": {},
        "bfloat16": {"model_kwargs": {"dtype": torch.bfloat16}},
        "onnx": {"backend": "onnx", "model_kwargs": {"provider": "CPUExecutionProvider"}},
        "openvino": {"backend": "openvino"},
    }
    model = SentenceTransformer(settings.model, device="cpu", **backends[settings.variant])

    def embed(texts: list[str]) -> Any:
        return model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)

    return embed


if __name__ == "__main__":
    serve(load, "sentence-transformers", "transformers", "torch")
