"""`appraise()`: recorded evidence of anybody's software, by a policy or by `AnyMeasurement`; no server, no proof.

Rules of this file:

1. Nothing here makes `Attested` or `Appraised`: without a keyset and a channel there is nothing to send to.
2. What was not asked for is named in `Verdict.not_checked`. It is neither a check that passed nor one that failed.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime

from strongroom.attest.appraisal import UNSAFE_ANY_MEASUREMENT, Policy
from strongroom.attest.evidence import (
    Absent,
    Check,
    Claims,
    Evidence,
    Examination,
    Verdict,
    check,
    check_impossible,
)
from strongroom.attest.nitro import check_nonce
from strongroom.attest.ratls_evidence import examine_ratls
from strongroom.attest.requirements import HARDWARE_FORMATS, Given, NotDebug
from strongroom.attest.verifiers import (
    QUALIFIED,
    VERIFIERS,
    accepted_roots,
    carried,
    endorsements_for,
    examiner,
    split_manifests,
)

RATLS = "ra-tls"
"""Not a format of evidence but a wrapping of several: a certificate."""


@dataclass(frozen=True, slots=True)
class AnyMeasurement:
    """`UNSAFE_ANY_MEASUREMENT`: authentic hardware evidence, not debug, not revoked; any code, any other TCB
    status. Not a `Policy`, so nothing that connects can be given it.
    """


@dataclass(frozen=True, slots=True)
class ReportData:
    """The evidence must carry this, whole; a TPM's quote the SHA-256 of it."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Nonce:
    """The evidence must carry this where its format has a place for a nonce: Nitro, and TPM quotes (verbatim)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class NoReportData:
    """Nobody knows what the evidence was asked for, and why."""

    reason: str


Asked = ReportData | Nonce | NoReportData


def appraise(
    evidence: Evidence,
    policy: Policy | AnyMeasurement,
    *,
    report_data: Asked,
    endorsements: tuple[tuple[str, bytes], ...],
    now: datetime,
) -> Verdict:
    """Appraises evidence of any software at `now`; format `ra-tls` takes a certificate with evidence inside.

    1. this version has a verifier for the format
    2. the format's own checks, its signature chain to an accepted root first
    3. the evidence carries what was asked for; else `not_checked` says that it may be old, or another's
    4. the policy's rules on claims (`Policy.appraise_claims`), or those of `AnyMeasurement`

    `endorsements` may hold more than the format has use for.

    Raises:
        TypeError: `now` has no time zone.
    """
    if now.tzinfo is None:
        raise TypeError("now: expected an aware datetime")
    known = evidence.format in (*VERIFIERS, RATLS)
    checks = [
        check(
            "evidence.format",
            "This version can verify evidence of this format",
            known,
            expected=" or ".join((*VERIFIERS, RATLS)),
            got=evidence.format,
            code="evidence_format_unsupported",
        )
    ]
    manifests, endorsements = split_manifests(endorsements)
    given = Given(now=now, manifests=manifests)
    not_checked: list[str] = []
    claims: Claims | Absent = Absent(evidence.format, "no verifier for this format")
    if known:
        found = _examine(evidence, policy, endorsements=endorsements, now=now)
        checks += found.checks
        claims = found.claims
    if isinstance(report_data, NoReportData):
        not_checked.append(
            f"freshness: {report_data.reason}; the evidence may be old, or made for somebody else"
        )
    else:
        checks.append(_check_asked(claims, report_data))
    not_checked.append("the connection: recorded evidence says nothing about any server that you talk to")
    if isinstance(policy, Policy):
        checks += policy.appraise_claims(claims, given=given)
        not_checked.append("the security configuration: evidence alone carries none")
    else:
        checks += _check_any(claims, given)
        not_checked.append(f"which code it is, and how well patched the platform: {UNSAFE_ANY_MEASUREMENT}")
    if isinstance(claims, Claims) and dict(claims.details).get("revocation") == "not checked":
        not_checked.append("revocation: no revocation list was among the endorsements")
    failed = [c for c in checks if not c.passed]
    return Verdict(
        passed=not failed,
        format=evidence.format,
        simulated=evidence.format == "sim" or (isinstance(claims, Claims) and claims.simulated),
        checks=tuple(checks),
        code=failed[0].code if failed else None,
        claims=claims if isinstance(claims, Claims) else None,
        keyset_digest=None,
        channel="no channel: recorded evidence",
        not_checked=tuple(not_checked),
    )


def _examine(
    evidence: Evidence,
    policy: Policy | AnyMeasurement,
    *,
    endorsements: tuple[tuple[str, bytes], ...],
    now: datetime,
) -> Examination:
    by = policy if isinstance(policy, Policy) else None
    if evidence.format == RATLS:
        return examine_ratls(
            evidence.data,
            endorsements=endorsements,
            roots={name: accepted_roots(name, by) for name in VERIFIERS},
            now=now,
            examiners={name: examiner(name) for name in VERIFIERS},
        )
    roots = accepted_roots(evidence.format, by)
    fitting = endorsements_for(evidence.format, evidence.data, endorsements)
    return VERIFIERS[evidence.format](evidence.data, endorsements=fitting, roots=roots, now=now)


def _check_asked(claims: Claims | Absent, asked: ReportData | Nonce) -> Check:
    """Step 3."""
    if isinstance(asked, Nonce) and claims.format == "nitro":
        return check_nonce(claims, nonce=asked.data)
    check_id, title = "evidence.report_data", "The evidence carries what was asked for"
    code = "report_data_mismatch"
    expected = carried(claims.format, asked.data) if isinstance(asked, ReportData) else asked.data
    if isinstance(claims, Absent):
        return check_impossible(check_id, title, expected=expected.hex(), why=claims.why, code=code)
    if isinstance(asked, Nonce) and claims.format not in QUALIFIED:
        why = f"{claims.format} evidence has no place for a nonce: ask for its report data"
        return check_impossible(check_id, title, expected=expected.hex(), why=why, code=code)
    equal = len(expected) > 0 and hmac.compare_digest(claims.report_data, expected)
    got = claims.report_data.hex() or "none"
    return check(check_id, title, equal, expected=expected.hex() or "some bytes", got=got, code=code)


def _check_any(claims: Claims | Absent, given: Given) -> tuple[Check, ...]:
    """`UNSAFE_ANY_MEASUREMENT`: of real hardware, not debug, not revoked."""
    hardware = ("policy.simulation", "The evidence is of real hardware")
    revoked = ("policy.tcb_status", "The platform is not revoked")
    if isinstance(claims, Absent):
        return (
            check_impossible(*hardware, expected="not simulated", why=claims.why, code="simulation_refused"),
            NotDebug().check(claims, given),
            check_impossible(
                *revoked, expected="not Revoked", why=claims.why, code="tcb_status_not_accepted"
            ),
        )
    real = claims.format in HARDWARE_FORMATS and not claims.simulated
    got = claims.format if real else f"SIMULATED {claims.format}"
    fine = claims.tcb_status != "Revoked"
    return (
        check(*hardware, real, expected="not simulated", got=got, code="simulation_refused"),
        NotDebug().check(claims, given),
        check(*revoked, fine, expected="not Revoked", got=claims.tcb_status, code="tcb_status_not_accepted"),
    )
