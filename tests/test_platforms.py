"""`platforms`: `auto` finds a TEE or refuses, and what a platform's configuration says is looked up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "tee"))
from emulators import ConfigTsm, direct

from strongroom import boot, planned, platforms
from strongroom.attest.keyset import SEALING
from strongroom.attest.verifiers import VERIFIERS
from strongroom.config import SETTINGS, Config, Security, Sgx
from strongroom.errors import InvalidConfig
from strongroom.platforms import PLATFORMS, Paths, resolve


def paths(folder: Path) -> Paths:
    """Interfaces below a test's folder, where there are none yet."""
    return Paths(
        attestation=folder / "attestation",
        reports=folder / "report",
        sev_guest=folder / "sev-guest",
        nsm=folder / "nsm",
        td_registers=folder / "measurements",
    )


def test_without_a_tee_auto_refuses(tmp_path: Path) -> None:
    """It never falls back to simulation, and says how to ask for it."""
    with pytest.raises(InvalidConfig, match='platform = "simulated"') as caught:
        resolve("auto", paths=paths(tmp_path))
    assert caught.value.code == "platform_not_found"


@pytest.mark.parametrize("name", sorted(PLATFORMS))
def test_a_name_is_taken_at_its_word(name: str, tmp_path: Path) -> None:
    """Whether it is there shows when it is opened: a measurement can be planned on another machine."""
    assert resolve(name, paths=paths(tmp_path)) == name


def test_sgx_is_found_by_its_attestation_type(tmp_path: Path) -> None:
    """The folder alone is there without SGX too."""
    where = paths(tmp_path)
    where.attestation.mkdir()
    kind = where.attestation / "attestation_type"
    kind.write_bytes(b"dcap")
    assert resolve("auto", paths=where) == "sgx"
    for other in (b"none", b"dcap\n", b""):
        kind.write_bytes(other)
        with pytest.raises(InvalidConfig):
            resolve("auto", paths=where)


@pytest.mark.parametrize(
    ("provider", "found"), [("tdx_guest", "tdx"), ("sev_guest", "snp"), ("arm_cca_guest", None), (None, None)]
)
def test_confidential_machines_are_found_by_their_provider(provider: str | None, found: str | None) -> None:
    """A provider that is not known here, or none, is no platform; no entry is left behind."""
    emulator = ConfigTsm(lambda data: b"", provider=provider)
    where = Paths(attestation=Path("/nowhere"), reports=Path("/reports"))

    with direct(emulator, where.reports) as root, pytest.MonkeyPatch.context() as patch:
        text = lambda self, encoding: emulator.read(self.relative_to(root).as_posix()).decode()  # noqa: E731
        patch.setattr(Path, "read_text", text)
        if found is None:
            with pytest.raises(InvalidConfig):
                resolve("auto", paths=where)
        else:
            assert resolve("auto", paths=where) == found
    assert not emulator.entries


def test_an_enclave_of_nitros_is_found_by_its_device(tmp_path: Path) -> None:
    """After the others: nothing else has such a device."""
    where = paths(tmp_path)
    where.nsm.write_bytes(b"")
    assert resolve("auto", paths=where) == "nitro"
    where.attestation.mkdir()
    (where.attestation / "attestation_type").write_bytes(b"dcap")
    assert resolve("auto", paths=where) == "sgx"


def test_every_platform_can_be_asked_for_and_verified() -> None:
    """The setting's choices are the table's names; each has a verifier and a known sealing class."""
    choices = next(s for s in SETTINGS if s.key == "platform").choices
    assert set(choices) == {"auto", *PLATFORMS}
    for platform in PLATFORMS.values():
        assert platform.format in VERIFIERS
        assert platform.sealing in SEALING


IN_PROCESS = Security(isolation="in_process")


@pytest.mark.parametrize("name", sorted(PLATFORMS))
def test_the_attested_configuration_says_what_the_platform_is(name: str) -> None:
    """Only hardware that hides memory claims to; only the simulated TEE seals by simulation."""
    security = boot.security_configuration(Config(platform=name, security=IN_PROCESS))
    assert security.host_excluded == (name in ("sgx", "tdx", "snp", "nitro"))
    assert (security.sealing == "simulated") == (name == "simulated")
    if name in ("tdx", "nitro"):
        assert security.sealing == "operator"


def test_sealing_to_the_signer_is_attested() -> None:
    """A policy that wants `measurement` refuses it."""
    settings = Config(platform="sgx", sgx=Sgx(seal_to="signer"), security=IN_PROCESS)
    assert boot.security_configuration(settings).sealing == "signer"
    settings = Config(platform="sgx", security=IN_PROCESS)
    assert boot.security_configuration(settings).sealing == "measurement"


def test_isolation_is_attested_with_the_layers_that_it_takes() -> None:
    """As the settings say, wherever they are looked at; in one process there are none."""
    usual = boot.security_configuration(Config(platform="tdx"))
    assert (usual.isolation, usual.sandbox) == ("owner", planned.FEWEST)
    more = Security(isolation="request", sandbox=("uid", *planned.FEWEST))
    security = boot.security_configuration(Config(platform="tdx", security=more))
    assert (security.isolation, security.sandbox) == ("request", (*planned.FEWEST, "uid"))
    security = boot.security_configuration(Config(platform="sgx", security=IN_PROCESS))
    assert (security.isolation, security.sandbox) == ("in_process", ())


@pytest.mark.parametrize(
    ("platform", "security", "code"),
    [
        ("sgx", Security(), "isolation_unsupported"),
        ("sgx", Security(isolation="request"), "isolation_unsupported"),
        ("tdx", Security(isolation="in_process", admission="permissive"), "isolation_unsupported"),
        ("tdx", Security(sandbox=("rlimits", "uid")), "isolation_unsupported"),
        ("tdx", Security(sandbox=()), "isolation_unsupported"),
        ("tdx", Security(sandbox=(*planned.FEWEST, "prayer")), "config_out_of_range"),
    ],
)
def test_isolation_that_cannot_be_is_no_configuration(platform: str, security: Security, code: str) -> None:
    """An enclave has no processes; one process for all needs strict admission; a sandbox has its least layers."""
    with pytest.raises(InvalidConfig, match=r"security\.") as caught:
        boot.security_configuration(Config(platform=platform, security=security))
    assert caught.value.code == code


def test_auto_is_settled_before_it_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no TEE is found nothing is attested at all."""
    monkeypatch.setattr(platforms, "PATHS", paths(tmp_path))
    with pytest.raises(InvalidConfig) as caught:
        boot.security_configuration(Config())
    assert caught.value.code == "platform_not_found"
