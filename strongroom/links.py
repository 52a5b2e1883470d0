"""Connections to one endpoint, blocking: each passed the endpoint's gate before it carried a byte, and is kept for the
next request (docs/adr/0023-the-clients-own-http.md).

Rules
  - A connection comes out of the gate's own `SSLContext`, and from nothing else.
  - One request at a time on a connection. It is kept only after an answer that was whole, said that the connection
    lasts, and had nothing behind it; an idle one that has something to say (an end, most often) is closed unused.
  - What ends an exchange says what matters: had bytes been sent or not. A server may answer before it has read a whole
    body and then close, so a write that fails is not the end: the answer may be there.
  - A connection belongs to the process that made it. Two that write on one (after a fork) would encrypt different bytes
    under the same key and nonce, which gives away both (RFC 5116 §5.1.1).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Final

from strongroom import http1
from strongroom.calls import Answer, NotSent, Request, Unanswered, patience
from strongroom.ratls import Gate

CONNECT_TIMEOUT_S: Final = 10.0
"""TCP and TLS may take this long each; a server that is slower is called unreachable."""
MAX_CONNECTIONS: Final = 16
"""Connections to one endpoint at once; who wants another waits for one."""
MAX_IDLE: Final = 4
"""Connections that are kept while nobody uses them."""
IDLE_S: Final = 30.0
"""Seconds for which they are."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server is: scheme, host and port, nothing else."""

    url: str
    host: str
    """Name or address to connect to, without brackets."""
    port: int
    authority: str
    """Host, and the port where it is not 443, as the Host field has it."""


def late(request: Request) -> Unanswered:
    """The deadline of the whole exchange, or the time for one byte, has passed."""
    if request.deadline_s is not None:
        return Unanswered("answer_late", f"no whole answer within {request.deadline_s:g} s")
    return Unanswered("answer_late", "the server did not answer in time")


def not_connected(exc: BaseException) -> NotSent:
    """A connection that was never made: nobody there, or TLS that is not ours."""
    seen: BaseException | None = exc
    while seen is not None:
        code = getattr(seen, "code", None)
        if isinstance(seen, ssl.SSLError) and isinstance(code, str):  # the gate's own refusal
            return NotSent(code, str(seen.args[-1]) if seen.args else code)
        if isinstance(seen, ssl.SSLError) and not isinstance(
            seen, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError
        ):
            return NotSent(
                "channel_tls", f"a handshake that failed ({seen.reason or 'no TLS 1.3 server there'})"
            )
        seen = seen.__cause__ or seen.__context__
    return NotSent("server_unreachable", "the server cannot be reached")


class _Budget:
    """How long the next step may take: the time without a byte, and never beyond the exchange's deadline."""

    def __init__(self, request: Request, timeout_s: float) -> None:
        self._request = request
        self.fixed = request.deadline_s is None
        limit = patience(request, timeout_s)
        self._limit = limit if self.fixed else min(limit, request.deadline_s or 0.0)
        self._until = None if request.deadline_s is None else time.monotonic() + request.deadline_s

    def left(self, most: float | None = None) -> float:
        """Seconds, at most `most`; raises `Unanswered` (`answer_late`) where none are left."""
        limit = self._limit if most is None else min(self._limit, most)
        if self._until is not None:
            limit = min(limit, self._until - time.monotonic())
            if limit <= 0:
                raise late(self._request)
        return limit


class _Connection:
    """One TLS connection that passed the gate."""

    def __init__(self, socket: ssl.SSLSocket) -> None:
        self.socket = socket
        self.idle_since = 0.0
        self._poll = select.poll()
        self._poll.register(socket, select.POLLIN)

    def quiet(self) -> bool:
        """Whether nothing came that nobody asked for."""
        return self.socket.pending() == 0 and not self._poll.poll(0)

    def exchange(self, request: Request, head: bytes, budget: _Budget) -> tuple[Answer, bool]:
        """Sends and receives; the answer, and whether the connection may be used again."""
        self.socket.settimeout(budget.left())
        whole = self._send(request, head, budget)
        reader = http1.Reader(request)
        while True:
            if not budget.fixed:
                self.socket.settimeout(budget.left())
            try:
                count = self.socket.recv_into(reader.room())
            except TimeoutError as exc:
                raise late(request) from exc
            except OSError as exc:
                raise reader.cut() from exc
            if not count:
                raise reader.cut()
            if reader.filled(count):
                return reader.answer(), whole and reader.reusable

    def _send(self, request: Request, head: bytes, budget: _Budget) -> bool:
        for piece, done in http1.pieces(head, request):
            if not budget.fixed:
                self.socket.settimeout(budget.left())
            try:
                self.socket.sendall(piece)
            except TimeoutError as exc:
                raise late(request) from exc
            except OSError:
                return False  # see Rules: an answer may be there
            if request.sent is not None and done:
                request.sent(done, request.body.length)
        return True

    def end(self) -> None:
        """Makes whoever waits for this connection stop waiting."""
        # Not `SSLSocket.shutdown`, which takes the TLS object from under the reading thread.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Link:
    """The connections to one endpoint. Safe to share between threads."""

    def __init__(self, gate: Gate, origin: Origin, *, timeout_s: float) -> None:
        self._context = gate.client_context()
        self._origin, self._timeout_s = origin, timeout_s
        self._idle: list[_Connection] = []  # the one used last is used first
        self._busy: set[_Connection] = set()
        self._closed = False
        self._have_places()
        _links.add(self)

    def _have_places(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def forked(self) -> None:
        """In a child: lets go of the parent's connections, and of locks that its threads held. Nothing is said on them,
        and they stay open over there.
        """
        for connection in (*self._idle, *self._busy):
            connection.socket.close()
        self._idle.clear()
        self._busy.clear()
        self._have_places()

    def exchange(self, request: Request) -> Answer:
        """Sends a request and receives its answer, whatever its status.

        Raises:
            NotSent, Unanswered, Unacceptable: see `calls.Outcome`.
            InvalidRequest: the request cannot be sent (`request_unsendable`), or its body could not be read.
        """
        head = http1.encode_head(request, host=self._origin.authority)
        budget = _Budget(request, self._timeout_s)
        free = self._free  # a fork in between may put another in its place
        if not free.acquire(timeout=budget.left()):
            raise NotSent("server_unreachable", "the server cannot be reached")
        try:
            connection, again = self._from_idle() or self._connect(budget), False
            try:
                self._enter(connection)
                answer, again = connection.exchange(request, head, budget)
            finally:
                self._leave(connection, again)
        finally:
            free.release()
        return answer

    def close(self) -> None:
        """Closes every connection; exchanges that go on end without an answer."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                connection.end()
        for connection in idle:
            connection.socket.close()

    def _enter(self, connection: _Connection) -> None:
        with self._lock:
            if self._closed:
                raise NotSent("server_unreachable", "the connections were closed")
            self._busy.add(connection)

    def _leave(self, connection: _Connection, again: bool) -> None:
        """Keeps a connection that may be used again; closes it, or the one that it takes the place of."""
        spare: _Connection | None = connection
        connection.idle_since = time.monotonic()
        with self._lock:
            self._busy.discard(connection)
            if again and not self._closed:
                self._idle.append(connection)
                spare = self._idle.pop(0) if len(self._idle) > MAX_IDLE else None
        if spare is not None:
            spare.socket.close()

    def _from_idle(self) -> _Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if time.monotonic() - connection.idle_since < IDLE_S and connection.quiet():
                return connection
            connection.socket.close()

    def _connect(self, budget: _Budget) -> _Connection:
        try:
            where = (self._origin.host, self._origin.port)
            raw = socket.create_connection(where, timeout=budget.left(CONNECT_TIMEOUT_S))
        except (OSError, UnicodeError) as exc:
            raise not_connected(exc) from exc
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.settimeout(budget.left(CONNECT_TIMEOUT_S))
            # The gate decides in here.
            return _Connection(self._context.wrap_socket(raw, server_hostname=self._origin.host))
        except (OSError, ValueError) as exc:
            budget.left()
            raise not_connected(exc) from exc
        finally:
            raw.close()  # of no effect once `wrap_socket` took its descriptor over


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _forked() -> None:
    for link in tuple(_links):
        link.forked()


if hasattr(os, "register_at_fork"):  # where processes can be forked
    os.register_at_fork(after_in_child=_forked)


__all__ = [
    "CONNECT_TIMEOUT_S",
    "IDLE_S",
    "MAX_CONNECTIONS",
    "MAX_IDLE",
    "Link",
    "Origin",
    "late",
    "not_connected",
]
