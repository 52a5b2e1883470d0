"""A model's prepared form: what the engine derived from canonical bytes, as the record names it: one sealed file for
each stage (`stages` says what is in one). It has one stage, or several that run one after the other.

Rules
  - The facts that a stage's key is wrapped with say which model it is of, whose, which engine, options and processor
    made it, and which stage of how many it is (docs/spec/sealed.md §5.6): moved anywhere else it does not open.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from strongroom.errors import SealRefused, check_member
from strongroom.sealed import MAX_CHUNK_SIZE, WRAPPED_BYTES, chunk_count

MAX_STAGES: Final = 1024
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
