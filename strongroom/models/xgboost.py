"""Reads a model that XGBoost saved as JSON or UBJSON, and proves what it says: a forest, or a linear model.

libxgboost follows child indices, feature and class numbers from the file without looking: of 51 hostile
files 17 ended the process, and several read or wrote foreign memory. So an upload never reaches it; here
every index is checked against what it indexes, before anything is computed.

Rules
  - Never a wrong number: an objective, booster, version or member that is not known here is refused, because
    the next generation may give it a meaning (3.4 moved DART's weights; 3.2 then silently predicts without).
  - Trees are proven to be trees in `forest`, all together, before anything is looked up in them.
  - Statistics for training and explanation (`loss_changes`, `sum_hessian`, ...) take no part in prediction
    and stay unread.
  - Messages name the place (tree 3, node 5), never a value: a model is its owner's secret.

The generations of the format, 1.0 to 3.4, are described in docs/xgboost.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal, NoReturn, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from strongroom.errors import AdmissionRefused, Error, LimitExceeded, MalformedInput
from strongroom.models.forest import (
    MAX_CATEGORY,
    Floats,
    Ints,
    RawTree,
    RawTrees,
    Trees,
    frozen,
    prove_trees,
    refuse_tree,
)
from strongroom.models.info import AdmissionLimits, NoteValue
from strongroom.models.tree_json import (
    check_members,
    float_array,
    int_array,
    list_member,
    object_member,
    parse_json,
    parse_ubj,
    text_member,
    whole_member,
)

Link: TypeAlias = Literal["identity", "logistic", "exp", "hinge", "softmax", "argmax"]
BaseScale: TypeAlias = Literal["margin", "probability", "exponential"]

NEWEST_VERSION: Final = (3, 4)
"""The newest XGBoost whose files were compared with its predictions; a newer one may mean something else."""
OBJECTIVES: Final[Mapping[str, tuple[Link, BaseScale]]] = MappingProxyType(
    {
        "reg:squarederror": ("identity", "margin"),
        "reg:linear": ("identity", "margin"),  # the name of reg:squarederror before 0.90
        "reg:squaredlogerror": ("identity", "margin"),
        "reg:pseudohubererror": ("identity", "margin"),
        "reg:absoluteerror": ("identity", "margin"),
        "reg:quantileerror": ("identity", "margin"),
        "reg:logistic": ("logistic", "probability"),
        "reg:gamma": ("exp", "exponential"),
        "reg:tweedie": ("exp", "exponential"),
        "count:poisson": ("exp", "exponential"),
        "survival:cox": ("exp", "exponential"),
        "survival:aft": ("exp", "exponential"),
        "binary:logistic": ("logistic", "probability"),
        "binary:logitraw": ("identity", "margin"),
        "binary:hinge": ("hinge", "margin"),
        "multi:softprob": ("softmax", "margin"),
        "multi:softmax": ("argmax", "margin"),
        "rank:pairwise": ("identity", "margin"),
        "rank:ndcg": ("identity", "margin"),
        "rank:map": ("identity", "margin"),
    }
)
"""Objective -> what makes predictions of margins, and the scale in which files store `base_score`."""

_FEATURE_TYPES: Final = ("int", "float", "i", "q", "c")
_TREE_MEMBERS: Final = (
    "default_left", "id", "left_children", "parents", "right_children", "split_conditions", "split_indices",
    "tree_param",
)  # fmt: skip
_CATEGORY_MEMBERS: Final = (
    "categories_nodes", "categories_segments", "categories_sizes", "categories",
)  # fmt: skip
_TREE_OPTIONAL: Final = (
    "base_weights", "leaf_child_counts", "leaf_weights", "loss_changes", "split_type", "sum_hessian",
    *_CATEGORY_MEMBERS,
)  # fmt: skip
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,4})?")
_MAX_WRAPPER_VALUES: Final = 10_000
"""Values in the state that the scikit-learn classes leave in a file: about 40, one a class label."""

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Learner:
    """What trees and linear models share. Arrays are read-only."""

    format: str
    objective: str
    link: Link
    features: int
    outputs: int
    """Margins of one row: classes, targets or quantiles; 1 for a single one."""
    base_score: Floats
    """[outputs]: where every row's sum begins, on `base_scale`."""
    base_scale: BaseScale
    feature_names: tuple[str, ...]
    categorical_columns: tuple[int, ...]
    notes: tuple[tuple[str, NoteValue], ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Forest:
    """A gbtree or DART model: the margins are the base score plus what one leaf of every tree adds."""

    learner: Learner
    trees: Trees
    tree_outputs: Ints
    """Per tree, the output its leaves add to; 0 where leaves are vectors and add to all."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Linear:
    """A gblinear model: a margin is base + bias + the sum of weight times feature; NaN adds nothing."""

    learner: Learner
    weights: Floats
    """[features, outputs]."""
    bias: Floats
    """[outputs]."""


def parse_xgboost(
    data: bytes | bytearray | memoryview, *, format: str, limits: AdmissionLimits
) -> Forest | Linear:
    """Reads and proves a model; `format` is "xgboost-json" or "xgboost-ubj".

    1. The bytes are no more than the limit, and JSON or UBJSON within the limits (`tree_json`).
    2. The version is one whose files are known here, and no object has a member that is not known.
    3. The objective is on the list; classes, targets and features are within the limits and agree.
    4. `base_score` has one number or one for each output, finite and in the objective's domain.
    5. Feature names and types, if there are any, are one a column, and well formed.
    6. gblinear: trained; one finite weight for each feature and output, and a bias.
    7. Trees: there is one; `num_trees`, `tree_info`, `iteration_indptr`, `weight_drop` and ids agree.
    8. Every tree is a tree, and not deeper than `MAX_TREE_DEPTH`.
    9. Split features, thresholds, category sets and leaf values are in range and finite.

    A bytearray is emptied once it was read.

    Raises:
        MalformedInput: not the format, or a member is missing or of the wrong type (codes `tree_*`,
            `tree_member_*`, `tree_member_number`).
        AdmissionRefused: readable, but unknown here or contradictory (codes `xgboost_*`).
        LimitExceeded: more than `limits` (codes `model_too_large`, `tree_too_*`, `xgboost_too_*`).
    """
    if len(data) > limits.model_bytes:
        raise LimitExceeded(f"expected at most {limits.model_bytes} bytes", code="model_too_large")
    read = parse_json if format == "xgboost-json" else parse_ubj
    planted = _Planted(limits)
    trail = {"learner": {"gradient_booster": dict.fromkeys(("model", "gbtree"), planted.trail)}}
    document = read(data, nesting=limits.nesting, values=limits.values, trail=trail)
    if isinstance(data, bytearray):
        data.clear()  # all that is needed of it was read, and what is made of it is larger than it
    root = object_member(document, "model")
    check_members(root, "model", required=("learner", "version"))
    version = _version(root["version"])
    members = object_member(root["learner"], "learner")
    check_members(
        members,
        "learner",
        required=("gradient_booster", "learner_model_param", "objective"),
        optional=("attributes", "feature_names", "feature_types"),
    )
    booster = object_member(members["gradient_booster"], "gradient_booster")
    name = text_member(booster, "gradient_booster", "name")
    learner = _learner(members, format=format, limits=limits)
    learner = replace(learner, notes=(("booster", name), ("xgboost_version", version), *learner.notes))
    match name:
        case "gblinear":
            return _linear(booster, learner)
        case "gbtree":
            check_members(booster, name, required=("name", "model"))
            return _forest(object_member(booster["model"], "model"), learner, planted, dropped=None)
        case "dart":
            # Up to 3.2 DART wraps a gbtree and keeps the weights beside it; in 3.4 they are in the model.
            check_members(booster, name, required=("name", "gbtree", "weight_drop"))
            inner = object_member(booster["gbtree"], "gbtree")
            check_members(inner, "gbtree", required=("name", "model"))
            return _forest(
                object_member(inner["model"], "model"), learner, planted, dropped=booster["weight_drop"]
            )
    raise AdmissionRefused("expected gbtree, dart or gblinear", code="xgboost_booster_unsupported")


def _version(value: object) -> str:
    parts = int_array(value, name="version").tolist()
    if len(parts) != 3 or min(parts) < 0:
        raise MalformedInput("version: expected three whole numbers", code="tree_member_type")
    if not (1, 0) <= (parts[0], parts[1]) <= NEWEST_VERSION:
        newest = ".".join(map(str, NEWEST_VERSION))
        _refuse(f"expected a file of XGBoost 1.0 to {newest}", code="xgboost_version_unsupported")
    return ".".join(map(str, parts))


def _learner(members: Mapping[str, Any], *, format: str, limits: AdmissionLimits) -> Learner:
    """Steps 3 to 5."""
    objective = object_member(members["objective"], "objective")
    name = text_member(objective, "objective", "name")
    if name not in OBJECTIVES:
        shown = name if re.fullmatch("[a-z0-9:_]{1,40}", name) else "of this model"
        _refuse(f"the objective {shown} is not one that is known here", code="xgboost_objective_unsupported")
    link, scale = OBJECTIVES[name]
    where = "learner_model_param"
    parameters = object_member(members[where], where)
    check_members(
        parameters,
        where,
        required=("base_score", "num_feature"),
        optional=("boost_from_average", "num_class", "num_target"),
    )
    features = whole_member(parameters, where, "num_feature")
    if features < 1:
        _refuse("expected at least one feature", code="xgboost_feature_count")
    _limit(features, limits.features, "features", code="xgboost_too_many_features")
    classes = whole_member(parameters, where, "num_class", default=0)
    targets = whole_member(parameters, where, "num_target", default=1)
    outputs = max(classes, targets, 1)
    _limit(outputs, limits.outputs, "outputs", code="xgboost_too_many_outputs")
    _check_outputs(objective, link, classes=classes, targets=targets)
    types = _feature_types(members, features)
    return Learner(
        format=format,
        objective=name,
        link=link,
        features=features,
        outputs=outputs,
        base_score=_base_score(text_member(parameters, where, "base_score"), scale, outputs),
        base_scale=scale,
        feature_names=_feature_names(members, features, limits.name_length),
        categorical_columns=tuple(column for column, kind in enumerate(types) if kind == "c"),
        notes=(
            ("objective", name),
            *((("classes", classes),) if classes > 1 else ()),
            *((("targets", targets),) if targets > 1 else ()),
            *_quantiles(objective, outputs),
            *((("feature_types", types),) if types else ()),
            *_attributes(object_member(members.get("attributes", {}), "attributes")),
        ),
    )


def _check_outputs(objective: Mapping[str, Any], link: Link, *, classes: int, targets: int) -> None:
    if classes > 1 and targets > 1:
        _refuse("expected several classes or several targets, not both", code="xgboost_outputs")
    if link not in ("softmax", "argmax"):
        return
    if classes < 2:
        _refuse("expected at least two classes for a multi: objective", code="xgboost_outputs")
    parameters = objective.get("softmax_multiclass_param")
    if parameters is not None:
        where = "softmax_multiclass_param"
        if whole_member(object_member(parameters, where), where, "num_class") != classes:
            _refuse("objective and learner disagree on the number of classes", code="xgboost_outputs")


def _base_score(text: str, scale: BaseScale, outputs: int) -> Floats:
    """`5E-1` up to 3.0, `[5E-1,...]` since; one number serves for all outputs."""
    numbers = _numbers(text)
    if len(numbers) not in (1, outputs):
        _refuse("base_score: expected one number, or one for each output", code="xgboost_base_score")
    scores = float_array(list(numbers), name="base_score")
    low, high = {"margin": (-np.inf, np.inf), "probability": (0, 1), "exponential": (0, np.inf)}[scale]
    if not (np.isfinite(scores) & (scores > low) & (scores < high)).all():
        _refuse(
            f"base_score: expected {scale} values, strictly within their range", code="xgboost_base_score"
        )
    return frozen(np.broadcast_to(scores, (outputs,)).copy())


def _numbers(text: str) -> tuple[float, ...]:
    """The numbers of `1E0` or `[1E0,2E0]`; () where it is neither."""
    parts = text[1:-1].split(",") if text[:1] == "[" and text[-1:] == "]" else [text]
    return tuple(map(float, parts)) if all(map(_NUMBER.fullmatch, parts)) else ()


def _feature_names(members: Mapping[str, Any], features: int, longest: int) -> tuple[str, ...]:
    names = list_member(members.get("feature_names", []), "feature_names")
    if not names:
        return ()
    # Names end up in logs, terminals and file names of people who did not make the model.
    fine = all(
        isinstance(name, str) and 0 < len(name) <= longest and name.isprintable() and "../" not in name
        for name in names
    )
    if not fine or len(names) != features or len(set(names)) != features:
        _refuse(
            f"feature_names: expected none, or {features} different printable names of at most {longest} "
            'characters without "../"',
            code="xgboost_feature_names",
        )
    return tuple(names)


def _feature_types(members: Mapping[str, Any], features: int) -> tuple[str, ...]:
    types = list_member(members.get("feature_types", []), "feature_types")
    if types and (len(types) != features or not all(kind in _FEATURE_TYPES for kind in types)):
        _refuse(
            f"feature_types: expected none, or {features} of {', '.join(_FEATURE_TYPES)}",
            code="xgboost_feature_types",
        )
    return tuple(types)


def _quantiles(objective: Mapping[str, Any], outputs: int) -> tuple[tuple[str, NoteValue], ...]:
    parameters = objective.get("quantile_loss_param")
    text = parameters.get("quantile_alpha") if isinstance(parameters, dict) else None
    quantiles = _numbers(text) if isinstance(text, str) else ()
    return (("quantiles", quantiles),) if len(quantiles) == outputs else ()


def _attributes(attributes: Mapping[str, Any]) -> tuple[tuple[str, NoteValue], ...]:
    """What training wrote down that a caller should know; free text: whatever is not understood is left out.

    `best_iteration` is where early stopping found the best score. `xgboost.Booster.predict` uses all
    iterations unless it is given an `iteration_range`, and so does this; XGBoost's scikit-learn classes stop
    after it. `missing` is the value that those classes took for "missing" (1.x wrote it into the file); here
    only NaN is, so a caller has to replace it first.
    """
    notes: list[tuple[str, NoteValue]] = []
    best = attributes.get("best_iteration")
    if isinstance(best, str) and re.fullmatch("[0-9]{1,9}", best):
        notes.append(("best_iteration", int(best)))
    wrapper = attributes.get("scikit_learn")
    if isinstance(wrapper, str):
        try:
            state = parse_json(wrapper.encode("utf-8", "replace"), nesting=8, values=_MAX_WRAPPER_VALUES)
        except Error:
            state = None
        missing = state.get("missing") if isinstance(state, dict) else None
        if isinstance(missing, int | float) and not isinstance(missing, bool) and math.isfinite(missing):
            notes.append(("missing", missing))
    return tuple(notes)


def _linear(booster: Mapping[str, Any], learner: Learner) -> Linear:
    """Step 6."""
    check_members(booster, "gblinear", required=("name", "model"))
    model = object_member(booster["model"], "model")
    check_members(model, "model", required=("weights",), optional=("boosted_rounds",))
    if model.get("boosted_rounds") == 0:
        _refuse_untrained()
    weights = float_array(model["weights"], name="weights")
    if weights.size != (learner.features + 1) * learner.outputs or not np.isfinite(weights).all():
        _refuse(
            f"weights: expected {learner.features} + 1 (bias) times {learner.outputs} finite numbers",
            code="xgboost_linear_weights",
        )
    table = frozen(weights.reshape(learner.features + 1, learner.outputs))
    return Linear(learner=learner, weights=table[:-1], bias=table[-1])


def _forest(model: Mapping[str, Any], learner: Learner, planted: _Planted, *, dropped: object) -> Forest:
    """Steps 7 to 9. `dropped` are DART's weights where they stand beside the model."""
    check_members(
        model,
        "model",
        required=("gbtree_model_param", "tree_info", "trees"),
        optional=("cats", "iteration_indptr", "weight_drop"),
    )
    trees = list_member(model["trees"], "trees")  # None for each that was planted
    if not trees:
        _refuse_untrained()
    parameters = object_member(model["gbtree_model_param"], "gbtree_model_param")
    check_members(
        parameters,
        "gbtree_model_param",
        required=("num_trees",),
        optional=("num_parallel_tree", "size_leaf_vector"),
    )
    if whole_member(parameters, "gbtree_model_param", "num_trees") != len(trees):
        _refuse("num_trees is not the number of trees", code="xgboost_tree_count")
    outputs = int_array(model["tree_info"], name="tree_info")
    if outputs.size != len(trees) or ((outputs < 0) | (outputs >= learner.outputs)).any():
        _refuse("tree_info: expected one output for each tree", code="xgboost_tree_info")
    iterations = _iterations(model, len(trees))
    weights = _tree_weights(model, len(trees), dropped)
    width = planted.width(learner)
    if width > 1 and outputs.any():
        _refuse("tree_info: expected 0 where leaves are vectors", code="xgboost_tree_info")
    # XGBoost trains a tree for every output; and a small file must not stand for answers of any width.
    if width == 1 and np.unique(outputs).size != learner.outputs:
        _refuse("tree_info: expected a tree for every output", code="xgboost_tree_info")
    proven = prove_trees(planted.trees, features=learner.features, width=width, weights=weights)
    columns = {*learner.categorical_columns, *proven.features[proven.category_count > 0].tolist()}
    notes: tuple[tuple[str, NoteValue], ...] = (
        ("trees", len(trees)),
        *((("iterations", iterations),) if iterations is not None else ()),
        ("iterations_used", "all, as xgboost.Booster.predict does without iteration_range"),
    )
    learner = replace(learner, categorical_columns=tuple(sorted(columns)), notes=(*learner.notes, *notes))
    return Forest(learner=learner, trees=proven, tree_outputs=frozen(outputs))


def _iterations(model: Mapping[str, Any], trees: int) -> int | None:
    """The number of boosting iterations; files before 2.0 do not say it."""
    if "iteration_indptr" not in model:
        return None
    bounds = int_array(model["iteration_indptr"], name="iteration_indptr")
    if not bounds.size or bounds[0] != 0 or bounds[-1] != trees or (np.diff(bounds) < 0).any():
        _refuse(
            "iteration_indptr: expected rising numbers from 0 to num_trees", code="xgboost_iteration_indptr"
        )
    return bounds.size - 1


def _tree_weights(model: Mapping[str, Any], trees: int, dropped: object) -> Floats:
    if "weight_drop" in model:
        if dropped is not None:
            _refuse("weight_drop stands twice", code="xgboost_weight_drop")
        dropped = model["weight_drop"]
    if dropped is None:
        return np.ones(trees, dtype=np.float32)
    weights = float_array(dropped, name="weight_drop")
    if weights.size != trees or not np.isfinite(weights).all():
        _refuse("weight_drop: expected a finite number for each tree", code="xgboost_weight_drop")
    return weights


class _Planted:
    """Trees, read one after the other as the reader of the document comes to them."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self.trees = RawTrees()
        self.trail: Mapping[str, Any] = {"trees": self._take, "model": {"trees": self._take}}
        self._limits = limits
        self._nodes = self._categories = 0

    def _take(self, value: object) -> None:
        index = len(self.trees)
        _limit(index + 1, self._limits.trees, "trees", code="xgboost_too_many_trees")
        tree = _read_tree(object_member(value, f"trees[{index}]"), index)
        self._nodes += tree.size
        self._categories += tree.categories.size
        self._within(1)
        self.trees.add(tree)

    def _within(self, copies: int) -> None:
        _limit(self._nodes * copies, self._limits.tree_nodes, "nodes", code="xgboost_too_many_nodes")
        _limit(
            self._categories * copies,
            self._limits.categories,
            "categories",
            code="xgboost_too_many_categories",
        )

    def width(self, learner: Learner) -> int:
        """How many numbers a leaf has: one, or one for each output; the same in all trees."""
        trees = self.trees
        trees.join()
        for index, width in enumerate(trees.widths):
            if width not in (1, learner.outputs):
                message = "a leaf has neither one value nor one for each output"
                refuse_tree(index, message, code="xgboost_leaf_vector")
            if (width, trees.leaf_rows[index]) != (trees.widths[0], trees.leaf_rows[0]):
                refuse_tree(index, "leaves of another kind than tree 0", code="xgboost_leaf_vector")
        # A vector leaf on categories becomes one tree for each output in ONNX.
        self._within(trees.widths[0])
        return trees.widths[0]


def _read_tree(tree: Mapping[str, Any], index: int) -> RawTree:
    where = f"trees[{index}]"
    check_members(tree, where, required=_TREE_MEMBERS, optional=_TREE_OPTIONAL)
    # XGBoost puts trees in the order of their ids; here the two orders have to be one.
    if type(tree["id"]) is not int or tree["id"] != index:
        refuse_tree(index, "the id is not the place in the list", code="xgboost_tree_id")
    parameters = object_member(tree["tree_param"], f"{where}.tree_param")
    check_members(
        parameters,
        f"{where}.tree_param",
        required=("num_nodes", "size_leaf_vector"),
        optional=("num_deleted", "num_feature"),
    )
    size = whole_member(parameters, where, "num_nodes")
    width = max(whole_member(parameters, where, "size_leaf_vector"), 1)

    def ints(name: str) -> Ints:
        return _sized(int_array(tree[name], name=f"{where}.{name}"), size, index, name)

    conditions = float_array(tree["split_conditions"], name=f"{where}.split_conditions")
    # Vector leaves: a row a node in `base_weights` up to 3.1, a row a leaf in `leaf_weights` from 3.2 on.
    rows = "leaf_weights" if "leaf_weights" in tree else "base_weights"
    return RawTree(
        size,
        whole_member(parameters, where, "num_deleted", default=0),
        ints("left_children"),
        ints("right_children"),
        ints("parents"),
        ints("split_indices"),
        _sized(conditions, size, index, "split_conditions"),
        ints("default_left"),
        ints("split_type") if "split_type" in tree else np.zeros(size, dtype=np.int64),
        *_read_categories(tree, index),
        width,
        float_array(tree.get(rows), name=f"{where}.{rows}") if width > 1 else None,
        width > 1 and rows == "leaf_weights",
    )


def _read_categories(tree: Mapping[str, Any], index: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Nodes, where their categories begin, how many they are, and the categories, cut without gaps.

    Overlapping segments would let a small file stand for categories without number.
    """
    nodes, starts, sizes, categories = (
        int_array(tree.get(name, []), name=f"trees[{index}].{name}") for name in _CATEGORY_MEMBERS
    )

    if not nodes.size + starts.size + sizes.size + categories.size:
        return nodes, starts, sizes, categories

    def refuse(message: str) -> NoReturn:
        refuse_tree(index, message, code="xgboost_categories")

    if not nodes.size == starts.size == sizes.size:
        refuse("not as many category segments as nodes")
    if ((sizes < 1) | (sizes > categories.size)).any() or sizes.sum() != categories.size:
        refuse("category sizes do not add up to the categories")
    if (starts != np.cumsum(sizes) - sizes).any():
        refuse("category segments are not one after the other")
    if ((categories < 0) | (categories >= MAX_CATEGORY)).any():
        refuse("a category is out of range")
    rising = np.diff(categories) > 0
    rising[starts[1:] - 1] = True  # between the sets of two nodes
    if not rising.all():
        refuse("a node's categories are not in rising order")
    return nodes, starts, sizes, categories


def _refuse_untrained() -> NoReturn:
    # From 3.1 on XGBoost adds the base score of such a model as it is, before 3.1 on the margin scale.
    _refuse(
        "expected a trained model: without one iteration its predictions differ from version to version",
        code="xgboost_untrained",
    )


def _sized(array: npt.NDArray[_Number], size: int, tree: int, name: str) -> npt.NDArray[_Number]:
    if array.size != size or not size:
        refuse_tree(tree, f"{name} has not one entry for each node", code="xgboost_tree_size")
    return array


def _limit(count: int, limit: int, what: str, *, code: str) -> None:
    if count > limit:
        raise LimitExceeded(f"expected at most {limit} {what}, got {count}", code=code)


def _refuse(message: str, *, code: str) -> NoReturn:
    raise AdmissionRefused(message, code=code)
