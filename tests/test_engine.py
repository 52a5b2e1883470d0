"""Sessions have bare onnxruntime's results and give nothing else away; the cache loads once and bounds memory."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from onnx import TensorProto, helper

from strongroom import engine as module
from strongroom.cache import SessionCache
from strongroom.engine import Engine, Session, onnxruntime
from strongroom.errors import AdmissionRefused, Error, Failure, InvalidRequest, LimitExceeded, Unavailable
from strongroom.models import admit
from strongroom.models.info import _TOKEN, STANDARD_LIMITS, Admitted, TensorSpec
from strongroom.oip import bytes_array

ENGINE = Engine()
FLOAT, STRING = TensorProto.FLOAT, TensorProto.STRING


def model(*nodes: Any, inputs: Any, outputs: Any, constants: Any = (), opset: int = 17) -> bytes:
    """An ONNX file; tensors as (name, element type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(*entry) for entry in outputs],
        initializer=list(constants),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(made.SerializeToString())


def admitted(data: bytes) -> Admitted:
    """The proof that the engine asks for."""
    return admit(data, format="onnx", limits=STANDARD_LIMITS)


def load(data: bytes) -> Session:
    """A session of an ONNX file."""
    return ENGINE.load(admitted(data))


def smuggled(data: bytes) -> Admitted:
    """An `Admitted` around bytes that admission would refuse, to see that the engine alone refuses them too."""
    proof = admitted(IDENTITY)
    return Admitted(
        info=proof.info, onnx=data, sha256=proof.sha256, canonical_sha256=proof.canonical_sha256, token=_TOKEN
    )


IDENTITY = model(
    helper.make_node("Identity", ["x"], ["y"]), inputs=[("x", FLOAT, ["n"])], outputs=[("y", FLOAT, ["n"])]
)
TWO = model(
    helper.make_node("Relu", ["x"], ["a"]),
    helper.make_node("Neg", ["x"], ["b"]),
    inputs=[("x", FLOAT, ["n"])],
    outputs=[("a", FLOAT, ["n"]), ("b", FLOAT, ["n"])],
)
TEXT = model(
    helper.make_node("Identity", ["x"], ["y"]), inputs=[("x", STRING, ["n"])], outputs=[("y", STRING, ["n"])]
)
MATMUL = model(
    helper.make_node("MatMul", ["x", "w"], ["y"]),
    inputs=[("x", FLOAT, ["n", "k"])],
    outputs=[("y", FLOAT, ["n", 2])],
    constants=[helper.make_tensor("w", FLOAT, [3, 2], np.ones(6, np.float32).tobytes(), raw=True)],
)
VALUES = np.array([1.5, -2.0], np.float32)


# Sessions


def test_outputs_come_by_name() -> None:
    """All of them, or those asked for in the order asked."""
    session = load(TWO)
    assert list(session.run({"x": VALUES}, outputs=())) == ["a", "b"]
    got = session.run({"x": VALUES}, outputs=("b", "a"))
    assert list(got) == ["b", "a"] and got["b"].tolist() == [-1.5, 2.0]


def test_strings_go_in_and_out_as_bytes() -> None:
    """UTF-8 both ways, embedded NUL and shape kept; onnxruntime's binding alone would print the bytes objects."""
    sent = bytes_array(["é".encode(), b"a\0b", b""], shape=(3,))
    got = load(TEXT).run({"x": sent}, outputs=())["y"]
    assert got.dtype == object and got.tolist() == sent.tolist()
    empty = load(TEXT).run({"x": bytes_array([], shape=(0,))}, outputs=())["y"]
    assert empty.shape == (0,)


@pytest.mark.parametrize(
    ("data", "inputs", "outputs", "code"),
    [
        (TWO, {"x": VALUES}, ("c",), "output_unknown"),
        (TEXT, {"x": bytes_array([b"\xff"], shape=(1,))}, (), "input_not_text"),
        (MATMUL, {"x": np.ones((1, 4), np.float32)}, (), "run_failed"),
        (MATMUL, {"x": np.ones((1, 3), np.float64)}, (), "run_failed"),
        (MATMUL, {"z": np.ones((1, 3), np.float32)}, (), "run_failed"),
        (MATMUL, {}, (), "run_failed"),
    ],
)
def test_runs_that_are_refused(data: bytes, inputs: Any, outputs: Any, code: str) -> None:
    """A fixed sentence and a code for each, and onnxruntime's own text nowhere in the chain."""
    with pytest.raises(InvalidRequest) as caught:
        load(data).run(inputs, outputs=outputs)
    assert caught.value.code == code
    assert caught.value.__cause__ is None and (
        caught.value.__suppress_context__ or not caught.value.__context__
    )
    assert "ONNXRuntime" not in str(caught.value)


def test_strings_that_are_not_utf8_in_an_output_fail_cleanly() -> None:
    """A constant of such bytes cannot be shown."""
    constant = helper.make_tensor("v", STRING, [1], [b"\xff\xfe"])
    data = model(
        helper.make_node("Constant", [], ["y"], value=constant), inputs=[], outputs=[("y", STRING, [1])]
    )
    with pytest.raises(InvalidRequest) as caught:
        load(data).run({}, outputs=())
    assert caught.value.code == "run_failed"


def test_a_closed_session_does_not_run() -> None:
    """Its memory has been given back."""
    session = load(TWO)
    session.close()
    with pytest.raises(Failure):
        session.run({"x": VALUES}, outputs=())


def test_what_onnxruntime_cannot_load_is_refused_with_a_fixed_sentence() -> None:
    """A model that admission would refuse, too: its output is declared with another type."""
    lie = model(
        helper.make_node("Shape", ["x"], ["y"]), inputs=[("x", FLOAT, ["n"])], outputs=[("y", STRING, ["n"])]
    )
    with pytest.raises(AdmissionRefused) as caught:
        ENGINE.load(smuggled(lie))
    assert caught.value.code == "engine_refused"
    assert str(caught.value) == "onnxruntime cannot load the model" and caught.value.__cause__ is None


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": (TensorSpec("z", "FP32", ("n",)),)},
        {"inputs": (TensorSpec("x", "FP64", ("n",)),)},
        {"outputs": (TensorSpec("y", "BYTES", ("n",)),)},
        {"outputs": ()},
    ],
)
def test_metadata_and_runtime_must_agree(change: Any) -> None:
    """Names and types as admission read them are those that onnxruntime sees."""
    proof = admitted(IDENTITY)
    other = Admitted(
        info=dataclasses.replace(proof.info, **change),
        onnx=proof.onnx,
        sha256=proof.sha256,
        canonical_sha256=proof.canonical_sha256,
        token=_TOKEN,
    )
    with pytest.raises(AdmissionRefused) as caught:
        ENGINE.load(other)
    assert caught.value.code == "engine_interface"


def test_external_data_is_refused_by_the_engine_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime reads it from the working folder unless told otherwise; here no folder exists for it."""
    (tmp_path / "secret.bin").write_bytes(b"\0" * 8)
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[8], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secret.bin")
    data = model(
        helper.make_node("Identity", ["w"], ["y"]),
        inputs=[],
        outputs=[("y", TensorProto.UINT8, [8])],
        constants=[tensor],
    )
    monkeypatch.chdir(tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    assert session.run(None, {})[0].tobytes() == b"\0" * 8  # it does
    with pytest.raises(AdmissionRefused) as caught:
        ENGINE.load(smuggled(data))
    assert caught.value.code == "engine_refused"


def test_onnxruntimes_own_format_is_refused_by_the_engine_too(tmp_path: Path) -> None:
    """It would be recognised by content, and skip every check."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(IDENTITY, options, providers=["CPUExecutionProvider"])
    flat = (tmp_path / "model.ort").read_bytes()
    assert flat[4:8] == b"ORTM"
    with pytest.raises(AdmissionRefused) as caught:
        ENGINE.load(smuggled(flat))
    assert caught.value.code == "engine_refused"


def test_memory_is_not_kept_between_runs() -> None:
    """Neither arena nor plan for re-use; one thread; folding bounded; the rest of the options is the default's."""
    options = module.session_options(1 << 10)
    assert not options.enable_cpu_mem_arena and not options.enable_mem_pattern
    assert options.intra_op_num_threads == options.inter_op_num_threads == 1
    assert options.graph_optimization_level == onnxruntime.SessionOptions().graph_optimization_level
    limit = "optimization.constant_folding_max_output_size_in_bytes"
    assert options.get_session_config_entry(limit) == str(module.FOLDING_BYTES)
    assert module.session_options(1 << 30).get_session_config_entry(limit) == str(1 << 32)


def test_runs_in_many_threads_agree() -> None:
    """One session serves several callers at once."""
    session = load(MATMUL)

    def run(seed: int) -> bool:
        x = np.random.default_rng(seed).random((50, 3), dtype=np.float32)
        return np.allclose(session.run({"x": x}, outputs=())["y"], x @ np.ones((3, 2), np.float32))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(200)))


def test_nothing_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime warns of a shape that the model lies about, with names and sizes; here it is silent."""
    lie = model(
        helper.make_node("Identity", ["x"], ["y"]), inputs=[("x", FLOAT, ["n"])], outputs=[("y", FLOAT, [5])]
    )
    load(lie).run({"x": VALUES}, outputs=())
    with pytest.raises(InvalidRequest):
        load(MATMUL).run({"x": np.ones((1, 4), np.float32)}, outputs=())
    assert capfd.readouterr() == ("", "")


def test_an_estimate_counts_what_a_small_file_becomes() -> None:
    """A constant made by an operator is memory all the same, where it can be measured; the file's size is the floor."""
    shape = helper.make_tensor("s", TensorProto.INT64, [1], [3 << 20])
    fill = helper.make_tensor("v", FLOAT, [1], [1.0])
    data = model(
        helper.make_node("ConstantOfShape", ["s"], ["w"], value=fill),
        helper.make_node("Mul", ["x", "w"], ["y"]),
        inputs=[("x", FLOAT, [3 << 20])],
        outputs=[("y", FLOAT, [3 << 20])],
        constants=[shape],
    )
    # In a fresh process: in this one, the constant may land in memory that earlier tests gave back.
    script = "import sys, test_engine as t; print(t.load(sys.stdin.buffer.read()).memory_bytes)"
    fresh = subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, check=True, cwd=Path(__file__).parent
    )
    if sys.platform == "linux":
        assert int(fresh.stdout) > 11 << 20
    assert load(data).memory_bytes >= 2 * len(data)
    assert module._memory_bytes(100, measured=None) > module._memory_bytes(100, measured=0)
    assert module._memory_bytes(100, measured=1 << 40) == 1 << 40


def test_growth_is_told_only_when_nothing_else_ran() -> None:
    """Another load or run in between spoils the measure; then there is none."""
    gauge = module._Gauge()
    with gauge.measure() as outer:
        if sys.platform == "linux":
            assert outer() is not None
        with gauge.measure() as inner:
            assert inner() is None
        assert outer() is None
    with gauge.measure() as outer:
        gauge.begin()
        gauge.end()
        assert outer() is None


def test_telemetry_is_off_before_the_import(tmp_path: Path) -> None:
    """The wheels would start an upload thread and write files; a fresh process with a fresh home does neither. They
    hide it where `CI` is set.
    """
    script = (
        "import strongroom.engine, os; tasks = '/proc/self/task'\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], len(os.listdir(tasks)) if os.path.exists(tasks) else 1)"
    )
    hidden = {"ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {"HOME": str(tmp_path), "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# The cache


class Fake:
    """A session of a given size that knows whether it was closed."""

    def __init__(self, memory_bytes: int = 10) -> None:
        self.memory_bytes = memory_bytes
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def making(fake: Fake) -> Callable[[], Session]:
    """A loader that gives this one."""
    return lambda: cast(Session, fake)


def never() -> Session:
    """A loader that must not be called."""
    raise AssertionError("loaded again")


def warm(cache: SessionCache, key: str, size: int = 10) -> Fake:
    """Loads a fake and gives it back at once."""
    fake = Fake(size)
    with cache.get(key, making(fake)) as session:
        assert cast(Any, session) is fake
    return fake


def test_a_session_is_kept() -> None:
    """The second call finds it, and it counts as the latest used."""
    cache = SessionCache(100)
    warm(cache, "a")
    warm(cache, "b")
    with cache.get("a", never):
        pass
    assert cache.loaded() == ("b", "a") and cache.used_bytes == 20


def test_the_least_recently_used_goes_first() -> None:
    """As many as must, no more, and they are closed."""
    cache = SessionCache(30)
    a, b, c = warm(cache, "a"), warm(cache, "b"), warm(cache, "c")
    with cache.get("a", never):
        pass
    d = warm(cache, "d", 15)
    assert (a.closed, b.closed, c.closed, d.closed) == (0, 1, 1, 0)
    assert cache.loaded() == ("a", "d") and cache.used_bytes == 25


def test_there_are_so_many_however_small() -> None:
    """The one more takes the oldest's place; where all are in use there is none for it."""
    cache = SessionCache(100, most=2)
    a, b = warm(cache, "a", 1), warm(cache, "b", 1)
    c = warm(cache, "c", 1)
    assert (a.closed, b.closed, c.closed) == (1, 0, 0) and cache.loaded() == ("b", "c")
    late = Fake(1)
    with (
        cache.get("b", never),
        cache.get("c", never),
        pytest.raises(Unavailable) as caught,
        cache.get("d", making(late)),
    ):
        pass
    assert caught.value.code == "engine_memory_busy" and late.closed == 1 and cache.used_bytes == 2


def test_what_is_in_use_stays() -> None:
    """A lease pins its session; without room the newcomer is refused for now, and nothing is lost."""
    cache = SessionCache(30)
    a, b = Fake(), Fake()
    with cache.get("a", making(a)), cache.get("b", making(b)):
        late = Fake(15)
        with pytest.raises(Unavailable) as caught, cache.get("c", making(late)):
            pass
        assert caught.value.code == "engine_memory_busy"
        assert (a.closed, b.closed, late.closed) == (0, 0, 1) and cache.used_bytes == 20
    warm(cache, "c", 15)
    assert cache.loaded() == ("b", "c")


def test_what_has_to_go_goes_before_the_next_is_loaded() -> None:
    """By what is known of its size before; what is under way is counted, and by its true size when it is there."""
    cache = SessionCache(30)
    a, b, c = warm(cache, "a"), warm(cache, "b"), Fake(25)

    def load() -> Session:
        assert (a.closed, b.closed) == (1, 0) and cache.used_bytes == 30
        return cast(Session, c)

    with cache.get("c", load, size=lambda: 20):
        assert b.closed == 1 and cache.used_bytes == 25 and cache.loaded() == ("c",)


def test_what_cannot_have_room_is_not_loaded() -> None:
    """Larger than the budget, or while all is in use or under way: refused before, and nothing is evicted."""
    cache = SessionCache(30)
    a = warm(cache, "a")
    with pytest.raises(LimitExceeded) as caught, cache.get("b", never, size=lambda: 31):
        pass
    assert caught.value.code == "engine_model_too_large"
    with cache.get("a", never), pytest.raises(Unavailable) as busy, cache.get("b", never, size=lambda: 21):
        pass
    assert busy.value.code == "engine_memory_busy" and cache.used_bytes == 10 and a.closed == 0

    def load() -> Session:
        with pytest.raises(Unavailable), cache.get("c", never, size=lambda: 11):
            pass
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), cache.get("b", load, size=lambda: 20):
        pass
    assert cache.used_bytes == 10 and cache.loaded() == ("a",)


def test_a_model_larger_than_the_budget_is_refused() -> None:
    """At once, whatever is loaded; and nothing is evicted for it."""
    cache = SessionCache(30)
    a, large = warm(cache, "a"), Fake(31)
    with pytest.raises(LimitExceeded) as caught, cache.get("b", making(large)):
        pass
    assert caught.value.code == "engine_model_too_large"
    assert (a.closed, large.closed) == (0, 1) and cache.loaded() == ("a",)
    warm(cache, "c", 30)
    assert a.closed == 1 and cache.used_bytes == 30


def test_an_evicted_session_is_closed_by_its_last_lease() -> None:
    """New callers load anew at once; the memory counts until it is given back."""
    cache = SessionCache(100)
    old, new = Fake(), Fake()
    with cache.get("a", making(old)):
        with cache.get("a", never):
            assert cache.evict("a") and not cache.evict("a")
            assert cache.loaded() == () and cache.used_bytes == 10
            with cache.get("a", making(new)) as session:
                assert cast(Any, session) is new
        assert old.closed == 0 and cache.used_bytes == 20
    assert old.closed == 1 and new.closed == 0 and cache.used_bytes == 10


def test_the_last_lease_closes_it_also_where_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then whoever has it waits for that."""
    cache, fake = SessionCache(100), Fake()
    with cache.get("a", making(fake)):
        lease = cache.lease("a")
    assert lease is not None and cache.evict("a")

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    lease.end()
    assert fake.closed == 1 and cache.used_bytes == 0


def test_closing_forgets_all() -> None:
    """Every session is closed once."""
    cache = SessionCache(100)
    fakes = [warm(cache, name) for name in "abc"]
    cache.close()
    assert [fake.closed for fake in fakes] == [1, 1, 1] and cache.used_bytes == 0 and cache.loaded() == ()


def test_a_failed_load_is_not_remembered() -> None:
    """The caller gets the loader's error; the next one tries again."""
    cache = SessionCache(100)

    def failing() -> Session:
        raise AdmissionRefused("no", code="engine_refused")

    for _ in range(2):
        with pytest.raises(AdmissionRefused), cache.get("a", failing):
            pass
    assert cache.loaded() == () and cache.used_bytes == 0
    warm(cache, "a")


def test_a_loader_that_breaks_leaves_nothing_behind() -> None:
    """Also where it raises something that is no error of ours."""
    cache = SessionCache(100)

    def broken() -> Session:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), cache.get("a", broken):
        pass
    warm(cache, "a")


def test_an_error_while_leased_gives_the_lease_back() -> None:
    """The session can be evicted afterwards."""
    cache = SessionCache(10)
    a = Fake()
    with pytest.raises(ZeroDivisionError), cache.get("a", making(a)):
        raise ZeroDivisionError
    warm(cache, "b")
    assert a.closed == 1


WAIT = 10.0  # seconds after which a test is stuck


def _in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, n) for n in range(count)]
        return [future.result(timeout=WAIT) for future in futures]


def test_many_callers_load_a_cold_model_once() -> None:
    """Single flight: the others wait for the one load and share its session."""
    cache = SessionCache(100)
    loads, started = [], threading.Barrier(8)

    def slow() -> Session:
        loads.append(1)
        time.sleep(0.05)
        return cast(Session, Fake())

    def work(_: int) -> int:
        started.wait(WAIT)
        with cache.get("a", slow) as session:
            return id(session)

    assert len(set(_in_threads(8, work))) == 1 and len(loads) == 1


def test_those_who_waited_for_a_failed_load_get_its_error() -> None:
    """One attempt for all who asked together, and each has an exception object of its own."""
    cache = SessionCache(100)
    loads, started = [], threading.Barrier(8)

    def slow() -> Session:
        loads.append(1)
        time.sleep(0.1)
        raise AdmissionRefused("no", code="engine_refused")

    def work(_: int) -> Error:
        started.wait(WAIT)
        with pytest.raises(AdmissionRefused) as caught, cache.get("a", slow):
            pass
        return caught.value

    errors = _in_threads(8, work)
    assert {error.code for error in errors} == {"engine_refused"}
    assert len(loads) < 8 and len({id(error) for error in errors}) == 8


def test_a_load_delays_no_other_model() -> None:
    """While one model loads, others load, run and are evicted."""
    cache = SessionCache(100)
    loading, finish = threading.Event(), threading.Event()
    warm(cache, "warm")

    def endless() -> Session:
        loading.set()
        assert finish.wait(WAIT)
        return cast(Session, Fake())

    def cold() -> None:
        with cache.get("cold", endless):
            pass

    thread = threading.Thread(target=cold)
    thread.start()
    assert loading.wait(WAIT)
    with cache.get("warm", never):
        warm(cache, "other")
        assert cache.evict("other")
    assert cache.loaded() == ("warm",)
    finish.set()
    thread.join(WAIT)
    assert set(cache.loaded()) == {"warm", "cold"}


def test_a_model_evicted_while_it_loads_is_not_kept() -> None:
    """Its callers are served, and then it is closed: a deleted model does not come back."""
    cache = SessionCache(100)
    fake, loading, finish = Fake(), threading.Event(), threading.Event()

    def slow() -> Session:
        loading.set()
        assert finish.wait(WAIT)
        return cast(Session, fake)

    def work() -> None:
        with cache.get("a", slow) as session:
            assert cast(Any, session) is fake and not fake.closed

    thread = threading.Thread(target=work)
    thread.start()
    assert loading.wait(WAIT) and cache.evict("a")
    finish.set()
    thread.join(WAIT)
    assert fake.closed == 1 and cache.loaded() == () and cache.used_bytes == 0


def test_the_budget_holds_under_load() -> None:
    """Eight threads on six models with room for three: never more than the budget, never a closed session in use."""
    cache = SessionCache(30)
    live: list[Fake] = []

    def make() -> Session:
        fake = Fake()
        live.append(fake)
        return cast(Session, fake)

    def work(seed: int) -> int:
        rng, busy = np.random.default_rng(seed), 0
        for key in rng.integers(0, 6, size=300).tolist():
            try:
                with cache.get(key, make) as session:
                    assert not cast(Any, session).closed
                    assert cache.used_bytes <= 30
            except Unavailable:
                busy += 1
        return busy

    _in_threads(8, work)
    assert cache.used_bytes == 10 * len(cache.loaded()) <= 30
    assert sum(not fake.closed for fake in live) == len(cache.loaded())
    assert all(fake.closed <= 1 for fake in live)
