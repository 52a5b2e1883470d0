"""Nodes with long lists: the bytes are protobuf's own, and what is read back is what they say."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from strongroom.errors import Failure
from strongroom.models.tree_wire import DOMAIN, LargeNode, apart, model_bytes

COUNT = 70_000
INTEGERS = np.resize(np.array([0, 1, 127, 128, 16383, 16384, 2**21, 2**28, 2**31 - 1]), COUNT)
NUMBERS = np.resize(np.array([0.5, -1.5, 3.4e38, 1e-45], np.float32), COUNT)
WHICH = np.arange(COUNT) % 3 == 0
WORDS = (b"BRANCH_LT", b"LEAF")
IMPORTS = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 3)]


def written() -> bytes:
    node = LargeNode("TreeEnsembleRegressor", input="x", output="y")
    node.attribute(AttributeProto(name="n_targets", type=AttributeProto.INT, i=1))
    node.integers("ids", INTEGERS)
    node.floats("values", NUMBERS)
    node.words("modes", WORDS, WHICH)
    graph = GraphProto(name="g", node=[helper.make_node("Identity", ["y"], ["z"])])
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 1]))
    return model_bytes(graph, node, version=10, imports=IMPORTS)


def by_protobuf() -> ModelProto:
    node = NodeProto(op_type="TreeEnsembleRegressor", domain=DOMAIN, input=["x"], output=["y"])
    node.attribute.append(AttributeProto(name="n_targets", type=AttributeProto.INT, i=1))
    node.attribute.append(AttributeProto(name="ids", type=AttributeProto.INTS, ints=INTEGERS.tolist()))
    node.attribute.append(AttributeProto(name="values", type=AttributeProto.FLOATS, floats=NUMBERS.tolist()))
    modes = AttributeProto(name="modes", type=AttributeProto.STRINGS)
    modes.strings.extend(WORDS[one] for one in WHICH.tolist())
    node.attribute.append(modes)
    graph = GraphProto(name="g", node=[node, helper.make_node("Identity", ["y"], ["z"])])
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 1]))
    return ModelProto(ir_version=10, producer_name="strongroom", graph=graph, opset_import=IMPORTS)


def test_the_bytes_are_those_of_protobuf() -> None:
    """Numbers of every length, strings of two lengths, and other nodes behind."""
    assert written() == by_protobuf().SerializeToString(deterministic=True)


def test_what_is_read_back_is_what_was_written() -> None:
    """The lists, and beside them the same model without them."""
    bare, lists = apart(written())
    assert np.array_equal(np.array(lists["ids"]), INTEGERS) and list(lists["modes"]) == [
        WORDS[w] for w in WHICH.tolist()
    ]
    assert np.array_equal(np.array(lists["values"], np.float32), NUMBERS) and set(lists) == {
        "ids",
        "values",
        "modes",
    }
    expected = by_protobuf()
    for attribute in expected.graph.node[0].attribute[1:]:
        for field in ("ints", "floats", "strings"):
            attribute.ClearField(field)
    assert ModelProto.FromString(bare) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"\x03ids\x40\x00\x40\x01", b"\x03ids\x40\x00\x48\x01"),
        (b"\x06values\x3d", b"\x06values\x35"),
        (b"\x05modes\x4a", b"\x05modes\x42"),
        (b"\x40\xff\xff\xff\xff\x07", b"\x40\xff\xff\xff\xff\x0f"),
        (b"\x4a\x04LEAF", b"\x4a\x84LEAF"),
    ],
    ids=[
        "a key of whole numbers",
        "a key of numbers",
        "a key of strings",
        "a number beyond 31 bits",
        "a long string",
    ],
)
def test_bytes_that_were_written_otherwise_are_a_failure(before: bytes, after: bytes) -> None:
    """Each differs in one entry of one list."""
    made = written()
    assert before in made
    with pytest.raises(Failure):
        apart(made.replace(before, after, 1))
