"""The edge of an ONNX model: what a request carries in and a response out, what people read, what is written again.

Rules
  - What the protocol cannot carry (sequences, maps, BF16 ...) is refused, except ZipMap, the dictionary that
    scikit-learn's converters put at the end: it is cut off, its labels become notes.
  - Outputs are described as they are computed, not as they are declared.
  - Text in the file becomes notes, so many bytes of it, and is not written again: nothing can hide in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NoReturn

import onnx

from strongroom.errors import AdmissionRefused
from strongroom.models.info import Dimension, NoteValue, TensorSpec
from strongroom.models.sizes import Size, lower, upper
from strongroom.models.values import Value
from strongroom.models.wire import OPSETS, check_text, clear, domain_of

MAX_NOTES: Final = 64 << 10
"""Bytes of metadata kept for people; a text recogniser's alphabet has 13 KB."""
_T = onnx.TensorProto
_OIP: Final = {
    _T.BOOL: "BOOL", _T.UINT8: "UINT8", _T.UINT16: "UINT16", _T.UINT32: "UINT32", _T.UINT64: "UINT64",
    _T.INT8: "INT8", _T.INT16: "INT16", _T.INT32: "INT32", _T.INT64: "INT64",
    _T.FLOAT16: "FP16", _T.FLOAT: "FP32", _T.DOUBLE: "FP64", _T.STRING: "BYTES",
}  # fmt: skip
_BAD_TEXT: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # of notes, which may have lines and tabs


def _refuse(message: str, code: str) -> NoReturn:
    raise AdmissionRefused(message, code=code)


def cut_zipmaps(model: Any, used: Mapping[str, int]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Replaces each ZipMap that makes an output by the tensor it packs; (output, class labels) of each.

    ZipMap makes a list of dictionaries, which the protocol cannot carry, of a matrix and fixed labels.
    """
    outputs = {value.name: value for value in model.graph.output}
    found = []
    for node in model.graph.node:
        mine = node.op_type == "ZipMap" and node.domain == "ai.onnx.ml" and node.output[0] in outputs
        if not mine or used.get(node.output[0]):
            continue
        lists = [attribute for attribute in node.attribute if attribute.ints or attribute.strings]
        if len(lists) != 1:
            continue
        texts = (label.decode("utf-8") for label in lists[0].strings)
        labels: tuple[str | int, ...] = (*lists[0].ints, *texts)
        output = outputs[node.output[0]]
        output.ClearField("type")
        output.type.tensor_type.elem_type = _T.FLOAT
        output.type.tensor_type.shape.dim.add()
        output.type.tensor_type.shape.dim.add(dim_value=len(labels))
        # Identity keeps the output's name and every bit.
        node.op_type, node.domain = "Identity", ""
        node.ClearField("attribute")
        found.append((output.name, labels))
    if found and all(domain_of(entry.domain) for entry in model.opset_import):
        model.opset_import.add(domain="", version=OPSETS[""][0])
    return iter(found)


def describe(value: Any, what: str, found: Value | None = None) -> TensorSpec:
    """An input as it is declared; an output as it is computed where that is another shape.

    Raises:
        AdmissionRefused: no tensor of a type that the protocol carries (code `onnx_io_type`).
    """
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        name = (kind or "no_type").removesuffix("_type").replace("_", " ")
        _refuse(f"an {what} is a {name}: only dense tensors can be sent and received", "onnx_io_type")
    tensor = value.type.tensor_type
    if tensor.elem_type not in _OIP:
        name = _T.DataType.Name(tensor.elem_type) if tensor.elem_type in _T.DataType.values() else "unknown"
        _refuse(f"an {what} is of type {name}, which the protocol cannot carry", "onnx_io_type")
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(_dimension(dim) for dim in tensor.shape.dim)
    if found is not None and found.dims is not None:
        shape = _computed(shape, found.dims)
    return TensorSpec(name=value.name, datatype=_OIP[tensor.elem_type], shape=shape)


def _computed(declared: tuple[Dimension, ...] | None, dims: tuple[Size, ...]) -> tuple[Dimension, ...]:
    """Numbers for what is known, the declared symbols for what is not: a number that is only declared may be wrong
    (exporters write the batch that they tried), and answers are held to numbers.
    """
    if declared is None or len(declared) != len(dims):
        declared = (None,) * len(dims)
    return tuple(
        int(lower(size)) if lower(size) == upper(size)
        else said if isinstance(said, str) else None
        for said, size in zip(declared, dims, strict=True)
    )  # fmt: skip


def _dimension(dim: Any) -> Dimension:
    if dim.HasField("dim_value"):
        # Older exporters write -1 for "any".
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    # "?" stands for any size in PaddlePaddle's exports, a different one each time: it is no symbol.
    symbol: str = dim.dim_param
    check_text(symbol)
    return symbol if re.search(r"[^\W_]", symbol) and symbol not in ("None", "-1") else None


def notes_of(
    model: Any, imports: Mapping[str, int], labels: Iterable[tuple[str, tuple[str | int, ...]]]
) -> tuple[tuple[str, NoteValue], ...]:
    """Facts for people, at most about `MAX_NOTES` bytes of what the file brought along."""
    notes: list[tuple[str, NoteValue]] = [("ir_version", int(model.ir_version))]
    for domain, label in (("", "opset"), ("ai.onnx.ml", "opset_ml")):
        if domain in imports:
            notes.append((label, imports[domain]))
    free: list[tuple[str, NoteValue]] = []
    texts = (model.producer_name, model.producer_version)
    if all(isinstance(text, str) for text in texts) and any(texts):
        free.append(("producer", " ".join(texts).strip()))
    free += [(f"class_labels.{output}", values) for output, values in labels]
    free += [
        (f"metadata.{entry.key}", entry.value)
        for entry in model.metadata_props
        if isinstance(entry.key, str) and isinstance(entry.value, str)
    ]
    room, dropped = MAX_NOTES, 0
    for name, value in free:
        size = len(name) + len(str(value))
        taken = any(name == other for other, _ in notes)
        parts = (name, *(value if isinstance(value, tuple) else (value,)))
        if size > room or taken or any(_BAD_TEXT.search(part) for part in parts if isinstance(part, str)):
            dropped += 1
            continue
        notes.append((name, value))
        room -= size
    return (*notes, ("notes_dropped", dropped)) if dropped else tuple(notes)


def strip(model: Any, called: frozenset[tuple[str, str, str]]) -> None:
    """Leaves in the model what its graph needs to run: of the functions those that are called."""
    clear(model)
    kept_functions = [f for f in model.functions if (domain_of(f.domain), f.name, f.overload) in called]
    if len(kept_functions) != len(model.functions):
        del model.functions[:]
        model.functions.extend(kept_functions)
    for name in ("producer_name", "producer_version", "domain", "model_version", "configuration"):
        model.ClearField(name)
    functions = {function.domain for function in model.functions}
    imports = {(domain_of(entry.domain), entry.version) for entry in model.opset_import}
    kept = {(domain, version) for domain, version in imports if domain in OPSETS or domain in functions}
    del model.opset_import[:]
    for domain, version in sorted(kept):
        model.opset_import.add(domain=domain, version=version)
