"""Fuzz targets that run models: whole ones after changes, and single nodes of every operator.

Oracle: a model is refused with a code of ours, or it loads and runs, within its limits; two answers to one request are
the same bytes, also where another's request came between; none holds anything of the other's. Whatever kills the
process that runs is a finding: admission should have refused the model.
"""

from __future__ import annotations

from collections import Counter

from killable import template

SEEDS = {
    "fuzz_run_parts": tuple(bytes([n, 5 * n % 256, 77]) for n in range(8)),
    "fuzz_run_node": tuple(bytes([n, 3 * n % 256, 9]) for n in range(8)),
}
RUNS = {"fuzz_run_parts": 40, "fuzz_run_node": 80}
"""How many mutations a test run takes: each is a process."""
SEEN: Counter[tuple[str, str, str]] = Counter()
"""(target, how it ended, code) -> times; `fuzz/run.py` prints it."""
RAN: Counter[str] = Counter()
"""Operators of models that ran."""


def fuzz_run_parts(data: bytes) -> None:
    """A good model, changed in a few places."""
    _check("parts", data)


def fuzz_run_node(data: bytes) -> None:
    """One node."""
    _check("node", data)


def _check(case: str, data: bytes) -> None:
    outcome = template().outcome(case, data)
    SEEN[case, outcome["end"], outcome.get("code", "")] += 1
    if outcome["end"] == "ran":
        RAN.update(outcome["operators"])
    assert outcome["end"] not in ("killed", "leak", "fault"), outcome
