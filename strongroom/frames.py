"""Messages between the server and processes that it does not believe: a JSON object and bytes, lengths before both.

    two lengths (8 bytes each, big endian), a JSON object, bytes

Never objects of anybody's making; what is longer than it may be, or no JSON object, counts as the end.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from typing import Any, Final, Protocol

HEADER_BYTES: Final = 1 << 20
"""JSON of one message; metadata of a model has 128 KiB at most."""
MSG_WAITALL: Final = 0x100 if sys.platform == "linux" else 0x40
"""recv(2): all that was asked for. (This module opens no socket, and has none imported.)"""
MAX_DATA: Final = 2 << 30
"""Bytes that follow it: the largest ONNX file."""


class Stream(Protocol):
    """The part of a socket that messages need."""

    def sendall(self, data: Any, /) -> None:
        """Sends all of it."""

    def recv(self, size: int, /) -> bytes:
        """Receives at most so many bytes; none at the end."""

    def recv_into(self, buffer: Any, /) -> int:
        """Receives some of it; 0 at the end."""


class Blocking(Stream, Protocol):
    """A socket that waits for as long as it takes."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receives so many bytes where `flags` say so; none at the end."""


def send(end: Stream, header: Mapping[str, Any], data: bytes | bytearray | memoryview = b"") -> None:
    """Sends a JSON object and bytes.

    Raises:
        OSError: the other side is gone, or does not read.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    end.sendall(len(text).to_bytes(8, "big") + len(data).to_bytes(8, "big") + text)
    if data:
        with memoryview(data) as view:
            end.sendall(view)


def receive(end: Stream, *, most: int = MAX_DATA) -> tuple[dict[str, Any], bytearray]:
    """Receives what `send` sent, of `most` bytes besides the object.

    Raises:
        EOFError: the other side ended before, or says what it cannot.
        OSError: it does not write in time.
    """
    header, count = _header(end, most)
    return header, exactly(end, count)


def receive_bytes(end: Blocking) -> tuple[dict[str, Any], bytes]:
    """As `receive`, into memory that need not be copied again for who wants `bytes`. For a socket that blocks.

    Raises:
        EOFError: as `receive`.
    """
    header, count = _header(end, MAX_DATA)
    data = end.recv(count, MSG_WAITALL) if count else b""
    if len(data) < count:  # a signal came
        data += exactly(end, count - len(data))
    return header, data


def _header(end: Stream, most: int) -> tuple[dict[str, Any], int]:
    lengths = exactly(end, 16)
    size, count = int.from_bytes(lengths[:8], "big"), int.from_bytes(lengths[8:], "big")
    if size > HEADER_BYTES or count > most:
        raise EOFError
    try:
        header = json.loads(bytes(exactly(end, size)))
    except (ValueError, RecursionError):
        raise EOFError from None
    if not isinstance(header, dict):
        raise EOFError
    return header, count


def receive_frozen(end: Stream, *, most: int = MAX_DATA) -> tuple[dict[str, Any], bytes]:
    """As `receive`, as `bytes`, of which there is one copy at all times.

    Raises:
        EOFError, OSError: as `receive`.
    """
    header, count = _header(end, most)
    sink, piece = io.BytesIO(), memoryview(bytearray(min(count, _PIECE)))
    while count:
        got = end.recv_into(piece[:count])
        if not got:
            raise EOFError
        sink.write(piece[:got])
        count -= got
    return header, sink.getvalue()  # no copy: it is the buffer itself


_PIECE: Final = 1 << 20


def exactly(end: Stream, count: int) -> bytearray:
    """So many bytes.

    Raises:
        EOFError: the other side ended before.
        OSError: it does not write in time.
    """
    data = bytearray(count)
    with memoryview(data) as view:
        done = 0
        while done < count:
            got = end.recv_into(view[done:])
            if not got:
                raise EOFError
            done += got
    return data
