"""`bench partition`: one model as a whole and in stages, on one server, in turns: latency, what a batch saves, memory.

The model is uploaded twice, as a whole (`partition="off"`) and cut into stages of which only so many are in memory as
`limits.partition_bytes` holds. *Warm*: requests to one and to the other in turns. *Batch*: seconds of a request of so
many rows. *Peak*: the largest sum over all processes of the server (Pss, shared pages once) while the one in stages
serves and the other is unloaded; and the whole's. The server is not pinned: stages are read while others run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import strongroom
from strongroom_bench.catalogue import BY_NAME, Workload, inputs_of
from strongroom_bench.contender import Unable
from strongroom_bench.memory import tree_bytes, watching
from strongroom_bench.ours import Ours
from strongroom_bench.results import Result

WHOLE: Final = "whole"
STAGED: Final = "staged"
Say = Callable[[str], None]


def measure(
    result: Result, workload: Workload, ours: Ours, *, stages: int, rounds: int, batches: tuple[int, ...], say: Say
) -> None:  # fmt: skip
    """Adds rows of the metrics `warm` (s), `batch N` (s) and `peak` (bytes) for whole and staged.

    Raises:
        Unable: the server does not take it, or memory cannot be measured.
    """
    if ours.pid is None:
        raise Unable("memory is that of a server started here, not of a target")
    idle = tree_bytes(ours.pid)
    models: dict[str, strongroom.Model] = {}
    try:
        for name, word in ((STAGED, str(stages)), (WHOLE, "off")):
            say(f"{workload.name}: uploading, partition {word}")
            models[name] = ours.client.upload_model(
                workload.path, name=f"{workload.name}-{name}", partition=word
            )
        made = models[STAGED].metadata.stages
        inputs = _inputs(models[WHOLE], workload, 1)
        peaks = {}
        for name, model in models.items():
            _once(model, inputs)
            with watching(ours.pid) as peak:
                for _ in range(3):
                    _once(model, inputs)
            peaks[name] = peak.bytes
            ours.client.unload_model(model)
        rows: dict[str, dict[str, list[float]]] = {"warm": _turns(models, inputs, rounds)}
        for batch in batches:
            more = _inputs(models[WHOLE], workload, batch)
            rows[f"batch {batch}"] = _turns(models, more, max(2, rounds // 3))
    except strongroom.Error as error:
        raise Unable(f"{error.message} [{error.code}]") from error
    detail = {STAGED: {"stages": made, "bytes": workload.size}, WHOLE: {"bytes": workload.size}}
    for metric, values in rows.items():
        result.add(workload.name, metric, "s", values, details=detail)
    sizes = {name: [float(size)] for name, size in peaks.items()}
    result.add(workload.name, "peak", "bytes", {**sizes, "idle": [float(idle)]}, details=detail)


def _turns(models: dict[str, strongroom.Model], inputs: Any, rounds: int) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            seconds = _once(model, inputs)
            if number:  # the first loads it
                values[name].append(seconds)
    return values


def _once(model: strongroom.Model, inputs: Any) -> float:
    started = time.perf_counter()
    model.run(inputs)
    return time.perf_counter() - started


def _inputs(model: strongroom.Model, workload: Workload, batch: int) -> Any:
    arrays = inputs_of(BY_NAME[workload.name], batch=batch)
    return next(iter(arrays.values())) if len(model.metadata.inputs) == 1 else arrays
