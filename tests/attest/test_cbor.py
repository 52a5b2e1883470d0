"""`attest.cbor`: the strict reader of CBOR."""

from __future__ import annotations

from collections.abc import Callable

import cbor2
import pytest

from strongroom.attest.cbor import ARRAY, BYTES, Reader, encode_bytes, encode_head
from strongroom.errors import MalformedInput

CODE = "evidence_malformed"


def reader(data: bytes, limit: int = 1 << 20) -> Reader:
    """A reader of `data`."""
    return Reader(data, limit=limit, what="test", code=CODE)


def test_each_kind_of_item_is_read() -> None:
    """Numbers, strings, arrays, maps, tags and null, one after the other."""
    data = b"".join(
        cbor2.dumps(item) for item in (0, 23, 24, 255, 256, 65536, 2**32, 2**64 - 1, -1, -(2**64))
    )
    numbers = reader(data)
    assert [numbers.integer() for _ in range(10)] == [
        0,
        23,
        24,
        255,
        256,
        65536,
        2**32,
        2**64 - 1,
        -1,
        -(2**64),
    ]
    numbers.end()
    rest = reader(cbor2.dumps(cbor2.CBORTag(60000, [b"ab", "cd\u00e9", None])))
    rest.tag(60000)
    assert rest.array(3, 3) == 3
    assert (rest.byte_string(2), rest.text(4), rest.null()) == (b"ab", "cd\u00e9", True)
    rest.end()


@pytest.mark.parametrize("open_ended", [False, True])
def test_maps_are_read_with_and_without_a_length(open_ended: bool) -> None:
    """A map that a break closes says the same as one that states its size; it needs the caller's word."""
    data = b"\xbf\x01\x02\x03\x04\xff" if open_ended else b"\xa2\x01\x02\x03\x04"
    read = reader(data)
    assert {k: read.unsigned() for k in read.keys(read.unsigned, limit=2, may_be_open=True)} == {1: 2, 3: 4}
    read.end()


@pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, 70000])
def test_what_is_encoded_is_what_everybody_encodes(count: int) -> None:
    """Heads in their shortest form."""
    assert encode_bytes(b"x" * count) == cbor2.dumps(b"x" * count)
    assert encode_head(ARRAY, 4) == b"\x84"
    assert encode_head(BYTES, 2**32) == b"\x5b\x00\x00\x00\x01\x00\x00\x00\x00"


REFUSED: dict[str, tuple[bytes, Callable[[Reader], object]]] = {
    "nothing": (b"", Reader.unsigned),
    "nothing where null may come": (b"", Reader.null),
    "a head cut off": (b"\x19\x01", Reader.unsigned),
    "a string cut off": (b"\x43ab", lambda r: r.byte_string(9)),
    "a string of nearly 2**64 bytes": (b"\x5b" + b"\xff" * 8, lambda r: r.byte_string(1 << 20)),
    "a string longer than its limit": (b"\x43abc", lambda r: r.byte_string(2)),
    "one byte where none is needed": (b"\x18\x17", Reader.unsigned),
    "two bytes where one is enough": (b"\x19\x00\xff", Reader.unsigned),
    "four bytes where two are enough": (b"\x1a\x00\x00\xff\xff", Reader.unsigned),
    "eight bytes where four are enough": (b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff", Reader.unsigned),
    "a length in a longer form": (b"\x58\x02ab", lambda r: r.byte_string(9)),
    "a negative number in a longer form": (b"\x38\x10", Reader.integer),
    "a reserved head": (b"\x1c", Reader.unsigned),
    "a reserved head with a number behind": (b"\x1c" + b"\xff" * 16, Reader.unsigned),
    "a number of indefinite length": (b"\x1f" + b"\xff" * 128, Reader.unsigned),
    "a string in pieces": (b"\x5f\x41a\xff", lambda r: r.byte_string(9)),
    "a text in pieces": (b"\x7f\x61a\xff", lambda r: r.text(9)),
    "an array without a length": (b"\x9f\x01\xff", lambda r: r.array(0, 9)),
    "a map without a length, not allowed": (
        b"\xbf\x01\x02\xff",
        lambda r: [r.unsigned() for _ in r.keys(r.unsigned, limit=9)],
    ),
    "a map without its end": (
        b"\xbf\x01\x02",
        lambda r: [r.unsigned() for _ in r.keys(r.unsigned, limit=9, may_be_open=True)],
    ),
    "a map without a length that goes on": (
        b"\xbf\x01\x02\x03\x04\xff",
        lambda r: [r.unsigned() for _ in r.keys(r.unsigned, limit=1, may_be_open=True)],
    ),
    "a key of a map without its value": (
        b"\xbf\x01\xff",
        lambda r: [r.unsigned() for _ in r.keys(r.unsigned, limit=9, may_be_open=True)],
    ),
    "a map of a billion entries": (
        b"\xba\x3b\x9a\xca\x00",
        lambda r: [r.unsigned() for _ in r.keys(r.unsigned, limit=9)],
    ),
    "a key twice": (b"\xa2\x01\x02\x01\x03", lambda r: [r.unsigned() for _ in r.keys(r.unsigned, limit=9)]),
    "a key twice in a map without a length": (
        b"\xbf\x61a\x02\x61a\x03\xff",
        lambda r: [r.unsigned() for _ in r.keys(lambda: r.text(9), limit=9, may_be_open=True)],
    ),
    "too few items": (b"\x81\x01", lambda r: r.array(2, 4)),
    "too many items": (b"\x85\x01", lambda r: r.array(2, 4)),
    "another tag": (b"\xc0\x60", lambda r: r.tag(60000)),
    "text where bytes belong": (b"\x61a", lambda r: r.byte_string(9)),
    "bytes where text belongs": (b"\x41a", lambda r: r.text(9)),
    "text that is not UTF-8": (b"\x61\xff", lambda r: r.text(9)),
    "a lone surrogate": (b"\x63\xed\xa0\x80", lambda r: r.text(9)),
    "a negative number where none belongs": (b"\x20", Reader.unsigned),
    "a float": (b"\xf9\x00\x00", Reader.unsigned),
    "true": (b"\xf5", Reader.unsigned),
    "undefined where null may come": (b"\xf7", lambda r: r.null() or r.unsigned()),
    "a byte behind the end": (b"\x01\x00", lambda r: (r.unsigned(), r.end())),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_fault_is_refused(name: str) -> None:
    """With the document's own code, and no other exception."""
    data, read = REFUSED[name]
    with pytest.raises(MalformedInput) as caught:
        read(reader(data))
    assert caught.value.code == CODE


def test_more_bytes_than_the_limit_are_not_read() -> None:
    """The limit holds before anything is looked at."""
    reader(b"\x00" * 2, limit=2)
    with pytest.raises(MalformedInput):
        reader(b"\x00" * 3, limit=2)
