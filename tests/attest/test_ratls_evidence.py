"""`attest.ratls_evidence` and `attest.ratls_forms`: certificates as sources of evidence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import cbor2
import fake_aws
import pytest
from conftest import SHARED
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from fake_ratls import (
    DICE,
    GRAMINE,
    INTEL,
    NOW,
    OPEN_ENCLAVE,
    OPEN_ENCLAVE_NEW,
    PLAIN,
    SIM_ROOT,
    WITH_NULL,
    both_gramine,
    certificate,
    claims_map,
    digest,
    examine_quote,
    header,
    interoperable,
    key,
    nitro_name,
    own_sim,
    pem,
    quote,
    respelt,
    rsa_key,
    seq,
    spki,
    tagged,
)

from strongroom import ratls
from strongroom.attest import sim
from strongroom.attest.evidence import (
    NOT_MADE,
    Absent,
    Claims,
    Evidence,
    Examination,
    boot_report_data,
    report_data,
)
from strongroom.attest.nitro import PINNED_ROOTS, examine_nitro
from strongroom.attest.ratls_evidence import (
    CertificateExamination,
    check_binding,
    examine_certificate,
    examine_ratls,
)
from strongroom.attest.ratls_forms import parse_certificate, parse_key_hash
from strongroom.errors import CODES, MalformedInput

MINE, OTHER = key(), key("mallory")
P384 = key(curve=ec.SECP384R1())
DER, TEXT = digest(spki(MINE)), digest(pem(MINE))
EXAMINERS: dict[str, Callable[..., Examination]] = {
    "sgx": examine_quote,
    "nitro": examine_nitro,
    "sim": sim.examine_sim,
}
ROOTS = {"nitro": (fake_aws.ROOT,), "sim": (sim.root_digest(SIM_ROOT.public_key()),)}


def examine(der: bytes, now: datetime = NOW) -> CertificateExamination:
    """What is found about the certificate `der`."""
    return examine_certificate(der, now=now)


def failures(found: CertificateExamination | Examination) -> list[str]:
    """Codes of the failed checks."""
    return [c.code for c in found.checks if not c.passed]


def whole(der: bytes, now: datetime = NOW) -> Examination:
    """What is found about the certificate and about the evidence in it."""
    return examine_ratls(der, endorsements=(), roots=ROOTS, now=now, examiners=EXAMINERS)


# --- what passes --------------------------------------------------------------------------------------------

RSA = rsa_key()
ACCEPTED: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "interoperable": (interoperable(), [("interoperable", "sgx")]),
    "with a nonce and unknown claims": (
        interoperable(nonce=b"n" * 32, key_0=b"value\x00"),
        [("interoperable", "sgx")],
    ),
    "of P-384": (interoperable(P384), [("interoperable", "sgx")]),
    "of RSA": (interoperable(RSA), [("interoperable", "sgx")]),
    "with a hash of SHA-384": (
        interoperable(pubkey_hash=cbor2.dumps([7, hashlib.sha384(spki(MINE)).digest()])),
        [("interoperable", "sgx")],
    ),
    "with a hash of SHA-512": (
        interoperable(pubkey_hash=cbor2.dumps([8, hashlib.sha512(spki(MINE)).digest()])),
        [("interoperable", "sgx")],
    ),
    "with a critical extension": (
        certificate((DICE, tagged(claims_map(MINE))), critical=[DICE]),
        [("interoperable", "sgx")],
    ),
    "with a TDX quote of version 4": (
        certificate((DICE, tagged(claims_map(MINE), quote(digest(claims_map(MINE)), version=4, tdx=True)))),
        [("interoperable", "tdx")],
    ),
    "with a TDX quote of version 5": (
        certificate((DICE, tagged(claims_map(MINE), quote(digest(claims_map(MINE)), version=5, tdx=True)))),
        [("interoperable", "tdx")],
    ),
    "with an SGX quote of version 4": (
        certificate((DICE, tagged(claims_map(MINE), quote(digest(claims_map(MINE)), version=4)))),
        [("interoperable", "sgx")],
    ),
    "with an SGX quote of version 5": (
        certificate((DICE, tagged(claims_map(MINE), quote(digest(claims_map(MINE)), version=5)))),
        [("interoperable", "sgx")],
    ),
    "Gramine": (certificate((GRAMINE, quote(DER))), [("gramine", "sgx")]),
    "Gramine, both, with NULL": (both_gramine(), [("interoperable", "sgx"), ("gramine", "sgx")]),
    "Gramine with NULL, P-256": (respelt(certificate((GRAMINE, quote(DER)))), [("gramine", "sgx")]),
    "Open Enclave": (certificate((OPEN_ENCLAVE, header(quote(TEXT)))), [("open-enclave", "sgx")]),
    "EGo": (certificate((OPEN_ENCLAVE_NEW, header(quote(DER)))), [("open-enclave", "sgx")]),
    "EGo with text": (certificate((OPEN_ENCLAVE_NEW, header(quote(TEXT)))), [("open-enclave", "sgx")]),
    "Intel's SDK": (certificate((INTEL, quote(TEXT))), [("intel", "sgx")]),
    "Nitro in a name": (nitro_name(), [("nitro-name", "nitro")]),
    "Nitro in a name, self-signed": (nitro_name(issuer="RATLS", signer=MINE), [("nitro-name", "nitro")]),
    "ours": (own_sim(), [("strongroom", "sim")]),
    "ours with SGX": (
        certificate(
            (DICE, tagged(claims_map(MINE, format=b"sgx"), quote(boot_report_data(spki=spki(MINE)))))
        ),
        [("strongroom", "sgx")],
    ),
    "ours with Nitro": (
        certificate(
            (
                DICE,
                tagged(
                    claims_map(MINE, format=b"nitro"),
                    fake_aws.mint(user_data=boot_report_data(spki=spki(MINE))),
                ),
            )
        ),
        [("strongroom", "nitro")],
    ),
    "valid from this very second": (
        certificate((DICE, tagged(claims_map(MINE))), begins=NOW),
        [("interoperable", "sgx")],
    ),
    "valid until this very second": (
        certificate((DICE, tagged(claims_map(MINE))), ends=NOW),
        [("interoperable", "sgx")],
    ),
    "with dstack's beside it": (
        certificate((DICE, tagged(claims_map(MINE))), ("1.3.6.1.4.1.62397.1.1", b"x")),
        [("interoperable", "sgx")],
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_form_is_read_and_its_binding_verified(name: str) -> None:
    """The forms of §3, each with its own rule."""
    der, expected = ACCEPTED[name]
    found = examine(der)
    assert failures(found) == []
    assert found.passed
    assert [(one.source, one.format) for one in found.found] == expected


def test_checks_say_what_was_found() -> None:
    """The fault where there is one, else what passed."""
    got = {c.id: c.got for c in examine(ACCEPTED["interoperable"][0]).checks}
    assert (got["certificate.signature"], got["certificate.key"]) == ("a valid signature", "secp256r1")
    assert got["certificate.evidence"] == "interoperable: sgx"
    assert got["certificate.key_hash"] == "this key's"
    assert got["certificate.binding"] == digest(CLAIMS).hex()
    got = {c.id: c.got for c in examine(certificate((DICE, tagged(CLAIMS)), signer=OTHER)).checks}
    assert got["certificate.signature"] == "a signature that does not verify"


def test_our_own_servers_certificate_satisfies_the_reader() -> None:
    """As `ratls.new_server_identity` makes it: the form of §3.2, with simulated evidence that passes in turn."""

    def evidence(data: bytes) -> Evidence:
        issued = sim.issue(root_key=SIM_ROOT, measurement="ab" * 32, svn=1, report_data=data, now=NOW)
        return Evidence("sim", issued, ())

    made = ratls.new_server_identity(
        hosts=("localhost",), evidence_format="sim", evidence=evidence, now=NOW, lifetime_s=3600
    )
    found = whole(made.certificate_der)
    assert failures(found) == []
    assert isinstance(found.claims, Claims)
    assert (found.claims.simulated, found.claims.measurement) == (True, "ab" * 32)
    assert examine(made.certificate_der).spki == made.spki
    assert found.claims.report_data == boot_report_data(spki=made.spki)


@pytest.mark.parametrize("name", ["ours", "Nitro in a name", "Gramine, both, with NULL", "Intel's SDK"])
def test_certificate_and_evidence_are_examined_together(name: str) -> None:
    """Checks of the certificate, then of each evidence; the claims are those of the first."""
    found = whole(ACCEPTED[name][0])
    assert failures(found) == []
    assert isinstance(found.claims, Claims)
    ids = [c.id for c in found.checks]
    assert len(set(ids)) == len(ids)
    assert "evidence.binding" in ids
    assert ("evidence.binding.2" in ids) == ("certificate.agreement" in ids) == ("both" in name)


# --- one thing wrong ----------------------------------------------------------------------------------------

ALIEN = interoperable(OTHER)
ALIEN_VALUE = x509.load_der_x509_certificate(ALIEN).extensions[1].value.public_bytes()
UNKNOWN = "1.2.3.4"
CLAIMS = claims_map(MINE)
DOCUMENT = fake_aws.mint(user_data=spki(MINE)).hex()
EDWARDS = ed25519.Ed25519PrivateKey.from_private_bytes(b"e" * 32)


def of_ed25519() -> bytes:
    """A self-signed certificate of another kind of key."""
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, EDWARDS.public_key(), 1, NOW, NOW + timedelta(days=1))
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(GRAMINE), quote(DER))
    return builder.add_extension(extension, critical=False).sign(EDWARDS, None).public_bytes(Encoding.DER)


def swapped(der: bytes, old: bytes, new: bytes) -> bytes:
    """`der` with one piece in place of another of the same size."""
    assert der.count(old) >= 1
    assert len(old) == len(new)
    return der.replace(old, new, 1)


SHA224, SHA1 = bytes.fromhex("300a06082a8648ce3d040301"), bytes.fromhex("300906072a8648ce3d0401")
RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")

REFUSED: dict[str, tuple[bytes, list[str]]] = {
    # the binding: evidence that was made for another key
    "CVE-2026-33697: evidence relayed in the attacker's own certificate": (
        certificate((DICE, ALIEN_VALUE)),
        ["ratls_key_mismatch"],
    ),
    "CVE-2026-33697: with the attacker's own claims beside the relayed quote": (
        certificate((DICE, tagged(CLAIMS, quote(digest(claims_map(OTHER)))))),
        ["ratls_binding"],
    ),
    "Gramine's quote of another key": (certificate((GRAMINE, quote(digest(spki(OTHER))))), ["ratls_binding"]),
    "Open Enclave's quote of another key": (
        certificate((OPEN_ENCLAVE, header(quote(digest(pem(OTHER)))))),
        ["ratls_binding"],
    ),
    "Intel's quote of another key": (certificate((INTEL, quote(digest(pem(OTHER))))), ["ratls_binding"]),
    "a Nitro document of another key": (nitro_name(user_data=spki(OTHER)), ["ratls_binding"]),
    "our evidence of another key": (
        own_sim(report_data=boot_report_data(spki=spki(OTHER))),
        ["ratls_binding"],
    ),
    "our evidence that answers a nonce": (
        own_sim(report_data=report_data(nonce=bytes(32), keyset_bytes=b"{}")),
        ["ratls_binding"],
    ),
    "ours with the binding of others": (own_sim(report_data=digest(CLAIMS)), ["ratls_binding"]),
    "others with the binding of ours": (
        certificate((DICE, tagged(CLAIMS, quote(boot_report_data(spki=spki(MINE)))))),
        ["ratls_binding"],
    ),
    "Gramine's binding in Intel's form": (certificate((INTEL, quote(DER))), ["ratls_binding"]),
    "Intel's binding in Gramine's form": (certificate((GRAMINE, quote(TEXT))), ["ratls_binding"]),
    "PEM without its NUL": (
        certificate((OPEN_ENCLAVE, header(quote(digest(pem(MINE)[:-1]))))),
        ["ratls_binding"],
    ),
    "something in the second half of report data": (
        certificate((GRAMINE, quote(DER[:32] + b"\x01" + bytes(31)))),
        ["ratls_binding"],
    ),
    "report data of zeros": (certificate((GRAMINE, quote(bytes(64)))), ["ratls_binding"]),
    "skipped comparison (Cocos): no user data": (nitro_name(user_data=b""), ["ratls_binding"]),
    "skipped comparison (Cocos): half of the user data": (
        nitro_name(user_data=spki(MINE)[:64]),
        ["ratls_binding"],
    ),
    "a hash of SHA-256 as user data": (
        nitro_name(user_data=hashlib.sha256(spki(MINE)).digest()),
        ["ratls_binding"],
    ),
    "the second of two of another key": (
        certificate((DICE, tagged(CLAIMS)), (GRAMINE, quote(digest(spki(OTHER))))),
        ["ratls_binding"],
    ),
    "the first of two of another key": (
        certificate((DICE, ALIEN_VALUE), (GRAMINE, quote(DER))),
        ["ratls_key_mismatch"],
    ),
    # the hash of the key
    "skipped comparison (Cocos): no pubkey-hash": (
        interoperable(pubkey_hash=None),
        ["ratls_extension", "ratls_binding"],
    ),
    "skipped comparison (Cocos): an empty hash": (
        interoperable(pubkey_hash=cbor2.dumps([1, b""])),
        ["ratls_key_mismatch"],
    ),
    "half a hash": (
        interoperable(pubkey_hash=cbor2.dumps([1, hashlib.sha256(spki(MINE)).digest()[:16]])),
        ["ratls_key_mismatch"],
    ),
    "a hash of another algorithm than stated": (
        interoperable(pubkey_hash=cbor2.dumps([7, hashlib.sha256(spki(MINE)).digest()])),
        ["ratls_key_mismatch"],
    ),
    "a hash of the right size and another algorithm": (
        interoperable(pubkey_hash=cbor2.dumps([8, hashlib.sha3_512(spki(MINE)).digest()])),
        ["ratls_key_mismatch"],
    ),
    "a right hash under an algorithm that nobody registered": (
        interoperable(pubkey_hash=cbor2.dumps([2, hashlib.sha256(spki(MINE)).digest()])),
        ["ratls_key_mismatch"],
    ),
    "a hash of the text of the key": (
        interoperable(pubkey_hash=cbor2.dumps([1, hashlib.sha256(pem(MINE)).digest()])),
        ["ratls_key_mismatch"],
    ),
    "an algorithm by its name": (
        interoperable(pubkey_hash=cbor2.dumps(["sha-256", hashlib.sha256(spki(MINE)).digest()])),
        ["ratls_extension", "ratls_binding"],
    ),
    "another nonce claim than the quoted one": (
        certificate((DICE, tagged(claims_map(MINE, nonce=b"n" * 32), quote(digest(claims_map(MINE)))))),
        ["ratls_binding"],
    ),
    "a nonce claim that is no byte string": (
        interoperable(nonce="n" * 32),
        ["ratls_extension", "ratls_binding"],
    ),
    "a hash cut to 120 bits": (
        interoperable(pubkey_hash=cbor2.dumps([3, hashlib.sha256(spki(MINE)).digest()[:15]])),
        ["ratls_key_mismatch"],
    ),
    "a hash of the point alone": (
        interoperable(pubkey_hash=cbor2.dumps([1, hashlib.sha256(spki(MINE)[-65:]).digest()])),
        ["ratls_key_mismatch"],
    ),
    "a hash that is no array": (
        interoperable(pubkey_hash=hashlib.sha256(spki(MINE)).digest()),
        ["ratls_extension", "ratls_binding"],
    ),
    "a hash with bytes behind": (
        interoperable(pubkey_hash=cbor2.dumps([1, hashlib.sha256(spki(MINE)).digest()]) + b"\x00"),
        ["ratls_extension", "ratls_binding"],
    ),
    # the extensions
    "no evidence": (certificate((UNKNOWN, b"x")), ["ratls_extension", "ratls_binding"]),
    "only Open Enclave's other kind": (
        certificate(("1.3.6.1.4.1.311.105.2", b"x")),
        ["ratls_evidence_unsupported", "ratls_binding"],
    ),
    "only dstack's": (
        certificate(("1.3.6.1.4.1.62397.1.8", b"x")),
        ["ratls_evidence_unsupported", "ratls_binding"],
    ),
    "Gramine's OID in its right spelling": (
        certificate(("1.2.840.113741.1337.6", quote(DER))),
        ["ratls_extension", "ratls_binding"],
    ),
    "a local report": (
        certificate((DICE, tagged(CLAIMS, tag=60001))),
        ["ratls_evidence_unsupported", "ratls_binding"],
    ),
    "another local report": (
        certificate((DICE, tagged(CLAIMS, tag=60002))),
        ["ratls_evidence_unsupported", "ratls_binding"],
    ),
    "another tag": (certificate((DICE, tagged(CLAIMS, tag=60011))), ["ratls_extension", "ratls_binding"]),
    "no tag": (certificate((DICE, tagged(CLAIMS)[3:])), ["ratls_extension", "ratls_binding"]),
    "bytes behind the evidence": (
        certificate((DICE, tagged(CLAIMS) + b"\x00")),
        ["ratls_extension", "ratls_binding"],
    ),
    "a claim twice": (
        certificate((DICE, tagged(b"\xa2" + 2 * CLAIMS[1:]))),
        ["ratls_extension", "ratls_binding"],
    ),
    "claims without a length": (
        certificate((DICE, tagged(b"\xbf" + CLAIMS[1:] + b"\xff"))),
        ["ratls_extension", "ratls_binding"],
    ),
    "an empty quote": (
        certificate((DICE, tagged(CLAIMS, b""))),
        ["ratls_evidence_unsupported", "ratls_binding"],
    ),
    "an EPID quote": (
        certificate((GRAMINE, quote(DER, version=2))),
        ["ratls_evidence_unsupported", "ratls_binding"],
    ),
    "a quote that ends in its report data": (
        certificate((GRAMINE, quote(DER)[:431])),
        ["ratls_extension", "ratls_binding"],
    ),
    "a PCK certificate's extension, which has the OID of Intel's form": (
        certificate(
            (INTEL, seq(seq(bytes.fromhex("060a2a864886f84d010d0101") + seq(bytes(16), 4)) + bytes(200)))
        ),
        ["ratls_evidence_unsupported", "ratls_binding"],
    ),
    "a quote of an unknown TEE": (
        certificate((GRAMINE, b"\x04\x00\x02\x00\x82" + quote(DER)[5:])),
        ["ratls_evidence_unsupported", "ratls_binding"],
    ),
    "Open Enclave without a header": (
        certificate((OPEN_ENCLAVE, quote(TEXT))),
        ["ratls_extension", "ratls_binding"],
    ),
    "Open Enclave's header of version 2": (
        certificate((OPEN_ENCLAVE, header(quote(TEXT), version=2))),
        ["ratls_extension", "ratls_binding"],
    ),
    "Open Enclave's local report": (
        certificate((OPEN_ENCLAVE, header(quote(TEXT), kind=1))),
        ["ratls_extension", "ratls_binding"],
    ),
    "Open Enclave's header of another size": (
        certificate((OPEN_ENCLAVE, header(quote(TEXT), size=4))),
        ["ratls_extension", "ratls_binding"],
    ),
    "a format that is no name": (own_sim(format=b"../sim"), ["ratls_extension", "ratls_binding"]),
    "a format that is not read here": (
        own_sim(format=b"abc"),
        ["ratls_evidence_unsupported", "ratls_binding"],
    ),
    "another format than the quote's": (
        certificate(
            (DICE, tagged(claims_map(MINE, format=b"tdx"), quote(boot_report_data(spki=spki(MINE)))))
        ),
        ["ratls_extension", "ratls_binding"],
    ),
    "simulated evidence that is malformed": (
        certificate((DICE, tagged(claims_map(MINE, format=b"sim"), b"{}"))),
        ["evidence_malformed", "ratls_binding"],
    ),
    "two documents in names": (
        nitro_name(names=[f"{DOCUMENT}.a.example.org", f"{DOCUMENT}.b.example.org"]),
        ["ratls_extension", "ratls_signature_invalid", "ratls_binding"],
    ),
    "a document cut in its name": (
        nitro_name(names=[f"{DOCUMENT[:-2]}.a.example.org"]),
        ["evidence_malformed", "ratls_signature_invalid", "ratls_binding"],
    ),
    # the signature
    "signed by another key": (
        certificate((DICE, tagged(CLAIMS)), signer=OTHER),
        ["ratls_signature_invalid"],
    ),
    "issued by an authority": (
        certificate((DICE, tagged(CLAIMS)), signer=OTHER, issuer="authority"),
        ["ratls_signature_invalid"],
    ),
    "issued by an authority, signed by itself": (
        certificate((DICE, tagged(CLAIMS)), issuer="authority"),
        ["ratls_signature_invalid"],
    ),
    "a quote beside the document in an authority's certificate": (
        certificate(
            (GRAMINE, quote(DER)), signer=OTHER, issuer="authority", names=[f"{DOCUMENT}.a.example.org"]
        ),
        ["ratls_signature_invalid"],
    ),
    "a document in a name, self-issued and signed by another": (
        nitro_name(issuer="RATLS"),
        ["ratls_signature_invalid"],
    ),
    "a signature with SHA-224": (
        respelt(interoperable(), inner=SHA224, outer=SHA224),
        ["ratls_signature_invalid"],
    ),
    "a signature with SHA-1": (
        respelt(interoperable(), inner=SHA1, outer=SHA1),
        ["ratls_signature_invalid"],
    ),
    "an algorithm of another kind of key": (
        respelt(interoperable(), inner=RSA_SHA256, outer=RSA_SHA256),
        ["ratls_signature_invalid"],
    ),
    # the key
    "a key of P-521": (
        certificate(
            (GRAMINE, quote(digest(spki(key("e", ec.SECP521R1()))))), private=key("e", ec.SECP521R1())
        ),
        ["ratls_key_unsupported"],
    ),
    "a key of secp256k1": (
        certificate(
            (GRAMINE, quote(digest(spki(key("e", ec.SECP256K1()))))), private=key("e", ec.SECP256K1())
        ),
        ["ratls_key_unsupported"],
    ),
    "an Ed25519 key": (of_ed25519(), ["ratls_key_unsupported", "ratls_signature_invalid", "ratls_binding"]),
    # the time
    "expired": (
        certificate((DICE, tagged(CLAIMS)), ends=NOW - timedelta(seconds=1)),
        ["ratls_certificate_expired"],
    ),
    "not valid yet": (
        certificate((DICE, tagged(CLAIMS)), begins=NOW + timedelta(seconds=1)),
        ["ratls_certificate_expired"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_fault_is_refused(name: str) -> None:
    """One fault each: its own code, and of what else could not be checked then."""
    der, expected = REFUSED[name]
    found = examine(der)
    assert not found.passed
    assert failures(found)[: len(expected)] == expected
    assert set(failures(found)) <= set(expected) | {
        "ratls_signature_invalid",
        "ratls_key_mismatch",
        "ratls_binding",
    }
    assert set(failures(found)) <= set(CODES)
    assert failures(whole(der))[0] == expected[0]


GENUINE = interoperable()
BEGINNING = GENUINE.index(bytes.fromhex("a003020102"))
MALFORMED = {
    "nothing": b"",
    "one byte": b"\x30",
    "bytes behind": GENUINE + b"\x00",
    "cut": GENUINE[:-1],
    "indefinite length": b"\x30\x80" + GENUINE[4:] + b"\x00\x00",
    "a length in a longer form": b"\x30\x83\x00" + GENUINE[2:],
    "a set": b"\x31" + GENUINE[1:],
    "too long": GENUINE + bytes(300_000),
    "version 1": swapped(GENUINE, bytes.fromhex("a003020102"), bytes.fromhex("a003020100")),
    "without the version": seq(seq(GENUINE[BEGINNING + 5 :])),
    "two algorithms": respelt(GENUINE, inner=PLAIN, outer=WITH_NULL),
    "two algorithms, the other way": respelt(GENUINE, inner=WITH_NULL, outer=PLAIN),
    "SHA-384 with NULL": respelt(
        GENUINE,
        inner=bytes.fromhex("300c06082a8648ce3d0403030500"),
        outer=bytes.fromhex("300c06082a8648ce3d0403030500"),
    ),
    "parameters that are not NULL": respelt(
        GENUINE,
        inner=bytes.fromhex("300c06082a8648ce3d0403020400"),
        outer=bytes.fromhex("300c06082a8648ce3d0403020400"),
    ),
    "NULL with content": respelt(
        GENUINE,
        inner=bytes.fromhex("300d06082a8648ce3d040302050100"),
        outer=bytes.fromhex("300d06082a8648ce3d040302050100"),
    ),
    "NULL in a longer form": respelt(
        GENUINE,
        inner=bytes.fromhex("300d06082a8648ce3d040302058100"),
        outer=bytes.fromhex("300d06082a8648ce3d040302058100"),
    ),
    "an extension twice": swapped(
        certificate((GRAMINE, quote(DER)), ("0.6.9.42.840.113741.1337.7", quote(DER))),
        bytes.fromhex("06092a864886f84d8a3907"),
        bytes.fromhex("06092a864886f84d8a3906"),
    ),
    "an unknown critical extension": certificate((DICE, tagged(CLAIMS)), (UNKNOWN, b"x"), critical=[UNKNOWN]),
    "a signature without its last bit": seq(
        parse_certificate(GENUINE).tbs
        + PLAIN
        + seq(b"\x01" + parse_certificate(GENUINE).certificate.signature, 3)
    ),
    "a name that cryptography stumbles over": swapped(
        certificate((DICE, tagged(claims_map(MINE))), names=["a.example.org"]),
        b"\x82\x0da.example.org",
        b"\xa4\x0d" + bytes.fromhex("300b310930070603550406030100")[:13],
    ),
    "nearly nothing, with NULL": seq(
        seq(bytes.fromhex("a003020102020101") + WITH_NULL + 4 * b"\x30\x00" + b"\xa3\x00")
        + WITH_NULL
        + b"\x03\x01\x00"
    ),
    "a key that is none": swapped(GENUINE, spki(MINE)[-64:], bytes(64)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_certificate_is_refused(name: str) -> None:
    """What follows could not be checked, and has failed."""
    found = examine(MALFORMED[name])
    assert failures(found)[0] == "leaf_malformed"
    assert len(failures(found)) == len(found.checks) == 7
    assert all(c.got.startswith(NOT_MADE) for c in found.checks[1:])
    assert found.found == ()


def test_a_key_in_another_spelling_is_refused() -> None:
    """A compressed point is the same key with another hash: two readers would name two keys."""
    compressed = seq(
        seq(bytes.fromhex("06072a8648ce3d020106082a8648ce3d030107"))
        + seq(b"\x00" + bytes([2 + spki(MINE)[-1] % 2]) + spki(MINE)[-64:-32], 3)
    )
    tbs = parse_certificate(GENUINE).tbs
    changed = seq(tbs[4:].replace(spki(MINE), compressed, 1))
    signature = MINE.sign(changed, ec.ECDSA(fake_aws.OTHER_HASH))
    der = seq(changed + PLAIN + seq(b"\x00" + signature, 3))
    assert failures(examine(der))[0] == "ratls_key_unsupported"


# --- the explicit NULL --------------------------------------------------------------------------------------


def test_the_null_is_repaired_for_reading_and_signed_as_it_stands() -> None:
    """What the key signed are the bytes with the NULL; a signature over the repaired bytes is none."""
    plain = certificate((GRAMINE, quote(DER)))
    with pytest.raises(ValueError):
        x509.load_der_x509_certificate(respelt(plain))
    assert failures(examine(respelt(plain))) == []
    repaired = x509.load_der_x509_certificate(plain).signature
    at = respelt(plain, sign=False)
    forged = seq(parse_certificate(at).tbs + WITH_NULL + seq(b"\x00" + repaired, 3))
    assert failures(examine(forged)) == ["ratls_signature_invalid"]


def test_the_null_weakens_no_other_check() -> None:
    """With the NULL, too: another key's signature, another key's evidence, an expired certificate."""
    made = certificate((GRAMINE, quote(DER)))
    assert failures(examine(respelt(made, private=OTHER))) == ["ratls_signature_invalid"]
    alien = certificate((GRAMINE, quote(digest(spki(OTHER)))))
    assert failures(examine(respelt(alien))) == ["ratls_binding"]
    assert failures(examine(respelt(made), NOW + timedelta(days=9))) == ["ratls_certificate_expired"]


def test_rsa_keeps_its_null_and_needs_2048_bits() -> None:
    """RSA's parameters *are* NULL; 1024 bits are nobody's choice any more."""
    assert failures(examine(interoperable(RSA))) == []
    small = rsa_key(1024)
    assert failures(examine(interoperable(small))) == ["ratls_key_unsupported"]
    assert failures(examine(certificate((GRAMINE, quote(DER)), algorithm=SHA384()))) == []


# --- with the evidence's own examiner -----------------------------------------------------------------------


def test_verified_claims_are_tied_to_the_certificate_again() -> None:
    """The report data that the signature covers decides, not the one that was read before."""
    (one,) = examine(certificate((GRAMINE, quote(DER)))).found
    genuine = examine_quote(one.data, endorsements=(), roots=(), now=NOW).claims
    assert check_binding(one, genuine).passed
    alien = examine_quote(quote(digest(spki(OTHER))), endorsements=(), roots=(), now=NOW).claims
    assert check_binding(one, alien).code == "ratls_binding"
    other = examine_nitro(fake_aws.mint(), endorsements=(), roots=(fake_aws.ROOT,), now=NOW).claims
    assert check_binding(one, other).code == "ratls_binding"
    missing = check_binding(one, Absent("sgx", "nothing verified"))
    assert not missing.passed
    assert missing.got.startswith(NOT_MADE)


def test_evidence_that_does_not_verify_gives_no_claims() -> None:
    """A well-bound certificate around evidence of an unknown root."""
    found = examine_ratls(
        nitro_name(), endorsements=(), roots={}, now=NOW, examiners={"nitro": examine_nitro}
    )
    assert failures(found) == ["root_not_accepted", "ratls_binding"]
    assert isinstance(found.claims, Absent)


def test_a_format_without_an_examiner_is_refused() -> None:
    """Nobody's word for the evidence is not a pass."""
    found = examine_ratls(interoperable(), endorsements=(), roots={}, now=NOW, examiners={})
    assert failures(found) == ["evidence_format_unsupported", "ratls_binding"]
    assert isinstance(found.claims, Absent)


def test_two_pieces_of_evidence_of_different_code_are_refused() -> None:
    """A verifier that takes the one would see other code than a verifier that takes the other."""
    der = certificate((DICE, tagged(CLAIMS)), (GRAMINE, quote(DER, code=b"d" * 32)))
    assert failures(examine(der)) == []
    assert failures(whole(der)) == ["ratls_contradiction"]


def test_no_evidence_gives_no_claims() -> None:
    """And says so."""
    found = whole(certificate((UNKNOWN, b"x")))
    assert isinstance(found.claims, Absent)
    assert failures(found)[0] == "ratls_extension"


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["interoperable", "Gramine, both, with NULL", "ours", "Open Enclave"])
def test_every_byte_of_a_self_signed_certificate_flipped_is_refused(name: str) -> None:
    """All are authenticated: by the signature, or as the signature and its frame."""
    der = ACCEPTED[name][0]
    for at in [*range(60), *range(60, len(der), 7), *range(len(der) - 90, len(der))]:
        damaged = bytearray(der)
        damaged[at] ^= 1 << at % 8
        assert failures(examine(bytes(damaged))), at


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_truncation_is_refused(name: str) -> None:
    """Whatever is left."""
    der = ACCEPTED[name][0]
    for size in range(0, len(der), 61):
        assert failures(examine(der[:size]))[0] == "leaf_malformed"


def test_parsing_raises_ours_and_nothing_else() -> None:
    """`parse_key_hash` on what is none."""
    for value in (b"", b"\x82", b"\x82\x01", b"\x82\x20\x40", b"\x83\x01\x40\x40"):
        with pytest.raises(MalformedInput) as caught:
            parse_key_hash(value)
        assert caught.value.code == "ratls_extension"


# --- recorded certificates ----------------------------------------------------------------------------------

RECORDED: dict[str, tuple[list[tuple[str, str, int]], list[str]]] = {
    "ra-tls/gramine-both-oids": ([("interoperable", "sgx", 4734), ("gramine", "sgx", 4734)], []),
    "ra-tls/rats-tls-extra-claims": ([("interoperable", "sgx", 4734)], []),
    "ra-tls/openenclave-legacy-rsa": ([("open-enclave", "sgx", 4580)], ["ratls_signature_invalid"]),
    "nitro/prod-2023-in-tls-certificate": ([("nitro-name", "nitro", 4775)], []),
}


def recorded(name: str) -> tuple[bytes, dict[str, Any]]:
    """The recorded certificate and what is expected of it."""
    folder = SHARED / "evidence" / name
    if not folder.is_dir():
        pytest.skip("not exercised here: recorded evidence is not beside this checkout")
    return (folder / "certificate.der").read_bytes(), json.loads((folder / "expect.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_certificates_give_the_recorded_outcome(name: str) -> None:
    """Which evidence they carry, that it is bound to their key, and that one is not signed by it."""
    der, expected = recorded(name)
    evidence, codes = RECORDED[name]
    found = examine(der, datetime.fromisoformat(expected["as_of"]))
    assert failures(found) == codes
    assert [(one.source, one.format, len(one.data)) for one in found.found] == evidence


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_evidence_in_another_certificate_is_refused(name: str) -> None:
    """CVE-2026-33697's class: whoever reads a certificate can copy its evidence, not its key."""
    der, _ = recorded(name)
    source = parse_certificate(der).certificate
    extensions = [
        (e.oid.dotted_string, e.value.value)
        for e in source.extensions
        if isinstance(e.value, x509.UnrecognizedExtension)
    ]
    names: list[str] = []
    if not extensions:
        names = source.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value.get_values_for_type(x509.DNSName)
    for private in (OTHER, RSA):
        copied = examine(certificate(*extensions, names=names, private=private))
        assert copied.found
        assert set(failures(copied)) <= {"ratls_key_mismatch", "ratls_binding"}
        assert len(failures(copied)) == len(copied.found)


def test_the_recorded_nitro_certificate_passes_with_its_document() -> None:
    """Under AWS's own root: its user data is the certificate's whole key."""
    der, expected = recorded("nitro/prod-2023-in-tls-certificate")
    found = examine_ratls(
        der,
        endorsements=(),
        roots={"nitro": PINNED_ROOTS},
        now=datetime.fromisoformat(expected["as_of"]),
        examiners={"nitro": examine_nitro},
    )
    assert failures(found) == []
    assert isinstance(found.claims, Claims)
    assert found.claims.measurement == expected["expect"]["pcr0"]
    assert found.claims.report_data.hex() == expected["expect"]["user_data"]


def test_the_recorded_certificate_that_has_expired_is_refused_today() -> None:
    """RATS-TLS's lived for a year."""
    der, _ = recorded("ra-tls/rats-tls-extra-claims")
    assert failures(examine(der)) == ["ratls_certificate_expired"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ra-tls/gramine-both-oids", "ra-tls/rats-tls-extra-claims"])
def test_recorded_certificates_with_a_byte_flipped_are_refused(name: str) -> None:
    """Every byte of a self-signed certificate is authenticated; sampled."""
    der, expected = recorded(name)
    now = datetime.fromisoformat(expected["as_of"])
    for at in [*range(40), *range(40, len(der), 13), *range(len(der) - 110, len(der))]:
        damaged = bytearray(der)
        damaged[at] ^= 1 << at % 8
        assert failures(examine(bytes(damaged), now)), at


@pytest.mark.slow
def test_the_recorded_nitro_certificate_with_a_byte_flipped_is_refused_where_it_matters() -> None:
    """Key and document are what counts there: names, dates and the authority's signature are not authenticated."""
    der, expected = recorded("nitro/prod-2023-in-tls-certificate")
    now = datetime.fromisoformat(expected["as_of"])
    parsed = parse_certificate(der)
    at_key = der.index(parsed.spki)
    at_document = der.index(b"8444a1013822")
    places = [*range(at_key, at_key + len(parsed.spki)), *range(at_document, at_document + 9550, 37)]
    for at in places:
        damaged = bytearray(der)
        damaged[at] ^= 1
        found = examine_ratls(
            bytes(damaged),
            endorsements=(),
            roots={"nitro": PINNED_ROOTS},
            now=now,
            examiners={"nitro": examine_nitro},
        )
        assert failures(found), at
