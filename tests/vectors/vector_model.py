"""What a vector is, and the book in which those of one folder are written down (tests/vectors/README.md).

Rules of this file:

1. Who writes a vector states the verdict, the code and *every* check that fails in it. Nothing here asks the verifier:
   `tests/test_vectors.py` compares.
2. Numbers are those of a vector's section and its place there. New ones go to the end of a section, so that
   published ids stay.
3. Policies are written by `policy`, and by nothing else: another form of policy files is one edit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from fake_amd import CLOUD, MEASUREMENT, PARTS, TCB
from fake_intel import TD_BODY
from tee import NOW, Minted

from strongroom.attest.batch import Inclusion, Single

ANY = "UNSAFE_ANY_MEASUREMENT"
ALONE = Single()
MUST, STRICT = "must", "strict"
"""Grades: who accepts the vector is broken; or may accept it, for nobody is deceived, and here it is refused all the
same (`spec` says why)."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A connection: the client's nonce, the keyset and the inclusion proof that came with the evidence, and the
    certificate that was shown.
    """

    nonce: bytes
    keyset: bytes
    leaf: bytes
    inclusion: Inclusion | Single = ALONE


@dataclass(frozen=True, kw_only=True)
class Vector:
    """One vector. `policy` is the text of a file, or a profile's name. `asked`: ("report_data" or "nonce", bytes)."""

    folder: str
    number: int
    name: str
    title: str
    spec: str
    minted: Minted
    verdict: str
    code: str = ""
    failed: tuple[str, ...] = ()
    tcb_status: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict)
    policy: str = ANY
    asked: tuple[str, bytes] | None = None
    channel: Channel | None = None
    at: datetime = NOW
    grade: str = MUST
    refs: tuple[str, ...] = ()
    twin: str = ""

    @property
    def id(self) -> str:
        """Folder, number and name."""
        return f"{self.folder}/{self.number:03}-{self.name}"


class Book:
    """The vectors of one folder: `accept`, `refuse` and `unusable` add one to the current section."""

    def __init__(self, folder: str, *, document: str) -> None:
        self._folder, self._document = folder, document
        self._number, self._end, self._twin = 0, 0, ""
        self.vectors: list[Vector] = []
        self._twins: list[str] = []
        self._usual: dict[str, Any] = {}

    def section(self, first: int, *, to: int, twin: str = "", **usual: Any) -> None:
        """Numbers from `first` to `to` come next; `twin` names their genuine vector (a vector may name another),
        `usual` what they share (every vector needs a clause, `spec`).
        """
        assert first >= self._end, "sections are in order"
        self._number, self._end, self._usual = first, to + 1, usual
        self._twin = twin

    def _add(self, name: str, title: str, minted: Minted, **members: Any) -> None:
        assert self._number < self._end, f"{self._folder}: no numbers left for {name}"
        given = self._usual | members
        document, spec = given.pop("document", self._document), given.pop("spec")
        twin = given.pop("twin", self._twin)
        vector = Vector(
            folder=self._folder,
            number=self._number,
            name=name,
            title=title,
            spec=f"{document} {spec}",
            minted=minted,
            **({"at": minted.now} | given),
        )
        self._number += 1
        self._twins.append(twin)
        self.vectors.append(vector)

    def accept(self, name: str, title: str, minted: Minted, **members: Any) -> None:
        """One that passes. `claims` adds to measurement and report data, which every one states."""
        known = {"measurement": minted.measurement, "report_data": minted.report_data.hex()}
        claims = {k: v for k, v in known.items() if v} | dict(members.pop("claims", {}))
        self._add(name, title, minted, verdict="accepted", claims=claims, **members)

    def refuse(
        self,
        name: str,
        title: str,
        minted: Minted,
        check: str,
        code: str,
        *,
        also: tuple[str, ...] = (),
        **members: Any,
    ) -> None:
        """One that `check` refuses with `code`; `also`: the other checks that are made and fail for the same reason,
        in the order of the verdict. Without a `check` none was made and failed: what was asked could not be checked.
        """
        failed = tuple(c for c in (check, *also) if c)
        self._add(name, title, minted, verdict="refused", code=code, failed=failed, **members)

    def unusable(self, name: str, title: str, minted: Minted, code: str, **members: Any) -> None:
        """One in which an input, the policy mostly, cannot be used at all."""
        self._add(name, title, minted, verdict="unusable", code=code, **members)

    def done(self) -> Iterator[Vector]:
        """The vectors, each refusal with the id of its twin."""
        ids = {v.name: v.id for v in self.vectors}
        for vector, twin in zip(self.vectors, self._twins, strict=True):
            yield vector if vector.verdict == "accepted" else replace(vector, twin=ids[twin])


_SECURITY: dict[str, list[Any]] = {
    "sealing": ["measurement", "operator"],
    "host_excluded": [True, False],
    "isolation": ["in_process", "model", "owner", "request"],
    "sandbox": [],
    "admission": ["structural"],
    "anonymous_upload": [False],
    "verify_on_load": ["tags", "sha256"],
    "logging": ["no_content"],
}
EVALUATION = 20
"""The number of the fakes' TCB evaluations."""
_ARCS = {"fmc": "9", "bl": "1", "tee": "2", "snp": "3", "ucode": "8"}


def tcb(product: str, **changes: int) -> dict[str, int]:
    """The parts of the TCB version that the fakes' machines of this product report, some of them changed."""
    places = PARTS[product]
    return {part: TCB[product][places[arc]] for part, arc in _ARCS.items() if arc in places} | changes


def registers(**changes: list[str] | None) -> dict[str, list[str]]:
    """RTMR0 to RTMR3 of the fakes' TDs, some of them changed, or left out where None."""
    usual = {f"rtmr{i}": [TD_BODY.get(f"rtmr{i}", bytes(48)).hex()] for i in range(4)}
    return {name: values for name, values in (usual | changes).items() if values is not None}


def td_launch() -> str:
    """What Azure's entries name of the fakes' TDs: MRTD, then RTMR0 to RTMR3."""
    return TD_BODY["mr_td"].hex() + "".join(values[0] for values in registers().values())


def _usual(name: str, tee: str) -> dict[str, Any]:
    """What an entry of the format has to say, and of code that it has none: a vector names that."""
    intel = {"tcb_statuses": ["UpToDate"], "accepted_advisories": [], "min_evaluation": EVALUATION}
    amd = {"vmpls": [0], "signing_keys": ["VCEK"], "csp_ids": [], "min_tcb": {"Milan": tcb("Milan")}}
    code: dict[str, Any] = {"measurements": []}
    match name:
        case "sim":
            return code | {"root": "", "min_svn": 0, "max_evidence_age_s": 300}
        case "sgx":
            return code | {"signers": [], "products": [], "min_svn": 0} | intel
        case "tdx":
            return code | {"registers": registers()} | intel
        case "snp":
            return code | {"signers": [], "min_svn": 0} | amd
        case "tpm":
            return {"roots": []}
        case "nitro":
            return code | {"signers": [], "max_evidence_age_s": 300}
    launch = MEASUREMENT.hex() if tee == "snp" else td_launch()
    return {"tee": tee, "launch_measurements": [launch]} | (amd if tee == "snp" else intel)


LENT = {"signing_keys": ["VLEK"], "csp_ids": [CLOUD]}
"""Members of an entry for guests whose reports a key signs that is lent to the fakes' cloud."""


def policy(
    *entries: tuple[str, Mapping[str, Any]],
    kind: str = "development",
    expires: str = "2027-06-30T00:00:00Z",
    security: Mapping[str, Any] | None = None,
    leave_out: tuple[str, ...] = (),
    more: str = "",
) -> str:
    """The text of a policy file with an entry for each of `entries` (format, what is not as usual: `None` leaves a
    member out). `leave_out` names members of the top level that are missing, `more` is text at its end.
    """
    top = {"kind": json.dumps(kind), "expires": expires, "max_verdict_age_s": "3600"}
    lines = [f"{name} = {value}" for name, value in top.items() if name not in leave_out]
    for name, changes in entries:
        members = _usual(name, changes.get("tee", "snp"))
        if kind == "development" and name != "sim":
            members["unsafe_accept_debug"] = False
            if "min_tcb" in members:
                members["unsafe_accept_migration"] = False
        members |= changes
        lines += ["", f"[[{name}]]"]
        for member, value in members.items():
            if isinstance(value, Mapping) and value:
                lines += [f"{member}.{inner} = {_toml(value[inner])}" for inner in value]
            elif value is not None:
                lines.append(f"{member} = {_toml(value)}")
    if "security" not in leave_out:
        accepted = _SECURITY | ({"host_excluded": [True]} if kind == "production" else {})
        if kind == "UNSAFE_SIMULATION":
            accepted = accepted | {"sealing": ["simulated"], "host_excluded": [False]}
        lines += ["", "[security]"]
        lines += [f"{k} = {_toml(v)}" for k, v in (accepted | dict(security or {})).items()]
    return "\n".join(lines) + "\n" + more


def _toml(value: object) -> str:
    """Tables in line, times without quotes; JSON's strings, numbers and arrays are TOML's."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, datetime):
        return value.isoformat()
    return json.dumps(value)
