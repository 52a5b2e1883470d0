"""What takes part in a measurement, behind one small interface: our server, bare engines, other servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from click import ClickException

from strongroom_bench import codec
from strongroom_bench.catalogue import Workload
from strongroom_bench.load import Target
from strongroom_bench.machine import Cores, pinned

Outputs = list[npt.NDArray[Any]]
TOLERANCE: Final = 1e-3
"""Largest difference between two contenders' outputs, as a share of the largest value; engines round differently."""


class Unable(Exception):
    """A contender cannot take part, or not in this; the text says why, for the report."""


class Contender(Protocol):
    """One side of a comparison. `load` one workload at a time, `unload` it, `close` at the end.

    `version`: what exactly this is, once `load` returned. `facts`: more of the kind, as JSON values.
    """

    name: str
    title: str
    version: str
    facts: dict[str, Any]

    def load(self, workload: Workload) -> None:
        """Makes the model ready and runs it once.

        Raises:
            Unable: it cannot serve this model.
        """

    def once(self) -> float:
        """One warm request: seconds from before the inputs are encoded until the outputs are arrays."""

    def cold(self) -> float:
        """Seconds of one request that finds the model not loaded.

        Raises:
            Unable: it cannot unload.
        """

    def outputs(self) -> Outputs:
        """The outputs of one request."""

    def target(self) -> Target:
        """The same request ready to be sent by the load generator.

        Raises:
            Unable: there is no server.
        """

    def unload(self) -> None:
        """Ends the current workload."""

    def close(self) -> None:
        """Ends everything that was started."""


class Engine:
    """An engine in a child process, with no server and no protection around it."""

    def __init__(
        self,
        name: str,
        title: str,
        *,
        cores: Cores,
        python: Path = Path(sys.executable),
        engine: str | None = None,
    ) -> None:
        """`engine`: one of `engine_child.ENGINES`, else the one that `name` says."""
        self.name, self.title, self.version = name, title, ""
        self.facts: dict[str, Any] = {"transport": "none: a call within the process"}
        self._engine = engine or ("onnxruntime" if name == "bare" else name)
        self._core, self._python = cores.server, python
        self._child: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="strongroom-bench-")

    def load(self, workload: Workload) -> None:
        """Starts a child for this model."""
        inputs = Path(self._folder.name) / "inputs.npz"
        inputs.write_bytes(codec.npz(workload.inputs))
        script = Path(__file__).with_name("engine_child.py")
        words = [str(self._python), str(script), self._engine, str(workload.engine_path), str(inputs)]
        self._child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            preexec_fn=pinned(self._core), env=one_thread(),
        )  # fmt: skip
        self.version = str(self._read())
        self._ask("load")

    def once(self) -> float:
        """One inference, timed in the child."""
        return float(self._ask("run"))

    def once_both(self) -> tuple[float, float]:
        """The same, with the seconds that it took on a core: what else the machine does is not in those."""
        clock, busy = self._ask("both")
        return float(clock), float(busy)

    def cold(self) -> float:
        """A session made anew and its first inference, timed in the child."""
        self._ask("unload")
        return float(self._ask("cold"))

    def outputs(self) -> Outputs:
        """Every output."""
        path = Path(self._folder.name) / "outputs.npz"
        self._ask(f"outputs {path}")
        return codec.read_npz(path.read_bytes())

    def target(self) -> Target:
        """There is no server to load."""
        raise Unable("no server")

    def unload(self) -> None:
        """Ends the child."""
        if self._child is not None:
            end(self._child)
            self._child = None

    def close(self) -> None:
        """Ends the child and removes its folder."""
        self.unload()
        self._folder.cleanup()

    def _ask(self, words: str) -> Any:
        child = self._child
        if child is None or child.stdin is None:
            raise Unable(f"{self.title}: no model is loaded")
        try:
            child.stdin.write(words + "\n")
            child.stdin.flush()
        except OSError as exc:
            raise Unable(f"{self.title} ended with code {child.wait()}") from exc
        return self._read()

    def _read(self) -> Any:
        child = self._child
        line = child.stdout.readline() if child is not None and child.stdout is not None else ""
        if not line:
            code = child.wait() if child is not None else None
            raise Unable(f"{self.title} ended with code {code} on this model")
        return json.loads(line)


def one_thread() -> dict[str, str]:
    """This process's environment with one thread for every numeric library, and no telemetry of onnxruntime's."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, "1"), "ORT_DISABLE_TELEMETRY": "1"}


def end(process: subprocess.Popen[Any]) -> None:
    """Asks a process of ours to end, and makes it after ten seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def same_outputs(ours: Sequence[npt.NDArray[Any]], theirs: Sequence[npt.NDArray[Any]]) -> str:
    """ "" where both say the same within `TOLERANCE`; else what differs. Shapes may differ by dimensions of one."""
    if len(ours) != len(theirs):
        return f"{len(ours)} outputs against {len(theirs)}"
    for at, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
        if x.shape != y.shape:
            return f"output {at}: {a.shape} against {b.shape}"
        scale = float(np.abs(y).max(initial=0.0)) or 1.0
        worst = float(np.abs(x - y).max(initial=0.0)) / scale
        if not worst <= TOLERANCE:
            return f"output {at} differs by {worst:.1e} of its largest value"
    return ""


def unknown(word: str, known: Sequence[str]) -> ClickException:
    """The error for a contender that nobody knows."""
    return ClickException(f"no contender is called {word!r}; there are {', '.join(known)}")
