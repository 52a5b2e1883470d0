"""One request and its answer, between the connection that carries them and the application (ASGI).

Rules
  - An answer is framed, by Content-Length or `chunked`, and as long as it says: one that is not ends the connection.
  - Head and body of a small answer are one write; of a large one no byte is copied here.
  - A body's buffer grows with what has arrived, never by what was declared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeAlias

from strongroom.errors import Failure

FULL: Final = 64 * 1024
"""Bytes of a body that wait for the application, from which on the peer is made to wait."""
PIECE: Final = 64 * 1024
"""Bytes of an answer that are written at a time: a stall is noticed between two of them."""

GROWTH: Final = 256 * 1024
"""Bytes by which a body's buffer grows at most at a time: a processor's cache holds the zeros that it grows by."""

Bytes: TypeAlias = bytes | bytearray | memoryview


_ZEROS: Final = memoryview(bytearray(GROWTH))


def _status_line(status: int) -> bytes:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    return b"HTTP/1.1 %d %s\r\n" % (status, phrase.encode("ascii"))


STATUS_LINES: Final = {status: _status_line(status) for status in range(100, 600)}


class Carrier(Protocol):
    """The connection, as its exchange needs it."""

    def write(self, data: Bytes) -> None:
        """Sends; not while it is leaving."""

    async def drained(self) -> None:
        """Waits until the peer has taken most of what was written."""

    def pause(self) -> None:
        """Makes the peer wait with the rest of the body."""

    def resume(self) -> None:
        """No longer."""

    def answered(self) -> None:
        """The answer is complete."""


class Exchange:
    """`scope`: the request's head, as ASGI has it. `receive` and `send` are its application's."""

    __slots__ = (
        "_carrier",
        "_chunked",
        "_continue",
        "_count",
        "_filled",
        "_gone",
        "_head",
        "_left",
        "_told",
        "_waiter",
        "body",
        "complete",
        "disconnected",
        "keep_alive",
        "more_body",
        "scope",
        "started",
    )

    def __init__(
        self, carrier: Carrier, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self.scope = scope
        scope["strongroom.exchange"] = self
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.more_body = True
        self.started = self.complete = self.disconnected = False
        self._told = False  # the application knows that the body has ended
        self._carrier = carrier
        self._continue = expects_continue
        self._filled = 0  # bytes of `body` that have arrived; behind them it is room
        self._count: Callable[[int], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._gone: Callable[[], object] | None = None
        self._head: list[bytes] | None = None
        self._chunked = False
        self._left: int | None = None  # bytes that the answer lacks; None: it does not say

    # -- what arrives ----------------------------------------------------------------------------------------

    def room(self, most: int) -> memoryview:
        """Where the next bytes of the body go: not empty, and not more than `most`."""
        free = len(self.body) - self._filled
        if not free:
            free = min(most, max(FULL, min(self._filled, GROWTH)))
            self.body += _ZEROS[:free]
        return memoryview(self.body)[self._filled : self._filled + min(free, most)]

    def filled(self, size: int) -> None:
        """So much was written there."""
        self._filled += size
        if self._count is not None:
            self._account(size)
        elif self._filled > FULL:
            self._carrier.pause()
        if self._count is None:
            self._wake()

    def append(self, data: Bytes) -> None:
        """The same for bytes that are elsewhere."""
        if len(self.body) > self._filled:
            del self.body[self._filled :]
        self.body += data
        self.filled(len(data))

    def arrived(self) -> None:
        """The body is whole."""
        self.more_body = False
        self._wake()

    def lost(self) -> None:
        """There is nobody to answer any more."""
        if self.disconnected:
            return
        self.disconnected = True
        self._wake()
        if self._gone is not None:
            self._gone()

    def when_gone(self, act: Callable[[], object] | None) -> None:
        """Has `act` called when the peer goes away before it was answered; at once where it has. None: no more."""
        self._gone = act
        if act is not None and self.disconnected:
            act()

    def _account(self, size: int) -> None:
        assert self._count is not None  # noqa: S101 - by its caller
        try:
            self._count(size)
        except Exception as refusal:  # noqa: BLE001 - it is the application's, and goes there
            self._count = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(refusal)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _say_continue(self) -> None:
        if self._continue:
            self._continue = False
            self._carrier.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def receive(self) -> dict[str, Any]:
        """ASGI's: the next part of the body, or that the peer is gone or answered."""
        self._say_continue()
        self._carrier.resume()
        while not (
            self.disconnected or self.complete or self._filled or (not self.more_body and not self._told)
        ):
            await self._wait()
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        self._told = not self.more_body
        return {"type": "http.request", "body": self._take(), "more_body": self.more_body}

    def _take(self) -> bytearray:
        body, self.body = self.body, bytearray()
        del body[self._filled :]
        self._filled = 0
        return body

    def _arriving(self) -> bool:
        return self.more_body and not self.disconnected

    async def whole(self, count: Callable[[int], None]) -> bytearray | None:
        """The whole body in one piece, nothing of which was received yet; None where the peer went away meanwhile.
        `count` is told of bytes as they arrive, and may raise, which ends the waiting.
        """
        if self._filled:
            count(self._filled)
        if self.more_body:
            self._say_continue()
            self._count = count
            self._carrier.resume()
            try:
                while self._arriving():
                    await self._wait()
            finally:
                self._count = None
        return None if self.disconnected else self._take()

    # -- the answer ------------------------------------------------------------------------------------------

    async def send(self, message: Any) -> None:
        """ASGI's: the head, or a part of the body. Its `body` may be any bytes, which must not change any more."""
        if self.disconnected or self.complete:
            return
        if message["type"] == "http.response.start" and not self.started:
            self._begin(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body" and self.started:
            await self._send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise Failure("the application's answer is out of order")

    async def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: Bytes) -> None:
        """The whole answer: as two calls of `send`."""
        if self.disconnected or self.complete:
            return
        if self.started:
            raise Failure("the application's answer is out of order")
        self._begin(status, headers)
        await self._send_body(body, more=False)

    def _begin(self, status: int, headers: Any) -> None:
        self.started = True
        self._continue = False
        if self.more_body:
            # Answered before the request was read: what follows on this connection cannot be told apart.
            self.keep_alive = False
        head, closes = [STATUS_LINES[status]], False
        for name, value in headers:
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection":
                closes = True
            head += (name, b": ", value, b"\r\n")
        lines = len(headers) + 1
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            head.append(b"connection: close\r\n")
            lines += 1
        if self.scope["method"] == "HEAD" or status in (204, 304):
            self._left = 0
        elif self._left is None:
            self._chunked = True
            head.append(b"transfer-encoding: chunked\r\n")
            lines += 1
        whole = b"".join(head)
        if whole.count(b"\r") != lines or whole.count(b"\n") != lines or b"\0" in whole:
            raise Failure("a header field of the answer is not one line")
        self._head = [whole, b"\r\n"]

    async def _send_body(self, body: Bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            body = b""
        size = len(body)
        if self._chunked:
            body = b"".join(
                ([b"%x\r\n" % size, body, b"\r\n"] if size else []) + ([] if more else [b"0\r\n\r\n"])
            )
        elif self._left is not None:
            if size > self._left or (size < self._left and not more):
                raise Failure("the answer is not as long as it says")
            self._left -= size
        await self._write(body)
        if not more and not self.disconnected:
            self.complete = True
            self._wake()
            self._carrier.answered()

    async def _write(self, body: Bytes) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            if len(body) < PIECE:
                head.append(body if isinstance(body, bytes) else bytes(body))
                body = b""
            self._carrier.write(b"".join(head))
        view = memoryview(body).cast("B") if body else memoryview(b"")
        while view and not self.disconnected:
            self._carrier.write(view[:PIECE])
            view = view[PIECE:]
            await self._carrier.drained()
