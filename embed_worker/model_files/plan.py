"""The resolved plan of a model folder: what was decided, with the source of each decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class PoolingMode(StrEnum):
    """How token vectors become one vector; the names are those of sentence-transformers."""

    CLS = "cls"
    MAX = "max"
    MEAN = "mean"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"
    WEIGHTED_MEAN = "weightedmean"
    LAST_TOKEN = "lasttoken"  # noqa: S105 - a token of text


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the plan: what was decided, and what decided it."""

    subject: str
    value: object
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePlan:
    """A `Dense` module: `activation` is the last component of its class's name."""

    weights: Path
    activation: str
    use_residual: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """How to run a model as its folder says.

    Attributes:
        name: The folder's name, by which requests call the model.
        graph: The ONNX file to run.
        pooling: The modes whose vectors are concatenated, in order.
        pooling_dimension: What the pooling configuration says the token vectors have; None where it does not.
        include_prompt: Whether the prompt's tokens take part in the pooling.
        dense: Linear layers after the pooling, in order.
        normalize: Whether answers are L2-normalised unless the request says otherwise.
        max_tokens: Longer texts are cut, special tokens included.
        prompts: By name; `query` and `document` always exist.
        pad_token: The tokenizer's own; None where the folder names none.
        pad_left: Whether padding goes before the text.
        truncate_left: Whether a cut takes the beginning of the text.
        lowercase: Whether texts are lower-cased before the tokenizer sees them.
        decisions: All of it with sources, for people.
        warnings: Sentences about what a person should look at.
    """

    name: str
    folder: Path
    graph: Path
    pooling: tuple[PoolingMode, ...]
    pooling_dimension: int | None
    include_prompt: bool
    dense: tuple[DensePlan, ...]
    normalize: bool
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    pad_token: str | None
    pad_left: bool
    truncate_left: bool
    lowercase: bool
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...] = ()

    @property
    def tokenizer_file(self) -> Path:
        """The fast tokenizer's own file."""
        return self.folder / "tokenizer.json"
