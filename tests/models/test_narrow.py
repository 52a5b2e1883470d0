"""What is called `fp32`: nothing that has less than 32 bits anywhere in what runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from models.networks import FLOAT, images, layers, network, node, numbers, residual, words
from onnx import TensorProto, helper, numpy_helper

from strongroom.errors import Error
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS, ModelInfo
from strongroom.models.precision import Options, measure, reduce_precision
from strongroom.oip import Array
from strongroom.reduction import NOT_LOOKED_AT, PLAIN, Precision


def said(data: bytes, *, format: str = "onnx") -> Precision:
    """What admission says of a model."""
    return admit(data, format=format, limits=STANDARD_LIMITS).info.precision


def made(*nodes: Any, kind: int = FLOAT, out: int = FLOAT, **weights: Array) -> bytes:
    """A model from `x` to `y`, vectors of 4."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, [4])],
        [helper.make_tensor_value_info("y", out, [4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())


def inner(*, kind: int) -> Any:
    """An If whose branches hold a constant of a type."""
    branch = helper.make_graph(
        [
            node("Constant", [], ["c"], value=helper.make_tensor("c", kind, [4], [1.0] * 4)),
            node("Cast", ["c"], ["r"], to=FLOAT),
        ],
        "b",
        [],
        [helper.make_tensor_value_info("r", FLOAT, [4])],
    )
    return node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize(
    "data",
    [
        residual(),
        layers(),
        made(node("Cast", ["x"], ["y"], to=FLOAT), kind=TensorProto.UINT8),  # a picture
        made(node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE), out=TensorProto.DOUBLE),
        made(node("Add", ["x", "w"], ["y"]), w=np.ones(4, np.float32)),
        made(node("Cast", ["b"], ["f"], to=FLOAT), node("Add", ["x", "f"], ["y"]), b=np.array(3, np.uint8)),
        made(node("Cast", ["b"], ["f"], to=FLOAT), node("Add", ["x", "f"], ["y"]), b=np.array([True] * 4)),
        made(inner(kind=FLOAT), yes=np.array(True)),
    ],
    ids=["convolutions", "layers", "bytes in", "double", "weights", "one small number", "booleans", "inner"],
)
def test_plain_models(data: bytes) -> None:
    """Nothing narrower than 32 bits but what comes in, and single numbers."""
    assert said(data) == PLAIN


@pytest.mark.parametrize(
    ("data", "narrow"),
    [
        (
            made(node("Identity", ["x"], ["y"]), kind=TensorProto.FLOAT16, out=TensorProto.FLOAT16),
            {"FLOAT16": 2},
        ),
        (
            made(node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("Cast", ["h"], ["y"], to=FLOAT)),
            {"FLOAT16": 1},
        ),
        (
            made(
                node("Cast", ["h"], ["f"], to=FLOAT), node("Add", ["x", "f"], ["y"]), h=np.ones(1, np.float16)
            ),
            {"FLOAT16": 1},
        ),
        (
            made(node("Cast", ["q"], ["f"], to=FLOAT), node("Mul", ["x", "f"], ["y"]), q=np.ones(4, np.int8)),
            {"INT8": 1},
        ),
        (made(inner(kind=TensorProto.FLOAT16), yes=np.array(True)), {"FLOAT16": 2}),
        (
            made(
                node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                node("DequantizeLinear", ["q", "s", "z"], ["y"]),
                s=np.array(0.1, np.float32),
                z=np.array(0, np.uint8),
            ),
            {"DequantizeLinear": 1, "QuantizeLinear": 1},
        ),
        (
            made(
                node("Reshape", ["x", "two"], ["m"]),
                node("EyeLike", ["m"], ["e"], dtype=TensorProto.FLOAT16),
                node("Cast", ["e"], ["f"], to=FLOAT),
                node("MatMul", ["m", "f"], ["p"]),
                node("Reshape", ["p", "one"], ["y"]),
                two=np.array([2, 2]),
                one=np.array([4]),
            ),
            {"FLOAT16": 1},
        ),
        (
            made(
                node("LayerNormalization", ["x", "w"], ["y"], axis=0, stash_type=TensorProto.BFLOAT16),
                w=np.ones(4, np.float32),
            ),
            {"BFLOAT16": 1},
        ),
    ],
    ids=[
        "halves at the edges",
        "a cast",
        "a constant",
        "weights of bytes",
        "inner",
        "eight bits",
        "halves that are made",
        "a norm that computes in halves",
    ],
)
def test_models_that_arrive_in_less(data: bytes, narrow: dict[str, int]) -> None:
    """`as-uploaded`, with what they have; never fp32."""
    found = said(data)
    assert (found.name, dict(found.narrow), found.made) == ("as-uploaded", narrow, None)


def refers(made: Any, name: str, parameter: str, kind: int) -> Any:
    """The node with an attribute that is a parameter of the function around it."""
    made.attribute.add(name=name, ref_attr_name=parameter, type=kind)
    return made


def called(*functions: Any, **attributes: Any) -> bytes:
    """A model that calls the first of these functions."""
    call = helper.make_node("F", ["x"], ["y"], domain="local", **attributes)
    model = onnx.ModelProto.FromString(made(call))
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("local", 1))
    return bytes(model.SerializeToString())


def function(name: str, *nodes: Any, takes: tuple[str, ...] = (), defaults: tuple[Any, ...] = ()) -> Any:
    """From `a` to `b`."""
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["a"], ["b"], list(nodes), opsets, list(takes), list(defaults))


INT, TENSOR = 2, 4  # AttributeProto's INT and TENSOR
HALVES = (refers(node("Cast", ["a"], ["h"]), "to", "kind", INT), node("Cast", ["h"], ["b"], to=FLOAT))
THROUGH = refers(helper.make_node("G", ["a"], ["b"], domain="local"), "kind", "what", INT)
WEIGHTS = (
    refers(node("Constant", [], ["q"]), "value", "weights", TENSOR),
    node("Cast", ["q"], ["f"], to=FLOAT),
    node("Mul", ["a", "f"], ["b"]),
)


@pytest.mark.parametrize(
    ("data", "narrow"),
    [
        (called(function("F", *HALVES, takes=("kind",)), kind=TensorProto.FLOAT16), {"FLOAT16": 1}),
        (
            called(
                function("F", THROUGH, takes=("what",)), function("G", *HALVES, takes=("kind",)),
                what=TensorProto.BFLOAT16,
            ),
            {"BFLOAT16": 1},
        ),
        (
            called(function("F", *HALVES, defaults=(helper.make_attribute("kind", TensorProto.FLOAT16),))),
            {"FLOAT16": 1},
        ),
        (
            called(
                function("F", *WEIGHTS, takes=("weights",)),
                weights=helper.make_tensor("w", TensorProto.INT8, [4], [1, 2, 3, 4]),
            ),
            {"INT8": 1},
        ),
        (called(function("F", *HALVES, takes=("kind",)), kind=TensorProto.DOUBLE), {}),
    ],
    ids=["a datatype", "through two functions", "as the function has it", "weights", "doubles"],
)  # fmt: skip
def test_what_functions_are_given(data: bytes, narrow: dict[str, int]) -> None:
    """A datatype or a constant that a call hands on stands nowhere else."""
    found = said(data)
    assert dict(found.narrow) == narrow and (found == PLAIN) is not bool(narrow)


@pytest.mark.parametrize("given", [3, 1.5, b"text", [1, 2]])
def test_a_constant_is_given_a_tensor(given: Any) -> None:
    """What a call hands on for a tensor is one."""
    with pytest.raises(Error) as caught:
        said(called(function("F", *WEIGHTS, takes=("weights",)), weights=given))
    assert caught.value.code == "onnx_attribute"


def test_what_is_made_here_arrives_as_uploaded() -> None:
    """Whoever uploads a quantised file gets no other word than that, for each form."""
    for data, precision, examples in (
        (layers(), "int8", None),
        (layers(), "fp16", None),
        (layers(), "int8", words(2)),
        (residual(), "int8", images(2)),
    ):
        admitted = admit(data, format="onnx", limits=STANDARD_LIMITS)
        ranges = None
        if examples is not None:
            from models.test_precision import OBSERVER, requests_of

            requests = requests_of(admitted.info, examples, what="examples")
            ranges = measure(admitted, options=Options(precision="int8"), examples=requests, run=OBSERVER)
        reduced = reduce_precision(
            admitted, options=Options(precision=precision), ranges=ranges, limits=STANDARD_LIMITS
        )
        found = said(reduced.admitted.onnx)
        assert found.name == "as-uploaded" and found.narrow
        assert found.joins_rows == (precision == "int8" and examples is None)


def test_trees_are_fp32() -> None:
    """XGBoost's thresholds and leaves are, and bytes that tell kinds of nodes are no numbers."""
    from plane import xgboost_json

    assert said(xgboost_json(), format="xgboost-json") == PLAIN


def test_metadata_of_an_earlier_release() -> None:
    """No statement is no statement: `unknown`, and written again without one, so that the store's record opens."""
    info = admit(network(node("MatMul", ["x", "w"], ["y"]), x=(None, 4), w=numbers(4, 4)), format="onnx",
                 limits=STANDARD_LIMITS).info  # fmt: skip
    old = {name: value for name, value in info.to_json().items() if name != "precision"}
    read = ModelInfo.from_json(old)
    assert read.precision == NOT_LOOKED_AT and read.to_json() == old
    assert ModelInfo.from_json(info.to_json()) == info != read
