"""`attest.cursor`: bytes from the front of a binary structure, never beyond its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from strongroom.attest.cursor import Cursor
from strongroom.errors import MalformedInput


def cursor(data: bytes, *, order: str = "little", limit: int = 16) -> Cursor:
    """A cursor over `data`."""
    return Cursor(data, what="test", code="quote_malformed", order=order, limit=limit)  # type: ignore[arg-type]


def test_bytes_and_numbers_come_from_the_front() -> None:
    """In the order that was said, and the place moves on."""
    read = cursor(b"\x01\x02abc\x00")
    assert (read.number(2), read.take(3), read.at, read.left) == (0x0201, b"abc", 5, 1)
    assert (read.rest(), read.left, read.rest()) == (b"\x00", 0, b"")
    read.end()
    assert cursor(b"\x01\x02", order="big").number(2) == 0x0102
    assert cursor(b"").take(0) == b""


@pytest.mark.parametrize(
    ("data", "call"),
    [
        (b"ab", lambda read: read.take(3)),
        (b"", lambda read: read.take(1)),
        (b"a", lambda read: read.number(2)),
        (b"a", lambda read: read.take(1 << 64)),
        (b"a", lambda read: read.end()),
        (b"ab", lambda read: (read.take(1), read.end())),
        (b"a", lambda read: read.refuse("why")),
    ],
    ids=range(7),
)
def test_nothing_is_taken_that_is_not_there(data: bytes, call: Callable[[Cursor], object]) -> None:
    """In the document's name and with its code."""
    with pytest.raises(MalformedInput) as caught:
        call(cursor(data))
    assert caught.value.code == "quote_malformed"
    assert caught.value.message.startswith("test: ")


def test_a_refused_cursor_stands_still_and_may_name_another_code() -> None:
    """A reader that tries another way sees the same bytes."""
    read = cursor(b"ab")
    with pytest.raises(MalformedInput):
        read.take(3, "something")
    assert read.take(2) == b"ab"
    with pytest.raises(MalformedInput) as caught:
        read.refuse("why", code="tpm_key_unsupported")
    assert caught.value.code == "tpm_key_unsupported"


def test_what_is_too_long_is_not_begun() -> None:
    """The limit is the structure's own."""
    assert cursor(bytes(16)).left == 16
    with pytest.raises(MalformedInput) as caught:
        cursor(bytes(17))
    assert caught.value.code == "quote_malformed"
