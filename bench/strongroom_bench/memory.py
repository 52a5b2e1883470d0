"""`bench memory`: peak resident memory of our server with one model, against the size of its file.

A server of its own for each model. *Upload*: the largest sum, over all processes of the server, of what they hold while
the model is uploaded, examined and stored. *Serve*: the same while the model, unloaded before, is read from the store,
loaded and run. Pages that processes share are counted once (Pss), where the kernel says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from strongroom_bench.catalogue import Workload
from strongroom_bench.contender import Unable
from strongroom_bench.ours import Ours
from strongroom_bench.results import Result

INTERVAL_S: Final = 0.005
Say = Callable[[str], None]


def tree_bytes(root: int) -> int:
    """Resident memory of a process and everything below it, shared pages counted once."""
    waiting, total = [root], 0
    while waiting:
        pid = waiting.pop()
        total += _resident(pid)
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return total


def _resident(pid: int) -> int:
    for name, word in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(word):
                return int(line.split()[1]) * 1024
    return 0


class Peak:
    """The largest value seen."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def watching(root: int) -> Iterator[Peak]:
    """Samples the tree every few milliseconds; what is shorter is missed."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while True:
            peak.bytes = max(peak.bytes, tree_bytes(root))
            if ended.wait(INTERVAL_S):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def measure(
    result: Result, workloads: list[Workload], start: Callable[[], Ours], *, runs: int = 3,
    say: Say = lambda _line: None,
) -> None:  # fmt: skip
    """Adds rows of the metrics `idle`, `upload` and `serve`, in bytes."""
    for workload in workloads:
        say(workload.name)
        ours = start()
        try:
            if ours.pid is None:
                raise Unable("memory is that of a server started here, not of a target")
            idle = tree_bytes(ours.pid)
            with watching(ours.pid) as upload:
                ours.load(workload)
            ours.evict()
            with watching(ours.pid) as serve:
                for _ in range(runs):
                    ours.once()
            for metric, size in (("idle", idle), ("upload", upload.bytes), ("serve", serve.bytes)):
                detail = {"bytes": workload.size, "title": workload.title}
                result.add(
                    workload.name,
                    metric,
                    "bytes",
                    {"strongroom": [float(size)]},
                    details={"strongroom": detail},
                )
        except Unable as reason:
            result.miss("strongroom", workload.name, str(reason))
        finally:
            ours.close()
