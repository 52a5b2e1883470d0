"""What a policy requires, as small objects: one per requirement, each with one check over claims or
configuration.

Rules of this file:

1. A requirement that is not there is an object that is not there; none has a value that means "skip me".
2. Every object can say what it expects, in a check, and explain itself in plain words, with what it lets
   through (`lint`).
3. An object that accepts everything cannot be made: empty lists are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import ClassVar

from strongroom.attest.evidence import (
    MAX_SKEW,
    MAX_SVN,
    Absent,
    Check,
    Claims,
    check,
    check_impossible,
    one_of,
)
from strongroom.attest.keyset import LAYER, VALUES, SecurityConfiguration
from strongroom.errors import InvalidPolicy

TIMED_FORMATS = ("sim", "nitro")
"""Formats whose evidence carries the time at which it was made. The others are fresh through the nonce
alone.
"""
HARDWARE_FORMATS = ("sgx", "tdx", "snp", "tpm", "nitro", "azure")
"""Formats of real machines. Of these a TPM alone does not keep the host out of the memory."""
TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "NotReported",
)
"""What a policy may accept, spelled as Intel does; "NotReported" is for formats without such a word. Never
"Revoked".
"""
MAX_EVIDENCE_AGE = 7 * 24 * 3600
"""Seconds: a policy that accepts older evidence has no freshness requirement worth the name."""

_MEASUREMENT = r"[0-9a-f]{64}|[0-9a-f]{96}"
_ADVISORY = r"[A-Z]{2,16}(-[A-Z0-9]{1,16}){1,4}"


def _require(condition: bool, why: str, *, code: str = "policy_invalid") -> None:
    if not condition:
        raise InvalidPolicy(f"policy: {why}", code=code)


def _require_list(values: tuple[str, ...], pattern: str, where: str) -> None:
    for value in values:
        _require(
            re.fullmatch(pattern, value, re.ASCII) is not None,
            f"{where}: expected values of the form {pattern}",
        )
    _require(len(set(values)) == len(values), f"{where}: a value is there twice")


class Rule:
    """One requirement on claims: `ID`, `TITLE` and `CODE` of its check, and the four methods below."""

    __slots__ = ()
    ID: ClassVar[str]
    TITLE: ClassVar[str]
    CODE: ClassVar[str]

    def expected(self) -> str:
        """What must hold, for the check."""
        raise NotImplementedError

    def holds(self, claims: Claims, now: datetime) -> tuple[bool, str]:
        """Whether it holds for `claims` at `now`, and what was found instead."""
        raise NotImplementedError

    def explain(self) -> str:
        """What the requirement means, in a sentence for a person."""
        raise NotImplementedError

    def weaknesses(self) -> tuple[str, ...]:
        """What it lets through that an attacker or an accident could use; one sentence each."""
        return ()

    def check(self, claims: Claims | Absent, now: datetime) -> Check:
        """The check of this requirement; failed where there are no claims to check."""
        if isinstance(claims, Absent):
            return check_impossible(
                self.ID, self.TITLE, expected=self.expected(), why=claims.why, code=self.CODE
            )
        passed, got = self.holds(claims, now)
        return check(self.ID, self.TITLE, passed, expected=self.expected(), got=got, code=self.CODE)


@dataclass(frozen=True, slots=True)
class Root(Rule):
    """The trust anchor is this one (hex SHA-256 of its SPKI)."""

    ID = "policy.root"
    TITLE = "The root is the one named beside this measurement"
    CODE = "root_not_accepted"
    digest: str

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"[0-9a-f]{64}", self.digest) is not None,
            "root: expected 64 lower-case hex characters",
        )

    def expected(self) -> str:
        """The digest."""
        return self.digest

    def holds(self, claims: Claims, now: datetime) -> tuple[bool, str]:
        """Equal to the root that signed."""
        return claims.root == self.digest, claims.root

    def explain(self) -> str:
        """Who can sign."""
        return f"Only the root key {self.digest[:16]}… counts. Whoever holds it can sign anything."


@dataclass(frozen=True, slots=True)
class Roots(Rule):
    """The trust anchor is one of these (hex SHA-256): of a format whose vendors nobody can list."""

    ID = "policy.root"
    TITLE = "The root is one that is named beside this measurement"
    CODE = "root_not_accepted"
    digests: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(bool(self.digests), "roots: an empty list accepts nothing", code="policy_accepts_nothing")
        _require_list(self.digests, r"[0-9a-f]{64}", "roots")

    def expected(self) -> str:
        """The digests."""
        return one_of(self.digests)

    def holds(self, claims: Claims, now: datetime) -> tuple[bool, str]:
        """One of them is what the key that signed is tied to."""
        return claims.root in self.digests, claims.root

    def explain(self) -> str:
        """Who can sign."""
        return f"Only keys count that are tied to one of {len(self.digests)} named root(s) or are named themselves."


@dataclass(frozen=True, slots=True)
class Code(Rule):
    """The code is one of `measurements`, or of one of `signers` and then one of its `products`."""

    ID = "policy.measurement"
    TITLE = "The code is one that the policy names"
    CODE = "measurement_not_accepted"
    measurements: tuple[str, ...]
    signers: tuple[str, ...]
    products: tuple[int, ...]

    def __post_init__(self) -> None:
        _require_list(self.measurements, _MEASUREMENT, "measurements")
        _require_list(self.signers, _MEASUREMENT, "signers")
        some = bool(self.measurements or self.signers)
        _require(
            some, "an entry without measurements and signers accepts no code", code="policy_accepts_nothing"
        )
        both = bool(self.signers) == bool(self.products)
        _require(both, "products: name the accepted products of the signers, and only with signers")
        _require(
            all(0 <= p <= MAX_SVN for p in self.products), f"products: expected integers within 0..{MAX_SVN}"
        )

    def expected(self) -> str:
        """The measurements and signers."""
        parts = [one_of(self.measurements)] if self.measurements else []
        if self.signers:
            parts.append(
                f"signer {one_of(self.signers)} with product {one_of(tuple(map(str, self.products)))}"
            )
        return " or ".join(parts)

    def holds(self, claims: Claims, now: datetime) -> tuple[bool, str]:
        """By measurement, or by signer and product."""
        if claims.measurement in self.measurements:
            return True, claims.measurement
        if self.signers:
            signed = claims.signer in self.signers and claims.product in self.products
            return signed, f"{claims.measurement}, signer {claims.signer or 'none'}, product {claims.product}"
        return False, claims.measurement

    def explain(self) -> str:
        """Which code."""
        named = f"The server must run one of {len(self.measurements)} named build(s) of the code."
        signed = (
            f"Any build counts that one of {len(self.signers)} signer(s) signed as product {self.products}."
        )
        return " ".join(([named] if self.measurements else []) + ([signed] if self.signers else []))

    def weaknesses(self) -> tuple[str, ...]:
        """Signers accept code that nobody has seen."""
        if not self.signers:
            return ()
        return ("No measurement is needed where a signer is accepted: its code can change at any time.",)


@dataclass(frozen=True, slots=True)
class MinSvn(Rule):
    """The code's security version number is at least this."""

    ID = "policy.svn"
    TITLE = "The code's security version is recent enough"
    CODE = "svn_too_low"
    svn: int

    def __post_init__(self) -> None:
        _require(0 <= self.svn <= MAX_SVN, f"min_svn: expected an integer within 0..{MAX_SVN}")

    def expected(self) -> str:
        """The minimum."""
        return f"at least {self.svn}"

    def holds(self, claims: Claims, now: datetime) -> tuple[bool, str]:
        """Not lower."""
        return claims.svn >= self.svn, str(claims.svn)

    def explain(self) -> str:
        """What an SVN is for."""
        return f"Releases with a security version below {self.svn} are refused, for they have known holes."

    def weaknesses(self) -> tuple[str, ...]:
        """Zero lets every release through."""
        return (
            ("min_svn = 0 accepts every old release that a list still names or a signer signed.",)
            if self.svn == 0
            else ()
        )


@dataclass(frozen=True, slots=True)
class Tcb(Rule):
    """The vendor's word about the platform is one of `statuses`."""

    ID = "policy.tcb_status"
    TITLE = "The platform's TCB status is acceptable"
    CODE = "tcb_status_not_accepted"
    statuses: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(
            bool(self.statuses),
            "tcb_statuses: an empty list accepts no platform",
            code="policy_accepts_nothing",
        )
        _require(
            "Revoked" not in self.statuses,
            "tcb_statuses: Revoked is never acceptable",
            code="policy_too_weak",
        )
        known = all(s in TCB_STATUSES for s in self.statuses)
        _require(known, f"tcb_statuses: expected values out of {', '.join(TCB_STATUSES)}")

    def expected(self) -> str:
        """The statuses."""
        return one_of(self.statuses)

    def holds(self, claims: Claims, now: datetime) -> tuple[bool, str]:
        """One of them."""
        return claims.tcb_status in self.statuses, claims.tcb_status

    def explain(self) -> str:
        """Which platforms."""
        return f"The vendor must call the platform {' or '.join(self.statuses)}."

    def weaknesses(self) -> tuple[str, ...]:
        """Statuses that stand for known holes."""
        told = {
            "OutOfDate": "firmware or microcode with published vulnerabilities",
            "OutOfDateConfigurationNeeded": "firmware or microcode with published vulnerabilities",
            "ConfigurationNeeded": "platforms set up in a way that may weaken them",
            "ConfigurationAndSWHardeningNeeded": "platforms set up in a way that may weaken them",
            "TDRelaunchAdvised": "guests that were started before the platform was mended",
            "TDRelaunchAdvisedConfigurationNeeded": "guests that were started before the platform was mended",
            "NotReported": "platforms about which the vendor says nothing",
        }
        return tuple(f"{s} accepts {told[s]}." for s in self.statuses if s in told)


@dataclass(frozen=True, slots=True)
class Advisories(Rule):
    """Every advisory that applies to the platform is one of `accepted`."""

    ID = "policy.advisories"
    TITLE = "No advisory applies but the accepted ones"
    CODE = "advisory_not_accepted"
    accepted: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_list(self.accepted, _ADVISORY, "accepted_advisories")

    def expected(self) -> str:
        """The accepted ones."""
        return f"none but {', '.join(self.accepted)}" if self.accepted else "none"

    def holds(self, claims: Claims, now: datetime) -> tuple[bool, str]:
        """No other."""
        return set(claims.advisories) <= set(self.accepted), ", ".join(claims.advisories) or "none"

    def explain(self) -> str:
        """Which advisories."""
        if not self.accepted:
            return "A platform to which any security advisory applies is refused."
        return f"Of all security advisories only these may apply: {', '.join(self.accepted)}."

    def weaknesses(self) -> tuple[str, ...]:
        """Each accepted advisory is a known hole."""
        return tuple(
            f"{a} may apply: read it, and be sure that it does not matter here." for a in self.accepted
        )


@dataclass(frozen=True, slots=True)
class NotDebug(Rule):
    """The TEE is not in debug mode."""

    ID = "policy.debug"
    TITLE = "The TEE is not in debug mode"
    CODE = "debug_platform"

    def expected(self) -> str:
        """No debugging."""
        return "not debug"

    def holds(self, claims: Claims, now: datetime) -> tuple[bool, str]:
        """Not debug."""
        return not claims.debug, "debug" if claims.debug else "not debug"

    def explain(self) -> str:
        """What debug means."""
        return "A TEE in debug mode is refused: the host can read its memory."


@dataclass(frozen=True, slots=True)
class MaxAge(Rule):
    """The evidence was made at most `seconds` ago, by its own clock, and not in the future."""

    ID = "policy.age"
    TITLE = "The evidence is fresh by its own clock"
    CODE = "evidence_stale"
    seconds: int

    def __post_init__(self) -> None:
        fits = 1 <= self.seconds <= MAX_EVIDENCE_AGE
        _require(fits, f"max_evidence_age_s: expected seconds within 1..{MAX_EVIDENCE_AGE}")

    def expected(self) -> str:
        """The age."""
        return f"at most {self.seconds} s old"

    def holds(self, claims: Claims, now: datetime) -> tuple[bool, str]:
        """Within the age; evidence without a time fails, for its age is unknown."""
        if claims.issued_at is None:
            return False, "evidence without a time"
        age = now - claims.issued_at
        passed = -MAX_SKEW <= age <= timedelta(seconds=self.seconds)
        seconds = int(age.total_seconds())
        return passed, f"{seconds} s old" if seconds >= 0 else f"{-seconds} s in the future"

    def explain(self) -> str:
        """What age means beside a nonce."""
        return f"Evidence older than {self.seconds} s is refused, besides the nonce of every verification."

    def weaknesses(self) -> tuple[str, ...]:
        """More than an hour."""
        if self.seconds <= 3600:
            return ()
        return (f"Evidence may be {self.seconds} s old; servers make it anew for every nonce.",)


@dataclass(frozen=True, slots=True)
class Requirement:
    """All that is required of evidence of one format; a policy may hold several, and one that holds entirely
    is enough.

    Raises:
        InvalidPolicy: rules that belong to every requirement of this format are missing, or one is there
        twice.
    """

    format: str
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        kinds = [type(rule) for rule in self.rules]
        _require(len(set(kinds)) == len(kinds), f"{self.format}: a requirement is there twice")
        needed: set[type[Rule]] = {Code, MinSvn} | ({MaxAge} if self.format in TIMED_FORMATS else set())
        needed |= {Root, NotDebug} if self.format == "sim" else {Tcb, Advisories}
        needed |= {Roots} if self.format == "tpm" else set()
        missing = sorted(kind.__name__ for kind in needed - set(kinds))
        _require(not missing, f"{self.format}: missing: {', '.join(missing)}", code="policy_missing_member")
        untimed = MaxAge in kinds and self.format not in TIMED_FORMATS
        _require(not untimed, f"{self.format}: its evidence carries no time; the nonce makes it fresh")

    def check(self, claims: Claims | Absent, now: datetime) -> tuple[Check, ...]:
        """The check of every rule, in order."""
        return tuple(rule.check(claims, now) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class SecurityRequirement:
    """The values that each field of the security configuration may have; `sandbox` names layers that must
    have taken hold.

    Raises:
        InvalidPolicy: an empty list, or a value that this version does not know.
    """

    sealing: tuple[str, ...]
    host_excluded: tuple[bool, ...]
    isolation: tuple[str, ...]
    sandbox: tuple[str, ...]
    admission: tuple[str, ...]
    anonymous_upload: tuple[bool, ...]
    verify_on_load: tuple[str, ...]
    logging: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_list(self.sandbox, LAYER, "security.sandbox")
        for name, known in VALUES.items():
            accepted = getattr(self, name)
            where = f"security.{name}"
            _require(bool(accepted), f"{where}: an empty list accepts nothing", code="policy_accepts_nothing")
            fits = all(value in known and type(value) is type(known[0]) for value in accepted)
            _require(fits, f"{where}: expected values out of {', '.join(map(_spell, known))}")
            _require(len(set(accepted)) == len(accepted), f"{where}: a value is there twice")

    def check(self, security: SecurityConfiguration | Absent) -> tuple[Check, ...]:
        """One check per field, in the order of the fields; all failed where there is no configuration."""
        return tuple(self._check_field(field.name, security) for field in fields(self))

    def _check_field(self, name: str, security: SecurityConfiguration | Absent) -> Check:
        accepted: tuple[str | bool, ...] = getattr(self, name)
        check_id, code = f"security.{name}", f"security_{name}_refused"
        title = _SECURITY_TITLES[name]
        if name == "sandbox":
            expected = f"at least {', '.join(self.sandbox)}" if self.sandbox else "no layer is required"
        else:
            expected = one_of(tuple(map(_spell, accepted)))
        if isinstance(security, Absent):
            return check_impossible(check_id, title, expected=expected, why=security.why, code=code)
        if name == "sandbox":
            passed, got = set(self.sandbox) <= set(security.sandbox), ", ".join(security.sandbox) or "none"
        else:
            passed, got = getattr(security, name) in accepted, _spell(getattr(security, name))
        return check(check_id, title, passed, expected=expected, got=got, code=code)


_SECURITY_TITLES = {
    "sealing": "What the stored models' keys are bound to",
    "host_excluded": "Whether the server claims that its host cannot read its memory",
    "isolation": "What shares a process",
    "sandbox": "The sandbox layers that took hold",
    "admission": "How models are examined before they run",
    "anonymous_upload": "Whether uploads without a key are taken",
    "verify_on_load": "What is checked when a stored model is loaded",
    "logging": "What may reach a log",
}


def _spell(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def check_consistency(claims: Claims | Absent, security: SecurityConfiguration | Absent) -> Check:
    """The configuration claims no more than the evidence shows: a lie here would pass a policy that trusts
    its words.
    """
    check_id, title = "security.consistent", "The configuration claims no more than the evidence shows"
    code = "security_contradicts_evidence"
    expected = "host_excluded and sealing that this kind of evidence can show"
    if isinstance(claims, Absent):
        return check_impossible(check_id, title, expected=expected, why=claims.why, code=code)
    if isinstance(security, Absent):
        return check_impossible(check_id, title, expected=expected, why=security.why, code=code)
    shown = ("operator", "simulated") if claims.simulated else ("measurement", "signer", "operator")
    passed = security.sealing in shown and (claims.host_excluded or not security.host_excluded)
    got = f"host_excluded {_spell(security.host_excluded)}, sealing {security.sealing}, {claims.format}"
    return check(check_id, title, passed, expected=expected, got=got, code=code)
