"""Chains of X.509 certificates of the TEE vendors: sorting stapled documents by content, and verifying a chain at
one given time to a root that is pinned by its fingerprint.

Words follow RFC 5280; docs/spec/snp.md §5.1 has the checks. Chains of TPM makers, Intel and AWS have other rules
(docs/adr/0009-which-certificates-are-read-how.md).

Rules of this file:

1. A trust anchor is a whole certificate, named by the SHA-256 of its DER. No list of anchors accepts nothing.
2. Only the time that was passed in counts.
3. Names are equal if their DER is.
"""

from __future__ import annotations

import base64
import binascii
import functools
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from strongroom.attest import der
from strongroom.attest.certificate import (
    BASIC_CONSTRAINTS,
    KEY_USAGE,
    MAX_DOCUMENT,
    Certificate,
    RevocationList,
    parse_certificate,
    parse_revocation_list,
    verify_signature,
)
from strongroom.attest.evidence import Check, check, check_impossible, one_of
from strongroom.errors import MalformedInput

__all__ = [
    "MAX_CERTIFICATES",
    "MAX_CHAIN",
    "Certificate",
    "Chain",
    "Documents",
    "RevocationList",
    "check_revocation",
    "no_chain",
    "parse_certificate",
    "parse_revocation_list",
    "pem_blocks",
    "sort_documents",
    "verify_chain",
]

MAX_CERTIFICATES = 32
"""Certificates of all documents together; a chain has at most `MAX_CHAIN`, and vendors hand out a few of them."""
MAX_CHAIN = 6
"""Certificates from leaf to root; the longest known (NVIDIA, Nitro) have 5."""
_UNDERSTOOD = (BASIC_CONSTRAINTS, KEY_USAGE, "2.5.29.17", "2.5.29.37")
"""Extensions that may be critical: the two that are checked here, subject alternative names (no name decides
anything here) and extended key usage (the format that calls says what its leaf is for)."""
_KEY_CERT_SIGN, _CRL_SIGN = 0x04, 0x02
_MAX_REMEMBERED = 8 * 1024
"""Bytes of a certificate whose signature is remembered; 64 pairs take at most 1 MiB, whoever sends them."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Stapled documents, sorted by what they are; `others` are neither certificates nor revocation lists."""

    certificates: tuple[Certificate, ...]
    revocation_lists: tuple[RevocationList, ...]
    others: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """What `verify_chain` found: the certificates from the leaf as far as they lead, and every check.

    Trust nothing of it unless `passed`.
    """

    path: tuple[Certificate, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed: leaf first, the pinned root last."""
        return bool(self.checks) and all(c.passed for c in self.checks)

    @property
    def root(self) -> Certificate:
        """The last certificate: the pinned root, if the chain `passed`."""
        return self.path[-1]

    @property
    def expires(self) -> datetime:
        """When the first of its certificates ends."""
        return min(c.not_after for c in self.path)


def sort_documents(documents: tuple[tuple[str, bytes], ...]) -> Documents:
    """Returns the certificates and revocation lists in `documents` (name, bytes), whatever they are called: DER, or
    PEM with any number of blocks. The same certificate twice counts once.

    Raises:
        MalformedInput: code `certificate_malformed` or `revocation_list_malformed`, what begins like one and is
            none; `certificate_too_many`.
    """
    certificates: dict[bytes, Certificate] = {}
    lists: dict[bytes, RevocationList] = {}
    others = []
    for name, data in documents:
        if b"-----BEGIN " in data:
            blocks = pem_blocks(data)
        elif data[:1] == b"\x30" and len(data) <= MAX_DOCUMENT:
            blocks = (("CERTIFICATE" if _looks_like_certificate(data) else "X509 CRL", data),)
        else:
            blocks = ()
        if not any(label in ("CERTIFICATE", "X509 CRL") for label, _ in blocks):
            others.append((name, data))
        for label, block in blocks:
            if label == "CERTIFICATE" and block not in certificates:
                if len(certificates) == MAX_CERTIFICATES:
                    raise MalformedInput(
                        f"documents: more than {MAX_CERTIFICATES} certificates", code="certificate_too_many"
                    )
                certificates[block] = parse_certificate(block)
            elif label == "X509 CRL" and block not in lists:
                lists[block] = parse_revocation_list(block)
    return Documents(tuple(certificates.values()), tuple(lists.values()), tuple(others))


def pem_blocks(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Returns label and content of every PEM block (RFC 7468) in `data`; text around the blocks is ignored.

    Raises:
        MalformedInput: code `certificate_malformed`, a block without an end or not in base64.
    """
    found: list[tuple[str, bytes]] = []

    def refuse(why: str) -> NoReturn:
        raise MalformedInput(f"PEM: {why}", code="certificate_malformed")

    at = 0
    if len(data) > MAX_DOCUMENT:
        refuse(f"expected at most {MAX_DOCUMENT} bytes, got {len(data)}")
    while (start := data.find(b"-----BEGIN ", at)) >= 0:
        dashes = data.find(b"-----", start + 11)
        label = data[start + 11 : dashes] if start + 11 < dashes <= start + 11 + 64 else b""
        if not label or not label.isascii():
            refuse("a block without a label")
        if (stop := data.find(end := b"-----END " + label + b"-----", dashes)) < 0:
            refuse("a block without an end")
        try:
            content = base64.b64decode(b"".join(data[dashes + 5 : stop].split()), validate=True)
        except binascii.Error as exc:
            raise MalformedInput("PEM: a block that is not base64", code="certificate_malformed") from exc
        found.append((label.decode("ascii"), content))
        at = stop + len(end)
    return tuple(found)


def _looks_like_certificate(data: bytes) -> bool:
    """Whether a DER document begins as a certificate of version 3 does, with its version, and not as a list does."""
    reader = der.Reader(data, what="document", code="certificate_malformed")
    return reader.enter(der.SEQUENCE, "document").enter(der.SEQUENCE, "body").peek() == der.context(0)


# The checks of a chain in their order: what follows `name.` in the id -> title, expected, code.
_CHECKS = {
    "path": (
        "Certificates lead from the leaf to a root",
        "issuer by issuer to a certificate that issued itself",
        "chain_incomplete",
    ),
    "signatures": (
        "Each certificate is signed by the next, the root by itself",
        "RSA (2048 to 8192 bits) or ECDSA (NIST curves) signatures that verify",
        "chain_signature_invalid",
    ),
    "authority": (
        "Each issuer may issue certificates, so many below it",
        "basic constraints and key usage that allow it",
        "chain_issuer_not_authority",
    ),
    "critical": (
        "Every critical extension is understood",
        "no other than " + ", ".join(_UNDERSTOOD),
        "chain_critical_extension",
    ),
    "validity": ("Every certificate is valid at this time", "", "chain_not_valid_now"),
    "root": ("The root is a pinned one", "", "root_not_accepted"),
}


def verify_chain(
    leaf: Certificate,
    *,
    others: tuple[Certificate, ...],
    roots: tuple[str, ...],
    now: datetime,
    name: str = "chain",
) -> Chain:
    """Builds the chain from `leaf` over `others` (in any order, with any others among them) and verifies it at `now`
    (aware) to one of `roots`: lower-case hex SHA-256 of whole root certificates (DER), which must be in `others`.

    1. `path`: issuer by issuer, by the DER of the names, at most `MAX_CHAIN` certificates, to one that names itself
       as its issuer. Of several certificates with the issuer's name, the one that signed is taken, a pinned one first
    2. `signatures`: each verifies with the next one's key, the root's with its own
    3. `authority`: every issuer has basic constraints that say so, a path length that suffices, and, if it states a
       key usage, that of signing certificates
    4. `critical`: no critical extension that is not understood here
    5. `validity`: `now` lies within the validity of each, both ends included
    6. `root`: the last one's fingerprint is in `roots`; no roots accept nothing

    Every check is recorded, as `<name>.path` and so on; nothing is raised. The caller adds what its vendor demands
    (names, key sizes, extensions) and looks at `Chain.passed`. Revocation is `check_revocation`.
    """
    path = _build(leaf, others, roots)
    complete = path[-1].issuer == path[-1].subject
    made: list[Check] = []

    def record(which: str, passed: bool, got: str, expected: str = "") -> None:
        title, usual, code = _CHECKS[which]
        made.append(check(f"{name}.{which}", title, passed, expected=expected or usual, got=got, code=code))

    # 1. path
    shown = " <- ".join(c.common_name or "(unnamed)" for c in path)
    record(
        "path",
        complete,
        shown if complete else f"{shown} <- {path[-1].issuer_name or '(unnamed)'}, not there",
    )
    # 2. signatures
    unsigned = [why for at in range(len(path)) if (why := _unsigned(path, at))]
    if complete or unsigned:
        record("signatures", not unsigned, "; ".join(unsigned) or f"{len(path)} valid signatures")
    else:
        title, expected, code = _CHECKS["signatures"]
        why = "the last issuer is missing"
        made.append(check_impossible(f"{name}.signatures", title, expected=expected, why=why, code=code))
    # 3. authority
    powerless = [why for at in range(1, len(path)) if (why := _powerless(path[at], below=at - 1))]
    record("authority", not powerless, "; ".join(powerless) or "issuers all of them")
    # 4. critical extensions
    unknown = sorted(
        {o for c in path for o, critical, _ in c.extensions if critical and o not in _UNDERSTOOD}
    )
    record("critical", not unknown, ", ".join(unknown[:4]) or "nothing else")
    # 5. validity
    passed, got = _validity(path, now)
    record("validity", passed, got, f"{now.isoformat(timespec='seconds')} within validity")
    # 6. root: also where it is the wrong one, its fingerprint says whose it is
    got = path[-1].fingerprint if complete else "no root"
    record("root", complete and got in roots, got, one_of(roots))
    return Chain(path=path, checks=tuple(made))


def no_chain(*, name: str, why: str) -> tuple[Check, ...]:
    """Returns the failed checks that stand for those of `verify_chain` where there is no leaf to begin with."""
    return tuple(
        check_impossible(f"{name}.{which}", title, expected=expected or "–", why=why, code=code)
        for which, (title, expected, code) in _CHECKS.items()
    )


def _build(
    leaf: Certificate, others: tuple[Certificate, ...], roots: tuple[str, ...]
) -> tuple[Certificate, ...]:
    """Check 1: the leaf and its issuers, as far as they are there.

    Cross-signed issuers have one name and one key in several certificates: of those that signed, one from which names
    lead to a pinned root is taken. Whatever is taken, every check is made of it.
    """
    pinned = tuple(c for c in others if c.fingerprint in roots)
    leading = {c.der for c in pinned}
    for _ in range(MAX_CHAIN):
        names = {c.subject for c in others if c.der in leading}
        leading |= {c.der for c in others if c.issuer in names}
    path = [leaf]
    while path[-1].issuer != path[-1].subject and len(path) < MAX_CHAIN:
        named = [c for c in others if c.subject == path[-1].issuer and c not in path]
        if not named:
            break
        named.sort(key=lambda c: (c not in pinned, c.der not in leading))
        signed = (c for c in named if not _unsigned((path[-1], c), 0))
        path.append(named[0] if len(named) == 1 else next(signed, named[0]))
    return tuple(path)


def _unsigned(path: tuple[Certificate, ...], at: int) -> str:
    """Check 2: why the certificate at `at` is not signed by the next one, or the last by itself; "" where it is."""
    subject, issuer = path[at], path[min(at + 1, len(path) - 1)]
    if issuer is subject and subject.issuer != subject.subject:
        return ""  # its issuer is missing, which check 1 says
    if max(len(subject.der), len(issuer.der)) > _MAX_REMEMBERED:
        return _signature_fault(subject, issuer)
    return _remembered_fault(subject.der, issuer.der)


@functools.lru_cache(maxsize=64)
def _remembered_fault(subject: bytes, issuer: bytes) -> str:
    """`_signature_fault` of two certificates by their DER, remembered: of all that is checked in a chain, only this
    follows from their bytes alone, and a vendor's issuers stand above every chip's certificate.
    """
    return _signature_fault(parse_certificate(subject), parse_certificate(issuer))


def _signature_fault(subject: Certificate, issuer: Certificate) -> str:
    try:
        verify_signature(
            issuer.key, subject.signature, subject.tbs, algorithm=subject.algorithm, digest=subject.digest
        )
    except MalformedInput as exc:
        return f"{subject.common_name or '(unnamed)'}: {exc.message}"
    return ""


def _powerless(issuer: Certificate, *, below: int) -> str:
    """Check 3: why `issuer` may not issue, with `below` issuers between itself and the leaf; "" where it may."""
    shown = issuer.common_name or "(unnamed)"
    if not issuer.ca:
        return f"{shown} is no certification authority"
    if issuer.key_usage is not None and not issuer.key_usage & _KEY_CERT_SIGN:
        return f"{shown} may not sign certificates"
    if issuer.path_length is not None and issuer.path_length < below:
        return f"{shown} allows {issuer.path_length} issuers below it, and there are {below}"
    return ""


def _validity(path: tuple[Certificate, ...], now: datetime) -> tuple[bool, str]:
    """Check 5: whether all are valid at `now`, and when those that are not, or else all together, are."""
    if outside := [c for c in path if not c.not_before <= now <= c.not_after]:
        shown = (f"{c.common_name}: {c.not_before.isoformat()} to {c.not_after.isoformat()}" for c in outside)
        return False, "; ".join(shown)
    latest, earliest = max(c.not_before for c in path), min(c.not_after for c in path)
    return True, f"{latest.isoformat()} to {earliest.isoformat()}"


def check_revocation(
    chain: Chain, *, lists: tuple[RevocationList, ...], now: datetime, name: str = "chain"
) -> tuple[Check, ...]:
    """Returns the check `<name>.revocation` for each of `lists` that an issuer in `chain` put out; lists of others are
    passed over, and where none is left there is no check: whoever demands one sees that it is not there.

    The list is signed by that issuer, which may sign lists if it states a key usage; `now` lies between its updates,
    and it must name the next; it has no critical extension; and no certificate that the issuer issued is on it.
    """
    made = []
    for issuer in chain.path[1:]:
        for one in lists:
            if one.issuer != issuer.subject:
                continue
            code, got = _revocation(chain, issuer, one, now)
            next_update = one.next_update.isoformat() if one.next_update else "no time"
            made.append(
                check(
                    f"{name}.revocation",
                    "No certificate of the chain is on its issuer's revocation list",
                    not code,
                    expected=f"a current list by {issuer.common_name or '(unnamed)'} that names none of the chain",
                    got=got or f"list of {one.this_update.isoformat()}, next at {next_update}",
                    code=code,
                )
            )
    return tuple(made)


def _revocation(chain: Chain, issuer: Certificate, one: RevocationList, now: datetime) -> tuple[str, str]:
    """Code and reason of the refusal by one list of `issuer`, ("", "") if there is none."""
    try:
        verify_signature(issuer.key, one.signature, one.tbs, algorithm=one.algorithm, digest=one.digest)
    except MalformedInput as exc:
        return "revocation_list_signature_invalid", exc.message
    if issuer.key_usage is not None and not issuer.key_usage & _CRL_SIGN:
        return "revocation_list_signature_invalid", "a list by a key that may not sign lists"
    if one.critical:
        return "revocation_list_unsupported", "critical extensions " + ", ".join(one.critical[:4])
    if one.next_update is None or not one.this_update <= now <= one.next_update:
        until = one.next_update.isoformat() if one.next_update else "no time"
        return "revocation_list_not_current", f"a list for {one.this_update.isoformat()} to {until}"
    for certificate in chain.path:
        if certificate.issuer == issuer.subject and certificate.serial in one.revoked:
            return "chain_certificate_revoked", f"{certificate.common_name or '(unnamed)'} is revoked"
    return "", ""
