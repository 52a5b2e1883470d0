"""How much at once: request slots, bytes in flight, rates, and the threads that work may occupy.

Rules
  - A bound that is reached is a refusal now (`Unavailable`, with a time to come back), never an endless line.
  - What counts is what arrived or runs, never what a header declares.
  - Whatever is taken is given back in a `finally`, or when the *thread* ends: a cancelled coroutine does not
    stop the thread that works for it, so a thread's place is free only when the thread is.
  - Whose work comes next is decided in `turns`, not by who asked first.

Everything here belongs to one event loop, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import math
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NoReturn, ParamSpec, Protocol, TypeVar

from strongroom.deadlines import Deadlines
from strongroom.errors import LimitExceeded, Unavailable
from strongroom.turns import NOBODY, Line, Ticket, Turn

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

    def hold(self, caller: str) -> _Slot:
        """Takes a place for `caller` (a principal's id or an address) while the block runs.

        Raises:
            Unavailable: no place left (the code given to the constructor), or none for this caller
                (`caller_too_busy`).
        """
        return _Slot(self, caller)

    def take(self, caller: str) -> None:
        """What `hold` does first."""
        if self._count >= self._total:
            raise Unavailable(f"at most {self._total} of these requests at a time", code=self._code)
        if self._held.get(caller, 0) >= self._per_caller:
            raise Unavailable(
                f"at most {self._per_caller} requests of one caller at a time", code="caller_too_busy"
            )
        self._count += 1
        self._held[caller] = self._held.get(caller, 0) + 1

    def give_back(self, caller: str) -> None:
        """What `hold` does last."""
        self._count -= 1
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]


class _Slot:
    """One place, for the length of a `with` block. No generator: every request has one, and each costs."""

    __slots__ = ("_caller", "_slots")

    def __init__(self, slots: Slots, caller: str) -> None:
        self._slots, self._caller = slots, caller

    def __enter__(self) -> None:
        self._slots.take(self._caller)

    def __exit__(self, *_: object) -> None:
        self._slots.give_back(self._caller)


class Budget:
    """Bytes of request bodies in memory, all requests together, and those of one caller."""

    def __init__(self, *, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        self.held = 0
        self._of: dict[str, int] = {}

    def account(self, caller: str) -> _Account:
        """Gives a function that takes bytes as they arrive; all of them are given back when the block ends.

        Raises:
            Unavailable: from that function, where the bytes do not fit (code `overloaded`), or are too many of
                one caller (`caller_too_busy`).
        """
        return _Account(self, caller)

    def take(self, caller: str, count: int) -> None:
        """Takes bytes for `caller`; raises as `account` says."""
        if self.held + count > self._total:
            raise Unavailable("too many bytes of requests in memory", code="overloaded")
        if self._of.get(caller, 0) + count > self._per_caller:
            raise Unavailable("too many bytes of one caller's requests in memory", code="caller_too_busy")
        self.held += count
        self._of[caller] = self._of.get(caller, 0) + count

    def give_back(self, caller: str, count: int) -> None:
        """Gives them back."""
        self.held -= count
        if count:
            self._of[caller] -= count
            if not self._of[caller]:
                del self._of[caller]


class _Account:
    """What one request takes, for the length of a `with` block."""

    __slots__ = ("_budget", "_caller", "_mine")

    def __init__(self, budget: Budget, caller: str) -> None:
        self._budget, self._caller, self._mine = budget, caller, 0

    def __enter__(self) -> Callable[[int], None]:
        return self._take

    def _take(self, count: int) -> None:
        self._budget.take(self._caller, count)
        self._mine += count

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._caller, self._mine)


class Rate:
    """So much in a minute for one address or principal: a bucket that refills steadily."""

    def __init__(self, *, per_minute: int, clock: Callable[[], float], code: str) -> None:
        self._size = float(per_minute)
        self._clock = clock
        self._code = code
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> None:
        """Counts one for `key` (an address or a principal's id).

        Raises:
            Unavailable: the bucket is empty (the code given to the constructor).
        """
        level = self._level(key)
        if level < 1:
            self._refuse(1 - level)
        self.spend(key, 1)

    def check(self, key: str) -> None:
        """Returns where something is left of `key`'s share.

        Raises:
            Unavailable: as `take`.
        """
        level = self._level(key)
        if level <= 0:
            self._refuse(-level)

    def spend(self, key: str, count: int) -> None:
        """Counts what has already happened; the bucket may be overdrawn, and is then paid back."""
        now, level = self._clock(), self._level(key)
        bucket = network(key)
        self._buckets.pop(bucket, None)
        self._buckets[bucket] = (level - count, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)

    def _level(self, key: str) -> float:
        level, then = self._buckets.get(network(key), (self._size, self._clock()))
        return min(self._size, level + max(0.0, self._clock() - then) * self._size / 60)

    def _refuse(self, lacking: float) -> NoReturn:
        raise Unavailable(
            f"at most {self._size:.0f} in a minute for one address or caller",
            code=self._code,
            retry_after_s=max(1, int(lacking * 60 / self._size + 0.999)),
        )


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


def caller_of(principal: _Identified | None, address: str) -> str:
    """Whose places a request takes: the principal's, or the address's where nobody showed a key."""
    return principal.id if principal else f"address {network(address)}"


def network(address: str) -> str:
    """The address, or the /64 of an IPv6 one: whoever has one IPv6 address has 2**64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)
    return address


class Lane:
    """Threads for one kind of work: `workers` at once, at most `waiting` calls more in line.

    Work of callers goes through `run_for` and is taken in turn (`turns`): at most `per_caller` of one caller's
    calls wait, and none longer than `wait_s` seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        workers: int,
        waiting: int,
        code: str,
        per_caller: int = sys.maxsize,
        wait_s: float = math.inf,
    ) -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=name)
        self._wait_s = wait_s
        self._deadlines = Deadlines()
        self._closed = False
        self._line: Line[_Call] = Line(
            places=workers,
            waiting=waiting,
            per_caller=per_caller,
            wait_s=wait_s,
            clock=time.monotonic,
            code=code,
        )

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Runs `work` in a thread of this lane and returns what it returns: work of nobody's in particular.

        Raises:
            Unavailable: as `run_for`.
        """
        return await self.run_for(NOBODY, work, *args, **kwargs)

    async def run_for(self, turn: Turn, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """As `run`, for a caller. Who is cancelled while waiting leaves the line; once the thread works, a
        cancelled caller still waits for it: what it does next must not meet half-done work.

        Raises:
            Unavailable: as `enter`.
        """
        return await self.run_until(lambda: None, turn, work, *args, **kwargs)

    async def run_until(
        self,
        stop: Callable[[], None],
        turn: Turn,
        work: Callable[_P, _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """As `run_for`; `stop` is called where the caller is cancelled while a thread works, and ends that sooner.

        Raises:
            Unavailable: as `enter`.
        """
        place = await self.enter(turn)
        try:
            return await see_out(self.thread(functools.partial(work, *args, **kwargs)), stop)
        finally:
            self.leave(place)

    async def enter(self, turn: Turn) -> Ticket[_Call]:
        """Waits until it is this caller's turn. Who comes back has a place, which is theirs to `leave`; whoever
        has one may have a `thread`.

        Raises:
            Unavailable: the line is full (the code given to the constructor), or this caller's part of it
                (`caller_too_busy`); or it was not this call's turn in time (`queue_too_long`).
        """
        if self._closed:
            raise _ending()
        if (free := self._line.start(turn, call := _Call())) is not None:
            return free
        ticket = self._line.join(turn, call)
        self._start_next()
        if not ticket.waiting:
            return ticket
        call.turn = asyncio.get_running_loop().create_future()
        self._deadlines.add(ticket, self._wait_s, lambda: self._check_late(ticket))
        try:
            await call.turn
        except asyncio.CancelledError:
            if not self._line.leave(ticket):
                self.leave(ticket)
            raise
        finally:
            self._deadlines.drop(ticket)
        return ticket

    def leave(self, ticket: Ticket[_Call]) -> None:
        """Gives back a place, in which no thread works any more."""
        self._line.done(ticket)
        self._start_next()

    def thread(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Has `work` done in a thread, for somebody who has a place. What comes is to be waited for by `see_out`.

        Raises:
            Unavailable: the lane was closed meanwhile.
        """
        try:
            return asyncio.wrap_future(self._pool.submit(work))
        except RuntimeError:  # closed, from another thread
            raise _ending() from None

    def _start_next(self) -> None:
        while (ticket := self._line.next()) is not None:
            turn = ticket.work.turn
            if turn is not None and not turn.done():  # who is cancelled gives the place back when it wakes up
                turn.set_result(None)

    def _check_late(self, ticket: Ticket[_Call]) -> None:
        turn = ticket.work.turn
        if turn is not None and not turn.done() and (refusal := self._line.late(ticket)) is not None:
            turn.set_exception(refusal)

    def close(self) -> None:
        """Lets running work end and starts none of what waits."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)


async def see_out(work: asyncio.Future[_T], stop: Callable[[], None] = lambda: None) -> _T:
    """The result of a thread's work. Who is cancelled has it stopped by `stop`, and waits for its end all the same."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # looked at here, for nobody else will
        raise


def _ending() -> Unavailable:
    return Unavailable("the server is about to end")


@dataclass(slots=True, eq=False)
class _Call:
    """Somebody in a lane, and what wakes them when it is their turn; None: they do not sleep."""

    turn: asyncio.Future[None] | None = None


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


class Whole(Protocol):
    """A body that can be had in one piece."""

    async def whole(self, count: Callable[[int], None]) -> bytes | bytearray:
        """All of it. `count` is told of bytes as they arrive, and may raise, which ends it."""


async def collect(
    body: AsyncIterator[bytes] | Whole, arrival: Arrival, take: Callable[[int], None]
) -> bytes | bytearray:
    """The whole body; `take` is told of its bytes as they arrive."""

    def count(size: int) -> None:
        arrival.take(size)
        take(size)

    if not isinstance(body, AsyncIterator):
        return await body.whole(count)
    chunks = []
    async for chunk in body:
        count(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


async def pieces(
    body: AsyncIterator[bytes], arrival: Arrival, take: Callable[[int], None]
) -> AsyncIterator[bytearray]:
    """The body in pieces of `PIECE` bytes or more, but for the last: the first shows the format.

    `take` is told of each piece's bytes before it is given out.
    """
    piece = bytearray()
    async for chunk in body:
        arrival.take(len(chunk))
        piece += chunk
        if len(piece) >= PIECE:
            take(len(piece))
            yield piece
            piece = bytearray()
    if piece:
        take(len(piece))
        yield piece
