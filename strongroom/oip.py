"""Tensors, requests and responses of the Open Inference Protocol v2, and their JSON form.

The protocol is kserve/open-inference-protocol's REST specification. `InferRequest` and `InferResponse` are
the one data plane behind every front end: a binary-tensor or gRPC front end only has to convert into them.

Rules
  - Limits are enforced on what arrived: the text is scanned for depth, digits and number of values *before*
    Python objects are made of it, and a declared shape has to agree with the data, it never sizes anything.
  - A number either means exactly one value of the datatype or is refused: integers out of range (Triton 2.51
    truncates them silently), fractions for integers, numbers that overflow a float. Floats round to nearest.
  - Integral floats stand for integers, since generated clients (open-inference-openapi) send `3.0` for 3.
  - `NaN`, `Infinity` and `-Infinity` are bare literals, both ways, in FP16, FP32 and FP64; `null` is refused.
  - FP16 travels as JSON numbers, both ways (each FP16 value is exact as a decimal). BF16 is refused: numpy
    has no such type, and a reader that quietly took it for FP16 or FP32 would compute something else.
  - BYTES are JSON strings, UTF-8 encoded. An output that is not UTF-8 has no JSON form and is refused.
  - Members that the protocol does not define are passed over, as Triton does; extensions that would change
    the meaning of a request (binary data, shared memory, classification) are refused by name.
  - Messages name places ("inputs[1]"), never values: what is in a request is the data owner's secret.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from strongroom.errors import Failure, InvalidRequest, LimitExceeded, MalformedInput

Array: TypeAlias = npt.NDArray[Any]
Parameter: TypeAlias = str | int | float | bool
_T = TypeVar("_T")

DATATYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype(np.uint8),
        "UINT16": np.dtype(np.uint16),
        "UINT32": np.dtype(np.uint32),
        "UINT64": np.dtype(np.uint64),
        "INT8": np.dtype(np.int8),
        "INT16": np.dtype(np.int16),
        "INT32": np.dtype(np.int32),
        "INT64": np.dtype(np.int64),
        "FP16": np.dtype(np.float16),
        "FP32": np.dtype(np.float32),
        "FP64": np.dtype(np.float64),
        "BYTES": np.dtype(np.object_),
    }
)
"""Datatype name -> numpy dtype. BYTES is an object array whose elements are `bytes`."""

_NAMES: Final = {dtype: name for name, dtype in DATATYPES.items()}

MAX_RANK: Final = 32
"""Dimensions of a tensor: far above any model's, below numpy's own 64."""
MAX_DEPTH: Final = MAX_RANK + 4
"""Nesting of a JSON message: the data's lists, inside an object in a list in an object."""
MAX_DIGITS: Final = 400
"""Digits in a row in a JSON number: 1e308 written out has 309; longer ones only cost time."""
MAX_PARAMETERS: Final = 64
"""Parameters of a request or response."""
_SCAN: Final = 1 << 16
"""Bytes scanned at a time: the scanner's arrays stay within the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """How much one message may carry. Every codec enforces the same limits."""

    tensors: int
    """Tensors in one message."""
    tensor_bytes: int
    """Bytes of one tensor, unpacked; for BYTES the sum of its elements' lengths."""
    total_bytes: int
    """Bytes of all tensors of one message together."""
    elements: int
    """Elements of all tensors of one message together."""
    name_length: int
    """Characters in the name of a tensor or parameter, and in a request's id."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named array: C-contiguous, in native byte order, of exactly the dtype `DATATYPES[datatype]`.

    Raises:
        Failure: the array is not of that form; codecs and callers convert before they make one.
    """

    name: str
    datatype: str
    array: Array

    def __post_init__(self) -> None:
        expected = DATATYPES.get(self.datatype)
        if expected is None or self.array.dtype != expected or not self.array.flags.c_contiguous:
            raise Failure(f"a tensor of datatype {self.datatype} was made of another kind of array")

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions; () for a scalar."""
        return self.array.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """One inference request. `outputs` are the names asked for, () for all of the model's."""

    id: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    parameters: tuple[tuple[str, Parameter], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResponse:
    """What a model answered."""

    model_name: str
    model_version: str | None
    id: str | None
    outputs: tuple[Tensor, ...]
    parameters: tuple[tuple[str, Parameter], ...]


def datatype_of(array: Array) -> str:
    """The protocol's name for the dtype of `array` (object arrays are taken for BYTES).

    Raises:
        InvalidRequest: the protocol has no such datatype (code `oip_datatype`).
    """
    name = _NAMES.get(array.dtype)
    if name is None:
        raise InvalidRequest("the array's dtype is none of the protocol's datatypes", code="oip_datatype")
    return name


def bytes_array(elements: Iterable[bytes], *, shape: tuple[int, ...]) -> Array:
    """A BYTES array of that shape from its elements in row-major order."""
    flat = list(elements)
    array = np.empty(len(flat), dtype=np.object_)
    array[:] = flat
    return array.reshape(shape)


def payload_bytes(array: Array) -> int:
    """Bytes that count against `WireLimits`: the elements' lengths for BYTES, else the array's memory."""
    return sum(map(len, array.reshape(-1).tolist())) if array.dtype.kind == "O" else array.nbytes


# Reading


def parse_request(body: bytes | bytearray | memoryview, *, limits: WireLimits) -> InferRequest:
    """Reads the JSON body of an inference request.

    Raises:
        MalformedInput: not JSON, or not an inference request (codes `oip_...`).
        InvalidRequest: tensors that contradict themselves, or an extension not served (codes `oip_...`).
        LimitExceeded: more than `limits` (codes `oip_too_...`).
    """
    document = _load(body, limits=limits)
    asked = _entries(document.get("outputs", []), "outputs", limits=limits)
    names = (_requested(entry, f"outputs[{n}]", limits=limits) for n, entry in enumerate(asked))
    return InferRequest(
        id=_identifier(document, limits=limits),
        inputs=_tensors(_member(document, "inputs", "the request"), "inputs", limits=limits),
        outputs=_unique(names, "outputs"),
        parameters=_parameters(document, limits=limits),
    )


def parse_response(body: bytes | bytearray | memoryview, *, limits: WireLimits) -> InferResponse:
    """Reads the JSON body of an inference response.

    Raises:
        MalformedInput, InvalidRequest, LimitExceeded: as `parse_request` does.
    """
    document = _load(body, limits=limits)
    name, version = _member(document, "model_name", "the response"), document.get("model_version")
    return InferResponse(
        model_name=_name(name, "model_name", limits=limits),
        model_version=None if version is None else _name(version, "model_version", limits=limits),
        id=_identifier(document, limits=limits),
        outputs=_tensors(_member(document, "outputs", "the response"), "outputs", limits=limits),
        parameters=_parameters(document, limits=limits),
    )


class _Literal(float):
    """NaN or an infinity that was written as such: told apart from a number that overflowed, like 1e999."""


_LITERALS: Final = {text: _Literal(text) for text in ("NaN", "Infinity", "-Infinity")}

_STARTS: Final = np.isin(np.arange(256), [ord(c) for c in ",[{"])
_BREAKS: Final = ~np.isin(np.arange(256), [ord(c) for c in "0123456789"])
_NESTING: Final = np.zeros(256, dtype=np.int8)
_NESTING[[ord("["), ord("{")]] = 1
_NESTING[[ord("]"), ord("}")]] = -1


def _members_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # Two readers could keep different ones: what was checked would not be what is run.
        raise MalformedInput("a JSON object names a member twice", code="oip_duplicate_member")
    return members


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_members_once, parse_constant=_LITERALS.__getitem__)


def _load(body: bytes | bytearray | memoryview, *, limits: WireLimits) -> dict[str, Any]:
    data = bytes(body)
    check_text(data, limits=limits)
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except (ValueError, RecursionError):
        # Not chained: a JSONDecodeError carries the whole document, that is, the data owner's plaintext.
        raise MalformedInput("the message is not JSON text in UTF-8", code="oip_not_json") from None
    if not isinstance(value, dict):
        raise MalformedInput("the message is not a JSON object", code="oip_not_an_object")
    return value


def check_text(data: bytes | bytearray, *, limits: WireLimits) -> None:
    """Bounds depth, digits and the number of values of a JSON text before any object is made of them.

    Linear, whatever the text: it is looked at as arrays of `_SCAN` bytes, and nothing is copied but those.

    Raises:
        LimitExceeded: codes `oip_too_many_elements`, `oip_too_deep`, `oip_too_many_digits`.
    """
    # Each value but the first of a list follows a comma, nested data adds a bracket a row; the rest: members.
    most = 2 * limits.elements + 64 * limits.tensors + 1024
    values = depth = digits = 0
    quotes = _Quotes()
    for start in range(0, len(data), _SCAN):
        text = quotes.blank(np.frombuffer(data, np.uint8, min(_SCAN, len(data) - start), start))
        values += int(np.count_nonzero(_STARTS[text]))
        if values > most:
            raise LimitExceeded(f"the message has more than {most} values", code="oip_too_many_elements")
        depths = np.cumsum(_NESTING[text], dtype=np.int32)
        if depth + int(depths.max()) > MAX_DEPTH:
            raise LimitExceeded(f"the message nests deeper than {MAX_DEPTH}", code="oip_too_deep")
        depth += int(depths[-1])
        # Runs of digits are the gaps between other characters; `digits` were left at the last piece's end.
        edges = np.concatenate(([-1 - digits], np.flatnonzero(_BREAKS[text]), [len(text)]))
        if int(np.diff(edges).max()) - 1 > MAX_DIGITS:
            raise LimitExceeded(f"a number has more than {MAX_DIGITS} digits", code="oip_too_many_digits")
        digits = int(edges[-1] - edges[-2]) - 1


class _Quotes:
    """Blanks the strings of a JSON text that is read piece by piece."""

    def __init__(self) -> None:
        self._open = 0  # 1: the last piece ended within a string
        self._slashes = 0  # backslashes at its very end

    def blank(self, piece: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """`piece` with a quote in place of each byte from an opening quote up to its closing quote."""
        quotes = piece == ord('"')
        slash = piece == ord("\\")
        if self._slashes or slash.any():
            # A quote is escaped where an odd number of backslashes stands directly before it.
            index = np.arange(len(piece))
            other = np.maximum.accumulate(np.where(slash, -1 - self._slashes, index))
            before = np.concatenate(([-1 - self._slashes], other[:-1]))
            quotes &= (index - 1 - before) % 2 == 0
            self._slashes = int(len(piece) - 1 - other[-1])
        if not self._open and not quotes.any():
            return piece
        inside = (np.cumsum(quotes, dtype=np.int32) + self._open) % 2 == 1
        self._open = int(inside[-1])
        return np.where(inside, np.uint8(ord('"')), piece)


def _member(members: dict[str, Any], name: str, where: str) -> Any:
    if name not in members:
        raise MalformedInput(f"{where} has no member {name!r}", code="oip_member_missing")
    return members[name]


def _typed(value: object, kind: type[_T], where: str) -> _T:
    if not isinstance(value, kind):
        raise MalformedInput(f"{where}: expected {_JSON_NAMES[kind]}", code="oip_member_type")
    return value


_JSON_NAMES: Final[dict[type, str]] = {list: "a list", dict: "an object", str: "a string"}


def _entries(value: object, where: str, *, limits: WireLimits) -> list[Any]:
    entries: list[Any] = _typed(value, list, where)
    if len(entries) > limits.tensors:
        raise LimitExceeded(
            f"{where} has {len(entries)} entries, at most {limits.tensors}", code="oip_too_many_tensors"
        )
    return entries


def _name(value: object, where: str, *, limits: WireLimits) -> str:
    """A name: one to `limits.name_length` characters, none of them a control character or lone surrogate."""
    name = _typed(value, str, where)
    if len(name) > limits.name_length:
        raise LimitExceeded(f"{where}: more than {limits.name_length} characters", code="oip_too_long_name")
    # C0 and C1 controls would forge lines in logs and terminals; surrogates have no UTF-8 form.
    if not name or re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", name):
        raise MalformedInput(f"{where} is empty or has control characters", code="oip_name")
    return name


def _identifier(document: dict[str, Any], *, limits: WireLimits) -> str | None:
    value = document.get("id", "")
    if not isinstance(value, str):
        raise MalformedInput("id: expected a string", code="oip_id_type")
    # Clients that have no id send an empty one.
    return _name(value, "id", limits=limits) if value else None


def _requested(entry: object, where: str, *, limits: WireLimits) -> str:
    members = _typed(entry, dict, where)
    _refuse_extensions(members, where)
    return _name(_member(members, "name", where), f"{where}.name", limits=limits)


def _unique(names: Iterable[str], where: str) -> tuple[str, ...]:
    found = tuple(names)
    if len(set(found)) != len(found):
        raise InvalidRequest(f"{where} names a tensor twice", code="oip_duplicate_tensor")
    return found


def _refuse_extensions(members: dict[str, Any], where: str) -> None:
    """Refuses what changes the meaning; `binary_data: true` only asks for a form, and JSON may be given."""
    for name in _typed(members.get("parameters", {}), dict, f"{where}.parameters"):
        if name in ("binary_data_size", "classification") or name.startswith("shared_memory_"):
            raise InvalidRequest(
                f"{where} uses binary data, classification or shared memory", code="oip_extension_unsupported"
            )


def _parameters(document: dict[str, Any], *, limits: WireLimits) -> tuple[tuple[str, Parameter], ...]:
    members = _typed(document.get("parameters", {}), dict, "parameters")
    if len(members) > MAX_PARAMETERS:
        raise LimitExceeded(f"more than {MAX_PARAMETERS} parameters", code="oip_too_many_parameters")
    for name, value in members.items():
        _name(name, "the name of a parameter", limits=limits)
        # Exact types: a _Literal (NaN) is no parameter, neither is a number that overflowed to infinity.
        fine = type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))
        if not fine or (type(value) is str and re.search("[\ud800-\udfff]", value)):
            raise MalformedInput("a parameter is not a scalar", code="oip_parameter_type")
    return tuple(members.items())


def _tensors(value: object, where: str, *, limits: WireLimits) -> tuple[Tensor, ...]:
    tensors: list[Tensor] = []
    total = elements = 0
    for number, entry in enumerate(_entries(value, where, limits=limits)):
        tensor = _tensor(_typed(entry, dict, f"{where}[{number}]"), f"{where}[{number}]", limits=limits)
        total += payload_bytes(tensor.array)
        elements += tensor.array.size
        check_totals(total, elements, limits=limits)
        tensors.append(tensor)
    _unique((tensor.name for tensor in tensors), where)
    return tuple(tensors)


def check_totals(total_bytes: int, elements: int, *, limits: WireLimits) -> None:
    """The tensors of one message so far are within the limits for all of them.

    Raises:
        LimitExceeded: they are not (codes `oip_too_many_bytes`, `oip_too_many_elements`).
    """
    if total_bytes > limits.total_bytes:
        raise LimitExceeded(
            f"the tensors have more than {limits.total_bytes} bytes together", code="oip_too_many_bytes"
        )
    if elements > limits.elements:
        raise LimitExceeded(
            f"the tensors have more than {limits.elements} elements together", code="oip_too_many_elements"
        )


def _tensor(members: dict[str, Any], where: str, *, limits: WireLimits) -> Tensor:
    _refuse_extensions(members, where)
    name = _name(_member(members, "name", where), f"{where}.name", limits=limits)
    datatype = check_datatype(_member(members, "datatype", where), where)
    sizes = _typed(_member(members, "shape", where), list, f"{where}.shape")
    shape = check_shape(tuple(_dimension(size, where) for size in sizes), where, limits=limits)
    flat = _flatten(_typed(_member(members, "data", where), list, f"{where}.data"), shape, where)
    array = _convert(flat, datatype, where).reshape(shape)
    check_size(payload_bytes(array), where, limits=limits)
    return Tensor(name, datatype, array)


def check_size(size: int, where: str, *, limits: WireLimits) -> None:
    """One tensor of `size` bytes is within the limit.

    Raises:
        LimitExceeded: it is not (code `oip_too_many_bytes`).
    """
    if size > limits.tensor_bytes:
        raise LimitExceeded(
            f"{where} has {size} bytes, at most {limits.tensor_bytes}", code="oip_too_many_bytes"
        )


def check_datatype(value: object, where: str) -> str:
    """`value` as one of `DATATYPES`.

    Raises:
        InvalidRequest: BF16 (code `oip_bf16`) or no datatype of the protocol (code `oip_datatype`).
    """
    if value == "BF16":
        raise InvalidRequest(
            f"{where} is BF16, which is not served: convert to FP32 (exact) before sending", code="oip_bf16"
        )
    if not isinstance(value, str) or value not in DATATYPES:
        raise InvalidRequest(f"{where}: datatype is none of {', '.join(DATATYPES)}", code="oip_datatype")
    return value


def check_shape(shape: tuple[int, ...], where: str, *, limits: WireLimits) -> tuple[int, ...]:
    """`shape` if a tensor of it could be within the limits.

    A zero dimension makes every other size cost nothing here, but not everywhere in a runtime that multiplies
    them: the product is taken over the dimensions that are not zero.

    Raises:
        InvalidRequest: a negative dimension (code `oip_shape`).
        LimitExceeded: too many dimensions or elements (codes `oip_too_deep`, `oip_too_many_elements`).
    """
    if any(size < 0 for size in shape):
        raise InvalidRequest(f"{where}: a dimension of the shape is negative", code="oip_shape")
    if len(shape) > MAX_RANK:
        raise LimitExceeded(f"{where} has {len(shape)} dimensions, at most {MAX_RANK}", code="oip_too_deep")
    if math.prod(size for size in shape if size) > limits.elements:
        raise LimitExceeded(
            f"{where} has a shape of more than {limits.elements} elements", code="oip_too_many_elements"
        )
    return shape


def _dimension(value: object, where: str) -> int:
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    raise InvalidRequest(f"{where}: a dimension of the shape is not an integer", code="oip_shape")


def _flatten(data: list[Any], shape: tuple[int, ...], where: str) -> list[Any]:
    """The elements in row-major order: `data` is either flat or nested exactly as `shape` says."""
    count = math.prod(shape)
    if not data or type(data[0]) is not list:
        if len(data) != count:
            raise InvalidRequest(
                f"{where}: the shape has {count} elements, data has {len(data)}", code="oip_data_shape"
            )
        return data
    level, ragged = data, len(data) != shape[0] if shape else True
    for size in shape[1:]:
        ragged = ragged or any(type(row) is not list or len(row) != size for row in level)
        if ragged:
            break
        level = list(chain.from_iterable(level))
    if ragged:
        raise InvalidRequest(f"{where}: data is not nested as its shape says", code="oip_data_shape")
    return level


def _convert(flat: list[Any], datatype: str, where: str) -> Array:
    """The elements as a one-dimensional array of the datatype; each has exactly one meaning or is refused."""
    types = set(map(type, flat))
    if datatype == "BYTES":
        return _to_bytes(flat, types, where)
    dtype = DATATYPES[datatype]
    if dtype.kind == "b":
        return np.array(_only(flat, types, {bool}, datatype, where), dtype=dtype)
    if dtype.kind == "f":
        return _to_floats(_only(flat, types, {int, float, _Literal}, datatype, where), dtype, types, where)
    numbers = _only(flat, types, {int, float}, datatype, where)
    if float in types:
        if not all(type(n) is int or n.is_integer() for n in numbers):
            raise InvalidRequest(
                f"{where}: a number is no integer, {datatype} needs one", code="oip_value_type"
            )
        numbers = [int(n) for n in numbers]
    try:
        return np.array(numbers, dtype=dtype)
    except OverflowError:
        _out_of_range(datatype, where)


def _only(flat: list[Any], types: set[type], allowed: set[type], datatype: str, where: str) -> list[Any]:
    if not types <= allowed:
        raise InvalidRequest(
            f"{where}: data of {datatype} holds another kind of value", code="oip_value_type"
        )
    return flat


def _out_of_range(datatype: str, where: str) -> NoReturn:
    # `from None`: numpy's message repeats the number.
    raise InvalidRequest(
        f"{where}: a number is out of range for {datatype}", code="oip_value_range"
    ) from None


def _to_floats(numbers: list[Any], dtype: np.dtype[Any], types: set[type], where: str) -> Array:
    datatype = _NAMES[dtype]
    try:
        wide = np.array(numbers, dtype=np.float64)
    except OverflowError:
        _out_of_range(datatype, where)
    with np.errstate(over="ignore"):
        array = wide.astype(dtype)
    infinite = np.isinf(array)
    if infinite.any() and not all(type(numbers[n]) is _Literal for n in np.flatnonzero(infinite)):
        _out_of_range(datatype, where)
    return array


def _to_bytes(flat: list[Any], types: set[type], where: str) -> Array:
    _only(flat, types, {str}, "BYTES", where)
    try:
        return bytes_array((text.encode("utf-8") for text in flat), shape=(len(flat),))
    except UnicodeEncodeError:
        raise InvalidRequest(f"{where}: a string has a lone surrogate", code="oip_bytes_not_text") from None
