"""`attest.verify` with TDX evidence: no connection rests on a firmware's measurement alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from worlds import NOW, SECURITY, Server, leaf, p256

from strongroom import attest
from strongroom.attest.evidence import Claims, Evidence, Examination, report_data
from strongroom.attest.policy import parse_policy, policy_for
from strongroom.errors import AttestationRefused

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
    details=(("rtmr0", "00" * 48), ("rtmr1", "11" * 48), ("rtmr2", "22" * 48), ("rtmr3", "33" * 48)),
)


def test_a_policy_that_names_mrtd_only_accepts_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else passes; a TD with this firmware may have booted anything, so that one check fails."""

    def examine(data: bytes, **arguments: Any) -> Examination:
        return Examination(checks=(), claims=CLAIMS)

    monkeypatch.setitem(attest.VERIFIERS, "tdx", examine)
    policy = parse_policy(policy_for(CLAIMS, security=SERVER.security, now=NOW))
    with pytest.raises(AttestationRefused) as caught:
        attest.verify(
            Evidence("tdx", b"", ()),
            policy,
            nonce=NONCE,
            keyset_bytes=SERVER.keyset_bytes,
            channel=leaf(p256(f"{SERVER.name} tls")),
            endorsements=(),
            now=NOW,
        )
    verdict = caught.value.verdict
    assert verdict is not None
    assert [check.code for check in verdict.failures] == ["tdx_runtime_not_appraised"]
