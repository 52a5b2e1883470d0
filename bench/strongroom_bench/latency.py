"""`bench warm` and `bench cold`: one request at a time, every contender in turn (the paper's Tables 2 to 4).

*Warm*: the model is loaded; a client sends one request and has its result. Bare onnxruntime is the baseline: the same
inference by `session.run`, timed in its process. *Cold*: the model is not in memory; ours reads it from its sealed
store, authenticates, decrypts, loads and runs it, bare onnxruntime makes a session of the plain file and runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from strongroom_bench.catalogue import Workload
from strongroom_bench.contender import Contender, Unable, same_outputs
from strongroom_bench.machine import drop_caches
from strongroom_bench.results import Result
from strongroom_bench.schedule import Measure, Plan, take_turns

Say = Callable[[str], None]


def compare(
    result: Result, workloads: Sequence[Workload], contenders: Sequence[Contender], plan: Plan, *, cold: bool,
    dropping: bool = False, say: Say = lambda _line: None,
) -> None:  # fmt: skip
    """Adds a row per workload and contender. `dropping`: the kernel's caches are dropped before every cold run."""
    for number, workload in enumerate(workloads, 1):
        say(f"{workload.name} ({workload.size / 1e6:.1f} MB), {number} of {len(workloads)}")
        try:
            ready = ready_for(result, workload, contenders)
            measures = {c.name: _measure(c, cold=cold, dropping=dropping) for c in ready}
            values = _values(result, workload, _able(result, workload, measures), plan)
            about = {"bytes": workload.size, "title": workload.title, "group": workload.group}
            details = dict.fromkeys(values, about)
            result.add(workload.name, "latency", "s", values, details=details)
        finally:
            for contender in contenders:
                contender.unload()


def _measure(contender: Contender, *, cold: bool, dropping: bool) -> Measure:
    if not cold:
        return contender.once

    def measure() -> float:
        if dropping:
            drop_caches()
        return contender.cold()

    return measure


class _Dropped(Exception):
    """A contender gave up in the middle of the rounds."""

    def __init__(self, name: str, reason: Unable) -> None:
        super().__init__(name)
        self.name, self.reason = name, reason


def _values(
    result: Result, workload: Workload, measures: dict[str, Measure], plan: Plan
) -> dict[str, list[float]]:  # fmt: skip
    """The rounds; where a contender gives up they are run again without it, since rounds compare all or nothing."""

    def guarded(name: str) -> Measure:
        def measure() -> float:
            try:
                return measures[name]()
            except Unable as reason:
                raise _Dropped(name, reason) from reason

        return measure

    while True:
        try:
            return take_turns({name: guarded(name) for name in measures}, plan)
        except _Dropped as dropped:
            result.miss(dropped.name, workload.name, str(dropped.reason))
            del measures[dropped.name]


def _able(result: Result, workload: Workload, measures: dict[str, Measure]) -> dict[str, Measure]:
    """Those that can be measured at all, found out by a run that does not count."""
    able = {}
    for name, measure in measures.items():
        try:
            measure()
        except Unable as reason:
            result.miss(name, workload.name, str(reason))
        else:
            able[name] = measure
    return able


def ready_for(result: Result, workload: Workload, contenders: Sequence[Contender]) -> list[Contender]:
    """Loads the workload everywhere. Whoever cannot, or says something else than the baseline, is noted as absent."""
    ready: list[Contender] = []
    for contender in contenders:
        try:
            contender.load(workload)
            if ready and ready[0].name == result.baseline:
                differs = same_outputs(contender.outputs(), ready[0].outputs())
                if differs:
                    raise Unable(f"another result than {ready[0].title}'s: {differs}")
        except Unable as reason:
            result.miss(contender.name, workload.name, str(reason))
            contender.unload()
        else:
            ready.append(contender)
    return ready
