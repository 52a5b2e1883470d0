"""Strict, bounded CBOR (RFC 8949): the one reader of every CBOR document that comes from a stranger.

Not a decoder that builds values, but a cursor: whoever reads says which item comes next, so tags for dates,
regular expressions, big numbers or shared references have no way in, and nothing nests deeper than the caller's
own code.

Rules, all of them because two readers that disagree about one document are an attack:

1. Every head (type and length or number) is in its shortest form; reserved forms are refused.
2. Lengths are definite. One exception, by the caller's explicit word: a map that is closed by a break, which AWS
   writes since 2025. Strings in pieces are refused everywhere.
3. A declared length is believed only once that much is there, and never beyond the caller's limit.
4. No key of a map twice.
5. `end` refuses whatever stands behind the last item.

Whoever reads with this module names the error code of the document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from strongroom.errors import MalformedInput

UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAG = range(7)
"""Major types (RFC 8949 section 3.1)."""
_NULL, _BREAK, _OPEN_MAP = 0xF6, 0xFF, 0xBF
"""The single bytes for null, for the end of a map without a length, and for its beginning."""

_Key = TypeVar("_Key", int, str)


def encode_head(major: int, argument: int) -> bytes:
    """Returns the shortest head of major type `major` with `argument` (0 to 2**64 - 1)."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    size = next(s for s in (1, 2, 4, 8) if argument < 1 << 8 * s)
    return bytes((major << 5 | 24 + size.bit_length() - 1,)) + argument.to_bytes(size, "big")


def encode_bytes(data: bytes) -> bytes:
    """Returns `data` as a CBOR byte string."""
    return encode_head(BYTES, len(data)) + data


class Reader:
    """Reads the items of `data` (at most `limit` bytes) one after the other, each of the kind that is asked for.

    Every method raises `MalformedInput` with the document's code where the next item is another.
    """

    __slots__ = ("_at", "_code", "_data", "_what")

    def __init__(self, data: bytes, *, limit: int, what: str, code: str) -> None:
        self._data, self._at, self._what, self._code = data, 0, what, code
        if len(data) > limit:
            self.refuse(f"{len(data)} bytes, at most {limit} are read")

    def refuse(self, why: str) -> NoReturn:
        """Raises the refusal of this document."""
        raise MalformedInput(f"{self._what}: {why}", code=self._code)

    def unsigned(self) -> int:
        """The next item, an unsigned integer below 2**64."""
        return self._head(UNSIGNED)

    def integer(self) -> int:
        """The next item, an unsigned or negative integer."""
        if self._peek() >> 5 == NEGATIVE:
            return -1 - self._head(NEGATIVE)
        return self._head(UNSIGNED)

    def byte_string(self, limit: int) -> bytes:
        """The content of the next item, a byte string of at most `limit` bytes."""
        return self._string(BYTES, limit)

    def text(self, limit: int) -> str:
        """The next item, a text string of at most `limit` bytes of UTF-8."""
        try:
            return self._string(TEXT, limit).decode("utf-8")
        except UnicodeDecodeError:  # it carries the bytes
            raise MalformedInput(f"{self._what}: text that is not UTF-8", code=self._code) from None

    def array(self, low: int, high: int) -> int:
        """The number of items of the array that begins here, within low..high."""
        count = self._head(ARRAY)
        if not low <= count <= high:
            self.refuse(f"an array of {low} to {high} items expected, got {count}")
        return count

    def tag(self, number: int) -> None:
        """The tag `number`; the item that it is about comes next."""
        if self._head(TAG) != number:
            self.refuse(f"expected the CBOR tag {number}")

    def null(self) -> bool:
        """Whether null comes next; reads it if so."""
        if self._peek() != _NULL:
            return False
        self._at += 1
        return True

    def keys(self, read_key: Callable[[], _Key], *, limit: int, may_be_open: bool = False) -> Iterator[_Key]:
        """Yields the keys (at most `limit`, none twice) of the map that begins here; the caller reads each key's
        value before asking for the next. `may_be_open`: it may be closed by a break instead of stating its size.
        """
        is_open = may_be_open and self._peek() == _OPEN_MAP
        count = limit
        if is_open:
            self._at += 1
        elif (count := self._head(MAP)) > limit:
            self.refuse(f"a map of at most {limit} entries expected, got {count}")
        seen: set[_Key] = set()
        while not (self._peek() == _BREAK if is_open else len(seen) == count):
            if len(seen) == limit:
                self.refuse(f"a map of more than {limit} entries")
            key = read_key()
            if key in seen:
                self.refuse("a key of a map is there twice")
            seen.add(key)
            yield key
        self._at += is_open

    def end(self) -> None:
        """Nothing stands behind the last item."""
        if self._at != len(self._data):
            self.refuse(f"{len(self._data) - self._at} bytes behind the last item")

    def _head(self, major: int) -> int:
        first = self._take(1)[0]
        info = first & 31
        if first >> 5 != major or info > 27:  # above 27: reserved, or of indefinite length
            self.refuse(f"expected an item of major type {major}, got the head {first:02x}")
        if info < 24:
            return info
        size = 1 << (info - 24)
        argument = int.from_bytes(self._take(size), "big")
        if argument < (24 if size == 1 else 1 << 4 * size):
            self.refuse("a length or number that is not in its shortest form")
        return argument

    def _string(self, major: int, limit: int) -> bytes:
        size = self._head(major)
        if size > limit:
            self.refuse(f"a string of {size} bytes, at most {limit} belong there")
        return self._take(size)

    def _peek(self) -> int:
        if self._at >= len(self._data):
            self.refuse("it ends in the middle")
        return self._data[self._at]

    def _take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            self.refuse("it ends in the middle")
        self._at += size
        return piece
