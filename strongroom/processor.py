"""What the processor can do, by the names of levels: results of floating point depend on it in the last bits."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path
from typing import Final

# System V ABI, AMD64 supplement, table 3.1 (microarchitecture levels), in the words of Linux's /proc/cpuinfo.
_LEVELS: Final = (
    ("x86-64-v2", {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    ("x86-64-v3", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)


@functools.cache
def level() -> str:
    """`x86-64-v1` to `x86-64-v4`, `x86-64` where the system does not tell, the machine's name on others."""
    machine = platform.machine() or "unknown"
    if machine not in ("x86_64", "AMD64"):
        return machine
    try:
        return level_of(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return "x86-64"


@functools.cache
def features() -> str:
    """The level, and a digest of everything that the processors say they can: kernels are chosen by it, and weights
    laid out for them.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return level()
    said = {
        line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(("flags", "Features"))
    }
    digest = hashlib.sha256("\n".join(sorted(said)).encode()).hexdigest()
    return f"{level()} features {digest[:16]}"


def level_of(cpuinfo: str) -> str:
    """The level that all processors of a machine have, from the text of /proc/cpuinfo (proc_cpuinfo(5))."""
    found = [set(line.partition(":")[2].split()) for line in cpuinfo.splitlines() if line.startswith("flags")]
    if not found:
        return "x86-64"
    flags, name = set.intersection(*found), "x86-64-v1"
    for better, needed in _LEVELS:
        if not needed <= flags:
            break
        name = better
    return name
