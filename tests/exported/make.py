"""Make the folders of this directory: published layouts with tiny random weights, safetensors and no graph.

For the environment of `make reference`: `python tests/exported/make.py`, then for each
`make reference ARGS="tests/exported/NAME --texts tests/exported/texts.json --write tests/exported/NAME.expected.json"`.
Configurations are those of the published repositories with small sizes; each class names its repository.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).parent
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:!?-'"


def main() -> None:
    torch.manual_seed(11)
    # sentence-transformers/all-mpnet-base-v2: longer texts than 128, where distances share the last bucket.
    mpnet = MPNetConfig(
        vocab_size=120,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=182,
        layer_norm_eps=1e-5,
    )
    make("mpnet", MPNetModel(mpnet), ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), limit=170)
    # nomic-ai/modernbert-embed-base: the window of the sliding layers is shorter than the texts.
    modernbert = ModernBertConfig(
        vocab_size=120,
        hidden_size=24,
        num_hidden_layers=5,
        num_attention_heads=3,
        intermediate_size=36,
        max_position_embeddings=192,
        local_attention=16,
        pad_token_id=1,
        bos_token_id=0,
        cls_token_id=0,
        eos_token_id=2,
        sep_token_id=2,
    )
    make("modernbert", ModernBertModel(modernbert), ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"), limit=180)


def make(name: str, model: PreTrainedModel, specials: tuple[str, ...], *, limit: int) -> None:
    """Save a model with a tokenizer of letters, mean pooling and L2."""
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            spread = 0.02 if parameter.ndim == 1 else 0.5 if "relative" in parameter_name else 0.25
            parameter.add_(torch.randn_like(parameter) * spread)
    bare = HERE / f".{name}"
    model.eval().save_pretrained(bare)
    tokenizer(specials, limit).save_pretrained(bare)
    transformer = Transformer(str(bare), max_seq_length=limit)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    shutil.rmtree(HERE / name, ignore_errors=True)
    SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save(str(HERE / name))
    (HERE / name / "README.md").unlink(missing_ok=True)
    shutil.rmtree(bare)


def tokenizer(specials: tuple[str, ...], limit: int) -> PreTrainedTokenizerFast:
    begin, pad, end, unknown, mask = specials
    pieces = [*specials, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "of", "and", "##ing", "##er"]
    fast = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token=unknown))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B {end}",
        special_tokens=[(begin, pieces.index(begin)), (end, pieces.index(end))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        cls_token=begin,
        pad_token=pad,
        sep_token=end,
        unk_token=unknown,
        mask_token=mask,
        model_max_length=limit,
    )


if __name__ == "__main__":
    main()
    texts = [
        "a",
        "",
        "hello world",
        "Embeddings of the same text, and of another: 3.14!",
        "the quick brown fox jumps over the lazy dog. " * 6,
        "pack my box with five dozen liquor jugs, and then another " * 3,
    ]
    (HERE / "texts.json").write_text(json.dumps(texts, indent=1) + "\n", encoding="utf-8")
