"""A model's prepared form: what the engine derived from canonical bytes, in one sealed file for each stage of it.

A form has one stage, or several that run one after the other. A stage's bytes, as they lie in its file once opened:

    weights      as the engine wrote them; each tensor at its offset from the first byte on
    graph        an ONNX model whose larger initializers have no content of their own
    table        JSON: [[name, type, dimensions, offset, length], ...], the weights' tensors
    lengths      bytes of weights, graph and table: 8 bytes each, big endian

Rules
  - The facts that a stage's key is wrapped with say which model it is of, whose, which engine, options and processor
    made it, and which stage of how many it is (docs/spec/sealed.md §5.6): moved anywhere else it does not open.
  - What is in a stage came from a process that had read a stranger's bytes. Every number in it is checked against
    the bytes that are there.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from strongroom.errors import SealRefused, check_member
from strongroom.sealed import MAX_CHUNK_SIZE, WRAPPED_BYTES, chunk_count

MAX_STAGES: Final = 1024
MAX_TENSORS: Final = 1 << 20
TABLE_BYTES: Final = 64 << 20
"""Bytes of a table of tensors."""
GRAPH_BYTES: Final = 64 << 20
"""Bytes of a stage's graph: nodes and small tensors; the largest published networks have less than one million."""
LENGTHS: Final = struct.Struct(">QQQ")
_HEX32: Final = re.compile(r"[0-9a-f]{32}")
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_WRAPPED: Final = re.compile(rf"[0-9a-f]{{{2 * WRAPPED_BYTES}}}")
_TEXT_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Making:
    """What a form depends on besides the model: another value of any of these means another form."""

    engine: str
    """Its name, version and options, as it says them itself (`engine.identity`)."""
    processor: str
    """What the processor can do (`processor.features`)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One sealed file of a form; the members as those of `state.Entry`."""

    file: str
    file_id: bytes
    length: int
    chunk_size: int
    chunks: int
    wrapped_key: bytes

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "file": self.file,
            "file_id": self.file_id.hex(),
            "length": self.length,
            "chunk_size": self.chunk_size,
            "chunks": self.chunks,
            "wrapped_key": self.wrapped_key.hex(),
        }


@dataclass(frozen=True, slots=True)
class Form:
    """A prepared form as the record names it."""

    making: Making
    stages: tuple[Stage, ...]

    @property
    def length(self) -> int:
        """Bytes of all stages."""
        return sum(stage.length for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "engine": self.making.engine,
            "processor": self.making.processor,
            "stages": [stage.to_json() for stage in self.stages],
        }

    @classmethod
    def from_json(cls, value: object) -> Form:
        """Reads what `to_json` wrote.

        Raises:
            SealRefused: anything else (code `store_record_malformed`).
        """
        members = _members(value, "engine", "processor", "stages")
        stages = members["stages"]
        _check(isinstance(stages, list) and 1 <= len(stages) <= MAX_STAGES, "a form has stages")
        for name in ("engine", "processor"):
            text = members[name]
            _check(isinstance(text, str) and 0 < len(text) <= _TEXT_CHARACTERS, "engine or processor")
        making = Making(engine=members["engine"], processor=members["processor"])
        return cls(making=making, stages=tuple(_stage(entry) for entry in stages))


def facts(
    *, name: str, owner: str, canonical_sha256: str, making: Making, number: int, of: int, stage: Stage
) -> bytes:
    """What a stage's key is bound to: the associated data of its wrapped key. `number` counts from 0."""
    file = stage.to_json()
    del file["wrapped_key"]
    described = {
        "name": name,
        "owner": owner,
        "canonical_sha256": canonical_sha256,
        "engine": making.engine,
        "processor": making.processor,
        "stage": number,
        "stages": of,
        **file,
    }
    return b"strongroom sealed v1 form\n" + json.dumps(described, separators=(",", ":")).encode()


# A stage's bytes


class Tensor(NamedTuple):
    """A tensor of the weights: `type` is ONNX's TensorProto.DataType; offset and length in bytes."""

    name: str
    type: int
    dimensions: tuple[int, ...]
    offset: int
    length: int


class Layout(NamedTuple):
    """Where a stage's parts lie: bytes of weights, of the graph behind them, and the tensors."""

    weights: int
    graph: int
    tensors: tuple[Tensor, ...]


def tail(graph: bytes | memoryview, tensors: Sequence[Tensor], *, weights: int) -> bytes:
    """What follows `weights` bytes of weights in a stage."""
    table = json.dumps([list(tensor) for tensor in tensors], separators=(",", ":")).encode()
    return b"".join((graph, table, LENGTHS.pack(weights, len(graph), len(table))))


def layout(stage: memoryview) -> Layout:
    """Takes a stage's bytes apart; nothing is copied but the table.

    Raises:
        ValueError: they are not those of a stage.
    """
    if len(stage) < LENGTHS.size:
        raise ValueError("too short")
    weights, graph, table = LENGTHS.unpack_from(stage, len(stage) - LENGTHS.size)
    if weights + graph + table + LENGTHS.size != len(stage) or table > TABLE_BYTES or graph > GRAPH_BYTES:
        raise ValueError("its lengths are not those of its parts")
    at = weights + graph
    try:
        entries = json.loads(bytes(stage[at : at + table]))
    except RecursionError:
        raise ValueError("its table") from None
    if not isinstance(entries, list) or len(entries) > MAX_TENSORS:
        raise ValueError("its table")
    return Layout(weights, graph, tuple(_tensor(entry, weights) for entry in entries))


def _tensor(entry: object, weights: int) -> Tensor:
    if not isinstance(entry, list) or len(entry) != 5:
        raise ValueError("a tensor")
    name, kind, dimensions, offset, length = entry
    numbers = [kind, offset, length, *dimensions] if isinstance(dimensions, list) else [None]
    if not isinstance(name, str) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor")
    if offset + length > weights or math.prod(dimensions) > 16 * max(1, length):
        raise ValueError("a tensor lies outside the weights")
    return Tensor(name, kind, tuple(dimensions), offset, length)


# The record's JSON


def _stage(value: object) -> Stage:
    members = _members(value, "file", "file_id", "length", "chunk_size", "chunks", "wrapped_key")
    for name in ("length", "chunk_size", "chunks"):
        number = members[name]
        _check(type(number) is int and 1 <= number < 1 << 63, "a number is out of range")
    length, chunk_size = members["length"], members["chunk_size"]
    _check(chunk_size <= MAX_CHUNK_SIZE, "a chunk is too large")
    _check(members["chunks"] == chunk_count(length, chunk_size=chunk_size), "the number of chunks")
    for name, form in (("file", _HEX32), ("file_id", _HEX64), ("wrapped_key", _WRAPPED)):
        text = members[name]
        _check(isinstance(text, str) and form.fullmatch(text) is not None, "a string is not of its form")
    return Stage(
        file=members["file"],
        file_id=bytes.fromhex(members["file_id"]),
        length=length,
        chunk_size=chunk_size,
        chunks=members["chunks"],
        wrapped_key=bytes.fromhex(members["wrapped_key"]),
    )


def _members(value: object, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise SealRefused(
            "the store's record: an object of a form has other members", code="store_record_malformed"
        )
    return value


def _check(condition: bool, message: str) -> None:
    check_member(
        condition, f"the store's record: a form: {message}", SealRefused, code="store_record_malformed"
    )
