"""Which model format some bytes are in, told from the bytes alone: file names and declarations prove nothing.

Rules
  - Only the three formats that have a parser here are ever returned; everything else is refused, and what a
    person is likely to have sent by mistake (a pickle, a Keras archive, ...) is named in the refusal.
  - The forbidden signatures are looked at first. "ORTM" at byte 4 can also stand in a well-formed ONNX file
    (its producer's name); onnxruntime would take that file for its own FlatBuffers format and skip every ONNX
    check, hence such a file is refused whatever else it is.
  - Detection is a guess about the beginning. It admits nothing: the format's own parser does.
"""

from __future__ import annotations

import re
from typing import Final

from strongroom.errors import MalformedInput

HEAD_BYTES: Final = 64
"""How many bytes from the beginning `detect` wants; it looks at more if it is given more."""

_REFUSED: Final = (
    # offset, signature, what it is
    (4, b"ORTM", "an onnxruntime FlatBuffers model (.ort); send the ONNX file it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"PK\x03\x04", "a ZIP archive (Keras .keras, PyTorch .pt, numpy .npz)"),
    (0, b"PK\x05\x06", "a ZIP archive (Keras .keras, PyTorch .pt, numpy .npz)"),
    (0, b"\x1f\x8b", "gzip-compressed; send it uncompressed"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed; send it uncompressed"),
    (0, b"BZh", "bzip2-compressed; send it uncompressed"),
    (0, b"\xfd7zXZ", "xz-compressed; send it uncompressed"),
    (0, b"\x89HDF", "an HDF5 file (Keras .h5)"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"binf", "XGBoost's old binary format; save it again as JSON or UBJSON"),
    (0, b"bs64", "XGBoost's old binary format; save it again as JSON or UBJSON"),
    (0, b"<?xml", "XML (PMML)"),
    (0, b"\xef\xbb\xbf", "text with a byte-order mark"),
)

# Protocols 2 to 5 announce themselves; the text protocols 0 and 1 begin with a GLOBAL opcode or a mark.
_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]|c[A-Za-z_][\w.]*\n|\((?:[ld]p?\d*\n|c[A-Za-z_])")

# JSON text: an object whose first token is a member name, or that ends at once.
_JSON: Final = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*(?:[\"}]|\Z)")

# UBJSON: an object whose first token is a key's length (an integer type), a type or count mark, or its end.
_UBJSON: Final = re.compile(rb"\{(?:[iUIlL$#}]|\Z)")

# ModelProto's fields: number -> protobuf wire type (onnx.proto, IR version 14).
_MODEL_FIELDS: Final = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}

_OVERLONG: Final = 1 << 70


def detect(head: bytes | bytearray | memoryview) -> str:
    """Tells the format of a model from its first bytes: "onnx", "xgboost-json" or "xgboost-ubj".

    `head` is the beginning of the file, at least `HEAD_BYTES` long unless the file is shorter.

    Raises:
        MalformedInput: empty or unrecognised (code `format_unknown`), or a known format that is not accepted
            (code `format_not_accepted`).
    """
    start = bytes(head[: 16 * HEAD_BYTES])
    if not start:
        raise MalformedInput("expected a model, got zero bytes", code="format_unknown")
    for offset, signature, name in _REFUSED:
        if start[offset : offset + len(signature)] == signature:
            raise MalformedInput(_refusal(name), code="format_not_accepted")
    if _PICKLE.match(start):
        raise MalformedInput(
            _refusal("a Python pickle, which could run any code"), code="format_not_accepted"
        )
    # JSON before UBJSON: the patterns share only a lone "{" and "{}", which are models in neither.
    if _JSON.match(start):
        return "xgboost-json"
    if _UBJSON.match(start):
        return "xgboost-ubj"
    if _looks_like_model_proto(start):
        return "onnx"
    raise MalformedInput(_refusal("none of these"), code="format_unknown")


def _refusal(name: str) -> str:
    return f"expected an ONNX file or an XGBoost model saved as JSON or UBJSON; this is {name}"


def _looks_like_model_proto(start: bytes) -> bool:
    """Whether the bytes read as protobuf fields of a ModelProto, as far as they go.

    Protobuf has no signature. Most files begin with field 1 (`08`, IR version), but field order is free; so
    every tag up to the end of the head must name a field of ModelProto with that field's wire type.
    """
    position, fields = 0, 0
    while position < len(start):
        tag, position = _varint(start, position)
        if tag is None:
            break  # the head ends within a tag
        if _MODEL_FIELDS.get(tag >> 3) != tag & 7:
            return False
        fields += 1
        value, position = _varint(start, position)
        if value is None:
            break
        if value >= _OVERLONG:
            return False
        if tag & 7 == 2:
            position += value
    return fields > 0


def _varint(data: bytes, position: int) -> tuple[int | None, int]:
    """Reads a varint: (value, position after it), or (None, end) where the data ends within it.

    More than ten bytes read as `_OVERLONG`, which is no tag and no value.
    """
    value = 0
    for count in range(10):
        if position >= len(data):
            return None, position
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position
    return _OVERLONG, position
