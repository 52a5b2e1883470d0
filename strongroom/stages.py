"""The bytes of one stage of a prepared form (`prepared`), as they lie in its file once opened.

    weights      as the engine wrote them; each tensor at its offset from the first byte on
    graph        an ONNX model whose larger initializers have no content of their own
    table        JSON: [[name, type, dimensions, offset, length], ...], the weights' tensors
    lengths      bytes of weights, graph and table: 8 bytes each, big endian

Rules
  - What is in a stage came from a process that had read a stranger's bytes. Every number in it is checked against
    the bytes that are there, and bounded before anything is computed from it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

MAX_TENSORS: Final = 1 << 17
TABLE_BYTES: Final = 8 << 20
"""Bytes of a table of tensors, of some 60 bytes each. Whoever parses it takes up to 24 times as many."""
MAX_RANK: Final = 32
"""Dimensions of a tensor. Millions of them could be multiplied for hours, in one call that nobody else runs beside."""
_MOST: Final = 1 << 63
GRAPH_BYTES: Final = 64 << 20
"""Bytes of a stage's graph: nodes and small tensors; the largest published networks have less than one million."""
PIPES: Final = b"P"
"""What comes to a preparer first, with the pipes of the model and of the weights."""
LENGTHS: Final = struct.Struct(">QQQ")
TYPES: Final[Mapping[int, str]] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""ONNX's TensorProto.DataType -> numpy's name, of tensors that weights may hold."""
_SIZES: Final = {name: 1 if name == "bool" else int(name.lstrip("floatuin")) // 8 for name in TYPES.values()}


class Tensor(NamedTuple):
    """A tensor of the weights: `type` is ONNX's TensorProto.DataType; offset and length in bytes."""

    name: str
    type: int
    dimensions: tuple[int, ...]
    offset: int
    length: int


class Layout(NamedTuple):
    """Where a stage's parts lie: bytes of weights, of the graph behind them, and the tensors."""

    weights: int
    graph: int
    tensors: tuple[Tensor, ...]


def tail(graph: bytes | memoryview, tensors: Sequence[Tensor], *, weights: int) -> bytes:
    """What follows `weights` bytes of weights in a stage."""
    table = json.dumps([list(tensor) for tensor in tensors], separators=(",", ":")).encode()
    return b"".join((graph, table, LENGTHS.pack(weights, len(graph), len(table))))


def layout(end: memoryview, *, size: int) -> Layout:
    """Takes the bytes of a stage apart; nothing is copied but the table. `end`: the whole stage, or all of it that
    follows the weights; `size`: bytes of the whole.

    Raises:
        ValueError: they are not those of a stage.
    """
    if len(end) < LENGTHS.size:
        raise ValueError("too short")
    weights, graph, table = LENGTHS.unpack_from(end, len(end) - LENGTHS.size)
    at = len(end) - LENGTHS.size - table
    if weights + graph + table + LENGTHS.size != size or at < graph:
        raise ValueError("its lengths are not those of its parts")
    if table > TABLE_BYTES or not 0 < graph <= GRAPH_BYTES:
        raise ValueError("its graph or table is too long, or there is no graph")
    entries = parse_table(bytes(end[at : at + table]))
    if len(entries) > MAX_TENSORS:
        raise ValueError("its table")
    tensors = tuple(_tensor(entry, weights) for entry in entries)
    different(tensors)
    return Layout(weights, graph, tensors)


def parse_table(data: bytes) -> list[object]:
    """The entries of a table.

    Raises:
        ValueError: it is none.
    """
    try:
        entries = json.loads(data)
    except RecursionError:
        raise ValueError("its table") from None
    if not isinstance(entries, list):
        raise ValueError("its table")
    return entries


def _tensor(entry: object, weights: int) -> Tensor:
    if not isinstance(entry, list) or len(entry) != 5:
        raise ValueError("a tensor")
    return tensor(*entry, weights=weights)


def tensor(
    name: object, kind: object, dimensions: object, offset: object, length: object, *, weights: int
) -> Tensor:
    """A tensor that somebody describes, where it is one and lies within so many bytes of weights.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(name, str) or not isinstance(dimensions, list) or len(dimensions) > MAX_RANK:
        raise ValueError("a tensor")
    name.encode()  # which lone surrogates are a ValueError to
    sizes = tuple(_number(size) for size in dimensions)
    kind, offset, length = _number(kind), _number(offset), _number(length)
    if kind not in TYPES or math.prod(sizes) * _SIZES[TYPES[kind]] != length:
        raise ValueError("a tensor's length is not that of its shape")
    if offset + length > weights:
        raise ValueError("a tensor lies outside the weights")
    return Tensor(name, kind, sizes, offset, length)


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError("a number of a tensor")
    return value


def different(tensors: Sequence[Tensor]) -> None:
    """Sees that no two of a stage's tensors have one name.

    Raises:
        ValueError: two have.
    """
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two tensors have one name")
