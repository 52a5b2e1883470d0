"""Deadlines in an event loop, by one timer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Final

GRAIN_S: Final = 0.01
"""Seconds that a deadline may be kept late, never early: a timer is set for the earliest, and left alone by those that
are met."""


class Deadlines:
    """Deadlines of what an event loop waits for: nearly all are met, so that setting and dropping one costs nearly
    nothing.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, key: Hashable, seconds: float, act: Callable[[], None]) -> None:
        """Has `act` called after so many seconds, unless `key` is dropped before. Infinity: never."""
        if seconds == math.inf:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        self._waiting[key] = (until, act)
        self._set(loop, until)

    def drop(self, key: Hashable) -> None:
        """What was waited for has come."""
        self._waiting.pop(key, None)

    def _set(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        timer = self._timer if self._loop is loop else None
        if timer is None or timer.when() > until + GRAIN_S:
            if timer is not None:
                timer.cancel()
            self._loop, self._timer = loop, loop.call_at(until, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        due = [(key, act) for key, (until, act) in self._waiting.items() if until <= now]
        try:
            for key, act in due:
                del self._waiting[key]
                act()
        finally:  # one that fails takes no other along
            if self._waiting:
                self._set(loop, min(until for until, _ in self._waiting.values()))
