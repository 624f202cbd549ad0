"""The layouts of much used models: what their repositories' configurations say, with sizes cut. It imports nothing."""

# ruff: noqa: E501 - a table, one model in a few lines

from __future__ import annotations

from typing import Any

TEXTS = [
    "hello world",
    "The Quick Brown FOX jumps over the lazy dog near the old harbour",
    "Crème brûlée, naïve façade ",
    "今天天气很好",
    " a\n",
    "does anyone know why the quiet nurse paints the invisible letter? " * 3,
]
SETS: list[dict[str, Any]] = [{}]
PROMPTED: list[dict[str, Any]] = [{}, {"prompt_name": "query"}]
SHORTER: list[dict[str, Any]] = [{}, {"dimensions": 6}]

_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_ROBERTA = _BERT | {
    "max_position_embeddings": 50,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_QWEN = _BERT | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
_DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 48}


def _pooling(mode: str, size: int = 16, **more: Any) -> tuple[str, str, dict[str, Any]]:
    booleans = {
        f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    }
    booleans |= {f"pooling_mode_{mode}": True}
    return "Pooling", "1_Pooling", {"word_embedding_dimension": size, **booleans, **more}


def _dense(
    path: str, size: int, activation: str = "activation.Tanh", *, bias: bool = True
) -> tuple[str, str, dict[str, Any]]:
    name = f"torch.nn.modules.{activation}"
    return "Dense", path, {"in_features": 16, "out_features": size, "bias": bias, "activation_function": name}


def _layout(
    of: str,
    model_type: str,
    base: str,
    name: str | None,
    settings: dict[str, Any],
    config: dict[str, Any],
    *behind: Any,
    limit: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    files = more.pop("files", {})
    if limit is not None:
        files = files | {"sentence_bert_config.json": {"max_seq_length": limit, "do_lower_case": False}}
    tokenizer = {"tokenizer_class": name, "config": settings} | more.pop("tokenizer", {})
    return {
        "of": of, "model_type": model_type, "base": base, "tokenizer": tokenizer, "config": config,
        "modules": [("Transformer", "", None), *behind], "files": files, **more,
    }  # fmt: skip


_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_UNCASED = _TOKENS | {
    "do_lower_case": True,
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "model_max_length": 40,
}
_CASED = _UNCASED | {"do_lower_case": False}
_R = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
_MASK = {
    "content": "<mask>",
    "lstrip": True,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "__type": "AddedToken",
}
_XLMR = _R | {"mask_token": _MASK, "model_max_length": 40}
_NORMALIZE = ("Normalize", "2_Normalize", None)
_LAST_NORMALIZE = ("Normalize", "3_Normalize", None)
_NEW = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
_ARCTIC = {"query": "Represent this sentence for searching relevant passages: "}
_CLASSIC = {"config_sentence_transformers.json": {"__version__": {"sentence_transformers": "2.0.0"}}}

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}
_MESSAGES = {"modality_config": {"text": _FORWARD, "message": _FORWARD}, "module_output_name": "token_embeddings"}

LAYOUTS: dict[str, dict[str, Any]] = {
    "all-mpnet-base-v2": _layout(
        "sentence-transformers/all-mpnet-base-v2", "mpnet", "mpnet", "MPNetTokenizer",
        {**_R, "unk_token": "[UNK]", "mask_token": "<mask>", "do_lower_case": True, "model_max_length": 40},
        _ROBERTA, _pooling("mean_tokens"), _NORMALIZE, limit=38, files=_CLASSIC,
    ),
    "all-distilroberta-v1": _layout(
        "sentence-transformers/all-distilroberta-v1", "roberta", "roberta", "RobertaTokenizer",
        {**_R, "mask_token": "<mask>", "add_prefix_space": False, "trim_offsets": True, "model_max_length": 40},
        _ROBERTA, _pooling("mean_tokens"), _NORMALIZE, limit=40,
    ),
    "msmarco-distilbert-base-tas-b": _layout(
        "sentence-transformers/msmarco-distilbert-base-tas-b", "distilbert", "bert", "DistilBertTokenizer", _UNCASED,
        _DISTILBERT, _pooling("cls_token"), limit=40,
    ),
    "distiluse-base-multilingual-cased-v2": _layout(
        "sentence-transformers/distiluse-base-multilingual-cased-v2", "distilbert", "bert", "DistilBertTokenizer", _CASED,
        _DISTILBERT, _pooling("mean_tokens"), _dense("2_Dense", 12), limit=24,
    ),
    "clip-ViT-B-32-multilingual-v1": _layout(
        "sentence-transformers/clip-ViT-B-32-multilingual-v1", "distilbert", "bert", "DistilBertTokenizer", _CASED,
        _DISTILBERT, _pooling("mean_tokens"), _dense("2_Dense", 10, "linear.Identity", bias=False), limit=24,
    ),
    "LaBSE": _layout(
        "sentence-transformers/LaBSE", "bert", "bert", "BertTokenizer", _CASED, _BERT | {"max_position_embeddings": 48},
        _pooling("cls_token"), _dense("2_Dense", 16), _LAST_NORMALIZE, limit=32,
    ),
    "paraphrase-albert-small-v2": _layout(
        "sentence-transformers/paraphrase-albert-small-v2", "albert", "albert", "AlbertTokenizer",
        {"do_lower_case": True, "keep_accents": False, "unk_token": "<unk>", "pad_token": "<pad>", "model_max_length": 40},
        _BERT | {"embedding_size": 8, "max_position_embeddings": 48}, _pooling("mean_tokens"), limit=30,
    ),
    "paraphrase-multilingual-MiniLM-L12-v2": _layout(
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", "bert", "xlm-roberta", "XLMRobertaTokenizer", _XLMR,
        _BERT | {"max_position_embeddings": 48}, _pooling("mean_tokens"), limit=32,
    ),
    "multilingual-e5-small": _layout(
        "intfloat/multilingual-e5-small", "bert", "xlm-roberta", "XLMRobertaTokenizer", _XLMR,
        _BERT | {"max_position_embeddings": 48}, _pooling("mean_tokens"), _NORMALIZE, limit=40,
    ),
    "bge-m3": _layout(
        "BAAI/bge-m3", "xlm-roberta", "xlm-roberta", "XLMRobertaTokenizer", _XLMR, _ROBERTA, _pooling("cls_token"),
        _NORMALIZE, limit=40, token_types=False,
    ),
    "bge-small-zh-v1.5": _layout(
        "BAAI/bge-small-zh-v1.5", "bert", "bert", "BertTokenizer", {**_UNCASED, "model_max_length": 1e30},
        _BERT | {"max_position_embeddings": 48}, _pooling("cls_token"), _NORMALIZE, limit=40,
    ),
    "snowflake-arctic-embed-m": _layout(
        "Snowflake/snowflake-arctic-embed-m", "bert", "bert", "BertTokenizer", _UNCASED,
        _BERT | {"max_position_embeddings": 48}, _pooling("cls_token", include_prompt=True), _NORMALIZE, limit=40,
        files={"config_sentence_transformers.json": {"prompts": _ARCTIC, "default_prompt_name": None}}, sets=PROMPTED,
    ),
    "sentence-camembert-base": _layout(
        "dangvantuan/sentence-camembert-base", "camembert", "xlm-roberta", "CamembertTokenizer",
        {**_R, "mask_token": _MASK, "model_max_length": 40}, _ROBERTA, _pooling("mean_tokens"), limit=32, token_types=False,
    ),
    "sentence-t5-base": _layout(
        "sentence-transformers/sentence-t5-base", "t5", "t5", "T5Tokenizer",
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0, "model_max_length": 40}, _T5,
        _pooling("mean_tokens"), _dense("2_Dense", 16, "linear.Identity", bias=False), _LAST_NORMALIZE,
        limit=32, **{"class": "T5EncoderModel"},
    ),
    "gtr-t5-base": _layout(
        "sentence-transformers/gtr-t5-base", "t5", "t5", "T5TokenizerFast",
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0, "model_max_length": 40}, _T5,
        _pooling("mean_tokens"), _dense("2_Dense", 12, "linear.Identity", bias=False), _LAST_NORMALIZE,
        limit=40, **{"class": "T5EncoderModel"},
    ),
    "instructor-base": _layout(
        "hkunlp/instructor-base", "t5", "t5", "T5Tokenizer",
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0, "model_max_length": 40}, _T5,
        _pooling("mean_tokens", include_prompt=False), _dense("2_Dense", 12, "linear.Identity", bias=False), _LAST_NORMALIZE,
        limit=40, sets=[{}, {"prompt": "Represent the text: "}], **{"class": "T5EncoderModel"},
    ),
    "deberta-v3-sts": _layout(
        "microsoft/deberta-v3-small in the layout of sentence-transformers", "deberta-v2", "deberta-v2", "DebertaV2Tokenizer",
        {"do_lower_case": False, "unk_token": "[UNK]", "split_by_punct": False, "model_max_length": 40},
        _BERT | {"max_position_embeddings": 48, "relative_attention": False, "type_vocab_size": 0},
        _pooling("mean_tokens"), limit=32, token_types=False,
    ),
    "gte-modernbert-base": _layout(
        "Alibaba-NLP/gte-modernbert-base", "modernbert", "gpt2", "PreTrainedTokenizerFast",
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<|padding|>", "model_max_length": 60},
        _BERT | {"max_position_embeddings": 64, "pad_token_id": 0, "local_attention": 8, "global_attn_every_n_layers": 2},
        _pooling("cls_token"), token_types=False,
    ),
    "modernbert-embed-base": _layout(
        "nomic-ai/modernbert-embed-base", "modernbert", "gpt2", "PreTrainedTokenizerFast",
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<|padding|>", "model_max_length": 60},
        _BERT | {"max_position_embeddings": 64, "pad_token_id": 0, "local_attention": 8, "global_attn_every_n_layers": 2},
        _pooling("mean_tokens"), _NORMALIZE, token_types=False, sets=PROMPTED,
        files={"config_sentence_transformers.json": {"prompts": {"query": "search_query: ", "document": "search_document: "}}},
    ),
    "electra-small": _layout(
        "google/electra-small-discriminator in the layout of sentence-transformers", "electra", "bert", "ElectraTokenizerFast",
        {**_UNCASED}, _BERT | {"embedding_size": 8, "max_position_embeddings": 48}, _pooling("max_tokens"), limit=40,
    ),
    "nomic-embed-text-v1.5": _layout(
        "nomic-ai/nomic-embed-text-v1.5", "nomic_bert", "bert", "BertTokenizer", {**_UNCASED, "model_max_length": 60},
        _BERT | {"max_position_embeddings": 64}, _pooling("mean_tokens"), limit=60,
        sets=[{}, {"dimensions": 6}, {"prompt": "search_query: "}],
    ),
    "Qwen3-Embedding-0.6B": _layout(
        "Qwen/Qwen3-Embedding-0.6B", "qwen3", "gpt2", "Qwen2Tokenizer",
        {"eos_token": "<|im_start|>", "pad_token": "<|endoftext|>", "padding_side": "left", "add_prefix_space": False},
        _QWEN, _pooling("lasttoken"), _NORMALIZE, token_types=False, sets=PROMPTED,
        tokenizer={"json": {"post_processor": {
            "type": "Sequence", "processors": [
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
                {"type": "TemplateProcessing",
                 "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
                 "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                 "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}},
            ],
        }}},
        files={"config_sentence_transformers.json": {
            "prompts": {"query": "Instruct: find the passage\nQuery:", "document": ""}, "default_prompt_name": None,
        }},
    ),
    "SGPT-125M": _layout(
        "Muennighoff/SGPT-125M-weightedmean-nli-bitfit", "gpt_neo", "gpt2", "GPT2Tokenizer",
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
         "attention_types": [[["global", "local"], 1]]},
        _pooling("weightedmean_tokens"), limit=40, token_types=False,
    ),
    "layer-norm-normalize-dense": _layout(
        "no repository: modules of sentence-transformers in an order of their own", "bert", "bert", "BertTokenizer", _UNCASED,
        _BERT | {"max_position_embeddings": 48}, _pooling("mean_sqrt_len_tokens"), ("LayerNorm", "2_LayerNorm", {"dimension": 16}),
        ("Normalize", "3_Normalize", {}), ("Dropout", "4_Dropout", {"dropout": 0.1}), _dense("5_Dense", 12, "activation.GELU"),
        limit=40, sets=SHORTER,
    ),
    "truncate-dim-twice-pooled": _layout(
        "no repository: truncate_dim behind two pooling modes and a Normalize", "roberta", "roberta", "RobertaTokenizer",
        {**_R, "mask_token": "<mask>", "model_max_length": 40}, _ROBERTA,
        (_NEW, "1_Pooling", {"embedding_dimension": 16, "pooling_mode": ["cls", "mean"], "include_prompt": True}), _NORMALIZE,
        files={"config_sentence_transformers.json": {"truncate_dim": 20, "prompts": {"query": None}}}, token_types=False,
    ),
    "tokenizer-calls": _layout(
        "no repository: arguments of calls, left truncation and no special tokens", "distilbert", "bert", "DistilBertTokenizer",
        _CASED, _DISTILBERT, _pooling("mean_tokens"),
        files={"sentence_bert_config.json": {
            "max_seq_length": 30, "do_lower_case": True, "tokenizer_args": {"truncation_side": "left", "do_lower_case": True},
            "processing_kwargs": {"text": {"max_length": 12, "add_special_tokens": False}},
        }},
    ),
    "vocabulary-only-mpnet": _layout(
        "no repository: an MPNet from before tokenizer.json", "mpnet", "mpnet", "MPNetTokenizer",
        {"do_lower_case": False, "unk_token": "[UNK]", "mask_token": "<mask>", "model_max_length": 40}, _ROBERTA,
        _pooling("cls_token"), tokenizer={"vocab": True}, limit=32,
    ),
    "chat-flat": _layout(
        "no repository: a Qwen3 whose texts are messages, with a prompt, an answer begun and a limit", "qwen3", "gpt2",
        "Qwen2Tokenizer", {"eos_token": "<|im_start|>", "pad_token": "<|endoftext|>", "chat_template": _CHATML, "model_max_length": 40},
        _QWEN, _pooling("lasttoken"), _NORMALIZE, token_types=False, sets=[{}, {"prompt": "Find it."}],
        files={"sentence_bert_config.json": _MESSAGES | {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}},
    ),
    "chat-without-suffix": _layout(
        "no repository: a cut may lose what the template puts behind a text", "bert", "bert", "BertTokenizer",
        _UNCASED | {"chat_template": [{"name": "default", "template": _CHATML}], "model_max_length": 20},
        _BERT | {"max_position_embeddings": 48}, _pooling("mean_tokens"),
        files={"sentence_bert_config.json": _MESSAGES | {"processing_kwargs": {"chat_template": {"restore_suffix": False, "style": 1}}}},
    ),
    "chat-structured": _layout(
        "no repository: parts of messages, through tojson, loops and special tokens", "bert", "bert", "BertTokenizer", _UNCASED,
        _BERT | {"max_position_embeddings": 48}, _pooling("mean_tokens"), sets=[{}, {"prompt_name": "query"}],
        files={
            "sentence_bert_config.json": _MESSAGES | {"max_seq_length": 24},
            "config_sentence_transformers.json": {"prompts": {"query": "ask \"well\""}},
        },
        template="{{ cls_token }} {% for m in messages %}\n  {% if loop.index > 3 %}{% break %}{% endif %}\n  {{ m.role|upper }}: "
        "{% for part in m.content if part.type == 'text' %}{{ part.text|trim|tojson }}{% endfor %}\n{% endfor %} {{ sep_token }}",
    ),
    "potion-base-8M": {
        "of": "minishlab/potion-base-8M", "base": "bert", "table": "embeddings", "tokenizer": {"json": {"post_processor": None}},
        "config": {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": 12, "normalize": True},
        "modules": [("StaticEmbedding", ".", None), ("Normalize", "1_Normalize", None)],
    },
    "static-retrieval-mrl-en-v1": {
        "of": "sentence-transformers/static-retrieval-mrl-en-v1", "base": "bert", "table": "embedding.weight",
        "tokenizer": {"json": {"truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}}},
        "modules": [("StaticEmbedding", "", None)], "sets": SHORTER,
    },
    "static-mapped": {
        "of": "no repository: a vocabulary of model2vec that is mapped to fewer rows, and weighted", "base": "roberta",
        "table": "embeddings", "mapped": True, "tokenizer": {}, "modules": [("StaticEmbedding", "", None)],
    },
    "static-quantized": {
        "of": "no repository: the same in int8, with a stray file of a Transformer that nobody reads", "base": "roberta",
        "table": "embeddings", "mapped": True, "whole": True, "tokenizer": {},
        "modules": [("StaticEmbedding", "", None), _NORMALIZE],
        "files": {"sentence_bert_config.json": {"max_seq_length": 3, "do_lower_case": True, "query_length": 4}},
    },
}  # fmt: skip
