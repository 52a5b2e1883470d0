"""Fuzz targets of admission: whole models whose parts are exchanged, and single nodes of every operator.

A value or `strongroom.errors.Error`, nothing else. The bytes are a choice of changes, not a file: what results is
always a ModelProto, so that the rules behind the parser are reached.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from strongroom.admission import _read
from strongroom.errors import Error
from strongroom.models.info import STANDARD_BUDGET, STANDARD_LIMITS
from strongroom.models.onnx import parse_onnx
from strongroom.models.operators import LEARNERS, STANDARD, definition
from strongroom.models.report import parse_report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "models"))

import hostile

LIMITS = replace(STANDARD_LIMITS, budget=replace(STANDARD_BUDGET, looks=20_000))
NUMBERS = (0, 1, -1, 2, 3, 7, 31, 32, 255, 1 << 31, (1 << 62) + 1, -(1 << 63), (1 << 63) - 1)
OPERATORS = sorted(STANDARD - {"If", "Loop", "Scan"}) + sorted(LEARNERS)
SEEDS = {
    "fuzz_admission_parts": tuple(bytes([n, n + 1, n * 7 % 256]) * 4 for n in range(0, 240, 3)),
    "fuzz_admission_node": tuple(bytes([n, 3 * n % 256, 1, 2]) for n in range(0, 240, 5)),
    "fuzz_admission_answer": (
        b'{"error":"AdmissionRefused","code":"onnx_graph","message":"x"}',
        b'{"info":{"format":"onnx"},"sha256":"","canonical_sha256":""}',
    ),
    "fuzz_admission_report": (
        b'{"bounds":null,"canonical_sha256":"","code":"onnx_graph","engine":"","format":"onnx","level":"strict",'
        b'"message":"x","partition":"","precision":null,"rules":[{"result":"refused","rule":"6.1"}],'
        b'"sha256":"' + b"0" * 64 + b'","size":1,"stages":0,'
        b'"type":"strongroom-admission-report/1","verdict":"refused"}',
    ),
}


@functools.cache
def _models() -> tuple[Any, ...]:
    made = [vector.good() for vector in hostile.VECTORS.values()]
    return tuple(model for model in made if model.ByteSize() < 20_000)


def _number(rng: random.Random) -> int:
    return rng.choice(NUMBERS) if rng.random() < 0.6 else rng.randint(-4, 70)


def _change(model: Any, rng: random.Random) -> None:
    """One change to one part."""
    graphs = [model.graph]
    for node in model.graph.node:
        graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    graph = rng.choice(graphs)
    names = [value.name for value in graph.input] + [name for node in graph.node for name in node.output]
    node = rng.choice(graph.node) if graph.node else None
    match rng.randrange(9):
        case 0 if node is not None and node.input and names:
            node.input[rng.randrange(len(node.input))] = rng.choice([*names, ""])
        case 1 if node is not None and node.attribute:
            attribute = rng.choice(node.attribute)
            if attribute.ints:
                attribute.ints[rng.randrange(len(attribute.ints))] = _number(rng)
            elif attribute.type == onnx.AttributeProto.INT:
                attribute.i = _number(rng)
            elif attribute.floats:
                attribute.floats.append(rng.choice([0.0, float("nan"), 1e38]))
        case 2 if node is not None:
            node.op_type = rng.choice(OPERATORS)
        case 3 if graph.initializer:
            tensor = rng.choice(graph.initializer)
            if tensor.int64_data:
                tensor.int64_data[rng.randrange(len(tensor.int64_data))] = _number(rng)
            elif tensor.dims:
                tensor.dims[0] = abs(_number(rng)) % (1 << 40)
        case 4 if graph.input:
            shape = rng.choice(graph.input).type.tensor_type.shape
            if shape.dim:
                rng.choice(shape.dim).dim_value = abs(_number(rng)) % (1 << 40)
            else:
                shape.dim.add(dim_value=2)
        case 5 if graph.input:
            rng.choice(graph.input).type.tensor_type.elem_type = rng.randrange(0, 27)
        case 6 if node is not None:
            graph.node.insert(rng.randrange(len(graph.node) + 1), node)
        case 7:
            model.opset_import[0].version = rng.randint(6, 29)
        case _ if node is not None and node.attribute:
            del node.attribute[rng.randrange(len(node.attribute))]


def fuzz_admission_parts(data: bytes) -> None:
    """A good model, changed in a few places, is admitted or refused; what is admitted is admitted again."""
    rng = random.Random(data)
    model = onnx.ModelProto()
    model.CopyFrom(rng.choice(_models()))
    for _ in range(rng.randint(1, 4)):
        _change(model, rng)
    _admitted(model)


def _admitted(model: Any) -> None:
    with contextlib.suppress(Error):
        canonical, info = parse_onnx(model.SerializeToString(), limits=LIMITS)
        again, facts = parse_onnx(canonical, limits=LIMITS)
        assert again == canonical and facts.admission == info.admission


def fuzz_admission_node(data: bytes) -> None:
    """One node of any operator, with inputs and attributes of fitting kinds and any sizes."""
    rng = random.Random(data)
    name = rng.choice(OPERATORS)
    domain, opset = ("ai.onnx.ml", rng.randint(1, 5)) if name in LEARNERS else ("", rng.randint(7, 28))
    found = definition(name, opset, domain)
    if found is None:
        return
    inputs, values, constants = [], [], []
    count = max(found.least_inputs, min(len(found.inputs), rng.randint(1, 6)))
    for position in range(count):
        formal = found.inputs[min(position, len(found.inputs) - 1)] if found.inputs else None
        if formal is None or (formal.optional and rng.random() < 0.3):
            inputs.append("")
            continue
        kind = rng.choice(sorted(formal.kinds)) if formal.kinds and rng.random() < 0.2 else TensorProto.FLOAT
        if TensorProto.FLOAT not in formal.kinds and formal.kinds:
            kind = (
                TensorProto.INT64 if TensorProto.INT64 in formal.kinds else rng.choice(sorted(formal.kinds))
            )
        dims: list[Any] = [rng.choice([1, 2, 3, 4, "n", "m", None]) for _ in range(rng.randint(0, 5))]
        inputs.append(f"i{position}")
        if kind == TensorProto.INT64 and rng.random() < 0.6:
            size = rng.randint(0, 5)
            numbers = [_number(rng) for _ in range(size)]
            constants.append(helper.make_tensor(f"i{position}", kind, [size], numbers))
        else:
            values.append(helper.make_tensor_value_info(f"i{position}", kind, dims))
    node = onnx.NodeProto(op_type=name, domain=domain, input=inputs)
    most = 3 if found.outputs and found.outputs[-1].variadic else len(found.outputs)
    node.output.extend(f"o{n}" for n in range(max(1, found.least_outputs, rng.randint(1, max(1, most)))))
    for attribute, (kind, required) in found.attributes.items():
        if required or rng.random() < 0.3:
            _attribute(node, attribute, kind, rng)
    outputs = [onnx.ValueInfoProto(name="o0")]
    outputs[0].type.tensor_type.elem_type = rng.choice([TensorProto.FLOAT, TensorProto.INT64])
    imports = [helper.make_opsetid("", max(7, opset if not domain else 17))]
    imports += [helper.make_opsetid(domain, opset)] if domain else []
    graph = helper.make_graph([node], "g", values, outputs, initializer=constants)
    _admitted(helper.make_model(graph, opset_imports=imports, ir_version=8))


def _attribute(node: Any, name: str, kind: int, rng: random.Random) -> None:
    made: Any
    match kind:
        case 1:
            made = rng.choice([0.0, 1.0, -1.5])
        case 2:
            made = rng.choice([0, 1]) if rng.random() < 0.6 else _number(rng)
        case 3:
            made = rng.choice(["constant", "linear", "SAME_UPPER", "NONE", "ij->ji", "forward", "LINEAR"])
        case 4:
            size = rng.randint(1, 4)
            made = helper.make_tensor("t", rng.choice([1, 2, 7]), [size], [1] * size)
        case 6:
            made = [rng.choice([0.0, 1.0]) for _ in range(rng.randint(1, 8))]
        case 7:
            made = [
                rng.randint(0, 3) if rng.random() < 0.8 else _number(rng) for _ in range(rng.randint(1, 5))
            ]
        case 8:
            made = [rng.choice(["LEAF", "BRANCH_LEQ", "Tanh"]) for _ in range(rng.randint(1, 4))]
        case _:
            return
    node.attribute.append(helper.make_attribute(name, made))


def fuzz_admission_answer(data: bytes) -> None:
    """What a child says is a proof or an error."""
    import json

    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(answer, dict):
        with contextlib.suppress(Error):
            _read(answer, bytearray(b"x"))


def fuzz_admission_report(data: bytes) -> None:
    """A report that is read is written the same."""
    with contextlib.suppress(Error):
        assert parse_report(data).encode() == data
