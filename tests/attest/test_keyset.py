"""`attest.keyset`: one keyset has one spelling, and every field has a known value."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from worlds import SECURITY, Server, ed25519, p256, spki

from strongroom.attest.keyset import (
    MAX_KEYSET,
    VALUES,
    Key,
    encode_keyset,
    keyset_digest,
    parse_keyset,
    parse_security,
)
from strongroom.attest.strict import canonical
from strongroom.errors import MalformedInput

KEYSET = Server().keyset
DATA = encode_keyset(KEYSET)


def code_of(data: bytes) -> str:
    """The code with which `data` is refused."""
    with pytest.raises(MalformedInput) as caught:
        parse_keyset(data)
    return caught.value.code


def changed(**members: Any) -> bytes:
    """The keyset with top-level members replaced, in canonical form."""
    return canonical(json.loads(DATA) | members)


def security(**members: Any) -> bytes:
    """The keyset with members of the security configuration replaced."""
    return changed(security=json.loads(DATA)["security"] | members)


def key(index: int, **members: Any) -> bytes:
    """The keyset with members of one key replaced."""
    keys = json.loads(DATA)["keys"]
    keys[index] |= members
    return changed(keys=keys)


def test_a_keyset_is_read_as_it_was_written() -> None:
    """Encoding and parsing are inverse."""
    assert parse_keyset(DATA) == KEYSET
    assert encode_keyset(parse_keyset(DATA)) == DATA
    assert keyset_digest(DATA) == hashlib.sha256(DATA).digest()
    assert KEYSET.key("receipt").spki == spki(ed25519("server receipt"))


def test_a_remembered_keyset_lets_no_other_pass() -> None:
    """After one that was read, another spelling and another value are refused, each time."""
    for _ in range(2):
        assert parse_keyset(DATA) == KEYSET
        assert code_of(DATA + b"\n") == "keyset_not_canonical"
        assert code_of(changed(binding="none")) == "keyset_binding_unknown"


def test_the_digest_needs_no_parsing() -> None:
    """Hashed first, parsed afterwards: the digest of anything that came can be had."""
    assert keyset_digest(b"not a keyset") == hashlib.sha256(b"not a keyset").digest()


def test_the_encoding_is_pinned() -> None:
    """The members of version 1 in RFC 8785 order; another encoding would be another version."""
    assert DATA.startswith(b'{"binding":"spki","keys":[{"algorithm":"ECDSA-P256","role":"tls","spki":"MFkw')
    assert DATA.endswith(
        b'"not_after":1795478400,"security":{"admission":"structural","anonymous_upload":false,"handover":"none",'
        b'"host_excluded":false,"isolation":"in_process","logging":"no_content","recovery":"none",'
        b'"sandbox":["no_dumps","no_new_privileges"],"sealing":"simulated","verify_on_load":"tags"},"store_id":"cf1e8c14e54505f60aa10ceb8d5d8ab3","version":1}'
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        changed(version=2),
        changed(version=True),
        changed(extra=1),
        changed(keys=[]),
        changed(keys=json.loads(DATA)["keys"][:1]),
        changed(keys=json.loads(DATA)["keys"][::-1]),
        changed(keys=json.loads(DATA)["keys"][:1] * 2),
        changed(keys=json.loads(DATA)["keys"] + json.loads(DATA)["keys"][:1]),
        changed(not_after=0),
        changed(not_after="1795478400"),
        changed(store_id="CF1E8C14E54505F60AA10CEB8D5D8AB3"),
        changed(store_id="00"),
        changed(security=None),
        key(0, role="receipt"),
        key(0, role="hpke"),
        key(0, algorithm="Ed25519"),
        key(0, spki=base64.b64encode(spki(ed25519("x"))).decode()),
        key(0, spki=base64.b64encode(spki(ec.derive_private_key(7, ec.SECP384R1()))).decode()),
        key(1, spki=base64.b64encode(spki(p256("x"))).decode()),
        key(1, spki=base64.b64encode(spki(ed25519("server receipt")) + b"\x00").decode()),
        key(0, spki=""),
        key(0, spki="AAAA"),
        key(0, extra=1),
        security(sealing="none"),
        security(sealing=None),
        security(host_excluded=0),
        security(anonymous_upload="false"),
        security(sandbox=["b", "a"]),
        security(sandbox=["a", "a"]),
        security(sandbox=["No Dumps"]),
        security(sandbox=[1]),
        security(sandbox=[f"layer{i:02}" for i in range(17)]),
        security(isolation="in-process"),
        security(extra=True),
        security(handover=""),
        security(handover="AB" * 32),
        security(handover=None),
        security(recovery="none "),
        security(recovery="age1" + "b" * 58),
        DATA.replace(b"1795478400", b"1795478400.0"),
        canonical({k: v for k, v in json.loads(DATA).items() if k != "binding"}),
    ],
    ids=range(43),
)
def test_a_malformed_keyset_is_refused(data: bytes) -> None:
    """One fault each, of form, number, type or value."""
    assert code_of(data) == "keyset_malformed"


@pytest.mark.parametrize(
    "data",
    [
        DATA + b" ",
        DATA.replace(b":", b": ", 1),
        DATA.replace(b'"tls"', b'"\\u0074ls"'),
        json.dumps(dict(reversed(json.loads(DATA).items())), separators=(",", ":")).encode(),
    ],
)
def test_another_spelling_of_the_same_keyset_is_refused(data: bytes) -> None:
    """White space, escapes and order: what means the same has one spelling."""
    assert code_of(data) == "keyset_not_canonical"


@pytest.mark.parametrize(
    "data",
    [
        DATA.replace(b'"version":1', b'"version":1,"version":1'),
        DATA.replace(b'"anonymous_upload":false', b'"anonymous_upload":false,"anonymous_upload":true'),
    ],
)
def test_a_member_there_twice_is_refused(data: bytes) -> None:
    """At the top and inside, with a code of its own."""
    assert code_of(data) == "keyset_duplicate_member"


def test_another_binding_is_refused_by_name() -> None:
    """A later binding is not dropped silently, nor taken for the one that we know."""
    assert code_of(changed(binding="exporter")) == "keyset_binding_unknown"


def test_a_keyset_is_bounded() -> None:
    """64 KiB, counted before anything is read."""
    assert code_of(DATA + b" " * MAX_KEYSET) == "keyset_malformed"


def test_a_key_is_of_its_roles_algorithm() -> None:
    """A receipt key is Ed25519, whatever the document calls it."""
    with pytest.raises(MalformedInput):
        Key("receipt", "ECDSA-P256", spki(p256("a")))


def test_an_uncompressed_and_a_compressed_point_are_not_two_keys() -> None:
    """The compressed spelling of the same P-256 key is refused: comparisons elsewhere are of bytes."""
    compressed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    numbers = p256("a").public_key().public_numbers()
    point = bytes([2 + (numbers.y & 1)]) + numbers.x.to_bytes(32)
    with pytest.raises(MalformedInput, match="canonical"):
        Key("tls", "ECDSA-P256", compressed + point)


def test_every_value_of_every_field_is_carried() -> None:
    """All known values of the security configuration survive the wire, and each changes the digest."""
    digests = {SECURITY.digest()}
    for name, values in VALUES.items():
        for value in values:
            if value == getattr(SECURITY, name):
                continue
            other = replace(SECURITY, **{name: value})  # type: ignore[arg-type]
            assert parse_security(json.loads(other.encode())) == other
            assert other.digest() not in digests
            digests.add(other.digest())
    assert len(digests) == 1 + sum(len(v) - 1 for v in VALUES.values())
