"""Policy files: their TOML form, named profiles, and the files that `policy init` writes
(docs/policy.md).

Rules of this file:

1. The file says everything: members are required, unknown ones refused. Only `max_verdict_age_s` has a
   default, of an hour.
2. There is no word for what a kind cannot accept: a production file that names debug mode is refused as it is
   read.
3. What `render_policy` writes, `parse_policy` reads back as the same policy.
"""

from __future__ import annotations

import json
import tomllib
from datetime import datetime, timedelta
from typing import Any, NoReturn

from strongroom.attest.appraisal import DEVELOPMENT as DEVELOPMENT
from strongroom.attest.appraisal import KINDS as KINDS
from strongroom.attest.appraisal import PRODUCTION as PRODUCTION
from strongroom.attest.appraisal import UNSAFE_ANY_MEASUREMENT as UNSAFE_ANY_MEASUREMENT
from strongroom.attest.appraisal import UNSAFE_SIMULATION as UNSAFE_SIMULATION
from strongroom.attest.appraisal import USUAL_VERDICT_AGE
from strongroom.attest.appraisal import Policy as Policy
from strongroom.attest.evidence import Claims
from strongroom.attest.keyset import ADMISSION, ISOLATION, LOGGING, VERIFY_ON_LOAD, SecurityConfiguration
from strongroom.attest.lint import KIND_MEANS, MEMBER_MEANS
from strongroom.attest.lint import Finding as Finding
from strongroom.attest.lint import lint as lint
from strongroom.attest.requirements import (
    HARDWARE_FORMATS,
    TIMED_FORMATS,
    Advisories,
    Code,
    MaxAge,
    MinSvn,
    NotDebug,
    Requirement,
    Root,
    Roots,
    Rule,
    SecurityRequirement,
    Tcb,
)
from strongroom.errors import InvalidPolicy

MAX_POLICY = 64 * 1024
"""Characters of a policy file."""
INITIAL_EVIDENCE_AGE = 300
"""Seconds: `max_evidence_age_s` in files that `policy init` writes; servers make evidence anew for every
nonce.
"""
INITIAL_LIFETIME = timedelta(days=90)
"""How long a file that `policy init` writes is good: measurements age with every release."""

_FORMATS = ("sim", *HARDWARE_FORMATS)
_HARDWARE_MEMBERS = ("measurements", "signers", "products", "min_svn", "tcb_statuses", "accepted_advisories")
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
    read = _Table(top, ("kind", "expires", "security"), ("max_verdict_age_s", *_FORMATS), where="")
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
        security=_parse_security(read.table("security")),
        requirements=tuple(
            _parse_entry(name, entry, kind=kind)
            for name in _FORMATS
            if name in top
            for entry in read.tables(name)
        ),
    )


def _parse_security(table: dict[str, Any]) -> SecurityRequirement:
    read = _Table(table, _SECURITY_MEMBERS, (), where="security.")
    return SecurityRequirement(
        sealing=read.strings("sealing"),
        host_excluded=read.booleans("host_excluded"),
        isolation=read.strings("isolation"),
        sandbox=read.strings("sandbox"),
        admission=read.strings("admission"),
        anonymous_upload=read.booleans("anonymous_upload"),
        verify_on_load=read.strings("verify_on_load"),
        logging=read.strings("logging"),
    )


def _parse_entry(name: str, table: dict[str, Any], *, kind: str) -> Requirement:
    # The mixture is refused first, before a member of the other kind's entry is found to be unknown or
    # missing.
    if (name == "sim") != (kind == UNSAFE_SIMULATION):
        _refuse(f"kind {kind} with [[{name}]]: {_MIXTURE}", code="policy_mixes_simulation")
    timed = ("max_evidence_age_s",) if name in TIMED_FORMATS else ()
    if name == "sim":
        read = _Table(table, ("root", "measurements", "min_svn", *timed), (), where="sim.")
        rules: list[Rule] = [Root(read.string("root")), Code(read.strings("measurements"), (), ())]
        rules += [MinSvn(read.integer("min_svn")), MaxAge(read.integer("max_evidence_age_s")), NotDebug()]
        return Requirement(name, tuple(rules))
    # Where debug mode may be accepted at all, the file has to say so or not; elsewhere there is no word for
    # it.
    debug = ("unsafe_accept_debug",) if kind == DEVELOPMENT else ()
    roots = ("roots",) if name == "tpm" else ()
    read = _Table(table, (*roots, *_HARDWARE_MEMBERS, *timed, *debug), (), where=f"{name}.")
    rules = [Roots(read.strings("roots"))] if roots else []
    rules += [
        Code(read.strings("measurements"), read.strings("signers"), read.integers("products")),
        MinSvn(read.integer("min_svn")),
        Tcb(read.strings("tcb_statuses")),
        Advisories(read.strings("accepted_advisories")),
    ]
    if timed:
        rules.append(MaxAge(read.integer("max_evidence_age_s")))
    if not debug or not read.boolean("unsafe_accept_debug"):
        rules.append(NotDebug())
    return Requirement(name, tuple(rules))


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

    def booleans(self, name: str) -> tuple[bool, ...]:
        return self._values_of(name, bool, "true or false")


# Named profiles -----------------------------------------------------------------------------------

_PRODUCTION_PROFILE = """\
# The floor of every production policy. It names no code, so by itself it refuses every server: copy it and
# add the [[sgx]], [[tdx]], [[snp]], [[azure]] or [[nitro]] entries of the builds that you have examined.
kind = "production"
expires = 9999-12-31T00:00:00Z
max_verdict_age_s = 3600

[security]
sealing = ["measurement"]
host_excluded = [true]
isolation = ["in_process", "model", "owner", "request"]
sandbox = []
admission = ["structural"]
anonymous_upload = [false]
verify_on_load = ["tags", "sha256"]
logging = ["no_content"]
"""

NAMED_POLICIES: dict[str, str] = {PRODUCTION: _PRODUCTION_PROFILE}
"""Name -> the text of the policy that goes by it."""


def named_policy(name: str) -> Policy:
    """Returns the embedded policy `name` ("production").

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
    rules: list[Rule] = [Root(claims.root)] if claims.format == "sim" else []
    rules += [Roots((claims.root,))] if claims.format == "tpm" else []
    rules += [Code((claims.measurement,), (), ()), MinSvn(claims.svn)]
    if claims.format != "sim":
        rules += [Tcb((claims.tcb_status,)), Advisories(claims.advisories)]
    if claims.format in TIMED_FORMATS:
        rules.append(MaxAge(INITIAL_EVIDENCE_AGE))
    if not claims.debug:
        rules.append(NotDebug())
    strict = security.host_excluded and not claims.debug
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
    for requirement in policy.requirements:
        lines += ["", f"[[{requirement.format}]]"]
        for name, value in _entry_members(requirement, policy.kind):
            lines += [f"# {MEMBER_MEANS[name]}", f"{name} = {_toml(value)}"]
    lines += ["", "# accepted values of each field of the server's security configuration", "[security]"]
    for name in _SECURITY_MEMBERS:
        lines += [f"# {MEMBER_MEANS[name]}", f"{name} = {_toml(getattr(policy.security, name))}"]
    return "\n".join(lines) + "\n"


def _entry_members(requirement: Requirement, kind: str) -> list[tuple[str, object]]:
    members: list[tuple[str, object]] = []
    for rule in requirement.rules:
        match rule:
            case Root(digest=digest):
                members.append(("root", digest))
            case Roots(digests=digests):
                members.append(("roots", digests))
            case Code(measurements=measurements, signers=signers, products=products):
                members.append(("measurements", measurements))
                if requirement.format != "sim":
                    members += [("signers", signers), ("products", products)]
            case MinSvn(svn=svn):
                members.append(("min_svn", svn))
            case Tcb(statuses=statuses):
                members.append(("tcb_statuses", statuses))
            case Advisories(accepted=accepted):
                members.append(("accepted_advisories", accepted))
            case MaxAge(seconds=seconds):
                members.append(("max_evidence_age_s", seconds))
            case _:
                pass  # NotDebug: the absence of permission, written below
    if kind == DEVELOPMENT:
        debug = not any(isinstance(rule, NotDebug) for rule in requirement.rules)
        members.append(("unsafe_accept_debug", debug))
    return members


def _toml(value: object) -> str:
    """The TOML of a string, integer, boolean or tuple of them; JSON's strings are TOML's basic strings."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)
