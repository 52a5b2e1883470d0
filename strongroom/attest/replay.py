"""`appraise_bundle()`: the verification that a bundle records, made again, without its connection.

Rules of this file:

1. Nothing here makes `Attested`: whoever has a bundle has no connection, and nothing may be sent on its strength.
2. What rests on the word of whoever made the bundle is named in `Verdict.not_checked`.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from strongroom import attest
from strongroom.attest.appraisal import Policy
from strongroom.attest.bundle import Bundle
from strongroom.attest.evidence import Check, Leaf, NoChannel, Verdict, check, check_impossible, parse_answer
from strongroom.attest.keyset import parse_keyset
from strongroom.attest.policy import parse_policy, refuse_any_measurement
from strongroom.errors import AttestationRefused, MalformedInput, Unusable

_CHANNEL = "no channel: a bundle, whose connection is over"


@dataclass(frozen=True, slots=True)
class Bundled:
    """As the bundle has it: its own policy, or its own time."""


def appraise_bundle(bundle: Bundle, *, policy: Policy | Bundled, now: datetime | Bundled) -> Verdict:
    """Verifies what `bundle` holds as `attest.verify` does, by its own policy or another, at its own time or another.

    1. the evidence answer can be read
    2. steps 3 to 6 of `attest.verify`, without a channel
    3. the leaf in the bundle is of the keyset's TLS key: what was step 5.3 on the connection

    The verdict's first failure is that of the verification that was saved, where policy and time are the same.

    Raises:
        InvalidPolicy: the bundle's own policy cannot be applied, or `policy` is none (`UNSAFE_ANY_MEASUREMENT`).
        TypeError: `now` has no time zone.
    """
    by = parse_policy(bundle.policy) if isinstance(policy, Bundled) else policy
    if not isinstance(by, Policy):
        refuse_any_measurement()
    at = bundle.verified_at if isinstance(now, Bundled) else now
    if at.tzinfo is None:
        raise TypeError("now: expected an aware datetime")
    verdict = _verify(bundle, by, at)
    return replace(
        verdict, channel=_CHANNEL, not_checked=(*verdict.not_checked, *_word_of_mouth(bundle, policy, now))
    )


def _verify(bundle: Bundle, policy: Policy, now: datetime) -> Verdict:
    """Steps 1 to 3."""
    # 1.
    try:
        answer = parse_answer(bundle.answer)
    except Unusable as exc:
        title, expected = "The evidence can be read", "well-formed evidence"
        return _unreadable(
            check("evidence.answer", title, False, expected=expected, got=exc.message, code=exc.code)
        )
    # 2.
    try:
        verdict = attest.verify(
            answer.evidence,
            policy,
            nonce=bundle.nonce,
            keyset_bytes=answer.keyset,
            inclusion=answer.inclusion,
            channel=NoChannel("a bundle"),
            endorsements=bundle.endorsements,
            now=now,
        ).verdict
    except AttestationRefused as refused:
        if refused.verdict is None:  # pragma: no cover - `verify` always gives one
            raise
        verdict = refused.verdict
    # 3. in the place that it has on a connection: before the policy's checks
    made = _check_leaf(bundle.leaf, answer.keyset)
    place = max(n for n, c in enumerate(verdict.checks) if c.id.startswith("keyset.")) + 1
    checks = (*verdict.checks[:place], made, *verdict.checks[place:])
    failed = [c for c in checks if not c.passed]
    return replace(verdict, passed=not failed, checks=checks, code=failed[0].code if failed else None)


def _check_leaf(leaf: bytes, keyset_bytes: bytes) -> Check:
    """Step 3. A bundle whose leaf is another's was relayed as it was verified, or mixed afterwards."""
    spki = ("bundle.leaf", "The certificate of the connection, in the bundle, is of the keyset's TLS key")
    code = "channel_key_mismatch"
    try:
        expected = hashlib.sha256(parse_keyset(keyset_bytes).key("tls").spki).hexdigest()
    except MalformedInput:
        return check_impossible(
            *spki, expected="the keyset's TLS key", why="the keyset is malformed", code=code
        )
    try:
        got = hashlib.sha256(Leaf(leaf).spki()).hexdigest()
    except MalformedInput as exc:
        return check(*spki, False, expected=f"sha256 {expected}", got=exc.message, code=exc.code)
    equal = hmac.compare_digest(got, expected)
    return check(*spki, equal, expected=f"sha256 {expected}", got=f"sha256 {got}", code=code)


def _unreadable(failed: Check) -> Verdict:
    return Verdict(
        passed=False,
        format="",
        simulated=False,
        checks=(failed,),
        code=failed.code,
        claims=None,
        keyset_digest=None,
        channel=_CHANNEL,
    )


def _word_of_mouth(bundle: Bundle, policy: Policy | Bundled, now: datetime | Bundled) -> tuple[str, ...]:
    """What nobody but the bundle's author says (docs/spec/bundle.md §4)."""
    moment = bundle.verified_at.astimezone(UTC).isoformat()
    whose = f"{moment} is the word of whoever made the bundle"
    lines = [
        f"the time: {whose}"
        if isinstance(now, Bundled)
        else f"the time of the bundle: {whose}, not used here",
        "the nonce: it is in the bundle; such evidence existed for it, but who asked, and when, is not shown",
        "the connection: a recorded certificate shows no server; nothing may be sent on the strength of a bundle",
        f"the origin: {bundle.origin or 'none'} is a comment",
    ]
    if isinstance(policy, Bundled):
        lines.append("the policy: it came in the bundle, from whoever made it; read it, or give your own")
    return tuple(lines)
