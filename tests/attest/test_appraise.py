"""Recorded evidence by a policy: every recorded sample gives its outcome, and what was not asked is not a pass."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import fake_aws
import pytest
import recorded
from recorded import CASES, Case
from worlds import NONCE, NOW, Server, policy

from strongroom.attest import VERIFIERS
from strongroom.attest.appraise import (
    AnyMeasurement,
    Asked,
    Nonce,
    NoReportData,
    ReportData,
    appraise,
)
from strongroom.attest.evidence import Evidence, Verdict, report_data
from strongroom.attest.policy import named_policy, parse_policy
from strongroom.attest.verifiers import PINS, carried
from strongroom.cli_appraise import _read_evidence
from strongroom.errors import InvalidPolicy
from strongroom.sources import load_endorsements

NOTHING = NoReportData("nobody asked")
SERVER = Server()
needs_recorded = pytest.mark.skipif(not recorded.EVIDENCE.is_dir(), reason=recorded.ABSENT)


def codes(verdict: Verdict) -> list[str]:
    """Codes of the failures."""
    return [c.code for c in verdict.failures]


def appraise_case(case: Case, asked: Asked = NOTHING) -> Verdict:
    """A recorded sample, as the command appraises it."""
    return appraise(
        Evidence(case.format, _read_evidence(case.path, case.format), ()),
        AnyMeasurement(),
        report_data=asked,
        endorsements=load_endorsements(case.endorsements),
        now=datetime.fromisoformat(case.at),
    )


@needs_recorded
@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_recorded_evidence_gives_its_outcome(case: Case) -> None:
    """All checks pass, or the one that must fails; status and measurement are the recorded ones."""
    verdict = appraise_case(case)
    assert verdict.passed == (not case.code), codes(verdict)
    if case.code:
        assert case.code in codes(verdict)
    assert verdict.claims is not None or not (case.status or case.measurement)
    if verdict.claims is not None:
        assert case.status in ("", verdict.claims.tcb_status)
        assert case.measurement in ("", verdict.claims.measurement)
    assert any(text.startswith("freshness: nobody asked") for text in verdict.not_checked)


@needs_recorded
@pytest.mark.parametrize("case", [c for c in CASES if not c.code], ids=lambda c: c.name)
def test_recorded_evidence_answers_what_it_carries_and_nothing_else(case: Case) -> None:
    """Report data is compared whole; asked for, freshness is no longer among what was not checked."""
    claims = appraise_case(case).claims
    assert claims is not None
    if not claims.report_data:  # a Nitro document with a nonce alone
        nonce = bytes.fromhex(dict(claims.details)["nonce"])
        assert appraise_case(case, Nonce(nonce)).passed
        assert codes(appraise_case(case, Nonce(nonce[:-1]))) == ["nitro_nonce_mismatch"]
        return
    digest = claims.format in ("tpm", "azure")
    right: Asked = Nonce(claims.report_data) if digest else ReportData(claims.report_data)
    verdict = appraise_case(case, right)
    assert verdict.passed
    assert not any("freshness" in text for text in verdict.not_checked)
    for wrong in (right.data[:-1], right.data + b"\x00", bytes(len(right.data) - 1) + b"\x07", b""):
        assert "report_data_mismatch" in codes(appraise_case(case, replace(right, data=wrong)))


def test_every_hardware_format_but_the_tpm_has_pins() -> None:
    """A format without pins accepts what a policy names, which for these must not happen by accident."""
    assert set(VERIFIERS) - set(PINS) == {"sim", "tpm"}
    assert all(len(root) == 64 for roots in PINS.values() for root in roots)


def test_a_nitro_document_of_another_root_is_refused() -> None:
    """A fake vendor's: well-signed, under a root that nobody pinned."""
    evidence = Evidence("nitro", fake_aws.mint(), ())
    verdict = appraise(evidence, AnyMeasurement(), report_data=NOTHING, endorsements=(), now=fake_aws.NOW)
    assert verdict.code == "root_not_accepted"
    assert verdict.claims is None


def test_simulated_evidence_is_appraised_by_its_policy() -> None:
    """The claims' rules alone: what else a policy says is named as not checked."""
    asked = ReportData(report_data(nonce=NONCE, keyset_bytes=SERVER.keyset_bytes))
    verdict = appraise(SERVER.evidence, policy(), report_data=asked, endorsements=(), now=NOW)
    assert verdict.passed and verdict.label == "SIMULATED"
    assert any("security configuration" in text for text in verdict.not_checked)
    assert verdict.to_json()["not_checked"] == list(verdict.not_checked)
    late = appraise(
        SERVER.evidence, policy(), report_data=asked, endorsements=(), now=NOW + timedelta(days=365)
    )
    assert late.code == "policy_expired" or "policy_expired" in codes(late)


def test_simulated_evidence_is_not_any_measurement() -> None:
    """Simulation has no root there and is refused for what it is."""
    verdict = appraise(SERVER.evidence, AnyMeasurement(), report_data=NOTHING, endorsements=(), now=NOW)
    assert codes(verdict) == ["root_not_accepted", "simulation_refused"]


def test_an_unknown_format_is_refused_with_every_check_failed() -> None:
    """Nothing is left to check, and nothing passes."""
    verdict = appraise(
        Evidence("abc", b"", ()), AnyMeasurement(), report_data=ReportData(b"x"), endorsements=(), now=NOW
    )
    assert verdict.code == "evidence_format_unsupported"
    assert not any(c.passed for c in verdict.checks)


def test_a_time_without_zone_is_a_mistake() -> None:
    """As in `verify`."""
    with pytest.raises(TypeError):
        appraise(
            SERVER.evidence, policy(), report_data=NOTHING, endorsements=(), now=NOW.replace(tzinfo=None)
        )


def test_any_measurement_is_no_policy() -> None:
    """Neither by name nor as the kind of a file."""
    for make in (
        lambda: named_policy("UNSAFE_ANY_MEASUREMENT"),
        lambda: parse_policy('kind = "UNSAFE_ANY_MEASUREMENT"\nexpires = 2027-01-01T00:00:00Z\n[security]\n'),
    ):
        with pytest.raises(InvalidPolicy) as caught:
            make()
        assert caught.value.code == "policy_appraise_only"


def test_quotes_of_tpms_carry_a_digest() -> None:
    """SHA-256 of the 64 bytes; other formats carry them as they are."""
    data = bytes(range(64))
    assert len(carried("tpm", data)) == len(carried("azure", data)) == 32
    assert carried("sgx", data) == carried("nitro", data) == data
