"""`tee.sev_guest`: the derived key, with every error of the ioctl."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from emulators import SevGuest, direct_device

from strongroom.errors import Failure
from strongroom.tee.sev_guest import ATTEMPTS, FIELDS, derive_key

MEASUREMENT = bytes(range(48))


def derived(emulator: SevGuest, folder: Path, *, level: int = 0, pauses: list[float] | None = None) -> bytes:
    """The key through the emulated device; pauses are noted, not waited for."""
    noted = [] if pauses is None else pauses
    with direct_device(emulator, folder / "sev-guest") as device:
        return derive_key(device, level=level, sleep=noted.append)


def test_a_key_is_the_guests_alone(tmp_path: Path) -> None:
    """The same for the same guest; another for other code, policy or level."""
    first = derived(SevGuest(measurement=MEASUREMENT), tmp_path)
    assert len(first) == 32 and first == derived(SevGuest(measurement=MEASUREMENT), tmp_path)
    others = (
        derived(SevGuest(measurement=bytes(48)), tmp_path),
        derived(SevGuest(measurement=MEASUREMENT, policy=0x30000), tmp_path),
        derived(SevGuest(measurement=MEASUREMENT), tmp_path, level=1),
    )
    assert len({first, *others}) == 4


def test_the_question_names_what_is_mixed_in(tmp_path: Path) -> None:
    """The chip's own key; policy, ids and measurement; no version that an update of the firmware changes."""
    emulator = SevGuest(measurement=MEASUREMENT)
    derived(emulator, tmp_path, level=2)
    assert emulator.requests == [(0, 0, FIELDS, 2, 0, 0)]


@pytest.mark.parametrize("error", [errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT])
def test_a_throttled_guest_asks_again(error: int, tmp_path: Path) -> None:
    """The host may slow requests to the firmware down; after a bounded number of questions it is given up."""
    emulator, pauses = SevGuest(measurement=MEASUREMENT), []  # type: ignore[var-annotated]
    emulator.fail("ioctl", error, error)
    assert derived(emulator, tmp_path, pauses=pauses) == derived(SevGuest(measurement=MEASUREMENT), tmp_path)
    assert pauses == [0.05, 0.1]
    emulator.fail("ioctl", *[error] * ATTEMPTS)
    with pytest.raises(Failure, match=errno.errorcode[error]) as caught:
        derived(emulator, tmp_path)
    assert caught.value.code == "sealing_root_unavailable"


@pytest.mark.parametrize(
    "error", [errno.ENOTTY, errno.EIO, errno.EINVAL, errno.EFAULT, errno.EPERM, errno.ENOSPC]
)
def test_other_errors_are_not_asked_away(error: int, tmp_path: Path) -> None:
    """A wiped message key, the firmware's refusal, a question that is none."""
    emulator, pauses = SevGuest(measurement=MEASUREMENT), []  # type: ignore[var-annotated]
    emulator.fail("ioctl", error)
    with pytest.raises(Failure, match=errno.errorcode[error]) as caught:
        derived(emulator, tmp_path, pauses=pauses)
    assert caught.value.code == "sealing_root_unavailable" and not pauses


def test_the_firmwares_word_is_passed_on(tmp_path: Path) -> None:
    """EIO alone says nothing."""
    emulator = SevGuest(measurement=MEASUREMENT)
    emulator.status = 0x16
    with pytest.raises(Failure, match="0x16"):
        derived(emulator, tmp_path)


def test_a_wiped_message_key_stays_wiped(tmp_path: Path) -> None:
    """The kernel wipes it when answers do not fit their questions, until the guest starts anew."""
    emulator = SevGuest(measurement=MEASUREMENT)
    emulator.wiped = True
    with pytest.raises(Failure, match="ENOTTY"):
        derived(emulator, tmp_path)


@pytest.mark.parametrize("answer", [bytes(64), (0x16).to_bytes(4, "little") + bytes(28) + b"k" * 32])
def test_an_answer_without_a_key_is_none(answer: bytes, tmp_path: Path) -> None:
    """Zeros, or a status that is not zero beside 32 bytes."""
    emulator = SevGuest(measurement=MEASUREMENT)
    emulator.answer = answer
    with pytest.raises(Failure) as caught:
        derived(emulator, tmp_path)
    assert caught.value.code == "sealing_root_unavailable"


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    """It says so."""
    with pytest.raises(Failure, match="ENOENT"):
        derive_key(tmp_path / "absent", level=0)
