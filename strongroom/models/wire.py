"""Bytes that say they are an ONNX model, read strictly (`docs/spec/admission.md` §1 and §2).

Rules
  - One model in a file: protobuf merges what is written one after the other, so that a reviewer's reader, which
    may stop at the first, would see another model than the engine.
  - No unknown fields: they are of a format that nobody here knows, and mean something to somebody.
  - Versions are those that the pinned onnxruntime implements.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # has no stubs
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]  # has no stubs

from strongroom.errors import MalformedInput
from strongroom.models.values import refuse

MIN_IR, MAX_IR = 3, 14
"""IR versions: from the first released one to the latest that the pinned onnxruntime reads."""
OPSETS: Final = {"": (7, 28), "ai.onnx.ml": (1, 5)}
"""Versions of each operator set that the pinned onnxruntime implements."""
_REPEATED: Final = frozenset({8, 14, 20, 25, 26})
"""Fields of a ModelProto that may stand more than once: imports, metadata, training, functions, configurations."""


def read_model(data: bytes | bytearray) -> Any:
    """The ModelProto that these bytes are; a bytearray is emptied.

    Raises:
        MalformedInput: no protobuf, or several models in one (codes `onnx_malformed`, `onnx_merged`).
        AdmissionRefused: a field that no version of the format has (code `onnx_unknown_field`).
    """
    _check_fields(data)
    try:
        # protobuf reads a bytearray in place; a copy would double the memory and keep other threads waiting.
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise MalformedInput("the bytes are not an ONNX ModelProto", code="onnx_malformed") from None
    if isinstance(data, bytearray):
        data.clear()  # before the model is written again, which takes twice its size
    if _has_unknown(model):
        refuse("the file has a field that the format does not have", "onnx_unknown_field")
    return model


def _has_unknown(message: Any) -> bool:
    """Whether a message, or one below it, has a field that its type does not; reads no contents."""
    if len(UnknownFieldSet(message)):
        return True
    for name, repeated in _below(message.DESCRIPTOR):
        if repeated:
            if any(map(_has_unknown, getattr(message, name))):
                return True
        elif message.HasField(name) and _has_unknown(getattr(message, name)):
            return True
    return False


@functools.cache
def _below(descriptor: Any) -> tuple[tuple[str, bool], ...]:
    """The fields of a message type that hold messages: name, whether repeated."""
    return tuple((f.name, f.is_repeated) for f in descriptor.fields if f.message_type is not None)


def written(model: Any) -> tuple[bytearray, int]:
    """The bytes of a model, and where they begin in the buffer; part by part, so that they exist once.

    protobuf's own way takes the size of the model twice more. Fields are written in the order of their numbers.
    """
    parts = bytearray(_GAP)
    for field in sorted(model.graph.DESCRIPTOR.fields, key=lambda field: field.number):
        _write(parts, model.graph, field)
    # What stands before the graph goes into the gap, right before it.
    head, tail = bytearray(), bytearray()
    for field in sorted(model.DESCRIPTOR.fields, key=lambda field: field.number):
        if field.number < _GRAPH:
            _write(head, model, field)
        elif field.number > _GRAPH:
            _write(tail, model, field)
    head += _key(_GRAPH) + number(len(parts) - _GAP)
    start = _GAP - len(head)
    parts[start:_GAP] = head
    parts += tail
    return parts, start


_GRAPH: Final = 7
"""The field of a ModelProto that holds its graph."""
_GAP: Final = 64
"""Bytes for what stands before the graph: a version and a length."""


def _write(out: bytearray, message: Any, field: Any) -> None:
    """One field of a message, in all its entries."""
    if field.message_type is not None:
        if not field.is_repeated and not message.HasField(field.name):
            return
        for entry in getattr(message, field.name) if field.is_repeated else (getattr(message, field.name),):
            data = entry.SerializeToString(deterministic=True)
            out += _key(field.number) + number(len(data))
            out += data
    elif message.HasField(field.name):
        value = getattr(message, field.name)
        if isinstance(value, int):
            out += number(field.number << 3) + number(value)
        else:
            data = value.encode()
            out += _key(field.number) + number(len(data)) + data


def _key(field: int) -> bytes:
    return number(field << 3 | 2)


def number(value: int) -> bytes:
    """A whole number that is not negative, as protobuf writes it: seven bits a byte."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _check_fields(data: bytes | bytearray) -> None:
    """Each field of the model but the repeated ones at most once (§1.4). Reads the outermost level only."""
    seen: set[int] = set()
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if number in seen and number not in _REPEATED:
            raise MalformedInput("the file holds more than one model", code="onnx_merged")
        seen.add(number)
        if kind == 0:
            _, position = _varint(data, position)
        elif kind == 2:
            length, position = _varint(data, position)
            position += length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise MalformedInput("the bytes are not an ONNX ModelProto", code="onnx_malformed")
    if position != end:
        raise MalformedInput("the bytes are not an ONNX ModelProto", code="onnx_malformed")


def _varint(data: bytes | bytearray, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise MalformedInput("the bytes are not an ONNX ModelProto", code="onnx_malformed")


def check_versions(model: Any) -> dict[str, int]:
    """Domain -> version of the operator sets that the model imports (§2.1).

    Raises:
        AdmissionRefused: a version that is not run here (code `onnx_version`).
    """
    if not MIN_IR <= model.ir_version <= MAX_IR:
        refuse(f"IR version {model.ir_version}; {MIN_IR} to {MAX_IR} are run", "onnx_version")
    imports = imports_of(model.opset_import)
    if not imports.keys() & OPSETS.keys():
        refuse("the model imports no standard operator set", "onnx_version")
    return imports


def imports_of(entries: Iterable[Any]) -> dict[str, int]:
    """Domain -> version; a domain may stand twice with one version (skl2onnx writes it so), not with two."""
    imports: dict[str, int] = {}
    for entry in entries:
        domain = domain_of(entry.domain)
        if imports.setdefault(domain, entry.version) != entry.version:
            refuse("an operator set is imported in two versions", "onnx_version")
        low, high = OPSETS.get(domain, (entry.version, entry.version))
        if not low <= entry.version <= high:
            refuse(f"opset {entry.version} of a standard domain; {low} to {high} are run", "onnx_version")
    return imports


def domain_of(domain: str) -> str:
    """The domain under its one name: `ai.onnx` is the empty one."""
    check_text(domain)
    return "" if domain == "ai.onnx" else domain


def check_text(text: object) -> None:
    """Refuses what is not UTF-8: proto2 strings are not checked by the parser: what is not UTF-8 comes out as bytes."""
    if not isinstance(text, str):
        refuse("a name in the model is not UTF-8", "onnx_name")


def clear(message: Any) -> None:
    """Takes out text for people: nothing runs it, and whatever it says would be sealed with the model."""
    message.ClearField("doc_string")
    message.ClearField("metadata_props")
