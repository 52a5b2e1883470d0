"""What a policy requires of a server's security configuration, and that the configuration claims no more than the
evidence shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from strongroom.attest.evidence import Absent, Check, Claims, check, check_impossible, one_of
from strongroom.attest.keyset import FORMS, LAYER, NONE, VALUES, SecurityConfiguration
from strongroom.attest.requirements import require, require_list


@dataclass(frozen=True, slots=True)
class SecurityRequirement:
    """The values that each field of the security configuration may have; `sandbox` names layers that must
    have taken hold. `handover`, `recovery` and `key_release` accept nobody unless they name somebody.

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
    handover: tuple[str, ...] = (NONE,)
    recovery: tuple[str, ...] = (NONE,)
    key_release: tuple[str, ...] = (NONE,)

    def __post_init__(self) -> None:
        require_list(self.sandbox, LAYER, "security.sandbox")
        for name, known in VALUES.items():
            accepted = getattr(self, name)
            where = f"security.{name}"
            require(bool(accepted), f"{where}: an empty list accepts nothing", code="policy_accepts_nothing")
            fits = all(value in known and type(value) is type(known[0]) for value in accepted)
            require(fits, f"{where}: expected values out of {', '.join(map(_spell, known))}")
            require(len(set(accepted)) == len(accepted), f"{where}: a value is there twice")
        for name, form in FORMS.items():
            accepted, where = getattr(self, name), f"security.{name}"
            require(bool(accepted), f"{where}: an empty list accepts nothing", code="policy_accepts_nothing")
            fits = all(isinstance(v, str) and re.fullmatch(form, v, re.ASCII) for v in accepted)
            require(fits, f"{where}: expected values of the form {form}")
            require(len(set(accepted)) == len(accepted), f"{where}: a value is there twice")

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
    "handover": "By which policy the stored models' keys go to other servers",
    "recovery": "Whose key can open the stored models besides the server's",
    "key_release": "Which broker keeps the key of the stored models",
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
