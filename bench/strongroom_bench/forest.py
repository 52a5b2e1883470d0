"""Tree ensembles in XGBoost's own JSON form (schema of 2.x and 3.0), without XGBoost: full trees with made-up splits.

Document: https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html. Splits lie where the features fall, so
that a row takes a path that no branch predictor knows beforehand, as with a trained model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import onnx
from onnx import TensorProto, helper

from strongroom_bench.graph import IR_VERSION, OPSET, Floats, uniform

_NO_PARENT: Final = 2147483647
"""XGBoost's word for a root's parent."""
_ML_OPSET: Final = 3


@dataclass(frozen=True, slots=True)
class Forest:
    """`trees` full trees with `depth` levels of splits over `features` columns; objective `binary:logistic`."""

    name: str
    trees: int
    depth: int
    features: int

    def to_xgboost(self) -> bytes:
        """The model in XGBoost's JSON form."""
        booster = {
            "name": "gbtree",
            "model": {
                "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(self.trees)},
                "iteration_indptr": list(range(self.trees + 1)),
                "tree_info": [0] * self.trees,
                "trees": [self._tree_json(at, tree) for at, tree in enumerate(self._trees())],
            },
        }
        learner = {
            "attributes": {},
            "feature_names": [],
            "feature_types": [],
            "gradient_booster": booster,
            "learner_model_param": {
                "base_score": "5E-1", "boost_from_average": "1", "num_class": "0", "num_feature": str(self.features),
                "num_target": "1",
            },
            "objective": {"name": "binary:logistic", "reg_loss_param": {"scale_pos_weight": "1"}},
        }  # fmt: skip
        return json.dumps({"learner": learner, "version": [3, 0, 0]}, separators=(",", ":")).encode()

    def to_onnx(self) -> bytes:
        """The same model as an ONNX TreeEnsembleRegressor and a Sigmoid, for engines and peers without XGBoost."""
        node: dict[str, list[Any]] = {f"nodes_{word}": [] for word in (
            "treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids",
            "missing_value_tracks_true")}  # fmt: skip
        leaf: dict[str, list[Any]] = {
            f"target_{word}": [] for word in ("treeids", "nodeids", "ids", "weights")
        }
        for at, tree in enumerate(self._trees()):
            count, inner = len(tree.values), tree.inner
            node["nodes_treeids"] += [at] * count
            node["nodes_nodeids"] += range(count)
            node["nodes_featureids"] += tree.columns
            node["nodes_values"] += [v if i < inner else 0.0 for i, v in enumerate(tree.values)]
            node["nodes_modes"] += ["BRANCH_LT"] * inner + ["LEAF"] * (count - inner)
            node["nodes_truenodeids"] += [2 * i + 1 if i < inner else 0 for i in range(count)]
            node["nodes_falsenodeids"] += [2 * i + 2 if i < inner else 0 for i in range(count)]
            node["nodes_missing_value_tracks_true"] += tree.default_left
            leaf["target_treeids"] += [at] * (count - inner)
            leaf["target_nodeids"] += range(inner, count)
            leaf["target_ids"] += [0] * (count - inner)
            leaf["target_weights"] += tree.values[inner:]
        ensemble = helper.make_node(
            "TreeEnsembleRegressor", ["input"], ["margin"], domain="ai.onnx.ml", n_targets=1,
            aggregate_function="SUM", **node, **leaf,
        )  # fmt: skip
        graph = helper.make_graph(
            [ensemble, helper.make_node("Sigmoid", ["margin"], ["output"])], self.name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", self.features])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 1])],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return bytes(model.SerializeToString())

    def _trees(self) -> list[_Tree]:
        nodes = (1 << (self.depth + 1)) - 1
        numbers = uniform(f"{self.name}/forest", self.trees * 2 * nodes).reshape(self.trees, 2, nodes)
        return [self._tree(values, columns) for values, columns in numbers]

    def _tree(self, values: Floats, columns: Floats) -> _Tree:
        inner = (1 << self.depth) - 1
        at = ((columns + 1) / 2 * self.features).astype(int) % self.features
        scale = [1.5 if i < inner else 4.0 / self.trees for i in range(len(values))]
        return _Tree(
            inner=inner,
            values=[float(v) * s for v, s in zip(values, scale, strict=True)],
            columns=[int(c) if i < inner else 0 for i, c in enumerate(at)],
            default_left=[1 if i < inner and v > 0 else 0 for i, v in enumerate(values)],
        )

    def _tree_json(self, at: int, tree: _Tree) -> dict[str, Any]:
        count, inner = len(tree.values), tree.inner
        return {
            "base_weights": [0.0] * count,
            "categories": [], "categories_nodes": [], "categories_segments": [], "categories_sizes": [],
            "default_left": tree.default_left,
            "id": at,
            "left_children": [2 * i + 1 if i < inner else -1 for i in range(count)],
            "loss_changes": [0.0] * count,
            "parents": [_NO_PARENT, *((i - 1) // 2 for i in range(1, count))],
            "right_children": [2 * i + 2 if i < inner else -1 for i in range(count)],
            "split_conditions": tree.values,
            "split_indices": tree.columns,
            "split_type": [0] * count,
            "sum_hessian": [1.0] * count,
            "tree_param": {
                "num_deleted": "0", "num_feature": str(self.features), "num_nodes": str(count), "size_leaf_vector": "1",
            },
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    """A full tree in breadth-first order: children of i are 2i+1 and 2i+2; the first `inner` nodes are splits.

    `values`: thresholds of splits (below them: left), then the leaves' weights.
    """

    inner: int
    values: list[float]
    columns: list[int]
    default_left: list[int]
