"""Requests that share a run, through the whole data plane: answers, errors and turns are those of runs alone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey as Key
from onnx import TensorProto, helper, numpy_helper
from plane import ALICE, BOB, World, linear_onnx, plane, stream, xgboost_json

from strongroom.engine import Session
from strongroom.errors import Error
from strongroom.launch import CHILD, dependency_folders
from strongroom.oip import InferRequest, InferResponse, Tensor
from strongroom.planned import FEWEST
from strongroom.processes import Worker, WorkerLimits
from strongroom.store import ModelVersion
from strongroom.workers import Workers
from strongroom.zygote import Launch, Nursery

COUNT = 24
"""Requests at once: more than there are places, fewer than one caller may have."""


def put(world: World, data: bytes, *, name: str = "m", format: str = "onnx", batching: str = "on") -> None:
    """Alice's public model."""
    fields = {"strongroom_access": "public", "strongroom_batching": batching}
    answer = asyncio.run(world.put(name, data, format=format, **fields))
    assert answer.status_code == 201, answer.text
    assert answer.json()["batching"] is (batching == "on")


def encode(response: InferResponse) -> bytes:
    """All outputs' bytes."""
    return b"".join(tensor.array.tobytes() for tensor in response.outputs)


async def ask(world: World, row: np.ndarray[Any, Any], *, key: Key | None = ALICE, name: str = "m") -> Any:
    """The bytes of one answer, or the error's code."""

    def decode(_data: bytes, model: ModelVersion) -> InferRequest:
        spec = model.info.inputs[0]
        tensor = Tensor(name=spec.name, datatype=spec.datatype, array=row)
        return InferRequest(id=None, inputs=(tensor,), outputs=(), parameters=())

    try:
        _, data = await world.service.infer(
            world.call(key=key), name=name, version=None, expect_sha256=None, body=stream(b"?"), decode=decode,
            encode=encode,
        )  # fmt: skip
    except Error as error:
        return error.code
    return data


def together(world: World, rows: list[Any], **how: Any) -> list[Any]:
    """Answers to requests that were there at once."""

    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*(ask(world, row, **how) for row in rows)))

    return asyncio.run(all_of_them())


def alone(world: World, rows: list[Any], **how: Any) -> list[Any]:
    """The same, one after the other: nobody is there to share a run with."""
    return [answer for row in rows for answer in together(world, [row], **how)]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each run in this process, in order."""
    seen: list[int] = []
    real = Session.run

    def run(self: Session, inputs: Any, **more: Any) -> Any:
        seen.append(len(next(iter(inputs.values()))))
        return real(self, inputs, **more)

    monkeypatch.setattr(Session, "run", run)
    return seen


def rows_of(columns: int, *, seed: int = 0) -> list[Any]:
    """Requests of one to three rows each."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1 + at % 3, columns)).astype(np.float32) for at in range(COUNT)]


def mlp_onnx(*, mixing: bool = False) -> bytes:
    """Two dense layers; `mixing`: the mean of all rows is taken away first."""
    rng = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("a", (16, 64)), ("b", (64, 8)))
    ]
    zero = numpy_helper.from_array(np.array([0], np.int64), "zero")
    nodes = [
        helper.make_node("MatMul", ["c" if mixing else "x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    if mixing:
        mean = helper.make_node("ReduceMean", ["x", "zero"], ["mean"], keepdims=1)
        nodes = [mean, helper.make_node("Sub", ["x", "mean"], ["c"]), *nodes]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 8])
    graph = helper.make_graph(nodes, "mlp", [x], [y], [*weights, *([zero] if mixing else [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def lookup_onnx() -> bytes:
    """Rows of a table of four: a row that is not there ends the run."""
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["rows"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])
    table = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])], "lookup", [x], [y], [table]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


# In this process


def test_trees_answer_to_the_bit_as_alone(tmp_path: Path, runs: list[int]) -> None:
    """And in far fewer runs, once the trials are over."""
    with plane(tmp_path) as world:
        put(world, xgboost_json(), format="xgboost-json")
        spec = world.store.get("m", None).info.inputs[0]
        assert spec.shape is not None and isinstance(spec.shape[1], int)
        asked = rows_of(spec.shape[1])
        expected = alone(world, asked)
        for _ in range(6):  # some of them trials
            assert together(world, asked) == expected
        runs.clear()
        assert together(world, asked) == expected
        assert len(runs) <= 6 and max(runs) > 3


def test_products_of_matrices_are_within_the_tolerance(tmp_path: Path, runs: list[int]) -> None:
    """Kernels take other paths for more rows: not to the bit, but nearly."""
    with plane(tmp_path) as world:
        put(world, mlp_onnx())
        asked = rows_of(16)
        expected = [np.frombuffer(data, np.float32) for data in alone(world, asked)]
        for _ in range(6):
            for got, one in zip(together(world, asked), expected, strict=True):
                np.testing.assert_allclose(np.frombuffer(got, np.float32), one, rtol=1e-5, atol=1e-5)
        assert max(runs) > 3


def test_a_model_that_mixes_rows_is_found_out(
    tmp_path: Path, runs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """By the first joined run, whose answers nobody gets; its requests share no run afterwards."""
    with plane(tmp_path) as world:
        put(world, mlp_onnx(mixing=True))
        asked = rows_of(16)
        expected = alone(world, asked)
        assert together(world, asked) == expected
        assert "depend on one another" in caplog.text
        runs.clear()
        assert together(world, asked) == expected
        assert max(runs) <= 3


def test_off_unless_the_owner_said_so(tmp_path: Path, runs: list[int]) -> None:
    """Nor for callers without a key, whom nobody can tell apart; nor beyond the setting."""
    with plane(tmp_path, limits={"batch_rows": 4}) as world:
        put(world, linear_onnx(), batching="off")
        put(world, linear_onnx(), name="on")
        asked = rows_of(4)
        for how in ({"name": "m"}, {"name": "on", "key": None}):
            together(world, asked, **how)
            assert max(runs) <= 3
        for _ in range(6):
            together(world, asked, name="on")
        assert max(runs) == 4


def test_callers_share_no_run(tmp_path: Path, runs: list[int]) -> None:
    """Even in one process; and many of one caller's are one turn, so that another waits for what runs only."""
    with plane(tmp_path) as world:
        put(world, linear_onnx())
        asked = [np.full((1, 4), at, np.float32) for at in range(COUNT)]
        for _ in range(6):
            together(world, asked)
        order: list[str] = []

        async def one(row: Any, key: Key, who: str) -> None:
            assert (
                await ask(world, row, key=key)
                == np.concatenate([(2 * row).ravel(), [8 * row[0, 0]]]).astype(np.float32).tobytes()
            )
            order.append(who)

        async def both() -> None:
            mine = [one(row, ALICE, "a") for row in asked]
            await asyncio.gather(*mine, one(asked[7], BOB, "b"))

        runs.clear()
        asyncio.run(both())
        assert 1 in runs and sum(runs) == COUNT + 1
        assert len(order) == COUNT + 1 and len(runs) <= 6


def test_each_has_the_error_of_a_run_alone(tmp_path: Path, runs: list[int]) -> None:
    """What ends a joined run ends it for the one whose rows did it."""
    with plane(tmp_path) as world:
        put(world, lookup_onnx())
        asked = [np.array([at % 4], np.int64) for at in range(COUNT)]
        for _ in range(6):
            together(world, asked)
        asked[5] = np.array([99], np.int64)
        got = together(world, asked)
        assert got[5] == "run_failed"
        assert [answer for at, answer in enumerate(got) if at != 5] == [
            np.arange(8, dtype=np.float32).reshape(4, 2)[at % 4].tobytes() for at in range(COUNT) if at != 5
        ]
        asked[5] = np.zeros((1, 1), np.int64)
        got = together(world, asked)  # does not join at all
        assert got[5] == "input_rank" and "run_failed" not in got


def test_what_an_upload_may_say(tmp_path: Path) -> None:
    """A word that is none, and a model whose rows are not its first dimension."""
    with plane(tmp_path) as world:
        answer = asyncio.run(world.put("m", linear_onnx(), format="onnx", strongroom_batching="yes"))
        assert (answer.status_code, answer.json()["code"]) == (400, "batching_invalid")
        model = helper.make_model(
            helper.make_graph(
                [helper.make_node("Relu", ["x"], ["y"])],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        answer = asyncio.run(
            world.put("m", model.SerializeToString(), format="onnx", strongroom_batching="on")
        )
        assert (answer.status_code, answer.json()["code"]) == (400, "batching_unsupported")
        assert not world.store.models()


# In workers


LIMITS = WorkerLimits(
    processes=32, run_bytes=1 << 30, run_longest_s=60, input_bytes=4 << 20, response_bytes=4 << 20,
    elements=1 << 16, idle_bytes=64 << 20,
)  # fmt: skip


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One zygote."""
    if sys.platform != "linux":
        pytest.skip("not exercised here: workers are Linux's")
    launch = Launch(
        paths=dependency_folders("simulated"), environment=CHILD, folder=Path("/"), measured=None,
        flags=("-I", "-S"), workers=True,
    )  # fmt: skip
    with Nursery(launch) as made:
        held = made.wait()
        if not set(FEWEST) <= set(held):
            pytest.skip(f"not exercised here: of the sandbox only {', '.join(held)} can be had")
        yield made


class Spied:
    """What workers were given: rows of each run, and what is done to one that has several."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.send: signal.Signals | None = None
        self.begun: list[Worker] = []
        real = Worker.begin

        def begin(one: Worker, inputs: Any, *more: Any) -> None:
            rows = len(inputs["x"])
            self.rows.append(rows)
            if rows > 3 and self.send is not None:
                os.kill(one.pid, self.send)
                self.begun.append(one)
            real(one, inputs, *more)

        monkeypatch.setattr(Worker, "begin", begin)


def warmed(world: World, asked: list[Any]) -> list[Any]:
    """The answers, once nothing is tried any more."""
    for _ in range(6):
        got = together(world, asked)
    return got


@pytest.mark.slow
@pytest.mark.parametrize(("isolation", "joined"), [("owner", True), ("model", True), ("request", False)])
def test_only_what_the_isolation_allows(
    tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch, isolation: str, joined: bool
) -> None:
    """A process for each request is what a client was promised: nothing is joined there."""
    spied = Spied(monkeypatch)
    host = Workers(nursery, isolation=isolation, layers=FEWEST, limits=LIMITS)
    with plane(tmp_path, host=host) as world:
        put(world, linear_onnx())
        asked = rows_of(4)[: COUNT if joined else 6]
        got = warmed(world, asked) if joined else together(world, asked)
        expected = [np.concatenate([2 * row.ravel(), (2 * row).sum(axis=1)]) for row in asked]
        for data, one in zip(got, expected, strict=True):
            np.testing.assert_allclose(np.frombuffer(data, np.float32), one, rtol=1e-6, atol=1e-6)
        assert (max(spied.rows) > 3) is joined


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_for_each(
    tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those who shared the run, and nobody else; it is one death, and the model is there again."""
    spied = Spied(monkeypatch)
    host = Workers(nursery, isolation="owner", layers=FEWEST, limits=LIMITS)
    with plane(tmp_path, host=host) as world:
        put(world, linear_onnx())
        put(world, linear_onnx(factor=3.0), name="other")
        asked = rows_of(4)
        warmed(world, asked)
        spied.send = signal.SIGKILL
        got = together(world, asked)
        spied.send = None
        assert "worker_died" in got
        assert set(map(type, got)) <= {str, bytes} and {g for g in got if isinstance(g, str)} <= {
            "worker_died", "model_quarantined",
        }  # fmt: skip
        assert together(world, asked[:1], name="other", key=BOB)[0].__class__ is bytes
        assert together(world, asked[:1], key=BOB)[0].__class__ is bytes


@pytest.mark.slow
def test_who_goes_away_takes_nobody_along(
    tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of a shared run goes on while somebody waits for it."""
    spied = Spied(monkeypatch)
    host = Workers(nursery, isolation="owner", layers=FEWEST, limits=LIMITS)
    with plane(tmp_path, host=host) as world:
        put(world, linear_onnx())
        asked = rows_of(4)
        expected = warmed(world, asked)
        spied.send = signal.SIGSTOP

        async def some_leave() -> list[Any]:
            tasks = [asyncio.ensure_future(ask(world, row)) for row in asked]
            while not spied.begun:
                await asyncio.sleep(0.005)
            spied.send = None
            for task in tasks[::2]:
                task.cancel()
            await asyncio.sleep(0.01)
            for one in spied.begun:
                os.kill(one.pid, signal.SIGCONT)
            return await asyncio.gather(*tasks, return_exceptions=True)

        got = asyncio.run(some_leave())
        assert got[1::2] == expected[1::2]
        assert all(isinstance(answer, (asyncio.CancelledError, bytes)) for answer in got[::2])


@pytest.mark.slow
def test_a_shared_run_has_a_deadline(
    tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is that of a run with all the rows; it ends for each, and nobody's runs alone are made for it."""
    spied = Spied(monkeypatch)
    host = Workers(nursery, isolation="owner", layers=FEWEST, limits=LIMITS)
    with plane(tmp_path, host=host) as world:
        put(world, linear_onnx())
        asked = rows_of(4)
        warmed(world, asked)
        object.__setattr__(world.service._runner._limits, "shortest_s", 0.2)
        spied.send = signal.SIGSTOP
        spied.rows.clear()
        got = together(world, asked)
        spied.send = None
        assert "run_too_long" in got
        assert {answer for answer in got if isinstance(answer, str)} == {"run_too_long"}
        assert together(world, asked[:1])[0].__class__ is bytes
