"""`attest.pck`: Intel's provisioning certificates and revocation lists."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import fake_intel
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from fake_intel import NOW, PROCESSOR, SGX, Intel, entry, integer, pem, tlv

from strongroom.attest.pck import (
    PCK,
    PCK_CAS,
    ROOT,
    SIGNING,
    crl_number,
    fingerprint,
    is_revoked,
    load_chain,
    load_crl,
    parse_pck,
    parse_pem_chain,
    parse_point,
    signed_by,
    validity,
)
from strongroom.attest.pck import pem as spell
from strongroom.errors import MalformedInput

NAMES = ((PCK,), tuple(PCK_CAS), (ROOT,))


def chain(vendor: Intel) -> tuple[x509.Certificate, ...]:
    """The chain of the vendor's quotes."""
    return load_chain(parse_pem_chain(vendor.pck_chain, nul=True), NAMES, code="pck_chain_invalid")


def refused(call: Callable[[], object]) -> str:
    """The code with which `call` refuses."""
    with pytest.raises(MalformedInput) as refusal:
        call()
    return refusal.value.code


@pytest.mark.parametrize("authority", PCK_CAS)
def test_a_chain_of_either_authority_is_read(authority: str) -> None:
    """Leaf, authority, root; valid while all three are."""
    vendor = SGX.but(authority=authority, not_after={"ca": NOW + timedelta(days=1)})
    found = chain(vendor)
    assert validity(found) == (NOW - timedelta(days=400), NOW + timedelta(days=1))
    facts = parse_pck(found[0])
    assert (facts.fmspc, facts.pce_id, facts.pce_svn) == (vendor.fmspc, bytes(2), 5)
    assert facts.components == vendor.components
    assert len(facts.ppid) == 16
    platform = authority != PROCESSOR
    assert (facts.sgx_type, len(facts.configuration)) == ((1, 3) if platform else (0, 0))


WRONG_PEM = {
    "text-before": b"x" + SGX.pck_chain,
    "text-between": SGX.pck_chain.replace(b"-----\n-----", b"-----\n# x\n-----", 1),
    "text-behind": SGX.pck_chain[:-1] + b"x",
    "two-nuls": SGX.pck_chain + b"\0",
    "carriage-returns": SGX.pck_chain.replace(b"\n", b"\r\n"),
    "blank-line": SGX.pck_chain.replace(b"-----\n-----", b"-----\n\n-----", 1),
    "no-last-line-feed": SGX.pck_chain[:-2],
    "lines-of-76": SGX.pck_chain.replace(b"\nMII", b"MII", 1),
    "other-label": SGX.pck_chain.replace(b"CERTIFICATE", b"X509 CRL"),
    "padding-gone": SGX.pck_chain.replace(b"=", b"", 1),
    "padding-bits": SGX.pck_chain.replace(b"A==\n", b"B==\n", 1).replace(b"A=\n", b"B=\n", 1),
    "endless": b"-----BEGIN CERTIFICATE-----\n" + b"A" * 9000 + b"\n-----END CERTIFICATE-----\n",
}


@pytest.mark.parametrize("text", WRONG_PEM.values(), ids=WRONG_PEM.keys())
def test_pem_has_one_spelling(text: bytes) -> None:
    """What readers of PEM skip is signed by nobody; here it is refused."""
    if text == SGX.pck_chain:
        pytest.skip("not exercised here: this chain has no padding to alter")
    assert refused(lambda: parse_pem_chain(text, nul=True)) == "pck_chain_invalid"


def test_lines_of_64_or_76_characters() -> None:
    """Older cloud platforms wrote the leaf at MIME's width; no other width is taken, and none is mixed."""
    ders = parse_pem_chain(SGX.pck_chain, nul=True)
    rest = b"".join(spell(der, width=64) for der in ders[1:])
    assert parse_pem_chain(spell(ders[0], width=76) + rest, nul=True) == ders
    for width in (1, 63, 65, 72, 77, 4000):
        text = spell(ders[0], width=width) + rest
        assert refused(lambda text=text: parse_pem_chain(text, nul=True)) == "pck_chain_invalid"


def test_the_nul_behind_is_the_quotes_only() -> None:
    """C programs leave one NUL in quotes; in a bundle there is none."""
    assert refused(lambda: parse_pem_chain(SGX.pck_chain, nul=False)) == "pck_chain_invalid"


P384 = ec.derive_private_key(7, ec.SECP384R1())
WRONG_CHAINS = {
    "leaf-named-otherwise": SGX.but(names={"pck": "Intel SGX TCB Signing"}),
    "authority-named-otherwise": SGX.but(names={"ca": "Intel SGX PCK Other CA"}),
    "root-named-otherwise": SGX.but(names={"root": "Root"}),
    "leaf-under-the-root": SGX.but(issuer={"pck": "root"}),
    "authority-under-itself": SGX.but(issuer={"ca": "ca"}),
    "key-of-p384": SGX.but(keys={"ca": P384}),
    "leaf-of-another-vendor": SGX.forge(pck_certificate=Intel(name="other").certificate("pck")),
    "authority-of-another-vendor": SGX.forge(ca_certificate=Intel(name="other").certificate("ca")),
    "root-of-another-vendor": SGX.forge(root_certificate=Intel(name="other").certificate("root")),
    "leaf-is-signing": SGX.forge(pck_certificate=SGX.certificate("signing")),
    "leaf-cut": SGX.forge(pck_chain=pem(SGX.certificate("ca"), SGX.certificate("root"))),
    "leaf-twice": SGX.forge(pck_chain=pem(*(SGX.certificate(r) for r in ("pck", "pck", "ca", "root")))),
    "wrong-order": SGX.forge(pck_chain=pem(*(SGX.certificate(r) for r in ("root", "ca", "pck")))),
    "empty": SGX.forge(pck_chain=b""),
}


@pytest.mark.parametrize("vendor", WRONG_CHAINS.values(), ids=WRONG_CHAINS.keys())
def test_what_is_no_pck_chain_is_refused(vendor: Intel) -> None:
    """Places, names, issuers, keys: one wrong each."""
    assert refused(lambda: chain(vendor)) == "pck_chain_invalid"


def _unused_bit(data: bytes, signature: bytes) -> bytes:
    """The same certificate or list, with the last bit of its signature called unused."""
    at = len(data) - len(signature) - 1
    assert data[at] == 0 and data.endswith(signature)
    return data[:at] + b"\x01" + data[at + 1 :]


def test_a_signature_with_unused_bits_is_refused() -> None:
    """Where its last bit is zero, it says the same: nobody signed which spelling it was, so there is one."""
    tried = 0
    for fmspc in range(4):
        vendor = SGX.but(fmspc=bytes([fmspc] * 6))
        ders = parse_pem_chain(vendor.pck_chain, nul=True)
        for at, one in enumerate(chain(vendor)):
            if one.signature[-1] & 1:
                continue
            tried += 1
            changed = (*ders[:at], _unused_bit(ders[at], one.signature), *ders[at + 1 :])
            assert x509.load_der_x509_certificate(changed[at]).signature == one.signature
            assert (
                refused(lambda d=changed: load_chain(d, NAMES, code="pck_chain_invalid"))
                == "pck_chain_invalid"
            )
    assert tried


def test_bytes_that_are_no_certificate_are_refused() -> None:
    """Also where `cryptography` raises errors of its own."""
    for data in (b"", b"\x30\x00", b"\x00" * 100, SGX.certificate("pck")[:-1]):
        ders = (data, SGX.certificate("ca"), SGX.certificate("root"))
        assert (
            refused(lambda ders=ders: load_chain(ders, NAMES, code="pck_chain_invalid"))
            == "pck_chain_invalid"
        )


TCB = [entry((2, i), integer(5)) for i in range(1, 17)]
LAST = [entry((2, 17), integer(5)), entry((2, 18), tlv(0x04, bytes(16)))]
FIRST, SECOND = entry((1,), tlv(0x04, bytes(16))), entry((2,), tlv(0x30, *TCB, *LAST))
REST = [entry((3,), tlv(0x04, bytes(2))), entry((4,), tlv(0x04, bytes(6))), entry((5,), integer(0, 0x0A))]
WRONG_EXTENSIONS = {
    "empty": b"",
    "empty-sequence": tlv(0x30),
    "trailing": tlv(0x30, FIRST, SECOND, *REST) + b"\0",
    "ppid-missing": tlv(0x30, SECOND, *REST),
    "ppid-short": tlv(0x30, entry((1,), tlv(0x04, bytes(15))), SECOND, *REST),
    "ppid-twice": tlv(0x30, FIRST, FIRST, SECOND, *REST),
    "ppid-an-integer": tlv(0x30, entry((1,), integer(1)), SECOND, *REST),
    "foreign-oid": tlv(0x30, FIRST, SECOND, *REST, tlv(0x30, tlv(0x06, b"\x2a\x03"), integer(1))),
    "three-in-a-pair": tlv(0x30, FIRST, SECOND, *REST, tlv(0x30, tlv(0x06, b"\x2a"), integer(1), integer(1))),
    "component-missing": tlv(0x30, FIRST, entry((2,), tlv(0x30, *TCB[1:], *LAST)), *REST),
    "component-256": tlv(
        0x30, FIRST, entry((2,), tlv(0x30, entry((2, 1), integer(256)), *TCB[1:], *LAST)), *REST
    ),
    "component-negative": tlv(
        0x30, FIRST, entry((2,), tlv(0x30, entry((2, 1), tlv(2, b"\xff")), *TCB[1:], *LAST)), *REST
    ),
    "component-padded": tlv(
        0x30, FIRST, entry((2,), tlv(0x30, entry((2, 1), tlv(2, b"\0\5")), *TCB[1:], *LAST)), *REST
    ),
    "fmspc-short": tlv(0x30, FIRST, SECOND, REST[0], entry((4,), tlv(0x04, bytes(5))), REST[2]),
    "type-an-integer": tlv(0x30, FIRST, SECOND, *REST[:2], entry((5,), integer(0))),
    "configuration-not-boolean": tlv(
        0x30, FIRST, SECOND, *REST, entry((7,), tlv(0x30, entry((7, 1), tlv(0x01, b"\1"))))
    ),
    "long-form-of-a-short-length": b"\x30\x81\x05" + bytes(5),
    "cut": tlv(0x30, FIRST, SECOND, *REST)[:-1],
}


@pytest.mark.parametrize("extension", WRONG_EXTENSIONS.values(), ids=WRONG_EXTENSIONS.keys())
def test_what_is_no_sgx_extension_is_refused(extension: bytes) -> None:
    """A PCK certificate that says too little or something twice certifies nothing."""
    leaf = chain(SGX.forge(sgx_extension=extension))[0]
    assert refused(lambda: parse_pck(leaf)) == "pck_chain_invalid"


def test_a_leaf_without_the_extension_is_no_pck_certificate() -> None:
    """The extension is what makes it one."""
    leaf = chain(SGX.forge(no_sgx_extension=b""))[0]
    assert refused(lambda: parse_pck(leaf)) == "pck_chain_invalid"
    assert parse_pck(chain(SGX.forge(sgx_extension=tlv(0x30, FIRST, SECOND, *REST)))[0]).pce_svn == 5


def test_signatures_are_raw_and_64_bytes() -> None:
    """Another key, another message, another size, zeros: none passes."""
    key = SGX.key("pck")
    good = fake_intel.sign(key, b"message")
    assert signed_by(key.public_key(), good, b"message")
    for signature in (b"", good[:63], good + b"\0", bytes(64), b"\xff" * 64, good[32:] + good[:32]):
        assert not signed_by(key.public_key(), signature, b"message")
    assert not signed_by(key.public_key(), good, b"messag")
    assert not signed_by(SGX.key("ca").public_key(), good, b"message")


def test_a_key_off_the_curve_is_refused() -> None:
    """Coordinates that satisfy no equation, and none at all."""
    assert parse_point(fake_intel.point(SGX.key("pck")))
    for raw in (bytes(64), b"\1" * 64, b"\xff" * 64):
        assert refused(lambda raw=raw: parse_point(raw)) == "attestation_key_unbound"


def test_revocation_lists_are_of_the_authority_and_complete() -> None:
    """Signed by another key, by another name, no list at all, cut off."""
    _, authority, root = chain(SGX)
    found = load_crl(SGX.crl("ca"), authority, name="PCK CRL")
    assert crl_number(found) == "7"
    assert not is_revoked(found, chain(SGX)[0])
    listed = load_crl(SGX.but(revoked=("pck",)).crl("ca"), authority, name="PCK CRL")
    assert is_revoked(listed, chain(SGX)[0])
    for data, code in (
        (SGX.crl("root"), "collateral_signature_invalid"),
        (SGX.but(signers={"ca_crl": "root"}).crl("ca"), "collateral_signature_invalid"),
        (Intel(name="other").crl("ca"), "collateral_signature_invalid"),
        (SGX.crl("ca")[:-1], "collateral_malformed"),
        (b"", "collateral_malformed"),
        (SGX.certificate("ca"), "collateral_malformed"),
    ):
        assert refused(lambda data=data: load_crl(data, authority, name="PCK CRL")) == code
    assert refused(lambda: load_crl(SGX.crl("ca"), root, name="root CRL")) == "collateral_signature_invalid"


def test_an_authority_that_may_not_sign_lists_clears_nobody() -> None:
    """The very key, and a list that verifies with it; its certificate says that it signs certificates alone."""
    _, authority, _ = chain(SGX)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.crl_sign
    builder = x509.CertificateBuilder(
        authority.issuer, authority.subject, authority.public_key(), 7, NOW, NOW + timedelta(days=9)
    )
    silent = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    for extension, code in ((silent, "collateral_signature_invalid"), (None, "collateral_malformed")):
        made = builder.add_extension(extension, critical=True) if extension else builder
        other = made.sign(SGX.key("root"), SHA256())
        refusal = refused(lambda other=other: load_crl(SGX.crl("ca"), other, name="PCK CRL"))
        assert refusal == code


def test_fingerprints_are_of_the_whole_certificate() -> None:
    """Not of the key: two certificates of one root key are two anchors."""
    assert fingerprint(SGX.certificate("root")) == SGX.root
    assert SGX.root != SGX.but(not_after={"root": NOW + timedelta(days=9)}).root
    assert SIGNING == fake_intel.SIGNING
