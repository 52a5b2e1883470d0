"""Taking from a process everything that it does not need: after `lock_down` arbitrary code in it reaches nothing.

Layers, each of which stands alone (docs/sandbox.md shows what each of them stops without the others):

    closed_descriptors   no descriptor is open but the named ones; 0 to 2 lead nowhere
    namespaces           own network, IPC, host name, cgroup and mount namespaces; the root is an empty folder
    landlock             no file, no TCP, no signals and abstract sockets outside, as far as the kernel's ABI goes
    uid                  a user and group of its own, different from everybody's on this machine
    capabilities         none
    no_new_privileges    executing a file gives nothing back
    not_dumpable         no core dumps; other processes of the user cannot read its memory
    rlimits              address space, processor time, processes, files, locked memory
    seccomp              a short list of system calls, by number and arguments (`seccomp`)

Rules
  - What took hold is measured after the fact and returned; what did not is missing from the answer and no error.
    Whoever needs a layer compares: this module does not decide what is enough.
  - Irreversible. A child of a process that was locked down with `fork` locks itself down once more, with less.
  - The order is fixed by the layers: descriptors before the root disappears (0 to 2 become /dev/null); namespaces
    while there are privileges; Landlock after mounting, which it forbids; capabilities after the change of user
    that needs them; dumpable and the parent's death signal after that change, which resets both; rlimits, with
    which no further descriptor can be opened, after Landlock's; the filter last, for it forbids all the others.
  - One thread: filters and Landlock hold for the thread that asks, and a second one would go on without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from strongroom import kernel, seccomp
from strongroom.errors import Failure

LAYERS: Final = (
    "capabilities",
    "closed_descriptors",
    "landlock",
    "namespaces",
    "no_new_privileges",
    "not_dumpable",
    "rlimits",
    "seccomp",
    "uid",
)
"""The names of all layers, sorted."""

RECEIVED: Final = 64
"""Descriptors that a process with `receive_fds` may have beyond those that it was locked down with."""
_USERS: Final = 1 << 30
"""First of the user ids that processes get, plus their process id: nobody else's, also not another worker's."""
_NOBODY: Final = 65534
"""Where a user namespace maps fewer ids than that."""
_PLACES: Final = (Path("/proc"), Path("/usr"), Path("/run"))
"""Folders of which one is there; an empty one is mounted over it, in the process's own mount namespace."""
_PROBE_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a process may still do after `lock_down`."""

    memory_bytes: int
    """Of address space, absolute, where that is a measure of memory (Linux)."""
    cpu_s: int | None
    """Seconds of processor time since the process began; None: not limited."""
    read_fds: tuple[int, ...]
    """Descriptors that stay open to read from, receive on. Sockets should be connected streams: where a datagram
    socket sends to lies in memory, which a filter does not see."""
    write_fds: tuple[int, ...]
    """The same to write to, send on."""
    fork: bool
    """Forking children (no threads), waiting for them, killing them; False: nothing of the kind."""
    receive_fds: bool
    """Receiving descriptors and mapping what they refer to, shared and not executable. Reading and writing is
    then not bounded by number but by what is open."""
    tend: bool = True
    """With `fork`: waiting for children, killing them. Without it nothing reaches a parent by how its children end."""
    processes: int | None = None
    """With `fork`: processes at a time, this one among them, where its user is its own (elsewhere the limit would count
    others' processes); None: not limited."""
    file_bytes: int = 0
    """Size to which a descriptor of `write_fds` may grow (RLIMIT_FSIZE); 0: no file grows."""
    reopens: bool = False
    """Opening its own pipes and memory files once more by name (/proc/self/fd), for a library that takes nothing but
    names. Then the root is not exchanged, and Landlock alone keeps every other name from it: whoever asks for this
    has to see that `landlock` holds. With `receive_fds`."""
    looks: bool = False
    """Asking whether there is a file by a name, for a library that looks whether a folder is there: with the layer
    `namespaces` there is one, which is empty. With `receive_fds`, which leaves as much of it."""


_held: frozenset[str] = frozenset()
"""What was measured in this process, or in the one that it was forked from: identity, namespaces and Landlock
cannot be lost again, and under the filter they can no longer be asked."""


def lock_down(profile: Profile, *, without: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Takes everything from this process that `profile` does not leave it. Returns the names of the layers that
    hold now, as measured, sorted. Irreversible; some 5 ms, and 2 for the child of a locked process.

    `without`: layers that are left out, for tests and measurements.

    Raises:
        Failure: more than one thread runs here (code `sandbox_threads`). Nothing was done.
        ValueError: more descriptors are named than a filter has room for (about 200), or `without` names no layer.
    """
    global _held
    if unknown := without - set(LAYERS):
        raise ValueError(f"no layers: {', '.join(sorted(unknown))}")
    _one_thread()
    program = _program(profile, parent=os.getppid())  # while /proc is there, and nothing was done
    steps: dict[str, Callable[[], bool]] = {
        "closed_descriptors": lambda: _close(profile),
        "namespaces": lambda: _isolate(empty=not profile.reopens),
        "no_new_privileges": _no_new_privileges,
        "landlock": _landlock,
        "uid": _become_nobody,
        "capabilities": _drop,
        "not_dumpable": _not_dumpable,
        "rlimits": lambda: _limit(profile),
        "seccomp": lambda: program is not None and _filter(program),
    }
    if sys.platform != "linux":
        steps = {name: steps[name] for name in ("closed_descriptors", "rlimits")}
    filtered = "seccomp" in _held
    death = _DeathSignal()
    for name, step in steps.items():
        if name == "rlimits":
            death.set_again()
        if name in without or (filtered and name in _ONCE):
            continue
        holds = False
        with contextlib.suppress(OSError):
            holds = step()
        if holds:
            _held |= {name}
        elif name in _TIGHTENED:  # what its parent had of it leaves a child more than it may have now
            _held -= {name}
    return tuple(sorted(_held))


_ONCE: Final = frozenset({"namespaces", "uid", "capabilities", "no_new_privileges", "not_dumpable"})
"""What children have from the process that they were forked from, and what a filter no longer lets them ask."""
_TIGHTENED: Final = frozenset({"closed_descriptors", "rlimits", "seccomp"})
"""What a child has less of than the process that it was forked from."""


def probe() -> tuple[str, ...]:
    """The layers that take hold here, sorted: measured in a throw-away child that is locked down like a worker.

    Raises:
        Failure: the child died, or did not answer in time (code `sandbox_probe`).
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child runs none of the parent's locks
        pid = os.fork()
    if pid == 0:
        os._exit(_probed(writing))
    os.close(writing)
    answer = _answer_of(reading, pid)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if not answer.endswith("."):
        raise Failure(f"measuring the sandbox: the child ended with status {status}", code="sandbox_probe")
    return tuple(answer[:-1].split())


def _probed(writing: int) -> int:
    try:
        profile = Profile(
            memory_bytes=1 << 46, cpu_s=60, read_fds=(), write_fds=(writing,), fork=False, receive_fds=False
        )
        os.write(writing, (" ".join(lock_down(profile)) + ".").encode())
    except BaseException:  # noqa: BLE001 - this process must not return into its parent's code
        return 1
    return 0


def _answer_of(reading: int, pid: int) -> str:
    """What the child wrote until it ended; it is ended where that takes too long."""
    deadline, parts = time.monotonic() + _PROBE_S, b""
    while (left := deadline - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
        if not (part := os.read(reading, 4096)):
            return parts.decode("ascii", "replace")
        parts += part
    os.kill(pid, signal.SIGKILL)
    return ""


# Before the first layer


def _one_thread() -> None:
    try:
        count = sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:  # no /proc, or under the filter: a forked child has one thread
        return
    if count != 1:
        raise Failure(f"{count} threads run in this process, one may", code="sandbox_threads")


def prepare(profile: Profile) -> None:
    """Makes the filter of children of this process, which are to be locked down by this profile: once for all of them.
    It takes a millisecond, which a child then need not wait for.
    """
    _program(profile, parent=os.getpid())


def _program(profile: Profile, *, parent: int) -> bytes | None:
    """The filter; None for a machine of which the numbers of calls are not known."""
    machine = kernel.MACHINE
    if machine not in seccomp.NUMBERS or sys.maxsize < 1 << 32:  # a 32-bit process has other numbers
        return None
    # What the filter does not depend on stays out: one that was made before its limits were known is used.
    same = replace(profile, memory_bytes=0, cpu_s=None, processes=None, file_bytes=min(profile.file_bytes, 1))
    return _assembled(machine, same, parent)


@functools.lru_cache(maxsize=4)
def _assembled(machine: str, profile: Profile, parent: int) -> bytes:
    rules = seccomp.rules(
        read_fds=profile.read_fds,
        write_fds=profile.write_fds,
        fork=profile.fork,
        receive_fds=profile.receive_fds,
        files=profile.file_bytes > 0,
        parent=parent,
        tend=profile.tend,
        opens=profile.reopens,
        looks=profile.looks,
    )
    return seccomp.assemble(rules, machine=machine)


# The layers: each does its part and says whether it holds


def _close(profile: Profile) -> bool:
    kept = {*profile.read_fds, *profile.write_fds}
    if "closed_descriptors" not in _held:
        with contextlib.suppress(OSError):  # where there is no /dev/null they are closed
            null = os.open("/dev/null", os.O_RDWR)
            for standard in {0, 1, 2} - kept:
                os.dup2(null, standard)
            kept |= {0, 1, 2}
    else:
        kept |= {0, 1, 2}
    try:
        kernel.close_all_but(tuple(kept))
    except OSError:
        start = 0
        for descriptor in (*sorted(kept), max(_open_descriptors(), default=-1) + 1):
            if descriptor > start:  # CPython takes the empty range (0, 0) for all there are
                os.closerange(start, descriptor)
            start = descriptor + 1
    return set(_open_descriptors()) <= kept


_SCANNED: Final = 1 << 16
"""Descriptors that are looked at one by one where /proc does not list them."""


def _open_descriptors() -> list[int]:
    try:
        folder = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
        listed = [int(entry.name) for entry in folder.iterdir()]
    except OSError:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        listed = list(range(_SCANNED if soft < 0 else min(soft, _SCANNED)))
    found = []
    for descriptor in listed:  # the one that listed is closed again
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_GETFD)
            found.append(descriptor)
    return found


def _isolate(*, empty: bool) -> bool:
    spaces = ("net", "ipc", "uts", "mnt", "cgroup")
    before = [Path(f"/proc/self/ns/{name}").readlink() for name in spaces]
    flags = kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWNS | kernel.NEWCGROUP
    try:
        kernel.unshare(flags)
    except OSError:  # without privileges: inside a user namespace, where that is allowed
        kernel.unshare(flags | kernel.NEWUSER)
    after = [Path(f"/proc/self/ns/{name}").readlink() for name in spaces]
    if not empty:
        return False  # half of the layer is none
    kernel.empty_root(os.fsencode(next(place for place in _PLACES if place.is_dir())))
    return not set(before) & set(after) and not any(Path("/").iterdir())


def _no_new_privileges() -> bool:
    kernel.prctl(kernel.SET_NO_NEW_PRIVS, 1)
    return kernel.prctl(kernel.GET_NO_NEW_PRIVS) == 1


def _landlock() -> bool:
    kernel.landlock_deny_all(kernel.landlock_abi())
    return "landlock" in _held or _answer_to_open() == errno.EACCES


def _become_nobody() -> bool:
    before = os.getuid()
    try:
        _change_user(_USERS + os.getpid())
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        _change_user(_NOBODY)
    after = {*os.getresuid(), *os.getresgid()}
    return len(after) == 1 and not after & {0, before} and os.getgroups() == []


def _change_user(number: int) -> None:
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)


def _drop() -> bool:
    kernel.drop_capabilities()
    return kernel.capabilities() == 0


def _not_dumpable() -> bool:
    kernel.prctl(kernel.SET_DUMPABLE, 0)
    return kernel.prctl(kernel.GET_DUMPABLE) == 0


def _limit(profile: Profile) -> bool:
    wanted = {
        "CORE": 0,
        "FSIZE": profile.file_bytes,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "NOFILE": _descriptors(profile),
    }
    if sys.platform == "linux":
        wanted["AS"] = profile.memory_bytes
    if profile.cpu_s is not None:
        wanted["CPU"] = profile.cpu_s
    if not profile.fork:
        wanted["NPROC"] = 0
    elif profile.processes is not None and "uid" in _held and os.getuid() != _NOBODY:
        wanted["NPROC"] = profile.processes
    hold = True
    for name, most in wanted.items():
        what = getattr(resource, f"RLIMIT_{name}", None)
        if what is None:  # macOS has no message queues
            continue
        hard = resource.getrlimit(what)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))
        hold = hold and resource.getrlimit(what) == (least, least)
    return hold


def _descriptors(profile: Profile) -> int:
    """RLIMIT_NOFILE: no number below it is free, unless some are to be received, or Landlock's is needed again."""
    after = max((2, *profile.read_fds, *profile.write_fds)) + 1
    if profile.receive_fds:
        return after + RECEIVED
    return after + 1 if profile.fork else 0


def _filter(program: bytes) -> bool:
    kernel.install_filter(program)
    return _answer_to_open() == errno.ENOENT


def _answer_to_open() -> int:
    """errno of opening the root: EACCES by Landlock, ENOENT by the filter; 0: it opens."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    except OSError as exc:
        return exc.errno or 0
    return 0


class _DeathSignal:
    """The signal that this process gets when its parent ends, over a change of identity, which forgets it."""

    def __init__(self) -> None:
        self.signal = 0
        self.parent = os.getppid()
        with contextlib.suppress(OSError):
            self.signal = kernel.death_signal()

    def set_again(self) -> None:
        """Before the filter; ends this process where its parent ended meanwhile."""
        if self.signal:
            kernel.prctl(kernel.SET_PDEATHSIG, self.signal)
            if os.getppid() != self.parent:
                os.kill(os.getpid(), self.signal)
