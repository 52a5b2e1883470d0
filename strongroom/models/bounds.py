"""How large requests may be: the sizes whose cost stays within the budget (§8.2).

A model that leaves dimensions open has no one bound: a batch of 64 short texts is as dear as one long one, a
long strip as dear as a square. So several largest sizes are found, each by looks at the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import google.protobuf  # type: ignore[import-untyped]  # has no stubs
import numpy as np
import onnx

from strongroom.errors import AdmissionRefused, Failure, LimitExceeded
from strongroom.models.info import Admission, AdmissionLimits, Room
from strongroom.models.look import Box, Found, Look, Plans
from strongroom.models.plan import NO_LISTS, Lists

BATCHES: Final = (1, 8, 64, 512, 4096, 1 << 16)
SIZES: Final = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
"""Sizes that are tried. Sentences have up to 2048 tokens, pictures a thousand points, sounds a million samples."""
NARROW: Final = 64
"""Every other dimension of a strip, whose one long dimension is then as long as possible: a line of text."""
AXES: Final = 4
"""Positions with a size of their own."""
TRIES: Final = (12, 48)
NODES_LOOKED: Final = 24_000
"""Looks at one model: so many, or as many as look at this many nodes together, within the former bounds."""
RULES_VERSION: Final = "1"
"""Version of `docs/spec/admission.md` that this is."""


@dataclass(slots=True)
class _Search:
    """Looks at one model, for boxes of many sizes."""

    model: Any
    plans: Plans
    imports: Mapping[str, int]
    limits: AdmissionLimits
    tries: int
    rooms: list[tuple[tuple[int, ...], Found]] = field(default_factory=list)
    refusal: LimitExceeded | AdmissionRefused | None = None

    def look(self, sizes: tuple[int, ...]) -> Found | LimitExceeded | AdmissionRefused:
        """What is found for requests up to these sizes, whichever way its Ifs go (§8.4)."""
        self.tries -= 1
        todo: list[tuple[bool, ...]] = [()]
        found: Found | None = None
        refusal: AdmissionRefused | None = None
        while todo:
            given = todo.pop()
            look = Look(
                self.model,
                self.plans,
                imports=self.imports,
                budget=self.limits.budget,
                box=Box(sizes),
                strict=self.limits.level == "strict",
                decisions=given,
            )
            try:
                found = _worse(found, look.run())
            except LimitExceeded as too_much:
                return too_much.with_traceback(None)  # which holds the model, beyond its time
            except AdmissionRefused as cannot_run:
                if not look.decisions:
                    return cannot_run.with_traceback(None)
                refusal = cannot_run.with_traceback(None)
            todo += [(*look.decisions[:n], False) for n in range(len(given), len(look.decisions))]
        # A rank for which no request can run is not one that has to be allowed for.
        outcome = found if found is not None else refusal
        if outcome is None:
            raise Failure("no look was taken at the model", code="internal_error")
        return outcome

    def largest(self, made: list[tuple[int, ...]], high: int) -> int:
        """The place of the largest of these sizes that fits, at most `high`; -1 where none does."""
        best, low, at, place = -1, 0, high, high
        while low <= at and self.tries > 0:
            found = self.look(made[place])
            # Bounds grow with sizes: too much is too large, and what cannot run at all is too small.
            if isinstance(found, Found):
                if best >= 0:
                    self.rooms.pop()
                best, low = place, place + 1
                self.rooms.append((made[place], found))
            elif isinstance(found, LimitExceeded):
                self.refusal, at = found, place - 1
            else:
                self.refusal, low = found, place + 1
            place = (low + at) // 2 if best < 0 or at - low > 1 else at
        return best


def _worse(a: Found | None, b: Found) -> Found:
    if a is None:
        return b
    return Found(
        peak_bytes=max(a.peak_bytes, b.peak_bytes),
        resident_bytes=max(a.resident_bytes, b.resident_bytes),
        operations=max(a.operations, b.operations),
        load_operations=max(a.load_operations, b.load_operations),
        steps=max(a.steps, b.steps),
        flags=a.flags | b.flags,
        outputs=a.outputs,
    )


def examine(
    model: Any,
    *,
    imports: Mapping[str, int],
    limits: AdmissionLimits,
    cost: tuple[int, int, int],
    lists: Lists = NO_LISTS,
) -> tuple[Admission, Found]:
    """What a model costs at most; `cost`: its nodes, tensors and their bytes. Also what one look found.

    `lists`: values of its first node's attributes that are not in the message (`plan.decoded`).

    Raises:
        AdmissionRefused: a node cannot run, or has no bound (codes `onnx_shape`, `onnx_unbounded`, ...).
        LimitExceeded: even the smallest requests cost too much (codes `onnx_memory`, `onnx_compute`, ...).
    """
    axes = _open(model)
    tries = max(TRIES[0], min(TRIES[1], NODES_LOOKED // max(1, cost[0])))
    search = _Search(model, Plans.of(model, lists), imports, limits, tries)
    _search(search, axes)
    if not search.rooms:
        raise search.refusal or Failure("nothing was looked at")
    found = [room for _, room in search.rooms]
    rooms = [
        Room(
            sizes=sizes if axes else (),
            peak_bytes=math.ceil(room.peak_bytes),
            operations=math.ceil(room.operations),
            steps=math.ceil(room.steps),
        )
        for sizes, room in search.rooms
    ]
    admission = Admission(
        level=limits.level,
        flags=tuple(sorted(set().union(*(room.flags for room in found)))),
        nodes=cost[0],
        tensors=cost[1],
        tensor_bytes=cost[2],
        resident_bytes=max(math.ceil(room.resident_bytes) for room in found),
        load_operations=max(math.ceil(room.load_operations) for room in found),
        rooms=tuple(r for r in rooms if not any(_inside(r, other) for other in rooms if other is not r)),
        text_bytes=limits.budget.text_bytes,
        versions=versions(),
    )
    return admission, found[0]


def _inside(a: Room, b: Room) -> bool:
    return a.sizes != b.sizes and all(x <= y for x, y in zip(a.sizes, b.sizes, strict=True))


def _search(search: _Search, axes: frozenset[int]) -> None:
    """Batches of everything alike, from one to many; then strips."""
    count = min(AXES, max(axes, default=0) + 1)
    later = sorted({min(axis, AXES - 1) for axis in axes} - {0})
    if not later:
        batches: list[tuple[int, ...]] = [(size,) for size in sorted({*SIZES, *BATCHES})] if axes else [(1,)]
        search.largest(batches, len(batches) - 1)
        return

    def box(batch: int, size: int, *, long: int | None = None) -> tuple[int, ...]:
        rest = (size if axis == long or long is None else NARROW for axis in range(1, count))
        return (batch, *rest)

    high = len(SIZES) - 1
    batches_ = BATCHES if 0 in axes else (1,)
    # The first look, at the largest sizes of all, also says whether the model can run at all.
    for batch in batches_:
        high = search.largest([box(batch, size) for size in SIZES], high)
        if high < 0:
            break
    if len(later) > 1:
        for batch in batches_[:3]:
            for axis in reversed(later):
                search.largest([box(batch, size, long=axis) for size in SIZES], len(SIZES) - 1)


def versions() -> tuple[tuple[str, str], ...]:
    """The software that looks at models, for the report."""
    return (
        ("numpy", np.__version__),
        ("onnx", onnx.__version__),
        ("protobuf", google.protobuf.__version__),
        ("rules", RULES_VERSION),
    )


def _open(model: Any) -> frozenset[int]:
    """Positions of the dimensions of inputs that the model leaves open."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    return frozenset(
        number
        for value in model.graph.input
        if value.name not in fixed
        for number, dim in enumerate(value.type.tensor_type.shape.dim)
        if not (dim.HasField("dim_value") and dim.dim_value >= 0)
    )
