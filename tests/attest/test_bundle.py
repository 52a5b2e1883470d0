"""`attest.bundle`: one spelling, and every other one refused."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from bundles import GENUINE, USED, bundle, entries, packed, reseal
from worlds import NOW

from strongroom.attest import bundle as module
from strongroom.attest.bundle import MAX_BUNDLE, MAX_USED, encode_bundle, is_bundle, parse_bundle
from strongroom.errors import MalformedInput

WITH_USED = encode_bundle(USED)


def refused(data: bytes) -> str:
    """The message of the refusal."""
    with pytest.raises(MalformedInput) as caught:
        parse_bundle(data)
    assert caught.value.code == "bundle_malformed"
    return caught.value.message


def test_what_is_written_is_read() -> None:
    """Every member, with and without endorsements; the same bundle gives the same bytes."""
    for one in (bundle(), USED, bundle(answer=b"", leaf=b"", policy="", origin="")):
        data = encode_bundle(one)
        assert parse_bundle(data) == one
        assert encode_bundle(parse_bundle(data)) == data
        assert is_bundle(data)
    assert not is_bundle(b"PK\x05\x06" + bytes(18)) and not is_bundle(b"")


def test_the_form_is_fixed() -> None:
    """Released bundles must be read for ever: these bytes never change."""
    fixed = bundle(answer=b"{}", leaf=b"leaf", policy="kind = 1\n")
    digest = hashlib.sha256(encode_bundle(fixed)).hexdigest()
    assert digest == "d761a59bad40e28fd9f54ff1877738a69f81757e648415c73b02b5814bddcd0f"


def test_any_zip_tool_opens_it(tmp_path: Path) -> None:
    """Python's reader, and unzip where there is one."""
    assert list(entries(WITH_USED)) == [
        "manifest.json", "answer.json", "leaf.der", "policy.toml", "endorsement-00", "endorsement-01",
    ]  # fmt: skip
    assert entries(WITH_USED)["policy.toml"].decode() == USED.policy
    if which("unzip") is None:
        pytest.skip("not exercised here: there is no unzip")
    path = tmp_path / "b.zip"
    path.write_bytes(WITH_USED)
    done = subprocess.run(["unzip", "-t", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_time_is_kept_as_the_moment_that_it_is() -> None:
    """To the microsecond, whatever its zone."""
    moment = datetime(2026, 11, 23, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    kept = parse_bundle(encode_bundle(bundle(verified_at=moment))).verified_at
    assert kept == moment and kept.isoformat() == "2026-11-23T12:00:00.123456+00:00"
    with pytest.raises(TypeError):
        encode_bundle(bundle(verified_at=NOW.replace(tzinfo=None)))


@pytest.mark.parametrize(
    "changed",
    [
        {"nonce": b"n" * 31},
        {"nonce": b""},
        {"answer": bytes((1 << 20) + 1)},
        {"leaf": bytes((128 << 10) + 1)},
        {"policy": "x" * ((256 << 10) + 1)},
        {"policy": "\ud800"},
        {"origin": "x" * 513},
        {"origin": "a\nb"},
        {"origin": "\x9b"},
        {"software": ""},
        {"software": "a b"},
        {"endorsements": (("", b""),)},
        {"endorsements": (("\x1b[2J", b""),)},
        {"endorsements": (("a", bytes((1 << 20) + 1)),)},
        {"endorsements": (("a", b""),) * (MAX_USED + 1)},
        {"endorsements": (("a", bytes(1 << 20)),) * 8},
    ],
    ids=range(16),
)
def test_what_no_bundle_can_hold_is_not_written(changed: dict[str, Any]) -> None:
    """Limits and forms, before a byte is made."""
    with pytest.raises(MalformedInput) as caught:
        encode_bundle(bundle(**changed))
    assert caught.value.code == "bundle_malformed"


@pytest.mark.slow
def test_every_flipped_byte_is_refused() -> None:
    """In every entry, header and directory field: none is free."""
    for at in range(len(WITH_USED)):
        for bit in (1 << at % 8, 0xFF):
            damaged = bytearray(WITH_USED)
            damaged[at] ^= bit
            refused(bytes(damaged))


def test_every_truncation_and_every_appendix_is_refused() -> None:
    """Nothing may be missing, and nothing may lie behind or before."""
    for size in range(len(GENUINE)):
        refused(GENUINE[:size])
    for more in (b"\0", b"\n", b"PK\x05\x06", GENUINE):
        refused(GENUINE + more)
        refused(more + GENUINE)
    comment = bytearray(GENUINE) + b"hello"
    comment[-7:-5] = struct.pack("<H", 5)
    assert zipfile.ZipFile(io.BytesIO(bytes(comment))).comment == b"hello"
    refused(bytes(comment))


def _without(name: str) -> dict[str, bytes]:
    return {n: c for n, c in entries(WITH_USED).items() if n != name}


def _swapped(one: str, two: str) -> dict[str, bytes]:
    members = entries(WITH_USED)
    members[one], members[two] = members[two], members[one]
    return members


NAMES = tuple(entries(WITH_USED))


@pytest.mark.parametrize("name", NAMES)
def test_a_removed_emptied_or_altered_member_is_refused(name: str) -> None:
    """Written with our own writer, so that nothing but the member is wrong."""
    members = entries(WITH_USED)
    refused(module._zip(list(_without(name).items())))
    for content in (b"", members[name] + b" ", members[name][:-1], b"\0" + members[name]):
        if content != members[name]:
            refused(module._zip(list((members | {name: content}).items())))


@pytest.mark.parametrize("other", NAMES[1:])
def test_swapped_members_and_another_order_are_refused(other: str) -> None:
    """Contents swapped, and entries in another order with the right contents."""
    for name in NAMES:
        if name != other:
            refused(module._zip(list(_swapped(name, other).items())))
    members = list(entries(WITH_USED).items())
    moved = [m for m in members if m[0] != other]
    assert "first entry" in refused(module._zip([(other, dict(members)[other]), *moved]))


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another version": lambda m: m | {"bundle": 2},
    "no version": lambda m: {k: v for k, v in m.items() if k != "bundle"},
    "true for one": lambda m: m | {"bundle": True},
    "an unknown member": lambda m: m | {"comment": ""},
    "a digest too few": lambda m: m | {"members": {k: v for k, v in m["members"].items() if k != "leaf.der"}},
    "a digest too many": lambda m: m | {"members": m["members"] | {"x": "00" * 32}},
    "digests in capitals": lambda m: m | {"members": {k: v.upper() for k, v in m["members"].items()}},
    "a short digest": lambda m: m | {"members": m["members"] | {"leaf.der": "00" * 31}},
    "no digests": lambda m: m | {"members": None},
    "an endorsement too few": lambda m: m | {"endorsements": ["collateral.json"]},
    "an endorsement too many": lambda m: m | {"endorsements": ["a", "b", "c"]},
    "endorsements without names": lambda m: m | {"endorsements": [None, 1]},
    "an endorsement with an empty name": lambda m: m | {"endorsements": ["", "b"]},
    "a short nonce": lambda m: m | {"nonce": "00" * 31},
    "a nonce in capitals": lambda m: m | {"nonce": "AB" * 32},
    "no time": lambda m: m | {"verified_at": ""},
    "a time of no calendar": lambda m: m | {"verified_at": "2026-02-30T00:00:00.000000Z"},
    "a time without zone": lambda m: m | {"verified_at": "2026-11-23T12:00:00.000000"},
    "a time in seconds": lambda m: m | {"verified_at": "2026-11-23T12:00:00Z"},
    "a time in another zone": lambda m: m | {"verified_at": "2026-11-23T12:00:00.000000+00:00"},
    "the year 0": lambda m: m | {"verified_at": "0000-11-23T12:00:00.000000Z"},
    "a time as a number": lambda m: m | {"verified_at": 1795435200},
    "an origin that steers a terminal": lambda m: m | {"origin": "\x1b[2J"},
    "a software of two lines": lambda m: m | {"software": "a\nb"},
    "not an object": lambda m: [m],
}


@pytest.mark.parametrize("wrong", MANIFESTS)
def test_a_wrong_manifest_is_refused(wrong: str) -> None:
    """Wrong in one respect only."""
    members = entries(WITH_USED)
    said = MANIFESTS[wrong](json.loads(members["manifest.json"]))
    members["manifest.json"] = json.dumps(said, separators=(",", ":"), sort_keys=True).encode()
    refused(module._zip(list(members.items())))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"\xff",
        b'{"bundle":1,"bundle":1}',
        b'{"bundle":1.0}',
        b"[" * 100_000,
        b" " * (1 << 17),
    ],
    ids=range(8),
)
def test_a_manifest_that_is_no_strict_json_is_refused(text: bytes) -> None:
    """And one with spaces, or members in another order, which say the same."""
    members = entries(WITH_USED)
    refused(module._zip(list((members | {"manifest.json": text}).items())))
    said = json.loads(members["manifest.json"])
    for spelling in (json.dumps(said), json.dumps(dict(reversed(said.items())), separators=(",", ":"))):
        loose = module._zip(list((members | {"manifest.json": spelling.encode()}).items()))
        assert "one spelling" in refused(loose)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries_are_refused_unread(method: int) -> None:
    """A bomb has nothing to go off in: nothing is ever inflated."""
    assert "compressed" in refused(packed(entries(GENUINE), method=method))
    bomb = packed({"manifest.json": bytes(1 << 24)}, method=method)
    assert len(bomb) < 1 << 18
    assert "compressed" in refused(bomb)


def test_a_zip_that_another_tool_wrote_is_refused_and_ours_is_the_one_spelling() -> None:
    """The same entries, stored: other versions, dates or permissions."""
    refused(packed(entries(GENUINE)))
    assert module._zip(list(entries(GENUINE).items())) == GENUINE


@pytest.mark.parametrize(
    "name",
    ["../policy.toml", "/policy.toml", "a/policy.toml", "policy.toml/", "C:policy.toml", "POLICY.TOML", "x", "",
     "endorsement-32", "endorsement-0", "policy.toml\0", "manifest.json"],
)  # fmt: skip
def test_names_that_are_not_of_the_format_are_refused(name: str) -> None:
    """Paths, other cases, numbers out of range, and names that are there twice: whatever a tool would unpack."""
    refused(module._zip([*entries(GENUINE).items(), (name, b"x")]))
    refused(module._zip([(name if n == "policy.toml" else n, c) for n, c in entries(GENUINE).items()]))


def test_an_entry_that_is_there_twice_is_refused() -> None:
    """Whoever checked the first may use the second."""
    for name, content in entries(WITH_USED).items():
        assert "twice" in refused(module._zip([*entries(WITH_USED).items(), (name, content)]))


FIELDS = {
    "version": 4,
    "flags": 6,
    "method": 8,
    "time": 10,
    "date": 12,
    "size": 18,
    "plain size": 22,
    "extra": 28,
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_an_entrys_header_has_one_value(field: str) -> None:
    """Encrypted (flag 1), sizes deferred (flag 8), dated, with extra fields: refused."""
    for value in (1, 8, 0x0800, 0xFFFF):
        damaged = bytearray(GENUINE)
        damaged[FIELDS[field] : FIELDS[field] + 2] = struct.pack("<H", value)
        refused(bytes(damaged))


def test_a_directory_that_shows_other_entries_is_refused() -> None:
    """Overlapping entries, hidden ones, or an end that counts otherwise: two readers must not see two bundles."""
    start = GENUINE.index(b"PK\x01\x02")
    offsets = [at for at in range(start, len(GENUINE)) if GENUINE[at : at + 4] == b"PK\x01\x02"]
    overlapping = bytearray(GENUINE)
    overlapping[offsets[1] + 42 : offsets[1] + 46] = bytes(4)  # the second entry begins where the first does
    refused(bytes(overlapping))
    hidden = GENUINE[:start] + GENUINE[offsets[1] :]  # the directory lacks the first entry
    refused(hidden)
    refused(GENUINE[: offsets[-1]] + GENUINE[-22:])
    for at in range(len(GENUINE) - 22, len(GENUINE)):
        damaged = bytearray(GENUINE)
        damaged[at] ^= 1
        refused(bytes(damaged))


def test_a_wrong_checksum_is_refused() -> None:
    """Content, digest and manifest agree; the CRC does not."""
    damaged = bytearray(GENUINE)
    damaged[14:18] = struct.pack("<L", zlib.crc32(b"other"))
    assert "one spelling" in refused(bytes(damaged))


def test_a_size_beyond_the_limit_is_refused_unread() -> None:
    """Of one entry, and of the whole."""
    assert str(MAX_BUNDLE) in refused(GENUINE + bytes(MAX_BUNDLE))
    huge = bytearray(GENUINE)
    huge[18:26] = struct.pack("<LL", 0xFFFFFFFF, 0xFFFFFFFF)
    assert "at most" in refused(bytes(huge))


def test_two_bundles_mixed_are_refused() -> None:
    """Any member of one in the other."""
    other = entries(
        encode_bundle(
            replace(
                USED, answer=b"other", leaf=b"other", policy="other", endorsements=(("a", b"1"), ("b", b"2"))
            )
        )
    )
    for name in NAMES[1:]:
        refused(module._zip(list((entries(WITH_USED) | {name: other[name]}).items())))
    refused(module._zip(list((entries(WITH_USED) | {"manifest.json": other["manifest.json"]}).items())))


def test_a_resealed_bundle_is_read() -> None:
    """The digests find damage, not lies: whoever replaces the manifest too has made another bundle."""
    made = module._zip(list(reseal(GENUINE, policy_toml=b"other").items()))
    assert parse_bundle(made) == bundle(policy="other")


def test_noise_gives_our_error() -> None:
    """Random bytes, and random bytes behind the magic."""
    rng = random.Random(1)
    for size in range(200):
        refused(rng.randbytes(size))
        refused(b"PK\x03\x04" + rng.randbytes(size))
    refused(b"")
