"""`attest.verify` with SEV-SNP evidence: the answer to the nonce, the connection, and mistakes that others made."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from fake_amd import Machine, roots
from fake_x509 import NOW
from worlds import SECURITY, Server, leaf, p256

from strongroom import attest
from strongroom.attest.batch import Single
from strongroom.attest.evidence import Attested, Channel, Claims, Evidence, boot_report_data, report_data
from strongroom.attest.policy import Policy, parse_policy, policy_for
from strongroom.attest.snp import examine_snp
from strongroom.errors import AttestationRefused

NONCE = hashlib.sha256(b"the client's nonce").digest()
SERVER = Server(security=replace(SECURITY, sealing="measurement", host_excluded=True))
DATA = report_data(nonce=NONCE, keyset_bytes=SERVER.keyset_bytes)


@pytest.fixture(autouse=True)
def _fake_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake AMD's roots stand for AMD's."""

    def examine(data: bytes, **arguments: Any) -> Any:
        return examine_snp(data, **(arguments | {"roots": roots()}))

    monkeypatch.setitem(attest.VERIFIERS, "snp", examine)


def accepted(machine: Machine) -> Policy:
    """The policy that accepts what `machine` shows, for production."""
    found = examine_snp(machine.report, endorsements=machine.endorsements, roots=roots(), now=NOW)
    assert isinstance(found.claims, Claims)
    return parse_policy(policy_for(found.claims, security=SERVER.security, now=NOW))


def codes(machine: Machine, *, channel: Channel | None = None) -> list[str]:
    """Codes of the failed checks of a verification by the policy for the genuine machine."""
    evidence = Evidence("snp", machine.report, machine.endorsements)
    try:
        proof = attest.verify(
            evidence,
            accepted(Machine()),
            nonce=NONCE,
            keyset_bytes=SERVER.keyset_bytes,
            inclusion=Single(),
            channel=channel or SERVER.leaf,
            endorsements=evidence.endorsements,
            now=NOW,
        )
    except AttestationRefused as refusal:
        assert refusal.verdict is not None
        return [c.code for c in refusal.verdict.failures]
    assert isinstance(proof, Attested)
    return []


def answering(data: bytes = DATA, **changed: Any) -> Machine:
    """A machine whose report carries `data`."""
    return Machine(fields={0x50: data}, **changed)


def test_a_genuine_report_answers_the_nonce() -> None:
    """Nothing fails that is the evidence's."""
    assert codes(answering()) == []


def test_ghsa_4r6g_mp48_j2rw_empty_report_data_is_not_skipped() -> None:
    """A verifier compared report data only where it was not empty: here zeros are a refusal of their own."""
    assert codes(answering(bytes(64)))[0] == "report_data_missing"


def test_ghsa_4px3_wj2x_xx47_report_data_is_compared() -> None:
    """A verifier took the session's value, and did not compare it: another nonce's answer is refused."""
    other = report_data(nonce=bytes(32), keyset_bytes=SERVER.keyset_bytes)
    assert codes(answering(other)) == ["report_data_mismatch"]
    assert codes(answering(DATA[:32] + bytes(32))) == ["report_data_mismatch"]


def test_cve_2026_33697_evidence_relayed_over_another_connection() -> None:
    """Genuine evidence of a genuine server, shown by somebody in between, who has another key."""
    assert codes(answering(), channel=leaf(p256("mallory"))) == ["channel_key_mismatch"]


def test_evidence_from_start_answers_no_nonce() -> None:
    """The report in the server's certificate has a label of its own."""
    boot = boot_report_data(spki=SERVER.leaf.spki())
    assert codes(answering(boot)) == ["report_data_other_label"]


def test_policy_rules_on_measurement_and_version() -> None:
    """The launch digest and the guest's security version."""
    assert codes(Machine(fields={0x50: DATA, 0x90: b"\xff"})) == ["measurement_not_accepted"]
    assert codes(Machine(fields={0x50: DATA, 0x04: b"\x06"})) == ["svn_too_low"]
    assert codes(Machine(fields={0x50: DATA, 0x04: b"\x08"})) == []


def test_debug_is_refused_by_policy() -> None:
    """A genuine report of a guest that the host may read: bit 19 of the guest policy."""
    machine = Machine(fields={0x50: DATA, 0x08: (0xB001F).to_bytes(8, "little")})
    assert "debug_platform" in codes(machine)


def test_a_refused_report_is_refused_whatever_else_holds() -> None:
    """The first code is the evidence's own."""
    assert codes(Machine(fields={0x50: DATA}, after={0x90: b"\xff"}))[0] == "evidence_signature_invalid"
    assert codes(answering(leaf={"corrupt": True}))[0] == "chain_signature_invalid"
