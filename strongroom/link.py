"""A TLS connection of the server in the event loop: OpenSSL between two buffers of its own.

asyncio's own TLS copies what arrives twice more on its way (a buffer of 256 KiB for each connection, decrypted pieces)
and takes half of a small request's time. Here what is decrypted goes from OpenSSL into the buffer that the protocol
gives: a request's body into the very buffer that the application gets (docs/adr/0021-the-servers-own-http.md).

Rules
  - Whatever happens, `connection_lost` is called once, after everything else, and then the socket is closed.
  - OpenSSL never reads the socket itself: it would not return while records come that carry no data (key updates, RFC
    8446 §4.6.3: 27 bytes cost as much as a request), and with it the event loop. It gets whole records, `RECORDS` at a
    time; as many without data in a row end the connection.
  - What does not fit into the system's buffers waits here, encrypted; from `HIGH` bytes on, the protocol is told to
    wait.
  - A goodbye (close_notify) is said before the socket ends, and what comes afterwards is not even decrypted.
  - There are no deadlines here: the protocol has them all, and ends them with `abort`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol, cast

RECORD: Final = 16384
"""Bytes of data in a TLS record at most (RFC 8446 §5.1)."""
HEADER: Final = 5
"""Bytes of a record's header; the last two are how many follow."""
SEALED: Final = RECORD + 256
"""Bytes behind it at most (RFC 8446 §5.2)."""
RECORDS: Final = 32
"""Records that OpenSSL gets at a time, and that may come in a row without data: with key updates, some milliseconds."""
TAKEN: Final = 64 * 1024
"""Bytes that are taken from the socket at a time."""
READS: Final = 4
"""Times that one connection is read before others have their turn."""
HELLO: Final = 128 * 1024
"""Bytes of a handshake: hellos have one or two KiB."""
HELLO_PIECE: Final = 4096
"""Bytes of it that are taken at a time."""
HIGH: Final = 66 * 1024
"""Bytes that wait to be sent, from which on the protocol is told to wait: more than a piece of an answer, encrypted."""
LOW: Final = HIGH // 4
PIECES: Final = 64
"""Pieces that are sent by one system call; systems take 1024 or more."""
FAREWELL: Final = 256 * 1024
"""Bytes that are taken, undecrypted, after our goodbye; whoever sends more is reset."""

_logger = logging.getLogger("strongroom.edge")
_arrived = memoryview(bytearray(TAKEN + RECORDS * 1024))
"""Where what arrives is before OpenSSL has it, of one connection after the other: half a record and what follows it."""


@dataclass(frozen=True, slots=True, eq=False)
class Secured:
    """A socket whose handshake is done, and OpenSSL between what arrives and what is to be sent on it."""

    sock: socket.socket
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    rest: bytes
    """What came with the end of the handshake."""


def whole_records(data: memoryview) -> tuple[int, int]:
    """How many TLS records `data` begins with, `RECORDS` at most, and how many bytes they have.

    One that is longer than a record can be counts as whole however much of it is there: it is for OpenSSL to refuse.
    """
    end = count = 0
    while count < RECORDS and len(data) - end >= HEADER:
        length = data[end + 3] << 8 | data[end + 4]
        if length > SEALED:
            return count + 1, len(data)
        if end + HEADER + length > len(data):
            break
        end += HEADER + length
        count += 1
    return count, end


class Talker(Protocol):
    """What a link carries for: `edge.GuardedProtocol`."""

    def connection_made(self, transport: Any) -> None:
        """The link is there."""

    def get_buffer(self, sizehint: int) -> Any:
        """Where what arrives is to be written; not empty."""

    def buffer_updated(self, nbytes: int) -> None:
        """So much was written there."""

    def eof_received(self) -> None:
        """The peer will send no more."""

    def pause_writing(self) -> None:
        """More waits to be sent than should."""

    def resume_writing(self) -> None:
        """No longer."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""


class Link(asyncio.Transport):
    """One connection whose handshake is done; `start` begins."""

    def __init__(self, loop: asyncio.AbstractEventLoop, secured: Secured, protocol: Talker) -> None:
        super().__init__()
        self._loop = loop
        self._sock, self._tls = secured.sock, secured.tls
        self._incoming, self._outgoing = secured.incoming, secured.outgoing
        # Given a buffer it returns how many bytes it put there; typeshed knows it without one only.
        self._read = cast("Callable[[int, Any], int]", secured.tls.read)
        self._fd = secured.sock.fileno()
        self._protocol = protocol
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._paused = False
        self._reading = False
        self._rest = secured.rest  # what came and OpenSSL does not have yet
        self._behind = bool(secured.rest)  # in it are whole records, perhaps
        self._held = False  # OpenSSL has something that it has not given out
        self._fruitless = 0
        self._told_to_wait = False
        self._peer_ended = False
        self._unread = 0
        self._closing = False
        self._lost = False

    def start(self) -> None:
        """Hands the connection to its protocol and reads."""
        self._protocol.connection_made(self)
        self._watch()
        # The first request may have come with the end of the handshake: the socket has nothing more to tell.
        self._readable()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, `socket`, `peername`, `sockname`."""
        if name == "ssl_object":
            return self._tls
        if name == "socket":
            return self._sock
        try:
            return {"peername": self._sock.getpeername, "sockname": self._sock.getsockname}[name]()
        except (KeyError, OSError):
            return default

    def is_closing(self) -> bool:
        """Whether it is ending, or has ended."""
        return self._closing

    # -- reading ---------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """What arrives stays with the system, and then with the peer."""
        self._paused = True
        self._watch()

    def resume_reading(self) -> None:
        """Reads on."""
        if self._paused:
            self._paused = False
            self._watch()
            self._loop.call_soon(self._readable)  # for what is here already

    def _watch(self) -> None:
        wanted = not (self._paused or self._closing)
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._fd, self._readable)
            elif not self._lost:
                self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        for _ in range(READS):
            if not self._reading or not (self._held or self._take_in()):
                return
            got = self._give_out()
            if self._outgoing.pending:  # an answer to a key update
                self._queue()
                self._send()
            if got < TAKEN // 2:  # nothing more is there, or little data: others first
                break
        if self._reading and (self._behind or self._held):
            self._loop.call_soon(self._readable)

    def _holds(self) -> bool:
        """Whether OpenSSL has something that it has not given out."""
        return self._incoming.pending > 0 or self._tls.pending() > 0

    def _take_in(self) -> int:
        """Gives OpenSSL whole records of what came; how many that are."""
        size = len(self._rest)
        _arrived[:size] = self._rest
        if not self._behind:
            try:
                count = self._sock.recv_into(_arrived[size : size + TAKEN])
            except (BlockingIOError, InterruptedError):
                return 0
            except OSError as exc:
                self._end(exc)
                return 0
            if not count:
                self._deliver(0)
                return 0
            size += count
        records, end = whole_records(_arrived[:size])
        self._rest = bytes(_arrived[end:size])
        self._behind = records == RECORDS and end < size
        self._incoming.write(_arrived[:end])
        self._fruitless += records
        return records

    def _give_out(self) -> int:
        """Gives the protocol the data in what OpenSSL has, while it takes any; how much that was."""
        got = 0
        self._held = True
        while self._held and self._reading:
            buffer = self._protocol.get_buffer(-1)
            try:
                count = self._read(len(buffer), buffer)
            except ssl.SSLWantReadError:
                self._held = False
                break
            except OSError as exc:  # TLS that is broken
                self._end(exc)
                return got
            finally:
                del buffer  # it may be a view of what is to grow
            got += count
            self._deliver(count)
            self._held = self._holds()
        if got:
            self._fruitless = 0
        elif self._fruitless >= RECORDS:
            _logger.debug("ended: records without data")
            self.abort()
        return got

    def _deliver(self, count: int) -> None:
        try:
            if count:
                self._protocol.buffer_updated(count)
            else:
                self._peer_ended = True
                self._protocol.eof_received()
                self.close()
        except Exception as exc:  # noqa: BLE001 - the loop would log its text, which may quote a request
            log_accident(exc)
            self.abort()

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Sends `data`."""
        if self._closing or not data:
            return
        view = memoryview(data)
        try:
            for start in range(
                0, len(view), RECORD
            ):  # so that OpenSSL's buffer, which never shrinks, stays small
                self._tls.write(view[start : start + RECORD])
                self._queue()
        except OSError as exc:
            self._end(exc)
            return
        self._send()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait to be sent."""
        return self._size

    def _queue(self) -> None:
        """Puts what OpenSSL made behind what waits."""
        data = self._outgoing.read()
        if data:
            self._waiting.append(memoryview(data))
            self._size += len(data)

    def _send(self) -> None:
        if not self._flush() or self._lost:
            return
        self._loop.add_writer(self._fd, self._writable)
        if self._size > HIGH and not self._told_to_wait:
            self._told_to_wait = True
            self._protocol.pause_writing()

    def _flush(self) -> bool:
        """Sends as much as goes; whether something still waits."""
        waiting = self._waiting
        try:
            while waiting:
                if len(waiting) == 1:
                    count = self._sock.send(waiting[0])
                else:
                    count = self._sock.sendmsg(list(islice(waiting, PIECES)))
                self._size -= count
                while count:
                    size = len(waiting[0])
                    if size > count:
                        waiting[0] = waiting[0][count:]
                        break
                    waiting.popleft()
                    count -= size
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as exc:
            self._end(exc)
        return False

    def _writable(self) -> None:
        waits = not self._lost and self._flush()
        if self._lost:
            return
        if self._told_to_wait and self._size <= LOW:
            self._told_to_wait = False
            self._protocol.resume_writing()
        if not waits:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._await_goodbye()

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Sends what waits, says goodbye, and ends once the peer has, too."""
        if self._closing:
            return
        self._closing = True
        self._watch()
        # Said, and the peer's is not here yet; or there is nobody to hear it.
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()
        self._queue()
        if self._flush():
            self._loop.add_writer(self._fd, self._writable)
        elif not self._lost:
            self._await_goodbye()

    def _await_goodbye(self) -> None:
        if self._peer_ended:
            self._end(None)
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._end(exc)
            return
        self._loop.add_reader(self._fd, self._await_end)

    def _await_end(self) -> None:
        """Takes what still arrives, undecrypted, until the peer ends: a reset could overtake our last words."""
        try:
            while count := self._sock.recv_into(_arrived):
                self._unread += count
                if self._unread > FAREWELL:
                    break
            self._end(None)
        except BlockingIOError:
            return
        except OSError as exc:
            self._end(exc)

    def abort(self) -> None:
        """Ends at once."""
        self._end(None)

    def _end(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._closing = self._lost = True
        self._reading = False
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._waiting.clear()
        self._size = 0
        self._sock.close()
        self._loop.call_soon(self._protocol.connection_lost, exc)


async def shake_hands(sock: socket.socket, context: ssl.SSLContext) -> Secured:
    """The server's side of a TLS handshake on a connected socket, which is closed where it fails.

    Raises:
        OSError: it failed.
    """
    sock.setblocking(False)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        left = HELLO
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await _send_all(sock, outgoing.read())
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    sock.send(outgoing.read())  # the alert that says why
                raise
            else:
                await _send_all(sock, outgoing.read())
                return Secured(sock, tls, incoming, outgoing, incoming.read())
            data = await _receive(sock)
            left -= len(data)
            if not data or left < 0:
                raise ConnectionError("the handshake ended early, or did not end")
            incoming.write(data)
    except BaseException:
        sock.close()
        raise


async def _receive(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return sock.recv(HELLO_PIECE)
        except (BlockingIOError, InterruptedError):
            await _ready(loop.add_reader, loop.remove_reader, sock.fileno())


async def _send_all(sock: socket.socket, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except (BlockingIOError, InterruptedError):
            await _ready(loop.add_writer, loop.remove_writer, sock.fileno())


async def _ready(add: Callable[..., Any], remove: Callable[[int], Any], descriptor: int) -> None:
    ready = asyncio.get_running_loop().create_future()
    add(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(descriptor)


def log_accident(exc: Exception) -> None:
    """Where and of which type, never what it says."""
    last = exc.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else "?"
    _logger.error("unhandled %s at %s", type(exc).__name__, where)
