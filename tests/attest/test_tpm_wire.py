"""`attest.tpm_wire`: the TPM's structures, read strictly."""

from __future__ import annotations

import struct

import fake_tpm as fake
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fake_tpm import Tpm, sized

from strongroom.attest.tpm_wire import MAX_QUALIFYING, Selection, parse_attest, parse_public, parse_signature
from strongroom.errors import MalformedInput

TPM = Tpm()
ATTEST = TPM.attest
HEAD = struct.pack(">IH", 0xFF544347, 0x8018)
CLOCK = struct.pack(">QIIB", 5, 6, 7, 0)


def attest(
    *,
    qualifying: bytes = b"q",
    clock: bytes = CLOCK,
    selections: bytes | None = None,
    digest: bytes = bytes(32),
) -> bytes:
    """A quote spelled out."""
    chosen = (
        struct.pack(">I", 1) + fake.selection(fake.SHA256, (0, 8, 23)) if selections is None else selections
    )
    return HEAD + sized(b"signer") + sized(qualifying) + clock + struct.pack(">Q", 8) + chosen + sized(digest)


def test_every_field_of_a_quote_is_read() -> None:
    """In the order and sizes of the TPM's own structure."""
    found = parse_attest(attest(qualifying=b"qualifying"))
    assert (found.signer, found.qualifying) == (b"signer", b"qualifying")
    assert (found.clock, found.resets, found.restarts, found.safe, found.firmware) == (5, 6, 7, False, 8)
    assert found.selections == (Selection(fake.SHA256, (0, 8, 23)),)
    assert found.pcr_digest == bytes(32)


def test_no_prefix_of_a_quote_is_a_quote() -> None:
    """Every truncation is refused."""
    for size in range(len(ATTEST)):
        with pytest.raises(MalformedInput):
            parse_attest(ATTEST[:size])


QUOTES = {
    "something behind": (ATTEST + b"\0", "evidence_malformed"),
    "other magic": (b"\0" + ATTEST[1:], "tpm_not_generated"),
    "certify": (ATTEST[:4] + struct.pack(">H", 0x8017) + ATTEST[6:], "tpm_not_a_quote"),
    "qualifying data too long": (attest(qualifying=bytes(MAX_QUALIFYING + 1)), "evidence_malformed"),
    "safe is 2": (attest(clock=CLOCK[:-1] + b"\2"), "evidence_malformed"),
    "five banks": (
        attest(selections=struct.pack(">I", 5) + fake.selection(fake.SHA256, (0,)) * 5),
        "evidence_malformed",
    ),
    "four thousand million banks": (attest(selections=b"\xff" * 4), "evidence_malformed"),
    "a bitmap of two bytes": (
        attest(selections=struct.pack(">I", 1) + fake.selection(fake.SHA256, (0,), 2)),
        "evidence_malformed",
    ),
    "a bitmap of four bytes": (
        attest(selections=struct.pack(">I", 1) + fake.selection(fake.SHA256, (0,), 4)),
        "evidence_malformed",
    ),
    "a digest too long": (attest(digest=bytes(65)), "evidence_malformed"),
    "far too long": (bytes(4097), "evidence_malformed"),
}


@pytest.mark.parametrize("wrong", QUOTES)
def test_a_quote_out_of_form_is_refused(wrong: str) -> None:
    """One fault each."""
    data, code = QUOTES[wrong]
    with pytest.raises(MalformedInput) as caught:
        parse_attest(data)
    assert caught.value.code == code


def test_keys_are_read_with_their_names() -> None:
    """A Name is the hash's algorithm and the hash of the whole public area."""
    for kind, name_hash in (("rsa2048", fake.SHA256), ("p256", fake.SHA384), ("p384", fake.SHA512)):
        key = fake.key(kind, "k")
        area = fake.public_area(key, name_hash=name_hash)
        found = parse_public(area)
        assert found.key.public_numbers() == key.public_key().public_numbers()
        assert (
            found.name
            == struct.pack(">H", name_hash) + fake.hashlib.new(fake.NAMES[name_hash], area).digest()
        )
        assert found.attributes == fake.ATTRIBUTES
    assert isinstance(parse_public(fake.public_area(fake.key("rsa2048", "k"))).key, rsa.RSAPublicKey)
    assert isinstance(parse_public(fake.public_area(fake.key("p256", "k"))).key, ec.EllipticCurvePublicKey)


def test_a_symmetric_definition_is_stepped_over() -> None:
    """Only storage keys have one; the attributes say what the key is."""
    assert parse_public(fake.public_area(fake.ec_key("k"), symmetric=fake.AES)).scheme == "ECDSA"


def test_no_prefix_of_a_key_is_a_key() -> None:
    """Every truncation is refused."""
    for kind in ("rsa2048", "p256"):
        area = fake.public_area(fake.key(kind, "k"))
        for size in range(len(area)):
            with pytest.raises(MalformedInput):
                parse_public(area[:size])


RSA_AREA, ECC_AREA = fake.public_area(fake.key("rsa2048", "k")), fake.public_area(fake.ec_key("k"))
KEYS = {
    "something behind": (ECC_AREA + b"\0", "evidence_malformed"),
    "SHA-1 name": (fake.public_area(fake.ec_key("k"), name_hash=fake.SHA1), "tpm_key_unsupported"),
    "keyed hash": (fake.public_area(fake.ec_key("k"), kind=0x0008), "tpm_key_unsupported"),
    "symmetric": (fake.public_area(fake.ec_key("k"), kind=0x0025), "tpm_key_unsupported"),
    "no scheme": (fake.public_area(fake.ec_key("k"), scheme=fake.NULL), "tpm_key_unsupported"),
    "RSAPSS": (fake.public_area(fake.key("rsa2048", "k"), scheme=fake.RSAPSS), "tpm_key_unsupported"),
    "ECDAA": (fake.public_area(fake.ec_key("k"), scheme=0x001A), "tpm_key_unsupported"),
    "RSA with ECDSA": (fake.public_area(fake.key("rsa2048", "k"), scheme=fake.ECDSA), "tpm_key_unsupported"),
    "ECDSA with SHA-1": (fake.public_area(fake.ec_key("k"), scheme_hash=fake.SHA1), "tpm_key_unsupported"),
    "exponent 3": (fake.public_area(fake.key("rsa2048", "k"), exponent=3), "tpm_key_unsupported"),
    "RSA-1024": (fake.public_area(fake.rsa_key("k", 1024)), "tpm_key_unsupported"),
    "another size": (fake.public_area(fake.key("rsa2048", "k"), bits=3072), "evidence_malformed"),
    "a modulus with a leading zero": (RSA_AREA[:-256] + bytes(256), "evidence_malformed"),
    "an even modulus": (RSA_AREA[:-1] + bytes([RSA_AREA[-1] & 0xFE]), "evidence_malformed"),
    "BN-256": (fake.public_area(fake.ec_key("k"), curve=0x0010), "tpm_key_unsupported"),
    "no point of the curve": (ECC_AREA[:-1] + bytes([ECC_AREA[-1] ^ 1]), "evidence_malformed"),
}


@pytest.mark.parametrize("wrong", KEYS)
def test_a_key_out_of_form_is_refused(wrong: str) -> None:
    """One fault each."""
    data, code = KEYS[wrong]
    with pytest.raises(MalformedInput) as caught:
        parse_public(data)
    assert caught.value.code == code


def test_signatures_are_read() -> None:
    """RSASSA has one value, ECDSA two."""
    assert parse_signature(struct.pack(">HH", fake.RSASSA, fake.SHA256) + sized(b"s")).first == b"s"
    found = parse_signature(struct.pack(">HH", fake.ECDSA, fake.SHA384) + sized(b"r") + sized(b"s"))
    assert (found.scheme, found.hash, found.first, found.second) == ("ECDSA", fake.SHA384, b"r", b"s")


SIGNATURES = {
    "empty": (b"", "evidence_malformed"),
    "RSAPSS": (struct.pack(">HH", fake.RSAPSS, fake.SHA256) + sized(b"s"), "tpm_signature_scheme"),
    "HMAC": (struct.pack(">HH", 0x0005, fake.SHA256) + sized(b"s"), "tpm_signature_scheme"),
    "none": (struct.pack(">H", fake.NULL), "evidence_malformed"),
    "SHA-1": (struct.pack(">HH", fake.RSASSA, fake.SHA1) + sized(b"s"), "tpm_signature_scheme"),
    "ECDSA with one value": (struct.pack(">HH", fake.ECDSA, fake.SHA256) + sized(b"r"), "evidence_malformed"),
    "something behind": (
        struct.pack(">HH", fake.RSASSA, fake.SHA256) + sized(b"s") + b"\0",
        "evidence_malformed",
    ),
    "too long": (struct.pack(">HH", fake.RSASSA, fake.SHA256) + sized(bytes(513)), "evidence_malformed"),
}


@pytest.mark.parametrize("wrong", SIGNATURES)
def test_a_signature_out_of_form_is_refused(wrong: str) -> None:
    """One fault each."""
    data, code = SIGNATURES[wrong]
    with pytest.raises(MalformedInput) as caught:
        parse_signature(data)
    assert caught.value.code == code
