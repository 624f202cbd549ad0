"""fastembed on the same ONNX file, by a custom model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

from tests.benchmarks.peers.serve import Embed, Settings, serve

_POOLING = {"mean": PoolingType.MEAN, "cls": PoolingType.CLS}


def load(settings: Settings) -> Embed:
    name = f"local/{Path(settings.model).name}"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=_POOLING[settings.pooling],
        normalization=True,
        sources=ModelSource(hf=name),
        dim=settings.dimension,
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding(name, specific_model_path=settings.model, threads=settings.threads)
    batch = int(settings.variant)
    return lambda texts: np.stack(list(model.embed(texts, batch_size=batch)))


if __name__ == "__main__":
    serve(load, "fastembed", "onnxruntime", "tokenizers")
