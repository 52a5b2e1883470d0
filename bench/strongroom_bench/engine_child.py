"""One engine on one model in a process of its own: `python engine_child.py ENGINE MODEL INPUTS.npz`.

Reads a word per line and answers each with one line of JSON: `run` (seconds of one inference), `both` (those, and
seconds of processor time), `cold` (seconds of
making a session and its first inference, in a warm process), `load`, `unload`, `outputs FILE` (writes an .npz),
`memory` (bytes). The clock is read here, around the call: what is measured is the engine alone. Runs in environments
that do not have this package, so it imports nothing of it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: these wheels send by default

import numpy as np


class Engine(Protocol):
    """What every engine can do; `load` replaces what was loaded before."""

    version: str

    def load(self) -> None:
        """Makes a session."""

    def unload(self) -> None:
        """Lets go of it."""

    def run(self) -> list[np.ndarray]:
        """One inference; every output."""


class OnnxRuntime:
    """Bare onnxruntime: the session's defaults, one thread."""

    def __init__(self, model: str, inputs: dict[str, np.ndarray]) -> None:
        import onnxruntime

        self._ort, self._model, self._inputs = onnxruntime, model, inputs
        self._session: Any = None
        self.version = f"onnxruntime {onnxruntime.__version__}"

    def load(self) -> None:
        """Makes a session with one intra-op and one inter-op thread."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = self._ort.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])

    def unload(self) -> None:
        """Lets go of the session."""
        self._session = None

    def run(self) -> list[np.ndarray]:
        """One inference."""
        return [np.asarray(output) for output in self._session.run(None, self._inputs)]


class Tract:
    """`tract`, the engine in Rust that BlindAI used; shapes are fixed to those of the inputs, as it wants them."""

    def __init__(self, model: str, inputs: dict[str, np.ndarray]) -> None:
        import importlib.metadata

        import tract

        self._tract, self._model, self._inputs = tract, model, inputs
        self._runnable: Any = None
        self.version = f"tract {importlib.metadata.version('tract')}"

    def load(self) -> None:
        """Reads, fixes the shapes, optimises."""
        graph = self._tract.onnx().load(self._model)
        kinds = {"float32": "f32", "int64": "i64", "int32": "i32", "float64": "f64"}
        for at, array in enumerate(self._inputs.values()):
            shape = ",".join([*map(str, array.shape), kinds[str(array.dtype)]])
            graph.set_input_fact(at, shape)
        graph.analyse()
        self._runnable = graph.into_model().into_runnable()

    def unload(self) -> None:
        """Lets go of the plan."""
        self._runnable = None

    def run(self) -> list[np.ndarray]:
        """One inference."""
        return [value.to_numpy() for value in self._runnable.run(list(self._inputs.values()))]


ENGINES: dict[str, type[OnnxRuntime] | type[Tract]] = {"onnxruntime": OnnxRuntime, "tract": Tract}


def _timed(engine: Engine, *, cold: bool) -> tuple[float, float]:
    """Seconds by the clock, and of this process on a core."""
    started, busy = time.perf_counter(), time.process_time()
    if cold:
        engine.load()
    engine.run()
    return time.perf_counter() - started, time.process_time() - busy


def _answer(engine: Engine, word: str, rest: str) -> Any:
    if word == "load":
        engine.load()
        engine.run()
        return True
    if word == "unload":
        engine.unload()
        return True
    if word in ("run", "cold", "both"):
        both = _timed(engine, cold=word == "cold")
        return both if word == "both" else both[0]
    if word == "outputs":
        np.savez(rest, *engine.run())
        return True
    if word == "memory":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    raise ValueError(word)


def main() -> int:
    """Answers until its input ends."""
    name, model, inputs = sys.argv[1:]
    with np.load(Path(inputs)) as arrays:
        engine = ENGINES[name](model, {key: arrays[key] for key in arrays.files})
    print(json.dumps(engine.version), flush=True)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        print(json.dumps(_answer(engine, word, rest)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
