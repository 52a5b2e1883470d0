"""`bench --merge native.json tee.json`: the paper's Tables 2 to 4 from two results of ours, one of an ordinary machine
and one of a TEE, for the day hardware is at hand.

Native and TEE are the same software, as in the paper; what is compared is the hardware's cost, beside what the paper
publishes of its own.
"""

from __future__ import annotations

from click import ClickException

from strongroom_bench import paper
from strongroom_bench.results import Result
from strongroom_bench.stats import geometric_mean
from strongroom_bench.tables import grid, seconds

TITLES = {
    "warm": "Model in memory: the paper's Tables 2 and 3",
    "cold": "Model from the encrypted store: the paper's Table 4",
}


def merge(native: Result, tee: Result) -> str:
    """The table.

    Raises:
        ClickException: not two results of `warm`, or of `cold`; or no model that both have.
    """
    if native.command != tee.command or native.command not in TITLES:
        raise ClickException(
            f"expected two results of `warm` or two of `cold`, got {native.command!r} and {tee.command!r}"
        )
    lines, overheads = [], []
    for subject in native.subjects():
        a, b = (one.find(subject, "strongroom", "latency") for one in (native, tee))
        if a is None or b is None:
            continue
        overhead = b.summary.median / a.summary.median
        overheads.append(overhead)
        theirs = paper.published(native.command).get(subject, paper.Published(None, None))
        lines.append([
            subject, seconds(a.summary.median), seconds(b.summary.median), f"{overhead:.2f}", seconds(theirs.native),
            seconds(theirs.tee), "-" if theirs.overhead is None else f"{theirs.overhead:.2f}",
        ])  # fmt: skip
    if not lines:
        raise ClickException("the two results have no model in common that our server ran")
    head = ["model", "native", "TEE", "overhead", "paper: native", "paper: SGX", "overhead"]
    mean = geometric_mean(overheads) or 0.0
    where = [f"{word}: {_where(one)}" for word, one in (("native", native), ("TEE", tee))]
    last = f"geometric mean of the overheads: {mean:.3f} over {len(lines)} models"
    return "\n".join(
        [TITLES[native.command], "", grid(head, lines), "", last, *where, paper.UNKNOWN, *_warn(tee)]
    )


def _ours(result: Result) -> str:
    found = next((c for c in result.contenders if c["name"] == "strongroom"), None)
    return str(found["facts"].get("platform", "unknown")) if found else "unknown"


def _where(result: Result) -> str:
    machine = result.machine
    return f"{_ours(result)} on {machine['processor']}, {machine['system']}, {result.started}"


def _warn(tee: Result) -> list[str]:
    simulated = "simulated" in _ours(tee)
    return (
        ["The second result is of a SIMULATED TEE: its overhead is that of no hardware."] if simulated else []
    )
