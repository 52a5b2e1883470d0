"""Carries out the commands of `flow` with httpx: one HTTP client and one gate per endpoint, blocking and
asyncio.

Rules
  - Everything that decides trust is in the `SSLContext` that the gate gives out (`ratls`); httpx only moves
    bytes on it.
  - Nothing of the environment takes part: no proxies, no `.netrc`, no cookies, no redirects, no HTTP/2.
  - Answers are read raw and bounded. One with a content coding is refused unread (a 305 kB gzip body became
    300 MB); one that is framed by the end of the connection is refused unread (its truncation looks like its
    end).
  - An exception of httpx becomes an `Outcome` that says what matters: had bytes been sent or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.cookiejar
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from strongroom.calls import CHUNK, Answer, Request, target
from strongroom.endorsements import Fetcher, Offline
from strongroom.errors import InvalidRequest
from strongroom.flow import (
    Command,
    Endpoint,
    Fetch,
    NotSent,
    Open,
    Outcome,
    Send,
    Sleep,
    Unacceptable,
    Unanswered,
)
from strongroom.ratls import Gate

CONNECT_TIMEOUT_S: Final = 10.0
"""TCP and TLS together may take this long each; a server that is slower is called unreachable."""
LIMITS: Final = httpx.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=30.0)
"""Connections to one endpoint. Idle ones are closed after 30 s."""
USER_AGENT: Final = "strongroom-client"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server is: scheme, host and port, nothing else."""

    url: str


def parse_origin(url: str) -> Origin:
    """`https://host[:port]`.

    Raises:
        InvalidRequest: no scheme or another, or a path, query, user or fragment (code `url_invalid`).
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as exc:
        raise InvalidRequest("the server's URL has no valid host and port", code="url_invalid") from exc
    if parts.scheme != "https" or "://" not in url:
        got = f"the scheme {parts.scheme!r}" if "://" in url else "no scheme"
        raise InvalidRequest(f"expected https://host:port, got {got}", code="url_invalid")
    if any(character.isspace() for character in parts.netloc):
        raise InvalidRequest("the server's URL has no valid host and port", code="url_invalid")
    rest = (parts.path not in {"", "/"}, parts.query, parts.fragment, "@" in parts.netloc, not host)
    if any(rest) or port == 0:
        raise InvalidRequest("expected https://host:port and nothing behind or before it", code="url_invalid")
    origin = f"https://{parts.netloc}"
    try:
        httpx.URL(origin)
    except (httpx.InvalidURL, ValueError) as exc:
        raise InvalidRequest("the server's URL has no valid host and port", code="url_invalid") from exc
    return Origin(url=origin)


def _options(gate: Gate, origin: Origin, timeout_s: float) -> dict[str, Any]:
    nothing = http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
    return {
        "base_url": origin.url,
        "verify": gate.client_context(),
        "trust_env": False,
        "follow_redirects": False,
        "http2": False,
        "cookies": http.cookiejar.CookieJar(policy=nothing),
        "limits": LIMITS,
        "timeout": httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        "headers": {"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "identity"},
    }


def _headers(request: Request) -> list[tuple[str, str]]:
    sized = [("Content-Length", str(request.body.length))] if request.method not in {"GET", "DELETE"} else []
    return [*request.headers, *sized]


def _extensions(request: Request, timeout_s: float) -> dict[str, Any]:
    limit = timeout_s if request.deadline_s is None else min(timeout_s, request.deadline_s)
    return {"timeout": httpx.Timeout(limit, connect=min(CONNECT_TIMEOUT_S, limit)).as_dict()}


# --- what an answer must be ---------------------------------------------------------------------------------


def check_head(response: httpx.Response, request: Request) -> int | None:
    """Whether the body of this answer may be read at all; its declared length in bytes, None where it is
    chunked.

    Raises:
        Unacceptable: `answer_redirect`, `answer_encoded`, `answer_unframed`, `answer_too_large`.
    """
    headers = response.headers
    if 300 <= response.status_code < 400:
        raise Unacceptable("answer_redirect", f"a redirect ({response.status_code}); none is followed")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Unacceptable("answer_encoded", "a content coding that was not asked for")
    lengths, codings = headers.get_list("content-length"), headers.get_list("transfer-encoding")
    if len(lengths) + len(codings) != 1 or (codings and (request.sized or codings[0].lower() != "chunked")):
        wanted = "Content-Length" if request.sized else "exactly one of Content-Length and chunked"
        raise Unacceptable("answer_unframed", f"no framing that shows truncation ({wanted} is required)")
    if codings:
        return None
    if not lengths[0].isascii() or not lengths[0].isdigit() or len(lengths[0]) > 15:
        raise Unacceptable("answer_unframed", "a Content-Length that is no number")
    if int(lengths[0]) > request.max_answer:
        raise _too_large(request)
    return int(lengths[0])


def _too_large(request: Request) -> Unacceptable:
    return Unacceptable("answer_too_large", f"more than {request.max_answer} bytes")


class _Intake:
    """Collects one answer's body under its limit and deadline."""

    def __init__(self, response: httpx.Response, request: Request, *, until: float | None) -> None:
        self.declared = check_head(response, request)
        self.request, self.until, self.data = request, until, bytearray()

    def take(self, chunk: bytes) -> None:
        self.data += chunk
        if len(self.data) > self.request.max_answer:
            raise _too_large(self.request)
        if self.until is not None and time.monotonic() > self.until:
            raise Unanswered("answer_late", f"no whole answer within {self.request.deadline_s:g} s")
        if self.request.received is not None:
            self.request.received(len(self.data), self.declared or len(self.data))

    def answer(self, response: httpx.Response) -> Answer:
        if self.declared is not None and len(self.data) != self.declared:
            raise Unanswered(
                "answer_truncated", f"{len(self.data)} of {self.declared} bytes of the answer came"
            )
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(status=response.status_code, headers=headers, body=bytes(self.data))


def outcome_of(exc: Exception, *, answered: bool) -> Outcome:
    """What an exception of the transport means; `answered`: the head of the answer had come."""
    if isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return NotSent(*_why_not_connected(exc))
    if isinstance(exc, httpx.TimeoutException):
        return Unanswered("answer_late", "the server did not answer in time")
    if answered:
        return Unanswered("answer_truncated", "the connection ended before the answer did")
    return Unanswered("connection_lost", "the connection ended before an answer came")


def _why_not_connected(exc: BaseException) -> tuple[str, str]:
    """Code and words for a connection that was never made: nobody there, or TLS that is not ours."""
    seen: BaseException | None = exc
    while seen is not None:
        code = getattr(seen, "code", None)
        if isinstance(seen, ssl.SSLError) and isinstance(code, str):  # the gate's own refusal
            return code, str(seen.args[-1]) if seen.args else code
        if isinstance(seen, ssl.SSLError) and not isinstance(
            seen, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError
        ):
            return "channel_tls", f"a handshake that failed ({seen.reason or 'no TLS 1.3 server there'})"
        seen = seen.__cause__ or seen.__context__
    return "server_unreachable", "the server cannot be reached"


# --- blocking -----------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Link:
    """One endpoint's HTTP client, and the sockets of connections that a deadline may have to end."""

    client: httpx.Client
    sockets: list[socket.socket] = field(default_factory=list)


class _Watchdog:
    """Ends connections whose answer drips in byte by byte: each read alone would stay within its time-out."""

    def __init__(self, link: _Link, seconds: float) -> None:
        self._link = link
        self._timer = threading.Timer(seconds, self._bark)
        self._timer.daemon = True
        self.barked = False

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """httpx's `trace` extension: learns the socket of a new connection, which may come after the bark."""
        if event == "connection.start_tls.complete":
            self._link.sockets.append(info["return_value"].get_extra_info("socket"))
            if self.barked:
                self._bark()

    def _bark(self) -> None:
        self.barked = True
        for one in tuple(self._link.sockets):
            # Not `SSLSocket.shutdown`, which takes the TLS object from under the reading thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def __enter__(self) -> _Watchdog:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


class Transport:
    """Blocking driver: performs commands, owns the HTTP clients of all endpoints. Safe to share between
    threads.
    """

    def __init__(self, origin: Origin, *, timeout_s: float, fetcher: Fetcher | None = None) -> None:
        self._origin, self._timeout_s = origin, timeout_s
        self._fetcher: Fetcher = fetcher or Offline()
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._closed = False

    def perform(self, command: Command) -> Any:
        """Carries out one command of a flow."""
        match command:
            case Open():
                gate = Gate()
                link = _Link(httpx.Client(**_options(gate, self._origin, self._timeout_s)))
                with self._lock:
                    _check_open(self._closed)
                    self._links.add(link)
                return Endpoint(gate=gate, link=link)
            case Send(endpoint, request):
                return self._send(endpoint.link, request)
            case Sleep(seconds):
                time.sleep(seconds)
            case Fetch():
                return self._fetcher.fetch(command)
        return None

    def _send(self, link: _Link, request: Request) -> Answer:
        _check_open(self._closed)
        extensions = _extensions(request, self._timeout_s)
        if request.deadline_s is None:
            return self._exchange(link, request, extensions, until=None)
        until = time.monotonic() + request.deadline_s
        with _Watchdog(link, request.deadline_s) as dog:
            try:
                return self._exchange(link, request, {**extensions, "trace": dog.trace}, until=until)
            except Unanswered as exc:
                if dog.barked:
                    raise Unanswered(
                        "answer_late", f"no whole answer within {request.deadline_s:g} s"
                    ) from exc
                raise

    def _exchange(
        self, link: _Link, request: Request, extensions: dict[str, Any], *, until: float | None
    ) -> Answer:
        content = _progressing(request) if request.body.length else None
        built = link.client.build_request(
            request.method, target(request), headers=_headers(request), content=content, extensions=extensions
        )
        answered = False
        try:
            response = link.client.send(built, stream=True)
            answered = True
            with contextlib.closing(response):
                intake = _Intake(response, request, until=until)
                for chunk in response.iter_raw(CHUNK):
                    intake.take(chunk)
                return intake.answer(response)
        except httpx.TransportError as exc:
            raise outcome_of(exc, answered=answered) from exc

    def discard(self, endpoints: list[Endpoint]) -> None:
        """Closes the connections of endpoints that nobody uses any more."""
        for endpoint in endpoints:
            with self._lock:
                self._links.discard(endpoint.link)
            endpoint.link.client.close()

    def close(self) -> None:
        """Closes every connection; further commands fail."""
        with self._lock:
            self._closed = True
            links, self._links = self._links, set()
        for link in links:
            link.client.close()


def _check_open(closed: bool) -> None:
    if closed:
        raise InvalidRequest("this client was closed", code="client_closed")


def _progressing(request: Request) -> Iterator[bytes]:
    """The body's chunks; tells the caller how far it is, once each chunk was taken by the connection."""
    done = 0
    for chunk in request.body.chunks():
        yield chunk
        done += len(chunk)
        if request.sent is not None:
            request.sent(done, request.body.length)


# --- asyncio ------------------------------------------------------------------------------------------------


class AsyncTransport:
    """The same for asyncio. Fetching blocks, so it goes on in a thread."""

    def __init__(self, origin: Origin, *, timeout_s: float, fetcher: Fetcher | None = None) -> None:
        self._origin, self._timeout_s = origin, timeout_s
        self._fetcher: Fetcher = fetcher or Offline()
        self._links: set[httpx.AsyncClient] = set()
        self._closed = False

    async def perform(self, command: Command) -> Any:
        """Carries out one command of a flow."""
        match command:
            case Open():
                _check_open(self._closed)
                gate = Gate()
                link = httpx.AsyncClient(**_options(gate, self._origin, self._timeout_s))
                self._links.add(link)
                return Endpoint(gate=gate, link=link)
            case Send(endpoint, request):
                return await self._send(endpoint.link, request)
            case Sleep(seconds):
                await asyncio.sleep(seconds)
            case Fetch():
                return await asyncio.to_thread(self._fetcher.fetch, command)
        return None

    async def _send(self, link: httpx.AsyncClient, request: Request) -> Answer:
        _check_open(self._closed)
        extensions = _extensions(request, self._timeout_s)
        if request.deadline_s is None:
            return await self._exchange(link, request, extensions)
        try:
            async with asyncio.timeout(request.deadline_s):
                return await self._exchange(link, request, extensions)
        except TimeoutError as exc:
            raise Unanswered("answer_late", f"no whole answer within {request.deadline_s:g} s") from exc

    async def _exchange(
        self, link: httpx.AsyncClient, request: Request, extensions: dict[str, Any]
    ) -> Answer:
        content = _progressing_async(request) if request.body.length else None
        built = link.build_request(
            request.method, target(request), headers=_headers(request), content=content, extensions=extensions
        )
        answered = False
        try:
            response = await link.send(built, stream=True)
            answered = True
            async with contextlib.aclosing(response):
                intake = _Intake(response, request, until=None)
                async for chunk in response.aiter_raw(CHUNK):
                    intake.take(chunk)
                return intake.answer(response)
        except httpx.TransportError as exc:
            raise outcome_of(exc, answered=answered) from exc

    async def discard(self, endpoints: list[Endpoint]) -> None:
        """Closes the connections of endpoints that nobody uses any more."""
        for endpoint in endpoints:
            self._links.discard(endpoint.link)
            await endpoint.link.aclose()

    async def close(self) -> None:
        """Closes every connection; further commands fail."""
        self._closed = True
        links, self._links = self._links, set()
        for link in links:
            await link.aclose()


async def _progressing_async(request: Request) -> AsyncIterator[bytes]:
    """As `_progressing`; chunks are read in a thread, for they may come from a disk."""
    chunks, done = request.body.chunks(), 0
    read: Callable[[], bytes | None] = lambda: next(chunks, None)  # noqa: E731
    while (chunk := await asyncio.to_thread(read)) is not None:
        yield chunk
        done += len(chunk)
        if request.sent is not None:
            request.sent(done, request.body.length)


__all__ = ["AsyncTransport", "Origin", "Transport", "check_head", "outcome_of", "parse_origin"]
