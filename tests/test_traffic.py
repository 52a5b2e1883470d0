"""Bounds refuse at once, and whatever is taken comes back."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from strongroom.errors import LimitExceeded, Unavailable
from strongroom.traffic import MAX_ADDRESSES, Arrival, Budget, Lane, Rate, Slots
from strongroom.turns import Turn


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_places_run_out_and_come_back() -> None:
    """Total and one caller's share are refused by their own codes; a place given back can be taken."""
    slots = Slots(total=2, per_caller=1, code="overloaded")
    with slots.hold("a"):
        with pytest.raises(Unavailable) as caught, slots.hold("a"):
            pass
        assert caught.value.code == "caller_too_busy"
        with slots.hold("b"), pytest.raises(Unavailable) as caught, slots.hold("c"):
            pass
        assert caught.value.code == "overloaded"
        with slots.hold("c"):
            pass
    with slots.hold("a"):
        pass


def test_a_place_comes_back_when_the_work_fails() -> None:
    """An exception inside does not leak the place."""
    slots = Slots(total=1, per_caller=1, code="overloaded")
    with pytest.raises(ValueError, match="inside"), slots.hold("a"):
        raise ValueError("inside")
    with slots.hold("a"):
        pass


def test_bytes_in_flight_are_bounded_together() -> None:
    """Two bodies share one budget; what one gives back the other may take."""
    budget = Budget(total=10, per_caller=10)
    with budget.account("a") as first:
        first(8)
        with budget.account("b") as second:
            second(2)
            with pytest.raises(Unavailable) as caught:
                second(1)
            assert caught.value.code == "overloaded"
        with budget.account("b") as third:
            third(2)
    assert budget.held == 0


def test_bytes_in_flight_of_one_caller_are_bounded() -> None:
    """All bodies of one caller share a part of the budget; the rest is left to others, and nothing is remembered."""
    budget = Budget(total=10, per_caller=5)
    with budget.account("a") as first, budget.account("a") as second:
        first(3)
        second(2)
        with pytest.raises(Unavailable) as caught:
            first(1)
        assert caught.value.code == "caller_too_busy"
        with budget.account("b") as other:
            other(5)
    assert budget.held == 0 and not budget._of


def test_a_rate_refills_steadily_and_says_when_to_come_back() -> None:
    """60 a minute: 60 at once, then one a second; another address has its own bucket."""
    clock = Clock()
    rate = Rate(per_minute=60, clock=clock, code="evidence_rate")
    for _ in range(60):
        rate.take("192.0.2.1")
    with pytest.raises(Unavailable) as caught:
        rate.take("192.0.2.1")
    assert (caught.value.code, caught.value.retry_after_s) == ("evidence_rate", 1)
    rate.take("192.0.2.2")
    clock.now += 1
    rate.take("192.0.2.1")
    with pytest.raises(Unavailable):
        rate.take("192.0.2.1")


def test_a_slow_rate_says_how_long_to_wait() -> None:
    """One a minute: come back in a minute."""
    rate = Rate(per_minute=1, clock=Clock(), code="evidence_rate")
    rate.take("x")
    with pytest.raises(Unavailable) as caught:
        rate.take("x")
    assert caught.value.retry_after_s == 60


def test_all_addresses_of_an_ipv6_network_are_one() -> None:
    """Whoever has one IPv6 address has 2**64: they share a bucket."""
    rate = Rate(per_minute=1, clock=Clock(), code="evidence_rate")
    rate.take("2001:db8::1")
    with pytest.raises(Unavailable):
        rate.take("2001:db8::2")
    rate.take("2001:db8:0:1::1")


def test_the_memory_of_rates_is_bounded() -> None:
    """A crowd of addresses makes the oldest be forgotten, not the memory grow."""
    rate = Rate(per_minute=1, clock=Clock(), code="evidence_rate")
    for number in range(MAX_ADDRESSES + 10):
        rate.take(f"host-{number}")
    assert len(rate._buckets) == MAX_ADDRESSES


def test_a_lane_bounds_its_line() -> None:
    """One worker and one waiting call: the third is refused, and after the first has ended there is room."""

    async def run() -> None:
        lane = Lane("test", workers=1, waiting=1, code="evidence_busy")
        release = threading.Event()
        first = asyncio.ensure_future(lane.run(release.wait))
        second = asyncio.ensure_future(lane.run(lambda: "second"))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as caught:
            await lane.run(lambda: "third")
        assert caught.value.code == "evidence_busy"
        release.set()
        assert await first and await second == "second"
        await asyncio.sleep(0.01)
        assert await lane.run(lambda: "fourth") == "fourth"
        lane.close()

    asyncio.run(run())


def test_a_cancelled_call_keeps_its_place_until_its_thread_ends() -> None:
    """Cancelling does not stop a thread, so neither the place nor the coroutine is free before it ends."""

    async def run() -> None:
        lane = Lane("test", workers=1, waiting=0, code="evidence_busy")
        release = threading.Event()
        call = asyncio.ensure_future(lane.run(release.wait))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.sleep(0.01)
        assert not call.done()
        with pytest.raises(Unavailable):
            await lane.run(lambda: None)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.01)
        assert await lane.run(lambda: "free") == "free"
        lane.close()

    asyncio.run(run())


def test_whoever_is_cancelled_while_waiting_leaves_the_line() -> None:
    """A cancelled call that has not begun never runs, and its place in the line is free at once."""

    async def run() -> None:
        lane = Lane("test", workers=1, waiting=1, code="overloaded")
        release, ran = threading.Event(), threading.Event()
        first = asyncio.ensure_future(lane.run(release.wait))
        second = asyncio.ensure_future(lane.run(ran.set))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        third = asyncio.ensure_future(lane.run(lambda: "third"))
        await asyncio.sleep(0)
        release.set()
        assert await first and await third == "third"
        assert not ran.is_set()
        lane.close()

    asyncio.run(run())


def test_a_flood_of_one_caller_delays_another_by_what_runs() -> None:
    """Twenty calls of one caller wait; the first of another is the next to run."""

    async def run() -> None:
        lane = Lane("test", workers=1, waiting=100, code="overloaded")
        release = threading.Event()
        order: list[str] = []
        calls = [asyncio.ensure_future(lane.run_for(Turn("a", "m"), release.wait))]
        calls += [asyncio.ensure_future(lane.run_for(Turn("a", "m"), order.append, "a")) for _ in range(20)]
        await asyncio.sleep(0)
        calls += [asyncio.ensure_future(lane.run_for(Turn("b", "m"), order.append, "b")) for _ in range(2)]
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*calls)
        assert order[:4] == ["b", "a", "b", "a"] and order.count("a") == 20
        lane.close()

    asyncio.run(run())


def test_nobody_waits_for_a_thread_for_ever() -> None:
    """A call whose turn does not come in time is refused, with a time to come back, and never runs."""

    async def run() -> None:
        lane = Lane("test", workers=1, waiting=5, code="overloaded", wait_s=0.02)
        release, ran = threading.Event(), threading.Event()
        first = asyncio.ensure_future(lane.run(release.wait))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as caught:
            await lane.run(ran.set)
        assert (caught.value.code, caught.value.retry_after_s) == ("queue_too_long", 1)
        release.set()
        assert await first and not ran.is_set()
        lane.close()

    asyncio.run(run())


def test_calls_that_came_together_are_all_refused_in_time() -> None:
    """One timer is for the deadlines of all: none of them is looked at before it is over, and forgotten."""

    async def run() -> None:
        lane = Lane("test", workers=1, waiting=5, code="overloaded", wait_s=0.05)
        place = await lane.enter(Turn("a", "m"))
        calls = []
        for name in "bcd":
            calls.append(asyncio.ensure_future(lane.enter(Turn(name, "m"))))
            await asyncio.sleep(0.003)
        refused = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 2)
        assert [error.code for error in refused if isinstance(error, Unavailable)] == ["queue_too_long"] * 3
        lane.leave(place)
        lane.close()

    asyncio.run(run())


def test_whoever_leaves_as_its_time_is_over_gives_back_no_place() -> None:
    """It had none: else there would be one more than there are, for everybody and for ever."""

    async def run() -> None:
        lane = Lane("test", workers=1, waiting=5, code="overloaded", wait_s=0.05)
        place = await lane.enter(Turn("a", "m"))
        second = asyncio.ensure_future(lane.enter(Turn("b", "m")))
        await asyncio.sleep(0)
        # In one turn of the loop, in this order: the deadline, the cancellation, and only then does it wake up.
        asyncio.get_running_loop().call_later(0.06, second.cancel)
        time.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await second
        third = asyncio.ensure_future(lane.enter(Turn("c", "m")))
        await asyncio.sleep(0.01)
        assert not third.done()
        lane.leave(place)
        lane.leave(await third)
        assert not lane._line.known
        lane.close()

    asyncio.run(run())


def test_a_closed_lane_leaves_nobody_waiting() -> None:
    """Work under way ends; what waits, and what comes later, is refused."""

    async def run() -> None:
        lane = Lane("test", workers=1, waiting=5, code="overloaded")
        release = threading.Event()
        first = asyncio.ensure_future(lane.run(release.wait))
        second = asyncio.ensure_future(lane.run(lambda: "second"))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(lane.close))
        await asyncio.sleep(0.02)
        release.set()
        await closing
        assert await first
        for late in (second, lane.run(lambda: "third")):
            with pytest.raises(Unavailable) as caught:
                await late
            assert caught.value.code == "unavailable"

    asyncio.run(run())


def test_a_lane_hands_on_what_its_work_raises() -> None:
    """Exceptions come out of the thread as they are."""

    async def run() -> None:
        lane = Lane("test", workers=1, waiting=0, code="evidence_busy")
        with pytest.raises(LimitExceeded):
            await lane.run(_raise)
        lane.close()

    asyncio.run(run())


def _raise() -> None:
    raise LimitExceeded("too much")


def test_a_body_is_counted_as_it_arrives() -> None:
    """The limit is on the bytes that came, to the byte."""
    arrival = Arrival(limit=10, rate=0, clock=Clock())
    arrival.take(10)
    with pytest.raises(LimitExceeded) as caught:
        arrival.take(1)
    assert caught.value.code == "body_too_large"


def test_a_body_that_trickles_is_refused_after_the_grace() -> None:
    """A steady slow body passes at its rate; one byte before each idle deadline does not."""
    clock = Clock()
    steady = Arrival(limit=1000, rate=10, clock=clock)
    trickle = Arrival(limit=1000, rate=10, clock=clock)
    for _ in range(8):
        clock.now += 5
        steady.take(60)
        if clock.now - 100 <= Arrival.GRACE_S:
            trickle.take(1)
    with pytest.raises(LimitExceeded) as caught:
        trickle.take(1)
    assert caught.value.code == "body_too_slow"
