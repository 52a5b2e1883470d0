"""Certificates as sources of evidence: RA-TLS in the forms that are found in the field (docs/spec/ra-tls.md).

`examine_certificate` finds the evidence in a certificate, of whatever form, and checks by that form's own rule that
it was made for the certificate's key. Whether the evidence itself is genuine is for the examiner of its format;
`examine_ratls` calls it and ties both together.

Rules of this file:

1. Evidence that is not bound to the certificate's key is refused, whatever else is right: whoever can read a genuine
   certificate can put its evidence into one of his own.
2. Report data is compared whole, all its bytes; no form's verifier that looks at the first half only is imitated.
3. Signatures are verified over the certificate's own bytes, never over repaired ones.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.x509.oid import SignatureAlgorithmOID

from strongroom.attest.evidence import (
    NOT_MADE,
    Absent,
    Check,
    Claims,
    Examination,
    check,
    check_impossible,
)
from strongroom.attest.ratls_forms import (
    NITRO_NAME,
    SHA256_ID,
    SHA384_ID,
    SHA512_ID,
    CertificateEvidence,
    ParsedCertificate,
    find_evidence,
    parse_certificate,
)
from strongroom.errors import MalformedInput

_HASHES: dict[x509.ObjectIdentifier, tuple[str, HashAlgorithm]] = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: ("ec", SHA256()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: ("ec", SHA384()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: ("ec", SHA512()),
    SignatureAlgorithmOID.RSA_WITH_SHA256: ("rsa", SHA256()),
    SignatureAlgorithmOID.RSA_WITH_SHA384: ("rsa", SHA384()),
    SignatureAlgorithmOID.RSA_WITH_SHA512: ("rsa", SHA512()),
}


@dataclass(frozen=True, slots=True)
class CertificateExamination:
    """What was found about a certificate: its checks, and the evidence in it, *unverified*, even where a check
    failed. `spki`: DER of its key, empty where it could not be read.
    """

    checks: tuple[Check, ...]
    found: tuple[CertificateEvidence, ...]
    spki: bytes

    @property
    def passed(self) -> bool:
        """Whether every check passed: the evidence, if genuine, was made for the certificate's key."""
        return all(c.passed for c in self.checks)


# The checks of a certificate in their order: id -> title, what is expected, the code of a refusal.
_CHECKS = {
    "certificate.form": (
        "The certificate is well-formed",
        "an X.509 certificate of version 3",
        "leaf_malformed",
    ),
    "certificate.key": (
        "The certificate's key is of a kind that RA-TLS uses",
        "P-256, P-384 or RSA of at least 2048 bits",
        "ratls_key_unsupported",
    ),
    "certificate.evidence": (
        "The certificate carries evidence",
        "one of the forms of docs/spec/ra-tls.md §3",
        "ratls_extension",
    ),
    "certificate.signature": (
        "The certificate is signed by its own key",
        "subject and issuer alike, and a valid signature",
        "ratls_signature_invalid",
    ),
    "certificate.validity": ("The certificate is valid now", "", "ratls_certificate_expired"),
    "certificate.key_hash": (
        "The claims beside the evidence name the certificate's key",
        "the hash of this key",
        "ratls_key_mismatch",
    ),
    "certificate.binding": (
        "The evidence was made for the certificate's key",
        "",
        "ratls_binding",
    ),
}


def examine_certificate(der: bytes, *, now: datetime) -> CertificateExamination:
    """Examines a certificate as a source of evidence, at `now` (docs/spec/ra-tls.md §4).

    1. form: §2, and no critical extension that is unknown here
    2. key: of a kind that RA-TLS uses
    3. evidence: one of the forms of §3 is there, and none is malformed
    4. signature: by its own key, over its own bytes. Left out for a certificate that somebody else issued, where
       all evidence in it names the whole key itself (§3.6): nobody's signature is relied on there
    5. validity: at `now`
    6. for each evidence: its `pubkey-hash`, where the form has one, is that of the key
    7. for each evidence: the report data in it is what the form makes of the key (or claims), whole

    7 reads report data out of bytes that nobody verified yet: `check_binding` makes it again of verified claims.
    """
    made: list[Check] = []

    def record(check_id: str, fault: str, got: str, *, code: str = "") -> None:
        title, usual, own = _CHECKS[check_id]
        made.append(check(check_id, title, not fault, expected=usual, got=fault or got, code=code or own))

    # 1. form
    try:
        parsed = parse_certificate(der)
    except MalformedInput as exc:
        record("certificate.form", exc.message, "", code=exc.code)
        why = "the certificate is malformed"
        for check_id, (title, usual, own) in list(_CHECKS.items())[1:]:
            made.append(check_impossible(check_id, title, expected=usual or "–", why=why, code=own))
        return CertificateExamination(checks=tuple(made), found=(), spki=b"")
    record("certificate.form", "", f"{len(der)} bytes")
    # 2. key
    record("certificate.key", *_key_fault(parsed))
    # 3. evidence
    try:
        found = find_evidence(parsed, now=now)
    except MalformedInput as exc:
        record("certificate.evidence", exc.message, "", code=exc.code)
        found = ()
    else:
        record("certificate.evidence", "", ", ".join(f"{e.source}: {e.format}" for e in found))
    # 4. signature
    if parsed.self_issued or not found or any(e.source != NITRO_NAME for e in found):
        record("certificate.signature", _signature_fault(parsed), "a valid signature")
    # 5. validity
    made.append(_check_validity(parsed.certificate, now))
    # 6. key hash, and 7. binding
    for place, one in enumerate(found, start=1):
        made += _binding_checks(one, parsed, suffix=f".{place}" if place > 1 else "")
    if not found:
        title, _, code = _CHECKS["certificate.binding"]
        why = "there is no evidence that could be read"
        made.append(check_impossible("certificate.binding", title, expected="–", why=why, code=code))
    return CertificateExamination(checks=tuple(made), found=found, spki=parsed.spki)


def _check_validity(certificate: x509.Certificate, now: datetime) -> Check:
    title, _, code = _CHECKS["certificate.validity"]
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return check(
        "certificate.validity",
        title,
        begins <= now <= ends,
        expected=f"valid at {now.isoformat(timespec='seconds')}",
        got=f"valid from {begins.isoformat()} to {ends.isoformat()}",
        code=code,
    )


def _binding_checks(one: CertificateEvidence, parsed: ParsedCertificate, *, suffix: str) -> list[Check]:
    """Checks 6 and 7 of one piece of evidence."""
    made = []
    if one.key_hash is not None:
        title, expected, code = _CHECKS["certificate.key_hash"]
        fault = _key_hash_fault(one.key_hash, parsed)
        got = fault or "this key's"
        made.append(
            check(f"certificate.key_hash{suffix}", title, not fault, expected=expected, got=got, code=code)
        )
    title, _, code = _CHECKS["certificate.binding"]
    bound = _is_one_of(one.stated, one.report_data)
    expected = " or ".join(value.hex() for value in one.report_data)
    got = one.stated.hex() or "no report data"
    return [*made, check(f"certificate.binding{suffix}", title, bound, expected=expected, got=got, code=code)]


def check_binding(evidence: CertificateEvidence, claims: Claims | Absent) -> Check:
    """The check that *verified* claims are of this evidence's format and were made for the certificate's key."""
    check_id, title = "evidence.binding", "The verified evidence was made for the certificate's key"
    code = "ratls_binding"
    expected = f"{evidence.format} with {' or '.join(value.hex() for value in evidence.report_data)}"
    if isinstance(claims, Absent):
        return check_impossible(check_id, title, expected=expected, why=claims.why, code=code)
    bound = claims.format == evidence.format and _is_one_of(claims.report_data, evidence.report_data)
    got = f"{claims.format} with {claims.report_data.hex() or 'no report data'}"
    return check(check_id, title, bound, expected=expected, got=got, code=code)


def examine_ratls(
    der: bytes,
    *,
    endorsements: tuple[tuple[str, bytes], ...],
    roots: Mapping[str, tuple[str, ...]],
    now: datetime,
    examiners: Mapping[str, Callable[..., Examination]],
) -> Examination:
    """Examines a certificate, all evidence in it, and that both belong together (docs/spec/ra-tls.md §4, §5).

    `roots`: accepted roots for each format. `examiners`: format -> the function that examines evidence of it. The
    checks of `examine_certificate` come first, then for each evidence those of its format and `evidence.binding`;
    the ids of a second evidence's end in `.2`. Several pieces of evidence must all pass, and be of the same code.

    The claims are those of the first; they say nothing about the certificate where a check failed.
    """
    examined = examine_certificate(der, now=now)
    checks, results = list(examined.checks), list[Claims | Absent]()
    for place, evidence in enumerate(examined.found, start=1):
        examine = examiners.get(evidence.format)
        if examine is None:
            title, code = "This version can verify evidence of this format", "evidence_format_unsupported"
            known = " or ".join(sorted(examiners))
            made = (check("evidence.format", title, False, expected=known, got=evidence.format, code=code),)
            found = Examination(checks=made, claims=Absent(evidence.format, "no verifier for this format"))
        else:
            accepted = roots.get(evidence.format, ())
            found = examine(evidence.data, endorsements=endorsements, roots=accepted, now=now)
        suffix = f".{place}" if place > 1 else ""
        every = (*found.checks, check_binding(evidence, found.claims))
        checks += [replace(one, id=one.id + suffix) for one in every]
        results.append(found.claims)
    if len(results) > 1:
        checks.append(_check_agreement(results))
    absent = Absent("ra-tls", "the certificate carries no evidence that could be read")
    return Examination(checks=tuple(checks), claims=results[0] if results else absent)


def _check_agreement(results: list[Claims | Absent]) -> Check:
    """Two verifiers that each take another evidence of one certificate must not see different code."""
    codes = [
        f"{r.format}: {NOT_MADE}{r.why}" if isinstance(r, Absent) else f"{r.format}: {r.measurement}"
        for r in results
    ]
    agree = len(set(codes)) == 1 and not any(isinstance(r, Absent) for r in results)
    title = "All evidence in the certificate is of the same code"
    got = " and ".join(dict.fromkeys(codes))
    return check(
        "certificate.agreement", title, agree, expected="one measurement", got=got, code="ratls_contradiction"
    )


def _key_fault(parsed: ParsedCertificate) -> tuple[str, str]:
    """What is wrong with the certificate's key ("" where nothing is), and what it is."""
    key = parsed.certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        fits = isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
        return "" if fits else key.curve.name, key.curve.name
    if isinstance(key, rsa.RSAPublicKey):
        return "" if key.key_size >= 2048 else f"RSA of {key.key_size} bits", f"RSA of {key.key_size} bits"
    return "another kind of key", ""


def _signature_fault(parsed: ParsedCertificate) -> str:
    """What is wrong with the certificate's signature by its own key, over its own bytes; "" where nothing is."""
    if not parsed.self_issued:
        return "issued by another, whose word is not evidence"
    key, signature = parsed.certificate.public_key(), parsed.certificate.signature
    kind, algorithm = _HASHES.get(parsed.certificate.signature_algorithm_oid, ("", SHA256()))
    try:
        if kind == "ec" and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, parsed.tbs, ec.ECDSA(algorithm))
        elif kind == "rsa" and isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, parsed.tbs, padding.PKCS1v15(), algorithm)
        else:
            return "a signature algorithm that is not the key's, or is not used for RA-TLS"
    except InvalidSignature:
        return "a signature that does not verify"
    return ""


def _key_hash_fault(key_hash: tuple[int, bytes], parsed: ParsedCertificate) -> str:
    """What is wrong with a `pubkey-hash`: of another key, or made with another hash than the three of §3.1."""
    algorithm, digest = key_hash
    made = {SHA256_ID: hashlib.sha256, SHA384_ID: hashlib.sha384, SHA512_ID: hashlib.sha512}.get(algorithm)
    if made is None:
        return f"a hash of the unknown kind {algorithm}"
    return "" if hmac.compare_digest(made(parsed.spki).digest(), digest) else "the hash of another key"


def _is_one_of(value: bytes, accepted: tuple[bytes, ...]) -> bool:
    """Whether `value` is one of `accepted`, whole; an empty one never is."""
    return bool(value) and any(hmac.compare_digest(value, one) for one in accepted)
