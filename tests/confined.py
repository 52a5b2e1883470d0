"""A process as a service manager or a container engine confines it: `confined.py PROFILE COMMAND...` runs the command
under the list of system calls in a container's seccomp profile, and without memory that is writable and executable.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import struct
import sys
from pathlib import Path

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER, _SET_MDWE = 38, 22, 2, 65
_X86_64 = 0xC000003E
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _GIVE = 0x20, 0x15, 0x06


def missing() -> str:
    """Why this cannot be done here, "" where it can."""
    if sys.platform != "linux" or os.uname().machine != "x86_64" or not HEADER.exists():
        return "the numbers of calls are read from the kernel's headers for x86-64"
    return ""


def program(profile: dict[str, object]) -> bytes:
    """The BPF program of a profile whose rules are names with one answer; what is in none is EPERM."""
    numbers = {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", HEADER.read_text())}
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _X86_64), (_GIVE, 0, 0, _ERRNO | errno.EPERM), (_LOAD, 0, 0, 0)]
    rules = profile["syscalls"]
    assert isinstance(rules, list)
    for rule in rules:
        answer = _ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else _ERRNO | rule["errnoRet"]
        for name in rule["names"]:
            if name in numbers:  # other architectures have calls of their own
                lines += [(_EQUAL, 0, 1, numbers[name]), (_GIVE, 0, 0, answer)]
    lines.append((_GIVE, 0, 0, _ERRNO | errno.EPERM))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def confine(profile: Path) -> bool:
    """Puts this process, and what it becomes, under both; whether the kernel knows about writable code (6.3)."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program(json.loads(profile.read_text())))
    described = struct.pack("<HxxxxxxQ", (len(code.raw) - 1) // 8, ctypes.addressof(code))
    strict = libc.prctl(_SET_MDWE, 1, 0, 0, 0) == 0
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, described, 0, 0):
        raise OSError(ctypes.get_errno(), "the filter was not taken")
    return strict


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
