"""Runs that the event loop waits for: each ends once, and whoever does not wait any more has it stopped."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from strongroom import waiter
from strongroom.deadlines import Deadlines
from strongroom.errors import Error, InvalidRequest, LimitExceeded
from strongroom.jobs import too_long
from strongroom.waiter import Waiter


class Told:
    """A run that does what it is told by a socket: "." more to come, "!" a refusal, "+" results."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.steps, self.stops = 0, 0

    def fileno(self) -> int:
        """See `jobs.Run`."""
        return self.ours.fileno()

    def step(self) -> int | None:
        """See `jobs.Run`."""
        self.steps += 1
        said = self.ours.recv(1)
        if said == b"!":
            self.ours.close()  # as a worker that is given back: its number may be another file's at once
            raise InvalidRequest("no", code="run_failed")
        return 12 if said == b"+" else None

    def results(self) -> dict[str, Any]:
        """See `jobs.Run`."""
        return {"y": np.zeros(3, np.float32)}

    def stop(self) -> None:
        """See `jobs.Run`."""
        self.stops += 1


@pytest.fixture
def told() -> Iterator[Told]:
    """One run."""
    made = Told()
    yield made
    made.ours.close()
    made.theirs.close()


@pytest.fixture(autouse=True, params=["a set of the kernel's", "no such sets", "no sets of sets"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However the loop watches descriptors."""
    if request.param == "no such sets":
        monkeypatch.setattr(waiter, "select", SimpleNamespace())
    elif request.param == "no sets of sets":
        with Path(__file__).open("rb") as file:  # what `epoll_ctl` refuses
            flags = {"EPOLLIN": select.EPOLLIN, "EPOLLONESHOT": select.EPOLLONESHOT}
            made = SimpleNamespace(fileno=file.fileno, close=lambda: None)
            monkeypatch.setattr(waiter, "select", SimpleNamespace(epoll=lambda: made, **flags))
            yield
        return
    yield


def late() -> Error:
    """What becomes of a run whose time is over."""
    return too_long(1)


def test_results_in_pieces_are_waited_for(told: Told) -> None:
    """However often it speaks; nothing watches its descriptor afterwards."""

    async def main() -> None:
        waiting = asyncio.ensure_future(Waiter().wait(told, 10, late=late))
        for said in b"..+":
            await asyncio.sleep(0.01)
            told.theirs.send(bytes([said]))
        assert await waiting == 12
        assert not asyncio.get_running_loop().remove_reader(told.fileno())

    asyncio.run(main())
    assert (told.steps, told.stops) == (3, 0)


def test_how_a_run_ends_is_the_callers(told: Told) -> None:
    """Once it has ended by itself it is not stopped, and its descriptor, which may be another's, is not watched."""

    async def main() -> None:
        number = told.fileno()
        told.theirs.send(b"!")
        with pytest.raises(InvalidRequest):
            await Waiter().wait(told, 10, late=late)
        assert not asyncio.get_running_loop().remove_reader(number)

    asyncio.run(main())
    assert told.stops == 0


def test_a_run_is_stopped_at_its_deadline(told: Told) -> None:
    """By the one timer; its caller gets what `late` makes."""

    async def main() -> None:
        with pytest.raises(LimitExceeded) as caught:
            await Waiter().wait(told, 0.02, late=late)
        assert caught.value.code == "run_too_long"

    asyncio.run(main())
    assert told.stops == 1


@pytest.mark.parametrize("ready", [False, True], ids=["it runs", "its results are there"])
def test_whoever_is_cancelled_stops_it(told: Told, ready: bool) -> None:
    """Once, whatever it is doing; also where results came in the same moment: nobody takes them any more."""

    async def main() -> None:
        waiting = asyncio.ensure_future(Waiter().wait(told, 10, late=late))
        await asyncio.sleep(0.01)
        if ready:
            told.theirs.send(b"+")
            while not told.steps:
                await asyncio.sleep(0)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled() or ready

    asyncio.run(main())
    assert told.stops == 1 or (ready and told.steps == 1)


def test_what_cannot_be_watched_is_stopped(told: Told) -> None:
    """The kernel has no more of that: a worker that nobody waits for would be nobody's for ever."""
    told.fileno = lambda: -1

    async def main() -> None:
        with pytest.raises(ValueError, match=r"."):
            await Waiter().wait(told, 10, late=late)

    asyncio.run(main())
    assert told.stops == 1


def test_the_deadline_of_who_has_gone_is_nobodys(told: Told) -> None:
    """A deadline in the moment of a cancellation stops it once and disturbs nobody."""

    async def main() -> None:
        waiter = Waiter()
        waiting = asyncio.ensure_future(waiter.wait(told, 0.01, late=late))
        await asyncio.sleep(0)
        for _, act in list(waiter._deadlines._waiting.values()):
            waiting.cancel()
            act()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.03)

    asyncio.run(main())
    assert told.stops == 1


# Deadlines


def test_deadlines_are_kept_in_order_by_one_timer() -> None:
    """Whatever order they were set in; what was dropped does not happen; infinity never comes."""
    happened: list[str] = []

    async def main() -> None:
        deadlines = Deadlines()
        for name, seconds in (
            ("c", 0.09),
            ("a", 0.01),
            ("dropped", 0.03),
            ("b", 0.05),
            ("never", float("inf")),
        ):
            deadlines.add(name, seconds, lambda name=name: happened.append(name))
        deadlines.drop("dropped")
        deadlines.drop("unknown")
        await asyncio.sleep(0.15)
        assert deadlines._timer is None  # nothing is waited for

    asyncio.run(main())
    assert happened == ["a", "b", "c"]


def test_a_deadline_is_never_early_and_takes_no_other_along() -> None:
    """Neither one that is a little later, nor one whose act fails, nor one that sets another."""
    happened: list[tuple[str, bool]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        deadlines, began = Deadlines(), loop.time()

        def happens(name: str, seconds: float) -> None:
            happened.append((name, loop.time() >= began + seconds))
            if name == "a":
                deadlines.add("later", 1, lambda: None)
                raise ValueError

        for name, seconds in (("a", 0.02), ("b", 0.024), ("c", 0.04)):
            deadlines.add(name, seconds, lambda name=name, seconds=seconds: happens(name, seconds))
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert happened == [("a", True), ("b", True), ("c", True)]


def test_deadlines_outlive_their_loop() -> None:
    """A timer of a loop that has ended is no timer: the next loop sets its own."""
    deadlines, happened = Deadlines(), []

    async def main(seconds: float) -> None:
        deadlines.add("it", seconds, lambda: happened.append(seconds))
        await asyncio.sleep(0.05)
        deadlines.drop("it")

    asyncio.run(main(10))
    asyncio.run(main(0.01))
    assert happened == [0.01]
