"""What a stranger's bytes may make us allocate: bounded before anything is made of them, by what arrived.

The refusals of each reader have their vectors beside it (test_npy, test_oip, test_edge, test_client, models); here is
what cuts across: the memory that a bomb takes until it is refused, and codings that could hide one.
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from plane import ALICE, linear_onnx, plane

from strongroom import bodies, npy, oip
from strongroom.errors import Error
from strongroom.oip import WireLimits
from strongroom.rest import BodyLost, _while_connected

LIMITS = WireLimits(tensors=64, tensor_bytes=4 << 20, total_bytes=8 << 20, elements=100_000, name_length=128)
SPARE = 3 << 20
"""Bytes that a refusal may take whatever the body: one member may inflate to a megabyte before it is looked at."""


def _npz(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return buffer.getvalue()


def _npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def _predict(data: bytes) -> object:
    return bodies.parse_question(data, limits=LIMITS)


def _request(data: bytes) -> object:
    return oip.parse_request(data, limits=LIMITS)


def _array(data: bytes) -> object:
    return npy.decode_npy(data, limits=LIMITS)


def _archive(data: bytes) -> object:
    return npy.decode_npz(data, limits=LIMITS)


INPUTS = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": '
ZEROS = _npy("<f4", "(2000000,)", bytes(8_000_000))
MANY = [(f"{n}.npy", _npy("<f4", "(250000,)", bytes(1_000_000))) for n in range(60)]

BOMBS: dict[str, tuple[Callable[[bytes], object], bytes, str]] = {
    "predict: lists of nothing": (
        _predict,
        b'{"features": [' + b"[]," * 400_000 + b"[]]}",
        "oip_too_many_elements",
    ),
    "predict: objects": (_predict, b'{"features": [' + b"{}," * 400_000 + b"{}]}", "oip_too_many_elements"),
    "predict: numbers": (_predict, b'{"features": [' + b"1," * 600_000 + b"1]}", "oip_too_many_elements"),
    "predict: texts": (_predict, b'{"features": [' + b'"",' * 400_000 + b'""]}', "oip_too_many_elements"),
    "predict: depth": (_predict, b'{"features": ' + b"[" * 1_000_000, "oip_too_deep"),
    "predict: digits": (_predict, b'{"features": [' + b"9" * 1_000_000 + b"]}", "oip_too_many_digits"),
    "predict: fraction": (_predict, b'{"features": [0.' + b"9" * 1_000_000 + b"]}", "oip_too_many_digits"),
    "request: numbers": (_request, INPUTS + b"[" + b"1," * 600_000 + b"1]}]}", "oip_too_many_elements"),
    "request: lists": (_request, INPUTS + b"[" + b"[]," * 400_000 + b"[]]}]}", "oip_too_many_elements"),
    "request: members": (
        _request,
        b"{" + b",".join(b'"%d":0' % n for n in range(250_000)) + b"}",
        "oip_too_many_elements",
    ),
    "request: depth": (_request, INPUTS + b"[" * 1_000_000, "oip_too_deep"),
    "request: digits": (_request, INPUTS + b"[" + b"9" * 1_000_000 + b"]}]}", "oip_too_many_digits"),
    "request: shape": (
        _request,
        INPUTS.replace(b"[1]", b"[1000000000, 1000000000]") + b"[]}]}",
        "oip_too_many_elements",
    ),
    "npy: shape": (_array, _npy("<f8", "(1000000000000,)"), "oip_too_many_elements"),
    "npy: empty but wide": (_array, _npy("<f8", "(0, 1000000000000)"), "oip_too_many_elements"),
    "npy: wide strings": (_array, _npy("<U1000000", "(99999,)"), "npy_length"),
    "npy: header": (_array, b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 1_000_000, "npy_header_too_long"),
    "npz: ratio": (_archive, _npz(("a.npy", ZEROS)), "npz_ratio"),
    "npz: many at the ratio": (_archive, _npz(*MANY), "oip_too_many_elements"),
    "npz: members": (_archive, _npz(*((f"{n}.npy", b"") for n in range(5000))), "oip_too_many_tensors"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(name: str) -> None:
    """Refused by its code; what Python allocates on the way is a small multiple of what arrived."""
    read, data, code = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(Error) as caught:
            read(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert peak <= SPARE + 4 * len(data), peak


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x-gzip"])
@pytest.mark.parametrize("path", ["/model/upload", "/model/predict", "/v2/models/m/infer"])
def test_no_body_is_taken_in_a_content_coding(tmp_path: Path, path: str, coding: str) -> None:
    """Whatever it unpacks to: 415 on every path that has a body, and nothing is unpacked."""
    bomb = zlib.compress(bytes(1 << 22))
    with plane(tmp_path, anonymous_upload=True) as world:
        answer = asyncio.run(world.put("m", linear_onnx(), format="onnx", strongroom_access="public"))
        assert answer.status_code == 201
        answer = asyncio.run(world.request("POST", path, body=bomb, headers={"Content-Encoding": coding}))
        assert (answer.status_code, answer.json()["code"]) == (415, "media_type_unsupported")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/model/upload", 400, ""),
        ("/model/predict", 400, "predict_invalid"),
        ("/v2/models/m/infer", 415, "media_type_unsupported"),
    ],
)
def test_multipart_is_not_taken_apart(tmp_path: Path, path: str, status: int, code: str) -> None:
    """A form is refused as what it is, a body of another kind: there is no parser of parts."""
    with plane(tmp_path, anonymous_upload=True) as world:
        asyncio.run(world.put("m", linear_onnx(), format="onnx", strongroom_access="public"))
        request = httpx.Request("POST", "https://x", files={"file": ("m.onnx", linear_onnx())})
        kind = request.headers["content-type"]
        answer = asyncio.run(world.request("POST", path, body=request.read(), headers={"Content-Type": kind}))
        assert answer.status_code == status, answer.text
        assert answer.json()["code"] == code or not code


# Those who hang up


class Peer:
    """A caller that sends `body` and hangs up when told, as `exchange.Exchange` tells it."""

    def __init__(self, body: bytes = b"") -> None:
        self.disconnected = False
        self._body = body
        self._act: Any = None

    async def whole(self, count: Any) -> bytes:
        """The body."""
        count(len(self._body))
        return self._body

    def when_gone(self, act: Any) -> None:
        """Has `act` called when the caller hangs up."""
        self._act = act
        if act is not None and self.disconnected:
            act()

    def hang_up(self) -> None:
        """The caller is gone."""
        self.disconnected = True
        if self._act is not None:
            self._act()


def test_who_hangs_up_while_waiting_is_no_longer_in_line(tmp_path: Path) -> None:
    """All threads are busy; a caller that waits for one leaves, and its run never happens."""

    async def story() -> None:
        release = threading.Event()
        runs = world.service._runner._runs
        busy = [asyncio.ensure_future(runs.run(release.wait)) for _ in range(2)]
        row = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        peer = Peer(json.dumps({"inputs": [row]}).encode())
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/models/m/infer",
            "raw_path": b"/v2/models/m/infer",
            "query_string": b"",
            "headers": [],
            "client": ("192.0.2.1", 1),
            "strongroom.exchange": peer,
        }
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the exchange has the body")

        async def send(message: Any) -> None:
            sent.append(message)

        call = asyncio.ensure_future(world.rest(scope, receive, send))
        while runs._line.waiting == 0:
            await asyncio.sleep(0.005)
        peer.hang_up()
        await call
        assert runs._line.waiting == 0 and sent == []
        release.set()
        assert await asyncio.gather(*busy) == [True, True]

    with plane(tmp_path) as world:
        asyncio.run(world.put("m", linear_onnx(), format="onnx", strongroom_access="public"))
        asyncio.run(world.request("POST", "/v1/models/m/load", key=ALICE))
        asyncio.run(story())


def test_a_remembered_head_is_asked_for_its_rights_each_time(tmp_path: Path) -> None:
    """A token that was good is refused once its time is over, and a model that is gone is gone."""

    async def story() -> None:
        row = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        body = json.dumps({"inputs": [row]}).encode()
        token = world.token(ALICE, method="POST", path="/v2/models/m/infer", body=None)
        facts: dict[str, Any] = {}

        async def status(bearer: str) -> int:
            sent: list[Any] = []

            async def receive() -> Any:
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {
                "type": "http", "method": "POST", "path": "/v2/models/m/infer", "query_string": b"",
                "raw_path": b"/v2/models/m/infer", "client": ("192.0.2.1", 1), "strongroom.facts": facts,
                "headers": [(b"authorization", b"Bearer " + bearer.encode())],
            }  # fmt: skip
            await world.rest(scope, receive, send)
            code: int = sent[0]["status"]
            return code

        assert await status(token) == await status(token) == 200
        assert facts["asked"].call.token == token
        service = world.service
        clocks = service._clocks
        later: Any = SimpleNamespace(
            now=lambda: clocks.now() + timedelta(hours=1), monotonic=clocks.monotonic
        )
        service._clocks = later
        assert await status(token) == 401
        service._clocks = clocks
        assert await status(token) == 200
        await world.request("DELETE", "/v1/models/m", key=ALICE)
        assert await status(token) == 404

    with plane(tmp_path) as world:
        asyncio.run(world.put("m", linear_onnx(), format="onnx"))
        asyncio.run(story())


def test_who_stays_gets_the_answer_or_the_error() -> None:
    """The watch changes nothing for those who stay; whoever else cancels the request is not taken for the caller."""

    async def answer() -> str:
        return "ab"

    async def broken() -> str:
        raise Error("x")

    async def story() -> None:
        peer = Peer()
        request: Any = SimpleNamespace(scope={"strongroom.exchange": peer})
        assert await _while_connected(request, answer()) == "ab"
        with pytest.raises(Error):
            await _while_connected(request, broken())
        task = asyncio.ensure_future(_while_connected(request, asyncio.sleep(60)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        task = asyncio.ensure_future(_while_connected(request, asyncio.sleep(60)))
        await asyncio.sleep(0)
        peer.hang_up()
        with pytest.raises(BodyLost):
            await task
        assert await _while_connected(SimpleNamespace(scope={}), answer()) == "ab"

    asyncio.run(story())


def test_an_ordinary_request_is_far_from_every_bound() -> None:
    """The limits of this file refuse bombs, not tensors of some size."""
    numbers = np.arange(90_000, dtype=np.float32)
    out = io.BytesIO()
    np.savez_compressed(out, x=numbers)
    assert npy.decode_npz(out.getvalue(), limits=LIMITS)["x"].shape == (90_000,)
    body = json.dumps({"features": [[float(n) for n in range(300)]] * 300}).encode()
    assert bodies.parse_question(body, limits=LIMITS).name is None
