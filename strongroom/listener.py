"""Accepting connections, and ending: a server with bounded TLS handshakes in front of the guarded protocol
(docs/spec/channel.md part 6).

asyncio's own listener gives every TCP connection 60 s and a buffer of 256 KiB before it has said a word, and
takes any number of them. Here handshakes are bounded in number and in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from strongroom.edge import Application, Crowd, EdgeLimits, GuardedProtocol
from strongroom.link import Link, shake_hands

_ACCEPT_PAUSE_S = 0.2
"""Seconds without accepting after the system was out of descriptors."""
_TICK_S = 0.1
"""Seconds between two looks at whether to end."""

_logger = logging.getLogger("strongroom.edge")


class EdgeServer:
    """Serves `app` (ASGI) over TLS on a socket that is bound and listening, and is closed in the end (§6.3).

    `context`: of `ratls.EpochListener`. `shutdown_s`: seconds for requests under way at the end. Whoever sets
    `should_exit`, from whichever thread, ends it.
    """

    def __init__(
        self,
        app: Application,
        *,
        sock: socket.socket,
        context: ssl.SSLContext,
        limits: EdgeLimits,
        shutdown_s: float,
    ) -> None:
        self.started = False
        self.should_exit = False
        self.crowd = Crowd()
        self._app = app
        self._sock = sock
        self._context = context
        self._limits = limits
        self._shutdown_s = shutdown_s

    async def serve(self) -> None:
        """Accepts connections until it is told to end, and then ends them."""
        with self._signals():
            acceptor = Acceptor(self._sock, make=self._make, context=self._context, limits=self._limits)
            self.started = True
            self.announce()
            while not self.should_exit:
                await asyncio.sleep(_TICK_S)
            acceptor.close()
            await acceptor.wait_closed()
            await self.shutdown()

    def announce(self) -> None:
        """Called once it listens."""

    def _make(self) -> GuardedProtocol:
        return GuardedProtocol(self._app, limits=self._limits, crowd=self.crowd)

    async def shutdown(self) -> None:
        """Lets requests under way end, in the time that they have for it; then their tasks, and their connections."""
        for connection in tuple(self.crowd.connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._shutdown_s
        while (self.crowd.connections or self.crowd.tasks) and loop.time() < until:
            await asyncio.sleep(_TICK_S)
        if tasks := tuple(self.crowd.tasks):
            _logger.error("requests that outlasted the time for them at the end: %d", len(tasks))
            for task in tasks:
                task.cancel()
        for connection in tuple(self.crowd.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # for the transports to let go of their sockets

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end it, and nothing else: the store is still to be closed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {
            number: signal.signal(number, self._handle_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self.should_exit = True


class SignalledServer(EdgeServer):
    """An `EdgeServer` that says when it listens."""

    def __init__(
        self,
        app: Application,
        *,
        sock: socket.socket,
        context: ssl.SSLContext,
        limits: EdgeLimits,
        shutdown_s: float,
        announce: Callable[[], None],
    ) -> None:
        super().__init__(app, sock=sock, context=context, limits=limits, shutdown_s=shutdown_s)
        self._announce = announce

    def announce(self) -> None:
        """See `EdgeServer`."""
        self._announce()


class Acceptor:
    """Accepts on a listening socket, which it closes in the end."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        make: Callable[[], GuardedProtocol],
        context: ssl.SSLContext,
        limits: EdgeLimits,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._make = make
        self._context = context
        self._limits = limits
        self._handshakes: dict[asyncio.Task[None], None] = {}  # in the order in which they began
        self._task = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Stops accepting and gives up handshakes under way; established connections are not touched."""
        self._task.cancel()
        for task in tuple(self._handshakes):
            task.cancel()

    async def wait_closed(self) -> None:
        """Waits for what `close` stopped."""
        await asyncio.gather(self._task, *tuple(self._handshakes), return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._sock:
            while True:
                try:
                    peer, _ = await loop.sock_accept(self._sock)
                except OSError:  # out of descriptors, or the peer left while it waited
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                    continue
                if len(self._handshakes) >= self._limits.handshakes:
                    self._drop_oldest()
                task = loop.create_task(self._shake_hands(peer))
                self._handshakes[task] = None
                task.add_done_callback(self._forget)
                await asyncio.sleep(
                    0
                )  # a waiting peer is accepted without a pause, so the task would not begin

    def _drop_oldest(self) -> None:
        """Makes room. The newest is not refused: whoever is silent on all places would lock everybody out,
        while an honest handshake is over long before as many others have begun.
        """
        oldest = next(iter(self._handshakes))
        self._forget(oldest)
        oldest.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)

    async def _shake_hands(self, peer: socket.socket) -> None:
        try:
            # asyncio does this only for sockets that name their protocol, which accepted ones need not:
            # without it every answer's second record waits 40 ms for an acknowledgement.
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # gone already
            peer.close()
            return
        with contextlib.suppress(OSError):  # TLS failures and time-outs are OSErrors
            async with asyncio.timeout(self._limits.handshake_s):
                secured = await shake_hands(peer, self._context)
            Link(asyncio.get_running_loop(), secured, self._make()).start()
