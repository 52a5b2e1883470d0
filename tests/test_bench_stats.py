"""The benchmarks' statistics and schedule: pure, and held against what others compute."""

from __future__ import annotations

import contextlib
import math
import os
import random
from statistics import NormalDist

import pytest
from strongroom_bench.machine import choose_cores, staying_on
from strongroom_bench.schedule import PAPER_PLAN, Plan, take_turns
from strongroom_bench.stats import geometric_mean, median_rank, ratio_of, summarise


@pytest.mark.parametrize(
    ("count", "rank"),
    # The table of sign-test confidence intervals in Hollander, Wolfe and Chicken, Nonparametric Statistical Methods.
    [(1, 0), (5, 0), (6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (20, 6), (25, 8)],
)
def test_the_interval_of_a_median_is_by_order_statistics(count: int, rank: int) -> None:
    """The k-th of n values from both ends, as published tables have it; none of fewer than six."""
    assert median_rank(count) == rank


def test_a_summary_says_what_the_values_say() -> None:
    """Median, quartiles, deviation and interval of 25 known values, in any order."""
    values = [float(n) for n in range(1, 26)]
    random.Random(1).shuffle(values)
    summary = summarise(values)
    assert (summary.runs, summary.median, summary.mean, summary.least) == (25, 13.0, 13.0, 1.0)
    assert summary.iqr == 12.0
    assert (summary.low, summary.high) == (8.0, 18.0)
    assert summary.deviation == pytest.approx(7.359800721939872)
    assert summary.interval and summary.noisy


def test_a_quiet_series_is_not_flagged_and_a_short_one_has_no_interval() -> None:
    """Ten per cent is the paper's bound; three values give no 95 % interval, and it says so."""
    quiet = summarise([100.0, 101.0, 102.0, 103.0, 104.0, 105.0])
    assert not quiet.noisy and quiet.interval
    short = summarise([1.0, 2.0, 3.0])
    assert not short.interval and (short.low, short.high) == (1.0, 3.0)
    assert summarise([2.0]).deviation == 0.0


@pytest.mark.parametrize("values", [[], [0.0], [-1.0, 1.0], [math.nan], [math.inf]])
def test_what_measures_nothing_has_no_summary(values: list[float]) -> None:
    """A clock that stood still is a fault of the measurement, not a fast server."""
    with pytest.raises(ValueError, match="positive and finite"):
        summarise(values)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    """Of 600 samples of 25 from a skewed distribution with a known median, 93 to 99 % enclose it."""
    draw, hits = random.Random(2), 0
    truth = math.exp(NormalDist().inv_cdf(0.5))
    for _ in range(600):
        summary = summarise([math.exp(draw.gauss(0, 1)) for _ in range(25)])
        hits += summary.low <= truth <= summary.high
    assert 0.93 * 600 <= hits <= 0.99 * 600


def test_a_ratio_is_of_medians_and_its_interval_of_rounds() -> None:
    """Noise that meets both sides of a round does not widen the interval of their ratio."""
    draw = random.Random(3)
    busy = [1 + draw.random() * 4 for _ in range(25)]
    ratio = ratio_of([2.0 * b for b in busy], busy)
    assert ratio.value == pytest.approx(2.0)
    assert ratio.low == pytest.approx(2.0) and ratio.high == pytest.approx(2.0)
    apart = ratio_of([2.0 * b for b in busy], busy[::-1])
    assert apart.low < 2.0 < apart.high


def test_a_ratio_is_the_same_every_time() -> None:
    """The bootstrap is seeded: the same samples, the same figures."""
    values, base = [float(n) for n in range(1, 26)], [float(n) for n in range(25, 0, -1)]
    assert ratio_of(values, base) == ratio_of(values, base)


@pytest.mark.parametrize(("values", "base"), [([], []), ([1.0], []), ([1.0, 2.0], [1.0])])
def test_a_ratio_needs_pairs(values: list[float], base: list[float]) -> None:
    """Rounds compare all or nothing."""
    with pytest.raises(ValueError, match="same length"):
        ratio_of(values, base)


def test_the_geometric_mean_does_not_depend_on_what_is_inverted() -> None:
    """The mean of ratios is one over the mean of their inverses; of none there is none."""
    ratios = [1.1, 0.5, 3.0]
    mean = geometric_mean(ratios)
    assert mean is not None and mean == pytest.approx(1.65 ** (1 / 3))
    assert geometric_mean([1 / r for r in ratios]) == pytest.approx(1 / mean)
    assert geometric_mean([]) is None


def test_contenders_take_turns_and_who_begins_alternates() -> None:
    """A B, B A, A B; rounds of the warm-up are run and not counted."""
    order: list[str] = []
    clock = iter(range(1, 100))

    def run(name: str) -> float:
        order.append(name)
        return float(next(clock))

    values = take_turns({"a": lambda: run("a"), "b": lambda: run("b")}, Plan(rounds=2, warmups=1))
    assert "".join(order) == "abbaab"
    assert values == {"a": [4.0, 5.0], "b": [3.0, 6.0]}


def test_a_measurement_leaves_its_process_where_it_was() -> None:
    """Pinned to the client's core meanwhile, also where it fails; afterwards the next one can choose again."""
    cores = choose_cores()
    with contextlib.suppress(KeyError), staying_on(cores.client):
        if cores.client is not None:
            assert os.sched_getaffinity(0) == {cores.client}
        raise KeyError
    assert choose_cores() == cores


def test_the_method_is_the_papers() -> None:
    """25 runs after 5 warm-ups."""
    assert (PAPER_PLAN.rounds, PAPER_PLAN.warmups) == (25, 5)
