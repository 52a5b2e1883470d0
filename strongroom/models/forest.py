"""Arrays that say they are trees, proven to be trees.

Rules
  - A tree is a tree: children come after their parent, every node but the root has exactly one parent, and
    the root reaches all. XGBoost numbers nodes so; it makes the check linear and leaves no room for a cycle.
  - Every index is checked against what it indexes, before anything is looked up with it.
  - Everything that is compared or added up is finite, in float32, XGBoost's own precision.
  - All trees are proven together, on flat arrays: no cost a node in Python, and about a dozen calls a tree.
  - Messages name the place (tree 3, node 5), never a value: a model is its owner's secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from strongroom.errors import AdmissionRefused

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

MAX_TREE_DEPTH: Final = 512
"""Levels of a tree. onnxruntime builds trees by recursion, with about 700 bytes of stack a level: 20,000
levels end the process on an 8 MiB stack. Threads have as little as 512 KiB (macOS); 600 levels pass there."""
MAX_CATEGORY: Final = 1 << 24
"""Category codes lie below this: the whole numbers that float32 holds exactly, and XGBoost's own bound."""
NO_NODE: Final = (1 << 31) - 1
"""XGBoost's mark for "none": the split feature of a node that pruning removed, and the parent of a root."""

_Number = TypeVar("_Number", np.float32, np.int64)


class RawTree(NamedTuple):
    """One tree as a file has it: arrays of the right types and lengths, nothing more known.

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
    leaf_vectors: Floats | None
    leaf_rows: bool


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


def prove_trees(trees: list[RawTree], *, features: int, width: int, weights: Floats) -> Trees:
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
    nodes.prove_removed([tree.deleted for tree in trees])
    nodes.prove_depth()
    nodes.prove_splits(features)
    category_start, category_count = nodes.prove_categories(trees)
    rows, values = nodes.prove_leaves(trees, width, weights)
    kept = ~nodes.removed
    number = np.cumsum(kept) - 1  # of the nodes that stay, counted over all trees
    starts = np.concatenate(([0], np.cumsum(kept)))[nodes.starts]
    shift = starts[nodes.tree]
    return Trees(
        starts=frozen(starts),
        left=frozen(np.where(nodes.leaf, -1, number[nodes.left_at] - shift)[kept]),
        right=frozen(np.where(nodes.leaf, -1, number[nodes.right_at] - shift)[kept]),
        features=frozen(nodes.features[kept]),
        thresholds=frozen(nodes.conditions[kept]),
        default_left=frozen((nodes.default_left == 1)[kept]),
        category_start=frozen(category_start[kept]),
        category_count=frozen(category_count[kept]),
        categories=frozen(_joined([tree.categories for tree in trees], np.int64)),
        leaf_row=frozen(rows[kept]),
        leaf_values=frozen(values),
    )


def frozen(array: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """The array, made read-only: what was proven stays so."""
    array.flags.writeable = False
    return array


class _Nodes:
    """The nodes of all trees in flat arrays. `..._at` count over all trees, file's own numbers within one."""

    def __init__(self, trees: list[RawTree]) -> None:
        sizes = np.array([tree.size for tree in trees], dtype=np.int64)
        self.starts: Ints = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        self.tree: Ints = np.repeat(np.arange(len(trees)), sizes)
        self.start: Ints = self.starts[self.tree]
        self.local: Ints = np.arange(self.tree.size) - self.start
        self.size: Ints = sizes[self.tree]
        self.left = _joined([tree.left for tree in trees], np.int64)
        self.right = _joined([tree.right for tree in trees], np.int64)
        self.parents = _joined([tree.parents for tree in trees], np.int64)
        self.features = _joined([tree.features for tree in trees], np.int64)
        self.conditions = _joined([tree.conditions for tree in trees], np.float32)
        self.default_left = _joined([tree.default_left for tree in trees], np.int64)
        self.split_type = _joined([tree.split_type for tree in trees], np.int64)
        self.leaf: Flags = self.left == -1
        self.removed: Flags = np.zeros(self.tree.size, dtype=np.bool_)
        leaf_rows = np.array([tree.leaf_rows for tree in trees], dtype=np.bool_)
        self.rows_in_right: Flags = leaf_rows[self.tree]

    def refuse(self, bad: Flags, message: str, *, code: str) -> None:
        """Refuses the model where any node is bad, naming the first."""
        if bad.any():
            at = int(bad.argmax())
            refuse_tree(int(self.tree[at]), f"node {self.local[at]}: {message}", code=code)

    def prove_children(self) -> None:
        """Steps 1 and 3."""
        split = ~self.leaf
        for child in (self.left, self.right):
            outside = split & ((child <= self.local) | (child >= self.size))
            self.refuse(outside, "a child is not a later node of the tree", code="xgboost_tree_child")
        half = self.leaf & (self.right != -1) & ~self.rows_in_right
        self.refuse(half, "a node with one child", code="xgboost_tree_child")
        self.left_at: Ints = np.where(split, self.left, 0) + self.start
        self.right_at: Ints = np.where(split, self.right, 0) + self.start
        children = np.concatenate((self.left_at[split], self.right_at[split]))
        named = np.bincount(children, minlength=self.tree.size)
        self.refuse(named > 1, "two parents have the same child", code="xgboost_tree_shared_child")
        self.orphan: Flags = (named == 0) & (self.local > 0)
        above = np.full(self.tree.size, -1, dtype=np.int64)
        above[children] = np.tile(self.local[split], 2)
        root = self.local == 0
        wrong = np.where(root, (self.parents != -1) & (self.parents != NO_NODE), self.parents != above)
        self.refuse(wrong & ~self.orphan, "parents does not name the parent", code="xgboost_tree_parent")

    def prove_removed(self, counts: list[int]) -> None:
        """Step 2. A node that pruning removed stays in the file: a leaf, without parent, marked as none."""
        marked = self.leaf & (self.features == NO_NODE)
        self.refuse(self.orphan & ~marked, "no parent", code="xgboost_tree_unreachable")
        self.removed = self.orphan
        found = np.bincount(self.tree[self.removed], minlength=len(counts))
        for tree in np.flatnonzero(found != np.array(counts, dtype=np.int64))[:1]:
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

    def prove_categories(self, trees: list[RawTree]) -> tuple[Ints, Ints]:
        """Step 5, categories: per node where they begin and how many they are."""
        first = np.zeros(self.tree.size, dtype=np.int64)
        count = np.zeros(self.tree.size, dtype=np.int64)
        named = np.flatnonzero(self.split_type == 1)
        said: list[Ints] = []
        begin: list[Ints] = []
        total = 0
        for tree, start in zip(trees, self.starts.tolist(), strict=False):
            if tree.category_nodes.size:
                inside = (tree.category_nodes >= 0) & (tree.category_nodes < tree.size)
                said.append(np.where(inside, tree.category_nodes + start, -1))
                begin.append(tree.category_starts + total)
            total += tree.categories.size
        if not np.array_equal(_joined(said, np.int64), named):
            _refuse("category sets are not those of the categorical splits", code="xgboost_categories")
        first[named] = _joined(begin, np.int64)
        count[named] = _joined([tree.category_sizes for tree in trees], np.int64)
        return first, np.where(self.leaf, 0, count)

    def prove_leaves(self, trees: list[RawTree], width: int, weights: Floats) -> tuple[Ints, Floats]:
        """Step 6: per node its row in the leaf values, and these."""
        leaf = self.leaf & ~self.removed
        tree = self.tree[leaf]
        rows = np.full(self.tree.size, -1, dtype=np.int64)
        rows[leaf] = np.arange(tree.size)
        if width == 1:
            values = self.conditions[leaf][:, np.newaxis]
        elif self.rows_in_right.all():
            counts = np.bincount(tree, minlength=len(trees))
            base = (np.cumsum(counts) - counts)[tree]
            local = self.right[leaf]
            inside = (local >= 0) & (local < counts[tree])
            used = np.bincount((local + base)[inside], minlength=tree.size)
            if not inside.all() or (used != 1).any():
                _refuse("leaves and leaf vectors do not match one to one", code="xgboost_leaf_vector")
            rows[leaf] = local + base
            values = _vectors(trees, counts * width, width)
        else:
            values = _vectors(trees, np.diff(self.starts) * width, width)[leaf]
        with np.errstate(over="ignore", invalid="ignore"):
            values = values[rows[leaf]] * weights[tree][:, np.newaxis]
        rows[leaf] = np.arange(tree.size)
        bad = np.zeros(self.tree.size, dtype=np.bool_)
        bad[leaf] = ~np.isfinite(values).all(axis=1)
        self.refuse(bad, "leaf value not finite", code="xgboost_leaf_value")
        return rows, values


def _vectors(trees: list[RawTree], sizes: Ints, width: int) -> Floats:
    """The leaf vectors of all trees, [rows, width]; `sizes` are the numbers each tree has to have."""
    parts = [tree.leaf_vectors for tree in trees if tree.leaf_vectors is not None]
    for tree, (part, size) in enumerate(zip(parts, sizes.tolist(), strict=True)):
        if part.size != size:
            refuse_tree(tree, "not one vector for each leaf", code="xgboost_leaf_vector")
    return _joined(parts, np.float32).reshape(-1, width)


def _joined(parts: list[npt.NDArray[_Number]], dtype: type[_Number]) -> npt.NDArray[_Number]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts])


def _refuse(message: str, *, code: str) -> NoReturn:
    raise AdmissionRefused(message, code=code)


def refuse_tree(tree: int, message: str, *, code: str) -> NoReturn:
    """Refuses the model because of that tree."""
    _refuse(f"tree {tree}: {message}", code=code)
