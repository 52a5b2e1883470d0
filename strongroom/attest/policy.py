"""Policy files: their TOML form, named profiles, and the files that `policy init` writes
(docs/policy.md).

Rules of this file:

1. The file says everything: members are required, unknown ones refused. Only five have a default:
   `max_verdict_age_s`, of an hour; `security.handover`, `security.recovery` and `security.key_release`, which
   accept nobody where they are not there; and `precision`, about which a policy need not say anything.
2. There is no word for what a kind cannot accept: a production file that names debug mode is refused as it is
   read.
3. What `render_policy` writes, `parse_policy` reads back as the same policy.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, NoReturn

from strongroom.attest.appraisal import DEVELOPMENT as DEVELOPMENT
from strongroom.attest.appraisal import KINDS as KINDS
from strongroom.attest.appraisal import PRODUCTION as PRODUCTION
from strongroom.attest.appraisal import UNSAFE_ANY_MEASUREMENT as UNSAFE_ANY_MEASUREMENT
from strongroom.attest.appraisal import UNSAFE_SIMULATION as UNSAFE_SIMULATION
from strongroom.attest.appraisal import USUAL_VERDICT_AGE
from strongroom.attest.appraisal import Policy as Policy
from strongroom.attest.configuration import SecurityRequirement
from strongroom.attest.entries import (
    INITIAL_EVIDENCE_AGE,
    NUMBER,
    NUMBERS,
    STRING,
    STRINGS,
    TABLE,
    TIME,
    Group,
    drafted,
    groups_of,
)
from strongroom.attest.evidence import Claims
from strongroom.attest.facts import NotMigratable
from strongroom.attest.keyset import (
    ADMISSION,
    FORMS,
    ISOLATION,
    LOGGING,
    NONE,
    VERIFY_ON_LOAD,
    SecurityConfiguration,
)
from strongroom.attest.lint import KIND_MEANS, MEMBER_MEANS
from strongroom.attest.lint import Finding as Finding
from strongroom.attest.lint import lint as lint
from strongroom.attest.releases import ReferenceValue
from strongroom.attest.requirements import (
    HARDWARE_FORMATS,
    Code,
    MaxAge,
    MinSvn,
    NotDebug,
    Requirement,
    Root,
    Rule,
)
from strongroom.errors import InvalidPolicy
from strongroom.reduction import WORDS

MAX_POLICY = 64 * 1024
"""Characters of a policy file."""
INITIAL_LIFETIME = timedelta(days=90)
"""How long a file that `policy init` writes is good: measurements age with every release."""

_FORMATS = ("sim", *HARDWARE_FORMATS)
_SECURITY_MEMBERS = tuple(SecurityRequirement.__dataclass_fields__)


# Reading ------------------------------------------------------------------------------------------


def parse_policy(text: str) -> Policy:
    """Returns the policy that the TOML `text` states.

    Raises:
        InvalidPolicy: codes `policy_empty`, `policy_unknown_member`, `policy_missing_member`,
        `policy_mixes_simulation`,
            `policy_too_weak`, `policy_accepts_nothing` (an entry or a list that nothing can meet), else
            `policy_invalid`.
    """
    if len(text) > MAX_POLICY:
        _refuse(f"{len(text)} characters, at most {MAX_POLICY} are read")
    try:
        top = tomllib.loads(text)
    except (ValueError, RecursionError):
        raise InvalidPolicy("policy: not TOML") from None  # the foreign message quotes the file
    if not top:
        _refuse("the file is empty, and an empty policy accepts nothing", code="policy_empty")
    read = _Table(
        top, ("kind", "expires", "security"), ("max_verdict_age_s", "precision", *_FORMATS), where=""
    )
    kind = read.string("kind")
    if kind == UNSAFE_ANY_MEASUREMENT:
        refuse_any_measurement()
    if kind not in KINDS:
        _refuse(f"kind: expected one of {', '.join(KINDS)}")
    return Policy(
        kind=kind,
        expires=read.time("expires"),
        max_verdict_age_s=read.integer("max_verdict_age_s")
        if "max_verdict_age_s" in top
        else USUAL_VERDICT_AGE,
        precision=read.strings("precision") if "precision" in top else WORDS,
        security=_parse_security(read.table("security")),
        requirements=tuple(
            _parse_entry(name, entry, kind=kind)
            for name in _FORMATS
            if name in top
            for entry in read.tables(name)
        ),
    )


def _parse_security(table: dict[str, Any]) -> SecurityRequirement:
    required = tuple(name for name in _SECURITY_MEMBERS if name not in FORMS)
    read = _Table(table, required, tuple(FORMS), where="security.")
    return SecurityRequirement(
        sealing=read.strings("sealing"),
        host_excluded=read.booleans("host_excluded"),
        isolation=read.strings("isolation"),
        sandbox=read.strings("sandbox"),
        admission=read.strings("admission"),
        anonymous_upload=read.booleans("anonymous_upload"),
        verify_on_load=read.strings("verify_on_load"),
        logging=read.strings("logging"),
        handover=read.strings("handover") if "handover" in table else (NONE,),
        recovery=read.strings("recovery") if "recovery" in table else (NONE,),
        key_release=read.strings("key_release") if "key_release" in table else (NONE,),
    )


def _parse_entry(name: str, table: dict[str, Any], *, kind: str) -> Requirement:
    # The mixture is refused first, before a member of the other kind's entry is found to be unknown or
    # missing.
    if (name == "sim") != (kind == UNSAFE_SIMULATION):
        _refuse(f"kind {kind} with [[{name}]]: {_MIXTURE}", code="policy_mixes_simulation")
    groups = groups_of(name, table.get("tee"))
    # Where something may be left open at all, the file has to say so or not; elsewhere there is no word for it.
    unsafe = _unsafe_members(groups) if kind == DEVELOPMENT else ()
    required = tuple(m.name for group in groups if group.required for m in group.members)
    optional = tuple(m.name for group in groups if not group.required for m in group.members)
    read = _Table(table, (*required, *unsafe), optional, where=f"{name}.")
    rules: list[Rule] = []
    for group in groups:
        there = [m for m in group.members if m.name in table]
        if there and group.together and (rest := [m.name for m in group.members if m not in there]):
            missing = ", ".join(name + "." + member for member in rest)
            _refuse(f"missing: {missing}", code="policy_missing_member")
        if there:
            rules += group.make({m.name: read.of_type(m.name, m.type) for m in there})
    allowed = {member for member in unsafe if read.boolean(member)}
    if "unsafe_accept_debug" not in allowed:
        rules.append(NotDebug())
    if _MIGRATION in _unsafe_members(groups) and _MIGRATION not in allowed:
        rules.append(NotMigratable())
    return Requirement(name, tuple(rules))


def _unsafe_members(groups: tuple[Group, ...]) -> tuple[str, ...]:
    """What an entry of kind development can leave open, and must say whether it does."""
    snp = any(m.name == "min_tcb" for group in groups for m in group.members)
    return ("unsafe_accept_debug", _MIGRATION) if snp else ("unsafe_accept_debug",)


_MIGRATION = "unsafe_accept_migration"
_MIXTURE = "simulated evidence goes with kind UNSAFE_SIMULATION, and that kind with nothing else"


def refuse_any_measurement() -> NoReturn:
    """Refuses `UNSAFE_ANY_MEASUREMENT` where a policy for a server is wanted.

    Raises:
        InvalidPolicy: code `policy_appraise_only`.
    """
    _refuse(
        f"{UNSAFE_ANY_MEASUREMENT} accepts any code: for `strongroom appraise` only, never for a server",
        code="policy_appraise_only",
    )


def _refuse(why: str, *, code: str = "policy_invalid") -> NoReturn:
    raise InvalidPolicy(f"policy: {why}", code=code)


class _Table:
    """Reads one TOML table: every member required or named as optional, every type exact."""

    def __init__(
        self, values: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...], *, where: str
    ) -> None:
        self._values, self._where = values, where
        if unknown := sorted(values.keys() - set(required) - set(optional)):
            names = ", ".join(repr(where + name) for name in unknown)
            _refuse(f"unknown: {names[:200]}", code="policy_unknown_member")
        if missing := [where + name for name in required if name not in values]:
            _refuse(f"missing: {', '.join(missing)}", code="policy_missing_member")

    def _value(self, name: str, kind: type, words: str) -> Any:
        value = self._values[name]
        if type(value) is not kind:  # exact: TOML's true is no integer here
            _refuse(f"{self._where}{name}: expected {words}")
        return value

    def _values_of(self, name: str, kind: type, words: str) -> tuple[Any, ...]:
        values = self._value(name, list, f"an array of {words}")
        if not all(type(value) is kind for value in values):
            _refuse(f"{self._where}{name}: expected an array of {words}")
        return tuple(values)

    def string(self, name: str) -> str:
        return str(self._value(name, str, "a string"))

    def integer(self, name: str) -> int:
        return int(self._value(name, int, "an integer"))

    def boolean(self, name: str) -> bool:
        return bool(self._value(name, bool, "true or false"))

    def time(self, name: str) -> datetime:
        value = self._value(name, datetime, "a date and time such as 2027-01-31T00:00:00Z, without quotes")
        assert isinstance(value, datetime)  # noqa: S101  # what _value checked, for the type checker
        return value

    def table(self, name: str) -> dict[str, Any]:
        return dict(self._value(name, dict, "a table"))

    def tables(self, name: str) -> tuple[dict[str, Any], ...]:
        return self._values_of(name, dict, f"tables, [[{name}]]")

    def strings(self, name: str) -> tuple[str, ...]:
        return self._values_of(name, str, "strings")

    def integers(self, name: str) -> tuple[int, ...]:
        return self._values_of(name, int, "integers")

    def of_type(self, name: str, kind: str) -> Any:
        """The member as one of the types of `entries.Member`."""
        readers: dict[str, Callable[[str], Any]] = {
            STRING: self.string,
            STRINGS: self.strings,
            NUMBER: self.integer,
            NUMBERS: self.integers,
            TIME: self.time,
            TABLE: self.table,
        }
        return readers[kind](name)

    def booleans(self, name: str) -> tuple[bool, ...]:
        return self._values_of(name, bool, "true or false")


# Named profiles -----------------------------------------------------------------------------------

_PROFILE = """\
{heading}
kind = "{kind}"
expires = 9999-12-31T00:00:00Z
max_verdict_age_s = 3600

[security]
sealing = [{sealing}]
host_excluded = [{host_excluded}]
isolation = ["in_process", "model", "owner", "request"]
sandbox = []
admission = [{admission}]
anonymous_upload = [{anonymous_upload}]
verify_on_load = ["tags", "sha256"]
logging = ["no_content"]
handover = ["none"]
recovery = ["none"]
key_release = ["none"]
"""
"""What all profiles have in common. None has an entry, so none accepts any code."""

NAMED_POLICIES: dict[str, str] = {
    PRODUCTION: _PROFILE.format(
        heading="""\
# The floor of every production policy. It names no code, so by itself it refuses every server: copy it and
# add the [[sgx]], [[tdx]], [[snp]], [[azure]] or [[nitro]] entries of the builds that you have examined.""",
        kind=PRODUCTION,
        sealing='"measurement"',
        host_excluded="true",
        admission='"strict"',
        anonymous_upload="false",
    ),
    DEVELOPMENT: _PROFILE.format(
        heading="""\
# The floor of policies for trials on real hardware: no real data. It names no code, so by itself it refuses every
# server: copy it and add entries. What they may leave open begins with unsafe_ and must be said.""",
        kind=DEVELOPMENT,
        sealing='"measurement", "signer", "operator"',
        host_excluded="true, false",
        admission='"strict", "permissive"',
        anonymous_upload="false, true",
    ),
    UNSAFE_SIMULATION: _PROFILE.format(
        heading="""\
# The floor of policies for the SIMULATED TEE, which protects nothing from the machine's owner. It names no root and
# no code, so by itself it refuses every server: copy it and add a [[sim]] entry.""",
        kind=UNSAFE_SIMULATION,
        sealing='"simulated"',
        host_excluded="false",
        admission='"strict", "permissive"',
        anonymous_upload="false, true",
    ),
}
"""Name -> the text of the policy that goes by it: floors, none of which names any code."""


def named_policy(name: str) -> Policy:
    """Returns the embedded policy `name`, one of `NAMED_POLICIES`.

    Raises:
        InvalidPolicy: code `policy_unknown_name`.
    """
    if name == UNSAFE_ANY_MEASUREMENT:
        refuse_any_measurement()
    if name not in NAMED_POLICIES:
        _refuse(
            f"no policy goes by this name; known: {', '.join(NAMED_POLICIES)}", code="policy_unknown_name"
        )
    return parse_policy(NAMED_POLICIES[name])


# Writing ------------------------------------------------------------------------------------------


def policy_for(claims: Claims, *, security: SecurityConfiguration, now: datetime) -> str:
    """Returns the text of a policy that accepts exactly what a server showed: its code, its root, its
    configuration.

    That the server showed it does not make it good: compare the measurement with one that you computed or
    trust.

    Raises:
        InvalidPolicy: what was shown is nothing that a policy may accept (debug mode outside development, a
        revoked platform).
    """
    rules = list(drafted(claims))
    if not claims.debug:
        rules.append(NotDebug())
    strict = security.host_excluded and claims.host_excluded and not claims.debug
    kind = UNSAFE_SIMULATION if claims.simulated else PRODUCTION if strict else DEVELOPMENT
    policy = Policy(
        kind=kind,
        expires=_expiry(now),
        max_verdict_age_s=USUAL_VERDICT_AGE,
        security=_exactly(security),
        requirements=(Requirement(claims.format, tuple(rules)),),
    )
    return render_policy(
        policy, heading="Written from what a server showed: compare the measurement before you rely on it."
    )


def policy_for_measurement(measurement: str, *, root: str, now: datetime) -> str:
    """Returns the text of a policy for simulated evidence of one `measurement` under one `root` (both 64 hex
    characters). The measurement covers the configuration; the file states the usual one and refuses others.

    Raises:
        InvalidPolicy: an argument out of form.
    """
    code = Code((measurement,), (), ())
    policy = Policy(
        kind=UNSAFE_SIMULATION,
        expires=_expiry(now),
        max_verdict_age_s=USUAL_VERDICT_AGE,
        security=_SIMULATION_SECURITY,
        requirements=(
            Requirement("sim", (Root(root), code, MinSvn(1), MaxAge(INITIAL_EVIDENCE_AGE), NotDebug())),
        ),
    )
    return render_policy(policy, heading="Written from a measurement and the root key that signs for it.")


_SIMULATION_SECURITY = SecurityRequirement(
    sealing=("simulated",),
    host_excluded=(False,),
    isolation=ISOLATION,
    sandbox=(),
    admission=ADMISSION,
    anonymous_upload=(False,),
    verify_on_load=VERIFY_ON_LOAD,
    logging=LOGGING,
)
"""What a simulated server runs with unless it was told otherwise."""


def _expiry(now: datetime) -> datetime:
    return (now + INITIAL_LIFETIME).replace(microsecond=0)


def _exactly(security: SecurityConfiguration) -> SecurityRequirement:
    """Accepts this configuration and no other; of sandbox layers, at least these."""
    return SecurityRequirement(
        sealing=(security.sealing,),
        host_excluded=(security.host_excluded,),
        isolation=(security.isolation,),
        sandbox=security.sandbox,
        admission=(security.admission,),
        anonymous_upload=(security.anonymous_upload,),
        verify_on_load=(security.verify_on_load,),
        logging=(security.logging,),
        handover=(security.handover,),
        recovery=(security.recovery,),
        key_release=(security.key_release,),
    )


def render_policy(policy: Policy, *, heading: str) -> str:
    """Returns the TOML text of `policy`, each member with a comment that says what it means, under
    `heading`.
    """
    lines = [
        f"# {heading}",
        "# Every member is explained in docs/policy.md; `strongroom policy lint FILE` explains this file.",
        "",
    ]
    lines += [f"# {KIND_MEANS[policy.kind]}", f"kind = {_toml(policy.kind)}"]
    lines += ["# after this moment the policy refuses everything", f"expires = {policy.expires.isoformat()}"]
    lines += ["# seconds for which one verification is relied on"]
    lines += [f"max_verdict_age_s = {policy.max_verdict_age_s}"]
    if policy.precision != WORDS:
        lines += [f"# {MEMBER_MEANS['precision']}", f"precision = {_toml(policy.precision)}"]
    for requirement in policy.requirements:
        lines += ["", f"[[{requirement.format}]]"]
        for name, value in _entry_members(requirement, policy.kind).items():
            lines.append(f"# {MEMBER_MEANS[name]}")
            if isinstance(value, Mapping):
                lines += [f"{name}.{inner} = {_toml(value[inner])}" for inner in value]
            else:
                lines.append(f"{name} = {_toml(value)}")
    lines += ["", "# accepted values of each field of the server's security configuration", "[security]"]
    for name in _SECURITY_MEMBERS:
        lines += [f"# {MEMBER_MEANS[name]}", f"{name} = {_toml(getattr(policy.security, name))}"]
    return "\n".join(lines) + "\n"


def render_entry(value: ReferenceValue, *, svn: int, host_data: str = "") -> str:
    """Returns the TOML text of an entry that accepts the code of `value`, with at least this security version.
    `host_data`: what an SNP guest's HOST_DATA has to be (hex); "" leaves it open.

    What a release cannot know (how well patched a platform must be, who made it) is stated strictly where that is
    possible; where it is not, the member stands behind a comment sign, and a file that leaves it so does not parse.
    """
    known: dict[str, Any] = {
        "signers": (), "products": (), "min_svn": svn, "max_evidence_age_s": INITIAL_EVIDENCE_AGE,
        "tcb_statuses": ("UpToDate",), "accepted_advisories": (),
    }  # fmt: skip
    # What a quote of PCRs measures is the PCRs, so their names say more.
    if value.format != "tpm":
        known["measurements"] = (value.measurement,)
    if host_data:
        known["host_data"] = (host_data,)
    if value.registers:
        known["registers"] = {name: (held,) for name, held in value.registers}
    lines = [f"[[{value.format}]]"]
    for group in groups_of(value.format, None):
        for member in group.members if group.required or group.members[0].name in known else ():
            if member.name not in known and not group.required:
                continue
            lines.append(f"# {member.means}")
            held = known.get(member.name)
            if held is None:
                lines.append(f"# {member.name} = ...  # yours to say: without it this file does not parse")
            elif isinstance(held, Mapping):
                lines += [f"{member.name}.{inner} = {_toml(held[inner])}" for inner in held]
            else:
                lines.append(f"{member.name} = {_toml(held)}")
    return "\n".join(lines) + "\n"


def _entry_members(requirement: Requirement, kind: str) -> dict[str, Any]:
    """The members of an entry, in the order of its groups; tables of several rules put together."""
    stated: dict[str, Any] = {}
    for rule in requirement.rules:
        for name, value in rule.members():
            stated[name] = {**stated.get(name, {}), **value} if isinstance(value, Mapping) else value
    tee = stated.get("tee", ("",))
    if "tee" in stated:
        stated["tee"] = tee[0]
    groups = groups_of(requirement.format, stated.get("tee"))
    members = {m.name: stated[m.name] for group in groups for m in group.members if m.name in stated}
    if kind == DEVELOPMENT:
        made = requirement.ids()
        for name in _unsafe_members(groups):
            members[name] = (NotDebug.ID if name == "unsafe_accept_debug" else NotMigratable.ID) not in made
    return members


def _toml(value: object) -> str:
    """The TOML of a string, integer, boolean, time, tuple or mapping of them; JSON's strings are TOML's basic
    strings.
    """
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, datetime):
        return value.isoformat()
    return json.dumps(value)
