"""numpy's own file formats, `.npy` (one array) and `.npz` (several), read as data from a stranger.

The format is numpy's NEP 1; the archive is the ZIP of PKWARE's APPNOTE.TXT, as `numpy.savez` writes it.

Rules
  - Nothing is evaluated and nothing is unpickled: the header, a Python literal, is read by a regular
    expression for the one form that it has. Object and structured arrays are refused by name.
  - A declared shape sizes nothing: it must account for exactly the bytes that follow the header.
  - What is inflated is bounded while it is inflated, by the limits and by what the archive itself says.
  - Arrays come out as the protocol's: native byte order, C order, BYTES for numpy's strings. No value
    changes; where memory allows (C order, native, aligned) the array is a view of the input, not a copy.
  - A name in an archive is a tensor's name. It is compared, never used as a path.
  - Messages never hold values.
"""

from __future__ import annotations

import io
import math
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from strongroom.errors import InvalidRequest, LimitExceeded, MalformedInput, check_member
from strongroom.oip import (
    DATATYPES,
    Array,
    WireLimits,
    bytes_array,
    check_shape,
    check_size,
    check_totals,
    payload_bytes,
)

Data = bytes | bytearray | memoryview

JOINED: Final = 64 << 10
"""Bytes of an array up to which it is copied by numpy itself: a view of it would take longer to make."""
REMEMBERED: Final = 64
"""Headers that are remembered, each way: a caller sends arrays of one shape again and again."""

MAX_HEADER: Final = 1024
"""Bytes of a header: numpy writes 118 for an ordinary array."""
MAX_PADDING: Final = 16
"""numpy pads strings to the longest one, four bytes a character: a result may grow by this, not more."""
FREE_BYTES: Final = 1 << 20
"""Bytes that may be inflated or padded whatever the factor: a megabyte is no bomb."""
MAX_RATIO: Final = 100
"""Inflated bytes for each compressed one, above that: deflate reaches 1032, real tensors 2 to 10."""

_MAGIC: Final = b"\x93NUMPY"

_ENTRY: Final = re.compile(
    r"""\s* (?: ['"]descr['"]         \s*:\s* ['"](?P<descr>[^'"]{0,16})['"]
              | ['"]fortran_order['"] \s*:\s* (?P<fortran>True|False)
              | ['"]shape['"]         \s*:\s* \(\s*(?P<shape>(?:\d{1,19}\s*,\s*)*(?:\d{1,19}\s*)?)\) ) \s*""",
    re.VERBOSE,
)
_USUAL: Final = re.compile(
    r"\{'descr': '(?P<descr>[^'\"]{0,16})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,19}, )*(?:\d{1,19},?)?)\), \} *\n"
)
"""The header as numpy and `npy_parts` spell it: one look instead of several."""
_STRUCTURED: Final = re.compile(r"""['"]descr['"]\s*:\s*\[""")
_DESCR: Final = re.compile(r"([<>|]?)([a-zA-Z?])(\d{0,9})(?:\[\w{1,8}\])?")

_PLAIN: Final = frozenset(
    f"{dtype.kind}{dtype.itemsize}" for dtype in DATATYPES.values() if dtype.kind != "O"
)


@dataclass(frozen=True, slots=True)
class _Header:
    order: str  # "<", ">" or "|"
    kind: str  # numpy's type character
    itemsize: int
    fortran: bool
    shape: tuple[int, ...]
    end: int  # where the data begins


def decode_npy(data: Data, *, limits: WireLimits) -> Array:
    """Reads one array; `data` is the whole file.

    The result has one of the dtypes in `oip.DATATYPES` and may be a (read-only) view of `data`.

    Raises:
        MalformedInput: not a .npy file, or not as long as it says (codes `npy_malformed`, `npy_length`).
        InvalidRequest: a dtype that the protocol does not have, or values that are none of its own (codes
            `npy_pickle`, `npy_structured`, `npy_dtype`, `npy_value`).
        LimitExceeded: larger than `limits` (codes `oip_too_...`).
    """
    view = memoryview(data).cast("B")
    header = _read_header(view)
    shape, payload = check_shape(header.shape, "the array", limits=limits), view[header.end :]
    count = math.prod(shape)
    if count * header.itemsize != len(payload):
        raise MalformedInput(
            f"the header declares {count * header.itemsize} bytes of data, {len(payload)} follow it",
            code="npy_length",
        )
    if header.kind in "US":
        flat = _read_strings(payload, header, count)
        check_size(payload_bytes(flat), "the array", limits=limits)
    else:
        check_size(len(payload), "the array", limits=limits)
        dtype = _dtype(header.order, header.kind, header.itemsize)
        flat = np.frombuffer(payload, dtype=dtype) if count else np.empty(0, dtype=dtype)
        if header.kind == "b" and count and int(flat.view(np.uint8).max()) > 1:
            raise InvalidRequest("a boolean is neither 0 nor 1", code="npy_value")
    array = flat.reshape(shape[::-1]).T if header.fortran else flat.reshape(shape)
    if header.fortran or not array.dtype.isnative:
        array = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    # Kernels may load whole vectors; an unaligned view (a header of odd length) is copied.
    return array if array.flags.aligned else array.copy()


def _read_header(view: memoryview) -> _Header:
    major = view[6] if len(view) >= 10 else 0
    check_member(bytes(view[:6]) == _MAGIC and major in (1, 2, 3), "not a .npy file", code="npy_malformed")
    start, length = (10, "<H") if major == 1 else (12, "<I")
    check_member(len(view) >= start, "the .npy header is cut off", code="npy_malformed")
    end = start + struct.unpack(length, view[8:start])[0]
    if end - start > MAX_HEADER:
        raise LimitExceeded(f"the .npy header is longer than {MAX_HEADER} bytes", code="npy_header_too_long")
    check_member(len(view) >= end, "the .npy header is cut off", code="npy_malformed")
    order, kind, itemsize, fortran, shape = _read_text(bytes(view[start:end]))
    return _Header(order, kind, itemsize, fortran, shape, end)


@lru_cache(maxsize=REMEMBERED)
def _read_text(data: bytes) -> tuple[str, str, int, bool, tuple[int, ...]]:
    """What a header's text says: byte order, type character, bytes of an element, Fortran's order or not, shape. A fact
    about these bytes, and remembered; refusals are not.
    """
    text = data.decode("latin-1")
    if _STRUCTURED.search(text):
        raise InvalidRequest("structured arrays are not tensors", code="npy_structured")
    found = _read_entries(text)
    order, kind, itemsize = _read_descr(found["descr"])
    shape = tuple(int(size) for size in found["shape"].replace(",", " ").split())
    # "(3)" would be a number in Python, not a tuple.
    check_member(
        len(shape) != 1 or "," in found["shape"], "the .npy header is malformed", code="npy_malformed"
    )
    return order, kind, itemsize, found["fortran"] == "True", shape


@lru_cache(maxsize=REMEMBERED)
def _dtype(order: str, kind: str, itemsize: int) -> np.dtype[Any]:
    return np.dtype(f"{order}{kind}{itemsize}")


def _read_entries(text: str) -> dict[str, str]:
    """The three members of the header's dictionary, each exactly once."""
    if usual := _USUAL.fullmatch(text):
        return usual.groupdict()
    body = text.strip()
    check_member(body[:1] == "{" and body[-1:] == "}", "the .npy header is malformed", code="npy_malformed")
    found: dict[str, str] = {}
    body = body[1:-1].rstrip().removesuffix(",")
    position, end = 0, len(body)
    while position < end:
        match = _ENTRY.match(body, position)
        pair = (
            {name: value for name, value in match.groupdict().items() if value is not None} if match else {}
        )
        separated = match is not None and (match.end() == end or body[match.end()] == ",")
        if match is None or not separated or pair.keys() & found.keys():
            raise MalformedInput("the .npy header is malformed", code="npy_malformed")
        found |= pair
        position = match.end() + 1
    check_member(len(found) == 3, "the .npy header is malformed", code="npy_malformed")
    return found


def _read_descr(descr: str) -> tuple[str, str, int]:
    """Byte order, type character and bytes of an element."""
    match = _DESCR.fullmatch(descr)
    if match is None:
        raise MalformedInput("the .npy header's descr is malformed", code="npy_malformed")
    order, kind, digits = match.groups()
    if kind == "O":
        raise InvalidRequest("the array is pickled Python objects: never read", code="npy_pickle")
    if kind == "?":
        kind, digits = "b", "1"
    size = int(digits or "0")
    if kind in "US" and size > 0:
        size = 4 * size if kind == "U" else size
    elif kind + str(size) not in _PLAIN:
        raise InvalidRequest(
            "the array's dtype is none of the protocol's (bfloat16, complex, dates and long doubles are not)",
            code="npy_dtype",
        )
    check_member(
        order in ("<", ">") or size == 1 or kind == "S", "descr has no byte order", code="npy_malformed"
    )
    return order or "|", kind, size


def _read_strings(payload: memoryview, header: _Header, count: int) -> Array:
    """numpy's fixed-width strings as BYTES; its padding with NUL is dropped, trailing NULs with it."""
    if not count:
        return bytes_array((), shape=(0,))
    if header.kind == "S":
        return bytes_array(np.frombuffer(payload, dtype=f"S{header.itemsize}").tolist(), shape=(count,))
    # Before numpy makes strings of them: numbers beyond Unicode end in a SystemError of the interpreter.
    if int(np.frombuffer(payload, dtype=f"{header.order}u4").max()) > sys.maxunicode:
        raise InvalidRequest("a string is not Unicode text", code="npy_value")
    texts = np.frombuffer(payload, dtype=f"{header.order}U{header.itemsize // 4}").tolist()
    try:
        return bytes_array((text.encode("utf-8") for text in texts), shape=(count,))
    except UnicodeEncodeError:
        raise InvalidRequest("a string has a lone surrogate", code="npy_value") from None


def encode_npy(array: Array) -> bytes:
    """The array as a .npy file, in one piece: see `npy_parts`."""
    if array.nbytes <= JOINED and array.dtype.kind + str(array.dtype.itemsize) in _PLAIN:
        return _written(array.dtype.str, array.shape) + array.tobytes()  # one copy either way
    return b"".join(npy_parts(array))


def npy_parts(array: Array) -> tuple[bytes, Data]:
    """The array as a .npy file, version 1.0, C order, in two parts: the header, and the elements, which are not copied
    where they lie in C order.

    BYTES become numpy's text ("U") if all elements are UTF-8, byte strings ("S") otherwise.

    Raises:
        InvalidRequest: a dtype that is none of `oip.DATATYPES`, or strings that numpy's format would change
            or blow up (codes `npy_dtype`, `npy_value`, `npy_strings_uneven`).
    """
    if array.dtype.kind == "O":
        array = _numpy_strings(array)
    elif array.dtype.kind + str(array.dtype.itemsize) not in _PLAIN:
        raise InvalidRequest("the array's dtype is none of the protocol's", code="npy_dtype")
    return _written(array.dtype.str, array.shape), _payload(array)


@lru_cache(maxsize=REMEMBERED)
def _written(descr: str, shape: tuple[int, ...]) -> bytes:
    """The header of an array of this dtype and shape."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    # NEP 1: magic, version, length and header together are a multiple of 64; spaces pad, a newline ends it.
    header = text.encode("ascii") + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"".join((_MAGIC, b"\x01\x00", struct.pack("<H", len(header)), header))


def _payload(array: Array) -> Data:
    """The elements in C order: the array's own memory where they lie like that, a copy otherwise."""
    if not array.flags.c_contiguous or not array.size:
        return array.tobytes()
    return array.reshape(-1).view(np.uint8).data


def _numpy_strings(array: Array) -> Array:
    elements = array.reshape(-1).tolist()
    check_member(
        all(type(element) is bytes for element in elements),
        "an object array holds something else than bytes",
        InvalidRequest,
        code="npy_dtype",
    )
    if any(element.endswith(b"\0") for element in elements):
        raise InvalidRequest("a string ends in NUL, which .npy would drop", code="npy_value")
    try:
        strings: list[str] | list[bytes] = [element.decode("utf-8") for element in elements]
        kind, unit = "U", 4
    except UnicodeDecodeError:
        strings, kind, unit = elements, "S", 1
    width = max(map(len, strings), default=1) or 1
    if len(elements) * width * unit > FREE_BYTES + MAX_PADDING * sum(map(len, elements)):
        raise InvalidRequest(
            "one string is far longer than the others; ask for JSON", code="npy_strings_uneven"
        )
    return np.array(strings, dtype=f"{kind}{width}").reshape(array.shape)


# .npz


@dataclass(frozen=True, slots=True)
class _Member:
    name: str  # without ".npy"
    method: int  # 0 stored, 8 deflated
    crc: int
    packed: memoryview
    size: int  # inflated, as declared


_END: Final = struct.Struct("<4s4H2LH")  # APPNOTE 4.3.16
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")  # APPNOTE 4.3.12
_LOCAL: Final = struct.Struct("<4s5H3L2H")  # APPNOTE 4.3.7
# General purpose flags that do not change how a member is read: deflate's level, sizes repeated after the
# data (we use the directory's), names in UTF-8. All others, encryption first, are refused.
_HARMLESS_FLAGS: Final = 0b1000_0000_1110


def decode_npz(data: Data, *, limits: WireLimits) -> dict[str, Array]:
    """Reads an archive of arrays, keyed by name (without ".npy"); `data` is the whole file.

    Raises:
        MalformedInput: not a ZIP archive in the form `numpy.savez` writes (codes `npz_...`), or a member is
            no .npy file (see `decode_npy`).
        InvalidRequest: a member that is not an array of the protocol (see `decode_npy`).
        LimitExceeded: more than `limits`, or compressed beyond belief (codes `oip_too_...`, `npz_ratio`).
    """
    arrays: dict[str, Array] = {}
    inflated = total = elements = 0
    for member in _members(memoryview(data).cast("B"), limits=limits):
        if member.name in arrays:
            raise MalformedInput("the archive names a member twice", code="npz_duplicate_member")
        inflated += member.size
        # Headers come on top of what the tensors may have; strings may be padded, but not without end.
        if inflated > limits.total_bytes + limits.tensors * MAX_HEADER:
            raise LimitExceeded("the archive's members are too large together", code="oip_too_many_bytes")
        array = decode_npy(_unpack(member), limits=limits)
        total, elements = total + payload_bytes(array), elements + array.size
        check_totals(total, elements, limits=limits)
        arrays[member.name] = array
    return arrays


def _malformed(condition: bool, message: str) -> None:
    check_member(condition, message, MalformedInput, code="npz_malformed")


def _members(view: memoryview, *, limits: WireLimits) -> Iterator[_Member]:
    """Walks the central directory, which must be whole, at the end, and describe members in file order.

    One reading only: no ZIP64, no comment, nothing after it, so that two readers cannot see two archives.
    """
    _malformed(len(view) >= _END.size, "not a .npz file: too short")
    magic, disk, start_disk, here, count, size, offset, comment = _END.unpack(view[-_END.size :])
    _malformed(magic == b"PK\x05\x06" and comment == 0, "not a .npz file: it does not end as a ZIP archive")
    _malformed(disk == start_disk == 0 and here == count, "the archive is spread over several files")
    end = len(view) - _END.size
    _malformed(offset + size == end, "the archive's directory is not where its end says")
    if count > limits.tensors:
        raise LimitExceeded(
            f"the archive has {count} members, at most {limits.tensors}", code="oip_too_many_tensors"
        )
    position, floor = offset, 0
    for _ in range(count):
        _malformed(position + _CENTRAL.size <= end, "the archive's directory is cut off")
        fields = _CENTRAL.unpack(view[position : position + _CENTRAL.size])
        name_end = position + _CENTRAL.size + fields[10]
        position = name_end + fields[11] + fields[12]
        _malformed(fields[0] == b"PK\x01\x02" and position <= end, "the archive's directory is malformed")
        raw_name = bytes(view[name_end - fields[10] : name_end])
        member, floor = _member(view, fields, raw_name, floor=floor, ceiling=offset, limits=limits)
        yield member
    _malformed(position == end, "the archive's directory has more in it than its end says")


def _member(
    view: memoryview,
    fields: tuple[int, ...],
    raw_name: bytes,
    *,
    floor: int,
    ceiling: int,
    limits: WireLimits,
) -> tuple[_Member, int]:
    """One member by its directory entry, and where its data ends; it must lie within [floor, ceiling)."""
    _, _, _, flags, method, _, _, crc, packed, size, _, _, _, _, _, _, offset = fields
    if flags & ~_HARMLESS_FLAGS or method not in (0, 8):
        raise MalformedInput(
            "a member is encrypted, or neither stored nor deflated", code="npz_method_unsupported"
        )
    _malformed(floor <= offset <= ceiling - _LOCAL.size, "members overlap or lie outside the archive")
    local = _LOCAL.unpack(view[offset : offset + _LOCAL.size])
    start = offset + _LOCAL.size + local[9] + local[10]
    _malformed(local[0] == b"PK\x03\x04" and start + packed <= ceiling, "a member lies outside the archive")
    same = bytes(view[offset + _LOCAL.size : offset + _LOCAL.size + local[9]]) == raw_name
    _malformed(same and local[3] == method, "the directory and a member's own header disagree")
    name = _member_name(raw_name, limits=limits)
    return _Member(name, method, crc, view[start : start + packed], size), start + packed


def _member_name(raw: bytes, *, limits: WireLimits) -> str:
    """The tensor's name. "/" and ":" are ordinary in tensors' names; nothing is ever written under a name."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedInput("a member's name is not UTF-8", code="npz_member_name") from None
    stem = name.removesuffix(".npy")
    parts = stem.split("/")
    fine = stem != name and stem and not re.search("[\x00-\x1f\x7f-\x9f\\\\]", stem) and ".." not in parts
    check_member(bool(fine), "a member's name is not that of an array", code="npz_member_name")
    if len(stem) > limits.name_length:
        raise LimitExceeded(
            f"a member's name has more than {limits.name_length} characters", code="oip_too_long_name"
        )
    return stem


def _unpack(member: _Member) -> Data:
    """The member's bytes, checked against size and checksum in the directory."""
    content: Data = member.packed
    if member.method == 8:
        if member.size > max(FREE_BYTES, MAX_RATIO * len(member.packed)):
            raise LimitExceeded(
                f"a member is compressed more than {MAX_RATIO} to 1; send it stored", code="npz_ratio"
            )
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than declared would come out of a member that is longer than it says.
            content = inflater.decompress(member.packed, member.size + 1)
        except zlib.error:
            raise MalformedInput("a member does not inflate", code="npz_malformed") from None
        _malformed(inflater.eof and not inflater.unused_data, "a member is longer or shorter than it says")
    _malformed(len(content) == member.size, "a member is longer or shorter than it says")
    _malformed(zlib.crc32(content) == member.crc, "a member's checksum is wrong")
    return content


def encode_npz(arrays: Mapping[str, Array]) -> bytes:
    """The arrays as an uncompressed .npz archive, in the mapping's order; equal arrays give equal bytes.

    Raises:
        InvalidRequest: as `encode_npy`.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), encode_npy(array))  # ZipInfo: dated 1980-01-01
    return buffer.getvalue()
