"""Which architectures there are, and how each is read from a checkpoint's folder.

An architecture is one class that fulfils `Encoder`. B, T and D are batch, tokens and hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeVar

from embed_worker.encoders.bert import Bert
from embed_worker.encoders.bert_layouts import ABSOLUTE_MODEL_TYPES, MODEL_TYPES
from embed_worker.encoders.checkpoint import (
    ExportError,
    Floats,
    Int64,
    Weights,
    chosen,
    has_own_code,
    open_weights,
    read_json_object,
    transformer_folder,
)
from embed_worker.encoders.modernbert import ModernBert
from embed_worker.encoders.onnx_writer import Storage
from embed_worker.encoders.qwen3 import Qwen3
from embed_worker.model_files.safetensors import Tensor


class Encoder(Protocol):
    """A model read from its folder, as a graph and as its own reference."""

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""

    @property
    def token_types(self) -> int:
        """The number of token types; 0 where the model has none."""

    @property
    def max_tokens(self) -> int:
        """The longest sequence for which there are positions."""

    @property
    def counts_tokens(self) -> bool:
        """Whether positions are counted over the tokens, so that padding may be on either side."""

    @property
    def tensors(self) -> Weights:
        """The weights."""

    def graph(self, storage: Storage, opset: int, data: BinaryIO | None = None) -> Any:
        """Build the `onnx.ModelProto`.

        Args:
            storage: How weight matrices and tables are stored.
            opset: Of the default operator set.
            data: A file for the weights, to lie beside the graph; None: they are in the graph.
        """

    def forward(self, ids: Int64, types: Int64) -> Floats:
        """Compute the (T, D) last hidden state of one sequence, (T,) ids and types, with numpy alone."""


_Encoder = TypeVar("_Encoder", covariant=True)
Reader: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Tensor]], _Encoder]

ENCODERS: Mapping[str, Reader[Encoder]] = {
    **dict.fromkeys(MODEL_TYPES, Bert.read),
    "modernbert": ModernBert.read,
    "qwen3": Qwen3.read,
}
# Those of which the accelerators have forms of their own.
ACCELERATED: Mapping[str, Reader[Bert | Qwen3]] = {
    **dict.fromkeys(ABSOLUTE_MODEL_TYPES, Bert.read),
    "qwen3": Qwen3.read,
}


def reader_for(folder: Path, config: Mapping[str, Any], readers: Mapping[str, Reader[_Encoder]]) -> Reader[_Encoder]:
    """Return how to read the architecture that a folder's config.json names.

    Raises:
        ExportError: It is none of them, or the folder brings code of its own for it.
    """
    reader = chosen(config, "model_type", None, readers)
    if has_own_code(config):
        raise ExportError(f"{folder} brings code of its own for its model (auto_map), which is neither read nor run")
    return reader


def read_encoder(folder: Path) -> Encoder:
    """Read config.json and the weights with the class of the architecture that the first names.

    Raises:
        ExportError: One of them is missing or damaged, or no class is for this architecture.
    """
    home = transformer_folder(folder)
    config = read_json_object(home / "config.json")
    return reader_for(folder, config, ENCODERS)(config, open_weights(home))
