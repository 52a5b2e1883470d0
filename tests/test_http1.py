"""HTTP/1.1 as the client reads and writes it: what is one answer is taken however it is cut, what has two readings or
no bounds is refused.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from strongroom import http1
from strongroom.calls import Answer, Body, Request, Unacceptable
from strongroom.errors import InvalidRequest

GET = Request(method="GET", path="/v1/models/m", max_answer=1 << 16)
SIZED = Request(method="GET", path="/v1/evidence", max_answer=1 << 16, sized=True)
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def read(
    data: bytes, request: Request = GET, *, at_once: int = 1 << 20
) -> tuple[http1.Reader, Answer | None]:
    """Feeds `data` as a connection would, `at_once` bytes at a time, until the answer is whole or all is read."""
    reader, at = http1.Reader(request), 0
    at_once = max(at_once, len(data) // 5000)
    while at < len(data):
        room = reader.room()
        assert len(room) > 0
        count = min(len(room), len(data) - at, at_once)
        room[:count] = data[at : at + count]
        at += count
        if reader.filled(count):
            return reader, reader.answer()
    return reader, None


TAKEN = {
    "length": (OK + b"Content-Length: 2\r\n\r\n{}", b"{}"),
    "no body": (OK + b"Content-Length: 0\r\n\r\n", b""),
    "larger than one read": (OK + b"Content-Length: 60000\r\n\r\n" + b"x" * 60000, b"x" * 60000),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x"),
    "empty reason": (b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx", b"x"),
    "no space before a value": (OK + b"Content-Length:1\r\n\r\nx", b"x"),
    "interim": (b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n" * 8 + OK + b"Content-Length: 1\r\n\r\nx", b"x"),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx", b"x"),
    "identity": (OK + b"Content-Encoding: identity\r\nContent-Length: 1\r\n\r\nx", b"x"),
    "chunks": (CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
    "a chunk larger than one read": (CHUNKED + b"c350\r\n" + b"y" * 50000 + b"\r\n0\r\n\r\n", b"y" * 50000),
    "chunks with extensions": (CHUNKED + b"2;a=b;c\r\nab\r\n0\r\n\r\n", b"ab"),
    "chunks with a trailer": (CHUNKED + b"1\r\na\r\n0\r\nX: y\r\nZ: w\r\n\r\n", b"a"),
    "no chunk but the last": (CHUNKED + b"0\r\n\r\n", b""),
    "chunked in capitals": (OK + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", b""),
    "as many fields as are taken": (OK + b"A: b\r\n" * 127 + b"Content-Length: 1\r\n\r\nx", b"x"),
}


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", TAKEN)
def test_answers_that_are_taken(name: str, at_once: int) -> None:
    """The same answer, however the network cuts it; its connection may be used again."""
    data, body = TAKEN[name]
    reader, answer = read(data, at_once=at_once)
    assert answer is not None and (answer.status, answer.body) == (200, body)
    assert reader.reusable


REFUSED = {
    # framing: two readings, or an end that cannot be seen
    "no framing": ("answer_unframed", OK + b"\r\n{}"),
    "length and chunked": (
        "answer_unframed",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    "two lengths": ("answer_unframed", OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n"),
    "the same length twice": ("answer_unframed", OK + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\n"),
    "lengths in a list": ("answer_unframed", OK + b"Content-Length: 2, 2\r\n\r\n"),
    "two codings": (
        "answer_unframed",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    "gzip, chunked": ("answer_unframed", OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    "a negative length": ("answer_unframed", OK + b"Content-Length: -1\r\n\r\n"),
    "a length with a sign": ("answer_unframed", OK + b"Content-Length: +1\r\n\r\n"),
    "a length in hex": ("answer_unframed", OK + b"Content-Length: 0x2\r\n\r\n"),
    "a length of other digits": ("answer_unframed", OK + b"Content-Length: \xb2\r\n\r\n"),
    "a length of 16 digits": ("answer_unframed", OK + b"Content-Length: 0000000000000001\r\n\r\n"),
    "no length": ("answer_unframed", OK + b"Content-Length: \r\n\r\n"),
    "no content without a length": ("answer_unframed", b"HTTP/1.1 204 No Content\r\n\r\n"),
    # what is never taken
    "a redirect": ("answer_redirect", b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
    "not modified": ("answer_redirect", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "gzip": ("answer_encoded", OK + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"),
    "gzip, said twice": (
        "answer_encoded",
        OK + b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\n",
    ),
    "too long": ("answer_too_large", OK + b"Content-Length: 65537\r\n\r\n"),
    "chunks that are too long": ("answer_too_large", CHUNKED + b"10000\r\n" + b"x" * 65536 + b"\r\n1\r\n"),
    "a chunk of 4 GB": ("answer_too_large", CHUNKED + b"ffffffff\r\n"),
    # heads
    "another protocol": ("answer_head", b"HTTP/1.1 101 Switching\r\n\r\n"),
    "interim answers without end": ("answer_head", b"HTTP/1.1 103 Early\r\n\r\n" * 9),
    "a head without end": ("answer_head", OK + b"X: " + b"y" * (http1.MAX_HEAD + 1)),
    "long interim answers": ("answer_head", (b"HTTP/1.1 103 E\r\nX: " + b"y" * 30000 + b"\r\n\r\n") * 3),
    "too many fields": ("answer_head", OK + b"A: b\r\n" * 129 + b"\r\n"),
    "HTTP/2": ("answer_head", b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "HTTP/0.9": ("answer_head", b"<html>\r\n\r\n"),
    "no status": ("answer_head", b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n"),
    "a status of four digits": ("answer_head", b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    "a status of 099": ("answer_head", b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"),
    "a status of 600": ("answer_head", b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n"),
    "a status in other digits": ("answer_head", b"HTTP/1.1 2\xb20 OK\r\nContent-Length: 0\r\n\r\n"),
    "a reason with a control": ("answer_head", b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n"),
    "space before the status": ("answer_head", b" HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "an empty line first": ("answer_head", b"\r\n\r\n"),
    "a folded field": ("answer_head", OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n"),
    "a field without a name": ("answer_head", OK + b": b\r\nContent-Length: 0\r\n\r\n"),
    "space before the colon": ("answer_head", OK + b"Content-Length : 0\r\n\r\n"),
    "a field without a colon": ("answer_head", OK + b"Content-Length\r\n\r\n"),
    "a name of 257 letters": ("answer_head", OK + b"a" * 257 + b": b\r\nContent-Length: 0\r\n\r\n"),
    "a bare line feed": ("answer_head", OK + b"A: b\nContent-Length: 0\r\n\r\n"),
    "a bare carriage return": ("answer_head", OK + b"A: b\rContent-Length: 0\r\n\r\n"),
    "a NUL": ("answer_head", OK + b"A: b\x00\r\nContent-Length: 0\r\n\r\n"),
    # chunks
    "a chunk without a length": ("answer_unframed", CHUNKED + b"\r\nab\r\n"),
    "a chunk's length with a sign": ("answer_unframed", CHUNKED + b"+2\r\nab\r\n"),
    "a chunk's length in 0x": ("answer_unframed", CHUNKED + b"0x2\r\nab\r\n"),
    "a chunk's length of nine digits": ("answer_unframed", CHUNKED + b"000000002\r\nab\r\n"),
    "a chunk's length with an underscore": ("answer_unframed", CHUNKED + b"1_0\r\n"),
    "a chunk longer than it says": ("answer_unframed", CHUNKED + b"1\r\nab\r\n0\r\n\r\n"),
    "a chunk line without end": ("answer_unframed", CHUNKED + b"1;" + b"x" * 400),
    "a chunk line with a bare line feed": ("answer_unframed", CHUNKED + b"1\na\r\n0\r\n\r\n"),
    "a trailer without end": ("answer_head", CHUNKED + b"0\r\nX: " + b"y" * (http1.MAX_HEAD + 9)),
}


@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("name", REFUSED)
def test_answers_that_are_refused(name: str, at_once: int) -> None:
    """Each wrong in one respect, with its code, however it is cut."""
    code, data = REFUSED[name]
    with pytest.raises(Unacceptable) as refusal:
        read(data, at_once=at_once)
    assert refusal.value.code == code


def test_evidence_says_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a length is demanded, chunks are refused unread."""
    with pytest.raises(Unacceptable) as refusal:
        read(TAKEN["chunks"][0], SIZED)
    assert refusal.value.code == "answer_unframed"


def test_chunks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million chunks of one byte are work for nothing."""
    monkeypatch.setattr(http1, "MAX_CHUNKS", 10)
    _, answer = read(CHUNKED + b"1\r\nx\r\n" * 9 + b"0\r\n\r\n")
    assert answer is not None
    with pytest.raises(Unacceptable):
        read(CHUNKED + b"1\r\nx\r\n" * 10 + b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "connection_lost"),
        (OK + b"Content-Le", "connection_lost"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "connection_lost"),
        (OK + b"Content-Length: 9\r\n\r\n1234", "answer_truncated"),
        (CHUNKED + b"2\r\na", "answer_truncated"),
        (CHUNKED + b"2\r\nab\r\n", "answer_truncated"),
        (CHUNKED + b"2\r\nab\r\n0\r\n", "answer_truncated"),
    ],
)
def test_an_end_before_the_answer_is_whole(data: bytes, code: str) -> None:
    """Cut anywhere, an answer is none; what was told apart is whether its head had come."""
    reader, answer = read(data)
    assert answer is None and not reader.reusable
    assert reader.cut().code == code
    assert reader.answered == (code == "answer_truncated")


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Connection: close\r\nContent-Length: 1\r\n\r\nx",
        OK + b"Connection: keep-alive, Close\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
        OK + b"Content-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n",
        CHUNKED + b"1\r\nx\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n",
    ],
)
def test_connections_that_are_not_used_again(data: bytes) -> None:
    """Those that the server ends, and those with bytes behind the answer: the next request must not take them for its
    own.
    """
    reader, answer = read(data)
    assert answer is not None and answer.body == b"x"
    assert not reader.reusable


def test_a_large_body_stays_in_the_buffer_that_it_came_into() -> None:
    """No copy: what callers get is the buffer into which the connection was read."""
    body = b"z" * 40000
    _, answer = read(OK + b"Content-Length: 40000\r\n\r\n" + body, at_once=1000)
    assert answer is not None and isinstance(answer.data, bytearray) and answer.data == body


def test_repeated_fields_are_joined() -> None:
    """As RFC 9110 §5.3 has it; names in lower case, space around values gone."""
    _, answer = read(OK + b"A: 1\r\na:  2 \r\nX-\xe4: \r\nContent-Length: 0\r\n\r\n".replace(b"\xe4", b"y"))
    assert answer is not None
    assert answer.headers == {"a": "1, 2", "x-y": "", "content-length": "0"}


def test_progress_is_told() -> None:
    """`received(bytes so far, bytes in all)`, rising to the whole."""
    seen: list[tuple[int, int]] = []
    request = Request(method="GET", path="/", max_answer=1 << 20, received=lambda *at: seen.append(at))
    read(OK + b"Content-Length: 40000\r\n\r\n" + b"z" * 40000, request)
    assert seen[-1] == (40000, 40000) and seen == sorted(seen) and len(seen) == 2


# --- requests -----------------------------------------------------------------------------------------------


def test_a_request_as_it_is_sent() -> None:
    """The whole head, byte by byte; a small body goes along in the same write."""
    request = Request(
        method="POST", path="/p", query="a=b", headers=(("X", "y"),), body=Body.of(b"head", b"", b"rest")
    )
    head = http1.encode_head(request, host="h:1")
    assert head == (
        b"POST /p?a=b HTTP/1.1\r\nHost: h:1\r\nAccept-Encoding: identity\r\nUser-Agent: strongroom-client\r\n"
        b"Accept: application/json\r\nX: y\r\nContent-Length: 8\r\n\r\n"
    )
    assert list(http1.pieces(head, request)) == [(head + b"headrest", 8)]


def test_a_request_without_a_body_names_no_length() -> None:
    """GET and DELETE have none; what the caller accepts stands in place of our default."""
    request = Request(method="GET", path="/p", headers=(("accept", "x/y"),))
    head = http1.encode_head(request, host="h")
    assert b"ength" not in head and head.count(b"ccept: ") == 1
    assert list(http1.pieces(head, request)) == [(head, 0)]


def test_a_large_body_is_not_copied() -> None:
    """Its pieces are views of the caller's memory, behind a head that travels with what is small before them."""
    large = bytes(1 << 20)
    request = Request(method="PUT", path="/p", body=Body.of(b"small", large))
    sent = list(http1.pieces(b"HEAD", request))
    assert sent[0] == (b"HEADsmall", 5)
    assert all(isinstance(piece, memoryview) and piece.obj is large for piece, _ in sent[1:])
    assert [done for _, done in sent[1:]] == [5 + (n << 18) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "request_",
    [
        Request(method="GET", path="/a b"),
        Request(method="GET", path="/a\r\nX: y"),
        Request(method="GET", path="/", query="a=\n"),
        Request(method="GET", path="/", headers=(("X", "y\r\nZ: w"),)),
        Request(method="GET", path="/", headers=(("X\n", "y"),)),
        Request(method="GET", path="/", headers=(("X", "\x00"),)),
        Request(method="GET", path="/", headers=(("X", "\u00e4"),)),
    ],
)
def test_requests_that_cannot_be_sent(request_: Request) -> None:
    """A word that would end its line, or make another field, is refused before anything is sent."""
    with pytest.raises(InvalidRequest) as refusal:
        http1.encode_head(request_, host="h")
    assert refusal.value.code == "request_unsendable"


def test_random_bytes_end_in_an_answer_or_a_refusal() -> None:
    """The fuzzing target's oracle over mutations of its seeds: an answer or `Unacceptable`, whatever comes."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
    try:
        import run
        import targets_client
    finally:
        sys.path.pop(0)
    rng = random.Random(23)
    for seed in targets_client.SEEDS["fuzz_client_http"]:
        targets_client.fuzz_client_http(seed)
        for _ in range(300):
            targets_client.fuzz_client_http(run.mutate(seed, rng))
