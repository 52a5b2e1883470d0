"""Certificates with evidence in them, in every form that the verifier reads, one thing wrong at a time.

The quotes inside are as long as real ones and have their report data in the right place; nobody signed them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import cbor2
import fake_aws
import fake_keys
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from strongroom.attest import sim
from strongroom.attest.evidence import Claims, Examination, boot_report_data, check

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
DICE = "2.23.133.5.4.9"
GRAMINE = "0.6.9.42.840.113741.1337.6"
OPEN_ENCLAVE, OPEN_ENCLAVE_NEW = "1.2.840.113556.10.1.1", "1.3.6.1.4.1.311.105.1"
INTEL = "1.2.840.113741.1.13.1"
SIM_ROOT = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"sim root").digest())
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@cache
def key(name: str = "enclave", curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """The key that goes by `name`, on P-256 or `curve`."""
    return fake_aws.key(name, curve or ec.SECP256R1())


def spki(private: Key) -> bytes:
    """The public half as DER."""
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pem(private: Key) -> bytes:
    """The public half as PEM text with the NUL that ends a string in C."""
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) + b"\x00"


def digest(data: bytes) -> bytes:
    """SHA-256, filled up to the size of report data."""
    return hashlib.sha256(data).digest() + bytes(32)


def quote(report_data: bytes, *, version: int = 3, tdx: bool = False, code: bytes = b"c" * 32) -> bytes:
    """An SGX quote of version 3, or a quote of another version, of code `code` with `report_data`."""
    header = version.to_bytes(2, "little") + b"\x02\x00" + (b"\x81" if tdx else b"\x00") + bytes(43)
    if version == 5:
        header += (2 if tdx else 1).to_bytes(2, "little") + (584 if tdx else 384).to_bytes(4, "little")
    size, at, place = (584, 520, 136) if tdx else (384, 320, 64)
    body = bytearray(size)
    body[at : at + 64] = report_data
    body[place : place + len(code)] = code
    return header + bytes(body) + bytes(600)


def examine_quote(
    data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
) -> Examination:
    """Stands for the examiner of quotes: believes every byte."""
    made = check("evidence.signature", "signed", True, expected="", got="", code="evidence_signature_invalid")
    claims = Claims(
        format="sgx",
        simulated=False,
        host_excluded=True,
        measurement=data[112:144].hex(),
        signer="",
        product=0,
        svn=0,
        debug=False,
        tcb_status="UpToDate",
        advisories=(),
        report_data=data[368:432],
        root="",
        issued_at=None,
        details=(),
    )
    return Examination(checks=(made,), claims=claims)


def claims_map(private: Key, **more: Any) -> bytes:
    """The claims beside the evidence: the hash of the key, and more."""
    said: dict[str, Any] = {"pubkey-hash": cbor2.dumps([1, hashlib.sha256(spki(private)).digest()])}
    said |= {name.replace("_", "-"): value for name, value in more.items()}
    return cbor2.dumps({name: value for name, value in said.items() if value is not None})


def tagged(claims: bytes, evidence: bytes | None = None, *, tag: int = 60000) -> bytes:
    """The value of the DICE extension; the evidence is a quote for these claims unless given."""
    return cbor2.dumps(cbor2.CBORTag(tag, [quote(digest(claims)) if evidence is None else evidence, claims]))


def header(data: bytes, *, version: int = 1, kind: int = 2, size: int | None = None) -> bytes:
    """`data` behind the header of Open Enclave's reports."""
    length = len(data) if size is None else size
    return version.to_bytes(4, "little") + kind.to_bytes(4, "little") + length.to_bytes(8, "little") + data


def certificate(
    *extensions: tuple[str, bytes],
    private: Key | None = None,
    signer: Key | None = None,
    issuer: str = "RATLS",
    critical: Sequence[str] = (),
    algorithm: HashAlgorithm | None = None,
    begins: datetime = NOW - timedelta(days=1),
    ends: datetime = NOW + timedelta(days=1),
    names: Sequence[str] = (),
) -> bytes:
    """A certificate with these extensions (OID, value), self-signed unless a test wants it otherwise."""
    private = private or key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "RATLS")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        )
    for oid, value in extensions:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(extension, critical=oid in critical)
    by = signer or private
    how = {} if isinstance(by, rsa.RSAPrivateKey) else {"ecdsa_deterministic": True}
    return builder.sign(by, algorithm or SHA256(), **how).public_bytes(Encoding.DER)


def seq(content: bytes, tag: int = 0x30) -> bytes:
    """DER of `content` under `tag`."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    digits = (size.bit_length() + 7) // 8
    return bytes((tag, 0x80 | digits)) + size.to_bytes(digits, "big") + content


PLAIN = bytes.fromhex("300a06082a8648ce3d040302")
WITH_NULL = bytes.fromhex("300c06082a8648ce3d0403020500")


def respelt(
    der: bytes,
    *,
    inner: bytes = WITH_NULL,
    outer: bytes = WITH_NULL,
    private: Key | None = None,
    sign: bool = True,
) -> bytes:
    """The certificate `der` (ECDSA with SHA-256) with other AlgorithmIdentifiers, signed anew as it then stands."""
    tbs = x509.load_der_x509_certificate(der).tbs_certificate_bytes
    begins = 4 if tbs[1] == 0x82 else 3
    tbs = seq(tbs[begins:].replace(PLAIN, inner, 1))
    private = private or key()
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    signature = private.sign(tbs, ec.ECDSA(SHA256(), deterministic_signing=True)) if sign else bytes(70)
    return seq(tbs + outer + seq(b"\x00" + signature, 3))


def interoperable(private: Key | None = None, **more: Any) -> bytes:
    """A certificate as the CCC describes it."""
    private = private or key()
    return certificate((DICE, tagged(claims_map(private, **more))), private=private)


def both_gramine(private: Key | None = None) -> bytes:
    """As Gramine makes it: both forms, P-384, and AlgorithmIdentifiers with an explicit NULL."""
    private = private or key(curve=ec.SECP384R1())
    made = certificate(
        (GRAMINE, quote(digest(spki(private)))), (DICE, tagged(claims_map(private))), private=private
    )
    return respelt(made, private=private)


def own_sim(private: Key | None = None, report_data: bytes | None = None, **more: Any) -> bytes:
    """As our server makes it, with simulated evidence."""
    private = private or key()
    evidence = sim.issue(
        root_key=SIM_ROOT,
        measurement="ab" * 32,
        svn=1,
        report_data=report_data or boot_report_data(spki=spki(private)),
        now=NOW,
    )
    claims = claims_map(private, **({"format": b"sim"} | more))
    return certificate((DICE, tagged(claims, evidence)), private=private)


def nitro_name(private: Key | None = None, *, user_data: bytes | None = None, **options: Any) -> bytes:
    """As Evervault makes it: the document as hex in a DNS name, issued by an authority that attests nothing."""
    private = private or key()
    document = fake_aws.mint(user_data=spki(private) if user_data is None else user_data)
    given: dict[str, Any] = {"issuer": "some authority", "signer": key("authority")}
    names = ["app.example.org", f"{document.hex()}.app.example.org"]
    return certificate(private=private, **(given | {"names": names} | options))


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """An RSA key, always the same."""
    return fake_keys.rsa_key("ratls", bits)
