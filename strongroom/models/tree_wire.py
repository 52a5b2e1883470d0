"""Nodes with lists of millions of numbers, written as protobuf writes them, without the message in between.

A message of them is several times as large as its bytes, and Python's lists on the way into it are larger still.
Written is what `SerializeToString(deterministic=True)` writes: fields in the order of their numbers, repeated
numbers not packed (`onnx.proto` is proto2). The encoding: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto

from strongroom.errors import Failure
from strongroom.models.wire import number

DOMAIN: Final = "ai.onnx.ml"
_SLICE: Final = 1 << 16
"""Numbers that are encoded at one time."""
_MOST: Final = 10
"""Bytes of a number."""


class LargeNode:
    """A node in the making: its attributes, as bytes, in the order in which they come."""

    def __init__(self, operator: str, *, input: str, output: str) -> None:
        self._named = NodeProto(op_type=operator, input=[input], output=[output])
        self._parts: list[bytes] = []

    def attribute(self, attribute: AttributeProto) -> None:
        """One of few bytes."""
        self._attribute(attribute.SerializeToString(deterministic=True))

    def integers(self, name: str, values: npt.NDArray[Any]) -> None:
        """A list of whole numbers, none of them negative."""
        self._list(name, AttributeProto.INTS, map(_integers, _slices(values)))

    def floats(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """A list of numbers."""
        self._list(name, AttributeProto.FLOATS, map(_floats, _slices(values)))

    def words(self, name: str, words: Sequence[bytes], which: npt.NDArray[Any]) -> None:
        """A list of strings, each the word of that place."""
        encoded = [_key(_STRINGS, 2) + number(len(word)) + word for word in words]
        pieces = (b"".join(map(encoded.__getitem__, part.tolist())) for part in _slices(which))
        self._list(name, AttributeProto.STRINGS, pieces)

    def _list(self, name: str, kind: int, pieces: Iterable[bytes]) -> None:
        bare = AttributeProto(name=name).SerializeToString()
        self._attribute(bare, *pieces, AttributeProto(type=kind).SerializeToString())

    def _attribute(self, *pieces: bytes) -> None:
        self._parts += [_key(_ATTRIBUTE, 2) + number(sum(map(len, pieces))), *pieces]

    def write(self, out: io.BytesIO, *, more: int) -> None:
        """Writes the field of a model that holds its graph: the key, the length, this node, and what else it has.

        The node's bytes are given up as they are written. `more`: bytes of the graph that the caller writes next.
        """
        named = self._named.SerializeToString(deterministic=True)
        last = NodeProto(domain=DOMAIN).SerializeToString(deterministic=True)
        own = len(named) + sum(map(len, self._parts)) + len(last)
        before = _key(_NODE, 2) + number(own)
        out.write(_key(_GRAPH, 2) + number(len(before) + own + more) + before + named)
        self._parts.reverse()
        while self._parts:
            out.write(self._parts.pop())
        out.write(last)


_ATTRIBUTE: Final = 5
"""The field of a NodeProto that holds its attributes; only its domain comes after them."""
_INTS, _FLOATS, _STRINGS = 8, 7, 9


def model_bytes(
    graph: GraphProto, first: LargeNode | None, *, version: int, imports: Sequence[OperatorSetIdProto]
) -> bytes:
    """A model's bytes: of this IR version, its graph with `first` before the other nodes."""
    model = ModelProto(ir_version=version, producer_name="strongroom", opset_import=imports)
    if first is None:
        model.graph.CopyFrom(graph)
        return bytes(model.SerializeToString(deterministic=True))
    rest = graph.SerializeToString(deterministic=True)
    out = io.BytesIO()
    model.ClearField("opset_import")
    out.write(model.SerializeToString(deterministic=True))
    first.write(out, more=len(rest))
    out.write(rest)
    out.write(ModelProto(opset_import=imports).SerializeToString(deterministic=True))
    return out.getvalue()  # no copy: it is the buffer itself


_NODE: Final = 1
"""The field of a GraphProto that holds its nodes, which is the first."""
_GRAPH: Final = 7


def _key(field: int, kind: int) -> bytes:
    return number(field << 3 | kind)


def _slices(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    return (values[at : at + _SLICE] for at in range(0, values.size, _SLICE))


def _integers(values: npt.NDArray[Any]) -> bytes:
    rest = values.astype(np.uint64)
    rows = np.zeros((values.size, 1 + _MOST), dtype=np.uint8)
    used = np.zeros(rows.shape, dtype=np.bool_)
    rows[:, 0], used[:, :2] = _INTS << 3, True
    column = 1
    while True:
        rows[:, column] = rest & 0x7F
        rest >>= np.uint64(7)
        more = rest > 0
        if not more.any():
            return rows[used].tobytes()
        rows[more, column] |= 0x80
        column += 1
        used[more, column] = True


def _floats(values: npt.NDArray[np.float32]) -> bytes:
    rows = np.empty(values.size, dtype=[("key", "u1"), ("value", "<f4")])
    rows["key"], rows["value"] = _FLOATS << 3 | 5, values
    return rows.tobytes()


# Reading it back: what was written is what is examined, and a message of it would be five times as large.

Lists: TypeAlias = Mapping[str, Sequence[Any]]
"""Name of an attribute -> its numbers or strings, which stand in no message."""


def apart(onnx: bytes) -> tuple[bytes, Lists]:
    """The model's bytes without the long lists of its first node, and these lists, as they stand in the bytes.

    Raises:
        Failure: these are not bytes that were written here.
    """
    with memoryview(onnx) as model:
        lists: dict[str, Sequence[Any]] = {}
        return b"".join(_without(model, (_GRAPH, _NODE, _ATTRIBUTE), lists)), lists


def _without(message: memoryview, path: tuple[int, ...], lists: dict[str, Sequence[Any]]) -> list[bytes]:
    """The fields of a message, those on the path without their long lists."""
    if not path:
        return _listless(message, lists)
    made: list[bytes] = []
    for start, at, end, field in _fields(message):
        if field != path[0] or end - at < _SLICE:
            made.append(bytes(message[start:end]))
            continue
        inner = b"".join(_without(message[at:end], path[1:], lists))
        made += [_key(field, 2), number(len(inner)), inner]
    return made


def _listless(attribute: memoryview, lists: dict[str, Sequence[Any]]) -> list[bytes]:
    """An attribute without its entries, which begin after its name and end before its type."""
    kind = attribute[-1]
    _, at, begin, _ = next(_fields(attribute))
    name = str(attribute[at:begin], "utf-8")
    end = len(attribute) - len(AttributeProto(type=kind).SerializeToString())
    entries = np.frombuffer(attribute, np.uint8, end - begin, begin)
    match kind:
        case AttributeProto.STRINGS:
            lists[name] = _read_strings(bytes(attribute[begin:end]))
        case AttributeProto.INTS:
            lists[name] = _read_integers(entries)
        case AttributeProto.FLOATS:
            lists[name] = _read_floats(entries)
        case _:
            return [bytes(attribute)]
    return [bytes(attribute[:begin]), bytes(attribute[end:])]


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Of each field: where it begins, where its contents do, where it ends, its number."""
    at = 0
    while at < len(message):
        start = at
        key, at = _number_at(message, at)
        length, begin = _number_at(message, at)
        if key & 7 == 0:
            at, begin = begin, at
        elif key & 7 == 2:
            at = begin + length
        else:
            _unlike()
        if at > len(message):
            _unlike()
        yield start, begin, at, key >> 3


def _number_at(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for place in range(_MOST):
        if at + place >= len(message):
            break
        value |= (message[at + place] & 0x7F) << 7 * place
        if message[at + place] < 0x80:
            return value, at + place + 1
    return _unlike()


def _read_integers(entries: npt.NDArray[np.uint8]) -> array[int]:
    """Whole numbers below 2**31, each with its key."""
    made = array("i")
    at = 0
    while at < entries.size:
        part = entries[at : at + 16 * _SLICE]
        ends = np.flatnonzero(part < 0x80)
        keys, lasts = ends[0::2][: ends.size // 2], ends[1::2]
        lengths = lasts - keys
        if not lasts.size or (part[keys] != _INTS << 3).any() or lengths.max() > 5:
            _unlike()
        if keys[0] != 0 or (keys[1:] != lasts[:-1] + 1).any():
            _unlike()  # a key of more than one byte
        values = np.zeros(keys.size, dtype=np.int64)
        for place in range(int(lengths.max())):
            there = lengths > place
            values[there] |= (part[keys[there] + 1 + place] & 0x7F).astype(np.int64) << 7 * place
        if values.max() >= 1 << 31:
            _unlike()
        made.frombytes(values.astype(np.int32).tobytes())
        at += int(lasts[-1]) + 1
    return made


def _read_floats(entries: npt.NDArray[np.uint8]) -> array[float]:
    rows = entries.view([("key", "u1"), ("value", "<f4")]) if entries.size % 5 == 0 else _unlike()
    if (rows["key"] != (_FLOATS << 3 | 5)).any():
        _unlike()
    return array("f", rows["value"].tobytes())


def _read_strings(entries: bytes) -> tuple[bytes, ...]:
    """Short ones, of which few are different; each of these is kept once."""
    words: dict[bytes, bytes] = {}
    made: list[bytes] = []
    at, key, end = 0, _key(_STRINGS, 2)[0], len(entries)
    try:
        while at < end:
            begin = at + 2
            at = begin + entries[at + 1]
            word = entries[begin:at]
            if entries[begin - 2] != key or entries[begin - 1] > 0x7F:
                _unlike()
            made.append(words.setdefault(word, word))
    except IndexError:
        _unlike()
    return tuple(made) if at == end else _unlike()


def _unlike() -> NoReturn:
    raise Failure("a model is not in memory as it was written")
