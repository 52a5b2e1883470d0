"""Contenders behind one interface: a fake peer process, bare onnxruntime, our own server; and a whole measurement."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
import onnx
import pytest
import strongroom_bench
from click.testing import CliRunner
from conftest import REPOSITORY
from onnx import TensorProto, helper
from strongroom_bench import attested, catalogue, codec, footprint, latency, memory, peer, throughput
from strongroom_bench.catalogue import Workload
from strongroom_bench.contender import Contender, Engine, Unable, same_outputs
from strongroom_bench.load import run_slice
from strongroom_bench.machine import Cores
from strongroom_bench.ours import Ours
from strongroom_bench.peer import NAMES, Peer, Server, Setting
from strongroom_bench.results import Result
from strongroom_bench.schedule import Plan

from strongroom.cli import main

CORES = Cores(None, None)
SCHEMA = json.loads((Path(strongroom_bench.__file__).parent / "result.schema.json").read_text())


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """A model that doubles one row."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "double", shapes[:1], shapes[1:])
    path = tmp_path_factory.mktemp("models") / "double.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Workload("double", "doubles", path, path, {"x": np.array([[1, 2, 3, 4]], np.float32)})


def fake(how: str) -> Server:
    """The fake peer, behaving so."""

    def command(setting: Setting) -> list[str]:
        return [sys.executable, str(REPOSITORY / "tests" / "bench_peer.py"), str(setting.port), how]

    about = Peer(name=how, title=f"Fake ({how})", distributions=("numpy",), command=command, unload="/unload")
    return Server(about, python=Path(sys.executable), cores=CORES)


@pytest.fixture(scope="module")
def good(doubling: Workload) -> Iterator[Server]:
    """The fake peer, loaded."""
    server = fake("good")
    server.load(doubling)
    yield server
    server.close()


def new_result(baseline: str) -> Result:
    """A result without rows."""
    return Result(
        command="warm", baseline=baseline, started="", machine={"load": 0}, versions={}, settings={"rounds": 2}
    )  # fmt: skip


def test_a_peer_is_started_asked_and_timed(good: Server) -> None:
    """Ready, its outputs as arrays, the time of a warm and of a cold request, its version."""
    (output,) = good.outputs()
    assert output.tolist() == [[2, 4, 6, 8]] and output.dtype == np.float32
    assert good.once() > 0 and good.cold() > 0
    assert good.version == f"numpy {np.__version__}"


def test_the_load_generator_counts_answers(good: Server) -> None:
    """Closed loops on two connections; every answer is a whole one, and health was asked for meanwhile."""
    one = run_slice(good.target(), connections=2, seconds=0.3)
    assert set(one.statuses) == {200} and one.statuses[200] == len(one.latencies) > 2
    assert one.per_second == pytest.approx(one.statuses[200] / one.seconds)
    assert one.probes and 0 < one.busy <= 1.5


def test_the_load_generator_counts_refusals_apart(doubling: Workload) -> None:
    """A server that answers 500 has no throughput, and no latency."""
    server = fake("fails")
    with pytest.raises(Unable, match="answered 500"):
        server.load(doubling)
    server.close()


@pytest.mark.parametrize(
    ("how", "reason"), [("ends", "ended with code 3: no such backend"), ("silent", "not ready")]
)
def test_a_peer_that_does_not_start_says_why(
    how: str, reason: str, doubling: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own last words; and nothing of it is left running."""
    monkeypatch.setattr(peer, "START_S", 0.5 if how == "silent" else 30.0)
    server = fake(how)
    with pytest.raises(Unable, match=reason):
        server.load(doubling)
    with pytest.raises(Unable, match="no model is loaded"):
        server.once()
    server.close()


@pytest.mark.slow
def test_whoever_says_something_else_is_not_compared(doubling: Workload) -> None:
    """A fast server with wrong answers is absent, with the reason; the others are compared."""
    result, contenders = (
        new_result("bare"),
        [Engine("bare", "bare", cores=CORES), fake("wrong"), fake("good")],
    )
    latency.compare(result, [doubling], contenders, Plan(rounds=2, warmups=0), cold=False)
    assert [row.contender for row in result.rows] == ["bare", "good"]
    assert result.rows[1].ratio is not None and result.rows[1].ratio.value > 0
    (absent,) = result.absent
    assert absent["contender"] == "wrong" and "another result" in absent["reason"]
    for contender in contenders:
        contender.close()


class Fickle:
    """A contender that gives up after some runs."""

    name, title, version = "fickle", "Fickle", "1"

    def __init__(self, runs: int, inputs: Any) -> None:
        self.facts: dict[str, Any] = {}
        self._left, self._inputs = runs, inputs

    def load(self, workload: Workload) -> None:
        """Nothing to do."""

    def once(self) -> float:
        """Works until it does not."""
        self._left -= 1
        if self._left < 0:
            raise Unable("it fell over")
        return 0.001

    def cold(self) -> float:
        """Cannot."""
        raise Unable("cannot unload")

    def outputs(self) -> list[Any]:
        """Right ones."""
        return [self._inputs * 2]

    def target(self) -> Any:
        """None."""
        raise Unable("no server")

    def unload(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def test_whoever_gives_up_in_the_middle_is_absent_and_the_rest_is_measured_anew(doubling: Workload) -> None:
    """Rounds compare all or nothing, so they start again without it."""
    bare = Engine("bare", "bare", cores=CORES)
    fickle: Contender = Fickle(2, doubling.inputs["x"])
    result = new_result("bare")
    latency.compare(result, [doubling], [bare, fickle], Plan(rounds=4, warmups=1), cold=False)
    assert [(row.contender, len(row.values)) for row in result.rows] == [("bare", 4)]
    assert result.absent == [{"contender": "fickle", "subject": "double", "reason": "it fell over"}]
    cold = new_result("bare")
    latency.compare(
        cold, [doubling], [bare, Fickle(9, doubling.inputs["x"])], Plan(rounds=2, warmups=0), cold=True
    )
    assert [row.contender for row in cold.rows] == ["bare"] and cold.absent[0]["reason"] == "cannot unload"
    bare.close()


@pytest.mark.slow
def test_throughput_takes_servers_only(doubling: Workload, good: Server) -> None:
    """An engine has no server to load, and that is said."""
    result = new_result("good")
    bare, plan = Engine("bare", "bare", cores=CORES), Plan(rounds=2, warmups=0)
    again = fake("good")
    throughput.compare(result, [doubling], [again, bare], plan, connections=(1, 2), seconds=0.05)
    assert [(r.contender, r.connections) for r in result.rows] == [("good", 1), ("good", 2)]
    assert all(r.detail["statuses"].keys() == {"200"} and r.detail["refused"] == 0 for r in result.rows)
    assert result.absent[0]["reason"] == "no server"
    bare.close()


def test_connections_that_a_server_ends_are_said(doubling: Workload) -> None:
    """They are not opened again, so its figure would be less than it can do, in silence."""
    result, server = new_result("hangs_up"), fake("hangs_up")
    throughput.compare(
        result, [doubling], [server], Plan(rounds=1, warmups=0), connections=(2,), seconds=0.05
    )
    (row,) = result.rows
    assert row.detail["ended"] == 2 and row.detail["lost"] == 0  # all gone before anything was counted
    assert any("2 of them ended in a slice" in note for note in result.notes)


@pytest.mark.slow
def test_overload_has_three_phases(doubling: Workload) -> None:
    """Before, meanwhile, after; with what was refused and lost, and how long health took."""
    result, server = new_result("good"), fake("good")
    plan = Plan(rounds=2, warmups=0)
    throughput.overload(result, [doubling], [server], plan, connections=20, seconds=0.05)
    assert [(r.metric, r.connections) for r in result.rows] == [
        ("before", 16),
        ("overload", 20),
        ("after", 16),
    ]
    assert {"refused", "lost", "p99_s", "health_p50_s", "generator_busy"} <= result.rows[1].detail.keys()


PARENT = """
import subprocess, sys
code = "data = bytearray(b'x') * 50_000_000; print(flush=True); input()"
print(flush=True)
input()
with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as child:
    child.stdout.readline()
    print(flush=True)
    input()
    child.communicate("\\n")
print(flush=True)
input()
"""


def test_memory_is_that_of_a_process_and_all_below_it() -> None:
    """A child that takes 50 MB is counted while it lives. Not below the tests' own process, which has other reasons
    to grow.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("no /proc here")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None

        def step() -> int:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "\n"
            return memory.tree_bytes(parent.pid)

        before = step()
        with memory.watching(parent.pid) as peak:
            print(file=parent.stdin, flush=True)
            meanwhile = step()
            print(file=parent.stdin, flush=True)
            afterwards = step()
        parent.communicate("\n")
    assert meanwhile > before + 45_000_000 > afterwards
    assert peak.bytes > before + 45_000_000
    assert memory.tree_bytes(2**22 + 1) == 0


@pytest.mark.slow
def test_attesting_and_loading_our_own_server(tmp_path: Path) -> None:
    """`attest` has its rows and the plain connection as baseline; the load generator is let in with its token."""
    ours = Ours(cores=CORES, limits=attested.LIMITS)
    try:
        result, plan = new_result(attested.PLAIN), Plan(rounds=2, warmups=0)
        attested.measure(result, ours, plan)
        subjects = [(r.subject, r.contender) for r in result.rows]
        ours_in = [(name, "strongroom") for name in ("connect", "verify", "import")]
        assert subjects == [("connect", "tls"), *ours_in]
        ours.load(catalogue.make(catalogue.BY_NAME["tiny_trees"], tmp_path))
        loaded = run_slice(ours.target(), connections=2, seconds=0.3)
        assert set(loaded.statuses) == {200} and loaded.probes
        assert ours.cold() > 0
        (output,) = ours.outputs()
        assert output.size == 1
        ours.unload()
        with pytest.raises(Unable, match="no model"):
            ours.once()
    finally:
        ours.close()


def test_a_target_needs_a_policy() -> None:
    """Which server is accepted is for whoever measures to say."""
    with pytest.raises(click.ClickException, match="needs --policy"):
        Ours(cores=CORES, target_url="https://127.0.0.1:1")


def test_an_engine_that_is_not_there_is_absent(doubling: Workload) -> None:
    """`tract` without its package: the child ends, and the text says so."""
    engine = Engine("tract", "tract", cores=CORES)
    with pytest.raises(Unable, match="ended with code"):
        engine.load(doubling)
    engine.close()


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([[1.0, 2.0]], ""), ([[1.0, 2.0001]], ""), ([[1.0, 2.1]], "differs"), ([[1.0, np.nan]], "differs"),
        ([[1.0]], "against"), ([[1.0, 2.0], [1.0]], "2 outputs against 1"), ([], "0 outputs"),
    ],
)  # fmt: skip
def test_outputs_are_compared(ours: list[list[float]], said: str) -> None:
    """Within a thousandth of the largest value; NaN is no agreement."""
    got = same_outputs([np.array([row]) for row in ours], [np.array([1.0, 2.0])])
    assert (said in got) if said else got == ""


def test_requests_of_the_open_inference_protocol_come_back_as_they_went() -> None:
    """JSON and binary forms of float32 and int64, through the reader of answers."""
    inputs = {"a": np.array([[1.5, -2.0]], np.float32), "b": np.array([[7]], np.int64)}
    body, length = codec.oip_binary(inputs)
    request = json.loads(body[:length])
    answer = json.dumps({"outputs": request["inputs"]}).encode()
    back = codec.read_oip_binary(answer + body[length:], len(answer))
    plain = json.loads(codec.oip_json(inputs))
    again = codec.read_oip_json(json.dumps({"outputs": plain["inputs"]}).encode())
    for arrays in (back, again, codec.read_npz(codec.npz(inputs))):
        for got, sent in zip(arrays, inputs.values(), strict=True):
            assert got.dtype == sent.dtype and got.tolist() == sent.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_peer_is_described_and_pinned(name: str) -> None:
    """Exact versions of everything, each with its hashes; a command or an engine; the distribution that it is named
    after among them.
    """
    chosen = peer.peer(name)
    assert chosen.name == name and chosen.engine != (chosen.command is not None)
    text = (peer.here(chosen) / "requirements.txt").read_text()
    blocks = re.split(r"\n(?=[^ #])", text.partition("\n")[2].strip())
    assert all("--hash=sha256:" in block for block in blocks)
    pins = dict(re.split(r"[ \\;]", block)[0].split("==") for block in blocks)
    names = {pin.lower().partition("[")[0] for pin in pins}
    assert {d.lower() for d in chosen.distributions} <= names


def test_a_peer_that_cannot_be_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is not taken for one that is complete; a peer that nobody knows is refused."""

    def failing(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 1, "", "ERROR: No matching distribution\n")

    monkeypatch.setattr(peer.subprocess, "run", failing)
    with pytest.raises(Unable, match="cannot be installed here: ERROR: No matching"):
        peer.open_peer("flask", cache=tmp_path, cores=CORES)
    assert not list(tmp_path.rglob("complete"))
    with pytest.raises(click.ClickException, match="no contender is called"):
        peer.peer("nginx")


def test_the_environment_of_a_peer_changes_with_its_requirements(tmp_path: Path) -> None:
    """Its folder is named after them, not after comments in them."""
    flask = peer.peer("flask")
    assert peer.environment_folder(flask, cache=tmp_path) == peer.environment_folder(flask, cache=tmp_path)
    other = dataclasses.replace(flask, name="litserve")
    assert (
        peer.environment_folder(other, cache=tmp_path).name
        != peer.environment_folder(flask, cache=tmp_path).name
    )


@pytest.mark.slow
def test_a_whole_measurement_of_our_own_server(tmp_path: Path) -> None:
    """`bench warm` with everything real but the sizes: a server, a client, two models; and the schema holds."""
    words = ["bench", "warm", "--models", "tiny_trees,tiny_bert", "--rounds", "2", "--warmups", "0", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "strongroom", *words, "--cache", str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    assert document["absent"] == [] and document["trial"] is True
    assert [(r["subject"], r["contender"]) for r in document["rows"]] == [
        (model, name) for model in ("tiny_trees", "tiny_bert") for name in ("bare", "strongroom")
    ]
    assert document["geomean_ratio"] > 0
    ours = document["contenders"][1]["facts"]
    assert ours["platform"] == "sim (simulated)" and ours["isolation"] in {
        "in_process",
        "model",
        "owner",
        "request",
    }


@pytest.mark.slow
def test_a_server_runs_from_the_pruned_environment(tmp_path: Path) -> None:
    """What `footprint` counts suffices: the tree alone serves; below 150 MB, and each part says what it is for."""
    size = footprint.write_tree(tmp_path / "tree")
    parts = footprint.server()
    assert size == sum(part.pruned for part in parts) < 150_000_000
    assert {part.name for part in parts} <= footprint.PURPOSES.keys()
    config = tmp_path / "c.toml"
    state = tmp_path / "state"
    config.write_text(f'platform = "simulated"\nbind = "127.0.0.1:0"\nstate_dir = "{state}"\n')
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'tree')!r}); from strongroom.launch import main; "
        f"sys.exit(main(['--config', {str(config)!r}]))"
    )
    server = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert any(line.startswith("strongroom: serving on ") for line in server.stdout)
    finally:
        server.terminate()
        server.communicate()


def test_footprint_lists_components_and_environments(tmp_path: Path) -> None:
    """Pruned is never more than installed; what was pruned has a reason; a peer without an environment is absent."""
    result = CliRunner().invoke(
        main, ["bench", "footprint", "--json", "--against", "flask", "--cache", str(tmp_path)]
    )  # fmt: skip
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    components = {r["subject"].split()[0]: r for r in document["rows"] if r["metric"] == "component"}
    assert {"strongroom", "numpy", "onnxruntime", "cryptography", "httptools"} <= components.keys()
    assert "flask" not in components and "matplotlib" not in components
    assert all(r["values"][0] <= r["detail"]["installed"] and r["detail"]["for"] for r in components.values())
    assert document["absent"][0]["contender"] == "flask"


@pytest.mark.parametrize(
    ("path", "pruned"),
    [
        ("numpy/tests/test_x.py", True), ("numpy/_core/include/numpy/a.h", True), ("onnx/backend/test/x.onnx", True),
        ("numpy/_core/_multiarray_umath.cpython-311-x86_64-linux-gnu.so", False), ("../../../bin/uvicorn", True),
        ("onnxruntime/capi/onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so", False),
        ("onnxruntime/capi/libonnxruntime.so.1.32.0", True), ("numpy/testing/__init__.py", False),
        ("onnxruntime/capi/libonnxruntime_providers_shared.so", False), ("uvicorn-1.dist-info/RECORD", False),
        ("anyio/_core/_testing.py", False), ("numpy/_core/_umath_tests.cpython-311-x86_64-linux-gnu.so", True),
    ],
)  # fmt: skip
def test_what_is_pruned(path: str, pruned: bool) -> None:
    """Tests, headers, tools and second copies go; what a server imports stays."""
    assert bool(footprint.why_pruned(path)) == pruned
