"""What a server or a file can hand to the client. Oracle: a value or a `strongroom.errors.Error`, nothing else."""

import contextlib
import json
import tempfile
from pathlib import Path

import httpx

from strongroom import calls, http1, inference, tabular
from strongroom.calls import Answer, Request, Unacceptable
from strongroom.errors import Error
from strongroom.transport import parse_origin

MODEL = calls.read_metadata(
    {
        "name": "m", "version": "1", "format": "onnx", "sha256": "0" * 64, "canonical_sha256": "0" * 64, "size": 1,
        "owner": "", "access": "public", "created": 1, "loaded": False, "erasure": "not_against_host_copies",
        "feature_names": ["a", "b"], "notes": {}, "threads": 1, "stages": 1, "cpu": "x86-64-v3", "simulated": True,
        "engine": "onnxruntime/1", "precision": {"name": "fp32", "narrow": {}, "made": None},
        "primary_output": "y",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": None}],
    }
)  # fmt: skip
WANTED = inference.Wanted(("y",), single=True)

SEEDS = {
    "fuzz_client_answers": (
        json.dumps({"models": [MODEL.to_json()]}).encode(),
        json.dumps(MODEL.to_json()).encode(),
        b'{"code":"not_found","detail":"d","status":404}',
        b'{"deleted":[{"name":"m","version":"1"}]}',
        b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[1.0]}]}',
    ),
    "fuzz_client_inputs": (b"a,b\n1,2\n", b"1,2\n,4\n", b"[[1,2]]", b'{"x":[[1,2]]}'),
    "fuzz_client_http": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 40\r\n\r\n" + b"x" * 40,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n1e\r\n"
        + b"y" * 30
        + b"\r\n0\r\nX: y\r\n\r\n",
    ),
    "fuzz_client_urls": (b"https://host:8443", b"[::1]:1", b"user@host"),
}


def fuzz_client_answers(data: bytes) -> None:
    """Every reader of an answer's body."""
    answer = Answer(503, {"retry-after": data[:4].decode("latin-1")}, data)
    assert isinstance(calls.error_of(answer), Error)
    for read in (calls.json_object, calls.read_models, calls.read_deleted, _metadata):
        with contextlib.suppress(Error):
            read(answer)
    for content in ("application/json", "application/x-npy", "application/x-npz"):
        headers = {"content-type": content, "strongroom-model-sha256": MODEL.sha256}
        with contextlib.suppress(Error):
            inference.read_result(Answer(200, headers, data), metadata=MODEL, wanted=WANTED)


def _metadata(answer: Answer) -> object:
    return calls.read_metadata(calls.json_object(answer))


def fuzz_client_http(data: bytes) -> None:
    """One answer, cut in pieces of 13 bytes and not at all: the same value or the same refusal, within its limit."""
    assert _heard(data, 13) == _heard(data, 1 << 14)


def _heard(data: bytes, at_once: int) -> object:
    reader, at = http1.Reader(Request(method="GET", path="/", max_answer=64)), 0
    try:
        while at < len(data):
            room = reader.room()[:at_once]
            count = min(len(room), len(data) - at)
            room[:count] = data[at : at + count]
            at += count
            if reader.filled(count):
                assert len(reader.answer().data) <= 64
                return reader.answer()
    except Unacceptable as refused:
        return refused.code
    return reader.cut().code


def fuzz_client_inputs(data: bytes) -> None:
    """Files with inputs of every kind, and the arrays made of them."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in tabular.KINDS:
            path = Path(folder) / f"f{kind}"
            path.write_bytes(data)
            with contextlib.suppress(Error):
                inference.fit_inputs(MODEL, tabular.read_inputs(path, metadata=MODEL).value)


def fuzz_client_urls(data: bytes) -> None:
    """Addresses."""
    with contextlib.suppress(Error):
        httpx.URL(parse_origin(data.decode("latin-1")).url)
