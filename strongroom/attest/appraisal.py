"""The policy object: which evidence and which security configuration somebody accepts, and the appraisal by
it.

Rules of this file:

1. The peer chooses the format of its evidence, so a policy is as strong as its weakest entry. Simulation
   protects nothing; hence `UNSAFE_SIMULATION` is a kind of its own that can name nothing else, and the other
   kinds cannot name simulation.
2. Simulated claims are refused by the kind, whatever the lists say.
3. A policy without an entry accepts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from strongroom.attest.configuration import SecurityRequirement, check_consistency
from strongroom.attest.evidence import Absent, Check, Claims, check, check_impossible
from strongroom.attest.facts import NotMigratable
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attest.requirements import (
    HARDWARE_FORMATS,
    Given,
    NotDebug,
    Requirement,
    Root,
    Roots,
)
from strongroom.errors import InvalidPolicy
from strongroom.reduction import WORDS

PRODUCTION = "production"
DEVELOPMENT = "development"
UNSAFE_SIMULATION = "UNSAFE_SIMULATION"
KINDS = (PRODUCTION, DEVELOPMENT, UNSAFE_SIMULATION)
UNSAFE_ANY_MEASUREMENT = "UNSAFE_ANY_MEASUREMENT"
"""The name of what `strongroom appraise` alone accepts in a policy's place; no `Policy` has it for a kind."""

MAX_ENTRIES = 64
"""Entries of a policy; several, so that a roll-out can accept the old release beside the new."""
USUAL_VERDICT_AGE = 3600
"""Seconds for which a verdict is relied on where the policy does not say."""
MAX_VERDICT_AGE = 24 * 3600
"""Seconds: the longest that a verdict may be relied on before the server is verified again."""

UNSAFE = ((NotDebug.ID, "debug mode"), (NotMigratable.ID, "migration"))
"""Ids of checks that only kind development can leave out, and what that would accept."""


def can_accept(check_id: str, requirement: Requirement) -> bool:
    """Whether leaving out the check means anything for evidence of the requirement: migration is SNP's."""
    return check_id == NotDebug.ID or "policy.tcb_version" in requirement.ids()


def _refuse(why: str, *, code: str = "policy_invalid") -> InvalidPolicy:
    return InvalidPolicy(f"policy: {why}", code=code)


@dataclass(frozen=True, slots=True)
class Policy:
    """What is accepted: by kind, until `expires` (aware), with `security`, and evidence that meets one of
    `requirements`.

    Raises:
        InvalidPolicy: `policy_mixes_simulation` where simulation stands beside anything else,
        `policy_too_weak` where the kind
            cannot accept what is asked of it, `policy_invalid` otherwise.
    """

    kind: str
    expires: datetime
    max_verdict_age_s: int
    security: SecurityRequirement
    requirements: tuple[Requirement, ...]
    precision: tuple[str, ...] = WORDS
    """Precisions of models whose answers are taken (docs/precision.md): said of a model, not of its server."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _refuse(f"kind: expected one of {', '.join(KINDS)}")
        if self.expires.tzinfo is None:
            raise _refuse("expires: expected a date and time with its offset from UTC")
        if not 1 <= self.max_verdict_age_s <= MAX_VERDICT_AGE:
            raise _refuse(f"max_verdict_age_s: expected seconds within 1..{MAX_VERDICT_AGE}")
        if len(self.requirements) > MAX_ENTRIES:
            raise _refuse(f"expected at most {MAX_ENTRIES} entries, got {len(self.requirements)}")
        if not self.precision:
            raise _refuse(
                "precision: an empty list takes no answer of any model", code="policy_accepts_nothing"
            )
        if not set(self.precision) <= set(WORDS) or len(set(self.precision)) != len(self.precision):
            raise _refuse(f"precision: expected words among {', '.join(WORDS)}, each once")
        self._check_kind()

    def _check_kind(self) -> None:
        simulation = self.kind == UNSAFE_SIMULATION
        for requirement in self.requirements:
            if requirement.format not in ("sim", *HARDWARE_FORMATS):
                raise _refuse(f"{requirement.format}: no such evidence format")
            if (requirement.format == "sim") != simulation:
                raise _refuse(
                    f"kind {self.kind} cannot accept {requirement.format} evidence: simulation goes with "
                    f"{UNSAFE_SIMULATION} and with nothing else",
                    code="policy_mixes_simulation",
                )
            for missing, what in UNSAFE:
                weak = can_accept(missing, requirement) and missing not in requirement.ids()
                if weak and self.kind != DEVELOPMENT:
                    raise _refuse(
                        f"{requirement.format}: only kind development can accept {what}",
                        code="policy_too_weak",
                    )
        if not simulation and "simulated" in self.security.sealing:
            raise _refuse(
                f'kind {self.kind} cannot accept sealing "simulated"', code="policy_mixes_simulation"
            )
        if self.kind == PRODUCTION and self.security.host_excluded != (True,):
            raise _refuse("kind production requires security.host_excluded = [true]", code="policy_too_weak")

    @property
    def simulated(self) -> bool:
        """Whether this policy accepts simulated evidence, and only that."""
        return self.kind == UNSAFE_SIMULATION

    def roots(self, evidence_format: str) -> tuple[str, ...]:
        """Digests (hex) of the roots that are named for `evidence_format`; empty accepts none."""
        return tuple(
            dict.fromkeys(
                digest
                for requirement in self.requirements
                if requirement.format == evidence_format
                for rule in requirement.rules
                if isinstance(rule, Root | Roots)
                for digest in (rule.digests if isinstance(rule, Roots) else (rule.digest,))
            )
        )

    def check_format(self, evidence_format: str) -> tuple[Check, ...]:
        """What can be said before the evidence is opened: the kind admits its format, and an entry names
        it.
        """
        admitted = (evidence_format == "sim") == self.simulated
        named = tuple(dict.fromkeys(r.format for r in self.requirements))
        return (
            check(
                "policy.kind",
                "The policy's kind admits evidence of this format",
                admitted,
                expected="hardware evidence" if not self.simulated else "simulated evidence",
                got="SIMULATED evidence" if evidence_format == "sim" else f"{evidence_format} evidence",
                code="simulation_refused" if evidence_format == "sim" else "evidence_format_not_accepted",
            ),
            check(
                "policy.format",
                "The policy names this format",
                evidence_format in named,
                expected=", ".join(named) if named else "nothing: this policy names no code at all",
                got=evidence_format,
                code="evidence_format_not_accepted" if named else "policy_accepts_nothing",
            ),
        )

    def appraise(
        self, claims: Claims | Absent, *, security: SecurityConfiguration | Absent, given: Given
    ) -> tuple[Check, ...]:
        """Returns every check of this policy over `claims` and `security` with what is `given`
        (docs/spec/evidence.md §4, step 6).

        1. the policy has not expired
        2. simulated claims go with the simulated kind and with no other, whatever the lists say
        3. the kind admits the format, and an entry names it
        4. one entry of that format holds entirely; of several, the checks of the one that fails least are
           returned
        5. every field of the security configuration has an accepted value
        6. the configuration claims no more than the evidence shows
        """
        checks = [*self.appraise_claims(claims, given=given)]
        checks += self.security.check(security)
        checks.append(check_consistency(claims, security))
        return tuple(checks)

    def appraise_claims(self, claims: Claims | Absent, *, given: Given) -> tuple[Check, ...]:
        """Checks 1 to 4 of `appraise`: all that can be said of evidence whose software has no security
        configuration of ours.
        """
        checks = [self._check_expiry(given.now), self._check_simulation(claims)]
        checks += self.check_format(claims.format)
        entries = [r.check(claims, given) for r in self.requirements if r.format == claims.format]
        if entries:
            checks += min(entries, key=lambda made: sum(not c.passed for c in made))
        return tuple(checks)

    def _check_expiry(self, now: datetime) -> Check:
        return check(
            "policy.expires",
            "The policy itself has not expired",
            now < self.expires,
            expected=f"before {self.expires.isoformat()}",
            got=now.isoformat(timespec="seconds"),
            code="policy_expired",
        )

    def _check_simulation(self, claims: Claims | Absent) -> Check:
        check_id, title = "policy.simulation", "What the evidence says of itself is what the kind admits"
        expected = "simulated" if self.simulated else "not simulated"
        if isinstance(claims, Absent):
            return check_impossible(
                check_id, title, expected=expected, why=claims.why, code="simulation_refused"
            )
        got = "SIMULATED" if claims.simulated else "not simulated"
        code = "simulation_refused" if claims.simulated else "evidence_format_not_accepted"
        return check(
            check_id, title, claims.simulated == self.simulated, expected=expected, got=got, code=code
        )
