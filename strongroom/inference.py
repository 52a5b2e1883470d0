"""Inference as the client sees it: a caller's arrays -> one request; its answer -> arrays.

Rules
  - Values become the model's datatypes only where their meaning stays: what becomes a float is rounded, what
    becomes a whole number must be one and fit, nothing is cut. Shapes are the server's to check.
  - Tensors travel as `.npy` (one) or `.npz` (several); as Open Inference Protocol JSON where strings are
    among them.
  - A request names the digest of the model it means, and an answer from another model is refused.

Pure: nothing here opens a socket, a file or a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from strongroom import calls, npy, oip, oip_json
from strongroom.calls import Answer, ModelMetadata, Progress, TensorInfo, malformed
from strongroom.errors import Conflict, Error, Failure, InvalidRequest

Array: TypeAlias = npt.NDArray[Any]

MAX_RESULT: Final = 256 << 20
"""Bytes of one inference result; servers' limits are of the same order of magnitude."""
LIMITS: Final = oip.WireLimits(
    tensors=1024,
    tensor_bytes=MAX_RESULT,
    total_bytes=MAX_RESULT,
    elements=MAX_RESULT,
    name_length=1 << 16,
)
"""What this client takes in one result."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which outputs are asked for, and whether the caller gets one array or a dict of them."""

    names: tuple[str, ...]
    single: bool


def wanted_outputs(metadata: ModelMetadata, *, dict_in: bool, outputs: str | Sequence[str] | None) -> Wanted:
    """An array in asks for the primary output, a dict in for all; a name asks for that one, a sequence for
    those.

    Raises:
        InvalidRequest: no such output, or none at all (code `output_unknown`).
    """
    known = tuple(spec.name for spec in metadata.outputs)
    if outputs is None:
        return Wanted(known, single=False) if dict_in else Wanted((metadata.primary_output,), single=True)
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    if not names or any(name not in known for name in names) or len(set(names)) != len(names):
        asked = ", ".join(map(repr, names)) or "none"
        raise InvalidRequest(
            f"outputs of {metadata.id} are {', '.join(known)}; asked for: {asked}", code="output_unknown"
        )
    return Wanted(names, single=isinstance(outputs, str))


def fit_inputs(metadata: ModelMetadata, value: object) -> dict[str, Array]:
    """Arrays for each input, in the model's own datatypes; rank and sizes are the server's to check.

    Raises:
        InvalidRequest: an input is unknown or missing, or its values do not fit the datatype without a change
            of meaning (codes `input_names`, `input_dtype`).
    """
    known = {spec.name: spec for spec in metadata.inputs}
    if not isinstance(value, Mapping):
        if len(known) != 1:
            raise InvalidRequest(
                f"{metadata.id} has several inputs ({', '.join(known)}): name each", code="input_names"
            )
        value = {next(iter(known)): value}
    if set(value) != set(known):
        raise InvalidRequest(
            f"inputs of {metadata.id} are {', '.join(known)}; came: {', '.join(map(str, value)) or 'none'}",
            code="input_names",
        )
    return {name: _fit(value[name], spec) for name, spec in known.items()}


def _fit(value: object, spec: TensorInfo) -> Array:
    """`value` as the datatype of `spec`: floats by rounding, whole numbers only from such that fit."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as exc:
        raise InvalidRequest(f"input {spec.name!r} is not a rectangular array", code="input_dtype") from exc
    if spec.datatype == "BYTES":
        return _strings(array, spec)
    if spec.datatype not in oip.DATATYPES:
        raise InvalidRequest(
            f"input {spec.name!r} is of {calls.printable(spec.datatype, limit=16)}, unknown here",
            code="input_dtype",
        )
    target = np.dtype(oip.DATATYPES[spec.datatype])
    if array.dtype == target:
        return array if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(array.shape)
    whole = array.dtype.kind in "iu" and target.kind in "iu"
    if array.dtype.kind not in "biuf" or not (whole or np.can_cast(array.dtype, target, casting="same_kind")):
        raise _dtype_error(array, spec)
    with np.errstate(over="ignore"):
        fitted = array.astype(target)
    if target.kind in "iu" and not np.array_equal(fitted, array):
        raise InvalidRequest(f"input {spec.name!r} has values outside {spec.datatype}", code="input_dtype")
    if target.kind == "f" and not np.array_equal(np.isfinite(fitted), np.isfinite(array)):
        raise InvalidRequest(f"input {spec.name!r} has values outside {spec.datatype}", code="input_dtype")
    return fitted


def _strings(array: Array, spec: TensorInfo) -> Array:
    if array.dtype.kind not in "OUS":
        raise _dtype_error(array, spec)
    out = np.empty(array.shape, dtype=object)
    for index, item in np.ndenumerate(array):
        if isinstance(item, str):
            out[index] = _utf8(item, spec)
        elif isinstance(item, bytes):
            out[index] = bytes(item)
        else:
            raise InvalidRequest(f"input {spec.name!r} holds something else than strings", code="input_dtype")
    return out


def _utf8(text: str, spec: TensorInfo) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        # `from None`: the foreign exception carries the string.
        raise InvalidRequest(
            f"input {spec.name!r} holds a string that is not Unicode", code="input_dtype"
        ) from None


def _dtype_error(array: Array, spec: TensorInfo) -> InvalidRequest:
    return InvalidRequest(
        f"input {spec.name!r}: expected {spec.datatype}, came {array.dtype}", code="input_dtype"
    )


def infer_request(
    metadata: ModelMetadata,
    inputs: dict[str, Array],
    *,
    wanted: Wanted,
    received: Progress | None,
    accepted: tuple[str, ...] = (),
) -> calls.Request:
    """`POST /v2/models/{m}/versions/{v}/infer`, tied to the very bytes of the model by its digest. `accepted`: the
    precisions that an answer may be of, () for all.
    """
    datatypes = {spec.name: spec.datatype for spec in metadata.inputs}
    strings_out = any(spec.datatype == "BYTES" for spec in metadata.outputs if spec.name in wanted.names)
    asked: tuple[str, ...] = ()
    parts: tuple[calls.Data, ...]
    if strings_out or "BYTES" in datatypes.values():
        tensors = tuple(oip.Tensor(name=n, datatype=datatypes[n], array=a) for n, a in inputs.items())
        parts = (
            oip_json.encode_request(
                oip.InferRequest(id=None, inputs=tensors, outputs=wanted.names, parameters=())
            ),
        )
        content, accept = _JSON, _JSON
    else:
        accept = _NPY if len(wanted.names) == 1 else _NPZ
        asked = wanted.names
        if len(inputs) == 1:
            parts, content = npy.npy_parts(next(iter(inputs.values()))), _NPY
        else:
            parts, content = (npy.encode_npz(inputs),), _NPZ
    path, query, headers = _head(
        metadata.name, metadata.version, metadata.digest, content, accept, asked, accepted
    )
    return calls.Request(
        method="POST",
        path=path,
        query=query,
        headers=headers,
        body=calls.Body.of(*parts),
        max_answer=MAX_RESULT,
        received=received,
    )


@lru_cache(maxsize=64)
def _head(
    name: str,
    version: str,
    digest: str,
    content: str,
    accept: str,
    outputs: tuple[str, ...],
    accepted: tuple[str, ...],
) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """Path, query and fields of a request for a run: the same for every run of a model, nearly always."""
    precision = ("Strongroom-Accept-Precision", ", ".join(accepted))
    return (
        "/v2/models" + calls.model_path(name, version=version) + "/infer",
        "&".join(f"output={quote(output, safe='')}" for output in outputs),
        (
            ("Content-Type", content),
            ("Accept", accept),
            ("Strongroom-Model-Digest", digest),
            *((precision,) if accepted else ()),
        ),
    )


_NPY: Final = "application/x-npy"
_NPZ: Final = "application/x-npz"
_JSON: Final = "application/json"


def read_result(answer: Answer, *, metadata: ModelMetadata, wanted: Wanted) -> Any:
    """The array, or the dict of arrays, that the caller asked for.

    Raises:
        Conflict: another model answered (code `model_digest_mismatch`), or in another precision than the metadata says,
            or without a word about it (code `precision_refused`).
        Failure: an output is missing or the body is not what was asked for (code `answer_malformed`).
    """
    served = answer.headers.get("strongroom-model-sha256")
    if served != metadata.sha256:
        raise Conflict(
            f"{metadata.id}: asked sha256 {metadata.sha256}, answered by {calls.printable(served, limit=64)}",
            code="model_digest_mismatch",
        )
    stated = answer.headers.get("strongroom-precision")
    if stated != metadata.precision:  # demanded or not: the metadata is what callers rely on
        raise Conflict(
            f"{metadata.id}: expected an answer of precision {metadata.precision}, got "
            f"{calls.printable(stated, limit=20)}",
            code="precision_refused",
        )
    content = answer.headers.get("content-type", "").split(";")[0].strip()
    try:
        if content == _NPY and len(wanted.names) == 1:
            arrays = {wanted.names[0]: npy.decode_npy(answer.data, limits=LIMITS)}
        elif content == _NPZ:
            arrays = npy.decode_npz(answer.data, limits=LIMITS)
        elif content == _JSON:
            response = oip.parse_response(answer.data, limits=LIMITS)
            arrays = {tensor.name: tensor.array for tensor in response.outputs}
        else:
            raise malformed("tensors in a form that was asked for")
    except Failure:
        raise
    except Error as exc:
        raise malformed("tensors that can be read") from exc
    if any(name not in arrays for name in wanted.names):
        raise malformed("complete: an output is missing")
    return arrays[wanted.names[0]] if wanted.single else {name: arrays[name] for name in wanted.names}
