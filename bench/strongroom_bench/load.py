"""The load generator: closed loops on open connections, the same bytes every time.

Every connection sends its next request when the answer to the last one is there. The request is encoded once, before
the clock starts, for all servers alike: what is measured is how many the server answers. How busy the generator itself
was is reported with every figure: near one, it is the limit and not the server.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

SETTLE_S: Final = 0.15
"""Seconds under load before counting begins."""
MAX_HEAD: Final = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and what to send. `request` gives the whole request, head and body; asked for once per slice."""

    host: str
    port: int
    request: Callable[[], bytes]
    context: ssl.SSLContext | None = None
    probe: bytes = b""
    """A request for the server's health, to be sent while it is loaded; empty: none."""


@dataclass(slots=True, kw_only=True)
class Slice:
    """What one slice of load gave."""

    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    """HTTP status -> answers; 0 counts connections that ended without one."""
    ended: int = 0
    """Connections that ended before the slice did, counted or not yet: they are not opened again, so what is answered
    afterwards is answered on fewer."""
    latencies: list[float] = field(default_factory=list)
    """Seconds of each answer 200."""
    probes: list[float] = field(default_factory=list)
    busy: float = 0.0
    """Share of the slice in which the generator itself had a core."""

    @property
    def per_second(self) -> float:
        """Answers 200 per second."""
        return self.statuses[200] / self.seconds


class _Connection(asyncio.Protocol):
    """One closed loop."""

    def __init__(self, request: bytes, run: _Run) -> None:
        self._request, self._run = request, run
        self._buffer = bytearray()
        self._need = 0  # bytes of the whole answer; 0: its head is not there yet
        self._status = 0
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def start(self) -> None:
        """Sends the first request."""
        self._send()

    def _send(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._sent = time.perf_counter()
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._need:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(buffer) > MAX_HEAD:
                    self._fail()
                return
            self._status = int(buffer[9:12])
            self._need = end + 4 + _content_length(bytes(buffer[:end]).lower())
        if len(buffer) >= self._need:
            del buffer[: self._need]
            self._need = 0
            self._run.answered(self._status, time.perf_counter() - self._sent)
            self._send()

    def _fail(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.lost()


def _content_length(head: bytes) -> int:
    at = head.find(b"\ncontent-length:")  # not Triton's `Inference-Header-Content-Length`
    if at < 0:
        raise ValueError("an answer without Content-Length")
    return int(head[at + 16 :].split(b"\r\n", 1)[0])


class _Run:
    """The counters of one slice; counts only while `counting`."""

    def __init__(self) -> None:
        self.counting = False
        self.ended = False
        self.result = Slice(seconds=0.0)

    def answered(self, status: int, seconds: float) -> None:
        if self.counting:
            self.result.statuses[status] += 1
            if status == 200:
                self.result.latencies.append(seconds)

    def lost(self) -> None:
        if not self.ended:
            self.result.ended += 1
        if self.counting and not self.ended:
            self.result.statuses[0] += 1


def run_slice(target: Target, *, connections: int, seconds: float) -> Slice:
    """Loads `target` for `seconds` on this many connections.

    Raises:
        OSError: no connection.
    """
    return asyncio.run(_slice(target, connections=connections, seconds=seconds))


async def _slice(target: Target, *, connections: int, seconds: float) -> Slice:
    loop, run, request = asyncio.get_running_loop(), _Run(), target.request()
    opened = []
    for _ in range(connections):
        transport, protocol = await loop.create_connection(
            lambda: _Connection(request, run), target.host, target.port, ssl=target.context,
        )  # fmt: skip
        opened.append((transport, protocol))
    for _transport, protocol in opened:
        protocol.start()
    await asyncio.sleep(SETTLE_S)
    run.counting, started, worked = True, time.perf_counter(), time.process_time()
    probing = asyncio.create_task(_probe(target, run.result)) if target.probe else None
    await asyncio.sleep(seconds)
    run.counting, run.ended = False, True
    run.result.seconds = time.perf_counter() - started
    run.result.busy = (time.process_time() - worked) / run.result.seconds
    if probing is not None:
        probing.cancel()
    for transport, _protocol in opened:
        transport.abort()
    await asyncio.sleep(0)
    return run.result


async def _probe(target: Target, result: Slice) -> None:
    """Asks for the server's health ten times a second, on a connection of its own."""
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=target.context)
    try:
        while True:
            started = time.perf_counter()
            writer.write(target.probe)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_content_length(head.lower()))
            result.probes.append(time.perf_counter() - started)
            await asyncio.sleep(0.1)
    finally:
        writer.transport.abort()
