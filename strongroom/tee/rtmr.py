"""RTMR3 of a trust domain, extended by the launcher with the code that it is about to run
(docs/spec/reference-values.md §7).

    read RTMR3 -> zeros: write the code's event (48 bytes) -> read it again: zeros extended by that event
               -> already that value: this code was started before, and nothing is extended twice
               -> anything else: other code was started since the TD was, and this one does not start

The kernel's file (Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest, Linux 6.16) is root's to write, takes
exactly 48 bytes at once and answers EINVAL to any other number.

Rules
  - The register is a history and never goes back: it says what this TD's launcher started, not what runs now, and not
    that nothing else was started past the launcher. Both follow from the image alone, which RTMR0 to RTMR2 measure.
  - There is one value for one code. A register that somebody else extends as well has none that a policy could pin.
  - A write that failed transiently is not repeated blindly: what the register holds decides what is done next.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from strongroom.errors import InvalidConfig, Refused, Unavailable
from strongroom.tee.files import TRANSIENT, malformed, read_value, unavailable, write_value

REGISTER: Final = "rtmr3:sha384"
"""The kernel's name of the file, in the folder of a TD's measurements."""
SIZE: Final = 48
"""Bytes of a register and of an event: SHA-384."""
ATTEMPTS: Final = 6
"""How often a busy module is asked: 1.6 seconds of waiting in all."""
FIRST_PAUSE_S: Final = 0.05
_LABEL: Final = b"strongroom tdx code v1\x00"
_NOT_HERE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM, errno.EROFS}
)
"""Errors that say that there is no such register, or not for this user; the others are the module's."""


def code_event(measurement: str) -> bytes:
    """The digest (48 bytes) by which the launcher extends RTMR3 for code of this measurement (hex)."""
    return hashlib.sha384(_LABEL + bytes.fromhex(measurement)).digest()


def reference_value(measurement: str) -> str:
    """What RTMR3 holds (hex) once a server of this measurement was started, in a TD where nothing else extends it:
    what a policy pins.
    """
    return hashlib.sha384(bytes(SIZE) + code_event(measurement)).hexdigest()


def measure_into(folder: Path, measurement: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """The launcher's part: RTMR3 holds `reference_value(measurement)` afterwards. `folder`: the kernel's, with a
    file for each register.

    Raises:
        InvalidConfig: no such register, or this user may not extend it (code `rtmr3_unavailable`).
        Refused: other code was started in this TD (code `rtmr3_mismatch`).
        Unavailable: the TDX module stayed busy, or answers another error (code `attester_unavailable`).
        Failure: the register does not hold what it was extended by (code `attester_malformed`).
    """
    register, expected = folder / REGISTER, bytes.fromhex(reference_value(measurement))
    last = OSError(errno.EBUSY, "busy")
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            held = _read(register)
            if held == expected:
                return
            if any(held):
                raise _foreign(held, expected)
            write_value(register, code_event(measurement))
            held = _read(register)
        except OSError as exc:
            if exc.errno not in TRANSIENT:
                raise _not_here(register, exc) from exc
            last = exc
            continue
        if held != expected:
            raise malformed(
                "RTMR3", "it does not hold what it was extended by; was another server started at once?"
            )
        return
    raise unavailable("RTMR3", last)


def check_launched(shown: str, measurement: str) -> None:
    """The server's part: returns if RTMR3 as a quote shows it (hex) is what the launcher leaves for this code.

    Raises:
        Refused: it is not (code `rtmr3_mismatch`).
    """
    if shown != reference_value(measurement):
        raise _foreign(bytes.fromhex(shown), bytes.fromhex(reference_value(measurement)))


def _read(register: Path) -> bytes:
    held = read_value(register, limit=SIZE)
    if len(held) != SIZE:
        raise malformed("RTMR3", f"{len(held)} bytes, expected {SIZE}")
    return held


def _foreign(held: bytes, expected: bytes) -> Refused:
    return Refused(
        f"RTMR3 holds {held.hex()}, expected {expected.hex()} for this code, or zeros before its first start: "
        "something else extended it since this TD was started; start the TD anew",
        code="rtmr3_mismatch",
    )


def _not_here(register: Path, error: OSError) -> Unavailable | InvalidConfig:
    if error.errno not in _NOT_HERE:
        return unavailable("RTMR3", error)
    symbol = errno.errorcode[error.errno]
    return InvalidConfig(
        f"tdx.extend_rtmr3: {register} cannot be extended ({symbol}); it takes Linux 6.16 in a TD, and root or "
        "CAP_DAC_OVERRIDE",
        code="rtmr3_unavailable",
    )
