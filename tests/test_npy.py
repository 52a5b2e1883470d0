"""numpy's files as a stranger sends them: values arrive unchanged, headers and archives are never trusted."""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import npy
from strongroom.errors import Error, InvalidRequest, LimitExceeded, MalformedInput
from strongroom.npy import decode_npy, decode_npz, encode_npy, encode_npz
from strongroom.oip import Array, WireLimits, bytes_array

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))

import targets_data

LIMITS = WireLimits(tensors=4, tensor_bytes=1 << 20, total_bytes=3 << 19, elements=1 << 18, name_length=32)
NUMERIC = ["?", "u1", "<u2", ">u2", "<u4", ">u8", "i1", ">i2", "<i4", "<i8", "<f2", ">f2", ">f4", "<f8"]


def save(array: Any, **how: Any) -> bytes:
    """The array as numpy itself writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array, **how)
    return buffer.getvalue()


def savez(*, compressed: bool = False, **arrays: Any) -> bytes:
    """The arrays as numpy itself archives them."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def npy_file(header: str, payload: bytes = b"", *, version: int = 1) -> bytes:
    """A file with exactly that header."""
    text = header.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + payload


def described(descr: str, payload: bytes = b"", shape: str = "(1,)", fortran: str = "False") -> bytes:
    """A file whose header says that."""
    return npy_file(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}", payload)


def refusal(data: bytes, kind: type[Error] = Error, *, limits: WireLimits = LIMITS) -> str:
    """The code with which a .npy file is refused."""
    with pytest.raises(kind) as caught:
        decode_npy(data, limits=limits)
    return caught.value.code


def npz_refusal(data: bytes, kind: type[Error] = Error, *, limits: WireLimits = LIMITS) -> str:
    """The code with which a .npz archive is refused."""
    with pytest.raises(kind) as caught:
        decode_npz(data, limits=limits)
    return caught.value.code


# .npy


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", NUMERIC)
def test_values_arrive_unchanged(dtype: str, shape: tuple[int, ...]) -> None:
    """Either byte order, either memory order, any shape: the same numbers in native C order."""
    rng = np.random.default_rng(1)
    sent = np.asarray((rng.random(shape) * 100).astype(dtype))
    for order in ("C", "F"):
        data = save(np.asarray(sent, order=order))
        got = decode_npy(data, limits=LIMITS)
        assert got.dtype == sent.dtype.newbyteorder("=") and got.shape == shape
        assert np.array_equal(got, sent) and got.flags.c_contiguous and got.flags.aligned


@pytest.mark.parametrize("dtype", [dtype for dtype in NUMERIC if ">" not in dtype])
def test_we_write_what_numpy_writes(dtype: str) -> None:
    """Byte for byte, so that any reader of numpy's format reads it."""
    for shape in ((), (3,), (2, 0), (2, 3, 4)):
        array = np.ones(shape, dtype=dtype)
        assert encode_npy(array) == save(array)


def test_an_ordinary_array_is_a_view() -> None:
    """Nothing is copied where the bytes already are the array."""
    data = save(np.arange(6.0, dtype=np.float32))
    got = decode_npy(data, limits=LIMITS)
    assert got.base is not None and not got.flags.writeable
    shifted = decode_npy(memoryview(b"x" + data)[1:], limits=LIMITS)
    assert shifted.flags.aligned and np.array_equal(shifted, got)


@pytest.mark.parametrize(
    "texts",
    [
        np.array(["a", "bé", ""]),
        np.array([["x"], ["y"]]),
        np.array("s"),
        np.array([], dtype="U3"),
        np.array(["é"], ">U4"),
    ],
)
def test_numpy_strings_become_bytes(texts: Array) -> None:
    """Unicode arrays become their UTF-8, in shape, and come back as Unicode."""
    got = decode_npy(save(texts), limits=LIMITS)
    assert got.dtype == object and got.shape == texts.shape
    assert [element.decode() for element in got.reshape(-1)] == texts.reshape(-1).tolist()
    assert np.array_equal(np.load(io.BytesIO(encode_npy(got))), texts)


def test_byte_strings_stay_bytes() -> None:
    """What is not UTF-8 travels as numpy's byte strings."""
    sent = bytes_array([b"\xff\xfe", b"a"], shape=(2,))
    assert np.load(io.BytesIO(encode_npy(sent))).dtype == np.dtype("S2")
    assert decode_npy(encode_npy(sent), limits=LIMITS).tolist() == sent.tolist()


@pytest.mark.parametrize("version", [2, 3])
def test_later_versions_of_the_format_are_read(version: int) -> None:
    """They differ in the length of the header's length, and in its encoding."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n"
    assert decode_npy(npy_file(header, struct.pack("<f", 1.5), version=version), limits=LIMITS).tolist() == [
        1.5
    ]


@pytest.mark.parametrize(
    "header",
    [
        '{"descr":"<f4","fortran_order":False,"shape":(1,)}',
        "  { 'shape' : ( 1 , ) , 'descr' : '<f4' , 'fortran_order' : True , }  \n",
    ],
)
def test_other_writers_spell_the_header_in_other_ways(header: str) -> None:
    """Quotes, order and white space are free."""
    assert decode_npy(npy_file(header, struct.pack("<f", 1.5)), limits=LIMITS).tolist() == [1.5]


def _pickled() -> bytes:
    return save(np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "npy_malformed"),
        (b"\x93NUMPY", "npy_malformed"),
        (b"\x93NUMPX" + save(np.zeros(1))[6:], "npy_malformed"),
        (b"\x93NUMPY\x04\x00" + save(np.zeros(1))[8:], "npy_malformed"),
        (save(np.zeros(1))[:60], "npy_malformed"),
        (b"\x93NUMPY\x02\x00\x01\x00", "npy_malformed"),
        (npy_file("{}"), "npy_malformed"),
        (npy_file("{'descr': '<f4', 'fortran_order': False}", b"0000"), "npy_malformed"),
        (npy_file("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", b"0000"), "npy_malformed"),
        (npy_file("{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}", b"0000"), "npy_malformed"),
        (npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", b"0000"), "npy_malformed"),
        (npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}; 1", b"0000"), "npy_malformed"),
        (described("'<f4'", b"0000", shape="(1)"), "npy_malformed"),
        (described("'<f4'", b"0000", shape="(-1,)"), "npy_malformed"),
        (described("'<f4'", b"0000", shape="(1.0,)"), "npy_malformed"),
        (described("'<f4'", b"0000", shape="(1,) * 3"), "npy_malformed"),
        (described("'<f4'", b"0000", fortran="1"), "npy_malformed"),
        (described("'<f4' + ''", b"0000"), "npy_malformed"),
        (described("__import__('os')", b"0000"), "npy_malformed"),
        (described("'f4'", b"0000"), "npy_malformed"),
        (described("'|f4'", b"0000"), "npy_malformed"),
        (described("''", b"0000"), "npy_malformed"),
        (_pickled(), "npy_pickle"),
        (described("'|O8'", b"\0" * 8), "npy_pickle"),
        (save(np.zeros(1, dtype=[("a", "<f4")])), "npy_structured"),
        (save(np.zeros(1, np.complex64)), "npy_dtype"),
        (save(np.zeros(1, "<M8[ns]")), "npy_dtype"),
        (described("'<f16'", b"\0" * 16), "npy_dtype"),
        (described("'<V2'", b"00"), "npy_dtype"),
        (described("'<f3'", b"000"), "npy_dtype"),
        (described("'<U0'"), "npy_dtype"),
        (described("'<f4'", b"000"), "npy_length"),
        (described("'<f4'", b"00000"), "npy_length"),
        (described("'<f4'", b"0000", shape="(2,)"), "npy_length"),
        (described("'<f4'", b"0000", shape="()") + b"0", "npy_length"),
        (described("'<f4'", b"0000", shape="(0,)"), "npy_length"),
        (described("'|b1'", b"\2"), "npy_value"),
        (described("'<U1'", b"\x00\x00\x11\x00"), "npy_value"),
        (described("'<U1'", b"\x00\xd8\x00\x00"), "npy_value"),
        (described("'<f4'", shape=f"({1 << 62}, 0)"), "oip_too_many_elements"),
        (described("'<f4'", shape=f"({1 << 40},)"), "oip_too_many_elements"),
        (described("'<f4'", b"0000", shape="(" + "1," * 33 + ")"), "oip_too_deep"),
        (described("'<f4'", b"0000", shape="(" + "1," * 600 + ")"), "npy_header_too_long"),
        (npy_file(" " * 2000, version=2), "npy_header_too_long"),
        (save(np.zeros((1 << 17) + 1)), "oip_too_many_bytes"),
        (save(np.array(["x" * 8192] * 129)), "oip_too_many_bytes"),
    ],
)  # fmt: skip
def test_refusals(data: bytes, code: str) -> None:
    """Each file is wrong in one respect, and refused with its code."""
    assert refusal(data) == code


def test_a_pickle_is_not_run() -> None:
    """The object array's payload is not looked at: a pickle in it that would fail does nothing."""
    assert refusal(described("'|O'", b"cos\nsystem\n"), InvalidRequest) == "npy_pickle"


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros(1, np.complex64), "npy_dtype"),
        (np.array([1, "a"], dtype=object), "npy_dtype"),
        (bytes_array([b"a\0"], shape=(1,)), "npy_value"),
        (bytes_array([b"x" * (1 << 20)] + [b""] * 99, shape=(100,)), "npy_strings_uneven"),
    ],
)
def test_arrays_that_npy_would_change_are_not_written(array: Array, code: str) -> None:
    """Foreign objects, trailing NULs, and one long string that would pad all others."""
    with pytest.raises(InvalidRequest) as caught:
        encode_npy(array)
    assert caught.value.code == code


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_array_or_are_refused(data: bytes) -> None:
    """A value or `strongroom.errors.Error`, nothing else; with and without a good beginning."""
    targets_data.fuzz_npy(data)
    targets_data.fuzz_npy(b"\x93NUMPY\x01\x00" + data)
    targets_data.fuzz_npz(data)


# .npz


@pytest.mark.parametrize("compressed", [False, True])
def test_archives_of_numpy_are_read(compressed: bool) -> None:
    """Stored and deflated members, strings among them, in their order."""
    sent = {"a": np.arange(5), "x/y:0": np.ones((2, 2), np.float32), "t": np.array(["u", "v"])}
    got = decode_npz(savez(compressed=compressed, **sent), limits=LIMITS)
    assert list(got) == list(sent)
    assert np.array_equal(got["a"], sent["a"]) and np.array_equal(got["x/y:0"], sent["x/y:0"])
    assert got["t"].tolist() == [b"u", b"v"]


def test_what_we_archive_numpy_reads() -> None:
    """Names as exporters write them, and the same bytes each time."""
    arrays = {"/x:0": np.ones(3), "输入": np.array([True]), "t": bytes_array([b"u"], shape=(1,))}
    data = encode_npz(arrays)
    assert data == encode_npz(arrays)
    with np.load(io.BytesIO(data)) as loaded:
        assert {name: loaded[name].tolist() for name in loaded} == {
            "/x:0": [1.0] * 3,
            "输入": [True],
            "t": ["u"],
        }
    assert list(decode_npz(data, limits=LIMITS)) == list(arrays)


def test_an_archive_of_none_is_empty() -> None:
    """No members, no arrays."""
    assert decode_npz(encode_npz({}), limits=LIMITS) == {}


def _archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return buffer.getvalue()


GOOD = save(np.zeros(4, np.float32))
PLAIN = _archive(("a.npy", GOOD))
DEFLATED = _archive(("a.npy", GOOD), method=zipfile.ZIP_DEFLATED)


def _patched(data: bytes, *, at: int, value: bytes) -> bytes:
    """`data` with the bytes from `at` (from the end if negative) replaced."""
    at = at if at >= 0 else len(data) + at
    return data[:at] + value + data[at + len(value) :]


def _central(data: bytes, *, offset: int, value: bytes) -> bytes:
    """`data` with a field of the first directory entry replaced."""
    return _patched(data, at=data.index(b"PK\x01\x02") + offset, value=value)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "npz_malformed"),
        (b"PK\x05\x06" + b"\0" * 17, "npz_malformed"),
        (PLAIN[:-1], "npz_malformed"),
        (PLAIN + b"\0", "npz_malformed"),
        (b"\0" + PLAIN, "npz_malformed"),
        (_patched(PLAIN, at=-2, value=b"\1\0") + b"c", "npz_malformed"),  # a comment
        (_patched(PLAIN, at=-18, value=b"\1\0"), "npz_malformed"),  # another disk
        (_patched(PLAIN, at=-14, value=b"\2\0"), "npz_malformed"),  # entries here and in all differ
        (_patched(PLAIN, at=-14, value=b"\2\0\2\0"), "npz_malformed"),  # one more than there are
        (_patched(PLAIN, at=-14, value=b"\0\0\0\0"), "npz_malformed"),  # one fewer
        (_central(PLAIN, offset=0, value=b"PK\x01\x03"), "npz_malformed"),
        (_central(PLAIN, offset=8, value=b"\1\0"), "npz_method_unsupported"),  # encrypted
        (_central(PLAIN, offset=10, value=b"\x0c\0"), "npz_method_unsupported"),  # bzip2
        (_central(PLAIN, offset=10, value=b"\x08\0"), "npz_malformed"),  # not what the member's header says
        (_central(PLAIN, offset=16, value=b"\0\0\0\0"), "npz_malformed"),  # checksum
        (_central(PLAIN, offset=20, value=b"\0\0\0\1"), "npz_malformed"),  # packed size beyond the archive
        (_central(PLAIN, offset=24, value=b"\1\0\0\0"), "npz_malformed"),  # size
        (_central(PLAIN, offset=28, value=b"\xff\xff"), "npz_malformed"),  # name beyond the directory
        (_central(PLAIN, offset=42, value=b"\xff\xff\xff\x00"), "npz_malformed"),  # offset beyond the archive
        (_central(PLAIN, offset=46, value=b"b"), "npz_malformed"),  # not the name in the member's header
        (_central(DEFLATED, offset=24, value=struct.pack("<L", len(GOOD) + 1)), "npz_malformed"),
        (_central(DEFLATED, offset=24, value=struct.pack("<L", len(GOOD) - 1)), "npz_malformed"),
        (_patched(DEFLATED, at=35, value=b"\xff\xff\xff"), "npz_malformed"),  # no deflate stream
        (PLAIN.replace(b"a.npy", b"\xff.npy"), "npz_member_name"),  # not UTF-8
        (_archive(("a.txt", GOOD)), "npz_member_name"),
        (_archive((".npy", GOOD)), "npz_member_name"),
        (_archive(("../a.npy", GOOD)), "npz_member_name"),
        (_archive(("a/../../b.npy", GOOD)), "npz_member_name"),
        (_archive(("a\\b.npy", GOOD)), "npz_member_name"),
        (_archive(("a\n.npy", GOOD)), "npz_member_name"),
        (_archive(("n" * 33 + ".npy", GOOD)), "oip_too_long_name"),
        (_archive(("a.npy", b"x")), "npy_malformed"),
        (_archive(*((f"{n}.npy", GOOD) for n in range(5))), "oip_too_many_tensors"),
    ],
)  # fmt: skip
def test_archive_refusals(data: bytes, code: str) -> None:
    """Each archive is wrong in one respect, and refused with its code."""
    assert npz_refusal(data) == code


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused() -> None:
    """Readers differ in which member they keep."""
    assert npz_refusal(_archive(("a.npy", GOOD), ("a.npy", GOOD)), MalformedInput) == "npz_duplicate_member"


def test_members_may_not_share_bytes() -> None:
    """Two directory entries for one member's bytes (a "zip of zips" bomb) are refused."""
    data = _archive(("a.npy", GOOD), ("b.npy", GOOD))
    second = data.rindex(b"PK\x01\x02")
    assert npz_refusal(_patched(data, at=second + 42, value=struct.pack("<L", 0))) == "npz_malformed"


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    """A megabyte may come out whatever the ratio; beyond it, a hundred to one is the limit."""
    limits = WireLimits(
        tensors=4, tensor_bytes=1 << 28, total_bytes=1 << 28, elements=1 << 28, name_length=32
    )
    small = savez(compressed=True, a=np.zeros(120_000))
    assert decode_npz(small, limits=limits)["a"].shape == (120_000,)
    assert (
        npz_refusal(savez(compressed=True, a=np.zeros(200_000)), LimitExceeded, limits=limits) == "npz_ratio"
    )


def test_what_an_archive_inflates_to_is_bounded_together() -> None:
    """Each array within the limit for one, all of them above the limit for all."""
    arrays = {name: np.arange(100_000) for name in "ab"}
    assert npz_refusal(savez(**arrays), LimitExceeded) == "oip_too_many_bytes"


def test_a_member_that_inflates_beyond_its_declared_size_stops_there() -> None:
    """The declared size bounds the inflater; the excess is never made."""
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = bomb.compress(b"\0" * (1 << 26)) + bomb.flush()
    member = npy._Member("a", 8, 0, memoryview(packed), 1000)
    with pytest.raises(MalformedInput):
        npy._unpack(member)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 0, 2)])
@pytest.mark.parametrize("fortran", [False, True])
def test_the_usual_spelling_means_what_any_other_means(shape: tuple[int, ...], fortran: bool) -> None:
    """numpy's own spelling has a short way through the reader; with a space more it takes the long one."""
    array = np.asarray(np.arange(math.prod(shape), dtype="<f4").reshape(shape), order="F" if fortran else "C")
    usual = save(array)
    assert npy._USUAL.fullmatch(usual[10:128].decode("latin-1"))
    other = usual.replace(b"{'descr': ", b"{'descr':  ").replace(b"   \n", b"  \n")
    assert len(other) == len(usual) and not npy._USUAL.fullmatch(other[10:128].decode("latin-1"))
    for data in (usual, other):
        assert np.array_equal(npy.decode_npy(data, limits=LIMITS), array)


@pytest.mark.parametrize(
    "array", [np.float32([[1, 2], [3, 4]]), np.float16([1]), np.array([True]), np.int64([])]
)
def test_elements_are_sent_from_where_they_lie(array: Array) -> None:
    """Two parts make the file; the second is the array's own memory where that is in C order, whatever the dtype."""
    head, payload = npy.npy_parts(array)
    assert head + bytes(payload) == npy.encode_npy(array)
    assert np.shares_memory(np.frombuffer(payload, np.uint8), array) == (array.size > 0)
    turned = npy.npy_parts(array.T)
    assert np.array_equal(npy.decode_npy(b"".join(turned), limits=LIMITS), array.T)
