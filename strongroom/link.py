"""A TLS connection of the server in the event loop: OpenSSL on the socket itself.

asyncio's own TLS copies what arrives twice more on its way (a buffer of 256 KiB for each connection, a memory BIO) and
takes half of a small request's time. Here what is decrypted goes from OpenSSL into the buffer that the protocol gives:
a request's body into the very buffer that the application gets (docs/adr/0021-the-servers-own-http.md).

Rules
  - Whatever happens, `connection_lost` is called once, after everything else, and then the socket is closed.
  - What does not fit into the system's buffers waits here uncopied; from `HIGH` bytes on, the protocol is told to wait.
  - A goodbye (close_notify) is said before the socket ends, and what comes afterwards is not even decrypted.
  - There are no deadlines here: the protocol has them all, and ends them with `abort`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

RECORD: Final = 16384
"""Bytes of a TLS record at most (RFC 8446 §5.1): one that is not full is the last for now, in all likelihood."""
READS: Final = 16
"""Records of one connection that are read before others have their turn."""
HIGH: Final = 64 * 1024
"""Bytes that wait to be sent, from which on the protocol is told to wait."""
LOW: Final = HIGH // 4
FAREWELL: Final = 256 * 1024
"""Bytes that are taken, undecrypted, after our goodbye; whoever sends more is reset."""

_logger = logging.getLogger("strongroom.edge")
_rest = bytearray(RECORD)


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

    def __init__(self, loop: asyncio.AbstractEventLoop, tls: ssl.SSLSocket, protocol: Talker) -> None:
        super().__init__()
        self._loop = loop
        self._tls = tls
        self._fd = tls.fileno()
        self._protocol = protocol
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._paused = False
        self._reading = False
        self._read_blocked = False  # OpenSSL wants to write before it reads on (a key update)
        self._told_to_wait = False
        self._peer_ended = False
        self._unread = 0
        self._closing = False
        self._lost = False

    def start(self) -> None:
        """Hands the connection to its protocol and reads."""
        self._protocol.connection_made(self)
        self._watch()
        if self._reading:
            # The first request may have come with the end of the handshake: the socket has nothing more to tell.
            self._readable()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, `socket`, `peername`, `sockname`."""
        if name in ("ssl_object", "socket"):
            return self._tls
        try:
            return {"peername": self._tls.getpeername, "sockname": self._tls.getsockname}[name]()
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
            self._loop.call_soon(self._readable)  # for what OpenSSL has decrypted already

    def _watch(self) -> None:
        wanted = not (self._paused or self._read_blocked or self._closing)
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._fd, self._readable)
            elif not self._lost:
                self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        for _ in range(READS):
            if not self._reading:
                return
            buffer = self._protocol.get_buffer(-1)
            try:
                count = self._tls.recv_into(buffer)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLWantWriteError:
                self._read_blocked = True
                self._watch()
                self._loop.add_writer(self._fd, self._writable)
                return
            except OSError as exc:  # TLS that is broken, too
                self._end(exc)
                return
            finally:
                del buffer  # it may be a view of what is to grow
            self._deliver(count)
            if count < RECORD and not self._more():
                return
        if self._more():
            self._loop.call_soon(self._readable)

    def _more(self) -> bool:
        """Whether OpenSSL holds something that the socket will not tell of."""
        return self._reading and self._tls.pending() > 0

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
        """Sends `data`, which must not change any more."""
        if self._closing or not data:
            return
        first = not self._waiting
        self._waiting.append(memoryview(data))
        self._size += len(data)
        if first:
            self._flush()
            if self._waiting and not self._lost:
                self._loop.add_writer(self._fd, self._writable)
        if self._size > HIGH and not self._told_to_wait:
            self._told_to_wait = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait to be sent."""
        return self._size

    def _flush(self) -> None:
        """Sends as much as goes. What OpenSSL could not send it must be given again as it is."""
        try:
            while self._waiting:
                count = self._tls.send(self._waiting[0])
                self._size -= count
                if count == len(self._waiting[0]):
                    self._waiting.popleft()
                else:
                    self._waiting[0] = self._waiting[0][count:]
        except ssl.SSLWantWriteError:
            return
        except OSError as exc:
            self._end(exc)

    def _writable(self) -> None:
        if self._lost:
            return
        self._flush()
        if self._waiting or self._fd != self._tls.fileno():  # more waits, or it has ended
            return
        self._loop.remove_writer(self._fd)
        if self._told_to_wait and self._size <= LOW:
            self._told_to_wait = False
            self._protocol.resume_writing()
        if self._read_blocked:
            self._read_blocked = False
            self._watch()
            self._readable()
        if self._closing:
            self._say_goodbye()

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Sends what waits, says goodbye, and ends once the peer has, too."""
        if self._closing:
            return
        self._closing = True
        self._watch()
        if not self._waiting:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self._lost:
            return
        try:
            self._tls.unwrap()
        except ssl.SSLWantWriteError:
            self._loop.add_writer(self._fd, self._writable)
            return
        except (
            OSError,
            ValueError,
        ):  # it is said, and the peer's is not here yet; or there is nobody to hear it
            pass
        if self._peer_ended:
            self._end(None)
            return
        try:
            socket.socket.shutdown(self._tls, socket.SHUT_WR)
        except OSError as exc:
            self._end(exc)
            return
        self._loop.add_reader(self._fd, self._await_end)

    def _await_end(self) -> None:
        """Takes what still arrives, undecrypted, until the peer ends: a reset could overtake our last words."""
        try:
            while count := socket.socket.recv_into(self._tls, _rest):
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
        self._tls.close()
        self._loop.call_soon(self._protocol.connection_lost, exc)


async def shake_hands(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """The server's side of a TLS handshake on a connected socket, which is closed where it fails.

    Raises:
        OSError: it failed.
    """
    sock.setblocking(False)
    try:
        tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    loop = asyncio.get_running_loop()
    try:
        while True:
            try:
                tls.do_handshake()
                return tls
            except ssl.SSLWantReadError:
                await _ready(loop.add_reader, loop.remove_reader, tls.fileno())
            except ssl.SSLWantWriteError:
                await _ready(loop.add_writer, loop.remove_writer, tls.fileno())
    except BaseException:
        tls.close()
        raise


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
