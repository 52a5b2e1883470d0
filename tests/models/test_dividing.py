"""Tables and forests, divided: to the last bit what the whole node gives; or whole."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from strongroom.models.dividing import divide, rows_of
from strongroom.models.stages import Line, cut
from strongroom.models.trees import to_onnx
from tests.models import samples
from tests.models.networks import numbers
from tests.staged import model_of, run_stages, same, session, values_of

FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32


def divided(model: Any, limit: int) -> Line:
    made, values = divide(model, values_of(model), limit=limit)
    return Line(made, values)


def check(model: Any, limit: int, *feeds: dict[str, Any]) -> int:
    """The divided model in stages gives the bytes of the whole one; how many stages there were."""
    line = divided(model, limit)
    partition = cut(line, limit=limit)
    whole = session(model)
    for feed in feeds:
        expected = dict(zip(line.outputs, whole.run(list(line.outputs), feed), strict=True))
        got = run_stages(line, partition, feed)
        assert all(same(expected[name], got[name]) for name in expected)
    return len(partition.stages)


def table(array: Any, *, kind: int = INT64, opset: int = 17, readers: int = 1, **more: Any) -> Any:
    nodes = [helper.make_node("Gather", ["t", f"i{n}"], [f"y{n}"], **more) for n in range(readers)]
    inputs = [(f"i{n}", kind, None) for n in range(readers)]
    outputs = [(f"y{n}", helper.np_dtype_to_tensor_dtype(array.dtype), None) for n in range(readers)]
    return model_of(nodes, inputs, outputs, [numpy_helper.from_array(array, "t")], opset=opset)


@pytest.mark.parametrize("shape", [(1000, 16), (3000,), (500, 3, 5)])
@pytest.mark.parametrize("kind", [INT64, INT32])
def test_rows_are_those_of_the_whole_table(shape: tuple[int, ...], kind: int) -> None:
    array = numbers(*shape)
    array.reshape(-1)[::7] = -0.0
    array.reshape(-1)[1::11] = np.nan
    model = table(array, kind=kind)
    dtype = np.int64 if kind == INT64 else np.int32
    rng = np.random.Generator(np.random.PCG64(1))
    shapes = [(), (1,), (4, 9), (0,), (5, 0), (0, 5), (2, 3, 4)]
    feeds = [{"i0": rng.integers(-shape[0], shape[0], size, dtype)} for size in shapes]
    feeds.append({"i0": np.arange(-shape[0], shape[0], dtype=dtype)})
    assert check(model, 8000, *feeds) > 1


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.float16, np.uint8, np.bool_])
def test_rows_of_every_type(dtype: Any) -> None:
    array = (numbers(900, 16) > 0).astype(dtype)
    assert check(table(array), 4000, {"i0": np.arange(900)}) > 1


def test_two_readers_of_one_table() -> None:
    model = table(numbers(700, 8), readers=2)
    assert check(model, 6000, {"i0": np.arange(9), "i1": np.arange(600, 700)}) > 2


@pytest.mark.parametrize("index", [1000, -1001, 1 << 40])
def test_an_index_that_the_whole_refuses_is_refused(index: int) -> None:
    model = table(numbers(1000, 16))
    line = divided(model, 8000)
    feeds = {"i0": np.array([3, index])}
    with pytest.raises(Exception, match="out of data bounds"):
        session(model).run(None, feeds)
    with pytest.raises(Exception, match="out of data bounds"):
        run_stages(line, cut(line, limit=8000), feeds)


def _other_reader() -> Any:
    model = table(numbers(1000, 16))
    model.graph.node.append(helper.make_node("Transpose", ["t"], ["u"]))
    model.graph.output.append(helper.make_tensor_value_info("u", FLOAT, None))
    return model


def _inside() -> Any:
    model = table(numbers(1000, 16))
    inner = helper.make_graph(
        [helper.make_node("Identity", ["t"], ["v"])],
        "b",
        [],
        [helper.make_tensor_value_info("v", FLOAT, None)],
    )
    model.graph.node.append(helper.make_node("If", ["c"], ["u"], then_branch=inner, else_branch=inner))
    model.graph.node[-1].attribute[1].g.node[0].output[0] = "v2"
    model.graph.node[-1].attribute[1].g.output[0].name = "v2"
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.output.append(helper.make_tensor_value_info("u", FLOAT, None))
    return model


def _is_output() -> Any:
    model = table(numbers(1000, 16))
    model.graph.output.append(helper.make_tensor_value_info("t", FLOAT, [1000, 16]))
    return model


@pytest.mark.parametrize(
    "model",
    [
        _other_reader(), _inside(), _is_output(), table(numbers(1000, 16), axis=1), table(numbers(1000, 16), opset=13),
        table(numbers(10, 16)), table(np.full((500, 4), "a", np.object_)), table(numbers(1, 9000)),
    ],
    ids=["other reader", "inner reader", "output", "columns", "old", "small", "strings", "one row"],
)  # fmt: skip
def test_other_tables_stay_whole(model: Any) -> None:
    made, values = divide(model, {}, limit=8000)
    assert made is model
    assert values == {}


def test_a_piece_of_a_file_is_described() -> None:
    tensor = TensorProto(name="t", data_type=FLOAT, dims=[10, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "w"), ("offset", "640"), ("length", "160")):
        tensor.external_data.add(key=key, value=value)
    piece = rows_of(tensor, 3, 5, "p")
    assert {e.key: e.value for e in piece.external_data} == {"location": "w", "offset": "688", "length": "32"}
    assert list(piece.dims) == [2, 4]


# Forests


def regressor(rng: random.Random, *, trees: int, targets: int = 1, wide: bool = False, **more: Any) -> Any:
    """Stumps on four features, whose leaves differ by seven powers of ten: the order of a sum shows."""
    names = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    nodes: dict[str, list[Any]] = {name: [] for name in names}
    leaves: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(trees):
        threshold = rng.gauss(0, 1)
        for row in (
            (tree, 0, rng.randrange(4), threshold, "BRANCH_LT", 1, 2),
            (tree, 1, 0, 0.0, "LEAF", 0, 0),
            (tree, 2, 0, 0.0, "LEAF", 0, 0),
        ):
            for name, value in zip(names, row, strict=True):
                nodes[name].append(value)
        for leaf in (1, 2):
            for target in range(targets) if wide else (rng.randrange(targets),):
                value = rng.choice([0.0, -0.0, rng.gauss(0, 1) * 10.0 ** rng.randrange(-3, 4)])
                for name, entry in zip(leaves, (tree, leaf, target, value), strict=True):
                    leaves[name].append(entry)
    attributes = {f"nodes_{name}": values for name, values in nodes.items()}
    attributes |= {f"target_{name}": values for name, values in leaves.items()} | {"n_targets": targets}
    made = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **(attributes | more))
    return model_of([made], [("x", FLOAT, ["N", 4])], [("y", FLOAT, None)])


ROWS = (0, 1, 2, 20, 129, 1500)


def rows(count: int) -> dict[str, Any]:
    return {"x": numbers(count, 4, seed=count)}


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("base", [False, True])
def test_a_forest_in_parts_sums_in_the_same_order(targets: int, wide: bool, base: bool) -> None:
    more = {"base_values": [0.3] * targets} if base else {}
    model = regressor(random.Random(targets), trees=120, targets=targets, wide=wide, **more)
    assert check(model, model.ByteSize() // 5, *map(rows, ROWS)) >= 5


def test_a_sum_of_negative_zeros_is_what_the_whole_says() -> None:
    model = regressor(random.Random(1), trees=40)
    weights = next(a for a in model.graph.node[0].attribute if a.name == "target_weights")
    weights.floats[:] = [-0.0] * len(weights.floats)
    assert check(model, 1500, rows(3)) > 1


def test_a_sum_by_hand_is_sequential_in_float32() -> None:
    """What the division rests on, asked of onnxruntime itself: rows, trees and targets around its own thresholds."""
    for trees, targets in ((3, 1), (300, 1), (300, 3)):
        model = regressor(random.Random(trees), trees=trees, targets=targets)
        given = {a.name: helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
        for count in (1, 2, 49, 51, 129, 1001):
            feed = rows(count)
            expected = np.zeros((count, targets), np.float32)
            for tree in range(trees):
                x = feed["x"][:, given["nodes_featureids"][3 * tree]]
                yes = x < np.float32(given["nodes_values"][3 * tree])
                for leaf, chosen in ((0, yes), (1, ~yes)):
                    target = given["target_ids"][2 * tree + leaf]
                    expected[chosen, target] += np.float32(given["target_weights"][2 * tree + leaf])
            assert same(session(model).run(None, feed)[0], expected)


def _twice(model: Any) -> Any:
    """A leaf with two values for one target."""
    for entry in model.graph.node[0].attribute:
        if entry.name.startswith("target_"):
            field = entry.ints if len(entry.ints) else entry.floats
            field.append(field[0])
    return model


def _apart(model: Any) -> Any:
    """Nodes of the first tree that stand behind those of the others."""
    for entry in model.graph.node[0].attribute:
        if entry.name.startswith("nodes_"):
            for field in (entry.ints, entry.floats, entry.strings):
                if len(field):
                    values = list(field)
                    del field[:]
                    field.extend(values[:2] + values[3:] + values[2:3])
    return model


def _of_doubles() -> Any:
    model = regressor(random.Random(3), trees=40)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def _classifier() -> Any:
    model = regressor(random.Random(3), trees=40, targets=2)
    made = model.graph.node[0]
    made.op_type = "TreeEnsembleClassifier"
    made.output.append("scores")
    for entry in made.attribute:
        entry.name = entry.name.replace("target_", "class_")
    kept = [a for a in made.attribute if a.name != "n_targets"]
    del made.attribute[:]
    made.attribute.extend([*kept, helper.make_attribute("classlabels_int64s", [0, 1])])
    return model


@pytest.mark.parametrize(
    "model",
    [
        regressor(random.Random(3), trees=40, aggregate_function="AVERAGE"),
        regressor(random.Random(3), trees=40, aggregate_function="MAX"),
        regressor(random.Random(3), trees=40, post_transform="LOGISTIC"),
        _twice(regressor(random.Random(3), trees=40)), _apart(regressor(random.Random(3), trees=40)),
        _of_doubles(), _classifier(), regressor(random.Random(3), trees=1),
    ],
    ids=["average", "max", "link", "two values", "apart", "doubles", "classifier", "one tree"],
)  # fmt: skip
def test_other_forests_stay_whole(model: Any) -> None:
    assert divide(model, {}, limit=500)[0] is model


def _xgboost(*, kind: str) -> Any:
    trees = [samples.categorical_tree() if kind == "categorical" else samples.tree() for _ in range(30)]
    if kind == "vector":
        trees = [samples.vector_tree(rows=False) for _ in range(30)]
    document = samples.model(*trees, outputs=2 if kind == "vector" else 1)
    data, _ = to_onnx(samples.parse(document))
    return ModelProto.FromString(data)


@pytest.mark.parametrize("kind", ["numeric", "categorical", "vector"])
def test_our_own_translation_of_xgboost_is_divided(kind: str) -> None:
    model = _xgboost(kind=kind)
    width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    rng = np.random.Generator(np.random.PCG64(4))
    feeds = []
    for count in (1, 3, 200):
        x = rng.integers(0, 4, (count, width)).astype(np.float32)
        x[rng.random(x.shape) < 0.2] = np.nan
        feeds.append({"features": x})
    assert check(model, 1500, *feeds) > 1
