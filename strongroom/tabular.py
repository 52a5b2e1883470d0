"""Files with inputs and results of `strongroom run`: .npy, .npz, .csv and .json, told apart by their endings.

Rules
  - Nothing is unpickled: arrays are read by `npy`, which knows numbers and strings only.
  - A CSV file with a heading is matched with the model's feature names; a mismatch is an error, never a
    guess.
  - Messages name places (a line, a field), never what stands there.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from strongroom import npy, oip, oip_json
from strongroom.calls import ModelMetadata
from strongroom.errors import Error, InvalidRequest
from strongroom.inference import LIMITS, MAX_RESULT, Array

KINDS: Final = (".npy", ".npz", ".csv", ".json")

_Row: TypeAlias = tuple[int, list[str]]
"""The line of the file that a row ends in, and its fields."""


@dataclass(frozen=True, slots=True)
class FileInputs:
    """What a file asks for: `value` as `Model.run` takes it (an array, nested lists, or a dict of them), and
    the names of the outputs where the file names some.
    """

    value: Any
    outputs: tuple[str, ...] = ()


def _unreadable(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"{path.name}: {why}", code="input_unreadable")


def read_inputs(path: Path, *, metadata: ModelMetadata) -> FileInputs:
    """What lies in a file.

    Raises:
        InvalidRequest: not readable, or not what its ending says (code `input_unreadable`); one row where the
        model takes a table of them (code `input_rank`).
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise _unreadable(path, f"expected one of {', '.join(KINDS)}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RESULT + 1)
    except FileNotFoundError as exc:
        raise _unreadable(path, "does not exist") from exc
    except OSError as exc:
        raise _unreadable(path, "cannot be read") from exc
    if len(data) > MAX_RESULT:
        raise _unreadable(path, f"more than {MAX_RESULT} bytes")
    try:
        if kind == ".npy":
            found = FileInputs(npy.decode_npy(data, limits=LIMITS))
        elif kind == ".npz":
            found = FileInputs(npy.decode_npz(data, limits=LIMITS))
        elif kind == ".csv":
            found = FileInputs(_read_csv(path, data, metadata))
        else:
            found = _read_json(path, data, metadata)
    except InvalidRequest:
        raise
    except Error as exc:
        raise _unreadable(path, exc.message) from exc
    _check_rows(path, found.value, metadata)
    return found


def _read_json(path: Path, data: bytes, metadata: ModelMetadata) -> FileInputs:
    """An Open Inference Protocol request, an object of nested lists by input name, or one nested list."""
    try:
        value = json.loads(data)
        if isinstance(value, dict) and isinstance(value.get("inputs"), list):
            request = oip.parse_request(data, limits=LIMITS)
            return FileInputs({tensor.name: tensor.array for tensor in request.inputs}, request.outputs)
        if isinstance(value, dict | list):
            return FileInputs(_with_missing(value, metadata))
    except (ValueError, RecursionError) as exc:
        raise _unreadable(path, "not JSON") from exc
    raise _unreadable(path, "expected a list or an object")


def _with_missing(value: Any, metadata: ModelMetadata) -> Any:
    """Nested lists with NaN for each `null` in what becomes an input of floats."""
    floats = {spec.name for spec in metadata.inputs if spec.datatype.startswith("FP")}
    if isinstance(value, dict):
        return {name: _nan_for_null(part) if name in floats else part for name, part in value.items()}
    return _nan_for_null(value) if len(metadata.inputs) == 1 and floats else value


def _nan_for_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_nan_for_null(item) for item in value]
    return float("nan") if value is None else value


def _check_rows(path: Path, value: Any, metadata: ModelMetadata) -> None:
    """One row where the model takes rows x columns: said here, with what to write instead."""
    parts = value if isinstance(value, dict) else {spec.name: value for spec in metadata.inputs[:1]}
    for spec in metadata.inputs:
        part = parts.get(spec.name)
        flat = isinstance(part, list) and bool(part) and not any(isinstance(item, list) for item in part)
        if spec.shape is not None and len(spec.shape) == 2 and (flat or getattr(part, "ndim", 0) == 1):
            raise InvalidRequest(
                f"{path.name}: input {spec.name!r} takes rows x columns, came one dimension: "
                "one row is [[...]], of shape (1, columns)",
                code="input_rank",
            )


def _read_csv(path: Path, data: bytes, metadata: ModelMetadata) -> Array:
    """Rows x columns; an empty field is NaN (a missing value) where the input is of floats."""
    if len(metadata.inputs) != 1:
        raise _unreadable(path, "the model has several inputs: use .npz or .json")
    datatype = metadata.inputs[0].datatype
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig")))
        rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as exc:
        raise _unreadable(path, "not CSV in UTF-8") from exc
    if not rows:
        raise _unreadable(path, "there is no row in it")
    first = rows[0][1]
    alone = datatype != "BYTES" and len(first) == 1 and first[0] not in metadata.feature_names
    if alone and any(mark in first[0] for mark in ";\t|"):
        raise _unreadable(path, "its first line has one field: expected a comma between fields")
    if heading := _is_heading(first, metadata, datatype):
        rows = _in_feature_order(path, rows, metadata)
    if not rows:
        raise _unreadable(path, "there is no row under its heading")
    table, convert = [], _cell(datatype)
    hint = "" if heading else " (a heading has neither numbers nor empty fields)"
    for line, row in rows:
        if len(row) != len(first):
            whose = "the heading" if heading else "the first row"
            raise _unreadable(
                path, f"line {line}: expected {len(first)} fields as in {whose}, came {len(row)}"
            )
        try:
            table.append([convert(cell) for cell in row])
        except (ValueError, OverflowError):
            # `from None`: the foreign exception quotes the cell.
            field = next(i for i, cell in enumerate(row, 1) if not _fits(cell, convert))
            raise _unreadable(
                path,
                f"line {line}, field {field}: expected a value of {datatype}{hint if row is first else ''}",
            ) from None
    return np.asarray(table, dtype=object if datatype == "BYTES" else None)


def _fits(cell: str, convert: Callable[[str], Any]) -> bool:
    try:
        convert(cell)
    except (ValueError, OverflowError):
        return False
    return True


def _cell(datatype: str) -> Callable[[str], Any]:
    if datatype == "BYTES":
        return str
    if datatype.startswith(("INT", "UINT")):
        return int
    return lambda text: float(text) if text.strip() else float("nan")


def _is_heading(row: list[str], metadata: ModelMetadata, datatype: str) -> bool:
    if metadata.feature_names and set(row) == set(metadata.feature_names):
        return True
    # One number or empty field among them makes it a row, and what is no number in it an error.
    return datatype != "BYTES" and not any(_fits(cell, _cell("FP64")) for cell in row)


def _in_feature_order(path: Path, rows: list[_Row], metadata: ModelMetadata) -> list[_Row]:
    (_, heading), *rest = rows
    names = metadata.feature_names
    if not names:
        return rest
    if sorted(heading) != sorted(names):
        raise _unreadable(path, f"its heading does not name the model's features ({', '.join(names)})")
    order = [heading.index(name) for name in names]
    return [(line, [row[i] for i in order] if len(row) == len(order) else row) for line, row in rest]


def as_response(result: dict[str, Array], *, metadata: ModelMetadata) -> bytes:
    """The result as an Open Inference Protocol response (JSON)."""
    tensors = tuple(
        oip.Tensor(
            name=name, datatype=oip.datatype_of(array), array=np.ascontiguousarray(array).reshape(array.shape)
        )
        for name, array in result.items()
    )
    response = oip.InferResponse(
        model_name=metadata.name, model_version=metadata.version, id=None, outputs=tensors, parameters=()
    )
    return oip_json.encode_response(response)


def as_text(array: Array) -> str:
    """The whole array for a person: every element, numbers with the digits that tell them apart, strings
    quoted and without characters that steer a terminal.
    """
    if array.dtype == object:
        shown = np.empty(array.shape, dtype=object)
        for index, item in np.ndenumerate(array):
            shown[index] = item.decode("utf-8", "backslashreplace") if isinstance(item, bytes) else item
        array = shown
    return np.array2string(
        array, threshold=sys.maxsize, max_line_width=sys.maxsize, floatmode="unique", separator=" "
    )


def check_output(path: Path, *, arrays: int) -> None:
    """Before anything runs: a result of so many arrays can be written there.

    Raises:
        InvalidRequest: its ending holds no result, or not so many arrays; or there is no such folder, or none
        that may be written to (code `output_unwritable`).
    """
    kind = path.suffix.lower()
    if kind not in KINDS or (arrays > 1 and kind in {".npy", ".csv"}):
        raise _cannot_hold(path)
    try:
        place = path if path.exists() else path.parent
        writable = path.parent.is_dir() and not path.is_dir() and os.access(place, os.W_OK)
    except (OSError, ValueError):
        writable = False
    if not writable:
        raise InvalidRequest(f"{path.name} cannot be written in {path.parent}", code="output_unwritable")


def _cannot_hold(path: Path) -> InvalidRequest:
    return InvalidRequest(
        f"{path.name} cannot hold this result: .npy one array, .csv one of rows and columns, "
        ".npz and .json several",
        code="output_unwritable",
    )


def write_result(path: Path, result: dict[str, Array], *, metadata: ModelMetadata) -> None:
    """Writes a result; .npy and .csv hold one output, .npz and .json any number.

    Raises:
        InvalidRequest: the ending cannot hold it, or the file cannot be written (code `output_unwritable`).
    """
    kind = path.suffix.lower()
    single = next(iter(result.values())) if len(result) == 1 else None
    if kind == ".npy" and single is not None:
        data = npy.encode_npy(single)
    elif kind == ".npz":
        data = npy.encode_npz(result)
    elif kind == ".json":
        data = as_response(result, metadata=metadata)
    elif kind == ".csv" and single is not None and single.ndim <= 2:
        data = _to_csv(single)
    else:
        raise _cannot_hold(path)
    try:
        path.write_bytes(data)
    except OSError as exc:
        raise InvalidRequest(f"{path.name} cannot be written", code="output_unwritable") from exc


def _to_csv(array: Array) -> bytes:
    table = array.reshape(array.shape[0] if array.ndim else 1, -1)
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for row in table.tolist():
        writer.writerow(
            [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in row]
        )
    return sink.getvalue().encode()
