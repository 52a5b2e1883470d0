"""Certificates and revocation lists, written byte by byte, so that any one thing in them can be wrong.

`cryptography` mints no certificate with the serial number 0, an extension twice or two algorithms; AMD mints the
first, and the others are what a verifier must refuse. Keys and signatures are `fake_keys`' own: always the same.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import fake_keys
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fake_keys import rsa_pss

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
SINCE, UNTIL = datetime(2025, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_BITS = {"weak": 2048, "tiny": 1024}


def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """The RSA key that goes by `name`: of 4096 bits unless its name says otherwise."""
    return fake_keys.rsa_key(name, _BITS.get(name, 4096))


def ec_key(name: str, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """The EC key that goes by `name`, on P-384 where no curve is given."""
    return fake_keys.ec_key(name, curve or ec.SECP384R1())


def spki(key: PrivateKey) -> bytes:
    """The public half as DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def tlv(tag: int, *content: bytes) -> bytes:
    """One DER element."""
    body = b"".join(content)
    size = len(body)
    if size < 0x80:
        return bytes([tag, size]) + body
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + body


def sequence(*content: bytes) -> bytes:
    """A SEQUENCE."""
    return tlv(0x30, *content)


def integer(value: int) -> bytes:
    """An INTEGER."""
    size = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return tlv(0x02, value.to_bytes(size, signed=True))


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray()
    for arc in (40 * first + second, *rest):
        groups = [arc >> shift & 0x7F for shift in range(0, max(arc.bit_length(), 1), 7)]
        out += bytes(g | 0x80 for g in groups[:0:-1]) + bytes(groups[:1])
    return tlv(0x06, bytes(out))


def name(common_name: str) -> bytes:
    """A name with nothing but a common name."""
    return sequence(tlv(0x31, sequence(oid("2.5.4.3"), tlv(0x0C, common_name.encode()))))


def time(moment: datetime) -> bytes:
    """A UTCTime, or a GeneralizedTime from 2050 on."""
    if moment.year < 2050:
        return tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    """An extension."""
    return sequence(oid(dotted), tlv(0x01, b"\xff") if critical else b"", tlv(0x04, value))


def basic_constraints(path_length: int | None, *, ca: bool = True) -> bytes:
    """The extension that makes an issuer."""
    length = b"" if path_length is None else integer(path_length)
    return extension("2.5.29.19", sequence(tlv(0x01, b"\xff") if ca else b"", length), critical=True)


def key_usage(bits: int) -> bytes:
    """The key usage extension; 0x04 signs certificates, 0x02 lists."""
    return extension("2.5.29.15", tlv(0x03, bytes([0, bits])), critical=True)


_SHA = {"SHA-1": "1.3.14.3.2.26"} | {
    f"SHA-{size}": f"2.16.840.1.101.3.4.2.{n}" for n, size in ((1, 256), (2, 384), (3, 512))
}
_HASHES = {"SHA-1": SHA1(), "SHA-256": SHA256(), "SHA-384": SHA384(), "SHA-512": SHA512()}
_FIXED = {
    ("ECDSA", "SHA-256"): "1.2.840.10045.4.3.2",
    ("ECDSA", "SHA-384"): "1.2.840.10045.4.3.3",
    ("ECDSA", "SHA-512"): "1.2.840.10045.4.3.4",
    ("ECDSA", "SHA-1"): "1.2.840.10045.4.1",
    ("RSA-PKCS1", "SHA-256"): "1.2.840.113549.1.1.11",
    ("RSA-PKCS1", "SHA-384"): "1.2.840.113549.1.1.12",
    ("RSA-PKCS1", "SHA-512"): "1.2.840.113549.1.1.13",
    ("RSA-PKCS1", "SHA-1"): "1.2.840.113549.1.1.5",
}


def pss(*, digest: str = "SHA-384", mask: str = "SHA-384", salt: int = 48, trailer: int | None = 1) -> bytes:
    """The AlgorithmIdentifier of RSA-PSS."""
    hashed, masked = (sequence(oid(_SHA[h]), tlv(0x05)) for h in (digest, mask))
    return sequence(
        oid("1.2.840.113549.1.1.10"),
        sequence(
            tlv(0xA0, hashed),
            tlv(0xA1, sequence(oid("1.2.840.113549.1.1.8"), masked)),
            tlv(0xA2, integer(salt)),
            b"" if trailer is None else tlv(0xA3, integer(trailer)),
        ),
    )


def algorithm(scheme: str, digest: str) -> bytes:
    """The AlgorithmIdentifier of a signature."""
    if scheme == "RSA-PSS":
        return pss(digest=digest, mask=digest, salt=_HASHES[digest].digest_size)
    return sequence(oid(_FIXED[scheme, digest]), tlv(0x05) if scheme == "RSA-PKCS1" else b"")


def sign(key: PrivateKey, message: bytes, scheme: str, digest: str) -> bytes:
    """A signature."""
    hashed = _HASHES[digest]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(hashed, deterministic_signing=True))
    if scheme == "RSA-PSS":
        return rsa_pss(key, message, hashed.name, hashed.digest_size)
    return key.sign(message, padding.PKCS1v15(), hashed)


@dataclass(frozen=True, kw_only=True)
class Mint:
    """A certificate to be. What is None takes its usual value; everything may be set to what it should not be."""

    subject: str
    issuer: str
    key: PrivateKey
    signer: PrivateKey
    serial: int = 0
    scheme: str = "RSA-PSS"
    digest: str = "SHA-384"
    not_before: datetime = SINCE
    not_after: datetime = UNTIL
    extensions: Sequence[bytes] = ()
    version: bytes = field(default_factory=lambda: tlv(0xA0, integer(2)))
    subject_der: bytes | None = None
    validity: bytes | None = None
    spki: bytes | None = None
    inner_algorithm: bytes | None = None
    outer_algorithm: bytes | None = None
    behind_body: bytes = b""
    behind_signature: bytes = b""
    corrupt: bool = False

    def but(self, **changed: object) -> Mint:
        """The same with members changed."""
        return replace(self, **changed)  # type: ignore[arg-type]

    @property
    def der(self) -> bytes:
        """Its DER."""
        usual = algorithm(self.scheme, self.digest)
        inner = self.inner_algorithm or usual
        body = sequence(
            self.version,
            integer(self.serial),
            inner,
            name(self.issuer),
            self.validity or sequence(time(self.not_before), time(self.not_after)),
            self.subject_der or name(self.subject),
            self.spki or spki(self.key),
            tlv(0xA3, sequence(*self.extensions)) if self.extensions else b"",
            self.behind_body,
        )
        signature = sign(self.signer, body, self.scheme, self.digest)
        if self.corrupt:
            signature = signature[:-1] + bytes([signature[-1] ^ 1])
        outer = self.outer_algorithm or inner
        return sequence(body, outer, tlv(0x03, b"\x00", signature), self.behind_signature)


def revocation_list(
    issuer: str,
    key: PrivateKey,
    serials: Sequence[int] = (),
    *,
    this_update: datetime = SINCE,
    next_update: datetime | None = UNTIL,
    extensions: Sequence[bytes] = (),
    entry_extensions: Sequence[bytes] = (),
    scheme: str = "RSA-PSS",
    corrupt: bool = False,
) -> bytes:
    """A revocation list, as DER."""
    usual = algorithm(scheme, "SHA-384")
    inside = sequence(*entry_extensions) if entry_extensions else b""
    entries = [sequence(integer(serial), time(SINCE), inside) for serial in serials]
    body = sequence(
        integer(1),
        usual,
        name(issuer),
        time(this_update),
        time(next_update) if next_update else b"",
        sequence(*entries) if entries else b"",
        tlv(0xA0, sequence(*extensions)) if extensions else b"",
    )
    signature = sign(key, body, scheme, "SHA-384")
    if corrupt:
        signature = signature[:-1] + bytes([signature[-1] ^ 1])
    return sequence(body, usual, tlv(0x03, b"\x00", signature))


def pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    """A PEM block, its base64 in one line."""
    text = f"-----BEGIN {label}-----\n{base64.b64encode(der).decode()}\n-----END {label}-----\n"
    return text.encode()
