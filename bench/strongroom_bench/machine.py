"""What the figures were measured on: processor, memory, versions, load; and pinning to cores."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = (
    "strongroom",
    "strongroom-bench",
    "numpy",
    "onnx",
    "onnxruntime",
    "httptools",
    "httpx",
    "cryptography",
)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core the servers (and bare engines) have to themselves, and which the client has; None: not pinned."""

    server: int | None
    client: int | None

    def to_json(self) -> dict[str, int | None]:
        """The members by name."""
        return {"server": self.server, "client": self.client}


def choose_cores() -> Cores:
    """The last core we may use for servers, the first for the client; none where the system has no affinity."""
    if not hasattr(os, "sched_getaffinity"):
        return Cores(None, None)
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[-1], allowed[0] if len(allowed) > 1 else None)


def pin(core: int | None) -> None:
    """Keeps this process on one core, and what it starts from now on."""
    if core is not None:
        os.sched_setaffinity(0, {core})


@contextmanager
def staying_on(core: int | None) -> Iterator[None]:
    """This process on one core meanwhile, and afterwards where it was: the next measurement chooses anew."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    pin(core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pinned(core: int | None) -> Callable[[], None] | None:
    """For `subprocess.Popen(preexec_fn=...)`: the child and its threads on one core from its first instruction."""
    return None if core is None else lambda: pin(core)


def facts() -> dict[str, Any]:
    """The machine as JSON values."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_mb": _memory_mb(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "load": load(),
    }


def load() -> float | None:
    """Processes that want a core, as an average over the last minute: above the number of cores, figures are noise."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    """Distribution -> version, of those that matter here and are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000
    except (ValueError, OSError):
        return None


def drop_caches() -> None:
    """Makes the kernel forget what it read from disks (the paper's method for its disk figures). Needs root.

    Raises:
        OSError: not allowed, or not Linux.
    """
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")
