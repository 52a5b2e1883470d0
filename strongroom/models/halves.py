"""Weights stored in 16 bits (IEEE 754 binary16), computed with in 32: half the size at rest and on the way.

The engine converts them once while it loads. Nothing becomes faster, and memory in use does not shrink.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

import numpy as np
from onnx import numpy_helper

from strongroom.models.rewrite import FLOAT, Graph, node

LEAST_ELEMENTS: Final = 256
"""Of a tensor, below which the node takes more bytes than it saves."""
_MOST: Final = float(np.finfo(np.float16).max)


def rewrite(graph: Graph, *, kept: Container[str]) -> tuple[Any, ...]:
    """Rewrites constants; the nodes that read one in 16 bits now. What a node in `kept` reads stays.

    A tensor with an element beyond 65504, or one that is not finite, stays as it is.
    """
    kept_inputs = {n for made in graph.nodes if any(o in kept for o in made.output) for n in made.input}
    first: list[Any] = []
    changed: set[str] = set()
    for name, tensor in list(graph.constants.items()):
        if tensor.data_type != FLOAT or name in kept_inputs or name in graph.outputs:
            continue
        values = graph.constant(name)
        if values is None or values.size < LEAST_ELEMENTS or not bool((np.abs(values) <= _MOST).all()):
            continue
        half = graph.fresh("half")
        del graph.constants[name]
        graph.constants[half] = numpy_helper.from_array(values.astype(np.float16), half)
        first.append(node("Cast", [half], [name], to=FLOAT))
        changed.add(name)
    readers = tuple(made for made in graph.nodes if changed & set(made.input))
    graph.nodes = [*first, *graph.nodes]
    graph.refresh()
    return readers
