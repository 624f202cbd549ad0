"""The resolved plan of a model folder: what was decided, with the source of each decision."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from embed_worker.model_files.tokenizer_plan import TokenizerPlan
from embed_worker.protocol.spelling import closest


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
    """A `Dense` module: `activation` is the last component of its class in `torch.nn`; None for what is not stated."""

    weights: Path
    activation: str
    use_residual: bool
    in_features: int | None = None
    out_features: int | None = None
    bias: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNormPlan:
    """A `LayerNorm` module."""

    weights: Path


@dataclass(frozen=True, slots=True)
class NormalizePlan:
    """A `Normalize` module that others follow."""


ModulePlan: TypeAlias = DensePlan | LayerNormPlan | NormalizePlan


class PoolingSource(StrEnum):
    """What decides how token vectors are pooled."""

    FOLDER = "folder"
    OPTION = "option"
    TABLE = "table"  # of known models
    GRAPH = "graph"  # nothing: the graph pools by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPlan:
    """How a text becomes a message of a chat.

    Attributes:
        template: In the language Jinja.
        is_structured: The content of a message is a list of parts, and not a string.
        restores_suffix: A cut keeps what the template puts behind a text.
        variables: What the template may use besides the messages.
    """

    template: str
    is_structured: bool
    restores_suffix: bool = True
    variables: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """How to run a model as its folder says.

    Attributes:
        name: The folder's name, by which requests call the model.
        graph: The ONNX file to run; the file of the table where `is_static`.
        is_static: A text's vector is the mean of rows of a table: no graph, no limit, no special tokens.
        onnx_output: The graph's output to take, where an option names it.
        pooling: The modes whose vectors are concatenated, in order; none where only the graph knows.
        pooling_source: What decides it.
        pooling_dimension: What the pooling configuration says the token vectors have; None where it does not.
        include_prompt: Whether the prompt's tokens take part in the pooling.
        modules: What follows the pooling, in order.
        normalize: Whether answers are L2-normalised at last unless the request says otherwise.
        truncate_dim: How many components an answer has unless the request says otherwise; None for all.
        hidden_state: Which of the hidden states is pooled, as an index into them all; None for the last.
        padding_position: Positions of the architecture are counted over the tokens with other ids than this one, and
            begin behind it; None: over all tokens, from 0.
        max_tokens: Longer texts are cut, special tokens included.
        prompts: By name; `query` and `document` always exist.
        tokenizer: How the tokenizer is made.
        adds_special_tokens: Whether a text gets the special tokens of the template.
        chat: How a text becomes a message; None where it stays a text.
        lowercase: Whether texts are lower-cased before the tokenizer sees them.
        allow_links: Whether links may lead out of the folder.
        decisions: All of it with sources, for people.
        warnings: Sentences about what a person should look at.
    """

    name: str
    folder: Path
    graph: Path
    is_static: bool = False
    onnx_output: str | None = None
    pooling: tuple[PoolingMode, ...]
    pooling_source: PoolingSource = PoolingSource.FOLDER
    pooling_dimension: int | None
    include_prompt: bool
    modules: tuple[ModulePlan, ...]
    normalize: bool
    truncate_dim: int | None = None
    hidden_state: int | None = None
    padding_position: int | None = None
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    tokenizer: TokenizerPlan
    adds_special_tokens: bool = True
    chat: ChatPlan | None = None
    lowercase: bool
    allow_links: bool = False
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...] = ()

    @property
    def takes_tokens(self) -> bool:
        """Whether token vectors are taken where the graph gives a sentence vector, too: all that follows is at hand."""
        is_stated = self.pooling_source in (PoolingSource.FOLDER, PoolingSource.OPTION)
        return is_stated and all(file.is_file() for file in self.weights_of_modules)

    @property
    def weights_of_modules(self) -> tuple[Path, ...]:
        """The files that modules behind the pooling have, in their order; a graph that pools itself needs none."""
        return tuple(module.weights for module in self.modules if not isinstance(module, NormalizePlan))

    @property
    def last_normalize(self) -> tuple[NormalizePlan, ...]:
        """A Normalize at the end of the modules, which `truncate_dim` cuts after; empty where there is none."""
        return tuple(module for module in self.modules[-1:] if isinstance(module, NormalizePlan))

    @property
    def dense(self) -> tuple[DensePlan, ...]:
        """The `Dense` modules behind the pooling."""
        return tuple(module for module in self.modules if isinstance(module, DensePlan))

    @property
    def home(self) -> Path | None:
        """The folder that no link of a file may leave; None where links may lead anywhere."""
        return None if self.allow_links else self.folder

    @property
    def pad_left(self) -> bool:
        """Whether padding goes before the text."""
        return self.tokenizer.pad_left

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer's own file."""
        return self.tokenizer.file


def pooling_argument(text: str) -> str:
    """Read pooling modes of the command line, with commas between them.

    Raises:
        argparse.ArgumentTypeError: There is no such mode.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in list(PoolingMode):
            meant = closest(name, PoolingMode)
            hint = f"the modes are {', '.join(PoolingMode)}" if meant is None else f"did you mean `{meant}`?"
            raise argparse.ArgumentTypeError(f"there is no pooling {name[:64]!a}; {hint}")
    return ",".join(names)
