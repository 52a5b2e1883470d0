"""Event logs of measured boot: TCG2 (crypto-agile) and CCEL, read and replayed (docs/spec/tpm.md §6).

A log is a list of stories about digests. Only the digests count: replayed, they must give the registers that a
TPM or a TEE signed. The event's data is believed no further than `Event.covers_data` says.

Rules of this file: every length is checked before use; every event carries each algorithm of the header exactly
once; what follows the last event is padding of one kind (all 0x00 or all 0xFF) to the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.attest.cursor import Cursor
from strongroom.attest.evidence import Check, check
from strongroom.attest.tpm_wire import HASHES, PCR_COUNT, digest_size
from strongroom.errors import MalformedInput

MAX_LOG = 1 << 20
"""Bytes of a log with its padding; firmware sets 64 to 256 KiB aside."""
MAX_EVENTS = 4096
"""Events of a boot; 43 to 200 are usual."""
MAX_ALGORITHMS = 8
"""Banks that a log may keep; four are usual at most."""
SHA256, SHA384 = 0x000B, 0x000C
RTMR_COUNT = 4

EV_NO_ACTION = 0x00000003
_NOT_A_PCR = 0xFFFFFFFF
_SPEC_ID = b"Spec ID Event03\x00"
_STARTUP = b"StartupLocality\x00"
EVENT_NAMES = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    0x00000003: "EV_NO_ACTION",
    0x00000004: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    0x0000000D: "EV_IPL",
    0x0000000E: "EV_IPL_PARTITION_DATA",
    0x0000000F: "EV_NONHOST_CODE",
    0x00000010: "EV_NONHOST_CONFIG",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}
"""Event types of the TCG's PC Client platform firmware profile; others have none here."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: the register's index in the log (PCR, or CC measurement register), type, digests as
    (TPM_ALG_ID, digest) and data.
    """

    index: int
    type: int
    digests: tuple[tuple[int, bytes], ...]
    data: bytes

    @property
    def name(self) -> str:
        """The type's name, or its number in hex."""
        return EVENT_NAMES.get(self.type, f"{self.type:#010x}")

    def digest(self, algorithm: int) -> bytes:
        """The digest of `algorithm`, which is one of the log's."""
        return dict(self.digests)[algorithm]

    def covers_data(self, algorithm: int) -> bool:
        """Whether the digest is that of the data: only then does a register speak for the data too."""
        return algorithm in HASHES and hashlib.new(HASHES[algorithm][0], self.data).digest() == self.digest(
            algorithm
        )


@dataclass(frozen=True, slots=True)
class EventLog:
    """A log: its algorithms (TPM_ALG_IDs, in the header's order) and its events without the header."""

    algorithms: tuple[int, ...]
    events: tuple[Event, ...]


def parse_event_log(data: bytes) -> EventLog:
    """Returns the log that `data` is: TCG2 or the content of a CCEL area, with or without its padding.

    Raises:
        MalformedInput: code `event_log_malformed`.
    """
    read = _Reader(data)
    algorithms = _header(read)
    sizes = {a: digest_size(a) for a in algorithms}
    events: list[Event] = []
    while not read.at_end():
        if len(events) == MAX_EVENTS:
            read.refuse(f"more than {MAX_EVENTS} events")
        events.append(_event(read, sizes))
    return EventLog(algorithms, tuple(events))


def _header(read: _Reader) -> tuple[int, ...]:
    """The first event, in the old form, names the algorithms of all others."""
    index, kind, digest, size = read.number(4), read.number(4), read.take(20), read.number(4)
    if index >= PCR_COUNT or kind != EV_NO_ACTION or any(digest):  # CCEL firmware writes register 1 here
        read.refuse("does not begin with a Spec ID event")
    inner = _Reader(read.take(size))
    if inner.take(16) != _SPEC_ID:
        read.refuse("does not begin with a Spec ID Event03: logs with SHA-1 alone are not read")
    inner.take(8)  # platformClass, version, uintnSize
    count = inner.number(4)
    if not 1 <= count <= MAX_ALGORITHMS:
        read.refuse(f"{count} algorithms; expected 1 to {MAX_ALGORITHMS}")
    found = []
    for _ in range(count):
        algorithm, stated = inner.number(2), inner.number(2)
        if stated != digest_size(algorithm) or not stated:
            read.refuse(f"algorithm {algorithm:#06x} with digests of {stated} bytes is not known")
        found.append(algorithm)
    if len(set(found)) != count:
        read.refuse("an algorithm is there twice")
    inner.take(inner.number(1))  # vendorInfo
    inner.end()
    return tuple(found)


def _event(read: _Reader, sizes: Mapping[int, int]) -> Event:
    index, kind, count = read.number(4), read.number(4), read.number(4)
    if index >= PCR_COUNT and not (index == _NOT_A_PCR and kind == EV_NO_ACTION):
        read.refuse(f"an event of register {index}; expected at most {PCR_COUNT - 1}")
    if count != len(sizes):
        read.refuse(f"an event with {count} digests; expected {len(sizes)}")
    digests = []
    for _ in range(count):
        algorithm = read.number(2)
        if algorithm not in sizes:
            read.refuse(f"a digest of algorithm {algorithm:#06x}, which the header does not name")
        digests.append((algorithm, read.take(sizes[algorithm])))
    if len({a for a, _ in digests}) != count:
        read.refuse("an event with two digests of one algorithm")
    return Event(index, kind, tuple(digests), read.take(read.number(4)))


def replay(log: EventLog, *, algorithm: int) -> dict[int, bytes]:
    """Returns register -> value after all events of `log`, for the registers that it extends: each starts as
    zeros (PCR 17 to 22: as ones; PCR 0: at the locality that a StartupLocality event names).

    Raises:
        MalformedInput: code `event_log_malformed`: the log does not keep `algorithm`, or it is SHA-1.
    """
    if algorithm not in log.algorithms or algorithm not in HASHES:
        raise MalformedInput(
            f"event log: no digests of algorithm {algorithm:#06x}", code="event_log_malformed"
        )
    name, size = HASHES[algorithm][0], digest_size(algorithm)
    values: dict[int, bytes] = {}
    locality = 0
    for event in log.events:
        if event.type == EV_NO_ACTION:
            if event.data[:16] == _STARTUP and len(event.data) == 17 and event.index == 0 and 0 not in values:
                locality = event.data[16]
            continue
        first = (b"\xff" if 17 <= event.index <= 22 else b"\x00") * size
        if event.index == 0:
            first = bytes(size - 1) + bytes([locality])
        before = values.get(event.index, first)
        values[event.index] = hashlib.new(name, before + event.digest(algorithm)).digest()
    return values


def replay_rtmrs(log: EventLog) -> tuple[bytes, ...]:
    """Returns RTMR0 to RTMR3 (48 bytes each) after all events of a CCEL: its register 1 is RTMR0, and so on.

    Raises:
        MalformedInput: code `event_log_malformed`: no SHA-384, or an event of another register.
    """
    values = replay(log, algorithm=SHA384)
    if other := sorted(values.keys() - set(range(1, RTMR_COUNT + 1))):
        raise MalformedInput(
            f"event log: events of CC register {other[0]}, which is no RTMR", code="event_log_malformed"
        )
    return tuple(values.get(i, bytes(digest_size(SHA384))) for i in range(1, RTMR_COUNT + 1))


def is_event_log(data: bytes) -> bool:
    """Whether `data` looks like a log: by its first event, whatever its name. Decides only who reads it."""
    return data[4:8] == EV_NO_ACTION.to_bytes(4, "little") and data[32:48] == _SPEC_ID


def logged_events(data: bytes, *, algorithm: int, rtmrs: bool) -> tuple[tuple[str, str, str], ...]:
    """Returns (register, digest in hex, type) of every event of a log that passed `check_event_log`, in order, for
    `Claims.events`: what extends no register is left out.

    Raises:
        MalformedInput: code `event_log_malformed`.
    """
    log = parse_event_log(data)
    return tuple(
        (
            f"rtmr{event.index - 1}" if rtmrs else f"pcr{event.index}",
            event.digest(SHA384 if rtmrs else algorithm).hex(),
            event.name,
        )
        for event in log.events
        if event.type != EV_NO_ACTION
    )


def check_event_log(
    data: bytes, *, check_id: str, registers: Mapping[int, bytes], algorithm: int, rtmrs: bool
) -> Check:
    """Returns the check that the log `data`, replayed, gives the signed `registers`: those that it extends must
    be among them, and equal (docs/spec/tpm.md §6.4). With `rtmrs` the log is a CCEL, register 0 is RTMR0, and all
    four must be equal.
    """
    title, code = "The event log, replayed, gives the signed registers", "event_log_mismatch"
    expected = "the signed values of every register that the log extends"
    try:
        log = parse_event_log(data)
        got = dict(enumerate(replay_rtmrs(log))) if rtmrs else replay(log, algorithm=algorithm)
    except MalformedInput as exc:
        return check(check_id, title, False, expected=expected, got=exc.message, code=exc.code)
    if not got:
        return check(check_id, title, False, expected=expected, got="a log that extends none", code=code)
    wrong = [i for i, value in sorted(got.items()) if registers.get(i) != value]
    shown = f"{len(log.events)} events, {len(got)} registers equal"
    if wrong:
        shown = f"other values of {'RTMR' if rtmrs else 'PCR'} {', '.join(map(str, wrong))}"
    return check(check_id, title, not wrong, expected=expected, got=shown, code=code)


class _Reader(Cursor):
    """A cursor over a log, or over the content of its first event."""

    __slots__ = ()

    def __init__(self, data: bytes) -> None:
        super().__init__(data, what="event log", code="event_log_malformed", order="little", limit=MAX_LOG)

    def at_end(self) -> bool:
        """Whether nothing follows but padding: 0x00 or 0xFF to the end. An event cannot begin with 12 such bytes
        (it would have no digests, or register 0xFFFFFFFF with a type that is none).
        """
        if not self.left:
            return True
        begin = self._data[self._at : self._at + 12]
        if begin.strip(b"\x00") and begin.strip(b"\xff"):
            return False
        rest = memoryview(self._data)[self._at :]
        if rest != (begin[:1] * len(rest)):
            self.refuse("something follows the padding")
        return True
