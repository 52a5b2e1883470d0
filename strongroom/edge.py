"""The HTTP edge: one connection, its requests one after the other, and every limit on both (docs/spec/channel.md
part 6). The parser is httptools'; what it leaves open to a hostile peer is closed here.

Rules
  - A request that two readers could understand differently is refused, and the connection ends with it.
  - One request at a time: bytes behind an unfinished exchange are never parsed, so nothing can hide in them.
  - Every wait has a deadline, every count a limit, both measured on what arrives and never on what is
    declared.
  - A refusal is one framed problem document with a stable `code`, then the connection is closed.
  - Neither a log line nor a response shows what a request or an exception contained.
  - A head that is, byte for byte, the last one of its connection has the same one meaning: it is not read again. What
    depends on anything but these bytes (deadlines, whose turn it is, tokens' ages) is looked at each time.

    accepted --TLS--> idle --first byte--> head --blank line--> body --last byte--> idle (keep-alive)
       |               |                    |                    |
       handshake_s     first_byte_s,        header_deadline_s    body_idle_s          then: lingering close
                       keep_alive_s
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from strongroom.errors import InvalidConfig
from strongroom.exchange import STATUS_LINES, Bytes, Exchange
from strongroom.http_head import EdgeLimits, Refusal, check_head, malformed, problem
from strongroom.link import log_accident

try:
    import httptools
except ImportError as exc:
    raise InvalidConfig(
        "the server needs the httptools parser: pip install 'strongroom[server]'", code="httptools_missing"
    ) from exc

__all__ = ["Connection", "Crowd", "EdgeLimits", "GuardedProtocol", "Refusal", "check_head"]

LINGER_BYTES: Final = 256 * 1024
"""Bytes that are swallowed after a refusal of the edge, while it lingers; after that the peer is left to wait."""

_SLICE_HEAD = 4096
"""Bytes given to the parser at once in a head: by so much can a limit be exceeded before it is noticed."""
_SLICE_BODY = 64 * 1024
"""The same in a body."""
_GRAIN_S = 0.002
"""Seconds by which a deadline may strike late: so far is a timer from being set anew."""

Application: TypeAlias = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

_logger = logging.getLogger("strongroom.edge")
_ids = itertools.count(1)
_NEVER = float("inf")
_scratch = bytearray(_SLICE_BODY)
"""Where heads, small bodies and framing arrive, of one connection after the other: they are read at once."""
_scratch_view = memoryview(_scratch)


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection that a request came on, as `scope["state"]["connection"]`.

    `id`: unique in this process. `epoch`: the TLS context of the epoch whose key it was made with, for its
    whole life. `peer`: the address of the other end ("" if unknown), which may be that of a balancer.
    """

    id: int
    epoch: ssl.SSLContext
    peer: str


@dataclass(frozen=True, slots=True, eq=False)
class Crowd:
    """What a server has under way: its connections, and the tasks of their requests."""

    connections: set[GuardedProtocol] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """A head that was read and checked: its bytes, with the empty line, and what they mean."""

    data: bytes
    scope: dict[str, Any]
    length: int
    keep_alive: bool


class _Phase(enum.Enum):
    IDLE = "no request under way in this direction"
    HEAD = "a head has begun"
    BODY = "the head is complete, the body is not"


class GuardedProtocol(asyncio.BufferedProtocol):
    """One connection of `crowd`, whose requests `app` answers (ASGI)."""

    def __init__(self, app: Application, *, limits: EdgeLimits, crowd: Crowd) -> None:
        self.limits = limits
        self.crowd = crowd
        self.exchange: Exchange | None = None
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._known: _Head | None = None  # the last head, where it came in one piece
        self._parsed = False  # the parser has seen the head of what arrives
        self._body_in_piece = 0
        self._due, self._act = _NEVER, self._abort
        self._timer: asyncio.TimerHandle | None = None
        self._phase = _Phase.IDLE
        self._refusal: Refusal | None = None
        self._deaf = self._left = self._broke_rules = self._over_cap = False
        self._swallowed = 0
        self._unproductive = 0
        self._missing = 0  # bytes of the body that arrive past the parser
        self._lent = False  # the buffer that was given out last is the body's own
        self._body_due = 0.0
        self._idle_since = _NEVER
        self._read_paused = self._write_paused = False
        self._write_timer: asyncio.TimerHandle | None = None
        self._draining: asyncio.Future[None] | None = None

    # -- arrival and departure -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base
        """A connection whose handshake is done, or no TLS at all, which is not served."""
        self.transport = transport
        connections, limits = self.crowd.connections, self.limits
        connections.add(self)
        tls = transport.get_extra_info("ssl_object")
        # The contexts allow nothing else; a listener that was set up without them must not work by accident.
        crowd = len(connections) > limits.connections + limits.handshakes
        if tls is None or tls.version() != "TLSv1.3" or tls.session_reused or crowd:
            self._deaf = True
            transport.abort()
            return
        self._idle_since = self._loop.time()
        self._over_cap = len(connections) > limits.connections and not self._make_room()
        peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._peer = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else None
        self._here = (str(here[0]), int(here[1])) if isinstance(here, tuple) else None
        self.connection = Connection(
            id=next(_ids), epoch=tls.context, peer=self._peer[0] if self._peer else ""
        )
        self._set_deadline(limits.first_byte_s, self._leave)

    def _make_room(self) -> bool:
        """Ends the connection without a request for longest (half a head is none). False where there is none."""
        longest = min(self.crowd.connections, key=lambda one: one._idle_since)
        if longest is not self:
            longest._abort()  # not politely: one that answers no goodbye would keep its place
            self.crowd.connections.discard(longest)  # others that come in this moment have to find another
        return longest is not self

    def eof_received(self) -> None:
        """The peer will send no more; what is still to be written to it has a deadline too."""
        self._deaf = True
        self._set_deadline(self.limits.send_idle_s, self._abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end. Nothing may fire after it."""
        self.crowd.connections.discard(self)
        self._deaf = self._left = True
        self._known = None
        self._due = _NEVER
        if self._timer is not None:
            self._timer.cancel()
        self._stop_write_timer()
        if (exchange := self.unanswered()) is not None:
            exchange.lost()
        self._wake_writer()

    def shutdown(self) -> None:
        """The server is about to end: so is this connection, once the request that is under way is answered."""
        exchange = self.unanswered()
        if exchange is None:
            self._leave()
        else:
            exchange.keep_alive = False

    def idle(self) -> bool:
        """Whether no request is under way, nor any of an answer."""
        return self.unanswered() is None and not self._write_paused

    def _leave(self) -> None:
        """Closes, once; lingers first while the peer is still sending.

        TLS cannot be half closed politely: data that arrives after our close_notify turns into a reset, which
        can overtake the answer that explains the refusal.
        """
        if self._left:
            return
        self._deaf = self._left = True
        if self._phase is _Phase.IDLE:
            self._close()
        else:
            self._set_deadline(self.limits.linger_s, self._close)
            self.resume()

    def _close(self) -> None:
        self._set_deadline(self.limits.send_idle_s, self._abort)  # for a peer that takes nothing
        self.transport.close()

    def _abort(self) -> None:
        self._left = True
        self.transport.abort()

    def _set_deadline(self, seconds: float, act: Callable[[], None]) -> None:
        """Has `act` called after `seconds`, in place of what was to be called before. Nearly all deadlines are met,
        so a timer that fires earlier is left to look again rather than set anew.
        """
        self._due, self._act = self._loop.time() + seconds, act
        if self._timer is None or self._timer.when() > self._due + _GRAIN_S:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._strike)

    def _strike(self) -> None:
        self._timer = None
        if self._due == _NEVER:
            return
        if self._due > self._loop.time() + _GRAIN_S:
            self._timer = self._loop.call_at(self._due, self._strike)
            return
        self._due = _NEVER
        self._act()

    # -- what arrives ----------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where what arrives next is to be written: into the body itself, where that is all it can be."""
        self._lent = bool(self._missing) and not self._deaf and self.exchange is not None
        if self._lent and self.exchange is not None:
            return self.exchange.room(self._missing)
        return _scratch_view

    def buffer_updated(self, nbytes: int) -> None:
        """So much was written there."""
        if self._lent:
            self._take_body(None, nbytes)
        else:
            self.data_received(_scratch_view[:nbytes])

    def data_received(self, data: Bytes) -> None:
        """Feeds the parser in slices, so that limits are noticed while they are being exceeded."""
        view = memoryview(data)
        while view and not self._deaf:
            if self._missing:
                piece, view = view[: self._missing], view[self._missing :]
                self._take_body(piece, len(piece))
                continue
            begins = self._phase is _Phase.IDLE
            if begins:
                if (known := self._known) is not None and self._same_again(known, view):
                    view = view[len(known.data) :]
                    continue
                self._begin_head()
            size = _SLICE_BODY if self._phase is _Phase.BODY else _SLICE_HEAD
            piece, view = view[:size], view[size:]
            self._parsed, self._body_in_piece = True, 0
            try:
                self._parser.feed_data(piece)
                self._account(len(piece))
                if begins:
                    self._remember(piece)
            except Refusal as refusal:
                self._refuse(refusal)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
                # A refusal raised in one of our callbacks comes back as the parser's error, so it is kept
                # aside.
                self._refuse(self._refusal or malformed(exc))
        if view:
            self._swallow(len(view))

    def _take_body(self, piece: memoryview | None, size: int) -> None:
        """Bytes of a body whose length is known, `None` where they are in its buffer already. The parser need not see
        them: of what they say nothing is framing.
        """
        exchange = self.exchange
        assert exchange is not None  # noqa: S101 - made with the head
        self._missing -= size
        self._body_due = self._loop.time() + self.limits.body_idle_s
        if piece is None:
            exchange.filled(size)
        else:
            exchange.append(piece)
        if not self._missing:
            if self._parsed:  # for the next request; this one still waits for bytes
                self._parsed, self._parser = False, httptools.HttpRequestParser(self)
            self.on_message_complete()

    def _remember(self, piece: memoryview) -> None:
        """Keeps the head that `piece` begins with, where the parser saw all of it there: what it did not take for body
        was head. Not one that says something beyond its own bytes: 100-continue, chunks.
        """
        self._known, exchange = None, self.exchange
        if exchange is None or self._phase is _Phase.HEAD or self._expects_continue or self._deaf:
            return
        data = bytes(piece[: len(piece) - self._body_in_piece])
        if data.find(b"\r\n\r\n") != len(data) - 4 or any(
            name == b"transfer-encoding" for name, _ in self._headers
        ):
            return
        scope = {name: value for name, value in exchange.scope.items() if name != "strongroom.exchange"}
        self._known = _Head(data, scope, self._missing + self._body_in_piece, exchange.keep_alive)

    def _same_again(self, known: _Head, view: memoryview) -> bool:
        """Whether this is that head again, between two requests; then its request begins."""
        if self.unanswered() is not None or bytes(view[: len(known.data)]) != known.data:
            return False
        self._begin(known.scope.copy(), known.length, keep_alive=known.keep_alive, expects_continue=False)
        if not known.length:
            self.on_message_complete()
        return True

    def _begin_head(self) -> None:
        self._phase = _Phase.HEAD
        if self.unanswered() is None:
            self._idle_since = (
                self._loop.time()
            )  # half a head is no request: it holds no place against others
        self._unproductive = 0
        # Absolute: a byte now and then does not prolong it. Blank lines before a request count as its
        # beginning.
        self._set_deadline(self.limits.header_deadline_s, self._head_timeout)

    def _head_timeout(self) -> None:
        self._refuse(Refusal(408, "http_head_timeout", "the request's head did not arrive in time"))

    def _account(self, size: int) -> None:
        """Bounds what the parser holds: it keeps a field until it is complete, however long that takes."""
        if self._phase is _Phase.IDLE or self._missing:
            return
        self._unproductive += size
        if self._unproductive <= self.limits.header_bytes:
            return
        if self._phase is _Phase.HEAD:
            detail = f"expected at most {self.limits.header_bytes} bytes"
            raise Refusal(431, "http_head_too_large", detail)
        if self._unproductive > self.limits.header_bytes + _SLICE_BODY:
            raise Refusal(400, "http_chunk_overhead", "expected more body than framing")

    def _swallow(self, size: int) -> None:
        """Drops what arrives on the way out. An upload that the application refused may run on until
        `linger_s`, for its sender may only then look for the answer; who broke the rules of the edge is left
        to wait.
        """
        self._swallowed += size
        if self._broke_rules and self._swallowed > LINGER_BYTES and not self.transport.is_closing():
            self.pause()

    def _stop(self, refusal: Refusal) -> None:
        """For parser callbacks: raises `refusal` in a way that survives the parser."""
        self._refusal = refusal
        raise refusal

    def on_message_begin(self) -> None:
        """A request begins, or something behind one that is not answered yet."""
        if self._phase is not _Phase.HEAD or self.unanswered() is not None:
            self._stop(Refusal(400, "http_malformed", "expected the response to be awaited"))
        self._url, self._headers, self._expects_continue = b"", [], False

    def on_url(self, url: bytes) -> None:
        """Part of the target."""
        self._url += url
        if len(self._url) > self.limits.target_bytes:
            detail = f"expected at most {self.limits.target_bytes} bytes"
            self._stop(Refusal(414, "http_target_too_long", detail))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole field; after the head it is a trailer, which nobody would tell from the headers already in use."""
        if self._phase is not _Phase.HEAD:
            self._stop(Refusal(400, "http_trailers", "trailer fields are not taken"))
        if len(self._headers) >= self.limits.header_count:
            detail = f"expected at most {self.limits.header_count} fields"
            self._stop(Refusal(431, "http_too_many_headers", detail))
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Checks the head and starts the application."""
        method = self._parser.get_method().decode("ascii")
        try:
            length = check_head(
                method=method,
                version=self._parser.get_http_version(),
                target=self._url,
                headers=self._headers,
                limits=self.limits,
            )
            if self._over_cap:
                raise Refusal(503, "http_connection_cap", "too many connections; try again later")
        except Refusal as refusal:
            self._stop(refusal)
        self._begin(
            self._scope(method),
            length or 0,
            keep_alive=self._parser.should_keep_alive(),
            expects_continue=self._expects_continue,
        )

    def _begin(self, scope: dict[str, Any], length: int, *, keep_alive: bool, expects_continue: bool) -> None:
        """The head is there and good: the body may come, and the application runs."""
        self._phase = _Phase.BODY
        self._idle_since = _NEVER
        self._unproductive = 0
        self._missing = length
        self._body_due = self._loop.time() + self.limits.body_idle_s
        self._set_deadline(self.limits.body_idle_s / 4, self._watch_body)
        self.exchange = Exchange(self, scope, keep_alive=keep_alive, expects_continue=expects_continue)
        task = self._loop.create_task(self._serve(self.exchange))
        self.crowd.tasks.add(task)

    def _scope(self, method: str) -> dict[str, Any]:
        raw, _, query = self._url.partition(b"?")
        path = raw.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self._here,
            "client": self._peer,
            "scheme": "https",
            "root_path": "",
            "method": method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw,
            "query_string": query,
            "headers": self._headers,
            "state": {"connection": self.connection},
            "strongroom.facts": {},
        }

    def on_body(self, body: bytes) -> None:
        """Part of the body: progress."""
        exchange = self.exchange
        assert exchange is not None  # noqa: S101 - made with the head
        self._unproductive = 0
        self._body_in_piece += len(body)
        self._body_due = self._loop.time() + self.limits.body_idle_s
        if self._missing:
            self._missing -= len(body)
        exchange.append(body)

    def on_message_complete(self) -> None:
        """The request has arrived."""
        self._phase = _Phase.IDLE
        self._due = _NEVER
        if self.exchange is not None:
            self.exchange.arrived()

    def _watch_body(self) -> None:
        """Four times per `body_idle_s`, so that a pause of ours (the application reads slowly) is not held
        against them.
        """
        now = self._loop.time()
        if self._read_paused:
            self._body_due = now + self.limits.body_idle_s
        if now >= self._body_due:
            self._refuse(Refusal(408, "http_body_timeout", "the request's body stopped arriving"))
        else:
            self._set_deadline(self.limits.body_idle_s / 4, self._watch_body)

    def pause(self) -> None:
        """Makes the peer wait."""
        if not self._read_paused and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """No longer."""
        if self._read_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()

    # -- answers ---------------------------------------------------------------------------------------------

    def unanswered(self) -> Exchange | None:
        """The exchange under way, if there is one."""
        exchange = self.exchange
        return None if exchange is None or exchange.complete else exchange

    def _refuse(self, refusal: Refusal) -> None:
        """Answers with a problem document where that is still possible; ends the connection in any case."""
        _logger.debug("refused: %s", refusal.code)
        self._deaf = self._broke_rules = True
        self._due = _NEVER
        self._missing = 0
        exchange = self.unanswered()
        if exchange is not None and not exchange.more_body:
            # Bytes behind a complete request: that one is answered, they are not even parsed.
            exchange.keep_alive = False
            self.pause()
            return
        self._idle_since = min(
            self._idle_since, self._loop.time()
        )  # from here on it holds no place against others
        if exchange is not None:
            exchange.lost()  # the application sees a lost peer, and what it says is dropped
            if exchange.started:
                self._abort()
                return
        body = problem(refusal.status, refusal.code, refusal.detail)
        head = [
            STATUS_LINES[refusal.status],
            b"content-type: application/problem+json\r\ncontent-length: %d\r\n" % len(body),
            b"retry-after: 1\r\n" if refusal.status == 503 else b"",
            b"connection: close\r\n\r\n",
        ]
        self.write(b"".join([*head, body]))
        self._leave()

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._run(exchange)
        finally:
            self.crowd.tasks.discard(asyncio.current_task())

    async def _run(self, exchange: Exchange) -> None:
        """The application, with its accidents kept to itself."""
        if exchange.disconnected:  # the same segment that completed the head also broke the body
            return
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
            if exchange.complete or exchange.disconnected:
                return
            _logger.error("a request was not answered")
        except Exception as exc:  # noqa: BLE001 - its text may quote a request
            log_accident(exc)
        if exchange.started:
            self._abort()
            return
        body = problem(500, "internal_error", "a fault of this server")
        fields = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
        await exchange.send({"type": "http.response.start", "status": 500, "headers": fields})
        await exchange.send({"type": "http.response.body", "body": body})

    def write(self, data: Bytes) -> None:
        """Sends, unless the connection is leaving."""
        if not self._left:
            self.transport.write(data)

    def answered(self) -> None:
        """The exchange is over."""
        exchange = self.exchange
        if exchange is None:
            return
        self._idle_since = self._loop.time()
        if exchange.keep_alive:
            self.resume()
            if self._phase is _Phase.IDLE:
                self._set_deadline(self.limits.keep_alive_s, self._leave)
        else:
            self._leave()

    async def drained(self) -> None:
        """Returns once the peer has taken most of what was written, or is gone."""
        if self._write_paused:
            self._draining = self._loop.create_future()
            await self._draining

    def pause_writing(self) -> None:
        """The peer does not take what we send; it has until `send_idle_s`."""
        self._write_paused = True
        self._stop_write_timer()
        self._write_timer = self._loop.call_later(self.limits.send_idle_s, self._abort)

    def resume_writing(self) -> None:
        """It does again."""
        self._stop_write_timer()
        self._wake_writer()

    def _wake_writer(self) -> None:
        self._write_paused = False
        if self._draining is not None and not self._draining.done():
            self._draining.set_result(None)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
