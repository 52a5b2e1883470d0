"""A prepared form of one stage made into one of several (`docs/partitioning.md`; ADR 0019).

    whole form ──graph and table──► confined process ──graphs and tables──► for each stage: ranges of the whole's
                                                                            weights, copied chunk by chunk, and sealed

Rules
  - Where to cut is found out in a fresh process that is locked down: the graph is what an engine made of a stranger's
    bytes. It gets no weights: what decides is their sizes.
  - What it says is counted and checked against the whole: ranges of its weights, and no more of them than a few times
    the whole.
  - The server holds one chunk of weights at a time; nothing is committed before every chunk of the whole was opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from strongroom.admission import SPARE_S, ChildLimits
from strongroom.errors import LimitExceeded
from strongroom.frames import receive, send
from strongroom.models.parting import ALIGNMENT, Part, Range
from strongroom.prepared import MAX_STAGES
from strongroom.sealed import TAG_BYTES, Opening
from strongroom.stages import (
    GRAPH_BYTES,
    LENGTHS,
    MAX_TENSORS,
    TABLE_BYTES,
    Tensor,
    different,
    layout,
    parse_table,
    tail,
    tensor,
)
from strongroom.zygote import PARTER, Nursery, Timely

TIMES: Final = 4
"""Bytes of all stages for each byte of the whole: weights that several of them read are in each."""


class Reading:
    """Ranges of a sealed stage's bytes. The last chunk that was opened is kept."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self._scratch = memoryview(bytearray(min(opening.chunk_size, opening.length) + TAG_BYTES))
        self._plain = memoryview(bytearray(min(opening.chunk_size, opening.length)))
        self._here = -1
        self._missing = set(range(opening.chunks))

    def pieces(self, at: int, length: int) -> Iterator[memoryview]:
        """The bytes from `at` on, each piece valid until the next one is asked for.

        Raises:
            SealRefused, OSError: as `Opening.open_chunk`.
        """
        size = self.opening.chunk_size
        while length:
            number, begin = divmod(at, size)
            whole = self._chunk(number)
            piece = whole[begin : begin + length]
            yield piece
            at, length = at + len(piece), length - len(piece)

    def read(self, at: int, length: int) -> bytes:
        """The same in one piece."""
        return b"".join(bytes(piece) for piece in self.pieces(at, length))

    def finish(self) -> None:
        """Opens the chunks that were not opened yet: before that nothing of the others may be used (sealed.md §2.4)."""
        for number in sorted(self._missing):
            self._chunk(number)

    def _chunk(self, number: int) -> memoryview:
        plain = self._plain[: self.opening.size_of(number)]
        if number != self._here:
            self._here = -1
            self.opening.open_chunk(number, plain, scratch=self._scratch)
            self._here = number
            self._missing.discard(number)
        return plain


def end_of(reading: Reading) -> bytes:
    """What follows the weights in a stage.

    Raises:
        ValueError: it is no stage. SealRefused, OSError: as `Reading.pieces`.
    """
    length = reading.opening.length
    if length < LENGTHS.size:
        raise ValueError("too short")
    weights, graph, table = LENGTHS.unpack(reading.read(length - LENGTHS.size, LENGTHS.size))
    if weights + graph + table + LENGTHS.size != length or graph > GRAPH_BYTES or table > TABLE_BYTES:
        raise ValueError("its lengths are not those of its parts")
    return reading.read(weights, length - weights)


def parts_of(
    reading: Reading,
    nursery: Nursery,
    *,
    count: int | None,
    limit: int,
    child: ChildLimits,
    layers: tuple[str, ...],
) -> tuple[Part, ...]:
    """The stages of the whole, as `models.parting.part` finds them in a confined process.

    Raises:
        LimitExceeded: it ended, or took more time or memory than it may (code `preparation_limits`).
        ValueError: it says what it cannot. SealRefused, OSError: as `Reading.pieces`.
        Unavailable, Failure: as `Nursery.fork`.
    """
    end = end_of(reading)
    found = layout(memoryview(end), size=reading.opening.length)
    header = {
        "size": reading.opening.length,
        "largest": max((entry.length for entry in found.tensors), default=0),
        "count": count,
        "limit": limit,
        "child": dataclasses.asdict(child),
        "layers": list(layers),
    }
    with nursery.fork(PARTER) as process:
        timely = Timely(process.end, child.wall_s + SPARE_S)
        try:
            send(timely, header, end)
            answer, data = receive(timely, most=2 * GRAPH_BYTES + TABLE_BYTES)
        except (OSError, EOFError, MemoryError):
            raise LimitExceeded(
                "cutting the model took more time or memory than it may, or ended its process",
                code="preparation_limits",
            ) from None
    return _believed(answer, data, weights=found.weights)


def _believed(answer: dict[str, Any], data: bytearray, *, weights: int) -> tuple[Part, ...]:
    sizes = answer.get("graphs")
    if not isinstance(sizes, list) or not 1 <= len(sizes) <= MAX_STAGES or set(answer) != {"graphs"}:
        raise ValueError("a partition has stages")
    if any(type(size) is not int or not 1 <= size <= GRAPH_BYTES for size in sizes):
        raise ValueError("graphs have sizes")
    if not 0 <= len(data) - sum(sizes) <= TABLE_BYTES:
        raise ValueError("graphs and table are as long as they are")
    tables = parse_table(bytes(data[sum(sizes) :]))
    if len(tables) != len(sizes):
        raise ValueError("each stage has a table")
    parts, at = [], 0
    for size, entries in zip(sizes, tables, strict=True):
        parts.append(Part(bytes(data[at : at + size]), _ranges(entries, weights)))
        at += size
    if sum(part.weights for part in parts) > TIMES * max(1, weights):
        raise ValueError("the stages have more weights than they may")
    return tuple(parts)


def _ranges(entries: object, weights: int) -> tuple[Range, ...]:
    """Of one stage: its tensors, each where it has to be behind the one before."""
    if not isinstance(entries, list) or len(entries) > MAX_TENSORS:
        raise ValueError("a table")
    ranges, tensors, offset = [], [], 0
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 6:
            raise ValueError("a range")
        name, kind, dims, at, said, length = entry
        if type(said) is not int or said != offset:
            raise ValueError("a range is not where it has to be in its stage")
        found = tensor(name, kind, dims, at, length, weights=weights)
        tensors.append(found)
        ranges.append(Range(found.name, found.type, found.dimensions, found.offset, offset, found.length))
        offset += -(-found.length // ALIGNMENT) * ALIGNMENT
    different(tensors)
    return tuple(ranges)


def pieces_of(reading: Reading, part: Part) -> Iterator[bytes | memoryview]:
    """The bytes of one stage, to be sealed as they come."""
    written = 0
    for entry in part.tensors:
        if entry.offset > written:
            yield bytes(entry.offset - written)
        yield from reading.pieces(entry.at, entry.length)
        written = entry.offset + entry.length
    tensors = [Tensor(t.name, t.kind, t.dims, t.offset, t.length) for t in part.tensors]
    yield tail(part.graph, tensors, weights=part.weights)
