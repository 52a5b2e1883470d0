"""Where a store is, whose it is, and what keeps others and older copies out of it (`docs/spec/sealed.md` §6)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from strongroom import disk
from strongroom.anchor import Anchor
from strongroom.keys import SealingRoot

STATE: Final = "state"
"""The file that holds the record."""
DATA: Final = "data"
"""The folder of the data files."""
_TEMPORARY: Final = re.compile(r"state\.[0-9a-f]{32}\.tmp")
_DATA_FILE: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Place:
    """One store's place. `security_digest`: SHA-256 of the security configuration. `now`: gives Unix seconds.
    `chunk_size`: bytes, for new files.
    """

    folder: Path
    root: SealingRoot
    security_digest: bytes
    now: Callable[[], int]
    chunk_size: int
    guard: disk.Guard
    anchor: Anchor


def locked(path: str | os.PathLike[str]) -> tuple[Path, disk.Guard]:
    """The store's folder, made where there is none, and the lock on it.

    Raises:
        Unavailable: another process has it (code `store_locked`), or the disk is full. Failure: another fault.
    """
    folder = Path(path)
    with disk.faults("make the store's folder"):
        disk.make_folder(folder)
        return folder, disk.Guard(folder)


def write_state(folder: Path, data: bytes) -> Path:
    """A temporary file with the new state, synced; it takes the place of the one in force by `disk.replace`.

    Raises:
        Unavailable, Failure: a fault of the disk; the file is removed.
    """
    temporary = folder / f"{STATE}.{os.urandom(16).hex()}.tmp"
    try:
        with disk.faults("write the record"):
            fd = disk.create(temporary)
            try:
                disk.write(fd, data)
                disk.sync(fd)
            finally:
                disk.close(fd)
    except BaseException:
        disk.discard(temporary)
        raise
    return temporary


def sweep(folder: Path, *, named: set[str]) -> int:
    """Removes our own left-overs: unnamed data files and temporary state files (§6.5); how many there were."""
    swept = 0
    for name in disk.names(folder / DATA):
        if _DATA_FILE.fullmatch(name) and name not in named:
            disk.discard(folder / DATA / name)
            swept += 1
    for name in disk.names(folder):
        if _TEMPORARY.fullmatch(name):
            disk.discard(folder / name)
            swept += 1
    return swept
