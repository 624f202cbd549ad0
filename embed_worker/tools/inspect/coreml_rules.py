"""The rules by which onnxruntime's CoreML provider claims a node of a graph, from 1.22 to 1.31.

The table of operators is data. A rule is a small function that gives the reason for which a node is not claimed.

Sources: microsoft/onnxruntime, `core/providers/coreml/builders` (the classes are named at the rules); of the macOS
arm64 wheels 1.22.1 to 1.31.1 the tables `coreml_supported_*_ops.md`, the registrations and the machine code.

Not modelled: the particular rules of operators that text encoders do not have (convolution, resizing, pooling of
images and such are judged by name and type), and below 1.23 the refusal of weights in external files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto, numpy_helper

Version: TypeAlias = tuple[int, int]

# The table of operators ---------------------------------------------------------------------------------------------


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# By the version that brought them. The provider looks them up by name alone, whatever their domain.
_OPERATORS_SINCE: Mapping[Version, frozenset[str]] = {
    (1, 22): _names(
        """Add ArgMax AveragePool BatchNormalization Cast Clip Concat Conv ConvTranspose DepthToSpace Div Erf Flatten
        Gather Gelu Gemm GlobalAveragePool GlobalMaxPool GridSample GroupNormalization InstanceNormalization LRN
        LayerNormalization LeakyRelu MatMul Max MaxPool Mul PRelu Pad Pow Reciprocal ReduceMax ReduceMean ReduceMin
        ReduceProd ReduceSum Relu Reshape Resize Round Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tanh
        Transpose Unsqueeze"""
    ),
    (1, 24): _names("Elu Exp Softplus"),
    (1, 26): _names("HardSigmoid QuickGelu"),
    (1, 27): _names("Ceil Cos FusedConv GatherND Identity Sin Tile"),
    (1, 28): _names("And Where"),
}
OLDEST, NEWEST = (1, 22), (1, 31)  # the versions that were looked at
_ONLY_NEURAL_NETWORK = _names("Flatten LRN")
_ONLY_ML_PROGRAM = _names(
    """And ConvTranspose Erf FusedConv GatherND Gelu GridSample GroupNormalization InstanceNormalization
    LayerNormalization Max QuickGelu ReduceMax ReduceMin Round Unsqueeze Where"""
)
# From 1.27 a group of nothing but these is handed back (`IOpBuilder::IsTrivial`).
_TRIVIAL = _names("Cast Ceil Flatten Identity Reshape Squeeze Tile Transpose Unsqueeze")
_TRIVIAL_SINCE = (1, 27)
# The newest revision of an operator that is understood (`GetMaxSupportedOpSet`).
_MAX_SINCE_VERSION: Mapping[Version, int] = {(1, 22): 21, (1, 23): 23, (1, 24): 25, (1, 28): 27}
_MAX_RANK = 5
# Up to 1.22 of every input, constants included; later of convolutions alone.
_MAX_LENGTH, _MAX_LENGTH_UNTIL = 16_384, (1, 22)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """The provider of one onnxruntime, with its options `ModelFormat` and `RequireStaticInputShapes`."""

    version: Version
    is_ml_program: bool
    static: bool

    @property
    def operators(self) -> frozenset[str]:
        """The operators that it has, in either format."""
        return frozenset().union(*(names for since, names in _OPERATORS_SINCE.items() if since <= self.version))

    @property
    def max_since_version(self) -> int:
        """The newest revision of an operator that it understands."""
        return max(newest for since, newest in _MAX_SINCE_VERSION.items() if since <= self.version)

    @property
    def floats(self) -> frozenset[int]:
        """The types that most operators compute in."""
        return frozenset({TensorProto.FLOAT, TensorProto.FLOAT16} if self.is_ml_program else {TensorProto.FLOAT})

    def keeps(self, operators: Iterable[str]) -> bool:
        """Tell whether it keeps a group of claimed nodes, or hands it back because it computes nothing."""
        return self.version < _TRIVIAL_SINCE or not _TRIVIAL.issuperset(operators)


# A node as the rules see it -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input of a node. A dimension that is not known is -1; of an unknown rank there is no shape."""

    kind: int = TensorProto.UNDEFINED
    shape: tuple[int, ...] | None = None
    initializer: TensorProto | None = None
    is_graph_input: bool = False

    @property
    def kind_name(self) -> str:
        """Its type, in words."""
        return str(TensorProto.DataType.Name(self.kind)).lower()


@dataclass(frozen=True, slots=True)
class Node:
    """A node, with what its rule may ask."""

    name: str
    operator: str
    inputs: tuple[Tensor | None, ...]  # None for one that is left out
    outputs: int
    attributes: Mapping[str, Any]
    since_version: int  # 0 where it is not known

    def is_constant(self, place: int) -> bool:
        """Whether an input is an initializer; one that is left out is."""
        given = self.inputs[place] if place < len(self.inputs) else None
        return given is None or given.initializer is not None


# The rules by which the provider claims a node ----------------------------------------------------------------------
# Each gives the reason for which it does not, or None.

_Rule: TypeAlias = Callable[[Node, Provider], str | None]


def refusal(node: Node, provider: Provider) -> str | None:
    """Say why the provider does not claim a node; None if it does. Reference: `BaseOpBuilder::IsOpSupported`."""
    if node.operator not in provider.operators:
        return "the provider has no such operator"
    if provider.is_ml_program and node.operator in _ONLY_NEURAL_NETWORK:
        return "ML programs have no such operator"
    if not provider.is_ml_program and node.operator in _ONLY_ML_PROGRAM:
        return "only ML programs have such an operator"
    if node.since_version > provider.max_since_version:
        return f"its revision {node.since_version} is newer than {provider.max_since_version}"
    rules = _RULES.get(node.operator, (_float_input,))
    return next((reason for rule in (_inputs, *rules) if (reason := rule(node, provider)) is not None), None)


def _inputs(node: Node, provider: Provider) -> str | None:
    """Check the shapes of all inputs: `IsInputSupported`."""
    for given in node.inputs:
        if given is None:
            continue
        if given.shape is None:
            return "an input has no shape that is known"
        if provider.static and -1 in given.shape:
            return "an input has a dynamic shape"
        if 0 in given.shape:
            return "an input is empty"
        if len(given.shape) > _MAX_RANK:
            return f"an input has more than {_MAX_RANK} dimensions"
        if provider.version <= _MAX_LENGTH_UNTIL and any(length > _MAX_LENGTH for length in given.shape):
            return f"an input has a dimension above {_MAX_LENGTH}"
    return None


def _float_input(node: Node, provider: Provider) -> str | None:
    """Check the type of the first input alone, as `BaseOpBuilder` does."""
    return _typed(node, 0, provider.floats)


def _typed(node: Node, place: int, allowed: frozenset[int]) -> str | None:
    given = node.inputs[place]
    if given is None or given.kind in allowed:
        return None
    return f"its input {place} is {given.kind_name}"


def _constant(*places: int) -> _Rule:
    """Make the rule that inputs, where they are given, are initializers."""

    def rule(node: Node, provider: Provider) -> str | None:
        computed = next((place for place in places if not node.is_constant(place)), None)
        return None if computed is None else f"its input {computed} is not constant"

    return rule


def _shape_of(node: Node, place: int) -> tuple[int, ...]:
    """The shape of an input that `_inputs` has let pass."""
    given = node.inputs[place]
    return () if given is None or given.shape is None else given.shape


def _or(provider: Provider, *kinds: int) -> frozenset[int]:
    return provider.floats | frozenset(kinds)


def _cast(node: Node, provider: Provider) -> str | None:
    if not provider.is_ml_program:
        return "NeuralNetwork models cast the result of ArgMax alone"
    known = _or(provider, TensorProto.INT32, TensorProto.INT64)
    if provider.version >= (1, 27):
        known |= {TensorProto.BOOL}
    elif node.inputs[0] is not None and node.inputs[0].is_graph_input:
        return "it casts an input of the graph"
    if reason := _typed(node, 0, known):
        return reason
    kind = node.attributes["to"]
    return None if kind in known else f"it casts to {str(TensorProto.DataType.Name(kind)).lower()}"


def _gather(node: Node, provider: Provider) -> str | None:
    data, rows = _shape_of(node, 0), _shape_of(node, 1)
    if reason := _typed(node, 0, _or(provider, TensorProto.INT64)):
        return reason
    if not rows and (provider.version < (1, 27) or -1 in data or len(data) > _MAX_RANK - 1):
        return "its index is a scalar"
    return "its result has too many dimensions" if len(data) + len(rows) - 1 > _MAX_RANK else None


def _shape(node: Node, provider: Provider) -> str | None:
    # The machine code lets int64 pass as well. It is left out as in the counts that this forecast is checked against:
    # it would give a graph with dynamic shapes one partition more, of a single node.
    kinds = _or(provider, TensorProto.INT32) if provider.is_ml_program else provider.floats
    return _typed(node, 0, kinds)


def _slice(node: Node, provider: Provider) -> str | None:
    if reason := _typed(node, 0, _or(provider, TensorProto.INT64)):
        return reason
    return "its data have a dynamic shape" if -1 in _shape_of(node, 0) else None


def _and(node: Node, provider: Provider) -> str | None:
    boolean = frozenset({TensorProto.BOOL})
    return _typed(node, 0, boolean) or _typed(node, 1, boolean)


def _where(node: Node, provider: Provider) -> str | None:
    if reason := _typed(node, 0, frozenset({TensorProto.BOOL})) or _typed(node, 1, provider.floats):
        return reason
    return _typed(node, 2, provider.floats) or _same_types(node, 1, 2)


def _same_types(node: Node, first: int, second: int) -> str | None:
    left, right = node.inputs[first], node.inputs[second]
    if left is None or right is None or left.kind == right.kind:
        return None
    return f"its inputs {first} and {second} are {left.kind_name} and {right.kind_name}"


def _tile(node: Node, provider: Provider) -> str | None:
    kinds = _or(provider, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
    if reason := _typed(node, 0, kinds):
        return reason
    return None if provider.is_ml_program else _constant(1)(node, provider)


def _layer_normalization(node: Node, provider: Provider) -> str | None:
    if node.attributes.get("stash_type", 1) != 1 or node.outputs != 1:
        return "it is a layer normalisation for training"
    return _same_types(node, 0, 1)


def _pow(node: Node, provider: Provider) -> str | None:
    return _same_types(node, 0, 1)


def _reshape(node: Node, provider: Provider) -> str | None:
    data, target = _shape_of(node, 0), node.inputs[1]
    if target is None or target.initializer is None:
        return "its new shape is not constant"
    lengths = np.atleast_1d(numpy_helper.to_array(target.initializer)).tolist()
    if len(lengths) > _MAX_RANK:
        return f"its new shape has more than {_MAX_RANK} dimensions"
    if not provider.is_ml_program and -1 in data:
        return "its data have a dynamic shape"
    copied = (known for length, known in zip(lengths, data, strict=False) if length == 0)
    return "its new shape copies a dynamic dimension" if -1 in copied else None


def _matmul(node: Node, provider: Provider) -> str | None:
    ranks = [len(_shape_of(node, place)) for place in (0, 1)]
    if provider.is_ml_program:
        return "one of its inputs is a vector" if 1 in ranks else None
    return None if ranks == [2, 2] else "its inputs are not two matrices"


def _gemm(node: Node, provider: Provider) -> str | None:
    scales = [node.attributes.get(name, 1.0) for name in ("alpha", "beta")]
    return "it transposes A or scales" if node.attributes.get("transA", 0) or scales != [1.0, 1.0] else None


def _split(node: Node, provider: Provider) -> str | None:
    return None if node.outputs > 1 else "it has one output"


def _constant_in_neural_networks(node: Node, provider: Provider) -> str | None:
    return None if provider.is_ml_program else _constant(1)(node, provider)


_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "And": (_and,),
    "Cast": (_cast,),
    "Clip": (_float_input, _constant(1, 2)),
    "Gather": (_gather,),
    "GatherND": (_constant(1),),
    "Gemm": (_float_input, _constant(1, 2), _gemm),
    "LayerNormalization": (_float_input, _constant(1, 2), _layer_normalization),
    "MatMul": (_float_input, _constant_in_neural_networks, _matmul),
    "Pow": (_float_input, _pow),
    "Reshape": (_float_input, _reshape),
    "Shape": (_shape,),
    "Slice": (_slice, _constant(1, 2, 3, 4)),
    "Split": (_float_input, _split, _constant(1)),
    "Squeeze": (_float_input, _constant(1)),
    "Tile": (_tile,),
    "Unsqueeze": (_float_input, _constant(1)),
    "Where": (_where,),
} | {f"Reduce{kind}": (_float_input, _constant(1)) for kind in ("Max", "Mean", "Min", "Prod", "Sum")}
