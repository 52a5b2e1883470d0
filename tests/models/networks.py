"""Small networks with reproducible weights, for tests of reduced precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from strongroom.oip import Array

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def numbers(*shape: int, seed: int = 1, scale: float = 1.0) -> Array:
    """Reproducible normal numbers."""
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    return np.asarray(values * scale, np.float32)


def node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    """A node that is called like the first value it makes, with `n_` before it."""
    return helper.make_node(operator, inputs, outputs, name=f"n_{outputs[0]}", **attributes)


def network(
    *nodes: Any,
    x: Any = (None, 3, 12, 12),
    y: str = "y",
    kind: int = FLOAT,
    opset: int = 17,
    **weights: Array,
) -> bytes:
    """A model with one input `x` and one output; None in a shape is open."""
    shape = [f"d{i}" if size is None else size for i, size in enumerate(x)]
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(y, FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(made.SerializeToString())


def convolution(out: int, inputs: int, side: int = 3, seed: int = 1, group: int = 1) -> Array:
    """Weights in the scale that keeps activations near one."""
    fan = inputs // group * side * side
    return numbers(out, inputs // group, side, side, seed=seed, scale=(2 / fan) ** 0.5)


def residual(*, opset: int = 17) -> bytes:
    """Convolutions with a branch around, pooling, depthwise and grouped ones, a product at the end."""
    nodes = [
        node("Conv", ["x", "a_w", "a_b"], ["a"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], ["an"]),
        node("Relu", ["an"], ["ar"]),
        node("Conv", ["ar", "b_w"], ["b"], pads=[1, 1, 1, 1], group=8),
        node("Clip", ["b", "zero", "six"], ["bc"]),
        node("Conv", ["bc", "c_w", "c_b"], ["c"], group=2),
        node("Add", ["c", "ar"], ["s"]),
        node("Relu", ["s"], ["sr"]),
        node("MaxPool", ["sr"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["m"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "d_w", "d_b"], ["y"], transB=1, alpha=0.5, beta=2.0),
    ]
    weights = {
        "a_w": convolution(8, 3), "a_b": numbers(8, seed=2), "gamma": 1 + numbers(8, seed=3, scale=0.2),
        "beta": numbers(8, seed=4), "mean": numbers(8, seed=5), "variance": 1 + np.abs(numbers(8, seed=6)),
        "b_w": convolution(8, 8, seed=7, group=8), "c_w": convolution(8, 8, side=1, seed=8, group=2),
        "c_b": numbers(8, seed=9), "zero": np.array(0, np.float32), "six": np.array(6, np.float32),
        "d_w": numbers(5, 8, seed=10), "d_b": numbers(5, seed=11),
    }  # fmt: skip
    return network(*nodes, opset=opset, **weights)


def images(count: int, seed: int = 20) -> dict[str, Array]:
    """Examples for `residual`."""
    return {"x": numbers(count, 3, 12, 12, seed=seed)}


def layers() -> bytes:
    """Two products of three dimensions that share their matrix, a plain layer, and a lookup before them."""
    nodes = [
        node("Gather", ["table", "x"], ["e"]),
        node("MatMul", ["e", "w"], ["a"]),
        node("Tanh", ["a"], ["at"]),
        node("MatMul", ["at", "w"], ["b"]),
        node("Add", ["b", "e"], ["s"]),
        node("ReduceMean", ["s"], ["r"], axes=[1], keepdims=0),
        node("Gemm", ["r", "v", "c"], ["y"], transB=1),
    ]
    weights = {
        "table": numbers(50, 32, seed=1), "w": numbers(32, 32, seed=2, scale=0.2),
        "v": numbers(40, 32, seed=3), "c": numbers(40, seed=4),
    }  # fmt: skip
    return network(*nodes, x=(None, None), kind=INT64, **weights)


def words(count: int, seed: int = 30) -> dict[str, Array]:
    """Examples for `layers`."""
    return {"x": np.random.Generator(np.random.PCG64(seed)).integers(0, 50, (count, 7))}
