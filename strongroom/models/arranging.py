"""Shapes and contents of the operators that put the same elements into another shape, join or cut them.

As in `shapes`: one function an operator. The number of elements stays, or adds up, whatever the shape is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from strongroom.models.sizes import Expr, Number, Size, known, lower, upper
from strongroom.models.values import MAX_DATA, Dims, Op, Value, fixed, refuse


def moved(op: Op, dims: Dims | None) -> Value:
    """The same elements in another shape."""
    first = op.need(0)
    op.spend(op.count(first.dims), 0)
    numbers = None if dims is None else fixed(dims)
    data = None
    if first.data is not None and numbers is not None and math.prod(numbers) == first.data.size:
        data = first.data.reshape(numbers)
    return op.made(dims, data=data)


def reshape(op: Op) -> list[Value]:
    """Another shape of as many elements."""
    first, row = op.need(0), op.known(1)
    if row is None:
        dims = op.dims(1, exactly=1)
        if first.dims is None or dims is None or isinstance(dims[0], Expr):
            return [op.made(None)]
        if dims[0] > 32:
            refuse("Reshape: more than 32 dimensions")
        row = [op.sizes.fresh(-1, math.inf, secret=not op.public) for _ in range(int(dims[0]))]
    if first.dims is None:
        return [op.made(tuple(op.unknown(None if lower(r) <= 0 else r, "a dimension") for r in row))]
    total = op.count(first.dims)
    product = op.sizes.product(first.dims)
    copies = not op.attr("allowzero", 0)
    made: list[Size] = []
    for position, entry in enumerate(row):
        if entry == 0 and copies:
            if position >= len(first.dims):
                refuse("Reshape: copies a dimension that is not there")
            entry = first.dims[position]
        made.append(entry)
    if sum(entry == -1 for entry in made) > 1 or any(upper(entry) < -1 for entry in made):
        refuse("Reshape: more than one -1, or a negative dimension")
    if -1 in made:
        others = op.sizes.product(entry for entry in made if entry != -1)
        made[made.index(-1)] = op.sizes.within(_rest(op, product, others, total), 0, total)
    for position, entry in enumerate(made):
        if lower(entry) < 0:  # -1 or a size, as contents decide
            made[position] = op.sizes.fresh(0, total, secret=not op.public)
    dims = tuple(made)
    same_count = op.sizes.product(dims)
    if not isinstance(same_count, Expr) and not isinstance(product, Expr) and same_count != product:
        refuse("Reshape: another number of elements")
    if any(isinstance(entry, Expr) for entry in dims):
        op.sizes.caps[dims] = min(total, op.sizes.caps.get(dims, math.inf))
    return [moved(op, dims)]


def _rest(op: Op, total: Size, others: Size, most: Number) -> Size:
    exact = op.sizes.exact_quotient(total, others)
    if exact is not None:
        return exact
    if not isinstance(total, Expr) and not isinstance(others, Expr):
        refuse("Reshape: the elements do not divide evenly")
    low = max(1, lower(others))
    return op.sizes.derived(
        "rest", (total, others), lambda: (0, most // low if math.isfinite(most) else most)
    )


def flatten(op: Op) -> list[Value]:
    """A matrix."""
    dims = op.need(0).dims
    if dims is None:
        return [op.made((op.unknown(None, ""), op.unknown(None, "")))]
    axis = op.axis(len(dims), 1, inserts=True) if dims else 0
    pair = (op.sizes.product(dims[:axis]), op.sizes.product(dims[axis:]))
    return [moved(op, pair)]


def axes_of(op: Op, position: int = 1) -> list[int] | None:
    """The axes in an attribute or, later, in an input; None where they are not known."""
    if op.attr("axes") is not None:
        return list(op.attr("axes"))
    if op.get(position) is None:
        return []
    return op.numbers(position)


def squeeze(op: Op) -> list[Value]:
    """Without dimensions of 1."""
    dims, axes = op.need(0).dims, axes_of(op)
    if dims is None or axes is None:
        return [op.made(None)]
    if not axes:
        if any(isinstance(entry, Expr) for entry in dims):
            return [op.made(None)]
        return [moved(op, tuple(entry for entry in dims if entry != 1))]
    gone = {op.position(axis, len(dims)) for axis in axes}
    if any(lower(dims[axis]) > 1 or upper(dims[axis]) < 1 for axis in gone):
        refuse("Squeeze: a dimension that is not 1")
    return [moved(op, tuple(entry for axis, entry in enumerate(dims) if axis not in gone))]


def unsqueeze(op: Op) -> list[Value]:
    """With dimensions of 1."""
    dims, axes = op.need(0).dims, axes_of(op)
    if dims is None or axes is None:
        return [op.made(None)]
    rank = len(dims) + len(axes)
    new = {op.position(axis, rank) for axis in axes}
    if len(new) != len(axes) or rank > 32:
        refuse("Unsqueeze: an axis twice, or more than 32 dimensions")
    rest = iter(dims)
    return [moved(op, tuple(1 if axis in new else next(rest) for axis in range(rank)))]


def transpose(op: Op) -> list[Value]:
    """Dimensions in another order."""
    first = op.need(0)
    if first.dims is None:
        return [op.made(None)]
    order = list(op.attr("perm", range(len(first.dims) - 1, -1, -1)))
    if sorted(order) != list(range(len(first.dims))):
        refuse("Transpose: perm is no permutation", "onnx_attribute_range")
    op.spend(op.count(first.dims), 0)
    dims = tuple(first.dims[axis] for axis in order)
    if first.dims in op.sizes.caps:
        op.sizes.caps[dims] = op.sizes.caps[first.dims]
    return [op.made(dims, data=None if first.data is None else first.data.transpose(order))]


def concat(op: Op) -> list[Value]:
    """One after the other along an axis."""
    values = [op.need(n) for n in range(len(op.inputs))]
    shapes = [value.dims for value in values]
    if any(dims is None for dims in shapes):
        return [op.made(None)]
    known = [dims for dims in shapes if dims is not None]
    rank = len(known[0])
    if any(len(dims) != rank for dims in known) or not rank:
        refuse("Concat: ranks differ")
    axis = op.axis(rank, 1)
    made: list[Size] = list(known[0])
    for dims in known[1:]:
        for n in range(rank):
            if (n != axis and upper(dims[n]) < lower(made[n])) or (
                n != axis and upper(made[n]) < lower(dims[n])
            ):
                refuse("Concat: dimensions differ")
            if n != axis and not isinstance(dims[n], Expr):
                made[n] = dims[n]
        made[axis] = op.sizes.add(made[axis], dims[axis])
    op.spend(op.count(tuple(made)), 0)
    data = None
    parts = [value.data for value in values]
    if all(part is not None for part in parts):
        joined = np.concatenate([part for part in parts if part is not None], axis=axis)
        data = joined if joined.size <= MAX_DATA else None
    return [op.made(tuple(made), data=data)]


def split(op: Op) -> list[Value]:
    """Pieces along an axis."""
    first, count = op.need(0), len(op.outputs)
    if first.dims is None:
        return [op.made(None, output=n) for n in range(count)]
    axis = op.axis(len(first.dims))
    whole = first.dims[axis]
    parts = list(op.attr("split", ())) or op.known(1)
    if parts is None and op.get(1) is not None:
        parts = [op.sizes.fresh(0, upper(whole), secret=not op.public) for _ in range(count)]
    if not parts:
        number = op.attr("num_outputs", count)
        if number != count:
            refuse("Split: num_outputs is not the number of outputs", "onnx_attribute_range")
        each_ = op.sizes.ceildiv(whole, count)
        last = op.sizes.sub(whole, op.sizes.mul(each_, count - 1))
        if not isinstance(last, Expr) and last < 0:
            refuse("Split: more outputs than elements")
        parts = [each_] * (count - 1) + [last if not isinstance(last, Expr) else each_]
    if len(parts) != count or any(upper(part) < 0 for part in parts):
        refuse("Split: not one size for each output")
    numbers = [int(number) for part in parts if (number := known(part)) is not None]
    exact = len(numbers) == count
    if sum(numbers) > upper(whole) or (exact and sum(numbers) < lower(whole)):
        refuse("Split: pieces are not as long as the whole")
    op.spend(op.count(first.dims), 0)
    values, at = [], 0
    for number, part in enumerate(parts):
        dims = (*first.dims[:axis], part, *first.dims[axis + 1 :])
        data = None
        if first.data is not None and exact:
            data = np.take(first.data, range(at, at + numbers[number]), axis=axis)
            at += numbers[number]
        values.append(op.made(dims, output=number, data=data))
    return values


def slice_(op: Op) -> list[Value]:
    """A part of each dimension; no larger than the whole, whatever its bounds are."""
    first = op.need(0)
    if first.dims is None:
        return [op.made(None)]
    if op.attr("starts") is not None:
        starts: Sequence[Size] | None = op.attr("starts")
        ends: Sequence[Size] | None = op.attr("ends")
        axes = list(op.attr("axes", range(len(op.attr("starts")))))
        steps: Sequence[Size] | None = [1] * len(axes)
    else:
        starts, ends = op.known(1), op.known(2)
        long = op.dims(1, exactly=1)
        count = None if long is None else known(long[0])
        found = op.numbers(3) if op.get(3) is not None else None if count is None else list(range(int(count)))
        steps = op.known(4) if op.get(4) is not None else None if count is None else [1] * int(count)
        if found is None:
            dims = tuple(op.sizes.fresh(0, upper(entry), secret=not op.public) for entry in first.dims)
            op.spend(op.count(dims), 0)
            return [op.made(dims)]
        axes = found
    lists = [entries for entries in (starts, ends, steps) if entries is not None]
    if any(len(entries) != len(axes) for entries in lists):
        refuse("Slice: not one start, end and step for each axis", "onnx_attribute_range")
    made, cut = list(first.dims), [slice(None)] * len(first.dims)
    exact = first.data is not None
    for n, raw in enumerate(axes):
        axis = op.position(raw, len(made))
        start, end, step = (None if entries is None else entries[n] for entries in (starts, ends, steps))
        if step == 0:
            refuse("Slice: a step of 0", "onnx_attribute_range")
        from_, to, by, whole = known(start), known(end), known(step), known(made[axis])
        if from_ is not None and to is not None and by is not None and whole is not None:
            # Before the front of a dimension that is walked backwards means: to its very front.
            last = None if by < 0 and to < -whole else int(to)
            cut[axis] = slice(int(from_), last, int(by))
            made[axis] = len(range(*cut[axis].indices(int(whole))))
        else:
            made[axis] = _slice(op, start, end, step, made[axis])
            exact = False
    if len({op.position(axis, len(made)) for axis in axes}) != len(axes):
        refuse("Slice: an axis twice", "onnx_attribute_range")
    op.spend(op.count(tuple(made)), 0)
    return [op.made(tuple(made), data=first.data[tuple(cut)] if exact and first.data is not None else None)]


def _slice(op: Op, start: Size | None, end: Size | None, step: Size | None, whole: Size) -> Size:
    """The length of a slice of which not everything is a number."""
    if start is not None and end is not None and step == 1:
        low = lower(whole)
        # Bounds beyond the end mean the end; negative ones count from it.
        if lower(end) >= upper(whole):
            end = whole
        elif not isinstance(end, Expr) and end < 0 and low >= -end:
            end = op.sizes.add(whole, end)
        if not isinstance(start, Expr) and start < 0 and low >= -start:
            start = op.sizes.add(whole, start)
        length = op.sizes.sub(end, start)
        if lower(start) >= 0 and lower(length) >= 0 and end == whole:
            return length
        if lower(start) >= 0 and lower(end) >= 0:
            high = max(0, min(upper(length), upper(whole)))
            return op.sizes.derived("slice", (start, end, whole), lambda: (0, high))
    return op.sizes.fresh(0, upper(whole), secret=not op.public)


RULES: Final[dict[str, Callable[[Op], list[Value]]]] = {
    "Reshape": reshape, "Flatten": flatten, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Transpose": transpose,
    "Concat": concat, "Split": split, "Slice": slice_,
}  # fmt: skip
