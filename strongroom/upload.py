"""One upload on its way into the store: sealed as it arrives, in one pass (`docs/spec/sealed.md` §6.3).

Rules
  - Every file draws its own data key, file id and name, also when it repeats one that failed (§2.2).
  - What stays is what the engine runs: the bytes as uploaded are kept until admission has read them.
  - After any exception the upload is of no use, because a part of it may be missing or not on the medium:
    its file is given up at once, and no later call can bring it into the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from strongroom import disk
from strongroom.errors import Failure, LimitExceeded, MalformedInput
from strongroom.models.info import FORMATS, ModelInfo
from strongroom.sealed import MAX_CHUNKS, Bytes, Opening, Sealer, open_sealed
from strongroom.state import ACCESS, ModelVersion

MAX_NAME_BYTES: Final = 255
"""UTF-8 bytes of a model name. Names are never file names: this only keeps the record small."""

_OWNER: Final = re.compile(r"(?:[0-9a-f]{64})?")


@dataclass(frozen=True, slots=True)
class SealedUpload:
    """What arrived: SHA-256 (lower-case hex) and bytes of the plaintext."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What the caller says about a model before its first byte."""

    name: str
    owner: str
    access: str
    format: str

    def check(self) -> None:
        """The store's own minimum; front ends are stricter about names.

        Raises:
            MalformedInput: an unusable name, owner, access or format (code `upload_malformed`).
        """
        # isprintable is false for controls and lone surrogates, so what passes has a UTF-8 form.
        if not self.name.isprintable() or not 1 <= len(self.name.encode()) <= MAX_NAME_BYTES:
            message = f"a model name has 1 to {MAX_NAME_BYTES} bytes of printable UTF-8"
            raise MalformedInput(message, code="upload_malformed")
        if not _OWNER.fullmatch(self.owner):
            raise MalformedInput("an owner is a principal's id, or empty", code="upload_malformed")
        if self.access not in ACCESS or self.format not in FORMATS:
            raise MalformedInput("access or format is none of the known ones", code="upload_malformed")


@dataclass(frozen=True, slots=True)
class Shelf:
    """The place in the store that one upload is given, and the two ways it can end."""

    folder: Path
    reserve: Callable[[], str]
    """Gives the name of a new data file: 32 random hex digits."""
    chunk_size: int
    publish: Callable[[ModelVersion, Sealer, str, int], ModelVersion]
    """Commits a version: its facts, the sealer and name of its file, and the bytes of plaintext in that."""
    discard: Callable[[str], None]
    keep_free: int
    """Bytes of the disk that uploads leave free."""

    def check_room(self) -> None:
        """Before anything is written: what is left is for records, without which nothing can be deleted either.

        Raises:
            Unavailable: the disk has no more free (code `disk_full`).
        """
        disk.check_room(self.folder, keep=self.keep_free)


class Upload:
    """One upload on its way into the store: `write` …, `seal`, `read_back`, `rewrite`, `commit`. A context manager.

    Leaving the block without a commit removes the data file. One thread at a time.
    """

    def __init__(self, shelf: Shelf, *, facts: Facts, max_bytes: int) -> None:
        """Made by `Store.begin`."""
        self.name = facts.name
        self.owner = facts.owner
        self.access = facts.access
        self.format = facts.format
        self._shelf = shelf
        self._max_bytes = min(max_bytes, MAX_CHUNKS * shelf.chunk_size)
        self._sealer = Sealer.new(chunk_size=shelf.chunk_size, random=os.urandom)
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._length = 0
        self._file = shelf.reserve()
        self._sealed: SealedUpload | None = None
        self._finished = False
        self._fd = -1
        with self._or_abort("create a data file"):
            self._create()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @property
    def size(self) -> int:
        """Bytes that have arrived so far."""
        return self._size

    def write(self, chunk: Bytes) -> None:
        """Seals and writes the next bytes of the model, in pieces of any size.

        Raises:
            LimitExceeded: more bytes than `max_bytes` (code `upload_too_large`).
            Unavailable: the disk is full (code `disk_full`).
            Failure: another fault of the disk (code `store_io`), or the upload is sealed already.
        """
        if self._sealed is not None or self._finished:
            raise Failure("nothing can be written to a finished upload")
        with self._or_abort("write a data file"):
            self._size += memoryview(chunk).nbytes
            if self._size > self._max_bytes:
                raise LimitExceeded(
                    f"the model has more than {self._max_bytes} bytes", code="upload_too_large"
                )
            self._shelf.check_room()
            self._sha256.update(chunk)
            for piece in self._sealer.update(chunk):
                disk.write(self._fd, piece)

    def seal(self) -> SealedUpload:
        """Writes the last chunk; returns what the server saw, to compare with what the caller meant to send.

        Raises:
            MalformedInput: no byte came (code `seal_empty`).
            Unavailable: the disk is full (code `disk_full`).
            Failure: another fault of the disk (code `store_io`), or the upload is sealed already.
        """
        if self._sealed is not None or self._finished:
            raise Failure("an upload is sealed once")
        with self._or_abort("write a data file"):
            disk.write(self._fd, self._sealer.finish())
        self._length = self._size
        self._sealed = SealedUpload(sha256=self._sha256.hexdigest(), size=self._size)
        return self._sealed

    def read_back(self) -> bytearray:
        """Opens the file just sealed, for admission; the buffer is the caller's.

        Raises:
            SealRefused: the file is no longer what was sealed.
            Failure: not sealed yet, or a fault of the disk (code `store_io`).
        """
        self._must_be_sealed()
        sealer = self._sealer
        return open_file(
            self._fd,
            data_key=sealer.data_key,
            file_id=sealer.file_id,
            chunk_size=sealer.chunk_size,
            length=self._length,
        )

    def rewrite(self, canonical: bytes) -> None:
        """Seals what the engine runs in a file of its own, and lets go of what arrived (§6.3).

        Raises:
            Unavailable: the disk is full (code `disk_full`).
            Failure: not sealed yet, or another fault of the disk (code `store_io`).
        """
        self._must_be_sealed()
        with self._or_abort("write a data file"):
            disk.close(self._fd)
            self._fd = -1
            self._shelf.discard(self._file)
            self._sealer = Sealer.new(chunk_size=self._shelf.chunk_size, random=os.urandom)
            self._file = self._shelf.reserve()
            self._create()
            with memoryview(canonical) as view:
                for start in range(0, len(view), self._shelf.chunk_size):
                    self._shelf.check_room()
                    for piece in self._sealer.update(view[start : start + self._shelf.chunk_size]):
                        disk.write(self._fd, piece)
            disk.write(self._fd, self._sealer.finish())
            self._length = len(canonical)

    def commit(self, *, info: ModelInfo, canonical_sha256: str) -> ModelVersion:
        """Makes the upload a version of its name; when this returns, a crash no longer loses it (§6.3).

        Raises:
            Conflict: the name belongs to somebody else by now (code `name_taken`).
            LimitExceeded: the record, or this owner's part of it, would be too large (codes
                `store_record_full`, `owner_record_full`).
            Unavailable: the disk is full (code `disk_full`) or the store is closed (code `store_closed`).
            Failure: another fault of the disk (`store_io`; `store_uncertain` where it is unknown whether the
                version would survive a crash), not sealed yet, or metadata of another format.
        """
        sealed = self._must_be_sealed()
        if info.format != self.format:
            raise Failure(f"metadata of a model of format {self.format} expected, got {info.format}")
        model = ModelVersion(
            name=self.name,
            version=0,  # numbered and dated at the commit
            owner=self.owner,
            access=self.access,
            format=self.format,
            sha256=sealed.sha256,
            canonical_sha256=canonical_sha256,
            size=sealed.size,
            created=0,
            info=info,
        )
        with self._or_abort("sync a data file"):
            disk.sync(self._fd)
            disk.sync_folder(self._shelf.folder)
            committed = self._shelf.publish(model, self._sealer, self._file, self._length)
        self._finish()
        return committed

    def abort(self) -> None:
        """Gives the upload up and removes its file; does nothing after a commit."""
        if not self._finished:
            self._finish()
            self._shelf.discard(self._file)

    def _create(self) -> None:
        self._shelf.check_room()
        self._fd = disk.create(self._shelf.folder / self._file)
        disk.write(self._fd, self._sealer.header)

    @contextlib.contextmanager
    def _or_abort(self, doing: str) -> Iterator[None]:
        """After any exception an upload is of no use: a part of it may be missing, or not on the medium."""
        try:
            with disk.faults(doing):
                yield
        except BaseException:
            self.abort()
            raise

    def _finish(self) -> None:
        self._finished = True
        if self._fd >= 0:
            disk.close(self._fd)
            self._fd = -1

    def _must_be_sealed(self) -> SealedUpload:
        if self._sealed is None or self._finished:
            raise Failure("the upload is not sealed, or finished already")
        return self._sealed


def open_file(fd: int, *, data_key: bytes, file_id: bytes, chunk_size: int, length: int) -> bytearray:
    """Opens a sealed data file with what the record says about it, and reads all of it."""
    with disk.faults("read a data file"):
        return open_sealed(
            partial(disk.read_at, fd),
            data_key=data_key,
            file_id=file_id,
            chunk_size=chunk_size,
            length=length,
            file_size=disk.size(fd),
        )


def begin_file(fd: int, *, data_key: bytes, file_id: bytes, chunk_size: int, length: int) -> Opening:
    """The same for who reads it chunk by chunk, while `fd` is open."""
    with disk.faults("read a data file"):
        return Opening(
            partial(disk.read_at, fd),
            data_key=data_key,
            file_id=file_id,
            chunk_size=chunk_size,
            length=length,
            file_size=disk.size(fd),
        )
