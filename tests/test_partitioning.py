"""Models in stages: made by confined processes, sealed one by one, run stage by stage with the whole's bytes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from store_worker import open_store

from strongroom import feeding, pacing, partitioning, rehearsal
from strongroom.admission import ChildLimits
from strongroom.cache import SessionCache
from strongroom.engine import Engine, InProcess
from strongroom.errors import Failure, InvalidRequest, LimitExceeded, NotFound, SealRefused, Unavailable
from strongroom.feeding import Plan
from strongroom.fetching import GONE, WORD
from strongroom.forms import Forms
from strongroom.jobs import Job, Source
from strongroom.launch import CHILD, dependency_folders
from strongroom.models import admit, parting
from strongroom.models.info import STANDARD_LIMITS, Admitted
from strongroom.models.parting import HEAP
from strongroom.oip import InferRequest, Tensor, WireLimits
from strongroom.partition import check_partition
from strongroom.planned import FEWEST
from strongroom.prepared import Making
from strongroom.processes import WorkerLimits
from strongroom.runner import RunLimits, Runner
from strongroom.staged_here import Here
from strongroom.state import ModelVersion
from strongroom.store import Store
from strongroom.workers import Workers
from strongroom.zygote import Launch, Nursery

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: preparers are Linux's"),
]

MAKING = Making(engine="engine/1 options 0", processor="some features 1")
LIMITS = ChildLimits(wall_s=60, cpu_s=60, memory_bytes=1 << 30)
RUNS = WorkerLimits(
    processes=4, idle_bytes=1 << 30, run_bytes=1 << 30, run_longest_s=60,
    input_bytes=32 << 20, response_bytes=16 << 20, elements=1 << 20
)  # fmt: skip
OWNER = "a" * 64
FLOAT = TensorProto.FLOAT
LAYERS, WIDTH = 8, 256


def network() -> Admitted:
    """Eight products of 256 KiB each, the last of which adds what the first one gave; two inputs."""
    values = np.random.default_rng(1)
    nodes, weights = [], []
    for n in range(LAYERS):
        name = f"w{n}"
        array = values.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 16
        weights.append(numpy_helper.from_array(array, name))
        nodes.append(helper.make_node("MatMul", [f"v{n}" if n else "x", name], [f"v{n + 1}"]))
    nodes.append(helper.make_node("Add", [f"v{LAYERS}", "v1"], ["s"]))
    nodes.append(helper.make_node("Add", ["s", "z"], ["y"]))
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info(name, FLOAT, ["n", WIDTH]) for name in ("x", "z")],
        [helper.make_tensor_value_info(name, FLOAT, ["n", WIDTH]) for name in ("y", "v1")], weights,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return admit(made.SerializeToString(), format="onnx", limits=STANDARD_LIMITS)


NETWORK = network()
X = {
    name: np.random.default_rng(n).standard_normal((3, WIDTH), dtype=np.float32)
    for n, name in enumerate("xz")
}
WHOLE = Engine().load(NETWORK).run(X, outputs=())
BYTES = LAYERS * WIDTH * WIDTH * 4


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One zygote."""
    launch = Launch(
        paths=dependency_folders("simulated"), environment=CHILD, folder=Path("/"), measured=None,
        flags=("-I", "-S"), workers=True,
    )  # fmt: skip
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


def put(store: Store, *, partition: str = "4", name: str = "net") -> ModelVersion:
    """Uploads the network."""
    upload = store.begin(name=name, owner=OWNER, access="private", format="onnx", max_bytes=1 << 30)
    upload.write(NETWORK.onnx)
    upload.seal()
    info = dataclasses.replace(NETWORK.info, partition=partition)
    return upload.commit(info=info, canonical_sha256=NETWORK.canonical_sha256)


def kept(store: Store, nursery: Nursery, **more: Any) -> Forms:
    """The forms of a store; by default nothing is too large for memory, and stages have little of it."""
    given = {"limits": LIMITS, "layers": FEWEST, "keep_free": 0, "budget": 1 << 30, "room": 1 << 20, **more}
    return Forms(store, nursery, **{"making": MAKING, **given})


def runner(
    store: Store, forms: Forms, nursery: Nursery, verify: Literal["tags", "sha256"] = "tags"
) -> Runner:
    """With two places for runs."""
    wire = WireLimits(tensors=9, tensor_bytes=1 << 20, total_bytes=1 << 20, elements=1 << 20, name_length=9)
    limits = RunLimits(
        concurrent_runs=2, waiting=9, waiting_per_caller=9, queue_s=30, response_bytes=1 << 20, wire=wire,
        admission=STANDARD_LIMITS, shortest_s=30, longest_s=60, batch_rows=1, batch_delay_s=0,
    )  # fmt: skip
    return Runner(
        store=store, host=workers(nursery), admit=admit, cache=SessionCache(1 << 30), forms=forms, preloaded=(),
        verify_on_load=verify, limits=limits,
    )  # fmt: skip


def source(store: Store, kept: Forms, model: ModelVersion, *, room: int | None = None) -> Source:
    """Where a host has it from."""
    return Source(
        info=model.info, sha256=model.sha256, canonical_sha256=model.canonical_sha256,
        read=lambda: store.read(model, verify="tags"), stages=lambda: kept.stages(model),
        spoilt=lambda stages, why: kept.spoilt(model, stages, why), room=kept.room if room is None else room,
    )  # fmt: skip


def count(store: Store, model: ModelVersion) -> int:
    """Stages of its form."""
    form = store.form(model)
    return len(form.stages) if form else 0


def job(caller: str = "a") -> Job:
    return Job(caller=caller, seconds=30.0)


def test_stage_by_stage_it_gives_the_wholes_bytes(store: Store, nursery: Nursery) -> None:
    """For several owners and several batches, with nothing and with half of it staying."""
    model, made = put(store), kept(store, nursery)
    made.make(model)
    assert count(store, model) == 4
    for room in (0, 2 * BYTES - 1):
        loaded = Workers(nursery, isolation="owner", layers=FEWEST, limits=RUNS).load(
            source(store, made, model, room=room)
        )
        try:
            for caller in ("a", "b", "a"):
                got = loaded.run(X, outputs=(), job=job(caller))
                assert all(got[name].tobytes() == WHOLE[name].tobytes() for name in WHOLE)
            assert loaded.run(X, outputs=("v1",), job=job())["v1"].tobytes() == WHOLE["v1"].tobytes()
            assert loaded.begin(X, outputs=(), job=job()) is None
        finally:
            loaded.close()


def test_what_is_said_of_stages_is_what_runs(store: Store, nursery: Nursery) -> None:
    """Not what some form has that is not used: another engine's, or where all of the model is hashed at each load; and
    of what is loaded, what that is.
    """
    model, made = put(store), kept(store, nursery)
    first = runner(store, made, nursery)
    try:
        asyncio.run(first.load(model))
        made.make(model)
        assert count(store, model) == 4
        assert first.stages(model) == 1  # as a whole, for it was loaded before
        asyncio.run(first.unload(model))
        assert first.stages(model) == 4
        asyncio.run(first.load(model))
        assert first.stages(model) == 4
    finally:
        first.close()
    other = Making(engine="engine/2 options 0", processor=MAKING.processor)
    for forms, verify in ((made, "sha256"), (kept(store, nursery, making=other), "tags")):
        whole = runner(store, forms, nursery, verify)
        assert whole.stages(model) == 1
        whole.close()


def test_a_model_larger_than_memory_is_cut_before_it_is_loaded(
    store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its stages are of another engine, as after an update, or were never made: the whole is not taken into
    memory meanwhile.
    """
    monkeypatch.setattr(parting, "LEAST", 1 << 10)
    tight = {"budget": BYTES, "room": BYTES}
    updated, new = put(store, partition="auto"), put(store, partition="auto", name="new")
    small, off = put(store, partition="auto", name="small"), put(store, partition="off", name="off")
    other = Making(engine="engine/0 options 0", processor=MAKING.processor)
    kept(store, nursery, making=other, **tight).make(updated)
    read, whole = store.read, []

    def reading(model: ModelVersion, *, verify: Any) -> bytearray:
        whole.append(model.name)
        return read(model, verify=verify)

    monkeypatch.setattr(store, "read", reading)
    for models, forms in (
        ((updated, new, off), kept(store, nursery, **tight)),
        ((small,), kept(store, nursery)),
    ):
        here = runner(store, forms, nursery)
        try:
            for model in models:
                asyncio.run(here.load(model))
        finally:
            here.close()
    assert whole == ["off", "small"]


def test_who_waits_for_a_model_in_stages_takes_no_place_from_other_models(
    store: Store, nursery: Nursery
) -> None:
    """One run of it goes on at a time; with two places, and three of its callers, another model has the other one."""
    model, made, other = put(store), kept(store, nursery), put(store, partition="off", name="other")
    made.make(model)
    here = runner(store, made, nursery)
    inputs = tuple(Tensor(name=name, datatype="FP32", array=array) for name, array in X.items())
    request = InferRequest(id=None, inputs=inputs, outputs=("y",), parameters=())

    async def run(model: ModelVersion, caller: str) -> bytes:
        return await here.run(
            model, size=1 << 20, caller=caller, principal=caller, decode=lambda _: request,
            encode=lambda response: response.outputs[0].array.tobytes(),
        )  # fmt: skip

    async def main() -> None:
        await here.load(model)
        lease = here._cache.lease((model.name, model.version))
        assert lease is not None
        with lease.session._feeding()._turn:  # somebody's long run
            waiting = [asyncio.ensure_future(run(model, caller)) for caller in "abc"]
            await asyncio.sleep(0.1)
            assert await asyncio.wait_for(run(other, "d"), 20) == WHOLE["y"].tobytes()
            assert not any(task.done() for task in waiting)
        assert await asyncio.gather(*waiting) == [WHOLE["y"].tobytes()] * 3
        lease.end()

    try:
        asyncio.run(main())
    finally:
        here.close()


def test_in_this_process_too(store: Store, nursery: Nursery) -> None:
    model, made = put(store), kept(store, nursery)
    made.make(model)
    loaded = Here(InProcess(Engine())).load(source(store, made, model))
    assert loaded.stages == 4
    try:
        for _ in range(2):
            got = loaded.run(X, outputs=(), job=job())
            assert all(got[name].tobytes() == WHOLE[name].tobytes() for name in WHOLE)
        with pytest.raises(InvalidRequest):
            loaded.run(X, outputs=("other",), job=job())
    finally:
        loaded.close()


def test_auto_cuts_what_is_larger_than_memory_and_nothing_else(
    store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parting, "LEAST", 1 << 10)
    tight = kept(store, nursery, budget=BYTES, room=BYTES)
    small, large, off = (
        put(store, partition=w, name=n) for n, w in (("s", "auto"), ("l", "auto"), ("o", "off"))
    )
    kept(store, nursery).make(small)
    tight.make(large)
    tight.make(off)
    assert [count(store, model) for model in (small, large, off)] == [1, 8, 1]
    # What is known before they are loaded, for room to be made: nothing of another engine's form.
    plan = Plan([stage.length for stage in store.form(large).stages], BYTES)
    assert tight.least_bytes(large) == plan.memory_bytes > 0 < tight.least_bytes(small) < 2 * BYTES
    other = kept(store, nursery, room=BYTES)
    other._making = dataclasses.replace(MAKING, engine="another")
    assert other.least_bytes(large) == 0


@pytest.mark.parametrize("limit", [1 << 10, 700 << 10])
def test_a_prediction_cuts_as_the_server_does(
    store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """The lengths of all stages, to the byte; and the plan's memory is what a server counts."""
    monkeypatch.setattr(parting, "LEAST", limit)
    room = limit * parting.SHARE
    model, made = put(store, partition="auto"), kept(store, nursery, budget=BYTES, room=room)
    made.make(model)
    form = store.form(model)
    assert form is not None and len(form.stages) > 1
    said = rehearsal.stage_lengths(NETWORK.onnx, nursery, limits=LIMITS, limit=parting.stage_limit(room))
    assert said == tuple(stage.length for stage in form.stages)


def test_what_is_too_small_to_be_cut_is_one_stage(nursery: Nursery) -> None:
    """Of the whole form's length."""
    said = rehearsal.stage_lengths(NETWORK.onnx, nursery, limits=LIMITS, limit=1 << 30)
    assert len(said) == 1 and BYTES < said[0] < 2 * BYTES


@pytest.mark.parametrize("data", [b"no model", NETWORK.onnx[:-1]])
def test_what_cannot_be_prepared_has_no_stages(nursery: Nursery, data: bytes) -> None:
    """The process ends, and that is all that is known of it."""
    with pytest.raises(LimitExceeded) as caught:
        rehearsal.stage_lengths(data, nursery, limits=LIMITS, limit=1 << 20)
    assert caught.value.code == "preparation_limits"


def test_a_machine_has_rates() -> None:
    """All are there and of a size that machines have."""
    here = pacing.rates()
    assert 1e6 < here.opened < 1e11 and 1e6 < here.loaded < 1e12
    assert 1e8 < here.operations < 1e14 and 0 < here.session < 1
    assert 1 <= here.waiting < 1e3 and 1 <= here.waiting_whole < 1e3


def test_a_form_is_made_anew_where_memory_has_changed(store: Store, nursery: Nursery) -> None:
    model = put(store, partition="3")
    kept(store, nursery).make(model)
    first = store.form(model)
    kept(store, nursery).make(model)
    assert store.form(model) == first
    assert count(store, model) == 3


def workers(nursery: Nursery) -> Workers:
    return Workers(nursery, isolation="owner", layers=FEWEST, limits=RUNS)


def spoil(store: Store, model: ModelVersion, number: int) -> None:
    """One byte of one stage's file, in its only or last chunk."""
    form = store.form(model)
    assert form is not None
    path = store._data / form.stages[number].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_stage_that_was_changed_meanwhile_ends_the_run_with_the_stores_word(
    store: Store, nursery: Nursery
) -> None:
    """And counts as nobody's death; nothing of it was used."""
    model, made = put(store), kept(store, nursery)
    made.make(model)
    loaded = workers(nursery).load(source(store, made, model, room=0))
    try:
        loaded.run(X, outputs=(), job=job())
        spoil(store, model, 2)
        with pytest.raises(SealRefused, match="chunk"):
            loaded.run(X, outputs=(), job=job())
        until = time.monotonic() + 30
        while True:  # it is made anew, and this very model goes on with it
            try:
                got = loaded.run(X, outputs=(), job=job())
                break
            except Unavailable:
                assert time.monotonic() < until
                time.sleep(0.05)
        assert got["y"].tobytes() == WHOLE["y"].tobytes()
    finally:
        loaded.close()


def test_a_load_that_wanted_time_or_memory_costs_no_stage(
    store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine, or no descriptor: the next load has the same stages, and does not take the whole into memory."""
    model, made = put(store), kept(store, nursery)
    made.make(model)
    given = dataclasses.replace(
        source(store, made, model, room=2 * BYTES - 1), read=lambda: pytest.fail("whole")
    )

    def never(*_: object) -> None:
        raise OSError

    with monkeypatch.context() as patched:
        patched.setattr("strongroom.processes.send_stage", never)
        with pytest.raises(LimitExceeded, match="loading"):
            workers(nursery).load(given)
    assert count(store, model) == 4
    workers(nursery).load(given).close()


def test_stages_that_change_places_are_refused(store: Store, nursery: Nursery) -> None:
    model, made = put(store), kept(store, nursery)
    made.make(model)
    form = store.form(model)
    assert form is not None
    one, two = (store._data / form.stages[n].file for n in (1, 2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with made.stages(model) as stages:
        assert stages == ()


def test_a_model_that_is_deleted_while_it_is_loaded_runs_no_more(store: Store, nursery: Nursery) -> None:
    model, made = put(store), kept(store, nursery)
    made.make(model)
    loaded = workers(nursery).load(source(store, made, model))
    try:
        store.delete(model.name, None)
        with pytest.raises(NotFound):
            loaded.run(X, outputs=(), job=job())
    finally:
        loaded.close()


def test_inputs_that_do_not_fit_fail_and_the_next_run_is_right(store: Store, nursery: Nursery) -> None:
    """Words about stages that the failed run asked for do not reach the next one."""
    model, made = put(store), kept(store, nursery)
    made.make(model)
    loaded = workers(nursery).load(source(store, made, model, room=0))
    bad = {"x": X["x"][:2], "z": X["z"]}
    try:
        for _ in range(3):
            with pytest.raises(InvalidRequest, match="cannot be run"):
                loaded.run(bad, outputs=(), job=job())
            got = loaded.run(X, outputs=("y",), job=job())
            assert got["y"].tobytes() == WHOLE["y"].tobytes()
    finally:
        loaded.close()


def test_runs_of_several_owners_take_turns(store: Store, nursery: Nursery) -> None:
    model, made = put(store), kept(store, nursery)
    made.make(model)
    loaded = workers(nursery).load(source(store, made, model, room=0))
    right: list[bool] = []

    def run(caller: str) -> None:
        for _ in range(3):
            got = loaded.run(X, outputs=("y",), job=job(caller))
            right.append(got["y"].tobytes() == WHOLE["y"].tobytes())

    threads = [threading.Thread(target=run, args=(caller,)) for caller in "abc"]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * 9
    finally:
        loaded.close()


@pytest.mark.parametrize("lacking", ["os.pipe", "threading.Thread.start"])
def test_a_run_for_which_there_is_no_descriptor_or_thread_is_refused_and_the_next_is_not(
    store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """Nothing stays behind that the next run would wait for."""
    model, made = put(store), kept(store, nursery)
    made.make(model)
    loaded = workers(nursery).load(source(store, made, model, room=0))
    start = threading.Thread.start

    def pipes() -> int:
        count = 0
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the folder's own
                count += str(entry.readlink()).startswith("pipe:")
        return count

    def none(thread: Any = None) -> None:
        if thread is not None and thread.name != "stages":
            return start(thread)
        raise OSError(24, "Too many open files") if thread is None else RuntimeError("can't start new thread")

    try:
        loaded.run(X, outputs=("y",), job=job())
        before = pipes()
        with monkeypatch.context() as patched:
            patched.setattr(f"strongroom.feeding.{lacking}", none)
            for _ in range(3):
                with pytest.raises(Unavailable):
                    loaded.run(X, outputs=("y",), job=job())
        assert loaded.run(X, outputs=("y",), job=job())["y"].tobytes() == WHOLE["y"].tobytes()
        assert pipes() == before
    finally:
        loaded.close()


def test_a_template_made_anew_between_two_looks_serves_nobody_out_of_turn(
    store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its turn a run would wait for stages that nobody brings, or end somebody else's."""
    model, made = put(store), kept(store, nursery)
    made.make(model)
    loaded = workers(nursery).load(source(store, made, model, room=0))
    try:
        for former in (None, feeding.Feeding(Plan([1, 2], 0))):
            with monkeypatch.context() as patched:
                patched.setattr(loaded, "_feeding", lambda former=former: former)
                if former is not None:
                    patched.setattr(former, "turn", lambda *_, **__: contextlib.nullcontext())
                with pytest.raises(Unavailable):
                    loaded.run(X, outputs=("y",), job=Job(caller="a", seconds=3.0))
            assert loaded.run(X, outputs=("y",), job=job())["y"].tobytes() == WHOLE["y"].tobytes()
    finally:
        loaded.close()


def test_slots_cannot_be_written_by_who_reads_them() -> None:
    made = feeding.Slots(6000)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(made.readable, mmap.PAGESIZE)  # to be written, too
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(made.readable, b"x", 0)
        with pytest.raises(OSError, match="Invalid argument"):
            os.ftruncate(made.readable, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(made.readable, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with mmap.mmap(made.readable, mmap.PAGESIZE, prot=mmap.PROT_READ) as seen:
            assert seen[:4] == bytes(4)
    finally:
        made.close()


class Opened:
    """In place of an `Opening`: one chunk of ones."""

    chunk_size = length = 5000
    chunks = 1

    def size_of(self, _: int) -> int:
        return self.length

    def open_chunk(self, _: int, out: memoryview, **__: Any) -> None:
        out[:] = b"\1" * len(out)


@contextlib.contextmanager
def served() -> Iterator[tuple[feeding.Feeding, feeding.Slots, socket.socket]]:
    """A worker's end, in its first run of a model of two stages."""
    made, slots = feeding.Feeding(Plan([5000, 5000], 0)), feeding.Slots(8192)
    made._openings = (Opened(), Opened())
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with ours, theirs:
        try:
            made.serve(ours, slots, 1)
            yield made, slots, theirs
        finally:
            made.stop()
            slots.close()


@pytest.mark.parametrize("number", [9, GONE])
def test_a_worker_that_asks_for_what_is_not_there_is_told_so(number: int) -> None:
    """Once: then nobody serves it any more."""
    with served() as (made, _, theirs):
        theirs.sendall(WORD.pack(7, 0))  # of another run: no answer
        theirs.sendall(WORD.pack(1, number) * 2)
        assert WORD.unpack(theirs.recv(WORD.size)) == (1, GONE)
        made.stop()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        with pytest.raises(Failure):
            made._check()


@pytest.mark.parametrize("fault", [MemoryError, RuntimeError, OSError])
def test_whatever_hinders_a_stage_the_worker_is_told(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would wait: in the server's own process without end, and with it everybody who waits for the model."""

    def fails(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(Opened, "open_chunk", fails)
    with served() as (made, _, theirs):
        theirs.sendall(WORD.pack(1, 1))
        assert WORD.unpack(theirs.recv(WORD.size)) == (1, GONE)
        made.stop()
        with pytest.raises(Failure):
            made._check()


def test_a_worker_that_takes_no_answers_keeps_nobody_waiting() -> None:
    """A socket takes a few hundred of them: without an end to that the server's thread, and with it everybody who
    waits for the model, would wait for the worker.
    """
    with served() as (made, _, theirs):
        theirs.setblocking(False)
        deadline = time.monotonic() + 10
        while made._thread is not None and made._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                theirs.send(WORD.pack(1, 0))
        stopping = threading.Thread(target=made.stop, daemon=True)
        stopping.start()
        stopping.join(10)
        assert not stopping.is_alive()


def test_slots_are_empty_when_a_run_is_over() -> None:
    """What was asked for last says nothing to whoever reads later, not even to the next run of the same caller."""
    with served() as (made, slots, theirs):
        theirs.sendall(WORD.pack(1, 1))
        assert WORD.unpack(theirs.recv(WORD.size)) == (1, 1)
        with mmap.mmap(slots.readable, slots.size, prot=mmap.PROT_READ) as seen:
            assert seen[8192:13192] == b"\1" * 5000
            made.stop(feeding.Slots(0))  # another worker's: nothing happens
            assert seen[8192:13192] == b"\1" * 5000
            made.stop(slots)
            assert seen[:] == bytes(slots.size)


def test_workers_of_two_owners_have_no_slots_in_common(store: Store, nursery: Nursery) -> None:
    """One that the model has taken over could ask for stages in an order that says something, which the other's could
    see. Measured as the worker of one owner sees it while another's runs: by what is mapped.
    """
    model, made = put(store), kept(store, nursery)
    made.make(model)
    all_ = workers(nursery)
    loaded = all_.load(source(store, made, model, room=0))
    try:
        mapped = {}
        for caller in "ab":
            loaded.run(X, outputs=("y",), job=job(caller))
            (one,) = all_._of[loaded, caller]
            lines = Path(f"/proc/{one.pid}/maps").read_text().splitlines()
            mapped[caller] = {line.split()[4] for line in lines if "memfd:stages" in line}
            assert all("r--s" in line for line in lines if "memfd:stages" in line)
        assert len(mapped["a"]) == len(mapped["b"]) == 1
        assert mapped["a"] != mapped["b"]
    finally:
        loaded.close()


# What the process that cuts says


GOOD = {"graphs": [3, 2]}
TABLE = [[["w", 1, [4], 0, 0, 16]], [["w", 1, [4], 16, 0, 16], ["v", 1, [2], 32, 64, 8]]]


def believed(answer: Any = GOOD, table: Any = TABLE, weights: int = 64) -> Any:
    return partitioning._believed(answer, bytearray(b"abcde" + json.dumps(table).encode()), weights=weights)


def test_a_partition_that_fits_is_believed() -> None:
    parts = believed()
    assert [part.graph for part in parts] == [b"abc", b"de"]
    assert [part.weights for part in parts] == [16, 72]


@pytest.mark.parametrize(
    ("answer", "table", "weights"),
    [
        ({"graphs": []}, [], 64), ({"graphs": [3, 2], "more": 1}, TABLE, 64), ({"graphs": [3]}, TABLE, 64),
        ({"graphs": [-3, 2]}, TABLE, 64), ({"graphs": [3, 1 << 40]}, TABLE, 64), ({"graphs": "ab"}, TABLE, 64),
        (GOOD, {}, 64), (GOOD, [[], 1], 64), (GOOD, [[], [["w", 1, [4], 0, 0]]], 64), (GOOD, TABLE, 30),
        (GOOD, [[], [["w", 1, [4], 0, 4, 16]]], 64), (GOOD, [[], [["w", 1, [4], -4, 0, 16]]], 64),
        (GOOD, [[], [["w", 99, [4], 0, 0, 16]]], 64), (GOOD, [[], [["w", 1, [99], 0, 0, 16]]], 64),
        (GOOD, [[], [[7, 1, [4], 0, 0, 16]]], 64), (GOOD, [[], [["w", True, [4], 0, 0, 16]]], 64),
        (GOOD, [[], [["w", 1, [4], 0, n * 64, 16] for n in range(9)]], 64),
        (GOOD, [[], [["w", 1, [4], 0, n * 64, 16] for n in range(2)]], 64), (GOOD, [[], [["w", 1, [3], 0, 0, 16]]], 64),
        (GOOD, [[], [["w", 2, [1] * 33, 0, 0, 1]]], 64), (GOOD, [[], [["w", 2, [9] * 1_000_000, 0, 0, 1]]], 64),
        (GOOD, [[], [["w", 2, [0, 1 << 63], 0, 0, 0]]], 64), (GOOD, [[], [["\ud800", 2, [1], 0, 0, 1]]], 64),
        (GOOD, [[], [[]] * 3_000_000], 64), (GOOD, [[], [["w", 2, [1], 0, False, 1]]], 64),
    ],
)  # fmt: skip
def test_a_partition_that_does_not_is_not(answer: Any, table: Any, weights: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        believed(answer, table, weights)


@pytest.mark.parametrize("word", ["", "1", "0", "02", "513", "-2", "2.5", "all", "²", "+2", " 2"])
def test_words_that_are_no_partition(word: str) -> None:
    assert not check_partition(word)


@pytest.mark.parametrize("word", ["auto", "off", "2", "41", "512"])
def test_words_that_are(word: str) -> None:
    assert check_partition(word)


def test_what_stays_fits_into_the_room() -> None:
    for weights in ([10, 10, 10, 10], [1, 50, 3, 3, 3], [7]):
        for room in range(2 * sum(weights) + 40):
            plan = Plan(weights, room)
            assert plan.memory_bytes <= max(room, 5 * max(weights))
            assert sorted((*plan.stay, *plan.moving)) == list(range(len(weights)))
    assert Plan([10] * 8, 160).moving == ()
    assert Plan([10] * 8, 90).stay  # evenly spread
    large = 1 << 30
    assert Plan([large] * 2, 1).memory_bytes == 3 * large + HEAP
