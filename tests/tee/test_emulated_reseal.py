"""A hand-over on emulated SEV-SNP: the store goes to another attested configuration, under another derived root."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import mounts
import numpy as np
import pytest
from plane import linear_onnx
from serving import Serving, start

import strongroom
from strongroom import attest
from strongroom.attest import verifiers
from strongroom.attest.evidence import statement_report_data
from strongroom.attest.keyset import encode_keyset, parse_keyset
from strongroom.attest.policy import parse_policy
from strongroom.errors import AttestationRefused
from strongroom.platforms import Paths
from strongroom.tee.sev_guest import derive_key
from strongroom.tee.tsm import ReportInterface, SnpAttester
from strongroom.tokens import new_key_pem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(mounts.missing()), reason=mounts.missing() or "it can"),
]
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def policy_of(tee: mounts.Mounted) -> str:
    """What such a policy is written from: this machine's own evidence, for the configurations that are to be taken."""
    from handovers import SECURITY, Party

    where = Paths(**{name: Path(path) for name, path in tee.paths().items()})
    attester = SnpAttester(
        ReportInterface(where.reports, provider="sev_guest"),
        derive=lambda level: derive_key(where.sev_guest, level=level),
    )
    security = replace(SECURITY, sealing="measurement", host_excluded=True)
    made = parse_keyset(Party(Path("/nowhere"), "0d" * 32).keyset("0" * 32))
    plain = replace(made, security=security)
    data = statement_report_data(nonce=bytes(32), keyset_bytes=encode_keyset(plain), statement=b"")
    text = attest.draft_policy(
        attester.evidence(data, now=datetime.now(UTC)),
        keyset_bytes=encode_keyset(plain),
        roots=tee.roots,
        now=datetime.now(UTC),
    )
    text = text.replace(
        'isolation = ["in_process"]', 'isolation = ["in_process", "model", "owner", "request"]'
    )
    return text.replace('verify_on_load = ["tags"]', 'verify_on_load = ["tags", "sha256"]')


def test_a_store_moves_to_another_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch digest is the same, the configuration is not, so the store does not open; handed over, it does."""
    with mounts.mounted("snp", tmp_path / "tee") as tee:
        monkeypatch.setitem(verifiers.PINS, "snp", tee.roots)
        world, policy, key = tmp_path / "world.json", tmp_path / "handover.toml", tmp_path / "owner.pem"
        world.write_text(json.dumps({"format": "snp", "roots": tee.roots, "paths": tee.paths()}))
        key.write_bytes(new_key_pem())
        key.chmod(0o600)
        policy.write_text(policy_of(tee))
        digest = hashlib.sha256(policy.read_bytes()).hexdigest()
        text = policy.read_text()
        client = parse_policy(text.replace('handover = ["none"]', f'handover = ["{digest}"]'))

        def run(name: str, mode: tuple[str, ...], more: str = "") -> Serving:
            patched = str(Path(__file__).with_name("patched.py"))
            return start(
                tmp_path / name,
                settings=f'[security]\nhandover_policy = "{policy}"\n{more}',
                environment={"STRONGROOM_PLATFORM": "auto"},
                command=(sys.executable, patched, mode[0], str(world), *mode[1:]),
            )

        old = run("old", ("serve",))
        try:
            with pytest.raises(AttestationRefused):
                strongroom.connect(old.url, policy=policy)
            with strongroom.connect(old.url, policy=client, key=str(key)) as connected:
                connected.upload_model(linear_onnx(), name="m")
            files, token = old.state_dir / "store" / "data", old.state_dir / "operator-token"
            errand = ("reseal", "--from", old.url, "--files", str(files), "--token", str(token))
            new = run("new", errand, 'verify_on_load = "sha256"')
            try:
                with strongroom.connect(new.url, policy=client, key=str(key)) as connected:
                    assert connected.model("m").run(ROWS).tolist() == (2 * ROWS).tolist()
                    connected.upload_model(linear_onnx(factor=3), name="m")
                    assert not connected.attestation.simulated
            finally:
                assert new.stop() == 0
        finally:
            assert old.stop() == 0
