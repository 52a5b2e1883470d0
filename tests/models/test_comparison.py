"""Errors of outputs: what is counted, in which unit, and when two answers are the same."""

from __future__ import annotations

import numpy as np
import pytest

from strongroom.models.comparison import accuracy, compare
from strongroom.oip import Array


def found(one: Array, other: Array) -> dict[str, object]:
    """The errors of one output in one example."""
    return compare([{"y": one}], [{"y": other}])[0].to_json()


def test_errors_and_their_unit() -> None:
    """Relative means over the root mean square of the reference."""
    one = np.array([[3.0, -4.0, 0.0, 0.0]], np.float32)
    errors = found(one, one + np.array([[0, 0, 0, 0.5]], np.float32))
    assert errors["max_abs"] == 0.5 and errors["p50_abs"] == 0 and errors["max_relative"] == 0.2
    assert errors["least_cosine"] == pytest.approx(5 / 25.25**0.5, abs=1e-5) and errors["agreement"] == 1


def test_agreement_is_that_of_the_largest_score() -> None:
    """A row counts as the same where the same class wins, whatever the scores."""
    one, other = np.array([[0.6, 0.4], [0.1, 0.9]]), np.array([[0.9, 0.1], [0.6, 0.4]])
    assert found(one, other)["agreement"] == 0.5
    assert found(one[..., None], other[..., None])["agreement"] is None


def test_whole_numbers_and_texts_agree_or_do_not() -> None:
    """They have no error."""
    assert found(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))["agreement"] == 0.75
    assert found(np.array([b"a"], object), np.array([b"b"], object))["agreement"] == 0


@pytest.mark.parametrize(
    "other",
    [np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]]), np.ones((1, 3)), np.ones((0, 2))],
    ids=["nan", "infinite", "shape", "empty"],
)
def test_what_cannot_be_compared_is_said(other: Array) -> None:
    """It does not look like agreement."""
    assert found(np.ones((1, 2)), other)["finite"] is False


def test_zero_and_nothing() -> None:
    """A reference of zeros has no unit: any error is infinite, none is none."""
    assert found(np.zeros((1, 2)), np.zeros((1, 2)))["max_relative"] == 0
    assert found(np.zeros((1, 2)), np.ones((1, 2)))["max_relative"] == float("inf")


def test_accuracy_is_of_rows() -> None:
    """Over all examples; labels are one a row."""
    answers = [{"y": np.array([[0.9, 0.1]])}, {"y": np.array([[0.2, 0.8], [0.7, 0.3]])}]
    assert accuracy(answers, np.array([0, 1, 1]), output="y") == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="labels"):
        accuracy(answers, np.array([0, 1]), output="y")
