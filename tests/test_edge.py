"""The HTTP edge over real sockets: the ambiguous is never executed, the slow or excessive cut off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import edge, listener, ratls
from strongroom.attest.evidence import Evidence
from strongroom.edge import EdgeLimits, Refusal, check_head
from strongroom.errors import CODES

LIMITS = EdgeLimits(
    connections=8,
    header_bytes=8192,
    header_deadline_s=5,
    body_idle_s=5,
    send_idle_s=5,
    keep_alive_s=5,
    linger_s=0.05,
)
IDENTITY = ratls.new_server_identity(
    hosts=("localhost", "127.0.0.1"),
    evidence_format="sim",
    evidence=lambda data: Evidence("sim", data, ()),
    now=datetime.now(UTC),
    lifetime_s=3600,
)


class World:
    """A served application that records what reached it, and ways to speak to it."""

    def __init__(self, limits: EdgeLimits) -> None:
        self.limits = limits
        self.executed: list[str] = []
        self.bodies: list[bytes] = []
        self.facts: list[dict[str, Any]] = []
        self.disconnects = 0
        self.connections: list[edge.Connection] = []
        self.gate = threading.Event()  # what /wait waits for
        self.epochs = ratls.EpochListener(ratls.server_context(IDENTITY))
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.server: listener.EdgeServer | None = None

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Echoes the length of what it is given; some paths misbehave."""
        path = scope["path"]
        self.executed.append(f"{scope['method']} {path}")
        self.connections.append(scope["state"]["connection"])
        self.facts.append(scope["strongroom.facts"])
        if path == "/early":
            await answer(send, 413, b"too much")
            return
        if path == "/wait":
            await self.until_gate()
        if path == "/slow-reader":
            await asyncio.sleep(0.6)
        if path == "/boom":
            raise ValueError("plaintext-canary")
        if path == "/short":
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]}
            )
            await send({"type": "http.response.body", "body": b"half"})
            return
        if path == "/big":
            await answer(send, 200, b"x" * (64 << 20))
            return
        if path == "/half":
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"800000")]}
            )
            await send({"type": "http.response.body", "body": b"x" * 400_000, "more_body": True})
            await self.until_gate()
            return
        if path == "/unframed":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"framed anyway"})
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(bytes(body))
        await answer(send, 200, b"%d" % len(body))

    async def until_gate(self) -> None:
        """Waits for the test."""
        while not self.gate.is_set():
            await asyncio.sleep(0.01)

    def open(self) -> int:
        """How many connections the server has."""
        assert self.server is not None
        return len(self.server.crowd.connections)

    def heads(self) -> int:
        """How many connections have begun a request whose head is not complete."""
        assert self.server is not None
        return sum(one._phase is edge._Phase.HEAD for one in tuple(self.server.crowd.connections))

    def connect(self) -> ssl.SSLSocket:
        """A TLS connection of a well-behaved stack."""
        context = ratls.Gate.pinned(ratls.spki_sha256(IDENTITY.certificate_der)).client_context()
        return context.wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), 5), server_hostname="localhost"
        )

    def say(self, *parts: bytes, pause: float = 0) -> bytes:
        """Sends `parts` and returns everything that comes back until the end of the connection."""
        with self.connect() as tls:
            try:
                for part in parts:
                    tls.sendall(part)
                    time.sleep(pause)
            except OSError:
                pass  # cut off while we spoke: what was answered still counts
            return drain(tls)

    def client(self) -> httpx.Client:
        """An HTTP client for this server."""
        gate = ratls.Gate.pinned(ratls.spki_sha256(IDENTITY.certificate_der))
        return httpx.Client(
            verify=gate.client_context(),
            trust_env=False,
            base_url=f"https://127.0.0.1:{self.port}",
            timeout=10,
        )


async def answer(send: Any, status: int, body: bytes) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]}
    )
    await send({"type": "http.response.body", "body": body})


def drain(tls: socket.socket) -> bytes:
    """Everything until the connection ends, in whichever way."""
    received = b""
    try:
        while piece := tls.recv(65536):
            received += piece
    except OSError:
        pass
    return received


@contextmanager
def world(**changes: Any) -> Iterator[World]:
    """Runs a server with `LIMITS` and `changes` in a thread of its own."""
    here = World(replace(LIMITS, **changes))
    here.server = server = listener.EdgeServer(
        here.app, sock=here.sock, context=here.epochs.context, limits=here.limits, shutdown_s=1
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield here
    finally:
        here.gate.set()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Returns once `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def served() -> Iterator[World]:
    """One server for the tests that only talk."""
    with world() as here:
        yield here


def code_of(response: bytes) -> str:
    """The code of the one problem document that `response` is."""
    head, _, body = response.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert b"content-type: application/problem+json" in lines
    assert b"content-length: %d" % len(body) in lines
    assert b"connection: close" in lines
    document = json.loads(body)
    assert document["status"] == int(head.split()[1])
    return str(document["code"])


HOST = b"Host: localhost\r\n"
GET = b"GET /x HTTP/1.1\r\n" + HOST
POST = b"POST /x HTTP/1.1\r\n" + HOST
SMUGGLED = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"


# --- what is accepted ---------------------------------------------------------------------------------------


def test_requests_are_served_over_one_kept_connection(served: World) -> None:
    """Several requests on one connection see the same `Connection`; another connection sees another."""
    served.connections.clear()
    with served.client() as client:
        assert client.get("/a").text == "0"
        assert client.post("/b", content=b"12345").text == "5"
        assert client.put("/c", content=iter([b"x" * 70_000, b"y"])).text == "70001"  # chunked
    with served.client() as client:
        client.get("/d")
    first, second, third, other = served.connections
    assert first is second is third and other.id != first.id
    assert first.epoch is served.epochs.current and first.peer == "127.0.0.1"


def one_answer(tls: ssl.SSLSocket) -> bytes:
    """The next answer of a connection that stays, which is short."""
    received = b""
    while not received.endswith((b"\r\n\r\n5", b"\r\n\r\n0")):
        piece = tls.recv(4096)
        assert piece, received
        received += piece
    return received


def test_a_head_that_comes_again_is_not_read_again(served: World) -> None:
    """However its bytes and those of the body are cut; what follows from a head is kept for that head alone."""
    again, other = (
        POST + b"Content-Length: 5\r\n\r\n",
        POST.replace(b"/x", b"/y") + b"Content-Length: 5\r\n\r\n",
    )
    served.executed.clear(), served.bodies.clear(), served.facts.clear()
    with served.connect() as tls:
        for parts in (
            (again + b"first",), (again + b"secon",), (again, b"third"), (again + b"fo", b"ur", b"t"),
            (again[:20], again[20:] + b"fifth"), (other + b"sixth",), (again + b"seven",), (again + b"eight",),
        ):  # fmt: skip
            for part in parts:
                tls.sendall(part)
                time.sleep(0.01)
            assert b"200" in one_answer(tls)
    assert served.executed == ["POST /x"] * 5 + ["POST /y"] + ["POST /x"] * 2
    assert served.bodies == [b"first", b"secon", b"third", b"fourt", b"fifth", b"sixth", b"seven", b"eight"]
    kept = [id(facts) for facts in served.facts]
    assert len(set(kept[:4])) == 1 and kept[6] == kept[7]  # the same head, byte for byte, each in one piece
    assert len({kept[0], kept[4], kept[5], kept[6]}) == 4


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\n12345\r\n0\r\n\r\n"),
        (b"\r\n\r\n" + POST + b"Content-Length: 5\r\n\r\n", b"12345"),
    ],
    ids=["chunked", "blank lines in front"],
)
def test_heads_that_are_read_each_time(served: World, head: bytes, body: bytes) -> None:
    """Those that are not all there is to say of their request."""
    served.facts.clear()
    with served.connect() as tls:
        for _ in range(2):
            tls.sendall(head + body)
            assert b"200" in one_answer(tls)
    first, second = served.facts
    assert first is not second


def test_a_known_head_opens_no_way_around_the_rules(served: World) -> None:
    """What comes behind an unanswered request is not executed, though its head is known; nor is half of one."""
    whole = POST + b"Content-Length: 5\r\n\r\n12345"
    for behind in (whole, SMUGGLED, b"?"):
        served.executed.clear()
        with served.connect() as tls:
            tls.sendall(whole)
            assert b"200" in one_answer(tls)
            tls.sendall(whole + behind)
            assert drain(tls).count(b"HTTP/1.1 200") == 1
        assert served.executed == ["POST /x"] * 2
    served.executed.clear()
    with served.connect() as tls:
        for part in (whole, whole[:-1] + b"6"):
            tls.sendall(part)
            assert b"200" in one_answer(tls)
        broken = whole.replace(b"Content-Length: 5", b"Content-Length: x")
        tls.sendall(broken)
        assert code_of(drain(tls)) == "http_content_length"
    assert served.executed == ["POST /x"] * 2


def test_a_large_body_arrives_whole(served: World) -> None:
    """3 MB in one request, read by the application with back-pressure."""
    body = bytes(range(256)) * 12_000
    with served.client() as client:
        assert client.post("/x", content=body).text == str(len(body))
    assert served.bodies[-1] == body


def test_expect_100_continue_is_answered(served: World) -> None:
    """The only expectation that exists."""
    with served.connect() as tls:
        tls.sendall(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        assert tls.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        tls.sendall(b"abc")
        assert drain(tls).endswith(b"\r\n\r\n3")


@pytest.mark.slow
def test_a_large_answer_arrives_whole(served: World) -> None:
    """64 MB, written in pieces."""
    with served.client() as client:
        assert len(client.get("/big").content) == 64 << 20


def test_an_answer_without_framing_is_framed(served: World) -> None:
    """What an application forgets: a client could not tell a cut answer from a whole one."""
    with served.client() as client:
        response = client.get("/unframed")
    assert response.headers["transfer-encoding"] == "chunked" and response.text == "framed anyway"


def test_blank_lines_before_a_request_are_skipped(served: World) -> None:
    """As RFC 9112 section 2.2 asks of servers."""
    assert served.say(b"\r\n\r\n" + GET + b"Connection: close\r\n\r\n").endswith(b"\r\n\r\n0")


# --- one meaning only ---------------------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
AMBIGUOUS = {
    "smuggled behind Content-Length and chunked": (
        POST + b"Content-Length: 4\r\n" + CHUNKED + b"0\r\n\r\n" + SMUGGLED,
        "http_content_length",
    ),
    "smuggled behind chunked and Content-Length": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "http_content_length",
    ),
    "bare LF everywhere": (
        b"POST /x HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n" + SMUGGLED,
        "http_malformed",
    ),
    "bare LF after one field": (
        b"POST /x HTTP/1.1\r\nHost: localhost\nContent-Length: 0\r\n\r\n" + SMUGGLED,
        "http_malformed",
    ),
    "bare CR within a field": (b"GET /x HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n", "http_malformed"),
    "folded field (obs-fold)": (GET + b"X: a\r\n b\r\n\r\n" + SMUGGLED, "http_malformed"),
    "NUL in a field": (GET + b"X: a\0b\r\n\r\n", "http_malformed"),
    "space in a field name": (GET + b"X Y: a\r\n\r\n", "http_malformed"),
    "space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "http_malformed"),
    "line without a colon": (GET + b"XY\r\n\r\n", "http_malformed"),
    "not HTTP": (b"\x16\x03\x01\x00\x05hello\r\n\r\n", "http_malformed"),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http_malformed"),
    "two Hosts": (GET + HOST + b"\r\n", "http_host"),
    "no Host": (b"GET /x HTTP/1.1\r\n\r\n", "http_host"),
    "empty Host": (b"GET /x HTTP/1.1\r\nHost:\r\nX: y\r\n\r\n", "http_host"),
    "Host with user": (b"GET /x HTTP/1.1\r\nHost: a@b\r\n\r\n", "http_host"),
    "gzip coding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "http_transfer_encoding"),
    "identity coding": (POST + b"Transfer-Encoding: identity\r\n\r\n", "http_transfer_encoding"),
    "unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n", "http_transfer_encoding"),
    "coding with a control character": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", "http_malformed"),
    "two codings": (POST + b"Transfer-Encoding: chunked\r\n" + CHUNKED, "http_transfer_encoding"),
    "two lengths": (POST + b"Content-Length: 0\r\nContent-Length: 30\r\n\r\n", "http_content_length"),
    "list of lengths": (POST + b"Content-Length: 0, 0\r\n\r\n", "http_content_length"),
    "signed length": (POST + b"Content-Length: +1\r\n\r\nx", "http_content_length"),
    "hex length": (POST + b"Content-Length: 0x1\r\n\r\nx", "http_content_length"),
    "huge length": (POST + b"Content-Length: 9999999999999999999\r\n\r\n", "http_content_length"),
    "chunk extension with LF": (POST + CHUNKED + b"1;a\nx\r\n0\r\n\r\n", "http_malformed"),
    "chunk size in words": (POST + CHUNKED + b"zz\r\n", "http_malformed"),
    "chunk size that overflows": (POST + CHUNKED + b"fffffffffffffffff\r\n", "http_malformed"),
    "chunk longer than it says": (POST + CHUNKED + b"1\r\nab\r\n0\r\n\r\n", "http_malformed"),
    "trailer": (POST + CHUNKED + b"1\r\na\r\n0\r\nAuthorization: x\r\n\r\n", "http_trailers"),
    "GET with a body": (GET + b"Content-Length: 3\r\n\r\nabc", "http_body_unexpected"),
    "GET with chunks": (GET + CHUNKED + b"0\r\n\r\n", "http_body_unexpected"),
    "HTTP/1.0": (b"GET /x HTTP/1.0\r\n" + HOST + b"\r\n", "http_version"),
    "HTTP/0.9": (b"GET /x\r\n\r\n", "http_version"),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", "http_method"),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", "http_target"),
    "absolute target": (b"GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n", "http_target"),
    "target like a host": (b"GET //a/x HTTP/1.1\r\nHost: a\r\n\r\n", "http_target"),
    "fragment": (b"GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n", "http_target"),
    "half an escape": (b"GET /%z HTTP/1.1\r\nHost: a\r\n\r\n", "http_target"),
    "websocket": (GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "http_upgrade"),
    "h2c": (GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "http_upgrade"),
    "unknown expectation": (POST + b"Expect: 200-maybe\r\nContent-Length: 1\r\n\r\n", "http_expect"),
    "two credentials": (GET + b"Authorization: a\r\nAuthorization: b\r\n\r\n", "http_duplicate_header"),
    "two formats": (GET + b"Strongroom-Format: a\r\nStrongroom-Format: b\r\n\r\n", "http_duplicate_header"),
    "long target": (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", "http_target_too_long"),
    "65 fields": (GET + b"X: y\r\n" * 64 + b"\r\n", "http_too_many_headers"),
    "large field": (GET + b"X: " + b"y" * 9000 + b"\r\n\r\n", "http_head_too_large"),
    "large fields": (GET + (b"X: " + b"y" * 1000 + b"\r\n") * 9 + b"\r\n", "http_head_too_large"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_request_with_two_meanings_is_refused_and_never_executed(served: World, name: str) -> None:
    """Each vector is wrong in one respect; the application does not see it, nor what was hidden behind it."""
    request, code = AMBIGUOUS[name]
    served.executed.clear()
    assert code_of(served.say(request)) == code
    assert code in CODES
    assert served.executed == []


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_refusals_do_not_depend_on_how_bytes_are_cut(served: World, cut: int) -> None:
    """The smuggling vector in pieces."""
    request, code = AMBIGUOUS["smuggled behind Content-Length and chunked"]
    served.executed.clear()
    pieces = [request[i : i + cut] for i in range(0, len(request), cut)]
    assert code_of(served.say(*pieces)) == code
    assert served.executed == []


@pytest.mark.parametrize(
    "first", [GET + b"\r\n", POST + b"Content-Length: 0\r\n\r\n", GET + b"Connection: close\r\n\r\n"]
)
def test_what_comes_behind_an_unanswered_request_is_not_executed(served: World, first: bytes) -> None:
    """The first is answered and the connection closed: one answer, one execution."""
    served.executed.clear()
    response = served.say(first + SMUGGLED)
    assert response.count(b"HTTP/1.1") == 1 and b"connection: close" in response
    assert served.executed == [f"{first.split()[0].decode()} /x"]


@pytest.mark.slow
def test_a_request_that_comes_while_another_runs_is_not_executed() -> None:
    """The same in two segments, with the application at work in between."""
    with world() as here, here.connect() as tls:
        tls.sendall(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        wait_for(lambda: bool(here.executed))
        tls.sendall(SMUGGLED)
        time.sleep(0.1)
        here.gate.set()
        assert drain(tls).count(b"HTTP/1.1 200") == 1
        assert here.executed == ["GET /wait"]


def test_a_body_that_breaks_ends_the_request(served: World) -> None:
    """The application is told that the peer is gone; the refusal is the only answer."""
    served.executed.clear()
    before = served.disconnects
    response = served.say(POST + CHUNKED + b"3\r\nabc\r\n", b"junk\r\n", pause=0.1)
    assert code_of(response) == "http_malformed"
    wait_for(lambda: served.disconnects == before + 1)
    assert served.executed == ["POST /x"]


# --- sizes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "start", [GET + b"X: ", GET, b"GET /", b"", POST + CHUNKED + b"0\r\nT: ", POST + CHUNKED + b"1;"]
)
def test_a_flood_is_cut_off_early(served: World, start: bytes) -> None:
    """300 MB as one field, many fields, target, blank lines, trailer or chunk extension: a few MB are taken
    at most.
    """
    piece = {GET: b"X: y\r\n" * 10_000, b"": b"\r\n" * 30_000}.get(start, b"y" * 60_000)
    sent = 0
    with served.connect() as tls:
        tls.settimeout(5)
        try:
            tls.sendall(start)
            while sent < 300_000_000:
                tls.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        assert sent < 12_000_000, sent
    print(f"{start!r}: {sent} bytes sent before the cut")


def test_a_body_that_is_mostly_framing_is_refused(served: World) -> None:
    """Chunk extensions larger than a head may be."""
    response = served.say(POST + CHUNKED + (b"1;" + b"e" * 100_000 + b"\r\na\r\n") * 2 + b"0\r\n\r\n")
    assert code_of(response) == "http_chunk_overhead"


# --- time ---------------------------------------------------------------------------------------------------


def timed(here: World, *parts: bytes, pause: float = 0) -> tuple[bytes, float]:
    start = time.monotonic()
    response = here.say(*parts, pause=pause)
    return response, time.monotonic() - start


@pytest.fixture(scope="module")
def impatient() -> Iterator[World]:
    """A server with small deadlines, each different, so that a test sees which one struck."""
    with world(
        header_deadline_s=0.3,
        body_idle_s=0.5,
        first_byte_s=0.2,
        keep_alive_s=0.25,
        handshake_s=0.4,
        send_idle_s=0.6,
    ) as here:
        yield here


@pytest.mark.slow
def test_a_fresh_connection_that_says_nothing_is_closed(impatient: World) -> None:
    """After `first_byte_s`, without a word: there is no request to answer."""
    response, seconds = timed(impatient)
    assert response == b"" and 0.15 < seconds < 2


@pytest.mark.slow
def test_a_slow_head_is_closed(impatient: World) -> None:
    """A byte now and then does not prolong the deadline."""
    impatient.executed.clear()
    slow = GET + b"X: " + b"y" * 30 + b"\r\n\r\n"
    response, seconds = timed(impatient, *[slow[i : i + 1] for i in range(len(slow))], pause=0.03)
    assert b"408" in response and b"http_head_timeout" in response
    assert seconds < 4 and impatient.executed == []


@pytest.mark.slow
def test_blank_lines_do_not_keep_a_connection_open(impatient: World) -> None:
    """They count as the beginning of a head."""
    response, _ = timed(impatient, *[b"\r\n"] * 20, pause=0.03)
    assert b"http_head_timeout" in response


@pytest.mark.slow
@pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\n", CHUNKED])
def test_a_body_that_stops_is_closed(impatient: World, framing: bytes) -> None:
    """After `body_idle_s`; the application sees a lost peer."""
    before = impatient.disconnects
    response, seconds = timed(impatient, POST + framing)
    assert code_of(response) == "http_body_timeout" and 0.4 < seconds < 3
    wait_for(lambda: impatient.disconnects == before + 1)


@pytest.mark.slow
def test_a_body_of_chunk_extensions_makes_no_progress(impatient: World) -> None:
    """Bytes that are not body do not count."""
    response, _ = timed(impatient, POST + CHUNKED + b"1;", *[b"e"] * 30, pause=0.05)
    assert code_of(response) == "http_body_timeout"


@pytest.mark.slow
def test_a_body_that_trickles_within_the_deadline_is_taken(impatient: World) -> None:
    """Slow is not stopped: the rate is judged elsewhere."""
    parts = [b"1\r\na\r\n"] * 8 + [b"0\r\n\r\n"]
    assert impatient.say(POST + b"Connection: close\r\n" + CHUNKED, *parts, pause=0.1).endswith(b"8")


@pytest.mark.slow
def test_a_slow_application_is_not_held_against_the_peer(impatient: World) -> None:
    """While the application does not read, the peer cannot send, and no deadline runs against it."""
    body = b"x" * 3_000_000
    with impatient.client() as client:
        assert client.post("/slow-reader", content=body).text == str(len(body))


@pytest.mark.slow
def test_an_idle_kept_connection_is_closed(impatient: World) -> None:
    """After `keep_alive_s`."""
    response, seconds = timed(impatient, GET + b"\r\n")
    assert response.startswith(b"HTTP/1.1 200") and 0.2 < seconds < 2


@pytest.mark.slow
def test_a_peer_that_takes_nothing_is_cut_off(impatient: World) -> None:
    """64 MB are asked for and never read: connection and buffers are gone after `send_idle_s`."""
    with impatient.connect() as tls:
        tls.sendall(b"GET /big HTTP/1.1\r\n" + HOST + b"\r\n")
        wait_for(lambda: impatient.open() == 1)
        wait_for(lambda: impatient.open() == 0)


@pytest.mark.slow
def test_half_an_answer_that_is_not_taken_does_not_stay(impatient: World) -> None:
    """Too little to stop the application, too much for the kernel, the peer's sending side closed, and the
    application still at work: no other deadline would end this.
    """
    impatient.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
    tcp = socket.socket()
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    tcp.connect(("127.0.0.1", impatient.port))
    tls = ratls.Gate().client_context().wrap_socket(tcp)
    tls.sendall(b"GET /half HTTP/1.1\r\n" + HOST + b"\r\n")
    wait_for(lambda: impatient.open() == 1)
    with socket.socket(fileno=tls.detach()) as silent:
        silent.shutdown(socket.SHUT_WR)
        wait_for(lambda: impatient.open() == 0)


@pytest.mark.slow
def test_a_peer_that_leaves_without_reading_is_cut_off(impatient: World) -> None:
    """The same with the sending side closed: the kernel would keep trying for ever."""
    tls = impatient.connect()
    tls.sendall(b"GET /big HTTP/1.1\r\n" + HOST + b"\r\n")
    wait_for(lambda: impatient.open() == 1)
    with socket.socket(fileno=tls.detach()) as tcp:
        tcp.shutdown(socket.SHUT_WR)
        wait_for(lambda: impatient.open() == 0)


# --- number -------------------------------------------------------------------------------------------------


def busy(here: World) -> ssl.SSLSocket:
    """A connection with a request under way."""
    tls = here.connect()
    tls.sendall(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
    return tls


@pytest.mark.slow
def test_connections_are_capped_with_an_answer() -> None:
    """The one above the cap is answered 503 with Retry-After; when another has left, there is room again."""
    with world(connections=2) as here:
        first, second = busy(here), busy(here)
        wait_for(lambda: len(here.executed) == 2)
        refused = here.say(GET + b"\r\n")
        assert code_of(refused) == "http_connection_cap" and b"retry-after: 1" in refused
        assert len(here.executed) == 2
        first.close()
        wait_for(lambda: here.open() == 1)
        assert here.say(GET + b"Connection: close\r\n\r\n").endswith(b"0")
        second.close()


def test_idle_connections_lock_nobody_out() -> None:
    """Whoever holds all places without a request under way gives them up, the longest idle first."""

    def ask(tls: ssl.SSLSocket) -> None:
        tls.sendall(GET + b"\r\n")
        answer = b""
        while not answer.endswith(b"\r\n\r\n0"):
            piece = tls.recv(4096)
            assert piece
            answer += piece

    with world(connections=3) as here:
        idle = [here.connect() for _ in range(2)]
        ask(idle[0])  # so the other is now idle for longer
        working = busy(here)
        wait_for(lambda: here.open() == 3 and len(here.executed) == 2)
        assert here.say(GET + b"Connection: close\r\n\r\n").endswith(b"0")
        assert drain(idle[1]) == b""
        ask(idle[0])
        for tls in (*idle, working):
            tls.close()


def test_half_heads_lock_nobody_out() -> None:
    """Whoever holds all places with requests that never get whole gives them up, the first that began first."""
    with world(connections=2) as here, contextlib.ExitStack() as stack:
        halves: list[ssl.SSLSocket] = []
        for _ in range(2):
            tls = stack.enter_context(here.connect())
            tls.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"X-Slow: ")
            halves.append(tls)
            wait_for(lambda: here.heads() == len(halves))
        assert here.say(GET + b"Connection: close\r\n\r\n").endswith(b"0")
        assert drain(halves[0]) == b""
        halves[1].sendall(b"1\r\nConnection: close\r\n\r\n")
        assert drain(halves[1]).endswith(b"0")


def test_who_broke_the_rules_locks_nobody_out() -> None:
    """A connection that was refused in the middle of a body, and stays, has no request under way any more."""
    with world(connections=1, linger_s=5) as here, here.connect() as tls:
        tls.sendall(POST + CHUNKED + b"zz\r\n")
        refused = b""
        while b'"code"' not in refused:
            refused += tls.recv(4096)
        assert code_of(refused) == "http_malformed"
        assert here.say(GET + b"Connection: close\r\n\r\n").endswith(b"0")


@contextmanager
def half_shaken(here: World) -> Iterator[tuple[socket.socket, bytes]]:
    """A connection without the last bytes of its handshake, and these."""
    context = ratls.Gate.pinned(ratls.spki_sha256(IDENTITY.certificate_der)).client_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", here.port), 5) as sock:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
            else:
                break
        yield sock, outgoing.read()


def test_connections_that_come_at_once_do_not_exceed_the_cap() -> None:
    """Each of them makes room of its own: above the cap by the number of handshakes, everybody would be locked out."""
    with world(connections=2) as here, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(here.connect())
        wait_for(lambda: here.open() == 2)
        newer = [stack.enter_context(half_shaken(here)) for _ in range(4)]
        assert here.server is not None
        free = threading.Event()
        loop = next(iter(here.server.crowd.connections))._loop
        loop.call_soon_threadsafe(free.wait, 5)  # all handshakes end in one turn of the loop
        for sock, rest in newer:
            sock.sendall(rest)
        free.set()
        assert here.say(GET + b"Connection: close\r\n\r\n").endswith(b"0")
        wait_for(lambda: here.open() <= 2)


@pytest.mark.slow
def test_far_above_the_cap_connections_are_dropped() -> None:
    """Refusing with an answer is itself bounded."""
    with world(connections=1, handshakes=1) as here:
        kept = [busy(here)]
        wait_for(lambda: here.open() == 1 and bool(here.executed))
        kept.append(busy(here))
        wait_for(lambda: here.open() == 2)
        assert here.say(GET + b"\r\n") == b""
        for tls in kept:
            tls.close()


# --- answers ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_early_answer_reaches_a_peer_that_is_still_sending() -> None:
    """An upload that is refused before it has been read: it is swallowed, so the sender learns why."""
    with world(linger_s=5) as here:
        with here.connect() as tls:
            tls.sendall(b"PUT /early HTTP/1.1\r\n" + HOST + b"Content-Length: 5000000\r\n\r\n")
            tls.sendall(b"z" * 5_000_000)  # a reset would fail it
            assert tls.recv(4096).startswith(b"HTTP/1.1 413")
        with here.client() as client:
            response = client.put("/early", content=b"z" * 5_000_000)
        assert response.status_code == 413 and response.headers["connection"] == "close"


def test_an_accident_of_the_application_shows_nothing(
    served: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A framed 500 with our code; the log has type and place, not what the exception said."""
    with caplog.at_level(logging.DEBUG), served.client() as client:
        response = client.get("/boom")
    assert response.status_code == 500 and response.json()["code"] == "internal_error"
    assert "canary" not in response.text + caplog.text
    assert "ValueError" in caplog.text


def test_an_answer_that_ends_early_is_seen_to_be_cut(served: World) -> None:
    """The application wrote 4 of 10 bytes: the client gets an error and not half an answer."""
    with served.client() as client, pytest.raises(httpx.TransportError):
        client.get("/short")


# --- epochs, set-up -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_connection_keeps_its_epoch() -> None:
    """After a swap, the old connection still speaks for the old epoch and a new one for the new."""
    other = ratls.new_server_identity(
        hosts=("localhost",),
        evidence_format="sim",
        evidence=lambda d: Evidence("sim", d, ()),
        now=datetime.now(UTC),
        lifetime_s=60,
    )
    with world() as here:
        old_context = here.epochs.current
        with here.client() as client:
            client.get("/before")
            here.epochs.swap(ratls.server_context(other))
            client.get("/after")
        gate = ratls.Gate.pinned(ratls.spki_sha256(other.certificate_der))
        url = f"https://127.0.0.1:{here.port}/new"
        with httpx.Client(verify=gate.client_context(), trust_env=False) as client:
            client.get(url)
        before, after, new = here.connections
        assert before.epoch is after.epoch is old_context
        assert new.epoch is here.epochs.current and new.epoch is not old_context


def test_plain_tcp_behind_the_protocol_is_not_served() -> None:
    """A listener that was set up without TLS must not work by accident."""
    executed: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        executed.append(scope)

    async def run() -> bytes:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: edge.GuardedProtocol(app, limits=LIMITS, crowd=edge.Crowd()), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(GET + b"\r\n")
        received = b""
        with contextlib.suppress(ConnectionError):
            received = await reader.read()
        writer.close()
        server.close()
        return received

    assert asyncio.run(run()) == b"" and executed == []


def test_the_edge_does_not_import_without_httptools() -> None:
    """And says which package is missing."""
    script = (
        "import sys; sys.modules['httptools'] = None\n"
        "from strongroom.errors import InvalidConfig\n"
        "try:\n    import strongroom.edge\n"
        "except InvalidConfig as exc: print(exc.code)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "httptools_missing"


# --- the pure part ------------------------------------------------------------------------------------------

PLAIN = [(b"host", b"localhost")]


def test_a_plain_head_passes() -> None:
    """The smallest request there is, and one with everything that is allowed."""
    check_head(method="GET", version="1.1", target=b"/", headers=PLAIN, limits=LIMITS)
    check_head(
        method="PUT",
        version="1.1",
        target=b"/v1/models/a%20b?x=1&y=(2)",
        headers=[(b"host", b"[::1]:8443"), (b"content-length", b"12"), (b"x", b"1"), (b"x", b"2")],
        limits=LIMITS,
    )


@given(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD"]),
    st.binary(max_size=40),
    st.lists(
        st.tuples(
            st.sampled_from([b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"x"]),
            st.one_of(st.binary(max_size=20), st.sampled_from([b"localhost", b"0", b"5", b"chunked"])),
        ),
        max_size=5,
    ),
)
@settings(max_examples=300, deadline=None)
def test_a_head_that_passes_has_one_meaning(
    method: str, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """Whatever passes has one Host and at most one kind of framing; whatever does not is a `Refusal` with a
    known code.
    """
    target = b"/" + target
    try:
        check_head(method=method, version="1.1", target=target, headers=headers, limits=LIMITS)
    except Refusal as refusal:
        assert refusal.code in CODES
        return
    names = [name for name, _ in headers]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert target.isascii() and b" " not in target
