"""Fuzz targets that run models: whole ones after changes, and single nodes of every operator.

Oracle: a model is refused with a code of ours, or it loads and runs, within its limits; two answers to one request are
the same bytes, also where another's request came between; none holds anything of the other's. Whatever kills the
process that runs is a finding: admission should have refused the model.

`fuzz_run_worker` takes the server's own way, with its examiner, templates and workers; there a death is an error of its
caller's, and all others go on.
"""

from __future__ import annotations

import atexit
import functools
import random
from collections import Counter
from pathlib import Path
from typing import Any

from cases import CASES
from killable import compared, request_for, template
from targets_admission import LIMITS, OPERATORS

from strongroom.admission import STANDARD_CHILD, Examiner
from strongroom.errors import Error
from strongroom.jobs import Job, Source
from strongroom.launch import CHILD, dependency_folders
from strongroom.planned import FEWEST
from strongroom.processes import WorkerLimits
from strongroom.workers import Workers
from strongroom.zygote import Launch, Nursery

SEEDS = {
    "fuzz_run_parts": tuple(bytes([n, 5 * n % 256, 77]) for n in range(8)),
    "fuzz_run_node": tuple(bytes([n, 3 * n % 256, 9]) for n in range(8)),
    "fuzz_run_worker": tuple(bytes([n, 7 * n % 256, 3]) for n in range(4)),
}
RUNS = {"fuzz_run_parts": 20, "fuzz_run_node": 40, "fuzz_run_worker": 8}
"""How many mutations a test run takes: each is a process."""
SEEN: Counter[tuple[str, str, str]] = Counter()
"""(target, how it ended, code) -> times; `fuzz/run.py` prints it."""
RAN: Counter[str] = Counter()
"""Operators of models that ran."""


def never() -> set[str]:
    """Operators of which no model has run so far."""
    return {*OPERATORS, "If", "Loop", "Scan"} - set(RAN)


def fuzz_run_parts(data: bytes) -> None:
    """A good model, changed in a few places."""
    _check("parts", data)


def fuzz_run_node(data: bytes) -> None:
    """One node."""
    _check("node", data)


def fuzz_run_worker(data: bytes) -> None:
    """Either, through examiner, template and one worker for each of two callers."""
    rng = random.Random(data)
    case = rng.choice(sorted(CASES))
    model = CASES[case](rng)
    made = _server()
    if made is None:
        SEEN["worker", "no layers", ""] += 1
        return
    end, code = "ran", ""
    try:
        _story(*made, model, rng)
    except Error as error:
        end, code = "refused", error.code
    SEEN["worker", end, code] += 1
    if end == "ran":
        RAN.update({node.op_type for node in model.graph.node})


def _story(examiner: Examiner, workers: Workers, model: Any, rng: random.Random) -> None:
    admitted = examiner.admit(model.SerializeToString(), format="onnx", limits=LIMITS)
    source = Source(
        info=admitted.info,
        sha256=admitted.sha256,
        canonical_sha256=admitted.canonical_sha256,
        read=lambda: admitted.onnx,
    )
    operators = sorted({node.op_type for node in model.graph.node})
    mine = request_for(admitted.info, operators, rng, canary=False)
    others = request_for(admitted.info, operators, rng, canary=True, like=mine)
    if mine is None or others is None:
        return
    loaded = workers.load(source)
    try:
        answers = []
        for caller, request in (("a", mine), ("b", others), ("a", mine)):
            try:
                answers.append(loaded.run(request, outputs=(), job=Job(caller=caller, seconds=20.0)))
            except Error as error:
                answers.append(error.code)
    finally:
        loaded.close()
    outcome = compared(answers[0], answers[2])
    assert outcome["end"] != "leak", outcome


@functools.cache
def _server() -> tuple[Examiner, Workers] | None:
    """What a server has; None where the sandbox has not the layers that it asks for."""
    launch = Launch(
        paths=dependency_folders("simulated"),
        environment=CHILD,
        folder=Path("/"),
        measured=None,
        flags=("-I", "-S"),
        workers=True,
    )
    nursery = Nursery(launch)
    atexit.register(nursery.close)
    if not set(FEWEST) <= set(nursery.wait()):
        return None
    limits = WorkerLimits(
        idle_bytes=64 << 20,
        processes=4,
        run_bytes=1 << 30,
        run_longest_s=30,
        input_bytes=32 << 20,
        response_bytes=16 << 20,
        elements=1 << 22,
    )
    workers = Workers(nursery, isolation="owner", layers=FEWEST, limits=limits)
    return Examiner(nursery, limits=STANDARD_CHILD), workers


def _check(case: str, data: bytes) -> None:
    outcome = template().outcome(case, data)
    SEEN[case, outcome["end"], outcome.get("code", "")] += 1
    if outcome["end"] == "ran":
        RAN.update(outcome["operators"])
    assert outcome["end"] not in ("killed", "leak", "fault"), outcome
