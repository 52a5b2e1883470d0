"""`doctor`: what a machine offers, from its files alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY

from strongroom.cli import main
from strongroom.doctor import Report, confinement, examine
from strongroom.errors import Failure
from strongroom.platforms import PLATFORMS
from strongroom.sandbox import LAYERS

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def looked(root: Path, *, release: str = "6.8.0-31", now: datetime = NOW, have: bool = False) -> Report:
    """What is found on the machine below `root`."""
    return examine(root, release=release, now=now, have=lambda _name: have)


def state(report: Report, name: str) -> str:
    """The state of one finding."""
    return next(f.state for f in report.findings if f.name == name)


def put(root: Path, **files: str) -> None:
    """Files below the root; `__` stands for a slash, `_D_` for a dash."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_D_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_an_empty_machine_has_nothing_and_is_told_what_to_do(tmp_path: Path) -> None:
    """Everything is missing; where something can be done, it says what."""
    report = looked(tmp_path)
    assert report.platform is None
    assert {f.state for f in report.findings if f.name not in ("kernel", "clock")} == {"missing"}
    assert report.at == NOW
    assert all(f.how for f in report.findings if f.name in ("platform", "TPM", "tpm2-pytss", "configfs-tsm"))


def test_an_enclave_of_gramine(tmp_path: Path) -> None:
    """`auto` takes it; without DCAP, or without SGX, it is limited."""
    put(tmp_path, dev__attestation__attestation_type="dcap")
    report = looked(tmp_path)
    assert (report.platform, state(report, "Gramine"), state(report, "platform")) == ("sgx", "there", "there")
    put(tmp_path, dev__attestation__attestation_type="none")
    assert (looked(tmp_path).platform, state(looked(tmp_path), "Gramine")) == (None, "limited")
    (tmp_path / "dev/attestation/attestation_type").unlink()
    assert state(looked(tmp_path), "Gramine") == "limited"


def test_devices_and_flags(tmp_path: Path) -> None:
    """A processor that has SGX without devices wants its firmware; a guest without its device a module."""
    put(tmp_path, proc__cpuinfo="processor : 0\nflags\t\t: fpu sgx sev_snp\n")
    report = looked(tmp_path)
    assert (state(report, "SGX"), state(report, "SEV-SNP guest")) == ("limited", "limited")
    put(tmp_path, dev__sgx_enclave="", dev__sgx_provision="", dev__sev_D_guest="", dev__tdx_guest="")
    report = looked(tmp_path)
    assert (state(report, "SGX"), state(report, "SEV-SNP guest"), state(report, "TDX guest")) == (
        "there",
    ) * 3


@pytest.mark.parametrize(
    ("release", "expected"),
    [("6.8.0-31", "there"), ("6.7", "there"), ("6.6.99", "limited"), ("odd", "limited")],
)
def test_the_kernel_has_to_be_recent_for_confidential_machines(
    release: str, expected: str, tmp_path: Path
) -> None:
    """configfs-tsm came with 6.7."""
    assert state(looked(tmp_path, release=release), "kernel") == expected


def test_configfs_is_told_apart_from_its_provider(tmp_path: Path) -> None:
    """Not mounted; mounted, and nobody there; a folder for reports."""
    report = looked(tmp_path)
    assert "mount" in next(f.how for f in report.findings if f.name == "configfs-tsm")
    put(tmp_path, sys__kernel__config__other="")
    report = looked(tmp_path)
    assert "modprobe" in next(f.how for f in report.findings if f.name == "configfs-tsm")
    assert "6.7" in next(
        f.how for f in looked(tmp_path, release="6.1.0").findings if f.name == "configfs-tsm"
    )
    (tmp_path / "sys/kernel/config/tsm/report").mkdir(parents=True)
    assert state(looked(tmp_path), "configfs-tsm") == "there"


def test_a_tpm_has_to_be_2_0(tmp_path: Path) -> None:
    """1.2 knows none of the commands."""
    put(tmp_path, dev__tpmrm0="", sys__class__tpm__tpm0__tpm_version_major="2\n")
    report = looked(tmp_path, have=True)
    assert (state(report, "TPM"), state(report, "tpm2-pytss")) == ("there", "there")
    assert report.platform is None  # `auto` does not take a TPM
    put(tmp_path, sys__class__tpm__tpm0__tpm_version_major="1\n")
    assert state(looked(tmp_path), "TPM") == "limited"


def test_a_clock_before_this_version_is_wrong(tmp_path: Path) -> None:
    """Policies expire by it."""
    assert state(looked(tmp_path, now=datetime(1970, 1, 1, tzinfo=UTC)), "clock") == "limited"


def test_layers(tmp_path: Path) -> None:
    """As the kernel states them."""
    put(
        tmp_path,
        proc__sys__kernel__seccomp__actions_avail="kill errno allow",
        sys__kernel__security__lsm="capability,landlock,yama",
        proc__sys__user__max_user_namespaces="1000",
    )
    report = looked(tmp_path)
    assert {state(report, n) for n in ("seccomp", "Landlock", "user namespaces")} == {"there"}


def test_an_enclave_of_nitros(tmp_path: Path) -> None:
    """`auto` takes it."""
    put(tmp_path, dev__nsm="")
    report = looked(tmp_path)
    assert (report.platform, state(report, "Nitro enclave")) == ("nitro", "there")


SPACES = "proc__sys__user__max_user_namespaces"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({SPACES: "0"}, "missing"),
        ({SPACES: "9"}, "there"),
        ({SPACES: "9", "proc__sys__kernel__unprivileged_userns_clone": "0"}, "limited"),
        ({SPACES: "9", "proc__sys__kernel__apparmor_restrict_unprivileged_userns": "1"}, "limited"),
    ],
)
def test_distributions_take_user_namespaces_away_in_three_ways(
    files: dict[str, str], expected: str, tmp_path: Path
) -> None:
    """By number, by Debian's switch, by AppArmor."""
    put(tmp_path, **files)
    assert state(looked(tmp_path), "user namespaces") == expected


def test_cgroups_of_version_2_with_their_controllers(tmp_path: Path) -> None:
    """Version 1, and a controller that was not delegated, are limited."""
    (tmp_path / "sys/fs/cgroup/memory").mkdir(parents=True)
    assert state(looked(tmp_path), "cgroup") == "limited"
    controllers = tmp_path / "sys/fs/cgroup/cgroup.controllers"
    controllers.write_text("cpu memory")
    assert state(looked(tmp_path), "cgroup") == "limited"
    assert "pids" in next(f.how for f in looked(tmp_path).findings if f.name == "cgroup")
    controllers.write_text("cpu memory pids")
    assert state(looked(tmp_path), "cgroup") == "there"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("always [madvise] never", "there"), ("always madvise [never]", "limited"), ("", "missing")],
)
def test_huge_pages(text: str, expected: str, tmp_path: Path) -> None:
    """As the kernel's file marks them."""
    put(
        tmp_path, sys__kernel__mm__transparent_hugepage__enabled=text, proc__meminfo="HugePages_Total:   12\n"
    )
    report = looked(tmp_path)
    assert state(report, "huge pages") == expected
    assert "reserved: 12" in next(f.detail for f in report.findings if f.name == "huge pages")


def test_the_document_for_machines_keeps_to_its_schema() -> None:
    """docs/doctor.schema.json is published, and says no to what is not of its form."""
    schema = json.loads((REPOSITORY / "docs" / "doctor.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)
    validator.validate(document)
    finding = document["findings"][0]
    for broken in (
        document | {"platform": "riscv"},
        document | {"more": 1},
        document | {"findings": []},
        document | {"findings": [finding | {"state": "unknown"}]},
        document | {"findings": [{k: v for k, v in finding.items() if k != "how"}]},
    ):
        assert not validator.is_valid(broken)
    assert set(schema["properties"]["platform"]["enum"]) == {
        None,
        *(name for name, platform in PLATFORMS.items() if platform.host_excluded),
    }


@pytest.mark.parametrize(
    ("held", "expected"), [(LAYERS, "there"), (("rlimits", "seccomp"), "limited"), ((), "limited")]
)
def test_the_sandbox_is_named_layer_by_layer(held: tuple[str, ...], expected: str) -> None:
    """What takes hold, and what does not."""
    found = confinement(lambda: held, layers=LAYERS)
    assert found.state == expected
    assert all(layer in found.detail for layer in LAYERS)
    assert bool(found.how) == (expected == "limited")


def test_a_sandbox_that_cannot_be_measured_is_missing() -> None:
    """Not there, rather than assumed."""

    def probe() -> tuple[str, ...]:
        raise Failure("measuring the sandbox: the child ended with status 9", code="sandbox_probe")

    assert confinement(probe, layers=LAYERS).state == "missing"


def test_the_command_says_it_for_people_and_for_machines() -> None:
    """On whatever machine this runs."""
    shown = CliRunner().invoke(main, ["doctor"])
    assert "platform" in shown.output and "takes:" in shown.output
    document = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)
    assert set(document) == {"platform", "findings"}
    assert "sandbox" in {f["name"] for f in document["findings"]}
    assert {f["state"] for f in document["findings"]} <= {"there", "missing", "limited"}
