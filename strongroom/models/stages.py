"""A graph cut into stages that run one after another: where to cut, and what each stage takes, gives and weighs.

Rules
  - Only the engine's own optimised form of an admitted model comes here (`docs/partitioning.md`): names are unique,
    nodes stand in an order in which they can run, and that is the order in which the stages run them. No node is
    changed, so with optimisation off the stages compute the same bytes as the whole.
  - A cut lies between two nodes of the outermost graph: what is inside If, Loop and Scan, with all that it reads
    from around it, stays in one stage.
  - What crosses a cut is a tensor. Where a sequence or an optional value is alive, or one whose type nobody knows,
    there is no cut.
  - Nothing is passed along by a stage: whoever runs them keeps what a later one reads (`Stage.drops` says until when).
  - Everything follows from the graph: the same graph and the same limit give the same stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import onnx
from onnx import TypeProto, ValueInfoProto

from strongroom.models.rewrite import inner, reads_below
from strongroom.partition import MOST

SMALL: Final = 1 << 10
"""Bytes up to which a constant weighs nothing: axes, shapes and scalars lie between all nodes."""
A_CUT: Final = 1 << 20
"""Bytes that a cut itself is worth: the loading of a stage takes as long as reading a tensor of about that size."""
UNKNOWN: Final = 1 << 20
"""Bytes of a value of which no size is known."""
PLACES: Final = 512
"""Places at which cuts are considered; in a graph with more, neighbours are taken together."""
_BITS: Final[Mapping[int, int]] = {
    int(getattr(onnx.TensorProto, name)): bits
    for name, bits in {
        "FLOAT": 32, "DOUBLE": 64, "FLOAT16": 16, "BFLOAT16": 16, "INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64,
        "UINT8": 8, "UINT16": 16, "UINT32": 32, "UINT64": 64, "BOOL": 8, "STRING": 128,
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that may cross a cut: `kind` of TensorProto's data types, and its shape as far as it is known.

    Open dimensions count as one element: which cut is cheaper hardly depends on them.
    """

    kind: int
    shape: tuple[int | None, ...] | None

    @property
    def size(self) -> int:
        """Bytes, for the choice of cuts only."""
        if self.shape is None:
            return UNKNOWN
        return -(-math.prod(size or 1 for size in self.shape) * _BITS.get(self.kind, 64) // 8)


@dataclass(frozen=True, slots=True)
class Stage:
    """Nodes `first` up to `end`, and the names of what they need and make."""

    first: int
    end: int
    weights: tuple[str, ...]
    """Constants that they read, in the order of the graph; one that two stages read is in both."""
    weight_bytes: int
    """Of the constants, and of what the nodes themselves hold."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    drops: tuple[str, ...]
    """Values that no later stage reads: to be forgotten when this one has run."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A way to cut a graph: at least one stage."""

    stages: tuple[Stage, ...]
    crossing_bytes: int
    """Bytes alive at each cut, summed, open dimensions counted as one."""

    @property
    def largest_bytes(self) -> int:
        """Weights of the heaviest stage."""
        return max(stage.weight_bytes for stage in self.stages)


class Line:
    """A graph as a line of nodes: what each needs and weighs, and what is alive between two of them."""

    def __init__(self, model: Any, values: Mapping[str, Value]) -> None:
        """`model`: ModelProto, its constants inside or outside of it. `values`: name -> what is known of the values
        that nodes make; only those can cross a cut.
        """
        graph = model.graph
        self.model, self.values = model, values
        self.sizes = {tensor.name: tensor_bytes(tensor) for tensor in graph.initializer}
        self.inputs = tuple(entry.name for entry in graph.input if entry.name not in self.sizes)
        self.outputs = tuple(entry.name for entry in graph.output)
        self.own = [_own_bytes(node) for node in graph.node]
        """Bytes of what each node holds in itself."""
        made = {name for node in graph.node for name in node.output if name}
        known = made | set(self.inputs) | self.sizes.keys()
        self.reads = [_reads(node, known) for node in graph.node]
        self.weights = [tuple(name for name in names if name in self.sizes) for names in self.reads]
        self.last = {name: number for number, names in enumerate(self.reads) for name in names}
        self.last |= dict.fromkeys(self.outputs, len(self.reads))
        self.maker = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
        self.crossing = self._crossing()
        """Position -> bytes alive before the node of that number; None where there can be no cut."""

    def _crossing(self) -> list[int | None]:
        count = len(self.reads)
        change = [0] * (count + 1)
        barred = [0] * (count + 1)
        for name, number in self.maker.items():
            end = self.last.get(name, number)
            known = self.values.get(name)
            if end > number:  # alive before nodes number + 1 up to `end`
                for line, amount in ((change, known.size if known else 0), (barred, 0 if known else 1)):
                    line[number + 1] += amount
                    if end < count:
                        line[end + 1] -= amount
        sums: list[int | None] = []
        alive = bars = 0
        for position in range(count + 1):
            alive, bars = alive + change[position], bars + barred[position]
            sums.append(None if bars else alive)
        return sums

    def weigh(self, first: int, end: int) -> int:
        """Bytes of all constants that the nodes read, each once, and of the nodes themselves."""
        names = {name for number in range(first, end) for name in self.weights[number]}
        return sum(self.sizes[name] for name in names) + sum(self.own[first:end])

    def stage(self, first: int, end: int) -> Stage:
        """The stage of these nodes."""
        whole_end = len(self.reads)
        read = dict.fromkeys(name for number in range(first, end) for name in self.reads[number])
        if end == whole_end:  # an output that is a constant
            read |= dict.fromkeys(name for name in self.outputs if name in self.sizes)
        made = [
            name
            for node in self.model.graph.node[first:end]
            for name in node.output
            if name and self.last.get(name, -1) >= end
        ]
        inputs = tuple(n for n in read if n not in self.sizes and not first <= self.maker.get(n, -1) < end)
        constant = tuple(name for name in self.outputs if name in self.sizes) if end == whole_end else ()
        outputs = tuple(dict.fromkeys((*made, *constant)))
        drops = tuple(name for name in inputs if self.last[name] < end)
        weights = tuple(name for name in self.sizes if name in read)
        size = sum(self.sizes[name] for name in weights) + sum(self.own[first:end])
        return Stage(first, end, weights, size, inputs, outputs, drops)


def cut(line: Line, *, limit: int) -> Partition:
    """The partition whose stages weigh `limit` bytes at the most, with the least bytes across its cuts.

    Where single nodes, or what lies between two possible cuts, weigh more, they are stages of their own: see
    `Partition.largest_bytes`. At most `MOST` stages, heavier ones where that is too few.
    """
    places = _places(line)
    limit = max(limit, _least(line, places, MOST))
    return _partition(line, _best(line, places, limit))


def cut_into(line: Line, count: int) -> Partition:
    """The partition into `count` stages or fewer whose heaviest stage is as light as it can be; of those, the one with
    the least bytes across its cuts.
    """
    places = _places(line)
    return _partition(line, _best(line, places, _least(line, places, max(1, min(count, MOST)))))


def build(line: Line, stage: Stage) -> Any:
    """The stage as a model of its own (ModelProto), its constants where they were: inside or outside.

    What other stages gave it are inputs of known type and any shape; what it gives others are outputs, of which the
    engine finds out the types.
    """
    whole = line.model
    made = onnx.ModelProto(ir_version=whole.ir_version, producer_name=whole.producer_name)
    made.opset_import.extend(whole.opset_import)
    made.functions.extend(whole.functions)
    made.graph.name = "stage"
    made.graph.node.extend(whole.graph.node[stage.first : stage.end])
    needed = set(stage.weights)
    made.graph.initializer.extend(tensor for tensor in whole.graph.initializer if tensor.name in needed)
    declared = {entry.name: entry for entry in (*whole.graph.input, *whole.graph.output)}
    for name in stage.inputs:
        made.graph.input.append(declared[name] if name in declared else _input(name, line.values[name]))
    for name in stage.outputs:
        made.graph.output.append(declared.get(name, ValueInfoProto(name=name)))
    return made


def _input(name: str, value: Value) -> Any:
    return ValueInfoProto(name=name, type=TypeProto(tensor_type=TypeProto.Tensor(elem_type=value.kind)))


def tensor_bytes(tensor: Any) -> int:
    """Bytes of a constant, wherever it lies; 0 where it is `SMALL`."""
    if tensor.data_type == onnx.TensorProto.STRING:
        size = sum(map(len, tensor.string_data)) + 16 * len(tensor.string_data)
    else:
        size = -(-math.prod(tensor.dims) * _BITS.get(tensor.data_type, 64) // 8)
    return 0 if size <= SMALL else size


def _own_bytes(node: Any) -> int:
    size = int(node.ByteSize())
    return 0 if size <= SMALL else size


def _reads(node: Any, known: Iterable[str]) -> tuple[str, ...]:
    """Values and constants of the outermost graph that a node reads, or a graph inside of it."""
    names = dict.fromkeys(node.input)
    for graph in inner(node):
        names |= dict.fromkeys(reads_below(graph))
    return tuple(name for name in names if name in known)


def _partition(line: Line, cuts: Sequence[int]) -> Partition:
    ends = [*cuts, len(line.reads)]
    stages = [line.stage(first, end) for first, end in zip([0, *cuts], ends, strict=True)]
    return Partition(tuple(stages), sum(line.crossing[position] or 0 for position in cuts))


# Where to cut


def _places(line: Line) -> list[int]:
    """Positions of possible cuts: between two nodes that weigh something, the one where the least is alive.

    The first is 0, the last the number of nodes. No other position can be better: moving a cut over nodes without
    weight changes no stage's weight.
    """
    count = len(line.reads)
    weight = [line.weigh(number, number + 1) for number in range(count)]
    least = 0 if sum(map(bool, weight)) < PLACES else sum(weight) // PLACES
    places, gathered = [0], 0
    best: int | None = None
    for position in range(1, count):
        if weight[position - 1]:
            if best is not None and gathered > least:
                places.append(best)
                best, gathered = None, 0
            gathered += weight[position - 1]
        alive = line.crossing[position]
        known = None if best is None else line.crossing[best]
        if gathered and alive is not None and (known is None or alive < known):
            best = position
    if best is not None and any(weight[best:]):
        places.append(best)
    return [*places, count]


def _best(line: Line, places: Sequence[int], limit: int) -> list[int]:
    """Cuts with the least bytes alive among those that keep to `limit`: dynamic programming over `places`."""
    cost: list[float] = [0.0]
    before = [0]
    for at in range(1, len(places)):
        best, chosen, seen, size = math.inf, at - 1, set[str](), 0
        for start in range(at - 1, -1, -1):
            for number in range(places[start], places[start + 1]):
                size += line.own[number]
                fresh = [name for name in line.weights[number] if name not in seen]
                seen.update(fresh)
                size += sum(line.sizes[name] for name in fresh)
            if size > limit and start < at - 1:
                break
            alive = (line.crossing[places[start]] or 0) + A_CUT if start else 0
            if cost[start] + alive <= best:  # of equals the longer stage
                best, chosen = cost[start] + alive, start
        cost.append(best)
        before.append(chosen)
    cuts, at = [], before[-1]
    while at > 0:
        cuts.append(places[at])
        at = before[at]
    return cuts[::-1]


def _fewest(line: Line, places: Sequence[int], limit: int) -> int:
    """Stages that there are at least where each keeps to `limit`."""
    count, start = 0, 0
    while start < len(places) - 1:
        seen, size, at = set[str](), 0, start
        while at < len(places) - 1:
            for number in range(places[at], places[at + 1]):
                size += line.own[number]
                fresh = [name for name in line.weights[number] if name not in seen]
                seen.update(fresh)
                size += sum(line.sizes[name] for name in fresh)
            if size > limit and at > start:
                break
            at += 1
        start, count = at, count + 1
    return count


def _least(line: Line, places: Sequence[int], count: int) -> int:
    """The least limit with which `count` stages are enough, in bytes."""
    low = max(line.weigh(a, b) for a, b in pairwise(places)) if len(places) > 1 else 0
    high = max(low, line.weigh(0, len(line.reads)))
    while low < high:
        middle = (low + high) // 2
        if _fewest(line, places, middle) <= count:
            high = middle
        else:
            low = middle + 1
    return low
