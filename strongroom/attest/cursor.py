"""Taking a binary structure apart: bytes from the front, never beyond the end. Quotes, the TPM's structures and event
logs are read with it; what is theirs alone (reserved fields, sized values, padding) stands with them.

`der.py` and `cbor.py` have cursors of their own: theirs move over elements, and every element says how long it is.
"""

from __future__ import annotations

from typing import Literal, NoReturn

from strongroom.errors import MalformedInput


class Cursor:
    """A place in `data` (at most `limit` bytes); numbers are in `order`. `what` and `code` go into refusals.

    Every method raises `MalformedInput` where the bytes are not there.
    """

    __slots__ = ("_at", "_data", "_order", "code", "what")

    def __init__(
        self, data: bytes, *, what: str, code: str, order: Literal["little", "big"], limit: int
    ) -> None:
        self._data, self._at, self._order = data, 0, order
        self.what, self.code = what, code
        if len(data) > limit:
            self.refuse(f"{len(data)} bytes, at most {limit} are read")

    def refuse(self, why: str, *, code: str = "") -> NoReturn:
        """Raises the refusal of this document, with its own code unless another is given."""
        raise MalformedInput(f"{self.what}: {why}", code=code or self.code)

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at

    @property
    def at(self) -> int:
        """How many bytes were taken."""
        return self._at

    def take(self, size: int, name: str = "a value") -> bytes:
        """The next `size` bytes."""
        if size > len(self._data) - self._at:
            self.refuse(f"{name}: expected {size} bytes, got {self.left}")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int, name: str = "a number") -> int:
        """The next `size` bytes as a number."""
        return int.from_bytes(self.take(size, name), self._order)

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def end(self) -> None:
        """Refuses what is left over."""
        if self.left:
            self.refuse(f"{self.left} bytes too many")
