"""Messages between processes: whole, or the end."""

from __future__ import annotations

import socket
import threading

import pytest

from strongroom import frames


def sent(data: bytes) -> socket.socket:
    """A socket from which `data` can be read, and then the end."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with ours:
            ours.sendall(data)

    threading.Thread(target=send, daemon=True).start()
    return theirs


def message(header: dict[str, object], data: bytes) -> bytes:
    """What `send` sends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=lambda: (frames.send(ours, header, data), ours.close()))
        thread.start()
        whole = b""
        while piece := theirs.recv(1 << 16):
            whole += piece
        thread.join()
    return whole


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 3])
def test_bytes_arrive_as_they_were_sent(size: int) -> None:
    """In one piece or in several, as `bytes` of their own."""
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with sent(message({"a": 1}, data)) as end:
        header, got = frames.receive_frozen(end)
    assert header == {"a": 1} and type(got) is bytes and got == data


@pytest.mark.parametrize("cut", [0, 15, 20, -1])
def test_what_ends_early_is_no_message(cut: int) -> None:
    """Wherever it ends: in the lengths, in the object, in the bytes."""
    with sent(message({"a": 1}, b"x" * 3000)[:cut]) as end, pytest.raises(EOFError):
        frames.receive_frozen(end)


def test_more_than_may_come_is_not_read() -> None:
    """The length that is declared is compared before anything of it is awaited."""
    with sent(message({}, b"x" * 100)) as end, pytest.raises(EOFError):
        frames.receive_frozen(end, most=99)
