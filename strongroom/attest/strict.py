"""Strict, bounded JSON: the one reader of every document that trust rests on.

Rules, all of them because two readers that disagree about one document are an attack (one signs what the
other does not see):

1. At most `limit` bytes of UTF-8, no byte order mark; nesting ends where the interpreter's does, as a
   refusal.
2. No member twice (plain `json` keeps the last), no floats, no `NaN`, integers within +-(2**53 - 1) (RFC 8785
   section 3.2.2.3).
3. Exactly the members that the document's format names: an unknown one is refused, for a peer that added it
   may rely on it.
4. Base64 is the canonical form of RFC 4648 section 4, with padding; hex is lower case.

Whoever reads with this module names the error code of the document, so that a refusal says which document was
wrong.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

import rfc8785

from strongroom.errors import MalformedInput

JSON = None | bool | int | str | Sequence["JSON"] | Mapping[str, "JSON"]
"""What a document may be made of: no floats."""

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader agrees about."""
_MAX_DIGITS = 16
"""Decimal digits of `MAX_INTEGER`; longer numbers are refused before they are converted."""


def canonical(value: JSON) -> bytes:
    """Returns the RFC 8785 form of `value`.

    Raises:
        MalformedInput: a number or string has no such form.
    """
    try:
        return rfc8785.dumps(value)
    except ValueError:  # its own error, or Python's for a lone surrogate; both may quote the value
        raise MalformedInput("a value has no canonical JSON form (RFC 8785)") from None


def parse_object(
    data: bytes, *, limit: int, what: str, code: str, twice: str | None = None
) -> dict[str, object]:
    """Returns the members of the one JSON object that `data` (at most `limit` bytes) is.

    Raises:
        MalformedInput: whatever the rules above refuse, with `code`; a member that is there twice (whoever checked
            the first may use the second) with `twice`, where the document has a code of its own for it.
    """
    if len(data) > limit:
        raise MalformedInput(f"{what}: {len(data)} bytes, at most {limit} are read", code=code)

    def refuse_constant(_: str) -> NoReturn:
        raise MalformedInput(f"{what}: floats and NaN are not used here", code=code)

    def integer(digits: str) -> int:
        value = int(digits) if len(digits) <= _MAX_DIGITS + 1 else MAX_INTEGER + 1
        if abs(value) > MAX_INTEGER or digits == "-0":
            raise MalformedInput(f"{what}: an integer outside +-(2**53 - 1), or -0", code=code)
        return value

    def members_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise MalformedInput(f"{what}: a member is there twice", code=twice or code)
        return found

    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_float=refuse_constant,
            parse_constant=refuse_constant,
            parse_int=integer,
            object_pairs_hook=members_once,
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        # `from None`: the foreign exceptions carry the document.
        raise MalformedInput(f"{what}: not JSON in UTF-8", code=code) from None
    if not isinstance(value, dict):
        raise MalformedInput(f"{what}: expected a JSON object", code=code)
    return value


class Members:
    """Reads the members of one object, each exactly once, each of the type that is asked for.

    Every method raises `MalformedInput` with the document's code where the member is not what was asked for.
    """

    __slots__ = ("_code", "_values", "_what")

    def __init__(self, value: object, names: tuple[str, ...], *, what: str, code: str) -> None:
        self._what, self._code = what, code
        if not isinstance(value, dict):
            self.refuse("expected a JSON object")
        if unknown := sorted(value.keys() - set(names)):
            # The number, not the names: names that a stranger chose do not belong into our messages.
            self.refuse(f"{len(unknown)} unknown member(s); known: {', '.join(names)}")
        if missing := sorted(set(names) - value.keys()):
            self.refuse(f"missing: {', '.join(missing)}")
        self._values: dict[str, object] = value

    def refuse(self, why: str) -> NoReturn:
        """Raises the refusal of this document."""
        raise MalformedInput(f"{self._what}: {why}", code=self._code)

    def text(self, name: str, pattern: str) -> str:
        """The string `name`, which matches `pattern` as a whole."""
        value = self._values[name]
        if not isinstance(value, str) or re.fullmatch(pattern, value, re.ASCII) is None:
            self.refuse(f"{name}: expected a string of the form {pattern}")
        return value

    def hexadecimal(self, name: str, size: int) -> str:
        """The string `name`: `size` bytes as lower-case hex."""
        return self.text(name, f"[0-9a-f]{{{2 * size}}}")

    def base64(self, name: str, limit: int) -> bytes:
        """The bytes (at most `limit`) whose canonical base64 the string `name` is."""
        value = self._values[name]
        if not isinstance(value, str) or len(value) > 4 * (limit // 3 + 1):
            self.refuse(f"{name}: expected the base64 of at most {limit} bytes")
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            self.refuse(f"{name}: not base64 (RFC 4648 section 4)")
        if base64.b64encode(data).decode("ascii") != value or len(data) > limit:
            self.refuse(f"{name}: not the canonical base64 of at most {limit} bytes")
        return data

    def integer(self, name: str, low: int, high: int) -> int:
        """The integer `name`, within low..high."""
        value = self._values[name]
        if type(value) is not int or not low <= value <= high:  # `bool` is a subclass of `int`
            self.refuse(f"{name}: expected an integer within {low}..{high}")
        return value

    def boolean(self, name: str) -> bool:
        """The boolean `name`."""
        value = self._values[name]
        if type(value) is not bool:
            self.refuse(f"{name}: expected true or false")
        return value

    def array(self, name: str, limit: int) -> tuple[object, ...]:
        """The elements (at most `limit`) of the array `name`."""
        value = self._values[name]
        if not isinstance(value, list) or len(value) > limit:
            self.refuse(f"{name}: expected an array of at most {limit} elements")
        return tuple(value)

    def object(self, name: str) -> dict[str, object]:
        """The object `name`, to be read with another `Members`."""
        value = self._values[name]
        if not isinstance(value, dict):
            self.refuse(f"{name}: expected a JSON object")
        return value
