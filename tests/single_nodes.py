"""A model for every operator that admission lets run: one node each, found by trying; and models with many such nodes.

`packs()` gives models of about forty nodes side by side, each with inputs and outputs of its own, so that a test that
runs every operator loads a few models only.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, defs, helper, numpy_helper

from strongroom.engine import Engine
from strongroom.errors import Error
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS
from strongroom.models.operators import LEARNERS, STANDARD
from strongroom.oip import bytes_array

OPSET, OPSET_ML = 21, 3
VERSIONS = {
    "Attention": (24, OPSET_ML), "CumProd": (26, OPSET_ML), "RMSNormalization": (24, OPSET_ML),
    "RotaryEmbedding": (24, OPSET_ML), "Scatter": (10, 2), "Swish": (24, OPSET_ML), "TreeEnsemble": (OPSET, 5),
    "Upsample": (9, 2),
}  # fmt: skip
"""Operator sets (ONNX, ai.onnx.ml) of operators that are not in these."""
FLOAT, INT, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING
KINDS = {
    "tensor(float)": FLOAT, "tensor(int64)": INT, "tensor(bool)": BOOL, "tensor(string)": STRING,
    "tensor(uint8)": TensorProto.UINT8, "tensor(int8)": TensorProto.INT8, "tensor(int32)": TensorProto.INT32,
    "tensor(float16)": TensorProto.FLOAT16, "tensor(uint32)": TensorProto.UINT32,
}  # fmt: skip
SHAPES: tuple[tuple[int, ...], ...] = ((4, 4), (1, 4, 4, 4), (4,), (1, 4, 4), ())

# What cannot be guessed: (inputs, attributes); a number or list is a constant of int64, an array a constant, a tuple
# (element type, shape) an input.
X4, X2, X1 = (FLOAT, (1, 4, 4, 4)), (FLOAT, (4, 4)), (FLOAT, (4,))
W = np.ones((4, 4, 1, 1), np.float32)
ONES, ZERO8 = np.ones(4, np.float32), np.zeros(1, np.int8)
KNOWN: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "ArrayFeatureExtractor": ([X2, [1, 2]], {}),
    "AveragePool": ([X4], {"kernel_shape": [2, 2]}),
    "BitShift": ([(TensorProto.UINT32, (4,)), np.ones(4, np.uint32)], {"direction": "LEFT"}),
    "Attention": ([(FLOAT, (1, 2, 4, 4))] * 3, {}),
    "BlackmanWindow": ([np.array(8)], {}),
    "CategoryMapper": ([(INT, (4,))], {"cats_int64s": [0, 1], "cats_strings": ["a", "b"], "default_string": "c"}),
    "CumProd": ([X2, np.array(0)], {}),
    "DynamicQuantizeLinear": ([X2], {}),
    "HammingWindow": ([np.array(8)], {}),
    "HannWindow": ([np.array(8)], {}),
    "If": ([(BOOL, ()), X2], {}),
    "Loop": ([np.array(3), None, X2], {}),
    "RMSNormalization": ([X2, ONES], {}),
    "RotaryEmbedding": ([(FLOAT, (1, 2, 4, 4)), np.ones((4, 2), np.float32), np.ones((4, 2), np.float32),
                         np.zeros((1, 4), np.int64)], {}),
    "STFT": ([(FLOAT, (1, 16, 1)), np.array(4), None, np.array(8)], {}),
    "Scan": ([X1, X2], {"num_scan_inputs": 1}),
    "Scatter": ([X2, np.zeros((1, 4), np.int64), np.ones((1, 4), np.float32)], {}),
    "SVMClassifier": (
        [X2], {"classlabels_ints": [0, 1], "support_vectors": [1.0] * 4 + [2.0] * 4, "coefficients": [1.0, -1.0],
               "vectors_per_class": [1, 1], "rho": [0.5], "kernel_type": "LINEAR", "kernel_params": [0.0] * 3}),
    "TreeEnsemble": (
        [X2], {"nodes_splits": np.array([0.5], np.float32), "nodes_featureids": [0],
               "nodes_modes": np.array([0], np.uint8), "nodes_truenodeids": [0], "nodes_falsenodeids": [1],
               "nodes_trueleafs": [1], "nodes_falseleafs": [1], "tree_roots": [0], "leaf_targetids": [0, 0],
               "n_targets": 1, "aggregate_function": 1, "post_transform": 0,
               "leaf_weights": np.array([1.0, 2.0], np.float32)}),
    "BatchNormalization": ([X4, ONES, ONES, ONES, ONES], {}),
    "Binarizer": ([X2], {"threshold": 0.5}),
    "CastLike": ([X2, np.ones(1, np.int32)], {}),
    "Cast": ([X2], {"to": TensorProto.INT32}),
    "CenterCropPad": ([X2, [2, 2]], {}),
    "Clip": ([X2, np.float32(0), np.float32(1)], {}),
    "Concat": ([X2, X2], {"axis": 0}),
    "Constant": ([], {"value_floats": [1.0, 2.0]}),
    "ConstantOfShape": ([[2, 3]], {}),
    "Conv": ([X4, W], {}),
    "ConvInteger": ([(TensorProto.UINT8, (1, 4, 4, 4)), W.astype(np.uint8)], {}),
    "ConvTranspose": ([X4, W], {}),
    "CumSum": ([X2, np.array(0)], {}),
    "DepthToSpace": ([X4], {"blocksize": 2}),
    "DequantizeLinear": ([(TensorProto.INT8, (4, 4)), np.float32(0.5), np.int8(0)], {}),
    "Einsum": ([X2, X2], {"equation": "ij,jk->ik"}),
    "Expand": ([X1, [3, 4]], {}),
    "EyeLike": ([X2], {}),
    "FeatureVectorizer": ([X2, X2], {"inputdimensions": [4, 4]}),
    "Flatten": ([X4], {}),
    "Gather": ([X2, [1, 0]], {}),
    "GatherElements": ([X2, np.zeros((2, 4), np.int64)], {}),
    "GatherND": ([X2, np.array([[1], [0]])], {}),
    "Gemm": ([X2, X2, X1], {}),
    "GlobalLpPool": ([X4], {"p": 2}),
    "GridSample": ([X4, np.zeros((1, 4, 4, 2), np.float32)], {}),
    "GroupNormalization": ([X4, ONES, ONES], {"num_groups": 2}),
    "GRU": ([(FLOAT, (2, 1, 4)), np.ones((1, 12, 4), np.float32), np.ones((1, 12, 4), np.float32)], {"hidden_size": 4}),
    "Imputer": ([X2], {"imputed_value_floats": [0.5], "replaced_value_float": 0.0}),
    "InstanceNormalization": ([X4, ONES, ONES], {}),
    "LabelEncoder": ([(INT, (4,))], {"keys_int64s": [0, 1], "values_floats": [0.5, 1.5]}),
    "LayerNormalization": ([X2, ONES, ONES], {}),
    "LinearClassifier": ([X2], {"coefficients": [1.0] * 8, "intercepts": [0.0, 1.0], "classlabels_ints": [0, 1]}),
    "LinearRegressor": ([X2], {"coefficients": [1.0] * 4, "intercepts": [0.5]}),
    "LpPool": ([X4], {"kernel_shape": [2, 2]}),
    "LRN": ([X4], {"size": 3}),
    "LSTM": ([(FLOAT, (2, 1, 4)), np.ones((1, 16, 4), np.float32), np.ones((1, 16, 4), np.float32)],
             {"hidden_size": 4}),
    "MatMulInteger": ([(TensorProto.UINT8, (4, 4)), np.ones((4, 4), np.uint8)], {}),
    "MaxPool": ([X4], {"kernel_shape": [2, 2]}),
    "Mod": ([(INT, (4,)), np.array([3])], {}),
    "Normalizer": ([X2], {"norm": "L2"}),
    "OneHot": ([(INT, (4,)), np.array([3]), np.array([0.0, 1.0], np.float32)], {}),
    "OneHotEncoder": ([(INT, (4,))], {"cats_int64s": [0, 1, 2]}),
    "Pad": ([X2, [1, 1, 1, 1]], {}),
    "PRelu": ([X2, ONES], {}),
    "QLinearConv": (
        [(TensorProto.UINT8, (1, 4, 4, 4)), np.float32(0.5), np.uint8(1), W.astype(np.uint8), np.float32(0.5),
         np.uint8(0), np.float32(0.5), np.uint8(0)], {}),
    "QLinearMatMul": (
        [(TensorProto.UINT8, (4, 4)), np.float32(0.5), np.uint8(1), np.ones((4, 4), np.uint8), np.float32(0.5),
         np.uint8(0), np.float32(0.5), np.uint8(0)], {}),
    "QuantizeLinear": ([X2, np.float32(0.5), np.int8(0)], {}),
    "Range": ([np.array(0), np.array(5), np.array(2)], {}),
    "Reshape": ([X2, [2, 8]], {}),
    "Resize": ([X4, None, np.array([1, 1, 2, 2], np.float32)], {}),
    "ReverseSequence": ([X2, np.full(4, 2)], {"batch_axis": 0, "time_axis": 1}),
    "RNN": ([(FLOAT, (2, 1, 4)), np.ones((1, 4, 4), np.float32), np.ones((1, 4, 4), np.float32)], {"hidden_size": 4}),
    "RoiAlign": ([X4, np.array([[0, 0, 3, 3]], np.float32), np.array([0])], {"output_height": 2, "output_width": 2}),
    "Scaler": ([X2], {"offset": [0.5] * 4, "scale": [2.0] * 4}),
    "ScatterElements": ([X2, np.zeros((1, 4), np.int64), np.ones((1, 4), np.float32)], {}),
    "ScatterND": ([X2, np.array([[1]]), np.ones((1, 4), np.float32)], {}),
    "Slice": ([X2, [0], [2]], {}),
    "SpaceToDepth": ([X4], {"blocksize": 2}),
    "Split": ([X2], {"num_outputs": 2}),
    "Squeeze": ([X4, [0]], {}),
    "SVMRegressor": (
        [X2], {"support_vectors": [1.0] * 4, "coefficients": [1.0], "rho": [0.5], "n_supports": 1,
               "kernel_type": "LINEAR", "kernel_params": [0.0, 0.0, 0.0]}),
    "Tile": ([X2, [2, 1]], {}),
    "TopK": ([X2, np.array([2])], {}),
    "Transpose": ([X2], {"perm": [1, 0]}),
    "TreeEnsembleRegressor": (
        [X2], {"nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
               "nodes_values": [0.5, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
               "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0], "n_targets": 1,
               "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0]}),
    "TreeEnsembleClassifier": (
        [X2], {"nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
               "nodes_values": [0.5, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
               "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0], "classlabels_int64s": [0, 1],
               "class_treeids": [0, 0], "class_nodeids": [1, 2], "class_ids": [0, 1], "class_weights": [1.0, 2.0]}),
    "Trilu": ([X2], {}),
    "Unsqueeze": ([X2, [0]], {}),
    "Upsample": ([X4, np.array([1, 1, 2, 2], np.float32)], {}),
    "Where": ([(BOOL, (4, 4)), X2, X2], {}),
}  # fmt: skip

SEVERAL = {
    "DynamicQuantizeLinear": (TensorProto.UINT8, FLOAT, TensorProto.UINT8), "LinearClassifier": (INT, FLOAT),
    "Loop": (FLOAT, FLOAT), "SVMClassifier": (INT, FLOAT), "Scan": (FLOAT, FLOAT), "Split": (FLOAT, FLOAT),
    "TopK": (FLOAT, INT), "TreeEnsembleClassifier": (INT, FLOAT),
}  # fmt: skip
"""Operators that make more than one tensor, and of which types."""


def _graph(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Any:
    named = [helper.make_tensor_value_info(*entry) for entry in (*inputs, *outputs)]
    return helper.make_graph(nodes, name, named[: len(inputs)], named[len(inputs) :])


def _bodies(name: str) -> dict[str, Any]:
    """Graphs of an operator that has some. They compute with values from outside, where that is allowed, with what
    goes round, and with what is cut and stacked: each of them has buffers of its own.
    """
    if name == "If":
        yes = helper.make_node("Mul", ["If_1", "If_1"], ["If_yes"])
        no = helper.make_node("Neg", ["If_1"], ["If_no"])
        return {
            "then_branch": _graph("yes", [yes], [], [("If_yes", *X2)]),
            "else_branch": _graph("no", [no], [], [("If_no", *X2)]),
        }
    if name == "Loop":
        nodes = [
            helper.make_node("Identity", ["Loop_go"], ["Loop_on"]),
            helper.make_node("Add", ["Loop_in", "Loop_2"], ["Loop_sum"]),
            helper.make_node("Mul", ["Loop_in", "Loop_in"], ["Loop_scan"]),
        ]
        inputs = [("Loop_i", INT, ()), ("Loop_go", BOOL, ()), ("Loop_in", *X2)]
        outputs = [("Loop_on", BOOL, ()), ("Loop_sum", *X2), ("Loop_scan", *X2)]
        return {"body": _graph("round", nodes, inputs, outputs)}
    if name == "Scan":
        nodes = [
            helper.make_node("Add", ["Scan_state", "Scan_row"], ["Scan_sum"]),
            helper.make_node("Mul", ["Scan_row", "Scan_row"], ["Scan_square"]),
        ]
        inputs, outputs = [("Scan_state", *X1), ("Scan_row", *X1)], [("Scan_sum", *X1), ("Scan_square", *X1)]
        return {"body": _graph("row", nodes, inputs, outputs)}
    return {}


@dataclass(frozen=True)
class Node:
    """One node, and what it needs; all names begin with `prefix`."""

    name: str
    node: Any
    inputs: tuple[tuple[str, int, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, int], ...]
    constants: tuple[Any, ...]

    @property
    def versions(self) -> tuple[int, int]:
        """Its operator sets: of ONNX, of ai.onnx.ml."""
        return VERSIONS.get(self.name, (OPSET, OPSET_ML))


def model(*nodes: Node) -> bytes:
    """The nodes side by side; all of the same operator sets."""
    ((opset, opset_ml),) = {n.versions for n in nodes}
    graph = helper.make_graph(
        [n.node for n in nodes],
        "nodes",
        [helper.make_tensor_value_info(*entry) for n in nodes for entry in n.inputs],
        [helper.make_tensor_value_info(name, kind, None) for n in nodes for name, kind in n.outputs],
        [c for n in nodes for c in n.constants],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", opset_ml)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def _node(name: str, inputs: list[Any], attributes: dict[str, Any], outputs: tuple[int, ...]) -> Node:
    domain = "ai.onnx.ml" if name in LEARNERS else ""
    names, given, constants = [], [], []
    for number, value in enumerate(inputs):
        called = f"{name}_{number}"
        if value is None:
            names.append("")
            continue
        names.append(called)
        if isinstance(value, tuple):
            given.append((called, *value))
        else:
            array = np.asarray(value, np.int64) if isinstance(value, list) else np.asarray(value)
            constants.append(numpy_helper.from_array(array, called))
    if name == "If":
        names = names[:1]  # the rest is what its branches take from outside
    tensors = {k: numpy_helper.from_array(v) for k, v in attributes.items() if isinstance(v, np.ndarray)}
    attributes = {**attributes, **tensors, **_bodies(name)}
    made = helper.make_node(
        name, names, [f"{name}_out{n}" for n in range(len(outputs))], domain=domain, **attributes
    )
    return Node(
        name,
        made,
        tuple(given),
        tuple((f"{name}_out{n}", kind) for n, kind in enumerate(outputs)),
        tuple(constants),
    )


def _tries(name: str) -> Iterator[Node]:
    """Ways in which the operator might be admitted."""
    if name in KNOWN:
        calls: Any = [KNOWN[name]]
    else:
        opset, opset_ml = VERSIONS.get(name, (OPSET, OPSET_ML))
        domain, version = ("ai.onnx.ml", opset_ml) if name in LEARNERS else ("", opset)
        schema = defs.get_schema(name, version, domain)
        kinds = [
            [k for k in KINDS if k in formal.types] for formal in schema.inputs[: max(1, schema.min_input)]
        ]
        pool = list(dict.fromkeys(k for options in kinds for k in options)) or ["tensor(float)"]
        calls = (
            ([(KINDS[kind if kind in options else options[0]], shape) for options in kinds if options], {})
            for kind, shape in itertools.product(sorted(pool, key=list(KINDS).index), SHAPES)
        )
    for inputs, attributes in calls:
        if name in SEVERAL:
            yield _node(name, inputs, attributes, SEVERAL[name])
            continue
        for kind in KINDS.values():
            yield _node(name, inputs, attributes, (kind,))


NOT_RUN = {"ZipMap": "admission cuts it off where it makes an output, and refuses it elsewhere"}
"""Operators that are in admission's list and have no node here, and why."""


@functools.cache
def every() -> dict[str, Node | None]:
    """Operator -> a node of it that is admitted and runs, None where none was found."""
    return {name: _found(name) for name in sorted((STANDARD | LEARNERS) - NOT_RUN.keys())}


def _found(name: str) -> Node | None:
    for node in _tries(name):
        try:
            admitted = admit(model(node), format="onnx", limits=STANDARD_LIMITS)
            Engine().load(admitted).run(feed(admitted.info, np.random.default_rng(0)), outputs=())
        except Error:
            continue
        return node
    return None


def packs(size: int = 40) -> list[tuple[tuple[str, ...], bytes]]:
    """(operators, model) of nodes that are admitted, side by side; a model has one version of each operator set."""
    nodes = sorted((node for node in every().values() if node is not None), key=lambda node: node.versions)
    chunks = []
    for _, group in itertools.groupby(nodes, key=lambda node: node.versions):
        alike = list(group)
        chunks += [alike[at : at + size] for at in range(0, len(alike), size)]
    return [(tuple(n.name for n in chunk), model(*chunk)) for chunk in chunks]


def feed(info: Any, rng: np.random.Generator | None) -> dict[str, Any]:
    """Inputs for a model of fixed shapes: random bytes that are legal values, or ones where `rng` is None."""
    fed = {}
    for spec in info.inputs:
        shape = tuple(spec.shape)
        count = int(np.prod(shape, dtype=np.int64))
        if spec.datatype == "BYTES":
            texts = [b"1"] * count if rng is None else [rng.bytes(16).hex().encode() for _ in range(count)]
            fed[spec.name] = bytes_array(texts, shape=shape)
            continue
        kind = {"FP32": np.float32, "FP16": np.float16, "INT64": np.int64, "BOOL": np.bool_, "UINT8": np.uint8,
                "INT8": np.int8, "INT32": np.int32, "UINT32": np.uint32}[spec.datatype]  # fmt: skip
        values = np.ones(count) if rng is None else rng.uniform(1, 100, count)
        fed[spec.name] = values.astype(kind).reshape(shape)
    return fed
