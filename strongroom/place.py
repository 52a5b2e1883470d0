"""Where a store is, whose it is, and what keeps others and older copies out of it (`docs/spec/sealed.md` §6)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from strongroom import disk
from strongroom.anchor import Anchor
from strongroom.keys import SealingRoot


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
