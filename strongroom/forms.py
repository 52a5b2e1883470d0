"""Prepared forms as the server makes and uses them (`prepared` says what one is; ADR 0018).

    after the commit of an upload, or after a load without one:
    store ──canonical bytes, chunk by chunk──► preparer ──weights, graph, table──► sealed ──► record

Rules
  - A form is made by a fresh confined process of one model's canonical bytes, and never taken from outside.
  - That process has read a stranger's model: what it gives is counted, bounded, and checked for its form. It is sealed
    before anybody uses it, and whoever uses it is confined as whoever loads the model itself.
  - A form is never necessary. Whatever goes wrong with one is written to the log and the model is loaded as it was
    admitted; then another one is made, once. One at a time. What is wrong with the disk is not wrong with the form.
  - Names of models are sealed, and the log is the host's: it has codes, sizes and times.
  - The server holds one chunk of it at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from strongroom import disk
from strongroom.admission import SPARE_S, ChildLimits
from strongroom.errors import Error, LimitExceeded, NotFound, SealRefused
from strongroom.frames import receive, send
from strongroom.kernel import trim_heap
from strongroom.models.parting import needed, resident, stage_limit
from strongroom.partition import AUTO, OFF
from strongroom.partitioning import Reading, parts_of, pieces_of
from strongroom.prepared import Form, Making
from strongroom.sealed import TAG_BYTES, Opening, Sealer
from strongroom.stages import GRAPH_BYTES, LENGTHS, PIPES, TABLE_BYTES, layout
from strongroom.state import ModelVersion
from strongroom.store import Store
from strongroom.upload import begin_file
from strongroom.zygote import PREPARER, Nursery, Timely

log = logging.getLogger("strongroom.forms")

WORTH_BYTES: Final = 256 << 10
"""Bytes of canonical form from which on a model gets one: below, loading it takes as long either way."""
MORE: Final = 64 << 20
"""Bytes that the weights may have beyond twice the canonical form: constants that were computed."""
_PIECE: Final = 1 << 20
_File: TypeAlias = tuple[Sealer, Path, int]
"""A sealed file: what sealed it, where it is, bytes of plaintext."""


class Forms:
    """The prepared forms of one store's models. Thread-safe."""

    def __init__(
        self,
        store: Store,
        nursery: Nursery,
        *,
        making: Making,
        limits: ChildLimits,
        layers: tuple[str, ...],
        keep_free: int,
        budget: int,
        room: int,
    ) -> None:
        """`layers` of the sandbox have to hold in a preparer; `keep_free`: bytes of the disk that stay free; `budget`:
        bytes of memory of all loaded models; `room`: of one in stages.
        """
        self._budget = budget
        self.room = room
        self._store, self._nursery = store, nursery
        self._making = making
        self._limits, self._layers, self._keep_free = limits, layers, keep_free
        self._one = threading.Lock()  # is held while one is made
        self._lock = threading.Lock()
        self._tried: set[tuple[str, int]] = set()
        self._again: set[tuple[str, int]] = set()  # whose form was spoilt before
        self._closed = False

    @contextlib.contextmanager
    def stages(self, model: ModelVersion) -> Iterator[tuple[Opening, ...]]:
        """The stages of the model's form while the block lasts; () where there is none for this engine and processor,
        or it cannot be read.

        Raises:
            NotFound: deleted meanwhile. Unavailable, Failure: a fault of the disk, of a form of several stages: as a
                whole such a model is not to be taken into memory.
        """
        with contextlib.ExitStack() as stack:
            stages: tuple[Opening, ...] = ()
            for _ in range(2):  # another one may take its place between two looks
                form = self._usable(model)
                if form is None:
                    break
                try:
                    stages = stack.enter_context(self._store.stages(model, form))
                    break
                except NotFound:
                    raise
                except SealRefused as fault:
                    self._drop(model, tuple(stage.file_id for stage in form.stages), fault.code)
                except Error as fault:
                    log.warning("a prepared form cannot be read now: %s", fault.code)
                    if len(form.stages) > 1:
                        raise
                    break
            yield stages

    def count(self, model: ModelVersion) -> int:
        """In how many stages the model would be loaded; 1: as a whole.

        Raises:
            NotFound: deleted meanwhile.
        """
        form = self._usable(model)
        return len(form.stages) if form is not None else 1

    def least_bytes(self, model: ModelVersion) -> int:
        """Bytes of memory that the model takes at least once it is loaded; 0 where there is no form to tell by."""
        try:
            form = self._usable(model)
        except Error:
            return 0
        if form is None:
            return 0
        lengths = [stage.length for stage in form.stages]
        return needed(lengths, resident(lengths, self.room)) if len(lengths) > 1 else form.length

    def _usable(self, model: ModelVersion) -> Form | None:
        form = self._store.form(model)
        return form if form is not None and form.making == self._making else None

    def spoilt(self, model: ModelVersion, stages: tuple[Opening, ...], why: str) -> None:
        """The form with these stages cannot be used (`why`: a code). It goes, if it is still the model's, and another
        one is made, once: of one stage when a load asks for it, else now, for what is loaded goes on with it.
        """
        if self._drop(model, tuple(stage.file_id for stage in stages), why) and len(stages) > 1:
            self.make_later(model)

    def _drop(self, model: ModelVersion, file_ids: tuple[bytes, ...], why: str) -> bool:
        try:
            if not self._store.drop_form(model, file_ids):
                return False
        except Error as fault:  # it stays named; the next one takes its place
            log.warning("a prepared form stays in the record: %s", fault.code)
        log.warning("a prepared form is not used: %s", why)
        key = model.name, model.version
        with self._lock:
            if key not in self._again:
                self._again.add(key)
                self._tried.discard(key)
        return True

    def make(self, model: ModelVersion) -> None:
        """Makes the model's form, unless there is one, or it could not be made before. What goes wrong is logged."""
        with self._one:
            if not self._wanted(model):
                return
            try:
                self._make(model)
            except (Error, OSError, EOFError, MemoryError, ValueError) as fault:
                why = fault.code if isinstance(fault, Error) else type(fault).__name__
                log.warning("no prepared form of a model: %s", why)
            trim_heap()  # a model passed through here, in the clear

    def make_first(self, model: ModelVersion) -> None:
        """The same where there is no form to be used and the model is larger than memory: as a whole it is loaded only
        where it cannot be cut. What is wrong with the store is the load's to say.
        """
        with contextlib.suppress(Error):
            if model.info.partition == OFF or self._usable(model) is not None:
                return
            with self._store.canonical(model) as canonical:
                large = 2 * canonical.length > self._budget
            if large:
                self.make(model)

    def make_later(self, model: ModelVersion) -> None:
        """The same in a thread of its own."""
        if self._worth(model):
            try:
                threading.Thread(target=self.make, args=(model,), name="forms", daemon=True).start()
            except RuntimeError:  # there is none: another load asks again
                log.warning("no prepared form of a model: no thread")

    def close(self) -> None:
        """No further form is begun."""
        with self._lock:
            self._closed = True

    def _worth(self, model: ModelVersion) -> bool:
        with self._lock:
            return not self._closed and (model.name, model.version) not in self._tried

    def _wanted(self, model: ModelVersion) -> bool:
        if not self._worth(model):
            return False
        with self._lock:
            self._tried.add((model.name, model.version))
        try:
            form = self._store.form(model)
        except Error:
            return False
        if form is None or form.making != self._making:
            return True
        return (len(form.stages) > 1) != (self._cut(model, form.length) is not None)

    def _cut(self, model: ModelVersion, length: int) -> tuple[int | None, int] | None:
        """Into how many stages the model is to be cut (None: as few as may be), and how many bytes one may have; None:
        not at all.
        """
        word, limit = model.info.partition, stage_limit(self.room)
        if word == AUTO:
            return (None, limit) if 2 * length > self._budget else None
        return None if word == OFF else (int(word), limit)

    # Making one

    def _make(self, model: ModelVersion) -> None:
        started = time.monotonic()
        with self._store.canonical(model) as canonical:
            if canonical.length < WORTH_BYTES and model.info.partition in (AUTO, OFF):
                return
            sealer, path = self._store.begin_stage()
            try:
                disk.check_room(path.parent, keep=self._keep_free + 2 * canonical.length)
                # Closed before the file that it reads: what the preparer is fed with may be behind what it gave.
                with contextlib.closing(
                    form_pieces(self._nursery, canonical, limits=self._limits, layers=self._layers)
                ) as pieces:
                    length = _seal(sealer, path, pieces)
            except BaseException:
                self._store.discard(path)
                raise
        stages: tuple[_File, ...] = ((sealer, path, length),)
        if (wanted := self._cut(model, length)) is not None:
            stages = self._split(stages[0], *wanted)
        self._store.put_form(model, self._making, stages)
        seconds = time.monotonic() - started
        log.info("a prepared form of %d bytes, in %d stages, in %.1f s", length, len(stages), seconds)

    def _split(self, whole: _File, count: int | None, limit: int) -> tuple[_File, ...]:
        """The files of the stages that a whole form was cut into; its own goes. The whole, where nothing can be cut."""
        sealer, path, length = whole
        made: list[_File] = []
        fd = disk.open_to_read(path)
        try:
            reading = Reading(
                begin_file(
                    fd,
                    data_key=sealer.data_key,
                    file_id=sealer.file_id,
                    chunk_size=sealer.chunk_size,
                    length=length,
                )
            )
            parts = parts_of(
                reading, self._nursery, count=count, limit=limit, child=self._limits, layers=self._layers
            )
            for part in parts if len(parts) > 1 else ():
                disk.check_room(path.parent, keep=self._keep_free + part.weights)
                stage, place = self._store.begin_stage()
                made.append((stage, place, 0))
                made[-1] = stage, place, _seal(stage, place, pieces_of(reading, part))
            reading.finish()
        except (Error, OSError, EOFError, MemoryError, ValueError) as fault:
            for _, place, _ in made:
                self._store.discard(place)
            why = fault.code if isinstance(fault, Error) else type(fault).__name__
            log.warning("a model is not cut into stages: %s", why)
            return (whole,)
        finally:
            disk.close(fd)
        if not made:
            return (whole,)
        self._store.discard(path)
        return tuple(made)


def _seal(sealer: Sealer, path: Path, pieces: Iterable[bytes | memoryview]) -> int:
    """Writes what comes as one synced data file; bytes of plaintext."""
    length = 0
    with disk.faults("write a data file"):
        fd = disk.create(path)
        try:
            disk.write(fd, sealer.header)
            for piece in pieces:
                length += len(piece)
                for chunk in sealer.update(piece):
                    disk.write(fd, chunk)
            disk.write(fd, sealer.finish())
            disk.sync(fd)
            disk.sync_folder(path.parent)
        finally:
            disk.close(fd)
    return length


def form_pieces(
    nursery: Nursery, canonical: Opening, *, limits: ChildLimits, layers: tuple[str, ...]
) -> Generator[bytes]:
    """A whole prepared form of the model that `canonical` holds, as its bytes come; `layers` have to hold in the
    process that makes it.

    Raises:
        LimitExceeded, SealRefused, OSError, ValueError, Unavailable, Failure: as a form that is not made.
    """
    return _Making(nursery, canonical, limits=limits, layers=layers).pieces()


class _Making:
    """One preparer at work."""

    def __init__(
        self, nursery: Nursery, canonical: Opening, *, limits: ChildLimits, layers: tuple[str, ...]
    ) -> None:
        self._nursery, self._canonical = nursery, canonical
        self._limits, self._layers = limits, layers
        self._fault: BaseException | None = None

    def pieces(self) -> Generator[bytes]:
        """The bytes of the stage, as they come.

        Raises:
            LimitExceeded: the preparer ended, or took more time, memory or bytes than it may (`preparation_limits`).
            SealRefused, OSError: the canonical form is not authentic, or cannot be read.
            ValueError: it says what it cannot.
            Unavailable, Failure: as `Nursery.fork`.
        """
        with self._nursery.fork(PREPARER) as child, contextlib.ExitStack() as stack:
            timely = Timely(child.end, self._limits.wall_s + SPARE_S)
            until = time.monotonic() + self._limits.wall_s + SPARE_S
            feed, weights = self._begin(child.end, timely)
            stack.callback(os.close, weights)
            feeding = threading.Thread(target=self._feed, args=(feed,), name="form-feed", daemon=True)
            feeding.start()
            stack.callback(feeding.join)
            stack.callback(child.close)  # before that: whoever waits to write then meets a closed pipe
            length = 0
            try:
                while piece := _read(weights, until):
                    length += len(piece)
                    if length > 2 * self._canonical.length + MORE:
                        raise _too_much()
                    yield piece
                _, end = receive(timely, most=GRAPH_BYTES + TABLE_BYTES + LENGTHS.size)
            except (OSError, EOFError):
                raise self._fault or _too_much() from None
            if self._fault is not None:
                raise self._fault
            if layout(memoryview(end), size=length + len(end)).weights != length:
                raise ValueError("other weights than there are")
            yield bytes(end)

    def _begin(self, end: socket.socket, timely: Timely) -> tuple[int, int]:
        """Hands the preparer its pipes; our ends of them, to write the model and to read the weights."""
        model, feed = os.pipe()
        try:
            weights, drain = os.pipe()
        except OSError:  # no descriptors are left: none of them is kept
            os.close(model)
            os.close(feed)
            raise
        header = {
            "size": self._canonical.length,
            "child": dataclasses.asdict(self._limits),
            "layers": list(self._layers),
        }
        try:
            socket.send_fds(end, [PIPES], [model, drain])
            send(timely, header)
        except OSError:
            os.close(feed)
            os.close(weights)
            raise _too_much() from None
        finally:
            os.close(model)
            os.close(drain)
        return feed, weights

    def _feed(self, feed: int) -> None:
        canonical = self._canonical
        scratch = memoryview(bytearray(canonical.chunk_size + TAG_BYTES))
        plain = memoryview(bytearray(canonical.chunk_size))
        try:
            for number in range(canonical.chunks):
                chunk = plain[: canonical.size_of(number)]
                canonical.open_chunk(number, chunk, scratch=scratch)
                while chunk:
                    chunk = chunk[os.write(feed, chunk) :]
        except BrokenPipeError:
            pass  # the preparer ended, which its other end shows
        except (Error, OSError) as fault:  # raised again, where the weights are waited for
            self._fault = fault
        finally:
            os.close(feed)


def _read(descriptor: int, until: float) -> bytes:
    left = until - time.monotonic()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    # The first: who always has another byte would be waited for without end.
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError
    return os.read(descriptor, _PIECE)


def _too_much() -> LimitExceeded:
    return LimitExceeded(
        "preparing the model took more time, memory or bytes than it may, or ended its process",
        code="preparation_limits",
    )
