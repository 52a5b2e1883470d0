"""From where else a store can have come: what the receiver of a hand-over asks of the source's own policy
(`docs/spec/reseal.md` §2.3).

Genuine code takes a store over from whomever *its* policy accepts. So a host could start it with a policy that accepts
code of the host's, let it take over a store that the host has made (models that nobody examined, under anybody's name,
with any store id), and offer this genuine server as a source.

Rules
  - A policy that is not understood here, or not shown, counts as one that accepts more.
"""

from __future__ import annotations

import hashlib
import hmac

from strongroom.attest.appraisal import Policy
from strongroom.attest.configuration import SecurityRequirement
from strongroom.attest.keyset import NONE
from strongroom.attest.policy import parse_policy
from strongroom.attest.requirements import Code, Requirement, Rule
from strongroom.errors import AttestationRefused, InvalidPolicy


def check_origin(theirs: bytes, *, digest: str, ours: Policy, own: str) -> None:
    """Returns if a source with the hand-over policy `theirs` (its file) has its store from nowhere that `ours`, the
    receiver's, would not take it from. `digest`: what the source's evidence says of its policy; `own`: of ours.

    1. it is our own, or one that ours names
    2. or it is the attested one, every entry in it is as narrow as one of ours, it accepts no configuration that ours
       does not, and names no policies but those of 1

    Raises:
        AttestationRefused: neither (code `handover_source_refused`).
    """
    if digest == own or digest in ours.security.handover:
        return
    if wider := _wider_file(theirs, digest, ours, own):
        raise AttestationRefused(
            f"the source may have its store from elsewhere: its hand-over policy {digest} {wider}",
            code="handover_source_refused",
        )


def _wider_file(theirs: bytes, digest: str, ours: Policy, own: str) -> str:
    if not hmac.compare_digest(hashlib.sha256(theirs).hexdigest(), digest):
        return "is not what was shown"
    try:
        policy = parse_policy(theirs.decode("utf-8"))
    except (InvalidPolicy, UnicodeDecodeError):
        return "cannot be read here"
    return _wider(policy, ours, own)


def _wider(theirs: Policy, ours: Policy, own: str) -> str:
    """By what the policy `theirs` accepts more than `ours`, "" where it does not."""
    if not all(any(_within(one, other) for other in ours.requirements) for one in theirs.requirements):
        return "has an entry that is wider than ours"
    for name in SecurityRequirement.__dataclass_fields__:
        more, known = set(getattr(theirs.security, name)), set(getattr(ours.security, name))
        if name == "sandbox":  # the one list of what must be there
            more, known = known, more
        known |= {"handover": {NONE, own}, "recovery": {NONE}, "key_release": {NONE}}.get(name, set())
        if not more <= known:
            return f"accepts more in security.{name}"
    return ""


def _within(one: Requirement, other: Requirement) -> bool:
    """Whether evidence that meets `one` meets `other`, as far as that shows without any: every rule of `other` is one
    of `one`, word for word, or names its code and more.
    """
    return one.format == other.format and all(
        any(_implies(rule, wanted) for rule in one.rules) for wanted in other.rules
    )


def _implies(rule: Rule, wanted: Rule) -> bool:
    if isinstance(rule, Code) and isinstance(wanted, Code):
        fewer = set(rule.measurements) <= set(wanted.measurements) and set(rule.signers) <= set(
            wanted.signers
        )
        return fewer and rule.products == wanted.products
    return rule == wanted


__all__ = ["check_origin"]
