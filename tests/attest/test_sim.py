"""`attest.sim`: the simulated TEE's evidence."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from worlds import MEASUREMENT, NOW, Server, ed25519, p256, spki

from strongroom.attest.evidence import Absent, Claims, Examination
from strongroom.attest.sim import examine_sim, issue, root_digest
from strongroom.attest.strict import canonical
from strongroom.errors import MalformedInput

ROOT = root_digest(ed25519("root").public_key())
DATA = Server().evidence.data


def examine(data: bytes, *, roots: tuple[str, ...] = (ROOT,), now: datetime = NOW) -> Examination:
    """What is found about `data`."""
    return examine_sim(data, endorsements=(), roots=roots, now=now)


def failures(found: Examination) -> list[str]:
    """Codes of the failed checks."""
    return [c.code for c in found.checks if not c.passed]


def test_genuine_evidence_gives_its_claims() -> None:
    """Every check passes; the claims say simulated, and that the host is not excluded."""
    found = examine(DATA)
    assert failures(found) == []
    claims = found.claims
    assert isinstance(claims, Claims)
    assert (claims.simulated, claims.host_excluded, claims.debug) == (True, False, False)
    assert (claims.measurement, claims.root, claims.svn) == (MEASUREMENT, ROOT, 1)
    assert claims.issued_at == NOW
    assert claims.tcb_status == "NotReported"


def test_the_document_is_its_one_spelling() -> None:
    """The evidence is RFC 8785 bytes of body and signature."""
    value = json.loads(DATA)
    assert canonical(value) == DATA
    assert set(value) == {"body", "signature"}


def test_without_roots_nothing_is_accepted() -> None:
    """An empty list of roots is not "any root"."""
    assert failures(examine(DATA, roots=())) == ["root_not_accepted"]


def test_skew_is_five_minutes_ahead_and_no_limit_behind() -> None:
    """The age of evidence is the policy's matter; a time to come is this format's."""
    assert failures(examine(DATA, now=NOW - timedelta(seconds=300))) == []
    assert failures(examine(DATA, now=NOW - timedelta(seconds=301))) == ["evidence_from_future"]
    assert failures(examine(DATA, now=NOW + timedelta(days=999))) == []
    late = issue(
        root_key=ed25519("root"),
        measurement=MEASUREMENT,
        svn=1,
        report_data=bytes(64),
        now=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    )
    assert failures(examine(late)) == ["evidence_from_future"]


def changed(**members: Any) -> bytes:
    """The document with members of the body replaced; the signature is left as it was."""
    value = json.loads(DATA)
    value["body"] |= members
    return canonical(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        DATA + b" ",
        DATA.replace(b'"svn":1', b'"svn":1,"svn":1'),
        DATA.replace(b'"svn":1', b'"svn":1.0'),
        changed(extra=1),
        changed(svn=-1),
        changed(svn=65536),
        changed(svn=True),
        changed(measurement=MEASUREMENT[:-2]),
        changed(measurement=MEASUREMENT.upper()),
        changed(report_data="0"),
        changed(report_data="00" * 65),
        changed(report_data=None),
        changed(issued_at=-1),
        changed(issued_at=253_402_300_800),
        changed(issued_at="now"),
        changed(label=1),
        changed(root=""),
        changed(root=base64.b64encode(spki(p256("x"))).decode()),
        changed(root=base64.b64encode(spki(ed25519("root")) + b"\x00").decode()),
        changed(simulated=False),
        canonical(json.loads(DATA) | {"signature": ""}) + b"\n",
        canonical(json.loads(DATA) | {"signature": base64.b64encode(bytes(65)).decode()}),
        canonical({"body": json.loads(DATA)["body"]}),
    ],
    ids=range(25),
)
def test_malformed_evidence_is_refused_and_gives_no_claims(data: bytes) -> None:
    """One fault of form each; what follows could not be checked, and has failed."""
    found = examine(data)
    assert failures(found)[0] == "evidence_malformed"
    assert len(failures(found)) == 5
    assert isinstance(found.claims, Absent)


@pytest.mark.parametrize(
    "data",
    [
        changed(measurement="00" * 32),
        changed(svn=2),
        changed(report_data="00" * 64),
        changed(issued_at=0),
        changed(root=base64.b64encode(spki(ed25519("mallory"))).decode()),
        canonical(json.loads(DATA) | {"signature": ""}),
        canonical(json.loads(DATA) | {"signature": base64.b64encode(bytes(64)).decode()}),
    ],
    ids=range(7),
)
def test_a_signature_over_anything_else_is_refused_and_gives_no_claims(data: bytes) -> None:
    """Whatever was changed after signing: nobody signed these claims, so nobody sees them."""
    found = examine(data)
    assert failures(found)[0] == "evidence_signature_invalid"
    assert isinstance(found.claims, Absent)


def test_a_stapled_endorsement_is_refused() -> None:
    """The format has none."""
    found = examine_sim(DATA, endorsements=(("vcek", b""),), roots=(ROOT,), now=NOW)
    assert failures(found)[0] == "evidence_malformed"


@pytest.mark.parametrize(
    ("measurement", "report_data"),
    [
        ("", bytes(64)),
        ("00", bytes(64)),
        (MEASUREMENT.upper(), bytes(64)),
        (MEASUREMENT, b""),
        (MEASUREMENT, bytes(63)),
    ],
)
def test_evidence_is_not_issued_for_arguments_out_of_form(measurement: str, report_data: bytes) -> None:
    """The attester does not sign what the verifier would not read."""
    with pytest.raises(MalformedInput) as caught:
        issue(root_key=ed25519("root"), measurement=measurement, svn=1, report_data=report_data, now=NOW)
    assert caught.value.code == "evidence_malformed"
