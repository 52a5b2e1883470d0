"""Requests that share a run: one caller's, to one model, their rows one below the other (ADR 0022).

Rules
  - Only requests of one principal share a run, whatever the isolation, and none where each has a process of its own:
    what a model makes of one row may depend on the others, and that must be no way from one caller to another.
  - Only where the owner switched it on, for a model whose rows are its first dimension, in and out.
  - Whatever joins was checked by itself, and all together are within what admission bounded.
  - A request waits for nobody while nothing of its caller's runs on that model: those share a run that came meanwhile,
    or while the run waited for its turn. A run takes one place and one turn, however many share it.
  - That no row depends on another is tried, not proven: the first joined runs of each loaded model are made alone, too.
  - Who goes away takes nobody along; once all have, the run is stopped.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

import numpy as np

from strongroom.errors import Error, InvalidRequest
from strongroom.models.info import ModelInfo, Room
from strongroom.oip import Array
from strongroom.turns import Turn

_T = TypeVar("_T")

JOINED_BYTES: Final = 1 << 20
"""Bytes of the inputs that are copied into one: a tenth of a millisecond in the event loop."""
TOLERANCE: Final[Mapping[str, float]] = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-6}
"""Of an output's largest number: how far rows of a joined run may be from those of a run alone. Kernels of matrix
products take other paths for more rows, which changes the last bits; other datatypes have to be equal."""
TRIALS: Final = 3
"""Joined runs of each loaded model that are compared with runs alone: of rows that differ, and of equal ones."""

TRIAL_ROWS: Final = 8
"""Of the first joined runs."""


def why_not(info: ModelInfo) -> str | None:
    """Why requests to this model cannot share a run; None where they can."""
    specs = (*info.inputs, *info.outputs)
    firsts = {spec.shape[0] if spec.shape else None for spec in specs}
    if len(firsts) != 1 or not all(isinstance(first, str) for first in firsts):
        return "the first dimension of its inputs and outputs is not one and the same open size"
    if any(set(spec.shape[1:]) & firsts for spec in specs if spec.shape):
        return "the size of its first dimension is that of another one, too"
    if "data_dependent_output" in info.admission.flags:
        return "how long its outputs are depends on its inputs' values"
    if info.precision.joins_rows:
        return "it takes the ranges of eight bits of all rows together"
    return None


def with_batching(info: ModelInfo) -> ModelInfo:
    """The same model, whose requests may share a run.

    Raises:
        InvalidRequest: they cannot (code `batching_unsupported`).
    """
    if (reason := why_not(info)) is not None:
        raise InvalidRequest(f"batching is not for this model: {reason}", code="batching_unsupported")
    return replace(info, batching=True)


def most_rows(info: ModelInfo, arrays: Mapping[str, Array]) -> int:
    """Rows of requests like this one that admission bounded together."""

    def fits(room: Room) -> bool:
        return all(
            room.fits(axis, size)
            for spec in info.inputs
            for axis, (known, size) in enumerate(zip(spec.shape or (), arrays[spec.name].shape, strict=True))
            if axis and not isinstance(known, int)
        )

    return max((room.sizes[0] for room in info.admission.rooms if room.sizes and fits(room)), default=0)


def rows_of(info: ModelInfo, arrays: Mapping[str, Array]) -> int:
    """Rows of a request to a model that `why_not` has nothing against."""
    return len(arrays[info.inputs[0].name])


def join(requests: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The inputs of one run, rows in the order of the requests; their other sizes are equal."""
    return {name: np.concatenate([arrays[name] for arrays in requests]) for name in requests[0]}


def split(results: Mapping[str, Array], counts: Sequence[int]) -> list[dict[str, Array]] | None:
    """The results of each request, by its number of rows, as views; None where there are not as many rows."""
    if any(not array.ndim or len(array) != sum(counts) for array in results.values()):
        return None
    parts, start = [], 0
    for count in counts:
        parts.append({name: array[start : start + count] for name, array in results.items()})
        start += count
    return parts


def alike(joined: Mapping[str, Array], alone: Mapping[str, Array]) -> bool:
    """Whether results are the same, within `TOLERANCE`."""
    return joined.keys() == alone.keys() and all(_alike(joined[name], alone[name]) for name in alone)


def _alike(joined: Array, alone: Array) -> bool:
    if joined.shape != alone.shape or joined.dtype != alone.dtype:
        return False
    tolerance = TOLERANCE.get(joined.dtype.name)
    if tolerance is None:
        return bool(np.array_equal(joined, alone))
    finite = alone[np.isfinite(alone)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    return bool(np.allclose(joined, alone, rtol=tolerance, atol=tolerance * largest, equal_nan=True))


def differ(requests: Sequence[Mapping[str, Array]]) -> bool:
    """Whether some row of these inputs differs from the first: equal ones would hide what one makes of another."""
    return any(
        array.size and not (array == requests[0][name][:1]).all()
        for arrays in requests
        for name, array in arrays.items()
    )


@dataclass(slots=True, eq=False)
class Trials:
    """What was seen of one loaded model's joined runs. Equal rows are tried apart: they show less."""

    differing: int = TRIALS
    equal: int = TRIALS
    failed: bool = False

    @property
    def young(self) -> bool:
        """Whether hardly anything was seen: then joined runs are to be small, for each is made alone, too."""
        return bool(self.differing and self.equal)

    def wanted(self, *, differing: bool) -> bool:
        """Whether a joined run of such rows is to be compared with runs alone."""
        return bool(self.differing if differing else self.equal)

    def saw(self, *, differing: bool, same: bool) -> bool:
        """Counts a comparison; whether the model's requests may still be joined."""
        if differing:
            self.differing = max(0, self.differing - 1)  # several may be tried at once
        else:
            self.equal = max(0, self.equal - 1)
        self.failed |= not same
        return not self.failed


@dataclass(slots=True, eq=False)
class _Member(Generic[_T]):
    work: _T
    answer: asyncio.Future[bytes]


@dataclass(slots=True, eq=False)
class _Batch(Generic[_T]):
    """Those who share one run that has not begun."""

    members: list[_Member[_T]] = field(default_factory=list)
    rows: int = 0
    size: int = 0
    full: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def takes(self, rows: int, size: int, most: int) -> bool:
        return self.rows + rows <= most and self.size + size <= JOINED_BYTES

    def leave(self, member: _Member[_T]) -> None:
        self.members.remove(member)
        if not self.members and self.task is not None:
            self.task.cancel()


@dataclass(slots=True, eq=False)
class _Running:
    """Runs of one group."""

    count: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and made anew, when one of them ends."""


class Joiner(Generic[_T]):
    """Has requests share runs. Belongs to one event loop."""

    def __init__(
        self,
        *,
        rows: int,
        delay_s: float,
        enter: Callable[[Turn], Awaitable[Any]],
        leave: Callable[[Any], None],
        run: Callable[[Sequence[_T]], Awaitable[Sequence[bytes | Error]]],
    ) -> None:
        """At most `rows` in one run. `delay_s`: seconds after which a request no longer waits for the end of the run
        before, but for a place only. `enter`, `leave`: places. `run`: gives each its answer, or its error.
        """
        self._rows, self._delay_s = rows, delay_s
        self._enter, self._leave, self._run = enter, leave, run
        self._open: dict[Hashable, _Batch[_T]] = {}
        self._running: dict[Hashable, _Running] = {}

    async def run(self, group: Hashable, work: _T, *, turn: Turn, rows: int, size: int, most: int) -> bytes:
        """The answer to one request, of `rows` rows and `size` bytes, in company of those of its group, `most` rows
        together.

        Raises:
            As `enter`; what `run` gives as its error.
        """
        batch = self._open.get(group)
        if batch is None or not batch.takes(rows, size, min(most, self._rows)):
            if batch is not None:
                batch.full.set()
            batch = self._open[group] = _Batch()
            batch.task = asyncio.create_task(self._drive(group, turn, batch))
        member = _Member(work, asyncio.get_running_loop().create_future())
        batch.members.append(member)
        batch.rows += rows
        batch.size += size
        try:
            return await member.answer
        except asyncio.CancelledError:
            batch.leave(member)
            if not batch.members:
                self._close(group, batch)
            raise

    async def _drive(self, group: Hashable, turn: Turn, batch: _Batch[_T]) -> None:
        try:
            await self._company(group, batch)
            place = await self._enter(turn)
            try:
                self._close(group, batch)
                await self._share(group, batch)
            finally:
                self._leave(place)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is everybody's who waits here
            for member in batch.members:
                if not member.answer.done():
                    member.answer.set_exception(copy.copy(error))
        finally:
            self._close(group, batch)

    async def _company(self, group: Hashable, batch: _Batch[_T]) -> None:
        """Waits while a run of the group is under way, for others who come; not for long."""
        running = self._running.get(group)
        if running is None or batch.full.is_set():
            return
        waiting = [asyncio.ensure_future(event.wait()) for event in (running.over, batch.full)]
        try:
            await asyncio.wait(waiting, timeout=self._delay_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    async def _share(self, group: Hashable, batch: _Batch[_T]) -> None:
        members = tuple(batch.members)
        running = self._running.setdefault(group, _Running())
        running.count += 1
        try:
            answers = await self._run([member.work for member in members])
        finally:
            running.count -= 1
            running.over.set()
            running.over = asyncio.Event()
            if not running.count:
                del self._running[group]
        for member, answer in zip(members, answers, strict=True):
            if member.answer.done():
                continue
            if isinstance(answer, Error):
                member.answer.set_exception(answer)
            else:
                member.answer.set_result(answer)

    def _close(self, group: Hashable, batch: _Batch[_T]) -> None:
        """Nobody joins this one any more."""
        if self._open.get(group) is batch:
            del self._open[group]
