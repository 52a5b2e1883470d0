"""What a model takes that runs in stages: memory and time, from the server's own plan and a few rates of a machine.

Rules
  - Which stages there are was found out before (`rehearsal`), which of them stay says `feeding.Plan`, as on a server.
    Here are sums.
  - Constants were measured on a server with `isolation = "owner"` (docs/partitioning.md, with the errors).
  - A stage is read while others run: the sum follows both sides and the slots between them, stage by stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from strongroom.feeding import SLOTS, Plan
from strongroom.models.info import Admission, Room

PROCESSES: Final = 120 * 10**6
"""Bytes of a server's processes together (shared pages once) before a model is loaded: server, zygote, a spare one."""
SERVED: Final = 20 * 10**6
"""More while a model runs: the engine in the template, in the worker and in the spare one."""
COUNTED: Final = 16 << 20
"""Bytes of `limits.loaded_bytes` beyond the plan's: what servers count for those (`feeding.FAMILY`), and more."""
SLACK: Final = 256 << 10
"""Bytes by which a room is rounded down, so that a configuration says a plain number."""
USUAL: Final = 128
"""Size of open dimensions but the first, where nobody says another: the words of a longer sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a machine does, as `pacing.rates` measures it, with one thread: processor time, and what waiting adds."""

    opened: float
    """Bytes of stages that are read and decrypted in a second."""
    loaded: float
    """Bytes of stages that are made ready (packed) in a second."""
    session: float
    """Seconds to make a stage ready besides."""
    operations: float
    """Multiplications and additions in a second."""
    waiting: float
    """Seconds by the clock for each one of a run in stages, and"""
    waiting_whole: float
    """of one without: on a machine as busy as it was."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "open_bytes_per_s": round(self.opened),
            "load_bytes_per_s": round(self.loaded),
            "session_s": round(self.session, 6),
            "operations_per_s": round(self.operations),
            "waiting": round(self.waiting, 3),
            "waiting_whole": round(self.waiting_whole, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is expected of one model within a budget. Bytes and seconds."""

    stages: int
    staying: int
    """Stages that stay in memory."""
    loaded_bytes: int
    """`limits.loaded_bytes` with which a server keeps to it, and"""
    partition_bytes: int
    """`limits.partition_bytes`."""
    peak_bytes: int
    """Server, worker and the processes beside them together, at their peak."""
    latency_s: float
    """One warm request of `sizes` by the clock, on a machine as busy as this one, without the network."""
    free_s: float
    """The same where a core is free for the worker and one for the server."""
    sizes: tuple[int, ...]
    """Open dimensions of that request, as `Room.sizes`."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "stages": self.stages,
            "staying": self.staying,
            "loaded_bytes": self.loaded_bytes,
            "partition_bytes": self.partition_bytes,
            "peak_bytes": self.peak_bytes,
            "latency_s": round(self.latency_s, 4),
            "free_s": round(self.free_s, 4),
            "sizes": list(self.sizes),
        }


def room_of(budget: int, run_bytes: int) -> int:
    """Bytes a model may take (in stages: `limits.partition_bytes`) where all processes together have `budget` bytes and
    one request `run_bytes`; 0 where nothing is left.
    """
    left = budget - PROCESSES - SERVED - run_bytes
    return max(0, left // SLACK * SLACK)


def request_of(
    admission: Admission, sizes: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], int, int]:
    """A request's sizes, and its operations and bytes alive at one time at most, by the cheapest room it fits into.

    Without `sizes`: one row, other open dimensions of `USUAL` or as many as are admitted.

    Raises:
        ValueError: requests of these sizes are not admitted, or these are not the model's dimensions.
    """
    rooms = admission.rooms
    if not rooms:
        raise ValueError("nothing is known of its requests")
    if sizes is None:
        widest = max(rooms, key=lambda room: room.sizes[1:])
        sizes = tuple(min(size, USUAL) if place else 1 for place, size in enumerate(widest.sizes))
    found = [_scaled(room, sizes) for room in rooms if _inside(sizes, room.sizes)]
    if not found:
        raise ValueError("no request of these sizes is admitted")
    operations, alive = min(found)
    return sizes, operations, alive


def _inside(sizes: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return len(sizes) == len(most) and all(
        1 <= size <= limit for size, limit in zip(sizes, most, strict=True)
    )


def _scaled(room: Room, sizes: tuple[int, ...]) -> tuple[int, int]:
    share = math.prod(sizes) / math.prod(room.sizes)
    return math.ceil(room.operations * share), math.ceil(room.peak_bytes * share)


def whole(
    loaded: int, *, room: int, run_bytes: int, operations: int, sizes: tuple[int, ...], rates: Rates
) -> Outlook:
    """Of a model that is not cut, and takes `loaded` bytes."""
    return Outlook(
        stages=1,
        staying=1,
        loaded_bytes=room + COUNTED,
        partition_bytes=room,
        peak_bytes=PROCESSES + SERVED + run_bytes + loaded,
        latency_s=operations / rates.operations * rates.waiting_whole,
        free_s=operations / rates.operations,
        sizes=sizes,
    )


def staged(
    lengths: Sequence[int],
    *,
    room: int,
    run_bytes: int,
    operations: int,
    sizes: tuple[int, ...],
    rates: Rates,
) -> Outlook:
    """Of a model in stages of these `lengths` (bytes), which has `room` bytes as of `room_of`."""
    plan = Plan(lengths, room)
    free = seconds(plan, operations, rates)
    return Outlook(
        stages=len(lengths),
        staying=len(plan.stay),
        loaded_bytes=room + COUNTED,
        partition_bytes=room,
        peak_bytes=PROCESSES + SERVED + run_bytes + plan.memory_bytes,
        latency_s=free * (rates.waiting if plan.moving else rates.waiting_whole),
        free_s=free,
        sizes=sizes,
    )


def seconds(plan: Plan, operations: int, rates: Rates) -> float:
    """A run, stage by stage: the server opens one into a slot once that was given back, the worker loads and runs it.
    Both have a core, and nobody waits for anything else.
    """
    total = max(1, sum(plan.lengths))
    read = now = 0.0
    given_back = [0.0] * SLOTS
    moved = 0
    for number, length in enumerate(plan.lengths):
        if number not in plan.stay:
            slot = moved % SLOTS
            read = max(read, given_back[slot]) + length / rates.opened
            now = max(now, read) + rates.session + length / rates.loaded
        now += operations * length / total / rates.operations
        if number not in plan.stay:
            given_back[slot] = now
            moved += 1
    return now
