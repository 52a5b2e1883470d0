"""Models for `killable`: good ones whose parts were exchanged, and single nodes of every operator that is run here.

Everything is made of a `random.Random`, so a finding's bytes give its model again: `python fuzz/cases.py NAME FILE`
writes it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from targets_admission import OPERATORS, _attribute, _change, _models

from strongroom.models.operators import LEARNERS, Definition, definition

FLOAT, INT64, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL
UINT8, INT8 = TensorProto.UINT8, TensorProto.INT8
CARRIED = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13})
"""Element types that the protocol carries."""


@dataclass(frozen=True)
class Slot:
    """One input of a node: an input of the model, or a constant where `values` says which."""

    kind: int
    dims: tuple[Any, ...]
    values: Any = None


Recipe = Callable[[random.Random], tuple[list[Slot], dict[str, Any]]]


def parts(rng: random.Random) -> Any:
    """A good model after one to three changes."""
    model = onnx.ModelProto()
    model.CopyFrom(rng.choice(_models()))
    for _ in range(rng.randint(1, 3)):
        _change(model, rng)
    return model


def node(rng: random.Random) -> Any:
    """One node whose inputs, sizes and attributes fit more often than not."""
    while True:
        name = rng.choice(OPERATORS)
        domain, opset = ("ai.onnx.ml", rng.randint(1, 5)) if name in LEARNERS else ("", rng.randint(7, 26))
        if (found := definition(name, opset, domain)) is not None:
            return _around(found, domain, opset, rng)


CASES: dict[str, Callable[[random.Random], Any]] = {"parts": parts, "node": node}


def _around(found: Definition, domain: str, opset: int, rng: random.Random) -> Any:
    recipe = RECIPES.get(found.name)
    if recipe is not None and rng.random() < 0.75:
        slots, attributes = recipe(rng)
    else:
        slots, attributes = _generic(found, rng), {}
    names = [f"i{n}" if slot is not None else "" for n, slot in enumerate(slots)]
    values, constants = [], []
    for name, slot in zip(names, slots, strict=True):
        if slot is None:
            continue
        if slot.values is None:
            values.append(helper.make_tensor_value_info(name, slot.kind, slot.dims))
        else:
            array = np.array(slot.values)
            constants.append(helper.make_tensor(name, slot.kind, array.shape, array.reshape(-1).tolist()))
    most = 3 if found.outputs and found.outputs[-1].variadic else max(1, len(found.outputs))
    outputs = [f"o{n}" for n in range(rng.randint(max(1, found.least_outputs), most))]
    made = helper.make_node(found.name, names, outputs, domain=domain)
    for attribute, (kind, required) in found.attributes.items():
        if attribute in attributes:
            if attributes[attribute] is not None:
                made.attribute.append(helper.make_attribute(attribute, attributes[attribute]))
        elif required or rng.random() < 0.15:
            _attribute(made, attribute, kind, rng)
    infos = [onnx.ValueInfoProto(name=name) for name in outputs]
    for info, formal in zip(infos, (*found.outputs, *[found.outputs[-1]] * 3), strict=False):
        info.type.tensor_type.elem_type = _output_kind(found, formal, slots)
    imports = [helper.make_opsetid("", opset if not domain else 17)]
    imports += [helper.make_opsetid(domain, opset)] if domain else []
    graph = helper.make_graph([made], "g", values, infos, initializer=constants)
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _output_kind(found: Definition, formal: Any, slots: list[Any]) -> int:
    """The element type that the output most likely has: that of an input of the same variable."""
    for given, slot in zip(found.inputs, slots, strict=False):
        if slot is not None and given.variable == formal.variable:
            return int(slot.kind)
    return FLOAT if FLOAT in formal.kinds or not formal.kinds else min(formal.kinds)


def _generic(found: Definition, rng: random.Random) -> list[Slot | None]:
    """Inputs of one shape, or of shapes that broadcast; one element type for each type variable."""
    rank = rng.choice([0, 1, 2, 2, 3, 4, 4, 5])
    shape = [rng.choice([1, 2, 3, 4]) for _ in range(rank)]
    if shape and rng.random() < 0.3:
        shape[0] = rng.choice(["n", 0])
    kinds: dict[str, int] = {}
    slots: list[Slot | None] = []
    most = len(found.inputs) + (2 if found.inputs and found.inputs[-1].variadic else 0)
    for position in range(rng.randint(found.least_inputs, max(found.least_inputs, most))):
        formal = found.inputs[min(position, len(found.inputs) - 1)]
        if formal.optional and rng.random() < 0.2:
            slots.append(None)
            continue
        usable = sorted(formal.kinds & CARRIED) or [FLOAT]
        favourite = FLOAT if FLOAT in usable and rng.random() < 0.6 else rng.choice(usable)
        kind = kinds.setdefault(formal.variable, favourite)
        if usable == [INT64] and rng.random() < 0.8:
            numbers = [rng.choice([0, 1, 1, 2, 3, -1, 4]) for _ in range(rng.choice([rank, rank, 1, 2]))]
            slots.append(Slot(INT64, (), numbers))
            continue
        dims = list(shape)
        if dims and rng.random() < 0.2:
            dims = dims[rng.randint(0, len(dims) - 1) :]
        if dims and rng.random() < 0.15:
            dims[rng.randrange(len(dims))] = 1
        slots.append(Slot(kind, tuple(dims)))
    while slots and slots[-1] is None:
        slots.pop()
    return slots


# Shapes of operators whose inputs belong together


def _size(rng: random.Random) -> int:
    return rng.choice([1, 1, 2, 3, 4, 5])


def _floats(*shapes: Any) -> list[Slot | None]:
    return [None if shape is None else Slot(FLOAT, tuple(shape)) for shape in shapes]


def _convolution(rng: random.Random, *, transposed: bool = False, kind: int = FLOAT) -> Any:
    channels, filters, groups, rank = _size(rng), _size(rng), rng.choice([1, 1, 2]), rng.choice([1, 2, 2, 3])
    data = [_size(rng), channels * groups, *(rng.randint(3, 8) for _ in range(rank))]
    kernel = [rng.randint(1, 3) for _ in range(rank)]
    first = (channels * groups, filters) if transposed else (filters * groups, channels)
    attributes: dict[str, Any] = {"group": groups, "kernel_shape": rng.choice([None, kernel])}
    attributes["strides"] = rng.choice([None, [rng.randint(1, 3) for _ in range(rank)]])
    attributes["pads"] = rng.choice([None, [rng.randint(0, 2) for _ in range(2 * rank)]])
    attributes["dilations"] = rng.choice([None, None, [rng.randint(1, 2) for _ in range(rank)]])
    slots = [Slot(kind, tuple(data)), Slot(kind, (*first, *kernel))]
    if kind == FLOAT and rng.random() < 0.5:
        slots.append(Slot(FLOAT, (filters * groups,)))
    return slots, attributes


def _pool(rng: random.Random) -> Any:
    rank = rng.choice([1, 2, 2, 3])
    attributes: dict[str, Any] = {"kernel_shape": [rng.randint(1, 3) for _ in range(rank)]}
    attributes["strides"] = rng.choice([None, [rng.randint(1, 3) for _ in range(rank)]])
    attributes["pads"] = rng.choice([None, [rng.randint(0, 1) for _ in range(2 * rank)]])
    attributes["ceil_mode"] = rng.choice([None, 0, 1])
    return _floats([_size(rng), _size(rng), *(rng.randint(2, 9) for _ in range(rank))]), attributes


def _recurrent(gates: int) -> Recipe:
    def made(rng: random.Random) -> Any:
        steps, batch, width, hidden = rng.randint(1, 4), rng.randint(1, 3), _size(rng), _size(rng)
        direction = rng.choice(["forward", "reverse", "bidirectional"])
        ways = 2 if direction == "bidirectional" else 1
        shapes: list[Any] = [
            [steps, batch, width],
            [ways, gates * hidden, width],
            [ways, gates * hidden, hidden],
        ]
        slots = _floats(*shapes)
        if rng.random() < 0.5:
            slots += _floats([ways, 2 * gates * hidden])
            if rng.random() < 0.5:
                lengths = [rng.randint(0, steps) for _ in range(batch)]
                slots += [rng.choice([None, Slot(INT32, (), lengths)]), *_floats([ways, batch, hidden])]
        return slots, {"hidden_size": hidden, "direction": direction}

    return made


def _normal(rng: random.Random) -> Any:
    shape = [_size(rng) for _ in range(rng.randint(2, 4))]
    axis = rng.randint(-len(shape), len(shape) - 1)
    rest = shape[axis:]
    return _floats(shape, rest, *([rest] if rng.random() < 0.5 else [])), {"axis": axis}


def _per_channel(count: int) -> Recipe:
    def made(rng: random.Random) -> Any:
        channels = _size(rng)
        return _floats([_size(rng), channels, *(_size(rng) for _ in range(2))], *[[channels]] * count), {}

    return made


def _product(rng: random.Random) -> Any:
    rows, inner, columns = _size(rng), _size(rng), _size(rng)
    batch = [_size(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
    return _floats([*batch, rows, inner], [*(batch if rng.random() < 0.5 else []), inner, columns]), {}


def _integers(rng: random.Random) -> Any:
    rows, inner, columns = _size(rng), _size(rng), _size(rng)
    one, two = rng.choice([UINT8, INT8]), rng.choice([UINT8, INT8])
    slots = [Slot(one, (rows, inner)), Slot(two, (inner, columns))]
    if rng.random() < 0.5:
        slots += [Slot(one, (), [0]), Slot(two, (), [0])]
    return slots, {}


def _gemm(rng: random.Random) -> Any:
    rows, inner, columns, a, b = _size(rng), _size(rng), _size(rng), rng.randint(0, 1), rng.randint(0, 1)
    slots = _floats([inner, rows] if a else [rows, inner], [columns, inner] if b else [inner, columns])
    return slots + _floats(rng.choice([[rows, columns], [columns], [1], []])), {"transA": a, "transB": b}


def _gather(elements: bool) -> Recipe:
    def made(rng: random.Random) -> Any:
        shape = [_size(rng) + 1 for _ in range(rng.randint(1, 3))]
        axis = rng.randint(0, len(shape) - 1)
        small = [min(size, _size(rng)) for size in shape] if elements else [_size(rng)]
        count = int(np.prod(small))
        low = -shape[axis] if rng.random() < 0.5 else 0
        index = np.array([rng.randint(low, shape[axis] - 1) for _ in range(count)]).reshape(small)
        values = index.tolist() if rng.random() < 0.6 else None
        return [Slot(FLOAT, tuple(shape)), Slot(INT64, tuple(small), values)], {"axis": axis}

    return made


def _gather_nd(rng: random.Random) -> Any:
    shape = [_size(rng) + 1 for _ in range(rng.randint(1, 3))]
    depth = rng.randint(1, len(shape))
    index = [[rng.randint(0, size - 1) for size in shape[:depth]] for _ in range(_size(rng))]
    return [Slot(FLOAT, tuple(shape)), Slot(INT64, (), index)], {}


def _scatter(nd: bool) -> Recipe:
    def made(rng: random.Random) -> Any:
        shape = [_size(rng) + 1 for _ in range(rng.randint(1, 3))]
        if nd:
            depth, count = rng.randint(1, len(shape)), _size(rng)
            index: Any = [[rng.randint(0, size - 1) for size in shape[:depth]] for _ in range(count)]
            return [Slot(FLOAT, tuple(shape)), Slot(INT64, (), index), *_floats([count, *shape[depth:]])], {}
        axis = rng.randint(0, len(shape) - 1)
        small = [min(size, _size(rng)) for size in shape]
        index = np.array([rng.randint(0, shape[axis] - 1) for _ in range(int(np.prod(small)))])
        return [Slot(FLOAT, tuple(shape)), Slot(INT64, (), index.reshape(small)), *_floats(small)], {
            "axis": axis
        }

    return made


def _with(*numbers: Callable[[random.Random, list[int]], list[int]]) -> Recipe:
    """A tensor and constants of numbers that follow from its shape."""

    def made(rng: random.Random) -> Any:
        shape = [_size(rng) for _ in range(rng.randint(1, 4))]
        return [Slot(FLOAT, tuple(shape)), *(Slot(INT64, (), make(rng, shape)) for make in numbers)], {}

    return made


def _reshaped(rng: random.Random, shape: list[int]) -> list[int]:
    return rng.choice([[-1], [int(np.prod(shape))], [*shape, 1], [0, -1], shape[::-1], [1, -1, 1]])


def _block(rng: random.Random) -> Any:
    block = rng.choice([1, 2, 3])
    many = block * block * rng.randint(1, 2)
    return _floats([_size(rng), many, block * _size(rng), block * _size(rng)]), {"blocksize": block}


def _resize(rng: random.Random) -> Any:
    shape = [_size(rng) for _ in range(rng.choice([2, 4, 4, 3]))]
    scales = [1.0, 1.0, *(rng.choice([0.5, 1.0, 1.5, 2.0, 0.3]) for _ in shape[2:])][: len(shape)]
    attributes = {"mode": rng.choice(["nearest", "linear", "cubic"]), "antialias": rng.choice([None, 0, 1])}
    return [Slot(FLOAT, tuple(shape)), None, Slot(FLOAT, (), scales)], attributes


def _one_hot(rng: random.Random) -> Any:
    slots = [Slot(INT64, (_size(rng), _size(rng))), Slot(INT64, (), [rng.randint(1, 5)])]
    return [*slots, Slot(FLOAT, (), [0.0, 1.0])], {"axis": rng.choice([None, -1, 0, 1])}


def _top(rng: random.Random) -> Any:
    shape = [_size(rng) + 1 for _ in range(rng.randint(1, 3))]
    axis = rng.randint(-len(shape), len(shape) - 1)
    return [Slot(FLOAT, tuple(shape)), Slot(INT64, (), [rng.randint(0, shape[axis])])], {"axis": axis}


def _einsum(rng: random.Random) -> Any:
    a, b, c = _size(rng), _size(rng), _size(rng)
    return rng.choice([
        (_floats([a, b], [b, c]), {"equation": "ij,jk->ik"}), (_floats([a, b]), {"equation": "ij->ji"}),
        (_floats([a, a]), {"equation": "ii->i"}), (_floats([a, b], [a, b]), {"equation": "ij,ij->"}),
        (_floats([a, b, c], [a, c, b]), {"equation": "...ij,...jk->...ik"}),
    ])  # fmt: skip


def _quantize(rng: random.Random) -> Any:
    shape = [_size(rng) for _ in range(rng.randint(1, 4))]
    axis = rng.randrange(len(shape))
    wide = rng.random() < 0.5
    size = (shape[axis],) if wide else ()
    kind = rng.choice([UINT8, INT8])
    return [Slot(FLOAT, tuple(shape)), Slot(FLOAT, size), Slot(kind, size)], {"axis": axis if wide else None}


def _roi(rng: random.Random) -> Any:
    count = _size(rng)
    slots = [
        *_floats([2, _size(rng), 6, 6], [count, 4]),
        Slot(INT64, (), [rng.randint(0, 1) for _ in range(count)]),
    ]
    attributes = {"output_height": rng.randint(1, 3), "output_width": 2, "sampling_ratio": rng.randint(0, 2)}
    return slots, {**attributes, "spatial_scale": rng.choice([0.1, 1.0, 8.0])}


def _grid(rng: random.Random) -> Any:
    batch = _size(rng)
    slots = _floats([batch, _size(rng), _size(rng), _size(rng)], [batch, _size(rng), _size(rng), 2])
    mode = rng.choice(["bilinear", "linear", "nearest", "bicubic", "cubic"])
    return slots, {"mode": mode, "padding_mode": rng.choice(["zeros", "border", "reflection"])}


def _attention(rng: random.Random) -> Any:
    heads, width, steps, batch = rng.choice([1, 2]), _size(rng), _size(rng), _size(rng)
    if rng.random() < 0.5:
        return _floats(*[[batch, heads, steps, width]] * 3), {}
    attributes = {"q_num_heads": heads, "kv_num_heads": heads}
    return _floats(*[[batch, steps, heads * width]] * 3), attributes


def _loss_like(rng: random.Random) -> Any:
    shape = [_size(rng), _size(rng)]
    return [Slot(FLOAT, tuple(shape)), Slot(BOOL, (shape[0],))], {"axis": 0}


def _shifted(rng: random.Random) -> Any:
    shape = [_size(rng), _size(rng)]
    kind = rng.choice([TensorProto.UINT8, TensorProto.UINT32, TensorProto.UINT64])
    return [Slot(kind, tuple(shape)), Slot(kind, tuple(shape))], {"direction": rng.choice(["LEFT", "RIGHT"])}


def _pads(rng: random.Random, shape: list[int]) -> list[int]:
    return [rng.choice([0, 0, 1, 2, -1]) for _ in range(2 * len(shape))]


def _axes(rng: random.Random, shape: list[int]) -> list[int]:
    return sorted(rng.sample(range(len(shape)), rng.randint(1, len(shape))))


def _cast(rng: random.Random) -> Any:
    kind = rng.choice(
        [FLOAT, INT64, INT32, BOOL, UINT8, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.STRING]
    )
    return [Slot(kind, (_size(rng), _size(rng)))], {"to": rng.choice(sorted(CARRIED)), "saturate": None}


def _along(rng: random.Random) -> Any:
    shape = [_size(rng) for _ in range(rng.randint(1, 3))]
    return [Slot(FLOAT, tuple(shape)), Slot(INT64, (), rng.randint(-len(shape), len(shape) - 1))], {}


def _window(rng: random.Random) -> Any:
    return [Slot(INT64, (), rng.randint(0, 9))], {"output_datatype": None}


def _range(rng: random.Random) -> Any:
    kind = rng.choice([INT64, INT32, FLOAT])
    return [Slot(kind, (), rng.choice(numbers)) for numbers in ([0, 1, -3], [5, 9, 0], [1, 2, -1])], {}


def _response(rng: random.Random) -> Any:
    return _floats([_size(rng), _size(rng), 3, 3]), {"size": rng.choice([1, 3, 5])}


def _suppression(rng: random.Random) -> Any:
    batch, boxes, classes = _size(rng), _size(rng), _size(rng)
    slots = _floats([batch, boxes, 4], [batch, classes, boxes])
    slots += [Slot(INT64, (), [rng.randint(0, 4)]), Slot(FLOAT, (), [rng.choice([0.0, 0.5, 1.0])])]
    return [*slots, Slot(FLOAT, (), [rng.choice([0.0, -1.0])])], {}


def _zero_point(kind: int, count: int | None = None) -> list[Slot | None]:
    scale, zero = (0.05, 1) if count is None else ([0.05] * count, [1] * count)
    return [Slot(FLOAT, (), scale), Slot(kind, (), zero)]


def _quantized_product(rng: random.Random) -> Any:
    rows, inner, columns = _size(rng), _size(rng), _size(rng)
    one, two, out = (rng.choice([UINT8, INT8]) for _ in range(3))
    slots = [Slot(one, (rows, inner)), *_zero_point(one), Slot(two, (inner, columns)), *_zero_point(two)]
    return [*slots, *_zero_point(out)], {}


def _quantized_convolution(rng: random.Random) -> Any:
    (data, kernel), attributes = _convolution(rng, kind=UINT8)
    filters = kernel.dims[0] if rng.random() < 0.5 else None
    weights = Slot(INT8, (), np.ones(kernel.dims, int)) if rng.random() < 0.7 else Slot(INT8, kernel.dims)
    slots = [data, *_zero_point(UINT8), weights, *_zero_point(INT8, filters), *_zero_point(UINT8)]
    return slots, attributes


def _sequences(rng: random.Random) -> Any:
    steps, batch = rng.randint(1, 5), _size(rng)
    axes = rng.choice([{"batch_axis": 1, "time_axis": 0}, {"batch_axis": 0, "time_axis": 1}])
    shape = [steps, batch] if axes["time_axis"] == 0 else [batch, steps]
    return [
        *_floats([*shape, _size(rng)]),
        Slot(INT64, (), [rng.randint(1, steps) for _ in range(batch)]),
    ], axes


def _rotary(rng: random.Random) -> Any:
    batch, heads, steps, half = _size(rng), _size(rng), _size(rng), rng.randint(1, 3)
    slots = _floats([batch, heads, steps, 2 * half], [batch, steps, half], [batch, steps, half])
    return slots, {"rotary_embedding_dim": None, "num_heads": None, "interleaved": rng.choice([0, 1])}


def _spectrum(rng: random.Random) -> Any:
    length = rng.choice([2, 4, 8])
    slots = [*_floats([_size(rng), 16, 1]), Slot(INT64, (), rng.randint(1, 4)), None, Slot(INT64, (), length)]
    return slots, {"onesided": rng.choice([0, 1])}


def _groups(rng: random.Random) -> Any:
    groups, each = _size(rng), _size(rng)
    channels = groups * each
    return _floats([_size(rng), channels, 2, 2], [channels], [channels]), {"num_groups": groups}


def _upsample(rng: random.Random) -> Any:
    scales = [1.0, 1.0, *(rng.choice([1.0, 1.5, 2.0]) for _ in range(2))]
    return [*_floats([_size(rng), _size(rng), 3, 3]), Slot(FLOAT, (), scales)], {"mode": "nearest"}


def _scaler(rng: random.Random) -> Any:
    width = _size(rng)
    count = rng.choice([1, width])
    return _floats(["n", width]), {"offset": [0.5] * count, "scale": [2.0] * count}


def _imputer(rng: random.Random) -> Any:
    width = _size(rng)
    attributes = {"imputed_value_floats": [1.0] * rng.choice([1, width]), "replaced_value_float": 0.0}
    return _floats(["n", width]), {**attributes, "imputed_value_int64s": None, "replaced_value_int64": None}


def _regression(rng: random.Random) -> Any:
    width, targets = _size(rng), _size(rng)
    attributes = {
        "coefficients": [0.5] * (width * targets),
        "intercepts": [1.0] * targets,
        "targets": targets,
    }
    return _floats(["n", width]), {**attributes, "post_transform": "NONE"}


def _classification(rng: random.Random) -> Any:
    width, classes = _size(rng), _size(rng) + 1
    attributes = {"coefficients": [0.5] * (width * classes), "intercepts": [1.0] * classes}
    labels = {"classlabels_ints": list(range(classes)), "classlabels_strings": None}
    return _floats(["n", width]), {**attributes, **labels, "multi_class": 0, "post_transform": "SOFTMAX"}


def _labels(rng: random.Random) -> Any:
    attributes: dict[str, Any] = {"keys_int64s": [0, 1, 2], "values_int64s": [5, 6, 7], "default_int64": -1}
    others = (
        "keys_strings",
        "keys_floats",
        "keys_tensor",
        "values_strings",
        "values_floats",
        "values_tensor",
    )
    attributes |= dict.fromkeys(
        (*others, "classes_strings", "default_string", "default_float", "default_tensor")
    )
    return [Slot(INT64, ("n",))], attributes


def _categories(rng: random.Random) -> Any:
    attributes = {"cats_int64s": [0, 1, 2], "cats_strings": ["a", "b", "other"], "default_int64": -1}
    return [Slot(rng.choice([INT64, TensorProto.STRING]), ("n",))], attributes


def _vectorizer(rng: random.Random) -> Any:
    widths = [_size(rng) for _ in range(rng.randint(1, 3))]
    return _floats(*[["n", width] for width in widths]), {"inputdimensions": widths}


RECIPES: dict[str, Recipe] = {
    "BlackmanWindow": _window,
    "Cast": _cast,
    "CategoryMapper": _categories,
    "CumProd": _along,
    "CumSum": _along,
    "EyeLike": lambda rng: (_floats([_size(rng), _size(rng)]), {"k": rng.randint(-2, 2), "dtype": None}),
    "FeatureVectorizer": _vectorizer,
    "GroupNormalization": _groups,
    "HammingWindow": _window,
    "HannWindow": _window,
    "Imputer": _imputer,
    "LRN": _response,
    "LabelEncoder": _labels,
    "LinearClassifier": _classification,
    "LinearRegressor": _regression,
    "NonMaxSuppression": _suppression,
    "QLinearConv": _quantized_convolution,
    "QLinearMatMul": _quantized_product,
    "Range": _range,
    "ReverseSequence": _sequences,
    "RotaryEmbedding": _rotary,
    "STFT": _spectrum,
    "Scaler": _scaler,
    "Upsample": _upsample,
    "Attention": _attention,
    "AveragePool": _pool,
    "BatchNormalization": _per_channel(4),
    "BitShift": _shifted,
    "Compress": _loss_like,
    "Conv": _convolution,
    "ConvInteger": lambda rng: _convolution(rng, kind=UINT8),
    "ConvTranspose": lambda rng: _convolution(rng, transposed=True),
    "DepthToSpace": _block,
    "Einsum": _einsum,
    "Expand": _with(lambda rng, shape: rng.choice([shape, [2, *shape], [1], [3, *([1] * len(shape))]])),
    "GRU": _recurrent(3),
    "Gather": _gather(False),
    "GatherElements": _gather(True),
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GridSample": _grid,
    "InstanceNormalization": _per_channel(2),
    "LSTM": _recurrent(4),
    "LayerNormalization": _normal,
    "LpPool": _pool,
    "MatMul": _product,
    "MatMulInteger": _integers,
    "MaxPool": _pool,
    "OneHot": _one_hot,
    "Pad": _with(_pads),
    "QuantizeLinear": _quantize,
    "RMSNormalization": _normal,
    "RNN": _recurrent(1),
    "ReduceMax": _with(_axes),
    "ReduceMean": _with(_axes),
    "ReduceSum": _with(_axes),
    "Reshape": _with(_reshaped),
    "Resize": _resize,
    "RoiAlign": _roi,
    "Scatter": _scatter(False),
    "ScatterElements": _scatter(False),
    "ScatterND": _scatter(True),
    "Slice": _with(
        lambda rng, shape: [rng.randint(-3, 3) for _ in shape],
        lambda rng, shape: [rng.randint(-4, 6) for _ in shape],
        lambda rng, shape: list(range(len(shape))),
        lambda rng, shape: [rng.choice([1, 1, 2, -1, -2]) for _ in shape],
    ),
    "SpaceToDepth": _block,
    "Squeeze": _with(lambda rng, shape: [n for n, size in enumerate(shape) if size == 1]),
    "Tile": _with(lambda rng, shape: [rng.choice([1, 2, 3, 0]) for _ in shape]),
    "TopK": _top,
    "Unsqueeze": _with(lambda rng, shape: [rng.randint(0, len(shape))]),
}


def main() -> int:
    """Writes the model of a finding."""
    name, finding = sys.argv[1], Path(sys.argv[2])
    model = CASES[name.removeprefix("fuzz_run_")](random.Random(finding.read_bytes()))
    Path(f"{finding}.onnx").write_bytes(model.SerializeToString())
    print(onnx.printer.to_text(model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
