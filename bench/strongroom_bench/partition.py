"""`bench partition`: one model as a whole and in stages, on one server, in turns: latency, memory, what a batch saves.

    a budget ──► a server of its own: the model twice, whole (`partition="off"`) and in stages, of which only so many
                 are in memory as the budget (`limits.partition_bytes`) holds

Rules
  - *Warm*: requests to one and to the other in turns, by the clock. *Processor*: what all processes of the server
    worked for each of them. *Batch N*: a request of N rows.
  - *Peak*: the largest sum over all processes of the server (Pss by the kernel, shared pages once) while one serves and
    the other is unloaded. `detail` has the resident memory (Rss) of the server's process and of the largest other one.
  - A budget in per cent is a share of what the whole takes in memory: twice its file.
  - The server is not pinned: stages are read while others run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from click import ClickException

import strongroom
from strongroom_bench.catalogue import BY_NAME, Workload, inputs_of
from strongroom_bench.contender import Unable
from strongroom_bench.memory import Peak, tree_bytes, tree_processor_s, watching
from strongroom_bench.ours import Ours
from strongroom_bench.results import Result

WHOLE: Final = "whole"
STAGED: Final = "staged"
IN_MEMORY: Final = 2
"""Bytes in memory for each byte of a whole model's file: as it was read, and as kernels packed it."""
GRAPHS: Final = 1 << 20
"""Bytes of the stages' graphs and tables, so that all stay in 100 %."""
LEAST_STAGE: Final = 4 << 20
SHARE: Final = 12
"""A stage has a twelfth of the budget at most, and may have 4 MiB: as `partition = "auto"` cuts."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory of a model in stages, in bytes, and as it was asked for."""

    word: str
    bytes: int

    @property
    def stage_bytes(self) -> int:
        """What one stage has at most, as far as single nodes allow."""
        return max(LEAST_STAGE, self.bytes // SHARE)

    def stages(self, workload: Workload) -> int:
        """How many of those a model has."""
        return max(2, -(-workload.size // self.stage_bytes))


def budget_of(word: str, workload: Workload) -> Budget:
    """`50%` of what the whole takes, or `75MB`.

    Raises:
        ClickException: it is neither, or less than a megabyte.
    """
    found = re.fullmatch(r"([0-9]{1,6})(%|MB)", word)
    if found is None:
        raise ClickException(f"expected a budget such as 50% or 75MB, got {word!r}")
    number = int(found[1])
    size = number * 10**6 if found[2] == "MB" else IN_MEMORY * (workload.size + GRAPHS) * number // 100
    if size < 10**6:
        raise ClickException(f"{workload.name}: {word} is less than a megabyte")
    return Budget(word, size)


def measure(
    result: Result, workload: Workload, ours: Ours, budget: Budget, *, stages: int | None, rounds: int,
    batches: tuple[int, ...], say: Say,
) -> None:  # fmt: skip
    """Adds rows of the metrics `warm`, `processor`, `batch N` (s) and `peak` (bytes) for whole and staged, by a server
    that has this budget. `stages`: into how many; None: as many as are as small as they may be.

    Raises:
        Unable: the server does not take it, or memory cannot be measured.
    """
    if ours.pid is None:
        raise Unable("memory is that of a server started here, not of a target")
    idle = tree_bytes(ours.pid)
    word = str(stages or budget.stages(workload))
    models: dict[str, strongroom.Model] = {}
    try:
        for name, partition in ((STAGED, word), (WHOLE, "off")):
            say(f"{workload.name}, {budget.word}: uploading, partition {partition}")
            models[name] = ours.client.upload_model(
                workload.path, name=f"{workload.name}-{name}", partition=partition
            )
        made = models[STAGED].metadata.stages
        inputs = inputs_for(models[WHOLE], workload, 1)
        peaks = {name: _peak(ours, model, inputs) for name, model in models.items()}
        warm, busy = _turns(ours.pid, models, inputs, rounds)
        rows = {"warm": warm, "processor": busy}
        for batch in batches:
            more = inputs_for(models[WHOLE], workload, batch)
            rows[f"batch {batch}"], _ = _turns(ours.pid, models, more, max(2, rounds // 3))
    except strongroom.Error as error:
        raise Unable(f"{error.message} [{error.code}]") from error
    about = {"model": workload.name, "bytes": workload.size, "budget": budget.bytes, "word": budget.word}
    detail = {STAGED: {**about, "stages": made}, WHOLE: {**about, "stages": 1}}
    subject = f"{workload.name}, {budget.word}"
    for metric, values in rows.items():
        # A clock with ticks of 10 ms says nothing of a short request.
        if all(value > 0 for series in values.values() for value in series):
            result.add(subject, metric, "s", values, details=detail)
    sizes = {name: [float(peak.bytes)] for name, peak in peaks.items()}
    resident = {
        name: {**detail[name], "server_rss": peak.root_rss, "largest_rss": peak.largest_rss}
        for name, peak in peaks.items()
    }
    result.add(
        subject, "peak", "bytes", {**sizes, "idle": [float(idle)]}, details={**resident, "idle": about}
    )


def _peak(ours: Ours, model: strongroom.Model, inputs: Any) -> Peak:
    """Of a few requests to a model that is loaded and the only one; it is unloaded then."""
    assert ours.pid is not None
    _once(model, inputs)
    with watching(ours.pid) as peak:
        for _ in range(3):
            _once(model, inputs)
    ours.client.unload_model(model)
    return peak


def _turns(
    pid: int, models: dict[str, strongroom.Model], inputs: Any, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds by the clock, and of processors, of each request."""
    values: dict[str, list[float]] = {name: [] for name in models}
    busy: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            before = tree_processor_s(pid)
            seconds = _once(model, inputs)
            if number:  # the first loads it
                values[name].append(seconds)
                busy[name].append(max(0.0, tree_processor_s(pid) - before))
    return values, busy


def _once(model: strongroom.Model, inputs: Any) -> float:
    started = time.perf_counter()
    model.run(inputs)
    return time.perf_counter() - started


def inputs_for(model: strongroom.Model, workload: Workload, batch: int) -> Any:
    """What `Model.run` takes, with so many rows."""
    arrays = inputs_of(BY_NAME[workload.name], batch=batch)
    return next(iter(arrays.values())) if len(model.metadata.inputs) == 1 else arrays
