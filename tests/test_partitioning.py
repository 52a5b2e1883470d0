"""Models in stages: made by confined processes, sealed one by one, run stage by stage with the whole's bytes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from store_worker import open_store

from strongroom.admission import ChildLimits
from strongroom.engine import Engine
from strongroom.forms import Forms
from strongroom.jobs import Job, Source
from strongroom.launch import CHILD, dependency_folders
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS, Admitted
from strongroom.planned import FEWEST
from strongroom.prepared import Making
from strongroom.processes import WorkerLimits
from strongroom.state import ModelVersion
from strongroom.store import Store
from strongroom.workers import Workers
from strongroom.zygote import Launch, Nursery

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: preparers are Linux's"),
]

MAKING = Making(engine="engine/1 options 0", processor="some features 1")
LIMITS = ChildLimits(wall_s=60, cpu_s=60, memory_bytes=1 << 30)
RUNS = WorkerLimits(
    processes=4, run_bytes=1 << 30, run_longest_s=60, input_bytes=32 << 20, response_bytes=16 << 20, elements=1 << 20
)  # fmt: skip
OWNER = "a" * 64
FLOAT = TensorProto.FLOAT
LAYERS, WIDTH = 8, 256


def network() -> Admitted:
    """Eight products of 256 KiB each, the last of which adds what the first one gave; two inputs."""
    values = np.random.default_rng(1)
    nodes, weights = [], []
    for n in range(LAYERS):
        name = f"w{n}"
        array = values.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 16
        weights.append(numpy_helper.from_array(array, name))
        nodes.append(helper.make_node("MatMul", [f"v{n}" if n else "x", name], [f"v{n + 1}"]))
    nodes.append(helper.make_node("Add", [f"v{LAYERS}", "v1"], ["s"]))
    nodes.append(helper.make_node("Add", ["s", "z"], ["y"]))
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info(name, FLOAT, ["n", WIDTH]) for name in ("x", "z")],
        [helper.make_tensor_value_info(name, FLOAT, ["n", WIDTH]) for name in ("y", "v1")], weights,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return admit(made.SerializeToString(), format="onnx", limits=STANDARD_LIMITS)


NETWORK = network()
X = {
    name: np.random.default_rng(n).standard_normal((3, WIDTH), dtype=np.float32)
    for n, name in enumerate("xz")
}
WHOLE = Engine().load(NETWORK).run(X, outputs=())
BYTES = LAYERS * WIDTH * WIDTH * 4


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One zygote."""
    launch = Launch(
        paths=dependency_folders("simulated"), environment=CHILD, folder=Path("/"), measured=None,
        flags=("-I", "-S"), workers=True,
    )  # fmt: skip
    with Nursery(launch) as made:
        held = made.wait()
        if not {*FEWEST, "landlock"} <= set(held):
            pytest.skip(f"not exercised here: of the sandbox only {', '.join(held)} can be had")
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    with open_store(tmp_path / "store") as made:
        yield made


def put(store: Store, *, partition: str = "4", name: str = "net") -> ModelVersion:
    """Uploads the network."""
    upload = store.begin(name=name, owner=OWNER, access="private", format="onnx", max_bytes=1 << 30)
    upload.write(NETWORK.onnx)
    upload.seal()
    info = dataclasses.replace(NETWORK.info, partition=partition)
    return upload.commit(info=info, canonical_sha256=NETWORK.canonical_sha256)


def kept(store: Store, nursery: Nursery, **more: Any) -> Forms:
    """The forms of a store; by default nothing is too large for memory, and stages have little of it."""
    given = {"limits": LIMITS, "layers": FEWEST, "keep_free": 0, "budget": 1 << 30, "room": 1 << 20, **more}
    return Forms(store, nursery, making=MAKING, **given)


def source(store: Store, kept: Forms, model: ModelVersion, *, room: int | None = None) -> Source:
    """Where a host has it from."""
    return Source(
        info=model.info, sha256=model.sha256, canonical_sha256=model.canonical_sha256,
        read=lambda: store.read(model, verify="tags"), stages=lambda: kept.stages(model),
        spoilt=lambda why: kept.spoilt(model, why), room=kept.room if room is None else room,
    )  # fmt: skip


def count(store: Store, model: ModelVersion) -> int:
    """Stages of its form."""
    form = store.form(model)
    return len(form.stages) if form else 0


def job(caller: str = "a") -> Job:
    return Job(caller=caller, seconds=30.0)


def test_stage_by_stage_it_gives_the_wholes_bytes(store: Store, nursery: Nursery) -> None:
    """For several owners and several batches, with nothing and with half of it staying."""
    model, made = put(store), kept(store, nursery)
    made.make(model)
    assert count(store, model) == 4
    for room in (0, 2 * BYTES - 1):
        loaded = Workers(nursery, isolation="owner", layers=FEWEST, limits=RUNS).load(
            source(store, made, model, room=room)
        )
        try:
            for caller in ("a", "b", "a"):
                got = loaded.run(X, outputs=(), job=job(caller))
                assert all(got[name].tobytes() == WHOLE[name].tobytes() for name in WHOLE)
            assert loaded.run(X, outputs=("v1",), job=job())["v1"].tobytes() == WHOLE["v1"].tobytes()
            assert loaded.begin(X, outputs=(), job=job()) is None
        finally:
            loaded.close()
