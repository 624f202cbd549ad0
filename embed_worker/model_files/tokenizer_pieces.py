"""The pieces that tokenizers are put together of, each in the form that tokenizer.json has for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QWEN2_SPLIT = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
QWEN3_5_SPLIT = QWEN2_SPLIT.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}")
CLIP_SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def sequence(kind: str, steps: list[Any]) -> dict[str, Any]:
    """Return steps that follow each other; `kind` is what tokenizer.json calls their list."""
    return {"type": "Sequence", kind: steps}


def metaspace(scheme: str, *, split: bool = True) -> dict[str, Any]:
    """Return the splitting at white space that writes it as ▁; `scheme` says where one is put before a text."""
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def byte_level(*, add_prefix_space: bool | None, use_regex: bool = True) -> dict[str, Any]:
    """Return the splitting that writes each byte as a character."""
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def regex_split(pattern: str, behavior: str, *, invert: bool) -> dict[str, Any]:
    """Return a splitting by an expression: at its matches, or with `invert` at what is between them."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """Return a replacement in the text."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def precompiled(charsmap: str | None) -> list[Any]:
    """Return sentencepiece's own normaliser, where a file has its table."""
    return [] if charsmap is None else [{"type": "Precompiled", "precompiled_charsmap": charsmap}]


def words_of_sentencepiece(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the splitting into words of the classes that follow sentencepiece."""
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    return sequence("pretokenizers", [{"type": "WhitespaceSplit"}, metaspace(scheme)])


def bpe(**members: Any) -> dict[str, Any]:
    """Return the members of a BPE model, the usual ones but for those that are given."""
    usual = {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    return usual | {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False} | members


def unigram(unk_id: int) -> dict[str, Any]:
    """Return the members of a Unigram model; `unk_id` is the row of its unknown token."""
    return {"unk_id": unk_id, "byte_fallback": False}
