"""How much at once: request slots, bytes in flight, rates, and the threads that work may occupy.

Rules
  - A bound that is reached is a refusal now (`Unavailable`, with a time to come back), never an endless line.
  - What counts is what arrived or runs, never what a header declares.
  - Whatever is taken is given back in a `finally`, or when the *thread* ends: a cancelled coroutine does not
    stop the thread that works for it, so a thread's place is free only when the thread is.

Everything here belongs to one event loop, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from strongroom.errors import LimitExceeded, Unavailable

_P = ParamSpec("_P")
_T = TypeVar("_T")

MAX_ADDRESSES: Final = 10_000
"""Addresses whose rate is remembered; beyond it the one not seen for longest is forgotten."""
PIECE: Final = 1 << 20
"""Bytes of an upload that are sealed and written at a time."""


class Slots:
    """Requests being worked on: so many together, and so many for one caller."""

    def __init__(self, *, total: int, per_caller: int, code: str) -> None:
        self._total = total
        self._code = code
        self._per_caller = per_caller
        self._held: dict[str, int] = {}
        self._count = 0

    @contextlib.contextmanager
    def hold(self, caller: str) -> Iterator[None]:
        """Takes a place for `caller` (a principal's id or an address) while the block runs.

        Raises:
            Unavailable: no place left (the code given to the constructor), or none for this caller
                (`caller_too_busy`).
        """
        if self._count >= self._total:
            raise Unavailable(f"at most {self._total} of these requests at a time", code=self._code)
        if self._held.get(caller, 0) >= self._per_caller:
            raise Unavailable(
                f"at most {self._per_caller} requests of one caller at a time", code="caller_too_busy"
            )
        self._count += 1
        self._held[caller] = self._held.get(caller, 0) + 1
        try:
            yield
        finally:
            self._count -= 1
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]


class Budget:
    """Bytes of request bodies in memory, all requests together."""

    def __init__(self, *, total: int) -> None:
        self._total = total
        self.held = 0

    @contextlib.contextmanager
    def account(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes bytes as they arrive; all of them are given back when the block ends.

        Raises:
            Unavailable: from that function, where the bytes do not fit (code `overloaded`).
        """
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self.held + count > self._total:
                raise Unavailable("too many bytes of requests in memory", code="overloaded")
            self.held += count
            mine += count

        try:
            yield take
        finally:
            self.held -= mine


class Rate:
    """So many in a minute for one address: a bucket that refills steadily."""

    def __init__(self, *, per_minute: int, clock: Callable[[], float], code: str) -> None:
        self._size = float(per_minute)
        self._clock = clock
        self._code = code
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> None:
        """Counts one for `address`.

        Raises:
            Unavailable: the bucket is empty (the code given to the constructor).
        """
        key, now = _network(address), self._clock()
        level, then = self._buckets.pop(key, (self._size, now))
        level = min(self._size, level + max(0.0, now - then) * self._size / 60)
        refused = level < 1
        self._buckets[key] = (level if refused else level - 1, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if refused:
            wait = (1 - level) * 60 / self._size
            raise Unavailable(
                f"at most {self._size:.0f} in a minute for one address",
                code=self._code,
                retry_after_s=max(1, int(wait + 0.999)),
            )


def _network(address: str) -> str:
    """The address, or the /64 of an IPv6 one: whoever has one IPv6 address has 2**64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)
    return address


class Lane:
    """Threads for one kind of work: `workers` at once, at most `waiting` calls more in line."""

    def __init__(self, name: str, *, workers: int, waiting: int, code: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=name)
        self._room = workers + waiting
        self._code = code
        self._inside = 0

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Runs `work` in a thread of this lane and returns what it returns.

        A cancelled caller still waits for the thread: what it does next must not meet half-done work.

        Raises:
            Unavailable: the line is full (the code given to the constructor).
        """
        if self._inside >= self._room:
            raise Unavailable("too many requests of this kind are waiting", code=self._code)
        loop = asyncio.get_running_loop()
        self._inside += 1
        future = self._pool.submit(work, *args, **kwargs)
        future.add_done_callback(lambda _: _call_soon(loop, self._leave))
        waiter = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            await asyncio.wait({waiter})
            raise

    def _leave(self) -> None:
        self._inside -= 1

    def close(self) -> None:
        """Lets running work end and starts none of what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(
        RuntimeError
    ):  # the loop is closed: the server has stopped, nobody counts any more
        loop.call_soon_threadsafe(callback)


class Arrival:
    """One body while it arrives: not longer than `limit` bytes, not slower than `rate` bytes a second.

    Slowness counts after `GRACE_S` seconds. Pauses are the HTTP edge's business (body idle deadline); this
    stops the client that sends one byte before each of those deadlines.
    """

    GRACE_S: Final = 10.0

    def __init__(self, *, limit: int, rate: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._rate = rate
        self._clock = clock
        self._start = clock()
        self.count = 0

    def take(self, count: int) -> None:
        """Counts bytes that arrived.

        Raises:
            LimitExceeded: too many (code `body_too_large`), or too slow (`body_too_slow`).
        """
        self.count += count
        if self.count > self._limit:
            raise LimitExceeded(f"the body is longer than {self._limit} bytes", code="body_too_large")
        late = self._clock() - self._start - self.GRACE_S
        if late > 0 and self.count < late * self._rate:
            raise LimitExceeded(
                f"the body arrives slower than {self._rate} bytes a second", code="body_too_slow"
            )


async def pieces(body: AsyncIterator[bytes], arrival: Arrival) -> AsyncIterator[bytearray]:
    """The body in pieces of `PIECE` bytes or more, but for the last: the first shows the format."""
    piece = bytearray()
    async for chunk in body:
        arrival.take(len(chunk))
        piece += chunk
        if len(piece) >= PIECE:
            yield piece
            piece = bytearray()
    if piece:
        yield piece
