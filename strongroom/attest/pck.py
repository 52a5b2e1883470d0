"""Intel's provisioning certificates: the PCK chain of a quote, the signer of collateral, and their revocation lists
(docs/spec/dcap.md §3).

All of them hang under one root, so a chain alone says little: which certificate may sign what is decided by its place
and its name, and both are checked. Everything is ECDSA P-256 with SHA-256; no other algorithm is taken
(docs/adr/0009-which-certificates-are-read-how.md says why these chains have rules of their own).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID, ObjectIdentifier, SignatureAlgorithmOID

from strongroom.attest import der
from strongroom.attest.certificate import UNREADABLE, load_x509
from strongroom.errors import MalformedInput

ROOT = "Intel SGX Root CA"
PCK_CAS = {"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}
PCK = "Intel SGX PCK Certificate"
SIGNING = "Intel SGX TCB Signing"
"""Common names; under Intel's root there is one certificate for each purpose, told apart by these."""
MAX_CERTIFICATE = 4096
"""Bytes of one DER certificate; a PCK certificate has about 1,250."""
MAX_SERIAL = 1 << 160
"""Serial numbers are positive and have at most 20 bytes (RFC 5280 section 4.1.2.2)."""

_SGX_ARC = "1.2.840.113741.1.13.1"
_WIDTHS = (64, 76)
"""Characters in a line of PEM: RFC 7468's, and MIME's, which older platforms of clouds have in their quotes."""
CONFIGURATION = {1: "dynamic_platform", 2: "cached_keys", 3: "smt_enabled"}
"""What the PCK certificate of a multi-package platform says: place in its extension -> name."""
_FOREIGN = (*UNREADABLE, x509.ExtensionNotFound)
"""What `cryptography` raises about certificates that it cannot read, or that lack what they must have."""


@dataclass(frozen=True, slots=True)
class PckFacts:
    """What Intel certified about a platform in its PCK certificate: bytes as they stand there.

    `components` are the 16 SVNs of the SGX TCB. `configuration`: of multi-package platforms, as (name, "true" or
    "false").
    """

    ppid: bytes
    components: tuple[int, ...]
    pce_svn: int
    cpu_svn: bytes
    pce_id: bytes
    fmspc: bytes
    sgx_type: int
    platform_instance_id: bytes
    configuration: tuple[tuple[str, str], ...]


def _refuse(why: str, *, code: str = "pck_chain_invalid") -> NoReturn:
    raise MalformedInput(f"certificates: {why}", code=code)


def parse_pem_chain(text: bytes, *, nul: bool) -> tuple[bytes, ...]:
    """Returns the DER of the certificates in `text`: PEM with lines of 64 or 76 characters and single line feeds, one
    behind each certificate, with one NUL behind all where `nul` allows it.

    Nothing else, because what PEM readers skip is signed by nobody.

    Raises:
        MalformedInput: code `pck_chain_invalid`.
    """
    rest, found = text.removesuffix(b"\x00") if nul else text, []
    while rest:
        match = re.match(
            rb"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)-----END CERTIFICATE-----\n", rest
        )
        if match is None or len(match[1]) > 2 * MAX_CERTIFICATE:
            _refuse("expected PEM certificates in their one spelling")
        try:
            found.append(base64.b64decode(match[1].replace(b"\n", b""), validate=True))
        except binascii.Error:
            _refuse("expected base64 in a PEM certificate")
        if match[0] not in (pem(found[-1], width=width) for width in _WIDTHS):
            _refuse("expected PEM certificates in their one spelling")
        rest = rest[match.end() :]
    return tuple(found)


def pem(certificate: bytes, *, width: int) -> bytes:
    """Returns the PEM spelling of a certificate's DER in lines of `width` characters."""
    text = base64.b64encode(certificate)
    lines = b"".join(text[i : i + width] + b"\n" for i in range(0, len(text), width))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"-----END CERTIFICATE-----\n"


def fingerprint(certificate: bytes) -> str:
    """Returns the name of a trust anchor in policies: the SHA-256 of its certificate's DER, as hex."""
    return hashlib.sha256(certificate).hexdigest()


def load_chain(
    ders: tuple[bytes, ...], names: tuple[tuple[str, ...], ...], *, code: str
) -> tuple[x509.Certificate, ...]:
    """Returns the certificates `ders`, leaf first and root last: each issued by the next, of the accepted `names` (one
    tuple of common names for each place; only `PCK` and `SIGNING` are no authorities), with P-256 keys.

    The root's own signature counts for nothing: who calls compares its fingerprint. Time is `validity`'s.

    Raises:
        MalformedInput: `code`.
    """
    if len(ders) != len(names):
        _refuse(f"expected a chain of {len(names)} certificates, got {len(ders)}", code=code)
    chain = tuple(load_x509(one, what="certificates", code=code) for one in ders)
    try:
        if not all(_in_whole_bytes(one.signature, data) for one, data in zip(chain, ders, strict=True)):
            _refuse("a signature is not of whole bytes", code=code)
        for certificate, accepted in zip(chain, names, strict=True):
            _check_certificate(certificate, accepted, code=code)
        for certificate, issuer in pairwise(chain):
            if certificate.issuer != issuer.subject:
                _refuse("a certificate names another issuer than the next one", code=code)
            certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        _refuse("a certificate is not signed by its issuer", code=code)
    except _FOREIGN:
        _refuse("a certificate cannot be read", code=code)
    return chain


def _in_whole_bytes(signature: bytes, data: bytes) -> bool:
    """Whether `data` (DER) ends with `signature` in its one spelling. `cryptography` also takes a BIT STRING that calls
    its last bits unused where they are zero, and the signature does not say which it was.
    """
    return len(signature) < 0x7F and data.endswith(bytes([0x03, len(signature) + 1, 0]) + signature)


def _check_certificate(certificate: x509.Certificate, accepted: tuple[str, ...], *, code: str) -> None:
    """Name, key, algorithm, serial number and purpose of one certificate."""
    authority = accepted not in ((PCK,), (SIGNING,))
    if common_name(certificate) not in accepted:
        _refuse(f"expected a certificate with the common name {' or '.join(accepted)}", code=code)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        _refuse("expected a P-256 key", code=code)
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        _refuse("expected signatures by ECDSA with SHA-256", code=code)
    if not 0 < certificate.serial_number < MAX_SERIAL:
        _refuse("expected a positive serial number of at most 20 bytes", code=code)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    signs = usage.key_cert_sign if authority else usage.digital_signature
    if basic.ca is not authority or not signs:
        kind = "an authority" if authority else "no authority"
        _refuse(f"expected {kind} with the key usage of one: {accepted[0]}", code=code)
    known = (x509.BasicConstraints, x509.KeyUsage)
    if any(e.critical and not isinstance(e.value, known) for e in certificate.extensions):
        _refuse("a critical extension is not understood", code=code)


def common_name(certificate: x509.Certificate) -> str:
    """Returns the one common name of the certificate's subject, "" where there is none or more than one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Returns the key of a certificate that `load_chain` returned."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):  # pragma: no cover - load_chain has refused it
        _refuse("expected a P-256 key")
    return key


def parse_point(raw: bytes) -> ec.EllipticCurvePublicKey:
    """Returns the P-256 key with the coordinates `raw` (x and y, 64 bytes).

    Raises:
        MalformedInput: code `attestation_key_unbound`, no point of the curve.
    """
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + raw)
    except ValueError:
        _refuse("the attestation key is no point of P-256", code="attestation_key_unbound")


def signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Returns whether `signature` (raw r and s, 64 bytes) is by `key` over `message`, ECDSA with SHA-256."""
    if len(signature) != 64:
        return False
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def validity(certificates: tuple[x509.Certificate, ...]) -> tuple[datetime, datetime]:
    """Returns from when and until when all of `certificates` are valid."""
    return (
        max(c.not_valid_before_utc for c in certificates),
        min(c.not_valid_after_utc for c in certificates),
    )


def load_crl(data: bytes, issuer: x509.Certificate, *, name: str) -> x509.CertificateRevocationList:
    """Returns the revocation list `data` (DER), signed by `issuer`, complete and direct.

    Raises:
        MalformedInput: code `collateral_malformed` or `collateral_signature_invalid`.
    """
    try:
        crl = x509.load_der_x509_crl(data)
        critical = [e for e in crl.extensions if e.critical]
        partial = any(
            isinstance(e.value, x509.DeltaCRLIndicator | x509.IssuingDistributionPoint)
            for e in crl.extensions
        )
        dated = crl.next_update_utc is not None and crl.last_update_utc <= crl.next_update_utc
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        valid = crl.issuer == issuer.subject and usage.crl_sign and crl.is_signature_valid(key_of(issuer))
        algorithm = crl.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256
        whole = _in_whole_bytes(crl.signature, data)
    except _FOREIGN:
        _refuse(f"{name}: not a revocation list", code="collateral_malformed")
    if critical or partial or not dated or not whole:
        _refuse(f"{name}: not a complete list with its dates", code="collateral_malformed")
    if not valid or not algorithm:
        _refuse(
            f"{name}: not signed by the authority of these certificates", code="collateral_signature_invalid"
        )
    return crl


def crl_number(crl: x509.CertificateRevocationList) -> str:
    """Returns the list's number as decimal, "" where it has none."""
    try:
        return str(crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
    except x509.ExtensionNotFound:
        return ""


def is_revoked(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    """Returns whether `crl` lists `certificate`, for whatever reason."""
    try:
        return crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    except _FOREIGN:
        return True  # a list that cannot be read to its end clears nobody


# --- the SGX extension of a PCK certificate (§3.3) ---


def _entries(sequence: der.Reader, arc: str) -> dict[int, der.Element]:
    """The members of a sequence of (OID under `arc`, value), by the OID's last number; none twice."""
    found: dict[int, der.Element] = {}
    while sequence.more:
        pair = sequence.enter(der.SEQUENCE, arc)
        oid = pair.oid(arc)
        number = oid.removeprefix(f"{arc}.")
        if oid == number or not number.isdecimal() or int(number) in found:
            sequence.refuse(f"{oid}: foreign under {arc}, or there twice")
        found[int(number)] = pair.take(pair.peek() or 0, oid)
        pair.end(oid)
    return found


def parse_pck(certificate: x509.Certificate) -> PckFacts:
    """Returns what the SGX extension of a PCK certificate says.

    Raises:
        MalformedInput: code `pck_chain_invalid`.
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(ObjectIdentifier(_SGX_ARC)).value
    except _FOREIGN:
        _refuse("the PCK certificate has no SGX extension")
    if not isinstance(extension, x509.UnrecognizedExtension):
        _refuse("the PCK certificate has no SGX extension")
    read = der.Reader(extension.value, what="certificates: SGX extension", code="pck_chain_invalid")
    entries = _entries(read.enter(der.SEQUENCE, _SGX_ARC), _SGX_ARC)
    read.end(_SGX_ARC)
    tcb = _entries(read.inside(_value(read, entries, 2, der.SEQUENCE)), f"{_SGX_ARC}.2")
    configuration = (
        _entries(read.inside(_value(read, entries, 7, der.SEQUENCE)), f"{_SGX_ARC}.7") if 7 in entries else {}
    )
    return PckFacts(
        ppid=_octets(read, entries, 1, 16),
        components=tuple(_integer(read, tcb, place, 255) for place in range(1, 17)),
        pce_svn=_integer(read, tcb, 17, 65535),
        cpu_svn=_octets(read, tcb, 18, 16),
        pce_id=_octets(read, entries, 3, 2),
        fmspc=_octets(read, entries, 4, 6),
        sgx_type=_integer(read, entries, 5, 255, tag=der.ENUMERATED),
        platform_instance_id=_octets(read, entries, 6, 16) if 6 in entries else b"",
        configuration=tuple(
            (name, "true" if _boolean(read, configuration, place) else "false")
            for place, name in CONFIGURATION.items()
            if place in configuration
        ),
    )


def _value(read: der.Reader, entries: dict[int, der.Element], place: int, tag: int) -> der.Element:
    return _alone(read, entries, place).take(tag, f"number {place}")


def _alone(read: der.Reader, entries: dict[int, der.Element], place: int) -> der.Reader:
    """A reader of the one element at `place`."""
    if place not in entries:
        read.refuse(f"number {place} is missing")
    return der.Reader(entries[place].raw, what=read.what, code=read.code)


def _octets(read: der.Reader, entries: dict[int, der.Element], place: int, size: int) -> bytes:
    data = _value(read, entries, place, der.OCTET_STRING).content
    if len(data) != size:
        read.refuse(f"number {place}: expected {size} octets")
    return data


def _integer(
    read: der.Reader, entries: dict[int, der.Element], place: int, high: int, *, tag: int = der.INTEGER
) -> int:
    number = _alone(read, entries, place).integer(f"number {place}", tag=tag)
    if not 0 <= number <= high:
        read.refuse(f"number {place}: expected an integer within 0..{high}")
    return number


def _boolean(read: der.Reader, entries: dict[int, der.Element], place: int) -> bool:
    return _alone(read, entries, place).boolean(f"number {place}")
