"""`tee.rtmr`: RTMR3 extended by the launcher, once for one code in one TD."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from emulators import Registers, direct

from strongroom.errors import Failure, InvalidConfig, Refused, Unavailable
from strongroom.tee.rtmr import ATTEMPTS, check_launched, code_event, measure_into, reference_value

FOLDER = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
OURS, OTHER = "0a" * 32, "0b" * 32
WRITE = "write rtmr3:sha384"


def measured(registers: Registers, measurement: str = OURS, pauses: list[float] | None = None) -> None:
    """The launcher's part; pauses are noted, not waited for."""
    with direct(registers, FOLDER):
        measure_into(FOLDER, measurement, sleep=([] if pauses is None else pauses).append)


def test_a_fresh_register_is_extended_by_the_code() -> None:
    """By the value that the specification gives (docs/spec/reference-values.md §7.1)."""
    registers = Registers()
    measured(registers)
    event = hashlib.sha384(b"strongroom tdx code v1\0" + bytes.fromhex(OURS)).digest()
    assert code_event(OURS) == event
    assert registers.rtmr3 == hashlib.sha384(bytes(48) + event).digest()
    assert registers.rtmr3.hex() == reference_value(OURS) != reference_value(OTHER)
    check_launched(registers.rtmr3.hex(), OURS)


def test_a_second_start_of_the_same_code_extends_nothing() -> None:
    """Restarts are ordinary; the value is one that a policy can name."""
    registers = Registers()
    for _ in range(3):
        measured(registers)
    assert registers.calls.count(WRITE) == 1
    check_launched(registers.rtmr3.hex(), OURS)


@pytest.mark.parametrize("before", [OTHER, OURS + OTHER, "00" * 31 + "01"])
def test_a_register_that_others_extended_is_refused(before: str) -> None:
    """Whatever it was, also our code and something behind it: nothing is written."""
    registers = Registers()
    for part in (before[i : i + 64] for i in range(0, len(before), 64)):
        registers.write("rtmr3:sha384", code_event(part))
    held = registers.rtmr3
    with pytest.raises(Refused, match="start the TD anew") as caught:
        measured(registers)
    assert caught.value.code == "rtmr3_mismatch" and registers.rtmr3 == held


@pytest.mark.parametrize("shown", ["00" * 48, reference_value(OTHER), code_event(OURS).hex()])
def test_a_quote_must_show_it(shown: str) -> None:
    """Zeros: no launcher ran; another's value; the event without the extension."""
    with pytest.raises(Refused) as caught:
        check_launched(shown, OURS)
    assert caught.value.code == "rtmr3_mismatch"


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENODEV])
@pytest.mark.parametrize("call", ["read", "write"])
def test_without_the_register_there_is_no_start(call: str, error: int) -> None:
    """An older kernel, no TD, or not this user's to write: said, and said how to get it."""
    registers = Registers()
    registers.fail(f"{call} rtmr3:sha384", error)
    with pytest.raises(InvalidConfig, match="Linux 6") as caught:
        measured(registers)
    assert caught.value.code == "rtmr3_unavailable" and errno.errorcode[error] in caught.value.message
    assert registers.rtmr3 == bytes(48)


def test_no_folder_at_all(tmp_path: Path) -> None:
    """As on every kernel before 6.16."""
    with pytest.raises(InvalidConfig) as caught:
        measure_into(tmp_path, OURS)
    assert caught.value.code == "rtmr3_unavailable"


def test_a_busy_module_is_asked_again() -> None:
    """The register decides what is done next: one event, however often it was tried."""
    registers, pauses = Registers(), []  # type: ignore[var-annotated]
    registers.fail(WRITE, errno.EBUSY, errno.EINTR)
    measured(registers, pauses=pauses)
    assert registers.rtmr3.hex() == reference_value(OURS) and len(pauses) == 2


def test_a_write_that_took_effect_and_failed_is_not_repeated() -> None:
    """Nothing in the documents says that it cannot happen."""
    registers = Registers()
    usual = registers.write

    def late(path: str, data: bytes) -> None:
        usual(path, data)
        raise OSError(errno.ETIMEDOUT, path)

    registers.write = late  # type: ignore[method-assign]
    measured(registers)
    assert registers.rtmr3.hex() == reference_value(OURS) and registers.calls.count(WRITE) == 1


@pytest.mark.parametrize("errors", [[errno.EBUSY] * ATTEMPTS, [errno.EIO], [errno.EINVAL]])
def test_a_module_that_does_not_answer_is_unavailable(errors: list[int]) -> None:
    """Busy for too long, or another error, which is not asked away."""
    registers = Registers()
    registers.fail(WRITE, *errors)
    with pytest.raises(Unavailable, match=errno.errorcode[errors[0]]) as caught:
        measured(registers)
    assert caught.value.code == "attester_unavailable" and registers.rtmr3 == bytes(48)


def test_a_register_that_does_not_hold_its_event_is_a_fault() -> None:
    """A kernel that forgets the write; another start at the same moment."""
    registers = Registers()
    registers.write = lambda path, data: None  # type: ignore[method-assign]
    with pytest.raises(Failure) as caught:
        measured(registers)
    assert caught.value.code == "attester_malformed"
    racing = Registers()
    usual = racing.write

    def twice(path: str, data: bytes) -> None:
        usual(path, data)
        usual(path, data)

    racing.write = twice  # type: ignore[method-assign]
    with pytest.raises(Failure, match="at once"):
        measured(racing)


@pytest.mark.parametrize("size", [0, 32, 47])
def test_a_register_of_another_size_is_a_fault(size: int) -> None:
    """SHA-384 is 48 bytes."""
    registers = Registers()
    registers.rtmr3 = bytes(size)
    with pytest.raises(Failure) as caught:
        measured(registers)
    assert caught.value.code == "attester_malformed"
