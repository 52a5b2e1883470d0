"""Stages: cut where the least is alive, within a limit, and the same bytes as the whole."""

from __future__ import annotations

import importlib
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from onnx import TensorProto, helper, numpy_helper
from strongroom_bench.catalogue import BY_NAME, inputs_of, make

from strongroom.errors import Error
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS
from strongroom.models.stages import Line, Value, build, cut, cut_into
from tests import single_nodes
from tests.models import networks
from tests.models.networks import node, numbers
from tests.staged import everywhere, model_of, optimised, run_stages, same, session, session_faults, values_of

FLOAT = TensorProto.FLOAT


def constant(name: str, *shape: int, seed: int = 1) -> Any:
    return numpy_helper.from_array(numbers(*shape, seed=seed, scale=0.1), name)


def chain(widths: list[int], *, skip: bool = False) -> Any:
    """Products one after another: weight n is [widths[n], widths[n + 1]]. `skip`: the last adds the first's result."""
    nodes, weights = [], []
    for n, (a, b) in enumerate(itertools.pairwise(widths)):
        nodes.append(node("MatMul", [f"v{n}" if n else "x", f"w{n}"], [f"v{n + 1}"]))
        weights.append(constant(f"w{n}", a, b, seed=n))
    last = f"v{len(widths) - 1}"
    nodes.append(node("Add", [last, "v1"], ["y"]) if skip else node("Relu", [last], ["y"]))
    return model_of(nodes, [("x", FLOAT, ["N", widths[0]])], [("y", FLOAT, None)], weights)


def line_of(model: Any) -> Line:
    return Line(model, values_of(model))


def check(model: Any, feeds: dict[str, Any], *counts: int) -> list[int]:
    """Whole and in stages give the same bytes; how many stages there were."""
    line = line_of(model)
    native = session(model)
    expected = dict(zip(line.outputs, native.run(list(line.outputs), feeds), strict=True))
    found = []
    for count in counts:
        partition = cut_into(line, count)
        assert len(partition.stages) <= count
        assert [s.first for s in partition.stages] == [0, *[s.end for s in partition.stages[:-1]]]
        assert partition.stages[-1].end == len(model.graph.node)
        got = run_stages(line, partition, feeds)
        assert all(same(expected[name], got[name]) for name in expected)
        found.append(len(partition.stages))
    got = run_stages(line, everywhere(line), feeds)
    assert all(same(expected[name], got[name]) for name in expected)
    return found


@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_squeezenet", "tiny_bert"])
def test_networks_are_the_same_in_stages(name: str, tmp_path: Path) -> None:
    """Residual, branching, with several inputs; in the engine's own layouts and operators."""
    entry = BY_NAME[name]
    model = optimised(make(entry, tmp_path).path.read_bytes())
    assert check(model, inputs_of(entry, batch=2), 2, 5)[0] == 2


def test_small_networks_are_the_same_in_stages() -> None:
    check(optimised(networks.residual(opset=17)), {"x": numbers(2, 3, 12, 12)}, 2, 5)
    check(optimised(networks.layers()), networks.words(2), 2, 5)


def test_one_stage_is_the_whole() -> None:
    model = chain([8, 64, 8])
    assert check(model, {"x": numbers(3, 8)}, 1) == [1]
    (stage,) = cut(line_of(model), limit=1 << 30).stages
    assert (stage.inputs, stage.outputs, stage.weights) == (("x",), ("y",), ("w0", "w1"))


def test_every_stage_keeps_to_the_limit() -> None:
    model = chain([64] * 13)
    for limit in (1 << 14, 1 << 15, 50_000, 1 << 20):
        partition = cut(line_of(model), limit=limit)
        assert partition.largest_bytes <= limit
        assert sum(stage.weight_bytes for stage in partition.stages) == 12 * 64 * 64 * 4


def test_of_equally_heavy_partitions_the_one_with_the_least_across_is_taken() -> None:
    # Two cuts keep to the limit; at one of them ten times as much is alive.
    wide = [400, 40, 400, 40, 400]
    partition = cut(line_of(chain(wide)), limit=2 * 400 * 40 * 4)
    assert [stage.outputs for stage in partition.stages] == [("v2",), ("y",)]
    partition = cut(line_of(chain([40, 400, 40, 400, 40])), limit=2 * 400 * 40 * 4)
    assert [stage.outputs for stage in partition.stages] == [("v2",), ("y",)]
    partition = cut(line_of(chain([400, 400, 10, 400, 400])), limit=700_000)
    assert [stage.outputs for stage in partition.stages] == [("v2",), ("y",)]


def test_the_heaviest_of_n_stages_is_as_light_as_can_be() -> None:
    """Against all ways to cut a small graph."""
    rng = random.Random(5)
    for _ in range(12):
        widths = [rng.randrange(20, 120) for _ in range(8)]
        line = line_of(chain(widths))
        sizes = [4 * a * b for a, b in itertools.pairwise(widths)]
        for count in (2, 3, 4):
            best = min(
                max(sum(sizes[a:b]) for a, b in itertools.pairwise((0, *cuts, 7)))
                for cuts in itertools.combinations(range(1, 7), count - 1)
            )
            assert cut_into(line, count).largest_bytes == best


def test_a_constant_that_two_stages_read_is_in_both_and_counted_once_in_one() -> None:
    nodes = [node("MatMul", ["x" if n == 0 else f"v{n}", "w"], [f"v{n + 1}"]) for n in range(4)]
    model = model_of(nodes, [("x", FLOAT, ["N", 32])], [("v4", FLOAT, None)], [constant("w", 32, 32)])
    line = line_of(model)
    assert line.weigh(0, 4) == 4096
    two = [line.stage(0, 2), line.stage(2, 4)]
    assert [stage.weights for stage in two] == [("w",), ("w",)]
    assert len(cut(line, limit=1).stages) == 1  # cutting makes nothing lighter


def test_what_is_needed_late_is_kept_and_then_dropped() -> None:
    line = line_of(chain([32] * 6, skip=True))
    stages = cut_into(line, 5).stages
    assert set(stages[-1].drops) == {"v1", "v4"}
    assert all("v1" not in stage.drops for stage in stages[:-1])
    assert check(chain([32] * 6, skip=True), {"x": numbers(2, 32)}, 2, 3, 5) == [2, 3, 5]


def test_inputs_are_passed_to_the_stage_that_reads_them() -> None:
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]), node("MatMul", ["a", "w1"], ["b"]), node("Add", ["b", "z"], ["c"]),
        node("MatMul", ["c", "w2"], ["y"]),
    ]  # fmt: skip
    weights = [constant(f"w{n}", 32, 32, seed=n) for n in range(3)]
    inputs = [("x", FLOAT, ["N", 32]), ("z", FLOAT, ["N", 32]), ("unread", FLOAT, [1])]
    model = model_of(nodes, inputs, [("y", FLOAT, None), ("a", FLOAT, None)], weights)
    feeds = {"x": numbers(2, 32), "z": numbers(2, 32, seed=3), "unread": numbers(1)}
    assert check(model, feeds, 2, 3) == [2, 3]
    stages = cut_into(line_of(model), 3).stages
    assert "z" not in stages[0].inputs
    assert all("unread" not in stage.inputs for stage in stages)


def _branches(captured: str) -> Any:
    def graph(operator: str, name: str) -> Any:
        return helper.make_graph(
            [helper.make_node(operator, [captured, "inside_w"], [name])], name, [],
            [helper.make_tensor_value_info(name, FLOAT, None)],
        )  # fmt: skip

    return helper.make_node(
        "If", ["flag"], ["chosen"], then_branch=graph("MatMul", "t"), else_branch=graph("Sub", "e")
    )


def test_control_flow_stays_in_a_stage_with_what_it_reads_from_around() -> None:
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]), node("MatMul", ["a", "w1"], ["b"]), _branches("a"),
        node("Add", ["chosen", "b"], ["c"]), node("MatMul", ["c", "w2"], ["y"]),
    ]  # fmt: skip
    weights = [constant(f"w{n}", 32, 32, seed=n) for n in range(3)] + [constant("inside_w", 32, 32, seed=9)]
    model = model_of(
        nodes, [("x", FLOAT, [32, 32]), ("flag", TensorProto.BOOL, [])], [("y", FLOAT, None)], weights
    )
    line = line_of(model)
    stage = line.stage(2, 3)
    assert (set(stage.inputs), stage.weights, stage.outputs) == ({"a", "flag"}, ("inside_w",), ("chosen",))
    for flag in (True, False):
        feeds = {"x": numbers(32, 32), "flag": np.array(flag)}
        assert check(model, feeds, 2, 3, 4) == [2, 2, 4]


def test_no_cut_where_a_sequence_is_alive() -> None:
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]), helper.make_node("SequenceConstruct", ["a", "a"], ["s"]),
        node("MatMul", ["a", "w1"], ["b"]), node("MatMul", ["b", "w2"], ["d"]),
        helper.make_node("ConcatFromSequence", ["s"], ["c"], axis=0), node("Add", ["c", "d"], ["y"]),
    ]  # fmt: skip
    weights = [constant(f"w{n}", 32, 32, seed=n) for n in range(3)]
    model = model_of(nodes, [("x", FLOAT, [1, 32])], [("y", FLOAT, None)], weights)
    line = line_of(model)
    assert [line.crossing[n] is None for n in range(7)] == [False, False, True, True, True, False, False]
    assert check(model, {"x": numbers(1, 32)}, 3) == [2]


def test_no_cut_where_a_value_of_unknown_type_is_alive() -> None:
    model = chain([32] * 4)
    line = Line(model, {name: value for name, value in values_of(model).items() if name != "v2"})
    assert [stage.outputs for stage in cut_into(line, 3).stages] == [("v1",), ("y",)]
    assert len(cut_into(Line(model, {}), 3).stages) == 1


def test_outputs_that_are_constants_or_inputs_come_out() -> None:
    nodes = [node("MatMul", ["x", "w0"], ["a"]), node("MatMul", ["a", "w1"], ["y"])]
    weights = [constant("w0", 32, 32), constant("w1", 32, 32, seed=2), constant("k", 3)]
    model = model_of(nodes, [("x", FLOAT, [1, 32])], [("y", FLOAT, None), ("k", FLOAT, [3])], weights)
    assert check(model, {"x": numbers(1, 32)}, 2) == [2]


def test_a_value_without_shape_has_a_size() -> None:
    assert Value(int(FLOAT), None).size == 1 << 20
    assert Value(int(FLOAT), (None, 8)).size == 32
    assert Value(int(TensorProto.BOOL), ()).size == 1


def test_stages_of_equal_graphs_are_equal_bytes() -> None:
    model = optimised(networks.residual(opset=17))
    lines = [line_of(model), line_of(type(model).FromString(model.SerializeToString()))]
    made = [[build(x, s).SerializeToString() for s in cut_into(x, 3).stages] for x in lines]
    assert made[0] == made[1]


def _random(rng: random.Random) -> tuple[Any, dict[str, Any]]:
    """A graph of products, sums and branches over vectors of 16, whose nodes read anything that is there."""
    values, nodes, weights = ["x", "z"], [], []
    for n in range(rng.randrange(4, 18)):
        match rng.randrange(5):
            case 0 | 1:
                weight = rng.choice(weights).name if weights and rng.random() < 0.2 else f"w{n}"
                if weight == f"w{n}":
                    weights.append(constant(weight, 20, 20, seed=n))
                nodes.append(node("MatMul", [rng.choice(values), weight], [f"v{n}"]))
            case 2:
                nodes.append(node("Add", rng.choices(values, k=2), [f"v{n}"]))
            case 3:
                nodes.append(
                    helper.make_node("Split", [rng.choice(values)], [f"h{n}", f"g{n}"], axis=1, num_outputs=2)
                )
                nodes.append(node("Concat", [f"g{n}", f"h{n}"], [f"v{n}"], axis=1))
            case 4:
                nodes.append(node(rng.choice(["Relu", "Tanh", "Neg"]), [rng.choice(values)], [f"v{n}"]))
        values.append(f"v{n}")
    outputs = {values[-1], rng.choice(values[2:])}
    model = model_of(
        nodes, [("x", FLOAT, ["N", 20]), ("z", FLOAT, ["N", 20])], [(n, FLOAT, None) for n in sorted(outputs)],
        weights, opset=18,
    )  # fmt: skip
    return model, {"x": numbers(2, 20, seed=rng.randrange(99)), "z": numbers(2, 20, seed=rng.randrange(99))}


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_are_the_same_in_stages(seed: int) -> None:
    model, feeds = _random(random.Random(seed))
    check(model, feeds, 2, 4, 30)


@pytest.mark.slow
def test_every_operator_is_the_same_in_stages() -> None:
    """Side by side, so that many values are alive at every cut."""
    rng = np.random.default_rng(3)
    for names, data in single_nodes.packs(20):
        admitted = admit(data, format="onnx", limits=STANDARD_LIMITS)
        model = optimised(admitted.onnx)
        feeds = {
            name: array.astype(str).astype(object) if array.dtype.kind == "O" else array
            for name, array in single_nodes.feed(admitted.info, rng).items()
        }
        assert names
        check(model, feeds, 4)


@pytest.mark.slow
def test_the_good_corpus_is_the_same_in_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that admission's fuzzing starts from."""
    monkeypatch.syspath_prepend(REPOSITORY / "fuzz")
    cases, killable = importlib.import_module("targets_admission"), importlib.import_module("killable")
    split = 0
    for given in cases._models():
        try:
            admitted = admit(given.SerializeToString(), format="onnx", limits=STANDARD_LIMITS)
            engine_model = optimised(admitted.onnx)
        except (Error, RuntimeError, *session_faults()):
            continue
        operators = [made.op_type for made in given.graph.node]
        feeds = killable.request_for(admitted.info, operators, random.Random(1), canary=False)
        if feeds is None or not all(array.size for array in feeds.values()) or admitted.info.admission.flags:
            continue  # what could end this process is not run in it
        texts = {n: a.astype(str).astype(object) if a.dtype.kind == "O" else a for n, a in feeds.items()}
        try:
            session(engine_model).run(None, texts)
        except session_faults():
            continue
        check(engine_model, texts, 3)
        split += len(everywhere(line_of(engine_model)).stages) > 1
    assert split >= 5
