"""The server's TLS connections: whatever records come, the event loop gets back in milliseconds."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from test_edge import GET, IDENTITY, World, drain, wait_for, world

from strongroom import link, ratls
from strongroom.link import RECORDS, whole_records

UPDATE = b"\x18\x00\x00\x01\x00"
"""A key update that asks for none in return (RFC 8446 §4.6.3)."""
ASKING = b"\x18\x00\x00\x01\x01"
"""One that does."""
HANDSHAKE, DATA = b"\x16", b"\x17"


class Speaker:
    """A client's side of TLS 1.3 written here (RFC 8446 §5, §7), for what no library sends."""

    def __init__(self, secret: bytes) -> None:
        self.secret, self.sequence = secret, 0

    def _expand(self, label: bytes, length: int) -> bytes:
        info = length.to_bytes(2, "big") + bytes([len(label) + 6]) + b"tls13 " + label + b"\0"
        return HKDFExpand(SHA384(), length, info).derive(self.secret)

    def record(self, kind: bytes, content: bytes, *, padding: int = 0) -> bytes:
        """One encrypted record."""
        inner = content + kind + bytes(padding)
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = int.from_bytes(self._expand(b"iv", 12), "big") ^ self.sequence
        self.sequence += 1
        return header + AESGCM(self._expand(b"key", 32)).encrypt(nonce.to_bytes(12, "big"), inner, header)

    def update(self, message: bytes = UPDATE) -> bytes:
        """A key update, after which the next key counts."""
        record = self.record(HANDSHAKE, message)
        self.secret, self.sequence = self._expand(b"traffic upd", 48), 0
        return record


@pytest.fixture
def speak(tmp_path: Path) -> Callable[[World], tuple[ssl.SSLSocket, Speaker]]:
    """Makes a connection, whose library only reads, and what writes on it."""

    def make(here: World) -> tuple[ssl.SSLSocket, Speaker]:
        context = ratls.Gate.pinned(ratls.spki_sha256(IDENTITY.certificate_der)).client_context()
        context.keylog_filename = str(tmp_path / "keys")
        tls = context.wrap_socket(_tcp(here), server_hostname="localhost")
        cipher: Any = tls.cipher()
        assert cipher[0] == "TLS_AES_256_GCM_SHA384"
        lines = (tmp_path / "keys").read_text().splitlines()
        secret = next(one.split()[2] for one in reversed(lines) if one.startswith("CLIENT_TRAFFIC_SECRET_0 "))
        return tls, Speaker(bytes.fromhex(secret))

    return make


def _tcp(here: World) -> socket.socket:
    return socket.create_connection(("127.0.0.1", here.port), 5)


def say(tls: ssl.SSLSocket, data: bytes) -> None:
    """Sends bytes beside the library."""
    socket.socket.sendall(tls, data)


Speak = Callable[[World], tuple[ssl.SSLSocket, Speaker]]


@pytest.mark.parametrize("message", [UPDATE, ASKING])
def test_key_updates_are_followed(speak: Speak, message: bytes) -> None:
    """Some before a request, and between its pieces, as a client of many records may send them."""
    with world() as here:
        tls, speaker = speak(here)
        request = GET + b"Connection: close\r\n\r\n"
        for piece in (request[:10], request[10:]):
            say(tls, b"".join(speaker.update(message) for _ in range(5)) + speaker.record(DATA, piece))
        assert drain(tls).endswith(b"0")
        tls.close()


def test_padded_records_are_taken(speak: Speak) -> None:
    """Padding hides lengths (RFC 8446 §5.4): it is no reason to end a connection, however much there is."""
    with world() as here:
        tls, speaker = speak(here)
        request = GET + b"Connection: close\r\n\r\n"
        for byte in request:
            say(tls, speaker.record(DATA, bytes([byte]), padding=4000))
        assert drain(tls).endswith(b"0")
        tls.close()


@pytest.mark.parametrize(
    "fill",
    [
        lambda speaker: b"".join(speaker.update() for _ in range(40 * RECORDS)),
        lambda speaker: b"".join(speaker.update(ASKING) for _ in range(40 * RECORDS)),
    ],
    ids=["updates", "updates that ask for updates"],
)
def test_records_without_data_end_a_connection(speak: Speak, fill: Callable[[Speaker], bytes]) -> None:
    """Each costs as much as a request, and OpenSSL alone would go on for as long as they come."""
    with world() as here:
        tls, speaker = speak(here)
        flood = fill(speaker)
        say(tls, flood)
        assert drain(tls) == b""
        wait_for(lambda: here.open() == 0)
        assert here.executed == []
        assert here.say(GET + b"Connection: close\r\n\r\n").endswith(b"0")
        tls.close()


def test_a_flood_between_data_lets_others_have_their_turn(
    speak: Speak, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records without data among such that have some: OpenSSL never gets more than `RECORDS` at a time."""
    most: list[int] = []

    def counted(data: memoryview) -> tuple[int, int]:
        found = whole_records(data)
        most.append(found[0])
        return found

    monkeypatch.setattr(link, "whole_records", counted)
    with world() as here:
        tls, speaker = speak(here)
        request = GET + b"Connection: close\r\n\r\n"
        flood = b""
        for byte in request:
            flood += b"".join(speaker.update() for _ in range(RECORDS // 2)) + speaker.record(
                DATA, bytes([byte])
            )
        say(tls, flood)
        assert drain(tls).endswith(b"0")
        assert max(most) == RECORDS and sum(most) >= len(request) * (RECORDS // 2 + 1)
        tls.close()


def test_a_broken_record_ends_a_connection(speak: Speak) -> None:
    """Neither its data nor what follows is taken."""
    with world() as here:
        for spoil in (
            lambda record: record[:-1] + bytes([record[-1] ^ 1]),
            lambda record: b"\x17\x03\x03\xff\xff" + record[5:],
            lambda record: b"\x99" + record[1:],
        ):
            tls, speaker = speak(here)
            say(tls, spoil(speaker.record(DATA, GET + b"\r\n")))
            drain(tls)
            wait_for(lambda: here.open() == 0)
            tls.close()
        assert here.executed == []


def record(length: int) -> bytes:
    """A record's header, and so many bytes."""
    return b"\x17\x03\x03" + length.to_bytes(2, "big") + bytes(length)


def test_whole_records_are_found() -> None:
    """As many as are whole, in one piece each."""
    for data, found in (
        (b"", (0, 0)),
        (record(22)[:4], (0, 0)),
        (record(22)[:26], (0, 0)),
        (record(22), (1, 27)),
        (record(0) + record(22) + record(3)[:7], (2, 32)),
        (record(22) * (RECORDS + 5), (RECORDS, 27 * RECORDS)),
        (record(link.SEALED), (1, link.SEALED + 5)),
        (record(link.SEALED)[:-1], (0, 0)),
        (record(1) + record(link.SEALED + 1)[:40], (2, 46)),
    ):
        assert whole_records(memoryview(data)) == found


def test_random_bytes_are_taken_once() -> None:
    """However they are cut: what is found is a beginning, and the same one."""
    rng = random.Random(7)
    for _ in range(300):
        data = b"".join(
            record(rng.choice((0, 1, 22, 300))) if rng.random() < 0.9 else rng.randbytes(rng.randrange(9))
            for _ in range(rng.randrange(40))
        )
        count, end = whole_records(memoryview(data))
        assert 0 <= end <= len(data) and 0 <= count <= RECORDS and bool(count) == bool(end)
        again, there = whole_records(memoryview(data[:end]))
        assert (again, there) == (count, end)
