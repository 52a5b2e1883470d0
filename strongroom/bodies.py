"""What bodies of the HTTP interface mean: requests to tensors, tensors to responses, models to JSON.

Rules
  - Pure conversion: nothing here decides who may do what, or runs anything. Most of it may take long, so it
    is called in the threads that run models.
  - Messages name places, never values: what is in a request is the data owner's secret.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NoReturn

import numpy as np

from strongroom import npy, oip, oip_json, processor
from strongroom.attest.evidence import Evidence
from strongroom.attest.strict import Members, parse_object
from strongroom.errors import InvalidRequest, LimitExceeded, MalformedInput
from strongroom.jobs import THREADS, engine
from strongroom.models.info import TensorSpec
from strongroom.oip import InferRequest, InferResponse, Tensor, WireLimits
from strongroom.reduction import Precision
from strongroom.service import ERASURE, Question, View
from strongroom.store import ModelVersion

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
NPZ: Final = "application/x-npz"
FORMS: Final = (JSON, NPY, NPZ)
"""Media types in which tensors travel."""

LIST_BYTES: Final = 2 << 20
"""Bytes of one page of the list of models: some 3,000 ordinary ones; the client takes answers of 4 MiB."""

_PLATFORMS: Final = {"onnx": "onnx_onnxv1", "xgboost-json": "xgboost_json", "xgboost-ubj": "xgboost_ubj"}
"""Model format -> the protocol's `<project>_<format>`."""
_MODEL_ID: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:/versions/(?P<version>[1-9][0-9]{0,8}))?")


def dump(document: object) -> bytes:
    """JSON as UTF-8 bytes."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


# Models


def model_json(view: View, *, simulated: bool) -> dict[str, Any]:
    """The model document of the native interface."""
    model = view.model
    info = model.info
    return {
        "name": model.name,
        "version": str(model.version),
        "format": model.format,
        "sha256": model.sha256,
        "canonical_sha256": model.canonical_sha256,
        "size": model.size,
        "owner": model.owner,
        "access": model.access,
        "created": model.created,
        "loaded": view.loaded,
        "erasure": ERASURE,
        "inputs": [_tensor_json(spec) for spec in info.inputs],
        "outputs": [_tensor_json(spec) for spec in info.outputs],
        "primary_output": info.primary_output,
        "feature_names": list(info.feature_names),
        "notes": {name: list(value) if isinstance(value, tuple) else value for name, value in info.notes},
        "precision": info.precision.to_json(),
        "batching": info.batching,
        "engine": engine(),
        "partition": info.partition,
        "stages": view.stages,
        "threads": THREADS,
        "cpu": processor.level(),
        "simulated": simulated,
    }


def model_list(views: tuple[View, ...], *, after: str, simulated: bool) -> bytes:
    """One page of the list: models behind the one with the id `after` ("" for the first page), in short form.

    Raises:
        InvalidRequest: no model in the list has that id (code `parameter_invalid`).
    """
    ids = [f"{view.model.name}/versions/{view.model.version}" for view in views]
    if after and after not in ids:
        _refuse("after: no model in the list has this id; begin anew without it", "parameter_invalid")
    start = ids.index(after) + 1 if after else 0
    entries: list[bytes] = []
    size, rest = 0, ""
    for number, view in enumerate(views[start:], start):
        # Empty, not left out: clients read every entry as a model's document.
        whole = model_json(view, simulated=simulated)
        precision = {**whole["precision"], "narrow": {}, "made": None}
        short = {**whole, "feature_names": [], "notes": {}, "precision": precision}
        entry = dump(short)
        size += len(entry)
        if entries and size > LIST_BYTES:
            rest = ids[number - 1]
            break
        entries.append(entry)
    tail = b',"next":' + dump(rest) if rest else b""
    return b'{"models":[' + b",".join(entries) + b"]" + tail + b"}"


def protocol_metadata(view: View, *, versions: tuple[int, ...]) -> dict[str, Any]:
    """The model document of the Open Inference Protocol."""
    info = view.model.info
    return {
        "name": view.model.name,
        "versions": [str(version) for version in versions],
        "platform": _PLATFORMS[view.model.format],
        "inputs": [_tensor_json(spec) for spec in info.inputs],
        "outputs": [_tensor_json(spec) for spec in info.outputs],
        "parameters": {
            **_parameters_json(info.precision),
            "partition": info.partition,
            "stages": view.stages,
        },
    }


def _parameters_json(precision: Precision) -> dict[str, Any]:
    """The protocol's parameters, which have plain values: `precision`, `engine`, and how it was made."""
    made = precision.made
    more = {} if made is None else {"precision_form": made.form, "precision_from_sha256": made.from_sha256}
    return {"precision": precision.name, "engine": engine(), **more}


def parse_credential(data: bytes) -> tuple[bytes, bytes]:
    """The credential and the encrypted secret in the body of `POST /v1/tpm/activate` (docs/spec/tpm.md §7.4).

    Raises:
        MalformedInput: code `credential_malformed`.
    """
    what, code = "credential", "credential_malformed"
    top = parse_object(data, limit=4096, what=what, code=code)
    read = Members(top, ("credential", "encrypted_secret"), what=what, code=code)
    return read.base64("credential", 1024), read.base64("encrypted_secret", 1024)


def evidence_json(evidence: Evidence, *, simulated: bool) -> dict[str, Any]:
    """The boot-time evidence of `/attestation/report`."""
    return {
        "format": evidence.format,
        "evidence": base64.b64encode(evidence.data).decode("ascii"),
        "endorsements": [
            {"name": name, "data": base64.b64encode(data).decode("ascii")}
            for name, data in evidence.endorsements
        ],
        "simulated": simulated,
        "note": "Made at start, with no nonce of yours in it: it proves nothing about now or about this "
        "connection. Use GET /v1/evidence, or `strongroom verify`.",
    }


def _tensor_json(spec: TensorSpec) -> dict[str, Any]:
    """A tensor's document; a dimension that is not fixed is -1, an unknown rank null."""
    shape = None if spec.shape is None else [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape}


# Inference


def decoder(
    form: str, *, outputs: tuple[str, ...], answer: str, limits: WireLimits
) -> Callable[[bytes | bytearray, ModelVersion], InferRequest]:
    """How to read a body of media type `form`.

    `outputs` are those that the query names, `answer` is the media type of the response.
    """

    def decode(data: bytes | bytearray, model: ModelVersion) -> InferRequest:
        request = _READERS[form](data, model, limits)
        if outputs and request.outputs:
            _refuse("outputs are named in the body and in the query", "parameter_invalid")
        wanted = outputs or request.outputs
        if answer == NPY:
            wanted = wanted or (model.info.primary_output,)
            if len(wanted) != 1:
                _refuse("a .npy file holds one array, so ask for one output", "parameter_invalid")
        return InferRequest(
            id=request.id, inputs=request.inputs, outputs=wanted, parameters=request.parameters
        )

    return decode


def _read_json(data: bytes | bytearray, model: ModelVersion, limits: WireLimits) -> InferRequest:
    return oip.parse_request(data, limits=limits)


def _read_npy(data: bytes | bytearray, model: ModelVersion, limits: WireLimits) -> InferRequest:
    inputs = model.info.inputs
    if len(inputs) != 1:
        _refuse(f"the model has {len(inputs)} inputs: send a .npz file with one array each", "input_names")
    return _request({inputs[0].name: npy.decode_npy(data, limits=limits)})


def _read_npz(data: bytes | bytearray, model: ModelVersion, limits: WireLimits) -> InferRequest:
    return _request(npy.decode_npz(data, limits=limits))


_READERS: Final = {JSON: _read_json, NPY: _read_npy, NPZ: _read_npz}


def _request(arrays: dict[str, oip.Array]) -> InferRequest:
    tensors = tuple(
        Tensor(name=name, datatype=oip.datatype_of(array), array=np.asarray(array, order="C"))
        for name, array in arrays.items()
    )
    return InferRequest(id=None, inputs=tensors, outputs=(), parameters=())


def encode(form: str, response: InferResponse, *, simulated: bool) -> bytes:
    """The response's body in media type `form`; arrays have no room for the mark, which their header carries."""
    if form == NPY:
        return npy.encode_npy(response.outputs[0].array)
    if form == NPZ:
        return npy.encode_npz({tensor.name: tensor.array for tensor in response.outputs})
    return oip_json.encode_response(replace(response, parameters=_SIMULATED if simulated else ()))


_SIMULATED: Final = (("simulated", True),)


# /model/predict


def parse_question(data: bytes | bytearray, *, limits: WireLimits) -> Question:
    """Reads `{"features": [...], "model_id": "..."}`: one or several rows of numbers; null is a missing one.

    Raises:
        MalformedInput, InvalidRequest, LimitExceeded: code `predict_invalid`, or one of `oip_too_...`.
    """
    oip.check_text(data, limits=limits)
    if data.count(b",") > limits.elements:
        raise LimitExceeded(f"more than {limits.elements} numbers", code="oip_too_many_elements")
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_members_once,
            parse_int=float,  # a million digits are infinity then, not a minute of work
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError):
        # Not chained: a JSONDecodeError carries the whole document, the data owner's plaintext.
        raise MalformedInput("the body is not JSON text in UTF-8", code="predict_invalid") from None
    if not isinstance(document, dict) or not {"features"} <= document.keys() <= {"features", "model_id"}:
        _refuse('expected {"features": [...]}, and perhaps "model_id"', "predict_invalid")
    match = _MODEL_ID.fullmatch(document["model_id"]) if isinstance(document.get("model_id"), str) else None
    if document.get("model_id") is not None and match is None:
        _refuse("model_id: expected NAME or NAME/versions/N", "predict_invalid")
    single, matrix = _matrix(document["features"])
    return Question(
        name=match["name"] if match else None,
        version=int(match["version"]) if match and match["version"] else None,
        to_request=lambda model: _features_request(matrix, model),
        encode=lambda response: _encode_predictions(response, single=single),
    )


def _members_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _matrix(features: object) -> tuple[bool, oip.Array]:
    """Whether it was one row, and the rows as float64; null becomes NaN: to tree models a missing value."""
    if not isinstance(features, list) or not features:
        _refuse("features: expected a list of numbers, or of such lists", "predict_invalid")
    single = not isinstance(features[0], list)
    rows = [features] if single else features
    width = len(rows[0])
    for row in rows:
        if not isinstance(row, list) or len(row) != width or not width:
            _refuse("features: rows differ in length, or are empty", "predict_invalid")
        for value in row:
            if value is not None and (type(value) is not float or math.isinf(value)):
                _refuse("features: expected finite numbers or null", "predict_invalid")
    return single, np.array(rows, dtype=np.float64)


def _features_request(matrix: oip.Array, model: ModelVersion) -> InferRequest:
    """The rows as the model's one matrix input, in its own datatype."""
    inputs = model.info.inputs
    spec = inputs[0]
    if len(inputs) != 1 or spec.shape is None or len(spec.shape) != 2 or spec.datatype not in _NUMERIC:
        _refuse("the model does not take one matrix of numbers", "predict_unsuitable")
    dtype = oip.DATATYPES[spec.datatype]
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        whole = np.isfinite(matrix) & (matrix == np.trunc(matrix))
        # Compared as floats, so the upper bound of 64-bit types is exclusive: 2**63 is not an int64.
        if not (whole & (matrix >= float(bounds.min)) & (matrix < float(bounds.max) + 1)).all():
            _refuse(f"features: the model takes {spec.datatype}", "predict_invalid")
    with np.errstate(over="ignore"):
        array = matrix.astype(dtype)
    if np.isinf(array).any():
        _refuse(f"features: a number is too large for {spec.datatype}", "predict_invalid")
    tensor = Tensor(name=spec.name, datatype=spec.datatype, array=np.asarray(array, order="C"))
    return InferRequest(id=None, inputs=(tensor,), outputs=(model.info.primary_output,), parameters=())


_NUMERIC: Final = ("FP32", "FP64", "INT64", "INT32")


def _encode_predictions(response: InferResponse, *, single: bool) -> bytes:
    """`{"predictions": [...], "model_id": "..."}`: for one row its values, else one entry a row."""
    array = response.outputs[0].array
    if array.dtype.kind == "O":
        flat = [value.decode("utf-8", "backslashreplace") for value in array.reshape(-1).tolist()]
        array = np.array(flat, dtype=object).reshape(array.shape)
    predictions = (array.reshape(-1) if single or array.ndim == 0 else array).tolist()
    return dump({"predictions": predictions, "model_id": response.model_name})


def _refuse(message: str, code: str) -> NoReturn:
    raise InvalidRequest(message, code=code)
