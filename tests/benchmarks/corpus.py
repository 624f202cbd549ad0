"""Texts that every Python installation has: docstrings of the standard library, cut to three profiles of length."""

from __future__ import annotations

import ast
import functools
import math
import random
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

# Tokens, special tokens included, between which the texts of a profile lie.
PROFILES = {"short": (8, 48), "mixed": (4, 320), "long": (256, 512)}
# Of the comparison with others: short texts; many of few tokens and few of many; sentences like those of the STS
# benchmark.
COMPARED = {"short": (8, 48), "mixed": (4, 256), "STS-like": (8, 22)}


def read_corpus(file: Path) -> list[str]:
    """Read one text a line."""
    return [line for line in file.read_text("utf-8").splitlines() if line.strip()]


def docstring_corpus(profile: str, count: int, tokenizer: Tokenizer, *, seed: int = 1) -> list[str]:
    """Cut docstrings to texts whose lengths are spread over a profile; the same seed gives the same texts.

    Args:
        profile: One of `PROFILES`.
        count: How many.
        tokenizer: Measures the lengths.
        seed: Of the cuts.
    """
    choice = random.Random(seed)
    return _cut(count, tokenizer, PROFILES[profile], choice, choice.randint)


def compared_corpora(count: int, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """Return the corpora of `COMPARED`; of the mixed one half as many texts, the shorter the more of them."""
    corpora = {}
    for name, bounds in COMPARED.items():
        choice = random.Random(name)
        if name == "mixed":
            corpora[name] = _cut(count // 2, tokenizer, bounds, choice, functools.partial(_log_uniform, choice))
        else:
            corpora[name] = _cut(count, tokenizer, bounds, choice, choice.randint)
    return corpora


def _log_uniform(choice: random.Random, low: int, high: int) -> int:
    return round(low * math.exp(choice.random() * math.log(high / low)))


def _cut(
    count: int, tokenizer: Tokenizer, bounds: tuple[int, int], choice: random.Random, length: Callable[[int, int], int]
) -> list[str]:
    low, high = bounds
    words = [word for text in _docstrings() for word in text.split()]
    texts: list[str] = []
    place = 0
    while len(texts) < count:
        wanted = length(low, high)
        # Words of docstrings have about 1.6 tokens; what misses the profile is cut again elsewhere.
        size = max(1, round((wanted - 2) / 1.6))
        place = (place + size) % (len(words) - high)
        text = " ".join(words[place : place + size])
        if low <= len(tokenizer.encode(text).ids) <= high:
            texts.append(text)
    return texts


@functools.cache
def _docstrings() -> list[str]:
    found: list[str] = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(file.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module))
        found += [re.sub(r"\s+", " ", text) for node in nodes if (text := ast.get_docstring(node))]
    return found
