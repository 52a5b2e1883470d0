"""Models in workers: results as in one process, one caller's data in each, and what happens when they die."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from strongroom import processes, records
from strongroom.engine import Engine
from strongroom.errors import (
    AdmissionRefused,
    Error,
    Failure,
    InvalidRequest,
    LimitExceeded,
    SealRefused,
    Unavailable,
)
from strongroom.jobs import Job, Source, Ticket
from strongroom.launch import CHILD, dependency_folders
from strongroom.models import admit
from strongroom.models.info import _TOKEN, STANDARD_LIMITS, Admitted
from strongroom.oip import bytes_array
from strongroom.planned import FEWEST
from strongroom.processes import Worker, WorkerLimits
from strongroom.waiting import address_limits
from strongroom.worker import FILL
from strongroom.workers import Model, Workers, _Under
from strongroom.zygote import Launch, Nursery

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: workers are Linux's"),
]

LIMITS = WorkerLimits(
    processes=8,
    run_bytes=1 << 30,
    run_longest_s=60,
    input_bytes=32 << 20,
    response_bytes=16 << 20,
    idle_bytes=64 << 20,
    elements=1 << 20,
)
FLOAT, INT, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def model(*nodes: Any, inputs: Any, outputs: Any, constants: Any = ()) -> Admitted:
    """An admitted model; tensors as (name, element type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(*entry) for entry in outputs],
        initializer=list(constants),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return admit(made.SerializeToString(), format="onnx", limits=STANDARD_LIMITS)


def source(admitted: Admitted) -> Source:
    """Where a host has it from."""
    return Source(
        info=admitted.info,
        sha256=admitted.sha256,
        canonical_sha256=admitted.canonical_sha256,
        read=lambda: admitted.onnx,
    )


DOUBLE = model(
    helper.make_node("Add", ["x", "x"], ["y"]), inputs=[("x", FLOAT, ["n"])], outputs=[("y", FLOAT, ["n"])]
)
DIVIDE = model(
    helper.make_node("Div", ["a", "b"], ["c"]),
    inputs=[("a", INT, ["n"]), ("b", INT, ["n"])],
    outputs=[("c", INT, ["n"])],
)
"""Dies of data: the least integer divided by -1 is SIGFPE."""
TEXT = model(
    helper.make_node("Identity", ["x"], ["y"]), inputs=[("x", STRING, ["n"])], outputs=[("y", STRING, ["n"])]
)
X = np.array([1.5, -2.0], np.float32)
DEADLY = {"a": np.array([-(2**63)]), "b": np.array([-1])}
HARMLESS = {"a": np.array([6]), "b": np.array([3])}


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
        if not set(FEWEST) <= set(held):
            pytest.skip(f"not exercised here: of the sandbox only {', '.join(held)} can be had")
        yield made


@contextmanager
def loaded(nursery: Nursery, admitted: Admitted, isolation: str = "owner", **limits: int) -> Iterator[Model]:
    """The model in workers."""
    made = Workers(
        nursery,
        isolation=isolation,
        layers=FEWEST,
        limits=WorkerLimits(**{**{name: getattr(LIMITS, name) for name in LIMITS.__slots__}, **limits}),
    ).load(source(admitted))
    try:
        yield made
    finally:
        made.close()


def run(model: Model, inputs: Any, caller: str | None = "a", **more: Any) -> Any:
    """One run; the only output."""
    job = Job(caller=caller, **{"seconds": 30.0, **more})
    (result,) = model.run(inputs, outputs=(), job=job).values()
    return result


def test_workers_fill_blocks_as_the_environment_says() -> None:
    """A template does not, while it loads, and does again before it forks."""
    assert str(FILL) == CHILD["MALLOC_PERTURB_"]


def pids(model: Model) -> set[int]:
    """The children of its template, as the kernel lists them; spare and newborn ones as well."""
    assert model._template is not None
    pid = model._template.pid
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != b"Z":
                found.add(int(entry.name))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_results_are_those_of_one_process(nursery: Nursery) -> None:
    """Bit for bit; numbers, strings, empty tensors, several outputs, and in the order asked for."""
    several = model(
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Less", ["x", "x"], ["b"]),
        helper.make_node("Identity", ["s"], ["t"]),
        inputs=[("x", FLOAT, ["n", 3]), ("s", STRING, ["m"])],
        outputs=[("a", FLOAT, ["n", 3]), ("b", TensorProto.BOOL, ["n", 3]), ("t", STRING, ["m"])],
    )
    rng = np.random.default_rng(1)
    here = Engine().load(several)
    with loaded(nursery, several) as there:
        for rows, texts in ((0, []), (5, ["é".encode(), b"", b"a\0b"]), (70_000, [b"x" * 1000] * 3)):
            inputs = {
                "x": rng.standard_normal((rows, 3)).astype(np.float32),
                "s": bytes_array(texts, shape=(len(texts),)),
            }
            expected = here.run(inputs, outputs=("t", "a", "b"))
            got = there.run(inputs, outputs=("t", "a", "b"), job=Job(caller="a", seconds=30))
            assert list(got) == list(expected)
            for name, array in expected.items():
                assert got[name].dtype == array.dtype and got[name].shape == array.shape
                assert got[name].tolist() == array.tolist()
                assert got[name].flags.writeable and got[name].flags.c_contiguous


@pytest.mark.parametrize(
    ("isolation", "callers", "workers"),
    [
        ("owner", ["a", "a", "a"], 1),
        ("owner", ["a", "b", "a", "b"], 2),
        ("owner", [None, None], 2),
        ("model", ["a", "b", None, "a"], 1),
        ("request", ["a", "a", "b"], 3),
    ],
)
def test_who_shares_a_worker(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, isolation: str, callers: list[str | None], workers: int
) -> None:
    """As the isolation says; callers without a key share nothing under `owner`."""
    used: list[int] = []
    real = Worker.begin

    def spy(self: Worker, *args: Any) -> Any:
        used.append(id(self))
        keep.append(self)
        return real(self, *args)

    keep: list[Worker] = []
    monkeypatch.setattr(Worker, "begin", spy)
    with loaded(nursery, DOUBLE, isolation) as there:
        for caller in callers:
            assert run(there, {"x": X}, caller).tolist() == [3.0, -4.0]
    assert len(set(used)) == workers


def test_there_are_only_so_many_workers(nursery: Nursery) -> None:
    """The one not used for longest makes room; all callers are served."""
    with loaded(nursery, DOUBLE, processes=2) as there:
        for caller in "abcabc":
            assert run(there, {"x": X}, caller).tolist() == [3.0, -4.0]
            assert len(pids(there)) <= 3  # one may be on its way out


@pytest.mark.parametrize(
    ("admitted", "inputs", "code"),
    [
        (TEXT, {"x": bytes_array([b"\xff"], shape=(1,))}, "input_not_text"),
        (DOUBLE, {"x": X.astype(np.float64)}, "run_failed"),
        (DIVIDE, {"a": np.array([1, 2]), "b": np.array([1, 2, 3])}, "run_failed"),
    ],
)
def test_runs_that_are_refused(nursery: Nursery, admitted: Admitted, inputs: Any, code: str) -> None:
    """A fixed sentence for each, and the worker goes on."""
    with loaded(nursery, admitted) as there:
        for _ in range(2):
            with pytest.raises(InvalidRequest) as caught:
                run(there, inputs)
            assert caught.value.code == code and "ONNXRuntime" not in str(caught.value)
        with pytest.raises(InvalidRequest) as caught:
            there.run(inputs, outputs=("z",), job=Job(caller="a", seconds=5))
        assert caught.value.code == "output_unknown"


def test_a_worker_has_the_memory_that_admission_bounded(nursery: Nursery) -> None:
    """Beyond it a run is refused, and the next one is not; nobody else notices."""
    big = model(
        helper.make_node("Expand", ["x", "shape"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["s"], keepdims=0),
        inputs=[("x", FLOAT, [1])],
        outputs=[("s", FLOAT, [])],
        constants=[helper.make_tensor("shape", INT, [1], [150_000_000])],
    )
    with loaded(nursery, big, run_bytes=64 << 20) as there:
        for _ in range(2):
            with pytest.raises(LimitExceeded) as caught:
                run(there, {"x": X[:1]})
            assert caught.value.code == "run_memory"
    with loaded(nursery, big, run_bytes=2 << 30) as there:
        assert run(there, {"x": X[:1]}).shape == ()


def test_a_result_beyond_the_room_is_refused(nursery: Nursery) -> None:
    """The worker says so, and goes on."""
    with loaded(nursery, DOUBLE, response_bytes=1 << 16, input_bytes=1 << 20, elements=1) as there:
        with pytest.raises(LimitExceeded) as caught:
            run(there, {"x": np.zeros((1 << 18) - 64, np.float32)})
        assert caught.value.code == "response_too_large"
        assert run(there, {"x": X}).tolist() == [3.0, -4.0]


def test_a_worker_that_holds_much_memory_is_not_kept(nursery: Nursery) -> None:
    """The allocator keeps what a large value took, from the second run on: below the limit the worker goes on with it,
    above it the next run has another worker. What a request took in shared memory is given back, and not counted.
    """
    halves = model(
        helper.make_node("Add", ["x", "x"], ["a"]),
        helper.make_node("Mul", ["a", "a"], ["b"]),
        helper.make_node("ReduceSum", ["b"], ["s"], keepdims=0),
        inputs=[("x", FLOAT, ["n"])],
        outputs=[("s", FLOAT, [])],
    )
    x = np.ones(6 << 20, np.float32)  # 24 MB
    for most, kept in ((256 << 20, True), (8 << 20, False)):
        with loaded(nursery, halves, idle_bytes=most) as there:
            workers = set()
            for _ in range(4):
                assert float(run(there, {"x": x})) == 4.0 * len(x)
                workers |= {one.pid for one, owner in there._workers._idle.items() if owner[1] == "a"}
            assert len(workers) == 1 if kept else len(workers) != 1
            if kept:
                (held,) = [one for one, owner in there._workers._idle.items() if owner[1] == "a"]
                assert held.swollen(8 << 20) and not held.swollen(256 << 20)
                held.kill()
                wait_for(lambda one=held: not one.alive())
                assert not held.swollen(0)
    with loaded(nursery, DOUBLE, idle_bytes=20 << 20) as there:  # 12 MB are the allocator's, 24 are shared
        for _ in range(2):
            run(there, {"x": x[: 3 << 20]})
            assert there._workers.has(there, "a")


# Deaths


def test_a_death_is_one_callers_error(nursery: Nursery) -> None:
    """Of that request: the same caller's next is answered by another worker, and others never notice."""
    with loaded(nursery, DIVIDE) as there:
        assert run(there, HARMLESS, "b").tolist() == [2]
        with pytest.raises(InvalidRequest) as caught:
            run(there, DEADLY)
        assert caught.value.code == "worker_died"
        assert run(there, HARMLESS, "a").tolist() == [2]
        assert run(there, HARMLESS, "b").tolist() == [2]


def test_an_idle_worker_that_ended_is_replaced(nursery: Nursery) -> None:
    """Nobody is told."""
    with loaded(nursery, DOUBLE) as there:
        run(there, {"x": X})
        wait_for(lambda: len(pids(there)) == 2)  # and the spare one
        for pid in pids(there):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not pids(there))
        assert run(there, {"x": X}).tolist() == [3.0, -4.0]


def test_three_deaths_of_one_caller(nursery: Nursery) -> None:
    """It has to wait; the template comes from another zygote, with another layout; then others are served again."""
    before = nursery.pid
    with loaded(nursery, DIVIDE) as there, loaded(nursery, DOUBLE) as other:
        template = there._template
        assert template is not None
        run(there, HARMLESS, "b")
        (his,) = [one for one, owner in there._workers._idle.items() if owner == (there, "b")]
        os.kill(his.pid, signal.SIGSTOP)
        fate: list[object] = []

        def innocent() -> None:
            try:
                fate.append(run(there, HARMLESS, "b"))
            except Error as error:
                fate.append(error.code)

        thread = threading.Thread(target=innocent)
        thread.start()
        wait_for(lambda: his not in there._workers._idle)
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                run(there, DEADLY, "killer")
        with pytest.raises(Unavailable) as caught:
            run(there, HARMLESS, "killer")
        assert caught.value.code == "model_quarantined" and caught.value.retry_after_s > 1
        thread.join()
        assert fate == ["worker_died"] and list(there._deaths._callers) == [
            "killer"
        ]  # which is not b's doing
        assert run(other, {"x": X}).tolist() == [3.0, -4.0]  # another model, meanwhile

        def again() -> bool:
            try:
                return bool(run(there, HARMLESS, "b").tolist() == [2])
            except Unavailable as error:
                assert error.code == "model_quarantined" and error.retry_after_s >= 1
                return False

        wait_for(again, 60)
        assert there._template is not template and (now := nursery.pid) != before
        nursery.renew(
            template.child
        )  # as another model of the former zygote would: there is a new one already
        assert nursery.pid == now
        with pytest.raises(Unavailable):
            run(there, HARMLESS, "killer")
        assert run(other, {"x": X}).tolist() == [3.0, -4.0]  # whose template is still the former zygote's


def test_deaths_are_counted_over_all_models_of_a_zygote(nursery: Nursery) -> None:
    """They share its layout: the third, of a third model, has that one made anew from another zygote, and so has each
    further death of a model that is left. Nobody waits for a single death, and a model without one goes on.
    """
    before = nursery.pid
    hosts = Workers(nursery, isolation="owner", layers=FEWEST, limits=LIMITS)
    with contextlib.ExitStack() as stack:
        models = [hosts.load(source(DIVIDE)) for _ in range(5)]
        for one in models:
            stack.callback(one.close)
        templates = [one._template for one in models]
        for number, one in enumerate(models[:3]):
            assert nursery.pid == before
            with pytest.raises(InvalidRequest):
                run(one, DEADLY, f"caller {number}")
        wait_for(lambda: nursery.pid != before, 60)
        wait_for(lambda: models[2]._template is not None, 60)
        assert [one._template is t for one, t in zip(models, templates, strict=True)] == [
            True, True, False, True, True,
        ]  # fmt: skip
        with pytest.raises(InvalidRequest):
            run(models[3], DEADLY, "another")
        wait_for(lambda: models[3]._template not in (None, templates[3]), 60)
        with pytest.raises(InvalidRequest):
            run(models[2], DEADLY, "another")  # whose layout is new
        template = models[2]._template
        assert [run(one, HARMLESS, "another").tolist() for one in models] == [[2]] * 5
        assert models[2]._template is template and models[4]._template is templates[4]


def test_callers_without_a_key_wait_by_their_address(nursery: Nursery) -> None:
    """One whose data kill workers keeps no other out."""
    with loaded(nursery, DIVIDE) as there:
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                run(there, DEADLY, None, origin="address 192.0.2.1")
        with pytest.raises(Unavailable) as caught:
            run(there, HARMLESS, None, origin="address 192.0.2.1")
        assert caught.value.code == "model_quarantined"
        wait_for(lambda: there._template is not None, 60)
        assert run(there, HARMLESS, None, origin="address 192.0.2.2").tolist() == [2]
        with pytest.raises(Unavailable):
            run(there, HARMLESS, None, origin="address 192.0.2.1")


def test_a_template_that_ends_is_made_anew(nursery: Nursery) -> None:
    """With its workers, which end with it."""
    with loaded(nursery, DOUBLE) as there:
        run(there, {"x": X})
        workers = pids(there)
        assert there._template is not None
        os.kill(there._template.pid, signal.SIGKILL)
        wait_for(lambda: there._template is None or not there._template.alive())
        with pytest.raises(Unavailable):
            run(there, {"x": X})
        wait_for(lambda: there._template is not None, 60)
        assert run(there, {"x": X}).tolist() == [3.0, -4.0]
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_whatever_hinders_making_a_template_anew_it_is_tried_again(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that cannot be started while it loads, for one: the model does not stay away for ever."""
    with loaded(nursery, DOUBLE) as there:
        make, tries = there._make, []

        def once() -> Any:
            tries.append(1)
            if len(tries) == 1:
                raise RuntimeError("can't start new thread")
            return make()

        monkeypatch.setattr(there, "_make", once)
        assert there._template is not None
        os.kill(there._template.pid, signal.SIGKILL)
        wait_for(lambda: there._template is None or not there._template.alive())
        with pytest.raises(Unavailable):
            run(there, {"x": X})
        wait_for(lambda: there._template is not None, 60)
        assert run(there, {"x": X}).tolist() == [3.0, -4.0] and len(tries) == 2


def test_a_template_for_which_there_is_no_thread_is_made_later(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next request: the model does not stay away for ever."""
    start = threading.Thread.start

    def none(thread: threading.Thread) -> None:
        if thread.name == "workers-again":
            raise RuntimeError("can't start new thread")
        start(thread)

    with loaded(nursery, DOUBLE) as there:
        run(there, {"x": X})
        assert there._template is not None
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none)
            os.kill(there._template.pid, signal.SIGKILL)
            wait_for(lambda: there._template is None or not there._template.alive())
            for _ in range(2):
                with pytest.raises(Unavailable):
                    run(there, {"x": X})
        with pytest.raises(Unavailable):
            run(there, {"x": X})
        wait_for(lambda: there._template is not None, 60)
        assert run(there, {"x": X}).tolist() == [3.0, -4.0]


def test_a_run_that_takes_too_long_is_ended(nursery: Nursery) -> None:
    """By the clock; the caller is told, and served again. Stopped processes count, too."""
    with loaded(nursery, DOUBLE) as there:
        run(there, {"x": X})
        for pid in pids(there):
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(LimitExceeded) as caught:
            run(there, {"x": X}, seconds=0.2)
        assert caught.value.code == "run_too_long"
        wait_for(lambda: len(pids(there)) <= 2)
        for pid in pids(there):
            os.kill(pid, signal.SIGCONT)
        assert run(there, {"x": X}).tolist() == [3.0, -4.0]


def test_a_caller_who_goes_away_ends_the_run(nursery: Nursery) -> None:
    """Whether it was under way or had not begun."""
    with loaded(nursery, DOUBLE) as there:
        run(there, {"x": X})
        for pid in pids(there):
            os.kill(pid, signal.SIGSTOP)
        ticket = Ticket()
        threading.Timer(0.2, ticket.cancel).start()
        with pytest.raises(Error):
            run(there, {"x": X}, ticket=ticket)
        for pid in pids(there):
            with contextlib.suppress(ProcessLookupError):  # the one that ran is on its way out
                os.kill(pid, signal.SIGCONT)
        with pytest.raises(Error):
            run(there, {"x": X}, ticket=ticket)
        assert run(there, {"x": X}).tolist() == [3.0, -4.0]


def test_closing_ends_every_process(nursery: Nursery) -> None:
    """Template and workers; later runs are refused."""
    with loaded(nursery, DOUBLE) as there:
        run(there, {"x": X})
        assert there._template is not None
        template = there._template
        ended = {template.pid, *pids(there)}
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ended))
    with pytest.raises(Failure):
        run(there, {"x": X})
    there._make_anew(template, 0.0)  # had it been on its way back: it stays away
    assert there._template is None


def test_models_that_are_not_run_keep_no_places(nursery: Nursery) -> None:
    """Each loaded model has a worker on its way; it gives its place up to whoever runs."""
    all_ = Workers(nursery, isolation="owner", layers=FEWEST, limits=dataclasses.replace(LIMITS, processes=2))
    models = [all_.load(source(DOUBLE)) for _ in range(3)]
    try:
        for there in (*reversed(models), *models):
            assert run(there, {"x": X}).tolist() == [3.0, -4.0]
    finally:
        held = [os.pidfd_open(there._template.pid) for there in models if there._template is not None]
        for there in models:
            there.close()
    for process in held:  # their memory is free for the next model
        assert select.select([process], [], [], 0)[0]
        os.close(process)
    assert len(held) == 3 and all_._count == 0 and not all_._idle


def test_a_template_that_does_not_look_ends_all_the_same(nursery: Nursery) -> None:
    """One that hangs, or was taken over, does not stay when its model goes; nor do its workers."""
    with loaded(nursery, DOUBLE) as there:
        run(there, {"x": X})
        assert there._template is not None
        ended = {there._template.pid, *pids(there)}
        os.kill(there._template.pid, signal.SIGSTOP)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ended))


# What a worker that was taken over may say


def fake_worker() -> tuple[Worker, socket.socket]:
    """The server's side of one, and the end of the other."""
    one, (ours, theirs) = Worker.__new__(Worker), socket.socketpair()
    one._end, one._process, one._statm, one._lock, one._shared = ours, -1, -1, threading.Lock(), None
    one._most, one._laid = 1 << 12, None
    one._area, one._runs, one.spent_s = np.zeros(1 << 12, np.uint8), 0, 0.0
    ours.settimeout(0)
    return one, theirs


class _Wrapped:
    """In place of a model, for a run of a worker that it did not make."""

    info, positions = DOUBLE.info, staticmethod(lambda names: [0] * len(names))

    def give_back(self, one: Worker, job: Job, *, again: bool) -> None:
        """Nobody's."""

    def died(self, job: Job, one: Worker) -> None:
        """Nobody's."""


def run_of(one: Worker, seconds: float, outputs: int = 1) -> list[Any]:
    """One run, as `Model.run` waits for it."""
    wrapped: Any = _Wrapped()
    under = _Under(wrapped, one, Job(caller="a", seconds=seconds), tuple(f"y{n}" for n in range(outputs)))
    under.start({"x": X})
    return list(under.wait().values())


def test_an_answer_byte_by_byte_is_no_answer() -> None:
    """The time of a run is one for all of its answer."""
    one, theirs = fake_worker()

    def drip() -> None:
        with contextlib.suppress(OSError):
            for byte in records.pack_answer(records.DONE, [records.Place(0, (1,), 0, 4)]) * 9:
                theirs.sendall(bytes([byte]))
                time.sleep(0.05)

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    with pytest.raises(LimitExceeded) as caught:
        run_of(one, 0.2)
    assert caught.value.code == "run_too_long" and time.monotonic() - started < 1.0
    one.close()
    thread.join()
    theirs.close()


def test_outputs_one_on_top_of_the_other_are_not_copied() -> None:
    """Sixty outputs of the whole memory each would be sixty times the memory that there is."""
    one, theirs = fake_worker()
    with theirs:
        for size, accepted in ((1 << 11, True), (1 << 12, False)):
            place = records.Place(0, (size // 4,), 0, size)
            theirs.sendall(records.pack_answer(records.DONE, [place, place]))
            if accepted:
                assert [a.nbytes for a in run_of(one, 5.0, 2)] == [size, size]
                continue
            with pytest.raises(LimitExceeded) as caught:
                run_of(one, 5.0, 2)
            assert caught.value.code == "response_too_large"
        one.close()


def test_descriptors_beyond_a_thousand_are_looked_at() -> None:
    """`select` knows no number from 1024 on, and connections take the small ones."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            high = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1024)
        except OSError:
            pytest.skip("not exercised here: there are no such descriptors")
        try:
            assert not processes._readable(high)
            theirs.close()
            assert processes._readable(high)
        finally:
            os.close(high)


def test_a_late_stop_meets_nobody_else() -> None:
    """Once a run has ended its ticket stops nothing: the process may work for another caller by then."""
    ticket, stopping, go = Ticket(), threading.Event(), threading.Event()
    seen: list[str] = []

    def stop() -> None:
        stopping.set()
        go.wait(5)
        seen.append("stopped")

    ticket.stop_with(stop)
    cancelling = threading.Thread(target=ticket.cancel)
    cancelling.start()
    assert stopping.wait(5)
    threading.Timer(0.05, go.set).start()
    ticket.stop_with(None)
    seen.append("ended")
    cancelling.join()
    ticket.cancel()
    assert seen == ["stopped", "ended"]


# Loading


def smuggled(admitted: Admitted, data: bytes) -> Source:
    """Other bytes under the facts of a model, to see what a template makes of them."""
    import hashlib

    proof = Admitted(
        info=admitted.info,
        onnx=data,
        sha256="0",
        canonical_sha256=hashlib.sha256(data).hexdigest(),
        token=_TOKEN,
    )
    return source(proof)


@pytest.mark.parametrize(
    ("bad", "kind", "code"),
    [
        (lambda: smuggled(DOUBLE, b"\x08\x08garbage"), AdmissionRefused, "engine_refused"),
        (lambda: smuggled(DOUBLE, DIVIDE.onnx), AdmissionRefused, "engine_interface"),
        (
            lambda: Source(info=DOUBLE.info, sha256="0", canonical_sha256="0" * 64, read=lambda: DOUBLE.onnx),
            SealRefused,
            "seal_digest",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused(
    nursery: Nursery, bad: Callable[[], Source], kind: type[Error], code: str
) -> None:
    """With the codes of one process, and onnxruntime's text nowhere."""
    with pytest.raises(kind) as caught:
        Workers(nursery, isolation="owner", layers=FEWEST, limits=LIMITS).load(bad())
    assert caught.value.code == code and "onnxruntime::" not in str(caught.value)


def test_without_a_promised_layer_nothing_is_loaded(nursery: Nursery) -> None:
    """What holds is looked at before there is a model; it is no fault of the model's."""
    with pytest.raises(Failure, match="not confined"):
        Workers(nursery, isolation="owner", layers=("prayer",), limits=LIMITS).load(source(DOUBLE))


def waiting_pid(workers: Workers) -> int:
    """That of the template in waiting, once there is one."""
    wait_for(lambda: workers.waiting.pid)
    pid = workers.waiting.pid
    assert pid is not None
    return pid


def test_a_load_takes_the_template_that_waits(nursery: Nursery) -> None:
    """It is locked down before; its limit of memory is the model's. The next one is another process, and goes with its
    zygote. One that was killed is nobody's trouble.
    """
    host = Workers(nursery, isolation="owner", layers=FEWEST, limits=LIMITS).ready()
    limits: set[int] = set()
    for killed in (False, True, False):
        pid = waiting_pid(host)
        status = Path(f"/proc/{pid}/status").read_text()
        assert "\nSeccomp:\t2\n" in status and "\nThreads:\t1\n" in status
        assert address_limits(pid) == (str(1 << 46),) * 2
        if killed:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists())
        there = host.load(source(DOUBLE))
        try:
            assert there._template is not None and (there._template.pid == pid) is not killed
            limits |= {int(limit) for limit in address_limits(there._template.pid)}
            assert run(there, {"x": X}).tolist() == (X * 2).tolist()
            former = there._template.child
        finally:
            there.close()
    assert max(limits) < 1 << 36
    pid = waiting_pid(host)
    nursery.renew(former)
    assert host.waiting.pid is None
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_many_callers_at_once(nursery: Nursery) -> None:
    """From several threads each gets its own answer, with few processes."""
    with loaded(nursery, DOUBLE, processes=4) as there:
        wrong: list[object] = []

        def caller(name: str) -> None:
            for number in range(10):
                value = np.array([number, ord(name)], np.float32)
                try:
                    if (run(there, {"x": value}, name) != value * 2).any():
                        wrong.append(name)
                except Error as error:
                    wrong.append(error)

        threads = [threading.Thread(target=caller, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
