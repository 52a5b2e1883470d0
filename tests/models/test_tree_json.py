"""The bounded readers of JSON and UBJSON: both give the same values, and no input costs more than its length."""

from __future__ import annotations

import contextlib
import json
import struct
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import as_ubj

from strongroom.errors import AdmissionRefused, Error, LimitExceeded, MalformedInput
from strongroom.models.tree_json import (
    check_members,
    float_array,
    int_array,
    list_member,
    object_member,
    parse_json,
    parse_ubj,
    text_member,
    whole_member,
)

LIMITS = {"nesting": 8, "values": 3_000_000}
MEGABYTE = 1_000_000


def ubj_count(count: int) -> bytes:
    return b"L" + struct.pack(">q", count)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(width=32, allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_both_readers_give_back_what_was_written(value: object) -> None:
    """JSON and UBJSON of the same value read to that value."""
    assert parse_json(json.dumps(value).encode(), nesting=64, values=1000) == value
    assert parse_ubj(as_ubj(value), nesting=64, values=1000) == value


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(kind: type) -> None:
    """The data may lie in bytes, a bytearray or a memoryview."""
    assert parse_json(kind(b'{"a":[1]}'), **LIMITS) == {"a": [1]}
    assert parse_ubj(kind(as_ubj({"a": [1]})), **LIMITS) == {"a": [1]}


@pytest.mark.parametrize(
    ("marker", "form", "numbers"),
    [
        (b"i", ">b", [-128, 127]),
        (b"U", ">B", [0, 255]),
        (b"I", ">h", [-(2**15), 2**15 - 1]),
        (b"l", ">i", [-(2**31), 2**31 - 1]),
        (b"L", ">q", [-(2**63), 2**63 - 1]),
        (b"d", ">f", [0.5, -1.5]),
        (b"D", ">d", [0.1, -1e300]),
    ],
)
def test_typed_arrays_become_numpy_arrays_in_native_order(
    marker: bytes, form: str, numbers: list[float]
) -> None:
    """All numeric types of a typed array are read, big-endian, and end exactly where their count says."""
    body = b"".join(struct.pack(form, number) for number in numbers)
    array = parse_ubj(b"[$" + marker + b"#" + ubj_count(2) + body, **LIMITS)
    assert array.dtype.isnative and array.tolist() == numbers


def test_nan_and_infinity_are_read() -> None:
    """XGBoost writes NaN where a number has no meaning; whoever uses a number checks that it is finite."""
    nan, inf, low = parse_json(b"[NaN,Infinity,-Infinity]", **LIMITS)
    assert np.isnan(nan) and inf == np.inf and low == -np.inf


JSON_REFUSALS = {
    "empty": (b"", "tree_not_json"),
    "truncated": (b'{"a":[1,2', "tree_not_json"),
    "two documents": (b"{}{}", "tree_not_json"),
    "byte-order mark": (b"\xef\xbb\xbf{}", "tree_not_json"),
    "UTF-16": ('{"a":1}'.encode("utf-16"), "tree_not_json"),
    "latin-1": (b'{"\xe9":1}', "tree_not_json"),
    "a pickle": (b"\x80\x04K\x01.", "tree_not_json"),
    "single quotes": (b"{'a':1}", "tree_not_json"),
    "a comment": (b"{}// x", "tree_not_json"),
    "deep": (b"[" * 9 + b"]" * 9, "tree_too_deep"),
    "deep, objects": (b'{"a":' * 9 + b"1" + b"}" * 9, "tree_too_deep"),
    "deep, never closed": (b"[" * MEGABYTE, "tree_too_deep"),
    "deep after a string with brackets": (b'["]]]]",' + b"[" * 8 + b"]" * 9, "tree_too_deep"),
    "deep after an escaped quote": (b'["\\"]]]]",' + b"[" * 8 + b"]" * 9, "tree_too_deep"),
    "21 digits": (b"[123456789012345678901]", "tree_number_too_long"),
    "21 digits after the point": (b"[0.123456789012345678901]", "tree_number_too_long"),
    "4000 digits": (b"[1" + b"0" * 4000 + b"]", "tree_number_too_long"),
    "twice the same member": (b'{"a":1,"a":1}', "tree_duplicate_member"),
    "twice, deeper": (b'[{"b":{"a":1,"x":2,"a":3}}]', "tree_duplicate_member"),
    "twice, one escaped": (b'{"a":1,"\\u0061":2}', "tree_duplicate_member"),
}


@pytest.mark.parametrize(("data", "code"), JSON_REFUSALS.values(), ids=JSON_REFUSALS.keys())
def test_json_refusals(data: bytes, code: str) -> None:
    """Each is wrong in one respect and refused with that respect's code."""
    with pytest.raises(Error) as caught:
        parse_json(data, **LIMITS)
    assert caught.value.code == code


UBJ_REFUSALS = {
    "empty": (b"", "tree_truncated"),
    "no such marker": (b"q", "tree_not_ubjson"),
    "a no-op": (b"N", "tree_not_ubjson"),
    "a high-precision number": (b"HU\x011", "tree_not_ubjson"),
    "something after the end": (b"i\x01i", "tree_not_ubjson"),
    "half a number": (b"L\x00\x00", "tree_truncated"),
    "a string's length beyond the end": (b"SL" + struct.pack(">q", 2**40) + b"a", "tree_truncated"),
    "a string's length below zero": (b"SL" + struct.pack(">q", -1) + b"a", "tree_truncated"),
    "a length that is no integer": (b"Sd" + struct.pack(">f", 1) + b"a", "tree_not_ubjson"),
    "a string that is not UTF-8": (b"SU\x01\xff", "tree_not_ubjson"),
    "a key with a string marker": (b"{SU\x01aZ}", "tree_not_ubjson"),
    "an object without end": (b"{U\x01aZ", "tree_truncated"),
    "an object with a count": (b"{#U\x01U\x01aZ", "tree_not_ubjson"),
    "twice the same member": (b"{U\x01aZU\x01aZ}", "tree_duplicate_member"),
    "an array without end": (b"[ZZ", "tree_truncated"),
    "a count beyond the end": (b"[#" + ubj_count(2**40) + b"Z", "tree_truncated"),
    "a count below zero": (b"[#" + ubj_count(-1), "tree_truncated"),
    "a typed count beyond the end": (b"[$d#" + ubj_count(2**40), "tree_truncated"),
    "a typed count whose bytes overflow 64 bits": (b"[$D#" + ubj_count(2**61), "tree_truncated"),
    "a typed count below zero": (b"[$d#" + ubj_count(-1), "tree_truncated"),
    "a type without a count": (b"[$dd", "tree_not_ubjson"),
    "nulls out of nothing": (b"[$Z#" + ubj_count(2**40), "tree_array_type"),
    "trues out of nothing": (b"[$T#" + ubj_count(2**40), "tree_array_type"),
    "an array of arrays by type": (b"[$[#" + ubj_count(1), "tree_array_type"),
    "deep": (b"[" * 9 + b"]" * 9, "tree_too_deep"),
    "deep, objects": (b"{U\x01a" * 9 + b"Z" + b"}" * 9, "tree_too_deep"),
    "deep, never closed": (b"[" * MEGABYTE, "tree_too_deep"),
}


@pytest.mark.parametrize(("data", "code"), UBJ_REFUSALS.values(), ids=UBJ_REFUSALS.keys())
def test_ubj_refusals(data: bytes, code: str) -> None:
    """Each is wrong in one respect and refused with that respect's code."""
    with pytest.raises(Error) as caught:
        parse_ubj(data, **LIMITS)
    assert caught.value.code == code


def test_the_budget_of_values_holds_for_every_form() -> None:
    """Ten values are read within a budget of ten; one more is refused, however it is written."""
    for text in ("[1,2,3,4,5,6,7,8,9]", '{"a":[1,2,3,4,5,6,7,8]}', "[[1],[2],[3],[[4]]]"):
        parse_json(text.encode(), nesting=3, values=10)
        with pytest.raises(LimitExceeded) as caught:
            parse_json(text.encode().replace(b"1", b"1,1", 1), nesting=3, values=10)
        assert caught.value.code == "tree_too_many_values"
    typed = b"[$U#U"
    parse_ubj(typed + b"\x09" + bytes(9), nesting=1, values=10)
    for data in (typed + b"\x0a" + bytes(10), b"[" + b"Z" * 10 + b"]", b"[#U\x0a" + b"Z" * 10):
        with pytest.raises(LimitExceeded) as caught:
            parse_ubj(data, nesting=1, values=10)
        assert caught.value.code == "tree_too_many_values"


LONG = 40_000


@pytest.mark.slow
@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_long_arrays_become_typed_ones(space: str) -> None:
    """Longer than a piece: whole numbers in the narrowest type, others as float32, booleans as such, else a list."""
    whole = [(7 * n) % 1000 - 500 for n in range(LONG)]
    mixed = [0.1 * n if n % 3 else n for n in range(LONG)]
    late = [*range(LONG), 0.5]
    cases: list[tuple[list[object], str]] = [
        ([0, 1] * LONG, "int8"), (list(whole), "int32"), ([*whole, 2**40], "int64"), (list(mixed), "float32"),
        (list(late), "float32"), ([*whole, 2**64], "float32"), ([True, False] * LONG, "bool"),
    ]  # fmt: skip
    for values, kind in cases:
        text = json.dumps(values, separators=("," + space, ":")).encode()
        found = [parse_json(text, **LIMITS)]
        found += [parse_ubj(as_ubj(values), **LIMITS)] if 2**64 not in values else []
        for read in found:
            assert read.dtype == kind and np.array_equal(
                read, np.array(values, dtype=np.float64).astype(kind)
            )
    for other in ([*whole, True], [*whole, None], [*whole, "x"], [*whole, [1]]):
        assert parse_json(json.dumps(other).encode(), **LIMITS) == parse_ubj(as_ubj(other), **LIMITS) == other


@pytest.mark.parametrize("what", [",", ", ,", ",]", "1 1", "--1", "1,2,[", "NaN-", "0x1"])
def test_long_arrays_are_read_as_strictly_as_short_ones(what: str) -> None:
    """What is no number between two commas is refused wherever it stands: first, at a piece's edge, last."""
    for count in (0, LONG, 1 << 16):
        for first, rest in (("1," * count, ""), ("", ",1" * count)):
            with pytest.raises(MalformedInput) as caught:
                parse_json(f"[{first}{what}{rest},]".encode(), **LIMITS)
            assert caught.value.code == "tree_not_json"


@pytest.mark.parametrize(
    ("element", "code"),
    [
        ('{"a":1,"a":2}', "tree_duplicate_member"),
        ('{"a":[123456789012345678901]}', "tree_number_too_long"),
        ('{"a":{"b":{"c":1}}}', "tree_too_deep"),
        ('{"a":[1,]}', "tree_not_json"),
        ('{"a":[1,2,3,4,5,6,7,8,9]}', "tree_too_many_values"),
    ],
)
def test_elements_that_are_handed_over_keep_every_rule(element: str, code: str) -> None:
    """Small objects are read in one go; what is wrong with one is refused with the same code as anywhere."""
    limits = {"nesting": 4, "values": 11}
    taken: list[object] = []
    small = '{"a":[1,"}",true],"b":{"c":"123456789012345678901"}}'
    rest = parse_json(f'{{"t":[{small}]}}'.encode(), **limits, trail={"t": taken.append})
    assert taken == [json.loads(small)] and rest == {"t": [None]}
    for trail in ({"t": taken.append}, None):
        with pytest.raises(Error) as caught:
            parse_json(f'{{"t":[{element}]}}'.encode(), **limits, trail=trail)
        assert caught.value.code == code


QUARTER = MEGABYTE // 4
COSTLY = {
    "quotes": b'"' * QUARTER,
    "escaped quotes": b'"' + b'\\"' * (QUARTER // 2),
    "backslashes": b"\\" * QUARTER,
    "empty arrays": b"[" + b"[]," * (QUARTER // 3) + b"1]",
    "empty objects": b"[" + b"{}," * (QUARTER // 3) + b"1]",
    "closing brackets": b"]" * QUARTER,
    "digits": b"[" + b"12345678901234567890," * (QUARTER // 21) + b"1]",
    "one digit after another": b"1" * QUARTER,
    "members": b"{" + b",".join(b'"%d":1' % number for number in range(QUARTER // 10)) + b"}",
    "nulls": b"[" + b"Z" * (QUARTER - 2) + b"]",
    "objects": b"[" + b"{}" * (QUARTER // 2) + b"]",
    "arrays": b"[" + b"[]" * (QUARTER // 2) + b"]",
    "short typed arrays": b"[" + b"[$U#U\x00" * (QUARTER // 6) + b"]",
    "strings": b"[" + b"SU\x00" * (QUARTER // 3) + b"]",
}


@pytest.mark.slow
@pytest.mark.parametrize("data", COSTLY.values(), ids=COSTLY.keys())
def test_hostile_documents_cost_little_time_and_memory(data: bytes) -> None:
    """Whatever a quarter of a megabyte says: a fraction of a second, and memory of 40 times its length."""
    for parse in (parse_json, parse_ubj):
        started = time.process_time()
        _read(parse, data)
        assert (
            time.process_time() - started < 8
        )  # quadratic would be minutes; coverage makes it ten times slower
        tracemalloc.start()
        try:
            _read(parse, data[: QUARTER // 4])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 40 * QUARTER // 4 + MEGABYTE


def _read(parse: Callable[..., object], data: bytes) -> None:
    with contextlib.suppress(Error):
        parse(data, **LIMITS)


def test_arrays_are_the_same_from_both_forms() -> None:
    """A list and a typed array of the same numbers become the same array, whole numbers 64 bits, others float32."""
    typed = np.array([1, 2, 3], dtype=np.int32)
    assert np.array_equal(int_array([1, 2, 3], name="a"), int_array(typed, name="a"))
    assert int_array([True, False], name="a").tolist() == [1, 0]
    fractions = [0.1, 2, float("nan")]
    made = float_array(fractions, name="a")
    assert made.dtype == np.float32 and np.array_equal(
        made, np.array(fractions, dtype=np.float32), equal_nan=True
    )
    assert np.array_equal(float_array(np.array(fractions), name="a"), made, equal_nan=True)
    assert float_array([1e39, -1e39], name="a").tolist() == [np.inf, -np.inf]
    assert int_array([], name="a").size == float_array([], name="a").size == 0


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "12",
        {},
        ["1"],
        [1.0],
        [None],
        [[1]],
        [2**63],
        [1, "x" * 1000],
        np.zeros(2),
        np.zeros((1, 1), int),
    ],
)
def test_what_is_no_array_of_whole_numbers_is_refused(value: object) -> None:
    """Strings of digits, fractions, nested lists and numbers beyond 64 bits are not whole numbers."""
    with pytest.raises(MalformedInput) as caught:
        int_array(value, name="left_children")
    assert caught.value.code == "tree_array_type" and "left_children" in caught.value.message


@pytest.mark.parametrize(
    "value", [None, 1.0, "1", {}, ["1"], [None], [[1.0]], [True], [1.0, "x" * 1000], np.zeros((1, 1))]
)
def test_what_is_no_array_of_numbers_is_refused(value: object) -> None:
    """Strings, booleans and nested lists are not numbers."""
    with pytest.raises(MalformedInput) as caught:
        float_array(value, name="weights")
    assert caught.value.code == "tree_array_type"


def test_a_list_with_one_long_string_is_not_handed_to_numpy() -> None:
    """numpy would make each of the million elements as wide as the string: a terabyte."""
    with pytest.raises(MalformedInput):
        int_array([0] * MEGABYTE + ["x" * MEGABYTE], name="a")


def test_members_are_of_the_type_asked_for() -> None:
    """Objects, arrays, strings and numbers in strings are taken, each only as what it is."""
    assert object_member({"a": 1}, "x") == {"a": 1} and list_member([1], "x") == [1]
    assert text_member({"a": "b"}, "x", "a") == "b" and whole_member({"a": "07"}, "x", "a") == 7
    assert whole_member({}, "x", "a", default=3) == 3
    for call in (
        lambda: object_member([], "x"),
        lambda: list_member({}, "x"),
        lambda: list_member(np.zeros(3), "x"),
        lambda: text_member({"a": 1}, "x", "a"),
        lambda: text_member({}, "x", "a"),
    ):
        with pytest.raises(MalformedInput) as caught:
            call()
        assert caught.value.code == "tree_member_type"


@pytest.mark.parametrize("value", [None, 7, 7.0, "", "-1", "1.0", "1e3", " 7", "7 ", "٧", "1" * 11, True])
def test_what_is_no_number_in_a_string_is_refused(value: object) -> None:
    """XGBoost writes parameters as strings of ASCII digits; nothing else is one."""
    with pytest.raises(MalformedInput) as caught:
        whole_member({"num_nodes": value}, "tree_param", "num_nodes")
    assert caught.value.code == "tree_member_number"


def test_missing_and_unknown_members_are_refused() -> None:
    """What is needed has to be there, and what is not known must not: it might change what the rest means."""
    check_members({"a": 1, "b": 2}, "x", required=("a",), optional=("b", "c"))
    with pytest.raises(MalformedInput) as missing:
        check_members({"b": 2}, "x", required=("a",), optional=("b",))
    with pytest.raises(AdmissionRefused) as unknown:
        check_members({"a": 1, "z": 2}, "x", required=("a",), optional=("b",))
    assert (missing.value.code, unknown.value.code) == ("tree_member_missing", "tree_member_unknown")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_our_error(data: bytes) -> None:
    """A value or strongroom.errors.Error, nothing else."""
    for parse in (parse_json, parse_ubj):
        for prefix in (b"", b"[", b"{", b"[$", b"[#", b"{U\x01a"):
            try:
                parse(prefix + data, nesting=4, values=50)
            except Error as exc:
                # Not chained: a JSONDecodeError or UnicodeDecodeError carries the document.
                assert exc.__cause__ is None and (exc.__context__ is None or exc.__suppress_context__)
