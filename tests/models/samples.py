"""Small models as Python objects, to be broken in one respect each, and UBJSON to write them in."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

from strongroom.models.info import STANDARD_LIMITS, AdmissionLimits
from strongroom.models.xgboost import Forest, Linear, parse_xgboost

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "xgboost"
NAN = float("nan")


def tree(**changes: Any) -> dict[str, Any]:
    """A root, a split below it, and three leaves."""
    made: dict[str, Any] = {
        "base_weights": [0.0] * 5,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": [0, 1, 0, 0, 0],
        "id": 0,
        "left_children": [1, 3, -1, -1, -1],
        "loss_changes": [0.0] * 5,
        "parents": [2147483647, 0, 0, 1, 1],
        "right_children": [2, 4, -1, -1, -1],
        "split_conditions": [0.5, -1.5, 0.25, 2.0, -2.0],
        "split_indices": [0, 2, 0, 0, 0],
        "split_type": [0, 0, 0, 0, 0],
        "sum_hessian": [1.0] * 5,
        "tree_param": {"num_deleted": "0", "num_feature": "3", "num_nodes": "5", "size_leaf_vector": "1"},
    }
    return {**made, **changes}


def categorical_tree(**changes: Any) -> dict[str, Any]:
    """Root: categories 1 and 4 of feature 1 go right. Below it: category 2 does."""
    made: dict[str, Any] = {
        "categories": [1, 4, 2],
        "categories_nodes": [0, 1],
        "categories_segments": [0, 2],
        "categories_sizes": [2, 1],
        "split_conditions": [NAN, NAN, 0.25, 2.0, -2.0],
        "split_indices": [1, 1, 0, 0, 0],
        "split_type": [1, 1, 0, 0, 0],
    }
    return tree(**{**made, **changes})


def vector_tree(*, rows: bool, **changes: Any) -> dict[str, Any]:
    """Leaves of two values: a row a node (up to 3.1), or a row a leaf (from 3.2)."""
    param = {"num_deleted": "0", "num_feature": "3", "num_nodes": "5", "size_leaf_vector": "2"}
    made: dict[str, Any] = {"base_weights": [0.0] * 4 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "tree_param": param}
    if rows:
        made |= {"leaf_weights": [3.0, 4.0, 5.0, 6.0, 1.0, 2.0], "right_children": [2, 4, 2, 0, 1]}
    return tree(**{**made, **changes})


def model(*trees: dict[str, Any], outputs: int = 1) -> dict[str, Any]:
    """A gbtree model of three features with these trees (a plain one if none is given)."""
    listed = [{**one, "id": number} for number, one in enumerate(trees or (tree(),))]
    return {
        "learner": {
            "attributes": {},
            "feature_names": [],
            "feature_types": [],
            "gradient_booster": {
                "model": {
                    "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
                    "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(len(listed))},
                    "iteration_indptr": list(range(len(listed) + 1)),
                    "tree_info": [0] * len(listed),
                    "trees": listed,
                },
                "name": "gbtree",
            },
            "learner_model_param": {
                "base_score": "[5E-1]",
                "boost_from_average": "1",
                "num_class": "0",
                "num_feature": "3",
                "num_target": str(outputs),
            },
            "objective": {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}},
        },
        "version": [3, 2, 0],
    }


def linear() -> dict[str, Any]:
    """A gblinear model of three features."""
    made = model()
    made["learner"]["gradient_booster"] = {
        "model": {"boosted_rounds": 2, "weights": [0.5, -1.0, 2.0, 0.25]},
        "name": "gblinear",
    }
    return made


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the member at `a/b/0` replaced; `value` None removes it."""
    result = copy.deepcopy(document)
    *above, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    at: Any = result
    for step in above:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return result


def as_json(document: Any) -> bytes:
    """JSON as XGBoost writes it."""
    return json.dumps(document, separators=(",", ":")).encode()


def as_ubj(value: Any) -> bytes:
    """UBJSON as XGBoost writes it, but with arrays that carry a marker for each element."""
    match value:
        case dict():
            return b"{" + b"".join(_length(key) + as_ubj(inner) for key, inner in value.items()) + b"}"
        case list():
            return b"[#L" + struct.pack(">q", len(value)) + b"".join(map(as_ubj, value))
        case str():
            return b"S" + _length(value)
        case bool():
            return b"T" if value else b"F"
        case int():
            return b"L" + struct.pack(">q", value)
        case float():
            return b"d" + struct.pack(">f", value)
    return b"Z"


def _length(text: str) -> bytes:
    return b"L" + struct.pack(">q", len(text.encode())) + text.encode()


def parse(document: dict[str, Any], *, limits: AdmissionLimits = STANDARD_LIMITS) -> Forest | Linear:
    """Reads the document's JSON form."""
    return parse_xgboost(as_json(document), format="xgboost-json", limits=limits)
