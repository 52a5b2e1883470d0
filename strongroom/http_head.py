"""What one HTTP request may look like before anybody acts on it: heads with one meaning, and their limits
(docs/spec/channel.md §6.2, §6.3). No I/O.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

HEADER_COUNT: Final = 64
"""Header fields of one request; our clients send about 10, browsers about 20."""
TARGET_BYTES: Final = 1024
"""Bytes of a request target: the longest path and query of this interface stay below, and it must fit into a
token.
"""
HANDSHAKE_S: Final = 10.0
"""Seconds for a TLS handshake: three flights over a bad line."""
HANDSHAKES: Final = 128
"""TLS handshakes under way at once; OpenSSL holds a few ten KiB for each."""
FIRST_BYTE_S: Final = 10.0
"""Seconds from the end of the handshake to a request's first byte."""
LINGER_S: Final = 5.0
"""Seconds for which what still arrives is swallowed after an early answer: a reset would overtake the answer.
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
) -> int | None:
    """Returns if the head of a request has only one meaning (§6.2): its Content-Length, None where it has none.
    Names of `headers` are in lower case.

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
    size = len(method) + len(target) + 12
    fields: dict[bytes, bytes] = {}
    twice = None
    for name, value in headers:
        size += len(name) + len(value) + 4
        if name in fields and (name in _ONCE or name.startswith(_ONCE_PREFIX)):
            twice = twice or name
        fields[name] = value
    if size > limits.header_bytes:
        raise Refusal(431, "http_head_too_large", f"expected at most {limits.header_bytes} bytes")
    if twice is not None:
        code = _DUPLICATES.get(twice, "http_duplicate_header")
        raise Refusal(400, code, "a field that may stand once stands twice")
    if _HOST.fullmatch(fields.get(b"host", b"")) is None:
        raise Refusal(400, "http_host", "expected exactly one well-formed Host field")
    length = _check_framing(method, fields)
    if b"upgrade" in fields:
        raise Refusal(400, "http_upgrade", "upgrades are not taken")
    if fields.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise Refusal(417, "http_expect", "expected no expectation but 100-continue")
    return length


_DUPLICATES = {
    b"host": "http_host",
    b"content-length": "http_content_length",
    b"transfer-encoding": "http_transfer_encoding",
}


def _check_framing(method: str, fields: dict[bytes, bytes]) -> int | None:
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is not None and coding.lower() != b"chunked":
        raise Refusal(400, "http_transfer_encoding", "expected no transfer coding but a single chunked")
    if length is not None and (coding is not None or _LENGTH.fullmatch(length) is None):
        raise Refusal(400, "http_content_length", "expected one plain number and no coding beside it")
    size = None if length is None else int(length)
    if method in _WITHOUT_BODY and (coding is not None or size):
        raise Refusal(400, "http_body_unexpected", f"{method} takes no body here")
    return size


def problem(status: int, code: str, detail: str) -> bytes:
    """Returns a problem document (RFC 9457) of this server as JSON."""
    title = HTTPStatus(status).phrase
    members = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    return json.dumps(members).encode("ascii")


def malformed(exc: Exception) -> Refusal:
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
