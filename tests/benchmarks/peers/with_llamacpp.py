"""llama.cpp inside a program, by its Python package; `python -m … MODEL FILE` writes a model in its format, GGUF.

Models of the BERT family with a WordPiece vocabulary. The matrices are float16 in the file, as its own converter makes
them by default for such models, and everything else float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.benchmarks.peers.serve import Embed, Settings, serve

_BATCH_TOKENS = 512  # what a call of the library computes at once, its default; a text may not be longer
_POOLING = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS}
_WORD_START = "\u2581"  # llama.cpp marks the beginnings of words, WordPiece what goes on


def load(settings: Settings) -> Embed:
    from llama_cpp import Llama

    model = Llama(
        settings.model,
        embedding=True,
        n_ctx=_BATCH_TOKENS,
        n_batch=_BATCH_TOKENS,
        n_ubatch=_BATCH_TOKENS,
        n_threads=settings.threads,
        n_threads_batch=settings.threads,
        pooling_type=int(_POOLING[settings.pooling]),
        flash_attn=True,  # without it 512 tokens of many texts took three times as long
        verbose=False,
    )
    return lambda texts: np.asarray(model.embed(texts, normalize=True), np.float32)


def write_gguf(model: Path, file: Path) -> None:
    """Write a folder of sentence-transformers with `model.safetensors` in llama.cpp's format."""
    from safetensors.numpy import load_file

    config: dict[str, Any] = json.loads((model / "config.json").read_text("utf-8"))
    tokenizer: dict[str, Any] = json.loads((model / "tokenizer.json").read_text("utf-8"))
    if config["model_type"] != "bert" or tokenizer["model"]["type"] != "WordPiece":
        sys.exit("only models of the BERT family with a WordPiece vocabulary are written here")
    layers = config["num_hidden_layers"]
    writer = gguf.GGUFWriter(file, "bert")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    pieces = sorted(tokenizer["model"]["vocab"].items(), key=lambda piece: piece[1])
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_token_list([piece if number in special else as_llamacpp(piece) for piece, number in pieces])
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[number in special] for _, number in pieces])
    numbers = {content: number for number, content in special.items()}
    writer.add_bos_token_id(numbers["[CLS]"])
    writer.add_sep_token_id(numbers["[SEP]"])
    writer.add_unk_token_id(numbers["[UNK]"])
    writer.add_pad_token_id(numbers["[PAD]"])

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    for name, tensor in load_file(model / "model.safetensors").items():
        plain = name.removeprefix("bert.")
        if plain.startswith("pooler.") or plain.endswith("position_ids"):
            continue
        told = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        if told is None:
            sys.exit(f"llama.cpp has no tensor like {name}")
        is_matrix = tensor.ndim == 2 and not told.startswith(("position_embd", "token_types"))
        writer.add_tensor(told, tensor.astype(np.float16 if is_matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_llamacpp(piece: str) -> str:
    return piece[2:] if piece.startswith("##") else _WORD_START + piece


if __name__ == "__main__":
    if len(sys.argv) == 3:
        write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        serve(load, "llama-cpp-python")
