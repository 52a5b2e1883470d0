"""The forms in which certificates carry evidence: finding and reading it (docs/spec/ra-tls.md §2, §3).

Nothing here is verified; `strongroom.attest.ratls_evidence` does that.

Rules of this file:

1. What a certificate carries that is not understood is never taken for something that is.
2. The one repair of encoding (§2.3) is for reading only: what is verified later are the certificate's own bytes.
3. Of evidence, only its format and its report data are read.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from strongroom.attest import der
from strongroom.attest.azure import parse_azure
from strongroom.attest.cbor import ARRAY, MAP, TEXT, Reader, encode_bytes, encode_head
from strongroom.attest.certificate import load_x509
from strongroom.attest.evidence import FORMAT, MAX_EVIDENCE, REPORT_DATA_SIZE, Absent, boot_report_data
from strongroom.attest.nitro import parse_document
from strongroom.attest.sim import examine_sim
from strongroom.attest.snp_report import parse_report
from strongroom.attest.tpm import parse_tpm
from strongroom.attest.verifiers import carried
from strongroom.errors import MalformedInput

MAX_CERTIFICATE = MAX_EVIDENCE
"""Bytes of a certificate that are read; the largest known is 11 KiB."""
MAX_CLAIMS = 64
"""Claims beside the evidence; the most known is 3."""
EVIDENCE_TAG = 60000
"""CBOR tag of `[evidence, claims]` (§3.1)."""
_LOCAL_REPORTS = (b"\xd9\xea\x61", b"\xd9\xea\x62")
"""Heads of the CBOR tags 60001 and 60002: reports for another enclave of the same machine (§3.1)."""
SHA256_ID, SHA384_ID, SHA512_ID = 1, 7, 8
"""Hash algorithms in the IANA registry of named information, as `pubkey-hash` uses it."""
INTEROPERABLE, STRONGROOM, GRAMINE = "interoperable", "strongroom", "gramine"
OPEN_ENCLAVE, INTEL, NITRO_NAME = "open-enclave", "intel", "nitro-name"
"""The forms (§3), by name."""
INTEROPERABLE_FORMATS = ("sgx", "tdx")
"""Formats for which the Confidential Computing Consortium describes a certificate (§3.1); our servers' are of it."""

_TAGGED = "2.23.133.5.4.9"
_FORMS = {
    _TAGGED: INTEROPERABLE,  # TCG DICE tagged evidence; STRONGROOM where it states a format
    "0.6.9.42.840.113741.1337.6": GRAMINE,  # 1.2.840.113741.1337.6 with its own DER header inside, as Gramine has it
    "1.2.840.113556.10.1.1": OPEN_ENCLAVE,
    "1.3.6.1.4.1.311.105.1": OPEN_ENCLAVE,
    "1.2.840.113741.1.13.1": INTEL,
}
_UNSUPPORTED = {
    "1.2.840.113556.10.1.2": "Open Enclave evidence with its own header",
    "1.3.6.1.4.1.311.105.2": "Open Enclave evidence with its own header",
    "1.3.6.1.4.1.62397.1.1": "dstack",
    "1.3.6.1.4.1.62397.1.8": "dstack",
}
_KNOWN_CRITICAL = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
)
_BODY = (
    ("version", der.context(0)),
    ("serial number", der.INTEGER),
    ("algorithm", der.SEQUENCE),
    ("issuer", der.SEQUENCE),
    ("validity", der.SEQUENCE),
    ("subject", der.SEQUENCE),
    ("public key", der.SEQUENCE),
    ("extensions", der.context(3)),
)
"""What the signed body of a certificate is made of (RFC 5280), without the obsolete unique identifiers."""
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_ECDSA_SHA256_NULL = bytes.fromhex("300c06082a8648ce3d0403020500")
"""AlgorithmIdentifiers: as RFC 5758 wants it, and with the explicit NULL that older Mbed TLS wrote (§2.3)."""


# --- the documents ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaggedEvidence:
    """What the TCG DICE extension holds, unverified: evidence, the claims beside it, and their very bytes."""

    evidence: bytes
    claims: tuple[tuple[str, bytes], ...]
    claims_bytes: bytes


def parse_tagged_evidence(value: bytes) -> TaggedEvidence:
    """Returns what the value of the extension 2.23.133.5.4.9 says (§3.1). Unknown claims are kept.

    Raises:
        MalformedInput: `ratls_extension`.
    """
    what, code = "leaf: attestation extension", "ratls_extension"
    outer = Reader(value, limit=MAX_EVIDENCE, what=what, code=code)
    outer.tag(EVIDENCE_TAG)
    outer.array(2, 2)
    evidence, claims_bytes = outer.byte_string(MAX_EVIDENCE), outer.byte_string(MAX_EVIDENCE)
    outer.end()
    inner = Reader(claims_bytes, limit=MAX_EVIDENCE, what=f"{what}: claims", code=code)
    claims = [
        (name, inner.byte_string(MAX_EVIDENCE))
        for name in inner.keys(lambda: inner.text(256), limit=MAX_CLAIMS)
    ]
    inner.end()
    if "pubkey-hash" not in dict(claims):
        inner.refuse("expected a pubkey-hash")
    return TaggedEvidence(evidence=evidence, claims=tuple(claims), claims_bytes=claims_bytes)


def parse_key_hash(value: bytes) -> tuple[int, bytes]:
    """Returns algorithm and hash of a `pubkey-hash` claim (§3.1).

    Raises:
        MalformedInput: `ratls_extension`.
    """
    read = Reader(value, limit=256, what="leaf: pubkey-hash", code="ratls_extension")
    read.array(2, 2)
    algorithm, digest = read.unsigned(), read.byte_string(64)
    read.end()
    return algorithm, digest


def certificate_claims(evidence_format: str, *, spki: bytes) -> bytes:
    """Returns the claims (CBOR) beside the evidence in the certificate of a server of ours with the key `spki` (DER):
    the key's hash, and the format's name where nobody describes a form for it (§3.2).
    """
    key_hash = encode_head(ARRAY, 2) + encode_head(0, SHA256_ID) + encode_bytes(hashlib.sha256(spki).digest())
    claims = {"pubkey-hash": key_hash}
    if evidence_format not in INTEROPERABLE_FORMATS:
        claims["format"] = evidence_format.encode("ascii")
    out = encode_head(MAP, len(claims))
    for name, value in claims.items():
        out += encode_head(TEXT, len(name)) + name.encode("ascii") + encode_bytes(value)
    return out


def certificate_report_data(evidence_format: str, *, spki: bytes) -> bytes:
    """Returns the 64 bytes of report data of the boot-time evidence in that certificate: of the form of §3.1 for the
    formats that have it, of docs/spec/evidence.md §2.3 for the others. Neither is ever that of an answer to a nonce.
    """
    if evidence_format in INTEROPERABLE_FORMATS:
        digest = hashlib.sha256(certificate_claims(evidence_format, spki=spki)).digest()
        return digest + bytes(REPORT_DATA_SIZE - len(digest))
    return boot_report_data(spki=spki)


@dataclass(frozen=True, slots=True)
class ParsedCertificate:
    """A certificate as it arrived, unverified. `tbs`: the very bytes that are signed; `spki`: of its key, in its one
    spelling; `self_issued`: whether subject and issuer are the same bytes.
    """

    certificate: x509.Certificate
    tbs: bytes
    spki: bytes
    self_issued: bool


def parse_certificate(data: bytes) -> ParsedCertificate:
    """Returns the certificate that `data` (DER) is (§2). Nothing in it is verified.

    Raises:
        MalformedInput: `leaf_malformed`; `ratls_key_unsupported` for a key that is not in its one spelling.
    """
    if len(data) > MAX_CERTIFICATE:
        raise _malformed(f"{len(data)} bytes, at most {MAX_CERTIFICATE} are read")
    whole = der.Reader(data, what="leaf", code="leaf_malformed")
    outer = whole.enter(der.SEQUENCE, "certificate")
    whole.end("certificate")
    tbs = outer.take(der.SEQUENCE, "body")
    algorithm = outer.take(der.SEQUENCE, "algorithm")
    signature = outer.take(der.BIT_STRING, "signature")
    outer.end("signature")
    if signature.content[:1] != b"\x00":  # bits left out at the end are signed by nobody
        raise _malformed("a signature that is not whole bytes")
    body = outer.inside(tbs)
    fields = [body.take(tag, name).raw for name, tag in _BODY]  # of version 3, with extensions
    body.end("body")
    _, _, inner_algorithm, issuer, _, subject, stated_spki, _ = fields
    if inner_algorithm != algorithm.raw:
        raise _malformed("two different signature algorithms")
    readable = data
    if algorithm.raw == _ECDSA_SHA256_NULL:  # §2.3
        repaired = _sequence(*fields[:2], _ECDSA_SHA256, *fields[3:])
        readable = _sequence(repaired, _ECDSA_SHA256, signature.raw)
    certificate = load_x509(readable, what="leaf", code="leaf_malformed")
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if spki != stated_spki:
        raise MalformedInput("leaf: a key that is not in its usual spelling", code="ratls_key_unsupported")
    known = {oid.dotted_string for oid in _KNOWN_CRITICAL} | set(_FORMS)
    if any(e.critical and e.oid.dotted_string not in known for e in certificate.extensions):
        raise _malformed("a critical extension that is not known here")
    return ParsedCertificate(certificate, tbs=tbs.raw, spki=spki, self_issued=issuer == subject)


def _malformed(why: str) -> MalformedInput:
    return MalformedInput(f"leaf: {why}", code="leaf_malformed")


def _sequence(*items: bytes) -> bytes:
    content = b"".join(items)
    size = len(content)
    if size < 0x80:
        return bytes((0x30, size)) + content
    digits = (size.bit_length() + 7) // 8
    return bytes((0x30, 0x80 | digits)) + size.to_bytes(digits, "big") + content


# --- what is in a certificate -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CertificateEvidence:
    """Evidence that a certificate carries, in the form `source` (§3): bytes of `format`, unverified.

    `report_data`: what verified claims must have there to have been made for the certificate's key; one of these
    values, whole. `key_hash`: what a `pubkey-hash` beside it says, None where the form has none. `stated`: the
    report data that stands in the evidence's bytes.
    """

    source: str
    format: str
    data: bytes
    report_data: tuple[bytes, ...]
    key_hash: tuple[int, bytes] | None
    stated: bytes


def find_evidence(parsed: ParsedCertificate, *, now: datetime) -> tuple[CertificateEvidence, ...]:
    """Returns all evidence in the certificate, in the order of §3; nothing of it is verified.

    Raises:
        MalformedInput: `ratls_extension` where there is none or it is malformed, `ratls_evidence_unsupported`, or a
            format's own code.
    """
    values = {
        extension.oid.dotted_string: extension.value.value
        for extension in parsed.certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    found = [_read(source, values[oid], parsed, now) for oid, source in _FORMS.items() if oid in values]
    found += [_nitro_in_name(document, parsed) for document in _documents_in_names(parsed.certificate)]
    if found:
        return tuple(found)
    if others := sorted({_UNSUPPORTED[oid] for oid in values if oid in _UNSUPPORTED}):
        raise MalformedInput(
            f"leaf: only evidence of this kind: {', '.join(others)}", code="ratls_evidence_unsupported"
        )
    raise MalformedInput("leaf: no evidence in the certificate", code="ratls_extension")


def _read(source: str, value: bytes, parsed: ParsedCertificate, now: datetime) -> CertificateEvidence:
    """The evidence in the extension's `value`, with the report data that its form asks for (§3)."""
    key_hash: tuple[int, bytes] | None = None
    spki = hashlib.sha256(parsed.spki).digest()
    pem = parsed.certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    text = hashlib.sha256(pem + b"\x00").digest()
    if source == INTEROPERABLE:
        if value[:3] in _LOCAL_REPORTS:
            raise MalformedInput("leaf: a local report, not a quote", code="ratls_evidence_unsupported")
        tagged = parse_tagged_evidence(value)
        claims = dict(tagged.claims)
        key_hash = parse_key_hash(claims["pubkey-hash"])
        if "format" in claims:  # §3.2
            return _own(tagged.evidence, claims["format"], key_hash, parsed, now)
        value, expected = tagged.evidence, [hashlib.sha256(tagged.claims_bytes).digest()]
    elif source == GRAMINE:
        expected = [spki]
    elif source == INTEL:
        expected = [text]
    else:
        value, expected = _without_header(value), [spki, text]
    evidence_format, stated = _read_quote(value)
    padded = tuple(digest + bytes(REPORT_DATA_SIZE - len(digest)) for digest in expected)
    return CertificateEvidence(source, evidence_format, value, padded, key_hash, stated)


def _own(
    data: bytes, name: bytes, key_hash: tuple[int, bytes], parsed: ParsedCertificate, now: datetime
) -> CertificateEvidence:
    """Our server's: evidence of the named format, with the report data of evidence.md §2.3."""
    evidence_format = name.decode("ascii", "replace")
    if re.fullmatch(FORMAT, evidence_format, re.ASCII) is None:
        raise MalformedInput("leaf: format: not the name of one", code="ratls_extension")
    stated = _stated(evidence_format, data, now)
    expected = (carried(evidence_format, boot_report_data(spki=parsed.spki)),)
    return CertificateEvidence(STRONGROOM, evidence_format, data, expected, key_hash, stated)


def _stated(evidence_format: str, data: bytes, now: datetime) -> bytes:
    """The report data in evidence of the named format, as the format carries it."""
    if evidence_format == "sim":
        found = examine_sim(data, endorsements=(), roots=(), now=now)
        if isinstance(found.claims, Absent):
            raise MalformedInput(found.claims.why, code=next(c.code for c in found.checks if not c.passed))
        return found.claims.report_data
    if evidence_format == "nitro":
        return parse_document(data).user_data or b""
    if evidence_format in ("sgx", "tdx"):
        quote_format, stated = _read_quote(data)
        if quote_format != evidence_format:
            raise MalformedInput(
                f"leaf: says {evidence_format}, carries {quote_format}", code="ratls_extension"
            )
        return stated
    if evidence_format == "snp":
        return parse_report(data).report_data
    if evidence_format in ("tpm", "azure"):
        document = parse_tpm(data) if evidence_format == "tpm" else parse_azure(data)
        return document.quote.attest.qualifying
    raise MalformedInput(
        "leaf: evidence of a format that is not read here", code="ratls_evidence_unsupported"
    )


def _without_header(value: bytes) -> bytes:
    """The quote behind Open Enclave's header: version 1, remote (2), size; all little-endian (§3.4)."""
    if value[:8] != b"\x01\x00\x00\x00\x02\x00\x00\x00" or int.from_bytes(value[8:16], "little") != len(
        value[16:]
    ):
        raise MalformedInput(
            "leaf: not an Open Enclave report: expected version 1, remote, its size", code="ratls_extension"
        )
    return value[16:]


def _read_quote(quote: bytes) -> tuple[str, bytes]:
    """The format of an SGX or TDX quote, and the report data that stands in it; nothing else of it is read."""
    version, tee = int.from_bytes(quote[:2], "little"), int.from_bytes(quote[4:8], "little")
    body = int.from_bytes(quote[48:50], "little")
    kinds = {(3, 0): ("sgx", 48), (4, 0): ("sgx", 48), (4, 0x81): ("tdx", 48)}
    bodies = {1: ("sgx", 54), 2: ("tdx", 54), 3: ("tdx", 54)}
    kind = bodies.get(body) if version == 5 else kinds.get((version, tee))
    if kind is None:
        raise MalformedInput("leaf: neither an SGX nor a TDX quote", code="ratls_evidence_unsupported")
    evidence_format, begins = kind
    begins += {"sgx": 320, "tdx": 520}[evidence_format]
    stated = quote[begins : begins + REPORT_DATA_SIZE]
    if len(stated) != REPORT_DATA_SIZE:
        raise MalformedInput("leaf: a quote that ends in the middle", code="ratls_extension")
    return evidence_format, stated


def _documents_in_names(certificate: x509.Certificate) -> list[bytes]:
    """The COSE documents that stand as hex in DNS names: a first label far longer than DNS has any (§3.6)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    labels = [name.split(".")[0] for name in names.get_values_for_type(x509.DNSName)]
    found = [bytes.fromhex(label) for label in labels if re.fullmatch(r"84(?:[0-9a-f]{2}){64,}", label)]
    if len(found) > 1:
        raise MalformedInput("leaf: several documents in its names", code="ratls_extension")
    return found


def _nitro_in_name(document: bytes, parsed: ParsedCertificate) -> CertificateEvidence:
    stated = parse_document(document).user_data or b""
    return CertificateEvidence(NITRO_NAME, "nitro", document, (parsed.spki,), None, stated)
