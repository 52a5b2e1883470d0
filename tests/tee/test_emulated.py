"""Emulated SGX, TDX and SEV-SNP behind real system calls (FUSE): the attesters' own calls, and a whole server with a
whole client on each. The vendors are test vendors: with the real roots, which is all that is ever pinned outside these
processes, every one of these servers is refused.
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import mounts
import pytest
from plane import linear_onnx
from serving import Serving, clean_environment, start

import strongroom
from strongroom import keys, platforms
from strongroom.attest import verifiers
from strongroom.attester import Attester
from strongroom.errors import AttestationRefused, Failure, InvalidConfig, Unavailable
from strongroom.platforms import Paths
from strongroom.tee.sev_guest import derive_key
from strongroom.tee.sgx import SgxAttester
from strongroom.tee.tsm import ReportInterface, SnpAttester, TdxAttester
from strongroom.tokens import new_key_pem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(mounts.missing()), reason=mounts.missing() or "it can"),
]
DATA = bytes(range(64))


@pytest.fixture(scope="module", params=["sgx", "tdx", "snp"])
def tee(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[mounts.Mounted]:
    """Each TEE, mounted once."""
    with mounts.mounted(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


def paths(tee: mounts.Mounted) -> Paths:
    """Where its interfaces are."""
    return Paths(**{name: Path(path) for name, path in tee.paths().items()})


def attester(tee: mounts.Mounted) -> Attester:
    """The attester under test, on it."""
    where = paths(tee)
    if tee.kind == "sgx":
        return SgxAttester(where.attestation, seal_to="measurement")
    reports = ReportInterface(where.reports, provider="tdx_guest" if tee.kind == "tdx" else "sev_guest")
    if tee.kind == "tdx":
        return TdxAttester(reports, operator_key=keys.operator_root(bytes(range(32))))
    return SnpAttester(reports, derive=lambda level: derive_key(where.sev_guest, level=level))


def test_auto_finds_it(tee: mounts.Mounted) -> None:
    """By the files that are there, and no entry is left behind."""
    assert platforms.resolve("auto", paths=paths(tee)) == tee.kind


def test_evidence_and_root_come_through_real_system_calls(tee: mounts.Mounted) -> None:
    """Evidence carries what was asked for; the root is the same each time."""
    one = attester(tee)
    assert DATA in one.evidence(DATA, now=datetime.now(UTC)).data
    assert one.sealing_root().secret == attester(tee).sealing_root().secret


def test_errors_of_the_kernel_are_met(tee: mounts.Mounted) -> None:
    """Busy and slow platforms are asked again; a quoting service that fails is said to be unavailable."""
    one, now = attester(tee), datetime.now(UTC)
    if tee.kind == "sgx":
        tee.fail(quote=[errno.EACCES])
        with pytest.raises(Unavailable):
            one.evidence(DATA, now=now)
        assert DATA in one.evidence(DATA, now=now).data
        return
    tee.fail(outblob=[errno.EBUSY, errno.ETIMEDOUT], inblob=[errno.EBUSY])
    assert DATA in one.evidence(DATA, now=now).data
    tee.fail(racers=1)
    assert DATA in one.evidence(DATA, now=now).data
    tee.fail(outblob=[errno.EIO])
    with pytest.raises(Unavailable):
        one.evidence(DATA, now=now)
    tee.fail(mkdir=[errno.ENXIO])
    with pytest.raises(InvalidConfig, match="ENXIO"):
        one.evidence(DATA, now=now)
    reports = ReportInterface(paths(tee).reports, provider="tdx_guest" if tee.kind == "tdx" else "sev_guest")
    with pytest.raises(Unavailable, match="EINVAL"):  # a short inblob shows at the report
        reports.ask(bytes(32))
    with pytest.raises(Unavailable, match="EFBIG"):  # a long one at the write
        reports.ask(bytes(65))
    assert DATA in one.evidence(DATA, now=now).data


def test_a_derived_key_needs_the_guests_message_key(tee: mounts.Mounted) -> None:
    """ENOTTY once it was wiped, EIO for the firmware's refusal; then the key again, the same one."""
    if tee.kind != "snp":
        return
    device = paths(tee).sev_guest
    before = derive_key(device, level=0)
    assert before != derive_key(device, level=1)
    for error in (errno.ENOTTY, errno.EIO):
        tee.fail(ioctl=[error])
        with pytest.raises(Failure, match=errno.errorcode[error]) as caught:
            derive_key(device, level=0)
        assert caught.value.code == "sealing_root_unavailable"
    assert derive_key(device, level=0) == before
    with pytest.raises(Failure):
        derive_key(device.with_name("absent"), level=0)


def serve(tee: mounts.Mounted, folder: Path, world: Path) -> Serving:
    """A server with `platform = "auto"` on it."""
    wrapper = str(Path(__file__).with_name("patched.py"))
    lines = [f'endorsements = ["{tee.endorsements}/dcap.json"]'] if tee.kind != "snp" else []
    lines += ['[security]\nisolation = "in_process"'] if tee.kind == "sgx" else []
    return start(
        folder,
        settings="\n".join(lines),
        environment={"STRONGROOM_PLATFORM": "auto"},
        command=(sys.executable, wrapper, "serve", str(world)),
    )


def test_a_server_and_a_client_on_it(
    tee: mounts.Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by `auto`, verified by the command, a model that survives a restart; and refused under real roots."""
    world, policy, key = tmp_path / "world.json", tmp_path / "policy.toml", tmp_path / "owner.pem"
    world.write_text(json.dumps({"format": tee.kind, "roots": tee.roots, "paths": tee.paths()}))
    key.write_bytes(new_key_pem())
    key.chmod(0o600)
    if tee.kind == "tdx":
        operator = tmp_path / "server" / "state" / "operator-key"
        operator.parent.mkdir(parents=True)
        operator.write_text("0f" * 32)
        operator.chmod(0o600)
    server = serve(tee, tmp_path / "server", world)

    def command(*words: object) -> int:
        wrapper = [sys.executable, str(Path(__file__).with_name("patched.py")), "command", str(world)]
        run = subprocess.run(
            [*wrapper, *map(str, words)], capture_output=True, text=True, timeout=120, env=clean_environment()
        )
        print(run.stdout[-3000:], run.stderr[-3000:])
        return run.returncode

    assert platforms.PLATFORMS[tee.kind].title in server.log.read_text()
    assert command("policy", "init", server.url, "--out", policy) == 0
    assert command("verify", server.url, "--policy", policy) == 0
    for refusing in (str(policy), "production"):  # this process pins the real roots
        with pytest.raises(AttestationRefused):
            strongroom.connect(server.url, policy=refusing)
    monkeypatch.setitem(verifiers.PINS, tee.kind, tee.roots)
    with pytest.raises(AttestationRefused):  # and `production` names no code
        strongroom.connect(server.url, policy="production")
    with strongroom.connect(server.url, policy=str(policy), key=str(key)) as client:
        assert client.attestation.label == ""
        assert client.attestation.claims is not None and client.attestation.claims.host_excluded
        client.upload_model(linear_onnx(), name="m")
    assert server.stop() == 0
    if tee.kind == "tdx":
        return  # its root is a file, and starts take seconds
    server = serve(tee, tmp_path / "server", world)
    with strongroom.connect(server.url, policy=str(policy), key=str(key)) as client:
        assert [model.name for model in client.models()] == ["m"]
    assert server.stop() == 0
