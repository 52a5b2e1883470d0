"""A hand-over between two machines with a TPM each: across a changed measurement, every model; one copy changes.

On one machine it cannot be done (docs/spec/reseal.md §7.3).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import software_tpm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from plane import linear_onnx
from serving import Serving, clean_environment, snapshot, start

import strongroom
from strongroom.attest.policy import parse_policy
from strongroom.attest.releases import ReferenceValue, Release, sign_release
from strongroom.attest.tpm_quote import pcr_measurement
from strongroom.config import Tpm
from strongroom.errors import Unavailable
from strongroom.tokens import new_key_pem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(software_tpm.missing()), reason=software_tpm.missing() or "there is one"),
]
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
_QUOTED = tuple(sorted({*Tpm().pcrs, Tpm().code_pcr}))
AUDITOR = Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)
POLICY = """
kind = "development"
expires = 2099-01-01T00:00:00Z

[[tpm]]
roots = {keys}
release_keys = ["{auditor}"]
release_product = "acme/strongroom"
min_release_svn = 1
unsafe_accept_debug = false

[security]
sealing = ["measurement"]
host_excluded = [false]
isolation = ["in_process", "model", "owner", "request"]
sandbox = []
admission = ["strict"]
anonymous_upload = [false]
verify_on_load = ["tags", "sha256"]
logging = ["no_content"]
"""


def _look(tpm: software_tpm.SoftwareTpm) -> tuple[str, dict[int, bytes]]:
    """The name of its attestation key, and its registers before anything was measured."""
    from strongroom.tee.tpm_device import Device

    device = Device(tpm.tcti)
    try:
        return hashlib.sha256(device.ak_public).hexdigest(), device.read_pcrs(_QUOTED)
    finally:
        device.close()


def test_a_store_goes_to_another_machine(tmp_path: Path) -> None:
    """The keys of both TPMs are in the policy, the code is in a manifest that an auditor signed."""
    from strongroom.tee.tpm import reference_value
    from strongroom.tee.tpm_device import BANK

    policy, key = tmp_path / "handover.toml", tmp_path / "owner.pem"
    key.write_bytes(new_key_pem())
    key.chmod(0o600)
    new_code = snapshot(tmp_path / "code")
    with (new_code / "strongroom" / "service.py").open("a") as file:
        file.write("# the next release\n")
    codes = (Path(__file__).resolve().parents[1], new_code)
    with software_tpm.software_tpm(tmp_path / "a") as a, software_tpm.software_tpm(tmp_path / "b") as b:
        looked = [_look(tpm) for tpm in (a, b)]
        auditor = AUDITOR.public_key().public_bytes_raw().hex()
        policy.write_text(POLICY.format(keys=json.dumps([ak for ak, _ in looked]), auditor=auditor))
        values = []
        for code, (_, registers) in zip(codes, looked, strict=True):
            planned = {**registers, 13: bytes.fromhex(reference_value(_measured(code, policy, tmp_path)))}
            values.append(
                ReferenceValue("tpm", pcr_measurement(BANK, planned), (("pcr13", planned[13].hex()),))
            )
        now = datetime.now(UTC).replace(microsecond=0)
        release = Release("acme/strongroom", "2", 1, now, now + timedelta(days=9), tuple(values))
        (tmp_path / "release.json").write_bytes(sign_release(release, (AUDITOR,)))

        digest = hashlib.sha256(policy.read_bytes()).hexdigest()
        client = parse_policy(policy.read_text() + f'handover = ["{digest}"]\n')
        old = _start(tmp_path / "old", a, policy, codes[0])
        try:
            with strongroom.connect(old.url, policy=client, key=str(key)) as connected:
                connected.upload_model(linear_onnx(), name="m")
            new = _start(tmp_path / "new", b, policy, codes[1], old)
            try:
                with strongroom.connect(new.url, policy=client, key=str(key)) as connected:
                    assert connected.model("m").run(ROWS).tolist() == (2 * ROWS).tolist()
                    connected.upload_model(linear_onnx(factor=3), name="m")
            finally:
                assert new.stop() == 0
            with (
                strongroom.connect(old.url, policy=client, key=str(key)) as connected,
                pytest.raises(Unavailable) as moved,
            ):
                connected.delete_model("m")
            assert moved.value.code == "store_moved"
        finally:
            assert old.stop() == 0


def _settings(policy: Path) -> str:
    return f'[security]\nhandover_policy = "{policy}"\n'


def _measured(code: Path, policy: Path, folder: Path) -> str:
    config = folder / "measure.toml"
    config.write_text(f'platform = "tpm"\n{_settings(policy)}')
    done = subprocess.run(
        [sys.executable, "-m", "strongroom.cli", "measure", "--config", str(config), "--json"],
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=code,
        timeout=120,
        check=True,
    )
    return str(json.loads(done.stdout)["measurement"])


def _start(
    folder: Path, tpm: software_tpm.SoftwareTpm, policy: Path, code: Path, old: Serving | None = None
) -> Serving:
    words = () if old is None else ("--from", old.url, "--state", str(old.state_dir))
    return start(
        folder,
        settings=f'endorsements = ["{policy.parent}/release.json"]\n[tpm]\ntcti = "{tpm.tcti}"\n{_settings(policy)}',
        environment={"STRONGROOM_PLATFORM": "tpm"},
        command=(sys.executable, "-m", "strongroom.cli", "serve" if old is None else "reseal", *words),
        cwd=code,
    )
