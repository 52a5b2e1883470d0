"""A Nitro hypervisor of our own: attestation documents with their whole chain under a test root, any time, any
member, one thing wrong at a time.

Everything is the same in every run: keys come from names, and signatures are deterministic (RFC 6979).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
"""When documents are made, and looked at, unless a test says otherwise."""
MADE_AT = NOW - timedelta(milliseconds=250)
PCR0 = hashlib.sha384(b"the enclave's image").digest()
PCR8 = hashlib.sha384(b"the image's signer").digest()
REPORT_DATA = hashlib.sha512(b"report data").digest()
NONCE = hashlib.sha256(b"the client's nonce").digest()


@cache
def key(name: str, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """The private key that goes by `name`, on P-384 or `curve`."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()) >> 1
    return ec.derive_private_key(number, curve or ec.SECP384R1())


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """One certificate of the chain, `name` signed by `issuer`."""

    name: str
    issuer: str
    ca: bool = True
    path_length: int | None = None
    constraints: bool = True
    critical: bool = True
    may_certify: bool = True
    may_sign: bool = True
    usage: bool = True
    begins: datetime = NOW - timedelta(days=1)
    ends: datetime = NOW + timedelta(days=1)
    curve: ec.EllipticCurve | None = None
    issuer_curve: ec.EllipticCurve | None = None
    algorithm: HashAlgorithm | None = None
    signer: str | None = None
    more: tuple[tuple[x509.ExtensionType, bool], ...] = ()

    def der(self) -> bytes:
        """The certificate itself."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(self.name))
            .issuer_name(_name(self.issuer))
            .public_key(key(self.name, self.curve).public_key())
            .serial_number(int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8]) | 1)
            .not_valid_before(self.begins)
            .not_valid_after(self.ends)
        )
        extensions = list(self.more)
        if self.constraints:
            constraints = x509.BasicConstraints(ca=self.ca, path_length=self.path_length)
            extensions.append((constraints, self.critical))
        if self.usage:
            extensions.append((_usage(sign=self.may_sign, certify=self.may_certify), True))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        signer = key(self.signer or self.issuer, self.issuer_curve)
        made = builder.sign(signer, self.algorithm or SHA384(), ecdsa_deterministic=True)
        return made.public_bytes(Encoding.DER)


def _name(name: str) -> x509.Name:
    parts = (
        (NameOID.COUNTRY_NAME, "US"),
        (NameOID.ORGANIZATION_NAME, "Not Amazon"),
        (NameOID.COMMON_NAME, name),
    )
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def _usage(*, sign: bool, certify: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certify,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


PLAN = {
    "root": Certificate(name="root", issuer="root", ends=NOW + timedelta(days=8000)),
    "regional": Certificate(name="regional", issuer="root", path_length=2, ends=NOW + timedelta(days=20)),
    "zonal": Certificate(name="zonal", issuer="regional", path_length=1, ends=NOW + timedelta(days=5)),
    "instance": Certificate(name="instance", issuer="zonal", path_length=0, may_sign=False),
    "leaf": Certificate(
        name="leaf",
        issuer="instance",
        ca=False,
        may_certify=False,
        begins=NOW - timedelta(seconds=3),
        ends=NOW + timedelta(hours=3),
    ),
}
"""The chain as AWS builds it, in the same places and with the same limits."""


def chain(**changes: dict[str, Any]) -> list[bytes]:
    """The DER certificates from the root to the leaf, with the named ones changed."""
    return [replace(one, **changes.get(place, {})).der() for place, one in PLAN.items()]


CHAIN = chain()
ROOT = hashlib.sha256(CHAIN[0]).hexdigest()
"""The digest by which policies would name this root."""
ABSENT = object()
"""Stands for a member that is left out."""


def members(**changes: object) -> dict[object, object]:
    """The members of an attestation document, some of them changed, added or (`ABSENT`) left out."""
    made: dict[object, object] = {
        "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
        "digest": "SHA384",
        "timestamp": int(MADE_AT.timestamp() * 1000),
        "pcrs": {n: {0: PCR0, 8: PCR8}.get(n, bytes(48)) for n in range(16)},
        "certificate": CHAIN[-1],
        "cabundle": CHAIN[:-1],
        "public_key": None,
        "user_data": REPORT_DATA,
        "nonce": NONCE,
    }
    made |= changes
    return {name: value for name, value in made.items() if value is not ABSENT}


def open_map(value: dict[object, object]) -> bytes:
    """`value` as a map without a length, closed by a break: how AWS writes documents since 2025."""
    return b"\xbf" + b"".join(cbor2.dumps(k) + cbor2.dumps(v) for k, v in value.items()) + b"\xff"


def sign(
    payload: bytes,
    *,
    protected: bytes = b"\xa1\x01\x38\x22",
    signed_protected: bytes | None = None,
    context: str = "Signature1",
    signer: ec.EllipticCurvePrivateKey | None = None,
    algorithm: HashAlgorithm | None = None,
    in_der: bool = False,
) -> bytes:
    """The signature over `payload` as COSE_Sign1 has it, unless a test wants something else signed."""
    shown = protected if signed_protected is None else signed_protected
    over = cbor2.dumps([context, shown, b"", payload])
    private = signer or key("leaf")
    der = private.sign(over, ec.ECDSA(algorithm or SHA384(), deterministic_signing=True))
    if in_der:
        return der
    size = (private.curve.key_size + 7) // 8
    return b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(der))


def envelope(payload: bytes, **options: Any) -> bytes:
    """The COSE_Sign1 around `payload`; `unprotected`, `signature` replace those parts, the rest is `sign`'s."""
    unprotected = options.pop("unprotected", {})
    signature = options.pop("signature", None) or sign(payload, **options)
    return cbor2.dumps([options.get("protected", b"\xa1\x01\x38\x22"), unprotected, payload, signature])


def mint(*, certificates: Sequence[bytes] = CHAIN, open_ended: bool = False, **changes: object) -> bytes:
    """A genuine document of this vendor's with `certificates`, and with members of `members` changed."""
    given: dict[str, object] = {"certificate": certificates[-1], "cabundle": list(certificates[:-1])}
    payload = members(**(given | changes))
    return envelope(open_map(payload) if open_ended else cbor2.dumps(payload))


OTHER_HASH = SHA256()
"""A hash that no document and no certificate of a chain uses."""
