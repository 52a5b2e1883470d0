"""Trees are proven to be trees: every rule has a model that breaks that rule alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_walk import margins
from samples import NAN, categorical_tree, changed, linear, model, parse, tree, vector_tree

from strongroom.errors import AdmissionRefused, Error
from strongroom.models.forest import MAX_CATEGORY, MAX_TREE_DEPTH, NO_NODE
from strongroom.models.xgboost import Forest

CHAIN = {"base_weights": [], "loss_changes": [], "sum_hessian": []}


def chain(levels: int) -> dict[str, Any]:
    """A tree in which every level has one split: nodes 2 k split into a leaf 2 k + 1 and node 2 k + 2."""
    size = 2 * levels + 1
    splits = [node % 2 == 0 and node < size - 1 for node in range(size)]
    return tree(
        **CHAIN,
        left_children=[node + 1 if split else -1 for node, split in enumerate(splits)],
        right_children=[node + 2 if split else -1 for node, split in enumerate(splits)],
        parents=[NO_NODE] + [2 * ((node - 1) // 2) for node in range(1, size)],
        split_conditions=[float(node) for node in range(size)],
        **{name: [0] * size for name in ("default_left", "split_indices", "split_type")},
        tree_param={"num_deleted": "0", "num_feature": "3", "num_nodes": str(size), "size_leaf_vector": "1"},
    )


PRUNED = tree(
    left_children=[1, -1, -1, -1, -1],
    right_children=[2, -1, -1, -1, -1],
    split_indices=[0, 0, 0, NO_NODE, NO_NODE],
    tree_param={"num_deleted": "2", "num_feature": "3", "num_nodes": "5", "size_leaf_vector": "1"},
)

ROWS = np.array([[0, 4, 0], [1, 1, -2], [0, 2, -2], [NAN, NAN, NAN], [0, -1, 5]], dtype=np.float32)

GOOD = {
    "plain": (model(), [[-1.5], [0.75], [2.5], [0.75], [-1.5]]),
    "a root marked as in vector trees": (
        changed(model(), "learner/gradient_booster/model/trees/0/parents/0", -1),
        None,
    ),
    "pruned": (model(PRUNED), [[-1.0], [0.75], [-1.0], [0.75], [-1.0]]),
    "pruned, then another": (model(PRUNED, tree()), None),
    "categories": (model(categorical_tree()), [[0.75], [0.75], [-1.5], [0.75], [2.5]]),
    "a pruned split's categories": (
        model(
            categorical_tree(
                left_children=[1, -1, -1, -1, -1],
                right_children=[2, -1, -1, -1, -1],
                split_indices=[1, 1, 0, NO_NODE, NO_NODE],
                split_conditions=[NAN, 1.0, 0.25, 0.0, 0.0],
                tree_param=PRUNED["tree_param"],
            )
        ),
        [[0.75], [0.75], [1.5], [0.75], [1.5]],
    ),
    "vectors, a row a node": (
        model(vector_tree(rows=False), outputs=2),
        [[5.5, 6.5], [1.5, 2.5], [3.5, 4.5], [1.5, 2.5], [5.5, 6.5]],
    ),
    "vectors, a row a leaf": (
        model(vector_tree(rows=True), outputs=2),
        [[5.5, 6.5], [1.5, 2.5], [3.5, 4.5], [1.5, 2.5], [5.5, 6.5]],
    ),
    "as deep as may be": (model(chain(MAX_TREE_DEPTH)), None),
}


@pytest.mark.parametrize(("document", "expected"), GOOD.values(), ids=GOOD.keys())
def test_trees_pass_and_mean_what_they_say(
    document: dict[str, Any], expected: list[list[float]] | None
) -> None:
    """The forest's arrays give the sums that the file's trees give by hand, and are read-only."""
    forest = parse(document)
    assert isinstance(forest, Forest)
    if expected is not None:
        assert margins(forest, ROWS).tolist() == expected
    trees = forest.trees
    assert (trees.left[trees.left >= 0] > 0).all() and (trees.leaf_row >= -1).all()
    assert not any(getattr(trees, name).flags.writeable for name in trees.__slots__)


def one(base: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return model({**(base or tree()), **changes})


VECTORS_BY_NODE, VECTORS_BY_LEAF = vector_tree(rows=False), vector_tree(rows=True)
CATEGORIES = categorical_tree()
PARAM = tree()["tree_param"]
BROKEN = {
    "a node is its own child": (one(left_children=[0, 3, -1, -1, -1]), "xgboost_tree_child"),
    "a cycle": (one(left_children=[1, 0, -1, -1, -1]), "xgboost_tree_child"),
    "a child before its parent": (
        one(left_children=[3, -1, 1, -1, -1], right_children=[2, -1, 4, -1, -1]),
        "xgboost_tree_child",
    ),
    "a child after the last node": (one(right_children=[2, 5, -1, -1, -1]), "xgboost_tree_child"),
    "a child far outside": (one(left_children=[10**6, 3, -1, -1, -1]), "xgboost_tree_child"),
    "a child in the next tree": (
        model({**tree(), "right_children": [2, 5, -1, -1, -1]}, tree()),
        "xgboost_tree_child",
    ),
    "a child of -2": (one(left_children=[-2, 3, -1, -1, -1]), "xgboost_tree_child"),
    "a child of 2^62": (one(left_children=[2**62, 3, -1, -1, -1]), "xgboost_tree_child"),
    "only a left child": (one(right_children=[2, -1, -1, -1, -1]), "xgboost_tree_child"),
    "only a right child": (one(left_children=[1, -1, -1, -1, -1]), "xgboost_tree_child"),
    "both children the same": (one(right_children=[1, 4, -1, -1, -1]), "xgboost_tree_shared_child"),
    "two parents share a child": (one(left_children=[1, 2, -1, -1, -1]), "xgboost_tree_shared_child"),
    "an unreachable leaf": (
        one(left_children=[1, -1, -1, -1, -1], right_children=[2, -1, -1, -1, -1]),
        "xgboost_tree_unreachable",
    ),
    "an unreachable subtree": (
        one(left_children=[-1, 3, -1, -1, -1], right_children=[-1, 4, -1, -1, -1]),
        "xgboost_tree_unreachable",
    ),
    "more removed than there are": (
        one(tree_param={**PARAM, "num_deleted": "1"}),
        "xgboost_tree_unreachable",
    ),
    "fewer removed than there are": (
        one(PRUNED, tree_param={**PARAM, "num_deleted": "1"}),
        "xgboost_tree_unreachable",
    ),
    "a wrong parent": (one(parents=[NO_NODE, 0, 0, 1, 0]), "xgboost_tree_parent"),
    "a root with a parent": (one(parents=[0, 0, 0, 1, 1]), "xgboost_tree_parent"),
    "a child that says it is a root": (one(parents=[NO_NODE, 0, 0, 1, -1]), "xgboost_tree_parent"),
    "a level too deep": (model(tree(), chain(MAX_TREE_DEPTH + 1)), "xgboost_tree_depth"),
    "a feature too many": (one(split_indices=[3, 2, 0, 0, 0]), "xgboost_split_feature"),
    "feature 2^30": (one(split_indices=[2**30, 2, 0, 0, 0]), "xgboost_split_feature"),
    "a negative feature": (one(split_indices=[0, -1, 0, 0, 0]), "xgboost_split_feature"),
    "a reachable split marked as removed": (
        one(split_indices=[0, NO_NODE, 0, 0, 0]),
        "xgboost_split_feature",
    ),
    "a default direction of 2": (one(default_left=[2, 1, 0, 0, 0]), "xgboost_split_flag"),
    "a split type of 2": (one(split_type=[0, 2, 0, 0, 0]), "xgboost_split_flag"),
    "a split type of -1": (one(split_type=[-1, 0, 0, 0, 0]), "xgboost_split_flag"),
    "a threshold of NaN": (one(split_conditions=[NAN, -1.5, 0.25, 2.0, -2.0]), "xgboost_threshold"),
    "an infinite threshold": (
        one(split_conditions=[float("inf"), -1.5, 0.25, 2.0, -2.0]),
        "xgboost_threshold",
    ),
    "a threshold beyond float32": (one(split_conditions=[1e39, -1.5, 0.25, 2.0, -2.0]), "xgboost_threshold"),
    "a leaf of NaN": (one(split_conditions=[0.5, -1.5, NAN, 2.0, -2.0]), "xgboost_leaf_value"),
    "an infinite leaf": (one(split_conditions=[0.5, -1.5, 0.25, 2.0, float("-inf")]), "xgboost_leaf_value"),
    "a leaf beyond float32": (one(split_conditions=[0.5, -1.5, 0.25, -1e39, 2.0]), "xgboost_leaf_value"),
    "a categorical split without categories": (one(split_type=[1, 0, 0, 0, 0]), "xgboost_categories"),
    "categories of a numeric split": (
        one(CATEGORIES, split_type=[1, 0, 0, 0, 0], split_conditions=[0.5] * 5),
        "xgboost_categories",
    ),
    "categories of a node that does not exist": (
        one(CATEGORIES, categories_nodes=[0, 5]),
        "xgboost_categories",
    ),
    "categories of a negative node": (one(CATEGORIES, categories_nodes=[-5, 1]), "xgboost_categories"),
    "categories of a node in the next tree": (
        model({**CATEGORIES, "categories_nodes": [0, 5]}, tree()),
        "xgboost_categories",
    ),
    "categories of one node twice": (one(CATEGORIES, categories_nodes=[0, 0]), "xgboost_categories"),
    "an empty set": (
        one(CATEGORIES, categories_sizes=[3, 0], categories_segments=[0, 3]),
        "xgboost_categories",
    ),
    "a set of -1": (one(CATEGORIES, categories_sizes=[4, -1]), "xgboost_categories"),
    "sets beyond the categories": (one(CATEGORIES, categories_sizes=[2, 10**6]), "xgboost_categories"),
    "sets whose sum overflows": (one(CATEGORIES, categories_sizes=[2**62, 2**62]), "xgboost_categories"),
    "sets that leave some over": (
        one(CATEGORIES, categories_sizes=[1, 1], categories_segments=[0, 1]),
        "xgboost_categories",
    ),
    "sets that overlap": (one(CATEGORIES, categories_segments=[0, 1]), "xgboost_categories"),
    "a set that begins outside": (one(CATEGORIES, categories_segments=[0, 10**9]), "xgboost_categories"),
    "more nodes than sets": (one(CATEGORIES, categories_segments=[0]), "xgboost_categories"),
    "a negative category": (one(CATEGORIES, categories=[-1, 4, 2]), "xgboost_categories"),
    "a category beyond float32's whole numbers": (
        one(CATEGORIES, categories=[1, MAX_CATEGORY, 2]),
        "xgboost_categories",
    ),
    "a category twice": (one(CATEGORIES, categories=[4, 4, 2]), "xgboost_categories"),
    "categories out of order": (one(CATEGORIES, categories=[4, 1, 2]), "xgboost_categories"),
    "too few vectors for nodes": (
        model({**VECTORS_BY_NODE, "base_weights": [0.0] * 9}, outputs=2),
        "xgboost_leaf_vector",
    ),
    "too many vectors for leaves": (
        model({**VECTORS_BY_LEAF, "leaf_weights": [0.0] * 8}, outputs=2),
        "xgboost_leaf_vector",
    ),
    "a vector index of 2^30": (
        model({**VECTORS_BY_LEAF, "right_children": [2, 4, 2**30, 0, 1]}, outputs=2),
        "xgboost_leaf_vector",
    ),
    "a negative vector index": (
        model({**VECTORS_BY_LEAF, "right_children": [2, 4, -1, 0, 1]}, outputs=2),
        "xgboost_leaf_vector",
    ),
    "a vector used twice": (
        model({**VECTORS_BY_LEAF, "right_children": [2, 4, 0, 0, 1]}, outputs=2),
        "xgboost_leaf_vector",
    ),
    "a vector of the next tree": (
        model({**VECTORS_BY_LEAF, "right_children": [2, 4, 3, 0, 1]}, VECTORS_BY_LEAF, outputs=2),
        "xgboost_leaf_vector",
    ),
    "vectors of three for two outputs": (
        model({**VECTORS_BY_NODE, "tree_param": {**PARAM, "size_leaf_vector": "3"}}, outputs=2),
        "xgboost_leaf_vector",
    ),
    "vectors of 2^31 - 1": (
        one(tree_param={**PARAM, "size_leaf_vector": "2147483647"}),
        "xgboost_leaf_vector",
    ),
    "a tree of values after one of vectors": (
        model(VECTORS_BY_NODE, tree(), outputs=2),
        "xgboost_leaf_vector",
    ),
    "vectors kept in two ways": (model(VECTORS_BY_NODE, VECTORS_BY_LEAF, outputs=2), "xgboost_leaf_vector"),
    "a vector with NaN": (
        model({**VECTORS_BY_LEAF, "leaf_weights": [3.0, 4.0, NAN, 6.0, 1.0, 2.0]}, outputs=2),
        "xgboost_leaf_value",
    ),
}


@pytest.mark.parametrize(("document", "code"), BROKEN.values(), ids=BROKEN.keys())
def test_every_rule_refuses_what_breaks_it_alone(document: dict[str, Any], code: str) -> None:
    """The sample is admitted as it is; with the one change it is refused with the code of that rule."""
    with pytest.raises(AdmissionRefused) as caught:
        parse(document)
    assert caught.value.code == code


def test_a_refusal_names_the_place_and_no_value() -> None:
    """Tree and node are counted; the model's own numbers stay out of the message."""
    with pytest.raises(AdmissionRefused) as caught:
        parse(model(tree(), tree(split_indices=[0, 987654, 0, 0, 0])))
    assert caught.value.message == "tree 1: node 1: splits on a feature that does not exist"


def test_leaf_values_are_finite_after_darts_weight_too() -> None:
    """3e38 is a float32; ten times that is not."""
    heavy = changed(
        model(tree(split_conditions=[0.5, -1.5, 0.25, 3e38, 0.0])),
        "learner/gradient_booster/model/weight_drop",
        [1.0],
    )
    parse(heavy)
    with pytest.raises(AdmissionRefused) as caught:
        parse(changed(heavy, "learner/gradient_booster/model/weight_drop", [10.0]))
    assert caught.value.code == "xgboost_leaf_value"


def test_samples_are_good() -> None:
    """What the broken models are made of is admitted unbroken."""
    for document in (
        model(),
        one(CATEGORIES),
        model(VECTORS_BY_NODE, outputs=2),
        model(VECTORS_BY_LEAF, outputs=2),
        linear(),
    ):
        parse(document)


numbers = st.sampled_from([-2, -1, 0, 1, 2, 3, 4, 5, 6, NO_NODE, 2**31, 2**62])


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([tree(), categorical_tree(), PRUNED]),
    st.dictionaries(
        st.sampled_from(
            [
                "left_children",
                "right_children",
                "parents",
                "split_indices",
                "default_left",
                "split_type",
                "categories",
                "categories_nodes",
                "categories_segments",
                "categories_sizes",
            ]
        ),
        st.tuples(st.integers(0, 4), numbers),
        min_size=1,
        max_size=3,
    ),
)
def test_any_indices_give_a_tree_that_can_be_walked_or_our_error(
    base: dict[str, Any], changes: dict[str, tuple[int, int]]
) -> None:
    """A value or strongroom.errors.Error, nothing else; and every value is walked to a leaf by every row."""
    broken = {**base}
    for name, (place, number) in changes.items():
        if place < len(base[name]):
            broken[name] = [*base[name][:place], number, *base[name][place + 1 :]]
    try:
        forest = parse(model(broken))
    except Error:
        return
    assert np.isfinite(margins(forest, ROWS)).all()
