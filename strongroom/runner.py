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
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal, TypeAlias

import numpy as np

from strongroom import oip
from strongroom.admission import Admit
from strongroom.cache import SessionCache
from strongroom.errors import Failure, InvalidRequest, LimitExceeded, SealRefused, Unavailable
from strongroom.forms import Forms
from strongroom.inputs import check_inputs, check_outputs, room_for
from strongroom.jobs import Host, Job, Loaded, Run, Source, Ticket, too_long
from strongroom.models.info import AdmissionLimits, Room
from strongroom.oip import Array, InferRequest, InferResponse, Tensor, WireLimits
from strongroom.store import ModelVersion, Store
from strongroom.traffic import Lane, see_out
from strongroom.turns import Turn
from strongroom.waiter import Waiter

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


@dataclass(slots=True, kw_only=True, eq=False)
class _Task:
    """One request on its way: what was asked, and what has been found out by now."""

    model: ModelVersion
    principal: str | None
    caller: str
    decode: Decode
    encode: Encode
    ticket: Ticket = field(default_factory=Ticket)
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
        self._loads = Lane("load", workers=LOADERS, waiting=limits.waiting, code="overloaded")
        self._preparing = Lane("form", workers=1, waiting=limits.waiting, code="overloaded")
        self._large = Lane("large", workers=1, waiting=limits.waiting, code="overloaded")
        self._loading: dict[tuple[str, int], asyncio.Task[None]] = {}

    def close(self) -> None:
        """Ends the threads, after the work that is under way, and all loaded models."""
        self._runs.close()
        self._loads.close()
        self._large.close()
        if self._forms is not None:
            self._forms.close()
        self._preparing.close()
        self._cache.close()

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
        await self._loads.run(self._cache.evict, _key(model))

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
        key = _key(model)
        if not self._cache.has(key):
            await self.load(model)
        task = _Task(model=model, principal=principal, caller=caller, decode=decode, encode=encode)
        place = await self._runs.enter(Turn(caller, f"{model.name}/{model.version}"))
        try:
            if size <= SMALL and (answer := await self._run_here(task)) is not None:
                return answer
            return await see_out(self._runs.thread(lambda: self._run(task)), task.ticket.cancel)
        finally:
            self._runs.leave(place)

    async def _run_here(self, task: _Task) -> bytes | None:
        """The run of a small request, without a thread; None where one is needed, for what `task` has not got yet."""
        self._prepare(task)
        if not _small(task.arrays):  # it came deflated
            return None
        if (lease := self._cache.lease(_key(task.model))) is None:
            return None
        try:
            run = lease.session.begin(task.arrays, outputs=task.wanted, job=task.job)
            if run is None:
                return None
            if isinstance(run, dict):
                task.results = run
            elif (
                await self._waiter.wait(run, task.job.seconds, late=lambda: too_long(task.job.seconds))
                <= SMALL
            ):
                task.results = run.results()
            else:
                task.results = await self._copied(run)
        finally:
            lease.end()
        return self._answer(task) if _small(task.results) else None

    async def _copied(self, run: Run) -> dict[str, Array]:
        """Large results, which take a while to copy."""
        try:
            copying = self._runs.thread(run.results)
        except BaseException:
            run.stop()
            raise
        return await see_out(copying)

    def _warm(self, model: ModelVersion) -> None:
        with self._cache.get(_key(model), self._loader(model)):
            pass

    def _loader(self, model: ModelVersion) -> Callable[[], Loaded]:
        entry = self._preloaded.get(model.name)
        # The digest of what was admitted cannot be compared where something else is read.
        forms = self._forms if entry is None and self._verify_on_load == "tags" else None
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
            with self._cache.get(_key(task.model), self._loader(task.model)) as loaded:
                task.results = loaded.run(task.arrays, outputs=task.wanted, job=task.job)
        return self._answer(task)

    def _prepare(self, task: _Task) -> None:
        """Decodes a request and checks it against the model."""
        info = task.model.info
        request = task.decode(task.model)
        task.id, task.wanted = request.id, _wanted(task.model, request)
        task.arrays = check_inputs(info, request.inputs, limits=self._limits.wire)
        needed = _needed(room_for(info, task.arrays))
        longest = float(self._limits.longest_s)
        task.job = Job(
            caller=task.principal,
            origin=task.caller,
            seconds=min(longest, self._limits.shortest_s + needed),
            ticket=task.ticket,
            quick=needed <= QUICK_S,
        )
        task.prepared = True

    def _answer(self, task: _Task) -> bytes:
        """Checks the results and encodes them."""
        model, results = task.model, task.results or {}
        check_outputs(model.info, results)
        self._check_size(sum(oip.payload_bytes(array) for array in results.values()))
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


def _small(arrays: Mapping[str, Array]) -> bool:
    return sum(oip.payload_bytes(array) for array in arrays.values()) <= SMALL


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
