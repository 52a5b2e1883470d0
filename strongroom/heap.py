"""glibc's heap in processes that load models and run them: in huge pages, where much of it is written at once.

A cold start writes fresh memory more than anything else, and a fault on a page of 4 KiB costs more than decrypting it.

Rules
  - Advice, never a condition: where the C library or the system has none of this, nothing happens.
  - Pages are huge where they are about to be written, and no longer than that: the system would fill holes in such
    memory up by itself.
  - Called while the heap fills no blocks (`kernel.fill_blocks`): room is asked for, not written.

Sources: mallopt(3), madvise(2), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Final, NamedTuple

from strongroom import kernel

RUN_BYTES: Final = 16 << 20
"""Room of a worker's heap in huge pages. Of what a run frees at the heap's end, at most twice as much stays its."""
LOAD_BYTES: Final = 32 << 20
"""Room for loading a model, besides that of its weights once they are packed."""
LARGEST: Final = 32 << 20
"""Bytes of the largest block that the heap gives from its own: more is not settable, and larger ones come from the
system, and go back to it."""
_HOLE: Final = 32 << 10
"""Bytes from which on a hole that loading left is given up."""
_HOLES: Final = 1 << 12
_TRIM, _PAD, _LARGEST, _LARGE_BLOCKS, _ARENAS = -1, -2, -3, -4, -8
"""M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX."""
_USUAL_LARGE_BLOCKS: Final = 1 << 16
_HUGE, _PLAIN = 14, 15
"""MADV_HUGEPAGE, MADV_NOHUGEPAGE."""
_PAGE: Final = mmap.PAGESIZE


class Room(NamedTuple):
    """A part of the heap: address of its first page, bytes."""

    first: int
    length: int


def _prepared_libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):  # musl's
        return None
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free.restype = None
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


_libc = _prepared_libc()


def spacious(size: int) -> Room:
    """Has the heap hold `size` bytes more at its end, in huge pages once they are written, and give all blocks from
    there, however large. Where there is no such room, it stays as it is.
    """
    if _libc is None:
        return Room(0, 0)
    _libc.mallopt(_LARGE_BLOCKS, 0)
    _libc.mallopt(_TRIM, 1 << 30)
    address = _libc.malloc(size)
    if not address:
        return Room(0, 0)
    first = -(-address // _PAGE) * _PAGE
    room = Room(first, max(0, (address + size) // _PAGE * _PAGE - first))
    _libc.madvise(room.first, room.length, _HUGE)
    _libc.free(address)
    return room


def loaded(room: Room) -> None:
    """After a model was loaded in `room`: what is free there goes back to the system, and its addresses are given up.
    Blocks of a run would come from there otherwise, in small pages, before they came from the heap's end.
    """
    kernel.trim_heap()
    if _libc is None or not room.length:
        return
    _libc.madvise(room.first, room.length, _PLAIN)
    end = _libc.malloc(LARGEST)  # larger than what any hole is sure to be; wherever it is, it marks the end
    size, holes = LARGEST, 0
    _libc.free(end)
    while end and size >= _HOLE and holes < _HOLES:
        address = _libc.malloc(size)
        if address and address < end:
            holes += 1  # never written, and never freed
            continue
        _libc.free(address)
        size //= 2
    kernel.trim_heap()


def for_runs() -> None:
    """In a worker, before its first run: room in huge pages at the heap's end, which stays for the next run."""
    if _libc is None:
        return
    spacious(RUN_BYTES)
    _libc.mallopt(_LARGE_BLOCKS, _USUAL_LARGE_BLOCKS)
    _keep(_libc)


def for_threads() -> None:
    """In a server that runs models itself, before its threads begin: one heap for all of them, which keeps for the next
    run what one has freed. Every tensor of a run would be mapped, filled and unmapped otherwise.
    """
    if _libc is None:
        return
    _libc.mallopt(_ARENAS, 1)  # others than the first cannot hold large blocks
    _keep(_libc)


def _keep(libc: ctypes.CDLL) -> None:
    for option, value in ((_LARGEST, LARGEST), (_PAD, RUN_BYTES), (_TRIM, 2 * RUN_BYTES)):
        libc.mallopt(option, value)
