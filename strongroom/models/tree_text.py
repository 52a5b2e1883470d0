"""JSON text, read from left to right: of an array of numbers there are never more Python objects than a piece has.

Rules
  - What is read is what `json.loads` reads: every number and every string that needs it goes through it, piece by
    piece. Here is only the walk from one to the next, whose depth and values are counted before they are read.
  - Digits are counted before a number is converted: converting n digits takes more than linear time.
  - Arrays of `FEW` numbers or more become numpy arrays, of the narrowest whole numbers or of float32.
  - Elements of an array that the caller asked for are handed over one after the other, and not kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from strongroom.errors import LimitExceeded, MalformedInput

MAX_DIGITS: Final = 20
"""Digits in a row in a JSON number; 2**64 has 20, and XGBoost writes floats with nine."""
FEW: Final = 64
"""Numbers of which a list is smaller than what numpy keeps of an array, or not much larger."""
PIECE: Final = 1 << 16
"""Bytes of an array's text, or elements of it, of which there are Python objects at one time: a few megabytes."""

Trail: TypeAlias = "Mapping[str, Trail] | Callable[[Any], None] | None"
"""Member names on the way to arrays whose elements a caller takes, and there what takes them."""
Read: TypeAlias = "list[Any] | npt.NDArray[Any]"

# Possessive: no input makes them backtrack.
_SPACE: Final = re.compile(rb"[ \t\n\r]*+")
_PLAIN: Final = re.compile(rb'"([^"\\\x00-\x1f]*+)"')
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SCALAR: Final = re.compile(rb"[-+.0-9A-Za-z]++")
_NUMBERS: Final = re.compile(rb"[-+.0-9eENaInfity, \t\n\r]*+\]")
_SMALL: Final = re.compile(rb"\{(?:[^{}\[\]\\]++|\[[^{}\[\]\\]*+\]|\{[^{}\[\]\\]*+\})*+\}")
"""An object of scalars, arrays of scalars and objects of scalars; braces in strings end it early, and it is none."""
_SMALL_BYTES: Final = 1 << 14
"""Of an object that is read in one go."""
_COMMA: Final = re.compile(rb",")
_DIGITS_TO_ZERO: Final = bytes(0x30 if 0x30 <= code <= 0x39 else code for code in range(256))
_TOO_MANY_DIGITS: Final = b"0" * (MAX_DIGITS + 1)
_WIDTHS: Final = tuple((kind, np.iinfo(kind)) for kind in (np.int8, np.int32))


def packed(values: list[Any]) -> npt.NDArray[Any] | None:
    """The values as a numpy array, where all are numbers or all are booleans; None where they are not.

    Whole numbers get the narrowest type that holds them. Others, and whole numbers of more than 64 bits, become
    float32 by way of float64, which is what `tree_json.float_array` makes of a list; too large becomes inf.
    """
    kinds = set(map(type, values))
    if kinds == {bool}:
        return np.array(values, dtype=np.bool_)
    if kinds == {int}:
        try:
            whole = np.array(values, dtype=np.int64)
        except OverflowError:
            pass
        else:
            low, high = whole.min(), whole.max()
            fits = (kind for kind, about in _WIDTHS if about.min <= low and high <= about.max)
            return whole.astype(next(fits, np.int64))
    if kinds and kinds <= {int, float}:
        with np.errstate(over="ignore"):
            return np.array(values, dtype=np.float64).astype(np.float32)
    return None


class Gathered:
    """An array whose elements arrive one by one, or some at a time."""

    def __init__(self) -> None:
        self._made: list[Read] = []
        self._last: list[Any] = []

    def add(self, value: Any) -> None:
        """One element more."""
        self._last.append(value)
        if len(self._last) == PIECE:
            self._pack()

    def extend(self, values: list[Any]) -> None:
        """Some elements more, no more than a piece."""
        self._last += values
        if len(self._last) >= PIECE // 4:
            self._pack()

    def result(self) -> Read:
        """A list; or, of `FEW` numbers or more, a numpy array."""
        if not self._made and len(self._last) < FEW:
            return self._last
        if self._last:
            self._pack()
        arrays = [part for part in self._made if isinstance(part, np.ndarray)]
        booleans = {array.dtype.kind == "b" for array in arrays}
        if len(arrays) < len(self._made) or len(booleans) > 1:
            plain = (part.tolist() if isinstance(part, np.ndarray) else part for part in self._made)
            return [value for part in plain for value in part]
        return _joined(arrays)

    def _pack(self) -> None:
        array = packed(self._last)
        self._made.append(self._last if array is None else array)
        self._last = []


def _joined(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if any(array.dtype.kind == "f" for array in arrays):
        # By way of float64, as everywhere: two roundings of a whole number can differ from one.
        arrays = [a if a.dtype.kind == "f" else a.astype(np.float64).astype(np.float32) for a in arrays]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


class TextReader:
    """A cursor over JSON text and the budget of values. `depth` is that of the container being read."""

    def __init__(self, data: memoryview, *, nesting: int, values: int) -> None:
        self._data = data
        self._at = 0
        self._nesting = nesting
        self._limit = values
        self._values = values

    def document(self, trail: Trail) -> Any:
        """The one value of the text.

        Raises:
            MalformedInput, LimitExceeded: as `tree_json.parse_json`.
        """
        value = self._value(0, trail)
        self._blank()
        if self._at != len(self._data):
            _refuse()
        return value

    def _blank(self) -> None:
        found = _SPACE.match(self._data, self._at)
        if found is not None:
            self._at = found.end()

    def _next(self) -> int:
        """The byte after white space; -1 at the end."""
        self._blank()
        return self._data[self._at] if self._at < len(self._data) else -1

    def _spend(self, count: int) -> None:
        self._values -= count
        if self._values < 0:
            raise LimitExceeded(f"expected at most {self._limit} values", code="tree_too_many_values")

    def _value(self, depth: int, trail: Trail) -> Any:
        self._spend(1)
        code = self._next()
        if code in (0x7B, 0x5B):
            if depth == self._nesting:
                raise LimitExceeded(
                    f"expected at most {self._nesting} levels of nesting", code="tree_too_deep"
                )
            self._at += 1
            return self._object(depth + 1, trail) if code == 0x7B else self._array(depth + 1, trail)
        if code == 0x22:
            return self._text()
        found = _SCALAR.match(self._data, self._at)
        if found is None:
            _refuse()
        self._at = found.end()
        return _loaded(found.group())

    def _text(self) -> str:
        plain = _PLAIN.match(self._data, self._at)
        found = plain or _STRING.match(self._data, self._at)
        if found is None:
            _refuse()
        self._at = found.end()
        try:
            made = str(plain.group(1), "utf-8") if plain else json.loads(str(found.group(), "utf-8"))
        except ValueError:
            _refuse()
        return str(made)

    def _object(self, depth: int, trail: Trail) -> dict[str, Any]:
        members: dict[str, Any] = {}
        if self._next() == 0x7D:  # }
            self._at += 1
            return members
        while True:
            if self._next() != 0x22:
                _refuse()
            name = self._text()
            if name in members:
                _refuse_twice()
            if self._next() != 0x3A:  # :
                _refuse()
            self._at += 1
            members[name] = self._value(depth, trail.get(name) if isinstance(trail, Mapping) else None)
            if self._ended(0x7D):
                return members

    def _array(self, depth: int, trail: Trail) -> Read:
        taker = trail if callable(trail) else None
        numbers = None if taker else _NUMBERS.match(self._data, self._at)
        if numbers is not None:
            made = self._numbers(self._at, numbers.end() - 1)
            self._at = numbers.end()
            return made
        gathered = Gathered()
        if self._next() == 0x5D:  # ]
            self._at += 1
            return gathered.result()
        while True:
            value = self._small(depth) if taker else None
            if value is None:
                value = self._value(depth, None)
            if taker is not None:
                value = taker(value)
            gathered.add(value)
            if self._ended(0x5D):
                return gathered.result()

    def _small(self, depth: int) -> dict[str, Any] | None:
        """The small object that stands here; None where none does, or something is wrong with it.

        No part of an object's text is an object's text: what is read here is what a reader from left to right reads.
        """
        self._blank()
        found = _SMALL.match(self._data, self._at, self._at + _SMALL_BYTES)
        if found is None or depth + 2 > self._nesting:
            return None
        text = found.group()
        if _TOO_MANY_DIGITS in text.translate(_DIGITS_TO_ZERO):
            return None
        try:
            value = json.loads(str(text, "utf-8"), object_pairs_hook=_members)
        except ValueError:
            return None
        self._spend(text.count(b",") + text.count(b"[") + text.count(b"{"))
        self._at = found.end()
        return value if isinstance(value, dict) else None

    def _ended(self, end: int) -> bool:
        """Whether the container ends here; or else a comma was read."""
        code = self._next()
        if code not in (0x2C, end):
            _refuse()
        self._at += 1
        return code == end

    def _numbers(self, at: int, end: int) -> Read:
        """What stands between two brackets and has no character that numbers have not; cut at commas."""
        gathered = Gathered()
        first = at
        while True:
            stop = end
            if end - at > PIECE:
                comma = _COMMA.search(self._data, at + PIECE, end)
                stop = comma.start() if comma else end
            values = _loaded(b"[%b]" % bytes(self._data[at:stop]))
            if not values and (at > first or stop < end):
                _refuse()  # nothing between two commas
            self._spend(len(values))
            gathered.extend(values)
            if stop == end:
                return gathered.result()
            at = stop + 1


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _refuse_twice()
    return members


def _refuse_twice() -> NoReturn:
    raise MalformedInput("an object names a member twice", code="tree_duplicate_member")


def _loaded(text: bytes) -> Any:
    """The value of a text without strings and objects."""
    if _TOO_MANY_DIGITS in text.translate(_DIGITS_TO_ZERO):
        raise MalformedInput(
            f"a number has more than {MAX_DIGITS} digits in a row", code="tree_number_too_long"
        )
    try:
        return json.loads(str(text, "ascii"))
    except ValueError:
        _refuse()


def _refuse() -> NoReturn:
    # Not chained: a JSONDecodeError carries the document.
    raise MalformedInput("expected JSON text in UTF-8", code="tree_not_json") from None
