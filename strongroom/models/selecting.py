"""Shapes, contents and costs of the operators that pick, place, repeat, fold or find elements.

As in `shapes`: one function an operator or a group of them. Indices are contents, so they are bounded by what
they index; a size that depends on contents is `secret`, and bounded by what it is taken from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from strongroom.models.arranging import axes_of
from strongroom.models.shapes import target
from strongroom.models.sizes import Expr, Number, Size, lower, upper
from strongroom.models.values import MAX_DATA, Dims, Op, T, Value, cells, fixed, refuse, same


def gather(op: Op) -> list[Value]:
    """Slices at indices."""
    first, where = op.need(0), op.need(1)
    if first.dims is None or where.dims is None:
        return [op.made(None)]
    if not first.dims:
        refuse("Gather: nothing to gather from")
    axis = op.axis(len(first.dims))
    dims = (*first.dims[:axis], *where.dims, *first.dims[axis + 1 :])
    op.spend(op.count(dims), 0)
    picks, data = op.numbers(1), None
    whole = first.dims[axis]
    if picks is not None and not isinstance(whole, Expr):
        if any(not -whole <= pick < whole for pick in picks):
            refuse("Gather: an index that is not there")
        if first.data is not None and len(picks) <= MAX_DATA:
            shape = fixed(where.dims)
            index = np.array(picks, dtype=np.int64).reshape(() if shape is None else shape)
            taken: object = np.take(first.data, index, axis=axis)
            data = taken if isinstance(taken, np.ndarray) else np.array(taken, dtype=object)
    return [op.made(dims, data=data if data is None or data.size <= MAX_DATA else None)]


def gather_elements(op: Op) -> list[Value]:
    """One element for each index."""
    first, where = op.need(0), op.need(1)
    if first.dims is not None and where.dims is not None and len(first.dims) != len(where.dims):
        refuse(f"{op.name}: ranks differ")
    if first.dims is not None:
        op.axis(len(first.dims))
    op.spend(op.count(where.dims), 0)
    return [op.made(where.dims)]


def gather_nd(op: Op) -> list[Value]:
    """Slices at tuples of indices, whose length has to be known: onnxruntime trusts it."""
    first, where = op.need(0), op.need(1)
    if first.dims is None or where.dims is None:
        return [op.made(None)]
    batch = op.attr("batch_dims", 0)
    if not where.dims or not first.dims or batch >= min(len(first.dims), len(where.dims)):
        refuse("GatherND: batch_dims is not less than both ranks", "onnx_attribute_range")
    depth = where.dims[-1]
    if isinstance(depth, Expr) or not 1 <= depth <= len(first.dims) - batch:
        refuse("GatherND: expected indices with a known length of 1 to the rank of what they index")
    dims = (*where.dims[:-1], *first.dims[batch + int(depth) :])
    op.spend(op.count(dims), 0)
    return [op.made(dims)]


def scatter(op: Op) -> list[Value]:
    """A copy of the first input with elements replaced."""
    first, where, new = op.need(0), op.need(1), op.need(2)
    ranks = {v.rank for v in (first, where, new) if v.rank is not None}
    if op.name != "ScatterND" and len(ranks) > 1:
        refuse(f"{op.name}: ranks differ")
    if op.name != "ScatterND" and first.dims is not None:
        op.axis(len(first.dims))
    if op.name == "ScatterND" and first.dims is not None and where.dims is not None:
        depth = where.dims[-1] if where.dims else 0
        if isinstance(depth, Expr) or not 1 <= depth <= len(first.dims):
            refuse("ScatterND: expected indices with a known length of 1 to the rank of what they index")
        wanted = len(where.dims) - 1 + len(first.dims) - int(depth)
        if new.dims is not None and len(new.dims) != wanted:
            refuse("ScatterND: updates of another rank")
    op.spend(op.count(first.dims) + op.count(new.dims), 0)
    return [op.made(first.dims)]


def tile(op: Op) -> list[Value]:
    """Repeated along each dimension."""
    first, times = op.need(0), target(op, 1)
    if first.dims is None or times is None:
        return [op.made(None)]
    if len(times) != len(first.dims):
        refuse("Tile: not one number for each dimension")
    dims = tuple(op.sizes.mul(a, b) for a, b in zip(first.dims, times, strict=True))
    op.spend(op.count(dims), 0)
    return [op.made(dims)]


def pad(op: Op) -> list[Value]:
    """Longer, or shorter, at both ends."""
    first = op.need(0)
    if first.dims is None:
        return [op.made(None)]
    rank = len(first.dims)
    axes = list(range(rank))
    if op.get(3) is not None:
        found = op.numbers(3)
        axes = [] if found is None else [op.position(axis, rank) for axis in found]
        if found is None:
            return [op.made(tuple(op.unknown(None, "") for _ in first.dims))]
    ends = list(op.attr("pads", op.attr("paddings", ()))) or op.known(1)
    if ends is None:
        return [op.made(tuple(op.unknown(None, "") for _ in first.dims))]
    if len(ends) != 2 * len(axes):
        refuse("Pad: not two numbers for each dimension", "onnx_attribute_range")
    made = list(first.dims)
    for n, axis in enumerate(axes):
        grown = op.sizes.add(made[axis], op.sizes.add(ends[n], ends[n + len(axes)]))
        if upper(grown) < 0:
            refuse("Pad: removes more than there is")
        made[axis] = op.sizes.within(grown, 0, math.inf)  # less than nothing is an error of the run
    op.spend(op.count(tuple(made)), 0)
    return [op.made(tuple(made))]


def one_hot(op: Op) -> list[Value]:
    """A new dimension of `depth`, which has to be one element: onnxruntime divides by what it reads."""
    where, depth = op.need(0), op.need(1)
    if depth.dims is None or any(entry != 1 for entry in depth.dims) or len(depth.dims) > 1:
        refuse("OneHot: expected a depth of one element")
    if op.dims(2) is not None and op.dims(2, exactly=1) != (2,):
        refuse("OneHot: expected two values")
    if where.dims is None:
        return [op.made(None)]
    axis = op.axis(len(where.dims), -1, inserts=True)
    deep = op.unknown(op.scalar(1), "the depth")
    dims = (*where.dims[:axis], deep, *where.dims[axis:])
    op.spend(op.count(dims), 0)
    return [op.made(dims)]


def blocks(op: Op) -> list[Value]:
    """DepthToSpace and SpaceToDepth."""
    dims, block = op.dims(0, exactly=4), op.attr("blocksize")
    if dims is None:
        return [op.made(None)]
    n, c, h, w = dims
    op.spend(op.count(dims), 0)
    if op.name == "DepthToSpace":
        if not isinstance(c, Expr) and c % (block * block):
            refuse("DepthToSpace: blocksize does not divide the channels")
        return [
            op.made((n, op.sizes.floordiv(c, block * block), op.sizes.mul(h, block), op.sizes.mul(w, block)))
        ]
    if any(not isinstance(side, Expr) and side % block for side in (h, w)):
        refuse("SpaceToDepth: blocksize does not divide the sides")
    h, w = op.sizes.floordiv(h, block), op.sizes.floordiv(w, block)
    return [op.made((n, op.sizes.mul(c, block * block), h, w))]


def resize(op: Op) -> list[Value]:
    """By factors or to sizes, which are contents."""
    first = op.need(0)
    if first.dims is None:
        return [op.made(None)]
    rank = len(first.dims)
    axes = [op.position(axis, rank) for axis in op.attr("axes", range(rank))]
    factors = op.attr("scales")
    at = {"Upsample": (1, 9), "Resize": (1, 9) if op.version < 11 else (2, 3)}[op.name]
    row = list(factors) if factors is not None else op.known(at[0])
    sizes = op.known(at[1]) if op.get(at[1]) is not None else None
    made = list(first.dims)
    given = op.get(at[1])
    if given is not None and (given.dims is None or given.dims != (0,)):
        row, wanted = None, sizes if sizes is not None else [None] * len(axes)
        if len(wanted) != len(axes):
            refuse(f"{op.name}: not one size for each dimension")
        for axis, entry in zip(axes, wanted, strict=True):
            made[axis] = op.unknown(entry, "a size")
    elif row is not None:
        if len(row) != len(axes) or any(upper(entry) <= 0 for entry in row):
            refuse(f"{op.name}: not one positive factor for each dimension", "onnx_attribute_range")
        for axis, factor in zip(axes, row, strict=True):
            made[axis] = _scaled(op, made[axis], factor)
    else:
        for axis in axes:
            made[axis] = op.unknown(None, "a size")
    dims = tuple(made)
    cost = {"nearest": 4, "linear": 16}.get(op.text("mode", "nearest"), 64)
    op.spend(cost * op.count(dims), 0)
    return [op.made(dims)]


def _scaled(op: Op, whole: Size, factor: Size) -> Size:
    if factor == 1:
        return whole
    if not isinstance(factor, Expr) and float(factor).is_integer():
        return op.sizes.mul(whole, int(factor))
    high = upper(whole) * max(0, upper(factor)) if upper(whole) and upper(factor) else 0
    low = math.floor(lower(whole) * max(0.0, lower(factor)))
    # Factors are float32: one more, should rounding say so.
    most = math.floor(high * (1 + 2**-20)) if math.isfinite(high) else high
    if not isinstance(whole, Expr) and not isinstance(factor, Expr):
        return math.floor(whole * factor + 1e-5)
    return op.sizes.derived("scaled", (whole, factor), lambda: (low, most))


def top_k(op: Op) -> list[Value]:
    """The k largest along an axis; no more than there are."""
    first = op.need(0)
    if first.dims is None:
        return [op.made(None), op.made(None, output=1, kind=T.INT64)][: len(op.outputs)]
    if not first.dims:
        refuse("TopK: nothing to choose from")
    axis = op.axis(len(first.dims), -1)
    whole = first.dims[axis]
    given = op.attr("k") if op.attr("k") is not None else op.scalar(1)
    kept = op.secret(upper(whole)) if given is None else given
    if upper(kept) < 0 or lower(kept) > upper(whole):
        refuse("TopK: more than there are")
    if upper(kept) > upper(whole) or lower(kept) < 0:
        kept = op.sizes.derived("topk", (kept, whole), lambda: (0, upper(whole)))
    dims = (*first.dims[:axis], kept, *first.dims[axis + 1 :])
    count = op.count(first.dims)
    op.spend(32 * count, 16 * count)
    return [op.made(dims), op.made(dims, output=1, kind=T.INT64)][: len(op.outputs)]


def reduced(dims: Dims, axes: list[int], keep: bool) -> Dims:
    """Without, or with 1 in place of, the dimensions in `axes`."""
    if keep:
        return tuple(1 if n in axes else entry for n, entry in enumerate(dims))
    return tuple(entry for n, entry in enumerate(dims) if n not in axes)


def reduce(op: Op) -> list[Value]:
    """A sum, mean, product or the like over some dimensions."""
    first = op.need(0)
    if first.dims is None:
        return [op.made(None)]
    keep = bool(op.attr("keepdims", 1))
    axes = axes_of(op)
    op.spend(4 * op.count(first.dims), 4 * op.count(first.dims))
    if axes is None:
        if not keep:
            return [op.made(None)]
        return [op.made(tuple(op.sizes.either(1, entry) for entry in first.dims))]
    if not axes and op.attr("noop_with_empty_axes", 0):
        return same(op)
    places = [op.position(axis, len(first.dims)) for axis in axes] or list(range(len(first.dims)))
    if len(set(places)) != len(places):
        refuse(f"{op.name}: an axis twice", "onnx_attribute_range")
    data = None
    functions: dict[str, Callable[[Size, Size], Size]] = {
        "ReduceProd": op.sizes.mul, "ReduceSum": op.sizes.add, "ReduceMax": op.sizes.maximum,
        "ReduceMin": op.sizes.minimum,
    }  # fmt: skip
    if first.data is not None and first.data.size and len(places) == first.rank and op.name in functions:
        row = list(first.data.reshape(-1))
        total = row[0]
        for entry in row[1:]:
            total = functions[op.name](total, entry)
        if math.isfinite(upper(total)) and abs(upper(total)) < 1 << 62:
            data = cells([total]).reshape((1,) * len(first.dims) if keep else ())
    return [op.made(reduced(first.dims, places, keep), data=data)]


def arg(op: Op) -> list[Value]:
    """The place of the largest or least."""
    first = op.need(0)
    if first.dims is None:
        return [op.made(None)]
    axis = op.axis(len(first.dims)) if first.dims else 0
    op.spend(2 * op.count(first.dims), 0)
    return [op.made(reduced(first.dims, [axis], bool(op.attr("keepdims", 1))))]


def non_zero(op: Op) -> list[Value]:
    """The places of what is not 0: how many there are is a matter of contents."""
    first = op.need(0)
    op.spend(op.count(first.dims), 8 * (first.rank or 1) * op.count(first.dims))
    found = op.secret(op.count(first.dims))
    return [op.made(None if first.rank is None else (max(1, first.rank), found))]


def compress(op: Op) -> list[Value]:
    """The slices whose condition holds."""
    first = op.need(0)
    if first.dims is None:
        return [op.made(None)]
    op.spend(op.count(first.dims), 0)
    if op.attr("axis") is None:
        return [op.made((op.secret(op.count(first.dims)),))]
    axis = op.axis(len(first.dims))
    kept = op.secret(upper(first.dims[axis]))
    return [op.made((*first.dims[:axis], kept, *first.dims[axis + 1 :]))]


def unique(op: Op) -> list[Value]:
    """Each different slice once."""
    first = op.need(0)
    if first.dims is None:
        return [op.made(None, output=n) for n in range(len(op.outputs))]
    count = op.count(first.dims)
    op.spend(64 * count, 64 * count)
    if op.attr("axis") is None:
        whole: Number = count
        kept = op.secret(whole)
        main: Dims = (kept,)
    else:
        axis = op.axis(len(first.dims))
        whole = upper(first.dims[axis])
        kept = op.secret(whole)
        main = (*first.dims[:axis], kept, *first.dims[axis + 1 :])
        total = first.dims[axis]
    inverse: Size = op.sizes.product(first.dims) if op.attr("axis") is None else total
    shapes: list[Dims] = [main, (kept,), (inverse,), (kept,)]
    return [op.made(dims, output=n) for n, dims in enumerate(shapes[: len(op.outputs)])]


def suppression(op: Op) -> list[Value]:
    """Boxes that stay: at most as many as there are, for each class and image."""
    boxes, scores = op.dims(0, exactly=3), op.dims(1, exactly=3)
    if boxes is None or scores is None:
        return [op.made((op.secret(math.inf), 3))]
    most = upper(boxes[1])
    limit = op.scalar(2) if op.get(2) is not None else None
    if limit is not None and upper(limit) >= 0:
        most = min(most, upper(limit))
    groups = op.count((scores[0], scores[1]))
    op.spend(
        groups * (upper(boxes[1]) * 32 + upper(boxes[1]) * most * 8) if groups else 0, 64 * op.count(boxes)
    )
    return [op.made((op.secret(groups * most if groups else 0), 3))]


def eye(op: Op) -> list[Value]:
    """The identity matrix of a matrix's shape."""
    dims = op.dims(0, exactly=2)
    op.spend(op.count(dims), 0)
    kind = int(op.attr("dtype", op.need(0).kind))
    return [op.made(dims, kind=kind)]


def same_on_axis(op: Op) -> list[Value]:
    """CumSum, CumProd, ReverseSequence: the shape of the first input."""
    first = op.need(0)
    op.spend(2 * op.count(first.dims), 0)
    return same(op)


def window(op: Op) -> list[Value]:
    """A window of a size that is contents."""
    long = op.unknown(op.scalar(0), "the size")
    op.spend(20 * upper(long), 0)
    return [op.made((long,), kind=int(op.attr("output_datatype", T.FLOAT)))]


RULES: Final[dict[str, Callable[[Op], list[Value]]]] = {
    "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd, "Scatter": scatter,
    "ScatterElements": scatter, "ScatterND": scatter, "Tile": tile, "Pad": pad, "OneHot": one_hot,
    "DepthToSpace": blocks, "SpaceToDepth": blocks, "Resize": resize, "Upsample": resize, "TopK": top_k,
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
                     "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"), reduce),
    "ArgMax": arg, "ArgMin": arg, "NonZero": non_zero, "Compress": compress, "Unique": unique,
    "NonMaxSuppression": suppression, "EyeLike": eye, "CumSum": same_on_axis, "CumProd": same_on_axis,
    "ReverseSequence": same_on_axis, "HannWindow": window, "HammingWindow": window, "BlackmanWindow": window,
}  # fmt: skip
