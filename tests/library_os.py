"""A system as poor as a library OS: `library_os.py COMMAND...` runs the command with every call that fails under
Gramine 1.9 answered ENOSYS, by a seccomp filter that also its children keep.

As root, in a mount namespace of its own: no shared memory in /dev/shm, and `localhost` in no file. What else differs
under Gramine (times of files are 0, clocks are the host's) is the test's to arrange.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

CALLS = {
    "mremap": 25, "flock": 73, "link": 86, "symlink": 88, "getrusage": 98, "utime": 132, "prctl": 157, "utimes": 235,
    "inotify_init": 253, "futimesat": 261, "linkat": 265, "symlinkat": 266, "utimensat": 280, "inotify_init1": 294,
    "memfd_create": 319, "membarrier": 324, "statx": 332, "rseq": 334, "io_uring_setup": 425, "pidfd_open": 434,
    "clone3": 435,
}  # fmt: skip
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


def program() -> bytes:
    """The BPF program: another architecture or none of the calls is let through."""
    load, equal, give = 0x20, 0x15, 0x06
    numbers = sorted(CALLS.values())
    lines = [(load, 0, 0, 4), (equal, 1, 0, _X86_64), (give, 0, 0, _ALLOW), (load, 0, 0, 0)]
    lines += [(equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    lines += [(give, 0, 0, _ALLOW), (give, 0, 0, _ERRNO | errno.ENOSYS)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def confine() -> None:
    """Puts this process, and what it becomes, under the filter."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0 and libc.unshare(_NEWNS) == 0:
        libc.mount(b"none", b"/", None, _PRIVATE | _REC, None)
        libc.mount(b"none", b"/dev/shm", b"tmpfs", _RDONLY, None)
        libc.mount(b"/dev/null", b"/etc/hosts", None, _BIND, None)
    code = ctypes.create_string_buffer(program())
    described = struct.pack("<HxxxxxxQ", len(code.raw) // 8, ctypes.addressof(code))
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, described, 0, 0):
        raise OSError(ctypes.get_errno(), "the filter was not taken")


if __name__ == "__main__":
    confine()
    os.execvp(sys.argv[1], sys.argv[1:])
