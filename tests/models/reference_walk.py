"""XGBoost's arithmetic written out in numpy, as plainly as can be: what the ONNX form is compared with."""

from __future__ import annotations

import numpy as np

from strongroom.models.trees import base_margin
from strongroom.models.xgboost import Forest, Linear


def margins(model: Forest | Linear, X: np.ndarray) -> np.ndarray:
    """[rows, outputs] in float32: one sum after the other, beginning with the base score."""
    learner = model.learner
    total = np.tile(base_margin(learner), (len(X), 1))
    if isinstance(model, Linear):
        total[:] = base_margin(learner)[0] + model.bias
        for column, weights in enumerate(model.weights):
            value = X[:, column, np.newaxis]
            total = np.where(np.isnan(value), total, total + value * weights)
        return total
    trees = model.trees
    for tree in range(trees.count):
        start = trees.starts[tree]
        leaf = np.array([_leaf(model, int(start), row) for row in X], dtype=np.int64)
        values = trees.leaf_values[trees.leaf_row[start + leaf]]
        if values.shape[1] == 1:
            total[:, model.tree_outputs[tree]] += values[:, 0]
        else:
            total += values
    return total


def _leaf(model: Forest, start: int, row: np.ndarray) -> int:
    trees, node = model.trees, 0
    while trees.left[start + node] >= 0:
        at = start + node
        value = row[trees.features[at]]
        if np.isnan(value):
            left = trees.default_left[at]
        elif trees.category_count[at]:
            first = trees.category_start[at]
            left = value not in trees.categories[first : first + trees.category_count[at]]
        else:
            left = value < trees.thresholds[at]
        node = int(trees.left[at] if left else trees.right[at])
    return node
