"""Texts that break tokenizers, the same 563 at every call: `python -m tests.reference.hostile_texts > texts.json`.

Then `make reference ARGS="models/all-MiniLM-L6-v2 --texts texts.json"`. They are made of ranges of Unicode and of
rules, and quote nothing.
"""

from __future__ import annotations

import json
import random
import sys
import unicodedata

COUNT = 563
_WORDS = [
    "hello",
    "WORLD",
    "naïve",
    "straße",
    "İstanbul",
    "ΣΊΣΥΦΟΣ",
    "ﬁancé",
    "東京",
    "สวัสดี",
    "नमस्ते",
    "שלום",
    "مرحبا",
    "e\u0301",
]
_SPACES = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u2029\u200b\u202f\u205f\u2060\u3000\ufeff"
_MARKS = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "<s>", "</s>", "##ing", "<|endoftext|>", "[unused1]", "▁", "Ġ"]
_EMOJI = ["😀", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "🇩🇪", "👍🏽", "☃️", "1️⃣"]
_RANGES = [
    *((0x0, 0x7F), (0x80, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF)),
    *(
        (0x590, 0x5FF),
        (0x600, 0x6FF),
        (0x900, 0x97F),
        (0xE00, 0xE7F),
        (0x1100, 0x11FF),
        (0x1E00, 0x1EFF),
        (0x2000, 0x206F),
    ),
    *((0x2070, 0x209F), (0x20A0, 0x20CF), (0x2100, 0x214F), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2460, 0x24FF)),
    *((0x2500, 0x257F), (0x3000, 0x303F), (0x3040, 0x30FF), (0x3130, 0x318F), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)),
    *((0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF)),
    *(
        (0xFFF0, 0xFFFF),
        (0x10000, 0x100FF),
        (0x1D400, 0x1D7FF),
        (0x1F300, 0x1FAFF),
        (0x20000, 0x2A6DF),
        (0xE0000, 0xE01EF),
    ),
]


def hostile_texts() -> list[str]:
    """Return the texts; every one is Unicode without halves of surrogate pairs."""
    source = random.Random(563)
    texts = ["", " ", *_SPACES, *_MARKS, *_EMOJI, *_WORDS]
    texts += [f"{space}{word}{space}" for space in _SPACES for word in ("word", "東京")]
    texts += [f"a{mark}b {mark} {mark.lower()}" for mark in _MARKS]
    texts += [unicodedata.normalize(form, word) for form in ("NFC", "NFD", "NFKC", "NFKD") for word in _WORDS]
    texts += [word * 300 for word in _WORDS] + [f"{word} " * 300 for word in _WORDS]
    texts += [character * count for character in ".,!?-_'\"`’“…€½№©" for count in (1, 3, 600)]
    texts += [
        "e" + "\u0301" * 500,
        "x" * 101,
        "x" * 100,
        "\u202eabc\u202c",
        "\x00a\x00",
        "a\ufffdb",
        "1" * 400,
        "0x1F 1e-7 ٣٤",
    ]
    while len(texts) < COUNT:
        first, last = source.choice(_RANGES)
        letters = [chr(source.randint(first, last)) for _ in range(source.choice((1, 2, 5, 40)))]
        joined = source.choice(("", " ", "a", "-")).join(letters)
        texts.append(source.choice((joined, f"{source.choice(_WORDS)} {joined}", f" {joined}\n")))
    return texts[:COUNT]


if __name__ == "__main__":
    json.dump(hostile_texts(), sys.stdout)
