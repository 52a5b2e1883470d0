"""Requests and responses of the Open Inference Protocol as JSON: the half that writes; `oip` reads.

Pure, and as exact as the reader: floats are written shortest-exact, NaN and the infinities as the bare literals that
Triton writes.
"""

from __future__ import annotations

import io
import json
from typing import Any, Final

from strongroom.errors import InvalidRequest
from strongroom.oip import Array, InferRequest, InferResponse, Tensor


def encode_request(request: InferRequest) -> bytes:
    """The JSON body of a request; data is flat, in row-major order.

    Raises:
        InvalidRequest: a BYTES element is not UTF-8 (code `oip_bytes_not_text`).
    """
    document: dict[str, Any] = {}
    if request.id is not None:
        document["id"] = request.id
    if request.parameters:
        document["parameters"] = dict(request.parameters)
    document["inputs"] = [_encode_tensor(tensor, tensor.array.reshape(-1)) for tensor in request.inputs]
    if request.outputs:
        document["outputs"] = [{"name": name} for name in request.outputs]
    return _dump(document)


def encode_response(response: InferResponse) -> bytes:
    """The JSON body of a response; data is flat, in row-major order.

    Raises:
        InvalidRequest: a BYTES element is not UTF-8 (code `oip_bytes_not_text`).
    """
    document: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version is not None:
        document["model_version"] = response.model_version
    if response.id is not None:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    sink = io.BytesIO()
    sink.write(_dump(document)[:-1] + b',"outputs":[')
    for number, tensor in enumerate(response.outputs):
        sink.write(b"," if number else b"")
        _write_tensor(sink, tensor)
    sink.write(b"]}")
    return sink.getvalue()


SLICE: Final = 1 << 11
"""Elements that are Python objects and text at one time while an answer is written: each takes ten times its size."""


def _write_tensor(sink: io.BytesIO, tensor: Tensor) -> None:
    """As `_encode_tensor` has it, slice by slice."""
    flat = tensor.array.reshape(-1)
    sink.write(_dump(_encode_tensor(tensor, flat[:SLICE]))[:-2])  # without "]}": the data goes on
    for start in range(SLICE, len(flat), SLICE):
        sink.write(b"," + _dump(_values(tensor.datatype, flat[start : start + SLICE]))[1:-1])
    sink.write(b"]}")


def _encode_tensor(tensor: Tensor, flat: Array) -> dict[str, Any]:
    data = _values(tensor.datatype, flat)
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "data": data}


def _values(datatype: str, flat: Array) -> list[Any]:
    values: list[Any] = flat.tolist()
    if datatype == "BYTES":
        try:
            return [element.decode("utf-8") for element in values]
        except UnicodeDecodeError:
            raise InvalidRequest(
                "a BYTES tensor holds bytes that are not UTF-8, which JSON cannot carry",
                code="oip_bytes_not_text",
            ) from None
    return values


def _dump(document: dict[str, Any] | list[Any]) -> bytes:
    # json writes floats shortest-exact, and the bare literals NaN, Infinity and -Infinity, as Triton does.
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
