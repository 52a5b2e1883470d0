"""What ties the store to something that the host cannot set back: an older, complete copy of it is refused.

An anchor keeps two digests of the state file, the one in force and the one that may replace it:

| step of a change | in force | next | on the disk | after a crash here |
| --- | --- | --- | --- | --- |
| before | A | A | A | A is opened |
| `prepare(B)` | A | B | A | A is opened, B never again |
| the file is replaced | A | B | B | B is opened, A never again |
| `confirm(B)` | B | B | B | B is opened |

The caller's answer comes after `confirm`, so nothing that was acknowledged is lost.

Rules
  - A plain counter would not do: after a crash two files may bear the next number, and a host that kept the one
    which was given up could put it in the place of the other (docs/adr/0010-the-anchor-holds-digests.md).
  - `check` comes at every opening, and settles which of the two is in force.
  - An anchor that protects nothing says so.
"""

from __future__ import annotations

import hmac
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final, Protocol

from strongroom import disk
from strongroom.errors import SealRefused

NOTHING: Final = "0" * 64
"""Stands for the digest where there is no state file yet."""
_NOTE: Final = (
    "SIMULATED: this file protects nothing; whoever puts an older store back can put it back as well"
)
_MAX_FILE: Final = 4096


class Anchor(Protocol):
    """Where the digests are kept. Digests: 64 lower-case hex characters."""

    def check(self, digest: str) -> None:
        """Returns if the state file with this digest (`NOTHING`: there is none) is the one in force, or the next.

        Raises:
            SealRefused: it is neither (code `store_rolled_back`), or the anchor is not this store's.
        """

    def prepare(self, digest: str) -> None:
        """From now on the file with this digest may be in force as well."""

    def confirm(self, digest: str) -> None:
        """From now on only the file with this digest is in force."""


class Unanchored:
    """No anchor: the platform has no memory that the host cannot set back. An older store is not noticed."""

    def check(self, digest: str) -> None:
        """Nothing is known."""

    def prepare(self, digest: str) -> None:
        """Nothing is kept."""

    def confirm(self, digest: str) -> None:
        """Nothing is kept."""


UNANCHORED: Final = Unanchored()


class Digests(ABC):
    """The table above, over two digests that somebody keeps: `load` and `save` are the keeper's. `advice`: what ends
    the message of a refusal.
    """

    advice = ""

    @abstractmethod
    def load(self) -> tuple[str, str]:
        """The digests in force and next."""

    @abstractmethod
    def save(self, current: str, following: str) -> None:
        """Keeps them, before it returns."""

    def check(self, digest: str) -> None:
        """See `Anchor`."""
        kept = self.load()
        if not any(hmac.compare_digest(digest, one) for one in kept):
            what = "there is no store" if digest == NOTHING else "the store is an older copy"
            raise SealRefused(
                f"{what}, or it is not the one that was here last: expected a state file with SHA-256 {kept[0]}"
                f"{self.advice}",
                code="store_rolled_back",
            )
        if kept != (digest, digest):
            self.save(digest, digest)

    def prepare(self, digest: str) -> None:
        """See `Anchor`."""
        self.save(self.load()[0], digest)

    def confirm(self, digest: str) -> None:
        """See `Anchor`."""
        self.save(digest, digest)


class SimulatedAnchor(Digests):
    """The simulated TEE's: a file beside the store. It catches mistakes, and nobody who means it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.advice = f"; to open it all the same, remove {path}"

    def check(self, digest: str) -> None:
        """See `Anchor`. Where there is no file yet, what is there is taken to be in force; and whoever takes the store
        away begins anew.
        """
        if digest == NOTHING or not self._path.exists():
            self.save(digest, digest)
        super().check(digest)

    def load(self) -> tuple[str, str]:
        """From the file."""
        with disk.faults("read the simulated anchor"):
            data = disk.read_small(self._path, limit=_MAX_FILE)
        try:
            read = json.loads(data or b"")
            return str(read["current"]), str(read["next"])
        except (ValueError, TypeError, KeyError) as exc:
            raise SealRefused(
                f"the simulated anchor {self._path.name} cannot be read", code="store_rolled_back"
            ) from exc

    def confirm(self, digest: str) -> None:
        """See `Anchor`. Not synced: behind a power cut the digest is still the next one, which opens the store too."""
        self._write(digest, digest, durable=False)

    def save(self, current: str, following: str) -> None:
        """Into the file, in one step."""
        self._write(current, following, durable=True)

    def _write(self, current: str, following: str, *, durable: bool) -> None:
        text = json.dumps({"note": _NOTE, "current": current, "next": following})
        temporary = self._path.with_name(f"{self._path.name}.{os.urandom(8).hex()}.tmp")
        with disk.faults("write the simulated anchor"):
            fd = disk.create(temporary)
            try:
                disk.write(fd, text.encode("ascii"))
                if durable:
                    disk.sync(fd)
            finally:
                disk.close(fd)
            disk.replace(temporary, self._path)
            if durable:
                disk.sync_folder(self._path.parent)
