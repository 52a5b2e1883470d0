"""Prepared forms: made by a confined process, sealed, used where they fit, and done without wherever they do not."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from store_worker import open_store

from strongroom import engine_options
from strongroom import forms as module
from strongroom.admission import ChildLimits
from strongroom.engine import Engine, InProcess
from strongroom.errors import SealRefused
from strongroom.forms import Forms
from strongroom.frames import receive, send
from strongroom.jobs import Job, Source
from strongroom.launch import CHILD, dependency_folders
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS, Admitted
from strongroom.planned import FEWEST
from strongroom.prepared import Form, Making, Stage
from strongroom.processes import WorkerLimits
from strongroom.ring import AUTHENTIC, MEMORY, NUMBER, receive_stage
from strongroom.sealed import WRAPPED_BYTES
from strongroom.stages import Tensor, tail
from strongroom.state import ModelVersion
from strongroom.store import Store
from strongroom.workers import Model as InWorkers
from strongroom.workers import Workers
from strongroom.zygote import Launch, Nursery

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="not exercised here: preparers are Linux's"),
]

MAKING = Making(engine="engine/1 options 0", processor="some features 1")
OTHER = Making(engine="engine/2 options 0", processor="some features 1")
LIMITS = ChildLimits(wall_s=60, cpu_s=60, memory_bytes=1 << 30)
RUNS = WorkerLimits(
    processes=4,
    idle_bytes=1 << 30,
    run_bytes=1 << 30,
    run_longest_s=60,
    input_bytes=32 << 20,
    response_bytes=16 << 20,
    elements=1 << 20,
)
OWNER = "a" * 64
FLOAT = TensorProto.FLOAT


def network(seed: int = 1) -> Admitted:
    """A convolution, which onnxruntime lays out anew, and a product, whose weights it packs: 2.4 MB."""
    values = np.random.default_rng(seed)

    def constant(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(values.standard_normal(shape, dtype=np.float32) / 8, name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Flatten", ["r"], ["f"]),
            helper.make_node("MatMul", ["f", "m"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 300])],
        [constant("w", 32, 16, 3, 3), constant("m", 2048, 300), constant("b", 300)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return admit(made.SerializeToString(), format="onnx", limits=STANDARD_LIMITS)


NETWORK, SMALLER = network(), network(2)
X = np.random.default_rng(3).standard_normal((1, 16, 8, 8), dtype=np.float32)


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
        if not {*FEWEST, "landlock"} <= set(held):
            pytest.skip(f"not exercised here: of the sandbox only {', '.join(held)} can be had")
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    with open_store(tmp_path / "store") as made:
        yield made


def files(store: Store) -> list[Path]:
    """Its data files."""
    return list(store._data.iterdir())


def put(store: Store, admitted: Admitted, name: str = "net", owner: str = OWNER) -> ModelVersion:
    """Uploads what was admitted."""
    upload = store.begin(name=name, owner=owner, access="private", format="onnx", max_bytes=1 << 30)
    upload.write(admitted.onnx)
    upload.seal()
    return upload.commit(info=admitted.info, canonical_sha256=admitted.canonical_sha256)


def kept(store: Store, nursery: Nursery, making: Making = MAKING, **more: Any) -> Forms:
    """The forms of a store."""
    given = {"limits": LIMITS, "layers": FEWEST, "keep_free": 0, "budget": 1 << 40, "room": 1 << 30, **more}
    return Forms(store, nursery, making=making, **given)


def source(store: Store, forms: Forms, model: ModelVersion) -> Source:
    """Where a host has it from."""
    return Source(
        info=model.info,
        sha256=model.sha256,
        canonical_sha256=model.canonical_sha256,
        read=lambda: store.read(model, verify="tags"),
        stages=lambda: forms.stages(model),
        spoilt=lambda stages, why: forms.spoilt(model, stages, why),
    )


def answer(nursery: Nursery, given: Source) -> np.ndarray[Any, Any]:
    """What the model makes of `X` in a worker."""
    made = Workers(nursery, isolation="owner", layers=FEWEST, limits=RUNS).load(given)
    try:
        return made.run({"x": X}, outputs=(), job=Job(caller="a", seconds=30.0))["y"]
    finally:
        made.close()


def plain(admitted: Admitted) -> np.ndarray[Any, Any]:
    """The same without any of this."""
    return Engine().load(admitted).run({"x": X}, outputs=())["y"]


def never(_: object = None) -> bytes:
    """Not to be called."""
    raise AssertionError


def test_a_model_runs_from_its_form_with_the_same_bits(store: Store, nursery: Nursery) -> None:
    """In a worker and in one process; the canonical bytes are not read."""
    model = put(store, NETWORK)
    forms = kept(store, nursery)
    forms.make(model)
    form = store.form(model)
    assert form is not None and form.making == MAKING and len(form.stages) == 1
    given = dataclasses.replace(source(store, forms, model), read=never)
    wanted = plain(NETWORK)
    np.testing.assert_array_equal(answer(nursery, given), wanted)
    alone = InProcess(Engine()).load(given)
    np.testing.assert_array_equal(
        alone.run({"x": X}, outputs=(), job=Job(caller="a", seconds=30.0))["y"], wanted
    )


def _kilobytes(pid: int, what: str) -> int:
    """A figure of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what + ":"))


def test_the_engine_makes_no_copy_of_weights(store: Store, nursery: Nursery) -> None:
    """Nor does its template at any time: a table of 32 MB, which no kernel packs."""
    table = numpy_helper.from_array(np.arange(8 << 20, dtype=np.float32).reshape(-1, 64), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", FLOAT, [2, 64])],
        initializer=[table],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = put(
        store, admit(bytes(made.SerializeToString()), format="onnx", limits=STANDARD_LIMITS), name="table"
    )
    forms = kept(store, nursery)
    forms.make(model)
    workers = Workers(nursery, isolation="owner", layers=FEWEST, limits=RUNS)
    loaded = workers.load(source(store, forms, model))
    try:
        assert isinstance(loaded, InWorkers) and loaded._template is not None
        pid = loaded._template.pid
        assert _kilobytes(pid, "VmHWM") - _kilobytes(pid, "VmRSS") < 16 << 10
        found = loaded.run({"x": np.array([3, 7])}, outputs=(), job=Job(caller="a", seconds=30.0))["y"]
        np.testing.assert_array_equal(found[:, 0], [192, 448])
    finally:
        loaded.close()


def test_a_small_model_gets_none(store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody looks at it again."""
    model = put(store, NETWORK)
    monkeypatch.setattr(module, "WORTH_BYTES", len(NETWORK.onnx) + 1)
    kept(store, nursery).make(model)
    assert store.form(model) is None and len(files(store)) == 1


def test_a_form_of_another_engine_or_processor_is_not_used(store: Store, nursery: Nursery) -> None:
    """The model is loaded as it was admitted, and a form made for what is there takes the place of the other."""
    model = put(store, NETWORK)
    kept(store, nursery).make(model)
    for other in (OTHER, Making(engine=MAKING.engine, processor="less")):
        forms = kept(store, nursery, other)
        with forms.stages(model) as stages:
            assert stages == ()
    forms.make(model)
    form = store.form(model)
    assert form is not None and form.making == other
    assert len(files(store)) == 2  # the former one is gone
    with forms.stages(model) as stages:
        assert len(stages) == 1


@pytest.mark.parametrize("what", ["REVISION", "FOLDING_BYTES", "INLINE_BYTES", "THREADS"])
def test_what_forms_depend_on_is_in_the_engines_identity(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Another value of it, or another way of this server's own to make and cut them, makes others."""
    before = engine_options.identity()
    monkeypatch.setattr(engine_options, what, getattr(engine_options, what) + 1)
    assert engine_options.identity() != before


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


SPOILT: dict[str, Callable[[Path], object]] = {
    "header": lambda path: _flip(path, 9),
    "first chunk": lambda path: _flip(path, 100),
    "last chunk": lambda path: _flip(path, -1),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "last chunk gone": lambda path: os.truncate(path, path.stat().st_size - 500),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_spoilt_form_is_done_without(
    store: Store, nursery: Nursery, spoil: Callable[[Path], object]
) -> None:
    """The model runs as it was admitted; the form leaves the record, and another one can be made."""
    model = put(store, NETWORK)
    forms = kept(store, nursery)
    forms.make(model)
    form = store.form(model)
    assert form is not None
    spoil(store._data / form.stages[0].file)
    np.testing.assert_array_equal(answer(nursery, source(store, forms, model)), plain(NETWORK))
    assert store.form(model) is None
    kept(store, nursery).make(model)
    assert store.form(model) is not None


def test_a_form_that_takes_anothers_place_during_a_load_stays(store: Store, nursery: Nursery) -> None:
    """A load that meets the former one's files gone takes the new one, and does not take that out of the record."""
    model, forms = put(store, NETWORK), kept(store, nursery)
    forms.make(model)
    former, opened = store.form(model), store.stages
    assert former is not None

    def late(model: ModelVersion, form: Form) -> Any:
        if store.form(model) == former:  # between the look at the record and the look at the file
            store.put_form(model, OTHER, ())
            kept(store, nursery).make(model)
        return opened(model, form)

    store.stages = late
    np.testing.assert_array_equal(
        answer(nursery, dataclasses.replace(source(store, forms, model), read=never)), plain(NETWORK)
    )
    form = store.form(model)
    assert form not in (None, former)


def test_a_complaint_about_a_former_form_is_not_about_the_new_one(store: Store, nursery: Nursery) -> None:
    """Whoever still reads the one that was replaced says what is wrong with that."""
    model, forms = put(store, NETWORK), kept(store, nursery)
    forms.make(model)
    with forms.stages(model) as stages:
        store.put_form(model, OTHER, ())
        kept(store, nursery).make(model)
        forms.spoilt(model, stages, "seal_chunk")
    assert store.form(model) is not None
    with forms.stages(model) as stages:
        forms.spoilt(model, stages, "seal_chunk")
    assert store.form(model) is None


def test_a_form_that_was_spoilt_is_made_anew_once(store: Store, nursery: Nursery) -> None:
    """By the same server: what a form of its own making comes to is no reason to do without one for ever."""
    model, forms = put(store, NETWORK), kept(store, nursery)
    for expected in (True, True, False):
        forms.make(model)
        assert (store.form(model) is not None) == expected
        with forms.stages(model) as stages:
            forms.spoilt(model, stages, "seal_chunk")


def test_a_fault_of_the_disk_is_not_the_forms(
    store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor for a moment: the form stays for the next load."""
    model, forms = put(store, NETWORK), kept(store, nursery)
    forms.make(model)

    def none(_: Path) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("strongroom.disk.open_to_read", none)
        with forms.stages(model) as stages:
            assert stages == ()
    with forms.stages(model) as stages:
        assert len(stages) == 1


def test_a_load_succeeds_without_a_thread_for_its_form(
    store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a later one asks for it again."""
    model, forms = put(store, NETWORK), kept(store, nursery)

    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        forms.make_later(model)
    forms.make_later(model)
    until = time.monotonic() + 30
    while store.form(model) is None:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_log_names_no_model(store: Store, nursery: Nursery, caplog: pytest.LogCaptureFixture) -> None:
    """Names are in the sealed record; the log is the host's."""
    model, forms = put(store, NETWORK, name="secret-project"), kept(store, nursery)
    with caplog.at_level("INFO"):
        forms.make(model)
        with forms.stages(model) as stages:
            forms.spoilt(model, stages, "seal_chunk")
        bad = Impostor(LIARS["dies"])
        kept(store, bad).make(model)
    assert len(caplog.records) == 3
    assert "secret" not in caplog.text


def test_a_form_does_not_open_for_another_model(store: Store, nursery: Nursery) -> None:
    """Of the same owner or of another: the record could be made to say so by our own code only."""
    model, other = put(store, NETWORK), put(store, SMALLER, name="other")
    stranger = put(store, NETWORK, name="stranger", owner="b" * 64)
    forms = kept(store, nursery)
    forms.make(model)
    form = store.form(model)
    for wrong in (other, stranger):
        entry = store._entry(wrong.name, wrong.version)
        record = store._record.with_form(store._entry("net", 1), None, previous=store._digest)
        store._commit(record)
        store._commit(store._record.with_form(entry, form, previous=store._digest))
        with forms.stages(wrong) as stages:
            assert stages == ()
        assert store.form(wrong) is None  # and its file is gone: it was the last to be named so
        kept(store, nursery).make(model)
        form = store.form(model)


def test_stages_in_another_order_do_not_open(store: Store, nursery: Nursery) -> None:
    """Nor one of them alone."""
    model = put(store, NETWORK)
    forms = kept(store, nursery)
    made = []
    for _ in range(2):
        sealer, path = store.begin_stage()
        path.write_bytes(b"".join((sealer.header, *sealer.update(b"stage"), sealer.finish())))
        made.append((sealer, path, 5))
    store.put_form(model, MAKING, tuple(made))
    form = store.form(model)
    assert form is not None
    with forms.stages(model) as stages:
        assert len(stages) == 2
    for order in (form.stages[::-1], form.stages[:1]):
        changed = dataclasses.replace(form, stages=order)
        entry = store._entry(model.name, model.version)
        store._commit(store._record.with_form(entry, changed, previous=store._digest))
        with pytest.raises(SealRefused) as caught, store.stages(model, changed):
            pass
        assert caught.value.code == "seal_binding"


class Impostor:
    """In place of a nursery: one child, which does what a test says with its socket and its pipes."""

    def __init__(self, act: Callable[[socket.socket, int, int], None]) -> None:
        self._act = act

    def fork(self, _kind: bytes) -> Any:
        """As `Nursery.fork`."""
        self.end, theirs = socket.socketpair()
        threading.Thread(target=self._run, args=(theirs,), daemon=True).start()
        return self

    def _run(self, end: socket.socket) -> None:
        with end:
            _, (model, weights), _, _ = socket.recv_fds(end, 1, 2)
            receive(end)
            with contextlib.suppress(OSError):
                self._act(end, model, weights)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """As `Child.close`."""
        self.end.close()


def _give(weights: bytes, end: bytes, close: bool = True) -> Callable[[socket.socket, int, int], None]:
    def act(server: socket.socket, model: int, drain: int) -> None:
        os.close(model)
        with contextlib.suppress(OSError):
            os.write(drain, weights)
        os.close(drain) if close else time.sleep(3)
        send(server, {}, end)

    return act


GRAPH = tail(b"graph", [Tensor("w", 1, (2,), 0, 8)], weights=8)
LIARS = {
    "dies": lambda server, model, drain: (os.close(model), os.close(drain)),
    "hangs": _give(b"", b"", close=False),
    "gives too much": _give(bytes(60_000), GRAPH),
    "other weights than it says": _give(bytes(9), GRAPH),
    "no weights": _give(b"", GRAPH),
    "no stage": _give(bytes(8), b"nothing of the kind, long enough"),
    "a tensor outside": _give(bytes(8), tail(b"graph", [Tensor("w", 1, (2,), 4, 8)], weights=8)),
    "an odd length": _give(bytes(8), tail(b"graph", [Tensor("w", 1, (2,), 0, 7)], weights=8)),
    "a type without numbers": _give(bytes(8), tail(b"graph", [Tensor("w", 8, (1,), 0, 8)], weights=8)),
    "a name twice": _give(bytes(8), tail(b"graph", [Tensor("w", 1, (1,), 0, 4)] * 2, weights=8)),
    "no graph": _give(bytes(8), tail(b"", [], weights=8)),
    "millions of dimensions": _give(b"", tail(b"graph", [Tensor("w", 2, (9,) * 2_000_000, 0, 1)], weights=0)),
    "numbers without end": _give(b"", tail(b"graph", [Tensor("w", 2, (0, 1 << 63), 0, 0)], weights=0)),
    "millions of nothing": _give(b"", tail(b"graph", [[]] * 4_000_000, weights=0)),
    "a name that is no text": _give(bytes(8), tail(b"graph", [Tensor("\ud800", 1, (2,), 0, 8)], weights=8)),
}


@pytest.mark.parametrize("lie", LIARS.values(), ids=LIARS)
def test_a_preparer_is_not_believed(store: Store, lie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No form then, no file, and the upload stands."""
    model = put(store, NETWORK)
    monkeypatch.setattr(module, "MORE", 50_000 - 2 * len(NETWORK.onnx))
    monkeypatch.setattr(module, "SPARE_S", 0)
    limits = dataclasses.replace(LIMITS, wall_s=1)
    forms = kept(store, Impostor(lie), limits=limits)
    forms.make(model)
    assert store.form(model) is None and len(files(store)) == 1
    with forms.stages(model) as stages:
        assert stages == ()


def test_a_form_that_onnxruntime_does_not_take_is_done_without(store: Store, nursery: Nursery) -> None:
    """Also in one process."""
    model = put(store, NETWORK)
    bad = Impostor(_give(bytes(8), GRAPH))
    kept(store, bad).make(model)
    assert store.form(model) is not None
    forms = kept(store, nursery)
    np.testing.assert_array_equal(answer(nursery, source(store, forms, model)), plain(NETWORK))
    assert store.form(model) is None
    kept(store, bad).make(model)
    alone = InProcess(Engine()).load(source(store, forms, model))
    np.testing.assert_array_equal(
        alone.run({"x": X}, outputs=(), job=Job(caller="a", seconds=30.0))["y"], plain(NETWORK)
    )
    assert store.form(model) is None


def test_deleting_and_sweeping_know_forms(tmp_path: Path, nursery: Nursery) -> None:
    """Both files go with the model; what no record names goes when the store is opened; `check` reads forms."""
    with open_store(tmp_path / "store") as store:
        model = put(store, NETWORK)
        kept(store, nursery).make(model)
        assert len(files(store)) == 2
        assert all(result.passed for result in store.check())
        _, path = store.begin_stage()
        path.write_bytes(b"left over")
    with open_store(tmp_path / "store") as store:
        form = store.form(model)
        assert form is not None and len(files(store)) == 2
        assert store.form_bytes() == {OWNER: form.length}
        _flip(store._data / form.stages[0].file, 100)
        assert [result.code for result in store.check() if not result.passed] == ["seal_chunk"]
        store.delete("net", None)
        assert files(store) == []


RECORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a member more": lambda form: form.update(more=1),
    "a member less": lambda form: form.pop("engine"),
    "no engine": lambda form: form.update(engine=""),
    "no stage": lambda form: form.update(stages=[]),
    "a stage's member less": lambda form: form["stages"][0].pop("length"),
    "a length that is none": lambda form: form["stages"][0].update(length=0),
    "a truth for a number": lambda form: form["stages"][0].update(chunks=True),
    "other chunks": lambda form: form["stages"][0].update(chunks=2),
    "a path for a file": lambda form: form["stages"][0].update(file="../" + "a" * 29),
    "a short key": lambda form: form["stages"][0].update(wrapped_key="00"),
    "a chunk too large": lambda form: form["stages"][0].update(chunk_size=1 << 40),
}
FORM = Form(MAKING, (Stage("a" * 32, bytes(32), 5, 1024, 1, bytes(WRAPPED_BYTES)),))


@pytest.mark.parametrize("change", RECORDS.values(), ids=RECORDS)
def test_a_records_form_has_one_form(change: Callable[[dict[str, Any]], object]) -> None:
    """What `to_json` wrote is read again; anything else is not."""
    written = FORM.to_json()
    assert Form.from_json(written) == FORM
    change(written)
    with pytest.raises(SealRefused) as caught:
        Form.from_json(written)
    assert caught.value.code == "store_record_malformed"


def test_a_preparer_that_always_has_another_byte_is_not_waited_for() -> None:
    """Its time is over also where there is something to be read; before that it is read."""
    reading, writing = os.pipe()
    try:
        os.write(writing, b"xx")
        assert module._read(reading, time.monotonic() + 10) == b"xx"
        os.write(writing, b"x")
        with pytest.raises(TimeoutError):
            module._read(reading, time.monotonic())
    finally:
        os.close(reading)
        os.close(writing)


def _sent(words: bytes) -> tuple[socket.socket, socket.socket, int]:
    """A server's end, a child's, and the slots; `words` come at once, behind the memory."""
    ours, theirs = socket.socketpair()
    slots = os.memfd_create("slots")
    os.write(slots, b"abcdefghijklmnop")
    socket.send_fds(ours, [MEMORY], [slots])
    ours.sendall(words)
    theirs.settimeout(10)
    return ours, theirs, slots


def test_what_follows_a_stage_is_left_to_who_comes_next() -> None:
    """Also where it comes together with the stage's last word."""
    words = b"".join(NUMBER.pack(number) for number in (0, 1, AUTHENTIC))
    ours, theirs, slots = _sent(words + b"next")
    with ours, theirs:
        assert bytes(receive_stage(theirs, length=7, chunk_size=4)) == b"abcdefg"
        assert theirs.recv(100) == b"next"
    os.close(slots)


def test_a_stage_has_as_many_chunks_as_it_has() -> None:
    """No word that all were authentic: nothing is returned."""
    ours, theirs, slots = _sent(b"".join(NUMBER.pack(number) for number in (0, 1, 1)) + b"next")
    with ours, theirs, pytest.raises(EOFError):
        receive_stage(theirs, length=7, chunk_size=4)
    os.close(slots)
