"""A server on a live software TPM, end to end: enrolled, verified, refused by `production`; sealing and rollback over
resets of the machine.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import software_tpm
from click.testing import CliRunner, Result
from plane import linear_onnx
from serving import Serving, clean_environment, start

import strongroom
from strongroom.cli import main
from strongroom.errors import AttestationRefused
from strongroom.tokens import new_key_pem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(software_tpm.missing()), reason=software_tpm.missing() or "there is one"),
]


def strongroom_command(*words: object, platform: str = "") -> Result:
    """The command in this process: exit code and output are those of its own, which takes a second."""
    variables = {"STRONGROOM_PLATFORM": platform} if platform else {}
    return CliRunner().invoke(main, list(map(str, words)), env=variables, catch_exceptions=False)


def measured_start(*words: object) -> subprocess.CompletedProcess[str]:
    """A command that becomes a server's process."""
    return subprocess.run(
        [sys.executable, "-m", "strongroom.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=clean_environment({"STRONGROOM_PLATFORM": "tpm"}),
        timeout=120,
    )


@dataclass
class Machine:
    """A machine with a TPM, on which a server can be started once per reset."""

    folder: Path
    tpm: software_tpm.SoftwareTpm

    def start(self, *, settings: str = "") -> Serving:
        """`strongroom serve` on this TPM."""
        return start(
            self.folder / "server",
            settings=f'[tpm]\ntcti = "{self.tpm.tcti}"\n{settings}',
            environment={"STRONGROOM_PLATFORM": "tpm"},
        )

    def enrol(self, server: Serving, out: Path, *, root: Path | None = None) -> Result:
        """`strongroom tpm enrol`."""
        chain = ("--chain", self.tpm.issuer)
        return strongroom_command(
            "tpm", "enrol", server.url, "--root", root or self.tpm.root, *chain, "--out", out, "--json"
        )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine, for one story."""
    folder = tmp_path_factory.mktemp("machine")
    with software_tpm.software_tpm(folder / "tpm") as tpm:
        yield Machine(folder, tpm)


def test_a_server_on_a_tpm(machine: Machine, tmp_path: Path) -> None:
    """One story over three resets, because each start takes seconds."""
    policy, key = tmp_path / "policy.toml", tmp_path / "owner.pem"
    key.write_bytes(new_key_pem())
    key.chmod(0o600)

    # The first start: sealing root, attestation key and NV index are made.
    server = machine.start()
    log = server.log.read_text()
    assert "hides no memory from the host" in log and "SIMULATED" not in log

    # `production` refuses it, and so does a policy of trust on first use: nothing ties the key to a TPM.
    refused = strongroom_command("verify", server.url, "--policy", "production")
    assert refused.exit_code == 10, refused.stdout
    first_use = strongroom_command("policy", "init", server.url, "--out", tmp_path / "first.toml")
    assert first_use.exit_code == 10, first_use.stdout

    # Enrolment under a root that is not the TPM's is refused, under its own it writes the policy.
    foreign = _foreign_root(tmp_path)
    wrong = machine.enrol(server, tmp_path / "wrong.toml", root=foreign)
    assert wrong.exit_code == 10 and not (tmp_path / "wrong.toml").exists(), wrong.stdout
    enrolled = machine.enrol(server, policy)
    assert enrolled.exit_code == 0, enrolled.stderr + enrolled.stdout
    facts = json.loads(enrolled.stdout)
    assert f"attestation key {facts['key']}" in log and facts["tpm"] == "software"
    assert facts["key"] in policy.read_text()

    # From then on the policy alone decides, without a round trip.
    accepted = strongroom_command("verify", server.url, "--policy", policy, "--json")
    assert accepted.exit_code == 0, accepted.stdout
    claims = json.loads(accepted.stdout)["claims"]
    assert (claims["host_excluded"], claims["root"]) == (False, facts["key"])
    planned = strongroom_command("measure", "--config", server.config_path, "--json", platform="tpm")
    measured = json.loads(planned.stdout)
    assert measured["measurement"] == server.measurement and measured["simulated"] is False
    assert measured["registers"] == {"pcr13": claims["details"]["pcr13"]}
    with strongroom.connect(server.url, policy=str(policy), key=str(key)) as client:
        client.upload_model(linear_onnx(), name="m")
        kept = shutil.copytree(server.state_dir / "store", tmp_path / "kept")
        client.upload_model(linear_onnx(), name="n")
    assert server.stop() == 0

    # A second start without a reset of the machine gets no root.
    with pytest.raises(RuntimeError, match="tpm_unseal_refused"):
        machine.start()

    # After a reset: the same policy, the same models.
    machine.tpm.reset()
    server = machine.start()
    with strongroom.connect(server.url, policy=str(policy), key=str(key)) as client:
        assert {model.name for model in client.models()} == {"m", "n"}
    server.kill()

    # Another configuration is other code to the TPM.
    machine.tpm.reset()
    with pytest.raises(RuntimeError, match="tpm_unseal_refused"):
        machine.start(settings="[security]\nanonymous_upload = true")

    # An older copy of the whole store is refused at start; the newest one opens.
    machine.tpm.reset()
    newest = (server.state_dir / "store").rename(tmp_path / "newest")
    kept.rename(server.state_dir / "store")
    with pytest.raises(RuntimeError, match="store_rolled_back"):
        machine.start()
    shutil.rmtree(server.state_dir / "store")
    newest.rename(server.state_dir / "store")
    machine.tpm.reset()
    server = machine.start()
    with strongroom.connect(server.url, policy=str(policy), key=str(key)) as client:
        assert {model.name for model in client.models()} == {"m", "n"}

    # Another boot loader would be another machine to the policy.
    text = policy.read_text()
    assert 'registers.pcr4 = ["00' in text
    policy.write_text(text.replace('registers.pcr4 = ["00', 'registers.pcr4 = ["ff'))
    with pytest.raises(AttestationRefused) as caught:
        strongroom.connect(server.url, policy=str(policy))
    assert caught.value.code == "register_not_accepted"
    assert server.stop() == 0


def _foreign_root(folder: Path) -> Path:
    """The root certificate of another TPM's maker."""
    with software_tpm.software_tpm(folder / "foreign") as other:
        return Path(shutil.copy(other.root, folder / "foreign-root.pem"))


def test_a_store_on_a_tpm_is_checked_from_outside_or_by_a_measured_start(
    machine: Machine, tmp_path: Path
) -> None:
    """From outside its form alone, and that is no pass; `--start` reads everything, and spends this boot's start."""
    folder = tmp_path / "server"
    here = Machine(tmp_path, machine.tpm)
    config = folder / "strongroom.toml"

    def check(*words: str) -> tuple[int, list[tuple[str, bool, str]]]:
        # A reset takes another port.
        config.write_text(re.sub(r'tcti = ".*"', f'tcti = "{machine.tpm.tcti}"', config.read_text()))
        given = ("check", "--config", config, "--json", *words)
        if words:
            process = measured_start(*given)
            code, out, err = process.returncode, process.stdout, process.stderr
        else:
            done = strongroom_command(*given, platform="tpm")
            code, out, err = done.exit_code, done.stdout, done.stderr
        shown = json.loads(out or "{}")
        if "results" not in shown:
            return code, [("", False, out + err)]
        results = shown["results"]
        return code, [(r["subject"], r["passed"], r["code"]) for r in results]

    machine.tpm.reset()
    key = tmp_path / "owner.pem"
    key.write_bytes(new_key_pem())
    key.chmod(0o600)
    # The NV index of the story above is of another store: this one has its own.
    server = here.start(settings="nv_index = 0x01805355")
    assert here.enrol(server, tmp_path / "policy.toml").exit_code == 0
    with strongroom.connect(server.url, policy=str(tmp_path / "policy.toml"), key=str(key)) as client:
        client.upload_model(linear_onnx(), name="m")
    assert server.stop() == 0
    outside = [("record", True, ""), ("data files", True, ""), ("models", False, "tpm_launch_unmeasured")]
    assert check() == (10, outside)

    code, ((_, _, said),) = check("--start")  # this boot's start was the server's
    assert code == 10 and "tpm_unseal_refused" in said
    machine.tpm.reset()
    assert check("--start") == (
        0,
        [("record", True, ""), ("m version 1", True, ""), ("data files", True, "")],
    )
    # What shows from outside, and what does not.
    (file,) = (server.state_dir / "store" / "data").iterdir()
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert check() == (10, outside)
    file.write_bytes(b"x" + data[1:])
    assert check()[1][1:] == [
        (f"data file {file.name!r}", False, "seal_header"),
        ("data files", False, "seal_header"),
        ("models", False, "tpm_launch_unmeasured"),
    ]
