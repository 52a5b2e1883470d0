"""A strict reader of DER (X.690), for certificates and revocation lists that `cryptography` will not load.

AMD's chip certificates have the serial number 0, which `cryptography` announces to refuse; so the trust documents
are read here, and only keys and signatures are left to it.

Rules of this file:

1. One encoding: definite lengths in their shortest form, tags of one byte, integers without padding, booleans 00
   and FF. What has two spellings has two readers that disagree.
2. A `Reader` never looks beyond the element that it was made of, and whoever is done says so with `end`: nothing
   stays unread.
3. Every refusal is a `MalformedInput` with the code of the document that is being read.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import NamedTuple, NoReturn

from strongroom.errors import MalformedInput

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID, ENUMERATED = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0A
UTF8_STRING, PRINTABLE_STRING, IA5_STRING = 0x0C, 0x13, 0x16
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31

_MAX_LENGTH_BYTES = 3
"""Bytes of a long length: 16 MiB, more than any document that is read."""
_MAX_OID = 64
"""Bytes of an object identifier; the longest in use here has 11."""


def context(number: int, *, constructed: bool = True) -> int:
    """Returns the tag of the context-specific element `[number]`."""
    return (0xA0 if constructed else 0x80) | number


@functools.lru_cache(maxsize=256)
def _dotted(content: bytes) -> str | None:
    """The dotted form of an object identifier's content, None where it is not DER; the same few come all the time."""
    if not 1 <= len(content) <= _MAX_OID or content[-1] & 0x80:
        return None
    arcs, value, fresh = [], 0, True
    for byte in content:
        if fresh and byte == 0x80:  # a leading zero: not the shortest form
            return None
        value, fresh = value << 7 | byte & 0x7F, not byte & 0x80
        if fresh:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, [first, arcs[0] - 40 * first, *arcs[1:]]))


class Element(NamedTuple):
    """One element: its tag, its content, and `raw`: the bytes of both with the length between them."""

    tag: int
    content: bytes
    raw: bytes


class Reader:
    """Reads the elements of `data` one after the other; `what` and `code` go into refusals."""

    __slots__ = ("_at", "_data", "code", "what")

    def __init__(self, data: bytes, *, what: str, code: str) -> None:
        self._data, self._at, self.what, self.code = data, 0, what, code

    def refuse(self, why: str) -> NoReturn:
        """Raises `MalformedInput`."""
        raise MalformedInput(f"{self.what}: {why}", code=self.code)

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def peek(self) -> int | None:
        """The tag of the next element, None at the end."""
        return self._data[self._at] if self.more else None

    def take(self, tag: int, name: str) -> Element:
        """Returns the next element, which must have `tag`.

        Raises:
            MalformedInput: another tag, a length that is not DER, or one beyond the end.
        """
        data, start = self._data, self._at
        if len(data) - start < 2:
            self.refuse(f"{name}: expected an element with tag {tag:02x}, got the end")
        if data[start] != tag:
            self.refuse(f"{name}: expected an element with tag {tag:02x}, got {data[start]:02x}")
        length, at = data[start + 1], start + 2
        if length >= 0x80:
            count = length & 0x7F
            if not 1 <= count <= _MAX_LENGTH_BYTES or len(data) - at < count:
                self.refuse(f"{name}: a length of {count} bytes")
            length, at = int.from_bytes(data[at : at + count]), at + count
            if length < 0x80 or length >> (8 * (count - 1)) == 0:
                self.refuse(f"{name}: a length that is not in its shortest form")
        if len(data) - at < length:
            self.refuse(f"{name}: {length} bytes, beyond the end")
        self._at = at + length
        return Element(tag, data[at : self._at], data[start : self._at])

    def optional(self, tag: int, name: str) -> Element | None:
        """Returns the next element if it has `tag`, else None."""
        return self.take(tag, name) if self.peek() == tag else None

    def inside(self, element: Element) -> Reader:
        """Returns a reader of what is in `element`."""
        return Reader(element.content, what=self.what, code=self.code)

    def enter(self, tag: int, name: str) -> Reader:
        """Returns a reader of what is in the next element, which must have `tag`."""
        return self.inside(self.take(tag, name))

    def end(self, name: str) -> None:
        """Refuses what is left over."""
        if self.more:
            self.refuse(f"{name}: {len(self._data) - self._at} bytes too many")

    def integer(self, name: str, *, tag: int = INTEGER) -> int:
        """Returns the next element, an INTEGER or of the other `tag` (ENUMERATED), as a number of at most 64 bytes."""
        content = self.take(tag, name).content
        if not 1 <= len(content) <= 64:
            self.refuse(f"{name}: an integer of {len(content)} bytes")
        if len(content) > 1 and (content[0], content[1] >> 7) in ((0x00, 0), (0xFF, 1)):
            self.refuse(f"{name}: an integer that is not in its shortest form")
        return int.from_bytes(content, signed=True)

    def boolean(self, name: str) -> bool:
        """Returns the next element as a boolean."""
        content = self.take(BOOLEAN, name).content
        if content not in (b"\x00", b"\xff"):
            self.refuse(f"{name}: neither true nor false")
        return content == b"\xff"

    def oid(self, name: str) -> str:
        """Returns the next element as a dotted object identifier."""
        content = self.take(OID, name).content
        if (dotted := _dotted(content)) is None:
            self.refuse(f"{name}: not an object identifier")
        return dotted

    def bits(self, name: str, *, whole: bool) -> bytes:
        """Returns the next element as a bit string, of `whole` bytes or with unused bits at its end that are zero."""
        content = self.take(BIT_STRING, name).content
        unused = content[0] if content else 8
        most = 0 if whole else 7
        if unused > most or (unused and (len(content) == 1 or content[-1] & ((1 << unused) - 1))):
            self.refuse(f"{name}: not a bit string")
        return content[1:]

    def time(self, name: str) -> datetime:
        """Returns the next element, UTCTime or GeneralizedTime in UTC with seconds, as an aware datetime."""
        generalized = self.peek() == GENERALIZED_TIME
        content = self.take(GENERALIZED_TIME if generalized else UTC_TIME, name).content
        size = 14 if generalized else 12
        if len(content) != size + 1 or content[-1:] != b"Z" or not content[:-1].isdigit():
            self.refuse(f"{name}: not a time in UTC with seconds")
        digits = content[:-1].decode("ascii")
        if not generalized:  # RFC 5280 section 4.1.2.5.1: 50 to 99 are the last century
            digits = ("20" if digits < "50" else "19") + digits
        month, day, hour, minute, second = (int(digits[at : at + 2]) for at in range(4, 14, 2))
        try:
            return datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            self.refuse(f"{name}: no such time")
