"""What the server and its workers say to each other: a closed set of records, and tensors in shared memory.

    run       b"R", numbers of inputs and of outputs asked for, a place for each input, a number for each output
    answer    a letter, the number of outputs, a place for each

Rules
  - Nothing is an object of anybody's making: numbers of fixed width, names of tensors by their position in the
    model's metadata, lengths before everything.
  - The other side may have been taken over. What comes from it is copied first and looked at afterwards, since
    shared memory can change between two looks; what does not fit is `EOFError`: it counts as gone.
  - Tensors lie at multiples of `ALIGNMENT` bytes, in C order and native byte order; a BYTES tensor is each
    element's length (4 bytes, little endian) and then the element.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from strongroom.frames import Stream, exactly
from strongroom.oip import DATATYPES, MAX_RANK, Array

ALIGNMENT: Final = 64
"""Bytes: a cache line, and enough for every kernel."""
MAX_TENSORS: Final = 1 << 16

FORK: Final = b"F"
"""The server's one word to a template, with the socket of the worker to be."""
HELLO: Final = b"H"
"""A worker's first word, by which the kernel tells the server its process id."""
MEMORY: Final = b"M"
"""The server's first word to a worker, with its memory; its size follows (8 bytes, little endian)."""
LIMITED: Final = b"L"
"""A template: its limit of memory is set."""
STAGE: Final = b"S"
"""A template's word between two stages: it has the first."""
RUN: Final = b"R"
DONE: Final = b"+"
FAILED: Final = b"f"
NO_TEXT: Final = b"t"
NO_MEMORY: Final = b"m"
TOO_LARGE: Final = b"s"
OUTCOMES: Final = (DONE, FAILED, NO_TEXT, NO_MEMORY, TOO_LARGE)
"""How a run ends: with outputs; it cannot be run; a string is no UTF-8; no memory; outputs larger than the room."""

_RUN: Final = struct.Struct("<cHHI")  # kind, inputs, outputs asked for, bytes that follow
_ANSWER: Final = struct.Struct("<cHI")  # outcome, outputs, bytes that follow
_PLACE: Final = struct.Struct("<HBQQ")  # position in the metadata, rank, offset, bytes; then the dimensions
_PLACE_BYTES: Final = _PLACE.size + 8 * MAX_RANK
USUAL: Final = 512
"""Bytes of a record up to which it is remembered what it says: requests of one shape have the same one each time."""
FIRST: Final = 1 << 16
"""Bytes that are received at once: a record of some hundred tensors."""


class Place(NamedTuple):
    """A tensor in shared memory: its position in the model's metadata; `offset` and `size` in bytes."""

    position: int
    shape: tuple[int, ...]
    offset: int
    size: int


# Runs


def pack_run(inputs: Sequence[Place], wanted: Sequence[int]) -> bytes:
    """The record that asks for a run; `wanted`: positions of the outputs."""
    layout, values, size = _flat(inputs)
    count = len(wanted)
    return struct.pack(f"<cHHI{layout}{count}H", RUN, len(inputs), count, size + 2 * count, *values, *wanted)


def receive_run(end: Stream) -> tuple[tuple[Place, ...], tuple[int, ...]]:
    """Receives what `pack_run` made: in the worker, from the server.

    Raises:
        EOFError: the server ended, or this is no such record.
    """
    data = end.recv(FIRST)  # one call where it arrives in one piece: nothing comes behind it unasked
    while (missing := _missing(data, _RUN, most=MAX_TENSORS * _PLACE_BYTES)) != 0:
        if not data:
            raise EOFError
        data += exactly(end, missing)
    return (_known_run if len(data) <= USUAL else _parse_run)(data)


def _parse_run(data: bytes) -> tuple[tuple[Place, ...], tuple[int, ...]]:
    kind, inputs, outputs, _ = _RUN.unpack_from(data)
    if kind != RUN:
        raise EOFError
    places, at = _unpack_places(data, _RUN.size, inputs)
    if len(data) - at != 2 * outputs:
        raise EOFError
    return places, struct.unpack_from(f"<{outputs}H", data, at)


_known_run = lru_cache(maxsize=16)(_parse_run)


def pack_answer(outcome: bytes, outputs: Sequence[Place] = ()) -> bytes:
    """The record that ends a run."""
    layout, values, size = _flat(outputs)
    return struct.pack(f"<cHI{layout}", outcome, len(outputs), size, *values)


def parse_answer(data: bytes, *, outputs: int) -> tuple[bytes, tuple[Place, ...]] | None:
    """Reads what `pack_answer` made, as far as it has come, from a worker that may say anything: an outcome, and as
    many places as outputs were asked for, or none. None: there is more to come.

    Raises:
        EOFError: this is how no answer begins.
    """
    return (_known_answer if len(data) <= USUAL else _parse_answer)(data, outputs)


def _parse_answer(data: bytes, outputs: int) -> tuple[bytes, tuple[Place, ...]] | None:
    if _missing(data, _ANSWER, most=outputs * _PLACE_BYTES):
        return None
    outcome, count, _ = _ANSWER.unpack_from(data)
    if outcome not in OUTCOMES or count != (outputs if outcome == DONE else 0):
        raise EOFError
    places, at = _unpack_places(data, _ANSWER.size, count)
    if at != len(data):
        raise EOFError
    return outcome, places


_known_answer = lru_cache(maxsize=64)(_parse_answer)


def _missing(data: bytes, head: struct.Struct, *, most: int) -> int:
    """Bytes that a record lacks, of its head or of what follows it, `most` at most."""
    if len(data) < head.size:
        return head.size - len(data)
    length = head.unpack_from(data)[-1]
    missing: int = head.size + length - len(data)
    if length > most or missing < 0:
        raise EOFError
    return missing


def _flat(places: Sequence[Place]) -> tuple[str, list[int], int]:
    """Places as one `struct` has them: the format, the numbers, and how many bytes they take."""
    layout, size = "", 0
    values: list[int] = []
    for position, shape, offset, length in places:
        rank = len(shape)
        layout += f"HBQQ{rank}Q"
        values += (position, rank, offset, length, *shape)
        size += _PLACE.size + 8 * rank
    return layout, values, size


def _unpack_places(data: bytes, at: int, count: int) -> tuple[tuple[Place, ...], int]:
    places = []
    try:
        for _ in range(count):
            position, rank, offset, size = _PLACE.unpack_from(data, at)
            if rank > MAX_RANK:
                raise EOFError
            shape = struct.unpack_from(f"<{rank}Q", data, at + _PLACE.size)
            at += _PLACE.size + 8 * rank
            places.append(Place(position, shape, offset, size))
    except struct.error:
        raise EOFError from None
    return tuple(places), at


# Tensors


def stored_bytes(array: Array) -> int:
    """Bytes that `put` takes for a tensor, up to the next multiple of `ALIGNMENT`."""
    size = array.nbytes
    if array.dtype.kind == "O":
        size = 4 * array.size + sum(map(len, array.reshape(-1).tolist()))
    return aligned(size)


def aligned(size: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def put(area: Array, offset: int, array: Array, *, position: int) -> Place:
    """Copies a tensor into `area` (uint8 [n], shared) at `offset`; it must fit."""
    if array.dtype.kind == "O":
        data = b"".join(len(element).to_bytes(4, "little") + element for element in array.reshape(-1))
        area[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        return Place(position, array.shape, offset, len(data))
    if array.nbytes:
        np.ndarray(array.shape, array.dtype, area, offset)[...] = array
    return Place(position, array.shape, offset, array.nbytes)


class Laid:
    """The inputs of a run as they lie in shared memory, none of them BYTES: another run's of these shapes and dtypes
    lie the same way, and have the same record.
    """

    __slots__ = ("_forms", "_record", "_targets", "_wanted", "used")

    def __init__(
        self,
        area: Array,
        places: Sequence[Place],
        arrays: Sequence[Array],
        wanted: Sequence[int],
        *,
        record: bytes,
    ) -> None:
        self._forms = [(array.shape, array.dtype) for array in arrays]
        self._wanted = wanted
        self._targets = [
            np.ndarray(array.shape, array.dtype, area, place.offset if place.size else 0)
            for place, array in zip(places, arrays, strict=True)
        ]
        self._record = record
        self.used = max((place.offset + place.size for place in places), default=0)
        """Bytes of the memory, from its beginning, in which they lie."""

    def fits(self, arrays: Sequence[Array], wanted: Sequence[int]) -> bool:
        """Whether these lie the same way, and the same is wanted."""
        return wanted == self._wanted and [(array.shape, array.dtype) for array in arrays] == self._forms

    def put(self, arrays: Sequence[Array]) -> bytes:
        """Copies them there; the record of their run."""
        for target, array in zip(self._targets, arrays, strict=True):
            target[...] = array
        return self._record


def view(area: Array, place: Place, *, datatype: str) -> Array:
    """The tensor at `place`, in the worker: no copy but for BYTES. The server wrote it, and does not while it is read.

    Raises:
        EOFError: there is no such tensor.
    """
    _check(place, len(area), datatype)
    if datatype == "BYTES":
        return _elements(area[place.offset : place.offset + place.size].tobytes(), place.shape)
    if not place.size:
        return np.empty(place.shape, DATATYPES[datatype])
    return np.ndarray(place.shape, DATATYPES[datatype], area, place.offset)


def take(area: Array, place: Place, *, datatype: str) -> Array:
    """A private copy of the tensor at `place`, in the server: copied first, then looked at, for a worker that was
    taken over may write there meanwhile.

    Raises:
        EOFError: there is no such tensor: it is not as long as its shape says, or is not of its type.
    """
    _check(place, len(area), datatype)
    if datatype == "BYTES":
        return _elements(area[place.offset : place.offset + place.size].tobytes(), place.shape)
    if not place.size:
        return np.empty(place.shape, DATATYPES[datatype])
    if datatype == "BOOL":
        copied = area[place.offset : place.offset + place.size].copy()
        if int(copied.max()) > 1:
            raise EOFError  # another byte in a bool is undefined behaviour in numpy's and everybody's loops
        return copied.view(DATATYPES[datatype]).reshape(place.shape)
    return np.ndarray(place.shape, DATATYPES[datatype], area, place.offset).copy()


def _check(place: Place, area: int, datatype: str) -> None:
    """The place lies in the area, and is as long as its shape says; a BYTES tensor at least as long."""
    if place.offset % ALIGNMENT or place.offset > area or place.size > area - place.offset:
        raise EOFError
    count = math.prod(place.shape)  # Python's integers: no overflow
    if datatype == "BYTES":
        if 4 * count > place.size:
            raise EOFError
    elif count * DATATYPES[datatype].itemsize != place.size:
        raise EOFError
    if not count and math.prod(size for size in place.shape if size) > 1 << 48:
        raise EOFError  # numpy has no array of that shape, empty as it would be


def _elements(data: bytes, shape: tuple[int, ...]) -> Array:
    elements, at = np.empty(math.prod(shape), dtype=np.object_), 0
    for number in range(len(elements)):
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4 + length
        if at > len(data):
            raise EOFError
        elements[number] = data[at - length : at]
    if at != len(data):
        raise EOFError
    return elements.reshape(shape)
