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
from strongroom.models.operators import CONTROL, LEARNERS, STANDARD
from strongroom.oip import bytes_array

OPSET, OPSET_ML = 21, 3
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

TWO = {
    "LinearClassifier": (INT, FLOAT), "SVMClassifier": (INT, FLOAT), "Split": (FLOAT, FLOAT), "TopK": (FLOAT, INT),
    "TreeEnsembleClassifier": (INT, FLOAT),
}  # fmt: skip
"""Operators that make two tensors, and of which types."""


@dataclass(frozen=True)
class Node:
    """One node, and what it needs; all names begin with `prefix`."""

    name: str
    node: Any
    inputs: tuple[tuple[str, int, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, int], ...]
    constants: tuple[Any, ...]


def model(*nodes: Node) -> bytes:
    """The nodes side by side."""
    graph = helper.make_graph(
        [n.node for n in nodes],
        "nodes",
        [helper.make_tensor_value_info(*entry) for n in nodes for entry in n.inputs],
        [helper.make_tensor_value_info(name, kind, None) for n in nodes for name, kind in n.outputs],
        [c for n in nodes for c in n.constants],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
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
    domain, version = ("ai.onnx.ml", OPSET_ML) if name in LEARNERS else ("", OPSET)
    schema = defs.get_schema(name, version, domain)
    if name in KNOWN:
        calls: Any = [KNOWN[name]]
    else:
        kinds = [
            [k for k in KINDS if k in formal.types] for formal in schema.inputs[: max(1, schema.min_input)]
        ]
        pool = list(dict.fromkeys(k for options in kinds for k in options)) or ["tensor(float)"]
        calls = (
            ([(KINDS[kind if kind in options else options[0]], shape) for options in kinds if options], {})
            for kind, shape in itertools.product(sorted(pool, key=list(KINDS).index), SHAPES)
        )
    for inputs, attributes in calls:
        if name in TWO:
            yield _node(name, inputs, attributes, TWO[name])
            continue
        for kind in KINDS.values():
            yield _node(name, inputs, attributes, (kind,))


@functools.cache
def every() -> dict[str, Node | None]:
    """Operator -> a node of it that is admitted and runs, None where none was found."""
    found: dict[str, Node | None] = {}
    for name in sorted((STANDARD | LEARNERS) - CONTROL - {"ZipMap"}):
        found[name] = None
        try:
            tries = list(_tries(name))
        except defs.SchemaError:
            continue  # of another version of its operator set
        for node in tries:
            try:
                admitted = admit(model(node), format="onnx", limits=STANDARD_LIMITS)
                Engine().load(admitted).run(feed(admitted.info, np.random.default_rng(0)), outputs=())
            except Error:
                continue
            found[name] = node
            break
    return found


def packs(size: int = 40) -> list[tuple[tuple[str, ...], bytes]]:
    """(operators, model) of nodes that are admitted, side by side."""
    nodes = [node for node in every().values() if node is not None]
    chunks = [nodes[at : at + size] for at in range(0, len(nodes), size)]
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
