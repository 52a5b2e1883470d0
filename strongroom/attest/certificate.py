"""X.509 certificates and revocation lists as values: reading DER, and verifying one signature. Words follow RFC
5280; `x509.py` builds chains of them.

Rules of this file:

1. Strict DER (`der.py`), version 3, nothing unread, no extension twice, one algorithm stated twice.
2. Signature algorithms are listed, not excluded: RSA (PKCS #1 v1.5 or PSS) and ECDSA, with SHA-2 of 256 bits or more.
3. What a certificate does not say (that it may sign certificates) is not so.

Formats whose certificates `cryptography` reads (docs/adr/0009-which-certificates-are-read-how.md) get them from
`load_x509`, and expect of it what stands in `UNREADABLE`.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from strongroom.attest import der
from strongroom.errors import MalformedInput

MAX_DOCUMENT = 256 * 1024
"""Bytes of one stapled document; Intel's largest revocation list has about 60 KiB."""
MAX_REVOKED = 20_000
"""Entries of one revocation list."""
MIN_RSA, MAX_RSA = 2048, 8192
"""Bits of an RSA key: less can be broken, more is a way to keep a verifier busy."""
_MAX_REMEMBERED = 8 * 1024
"""Bytes of a certificate that is remembered; 64 of them take half a MiB, whoever sends them."""

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
RSA_PSS = "RSA-PSS"
RSA_PKCS1 = "RSA-PKCS1"
ECDSA = "ECDSA"

_HASHES: dict[str, HashAlgorithm] = {"SHA-256": SHA256(), "SHA-384": SHA384(), "SHA-512": SHA512()}
_HASH_OIDS = {
    "2.16.840.1.101.3.4.2.1": "SHA-256",
    "2.16.840.1.101.3.4.2.2": "SHA-384",
    "2.16.840.1.101.3.4.2.3": "SHA-512",
}
_SIGNATURE_OIDS = {
    "1.2.840.113549.1.1.11": (RSA_PKCS1, "SHA-256"),
    "1.2.840.113549.1.1.12": (RSA_PKCS1, "SHA-384"),
    "1.2.840.113549.1.1.13": (RSA_PKCS1, "SHA-512"),
    "1.2.840.10045.4.3.2": (ECDSA, "SHA-256"),
    "1.2.840.10045.4.3.3": (ECDSA, "SHA-384"),
    "1.2.840.10045.4.3.4": (ECDSA, "SHA-512"),
}
_PSS_OID, _MGF1_OID = "1.2.840.113549.1.1.10", "1.2.840.113549.1.1.8"
_COMMON_NAME = "2.5.4.3"
BASIC_CONSTRAINTS, KEY_USAGE = "2.5.29.19", "2.5.29.15"


UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    Warning,  # of oddities such as a negative serial number, where a caller turned warnings into errors
)
"""What `cryptography` raises over certificates and lists that it cannot read, each found by fuzzing."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that was read, and of which nothing is verified. `issuer`, `subject`, `spki`: DER.

    `algorithm` and `digest`: how it is signed (`RSA_PSS`, "SHA-384"). `common_name`, `issuer_name`: printable ASCII,
    "" where there is not exactly one. `extensions`: (object identifier, critical, DER value).
    """

    der: bytes
    tbs: bytes
    serial: int
    algorithm: str
    digest: str
    issuer: bytes
    subject: bytes
    issuer_name: str
    common_name: str
    not_before: datetime
    not_after: datetime
    spki: bytes
    key: PublicKey
    extensions: tuple[tuple[str, bool, bytes], ...]
    ca: bool
    path_length: int | None
    key_usage: int | None
    signature: bytes

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the whole certificate, as lower-case hex: how a root is named."""
        return hashlib.sha256(self.der).hexdigest()

    def extension(self, oid: str) -> bytes | None:
        """The value of the extension `oid`, None where there is none."""
        return next((value for name, _critical, value in self.extensions if name == oid), None)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A certificate revocation list that was read, and of which nothing is verified."""

    der: bytes
    tbs: bytes
    algorithm: str
    digest: str
    issuer: bytes
    issuer_name: str
    this_update: datetime
    next_update: datetime | None
    revoked: frozenset[int]
    critical: tuple[str, ...]
    signature: bytes


def parse_certificate(data: bytes) -> Certificate:
    """Returns the X.509 version 3 certificate that the DER `data` is, with nothing verified.

    A vendor's certificates come with every answer, so the last few that were read are remembered (values cannot
    change, and nothing is verified here).

    Raises:
        MalformedInput: code `certificate_malformed`, also for a key or an algorithm that is not listed here.
    """
    return _remembered(data) if len(data) <= _MAX_REMEMBERED else _parse_certificate(data)


def _parse_certificate(data: bytes) -> Certificate:
    outer, tbs, algorithm, signature = _signed(data, what="certificate", code="certificate_malformed")
    body = outer.inside(tbs)
    version = body.enter(der.context(0), "version")
    if version.integer("version") != 2:
        body.refuse("expected version 3")
    version.end("version")
    serial = body.integer("serial number")
    if body.take(der.SEQUENCE, "algorithm").raw != algorithm.raw:
        body.refuse("the algorithm in the body is another than the one beside the signature")
    kind, digest = _algorithm(outer.inside(algorithm))
    issuer = body.take(der.SEQUENCE, "issuer")
    validity = body.enter(der.SEQUENCE, "validity")
    not_before, not_after = validity.time("not before"), validity.time("not after")
    validity.end("validity")
    subject = body.take(der.SEQUENCE, "subject")
    spki = body.take(der.SEQUENCE, "public key")
    for number in (1, 2):  # unique identifiers: obsolete, and of no meaning here
        body.optional(der.context(number, constructed=False), "unique identifier")
    extensions = _extensions(body, der.context(3))
    body.end("body")
    values = {oid: body.inside(der.Element(0, value, b"")) for oid, _critical, value in extensions}
    ca, path_length = _basic_constraints(values.get(BASIC_CONSTRAINTS))
    return Certificate(
        der=data,
        tbs=tbs.raw,
        serial=serial,
        algorithm=kind,
        digest=digest,
        issuer=issuer.raw,
        subject=subject.raw,
        issuer_name=_common_name(outer.inside(issuer)),
        common_name=_common_name(outer.inside(subject)),
        not_before=not_before,
        not_after=not_after,
        spki=spki.raw,
        key=_public_key(body, spki.raw),
        extensions=extensions,
        ca=ca,
        path_length=path_length,
        key_usage=_key_usage(values.get(KEY_USAGE)),
        signature=signature,
    )


_remembered = functools.lru_cache(maxsize=64)(_parse_certificate)


def parse_revocation_list(data: bytes) -> RevocationList:
    """Returns the certificate revocation list that the DER `data` is, with nothing verified.

    Raises:
        MalformedInput: code `revocation_list_malformed`.
    """
    outer, tbs, algorithm, signature = _signed(data, what="revocation list", code="revocation_list_malformed")
    body = outer.inside(tbs)
    if body.peek() == der.INTEGER and body.integer("version") != 1:
        body.refuse("expected version 2")
    if body.take(der.SEQUENCE, "algorithm").raw != algorithm.raw:
        body.refuse("the algorithm in the body is another than the one beside the signature")
    kind, digest = _algorithm(outer.inside(algorithm))
    issuer = body.take(der.SEQUENCE, "issuer")
    this_update = body.time("this update")
    timed = body.peek() in (der.UTC_TIME, der.GENERALIZED_TIME)
    next_update = body.time("next update") if timed else None
    revoked: set[int] = set()
    critical: set[str] = set()
    if (entries := body.optional(der.SEQUENCE, "entries")) is not None:
        listed = body.inside(entries)
        while listed.more:
            entry = listed.enter(der.SEQUENCE, "entry")
            revoked.add(entry.integer("serial number"))
            entry.time("revocation date")
            critical |= {oid for oid, is_critical, _ in _extensions(entry, None) if is_critical}
            if len(revoked) > MAX_REVOKED:
                body.refuse(f"more than {MAX_REVOKED} entries")
    critical |= {oid for oid, is_critical, _ in _extensions(body, der.context(0)) if is_critical}
    body.end("body")
    return RevocationList(
        der=data,
        tbs=tbs.raw,
        algorithm=kind,
        digest=digest,
        issuer=issuer.raw,
        issuer_name=_common_name(outer.inside(issuer)),
        this_update=this_update,
        next_update=next_update,
        revoked=frozenset(revoked),
        critical=tuple(sorted(critical)),
        signature=signature,
    )


def load_x509(data: bytes, *, what: str, code: str) -> x509.Certificate:
    """Returns the certificate in the DER `data` as `cryptography` reads it, all of it: what that library looks at only
    when it is asked (extensions, times, key) it is asked for here, so that nothing of it fails later.

    Raises:
        MalformedInput: `code`.
    """
    try:
        certificate = x509.load_der_x509_certificate(data)
        for member in ("extensions", "not_valid_before_utc", "not_valid_after_utc", "subject", "issuer"):
            getattr(certificate, member)
        certificate.public_key()
    except UNREADABLE as exc:
        raise MalformedInput(f"{what}: a certificate or key that cannot be read", code=code) from exc
    return certificate


def _signed(data: bytes, *, what: str, code: str) -> tuple[der.Reader, der.Element, der.Element, bytes]:
    """The envelope of a certificate or list: its reader, the signed body, algorithm and signature, and nothing else."""
    top = der.Reader(data, what=what, code=code)
    if len(data) > MAX_DOCUMENT:
        top.refuse(f"expected at most {MAX_DOCUMENT} bytes, got {len(data)}")
    outer = top.enter(der.SEQUENCE, what)
    top.end(what)
    tbs = outer.take(der.SEQUENCE, "body")
    algorithm = outer.take(der.SEQUENCE, "algorithm")
    signature = outer.bits("signature", whole=True)
    outer.end("signature")
    return outer, tbs, algorithm, signature


def _algorithm(read: der.Reader) -> tuple[str, str]:
    """Signature scheme and hash of an AlgorithmIdentifier.

    NULL parameters are read where RFC 5758 wants none (one TEE library writes them): they change nothing.
    """
    oid = read.oid("algorithm")
    if oid == _PSS_OID:
        return RSA_PSS, _pss(read.enter(der.SEQUENCE, "PSS parameters"))
    if oid not in _SIGNATURE_OIDS:
        read.refuse(f"the signature algorithm {oid}, which is not one of those accepted")
    read.optional(der.NULL, "parameters")
    read.end("algorithm")
    return _SIGNATURE_OIDS[oid]


def _pss(read: der.Reader) -> str:
    """The hash of PSS parameters (RFC 4055) in which both hashes are this one and the salt is as long."""
    digest = _hash(read.enter(der.context(0), "hash").enter(der.SEQUENCE, "hash"))
    mask = read.enter(der.context(1), "mask").enter(der.SEQUENCE, "mask")
    if mask.oid("mask") != _MGF1_OID or _hash(mask.enter(der.SEQUENCE, "hash of the mask")) != digest:
        read.refuse("PSS with another mask than MGF1 of the same hash")
    salt = read.enter(der.context(2), "salt").integer("salt")
    if salt != _HASHES[digest].digest_size:
        read.refuse(f"PSS with a salt of {salt} bytes")
    trailer = read.optional(der.context(3), "trailer")
    if trailer is not None and trailer.content != b"\x02\x01\x01":
        read.refuse("PSS with another trailer")
    read.end("PSS parameters")
    return digest


def _hash(read: der.Reader) -> str:
    oid = read.oid("hash")
    if oid not in _HASH_OIDS:
        read.refuse(f"the hash {oid}, which is not one of those accepted")
    read.optional(der.NULL, "parameters")
    read.end("hash")
    return _HASH_OIDS[oid]


def _public_key(read: der.Reader, spki: bytes) -> PublicKey:
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise MalformedInput(f"{read.what}: not a public key that is known here", code=read.code) from exc
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        read.refuse("a public key that is neither RSA nor on an elliptic curve of NIST")
    return key


def _common_name(name: der.Reader) -> str:
    """The one common name in a name, "" where there is none, more than one, or one that is not for printing."""
    found = []
    while name.more:
        group = name.enter(der.SET, "name")
        while group.more:
            pair = group.enter(der.SEQUENCE, "name")
            oid, tag = pair.oid("name"), pair.peek()
            if oid != _COMMON_NAME or tag not in (der.UTF8_STRING, der.PRINTABLE_STRING, der.IA5_STRING):
                continue
            found.append(pair.take(tag, "name").content)
    if len(found) != 1 or len(found[0]) > 128 or not all(0x20 <= byte < 0x7F for byte in found[0]):
        return ""
    return found[0].decode("ascii")


def _extensions(read: der.Reader, tag: int | None) -> tuple[tuple[str, bool, bytes], ...]:
    """The extensions that come next, inside `tag` where there is one."""
    if not read.more:
        return ()
    if tag is not None:
        wrapped = read.enter(tag, "extensions")
        listed = wrapped.enter(der.SEQUENCE, "extensions")
        wrapped.end("extensions")
    else:
        listed = read.enter(der.SEQUENCE, "extensions")
    found: list[tuple[str, bool, bytes]] = []
    while listed.more:
        one = listed.enter(der.SEQUENCE, "extension")
        oid = one.oid("extension")
        critical = one.peek() == der.BOOLEAN and one.boolean("extension")
        found.append((oid, critical, one.take(der.OCTET_STRING, "extension").content))
        one.end("extension")
    if len({oid for oid, _, _ in found}) != len(found):  # whoever checks the first may use the second
        read.refuse("an extension is there twice")
    return tuple(found)


def _basic_constraints(read: der.Reader | None) -> tuple[bool, int | None]:
    """Whether it may issue certificates, and how many issuers may follow it."""
    if read is None:
        return False, None
    inner = read.enter(der.SEQUENCE, "basic constraints")
    read.end("basic constraints")
    ca = inner.peek() == der.BOOLEAN and inner.boolean("basic constraints")
    length = inner.integer("path length") if inner.more else None
    inner.end("basic constraints")
    if length is not None and (length < 0 or not ca):
        read.refuse("a path length that has no meaning")
    return ca, length


def _key_usage(read: der.Reader | None) -> int | None:
    """The first byte of the key usage, where all usages of interest here stand."""
    if read is None:
        return None
    bits = read.bits("key usage", whole=False)
    read.end("key usage")
    return bits[0] if bits else 0


def verify_signature(
    key: PublicKey, signature: bytes, message: bytes, *, algorithm: str, digest: str
) -> None:
    """Verifies `signature` by `key` over `message`.

    Raises:
        MalformedInput: code `certificate_signature_invalid`: it does not verify, or the key is of another kind
            than the algorithm, or of a size that is not accepted.
    """
    hashed = _HASHES[digest]
    try:
        if isinstance(key, rsa.RSAPublicKey) and algorithm in (RSA_PSS, RSA_PKCS1):
            if is_accepted(key):
                scheme = (
                    padding.PSS(padding.MGF1(hashed), hashed.digest_size)
                    if algorithm == RSA_PSS
                    else padding.PKCS1v15()
                )
                return key.verify(signature, message, scheme, hashed)
        elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm == ECDSA and is_accepted(key):
            return key.verify(signature, message, ec.ECDSA(hashed))
    except (InvalidSignature, ValueError):
        pass
    raise MalformedInput(
        f"a signature that does not verify with {describe_key(key)} as {algorithm} with {digest}",
        code="certificate_signature_invalid",
    )


def is_accepted(key: object) -> bool:
    """Returns whether `key` is of a kind and size whose signatures count: RSA within `MIN_RSA` to `MAX_RSA` bits, or
    on P-256, P-384 or P-521.
    """
    if isinstance(key, rsa.RSAPublicKey):
        return MIN_RSA <= key.key_size <= MAX_RSA
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1
    )


def describe_key(key: PublicKey) -> str:
    """Returns kind and size of `key` for a person."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA-{key.key_size}"
    return f"an EC key on {key.curve.name}"
