"""Eight bits for networks of convolutions, between ranges that were measured beforehand (QDQ form).

The graph stays one of floating-point operators, with QuantizeLinear and DequantizeLinear around them, of which
onnxruntime makes integer kernels:

    DQ(x8), DQ(W8), DQ(b32) -> Conv -> Q -> DQ -> ...

Rules
  - A convolution begins a stretch of eight bits; what merely arranges or joins values (pooling, addition) goes on
    with it where a product of eight bits comes behind. Products with matrices (MatMul, Gemm) take eight bits and
    give floating point.
  - A ReLU behind is the range's lower end, 0: nothing is left to compute. Pooling and reshaping keep the range.
  - Scales are fixed: unlike with `dynamic`, the results of one row do not depend on the others in the request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from strongroom.models import scales
from strongroom.models.dynamic import layer
from strongroom.models.rewrite import Array, Graph, attribute, node, standard

_KEEP: Final = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
"""Give values that they take: the same range."""
_JOIN: Final = frozenset({"Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid", "LeakyRelu"})
"""onnxruntime has integer kernels for these."""


@dataclass(slots=True)
class Plan:
    """What becomes of a graph; made without knowing any range."""

    products: list[Any] = field(default_factory=list)
    """Conv, MatMul and Gemm that get weights of eight bits."""
    carried: list[Any] = field(default_factory=list)
    """Nodes that go on with eight bits."""
    ranges: dict[str, str] = field(default_factory=dict)
    """Value that is made in eight bits -> the value whose range it has."""
    absorbed: dict[str, tuple[Any, float]] = field(default_factory=dict)
    """Value before a ReLU or Clip -> that node, and its upper end."""
    taken: dict[str, None] = field(default_factory=dict)
    """Floating-point values that have to become eight bits."""

    @property
    def measured(self) -> tuple[str, ...]:
        """The values whose ranges must be known."""
        return tuple(dict.fromkeys((*self.ranges.values(), *self.taken)))


def plan(graph: Graph, *, kept: Container[str]) -> Plan:
    """What can be rewritten. Nodes that make a value in `kept` stay."""
    made_plan = Plan()
    for made in graph.nodes:
        if not made.output or made.output[0] in kept or not standard(made):
            continue
        if made.op_type == "Conv" and _convolution(graph, made) is not None:
            made_plan.products.append(made)
            _range(graph, made_plan, made, kept)
        elif made.op_type in ("MatMul", "Gemm") and layer(graph, made) is not None:
            made_plan.products.append(made)
        elif _carries(graph, made_plan, made):
            made_plan.carried.append(made)
            if made.op_type in _KEEP:
                made_plan.ranges[made.output[0]] = made_plan.ranges[made.input[0]]
            else:
                _range(graph, made_plan, made, kept)
    _drop_useless(graph, made_plan)
    for made in (*made_plan.products, *made_plan.carried):
        for name in data_inputs(made):
            if name not in made_plan.ranges:
                made_plan.taken[name] = None
    return made_plan


def data_inputs(made: Any) -> tuple[str, ...]:
    """The inputs of a node that hold activations."""
    return tuple(made.input) if made.op_type in ("Add", "Mul", "Concat") else (made.input[0],)


def _range(graph: Graph, made_plan: Plan, made: Any, kept: Container[str]) -> None:
    """Notes the value in which a node's result is rounded: behind a ReLU that is its only reader, else at once."""
    name = made.output[0]
    readers = graph.readers.get(name, [])
    if len(readers) == 1 and name not in graph.exposed and readers[0].output[0] not in kept:
        upper = _upper(graph, readers[0])
        if upper is not None and readers[0].input[0] == name:
            made_plan.absorbed[name] = readers[0], upper
            name = readers[0].output[0]
    made_plan.ranges[name] = name


def _upper(graph: Graph, made: Any) -> float | None:
    """The upper end of what a node lets through, where its lower one is 0 (ONNX, Relu and Clip)."""
    if not standard(made) or made.op_type not in ("Relu", "Clip"):
        return None
    if made.op_type == "Relu":
        return float("inf")
    ends = [float(attribute(made, "min", -np.inf)), float(attribute(made, "max", np.inf))]
    for position, name in enumerate(made.input[1:3]):
        if name:
            given = graph.constant(name)
            if given is None or given.size != 1:
                return None
            ends[position] = float(given.reshape(-1)[0])
    return ends[1] if ends[0] == 0 and ends[1] > 0 else None


def _carries(graph: Graph, made_plan: Plan, made: Any) -> bool:
    if made.op_type not in _KEEP | _JOIN or any(made.output[1:]):
        return False
    inputs = data_inputs(made)
    if made.op_type == "AveragePool" and (
        any(attribute(made, "pads", ()))
        or attribute(made, "ceil_mode", 0)
        or attribute(made, "auto_pad", b"NOTSET") != b"NOTSET"
    ):
        return False
    return any(name in made_plan.ranges for name in inputs) and not any(n in graph.constants for n in inputs)


def _drop_useless(graph: Graph, made_plan: Plan) -> None:
    """Leaves carrying nodes out behind which no product comes: they would only lose precision."""
    wanted = {name for made in made_plan.products for name in data_inputs(made)}
    stay = []
    for made in reversed(made_plan.carried):
        name = made.output[0]
        final = made_plan.absorbed[name][0].output[0] if name in made_plan.absorbed else name
        if final in wanted:
            wanted |= set(data_inputs(made))
            stay.append(made)
            continue
        made_plan.absorbed.pop(name, None)
        made_plan.ranges.pop(final, None)
    made_plan.carried = stay[::-1]


def _convolution(graph: Graph, made: Any) -> tuple[Array, Array | None] | None:
    """Weights [M, C / group, ...] and bias [M] of a convolution of floating-point values; None where not constant."""
    values = graph.constant(made.input[1])
    if values is None or values.ndim < 3 or not scales.finite(values) or made.input[0] in graph.constants:
        return None
    if len(made.input) < 3 or not made.input[2]:
        return values, None
    shift = graph.constant(made.input[2])
    return None if shift is None or not scales.finite(shift) else (values, shift)


def rewrite(
    graph: Graph, made_plan: Plan, *, ranges: Mapping[str, tuple[float, float]], per_channel: bool
) -> tuple[Any, ...]:
    """Carries out a plan; the nodes that compute with eight bits now.

    `ranges`: value -> least and greatest element, for all of `made_plan.measured`.
    """
    return _Work(graph, made_plan, ranges, per_channel).run()


class _Work:
    def __init__(
        self, graph: Graph, made_plan: Plan, ranges: Mapping[str, tuple[float, float]], per_channel: bool
    ) -> None:
        self._graph, self._plan, self._per_channel = graph, made_plan, per_channel
        self._ranges = ranges
        self._scales: dict[str, tuple[Array, str, str]] = {}  # value with a range -> scale, names of both
        self._rounded: dict[tuple[Any, ...], tuple[str, ...]] = {}  # shared weights are rounded once
        self._taken: dict[str, str] = {}  # floating-point value -> what is read instead
        self._nodes: list[Any] = []
        self._upper = {after.output[0]: upper for after, upper in made_plan.absorbed.values()}

    def run(self) -> tuple[Any, ...]:
        made_plan = self._plan
        products = {id(made) for made in made_plan.products}
        carried = {id(made) for made in made_plan.carried}
        swallowed = {id(after) for after, _ in made_plan.absorbed.values()}
        for made in self._graph.nodes:
            if id(made) in swallowed:
                continue
            mine = id(made) in products or id(made) in carried
            name = made.output[0] if made.output else ""
            if mine:
                self._take(made)
                if id(made) in products:
                    self._product(made)
            self._nodes.append(made)
            final = made_plan.absorbed[name][0].output[0] if mine and name in made_plan.absorbed else name
            if mine and final in made_plan.ranges:
                made.output[0] = self._graph.fresh("wide")
                self._round(made.output[0], final, like=made_plan.ranges[final])
        self._graph.nodes = self._nodes
        self._graph.refresh()
        return (*made_plan.products, *made_plan.carried)

    def _take(self, made: Any) -> None:
        """Lets a node read the eight-bit form of what it reads."""
        for position, name in enumerate(made.input[: len(data_inputs(made))]):
            if name in self._plan.taken:
                if name not in self._taken:
                    self._taken[name] = self._graph.fresh("narrow")
                    self._round(name, self._taken[name], like=name)
                made.input[position] = self._taken[name]

    def _round(self, source: str, target: str, *, like: str) -> None:
        _, scale, zero = self._scale(like)
        between = self._graph.fresh("uint8")
        self._nodes.append(node("QuantizeLinear", [source, scale, zero], [between]))
        self._nodes.append(node("DequantizeLinear", [between, scale, zero], [target]))

    def _scale(self, name: str) -> tuple[Array, str, str]:
        if name not in self._scales:
            low, high = self._ranges[name]
            # A clipped range ends where the operator says, not where a grid of ours has its next step.
            scale, zero = scales.activation(low, min(high, self._upper.get(name, np.inf)))
            self._scales[name] = scale, self._graph.add("scale", scale), self._graph.add("zero", zero)
        return self._scales[name]

    def _product(self, made: Any) -> None:
        """Weights and bias of a node in eight and 32 bits."""
        graph, conv = self._graph, made.op_type == "Conv"
        found = _convolution(graph, made) if conv else layer(graph, made)
        if found is None:
            raise AssertionError("a plan names only nodes with constant weights")
        values, shift = found
        read = next((name for name, narrow in self._taken.items() if narrow == made.input[0]), made.input[0])
        scale_in = self._scale(self._plan.ranges.get(read, read))[0]
        axis = 0 if conv else 1
        weights, scale = self._weights(made, values, shift, axis=axis, scale_in=scale_in)
        inputs = [made.input[0], weights]
        if shift is not None:
            inputs.append(self._bias(shift, scale_in, scale))
        del made.input[:]
        made.input.extend(inputs)
        if not conv:
            del made.attribute[:]  # transposition and factors are in the weights now

    def _weights(
        self, made: Any, values: Array, shift: Array | None, *, axis: int, scale_in: Array
    ) -> tuple[str, Array]:
        graph = self._graph
        least = None if shift is None else scales.least_scale(shift, scale_in)
        narrow, scale = scales.weights(values, axis=axis if self._per_channel else None, least=least)
        # By content: nodes that share a matrix may see it transposed, or with another factor.
        key = hashlib.sha256(narrow.tobytes() + scale.tobytes()).digest(), narrow.shape
        if key not in self._rounded:
            constants = ("weights", narrow), ("scale", scale), ("zero", np.zeros(scale.shape, np.int8))
            self._rounded[key] = tuple(graph.add(what, array) for what, array in constants)
        output = graph.fresh("weights")
        how = {"axis": axis} if self._per_channel else {}
        self._nodes.append(node("DequantizeLinear", self._rounded[key], [output], **how))
        return output, scale

    def _bias(self, shift: Array, scale_in: Array, scale: Array) -> str:
        graph = self._graph
        whole, scale_bias = scales.bias(shift, activation_scale=scale_in, weight_scale=scale)
        output = graph.fresh("bias")
        how = {"axis": 0} if self._per_channel else {}
        inputs = [graph.add("bias", whole), graph.add("scale", scale_bias)]
        self._nodes.append(node("DequantizeLinear", inputs, [output], **how))
        return output
