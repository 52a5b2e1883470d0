"""The sealed store on disk: data files, and one record that says which of them exist (`docs/spec/sealed.md`).

Rules
  - The only commit point is the replacement of the state file (§6.2). Data files are complete and synced
    before the record names them, and are removed only after a record that does not name them is in place.
  - An exception between the replacement and the sync of the folder leaves in doubt which record a crash
    would bring back. The store then refuses every further change and removes no file until it is opened
    again (§6.6).
  - Nothing is swept before the record has authenticated: a stranger's server must not clean up somebody's
    store.
  - Plaintext is never cached here and never written: `read` decrypts into a buffer that belongs to the
    caller.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from strongroom import disk
from strongroom.anchor import NOTHING, Anchor
from strongroom.checking import (
    CheckResult,
    check_forms,
    check_left_overs,
    check_models,
    check_orphans,
    check_record,
)
from strongroom.errors import Conflict, Error, Failure, NotFound, SealRefused, Unavailable
from strongroom.keys import STORE_ID_BYTES, SealingRoot, StoreKeys
from strongroom.place import DATA, STATE, Place, locked, sweep, write_state
from strongroom.sealed import CHUNK_SIZE, Sealer, chunk_count, overwrite, wrap_key
from strongroom.state import (
    GIVEN,
    MAX_STATE_BYTES,
    NO_PREDECESSOR,
    TAKEN,
    Entry,
    Handing,
    ModelVersion,
    Name,
    Record,
    StateHeader,
    check_header,
    check_share,
    open_state,
    parse_state_file,
    seal_state,
    verify_entry,
)
from strongroom.store_files import DataFiles
from strongroom.upload import Facts, SealedUpload, Shelf, Upload, open_file

__all__ = ["CheckResult", "ModelVersion", "SealedUpload", "Store", "Upload"]


def _never() -> bool:
    return False


class Store(DataFiles):
    """A folder of sealed models, for one server process. Thread-safe; changes wait for one another."""

    def __init__(
        self,
        place: Place,
        *,
        store_id: bytes,
    ) -> None:
        """Made by `Store.open` and `Store.receive`."""
        root, security = place.root, place.security_digest
        self._anchor = place.anchor
        self._folder = place.folder
        self._data = place.folder / DATA
        self._header = StateHeader(
            store_id=store_id.hex(),
            sealing_class=root.sealing_class,
            sealed_for=root.sealed_for,
            security=security.hex(),
        )
        self._keys = StoreKeys.from_root(root, security_digest=security, store_id=store_id)
        self._now = place.now
        self._chunk_size = place.chunk_size
        self._guard = place.guard
        self._lock = threading.RLock()
        self._in_flight: set[str] = set()
        self._swept = 0
        self._uncertain = False
        self._closed = False
        self._held: Callable[[], bool] = _never
        self._record = Record(epoch=0, previous=NO_PREDECESSOR, names=())
        self._names: dict[str, Name] = {}
        self._digest = NO_PREDECESSOR

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        root: SealingRoot,
        security_digest: bytes,
        now: Callable[[], int],
        anchor: Anchor,
        chunk_size: int = CHUNK_SIZE,
    ) -> Store:
        """Opens the store in a folder, or makes an empty one; removes files that no record names (§6.5).

        `security_digest` is the SHA-256 of the security configuration, `now` gives Unix seconds, `anchor` knows
        which state file is in force, and `chunk_size` (bytes) is for new files only.

        Raises:
            SealRefused: `store_other_class`, `store_other_configuration`, `store_other_measurement`,
                `store_other_root`, `store_malformed`, `store_tampered`, `store_record_malformed`, or
                `store_state_missing` (data files without a record: nothing is made anew over them),
                `store_rolled_back` (not the state that the anchor says is in force).
            Unavailable: another process has it (code `store_locked`), or the disk is full (code
                `disk_full`).
            Failure: another fault of the disk (code `store_io`).
        """
        folder, guard = locked(path)
        try:
            place = Place(folder, root, security_digest, now, chunk_size, guard, anchor)
            store = cls._existing(place)
            if store is None:
                anchor.check(NOTHING)
                return cls._create(place)
            store._after_opening()
            return store
        except BaseException:
            guard.release()
            raise

    @classmethod
    def receive(
        cls,
        path: str | os.PathLike[str],
        *,
        root: SealingRoot,
        security_digest: bytes,
        store_id: bytes,
        now: Callable[[], int],
        anchor: Anchor,
        bring: Callable[[StoreKeys, Path], Record],
    ) -> Store:
        """Makes a store out of one that another server hands over (docs/spec/reseal.md §6); changes are refused until
        `settle`. Where an earlier hand-over did not come to its end, this one takes its place.

        `bring` puts the data files into the folder that it is given, synced, and returns the record that names them,
        wrapped under the keys that it is given.

        Raises:
            Conflict: there is a store of another origin (code `handover_store_exists`).
            SealRefused, Unavailable, Failure: as `open`, and whatever `bring` raises.
        """
        folder, guard = locked(path)
        try:
            place = Place(folder, root, security_digest, now, CHUNK_SIZE, guard, anchor)
            store = cls._existing(place)
            if store is None:
                anchor.check(NOTHING)
                store = cls(place, store_id=store_id)
            elif store.handing is None or store.handing.end != TAKEN or store.store_id != store_id.hex():
                raise Conflict(
                    "there is a store already; a hand-over begins a new one", code="handover_store_exists"
                )
            with disk.faults("make a store"):
                disk.make_folder(store._data)
            record = bring(store._keys, store._data).without_forms()
            named = {e.file for n in record.names for e in n.entries} | store._named()
            if set(disk.names(store._data)) - named:
                raise SealRefused(
                    f"{store._data}: data files of another store, or of an interrupted hand-over; remove them",
                    code="store_state_missing",
                )
            epoch = max(record.epoch, store.epoch + 1)
            store._commit(replace(record, epoch=epoch))
            store._after_opening()
            return store
        except BaseException:
            guard.release()
            raise

    @classmethod
    def _existing(cls, place: Place) -> Store | None:
        """The store that lies there, authenticated and in force; None where there is none."""
        with disk.faults("read the store"):
            data = disk.read_small(place.folder / STATE, limit=MAX_STATE_BYTES)
        if data is None:
            return None
        file = parse_state_file(data)
        check_header(
            file.header,
            sealing_class=place.root.sealing_class,
            sealed_for=place.root.sealed_for,
            security=place.security_digest.hex(),
        )
        store = cls(place, store_id=bytes.fromhex(file.header.store_id))
        record = open_state(file, state_key=store._keys.state_key)
        # After the record has opened: what a stranger's server sees of a store says nothing about the anchor.
        digest = hashlib.sha256(data).hexdigest()
        place.anchor.check(digest)
        store._install(record, digest)
        return store

    def _after_opening(self) -> None:
        with disk.faults("read the store"):
            disk.make_folder(self._data)
            self._swept = sweep(self._folder, named=self._named())

    @classmethod
    def _create(cls, place: Place) -> Store:
        with disk.faults("make a store"):
            disk.make_folder(place.folder / DATA)
            # Left-overs of a creation that was killed are a lock, temporary files and an empty data folder.
            if disk.names(place.folder / DATA):
                raise SealRefused("there are data files but no state file", code="store_state_missing")
        store = cls(place, store_id=os.urandom(STORE_ID_BYTES))
        store._commit(Record(epoch=1, previous=NO_PREDECESSOR, names=()))
        with disk.faults("make a store"):
            store._swept = sweep(store._folder, named=set())
        return store

    @property
    def store_id(self) -> str:
        """32 hex digits, random, for the whole life of the store."""
        return self._header.store_id

    @property
    def epoch(self) -> int:
        """The number of the record in force; every change counts it up."""
        return self._record.epoch

    @property
    def handing(self) -> Handing | None:
        """The end of a hand-over at which the store is; nothing in it changes there."""
        return self._record.handing

    def close(self) -> None:
        """Gives the folder free for another process; uploads on their way can no longer be committed."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._guard.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def models(self) -> tuple[ModelVersion, ...]:
        """Every version of every model, in the order in which the names were taken, oldest version first."""
        return tuple(entry.model for name in self._record.names for entry in name.entries)

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """The versions of a name, oldest first; () where it has none."""
        taken = self._names.get(name)
        return tuple(entry.model for entry in taken.entries) if taken else ()

    def get(self, name: str, version: int | None) -> ModelVersion:
        """One version of a model; None means the latest.

        Raises:
            NotFound: no such name or version (code `not_found`).
        """
        return self._entry(name, version).model

    def owner_of(self, name: str) -> str | None:
        """Who took this name first ("" where it was an anonymous upload); None where nobody did.

        Deletion does not free a name.
        """
        taken = self._names.get(name)
        return taken.owner if taken else None

    def begin(
        self, *, name: str, owner: str, access: str, format: str, max_bytes: int, keep_free: int = 0
    ) -> Upload:
        """Starts an upload of at most `max_bytes` bytes, which leaves `keep_free` bytes of the disk free.

        Nothing is visible before its commit.

        Raises:
            MalformedInput: an unusable name, owner, access or format (code `upload_malformed`).
            Conflict: the name belongs to another owner (code `name_taken`).
            Unavailable: the disk is full (code `disk_full`) or the store is closed (code `store_closed`).
            Failure: another fault of the disk (code `store_io` or `store_uncertain`).
        """
        facts = Facts(name=name, owner=owner, access=access, format=format)
        facts.check()
        with self._lock:
            self._check_usable()
            self._check_owner(name, owner)
        shelf = Shelf(
            folder=self._data,
            reserve=self._reserve,
            chunk_size=self._chunk_size,
            publish=self._publish,
            discard=self._discard,
            keep_free=keep_free,
        )
        return Upload(shelf, facts=facts, max_bytes=max_bytes)

    def read(self, model: ModelVersion, *, verify: Literal["tags", "sha256"]) -> bytearray:
        """What the engine runs of the model, once every tag was checked; with "sha256" its digest is, too.

        These are the canonical bytes that admission wrote, not those that were uploaded (§6.3).

        Raises:
            NotFound: deleted meanwhile (code `not_found`).
            SealRefused: the file or its key is not what was sealed: `seal_missing`, `seal_binding`,
                `seal_digest` and the codes of `sealed.open_sealed`.
            Unavailable: the store is closed (code `store_closed`).
            Failure: a fault of the disk (code `store_io`).
        """
        with self._reading(model) as (entry, fd, data_key):
            out = open_file(
                fd,
                data_key=data_key,
                file_id=entry.file_id,
                chunk_size=entry.chunk_size,
                length=entry.length,
            )
        if verify == "sha256":
            digest = hashlib.sha256(out).hexdigest()
            if not hmac.compare_digest(digest, entry.model.canonical_sha256):
                overwrite(out)
                message = "the model's bytes do not have the digest in the record"
                raise SealRefused(message, code="seal_digest")
        return out

    def delete(self, name: str, version: int | None) -> tuple[ModelVersion, ...]:
        """Removes one version, or with None all versions of a name; returns what was removed (§6.4).

        The record is sealed anew under a fresh epoch key, without the wrapped keys. A host that kept an old
        copy of the folder can still bring the model back. The name stays its owner's.

        Raises:
            NotFound: no such name or version (code `not_found`).
            Unavailable: the disk is full (code `disk_full`) or the store is closed (code `store_closed`).
            Failure: another fault of the disk (`store_io`, `store_uncertain`).
        """
        with self._lock:
            self._check_usable()
            latest = self._entry(name, version)
            gone = (latest,) if version is not None else self._names[name].entries
            numbers = frozenset(entry.model.version for entry in gone)
            self._commit(self._record.without(name, numbers, previous=self._digest))
            for file in (file for entry in gone for file in entry.files):
                disk.discard(self._data / file)
        return tuple(entry.model for entry in gone)

    def hand_over(
        self, seal: Callable[[Record, StoreKeys, str], bytes], *, held: Callable[[], bool]
    ) -> bytes:
        """What `seal` makes of the record in force, the store's keys and the SHA-256 of its state file. From here on
        nothing changes as long as `held` says so (docs/spec/reseal.md §6). A later call takes the place of this one.

        Raises:
            Unavailable: the store is at an end of a hand-over already (`store_moving`, `store_moved`), or closed.
            Failure: a fault of the disk before (code `store_uncertain`).
        """
        with self._lock:
            self._check_open()
            self._check_settled()
            sealed = seal(self._record.without_forms(), self._keys, self._digest)
            self._held = held
            return sealed

    def let_go(self, handing: Handing) -> None:
        """Ends a hand-over here: from now on, and for ever, nothing in this store changes. Again is the same.

        Raises:
            Conflict: no such hand-over is under way (code `handover_unknown`).
            Unavailable, Failure: as `delete`.
        """
        with self._lock:
            self._check_open()
            if self._record.handing == handing:
                return
            if self._record.handing is not None or not self._held():
                raise Conflict("no such hand-over is under way here", code="handover_unknown")
            self._commit(self._record.with_handing(handing, previous=self._digest))

    def settle(self) -> None:
        """Ends a hand-over at its other end: this store is the one that changes from now on."""
        with self._lock:
            self._check_open()
            if self._record.handing is not None and self._record.handing.end == TAKEN:
                self._commit(self._record.with_handing(None, previous=self._digest))

    def restore(self, bring: Callable[[StoreKeys, Path], Record]) -> int:
        """Fills this store, which never held a model, with a recovered one; returns its model versions. `bring`: as for
        `receive`.

        Raises:
            Conflict: it held one (code `recovery_store_in_use`).
            SealRefused, Unavailable, Failure: as `delete`, and whatever `bring` raises.
        """
        with self._lock:
            self._check_usable()
            if self._record.names:
                raise Conflict("only an empty store can be restored", code="recovery_store_in_use")
            record = bring(self._keys, self._data).without_forms()
            self._commit(replace(record, epoch=self.epoch + 1, previous=self._digest, handing=None))
        return len(self.models())

    @property
    def key(self) -> bytes:
        """The key of this store alone (§4.2), for whoever the attested configuration lets recover it."""
        return self._keys.store_key

    def check(self) -> tuple[CheckResult, ...]:
        """Rescans the whole store: the record on disk, every tag and SHA-256, missing and orphaned files.

        Says too how many left-overs of interrupted changes were removed when the store was opened (§6.5).
        """
        with self._lock:
            record = check_record(self._folder / STATE, digest=self._digest, epoch=self._record.epoch)
        models = check_models(self.models(), read=lambda model: self.read(model, verify="sha256"))
        forms = check_forms(self.models(), read=self.verify_form)
        with self._lock:
            orphans = check_orphans(self._data, known=self._named() | self._in_flight)
        return (record, *check_left_overs(self._swept), *models, *forms, orphans)

    # The rest is the store's own business, and that of `Upload`.

    def _entry(self, name: str, version: int | None) -> Entry:
        taken = self._names.get(name)
        entries = taken.entries if taken else ()
        if version is None and entries:
            return entries[-1]
        for entry in entries:
            if entry.model.version == version:
                return entry
        raise NotFound("there is no such model or version", code="not_found")

    def _check_usable(self) -> None:
        """That the store may be changed."""
        self._check_open()
        self._check_settled()
        if self._held():
            message = "the store is being handed over to another server"
            raise Unavailable(message, code="store_moving", retry_after_s=30)

    def _check_settled(self) -> None:
        handing = self._record.handing
        if handing is not None and handing.end == GIVEN:
            raise Unavailable(
                "the store was handed over to another server", code="store_moved", retry_after_s=3600
            )
        if handing is not None:
            message = "the server that the store came from has not let go of it yet"
            raise Unavailable(message, code="store_moving", retry_after_s=30)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed", code="store_closed")
        if self._uncertain:
            message = "the disk failed while a change was being committed; the server must be restarted"
            raise Failure(message, code="store_uncertain")

    def _check_owner(self, name: str, owner: str) -> None:
        taken = self._names.get(name)
        if taken is not None and taken.owner != owner:
            raise Conflict("this name belongs to another owner", code="name_taken")

    def _reserve(self) -> str:
        """A fresh random name for a data file, which nobody takes for an orphan."""
        file = os.urandom(16).hex()
        with self._lock:
            self._in_flight.add(file)
        return file

    def _publish(self, model: ModelVersion, sealer: Sealer, file: str, length: int) -> ModelVersion:
        """Numbers, wraps and commits an upload whose file is on the disk."""
        with self._lock:
            self._check_usable()
            # Again: two uploads of a new name may be on their way, and the first commit takes it.
            self._check_owner(model.name, model.owner)
            taken = self._names.get(model.name)
            model = replace(model, version=taken.next_version if taken else 1, created=self._now())
            entry = Entry(
                model=model,
                file=file,
                file_id=sealer.file_id,
                length=length,
                chunk_size=sealer.chunk_size,
                chunks=chunk_count(length, chunk_size=sealer.chunk_size),
                wrapped_key=b"",
            )
            kek = self._keys.owner_key(model.owner)
            wrapped = wrap_key(kek, sealer.data_key, associated=entry.facts(), random=os.urandom)
            entry = replace(entry, wrapped_key=wrapped)
            verify_entry(entry)
            record = self._record.with_entry(entry, previous=self._digest)
            check_share(record, owner=model.owner)
            self._commit(record)
            self._in_flight.discard(file)
        return model

    def _discard(self, file: str) -> None:
        """Removes the file of an upload that was given up."""
        with self._lock:
            # A record in doubt may name the file (§6.6), and so does the one in force where an interrupt
            # came right behind the commit.
            if not self._uncertain and file not in self._named():
                disk.discard(self._data / file)
            self._in_flight.discard(file)

    def _commit(self, record: Record) -> None:
        """Replaces the state file: the only place where the store changes (§6.2)."""
        data = seal_state(record, header=self._header, state_key=self._keys.state_key, random=os.urandom)
        temporary = write_state(self._folder, data)
        digest = hashlib.sha256(data).hexdigest()
        try:
            self._anchor.prepare(digest)
        except BaseException:
            disk.discard(temporary)
            raise
        # From here on nobody knows which record a crash would bring back, until the folder is synced.
        self._uncertain = True
        try:
            disk.replace(temporary, self._folder / STATE)
            disk.sync_folder(self._folder)
        except OSError as exc:
            message = f"the disk failed at the commit itself ({disk.fault_name(exc)}); restart the server"
            raise Failure(message, code="store_uncertain") from exc
        try:
            self._anchor.confirm(digest)
        except Error as exc:
            message = "the anchor failed at the commit itself; restart the server"
            raise Failure(message, code="store_uncertain") from exc
        self._install(record, digest)
        # Whatever changed, what was sealed for a receiver before is no longer all there is; and a host that sets clocks
        # back must not bring an ended hold to life again.
        self._held = _never
        self._uncertain = False

    def _install(self, record: Record, digest: str) -> None:
        self._names = {name.name: name for name in record.names}
        self._record = record
        self._digest = digest

    def _named(self) -> set[str]:
        return {file for name in self._record.names for entry in name.entries for file in entry.files}
