"""A request's tensors against the metadata of the model that runs on them: the last check before the engine; and
the answer's, after it.

Rules
  - What does not fit is refused here, where a message can be written that holds no content; the runtime's own
    texts hold names, sizes and values.
  - A datatype must be the model's own. Only models whose rules say so (XGBoost's: `round_to_float32`) take
    other numbers, each rounded once, to the nearest float32.
  - One symbol in the shapes means one size, in all inputs of a request.
  - Messages name the model's tensors and the request's shapes and datatypes; never a value.

In order: 1. limits, 2. names, 3. datatypes, 4. ranks and sizes, 5. values, 6. what admission bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from strongroom.errors import InvalidRequest
from strongroom.models.info import InputRules, ModelInfo, Room, TensorSpec
from strongroom.oip import DATATYPES, Array, Tensor, WireLimits, check_size, check_totals, payload_bytes

_ROUNDED: Final = frozenset(
    {"FP64", "FP16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}
)
"""Datatypes that become FP32 where a model's rules allow it. BOOL is not among them: it is no measurement."""


def check_inputs(
    info: ModelInfo, request_inputs: tuple[Tensor, ...], *, limits: WireLimits
) -> dict[str, Array]:
    """The arrays to run on, by input name: exactly the model's inputs, each as the model wants it.

    Raises:
        LimitExceeded: more than `limits` (codes `oip_too_...`).
        InvalidRequest: the request does not fit the model (codes `input_...`).
    """
    total = elements = 0
    for number, tensor in enumerate(request_inputs):
        size = payload_bytes(tensor.array)
        check_size(size, f"inputs[{number}]", limits=limits)
        total, elements = total + size, elements + tensor.array.size
        check_totals(total, elements, limits=limits)
    tensors = _by_name(info, request_inputs)
    arrays: dict[str, Array] = {}
    symbols: dict[str, tuple[int, str]] = {}
    for spec in info.inputs:
        array = _datatype(spec, tensors[spec.name], info.rules)
        _shape(spec, array.shape, symbols)
        _values(spec, array, info.rules)
        arrays[spec.name] = array
    _room(info, arrays)
    return arrays


def check_outputs(info: ModelInfo, results: Mapping[str, Array]) -> None:
    """The answer has the ranks, and the fixed sizes, that admission found: how long it is says no more than that.

    Raises:
        InvalidRequest: it has not (code `output_shape`).
    """
    for spec in info.outputs:
        if spec.name not in results or spec.shape is None:
            continue
        shape = results[spec.name].shape
        if len(shape) != len(spec.shape) or any(
            isinstance(expected, int) and size != expected
            for expected, size in zip(spec.shape, shape, strict=True)
        ):
            raise InvalidRequest(
                f"output {spec.name!r} is not of the shape that admission found", code="output_shape"
            )


def room_for(info: ModelInfo, arrays: Mapping[str, Array]) -> Room | None:
    """The cheapest of the rooms that admission bounded into which these inputs fit (`docs/spec/admission.md` §8.2);
    None where it bounded none.
    """
    return _cheapest(info.admission.rooms, _needs(info, arrays))


def _cheapest(rooms: tuple[Room, ...], needs: Mapping[int, int]) -> Room | None:
    fitting = [room for room in rooms if all(room.fits(axis, size) for axis, size in needs.items())]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    return min(fitting, key=lambda room: (room.operations, room.steps))


def _needs(info: ModelInfo, arrays: Mapping[str, Array]) -> dict[int, int]:
    """Position -> the largest size, where the model leaves it open."""
    needs: dict[int, int] = {}
    for spec in info.inputs:
        for axis, (expected, size) in enumerate(zip(spec.shape or (), arrays[spec.name].shape, strict=False)):
            if not isinstance(expected, int):
                needs[axis] = max(needs.get(axis, 0), size)
    return needs


def _room(info: ModelInfo, arrays: Mapping[str, Array]) -> None:
    """The request is one of those whose cost admission bounded (`docs/spec/admission.md` §8.2)."""
    found = info.admission
    for spec in info.inputs:
        if spec.datatype == "BYTES" and any(len(text) > found.text_bytes for text in arrays[spec.name].flat):
            raise InvalidRequest(
                f"input {spec.name!r}: a string has more than {found.text_bytes} bytes",
                code="input_too_large",
            )
    if "no_empty_inputs" in found.flags and not all(array.size for array in arrays.values()):
        raise InvalidRequest("the model takes no input without elements", code="input_shape")
    needs = _needs(info, arrays)
    if needs and _cheapest(found.rooms, needs) is None:
        rooms = ", ".join("x".join(map(str, room.sizes)) for room in found.rooms)
        raise InvalidRequest(
            f"the request is larger than the model was admitted for: open dimensions up to one of {rooms}",
            code="input_too_large",
        )


def _by_name(info: ModelInfo, request_inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    wanted = [spec.name for spec in info.inputs]
    expected = f"expected {', '.join(map(repr, wanted)) or 'no inputs'}"
    tensors: dict[str, Tensor] = {}
    for number, tensor in enumerate(request_inputs):
        if tensor.name not in wanted:
            raise InvalidRequest(
                f"inputs[{number}] is no input of the model; {expected}", code="input_unknown"
            )
        if tensor.name in tensors:
            raise InvalidRequest(f"input {tensor.name!r} is given twice", code="input_duplicate")
        tensors[tensor.name] = tensor
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise InvalidRequest(f"{expected}; without {', '.join(map(repr, missing))}", code="input_missing")
    return tensors


def _datatype(spec: TensorSpec, tensor: Tensor, rules: InputRules) -> Array:
    if tensor.datatype == spec.datatype:
        return tensor.array
    if rules.round_to_float32 and spec.datatype == "FP32" and tensor.datatype in _ROUNDED:
        # Overflow becomes an infinity, which the rules of such models refuse below.
        with np.errstate(over="ignore"):
            return tensor.array.astype(DATATYPES["FP32"])
    raise InvalidRequest(
        f"input {spec.name!r}: expected datatype {spec.datatype}, got {tensor.datatype}", code="input_dtype"
    )


def _shape(spec: TensorSpec, shape: tuple[int, ...], symbols: dict[str, tuple[int, str]]) -> None:
    """Rank, fixed sizes, and symbols: `symbols` holds those met so far, with the input that gave the size."""
    if spec.shape is None:
        return
    if len(shape) != len(spec.shape):
        raise InvalidRequest(
            f"input {spec.name!r}: expected {len(spec.shape)} dimensions {_written(spec.shape)}, got {list(shape)}",
            code="input_rank",
        )
    for expected, size in zip(spec.shape, shape, strict=True):
        if isinstance(expected, int) and size != expected:
            raise InvalidRequest(
                f"input {spec.name!r}: expected shape {_written(spec.shape)}, got {list(shape)}",
                code="input_shape",
            )
        if isinstance(expected, str):
            known, where = symbols.setdefault(expected, (size, spec.name))
            if size != known:
                raise InvalidRequest(
                    f"input {spec.name!r}: {expected!r} is {size} here and {known} in {where!r}",
                    code="input_symbol",
                )


def _written(shape: tuple[int | str | None, ...]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _values(spec: TensorSpec, array: Array, rules: InputRules) -> None:
    if array.dtype.kind != "f":
        return
    if rules.allow_nan and not rules.reject_infinite and not rules.integer_columns:
        return
    # One look where all is well, as it nearly always is.
    if np.count_nonzero(np.isfinite(array)) == array.size and not rules.integer_columns:
        return
    if not rules.allow_nan and bool(np.isnan(array).any()):
        raise InvalidRequest(
            f"input {spec.name!r} has NaN in it, which the model does not take", code="input_nan"
        )
    if rules.reject_infinite and bool(np.isinf(array).any()):
        raise InvalidRequest(
            f"input {spec.name!r} has an infinity in it, or a number beyond float32", code="input_infinite"
        )
    if rules.integer_columns and array.ndim:
        columns = array[..., list(rules.integer_columns)]
        # NaN means missing; where it is not allowed it was refused above.
        if bool(((columns != np.trunc(columns)) & ~np.isnan(columns)).any()):
            raise InvalidRequest(
                f"input {spec.name!r}: a category column holds a fraction", code="input_not_integer"
            )
