"""Bundles: what one verification of a server rested on, as one ZIP file that verifies again, offline, years later.

`parse_bundle` and `encode_bundle` are the format (docs/spec/bundle.md); `attest.replay` judges what is in one.

Rules of this file:

1. A bundle has one spelling: what was read encodes to the very same bytes, or it is refused. So there is nothing
   before, between or behind its entries, none twice, none unknown, none encrypted or compressed, no path, no comment;
   and nothing grows as it is read.
2. Whoever made a bundle wrote every byte of it, its digests too: these find damage, not lies.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NoReturn

from strongroom.attest.evidence import MAX_ANSWER, NONCE_SIZE
from strongroom.attest.strict import Members, canonical, parse_object
from strongroom.errors import MalformedInput

VERSION: Final = 1
MAX_BUNDLE: Final = 8 << 20
"""Bytes of a bundle; with a TDX quote and all its collateral twice, stapled and used, it has about 100 KiB."""
MAX_LEAF: Final = 128 << 10
"""Bytes of the leaf; OpenSSL takes no larger one, and one with a whole quote inside has about 10 KiB."""
MAX_POLICY_BYTES: Final = 256 << 10
"""Bytes of the policy: the 64 Ki characters that are read of one, each in at most four bytes."""
MAX_USED: Final = 32
"""Endorsements; DCAP needs 9 where they come one by one."""
MAGIC: Final = b"PK\x03\x04"
"""How a bundle begins: the first entry of a ZIP file."""

_CODE: Final = "bundle_malformed"
_MANIFEST, _ANSWER, _LEAF, _POLICY = "manifest.json", "answer.json", "leaf.der", "policy.toml"
_MAX_MANIFEST: Final = 64 << 10
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
_WORDS: Final = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_ORIGIN, _NAME = _WORDS + "{0,512}", _WORDS + "{1,256}"
_SOFTWARE: Final = r"[!-~]{1,64}"

# What every entry says of itself (APPNOTE.TXT 4.3.7, 4.3.12): version 2.0, nothing encrypted or deferred, stored,
# midnight of 1980-01-01; in the directory, a regular file of Unix that everybody may read.
_LOCAL: Final = struct.Struct("<4sHHHHHLLLHH")
_CENTRAL: Final = struct.Struct("<4sHHHHHHLLLHHHHHLL")
_END: Final = struct.Struct("<4sHHHHLLH")
_NEEDED, _FLAGS, _STORED, _CLOCK, _DAY = 20, 0, 0, 0, 0x21
_MADE_BY, _MODE = 3 << 8 | 20, 0o100644 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What one verification rested on; nothing in it is verified.

    `answer`: the evidence answer, bytes as received, keyset included. `endorsements`: the documents that were used
    with the evidence, stapled or fetched, as (name, bytes). `nonce`: 32 bytes. `leaf`: the certificate (DER) of the
    connection. `policy`: the text of the policy file. `verified_at`: the time that was verified at. `origin`,
    `software`: where the server was said to be, and what made this; words for a person, which decide nothing.
    """

    answer: bytes = field(repr=False)
    endorsements: tuple[tuple[str, bytes], ...] = field(repr=False)
    nonce: bytes
    leaf: bytes = field(repr=False)
    policy: str = field(repr=False)
    verified_at: datetime
    origin: str
    software: str


def is_bundle(data: bytes) -> bool:
    """Whether `data` begins as a bundle does. Decides only who reads it."""
    return data.startswith(MAGIC)


def encode_bundle(bundle: Bundle) -> bytes:
    """Returns the bytes of `bundle` (docs/spec/bundle.md §2); the same bundle gives the same bytes.

    Raises:
        MalformedInput: code `bundle_malformed`, something that no bundle can hold. TypeError: a time without zone.
    """
    members = _members(bundle)
    _check(bundle, members)
    manifest = canonical(
        {
            "bundle": VERSION,
            "endorsements": [name for name, _ in bundle.endorsements],
            "members": {name: hashlib.sha256(data).hexdigest() for name, data in members},
            "nonce": bundle.nonce.hex(),
            "origin": bundle.origin,
            "software": bundle.software,
            "verified_at": bundle.verified_at.astimezone(UTC).strftime(_TIME),
        }
    )
    return _zip([(_MANIFEST, manifest), *members])


def parse_bundle(data: bytes) -> Bundle:
    """Returns the bundle that `data` is (docs/spec/bundle.md §2). Nothing in it is verified.

    Raises:
        MalformedInput: code `bundle_malformed`.
    """
    _expect(len(data) <= MAX_BUNDLE, f"{len(data)} bytes, at most {MAX_BUNDLE} are read")
    (first, text), *members = _entries(data)
    _expect(first == _MANIFEST, f"expected {_MANIFEST} as the first entry")
    names = ("bundle", "endorsements", "members", "nonce", "origin", "software", "verified_at")
    what = f"bundle: {_MANIFEST}"
    read = Members(
        parse_object(text, limit=_MAX_MANIFEST, what=what, code=_CODE), names, what=what, code=_CODE
    )
    read.integer("bundle", VERSION, VERSION)
    used = tuple(name for name in read.array("endorsements", MAX_USED) if isinstance(name, str))
    expected = (_ANSWER, _LEAF, _POLICY, *(_member(n) for n in range(len(used))))
    _expect(tuple(name for name, _ in members) == expected, f"expected the entries {', '.join(expected)}")
    digests = Members(read.object("members"), expected, what=f"{what}: members", code=_CODE)
    for name, content in members:
        same = hashlib.sha256(content).hexdigest() == digests.hexadecimal(name, 32)
        _expect(same, f"{name}: not the bytes that {_MANIFEST} names")
    kept = [content for _, content in members]
    bundle = Bundle(
        answer=kept[0],
        leaf=kept[1],
        policy=_utf8(kept[2]),
        endorsements=tuple(zip(used, kept[3:], strict=True)),
        nonce=bytes.fromhex(read.hexadecimal("nonce", NONCE_SIZE)),
        verified_at=_moment(read.text("verified_at", r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z")),
        origin=read.text("origin", _ORIGIN),
        software=read.text("software", _SOFTWARE),
    )
    # Rule 1: whatever a field of a header or of the directory says instead, and whatever lies where nothing may.
    _expect(
        encode_bundle(bundle) == data, "not in the one spelling that a bundle has (docs/spec/bundle.md §2)"
    )
    return bundle


def _check(bundle: Bundle, members: list[tuple[str, bytes]]) -> None:
    """What a bundle can hold (§2.3)."""
    if bundle.verified_at.tzinfo is None:
        raise TypeError("verified_at: expected an aware datetime")
    _expect(len(bundle.nonce) == NONCE_SIZE, f"nonce: expected {NONCE_SIZE} bytes, got {len(bundle.nonce)}")
    _expect(len(bundle.endorsements) <= MAX_USED, f"endorsements: more than {MAX_USED}")
    for name, _ in bundle.endorsements:
        _expect(_is(name, _NAME), "endorsements: a name that is not 1 to 256 printable characters")
    _expect(_is(bundle.origin, _ORIGIN), "origin: not at most 512 printable characters")
    _expect(_is(bundle.software, _SOFTWARE), "software: not 1 to 64 visible characters")
    for name, data in members:
        _expect(len(data) <= _limit(name), f"{name}: {len(data)} bytes, at most {_limit(name)} are kept")
    size = _MAX_MANIFEST + sum(len(data) + 512 for _, data in members)
    _expect(size <= MAX_BUNDLE, f"{size} bytes, at most {MAX_BUNDLE} are kept")


def _is(text: str, pattern: str) -> bool:
    return re.fullmatch(pattern, text) is not None


def _members(bundle: Bundle) -> list[tuple[str, bytes]]:
    """Every entry but the manifest, in order."""
    try:
        policy = bundle.policy.encode()
    except UnicodeEncodeError:
        _refuse(f"{_POLICY}: text that has no UTF-8")
    used = [(_member(n), data) for n, (_, data) in enumerate(bundle.endorsements)]
    return [(_ANSWER, bundle.answer), (_LEAF, bundle.leaf), (_POLICY, policy), *used]


def _member(number: int) -> str:
    return f"endorsement-{number:02}"


def _limit(name: str) -> int:
    return {_MANIFEST: _MAX_MANIFEST, _LEAF: MAX_LEAF, _POLICY: MAX_POLICY_BYTES}.get(name, MAX_ANSWER)


# --- the container ------------------------------------------------------------------------------------------


def _zip(entries: list[tuple[str, bytes]]) -> bytes:
    """The entries as a ZIP file that has no other spelling."""
    body, directory = bytearray(), bytearray()
    for name, data in entries:
        label, size, crc, at = name.encode("ascii"), len(data), zlib.crc32(data), len(body)
        common = (_NEEDED, _FLAGS, _STORED, _CLOCK, _DAY, crc, size, size, len(label), 0)
        body += _LOCAL.pack(MAGIC, *common) + label + data
        directory += _CENTRAL.pack(b"PK\x01\x02", _MADE_BY, *common, 0, 0, 0, _MODE, at) + label
    count = len(entries)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + end)


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    """The entries from the front, as their own headers have them; the directory is compared, never followed."""
    known = {
        name.encode(): name for name in (_MANIFEST, _ANSWER, _LEAF, _POLICY, *map(_member, range(MAX_USED)))
    }
    found: dict[str, bytes] = {}
    at = 0
    while data[at : at + 4] == MAGIC:
        _expect(at + _LOCAL.size <= len(data), "it ends within an entry's header")
        _, *fixed, _crc, size, plain, label, extra = _LOCAL.unpack_from(data, at)
        same = fixed == [_NEEDED, _FLAGS, _STORED, _CLOCK, _DAY] and size == plain and extra == 0
        _expect(same, "an entry is encrypted, compressed, dated or otherwise not as this format has them")
        start = at + _LOCAL.size + label
        name = known.get(data[at + _LOCAL.size : start], "")
        _expect(name != "", "an entry has a name that this format does not have")
        _expect(name not in found, f"{name}: there twice")
        _expect(size <= _limit(name), f"{name}: {size} bytes, at most {_limit(name)} are read")
        _expect(start + size <= len(data), f"it ends within {name}")
        found[name] = data[start : start + size]
        at = start + size
    _expect(bool(found), "not a ZIP file that begins with an entry")
    return list(found.items())


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(f"{_POLICY}: not UTF-8")


def _moment(text: str) -> datetime:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        _refuse(f"{_MANIFEST}: verified_at: no moment")


def _expect(condition: bool, why: str) -> None:
    if not condition:
        _refuse(why)


def _refuse(why: str) -> NoReturn:
    raise MalformedInput(f"bundle: {why}", code=_CODE)
