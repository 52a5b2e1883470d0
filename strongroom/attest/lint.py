"""`policy lint`: what a policy means, in plain words, and where it accepts too much.

Each requirement explains itself (`requirements`); this file adds what only the whole policy shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from strongroom.attest.appraisal import (
    DEVELOPMENT,
    PRODUCTION,
    UNSAFE_SIMULATION,
    USUAL_VERDICT_AGE,
    Policy,
    can_accept,
)
from strongroom.attest.configuration import SecurityRequirement
from strongroom.attest.entries import MEMBER_MEANS as ENTRY_MEANS
from strongroom.attest.facts import NotMigratable
from strongroom.attest.keyset import NONE
from strongroom.attest.requirements import Code, NotDebug, Requirement
from strongroom.reduction import AS_UPLOADED, UNKNOWN, WORDS

KIND_MEANS = {
    PRODUCTION: "hardware evidence only; the host is excluded; no debug mode",
    DEVELOPMENT: "hardware evidence, but weaker settings may be accepted; for no real data",
    UNSAFE_SIMULATION: "SIMULATED evidence only: it protects nothing from the machine's owner; for trials",
}
MEMBER_MEANS = {
    **ENTRY_MEANS,
    "precision": "precisions of models whose answers are taken",
    "unsafe_accept_debug": "true lets the host read the memory",
    "unsafe_accept_migration": "true lets an agent of the host's choice take over the guest's memory",
    "sealing": "what the keys of stored models are bound to",
    "host_excluded": "whether the host cannot read the server's memory",
    "isolation": "what shares one process",
    "sandbox": "layers that must all have taken hold; more are welcome",
    "admission": "how models are examined before they run",
    "anonymous_upload": "whether models are taken from callers without a key",
    "verify_on_load": "what is checked when a stored model is loaded",
    "logging": "what may reach a log",
    "handover": "by which policies a server may hand its stored models over (SHA-256 of the policy file)",
    "recovery": "whose public keys a server may wrap the key of its store to",
    "key_release": "which brokers may keep the key of the stored models (Ed25519 public key, and the key's name)",
}


INFO, WARNING, DANGER = "info", "warning", "danger"
FAR_EXPIRY = timedelta(days=400)
"""A policy that outlives a year of releases accepts code whose holes have been published."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `lint`: `level` info (what a member means), warning or danger (it accepts too much, or
    nothing).
    """

    level: str
    member: str
    text: str

    def to_json(self) -> dict[str, str]:
        """The finding for `--json`."""
        return {"level": self.level, "member": self.member, "text": self.text}


def lint(policy: Policy, now: datetime) -> tuple[Finding, ...]:
    """Explains every member of `policy` in plain words, in the order of the file, and says what accepts too
    much or nothing.
    """
    found = [Finding(INFO, "kind", f"{policy.kind}: {KIND_MEANS[policy.kind]}.")]
    if policy.kind == UNSAFE_SIMULATION:
        text = "SIMULATED evidence is accepted: the machine's owner can read everything. Send nothing real."
        found.append(Finding(DANGER, "kind", text))
    if policy.kind == DEVELOPMENT:
        found.append(Finding(WARNING, "kind", "Kind development accepts what kind production would not."))
    found += _lint_times(policy, now)
    found += _lint_precision(policy.precision)
    if not policy.requirements:
        found.append(Finding(WARNING, "entries", "No code is named: this policy refuses every server."))
    counts: dict[str, int] = {}
    for requirement in policy.requirements:
        at = counts[requirement.format] = counts.get(requirement.format, -1) + 1
        found += _lint_entry(requirement, f"{requirement.format}[{at}]")
    for name in SecurityRequirement.__dataclass_fields__:
        found += _lint_security(name, getattr(policy.security, name))
    return tuple(found)


def _lint_times(policy: Policy, now: datetime) -> list[Finding]:
    found = [Finding(INFO, "expires", f"From {policy.expires.isoformat()} on, everything is refused.")]
    if policy.expires <= now:
        found.append(Finding(DANGER, "expires", "The policy has expired: it refuses every server."))
    elif policy.requirements and policy.expires - now > FAR_EXPIRY:
        text = "More than 400 days ahead: its code stays accepted long after its holes are published."
        found.append(Finding(WARNING, "expires", text))
    age = policy.max_verdict_age_s
    found.append(
        Finding(INFO, "max_verdict_age_s", f"A server is verified again after {age} s at the latest.")
    )
    if age > USUAL_VERDICT_AGE:
        text = f"A server's stolen key can be used for {age} s; the usual value is {USUAL_VERDICT_AGE}."
        found.append(Finding(WARNING, "max_verdict_age_s", text))
    return found


def _lint_precision(accepted: tuple[str, ...]) -> list[Finding]:
    """Nothing where the policy says nothing."""
    if accepted == WORDS:
        return []
    text = f"Answers are taken of models whose precision is {_words(accepted)}, by what their server says of them."
    found = [Finding(INFO, "precision", text)]
    for word, why in _PRECISION_WEAK.items():
        if word in accepted:
            found.append(Finding(WARNING, "precision", f"{word} is accepted: {why}."))
    return found


_PRECISION_WEAK = {
    AS_UPLOADED: "what arrived with less than 32 bits is taken, and nobody says what it was made from",
    UNKNOWN: "models are taken that an earlier release let in, which did not look at their precision",
}


def _lint_entry(requirement: Requirement, member: str) -> list[Finding]:
    found = []
    for rule in requirement.rules:
        found.append(Finding(INFO, member, rule.explain()))
        found += [Finding(WARNING, member, text) for text in rule.weaknesses()]
    if not any(isinstance(rule, NotDebug) for rule in requirement.rules):
        text = "TEEs in debug mode are accepted: the host can read their memory. Send nothing real."
        found.append(Finding(DANGER, member, text))
    if can_accept(NotMigratable.ID, requirement) and NotMigratable.ID not in requirement.ids():
        text = "Guests are accepted whose memory a migration agent can take: the host chooses the agent."
        found.append(Finding(DANGER, member, text))
    found += [Finding(level, member, text) for level, text in _about_format(requirement)]
    return found


_SAID_OF = {
    "tpm": (WARNING, "A TPM measures how the machine started; it hides no memory from the host."),
    "snp": (
        INFO,
        "A launch digest covers the first memory: kernel, initrd and command line only where the image is started with "
        "their hashes in it. Be sure that it was.",
    ),
    "tdx": (INFO, "What a TD measures after its start stands in RTMR0 to RTMR3, or nowhere."),
}
_BOOT = {"pcr0": "the firmware", "pcr4": "the boot loader and kernel", "pcr7": "the state of secure boot"}
_TIED = ("chips", "fmspcs", "vm_ids")


def _about_format(requirement: Requirement) -> list[tuple[str, str]]:
    """What the format leaves open, and what only the whole entry shows."""
    found = [_SAID_OF[requirement.format]] if requirement.format in _SAID_OF else []
    ids, rules = requirement.ids(), requirement.rules
    members = {name for rule in rules for name, _ in rule.members()}
    whole = any(isinstance(rule, Code) for rule in rules) or "release_keys" in members
    if requirement.format in ("tpm", "azure") and not whole:
        open_ = [f"{n} ({what})" for n, what in _BOOT.items() if f"policy.register.{n}" not in ids]
        if open_:
            found.append((WARNING, f"No value is required of {', '.join(open_)}."))
        if requirement.format == "tpm" and not any(f"policy.register.pcr{n}" in ids for n in range(8, 16)):
            text = "No register from pcr8 to pcr15 is required: any code counts that this firmware started."
            found.append((DANGER, text))
    if requirement.format in ("sgx", "tdx", "snp", "azure") and not members & set(_TIED):
        text = "Any chip counts that meets the rest; whoever extracts the keys of one can imitate a server."
        found.append((INFO, text))
    return found


_SECURITY_WEAK: dict[tuple[str, str | bool], tuple[str, str]] = {
    ("sealing", "signer"): (
        WARNING,
        "any code of the same signer, also later code, can open the stored models",
    ),
    ("sealing", "operator"): (DANGER, "the operator holds the key of the stored models"),
    ("sealing", "simulated"): (
        DANGER,
        "the operator holds the root key, and with it the key of the stored models",
    ),
    ("host_excluded", False): (DANGER, "the host may read the server's memory"),
    ("anonymous_upload", True): (
        WARNING,
        "anybody can place models on the server that others may run by mistake",
    ),
}


_SECURITY_OTHERS = {
    "handover": "whatever code the policy file with this digest accepts can receive the stored models; read it",
    "recovery": "whoever holds this key and a copy of the disk can read the stored models, and can fill an empty store "
    "with models that no server examined",
    "key_release": "whoever runs the broker with this key, and has a copy of the disk, can read the stored models, and "
    "can fill an empty store with models that no server examined",
}


def _lint_security(name: str, accepted: tuple[str | bool, ...]) -> list[Finding]:
    member, words = f"security.{name}", _words(accepted)
    if name == "sandbox":
        text = (
            f"All of these layers must have taken hold: {words}."
            if accepted
            else "No sandbox layer is required."
        )
        return [Finding(INFO, member, text)]
    found = [Finding(INFO, member, f"{MEMBER_MEANS[name].capitalize()}; accepted: {words}.")]
    for value in accepted:
        if name in _SECURITY_OTHERS and value != NONE:
            found.append(Finding(WARNING, member, f"{value} is accepted: {_SECURITY_OTHERS[name]}."))
        if (name, value) in _SECURITY_WEAK:
            level, why = _SECURITY_WEAK[name, value]
            found.append(Finding(level, member, f"{_words(value)} is accepted: {why}."))
    return found


def _words(values: object) -> str:
    if isinstance(values, tuple):
        return " or ".join(map(_words, values))
    return str(values).lower() if isinstance(values, bool) else str(values)
