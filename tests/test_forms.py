"""Prepared forms: made by a confined process, sealed, used where they fit, and done without wherever they do not."""

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
from strongroom.engine import Engine, InProcess
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
OTHER = Making(engine="engine/2 options 0", processor="some features 1")
LIMITS = ChildLimits(wall_s=60, cpu_s=60, memory_bytes=1 << 30)
RUNS = WorkerLimits(
    processes=4,
    run_bytes=1 << 30,
    run_longest_s=60,
    input_bytes=32 << 20,
    response_bytes=16 << 20,
    elements=1 << 20,
)
OWNER = "a" * 64
FLOAT = TensorProto.FLOAT


def network(seed: int = 1) -> Admitted:
    """A convolution, which onnxruntime lays out anew, and a product, whose weights it packs: 2.4 MB."""
    values = np.random.default_rng(seed)

    def constant(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(values.standard_normal(shape, dtype=np.float32) / 8, name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Flatten", ["r"], ["f"]),
            helper.make_node("MatMul", ["f", "m"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 300])],
        [constant("w", 32, 16, 3, 3), constant("m", 2048, 300), constant("b", 300)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return admit(made.SerializeToString(), format="onnx", limits=STANDARD_LIMITS)


NETWORK, SMALLER = network(), network(2)
X = np.random.default_rng(3).standard_normal((1, 16, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One zygote."""
    launch = Launch(
        paths=dependency_folders("simulated"),
        environment=CHILD,
        folder=Path("/"),
        measured=None,
        flags=("-I", "-S"),
        workers=True,
    )
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


def put(store: Store, admitted: Admitted, name: str = "net", owner: str = OWNER) -> ModelVersion:
    """Uploads what was admitted."""
    upload = store.begin(name=name, owner=owner, access="private", format="onnx", max_bytes=1 << 30)
    upload.write(admitted.onnx)
    upload.seal()
    return upload.commit(info=admitted.info, canonical_sha256=admitted.canonical_sha256)


def kept(store: Store, nursery: Nursery, making: Making = MAKING, **more: Any) -> Forms:
    """The forms of a store."""
    given = {"limits": LIMITS, "layers": FEWEST, "keep_free": 0, "budget": 1 << 40, "room": 1 << 30, **more}
    return Forms(store, nursery, making=making, **given)


def source(store: Store, forms: Forms, model: ModelVersion) -> Source:
    """Where a host has it from."""
    return Source(
        info=model.info,
        sha256=model.sha256,
        canonical_sha256=model.canonical_sha256,
        read=lambda: store.read(model, verify="tags"),
        stages=lambda: forms.stages(model),
        spoilt=lambda why: forms.spoilt(model, why),
    )


def answer(nursery: Nursery, given: Source) -> np.ndarray[Any, Any]:
    """What the model makes of `X` in a worker."""
    made = Workers(nursery, isolation="owner", layers=FEWEST, limits=RUNS).load(given)
    try:
        return made.run({"x": X}, outputs=(), job=Job(caller="a", seconds=30.0))["y"]
    finally:
        made.close()


def plain(admitted: Admitted) -> np.ndarray[Any, Any]:
    """The same without any of this."""
    return Engine().load(admitted).run({"x": X}, outputs=())["y"]


def never(_: object = None) -> bytes:
    """Not to be called."""
    raise AssertionError


def test_a_model_runs_from_its_form_with_the_same_bits(store: Store, nursery: Nursery) -> None:
    """In a worker and in one process; the canonical bytes are not read."""
    model = put(store, NETWORK)
    forms = kept(store, nursery)
    forms.make(model)
    form = store.form(model)
    assert form is not None and form.making == MAKING and len(form.stages) == 1
    given = dataclasses.replace(source(store, forms, model), read=never)
    wanted = plain(NETWORK)
    np.testing.assert_array_equal(answer(nursery, given), wanted)
    alone = InProcess(Engine()).load(given)
    np.testing.assert_array_equal(
        alone.run({"x": X}, outputs=(), job=Job(caller="a", seconds=30.0))["y"], wanted
    )
