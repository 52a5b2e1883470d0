"""What the server believes of a worker: who it is, and what it answers. The workers here lie."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from strongroom import records
from strongroom.errors import InvalidRequest, LimitExceeded
from strongroom.models.info import ONNX_RULES, UNEXAMINED, ModelInfo, TensorSpec
from strongroom.processes import Died, Worker
from strongroom.records import Place

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: workers are Linux's")
SIZE = 1 << 16
INFO = ModelInfo(
    format="onnx",
    inputs=(TensorSpec("x", "FP32", (4,)),),
    outputs=(TensorSpec("y", "FP32", (4,)), TensorSpec("b", "BOOL", (4,)), TensorSpec("t", "BYTES", (1,))),
    primary_output="y",
    feature_names=(),
    notes=(),
    rules=ONNX_RULES,
    admission=UNEXAMINED,
)
X = np.arange(4, dtype=np.float32)

Behaviour = Callable[[socket.socket, Any], None]


def _fork(body: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child returns into nothing of ours
        pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)  # whatever happens, it does not stay
            null = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(null, standard)
            body()
        finally:
            os._exit(0)
    return pid


class Lying:
    """In place of a template: this process forks a worker that behaves as it is told."""

    def __init__(
        self, behaviour: Behaviour, *, hello: bytes = records.HELLO, grandchild: bool = False
    ) -> None:
        self.pid = os.getpid()
        self.children: list[int] = []
        self._behaviour, self._hello, self._grandchild = behaviour, hello, grandchild

    def fork(self, end: socket.socket) -> None:
        """As `Template.fork`."""
        self.children.append(_fork(lambda: self._begin(end)))

    def _begin(self, end: socket.socket) -> None:
        if self._grandchild:
            os.waitpid(_fork(lambda: self._work(end)), 0)
        else:
            self._work(end)

    def _work(self, end: socket.socket) -> None:
        import mmap

        for other in range(3, 256):  # ends that are not its own would stay open with it
            if other != end.fileno():
                with contextlib.suppress(OSError):
                    os.close(other)
        end.sendall(self._hello)
        _, descriptors, _, _ = socket.recv_fds(end, 9, 1)
        if descriptors:
            shared = mmap.mmap(descriptors[0], SIZE)
            self._behaviour(end, np.frombuffer(shared, np.uint8))


@contextmanager
def worker(behaviour: Behaviour, **how: Any) -> Iterator[Worker]:
    """One that is there, or is not."""
    template: Any = Lying(behaviour, **how)
    made = Worker(template, SIZE, most=SIZE)
    try:
        yield made
    finally:
        made.close()
        for pid in template.children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def run(one: Worker, wanted: int = 0, seconds: float = 10.0) -> Any:
    """One run that asks for one output."""
    one.begin({"x": X}, [wanted], INFO, seconds)
    until = time.monotonic() + seconds
    while one.step() is None:
        assert time.monotonic() < until
        one.wait(0.1)
    return one.results()[0]


def wait_for_end(one: Worker) -> None:
    """Until it is gone: descriptors close a moment before."""
    deadline = time.monotonic() + 5
    while one.alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answering(*places: Place, outcome: bytes = records.DONE, write: bytes = b"", at: int = 64) -> Behaviour:
    """Writes bytes, and says that."""

    def behaviour(end: socket.socket, area: Any) -> None:
        while True:
            records.receive_run(end)
            area[at : at + len(write)] = np.frombuffer(write, np.uint8)
            end.sendall(records.pack_answer(outcome, places))

    return behaviour


def honest(end: socket.socket, area: Any) -> None:
    """y = 2 x."""
    while True:
        (place,), _ = records.receive_run(end)
        x = records.view(area, place, datatype="FP32")
        end.sendall(records.pack_answer(records.DONE, [records.put(area, 64, x * 2, position=0)]))


def test_an_honest_one_is_believed() -> None:
    """The results are private copies; what was in the shared memory is overwritten."""
    with worker(honest) as one:
        one.settle()
        for _ in range(3):
            assert run(one).tolist() == [0, 2, 4, 6]
        assert one._area is not None and not one._area[:80].any()


@pytest.mark.parametrize(
    ("wanted", "behaviour"),
    [
        (0, answering(Place(0, (5,), 64, 16))),  # more elements than bytes
        (0, answering(Place(0, (4,), 64, 32))),
        (0, answering(Place(0, (4,), SIZE - 8, 16))),  # beyond the memory
        (0, answering(Place(0, (4,), 65, 16))),
        (0, answering(Place(0, (1 << 62, 1 << 62), 64, 16))),
        (0, answering(Place(1, (4,), 64, 4))),  # another output than was asked for
        (0, answering(Place(0, (4,), 64, 16), Place(0, (4,), 64, 16))),
        (0, answering()),
        (0, answering(outcome=b"?")),
        (1, answering(Place(1, (4,), 64, 4), write=b"\x00\x01\x02\x01")),  # a bool that is neither
        (2, answering(Place(2, (1,), 64, 8), write=b"\xff\xff\xff\x7fabcd")),  # a string longer than all
        (2, answering(Place(2, (1 << 30,), 64, 8))),
        (0, lambda end, area: end.close()),
        (0, lambda end, area: end.sendall(b"+")),
        (0, lambda end, area: end.sendall(b"+\x01\x00\xff\xff\xff\x7f")),
    ],
)
def test_a_liar_counts_as_dead(wanted: int, behaviour: Behaviour) -> None:
    """Nothing of it reaches a caller, and nothing outside its memory is read."""
    with worker(behaviour) as one:
        one.settle()
        with pytest.raises(Died):
            run(one, wanted)


@pytest.mark.parametrize("outcome", records.OUTCOMES[1:])
def test_what_a_refused_run_had_written_by_then_is_overwritten(outcome: bytes) -> None:
    """Of several outputs some were there before one was too large: nobody says where."""

    def half(end: socket.socket, area: Any) -> None:
        records.receive_run(end)
        area[64:4096] = 7
        area[-64:] = 7
        end.sendall(records.pack_answer(outcome))

    with worker(half) as one:
        one.settle()
        with pytest.raises((InvalidRequest, LimitExceeded)):
            run(one)
        assert one._area is not None and not one._area.any()


@pytest.mark.parametrize(
    ("outcome", "kind", "code"),
    [
        (records.FAILED, InvalidRequest, "run_failed"),
        (records.NO_TEXT, InvalidRequest, "input_not_text"),
        (records.NO_MEMORY, LimitExceeded, "run_memory"),
        (records.TOO_LARGE, LimitExceeded, "response_too_large"),
    ],
)
def test_outcomes_are_fixed_sentences(outcome: bytes, kind: type[Exception], code: str) -> None:
    """A worker chooses one, and no word of it."""
    with worker(answering(outcome=outcome)) as one:
        one.settle()
        with pytest.raises(kind) as caught:
            run(one)
        assert caught.value.code == code  # type: ignore[attr-defined]


def test_memory_that_changes_while_it_is_read_changes_nothing() -> None:
    """A worker that answers and goes on writing: what comes out is of its type, whenever it was copied."""

    def writing(end: socket.socket, area: Any) -> None:
        records.receive_run(end)
        end.sendall(records.pack_answer(records.DONE, [Place(1, (4,), 64, 4)]))
        while True:
            area[64:68] = 1
            area[64:68] = 77

    for _ in range(5):
        with worker(writing) as one:
            one.settle()
            try:
                got = run(one, 1)
            except Died:
                continue
            assert got.dtype == bool and set(got.view(np.uint8).tolist()) <= {0, 1}


def test_one_that_hangs_is_killed() -> None:
    """By its descriptor; no matter what it does. Meanwhile nobody waits who does not want to."""

    def hanging(end: socket.socket, area: Any) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
        while True:
            time.sleep(1)

    with worker(hanging) as one:
        one.settle()
        one.begin({"x": X}, [0], INFO, 10)
        assert one.step() is None
        one.kill()
        one.wait(5)
        with pytest.raises(Died):
            one.step()
        wait_for_end(one)


def test_one_that_does_not_read_takes_no_longer_than_it_may() -> None:
    """A record that no socket takes at once; the process is killed."""
    many = dataclasses.replace(INFO, inputs=tuple(TensorSpec(f"x{n}", "FP32", (4,)) for n in range(9000)))

    def deaf(end: socket.socket, area: Any) -> None:
        time.sleep(30)

    with worker(deaf) as one:
        one.settle()
        with pytest.raises(LimitExceeded) as caught:
            one.begin({spec.name: X[:0] for spec in many.inputs}, [0], many, 0.2)
        assert caught.value.code == "run_too_long"
        wait_for_end(one)


# Who it is


@pytest.mark.parametrize("how", [{"hello": b"h"}, {"grandchild": True}])
def test_a_stranger_is_no_worker(how: dict[str, Any]) -> None:
    """One that does not say its word, and one that is no child of the template. It is not killed: it is a stranger."""
    with worker(honest, **how) as one:
        with pytest.raises(EOFError):
            one.settle()
        assert one.pid == 0 and not one.alive()


def test_nobody_is_killed_before_it_is_known_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is no descriptor left to find out by: an id may be a stranger's by then."""
    killed: list[int] = []

    def none(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with worker(honest, grandchild=True) as one, monkeypatch.context() as patched:
        patched.setattr("strongroom.processes.os.open", none)
        patched.setattr(signal, "pidfd_send_signal", lambda *_: killed.append(1))
        with pytest.raises((OSError, EOFError)):
            one.settle()
        one.close()
    assert not killed


def test_a_process_from_before_is_no_worker() -> None:
    """A helper that was forked earlier may know what another caller sent: it is older than what it answers to."""

    class Older(Lying):
        def fork(self, end: socket.socket) -> None:
            left.sendmsg(
                [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, end.fileno().to_bytes(4, sys.byteorder))]
            )

    left, right = socket.socketpair()
    with left, right:
        template: Any = Older(honest)

        def helper() -> None:
            _, (descriptor,), _, _ = socket.recv_fds(right, 1, 1)
            template._work(socket.socket(fileno=descriptor))

        template.children.append(_fork(helper))
        time.sleep(0.05)  # births are told apart by hundredths of a second
        one = Worker(template, SIZE, most=SIZE)
        try:
            with pytest.raises(EOFError):
                one.settle()
        finally:
            one.close()
            os.kill(template.children[0], signal.SIGKILL)
            os.waitpid(template.children[0], 0)


def test_its_memory_cannot_be_made_smaller() -> None:
    """Or larger: shrinking it would end the server by SIGBUS."""
    kept: list[int] = []

    def cutting(end: socket.socket, area: Any) -> None:
        records.receive_run(end)
        said = b""
        for size in (0, 2 * SIZE):
            try:
                os.ftruncate(kept[0], size)
            except OSError:
                said += b"n"
        end.sendall(records.pack_answer(records.FAILED if said == b"nn" else records.NO_TEXT))

    class Kept(Lying):
        def _work(self, end: socket.socket) -> None:
            end.sendall(self._hello)
            _, kept[:], _, _ = socket.recv_fds(end, 9, 1)
            self._behaviour(end, None)

    template: Any = Kept(cutting)
    one = Worker(template, SIZE, most=SIZE)
    try:
        one.settle()
        with pytest.raises(InvalidRequest) as caught:
            run(one)
        assert caught.value.code == "run_failed"
    finally:
        one.close()
        os.waitpid(template.children[0], 0)
