"""The listener: bounded handshakes, no connection left behind."""

from __future__ import annotations

import socket
import time

import pytest
from test_edge import GET, HOST, drain, wait_for, world


@pytest.mark.slow
def test_tcp_without_tls_is_closed() -> None:
    """After `handshake_s`, and at once if what comes is not TLS."""
    with world(handshake_s=0.4) as here:
        for first in (b"", b"\x16\x03\x01", GET + b"\r\n"):
            start = time.monotonic()
            with socket.create_connection(("127.0.0.1", here.port), 5) as tcp:
                tcp.sendall(first)
                assert b"HTTP" not in drain(tcp)
            assert time.monotonic() - start < 4.5


@pytest.mark.slow
def test_handshakes_are_capped() -> None:
    """Silent TCP connections neither pile up nor lock others out: the oldest makes room for the newest."""
    with world(handshakes=4, handshake_s=30.0) as here:
        silent = [socket.create_connection(("127.0.0.1", here.port), 5) for _ in range(12)]
        for tcp in silent[:8]:
            assert drain(tcp) == b""
        assert here.say(GET + b"Connection: close\r\n\r\n").endswith(b"0")
        silent[11].settimeout(0.2)
        with pytest.raises(TimeoutError):  # the newest of them has its time
            silent[11].recv(1)
        for tcp in silent:
            tcp.close()


@pytest.mark.slow
def test_connections_that_outstay_the_shutdown_are_cut() -> None:
    """A request that never ends does not keep the server: after `shutdown_s` its connection is gone."""
    with world() as here:
        tls = here.connect()
        tls.sendall(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        wait_for(lambda: bool(here.executed))
        assert here.server is not None
        here.server.should_exit = True
        start = time.monotonic()
        assert drain(tls) == b""
        assert time.monotonic() - start < 5
        tls.close()


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """TCP_NODELAY on every connection: parts of an answer are 40 ms apart without it."""
    with world() as here, here.connect():
        wait_for(lambda: here.open() == 1)
        assert here.server is not None
        (connection,) = here.server.crowd.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
