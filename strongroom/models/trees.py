"""Writes a proven forest or linear model as ONNX, so that it runs in the same engine as every other model.

Rules
  - Margins are bit-equal to XGBoost's: float32 sums, tree after tree, that begin with the base score. Hence
    the base score is a *leading tree*; `base_values` are added last, which changes the last bits.
  - The logistic link is 1 / (1 + exp(-m)): onnxruntime's Sigmoid is 9e-5 off at small probabilities.
  - XGBoost goes right on a member of a node's set, ONNX's BRANCH_MEMBER to the true branch: true is right.
  - A linear model adds its terms one after the other (CumSum), as XGBoost does; MatMul's order is another.
  - Missing is NaN. The input rules refuse infinities, and fractions in category columns: XGBoost refuses the
    former and cuts off the latter, ONNX does neither.
  - What is written depends on the model and the C library's logarithm alone: the same model gives the same bytes.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

from strongroom.models.forest import Flags, Floats, Ints, Trees
from strongroom.models.info import UNEXAMINED, InputRules, ModelInfo, TensorSpec
from strongroom.models.tree_wire import DOMAIN, LargeNode, model_bytes
from strongroom.models.xgboost import Forest, Learner, Linear

OPSET: Final = 21
IR_VERSION: Final = 10
_ROWS: Final = "rows"
_MODE_LT: Final = 1
_MODE_MEMBER: Final = 6
_LARGEST_EXPONENT: Final = np.float32(88.7)
"""XGBoost's own bound on -m in the logistic link; beyond it exp overflows."""


def to_onnx(model: Forest | Linear) -> tuple[bytes, ModelInfo]:
    """The ONNX file that computes what XGBoost's `Booster.predict` does, and the metadata.

    Input `features`: FP32 [rows, features], NaN where a value is missing. Outputs: `predictions`, what
    `predict(X)` gives, and `margin`, what `predict(X, output_margin=True)` gives; FP32, in XGBoost's shapes:
    [rows] for one output, [rows, outputs] for more, and [rows] for the class numbers of multi:softmax.
    """
    learner = model.learner
    graph = GraphProto(name="xgboost")
    graph.input.append(
        helper.make_tensor_value_info("features", TensorProto.FLOAT, [_ROWS, learner.features])
    )
    sums = "margin" if learner.outputs > 1 else "sums"
    imports = [helper.make_opsetid("", OPSET)]
    ensemble: LargeNode | None = None
    if isinstance(model, Linear):
        _write_linear(graph, model, sums)
    elif model.trees.categorical:
        ensemble = _membership_ensemble(model, sums)
        imports.append(helper.make_opsetid(DOMAIN, 5))
    else:
        ensemble = _regressor(model, sums)
        imports.append(helper.make_opsetid(DOMAIN, 3))  # version 5 has no TreeEnsembleRegressor
    if learner.outputs == 1:
        _node(graph, "Squeeze", [sums, _constant(graph, "column", np.array([1]))], "margin")
    _write_link(graph, learner)
    wide: list[Any] = [_ROWS] if learner.outputs == 1 else [_ROWS, learner.outputs]
    shapes = {"predictions": wide if learner.link != "argmax" else [_ROWS], "margin": wide}
    for name, shape in shapes.items():
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    info = ModelInfo(
        format=learner.format,
        inputs=(TensorSpec("features", "FP32", (_ROWS, learner.features)),),
        outputs=tuple(TensorSpec(name, "FP32", tuple(shape)) for name, shape in shapes.items()),
        primary_output="predictions",
        feature_names=learner.feature_names,
        notes=learner.notes,
        rules=InputRules(
            round_to_float32=True,
            reject_infinite=True,
            integer_columns=learner.categorical_columns,
            allow_nan=True,
        ),
        admission=UNEXAMINED,
    )
    return model_bytes(graph, ensemble, version=IR_VERSION, imports=imports), info


def base_margin(learner: Learner) -> Floats:
    """[outputs]: the base score on the margin scale, in float32 and to the bit as XGBoost computes it."""
    scores = learner.base_score
    match learner.base_scale:
        case "margin":
            return scores
        case "probability":
            return -_logf(np.float32(1) / scores - np.float32(1))
        case "exponential":
            return _logf(scores)


def _write_link(graph: GraphProto, learner: Learner) -> None:
    """`predictions` from `margin`."""
    match learner.link:
        case "identity":
            _node(graph, "Identity", ["margin"], "predictions")
        case "exp":
            _node(graph, "Exp", ["margin"], "predictions")
        case "logistic":
            one = _constant(graph, "one", np.float32(1))
            _node(graph, "Neg", ["margin"], "minus_margin")
            _node(graph, "Min", ["minus_margin", _constant(graph, "largest", _LARGEST_EXPONENT)], "exponent")
            _node(graph, "Exp", ["exponent"], "odds_against")
            _node(graph, "Add", ["odds_against", one], "all_odds")
            _node(graph, "Div", [one, "all_odds"], "predictions")
        case "hinge":
            _node(graph, "Greater", ["margin", _constant(graph, "zero", np.float32(0))], "positive")
            _node(graph, "Cast", ["positive"], "predictions", to=TensorProto.FLOAT)
        case "softmax":
            _node(graph, "Softmax", ["margin"], "predictions", axis=1)
        case "argmax":
            _node(graph, "ArgMax", ["margin"], "class", axis=1, keepdims=0)
            _node(graph, "Cast", ["class"], "predictions", to=TensorProto.FLOAT)


def _regressor(model: Forest, output: str) -> LargeNode:
    """TreeEnsembleRegressor: numeric splits; leaves of one value or of vectors; tree 0 is the base score."""
    trees, outputs = model.trees, model.learner.outputs
    leaf = trees.left < 0
    tree = np.repeat(np.arange(trees.count), np.diff(trees.starts))
    local = np.arange(tree.size) - trees.starts[tree]
    node = LargeNode("TreeEnsembleRegressor", input="features", output=output)
    _integers(node, "n_targets", outputs)
    # The base score comes first: node 0 of tree 0, a leaf for all outputs.
    _integers(node, "nodes_treeids", _after(0, tree + 1))
    _integers(node, "nodes_nodeids", _after(0, local))
    _integers(node, "nodes_featureids", _after(0, np.where(leaf, 0, trees.features)))
    _floats(node, "nodes_values", _after(0, np.where(leaf, np.float32(0), trees.thresholds)))
    node.words("nodes_modes", (b"BRANCH_LT", b"LEAF"), _after(True, leaf))
    _integers(node, "nodes_truenodeids", _after(0, np.where(leaf, 0, trees.left)))
    _integers(node, "nodes_falsenodeids", _after(0, np.where(leaf, 0, trees.right)))
    _integers(node, "nodes_missing_value_tracks_true", _after(0, trees.default_left & ~leaf))
    width = trees.leaf_values.shape[1]
    first = np.zeros(outputs, dtype=np.int64)
    every = np.arange(outputs)
    targets = every if width > 1 else model.tree_outputs[tree[leaf]][:, np.newaxis]
    shape = (int(leaf.sum()), width)
    _integers(node, "target_treeids", np.concatenate((first, np.repeat(tree[leaf] + 1, width))))
    _integers(node, "target_nodeids", np.concatenate((first, np.repeat(local[leaf], width))))
    _integers(node, "target_ids", np.concatenate((every, np.broadcast_to(targets, shape).ravel())))
    values = trees.leaf_values[trees.leaf_row[leaf]]
    _floats(node, "target_weights", np.concatenate((base_margin(model.learner), values.ravel())))
    return node


class _Numbers(NamedTuple):
    """How TreeEnsemble counts the nodes of a forest: splits and leaves apart, over all trees.

    A tree cannot be a single leaf there; such a root becomes a "stump", a split with two equal leaves.
    """

    tree: Ints
    stump: Flags
    split: Flags
    split_number: Ints
    leaves: Ints
    """Per node, how many leaves it becomes: 2 for a stump."""
    leaf_number: Ints


def _numbers(trees: Trees) -> _Numbers:
    tree = np.repeat(np.arange(trees.count), np.diff(trees.starts))
    leaf = trees.left < 0
    stump = leaf & (np.arange(tree.size) == trees.starts[tree])
    split = ~leaf | stump
    leaves = leaf.astype(np.int64) + stump
    return _Numbers(tree, stump, split, np.cumsum(split) - 1, leaves, np.cumsum(leaves) - leaves)


def _membership_ensemble(model: Forest, output: str) -> LargeNode:
    """TreeEnsemble: splits on sets. Its leaves have one value: a forest of vectors is written once an output.

    First come the base scores, as one stump an output: split o with the leaves 2 o and 2 o + 1.
    """
    trees, outputs = model.trees, model.learner.outputs
    numbers = _numbers(trees)
    copies = trees.leaf_values.shape[1]
    bases = np.arange(outputs)
    split = numbers.split
    splits = int(split.sum())
    leaf, member = trees.left < 0, trees.category_count > 0

    def nodes(base: npt.ArrayLike, each: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An attribute's values: for the stumps of the base scores, then for every copy of the forest."""
        return np.concatenate((np.broadcast_to(base, (outputs,)), np.tile(each, copies)))

    node = LargeNode("TreeEnsemble", input="features", output=output)
    _integers(node, "n_targets", outputs)
    _integers(node, "aggregate_function", 1)  # sum
    _integers(node, "post_transform", 0)  # none
    roots = [numbers.split_number[trees.starts[:-1]] + outputs + copy * splits for copy in range(copies)]
    _integers(node, "tree_roots", np.concatenate((bases, *roots)))
    _integers(node, "nodes_featureids", nodes(0, np.where(leaf, 0, trees.features)[split]))
    thresholds = np.where(leaf | member, np.float32(0), trees.thresholds)
    _tensor(node, "nodes_splits", nodes(np.float32(0), thresholds[split]))
    modes = np.where(member, _MODE_MEMBER, _MODE_LT).astype(np.uint8)
    _tensor(node, "nodes_modes", nodes(np.uint8(_MODE_LT), modes[split]))
    for name, branch in (("true", True), ("false", False)):
        number, to_leaf = _links(trees, numbers, branch=branch)
        first = 2 * bases + (not branch)
        later = [
            number + np.where(to_leaf, 2 * outputs + copy * numbers.leaves.sum(), outputs + copy * splits)
            for copy in range(copies)
        ]
        _integers(node, f"nodes_{name}nodeids", np.concatenate((first, *later)))
        _integers(node, f"nodes_{name}leafs", nodes(1, to_leaf))
    _integers(node, "nodes_missing_value_tracks_true", nodes(0, (trees.default_left != member)[split]))
    _tensor(node, "membership_values", np.tile(_member_sets(trees), copies))
    rows = np.repeat(trees.leaf_row, numbers.leaves)
    values = [np.repeat(base_margin(model.learner), 2), trees.leaf_values[rows].T.ravel()]
    of_tree = model.tree_outputs[np.repeat(numbers.tree, numbers.leaves)]
    targets = [np.repeat(bases, 2), of_tree if copies == 1 else np.repeat(bases, rows.size)]
    _integers(node, "leaf_targetids", np.concatenate(targets))
    _tensor(node, "leaf_weights", np.concatenate(values))
    return node


def _links(trees: Trees, numbers: _Numbers, *, branch: bool) -> tuple[Ints, Flags]:
    """For every split, the number of its true or false child, and whether that is a leaf."""
    leaf, member = trees.left < 0, trees.category_count > 0
    # Less than the threshold: left. Member of the set: right.
    child = np.where(member == branch, trees.right, trees.left)
    at = np.where(leaf, 0, child) + trees.starts[numbers.tree]
    to_leaf = numbers.stump | leaf[at]
    of_leaf = np.where(numbers.stump, numbers.leaf_number + (not branch), numbers.leaf_number[at])
    number = np.where(to_leaf, of_leaf, numbers.split_number[at])
    return number[numbers.split], to_leaf[numbers.split]


def _member_sets(trees: Trees) -> Floats:
    """The categories of one set after the other, each set followed by NaN."""
    counts = trees.category_count[trees.category_count > 0]
    starts = trees.category_start[trees.category_count > 0]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    sets = np.full(counts.sum() + counts.size, np.nan, dtype=np.float32)
    sets[np.arange(counts.sum()) + np.repeat(np.arange(counts.size), counts)] = trees.categories[
        np.repeat(starts, counts) + within
    ]
    return sets


def _write_linear(graph: GraphProto, model: Linear, output: str) -> None:
    """base + bias, then weight times feature for one feature after the other; NaN adds nothing."""
    learner = model.learner
    # gblinear starts every output from the first base score, also where the file has one for each (from 3.1).
    first = (base_margin(learner)[0] + model.bias).reshape(1, 1, learner.outputs)
    terms = model.weights.reshape(1, learner.features, learner.outputs)
    _node(graph, "IsNaN", ["features"], "missing")
    _node(graph, "Where", ["missing", _constant(graph, "nothing", np.float32(0)), "features"], "present")
    _node(graph, "Unsqueeze", ["present", _constant(graph, "last", np.array([2]))], "factors")
    _node(graph, "Mul", ["factors", _constant(graph, "weights", terms)], "terms")
    _node(graph, "Shape", ["features"], "row_count", start=0, end=1)
    each = _constant(graph, "each", np.array([1, learner.outputs]))
    _node(graph, "Concat", ["row_count", each], "first_shape", axis=0)
    _node(graph, "Expand", [_constant(graph, "first", first), "first_shape"], "first_terms")
    _node(graph, "Concat", ["first_terms", "terms"], "all_terms", axis=1)
    _node(graph, "CumSum", ["all_terms", _constant(graph, "along", np.array(1))], "running")
    _node(graph, "Gather", ["running", _constant(graph, "end", np.array(learner.features))], output, axis=1)


def _node(graph: GraphProto, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
    graph.node.append(helper.make_node(operator, inputs, [output], **attributes))


def _constant(graph: GraphProto, name: str, value: npt.ArrayLike) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _after(first: int, rest: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate((np.array([first], dtype=rest.dtype), rest))


def _integers(node: LargeNode, name: str, values: int | npt.NDArray[Any]) -> None:
    if isinstance(values, int):
        node.attribute(AttributeProto(name=name, type=AttributeProto.INT, i=values))
    else:
        node.integers(name, values)


def _floats(node: LargeNode, name: str, values: Floats) -> None:
    node.floats(name, values)


def _tensor(node: LargeNode, name: str, values: npt.NDArray[Any]) -> None:
    tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
    node.attribute(AttributeProto(name=name, type=AttributeProto.TENSOR, t=tensor))


def _logf(x: Floats) -> Floats:
    """Natural logarithm of positive finite numbers, by the C library's own `logf`.

    XGBoost computes its base margins with it, and a margin must be equal to the last bit: a correctly rounded
    logarithm differs for 1 in 200 base scores, numpy's for 1 in 6.
    """
    # The interpreter links the mathematical library itself, so its symbols are there without naming a file.
    logf = ctypes.CDLL(None).logf
    logf.argtypes, logf.restype = [ctypes.c_float], ctypes.c_float
    return np.array([logf(float(value)) for value in x.ravel()], np.float32).reshape(x.shape)
