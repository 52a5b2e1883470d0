"""A graph that is being rewritten: its constants, who reads what, fresh names, and what is left over at the end.

Rules
  - Only admitted models come here, so names are unique and every value is computed before it is read.
  - Only the outermost graph is rewritten. A value that an inner graph reads, or that is an output, keeps its name.
  - Everything follows from the model's bytes: no clock, no random number, no order of a set. What is written
    twice is the same bytes.
  - Arrays are computed in float64 or float32, element by element or by maxima, which are exact on every machine;
    no sum is taken, whose order a machine could choose.
  - What is made of constants has at most `GROWTH` times the model's bytes: a node of some bytes can ask for a copy of a
    constant of any size, and there can be a hundred thousand of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from strongroom.errors import AdmissionRefused, LimitExceeded

FLOAT: Final = onnx.TensorProto.FLOAT
Array = npt.NDArray[Any]
GROWTH: Final = 4
"""How many times the model's bytes new constants may have in all: transposed, with what normalises them, rounded."""
SPARE: Final = 1 << 20
"""Bytes of new constants that any model may have."""


class Graph:
    """The outermost graph of a model, as lists and dictionaries that are kept up to date.

    `nodes` are in an order in which they can run. Whoever changes them calls `refresh`; `finish` makes a
    model of everything.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.constants: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
        # Files of the first IR versions list constants as inputs too, where callers could replace them; requests
        # cannot (`models.interface`), and the engine takes only what is no input for a constant.
        kept = [value for value in model.graph.input if value.name not in self.constants]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        self.inputs = tuple(value.name for value in kept)
        self.outputs = tuple(value.name for value in model.graph.output)
        self._names = set(_names(model.graph))
        self._number = 0
        self._room = GROWTH * model.ByteSize() + SPARE
        self.refresh()

    def refresh(self) -> None:
        """Finds readers and makers again."""
        self.readers: dict[str, list[Any]] = {}
        """Value -> the nodes that read it directly, each as often as it does."""
        self.makers: dict[str, Any] = {}
        self.exposed: set[str] = set(self.outputs)
        """Outputs, and what inner graphs read: these values must keep their names."""
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            for name in node.output:
                self.makers[name] = node
            for graph in inner(node):
                self.exposed |= set(reads_below(graph))

    def fresh(self, what: str) -> str:
        """A name that nothing has."""
        while True:
            self._number += 1
            name = f"reduced_{self._number}_{what}"
            if name not in self._names:
                self._names.add(name)
                return name

    def constant(self, name: str) -> Array | None:
        """A constant float32 tensor, None where it is something else."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_type != FLOAT:
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def take_room(self, size: int) -> None:
        """Counts `size` bytes of a new constant.

        Raises:
            LimitExceeded: with them new constants have more than they may (code `precision_size`).
        """
        self._room -= size
        if self._room < 0:
            raise LimitExceeded(
                f"new constants would have more than {GROWTH} times the model's bytes", code="precision_size"
            )

    def add(self, what: str, array: Array) -> str:
        """A new constant; its name.

        Raises:
            LimitExceeded: as `take_room`.
            AdmissionRefused: it is not finite: a scale of weights or ranges that have none (code `precision_scale`).
        """
        self.take_room(array.nbytes)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise AdmissionRefused(
                "weights, a bias or a range of the model are too large for a scale of eight bits; exclude their nodes",
                code="precision_scale",
            )
        name = self.fresh(what)
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def finish(self) -> Any:
        """A new model of the nodes and constants, without the constants that nothing reads any more."""
        self.refresh()
        used = self.exposed | set(self.readers)
        old, model = self.model, onnx.ModelProto()
        for name in ("ir_version", "opset_import", "functions"):
            value = getattr(old, name)
            if isinstance(value, int):
                setattr(model, name, value)
            else:
                getattr(model, name).extend(value)
        model.graph.name = old.graph.name
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(t for name, t in self.constants.items() if name in used)
        model.graph.input.extend(old.graph.input)
        model.graph.output.extend(old.graph.output)
        return model


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    """A node of ai.onnx."""
    return helper.make_node(operator, inputs, outputs, **attributes)


def attribute(made: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default`."""
    return next((helper.get_attribute_value(a) for a in made.attribute if a.name == name), default)


def standard(made: Any) -> bool:
    """Whether a node is one of ai.onnx."""
    return made.domain in ("", "ai.onnx")


def inner(made: Any) -> Iterator[Any]:
    """The graphs that a node has inside."""
    for entry in made.attribute:
        if entry.type == onnx.AttributeProto.GRAPH:
            yield entry.g
        yield from entry.graphs


def reads_below(graph: Any) -> Iterator[str]:
    """Every name that a graph and those below it read; its own values are among them, which does no harm."""
    for made in graph.node:
        yield from made.input
        for below in inner(made):
            yield from reads_below(below)
    for value in graph.output:
        yield value.name


def _names(graph: Any) -> Iterator[str]:
    """Every name of a value or a node, at any depth."""
    for entries in (graph.input, graph.output, graph.initializer, graph.node):
        for entry in entries:
            yield entry.name
    for made in graph.node:
        yield from made.output
        for below in inner(made):
            yield from _names(below)


def operators(graph: Any) -> Iterator[str]:
    """The operator of every node, at any depth."""
    for made in graph.node:
        yield made.op_type
        for below in inner(made):
            yield from operators(below)


def names_of(nodes: Iterable[Any]) -> dict[str, list[Any]]:
    """Nodes by the names that people can give them: their own, and those of the values that they make."""
    found: dict[str, list[Any]] = {}
    for made in nodes:
        for name in {made.name, *made.output} - {""}:
            found.setdefault(name, []).append(made)
    return found
