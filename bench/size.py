"""Whether `strongroom size` is right: its prediction beside the peak of a real server, as the kernel counts it.

    .venv/bin/python bench/size.py [--json FILE] [--only matrices-144]

1. For each model a server is started as users start it, on the simulated TEE, with one run at a time and with
   `limits.run_bytes` as the case says, so that the largest request that admission allows can be sent.
2. The model is uploaded, unloaded, loaded from the store, and run twice with a request of exactly that size.
3. `VmHWM` of the server's process is the figure; that of the processes which examine models is sampled every 5 ms;
   `VmPeak` is held against the address space for which an enclave is sized, which must not be less.
4. Every model is made here, of numpy and onnx (a forest: of XGBoost), with a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from serving import serving  # noqa: E402

import strongroom  # noqa: E402
from strongroom.tokens import new_key_pem  # noqa: E402

WITHIN = 0.20
"""Share by which a prediction may miss."""
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """A model: its bytes, the memory of one run that is allowed, and the input of a request of `batch` rows."""

    name: str
    make: Callable[[], bytes]
    run_bytes: int
    rows: Callable[[int], np.ndarray[Any, Any]]


def _model(nodes: list[Any], tensors: list[Any], shape: list[Any], last: str, out: list[Any]) -> bytes:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, out)], tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def _weights(random: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return random.standard_normal(shape, np.float32) * np.float32(0.02)


def matrices(width: int, layers: int) -> bytes:
    """Square matrices one after the other."""
    random, nodes, tensors, last = np.random.default_rng(1), [], [], "x"
    for n in range(layers):
        tensors.append(numpy_helper.from_array(_weights(random, width, width), f"w{n}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{n}"], [f"m{n}"]))
        nodes.append(helper.make_node("Relu", [f"m{n}"], [f"r{n}"]))
        last = f"r{n}"
    return _model(nodes, tensors, ["n", width], last, ["n", width])


def convolutions(channels: int, points: int) -> bytes:
    """Eight 3 x 3 convolutions on a picture that keeps its size."""
    random, nodes, tensors, last, before = np.random.default_rng(1), [], [], "x", 3
    for n in range(8):
        tensors.append(numpy_helper.from_array(_weights(random, channels, before, 3, 3), f"w{n}"))
        nodes.append(helper.make_node("Conv", [last, f"w{n}"], [f"c{n}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{n}"], [f"r{n}"]))
        last, before = f"r{n}", channels
    return _model(nodes, tensors, ["n", 3, points, points], last, ["n", channels, points, points])


def forest() -> bytes:
    """500 trees of depth 8 over 20 columns, as XGBoost saves them."""
    import xgboost

    random = np.random.default_rng(0)
    rows = random.random((20_000, 20)).astype(np.float32)
    labels = (rows.sum(axis=1) + random.random(20_000) > 10).astype(int)
    options = {"max_depth": 8, "objective": "binary:logistic", "nthread": 2}
    booster = xgboost.train(options, xgboost.DMatrix(rows, labels), 500)
    return bytes(booster.save_raw("ubj"))


CASES = (
    Case("matrices-17", lambda: matrices(1024, 4), 24 * MIB, lambda n: np.ones((n, 1024), np.float32)),
    Case("matrices-144", lambda: matrices(3000, 4), 150 * MIB, lambda n: np.ones((n, 3000), np.float32)),
    Case("matrices-400", lambda: matrices(5000, 4), 32 * MIB, lambda n: np.ones((n, 5000), np.float32)),
    Case("convolutions-66", lambda: convolutions(512, 56), 16 * MIB,
         lambda n: np.ones((n, 3, 56, 56), np.float32)),
    Case("convolutions-363", lambda: convolutions(1200, 8), 16 * MIB, lambda n: np.ones((n, 3, 8, 8), np.float32)),
    Case("forest-500", forest, 16 * MIB, lambda n: np.ones((n, 20), np.float32)),
)  # fmt: skip


def _status(pid: int) -> dict[str, int]:
    """Figures of /proc/PID/status that are bytes, and the number of threads."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "VmPeak", "Threads"):
            found[name] = int(value.split()[0]) * (1 if name == "Threads" else 1024)
    return found


class _Below(threading.Thread):
    """The largest sum of what the processes below one have had at their peaks, among those alive together."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self.most, self.going = pid, 0, True

    def run(self) -> None:
        while self.going:
            self.most = max(self.most, sum(map(self._peak, self._children(self._pid))))
            time.sleep(0.005)

    def _children(self, pid: int) -> list[int]:
        found: list[int] = []
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            return []
        return [*found, *(inner for child in found for inner in self._children(child))]

    @staticmethod
    def _peak(pid: int) -> int:
        try:
            return _status(pid).get("VmHWM", 0)
        except OSError:
            return 0


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """One case: what was said, and what came."""
    file, key, config = folder / case.name, folder / "owner.pem", folder / "size.toml"
    file.write_bytes(case.make())
    key.write_bytes(new_key_pem())
    key.chmod(0o600)
    settings = (
        f'[security]\nisolation = "in_process"\n[limits]\nconcurrent_runs = 1\nrun_bytes = {case.run_bytes}\n'
    )
    config.write_text('platform = "simulated"\n' + settings)
    words = [sys.executable, "-m", "strongroom", "size", str(file), "--config", str(config), "--json"]
    said = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    with serving(folder / "server", settings=settings) as server:
        policy = server.write_policy(folder / "policy.toml")
        below = _Below(server.pid)
        below.start()
        with strongroom.connect(server.url, policy=str(policy), key=str(key), timeout=600) as client:
            model = client.upload_model(file, name="m")
            rows = max(room["sizes"][0] for room in said["models"][0]["rooms"])
            rows = min(rows, (60 << 20) // case.rows(1).nbytes)  # `limits.request_bytes`
            client.load_model("m")
            for _ in range(2):
                model.run(case.rows(rows))
        below.going = False
        came = _status(server.pid)
    return {
        "name": case.name,
        "upload_bytes": file.stat().st_size,
        "rows": rows,
        "predicted_bytes": said["resident_bytes"],
        "measured_bytes": came["VmHWM"],
        "error": said["resident_bytes"] / came["VmHWM"] - 1,
        "examining_predicted_bytes": said["examining_bytes"],
        "examining_measured_bytes": below.most,
        "address_bytes": said["address_bytes"],
        "address_measured_bytes": came["VmPeak"],
        "enclave_bytes": said["enclave_bytes"],
        "threads": said["threads"],
        "threads_measured": came["Threads"],
    }


def main() -> int:
    """Measures every case; 1 where a prediction misses by more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", metavar="NAME")
    options = parser.parse_args()
    rows = []
    print(
        f"{'model':<18}{'rows':>7}{'predicted':>11}{'measured':>10}{'':>7}{'examining':>20}{'addresses':>20}  enclave"
    )
    for case in CASES:
        if options.only in (None, case.name):
            with tempfile.TemporaryDirectory() as folder:
                row = measure(case, Path(folder))
            rows.append(row)
            mb = {name: round(value / 1e6) for name, value in row.items() if name.endswith("_bytes")}
            print(
                f"{row['name']:<18}{row['rows']:>7}{mb['predicted_bytes']:>8} MB{mb['measured_bytes']:>7} MB"
                f"{row['error']:>+7.0%}{mb['examining_predicted_bytes']:>9} / {mb['examining_measured_bytes']} MB"
                f"{mb['address_bytes']:>12} / {mb['address_measured_bytes']} MB  {row['enclave_bytes'] >> 20} MiB",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps({"within": WITHIN, "cases": rows}, indent=2) + "\n")
    good = all(
        abs(row["error"]) <= WITHIN and row["address_bytes"] >= row["address_measured_bytes"] for row in rows
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
