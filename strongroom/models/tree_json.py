"""Bounded readers of the two forms XGBoost saves models in: JSON, and UBJSON (draft 12 as XGBoost writes it).

Rules
  - Nothing is sized by what a file declares. A count is believed only up to the bytes that are left, so
    memory is a small multiple of the file whatever it says.
  - Depth, digits and the number of values are counted *before* Python objects are made of them (`tree_text`).
  - A member named twice is refused: of two readers one keeps the first and one the last, and a model that
    one checked is not the model that the other runs.
  - Both readers give dict, list, str, bool, None, int, float; UBJSON's typed arrays, and every array of more
    than a few numbers, give one-dimensional numpy arrays. `int_array` and `float_array` make the same of each.
  - Messages name places, never content: a model is its owner's secret.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from strongroom.errors import AdmissionRefused, LimitExceeded, MalformedInput
from strongroom.models.tree_text import Gathered, Read, TextReader, Trail

_WHOLE: Final = re.compile(r"[0-9]{1,10}")

_SOME: Final = 1 << 12
"""Elements of an array without a type that are read at one time."""
_SCALARS: Final = {
    ord(marker): struct.Struct(form)
    for marker, form in {"i": ">b", "U": ">B", "I": ">h", "l": ">i", "L": ">q", "d": ">f", "D": ">d"}.items()
}
_LENGTHS: Final = frozenset(map(ord, "iUIlL"))
_ARRAY_TYPES: Final = {
    ord(marker): (np.dtype(stored), np.dtype(native))
    for marker, (stored, native) in {
        "i": (">i1", np.int8),
        "U": (">u1", np.uint8),
        "I": (">i2", np.int16),
        "l": (">i4", np.int32),
        "L": (">i8", np.int64),
        "d": (">f4", np.float32),
        "D": (">f8", np.float64),
    }.items()
}


def parse_json(
    data: bytes | bytearray | memoryview, *, nesting: int, values: int, trail: Trail = None
) -> Any:
    """Reads JSON text of at most `nesting` levels and `values` scalars and containers.

    NaN, Infinity and -Infinity are read (XGBoost writes NaN where a number has no meaning); whoever uses a
    number checks that it is finite. Elements of arrays at the ends of `trail` are handed over, and None stands in
    their places.

    Raises:
        MalformedInput: not JSON in UTF-8 (code `tree_not_json`), a number of too many digits
            (`tree_number_too_long`), or a member named twice (`tree_duplicate_member`).
        LimitExceeded: too deep (`tree_too_deep`) or too many values (`tree_too_many_values`).
    """
    return TextReader(memoryview(data).cast("B"), nesting=nesting, values=values).document(trail)


def parse_ubj(data: bytes | bytearray | memoryview, *, nesting: int, values: int, trail: Trail = None) -> Any:
    """Reads UBJSON of at most `nesting` levels and `values` scalars, array elements and containers.

    Elements of arrays at the ends of `trail` are handed over, and None stands in their places.
    Objects carry no count and no type, no-ops and high-precision numbers are refused: XGBoost writes none.

    Raises:
        MalformedInput: not UBJSON (code `tree_not_ubjson`), a count or length beyond the end of the data
            (`tree_truncated`), an array type that is not a number (`tree_array_type`), or a member named
            twice (`tree_duplicate_member`).
        LimitExceeded: too deep (`tree_too_deep`) or too many values (`tree_too_many_values`).
    """
    reader = _UbjReader(memoryview(data).cast("B"), nesting=nesting, values=values)
    value = reader.value(depth=0, trail=trail)
    if reader.left:
        raise MalformedInput("expected the end of the data after the first value", code="tree_not_ubjson")
    return value


def int_array(value: object, *, name: str) -> npt.NDArray[np.int64]:
    """The whole numbers of a JSON list or UBJSON array; JSON booleans count as 0 and 1.

    Raises:
        MalformedInput: not an array, or one that holds something else (code `tree_array_type`).
    """
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iub":
        return value.astype(np.int64)
    # The types are looked at before numpy sees the list: with one string in it numpy would make every element
    # as wide as that string.
    if isinstance(value, list) and set(map(type, value)) <= {int, bool}:
        try:
            return np.array(value, dtype=np.int64)
        except OverflowError:
            pass
    raise MalformedInput(f"{name}: expected an array of whole numbers", code="tree_array_type")


def float_array(value: object, *, name: str) -> npt.NDArray[np.float32]:
    """The numbers of a JSON list or UBJSON array as float32, XGBoost's own precision; too large becomes inf.

    Raises:
        MalformedInput: not an array, or one that holds something else (code `tree_array_type`).
    """
    with np.errstate(over="ignore"):
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iuf":
            # A whole number by way of float64, as in a list: two roundings can differ from one.
            wide = value if value.dtype.kind == "f" else value.astype(np.float64)
            return wide.astype(np.float32)
        if isinstance(value, list) and set(map(type, value)) <= {int, float}:
            return np.array(value, dtype=np.float64).astype(np.float32)
    raise MalformedInput(f"{name}: expected an array of numbers", code="tree_array_type")


def object_member(value: object, name: str) -> Mapping[str, Any]:
    """The value, if it is an object.

    Raises:
        MalformedInput: it is not (code `tree_member_type`).
    """
    if not isinstance(value, dict):
        raise MalformedInput(f"{name}: expected an object", code="tree_member_type")
    return value


def list_member(value: object, name: str) -> list[Any]:
    """The value, if it is an array without a type.

    Raises:
        MalformedInput: it is not (code `tree_member_type`).
    """
    if not isinstance(value, list):
        raise MalformedInput(f"{name}: expected an array", code="tree_member_type")
    return value


def text_member(members: Mapping[str, Any], where: str, name: str) -> str:
    """The member of that name, which has to be a string.

    Raises:
        MalformedInput: it is not (code `tree_member_type`).
    """
    value = members.get(name)
    if not isinstance(value, str):
        raise MalformedInput(f"{where}.{name}: expected a string", code="tree_member_type")
    return value


def whole_member(members: Mapping[str, Any], where: str, name: str, *, default: int | None = None) -> int:
    """The member of that name: a whole number, not negative, which XGBoost writes as a string of digits.

    Raises:
        MalformedInput: it is not, or is missing without a default (code `tree_member_number`).
    """
    value = members.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not _WHOLE.fullmatch(value):
        raise MalformedInput(
            f"{where}.{name}: expected a whole number as a string", code="tree_member_number"
        )
    return int(value)


def check_members(
    members: Mapping[str, Any], where: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    """Refuses missing members, and unknown ones: a newer XGBoost may have put something there that counts.

    Raises:
        MalformedInput: a required member is missing (code `tree_member_missing`).
        AdmissionRefused: there is one that is not known (code `tree_member_unknown`).
    """
    missing = [name for name in required if name not in members]
    if missing:
        raise MalformedInput(f"{where}: expected the member {missing[0]}", code="tree_member_missing")
    if len(members) > len(required) + sum(name in members for name in optional):
        raise AdmissionRefused(f"{where} has a member that is not known here", code="tree_member_unknown")


def _too_deep(nesting: int) -> NoReturn:
    raise LimitExceeded(f"expected at most {nesting} levels of nesting", code="tree_too_deep")


class _UbjReader:
    """A cursor over the data and the budget of values. `depth` is that of the container being read."""

    def __init__(self, data: memoryview, *, nesting: int, values: int) -> None:
        self._data = data
        self._at = 0
        self._nesting = nesting
        self._limit = values
        self._values = values

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def value(self, *, depth: int, trail: Trail) -> Any:
        marker = self._marker()
        self._spend(1)
        scalar = _SCALARS.get(marker)
        if scalar is not None:
            return scalar.unpack_from(self._data, self._skip(scalar.size))[0]
        match marker:
            case 0x7B:  # {
                return self._object(depth + 1, trail)
            case 0x5B:  # [
                return self._array(depth + 1, trail)
            case 0x53:  # S
                return self._text(self._marker())
            case 0x54 | 0x46:  # T, F
                return marker == 0x54
            case 0x5A:  # Z
                return None
        raise MalformedInput("an unexpected type marker", code="tree_not_ubjson")

    def _skip(self, count: int) -> int:
        """Moves over `count` bytes, returns where they begin: the one place where a length meets the data."""
        start = self._at
        if not 0 <= count <= len(self._data) - start:
            raise MalformedInput("a length goes beyond the end of the data", code="tree_truncated")
        self._at = start + count
        return start

    def _marker(self) -> int:
        return self._data[self._skip(1)]

    def _spend(self, count: int) -> None:
        self._values -= count
        if self._values < 0:
            raise LimitExceeded(f"expected at most {self._limit} values", code="tree_too_many_values")

    def _length(self, marker: int) -> int:
        if marker not in _LENGTHS:
            raise MalformedInput("expected a whole number as length", code="tree_not_ubjson")
        scalar = _SCALARS[marker]
        length: int = scalar.unpack_from(self._data, self._skip(scalar.size))[0]
        return length

    def _text(self, marker: int) -> str:
        start = self._skip(self._length(marker))
        try:
            return str(self._data[start : self._at], "utf-8")
        except UnicodeDecodeError:
            raise MalformedInput("a string is not UTF-8", code="tree_not_ubjson") from None

    def _object(self, depth: int, trail: Trail) -> dict[str, Any]:
        if depth > self._nesting:
            _too_deep(self._nesting)
        members: dict[str, Any] = {}
        while (marker := self._marker()) != 0x7D:  # }
            name = self._text(marker)  # a key has no string marker
            if name in members:
                raise MalformedInput("an object names a member twice", code="tree_duplicate_member")
            below = trail.get(name) if isinstance(trail, Mapping) else None
            members[name] = self.value(depth=depth, trail=below)
        return members

    def _array(self, depth: int, trail: Trail) -> Read:
        if depth > self._nesting:
            _too_deep(self._nesting)
        marker = self._marker()
        if marker == 0x24:  # $
            return self._typed_array()
        gathered = Gathered()
        if marker == 0x23:  # #
            count = self._length(self._marker())
            # Every element has at least its marker, so a count beyond the bytes left is a lie.
            if not 0 <= count <= self.left:
                raise MalformedInput("a count goes beyond the end of the data", code="tree_truncated")
            if callable(trail):
                for _ in range(count):
                    gathered.add(trail(self.value(depth=depth, trail=None)))
                return gathered.result()
            for done in range(0, count, _SOME):
                some = range(min(_SOME, count - done))
                gathered.extend([self.value(depth=depth, trail=None) for _ in some])
            return gathered.result()
        while marker != 0x5D:  # ]
            self._at -= 1
            value = self.value(depth=depth, trail=None)
            gathered.add(trail(value) if callable(trail) else value)
            marker = self._marker()
        return gathered.result()

    def _typed_array(self) -> npt.NDArray[Any]:
        """`[$type#count` and the elements without markers.

        Only numbers: a type without a body (null, true) would give any number of elements from no bytes.
        """
        types = _ARRAY_TYPES.get(self._marker())
        if types is None:
            raise MalformedInput("a typed array is not of numbers", code="tree_array_type")
        if self._marker() != 0x23:  # #
            raise MalformedInput("expected the count of a typed array", code="tree_not_ubjson")
        count = self._length(self._marker())
        stored, native = types
        start = self._skip(count * stored.itemsize)
        self._spend(count)
        return np.frombuffer(self._data, stored, count, start).astype(native)
