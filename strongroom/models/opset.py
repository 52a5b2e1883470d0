"""Networks of the operator sets 11 and 12 in the words of 13, the first that has one scale for each channel.

Between them most operators got more element types and nothing else (onnx, `docs/Changelog.md`). The rest:

  - Softmax, LogSoftmax and Hardmax worked on a matrix that everything from `axis` on was flattened into, and work
    along one axis now: written as Flatten, the operator along the last axis, Reshape, which is the same.
  - Squeeze, Unsqueeze, ReduceSum and Split had their axes or lengths in attributes, and have them in inputs.
  - Dropout does nothing here, and becomes Identity; where somebody reads its mask, the model is refused.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import numpy_helper

from strongroom.errors import AdmissionRefused
from strongroom.models.rewrite import Graph, attribute, inner, node, standard
from strongroom.models.wire import domain_of

LOWEST: Final = 11
TARGET: Final = 13
_ALONG: Final = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_LISTS: Final = {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split"}


def raise_opset(graph: Graph) -> None:
    """Rewrites a model of operator set 11 or 12 as one of 13; leaves others.

    Raises:
        AdmissionRefused: it has functions, or a mask of Dropout is read (code `precision_opset`).
    """
    entry = next(e for e in graph.model.opset_import if domain_of(e.domain) == "")
    if not LOWEST <= entry.version < TARGET:
        return
    if graph.model.functions:
        raise AdmissionRefused(
            "the model has functions, and is of an old operator set", code="precision_opset"
        )
    graph.nodes = [new for made in graph.nodes for new in _raised(graph, made)]
    entry.version = TARGET
    # Per-axis scales and its kind are of IR version 7 on; what the file says is otherwise kept.
    graph.model.ir_version = max(graph.model.ir_version, 7)
    graph.refresh()


def _raised(graph: Graph, made: Any) -> list[Any]:
    for below in inner(made):
        nodes = [new for one in below.node for new in _raised(graph, one)]
        copies = [type(one).FromString(one.SerializeToString()) for one in nodes]
        del below.node[:]
        below.node.extend(copies)
    if not standard(made):
        return [made]
    if made.op_type in _ALONG and (axis := attribute(made, "axis", 1)) != -1:
        flat, done, shape = graph.fresh("flat"), graph.fresh("rows"), graph.fresh("shape")
        return [
            node("Flatten", [made.input[0]], [flat], axis=axis),
            node(made.op_type, [flat], [done], axis=-1),
            node("Shape", [made.input[0]], [shape]),
            node("Reshape", [done, shape], [made.output[0]]),
        ]
    if made.op_type in _LISTS:
        _list_to_input(graph, made, _LISTS[made.op_type])
    if made.op_type == "Dropout":
        if any(made.output[1:]):
            raise AdmissionRefused("the model reads the mask of Dropout", code="precision_opset")
        return [node("Identity", [made.input[0]], [made.output[0]])]
    return [made]


def _list_to_input(graph: Graph, made: Any, name: str) -> None:
    found = next((entry for entry in made.attribute if entry.name == name), None)
    if found is None:
        return
    constant = graph.fresh(name)
    graph.constants[constant] = numpy_helper.from_array(np.asarray(list(found.ints), np.int64), constant)
    made.attribute.remove(found)
    made.input.append(constant)
