"""The HTTP edge: what uvicorn's httptools protocol leaves open to a hostile peer, closed
(docs/spec/channel.md part 6).

Rules
  - A request that two readers could understand differently is refused, and the connection ends with it.
  - One request at a time: bytes behind an unfinished exchange are never parsed, so nothing can hide in them.
  - Every wait has a deadline, every count a limit, both measured on what arrives and never on what is
    declared.
  - A refusal is one framed problem document with a stable `code`, then the connection is closed.
  - Neither a log line nor a response shows what a request or an exception contained.

    accepted --TLS--> idle --first byte--> head --blank line--> body --last byte--> idle (keep-alive)
       |               |                    |                    |
       handshake_s     first_byte_s,        header_deadline_s    body_idle_s          then: lingering close
                       keep_alive_s
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import json
import logging
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn

from strongroom.errors import InvalidConfig

try:
    import httptools
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
except ImportError as exc:
    # uvicorn would quietly take h11 instead, which executes a request smuggled behind Content-Length +
    # chunked.
    raise InvalidConfig(
        "the server needs the httptools parser: pip install 'strongroom[server]'", code="httptools_missing"
    ) from exc

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

HEADER_COUNT: Final = 64
"""Header fields of one request; our clients send about 10, browsers about 20."""
TARGET_BYTES: Final = 1024
"""Bytes of a request target: the longest path and query of this interface stay below, and it must fit into a
token.
"""
HANDSHAKE_S: Final = 10.0
"""Seconds for a TLS handshake: three flights over a bad line."""
HANDSHAKES: Final = 128
"""TLS handshakes under way at once; asyncio holds a buffer of 256 KiB for each."""
FIRST_BYTE_S: Final = 10.0
"""Seconds from the end of the handshake to a request's first byte."""
LINGER_S: Final = 5.0
"""Seconds for which what still arrives is swallowed after an early answer: a reset would overtake the answer.
"""
LINGER_BYTES: Final = 256 * 1024
"""Bytes that are swallowed meanwhile after a refusal of the edge; after that the peer is left to wait."""

_SLICE_HEAD = 4096
"""Bytes given to the parser at once in a head: by so much can a limit be exceeded before it is noticed."""
_SLICE_BODY = 64 * 1024
"""The same in a body, and the size of the pieces in which a response is written: what a stalled peer can hold
up.
"""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_TARGET = re.compile(rb"(?!//)/(?:[!-\"$&-\[\]^-~]|%[0-9A-Fa-f]{2})*")
"""Origin form: visible ASCII without `#` and backslash, whole percent escapes, no `//host` in front."""
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_ONCE = frozenset(
    {
        b"authorization",
        b"accept",
        b"content-digest",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"transfer-encoding",
    }
)
"""Fields that decide something here: of two, one reader takes the first and another the last."""
_ONCE_PREFIX = b"strongroom-"

_logger = logging.getLogger("strongroom.edge")
_ids = itertools.count(1)
_BUSY = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeLimits:
    """What one connection may use, and how many there may be. Seconds may be fractions.

    The first group is configured by the operator; the second are constants of this module that tests make
    smaller.
    """

    connections: int
    header_bytes: int
    header_deadline_s: float
    body_idle_s: float
    send_idle_s: float
    keep_alive_s: float

    header_count: int = HEADER_COUNT
    target_bytes: int = TARGET_BYTES
    handshake_s: float = HANDSHAKE_S
    handshakes: int = HANDSHAKES
    first_byte_s: float = FIRST_BYTE_S
    linger_s: float = LINGER_S


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection that a request came on, as `scope["state"]["connection"]`.

    `id`: unique in this process. `epoch`: the TLS context of the epoch whose key it was made with, for its
    whole life. `peer`: the address of the other end ("" if unknown), which may be that of a balancer.
    """

    id: int
    epoch: ssl.SSLContext
    peer: str


class Refusal(Exception):
    """A request that the edge does not pass on. Not an `Error`: it is answered here and leaves no further
    trace.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


def check_head(
    *, method: str, version: str, target: bytes, headers: list[tuple[bytes, bytes]], limits: EdgeLimits
) -> None:
    """Returns if the head of a request has only one meaning (§6.2). Names of `headers` are in lower case.

    1. HTTP/1.1 and a method that exists here; 2. a target in origin form; 3. sizes; 4. fields that decide
       something
    stand once; 5. one Host; 6. framing: Content-Length or a single `chunked`, not both, and none where a body
    has no meaning; 7. neither upgrades nor unknown expectations.

    Raises:
        Refusal: with one of the `http_*` codes.
    """
    if version != "1.1":
        raise Refusal(505, "http_version", "expected HTTP/1.1")
    if method not in _METHODS:
        raise Refusal(501, "http_method", f"expected one of {', '.join(sorted(_METHODS))}")
    if len(target) > limits.target_bytes:
        raise Refusal(414, "http_target_too_long", f"expected at most {limits.target_bytes} bytes")
    if _TARGET.fullmatch(target) is None:
        raise Refusal(400, "http_target", "expected an absolute path and query in plain ASCII")
    if len(headers) > limits.header_count:
        raise Refusal(431, "http_too_many_headers", f"expected at most {limits.header_count} fields")
    size = len(method) + len(target) + 12 + sum(len(name) + len(value) + 4 for name, value in headers)
    if size > limits.header_bytes:
        raise Refusal(431, "http_head_too_large", f"expected at most {limits.header_bytes} bytes")
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in fields and (name in _ONCE or name.startswith(_ONCE_PREFIX)):
            code = _DUPLICATES.get(name, "http_duplicate_header")
            raise Refusal(400, code, "a field that may stand once stands twice")
        fields[name] = value
    if _HOST.fullmatch(fields.get(b"host", b"")) is None:
        raise Refusal(400, "http_host", "expected exactly one well-formed Host field")
    _check_framing(method, fields)
    if b"upgrade" in fields:
        raise Refusal(400, "http_upgrade", "upgrades are not taken")
    if fields.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise Refusal(417, "http_expect", "expected no expectation but 100-continue")


_DUPLICATES = {
    b"host": "http_host",
    b"content-length": "http_content_length",
    b"transfer-encoding": "http_transfer_encoding",
}


def _check_framing(method: str, fields: dict[bytes, bytes]) -> None:
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is not None and coding.lower() != b"chunked":
        raise Refusal(400, "http_transfer_encoding", "expected no transfer coding but a single chunked")
    if length is not None and (coding is not None or _LENGTH.fullmatch(length) is None):
        raise Refusal(400, "http_content_length", "expected one plain number and no coding beside it")
    if method in _WITHOUT_BODY and (coding is not None or int(length or b"0")):
        raise Refusal(400, "http_body_unexpected", f"{method} takes no body here")


def problem(status: int, code: str, detail: str) -> bytes:
    """Returns a problem document (RFC 9457) of this server as JSON."""
    title = HTTPStatus(status).phrase
    members = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    return json.dumps(members).encode("ascii")


def _malformed(exc: Exception) -> Refusal:
    """The refusal of what the parser refused; its words are used to choose the code, not repeated."""
    for name, code in (
        ("Content-Length", "http_content_length"),
        ("Transfer-Encoding", "http_transfer_encoding"),
    ):
        if name in str(exc):
            return Refusal(
                400, code, "expected one plain Content-Length, or a single chunked coding, not both"
            )
    return Refusal(400, "http_malformed", "expected a well-formed HTTP/1.1 request")


class _Phase(enum.Enum):
    IDLE = "no request under way in this direction"
    HEAD = "a head has begun"
    BODY = "the head is complete, the body is not"


class _Exit(asyncio.Transport):
    """The transport as uvicorn sees it: the same, but leaving is the protocol's decision and happens once."""

    def __init__(self, inner: asyncio.Transport, leave: Callable[[], None]) -> None:
        super().__init__()
        self._inner = inner
        self._leave = leave
        self.left = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self.left or self._inner.is_closing()

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self.left:
            self._inner.write(data)

    def close(self) -> None:
        if not self.left:
            self.left = True
            self._leave()

    def abort(self) -> None:
        self.left = True
        self._inner.abort()


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `guarded` binds the limits; uvicorn makes the instances."""

    limits: EdgeLimits

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # A parser of our own, because uvicorn makes its one lenient about data after `Connection: close`.
        self.parser = httptools.HttpRequestParser(self)
        self.timeout_keep_alive = cast(int, self.limits.keep_alive_s)
        self._application = self.app
        self.app = cast(Any, self._serve)
        self._tls: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._phase = _Phase.IDLE
        self._refusal: Refusal | None = None
        self._deaf = False
        self._swallowed = 0
        self._broke_rules = False
        self._unproductive = 0
        self._body_due = 0.0
        self._over_cap = False
        self._idle_since = _BUSY

    # -- arrival and departure -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base
        """A connection whose handshake is done, or no TLS at all, which is not served."""
        self._tls = transport
        super().connection_made(cast(asyncio.Transport, _Exit(transport, self._leave)))
        tls = transport.get_extra_info("ssl_object")
        # The contexts allow nothing else; a listener that was set up without them must not work by accident.
        crowd = len(self.connections) > self.limits.connections + self.limits.handshakes
        if tls is None or tls.version() != "TLSv1.3" or tls.session_reused or crowd:
            self._deaf = True
            transport.abort()
            return
        self._idle_since = self.loop.time()
        self._over_cap = len(self.connections) > self.limits.connections and not self._make_room()
        self.connection = Connection(
            id=next(_ids), epoch=tls.context, peer=self.client[0] if self.client else ""
        )
        self.timeout_keep_alive_task = self.loop.call_later(
            self.limits.first_byte_s, self.timeout_keep_alive_handler
        )

    def _make_room(self) -> bool:
        """Ends the connection without a request for longest (half a head is none). False where there is none."""
        longest = min(cast("set[GuardedProtocol]", self.connections), key=lambda one: one._idle_since)
        if longest is not self:
            longest.transport.abort()  # not politely: one that answers no goodbye would keep its place
        return longest is not self

    def eof_received(self) -> None:
        """The peer will send no more; what is still to be written to it has a deadline too."""
        self._deaf = True
        self._set_timer(self.limits.send_idle_s, self._abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end. Nothing may fire after it."""
        self._deaf = True
        self._set_timer(None)
        self._stop_write_timer()
        self._unset_keepalive_if_required()
        cast(_Exit, self.transport).left = True
        super().connection_lost(exc)

    def _leave(self) -> None:
        """Closes; lingers first while the peer is still sending.

        TLS cannot be half closed politely: data that arrives after our close_notify turns into a reset, which
        can overtake the answer that explains the refusal.
        """
        self._deaf = True
        self._unset_keepalive_if_required()
        if self._phase is _Phase.IDLE:
            self._close()
        else:
            self._set_timer(self.limits.linger_s, self._close)

    def _close(self) -> None:
        assert self._tls is not None  # noqa: S101 - set when the connection was made
        self._set_timer(self.limits.send_idle_s, self._abort)  # for a peer that takes nothing
        self._tls.close()

    def _abort(self) -> None:
        self.transport.abort()

    def _set_timer(self, seconds: float | None, action: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None or action is None else self.loop.call_later(seconds, action)

    # -- what arrives ----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Feeds the parser in slices, so that limits are noticed while they are being exceeded."""
        if self._deaf:
            return self._swallow(len(data))
        self._unset_keepalive_if_required()
        if self._phase is _Phase.IDLE:
            self._begin_head()
        view = memoryview(data)
        while view and not self._deaf:
            size = _SLICE_BODY if self._phase is _Phase.BODY else _SLICE_HEAD
            piece, view = view[:size], view[size:]
            try:
                self.parser.feed_data(piece)
                self._account(len(piece))
            except Refusal as refusal:
                self._refuse(refusal)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
                # A refusal raised in one of our callbacks comes back as the parser's error, so it is kept
                # aside.
                self._refuse(self._refusal or _malformed(exc))
        return None

    def _begin_head(self) -> None:
        self._phase = _Phase.HEAD
        if self._unanswered() is None:
            self._idle_since = self.loop.time()  # half a head is no request: it holds no place against others
        self._unproductive = 0
        # Absolute: a byte now and then does not prolong it. Blank lines before a request count as its
        # beginning.
        self._set_timer(self.limits.header_deadline_s, self._head_timeout)

    def _head_timeout(self) -> None:
        self._refuse(Refusal(408, "http_head_timeout", "the request's head did not arrive in time"))

    def _account(self, size: int) -> None:
        """Bounds what the parser holds: it keeps a field until it is complete, however long that takes."""
        if self._phase is _Phase.IDLE:
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
        if self._broke_rules and self._swallowed > LINGER_BYTES and self._tls and not self._tls.is_closing():
            self._tls.pause_reading()

    def _stop(self, refusal: Refusal) -> None:
        """For parser callbacks: raises `refusal` in a way that survives the parser."""
        self._refusal = refusal
        raise refusal

    def on_message_begin(self) -> None:
        """A request begins, or something behind one that is not answered yet."""
        if self._phase is not _Phase.HEAD or self._unanswered() is not None:
            self._stop(Refusal(400, "http_malformed", "expected the response to be awaited"))
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Part of the target."""
        super().on_url(url)
        if len(self.url) > self.limits.target_bytes:
            detail = f"expected at most {self.limits.target_bytes} bytes"
            self._stop(Refusal(414, "http_target_too_long", detail))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole field; after the head it is a trailer, which uvicorn would add to the headers already in
        use.
        """
        if self._phase is not _Phase.HEAD:
            self._stop(Refusal(400, "http_trailers", "trailer fields are not taken"))
        if len(self.headers) >= self.limits.header_count:
            detail = f"expected at most {self.limits.header_count} fields"
            self._stop(Refusal(431, "http_too_many_headers", detail))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Checks the head and starts the application."""
        try:
            check_head(
                method=self.parser.get_method().decode("ascii"),
                version=self.parser.get_http_version(),
                target=self.url,
                headers=self.headers,
                limits=self.limits,
            )
            if self._over_cap:
                raise Refusal(503, "http_connection_cap", "too many connections; try again later")
        except Refusal as refusal:
            self._stop(refusal)
        self._phase = _Phase.BODY
        self._idle_since = _BUSY
        self._unproductive = 0
        self._body_due = self.loop.time() + self.limits.body_idle_s
        self._set_timer(self.limits.body_idle_s / 4, self._watch_body)
        self.scope["state"]["connection"] = self.connection
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of the body: progress."""
        self._unproductive = 0
        self._body_due = self.loop.time() + self.limits.body_idle_s
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived."""
        self._phase = _Phase.IDLE
        self._set_timer(None)
        super().on_message_complete()

    def _watch_body(self) -> None:
        """Four times per `body_idle_s`, so that a pause of ours (the application reads slowly) is not held
        against them.
        """
        now = self.loop.time()
        if self.flow.read_paused:
            self._body_due = now + self.limits.body_idle_s
        if now >= self._body_due:
            self._refuse(Refusal(408, "http_body_timeout", "the request's body stopped arriving"))
        else:
            self._set_timer(self.limits.body_idle_s / 4, self._watch_body)

    # -- answers ---------------------------------------------------------------------------------------------

    def _unanswered(self) -> RequestResponseCycle | None:
        """The exchange under way, if there is one."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first, whatever the base class says
        return None if cycle is None or cycle.response_complete else cycle

    def _refuse(self, refusal: Refusal) -> None:
        """Answers with a problem document where that is still possible; ends the connection in any case."""
        _logger.debug("refused: %s", refusal.code)
        self._deaf = self._broke_rules = True
        self._set_timer(None)
        cycle = self._unanswered()
        if cycle is not None and not cycle.more_body:
            # Bytes behind a complete request: that one is answered, they are not even parsed.
            cycle.keep_alive = False
            self.transport.pause_reading()
            return
        if cycle is not None:
            cycle.disconnected = True  # the application sees a lost peer, and what it says is dropped
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        body = problem(refusal.status, refusal.code, refusal.detail)
        head = [
            STATUS_LINE[refusal.status],
            b"content-type: application/problem+json\r\ncontent-length: %d\r\n" % len(body),
            b"retry-after: 1\r\n" if refusal.status == 503 else b"",
            b"connection: close\r\n\r\n",
        ]
        self.transport.write(b"".join([*head, body]))
        self.transport.close()

    async def _serve(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The application, with its answers framed and its accidents kept to itself."""
        cycle = self.cycle
        if cycle.disconnected:  # the same segment that completed the head also broke the body
            return

        async def framed(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start" and cycle.more_body:
                # Answered before the request was read: what follows on this connection cannot be told apart.
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            if message["type"] == "http.response.body":
                body, more = memoryview(message.get("body", b"")), message.get("more_body", False)
                while len(body) > _SLICE_BODY:  # in pieces: a stall is noticed between writes
                    piece, body = bytes(body[:_SLICE_BODY]), body[_SLICE_BODY:]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                message = {"type": "http.response.body", "body": bytes(body), "more_body": more}
            await send(message)

        try:
            await self._application(scope, receive, framed)
        except Exception as exc:  # noqa: BLE001 - uvicorn would log its text, which may quote a request
            _log_accident(exc)
            if cycle.response_started:
                self.transport.abort()
                return
            body = problem(500, "internal_error", "a fault of this server")
            fields = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
            await framed({"type": "http.response.start", "status": 500, "headers": fields})
            await framed({"type": "http.response.body", "body": body, "more_body": False})

    def on_response_complete(self) -> None:
        """The exchange is over."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The peer does not take what we send; it has until `send_idle_s`."""
        super().pause_writing()
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(self.limits.send_idle_s, self._abort)

    def resume_writing(self) -> None:
        """It does again."""
        self._stop_write_timer()
        super().resume_writing()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _log_accident(exc: Exception) -> None:
    """Where and of which type, never what it says."""
    last = exc.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else "?"
    _logger.error("unhandled %s at %s", type(exc).__name__, where)


def guarded(limits: EdgeLimits) -> type[GuardedProtocol]:
    """Returns the protocol class with these limits, for uvicorn's `http` setting."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})
