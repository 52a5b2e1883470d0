"""Eight bits for tables that rows are looked up in: the embeddings of a language model.

A node `Gather(T, ids)` becomes `Cast(Gather(T8, ids)) * Gather(scales, ids)`, with one scale a row. Rows are never
multiplied in eight bits, so they take all of them. Nothing becomes faster; a quarter of the bytes is left.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

from strongroom.models import scales
from strongroom.models.rewrite import FLOAT, Graph, attribute, node, standard

LEAST_ELEMENTS: Final = 1024
"""Of a table, below which the nodes take more bytes than they save."""


def rewrite(graph: Graph, *, kept: Container[str]) -> tuple[Any, ...]:
    """Rewrites lookups in constant matrices; the nodes that were replaced. What makes a value in `kept` stays."""
    names: dict[str, tuple[str, str]] = {}  # a table that is shared is rounded once
    nodes: list[Any] = []
    replaced = []
    for made in graph.nodes:
        if (
            made.op_type != "Gather"
            or not standard(made)
            or made.output[0] in kept
            or attribute(made, "axis", 0) != 0
        ):
            nodes.append(made)
            continue
        source, rows = made.input[0], made.input[1]
        table = graph.constant(source)
        if table is None or table.ndim != 2 or table.size < LEAST_ELEMENTS or not scales.finite(table):
            nodes.append(made)
            continue
        if source not in names:
            values, scale = scales.weights(table, axis=0, most=scales.ROWS_MAX)
            names[source] = graph.add("rows", values), graph.add("scale", scale.reshape(-1, 1))
        values_name, scale_name = names[source]
        picked, number, factor = graph.fresh("picked"), graph.fresh("float"), graph.fresh("factor")
        nodes += [
            node("Gather", [values_name, rows], [picked], axis=0),
            node("Cast", [picked], [number], to=FLOAT),
            node("Gather", [scale_name, rows], [factor], axis=0),
            node("Mul", [number, factor], [made.output[0]]),
        ]
        replaced.append(made)
    graph.nodes = nodes
    graph.refresh()
    return tuple(replaced)
