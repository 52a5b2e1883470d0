"""What in a network computes with, or stores, less than 32 bits: found in what runs, not in what anybody says of it.

Counted are operators of eight bits; casts to small floats, and constants and edges of them; and constants of small
integers, which are weights where there are two or more elements (pictures come in as bytes, so inputs are none).
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
    found: Counter[str] = Counter()
    _edges(model.graph, found)
    _graph(model.graph, found)
    for function in model.functions:
        _nodes(function.node, found)
    return found


def _edges(graph: Any, found: Counter[str]) -> None:
    for value in (*graph.input, *graph.output):
        _type(value.type.tensor_type.elem_type, found)


def _graph(graph: Any, found: Counter[str]) -> None:
    for tensor in graph.initializer:
        _constant(tensor, found)
    _nodes(graph.node, found)


def _nodes(nodes: Any, found: Counter[str]) -> None:
    for made in nodes:
        if made.op_type in EIGHT_BITS:
            found[made.op_type] += 1
        for attribute in made.attribute:
            if attribute.name in _KINDS:
                _type(attribute.i, found)
            for tensor in _tensors(attribute):
                # Learners keep the modes of their nodes in bytes, which no number is computed from.
                if made.op_type == "Constant":
                    _constant(tensor, found)
                else:
                    _type(tensor.data_type, found)
            for below in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                _graph(below, found)


def _tensors(attribute: Any) -> Iterator[Any]:
    yield from attribute.tensors
    if attribute.HasField("t"):
        yield attribute.t


def _constant(tensor: Any, found: Counter[str]) -> None:
    _type(tensor.data_type, found)
    if tensor.data_type in _INTEGERS and math.prod(tensor.dims) > 1:
        found[_T.DataType.Name(tensor.data_type)] += 1


def _type(number: int, found: Counter[str]) -> None:
    if number in _FLOATS:
        found[_T.DataType.Name(number)] += 1
