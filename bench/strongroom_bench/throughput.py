"""`bench throughput` and `bench overload`: closed loops of small requests on many connections.

Every contender is loaded in slices, in turns. *Throughput*: answers per second at each number of
connections. *Overload*: 16 connections, then many more than the server takes at once, then 16 again: what it still
answers, how long an accepted request waits, what the rest is told, whether its health is still answered, and whether it
is back to normal afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import Any, Final

from strongroom_bench.catalogue import Workload
from strongroom_bench.contender import Contender, Unable
from strongroom_bench.latency import ready_for
from strongroom_bench.load import Slice, Target, run_slice
from strongroom_bench.results import Result
from strongroom_bench.schedule import Plan, take_turns

CONNECTIONS: Final = (1, 4, 16, 64)
OVERLOAD: Final = 256
"""Connections of an overload: four times what our server works on at once by default."""
NORMAL: Final = 16
SLICE_S: Final = 0.5
OVERLOAD_S: Final = 2.0
"""Seconds of a slice under overload: requests that wait long must have the time to be answered in it."""
BUSY: Final = 0.9
"""Share of a core above which the generator is the limit."""

Say = Callable[[str], None]


class Series:
    """The slices of one contender under one load."""

    def __init__(self, target: Target, *, connections: int, seconds: float) -> None:
        self.target, self.connections, self.seconds = target, connections, seconds
        self.slices: list[Slice] = []

    def measure(self) -> float:
        """One slice; answers per second. A slice without any counts as a thousandth, for a ratio needs a number."""
        one = run_slice(self.target, connections=self.connections, seconds=self.seconds)
        self.slices.append(one)
        return max(one.per_second, 0.001)

    def detail(self) -> dict[str, Any]:
        """What the slices say besides."""
        statuses: Counter[int] = Counter()
        for one in self.slices:
            statuses.update(one.statuses)
        latencies = [value for one in self.slices for value in one.latencies]
        probes = [value for one in self.slices for value in one.probes]
        total = statuses.total() or 1
        return {
            "statuses": {str(status): count for status, count in sorted(statuses.items())},
            "refused": round(sum(n for status, n in statuses.items() if status >= 400) / total, 4),
            "lost": round(statuses[0] / total, 4),
            "ended": max((one.ended for one in self.slices), default=0),
            "p50_s": percentile(latencies, 50),
            "p99_s": percentile(latencies, 99),
            "health_p50_s": percentile(probes, 50),
            "health_max_s": max(probes, default=None),
            "generator_busy": round(max((one.busy for one in self.slices), default=0.0), 3),
        }


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The percentile, 1 to 99; None of too few values."""
    if len(values) < 2:
        return None
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _targets(result: Result, workload: Workload, contenders: Sequence[Contender]) -> dict[str, Target]:
    found = {}
    for contender in ready_for(result, workload, contenders):
        try:
            found[contender.name] = contender.target()
        except Unable as reason:
            result.miss(contender.name, workload.name, str(reason))
    return found


def compare(
    result: Result, workloads: Sequence[Workload], contenders: Sequence[Contender], plan: Plan, *,
    connections: Sequence[int] = CONNECTIONS, seconds: float = SLICE_S, say: Say = lambda _line: None,
) -> None:  # fmt: skip
    """Adds a row per workload, number of connections and contender; metric `throughput`."""
    for workload in workloads:
        try:
            targets = _targets(result, workload, contenders)
            for count in connections:
                say(f"{workload.name}, {count} connections")
                _load(result, workload, targets, plan, metric="throughput", count=count, seconds=seconds)
        finally:
            for contender in contenders:
                contender.unload()


def overload(
    result: Result, workloads: Sequence[Workload], contenders: Sequence[Contender], plan: Plan, *,
    connections: int = OVERLOAD, seconds: float = OVERLOAD_S, say: Say = lambda _line: None,
) -> None:  # fmt: skip
    """Adds rows of the metrics `before`, `overload` and `after` per workload and contender."""
    for workload in workloads:
        try:
            targets = _targets(result, workload, contenders)
            for metric, count in (("before", NORMAL), ("overload", connections), ("after", NORMAL)):
                say(f"{workload.name}, {metric}: {count} connections")
                _load(result, workload, targets, plan, metric=metric, count=count, seconds=seconds)
        finally:
            for contender in contenders:
                contender.unload()


def _load(
    result: Result, workload: Workload, targets: dict[str, Target], plan: Plan, *, metric: str, count: int,
    seconds: float,
) -> None:  # fmt: skip
    series = {name: Series(target, connections=count, seconds=seconds) for name, target in targets.items()}
    values = take_turns({name: one.measure for name, one in series.items()}, plan)
    details = {name: one.detail() for name, one in series.items()}
    for name, detail in details.items():
        if detail["generator_busy"] > BUSY:
            result.notes.append(
                f"{workload.name}, {name}, {count} connections: the load generator was the limit"
            )
        if detail["ended"]:
            result.notes.append(
                f"{workload.name}, {name}, {count} connections: up to {detail['ended']} of them ended in a slice; "
                "the figure is that of the others"
            )
    result.add(workload.name, metric, "1/s", values, connections=count, details=details)
