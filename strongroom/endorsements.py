"""Fetching endorsements: Intel's collateral and AMD's certificates, from the vendors' services or caches of them
(docs/endorsements.md). Never by default: whoever is asked learns which platform you are talking to.

    from strongroom.endorsements import Cache, HttpFetcher

    fetcher = Cache("~/.cache/strongroom", HttpFetcher())
    strongroom.connect("https://host:8443", policy="policy.toml", fetcher=fetcher)

Rules of this file:

1. Nothing here is trusted by anybody. What comes back is signed and the verifier checks it; a hostile source, or a
   hostile cache, can only deny.
2. An address is a base that the user gave and a path of `services.plans`: nothing of the evidence gets into it but hex
   of a fixed size and names that are known. Redirects are not followed, proxies and other environment not looked at.
3. Everything is bounded: bytes, time, tries. A source that drips is cut off by a clock beside the reading thread.
4. No exception of the network, the disk or a parser leaves `fetch`: each becomes a `Failure` with a code.
"""

from __future__ import annotations

import contextlib
import http.cookiejar
import ipaddress
import os
import re
import socket
import ssl
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from strongroom.attest.collateral import MAX_BUNDLE
from strongroom.attest.gather import Document, Failure, Fetch, Fetched, Fetcher, Gathered, Offline, gather
from strongroom.attest.needs import Need
from strongroom.attest.services import (
    KDS,
    PCS,
    ROOT_LIST,
    Question,
    Reply,
    assemble,
    check_document,
    plans,
    valid_until,
)
from strongroom.errors import Error, InvalidRequest, MalformedInput, Refused, Unavailable

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_LIST: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
"""The one document that Intel has elsewhere; a PCCS has it beside the others."""
AMD_KDS: Final = "https://kdsintf.amd.com"
TIMEOUT_S: Final = 30.0
"""Seconds for everything that one `Fetch` names. AMD answers one question for a chip's certificate in ten seconds, so
that there is time for a second try.
"""
CONNECT_TIMEOUT_S: Final = 10.0
TRIES: Final = 3
"""Times that a question is asked where the service says that it is busy."""
FIRST_PAUSE_S: Final = 1.0
"""Seconds waited before the second try where the service does not say how long; twice that before the third."""
BUSY: Final = frozenset({429, 503})
USER_AGENT: Final = "strongroom"


def complete(
    fetcher: Fetcher,
    evidence_format: str,
    data: bytes,
    *,
    endorsements: tuple[tuple[str, bytes], ...],
    roots: tuple[str, ...],
    now: Callable[[], datetime],
) -> Gathered:
    """Returns `endorsements` with what was missing beside them for `data`, as far as `fetcher` has it; blocking."""
    asking = gather(evidence_format, data, endorsements=endorsements, roots=roots, now=now)
    try:
        request = next(asking)
        while True:
            request = asking.send(fetcher.fetch(request))
    except StopIteration as stop:
        gathered: Gathered = stop.value
        return gathered


# --- over the network ---------------------------------------------------------------------------------------


class HttpFetcher:
    """Asks Intel's PCS, or a PCCS, and AMD's KDS. `pccs`, `kds`: where, `https://host[:port][/path]`; `http` only on
    this machine. `timeout_s`: for everything that one `fetch` asks. `tls`: the context to use for `https`; else the
    usual public authorities. TLS keeps others from seeing what is asked; it decides nothing about what is answered.

    Raises:
        InvalidRequest: code `url_invalid`.
    """

    def __init__(
        self,
        *,
        pccs: str = INTEL_PCS,
        kds: str = AMD_KDS,
        timeout_s: float = TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bases = {PCS: parse_base(pccs), KDS: parse_base(kds)}
        self._timeout_s = timeout_s
        self._tls = tls
        self._monotonic, self._sleep = monotonic, sleep

    def fetch(self, request: Fetch) -> Fetched:
        """Asks for each need in turn, within one time for all."""
        documents, failures = [], []
        with _Deadline(self._timeout_s, self._monotonic) as deadline, self._client() as client:
            for need in request.needs:
                try:
                    data = self._obtain(client, need, deadline)
                    documents.append(Document(need, data, cached=False))
                except Error as error:
                    failures.append(Failure(need, error.code, error.message))
        return Fetched(tuple(documents), tuple(failures))

    def _obtain(self, client: httpx.Client, need: Need, deadline: _Deadline) -> bytes:
        *others, last = plans(need)
        for plan in others:
            try:
                return assemble(need, self._ask_all(client, plan, deadline))
            except Refused as refusal:
                if refusal.code != "fetch_status":
                    raise
        return assemble(need, self._ask_all(client, last, deadline))

    def _ask_all(
        self, client: httpx.Client, plan: tuple[Question, ...], deadline: _Deadline
    ) -> tuple[Reply, ...]:
        return tuple(self._ask(client, question, deadline) for question in plan)

    def _ask(self, client: httpx.Client, question: Question, deadline: _Deadline) -> Reply:
        """One question, again where the service is busy, for as long as there is time."""
        url = self._url(question)
        pause, tries_left = FIRST_PAUSE_S, TRIES
        while True:
            tries_left -= 1
            reply, wait = self._exchange(client, url, question, deadline)
            if reply is not None:
                return reply
            wait = pause if wait is None else wait
            if not tries_left or wait >= deadline.left():
                raise Unavailable(
                    f"{_host(url)} is busy; it may be asked again in {wait:g} s", code="fetch_busy"
                )
            self._sleep(wait)
            pause *= 2

    def _exchange(
        self, client: httpx.Client, url: str, question: Question, deadline: _Deadline
    ) -> tuple[Reply | None, float | None]:
        """The answer; or None, and the seconds to wait where the service said them."""
        left = deadline.left()
        if left <= 0:
            raise deadline.late(_host(url))
        timeout = httpx.Timeout(left, connect=min(left, CONNECT_TIMEOUT_S))
        extensions = {"timeout": timeout.as_dict(), "trace": deadline.trace}
        try:
            response = client.send(client.build_request("GET", url, extensions=extensions), stream=True)
            with contextlib.closing(response):
                if response.status_code in BUSY:
                    return None, _retry_after(response.headers.get("retry-after", ""))
                _check_head(response, question, _host(url))
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > question.limit:
                        raise _too_large(question, _host(url))
                    if deadline.left() <= 0:
                        raise deadline.late(_host(url))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as exc:
            if deadline.left() <= 0 or isinstance(exc, httpx.TimeoutException):
                raise deadline.late(_host(url)) from exc
            raise Unavailable(f"{_host(url)} {_why(exc)}", code="fetch_unreachable") from exc
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(bytes(body), headers), None

    def _url(self, question: Question) -> str:
        if question.service != ROOT_LIST:
            return self._bases[question.service] + question.path
        base = self._bases[PCS]
        return INTEL_ROOT_LIST if base == INTEL_PCS else base + question.path

    def _client(self) -> httpx.Client:
        nothing = http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
        return httpx.Client(
            verify=self._tls or public_authorities(),
            trust_env=False,
            follow_redirects=False,
            http2=False,
            cookies=http.cookiejar.CookieJar(policy=nothing),
            headers={"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"},
        )


@cache
def public_authorities() -> ssl.SSLContext:
    """Returns the context for services under the usual public authorities; reading those takes 0.1 s, once."""
    context = httpx.create_ssl_context(trust_env=False)
    # Not `SSLKEYLOGFILE`, which the standard library has put there.
    context.keylog_filename = None  # type: ignore[assignment]  # typeshed has str alone; None is its default
    return context


class _Deadline:
    """The time of one `fetch`. When it is over, connections end: each read alone of a source that drips byte by byte
    stays within its time-out.
    """

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self._seconds, self._monotonic = seconds, monotonic
        self._until = monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._over = False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def left(self) -> float:
        """Seconds that are left."""
        return 0.0 if self._over else self._until - self._monotonic()

    def late(self, host: str) -> Unavailable:
        """The failure."""
        return Unavailable(f"{host} did not answer within {self._seconds:g} s", code="fetch_late")

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """httpx's `trace` extension: learns the socket of a new connection, which may come after the end."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self._over:
                self._end()

    def _end(self) -> None:
        self._over = True
        for one in tuple(self._sockets):
            # Not `SSLSocket.shutdown`, which takes the TLS object from under the reading thread.
            with contextlib.suppress(OSError, ValueError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def parse_base(url: str) -> str:
    """`https://host[:port][/path]`, without a slash at its end; `http` only where the host is this machine. The path of
    the API, as PCCS clients are configured with it, may stand behind it.

    Raises:
        InvalidRequest: code `url_invalid`.
    """

    def refuse(why: str) -> InvalidRequest:
        return InvalidRequest(f"the address of a service: {why}", code="url_invalid")

    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as exc:
        raise refuse("no valid host and port") from exc
    if not host or port == 0 or parts.query or parts.fragment or "@" in parts.netloc:
        raise refuse("expected https://host[:port][/path] and nothing else")
    if re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", parts.path) is None or ".." in parts.path.split("/"):
        raise refuse("expected a path of letters, digits and . _ ~ -")
    if any(character.isspace() for character in url):
        raise refuse("no valid host and port")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise refuse("expected https (http only for this machine)")
    path = re.sub(r"/(sgx|tdx)/certification/v[34]$", "", parts.path.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc}{path}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(url: str) -> str:
    """The host of an address, for a message."""
    return urlsplit(url).netloc


def _check_head(response: httpx.Response, question: Question, host: str) -> None:
    """Whether the body of an answer may be read at all."""
    status = response.status_code
    if 300 <= status < 400:
        raise Refused(f"{host}: a redirect ({status}); none is followed", code="fetch_redirect")
    if status >= 500:
        raise Unavailable(f"{host}: status {status}", code="fetch_busy")
    if status != 200:
        raise Refused(f"{host}: status {status}", code="fetch_status")
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refused(f"{host}: a content coding that was not asked for", code="fetch_encoded")
    declared = response.headers.get("content-length", "0")
    if re.fullmatch(r"[0-9]{1,15}", declared) is None or int(declared) > question.limit:
        raise _too_large(question, host)


def _too_large(question: Question, host: str) -> Refused:
    return Refused(f"{host}: more than {question.limit} bytes", code="fetch_too_large")


def _retry_after(value: str) -> float | None:
    """The seconds that a service says to wait; None where it does not say them as a number."""
    return float(value) if re.fullmatch(r"[0-9]{1,6}", value.strip()) else None


def _why(exc: BaseException) -> str:
    """In our own words what kept a connection from being made or ended it."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return "shows a certificate that no public authority vouches for"
        if isinstance(seen, ssl.SSLError):
            return "does not speak TLS as we do"
        seen = seen.__cause__ or seen.__context__
    return (
        "cannot be reached"
        if isinstance(exc, httpx.ConnectError)
        else "ended the connection, or its answer is no HTTP"
    )


# --- on disk ------------------------------------------------------------------------------------------------


class Cache:
    """Keeps documents in a directory: one file each, named by its need. Collateral and revocation lists are used until
    they state that the next one comes, certificates for ever. Whatever else lies in a file is a reason to ask `source`.

    Who can write there can deny, for as long as `source` does not answer, and see which platforms you talked to.

    Raises:
        InvalidRequest: code `cache_unusable`, the directory is none and cannot be made.
    """

    def __init__(self, directory: str | os.PathLike[str], source: Fetcher) -> None:
        self._directory = Path(directory).expanduser()
        self._source = source
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise InvalidRequest(
                f"the cache {self._directory} is no directory and cannot be made", code="cache_unusable"
            ) from exc

    def fetch(self, request: Fetch) -> Fetched:
        """Looks into the directory first, unless `request` is for fresh documents; keeps what `source` gives."""
        held = () if request.fresh else tuple(self._held(request))
        have = {document.need for document in held}
        rest = tuple(need for need in request.needs if need not in have)
        if not rest:
            return Fetched(held, ())
        answer = self._source.fetch(Fetch(rest, request.now, request.fresh))
        for document in answer.documents:
            self._keep(document)
        return Fetched(held + answer.documents, answer.failures)

    def _held(self, request: Fetch) -> Iterator[Document]:
        for need in request.needs:
            with contextlib.suppress(OSError, MalformedInput):
                data = _read(self._path(need))
                check_document(need, data)
                until = valid_until(need, data)
                if until is None or request.now < until:
                    yield Document(need, data, cached=True)

    def _keep(self, document: Document) -> None:
        """Writes a file whole or not at all. A disk that is full costs time at the next start, nothing else."""
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(dir=self._directory, prefix=".new-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(document.data)
                os.replace(name, self._path(document.need))  # noqa: PTH105 - one call, and atomic
            except OSError:
                os.unlink(name)  # noqa: PTH108
                raise

    def _path(self, need: Need) -> Path:
        return self._directory / need.key


def _read(path: Path) -> bytes:
    """The bytes of a regular file; not of a link, and without waiting for the other end of a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a file")
        data = file.read(MAX_BUNDLE + 1)
    if len(data) > MAX_BUNDLE:
        raise OSError("larger than any document")
    return data


__all__ = ["AMD_KDS", "INTEL_PCS", "Cache", "Fetcher", "HttpFetcher", "Offline", "complete", "parse_base"]
