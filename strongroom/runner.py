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
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, TypeAlias

import numpy as np

from strongroom import oip
from strongroom.admission import Admit
from strongroom.cache import SessionCache
from strongroom.errors import Failure, InvalidRequest, LimitExceeded, SealRefused, Unavailable
from strongroom.forms import Forms
from strongroom.inputs import check_inputs, check_outputs, room_for
from strongroom.jobs import Host, Job, Loaded, Source, Ticket
from strongroom.models.info import AdmissionLimits, Room
from strongroom.oip import InferRequest, InferResponse, Tensor, WireLimits
from strongroom.store import ModelVersion, Store
from strongroom.traffic import Lane
from strongroom.turns import Turn

LOADERS: Final = 2
"""Threads that load cold models; loading is bounded by memory and disk, not by cores."""
LARGE: Final = 32 << 20
"""Bytes from which on a model is large: two small ones at once take no memory worth counting."""

OPERATIONS_A_SECOND: Final = 2.5e9
"""A tenth of what one core of this decade does in a convolution."""
STEPS_A_SECOND: Final = 1e5
"""Nodes; onnxruntime takes about a microsecond for one that does nothing."""

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
        return _key(model) in self._cache.loaded()

    async def load(self, model: ModelVersion) -> None:
        """Loads a model, unless it is loaded; several callers wait for one load.

        Raises:
            SealRefused, NotFound, Failure: it cannot be read.
            AdmissionRefused, LimitExceeded: it is no longer admitted, or too large for the memory budget.
        """
        key = _key(model)
        if key in self._cache.loaded():
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
        self, model: ModelVersion, *, caller: str, principal: str | None, decode: Decode, encode: Encode
    ) -> bytes:
        """Loads the model if need be and runs it on what `decode` gives; `encode` makes the result's bytes.
        `principal`: the data owner's, None where nobody showed a key. Cancelling it stops the run.

        Runs wait in turn, by `caller` and model.

        Raises:
            As `load` and `jobs.Loaded.run`; InvalidRequest, MalformedInput, LimitExceeded: the request does not
            fit the model or the limits.
        """
        await self.load(model)
        turn = Turn(caller, f"{model.name}/{model.version}")
        ticket = Ticket()
        work = asyncio.ensure_future(
            self._runs.run_for(turn, self._run, model, (principal, caller), ticket, decode, encode)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            ticket.cancel()
            work.cancel()  # leaves the line, or waits for the thread
            await asyncio.wait({work})
            raise

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

    def _run(
        self,
        model: ModelVersion,
        whose: tuple[str | None, str],
        ticket: Ticket,
        decode: Decode,
        encode: Encode,
    ) -> bytes:
        """Everything of a run that takes time, in a thread: decode, check, run, check, encode. `whose`: the principal
        and the caller of `run`.
        """
        request = decode(model)
        wanted = _wanted(model, request)
        arrays = check_inputs(model.info, request.inputs, limits=self._limits.wire)
        seconds = self._seconds(room_for(model.info, arrays))
        job = Job(caller=whose[0], origin=whose[1], seconds=seconds, ticket=ticket)
        with self._cache.get(_key(model), self._loader(model)) as loaded:
            results = loaded.run(arrays, outputs=wanted, job=job)
        check_outputs(model.info, results)
        self._check_size(sum(oip.payload_bytes(array) for array in results.values()))
        outputs = tuple(_tensor(name, results[name]) for name in wanted)
        response = InferResponse(
            model_name=model.name,
            model_version=str(model.version),
            id=request.id,
            outputs=outputs,
            parameters=(),
        )
        answer = encode(response)
        self._check_size(len(answer))
        return answer

    def _seconds(self, room: Room | None) -> float:
        """Wall time for one run, at a rate that a busy machine still has."""
        longest = float(self._limits.longest_s)
        if room is None:  # no bound is known
            return longest
        needed = room.operations / OPERATIONS_A_SECOND + room.steps / STEPS_A_SECOND
        return min(longest, self._limits.shortest_s + needed)

    def _check_size(self, size: int) -> None:
        if size > self._limits.response_bytes:
            raise LimitExceeded(
                f"the result is longer than {self._limits.response_bytes} bytes", code="response_too_large"
            )


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
