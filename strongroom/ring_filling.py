"""The server's side of `ring`: opens the chunks of a stage, in two threads, into the slots or where they stay.

Rules
  - A child maps the slots read-only, and cannot do otherwise (F_SEAL_FUTURE_WRITE): memory that two of its children
    could write to would be a way from one caller's data to another's.
  - Every tag, and that the last chunk is the last, is checked before anybody is told that the bytes may be used.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from strongroom.errors import SealRefused
from strongroom.frames import Stream
from strongroom.ring import AUTHENTIC, MEMORY, NUMBER, SLOTS, buffer, slots_for
from strongroom.sealed import TAG_BYTES, Opening

THREADS: Final = 2
"""That decrypt; more chunks than the child can copy at a time are of no use."""
FEW: Final = 3
"""Chunks up to which a second thread costs more than it saves."""
_SEAL_FUTURE_WRITE: Final = 0x10
_Place: TypeAlias = Callable[[int, memoryview], None]
_Fail: TypeAlias = Callable[[], None]


def read_stage(opening: Opening) -> memoryview:
    """All of a stage, in private memory of this process.

    Raises:
        SealRefused, OSError: as `Opening.open_chunk`; what was decrypted is gone.
    """
    memory = buffer(opening.length)
    whole = memoryview(memory)[: opening.length]

    def place(number: int, scratch: memoryview) -> None:
        at = number * opening.chunk_size
        opening.open_chunk(number, whole[at : at + opening.size_of(number)], scratch=scratch)

    try:
        _in_threads(opening, place, fail=lambda: None)
    except BaseException:
        _forget(memory)
        raise
    return whole


def _forget(memory: mmap.mmap) -> None:
    """Unauthenticated bytes do not stay: fresh pages, of zeros, take the place of these."""
    if sys.platform == "linux":
        memory.madvise(mmap.MADV_DONTNEED)
    else:
        memory[:] = bytes(len(memory))


def send_stage(end: socket.socket, stream: Stream, opening: Opening) -> None:
    """Sends a stage to the child at the other end of `end`, which is in `receive_stage`. `stream`: the same socket,
    with a time in all.

    Raises:
        SealRefused: a chunk is not authentic. The child waits on, and has to be ended.
        EOFError, OSError: the child ended, or says what it cannot, or takes too long; a fault of the disk.
    """
    size = slots_for(opening.chunks) * opening.chunk_size
    descriptor = os.memfd_create("stage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        slots = mmap.mmap(descriptor, size)
        seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | _SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        socket.send_fds(end, [MEMORY], [descriptor])
    finally:
        os.close(descriptor)
    _Sending(end, stream, opening, memoryview(slots)).run()
    stream.sendall(NUMBER.pack(AUTHENTIC))


class _Sending:
    """One stage on its way."""

    def __init__(self, end: socket.socket, stream: Stream, opening: Opening, slots: memoryview) -> None:
        self._end, self._stream, self._opening, self._slots = end, stream, opening, slots
        self._free = [threading.Semaphore(1) for _ in range(slots_for(opening.chunks))]
        self._stopped = False

    def run(self) -> None:
        reading = threading.Thread(target=self._acknowledged, name="stage-copied", daemon=True)
        self._fault: BaseException | None = None
        reading.start()
        try:
            _in_threads(self._opening, self._place, fail=self._stop)
        except BaseException:
            self._stop()
            raise
        finally:
            reading.join()
        if self._fault is not None:
            raise self._fault

    def _place(self, number: int, scratch: memoryview) -> None:
        slot = number % len(self._free)
        self._free[slot].acquire()
        if self._stopped:
            raise EOFError
        at = slot * self._opening.chunk_size
        self._opening.open_chunk(
            number, self._slots[at : at + self._opening.size_of(number)], scratch=scratch
        )
        self._end.sendall(NUMBER.pack(number))

    def _acknowledged(self) -> None:
        """Frees the slots of chunks that were copied; each number comes once."""
        missing = set(range(self._opening.chunks))
        try:
            while missing:
                data = self._stream.recv(4 * SLOTS)
                while data and len(data) % 4:
                    more = self._stream.recv(4 - len(data) % 4)
                    data = data + more if more else b""
                if not data:
                    raise EOFError
                for (number,) in NUMBER.iter_unpack(data):
                    missing.remove(number)
                    self._free[number % len(self._free)].release()
        except (OSError, EOFError, KeyError) as fault:
            self._fault = EOFError() if isinstance(fault, KeyError) else fault
            self._stop()

    def _stop(self) -> None:
        """Wakes whoever waits: the child is of no use any more."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        for slot in self._free:
            slot.release()


def _in_threads(opening: Opening, place: _Place, *, fail: _Fail) -> None:
    """Calls `place` for every chunk, in two threads where there are enough; the first exception is raised."""
    numbers = itertools.count()
    faults: list[BaseException] = []

    def work() -> None:
        scratch = memoryview(bytearray(min(opening.chunk_size, opening.length) + TAG_BYTES))
        try:
            while not faults and (number := next(numbers)) < opening.chunks:
                place(number, scratch)
        except BaseException as fault:  # noqa: BLE001 - raised again, in the thread that waits
            faults.append(fault)
            fail()

    threads = [threading.Thread(target=work, name="stage-open", daemon=True) for _ in range(THREADS - 1)]
    threads = threads if opening.chunks > FEW else []
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if faults:
        # A bad tag says more than the end of the child that follows from it.
        raise next((fault for fault in faults if isinstance(fault, SealRefused)), faults[0])
