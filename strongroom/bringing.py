"""Data files that come from another store: put into this one's folder, read and checked (`docs/spec/reseal.md` §5.3).

Rules
  - A file is checked whole before anybody relies on it: afterwards the place where it came from may be cleared.
  - Files are never changed once they are there, so a second name for one (a hard link) is as good as a copy.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from strongroom import disk
from strongroom.errors import SealRefused
from strongroom.keys import StoreKeys
from strongroom.sealed import overwrite, unwrap_key
from strongroom.state import Entry, Record
from strongroom.upload import open_file


def bring_files(record: Record, *, files: Path, folder: Path, keys: StoreKeys) -> None:
    """Puts every file that the record names from `files` into `folder`, and checks its tags and its SHA-256.

    Raises:
        SealRefused: a file is missing or not what was sealed (codes `seal_...`).
        Unavailable, Failure: a fault of the disk.
    """
    for name in record.names:
        for entry in name.entries:
            temporary = folder.parent / f"state.{os.urandom(16).hex()}.tmp"
            with disk.faults("bring a data file"):
                try:
                    disk.bring(files / entry.file, temporary, folder / entry.file)
                except FileNotFoundError as exc:
                    raise SealRefused(
                        f"the data file {entry.file} is not in {files}", code="seal_missing"
                    ) from exc
                finally:
                    disk.discard(temporary)
            try:
                _check_file(entry, folder=folder, keys=keys)
            except SealRefused:
                disk.discard(folder / entry.file)  # so that a good one can take its place
                raise
    with disk.faults("sync the data files"):
        disk.sync_folder(folder)


def _check_file(entry: Entry, *, folder: Path, keys: StoreKeys) -> None:
    data_key = unwrap_key(keys.owner_key(entry.model.owner), entry.wrapped_key, associated=entry.facts())
    with disk.faults("read a data file"):
        fd = disk.open_to_read(folder / entry.file)
    try:
        out = open_file(
            fd,
            data_key=data_key,
            file_id=entry.file_id,
            chunk_size=entry.chunk_size,
            length=entry.length,
        )
        with disk.faults("sync a data file"):
            disk.sync(fd)
    finally:
        disk.close(fd)
    same = hmac.compare_digest(hashlib.sha256(out).hexdigest(), entry.model.canonical_sha256)
    overwrite(out)
    if not same:
        raise SealRefused(
            f"the model in {entry.file} does not have the digest in the record", code="seal_digest"
        )
