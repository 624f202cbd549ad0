"""What a text encoder's graph must look like: the inputs that are made from a batch, and the output that is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embed_worker.errors import ModelError
from embed_worker.inference.pooling import Float32, pool
from embed_worker.inference.token_batch import TokenBatch, position_ids
from embed_worker.model_files.onnx_outline import HIDDEN_OUTPUTS, HIDDEN_STATE, SENTENCE_OUTPUT
from embed_worker.model_files.plan import ModelPlan

KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_INTEGER_TYPES: dict[str, Any] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, **_INTEGER_TYPES}

Feed: TypeAlias = Callable[[TokenBatch], NDArray[Any]]


class Described(Protocol):
    """An input or an output as onnxruntime describes it, or as `graph_summary` does."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def type(self) -> str:
        """The type of its elements, in words."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Its dimensions: numbers, names, or nothing."""


class GraphIo:
    """How one graph is fed, and what is made of what it gives; the same for every runtime that runs it.

    Attributes:
        output: The name of the output that is taken.
        output_type: The type of its elements, in words.
        is_end_to_end: Whether it has the model's final vectors.
        max_rows: The most texts that a batch may have; None: any number.
    """

    def __init__(self, inputs: Sequence[Described], outputs: Sequence[Described], plan: ModelPlan) -> None:
        """Look at the inputs and outputs of a graph.

        Raises:
            ModelError: They are not those of a text encoder.
        """
        output = choose_output(outputs, plan)
        self.output = output.name
        self.output_type = output.type.removeprefix("tensor(").removesuffix(")")
        self.is_end_to_end = is_sentence(output)
        self.max_rows = fixed_rows(inputs, plan.name)
        batch_axis = next((node.shape[0] for node in inputs if node.name == "input_ids" and node.shape), None)
        self._feeders = dict(feeder(node, batch_axis, plan) for node in inputs)
        self._plan = plan

    @property
    def has_mask(self) -> bool:
        """Whether the graph is told which tokens are padding."""
        return "attention_mask" in self._feeders

    def feeds(self, batch: TokenBatch) -> dict[str, NDArray[Any]]:
        """Make the inputs of a batch by name."""
        return {name: feed(batch) for name, feed in self._feeders.items()}

    def pooled(self, output: Float32, batch: TokenBatch) -> Float32:
        """Make one vector a text of what the graph gave: (B, T, D), or (B, D) as it is, → (B, D).

        Raises:
            ModelError: The output has another shape.
        """
        if self.is_end_to_end:
            return output
        if self.output == HIDDEN_STATE and output.ndim == 2:  # the graph has tokens as rows of one matrix
            output = output.reshape(*batch.ids.shape, -1)
        if output.ndim != 3 or output.shape[:2] != batch.ids.shape:
            problem = f"an output of shape {output.shape} for token ids of shape {batch.ids.shape}"
            raise ModelError(f"the model {self._plan.name!r} gives {problem}")
        stated = self._plan.pooling_dimension
        if stated is not None and output.shape[2] != stated:
            raise ModelError(
                f"the model {self._plan.name!r} has a graph of dimension {output.shape[2]}, "
                f"but its pooling configuration says {stated}"
            )
        return pool(output, batch.mask, self._plan.pooling, batch.skipped)


def choose_output(outputs: Sequence[Described], plan: ModelPlan) -> Described:
    """Choose what is taken of a graph: the token vectors, (B, T, D), or its own sentence vector, (B, D).

    Token vectors go through the folder's own modules, as in sentence-transformers, and so come first wherever all of
    them are at hand. Of vectors in several types the float ones are taken.

    An output of another name is taken where an option names it, or where it is the only one of tokens in floats.

    Raises:
        ModelError: There is neither, in floats and of its rank.
    """
    named = {output.name: output for output in outputs}
    if plan.onnx_output is not None:
        return _asked(named, plan.onnx_output, plan.name)
    if HIDDEN_STATE in named:
        return named[HIDDEN_STATE]
    known = [named[name] for name in (*HIDDEN_OUTPUTS, SENTENCE_OUTPUT) if name in named]
    if not known:
        return _only_tokens(outputs, plan.name)
    floats = [output for output in known if _is_float(output)]
    if not floats:
        kinds = ", ".join(f"{output.name} as {output.type}" for output in known)
        raise ModelError(f"the model {plan.name!r} has a graph that gives integers alone: {kinds}")
    hidden = [output for output in floats if output.name in HIDDEN_OUTPUTS]
    tokens = next((output for output in hidden if len(output.shape) == 3), None)
    sentence = next((output for output in floats if output.name == SENTENCE_OUTPUT), None)
    if tokens is not None and (sentence is None or plan.takes_tokens):
        return tokens
    if sentence is not None:
        return sentence
    rank = f"{hidden[0].name} has {len(hidden[0].shape)} dimensions"
    raise ModelError(f"the model {plan.name!r} has a graph whose {rank}, not batch, tokens, size")


def _asked(named: Mapping[str, Described], wanted: str, name: str) -> Described:
    output = named.get(wanted)
    if output is None:
        has = ", ".join(map(_described, named.values()))
        raise ModelError(f"the model {name!r} has a graph without the output {wanted!a} of --onnx-output: it has {has}")
    if not _is_float(output) or len(output.shape) not in (2, 3):
        needed = "floats with the axes batch, tokens, size or batch, size"
        raise ModelError(f"the model {name!r} has a graph whose output {_described(output)} is none of {needed}")
    return output


def _only_tokens(outputs: Sequence[Described], name: str) -> Described:
    tokens = [output for output in outputs if _is_float(output) and len(output.shape) == 3]
    if len(tokens) == 1 and not tokens[0].name.lower().endswith("logits"):
        return tokens[0]
    if len(tokens) == 1:
        # One number for each word of the vocabulary, or for each label.
        raise ModelError(
            f"the model {name!r} has a graph that gives {_described(tokens[0])}, the scores of a language model or a "
            "classifier, and no token vectors: export it for feature extraction"
        )
    usual = " or ".join((*HIDDEN_OUTPUTS, SENTENCE_OUTPUT))
    has = ", ".join(map(_described, outputs))
    raise ModelError(
        f"the model {name!r} has a graph without an output {usual}: it has {has}; --onnx-output names the one to take"
    )


def is_sentence(output: Described) -> bool:
    """Return whether an output that was chosen is a vector of the whole text."""
    # A hidden state may have the tokens of all texts as the rows of one matrix.
    return output.name == SENTENCE_OUTPUT or (len(output.shape) == 2 and output.name != HIDDEN_STATE)


def _is_float(output: Described) -> bool:
    return "float" in output.type or "double" in output.type


def _described(output: Described) -> str:
    kind = output.type.removeprefix("tensor(").removesuffix(")")
    return f"{output.name} ({kind}, {len(output.shape)} axes)"


def fixed_rows(inputs: Sequence[Described], name: str) -> int | None:
    """Return how many texts a batch must have: 1, or None for any number.

    Raises:
        ModelError: Not every length fits, or a batch has some other fixed number of texts.
    """
    shape = next((node.shape for node in inputs if node.name == "input_ids"), ())
    if list(shape[:1]) == [1] and not any(isinstance(size, int) for size in shape[1:]):
        return 1
    if any(isinstance(size, int) for size in shape):
        problem = f"has a graph for texts of one fixed shape, {list(shape)}: export it with dynamic axes"
        raise ModelError(f"the model {name!r} {problem}")
    return None


def feeder(node: Described, batch_axis: object, plan: ModelPlan) -> tuple[str, Feed]:
    """Pair an input of the graph with the function that makes it from a batch.

    Args:
        node: Name, type and shape, as onnxruntime describes an input.
        batch_axis: What the graph calls the first axis of `input_ids`.
        plan: Its model.

    Raises:
        ModelError: Nothing is known to feed it with.
    """
    if node.name in KNOWN_INPUTS:
        # Some exporters multiply with the mask as it comes, and so take it in floats.
        dtype = (_TYPES if node.name == "attention_mask" else _INTEGER_TYPES).get(node.type)
        if dtype is None:
            raise ModelError(f"the model {plan.name!r} has a graph whose {node.name} is {node.type}, not integers")
        return node.name, _feed(node.name, dtype, plan.padding_position)
    # What a decoder carries from one token to the next is empty here, and so are images and sounds; the graph says in
    # which dimension. The batch's own is not it.
    dtype = _TYPES.get(node.type)
    follows_batch = bool(node.shape) and not isinstance(node.shape[0], int) and node.shape[0] == batch_axis
    shape = [size if isinstance(size, int) else 0 for size in node.shape]
    if dtype is None or 0 not in (shape[1:] if follows_batch else shape):
        raise ModelError(
            f"the model {plan.name!r} has a graph with an input that is not known: {node.name} {node.type}"
        )

    def feed(batch: TokenBatch) -> NDArray[Any]:
        return np.zeros([len(batch.ids), *shape[1:]] if follows_batch else shape, dtype)

    return node.name, feed


def _feed(name: str, dtype: Any, padding_position: int | None) -> Feed:
    match name:
        case "input_ids":
            return lambda batch: batch.ids.astype(dtype, copy=False)
        case "attention_mask":
            return lambda batch: batch.mask.astype(dtype, copy=False)
        case "token_type_ids":
            return lambda batch: np.zeros(batch.ids.shape, dtype)
        case _:
            return lambda batch: position_ids(batch.ids, batch.mask, padding_position).astype(dtype, copy=False)
