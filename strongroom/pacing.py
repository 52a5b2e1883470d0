"""What this machine does in a second, and how long a run in stages takes by its clock: for `strongroom size`.

    here: sealed stage ──► slot ──"stage 3"──► a process of our own: loads and runs it, as a worker does

Rules
  - Stages are of our own making: the model itself is run nowhere here.
  - Rates are processor time, which others who keep the machine busy do not change. What the clock says besides (waiting
    for one another and for a core, pages touched for the first time, slots that are emptied) is a factor, from runs
    as a server makes them (`feeding`, `fetching`, `staging`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from strongroom import staging
from strongroom.errors import Failure
from strongroom.feeding import Feeding, Plan, Slots
from strongroom.fetching import Fetching
from strongroom.kernel import keep_heap, trim_heap
from strongroom.outlook import Rates, seconds
from strongroom.rehearsal import sealed
from strongroom.sealed import TAG_BYTES, Opening
from strongroom.stages import Tensor, tail

_SIDE: Final = 1024
_MATRICES: Final = 2
_ROWS: Final = 128
_OPERATIONS: Final = 2 * _MATRICES * _ROWS * _SIDE * _SIDE
_TIMES: Final = 7
_READ_BYTES: Final = 32 << 20
_STAGES: Final = 8
"""Of a run whose time is taken by the clock."""
_CLOCK_S: Final = 1.0
"""Seconds for those runs; two are made in any case."""
_TURN_S: Final = 60.0
_KEPT: Final = 64 << 20
_GO: Final = b"g"


def rates() -> Rates:
    """What this machine does, as busy as it is. Takes one and a half seconds of a machine that does nothing else."""
    here = _alone()
    return replace(here, waiting=_waiting(here))


def _alone(clock: Callable[[], float] = time.thread_time) -> Rates:
    """Processor time, with one thread. `clock`: seconds."""
    large, small = _stage(_SIDE), _stage(16)
    values = np.full((1, _ROWS, _SIDE), 0.5, np.float32)
    wall, busy = time.perf_counter(), clock()
    times: dict[str, list[float]] = {"large": [], "small": [], "run": []}
    for _ in range(_TIMES):
        started = clock()
        staging.Loaded(memoryview(small))
        times["small"].append(clock() - started)
        started = clock()
        loaded = staging.Loaded(memoryview(large))
        times["large"].append(clock() - started)
        started = clock()
        loaded.run({"x": values})
        times["run"].append(clock() - started)
        del loaded
    wall, busy = time.perf_counter() - wall, clock() - busy
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    return Rates(
        opened=_opened(clock),
        loaded=len(large) / max(1e-6, median["large"] - median["small"]),
        session=median["small"],
        operations=_OPERATIONS / max(1e-6, median["run"]),
        waiting=1.0,
        waiting_whole=max(1.0, wall / max(1e-6, busy)),
    )


@dataclass(frozen=True, slots=True)
class _Given:
    """See `feeding.Given`: one sealed stage in the place of all."""

    opening: Opening

    def stages(self) -> contextlib.AbstractContextManager[tuple[Opening, ...]]:
        """All of them."""
        return contextlib.nullcontext((self.opening,) * _STAGES)

    def spoilt(self, _stages: tuple[Opening, ...], _why: str) -> None:
        """Nobody makes it anew."""


def _waiting(here: Rates) -> float:
    """Seconds by the clock for each one that `outlook.seconds` says: a run in stages by this process and another."""
    stage = _stage(_SIDE)
    plan = Plan([len(stage)] * _STAGES, 0)
    slots = Slots(plan.slot)
    pid = 0
    with sealed((stage,)) as opening, contextlib.ExitStack() as stack:
        stack.callback(slots.close)
        ours, theirs, end, other = (
            stack.enter_context(one) for pair in (socket.socketpair(), socket.socketpair()) for one in pair
        )
        with warnings.catch_warnings():
            # Other threads may be there, of whose locks the child takes none: it runs the engine, and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            _run_stages(plan, slots, theirs, other)
        try:
            other.close()  # or nobody sees it end
            end.settimeout(_TURN_S)
            times = _timed(Feeding(plan), _Given(opening), ours, slots, end)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return max(1.0, statistics.median(times) / seconds(plan, _STAGES * _OPERATIONS, here))


def _timed(
    feeding: Feeding, given: _Given, ours: socket.socket, slots: Slots, end: socket.socket
) -> list[float]:
    """Seconds of each run but the first.

    Raises:
        Failure: the other process ended, or did not answer.
    """
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - began < _CLOCK_S:
        started = time.perf_counter()
        try:
            with feeding.turn(given, seconds=_TURN_S):
                feeding.serve(ours, slots, len(times) + 1)
                end.sendall(_GO)
                answered = end.recv(1)
        except OSError:
            answered = b""
        if answered != _GO:
            raise Failure("the process that runs stages to see how long they take has ended")
        times.append(time.perf_counter() - started)
    return times[1:]


def _run_stages(plan: Plan, slots: Slots, feed: socket.socket, end: socket.socket) -> None:
    """What a worker does, without a model of anybody's; does not return."""
    code = 1
    try:
        keep_heap(_KEPT)
        seen = memoryview(mmap.mmap(slots.readable, slots.size, prot=mmap.PROT_READ))
        fetching = Fetching(feed, seen, lengths=list(plan.lengths), moving=list(plan.moving), slot=plan.slot)
        values = np.full((1, _ROWS, _SIDE), 0.5, np.float32)
        while end.recv(1) == _GO:
            fetching.begin()
            for number in range(_STAGES):
                loaded = staging.Loaded(fetching.fetch(number))
                loaded.run({"x": values})
                del loaded
                fetching.back(number)
            trim_heap()
            end.sendall(_GO)
        code = 0
    finally:
        os._exit(code)


def _opened(clock: Callable[[], float]) -> float:
    """Bytes of a sealed file that are read, decrypted and written into a slot in a second."""
    piece = bytes(1 << 20)
    slot = os.memfd_create("slot", os.MFD_CLOEXEC)
    try:
        with sealed(piece for _ in range(_READ_BYTES // len(piece))) as opening:
            scratch = memoryview(bytearray(opening.chunk_size + TAG_BYTES))
            plain = memoryview(bytearray(opening.chunk_size))
            started = clock()
            for number in range(opening.chunks):
                chunk = plain[: opening.size_of(number)]
                opening.open_chunk(number, chunk, scratch=scratch)
                os.pwrite(slot, chunk, number * opening.chunk_size % (8 << 20))
            return opening.length / max(1e-6, clock() - started)
    finally:
        os.close(slot)


def _stage(side: int) -> bytearray:
    """A stage of two matrix products."""
    names = [f"w{number}" for number in range(_MATRICES)]
    size = 4 * side * side
    tensors, initializers = [], []
    for number, name in enumerate(names):
        tensors.append(Tensor(name, TensorProto.FLOAT, (side, side), number * size, size))
        given = TensorProto(
            name=name, data_type=TensorProto.FLOAT, dims=(side, side), data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", "weights"), ("offset", str(number * size)), ("length", str(size))):
            given.external_data.add(key=key, value=value)
        initializers.append(given)
    nodes, last = [], "x"
    for name in names:
        nodes.append(helper.make_node("MatMul", [last, name], [f"y_{name}"]))
        last = f"y_{name}"
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, side])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, None, side])],
        initializer=initializers,
    )
    model = helper.make_model(graph, opset_imports=[onnx.OperatorSetIdProto(version=17)], ir_version=8)
    weights = np.full(_MATRICES * side * side, 1 / side, np.float32).tobytes()
    return bytearray(weights + tail(model.SerializeToString(), tensors, weights=len(weights)))
