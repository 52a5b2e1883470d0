"""What a network says in two ways, said in one: constants as constants, normalisation inside the convolution.

Rounding to eight bits needs to see the weights. Exporters write them as Constant nodes, through Identity, or
transposed by a node; training leaves BatchNormalization behind convolutions, which has to be inside of them
before they are rounded (the engine would do that by itself, but not any more afterwards).
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from strongroom.models.rewrite import FLOAT, Array, Graph, attribute, standard


def simplify(graph: Graph, *, kept: Container[str]) -> None:
    """Rewrites `graph`. Nodes that make a value in `kept` stay as they are, and so does what they read."""
    _fold_constants(graph, kept)
    _fold_norms(graph, kept)


def lift_constants(graph: Graph, *, kept: Container[str]) -> None:
    """Constant nodes become constants; nothing else changes, so that every answer stays what it is."""
    nodes = []
    for made in graph.nodes:
        name = made.output[0] if made.output else ""
        free = (
            standard(made) and made.op_type == "Constant" and name not in kept and name not in graph.exposed
        )
        tensor = _constant(graph, made) if free else None
        if tensor is None:
            nodes.append(made)
        else:
            tensor.name = name
            graph.constants[name] = tensor
    graph.nodes = nodes
    graph.refresh()


def _fold_constants(graph: Graph, kept: Container[str]) -> None:
    """Constant, Identity and Transpose of constants become constants; Identity elsewhere is read through."""
    nodes: list[Any] = []
    same: dict[
        str, str
    ] = {}  # what an Identity makes -> what it takes; what is transposed again -> what was first
    first: dict[tuple[Any, ...], str] = {}  # how a constant is transposed -> the first that is so
    for made in graph.nodes:
        for position, name in enumerate(made.input):
            if name in same and made.output[0] not in kept:
                made.input[position] = same[name]
        name = made.output[0] if made.output else ""
        tensor = None
        if standard(made) and name not in kept and name not in graph.exposed:
            how = _transposition(graph, made)
            if made.op_type == "Identity" or how in first:
                same[name] = made.input[0] if how is None else first[how]
                if not any(other.output and other.output[0] in kept for other in graph.readers.get(name, ())):
                    continue
            else:
                tensor = _constant(graph, made)
                if how is not None:
                    first[how] = name
        if tensor is None:
            nodes.append(made)
        else:
            tensor.name = name
            graph.constants[name] = tensor
    graph.nodes = nodes
    graph.refresh()


def _transposition(graph: Graph, made: Any) -> tuple[Any, ...] | None:
    """Which constant a node transposes, and how; None where it does not. Shared weights are transposed once."""
    tensor = graph.constants.get(made.input[0]) if made.op_type == "Transpose" else None
    if tensor is None or tensor.data_type != FLOAT:
        return None
    return made.input[0], *attribute(made, "perm", ())


def _constant(graph: Graph, made: Any) -> Any | None:
    """The tensor that a node makes of nothing, or by transposing a constant."""
    if made.op_type == "Constant":
        (entry,) = made.attribute
        value = helper.get_attribute_value(entry)
        if entry.name == "value":
            return type(value).FromString(value.SerializeToString())
        if entry.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(value, np.float32))
        if entry.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.asarray(value, np.int64))
        return None
    if made.op_type == "Transpose":
        array = graph.constant(made.input[0])
        if array is not None:
            graph.take_room(array.nbytes)
            order = attribute(made, "perm", tuple(reversed(range(array.ndim))))
            return numpy_helper.from_array(np.ascontiguousarray(np.transpose(array, order)))
    return None


def _fold_norms(graph: Graph, kept: Container[str]) -> None:
    """BatchNormalization right behind a convolution goes into its weights."""
    gone: set[int] = set()
    for norm in graph.nodes:
        conv = graph.makers.get(norm.input[0]) if norm.input else None
        if norm.op_type != "BatchNormalization" or conv is None or conv.op_type != "Conv":
            continue
        between = conv.output[0]
        alone = len(graph.readers[between]) == 1 and between not in graph.exposed
        plain = standard(norm) and standard(conv) and len([name for name in norm.output if name]) == 1
        if not (alone and plain) or conv.output[0] in kept or norm.output[0] in kept:
            continue
        parts = _normalised(graph, conv, norm)
        if parts is None:
            continue
        names = [graph.add(what, array) for what, array in zip(("weights", "bias"), parts, strict=True)]
        inputs = [conv.input[0], *names]
        del conv.input[:]
        conv.input.extend(inputs)
        conv.output[0] = norm.output[0]
        gone.add(id(norm))
    graph.nodes = [made for made in graph.nodes if id(made) not in gone]
    graph.refresh()


def _normalised(graph: Graph, conv: Any, norm: Any) -> tuple[Array, Array] | None:
    """Weights and bias of a convolution together with what normalises it (ONNX, BatchNormalization)."""
    weights = graph.constant(conv.input[1])
    given = [graph.constant(name) for name in norm.input[1:5]]
    constants = [array for array in given if array is not None]
    if weights is None or len(constants) != 4 or attribute(norm, "training_mode", 0):
        return None
    bias = np.zeros(weights.shape[0], np.float32)
    if len(conv.input) > 2 and conv.input[2]:
        named = graph.constant(conv.input[2])
        if named is None:
            return None
        bias = named
    gamma, beta, mean, variance = (array.astype(np.float64) for array in constants)
    if any(array.shape != bias.shape for array in (gamma, beta, mean, variance)):
        return None
    factor = gamma / np.sqrt(variance + float(np.float32(attribute(norm, "epsilon", 1e-5))))
    shape = (-1, *(1,) * (weights.ndim - 1))
    scaled = (weights.astype(np.float64) * factor.reshape(shape)).astype(np.float32)
    shifted = ((bias.astype(np.float64) - mean) * factor + beta).astype(np.float32)
    if not (np.isfinite(scaled).all() and np.isfinite(shifted).all()):
        return None
    return scaled, shifted
