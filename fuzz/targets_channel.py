"""Fuzz targets of the channel: callers' tokens, server certificates, their attestation extension, HTTP.

Oracle: a value or `strongroom.errors.Error`, nothing else; at the edge no accident, no second execution, no
answer without framing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ssl
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from strongroom import edge, ratls, tokens
from strongroom.attest.evidence import Evidence
from strongroom.errors import Error

# ratls.new_server_identity(hosts=("localhost", "127.0.0.1"), evidence=<Evidence("sim", b"evidence", ())>,
#                           now=datetime(2026, 1, 1, tzinfo=UTC), lifetime_s=3600).certificate_der
CERTIFICATE = base64.b64decode(
    """
    MIIB9jCCAZ2gAwIBAgIUaoNbxU92cXL/QNekAmwQAlBA2LkwCgYIKoZIzj0EAwIwFTETMBEGA1UEAwwKc3Ryb25ncm9vbTAeFw0y
    NTEyMzEyMzAwMDBaFw0yNjAxMDEwMTAwMDBaMBUxEzARBgNVBAMMCnN0cm9uZ3Jvb20wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
    AAQ0lxyDsQ1mhs8Ly9675EkNPS2prAV9rzJ/1uxodJqRtg0WSvrtKS/W6EJbZ9UkgqStKoRx2wEo30oNh1YHxFTJo4HKMIHHMAwG
    A1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMBMGA1UdJQQMMAoGCCsGAQUFBwMBMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAA
    ATAdBgNVHQ4EFgQUb9CYuJitWW7r0FkhBUd2JSbsWz8wVwYGZ4EFBQQJBE3Z6mCCSGV2aWRlbmNlWD6ia3B1YmtleS1oYXNoWCSC
    AVggw9F9imXtNb36tJDmmpiMbq7Rp1Ic2vrx09eMOoKrAStmZm9ybWF0Q3NpbTAKBggqhkjOPQQDAgNHADBEAiA9gGLNemjpNGFQ
    etU82GGEweFwP4wHJK/mrnaqpCMB8gIgSpqWxA0l0Yi/17ImlOx1Q5Y2nf0rLXkwZfdYH/RJIhk=
    """
)
PIN = ratls.spki_sha256(CERTIFICATE)
EXTENSION = ratls.encode_boot_evidence(Evidence("sim", b"evidence", ()), spki=ratls.spki_of(CERTIFICATE))
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
DIGEST = hashlib.sha256(b"keyset").digest()
ACTION = tokens.Action(method="PUT", path="/v1/models/m", sha256="0" * 64)
NOW = 1_800_000_000


def _book() -> tokens.NonceBook:
    return tokens.NonceBook(clock=lambda: 1e4, random=lambda n: b"r" * n)


def _token(action: tokens.Action | None) -> bytes:
    return tokens.issue_token(
        KEY,
        keyset_digest=DIGEST,
        nonce=_book().issue(),
        now=NOW,
        action=action,
        random=lambda n: b"j" * n,
    ).encode()


def fuzz_token(data: bytes) -> None:
    """A token as it stands in a header, for reading and for a changing call; only the genuine ones pass."""
    for action in (None, ACTION):
        try:
            principal = tokens.check_token(
                data.decode("latin-1"), keyset_digest=DIGEST, nonces=_book(), now=NOW, action=action
            )
        except Error:
            continue
        assert principal.id == tokens.principal_id(KEY.public_key()) and data == _token(action)


def fuzz_token_claims(data: bytes) -> None:
    """Claims of any kind, properly signed: what a hostile caller with a key of its own can send."""
    head = base64.urlsafe_b64decode(_token(None).split(b".")[0] + b"==")
    signing_input = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (head, data))
    signature = base64.urlsafe_b64encode(KEY.sign(signing_input)).rstrip(b"=")
    with contextlib.suppress(Error):
        tokens.check_token(
            (signing_input + b"." + signature).decode(),
            keyset_digest=DIGEST,
            nonces=_book(),
            now=NOW,
            action=None,
        )


def fuzz_key_file(data: bytes) -> None:
    """The content of a key file."""
    with contextlib.suppress(Error):
        tokens.load_key(data)


def fuzz_leaf(data: bytes) -> None:
    """A server's certificate; the gate passes only the pinned key."""
    with contextlib.suppress(Error):
        ratls.parse_boot_evidence(data)
    try:
        ratls.Gate.pinned(PIN).check(version="TLSv1.3", reused=False, der=data)
    except Error:
        return
    assert ratls.spki_of(data) == ratls.spki_of(CERTIFICATE)


def fuzz_ratls_extension(data: bytes) -> None:
    """The attestation extension's value."""
    with contextlib.suppress(Error):
        ratls.parse_extension(data)


class _Transport(asyncio.Transport):
    """A TLS transport without a network."""

    def __init__(self) -> None:
        super().__init__({"ssl_object": self, "sslcontext": self})
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.session_reused = False
        self.written = b""
        self.closed = False

    def version(self) -> str:
        return "TLSv1.3"

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Nothing comes by itself here."""

    resume_reading = pause_reading


class _Application:
    """Answers with what it was sent."""

    def __init__(self) -> None:
        self.executed: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.executed.append(f"{scope['method']} {scope['path']}?{scope['query_string']} {scope['headers']}")
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        fields = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})


LIMITS = edge.EdgeLimits(
    connections=1,
    header_bytes=2048,
    header_deadline_s=60,
    body_idle_s=60,
    send_idle_s=60,
    keep_alive_s=60,
)


async def _exchange(*pieces: bytes) -> tuple[bytes, list[str]]:
    """What a connection answers that sends these pieces, each into the buffer that it is given for it."""
    transport, application = _Transport(), _Application()
    protocol = edge.GuardedProtocol(application, limits=LIMITS, crowd=edge.Crowd())
    protocol.connection_made(transport)
    for piece in pieces:
        while piece and not transport.closed:
            buffer = protocol.get_buffer(-1)
            size = min(len(piece), len(buffer))
            buffer[:size], piece = piece[:size], piece[size:]
            del buffer
            protocol.buffer_updated(size)
    for _ in range(4):
        await asyncio.sleep(0)
    protocol.connection_lost(ConnectionResetError())
    for _ in range(2):
        await asyncio.sleep(0)
    return transport.written, application.executed


def fuzz_http(data: bytes) -> None:
    """Bytes of a connection: at most one request is executed, at most one framed answer is given, and the same
    however the bytes are cut.
    """
    written, executed = asyncio.run(_exchange(data))
    assert len(executed) <= 1
    if written:
        answer = written.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert not answer or b"content-length: %d" % len(body) in head.split(b"\r\n"), written
    cut = len(data) * (sum(data) % 97) // 97
    for pieces in ((data[:cut], data[cut:]), [data[i : i + 1] for i in range(len(data))]):
        assert asyncio.run(_exchange(*pieces)) == (written, executed), (data, pieces)


HOST = b"Host: localhost\r\n"
SEEDS: dict[str, tuple[bytes, ...]] = {
    "fuzz_token": (_token(None), _token(ACTION)),
    "fuzz_token_claims": tuple(
        base64.urlsafe_b64decode(_token(action).split(b".")[1] + b"==") for action in (None, ACTION)
    ),
    "fuzz_key_file": (KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),),
    "fuzz_leaf": (CERTIFICATE,),
    "fuzz_ratls_extension": (EXTENSION,),
    "fuzz_http": (
        b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n",
        b"PUT /b HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc",
        b"POST /c HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        b"POST /d HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    ),
}
