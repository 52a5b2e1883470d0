"""One request and its answer: buffers grow with what arrives, answers are framed and as long as they say."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from strongroom.errors import Failure, LimitExceeded
from strongroom.exchange import FULL, PIECE, Exchange

_T = TypeVar("_T")


class Carrier:
    """A connection that takes everything."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.reading = True
        self.answers = 0

    def write(self, data: Any) -> None:
        self.written.append(data)

    async def drained(self) -> None:
        """At once."""

    def pause(self) -> None:
        self.reading = False

    def resume(self) -> None:
        self.reading = True

    def answered(self) -> None:
        self.answers += 1


def exchange(method: str = "POST", *, expects_continue: bool = False) -> tuple[Exchange, Carrier]:
    """One whose head has just come."""
    carrier = Carrier()
    return Exchange(carrier, {"method": method}, keep_alive=True, expects_continue=expects_continue), carrier


def fill(one: Exchange, size: int, *, missing: int) -> int:
    """Lets `size` bytes of a body arrive in place, of which `missing` are declared; the largest room ever given."""
    largest = 0
    while size:
        room = one.room(missing)
        largest = max(largest, len(room))
        count = min(len(room), size)
        room[:count] = b"x" * count
        del room
        one.filled(count)
        size, missing = size - count, missing - count
    return largest


def run(story: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(story)


async def answer(one: Exchange, body: Any, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await one.send({"type": "http.response.start", "status": status, "headers": headers})
    await one.send({"type": "http.response.body", "body": body})


def test_a_buffer_grows_with_what_arrives() -> None:
    """A declared terabyte allocates 64 KiB; then at most as much again as has come."""
    one, _ = exchange()
    assert len(one.room(1 << 40)) == FULL
    assert fill(one, 3 * FULL, missing=1 << 40) <= 2 * FULL and len(one.body) <= 4 * FULL


def test_a_body_comes_in_one_piece() -> None:
    """Part of it before it is asked for, the rest afterwards; every byte is counted, and the buffer handed over."""

    async def story() -> None:
        one, carrier = exchange()
        counted: list[int] = []
        fill(one, FULL + 1, missing=3 * FULL)
        assert not carrier.reading  # nobody has asked yet
        asking = asyncio.ensure_future(one.whole(counted.append))
        await asyncio.sleep(0)
        assert carrier.reading
        fill(one, 2 * FULL - 1, missing=2 * FULL - 1)
        one.arrived()
        assert await asking == b"x" * (3 * FULL) and sum(counted) == 3 * FULL

    run(story())


def test_who_counts_may_refuse() -> None:
    """What comes then waits with the peer again."""

    async def story() -> None:
        one, carrier = exchange(expects_continue=True)

        def count(size: int) -> None:
            raise LimitExceeded("too large", code="body_too_large")

        asking = asyncio.ensure_future(one.whole(count))
        await asyncio.sleep(0)
        assert carrier.written == [b"HTTP/1.1 100 Continue\r\n\r\n"]
        fill(one, 10, missing=100)
        with pytest.raises(LimitExceeded):
            await asking
        fill(one, FULL, missing=1 << 30)
        assert not carrier.reading

    run(story())


def test_a_peer_that_is_gone_leaves_nothing() -> None:
    """Half a body is none; who wanted to know is told once, also afterwards."""

    async def story() -> None:
        one, _ = exchange()
        told: list[str] = []
        one.when_gone(lambda: told.append("meanwhile"))
        asking = asyncio.ensure_future(one.whole(lambda _: None))
        await asyncio.sleep(0)
        fill(one, 10, missing=100)
        one.lost()
        one.lost()
        assert await asking is None and told == ["meanwhile"]
        one.when_gone(lambda: told.append("afterwards"))
        assert told[1:] == ["afterwards"]
        assert await one.receive() == {"type": "http.disconnect"}

    run(story())


def test_a_small_answer_is_one_write_and_a_large_one_is_not_copied() -> None:
    """The pieces of the large one are views of it."""

    async def story() -> None:
        for size, writes in ((2, 1), (PIECE - 1, 1), (2 * PIECE + 1, 4)):
            one, carrier = exchange()
            one.arrived()
            body = bytes(size)
            await answer(one, body, (b"content-length", b"%d" % size))
            assert len(carrier.written) == writes and carrier.answers == 1 and one.keep_alive
            assert b"".join(carrier.written).endswith(b"\r\n\r\n" + body)
            assert all(piece.obj is body for piece in carrier.written[1:])

    run(story())


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"abc", ((b"content-length", b"2"),)),
        (b"abc", ((b"content-length", b"4"),)),
        (b"", ((b"x", b"a\r\ny: b"),)),
        (b"", ((b"x", b"a\nb"),)),
        (b"", ((b"x", b"a\0b"),)),
        (b"", ((b"x\r\n", b"a"),)),
    ],
)
def test_an_answer_that_is_none_is_not_sent(body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """Longer or shorter than it says, or with a field that is more than one line."""

    async def story() -> None:
        one, carrier = exchange()
        one.arrived()
        with pytest.raises(Failure):
            await answer(one, body, *headers)
        assert carrier.written == [] and carrier.answers == 0

    run(story())


def test_an_answer_before_the_body_ends_the_connection() -> None:
    """And says so; HEAD is answered without a body, and what says no length is chunked."""

    async def story() -> None:
        early, carrier = exchange()
        await answer(early, b"no", (b"content-length", b"2"), status=413)
        assert carrier.written[0].endswith(b"connection: close\r\n\r\nno") and not early.keep_alive
        head, carrier = exchange("HEAD")
        head.arrived()
        await answer(head, b"ok", (b"content-length", b"2"))
        assert carrier.written[0].endswith(b"content-length: 2\r\n\r\n")
        chunked, carrier = exchange()
        chunked.arrived()
        await answer(chunked, b"ok")
        assert carrier.written[0].endswith(b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")

    run(story())
