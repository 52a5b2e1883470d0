"""Attacks by arbitrary code in a confined process, each tried under each layer alone: `sandbox_attacks.py` prints what
came of them as JSON. tests/test_sandbox.py judges it, tools/sandbox.py writes docs/sandbox.md from it.

Rules
  - An attack returns only if it reached what it wanted: content was read, a descriptor was got, a signal went out.
  - Under no layer at all it has to succeed, or to fail because this machine does not offer the thing: an attack that
    always fails shows nothing.
  - One process an attempt, forked from one that imported nothing but the sandbox. What it attacks is prepared before.
"""

# System calls are meant here, not `pathlib`; whatever goes wrong in an attacker is what came of it.
# ruff: noqa: PTH101, PTH104, PTH108, PTH116, PTH123, PTH208, BLE001
from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strongroom import kernel, sandbox

SUCCEEDS = "succeeds"
NONE, BUT_SECCOMP, ALL = "none", "all but seccomp", "all"
PREPARER = "preparer"
"""All layers but the empty root, by the profile of who prepares a form: it opens its own files again by name."""
COLUMNS = (NONE, *sandbox.LAYERS, BUT_SECCOMP, ALL, PREPARER)
SPARE_BYTES = 256 << 20
"""Of address space that an attacker has beyond what it starts with."""
PLAIN_USER = 54321
OTHER_NAME = "strongroom-attack"

libc = ctypes.CDLL(None, use_errno=True)
_X86 = platform.machine() == "x86_64"
# (x86-64, AArch64)
CALLS = {
    "add_key": (248, 217), "bpf": (321, 280), "clone3": (435, 435), "execveat": (322, 281),
    "io_uring_setup": (425, 425), "memfd_create": (319, 279), "mq_open": (240, 180), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pkey_alloc": (330, 289), "pkey_mprotect": (329, 288),
    "process_vm_readv": (310, 270), "ptrace": (101, 117), "setns": (308, 268), "tgkill": (234, 131),
    "unshare": (272, 97), "userfaultfd": (323, 282),
}  # fmt: skip
ATTACKS: dict[str, Callable[[World], object]] = {}
STATED: dict[str, str] = {}
"""Attack -> what it ends in when all layers hold."""
GROUPS: dict[str, str] = {}


def attack(group: str, name: str, stated: str = "SIGSYS") -> Callable[[Any], Any]:
    """Enters an attack into the table."""

    def enter(function: Callable[[World], object]) -> Callable[[World], object]:
        ATTACKS[name], STATED[name], GROUPS[name] = function, stated, group
        return function

    return enter


def done(result: int) -> int:
    """The result of a call of libc; raises where it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return int(result)


def call(name: str, *arguments: Any) -> int:
    """A system call by its number."""
    number = CALLS[name][0 if _X86 else 1]
    return done(
        libc.syscall(
            ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
        )
    )


class World:
    """What there is to attack, prepared before anything is locked down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parent = os.getpid()
        self.secret = folder / "secret"
        self.secret.write_bytes(b"a key of somebody else" * 5000)
        self.secret.chmod(0o600)
        self.inherited = os.open(self.secret, os.O_RDONLY)
        self.slots = os.memfd_create("slots")
        os.write(self.slots, b"stages of somebody else's model")
        self.output = os.open(folder / "output", os.O_RDWR | os.O_CREAT)
        self.ours, self.theirs = socket.socketpair()
        self.tcp, self.udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        self.tcp.bind(("127.0.0.1", 0))
        self.tcp.listen(64)
        self.udp.bind(("127.0.0.1", 0))
        self.tcp_address, self.udp_address = self.tcp.getsockname(), self.udp.getsockname()
        self.unix, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "socket"))
        self.abstract_name = f"\0strongroom-{self.parent}"
        self.abstract.bind(self.abstract_name)
        self.unix.listen(64)
        self.abstract.listen(64)
        self.network = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.program = Path("/bin/true").read_bytes()
        self.page = ctypes.create_string_buffer(b"memory of somebody else", 4096)
        self.sibling = os.fork()
        if self.sibling == 0:
            signal.pause()
            os._exit(0)
        self.shared = libc.shmget(0, 4096, 0o1600)
        self.queue_name = f"strongroom-{self.parent}".encode()
        attributes = struct.pack("8q", 0, 1, 8, 0, 0, 0, 0, 0)
        with contextlib.suppress(OSError):
            os.close(call("mq_open", self.queue_name, os.O_RDWR | os.O_CREAT, 0o600, attributes))
        self.memory = Path("/dev/shm") / f"strongroom-{self.parent}"
        with contextlib.suppress(OSError):
            self.memory.write_bytes(b"shared by others")
        self.handle = self._handle()
        self.setuid = folder / "setuid-id"
        if os.getuid() == 0:
            shutil.copy(shutil.which("id") or "/usr/bin/id", self.setuid)
            os.chmod(self.setuid, 0o4755)
            os.chmod(folder, 0o755)
        self.name = socket.gethostname()
        self.interfaces = socket.if_nameindex()
        self.deeper = ctypes.CFUNCTYPE(None)(self._deeper)  # before: making one needs executable memory

    def _deeper(self) -> None:
        self.deeper()

    def _handle(self) -> Any:
        handle = ctypes.create_string_buffer(struct.pack("Ii", 120, 0), 128)
        mount = ctypes.c_int(0)
        try:
            call("name_to_handle_at", -100, bytes(self.secret), handle, ctypes.byref(mount), 0)
        except OSError:
            return None
        return handle

    def close(self) -> None:
        """Takes away what outlives a process."""
        os.kill(self.sibling, signal.SIGKILL)
        os.waitpid(self.sibling, 0)
        libc.shmctl(self.shared, 0, None)
        with contextlib.suppress(OSError):
            self.memory.unlink()
        libc.syscall(ctypes.c_long(241 if _X86 else 181), self.queue_name)


class Unavailable(Exception):
    """This machine does not offer what would be attacked."""


# Files


@attack("files", "read a file", "ENOENT")
def _read(w: World) -> None:
    assert w.secret.read_bytes()


@attack("files", "write a file", "ENOENT")
def _write(w: World) -> None:
    (w.folder / f"new-{os.getpid()}").write_bytes(b"left behind")


@attack("files", "list a folder", "ENOENT")
def _list(w: World) -> None:
    assert os.listdir(w.folder)


@attack("files", "ask for a file's size", "ENOENT")
def _stat(w: World) -> None:
    os.stat(w.secret)


@attack("files", "rename a file")
def _rename(w: World) -> None:
    os.rename(w.secret, w.folder / "moved")
    os.rename(w.folder / "moved", w.secret)


@attack("files", "delete a file")
def _delete(w: World) -> None:
    os.link(w.secret, w.folder / f"link-{os.getpid()}")
    os.unlink(w.folder / f"link-{os.getpid()}")


@attack("files", "/proc/self/mem", "ENOENT")
def _own_memory(w: World) -> None:
    with open("/proc/self/mem", "rb") as file:
        file.seek(ctypes.addressof(w.page))
        assert file.read(4)


@attack("files", "memory of the parent in /proc", "ENOENT")
def _parents_memory(w: World) -> None:
    with open(f"/proc/{w.parent}/mem", "rb") as file:
        file.seek(ctypes.addressof(w.page))
        assert file.read(4)


@attack("files", "environment of the parent in /proc", "ENOENT")
def _environment(w: World) -> None:
    assert Path(f"/proc/{w.parent}/environ").read_bytes()


@attack("files", "a memory file of the parent in /proc", "ENOENT")
def _memory_file(w: World) -> None:
    with open(f"/proc/{w.parent}/fd/{w.slots}", "rb") as file:
        assert file.read(4)


@attack("files", "open a file by its handle")
def _by_handle(w: World) -> None:
    if w.handle is None:
        raise Unavailable
    mount = call_open(b"/")
    descriptor = call("open_by_handle_at", mount, w.handle, os.O_RDONLY)
    assert os.read(descriptor, 1)


def call_open(path: bytes) -> int:
    """A folder to start from; AT_FDCWD where not even that opens."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return -100


@attack("files", "mount over a folder of the machine")
def _mount(w: World) -> None:
    target = bytes(w.folder / "target")
    done(libc.mount(b"none", target, b"tmpfs", 0, None))
    libc.umount2(target, 2)


@attack("files", "chroot into a folder of the machine")
def _chroot(w: World) -> None:
    os.chroot(w.folder)


# Descriptors


@attack("descriptors", "read an inherited descriptor")
def _inherited(w: World) -> None:
    assert os.read(w.inherited, 4)


@attack("descriptors", "grow a file that it may write", "EFBIG")
def _grow(w: World) -> None:
    assert os.write(w.output, b"x" * 100) == 100


@attack("descriptors", "500 more descriptors")
def _descriptors(w: World) -> None:
    got = [os.dup(w.theirs.fileno()) for _ in range(500)]
    assert len(got) == 500


@attack("descriptors", "signals of its socket to others (F_SETOWN)")
def _owner(w: World) -> None:
    import fcntl

    fcntl.fcntl(w.theirs.fileno(), fcntl.F_SETOWN, w.parent)


@attack("descriptors", "out-of-band data on its socket (CVE-2025-38236)")
def _out_of_band(w: World) -> None:
    w.theirs.send(b"x", socket.MSG_OOB)


@attack("descriptors", "steal a descriptor of the parent (pidfd_getfd)")
def _steal(w: World) -> None:
    assert os.read(call("pidfd_getfd", call("pidfd_open", w.parent, 0), w.inherited, 0), 4)


# Network


@attack("network", "TCP to the host")
def _tcp(w: World) -> None:
    with socket.socket() as client:
        client.settimeout(2)
        client.connect(w.tcp_address)


@attack("network", "listen on TCP")
def _listen(w: World) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()


@attack("network", "UDP to the host")
def _udp(w: World) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", w.udp_address)


@attack("network", "a UNIX socket in a folder")
def _unix(w: World) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(w.folder / "socket"))


@attack("network", "an abstract UNIX socket")
def _abstract(w: World) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(w.abstract_name)


@attack("network", "the machine's interfaces by netlink")
def _netlink(w: World) -> None:
    if len(w.interfaces) < 2:
        raise Unavailable
    if socket.if_nameindex() != w.interfaces:
        raise OSError(errno.ENODEV, "others")


def _family(family: int, kind: int, protocol: int = 0) -> Callable[[World], object]:
    def make(w: World) -> None:
        socket.socket(family, kind, protocol).close()

    return make


attack("network", "a vsock socket")(_family(40, socket.SOCK_STREAM))
attack("network", "a raw socket")(_family(socket.AF_INET, socket.SOCK_RAW, 1))
attack("network", "a packet socket")(_family(17, socket.SOCK_RAW, 0x300))
attack("network", "a netlink socket")(_family(16, socket.SOCK_RAW))
attack("network", "a kernel crypto socket (AF_ALG)")(_family(38, socket.SOCK_SEQPACKET))


# Processes


@attack("processes", "fork")
def _fork(w: World) -> None:
    if os.fork() == 0:
        os._exit(0)


@attack("processes", "posix_spawn (vfork)")
def _spawn(w: World) -> None:
    os.posix_spawn("/bin/true", ["true"], {})


@attack("processes", "a thread")
def _thread(w: World) -> None:
    try:
        threading.Thread(target=len, args=("",)).start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread") from None


@attack("processes", "clone3", "ENOSYS")
def _clone3(w: World) -> None:
    if call("clone3", struct.pack("8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64) == 0:
        os._exit(0)


@attack("processes", "execve")
def _execve(w: World) -> None:
    os.execv("/bin/true", ["true"])


@attack("processes", "execute a memfd")
def _memfd_exec(w: World) -> None:
    descriptor = os.memfd_create("x")
    os.write(descriptor, w.program)
    null = ctypes.c_void_p(None)
    call("execveat", descriptor, b"", ctypes.byref(null), ctypes.byref(null), 0x1000)


@attack("processes", "a set-user-id file gives root")
def _set_user_id(w: World) -> None:
    got = subprocess.run([w.setuid, "-u"], capture_output=True, check=False).stdout.strip()
    if got != b"0":
        raise OSError(errno.EPERM, "still the same user")


@attack("processes", "its memory is read by the same user", "EPERM")
def _read_by_sibling(w: World) -> None:
    """Carried out by the other process: see `_attempt`."""


@attack("processes", "ptrace")
def _ptrace(w: World) -> None:
    call("ptrace", 0x4206, w.sibling, 0, 0)  # PTRACE_SEIZE


@attack("processes", "read a sibling's memory (process_vm_readv)")
def _vm_read(w: World) -> None:
    read_memory(w.sibling, w.page)


def read_memory(pid: int, page: Any) -> None:
    """Reads the memory of a process that was forked from this one."""
    into = ctypes.create_string_buffer(16)
    local = struct.pack("QQ", ctypes.addressof(into), 16)
    remote = struct.pack("QQ", ctypes.addressof(page), 16)
    assert call("process_vm_readv", pid, local, 1, remote, 1, 0) == 16 and into.raw[:6] == b"memory"


@attack("processes", "signal the parent (kill)")
def _kill(w: World) -> None:
    os.kill(w.parent, signal.SIGCONT)


@attack("processes", "signal process 1 (kill)")
def _kill_first(w: World) -> None:
    os.kill(1, 0)


@attack("processes", "signal a sibling (tgkill)")
def _tgkill(w: World) -> None:
    call("tgkill", w.sibling, w.sibling, int(signal.SIGCONT))


@attack("processes", "signal a sibling (pidfd)")
def _pidfd(w: World) -> None:
    call("pidfd_send_signal", call("pidfd_open", w.sibling, 0), int(signal.SIGCONT), None, 0)


@attack("processes", "change a sibling's limits (prlimit)")
def _prlimit(w: World) -> None:
    resource.prlimit(w.sibling, resource.RLIMIT_CORE, (0, 0))


@attack("processes", "change a sibling's processors")
def _affinity(w: World) -> None:
    os.sched_setaffinity(w.sibling, {0})


# Memory


def _map(prot: int) -> int:
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    at = libc.mmap(None, 4096, prot, 0x22, -1, 0)
    if at == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "refused")
    return int(at)


@attack("memory", "writable and executable memory (mmap)")
def _wx_map(w: World) -> None:
    _map(7)


@attack("memory", "memory made executable (mprotect)")
def _wx_protect(w: World) -> None:
    done(libc.mprotect(ctypes.c_void_p(_map(3)), ctypes.c_size_t(4096), 5))


@attack("memory", "memory made executable (pkey_mprotect)")
def _wx_key(w: World) -> None:
    call("pkey_mprotect", _map(3), 4096, 5, -1)


@attack("memory", "executable by personality")
def _personality(w: World) -> None:
    call("personality", 0x0400000)


@attack("memory", "memfd_create")
def _memfd(w: World) -> None:
    os.memfd_create("x")


@attack("memory", "shared memory of others (System V)")
def _shm(w: World) -> None:
    libc.shmat.restype = ctypes.c_void_p
    if libc.shmat(w.shared, None, 0o10000) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "refused")


@attack("memory", "shared memory of others (POSIX)", "ENOENT")
def _posix_shm(w: World) -> None:
    assert w.memory.read_bytes()


@attack("memory", "a message queue of others (POSIX)")
def _queue(w: World) -> None:
    call("mq_open", w.queue_name, os.O_RDONLY, 0, None)


@attack("memory", "lock memory")
def _lock(w: World) -> None:
    done(libc.mlock(w.page, ctypes.c_size_t(4096)))


@attack("memory", "userfaultfd")
def _userfault(w: World) -> None:
    call("userfaultfd", 0x80000)


@attack("memory", "much memory", "MemoryError")
def _allocate(w: World) -> None:
    bytearray(SPARE_BYTES)


@attack("memory", "endless recursion on the stack", "SIGSEGV")
def _recurse(w: World) -> None:
    sys.setrecursionlimit(1 << 30)
    w.deeper()


@attack("memory", "processor time", "SIGKILL")
def _spin(w: World) -> None:
    most = resource.getrlimit(resource.RLIMIT_CPU)[0]
    until = 0.01 if most < 0 else most + 1.5
    while time.process_time() < until:
        pass


# The kernel


@attack("kernel", "io_uring")
def _uring(w: World) -> None:
    call("io_uring_setup", 1, ctypes.create_string_buffer(120))


@attack("kernel", "bpf")
def _bpf(w: World) -> None:
    attributes = struct.pack("4I", 2, 4, 4, 1)  # an array map
    call("bpf", 0, attributes + bytes(112), 128)


@attack("kernel", "perf_event_open")
def _perf(w: World) -> None:
    attributes = struct.pack("IIQ", 1, 112, 1) + bytes(96)  # a software event: page faults
    call("perf_event_open", attributes, 0, -1, -1, 0)


@attack("kernel", "a key in a keyring")
def _key(w: World) -> None:
    call("add_key", b"user", b"strongroom-test", b"x", 1, -2)


@attack("kernel", "a new user namespace")
def _user_namespace(w: World) -> None:
    call("unshare", 0x10000000)


@attack("kernel", "a new network namespace")
def _network_namespace(w: World) -> None:
    call("unshare", 0x40000000)


@attack("kernel", "join the host's network namespace")
def _join(w: World) -> None:
    call("setns", w.network, 0x40000000)


@attack("kernel", "become another user")
def _set_user(w: World) -> None:
    os.setresuid(4242, 4242, 4242)


@attack("kernel", "set the host's name")
def _host_name(w: World) -> None:
    socket.sethostname(OTHER_NAME)  # whether it is the host's is seen from outside: see `attempt`


@attack("kernel", "raise its limits")
def _raise(w: World) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    except ValueError:
        raise OSError(errno.EPERM, "not allowed to raise the limit") from None


@attack("kernel", "become dumpable")
def _dumpable(w: World) -> None:
    done(libc.prctl(4, 1, 0, 0, 0))


@attack("kernel", "lay on a filter of its own")
def _filter(w: World) -> None:
    code = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000), 8)
    described = struct.pack("@HxxxxxxQ", 1, ctypes.addressof(code))
    done(libc.prctl(38, 1, 0, 0, 0))
    done(libc.prctl(22, 2, described, 0, 0))


@attack("kernel", "a seccomp listener (user notification)")
def _listener(w: World) -> None:
    code = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000), 8)
    described = struct.pack("@HxxxxxxQ", 1, ctypes.addressof(code))
    done(libc.syscall(ctypes.c_long(317 if _X86 else 277), ctypes.c_long(1), ctypes.c_long(8), described))


AS_PLAIN_USER = {"a set-user-id file gives root", "its memory is read by the same user"}
"""Attacks by one plain user on another process: root needs none of this."""


def without(column: str) -> frozenset[str]:
    """The layers that a column leaves out."""
    everything = frozenset(sandbox.LAYERS)
    return {
        NONE: everything,
        ALL: frozenset(),
        PREPARER: frozenset(),
        BUT_SECCOMP: frozenset({"seccomp"}),
    }.get(column, everything - {column})


def _lock_down(world: World, report: int, column: str) -> tuple[str, ...]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    prepares = column == PREPARER
    return sandbox.lock_down(
        sandbox.Profile(
            memory_bytes=used + SPARE_BYTES // 2,
            cpu_s=1,
            read_fds=(world.theirs.fileno(),),
            write_fds=(report, world.output, world.theirs.fileno()),
            fork=False,
            receive_fds=prepares,
            file_bytes=50 if prepares else 0,
            reopens=prepares,
        ),
        without=without(column),
    )


def _attacker(world: World, report: int, name: str, column: str) -> None:
    if name in AS_PLAIN_USER and os.getuid() == 0:
        os.setgroups([])
        os.setresgid(PLAIN_USER, PLAIN_USER, PLAIN_USER)
        os.setresuid(PLAIN_USER, PLAIN_USER, PLAIN_USER)
    if name == "its memory is read by the same user":
        libc.prctl(4, 1, 0, 0, 0)  # a process that changed its user is not dumpable: undo that first
        _from_outside(world, report, column)
        return
    _lock_down(world, report, column)
    os.write(report, _tried(world, name).encode())


def _tried(world: World, name: str) -> str:
    try:
        ATTACKS[name](world)
    except Unavailable:
        return "unavailable"
    except MemoryError:
        return "MemoryError"
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, type(exc).__name__)
    return SUCCEEDS


def _from_outside(world: World, report: int, column: str) -> None:
    ready, tell = os.pipe()
    target = os.fork()
    if target == 0:
        _lock_down(world, tell, column)
        os.write(tell, b"+")
        while True:
            time.sleep(1)
    os.read(ready, 1)
    try:
        read_memory(target, world.page)
        answer = SUCCEEDS
    except OSError as exc:
        answer = errno.errorcode[exc.errno or 0]
    os.kill(target, signal.SIGKILL)
    os.write(report, answer.encode())


def attempt(world: World, name: str, column: str) -> str:
    """What comes of one attack under the layers of one column: "succeeds", an errno, an exception or a signal."""
    reading, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            _attacker(world, report, name, column)
        except BaseException as exc:
            os.write(report, f"{type(exc).__name__}: {exc}".encode())
        os._exit(0)
    os.close(report)
    said = b""
    if select.select([reading], [], [], 15)[0]:
        said = os.read(reading, 4096)
    else:
        os.kill(pid, signal.SIGKILL)
        said = b"hangs"
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if name == "set the host's name" and said == SUCCEEDS.encode():
        if socket.gethostname() != OTHER_NAME:
            return "its own"
        socket.sethostname(world.name)
    if said:
        return said.decode()
    return signal.Signals(status & 0x7F).name if status & 0x7F else SUCCEEDS


def run(names: list[str], columns: list[str]) -> dict[str, dict[str, str]]:
    """Attack -> column -> what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "target").mkdir()
        world = World(Path(folder))
        try:
            return {name: {column: attempt(world, name, column) for column in columns} for name in names}
        finally:
            world.close()


def main() -> None:
    """Prints, as JSON, which layers hold here and what came of every attack."""
    held = sandbox.probe()
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # an overrun stack leaves no dump behind
    if os.getuid() == 0:  # so that setting the host's name sets nothing but a name in here
        with contextlib.suppress(OSError):
            kernel.unshare(kernel.NEWUTS)
    columns = [c for c in COLUMNS if c not in sandbox.LAYERS or c in held]
    names = [n for n in ATTACKS if len(sys.argv) < 2 or sys.argv[1] in n]
    json.dump({"held": held, "root": os.getuid() == 0, "attacks": run(names, columns)}, sys.stdout)


if __name__ == "__main__":
    main()
