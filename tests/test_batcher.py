"""`batcher`: what one quote answers, whom, and whom never. The attester here makes a quote when the test says so."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from plane import ALICE, MEASUREMENT, ROOT_KEY, plane

from strongroom.attest import draft_policy, verify
from strongroom.attest.batch import Inclusion, Single, Tree, batch_report_data, leaf_hash, root_of
from strongroom.attest.evidence import Appraised, Evidence, NoChannel, parse_answer, report_data
from strongroom.attest.policy import parse_policy
from strongroom.attester import SimulatedAttester, root_digest
from strongroom.batcher import Batcher
from strongroom.boot import security_configuration
from strongroom.config import Config
from strongroom.epochs import Epochs, Origin
from strongroom.errors import AttestationRefused, Failure, MalformedInput, SealRefused, Unavailable

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SIMULATED = SimulatedAttester(ROOT_KEY, MEASUREMENT)
EPOCHS = Epochs(
    Origin(
        attester=SIMULATED,
        roots=(root_digest(ROOT_KEY),),
        security=security_configuration(Config(platform="simulated")),
        store_id="0" * 32,
        hosts=("localhost",),
        lifetime_s=43_200,
    ),
    now=lambda: NOW,
)
KEYSET = EPOCHS.current.keyset_bytes


def nonce(number: int) -> bytes:
    """The nonce of client `number`."""
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


class Gated:
    """An attester whose every quote waits for `allow`, and fails with what `faults` holds for it."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.nonces: list[bytes] = []
        self.faults: dict[int, Exception] = {}
        self._gate = threading.Semaphore(0)

    def allow(self, quotes: int = 1) -> None:
        """Lets so many quotes be made."""
        self._gate.release(quotes)

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        number = len(self.asked)
        self.asked.append(report_data)
        self.nonces.append(nonce)
        assert self._gate.acquire(timeout=20), "nobody allowed this quote"
        if number in self.faults:
            raise self.faults[number]
        return SIMULATED.evidence(report_data, now=now)

    async def until_asked(self, quotes: int) -> None:
        """Returns once so many quotes have been asked for."""
        for _ in range(2000):
            if len(self.asked) >= quotes:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{len(self.asked)} quotes were asked for, not {quotes}")


@contextmanager
def batching(attester: Any, *, waiting: int = 1000, batch: int = 1000) -> Iterator[Batcher]:
    """A batcher whose thread ends with the test."""
    batcher = Batcher(attester, waiting=waiting, batch=batch, now=lambda: NOW)
    try:
        yield batcher
    finally:
        batcher.close()


def verified(answer: bytes, asked: bytes, *, keyset: bytes = KEYSET) -> Inclusion | Single:
    """What kind of answer it is, once it has verified as clients verify it; and it does for no other nonce."""
    read = parse_answer(answer)
    assert read.keyset == keyset
    by = parse_policy(draft_policy(read.evidence, keyset_bytes=keyset, now=NOW))

    def appraise(nonce: bytes) -> Appraised:
        return verify(
            read.evidence,
            by,
            nonce=nonce,
            keyset_bytes=read.keyset,
            inclusion=read.inclusion,
            channel=NoChannel("test"),
            endorsements=(),
            now=NOW,
        )

    assert appraise(asked).claims.simulated
    with pytest.raises(AttestationRefused):
        appraise(hashlib.sha256(asked).digest())
    return read.inclusion


def start(batcher: Batcher, *numbers: int, keyset: bytes = KEYSET) -> list[asyncio.Task[bytes]]:
    """Clients that ask now."""
    return [asyncio.ensure_future(batcher.answer(nonce(n), keyset_bytes=keyset)) for n in numbers]


def story(tell: Callable[[Batcher, Gated], Awaitable[None]], **bounds: int) -> Gated:
    """Runs `tell` with a batcher over a gated attester."""
    attester = Gated()

    async def run() -> None:
        with batching(attester, **bounds) as batcher:
            try:
                await tell(batcher, attester)
            finally:
                attester.allow(100)  # whatever is left must not keep the thread

    asyncio.run(run())
    return attester


# What is answered


def test_a_nonce_alone_has_its_own_quote_and_the_plain_answer() -> None:
    """Without load nothing is different from a server without batches."""

    async def run() -> None:
        with batching(SIMULATED) as batcher:
            for number in range(3):
                (task,) = start(batcher, number)
                assert verified(await task, nonce(number)) == Single()

    asyncio.run(run())


def test_all_that_wait_cost_one_quote() -> None:
    """One in the first quote, fifty while it is made: two quotes, and every answer verifies for its own nonce."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        tasks = start(batcher, 0)
        await attester.until_asked(1)
        tasks += start(batcher, *range(1, 51))
        await asyncio.sleep(0)
        attester.allow(2)
        answers = await asyncio.gather(*tasks)
        assert verified(answers[0], nonce(0)) == Single()
        for number in range(1, 51):
            inclusion = verified(answers[number], nonce(number))
            assert isinstance(inclusion, Inclusion)
            assert (inclusion.index, inclusion.size) == (number - 1, 50)
        assert len({parse_answer(answer).evidence.data for answer in answers[1:]}) == 1

    assert len(story(tell).asked) == 2


def test_formats_with_a_place_for_a_nonce_get_what_they_answer() -> None:
    """The client's nonce, and in a batch its root: docs/spec/nitro.md §5.1."""
    roots: list[bytes] = []

    async def tell(batcher: Batcher, attester: Gated) -> None:
        tasks = start(batcher, 0)
        await attester.until_asked(1)
        tasks += start(batcher, 1, 2)
        await asyncio.sleep(0)
        attester.allow(2)
        await tasks[0]
        inclusion = parse_answer(await tasks[1]).inclusion
        assert isinstance(inclusion, Inclusion)
        roots.append(root_of(inclusion, nonce=nonce(1), keyset_bytes=KEYSET))
        await tasks[2]

    assert story(tell).nonces == [nonce(0), *roots]


def test_one_that_waited_alone_gets_the_plain_answer() -> None:
    """A batch of one is no batch."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        tasks = start(batcher, 0)
        await attester.until_asked(1)
        tasks += start(batcher, 1)
        attester.allow(2)
        assert [verified(a, nonce(n)) for n, a in enumerate(await asyncio.gather(*tasks))] == [Single()] * 2

    story(tell)


def test_a_quote_is_never_handed_to_a_nonce_that_came_after_it_was_asked_for() -> None:
    """What the attester is asked for holds the leaves of those who were there before, and of nobody else."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        tasks = start(batcher, 0)
        await attester.until_asked(1)
        tasks += start(batcher, 1, 2)
        await asyncio.sleep(0)
        attester.allow()
        await attester.until_asked(2)
        tasks += start(batcher, 3)
        await asyncio.sleep(0.01)
        assert [task.done() for task in tasks] == [True, False, False, False]
        attester.allow(2)
        await asyncio.gather(*tasks)

    asked = story(tell).asked
    pair = Tree(tuple(leaf_hash(nonce=nonce(n), keyset_bytes=KEYSET) for n in (1, 2)))
    assert asked == [
        report_data(nonce=nonce(0), keyset_bytes=KEYSET),
        batch_report_data(root=pair.root),
        report_data(nonce=nonce(3), keyset_bytes=KEYSET),
    ]


@pytest.mark.parametrize(("batch", "sizes"), [(4, [1, 4, 4, 2]), (1, [1] * 11)])
def test_a_batch_is_bounded_and_the_longest_waiting_come_first(batch: int, sizes: list[int]) -> None:
    """With a bound of 1 every nonce has a quote of its own."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        done: list[int] = []
        tasks = start(batcher, *range(11))
        for number, task in enumerate(tasks):
            task.add_done_callback(lambda _, number=number: done.append(number))
        attester.allow(len(sizes))
        answers = await asyncio.gather(*tasks)
        await asyncio.sleep(0)
        assert done == sorted(done)
        kinds = [verified(answer, nonce(n)) for n, answer in enumerate(answers)]
        expected = [size for size in sizes for _ in range(size)]
        assert [kind.size if isinstance(kind, Inclusion) else 1 for kind in kinds] == expected

    assert len(story(tell, batch=batch).asked) == len(sizes)


def test_the_same_nonce_twice_is_answered_twice() -> None:
    """Somebody who repeats another's nonce takes nothing from him."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        tasks = start(batcher, 0, 7, 7)
        attester.allow(2)
        for answer in (await asyncio.gather(*tasks))[1:]:
            assert isinstance(verified(answer, nonce(7)), Inclusion)

    story(tell)


def test_a_large_batch_goes_out_in_pieces() -> None:
    """A thousand answers at a stretch would keep everything else on the loop waiting: others have turns between."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        events: list[str] = []

        async def ask(number: int) -> None:
            await batcher.answer(nonce(number), keyset_bytes=KEYSET)
            events.append("a")

        async def other() -> None:
            while True:
                events.append(" ")
                await asyncio.sleep(0)

        asking = [asyncio.ensure_future(ask(number)) for number in range(201)]
        await attester.until_asked(1)
        turns = asyncio.ensure_future(other())
        attester.allow(2)
        await asyncio.gather(*asking)
        turns.cancel()
        stretches = "".join(events).split()
        assert sum(map(len, stretches)) == 201
        assert max(map(len, stretches)) <= 16

    story(tell)


# Epochs


def test_connections_of_two_epochs_share_a_quote(tmp_path: Path) -> None:
    """The keys rotate while nonces wait: each connection gets the keyset that it began with, under the same root."""
    attester = Gated()

    async def tell() -> None:
        with plane(tmp_path) as world, batching(attester) as batcher:
            world.service._evidence.close()
            world.service._evidence = batcher
            old = world.call()

            def ask(number: int, call: Any) -> asyncio.Task[bytes]:
                return asyncio.ensure_future(world.service.evidence(call, nonce=nonce(number)))

            first = ask(0, old)
            await attester.until_asked(1)
            waiting = [ask(1, old), ask(2, old)]
            world.epochs.rotate()
            new = world.call(key=ALICE)
            assert new.epoch.keyset_bytes != old.epoch.keyset_bytes
            waiting += [ask(3, new), ask(4, old)]
            await asyncio.sleep(0)
            attester.allow(2)
            assert parse_answer(await first).keyset == old.epoch.keyset_bytes
            read = [parse_answer(answer) for answer in await asyncio.gather(*waiting)]
            assert len({one.evidence.data for one in read}) == 1
            for one, number, call in zip(read, (1, 2, 3, 4), (old, old, new, old), strict=True):
                assert one.keyset == call.epoch.keyset_bytes
                assert isinstance(one.inclusion, Inclusion)
                root = _root(one.inclusion, number, one.keyset)
                assert batch_report_data(root=root) == attester.asked[1]
            swapped = _root(read[0].inclusion, 1, new.epoch.keyset_bytes)
            assert batch_report_data(root=swapped) != attester.asked[1]

    asyncio.run(tell())
    assert len(attester.asked) == 2


def _root(inclusion: Inclusion | Single, number: int, keyset: bytes) -> bytes:
    assert isinstance(inclusion, Inclusion)
    return root_of(inclusion, nonce=nonce(number), keyset_bytes=keyset)


# What is refused


def test_the_line_is_bounded() -> None:
    """The one too many is told when to come back; with the next quote there is room again."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        tasks = start(batcher, 0, 1, 2, 3)  # one being answered, three in line
        await asyncio.sleep(0)
        for number in (4, 5):
            with pytest.raises(Unavailable) as caught:
                await batcher.answer(nonce(number), keyset_bytes=KEYSET)
            assert (caught.value.code, caught.value.retry_after_s) == ("evidence_busy", 1)
        attester.allow()
        await tasks[0]
        tasks += start(batcher, 6, 7, 8)
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await batcher.answer(nonce(9), keyset_bytes=KEYSET)
        attester.allow(2)
        await asyncio.gather(*tasks)

    assert len(story(tell, waiting=3).asked) == 3


@pytest.mark.parametrize("wrong", [b"", bytes(31), bytes(33)])
def test_a_nonce_of_another_size_spoils_nobodys_batch(wrong: bytes) -> None:
    """It is refused before it is in line."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        tasks = start(batcher, 0, 1, 2)
        await asyncio.sleep(0)
        with pytest.raises(MalformedInput) as caught:
            await batcher.answer(wrong, keyset_bytes=KEYSET)
        assert caught.value.code == "nonce_malformed"
        attester.allow(2)
        assert len(await asyncio.gather(*tasks)) == 3

    assert len(story(tell).asked) == 2


def test_a_failed_quote_fails_its_own_batch_and_no_other() -> None:
    """Those who came while it was being made have another one, which they get; nobody gets the failed one's."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        attester.faults[1] = SealRefused("the machine does not want to", code="seal_refused")
        before = start(batcher, 0, 1, 2, 3)
        attester.allow()
        await attester.until_asked(2)
        after = start(batcher, 4, 5)
        await asyncio.sleep(0)
        attester.allow(2)
        results = await asyncio.gather(*before, return_exceptions=True)
        assert isinstance(results[0], bytes)
        failed = results[1:]
        assert all(type(one) is SealRefused and one.code == "seal_refused" for one in failed)
        assert len({id(one) for one in failed}) == 3, "each has his own"
        for number, answer in zip((4, 5), await asyncio.gather(*after), strict=True):
            assert isinstance(verified(answer, nonce(number)), Inclusion)

    assert len(story(tell).asked) == 3


@pytest.mark.parametrize("fault", [OSError(5, "secret"), RuntimeError("secret"), StopIteration("secret")])
def test_a_fault_that_is_not_ours_is_told_without_its_words(fault: Exception) -> None:
    """One alone or many: our error, no text of the other one, and the place for the log."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        attester.faults = {0: fault, 1: fault}
        tasks = start(batcher, 0, 1, 2)
        attester.allow(2)
        for one in await asyncio.gather(*tasks, return_exceptions=True):
            assert type(one) is Failure
            assert one.code == "internal_error"
            assert "secret" not in one.message
            assert traceback.extract_tb(one.__traceback__)[-1].name == "evidence"
        (again,) = start(batcher, 3)
        attester.allow()
        assert verified(await again, nonce(3)) == Single()

    story(tell)


# Leaving


def test_who_leaves_the_line_frees_his_place_and_is_in_no_tree() -> None:
    """A cancelled client that waited costs nothing."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        first, second, third = start(batcher, 0, 1, 2)
        await attester.until_asked(1)
        second.cancel()
        await asyncio.sleep(0)
        (fourth,) = start(batcher, 3)  # there are two places, and one is free again
        await asyncio.sleep(0)
        attester.allow(2)
        await asyncio.gather(first, third, fourth)
        assert second.cancelled()
        assert verified(fourth.result(), nonce(3)) == Tree(
            tuple(leaf_hash(nonce=nonce(n), keyset_bytes=KEYSET) for n in (2, 3))
        ).inclusion(1)

    assert len(story(tell, waiting=2).asked) == 2


def test_who_leaves_during_the_quote_harms_nobody() -> None:
    """His leaf is in the tree; the others' proofs hold with it."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        tasks = start(batcher, 0, 1, 2, 3)
        attester.allow()
        await attester.until_asked(2)
        tasks[2].cancel()
        attester.allow()
        await asyncio.wait(tasks)
        assert tasks[2].cancelled()
        for number in (1, 3):
            inclusion = verified(tasks[number].result(), nonce(number))
            assert isinstance(inclusion, Inclusion)
            assert inclusion.size == 3

    assert len(story(tell).asked) == 2


def test_when_all_have_left_no_quote_is_made() -> None:
    """Nor does the one under way, which nobody waits for, keep the next from being served."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        tasks = start(batcher, 0, 1, 2)
        await attester.until_asked(1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        attester.allow()
        await asyncio.sleep(0.05)
        assert len(attester.asked) == 1
        (later,) = start(batcher, 3)
        attester.allow()
        assert verified(await later, nonce(3)) == Single()

    assert len(story(tell).asked) == 2


def test_closing_lets_the_quote_end_and_refuses_whoever_waits() -> None:
    """The quote that is being made is answered; nobody is left waiting, and nobody begins."""

    async def tell(batcher: Batcher, attester: Gated) -> None:
        first, *waiting = start(batcher, 0, 1, 2)
        await attester.until_asked(1)
        closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        assert not closing.done()
        attester.allow()
        await closing
        assert verified(await first, nonce(0)) == Single()
        for task in waiting:
            with pytest.raises(Unavailable) as caught:
                await task
            assert caught.value.code == "evidence_busy"
        with pytest.raises(Unavailable) as caught:
            await batcher.answer(nonce(3), keyset_bytes=KEYSET)
        assert caught.value.code == "evidence_busy"

    assert len(story(tell).asked) == 1


def test_a_loop_that_ends_leaves_nobody_and_nothing_behind() -> None:
    """The event loop is taken down with a quote under way and others in line: no error, and no wait for them."""
    attester = Gated()
    batcher = Batcher(attester, waiting=10, batch=10, now=lambda: NOW)

    async def tell() -> list[asyncio.Task[bytes]]:
        tasks = start(batcher, 0, 1, 2)
        await attester.until_asked(1)
        threading.Timer(0.05, attester.allow).start()
        return tasks

    tasks = asyncio.run(tell())
    assert all(task.cancelled() for task in tasks)
    assert batcher._working is None
    assert not batcher._waiting
    batcher.close()
    assert len(attester.asked) == 1
