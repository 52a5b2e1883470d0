"""Accepting connections: uvicorn's server with bounded TLS handshakes in front of the guarded protocol
(docs/spec/channel.md part 6).

asyncio's own listener gives every TCP connection 60 s and a buffer of 256 KiB before it has said a word, and
takes any number of them. Here handshakes are bounded in number and in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import uvicorn

from strongroom.edge import EdgeLimits, GuardedProtocol, guarded
from strongroom.errors import InvalidConfig

_ACCEPT_PAUSE_S = 0.2
"""Seconds without accepting after the system was out of descriptors."""


def edge_config(
    app: Any, *, context: ssl.SSLContext, limits: EdgeLimits, shutdown_s: int, lifespan: Literal["on", "off"]
) -> uvicorn.Config:
    """Returns the one uvicorn configuration that the server runs with (§6.1).

    `context`: of `ratls.EpochListener`. `shutdown_s`: seconds for requests under way at the end. `lifespan`:
    "on" or "off".
    """
    return uvicorn.Config(
        app,
        http=guarded(limits),
        ws="none",
        interface="asgi3",
        lifespan=lifespan,
        loop="asyncio",
        proxy_headers=False,  # anybody could claim any address
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        ssl_context_factory=lambda _config, _default: context,
        timeout_graceful_shutdown=shutdown_s,
    )


class EdgeServer(uvicorn.Server):
    """uvicorn's server on `Acceptor` in place of asyncio's listener (§6.3)."""

    def __init__(self, config: uvicorn.Config, *, sock: socket.socket, limits: EdgeLimits) -> None:
        """`sock` is bound and listening; it is closed when the server ends."""
        super().__init__(config)
        self._sock = sock
        self._limits = limits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept.

        Raises:
            InvalidConfig: `httptools_missing`, the configuration would serve without the guard.
        """
        kind: Any = self.config.http_protocol_class
        if not (isinstance(kind, type) and issubclass(kind, GuardedProtocol)) or self.config.ssl is None:
            raise InvalidConfig("the server needs its guarded protocol and TLS", code="httptools_missing")
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            self._sock.close()
            self.should_exit = True
            return

        def make() -> asyncio.Protocol:
            return kind(self.config, self.server_state, self.lifespan.state)

        acceptor = Acceptor(self._sock, make=make, context=self.config.ssl, limits=self._limits)
        self.servers = [cast(asyncio.Server, acceptor)]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it, and then without those connections that outstayed the time for it."""
        await super().shutdown(sockets)
        for connection in tuple(self.server_state.connections):
            cast(GuardedProtocol, connection).transport.abort()
        await asyncio.sleep(0)  # for the transports to let go of their sockets


class SignalledServer(EdgeServer):
    """An `EdgeServer` of a process of its own: says when it listens, and leaves by returning."""

    def __init__(
        self, config: uvicorn.Config, *, sock: socket.socket, limits: EdgeLimits, announce: Callable[[], None]
    ) -> None:
        super().__init__(config, sock=sock, limits=limits)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept, and says so."""
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but does not raise the signal again at the end: the store is still to be closed."""
        previous = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Acceptor:
    """Accepts on a listening socket; what `asyncio.Server` is to uvicorn."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        make: Callable[[], asyncio.Protocol],
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

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening socket."""
        return (self._sock,)

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
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make,
                peer,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_s,
                ssl_shutdown_timeout=self._limits.send_idle_s,
            )
