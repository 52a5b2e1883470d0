"""Data files that come from another store: put into this one's folder, read and checked (`docs/spec/reseal.md` §5.3,
§5.4).

Rules
  - A file is checked whole before anybody relies on it: afterwards the place where it came from may be cleared.
  - What this server promises of its models holds for those that come, too: nobody examines them again.
  - Files are never changed once they are there, so a second name for one (a hard link) is as good as a copy.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Final

from strongroom import disk
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.errors import AdmissionRefused, SealRefused
from strongroom.keys import StoreKeys
from strongroom.sealed import overwrite, unwrap_key
from strongroom.state import Entry, Record
from strongroom.upload import open_file

_UNBOUNDED: Final = "unbounded"
_TRAPS: Final = "division_traps"
"""Flags of docs/spec/admission.md §8.3."""


def check_admitted(record: Record, security: SecurityConfiguration) -> None:
    """Returns if a server of this configuration would have admitted every model in the record, as far as their
    examination where they came from found out.

    Raises:
        AdmissionRefused: one has no bounds (`security.admission = "strict"`), or can end a process that callers share
            (`security.isolation = "in_process"`): code `brought_model_refused`.
    """
    for name in record.names:
        for entry in name.entries:
            flags = entry.model.info.admission.flags
            unbounded = security.admission == "strict" and _UNBOUNDED in flags
            if unbounded or (security.isolation == "in_process" and _TRAPS in flags):
                raise AdmissionRefused(
                    f"a model in the store that comes (file {entry.file}) is flagged "
                    f"{_UNBOUNDED if unbounded else _TRAPS}, and would not be admitted by this server",
                    code="brought_model_refused",
                )


def bring_files(
    record: Record, *, files: Path, folder: Path, keys: StoreKeys, security: SecurityConfiguration
) -> None:
    """Puts every file that the record names from `files` into `folder`, and checks its tags and its SHA-256.
    `security`: this server's configuration.

    Raises:
        AdmissionRefused: as `check_admitted`; no file was touched.
        SealRefused: a file is missing or not what was sealed (codes `seal_...`).
        Unavailable, Failure: a fault of the disk.
    """
    check_admitted(record, security)
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
