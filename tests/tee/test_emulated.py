"""Emulated SGX, TDX, SEV-SNP and Nitro behind real system calls (FUSE): the attesters' own calls, and a whole server
with a whole client on each. The vendors are test vendors: with the real roots, which is all that is ever pinned outside
these processes, every one of these servers is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mounts
import pytest
from click.testing import CliRunner
from plane import linear_onnx
from serving import Serving, start

import strongroom
from strongroom import keys, platforms
from strongroom.attest import verifiers
from strongroom.attester import Attester
from strongroom.cli import main
from strongroom.errors import AttestationRefused, Failure, InvalidConfig, Refused, Unavailable
from strongroom.platforms import Paths
from strongroom.tee import rtmr
from strongroom.tee.files import write_value
from strongroom.tee.nitro import NitroAttester
from strongroom.tee.sev_guest import derive_key
from strongroom.tee.sgx import SgxAttester
from strongroom.tee.tsm import ReportInterface, SnpAttester, TdxAttester
from strongroom.tokens import new_key_pem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(mounts.missing()), reason=mounts.missing() or "it can"),
]
DATA = bytes(range(64))


@pytest.fixture(scope="module", params=["sgx", "tdx", "snp", "nitro"])
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
    if tee.kind == "nitro":
        return NitroAttester(where.nsm, operator_key=keys.operator_root(bytes(range(32))))
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
    if tee.kind == "nitro":
        tee.fail(ioctl=[errno.EBUSY, errno.ETIMEDOUT, errno.EINTR])
        assert DATA in one.evidence(DATA, now=now).data
        for error, family in (
            (errno.EIO, Unavailable),
            (errno.EMSGSIZE, Unavailable),
            (errno.EPERM, InvalidConfig),
        ):
            tee.fail(ioctl=[error])
            with pytest.raises(family, match=errno.errorcode[error]):
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
    tee.fail(ioctl=[errno.EAGAIN, errno.ETIMEDOUT])
    assert derive_key(device, level=0) == before
    for error in (errno.ENOTTY, errno.EIO):
        tee.fail(ioctl=[error])
        with pytest.raises(Failure, match=errno.errorcode[error]) as caught:
            derive_key(device, level=0)
        assert caught.value.code == "sealing_root_unavailable"
    assert derive_key(device, level=0) == before
    with pytest.raises(Failure):
        derive_key(device.with_name("absent"), level=0)


def test_rtmr3_is_extended_once_by_a_whole_event(tmp_path: Path) -> None:
    """Real writes: EINVAL for a part, the value that a quote then shows, a second start that extends nothing, and
    other code that is refused.
    """
    with mounts.mounted("tdx", tmp_path) as tee:
        folder = paths(tee).td_registers
        for part in (b"", bytes(47), bytes(49)):
            with pytest.raises(OSError, match="Invalid argument") if part else contextlib.nullcontext():
                write_value(folder / rtmr.REGISTER, part)
        for _ in range(2):
            rtmr.measure_into(folder, "0a" * 32)
        shown = attester(tee)
        assert isinstance(shown, TdxAttester)
        rtmr.check_launched(shown.rtmr3, "0a" * 32)
        with pytest.raises(Refused):
            rtmr.measure_into(folder, "0b" * 32)
        with pytest.raises(Refused):
            rtmr.check_launched(shown.rtmr3, "0b" * 32)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One signed manifest with the reference values of all four, and its key: enclaves' are computed from what their
    builds made, machines' are as the test vendors have them.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attest"))
    import fake_amd
    import fake_artefacts
    import fake_intel

    folder = tmp_path_factory.mktemp("release")

    def command(*words: object) -> str:
        done = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    made = {
        "enclave.sig": fake_artefacts.sigstruct(),
        "eif.json": fake_artefacts.eif_json(PCR1="00" * 48, PCR2="00" * 48),
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    registers = {f"rtmr{i}": fake_intel.TD_BODY.get(f"rtmr{i}", bytes(48)).hex() for i in range(3)}
    registers["rtmr3"] = printed(folder, "tdx")["registers"]["rtmr3"]
    td = {"format": "tdx", "measurement": fake_intel.TD_BODY["mr_td"].hex(), "registers": registers}
    (folder / "tdx.json").write_text(json.dumps({"reference_values": [td]}))
    in_process = folder / "sgx.toml"
    in_process.write_text('[security]\nisolation = "in_process"')  # an enclave starts with nothing else
    for name, option, file in (("sgx", "--sigstruct", "enclave.sig"), ("nitro", "--eif-json", "eif.json")):
        given = ("--config", in_process) if name == "sgx" else ()
        text = command("measure", *given, "--platform", name, option, folder / file, "--json")
        (folder / f"{name}.json").write_text(text)
    key, out = folder / "key.pem", folder / "release.json"
    command("keygen", key)
    signed = command(
        "release", "sign", "--key", key, "--product", "acme/strongroom", "--version", "1.0", "--svn", 1, "--days", 9,
        *(word for name in ("sgx", "tdx", "nitro") for word in ("--measured", folder / f"{name}.json")),
        "--value", f"snp:{fake_amd.MEASUREMENT.hex()}", "--out", out, "--json",
    )  # fmt: skip
    return out, json.loads(signed)["release_keys"][0]


LAUNCH = {"tdx": "[tdx]\nextend_rtmr3 = true", "snp": '[snp]\nhost_data = "measurement"'}
"""Settings by which the code itself stands in the evidence."""


def printed(folder: Path, kind: str) -> dict[str, Any]:
    """What `strongroom measure` says of a server with these settings."""
    config = folder / f"measured-{kind}.toml"
    config.write_text(LAUNCH[kind])
    words = ["measure", "--platform", kind, "--config", str(config), "--json"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def by_signer(policy: str, key: str, *, svn: int = 1) -> str:
    """The policy with the signer of releases in place of the build."""
    without = re.sub(
        r"^(measurements|signers|products|registers\.\w+) = .*\n", "", policy, flags=re.MULTILINE
    )
    named = f'release_keys = ["{key}"]\nrelease_product = "acme/strongroom"\nmin_release_svn = {svn}\n'
    return re.sub(r"^(\[\[\w+\]\]\n)", rf"\1{named}", without, flags=re.MULTILINE)


def serve(tee: mounts.Mounted, folder: Path, world: Path, more: str = "") -> Serving:
    """A server with `platform = "auto"` on it."""
    wrapper = str(Path(__file__).with_name("patched.py"))
    lines = [f'endorsements = ["{tee.endorsements}/dcap.json"]'] if tee.kind in ("sgx", "tdx") else []
    lines += ['[security]\nisolation = "in_process"'] if tee.kind == "sgx" else []
    lines += [LAUNCH.get(tee.kind, ""), more]
    return start(
        folder,
        settings="\n".join(lines),
        environment={"STRONGROOM_PLATFORM": "auto"},
        command=(sys.executable, wrapper, "serve", str(world)),
    )


def test_a_server_and_a_client_on_it(
    tee: mounts.Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: tuple[Path, str]
) -> None:
    """Found by `auto`, verified by the command, also by who signed its release; a model that survives a restart; and
    refused under real roots.
    """
    world, policy, key = tmp_path / "world.json", tmp_path / "policy.toml", tmp_path / "owner.pem"
    world.write_text(json.dumps({"format": tee.kind, "roots": tee.roots, "paths": tee.paths()}))
    key.write_bytes(new_key_pem())
    key.chmod(0o600)
    if tee.kind in ("tdx", "nitro"):
        operator = tmp_path / "server" / "state" / "operator-key"
        operator.parent.mkdir(parents=True)
        operator.write_text("0f" * 32)
        operator.chmod(0o600)
    if tee.kind == "snp":
        with pytest.raises(RuntimeError, match="host_data_mismatch"):  # launched for nobody's code
            serve(tee, tmp_path / "server", world)
        tee.fail(host_data=printed(tmp_path, "snp")["facts"]["host_data"])
    server = serve(tee, tmp_path / "server", world)

    def command(*words: object) -> int:
        """The command's exit code, where its process pins the test vendor."""
        with pytest.MonkeyPatch.context() as pinned:
            pinned.setitem(verifiers.PINS, tee.kind, tee.roots)
            done = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
        print(done.stdout[-3000:], done.stderr[-3000:])
        return done.exit_code

    assert platforms.PLATFORMS[tee.kind].title in server.log.read_text()
    assert command("policy", "init", server.url, "--out", policy) == 0
    assert command("verify", server.url, "--policy", policy) == 0
    assert command("verify", server.url, "--policy", "production") == 10  # it names no code
    for refusing in (str(policy), "production"):  # under the real roots
        with pytest.raises(AttestationRefused):
            strongroom.connect(server.url, policy=refusing)
    monkeypatch.setitem(verifiers.PINS, tee.kind, tee.roots)
    with pytest.raises(AttestationRefused):  # and `production` names no code
        strongroom.connect(server.url, policy="production")
    with strongroom.connect(server.url, policy=str(policy), key=str(key)) as client:
        assert client.attestation.label == ""
        assert client.attestation.claims is not None and client.attestation.claims.host_excluded
        client.upload_model(linear_onnx(), name="m")
    manifest, signer = release
    signed, stricter = tmp_path / "signed.toml", tmp_path / "stricter.toml"
    signed.write_text(by_signer(policy.read_text(), signer))
    stricter.write_text(by_signer(policy.read_text(), signer, svn=2))
    with strongroom.connect(server.url, policy=str(signed), endorsements=(manifest,)) as client:
        assert client.attestation.passed
    for by, given in ((signed, ()), (stricter, (manifest,))):
        with pytest.raises(AttestationRefused) as caught:
            strongroom.connect(server.url, policy=str(by), endorsements=given)
        assert caught.value.code == "release_not_accepted"
    assert server.stop() == 0
    if tee.kind == "tdx":
        with pytest.raises(RuntimeError, match="RTMR3 holds"):  # another configuration, in the same TD
            serve(tee, tmp_path / "other", world, '[security]\nverify_on_load = "sha256"')
    if tee.kind in ("tdx", "nitro"):
        return  # their root is a file, and starts take seconds
    server = serve(tee, tmp_path / "server", world)
    with strongroom.connect(server.url, policy=str(policy), key=str(key)) as client:
        assert [model.name for model in client.models()] == ["m"]
    assert server.stop() == 0
