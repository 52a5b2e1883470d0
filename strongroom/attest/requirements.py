"""What a policy requires of evidence of any format, as small objects: one per requirement, each with one check over
claims.

Rules of this file:

1. A requirement that is not there is an object that is not there; none has a value that means "skip me".
2. Every object can say what it expects, in a check, and explain itself in plain words, with what it lets
   through (`lint`).
3. An object that accepts everything cannot be made: empty lists are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, TypeAlias

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
)
"""What a policy may accept, spelled as Intel does. Never "Revoked"."""
MAX_EVIDENCE_AGE = 7 * 24 * 3600
"""Seconds: a policy that accepts older evidence has no freshness requirement worth the name."""

MEASUREMENT = r"[0-9a-f]{64}|[0-9a-f]{96}"
"""The form of measurements, and of digests of signers."""
_ADVISORY = r"[A-Z]{2,16}(-[A-Z0-9]{1,16}){1,4}"


def require(condition: bool, why: str, *, code: str = "policy_invalid") -> None:
    """Refuses a policy where `condition` does not hold.

    Raises:
        InvalidPolicy: with `code`.
    """
    if not condition:
        raise InvalidPolicy(f"policy: {why}", code=code)


def require_list(values: tuple[str, ...], pattern: str, where: str) -> None:
    """Refuses a list with a value of another form than `pattern`, or with one twice.

    Raises:
        InvalidPolicy: code `policy_invalid`.
    """
    for value in values:
        require(
            re.fullmatch(pattern, value, re.ASCII) is not None,
            f"{where}: expected values of the form {pattern}",
        )
    require(len(set(values)) == len(values), f"{where}: a value is there twice")


@dataclass(frozen=True, slots=True)
class Given:
    """What a rule may look at besides the claims: the one time of the appraisal (aware), and signed release manifests
    (`releases`) that came with the evidence, unverified.
    """

    now: datetime
    manifests: tuple[bytes, ...]


Value: TypeAlias = object
"""What a policy file can hold: a string, integer, boolean, time, tuple of them, or mapping to them."""


class Rule:
    """One requirement on claims: `ID`, `TITLE` and `CODE` of its check, and the methods below."""

    __slots__ = ()
    ID: ClassVar[str]
    TITLE: ClassVar[str]
    CODE: ClassVar[str]

    def head(self) -> tuple[str, str, str]:
        """Id, title and code of its check; one class may make checks of several ids."""
        return self.ID, self.TITLE, self.CODE

    def members(self) -> tuple[tuple[str, Value], ...]:
        """The members of a policy file that say this, in their order."""
        raise NotImplementedError

    def expected(self) -> str:
        """What must hold, for the check."""
        raise NotImplementedError

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """Whether it holds for `claims`, and what was found instead."""
        raise NotImplementedError

    def explain(self) -> str:
        """What the requirement means, in a sentence for a person."""
        raise NotImplementedError

    def weaknesses(self) -> tuple[str, ...]:
        """What it lets through that an attacker or an accident could use; one sentence each."""
        return ()

    def check(self, claims: Claims | Absent, given: Given) -> Check:
        """The check of this requirement; failed where there are no claims to check."""
        check_id, title, code = self.head()
        if isinstance(claims, Absent):
            return check_impossible(check_id, title, expected=self.expected(), why=claims.why, code=code)
        passed, got = self.holds(claims, given)
        return check(check_id, title, passed, expected=self.expected(), got=got, code=code)


@dataclass(frozen=True, slots=True)
class Root(Rule):
    """The trust anchor is this one (hex SHA-256 of its SPKI)."""

    ID = "policy.root"
    TITLE = "The root is the one named beside this measurement"
    CODE = "root_not_accepted"
    digest: str

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[0-9a-f]{64}", self.digest) is not None,
            "root: expected 64 lower-case hex characters",
        )

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("root", self.digest),)

    def expected(self) -> str:
        """The digest."""
        return self.digest

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
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
        require(bool(self.digests), "roots: an empty list accepts nothing", code="policy_accepts_nothing")
        require_list(self.digests, r"[0-9a-f]{64}", "roots")

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("roots", self.digests),)

    def expected(self) -> str:
        """The digests."""
        return one_of(self.digests)

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """One of them is what the key that signed is tied to."""
        return claims.root in self.digests, claims.root

    def explain(self) -> str:
        """Who can sign."""
        return f"Only keys count that are tied to one of {len(self.digests)} named root(s) or are named themselves."


@dataclass(frozen=True, slots=True)
class Code(Rule):
    """The code is one of `measurements`, or of one of `signers` and then one of its `products` (of 0 where the format
    has no products).
    """

    ID = "policy.measurement"
    TITLE = "The code is one that the policy names"
    CODE = "measurement_not_accepted"
    measurements: tuple[str, ...]
    signers: tuple[str, ...]
    products: tuple[int, ...]

    def __post_init__(self) -> None:
        require_list(self.measurements, MEASUREMENT, "measurements")
        require_list(self.signers, MEASUREMENT, "signers")
        some = bool(self.measurements or self.signers)
        require(
            some, "an entry without measurements and signers accepts no code", code="policy_accepts_nothing"
        )
        both = bool(self.signers) == bool(self.products)
        require(both, "products: name the accepted products of the signers, and only with signers")
        require(
            all(0 <= p <= MAX_SVN for p in self.products), f"products: expected integers within 0..{MAX_SVN}"
        )

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("measurements", self.measurements), ("signers", self.signers), ("products", self.products))

    def expected(self) -> str:
        """The measurements and signers."""
        parts = [one_of(self.measurements)] if self.measurements else []
        if self.signers:
            parts.append(
                f"signer {one_of(self.signers)} with product {one_of(tuple(map(str, self.products)))}"
            )
        return " or ".join(parts)

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
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
        require(0 <= self.svn <= MAX_SVN, f"min_svn: expected an integer within 0..{MAX_SVN}")

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("min_svn", self.svn),)

    def expected(self) -> str:
        """The minimum."""
        return f"at least {self.svn}"

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
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
        require(
            bool(self.statuses),
            "tcb_statuses: an empty list accepts no platform",
            code="policy_accepts_nothing",
        )
        require(
            "Revoked" not in self.statuses,
            "tcb_statuses: Revoked is never acceptable",
            code="policy_too_weak",
        )
        known = all(s in TCB_STATUSES for s in self.statuses)
        require(known, f"tcb_statuses: expected values out of {', '.join(TCB_STATUSES)}")

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("tcb_statuses", self.statuses),)

    def expected(self) -> str:
        """The statuses."""
        return one_of(self.statuses)

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
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
        require_list(self.accepted, _ADVISORY, "accepted_advisories")

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("accepted_advisories", self.accepted),)

    def expected(self) -> str:
        """The accepted ones."""
        return f"none but {', '.join(self.accepted)}" if self.accepted else "none"

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
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

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return ()

    def expected(self) -> str:
        """No debugging."""
        return "not debug"

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
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
        require(fits, f"max_evidence_age_s: expected seconds within 1..{MAX_EVIDENCE_AGE}")

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("max_evidence_age_s", self.seconds),)

    def expected(self) -> str:
        """The age."""
        return f"at most {self.seconds} s old"

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """Within the age; evidence without a time fails, for its age is unknown."""
        if claims.issued_at is None:
            return False, "evidence without a time"
        age = given.now - claims.issued_at
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
class Expires(Rule):
    """The reference values of this entry are good until `until` (aware): a release in a roll-out has its end."""

    ID = "policy.reference_expires"
    TITLE = "The entry's reference values have not expired"
    CODE = "reference_values_expired"
    until: datetime

    def __post_init__(self) -> None:
        require(self.until.tzinfo is not None, "expires: expected a date and time with its offset from UTC")

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("expires", self.until),)

    def expected(self) -> str:
        """The end."""
        return f"before {self.until.isoformat()}"

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """Before the end."""
        return given.now < self.until, given.now.isoformat(timespec="seconds")

    def explain(self) -> str:
        """When this entry ends."""
        return f"From {self.until.isoformat()} on, this entry accepts nothing."


_RELEASED = "policy.release"
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "sim": (
        ("policy.root",),
        ("policy.measurement", _RELEASED),
        ("policy.svn",),
        ("policy.age",),
        ("policy.debug",),
    ),
    "sgx": (
        ("policy.measurement", _RELEASED),
        ("policy.svn",),
        ("policy.tcb_status",),
        ("policy.advisories",),
        ("policy.evaluation",),
    ),
    "tdx": (
        ("policy.measurement", _RELEASED),
        *((f"policy.register.rtmr{i}", _RELEASED) for i in range(4)),
        ("policy.tcb_status",),
        ("policy.advisories",),
        ("policy.evaluation",),
    ),
    "snp": (
        ("policy.measurement", _RELEASED),
        ("policy.svn",),
        ("policy.vmpl",),
        ("policy.signing_key",),
        ("policy.tcb_version",),
    ),
    "tpm": (("policy.root",), ("policy.measurement", "policy.register.", _RELEASED)),
    "nitro": (("policy.measurement", _RELEASED), ("policy.age",)),
    "azure": (
        ("policy.azure_tee",),
        ("policy.azure_launch_measurement",),
        ("policy.measurement", "policy.register.", _RELEASED),
        ("policy.tcb_version", "policy.tcb_status"),
    ),
}
"""Format -> ids of the checks that every entry of it makes; of several in one place one is enough, and one that ends
with a dot stands for all that begin so. What an entry of the format can leave open, and no more, is not here.
"""


_MEMBER_OF = {
    "policy.measurement": "measurements",
    "policy.register.": "registers",
    _RELEASED: "release_keys",
    "policy.svn": "min_svn",
    "policy.age": "max_evidence_age_s",
    "policy.tcb_status": "tcb_statuses",
    "policy.tcb_version": "min_tcb",
    "policy.evaluation": "min_evaluation",
}
"""What a file calls the rule, where it is not the check's own last word."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """All that is required of evidence of one format; a policy may hold several, and one that holds entirely
    is enough.

    Raises:
        InvalidPolicy: rules that belong to every requirement of this format (`NEEDED`) are missing, or one is there
        twice.
    """

    format: str
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        made = self.ids()
        require(len(set(made)) == len(made), f"{self.format}: a requirement is there twice")
        for choice in NEEDED.get(self.format, ()):
            there = any(i == c or (c.endswith(".") and i.startswith(c)) for c in choice for i in made)
            wanted = " or ".join(_MEMBER_OF.get(c, c.rpartition(".")[2]) for c in choice)
            require(there, f"{self.format}: missing: {wanted}", code="policy_missing_member")
        untimed = "policy.age" in made and self.format not in TIMED_FORMATS
        require(not untimed, f"{self.format}: its evidence carries no time; the nonce makes it fresh")

    def ids(self) -> tuple[str, ...]:
        """The ids of its checks."""
        return tuple(rule.head()[0] for rule in self.rules)

    def check(self, claims: Claims | Absent, given: Given) -> tuple[Check, ...]:
        """The check of every rule, in order."""
        return tuple(rule.check(claims, given) for rule in self.rules)
