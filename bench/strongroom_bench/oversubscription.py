"""`bench partition --oversubscribe N`: several models in stages that want N times the memory that there is for models.

Rules
  - There is room for `HELD` models in stages, each with a budget of its own; N times as many are uploaded, and as many
    callers as there are places ask for one after the other, at the same time. Each answer is compared with the one
    that the model gave alone.
  - What counts is the kernel's largest sum over all processes (Pss), against that of the same server without a model
    and the budget of all together. The goal is one stage more at most.
  - A caller who is told that all loaded models are in use asks again; how often is in the result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

import strongroom
from strongroom_bench.catalogue import Workload
from strongroom_bench.contender import Unable
from strongroom_bench.memory import tree_bytes, watching
from strongroom_bench.ours import Ours
from strongroom_bench.partition import STAGED, Budget, inputs_for
from strongroom_bench.results import Result

HELD: Final = 2
COUNTED: Final = 16 << 20
"""Bytes that the server counts for a model in stages besides its budget."""
BUSY: Final = ("engine_memory_busy", "overloaded")
AGAIN_S: Final = 0.05
SETTLED_S: Final = 2.0
"""Seconds until processes of a model that was unloaded have ended."""
Say = Callable[[str], None]


def loaded_bytes(budget: Budget) -> int:
    """`limits.loaded_bytes`: of all models together."""
    return HELD * (budget.bytes + COUNTED)


def measure(
    result: Result, workload: Workload, ours: Ours, budget: Budget, *, times: int, stages: int | None, rounds: int,
    say: Say,
) -> None:  # fmt: skip
    """Adds rows of the metrics `request` (s) and `peak` (bytes); `peak` of `allowed` is idle, budget and one stage.

    Raises:
        Unable: the server does not take them, answers otherwise, or memory cannot be measured.
    """
    if ours.pid is None:
        raise Unable("memory is that of a server started here, not of a target")
    word = str(stages or budget.stages(workload))
    try:
        models = []
        for number in range(HELD * times):
            say(f"{workload.name}, {budget.word}: uploading {number + 1} of {HELD * times}, partition {word}")
            name = f"{workload.name}-{number}"
            models.append(ours.client.upload_model(workload.path, name=name, partition=word))
        inputs = inputs_for(models[0], workload, 1)
        expected = models[0].run(inputs)
        ours.client.unload_model(models[0])
        time.sleep(SETTLED_S)
        idle = tree_bytes(ours.pid)
        callers = [_Caller(models, inputs, expected, first=at * times, rounds=rounds) for at in range(HELD)]
        with watching(ours.pid) as peak:
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
    except strongroom.Error as error:
        raise Unable(f"{error.message} [{error.code}]") from error
    for caller in callers:
        if caller.fault is not None:
            raise Unable(caller.fault)
    allowed = idle + loaded_bytes(budget) + budget.stage_bytes
    detail = {
        "model": workload.name, "bytes": workload.size, "models": len(models), "times": times, "word": budget.word,
        "stages": models[0].metadata.stages, "loaded_bytes": loaded_bytes(budget), "stage_bytes": budget.stage_bytes,
        "idle": idle, "beyond": peak.bytes - idle - loaded_bytes(budget),
        "told_to_wait": sum(caller.told_to_wait for caller in callers),
    }  # fmt: skip
    subject = f"{workload.name}, {len(models)} models, {times} x"
    seconds = [value for caller in callers for value in caller.seconds]
    result.add(subject, "request", "s", {STAGED: seconds}, details={STAGED: detail})
    sizes = {STAGED: [float(peak.bytes)], "allowed": [float(allowed)], "idle": [float(idle)]}
    result.add(subject, "peak", "bytes", sizes, details={STAGED: detail})


class _Caller(threading.Thread):
    """Asks for all models, one after the other."""

    def __init__(
        self, models: list[strongroom.Model], inputs: Any, expected: Any, *, first: int, rounds: int
    ) -> None:
        super().__init__(daemon=True)
        self._models = models[first:] + models[:first]
        self._inputs, self._expected, self._rounds = inputs, expected, rounds
        self.seconds: list[float] = []
        self.told_to_wait = 0
        self.fault: str | None = None

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            for _ in range(self._rounds):
                for model in self._models:
                    self._ask(model)
        except strongroom.Error as error:
            self.fault = f"{error.message} [{error.code}]"

    def _ask(self, model: strongroom.Model) -> None:
        while True:
            started = time.perf_counter()
            try:
                answer = model.run(self._inputs)
            except strongroom.Error as error:
                if error.code not in BUSY:
                    raise
                self.told_to_wait += 1
                time.sleep(AGAIN_S)
                continue
            self.seconds.append(time.perf_counter() - started)
            if not same(answer, self._expected):
                self.fault = "an answer is not the one that the model gave alone"
            return


def same(one: Any, other: Any) -> bool:
    """Whether two answers are the same bytes."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return bool(np.array_equal(one, other))
