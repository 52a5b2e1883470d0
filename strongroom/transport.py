"""Carries out the commands of `flow`, blocking: one gate and one set of connections for each endpoint.

Rules
  - Everything that decides trust is in the `SSLContext` that the gate gives out (`ratls`); `links` only moves bytes on
    connections that it let pass, and `http1` only says what they mean.
  - Nothing of the environment takes part: no proxies, no `.netrc`, no cookies, no redirects, no HTTP/2.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from strongroom.attest.gather import Fetcher, Offline
from strongroom.calls import Answer, Request
from strongroom.errors import InvalidRequest
from strongroom.flow import Command, Endpoint, Fetch, Open, Send, Sleep
from strongroom.links import Link, Origin
from strongroom.ratls import Gate

_NAME = re.compile(r"(?!-)[a-z0-9_.-]{1,253}")
HTTPS_PORT = 443


# --- where ------------------------------------------------------------------------------------------------------------


def parse_origin(url: str) -> Origin:
    """`https://host[:port]`.

    Raises:
        InvalidRequest: no scheme or another, or a path, query, user or fragment (code `url_invalid`).
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as exc:
        raise _no_host() from exc
    if parts.scheme != "https" or "://" not in url:
        got = f"the scheme {parts.scheme!r}" if "://" in url else "no scheme"
        raise InvalidRequest(f"expected https://host:port, got {got}", code="url_invalid")
    rest = (parts.path not in {"", "/"}, parts.query, parts.fragment, "@" in parts.netloc, not host)
    if any(rest) or port == 0:
        raise InvalidRequest("expected https://host:port and nothing behind or before it", code="url_invalid")
    host = _host(host or "", bracketed="[" in parts.netloc)
    shown = f"[{host}]" if ":" in host else host
    port = HTTPS_PORT if port is None else port
    authority = shown if port == HTTPS_PORT else f"{shown}:{port}"
    return Origin(url=f"https://{parts.netloc}", host=host, port=port, authority=authority)


def _host(host: str, *, bracketed: bool) -> str:
    """A name as it is looked up, in ASCII, or an address."""
    try:
        if bracketed:
            return str(ipaddress.IPv6Address(host))
        if not host.isascii():
            import idna  # comes with httpx; hardly anybody needs it

            host = idna.encode(host).decode("ascii")
    except ValueError as exc:  # `idna.IDNAError` and UnicodeError are of this kind
        raise _no_host() from exc
    if _NAME.fullmatch(host) is None:
        raise _no_host()
    return host


def _no_host() -> InvalidRequest:
    return InvalidRequest("the server's URL has no valid host and port", code="url_invalid")


# --- blocking ---------------------------------------------------------------------------------------------------------


class Transport:
    """Blocking driver: performs commands, owns the connections of all endpoints. Safe to share between
    threads.
    """

    def __init__(self, origin: Origin, *, timeout_s: float, fetcher: Fetcher | None = None) -> None:
        self._origin, self._timeout_s = origin, timeout_s
        self._fetcher: Fetcher = fetcher or Offline()
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._closed = False

    def perform(self, command: Command) -> Any:
        """Carries out one command of a flow."""
        match command:
            case Send(endpoint, request):
                return self._send(endpoint.link, request)
            case Open():
                gate = Gate()
                link = Link(gate, self._origin, timeout_s=self._timeout_s)
                with self._lock:
                    check_open(self._closed)
                    self._links.add(link)
                return Endpoint(gate=gate, link=link)
            case Sleep(seconds):
                time.sleep(seconds)
            case Fetch():
                return self._fetcher.fetch(command)
        return None

    def _send(self, link: Link, request: Request) -> Answer:
        check_open(self._closed)
        return link.exchange(request)

    def discard(self, endpoints: list[Endpoint]) -> None:
        """Closes the connections of endpoints that nobody uses any more."""
        for endpoint in endpoints:
            with self._lock:
                self._links.discard(endpoint.link)
            endpoint.link.close()

    def close(self) -> None:
        """Closes every connection; further commands fail."""
        with self._lock:
            self._closed = True
            links, self._links = self._links, set()
        for link in links:
            link.close()


def check_open(closed: bool) -> None:
    """Raises `InvalidRequest` (code `client_closed`) where a client was closed."""
    if closed:
        raise InvalidRequest("this client was closed", code="client_closed")


__all__ = ["Origin", "Transport", "check_open", "parse_origin"]
