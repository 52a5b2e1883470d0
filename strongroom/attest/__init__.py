"""Verification of a server's evidence: `verify()`, the one function that makes `Attested` and `Appraised`.

Pure: bytes, a policy and one time go in; no file, socket or clock is touched. docs/spec/evidence.md §4
numbers the steps as they are numbered here; steps 1, 2 and 7 (the connection, the question and the pin)
belong to the client. To enrol a TPM, `activation_challenge` and `verify_activation` (docs/spec/tpm.md §7).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from datetime import datetime
from typing import overload

from strongroom.attest.appraisal import Policy
from strongroom.attest.batch import Inclusion, Single, batch_report_data, check_inclusion, root_of
from strongroom.attest.evidence import (
    PROOF,
    Absent,
    Appraised,
    Attested,
    Channel,
    Check,
    Claims,
    Evidence,
    Leaf,
    NoChannel,
    Stated,
    Statement,
    Verdict,
    boot_report_data,
    check,
    check_impossible,
    report_data,
    statement_report_data,
)
from strongroom.attest.keyset import Keyset, SecurityConfiguration, keyset_digest, parse_keyset
from strongroom.attest.nitro import check_nonce
from strongroom.attest.policy import policy_for
from strongroom.attest.ratls_forms import certificate_report_data
from strongroom.attest.requirements import Given
from strongroom.attest.tpm import activation_challenge as activation_challenge
from strongroom.attest.tpm import examine_activated as examine_activated
from strongroom.attest.tpm_activation import Activated as Activated
from strongroom.attest.tpm_activation import Challenge as Challenge
from strongroom.attest.tpm_activation import verify_activation as verify_activation
from strongroom.attest.verifiers import VERIFIERS as VERIFIERS
from strongroom.attest.verifiers import accepted_roots, carried, carried_size, split_manifests
from strongroom.errors import AttestationRefused, InvalidPolicy, MalformedInput


@overload
def verify(
    evidence: Evidence,
    policy: Policy,
    *,
    nonce: bytes,
    keyset_bytes: bytes,
    inclusion: Inclusion | Single,
    channel: Leaf,
    endorsements: tuple[tuple[str, bytes], ...],
    now: datetime,
) -> Attested: ...


@overload
def verify(
    evidence: Evidence,
    policy: Policy,
    *,
    nonce: bytes,
    keyset_bytes: bytes,
    inclusion: Inclusion | Single,
    channel: NoChannel,
    endorsements: tuple[tuple[str, bytes], ...],
    now: datetime,
) -> Appraised: ...


@overload
def verify(
    evidence: Evidence,
    policy: Policy,
    *,
    nonce: bytes,
    keyset_bytes: bytes,
    inclusion: Single,
    channel: Statement,
    endorsements: tuple[tuple[str, bytes], ...],
    now: datetime,
) -> Stated: ...


def verify(
    evidence: Evidence,
    policy: Policy,
    *,
    nonce: bytes,
    keyset_bytes: bytes,
    inclusion: Inclusion | Single,
    channel: Channel,
    endorsements: tuple[tuple[str, bytes], ...],
    now: datetime,
) -> Attested | Appraised | Stated:
    """Verifies that `evidence` answers `nonce` for `keyset_bytes`, that `channel` ends there, and that
    `policy` accepts it, at `now`.

    3. The evidence itself
       3.1 this version has a verifier for its format
       3.2 the policy's kind admits the format (simulation goes with no other kind)
       3.3 the policy names the format
       3.4 the format's own checks, its signature chain to a pinned root first (`sim.examine_sim` numbers
           them)
    4. The answer to the nonce
       4.1 (in a batch) the inclusion proof is one: place, size and number of hashes go together
       4.2 report data is there: 64 bytes, not all zero
       4.3 it equals what nonce and keyset bytes, as received, make it, alone or with the proof up to the batch's
           root; compared in constant time. A TPM's quote carries the SHA-256 of that (`verifiers.carried`), and is
           32 bytes
           With a `Statement` it has the label and the digest of that in it, and is never of a batch
       4.4 a Nitro document carries the nonce itself, too, or the batch's root
    5. The channel
       5.1 the keyset is the strict document of §3
       5.2 the keyset's epoch has not ended
       5.3 the keyset's TLS key is the key of the certificate of this very connection (only with a `Leaf`)
    6. The policy's appraisal of claims and security configuration (`Policy.appraise` numbers its checks)

    Every check is made and recorded also after one has failed, so that a person sees the whole picture; one
    that had nothing left to check has failed. `endorsements` are the documents to use with the evidence: the
    stapled ones, or others from elsewhere. `inclusion` is the answer's: `Single()` says that the evidence was made
    for this nonce alone, and evidence of a batch does not pass as such, nor the reverse.

    Raises:
        AttestationRefused: a check failed; `code` is the first failure's, `verdict` holds every check.
        MalformedInput: `nonce` has not 32 bytes (code `nonce_malformed`).
        TypeError: `now` has no time zone, or `inclusion` is neither of the two, or a batch's for a statement.
        InvalidPolicy: `policy` is none (`UNSAFE_ANY_MEASUREMENT` is for `appraise` alone).
    """
    if not isinstance(policy, Policy):
        raise InvalidPolicy("policy: not one that a connection may rest on", code="policy_appraise_only")
    if now.tzinfo is None:
        raise TypeError("now: expected an aware datetime")
    if not isinstance(inclusion, Inclusion | Single):
        raise TypeError("inclusion: expected Inclusion or Single")
    if isinstance(channel, Statement) and not isinstance(inclusion, Single):
        raise TypeError("inclusion: a statement is never one of a batch")
    checks: list[Check] = []
    manifests, endorsements = split_manifests(endorsements)
    # 3. the evidence itself
    claims = _examine(checks, evidence, policy, endorsements=endorsements, now=now)
    # 4. the answer to the nonce
    asked: _Asked | Absent
    if isinstance(channel, Statement):
        stated = statement_report_data(nonce=nonce, keyset_bytes=keyset_bytes, statement=channel.data)
        asked = _Asked(stated, nonce, "another nonce, another keyset, or another statement")
    else:
        asked = _check_inclusion(
            checks, inclusion, nonce=nonce, keyset_bytes=keyset_bytes, evidence_format=evidence.format
        )
    _check_present(checks, claims)
    _check_answer(checks, claims, asked, keyset_bytes=keyset_bytes, channel=channel)
    if claims.format == "nitro":
        checks.append(_check_nitro_nonce(claims, asked))
    # 5. the channel
    keyset = _check_keyset(checks, keyset_bytes, now=now, evidence_format=evidence.format)
    if isinstance(channel, Leaf):
        _check_channel(checks, keyset, channel)
    # 6. the policy
    security: SecurityConfiguration | Absent = keyset if isinstance(keyset, Absent) else keyset.security
    given = Given(now=now, manifests=manifests)
    # 3.2 and 3.3 come back unchanged: one line for one check
    made = frozenset(checks)
    checks += [c for c in policy.appraise(claims, security=security, given=given) if c not in made]

    verdict = _verdict(checks, evidence, claims, keyset_bytes=keyset_bytes, channel=channel)
    # The two `Absent` cases always come with a failed check; naming them here lets no later edit forget that.
    if not verdict.passed or isinstance(claims, Absent) or isinstance(keyset, Absent):
        raise _refusal(verdict)
    kinds: dict[type[Channel], type[Attested] | type[Appraised] | type[Stated]]
    kinds = {Leaf: Attested, NoChannel: Appraised, Statement: Stated}
    proof = kinds[type(channel)]
    return proof(
        verdict=verdict,
        claims=claims,
        keyset=keyset,
        keyset_bytes=keyset_bytes,
        spki_sha256=hashlib.sha256(keyset.key("tls").spki).hexdigest(),
        verified_at=now,
        expires_in_s=_lifetime(keyset, policy, now),
        proof=PROOF,
    )


def draft_policy(
    evidence: Evidence, *, keyset_bytes: bytes, now: datetime, roots: tuple[str, ...] = ()
) -> str:
    """Returns the text of a policy that accepts what this server shows, and nothing else (`policy init URL`).
    `roots`: those that the caller knows, for a format that has no vendor's (`tpm`).

    What it shows is authentic only as far as its own signature: compare the measurement with one that you
    computed or trust. The policy then still has to pass `verify`, which ties it to nonce and channel.

    Raises:
        AttestationRefused: the evidence's signature does not verify, or this version cannot verify its
        format. MalformedInput: the keyset is malformed. InvalidPolicy: what was shown is nothing that a
        policy may accept.
    """
    examine = VERIFIERS.get(evidence.format)
    if examine is None:
        message = "this version cannot verify evidence of this format"
        raise AttestationRefused(message, code="evidence_format_unsupported")
    roots = accepted_roots(evidence.format, None) or roots
    _, endorsements = split_manifests(evidence.endorsements)
    found = examine(evidence.data, endorsements=endorsements, roots=roots, now=now)
    if isinstance(found.claims, Absent):
        raise AttestationRefused(found.claims.why, code=next(c.code for c in found.checks if not c.passed))
    return policy_for(found.claims, security=parse_keyset(keyset_bytes).security, now=now)


def _examine(
    checks: list[Check],
    evidence: Evidence,
    policy: Policy,
    *,
    endorsements: tuple[tuple[str, bytes], ...],
    now: datetime,
) -> Claims | Absent:
    """Step 3."""
    # 3.1
    examine = VERIFIERS.get(evidence.format)
    checks.append(
        check(
            "evidence.format",
            "This version can verify evidence of this format",
            examine is not None,
            expected=" or ".join(VERIFIERS),
            got=evidence.format,
            code="evidence_format_unsupported",
        )
    )
    # 3.2, 3.3: before the evidence is opened; `appraise` makes them again of what the claims say
    checks += policy.check_format(evidence.format)
    # 3.4
    if examine is None:
        return Absent(evidence.format, "no verifier for this format")
    roots = accepted_roots(evidence.format, policy)
    found = examine(evidence.data, endorsements=endorsements, roots=roots, now=now)
    checks += found.checks
    return found.claims


@dataclass(frozen=True, slots=True)
class _Asked:
    """What evidence must carry to be the answer: report data, and where the format has room for it the nonce, in a
    batch its root.
    """

    report_data: bytes
    nonce: bytes
    otherwise: str
    """What it means if it carries another value, for a person."""


def _check_inclusion(
    checks: list[Check],
    inclusion: Inclusion | Single,
    *,
    nonce: bytes,
    keyset_bytes: bytes,
    evidence_format: str,
) -> _Asked | Absent:
    """Step 4.1; and what follows from our own nonce, the keyset and the proof, whatever the evidence says."""
    if isinstance(inclusion, Single):
        alone = report_data(nonce=nonce, keyset_bytes=keyset_bytes)
        return _Asked(alone, nonce, "another nonce, or another keyset")
    form = ("evidence.inclusion", "The inclusion proof leads from one leaf to a batch's root")
    expected, code = "place, size and hashes of one tree (docs/spec/evidence.md §2.5)", "inclusion_malformed"
    try:
        check_inclusion(inclusion)
    except MalformedInput as exc:
        checks.append(check(*form, False, expected=expected, got=exc.message, code=code))
        return Absent(evidence_format, "the inclusion proof is malformed")
    root = root_of(inclusion, nonce=nonce, keyset_bytes=keyset_bytes)
    got = f"place {inclusion.index} of {inclusion.size}, root {root.hex()}"
    checks.append(check(*form, True, expected=expected, got=got, code=code))
    return _Asked(batch_report_data(root=root), root, "another batch than the one with this nonce and keyset")


def _check_present(checks: list[Check], claims: Claims | Absent) -> None:
    """Step 4.2: an empty or short value must not be padded, truncated or skipped into equality."""
    present = ("evidence.report_data_present", "The evidence carries report data")
    size, code = carried_size(claims.format), "report_data_missing"
    expected = f"{size} bytes, not all zero"
    if isinstance(claims, Absent):
        checks.append(check_impossible(*present, expected=expected, why=claims.why, code=code))
        return
    got = claims.report_data
    full = len(got) == size and any(got)
    shown = f"{len(got)} bytes" if any(got) or not got else f"{len(got)} bytes, all zero"
    checks.append(check(*present, full, expected=expected, got=shown, code=code))


def _check_answer(
    checks: list[Check],
    claims: Claims | Absent,
    asked: _Asked | Absent,
    *,
    keyset_bytes: bytes,
    channel: Channel,
) -> None:
    """Step 4.3."""
    answers = ("evidence.report_data", "The evidence answers this nonce, for this keyset")
    code = "report_data_mismatch"
    if isinstance(asked, Absent):
        expected = "what nonce, keyset and proof make it"
        checks.append(check_impossible(*answers, expected=expected, why=asked.why, code=code))
        return
    wanted = carried(claims.format, asked.report_data)
    if isinstance(claims, Absent):
        checks.append(check_impossible(*answers, expected=wanted.hex(), why=claims.why, code=code))
        return
    got = claims.report_data
    equal, shown = hmac.compare_digest(got, wanted), got.hex()
    if not equal and _is_boot_evidence(got, keyset_bytes, channel, claims.format):
        code, shown = "report_data_other_label", f"{shown}: boot-time evidence, which answers no nonce"
    elif not equal:
        shown = f"{shown}: {asked.otherwise}"
    checks.append(check(*answers, equal, expected=wanted.hex(), got=shown, code=code))


def _check_nitro_nonce(claims: Claims | Absent, asked: _Asked | Absent) -> Check:
    """Step 4.4."""
    if isinstance(asked, Absent):
        return replace(check_nonce(asked, nonce=b""), expected="the batch's root")
    return check_nonce(claims, nonce=asked.nonce)


def _is_boot_evidence(got: bytes, keyset_bytes: bytes, channel: Channel, evidence_format: str) -> bool:
    """Whether report data that does not answer is that of a certificate of this keyset's or leaf's key: told
    apart for the person.
    """
    spkis = []
    try:
        spkis.append(parse_keyset(keyset_bytes).key("tls").spki)
        if isinstance(channel, Leaf):
            spkis.append(channel.spki())
    except MalformedInput:
        pass  # steps 5.1 and 5.3 record it
    boot = [
        carried(evidence_format, made)
        for spki in spkis
        for made in (boot_report_data(spki=spki), certificate_report_data(evidence_format, spki=spki))
    ]
    return any(hmac.compare_digest(got, one) for one in boot)


def _check_keyset(
    checks: list[Check], keyset_bytes: bytes, *, now: datetime, evidence_format: str
) -> Keyset | Absent:
    """Steps 5.1 and 5.2."""
    form = ("keyset.form", "The keyset is a well-formed document in its one spelling")
    expiry = ("keyset.expiry", "The keyset's keys are still in their epoch")
    after = f"not_after later than {int(now.timestamp())}"
    # 5.1
    try:
        keyset = parse_keyset(keyset_bytes)
    except MalformedInput as exc:
        checks.append(
            check(
                *form,
                False,
                expected="a keyset in its one spelling (docs/spec/evidence.md §3)",
                got=exc.message,
                code=exc.code,
            )
        )
        why = "the keyset is malformed"
        checks.append(check_impossible(*expiry, expected=after, why=why, code="keyset_expired"))
        return Absent(evidence_format, why)
    digest = keyset_digest(keyset_bytes).hex()
    checks.append(
        check(
            *form,
            True,
            expected="a keyset in its one spelling (docs/spec/evidence.md §3)",
            got=f"sha256 {digest}",
            code="keyset_malformed",
        )
    )
    # 5.2
    valid = keyset.not_after > now.timestamp()
    checks.append(
        check(*expiry, valid, expected=after, got=f"not_after {keyset.not_after}", code="keyset_expired")
    )
    return keyset


def _check_channel(checks: list[Check], keyset: Keyset | Absent, channel: Leaf) -> None:
    """Step 5.3: without it, genuine evidence of a genuine server can be relayed by anybody in between."""
    spki = ("channel.spki", "This connection ends where the keyset says")
    code = "channel_key_mismatch"
    if isinstance(keyset, Absent):
        checks.append(check_impossible(*spki, expected="the keyset's TLS key", why=keyset.why, code=code))
        return
    expected = hashlib.sha256(keyset.key("tls").spki).hexdigest()
    try:
        got = hashlib.sha256(channel.spki()).hexdigest()
    except MalformedInput as exc:
        checks.append(check(*spki, False, expected=f"sha256 {expected}", got=exc.message, code=exc.code))
        return
    equal = hmac.compare_digest(got, expected)
    checks.append(check(*spki, equal, expected=f"sha256 {expected}", got=f"sha256 {got}", code=code))


def _lifetime(keyset: Keyset, policy: Policy, now: datetime) -> int:
    """Whole seconds until keyset, policy or the verdict itself runs out, whichever is first (step 7)."""
    remaining = keyset.not_after - now.timestamp()
    return int(min(remaining, policy.max_verdict_age_s, (policy.expires - now).total_seconds()))


def _verdict(
    checks: list[Check],
    evidence: Evidence,
    claims: Claims | Absent,
    *,
    keyset_bytes: bytes,
    channel: Channel,
) -> Verdict:
    failed = [c for c in checks if not c.passed]
    if isinstance(channel, Leaf):
        tied = f"certificate sha256 {hashlib.sha256(channel.der).hexdigest()}"
    elif isinstance(channel, Statement):
        tied = f"statement sha256 {hashlib.sha256(channel.data).hexdigest()}"
    else:
        tied = f"no channel: {channel.reason}"
    return Verdict(
        passed=not failed,
        format=evidence.format,
        simulated=evidence.format == "sim" or (isinstance(claims, Claims) and claims.simulated),
        checks=tuple(checks),
        code=failed[0].code if failed else None,
        claims=claims if isinstance(claims, Claims) else None,
        keyset_digest=keyset_digest(keyset_bytes).hex(),
        channel=tied,
    )


def _refusal(verdict: Verdict) -> AttestationRefused:
    first = verdict.failures[0]
    label = f"[{verdict.label}] " if verdict.label else ""
    message = f"{label}{first.id}: {first.title}: expected {first.expected}; got {first.got}"
    return AttestationRefused(message, code=first.code, verdict=verdict)
