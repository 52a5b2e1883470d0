"""`attest.verify` with TDX evidence: no connection rests on a firmware's measurement alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from worlds import NOW, SECURITY, Server, leaf, p256

from strongroom import attest
from strongroom.attest.batch import Single
from strongroom.attest.evidence import Claims, Evidence, Examination, report_data
from strongroom.attest.policy import parse_policy, policy_for
from strongroom.errors import AttestationRefused, InvalidPolicy

NONCE = hashlib.sha256(b"the client's nonce").digest()
SERVER = Server(security=replace(SECURITY, sealing="measurement", host_excluded=True))
CLAIMS = Claims(
    format="tdx",
    simulated=False,
    host_excluded=True,
    measurement="ab" * 48,
    signer="",
    product=0,
    svn=1,
    debug=False,
    tcb_status="UpToDate",
    advisories=(),
    report_data=report_data(nonce=NONCE, keyset_bytes=SERVER.keyset_bytes),
    root="cd" * 32,
    issued_at=None,
    details=(
        ("rtmr0", "00" * 48),
        ("rtmr1", "11" * 48),
        ("rtmr2", "22" * 48),
        ("rtmr3", "33" * 48),
        ("eval_data_number", "17"),
    ),
)


def codes(monkeypatch: pytest.MonkeyPatch, claims: Claims, text: str) -> list[str]:
    """Codes of the failed checks of a connection to a TD with these claims, by the policy."""

    def examine(data: bytes, **arguments: Any) -> Examination:
        return Examination(checks=(), claims=claims)

    monkeypatch.setitem(attest.VERIFIERS, "tdx", examine)
    try:
        attest.verify(
            Evidence("tdx", b"", ()),
            parse_policy(text),
            nonce=NONCE,
            keyset_bytes=SERVER.keyset_bytes,
            inclusion=Single(),
            channel=leaf(p256(f"{SERVER.name} tls")),
            endorsements=(),
            now=NOW,
        )
    except AttestationRefused as refusal:
        assert refusal.verdict is not None
        return [check.code for check in refusal.verdict.failures]
    return []


POLICY = policy_for(CLAIMS, security=SERVER.security, now=NOW)


def test_a_td_that_booted_what_the_policy_names_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """MRTD and all four RTMRs are those of the policy."""
    assert codes(monkeypatch, CLAIMS, POLICY) == []


@pytest.mark.parametrize("index", range(4))
def test_a_td_that_booted_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """The same firmware; one register with another value."""
    details = dict(CLAIMS.details) | {f"rtmr{index}": "ee" * 48}
    other = replace(CLAIMS, details=tuple(details.items()))
    assert codes(monkeypatch, other, POLICY) == ["register_not_accepted"]


@pytest.mark.parametrize("index", range(4))
def test_a_policy_that_leaves_a_register_open_does_not_parse(index: int) -> None:
    """A TD with this firmware may have booted anything: MRTD alone, or three registers of four, name no code."""
    text = "\n".join(line for line in POLICY.splitlines() if not line.startswith(f"registers.rtmr{index}"))
    with pytest.raises(InvalidPolicy, match=f"rtmr{index}") as caught:
        parse_policy(text)
    assert caught.value.code == "policy_missing_member"
