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

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]  # has no stubs

from strongroom.errors import AdmissionRefused, LimitExceeded, MalformedInput
from strongroom.models import operators
from strongroom.models.bounds import examine
from strongroom.models.info import ONNX_RULES, AdmissionLimits, ModelInfo
from strongroom.models.interface import cut_zipmaps, describe, notes_of, strip
from strongroom.models.narrow import narrow_parts
from strongroom.models.plan import NO_LISTS, Lists, decoded
from strongroom.models.tensors import check_tensor
from strongroom.models.values import TRAPS
from strongroom.models.wire import (
    OPSETS,
    check_text,
    check_versions,
    clear,
    domain_of,
    imports_of,
    read_model,
    written,
)
from strongroom.reduction import as_found

MAX_NESTING: Final = 16
"""Graphs within graphs and calls within functions; exporters nest three or four deep, protobuf allows 30."""

_A = onnx.AttributeProto

# The one field that holds an attribute's value, by the attribute's declared type.
_VALUE_FIELDS: Final = {
    _A.FLOAT: "f", _A.INT: "i", _A.STRING: "s", _A.TENSOR: "t", _A.GRAPH: "g", _A.TYPE_PROTO: "tp",
    _A.FLOATS: "floats", _A.INTS: "ints", _A.STRINGS: "strings", _A.TENSORS: "tensors", _A.GRAPHS: "graphs",
    _A.TYPE_PROTOS: "type_protos", _A.SPARSE_TENSOR: "sparse_tensor", _A.SPARSE_TENSORS: "sparse_tensors",
}  # fmt: skip

# Control characters forge log lines; "../" would be a path where a name becomes one.
_BAD_NAME: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]|\\.\\./")


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
        info, (parts, start) = _admit(
            read_model(bytes(data) if isinstance(data, memoryview) else data), limits
        )
        # The message is gone by now: the bytes are copied only once, from where they were put together.
        with memoryview(parts) as view:
            return bytes(view[start:]), info
    except EncodeError:
        raise LimitExceeded("the model is too large to be written again", code="model_too_large") from None
    except UnicodeDecodeError:  # of a class label; the exception would carry it
        raise AdmissionRefused("a class label of the model is not UTF-8", code="onnx_name") from None


def examine_written(data: bytes, lists: Lists, *, limits: AdmissionLimits) -> ModelInfo:
    """What `parse_onnx` says of a model that was written here, without the long lists of its first node.

    `lists`: these, by the names of their attributes, as they stand in the model (`tree_wire.apart`).

    Raises:
        MalformedInput, AdmissionRefused, LimitExceeded: as `parse_onnx`.
    """
    return _examined(read_model(data), limits, lists)


def _admit(model: Any, limits: AdmissionLimits) -> tuple[ModelInfo, tuple[bytearray, int]]:
    info = _examined(model, limits, NO_LISTS)
    return info, written(model)  # only what runs


def _examined(model: Any, limits: AdmissionLimits, lists: Lists) -> ModelInfo:
    """The checks, in order; the numbers are those of `docs/spec/admission.md`. Takes out what does not run."""
    # §2. A version that is understood.
    imports = check_versions(model)
    # §1.6. One graph: training_info is a second one that nothing runs but everything may load.
    if model.training_info:
        _refuse("the model has training_info", "onnx_training_info")
    if not model.HasField("graph"):
        raise MalformedInput("the model has no graph", code="onnx_malformed")
    # §6.6. Functions, callees first, so that calls can be counted without expanding any.
    walk = _Walk(limits=limits, imports=imports, lists=lists)
    walk.functions_of(model)
    # §3 to §6. The graph with everything below it.
    cost = walk.graph(model.graph, outer=(), depth=0)
    walk.check_cost(cost)
    # §7.1. Its edge: what a request carries in and a response out.
    initializers = {tensor.name for tensor in model.graph.initializer}
    labels = cut_zipmaps(model, walk.used)
    inputs = tuple(describe(v, "input") for v in model.graph.input if v.name not in initializers)
    for value in model.graph.output:
        describe(value, "output")
    notes = notes_of(model, imports, labels)
    strip(model, walk.called)
    imports = imports_of(model.opset_import)
    # §8. What it costs.
    admission, found = examine(
        model, imports=imports, limits=limits, cost=(cost.nodes, cost.tensors, cost.bytes), lists=lists
    )
    if TRAPS in admission.flags and not limits.confined:
        raise AdmissionRefused(
            "a Div of whole numbers by what may be -1 ends the process on some data; here, callers share it",
            code="onnx_traps",
        )
    outputs = tuple(
        describe(value, "output", seen) for value, seen in zip(model.graph.output, found.outputs, strict=True)
    )
    return ModelInfo(
        format="onnx",
        inputs=inputs,
        outputs=outputs,
        primary_output=outputs[0].name,
        feature_names=(),
        notes=notes,
        rules=ONNX_RULES,
        admission=admission,
        precision=as_found(narrow_parts(model)),
    )


def _refuse(message: str, code: str) -> NoReturn:
    raise AdmissionRefused(message, code=code)


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
    lists: Lists
    """Of the first node of the graph (`plan.decoded`)."""
    used: dict[str, int] = field(default_factory=dict)  # value name -> how often it is read, anywhere
    _names: set[str] = field(default_factory=set)  # names already found good
    _functions: dict[_Key, Any] = field(default_factory=dict)
    _costs: dict[_Key, _Cost | None] = field(default_factory=dict)  # of functions; None: being walked
    _parameters: frozenset[str] | None = None  # attribute names of the function being walked
    _inside: _Key | None = None  # the function being walked
    _calls: dict[_Key | None, set[_Key]] = field(default_factory=dict)

    @property
    def called(self) -> frozenset[_Key]:
        """The functions that the graph calls, and those that they call."""
        found: set[_Key] = set()
        todo = list(self._calls.get(None, ()))
        while todo:
            key = todo.pop()
            if key not in found:
                found.add(key)
                todo += self._calls.get(key, ())
        return frozenset(found)

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
            check_text(name)
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
        return self.name(domain_of(domain)), self.name(name), self.name(overload)

    def _function(self, key: _Key, *, depth: int) -> _Cost:
        if key in self._costs:
            known = self._costs[key]
            if known is None:
                _refuse("a function calls itself", "onnx_function")
            return known
        self._costs[key], function = None, self._functions[key]
        clear(function)
        function.ClearField("value_info")
        outer = self.imports, self._parameters, self._inside
        self._inside, self.imports = key, imports_of(function.opset_import)
        parameters = (*function.attribute, *(a.name for a in function.attribute_proto))
        self._parameters = frozenset(map(self.name, parameters))
        cost = _Cost()
        for attribute in function.attribute_proto:
            cost += self._attribute(attribute, scope=(), depth=depth)
        values = _defined([self.name(name) for name in function.input], "a function")
        cost += self._nodes(function.node, (values,), depth=depth)
        if not all(name in values for name in function.output):
            _refuse("a function's output is never computed", "onnx_graph")
        self.imports, self._parameters, self._inside = outer
        self._costs[key] = cost = cost.raised()
        self.check_cost(cost)
        return cost

    # Graphs

    def graph(self, graph: Any, *, outer: tuple[set[str], ...], depth: int) -> _Cost:
        clear(graph)
        graph.ClearField("quantization_annotation")
        self.name(graph.name)
        if graph.sparse_initializer:
            _refuse("the model has sparse tensors", "onnx_sparse")
        cost = _Cost()
        for tensor in graph.initializer:
            cost += self._tensor(tensor)
        graph.ClearField("value_info")  # says what inference finds out; nobody here believes it
        for value in (*graph.input, *graph.output):
            self.name(value.name)
            clear(value)
        values = _defined((tensor.name for tensor in graph.initializer), "a graph")
        # An initializer may also be listed as an input: as a default, and always before IR version 4.
        values |= _defined((value.name for value in graph.input), "a graph")
        if any(name in scope for scope in outer for name in values):
            _refuse("a graph hides a value of an outer one", "onnx_graph")
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
        for place, node in enumerate(nodes):
            lists = NO_LISTS if place or depth else self.lists
            clear(node)
            node.ClearField("device_configurations")
            self.name(node.name)
            for name in node.input:
                if name and not any(name in defined for defined in scope):
                    _refuse("a node reads a value before it is computed, or that never is", "onnx_graph")
                self.used[name] = self.used.get(name, 0) + 1
            found = self._operator(node, depth=depth)
            cost += _Cost(nodes=1)
            seen: set[str] = set()
            for attribute in node.attribute:
                if attribute.name in seen:
                    _refuse("an attribute is given twice", "onnx_attribute")
                seen.add(attribute.name)
                cost += self._attribute(attribute, scope=scope, depth=depth)
            if isinstance(found, _Cost):
                cost += found
            elif not any(attribute.ref_attr_name for attribute in node.attribute):
                # References are checked at each call, with the values that it gives: see `look`.
                operators.check_attributes(found, {a.name: decoded(a, lists) for a in node.attribute})
            for name in node.output:
                if name and any(name in defined for defined in scope):
                    _refuse("two nodes compute the same value, or one hides an outer one", "onnx_graph")
                if name:
                    values.add(self.name(name))
            # Before the next node: an expansion may be exponential in the number of functions.
            self.check_cost(cost)
        return cost

    def _operator(self, node: Any, *, depth: int) -> _Cost | operators.Definition:
        """What the node calls: the cost of a function of the model, or an operator that runs here (§4)."""
        key = self._key(node.domain, node.op_type, node.overload)
        domain = key[0]
        if key in self._functions:
            self._calls.setdefault(self._inside, set()).add(key)
            return self._function(key, depth=depth + 1)
        if domain not in OPSETS:
            _refuse("a node uses an operator of another domain than ai.onnx and ai.onnx.ml", "onnx_domain")
        if domain not in self.imports:
            _refuse("a node uses an operator set that is not imported", "onnx_version")
        found = operators.find(node.op_type, self.imports[domain], domain)
        operators.check_arity(found, node.input, node.output)
        return found

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
        clear(tensor)
        return _Cost(tensors=1, bytes=check_tensor(tensor))


def _defined(names: Iterable[str], what: str) -> set[str]:
    listed = list(names)
    values = set(listed)
    if len(values) != len(listed) or "" in values:
        _refuse(f"{what} defines a value twice, or one without a name", "onnx_graph")
    return values
