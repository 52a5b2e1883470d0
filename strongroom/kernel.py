"""Linux system calls for which Python has no function (3.12 has `os.unshare`; the rest is in no version).

Each function is one call or one structure, raises the OSError that the kernel answers with, and is Linux's only.

Sources: prctl(2), unshare(2), mount(2), pivot_root(2), capset(2), close_range(2), seccomp(2), landlock(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Final

GET_DUMPABLE, SET_DUMPABLE, SET_SECCOMP, CAPBSET_READ, CAPBSET_DROP = 3, 4, 22, 23, 24
SET_PDEATHSIG, GET_PDEATHSIG, SET_NO_NEW_PRIVS, GET_NO_NEW_PRIVS, CAP_AMBIENT = 1, 2, 38, 39, 47
"""Options of prctl."""
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x40000000,
)  # fmt: skip
"""Flags of unshare."""

_NUMBERS: Final = {
    "x86_64": {"capget": 125, "capset": 126, "pivot_root": 155, "close_range": 436},
    "aarch64": {"capget": 90, "capset": 91, "pivot_root": 41, "close_range": 436},
}
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
"""The same on every machine, as all calls since Linux 5.1."""
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 2, 4, 8, 1 << 14, 1 << 18, 2
_CAPABILITY_VERSION: Final = 0x20080522
_SECCOMP_FILTER: Final = 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_PERTURB = -1, -3, -6
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

FILES_OF_ABI: Final = ((1, 0x1FFF), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15), (9, 1 << 16))
"""Landlock: rights on files that each ABI added: the first thirteen, REFER, TRUNCATE, IOCTL_DEV, RESOLVE_UNIX."""
_NET_ABI, _NET = 4, 0x3
"""BIND_TCP and CONNECT_TCP."""
_SCOPE_ABI, _SCOPES = 6, 0x3
"""No abstract UNIX sockets and no signals beyond the domain."""

MACHINE: Final = os.uname().machine
"""As `uname -m`; asked once, for a filter may forbid it later."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _done(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _call(number: int, *arguments: object) -> int:
    """One system call by its number; integers are passed as 64 bits."""
    if _libc is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    whole = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _done(int(_libc.syscall(ctypes.c_long(number), *whole)))


def _named(name: str, *arguments: object) -> int:
    number = _NUMBERS.get(MACHINE, {}).get(name)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return _call(number, *arguments)


def prctl(option: int, *arguments: int) -> int:
    """prctl with up to four integers; the others are 0.

    Raises:
        OSError: as the kernel answers.
    """
    if _libc is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    whole = [*arguments, 0, 0, 0, 0][:4]
    return _done(int(_libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(a) for a in whole))))


def trim_heap() -> None:
    """Gives memory that was freed back to the system, malloc_trim(3); nothing happens where the C library has no such
    function. glibc keeps what lies between blocks that are in use, for ever where nobody asks.
    """
    trim = getattr(_libc, "malloc_trim", None)  # musl's has none
    if trim is not None:
        trim(0)


def keep_heap(size: int) -> None:
    """Has the heap keep so many free bytes at its end, and give larger blocks from it than it would, mallopt(3): pages
    that are used again need not be made again. Nothing happens where the C library has no such function.
    """
    option = getattr(_libc, "mallopt", None)
    if option is not None:
        option(-1, min(size, 1 << 30))  # M_TRIM_THRESHOLD
        option(-3, 32 << 20)  # M_MMAP_THRESHOLD, of which this is the most


def return_large_blocks() -> None:
    """Has the heap give every block of 128 KiB or more back as soon as it is freed, mallopt(3); nothing happens where
    the C library has no such function. glibc moves that bound up on its own and then keeps up to 64 MiB.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        for what in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(what, 128 << 10)


def fill_blocks(byte: int) -> None:
    """Has the heap fill blocks that are freed with `byte`, and those that it hands out with the complement, mallopt(3);
    0: no longer. As MALLOC_PERTURB_ in the environment, from now on.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_PERTURB, byte)


def death_signal() -> int:
    """The signal that this process gets when its parent ends; 0: none. A change of identity forgets it.

    Raises:
        OSError: as the kernel answers.
    """
    signal = ctypes.c_int(0)
    prctl(GET_PDEATHSIG, ctypes.addressof(signal))
    return signal.value


def unshare(flags: int) -> None:
    """New namespaces for this process.

    Raises:
        OSError: EPERM without the right, or in most containers; EINVAL for NEWUSER with more than one thread.
    """
    if _libc is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    _done(_libc.unshare(ctypes.c_int(flags)))


def empty_root(place: bytes) -> None:
    """An empty, read-only folder as the root and the current folder of this process; the old root is gone from it.

    `place`: a folder to mount on. The mount namespace must be this process's own.

    Raises:
        OSError: as the kernel answers; the namespace may then have a mount more.
    """
    assert _libc is not None  # noqa: S101 - unshare came before
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _done(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    _done(_libc.mount(b"none", place, b"tmpfs", ctypes.c_ulong(flags), b"size=4k,nr_inodes=1,mode=0555"))
    os.chdir(place)
    try:
        _named("pivot_root", b".", b".")  # pivot_root(2): the old root lies on the new one and is taken away
        _done(_libc.umount2(b".", _MNT_DETACH))
    except (
        OSError
    ):  # a root that cannot be moved (initramfs): no descriptor and no capability leads out of this
        os.chroot(".")
    os.chdir("/")


def close_all_but(kept: tuple[int, ...]) -> None:
    """Closes every descriptor that is not among `kept`.

    Raises:
        OSError: ENOSYS before Linux 5.9.
    """
    start = 0
    for descriptor in sorted(set(kept)):
        if descriptor > start:
            _named("close_range", start, descriptor - 1, 0)
        start = descriptor + 1
    _named("close_range", start, 0xFFFFFFFF, 0)


def capabilities() -> int:
    """Every capability that this process has or could inherit, as bits; 0: none.

    Raises:
        OSError: as the kernel answers.
    """
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION, 0), 8)
    data = ctypes.create_string_buffer(24)
    _named("capget", header, data)
    words = struct.unpack("<6I", data.raw)
    return int(words[0] | words[1] | words[2] | (words[3] | words[4] | words[5]) << 32)


def drop_capabilities() -> None:
    """Gives up every capability, also those that an executed file could give back, as far as that is allowed.

    Raises:
        OSError: as the kernel answers.
    """
    for number in range(64):
        try:
            prctl(CAPBSET_DROP, number)
        except OSError:  # EINVAL: there are no more; EPERM: not ours to drop, and no_new_privs keeps them out
            break
    try:
        prctl(CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as exc:  # Linux before 4.3 has none
        if exc.errno != errno.EINVAL:
            raise
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION, 0), 8)
    _named("capset", header, ctypes.create_string_buffer(24))


def landlock_abi() -> int:
    """The version of Landlock's interface, from 1.

    Raises:
        OSError: ENOSYS or EOPNOTSUPP where the kernel has none, or does not use it.
    """
    return _call(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)


def landlock_attributes(abi: int) -> bytes:
    """struct landlock_ruleset_attr that handles everything the ABI knows: with no rule after it, all is denied."""
    files = 0
    for since, rights in FILES_OF_ABI:
        files |= rights if abi >= since else 0
    words = [files]
    if abi >= _NET_ABI:
        words.append(_NET)
    if abi >= _SCOPE_ABI:
        words.append(_SCOPES)
    return struct.pack(f"<{len(words)}Q", *words)


def landlock_deny_all(abi: int) -> None:
    """Denies this thread, and what it forks, all that this ABI of Landlock can deny.

    Raises:
        OSError: as the kernel answers; E2BIG at the seventeenth layer.
    """
    attributes = landlock_attributes(abi)
    ruleset = _call(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        _call(_LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def install_filter(program: bytes) -> None:
    """Puts this thread, and what it forks, under a BPF program: after those that are there already.

    Raises:
        OSError: EINVAL where the kernel has no seccomp or does not take the program; EACCES without no_new_privs.
    """
    code = ctypes.create_string_buffer(program, len(program))
    described = ctypes.create_string_buffer(
        struct.pack("@HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 16
    )
    prctl(SET_SECCOMP, _SECCOMP_FILTER, ctypes.addressof(described))
