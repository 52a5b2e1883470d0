"""Certificates of TPM keys: from an endorsement or attestation key to an accepted root (docs/spec/tpm.md §5).

Rules of this file:

1. A certificate is an anchor because its SHA-256 is in `roots`, for no other reason. No roots accept nothing.
2. A critical extension that is not understood here ends the path.
3. Certificates are found by content in whatever was handed in; one that cannot be read is not used.
4. Nothing touches serial numbers, and no revocation list is read: what that leaves open is said in §5.4.

Not `x509.verify_chain`: here an anchor may be an intermediate, and nobody looks at what an anchor is signed with
(docs/adr/0009-which-certificates-are-read-how.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

from strongroom.attest.certificate import UNREADABLE, is_accepted, load_x509
from strongroom.attest.x509 import pem_blocks
from strongroom.errors import AttestationRefused, MalformedInput

MAX_PATH = 5
"""Certificates of a path with leaf and root; vendors use three to four."""
MAX_CERTIFICATES = 32
"""Certificates looked at in all that was handed in."""

EK_USE = ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate: the key is the endorsement key of a TPM."""
AK_USE = ObjectIdentifier("2.23.133.8.3")
"""tcg-kp-AIKCertificate: the key is an attestation key that its issuer has seen in a TPM."""
_KNOWN = frozenset(
    ObjectIdentifier(oid) for oid in ("2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.32", "2.5.29.37")
)
"""Extensions that may be critical: key usage, alternative names, basic constraints, policies, extended key usage."""
_MODEL = {
    ObjectIdentifier("2.23.133.2.1"): "manufacturer",
    ObjectIdentifier("2.23.133.2.2"): "model",
    ObjectIdentifier("2.23.133.2.3"): "version",
}
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)
_HASHES = ("sha256", "sha384", "sha512")


@dataclass(frozen=True, slots=True)
class Chain:
    """A certificate that leads to an accepted root: the root's SHA-256 (hex), the leaf's key and DER digest
    (hex), its issuer's name, and what the TPM's maker wrote about it as (name, value).
    """

    root: str
    leaf: str
    key: CertificatePublicKeyTypes
    issuer: str
    model: tuple[tuple[str, str], ...]


def load_certificates(documents: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    """Returns the certificates in `documents`: each is one in DER, or text with any number in PEM; what is
    neither is left out, for it may belong to another format.
    """
    found: list[x509.Certificate] = []
    for data in documents:
        try:
            blocks = [b for label, b in pem_blocks(data) if label == "CERTIFICATE"] or [data]
        except MalformedInput:
            continue
        for block in blocks[:MAX_CERTIFICATES]:
            certificate = _load(block)
            if certificate is not None and len(found) < MAX_CERTIFICATES:
                found.append(certificate)
    return tuple(found)


def _load(data: bytes) -> x509.Certificate | None:
    try:
        return load_x509(data, what="TPM", code="tpm_certificate_refused")
    except MalformedInput:
        return None


def verify_chain(
    leaf_der: bytes,
    *,
    use: ObjectIdentifier,
    certificates: tuple[x509.Certificate, ...],
    roots: tuple[str, ...],
    now: datetime,
) -> Chain:
    """Returns the chain from the certificate `leaf_der` to one of `roots` (hex SHA-256 of a certificate's DER).

    1. the leaf can be read and is no CA
    2. every certificate of the path, the root too, is valid at `now`, has no critical extension that is unknown, and a
       key that counts: RSA from 2048 bits, P-256, P-384 or P-521
    3. each is signed by the next, with SHA-256, -384 or -512; the next's name is its issuer, and it is a CA that
       may sign certificates and allows a path of this length
    4. the last is one of `roots`, and is not the leaf itself
    5. the leaf is for `use`: by its extended key uses; or, where it states none, because its issuer's are for TPM keys
       alone. Its key usage, where it states one, is that of such a key: an EK decrypts, an AK signs

    Raises:
        AttestationRefused: code `tpm_certificate_refused`; `root_not_accepted` where all is well but the root.
    """
    leaf = _load(leaf_der)
    if leaf is None:
        raise _refuse("not an X.509 certificate that can be read")
    try:
        if _is_ca(leaf):
            raise _refuse("the certificate is that of a CA, not of a TPM's key")
        root, issuer = _walk(leaf, certificates, roots, now)
        _check_use(leaf, issuer, use)
        return Chain(
            root=root,
            leaf=hashlib.sha256(leaf_der).hexdigest(),
            key=leaf.public_key(),
            issuer=leaf.issuer.rfc4514_string()[:256],
            model=_model(leaf),
        )
    except UNREADABLE as exc:
        raise _refuse("a name, key or extension that cannot be read") from exc


def _refuse(why: str, *, code: str = "tpm_certificate_refused") -> AttestationRefused:
    return AttestationRefused(why, code=code)


def _check_use(leaf: x509.Certificate, issuer: x509.Certificate, use: ObjectIdentifier) -> None:
    """Google's certificates state no extended use, and EKs and AKs have one issuer: the key usage tells them apart."""
    uses = _extension(leaf, x509.ExtendedKeyUsage)
    if uses is None:
        inherited = _extension(issuer, x509.ExtendedKeyUsage)
        stated = use in (EK_USE, AK_USE) and inherited is not None and set(inherited) <= {EK_USE, AK_USE}
    else:
        stated = use in uses
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None:
        fits = uses is not None
    else:
        decrypts = usage.key_encipherment or usage.key_agreement
        fits = decrypts and not usage.digital_signature if use == EK_USE else usage.digital_signature
    if not stated or not fits:
        raise _refuse(
            f"the certificate is not for this use: neither it nor its issuer says {use.dotted_string}"
        )


def _walk(
    leaf: x509.Certificate, certificates: tuple[x509.Certificate, ...], roots: tuple[str, ...], now: datetime
) -> tuple[str, x509.Certificate]:
    """Returns the digest of the accepted root that the path from `leaf` ends at, and the leaf's issuer."""
    _check_one(leaf, now)
    current, first, ended = leaf, leaf, ""
    for depth in range(MAX_PATH - 1):
        used = current.signature_hash_algorithm
        if used is None or used.name not in _HASHES:
            raise _refuse(f"{_name(current)} is signed with {used.name if used else 'no hash'}")
        issuer = _issuer(current, certificates, depth, now)
        if issuer is None:
            raise _refuse(f"no certificate is here that issued {_name(current)}")
        first = issuer if depth == 0 else first
        ended = hashlib.sha256(issuer.public_bytes(Encoding.DER)).hexdigest()
        if ended in roots:
            return ended, first
        if issuer.subject == issuer.issuer:
            raise _refuse(
                f"the root {_name(issuer)}, sha256 {ended}, is not accepted", code="root_not_accepted"
            )
        current = issuer
    raise _refuse(f"no root within {MAX_PATH} certificates")


def _issuer(
    certificate: x509.Certificate, certificates: tuple[x509.Certificate, ...], depth: int, now: datetime
) -> x509.Certificate | None:
    """The certificate that issued `certificate`, `depth` intermediates above the leaf: of several (a renewed one
    beside the old) the first that may.
    """
    refused: AttestationRefused | None = None
    for candidate in certificates:
        if candidate.subject != certificate.issuer or candidate == certificate:
            continue
        try:
            certificate.verify_directly_issued_by(candidate)
        except (InvalidSignature, *UNREADABLE):
            continue
        try:
            _check_issuer(candidate, depth, now)
        except AttestationRefused as exc:
            refused = refused or exc
            continue
        return candidate
    if refused is not None:
        raise refused
    return None


def _check_issuer(issuer: x509.Certificate, depth: int, now: datetime) -> None:
    _check_one(issuer, now)
    constraints = _extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise _refuse(f"{_name(issuer)} is no CA")
    if constraints.path_length is not None and constraints.path_length < depth:
        raise _refuse(f"{_name(issuer)} does not allow a path of this length")
    usage = _extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise _refuse(f"{_name(issuer)} may not sign certificates")


def _check_one(certificate: x509.Certificate, now: datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        raise _refuse(
            f"{_name(certificate)} is valid from {begin.isoformat()} to {end.isoformat()}, "
            f"not at {now.isoformat(timespec='seconds')}"
        )
    if not is_accepted(certificate.public_key()):
        raise _refuse(f"{_name(certificate)} has a key that is too small, or of a kind that is not used here")
    unknown = [e.oid.dotted_string for e in certificate.extensions if e.critical and e.oid not in _KNOWN]
    if unknown:
        raise _refuse(
            f"{_name(certificate)} has the critical extension {unknown[0]}, which is not known here"
        )


def _is_ca(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> _Kind | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _name(certificate: x509.Certificate) -> str:
    return (certificate.subject.rfc4514_string() or "a certificate without a name")[:128]


def _model(leaf: x509.Certificate) -> tuple[tuple[str, str], ...]:
    """What the alternative name says of the TPM: manufacturer, model, version (TCG EK Credential Profile §3.2.9)."""
    names = _extension(leaf, x509.SubjectAlternativeName)
    if names is None:
        return ()
    found = {}
    for directory in names.get_values_for_type(x509.DirectoryName):
        for attribute in directory:
            if attribute.oid in _MODEL and isinstance(attribute.value, str):
                found[_MODEL[attribute.oid]] = attribute.value[:64]
    return tuple(sorted(found.items()))
