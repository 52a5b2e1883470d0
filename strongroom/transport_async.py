"""Carries out the commands of `flow` for asyncio; the rules of `transport` hold here too.

A module of its own, so that who only blocks does not wait for asyncio to be imported.
"""

from __future__ import annotations

import asyncio
from typing import Any

from strongroom.attest.gather import Fetcher, Offline
from strongroom.calls import Answer, Request
from strongroom.flow import Command, Endpoint, Fetch, Open, Send, Sleep
from strongroom.links import Origin
from strongroom.links_async import AsyncLink
from strongroom.ratls import Gate
from strongroom.transport import check_open


class AsyncTransport:
    """Driver for one event loop. Fetching blocks, so it goes on in a thread."""

    def __init__(self, origin: Origin, *, timeout_s: float, fetcher: Fetcher | None = None) -> None:
        self._origin, self._timeout_s = origin, timeout_s
        self._fetcher: Fetcher = fetcher or Offline()
        self._links: set[AsyncLink] = set()
        self._closed = False

    async def perform(self, command: Command) -> Any:
        """Carries out one command of a flow."""
        match command:
            case Send(endpoint, request):
                return await self._send(endpoint.link, request)
            case Open():
                check_open(self._closed)
                gate = Gate()
                link = AsyncLink(gate, self._origin, timeout_s=self._timeout_s)
                self._links.add(link)
                return Endpoint(gate=gate, link=link)
            case Sleep(seconds):
                await asyncio.sleep(seconds)
            case Fetch():
                return await asyncio.to_thread(self._fetcher.fetch, command)
        return None

    async def _send(self, link: AsyncLink, request: Request) -> Answer:
        check_open(self._closed)
        return await link.exchange(request)

    async def discard(self, endpoints: list[Endpoint]) -> None:
        """Closes the connections of endpoints that nobody uses any more."""
        for endpoint in endpoints:
            self._links.discard(endpoint.link)
            await endpoint.link.close()

    async def close(self) -> None:
        """Closes every connection; further commands fail."""
        self._closed = True
        links, self._links = self._links, set()
        for link in links:
            await link.close()


__all__ = ["AsyncTransport"]
