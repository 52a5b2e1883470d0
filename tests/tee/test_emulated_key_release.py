"""Key release on emulated TDX and Nitro: the broker verifies real formats, and the key comes to no other code."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mounts
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from handovers import SECURITY, Party

from strongroom import attest
from strongroom.attest import verifiers
from strongroom.attest.evidence import statement_report_data
from strongroom.attest.policy import parse_policy
from strongroom.attester import Attester
from strongroom.calls import Answer
from strongroom.errors import AccessRefused, Failure
from strongroom.flow import Endpoint, Open
from strongroom.key_broker import Kept, KeyBroker
from strongroom.key_seeker import Seeker, seek
from strongroom.keys import operator_root
from strongroom.platforms import Paths
from strongroom.stapling import StapledAttester
from strongroom.tee.nitro import NitroAttester
from strongroom.tee.tsm import ReportInterface, TdxAttester

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(mounts.missing()), reason=mounts.missing() or "it can"),
]
KEY = bytes([0xA1]) * 32
SIGNING = Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32)
OWN = f"{SIGNING.public_key().public_bytes_raw().hex()}/models"


@pytest.fixture(scope="module", params=["tdx", "nitro"])
def tee(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[mounts.Mounted]:
    """Each platform that has no sealing key."""
    with mounts.mounted(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


def attester(tee: mounts.Mounted) -> Attester:
    """As a server whose settings name a broker has it: without a root."""
    where = Paths(**{name: Path(path) for name, path in tee.paths().items()})
    if tee.kind == "nitro":
        return NitroAttester(where.nsm, operator_key=None)
    made = TdxAttester(ReportInterface(where.reports, provider="tdx_guest"), operator_key=None)
    return StapledAttester(made, (Path(tee.endorsements) / "dcap.json",))


def test_the_key_comes_to_the_code_in_the_policy(
    tee: mounts.Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is no root; with another measurement in the policy there is none after, either."""
    monkeypatch.setitem(verifiers.PINS, tee.kind, tee.roots)
    here, now = attester(tee), datetime.now(UTC)
    with pytest.raises(Failure) as caught:
        here.sealing_root()
    assert caught.value.code == "sealing_root_unavailable"
    party = Party(Path("/nowhere"), "0d" * 32)
    party.security = replace(SECURITY, sealing="operator", host_excluded=True, key_release=OWN)
    keyset = party.keyset("0" * 32)
    data = statement_report_data(nonce=bytes(32), keyset_bytes=keyset, statement=b"")
    shown = here.evidence(data, now=now)
    text = attest.draft_policy(shown, keyset_bytes=keyset, roots=tee.roots, now=now)
    assert 'kind = "production"' in text

    def ask(policy: str) -> Any:
        kept = {"models": Kept(key=KEY, policy=parse_policy(policy))}
        broker = KeyBroker(
            kept,
            signing_key=SIGNING,
            now=lambda: datetime.now(UTC),
            monotonic=time.monotonic,
            random=os.urandom,
        )

        def perform(command: Any) -> Any:
            if isinstance(command, Open):
                return Endpoint(gate=SimpleNamespace(), link=None)  # type: ignore[arg-type]
            body = b"".join(command.request.body.chunks())
            given = broker.challenge() if command.request.path.endswith("challenge") else broker.release(body)
            return Answer(status=200, headers={}, data=given)

        wire: Any = SimpleNamespace(perform=perform)
        seeker = Seeker(
            key_release=OWN, attester=here, keyset=keyset, transport=wire, now=lambda: datetime.now(UTC)
        )
        return seek(seeker)

    assert ask(text).secret == operator_root(KEY).secret
    other = re.sub(r'^(measurements = \[")..', r"\g<1>99", text, flags=re.MULTILINE)
    assert other != text
    with pytest.raises(AccessRefused) as refused:
        ask(other)
    assert refused.value.code == "key_release_refused"
