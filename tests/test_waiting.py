"""A template in waiting: used once, by who may have it, and only as confined as it was asked to be. Those here lie."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from strongroom import frames, records, waiting
from strongroom.errors import Failure, Unavailable
from strongroom.waiting import Waiting
from strongroom.zygote import Child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: workers are Linux's")

LAYERS = ("rlimits", "seccomp")
ROOM = 1 << 40
"""Bytes of address space for a model; nothing is taken of it."""
Behaviour = Callable[[socket.socket], object]


class Zygotes:
    """In place of a nursery: this process forks children that behave as they are told, of one zygote at a time."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = honest
        self.children: list[int] = []
        self.told: list[Callable[[], None]] = []
        self.full = False
        self.zygote = object()
        self.meanwhile: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def fork(self, kind: bytes) -> Child:
        """As `Nursery.fork`."""
        assert kind == b"t"
        if self.full:
            raise Unavailable("none", code="overloaded")
        with self._lock:
            ours, theirs = socket.socketpair()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the child returns into nothing of ours
                pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    signal.alarm(60)  # whatever happens, it does not stay
                    os.closerange(3, theirs.fileno())
                    os.closerange(theirs.fileno() + 1, 1024)
                    self.behaviour(theirs)
                os._exit(0)
            theirs.close()
            self.children.append(pid)
            stands_for: Any = self
            zygote: Any = self.zygote
            child = Child(stands_for, zygote, ours, pid, os.pidfd_open(pid))
        self.meanwhile()
        return child

    def watch(self, replaced: Callable[[], None]) -> None:
        """As `Nursery.watch`."""
        self.told.append(replaced)

    def in_charge(self, child: Child) -> bool:
        """As `Nursery.in_charge`."""
        return child.layout is self.zygote

    def renew(self) -> None:
        """Another zygote."""
        self.zygote = object()
        for replaced in self.told:
            replaced()

    def _left(self, zygote: object) -> None:
        pass


def saying(held: object, *, word: bytes = records.LIMITED, limit: Callable[[int], object]) -> Behaviour:
    """Says what it holds, waits for a limit, does something about it, and says a word."""

    def behaviour(end: socket.socket) -> None:
        frames.receive(end)
        frames.send(end, {"held": held})
        said, _ = frames.receive(end)
        limit(said["address_bytes"])
        end.sendall(word)
        end.recv(1)

    return behaviour


def both(most: int) -> None:
    """The soft and the hard limit."""
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


honest = saying([*LAYERS, "uid"], limit=both)


@contextmanager
def kept(zygotes: Zygotes | None = None) -> Iterator[tuple[Waiting, Zygotes]]:
    """With nothing made yet."""
    zygotes = zygotes or Zygotes()
    nursery: Any = zygotes
    made = Waiting(nursery, cpu_s=60, processes=4, layers=LAYERS)
    try:
        yield made, zygotes
    finally:
        made.drop()
        for pid in zygotes.children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ready(one: Waiting) -> int:
    """Makes one; its id."""
    one.make()
    until = time.monotonic() + 10
    while (pid := one.pid) is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    return pid


def settled(one: Waiting) -> None:
    """Until none is being made."""
    until = time.monotonic() + 10
    while one._making:
        assert time.monotonic() < until
        time.sleep(0.005)


def ended(child_pid: int) -> bool:
    """Whether it was ended; it is not waited for yet."""
    until = time.monotonic() + 5
    while os.waitid(os.P_PID, child_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def test_a_load_takes_the_one_that_waits_and_nobody_takes_it_again() -> None:
    """Its limit is what it has and what was asked for; the next load has one of its own."""
    with kept() as (one, zygotes):
        pid = ready(one)
        with one.take(ROOM) as first, one.take(ROOM) as second:
            assert first.pid == pid and one.pid is None
            assert second.pid != pid and zygotes.children == [first.pid, second.pid]
            soft, hard = resource.prlimit(first.pid, resource.RLIMIT_AS)
            assert soft == hard and ROOM < soft < 2 * ROOM
        assert ended(pid)


def test_loads_at_the_same_time_have_different_ones() -> None:
    """One has the one that waited."""
    with kept() as (one, zygotes):
        pid = ready(one)
        taken: list[Child] = []
        threads = [threading.Thread(target=lambda: taken.append(one.take(ROOM))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(child.pid for child in taken) == sorted(zygotes.children)
        assert [child.pid for child in taken].count(pid) == 1
        for child in taken:
            child.close()


def test_one_is_made_at_a_time() -> None:
    """However often it is asked for."""
    with kept() as (one, zygotes):
        one.make(after_s=0.05)
        one.make()
        ready(one)
        one.make()
        settled(one)
        assert len(zygotes.children) == 1


def test_one_that_was_to_be_made_later_is_made_when_it_is_time() -> None:
    """A first run that is over does not leave the next load waiting."""
    with kept() as (one, zygotes):
        one.make(after_s=30)
        one.make(after_s=30)
        time.sleep(0.05)
        assert zygotes.children == []
        ready(one)
        assert len(zygotes.children) == 1


def test_one_that_died_is_replaced_by_a_fresh_one() -> None:
    """Whoever loads a model then sees nothing of it."""
    with kept() as (one, _):
        pid = ready(one)
        os.kill(pid, signal.SIGKILL)
        assert ended(pid)
        with one.take(ROOM) as child:
            assert child.pid != pid


def unasked(end: socket.socket) -> None:
    """Goes on talking."""
    frames.receive(end)
    frames.send(end, {"held": list(LAYERS)})
    end.sendall(records.LIMITED)
    end.recv(1)


@pytest.mark.parametrize(
    "behaviour",
    [unasked, saying(list(LAYERS), word=b"?", limit=both), saying(list(LAYERS), limit=lambda _: os._exit(0))],
    ids=["says something unasked", "another word", "ends when it is asked"],
)
def test_one_that_does_not_behave_is_replaced_by_a_fresh_one(behaviour: Behaviour) -> None:
    """It is ended, too."""
    with kept() as (one, zygotes):
        zygotes.behaviour = behaviour
        pid = ready(one)
        time.sleep(0.02)
        zygotes.behaviour = honest
        with one.take(ROOM) as child:
            assert child.pid != pid and ended(pid)


def test_where_no_process_behaves_the_load_is_refused() -> None:
    """It is not tried for ever."""
    with kept() as (one, zygotes):
        zygotes.behaviour = saying(list(LAYERS), word=b"?", limit=both)
        with pytest.raises(Unavailable):
            one.take(ROOM)
        assert len(zygotes.children) == 1 and ended(zygotes.children[0])


@pytest.mark.parametrize(
    "held", [["rlimits"], [], "rlimits seccomp", None, {"rlimits": 1}, ["rlimits", ["seccomp"]]]
)
def test_one_without_a_promised_layer_is_refused(held: object) -> None:
    """It is not kept, and a load gets none."""
    with kept() as (one, zygotes):
        zygotes.behaviour = saying(held, limit=both)
        one.make()
        settled(one)
        assert one.pid is None and ended(zygotes.children[0])
        with pytest.raises(Failure, match="not confined"):
            one.take(ROOM)
        assert ended(zygotes.children[1])


@pytest.mark.parametrize(
    "limit",
    [
        lambda _: None,
        lambda most: resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY)),
        lambda most: both(most + 4096),
    ],
    ids=["none", "a soft one", "a larger one"],
)
@pytest.mark.parametrize("waits", [True, False])
def test_a_limit_that_did_not_take_hold_is_seen(waits: bool, limit: Callable[[int], object]) -> None:
    """The kernel is asked, not the process; it gets no model."""
    with kept() as (one, zygotes):
        zygotes.behaviour = saying(list(LAYERS), limit=limit)
        if waits:
            ready(one)
        with pytest.raises(Failure, match="another limit"):
            one.take(ROOM)
        assert len(zygotes.children) == 1 and ended(zygotes.children[0])


def test_it_goes_with_its_zygote() -> None:
    """At once: its layout may be known to somebody."""
    with kept() as (one, zygotes):
        pid = ready(one)
        zygotes.renew()
        assert one.pid is None and ended(pid)
        with one.take(ROOM) as child:
            assert child.layout is zygotes.zygote


def test_one_of_a_zygote_that_is_not_in_charge_is_not_taken() -> None:
    """Also where nobody was told: a zygote that ended is followed by another one."""
    with kept() as (one, zygotes):
        pid = ready(one)
        zygotes.zygote = object()
        with one.take(ROOM) as child:
            assert child.pid != pid and ended(pid)


def test_one_that_is_made_while_its_zygote_is_replaced_is_not_kept() -> None:
    """Who is told of that while there is none yet has nothing to drop."""
    with kept() as (one, zygotes):
        zygotes.meanwhile = zygotes.renew
        one.make()
        settled(one)
        assert one.pid is None and ended(zygotes.children[0])


def test_one_for_which_there_is_no_thread_is_made_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever asked for it, after a load or a run, goes on."""

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with kept() as (one, _):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none)
            one.make()
            one.make(after_s=1)
        assert one.pid is None
        assert ready(one)


def test_what_hinders_making_one_hinders_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs, and no process at all; a later one is made again."""
    monkeypatch.setattr(waiting, "READY_S", 0.1)
    with kept() as (one, zygotes):
        zygotes.behaviour = lambda end: end.recv(1) and time.sleep(60)
        one.make()
        settled(one)
        assert one.pid is None and ended(zygotes.children[0])
        zygotes.full = True
        zygotes.behaviour = honest
        one.make()
        settled(one)
        with pytest.raises(Unavailable):
            one.take(ROOM)
        zygotes.full = False
        monkeypatch.setattr(waiting, "READY_S", 10.0)
        assert ready(one)
