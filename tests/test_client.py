"""The client against servers that misbehave: every attack of docs/spec/channel.md that a client can meet."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import io
import json
import os
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import (
    MEASUREMENT,
    ROOT,
    SECURITY,
    Balancer,
    FakeServer,
    Got,
    lasting_port,
    policy_text,
    problem,
    send,
    stored,
)

import strongroom
from strongroom import calls, flow, links, ratls, sources, tokens, transport
from strongroom.attest.batch import Single
from strongroom.attest.evidence import EvidenceAnswer, boot_report_data, encode_answer, report_data
from strongroom.attest.keyset import encode_keyset
from strongroom.attest.policy import parse_policy
from strongroom.client import SYSTEM_CLOCK, AsyncClient, Client
from strongroom.errors import (
    AccessRefused,
    AttestationRefused,
    Conflict,
    Error,
    Failure,
    InvalidPolicy,
    InvalidRequest,
    LimitExceeded,
    MalformedInput,
    NotFound,
    Refused,
    Unavailable,
)
from strongroom.flow import Clock, Session
from strongroom.sources import prepare_upload

KEY = tokens.new_key_pem()
ONNX = b"\x08\x08\x12\x04test:\x00" * 40


class Face:
    """An `AsyncClient` or a `Client` behind the same blocking calls, so that one test speaks to both."""

    def __init__(self, kind: str, url: str, settings: dict[str, Any]) -> None:
        settings.setdefault("policy", parse_policy(policy_text()))
        self.runner = asyncio.Runner() if kind == "async" else None
        self.client: Any = (AsyncClient if self.runner else Client)(url, **settings)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.client, name)
        if self.runner is None or not inspect.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: self.wait(value(*args, **kwargs))

    def wait(self, value: Any) -> Any:
        """The value, awaited where it must be."""
        return self.runner.run(value) if self.runner else value

    def run(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """`model.run(...)`."""
        return self.wait(model.run(*args, **kwargs))

    def end(self) -> None:
        self.wait(self.client.close())
        if self.runner:
            self.runner.close()


Connect = Callable[..., Face]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients of either kind that attest at once; closes them at the end."""
    with ExitStack() as stack:

        def make(url: str, *, attest: bool = True, **settings: Any) -> Face:
            face = Face(request.param, url, settings)
            stack.callback(face.end)
            if attest:
                face.attest()
            return face

        yield make


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """An honest server with one model."""
    with FakeServer(models={"m": stored("m")}) as running:
        yield running


def evidence_by(answer: Callable[[bytes], bytes]) -> Callable[[FakeServer, Got, ssl.SSLSocket], bool]:
    """A script that answers questions for evidence with `answer(nonce)`."""

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        if got.path != "/v1/evidence":
            return False
        send(connection, 200, answer(bytes.fromhex(got.target.rpartition("=")[2])))
        return True

    return script


def raw(path: str, *answers: bytes) -> Callable[[FakeServer, Got, ssl.SSLSocket], bool]:
    """A script that answers requests for `path` with these bytes, one after the other, closing after each;
    then honestly.
    """
    left = list(answers)

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        if got.path != path or not left:
            return False
        connection.sendall(left.pop(0))
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
        return True

    return script


def always(
    status: int, body: bytes, headers: dict[str, str] | None = None
) -> Callable[[FakeServer, Got, ssl.SSLSocket], bool]:
    """A script with one answer to everything."""

    def script(_: FakeServer, _got: Got, connection: ssl.SSLSocket) -> bool:
        send(connection, status, body, headers)
        return True

    return script


# --- the man in the middle and what he may relay ------------------------------------------------------------


def test_a_man_in_the_middle_with_his_own_certificate_gets_the_question_for_evidence_and_nothing_else(
    connect: Connect, server: FakeServer
) -> None:
    """Relaying the genuine server's evidence does not help: it is bound to the genuine server's key."""
    with FakeServer(script=evidence_by(server.answer_for)) as middle:
        with pytest.raises(AttestationRefused) as refusal:
            connect(middle.url, key=KEY).model("m")
        assert refusal.value.code == "channel_key_mismatch"
        assert middle.paths() == ["/v1/evidence"]
        assert "authorization" not in middle.requests[0].headers
    verdict = refusal.value.verdict
    assert verdict is not None
    assert [c.id for c in verdict.failures] == ["channel.spki"]
    assert len(verdict.checks) > 10


def test_evidence_of_another_genuine_server_is_refused(connect: Connect, server: FakeServer) -> None:
    """Two servers of the same code: one cannot pass as the other by relaying, both are what the policy
    accepts.
    """
    with FakeServer() as other:
        other.script = evidence_by(server.answer_for)
        with pytest.raises(AttestationRefused) as refusal:
            connect(other.url)
        assert refusal.value.code == "channel_key_mismatch"


def test_a_later_connection_to_a_man_in_the_middle_carries_no_byte_of_the_request(
    connect: Connect, server: FakeServer
) -> None:
    """The pooled connection ends, the next one shows another key: refused in the handshake, then attested,
    then refused.
    """
    with FakeServer(script=evidence_by(server.answer_for)) as middle, Balancer([server.port]) as path:
        client = connect(path.url, key=KEY)
        model = client.model("m")
        path.turn = iter([middle.port] * 9)  # type: ignore[assignment]
        path.drop()
        with pytest.raises(AttestationRefused) as refusal:
            client.run(model, [[1.0, 2.0]])
        assert refusal.value.code == "channel_key_mismatch"
        assert middle.paths() == ["/v1/evidence"]
        assert middle.application_bytes == len(_wire(middle.requests[0]))


def _wire(got: Got) -> bytes:
    lines = [f"{got.method} {got.target} HTTP/1.1", *(f"{k}: {v}" for k, v in got.headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + got.body


def test_an_old_answer_is_refused(connect: Connect, server: FakeServer) -> None:
    """Evidence made for the nonce of an earlier question is not fresh."""
    server.script = evidence_by(lambda _nonce: server.answer_for(b"o" * 32))
    with pytest.raises(AttestationRefused) as refusal:
        connect(server.url)
    assert refusal.value.code == "report_data_mismatch"


def test_every_question_has_its_own_nonce(connect: Connect, server: FakeServer) -> None:
    """32 random bytes, never the same twice."""
    client = connect(server.url)
    client.attest()
    assert len({got.target for got in server.requests}) == 2
    assert all(len(got.target) == len("/v1/evidence?nonce=") + 64 for got in server.requests)


def test_a_swapped_keyset_is_refused(connect: Connect, server: FakeServer) -> None:
    """A keyset that the evidence was not made for, here with another epoch's end."""
    longer = encode_keyset(replace(server.keyset, not_after=server.keyset.not_after + 60))

    def answer(nonce: bytes) -> bytes:
        data = report_data(nonce=nonce, keyset_bytes=server.keyset_bytes)
        return encode_answer(EvidenceAnswer(server.evidence(data), longer, Single()))

    server.script = evidence_by(answer)
    with pytest.raises(AttestationRefused) as refusal:
        connect(server.url)
    assert refusal.value.code == "report_data_mismatch"


def signed_for(server: FakeServer, keyset_bytes: bytes) -> Callable[[bytes], bytes]:
    """Answers with this keyset and evidence that was honestly made for it."""

    def answer(nonce: bytes) -> bytes:
        data = report_data(nonce=nonce, keyset_bytes=keyset_bytes)
        return encode_answer(EvidenceAnswer(server.evidence(data), keyset_bytes, Single()))

    return answer


def test_a_keyset_with_a_duplicate_member_is_refused(connect: Connect, server: FakeServer) -> None:
    """Two readers of one document must not be able to read two things."""
    twice = server.keyset_bytes.replace(b'"binding":"spki"', b'"binding":"spki","binding":"spki"')
    server.script = evidence_by(signed_for(server, twice))
    with pytest.raises(AttestationRefused) as refusal:
        connect(server.url)
    assert refusal.value.code == "keyset_duplicate_member"


def test_a_weaker_configuration_is_refused(connect: Connect) -> None:
    """The same code, honestly attested, but taking models from anybody: the policy says no."""
    with FakeServer(security=replace(SECURITY, anonymous_upload=True)) as weaker:
        with pytest.raises(AttestationRefused) as refusal:
            connect(weaker.url)
        assert refusal.value.verdict is not None
        assert [c.id for c in refusal.value.verdict.failures] == ["security.anonymous_upload"]


def test_boot_time_evidence_answers_no_nonce(connect: Connect, server: FakeServer) -> None:
    """What stands in the certificate has the right shape, the right key and another label."""

    def answer(_nonce: bytes) -> bytes:
        boot = server.evidence(boot_report_data(spki=server.identity.spki))
        return encode_answer(EvidenceAnswer(boot, server.keyset_bytes, Single()))

    server.script = evidence_by(answer)
    with pytest.raises(AttestationRefused) as refusal:
        connect(server.url)
    assert refusal.value.code == "report_data_other_label"


def test_an_answer_in_a_batch_is_accepted(connect: Connect, server: FakeServer) -> None:
    """A server under load answers many nonces with one quote; the verdict shows our place in it."""
    server.script = evidence_by(lambda nonce: server.batch_for(b"a" * 32, nonce, b"b" * 32, place=1))
    checks = {one.id: one for one in connect(server.url).attestation.checks}
    assert checks["evidence.inclusion"].got.startswith("place 1 of 3, ")
    assert checks["evidence.report_data"].passed


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (
            lambda server, nonce: server.batch_for(b"a" * 32, nonce, b"b" * 32, place=2),
            "report_data_mismatch",
        ),
        (
            lambda server, _: server.batch_for(b"a" * 32, b"o" * 32, b"b" * 32, place=1),
            "report_data_mismatch",
        ),
        (
            lambda server, nonce: server.batch_for(b"a" * 32, nonce, place=1).replace(
                b'"size": 2', b'"size": 9'
            ),
            "inclusion_malformed",
        ),
        (
            lambda server, nonce: server.batch_for(b"a" * 32, nonce, place=1).replace(
                b'"size": 2', b'"size": 1'
            ),
            "answer_malformed",
        ),
    ],
    ids=["proof of another nonce", "old batch", "no proof", "no answer"],
)
def test_an_answer_in_a_batch_without_our_nonce_is_refused(
    connect: Connect, server: FakeServer, answer: Callable[[FakeServer, bytes], bytes], code: str
) -> None:
    """Genuine evidence, and no way from our nonce to its root."""
    server.script = evidence_by(lambda nonce: answer(server, nonce))
    with pytest.raises(AttestationRefused) as refusal:
        connect(server.url)
    assert refusal.value.code == code
    assert server.paths() == ["/v1/evidence"]


def test_another_measurement_is_refused_and_gets_no_model(connect: Connect) -> None:
    """Code that the policy does not name, honestly attested."""
    with FakeServer(measurement="cd" * 32) as other:
        with pytest.raises(AttestationRefused) as refusal:
            connect(other.url, key=KEY).upload_model(ONNX, name="secret")
        assert refusal.value.verdict is not None
        assert any(c.got == "cd" * 32 for c in refusal.value.verdict.failures)
        assert other.paths() == ["/v1/evidence"]


def test_simulation_does_not_pass_a_production_policy(connect: Connect, server: FakeServer) -> None:
    """However genuine the simulated evidence is."""
    with pytest.raises(AttestationRefused) as refusal:
        connect(server.url, policy="production")
    assert refusal.value.code == "simulation_refused"
    assert refusal.value.verdict is not None
    assert refusal.value.verdict.label == "SIMULATED"


def test_evidence_from_the_future_is_refused(connect: Connect, server: FakeServer) -> None:
    """Clock skew: evidence that says it was made two hours from now."""
    slow = Clock(now=lambda: datetime.now(UTC) - timedelta(hours=2), monotonic=time.monotonic)
    with pytest.raises(AttestationRefused) as refusal:
        connect(server.url, clock=slow)
    assert refusal.value.code == "evidence_from_future"


def test_a_server_below_tls_1_3_is_refused(connect: Connect, server: FakeServer) -> None:
    """TLS 1.2 resumes sessions and renegotiates; its handshake is not completed."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    certificate = ssl.DER_cert_to_PEM_cert(server.identity.certificate_der)
    with ratls._in_memory(certificate.encode(), _pem(server)) as paths:
        old.load_cert_chain(*paths)
    with FakeServer(context=old) as weak:
        with pytest.raises(AttestationRefused) as refusal:
            connect(weak.url)
        assert refusal.value.code == "channel_tls"
        assert weak.application_bytes == 0


def _pem(server: FakeServer) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return server.identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_a_server_without_tls_is_refused(connect: Connect) -> None:
    """A plain HTTP server at the address: the handshake fails, nothing is said in clear."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        seen: list[bytes] = []
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(AttestationRefused) as refusal:
            connect(f"https://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert refusal.value.code == "channel_tls"
    assert b"evidence" not in seen[0]


# --- answers of somebody who is not verified ----------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(b"0" * (1 << 24))
ELSEWHERE = b"Location: https://127.0.0.1:1/v1/evidence\r\n"
HOSTILE = {
    "answer_redirect": b"HTTP/1.1 307 Go\r\n" + ELSEWHERE + b"Content-Length: 0\r\n\r\n",
    "answer_encoded": OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB,
    "answer_unframed": OK + b"\r\n{}",
    "answer_too_large": OK + b"Content-Length: 1048577\r\n\r\n",
    "answer_malformed": OK + b"Content-Length: 2\r\n\r\n{}",
    "evidence_status": b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("code", HOSTILE)
def test_hostile_answers_to_the_question_for_evidence(
    connect: Connect, server: FakeServer, code: str
) -> None:
    """Redirects, gzip bombs, unframed, oversized and unreadable answers are refused, each with its code and a
    verdict.
    """
    server.script = raw("/v1/evidence", HOSTILE[code])
    with pytest.raises(AttestationRefused) as refusal:
        connect(server.url)
    assert refusal.value.code == code
    assert refusal.value.verdict is not None and not refusal.value.verdict.passed
    assert server.paths() == ["/v1/evidence"]


def test_chunked_evidence_is_refused(connect: Connect, server: FakeServer) -> None:
    """Evidence must say its length at once; everything else may also be chunked."""
    server.script = raw("/v1/evidence", OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    with pytest.raises(AttestationRefused) as refusal:
        connect(server.url)
    assert refusal.value.code == "answer_unframed"


def test_truncated_evidence_is_no_evidence(connect: Connect, server: FakeServer) -> None:
    """The connection ends before the declared length: nobody answered, whatever came."""
    server.script = raw("/v1/evidence", OK + b"Content-Length: 4000\r\n\r\n{")
    with pytest.raises(Unavailable) as refusal:
        connect(server.url)
    assert refusal.value.code == "answer_truncated"


@pytest.mark.parametrize(
    "drip", [b"X-Slow: 1\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n", b"{"], ids=["head", "interim", "body"]
)
def test_evidence_that_drips_is_given_up(
    connect: Connect, server: FakeServer, monkeypatch: pytest.MonkeyPatch, drip: bytes
) -> None:
    """One line or byte at a time, each well within the time-out of a read: the whole has a deadline."""
    monkeypatch.setattr(flow, "EVIDENCE_DEADLINE_S", 0.4)

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        begun = {b"X": OK, b"{": OK + b"Content-Length: 4000\r\n\r\n"}
        connection.sendall(begun.get(drip[:1], b""))
        for _count in range(300):
            connection.sendall(drip)
            time.sleep(0.1)
        return True

    server.script = script
    began = time.monotonic()
    with pytest.raises(Unavailable) as refusal:
        connect(server.url)
    assert refusal.value.code == "answer_late"
    assert time.monotonic() - began < 15


def test_a_connection_that_took_too_long_may_not_drip_either(
    connect: Connect, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline passed while the connection was made (a slow name server): it ends as soon as it is there."""
    monkeypatch.setattr(flow, "EVIDENCE_DEADLINE_S", 0.3)
    at_once = socket.create_connection

    def slowly(*args: Any, **kwargs: Any) -> socket.socket:
        time.sleep(0.4)
        return at_once(*args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", slowly)

    def script(_: FakeServer, _got: Got, connection: ssl.SSLSocket) -> bool:
        connection.sendall(OK)
        for _count in range(300):
            connection.sendall(b"X-Slow: 1\r\n")
            time.sleep(0.1)
        return True

    server.script = script
    began = time.monotonic()
    with pytest.raises(Unavailable) as refusal:
        connect(server.url)
    assert refusal.value.code == "answer_late"
    assert time.monotonic() - began < 15


def test_evidence_that_drips_at_the_second_question_is_given_up(
    connect: Connect, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Busy first, on a connection that stays: its second answer has the same deadline."""
    monkeypatch.setattr(flow, "EVIDENCE_DEADLINE_S", 0.4)
    monkeypatch.setattr(flow, "MAX_PAUSE_S", 0.01)

    def script(fake: FakeServer, _got: Got, connection: ssl.SSLSocket) -> bool:
        if len(fake.requests) == 1:
            send(connection, 503, b"")
            return True
        connection.sendall(OK)
        for _count in range(300):
            connection.sendall(b"X-Slow: 1\r\n")
            time.sleep(0.1)
        return True

    server.script = script
    with pytest.raises(Unavailable) as refusal:
        connect(server.url)
    assert refusal.value.code == "answer_late"
    assert server.handshakes == 1


def test_a_busy_server_is_asked_again_and_then_left_alone(
    connect: Connect, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 to the question for evidence: at most three questions, at the pace that the server asks for."""
    monkeypatch.setattr(flow, "MAX_PAUSE_S", 0.01)
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"
    server.script = raw("/v1/evidence", busy, busy)
    connect(server.url)
    assert server.paths() == ["/v1/evidence"] * 3
    server.script = raw("/v1/evidence", busy, busy, busy, busy)
    with pytest.raises(Unavailable) as refusal:
        connect(server.url)
    assert refusal.value.code == "evidence_busy"
    assert len(server.requests) == 6


def test_cookies_are_neither_kept_nor_sent(connect: Connect, server: FakeServer) -> None:
    """A cookie would be an identity across servers."""
    real = server.answer_for

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        if got.path != "/v1/evidence":
            return False
        nonce = bytes.fromhex(got.target.rpartition("=")[2])
        send(connection, 200, real(nonce), {"Set-Cookie": "who=you; Path=/"})
        return True

    server.script = script
    connect(server.url).model("m")
    assert all("cookie" not in got.headers for got in server.requests)


def test_the_environment_takes_no_part(
    connect: Connect, server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No proxy, no .netrc credentials, no log of TLS secrets, whatever the environment says."""
    secrets_log = tmp_path / "keys"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("SSLKEYLOGFILE", str(secrets_log))
    connect(server.url).model("m")
    assert all("authorization" not in got.headers for got in server.requests)
    assert not secrets_log.exists()


def test_what_the_client_tells_about_itself(connect: Connect, server: FakeServer) -> None:
    """No coding is asked for, and no version that would fingerprint the caller."""
    connect(server.url)
    headers = server.requests[0].headers
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"] == "strongroom-client"


# --- answers of a verified server ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["answer_redirect", "answer_encoded", "answer_unframed"])
def test_a_verified_server_must_answer_properly_too(connect: Connect, server: FakeServer, code: str) -> None:
    """Unframed answers could be cut by the network, the others are never asked for."""
    client = connect(server.url)
    server.script = raw("/v1/models/m", HOSTILE[code])
    with pytest.raises(Refused) as refusal:
        client.model("m")
    assert refusal.value.code == code


def test_an_answer_longer_than_taken_is_refused(connect: Connect, server: FakeServer) -> None:
    """Also where the length is not declared: chunks are counted."""
    client = connect(server.url)
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    server.script = raw("/v1/models/m", OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 6)
    with pytest.raises(Refused) as refusal:
        client.model("m")
    assert refusal.value.code == "answer_too_large"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 103 Early\r\n\r\n" * 9,
        OK + b"A: b\r\n" * 200 + b"Content-Length: 0\r\n\r\n",
        OK + b"X: " + b"y" * (1 << 17) + b"\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ],
    ids=["interim", "fields", "bytes", "protocol"],
)
def test_heads_are_bounded_and_those_of_http(connect: Connect, server: FakeServer, head: bytes) -> None:
    """Whoever answers; here the question for evidence, and then a request of a server that was verified. The server
    does not end the connection: asyncio drops what it has not yet decrypted when the end is there already.
    """

    def script(_: FakeServer, _got: Got, connection: ssl.SSLSocket) -> bool:
        connection.sendall(head)
        return True

    server.script = script
    with pytest.raises(AttestationRefused) as refused:
        connect(server.url)
    assert refused.value.code == "answer_head"
    server.script = None
    client = connect(server.url)
    server.script = script
    with pytest.raises(Refused) as refusal:
        client.model("m")
    assert refusal.value.code == "answer_head"


def test_bytes_behind_an_answer_are_nobodys(connect: Connect, server: FakeServer) -> None:
    """A server that sends an answer too many: the next request gets its own, on another connection."""
    client = connect(server.url)
    forged = json.dumps(stored("forged")[0].info).encode()

    def script(fake: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        if got.path != "/v1/models/m" or fake.handshakes > 1:
            return False
        answer = OK + b"Content-Length: %d\r\n\r\n%s" % (len(forged), forged)
        connection.sendall(answer + answer)
        return True

    server.script = script
    assert client.model("m").metadata.name == "forged"
    assert client.model("m").metadata.name == "m"
    assert server.handshakes == 2


def test_bytes_that_come_while_nobody_asks_are_nobodys(connect: Connect, server: FakeServer) -> None:
    """The same, where they come later than the answer."""
    client = connect(server.url)
    answered, sent = threading.Event(), threading.Event()

    def script(fake: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        if got.path != "/v1/models/m" or fake.handshakes > 1:
            return False
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # nothing waits
        send(connection, 200, json.dumps(stored("m")[0].info).encode())
        answered.wait(20)
        connection.sendall(OK + b"Content-Length: 2\r\n\r\n{}")
        sent.set()
        return True

    server.script = script
    client.model("m")
    answered.set()
    assert sent.wait(20)
    if client.runner is not None:
        client.wait(asyncio.sleep(0.1))
    else:
        time.sleep(0.1)
    assert client.model("m").metadata.name == "m"
    assert server.handshakes == 2


def test_a_connection_that_ended_while_idle_carries_nothing(connect: Connect, server: FakeServer) -> None:
    """A changing call, which is never repeated, does not fail for a connection that had already ended."""
    client = connect(server.url, key=KEY)
    client.models()
    server.drop_connections()
    time.sleep(0.1)
    if client.runner is not None:
        client.wait(asyncio.sleep(0.1))
    client.upload_model(ONNX, name="up")
    assert server.paths().count("/v1/models/up") == 1 and server.handshakes == 2


def test_batching_is_asked_for_by_its_owner_alone(connect: Connect, server: FakeServer) -> None:
    """A field of the upload; without the word there is none."""
    client = connect(server.url, key=KEY)
    client.upload_model(ONNX, name="on", batching=True)
    client.upload_model(ONNX, name="off")
    fields = {
        got.target: got.headers.get("strongroom-batching") for got in server.requests if got.method == "PUT"
    }
    assert fields == {"/v1/models/on": "on", "/v1/models/off": None}


def test_connections_are_kept_and_used_again(connect: Connect, server: FakeServer) -> None:
    """Twenty requests, one handshake; and a connection that says that it ends is not used again."""
    client = connect(server.url)
    model = client.model("m")
    for number in range(20):
        assert client.run(model, [[number, 1.0]]).tolist() == [[2.0 * number, 2.0]]
    assert server.handshakes == 1
    server.script = always(200, json.dumps(stored("m")[0].info).encode(), {"Connection": "close"})
    client.model("m")
    server.script = None
    client.model("m")
    assert server.handshakes == 2


def test_a_refusal_before_the_whole_body_was_read_is_heard(connect: Connect, server: FakeServer) -> None:
    """A server may refuse an upload by its head and close; its answer is worth more than the write that failed."""
    client = connect(server.url, key=KEY)
    client.models()

    def read(reader: Any) -> Got | None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (line := reader.readline()):
                return None  # the end: this thread would look for more for ever, beside all later tests
            head += line
        return Got("PUT", "/v1/models/up", {}, b"") if head.startswith(b"PUT") else None

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        send(connection, 413, problem(413, "upload_too_large"))
        socket.socket.shutdown(connection, socket.SHUT_WR)
        for _count in range(200):  # as our server does: read on for a while, so that the answer is not lost
            if not connection.recv(1 << 16):
                break
        return True

    server.script, server._read = script, read
    server.drop_connections()
    time.sleep(0.1)
    with pytest.raises(LimitExceeded):
        client.upload_model(ONNX * (1 << 15), name="up")


def test_a_large_array_goes_and_comes_whole(connect: Connect, server: FakeServer) -> None:
    """Larger than any buffer on the way, in both directions; what comes back may be written to."""
    client = connect(server.url)
    x = np.random.default_rng(1).random((100_000, 2), dtype=np.float32)
    seen: list[tuple[int, int]] = []
    y = client.run(client.model("m"), x, progress=lambda *at: seen.append(at))
    assert np.array_equal(y, x * 2)
    assert y.flags.writeable and not y.flags.owndata
    assert seen[-1] == (len(x) * 8 + 128, len(x) * 8 + 128)


def test_more_callers_than_connections(server: FakeServer) -> None:
    """Twenty-four threads on one endpoint: sixteen connections at most, and every caller is served."""
    most: list[int] = []

    def script(fake: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        if got.path == "/v1/models/m":
            until = time.monotonic() + 5  # nobody is answered before as many are there as may be
            while max(most, default=0) < links.MAX_CONNECTIONS and time.monotonic() < until:
                most.append(len(fake.live))
                time.sleep(0.005)
            time.sleep(0.02)
            most.append(len(fake.live))
        return False

    with Client(server.url, policy=parse_policy(policy_text())) as client, ThreadPoolExecutor(24) as pool:
        client.models()
        server.script = script
        assert [m.id for m in pool.map(client.model, ["m"] * 72)] == ["m/versions/1"] * 72
        assert max(most) == links.MAX_CONNECTIONS
        link = client._session._endpoints[0].link
        assert len(link._idle) <= links.MAX_IDLE and not link._busy


def test_what_the_callers_callback_raises_reaches_the_caller(connect: Connect, server: FakeServer) -> None:
    """It ends that exchange, whose connection is not used again; the client goes on."""
    client = connect(server.url)
    model = client.model("m")

    def stop(_done: int, _total: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        client.run(model, [[1.0, 2.0]], progress=stop)
    assert client.run(model, [[1.0, 2.0]]).tolist() == [[2.0, 4.0]]
    assert server.handshakes == 2


@pytest.mark.parametrize("code", ["answer_redirect", "answer_encoded", "answer_unframed", "answer_too_large"])
def test_an_answer_that_is_not_taken_to_a_changing_call_is_no_refusal_of_the_change(
    connect: Connect, server: FakeServer, code: str
) -> None:
    """The server may have stored, deleted or loaded before it answered like that: nobody is told otherwise."""
    client = connect(server.url, key=KEY)
    answer = OK + b"Content-Length: 99999999\r\n\r\n" if code == "answer_too_large" else HOSTILE[code]
    for path, call in (
        ("/v1/models/new", lambda: client.upload_model(ONNX, name="new")),
        ("/v1/models/m", lambda: client.delete_model("m")),
        ("/v1/models/m/load", lambda: client.load_model("m")),
    ):
        server.script = raw(path, answer)
        with pytest.raises(Unavailable, match="may have been carried out") as refusal:
            call()
        assert refusal.value.code == code
        assert server.paths().count(path) == 1


def paged(*pages: tuple[list[dict[str, Any]], str]) -> Callable[[FakeServer, Got, ssl.SSLSocket], bool]:
    """A script that lists models page by page; a page of None is refused, as where its beginning was deleted."""
    left = list(pages)

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        if got.path != "/v1/models":
            return False
        models, after = left.pop(0) if len(left) > 1 else left[0]
        if after == "gone":
            send(connection, 400, problem(400, "parameter_invalid"))
        else:
            document: dict[str, Any] = {"models": models, **({"next": after} if after else {})}
            send(connection, 200, json.dumps(document).encode())
        return True

    return script


def test_lists_of_models_are_followed_to_their_end(connect: Connect, server: FakeServer) -> None:
    """Page after page; from the beginning where the model that a page begins behind is gone."""
    client = connect(server.url)
    one, two = (stored(name)[0].info for name in ("one", "two"))
    server.script = paged(([one], "one/versions/1"), ([two], ""))
    assert [m.name for m in client.models()] == ["one", "two"]
    assert [got.target for got in server.requests[-2:]] == [
        "/v1/models",
        "/v1/models?after=one%2Fversions%2F1",
    ]
    server.script = paged(([one], "one/versions/1"), ([], "gone"), ([two], ""))
    assert [m.name for m in client.models()] == ["two"]


def test_a_list_of_models_without_an_end_is_given_up(
    connect: Connect, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a verified server is not followed for ever; and a refused first page is not asked for again."""
    monkeypatch.setattr(calls, "MAX_PAGES", 3)
    client = connect(server.url)
    server.script = paged(([], "m/versions/1"))
    with pytest.raises(Failure) as fault:
        client.models()
    assert fault.value.code == "answer_malformed"
    assert server.paths().count("/v1/models") == 3
    server.script = paged(([], "gone"))
    with pytest.raises(InvalidRequest):
        client.models()
    assert server.paths().count("/v1/models") == 4
    server.script = always(200, b'{"models":[],"next":7}')
    with pytest.raises(Failure):
        client.models()


def test_the_certificate_of_the_verified_connection(connect: Connect, server: FakeServer) -> None:
    """None before the first verification; then what this server showed, and after a rotation the new one."""
    client = connect(server.url, attest=False)
    with pytest.raises(InvalidRequest) as refusal:
        _ = client.certificate
    assert refusal.value.code == "not_attested"
    for _ in range(2):
        client.attest()
        assert client.certificate == ssl.DER_cert_to_PEM_cert(server.identity.certificate_der)
        server.rotate()


def test_what_a_verification_rested_on_is_kept(connect: Connect, server: FakeServer) -> None:
    """Answer as received, this nonce, this leaf, the policy's text: enough to verify again, and none before."""
    answers = []

    def answer(nonce: bytes) -> bytes:
        answers.append(server.answer_for(nonce).replace(b'","', b'", "'))  # another spelling: kept as it came
        return answers[-1]

    server.script = evidence_by(answer)
    text = policy_text()
    client = connect(server.url, policy=parse_policy(text), attest=False)
    with pytest.raises(InvalidRequest) as caught:
        _ = client.bundle
    assert caught.value.code == "not_attested"
    for n in range(2):
        verdict = client.attest()
        kept = strongroom.parse_bundle(strongroom.encode_bundle(client.bundle))
        assert kept == client.bundle
        assert kept.answer == answers[n]
        assert kept.nonce.hex() == server.requests[n].target.rpartition("=")[2]
        assert kept.leaf == server.identity.certificate_der
        assert parse_policy(kept.policy) == parse_policy(text)
        assert kept.origin == server.url
        assert kept.software == f"strongroom/{strongroom.__version__}"
        again = strongroom.appraise_bundle(kept, policy=strongroom.Bundled(), now=strongroom.Bundled())
        assert again.passed and again.claims == verdict.claims


def test_the_policy_is_kept_as_its_file_has_it(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    """With the comments of whoever wrote it; a named one as the package has it."""
    path = tmp_path / "policy.toml"
    path.write_text("# reviewed by A.\n" + policy_text())
    assert connect(server.url, policy=str(path)).bundle.policy == path.read_text()
    with pytest.raises(AttestationRefused) as caught:
        connect(server.url, policy="production")
    assert caught.value.bundle is not None
    assert parse_policy(caught.value.bundle.policy).kind == "production"


def test_what_was_refused_is_kept_with_the_refusal(connect: Connect, server: FakeServer) -> None:
    """To be looked at, or handed to somebody: it is refused again, for the same reason."""
    other = parse_policy(policy_text(measurement="cd" * 32))
    client = connect(server.url, policy=other, attest=False)
    with FakeServer(script=evidence_by(server.answer_for)) as middle:
        for url, code in ((server.url, "measurement_not_accepted"), (middle.url, "channel_key_mismatch")):
            with pytest.raises(AttestationRefused) as caught:
                connect(url, policy=other)
            kept = caught.value.bundle
            assert kept is not None and caught.value.code == code
            again = strongroom.appraise_bundle(kept, policy=strongroom.Bundled(), now=strongroom.Bundled())
            assert again.code == code
    with pytest.raises(InvalidRequest):
        _ = client.bundle


@pytest.mark.parametrize(
    ("body", "code"), [(b"", "answer_malformed"), (b"{}", "answer_malformed"), (b"\xff" * 99, "answer_malformed")],
    ids=range(3),
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_kept_too(
    connect: Connect, server: FakeServer, body: bytes, code: str
) -> None:
    """Byte for byte."""
    server.script = always(200, body)
    with pytest.raises(AttestationRefused) as caught:
        connect(server.url)
    assert caught.value.code == code
    assert caught.value.bundle is not None and caught.value.bundle.answer == body


def test_without_evidence_there_is_nothing_to_keep(connect: Connect, server: FakeServer) -> None:
    """A status, a redirect."""
    for status, headers in ((404, None), (302, {"Location": "/"})):
        server.script = always(status, b"", headers)
        with pytest.raises(AttestationRefused) as caught:
            connect(server.url)
        assert caught.value.bundle is None


def test_a_chunked_answer_is_taken(connect: Connect, server: FakeServer) -> None:
    """Chunked framing shows truncation as well as a length does."""
    client = connect(server.url)
    body = json.dumps(stored("m")[0].info).encode()
    server.script = raw(
        "/v1/models/m", OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    )
    assert client.model("m").metadata.name == "m"


def test_a_truncated_result_is_asked_for_once_more(connect: Connect, server: FakeServer) -> None:
    """Inference changes nothing, so it may be repeated; what was cut is never taken for the whole."""
    client = connect(server.url)
    model = client.model("m")
    path = "/v2/models/m/versions/1/infer"
    cut = OK + b"Content-Type: application/x-npy\r\nContent-Length: 900\r\n\r\n\x93NUMPY"
    server.script = raw(path, cut)
    assert client.run(model, [[1.0, 2.0]]).tolist() == [[2.0, 4.0]]
    server.script = raw(path, cut, cut)
    with pytest.raises(Unavailable) as refusal:
        client.run(model, [[1.0, 2.0]])
    assert refusal.value.code == "answer_truncated"
    assert server.paths().count(path) == 4


def test_an_upload_is_never_repeated_after_it_was_sent(connect: Connect, server: FakeServer) -> None:
    """The server may have stored it; the error says so and the caller looks."""
    client = connect(server.url, key=KEY)
    client.models()
    server.script = raw("/v1/models/up", b"", b"", b"")
    with pytest.raises(Unavailable) as refusal:
        client.upload_model(ONNX, name="up")
    assert refusal.value.code == "connection_lost"
    assert server.paths().count("/v1/models/up") == 1


def test_a_delete_is_never_repeated_after_it_was_sent(connect: Connect, server: FakeServer) -> None:
    """In between, the owner may have uploaded a new version under the name."""
    client = connect(server.url, key=KEY)
    client.models()
    server.script = raw("/v1/models/m", b"", b"", b"")
    with pytest.raises(Unavailable):
        client.delete_model("m")
    assert server.paths().count("/v1/models/m") == 1


def test_slowness_is_not_answered_with_more_load(connect: Connect, server: FakeServer) -> None:
    """A request that ran out of time is not sent again."""
    client = connect(server.url, timeout=1.0)
    late = threading.Event()

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        late.wait(20)
        return False

    server.script = script
    with pytest.raises(Unavailable) as refusal:
        client.model("m")
    late.set()
    assert refusal.value.code == "answer_late"
    assert server.paths().count("/v1/models/m") == 1


def test_what_takes_long_to_make_is_waited_for(connect: Connect, server: FakeServer) -> None:
    """An upload of which something is made; that this server makes nothing is noticed, too."""
    client = connect(server.url, key=KEY, timeout=1.0)

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        if got.method == "PUT":
            time.sleep(1.5)
        return False

    server.script = script
    with pytest.raises(Unavailable) as late:
        client.upload_model(ONNX, name="up")
    assert late.value.code == "answer_late"
    with pytest.raises(Failure) as other:
        client.upload_model(ONNX, name="up", precision="fp16")
    assert other.value.code == "answer_malformed"


def test_an_answer_that_does_not_say_its_precision_is_not_taken(connect: Connect, server: FakeServer) -> None:
    """Demanded or not; the metadata alone is a promise."""
    client = connect(server.url)
    model = client.model("m")
    client.run(model, [[1.0, 2.0]], precision="fp32")
    server.says_precision = False
    for action in (
        lambda: client.run(model, [[1.0, 2.0]]),
        lambda: client.run(model, [[1.0, 2.0]], precision="fp32"),
        lambda: client.wait(model.predict([[1.0, 2.0]], precision=["int8", "fp32"])),
        lambda: client.run_model("m", [[1.0, 2.0]], precision="fp32"),
    ):
        with pytest.raises(Conflict) as refusal:
            action()
        assert refusal.value.code == "precision_refused"
    before = len(server.requests)
    with pytest.raises(Conflict):
        client.run(model, [[1.0, 2.0]], precision="int8")
    assert len(server.requests) == before  # nothing was sent for that


# --- restarts, rotations, balancers, expiry -----------------------------------------------------------------


def test_a_restarted_server_is_verified_again_before_anything_is_sent(connect: Connect) -> None:
    """New key on the same port: the old connection is gone; the new one is refused, attested, then used."""
    with FakeServer(port=lasting_port(), models={"m": stored("m")}) as before:
        client = connect(before.url, key=KEY)
        model = client.model("m")
        before.close()
        with FakeServer(port=before.port, models={"m": stored("m")}) as after:
            assert client.run(model, [[3.0, 4.0]]).tolist() == [[6.0, 8.0]]
            assert after.paths() == ["/v1/evidence", "/v2/models/m/versions/1/infer"]


def test_a_server_that_is_gone_for_a_moment_is_waited_for(connect: Connect) -> None:
    """Refused connections right after a verified server: nothing is sent until it is back and verified."""
    with FakeServer(port=lasting_port(), models={"m": stored("m")}) as before:
        client = connect(before.url, patience=10.0)
        before.close()
        back: list[FakeServer] = []

        def return_later() -> None:
            time.sleep(0.5)
            back.append(FakeServer(port=before.port, models={"m": stored("m")}))

        thread = threading.Thread(target=return_later)
        thread.start()
        assert client.model("m").metadata.name == "m"
        thread.join()
        assert back[0].paths() == ["/v1/evidence", "/v1/models/m"]
        back[0].close()


def test_patience_ends(connect: Connect, server: FakeServer) -> None:
    """A server that stays away is unreachable."""
    client = connect(server.url, patience=0.3)
    server.close()
    with pytest.raises(Unavailable) as refusal:
        client.model("m")
    assert refusal.value.code == "server_unreachable"


def test_a_server_that_comes_back_as_another_is_refused(connect: Connect) -> None:
    """A restart into other code: the request does not leave."""
    with FakeServer(port=lasting_port(), models={"m": stored("m")}) as before:
        client = connect(before.url, key=KEY)
        model = client.model("m")
        before.close()
        with FakeServer(port=before.port, measurement="cd" * 32, models={"m": stored("m")}) as after:
            with pytest.raises(AttestationRefused):
                client.run(model, [[1.0, 2.0]])
            assert after.paths() == ["/v1/evidence"]


def test_key_rotation_is_followed(connect: Connect, server: FakeServer) -> None:
    """The open connection goes on under the old key; the next one is verified under the new."""
    client = connect(server.url, key=KEY)
    first = client.attestation.keyset_digest
    server.rotate()
    client.model("m")
    assert server.paths().count("/v1/evidence") == 1
    server.drop_connections()
    client.model("m")
    assert server.paths().count("/v1/evidence") == 2
    assert client.attestation.keyset_digest != first


def test_two_servers_behind_one_balancer(connect: Connect) -> None:
    """Every new connection lands on the other server: each is verified before use, tokens fit the server they
    reach.
    """
    with (
        FakeServer(models={"m": stored("m")}) as one,
        FakeServer(models={"m": stored("m")}) as two,
        Balancer([one.port, two.port, two.port, one.port]) as balancer,
    ):
        client = connect(balancer.url, key=KEY)
        for _ in range(4):
            assert client.load_model("m").loaded
            balancer.drop()
        for each in (one, two):
            assert each.paths()[0] == "/v1/evidence"
            assert "/v1/models/m/load" in each.paths()


def test_a_server_that_keeps_changing_its_key_is_not_followed_for_ever(
    connect: Connect, server: FakeServer
) -> None:
    """Each verified connection ends at once, and the next shows another key."""
    client = connect(server.url)
    server.drop_connections()

    def script(fake: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        if got.path == "/v1/evidence":
            nonce = bytes.fromhex(got.target.rpartition("=")[2])
            answer = fake.answer_for(nonce)
            fake.rotate()
            send(connection, 200, answer, {"Connection": "close"})
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
            return True
        return False

    server.rotate()
    server.script = script
    with pytest.raises(Unavailable) as refusal:
        client.model("m")
    assert refusal.value.code == "server_changing"
    assert server.paths().count("/v1/models/m") == 0


def test_many_threads_through_a_balancer() -> None:
    """One client, eight threads, two servers: every request reaches a server that was verified for it."""
    with (
        FakeServer(models={"m": stored("m")}) as one,
        FakeServer(models={"m": stored("m")}) as two,
        Balancer([one.port, two.port]) as balancer,
        Client(balancer.url, policy=parse_policy(policy_text()), key=KEY) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        model = client.model("m")
        results = list(pool.map(lambda i: float(model.run([[i, i]])[0, 0]), range(64)))
        assert results == [2.0 * i for i in range(64)]
        for each in (one, two):
            assert not each.requests or each.paths()[0] == "/v1/evidence"


class Moved:
    """Clocks that a test moves."""

    def __init__(self) -> None:
        self.monotonic_s, self.wall_s = 0.0, 0.0

    def clock(self) -> Clock:
        return Clock(
            now=lambda: datetime.now(UTC) + timedelta(seconds=self.wall_s),
            monotonic=lambda: time.monotonic() + self.monotonic_s,
        )


def test_an_expired_verdict_is_renewed_before_the_next_request(connect: Connect, server: FakeServer) -> None:
    """An hour on the monotonic clock later: evidence first, then the request."""
    moved = Moved()
    client = connect(server.url, clock=moved.clock())
    client.models()
    moved.monotonic_s = 3601.0
    client.models()
    assert server.paths() == ["/v1/evidence", "/v1/models", "/v1/evidence", "/v1/models"]


def test_a_request_is_not_repeated_on_an_expired_verdict(connect: Connect, server: FakeServer) -> None:
    """The verdict ran out while the answer was awaited that never came: evidence first, then once more."""
    moved = Moved()
    client = connect(server.url, clock=moved.clock())

    def script(fake: FakeServer, got: Got, _connection: ssl.SSLSocket) -> bool:
        if got.path != "/v1/models" or fake.paths().count("/v1/models") > 1:
            return False
        moved.monotonic_s = 3601.0
        raise ConnectionResetError("hangs up")

    server.script = script
    client.models()
    assert server.paths() == ["/v1/evidence", "/v1/models", "/v1/evidence", "/v1/models"]


def test_a_machine_that_slept_renews_its_verdict(connect: Connect, server: FakeServer) -> None:
    """The monotonic clock may stand still in sleep; the wall clock does not. Stale evidence is refused by its
    age.
    """
    moved = Moved()
    client = connect(server.url, clock=moved.clock())
    moved.wall_s = 3601.0
    with pytest.raises(AttestationRefused):
        client.models()
    assert server.paths() == ["/v1/evidence", "/v1/evidence"]


def test_at_most_eight_endpoints_are_kept(server: FakeServer) -> None:
    """The least recently used one makes room, and is closed only once nobody uses it."""
    session = Session(
        policy=parse_policy(policy_text()),
        policy_text="",
        origin="",
        key=None,
        clock=SYSTEM_CLOCK,
        random=lambda n: b"n" * n,
        patience_s=0,
    )
    links = transport.Transport(transport.parse_origin(server.url), timeout_s=5)
    endpoints = [flow.drive_to_end(flow.attest_flow(session), links.perform) for _ in range(10)]
    assert session.closable() == []
    for endpoint in endpoints:
        session.release(endpoint)
    assert session.closable() == endpoints[:2]
    links.close()


# --- tokens -------------------------------------------------------------------------------------------------


def test_a_stale_nonce_is_replaced_once(connect: Connect, server: FakeServer) -> None:
    """401 comes before anything is done, so even an upload may follow it with a new nonce."""
    client = connect(server.url, key=KEY)
    server.nonce_shift = 1000.0
    assert client.upload_model(ONNX, name="up").metadata.name == "up"
    assert server.paths().count("/v1/models/up") == 2


def test_a_server_that_wants_newer_nonces_for_ever_is_not_followed(
    connect: Connect, server: FakeServer
) -> None:
    """One repetition, then its refusal is the caller's."""
    client = connect(server.url, key=KEY)
    count = iter(range(100))

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        send(connection, 401, problem(401, "auth_nonce_stale"), {"Strongroom-Nonce": f"n{next(count)}"})
        return True

    server.script = script
    with pytest.raises(AccessRefused) as refusal:
        client.models()
    assert refusal.value.code == "auth_nonce_stale"
    assert server.paths().count("/v1/models") == 2


def test_a_large_upload_does_not_start_with_an_old_nonce(connect: Connect, server: FakeServer) -> None:
    """Its refusal would cost the whole body: a new nonce is fetched first."""
    moved = Moved()
    client = connect(server.url, key=KEY, clock=moved.clock())
    moved.monotonic_s = 200.0
    client.upload_model(ONNX * 400, name="up")
    assert server.paths() == ["/v1/evidence", "/v2/health/live", "/v1/models/up"]


def test_reading_tokens_are_used_again_and_changing_ones_never(connect: Connect, server: FakeServer) -> None:
    """One signature serves many reads of one minute; each change has its own token."""
    client = connect(server.url, key=KEY)
    for _ in range(2):
        client.models()
        client.load_model("m")
    seen = {got.path: set[str]() for got in server.requests}
    for got in server.requests:
        seen[got.path].add(got.headers.get("authorization", ""))
    assert len(seen["/v1/models"]) == 1
    assert len(seen["/v1/models/m/load"]) == 2


def test_without_a_key_no_token_is_sent_and_changes_are_refused(connect: Connect, server: FakeServer) -> None:
    """The server's refusal arrives as the error it is."""
    client = connect(server.url)
    assert client.principal is None
    with pytest.raises(AccessRefused) as refusal:
        client.load_model("m")
    assert refusal.value.code == "auth_required"
    assert all("authorization" not in got.headers for got in server.requests)


def test_a_nonce_that_is_no_nonce_is_not_put_into_a_token(connect: Connect, server: FakeServer) -> None:
    """Header text is not passed on unseen."""
    client = connect(server.url, key=KEY)
    endpoint = flow.Endpoint(gate=ratls.Gate(), link=None)
    session = client._session
    session.note_nonce(endpoint, calls.Answer(200, {"strongroom-nonce": "a b"}, b""))
    assert endpoint.nonce is None


# --- models -------------------------------------------------------------------------------------------------


def test_the_main_job(connect: Connect, server: FakeServer) -> None:
    """Upload, find, run, delete; all on the connection that carried the evidence."""
    client = connect(server.url, key=KEY)
    progress: list[tuple[int, int]] = []
    model = client.upload_model(
        ONNX, name="up", access="public", progress=lambda done, total: progress.append((done, total))
    )
    assert progress[-1] == (len(ONNX), len(ONNX))
    assert model.id == "up/versions/1"
    assert model.metadata.owner == client.principal
    assert client.run_model("up/versions/1", [[1.0, 2.0]]).tolist() == [[2.0, 4.0]]
    assert client.run_model(model, {"x": [[1.0, 2.0]]}).keys() == {"y", "z", "words"}
    assert [m.id for m in client.models()] == ["m/versions/1", "up/versions/1"]
    assert client.unload_model(model).loaded is False
    assert client.delete_model(model) == ("up/versions/1",)
    with pytest.raises(NotFound):
        client.model("up")
    assert server.handshakes == 1
    assert "SIMULATED" in repr(client.client) and "SIMULATED" in repr(model)


def test_arrays_in_and_out(connect: Connect, server: FakeServer) -> None:
    """An array gives the primary output, a dict gives all, names choose; strings travel as JSON."""
    client = connect(server.url)
    model = client.model("m")
    x = np.array([[1.0, -2.0]])
    assert client.run(model, x).dtype == np.float32
    assert client.run(model, x, "z").tolist() == [[-1.0, 2.0]]
    assert client.run(model, x, ["z", "y"]).keys() == {"z", "y"}
    assert client.run(model, x, "words").tolist() == [[b"plus", b"minus"]]
    assert client.wait(model.predict([[1, 2], [3, 4]])).tolist() == [[2.0, 4.0], [6.0, 8.0]]


@pytest.mark.parametrize("table", [[1.0, 2.0], 3.0, np.zeros((1, 2, 3))])
def test_predict_takes_tables_only(connect: Connect, server: FakeServer, table: Any) -> None:
    """As scikit-learn does: a single row is refused, because it could as well be a column."""
    client = connect(server.url)
    with pytest.raises(InvalidRequest) as refusal:
        client.wait(client.model("m").predict(table))
    assert refusal.value.code == "input_not_2d"


def test_expect_digest(connect: Connect, server: FakeServer) -> None:
    """Two accepted servers are not interchangeable: the digest says which model is meant."""
    client = connect(server.url)
    digest = client.model("m").metadata.sha256
    assert client.model("m", "1", expect_digest=digest.upper()).id == "m/versions/1"
    with pytest.raises(Conflict) as refusal:
        client.model("m", expect_digest="0" * 64)
    assert refusal.value.code == "model_digest_mismatch"


def test_a_model_that_changed_behind_its_name_is_refused_by_the_server_and_by_the_client(
    connect: Connect, server: FakeServer
) -> None:
    """The request names the digest; and an answer from another model, or from none, is not taken."""
    client = connect(server.url)
    model = client.model("m")
    server.models["m"] = stored("m", b"other bytes")
    with pytest.raises(Conflict) as refusal:
        client.run(model, [[1.0, 2.0]])
    assert refusal.value.code == "model_digest_mismatch"
    for headers in ({"Strongroom-Model-SHA256": "0" * 64}, {}):
        server.script = always(200, b"", headers)
        with pytest.raises(Conflict):
            client.run(model, [[1.0, 2.0]])


def test_an_upload_that_arrived_as_something_else_is_noticed(connect: Connect, server: FakeServer) -> None:
    """The server's digest of what it stored is compared with ours."""
    client = connect(server.url, key=KEY)
    other = json.dumps(stored("up", b"other")[0].info).encode()
    server.script = always(201, other)
    with pytest.raises(Conflict) as refusal:
        client.upload_model(ONNX, name="up")
    assert refusal.value.code == "model_digest_mismatch"


@pytest.mark.parametrize("source", ["path", "str", "bytes", "bytearray", "file", "pipe", "middle"])
def test_what_can_be_uploaded(connect: Connect, server: FakeServer, tmp_path: Path, source: str) -> None:
    """Paths, bytes and binary files, seekable or not, from where they stand."""
    path = tmp_path / "model.onnx"
    path.write_bytes(ONNX * 1000)

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    middle = io.BytesIO(b"skipped" + ONNX * 1000)
    middle.seek(7)
    with path.open("rb") as file:
        sources: dict[str, Any] = {
            "path": path, "str": str(path), "bytes": path.read_bytes(), "bytearray":
            bytearray(path.read_bytes()), "file": file, "pipe": Pipe(ONNX * 1000), "middle": middle,
        }  # fmt: skip
        model = connect(server.url, key=KEY).upload_model(sources[source], name="up")
    assert model.metadata.size == len(ONNX) * 1000
    assert server.requests[-1].body == ONNX * 1000


def test_what_cannot_be_uploaded(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    """Refused before a connection is used; the message does not quote the file. What a text stream gives is
    never taken for the path of a file to send.
    """
    client = connect(server.url, key=KEY)
    secret = tmp_path / "secret.onnx"
    secret.write_bytes(ONNX)

    class TextPipe(io.StringIO):
        def seekable(self) -> bool:
            return False

    for source, code in [
        (tmp_path / "absent", "upload_unreadable"),
        (io.StringIO("text"), "upload_unreadable"),
        (TextPipe(str(secret)), "upload_unreadable"),
        (b"no model", "format_unknown"),
        (b"\x80\x04pickle", "format_not_accepted"),
        (b"", "format_unknown"),
    ]:
        with pytest.raises(Error) as refusal:
            client.upload_model(source, name="up")
        assert refusal.value.code == code
    with pytest.raises(InvalidRequest) as refused:
        client.upload_model(ONNX, name="up", access="everybody")
    assert refused.value.code == "access_invalid"
    assert server.paths() == ["/v1/evidence"]


def test_a_file_that_changes_while_it_is_sent(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    """Neither more nor fewer bytes than were hashed are sent."""
    path = tmp_path / "model.onnx"
    path.write_bytes(ONNX * 1000)
    client = connect(server.url, key=KEY)

    def shrink(_done: int, _total: int) -> None:
        path.write_bytes(ONNX)

    with pytest.raises(InvalidRequest) as refusal:
        client.upload_model(path, name="up", progress=shrink)
    assert refusal.value.code == "upload_changed"


def test_errors_of_the_server_are_its_errors(connect: Connect, server: FakeServer) -> None:
    """Each status has its family; codes of later versions keep their family and are named in the text."""
    client = connect(server.url)
    cases = [
        (404, "not_found", NotFound, "not_found"),
        (403, "auth_wrong_server", AccessRefused, "auth_wrong_server"),
        (409, "made_up_later", Conflict, "conflict"),
        (422, "made_up_later", strongroom.AdmissionRefused, "admission_refused"),
        (413, "body_too_large", strongroom.LimitExceeded, "body_too_large"),
        (400, "request_invalid", InvalidRequest, "request_invalid"),
        (500, "internal_error", Failure, "internal_error"),
        (500, "seal_chunk", strongroom.SealRefused, "seal_chunk"),
        (503, "overloaded", Unavailable, "overloaded"),
    ]
    for status, code, kind, expected in cases:
        server.script = always(status, problem(status, code, "why\x1b[2J"))
        with pytest.raises(kind) as refusal:
            client.models()
        assert refusal.value.code == expected
        assert refusal.value.message.startswith("why [2J")
        assert (code in refusal.value.message) == (code == "made_up_later")


def test_a_closed_client_says_so(connect: Connect, server: FakeServer) -> None:
    """Instead of opening new connections."""
    client = connect(server.url)
    client.close()
    with pytest.raises(InvalidRequest) as refusal:
        client.models()
    assert refusal.value.code == "client_closed"


def test_nothing_was_verified_yet(connect: Connect, server: FakeServer) -> None:
    """There is no verdict to show before there is one; the first call attests by itself."""
    client = connect(server.url, attest=False)
    with pytest.raises(InvalidRequest) as refusal:
        _ = client.attestation
    assert refusal.value.code == "not_attested"
    client.models()
    assert server.paths() == ["/v1/evidence", "/v1/models"]
    assert client.attestation.passed and client.store_id == "5" * 32


# --- connecting ---------------------------------------------------------------------------------------------


def test_connect_and_aconnect(server: FakeServer, tmp_path: Path) -> None:
    """`connect` attests at once; `aconnect` may be awaited or entered; policies and keys may be paths."""
    policy, key = tmp_path / "policy.toml", tmp_path / "key.pem"
    policy.write_text(policy_text())
    key.write_bytes(KEY)
    with strongroom.connect(server.url, policy=policy, key=key) as client:
        assert client.attestation.claims is not None
        assert client.attestation.claims.measurement == MEASUREMENT
        assert client.url == server.url

    async def both() -> None:
        async with strongroom.aconnect(server.url, policy=str(policy), key=str(key)) as one:
            assert one.attestation.passed
        two = await strongroom.aconnect(server.url, policy=policy)
        assert [m.id for m in await two.models()] == ["m/versions/1"]
        await two.close()

    asyncio.run(both())


def test_aconnect_to_a_wrong_server(server: FakeServer) -> None:
    """Both forms raise, and leave no connection behind."""

    async def both() -> None:
        with pytest.raises(AttestationRefused):
            await strongroom.aconnect(server.url, policy="production")
        with pytest.raises(AttestationRefused):
            async with strongroom.aconnect(server.url, policy="production"):
                pytest.fail("entered")

    asyncio.run(both())


def test_a_cancelled_call_leaves_the_client_usable(server: FakeServer) -> None:
    """asyncio: leases are given back, the next call works."""

    cancelled = threading.Event()

    def script(_: FakeServer, got: Got, connection: ssl.SSLSocket) -> bool:
        return got.path == "/v1/models" and not cancelled.wait(20)

    async def story() -> None:
        async with strongroom.aconnect(server.url, policy=parse_policy(policy_text())) as client:
            server.script = script
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.models()
            cancelled.set()
            assert (await client.model("m")).id == "m/versions/1"
            assert all(e.leases == 0 for e in client._session._endpoints)

    asyncio.run(story())


def test_nobody_there(connect: Connect) -> None:
    """A refused connection at once, without patience: there was no server before."""
    port = lasting_port()
    began = time.monotonic()
    with pytest.raises(Unavailable) as refusal:
        connect(f"https://127.0.0.1:{port}")
    assert refusal.value.code == "server_unreachable"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "url",
    ["http://h:1", "ftp://h", "https://", "https://h/path", "https://h?q=1", "https://u:p@h",
    "https://h:99999", "https://h:0",
     "https://h#f", "https://[::1", "https://a b", "https://\u202e", "https://h\x00",
     "h", "h:8443", "127.0.0.1:1", "https:h", ""],
)  # fmt: skip
def test_addresses_that_are_refused(url: str) -> None:
    """Only https://host:port, the scheme included; in particular no credentials and no clear text."""
    with pytest.raises(InvalidRequest) as refusal:
        transport.parse_origin(url)
    assert refusal.value.code == "url_invalid"


@pytest.mark.parametrize(
    "url", ["https://h", "https://h:8443", "https://h:8443/", "https://[::1]:8443", "https://127.0.0.1:1"]
)
def test_addresses_that_are_taken(url: str) -> None:
    """Scheme, host, and a port where it is not 443."""
    assert transport.parse_origin(url).url.startswith("https://")


def test_policies_that_cannot_be_used(tmp_path: Path) -> None:
    """A missing file, one that is no text, an empty one: never an accepting policy."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text("")
    for name, code in [
        ("absent", "policy_unreadable"),
        ("binary", "policy_unreadable"),
        ("empty", "policy_empty"),
    ]:
        with pytest.raises(InvalidPolicy) as refusal:
            strongroom.connect("https://h:1", policy=tmp_path / name)
        assert refusal.value.code == code
    with pytest.raises(InvalidPolicy, match="absent does not exist"):
        strongroom.connect("https://h:1", policy=tmp_path / "absent")


@pytest.mark.parametrize("policy", [None, 7, b"text"])
def test_no_policy_is_no_permission(policy: Any) -> None:
    """A caller without types who passes None, or anything else, gets an error of ours."""
    with pytest.raises(InvalidPolicy) as refusal:
        strongroom.connect("https://h:1", policy=policy)
    assert refusal.value.code == "policy_missing"


@pytest.mark.parametrize("source", [None, 7, "absent.onnx"])
def test_models_that_cannot_be_read(source: Any) -> None:
    """Neither a path nor bytes nor a file, or a path to nothing: an error of ours that says which."""
    with pytest.raises(InvalidRequest) as refusal:
        prepare_upload(source)
    assert refusal.value.code == "upload_unreadable"
    assert ("does not exist" in refusal.value.message) == (source == "absent.onnx")


def test_a_key_where_its_path_belongs_is_not_repeated() -> None:
    """Neither in the message nor in an exception behind it."""
    text = tokens.new_key_pem().decode()
    with pytest.raises(MalformedInput) as caught:
        sources.load_key(text)
    assert caught.value.code == "key_unreadable"
    shown = "".join(traceback.format_exception(caught.value, chain=True))
    assert text.splitlines()[1] not in shown


def test_keys_that_cannot_be_used(tmp_path: Path) -> None:
    """A missing or wrong key is an error, not an anonymous caller."""
    policy = parse_policy(policy_text())
    for key, code in [(tmp_path / "absent", "key_unreadable"), (b"no pem", "key_malformed")]:
        with pytest.raises(MalformedInput) as refusal:
            strongroom.connect("https://h:1", policy=policy, key=key)
        assert refusal.value.code == code


def test_the_first_look_checks_everything_but_the_choice(server: FakeServer) -> None:
    """Trust on first use writes a policy for what answered, and refuses relayed or stale evidence as ever."""

    def look(url: str) -> tuple[str, Any]:
        links = transport.Transport(transport.parse_origin(url), timeout_s=5)
        try:
            return flow.drive_to_end(flow.unsafe_first_look(SYSTEM_CLOCK, lambda n: b"n" * n), links.perform)
        finally:
            links.close()

    text, attested = look(server.url)
    assert attested.claims.measurement == MEASUREMENT
    with Client(server.url, policy=parse_policy(text)) as client:
        assert client.attest().passed
    assert set(server.paths()) == {"/v1/evidence"}
    with FakeServer(script=evidence_by(server.answer_for)) as middle:
        with pytest.raises(AttestationRefused) as refusal:
            look(middle.url)
        assert refusal.value.code == "channel_key_mismatch"
    server.script = evidence_by(lambda _nonce: server.answer_for(b"o" * 32))
    with pytest.raises(AttestationRefused) as refusal:
        look(server.url)
    assert refusal.value.code == "report_data_mismatch"


def test_the_fake_server_is_what_the_policy_means() -> None:
    """The fixture itself: its root and measurement are the ones that the tests' policy names."""
    policy = parse_policy(policy_text())
    assert policy.simulated
    assert ROOT.public_key() is not None


# --- after a fork -------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> None:
    """Has `work` done in a forked process, whose end says whether it went well."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_forked_process_has_connections_of_its_own(connect: Connect, server: FakeServer) -> None:
    """Two processes that write on one TLS connection would encrypt under the same keys and nonces."""
    client = connect(server.url)
    client.models()
    before = server.handshakes

    def ask() -> None:
        other = AsyncClient if isinstance(client.client, AsyncClient) else None
        assert len(asyncio.run(client.client.models()) if other else client.models()) == 1

    in_child(ask)
    assert server.handshakes == before + 1
    client.models()  # the connection of before is there still
    assert server.handshakes == before + 1


def test_a_forked_process_ends_no_connection_of_its_parent(server: FakeServer) -> None:
    """What is under way there at that moment goes on, although the child closes the client."""
    forked: list[int] = []
    with Client(server.url, policy=parse_policy(policy_text()), key=KEY) as client:

        def meanwhile(done: int, total: int) -> None:
            if not forked:
                assert done < total
                forked.append(done)
                in_child(client.close)

        client.upload_model(ONNX * 2000, name="n", progress=meanwhile)
        assert forked
