"""AWS Nitro Enclaves: attestation documents, format `nitro` (docs/spec/nitro.md).

A document is a COSE_Sign1 of the Nitro hypervisor's, with the whole chain of certificates inside. There is
nothing to staple and no collateral: who knows the root's fingerprint can verify it.

Rules of this file:

1. The root in the document must *be* an accepted one, byte for byte; no name, key identifier or store decides.
2. Only ES384 is ever computed, whatever the header says; a header that says otherwise has failed.
3. No certificate is asked for its serial number or for names that mean nothing here.
4. Remembered is only what follows from the bytes of certificates (what one says, that one was issued by another):
   AWS's authorities come with every document. Root, times and the document's signature are checked each time.

Why these chains have rules of their own: docs/adr/0009-which-certificates-are-read-how.md.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from strongroom.attest.cbor import ARRAY, Reader, encode_bytes, encode_head
from strongroom.attest.certificate import UNREADABLE, load_x509
from strongroom.attest.evidence import (
    MAX_SKEW,
    Absent,
    Check,
    Claims,
    Examination,
    check,
    check_impossible,
    one_of,
)
from strongroom.errors import MalformedInput

FORMAT = "nitro"
PINNED_ROOTS: tuple[str, ...] = ("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b",)
"""SHA-256 of the DER of `CN=aws.nitro-enclaves, OU=AWS, O=Amazon, C=US` (G1, valid until 2049), as AWS publishes
it.
"""
MAX_DOCUMENT = 32 * 1024
"""Bytes of a document; genuine ones are below 8 KiB (five certificates of at most 1 KiB, 3 KiB of user data)."""
MAX_CERTIFICATE = 1024
"""Bytes of one certificate (AWS's own limit)."""
MAX_CA_CERTIFICATES = 8
"""Certificates above the leaf; genuine documents carry four."""
MAX_USER_DATA = 1024
"""Bytes of user data, nonce and public key each (AWS's own limit)."""
PCR_SIZE = 48
"""Bytes of a PCR under SHA-384, the one digest that AWS defines."""
MAX_PCRS = 32
"""PCRs of a document; their numbers are below that (AWS's own limit)."""

_REMEMBERED = 64
"""Certificates, and pairs of them, that are remembered; each is at most `MAX_CERTIFICATE` long, whoever sends it."""
_ES384 = -35
_SIGNATURE_SIZE = 96
_MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999: the end of Python's calendar."""
_CODE = "evidence_malformed"
_WHAT = "nitro document"


@dataclass(frozen=True, slots=True)
class NitroDocument:
    """A document as it arrived, unverified. `protected` and `payload`: the signed bytes. Members that are absent
    or null are None; `pcrs` are (number, 48 bytes) in the document's order.
    """

    protected: bytes
    algorithm: int
    payload: bytes
    signature: bytes
    module_id: str
    timestamp: datetime
    pcrs: tuple[tuple[int, bytes], ...]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    @property
    def debug(self) -> bool:
        """Whether the enclave was started in debug mode: PCR0 is then all zero (§4)."""
        return not any(dict(self.pcrs)[0])


def parse_document(data: bytes) -> NitroDocument:
    """Returns the attestation document that `data` is (docs/spec/nitro.md §2). Nothing in it is verified.

    Raises:
        MalformedInput: code `evidence_malformed`.
    """
    outer = Reader(data, limit=MAX_DOCUMENT, what=_WHAT, code=_CODE)
    outer.array(4, 4)
    protected = outer.byte_string(64)
    list(outer.keys(outer.integer, limit=0))  # the unprotected header is empty
    payload = outer.byte_string(MAX_DOCUMENT)
    signature = outer.byte_string(_SIGNATURE_SIZE)
    outer.end()
    if len(signature) != _SIGNATURE_SIZE:
        outer.refuse(f"signature: expected {_SIGNATURE_SIZE} bytes, got {len(signature)}")
    header = Reader(protected, limit=64, what=f"{_WHAT}: protected header", code=_CODE)
    algorithms = [header.integer() for key in header.keys(header.integer, limit=1) if key == 1]
    if not algorithms:
        header.refuse("expected the algorithm, and nothing else")
    header.end()
    return _parse_payload(payload, protected=protected, algorithm=algorithms[0], signature=signature)


def _parse_payload(payload: bytes, *, protected: bytes, algorithm: int, signature: bytes) -> NitroDocument:
    """The members of §2.3, each once and no other: a NitroTPM's document, of the same root, has others."""
    read = Reader(payload, limit=MAX_DOCUMENT, what=_WHAT, code=_CODE)
    texts: dict[str, str] = {}
    strings: dict[str, bytes | None] = {}
    pcrs: tuple[tuple[int, bytes], ...] | None = None
    cabundle: tuple[bytes, ...] | None = None
    timestamp: int | None = None
    for name in read.keys(lambda: read.text(32), limit=9, may_be_open=True):
        match name:
            case "module_id" | "digest":
                texts[name] = read.text(256)
            case "timestamp":
                timestamp = read.unsigned()
            case "pcrs":
                pcrs = tuple(
                    (number, read.byte_string(PCR_SIZE))
                    for number in read.keys(read.unsigned, limit=MAX_PCRS, may_be_open=True)
                )
            case "cabundle":
                count = read.array(1, MAX_CA_CERTIFICATES)
                cabundle = tuple(read.byte_string(MAX_CERTIFICATE) for _ in range(count))
            case "certificate":
                strings[name] = read.byte_string(MAX_CERTIFICATE)
            case "public_key" | "user_data" | "nonce":
                strings[name] = None if read.null() else read.byte_string(MAX_USER_DATA)
            case _:  # not its name: names that a stranger chose do not belong into our messages
                read.refuse("a member that enclaves' documents do not have")
    read.end()
    certificate, module_id = strings.get("certificate"), texts.get("module_id")
    if not certificate or not module_id or pcrs is None or cabundle is None or timestamp is None:
        read.refuse("expected module_id, digest, timestamp, pcrs, certificate and cabundle")
    if texts.get("digest") != "SHA384":
        read.refuse("digest: expected SHA384")
    if not 0 < timestamp <= _MAX_TIME_MS:
        read.refuse("timestamp: expected milliseconds since 1970, before the year 10000")
    if any(number >= MAX_PCRS or len(value) != PCR_SIZE for number, value in pcrs) or 0 not in dict(pcrs):
        read.refuse(f"pcrs: expected PCR0 and others below {MAX_PCRS}, each of {PCR_SIZE} bytes")
    if not module_id.isascii() or not module_id.isprintable():
        read.refuse("module_id: expected printable ASCII")
    return NitroDocument(
        protected=protected,
        algorithm=algorithm,
        payload=payload,
        signature=signature,
        module_id=module_id,
        timestamp=datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=timestamp),
        pcrs=pcrs,
        certificate=certificate,
        cabundle=cabundle,
        public_key=strings.get("public_key"),
        user_data=strings.get("user_data"),
        nonce=strings.get("nonce"),
    )


# The checks of this format in their order: id -> title, what is expected, the code of a refusal.
_CHECKS = {
    "evidence.form": (
        "The evidence is well-formed",
        "a COSE_Sign1 of an enclave's attestation document, and no endorsements",
        _CODE,
    ),
    "nitro.algorithm": ("The document says that it is signed with ES384", "ES384 (-35)", "nitro_algorithm"),
    "evidence.root": ("The chain begins with an accepted root", "", "root_not_accepted"),
    "nitro.chain": (
        "Each certificate was issued by the one before it",
        "names and signatures from the root to the leaf",
        "nitro_chain_invalid",
    ),
    "nitro.certificates": (
        "Each certificate may do what it does here",
        "P-384, ECDSA with SHA-384, authority, key usage and path length as its place requires",
        "nitro_certificate_not_allowed",
    ),
    "evidence.signature": (
        "The document is signed by the leaf's key",
        "a valid ES384 signature",
        "evidence_signature_invalid",
    ),
    "nitro.validity": ("Every certificate is valid now", "", "nitro_certificate_expired"),
    "nitro.timestamp": (
        "The document was made while its certificate was valid",
        "",
        "nitro_timestamp_outside_certificate",
    ),
    "evidence.time": ("The evidence is not from the future", "", "evidence_from_future"),
}
_AUTHENTIC = 6
"""Claims come back only where the first six checks passed: they make the signature chain to an accepted root."""


def examine_nitro(
    data: bytes, *, endorsements: tuple[tuple[str, bytes], ...], roots: tuple[str, ...], now: datetime
) -> Examination:
    """Examines an attestation document; `roots` are the SHA-256 (hex) of the DER of the accepted root certificates.

    1. form: the strict document of §2, and no endorsements, for this format has none
    2. algorithm: the protected header says ES384, and nothing else
    3. root: the first certificate of the bundle is an accepted root; no roots accept no evidence
    4. chain: each certificate was issued by the one before it, down to the leaf
    5. certificates: each may do what it does here (§3.5)
    6. signature: by the leaf's key, over the protected header and payload as received
    7. validity: every certificate is valid at `now`
    8. timestamp: lies within the leaf's validity
    9. time: made at most `MAX_SKEW` after `now`

    Claims come back only where 1 to 6 passed. All checks are made as soon as the form is right. Debug mode is a
    claim, for the policy to refuse: its PCRs say nothing about the code.
    """
    made: list[Check] = []

    def record(check_id: str, fault: str, got: str, expected: str = "") -> None:
        title, usual, code = _CHECKS[check_id]
        made.append(
            check(check_id, title, not fault, expected=expected or usual, got=fault or got, code=code)
        )

    # 1. form
    try:
        document, chain = _parse(data, endorsements)
    except MalformedInput as exc:
        record("evidence.form", exc.message, "")
        why = "the evidence is malformed"
        for check_id, (title, usual, code) in list(_CHECKS.items())[1:]:
            made.append(check_impossible(check_id, title, expected=usual or "–", why=why, code=code))
        return Examination(checks=tuple(made), claims=Absent(FORMAT, why))
    record("evidence.form", "", f"{len(data)} bytes, {len(chain)} certificates")
    # 2. algorithm
    algorithm = f"algorithm {document.algorithm}"
    record("nitro.algorithm", "" if document.algorithm == _ES384 else algorithm, algorithm)
    # 3. root: it must be there, byte for byte; an empty list accepts nothing
    root = hashlib.sha256(document.cabundle[0]).hexdigest()
    record("evidence.root", "" if root in roots else root, root, expected=one_of(roots))
    # 4. chain
    ders = (*document.cabundle, document.certificate)
    record("nitro.chain", _chain_fault(ders), f"{len(chain)} certificates, each issued by the one before")
    # 5. certificates
    record("nitro.certificates", _certificates_fault(chain), "as expected")
    # 6. signature
    record("evidence.signature", _signature_fault(document, chain[-1]), "a valid signature")
    # 7. to 9. times
    _check_times(record, document, chain, now)
    if all(c.passed for c in made[:_AUTHENTIC]):
        return Examination(checks=tuple(made), claims=_claims(document, chain[-1], root))
    why = "the evidence is not signed under an accepted root"
    return Examination(checks=tuple(made), claims=Absent(FORMAT, why))


def check_nonce(claims: Claims | Absent, *, nonce: bytes) -> Check:
    """The check that the document's nonce is `nonce` (32 bytes), as a server's answer to a question has it (§5.2); in
    a batch that is its root.

    It stands beside the check of the report data, which already holds the nonce: a document with the right report
    data and another nonce was not asked for by our server's code.
    """
    check_id, title, code = "nitro.nonce", "The document carries this very nonce", "nitro_nonce_mismatch"
    expected = nonce.hex()
    if isinstance(claims, Absent):
        return check_impossible(check_id, title, expected=expected, why=claims.why, code=code)
    # An absent nonce is not an empty one, and neither is ever equal: no length of `nonce` skips the comparison.
    got = dict(claims.details).get("nonce", "")
    equal = len(nonce) > 0 and hmac.compare_digest(got, expected)
    return check(check_id, title, equal, expected=expected, got=got or "no nonce", code=code)


def _parse(
    data: bytes, endorsements: tuple[tuple[str, bytes], ...]
) -> tuple[NitroDocument, tuple[x509.Certificate, ...]]:
    """The document, and its certificates from the root to the leaf."""
    if endorsements:
        raise MalformedInput(
            f"{_WHAT}: {len(endorsements)} endorsement(s) stapled to a format that has none", code=_CODE
        )
    document = parse_document(data)
    return document, tuple(_parse_certificate(der) for der in (*document.cabundle, document.certificate))


@lru_cache(maxsize=_REMEMBERED)
def _parse_certificate(der: bytes) -> x509.Certificate:
    return load_x509(der, what=_WHAT, code=_CODE)


def _chain_fault(ders: tuple[bytes, ...]) -> str:
    """What is wrong between the certificates whose DER `ders` are (root first), "" where nothing is."""
    for place, (issuer, certificate) in enumerate(pairwise(ders), start=1):
        if not _issued(certificate, issuer):
            return f"certificate {place} was not issued by certificate {place - 1}"
    return ""


@lru_cache(maxsize=_REMEMBERED)
def _issued(certificate: bytes, issuer: bytes) -> bool:
    """Whether names and signature say that `issuer` issued `certificate`: of all that is checked in a chain, only
    this follows from the two alone.
    """
    try:
        _parse_certificate(certificate).verify_directly_issued_by(_parse_certificate(issuer))
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _certificates_fault(chain: tuple[x509.Certificate, ...]) -> str:
    """What a certificate of `chain` (root first) may not do, "" where all may do what they do here (§3.5)."""
    for place, certificate in enumerate(chain):
        below = len(chain) - 2 - place  # authorities between this one and the leaf; -1 for the leaf itself
        if fault := _certificate_fault(certificate, below=below):
            return f"certificate {place}: {fault}"
    return ""


def _certificate_fault(certificate: x509.Certificate, *, below: int) -> str:
    key, is_leaf = certificate.public_key(), below < 0
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return "its key is not P-384"
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        return "it is not signed with ECDSA and SHA-384"
    if certificate.version is not x509.Version.v3:
        return "it is not of version 3"
    known = (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE)
    if any(e.critical and e.oid not in known for e in certificate.extensions):
        return "it has a critical extension that is not known here"
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return "it lacks basic constraints or key usage"
    if is_leaf:
        if constraints.value.ca or usage.key_cert_sign:
            return "a leaf that is an authority"
        return "" if usage.digital_signature else "its key may not sign documents"
    if not constraints.value.ca or not constraints.critical or not usage.key_cert_sign:
        return "it is no authority"
    length = constraints.value.path_length
    return "" if length is None or length >= below else f"path length {length}, {below} authorities below it"


def _signature_fault(document: NitroDocument, leaf: x509.Certificate) -> str:
    """ES384 over the Sig_structure (RFC 9052 section 4.4) of the bytes as received."""
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return "the leaf's key is not for ECDSA"
    signed = encode_head(ARRAY, 4) + b"\x6aSignature1" + encode_bytes(document.protected)
    signed += encode_bytes(b"") + encode_bytes(document.payload)
    r, s = (int.from_bytes(document.signature[at : at + 48], "big") for at in (0, 48))
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return "a signature that does not verify"
    return ""


def _check_times(
    record: Callable[[str, str, str, str], None],
    document: NitroDocument,
    chain: tuple[x509.Certificate, ...],
    now: datetime,
) -> None:
    """Checks 7 to 9. Clocks may differ by `MAX_SKEW` where a certificate is only just valid, never at its end."""
    begins = max(c.not_valid_before_utc for c in chain)
    ends = min(c.not_valid_after_utc for c in chain)
    got = f"valid from {_moment(begins)} to {_moment(ends)}"
    fault = "" if begins - MAX_SKEW <= now <= ends else got
    record("nitro.validity", fault, got, f"valid at {_moment(now)}")
    leaf, made_at = chain[-1], _moment(document.timestamp)
    within = f"{_moment(leaf.not_valid_before_utc)} to {_moment(leaf.not_valid_after_utc)}"
    fits = leaf.not_valid_before_utc <= document.timestamp <= leaf.not_valid_after_utc
    record("nitro.timestamp", "" if fits else made_at, made_at, within)
    ahead = document.timestamp - now
    latest = _moment(now + MAX_SKEW)
    record("evidence.time", "" if ahead <= MAX_SKEW else made_at, made_at, f"made before {latest}")


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _claims(document: NitroDocument, leaf: x509.Certificate, root: str) -> Claims:
    pcrs = dict(document.pcrs)
    details = [("module_id", document.module_id), ("certificate_expires", _moment(leaf.not_valid_after_utc))]
    details += [(f"pcr{number}", value.hex()) for number, value in sorted(pcrs.items())]
    members = (("nonce", document.nonce), ("public_key", document.public_key))
    details += [(name, value.hex()) for name, value in members if value is not None]
    signer = pcrs.get(8, b"")
    return Claims(
        format=FORMAT,
        simulated=False,
        host_excluded=not document.debug,
        measurement=pcrs[0].hex(),
        signer=signer.hex() if any(signer) else "",
        product=0,
        svn=0,
        debug=document.debug,
        tcb_status="NotReported",
        advisories=(),
        report_data=document.user_data or b"",
        root=root,
        issued_at=document.timestamp,
        details=tuple(details),
    )
