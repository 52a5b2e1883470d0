"""Stages on their way to the worker that runs them: opened while it runs the one before, into memory that it can read.

    worker: "stage 7" ──► server: opens its chunks, writes them into one of two slots, "stage 7" ──► worker: runs it

Rules
  - Two slots, each as large as the largest stage that does not stay: never more than two stages are there.
  - Each worker has slots of its own, which are empty but in its run, and one run of a model goes on at a time: so
    memory does not grow with the workers. Were they the same memory for all workers of a model, one that the model has
    taken over could ask for stages in an order that says something, and another caller's could read it there.
  - A worker maps them read-only, by a descriptor that cannot be written through.
  - A worker is told that a stage is there when every chunk of it was authentic (docs/spec/sealed.md §2.4), and uses
    nothing before.
  - A worker may ask for any stage, as often as it likes, while it runs: that costs its caller's time. Whoever says
    something else, or does not take the answers, is served no more: the server waits for no worker.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from strongroom.errors import Error, Failure, SealRefused, Unavailable
from strongroom.fetching import AHEAD, GONE, WORD
from strongroom.models.parting import needed, resident
from strongroom.sealed import TAG_BYTES, Opening

SLOTS: Final = AHEAD
FAMILY: Final = 12 << 20
"""Bytes of a model's processes besides its stages: template, worker, and the spare one."""
BYTES_A_SECOND: Final = 100e6
"""At which stages are read, opened and loaded on a slow and busy machine: what a run's time grows by."""


class Given(Protocol):
    """Where stages come from: what of a `jobs.Source` is used here."""

    @property
    def stages(self) -> Callable[[], contextlib.AbstractContextManager[tuple[Opening, ...]]]:
        """All of them, opened."""

    @property
    def spoilt(self) -> Callable[[tuple[Opening, ...], str], None]:
        """To be told, with a code, that these could not be used."""


class Plan:
    """Which stages of a form stay in memory. `lengths`: bytes of each; `room`: what the model may take."""

    def __init__(self, lengths: Sequence[int], room: int) -> None:
        self.lengths = tuple(lengths)
        self.stay = resident(lengths, room)
        self.moving = tuple(number for number in range(len(lengths)) if number not in self.stay)
        """The others, in their order."""
        largest = max((lengths[number] for number in self.moving), default=0)
        self.slot = -(-largest // mmap.PAGESIZE) * mmap.PAGESIZE
        """Bytes of a slot; 0 where all stay."""
        self.memory_bytes = needed(lengths, self.stay)

    @property
    def seconds(self) -> float:
        """What a run may take longer than one of the whole model."""
        return sum(self.lengths[number] for number in self.moving) / BYTES_A_SECOND

    def to_json(self) -> dict[str, Any]:
        """What a template is told."""
        return {
            "lengths": list(self.lengths),
            "stay": sorted(self.stay),
            "moving": list(self.moving),
            "slot": self.slot,
        }

    def place(self, number: int) -> int:
        """Where in the slots a stage lies that does not stay."""
        return self.moving.index(number) % SLOTS * self.slot


class Slots:
    """Two slots, which one worker reads from and the server fills."""

    def __init__(self, size: int) -> None:
        """`size`: bytes of a slot.

        Raises:
            OSError: there are no descriptors.
        """
        self.size = max(SLOTS * size, mmap.PAGESIZE)
        """Bytes of both."""
        self._memory = os.memfd_create("stages", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._memory, self.size)
            self.readable = os.open(f"/proc/self/fd/{self._memory}", os.O_RDONLY | os.O_CLOEXEC)
            """A descriptor of them that cannot be written through."""
        except BaseException:
            os.close(self._memory)
            raise

    def fill(self, data: memoryview, at: int) -> None:
        """Writes to them. OSError: there is no memory."""
        while data:
            done = os.pwrite(self._memory, data, at)
            data, at = data[done:], at + done

    def empty(self) -> None:
        """Gives their memory back: who reads there afterwards finds zeros."""
        if self._memory >= 0:
            os.ftruncate(self._memory, 0)
            os.ftruncate(self._memory, self.size)

    def close(self) -> None:
        """Gives them back."""
        for descriptor in (self._memory, self.readable):
            if descriptor >= 0:
                os.close(descriptor)
        self._memory = self.readable = -1


class Feeding:
    """One model's turns, and the thread that fills the slots of the worker that runs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._turn = threading.Lock()
        self._stopping = threading.Lock()
        self._openings: tuple[Opening, ...] = ()
        self._fault: Exception | None = None
        self._thread: threading.Thread | None = None
        self._slots: Slots | None = None
        self._wake = self._woken = -1

    @contextlib.contextmanager
    def turn(self, source: Given, *, seconds: float) -> Iterator[None]:
        """One run has the stages for as long as the block lasts; others wait, so long at the most.

        Raises:
            Unavailable: they are taken (code `overloaded`).
            SealRefused, NotFound, Failure: the stages cannot be read; from the block, if one could not be while it ran.
        """
        if not self._turn.acquire(timeout=seconds):
            raise Unavailable("the model runs for others, stage by stage", code="overloaded")
        openings: tuple[Opening, ...] = ()
        try:
            with source.stages() as openings:
                if tuple(opening.length for opening in openings) != self.plan.lengths:
                    raise Unavailable("the model's stages are being made anew", code="overloaded")
                self._openings, self._fault = openings, None
                try:
                    yield
                except Error:
                    self._check()
                    raise
                finally:
                    self.stop()
                    self._openings = ()
                self._check()
        except SealRefused as refusal:
            source.spoilt(openings, refusal.code)
            raise
        finally:
            self._turn.release()

    def _check(self) -> None:
        if isinstance(self._fault, Error):
            raise self._fault from None
        if self._fault is not None:
            raise Failure("a stage of the model cannot be read") from None

    def serve(self, end: socket.socket, slots: Slots, run: int) -> None:
        """Serves a worker, by its socket and into its slots, in its run of that number, until `stop`.

        Raises:
            Unavailable: there is no descriptor, or no thread (code `overloaded`).
        """
        try:
            self._woken, self._wake = os.pipe()
            thread = threading.Thread(target=self._serve, args=(end, slots, run), name="stages", daemon=True)
            try:
                thread.start()
            except BaseException:
                os.close(self._wake)
                os.close(self._woken)
                raise
        except (OSError, RuntimeError):
            raise Unavailable("nobody can bring the model's stages now", code="overloaded") from None
        self._thread, self._slots = thread, slots

    def stop(self, slots: Slots | None = None) -> None:
        """Returns when nobody is served any more, or not into these, and they are empty. Thread-safe."""
        with self._stopping:
            if self._thread is None or self._slots is None or slots not in (None, self._slots):
                return
            os.write(self._wake, b"x")
            self._thread.join()
            os.close(self._wake)
            os.close(self._woken)
            self._slots.empty()
            self._thread = self._slots = None

    def _serve(self, end: socket.socket, slots: Slots, run: int) -> None:
        waiting = select.poll()
        waiting.register(end, select.POLLIN)
        waiting.register(self._woken, select.POLLIN)
        asked = b""
        try:
            while all(descriptor != self._woken for descriptor, _ in waiting.poll()):
                more = end.recv(WORD.size - len(asked))
                if not more:
                    return
                asked += more
                if len(asked) < WORD.size:
                    continue
                (of, number), asked = WORD.unpack(asked), b""
                if of != run:  # a word of a run that has ended
                    continue
                said = self._filled(slots, number)
                # Where it does not take its answers there is no waiting: `stop` would wait for as long.
                if end.send(WORD.pack(run, said), socket.MSG_DONTWAIT) < WORD.size or said == GONE:
                    return
        except OSError:  # the worker has ended, which its other socket shows
            return

    def _filled(self, slots: Slots, number: int) -> int:
        try:
            if number not in self.plan.moving:
                raise Failure("a worker asks for a stage that there is not")
            self._fill(slots, self._openings[number], self.plan.place(number))
        except Exception as fault:  # noqa: BLE001 - whatever it is: raised again in `turn`, and the worker must not wait
            self._fault = fault
            return GONE
        return number

    def _fill(self, slots: Slots, opening: Opening, place: int) -> None:
        """Through private memory: the slots are not mapped here, and nobody reads what is not authentic yet."""
        scratch = memoryview(bytearray(min(opening.chunk_size, opening.length) + TAG_BYTES))
        plain = memoryview(bytearray(min(opening.chunk_size, opening.length)))
        for number in range(opening.chunks):
            piece = plain[: opening.size_of(number)]
            opening.open_chunk(number, piece, scratch=scratch)
            slots.fill(piece, place + number * opening.chunk_size)
