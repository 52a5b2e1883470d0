"""Models in memory and what runs on them: loads a cold model once, and runs requests in threads of their own.

Rules
  - However many requests wait for a cold model, it is read, admitted and loaded once.
  - Loading happens in other threads than running: a large cold model does not delay a small warm one.
  - What is loaded is what admission wrote, by its digest in the store's authenticated record; a preloaded file
    is admitted anew, and its digest was measured.
  - Of large models one is loaded at a time: it takes several times its size while it is.
  - A caller who goes away does not stop what others wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal, TypeAlias

import numpy as np

from strongroom import oip
from strongroom.admission import Admit
from strongroom.batching import TRIAL_ROWS, Joiner, Trials, alike, differ, join, most_rows, rows_of, split
from strongroom.cache import SessionCache
from strongroom.errors import (
    Error,
    Failure,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    SealRefused,
    Unavailable,
)
from strongroom.forms import Forms
from strongroom.inputs import check_inputs, check_outputs, room_for
from strongroom.jobs import Host, Job, Loaded, Run, Source, Ticket, too_long
from strongroom.models.info import AdmissionLimits, Room
from strongroom.oip import Array, InferRequest, InferResponse, Tensor, WireLimits
from strongroom.store import ModelVersion, Store
from strongroom.traffic import Lane, see_out
from strongroom.turns import Turn
from strongroom.waiter import Waiter

log = logging.getLogger("strongroom.runner")

LOADERS: Final = 2
"""Threads that load cold models; loading is bounded by memory and disk, not by cores."""
LARGE: Final = 32 << 20
"""Bytes from which on a model is large: two small ones at once take no memory worth counting."""

OPERATIONS_A_SECOND: Final = 2.5e9
"""A tenth of what one core of this decade does in a convolution."""
STEPS_A_SECOND: Final = 1e5
"""Nodes; onnxruntime takes about a microsecond for one that does nothing."""

SMALL: Final = 16 << 10
"""Bytes of a request, and of its results, below which they are decoded, checked and encoded in the event loop: handing
them to a thread and back takes longer."""
QUICK_S: Final = 1e-3
"""Seconds, at those rates, that a run in this process may take there: a tenth of that, usually."""

_EVERYBODYS: Final = ("worker_died", "run_too_long")
"""How a shared run ends for all of it: runs alone would take as long again, or kill as often."""

Decode: TypeAlias = Callable[[ModelVersion], InferRequest]
Encode: TypeAlias = Callable[[InferResponse], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preloaded:
    """A model that is part of this server: admitted at start, measured, public, nobody's to change."""

    model: ModelVersion
    read: Callable[[], bytes]
    """Reads the file again, and raises unless it is still the measured one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """How much running may take: threads, calls waiting for one, bytes of a result, and what codecs take."""

    concurrent_runs: int
    waiting: int
    waiting_per_caller: int
    queue_s: float
    """Seconds that a run may wait for its turn."""
    response_bytes: int
    wire: WireLimits
    admission: AdmissionLimits
    shortest_s: int
    longest_s: int
    """Wall time of one run: by what admission bounded, within these."""
    batch_rows: int
    """Of requests that share a run."""
    batch_delay_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class _Task:
    """One request on its way: what was asked, and what has been found out by now."""

    model: ModelVersion
    principal: str | None
    caller: str
    decode: Decode
    encode: Encode
    ticket: Ticket = field(default_factory=Ticket)
    small: bool = False
    """Whether no thread is needed to decode it."""
    prepared: bool = False
    id: str | None = None
    wanted: tuple[str, ...] = ()
    arrays: dict[str, Array] = field(default_factory=dict)
    job: Job = field(init=False)
    results: dict[str, Array] | None = None


class Runner:
    """The models in memory. Belongs to one event loop."""

    def __init__(
        self,
        *,
        store: Store,
        host: Host,
        admit: Admit,
        cache: SessionCache,
        forms: Forms | None,
        preloaded: tuple[Preloaded, ...],
        verify_on_load: Literal["tags", "sha256"],
        limits: RunLimits,
    ) -> None:
        self._store = store
        self._host = host
        self._admit = admit
        self._cache = cache
        self._forms = forms
        self._preloaded = {entry.model.name: entry for entry in preloaded}
        self._verify_on_load = verify_on_load
        self._limits = limits
        self._runs = Lane(
            "run",
            workers=limits.concurrent_runs,
            waiting=limits.waiting,
            per_caller=limits.waiting_per_caller,
            wait_s=limits.queue_s,
            code="overloaded",
        )
        self._waiter = Waiter()
        self._joiner: Joiner[_Task] = Joiner(
            rows=limits.batch_rows,
            delay_s=limits.batch_delay_s,
            enter=self._runs.enter,
            leave=self._runs.leave,
            run=self._run_together,
        )
        self._trials: weakref.WeakKeyDictionary[Loaded, Trials] = weakref.WeakKeyDictionary()
        self._loads = Lane("load", workers=LOADERS, waiting=limits.waiting, code="overloaded")
        # Of its own, and without bounds: what was deleted is not kept in memory by those who load.
        self._unloads = Lane("unload", workers=1, waiting=sys.maxsize, code="overloaded")
        self._preparing = Lane("form", workers=1, waiting=limits.waiting, code="overloaded")
        self._large = Lane("large", workers=1, waiting=limits.waiting, code="overloaded")
        self._loading: dict[tuple[str, int], asyncio.Task[None]] = {}

    def close(self) -> None:
        """Ends the threads, after the work that is under way, and all loaded models."""
        self._runs.close()
        self._loads.close()
        self._unloads.close()
        self._large.close()
        if self._forms is not None:
            self._forms.close()
        self._preparing.close()
        self._cache.close()

    def stages(self, model: ModelVersion) -> int:
        """In how many stages a model runs, or would if it were loaded; 1: as a whole."""
        if (running := self._cache.stages(_key(model))) is not None:
            return running
        if (forms := self._forms_of(model)) is None:
            return 1
        try:
            return forms.count(model)
        except NotFound:  # deleted meanwhile
            return 1

    def _forms_of(self, model: ModelVersion) -> Forms | None:
        # The digest of what was admitted cannot be compared where something else is read.
        whole = model.name in self._preloaded or self._verify_on_load != "tags"
        return None if whole else self._forms

    def is_loaded(self, model: ModelVersion) -> bool:
        """Whether a run would start warm."""
        return self._cache.has(_key(model))

    async def load(self, model: ModelVersion) -> None:
        """Loads a model, unless it is loaded; several callers wait for one load.

        Raises:
            SealRefused, NotFound, Failure: it cannot be read.
            AdmissionRefused, LimitExceeded: it is no longer admitted, or too large for the memory budget.
        """
        key = _key(model)
        if self._cache.has(key):
            return
        if key not in self._loading:
            lane = self._large if model.size >= LARGE else self._loads
            # Whoever asks: an owner's many cold models wait for one another, not others' for them.
            turn = Turn(model.owner, f"{model.name}/{model.version}")
            task = asyncio.get_running_loop().create_task(lane.run_for(turn, self._warm, model))
            task.add_done_callback(lambda _: self._loading.pop(key, None))
            self._loading[key] = task
        await asyncio.shield(self._loading[key])

    async def prepare(self, model: ModelVersion) -> None:
        """Makes the prepared form of a model that was just committed. Without one it is loaded as it was admitted."""
        if self._forms is not None:
            with contextlib.suppress(Unavailable):
                await self._preparing.run_for(Turn(model.owner, ""), self._forms.make, model)

    async def unload(self, model: ModelVersion) -> None:
        """Drops a model from memory; runs under way go on with it."""
        await self._unloads.run(self._cache.evict, _key(model))

    async def run(
        self,
        model: ModelVersion,
        *,
        size: int,
        caller: str,
        principal: str | None,
        decode: Decode,
        encode: Encode,
    ) -> bytes:
        """Loads the model if need be and runs it on what `decode` gives; `encode` makes the result's bytes.
        `principal`: the data owner's, None where nobody showed a key; `size`: of the request, in bytes. Cancelling it
        stops the run.

        Runs wait in turn, by `caller` and model.

        Raises:
            As `load` and `jobs.Loaded.run`; InvalidRequest, MalformedInput, LimitExceeded: the request does not
            fit the model or the limits.
        """
        if not self._cache.has(_key(model)):
            await self.load(model)
        task = _Task(model=model, principal=principal, caller=caller, decode=decode, encode=encode)
        task.small = size <= SMALL
        turn = Turn(caller, f"{model.name}/{model.version}", alone=self.stages(model) > 1)
        if model.info.batching and task.small and principal is not None and self._limits.batch_rows > 1:
            return await self._run_in_company(task, turn)
        place = await self._runs.enter(turn)
        try:
            return await self._execute(task)
        finally:
            self._runs.leave(place)

    async def _execute(self, task: _Task) -> bytes:
        """The run of one request, which has a place."""
        if task.small and (answer := await self._run_here(task)) is not None:
            return answer
        return await see_out(self._runs.thread(lambda: self._run(task)), task.ticket.cancel)

    async def _run_here(self, task: _Task) -> bytes | None:
        """The run of a small request, without a thread; None where one is needed, for what `task` has not got yet."""
        if not task.prepared:
            self._prepare(task)
        if not _small(task.arrays):  # it came deflated
            return None
        if (lease := self._cache.lease(_key(task.model))) is None:
            return None
        try:
            task.results = await self._begun(lease.session, task.arrays, task.wanted, task.job)
        finally:
            lease.end()
        if task.results is None:
            return None
        return self._answer(task) if _small(task.results) else None

    async def _begun(
        self, loaded: Loaded, arrays: Mapping[str, Array], wanted: tuple[str, ...], job: Job
    ) -> dict[str, Array] | None:
        """The results of a run that no thread waits for; None where it cannot begin without one."""
        run = loaded.begin(arrays, outputs=wanted, job=job)
        if run is None or isinstance(run, dict):
            return run
        size = await self._waiter.wait(run, job.seconds, late=lambda: too_long(job.seconds))
        return run.results() if size <= SMALL else await self._copied(run)

    # Requests that share a run

    async def _run_in_company(self, task: _Task, turn: Turn) -> bytes:
        self._prepare(task)
        info = task.model.info
        rows, size = rows_of(info, task.arrays), _bytes(task.arrays)
        tails = tuple(array.shape[1:] for array in task.arrays.values())
        try:
            return await self._joiner.run(
                (_key(task.model), task.principal, task.wanted, tails),
                task,
                turn=turn,
                rows=rows,
                size=size,
                most=min(most_rows(info, task.arrays), self._limit(task.model)),
            )
        except asyncio.CancelledError:
            task.ticket.cancel()
            raise

    def _limit(self, model: ModelVersion) -> int:
        """Rows of a joined run, by what was seen of them: few at first, one of a model that mixes them."""
        lease = self._cache.lease(_key(model))
        trials = None if lease is None else self._trials.get(lease.session)
        if lease is not None:
            lease.end()
        if trials is None or trials.young:
            return TRIAL_ROWS
        return 1 if trials.failed else self._limits.batch_rows

    async def _run_together(self, tasks: Sequence[_Task]) -> list[bytes | Error]:
        """The answer to each of these requests, of one caller to one model."""
        first = tasks[0]
        if len(tasks) == 1 or (lease := self._cache.lease(_key(first.model))) is None:
            return await self._run_each(tasks)
        try:
            trials = self._trials.setdefault(lease.session, Trials())
            if trials.failed or not lease.session.shared(first.job):
                return await self._run_each(tasks)
            parts = await self._run_joined(lease.session, tasks)
        except (InvalidRequest, LimitExceeded) as error:
            if error.code in _EVERYBODYS:
                raise
            return await self._run_each(tasks)
        finally:
            lease.end()
        differing = differ([task.arrays for task in tasks])
        if trials.wanted(differing=differing):
            answers = await self._run_each(tasks)
            alone = [task.results for task in tasks]
            same = parts is not None and all(map(_same, parts, alone))
            if not trials.saw(differing=differing, same=same):
                log.warning("rows of a model depend on one another: its requests share no run any more")
            return answers
        if parts is None:
            return await self._run_each(tasks)
        for task, part in zip(tasks, parts, strict=True):
            task.results = part
        return [await self._settled(task) for task in tasks]

    async def _run_joined(self, loaded: Loaded, tasks: Sequence[_Task]) -> list[dict[str, Array]] | None:
        """The results of one run for all, by request; None where the model makes other rows of it."""
        info, first = tasks[0].model.info, tasks[0]
        arrays = join([task.arrays for task in tasks])
        job = self._job(first, arrays, Ticket())
        results = await self._begun(loaded, arrays, first.wanted, job)
        if results is None:
            work = self._runs.thread(lambda: loaded.run(arrays, outputs=first.wanted, job=job))
            results = await see_out(work, job.ticket.cancel)
        return split(results, [rows_of(info, task.arrays) for task in tasks])

    async def _run_each(self, tasks: Sequence[_Task]) -> list[bytes | Error]:
        return [await self._settled(task) for task in tasks]

    async def _settled(self, task: _Task) -> bytes | Error:
        """The answer to one of several requests, or its error; nobody's who has gone."""
        if task.ticket.cancelled:
            return b""
        try:
            if task.results is None:
                return await self._execute(task)
            if _small(task.results):
                return self._answer(task)
            return await see_out(self._runs.thread(lambda: self._answer(task)))
        except Error as error:
            return error

    async def _copied(self, run: Run) -> dict[str, Array]:
        """Large results, which take a while to copy."""
        try:
            copying = self._runs.thread(run.results)
        except BaseException:
            run.stop()
            raise
        return await see_out(copying)

    def _warm(self, model: ModelVersion) -> None:
        with self._cache.get(_key(model), self._loader(model), size=self._least(model)):
            pass

    def _least(self, model: ModelVersion) -> Callable[[], int]:
        """Bytes of memory that the model will take at least, as far as is known."""
        if self._forms is None or model.name in self._preloaded:
            return lambda: 0
        return partial(self._forms.least_bytes, model)

    def _loader(self, model: ModelVersion) -> Callable[[], Loaded]:
        entry = self._preloaded.get(model.name)
        forms = self._forms_of(model)
        source = Source(
            info=model.info,
            sha256=model.sha256,
            canonical_sha256=model.canonical_sha256,
            read=lambda: self._admit_again(entry) if entry else self._read(model),
        )
        if forms is not None:
            source = replace(
                source,
                stages=partial(forms.stages, model),
                spoilt=partial(forms.spoilt, model),
                room=forms.room,
            )

        def load() -> Loaded:
            if forms is not None:
                forms.make_first(model)
            try:
                loaded = self._host.load(source)
                if forms is not None:
                    forms.make_later(model)
                return loaded
            except SealRefused as refusal:
                # The caller named the model; the log gets the code and the place, never the message.
                message = f"model {model.name} version {model.version}: {refusal.message}"
                raise SealRefused(message, code=refusal.code) from refusal

        return load

    def _read(self, model: ModelVersion) -> bytes | bytearray:
        return self._store.read(model, verify=self._verify_on_load)

    def _admit_again(self, entry: Preloaded) -> bytes:
        data = bytearray(entry.read())
        admitted = self._admit(data, format=entry.model.format, limits=self._limits.admission)
        if not hmac.compare_digest(admitted.canonical_sha256, entry.model.canonical_sha256):
            raise Failure("the model no longer converts to the form that was admitted")
        return admitted.onnx

    def _run(self, task: _Task) -> bytes:
        """What is left of a run, in a thread."""
        if not task.prepared:
            self._prepare(task)
        if task.results is None:
            with self._cache.get(
                _key(task.model), self._loader(task.model), size=self._least(task.model)
            ) as loaded:
                task.results = loaded.run(task.arrays, outputs=task.wanted, job=task.job)
        return self._answer(task)

    def _prepare(self, task: _Task) -> None:
        """Decodes a request and checks it against the model."""
        info = task.model.info
        request = task.decode(task.model)
        task.id, task.wanted = request.id, _wanted(task.model, request)
        task.arrays = check_inputs(info, request.inputs, limits=self._limits.wire)
        task.job = self._job(task, task.arrays, task.ticket)
        task.prepared = True

    def _job(self, task: _Task, arrays: Mapping[str, Array], ticket: Ticket) -> Job:
        """A run on these inputs, for whom the task is."""
        needed = _needed(room_for(task.model.info, arrays))
        return Job(
            caller=task.principal,
            origin=task.caller,
            seconds=min(float(self._limits.longest_s), self._limits.shortest_s + needed),
            ticket=ticket,
            quick=needed <= QUICK_S,
        )

    def _answer(self, task: _Task) -> bytes:
        """Checks the results and encodes them."""
        model, results = task.model, task.results or {}
        check_outputs(model.info, results)
        self._check_size(_bytes(results))
        response = InferResponse(
            model_name=model.name,
            model_version=str(model.version),
            id=task.id,
            outputs=tuple(_tensor(name, results[name]) for name in task.wanted),
            parameters=(),
        )
        answer = task.encode(response)
        self._check_size(len(answer))
        return answer

    def _check_size(self, size: int) -> None:
        if size > self._limits.response_bytes:
            raise LimitExceeded(
                f"the result is longer than {self._limits.response_bytes} bytes", code="response_too_large"
            )


def _bytes(arrays: Mapping[str, Array]) -> int:
    return sum(oip.payload_bytes(array) for array in arrays.values())


def _small(arrays: Mapping[str, Array]) -> bool:
    return _bytes(arrays) <= SMALL


def _same(joined: Mapping[str, Array], alone: Mapping[str, Array] | None) -> bool:
    """Whether a request's results are those of a run alone; whoever went away, or was refused, has none."""
    return alone is None or alike(joined, alone)


def _needed(room: Room | None) -> float:
    """Seconds that a run takes, at a rate that a busy machine still has; infinity where no bound is known."""
    if room is None:
        return math.inf
    return room.operations / OPERATIONS_A_SECOND + room.steps / STEPS_A_SECOND


def _wanted(model: ModelVersion, request: InferRequest) -> tuple[str, ...]:
    """The outputs asked for, all of them where none is named."""
    known = tuple(spec.name for spec in model.info.outputs)
    for number, name in enumerate(request.outputs):
        if name not in known:
            raise InvalidRequest(
                f"outputs[{number}]: expected one of {', '.join(map(repr, known))}", code="output_unknown"
            )
    return request.outputs or known


def _tensor(name: str, array: oip.Array) -> Tensor:
    return Tensor(name=name, datatype=oip.datatype_of(array), array=np.asarray(array, order="C"))


def _key(model: ModelVersion) -> tuple[str, int]:
    """Versions are immutable and their numbers never used again, so this names the very bytes."""
    return model.name, model.version
