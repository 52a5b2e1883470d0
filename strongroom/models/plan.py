"""A model's graphs as plain values, made once: what `look` goes through, many times over.

Nothing is judged here; `onnx` has checked the structure. Constants are read where they are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import onnx

from strongroom.models.shapes import tensor
from strongroom.models.values import Value, refuse

_A = onnx.AttributeProto
Lists = Mapping[str, Sequence[Any]]
NO_LISTS: Final[Lists] = MappingProxyType({})
Key = tuple[str, str, str]  # domain, name, overload
Attributes = Mapping[str, tuple[int, Any]]  # name -> type and value

_FIELDS: Final = {
    _A.FLOAT: "f", _A.INT: "i", _A.STRING: "s", _A.TENSOR: "t", _A.GRAPH: "g", _A.FLOATS: "floats",
    _A.INTS: "ints", _A.STRINGS: "strings", _A.TENSORS: "tensors", _A.GRAPHS: "graphs",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One node: what it calls, its values, its attributes; references to a function's stand in `references`."""

    operator: str
    domain: str
    overload: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Attributes
    references: Mapping[str, str]
    memo: dict[str, Any] = field(default_factory=dict)
    """What was proven of the node, whatever the sizes of requests are."""

    def resolved(self, given: Attributes) -> Attributes:
        """The attributes, references replaced by what the call of the function says."""
        if not self.references:
            return self.attributes
        passed = {name: given[other] for name, other in self.references.items() if other in given}
        return {**self.attributes, **passed}


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One graph or function."""

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Value]
    last: Mapping[int, tuple[str, ...]]
    """Number of a step -> names that no later one reads."""
    imports: Mapping[str, int]
    """Versions of operator sets, of a function; empty in a graph."""
    defaults: Attributes


def plan_of(graph: Any, lists: Lists = NO_LISTS) -> Plan:
    """The plan of a GraphProto, and of all graphs below it; `lists`: as in `decoded`, of its first node."""
    steps = tuple(_step(node, NO_LISTS if at else lists) for at, node in enumerate(graph.node))
    outputs = tuple(value.name for value in graph.output)
    return Plan(
        steps=steps,
        inputs=tuple(value.name for value in graph.input),
        outputs=outputs,
        constants={message.name: tensor(message) for message in graph.initializer},
        last=_last_uses(steps, keep=outputs),
        imports={},
        defaults={},
    )


def plan_of_function(function: Any) -> Plan:
    """The plan of a FunctionProto."""
    steps = tuple(map(_step, function.node))
    return Plan(
        steps=steps,
        inputs=tuple(function.input),
        outputs=tuple(function.output),
        constants={},
        last=_last_uses(steps, keep=function.output),
        imports={plain(entry.domain): entry.version for entry in function.opset_import},
        defaults={attribute.name: decoded(attribute) for attribute in function.attribute_proto},
    )


def plain(domain: str) -> str:
    """The domain under its one name."""
    return "" if domain == "ai.onnx" else domain


def _step(node: Any, lists: Lists = NO_LISTS) -> Step:
    attributes: dict[str, tuple[int, Any]] = {}
    references = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            references[attribute.name] = attribute.ref_attr_name
            continue
        kind, value = decoded(attribute, lists)
        if kind == _A.GRAPH:
            value = plan_of(value)
        elif kind == _A.TENSOR and node.op_type == "Constant":
            value = tensor(value)
        attributes[attribute.name] = kind, value
    return Step(
        node.op_type,
        plain(node.domain),
        node.overload,
        tuple(node.input),
        tuple(node.output),
        attributes,
        references,
    )


def decoded(attribute: Any, lists: Lists = NO_LISTS) -> tuple[int, Any]:
    """Type and value of an attribute: int, float, bytes, a message, or a sequence of them.

    `lists`: values of attributes by name that are not in the message, which has their names and types.

    Raises:
        AdmissionRefused: a type that no operator here has (code `onnx_attribute`).
    """
    name = _FIELDS.get(attribute.type)
    if name is None:
        refuse("an attribute of a type that no operator here has", "onnx_attribute")
    if attribute.name in lists:
        return attribute.type, lists[attribute.name]
    value = getattr(attribute, name)
    return attribute.type, tuple(value) if len(name) > 1 else value


def _last_uses(steps: Sequence[Step], *, keep: Iterable[str]) -> dict[int, tuple[str, ...]]:
    last: dict[str, int] = {}
    for number, step in enumerate(steps):
        for name in _reads(step):
            last[name] = number
        for name in step.outputs:
            last.setdefault(name, number)
    for name in keep:
        last.pop(name, None)
    found: dict[int, tuple[str, ...]] = {}
    for name, number in last.items():
        found[number] = (*found.get(number, ()), name)
    return found


def _reads(step: Step) -> Iterator[str]:
    """Names that a step or a graph below it reads."""
    yield from step.inputs
    for _, value in step.attributes.values():
        if isinstance(value, Plan):
            for inner in value.steps:
                yield from _reads(inner)
            yield from value.outputs
