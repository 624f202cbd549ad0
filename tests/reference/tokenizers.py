"""Write tests/reference/tokenizers.json: what transformers makes of tokenizers of every class and setting, in ids.

For the environment of `make reference`: `python -m tests.reference.tokenizers`. test_tokenizer_classes.py makes each of
the folders again and compares. A variant is a base, a class, an architecture and changes of the two files.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from tests.reference.tokenizer_variants import CORPUS, TEXTS, VARIANTS, files_of

OUT = Path(__file__).with_name("tokenizers.json")
LIMIT = 8


def word_piece(special: list[str], cls: str, sep: str) -> Tokenizer:
    """Train the tokenizer of a BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=220, special_tokens=special))
    ids = [(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B {sep}", special_tokens=ids
    )
    return tokenizer


def unigram(special: list[str], template: str) -> Tokenizer:
    """Train the tokenizer of an XLM-R, with the pre-tokenizer that some publish: Metaspace alone."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in template.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, pair=None, special_tokens=ids)
    return tokenizer


def byte_level(special: list[str]) -> Tokenizer:
    """Train the tokenizer of a GPT-2 or RoBERTa."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback(special: list[str]) -> Tokenizer:
    """Train the tokenizer of a Llama or Gemma."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=360, special_tokens=pieces))
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(document))


def bases() -> dict[str, Any]:
    """Return tokenizer.json of each base."""
    bert = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    roberta = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    found = {
        "bert": word_piece(bert, "[CLS]", "[SEP]"),
        "mpnet": word_piece([*roberta, "[UNK]"], "<s>", "</s>"),
        "xlm-roberta": unigram(roberta, "<s> $A </s>"),
        "t5": unigram(["<pad>", "</s>", "<unk>"], "$A </s>"),
        "albert": unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], "[CLS] $A [SEP]"),
        "deberta-v2": unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "<unk>"], "[CLS] $A [SEP]"),
        "roberta": byte_level(roberta),
        "gpt2": byte_level(["<|endoftext|>", "<|im_start|>", "<|startoftext|>", "<|padding|>", "[CLS]", "[SEP]"]),
        "llama": byte_fallback(["<unk>", "<s>", "</s>"]),
        "gemma": byte_fallback(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]),
    }
    return {name: json.loads(tokenizer.to_str()) for name, tokenizer in found.items()}


def ids_of(base: Any, variant: dict[str, Any]) -> dict[str, Any] | None:
    """Return the ids of the texts, whole and cut; None where transformers cannot make the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files_of(base, variant).items():
            Path(folder, name).write_text(content, "utf-8")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # noqa: BLE001 - what it raises then is its own matter
            print(f"{variant}: {error!r:.200}")
            return None
        ids = [_try(tokenizer, text) for text in TEXTS]
        cut = [_try(tokenizer, text, truncation=True, max_length=LIMIT) for text in TEXTS]
        return {"class": type(tokenizer).__name__, "ids": ids, "cut": cut}


def _try(tokenizer: Any, text: str, **options: Any) -> list[int] | None:
    try:
        return list(tokenizer([text], **options)["input_ids"][0])
    except Exception:  # noqa: BLE001 - a text that the vocabulary has no token for
        return None


def main() -> None:
    """Write the file."""
    documents = json.loads(OUT.read_bytes())["bases"] if OUT.exists() else bases()  # training gives others each time
    found = [{**variant, "right": ids_of(documents[variant["base"]], variant)} for variant in VARIANTS]
    document = {"transformers": transformers.__version__, "limit": LIMIT, "bases": documents, "variants": found}
    OUT.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    print(f"{len(found)} variants, {OUT.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
