"""Admission, engine and run of one model in a process that may die: a template that forks a child for each case.

    fuzz target --pipe--> template (imports once) --fork--> child: makes the case, admits, loads, runs, answers

A child has limits on memory, processor and wall time. What it answers is an outcome; what killed it is another.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import random
import resource
import select
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

WALL_S, CPU_S, MEMORY = 30.0, 20, 2 << 30
"""Far above what the budget of these cases can take."""
CANARY = bytes.fromhex("c35a1d4bb39f7e42")
"""Eight bytes of another input: two ordinary floats, one double; no operator makes them of small numbers."""


class Template:
    """The executed process, from outside."""

    def __init__(self) -> None:
        from strongroom.launch import CHILD

        # Freed memory keeps its bytes here: what a kernel leaves unwritten is then the canary and not a pattern.
        environment = {name: value for name, value in CHILD.items() if name != "MALLOC_PERTURB_"}
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.close)

    def outcome(self, case: str, data: bytes) -> dict[str, Any]:
        """What became of the case that `data` makes: `end` and, as it applies, `code`, `stage`, `signal`, `what`."""
        assert self._process.stdin and self._process.stdout
        message = json.dumps({"case": case, "data": data.hex()}).encode()
        self._process.stdin.write(struct.pack(">I", len(message)) + message)
        self._process.stdin.flush()
        size = struct.unpack(">I", self._process.stdout.read(4))[0]
        answer: dict[str, Any] = json.loads(self._process.stdout.read(size))
        return answer

    def close(self) -> None:
        """Ends it."""
        if self._process.poll() is None:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait(10)


@functools.cache
def template() -> Template:
    """The one of this process."""
    return Template()


# Inside


def main() -> int:
    """The template's loop."""
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
    import cases

    from strongroom import models

    cases._models()
    models.warm()
    _warm()
    gc.collect()
    gc.freeze()  # children then write to no page of what was imported
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(4)) == 4:
        asked = json.loads(source.read(struct.unpack(">I", head)[0]))
        answer = json.dumps(_forked(asked["case"], bytes.fromhex(asked["data"]))).encode()
        sink.write(struct.pack(">I", len(answer)) + answer)
        sink.flush()
    return 0


def _warm() -> None:
    from onnx import TensorProto, helper

    from strongroom import models
    from strongroom.engine import Engine
    from strongroom.models.info import STANDARD_LIMITS

    value = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=[1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    Engine().load(models.admit(model.SerializeToString(), format="onnx", limits=STANDARD_LIMITS))


def _forked(case: str, data: bytes) -> dict[str, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(case, data, writing)
        os._exit(0)
    os.close(writing)
    said = b""
    while True:
        ready, _, _ = select.select([reading], [], [], WALL_S)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            break
        if not (piece := os.read(reading, 65536)):
            break
        said += piece
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    lines = said.decode(errors="replace").splitlines()
    if lines and lines[-1].startswith("{"):
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    stage = lines[-1] if lines else "start"
    return {"end": "killed", "stage": stage, "signal": os.WTERMSIG(status), "what": stage}


def _child(case: str, data: bytes, writing: int) -> None:
    if sys.platform == "linux":  # elsewhere address space is no measure of memory
        occupied = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (occupied + MEMORY, occupied + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        answer = _story(case, random.Random(data), lambda stage: os.write(writing, stage.encode() + b"\n"))
    except MemoryError:
        answer = {"end": "memory"}
    except BaseException as fault:
        place = fault.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
        answer = {"end": "fault", "what": f"{type(fault).__name__} at {where}"}
    os.write(writing, json.dumps(answer).encode() + b"\n")


def _story(case: str, rng: random.Random, say: Any) -> dict[str, Any]:
    import cases
    from targets_admission import LIMITS

    from strongroom import models
    from strongroom.engine import Engine
    from strongroom.errors import Error

    model = cases.CASES[case](rng)
    operators = sorted({node.op_type for node in model.graph.node})
    say("admission of " + " ".join(operators))
    try:
        admitted = models.admit(model.SerializeToString(), format="onnx", limits=LIMITS)
    except Error as refusal:
        return {"end": "refused", "code": refusal.code, "operators": operators}
    say("loading of " + " ".join(operators))
    try:
        session = Engine().load(admitted)
    except Error as refusal:
        return {"end": "not loaded", "code": refusal.code, "operators": operators}
    say("run of " + " ".join(operators))
    return {**_runs(session, admitted.info, operators, rng), "operators": operators}


def _runs(session: Any, info: Any, operators: list[str], rng: random.Random) -> dict[str, Any]:
    """Runs on B, on A (canaries), on B again: the two answers are the same, and hold nothing of A's."""
    from strongroom.errors import Error

    before = request_for(info, operators, rng, canary=False)
    other = request_for(info, operators, rng, canary=True, like=before)
    if before is None or other is None:
        return {"end": "no request"}
    answers = []
    for request in (before, other, before):
        try:
            answers.append(session.run(request, outputs=()))
        except Error as error:
            answers.append(error.code)
    return compared(answers[0], answers[2])


def compared(first: Any, second: Any) -> dict[str, Any]:
    """Two answers to one request (arrays by name, or a code): the same, and nothing of another's in them?"""
    if isinstance(first, str) or isinstance(second, str):
        same = first == second
        return {
            "end": "failed" if same else "leak",
            "code": str(first),
            "what": "one run failed, one did not",
        }
    for name in first:
        one, two = first[name], second[name]
        if one.dtype.kind == "O":
            continue
        if one.shape != two.shape or one.tobytes() != two.tobytes():
            return {"end": "leak", "what": f"two runs on one input differ in {name}"}
        if CANARY in two.tobytes() or CANARY[:4] * 2 in two.tobytes():
            return {"end": "leak", "what": f"an answer holds another's input in {name}"}
    return {"end": "ran"}


def request_for(
    info: Any, operators: list[str], rng: random.Random, *, canary: bool, like: Any = None
) -> Any:
    """Arrays that the server would take, or None: of the shapes of `like`, filled with canaries where asked for."""
    from strongroom.errors import Error
    from strongroom.inputs import check_inputs
    from strongroom.oip import Tensor, WireLimits

    limits = WireLimits(
        tensors=64, tensor_bytes=1 << 24, total_bytes=1 << 25, elements=1 << 22, name_length=512
    )
    for _ in range(4):
        symbols: dict[Any, int] = {}
        tensors = []
        for spec in info.inputs:
            shape = [
                size if isinstance(size, int) else symbols.setdefault(size, rng.choice([1, 2, 3, 4, 0, 17]))
                for size in (spec.shape if spec.shape is not None else (2, 2))
            ]
            if like is not None:
                shape = list(like[spec.name].shape)
            array = _array(spec.datatype, shape, operators, rng, canary=canary)
            tensors.append(Tensor(name=spec.name, datatype=spec.datatype, array=array))
        try:
            return check_inputs(info, tuple(tensors), limits=limits)
        except Error:
            continue
    return None


def _array(datatype: str, shape: Any, operators: list[str], rng: random.Random, *, canary: bool) -> Any:
    import numpy as np

    from strongroom.oip import DATATYPES, bytes_array

    count = int(np.prod(shape, dtype=np.int64))
    if datatype == "BYTES":
        words = [b"a", b"", b"other", "ü".encode(), b"x" * 100]
        return bytes_array([rng.choice(words) for _ in range(count)], shape=tuple(shape))
    dtype = DATATYPES[datatype]
    if canary and datatype != "BOOL":
        size = count * dtype.itemsize
        return np.frombuffer((CANARY * (size // 8 + 1))[:size], dtype).reshape(shape)
    draw = np.random.default_rng(rng.getrandbits(32))
    if dtype.kind == "f":
        values = draw.standard_normal(count)
        if rng.random() < 0.2:
            values[draw.random(count) < 0.2] = rng.choice([0.0, np.nan, np.inf, 1e30, -1e9])
        with np.errstate(over="ignore"):
            return values.astype(dtype).reshape(shape)
    if dtype.kind == "b":
        return (draw.random(count) < 0.5).reshape(shape)
    # What whole numbers may be divided by is not the model's to say; here it is about models.
    divides = bool({"Div", "Mod"} & set(operators))
    low, high = (1, 5) if divides or rng.random() < 0.5 or dtype.kind == "u" else (-3, 5)
    numbers = draw.integers(low, high, count)
    if not divides and rng.random() < 0.2:
        extreme = rng.choice([np.iinfo(dtype).max, np.iinfo(dtype).min])
        numbers = np.where(draw.random(count) < 0.3, extreme, numbers)
    return numbers.astype(dtype).reshape(shape)


if __name__ == "__main__":
    sys.exit(main())
