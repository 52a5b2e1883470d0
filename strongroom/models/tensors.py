"""Constant tensors of a model: whole, in this file, and as long as their shape says (`docs/spec/admission.md` §3).

A runtime that trusts a length reads other memory; external data reads the host's files; a tensor with two sets
of data is one thing to a reviewer and another to the engine. Counting is in Python's integers, which do not wrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, NoReturn

import onnx

from strongroom.errors import AdmissionRefused

MAX_RANK: Final = 32
"""Dimensions of a tensor, as on the wire."""

_T = onnx.TensorProto

# Element type -> (bits in raw_data, the typed field that may hold it instead, entries of it an element).
_STORAGE: Final = {
    _T.FLOAT: (32, "float_data", 1), _T.DOUBLE: (64, "double_data", 1),
    _T.COMPLEX64: (64, "float_data", 2), _T.COMPLEX128: (128, "double_data", 2),
    _T.INT64: (64, "int64_data", 1), _T.UINT32: (32, "uint64_data", 1), _T.UINT64: (64, "uint64_data", 1),
    _T.INT32: (32, "int32_data", 1), _T.INT16: (16, "int32_data", 1), _T.UINT16: (16, "int32_data", 1),
    _T.INT8: (8, "int32_data", 1), _T.UINT8: (8, "int32_data", 1), _T.BOOL: (8, "int32_data", 1),
    _T.FLOAT16: (16, "int32_data", 1), _T.BFLOAT16: (16, "int32_data", 1),
    _T.FLOAT8E4M3FN: (8, "int32_data", 1), _T.FLOAT8E4M3FNUZ: (8, "int32_data", 1),
    _T.FLOAT8E5M2: (8, "int32_data", 1), _T.FLOAT8E5M2FNUZ: (8, "int32_data", 1),
    _T.FLOAT8E8M0: (8, "int32_data", 1),
    _T.INT4: (4, "int32_data", 1), _T.UINT4: (4, "int32_data", 1), _T.FLOAT4E2M1: (4, "int32_data", 1),
    _T.INT2: (2, "int32_data", 1), _T.UINT2: (2, "int32_data", 1),
}  # fmt: skip
_TYPED_FIELDS: Final = (
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)


def check_tensor(tensor: Any) -> int:
    """Returns the bytes of a tensor that keeps the rules; takes out what only states the default.

    Raises:
        AdmissionRefused: codes `onnx_external_data`, `onnx_tensor`.
    """
    if tensor.external_data or tensor.data_location != _T.DEFAULT:
        _refuse("a tensor's data lies outside the file", "onnx_external_data")
    tensor.ClearField("data_location")
    dims = tuple(tensor.dims)
    if tensor.HasField("segment") or len(dims) > MAX_RANK or any(size < 0 for size in dims):
        _refuse("a tensor is segmented, or has a negative or too many dimensions", "onnx_tensor")
    return _check_storage(tensor, math.prod(dims))


def _refuse(message: str, code: str) -> NoReturn:
    raise AdmissionRefused(message, code=code)


def _check_storage(tensor: Any, count: int) -> int:
    """One data field, of exactly the right length; returns the tensor's size in bytes."""
    fields = [name for name in _TYPED_FIELDS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        fields.append("raw_data")
    if len(fields) > 1:
        _refuse("a tensor has two sets of data", "onnx_tensor")
    kind = next(iter(fields), None)
    if tensor.data_type == _T.STRING:
        if kind not in (None, "string_data") or len(tensor.string_data) != count:
            _refuse("a tensor of strings does not have the elements of its shape", "onnx_tensor")
        return sum(map(len, tensor.string_data))
    if tensor.data_type not in _STORAGE:
        _refuse("a tensor has no element type that is known", "onnx_tensor")
    bits, typed, entries = _STORAGE[tensor.data_type]
    size = (count * bits + 7) // 8
    if kind == "raw_data":
        wanted, present = size, len(tensor.raw_data)
    elif bits < 8:  # packed: each entry holds a byte's worth
        wanted, present = size, len(tensor.int32_data)
    else:
        wanted, present = count * entries, len(getattr(tensor, typed))
    if kind not in (None, "raw_data", typed) or wanted != present:
        _refuse("a tensor's data is not as long as its shape and type say", "onnx_tensor")
    if tensor.data_type == _T.BOOL:
        values: Iterable[int] = tensor.raw_data if kind == "raw_data" else tensor.int32_data
        if not set(values) <= {0, 1}:
            _refuse("a boolean tensor holds something else than 0 and 1", "onnx_tensor")
    return size
