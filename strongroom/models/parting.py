"""An optimised graph whose weights lie in a file, as stages with weights of their own: which ranges of that file each
stage has, and where in its own weights they lie then.

Rules
  - Only the graph is here, never the weights: who holds those copies the ranges (`Part.tensors`).
  - What a stage is and why it computes the same bytes: `stages`, `dividing`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx
from onnx import TensorProto

from strongroom.models.dividing import divide
from strongroom.models.stages import Line, Partition, Value, build, cut, cut_into

DROPS: Final = "drops"
"""Key of a stage's metadata: JSON, the values that no later stage reads."""
ALIGNMENT: Final = 64
"""Bytes: where a tensor begins in a stage's weights; what every kernel is content with."""
SHARE: Final = 12
"""Stages that would fit into the memory of a model in stages: five of them are there while it runs, the rest of the
memory is for those that stay."""
HEAP: Final = 48 << 20
"""Bytes that the heap keeps at most between the blocks of stages of several sizes; blocks of 32 MiB go back at once."""
LEAST: Final = 4 << 20
"""Bytes of a stage below which its loading costs more than its weights."""


@dataclass(frozen=True, slots=True)
class Range:
    """A tensor of a stage: `at` is where its bytes lie in the whole's weights, `offset` where in the stage's."""

    name: str
    kind: int
    dims: tuple[int, ...]
    at: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Part:
    """A stage: its graph (ONNX; weights external), and what its weights are made of, in their order."""

    graph: bytes
    tensors: tuple[Range, ...]

    @property
    def weights(self) -> int:
        """Bytes of its weights."""
        return max((tensor.offset + tensor.length for tensor in self.tensors), default=0)


def stage_limit(room: int) -> int:
    """Bytes of a stage's weights, where a model in stages may take `room` bytes of memory."""
    return max(LEAST, room // SHARE)


def part(graph: bytes, values: Mapping[str, Value], *, count: int | None, limit: int) -> tuple[Part, ...]:
    """The stages of an optimised model whose larger initializers are external: `count` or fewer of them, or with None
    as few as keep to `limit` bytes of weights each, as far as single nodes do.

    `values`: name -> what is known of the values that nodes make.

    Raises:
        ValueError: the graph is not one that an engine wrote: an external tensor without a place in the file.
    """
    model = onnx.ModelProto.FromString(graph)
    total = Line(model, values).weigh(0, len(model.graph.node))
    target = limit if count is None else max(LEAST, -(-total // count))
    divided, known = divide(model, values, limit=target)
    line = Line(divided, known)
    return tuple(_part(line, stage) for stage in _choice(line, count, limit).stages)


def _choice(line: Line, count: int | None, limit: int) -> Partition:
    if count is not None:
        return cut_into(line, count)
    found = cut(line, limit=limit)
    # One node that cannot be divided decides how much memory two stages take: the others need not be lighter.
    return cut(line, limit=found.largest_bytes) if found.largest_bytes > limit else found


def _part(line: Line, stage: Any) -> Part:
    model = build(line, stage)
    model.metadata_props.add(key=DROPS, value=json.dumps(sorted(set(stage.drops) - set(line.outputs))))
    ranges, offset = [], 0
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        at, length = int(said["offset"]), int(said["length"])
        if at < 0 or length < 0:
            raise ValueError("an external tensor lies nowhere")
        ranges.append(Range(tensor.name, tensor.data_type, tuple(tensor.dims), at, offset, length))
        del tensor.external_data[:]
        for key, value in (("location", "weights"), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        offset += -(-length // ALIGNMENT) * ALIGNMENT
    return Part(bytes(model.SerializeToString(deterministic=True)), tuple(ranges))


def resident(weights: Sequence[int], room: int) -> frozenset[int]:
    """The stages that stay in memory: evenly spread over those that there are, as many as `room` bytes hold besides
    what the others need on their way. `weights`: bytes of each stage.

    A stage under way is there twice (the one that runs, the one that is read), and once more as its kernels pack it;
    and the heap, from which stages of several sizes are packed, has twice that besides (measured: 25 MB for stages of
    9 MB, 41 for 17). One that stays is there as it was read and packed.
    """
    if not weights or 2 * sum(weights) <= room:
        return frozenset(range(len(weights)))
    left = room - _passing(max(weights))
    most = max(0, left) * len(weights) // max(1, 2 * sum(weights))
    chosen: set[int] = set()
    for number in range(most):
        place = math.floor((number + 0.5) * len(weights) / most)
        if 2 * weights[place] <= left:
            chosen.add(place)
            left -= 2 * weights[place]
    return frozenset(chosen)


def needed(weights: Sequence[int], stay: frozenset[int]) -> int:
    """Bytes of memory of a model in stages of which those in `stay` stay: what `resident` plans with."""
    moving = [size for number, size in enumerate(weights) if number not in stay]
    return 2 * sum(weights[number] for number in stay) + _passing(max(moving, default=0))


def _passing(largest: int) -> int:
    """Bytes for stages under way, of which the largest has so many."""
    return 3 * largest + min(2 * largest, HEAP)


def pack(parts: tuple[Part, ...]) -> tuple[dict[str, Any], bytes]:
    """What a process that cuts models answers (`partitioning`): sizes of the graphs; the graphs, and their tables."""
    table = json.dumps([[list(_row(tensor)) for tensor in part.tensors] for part in parts]).encode()
    return {"graphs": [len(part.graph) for part in parts]}, b"".join((*(part.graph for part in parts), table))


def _row(given: Range) -> tuple[str, int, tuple[int, ...], int, int, int]:
    return given.name, given.kind, given.dims, given.at, given.offset, given.length
