"""Runs that no thread waits for: the event loop does, by what it can read from.

Rules
  - A run's descriptor is watched from its beginning to its end and no longer: the next run of the same worker is
    somebody else's.
  - Whoever goes away, or whose time is over, stops the run; what it was to give is not taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from strongroom.deadlines import Deadlines
from strongroom.errors import Error
from strongroom.jobs import Run


class Waiter:
    """Waits for runs in an event loop, without a thread for each."""

    def __init__(self) -> None:
        self._deadlines = Deadlines()

    async def wait(self, run: Run, seconds: float, *, late: Callable[[], Error]) -> int:
        """Waits until a run's results are there; how many bytes they have. Who is cancelled stops the run.

        Raises:
            As `jobs.Run.step`; what `late` makes, after so many seconds: then, too, the run has been stopped.
        """
        try:
            watch = _Watch(run, asyncio.get_running_loop())
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


class _Watch:
    """One run that is waited for."""

    def __init__(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        self._run, self._loop = run, loop
        self.size: asyncio.Future[int] = loop.create_future()
        self._descriptor = run.fileno()
        self._watched = False
        self._watch()

    def _readable(self) -> None:
        # First of all: a step may end the run, and from then on the descriptor may be another run's, or another file.
        self._unwatch()
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
        self._loop.add_reader(self._descriptor, self._readable)
        self._watched = True

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._watched = False
