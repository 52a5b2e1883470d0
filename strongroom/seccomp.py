"""The filter of system calls, as data: which calls a confined process may make, and the BPF program that says so.

Nothing here touches the machine: `sandbox` installs what `assemble` gives.

Rules
  - An allow-list: a call without a rule, or none of whose rules fits, ends the process (SECCOMP_RET_KILL_PROCESS).
  - The program sees numbers and registers, never memory: what lies behind a pointer (a path, the address of a
    message) is not decided here. Calls that take a path are answered ENOENT, or end the process where they change
    something; Landlock and the namespaces are the second wall.
  - Filters stack and the strictest answer counts, so a second one only tightens. Calls that lay on more (prctl,
    landlock_*, close_range, prlimit64) are allowed where children are forked, and not in the children.
  - Another architecture, and x32's numbers on x86-64, end the process: the same number means another call there.

Sources: seccomp(2); Documentation/userspace-api/seccomp_filter.rst; numbers of calls as in Linux's
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
"""SECCOMP_RET_KILL_PROCESS; Linux before 4.14 takes it for the end of the thread, of which there is one."""
_ERRNO: Final = 0x00050000

AUDIT_ARCH: Final[Mapping[str, int]] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine as `uname -m` has it -> AUDIT_ARCH_*, what the kernel tells a filter."""
X32: Final = 0x40000000
"""Set in the numbers of x86-64's second table."""
MOST_INSTRUCTIONS: Final = 4096
"""BPF_MAXINSNS."""

# Numbers on (x86-64, AArch64); None: the call is not there.
_NUMBERS: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "access": (21, None), "brk": (12, 214), "clock_getres": (229, 114), "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115), "clone": (56, 220), "clone3": (435, 435), "close": (3, 57),
    "close_range": (436, 436), "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48),
    "faccessat2": (439, 439), "fcntl": (72, 25), "fstat": (5, 80), "ftruncate": (77, 46), "futex": (202, 98),
    "getegid": (108, 177), "geteuid": (107, 175), "getgid": (104, 176), "getpid": (39, 172), "getppid": (110, 173),
    "getrandom": (318, 278), "getrlimit": (97, 163), "getrusage": (98, 165), "getsockname": (51, 204),
    "getsockopt": (55, 209), "gettid": (186, 178), "gettimeofday": (96, 169), "getuid": (102, 174),
    "ioctl": (16, 29), "kill": (62, 129), "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446), "lseek": (8, 62), "lstat": (6, None), "madvise": (28, 233),
    "mmap": (9, 222), "mprotect": (10, 226), "mremap": (25, 216), "munmap": (11, 215), "nanosleep": (35, 101),
    "newfstatat": (262, 79), "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "poll": (7, None),
    "ppoll": (271, 73), "prctl": (157, 167), "prlimit64": (302, 261), "pselect6": (270, 72),
    "pwrite64": (18, 68), "read": (0, 63), "readlink": (89, None), "readlinkat": (267, 78), "readv": (19, 65),
    "recvfrom": (45, 207), "recvmsg": (47, 212), "restart_syscall": (219, 128), "rseq": (334, 293),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123), "sched_yield": (24, 124), "seccomp": (317, 277), "select": (23, None),
    "sendmsg": (46, 211), "sendto": (44, 206), "set_robust_list": (273, 99), "setrlimit": (160, 164),
    "shutdown": (48, 210), "sigaltstack": (131, 132), "stat": (4, None), "statfs": (137, 43), "statx": (332, 291),
    "sysinfo": (99, 179), "time": (201, None), "unlink": (87, None), "unlinkat": (263, 35),
    "wait4": (61, 260), "waitid": (247, 95), "write": (1, 64),
    "writev": (20, 66),
}  # fmt: skip

NUMBERS: Final[Mapping[str, Mapping[str, int]]] = {
    machine: {name: pair[at] for name, pair in _NUMBERS.items() if pair[at] is not None}  # type: ignore[misc]
    for at, machine in enumerate(AUDIT_ARCH)
}
"""Machine -> name -> number of the call."""


@dataclass(frozen=True, slots=True)
class Argument:
    """A condition on one argument: `value & mask` is one of `values` (or none of them, where `negated`).

    `wide`: all 64 bits count; otherwise the lower 32, which is what the kernel reads of an int.
    """

    index: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    wide: bool = False
    negated: bool = False

    def holds(self, arguments: tuple[int, ...]) -> bool:
        """Whether arguments (six, 64 bits each, unsigned) meet the condition."""
        value = arguments[self.index]
        if self.wide and value >> 32:
            return self.negated
        return ((value & self.mask & 0xFFFFFFFF) in self.values) != self.negated


@dataclass(frozen=True, slots=True)
class Rule:
    """`call` is answered with `action` where all conditions hold; the first rule that fits counts."""

    call: str
    conditions: tuple[Argument, ...] = ()
    action: int = ALLOW


def refuse(code: int) -> int:
    """The action that answers a call with an errno and goes on."""
    return _ERRNO | code


def decide(rules: Iterable[Rule], call: str, arguments: tuple[int, ...]) -> int:
    """What the rules say of a call: the meaning that `assemble` compiles, for tests and for readers."""
    for rule in rules:
        if rule.call == call and all(condition.holds(arguments) for condition in rule.conditions):
            return rule.action
    return KILL


# What the rules are made of

_PROT: Final = 0x3
"""PROT_READ | PROT_WRITE: all that memory may ever be."""
_ANONYMOUS, _PRIVATE, _SHARED = 0x20, 0x02, 0x01
_HARMLESS: Final = 0x10 | 0x4000 | 0x8000 | 0x20000
"""MAP_FIXED, MAP_NORESERVE, MAP_POPULATE, MAP_STACK."""
_ADVICE: Final = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17)
"""Nothing that shares (MADV_MERGEABLE is a side channel between processes) or poisons pages."""
_FUTEX: Final = (0, 1, 3, 4, 5, 9, 10)
"""Waiting, waking, requeueing; no priority inheritance (CVE-2014-3153 was there)."""
_MESSAGE: Final = 0x4000 | 0x40 | 0x100 | 0x2 | 0x40000000
"""MSG_NOSIGNAL, DONTWAIT, WAITALL, PEEK, CMSG_CLOEXEC. Not MSG_OOB: CVE-2025-38236 was a way out of sandboxes."""
_FORK: Final = 0x01200000
"""CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID, which glibc's fork sets; every other flag makes more than a fork."""
_SIGCHLD, _SIGKILL = 17, 9
_EMPTY_PATH: Final = 0x1000
_OPENED, _CLOEXEC = (0, 0x1 | 0x40 | 0x200), 0x80000
"""O_RDONLY; O_WRONLY | O_CREAT | O_TRUNC. Not O_PATH, which Landlock does not see."""
_FIONBIO, _TCGETS = 0x5421, 0x5401
_F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_DUPFD_CLOEXEC = 1, 2, 3, 4, 1030
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_SECCOMP, _PR_GET_NO_NEW_PRIVS = (
    1,
    2,
    3,
    22,
    39,
)

_ALWAYS: Final = (
    "brk munmap rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall exit exit_group "
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom getrusage "
    "getpid gettid getppid getuid geteuid getgid getegid sched_yield sched_getaffinity getrlimit "
    "poll ppoll select pselect6"
)
"""Of one's own memory, signals, time and identity; randomness; waiting on descriptors that one has."""
_STANDARD: Final = (0, 1, 2)
"""Descriptors that lead nowhere, and that stay: a free number is a place to keep another one in (`worker`)."""
_LOOKS: Final = (
    "open openat openat2 stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat statfs"
)
"""What libraries try while they run (onnxruntime and XGBoost look into /sys): there is nothing."""


def rules(
    *,
    read_fds: tuple[int, ...],
    write_fds: tuple[int, ...],
    fork: bool,
    receive_fds: bool,
    files: bool,
    parent: int,
    tend: bool = True,
    opens: bool = False,
    looks: bool = False,
) -> tuple[Rule, ...]:
    """The allow-list of one kind of process; the most frequent calls first.

    Descriptors that are received have numbers that nobody knows yet: with `receive_fds` reading and writing is
    bounded by what is open, and not by number. `files`: a descriptor of `write_fds` may be sized and sought.
    `parent`: process id of the one process that is never signalled. `tend`: with `fork`, waiting for children and
    killing them; without it their ends tell their parent nothing. `opens`: opening files by
    name, to read, or to write what is made or emptied; which ones there are for it, Landlock decides. `looks`: asking
    whether there is a file by a name, which who may receive descriptors could anyway (`_of_received`).
    """
    return (
        Rule("futex", (Argument(1, _FUTEX, mask=0x7F),)),
        *_transfers(read_fds, write_fds, any_number=receive_fds),
        *_memory(shared=receive_fds or files),
        *(Rule(call) for call in _ALWAYS.split()),
        Rule("close", (Argument(0, _STANDARD, negated=True),)),
        Rule("close", action=refuse(errno.EBADF)),
        Rule("prlimit64", (Argument(0, (0,)), Argument(2, (0,), wide=True))),
        Rule("fcntl", (Argument(1, (_F_GETFD, _F_SETFD, _F_GETFL)),)),
        Rule("ioctl", (Argument(1, (_FIONBIO,)),)),
        Rule("ioctl", (Argument(1, (_TCGETS,)),), refuse(errno.ENOTTY)),
        Rule("fstat"),
        Rule("sysinfo", action=refuse(errno.EPERM)),  # load and free memory of the whole machine
        Rule("clone3", action=refuse(errno.ENOSYS)),  # its flags lie in memory: glibc then takes clone
        Rule("rseq", action=refuse(errno.ENOSYS)),
        *(_of_files(write_fds) if files else ()),
        *(_of_received() if receive_fds else ()),
        *(_of_parents() if fork else ()),
        *(_of_tenders(parent) if fork and tend else ()),
        *(_of_openers() if opens else ()),
        *(Rule(call) for call in ("stat", "newfstatat") if looks),
        *(Rule(call, action=refuse(errno.ENOENT)) for call in _LOOKS.split()),
    )


def _transfers(read_fds: tuple[int, ...], write_fds: tuple[int, ...], *, any_number: bool) -> list[Rule]:
    """Reading and writing. sendto has no address; sendmsg's lies in memory, so sockets should be connected ones."""
    reading = () if any_number else (Argument(0, read_fds),)
    writing = () if any_number else (Argument(0, write_fds),)
    plain = ((0,), 0xFFFFFFFF & ~_MESSAGE)
    made = [Rule(call, reading) for call in ("read", "readv")]
    made += [Rule(call, writing) for call in ("write", "writev", "shutdown")]
    made.append(Rule("recvfrom", (*reading, Argument(3, *plain))))
    made.append(Rule("sendto", (*writing, Argument(3, *plain), Argument(4, (0,), wide=True))))
    made.append(Rule("recvmsg", (*reading, Argument(2, *plain))))
    made.append(Rule("sendmsg", (*writing, Argument(2, *plain))))
    # The standard descriptors lead nowhere: a library that logs there is not at fault.
    standard = (Argument(0, _STANDARD),)
    return made + [Rule(c, standard, refuse(errno.EBADF)) for c in ("read", "readv", "write", "writev")]


def _memory(*, shared: bool) -> list[Rule]:
    """Memory that is never executable: private, or shared through a descriptor that was handed over."""
    data = Argument(2, (0,), mask=0xFFFFFFFF & ~_PROT, wide=True)
    private = Argument(3, (_ANONYMOUS | _PRIVATE,), mask=0xFFFFFFFF & ~_HARMLESS, wide=True)
    through = Argument(3, (_SHARED,), mask=0xFFFFFFFF & ~_HARMLESS, wide=True)
    made = [Rule("mmap", (data, private))]
    if shared:
        made.append(Rule("mmap", (data, through)))
    return [
        *made,
        Rule("mprotect", (data,)),
        Rule("mremap", (Argument(3, (0, 1, 3), wide=True),)),
        Rule("madvise", (Argument(2, _ADVICE),)),
        Rule("madvise", action=refuse(errno.EINVAL)),  # as an older kernel
    ]


def _of_files(write_fds: tuple[int, ...]) -> list[Rule]:
    written = (Argument(0, write_fds),)
    return [Rule(call, written) for call in ("lseek", "ftruncate", "pwrite64")]


def _of_received() -> list[Rule]:
    """What Python does with a descriptor that it is given: what is it, how long, one more of it (`mmap.mmap`)."""
    return [
        Rule("getsockname"),
        Rule("getsockopt"),
        Rule("lseek"),
        Rule("fcntl", (Argument(1, (_F_DUPFD_CLOEXEC,)),)),
        Rule("newfstatat", (Argument(3, (_EMPTY_PATH,)),)),
    ]


def _of_openers() -> list[Rule]:
    """Opening what has a name, and the flags of what was opened."""
    return [
        Rule("openat", (Argument(2, _OPENED, mask=0xFFFFFFFF & ~_CLOEXEC),)),
        Rule("fcntl", (Argument(1, (_F_SETFL,)),)),
        # onnxruntime wants to remove a file that it finds to be empty, for a pipe has no length.
        *(Rule(call, action=refuse(errno.EPERM)) for call in ("unlink", "unlinkat")),
    ]


def _of_parents() -> list[Rule]:
    """Forking; and what children need to lay more on themselves."""
    options = (_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_SECCOMP, _PR_GET_NO_NEW_PRIVS)
    return [
        Rule("clone", (Argument(0, (_SIGCHLD,), mask=0xFFFFFFFF & ~_FORK, wide=True),)),
        Rule("set_robust_list"),
        Rule("prctl", (Argument(0, options),)),
        Rule("seccomp"),
        Rule("landlock_create_ruleset"),
        Rule("landlock_restrict_self"),
        Rule("close_range", (Argument(0, _STANDARD, negated=True),)),
        Rule("prlimit64", (Argument(0, (0,)),)),
        Rule("setrlimit"),
    ]  # fmt: skip


def _of_tenders(parent: int) -> list[Rule]:
    """Waiting for children and killing them."""
    return [
        Rule("wait4"),
        Rule("waitid"),
        Rule(
            "kill",
            (
                Argument(0, (0,), mask=0x80000000),  # no group, and not everybody
                Argument(0, (0, 1, parent), negated=True),
                Argument(1, (_SIGKILL,)),
            ),
        ),
    ]


# The program

_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; both machines are little-endian."""

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant: struct sock_filter."""


def assemble(rules: Iterable[Rule], *, machine: str) -> bytes:
    """The BPF program of the rules, 8 bytes an instruction. `machine`: a key of `NUMBERS`; calls that the machine
    does not have are left out.

    Each call is one block that always returns, so that every jump is short (BPF's are of 8 bits).

    Raises:
        ValueError: a block or the program is longer than BPF allows: too many descriptors.
    """
    numbers = NUMBERS[machine]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    blocks: dict[str, list[Rule]] = {}
    for rule in rules:
        blocks.setdefault(rule.call, []).append(rule)
    for call, alternatives in blocks.items():
        if call not in numbers:
            continue
        block = _block(alternatives)
        program += [(_EQUAL, 0, _short(len(block)), numbers[call]), *block]
    program.append((_RETURN, 0, 0, KILL))
    if len(program) > MOST_INSTRUCTIONS:
        raise ValueError(f"{len(program)} instructions, at most {MOST_INSTRUCTIONS}")
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _block(alternatives: list[Rule]) -> list[Instruction]:
    block: list[Instruction] = []
    for rule in alternatives:
        body: list[Instruction] = [(_RETURN, 0, 0, rule.action)]
        for condition in reversed(rule.conditions):
            body = _condition(condition, otherwise=len(body)) + body
        block += body
    if alternatives[-1].conditions:
        block.append((_RETURN, 0, 0, KILL))
    return block


def _condition(condition: Argument, *, otherwise: int) -> list[Instruction]:
    """Falls through where the condition holds, else jumps over the `otherwise` instructions that follow."""
    low = _ARGUMENTS + 8 * condition.index
    tail: list[Instruction] = []
    count = len(condition.values)
    for at, value in enumerate(condition.values):
        left = count - 1 - at  # comparisons that follow
        if condition.negated:
            tail.append((_EQUAL, _short(left + otherwise), 0, value))
        else:
            missed = 0 if left else _short(otherwise)
            tail.append((_EQUAL, _short(left), missed, value))
    if not count and not condition.negated:  # nothing is one of no values
        tail = [(_EQUAL, _short(otherwise), _short(otherwise), 0)]
    if condition.mask != 0xFFFFFFFF:
        tail.insert(0, (_AND, 0, 0, condition.mask))
    tail.insert(0, (_LOAD, 0, 0, low))
    if not condition.wide:
        return tail
    # The upper half must be 0; where it is not, a negated condition holds and the rest is passed over.
    missed = _short(len(tail)) if condition.negated else _short(len(tail) + otherwise)
    return [(_LOAD, 0, 0, low + 4), (_EQUAL, 0, missed, 0), *tail]


def _short(jump: int) -> int:
    if jump > 255:
        raise ValueError(f"a jump over {jump} instructions, at most 255")
    return jump
