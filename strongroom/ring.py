"""A stage of a prepared form on its way from the store into the process that loads it: decrypted once, copied once.

    server: open a chunk into a slot of shared memory ──number──► child: copy it to its place ──number──► slot is free

Rules
  - The child maps the slots read-only, and cannot do otherwise (F_SEAL_FUTURE_WRITE): memory that two of its children
    could write to would be a way from one caller's data to another's.
  - A child uses nothing before the server says that every chunk was authentic (docs/spec/sealed.md §2.4). Where one is
    not, it is never said, and the server ends the child.
  - The child copies into private memory in huge pages: faults on small ones would take longer than everything else.
    What it forks shares that memory until somebody writes to it, which nobody does.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import mmap
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from strongroom.errors import SealRefused
from strongroom.frames import Stream
from strongroom.sealed import TAG_BYTES, Opening

SLOTS: Final = 4
"""Chunks on their way at one time: few enough to stay in a processor's cache."""
THREADS: Final = 2
"""That decrypt; more chunks than the child can copy at a time are of no use."""
FEW: Final = 3
"""Chunks up to which a second thread costs more than it saves."""
HUGE: Final = 2 << 20
"""Bytes of a huge page."""
_NUMBER: Final = struct.Struct("<I")
_AUTHENTIC: Final = 0xFFFFFFFF
"""In place of a chunk's number: all of them were authentic. No chunk has that number, for it would be the 2³²nd."""
_MEMORY: Final = b"W"
_SEAL_FUTURE_WRITE: Final = 0x10
_HUGEPAGES: Final = 14
_Place: TypeAlias = Callable[[int, memoryview], None]
_Fail: TypeAlias = Callable[[], None]
_Unmap: TypeAlias = Callable[[], object]


def buffer(size: int) -> mmap.mmap:
    """Private memory of `size` bytes or more, in huge pages where the system has them."""
    size = -(-size // HUGE) * HUGE
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        made.madvise(_HUGEPAGES)
    return made


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


# The server's side


def send_stage(end: socket.socket, stream: Stream, opening: Opening) -> None:
    """Sends a stage to the child at the other end of `end`, which is in `receive_stage`. `stream`: the same socket,
    with a time in all.

    Raises:
        SealRefused: a chunk is not authentic. The child waits on, and has to be ended.
        EOFError, OSError: the child ended, or says what it cannot, or takes too long; a fault of the disk.
    """
    size = SLOTS * opening.chunk_size
    descriptor = os.memfd_create("stage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        slots = mmap.mmap(descriptor, size)
        seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | _SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        socket.send_fds(end, [_MEMORY], [descriptor])
    finally:
        os.close(descriptor)
    _Sending(end, stream, opening, memoryview(slots)).run()
    stream.sendall(_NUMBER.pack(_AUTHENTIC))


class _Sending:
    """One stage on its way."""

    def __init__(self, end: socket.socket, stream: Stream, opening: Opening, slots: memoryview) -> None:
        self._end, self._stream, self._opening, self._slots = end, stream, opening, slots
        self._free = [threading.Semaphore(1) for _ in range(SLOTS)]
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
        slot = number % SLOTS
        self._free[slot].acquire()
        if self._stopped:
            raise EOFError
        at = slot * self._opening.chunk_size
        self._opening.open_chunk(
            number, self._slots[at : at + self._opening.size_of(number)], scratch=scratch
        )
        self._end.sendall(_NUMBER.pack(number))

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
                for (number,) in _NUMBER.iter_unpack(data):
                    missing.remove(number)
                    self._free[number % SLOTS].release()
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


# The child's side


def receive_stage(end: socket.socket, *, length: int, chunk_size: int) -> memoryview:
    """The bytes that `send_stage` sent, in private memory, once all of them are authentic.

    Raises:
        EOFError: the server ended, or they are not.
        OSError: there is no memory.
    """
    message, descriptors, _, _ = socket.recv_fds(end, 1, 1)
    if message != _MEMORY or len(descriptors) != 1:
        raise EOFError
    slots, unmap = _map(descriptors[0], SLOTS * chunk_size)
    os.close(descriptors[0])
    memory = buffer(length)
    whole = memoryview(memory)[:length]
    data = b""
    try:
        while True:
            more = end.recv(4 * SLOTS)
            if not more:
                raise EOFError
            data += more
            copied = b""
            while len(data) >= 4:
                number = _NUMBER.unpack_from(data)[0]
                if number == _AUTHENTIC:
                    return whole
                part = whole[number * chunk_size : (number + 1) * chunk_size]
                at = number % SLOTS * chunk_size
                part[:] = slots[at : at + len(part)]
                copied, data = copied + data[:4], data[4:]
            end.sendall(copied)
    finally:
        slots.release()
        unmap()


def _map(descriptor: int, size: int) -> tuple[memoryview, _Unmap]:
    """Shared memory, to read. Not by `mmap`, which keeps another descriptor of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, size, 1, 1, descriptor, 0)  # PROT_READ, MAP_SHARED
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "the shared memory cannot be mapped")
    view = memoryview((ctypes.c_uint8 * size).from_address(address)).cast("B")
    return view, lambda: libc.munmap(address, size)
