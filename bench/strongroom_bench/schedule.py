"""The order of measuring: contenders take turns, round by round, and who begins alternates.

A busy moment of a shared machine, or a processor that changes its clock, then meets all alike; what is compared was
measured within the same second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

Measure = Callable[[], float]
"""One measured run of one contender."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How often: rounds that count, and rounds before them that do not."""

    rounds: int = 25
    warmups: int = 5


PAPER_PLAN: Final = Plan()
"""The paper's method: 25 runs after 5 warm-ups."""
FEWEST_ROUNDS: Final = 20
"""Rounds below which a result says that it is a trial."""


def take_turns(
    measures: Mapping[str, Measure], plan: Plan, *, noticed: Callable[[int], None] = lambda _round: None
) -> dict[str, list[float]]:
    """Runs every measure once per round: in the given order in even rounds, in reverse in odd ones.

    Returns the values of the counted rounds by name, in the order of rounds. `noticed(n)` is called after round n.
    """
    values: dict[str, list[float]] = {name: [] for name in measures}
    names = list(measures)
    for number in range(plan.warmups + plan.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            value = measures[name]()
            if number >= plan.warmups:
                values[name].append(value)
        noticed(number)
    return values
