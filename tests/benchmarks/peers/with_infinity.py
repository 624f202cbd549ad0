"""infinity's engine inside a program, without its HTTP server: torch, float32, its own batching."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import torch
from infinity_emb import AsyncEmbeddingEngine, EngineArgs

from tests.benchmarks.peers.serve import Embed, Settings, serve


def load(settings: Settings) -> Embed:
    torch.set_num_threads(settings.threads)
    loop = asyncio.new_event_loop()
    arguments = EngineArgs(
        model_name_or_path=settings.model, engine="torch", device="cpu", dtype="float32", bettertransformer=False,
        model_warmup=False, batch_size=32,
    )  # fmt: skip
    engine = AsyncEmbeddingEngine.from_args(arguments)
    loop.run_until_complete(engine.astart())

    def embed(texts: list[str]) -> Any:
        vectors, _ = loop.run_until_complete(engine.embed(sentences=texts))
        return np.stack(vectors)

    return embed


if __name__ == "__main__":
    serve(load, "infinity-emb", "sentence-transformers", "torch")
