"""An emulated TEE behind real system calls: `mounts.py KIND MOUNTPOINT OUT` mounts the interfaces of "sgx", "tdx",
"snp" or "nitro" through FUSE until it is killed.

Evidence is signed by the test vendors, around the time of the start. What a client needs to know of them is written to
the folder OUT: `vendor.json` (fingerprints of the roots) and, for Intel, `endorsements/dcap.json`. Whoever writes JSON
to `.control` in the mount makes the next calls fail: {"outblob": [16, 16]}; {"racers": 2}; or launches the guest anew
with other HOST_DATA: {"host_data": "00.."}.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests.parent), str(tests), str(tests / "attest"), str(tests / "tee")]

from emulators import MRENCLAVE, MRSIGNER, ConfigTsm, Emulator, Gramine, Memory, Nsm, Registers, SevGuest

ATTESTATION, REPORTS, SEV_GUEST, NSM, CONTROL = "attestation", "report", "sev-guest", "nsm", ".control"
REGISTERS = "measurements"


def missing() -> str:
    """Why nothing can be mounted here, "" where it can."""
    if sys.platform != "linux" or not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not for this user"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError):
        return "FUSE is not installed (apt install fuse3; make test)"
    return ""


@dataclass
class Mounted:
    """A mounted TEE."""

    kind: str
    folder: Path
    out: Path

    @property
    def roots(self) -> tuple[str, ...]:
        """What verifiers of the format pin in these tests."""
        return tuple(json.loads((self.out / "vendor.json").read_text()))

    @property
    def endorsements(self) -> Path:
        """The vendor's documents."""
        return self.out / "endorsements"

    def paths(self) -> dict[str, str]:
        """Members of `platforms.Paths`."""
        return {
            "attestation": str(self.folder / ATTESTATION),
            "reports": str(self.folder / REPORTS),
            "sev_guest": str(self.folder / SEV_GUEST),
            "nsm": str(self.folder / NSM),
            "td_registers": str(self.folder / REGISTERS),
        }

    def fail(self, **faults: list[int] | int | str) -> None:
        """Makes the next calls fail, or launches the guest anew with other HOST_DATA (hex)."""
        (self.folder / CONTROL).write_text(json.dumps(faults))


@contextlib.contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Mounted]:
    """The TEE `kind`, until the block ends."""
    place, out = folder / "mount", folder / "vendor"
    place.mkdir(parents=True)
    out.mkdir()
    words = [sys.executable, str(Path(__file__).resolve()), kind, str(place), str(out)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (place / CONTROL).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"nothing was mounted: {process.stderr.read() if process.stderr else b''!r}"
                )
            time.sleep(0.05)
        yield Mounted(kind, place, out)
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(place)], check=False, capture_output=True)
        process.terminate()
        process.wait(20)
        if process.stderr:
            process.stderr.close()


# The other side


class Tree:
    """Emulators side by side, each below its name."""

    def __init__(self, parts: dict[str, Emulator]) -> None:
        self.parts = parts

    def find(self, path: str) -> tuple[Emulator, str]:
        """The emulator that a path belongs to, and the path in it."""
        top, _, rest = path.partition("/")
        if top not in self.parts:
            raise OSError(errno.ENOENT, path)
        return self.parts[top], rest

    def writes_at_once(self, path: str) -> bool:
        """Whether a write there does not wait for the close."""
        part = self.parts.get(path.partition("/")[0])
        return part is not None and part.immediate

    def control(self, faults: dict[str, Any]) -> None:
        """See the file's docstring."""
        for emulator in self.parts.values():
            for name, value in faults.items():
                if name in ("racers", "host_data"):
                    setattr(emulator, name, value)
                else:
                    emulator.fail(name, *value)


class ProcessMemory(Memory):
    """Memory of the calling process."""

    def __init__(self, pid: int) -> None:
        self._path = f"/proc/{pid}/mem"

    def read(self, address: int, size: int) -> bytes:
        """Bytes there."""
        with open(self._path, "rb", 0) as memory:  # noqa: PTH123
            memory.seek(address)
            return memory.read(size)

    def write(self, address: int, data: bytes) -> None:
        """Puts bytes there."""
        with open(self._path, "r+b", 0) as memory:  # noqa: PTH123
            memory.seek(address)
            memory.write(data)


def _is_device(tree: Tree, name: str) -> bool:
    return isinstance(tree.parts.get(name), SevGuest | Nsm)


def serve(tree: Tree, place: Path) -> None:
    """Mounts the tree and answers until it is unmounted."""
    import mfusepy

    class Adapter(mfusepy.Operations):  # type: ignore[misc]
        """An open for reading takes the value; a close after writing commits it, and its error is the close's."""

        def __init__(self) -> None:
            self._values: dict[int, bytes] = {}
            self._written: dict[int, bytearray] = {}
            self._next = 1

        def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
            name = path.strip("/")
            if not name or _is_folder(tree, name):
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if name == CONTROL or _is_file(tree, name):
                return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": 0}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def open(self, path: str, fi: Any) -> int:
            name, handle = path.strip("/"), self._next
            self._next += 1
            fi.fh, fi.direct_io = handle, 1
            if name == CONTROL or _is_device(tree, name):
                return 0
            if fi.flags & os.O_ACCMODE == os.O_RDONLY:
                emulator, rest = tree.find(name)
                self._values[handle] = emulator.read(rest)
            return 0

        def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:
            return self._values.get(fi.fh, b"")[offset : offset + size]

        def write(self, path: str, data: bytes, offset: int, fi: Any) -> int:
            name = path.strip("/")
            written = self._written.setdefault(fi.fh, bytearray())
            if name.endswith("/inblob") and len(written) + len(data) > 64:
                raise mfusepy.FuseOSError(errno.EFBIG)
            if tree.writes_at_once(name):
                del self._written[fi.fh]
                emulator, rest = tree.find(name)
                emulator.write(rest, bytes(data) if offset == 0 else b"")
                return len(data)
            written += data
            return len(data)

        def truncate(self, path: str, length: int, fh: Any = None) -> int:
            return 0

        def flush(self, path: str, fi: Any) -> int:
            data = self._written.pop(fi.fh, None)
            if data is None:
                return 0
            name = path.strip("/")
            if name == CONTROL:
                tree.control(json.loads(data))
                return 0
            emulator, rest = tree.find(name)
            emulator.write(rest, bytes(data))
            return 0

        def release(self, path: str, fi: Any) -> int:
            self._values.pop(fi.fh, None)
            return 0

        def mkdir(self, path: str, mode: int) -> int:
            emulator, rest = tree.find(path.strip("/"))
            emulator.mkdir(rest)
            return 0

        def rmdir(self, path: str) -> int:
            emulator, rest = tree.find(path.strip("/"))
            emulator.rmdir(rest)
            return 0

        def ioctl(self, path: str, command: int, arg: Any, fi: Any, flags: int, data: Any) -> int:
            emulator, rest = tree.find(path.strip("/"))
            argument = bytearray(ctypes.string_at(data, 32))
            pid = mfusepy.fuse_get_context()[2]
            emulator.ioctl(rest, command & 0xFFFFFFFF, argument, ProcessMemory(pid))
            ctypes.memmove(data, bytes(argument), 32)
            return 0

        def readdir(self, path: str, fh: Any) -> list[str]:
            return [".", ".."]

    options = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
    mfusepy.FUSE(Adapter(), str(place), foreground=True, nothreads=True, raw_fi=True, **options)


def _is_folder(tree: Tree, name: str) -> bool:
    top, _, rest = name.partition("/")
    part = tree.parts.get(top)
    if part is None or isinstance(part, SevGuest | Nsm):
        return False
    return not rest or rest in part.folders or (isinstance(part, ConfigTsm) and rest in part.entries)


def _is_file(tree: Tree, name: str) -> bool:
    top, _, rest = name.partition("/")
    part = tree.parts.get(top)
    return part is not None and (isinstance(part, SevGuest | Nsm) or rest in part.names())


def _tree(kind: str, out: Path) -> Tree:
    import worlds

    worlds.NOW = datetime.now(UTC).replace(microsecond=0)  # the vendors sign around now
    import fake_amd
    import fake_intel

    if kind == "snp":
        guest = fake_amd.Machine()
        table = fake_amd.certificate_table(
            ("VCEK", guest.leaf_der), ("ASK", guest.issuer_der), ("ARK", guest.root_der)
        )
        (out / "vendor.json").write_text(json.dumps(fake_amd.roots()))
        tsm = ConfigTsm(
            lambda data: guest.but(fields={0x50: data, 0xC0: bytes.fromhex(tsm.host_data)}).report,
            provider="sev_guest",
            certificates=table,
            floor=0,
        )
        return Tree({REPORTS: tsm, SEV_GUEST: SevGuest(measurement=fake_amd.MEASUREMENT)})
    if kind == "nitro":
        return _nitro(out)
    intel = fake_intel.SGX if kind == "sgx" else fake_intel.TDX5
    (out / "vendor.json").write_text(json.dumps(intel.roots))
    (out / "endorsements").mkdir()
    (out / "endorsements" / "dcap.json").write_bytes(intel.bundle)
    if kind == "sgx":
        assert intel.body == {} and MRENCLAVE and MRSIGNER
        return Tree({ATTESTATION: Gramine(lambda data: intel.but(body={"report_data": data}).quote)})
    registers = Registers()
    quoted = ConfigTsm(
        lambda data: intel.but(body={"report_data": data, "rtmr3": registers.rtmr3}).quote,
        provider="tdx_guest",
    )
    return Tree({REPORTS: quoted, REGISTERS: registers})


def _nitro(out: Path) -> Tree:
    """A hypervisor whose certificates are of now: the same chain for every document, each document of its moment."""
    import fake_aws

    now = datetime.now(UTC).replace(microsecond=0)
    ages = {"root": 8000, "regional": 20, "zonal": 5, "instance": 1, "leaf": 0.125}
    dates = {
        n: {"begins": now - timedelta(seconds=3), "ends": now + timedelta(days=d)} for n, d in ages.items()
    }
    certificates = fake_aws.chain(**dates)
    (out / "vendor.json").write_text(json.dumps([hashlib.sha256(certificates[0]).hexdigest()]))

    def mint(user_data: bytes, nonce: bytes | None) -> bytes:
        at = int(datetime.now(UTC).timestamp() * 1000)
        return fake_aws.mint(certificates=certificates, user_data=user_data, nonce=nonce, timestamp=at)

    return Tree({NSM: Nsm(mint)})


if __name__ == "__main__":
    serve(_tree(sys.argv[1], Path(sys.argv[3])), Path(sys.argv[2]))
