"""Requirements on facts that one kind of hardware has: registers, events, platform versions, identities, settings.

The facts are `Claims.details` and `Claims.events` by their names (docs/spec/dcap.md §8, snp.md §9, tpm.md §4, nitro.md,
azure.md). Rules of this file:

1. A fact that the claims do not have meets no requirement.
2. Every list is an allow-list; none of them is empty.
3. Versions made of parts are compared part by part; a part that the policy does not name is not one that passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from strongroom.attest.evidence import Claims, one_of
from strongroom.attest.requirements import Given, Rule, Value, require, require_list

HEX, INTEGER, TEXT, MASKED = "hex", "integer", "text", "masked"
PARTS, DATE, VERSION = "parts", "date", "version"
MAX_VALUES = 1024
"""Entries of one list: chips of a large cluster."""
AZURE_SETTINGS = {
    "secure-boot": "secure_boot",
    "tpm-enabled": "tpm_enabled",
    "tpm-persisted": "tpm_persisted",
    "console-enabled": "console_enabled",
}
"""What Azure's runtime data say of a machine: member of `vm-configuration` -> detail, behind `azure.`."""
_VERSION = r"[0-9]{1,5}(\.[0-9]{1,5}){0,3}"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact that a policy can rule on: the policy file's `member`, the name of the detail, how values are spelled
    (`kind`; `sizes` in bytes for hex), the check's title and code, and what a person is told.

    `kind` is "hex", "integer", "text" or "masked" (hex, perhaps with "/" and a mask) for lists; "integer", "parts"
    (hex, compared byte by byte), "date" or "version" for minimums.
    """

    member: str
    detail: str
    kind: str
    sizes: tuple[int, ...]
    title: str
    code: str
    means: str

    @property
    def pattern(self) -> str:
        """The form of a value."""
        digits = "|".join(f"[0-9a-f]{{{2 * size}}}" for size in self.sizes)
        return {
            HEX: digits,
            PARTS: digits,
            MASKED: f"({digits})(/({digits}))?",
            TEXT: r"[\x20-\x7e]{1,256}",
            DATE: _DATE,
            VERSION: _VERSION,
        }[self.kind]


@dataclass(frozen=True, slots=True)
class OneOf(Rule):
    """The fact has one of `values`."""

    fact: Fact
    values: tuple[str | int, ...]

    def __post_init__(self) -> None:
        where = self.fact.member
        require(bool(self.values), f"{where}: an empty list accepts nothing", code="policy_accepts_nothing")
        require(len(self.values) <= MAX_VALUES, f"{where}: at most {MAX_VALUES} values")
        if self.fact.kind == INTEGER:
            fits = all(type(v) is int and 0 <= v < 1 << 32 for v in self.values)
            require(fits, f"{where}: expected integers within 0..{(1 << 32) - 1}")
            require(len(set(self.values)) == len(self.values), f"{where}: a value is there twice")
            return
        require(all(type(v) is str for v in self.values), f"{where}: expected strings")
        require_list(tuple(map(str, self.values)), self.fact.pattern, where)
        if self.fact.kind == MASKED:
            blind = any("/" in str(v) and not int(str(v).partition("/")[2], 16) for v in self.values)
            require(not blind, f"{where}: a mask of zeros compares nothing", code="policy_too_weak")

    def head(self) -> tuple[str, str, str]:
        """One check per fact."""
        return f"policy.{self.fact.detail.replace('.', '_')}", self.fact.title, self.fact.code

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its member."""
        return ((self.fact.member, self.values),)

    def expected(self) -> str:
        """The values."""
        return one_of(tuple(map(str, self.values)))

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """One of them."""
        got = claims.fact(self.fact.detail)
        if got is None:
            return False, f"no {self.fact.detail} in this evidence"
        return any(self._equal(got, str(v)) for v in self.values), got

    def _equal(self, got: str, value: str) -> bool:
        if self.fact.kind != MASKED:
            return got == value
        wanted, _, mask = value.partition("/")
        if re.fullmatch(r"[0-9a-f]+", got) is None or len(got) != len(wanted):
            return False
        bits = int(mask, 16) if mask else (1 << 4 * len(wanted)) - 1
        return int(got, 16) & bits == int(wanted, 16) & bits

    def explain(self) -> str:
        """What must be so."""
        return f"{self.fact.means.capitalize()}: {one_of(tuple(map(str, self.values)))}."

    def weaknesses(self) -> tuple[str, ...]:
        """A mask leaves bits open."""
        return tuple(
            f"{self.fact.member}: the mask of {v} leaves bits open."
            for v in self.values
            if self.fact.kind == MASKED and "/" in str(v) and set(str(v).partition("/")[2]) != {"f"}
        )


@dataclass(frozen=True, slots=True)
class AtLeast(Rule):
    """The fact is not lower than `least`."""

    fact: Fact
    least: str | int

    def __post_init__(self) -> None:
        if self.fact.kind == INTEGER:
            fits = type(self.least) is int and 0 <= self.least < 1 << 32
            require(fits, f"{self.fact.member}: expected an integer within 0..{(1 << 32) - 1}")
            return
        fits = type(self.least) is str and re.fullmatch(self.fact.pattern, self.least, re.ASCII) is not None
        require(fits, f"{self.fact.member}: expected a string of the form {self.fact.pattern}")

    def head(self) -> tuple[str, str, str]:
        """One check per member."""
        return f"policy.{self.fact.member.removeprefix('min_')}", self.fact.title, self.fact.code

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its member."""
        return ((self.fact.member, self.least),)

    def expected(self) -> str:
        """The minimum."""
        return f"at least {self.least}"

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """Not lower, in any part."""
        got = claims.fact(self.fact.detail)
        if got is None:
            return False, f"no {self.fact.detail} in this evidence"
        return self._reaches(got, str(self.least)), got

    def _reaches(self, got: str, least: str) -> bool:
        if self.fact.kind == PARTS:
            if re.fullmatch(r"([0-9a-f]{2})+", got) is None or len(got) != len(least):
                return False
            return all(a >= b for a, b in zip(bytes.fromhex(got), bytes.fromhex(least), strict=True))
        if self.fact.kind == DATE:
            return re.fullmatch(_DATE, got, re.ASCII) is not None and got >= least
        if re.fullmatch(_VERSION, got, re.ASCII) is None:
            return False
        numbers, wanted = ([int(part) for part in text.split(".")] for text in (got, least))
        numbers += [0] * (len(wanted) - len(numbers))
        return numbers >= wanted

    def explain(self) -> str:
        """What must be so."""
        return f"{self.fact.means.capitalize()}: {self.least}."

    def weaknesses(self) -> tuple[str, ...]:
        """A minimum that everything reaches."""
        if str(self.least).strip("0.") == "":
            return (f"{self.fact.member} = {self.least} is reached by everything.",)
        return ()


@dataclass(frozen=True, slots=True)
class Settings(Rule):
    """Every one of `required` is on, and every one of `refused` is off; names out of `known`."""

    ID = "policy.settings"
    TITLE = "Settings of guest and platform are as the policy names them"
    CODE = "setting_not_accepted"
    required: tuple[str, ...]
    refused: tuple[str, ...]
    known: tuple[str, ...]

    def __post_init__(self) -> None:
        require(
            bool(self.required or self.refused),
            "require_settings, refuse_settings: both are empty",
            code="policy_accepts_nothing",
        )
        both = (*self.required, *self.refused)
        require(
            all(n in self.known for n in both), f"settings: expected names out of {', '.join(self.known)}"
        )
        require(len(set(both)) == len(both), "settings: a name is there twice")

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("require_settings", self.required), ("refuse_settings", self.refused))

    def expected(self) -> str:
        """On and off."""
        return ", ".join([f"{n} on" for n in self.required] + [f"{n} off" for n in self.refused])

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """All of them, as stated by the evidence; one that it does not state is neither on nor off."""
        found = {n: claims.fact(n) for n in (*self.required, *self.refused)}
        wrong = [n for n in self.required if found[n] not in ("1", "true")]
        wrong += [n for n in self.refused if found[n] not in ("0", "false")]
        shown = (f"{n} {'not stated' if found[n] is None else found[n]}" for n in wrong or found)
        return not wrong, ", ".join(shown)

    def explain(self) -> str:
        """What must be so."""
        return f"Settings of guest and platform: {self.expected()}."


@dataclass(frozen=True, slots=True)
class Register(Rule):
    """The measurement register `name` has one of `values` (hex)."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        where = f"registers.{self.name}"
        require(bool(self.values), f"{where}: an empty list accepts nothing", code="policy_accepts_nothing")
        require_list(self.values, r"[0-9a-f]{64}|[0-9a-f]{96}", where)

    def head(self) -> tuple[str, str, str]:
        """One check per register."""
        code = "register_not_accepted"
        return f"policy.register.{self.name}", f"{self.name.upper()} is one that the policy names", code

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its place in the table `registers`."""
        return (("registers", MappingProxyType({self.name: self.values})),)

    def expected(self) -> str:
        """The values."""
        return one_of(self.values)

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """One of them."""
        got = claims.fact(self.name)
        return got in self.values, got or f"no {self.name} in this evidence"

    def explain(self) -> str:
        """What must be so."""
        return f"{self.name.upper()} must be one of {len(self.values)} named value(s)."

    def weaknesses(self) -> tuple[str, ...]:
        """Nothing measured."""
        if any(not v.strip("0") for v in self.values) and self.name != "rtmr3":
            return (f"{self.name} may be all zero: nothing was measured into it.",)
        return ()


@dataclass(frozen=True, slots=True)
class Events(Rule):
    """The event log, replayed to the signed value of register `name`, holds every digest of `required` there, and no
    digest but those and `allowed`.
    """

    name: str
    required: tuple[str, ...]
    allowed: tuple[str, ...]

    def __post_init__(self) -> None:
        where = f"events.{self.name}"
        require(
            bool(self.required),
            f"{where}.require: an empty list would accept a start that measured nothing",
            code="policy_accepts_nothing",
        )
        require_list((*self.required, *self.allowed), r"[0-9a-f]{64}|[0-9a-f]{96}", where)

    def head(self) -> tuple[str, str, str]:
        """One check per register; the same id as that of its value, of which it takes the place."""
        title = f"The events behind {self.name.upper()} are those that the policy names"
        return f"policy.register.{self.name}", title, "event_not_accepted"

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its place in the table `events`."""
        lists = MappingProxyType({"require": self.required, "allow": self.allowed})
        return (("events", MappingProxyType({self.name: lists})),)

    def expected(self) -> str:
        """The digests."""
        return f"{len(self.required)} required event(s), and none but {len(self.allowed)} others"

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """All required, none unknown."""
        there = [digest for register, digest, _ in claims.events if register == self.name]
        if not there:
            return False, f"no event log that gives {self.name}"
        missing = [d for d in self.required if d not in there]
        unknown = [d for d in there if d not in (*self.required, *self.allowed)]
        if missing:
            return False, f"{len(there)} events without {one_of(tuple(missing))}"
        return not unknown, f"unknown: {one_of(tuple(unknown))}" if unknown else f"{len(there)} known events"

    def explain(self) -> str:
        """What must be so."""
        return (
            f"The log behind {self.name.upper()} must hold {len(self.required)} named event(s) and may hold "
            f"{len(self.allowed)} others."
        )


@dataclass(frozen=True, slots=True)
class SigningKey(Rule):
    """An SNP report is signed by a key of one of `kinds` ("VCEK", the chip's own; "VLEK", lent to a cloud), a lent one
    by a cloud of `csp_ids`.
    """

    ID = "policy.signing_key"
    TITLE = "The report is signed by a kind of key that the policy names"
    CODE = "signing_key_not_accepted"
    kinds: tuple[str, ...]
    csp_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        require(
            bool(self.kinds), "signing_keys: an empty list accepts nothing", code="policy_accepts_nothing"
        )
        require_list(self.kinds, r"VCEK|VLEK", "signing_keys")
        require_list(self.csp_ids, r"[\x20-\x7e]{1,256}", "csp_ids")
        lent = "VLEK" in self.kinds
        require(
            lent == bool(self.csp_ids),
            "csp_ids: name the clouds whose lent keys (VLEK) count, and only with VLEK",
        )

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its members."""
        return (("signing_keys", self.kinds), ("csp_ids", self.csp_ids))

    def expected(self) -> str:
        """The kinds."""
        clouds = f" of {one_of(self.csp_ids)}" if self.csp_ids else ""
        return " or ".join(k + (clouds if k == "VLEK" else "") for k in self.kinds)

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """Of the kind, and of the cloud."""
        kind, csp = claims.fact("signing_key"), claims.fact("csp_id") or ""
        fits = kind in self.kinds and (kind != "VLEK" or csp in self.csp_ids)
        return fits, f"{kind or 'none'}{f' of {csp}' if csp else ''}"

    def explain(self) -> str:
        """Who signs."""
        return f"Reports count that are signed by {self.expected()}."

    def weaknesses(self) -> tuple[str, ...]:
        """A lent key names no chip."""
        text = "VLEK: reports name no chip, and the cloud's key could be lent to any of its machines."
        return (text,) if "VLEK" in self.kinds else ()


TCB_WHICH = {
    "min_tcb": ("tcb", "policy.tcb_version", "The platform's reported TCB is recent enough"),
    "min_committed_tcb": (
        "tcb.committed",
        "policy.committed_tcb",
        "The TCB that the platform cannot go below is recent enough",
    ),
    "min_launch_tcb": ("tcb.launch", "policy.launch_tcb", "The TCB at the guest's launch was recent enough"),
}
"""Member -> prefix of the details, id and title of the check."""


@dataclass(frozen=True, slots=True)
class TcbVersion(Rule):
    """Every part of an SNP platform's TCB version is at least what `least` says for its product; a product that is not
    named is refused. `member`: which of the versions (`TCB_WHICH`).
    """

    member: str
    least: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]

    def __post_init__(self) -> None:
        require(
            bool(self.least), f"{self.member}: names no product, so nothing", code="policy_accepts_nothing"
        )
        for product, parts in self.least:
            fits = all(type(v) is int and 0 <= v <= 255 for _, v in parts)
            require(fits, f"{self.member}.{product}: expected integers within 0..255")

    def head(self) -> tuple[str, str, str]:
        """One check per version."""
        _, check_id, title = TCB_WHICH[self.member]
        return check_id, title, "platform_tcb_too_low"

    def members(self) -> tuple[tuple[str, Value], ...]:
        """Its table."""
        return (
            (
                self.member,
                MappingProxyType({product: MappingProxyType(dict(parts)) for product, parts in self.least}),
            ),
        )

    def expected(self) -> str:
        """The minimums."""
        return " or ".join(f"{p}: {_spell(dict(parts))} at least" for p, parts in self.least)

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """Every part."""
        product, prefix = claims.fact("product") or "", TCB_WHICH[self.member][0]
        wanted = dict(self.least).get(product)
        if wanted is None:
            return False, f"product {product or 'none'}, which is not named"
        found = {part: claims.fact(f"{prefix}.{part}") for part, _ in wanted}
        high = all(
            (got := found[part]) is not None and got.isdecimal() and int(got) >= value
            for part, value in wanted
        )
        return high, f"{product}: {_spell(found)}"

    def explain(self) -> str:
        """Which firmware and microcode."""
        return f"{TCB_WHICH[self.member][2]}: {self.expected()}."

    def weaknesses(self) -> tuple[str, ...]:
        """Zeros."""
        return tuple(
            f"{self.member}.{p}: all zero, so every firmware and microcode is accepted."
            for p, parts in self.least
            if not any(v for _, v in parts)
        )


def _spell(parts: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in parts.items())


@dataclass(frozen=True, slots=True)
class NotMigratable(Rule):
    """No migration agent may take the guest's memory elsewhere."""

    ID = "policy.migration"
    TITLE = "No migration agent can take the guest's memory"
    CODE = "migration_refused"

    def members(self) -> tuple[tuple[str, Value], ...]:
        """None: what is missing is the permission."""
        return ()

    def expected(self) -> str:
        """None."""
        return "migrate_ma 0"

    def holds(self, claims: Claims, given: Given) -> tuple[bool, str]:
        """The guest's policy forbids it."""
        got = claims.fact("policy.migrate_ma")
        return got == "0", f"migrate_ma {got or 'not stated'}"

    def explain(self) -> str:
        """What an agent could do."""
        return "A guest that a migration agent may take over is refused: the host chooses the agent."
