"""Shapes, contents and costs of the operators that compute element by element or only move elements.

One function an operator or a group of them: an `Op` in, the values of its outputs. Everything that an
exporter's shape arithmetic consists of is followed exactly (`Value.data`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from onnx import TensorProto, numpy_helper

from strongroom.models.sizes import Expr, Number, Size, known, lower, upper
from strongroom.models.values import (
    INTEGERS,
    MAX_DATA,
    MAX_FACTORS,
    TRAPS,
    Data,
    Dims,
    Op,
    T,
    Value,
    broadcast,
    cells,
    fixed,
    refuse,
    same,
    secret_dims,
)

TRANSCENDENTAL: Final = 20
"""Operations that an element of Exp, Sin and their like counts for."""


# Element by element


def costly(op: Op) -> list[Value]:
    """Functions with no instruction of their own."""
    op.spend(TRANSCENDENTAL * op.count(op.need(0).dims), 0)
    return same(op)


def softmax(op: Op) -> list[Value]:
    """Normalisations along an axis; they work on a copy."""
    first = op.need(0)
    if first.dims is not None and first.dims:
        op.axis(len(first.dims), 1 if op.version < 13 else -1)
    op.spend(TRANSCENDENTAL * op.count(first.dims), 4 * op.count(first.dims))
    return same(op)


def _number(op: Op, value: Number) -> Size:
    """A result; what is no number, or infinite, is any."""
    if not math.isfinite(value):
        return op.sizes.fresh(-math.inf, math.inf)
    return value


def _fit(op: Op, size: Size, kind: int) -> Size:
    """Integers wrap round: what may leave the type's range can be anything in it."""
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        if lower(size) < low or upper(size) > high:
            return op.sizes.fresh(low, high, secret=not op.public)
        return int(size) if isinstance(size, float) else size
    return size


def each(op: Op, function: Callable[..., Size], *arrays: Data | None, kind: int) -> Data | None:
    """`function` on each element, broadcast; None where contents are not known or too many."""
    if any(array is None for array in arrays):
        return None
    shape = np.broadcast_shapes(*(array.shape for array in arrays if array is not None))
    if math.prod(shape) > MAX_DATA:
        return None
    out = np.empty(shape, dtype=object)
    wide = [np.broadcast_to(array, shape).reshape(-1) for array in arrays if array is not None]
    out.reshape(-1)[:] = [_fit(op, function(*row), kind) for row in zip(*wide, strict=True)]
    return out


def _div(op: Op, a: Size, b: Size) -> Size:
    if op.kind() in INTEGERS:
        return op.sizes.floordiv(a, b)
    exact = op.sizes.exact_quotient(a, b)
    if exact is not None:
        return exact
    if not isinstance(a, Expr) and not isinstance(b, Expr):
        return _number(op, a / b) if b else op.sizes.fresh(-math.inf, math.inf)
    if lower(b) > 0:
        # One more on both sides: floats are rounded.
        bounds = [_ratio(x, y) for x in (lower(a), upper(a)) for y in (lower(b), upper(b))]
        low, high = min(bounds), max(bounds)
        return op.sizes.derived("div", (a, b), lambda: (low, high + abs(high) * 2**-20))
    return op.sizes.fresh(-math.inf, math.inf)


def _ratio(a: Number, b: Number) -> Number:
    if math.isinf(b):
        return 0 if not math.isinf(a) else a
    return a / b


def _mod(op: Op, a: Size, b: Size) -> Size:
    if not isinstance(a, Expr) and not isinstance(b, Expr) and b:
        return _number(op, math.fmod(a, b) if op.attr("fmod", 0) else a % b)
    reach = max(abs(lower(b)), abs(upper(b)))
    low = 0 if lower(b) >= 0 and (lower(a) >= 0 or not op.attr("fmod", 0)) else -reach
    return op.sizes.derived("mod", (a, b), lambda: (low, reach))


def _pow(op: Op, a: Size, b: Size) -> Size:
    if not isinstance(a, Expr) and not isinstance(b, Expr) and abs(a) <= 1 << 32 and abs(b) <= 8:
        return _number(op, a**b) if a or b >= 0 else op.sizes.fresh(-math.inf, math.inf)
    return op.sizes.fresh(-math.inf, math.inf)


_ARITHMETIC: Final[dict[str, Callable[[Op, Size, Size], Size]]] = {
    "Add": lambda op, a, b: op.sizes.add(a, b),
    "Sub": lambda op, a, b: op.sizes.sub(a, b),
    "Mul": lambda op, a, b: op.sizes.mul(a, b),
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Min": lambda op, a, b: op.sizes.minimum(a, b),
    "Max": lambda op, a, b: op.sizes.maximum(a, b),
}


def _truth(op: Op, yes: bool, no: bool, *of: Size) -> Size:
    """1 where it must hold, 0 where it cannot, else either: the same for the same question."""
    return 1 if yes else 0 if no else op.sizes.derived(op.name, of, lambda: (0, 1))


_COMPARISONS: Final[dict[str, Callable[[Op, Size, Size], Size]]] = {
    "Equal": lambda op, a, b: _truth(op, a == b, upper(a) < lower(b) or upper(b) < lower(a), a, b),
    "Less": lambda op, a, b: _truth(op, upper(a) < lower(b), lower(a) >= upper(b), a, b),
    "LessOrEqual": lambda op, a, b: _truth(op, upper(a) <= lower(b), lower(a) > upper(b), a, b),
    "Greater": lambda op, a, b: _truth(op, lower(a) > upper(b), upper(a) <= lower(b), a, b),
    "GreaterOrEqual": lambda op, a, b: _truth(op, lower(a) >= upper(b), upper(a) < lower(b), a, b),
    "And": lambda op, a, b: _truth(op, lower(a) > 0 and lower(b) > 0, upper(a) == 0 or upper(b) == 0, a, b),
    "Or": lambda op, a, b: _truth(op, lower(a) > 0 or lower(b) > 0, upper(a) == 0 and upper(b) == 0, a, b),
}


def binary(op: Op) -> list[Value]:
    """Two or more inputs, broadcast to one shape."""
    dims = broadcast(op, (v.dims for v in op.inputs if v is not None))
    weight = TRANSCENDENTAL if op.name == "Pow" else 1
    op.spend(weight * len(op.inputs) * op.count(dims), 0)
    if op.name == "Div" and INTEGERS.get(op.kind(), (0,))[0] < 0 and _may_be(op.need(1).data, -1):
        op.sizes.flags.add(TRAPS)
    function = _ARITHMETIC.get(op.name) or _COMPARISONS.get(op.name)
    data = None
    if function is not None and all(v is not None for v in op.inputs):
        data = op.need(0).data
        for other in op.inputs[1:]:
            data = each(
                op, lambda a, b: function(op, a, b), data, other.data if other else None, kind=op.kind()
            )
    return [op.made(dims, data=data)]


def _may_be(data: Data | None, number: int) -> bool:
    return data is None or any(lower(size) <= number <= upper(size) for size in data.reshape(-1))


def where(op: Op) -> list[Value]:
    """Elements of one or the other."""
    dims = broadcast(op, (v.dims for v in op.inputs if v is not None))
    op.spend(op.count(dims), 0)

    def choose(condition: Size, a: Size, b: Size) -> Size:
        if lower(condition) > 0:
            return a
        return b if upper(condition) == 0 else op.sizes.either(a, b)

    data = each(op, choose, op.need(0).data, op.need(1).data, op.need(2).data, kind=op.kind())
    return [op.made(dims, data=data)]


def _rounded(op: Op, size: Size, how: Callable[[float], int]) -> Size:
    if not isinstance(size, Expr):
        return how(size) if math.isfinite(size) else size
    if all(isinstance(factor, int) for factor, _ in size.terms) and all(
        isinstance(s.lo, int) and isinstance(s.hi, int) for _, symbols in size.terms for s in symbols
    ):
        return size
    low = size.lo if math.isinf(size.lo) else math.floor(size.lo)
    high = size.hi if math.isinf(size.hi) else math.ceil(size.hi)
    return op.sizes.derived(how.__name__, (size,), lambda: (low, high))


_UNARY: Final[dict[str, Callable[[Op, Size], Size]]] = {
    "Neg": lambda op, a: op.sizes.mul(a, -1),
    "Abs": lambda op, a: a if lower(a) >= 0 else op.sizes.maximum(a, op.sizes.mul(a, -1)),
    "Floor": lambda op, a: _rounded(op, a, math.floor),
    "Ceil": lambda op, a: _rounded(op, a, math.ceil),
    "Round": lambda op, a: _rounded(op, a, round),
    "Not": lambda op, a: _truth(op, upper(a) == 0, lower(a) > 0, a),
    "Relu": lambda op, a: op.sizes.maximum(a, 0),
    "Sqrt": lambda op, a: (
        op.sizes.fresh(0, max(1, upper(a))) if isinstance(a, Expr) or a < 0 else math.sqrt(a)
    ),
    "Identity": lambda op, a: a,
}


def unary(op: Op) -> list[Value]:
    """One input, one output of its shape."""
    first = op.need(0)
    op.spend(op.count(first.dims), 0)
    function = _UNARY.get(op.name)
    data = each(op, lambda a: function(op, a), first.data, kind=op.kind()) if function else None
    return [op.made(first.dims, data=data)]


def clip(op: Op) -> list[Value]:
    """Within bounds."""
    first = op.need(0)
    op.spend(2 * op.count(first.dims), 0)
    return [op.made(first.dims)]


def cast(op: Op) -> list[Value]:
    """Another element type. To strings: no number is written longer than 32 bytes."""
    first = op.need(0)
    kind = op.need(1).kind if op.name == "CastLike" else int(op.attr("to"))
    op.spend(op.count(first.dims), 0)

    def convert(size: Size) -> Size:
        if kind == T.BOOL:
            return _truth(op, lower(size) > 0 or upper(size) < 0, lower(size) == 0 == upper(size), size)
        return _rounded(op, size, math.trunc) if kind in INTEGERS and first.kind not in INTEGERS else size

    data = None if T.STRING in (kind, first.kind) else each(op, convert, first.data, kind=kind)
    return [replace(op.made(first.dims, kind=kind, data=data), text=32 if kind == T.STRING else 0)]


def strings(op: Op) -> list[Value]:
    """StringConcat: texts add up, and again at each node that repeats it."""
    dims = broadcast(op, (v.dims for v in op.inputs if v is not None))
    text = sum(v.text for v in op.inputs if v is not None)
    op.spend(op.count(dims) * (1 + text), 0)
    return [replace(op.made(dims), text=text)]


# Contents


def constant(op: Op) -> list[Value]:
    """A value that stands in the node."""
    given = {name: value for name, value in op.attributes.items() if name.startswith("value")}
    if len(given) != 1:
        refuse("Constant: expected one value", "onnx_attribute")
    name, value = next(iter(given.items()))
    if isinstance(value, Value):
        return [value]
    if name == "value":  # handed on by a function's parameter, of which nobody knew before what it is for
        if not isinstance(value, TensorProto):
            refuse("Constant: expected a tensor as its value", "onnx_attribute")
        return [tensor(value)]
    kind = {"value_float": T.FLOAT, "value_floats": T.FLOAT, "value_int": T.INT64, "value_ints": T.INT64}.get(
        name, T.STRING
    )
    row = list(value) if isinstance(value, tuple) else [value]
    dims = (len(row),) if isinstance(value, tuple) else ()
    if kind == T.STRING:
        return [Value(kind=kind, dims=dims, public=True, constant=True, text=max(map(len, row), default=0))]
    data = cells(_number(op, n) for n in row).reshape(dims) if len(row) <= MAX_DATA else None
    return [Value(kind=kind, dims=dims, data=data, public=True, constant=True)]


def tensor(message: Any) -> Value:
    """A constant tensor whose storage was checked."""
    dims = tuple(int(size) for size in message.dims)
    kind, count = message.data_type, math.prod(dims)
    data = None
    if (kind in INTEGERS and count <= MAX_DATA) or (
        kind in (T.FLOAT, T.DOUBLE, T.FLOAT16) and count <= MAX_FACTORS
    ):
        row = numpy_helper.to_array(message).reshape(-1).tolist()
        if all(map(math.isfinite, row)):
            data = cells(int(n) if kind in INTEGERS else n for n in row).reshape(dims)
    text = max(map(len, message.string_data), default=0)
    return Value(kind=kind, dims=dims, data=data, public=True, constant=True, text=text)


def shape(op: Op) -> list[Value]:
    """The dimensions of a value: public where they depend on shapes alone."""
    first = op.need(0)
    if first.dims is None:
        return [op.made((op.sizes.fresh(0, 32),))]
    start, end, _ = slice(op.attr("start", 0), op.attr("end")).indices(len(first.dims))
    row = first.dims[start : max(start, end)]
    constant = first.constant or fixed(row) is not None
    data = cells(row)
    public = not secret_dims(first) or op.public
    return [Value(kind=T.INT64, dims=(len(row),), data=data, public=public, constant=constant)]


def size(op: Op) -> list[Value]:
    """The number of elements."""
    first = op.need(0)
    total = None if first.dims is None else op.sizes.product(first.dims)
    data = None if total is None else cells([total]).reshape(())
    public = not secret_dims(first) or op.public
    return [Value(kind=T.INT64, dims=(), data=data, public=public, constant=first.constant)]


def target(op: Op, position: int) -> Dims | None:
    """A shape that an input holds; where only its length is known, of that rank and any size."""
    row = op.known(position)
    if row is not None:
        return tuple(op.unknown(entry, "a dimension") for entry in row)
    dims = op.dims(position, exactly=1)
    if dims is None or isinstance(dims[0], Expr):
        return None
    if dims[0] > 32:
        refuse(f"{op.name}: more than 32 dimensions")
    return tuple(op.unknown(None, "a dimension") for _ in range(int(dims[0])))


def constant_of_shape(op: Op) -> list[Value]:
    """One number everywhere; the shape is an input's content."""
    value = op.attr("value")
    dims = target(op, 0)
    op.spend(op.count(dims), 0)
    kind, item = T.FLOAT, 0 if value is None else None
    if value is not None:
        kind, only = value.data_type, tensor(value)
        item = only.data.reshape(-1)[0] if only.data is not None and only.data.size == 1 else None
    numbers = None if dims is None else fixed(dims)
    data = None
    if item is not None and numbers is not None and math.prod(numbers) <= MAX_DATA:
        data = np.full(numbers, item, dtype=object)
    return [op.made(dims, kind=kind, data=data)]


def range_(op: Op) -> list[Value]:
    """From, to, step: as long as their contents say."""
    start, limit, delta = (op.scalar(n) for n in range(3))
    numbers = known(start), known(limit), known(delta)
    long: Size = op.unknown(None, "the length")
    data = None
    if numbers[0] is not None and numbers[1] is not None and numbers[2] is not None:
        first, step = numbers[0], numbers[2]
        long = count = _steps(first, numbers[1], step)
        if count <= MAX_DATA:
            data = cells(first + n * step for n in range(count))
    elif start is not None and limit is not None and delta is not None:
        if delta == 1:
            long = op.sizes.maximum(op.sizes.sub(limit, start), 0)
            long = long if op.kind() in INTEGERS else _rounded(op, long, math.ceil)
        elif lower(delta) > 0 and math.isfinite(upper(limit)) and math.isfinite(lower(start)):
            long = op.secret(max(0, math.ceil((upper(limit) - lower(start)) / lower(delta)) + 1))
    op.spend(upper(long), 0)
    return [op.made((long,), data=data)]


def _steps(start: Number, limit: Number, delta: Number) -> int:
    if not delta:
        refuse("Range: a step of 0", "onnx_attribute_range")
    if all(isinstance(n, int) for n in (start, limit, delta)):
        return int(max(0, -((start - limit) // delta)))
    return max(0, math.ceil((limit - start) / delta))


def expand(op: Op) -> list[Value]:
    """Broadcast to a shape that is an input's content."""
    first, wanted = op.need(0), target(op, 1)
    dims = broadcast(op, (first.dims, wanted))
    op.spend(op.count(dims), 0)
    numbers = None if dims is None else fixed(dims)
    data = None
    if numbers is not None and first.data is not None and math.prod(numbers) <= MAX_DATA:
        data = np.broadcast_to(first.data, numbers).copy()
    return [op.made(dims, data=data)]


RULES: Final[dict[str, Callable[[Op], list[Value]]]] = {
    **dict.fromkeys((*_ARITHMETIC, *_COMPARISONS, "Xor", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
                     "Sum", "Mean", "PRelu"), binary),
    **dict.fromkeys((*_UNARY, "BitwiseNot", "IsInf", "IsNaN", "LeakyRelu", "Reciprocal", "Shrink", "Sign",
                     "ThresholdedRelu", "HardSigmoid", "HardSwish", "Trilu"), unary),
    **dict.fromkeys(("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp",
                     "Gelu", "Log", "Mish", "Selu", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Swish",
                     "Tan", "Tanh"), costly),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    "Where": where, "Clip": clip, "Cast": cast, "CastLike": cast, "StringConcat": strings, "Constant": constant,
    "Shape": shape, "Size": size, "ConstantOfShape": constant_of_shape, "Range": range_, "Expand": expand,
}  # fmt: skip
"""Operator of ai.onnx -> its rule. Others: `arranging`, `selecting`, `kernels`; what is in none is not run."""
