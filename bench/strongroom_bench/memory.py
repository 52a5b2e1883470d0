"""`bench memory`: peak resident memory of our server with one model, against the size of its file.

A server of its own for each model. *Upload*: the largest sum, over all processes of the server, of what they hold while
the model is uploaded, examined and stored. *Serve*: the same while the model, unloaded before, is read from the store,
loaded and run. Pages that processes share are counted once (Pss), where the kernel says so.
"""

from __future__ import annotations

import os
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


def tree(root: int) -> list[int]:
    """A process and everything below it."""
    waiting, found = [root], []
    while waiting:
        found.append(pid := waiting.pop())
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def tree_bytes(root: int) -> int:
    """Resident memory of a process and everything below it, shared pages counted once."""
    return sum(_resident(pid)[0] for pid in tree(root))


def tree_processor_s(root: int) -> float:
    """Seconds of processors that they have used, in ticks of the kernel (10 ms); those that ended are not in it."""
    ticks = 0
    for pid in tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> tuple[int, int]:
    """Its share (Pss), and all that it has (Rss)."""
    for name, share, whole in (("smaps_rollup", "Pss", "Rss"), ("status", "VmRSS", "VmRSS")):
        try:
            lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
        except OSError:
            continue
        words = {word: int(value.split()[0]) for word, _, value in (line.partition(":") for line in lines)
                 if word in (share, whole)}  # fmt: skip
        if words:
            return words[share] * 1024, words[whole] * 1024
    return 0, 0


class Peak:
    """The largest values seen: of the sum, and of resident memory of the first process and of any other."""

    def __init__(self) -> None:
        self.bytes = self.root_rss = self.largest_rss = 0

    def look(self, root: int) -> None:
        """Once."""
        (share, rss), *others = [_resident(pid) for pid in tree(root)]
        self.bytes = max(self.bytes, share + sum(share for share, _ in others))
        self.root_rss = max(self.root_rss, rss)
        self.largest_rss = max([self.largest_rss, *(rss for _, rss in others)])


@contextmanager
def watching(root: int) -> Iterator[Peak]:
    """Samples the tree every few milliseconds; what is shorter is missed."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while True:
            peak.look(root)
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
