"""Summaries of repeated measurements. Pure; randomness is seeded, so the same samples give the same figures.

Rules
  - The median stands for a series, its interquartile range for the noise; above `NOISY` of the median it is flagged.
  - The 95 % interval of a median is by order statistics (no distribution is assumed): of n sorted values, the k-th and
    the (n+1-k)-th, k the largest with P(Bin(n, 1/2) < k) <= 2.5 %. Below six values there is none.
  - A ratio is the quotient of two medians of one run, whose rounds alternate. Its 95 % interval is by bootstrap over
    rounds: both sides of a round are drawn together, because a busy moment meets both.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles, stdev
from typing import Any, Final

NOISY: Final = 0.10
"""Share of the median above which an interquartile range is flagged: the paper's own bound."""
RESAMPLES: Final = 1000
"""Bootstrap resamples of a ratio."""
_SEED: Final = 20261129


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a series of values says; in the series' unit."""

    runs: int
    median: float
    mean: float
    deviation: float
    """Standard deviation of the sample."""
    iqr: float
    low: float
    """Ends of the 95 % interval of the median; the least and the greatest value where there are too few for one."""
    high: float
    least: float
    interval: bool
    """Whether `low` and `high` are a 95 % interval."""

    @property
    def noisy(self) -> bool:
        """Whether the interquartile range is above `NOISY` of the median."""
        return self.iqr > NOISY * self.median

    def to_json(self) -> dict[str, Any]:
        """The members by name, with `noisy`."""
        return {
            "runs": self.runs, "median": self.median, "mean": self.mean, "deviation": self.deviation, "iqr": self.iqr,
            "low": self.low, "high": self.high, "least": self.least, "interval": self.interval, "noisy": self.noisy,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times the baseline's median another median is, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The members by name."""
        return {"value": self.value, "low": self.low, "high": self.high}


def summarise(values: Sequence[float]) -> Summary:
    """The summary of at least one value.

    Raises:
        ValueError: none, or one that is no positive finite number: a clock that stood still measures nothing.
    """
    if not values or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError("a series needs values, each positive and finite")
    ordered = sorted(values)
    quarter = quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    rank = median_rank(len(ordered))
    return Summary(
        runs=len(ordered),
        median=median(ordered),
        mean=fmean(ordered),
        deviation=stdev(ordered) if len(ordered) > 1 else 0.0,
        iqr=quarter[2] - quarter[0],
        low=ordered[max(rank, 1) - 1],
        high=ordered[-max(rank, 1)],
        least=ordered[0],
        interval=rank > 0,
    )


def median_rank(count: int) -> int:
    """k such that the k-th least and k-th greatest of `count` values enclose the median with 95 %; 0: too few."""
    tail, rank = 0.0, 0
    for below in range(count):
        tail += math.comb(count, below) / 2**count
        if tail > 0.025:
            break
        rank = below + 1
    return rank


def ratio_of(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """median(values) / median(baseline); the i-th of both were measured in the same round.

    Raises:
        ValueError: different numbers of values, or none.
    """
    if not values or len(values) != len(baseline):
        raise ValueError("a ratio needs two series of the same length")
    rounds = list(zip(values, baseline, strict=True))
    draw = random.Random(_SEED)
    resampled = []
    for _ in range(RESAMPLES):
        taken = draw.choices(rounds, k=len(rounds))
        resampled.append(median(v for v, _ in taken) / median(b for _, b in taken))
    resampled.sort()
    cut = RESAMPLES // 40
    return Ratio(value=median(values) / median(baseline), low=resampled[cut], high=resampled[-cut - 1])


def geometric_mean(ratios: Sequence[float]) -> float | None:
    """The geometric mean; None of no ratios. Of ratios it is the one mean that does not depend on which is inverted."""
    return math.exp(fmean(map(math.log, ratios))) if ratios else None
