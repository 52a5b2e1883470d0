"""Requests as bytes, and answers as arrays: `.npy`, `.npz`, and the Open Inference Protocol in JSON and binary form.

The protocol: https://github.com/kserve/open-inference-protocol; its binary extension as Triton documents it.
"""

from __future__ import annotations

import http.client
import io
import json
import ssl
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
DATATYPES: Final = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "int32": "INT32"}
_DTYPES: Final = {datatype: dtype for dtype, datatype in DATATYPES.items()}


def npy(array: Array) -> bytes:
    """One array as numpy's own file."""
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()


def npz(arrays: Mapping[str, Array]) -> bytes:
    """Arrays by name, not compressed."""
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    return sink.getvalue()


def read_npz(data: bytes) -> list[Array]:
    """The arrays of an .npz file, in the order in which they were written."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return [arrays[name] for name in arrays.files]


def read_npy(data: bytes) -> list[Array]:
    """The one array of an .npy file."""
    return [np.load(io.BytesIO(data), allow_pickle=False)]


def oip_json(inputs: Mapping[str, Array]) -> bytes:
    """A request of the Open Inference Protocol, values as JSON numbers."""
    return json.dumps(
        {"inputs": [{**_head(n, a), "data": a.ravel().tolist()} for n, a in inputs.items()]}
    ).encode()


def read_oip_json(data: bytes) -> list[Array]:
    """The outputs of such an answer."""
    answer = json.loads(data)
    return [
        np.array(o["data"], _DTYPES[o["datatype"]]).reshape(o["shape"]) for o in answer["outputs"]
    ]  # fmt: skip


def oip_binary(inputs: Mapping[str, Array]) -> tuple[bytes, int]:
    """A request of the binary extension: JSON, raw little-endian values behind it; and the length of the JSON."""
    heads = [{**_head(n, a), "parameters": {"binary_data_size": a.nbytes}} for n, a in inputs.items()]
    head = json.dumps({"inputs": heads, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(a.tobytes() for a in inputs.values()), len(head)


def read_oip_binary(data: bytes, head_length: int) -> list[Array]:
    """The outputs of such an answer; `head_length` as its header `Inference-Header-Content-Length` says."""
    at, outputs = head_length, []
    for output in json.loads(data[:head_length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        raw = np.frombuffer(data[at : at + size], _DTYPES[output["datatype"]])
        outputs.append(raw.reshape(output["shape"]))
        at += size
    return outputs


def _head(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": DATATYPES[str(array.dtype)]}


# --- HTTP ---------------------------------------------------------------------------------------------------


def http_request(
    method: str, path: str, *, host: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """A whole HTTP/1.1 request, for a connection that stays open."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{n}: {v}" for n, v in (headers or {}).items())]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def fetch_header(host: str, port: int, path: str, name: str, context: ssl.SSLContext) -> str:
    """A header of the answer to a GET.

    Raises:
        OSError: no answer, or one without it.
    """
    connection = http.client.HTTPSConnection(host, port, timeout=30, context=context)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        value = response.getheader(name)
    finally:
        connection.close()
    if value is None:
        raise OSError(f"an answer without {name}")
    return value
