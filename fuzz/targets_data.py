"""Fuzz targets of what carries tensors and models: protocol messages, numpy files, ONNX.

A value or `strongroom.errors.Error`, nothing else; and what was read once reads the same when written again.
"""

from __future__ import annotations

import contextlib

import numpy as np
from onnx import TensorProto, helper

from strongroom.errors import Error
from strongroom.formats import detect
from strongroom.models.info import FORMATS, STANDARD_BUDGET, AdmissionLimits
from strongroom.models.onnx import parse_onnx
from strongroom.npy import decode_npy, decode_npz, encode_npy, encode_npz
from strongroom.oip import (
    InferRequest,
    InferResponse,
    Tensor,
    WireLimits,
    bytes_array,
    parse_request,
    parse_response,
)
from strongroom.oip_json import encode_request, encode_response

WIRE = WireLimits(tensors=8, tensor_bytes=1 << 16, total_bytes=1 << 17, elements=1 << 14, name_length=64)
ADMISSION = AdmissionLimits(
    model_bytes=1 << 20,
    nesting=8,
    name_length=64,
    nodes=1000,
    tensors=1000,
    tensor_bytes=1 << 20,
    values=10_000,
    trees=100,
    tree_nodes=1000,
    features=1000,
    outputs=100,
    categories=1000,
    metadata_bytes=1 << 16,
    level="strict",
    confined=True,
    budget=STANDARD_BUDGET,
)

FLOATS = Tensor("x", "FP32", np.array([[1.5, float("nan")], [float("-inf"), 0.1]], dtype=np.float32))
INTEGERS = Tensor("n/1:0", "INT64", np.array([-(2**63), 2**63 - 1]))
TEXT = Tensor("t", "BYTES", bytes_array([b"a", 'é"\\'.encode(), b""], shape=(3,)))


def _model() -> bytes:
    """Operators, a subgraph, a function, constants and text that does not survive."""
    outer = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 2])],
    )
    nodes = [
        helper.make_node("Double", ["x"], ["d"], domain="local"),
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Cast", ["i"], ["k"], to=TensorProto.FLOAT, saturate=1),
        helper.make_node("Add", ["d", "k"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"], doc_string="text"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [outer],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        initializer=[
            helper.make_tensor("w", TensorProto.FLOAT, [2, 1], np.ones(2, np.float32).tobytes(), raw=True),
            helper.make_tensor("c", TensorProto.BOOL, [], [True]),
        ],
    )
    function = helper.make_function(
        "local",
        "Double",
        ["v"],
        ["w"],
        [helper.make_node("Add", ["v", "v"], ["w"])],
        [helper.make_opsetid("", 19)],
    )
    imports = [helper.make_opsetid("", 19), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)
    helper.set_model_props(model, {"key": "value"})
    return bytes(model.SerializeToString())


def _zipmap() -> bytes:
    nodes = [
        helper.make_node("Scaler", ["x"], ["p"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0]),
        helper.make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", classlabels_strings=["no", "yes"]),
    ]
    pairs = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_value_info("z", helper.make_sequence_type_proto(pairs))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8)
    return bytes(model.SerializeToString())


MODEL, ZIPMAP = _model(), _zipmap()
REQUEST = encode_request(
    InferRequest(id="1", inputs=(FLOATS, INTEGERS, TEXT), outputs=("y",), parameters=(("p", 1.5),))
)
NESTED = b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1, 2], "data": [[-128, 1.0]]}]}'
SEEDS = {
    "fuzz_format": (MODEL[:64], b'{"version": [3, 2, 0]}', b"{L\0\0\0\0\0\0\0\7learner{"),
    "fuzz_oip_request": (REQUEST, NESTED),
    "fuzz_oip_response": (
        encode_response(
            InferResponse(
                model_name="m", model_version="1", id="a", outputs=(FLOATS, TEXT), parameters=(("q", True),)
            )
        ),
    ),
    "fuzz_npy": (
        encode_npy(FLOATS.array),
        encode_npy(TEXT.array),
        encode_npy(np.array([True, False])),
        encode_npy(np.zeros((2, 0), dtype=np.int16)),
    ),
    "fuzz_npz": (encode_npz({"x": FLOATS.array, "n/1:0": INTEGERS.array}), encode_npz({})),
    "fuzz_onnx": (MODEL, ZIPMAP),
}


def fuzz_format(data: bytes) -> None:
    """The beginning of a file is one of the formats, or refused."""
    with contextlib.suppress(Error):
        assert detect(data) in FORMATS


def _same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    facts = [[(t.name, t.datatype, t.shape, t.array.tolist().__repr__()) for t in ts] for ts in (one, other)]
    return facts[0] == facts[1]


def fuzz_oip_request(data: bytes) -> None:
    """A request that parses means the same when it is written again."""
    with contextlib.suppress(Error):
        request = parse_request(data, limits=WIRE)
        again = parse_request(encode_request(request), limits=WIRE)
        assert _same(request.inputs, again.inputs)
        assert (request.id, request.outputs, request.parameters) == (
            again.id,
            again.outputs,
            again.parameters,
        )


def fuzz_oip_response(data: bytes) -> None:
    """A response that parses means the same when it is written again."""
    with contextlib.suppress(Error):
        response = parse_response(data, limits=WIRE)
        again = parse_response(encode_response(response), limits=WIRE)
        assert _same(response.outputs, again.outputs)
        assert (response.model_name, response.id) == (again.model_name, again.id)


def fuzz_npy(data: bytes) -> None:
    """An array that reads is within the limits, and reads the same when it is written again."""
    with contextlib.suppress(Error):
        array = decode_npy(data, limits=WIRE)
        assert array.flags.c_contiguous and array.dtype.isnative
        again = decode_npy(encode_npy(array), limits=WIRE)
        assert again.shape == array.shape and repr(again.tolist()) == repr(array.tolist())


def fuzz_npz(data: bytes) -> None:
    """An archive that reads gives no more than the limits allow, and the same when it is written again."""
    with contextlib.suppress(Error):
        arrays = decode_npz(data, limits=WIRE)
        assert sum(array.nbytes for array in arrays.values()) <= WIRE.total_bytes
        again = decode_npz(encode_npz(arrays), limits=WIRE)
        assert repr([(n, a.tolist()) for n, a in arrays.items()]) == repr(
            [(n, a.tolist()) for n, a in again.items()]
        )


def fuzz_onnx(data: bytes) -> None:
    """What is admitted is a fixed point: admitted again, it is written the same."""
    with contextlib.suppress(Error):
        canonical, _ = parse_onnx(data, limits=ADMISSION)
        assert parse_onnx(canonical, limits=ADMISSION)[0] == canonical
