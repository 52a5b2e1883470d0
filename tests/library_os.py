"""A system as poor as a library OS: `library_os.py [--no-ancillary] COMMAND...` runs the command with every call that
fails under Gramine 1.9 answered ENOSYS, by a seccomp filter that also its children keep.

As root, in a mount namespace of its own: no shared memory in /dev/shm, and `localhost` in no file. What else differs
under Gramine (times of files are 0, clocks are the host's) is the test's to arrange.

The calls are those that Gramine's features.md marks as not implemented, of the kinds that a server might try. Gramine
takes `sendmsg` and `recvmsg`, but answers ENOSYS where they carry ancillary data, as descriptors are; a filter cannot
see that, so `--no-ancillary` refuses the two calls altogether.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

CALLS = {
    "mremap": 25, "flock": 73, "link": 86, "symlink": 88, "getrusage": 98, "utime": 132, "prctl": 157, "sync": 162,
    "utimes": 235, "inotify_init": 253, "inotify_add_watch": 254, "futimesat": 261, "linkat": 265, "symlinkat": 266,
    "sync_file_range": 277, "utimensat": 280, "signalfd": 282, "signalfd4": 289, "inotify_init1": 294,
    "fanotify_init": 300, "syncfs": 306, "process_vm_readv": 310, "renameat2": 316, "memfd_create": 319,
    "userfaultfd": 323, "membarrier": 324, "preadv2": 327, "pwritev2": 328, "statx": 332, "rseq": 334,
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438, "faccessat2": 439, "epoll_pwait2": 441,
}  # fmt: skip
ANCILLARY = {"sendmsg": 46, "recvmsg": 47}
"""Numbers of x86-64."""
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_X86_64 = 0xC000003E
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NEWNS, _PRIVATE, _REC, _BIND, _RDONLY = 0x20000, 1 << 18, 1 << 14, 1 << 12, 1


def missing() -> str:
    """Why this cannot be done here, "" where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the filter of calls is written for Linux on x86-64"
    return ""


def program(numbers: list[int]) -> bytes:
    """The BPF program: another architecture or none of the calls is let through."""
    load, equal, give = 0x20, 0x15, 0x06
    lines = [(load, 0, 0, 4), (equal, 1, 0, _X86_64), (give, 0, 0, _ALLOW), (load, 0, 0, 0)]
    lines += [(equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    lines += [(give, 0, 0, _ALLOW), (give, 0, 0, _ERRNO | errno.ENOSYS)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def unshare() -> bool:
    """Gives this process mounts of its own; whether it did."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(_NEWNS) != 0:
        return False
    libc.mount(b"none", b"/", None, _PRIVATE | _REC, None)
    return True


def bind(source: str, target: str) -> None:
    """Shows a file or folder at another place too."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), None, _BIND | _REC, None) != 0:
        raise OSError(ctypes.get_errno(), f"{source} is not shown at {target}")


def refuse_calls(*, ancillary: bool = True) -> None:
    """Puts this process, and what it becomes, under the filter. `ancillary`: whether sockets carry descriptors."""
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = sorted([*CALLS.values(), *(() if ancillary else ANCILLARY.values())])
    code = ctypes.create_string_buffer(program(numbers))
    described = struct.pack("<HxxxxxxQ", len(code.raw) // 8, ctypes.addressof(code))
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, described, 0, 0):
        raise OSError(ctypes.get_errno(), "the filter was not taken")


def confine(*, ancillary: bool = True) -> None:
    """Everything: calls, shared memory, names."""
    if unshare():
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mount(b"none", b"/dev/shm", b"tmpfs", _RDONLY, None)
        bind("/dev/null", "/etc/hosts")
    refuse_calls(ancillary=ancillary)


if __name__ == "__main__":
    words = sys.argv[1:]
    confine(ancillary=words[0] != "--no-ancillary")
    words = words[words[0] == "--no-ancillary" :]
    os.execvp(words[0], words)
