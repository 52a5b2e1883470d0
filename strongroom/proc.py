"""What the kernel says of a process, and memory to share with one."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path


def birth(pid: int) -> tuple[int, int]:
    """The parent of a process, and when it was born (clock ticks since the machine started): proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[1]), int(fields[19])


def resident(pid: int) -> int:
    """Bytes of memory of a process, those that it shares with others among them: proc_pid_statm(5)."""
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * mmap.PAGESIZE


def memory_file(size: int) -> int:
    """A descriptor of fresh memory, whose size nobody can change: shrinking it would end us by SIGBUS."""
    descriptor = os.memfd_create("run", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
