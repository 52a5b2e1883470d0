"""The kernel's and Gramine's interfaces to a TEE, as they behave: what an open gives, what a close commits, what fails.

Each emulator is a tree of pseudo-files below one folder. `read` is an open for reading and gives the whole value,
`write` is a close after writing; both raise OSError as the real interface does. `mounts.py` puts them behind real
system calls (FUSE); fast tests call them in place of `tee.files` (`direct`).

`faults` makes the next calls fail: path's last part -> errors, taken one by one.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import hmac
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from unittest import mock

import cbor2

Signer = Callable[[bytes], bytes]
"""Report data -> a signed quote or report."""

MRENCLAVE = hashlib.sha256(b"the enclave").digest()
MRSIGNER = hashlib.sha256(b"its signer").digest()


class Emulator:
    """What the emulators share: faults, and refusals of what is not there."""

    folders: frozenset[str] = frozenset({""})
    immediate = False
    """Whether a write takes effect by itself, and has its error, in place of the close."""

    def __init__(self) -> None:
        self.faults: dict[str, list[int]] = {}
        self.calls: list[str] = []

    def fail(self, name: str, *errors: int) -> None:
        """The next calls about the file `name` fail with these errors, one each."""
        self.faults[name] = list(errors)

    def enter(self, call: str, path: str) -> None:
        """Notes a call, and fails where it is to fail."""
        name = PurePosixPath(path).name
        self.calls.append(f"{call} {name}")
        for key in (name, f"{call} {name}", call):
            if waiting := self.faults.get(key):
                raise OSError(waiting.pop(0), call)

    def names(self) -> list[str]:
        """Every path there is, files and folders."""
        raise NotImplementedError

    def read(self, path: str) -> bytes:
        """The value that an open for reading gives."""
        raise NotImplementedError

    def write(self, path: str, data: bytes) -> None:
        """A close after writing `data`."""
        raise NotImplementedError

    def mkdir(self, path: str) -> None:
        """No folder can be made here."""
        raise OSError(errno.EPERM, path)

    def rmdir(self, path: str) -> None:
        """Nor removed."""
        raise OSError(errno.EPERM, path)

    def ioctl(self, path: str, command: int, argument: bytearray, memory: Memory) -> None:
        """No ioctl is known."""
        raise OSError(errno.ENOTTY, path)


class Memory:
    """The memory of whoever called: an ioctl's argument holds addresses in it."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes there."""
        raise NotImplementedError

    def write(self, address: int, data: bytes) -> None:
        """Puts bytes there."""
        raise NotImplementedError


class Gramine(Emulator):
    """`/dev/attestation` of Gramine on SGX."""

    folders = frozenset({"", "keys"})

    def __init__(self, sign: Signer, *, kind: bytes = b"dcap") -> None:
        super().__init__()
        self._sign, self.kind = sign, kind
        self.user_report_data, self.target_info = bytes(64), bytes(512)
        self.keys = {
            "_sgx_mrenclave": hashlib.sha256(b"mrenclave key").digest()[:16],
            "_sgx_mrsigner": hashlib.sha256(b"mrsigner key").digest()[:16],
        }

    def names(self) -> list[str]:
        """Gramine hides what only SGX has where there is none."""
        sgx = [
            "attestation_type", "user_report_data", "target_info", "my_target_info", "report", "quote",
            *(f"keys/{k}" for k in self.keys),
        ]  # fmt: skip
        return ["", "keys", *(sgx if self.kind != b"" else [])]

    def read(self, path: str) -> bytes:
        """A quote is made at the open, and EACCES where that fails."""
        self.enter("read", path)
        values = {
            "attestation_type": lambda: self.kind,
            "user_report_data": lambda: self.user_report_data,
            "target_info": lambda: self.target_info,
            "my_target_info": lambda: MRENCLAVE.ljust(512, b"\x00"),
            "report": self._report,
            "quote": lambda: self._sign(self.user_report_data),
            **{f"keys/{name}": (lambda key=key: key) for name, key in self.keys.items()},
        }
        if path not in values or path not in self.names():
            raise OSError(errno.ENOENT, path)
        return values[path]()

    def _report(self) -> bytes:
        report = bytearray(432)
        report[64:96], report[128:160], report[320:384] = MRENCLAVE, MRSIGNER, self.user_report_data
        return bytes(report)

    def write(self, path: str, data: bytes) -> None:
        """Shorter values are padded with zeros, longer ones silently cut."""
        self.enter("write", path)
        if path == "user_report_data":
            self.user_report_data = data[:64].ljust(64, b"\x00")
        elif path == "target_info":
            self.target_info = data[:512].ljust(512, b"\x00")
        else:
            raise OSError(errno.EACCES, path)


class ConfigTsm(Emulator):
    """`/sys/kernel/config/tsm/report` with one provider, or (None) with none."""

    def __init__(
        self,
        sign: Signer,
        *,
        provider: str | None,
        certificates: bytes | None = None,
        floor: int | None = None,
    ) -> None:
        super().__init__()
        self._sign, self.provider, self._certificates, self._floor = sign, provider, certificates, floor
        self.entries: dict[str, dict[str, bytes]] = {}
        self.generations: dict[str, int] = {}
        self.host_data = "00" * 32
        """What the host gave a guest at its launch (hex)."""
        self.racers = 0
        """How many of the next questions somebody else writes to as well."""

    def names(self) -> list[str]:
        """Entries and their attributes; `auxblob` is hidden from TDX, the levels are SEV-SNP's."""
        attributes = ["provider", "generation", "inblob", "outblob"]
        attributes += ["auxblob"] if self._certificates is not None else []
        attributes += ["privlevel", "privlevel_floor"] if self._floor is not None else []
        return ["", *self.entries, *(f"{entry}/{name}" for entry in self.entries for name in attributes)]

    def mkdir(self, path: str) -> None:
        """ENXIO where nobody provides reports."""
        self.enter("mkdir", path)
        if self.provider is None:
            raise OSError(errno.ENXIO, path)
        self.entries[path], self.generations[path] = {}, 0

    def rmdir(self, path: str) -> None:
        """The only way to remove an entry."""
        self.enter("rmdir", path)
        del self.entries[path]

    def read(self, path: str) -> bytes:
        """outblob makes the report; a wrong inblob shows only here."""
        self.enter("read", path)
        if path not in self.names():
            raise OSError(errno.ENOENT, path)
        entry, _, name = path.partition("/")
        state = self.entries[entry]
        if name == "provider":
            return f"{self.provider}\n".encode()
        if name == "generation":
            return f"{self.generations[entry]}\n".encode()
        if name == "privlevel_floor":
            return f"{self._floor}\n".encode()
        if name not in ("outblob", "auxblob"):
            raise OSError(errno.EACCES, path)  # write-only
        if len(state.get("inblob", b"")) != 64:
            raise OSError(errno.EINVAL, path)
        return self._sign(state["inblob"]) if name == "outblob" else self._certificates or b""

    def write(self, path: str, data: bytes) -> None:
        """inblob is committed at the close, whatever its size; what goes wrong is told to nobody."""
        self.enter("write", path)
        entry, _, name = path.partition("/")
        if name not in ("inblob", "privlevel"):
            raise OSError(errno.EACCES, path)
        if len(data) > 64:
            raise OSError(errno.EFBIG, path)
        self.entries[entry][name] = data
        self._count(entry)
        if self.racers:
            self.racers -= 1
            self.entries[entry][name] = bytes(64)
            self._count(entry)

    def _count(self, entry: str) -> None:
        self.generations[entry] = (self.generations[entry] + 1) % (1 << 32)


class Registers(Emulator):
    """`/sys/devices/virtual/misc/tdx_guest/measurements` (Linux 6.16): RTMR3, whose write extends it at once."""

    immediate = True

    def __init__(self) -> None:
        super().__init__()
        self.rtmr3 = bytes(48)

    def names(self) -> list[str]:
        """Of the seven files the one that is used."""
        return ["", "rtmr3:sha384"]

    def read(self, path: str) -> bytes:
        """The register's value."""
        self.enter("read", path)
        if path != "rtmr3:sha384":
            raise OSError(errno.ENOENT, path)
        return self.rtmr3

    def write(self, path: str, data: bytes) -> None:
        """EINVAL for anything but 48 bytes, by the write."""
        self.enter("write", path)
        if path != "rtmr3:sha384":
            raise OSError(errno.ENOENT, path)
        if len(data) != 48:
            raise OSError(errno.EINVAL, path)
        self.rtmr3 = hashlib.sha384(self.rtmr3 + data).digest()


class SevGuest(Emulator):
    """`/dev/sev-guest`: derived keys, out of the chip's secret and what the guest is."""

    def __init__(self, *, measurement: bytes, policy: int = 0x3001F) -> None:
        super().__init__()
        self.measurement, self.policy, self.wiped, self.status = measurement, policy, False, 0
        self.requests: list[tuple[int, ...]] = []
        self.answer: bytes | None = None
        """64 bytes that come in place of the firmware's answer, if any."""

    def names(self) -> list[str]:
        """One device."""
        return ["", "sev-guest"]

    def read(self, path: str) -> bytes:
        """Nothing is read from it."""
        return b""

    def write(self, path: str, data: bytes) -> None:
        """Nor written to it."""

    def ioctl(self, path: str, command: int, argument: bytearray, memory: Memory) -> None:
        """SNP_GET_DERIVED_KEY; ENOTTY once the guest's message key was wiped, EIO with the firmware's word."""
        self.enter("ioctl", path)
        if self.wiped or command != 0xC0205301:
            raise OSError(errno.ENOTTY, path)
        version, request_at, response_at, _ = struct.unpack("<B7xQQQ", argument)
        if version != 1:
            raise OSError(errno.EINVAL, path)
        fields = struct.unpack("<IIQIIQ", memory.read(request_at, 32))
        self.requests.append(fields)
        root, _, select, level, svn, tcb = fields
        if self.status:
            argument[24:32] = self.status.to_bytes(8, "little")
            raise OSError(errno.EIO, path)
        if self.answer is not None:
            memory.write(response_at, self.answer)
            return
        mixed = [root, select, level, svn, tcb, self.policy if select & 1 else 0]
        text = repr(mixed).encode() + (self.measurement if select & 8 else b"")
        key = hmac.digest(b"the chip's secret", text, "sha256")
        memory.write(response_at, struct.pack("<I28x", 0) + key)


Mint = Callable[[bytes, "bytes | None"], bytes]
"""User data and nonce -> a signed document."""


class Nsm(Emulator):
    """`/dev/nsm`: the Nitro Secure Module, one ioctl with CBOR both ways."""

    def __init__(self, mint: Mint) -> None:
        super().__init__()
        self.mint = mint
        self.answer: object = None
        """What comes in place of the next answers, if anything."""
        self.size: int | None = None
        """The length that the driver gives back, if not the answer's."""

    def names(self) -> list[str]:
        """One device."""
        return ["", "nsm"]

    def read(self, path: str) -> bytes:
        """Nothing is read from it."""
        return b""

    def write(self, path: str, data: bytes) -> None:
        """Nor written to it."""

    def ioctl(self, path: str, command: int, argument: bytearray, memory: Memory) -> None:
        """NSM_IOCTL_RAW: EINVAL for any other, EMSGSIZE for a question that is too long."""
        self.enter("ioctl", path)
        if command != 0xC0200A00:
            raise OSError(errno.EINVAL, path)
        request_at, size, answer_at, room = struct.unpack("=QQQQ", argument)
        if size > 0x1000:
            raise OSError(errno.EMSGSIZE, path)
        answer = cbor2.dumps(self._answer(cbor2.loads(memory.read(request_at, size))))
        memory.write(answer_at, answer[:room])
        argument[24:32] = struct.pack("=Q", len(answer) if self.size is None else self.size)

    def _answer(self, request: object) -> object:
        if self.answer is not None:
            return self.answer
        match request:
            case {"Attestation": {"user_data": bytes(data), "nonce": nonce, "public_key": None}}:
                fits = len(data) <= 1024 and (nonce is None or 0 < len(nonce) <= 1024)
                return (
                    {"Attestation": {"document": self.mint(data, nonce)}}
                    if fits
                    else {"Error": "InputTooLarge"}
                )
        return {"Error": "InvalidOperation"}


class OwnMemory(Memory):
    """The memory of this very process: an ioctl that is called in place."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes there."""
        return ctypes.string_at(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Puts bytes there."""
        ctypes.memmove(address, data, len(data))


@contextmanager
def direct_device(emulator: Emulator, device: Path) -> Iterator[Path]:
    """`device` is the emulator's, for ioctls, without a file system in between."""

    def ioctl(_descriptor: int, command: int, argument: bytearray, _mutate: bool) -> int:
        emulator.ioctl(device.name, command, argument, OwnMemory())
        return 0

    device.write_bytes(b"")
    with mock.patch("fcntl.ioctl", ioctl):
        yield device


@contextmanager
def direct(emulator: Emulator, root: Path) -> Iterator[Path]:
    """`root` is the emulator's folder for the code of `tee`, without a file system in between."""

    def inside(path: Path) -> str:
        return path.relative_to(root).as_posix().removeprefix(".")

    def read(path: Path, *, limit: int) -> bytes:
        data = emulator.read(inside(path))
        assert len(data) <= limit
        return data

    def write(path: Path, data: bytes) -> None:
        emulator.write(inside(path), data)

    with (
        mock.patch("strongroom.tee.sgx.read_value", read),
        mock.patch("strongroom.tee.sgx.write_value", write),
        mock.patch("strongroom.tee.rtmr.read_value", read),
        mock.patch("strongroom.tee.rtmr.write_value", write),
        mock.patch("strongroom.tee.tsm.read_value", read),
        mock.patch("strongroom.tee.tsm.write_value", write),
        mock.patch.object(Path, "mkdir", lambda self: emulator.mkdir(inside(self))),
        mock.patch.object(Path, "rmdir", lambda self: emulator.rmdir(inside(self))),
    ):
        yield root
