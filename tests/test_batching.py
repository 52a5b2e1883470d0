"""Requests of one caller share a run, where that changes nothing but how long it takes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from plane import linear_onnx

from strongroom.batching import (
    TRIALS,
    Joiner,
    Trials,
    alike,
    differ,
    join,
    most_rows,
    split,
    why_not,
    with_batching,
)
from strongroom.errors import Error, Failure, InvalidRequest, Unavailable
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS, ModelInfo, Room, TensorSpec
from strongroom.reduction import Precision
from strongroom.turns import Turn

INFO = admit(linear_onnx(), format="onnx", limits=STANDARD_LIMITS).info
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def changed(**more: Any) -> ModelInfo:
    """The linear model's facts, but for some."""
    return dataclasses.replace(INFO, **more)


def flagged(flag: str) -> ModelInfo:
    """The same with a flag of admission's."""
    return changed(admission=dataclasses.replace(INFO.admission, flags=(flag,)))


# Which models


def test_rows_in_and_out_may_be_joined() -> None:
    """One symbol for the first dimension of everything; the owner's word is kept beside the facts."""
    assert why_not(INFO) is None and not INFO.batching
    on = with_batching(INFO)
    assert on.batching and ModelInfo.from_json(on.to_json()) == on
    assert "batching" not in INFO.to_json()


@pytest.mark.parametrize(
    "info",
    [
        changed(inputs=(TensorSpec("x", "FP32", (1, 4)),)),
        changed(inputs=(TensorSpec("x", "FP32", (None, 4)),)),
        changed(inputs=(TensorSpec("x", "FP32", ()),)),
        changed(inputs=(TensorSpec("x", "FP32", None),)),
        changed(outputs=(TensorSpec("y", "FP32", ("others", 4)),)),
        changed(outputs=(TensorSpec("y", "FP32", (4,)),)),
        changed(outputs=(TensorSpec("y", "FP32", ("rows", "rows")),)),
        changed(inputs=(TensorSpec("x", "FP32", ("rows", 4)), TensorSpec("w", "FP32", (4, 4)))),
        flagged("data_dependent_output"),
        changed(precision=Precision(name="as_uploaded", narrow=(("DynamicQuantizeLinear", 1),))),
    ],
    ids=["fixed", "unknown", "scalar", "no rank", "other symbol", "no rows out", "twice", "not all", "data", "int8"],
)  # fmt: skip
def test_others_may_not(info: ModelInfo) -> None:
    """Where rows are not the first dimension of everything, or depend on one another by what the model is."""
    assert why_not(info) is not None
    with pytest.raises(InvalidRequest) as caught:
        with_batching(info)
    assert caught.value.code == "batching_unsupported"


def test_no_more_rows_than_admission_bounded() -> None:
    """The largest of the rooms that hold the other open sizes."""
    one = {"peak_bytes": 1, "operations": 1, "steps": 1}
    rooms = (Room(sizes=(100, 8), **one), Room(sizes=(20, 64), **one))
    info = changed(
        inputs=(TensorSpec("x", "FP32", ("rows", "words")),),
        admission=dataclasses.replace(INFO.admission, rooms=rooms),
    )
    found = [most_rows(info, {"x": np.zeros((1, words), np.float32)}) for words in (8, 9, 64, 65)]
    assert found == [100, 20, 20, 0]


# Rows


def test_rows_come_back_to_whose_they_are() -> None:
    """In the order of the requests, none where a request has none."""
    parts = [{"x": X[:1]}, {"x": X[:0]}, {"x": X}]
    whole = join(parts)
    assert whole["x"].shape == (3, 4)
    again = split({"y": whole["x"] * 2}, [1, 0, 2])
    assert again is not None
    assert [part["y"].tolist() for part in again] == [(part["x"] * 2).tolist() for part in parts]


@pytest.mark.parametrize("result", [np.float32(1), X, X[:1]], ids=["scalar", "more", "fewer"])
def test_other_rows_are_no_answer(result: Any) -> None:
    """A model that gives others than it got."""
    assert split({"y": np.asarray(result)}, [1, 2]) is None


def test_what_is_alike() -> None:
    """Floats within the tolerance of their type, NaN at the same places; everything else to the bit."""
    y = np.array([1.0, 1e-9, np.nan, np.inf], np.float32)
    assert alike({"y": y * np.float32(1 + 1e-6)}, {"y": y})
    assert not alike({"y": y * np.float32(1.01)}, {"y": y})
    assert not alike({"y": np.nan_to_num(y)}, {"y": y})
    assert not alike({"y": y.astype(np.float64)}, {"y": y})
    assert not alike({"y": y[:3]}, {"y": y}) and not alike({}, {"y": y})
    labels = np.array([3, 4])
    assert alike({"y": labels}, {"y": labels.copy()}) and not alike({"y": labels + 1}, {"y": labels})


def test_equal_rows_show_nothing() -> None:
    """A model that takes the mean away gives the same for one row and for many equal ones."""
    assert not differ([{"x": X[:1]}, {"x": np.repeat(X[:1], 3, axis=0)}, {"x": X[:0]}])
    assert differ([{"x": X[:1]}, {"x": X[1:]}]) and differ([{"x": X[:1]}, {"x": X}])
    trials = Trials()
    for _ in range(TRIALS):
        assert trials.young and trials.wanted(differing=False) and trials.saw(differing=False, same=True)
    trials.saw(differing=False, same=True)  # one more, begun before the last had ended
    assert not trials.young and not trials.wanted(differing=False) and trials.wanted(differing=True)
    assert not trials.saw(differing=True, same=False) and not trials.saw(differing=True, same=True)


# Who shares a run


class Runs:
    """What a `Joiner` runs on: runs that end when they are told, in places that are there or not."""

    def __init__(self, *, rows: int = 8, delay_s: float = 10.0) -> None:
        self.begun: list[list[str]] = []
        self.answers: dict[str, bytes | Error] = {}
        self.fault: Exception | None = None
        self.places, self.turns = 0, 0
        self.entrance, self.end = asyncio.Event(), asyncio.Event()
        self.entrance.set()
        self.stopped = 0
        self.joiner: Joiner[str] = Joiner(
            rows=rows, delay_s=delay_s, enter=self.enter, leave=self.leave, run=self.run
        )

    async def enter(self, turn: Turn) -> object:
        """A place."""
        self.turns += 1
        await self.entrance.wait()
        self.places += 1
        return turn

    def leave(self, _place: object) -> None:
        """Gives it back."""
        self.places -= 1

    async def run(self, works: Sequence[str]) -> list[bytes | Error]:
        """A run of all of these."""
        self.begun.append(list(works))
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        if self.fault is not None:
            raise self.fault
        return [self.answers.get(work, work.encode()) for work in works]

    def ask(
        self, work: str, *, group: str = "g", rows: int = 1, size: int = 1, most: int = 99
    ) -> asyncio.Task[bytes]:
        """One request."""
        call = self.joiner.run(group, work, turn=Turn("a", "m"), rows=rows, size=size, most=most)
        return asyncio.ensure_future(call)


async def soon() -> None:
    """Whatever can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_nobody_waits_for_company_but_those_behind_a_run_share_one() -> None:
    """The first goes alone, at once; those that come meanwhile go together when it has ended."""

    async def main() -> None:
        runs = Runs()
        first = runs.ask("a")
        await soon()
        assert runs.begun == [["a"]]
        others = [runs.ask(work) for work in "bcd"]
        await soon()
        assert runs.begun == [["a"]] and runs.turns == 1
        runs.end.set()
        assert await asyncio.gather(first, *others) == [b"a", b"b", b"c", b"d"]
        assert runs.begun == [["a"], ["b", "c", "d"]] and runs.turns == 2
        assert not runs.places and not runs.joiner._open and not runs.joiner._running

    asyncio.run(main())


def test_the_wait_for_a_place_gathers_too() -> None:
    """One turn for all of them: a crowd of one caller's takes no more places than one request."""

    async def main() -> None:
        runs = Runs()
        runs.entrance.clear()
        asked = [runs.ask(work) for work in "abc"]
        await soon()
        runs.entrance.set()
        runs.end.set()
        assert await asyncio.gather(*asked) == [b"a", b"b", b"c"]
        assert runs.begun == [["a", "b", "c"]] and runs.turns == 1

    asyncio.run(main())


def test_a_wait_for_company_is_not_long() -> None:
    """After `delay_s` a second run is begun beside the first."""

    async def main() -> None:
        runs = Runs(delay_s=0.02)
        first = runs.ask("a")
        await soon()
        second = runs.ask("b")
        await asyncio.sleep(0.06)
        assert runs.begun == [["a"], ["b"]] and runs.places == 2
        runs.end.set()
        assert await asyncio.gather(first, second) == [b"a", b"b"]

    asyncio.run(main())


def test_groups_share_nothing() -> None:
    """Another caller, model, or shape of the rest."""

    async def main() -> None:
        runs = Runs()
        runs.entrance.clear()
        asked = [runs.ask("a"), runs.ask("b", group="h")]
        await soon()
        runs.entrance.set()
        runs.end.set()
        await asyncio.gather(*asked)
        assert runs.begun == [["a"], ["b"]]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("second", "rows"),
    [({"rows": 4}, 8), ({"rows": 1, "most": 5}, 8), ({"size": 1 << 20}, 8), ({"rows": 50}, 8)],
    ids=["the setting's", "admission's", "bytes", "alone more than the setting's"],
)
def test_bounds_of_what_is_joined(second: dict[str, int], rows: int) -> None:
    """What would be more goes into the next run; by itself a request is as large as it may be."""

    async def main() -> None:
        runs = Runs(rows=rows)
        runs.entrance.clear()
        asked = [runs.ask("a", rows=5), runs.ask("b", **second)]
        await soon()
        runs.entrance.set()
        runs.end.set()
        await asyncio.gather(*asked)
        assert runs.begun == [["a"], ["b"]]

    asyncio.run(main())


def test_each_has_its_own_error() -> None:
    """And what ends a run for all of them ends it for each, by an error of its own; places are given back."""

    async def main() -> None:
        runs = Runs()
        runs.entrance.clear()
        runs.answers["b"] = InvalidRequest("no", code="run_failed")
        asked = [runs.ask(work) for work in "abc"]
        await soon()
        runs.entrance.set()
        runs.end.set()
        got = await asyncio.gather(*asked, return_exceptions=True)
        assert got[0] == b"a" and isinstance(got[1], InvalidRequest) and got[2] == b"c"
        runs.fault = Failure("gone")
        runs.entrance.clear()
        asked = [runs.ask(work) for work in "de"]
        await soon()
        runs.entrance.set()
        got = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(error, Failure) for error in got) and got[0] is not got[1]
        assert not runs.places and not runs.joiner._running

    asyncio.run(main())


def test_no_place_is_everybodys_refusal() -> None:
    """Who waits with others waits in the same line."""

    async def main() -> None:
        runs = Runs()

        async def full(_turn: Turn) -> object:
            await asyncio.sleep(0)
            raise Unavailable("full", code="overloaded")

        runs.joiner._enter = full
        got = await asyncio.gather(runs.ask("a"), runs.ask("b"), return_exceptions=True)
        assert all(isinstance(error, Unavailable) for error in got) and not runs.begun

    asyncio.run(main())


def test_who_goes_away_takes_nobody_along() -> None:
    """Before the run and in it; where nobody is left, it is stopped, or does not begin."""

    async def main() -> None:
        runs = Runs()
        runs.entrance.clear()
        asked = [runs.ask(work) for work in "abc"]
        await soon()
        asked[0].cancel()
        await soon()
        runs.entrance.set()
        await soon()
        assert runs.begun == [["b", "c"]]
        asked[1].cancel()
        await soon()
        assert not runs.stopped
        asked[2].cancel()
        await soon()
        assert runs.stopped == 1 and not runs.places
        runs.entrance.clear()
        lonely = runs.ask("d")
        await soon()
        lonely.cancel()
        await soon()
        runs.entrance.set()
        await soon()
        assert len(runs.begun) == 1 and not runs.joiner._open
        runs.end.set()
        assert await runs.ask("e") == b"e"

    asyncio.run(main())
