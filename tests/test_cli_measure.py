"""`strongroom measure`: reference values of every platform, and one manifest of them all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).resolve().parent / "attest"))
import fake_artefacts as fake
import fake_tpm

from strongroom.attest.releases import verify_release
from strongroom.cli import main
from strongroom.client import SYSTEM_CLOCK
from strongroom.errors import Failure
from strongroom.measure import Measurement
from strongroom.tee.rtmr import reference_value

DIGEST = "d1" * 32
CCEL = fake_tpm.event_log([(1, 4, b"firmware"), (2, 13, b"kernel")], banks=(fake_tpm.SHA384,), first=1)
FILES = {
    "enclave.sig": fake.sigstruct(),
    "firmware.fd": fake.firmware(),
    "kernel": b"kernel",
    "log": CCEL,
    "tpm-log": fake_tpm.event_log(fake_tpm.BOOT),
    "eif.json": fake.eif_json(),
}
WORDS = {
    "simulated": (),
    "sgx": ("--sigstruct", "enclave.sig"),
    "tdx": ("--firmware", "firmware.fd", "--event-log", "log", "--page-order", "page"),
    "snp": ("--firmware", "firmware.fd", "--kernel", "kernel", "--vcpus", "1", "--vcpu-type", "EPYC-Milan", "--vmm",
            "qemu", "--guest-features", "0x1"),
    "nitro": ("--eif-json", "eif.json"),
    "tpm": ("--event-log", "tpm-log"),
}  # fmt: skip
VALUES = {"simulated": DIGEST, "sgx": fake.MRENCLAVE.hex(), "nitro": fake.PCR0.hex()}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artefacts, and this code's own digest without hashing it."""
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    made = Measurement({"version": 1}, DIGEST, ())
    monkeypatch.setattr("strongroom.boot.planned_measurement", lambda _settings: made)
    return tmp_path


def run(platform: str, *words: str) -> Result:
    """The command's result."""
    return CliRunner().invoke(main, ["measure", "--platform", platform, *words], catch_exceptions=False)


@pytest.mark.parametrize("platform", sorted(WORDS))
def test_every_platform_has_a_value(platform: str) -> None:
    """For people, and as the document that `release sign` takes."""
    if platform == "snp":
        pytest.importorskip("sevsnpmeasure")
    shown = run(platform, *WORDS[platform])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[0] == DIGEST
    document = json.loads(run(platform, *WORDS[platform], "--json").stdout)
    assert document["platform"] == platform and document["measurement"] == DIGEST
    (value,) = document["reference_values"]
    assert value["format"] == {"simulated": "sim"}.get(platform, platform)
    assert value["measurement"] == VALUES.get(platform, value["measurement"])
    assert set(value["registers"]) >= {"tdx": {"rtmr3"}, "nitro": {"pcr1"}, "tpm": {"pcr13"}}.get(
        platform, set()
    )
    assert document["simulated"] == (platform == "simulated")
    if platform not in ("simulated", "tpm"):
        assert value["measurement"] in shown.stdout
    entry = run(platform, *WORDS[platform], "--policy").stdout
    assert entry.startswith(f"[[{value['format']}]]\n")
    assert platform == "tpm" or value["measurement"] in entry


@pytest.mark.parametrize("platform", ["sgx", "tdx", "snp", "nitro"])
def test_hardware_measures_what_the_build_made(platform: str) -> None:
    """Without that there is this code's digest, a note, and no entry."""
    shown = run(platform)
    assert (shown.exit_code, shown.stdout) == (0, f"{DIGEST}\n")
    assert "note:" in shown.stderr
    assert json.loads(run(platform, "--json").stdout)["reference_values"] == []
    assert run(platform, "--policy").exit_code == 20


@pytest.mark.parametrize(
    ("platform", "settings", "name", "value"),
    [
        ("tdx", "[tdx]\nextend_rtmr3 = true", "rtmr3", reference_value(DIGEST)),
        ("snp", '[snp]\nhost_data = "measurement"', "host_data", DIGEST),
    ],
)
def test_what_the_launch_has_to_say_of_the_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, platform: str, settings: str, name: str, value: str
) -> None:
    """RTMR3 or HOST_DATA, with and without the build's files; in a policy's entry; nothing where it is not demanded."""
    monkeypatch.setattr("strongroom.launch_digest.launch_digest", lambda _launch: "ab" * 48)
    monkeypatch.setattr("strongroom.launch_digest.vcpu_types", lambda: ("EPYC-Milan",))
    config = folder / "strongroom.toml"
    config.write_text(settings)
    demanded = ("--config", str(config))
    for words in ((), WORDS[platform]):
        assert value in run(platform, *words, *demanded).stdout.split()[1:]
        document = json.loads(run(platform, *words, *demanded, "--json").stdout)
        assert (document["registers"] | document["facts"])[name] == value
        assert name not in json.loads(run(platform, *words, "--json").stdout)["facts"]
    entry = run(platform, *WORDS[platform], *demanded, "--policy").stdout
    assert f'{"registers." if name == "rtmr3" else ""}{name} = ["{value}"]' in entry
    assert "host_data" not in run(platform, *WORDS[platform], "--policy").stdout

    def missing(_settings: object) -> Measurement:
        raise Failure("uvicorn is not installed", code="start_refused")

    monkeypatch.setattr("strongroom.boot.planned_measurement", missing)
    assert run(platform, *WORDS[platform], *demanded).exit_code == 1
    assert run(platform, *WORDS[platform]).exit_code == 0


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ("sgx", ("--eif-json", "eif.json")),
        ("simulated", ("--sigstruct", "enclave.sig")),
        ("tdx", ("--firmware", "firmware.fd")),
        ("tdx", ("--event-log", "log")),
        ("snp", WORDS["snp"][:-2]),
        ("snp", (*WORDS["snp"][:-1], "zz")),
        ("snp", (*WORDS["snp"][:-1], "1" * 17)),
        ("snp", (*WORDS["snp"][:7], "i386", *WORDS["snp"][8:])),
        ("snp", (*WORDS["snp"][:2], *WORDS["snp"][4:], "--cmdline", "ro")),
        ("sgx", ("--sigstruct", "absent")),
        ("sgx", ("--sigstruct", "kernel")),
        ("tdx", ("--firmware", "kernel", "--page-order", "page")),
        ("nitro", ("--eif-json", "kernel")),
        ("tpm", ("--event-log", "log")),
        ("riscv", ()),
    ],
)
def test_options_that_say_nothing_or_too_little(platform: str, words: tuple[str, ...]) -> None:
    """No default, and no file that is something else."""
    assert run(platform, *words).exit_code == 20


def test_without_the_servers_parts_hardware_still_has_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """An auditor with the client's install can read a SIGSTRUCT; this code's own digest takes the server's."""

    def missing(_settings: object) -> Measurement:
        raise Failure("uvicorn is not installed", code="start_refused")

    monkeypatch.setattr("strongroom.boot.planned_measurement", missing)
    shown = run("sgx", *WORDS["sgx"])
    assert shown.exit_code == 0 and fake.MRENCLAVE.hex() in shown.stdout
    assert json.loads(run("sgx", *WORDS["sgx"], "--json").stdout)["measurement"] is None
    assert run("simulated").exit_code == 1


def test_one_manifest_has_the_values_of_several_platforms(folder: Path) -> None:
    """What was measured is what is signed; what is incomplete is not."""
    CliRunner().invoke(main, ["keygen", "key.pem"])
    sign = [
        "release",
        "sign",
        "--key",
        "key.pem",
        "--product",
        "a/b",
        "--version",
        "1",
        "--svn",
        "1",
        "--days",
        "9",
    ]
    for platform in ("sgx", "tdx", "nitro", "tpm"):
        (folder / f"{platform}.json").write_text(run(platform, *WORDS[platform], "--json").stdout)
    measured = [word for name in ("sgx", "tdx", "nitro", "tpm") for word in ("--measured", f"{name}.json")]
    made = CliRunner().invoke(main, [*sign, *measured, "--out", "release.json", "--json"])
    assert made.exit_code == 0, made.output
    (key,) = json.loads(made.stdout)["release_keys"]
    release = verify_release((folder / "release.json").read_bytes(), keys=(key,), now=SYSTEM_CLOCK.now())
    assert [value.format for value in release.values] == ["sgx", "tdx", "nitro", "tpm"]
    assert release.values[0].measurement == fake.MRENCLAVE.hex()
    assert [name for name, _ in release.values[1].registers] == ["rtmr0", "rtmr1", "rtmr2", "rtmr3"]
    for text in ("[]", "{}", '{"reference_values": []}', '{"reference_values": [{}]}', "x",
                 '{"reference_values": [{"format": "sgx", "measurement": "zz", "registers": {}}]}',
                 '{"reference_values": [{"format": "sgx", "measurement": 1, "registers": {}}]}',
                 '{"reference_values": {"format": "sgx"}}'):  # fmt: skip
        (folder / "bad.json").write_text(text)
        assert (
            CliRunner().invoke(main, [*sign, "--measured", "bad.json", "--out", "no.json"]).exit_code == 20
        ), text
        assert not (folder / "no.json").exists()
