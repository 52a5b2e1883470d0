"""HTTP/1.1 as the client speaks it, without input or output: one request's head and pieces, one answer as it comes in
(docs/adr/0023-the-clients-own-http.md).

Rules
  - Whoever answers may be anybody: everything is bounded before it is kept (bytes and fields of heads, interim answers,
    chunks), and what has two readings is refused. One length or chunked, never both, never twice; CRLF alone ends a
    line; no folded fields (RFC 9112 §5, §6, §11).
  - An answer that does not show its own truncation is refused unread, as are content codings and redirects.
  - A body of known length comes into one buffer of that length and stays there: arrays are views of it.
  - Bytes behind an answer belong to nothing: its connection is not used again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from strongroom.calls import Answer, Data, Outcome, Request, Unacceptable, Unanswered, target
from strongroom.errors import InvalidRequest

MAX_HEAD: Final = 64 << 10
"""Bytes of an answer's head, of the interim answers before it and of the trailer behind it, each counted together."""
MAX_FIELDS: Final = 128
"""Fields of one head; our server sends a dozen."""
MAX_INTERIM: Final = 8
"""Interim answers (1xx) before the answer."""
MAX_CHUNKS: Final = 1 << 17
"""Chunks of one answer: the largest result in pieces of 2 KiB. Our server sends lengths."""
MAX_CHUNK_LINE: Final = 256
"""Bytes of the line before a chunk, extensions included."""
READ: Final = 16 << 10
"""Bytes read at once where it is not known yet what they are: one TLS record."""
JOINED: Final = 64 << 10
"""Bytes of head and body that are copied together, so that a small request is one write and one packet."""

REMEMBERED_HEAD: Final = 2048
"""Bytes of an answer's head up to which it is remembered what it says: most are, byte for byte, one of the last few."""

_DEFAULTS: Final = (("Accept", "application/json"),)
_FIXED: Final = "Accept-Encoding: identity\r\nUser-Agent: strongroom-client\r\n"
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t -~\x80-\xff]*)?")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*([\t -~\x80-\xff]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~]*)?")
_ONCE: Final = frozenset({"content-length", "transfer-encoding"})


# --- the request --------------------------------------------------------------------------------------------


def encode_head(request: Request, *, host: str) -> bytes:
    """The request line and fields, with the empty line; `host`: the authority, as the Host field has it.

    Raises:
        InvalidRequest: a field or target with characters that would end it (code `request_unsendable`).
    """
    headers = request.headers
    named = {name.lower() for name, _ in headers}
    lines = [f"{name}: {value}" for name, value in _DEFAULTS if name.lower() not in named]
    lines += [f"{name}: {value}" for name, value in headers]
    if request.method not in {"GET", "DELETE"}:
        lines.append(f"Content-Length: {request.body.length}")
    where = target(request)
    sendable = "".join((request.method, where, host, *lines))
    if " " in where or not sendable.isascii() or not sendable.isprintable():
        raise InvalidRequest("a request with a field that HTTP cannot carry", code="request_unsendable")
    fields = "\r\n".join(lines)
    return f"{request.method} {where} HTTP/1.1\r\nHost: {host}\r\n{_FIXED}{fields}\r\n\r\n".encode("ascii")


def pieces(head: bytes, request: Request) -> Iterator[tuple[Data, int]]:
    """What is written at a time, each with the bytes of the body sent after it; what is small is joined to the head."""
    together: list[Data] = [head]
    size = done = 0
    if request.body.length:
        for chunk in request.body.chunks():
            done += len(chunk)
            if together and size + len(chunk) <= JOINED:
                together.append(chunk)
                size += len(chunk)
                continue
            if together:
                yield b"".join(together), size
                together = []
            yield chunk, done
    if together:
        yield b"".join(together), size


# --- the answer ---------------------------------------------------------------------------------------------


class Reader:
    """Takes in one answer: whoever has the connection reads into `room()` and tells how much with `filled`.

    Both raise `Unacceptable` where the answer is not one that is taken; after that the connection must end.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._scratch = memoryview(bytearray(READ))
        self._raw = bytearray()
        """Bytes that are not understood yet: of the head, or between chunks."""
        self._searched = self._heads = self._interim = 0
        self._status: int | None = None
        self._headers: dict[str, str] = {}
        self._lasting = False
        self._length: int | None = None
        self._body: Data = b""
        self._view = memoryview(b"")
        self._gathered = bytearray()
        """The body that came in chunks so far."""
        self._have = self._chunks = 0
        self._left: int | None = None
        """Bytes of the present chunk that are still to come, its CRLF included; None: its line is next."""
        self._done = False

    @property
    def answered(self) -> bool:
        """Whether the head of the answer has come."""
        return self._status is not None

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request: the answer is whole, and nothing is known to follow it."""
        return self._done and self._lasting and not self._raw

    def room(self) -> memoryview:
        """Where the next bytes belong; never empty before the answer is whole."""
        if self._status is None or self._length is None:
            return self._scratch
        return self._view[self._have :]

    def filled(self, count: int) -> bool:
        """`count` bytes came into `room()`; whether the answer is whole now.

        Raises:
            Unacceptable: `answer_head`, `answer_redirect`, `answer_encoded`, `answer_unframed`, `answer_too_large`.
        """
        if self._status is not None and self._length is not None:
            self._have += count
        else:
            self._raw += self._scratch[:count]
            if self._status is None and not self._read_heads():
                return False
            if self._length is None:
                self._read_chunks()
        self._done = self._done or self._have == self._length
        if self._request.received is not None and self._have:
            self._request.received(self._have, self._length or self._have)
        return self._done

    def cut(self) -> Outcome:
        """What it means that the connection ends here."""
        if self._status is None:
            return Unanswered("connection_lost", "the connection ended before an answer came")
        if self._length is None:
            return Unanswered("answer_truncated", "the connection ended before the answer did")
        return Unanswered("answer_truncated", f"{self._have} of {self._length} bytes of the answer came")

    def answer(self) -> Answer:
        """The whole answer."""
        return Answer(status=self._status or 0, headers=self._headers, data=self._body)

    # -- head

    def _read_heads(self) -> bool:
        """Interim answers are passed over; whether the head of the answer is there, and what follows is in place."""
        while True:
            end = self._raw.find(b"\r\n\r\n", self._searched)
            if self._heads + (end if end >= 0 else len(self._raw)) > MAX_HEAD:
                raise Unacceptable("answer_head", f"a head of more than {MAX_HEAD} bytes")
            if end < 0:
                self._searched = max(0, len(self._raw) - 3)
                return False
            status, headers, lasting = parse_head(bytes(self._raw[:end]))
            del self._raw[: end + 4]
            self._heads, self._searched = self._heads + end + 4, 0
            if status < 200:
                self._interim += 1
                if status == 101 or self._interim > MAX_INTERIM:
                    raise Unacceptable("answer_head", "interim answers without end, or another protocol")
                continue
            self._length = framing(status, headers, self._request)
            self._status, self._headers, self._lasting = status, headers, lasting
            self._make_room()
            return True

    def _make_room(self) -> None:
        if self._length is None:
            self._body = self._gathered
        elif len(self._raw) >= self._length:
            self._body, self._have = bytes(self._raw[: self._length]), self._length
            del self._raw[: self._length]
        else:
            self._have = len(self._raw)
            self._body = bytearray(self._length)
            self._view = memoryview(self._body)
            self._view[: self._have] = self._raw
            self._raw.clear()

    # -- chunks (RFC 9112 §7.1)

    def _read_chunks(self) -> None:
        """Takes what `_raw` has of whole lines and of data."""
        raw, at = self._raw, 0
        while not self._done:
            if self._left is None:
                end = raw.find(b"\r\n", at, at + MAX_CHUNK_LINE + 2)
                if end < 0:
                    if len(raw) - at >= MAX_CHUNK_LINE + 2:
                        raise _unframed("a chunk without a length")
                    break
                self._left, at = self._chunk(bytes(raw[at:end])), end + 2
            elif self._left == 0:  # the last chunk's line was read: the trailer, and the empty line
                end = at if raw.startswith(b"\r\n", at) else raw.find(b"\r\n\r\n", at)
                if (end if end >= 0 else len(raw)) - at > MAX_HEAD:
                    raise Unacceptable("answer_head", f"a trailer of more than {MAX_HEAD} bytes")
                if end < 0:
                    break
                at = end + (2 if end == at else 4)
                self._done = True
            else:
                data = min(self._left - 2, len(raw) - at)
                if data > 0:
                    self._gathered += raw[at : at + data]
                    self._left, at = self._left - data, at + data
                if self._left > 2 or len(raw) - at < 2:
                    break
                if raw[at : at + 2] != b"\r\n":
                    raise _unframed("a chunk that is longer than it says")
                self._left, at = None, at + 2
        del raw[:at]
        self._have = len(self._gathered)

    def _chunk(self, line: bytes) -> int:
        """The bytes that follow a chunk's line, with their CRLF; 0 for the last chunk."""
        match = _CHUNK.fullmatch(line)
        self._chunks += 1
        if match is None or self._chunks > MAX_CHUNKS:
            raise _unframed("chunks that are none, or too many")
        size = int(match[1], 16)
        if len(self._gathered) + size > self._request.max_answer:
            raise _too_large(self._request)
        return size + 2 if size else 0


def parse_head(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Status, fields by name in lower case (repeated ones joined with ", "), and whether the connection lasts.

    `head`: everything before the empty line.

    Raises:
        Unacceptable: not the head of an HTTP/1.x answer (code `answer_head`); two lengths or codings
            (`answer_unframed`).
    """
    status, headers, lasting = (_parse_known if len(head) <= REMEMBERED_HEAD else _parse)(head)
    return status, headers.copy(), lasting


def _parse(head: bytes) -> tuple[int, dict[str, str], bool]:
    first, *lines = head.decode("latin-1").split("\r\n")
    start = _STATUS.fullmatch(first)
    if start is None or len(lines) > MAX_FIELDS:
        raise Unacceptable("answer_head", "no HTTP/1.1, or too many fields")
    headers: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Unacceptable("answer_head", "a field that is none")
        name, value = match[1].lower(), match[2].rstrip(" \t")
        if name in headers:
            if name in _ONCE:
                raise _unframed(f"{name} twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    closing = "close" in (word.strip() for word in headers.get("connection", "").lower().split(","))
    return int(start[2]), headers, start[1] == "1" and not closing


_parse_known = lru_cache(maxsize=8)(_parse)


def framing(status: int, headers: dict[str, str], request: Request) -> int | None:
    """The declared length in bytes of a body that may be read; None where it is chunked.

    Raises:
        Unacceptable: `answer_redirect`, `answer_encoded`, `answer_unframed`, `answer_too_large`.
    """
    if 300 <= status < 400:
        raise Unacceptable("answer_redirect", f"a redirect ({status}); none is followed")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Unacceptable("answer_encoded", "a content coding that was not asked for")
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    chunked = coding is not None and coding.lower() == "chunked" and not request.sized
    if (length is None) == (coding is None) or (coding is not None and not chunked):
        wanted = "Content-Length" if request.sized else "exactly one of Content-Length and chunked"
        raise _unframed(f"no framing that shows truncation ({wanted} is required)")
    if length is None:
        return None
    if not length.isascii() or not length.isdigit() or len(length) > 15:
        raise _unframed("a Content-Length that is no number")
    if int(length) > request.max_answer:
        raise _too_large(request)
    return int(length)


def _unframed(text: str) -> Unacceptable:
    return Unacceptable("answer_unframed", text)


def _too_large(request: Request) -> Unacceptable:
    return Unacceptable("answer_too_large", f"more than {request.max_answer} bytes")


__all__ = ["Reader", "encode_head", "framing", "parse_head", "pieces"]
