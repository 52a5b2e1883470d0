"""How far the outputs of one network are from those of another on the same requests.

Distributions are over every element of every example. An absolute error is in the output's own unit; a relative
one is the absolute error over the root mean square of that output in the reference, of all examples together, so
that elements near zero do not decide. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from strongroom.models.rewrite import Array

MAX_ERRORS: Final = 1 << 24
"""Errors that are kept for percentiles; of more, every n-th element is taken."""
_SIGNIFICANT: Final = 6
"""Digits in which numbers are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputError:
    """One output's difference."""

    name: str
    max_abs: float
    p50_abs: float
    p99_abs: float
    max_relative: float
    p50_relative: float
    p99_relative: float
    least_cosine: float | None
    """Of the angle between the two answers to one example, the worst; None where one has no length."""
    agreement: float | None
    """Share of rows (or, of whole numbers, texts and flags, elements) whose answer is the same; None where
    the output does not look like scores of classes (a matrix of at least two columns, or a row)."""
    finite: bool
    """Whether every element of both is finite; errors are of those that are."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object form; numbers in six digits."""
        names = (name for name in self.__slots__ if name != "name")
        return {"name": self.name, **{name: _short(getattr(self, name)) for name in names}}


def compare(
    reference: Sequence[Mapping[str, Array]], reduced: Sequence[Mapping[str, Array]]
) -> tuple[OutputError, ...]:
    """The errors of each output; both sequences have the answers to the same examples, in their order."""
    return tuple(
        _compared(name, [a[name] for a in reference], [b[name] for b in reduced]) for name in reference[0]
    )


def accuracy(answers: Sequence[Mapping[str, Array]], labels: Array, *, output: str) -> float:
    """Share of `labels` (whole numbers, one a row of all answers together) that `output` has right.

    Floating-point answers are scores, of which the largest is the answer.

    Raises:
        ValueError: another number of labels than rows.
    """
    got = np.concatenate([_answers(answer[output]) for answer in answers])
    if got.shape != labels.shape:
        raise ValueError(f"{labels.size} labels for {got.size} rows")
    return float(np.mean(got == labels))


def _answers(values: Array) -> Array:
    if values.dtype.kind != "f":
        return values.reshape(-1)
    return (
        np.asarray(values.reshape(-1, values.shape[-1]).argmax(axis=-1)) if values.ndim else values.reshape(1)
    )


def _compared(name: str, reference: list[Array], reduced: list[Array]) -> OutputError:
    if reference[0].dtype.kind != "f":
        same = np.concatenate([_equal(a, b) for a, b in zip(reference, reduced, strict=True)])
        share = float(same.mean()) if same.size else None
        return OutputError(
            name=name, max_abs=0.0, p50_abs=0.0, p99_abs=0.0, max_relative=0.0, p50_relative=0.0,
            p99_relative=0.0, least_cosine=None, agreement=share, finite=True,
        )  # fmt: skip
    # Where an output's shape depends on content the two may differ: only what both have can be compared.
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(reference, reduced, strict=True)
        if a.shape == b.shape and a.size
    ]
    whole = len(pairs) == len(reference)
    if not pairs:
        pairs, whole = [(np.zeros(1), np.zeros(1))], False
    whole = whole and all(bool(np.isfinite(a).all() and np.isfinite(b).all()) for a, b in pairs)
    errors = np.concatenate([np.abs(a - b).reshape(-1) for a, b in pairs])
    squares = np.concatenate([np.square(a).reshape(-1) for a, _ in pairs])
    errors, squares = errors[np.isfinite(errors)], squares[np.isfinite(squares)]
    scale = float(np.sqrt(squares.mean())) if squares.size else 0.0
    kept = errors[:: max(1, -(-errors.size // MAX_ERRORS))]
    middle, most = (float(q) for q in np.percentile(kept, [50, 99])) if kept.size else (0.0, 0.0)
    worst = float(errors.max(initial=0.0))
    return OutputError(
        name=name, max_abs=worst, p50_abs=middle, p99_abs=most,
        max_relative=_over(worst, scale), p50_relative=_over(middle, scale), p99_relative=_over(most, scale),
        least_cosine=_least_cosine(pairs), agreement=_agreement(pairs), finite=whole,
    )  # fmt: skip


def _over(error: float, scale: float) -> float:
    return error / scale if scale else 0.0 if error == 0 else float("inf")


def _equal(one: Array, other: Array) -> Array:
    if one.shape != other.shape:
        return np.zeros(max(one.size, other.size), np.bool_)
    return np.asarray(one == other).reshape(-1)


def _least_cosine(pairs: Sequence[tuple[Array, Array]]) -> float | None:
    found = []
    for one, other in pairs:
        lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
        if lengths and np.isfinite(lengths):
            found.append(float(np.vdot(one, other)) / lengths)
    return min(found, default=None)


def _agreement(pairs: Sequence[tuple[Array, Array]]) -> float | None:
    if any(one.ndim not in (1, 2) or one.shape[-1] < 2 for one, _ in pairs):
        return None
    return float(np.mean(np.concatenate([_answers(one) == _answers(other) for one, other in pairs])))


def _short(value: Any) -> Any:
    return float(f"{value:.{_SIGNIFICANT}g}") if isinstance(value, float) else value
