"""The sealed state record: what is written is read, and every other file is refused with its code."""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import state
from strongroom.errors import Failure, LimitExceeded, SealRefused
from strongroom.state import (
    NO_PREDECESSOR,
    Record,
    check_header,
    check_share,
    encode_record,
    open_state,
    parse_record,
    parse_state_file,
    seal_state,
    verify_entry,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))

import targets_sealed
from targets_sealed import HEADER, KEY, STATE, record

BODY = encode_record(record())


def code_of(action: Callable[[], object]) -> str:
    """The code with which `action` is refused."""
    with pytest.raises(SealRefused) as caught:
        action()
    return str(caught.value.code)


def reopen(data: bytes, key: bytes = KEY) -> Record:
    """Opens a state file."""
    return open_state(parse_state_file(data), state_key=key)


def test_a_record_comes_back_as_it_was() -> None:
    """Names, tombstones, metadata with lone surrogates, None and floats: all of it."""
    assert parse_record(BODY) == record()
    assert reopen(STATE) == record()
    assert parse_state_file(STATE).header == HEADER


def test_a_file_is_never_sealed_the_same_way_twice() -> None:
    """The same record, sealed again: other epoch key, other bytes behind the header."""
    again = seal_state(record(), header=HEADER, state_key=KEY, random=random.Random(77).randbytes)
    prefix = len(parse_state_file(STATE).prefix)
    assert again[:prefix] == STATE[:prefix]
    assert again[prefix : prefix + 32] != STATE[prefix : prefix + 32]
    assert reopen(again) == record()


def test_the_clear_part_says_only_what_it_should() -> None:
    """Of the record's content nothing is readable: no model name, owner, digest or tensor name."""
    for secret in (b"mod", b"a1" * 8, b"0d" * 8, b"opset", b"rows", b"FP32", b"gone"):
        assert secret in BODY and secret not in STATE
    assert json.loads(parse_state_file(STATE).prefix[16:-8]) == {
        "sealed_for": "ab" * 32,
        "sealing_class": "simulated",
        "security": "cd" * 32,
        "store_id": "0a" * 16,
    }


PREFIX = len(parse_state_file(STATE).prefix)


def _flip(at: int) -> bytes:
    return STATE[:at] + bytes([STATE[at] ^ 1]) + STATE[at + 1 :]


def _with_header(text: bytes) -> bytes:
    """The state file with another cleartext header, lengths put right."""
    old = struct.unpack_from(">I", STATE, 12)[0]
    return STATE[:12] + struct.pack(">I", len(text)) + text + STATE[16 + old :]


def _header(**changes: str) -> bytes:
    return replace(HEADER, **changes).encode()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "store_malformed"),
        (STATE[:15], "store_malformed"),
        (STATE[:100], "store_malformed"),
        (_flip(0), "store_malformed"),
        (STATE[:8] + struct.pack(">I", 2) + STATE[12:], "store_malformed"),
        (STATE[:12] + struct.pack(">I", 1 << 31) + STATE[16:], "store_malformed"),
        (_with_header(b"[]"), "store_malformed"),
        (_with_header(b"{}"), "store_malformed"),
        (_with_header(b"\xff"), "store_malformed"),
        (_with_header(b"[" * 4000), "store_malformed"),
        (_with_header(HEADER.encode().replace(b'":"', b'": "', 1)), "store_malformed"),
        (_with_header(HEADER.encode()[:-1] + b',"more":""}'), "store_malformed"),
        (_with_header(HEADER.encode().replace(b'"simulated"', b"1")), "store_malformed"),
        (_with_header(_header(store_id="0A" * 16)), "store_malformed"),
        (_with_header(_header(security="cd" * 31)), "store_malformed"),
        (STATE[: PREFIX - 8] + struct.pack(">Q", 1 << 62) + STATE[PREFIX:], "store_malformed"),
        (STATE[: PREFIX - 8] + struct.pack(">Q", 0) + STATE[PREFIX:], "store_malformed"),
        (STATE[: PREFIX - 8] + struct.pack(">Q", len(BODY) + 1) + STATE[PREFIX:], "store_malformed"),
        (STATE[:-1], "store_malformed"),
        (STATE + b"\0", "store_malformed"),
        # Of good form, but not what was sealed. The first four are what a host would try.
        (_with_header(_header(sealed_for="ee" * 32)), "store_tampered"),
        (_with_header(_header(security="ee" * 32)), "store_tampered"),
        (_with_header(_header(store_id="ee" * 16)), "store_tampered"),
        (_with_header(_header(sealing_class="measurement")), "store_tampered"),
        (_flip(PREFIX), "store_other_root"),
        (_flip(PREFIX + 40), "store_other_root"),
        (_flip(PREFIX + 70), "store_tampered"),
        (_flip(PREFIX + 112), "store_tampered"),
        (_flip(PREFIX + 112 + 20), "store_tampered"),
        (_flip(PREFIX + 112 + 60), "store_tampered"),
        (_flip(PREFIX + 112 + 80), "store_tampered"),
        (_flip(len(STATE) - 1), "store_tampered"),
    ],
)
def test_a_state_file_wrong_in_one_respect_is_refused_with_its_code(data: bytes, code: str) -> None:
    """Form first, then authenticity: each vector is wrong in one respect only."""
    assert code_of(lambda: reopen(data)) == code


def test_another_root_is_told_so() -> None:
    """The epoch key commits to the key that wraps it, so a stranger's root is not mistaken for tampering."""
    assert code_of(lambda: reopen(STATE, bytes(32))) == "store_other_root"


def test_a_record_cannot_be_put_behind_another_epochs_key() -> None:
    """Old container, new wrapped key (or the other way round): a mix of two epochs does not open."""
    other = seal_state(record(), header=HEADER, state_key=KEY, random=random.Random(78).randbytes)
    cut = PREFIX + 112
    assert code_of(lambda: reopen(STATE[:cut] + other[cut:])) == "store_tampered"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sealing_class": "measurement"}, "store_other_class"),
        ({"sealed_for": "ee" * 32}, "store_other_measurement"),
        ({"security": "ee" * 32}, "store_other_configuration"),
        ({"security": "ee" * 32, "sealed_for": "ee" * 32}, "store_other_configuration"),
    ],
)
def test_a_stranger_is_told_why(change: dict[str, str], code: str) -> None:
    """Another class, measurement or configuration.

    The configuration first, since the measurement covers it.
    """
    mine = {"sealing_class": "simulated", "sealed_for": "ab" * 32, "security": "cd" * 32}
    check_header(HEADER, **mine)
    assert code_of(lambda: check_header(HEADER, **{**mine, **change})) == code


def _edited(edit: Callable[[Any], None]) -> bytes:
    value = json.loads(BODY)
    edit(value)
    return json.dumps(value, separators=(",", ":")).encode()


def _version(**members: object) -> Callable[[Any], None]:
    return lambda value: value["names"][0]["versions"][0].update(members)


def _name(**members: object) -> Callable[[Any], None]:
    return lambda value: value["names"][0].update(members)


RECORD_EDITS: dict[str, Callable[[Any], None]] = {
    "epoch-zero": lambda value: value.update(epoch=0),
    "epoch-true": lambda value: value.update(epoch=True),
    "epoch-float": lambda value: value.update(epoch=9.0),
    "previous-short": lambda value: value.update(previous="00"),
    "names-object": lambda value: value.update(names={}),
    "member-missing": lambda value: value.pop("previous"),
    "member-unknown": lambda value: value.update(more=1),
    "name-twice": lambda value: value["names"].append(value["names"][1]),
    "name-number": _name(name=1),
    "owner-null": _name(owner=None),
    "next-version-used": _name(next_version=5),
    "next-version-huge": _name(next_version=1 << 64),
    "versions-falling": lambda value: value["names"][0]["versions"].reverse(),
    "version-zero": _version(version=0),
    "access-unknown": _version(access="secret"),
    "format-unknown": _version(format="pickle"),
    "format-not-that-of-the-metadata": _version(format="xgboost-json"),
    "sha256-upper-case": _version(sha256="0D" * 32),
    "canonical-sha256-short": _version(canonical_sha256="0d"),
    "size-zero": _version(size=0),
    "length-zero": _version(length=0),
    "length-other-than-chunks": _version(length=5000),
    "chunks-other-than-length": _version(chunks=4),
    "chunks-true": _version(length=1, chunks=True),
    "chunk-size-zero": _version(chunk_size=0),
    "chunk-size-huge": _version(chunk_size=1 << 40, chunks=1),
    "created-negative": _version(created=-1),
    "file-a-path": _version(file="../../etc/passwd"),
    "file-id-short": _version(file_id="00"),
    "file-shared": _version(file=f"{5:032x}"),
    "file-id-shared": _version(file_id="05" * 32),
    "wrapped-key-short": _version(wrapped_key="00"),
    "metadata-null": _version(info=None),
}


@pytest.mark.parametrize("name", RECORD_EDITS)
def test_a_record_wrong_in_one_respect_is_refused(name: str) -> None:
    """Authentic or not, a record of another form is not half understood."""
    assert code_of(lambda: parse_record(_edited(RECORD_EDITS[name]))) == "store_record_malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"\xff\xfe",
        BODY + b" ",
        BODY.replace(b":", b": ", 1),
        BODY.replace(b'"epoch":9', b'"epoch":8,"epoch":9'),
        BODY.replace(b'"opset":17', b'"opset":NaN'),
        BODY.replace(b'"opset":17', b'"opset":1e999'),
        b"[" * 100_000,
        b'{"epoch":' + b"9" * 5000 + b"}",
    ],
)
def test_bytes_that_are_no_canonical_record_are_refused(data: bytes) -> None:
    """Spaces, duplicate members, NaN, depth, digits: only what encodes again to itself is read."""
    assert code_of(lambda: parse_record(data)) == "store_record_malformed"


def test_facts_name_everything_but_the_wrapped_key() -> None:
    """A change of any member of a version, its name or its owner changes the facts its key is bound to."""
    entry = record().names[0].entries[0]
    variants = [entry]
    for field, value in (
        ("file", "f" * 32), ("file_id", bytes(32)), ("length", 1), ("chunk_size", 512), ("chunks", 9),
    ):  # fmt: skip
        variants.append(replace(entry, **{field: value}))
    for field, value in (
        ("name", "x"), ("version", 7), ("owner", "x"), ("access", "public"), ("format", "xgboost-ubj"),
        ("sha256", "1" * 64), ("canonical_sha256", "1" * 64), ("size", 1), ("created", 1),
        ("info", replace(entry.model.info, feature_names=())),
    ):  # fmt: skip
        variants.append(replace(entry, model=replace(entry.model, **{field: value})))
    assert len({variant.facts() for variant in variants}) == len(variants) == 16
    assert replace(entry, wrapped_key=bytes(112)).facts() == entry.facts()


def test_changes_count_epochs_and_keep_tombstones() -> None:
    """Adding and removing give new records; a name without versions keeps owner and next version."""
    old = record()
    entry = old.names[0].entries[0]
    newer = replace(entry, model=replace(entry.model, version=6), file="e" * 32, file_id=b"e" * 32)
    added = old.with_entry(newer, previous="1" * 64)
    assert (added.epoch, added.previous) == (10, "1" * 64)
    assert [e.model.version for e in added.names[0].entries] == [2, 5, 6]
    assert added.names[0].next_version == 7
    fewer = added.without("modèle", frozenset({2, 5, 6}), previous="2" * 64)
    assert (fewer.epoch, fewer.previous) == (11, "2" * 64)
    assert fewer.names[0].entries == () and fewer.names[0].next_version == 7
    assert fewer.names[0].owner == "a1" * 32
    assert parse_record(encode_record(fewer)) == fewer
    first = Record(epoch=1, previous=NO_PREDECESSOR, names=()).with_entry(entry, previous="3" * 64)
    assert first.names[0].next_version == 3


def test_a_record_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused when it is made, before anything is written."""
    monkeypatch.setattr(state, "MAX_RECORD_BYTES", len(BODY) - 1)
    with pytest.raises(LimitExceeded) as caught:
        encode_record(record())
    assert caught.value.code == "store_record_full"
    assert code_of(lambda: parse_state_file(STATE)) == "store_malformed"


def test_an_owner_has_a_share_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """One owner's names, versions and tombstones cannot fill it for the others."""
    owner = record().names[0].owner
    check_share(record(), owner=owner)
    monkeypatch.setattr(state, "OWNER_RECORD_BYTES", 100)
    check_share(record(), owner="nobody here")
    with pytest.raises(LimitExceeded) as caught:
        check_share(record(), owner=owner)
    assert caught.value.code == "owner_record_full"


@pytest.mark.parametrize(
    "change",
    [
        {"canonical_sha256": "short"},
        {"created": -1},
        {"sha256": "0D" * 32},
        {"size": 0},
        {"info": replace(record().names[0].entries[0].model.info, primary_output="none")},
        {"info": replace(record().names[0].entries[0].model.info, notes=(("nested", ((1,),)),))},
        {"info": replace(record().names[0].entries[0].model.info, notes=(("list", [1]),))},
        {"info": replace(record().names[0].entries[0].model.info, notes=(("object", object()),))},
    ],
)
def test_an_entry_that_could_not_be_read_again_is_never_committed(change: dict[str, Any]) -> None:
    """One odd model would otherwise close the whole store at the next start."""
    entry = record().names[0].entries[0]
    verify_entry(entry)
    with pytest.raises(Failure):
        verify_entry(replace(entry, model=replace(entry.model, **change)))


def test_metadata_that_json_cannot_carry_is_our_fault() -> None:
    """NaN in a note would make a record that its own parser refuses: it is not written."""
    entry = record().names[0].entries[0]
    info = replace(entry.model.info, notes=(("missing", float("nan")),))
    with pytest.raises(Failure):
        replace(entry, model=replace(entry.model, info=info)).facts()


@pytest.mark.parametrize("target", ["fuzz_sealed_state", "fuzz_sealed_record"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_give_a_value_or_our_error(target: str, data: st.DataObject) -> None:
    """The oracle: a value or strongroom.errors.Error, nothing else; and nothing unauthentic opens."""
    seed = data.draw(st.sampled_from(targets_sealed.SEEDS[target]))
    at = data.draw(st.integers(0, len(seed) - 1))
    tail = data.draw(st.sampled_from([seed[at + 1 :], b"", seed[at:]]))
    getattr(targets_sealed, target)(seed[:at] + data.draw(st.binary(max_size=8)) + tail)
    getattr(targets_sealed, target)(data.draw(st.binary(max_size=200)))
