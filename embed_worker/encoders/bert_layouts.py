"""How the architectures of BERT's family differ: where each has what BERT has, and under which names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from embed_worker.model_files.safetensors import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class BertLayout:
    """Where an architecture has what BERT has.

    Attributes:
        prefix: Of the tensors' names in checkpoints that have a head.
        keys: BERT's keys of config.json and this one's, where they differ.
        names: Parts of BERT's tensor names and this one's, replaced in order.
        counts_tokens: Positions are counted over the tokens and begin behind the padding's own.
        padding_id: Of positions, whatever the configuration says; None: the configuration's.
        epsilon: What a norm adds to the variance, whatever the configuration says; None: the configuration's.
        relative_buckets: The key for the size of a table of relative positions; None: there is none.
    """

    prefix: str
    keys: Mapping[str, str] = field(default_factory=dict)
    names: tuple[tuple[str, str], ...] = ()
    counts_tokens: bool = False
    padding_id: int | None = None
    epsilon: float | None = None
    relative_buckets: str | None = None


_ROBERTA = BertLayout(prefix="roberta.", counts_tokens=True)
LAYOUTS: Mapping[str, BertLayout] = {
    "bert": BertLayout(prefix="bert."),
    "camembert": _ROBERTA,
    "distilbert": BertLayout(
        prefix="distilbert.",
        keys={
            "hidden_act": "activation",
            "hidden_size": "dim",
            "intermediate_size": "hidden_dim",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
        },
        names=(
            ("encoder.layer", "transformer.layer"),
            ("attention.self.query", "attention.q_lin"),
            ("attention.self.key", "attention.k_lin"),
            ("attention.self.value", "attention.v_lin"),
            ("attention.output.dense", "attention.out_lin"),
            ("attention.output.LayerNorm", "sa_layer_norm"),
            ("intermediate.dense", "ffn.lin1"),
            ("output.dense", "ffn.lin2"),
            ("output.LayerNorm", "output_layer_norm"),
        ),
        epsilon=1e-12,
    ),
    "mpnet": BertLayout(
        prefix="mpnet.",
        names=(
            ("attention.self.query", "attention.attn.q"),
            ("attention.self.key", "attention.attn.k"),
            ("attention.self.value", "attention.attn.v"),
            ("attention.output.dense", "attention.attn.o"),
            ("attention.output.LayerNorm", "attention.LayerNorm"),
        ),
        counts_tokens=True,
        padding_id=1,
        relative_buckets="relative_attention_num_buckets",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
MODEL_TYPES = tuple(LAYOUTS)
# Without a table of relative positions: what the accelerators' own forms of a BERT compute.
ABSOLUTE_MODEL_TYPES = tuple(name for name, layout in LAYOUTS.items() if layout.relative_buckets is None)


# Checkpoints that were converted from TensorFlow call them so.
_OLD_NORM_NAMES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


def checkpoint_names(layout: BertLayout, file: Mapping[str, Tensor]) -> Callable[[str], str]:
    """Return the function from BERT's tensor names to those in a file."""
    prefix = layout.prefix if f"{layout.prefix}embeddings.word_embeddings.weight" in file else ""
    is_old = f"{prefix}embeddings.LayerNorm.gamma" in file
    replacements = (*layout.names, *(_OLD_NORM_NAMES if is_old else ()))

    def checkpoint_name(name: str) -> str:
        for ours, theirs in replacements:
            name = name.replace(ours, theirs)
        return prefix + name

    return checkpoint_name
