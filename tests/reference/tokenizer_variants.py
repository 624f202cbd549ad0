"""Tokenizers to compare with transformers: texts, and folders as changes of a few bases. It imports nothing heavy."""

from __future__ import annotations

import json
from typing import Any

CORPUS = [
    "the quick brown fox jumps over the lazy dog near the old harbour",
    "The wooden bridge was rebuilt after the storm, twice a week in 1987.",
    "Crème brûlée, naïve façade and größer Straßen",
    "今天天气很好 東京",
    "does anyone know why the quiet nurse paints the invisible letter?",
] * 4

TEXTS = [
    "hello world",
    "The Quick Brown FOX jumps over the lazy dog in 1987, twice",
    "Crème brûlée, naïve façade",
    "今天天气很好",
    "trailing space ",
    " leading  and   double\tspaces\n",
    "a [MASK] b<mask>c <s> d </s>[SEP] e",
    "<|im_start|>user\nhi<|endoftext|>",
    "😀 ½ ﬁ \u200b \x07 ''quoted`` it's",
    "",
    "   ",
    "TOKEN own<own>Token OWN",
    "<extra_id_0> <extra_id_1>",
]

_LSTRIP = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
_OWN = {"content": "own", "single_word": True, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
_DECODER = {
    "0": {
        "content": "[PAD]",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    },
    "4": {
        "content": "[MASK]",
        "lstrip": True,
        "normalized": False,
        "rstrip": True,
        "single_word": False,
        "special": True,
    },
    "500": {
        "content": "TOKEN",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
        "special": False,
    },
}
_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_NAMES = ["PAD", "UNK", "CLS", "SEP", "MASK"]
_OUT_OF_ORDER = {"197": _OWN, "196": _OWN | {"content": "TOKEN"}}
_WORDS = {
    "type": "Sequence",
    "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}],
}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_TRUNCATION = {"direction": "Left", "max_length": 6, "strategy": "LongestFirst", "stride": 0}


def _variant(base: str, name: str | None, model_type: str | None = None, **changes: Any) -> dict[str, Any]:
    """Describe a folder: `config`, `json`, `map` and `added` change tokenizer_config.json and so on."""
    return {"base": base, "tokenizer_class": name, "model_type": model_type or base, **changes}


VARIANTS = [
    _variant("bert", None),
    *(
        _variant("bert", name)
        for name in ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "MyTokenizer")
    ),
    *(_variant("bert", "BertTokenizer", config={"do_lower_case": value}) for value in (True, False)),
    *(_variant("bert", "BertTokenizer", config={"strip_accents": value}) for value in (True, False, None)),
    _variant("bert", "BertTokenizer", config={"do_lower_case": False, "strip_accents": True}),
    _variant("bert", "BertTokenizer", config={"tokenize_chinese_chars": False}),
    _variant("bert", "DistilBertTokenizer", "distilbert", config={"do_lower_case": False}),
    _variant("bert", "ElectraTokenizerFast", "electra", config={"do_lower_case": False}),
    _variant("bert", "BertTokenizer", "new-kind", config={"do_lower_case": False}),
    _variant("bert", None, "new-kind"),
    _variant("bert", "PreTrainedTokenizerFast", config={"do_lower_case": False}),
    _variant("bert", "BertTokenizer", config={"additional_special_tokens": ["TOKEN", "own"]}),
    _variant("bert", "BertTokenizer", config={"extra_special_tokens": {"own_token": "own"}}),
    _variant("bert", "BertTokenizer", config={"added_tokens_decoder": _DECODER}),
    _variant("bert", "PreTrainedTokenizerFast", config={"added_tokens_decoder": _DECODER}),
    _variant("bert", "BertTokenizer", config={"split_special_tokens": True}),
    _variant("bert", "BertTokenizer", config={"cls_token": "[MASK]", "sep_token": "[UNK]"}),
    _variant("bert", "BertTokenizer", config={"truncation_side": "left"}),
    _variant("bert", "BertTokenizer", json={"truncation": _TRUNCATION}),
    _variant("bert", "BertTokenizer", config={"truncation_side": "right"}, json={"truncation": _TRUNCATION}),
    _variant("bert", "BertTokenizer", map={"mask_token": _LSTRIP | {"content": "[MASK]"}, "unk_token": "[UNK]"}),
    _variant("bert", "BertTokenizer", added={"own": 600}, json={"added_tokens": []}),
    _variant("bert", "BertTokenizer", map={"additional_special_tokens": ["own", "TOKEN"]}),
    _variant("bert", "PreTrainedTokenizerFast", map={"additional_special_tokens": [{"__type": "AddedToken", **_OWN}]}),
    _variant("bert", "BertTokenizer", map={"additional_special_tokens": [_OWN]}),
    *(
        _variant("bert", "BertTokenizer", config={"additional_special_tokens": stated}, map={name: ["own"]})
        for name in ("additional_special_tokens", "extra_special_tokens")
        for stated in ([], None, ["TOKEN"])
    ),
    _variant("bert", "BertTokenizer", config={"own_token": "TOKEN"}, map={"own_token": _OWN, "my_token": "own"}),
    _variant(
        "bert", "BertTokenizer", config={"own_token": "TOKEN"}, map={"extra_special_tokens": {"own_token": "own"}}
    ),
    _variant(
        "bert",
        "BertTokenizer",
        config={"added_tokens_decoder": _DECODER},
        map={"additional_special_tokens": ["own"], "my_token": "own"},
    ),
    _variant("bert", "BertTokenizer", map={"additional_special_tokens": ["own"]}, added={"own": 600, "TOKEN": 601}),
    _variant("bert", "BertTokenizer", json={"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}}),
    _variant("bert", "PreTrainedTokenizerFast", json={"post_processor": None}),
    _variant(
        "bert",
        "PreTrainedTokenizerFast",
        config={"add_bos_token": True, "bos_token": "[CLS]"},
        json={"post_processor": None},
    ),
    _variant("bert", "BertTokenizer", vocab=True),
    _variant("bert", "BertTokenizer", vocab=True, config={"do_lower_case": False, "added_tokens_decoder": _DECODER}),
    *(
        _variant("bert", name, config={"do_lower_case": value})
        for name in ("DPRContextEncoderTokenizer", "DPRQuestionEncoderTokenizer")
        for value in (True, False)
    ),
    # Each key of special_tokens_map.json is a setting, unless tokenizer_config.json lists the added tokens.
    _variant("bert", "BertTokenizer", map={"do_lower_case": False}),
    _variant("bert", "BertTokenizer", map={"do_lower_case": False}, config={"added_tokens_decoder": _DECODER}),
    _variant("bert", "BertTokenizer", map={"truncation_side": "left", "split_special_tokens": True}),
    _variant("bert", "BertTokenizer", config={"split_special_tokens": None}),
    _variant("bert", "BertTokenizer", config={"cls_token": _LSTRIP | {"content": "[CLS]"}}),
    _variant("bert", "BertTokenizer", config={"own_token": _OWN}),
    _variant("bert", "BertTokenizer", config={"image_token": "TOKEN"}, map={"own_token": "own"}),
    _variant(
        "bert",
        "BertTokenizer",
        config={"added_tokens_decoder": _OUT_OF_ORDER, "own_token": "own", "split_special_tokens": True},
    ),
    _variant(
        "bert",
        "PreTrainedTokenizerFast",
        config={"extra_special_tokens": [{"__type": "AddedToken", **_OWN}], "split_special_tokens": True},
    ),
    _variant(
        "bert",
        "BertTokenizer",
        json={
            "added_tokens": [
                *({"id": place, **_SPECIAL, "content": f"[{name}]"} for place, name in enumerate(_NAMES)),
                *({"id": int(place), **token} for place, token in _OUT_OF_ORDER.items()),
            ]
        },
    ),
    _variant("mpnet", "MPNetTokenizer"),
    _variant("mpnet", "MPNetTokenizer", config={"do_lower_case": False, "mask_token": "<mask>", "unk_token": "[UNK]"}),
    _variant("mpnet", "MPNetTokenizer", map={"mask_token": _LSTRIP}),
    _variant("mpnet", "MPNetTokenizer", vocab=True),
    _variant("xlm-roberta", "XLMRobertaTokenizer"),
    _variant("xlm-roberta", "XLMRobertaTokenizer", json={"pre_tokenizer": _WORDS}),
    _variant(
        "xlm-roberta",
        "XLMRobertaTokenizer",
        config={"add_prefix_space": False, "mask_token": {"__type": "AddedToken", **_LSTRIP}},
    ),
    _variant("xlm-roberta", "PreTrainedTokenizerFast"),
    _variant("xlm-roberta", "PreTrainedTokenizerFast", model={"unk_id": None}),
    _variant("xlm-roberta", "XLMRobertaTokenizer", model={"unk_id": None}),
    _variant("xlm-roberta", "XLMRobertaTokenizerFast", "bert"),
    _variant("xlm-roberta", "CamembertTokenizer", "camembert"),
    _variant("xlm-roberta", None, "camembert"),
    _variant("t5", "T5Tokenizer"),
    _variant("t5", "T5TokenizerFast", config={"additional_special_tokens": ["<extra_id_0>", "TOKEN"], "extra_ids": 1}),
    *(_variant("t5", "T5Tokenizer", map={"additional_special_tokens": stated}) for stated in ([], ["TOKEN"])),
    _variant("t5", "T5Tokenizer", map={"additional_special_tokens": ["<extra_id_0>", "TOKEN"]}),
    _variant("t5", "T5Tokenizer", map={"additional_special_tokens": ["<extra_id_0>"]}, config={"extra_ids": 1}),
    _variant("xlm-roberta", "CamembertTokenizer", "camembert", map={"additional_special_tokens": ["own"]}),
    *(
        _variant("xlm-roberta", name, map={"add_eos_token": True, "add_prefix_space": False})
        for name in ("XLMRobertaTokenizer", "PreTrainedTokenizerFast")
    ),
    _variant("albert", "AlbertTokenizer"),
    _variant("albert", "AlbertTokenizer", config={"do_lower_case": False, "keep_accents": True}),
    _variant("albert", "AlbertTokenizer", config={"sep_token": "<unk>", "cls_token": "[MASK]"}),
    _variant("albert", "AlbertTokenizer", json={"post_processor": _BYTES}),
    _variant("albert", "AlbertTokenizer", config={"sep_token": "<unk>"}, json={"post_processor": None}),
    _variant("deberta-v2", "DebertaV2Tokenizer"),
    _variant("deberta-v2", "DebertaV2TokenizerFast", config={"do_lower_case": True, "split_by_punct": True}),
    _variant("roberta", "RobertaTokenizer"),
    _variant("roberta", "RobertaTokenizer", config={"add_prefix_space": True}),
    _variant("roberta", "RobertaTokenizerFast", config={"mask_token": {"__type": "AddedToken", **_LSTRIP}}),
    _variant("roberta", "RobertaTokenizer", model={"dropout": 0.5}),
    _variant("roberta", "BartTokenizer", "bart"),
    _variant("roberta", "HerbertTokenizerFast", "bert"),
    _variant("roberta", "HerbertTokenizer", "bert", config={"bos_token": "<s>", "mask_token": None}),
    _variant("roberta", "PreTrainedTokenizerFast", config={"add_prefix_space": True}),
    _variant("roberta", "LongformerTokenizer", "longformer", config={"additional_special_tokens": [_OWN]}),
    _variant("gpt2", "GPT2Tokenizer"),
    _variant("gpt2", "GPT2TokenizerFast", config={"add_prefix_space": True, "add_bos_token": True}),
    _variant("gpt2", "GPTNeoXTokenizer", "gpt_neox"),
    _variant("gpt2", "PreTrainedTokenizerFast", "modernbert", config={"cls_token": "[CLS]", "sep_token": "[SEP]"}),
    _variant("gpt2", "Qwen2Tokenizer", "qwen2"),
    _variant(
        "gpt2", "Qwen2Tokenizer", "qwen3", config={"additional_special_tokens": ["<|im_start|>"], "bos_token": None}
    ),
    _variant("gpt2", "Qwen2TokenizerFast", "qwen3", json={"normalizer": {"type": "NFC"}}),
    _variant("gpt2", "Qwen2Tokenizer", "qwen3_5"),
    _variant("gpt2", "Qwen3_5Tokenizer", "qwen3_5_text", config={"additional_special_tokens": ["<|im_start|>"]}),
    _variant("gpt2", "DebertaTokenizer", "deberta"),
    _variant("gpt2", "CLIPTokenizer", "clip"),
    _variant("gpt2", "LlamaTokenizer", "llama"),
    _variant("llama", "LlamaTokenizer", "llama"),
    _variant("llama", "LlamaTokenizerFast", "llama", config={"legacy": True}),
    _variant("llama", "LlamaTokenizer", "llama", config={"add_prefix_space": False, "add_eos_token": True}),
    _variant("llama", "LlamaTokenizer", "mistral", config={"add_eos_token": True}),
    _variant("llama", "LlamaTokenizer", "llama", json={"post_processor": _BYTES}),
    _variant("gemma", "GemmaTokenizer", "gemma2"),
    _variant("gemma", "GemmaTokenizerFast", "gemma3_text", config={"mask_token": None}),
    *(
        _variant("gemma", "GemmaTokenizer", "gemma2", map={"add_bos_token": value, "add_eos_token": True})
        for value in (True, False)
    ),
    _variant("gpt2", "GPT2Tokenizer", map={"add_prefix_space": True, "add_bos_token": True}),
    *(
        _variant("gpt2", "GPTNeoXTokenizer", "gpt_neox", map={"add_bos_token": True, "add_eos_token": value})
        for value in (True, False)
    ),
    _variant("gpt2", "GPTNeoXTokenizer", "gpt_neox", map={"add_bos_token": True}, config={"bos_token": None}),
    *(
        _variant("albert", "AlbertTokenizer", map={"add_eos_token": True}, json={"post_processor": processor})
        for processor in (None, _BYTES)
    ),
]


def files_of(base: dict[str, Any], variant: dict[str, Any]) -> dict[str, str]:
    """Return the files of a variant by their names."""
    document = base | variant.get("json", {})
    document["model"] = base["model"] | variant.get("model", {})
    config = {"tokenizer_class": variant["tokenizer_class"]} | variant.get("config", {})
    files: dict[str, Any] = {
        "tokenizer_config.json": {key: value for key, value in config.items() if key != "tokenizer_class" or value},
        "config.json": {"model_type": variant["model_type"], "max_position_embeddings": 64},
        "special_tokens_map.json": variant.get("map"),
        "added_tokens.json": variant.get("added"),
        "tokenizer.json": None if variant.get("vocab") else document,
    }
    texts = {name: json.dumps(content, ensure_ascii=False) for name, content in files.items() if content is not None}
    if variant.get("vocab"):
        words = sorted(base["model"]["vocab"], key=base["model"]["vocab"].__getitem__)
        texts["vocab.txt"] = "".join(f"{word}\n" for word in words)
    return texts
