"""What it costs to run a model in a process of its own: a tiny model and one of ResNet-18's size, one caller, one core.

    python bench/workers.py [--runs 200]

In one process, in an owner's worker, and in a fresh worker for each request; alternating, so that all see the same
machine. Then the memory that each further owner costs. Numbers for docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from strongroom.engine import Engine
from strongroom.jobs import Job, Source
from strongroom.launch import CHILD, dependency_folders
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS, Admitted
from strongroom.processes import WorkerLimits
from strongroom.workers import Workers
from strongroom.zygote import Launch, Nursery

LIMITS = WorkerLimits(
    processes=64, run_bytes=8 << 30, run_longest_s=300, input_bytes=128 << 20, response_bytes=64 << 20,
    elements=16 << 20, idle_bytes=64 << 20,
)  # fmt: skip


def _admitted(nodes: list[Any], constants: list[Any], shape: list[int], out: str) -> Admitted:
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return admit(made.SerializeToString(), format="onnx", limits=STANDARD_LIMITS)


def tiny() -> Admitted:
    """y = 2 x, four numbers."""
    two = numpy_helper.from_array(np.array([2], np.float32), "two")
    return _admitted([helper.make_node("Mul", ["x", "two"], ["y"])], [two], [1, 4], "y")


def resnet18() -> Admitted:
    """The architecture of ResNet-18 with its normalisations folded in: 11.7 million weights, 1.8e9 multiplications."""
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    constants: list[Any] = []

    def conv(given: str, cin: int, cout: int, kernel: int, stride: int, relu: bool) -> str:
        name = f"c{len(constants)}"
        weights = rng.standard_normal((cout, cin, kernel, kernel)) / np.sqrt(cin * kernel * kernel)
        constants.append(numpy_helper.from_array(weights.astype(np.float32), name))
        pad = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [given, name], [name + "y"], strides=[stride] * 2, pads=pad))
        return activated(name + "y") if relu else name + "y"

    def activated(given: str) -> str:
        nodes.append(helper.make_node("Relu", [given], [given + "r"]))
        return given + "r"

    at = conv("x", 3, 64, 7, 2, True)
    nodes.append(
        helper.make_node("MaxPool", [at], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    )
    at, width = "p", 64
    for stage in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and stage > 64 else 1
            side = at if width == stage else conv(at, width, stage, 1, stride, False)
            inner = conv(conv(at, width, stage, 3, stride, True), stage, stage, 3, 1, False)
            nodes.append(helper.make_node("Add", [inner, side], [inner + "s"]))
            at, width = activated(inner + "s"), stage
    constants.append(numpy_helper.from_array(rng.standard_normal((512, 1000)).astype(np.float32), "fc"))
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["g"]))
    nodes.append(helper.make_node("Flatten", ["g"], ["f"]))
    nodes.append(helper.make_node("MatMul", ["f", "fc"], ["y"]))
    return _admitted(nodes, constants, [1, 3, 224, 224], "y")


def _private(pid: int) -> int:
    """Bytes of a process that it shares with no other."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            total += int(line.split()[1]) << 10
    return total


def measure(name: str, admitted: Admitted, nursery: Nursery, runs: int) -> None:
    """One row of each kind."""
    shape = tuple(int(size) for size in admitted.info.inputs[0].shape or ())
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    source = Source(
        info=admitted.info,
        sha256=admitted.sha256,
        canonical_sha256=admitted.canonical_sha256,
        read=lambda: admitted.onnx,
    )
    layers = nursery.wait()
    start = time.perf_counter()
    here = Engine().load(admitted)
    loading = time.perf_counter() - start
    start = time.perf_counter()
    owner = Workers(nursery, isolation="owner", layers=layers, limits=LIMITS).load(source)
    template = time.perf_counter() - start
    request = Workers(nursery, isolation="request", layers=layers, limits=LIMITS).load(source)
    job = Job(caller="a", seconds=300)
    kinds: dict[str, Callable[[], Any]] = {
        "in_process": lambda: here.run({"x": x}, outputs=()),
        "owner": lambda: owner.run({"x": x}, outputs=(), job=job),
        "request": lambda: request.run({"x": x}, outputs=(), job=job),
    }
    took: dict[str, list[float]] = {}
    for kind in (
        "owner",
        "request",
    ):  # apart: the next request's worker is made while the last answer is on its way
        for number in range(runs + 5):
            for each in ("in_process", kind):
                start = time.perf_counter()
                kinds[each]()
                if number >= 5:
                    took.setdefault(f"{each} beside {kind}" if each != kind else kind, []).append(
                        time.perf_counter() - start
                    )
    print(
        f"{name}: {len(admitted.onnx) / 1e6:.1f} MB; loads in {loading * 1e3:.0f} ms, template {template * 1e3:.0f}"
    )
    for kind, times in took.items():
        low, median, high = (statistics.quantiles(times, n=20)[at] for at in (0, 9, 18))
        print(f"  {kind:<26} median {median * 1e3:8.3f} ms   5 % {low * 1e3:8.3f}   95 % {high * 1e3:8.3f}")
    for caller in "bcde":
        owner.run({"x": x}, outputs=(), job=Job(caller=caller, seconds=300))
    pids = [one.pid for one, kept in owner._workers._idle.items() if isinstance(kept[1], str)]
    private = statistics.median(map(_private, pids))
    print(f"  a further owner: {private / 1e6:.1f} MB of its own")
    owner.close()
    request.close()


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    launch = Launch(
        paths=dependency_folders("simulated"),
        environment=CHILD,
        folder=Path("/"),
        measured=None,
        flags=("-I", "-S"),
        workers=True,
    )
    with Nursery(launch) as nursery:
        measure("tiny", tiny(), nursery, runs)
        measure("ResNet-18", resnet18(), nursery, max(20, runs // 10))


if __name__ == "__main__":
    main()
