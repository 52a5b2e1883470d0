"""Eight bits for products with constant matrices, whose other side is measured at every request.

For networks of attention and plain layers. A node `MatMul(x, W)` becomes

    q, s, z = DynamicQuantizeLinear(x);  y = Cast(MatMulInteger(q, W8, z)) * (s * w)

with one scale `w` a column, which onnxruntime runs as one kernel.

Rules
  - `s` and `z` come from all of `x`: results depend a little on what else is in the same request. Requests of
    different callers must never be joined for such a model (docs/precision.md).
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

import numpy as np

from strongroom.models import scales
from strongroom.models.rewrite import FLOAT, Array, Graph, attribute, node, standard

LEAST_ELEMENTS: Final = 1024
"""Of a matrix, below which measuring takes longer than multiplying saves."""


def layer(graph: Graph, made: Any) -> tuple[Array, Array | None] | None:
    """Weights [K, N] and bias [N] of a node that multiplies with a constant matrix; None where it does not.

    MatMul with a constant right side, and Gemm: its factors and its transposition are in what comes back.
    """
    if not standard(made) or made.op_type not in ("MatMul", "Gemm") or made.input[0] in graph.constants:
        return None
    matrix = graph.constant(made.input[1])
    if matrix is None or matrix.ndim != 2:
        return None
    shift: Array | None = None
    if made.op_type == "Gemm":
        if attribute(made, "transA", 0):
            return None
        matrix = (matrix.T if attribute(made, "transB", 0) else matrix) * np.float32(
            attribute(made, "alpha", 1)
        )
        if len(made.input) > 2 and made.input[2]:
            given = graph.constant(made.input[2])
            if (
                given is None
                or given.size not in (1, matrix.shape[1])
                or given.ndim > 2
                or given.shape[:-1] not in ((), (1,))
            ):
                return None
            shift = np.broadcast_to(given.reshape(-1), matrix.shape[1:]) * np.float32(
                attribute(made, "beta", 1)
            )
    if not scales.finite(matrix) or (shift is not None and not scales.finite(shift)):
        return None
    return matrix, shift


def rewrite(graph: Graph, *, per_channel: bool, kept: Container[str]) -> tuple[Any, ...]:
    """Rewrites what can be; the nodes that were replaced. Nodes that make a value in `kept` stay."""
    work = _Work(graph, per_channel=per_channel)
    nodes: list[Any] = []
    replaced = []
    for made in graph.nodes:
        parts = None if not made.output or made.output[0] in kept else work.parts(made)
        nodes += [made] if parts is None else parts
        if parts is not None:
            replaced.append(made)
    graph.nodes = nodes
    graph.refresh()
    return tuple(replaced)


class _Work:
    def __init__(self, graph: Graph, *, per_channel: bool) -> None:
        self._graph = graph
        self._axis = 1 if per_channel else None
        self._measured: dict[str, list[str]] = {}  # value -> its uint8 form, scale, zero point
        self._rounded: dict[tuple[Any, ...], tuple[str, str]] = {}  # shared weights are rounded once

    def parts(self, made: Any) -> list[Any] | None:
        """The nodes that stand for `made`, None where it stays."""
        found = layer(self._graph, made)
        if found is None or found[0].size < LEAST_ELEMENTS:
            return None
        matrix, shift = found
        graph, x = self._graph, made.input[0]
        key = (made.input[1], made.op_type, attribute(made, "transB", 0), attribute(made, "alpha", 1.0))
        if key not in self._rounded:
            values, scale = scales.weights(matrix, axis=self._axis)
            self._rounded[key] = graph.add("weights", values), graph.add("scale", scale)
        weights, scale_name = self._rounded[key]
        nodes = []
        if x not in self._measured:
            self._measured[x] = [graph.fresh(what) for what in ("input", "input_scale", "input_zero")]
            nodes.append(node("DynamicQuantizeLinear", [x], self._measured[x]))
        quantized, measured, zero = self._measured[x]
        whole, number, factor = graph.fresh("sums"), graph.fresh("float"), graph.fresh("factor")
        product = made.output[0] if shift is None else graph.fresh("product")
        nodes += [
            node("MatMulInteger", [quantized, weights, zero], [whole]),
            node("Cast", [whole], [number], to=FLOAT),
            node("Mul", [measured, scale_name], [factor]),
            node("Mul", [number, factor], [product]),
        ]
        if shift is not None:
            nodes.append(node("Add", [product, graph.add("bias", shift)], [made.output[0]]))
        return nodes
