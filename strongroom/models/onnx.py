"""Structural admission of ONNX: bytes of a stranger in, canonical bytes and metadata out.

The format is onnx/onnx's `onnx.proto` and IR specification, IR versions 3 to 14.

Rules
  - What was looked at is what runs: the file is parsed once, walked completely (subgraphs, functions and
    attributes included) and written again; the engine only ever sees what was written. Unknown fields,
    documentation and metadata do not survive that, so nothing can hide in them.
  - No tensor lies outside the file, and each has exactly the bytes that its shape and type need: a runtime
    that trusts a length reads other memory, and external data reads the host's files.
  - Operators are those of ai.onnx and ai.onnx.ml (and functions of the model itself that consist of them);
    com.microsoft's kernels trust their inputs.
  - Flags are 0 or 1. onnxruntime leaves the output of `Cast(saturate=4)` unwritten: the caller gets memory of
    whoever ran before.
  - Counting is in Python integers, which do not wrap, and comes before anything is expanded.
  - What the protocol cannot carry (sequences, maps, BF16 ...) is refused at the model's edge, except ZipMap,
    the dictionary that scikit-learn's converters put at the end: it is cut off, its labels become notes.

This says nothing about how much memory or time a model takes when it runs.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]  # has no stubs

from strongroom.errors import AdmissionRefused, LimitExceeded, MalformedInput
from strongroom.models.info import ONNX_RULES, AdmissionLimits, Dimension, ModelInfo, NoteValue, TensorSpec

MIN_IR, MAX_IR = 3, 14
"""IR versions: from the first released one to the latest that the pinned onnxruntime reads."""
OPSETS: Final = {"": (7, 28), "ai.onnx.ml": (1, 5)}
"""Versions of each operator set that the pinned onnxruntime implements."""
MAX_NESTING: Final = 16
"""Graphs within graphs and calls within functions; exporters nest three or four deep, protobuf allows 30."""
MAX_RANK: Final = 32
"""Dimensions of a tensor, as on the wire."""
MAX_NOTES: Final = 64 << 10
"""Bytes of metadata kept for people; a text recogniser's alphabet has 13 KB."""

_STANDARD: Final = ("", "ai.onnx", "ai.onnx.ml")
_T = onnx.TensorProto
_A = onnx.AttributeProto

_OIP: Final = {
    _T.BOOL: "BOOL", _T.UINT8: "UINT8", _T.UINT16: "UINT16", _T.UINT32: "UINT32", _T.UINT64: "UINT64",
    _T.INT8: "INT8", _T.INT16: "INT16", _T.INT32: "INT32", _T.INT64: "INT64",
    _T.FLOAT16: "FP16", _T.FLOAT: "FP32", _T.DOUBLE: "FP64", _T.STRING: "BYTES",
}  # fmt: skip

# Element type -> (bits in raw_data, the typed field that may hold it instead, entries of it an element).
_STORAGE: Final = {
    _T.FLOAT: (32, "float_data", 1), _T.DOUBLE: (64, "double_data", 1),
    _T.COMPLEX64: (64, "float_data", 2), _T.COMPLEX128: (128, "double_data", 2),
    _T.INT64: (64, "int64_data", 1), _T.UINT32: (32, "uint64_data", 1), _T.UINT64: (64, "uint64_data", 1),
    _T.INT32: (32, "int32_data", 1), _T.INT16: (16, "int32_data", 1), _T.UINT16: (16, "int32_data", 1),
    _T.INT8: (8, "int32_data", 1), _T.UINT8: (8, "int32_data", 1), _T.BOOL: (8, "int32_data", 1),
    _T.FLOAT16: (16, "int32_data", 1), _T.BFLOAT16: (16, "int32_data", 1),
    _T.FLOAT8E4M3FN: (8, "int32_data", 1), _T.FLOAT8E4M3FNUZ: (8, "int32_data", 1),
    _T.FLOAT8E5M2: (8, "int32_data", 1), _T.FLOAT8E5M2FNUZ: (8, "int32_data", 1),
    _T.FLOAT8E8M0: (8, "int32_data", 1),
    _T.INT4: (4, "int32_data", 1), _T.UINT4: (4, "int32_data", 1), _T.FLOAT4E2M1: (4, "int32_data", 1),
    _T.INT2: (2, "int32_data", 1), _T.UINT2: (2, "int32_data", 1),
}  # fmt: skip
_TYPED_FIELDS: Final = (
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)

# The one field that holds an attribute's value, by the attribute's declared type.
_VALUE_FIELDS: Final = {
    _A.FLOAT: "f", _A.INT: "i", _A.STRING: "s", _A.TENSOR: "t", _A.GRAPH: "g", _A.TYPE_PROTO: "tp",
    _A.FLOATS: "floats", _A.INTS: "ints", _A.STRINGS: "strings", _A.TENSORS: "tensors", _A.GRAPHS: "graphs",
    _A.TYPE_PROTOS: "type_protos", _A.SPARSE_TENSOR: "sparse_tensor", _A.SPARSE_TENSORS: "sparse_tensors",
}  # fmt: skip

# Attributes of the standard operators that the specification declares as int and means as a boolean.
_FLAGS: Final = frozenset({
    "align_corners", "allowzero", "antialias", "broadcast", "ceil_mode", "center_point_box",
    "count_include_pad", "detect_negative", "detect_positive", "exclude_outside", "exclusive", "fmod",
    "input_forget", "interleaved", "inverse", "is_case_sensitive", "is_causal", "is_test", "keepdims",
    "largest", "layout",
    "linear_before_reset", "multi_class", "new_axis", "noop_with_empty_axes", "one_class", "onesided",
    "output_sequence", "periodic", "reverse", "saturate", "select_last_index", "sorted", "spatial",
    "storage_order", "training_mode", "transA", "transB", "upper", "zeros",
})  # fmt: skip

# Control characters forge log lines; "../" would be a path where a name becomes one.
_BAD_NAME: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]|\\.\\./")
_BAD_TEXT: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # of notes, which may have lines and tabs


def parse_onnx(data: bytes | bytearray | memoryview, *, limits: AdmissionLimits) -> tuple[bytes, ModelInfo]:
    """Checks the model's structure and returns its canonical bytes, for the engine, and its metadata.

    A bytearray is emptied once it was read. The canonical bytes are deterministic for one release of protobuf;
    they compute what the upload computes, with ZipMap outputs replaced by their tensor.

    Raises:
        MalformedInput: no ModelProto (code `onnx_malformed`).
        AdmissionRefused: a rule above is broken (codes `onnx_...`).
        LimitExceeded: larger than `limits` (codes `model_too_large`, `onnx_too_complex`).
    """
    if len(data) > limits.model_bytes:
        raise LimitExceeded(
            f"the model has {len(data)} bytes, at most {limits.model_bytes}", code="model_too_large"
        )
    try:
        # protobuf reads a bytearray in place; a copy would double the memory and keep other threads waiting.
        whole = bytes(data) if isinstance(data, memoryview) else data
        model = onnx.ModelProto.FromString(whole)
        del whole
        if isinstance(data, bytearray):
            data.clear()  # before the model is written again, which takes twice its size
        return _admit(model, limits)
    except DecodeError:
        raise MalformedInput("the bytes are not an ONNX ModelProto", code="onnx_malformed") from None
    except EncodeError:
        raise LimitExceeded("the model is too large to be written again", code="model_too_large") from None
    except UnicodeDecodeError:  # of a class label; the exception would carry it
        raise AdmissionRefused("a class label of the model is not UTF-8", code="onnx_name") from None


def _admit(model: Any, limits: AdmissionLimits) -> tuple[bytes, ModelInfo]:
    """The checks, in order."""
    model.DiscardUnknownFields()
    # 1. A version that is understood.
    imports = _check_versions(model)
    # 2. One graph: training_info is a second one that nothing runs but everything may load.
    if model.training_info:
        _refuse("the model has training_info", "onnx_training_info")
    if not model.HasField("graph"):
        raise MalformedInput("the model has no graph", code="onnx_malformed")
    # 3. Functions, callees first, so that calls can be counted without expanding any.
    walk = _Walk(limits=limits, imports=imports)
    walk.functions_of(model)
    # 4. The graph with everything below it.
    cost = walk.graph(model.graph, outer=(), depth=0)
    walk.check_cost(cost)
    # 5. Its edge: what a request carries in and a response out.
    initializers = {tensor.name for tensor in model.graph.initializer}
    labels = _cut_zipmaps(model, walk.used)
    inputs = tuple(_spec(v, "input") for v in model.graph.input if v.name not in initializers)
    outputs = tuple(_spec(v, "output") for v in model.graph.output)
    notes = _notes(model, imports, labels)
    # 6. Only what runs is written.
    _strip(model)
    canonical = model.SerializeToString(deterministic=True)
    info = ModelInfo(
        format="onnx",
        inputs=inputs,
        outputs=outputs,
        primary_output=outputs[0].name,
        feature_names=(),
        notes=notes,
        rules=ONNX_RULES,
    )
    return canonical, info


def _refuse(message: str, code: str) -> NoReturn:
    raise AdmissionRefused(message, code=code)


def _check_versions(model: Any) -> dict[str, int]:
    if not MIN_IR <= model.ir_version <= MAX_IR:
        _refuse(f"IR version {model.ir_version}; {MIN_IR} to {MAX_IR} are run", "onnx_version")
    imports = _imports(model.opset_import)
    if not imports.keys() & OPSETS.keys():
        _refuse("the model imports no standard operator set", "onnx_version")
    return imports


def _imports(entries: Iterable[Any]) -> dict[str, int]:
    """Domain -> version; a domain may stand twice with one version (skl2onnx writes it so), not with two."""
    imports: dict[str, int] = {}
    for entry in entries:
        domain = _domain(entry.domain)
        if imports.setdefault(domain, entry.version) != entry.version:
            _refuse("an operator set is imported in two versions", "onnx_version")
        low, high = OPSETS.get(domain, (entry.version, entry.version))
        if not low <= entry.version <= high:
            _refuse(f"opset {entry.version} of a standard domain; {low} to {high} are run", "onnx_version")
    return imports


def _domain(domain: str) -> str:
    _check_text(domain)
    return "" if domain == "ai.onnx" else domain


def _check_text(text: object) -> None:
    """proto2 strings are not checked by the parser: what is not UTF-8 comes out as bytes."""
    if not isinstance(text, str):
        _refuse("a name in the model is not UTF-8", "onnx_name")


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a graph comes to with every call expanded."""

    nodes: int = 0
    tensors: int = 0
    bytes: int = 0
    height: int = 0  # graphs or functions below

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(
            self.nodes + other.nodes,
            self.tensors + other.tensors,
            self.bytes + other.bytes,
            max(self.height, other.height),
        )

    def raised(self) -> _Cost:
        return _Cost(self.nodes, self.tensors, self.bytes, self.height + 1)


_Key = tuple[str, str, str]  # domain, name, overload


@dataclass(slots=True)
class _Walk:
    """One pass over a model. Each method takes out what must not be written again, and returns the cost."""

    limits: AdmissionLimits
    imports: dict[str, int]
    used: dict[str, int] = field(default_factory=dict)  # value name -> how often it is read, anywhere
    _names: set[str] = field(default_factory=set)  # names already found good
    _functions: dict[_Key, Any] = field(default_factory=dict)
    _costs: dict[_Key, _Cost | None] = field(default_factory=dict)  # of functions; None: being walked
    _parameters: frozenset[str] | None = None  # attribute names of the function being walked

    def check_cost(self, cost: _Cost) -> None:
        for what, count, limit in (
            ("nodes", cost.nodes, self.limits.nodes),
            ("tensors", cost.tensors, self.limits.tensors),
            ("bytes of tensors", cost.bytes, self.limits.tensor_bytes),
            ("levels", cost.height, min(MAX_NESTING, self.limits.nesting)),
        ):
            if count > limit:
                raise LimitExceeded(
                    f"the model has more than {limit} {what}, its functions expanded", code="onnx_too_complex"
                )

    def name(self, name: str) -> str:
        if name not in self._names:
            _check_text(name)
            if len(name) > self.limits.name_length:
                raise LimitExceeded(
                    f"a name has more than {self.limits.name_length} characters", code="onnx_too_complex"
                )
            if _BAD_NAME.search(name):
                _refuse("a name has control characters or '../' in it", "onnx_name")
            self._names.add(name)
        return name

    # Functions

    def functions_of(self, model: Any) -> None:
        for function in model.functions:
            key = self._key(function.domain, function.name, function.overload)
            if key in self._functions:
                _refuse("a function is defined twice", "onnx_function")
            if key[0].startswith(("ai.onnx", "com.microsoft")) or not key[0]:
                # It would replace a standard operator that every reader takes for what its name says.
                _refuse("a function is defined in a standard domain", "onnx_function")
            self._functions[key] = function
        for key in self._functions:
            self._function(key, depth=0)

    def _key(self, domain: str, name: str, overload: str) -> _Key:
        return self.name(_domain(domain)), self.name(name), self.name(overload)

    def _function(self, key: _Key, *, depth: int) -> _Cost:
        if key in self._costs:
            known = self._costs[key]
            if known is None:
                _refuse("a function calls itself", "onnx_function")
            return known
        self._costs[key], function = None, self._functions[key]
        _clear(function)
        function.ClearField("value_info")
        outer = self.imports, self._parameters
        self.imports = _imports(function.opset_import)
        parameters = (*function.attribute, *(a.name for a in function.attribute_proto))
        self._parameters = frozenset(map(self.name, parameters))
        cost = _Cost()
        for attribute in function.attribute_proto:
            cost += self._attribute(attribute, scope=(), depth=depth)
        values = _defined([self.name(name) for name in function.input], "a function")
        cost += self._nodes(function.node, (values,), depth=depth)
        if not all(name in values for name in function.output):
            _refuse("a function's output is never computed", "onnx_graph")
        self.imports, self._parameters = outer
        self._costs[key] = cost = cost.raised()
        self.check_cost(cost)
        return cost

    # Graphs

    def graph(self, graph: Any, *, outer: tuple[set[str], ...], depth: int) -> _Cost:
        _clear(graph)
        graph.ClearField("quantization_annotation")
        self.name(graph.name)
        if graph.sparse_initializer:
            _refuse("the model has sparse tensors", "onnx_sparse")
        cost = _Cost()
        for tensor in graph.initializer:
            cost += self._tensor(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            self.name(value.name)
            _clear(value)
        values = _defined((tensor.name for tensor in graph.initializer), "a graph")
        # An initializer may also be listed as an input: as a default, and always before IR version 4.
        values |= _defined((value.name for value in graph.input), "a graph")
        cost += self._nodes(graph.node, (*outer, values), depth=depth)
        results = [value.name for value in graph.output]
        if not results or len(set(results)) != len(results):
            _refuse("a graph has no outputs, or one of them twice", "onnx_graph")
        if not all(any(name in scope for scope in (*outer, values)) for name in results):
            _refuse("a graph's output is never computed", "onnx_graph")
        return (cost + _Cost(tensors=len(graph.input) + len(results))).raised()

    def _nodes(self, nodes: Any, scope: tuple[set[str], ...], *, depth: int) -> _Cost:
        """The nodes in their order: each value is defined once, and before it is read."""
        self.check_cost(_Cost(height=depth))  # bounds this recursion; `height` what was walked before
        cost, values = _Cost(), scope[-1]
        for node in nodes:
            _clear(node)
            node.ClearField("device_configurations")
            self.name(node.name)
            for name in node.input:
                if name and not any(name in defined for defined in scope):
                    _refuse("a node reads a value before it is computed, or that never is", "onnx_graph")
                self.used[name] = self.used.get(name, 0) + 1
            cost += _Cost(nodes=1) + self._operator(node, depth=depth)
            seen: set[str] = set()
            for attribute in node.attribute:
                if attribute.name in seen:
                    _refuse("an attribute is given twice", "onnx_attribute")
                seen.add(attribute.name)
                if _domain(node.domain) in OPSETS:
                    _check_flag(attribute)
                cost += self._attribute(attribute, scope=scope, depth=depth)
            for name in node.output:
                if name in values:
                    _refuse("two nodes compute the same value", "onnx_graph")
                if name:
                    values.add(self.name(name))
            # Before the next node: an expansion may be exponential in the number of functions.
            self.check_cost(cost)
        return cost

    def _operator(self, node: Any, *, depth: int) -> _Cost:
        """What the node calls: a function of the model, or an operator that its schema fits."""
        key = self._key(node.domain, node.op_type, node.overload)
        domain = key[0]
        if key in self._functions:
            return self._function(key, depth=depth + 1)
        if domain not in OPSETS:
            _refuse("a node uses an operator of another domain than ai.onnx and ai.onnx.ml", "onnx_domain")
        if domain not in self.imports:
            _refuse("a node uses an operator set that is not imported", "onnx_version")
        schema = _schema(node.op_type, self.imports[domain], domain)
        if schema is None:
            _refuse("a node uses an operator that its operator set does not have", "onnx_operator")
        _check_arity(node.input, schema.inputs, schema.min_input)
        _check_arity(node.output, schema.outputs, schema.min_output)
        return _Cost()

    # Attributes and tensors

    def _attribute(self, attribute: Any, *, scope: tuple[set[str], ...], depth: int) -> _Cost:
        self.name(attribute.name)
        attribute.ClearField("doc_string")
        values = {f.name for f, _ in attribute.ListFields()} - {"name", "type", "ref_attr_name"}
        if attribute.ref_attr_name:
            if values or self._parameters is None or attribute.ref_attr_name not in self._parameters:
                _refuse("an attribute refers to one that its function does not have", "onnx_attribute")
            return _Cost()
        if not values <= {_VALUE_FIELDS.get(attribute.type, "")}:
            _refuse("an attribute's value is not of the type it declares", "onnx_attribute")
        if attribute.type in (_A.SPARSE_TENSOR, _A.SPARSE_TENSORS):
            _refuse("the model has sparse tensors", "onnx_sparse")
        if attribute.type not in _VALUE_FIELDS:
            _refuse("an attribute declares no type", "onnx_attribute")
        cost = _Cost()
        for tensor in (*attribute.tensors, *([attribute.t] if "t" in values else [])):
            cost += self._tensor(tensor)
        for graph in (*attribute.graphs, *([attribute.g] if "g" in values else [])):
            cost += self.graph(graph, outer=scope, depth=depth + 1)
        return cost

    def _tensor(self, tensor: Any) -> _Cost:
        """The tensor is whole, in this file, and as long as its shape says."""
        self.name(tensor.name)
        _clear(tensor)
        if tensor.external_data or tensor.data_location != _T.DEFAULT:
            _refuse("a tensor's data lies outside the file", "onnx_external_data")
        tensor.ClearField("data_location")
        dims = tuple(tensor.dims)
        if tensor.HasField("segment") or len(dims) > MAX_RANK or any(size < 0 for size in dims):
            _refuse("a tensor is segmented, or has a negative or too many dimensions", "onnx_tensor")
        return _Cost(tensors=1, bytes=_check_storage(tensor, math.prod(dims)))


def _clear(message: Any) -> None:
    """Takes out text for people: nothing runs it, and whatever it says would be sealed with the model."""
    message.ClearField("doc_string")
    message.ClearField("metadata_props")


def _defined(names: Iterable[str], what: str) -> set[str]:
    listed = list(names)
    values = set(listed)
    if len(values) != len(listed) or "" in values:
        _refuse(f"{what} defines a value twice, or one without a name", "onnx_graph")
    return values


@functools.lru_cache(maxsize=4096)
def _schema(operator: str, version: int, domain: str) -> Any:
    """The operator's definition in that version of its set, or None."""
    try:
        return onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        return None


def _check_arity(names: Any, formal: Any, least: int) -> None:
    """Enough values, not too many, and an empty name only where a value is optional.

    onnxruntime follows a null pointer for `Max(x, "", y)` and for a Split with an unnamed output.
    """
    option = onnx.defs.OpSchema.FormalParameterOption
    variadic = bool(formal) and formal[-1].option == option.Variadic
    if len(names) < least or (len(names) > len(formal) and not variadic):
        _refuse("a node has more or fewer values than its operator takes", "onnx_graph")
    for position, name in enumerate(names):
        if not name and formal[min(position, len(formal) - 1)].option != option.Optional:
            _refuse("a node leaves out a value that its operator needs", "onnx_graph")


def _check_flag(attribute: Any) -> None:
    if attribute.name not in _FLAGS:
        return
    if attribute.ref_attr_name:
        # Its value stands at each call of the function; only `saturate` is known to leak memory.
        if attribute.name == "saturate":
            _refuse("a function passes on the flag 'saturate'", "onnx_attribute")
    elif attribute.type != _A.INT or attribute.i not in (0, 1):
        _refuse(f"the attribute {attribute.name!r} is a flag, and neither 0 nor 1", "onnx_attribute")


def _check_storage(tensor: Any, count: int) -> int:
    """One data field, of exactly the right length; returns the tensor's size in bytes."""
    fields = [name for name in _TYPED_FIELDS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        fields.append("raw_data")
    if len(fields) > 1:
        _refuse("a tensor has two sets of data", "onnx_tensor")
    kind = next(iter(fields), None)
    if tensor.data_type == _T.STRING:
        if kind not in (None, "string_data") or len(tensor.string_data) != count:
            _refuse("a tensor of strings does not have the elements of its shape", "onnx_tensor")
        return sum(map(len, tensor.string_data))
    if tensor.data_type not in _STORAGE:
        _refuse("a tensor has no element type that is known", "onnx_tensor")
    bits, typed, entries = _STORAGE[tensor.data_type]
    size = (count * bits + 7) // 8
    if kind == "raw_data":
        wanted, present = size, len(tensor.raw_data)
    elif bits < 8:  # packed: each entry holds a byte's worth
        wanted, present = size, len(tensor.int32_data)
    else:
        wanted, present = count * entries, len(getattr(tensor, typed))
    if kind not in (None, "raw_data", typed) or wanted != present:
        _refuse("a tensor's data is not as long as its shape and type say", "onnx_tensor")
    if tensor.data_type == _T.BOOL:
        values: Iterable[int] = tensor.raw_data if kind == "raw_data" else tensor.int32_data
        if not set(values) <= {0, 1}:
            _refuse("a boolean tensor holds something else than 0 and 1", "onnx_tensor")
    return size


# The edge


def _cut_zipmaps(model: Any, used: dict[str, int]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
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
    if found and all(_domain(entry.domain) for entry in model.opset_import):
        model.opset_import.add(domain="", version=OPSETS[""][0])
    return iter(found)


def _spec(value: Any, what: str) -> TensorSpec:
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
    return TensorSpec(name=value.name, datatype=_OIP[tensor.elem_type], shape=shape)


def _dimension(dim: Any) -> Dimension:
    if dim.HasField("dim_value"):
        # Older exporters write -1 for "any".
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    # "?" stands for any size in PaddlePaddle's exports, a different one each time: it is no symbol.
    symbol: str = dim.dim_param
    _check_text(symbol)
    return symbol if re.search(r"[^\W_]", symbol) and symbol not in ("None", "-1") else None


def _notes(
    model: Any, imports: dict[str, int], labels: Iterable[tuple[str, tuple[str | int, ...]]]
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


def _strip(model: Any) -> None:
    """Leaves in the model what its graph needs to run."""
    _clear(model)
    for name in ("producer_name", "producer_version", "domain", "model_version", "configuration"):
        model.ClearField(name)
    functions = {function.domain for function in model.functions}
    imports = {(_domain(entry.domain), entry.version) for entry in model.opset_import}
    kept = {(domain, version) for domain, version in imports if domain in OPSETS or domain in functions}
    del model.opset_import[:]
    for domain, version in sorted(kept):
        model.opset_import.add(domain=domain, version=version)
