"""`launch_digest`: what goes into it, and what is refused; the algorithm is sev-snp-measure's."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "attest"))
import fake_artefacts as fake

from strongroom.cli_measure import VMMS as OFFERED
from strongroom.errors import InvalidRequest, MalformedInput
from strongroom.launch_digest import VMMS, Launch, launch_digest, vcpu_types

pytest.importorskip("sevsnpmeasure")


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """A guest with a kernel, an initrd and a command line."""
    files = {"firmware": fake.firmware(), "kernel": b"kernel", "initrd": b"initrd"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return Launch(
        firmware=tmp_path / "firmware",
        kernel=tmp_path / "kernel",
        initrd=tmp_path / "initrd",
        cmdline="ro quiet",
        vcpus=2,
        vcpu_type="EPYC-Milan",
        vmm="qemu",
        guest_features=1,
    )


def test_the_command_offers_what_is_known() -> None:
    """VMMs are named in both places, so that the command line loads nothing."""
    assert OFFERED == VMMS
    assert "EPYC-Milan" in vcpu_types()


def test_everything_that_is_measured_changes_it(launch: Launch) -> None:
    """48 bytes; the same for the same guest, and another for any other."""
    first = launch_digest(launch)
    assert first == launch_digest(launch) and len(first) == 96
    others = [
        replace(launch, cmdline="ro"),
        replace(launch, initrd=None),
        replace(launch, kernel=launch.initrd),
        replace(launch, kernel=None, initrd=None, cmdline=""),
        replace(launch, vcpus=3),
        replace(launch, vcpu_type="EPYC-Genoa"),
        replace(launch, vmm="ec2"),
        replace(launch, vmm="gce"),
        replace(launch, guest_features=0x21),
    ]
    found = {first, *map(launch_digest, others)}
    launch.firmware.write_bytes(fake.firmware(code=b"other"))
    found.add(launch_digest(launch))
    assert len(found) == len(others) + 2


@pytest.mark.parametrize("changed", [{"vcpus": 0}, {"vcpus": 1025}, {"vcpu_type": "i386"}, {"vmm": "other"}])
def test_a_launch_that_cannot_be_is_refused(launch: Launch, changed: dict[str, object]) -> None:
    """No value is guessed."""
    with pytest.raises(MalformedInput):
        launch_digest(replace(launch, **changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "image", [b"", bytes(4096), fake.firmware(sev=False), fake.firmware().replace(b"ASEV", b"ASEW")]
)
def test_firmware_that_sev_cannot_start_is_refused(launch: Launch, image: bytes) -> None:
    """Without its metadata the library would leave pages out and say nothing."""
    launch.firmware.write_bytes(image)
    with pytest.raises(MalformedInput) as caught:
        launch_digest(launch)
    assert caught.value.code == "artefact_malformed"


def test_a_kernel_needs_a_place_for_its_digest(launch: Launch) -> None:
    """Firmware without the page for it would start any kernel."""
    without = fake.sev_metadata()
    launch.firmware.write_bytes(fake.firmware().replace(without, without[:-4] + (4).to_bytes(4, "little")))
    with pytest.raises(MalformedInput, match="kernel's digests"):
        launch_digest(launch)


@pytest.mark.parametrize("name", ["firmware", "kernel", "initrd"])
def test_files_that_are_not_there(launch: Launch, name: str, tmp_path: Path) -> None:
    """Each is named."""
    with pytest.raises(InvalidRequest, match="absent") as caught:
        launch_digest(replace(launch, **{name: tmp_path / "absent"}))  # type: ignore[arg-type]
    assert caught.value.code == "input_unreadable"


def test_without_the_library_it_says_how_to_get_it(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `measure`."""
    monkeypatch.setitem(sys.modules, "sevsnpmeasure", None)
    with pytest.raises(InvalidRequest, match="measure") as caught:
        launch_digest(launch)
    assert caught.value.code == "extra_missing"
