"""Structural admission of ONNX: one model a rule, wrong in that respect only; and what admission writes again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from strongroom.errors import AdmissionRefused, Error, LimitExceeded, MalformedInput
from strongroom.models.info import ModelInfo, TensorSpec
from strongroom.models.interface import MAX_NOTES
from strongroom.models.onnx import parse_onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fuzz"))

import targets_data

LIMITS = dataclasses.replace(targets_data.ADMISSION, nodes=50, tensors=60, tensor_bytes=4096)
FLOAT, STRING = TensorProto.FLOAT, TensorProto.STRING


def value(name: str, kind: int = FLOAT, shape: Any = ("n", 2)) -> Any:
    """An input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str = "Relu", inputs: Any = ("x",), outputs: Any = ("y",), **attributes: Any) -> Any:
    """A node; by default the one of the smallest model."""
    return helper.make_node(operator, list(inputs), list(outputs), **attributes)


def model(
    *nodes: Any,
    inputs: Any = None,
    outputs: Any = None,
    constants: Any = (),
    imports: Any = (("", 17),),
    ir: int = 8,
    functions: Any = (),
) -> Any:
    """A ModelProto around these nodes: y = Relu(x) unless said otherwise."""
    graph = helper.make_graph(
        list(nodes) or [node()],
        "graph",
        [value("x")] if inputs is None else inputs,
        [value("y")] if outputs is None else outputs,
        initializer=list(constants),
    )
    opsets = [helper.make_opsetid(*entry) for entry in imports]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=list(functions))


def floats(name: str = "w", values: Any = (1.0, 2.0), dims: Any = (2,)) -> Any:
    """A constant with raw data."""
    return helper.make_tensor(name, FLOAT, dims, np.array(values, np.float32).tobytes(), raw=True)


def admit(made: Any) -> tuple[Any, ModelInfo]:
    """The model as it is written again, and its metadata."""
    canonical, info = parse_onnx(made.SerializeToString(), limits=LIMITS)
    return onnx.ModelProto.FromString(canonical), info


def refusal(made: Any, kind: type[Error] = AdmissionRefused) -> str:
    """The code with which a model is refused."""
    data = made if isinstance(made, bytes) else made.SerializeToString()
    with pytest.raises(kind) as caught:
        parse_onnx(data, limits=LIMITS)
    return caught.value.code


def changed(change: Callable[[Any], Any], **how: Any) -> Any:
    """The smallest model after `change`."""
    made = model(**how)
    change(made)
    return made


# What is admitted


def test_the_smallest_model() -> None:
    """Its tensors, versions and rules are the metadata."""
    _, info = admit(model())
    assert info.inputs == (TensorSpec("x", "FP32", ("n", 2)),)
    assert info.outputs == (TensorSpec("y", "FP32", ("n", 2)),)
    assert info.primary_output == "y" and info.format == "onnx"
    assert dict(info.notes) == {"ir_version": 8, "opset": 17}


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (TensorProto.BOOL, "BOOL"), (TensorProto.UINT8, "UINT8"), (TensorProto.UINT16, "UINT16"),
        (TensorProto.UINT32, "UINT32"), (TensorProto.UINT64, "UINT64"), (TensorProto.INT8, "INT8"),
        (TensorProto.INT16, "INT16"), (TensorProto.INT32, "INT32"), (TensorProto.INT64, "INT64"),
        (TensorProto.FLOAT16, "FP16"), (FLOAT, "FP32"), (TensorProto.DOUBLE, "FP64"), (STRING, "BYTES"),
    ],
)  # fmt: skip
def test_every_datatype_of_the_protocol(kind: int, datatype: str) -> None:
    """ONNX's element types under the protocol's names."""
    _, info = admit(model(node("Identity"), inputs=[value("x", kind)], outputs=[value("y", kind)]))
    assert (info.inputs[0].datatype, info.outputs[0].datatype) == (datatype, datatype)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["n", 2], ("n", 2)),
        ([], ()),
        ([0], (0,)),
        ([-1, None], (None, None)),
        (["?", "None"], (None, None)),
        (["batch_size", "p2o.Dim.0"], ("batch_size", "p2o.Dim.0")),
    ],
)
def test_dimensions(shape: Any, expected: Any) -> None:
    """Fixed sizes, symbols, and what stands for any size; no shape at all is an unknown rank."""
    _, info = admit(model(inputs=[value("x", FLOAT, shape)]))
    assert info.inputs[0].shape == expected


def test_an_input_of_any_rank_has_no_bound() -> None:
    """Refused when everything must have a bound, admitted and flagged where not."""
    made = model(inputs=[value("x", FLOAT, None)], outputs=[value("y", FLOAT, None)])
    assert refusal(made) == "onnx_unbounded"
    _, info = parse_onnx(made.SerializeToString(), limits=dataclasses.replace(LIMITS, level="permissive"))
    assert info.inputs[0].shape is None and info.admission.flags == ("unbounded",)


def test_an_initializer_that_is_an_input_is_not_asked_for() -> None:
    """Before IR version 4 every initializer was listed so."""
    made = model(
        node("Add", ["x", "w"]), inputs=[value("w", FLOAT, [2]), value("x")], constants=[floats()], ir=3
    )
    assert [spec.name for spec in admit(made)[1].inputs] == ["x"]


def test_unused_foreign_domains_are_dropped() -> None:
    """tf2onnx imports a dozen domains that no node uses; one domain may stand twice in one version."""
    imports = [("", 17), ("com.microsoft", 1), ("ai.onnx", 17), ("ai.onnx.ml", 2), ("ai.onnx.ml", 2)]
    written, info = admit(model(imports=imports))
    assert [(entry.domain, entry.version) for entry in written.opset_import] == [("", 17), ("ai.onnx.ml", 2)]
    assert dict(info.notes)["opset_ml"] == 2


def test_functions_and_subgraphs() -> None:
    """Functions of the model, references to their attributes, and graphs within graphs that read outer values."""
    parse_onnx(targets_data.MODEL, limits=targets_data.ADMISSION)
    body = [node("Elu", ["a"], ["b"])]
    body[0].attribute.append(
        onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    )
    function = helper.make_function(
        "local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)], attributes=["slope"]
    )
    call = node("F", domain="local", slope=0.5)
    admit(model(call, imports=[("", 17), ("local", 1)], functions=[function]))


def test_an_optional_value_may_be_left_out() -> None:
    """Clip's bounds are optional: an empty name stands for one that is not given."""
    admit(model(node("Clip", ["x", "", "w"]), constants=[floats(values=[1], dims=[])]))


@pytest.mark.parametrize("kind", [k for k in TensorProto.DataType.values() if 0 < k < 27])
@pytest.mark.parametrize("raw", [True, False])
def test_constants_of_every_type(kind: int, raw: bool) -> None:
    """Each element type in raw and in typed form, four-bit and two-bit types packed."""
    name = TensorProto.DataType.Name(kind)
    bits = {"COMPLEX64": 64, "COMPLEX128": 128, "DOUBLE": 64, "FLOAT": 32}.get(name) or int(
        "".join(c for c in name.split("E")[0] if c.isdigit()) or 8
    )
    tensor = onnx.TensorProto(name="w", data_type=kind, dims=[3])
    size = -(-3 * bits // 8)
    if kind == STRING:
        tensor.string_data.extend([b"a", b"", b"c"])
    elif raw:
        tensor.raw_data = b"\0" * size
    elif name in ("FLOAT", "COMPLEX64"):
        tensor.float_data.extend([0.0] * (3 if name == "FLOAT" else 6))
    elif name in ("DOUBLE", "COMPLEX128"):
        tensor.double_data.extend([0.0] * (3 if name == "DOUBLE" else 6))
    elif name in ("UINT32", "UINT64"):
        tensor.uint64_data.extend([0] * 3)
    elif name == "INT64":
        tensor.int64_data.extend([0] * 3)
    else:
        tensor.int32_data.extend([0] * (size if bits < 8 else 3))
    admit(model(constants=[tensor]))


def test_an_empty_tensor_has_no_data() -> None:
    """Resize's roi and scales are often tensors of no elements."""
    admit(model(constants=[onnx.TensorProto(name="w", data_type=FLOAT, dims=[0, 3])]))


# What is written


def _decorated() -> Any:
    made = model(node("Add", ["x", "w"], doc_string="secret-1", name="n"), constants=[floats()])
    made.doc_string, made.producer_name, made.producer_version = "secret-2", "tool", "1.0"
    made.domain, made.model_version = "secret-3", 7
    made.graph.doc_string = made.graph.initializer[0].doc_string = made.graph.input[0].doc_string = "secret-4"
    made.graph.node[0].attribute.append(helper.make_attribute("axis", 1))
    made.graph.node[0].op_type = "Softmax"
    made.graph.node[0].input.pop()
    made.graph.node[0].attribute[0].doc_string = "secret-5"
    for message in (made.graph, made.graph.node[0], made.graph.initializer[0], made.graph.input[0]):
        message.metadata_props.add(key="secret-6", value="secret-7")
    made.graph.quantization_annotation.add(tensor_name="secret-8")
    helper.set_model_props(made, {"alphabet": "abc\ndef", "sneaky": "a\x1bb"})
    return made


def test_text_for_people_is_not_written_again() -> None:
    """Documentation, metadata and annotations do not survive; a little becomes notes."""
    canonical, info = parse_onnx(_decorated().SerializeToString(), limits=LIMITS)
    assert b"secret" not in canonical
    notes = dict(info.notes)
    assert notes["producer"] == "tool 1.0" and notes["metadata.alphabet"] == "abc\ndef"
    assert notes["notes_dropped"] == 1 and "metadata.sneaky" not in notes


def test_notes_are_bounded() -> None:
    """Metadata beyond the limit is dropped, and that is said."""
    made = model()
    helper.set_model_props(made, {f"k{n}": "v" * (MAX_NOTES // 2) for n in range(4)})
    _, info = admit(made)
    assert dict(info.notes)["notes_dropped"] == 3
    assert sum(len(str(entry)) for entry in info.notes) < MAX_NOTES


def test_admission_is_a_fixed_point() -> None:
    """What was written, admitted again, is written the same; and the same upload always gives the same bytes."""
    for data in (targets_data.MODEL, targets_data.ZIPMAP, _decorated().SerializeToString()):
        once, _ = parse_onnx(data, limits=targets_data.ADMISSION)
        assert parse_onnx(data, limits=targets_data.ADMISSION)[0] == once
        assert parse_onnx(once, limits=targets_data.ADMISSION)[0] == once


# ZipMap


def zipmap(**attributes: Any) -> Any:
    """A scaler with a ZipMap at its end."""
    made = onnx.ModelProto.FromString(targets_data.ZIPMAP)
    if attributes:
        del made.graph.node[1].attribute[:]
        made.graph.node[1].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    return made


@pytest.mark.parametrize(
    ("attributes", "labels"),
    [({"classlabels_strings": ["a", "é"]}, ("a", "é")), ({"classlabels_int64s": [4, 5]}, (4, 5))],
)
def test_a_zipmap_output_becomes_its_tensor(attributes: Any, labels: Any) -> None:
    """The dictionary is cut off; its labels are notes, in the order of the columns."""
    written, info = admit(zipmap(**attributes))
    assert info.outputs == (TensorSpec("z", "FP32", (None, 2)),)
    assert dict(info.notes)["class_labels.z"] == labels
    assert [entry.op_type for entry in written.graph.node] == ["Scaler", "Identity"]
    onnx.checker.check_model(written)


def test_other_sequences_are_refused() -> None:
    """A ZipMap that is read again, has no labels, or has two lists of them stays a sequence of maps."""
    read = zipmap()
    read.graph.node.add(op_type="Identity", input=["z"], output=["other"])
    read.opset_import.add(domain="", version=17)
    read.graph.output.append(value("other"))
    for made in (read, zipmap(classlabels_strings=["a"], classlabels_int64s=[1]), zipmap(post="x")):
        assert refusal(made) in ("onnx_io_type", "onnx_graph", "onnx_attribute")


# What is refused


def _subgraph(inner: Any, depth: int = 1) -> Any:
    """`inner` as the branch of an If, in as many Ifs as `depth` says; the other branches are small."""
    for level in range(depth):
        branch = helper.make_graph([inner], "branch", [], [value(inner.output[0])])
        small = helper.make_graph([node("Identity", ["x"], ["e"])], "small", [], [value("e")])
        inner = node("If", ["c"], [f"y{level}"], then_branch=branch, else_branch=small)
    inner.output[0] = "y"
    return model(inner, inputs=[value("x"), value("c", TensorProto.BOOL, [])])


def _function(name: str = "F", domain: str = "local", body: Any = None, calls: str = "F", **how: Any) -> Any:
    function = helper.make_function(
        domain, name, ["a"], ["b"], body or [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)], **how
    )
    imports = [("", 17)] if domain in ("", "ai.onnx") else [("", 17), (domain, 1)]
    return model(node(calls, domain=domain), imports=imports, functions=[function])


def _external(tensor: Any) -> Any:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def _flag_only() -> Any:
    tensor = floats()
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def _entries_only() -> Any:
    tensor = floats()
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def _sparse() -> Any:
    return helper.make_sparse_tensor(
        floats("v", [1.0], [1]), helper.make_tensor("i", TensorProto.INT64, [1], [0]), [2]
    )


def _tensor(change: Callable[[Any], Any], **how: Any) -> Any:
    tensor = floats(**how)
    change(tensor)
    return model(constants=[tensor])


def _set(name: str, to: Any) -> Callable[[Any], Any]:
    return lambda message: setattr(message, name, to)


def _attribute(**fields: Any) -> Any:
    made = model(node("LeakyRelu"))
    made.graph.node[0].attribute.append(onnx.AttributeProto(**fields))
    return made


REFUSED = {
    # external data, wherever a tensor can be
    "external initializer": (lambda: model(constants=[_external(floats())]), "onnx_external_data"),
    "external flag only": (lambda: model(constants=[_flag_only()]), "onnx_external_data"),
    "external entries only": (lambda: model(constants=[_entries_only()]), "onnx_external_data"),
    "external attribute": (
        lambda: model(node("Constant", [], ["y"], value=_external(floats()))), "onnx_external_data"),
    "external in subgraph": (
        lambda: _subgraph(node("Constant", [], ["k"], value=_external(floats()))), "onnx_external_data"),
    "external in function": (
        lambda: _function(body=[node("Constant", [], ["b"], value=_external(floats()))]), "onnx_external_data"),
    "external in attribute default": (
        lambda: _function(attribute_protos=[helper.make_attribute("t", _external(floats()))]), "onnx_external_data"),
    "sparse initializer": (
        lambda: changed(lambda m: m.graph.sparse_initializer.append(_sparse())), "onnx_sparse"),
    "sparse attribute": (lambda: model(node("Constant", [], ["y"], sparse_value=_sparse())), "onnx_sparse"),
    # tensors
    "raw data short": (lambda: _tensor(_set("raw_data", b"0000")), "onnx_tensor"),
    "raw data long": (lambda: _tensor(_set("raw_data", b"0" * 4096)), "onnx_tensor"),
    "no data": (lambda: _tensor(lambda t: t.ClearField("raw_data")), "onnx_tensor"),
    "two data fields": (lambda: _tensor(lambda t: t.float_data.append(1)), "onnx_tensor"),
    "the other data field": (
        lambda: _tensor(lambda t: (t.ClearField("raw_data"), t.double_data.extend([1, 2]))), "onnx_tensor"),
    "typed data short": (
        lambda: _tensor(lambda t: (t.ClearField("raw_data"), t.float_data.append(1))), "onnx_tensor"),
    "negative dimensions": (lambda: _tensor(lambda t: t.dims.__setitem__(0, -2)), "onnx_tensor"),
    "two negative dimensions": (lambda: _tensor(lambda t: t.dims.extend([-1, -1])), "onnx_tensor"),
    "dimensions that overflow": (
        lambda: _tensor(lambda t: (t.dims.extend([1 << 62, 1 << 62]), t.ClearField("raw_data"))), "onnx_tensor"),
    "too many dimensions": (lambda: _tensor(lambda t: t.dims.extend([1] * 32)), "onnx_tensor"),
    "no element type": (lambda: _tensor(_set("data_type", 0)), "onnx_tensor"),
    "unknown element type": (lambda: _tensor(_set("data_type", 99)), "onnx_tensor"),
    "segmented": (lambda: _tensor(lambda t: t.segment.SetInParent()), "onnx_tensor"),
    "strings in raw data": (lambda: _tensor(_set("data_type", STRING)), "onnx_tensor"),
    "a boolean of 2": (
        lambda: _tensor(lambda t: (_set("data_type", TensorProto.BOOL)(t), _set("raw_data", b"\1\2")(t))),
        "onnx_tensor"),
    # versions
    "IR 2": (lambda: model(ir=2), "onnx_version"),
    "IR 15": (lambda: model(ir=15), "onnx_version"),
    "opset 6": (lambda: model(imports=[("", 6)]), "onnx_version"),
    "opset 29": (lambda: model(imports=[("", 29)]), "onnx_version"),
    "ml opset 6": (lambda: model(imports=[("", 17), ("ai.onnx.ml", 6)]), "onnx_version"),
    "two versions": (lambda: model(imports=[("", 17), ("", 18)]), "onnx_version"),
    "two versions, two spellings": (lambda: model(imports=[("", 17), ("ai.onnx", 18)]), "onnx_version"),
    "no standard operators": (lambda: model(imports=[("local", 1)]), "onnx_version"),
    "operators not imported": (
        lambda: model(node("Scaler", domain="ai.onnx.ml", scale=[1.0], offset=[0.0])), "onnx_version"),
    # operators
    "custom domain": (lambda: model(node(domain="evil.corp")), "onnx_domain"),
    "custom domain, imported": (
        lambda: model(node(domain="evil.corp"), imports=[("", 17), ("evil.corp", 1)]), "onnx_domain"),
    "com.microsoft": (lambda: model(node("Gelu", domain="com.microsoft")), "onnx_domain"),
    "training domain": (lambda: model(node("Adam", domain="ai.onnx.preview.training")), "onnx_domain"),
    "unknown operator": (lambda: model(node("Reluu")), "onnx_operator"),
    "operator of a later set": (lambda: model(node("Gelu"), imports=[("", 19)]), "onnx_operator"),
    # structure
    "undefined value": (lambda: model(node("Relu", ["z"])), "onnx_graph"),
    "not in order": (lambda: model(node("Relu", ["m"]), node("Relu", ["x"], ["m"])), "onnx_graph"),
    "cycle": (lambda: model(node("Add", ["x", "m"]), node("Relu", ["y"], ["m"])), "onnx_graph"),
    "computed twice": (lambda: model(node(), node()), "onnx_graph"),
    "computes an input": (lambda: model(node(), node("Relu", ["y"], ["x"])), "onnx_graph"),
    "input twice": (lambda: model(inputs=[value("x"), value("x")]), "onnx_graph"),
    "nameless input": (lambda: model(inputs=[value("x"), value("")]), "onnx_graph"),
    "initializer twice": (lambda: model(constants=[floats(), floats()]), "onnx_graph"),
    "output twice": (lambda: model(outputs=[value("y"), value("y")]), "onnx_graph"),
    "no outputs": (lambda: model(outputs=[]), "onnx_graph"),
    "output never computed": (lambda: model(outputs=[value("z")]), "onnx_graph"),
    "inner value read outside": (
        lambda: changed_nodes(_subgraph(node("Relu", ["x"], ["k"])), node("Relu", ["k"], ["q"])), "onnx_graph"),
    "required input left out": (lambda: model(node("Max", ["x", "", "x"])), "onnx_arity"),
    "output left out": (
        lambda: model(node("Split", ["x"], ["y", ""], axis=1)), "onnx_arity"),
    "too few inputs": (lambda: model(node("Add")), "onnx_arity"),
    "too many inputs": (lambda: model(node("Relu", ["x", "x"])), "onnx_arity"),
    "too many outputs": (lambda: model(node("Relu", ["x"], ["y", "z"])), "onnx_arity"),
    "training graph": (lambda: changed(lambda m: m.training_info.add()), "onnx_training_info"),
    # attributes
    "attribute twice": (
        lambda: changed_attributes(node("LeakyRelu", alpha=0.1), helper.make_attribute("alpha", 0.2)),
        "onnx_attribute"),
    "attribute of another type": (lambda: _attribute(name="alpha", type=2, f=0.5), "onnx_attribute"),
    "attribute with two values": (lambda: _attribute(name="alpha", type=1, f=0.5, i=1), "onnx_attribute"),
    "attribute without a type": (lambda: _attribute(name="alpha"), "onnx_attribute"),
    "reference outside a function": (
        lambda: _attribute(name="alpha", type=1, ref_attr_name="slope"), "onnx_attribute"),
    "Cast saturate 4": (
        lambda: model(node("Cast", to=FLOAT, saturate=4), imports=[("", 19)]), "onnx_attribute_range"),
    "CastLike saturate -1": (
        lambda: model(node("CastLike", ["x", "x"], saturate=-1), imports=[("", 19)]), "onnx_attribute_range"),
    "saturate in a subgraph": (
        lambda: _subgraph(node("Cast", ["x"], ["k"], to=FLOAT, saturate=2)), "onnx_attribute"),
    "saturate as a float": (
        lambda: model(node("Cast", to=FLOAT, saturate=1.0), imports=[("", 19)]), "onnx_attribute"),
    "saturate passed on": (lambda: _passed_on(4), "onnx_attribute_range"),
    "keepdims 2": (lambda: model(node("ReduceSum", keepdims=2)), "onnx_attribute_range"),
    "ml flag": (
        lambda: model(node("OneHotEncoder", domain="ai.onnx.ml", cats_int64s=[1], zeros=7),
                      imports=[("", 17), ("ai.onnx.ml", 2)]), "onnx_attribute_range"),
    # functions
    "standard function": (lambda: _function("Relu", "", calls="Relu"), "onnx_function"),
    "function in ai.onnx": (lambda: _function(domain="ai.onnx"), "onnx_function"),
    "function in com.microsoft": (lambda: _function(domain="com.microsoft"), "onnx_function"),
    "function twice": (
        lambda: (lambda m: (m.functions.append(m.functions[0]), m)[1])(_function()), "onnx_function"),
    "function calls itself": (
        lambda: _function(body=[node("F", ["a"], ["b"], domain="local")]), "onnx_function"),
    "function never computes": (lambda: _function(body=[node("Relu", ["a"], ["c"])]), "onnx_graph"),
    "function reads outer value": (lambda: _function(body=[node("Add", ["a", "x"], ["b"])]), "onnx_graph"),
    "function of custom operators": (
        lambda: _function(body=[node("F", ["a"], ["b"], domain="evil")]), "onnx_domain"),
    # names
    "newline in a name": (lambda: model(node(name="a\nb")), "onnx_name"),
    "escape in a value": (lambda: model(inputs=[value("x"), value("\x1b[31m")]), "onnx_name"),
    "NUL in the graph's name": (lambda: changed(lambda m: _set("name", "a\0")(m.graph)), "onnx_name"),
    "path in a name": (lambda: model(inputs=[value("x"), value("../x")]), "onnx_name"),
    "not UTF-8": (lambda: model(node(name="QQQ")).SerializeToString().replace(b"QQQ", b"\xff\xfeQ"), "onnx_name"),
    "domain not UTF-8": (
        lambda: model(imports=[("", 17), ("QQQ", 1)]).SerializeToString().replace(b"QQQ", b"\xff\xfeQ"),
        "onnx_name"),
    "label not UTF-8": (lambda: zipmap(classlabels_strings=[b"\xff", b"a"]), "onnx_name"),
    # the edge
    "BF16 input": (lambda: model(node("Identity"), inputs=[value("x", TensorProto.BFLOAT16)]), "onnx_io_type"),
    "complex output": (
        lambda: model(node("Identity"), outputs=[value("y", TensorProto.COMPLEX64)]), "onnx_io_type"),
    "float8 input": (lambda: model(inputs=[value("x", TensorProto.FLOAT8E4M3FN)]), "onnx_io_type"),
    "input without a type": (lambda: model(inputs=[onnx.ValueInfoProto(name="x")]), "onnx_io_type"),
    "sequence output": (
        lambda: model(outputs=[helper.make_tensor_sequence_value_info("y", FLOAT, None)]),
        "onnx_io_type"),
    "optional input": (
        lambda: model(inputs=[helper.make_value_info(
            "x", helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [1])))]), "onnx_io_type"),
}  # fmt: skip


def changed_nodes(made: Any, *nodes: Any) -> Any:
    """The model with more nodes at its end."""
    made.graph.node.extend(nodes)
    return made


def changed_attributes(made: Any, *attributes: Any) -> Any:
    """A model of this node with more attributes."""
    made.attribute.extend(attributes)
    return model(made)


def _passed_on(saturate: int | None) -> Any:
    """A function that passes its attribute on to Cast, called with a value or without."""
    body = [node("Cast", ["a"], ["b"], to=FLOAT)]
    body[0].attribute.append(
        onnx.AttributeProto(name="saturate", type=onnx.AttributeProto.INT, ref_attr_name="s")
    )
    made = helper.make_function(
        "local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 19)], attributes=["s"]
    )
    call = node("F", domain="local", **({} if saturate is None else {"s": saturate}))
    return model(call, imports=[("", 19), ("local", 1)], functions=[made])


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    """Each model is wrong in one respect, and refused with its code."""
    made, code = REFUSED[name]
    assert refusal(made()) == code


def _laughs(count: int) -> Any:
    """Functions that each call the next one twice."""
    functions = []
    for level in range(count):
        last = level == count - 1
        operator, domain = ("Relu", "") if last else (f"F{level + 1}", "local")
        body = [node(operator, ["a"], ["m"], domain=domain), node(operator, ["m"], ["b"], domain=domain)]
        functions.append(
            helper.make_function("local", f"F{level}", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
        )
    return model(node("F0", domain="local"), imports=[("", 17), ("local", 1)], functions=functions)


def test_expansion_is_counted_not_done() -> None:
    """2^30 nodes in 31 functions are refused at once; few are admitted, whichever way round they are written."""
    admit(_laughs(3))
    backwards = _laughs(3)
    functions = list(backwards.functions)
    del backwards.functions[:]
    backwards.functions.extend(reversed(functions))
    admit(backwards)
    assert refusal(_laughs(31), LimitExceeded) == "onnx_too_complex"


def _chain(count: int) -> Any:
    """Functions that each call the next one, the last one first."""
    made = _laughs(count)
    for function in made.functions:
        del function.node[1:]
        function.node[0].output[0] = "b"
    functions = list(made.functions)
    del made.functions[:]
    made.functions.extend(reversed(functions))
    return made


@pytest.mark.parametrize(
    "made",
    [
        lambda: model(*(node("Relu", ["x"], [f"y{n}"]) for n in range(51)), outputs=[value("y0")]),
        lambda: model(constants=[floats(f"w{n}") for n in range(61)]),
        lambda: model(constants=[floats(values=[0.0] * 2048, dims=[2048])]),
        lambda: model(node(name="n" * 65)),
        lambda: _subgraph(node("Relu", ["x"], ["k"]), depth=8),
        lambda: _subgraph(node("Relu", ["x"], ["k"]), depth=25),
        lambda: _chain(20),
    ],
    ids=["nodes", "tensors", "bytes", "name", "subgraphs", "many subgraphs", "calls"],
)
def test_limits(made: Callable[[], Any]) -> None:
    """More than a limit is refused."""
    assert refusal(made(), LimitExceeded) == "onnx_too_complex"


def test_size_comes_first() -> None:
    """An upload beyond the limit is not parsed."""
    limits = dataclasses.replace(LIMITS, model_bytes=10)
    with pytest.raises(LimitExceeded) as caught:
        parse_onnx(b"\xff" * 11, limits=limits)
    assert caught.value.code == "model_too_large"


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x3a\x7fx", b"\x08\x08", targets_data.MODEL[:-3]])
def test_what_is_no_model_is_malformed(data: bytes) -> None:
    """Not protobuf, cut off, or without a graph."""
    made = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    assert (
        refusal(made.SerializeToString() if data == b"\x08\x08" else data, MalformedInput) == "onnx_malformed"
    )


def test_concatenated_models_are_refused() -> None:
    """Protobuf merges them: whoever reads the first sees another model than whoever reads both."""
    other = onnx.ModelProto()
    other.graph.initializer.append(floats("late"))
    data = model().SerializeToString() + other.SerializeToString()
    assert refusal(data, MalformedInput) == "onnx_merged"
    assert (
        refusal(model().SerializeToString() + b"\x08\x09", MalformedInput) == "onnx_merged"
    )  # ir_version again


@pytest.mark.parametrize("where", ["model", "graph", "node", "tensor"])
def test_unknown_fields_are_refused(where: str) -> None:
    """Wherever they are: somebody means something by them."""
    made = model(node("Add", ["x", "w"]), constants=[floats()])
    part = {
        "model": made,
        "graph": made.graph,
        "node": made.graph.node[0],
        "tensor": made.graph.initializer[0],
    }
    part[where].MergeFromString(b"\xba\x3e\x01x")  # field 999
    assert refusal(made) == "onnx_unknown_field"


@pytest.mark.slow
@given(st.binary(max_size=100), st.integers(0, len(targets_data.MODEL)))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_admitted_or_refused(data: bytes, cut: int) -> None:
    """A value or `strongroom.errors.Error`, nothing else."""
    targets_data.fuzz_onnx(data)
    targets_data.fuzz_onnx(targets_data.MODEL[:cut] + data + targets_data.MODEL[cut + len(data) :])
    targets_data.fuzz_onnx(targets_data.MODEL + data)
