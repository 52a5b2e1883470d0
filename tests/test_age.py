"""The age format as it is used here: the specification's example, another program's reading, and every refusal."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from strongroom import age
from strongroom.errors import CODES, AccessRefused, Error, MalformedInput

SECRET_KEY = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
"""Both of the specification, for the key of 32 bytes 0x42."""
IDENTITY = age.parse_identity(SECRET_KEY)
SECRET = bytes(range(32))


def counting() -> Callable[[int], bytes]:
    """Randomness that is the same each time."""
    at = 0

    def random(size: int) -> bytes:
        nonlocal at
        at += 1
        return bytes([at]) * size

    return random


FILE = age.encrypt(SECRET, RECIPIENT, random=counting())


def code_of(action: Callable[[], object], kind: type[Error]) -> str:
    """The code with which it fails."""
    with pytest.raises(kind) as caught:
        action()
    assert caught.value.code in CODES
    return caught.value.code


def test_the_example_of_the_specification() -> None:
    """One key pair, in both spellings and both directions."""
    assert IDENTITY.private_bytes_raw() == b"\x42" * 32
    assert age.recipient_of(IDENTITY) == RECIPIENT and age.encode_identity(IDENTITY) == SECRET_KEY
    assert age.parse_recipient(RECIPIENT) == IDENTITY.public_key().public_bytes_raw()
    assert age.parse_identity(f"# created: today\n# public key: {RECIPIENT}\n{SECRET_KEY}\n\n")


def test_what_is_written_is_pinned() -> None:
    """rage (through pyrage 1.4.0) opened exactly these bytes; a change would be another format."""
    assert FILE.decode("latin-1") == PINNED.decode("latin-1")
    assert age.decrypt(PINNED, IDENTITY) == SECRET


PINNED = bytes.fromhex(
    "6167652d656e6372797074696f6e2e6f72672f76310a2d3e2058323535313920586637644f32765566322b696a754664"
    "6c703162734f70546430314969397235337878754153537a3779490a4f766f4467596d534544344b3561342b4b445849"
    "707a5366425244342f5a72795141656d617559614e59630a2d2d2d20366f5a62635075646345595458346e4f70554f51"
    "50384970415361587971364c70383576526266674a61490a02020202020202020202020202020202a1bb5092c41b4ce5"
    "831b5b906d800e16decea83094344338ce98a0fe8d64fdaf70d385412769f316201ddccab505ab93"
)


def test_any_key_and_secret_come_back() -> None:
    """With fresh randomness no two files are the same."""
    identity = X25519PrivateKey.generate()
    files = [
        age.encrypt(b"s" * size, age.recipient_of(identity), random=os.urandom) for size in (1, 32, 1024)
    ]
    assert [len(age.decrypt(data, identity)) for data in files] == [1, 32, 1024]
    assert age.encrypt(SECRET, RECIPIENT, random=os.urandom) != age.encrypt(
        SECRET, RECIPIENT, random=os.urandom
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "age1",
        RECIPIENT[:-1],
        RECIPIENT + "q",
        RECIPIENT.upper(),
        RECIPIENT.replace("zv", "zw", 1),
        RECIPIENT.replace("age1", "ags1"),
        RECIPIENT.replace("z", "b", 1),
        SECRET_KEY,
        " " + RECIPIENT,
        age._bech32("age", bytes(31)),
        age._bech32("age", bytes(32)),
        age._bech32("age", b"\x01" + bytes(31)),
    ],
    ids=range(13),
)
def test_what_is_no_recipient_is_refused(text: str) -> None:
    """Checksum, case, prefix, length, and points that everybody knows the agreement with."""
    assert code_of(lambda: age.parse_recipient(text), MalformedInput) == "recovery_key_malformed"
    with pytest.raises(MalformedInput):
        age.encrypt(SECRET, text, random=os.urandom)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        SECRET_KEY.lower(),
        SECRET_KEY[:-1],
        f"{SECRET_KEY}\n{SECRET_KEY}",
        RECIPIENT,
        SECRET_KEY[:-1] + "Q",
    ],
    ids=range(7),
)
def test_what_is_no_identity_is_refused(text: str) -> None:
    """And the message does not repeat it."""
    with pytest.raises(MalformedInput) as caught:
        age.parse_identity(text)
    assert (
        caught.value.code == "recovery_key_malformed"
        and SECRET_KEY[20:40] not in caught.value.message.upper()
    )


@pytest.mark.parametrize("size", [0, 1025])
def test_secrets_of_other_sizes_are_refused(size: int) -> None:
    """There is one chunk."""
    with pytest.raises(MalformedInput):
        age.encrypt(bytes(size), RECIPIENT, random=os.urandom)


def test_another_key_does_not_open_it() -> None:
    """It is told apart from an altered file."""
    other = X25519PrivateKey.generate()
    assert code_of(lambda: age.decrypt(FILE, other), AccessRefused) == "recovery_other_key"


def test_every_byte_counts() -> None:
    """Each flipped in turn: refused, with one of the codes, and never a foreign exception."""
    codes = set()
    for at in range(len(FILE)):
        data = FILE[:at] + bytes([FILE[at] ^ 1]) + FILE[at + 1 :]
        with pytest.raises(Error) as caught:
            age.decrypt(data, IDENTITY)
        codes.add(caught.value.code)
    assert codes == {"recovery_file_malformed", "recovery_other_key", "recovery_file_tampered"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        FILE[:-1][:180],
        FILE + bytes(5000),
        FILE.replace(b"v1\n", b"v2\n"),
        FILE.replace(b"-> X25519", b"-> scrypt"),
        FILE.replace(b"\n---", b"\n-> grease\n\n---"),
        FILE.replace(b"\n", b"\r\n"),
        FILE[: FILE.index(b"---") + 48],
    ],
    ids=range(8),
)
def test_files_of_another_form_are_refused(data: bytes) -> None:
    """Other stanzas than ours among them: a reader that passes over what it does not know can be shown two things."""
    assert code_of(lambda: age.decrypt(data, IDENTITY), MalformedInput) == "recovery_file_malformed"
