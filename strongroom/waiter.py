"""Runs that no thread waits for: the event loop does, by what it can read from.

Rules
  - A run's descriptor is watched from its beginning to its end and no longer: the next run of the same worker is
    somebody else's. What the kernel still says of one that nobody watches is passed over.
  - Whoever goes away, or whose time is over, stops the run; what it was to give is not taken.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final

from strongroom.deadlines import Deadlines
from strongroom.errors import Error
from strongroom.jobs import Run

AT_ONCE: Final = 64
"""Runs whose answers are taken before the loop turns to others."""


class Waiter:
    """Waits for runs in an event loop, without a thread for each."""

    def __init__(self) -> None:
        self._deadlines = Deadlines()
        self._descriptors = _Descriptors()

    async def wait(self, run: Run, seconds: float, *, late: Callable[[], Error]) -> int:
        """Waits until a run's results are there; how many bytes they have. Who is cancelled stops the run.

        Raises:
            As `jobs.Run.step`; what `late` makes, after so many seconds: then, too, the run has been stopped.
        """
        try:
            watch = _Watch(run, asyncio.get_running_loop(), self._descriptors)
        except BaseException:  # it cannot be watched
            run.stop()
            raise
        self._deadlines.add(watch, seconds, lambda: watch.end(late()))
        try:
            return await watch.size
        except asyncio.CancelledError:
            watch.abandon()
            raise
        finally:
            self._deadlines.drop(watch)


class _Descriptors:
    """Descriptors that an event loop watches until they can be read from, once. A loop of its own making takes two
    system calls and some bookkeeping for each time; here all are in one set of the kernel's, which the loop watches: a
    descriptor stays in it, armed or not, until it is closed.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._set: select.epoll | None = None
        self._acts: dict[int, Callable[[], None]] = {}

    def watch(self, descriptor: int, act: Callable[[], None]) -> None:
        """Has `act` called once, when `descriptor` can be read from, unless `drop` comes first."""
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._begin(loop)
        self._acts[descriptor] = act
        if self._set is None:
            loop.add_reader(descriptor, self._ready, descriptor)
            return
        try:
            self._set.modify(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        except FileNotFoundError:  # new, or another one of that number: the kernel forgets what is closed
            self._set.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def drop(self, descriptor: int) -> None:
        """It is not watched any more. It is to be closed soon, or to be watched anew."""
        self._acts.pop(descriptor, None)
        if self._set is None and self._loop is not None:
            self._loop.remove_reader(descriptor)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._set = loop, None
        self._acts.clear()
        if not hasattr(select, "epoll"):
            return
        found = select.epoll()
        try:
            loop.add_reader(found.fileno(), self._look)
        except OSError:  # a library OS has no sets of sets
            found.close()
            return
        self._set = found

    def _look(self) -> None:
        if self._set is not None:
            for descriptor, _ in self._set.poll(0, AT_ONCE):
                self._ready(descriptor)

    def _ready(self, descriptor: int) -> None:
        act = self._acts.pop(descriptor, None)
        if self._set is None and self._loop is not None:
            self._loop.remove_reader(descriptor)
        if act is not None:
            act()


class _Watch:
    """One run that is waited for."""

    def __init__(self, run: Run, loop: asyncio.AbstractEventLoop, descriptors: _Descriptors) -> None:
        self._run, self._descriptors = run, descriptors
        self.size: asyncio.Future[int] = loop.create_future()
        self._descriptor = run.fileno()
        self._watched = False
        self._watch()

    def _readable(self) -> None:
        # First of all: a step may end the run, and from then on the descriptor may be another run's, or another file.
        self._watched = False
        try:
            size = self._run.step()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the waiting caller's
            if not self.size.done():
                self.size.set_exception(error)
            return
        if size is None:
            self._watch()
            return
        if self.size.done():  # cancelled in this moment
            self._run.stop()
        else:
            self.size.set_result(size)

    def end(self, why: Error) -> None:
        """Stops it, if it still runs."""
        if self._watched:
            self._unwatch()
            self._run.stop()
            if not self.size.done():
                self.size.set_exception(why)

    def abandon(self) -> None:
        """Nobody waits any more: whether it runs, or its results are there and will not be taken."""
        if self._watched:
            self._unwatch()
            self._run.stop()
        elif not self.size.cancelled() and self.size.exception() is None:
            self._run.stop()

    def _watch(self) -> None:
        self._descriptors.watch(self._descriptor, self._readable)
        self._watched = True

    def _unwatch(self) -> None:
        self._descriptors.drop(self._descriptor)
        self._watched = False
