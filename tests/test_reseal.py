"""`strongroom reseal` across a changed measurement, between servers of their own processes: every model is kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from plane import linear_onnx
from serving import REPOSITORY, Serving, clean_environment, policy_text, root_digest, snapshot, start

import strongroom
from strongroom.attest.policy import policy_for_measurement
from strongroom.attester import load_or_create_root
from strongroom.errors import AttestationRefused, Unavailable
from strongroom.tokens import load_key, new_key_pem

pytestmark = pytest.mark.slow

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@dataclass
class World:
    """Two releases of the server under one simulated root, and an auditor who vouches for both."""

    folder: Path
    old_code: Path
    new_code: Path
    key: Path
    policy: Path
    recipient: str

    def settings(self, *, more: str = "") -> str:
        """What both servers are told: the hand-over policy, and the manifest that their evidence carries."""
        return (
            f'endorsements = ["{self.folder}/release.json"]\n'
            f'[simulated]\nroot_key = "{self.folder}/root.pem"\n'
            f'[security]\nhandover_policy = "{self.policy}"\nrecovery_recipient = "{self.recipient}"\n{more}'
        )

    def command(self, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """The command of a release, as a person runs it."""
        return subprocess.run(
            [sys.executable, "-m", "strongroom.cli", *map(str, words)],
            capture_output=True,
            text=True,
            env=clean_environment(),
            cwd=cwd,
            timeout=120,
            check=False,
        )

    def measurement(self, code: Path) -> str:
        """What a server of this code and these settings will be."""
        config = self.folder / "measure.toml"
        config.write_text(f'platform = "simulated"\n{self.settings()}')
        done = self.command("measure", "--config", config, "--json", cwd=code)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["measurement"])

    def client_policy(self, measurement: str, *, handover: str) -> Path:
        """A client's policy for one measurement, and one word on hand-over."""
        path = self.folder / f"client-{measurement[:8]}-{handover[:8]}.toml"
        text = policy_text(measurement=measurement, root=root_digest(self.folder / "root.pem"))
        text = text.replace('recovery = ["none"]', f'recovery = ["{self.recipient}"]')
        path.write_text(text.replace('handover = ["none"]', f'handover = ["{handover}"]'))
        return path

    def reseal(self, name: str, old: Serving, *, code: Path, settings: str | None = None) -> Serving:
        """`strongroom reseal`, which becomes the new server."""
        words = ("reseal", "--from", old.url, "--state", str(old.state_dir))
        return start(
            self.folder / name,
            settings=self.settings() if settings is None else settings,
            command=(sys.executable, "-m", "strongroom.cli", *words),
            cwd=code,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two releases: the second has one line more."""
    folder = tmp_path_factory.mktemp("reseal")
    (folder / "auditor.pem").write_bytes(new_key_pem())
    (folder / "owner.pem").write_bytes(new_key_pem())
    for name in ("auditor.pem", "owner.pem"):
        (folder / name).chmod(0o600)
    load_or_create_root(folder / "root.pem")
    auditor = load_key((folder / "auditor.pem").read_bytes()).public_key().public_bytes_raw().hex()
    text = policy_for_measurement(
        "00" * 32, root=root_digest(folder / "root.pem"), now=datetime.now(UTC)
    ).replace(
        f'measurements = ["{"00" * 32}"]',
        f'release_keys = ["{auditor}"]\nrelease_product = "acme/strongroom"\nmin_release_svn = 1',
    )
    (folder / "handover.toml").write_text(text)
    (folder / "release.json").write_text("{}")
    made = World(
        folder=folder,
        old_code=snapshot(folder / "old-code"),
        new_code=snapshot(folder / "new-code"),
        key=folder / "owner.pem",
        policy=folder / "handover.toml",
        recipient="",
    )
    made_key = made.command("recovery-key", "new", folder / "escrow.txt", "--json", cwd=REPOSITORY)
    made.recipient = json.loads(made_key.stdout)["recipient"]
    assert (folder / "escrow.txt").stat().st_mode & 0o777 == 0o600
    with (made.new_code / "strongroom" / "service.py").open("a") as file:
        file.write("# the next release\n")
    values = [
        w for code in (made.old_code, made.new_code) for w in ("--value", f"sim:{made.measurement(code)}")
    ]
    (folder / "release.json").unlink()
    signed = made.command(
        "release", "sign", "--key", folder / "auditor.pem", "--product", "acme/strongroom", "--version", "2",
        "--svn", "1", "--days", "30", *values, "--out", folder / "release.json", cwd=made.old_code,
    )  # fmt: skip
    assert signed.returncode == 0, signed.stderr
    yield made


def test_reseal_across_a_changed_measurement_keeps_every_model(world: World, tmp_path: Path) -> None:
    """One story, because each start takes seconds."""
    digest = hashlib.sha256(world.policy.read_bytes()).hexdigest()
    old = start(world.folder / "old", settings=world.settings(), cwd=world.old_code)
    accepting = world.client_policy(old.measurement, handover=digest)
    try:
        # Owners see it: a policy that names nobody refuses, and says what the server has.
        with pytest.raises(AttestationRefused, match=digest) as caught:
            strongroom.connect(old.url, policy=world.client_policy(old.measurement, handover="none"))
        assert caught.value.code == "security_handover_refused"
        with strongroom.connect(old.url, policy=accepting, key=world.key) as client:
            for factor in (2, 3):
                client.upload_model(linear_onnx(factor=factor), name=f"m{factor}")
            client.upload_model(linear_onnx(factor=4), name="m3")
            before, store_id = client.models(), client.store_id

        # Nobody is let in but by the policy: code that nobody vouches for gets nothing, and the old one goes on.
        strange = snapshot(tmp_path / "strange")
        with (strange / "strongroom" / "service.py").open("a") as file:
            file.write("# nobody read this\n")
        with pytest.raises(RuntimeError, match=r"ended with 10(?s:.*)handover_receiver_refused"):
            world.reseal("strange", old, code=strange)
        assert not (world.folder / "strange" / "state" / "store" / "state").exists()
        # The host changes the policy on the disk: the running server keeps to the measured one.
        genuine = world.policy.read_text()
        world.policy.write_text(genuine + "# and anybody\n")
        with strongroom.connect(old.url, policy=accepting, key=world.key) as client:
            client.upload_model(linear_onnx(factor=5), name="m5")
            before = client.models()
        world.policy.write_text(genuine)

        new = world.reseal("new", old, code=world.new_code)
        try:
            assert new.measurement != old.measurement
            policy = world.client_policy(new.measurement, handover=digest)
            with strongroom.connect(new.url, policy=policy, key=world.key) as client:
                assert [(m.id, m.sha256, m.owner) for m in client.models()] == [
                    (m.id, m.sha256, m.owner) for m in before
                ]
                assert client.store_id == store_id
                for name, factor in (("m2", 2), ("m3", 4), ("m5", 5)):
                    assert client.model(name).run(ROWS).tolist() == (factor * ROWS).tolist()
                client.upload_model(linear_onnx(factor=6), name="m2")
            # The old one answers, and changes nothing.
            with strongroom.connect(old.url, policy=accepting, key=world.key) as client:
                assert client.model("m2").run(ROWS).tolist() == (2 * ROWS).tolist()
                with pytest.raises(Unavailable) as moved:
                    client.delete_model("m2")
                assert moved.value.code == "store_moved"
        finally:
            assert new.stop() == 0
    finally:
        assert old.stop() == 0

    # The machine dies. With the recovery key, whose holder verifies it first, another server gets everything.
    rescue = start(world.folder / "rescue", settings=world.settings(), cwd=world.new_code)
    try:
        shutil.copytree(new.state_dir / "store" / "data", rescue.state_dir / "incoming")
        words = ("--identity", world.folder / "escrow.txt", "--state", new.state_dir, "--json")
        refusing = world.client_policy(old.measurement, handover=digest)
        refused = world.command("recover", rescue.url, "--policy", refusing, *words, cwd=world.new_code)
        assert refused.returncode == 10, refused.stdout
        recovered = world.command("recover", rescue.url, "--policy", policy, *words, cwd=world.new_code)
        assert recovered.returncode == 0, recovered.stdout + recovered.stderr
        assert json.loads(recovered.stdout) == {"versions": 5, "store": store_id, "simulated": True}
        with strongroom.connect(rescue.url, policy=policy, key=world.key) as client:
            assert client.model("m2").run(ROWS).tolist() == (6 * ROWS).tolist()
            assert client.model("m2", 1).run(ROWS).tolist() == (2 * ROWS).tolist()
            assert client.store_id != store_id
    finally:
        assert rescue.stop() == 0


def test_without_a_token_nothing_begins(world: World, tmp_path: Path) -> None:
    """A state folder of a server without a policy has none; the command says so, and starts nothing."""
    (tmp_path / "state" / "store" / "data").mkdir(parents=True)
    done = world.command(
        "reseal", "--config", tmp_path / "x.toml", "--from", "https://127.0.0.1:1", "--state", tmp_path / "state",
        cwd=world.new_code,
    )  # fmt: skip
    assert done.returncode == 20 and "no operator's token" in done.stderr
    done = world.command(
        "reseal", "--config", tmp_path / "x.toml", "--from", "https://127.0.0.1:1", "--state", tmp_path,
        cwd=world.new_code,
    )  # fmt: skip
    assert done.returncode == 20 and "not a server's state folder" in done.stderr
