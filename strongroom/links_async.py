"""Connections to one endpoint for asyncio: as `links`, whose rules hold here too."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final, cast

from strongroom import http1
from strongroom.calls import Answer, Data, NotSent, Request, Unanswered, patience
from strongroom.links import CONNECT_TIMEOUT_S, IDLE_S, MAX_CONNECTIONS, MAX_IDLE, Origin, late, not_connected
from strongroom.ratls import Gate

_NOBODY: Final = 1
"""Bytes that fit in where nobody asked for any; one of them ends the connection."""


class _Exchange:
    """One request on a connection: what came of it, and when a byte last moved."""

    def __init__(self, request: Request, *, timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.request, self.reader = request, http1.Reader(request)
        self.answer: asyncio.Future[Answer] = loop.create_future()
        self._loop, self._timeout_s, self._moved = loop, patience(request, timeout_s), loop.time()
        self._timer = loop.call_later(self._timeout_s, self._look)

    def moved(self) -> None:
        self._moved = self._loop.time()

    def fail(self, outcome: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(outcome)

    def _look(self) -> None:
        left = self._moved + self._timeout_s - self._loop.time()
        if left <= 0:
            self.fail(Unanswered("answer_late", "the server did not answer in time"))
        else:
            self._timer = self._loop.call_later(left, self._look)

    def end(self) -> None:
        self._timer.cancel()
        if not self.answer.cancel():
            self.answer.exception()  # taken note of, also where a failed write was noticed first


class _Connection(asyncio.BufferedProtocol):
    """One TLS connection that passed the gate."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.transport: asyncio.Transport | None = None
        self.exchange: _Exchange | None = None
        self.idle_since = 0.0
        self.lost: asyncio.Future[None] = loop.create_future()
        self._drained: asyncio.Future[None] | None = None
        self._spare = bytearray(_NOBODY)
        self._unasked = False

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> Data:
        exchange = self.exchange
        return self._spare if exchange is None or exchange.answer.done() else exchange.reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        exchange = self.exchange
        if exchange is None or exchange.answer.done():
            self._unasked = True
            self._loop.call_soon(self.abort)  # not here: asyncio's TLS does not bear it while it reads
            return
        exchange.moved()
        try:
            if exchange.reader.filled(nbytes):
                exchange.answer.set_result(exchange.reader.answer())
        except Exception as exc:  # noqa: BLE001 - a refusal, or whatever the caller's `received` raised: not the loop's
            exchange.fail(exc)

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        self.resume_writing()
        if self.exchange is not None:
            self.exchange.fail(self.exchange.reader.cut())

    def pause_writing(self) -> None:
        if self._drained is None and not self.lost.done():
            self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.moved()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # -- called by the link

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing() and not self._unasked

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def carry_out(self, request: Request, head: bytes, timeout_s: float) -> tuple[Answer, bool]:
        """Sends and receives; the answer, and whether the connection may be used again."""
        self.exchange = exchange = _Exchange(request, timeout_s=timeout_s, loop=self._loop)
        try:
            if not self.usable:
                raise exchange.reader.cut()
            whole = await self._send(exchange, head)
            answer = await exchange.answer
            return answer, whole and exchange.reader.reusable and self.usable
        finally:
            self.exchange = None
            exchange.end()

    async def _send(self, exchange: _Exchange, head: bytes) -> bool:
        """Whether all was written; an answer, or a failure, may come before that."""
        request, waiting = exchange.request, http1.pieces(head, exchange.request)
        while True:
            if request.body.in_memory:
                piece = next(waiting, None)
            else:  # from a disk, perhaps
                piece = await asyncio.to_thread(next, waiting, None)
            if piece is None:
                return True
            if exchange.answer.done() or not self.usable or self.transport is None:
                return False
            self.transport.write(piece[0])
            if self._drained is not None:
                await asyncio.wait((self._drained, exchange.answer), return_when=asyncio.FIRST_COMPLETED)
            exchange.moved()
            if request.sent is not None and piece[1]:
                request.sent(piece[1], request.body.length)


class AsyncLink:
    """The connections to one endpoint, within one event loop."""

    def __init__(self, gate: Gate, origin: Origin, *, timeout_s: float) -> None:
        self._context = gate.client_context()
        self._origin, self._timeout_s = origin, timeout_s
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: list[_Connection] = []  # the one used last is used first
        self._all: set[_Connection] = set()

    def _check_process(self) -> None:
        """In a child: forgets the parent's connections. Ending them would take them from the parent's loop."""
        if self._process != os.getpid():
            self._begin()

    async def exchange(self, request: Request) -> Answer:
        """As `links.Link.exchange`."""
        self._check_process()
        head = http1.encode_head(request, host=self._origin.authority)
        if request.deadline_s is None:
            return await self._exchange(request, head, self._timeout_s)
        try:
            async with asyncio.timeout(request.deadline_s):
                return await self._exchange(request, head, min(self._timeout_s, request.deadline_s))
        except TimeoutError as exc:
            raise late(request) from exc

    async def close(self) -> None:
        """Closes every connection; exchanges that go on end without an answer."""
        self._check_process()
        self._closed = True
        self._idle.clear()
        for connection in tuple(self._all):
            await self._end(connection)

    async def _exchange(self, request: Request, head: bytes, limit_s: float) -> Answer:
        await self._place(limit_s)
        try:
            connection, again = self._from_idle() or await self._connect(limit_s), False
            try:
                answer, again = await connection.carry_out(request, head, limit_s)
            finally:
                await self._leave(connection, again)
        finally:
            self._free.release()
        return answer

    async def _place(self, limit_s: float) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(limit_s):
                await self._free.acquire()
        except TimeoutError as exc:
            raise NotSent("server_unreachable", "the server cannot be reached") from exc

    def _from_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and time.monotonic() - connection.idle_since < IDLE_S:
                return connection
            connection.abort()
        return None

    async def _leave(self, connection: _Connection, again: bool) -> None:
        if again and not self._closed:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
            if len(self._idle) > MAX_IDLE:
                await self._end(self._idle.pop(0))
        else:
            await self._end(connection)

    async def _end(self, connection: _Connection) -> None:
        """Closes a connection and waits until its socket is."""
        connection.abort()
        # Shielded: who is cancelled here must not cancel what the next one waits for.
        await asyncio.shield(connection.lost)
        self._all.discard(connection)

    async def _connect(self, limit_s: float) -> _Connection:
        loop = asyncio.get_running_loop()
        connection = _Connection(loop)
        try:
            async with asyncio.timeout(min(CONNECT_TIMEOUT_S, limit_s)):
                # The gate decides in here.
                await loop.create_connection(
                    lambda: connection,
                    self._origin.host,
                    self._origin.port,
                    ssl=self._context,
                    server_hostname=self._origin.host,
                )
        except (OSError, UnicodeError) as exc:
            raise not_connected(exc) from exc
        self._all.add(connection)
        if self._closed:
            await self._end(connection)
            raise NotSent("server_unreachable", "the connections were closed")
        return connection


__all__ = ["AsyncLink"]
