"""Deaths of workers: who waits, for how long, and when a template is made anew; with a clock that is handed in."""

from __future__ import annotations

from strongroom.quarantine import CALLERS, CALM_S, DEATHS, FIRST_S, LONGEST_S, WINDOW_S, Deaths, Layout


def test_a_layout_is_known_after_three_deaths() -> None:
    """Within a minute; and stays so, for what is left of it."""
    layout = Layout()
    assert [layout.died(now=at) for at in (0.0, 1.0, 2.0)] == [False, False, True]
    assert layout.died(now=2.0 + 10 * WINDOW_S)
    assert not Layout().died(now=3.0)


def test_deaths_long_after_each_other_are_accidents() -> None:
    """A fourth that comes late counts with the last ones only."""
    deaths, layout = Deaths(), Layout()
    for number in range(2 * DEATHS):
        assert not layout.died(now=number * WINDOW_S)
        deaths.died("a", now=number * WINDOW_S)
        assert deaths.wait_s("a", now=number * WINDOW_S + 1) == 0


def test_the_caller_who_kills_waits_and_nobody_else() -> None:
    """After three within a minute; until the time is over."""
    deaths = Deaths()
    for at in range(DEATHS):
        assert deaths.wait_s("a", now=float(at)) == 0
        deaths.died("a", now=float(at))
    assert deaths.wait_s("a", now=DEATHS - 1.0) == FIRST_S
    assert deaths.wait_s("b", now=DEATHS - 1.0) == 0
    assert deaths.wait_s("a", now=DEATHS + FIRST_S) == 0


def test_each_wait_is_longer_up_to_the_longest() -> None:
    """Until a long calm."""
    deaths, now, waits = Deaths(), 0.0, []
    for _ in range(9):
        for _ in range(DEATHS):
            now += 1
            deaths.died("a", now=now)
        waits.append(deaths.wait_s("a", now=now))
        now += waits[-1]
    assert waits[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S] and waits == sorted(waits)
    assert waits[-1] == LONGEST_S
    now += CALM_S + 2
    for _ in range(DEATHS):
        now += 1
        deaths.died("a", now=now)
    assert deaths.wait_s("a", now=now) == FIRST_S


def test_making_anew_has_a_back_off_that_a_calm_ends() -> None:
    """The first is made at once: the next ones wait, up to a minute."""
    deaths, now, delays = Deaths(), 1000.0, []
    for _ in range(10):
        deaths.died("a", now=now)
        delays.append(deaths.renewed())
    assert delays[0] == 0 and delays == sorted(delays) and delays[-1] == 60
    deaths.died("a", now=now + CALM_S + 1)
    assert deaths.renewed() == 0


def test_only_so_many_callers_are_remembered() -> None:
    """Keys cost nothing; memory does."""
    deaths = Deaths()
    for number in range(2 * CALLERS):
        deaths.died(str(number), now=0.0)
    assert len(deaths._callers) == CALLERS
