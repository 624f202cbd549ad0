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
    """A `Dense` module: `activation` is the last component of its class's name; sizes are None where none is stated."""

    weights: Path
    activation: str
    use_residual: bool
    in_features: int | None = None
    out_features: int | None = None


class PoolingSource(StrEnum):
    """What settles how token vectors are pooled."""

    FOLDER = "folder"
    OPTION = "option"
    TABLE = "table"  # of known models
    GRAPH = "graph"  # nothing: the graph pools by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """How to run a model as its folder says.

    Attributes:
        name: The folder's name, by which requests call the model.
        graph: The ONNX file to run.
        pooling: The modes whose vectors are concatenated, in order; none where only the graph knows.
        pooling_source: What settles it.
        pooling_dimension: What the pooling configuration says the token vectors have; None where it does not.
        include_prompt: Whether the prompt's tokens take part in the pooling.
        dense: Linear layers after the pooling, in order.
        normalize: Whether answers are L2-normalised unless the request says otherwise.
        padding_position: Positions of the architecture are counted over the tokens with other ids than this one, and
            begin behind it; None: over all tokens, from 0.
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
    pooling_source: PoolingSource = PoolingSource.FOLDER
    pooling_dimension: int | None
    include_prompt: bool
    dense: tuple[DensePlan, ...]
    normalize: bool
    padding_position: int | None = None
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
    def takes_tokens(self) -> bool:
        """Whether token vectors are taken where the graph gives a sentence vector, too: all that follows is at hand."""
        is_settled = self.pooling_source in (PoolingSource.FOLDER, PoolingSource.OPTION)
        return is_settled and all(layer.weights.is_file() for layer in self.dense)

    @property
    def tokenizer_file(self) -> Path:
        """The fast tokenizer's own file."""
        return self.folder / "tokenizer.json"
