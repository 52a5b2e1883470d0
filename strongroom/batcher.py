"""Fresh evidence for many nonces from few quotes (docs/spec/evidence.md §2.5 and §2.6).

A quote of real hardware takes 39 to 1000 ms, and a TEE makes one at a time. While one is being made, the nonces that
arrive are collected; the next quote answers all of them.

Rules
  - A nonce is in the tree *before* the quote over its root is asked for. No quote that exists, or is being made, is
    ever handed to a nonce that came later, nor one that failed to anybody.
  - Nothing is waited for in order to make a batch larger: where no quote is being made, a nonce has its own at once,
    and the plain answer.
  - What waits is bounded, and so is a batch. Whoever leaves takes nothing along: its leaf may be in the tree, and
    the others' proofs hold with it.

Everything but the making of evidence belongs to one event loop, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final, Protocol, TypeAlias

from strongroom.attest.batch import Inclusion, Single, Tree, batch_report_data, leaf_hash
from strongroom.attest.evidence import Evidence, complete_answer, encode_plain, report_data
from strongroom.errors import Error, Failure, Unavailable
from strongroom.traffic import Lane

_BUSY: Final = "evidence_busy"
_AT_ONCE: Final = 16
"""Answers that go out before the event loop turns to others: a thousand at a stretch take half a second."""


class Attests(Protocol):
    """The part of an attester that evidence needs."""

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """Evidence that carries `report_data` (64 bytes) and, where its format has a place for it, `nonce`."""


Answer: TypeAlias = tuple[bytes, Inclusion | Single]
"""The answer without its proof, which it shares with others, and the proof."""


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    nonce: bytes
    leaf: bytes
    keyset_bytes: bytes
    answer: asyncio.Future[Answer]


class Batcher:
    """Answers nonces with evidence of `attester`, which is asked for one at a time, in a thread.

    `waiting`: nonces in line at most. `batch`: nonces that one quote answers at most, 1 for none but its own.
    """

    def __init__(self, attester: Attests, *, waiting: int, batch: int, now: Callable[[], datetime]) -> None:
        self._attester = attester
        self._room = waiting
        self._batch = batch
        self._now = now
        self._lane = Lane("evidence", workers=1, waiting=0, code=_BUSY)
        self._waiting: dict[_Question, None] = {}  # in the order in which they came
        self._working: asyncio.Task[None] | None = None
        self._handing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def answer(self, nonce: bytes, *, keyset_bytes: bytes) -> bytes:
        """The encoded answer to `nonce` (32 bytes) for this keyset (docs/spec/evidence.md §2.1).

        Raises:
            Unavailable: too many are waiting, or the server is about to end (code `evidence_busy`).
            Failure: the TEE gave no evidence, for no reason that has an error of its own.
            MalformedInput: code `nonce_malformed`, a nonce of another size.
        """
        # Here and not in the thread: a nonce out of form must not spoil others' batch.
        leaf = leaf_hash(nonce=nonce, keyset_bytes=keyset_bytes)
        if self._closed or len(self._waiting) >= self._room:
            raise Unavailable("too many are waiting for evidence", code=_BUSY)
        question = _Question(nonce, leaf, keyset_bytes, asyncio.get_running_loop().create_future())
        self._waiting[question] = None
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work(self._next()))
        try:
            plain, inclusion = await question.answer
        finally:
            self._waiting.pop(question, None)
        return complete_answer(plain, inclusion)

    def close(self) -> None:
        """Ends the thread after the quote that is being made; whoever still waits is refused."""
        self._closed = True
        self._lane.close()

    def _next(self) -> tuple[_Question, ...]:
        """Takes the longest waiting questions out of the line."""
        there = (one for one in self._waiting if not one.answer.done())  # a cancelled one is about to go
        batch = tuple(islice(there, self._batch))
        for question in batch:
            del self._waiting[question]
        return batch

    async def _work(self, batch: tuple[_Question, ...]) -> None:
        """Makes one quote after another while somebody waits. Answers go out while the next one is being made."""
        try:
            while batch and not self._closed:
                outcome = await self._lane.run(self._attempt, batch, now=self._now())
                handing = asyncio.get_running_loop().create_task(_hand_out(batch, outcome))
                self._handing.add(handing)
                handing.add_done_callback(self._handing.discard)
                batch = self._next()
        finally:
            self._working = None
            # Only where the server ends under us: nobody may be left waiting for a quote that nobody makes.
            _refuse((*batch, *self._waiting), Unavailable("the server is about to end", code=_BUSY))

    def _attempt(self, batch: tuple[_Question, ...], *, now: datetime) -> tuple[Answer, ...] | Error:
        """In the thread: the answers, or the one error that they all get. The log is told the place of a fault."""
        try:
            return self._make(batch, now=now)
        except Error as error:
            return error
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is the fault of this quote alone
            return Failure("the TEE gave no evidence").with_traceback(fault.__traceback__)

    def _make(self, batch: tuple[_Question, ...], *, now: datetime) -> tuple[Answer, ...]:
        """The tree first, then the quote over its root."""
        inclusions: tuple[Inclusion | Single, ...]
        if len(batch) == 1:
            (only,) = batch
            inclusions = (Single(),)
            data, answered = report_data(nonce=only.nonce, keyset_bytes=only.keyset_bytes), only.nonce
        else:
            tree = Tree(tuple(question.leaf for question in batch))
            inclusions = tuple(map(tree.inclusion, range(len(batch))))
            data, answered = batch_report_data(root=tree.root), tree.root
        evidence = self._attester.evidence(data, now=now, nonce=answered)
        keysets = {question.keyset_bytes for question in batch}
        plain = {keyset: encode_plain(evidence, keyset=keyset) for keyset in keysets}
        return tuple((plain[q.keyset_bytes], one) for q, one in zip(batch, inclusions, strict=True))


async def _hand_out(batch: tuple[_Question, ...], outcome: tuple[Answer, ...] | Error) -> None:
    """Gives this batch, and nobody else, its answers, or what went wrong."""
    if isinstance(outcome, Error):
        _refuse(batch, outcome)
        return
    for at, (question, answer) in enumerate(zip(batch, outcome, strict=True), start=1):
        if not question.answer.done():
            question.answer.set_result(answer)
        if at % _AT_ONCE == 0:
            await asyncio.sleep(0)


def _refuse(batch: tuple[_Question, ...], error: Error) -> None:
    """Ends these waits. Each gets its own copy: an exception collects the frames of everybody who raises it."""
    for question in batch:
        if not question.answer.done():
            question.answer.set_exception(copy.copy(error).with_traceback(error.__traceback__))
