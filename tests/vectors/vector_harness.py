"""Runs vectors, as they lie on the disk, through this verifier: by the library, and by the command.

Vendors' roots are pinned in the package, and neither a policy nor the command can name others. Here, in tests, a
vector's `roots` take the pins' place for as long as it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

from strongroom import attest
from strongroom.attest import verifiers
from strongroom.attest.appraise import AnyMeasurement, Asked, Nonce, NoReportData, ReportData, appraise
from strongroom.attest.batch import Inclusion, Single
from strongroom.attest.evidence import NOT_MADE, Evidence, Leaf, Verdict
from strongroom.attest.policy import Policy, named_policy, parse_policy
from strongroom.errors import AttestationRefused, Unusable

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """A `case.json` with its folder."""

    folder: Path
    members: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.members[name]

    def read(self, name: str) -> bytes:
        """A file that the case names."""
        return (self.folder / name).read_bytes()

    @property
    def expected(self) -> dict[str, Any]:
        """What must come out."""
        return dict(self.members["expected"])


@dataclass(frozen=True)
class Outcome:
    """What came out. `failed`: checks that were made and failed; `unmade`: those that an earlier failure prevented."""

    verdict: str
    code: str | None
    failed: tuple[str, ...]
    unmade: tuple[str, ...]
    document: dict[str, Any] | None


def load(case_id: str) -> Case:
    """The vector of that id."""
    folder = HERE / case_id
    return Case(folder, json.loads((folder / "case.json").read_text(encoding="utf-8")))


def case_ids() -> list[str]:
    """Every vector, in the order of the folders."""
    return [str(i) for i in json.loads((HERE / "index.json").read_text(encoding="utf-8"))["vectors"]]


@contextmanager
def trusting(roots: Mapping[str, list[str]]) -> Iterator[None]:
    """These roots in the place of the pinned ones."""
    with mock.patch.dict(verifiers.PINS, {name: tuple(digests) for name, digests in roots.items()}):
        yield


def run(case: Case, *, roots: Mapping[str, list[str]] | None = None) -> Outcome:
    """Runs a case by the library, under its own roots or those given."""
    try:
        with trusting(case["roots"] if roots is None else roots):
            verdict = _connection(case) if case["kind"] == "connection" else _appraisal(case)
    except Unusable as exc:
        return Outcome("unusable", exc.code, (), (), None)
    return outcome(verdict)


def outcome(verdict: Verdict) -> Outcome:
    """What a verdict says."""
    unmade = {c.id for c in verdict.failures if c.got.startswith(NOT_MADE)}
    made = dict.fromkeys(c.id for c in verdict.failures if c.id not in unmade)
    return Outcome(
        verdict="accepted" if verdict.passed else "refused",
        code=verdict.code,
        failed=tuple(made),
        unmade=tuple(unmade),
        document=verdict.to_json(),
    )


def _policy(case: Case) -> Policy | AnyMeasurement:
    stated = case["policy"]
    if "file" in stated:
        return parse_policy(case.read(stated["file"]).decode("utf-8"))
    return (
        AnyMeasurement() if stated["profile"] == "UNSAFE_ANY_MEASUREMENT" else named_policy(stated["profile"])
    )


def _endorsements(case: Case) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, case.read(name)) for name in case["endorsements"])


def _appraisal(case: Case) -> Verdict:
    policy = _policy(case)
    return appraise(
        Evidence(case["format"], case.read(case["evidence"]), ()),
        policy,
        report_data=_asked(case),
        endorsements=_endorsements(case),
        now=datetime.fromisoformat(case["at"]),
    )


def _asked(case: Case) -> Asked:
    match case["asked"]:
        case None:
            return NoReportData("the vector asks for nothing")
        case {"nonce": text}:
            return Nonce(bytes.fromhex(text))
        case {"report_data": text}:
            return ReportData(bytes.fromhex(text))
    raise AssertionError(case["asked"])


def _inclusion(stated: Mapping[str, Any] | None) -> Inclusion | Single:
    """The proof as it arrived, however malformed."""
    if stated is None:
        return Single()
    return Inclusion(stated["index"], stated["size"], tuple(bytes.fromhex(one) for one in stated["path"]))


def _connection(case: Case) -> Verdict:
    policy, channel = _policy(case), case["channel"]
    try:
        return attest.verify(
            Evidence(case["format"], case.read(case["evidence"]), _endorsements(case)),
            policy,  # type: ignore[arg-type]  # AnyMeasurement is refused by `verify`, which a vector shows
            nonce=bytes.fromhex(channel["nonce"]),
            keyset_bytes=case.read(channel["keyset"]),
            inclusion=_inclusion(channel["batch"]),
            channel=Leaf(case.read(channel["leaf"])),
            endorsements=_endorsements(case),
            now=datetime.fromisoformat(case["at"]),
        ).verdict
    except AttestationRefused as exc:
        if exc.verdict is None:
            raise
        return exc.verdict
