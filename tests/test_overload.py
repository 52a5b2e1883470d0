"""One server that is flooded in every way a caller has: what is too much is refused, the rest goes on."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from plane import ALICE, BOB, linear_onnx
from serving import Serving, serving
from test_server import Caller

from strongroom.npy import encode_npy

pytestmark = pytest.mark.slow

SETTINGS = """
[limits]
concurrent_requests = 12
concurrent_requests_per_caller = 6
concurrent_runs = 1
waiting_runs_per_caller = 2
uploads_per_minute = 6
evidence_per_minute = 20
"""
ROWS = 2000
"""Rows of a flooder's request: some 30 ms of work."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The server, with small limits."""
    with serving(tmp_path_factory.mktemp("server"), settings=SETTINGS) as running:
        yield running


def _work_onnx() -> bytes:
    """y = ((x W1) W2) W3 for any number of rows: half a million multiplications for each."""
    rng = np.random.default_rng(1)
    shapes = {"w1": (4, 512), "w2": (512, 512), "w3": (512, 1)}
    weights = [numpy_helper.from_array(rng.random(shape, np.float32), n) for n, shape in shapes.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["b"]),
        helper.make_node("MatMul", ["b", "w3"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])
    graph = helper.make_graph(nodes, "work", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def _infer(caller: Caller, key: Any, rows: int) -> httpx.Response:
    body = encode_npy(np.ones((rows, 4), np.float32))
    return caller.request("POST", "/v2/models/busy/infer", body, key=key, Content_Type="application/x-npy")


def _is_refusal(answer: httpx.Response) -> bool:
    """A refusal for there being too much, in form: a code, and when to come back."""
    assert answer.status_code in (429, 503), answer.text
    assert answer.json()["code"] in ("caller_too_busy", "overloaded", "upload_rate", "uploads_busy")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    return True


def test_a_flood_is_refused_while_others_get_all_their_answers(server: Serving) -> None:
    """One principal floods with runs and uploads from ten connections. Health answers throughout; the flooder's
    refusals have a code and Retry-After; another caller gets every answer, and the right one.
    """
    setup = Caller(server.url)
    assert setup.put("busy", _work_onnx(), access="public", key=ALICE).status_code == 201
    expected = _infer(setup, BOB, 1).content
    over = threading.Event()

    def flood_runs() -> list[httpx.Response]:
        caller = Caller(server.url, timeout=120)
        return [_infer(caller, ALICE, ROWS) for _ in range(12)]

    def flood_uploads() -> list[httpx.Response]:
        caller = Caller(server.url, timeout=120)
        return [caller.put(f"m{n}", linear_onnx(), key=ALICE) for n in range(8)]

    def ask_health() -> list[httpx.Response]:
        caller = Caller(server.url, timeout=120)
        answers = []
        while not over.wait(0.02):
            answers += [caller.http.get(path) for path in ("/health", "/v2/health/ready")]
        return answers

    def honest() -> list[httpx.Response]:
        caller = Caller(server.url, timeout=120)
        return [_infer(caller, BOB, 1) for _ in range(25)]

    with ThreadPoolExecutor(12) as pool:
        health = pool.submit(ask_health)
        floods = [pool.submit(flood) for flood in (*[flood_runs] * 8, *[flood_uploads] * 2)]
        answers = pool.submit(honest).result()
        flooded = [answer for flood in floods for answer in flood.result()]
        over.set()
        calm = health.result()
    assert [answer.status_code for answer in answers] == [200] * 25
    assert {answer.content for answer in answers} == {expected}
    served = [answer for answer in flooded if answer.status_code in (200, 201)]
    refused = [answer for answer in flooded if answer.status_code not in (200, 201) and _is_refusal(answer)]
    codes = Counter(answer.json()["code"] for answer in refused)
    assert len(served) + len(refused) == len(flooded) and served
    assert codes["caller_too_busy"] and codes["upload_rate"], codes
    assert calm and {answer.status_code for answer in calm} == {200}
    assert _infer(setup, ALICE, 1).content == expected  # and the flooder is welcome again


def test_a_flood_of_questions_for_evidence_is_refused(server: Serving) -> None:
    """An address that asks too often is told to wait, and everything else goes on."""
    caller = Caller(server.url)
    answers = [caller.http.get("/v1/evidence?nonce=" + "ab" * 32) for _ in range(35)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 8
    assert {answer.json()["code"] for answer in refused} == {"evidence_rate"}
    assert int(refused[-1].headers["retry-after"]) >= 1
    assert caller.http.get("/health").status_code == 200
    assert _infer(caller, BOB, 1).status_code == 200
