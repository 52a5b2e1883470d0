"""Whose turn it is: nobody is delayed by another's crowd, nobody waits for ever, nothing is remembered for nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from strongroom.errors import Unavailable
from strongroom.turns import Line, Ticket, Turn


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def line(
    *,
    places: int = 1,
    waiting: int = 1000,
    per_caller: int = 1000,
    wait_s: float = 30.0,
    clock: Callable[[], float] | None = None,
) -> Line[str]:
    """A line of words."""
    return Line(
        places=places,
        waiting=waiting,
        per_caller=per_caller,
        wait_s=wait_s,
        clock=clock or Clock(),
        code="overloaded",
    )


def served(queue: Line[str], count: int) -> list[str]:
    """What is served next, one at a time."""
    words = []
    for _ in range(count):
        ticket = queue.next()
        if ticket is None:
            break
        words.append(ticket.work)
        queue.done(ticket)
    return words


def test_one_caller_is_served_in_order() -> None:
    """Without others the line is a plain one."""
    queue = line()
    for number in range(5):
        queue.join(Turn("a", "m"), str(number))
    assert served(queue, 9) == ["0", "1", "2", "3", "4"]


def test_a_free_place_is_taken_at_once_where_nobody_waits() -> None:
    """It counts as any other: for its caller, for the places, and until it is given back."""
    queue = line(places=2)
    first, second = queue.start(Turn("a", "m"), "1"), queue.start(Turn("a", "n"), "2")
    assert first is not None and second is not None and not first.waiting
    assert queue.start(Turn("b", "m"), "3") is None  # no place is free
    queue.join(Turn("a", "m"), "4")
    queue.join(Turn("b", "m"), "5")
    assert queue.waiting == 2
    queue.done(first)
    assert queue.start(Turn("c", "m"), "6") is None  # somebody waits
    ticket = queue.next()
    assert ticket is not None and ticket.work == "5"  # who holds no place
    queue.done(ticket)
    queue.done(second)
    assert served(queue, 9) == ["4"]
    assert queue.waiting == 0 and queue.known == 0
    assert queue.start(Turn("a", "m", alone=True), "7") is None  # whether it can be, `next` says


def test_a_crowd_of_one_caller_delays_another_by_nothing_but_what_runs() -> None:
    """A hundred of one caller wait, one is in the only place; the newcomer is next, and then in every other turn."""
    queue = line()
    for _ in range(100):
        queue.join(Turn("a", "m"), "a")
    running = queue.next()
    assert running is not None
    for _ in range(3):
        queue.join(Turn("b", "m"), "b")
    queue.done(running)
    assert "".join(served(queue, 8)) == "bababaaa"


def test_a_crowd_of_one_caller_over_many_models_is_one_crowd() -> None:
    """Spreading a flood over models wins nothing."""
    queue = line()
    for number in range(50):
        queue.join(Turn("a", f"m{number}"), "a")
    running = queue.next()
    assert running is not None
    queue.join(Turn("b", "m0"), "b")
    queue.done(running)
    assert served(queue, 2) == ["b", "a"]


def test_a_crowd_for_one_model_delays_other_models_by_nothing_but_what_runs() -> None:
    """A hundred callers wait for one model; whoever wants another model is next."""
    queue = line()
    for number in range(100):
        queue.join(Turn(f"a{number}", "busy"), "a")
    running = queue.next()
    assert running is not None
    queue.join(Turn("b", "quiet"), "b")
    queue.done(running)
    assert served(queue, 2) == ["b", "a"]


def test_within_a_crowd_for_one_model_callers_take_turns() -> None:
    """Of two callers of one model the one with fifty requests gets every other turn."""
    queue = line()
    for _ in range(50):
        queue.join(Turn("a", "m"), "a")
    for _ in range(3):
        queue.join(Turn("b", "m"), "b")
    assert sorted(served(queue, 6)) == ["a", "a", "a", "b", "b", "b"]


def test_who_holds_fewer_places_comes_first() -> None:
    """One caller's long runs do not fill all places while another waits."""
    queue = line(places=2)
    for _ in range(4):
        queue.join(Turn("a", "m"), "a")
    long, short = queue.next(), queue.next()
    assert long is not None and short is not None and queue.next() is None
    queue.done(short)
    queue.join(Turn("b", "m"), "b")
    queue.join(Turn("b", "m"), "b")
    for _ in range(2):
        ticket = queue.next()
        assert ticket is not None and ticket.work == "b"
        queue.done(ticket)


def test_a_place_that_was_had_at_once_comes_back() -> None:
    """Once; and of what runs one at a time none is had while there is one."""
    queue = line(places=2)
    for _ in range(5):
        first = queue.start(Turn("a", "staged", alone=True), "a")
        assert first is not None and queue.start(Turn("b", "staged", alone=True), "b") is None
        other = queue.start(Turn("b", "other"), "b")
        assert other is not None and queue.start(Turn("c", "third"), "c") is None
        for ticket in (first, other, first):
            queue.done(ticket)
    assert not queue.known


def test_a_model_of_which_one_run_goes_on_at_a_time_has_one_place() -> None:
    """Its other requests wait in the line, however many places are free: those are for other models."""
    queue = line(places=3)
    for name in "abc":
        queue.join(Turn(name, "staged", alone=True), name)
    first = queue.next()
    assert first is not None and first.work == "a" and queue.next() is None
    queue.join(Turn("d", "other"), "d")
    other = queue.next()
    assert other is not None and other.work == "d" and queue.next() is None
    queue.done(other)
    assert queue.next() is None
    queue.done(first)
    second = queue.next()
    assert second is not None and second.work == "b" and queue.next() is None
    queue.done(second)
    assert served(queue, 1) == ["c"] and not queue.known


def test_nobody_waits_for_ever_behind_newcomers() -> None:
    """A new caller with a new model before every turn: whoever was there before is served before them."""
    queue = line()
    queue.join(Turn("a", "m"), "a")
    queue.join(Turn("a", "m"), "a")
    order = []
    for number in range(10):
        queue.join(Turn(f"new{number}", f"model{number}"), "n")
        order += served(queue, 1)
    assert order.count("a") == 2 and order.index("a") == 0 and "a" in order[1:4]


@pytest.mark.parametrize("seed", range(5))
def test_no_two_that_wait_are_ever_far_apart(seed: int) -> None:
    """Of callers who always have work waiting none gets two turns more than another, whatever their numbers."""
    rng = random.Random(seed)
    queue = line(places=rng.randint(1, 3), waiting=5000)
    callers = [f"c{number}" for number in range(rng.randint(2, 6))]
    got = dict.fromkeys(callers, 0)
    running: list[Ticket[str]] = []
    for caller in callers:
        for _ in range(200):
            queue.join(Turn(caller, caller), caller)
    for _ in range(150):
        while (ticket := queue.next()) is not None:
            got[ticket.work] += 1
            running.append(ticket)
        queue.done(running.pop(0))
        assert max(got.values()) - min(got.values()) <= 2


def test_a_full_line_refuses_with_its_code() -> None:
    """One place and two that wait: the fourth is refused, and leaves no trace."""
    queue = line(waiting=2)
    for _ in range(2):
        queue.join(Turn("a", "m"), "a")
    assert queue.next() is not None
    queue.join(Turn("a", "m"), "a")
    before = queue.known
    with pytest.raises(Unavailable) as caught:
        queue.join(Turn("stranger", "other"), "b")
    assert caught.value.code == "overloaded" and queue.known == before


def test_a_caller_s_part_of_the_line_is_bounded() -> None:
    """The fourth of one caller is refused while others find room."""
    queue = line(per_caller=2)
    queue.join(Turn("a", "m"), "a")
    assert queue.next() is not None
    for subject in ("m", "n"):
        queue.join(Turn("a", subject), "a")
    with pytest.raises(Unavailable) as caught:
        queue.join(Turn("a", "o"), "a")
    assert caught.value.code == "caller_too_busy"
    queue.join(Turn("b", "m"), "b")


def test_whoever_waited_too_long_is_refused_and_gone() -> None:
    """At the deadline, not before, and not where its turn came just then."""
    clock = Clock()
    queue = line(wait_s=30, clock=clock)
    first = queue.join(Turn("a", "m"), "a")
    assert queue.next() is first
    second = queue.join(Turn("b", "m"), "b")
    clock.now += 29.9
    assert queue.late(second) is None
    clock.now += 0.1
    assert queue.late(first) is None
    refusal = queue.late(second)
    assert refusal is not None and (refusal.code, refusal.retry_after_s) == ("queue_too_long", 30)
    assert queue.waiting == 0 and queue.late(second) is None


def test_a_long_deadline_still_asks_back_within_a_minute() -> None:
    """The time to come back has a ceiling."""
    clock = Clock()
    queue = line(wait_s=3000, clock=clock)
    assert queue.next() is None
    ticket = queue.join(Turn("a", "m"), "a")
    clock.now += 3000
    refusal = queue.late(ticket)
    assert refusal is not None and refusal.retry_after_s == 60


def test_who_leaves_is_not_served() -> None:
    """Out of the line once, and only out of the line: what runs cannot leave."""
    queue = line()
    first, second = queue.join(Turn("a", "m"), "1"), queue.join(Turn("a", "m"), "2")
    assert queue.leave(first) and not queue.leave(first)
    assert queue.next() is second and not queue.leave(second)


def test_nothing_is_remembered_of_who_has_no_work_here() -> None:
    """A crowd of names comes and goes: no memory of it stays."""
    queue = line()
    for number in range(100):
        queue.join(Turn(f"a{number}", f"m{number}"), "a")
    leaving = [queue.join(Turn(f"b{number}", "x"), "b") for number in range(10)]
    assert queue.known == 211
    assert all(queue.leave(ticket) for ticket in leaving)
    assert len(served(queue, 1000)) == 100
    assert queue.known == 0 and queue.waiting == 0


def test_a_place_that_was_had_at_once_is_given_back() -> None:
    """`start` gives places as `next` does: whoever is done with one has left it for the next."""
    queue = line()
    for _ in range(3):
        ticket = queue.start(Turn("a", "m"), "work")
        assert ticket is not None and not ticket.waiting
        assert queue.start(Turn("b", "m"), "no place") is None
        queue.done(ticket)
    assert queue.known == 0


def test_nobody_starts_beside_one_who_has_to_be_alone() -> None:
    """A free place is no reason to begin a second run of what runs one at a time."""
    queue = line(places=2)
    first = queue.start(Turn("a", "m", alone=True), "first")
    assert first is not None
    assert queue.start(Turn("b", "m", alone=True), "second") is None
    assert queue.start(Turn("b", "n", alone=True), "another model's") is not None
    queue.done(first)
    assert queue.start(Turn("b", "m", alone=True), "second") is not None
