"""What a store reads out of its data files, and the files of prepared forms (`docs/spec/sealed.md` §5.6, §6).

Rules
  - The record decides: file names, ids, lengths and keys come from it, never from a file.
  - A stage's key opens for its model, owner, engine, processor and place in the form alone (`prepared.facts`).
  - A form can be made again, so whatever is wrong with one is a reason to do without it, and none to refuse a model.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from strongroom import disk
from strongroom.errors import SealRefused, Unavailable
from strongroom.keys import StoreKeys
from strongroom.prepared import Form, Making, Stage, facts
from strongroom.sealed import TAG_BYTES, Opening, Sealer, chunk_count, overwrite, unwrap_key, wrap_key
from strongroom.state import Entry, ModelVersion, Record, check_share
from strongroom.upload import begin_file


class DataFiles:
    """The part of `Store` that reads models and keeps forms. Thread-safe."""

    _record: Record
    _keys: StoreKeys
    _data: Path
    _lock: threading.RLock
    _closed: bool
    _digest: str
    _chunk_size: int

    def _entry(self, name: str, version: int | None) -> Entry:
        raise NotImplementedError

    def _check_usable(self) -> None:
        raise NotImplementedError

    def _reserve(self) -> str:
        raise NotImplementedError

    def _discard(self, file: str) -> None:
        raise NotImplementedError

    def _commit(self, record: Record) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def canonical(self, model: ModelVersion) -> Iterator[Opening]:
        """What `read` returns, to be opened chunk by chunk while the block lasts.

        Raises:
            As `read`.
        """
        with self._reading(model) as (entry, fd, data_key):
            yield begin_file(
                fd,
                data_key=data_key,
                file_id=entry.file_id,
                chunk_size=entry.chunk_size,
                length=entry.length,
            )

    def form(self, model: ModelVersion) -> Form | None:
        """The prepared form of a model that the record names.

        Raises:
            NotFound: deleted meanwhile (code `not_found`).
        """
        return self._entry(model.name, model.version).form

    @contextlib.contextmanager
    def stages(self, model: ModelVersion, form: Form) -> Iterator[tuple[Opening, ...]]:
        """The stages of a model's form, to be opened chunk by chunk while the block lasts.

        Raises:
            SealRefused: a file or its key is not what was sealed for this model, owner, engine and stage.
            NotFound, Unavailable, Failure: as `read`.
        """
        entry = self._entry(model.name, model.version)
        kek = self._keys.owner_key(entry.model.owner)
        with contextlib.ExitStack() as stack:
            opened = []
            for number, stage in enumerate(form.stages):
                bound = _stage_facts(entry.model, form.making, number, len(form.stages), stage)
                data_key = unwrap_key(kek, stage.wrapped_key, associated=bound)
                fd = self._open(stage.file, entry)
                stack.callback(disk.close, fd)
                opened.append(
                    begin_file(
                        fd,
                        data_key=data_key,
                        file_id=stage.file_id,
                        chunk_size=stage.chunk_size,
                        length=stage.length,
                    )
                )
            yield tuple(opened)

    def verify_form(self, model: ModelVersion) -> int:
        """Opens every chunk of the model's form and keeps nothing; bytes of the form, 0 where there is none.

        Raises:
            As `stages` and `Opening.open_chunk`.
        """
        form = self.form(model)
        if form is None:
            return 0
        with self.stages(model, form) as stages, disk.faults("read a data file"):
            for opening in stages:
                plain = bytearray(min(opening.chunk_size, opening.length))
                scratch = memoryview(bytearray(len(plain) + TAG_BYTES))
                for number in range(opening.chunks):
                    opening.open_chunk(number, memoryview(plain)[: opening.size_of(number)], scratch=scratch)
                overwrite(plain)
        return form.length

    def begin_stage(self) -> tuple[Sealer, Path]:
        """A fresh sealer and the path of a fresh data file, for one stage of a form: see `put_form`, `discard`."""
        self._check_usable()
        return Sealer.new(chunk_size=self._chunk_size, random=os.urandom), self._data / self._reserve()

    def put_form(
        self, model: ModelVersion, making: Making, stages: tuple[tuple[Sealer, Path, int], ...]
    ) -> None:
        """Makes synced data files (sealer, path, bytes of plaintext) the form of a model, in the place of an earlier
        one; () leaves it without. The files are the callee's, whatever happens.

        Raises:
            NotFound: deleted meanwhile. LimitExceeded, Unavailable, Failure: as `Upload.commit`.
        """
        try:
            with self._lock:
                self._check_usable()
                entry = self._entry(model.name, model.version)
                made = tuple(
                    self._wrapped(entry.model, making, number, len(stages), stage)
                    for number, stage in enumerate(stages)
                )
                form = Form(making=making, stages=made) if made else None
                record = self._record.with_form(entry, form, previous=self._digest)
                check_share(record, owner=model.owner)
                self._commit(record)
                for stage in entry.form.stages if entry.form else ():
                    disk.discard(self._data / stage.file)
        finally:
            for _, path, _ in stages:
                self.discard(path)

    def drop_form(self, model: ModelVersion, file_ids: tuple[bytes, ...]) -> bool:
        """Leaves a model without its prepared form, if the files of its stages are still those with these ids; whether
        they were.

        Raises:
            As `put_form`.
        """
        with self._lock:
            entry = self._entry(model.name, model.version)
            if entry.form is None or tuple(stage.file_id for stage in entry.form.stages) != file_ids:
                return False
            self.put_form(model, entry.form.making, ())
            return True

    def discard(self, path: Path) -> None:
        """Gives up a file of `begin_stage`, unless the record names it by now."""
        self._discard(path.name)

    def form_bytes(self) -> dict[str, int]:
        """Owner -> bytes of all prepared forms of that owner's models."""
        found: dict[str, int] = {}
        for name in self._record.names:
            size = sum(entry.form.length for entry in name.entries if entry.form is not None)
            found[name.owner] = found.get(name.owner, 0) + size
        return found

    @contextlib.contextmanager
    def _reading(self, model: ModelVersion) -> Iterator[tuple[Entry, int, bytes]]:
        entry = self._entry(model.name, model.version)
        kek = self._keys.owner_key(entry.model.owner)
        data_key = unwrap_key(kek, entry.wrapped_key, associated=entry.facts())
        fd = self._open(entry.file, entry)
        try:
            yield entry, fd, data_key
        finally:
            disk.close(fd)

    def _open(self, file: str, entry: Entry) -> int:
        if self._closed:
            raise Unavailable("the store is closed", code="store_closed")
        with disk.faults("read a data file"):
            try:
                return disk.open_to_read(self._data / file)
            except FileNotFoundError as exc:
                # A deletion since the first look is no fault of the file: NotFound then.
                self._entry(entry.model.name, entry.model.version)
                message = "a data file that the record names is missing"
                raise SealRefused(message, code="seal_missing") from exc

    def _wrapped(
        self, model: ModelVersion, making: Making, number: int, of: int, made: tuple[Sealer, Path, int]
    ) -> Stage:
        sealer, path, length = made
        stage = Stage(
            file=path.name,
            file_id=sealer.file_id,
            length=length,
            chunk_size=sealer.chunk_size,
            chunks=chunk_count(length, chunk_size=sealer.chunk_size),
            wrapped_key=b"",
        )
        bound = _stage_facts(model, making, number, of, stage)
        kek = self._keys.owner_key(model.owner)
        return replace(stage, wrapped_key=wrap_key(kek, sealer.data_key, associated=bound, random=os.urandom))


def _stage_facts(model: ModelVersion, making: Making, number: int, of: int, stage: Stage) -> bytes:
    return facts(
        name=model.name,
        owner=model.owner,
        canonical_sha256=model.canonical_sha256,
        making=making,
        number=number,
        of=of,
        stage=stage,
    )
