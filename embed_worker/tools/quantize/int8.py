"""Int8 products in an ONNX graph: how numbers are rounded, and the nodes that do it. It reads and writes no files.

A weight has one scale for each column, an activation one for each row, found anew in every run from that row alone: a
text's vector depends on no neighbour, which one scale for a whole batch (`DynamicQuantizeLinear`) cannot give. Columns
that only few channels make large are evened out first: the channels are divided by constants and the weights multiplied
by them (SmoothQuant, arXiv:2211.10438). Lookup tables are stored as int8 with one scale a row.

K, N and R are inputs and outputs of a product, and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]
Int8: TypeAlias = NDArray[np.int8]

_CONTRIB = "com.microsoft"  # onnxruntime's own operators
_MIN_TABLE_ROWS = 256
_STRENGTHS = (0.4, 0.55, 0.7)
_WORTH_A_PASS = 0.9  # evening out costs a pass over the activations: it must take a tenth off the error


class QuantizeError(Exception):
    """The graph cannot be quantised; the message is one sentence."""


# Numbers ------------------------------------------------------------------------------------------------------------


def quantize_columns(weights: Float32) -> tuple[Int8, Float32]:
    """Round a matrix to int8 with one scale a column: (K, N) → (K, N), (N,).

    x86 without VNNI multiplies bytes in pairs and adds the two in 16 bits, where 255·127·2 does not fit; onnxruntime
    advises 7-bit weights there. Here no two neighbours of one sign add up to more than 128, which is exact everywhere
    and costs next to nothing, because two neighbours are seldom large.
    """
    even = np.zeros((len(weights) + len(weights) % 2, weights.shape[1]), np.float32)
    even[: len(weights)] = weights
    pairs = even.reshape(-1, 2, weights.shape[1])
    largest = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1)).max(axis=0)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)  # rounding up twice makes 127 at most 128
    return np.round(weights / scales).clip(-127, 127).astype(np.int8), scales


def quantize_table(table: Float32) -> tuple[Int8, Float32]:
    """Round a lookup table to int8 with one scale a row: (R, K) → (R, K), (R, 1)."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.round(table / scales).astype(np.int8), scales


def row_scales(highest: Float32, lowest: Float32, zero_point: NDArray[np.integer[Any]] | int) -> Float32:
    """Compute the scales with which rows from `lowest` to `highest` fit into 0 … 255 around the zero point."""
    point = np.asarray(zero_point, np.float32)
    scales: Float32 = np.maximum(np.maximum(highest / (255 - point), -lowest / point), np.float32(_TINY))
    return scales


_TINY = 1e-30  # the scale of a row of zeros


def round_rows(rows: Float32, zero_point: int) -> Float32:
    """Round rows as the graph will: (R, K) → (R, K), the values that the int8 numbers stand for."""
    scales = row_scales(rows.max(axis=1, keepdims=True), rows.min(axis=1, keepdims=True), zero_point)
    rounded: Float32 = (np.round(rows / scales) + zero_point).clip(0, 255) - zero_point
    return rounded * scales


def choose_zero_point(rows: Float32) -> int:
    """Choose the zero point that leaves the smallest scales: far below 128 after GELU, whose minimum is -0.17."""
    points = np.arange(1, 255)
    scales = row_scales(rows.max(axis=1), rows.min(axis=1), points[:, None])
    return int(points[np.square(scales).mean(axis=1).argmin()])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounding:
    """How the activations of a product are rounded.

    Attributes:
        divisors: (K,) powers of two that the channels are divided by; None for no such pass.
        zero_point: Of all rows, 1 … 254: onnxruntime takes one for the whole matrix.
        error: Squared error of the product on a sample, as a share of its square.
    """

    divisors: Float32 | None
    zero_point: int
    error: float


def choose_rounding(rows: Float32, weights: Float32, *, may_divide: bool) -> Rounding:
    """Choose by the error of the product on a sample: (R, K) rows, (K, N) weights."""
    exact = rows @ weights
    plain = best = _try_rounding(rows, weights, None, exact)
    if may_divide:
        highest = np.maximum(np.abs(rows).max(axis=0), 1e-6)
        heaviest = np.maximum(np.abs(weights).max(axis=1), 1e-6)
        for strength in _STRENGTHS:
            logarithms = np.log2(highest) * strength - np.log2(heaviest) * (1 - strength)
            # Powers of two change no mantissa, and hardly ever with the last bits of the sample.
            divisors = np.exp2(np.round(logarithms - logarithms.mean())).astype(np.float32)
            best = min(best, _try_rounding(rows, weights, divisors, exact), key=lambda tried: tried.error)
    return best if best.error < _WORTH_A_PASS * plain.error else plain


def _try_rounding(rows: Float32, weights: Float32, divisors: Float32 | None, exact: Float32) -> Rounding:
    if divisors is not None:
        rows, weights = rows / divisors, weights * divisors[:, None]
    zero_point = choose_zero_point(rows)
    values, scales = quantize_columns(weights)
    product = round_rows(rows, zero_point) @ (values * scales)
    error = float(np.square(product - exact).sum(dtype=np.float64) / max(np.square(exact).sum(dtype=np.float64), 1e-30))
    return Rounding(divisors=divisors, zero_point=zero_point, error=error)


# The graph ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What was quantised: matrix products by weights, and lookup tables."""

    products: int
    tables: int


class FloatGraph:
    """An `onnx.ModelProto` with its data in memory, to be quantised in place.

    Attributes:
        products: The matrix products by float32 weights, by the name of what is multiplied by them.
    """

    def __init__(self, model: Any) -> None:
        """Find the products.

        Raises:
            QuantizeError: There are none.
        """
        from onnx import TensorProto

        self.model = model
        self.products: dict[str, list[Any]] = {}
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {output: node for node in model.graph.node for output in node.output}
        kinds = set()
        for node in model.graph.node:
            if node.op_type == "MatMul" and (weight := self._constant(node.input[1])) is not None:
                kinds.add(weight.kind)
                if len(weight.tensor.dims) == 2 and weight.kind == TensorProto.FLOAT:
                    self.products.setdefault(node.input[0], []).append(node)
        if not self.products:
            raise QuantizeError(f"the graph has no float32 products by weights: {self._hint(kinds)}")

    def _hint(self, kinds: set[int]) -> str:
        from onnx import TensorProto

        if TensorProto.FLOAT16 in kinds:
            return "it computes in float16: quantize the float32 graph"
        if any(node.op_type == "Gemm" for node in self.model.graph.node):
            return "its layers are Gemm over the tokens of all texts at once, as GPT-2's, which would share one scale"
        return "see inspect"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Make what is multiplied by weights outputs of the graph, for a while."""
        from onnx import TensorProto, helper

        outputs = self.model.graph.output
        count, known = len(outputs), {output.name for output in outputs}
        added = [name for name in self.products if name not in known]
        outputs.extend([helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in added])
        try:
            yield
        finally:
            del outputs[count:]

    def weights_of(self, activation: str) -> Float32:
        """Return the weights of all products with an activation, side by side: (K, N)."""
        return np.concatenate([self._values(node.input[1]) for node in self.products[activation]], axis=1)

    def shares_weights(self, activation: str) -> bool:
        """Return whether others are multiplied by the same weights: layers that are one, as in ALBERT."""
        own = {node.input[1] for node in self.products[activation]}
        others = (node for name, nodes in self.products.items() if name != activation for node in nodes)
        return any(node.input[1] in own for node in others)

    def quantize(self, roundings: Mapping[str, Rounding]) -> Changed:
        """Replace the products of these activations, and the lookup tables."""
        writer = _NodeWriter(self.model)
        chosen = {node.output[0]: name for name in roundings for node in self.products[name]}
        tables = self._tables()
        rounded: dict[str, tuple[str, str]] = {}
        for node in self.model.graph.node:
            if node.op_type == "MatMul" and node.output[0] in chosen:
                name = node.input[0]
                rounding = roundings[name]
                if name not in rounded:
                    rounded[name] = writer.round_rows(name, rounding)
                weights = self._values(node.input[1])
                if rounding.divisors is not None:
                    weights = weights * rounding.divisors[:, None]
                writer.product(node, rounded[name], weights, rounding.zero_point)
            elif node.op_type == "Gather" and node.input[0] in tables:
                writer.lookup(node, tables[node.input[0]])
            else:
                writer.keep(node)
        writer.finish()
        return Changed(products=len(chosen), tables=len(tables))

    def _tables(self) -> dict[str, Any]:
        """Find the large float tables of which nothing but rows is ever used."""
        from onnx import TensorProto

        kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
        found = {
            name: tensor
            for name, tensor in self._stored.items()
            if len(tensor.dims) == 2 and tensor.dims[0] >= _MIN_TABLE_ROWS and tensor.data_type in kinds
        }
        looked_up, used_otherwise = set(), set(_names_in_subgraphs(self.model.graph))
        for node in self.model.graph.node:
            is_lookup = node.op_type == "Gather" and all(attribute.i == 0 for attribute in node.attribute)
            looked_up.update(node.input[: 1 if is_lookup else 0])
            used_otherwise.update(node.input[1 if is_lookup else 0 :])
        return {name: found[name] for name in found if name in looked_up - used_otherwise}

    def _constant(self, name: str) -> _Constant | None:
        """Look behind a name for a stored tensor: itself, or what it is cast or transposed from."""
        if (stored := self._stored.get(name)) is not None:
            return _Constant(stored, stored.data_type, ())
        match self._makers.get(name):
            case None:
                return None
            case node if node.op_type == "Constant":
                tensor = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
                return None if tensor is None else _Constant(tensor, tensor.data_type, ())
            case node if node.op_type in ("Cast", "Identity", "Transpose"):
                behind = self._constant(node.input[0])
                if behind is None or node.op_type == "Identity":
                    return behind
                if node.op_type == "Cast":
                    kind = next(attribute.i for attribute in node.attribute if attribute.name == "to")
                    return _Constant(behind.tensor, kind, behind.orders)
                order = tuple(axis for attribute in node.attribute for axis in attribute.ints)
                return _Constant(behind.tensor, behind.kind, (*behind.orders, order))
            case _:
                return None

    def _values(self, name: str) -> Float32:
        from onnx import numpy_helper

        constant = self._constant(name)
        assert constant is not None
        values = np.asarray(numpy_helper.to_array(constant.tensor), np.float32)
        for order in constant.orders:
            values = values.transpose(order or None)
        return values


@dataclass(frozen=True, slots=True)
class _Constant:
    """A stored tensor, the type it is cast to, and the transpositions that follow; an empty one reverses all axes."""

    tensor: Any
    kind: int
    orders: tuple[tuple[int, ...], ...]


class _NodeWriter:
    """Collects the nodes of the new graph in their order, and the constants that it needs."""

    def __init__(self, model: Any) -> None:
        import onnx

        self._onnx = onnx
        self._model = model
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)

    def keep(self, node: Any) -> None:
        """Take a node over as it is."""
        self._nodes.append(node)

    def round_rows(self, name: str, rounding: Rounding) -> tuple[str, str]:
        """Round a tensor (…, K) row by row; return the names of its uint8 form and of the scales (…, 1)."""
        x, point = name, rounding.zero_point
        if rounding.divisors is not None:
            factors = self._constant(f"{name}.factors", 1 / rounding.divisors)
            x = self._node(f"{name}.evened", "Mul", x, factors)
        above, below = self._scalar(1 / (255 - point)), self._scalar(-1 / point)
        above = self._node(f"{name}.above", "Mul", self._extreme(f"{name}.highest", "ReduceMax", x), above)
        below = self._node(f"{name}.below", "Mul", self._extreme(f"{name}.lowest", "ReduceMin", x), below)
        scale = self._node(f"{name}.scale", "Max", above, below, self._scalar(_TINY))

        scales = self._node(f"{name}.scales", "Reshape", scale, self._constant("int8.flat", np.array([-1])))
        count = self._node(f"{name}.count", "Shape", scales)
        value = self._onnx.numpy_helper.from_array(np.array([point], np.uint8))
        points = self._node(f"{name}.zero_points", "ConstantOfShape", count, value=value)
        rows, shape = self._node(f"{name}.rows", "Flatten", x, axis=-1), self._node(f"{name}.shape", "Shape", x)
        # Onnxruntime's own operator: that of ONNX takes a scale for each row from opset 13 on.
        values = self._node(f"{name}.rounded", "QuantizeLinear", rows, scales, points, domain=_CONTRIB, axis=0)
        return self._node(f"{name}.uint8", "Reshape", values, shape), scale

    def product(self, node: Any, rounded: tuple[str, str], weights: Float32, zero_point: int) -> None:
        """Multiply rounded rows by weights, in place of a product of floats."""
        rows, scale = rounded
        weight, output = f"{node.input[1]}.int8", node.output[0]
        if weight not in self._constants:
            values, scales = quantize_columns(weights)
            self._constant(weight, values)
            self._constant(f"{weight}.scales", scales)
        point = self._constant(f"int8.zero_point_{zero_point}", np.array(zero_point, np.uint8))
        # Its own scale of rows is one for all of them: 1 here, and each row's is multiplied in afterwards.
        inputs = (rows, weight, self._scalar(1), f"{weight}.scales", point)
        product = self._node(f"{output}.unscaled", "MatMulIntegerToFloat", *inputs, domain=_CONTRIB)
        self._node(output, "Mul", product, scale)

    def lookup(self, node: Any, table: Any) -> None:
        """Pick rows of an int8 table and widen them, in place of rows of floats."""
        types = self._onnx.TensorProto
        name, ids, output = f"{table.name}.int8", node.input[1], node.output[0]
        if name not in self._constants:
            values, scales = quantize_table(self._onnx.numpy_helper.to_array(table).astype(np.float32))
            self._constant(name, values)
            self._constant(f"{name}.scales", scales)
        picked = self._node(f"{output}.int8", "Gather", name, ids)
        widened = self._node(f"{output}.widened", "Cast", picked, to=int(types.FLOAT))
        scale = self._node(f"{output}.scale", "Gather", f"{name}.scales", ids)
        if table.data_type == types.FLOAT:
            self._node(output, "Mul", widened, scale)
        else:
            rows = self._node(f"{output}.float32", "Mul", widened, scale)
            self._node(output, "Cast", rows, to=table.data_type)

    def finish(self) -> None:
        """Put everything into the model, and leave out what nothing needs any more."""
        model, graph = self._model, self._model.graph
        needed = {output.name for output in graph.output} | set(_names_in_subgraphs(graph))
        kept = []
        for node in reversed(self._nodes):
            if not needed.isdisjoint(node.output):
                kept.append(node)
                needed.update(node.input)
        fresh = self._onnx.GraphProto(node=reversed(kept))  # copies: those of the graph end with it
        del graph.node[:], graph.value_info[:]
        graph.node.extend(fresh.node)

        unneeded = {tensor.name for tensor in graph.initializer} - needed
        for stored in (graph.input, graph.initializer):
            for place in reversed(range(len(stored))):
                if stored[place].name in unneeded:
                    del stored[place]
        graph.initializer.extend(tensor for name, tensor in self._constants.items() if name in needed)
        if all(entry.domain != _CONTRIB for entry in model.opset_import):
            model.opset_import.append(self._onnx.helper.make_opsetid(_CONTRIB, 1))
        model.ir_version = max(model.ir_version, 4)  # before, every constant had to be an input, too
        model.producer_name, model.producer_version = "embed-worker quantize", "1"

    def _extreme(self, name: str, operator: str, x: str) -> str:
        """Reduce the last dimension and keep it."""
        if self._opset < 18:
            return self._node(name, operator, x, axes=[-1], keepdims=1)
        return self._node(name, operator, x, self._constant("int8.last", np.array([-1])), keepdims=1)

    def _scalar(self, value: float) -> str:
        return self._constant(f"int8.scalar_{value:.9g}", np.array(value, np.float32))

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def _node(self, name: str, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node whose one output is called `name`."""
        node = self._onnx.helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes)
        self._nodes.append(node)
        return name


def _names_in_subgraphs(graph: Any) -> Iterator[str]:
    """Yield every name that the branches and bodies within a graph use."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                for step in inner.node:
                    yield from step.input
                yield from (output.name for output in inner.output)
                yield from _names_in_subgraphs(inner)
