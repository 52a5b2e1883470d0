"""A stage of a prepared form on its way from the store into the process that loads it: decrypted once, copied once.

    server: open a chunk into a slot of shared memory ──number──► child: copy it to its place ──number──► slot is free

Rules
  - A child uses nothing before the server says that every chunk was authentic (docs/spec/sealed.md §2.4). Where one is
    not, it is never said, and the server ends the child.
  - The child copies into private memory in huge pages: faults on small ones would take longer than everything else.
    What it forks shares that memory until somebody writes to it, which nobody does.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final, TypeAlias

SLOTS: Final = 4
"""Chunks on their way at one time: few enough to stay in a processor's cache."""
SHORT: Final = 16
"""Chunks up to which a stage has two slots: making fresh memory for more takes longer than waiting for one."""
HUGE: Final = 2 << 20
"""Bytes of a huge page."""
NUMBER: Final = struct.Struct("<I")
AUTHENTIC: Final = 0xFFFFFFFF
"""In place of a chunk's number: all of them were authentic. No chunk has that number, for it would be the 2³²nd."""
MEMORY: Final = b"W"
_HUGEPAGES: Final = 14
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


def slots_for(chunks: int) -> int:
    """How many slots a stage of so many chunks passes through."""
    return 2 if chunks <= SHORT else SLOTS


def receive_stage(end: socket.socket, *, length: int, chunk_size: int) -> memoryview:
    """The bytes that `send_stage` sent, in private memory, once all of them are authentic.

    Raises:
        EOFError: the server ended, or they are not.
        OSError: there is no memory.
    """
    message, descriptors, _, _ = socket.recv_fds(end, 1, 1)
    if message != MEMORY or len(descriptors) != 1:
        raise EOFError
    chunks = -(-length // chunk_size)
    places = slots_for(chunks)
    slots, unmap = _map(descriptors[0], places * chunk_size)
    os.close(descriptors[0])
    memory = buffer(length)
    whole = memoryview(memory)[:length]
    data = b""
    # A number for each chunk and the last word: what comes behind that is another message's.
    left = NUMBER.size * (chunks + 1)
    try:
        while left:
            more = end.recv(min(left, NUMBER.size * SLOTS))
            if not more:
                raise EOFError
            left -= len(more)
            data += more
            copied = b""
            while len(data) >= 4:
                number = NUMBER.unpack_from(data)[0]
                if number == AUTHENTIC:
                    return whole
                part = whole[number * chunk_size : (number + 1) * chunk_size]
                at = number % places * chunk_size
                part[:] = slots[at : at + len(part)]
                copied, data = copied + data[:4], data[4:]
            end.sendall(copied)
        raise EOFError  # more chunks than there are
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
