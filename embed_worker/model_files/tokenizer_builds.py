"""What transformers' tokenizer classes build: normalizer, pre-tokenizer, model and template, in tokenizer.json's form.

Version 5 takes the vocabulary from tokenizer.json and the rest from the class and its settings. Reference: the
constructors in `transformers.models.*.tokenization_*`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from embed_worker.model_files.tokenizer_pieces import (
    CLIP_SPLIT,
    QWEN2_SPLIT,
    QWEN3_5_SPLIT,
    bpe,
    byte_level,
    metaspace,
    precompiled,
    regex_split,
    replace,
    sequence,
    unigram,
    words_of_sentencepiece,
)
from embed_worker.model_files.tokenizer_settings import SettingError, flag_of, token_of

# Names of special tokens, with None where the text is.
Template: TypeAlias = tuple[str | None, ...]
Settings: TypeAlias = Mapping[str, Any]

# Each is an object and an added token: of ten million, a load was five gigabytes and minutes.
_MOST_EXTRA_IDS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What a class makes of its settings.

    Attributes:
        kind: The type of the model in tokenizer.json that the class can take.
        model: Members of the model besides vocabulary and merges.
        template: None where the class keeps the post-processor of tokenizer.json.
        yields_template: The post-processor of tokenizer.json comes first, where there is one.
        special: The default of each named special token.
        extra: Further special tokens, where extra_special_tokens does not say; None where the class adds none to what
            the settings name.
        mask_strips: The mask token takes the white space before it, too.
        pads_left: What the class does unless it is told.
    """

    kind: str
    normalizer: Any = None
    pre_tokenizer: Any = None
    model: Mapping[str, Any] = field(default_factory=dict)
    template: Template | None = None
    yields_template: bool = False
    special: Mapping[str, str | None] = field(default_factory=dict)
    extra: list[Any] | None = None
    mask_strips: bool = False
    pads_left: bool = False


_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


def template_of_flags(settings: Settings, named: Settings) -> Template:
    """Return the template that `add_bos_token` and `add_eos_token` ask for; a token that is null is left out."""
    bos, eos = (
        (token_of(named, f"{name}_token", None),)
        if settings.get(f"add_{name}_token") and named.get(f"{name}_token") is not None
        else ()
        for name in ("bos", "eos")
    )
    return (*bos, None, *eos)


def _word_piece(settings: Settings, special: Mapping[str, str | None], *, mask_strips: bool) -> Build:
    cls, sep, unk = (token_of(settings, name, special[name]) for name in ("cls_token", "sep_token", "unk_token"))
    return Build(
        kind="WordPiece",
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": flag_of(settings, "tokenize_chinese_chars", True),
            "strip_accents": flag_of(settings, "strip_accents", None),
            "lowercase": flag_of(settings, "do_lower_case", True),
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        model={"unk_token": unk, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        template=(cls, None, sep),
        special=special,
        mask_strips=mask_strips,
    )


def _bert(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    return _word_piece(settings, _BERT_TOKENS, mask_strips=False)


def _dpr(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    """Build what a BERT does by default: the class keeps do_lower_case to itself."""
    return _bert({**settings, "do_lower_case": True}, vocabulary, charsmap)


def _mpnet(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    return _word_piece(settings, _ROBERTA_TOKENS | {"unk_token": "[UNK]"}, mask_strips=True)


def _xlm_roberta(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    bos, eos = (token_of(settings, name, _ROBERTA_TOKENS[name]) for name in ("bos_token", "eos_token"))
    return Build(
        kind="Unigram",
        normalizer=next(iter(precompiled(charsmap)), None),
        pre_tokenizer=words_of_sentencepiece(settings),
        model=unigram(3),
        template=(bos, None, eos),
        special=_ROBERTA_TOKENS,
    )


def _camembert(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    bos, eos = (token_of(settings, name, _ROBERTA_TOKENS[name]) for name in ("bos_token", "eos_token"))
    unknown, stated = token_of(settings, "unk_token", "<unk>"), settings.get("additional_special_tokens")
    return Build(
        kind="Unigram",
        normalizer=next(iter(precompiled(charsmap)), None),
        pre_tokenizer=words_of_sentencepiece(settings),
        model=unigram(_index_of(vocabulary, unknown, 0)),
        template=(bos, None, eos),
        special=_ROBERTA_TOKENS,
        extra=["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"] if stated is None else stated,
        mask_strips=True,
    )


def _t5(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    return Build(
        kind="Unigram",
        normalizer=next(iter(precompiled(charsmap)), None),
        pre_tokenizer=sequence("pretokenizers", [{"type": "WhitespaceSplit"}, metaspace("always")]),
        model=unigram(2),
        template=(None, token_of(settings, "eos_token", "</s>")),
        special={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        extra=_sentinels(settings),
    )


def _sentinels(settings: Settings) -> list[Any]:
    """Return the further special tokens of a T5: those that are named, and sentinels where none is among them."""
    stated, count = settings.get("additional_special_tokens") or [], settings.get("extra_ids", 100)
    # 100 as published; a folder that says millions is no model.
    if type(count) is not int or not 0 <= count <= _MOST_EXTRA_IDS:
        raise SettingError(f"extra_ids that is no number from 0 to {_MOST_EXTRA_IDS:,}")
    named = sum("<extra_id_" in str(token) for token in stated)
    if named and count > 0 and named != count:
        raise SettingError(f"additional_special_tokens with {named} of {count} extra_ids")
    return list(stated) if named else [*stated, *(f"<extra_id_{index}>" for index in range(count))]


def _albert(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    special = _BERT_TOKENS | {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"}
    steps: list[Any] = [replace({"String": "``"}, '"'), replace({"String": "''"}, '"')]
    if not settings.get("keep_accents", False):
        steps += [{"type": "NFKD"}, {"type": "StripAccents"}]
    if settings.get("do_lower_case", True):
        steps.append({"type": "Lowercase"})
    return Build(
        kind="Unigram",
        normalizer=sequence("normalizers", steps + precompiled(charsmap)),
        pre_tokenizer=words_of_sentencepiece(settings),
        model=unigram(1),
        template=(token_of(settings, "cls_token", "[CLS]"), None, token_of(settings, "sep_token", "[SEP]")),
        yields_template=True,
        special=special,
    )


def _deberta_v2(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    special = _BERT_TOKENS | {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    cls, sep, unknown = (token_of(settings, name, special[name]) for name in ("cls_token", "sep_token", "unk_token"))
    steps: list[Any] = [{"type": "Lowercase"}] if settings.get("do_lower_case", False) else []
    steps += [replace({"Regex": r"\s{2,}|[\n\r\t]"}, " "), {"type": "NFC"}]
    steps.append({"type": "Strip", "strip_left": False, "strip_right": True})
    words: list[Any] = [{"type": "Punctuation", "behavior": "Isolated"}] if settings.get("split_by_punct") else []
    words.append(metaspace("always" if settings.get("add_prefix_space", True) else "first"))
    return Build(
        kind="Unigram",
        normalizer=sequence("normalizers", steps),
        pre_tokenizer=sequence("pretokenizers", words),
        # Only an unknown token with the score 0 is found.
        model=unigram(_index_of(vocabulary, unknown, settings.get("unk_id", 1), score=0.0)),
        template=(cls, None, sep),
        special=special,
    )


def _roberta(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    cls, sep = (token_of(settings, name, _ROBERTA_TOKENS[name]) for name in ("cls_token", "sep_token"))
    return Build(
        kind="BPE",
        pre_tokenizer=byte_level(add_prefix_space=flag_of(settings, "add_prefix_space", False)),
        model=bpe(),
        template=(cls, None, sep),
        special=_ROBERTA_TOKENS,
    )


def _deberta(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    special = _BERT_TOKENS | {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    cls, sep = (token_of(settings, name, special[name]) for name in ("cls_token", "sep_token"))
    return Build(
        kind="BPE",
        pre_tokenizer=byte_level(add_prefix_space=flag_of(settings, "add_prefix_space", False)),
        model=bpe(),
        template=(cls, None, sep),
        special=special,
    )


def _gpt2(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    end = "<|endoftext|>"
    return Build(
        kind="BPE",
        pre_tokenizer=byte_level(add_prefix_space=flag_of(settings, "add_prefix_space", False)),
        model=bpe(),
        special={"bos_token": end, "eos_token": end, "unk_token": end},
    )


def _gpt_neox(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    end = "<|endoftext|>"
    return Build(
        kind="BPE",
        normalizer={"type": "NFC"},
        pre_tokenizer=byte_level(add_prefix_space=flag_of(settings, "add_prefix_space", False)),
        model=bpe(),
        template=template_of_flags(settings, {"bos_token": end, "eos_token": end, **settings}),
        special={"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": "<|padding|>"},
    )


def _qwen2(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    return _qwen(settings, QWEN2_SPLIT)


def _qwen3_5(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    return _qwen(settings, QWEN3_5_SPLIT)


def _qwen(settings: Settings, split: str) -> Build:
    end = "<|endoftext|>"
    words = [
        regex_split(split, "Isolated", invert=False),
        byte_level(add_prefix_space=bool(settings.get("add_prefix_space")), use_regex=False),
    ]
    return Build(
        kind="BPE",
        normalizer={"type": "NFC"},
        pre_tokenizer=sequence("pretokenizers", words),
        model=bpe(),
        special={"bos_token": None, "eos_token": end, "unk_token": end, "pad_token": end},
    )


def _herbert(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    special = {name: token for name, token in _ROBERTA_TOKENS.items() if name not in ("bos_token", "eos_token")}
    cls, sep, unknown = (token_of(settings, name, special[name]) for name in ("cls_token", "sep_token", "unk_token"))
    # The ids of its template are written into the class.
    for name, token, index in (("cls_token", cls, 0), ("sep_token", sep, 2)):
        if not isinstance(vocabulary, dict) or vocabulary.get(token) != index:
            raise SettingError(f"{name} that is not the token {index}")
    return Build(
        kind="BPE",
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": False,
            "lowercase": False,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        model=bpe(end_of_word_suffix="</w>", unk_token=unknown),
        template=(cls, None, sep),
        special=special,
    )


def _llama(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    adds_space = settings.get("add_prefix_space")
    first = "always" if settings.get("legacy", False) else "first"
    return Build(
        kind="BPE",
        pre_tokenizer=metaspace(first if adds_space is None or adds_space else "never", split=False),
        model=bpe(fuse_unk=True, byte_fallback=True),
        special={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        pads_left=True,
    )


def _gemma(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    special = {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return Build(
        kind="BPE",
        normalizer=replace({"String": " "}, "▁"),
        pre_tokenizer=split,
        model=bpe(fuse_unk=True, byte_fallback=True, unk_token=token_of(settings, "unk_token", "<unk>")),
        special=special,
        pads_left=True,
    )


def _clip(settings: Settings, vocabulary: Any, charsmap: str | None) -> Build:
    end = "<|endoftext|>"
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    bos, eos, unknown = (token_of(settings, name, special[name]) for name in ("bos_token", "eos_token", "unk_token"))
    spaces = [{"type": "NFC"}, replace({"Regex": r"\s+"}, " "), {"type": "Lowercase"}]
    words = [regex_split(CLIP_SPLIT, "Removed", invert=True), byte_level(add_prefix_space=False)]
    return Build(
        kind="BPE",
        normalizer=sequence("normalizers", spaces),
        pre_tokenizer=sequence("pretokenizers", words),
        model=bpe(end_of_word_suffix="</w>", unk_token=unknown),
        template=(bos, None, eos),
        special=special,
    )


def _index_of(vocabulary: Any, token: str | None, default: int, *, score: float | None = None) -> int:
    for index, entry in enumerate(vocabulary if isinstance(vocabulary, list) else []):
        if entry[0] == token and score in (None, entry[1]):
            return index
    return default


# By the class whose constructor it is. What else transformers has is refused by name: embedders do not use it.
BUILDS: Mapping[str, Callable[[Settings, Any, str | None], Build]] = {
    "AlbertTokenizer": _albert,
    "BertTokenizer": _bert,
    "CLIPTokenizer": _clip,
    "CamembertTokenizer": _camembert,
    "DPRContextEncoderTokenizer": _dpr,
    "DPRQuestionEncoderTokenizer": _dpr,
    "DebertaTokenizer": _deberta,
    "DebertaV2Tokenizer": _deberta_v2,
    "DistilBertTokenizer": _bert,
    "GPT2Tokenizer": _gpt2,
    "GPTNeoXTokenizer": _gpt_neox,
    "GemmaTokenizer": _gemma,
    "HerbertTokenizer": _herbert,
    "LlamaTokenizer": _llama,
    "MPNetTokenizer": _mpnet,
    "Qwen2Tokenizer": _qwen2,
    "Qwen3_5Tokenizer": _qwen3_5,
    "RobertaTokenizer": _roberta,
    "T5Tokenizer": _t5,
    "XLMRobertaTokenizer": _xlm_roberta,
}
