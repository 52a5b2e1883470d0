"""Operators of ai.onnx.ml: trees proven to be trees, tables of the sizes that their kernels index with.

As XGBoost's forests are proven in `forest` (`docs/spec/admission.md` §9): children exist, every node but the
root has one parent, every node is reached from a root, leaves are where weights are, features and targets are
in range, weights are numbers. All trees of a node are proven together, on flat arrays.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from strongroom.models.forest import MAX_TREE_DEPTH
from strongroom.models.sizes import Expr
from strongroom.models.values import Dims, Op, T, Value, fixed, refuse, same, same_dims

Ints = npt.NDArray[np.signedinteger[Any]]
MAX_CLASSES: Final = 10_000
"""Classes of a classifier, and categories of an encoder."""
_MEMBER: Final = 6


def _tree(message: str) -> NoReturn:
    refuse(message, "onnx_tree")


def _table(message: str) -> NoReturn:
    refuse(message, "onnx_table")


def _width(op: Op) -> int:
    """Columns of the input, which have to be known: features are indexed without asking."""
    dims = op.dims(0, least=1)
    if dims is None or len(dims) > 2 or isinstance(dims[-1], Expr):
        _table(f"{op.name}: expected a matrix with a known number of columns")
    return int(dims[-1])


def _rows(op: Op, *last: int) -> Dims:
    dims = op.dims(0, least=1) or (1, 1)  # `_width` refused that
    return (dims[0] if len(dims) == 2 else 1, *last)


def _ints(op: Op, name: str) -> Ints:
    values = op.attr(name, ())
    return np.frombuffer(values, np.int32) if isinstance(values, array) else np.array(values, dtype=np.int64)


def _numbers(op: Op, name: str) -> npt.NDArray[Any]:
    """A list of floats, or the tensor that stands for it; no NaN."""
    message = op.attr(f"{name}_as_tensor")
    if message is None and hasattr(op.attr(name), "dims"):
        message = op.attr(name)
    if message is not None and op.attr(name) is not None and message is not op.attr(name):
        _tree(f"{op.name}: {name} stands twice")
    if message is None:
        row: npt.NDArray[Any] = np.array(op.attr(name, ()), dtype=np.float64)
    else:
        if message.data_type not in (T.FLOAT, T.DOUBLE, T.FLOAT16):
            _tree(f"{op.name}: {name} is no tensor of floats")
        row = numpy_helper.to_array(message).reshape(-1)
    if np.isnan(row).any():
        _tree(f"{op.name}: {name} has NaN in it")
    return row


def _labels(op: Op, *names: str) -> tuple[int, int]:
    """How many class labels, and their type."""
    lists = [(name, op.attr(name)) for name in names if op.attr(name)]
    if len(lists) != 1 or len(lists[0][1]) > MAX_CLASSES:
        _table(f"{op.name}: expected one list of at most {MAX_CLASSES} class labels")
    if len(set(lists[0][1])) != len(lists[0][1]):
        _table(f"{op.name}: a class label twice")
    return len(lists[0][1]), T.STRING if lists[0][0].endswith("strings") else T.INT64


# Trees


def _targets(op: Op) -> int:
    count: int = op.attr("n_targets", 1)
    if not 1 <= count <= MAX_CLASSES:
        _tree(f"{op.name}: expected 1 to {MAX_CLASSES} targets")
    return count


def prove(name: str, children: Sequence[Ints], leaf: npt.NDArray[np.bool_], roots: Ints) -> None:
    """Each node but the roots has one parent, and all are reached from the roots within `MAX_TREE_DEPTH` levels.

    `children`: two arrays with the number of a node's child, meaningless in leaves.
    """
    size = leaf.size
    below = np.concatenate([child[~leaf] for child in children])
    if below.size and (below.min() < 0 or below.max() >= size):
        _tree(f"{name}: a child does not exist")
    named = np.bincount(below, minlength=size)
    named[roots] += 1
    if (named > 1).any():
        _tree(f"{name}: a node has two parents, or a root has one")
    level, seen = roots, roots.size
    for _ in range(MAX_TREE_DEPTH + 1):
        level = level[~leaf[level]]
        if not level.size:
            break
        level = np.concatenate([child[level] for child in children])
        seen += level.size
    else:
        _tree(f"{name}: deeper than {MAX_TREE_DEPTH} levels")
    if seen != size:
        _tree(f"{name}: a node is not reached from a root")


def ensemble(op: Op) -> list[Value]:
    """TreeEnsembleClassifier and TreeEnsembleRegressor: lists with an entry for each node and each leaf's weight."""
    width = _width(op)
    if op.memo.get("width") != width:
        op.memo.update(
            zip(("trees", "weights", "count", "kind"), _prove_ensemble(op, width), strict=True), width=width
        )
    total, weights, count, kind = (op.memo[name] for name in ("trees", "weights", "count", "kind"))
    op.spend(op.count(_rows(op)) * (total * 4 * MAX_DEPTH_COST + weights // max(1, total) * 2), 0)
    if op.name == "TreeEnsembleRegressor":
        return [op.made(_rows(op, count), kind=kind)]
    scores = op.made(_rows(op, max(2, count)), output=1, kind=T.FLOAT)
    return [op.made(_rows(op), kind=kind), scores][: len(op.outputs)]


def _prove_ensemble(op: Op, width: int) -> tuple[int, int, int, int]:
    """How many trees and weights, how many targets or classes, the type of the first output."""
    names = ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids")
    trees, nodes, features, yes, no = (_ints(op, f"nodes_{name}") for name in names)
    modes, values = op.attr("nodes_modes", ()), _numbers(op, "nodes_values")
    size = trees.size
    extra = (_ints(op, "nodes_missing_value_tracks_true"), _numbers(op, "nodes_hitrates"))
    if not size or any(len(x) != size for x in (nodes, features, yes, no, modes, values)):
        _tree(f"{op.name}: lists of nodes of different lengths, or empty")
    if any(x.size not in (0, size) for x in extra):
        _tree(f"{op.name}: lists of nodes of different lengths")
    for numbers in (trees, nodes):
        if numbers.min() < 0 or numbers.max() >= 1 << 31:
            _tree(f"{op.name}: the number of a tree or node is out of range")
    key = (trees.astype(np.int64) << 31) | nodes
    # Written in order, as most are: then there is nothing to sort, and no second copy of it.
    order = None if (np.diff(key) > 0).all() else np.argsort(key, kind="stable")
    ordered = key if order is None else key[order]
    if (np.diff(ordered) == 0).any():
        _tree(f"{op.name}: a node twice")

    def place(tree: Ints, node: Ints, what: str) -> Ints:
        if node.size and (node.min() < 0 or node.max() >= 1 << 31 or tree.min() < 0 or tree.max() >= 1 << 31):
            _tree(f"{op.name}: {what} does not exist")
        wanted = (tree.astype(np.int64) << 31) | node
        at = np.minimum(np.searchsorted(ordered, wanted), size - 1)
        if (ordered[at] != wanted).any():
            _tree(f"{op.name}: {what} does not exist")
        return np.asarray(at if order is None else order[at])

    leaf = np.fromiter((mode == b"LEAF" for mode in modes), np.bool_, size)
    if (~leaf & ((features < 0) | (features >= width))).any():
        _tree(f"{op.name}: splits on a feature that the input does not have")
    children = []
    for child in (yes, no):
        full = np.zeros(size, dtype=np.int32)  # of at most so many nodes as there are attributes' entries
        full[~leaf] = place(trees[~leaf], child[~leaf], "a child")
        children.append(full)
    first = np.concatenate(([True], trees[1:] != trees[:-1]))
    if np.unique(trees).size != first.sum():
        _tree(f"{op.name}: the nodes of a tree do not stand together")
    # onnxruntime takes the first node of each tree for its root.
    prove(op.name, children, leaf, np.flatnonzero(first))

    classes = op.name == "TreeEnsembleClassifier"
    prefix = "class" if classes else "target"
    of_tree, of_node, ids = (_ints(op, f"{prefix}_{name}") for name in ("treeids", "nodeids", "ids"))
    weights = _numbers(op, f"{prefix}_weights")
    if not of_tree.size == of_node.size == ids.size == weights.size:
        _tree(f"{op.name}: lists of weights of different lengths")
    if not leaf[place(of_tree, of_node, "the node of a weight")].all():
        _tree(f"{op.name}: a weight stands at a node that is no leaf")
    if classes:
        count, kind = _labels(op, "classlabels_int64s", "classlabels_strings")
    else:
        count, kind = _targets(op), T.FLOAT
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        _tree(f"{op.name}: a target or class that does not exist")
    if not np.isfinite(weights).all():
        _tree(f"{op.name}: a weight is infinite")
    if _numbers(op, "base_values").size not in (0, 1, count):
        _tree(f"{op.name}: base_values has not one number for each output")
    return int(first.sum()), weights.size, count, kind


MAX_DEPTH_COST: Final = 16
"""Comparisons that one row of one tree counts for."""


def tree_ensemble(op: Op) -> list[Value]:
    """TreeEnsemble of version 5: splits and leaves in lists of their own."""
    width = _width(op)
    if op.memo.get("width") != width:
        op.memo.update(trees=_prove_tree_ensemble(op, width), width=width)
    op.spend(op.count(_rows(op)) * op.memo["trees"] * 4 * MAX_DEPTH_COST, 0)
    return [op.made(_rows(op, op.attr("n_targets", 1)), kind=op.need(0).kind)]


def _prove_tree_ensemble(op: Op, width: int) -> int:
    """How many trees."""
    features, yes, no = (_ints(op, f"nodes_{x}") for x in ("featureids", "truenodeids", "falsenodeids"))
    yes_leaf, no_leaf, roots = (
        _ints(op, "nodes_trueleafs"),
        _ints(op, "nodes_falseleafs"),
        _ints(op, "tree_roots"),
    )
    splits, weights = _numbers_or_nan(op, "nodes_splits"), _numbers(op, "leaf_weights")
    modes = numpy_helper.to_array(op.attr("nodes_modes")).reshape(-1)
    targets, size = _ints(op, "leaf_targetids"), features.size
    if not size or any(len(x) != size for x in (yes, no, yes_leaf, no_leaf, splits, modes)):
        _tree("TreeEnsemble: lists of nodes of different lengths, or empty")
    if op.attr("nodes_modes").data_type != T.UINT8 or modes.max() > _MEMBER:
        _tree("TreeEnsemble: a mode that does not exist")
    for extra in (_ints(op, "nodes_missing_value_tracks_true"), _numbers(op, "nodes_hitrates")):
        if extra.size not in (0, size):
            _tree("TreeEnsemble: lists of nodes of different lengths")
    if targets.size != weights.size or not np.isfinite(weights).all():
        _tree("TreeEnsemble: not one finite weight for each leaf")
    count = _targets(op)
    if not targets.size or targets.min() < 0 or targets.max() >= count:
        _tree("TreeEnsemble: a target that does not exist")
    if features.min() < 0 or features.max() >= width:
        _tree("TreeEnsemble: splits on a feature that the input does not have")
    if not roots.size or roots.min() < 0 or roots.max() >= size or np.unique(roots).size != roots.size:
        _tree("TreeEnsemble: a root that does not exist, or twice")
    for flags in (yes_leaf, no_leaf):
        if not np.isin(flags, (0, 1)).all():
            _tree("TreeEnsemble: a flag that is neither 0 nor 1")
    # Nodes first, leaves after them, so that both have one numbering.
    children = []
    for child, is_leaf in ((yes, yes_leaf), (no, no_leaf)):
        limit = np.where(is_leaf == 1, targets.size, size)
        if ((child < 0) | (child >= limit)).any():
            _tree("TreeEnsemble: a child does not exist")
        children.append(np.concatenate((child + is_leaf * size, np.zeros(targets.size, dtype=np.int64))))
    leaf = np.concatenate((np.zeros(size, dtype=np.bool_), np.ones(targets.size, dtype=np.bool_)))
    prove("TreeEnsemble", children, leaf, roots)
    members = op.attr("membership_values")
    sets = int((modes == _MEMBER).sum())
    ends = 0 if members is None else int(np.isnan(numpy_helper.to_array(members).astype(np.float64)).sum())
    if ends != sets and not (members is None and not sets):
        _tree("TreeEnsemble: not one set for each node that asks for membership")
    return int(roots.size)


def _numbers_or_nan(op: Op, name: str) -> npt.NDArray[Any]:
    """The splits; those of membership nodes have no number."""
    message = op.attr(name)
    if message.data_type not in (T.FLOAT, T.DOUBLE, T.FLOAT16):
        _tree(f"TreeEnsemble: {name} is no tensor of floats")
    row: npt.NDArray[Any] = numpy_helper.to_array(message).reshape(-1)
    return row


# Linear models and support vectors


def _finite(op: Op, name: str) -> npt.NDArray[np.float64]:
    row = np.array(op.attr(name, ()), dtype=np.float64)
    if not np.isfinite(row).all():
        _table(f"{op.name}: {name} has a number that is not finite")
    return row


def linear_classifier(op: Op) -> list[Value]:
    """A row of coefficients for each class, or one for two."""
    width = _width(op)
    count, kind = _labels(op, "classlabels_ints", "classlabels_strings")
    coefficients, intercepts = _finite(op, "coefficients"), _finite(op, "intercepts")
    rows = intercepts.size or (coefficients.size // width if width else 0)
    # Some have more coefficients than are read; fewer would be read beyond their end.
    if (
        not width
        or not rows
        or coefficients.size < rows * width
        or not (rows == count or (rows, count) == (1, 2))
    ):
        _table("LinearClassifier: not one coefficient for each class and column")
    op.spend(op.count(_rows(op, rows)) * (2 * width + 20), 0)
    return [op.made(_rows(op), kind=kind), op.made(_rows(op, max(rows, count)), output=1, kind=T.FLOAT)][
        : len(op.outputs)
    ]


def linear_regressor(op: Op) -> list[Value]:
    """A row of coefficients for each target."""
    width, count = _width(op), op.attr("targets", 1)
    if not 1 <= count <= MAX_CLASSES:
        _table(f"LinearRegressor: expected 1 to {MAX_CLASSES} targets")
    if _finite(op, "coefficients").size != count * width or _finite(op, "intercepts").size not in (0, count):
        _table("LinearRegressor: not one coefficient for each target and column")
    op.spend(op.count(_rows(op, count)) * (2 * width + 20), 0)
    return [op.made(_rows(op, count), kind=T.FLOAT)]


def _kernel(op: Op) -> None:
    if _finite(op, "kernel_params").size not in (0, 3):
        _table(f"{op.name}: kernel_params are none or three")


def svm_classifier(op: Op) -> list[Value]:
    """Support vectors, class after class; without any, a linear model."""
    width = _width(op)
    count, kind = _labels(op, "classlabels_ints", "classlabels_strings")
    vectors, coefficients, rho = (_finite(op, name) for name in ("support_vectors", "coefficients", "rho"))
    per_class = _ints(op, "vectors_per_class")
    _kernel(op)
    pairs = count * (count - 1) // 2
    if per_class.size:
        if per_class.size != count or per_class.min() < 0 or per_class.max() > 1 << 31 or count < 2:
            _table("SVMClassifier: vectors_per_class has not one number for each class")
        total = int(per_class.sum())
        if vectors.size != total * width or coefficients.size != (count - 1) * total or rho.size != pairs:
            _table("SVMClassifier: not the vectors and coefficients that vectors_per_class says")
    else:
        total = 0
        if (
            vectors.size
            or coefficients.size not in (count * width, width)
            or rho.size not in (1, count, pairs)
        ):
            _table("SVMClassifier: not one coefficient for each class and column")
    for name in ("prob_a", "prob_b"):
        if _finite(op, name).size not in (0, pairs) or len(op.attr(name, ())) != len(op.attr("prob_a", ())):
            _table("SVMClassifier: prob_a and prob_b are not one number for each pair of classes")
    op.spend(op.count(_rows(op)) * (total * (2 * width + 20) + pairs * 64 + count * width * 2), 0)
    columns = count if per_class.size and op.attr("prob_a") else max(count, pairs)
    return [op.made(_rows(op), kind=kind), op.made(_rows(op, columns), output=1, kind=T.FLOAT)][
        : len(op.outputs)
    ]


def svm_regressor(op: Op) -> list[Value]:
    """The same with one number as the result."""
    width, supports = _width(op), op.attr("n_supports", 0)
    vectors, coefficients = _finite(op, "support_vectors"), _finite(op, "coefficients")
    _kernel(op)
    wanted = (supports * width, supports) if supports else (0, width)
    if (vectors.size, coefficients.size) != wanted or _finite(op, "rho").size != 1:
        _table("SVMRegressor: not the vectors and coefficients that n_supports says")
    op.spend(op.count(_rows(op)) * (max(1, supports) * (2 * width + 20)), 0)
    return [op.made(_rows(op, 1), kind=T.FLOAT)]


# Encoders


def scaler(op: Op) -> list[Value]:
    """(x - offset) * scale, one number or one a column."""
    width = _width(op)
    offset, scale = _finite(op, "offset"), _finite(op, "scale")
    if offset.size != scale.size or scale.size not in (1, width):
        _table("Scaler: offset and scale are one number, or one for each column")
    op.spend(2 * op.count(op.need(0).dims), 0)
    return [op.made(op.need(0).dims, kind=T.FLOAT)]


def imputer(op: Op) -> list[Value]:
    """Replaces one value, by one or by one a column."""
    width = _width(op)
    lists = [op.attr(name) for name in ("imputed_value_floats", "imputed_value_int64s") if op.attr(name)]
    if len(lists) != 1 or len(lists[0]) not in (1, width):
        _table("Imputer: expected one list of one value, or one for each column")
    return same(op)


def normalizer(op: Op) -> list[Value]:
    """Rows of norm 1."""
    _width(op)
    op.spend(4 * op.count(op.need(0).dims), 0)
    return [op.made(op.need(0).dims, kind=T.FLOAT)]


def encoder(op: Op) -> list[Value]:
    """LabelEncoder and CategoryMapper: a list of keys and one of values."""
    pairs = (
        [(name, op.attr(name)) for name in op.attributes if name.startswith(prefix) and op.attr(name)]
        for prefix in (("keys_", "values_") if op.name == "LabelEncoder" else ("cats_int64s", "cats_strings"))
    )
    keys, values = pairs
    if len(keys) > 1 or len(values) > 1:
        _table(f"{op.name}: two lists of keys or values")
    if op.name == "LabelEncoder" and op.version < 2:
        count, longest = (
            len(op.attr("classes_strings", ())),
            max(map(len, op.attr("classes_strings", ())), default=0),
        )
        kind = T.INT64 if op.need(0).kind == T.STRING else T.STRING
        if not count >= 1:
            _table("LabelEncoder: no classes")
        longest = max(longest, len(op.attr("default_string", b"")))
        return [Value(kind=kind, dims=op.need(0).dims, public=op.public, constant=op.constant, text=longest)]
    if not keys or not values or _length(keys[0][1]) != _length(values[0][1]):
        _table(f"{op.name}: not as many keys as values")
    if op.name == "CategoryMapper":
        kind = T.INT64 if op.need(0).kind == T.STRING else T.STRING
        texts: Sequence[Any] = values[0][1]
    else:
        kinds = {"int64s": T.INT64, "strings": T.STRING, "floats": T.FLOAT}
        name = values[0][0].removeprefix("values_")
        kind = kinds[name] if name in kinds else values[0][1].data_type
        given = keys[0][0].removeprefix("keys_")
        if (kinds[given] if given in kinds else keys[0][1].data_type) != op.need(0).kind:
            _table("LabelEncoder: keys of another type than the input")
        texts = values[0][1] if name == "strings" else getattr(values[0][1], "string_data", ())
    longest = max((len(text) for text in texts), default=0) if kind == T.STRING else 0
    longest = max(longest, len(op.attr("default_string", b"_Unused")))
    op.spend(20 * op.count(op.need(0).dims), 0)
    return [Value(kind=kind, dims=op.need(0).dims, public=op.public, constant=op.constant, text=longest)]


def _length(values: Any) -> int:
    return int(np.prod(values.dims)) if hasattr(values, "dims") else len(values)


def one_hot_encoder(op: Op) -> list[Value]:
    """A column for each category."""
    count, _ = _labels(op, "cats_int64s", "cats_strings")
    dims = op.need(0).dims
    made = None if dims is None else (*dims, count)
    op.spend(op.count(made), 0)
    return [op.made(made, kind=T.FLOAT)]


def extractor(op: Op) -> list[Value]:
    """Columns by number: the numbers have to be known."""
    width, picks = _width(op), op.numbers(1)
    if picks is None:
        where = op.need(1).dims
        if where is None or fixed(where) is None or not op.need(1).constant:
            # A label looked up by the place of the largest score: checked by the kernel against the columns.
            count = op.sizes.product(where or (op.unknown(None, ""),))
            return [op.made((*_rows(op), count))]
        _table("ArrayFeatureExtractor: too many columns")
    if not picks or min(picks) < 0 or max(picks) >= width:
        _table("ArrayFeatureExtractor: a column that is not there")
    return [op.made(_rows(op, len(picks)))]


def feature_vectorizer(op: Op) -> list[Value]:
    """Matrices side by side."""
    widths = op.attr("inputdimensions", ())
    if len(widths) != len(op.inputs):
        _table("FeatureVectorizer: not one width for each input")
    for number, width in enumerate(widths):
        dims = op.dims(number, exactly=2)
        if dims is not None:
            same_dims(op, dims[1], width, "inputdimensions and the input's columns")
    first = op.dims(0)
    rows = first[0] if first is not None else op.unknown(None, "")
    if not op.sizes.filled(rows):
        refuse("FeatureVectorizer: rows of which there may be none")  # that ends the process
    made = (rows, sum(widths))
    op.spend(op.count(made), 0)
    return [op.made(made, kind=T.FLOAT)]


RULES: Final[dict[str, Callable[[Op], list[Value]]]] = {
    "TreeEnsembleClassifier": ensemble, "TreeEnsembleRegressor": ensemble, "TreeEnsemble": tree_ensemble,
    "LinearClassifier": linear_classifier, "LinearRegressor": linear_regressor,
    "SVMClassifier": svm_classifier, "SVMRegressor": svm_regressor, "Scaler": scaler, "Imputer": imputer,
    "Normalizer": normalizer, "Binarizer": same, "LabelEncoder": encoder, "CategoryMapper": encoder,
    "OneHotEncoder": one_hot_encoder, "ArrayFeatureExtractor": extractor,
    "FeatureVectorizer": feature_vectorizer,
}  # fmt: skip
"""Operator of ai.onnx.ml -> its rule. ZipMap has none: `onnx` cuts it off."""
