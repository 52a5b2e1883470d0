"""Makes minimal hostile models, one for each clause of docs/spec/admission.md, each beside its good twin.

A bare clone checks every claim with them. Each is wrong in one respect; `python tests/models/hostile.py DIR` writes
them all as files, with the expected codes in `manifest.json`.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

FLOAT, INT64, INT32, BOOL, STRING = (
    TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING,
)  # fmt: skip
ML = "ai.onnx.ml"


@dataclass(frozen=True)
class Vector:
    """A model that a clause refuses with a code, and one that differs in that respect only."""

    rule: str
    code: str
    bad: Callable[[], Any]
    good: Callable[[], Any]


def value(name: str, kind: int = FLOAT, shape: Any = ("n", 4)) -> Any:
    """An input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str = "Relu", inputs: Any = ("x",), outputs: Any = ("y",), **attributes: Any) -> Any:
    """A node; by default the one of the smallest model."""
    return helper.make_node(operator, list(inputs), list(outputs), **attributes)


def constant(name: str, values: Any, kind: int = INT64) -> Any:
    """An initializer."""
    array = np.array(values)
    return helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist())


def model(
    *nodes: Any,
    inputs: Any = None,
    outputs: Any = None,
    constants: Any = (),
    opset: int = 17,
    ml: int | None = None,
    ir: int = 8,
    functions: Any = (),
    imports: Any = (),
) -> Any:
    """A ModelProto around these nodes: y = Relu(x) unless said otherwise."""
    graph = helper.make_graph(
        list(nodes) or [node()],
        "graph",
        [value("x")] if inputs is None else inputs,
        [value("y", shape=None)] if outputs is None else outputs,
        initializer=list(constants),
    )
    opsets = [("", opset), *([(ML, ml)] if ml else []), *imports]
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*entry) for entry in opsets], ir_version=ir
    )
    made.functions.extend(functions)
    return made


def changed(made: Any, change: Callable[[Any], Any]) -> Any:
    """The model after `change`."""
    change(made)
    return made


def weights(dims: Any, name: str = "w") -> Any:
    """A constant of ones."""
    return helper.make_tensor(name, FLOAT, dims, np.ones(dims, np.float32).tobytes(), raw=True)


def filled(shape: Any, then: Any = (), **how: Any) -> Any:
    """A constant of this shape, made by ConstantOfShape, and nodes after it; the result is `y`."""
    last = then[-1] if then else None
    nodes = [node("ConstantOfShape", ["s"], ["f" if then else "c"]), *then]
    if last is None:
        nodes.append(node("Add", ["x", "c"], ["y"]))
    return model(*nodes, inputs=[value("x", shape=[1])], constants=[constant("s", shape)], **how)


def branch(*nodes: Any, output: str = "b", kind: int = FLOAT) -> Any:
    """The branch of an If."""
    return helper.make_graph(list(nodes), f"branch_{output}", [], [value(output, kind, None)])


def choice(then: Any, other: Any, **how: Any) -> Any:
    """An If whose condition is an input."""
    made = node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return model(made, inputs=[value("x"), value("c", BOOL, [])], **how)


def loop(trips: Any, *body: Any, carried: Any = ("n", 4), scans: int = 0, keep: bool = True) -> Any:
    """A Loop that carries x through `body` (from `v` to `w`)."""
    nodes = [node("Identity", ["k"], ["on"]), *(body or [node("Relu", ["v"], ["w"])])]
    inner = helper.make_graph(
        nodes,
        "body",
        [value("i", INT64, []), value("k", BOOL, []), value("v", FLOAT, None)],
        [value("on", BOOL, []), value("w", FLOAT, None), *(value("w2", FLOAT, None) for _ in range(scans))],
    )
    if scans:
        inner.node.append(node("Identity", ["v"], ["w2"]))
    names = ["y", *(f"z{n}" for n in range(scans))]
    made = node("Loop", ["m" if trips is not None else "", "go", "x"], names, body=inner)
    constants = [constant("go", keep, BOOL)] + ([constant("m", trips)] if trips is not None else [])
    return model(made, inputs=[value("x", FLOAT, carried)], constants=constants)


def function(name: str = "F", domain: str = "local", body: Any = None, **how: Any) -> Any:
    """A function of the model."""
    nodes = body or [node("Relu", ["a"], ["b"])]
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid("local", 1)] if domain == "local" else [])]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, imports, **how)


def call(*functions: Any, domain: str = "local") -> Any:
    """A model that calls F."""
    imports = [] if domain in ("", "ai.onnx") else [(domain, 1)]
    return model(node("F", domain=domain), functions=functions, imports=imports)


def laughs(count: int) -> Any:
    """Functions that each call the next one twice."""
    functions = []
    for level in range(count):
        name, domain = ("Relu", "") if level == count - 1 else (f"F{level + 1}", "local")
        body = [node(name, ["a"], ["m"], domain=domain), node(name, ["m"], ["b"], domain=domain)]
        functions.append(function("F" if level == 0 else f"F{level}", body=body))
    return call(*functions)


def nested(depth: int) -> Any:
    """Ifs within Ifs."""
    inner = node("Relu", ["x"], ["b0"])
    for level in range(depth):
        other = branch(node("Neg", ["x"], [f"e{level}"]), output=f"e{level}")
        then = branch(inner, output=inner.output[0])
        inner = node("If", ["c"], [f"b{level + 1}"], then_branch=then, else_branch=other)
    inner.output[0] = "y"
    return model(inner, inputs=[value("x"), value("c", BOOL, [])])


TREE = {
    "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [3, 0, 0],
    "nodes_values": [0.5, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0], "target_treeids": [0, 0],
    "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0], "n_targets": 1,
}  # fmt: skip
PAIR = {  # a split below a split
    "nodes_treeids": [0] * 5, "nodes_nodeids": [0, 1, 2, 3, 4], "nodes_featureids": [0] * 5,
    "nodes_values": [0.5] * 5, "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 3, 0, 0, 0], "nodes_falsenodeids": [2, 4, 0, 0, 0], "target_treeids": [0] * 3,
    "target_nodeids": [2, 3, 4], "target_ids": [0] * 3, "target_weights": [1.0] * 3, "n_targets": 1,
}  # fmt: skip


def trees(base: Any = TREE, **changes: Any) -> Any:
    """A TreeEnsembleRegressor."""
    return model(node("TreeEnsembleRegressor", domain=ML, **{**base, **changes}), ml=3)


def ensemble(**changes: Any) -> Any:
    """A TreeEnsemble of version 5: one split with two leaves."""
    attributes = {
        "n_targets": 1, "aggregate_function": 1, "post_transform": 0, "tree_roots": [0], "nodes_featureids": [3],
        "nodes_truenodeids": [0], "nodes_trueleafs": [1], "nodes_falsenodeids": [1], "nodes_falseleafs": [1],
        "leaf_targetids": [0, 0],
    }  # fmt: skip
    splits, modes = weights([1], "splits"), constant("modes", [0], TensorProto.UINT8)
    tensors = {"nodes_splits": splits, "nodes_modes": modes, "leaf_weights": weights([2], "leaves")}
    return model(node("TreeEnsemble", domain=ML, **{**attributes, **tensors, **changes}), ml=5, opset=21)


def classifier(count: int = 12, **changes: Any) -> Any:
    """A LinearClassifier of three classes over four columns."""
    attributes: dict[str, Any] = {
        "coefficients": [1.0] * count, "intercepts": [0.0] * 3, "classlabels_ints": [0, 1, 2],
        "multi_class": 0, "post_transform": "SOFTMAX",
    }  # fmt: skip
    made = node("LinearClassifier", ["x"], ["label", "y"], domain=ML, **{**attributes, **changes})
    return model(made, ml=1)


def machine(**changes: Any) -> Any:
    """An SVMClassifier of two classes with one vector each."""
    attributes: dict[str, Any] = {
        "classlabels_ints": [0, 1], "vectors_per_class": [1, 1], "support_vectors": [1.0] * 8,
        "coefficients": [1.0, -1.0], "rho": [0.5], "kernel_type": "RBF", "kernel_params": [0.1, 0.0, 3.0],
        "post_transform": "NONE",
    }  # fmt: skip
    return model(node("SVMClassifier", ["x"], ["label", "y"], domain=ML, **{**attributes, **changes}), ml=1)


def lstm(hidden: int = 8, **how: Any) -> Any:
    """An LSTM with weights for eight hidden units."""
    made = node("LSTM", ["x", "w", "r"], ["y"], hidden_size=hidden, **how)
    return model(
        made,
        inputs=[value("x", shape=["s", "n", 4])],
        constants=[weights([1, 32, 4]), weights([1, 32, 8], "r")],
    )


def external(tensor: Any) -> Any:
    """The tensor, its data in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def add(tensor: Any) -> Any:
    """x plus a constant."""
    return model(node("Add", ["x", "w"]), constants=[tensor])


def altered(change: Callable[[Any], Any]) -> Any:
    """The same with an altered constant."""
    tensor = weights([4])
    change(tensor)
    return add(tensor)


def sparse() -> Any:
    """A model with a sparse constant."""
    made = helper.make_sparse_tensor(weights([1], "v"), constant("i", [0]), [4])
    return model(node("Constant", [], ["w"], sparse_value=made), node("Add", ["x", "w"]))


def put(where: str, data: bytes) -> Callable[[], Any]:
    """The smallest model with bytes at its end."""
    return lambda: model().SerializeToString() + data


def random_like() -> Any:
    """x plus noise."""
    return model(node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"]))


def doubling(count: int) -> Any:
    """Concat(v, v), again and again."""
    names = ["x", *(f"v{n}" for n in range(count - 1)), "y"]
    nodes = [node("Concat", [a, a], [b], axis=1) for a, b in itertools.pairwise(names)]
    return model(*nodes, inputs=[value("x", shape=[1, 64])])


def texts(count: int) -> Any:
    """StringConcat(v, v), again and again."""
    names = ["x", *(f"v{n}" for n in range(count - 1)), "y"]
    nodes = [node("StringConcat", [a, a], [b]) for a, b in itertools.pairwise(names)]
    return model(*nodes, inputs=[value("x", STRING, [1])], outputs=[value("y", STRING, None)], opset=20)


def products(count: int, size: int = 2048) -> Any:
    """Matrix products of a matrix that Expand makes of one number."""
    names = ["m", *(f"v{n}" for n in range(count - 1)), "y"]
    nodes = [node("MatMul", [a, "m"], [b]) for a, b in itertools.pairwise(names)]
    nodes.insert(0, node("Expand", ["x", "s"], ["m"]))
    return model(*nodes, inputs=[value("x", shape=[1])], constants=[constant("s", [size, size])])


def shaped(size: Any, *, from_input: bool) -> Any:
    """x expanded to a shape that is a constant, or an input."""
    inputs = [value("x", shape=[1]), *([value("s", INT64, [2])] if from_input else [])]
    return model(
        node("Expand", ["x", "s"]), inputs=inputs, constants=[] if from_input else [constant("s", size)]
    )


def powers(count: int, side: int) -> Any:
    """Matrix products of constants: work that the engine does while it loads."""
    names = ["f", *(f"v{n}" for n in range(count))]
    then = [node("MatMul", [a, "f"], [b]) for a, b in itertools.pairwise(names)]
    then.append(node("ReduceSum", [names[-1]], ["t"], keepdims=0))
    return filled([side, side], [*then, node("Add", ["x", "t"])])


V = Vector
VECTORS: dict[str, Vector] = {
    # 1. Format
    "protobuf that ends early": V("1.3", "onnx_malformed", lambda: model().SerializeToString()[:-3], model),
    "no graph": V("1.3", "onnx_malformed", lambda: changed(model(), lambda m: m.ClearField("graph")), model),
    "two models": V("1.4", "onnx_merged", lambda: model().SerializeToString() * 2, model),
    "a second graph": V("1.4", "onnx_merged", put("end", b"\x3a\x00"), model),
    "unknown field": V("1.5", "onnx_unknown_field", put("end", b"\xba\x3e\x01x"), model),
    "training": V(
        "1.6", "onnx_training_info", lambda: changed(model(), lambda m: m.training_info.add()), model
    ),
    # 2. Versions
    "IR of the future": V("2.1", "onnx_version", lambda: model(ir=15), lambda: model(ir=14)),
    "opset of the future": V("2.1", "onnx_version", lambda: model(opset=29), lambda: model(opset=28)),
    "ml opset of the future": V("2.1", "onnx_version", lambda: model(ml=6), lambda: model(ml=5)),
    "two versions": V(
        "2.1", "onnx_version", lambda: model(imports=[("", 18)]), lambda: model(imports=[("", 17)])
    ),
    # 3. Tensors
    "data elsewhere": V(
        "3.1", "onnx_external_data", lambda: add(external(weights([4]))), lambda: add(weights([4]))
    ),
    "data elsewhere, in an attribute": V(
        "3.1",
        "onnx_external_data",
        lambda: model(node("Constant", [], ["w"], value=external(weights([4]))), node("Add", ["x", "w"])),
        lambda: model(node("Constant", [], ["w"], value=weights([4])), node("Add", ["x", "w"])),
    ),
    "data elsewhere, in a branch": V(
        "3.1",
        "onnx_external_data",
        lambda: choice(
            branch(node("Constant", [], ["b"], value=external(weights([4])))),
            branch(node("Relu", ["x"], ["e"]), output="e"),
        ),
        lambda: choice(
            branch(node("Constant", [], ["b"], value=weights([4]))),
            branch(node("Relu", ["x"], ["e"]), output="e"),
        ),
    ),
    "a location and data": V(
        "3.1",
        "onnx_external_data",
        lambda: altered(lambda t: t.external_data.add(key="location", value="w")),
        lambda: add(weights([4])),
    ),
    "sparse": V("3.2", "onnx_sparse", sparse, lambda: add(weights([4]))),
    "raw data short": V(
        "3.3",
        "onnx_tensor",
        lambda: altered(lambda t: setattr(t, "raw_data", b"0" * 8)),
        lambda: add(weights([4])),
    ),
    "raw data long": V(
        "3.3",
        "onnx_tensor",
        lambda: altered(lambda t: setattr(t, "raw_data", b"0" * 99)),
        lambda: add(weights([4])),
    ),
    "two sets of data": V(
        "3.3", "onnx_tensor", lambda: altered(lambda t: t.float_data.append(1)), lambda: add(weights([4]))
    ),
    "negative size": V(
        "3.3", "onnx_tensor", lambda: altered(lambda t: t.dims.extend([-1, -1])), lambda: add(weights([4]))
    ),
    "sizes that wrap round": V(
        "3.3",
        "onnx_tensor",
        lambda: altered(lambda t: t.dims.extend([1 << 62, 4])),
        lambda: add(weights([4])),
    ),
    "unknown element type": V(
        "3.3",
        "onnx_tensor",
        lambda: altered(lambda t: setattr(t, "data_type", 99)),
        lambda: add(weights([4])),
    ),
    # 4. Operators
    "operator that is none": V("4.1", "onnx_operator", lambda: model(node("Reluu")), model),
    "operator of a later set": V(
        "4.1", "onnx_operator", lambda: model(node("Gelu")), lambda: model(node("Gelu"), opset=20)
    ),
    "somebody's domain": V(
        "4.1", "onnx_domain", lambda: model(node(domain="evil"), imports=[("evil", 1)]), model
    ),
    "com.microsoft": V(
        "4.1",
        "onnx_domain",
        lambda: model(node("Gelu", domain="com.microsoft"), imports=[("com.microsoft", 1)]),
        model,
    ),
    "operator that is not run": V(
        "4.2", "onnx_operator_refused", lambda: model(node("Det"), inputs=[value("x", shape=[4, 4])]), model
    ),
    "sequences": V(
        "4.2",
        "onnx_operator_refused",
        lambda: model(
            node("SequenceConstruct", ["x"], ["q"]),
            node("SequenceAt", ["q", "i"]),
            constants=[constant("i", 0)],
        ),
        model,
    ),
    "ZipMap in the middle": V(
        "4.2",
        "onnx_operator_refused",
        lambda: model(node("ZipMap", ["x"], ["q"], domain=ML, classlabels_int64s=[1, 2, 3, 4]), node(), ml=1),
        lambda: model(node(), ml=1),
    ),
    "noise": V("4.3", "onnx_random", random_like, lambda: model(node("Add", ["x", "x"]))),
    "dropout that trains": V(
        "4.3",
        "onnx_random",
        lambda: model(
            node("Dropout", ["x", "r", "t"]), constants=[constant("r", 0.5, FLOAT), constant("t", True, BOOL)]
        ),
        lambda: model(
            node("Dropout", ["x", "r", "t"]),
            constants=[constant("r", 0.5, FLOAT), constant("t", False, BOOL)],
        ),
    ),
    "dropout that may train": V(
        "4.3",
        "onnx_random",
        lambda: model(node("Dropout", ["x", "", "t"]), inputs=[value("x"), value("t", BOOL, [])]),
        lambda: model(node("Dropout", ["x"])),
    ),
    "normalisation that trains": V(
        "4.3",
        "onnx_random",
        lambda: model(
            node("BatchNormalization", ["x", "w", "w", "w", "w"], training_mode=1), constants=[weights([4])]
        ),
        lambda: model(
            node("BatchNormalization", ["x", "w", "w", "w", "w"], training_mode=0), constants=[weights([4])]
        ),
    ),
    "statistics": V(
        "4.3",
        "onnx_random",
        lambda: model(
            node("BatchNormalization", ["x", "w", "w", "w", "w"], ["y", "m"]), constants=[weights([4])]
        ),
        lambda: model(node("BatchNormalization", ["x", "w", "w", "w", "w"]), constants=[weights([4])]),
    ),
    "input left out": V(
        "4.4",
        "onnx_arity",
        lambda: model(node("Max", ["x", "", "x"])),
        lambda: model(node("Max", ["x", "x"])),
    ),
    "output left out": V(
        "4.4",
        "onnx_arity",
        lambda: model(node("Split", ["x"], ["y", ""], axis=1)),
        lambda: model(node("Split", ["x"], ["y", "z"], axis=1)),
    ),
    "too few inputs": V(
        "4.4", "onnx_arity", lambda: model(node("Add", ["x"])), lambda: model(node("Add", ["x", "x"]))
    ),
    "too many inputs": V("4.4", "onnx_arity", lambda: model(node("Relu", ["x", "x"])), model),
    "unknown attribute": V(
        "4.5", "onnx_attribute", lambda: model(node("Relu", alpha=1.0)), lambda: model(node("Elu", alpha=1.0))
    ),
    "attribute of another type": V(
        "4.5", "onnx_attribute", lambda: model(node("Elu", alpha=1)), lambda: model(node("Elu", alpha=1.0))
    ),
    "attribute that is missing": V(
        "4.5",
        "onnx_attribute",
        lambda: model(node("Concat", ["x", "x"])),
        lambda: model(node("Concat", ["x", "x"], axis=0)),
    ),
    "attribute twice": V(
        "4.5",
        "onnx_attribute",
        lambda: changed(
            model(node("Elu", alpha=1.0)),
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("alpha", 2.0)),
        ),
        lambda: model(node("Elu", alpha=1.0)),
    ),
    "unwritten output": V(
        "4.6",
        "onnx_attribute_range",
        lambda: model(node("Cast", to=FLOAT, saturate=4), opset=19),
        lambda: model(node("Cast", to=FLOAT, saturate=1), opset=19),
    ),
    "flag of 2": V(
        "4.6",
        "onnx_attribute_range",
        lambda: model(node("ReduceSum", keepdims=2)),
        lambda: model(node("ReduceSum", keepdims=1)),
    ),
    "axis": V(
        "4.6",
        "onnx_attribute_range",
        lambda: model(node("Softmax", axis=1 << 40)),
        lambda: model(node("Softmax", axis=1)),
    ),
    "axis that is not there": V(
        "4.6",
        "onnx_attribute_range",
        lambda: model(node("Softmax", axis=2)),
        lambda: model(node("Softmax", axis=1)),
    ),
    "block size": V(
        "4.6",
        "onnx_attribute_range",
        lambda: model(node("DepthToSpace", blocksize=1 << 62), inputs=[value("x", shape=[1, 4, 2, 2])]),
        lambda: model(node("DepthToSpace", blocksize=2), inputs=[value("x", shape=[1, 4, 2, 2])]),
    ),
    "stride of 0": V(
        "4.6",
        "onnx_attribute_range",
        lambda: model(node("MaxPool", kernel_shape=[2], strides=[0]), inputs=[value("x", shape=[1, 1, 8])]),
        lambda: model(node("MaxPool", kernel_shape=[2], strides=[1]), inputs=[value("x", shape=[1, 1, 8])]),
    ),
    "pads": V(
        "4.6",
        "onnx_attribute_range",
        lambda: model(
            node("Conv", ["x", "w"], pads=[10**6] * 2),
            inputs=[value("x", shape=[1, 1, 8])],
            constants=[weights([1, 1, 3])],
        ),
        lambda: model(
            node("Conv", ["x", "w"], pads=[1] * 2),
            inputs=[value("x", shape=[1, 1, 8])],
            constants=[weights([1, 1, 3])],
        ),
    ),
    "word that is none": V(
        "4.6",
        "onnx_attribute_range",
        lambda: model(node("Pad", ["x", "p"], mode="mirror"), constants=[constant("p", [0, 1, 0, 1])]),
        lambda: model(node("Pad", ["x", "p"], mode="edge"), constants=[constant("p", [0, 1, 0, 1])]),
    ),
    "equation": V(
        "4.6",
        "onnx_attribute_range",
        lambda: model(node("Einsum", ["x", "x"], equation="ij,ij->q")),
        lambda: model(node("Einsum", ["x", "x"], equation="ij,ij->i")),
    ),
    "type that is not taken": V("4.7", "onnx_type", lambda: model(node("Not")), lambda: model(node("Neg"))),
    "types that differ": V(
        "4.7",
        "onnx_type",
        lambda: model(node("Add", ["x", "k"]), constants=[constant("k", [1])]),
        lambda: add(weights([1])),
    ),
    "output of another type": V(
        "4.7", "onnx_type", lambda: model(node("Cast", to=STRING)), lambda: model(node("Cast", to=FLOAT))
    ),
    "branches of two types": V(
        "4.7",
        "onnx_type",
        lambda: choice(
            branch(node("Relu", ["x"], ["b"])),
            branch(node("Cast", ["x"], ["e"], to=INT64), output="e", kind=INT64),
        ),
        lambda: choice(
            branch(node("Relu", ["x"], ["b"])), branch(node("Cast", ["x"], ["e"], to=FLOAT), output="e")
        ),
    ),
    # 5. Names
    "line break": V("5.1", "onnx_name", lambda: model(node(name="a\nb")), lambda: model(node(name="a b"))),
    "escape": V(
        "5.1",
        "onnx_name",
        lambda: model(node(outputs=["y\x1b[31m"]), outputs=[value("y\x1b[31m", shape=None)]),
        model,
    ),
    "path": V("5.1", "onnx_name", lambda: model(node(name="../x")), lambda: model(node(name="/x:0"))),
    # 6. Structure
    "cycle": V(
        "6.1",
        "onnx_graph",
        lambda: model(node("Add", ["x", "m"]), node("Relu", ["y"], ["m"])),
        lambda: model(node(), node("Relu", ["y"], ["m"])),
    ),
    "not in order": V(
        "6.1",
        "onnx_graph",
        lambda: model(node("Relu", ["m"]), node("Relu", ["x"], ["m"])),
        lambda: model(node("Relu", ["x"], ["m"]), node("Relu", ["m"])),
    ),
    "twice": V(
        "6.1", "onnx_graph", lambda: model(node(), node()), lambda: model(node(), node(outputs=["z"]))
    ),
    "hidden": V(
        "6.1",
        "onnx_graph",
        lambda: choice(
            branch(node("Relu", ["x"], ["x"]), output="x"), branch(node("Neg", ["x"], ["e"]), output="e")
        ),
        lambda: choice(branch(node("Relu", ["x"], ["b"])), branch(node("Neg", ["x"], ["e"]), output="e")),
    ),
    "no output": V("6.1", "onnx_graph", lambda: model(outputs=[]), model),
    "nested too deeply": V("6.2", "onnx_too_complex", lambda: nested(24), lambda: nested(8)),
    "laughs": V("6.2", "onnx_too_complex", lambda: laughs(30), lambda: laughs(4)),
    "function that calls itself": V(
        "6.3",
        "onnx_function",
        lambda: call(function(body=[node("F", ["a"], ["b"], domain="local")])),
        lambda: call(function()),
    ),
    "function in place of an operator": V(
        "6.3",
        "onnx_function",
        lambda: call(function(domain="ai.onnx"), domain="ai.onnx"),
        lambda: call(function()),
    ),
    "function twice": V(
        "6.3", "onnx_function", lambda: call(function(), function()), lambda: call(function(), function("G"))
    ),
    # 7. Edge
    "input of half a byte": V(
        "7.1",
        "onnx_io_type",
        lambda: model(node("Cast", to=FLOAT), inputs=[value("x", TensorProto.INT4)], opset=21),
        lambda: model(node("Cast", to=FLOAT), inputs=[value("x", TensorProto.INT8)], opset=21),
    ),
    # 8. Cost
    "inner dimensions": V(
        "8.1",
        "onnx_shape",
        lambda: model(node("MatMul", ["x", "w"]), constants=[weights([5, 2])]),
        lambda: model(node("MatMul", ["x", "w"]), constants=[weights([4, 2])]),
    ),
    "scale of another rank": V(
        "8.1",
        "onnx_shape",
        lambda: model(node("LayerNormalization", ["x", "w"], axis=-1), constants=[weights([1, 1, 4])]),
        lambda: model(node("LayerNormalization", ["x", "w"], axis=-1), constants=[weights([4])]),
    ),
    "scale of another rank, never run": V(
        "8.1", "onnx_shape", lambda: _never_run([1, 1, 4]), lambda: _never_run([4])
    ),
    "depth of nothing": V("8.1", "onnx_shape", lambda: _one_hot([]), lambda: _one_hot([3])),
    "rows that may be none": V(
        "8.1",
        "onnx_shape",
        lambda: _side_by_side(node("Slice", ["x", "one", "most", "zero"], ["a"])),
        lambda: _side_by_side(node("Relu", ["x"], ["a"])),
    ),
    "indices of any length": V(
        "8.1",
        "onnx_shape",
        lambda: model(node("GatherND", ["x", "i"]), inputs=[value("x"), value("i", INT64, ["k", "d"])]),
        lambda: model(node("GatherND", ["x", "i"]), inputs=[value("x"), value("i", INT64, ["k", 2])]),
    ),
    "index that is not there": V(
        "8.1",
        "onnx_shape",
        lambda: model(node("Gather", ["x", "i"], axis=1), constants=[constant("i", [4])]),
        lambda: model(node("Gather", ["x", "i"], axis=1), constants=[constant("i", [3])]),
    ),
    "hidden units": V("8.1", "onnx_shape", lambda: lstm(1 << 31), lstm),
    "large constant": V(
        "8.2", "onnx_memory", lambda: filled([1 << 18, 1 << 18]), lambda: filled([1 << 4, 1 << 4])
    ),
    "large shape": V(
        "8.2",
        "onnx_memory",
        lambda: shaped([1 << 20, 1 << 20], from_input=False),
        lambda: shaped([8, 8], from_input=False),
    ),
    "doubling": V("8.2", "onnx_memory", lambda: doubling(34), lambda: doubling(4)),
    "texts that double": V("8.2", "onnx_memory", lambda: texts(36), lambda: texts(3)),
    "large pads": V(
        "8.2",
        "onnx_memory",
        lambda: model(node("Pad", ["x", "p"]), constants=[constant("p", [0, 0, 0, 1 << 38])]),
        lambda: model(node("Pad", ["x", "p"]), constants=[constant("p", [0, 0, 0, 8])]),
    ),
    "large factor": V("8.2", "onnx_memory", lambda: _resize(1e5), lambda: _resize(2.0)),
    "long range": V("8.2", "onnx_memory", lambda: _range(10**12), lambda: _range(10)),
    "declared shape that lies": V(
        "8.2",
        "onnx_memory",
        lambda: changed(
            filled([1 << 17, 1 << 17]), lambda m: m.graph.output[0].CopyFrom(value("y", shape=[1, 4]))
        ),
        lambda: changed(filled([1, 4]), lambda m: m.graph.output[0].CopyFrom(value("y", shape=[1, 4]))),
    ),
    "input that nobody can send": V(
        "8.2",
        "onnx_memory",
        lambda: model(inputs=[value("x", shape=[1 << 31, 4])]),
        lambda: model(inputs=[value("x", shape=[1 << 3, 4])]),
    ),
    "products": V("8.3", "onnx_compute", lambda: products(600), lambda: products(4, 64)),
    "work while loading": V("8.3", "onnx_compute", lambda: powers(10, 2048), lambda: powers(10, 16)),
    "large convolution": V("8.3", "onnx_compute", lambda: _conv(2048, 1024), lambda: _conv(8, 64)),
    "many iterations": V("8.4", "onnx_loop", lambda: loop(1 << 62), lambda: loop(100)),
    "iterations of iterations": V("8.4", "onnx_loop", lambda: _loops(1000), lambda: _loops(4)),
    "endless": V("8.5", "onnx_unbounded", lambda: loop(None), lambda: loop(100)),
    "shape that callers choose": V(
        "8.5",
        "onnx_unbounded",
        lambda: shaped(None, from_input=True),
        lambda: shaped([8, 8], from_input=False),
    ),
    "loop that grows": V(
        "8.5",
        "onnx_unbounded",
        lambda: loop(100, node("Concat", ["v", "v"], ["w"], axis=0)),
        lambda: loop(100),
    ),
    "any rank": V("8.5", "onnx_unbounded", lambda: model(inputs=[value("x", shape=None)]), model),
    # 9. Learners
    "child that is not there": V("9.1", "onnx_tree", lambda: trees(nodes_truenodeids=[7, 0, 0]), trees),
    "child of its own": V(
        "9.1", "onnx_tree", lambda: trees(PAIR, nodes_truenodeids=[1, 0, 0, 0, 0]), lambda: trees(PAIR)
    ),
    "two parents": V(
        "9.1", "onnx_tree", lambda: trees(PAIR, nodes_falsenodeids=[3, 4, 0, 0, 0]), lambda: trees(PAIR)
    ),
    "feature that is not there": V("9.1", "onnx_tree", lambda: trees(nodes_featureids=[4, 0, 0]), trees),
    "lists of different lengths": V("9.1", "onnx_tree", lambda: trees(nodes_values=[0.5, 0.0]), trees),
    "target that is not there": V("9.1", "onnx_tree", lambda: trees(target_ids=[0, 1]), trees),
    "too many targets": V("9.1", "onnx_tree", lambda: trees(n_targets=1 << 40), trees),
    "weight at a split": V("9.1", "onnx_tree", lambda: trees(target_nodeids=[0, 2]), trees),
    "NaN": V("9.1", "onnx_tree", lambda: trees(target_weights=[float("nan"), 1.0]), trees),
    "split twice": V("9.1", "onnx_tree", lambda: trees(nodes_nodeids=[0, 1, 1]), trees),
    "leaf that is not there": V("9.1", "onnx_tree", lambda: ensemble(nodes_falsenodeids=[2]), ensemble),
    "one leaf twice": V("9.1", "onnx_tree", lambda: ensemble(nodes_falsenodeids=[0]), ensemble),
    "root that is not there": V("9.1", "onnx_tree", lambda: ensemble(tree_roots=[1]), ensemble),
    "mode that is none": V(
        "9.1", "onnx_tree", lambda: ensemble(nodes_modes=constant("m", [9], TensorProto.UINT8)), ensemble
    ),
    "coefficients": V("9.2", "onnx_table", lambda: classifier(2), classifier),
    "class twice": V("9.2", "onnx_table", lambda: classifier(classlabels_ints=[0, 1, 1]), classifier),
    "vectors": V("9.2", "onnx_table", lambda: machine(vectors_per_class=[1000, 1000]), machine),
    "rho": V("9.2", "onnx_table", lambda: machine(rho=[0.5, 0.5]), machine),
    "scales": V(
        "9.2",
        "onnx_table",
        lambda: model(node("Scaler", domain=ML, offset=[0.0] * 3, scale=[1.0] * 3), ml=1),
        lambda: model(node("Scaler", domain=ML, offset=[0.0] * 4, scale=[1.0] * 4), ml=1),
    ),
    "column that is not there": V(
        "9.2",
        "onnx_table",
        lambda: model(
            node("ArrayFeatureExtractor", ["x", "i"], domain=ML), constants=[constant("i", [4])], ml=1
        ),
        lambda: model(
            node("ArrayFeatureExtractor", ["x", "i"], domain=ML), constants=[constant("i", [3])], ml=1
        ),
    ),
    "keys without values": V("9.2", "onnx_table", lambda: _labels([1, 2, 3]), lambda: _labels([1, 2])),
}
"""What is wrong -> the vector."""


def _never_run(scale: list[int]) -> Any:
    then = branch(node("LayerNormalization", ["x", "w"], ["b"], axis=-1))
    other = branch(node("Relu", ["x"], ["e"]), output="e")
    made = node("If", ["no"], ["y"], then_branch=then, else_branch=other)
    return model(made, constants=[weights(scale), constant("no", False, BOOL)])


def _one_hot(depth: list[int]) -> Any:
    made = node("OneHot", ["x", "d", "v"])
    return model(
        made,
        inputs=[value("x", INT64, ["n"])],
        constants=[constant("d", np.array(depth, np.int64)), weights([2], "v")],
    )


def _resize(factor: float) -> Any:
    made = node("Resize", ["x", "", "f"], mode="nearest")
    factors = helper.make_tensor("f", FLOAT, [4], [1.0, 1.0, factor, factor])
    return model(made, inputs=[value("x", shape=[1, 1, 8, 8])], constants=[factors])


def _range(limit: int) -> Any:
    names = [constant("a", 0), constant("b", limit), constant("c", 1)]
    nodes = [node("Range", ["a", "b", "c"], ["r"]), node("Cast", ["r"], ["f"], to=FLOAT)]
    return model(*nodes, node("Add", ["x", "f"]), inputs=[value("x", shape=[1])], constants=names)


def _conv(channels: int, side: int) -> Any:
    nodes = [node("Expand", ["x", "s"], ["i"]), node("Expand", ["x", "t"], ["k"]), node("Conv", ["i", "k"])]
    shapes = [constant("s", [1, channels, 256, 256]), constant("t", [side, channels, 7, 7])]
    return model(*nodes, inputs=[value("x", shape=[1])], constants=shapes)


def _loops(count: int) -> Any:
    """A Loop in a Loop in a Loop, each with few iterations."""
    inner = [node("Relu", ["v"], ["w"])]
    made = loop(count, *inner)
    for level in range(2):
        graph = made.graph.node[0].attribute[0].g
        rename = {name: f"{name}{level}" for name in ("i", "k", "v", "w", "on")}
        for part in graph.node:
            part.input[:] = [rename.get(name, name) for name in part.input]
            part.output[:] = [rename.get(name, name) for name in part.output]
        for entry in (*graph.input, *graph.output):
            entry.name = rename[entry.name]
        step = node("Loop", ["m", "go", "v"], ["w"], body=graph)
        made = loop(count, step)
    return made


def _labels(values: list[int]) -> Any:
    made = node("LabelEncoder", domain=ML, keys_int64s=[0, 1], values_int64s=values)
    return model(made, inputs=[value("x", INT64, ["n"])], outputs=[value("y", INT64, None)], ml=2)


def _side_by_side(*before: Any) -> Any:
    """Two matrices as one, the first as it comes from `before`."""
    made = node("FeatureVectorizer", ["a", "x"], domain=ML, inputdimensions=[4, 4])
    return model(
        *before, made, constants=[constant("one", [1]), constant("zero", [0]), constant("most", [9])], ml=1
    )


def encoded(made: Any) -> bytes:
    """The file."""
    return made if isinstance(made, bytes) else bytes(made.SerializeToString())


def write(folder: Path) -> None:
    """Writes every vector with its good twin."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = []
    for number, (name, vector) in enumerate(VECTORS.items()):
        for kind, make in (("bad", vector.bad), ("good", vector.good)):
            file = f"{number:03}_{kind}.onnx"
            (folder / file).write_bytes(encoded(make()))
            code = vector.code if kind == "bad" else "admitted"
            listing.append({"file": file, "what": name, "rule": vector.rule, "code": code})
    (folder / "manifest.json").write_text(json.dumps(listing, indent=1), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
