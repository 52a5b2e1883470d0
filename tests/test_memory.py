"""Memory of a running server, by the kernel's figures: pages of all its processes, shared ones counted once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from serving import Serving, serving
from strongroom_bench.memory import tree_bytes, watching

import strongroom
from strongroom import tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/smaps_rollup").exists(), reason="not exercised here: the kernel does not say"
    ),
]

SIDE = 2048
MODEL = SIDE * SIDE * 4
"""Bytes of one model: a matrix."""
LOADED = 2 * MODEL + (4 << 20)
"""Bytes that the server counts for it."""
BUDGET = 3 * LOADED
"""Room for three of them."""
PASSING = 12 << 20
"""What is there for a moment: the slots that a model passes through, the next template on its way to waiting."""
COUNT = 6
SETTINGS = f"""
[limits]
loaded_bytes = {BUDGET}
"""


def matrix(seed: int) -> bytes:
    """y = x @ M; the matrix differs with the seed, so that no page of one model is another's."""
    weights = np.random.default_rng(seed).random((SIDE, SIDE), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "m"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SIDE])],
        initializer=[numpy_helper.from_array(weights, "m")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def settled(pid: int) -> int:
    """The bytes of a server and its processes once two looks, half a second apart, say nearly the same."""
    deadline, before = time.monotonic() + 30, 0
    while abs((now := tree_bytes(pid)) - before) > 1 << 20 and time.monotonic() < deadline:
        time.sleep(0.5)
        before = now
    return now


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, strongroom.Client, int]]:
    """A server that held one model for a moment, its client, and what it takes without any model."""
    folder = tmp_path_factory.mktemp("memory")
    with serving(folder / "server", settings=SETTINGS) as running:
        policy = running.write_policy(folder / "policy.toml")
        with strongroom.connect(running.url, policy=policy, key=tokens.new_key_pem()) as client:
            model = client.upload_model(matrix(0), name="m0")
            model.run(np.zeros((1, SIDE), np.float32))
            client.unload_model(model)
            time.sleep(2)  # its processes end in their own time, and a template waits for the next load
            yield running, client, settled(running.pid)


def test_a_model_that_is_served_takes_little_more_than_its_file(
    server: tuple[Serving, strongroom.Client, int],
) -> None:
    """At most one and a half times the file, and 150 MB for everything else: server, zygote, template, workers."""
    running, client, _ = server
    model = client.model("m0")
    for _ in range(3):
        model.run(np.ones((1, SIDE), np.float32))
    assert tree_bytes(running.pid) <= 1.5 * MODEL + 150e6
    client.unload_model(model)


def test_an_uploaded_model_leaves_nothing_behind(server: tuple[Serving, strongroom.Client, int]) -> None:
    """What examining and storing it took has gone back to the system."""
    running, client, idle = server
    for seed in range(1, COUNT):
        client.upload_model(matrix(seed), name=f"m{seed}")
    deadline = time.monotonic() + 30  # what examined and prepared them ends in its own time
    while (left := tree_bytes(running.pid)) > idle + MODEL // 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left <= idle + MODEL // 2, (left, idle)


def test_models_larger_than_the_budget_take_turns_in_it(
    server: tuple[Serving, strongroom.Client, int],
) -> None:
    """Six models, room for three: all are served, within the budget, one model more, and what passes."""
    running, client, idle = server
    models = [client.model(f"m{seed}") for seed in range(COUNT)]
    row = np.ones((1, SIDE), np.float32)
    with watching(running.pid) as peak:
        for _ in range(2):
            for seed, model in enumerate(models):
                expected = row @ np.random.default_rng(seed).random((SIDE, SIDE), dtype=np.float32)
                assert np.allclose(model.run(row), expected, rtol=1e-4)
    assert peak.bytes <= idle + BUDGET + LOADED + PASSING, (peak.bytes, idle)
    assert sum(model.loaded for model in client.models()) <= 3
