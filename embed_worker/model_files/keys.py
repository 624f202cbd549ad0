"""The keys of the sentence-transformers files: which are read, which shape no vector, and which are refused by name.

The table is complete for sentence-transformers 6.2: tests/reference/keys.json has the arbiter's own list. A key that is
in neither is told, and serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any


class Key(Enum):
    """What becomes of a key."""

    READ = auto()
    SHAPES_NOTHING = auto()
    REFUSED = auto()


def _keys(*, read: str = "", nothing: str = "", refused: str = "") -> dict[str, Key]:
    kinds = {Key.READ: read, Key.SHAPES_NOTHING: nothing, Key.REFUSED: refused}
    return {name: key for key, names in kinds.items() for name in names.split()}


# By the class of the module; the two files at the root by their names.
KEYS: Mapping[str, Mapping[str, Key]] = {
    "config_sentence_transformers.json": _keys(
        read="prompts default_prompt_name truncate_dim model_type",
        nothing="__version__ requirements similarity_fn_name",
    ),
    # `kwargs` names arguments of `encode` that a module would take; nobody passes one here.
    "modules.json": _keys(read="name path type", nothing="idx kwargs"),
    "Transformer": _keys(
        read="""transformer_task modality_config module_output_name processing_kwargs max_seq_length do_lower_case
            model_kwargs model_args processor_kwargs tokenizer_args config_kwargs config_args""",
        nothing="unpad_inputs",
        refused="query_length document_length query_expansion tokenizer_name_or_path",
    ),
    "Pooling": _keys(
        read="""embedding_dimension word_embedding_dimension pooling_mode include_prompt pooling_mode_cls_token
            pooling_mode_max_tokens pooling_mode_mean_tokens pooling_mode_mean_sqrt_len_tokens
            pooling_mode_weightedmean_tokens pooling_mode_lasttoken"""
    ),
    "Dense": _keys(
        read="""in_features out_features bias activation_function module_input_name module_output_name
            use_residual""",
        refused="init_weight init_bias",
    ),
    "LayerNorm": _keys(read="dimension"),
    "Normalize": _keys(read="module_input_name module_output_name"),
    "Dropout": _keys(nothing="dropout"),
    "StaticEmbedding": _keys(),
}

# Arguments for transformers, which a folder may carry: how weights are loaded and computed, and not what they are.
MODEL_KWARGS_THAT_SHAPE_NOTHING = frozenset(
    [
        "attn_implementation",
        "dtype",
        "torch_dtype",
        "device_map",
        "low_cpu_mem_usage",
        "use_safetensors",
        "trust_remote_code",
        "provider",
        "provider_options",
        "session_options",
        "export",
        "add_pooling_layer",
        "code_revision",
        "revision",
        "token",
        "cache_dir",
        "local_files_only",
        "subfolder",
        "offload_folder",
        "max_memory",
        "weights_only",
    ]
)
CONFIG_KWARGS_THAT_SHAPE_NOTHING = frozenset(
    [
        "use_cache",
        "trust_remote_code",
        "unpad_inputs",
        "use_memory_efficient_attention",
        "add_pooling_layer",
        "attn_implementation",
        "dtype",
        "torch_dtype",
        "code_revision",
        "revision",
        "token",
        "cache_dir",
        "local_files_only",
        "subfolder",
        "output_attentions",
    ]
)
PROCESSOR_KWARGS_THAT_SHAPE_NOTHING = frozenset(
    [
        "use_fast",
        "trust_remote_code",
        "code_revision",
        "revision",
        "token",
        "cache_dir",
        "local_files_only",
        "subfolder",
        "clean_up_tokenization_spaces",
        "verbose",
    ]
)
# These would take the tokenizer from elsewhere.
PROCESSOR_KWARGS_REFUSED = frozenset(
    [
        "tokenizer_type",
        "gguf_file",
        "mistral_format",
        "config",
        "tokenizer_file",
        "vocab_file",
        "merges_file",
        "tokenizer_object",
        "vocab",
        "merges",
        "processor_class",
        "name_or_path",
    ]
)
# What calls of the tokenizer may carry without a change of any vector: how a batch is padded, and what comes back.
# Padding of a text that is alone is another matter: `folder.py` looks at it.
CALL_KWARGS_THAT_SHAPE_NOTHING = frozenset(
    [
        "padding",
        "padding_side",
        "pad_to_multiple_of",
        "return_tensors",
        "return_attention_mask",
        "return_token_type_ids",
        "return_special_tokens_mask",
        "return_length",
        "logits_to_keep",
        "verbose",
    ]
)
# Arguments of `apply_chat_template` itself; what else a folder states is a variable of its template.
CHAT_KWARGS_REFUSED = frozenset(
    {"chat_template", "continue_final_message", "max_length", "return_assistant_tokens_mask", "return_dict"}
    | {"sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "truncation"}
)


def unread(kind: str, config: Mapping[str, Any]) -> list[str]:
    """Return the keys that sentence-transformers does not read either."""
    return [key for key in config if key not in KEYS[kind]]


def refused(kind: str, config: Mapping[str, Any]) -> list[str]:
    """Return the keys that would change vectors and are not followed; null is nobody's wish."""
    return [key for key, value in config.items() if KEYS[kind].get(key) is Key.REFUSED and value is not None]
