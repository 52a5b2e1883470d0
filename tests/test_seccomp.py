"""The filter of system calls: what the table says is what the program does, and the program says no."""

from __future__ import annotations

import errno
import random
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import seccomp
from strongroom.seccomp import ALLOW, AUDIT_ARCH, KILL, NUMBERS, X32, Argument, Rule, assemble, decide, refuse

MACHINES = tuple(NUMBERS)
PARENT = 777
CHILD: dict[str, Any] = {
    "read_fds": (5,),
    "write_fds": (6, 7),
    "fork": False,
    "receive_fds": False,
    "files": False,
    "parent": PARENT,
}
PROFILES: dict[str, dict[str, Any]] = {
    "child": CHILD,
    "template": {**CHILD, "fork": True, "receive_fds": True},
    "parent without descriptors to receive": {**CHILD, "fork": True},
    "child that writes a file": {**CHILD, "files": True},
    "preparer, which opens its own files": {**CHILD, "receive_fds": True, "files": True, "opens": True},
    "child with nothing": {**CHILD, "read_fds": (), "write_fds": ()},
}


def evaluate(program: bytes, number: int, arguments: tuple[int, ...], *, arch: int) -> int:
    """Classic BPF as the kernel runs it (the instructions that seccomp has and `assemble` uses), written anew here."""
    data = struct.pack("<iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0, *arguments)
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = at = 0
    while True:
        kind, true, false, constant = code[at]
        at += 1
        if kind == 0x20:  # BPF_LD | BPF_W | BPF_ABS: aligned and inside, or the kernel refuses the program
            assert constant % 4 == 0 and constant + 4 <= len(data)
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif kind == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= constant
        elif kind == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            at += true if accumulator == constant else false
        elif kind == 0x06:  # BPF_RET | BPF_K
            return int(constant)
        else:
            raise AssertionError(f"instruction {kind:#x}")


def answer(call: str, *arguments: int, machine: str = "x86_64", **profile: Any) -> int:
    """What the program of a profile says of a call."""
    program = assemble(seccomp.rules(**{**CHILD, **profile}), machine=machine)
    whole = tuple(a & (1 << 64) - 1 for a in (*arguments, *[0] * 6)[:6])
    number = NUMBERS[machine].get(call, OTHERS.get(call))
    assert number is not None
    return evaluate(program, number, whole, arch=AUDIT_ARCH[machine])


# Calls that no profile allows, on x86-64.
OTHERS = {
    "dup": 32, "pipe": 22, "socket": 41, "connect": 42, "accept": 43, "bind": 49, "socketpair": 53, "vfork": 58,
    "fork": 57, "execve": 59, "uname": 63, "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "truncate": 76,
    "getcwd": 79, "chdir": 80, "rename": 82, "mkdir": 83, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "chmod": 90, "ptrace": 101, "setuid": 105, "setgid": 106, "setsid": 112, "personality": 135, "mount": 165,
    "chroot": 161, "arch_prctl": 158, "sethostname": 170, "init_module": 175, "setxattr": 188, "tkill": 200,
    "io_setup": 206, "epoll_create": 213, "timer_create": 222, "tgkill": 234, "mq_open": 240, "kexec_load": 246,
    "add_key": 248, "keyctl": 250, "inotify_init": 253, "unshare": 272, "splice": 275, "vmsplice": 278,
    "signalfd": 282, "eventfd": 284, "accept4": 288, "dup3": 292, "preadv": 295, "perf_event_open": 298,
    "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308, "sendmmsg": 307,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "memfd_create": 319,
    "bpf": 321, "execveat": 322, "userfaultfd": 323, "membarrier": 324, "pkey_mprotect": 329, "pkey_alloc": 330,
    "io_uring_setup": 425, "io_uring_enter": 426, "pidfd_send_signal": 424, "open_tree": 428, "fsopen": 430,
    "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "landlock_add_rule": 445,
    "memfd_secret": 447, "pread64": 17, "ioperm": 173, "iopl": 172, "mlock": 149, "setpriority": 141, "reboot": 169,
}  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
def test_calls_that_no_process_needs_end_it(profile: str) -> None:
    """One by one, whatever the arguments say."""
    refused = ("unlink", "unlinkat") if "opens" in PROFILES[profile] else ()
    for call in OTHERS:
        for arguments in ((0,) * 6, (5, 6, 7, 5, 6, 7), (2**64 - 1,) * 6):
            wanted = refuse(errno.EPERM) if call in refused else KILL
            assert answer(call, *arguments, **PROFILES[profile]) == wanted, call


ALLOWED = [
    ("read", (5,), {}),
    ("recvfrom", (5, 1, 1, 0x4040, 0, 0), {}),
    ("write", (6,), {}),
    ("sendto", (7, 1, 1, 0x4000, 0, 0), {}),
    ("sendmsg", (6, 1, 0x4000), {}),
    ("mmap", (0, 4096, 3, 0x22, 0xFFFFFFFF, 0), {}),
    ("mmap", (0, 4096, 0, 0x4022, 0xFFFFFFFF, 0), {}),
    ("mmap", (0, 4096, 3, 0x01, 9, 0), {"receive_fds": True}),
    ("mprotect", (4096, 4096, 1), {}),
    ("mremap", (4096, 4096, 8192, 1), {}),
    ("madvise", (4096, 4096, 4), {}),
    ("futex", (1, 0x80, 1), {}),
    ("futex", (1, 0x189, 1), {}),
    ("prlimit64", (0, 7, 0, 1), {}),
    ("exit_group", (0,), {}),
    ("getrandom", (1, 1, 0), {}),
    ("clone", (0x01200011, 0, 0, 0, 0), {"fork": True}),
    ("clone", (17, 0, 0, 0, 0), {"fork": True}),
    ("wait4", (-1, 0, 0, 0), {"fork": True}),
    ("kill", (4242, 9), {"fork": True}),
    ("prctl", (22, 2), {"fork": True}),
    ("landlock_restrict_self", (3, 0), {"fork": True}),
    ("prlimit64", (0, 7, 4096, 0), {"fork": True}),
    ("recvmsg", (5, 1, 0x40000000), {"receive_fds": True}),
    ("read", (42,), {"receive_fds": True}),
    ("newfstatat", (9, 1, 1, 0x1000), {"receive_fds": True}),
    ("fcntl", (9, 1030, 0), {"receive_fds": True}),
    ("ftruncate", (6, 100), {"files": True}),
    ("close", (3,), {}),
    ("close_range", (5, 0xFFFFFFFF, 0), {"fork": True}),
]
REFUSED = [
    ("read", (6,), {}, KILL),
    ("read", (8,), {}, KILL),
    ("write", (5,), {}, KILL),
    ("write", (-1,), {}, KILL),
    ("write", (2,), {}, refuse(errno.EBADF)),
    ("read", (0,), {}, refuse(errno.EBADF)),
    ("recvmsg", (6, 1, 0), {}, KILL),
    ("recvmsg", (5, 1, 1), {}, KILL),  # MSG_OOB
    ("recvfrom", (5, 1, 1, 1, 0, 0), {}, KILL),
    ("sendto", (6, 1, 1, 1, 0, 0), {}, KILL),
    ("sendto", (6, 1, 1, 0, 4096, 16), {}, KILL),  # to an address
    ("sendto", (6, 1, 1, 0, 1 << 32, 16), {}, KILL),
    ("sendmsg", (6, 1, 1), {}, KILL),
    ("sendmsg", (6, 1, 1), {"receive_fds": True}, KILL),
    ("mmap", (0, 4096, 7, 0x22, -1, 0), {}, KILL),
    ("mmap", (0, 4096, 4, 0x22, -1, 0), {}, KILL),
    ("mmap", (0, 4096, 3 | 1 << 40, 0x22, -1, 0), {}, KILL),
    ("mmap", (0, 4096, 3, 0x21, -1, 0), {}, KILL),  # anonymous and shared: a channel between children
    ("mmap", (0, 4096, 3, 0x21, -1, 0), {"receive_fds": True}, KILL),
    ("mmap", (0, 4096, 3, 0x01, 9, 0), {}, KILL),
    ("mmap", (0, 4096, 1, 0x02, 9, 0), {"receive_fds": True}, KILL),  # a file, privately: nothing to be mapped so
    ("mmap", (0, 4096, 5, 0x01, 9, 0), {"receive_fds": True}, KILL),
    ("mmap", (0, 4096, 3, 0x122, -1, 0), {}, KILL),  # MAP_GROWSDOWN
    ("mmap", (0, 4096, 3, 0x40022, -1, 0), {}, KILL),  # MAP_HUGETLB
    ("mprotect", (4096, 4096, 5), {}, KILL),
    ("mprotect", (4096, 4096, 7), {}, KILL),
    ("mprotect", (4096, 4096, 1 | 1 << 33), {}, KILL),
    ("mremap", (4096, 4096, 8192, 5), {}, KILL),  # MREMAP_DONTUNMAP
    ("madvise", (4096, 4096, 12), {}, refuse(errno.EINVAL)),  # MADV_MERGEABLE
    ("futex", (1, 0x86, 1), {}, KILL),  # FUTEX_LOCK_PI
    ("futex", (1, 0x8C, 1), {}, KILL),  # FUTEX_CMP_REQUEUE_PI: CVE-2014-3153
    ("prlimit64", (0, 7, 4096, 0), {}, KILL),
    ("prlimit64", (0, 7, 1 << 32, 0), {}, KILL),
    ("prlimit64", (1, 7, 0, 1), {}, KILL),
    ("prlimit64", (1, 7, 0, 1), {"fork": True}, KILL),
    ("ioctl", (6, 0x5412, 1), {}, KILL),  # TIOCSTI
    ("ioctl", (1, 0x5401, 1), {}, refuse(errno.ENOTTY)),
    ("fcntl", (5, 8, 1), {}, KILL),  # F_SETOWN
    ("fcntl", (5, 4, 0x2000), {}, KILL),  # F_SETFL, O_ASYNC
    ("fcntl", (5, 1030, 0), {}, KILL),
    ("clone", (17, 0, 0, 0, 0), {}, KILL),
    ("clone", (0x01200011, 0, 0, 0, 0), {"receive_fds": True}, KILL),
    ("clone", (0x003D0F00, 0, 0, 0, 0), {"fork": True}, KILL),  # a thread
    ("clone", (0x4111, 0, 0, 0, 0), {"fork": True}, KILL),  # CLONE_VM | CLONE_VFORK
    *(("clone", (17 | flag, 0, 0, 0, 0), {"fork": True}, KILL)
      for flag in (0x100, 0x200, 0x400, 0x800, 0x1000, 0x2000, 0x8000, 0x20000, 0x2000000, 0x4000000, 0x8000000,
                   0x10000000, 0x20000000, 0x40000000, 1 << 32)),
    ("clone", (0x01200000, 0, 0, 0, 0), {"fork": True}, KILL),  # without SIGCHLD
    ("clone3", (1, 88), {"fork": True}, refuse(errno.ENOSYS)),
    ("wait4", (-1, 0, 0, 0), {}, KILL),
    ("kill", (4242, 9), {}, KILL),
    ("kill", (4242, 9), {"fork": True, "tend": False}, KILL),
    ("wait4", (-1, 0, 0, 0), {"fork": True, "tend": False}, KILL),
    ("waitid", (0, 0, 0, 0), {"fork": True, "tend": False}, KILL),
    ("kill", (PARENT, 9), {"fork": True}, KILL),
    ("kill", (0, 9), {"fork": True}, KILL),
    ("kill", (1, 9), {"fork": True}, KILL),
    ("kill", (-1, 9), {"fork": True}, KILL),
    ("kill", (-4242, 9), {"fork": True}, KILL),
    ("kill", (4242, 19), {"fork": True}, KILL),
    ("prctl", (22, 2), {}, KILL),
    ("prctl", (4, 1), {"fork": True}, KILL),  # PR_SET_DUMPABLE
    ("prctl", (0x59616D61, 1), {"fork": True}, KILL),  # PR_SET_PTRACER
    ("prctl", (8, 1), {"fork": True}, KILL),  # PR_SET_KEEPCAPS
    ("seccomp", (1, 8, 1), {}, KILL),
    ("landlock_restrict_self", (3, 0), {}, KILL),
    ("close_range", (0, 10, 0), {}, KILL),
    *(("close", (fd,), {"fork": True, "receive_fds": True}, refuse(errno.EBADF)) for fd in (0, 1, 2, 1 | 1 << 32)),
    *(("close_range", (fd, 2, 0), {"fork": True, "receive_fds": True}, KILL) for fd in (0, 1, 2)),
    ("lseek", (6, 0, 0), {}, KILL),
    ("lseek", (5, 0, 0), {"files": True}, KILL),
    ("ftruncate", (6, 1), {}, KILL),
    ("pwrite64", (5, 1, 1, 0), {"files": True}, KILL),
    ("openat", (-100, 1, 0), {}, refuse(errno.ENOENT)),
    ("open", (1, 0), {"fork": True, "receive_fds": True}, refuse(errno.ENOENT)),
    ("newfstatat", (9, 1, 1, 0x1000), {}, refuse(errno.ENOENT)),
    ("newfstatat", (-100, 1, 1, 0), {"receive_fds": True}, refuse(errno.ENOENT)),
    ("newfstatat", (-100, 1, 1, 0x1100), {"receive_fds": True}, refuse(errno.ENOENT)),
    ("statx", (-100, 1, 0x1000, 1, 1), {"receive_fds": True}, refuse(errno.ENOENT)),
    ("sysinfo", (1,), {}, refuse(errno.EPERM)),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "profile"), ALLOWED)
def test_what_a_profile_allows(call: str, arguments: tuple[int, ...], profile: dict[str, Any]) -> None:
    """What Python, numpy and onnxruntime need; arguments of 32 bits may have anything above."""
    assert answer(call, *arguments, **profile) == ALLOW


@pytest.mark.parametrize(("call", "arguments", "profile", "expected"), REFUSED)
def test_what_a_profile_refuses(
    call: str, arguments: tuple[int, ...], profile: dict[str, Any], expected: int
) -> None:
    """One argument away from what is allowed."""
    assert answer(call, *arguments, **profile) == expected


def test_the_upper_half_of_an_int_is_not_looked_at() -> None:
    """The kernel reads 32 bits of a descriptor; registers may hold anything above."""
    assert answer("read", 5 | 0xABCD << 32) == ALLOW
    assert answer("read", 6 | 0xABCD << 32) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_ends_the_process(machine: str) -> None:
    """i386's and x32's numbers mean other calls."""
    program = assemble(seccomp.rules(**PROFILES["template"]), machine=machine)
    others = {0x40000003, 0x40000028, *AUDIT_ARCH.values()} - {AUDIT_ARCH[machine]}
    for number in NUMBERS[machine].values():
        assert all(evaluate(program, number, (5,) * 6, arch=arch) == KILL for arch in others)
        if machine == "x86_64":
            assert evaluate(program, number | X32, (5,) * 6, arch=AUDIT_ARCH[machine]) == KILL


INTERESTING = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 17, 22, 0x20, 0x22, 0x80, 0x189, 0x1000, 0x4022, 0x5421, 1030, PARENT,
               0x01200011, 0x003D0F00, 0x80000000, 0xFFFFFFFF, 1 << 32, (5 << 32) | 5, (1 << 64) - 1)  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", PROFILES)
def test_the_program_is_the_table(profile: str, machine: str) -> None:
    """Thousands of calls with arguments near every boundary: the interpreter says what the rules say. Most are
    refused.
    """
    rules = seccomp.rules(**PROFILES[profile])
    program = assemble(rules, machine=machine)
    assert len(program) // 8 <= seccomp.MOST_INSTRUCTIONS
    names = {number: name for name, number in NUMBERS[machine].items()}
    chance = random.Random(f"{profile} {machine}")  # a fixed seed: the same calls every time
    numbers = [
        *names,
        *(chance.randrange(470) for _ in range(100)),
        *(chance.randrange(1 << 32) for _ in range(20)),
    ]
    allowed = refused = 0
    for number in numbers:
        for _ in range(12):
            arguments = tuple(
                chance.choice(INTERESTING) if chance.random() < 0.9 else chance.getrandbits(64)
                for _ in range(6)
            )
            said = evaluate(program, number, arguments, arch=AUDIT_ARCH[machine])
            assert said == decide(rules, names.get(number, ""), arguments), (names.get(number), arguments)
            allowed, refused = allowed + (said == ALLOW), refused + (said != ALLOW)
    assert refused > allowed > 0


CONDITIONS = st.builds(
    Argument,
    st.integers(0, 5),
    st.lists(st.sampled_from([0, 1, 2, 3, 5, 0x80000000, 0xFFFFFFFF]), max_size=4, unique=True).map(tuple),
    mask=st.sampled_from([0xFFFFFFFF, 0x7F, 0x80000000, 0xFFFFFFFC]),
    wide=st.booleans(),
    negated=st.booleans(),
)
RULES = st.lists(
    st.builds(
        Rule,
        st.sampled_from(["read", "write", "openat"]),
        st.lists(CONDITIONS, max_size=3).map(tuple),
        st.sampled_from([ALLOW, KILL, refuse(errno.EPERM)]),
    ),
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(RULES, st.sampled_from(["read", "write", "openat"]), st.tuples(*[st.sampled_from(INTERESTING)] * 6))
def test_any_table_is_assembled_to_what_it_means(
    rules: list[Rule], call: str, arguments: tuple[int, ...]
) -> None:
    """Also tables that nobody wrote: the assembler has no favourite shapes."""
    for machine in MACHINES:
        program = assemble(rules, machine=machine)
        said = evaluate(program, NUMBERS[machine][call], arguments, arch=AUDIT_ARCH[machine])
        assert said == decide(rules, call, arguments)


def test_too_many_descriptors_are_an_error() -> None:
    """A jump that is too long would land somewhere else."""
    with pytest.raises(ValueError, match="at most 255"):
        assemble(seccomp.rules(**{**CHILD, "read_fds": tuple(range(3, 300))}), machine="x86_64")


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_numbers_are_the_kernels(machine: str, header: str) -> None:
    """A wrong number would allow another call."""
    if not Path(header).exists():
        pytest.skip(f"not exercised here: {header} is not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text(encoding="utf-8"))
    known = {name: int(number) for name, number in found}
    if machine == "aarch64":
        known["newfstatat"] = known["fstatat"]
    assert NUMBERS[machine].items() <= known.items()
    if machine == "x86_64":
        assert OTHERS.items() <= known.items()
