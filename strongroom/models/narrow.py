"""What in a network computes with, or stores, less than 32 bits: found in what runs, not in what anybody says of it.

Counted are operators of eight bits; casts to small floats, and constants and edges of them; and constants of small
integers, which are weights where there are two or more elements (pictures come in as bytes, so inputs are none).
Functions hand datatypes and constants on by parameters: what a call says counts as what stands inside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import onnx

EIGHT_BITS: Final = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv",
    "QLinearMatMul",
})  # fmt: skip
"""Operators of ai.onnx that compute with eight bits, or go there and back."""
_KINDS: Final = frozenset(
    {"to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision"}
)
"""Attributes that are datatypes: of what an operator makes, or computes with inside (LayerNormalization, Attention)."""
_T: Final = onnx.TensorProto
_FLOATS: Final = frozenset(
    number for name, number in _T.DataType.items() if name.startswith(("FLOAT", "BFLOAT")) and name != "FLOAT"
)
_INTEGERS: Final = frozenset(
    number
    for name, number in _T.DataType.items()
    if name.startswith(("INT", "UINT")) and int(name.lstrip("UINT")) < 32
)


def narrow_parts(model: Any) -> Mapping[str, int]:
    """Operator or datatype -> how often it stands in the model, its functions and inner graphs among it."""
    found = _Found(_handed_on(model.functions))
    for value in (*model.graph.input, *model.graph.output):
        found.type(value.type.tensor_type.elem_type)
    found.graph(model.graph)
    for function in model.functions:
        found.nodes(function.node)
        for attribute in function.attribute_proto:  # what a call that does not say it hands on
            found.attribute(attribute, _of(function))
    return found.counts


_Name = tuple[str, str]


def _of(function: Any) -> _Name:
    return function.domain, function.name


def _handed_on(functions: Any) -> Mapping[_Name, frozenset[str]]:
    """Function -> its parameters that are datatypes, here or in a function that it calls."""
    kinds: dict[_Name, frozenset[str]] = {_of(function): frozenset() for function in functions}
    while True:
        more = {_of(function): frozenset(_parameters(function.node, kinds)) for function in functions}
        if more == kinds:
            return kinds
        kinds = more


def _parameters(nodes: Any, kinds: Mapping[_Name, frozenset[str]]) -> Iterator[str]:
    for made in nodes:
        names = _KINDS | kinds.get((made.domain, made.op_type), frozenset())
        for attribute in made.attribute:
            if attribute.ref_attr_name and attribute.name in names:
                yield attribute.ref_attr_name
            for below in _graphs(attribute):
                yield from _parameters(below.node, kinds)


class _Found:
    """What has been found so far."""

    def __init__(self, functions: Mapping[_Name, frozenset[str]]) -> None:
        self.counts: Counter[str] = Counter()
        self._functions = functions

    def graph(self, graph: Any) -> None:
        for tensor in graph.initializer:
            self._constant(tensor)
        self.nodes(graph.node)

    def nodes(self, nodes: Any) -> None:
        for made in nodes:
            name = made.domain, made.op_type
            if made.op_type in EIGHT_BITS:
                self.counts[made.op_type] += 1
            for attribute in made.attribute:
                self.attribute(attribute, name)

    def attribute(self, attribute: Any, name: _Name) -> None:
        """One of a node of the operator, or a call of the function, `name`."""
        if attribute.name in _KINDS | self._functions.get(name, frozenset()):
            self.type(attribute.i)
        for tensor in _tensors(attribute):
            # Learners keep the modes of their nodes in bytes, which no number is computed from.
            if name[1] == "Constant" or name in self._functions:
                self._constant(tensor)
            else:
                self.type(tensor.data_type)
        for below in _graphs(attribute):
            self.graph(below)

    def _constant(self, tensor: Any) -> None:
        self.type(tensor.data_type)
        if tensor.data_type in _INTEGERS and math.prod(tensor.dims) > 1:
            self.counts[_T.DataType.Name(tensor.data_type)] += 1

    def type(self, number: int) -> None:
        if number in _FLOATS:
            self.counts[_T.DataType.Name(number)] += 1


def _graphs(attribute: Any) -> Iterator[Any]:
    yield from attribute.graphs
    if attribute.HasField("g"):
        yield attribute.g


def _tensors(attribute: Any) -> Iterator[Any]:
    yield from attribute.tensors
    if attribute.HasField("t"):
        yield attribute.t
