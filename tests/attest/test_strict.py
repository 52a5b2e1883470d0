"""`attest.strict`: what two JSON readers could read differently is refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from strongroom.attest.strict import MAX_INTEGER, Members, canonical, parse_object
from strongroom.errors import Error, MalformedInput


def parse(data: bytes, limit: int = 1000) -> dict[str, object]:
    """The object in `data`, under the code of keysets."""
    return parse_object(data, limit=limit, what="document", code="keyset_malformed")


def members(value: object, *names: str) -> Members:
    """A reader for `value`."""
    return Members(value, names, what="document", code="keyset_malformed")


def test_an_object_is_read() -> None:
    """Strings, integers, booleans, null, arrays and objects come through; white space is the caller's
    matter.
    """
    data = b' {"a": 1, "b": [true, null, "\xc3\xa9"], "c": {"d": -9007199254740991}} '
    assert parse(data) == {"a": 1, "b": [True, None, "é"], "c": {"d": -MAX_INTEGER}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'"text"',
        b"null",
        b"{",
        b'{"a":1}{"b":2}',
        b'{"a":1,}',
        b"\xef\xbb\xbf{}",
        b'{"a":"\xff"}',
        b'{"a":"\x00"}',
        b"{'a':1}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":' * 5000,
        b'{"a":' + b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_object_in_utf8_is_refused(data: bytes) -> None:
    """Other types, trailing text, byte order marks, other encodings, nesting without end."""
    with pytest.raises(MalformedInput) as caught:
        parse(data, limit=1 << 20)
    assert caught.value.code == "keyset_malformed"
    assert caught.value.__cause__ is None, "the foreign message holds the document"


@pytest.mark.parametrize(
    "number",
    [
        "1.0",
        "1e3",
        "-0.0",
        "NaN",
        "Infinity",
        "-Infinity",
        "-0",
        "9007199254740992",
        "-9007199254740992",
        "9" * 400,
    ],
)
def test_numbers_that_readers_disagree_about_are_refused(number: str) -> None:
    """No floats, no NaN, no integer beyond 2**53 - 1, no -0; long ones without converting them."""
    with pytest.raises(MalformedInput):
        parse(f'{{"a":{number}}}'.encode())


@pytest.mark.parametrize("data", [b'{"a":1,"a":1}', b'{"a":1,"\\u0061":2}', b'{"x":{"a":1,"a":2}}'])
def test_a_member_there_twice_is_refused(data: bytes) -> None:
    """At any depth, and in any spelling."""
    with pytest.raises(MalformedInput, match="there twice"):
        parse(data)


def test_the_limit_counts_before_anything_is_read() -> None:
    """One byte over the limit is refused, the limit itself is read."""
    assert parse(b'{"a":1}', limit=7) == {"a": 1}
    with pytest.raises(MalformedInput, match="at most 6"):
        parse(b'{"a":1}', limit=6)


def test_unknown_and_missing_members_are_refused_without_naming_a_strangers_words() -> None:
    """A peer that added a member may rely on it; its name does not get into our messages."""
    with pytest.raises(MalformedInput, match="1 unknown") as caught:
        members({"a": 1, "<script>": 2}, "a")
    assert "script" not in caught.value.message
    with pytest.raises(MalformedInput, match="missing: b"):
        members({"a": 1}, "a", "b")
    with pytest.raises(MalformedInput, match="JSON object"):
        members([1], "a")


READERS: dict[str, tuple[Any, list[object], list[object]]] = {
    "integer": (lambda m: m.integer("a", 0, 9), [0, 9], [True, "1", None, 10, -1, [1]]),
    "boolean": (lambda m: m.boolean("a"), [True, False], [0, 1, "true", None]),
    "text": (lambda m: m.text("a", "[a-z]+"), ["abc"], ["", "ABC", "abc\n", "ａ", 1, None, ["a"]]),
    "hexadecimal": (lambda m: m.hexadecimal("a", 2), ["00ff"], ["00FF", "00f", "00ff0", "0x00", "٠٠٠٠", 1]),
    "base64": (
        lambda m: m.base64("a", 4),
        ["", "AA==", "AAAA", "AAAAAA=="],
        ["A", "AB==", "AAA", "AA=", "AA\n==", " AA==", "-_-_", "AAAAAAAA", "é", 1, None],
    ),
    "array": (lambda m: m.array("a", 2), [[], [1, 2]], [[1, 2, 3], {}, "ab", None]),
    "object": (lambda m: m.object("a"), [{}, {"b": 1}], [[], "{}", None]),
}


@pytest.mark.parametrize("reader", READERS)
def test_members_are_of_exactly_the_type_asked_for(reader: str) -> None:
    """Each reader takes its type in its one spelling, and no look-alike."""
    read, good, bad = READERS[reader]
    for value in good:
        read(members({"a": value}, "a"))
    for value in bad:
        with pytest.raises(MalformedInput):
            read(members({"a": value}, "a"))


@pytest.mark.parametrize("value", [{"a": "\ud800"}, {"\ud800": 1}, [2**53]])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    """Lone surrogates and large integers."""
    with pytest.raises(MalformedInput):
        canonical(value)


def test_canonical_is_rfc_8785() -> None:
    """Members sorted by their UTF-16 form, no white space: the RFC's own order (section 3.2.3)."""
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\u00f6": 7}
    order = ["\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical(value))) == order


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_what_is_written_is_read_back(value: Any) -> None:
    """Every value that can be written canonically is read as the same value, or refused for a lone
    surrogate.
    """
    try:
        data = canonical({"value": value})
    except MalformedInput:
        return
    assert data == rfc8785.dumps({"value": value})
    assert parse(data, limit=1 << 20) == {"value": value}


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_our_error(data: bytes) -> None:
    """A value or a `strongroom.errors.Error`, nothing else."""
    with contextlib.suppress(Error):
        assert isinstance(parse(data), dict)
