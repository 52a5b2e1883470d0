"""Arrays that say they are trees, proven to be trees.

Rules
  - A tree is a tree: children come after their parent, every node but the root has exactly one parent, and
    the root reaches all. XGBoost numbers nodes so; it makes the check linear and leaves no room for a cycle.
  - Every index is checked against what it indexes, before anything is looked up with it.
  - Everything that is compared or added up is finite, in float32, XGBoost's own precision.
  - All trees are proven together, on flat arrays: no cost a node in Python, and about a dozen calls a tree.
  - Arrays are of the narrowest type that holds what passes: a forest takes less memory than the file it came in.
    What does not fit is replaced by what is refused for the same reason (`narrow`), so no index is ever cut off.
  - Messages name the place (tree 3, node 5), never a value: a model is its owner's secret.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from strongroom.errors import AdmissionRefused

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.signedinteger[Any]]
Flags: TypeAlias = npt.NDArray[np.bool_]

MAX_TREE_DEPTH: Final = 512
"""Levels of a tree. onnxruntime builds trees by recursion, with about 700 bytes of stack a level: 20,000
levels end the process on an 8 MiB stack. Threads have as little as 512 KiB (macOS); 600 levels pass there."""
MAX_CATEGORY: Final = 1 << 24
"""Category codes lie below this: the whole numbers that float32 holds exactly, and XGBoost's own bound."""
NO_NODE: Final = (1 << 31) - 1
"""XGBoost's mark for "none": the split feature of a node that pruning removed, and the parent of a root."""

_Array = TypeVar("_Array", bound=npt.NDArray[Any])
_FLAGS: Final = np.dtype(np.int8)
_PLACES: Final = np.dtype(np.int32)


class RawTree(NamedTuple):
    """One tree as a file has it: arrays of the right types and lengths, nothing more known.

    `width`: how many numbers it says that a leaf has.
    `leaf_vectors` are the values of vector leaves, None where leaves have one value (then it stands in
    `conditions`): a row a node, or, where `leaf_rows`, a row a leaf with its number in `right`.
    """

    size: int
    deleted: int
    left: Ints
    right: Ints
    parents: Ints
    features: Ints
    conditions: Floats
    default_left: Ints
    split_type: Ints
    category_nodes: Ints
    category_starts: Ints
    category_sizes: Ints
    categories: Ints
    width: int
    leaf_vectors: Floats | None
    leaf_rows: bool


def narrow(numbers: Ints) -> Ints:
    """The numbers in 32 bits. What has no place there is no index of anything: it becomes another such number."""
    if numbers.dtype.itemsize <= _PLACES.itemsize:
        return numbers.astype(_PLACES)
    return np.where(numbers > NO_NODE, NO_NODE - 1, np.maximum(numbers, -NO_NODE)).astype(_PLACES)


def _flags(numbers: Ints) -> Ints:
    return np.where((numbers == 0) | (numbers == 1), numbers, 2).astype(_FLAGS)


@dataclass(slots=True, eq=False)
class RawTrees:
    """All trees as a file has them, one after the other in flat arrays: as `RawTree`, of many."""

    sizes: array[int] = field(default_factory=lambda: array("q"))
    deleted: array[int] = field(default_factory=lambda: array("q"))
    left: array[int] = field(default_factory=lambda: array("i"))
    right: array[int] = field(default_factory=lambda: array("i"))
    parents: array[int] = field(default_factory=lambda: array("i"))
    features: array[int] = field(default_factory=lambda: array("i"))
    conditions: array[float] = field(default_factory=lambda: array("f"))
    default_left: array[int] = field(default_factory=lambda: array("b"))
    split_type: array[int] = field(default_factory=lambda: array("b"))
    set_counts: array[int] = field(default_factory=lambda: array("q"))
    """Per tree, its category sets."""
    category_nodes: array[int] = field(default_factory=lambda: array("i"))
    category_starts: array[int] = field(default_factory=lambda: array("i"))
    category_sizes: array[int] = field(default_factory=lambda: array("i"))
    category_counts: array[int] = field(default_factory=lambda: array("q"))
    """Per tree, its categories."""
    categories: array[int] = field(default_factory=lambda: array("i"))
    widths: array[int] = field(default_factory=lambda: array("q"))
    """Per tree, the numbers that a leaf says it has."""
    vector_counts: array[int] = field(default_factory=lambda: array("q"))
    """Per tree, the numbers of its leaf vectors."""
    leaf_vectors: array[float] = field(default_factory=lambda: array("f"))
    leaf_rows: array[int] = field(default_factory=lambda: array("b"))

    _last: list[RawTree] = field(default_factory=list)
    _nodes: int = 0
    """Of the last trees, which are not in the arrays yet."""

    def __len__(self) -> int:
        return len(self.sizes) + len(self._last)

    def add(self, tree: RawTree) -> None:
        """One tree more."""
        self._last.append(tree)
        self._nodes += tree.size
        if self._nodes > _LAST_NODES or len(self._last) == _LAST_TREES:
            self.join()

    def join(self) -> None:
        """Brings the last trees into the arrays, many at a time: a call for each tree would take longer."""
        trees, self._last, self._nodes = self._last, [], 0
        if not trees:
            return
        for name in ("left", "right", "parents", "features", *_CATEGORY_ARRAYS):
            numbers = np.concatenate([getattr(tree, name) for tree in trees])
            getattr(self, name).frombytes(narrow(numbers).tobytes())
        for name in ("default_left", "split_type"):
            flags = np.concatenate([getattr(tree, name) for tree in trees])
            getattr(self, name).frombytes(_flags(flags).tobytes())
        self.conditions.frombytes(np.concatenate([tree.conditions for tree in trees]).tobytes())
        for tree in trees:
            if tree.leaf_vectors is not None:
                self.leaf_vectors.frombytes(tree.leaf_vectors.tobytes())
        self.sizes.extend(tree.size for tree in trees)
        self.deleted.extend(tree.deleted for tree in trees)
        self.set_counts.extend(tree.category_nodes.size for tree in trees)
        self.category_counts.extend(tree.categories.size for tree in trees)
        self.widths.extend(tree.width for tree in trees)
        self.vector_counts.extend(0 if t.leaf_vectors is None else t.leaf_vectors.size for t in trees)
        self.leaf_rows.extend(tree.leaf_rows for tree in trees)


_LAST_NODES, _LAST_TREES = 1 << 13, 1 << 9
_CATEGORY_ARRAYS: Final = ("category_nodes", "category_starts", "category_sizes", "categories")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trees:
    """Trees that passed every check. Arrays are read-only and cover the nodes of all trees, tree after tree.

    Tree t has the nodes `starts[t]:starts[t + 1]`, its root first; `left` and `right` count from the tree's
    own start and are -1 in leaves. A row goes left where its feature is less than `thresholds`, or, in a node
    with categories, is none of them; NaN goes left where `default_left`. Leaves have a row in `leaf_values`,
    whose number is in `leaf_row` (-1 elsewhere).
    """

    starts: Ints
    left: Ints
    right: Ints
    features: Ints
    thresholds: Floats
    default_left: Flags
    category_start: Ints
    """Per node, where its categories begin in `categories`."""
    category_count: Ints
    """Per node, how many they are; 0 in numeric splits and in leaves."""
    categories: Ints
    leaf_row: Ints
    leaf_values: Floats
    """[leaves, width]: what a leaf adds, to one output or to each. DART's tree weights are multiplied in."""

    @property
    def count(self) -> int:
        """How many trees."""
        return self.starts.size - 1

    @property
    def categorical(self) -> bool:
        """Whether any split is on categories."""
        return self.categories.size > 0


def prove_trees(trees: RawTrees, *, features: int, width: int, weights: Floats) -> Trees:
    """Proves that `trees` are trees over `features` columns with leaves of `width` values.

    1. Children lie after their parent, within the tree, and no node has two parents.
    2. What no parent names was removed by pruning, and is marked and counted as such.
    3. `parents` says the same.
    4. No tree is deeper than `MAX_TREE_DEPTH`.
    5. Splits: feature in range, flags 0 or 1, threshold finite, categories for exactly the categorical ones.
    6. Leaves: as many vectors as leaves, each used once; values finite, also times the tree's weight.

    Raises:
        AdmissionRefused: one of these does not hold (codes `xgboost_tree_*`, `xgboost_split_*`,
            `xgboost_threshold`, `xgboost_categories`, `xgboost_leaf_*`).
    """
    nodes = _Nodes(trees)
    nodes.prove_children()
    nodes.prove_removed(_view(trees.deleted))
    nodes.prove_depth()
    nodes.prove_splits(features)
    category_start, category_count = nodes.prove_categories(trees)
    rows, values = nodes.prove_leaves(trees, width, weights)
    kept = ~nodes.removed
    number = np.cumsum(kept, dtype=_PLACES) - _ONE  # of the nodes that stay, counted over all trees
    starts = np.concatenate(([0], np.cumsum(kept, dtype=_PLACES)))[nodes.starts].astype(_PLACES)
    nodes.local = nodes.local[:0]  # not needed any more, and as large as what is made now
    shift = starts[nodes.tree]
    return Trees(
        starts=frozen(starts),
        left=frozen(np.where(nodes.leaf, -_ONE, number[nodes.left_at] - shift)[kept]),
        right=frozen(np.where(nodes.leaf, -_ONE, number[nodes.right_at] - shift)[kept]),
        features=frozen(nodes.features[kept]),
        thresholds=frozen(nodes.conditions[kept]),
        default_left=frozen((nodes.default_left == 1)[kept]),
        category_start=frozen(category_start[kept]),
        category_count=frozen(category_count[kept]),
        categories=frozen(_view(trees.categories).copy()),
        leaf_row=frozen(rows[kept]),
        leaf_values=frozen(values),
    )


_ONE: Final = np.int32(1)


def frozen(array: _Array) -> _Array:
    """The array, made read-only: what was proven stays so."""
    array.flags.writeable = False
    return array


def _view(numbers: array[Any]) -> npt.NDArray[Any]:
    """The same memory as a numpy array."""
    return np.frombuffer(numbers, dtype=numbers.typecode) if numbers else np.zeros(0, numbers.typecode)


class _Nodes:
    """The nodes of all trees in flat arrays. `..._at` count over all trees, file's own numbers within one."""

    def __init__(self, trees: RawTrees) -> None:
        sizes = _view(trees.sizes)
        self.starts: Ints = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        self.tree: Ints = np.repeat(np.arange(len(trees), dtype=_PLACES), sizes)
        self.local: Ints = np.arange(self.tree.size, dtype=_PLACES)
        self.local -= self.starts.astype(_PLACES)[self.tree]
        self.left, self.right = _view(trees.left), _view(trees.right)
        self.parents = _view(trees.parents)
        self.features = _view(trees.features)
        self.conditions = _view(trees.conditions)
        self.default_left = _view(trees.default_left)
        self.split_type = _view(trees.split_type)
        self.leaf: Flags = self.left == -1
        self.removed: Flags = np.zeros(self.tree.size, dtype=np.bool_)
        self.rows_in_right: Flags = _view(trees.leaf_rows).astype(np.bool_)[self.tree]

    def refuse(self, bad: Flags, message: str, *, code: str) -> None:
        """Refuses the model where any node is bad, naming the first."""
        if bad.any():
            at = int(bad.argmax())
            refuse_tree(int(self.tree[at]), f"node {self.local[at]}: {message}", code=code)

    def prove_children(self) -> None:
        """Steps 1 and 3."""
        split = ~self.leaf
        size = np.diff(self.starts).astype(_PLACES)[self.tree]
        for child in (self.left, self.right):
            outside = split & ((child <= self.local) | (child >= size))
            self.refuse(outside, "a child is not a later node of the tree", code="xgboost_tree_child")
        half = self.leaf & (self.right != -1) & ~self.rows_in_right
        self.refuse(half, "a node with one child", code="xgboost_tree_child")
        del size, half, outside
        start = self.starts.astype(_PLACES)[self.tree]
        self.left_at: Ints = np.where(split, self.left, 0) + start
        self.right_at: Ints = np.where(split, self.right, 0) + start
        del start
        above = np.full(self.tree.size, -1, dtype=_PLACES)
        named = np.zeros(self.tree.size, dtype=np.bool_)
        for children in (self.left_at[split], self.right_at[split]):
            before = np.count_nonzero(named)
            named[children] = True
            if np.count_nonzero(named) != before + children.size:
                self._refuse_shared(split)
            above[children] = self.local[split]
        self.orphan: Flags = ~named & (self.local > 0)
        root = self.local == 0
        wrong = np.where(root, (self.parents != -1) & (self.parents != NO_NODE), self.parents != above)
        self.refuse(wrong & ~self.orphan, "parents does not name the parent", code="xgboost_tree_parent")

    def _refuse_shared(self, split: Flags) -> NoReturn:
        counts = np.bincount(np.concatenate((self.left_at[split], self.right_at[split])))
        at = int((counts > 1).argmax())
        message = f"node {self.local[at]}: two parents have the same child"
        refuse_tree(int(self.tree[at]), message, code="xgboost_tree_shared_child")

    def prove_removed(self, counts: Ints) -> None:
        """Step 2. A node that pruning removed stays in the file: a leaf, without parent, marked as none."""
        marked = self.leaf & (self.features == NO_NODE)
        self.refuse(self.orphan & ~marked, "no parent", code="xgboost_tree_unreachable")
        self.removed = self.orphan
        found = np.bincount(self.tree[self.removed], minlength=len(counts))
        for tree in np.flatnonzero(found != counts)[:1]:
            refuse_tree(int(tree), "num_deleted is not the number removed", code="xgboost_tree_unreachable")

    def prove_depth(self) -> None:
        """Step 4, level by level from all roots at once."""
        level = self.starts[:-1]
        for _ in range(MAX_TREE_DEPTH + 1):
            level = level[~self.leaf[level]]
            if not level.size:
                return
            deepest = int(self.tree[level[0]])
            level = np.concatenate((self.left_at[level], self.right_at[level]))
        refuse_tree(deepest, f"deeper than {MAX_TREE_DEPTH} levels", code="xgboost_tree_depth")

    def prove_splits(self, features: int) -> None:
        """Step 5, all but the categories."""
        split = ~self.leaf
        outside = split & ((self.features < 0) | (self.features >= features))
        self.refuse(outside, "splits on a feature that does not exist", code="xgboost_split_feature")
        for flags in (self.default_left, self.split_type):
            self.refuse((flags != 0) & (flags != 1), "a flag is not 0 or 1", code="xgboost_split_flag")
        numeric = split & (self.split_type == 0)
        self.refuse(numeric & ~np.isfinite(self.conditions), "threshold not finite", code="xgboost_threshold")

    def prove_categories(self, trees: RawTrees) -> tuple[Ints, Ints]:
        """Step 5, categories: per node where they begin and how many they are."""
        first = np.zeros(self.tree.size, dtype=_PLACES)
        count = np.zeros(self.tree.size, dtype=_PLACES)
        named = np.flatnonzero(self.split_type == 1)
        sets = _view(trees.set_counts)
        of_set = np.repeat(np.arange(len(trees)), sets)
        nodes = _view(trees.category_nodes)
        inside = (nodes >= 0) & (nodes < np.diff(self.starts)[of_set])
        if not np.array_equal(np.where(inside, nodes + self.starts[of_set], -1), named):
            _refuse("category sets are not those of the categorical splits", code="xgboost_categories")
        counts = _view(trees.category_counts)
        first[named] = _view(trees.category_starts) + (np.cumsum(counts) - counts)[of_set]
        count[named] = _view(trees.category_sizes)
        count[self.leaf] = 0
        return first, count

    def prove_leaves(self, trees: RawTrees, width: int, weights: Floats) -> tuple[Ints, Floats]:
        """Step 6: per node its row in the leaf values, and these."""
        leaf = self.leaf & ~self.removed
        tree = self.tree[leaf]
        rows = np.full(self.tree.size, -1, dtype=_PLACES)
        if width == 1:
            values = self.conditions[leaf][:, np.newaxis]
        elif self.rows_in_right.all():
            counts = np.bincount(tree, minlength=len(trees))
            local = self.right[leaf]
            inside = (local >= 0) & (local < counts[tree])
            at = local + (np.cumsum(counts) - counts)[tree]
            used = np.bincount(at[inside], minlength=tree.size)
            if not inside.all() or (used != 1).any():
                _refuse("leaves and leaf vectors do not match one to one", code="xgboost_leaf_vector")
            values = _vectors(trees, counts * width, width)[at]
        else:
            values = _vectors(trees, np.diff(self.starts) * width, width)[leaf]
        with np.errstate(over="ignore", invalid="ignore"):
            values *= weights[tree][:, np.newaxis]
        rows[leaf] = np.arange(tree.size)
        bad = np.zeros(self.tree.size, dtype=np.bool_)
        bad[leaf] = ~np.isfinite(values).all(axis=1)
        self.refuse(bad, "leaf value not finite", code="xgboost_leaf_value")
        return rows, values


def _vectors(trees: RawTrees, sizes: Ints, width: int) -> Floats:
    """The leaf vectors of all trees, [rows, width]; `sizes` are the numbers each tree has to have."""
    for tree in np.flatnonzero(_view(trees.vector_counts) != sizes)[:1]:
        refuse_tree(int(tree), "not one vector for each leaf", code="xgboost_leaf_vector")
    return _view(trees.leaf_vectors).reshape(-1, width)


def _refuse(message: str, *, code: str) -> NoReturn:
    raise AdmissionRefused(message, code=code)


def refuse_tree(tree: int, message: str, *, code: str) -> NoReturn:
    """Refuses the model because of that tree."""
    _refuse(f"tree {tree}: {message}", code=code)
