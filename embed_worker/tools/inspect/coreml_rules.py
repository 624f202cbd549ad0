"""The rules by which onnxruntime's CoreML provider claims a node of a graph, from 1.22 to 1.32.

The table of operators is data. A rule is a small function that gives the reason for which a node is not claimed.

Sources: microsoft/onnxruntime, `core/providers/coreml/builders` (the classes are named at the rules); of the macOS
arm64 wheels 1.22.1 to 1.32.0 the tables `coreml_supported_*_ops.md`, the registrations and the machine code. From 1.28
on the rules were compared with what the provider's own code says of 25,304 single nodes, on Linux; those before are
from the tables alone.

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
OLDEST, NEWEST = (1, 22), (1, 32)  # the versions that were looked at
_ONLY_NEURAL_NETWORK = _names("Flatten LRN")
_ONLY_ML_PROGRAM = _names(
    """And Ceil ConvTranspose Cos Elu Erf Exp FusedConv GatherND Gelu GridSample GroupNormalization
    InstanceNormalization LayerNormalization Max QuickGelu ReduceMax ReduceMin ReduceProd Round Sin Softplus Unsqueeze
    Where"""
)
# From 1.27 a group of nothing but these is handed back (`IOpBuilder::IsTrivial`).
_TRIVIAL = _names("Cast Ceil Flatten Identity Reshape Squeeze Tile Transpose Unsqueeze")
_TRIVIAL_SINCE = (1, 27)
# The newest revision of an operator that is understood (`GetMaxSupportedOpSet`).
_MAX_SINCE_VERSION: Mapping[Version, int] = {(1, 22): 21, (1, 23): 23, (1, 24): 25, (1, 28): 27, (1, 32): 28}
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
        """Return whether it keeps a group of claimed nodes, or hands it back because it computes nothing."""
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
class CandidateNode:
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

_Rule: TypeAlias = Callable[[CandidateNode, Provider], str | None]


def refusal(node: CandidateNode, provider: Provider) -> str | None:
    """Return why the provider does not claim a node; None if it does. Reference: `BaseOpBuilder::IsOpSupported`."""
    if node.operator not in provider.operators:
        return "the provider has no such operator"
    if provider.is_ml_program and node.operator in _ONLY_NEURAL_NETWORK:
        return "ML programs have no such operator"
    if not provider.is_ml_program and node.operator in _ONLY_ML_PROGRAM:
        return "only ML programs have such an operator"
    if node.since_version > provider.max_since_version:
        return f"its revision {node.since_version} is newer than {provider.max_since_version}"
    rules = _RULES.get(node.operator, (_number_input,))
    return next((reason for rule in (_inputs, *rules) if (reason := rule(node, provider)) is not None), None)


def _inputs(node: CandidateNode, provider: Provider) -> str | None:
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


def _number_input(node: CandidateNode, provider: Provider) -> str | None:
    """Check the type of the first input alone, as `BaseOpBuilder` does: ML programs take integers of 64 bits, too."""
    return _typed(node, 0, _or(provider, TensorProto.INT64) if provider.is_ml_program else provider.floats)


def _float_input(node: CandidateNode, provider: Provider) -> str | None:
    return _typed(node, 0, provider.floats)


def _typed(node: CandidateNode, place: int, allowed: frozenset[int]) -> str | None:
    given = node.inputs[place]
    if given is None or given.kind in allowed:
        return None
    return f"its input {place} is {given.kind_name}"


def _constant(*places: int) -> _Rule:
    """Make the rule that inputs, where they are given, are initializers."""

    def rule(node: CandidateNode, provider: Provider) -> str | None:
        computed = next((place for place in places if not node.is_constant(place)), None)
        return None if computed is None else f"its input {computed} is not constant"

    return rule


def _shape_of(node: CandidateNode, place: int) -> tuple[int, ...]:
    """The shape of an input that `_inputs` has let pass."""
    given = node.inputs[place]
    return () if given is None or given.shape is None else given.shape


def _or(provider: Provider, *kinds: int) -> frozenset[int]:
    return provider.floats | frozenset(kinds)


def _cast(node: CandidateNode, provider: Provider) -> str | None:
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


def _gather(node: CandidateNode, provider: Provider) -> str | None:
    data, rows = _shape_of(node, 0), _shape_of(node, 1)
    if reason := _typed(node, 0, _or(provider, TensorProto.INT64)):
        return reason
    if not rows and (provider.version < (1, 27) or -1 in data or len(data) > _MAX_RANK - 1):
        return "its index is a scalar"
    return "its result has too many dimensions" if len(data) + len(rows) - 1 > _MAX_RANK else None


def _shape(node: CandidateNode, provider: Provider) -> str | None:
    rank, start, end = len(_shape_of(node, 0)), node.attributes.get("start", 0), node.attributes.get("end")
    if not provider.is_ml_program:
        is_whole = end is None and start == 0
        return _float_input(node, provider) if is_whole else "it has a start or an end"
    if reason := _typed(node, 0, _or(provider, TensorProto.INT32, TensorProto.INT64)):
        return reason
    if end is not None and not -rank <= end < rank:
        return "its end is beyond the last dimension, which makes the provider fail"
    last = rank if end is None else end % max(rank, 1)
    return "it takes no dimension" if last == start % max(rank, 1) and rank else None


def _slice(node: CandidateNode, provider: Provider) -> str | None:
    if reason := _typed(node, 0, _or(provider, TensorProto.INT64)):
        return reason
    data = _shape_of(node, 0)
    if -1 in data:
        return "its data have a dynamic shape"
    if reason := _constant(1, 2, 3, 4)(node, provider):
        return reason
    starts, ends, axes, steps = (_values(node, place) for place in (1, 2, 3, 4))
    for place, (start, end) in enumerate(zip(starts, ends, strict=False)):
        axis = axes[place] if axes else place
        if not len(range(*slice(start, end, steps[place] if steps else 1).indices(data[axis]))):
            return "its result is empty"
    return None


def _values(node: CandidateNode, place: int) -> list[int]:
    """Return the values of a constant input; none where it is left out."""
    given = node.inputs[place] if place < len(node.inputs) else None
    if given is None or given.initializer is None:
        return []
    return [int(value) for value in np.atleast_1d(numpy_helper.to_array(given.initializer)).ravel()]


def _and(node: CandidateNode, provider: Provider) -> str | None:
    boolean = frozenset({TensorProto.BOOL})
    return _typed(node, 0, boolean) or _typed(node, 1, boolean)


def _where(node: CandidateNode, provider: Provider) -> str | None:
    if reason := _typed(node, 0, frozenset({TensorProto.BOOL})) or _typed(node, 1, provider.floats):
        return reason
    return _typed(node, 2, provider.floats) or _same_types(node, 1, 2)


def _same_types(node: CandidateNode, first: int, second: int) -> str | None:
    left, right = node.inputs[first], node.inputs[second]
    if left is None or right is None or left.kind == right.kind:
        return None
    return f"its inputs {first} and {second} are {left.kind_name} and {right.kind_name}"


def _tile(node: CandidateNode, provider: Provider) -> str | None:
    kinds = _or(provider, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
    if reason := _typed(node, 0, kinds):
        return reason
    if node.is_constant(1):
        return "it repeats less than once" if min(_values(node, 1), default=1) < 1 else None
    return None if provider.is_ml_program else "its input 1 is not constant"


def _layer_normalization(node: CandidateNode, provider: Provider) -> str | None:
    if node.attributes.get("stash_type", 1) != 1 or node.outputs != 1:
        return "it is a layer normalisation for training"
    return _same_types(node, 0, 1)


def _pow(node: CandidateNode, provider: Provider) -> str | None:
    return _same_types(node, 0, 1)


def _reshape(node: CandidateNode, provider: Provider) -> str | None:
    data, target = _shape_of(node, 0), node.inputs[1]
    if target is None or target.initializer is None:
        return "its new shape is not constant"
    if len(_values(node, 1)) > _MAX_RANK:
        return f"its new shape has more than {_MAX_RANK} dimensions"
    if not data:
        return "its data are a scalar"
    return "its data have a dynamic shape" if -1 in data else None


def _matmul(node: CandidateNode, provider: Provider) -> str | None:
    ranks = [len(_shape_of(node, place)) for place in (0, 1)]
    if provider.is_ml_program:
        return "one of its inputs is a vector" if ranks.count(1) == 1 else None
    return None if ranks == [2, 2] else "its inputs are not two matrices"


def _gemm(node: CandidateNode, provider: Provider) -> str | None:
    scales = [node.attributes.get(name, 1.0) for name in ("alpha", "beta")]
    if node.attributes.get("transA", 0) or scales != [1.0, 1.0]:
        return "it transposes A or scales"
    columns = _shape_of(node, 1)[0 if node.attributes.get("transB", 0) else -1]
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    is_known = not has_bias or _shape_of(node, 2) in ((), (1,), (columns,), (1, columns))
    return None if is_known else "its C is neither a number nor a row"


def _split(node: CandidateNode, provider: Provider) -> str | None:
    """`SplitOpBuilder`: the sizes are stated and add up, or the axis is divided evenly."""
    sizes = _values(node, 1) or list(node.attributes.get("split", []))
    if node.outputs < 2:
        return "it has one output"
    length = _shape_of(node, 0)[node.attributes.get("axis", 0)]
    if length == -1:
        return "it splits a dynamic dimension"
    if sizes:
        return None if sum(sizes) == length and 0 not in sizes else "its sizes do not add up"
    if "num_outputs" in node.attributes:
        return None if node.attributes["num_outputs"] <= length else "it has more outputs than the dimension"
    return None if length % node.outputs == 0 else "it splits unevenly"


def _concat(node: CandidateNode, provider: Provider) -> str | None:
    if len(node.inputs) < 2:
        return "it has one input"
    rank, axis = len(_shape_of(node, 0)), node.attributes.get("axis", 1)
    if not provider.is_ml_program and (rank != 4 or axis % 4 != 1):
        return "NeuralNetwork models join four dimensions along the second alone"
    return None


def _unsqueeze(node: CandidateNode, provider: Provider) -> str | None:
    added = len(_values(node, 1) or list(node.attributes.get("axes", [])))
    is_deep = len(_shape_of(node, 0)) + added > _MAX_RANK
    return f"its result has more than {_MAX_RANK} dimensions" if is_deep else None


def _clip(node: CandidateNode, provider: Provider) -> str | None:
    limits = [
        float(numpy_helper.to_array(given.initializer))
        for given in node.inputs[1:3]
        if given is not None and given.initializer is not None
    ]
    return "its limits are equal" if len(limits) == 2 and limits[0] == limits[1] else None


def _gather_nd(node: CandidateNode, provider: Provider) -> str | None:
    if node.attributes.get("batch_dims", 0):
        return "it has batch dimensions"
    depth = (_shape_of(node, 1) or (0,))[-1]
    return "it indexes a dynamic dimension" if -1 in _shape_of(node, 0)[:depth] else None


def _reduce(node: CandidateNode, provider: Provider) -> str | None:
    is_noop = node.attributes.get("noop_with_empty_axes", 0) and not _values(node, 1)
    return "it reduces nothing" if is_noop and not provider.is_ml_program else None


def _constant_in_neural_networks(node: CandidateNode, provider: Provider) -> str | None:
    return None if provider.is_ml_program else _constant(1)(node, provider)


_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "And": (_and,),
    "Cast": (_cast,),
    "Clip": (_float_input, _constant(1, 2), _clip),
    "Concat": (_number_input, _concat),
    "Gather": (_gather,),
    "GatherND": (_constant(1), _gather_nd),
    "Gemm": (_number_input, _constant(1, 2), _gemm),
    "LayerNormalization": (_float_input, _constant(1, 2), _layer_normalization),
    "MatMul": (_number_input, _constant_in_neural_networks, _matmul),
    "Pow": (_number_input, _pow),
    "Reshape": (_number_input, _reshape),
    "Shape": (_shape,),
    "Slice": (_slice,),
    "Split": (_number_input, _constant(1), _split),
    "Squeeze": (_number_input, _constant(1)),
    "Tile": (_tile,),
    "Unsqueeze": (_number_input, _constant(1), _unsqueeze),
    "Where": (_where,),
} | {f"Reduce{kind}": (_number_input, _constant(1), _reduce) for kind in ("Max", "Mean", "Min", "Prod", "Sum")}
