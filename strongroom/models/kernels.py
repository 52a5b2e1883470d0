"""Shapes and costs of the operators that do the work: products, convolutions, pooling, recurrence, norms.

As in `shapes`: one function an operator or a group of them. Operations are counted exactly where the shapes are
known: two for each multiplication that is added up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Final

from strongroom.models.sizes import Expr, Number, Size, upper
from strongroom.models.values import Dims, Op, T, Value, broadcast, refuse, same, same_dims

MAX_LETTERS: Final = 12
"""Different letters of an Einsum equation."""


def matmul(op: Op) -> list[Value]:
    """numpy's matrix product."""
    right = {"QLinearMatMul": 3}.get(op.name, 1)
    a, b = op.dims(0, least=1), op.dims(right, least=1)
    if a is None or b is None:
        return [op.made(None)]
    left = (1, *a) if len(a) == 1 else a
    other = (*b, 1) if len(b) == 1 else b
    same_dims(op, left[-1], other[-2], "the inner dimensions")
    batch = broadcast(op, (left[:-2], other[:-2])) or ()
    rows, columns = left[-2:-1] if len(a) > 1 else (), other[-1:] if len(b) > 1 else ()
    dims = (*batch, *rows, *columns)
    inner = min(upper(left[-1]), upper(other[-2]))
    count = op.count(dims)
    op.spend(2 * count * inner if inner else 0, 4 * op.count(b) if op.name != "MatMul" else 0)
    return [op.made(dims)]


def gemm(op: Op) -> list[Value]:
    """alpha * A * B + beta * C."""
    a, b = op.dims(0, exactly=2), op.dims(1, exactly=2)
    if a is None or b is None:
        return [op.made(None)]
    rows, inner = reversed(a) if op.attr("transA", 0) else a
    other, columns = reversed(b) if op.attr("transB", 0) else b
    same_dims(op, inner, other, "the inner dimensions")
    dims = (rows, columns)
    third = op.get(2)
    if third is not None and third.dims is not None:
        if len(third.dims) > 2:
            refuse("Gemm: C has more than two dimensions")
        broadcast(op, (dims, third.dims))
    width = min(upper(inner), upper(other))
    op.spend(2 * op.count(dims) * (width + 1), 0)
    return [op.made(dims)]


def einsum(op: Op) -> list[Value]:
    """Any product of tensors: bounded by the space of all its indices together."""
    equation = op.text("equation", "").replace(" ", "")
    match = re.fullmatch(r"([A-Za-z,]+)(?:->([A-Za-z]*))?", equation)
    if match is None:
        refuse("Einsum: expected an equation of letters, without an ellipsis", "onnx_attribute_range")
    terms = match[1].split(",")
    if len(terms) != len(op.inputs) or len(set(equation) - set(",->")) > MAX_LETTERS:
        refuse("Einsum: not one term for each input, or too many letters", "onnx_attribute_range")
    space: dict[str, Size] = {}
    for number, term in enumerate(terms):
        dims = op.dims(number, exactly=len(term))
        if dims is None:
            return [op.made(None)]
        for letter, entry in zip(term, dims, strict=True):
            known = space.get(letter, 1)
            if known != 1 and entry != 1:
                same_dims(op, known, entry, "two dimensions of one letter")
            space[letter] = entry if known == 1 or (not isinstance(entry, Expr) and entry != 1) else known
    once = "".join(sorted(x for x in space if match[1].count(x) == 1))
    result = match[2] if match[2] is not None else once
    if not set(result) <= space.keys() or len(set(result)) != len(result):
        refuse("Einsum: an output letter that no input has", "onnx_attribute_range")
    every = op.count(tuple(space.values()))
    dims = tuple(space[letter] for letter in result)
    # Intermediate results are products of a pair of inputs: none is larger than the space.
    op.spend(2 * len(terms) * every, 4 * every if len(terms) > 2 else 4 * op.count(dims))
    return [op.made(dims)]


# Windows that slide


def _spatial(op: Op, name: str, count: int, default: int = 1) -> list[int]:
    values = list(op.attr(name, [default] * count))
    if len(values) != count:
        refuse(f"{op.name}: {name} has not one number for each dimension", "onnx_attribute_range")
    return values


def _slid(op: Op, sides: Sequence[Size], kernel: Sequence[int]) -> list[Size]:
    """Places of the window along each side."""
    count = len(sides)
    strides, dilations = _spatial(op, "strides", count), _spatial(op, "dilations", count)
    pads = _spatial(op, "pads", 2 * count, 0)
    mode, ceil = op.text("auto_pad", "NOTSET"), op.attr("ceil_mode", 0)
    made: list[Size] = []
    for n, side in enumerate(sides):
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            made.append(op.sizes.ceildiv(side, strides[n]))
            continue
        around = pads[n] + pads[n + count] if mode == "NOTSET" else 0
        room = op.sizes.add(side, around - dilations[n] * (kernel[n] - 1) - 1)
        if upper(room) < 0:
            refuse(f"{op.name}: the window is larger than what it slides over")
        steps = op.sizes.ceildiv(room, strides[n]) if ceil else op.sizes.floordiv(room, strides[n])
        place = op.sizes.add(steps, 1)
        made.append(op.sizes.within(place, 0, math.inf))
    return made


def conv(op: Op) -> list[Value]:
    """Convolution; weights are [M, C / group, kernel...]."""
    where = 3 if op.name == "QLinearConv" else 1
    x, w = op.dims(0, least=3), op.dims(where, least=3)
    if x is None or w is None:
        return [op.made(None)]
    if len(x) != len(w):
        refuse(f"{op.name}: input and weights of other ranks")
    kernel = [upper(entry) for entry in w[2:]]
    if any(isinstance(entry, Expr) for entry in w):
        refuse(f"{op.name}: the weights have no known shape", "onnx_unbounded")
    given = op.attr("kernel_shape")
    if given is not None and list(given) != kernel:
        refuse(f"{op.name}: kernel_shape is not the shape of the weights", "onnx_attribute_range")
    group = op.attr("group", 1)
    if upper(w[0]) % group or not math.prod(kernel):
        refuse(f"{op.name}: group does not divide the filters", "onnx_attribute_range")
    same_dims(op, x[1], op.sizes.mul(w[1], group), "the channels")
    sides = _slid(op, x[2:], [int(k) for k in kernel])
    dims = (x[0], w[0], *sides)
    count, width = op.count(dims), upper(w[1]) * math.prod(kernel)
    places = op.count(tuple(sides))
    # The engine unfolds the input where there are more filters than places, and packs integers anew.
    unfolded = width * places * 4 if op.name != "Conv" or upper(w[0]) > places else 1 << 20
    op.spend(2 * count * width, unfolded)
    return [op.made(dims)]


def conv_transpose(op: Op) -> list[Value]:
    """Convolution the other way; weights are [C, M / group, kernel...]."""
    x, w = op.dims(0, least=3), op.dims(1, least=3)
    if x is None or w is None:
        return [op.made(None)]
    if len(x) != len(w):
        refuse("ConvTranspose: input and weights of other ranks")
    if any(isinstance(entry, Expr) for entry in w):
        refuse("ConvTranspose: the weights have no known shape", "onnx_unbounded")
    kernel = [int(upper(entry)) for entry in w[2:]]
    given = op.attr("kernel_shape")
    if given is not None and list(given) != kernel:
        refuse("ConvTranspose: kernel_shape is not the shape of the weights", "onnx_attribute_range")
    group, count = op.attr("group", 1), len(kernel)
    if upper(w[0]) % group:
        refuse("ConvTranspose: group does not divide the channels", "onnx_attribute_range")
    same_dims(op, x[1], w[0], "the channels")
    strides, dilations = _spatial(op, "strides", count), _spatial(op, "dilations", count)
    pads, extra = _spatial(op, "pads", 2 * count, 0), _spatial(op, "output_padding", count, 0)
    explicit, mode = op.attr("output_shape"), op.text("auto_pad", "NOTSET")
    sides: list[Size] = []
    for n, side in enumerate(x[2:]):
        if explicit is not None:
            sides.append(_spatial(op, "output_shape", count)[n])
        elif mode in ("SAME_UPPER", "SAME_LOWER"):
            sides.append(op.sizes.mul(side, strides[n]))
        else:
            around = pads[n] + pads[n + count] if mode == "NOTSET" else 0
            spread = op.sizes.mul(op.sizes.add(side, -1), strides[n])
            place = op.sizes.add(spread, extra[n] + dilations[n] * (kernel[n] - 1) + 1 - around)
            if upper(place) < 0:
                refuse("ConvTranspose: pads remove more than there is")
            sides.append(op.sizes.within(place, 0, math.inf))
    dims = (x[0], op.sizes.mul(w[1], group), *sides)
    reach = math.prod(kernel) * upper(w[1])
    op.spend(2 * op.count(x) * reach, 4 * op.count(x[2:]) * reach * group)
    return [op.made(dims)]


def pool(op: Op) -> list[Value]:
    """The largest, or a mean, of each window."""
    x, kernel = op.dims(0, least=3), list(op.attr("kernel_shape"))
    if x is None:
        return [op.made(None, output=n) for n in range(len(op.outputs))]
    if len(kernel) != len(x) - 2:
        refuse(f"{op.name}: kernel_shape has not one number for each dimension", "onnx_attribute_range")
    dims = (*x[:2], *_slid(op, x[2:], kernel))
    op.spend(op.count(dims) * math.prod(kernel) * (20 if op.name == "LpPool" else 1), 0)
    return [op.made(dims), op.made(dims, output=1, kind=T.INT64)][: len(op.outputs)]


def global_pool(op: Op) -> list[Value]:
    """One number for each channel."""
    x = op.dims(0, least=2)
    op.spend(2 * op.count(x), 0)
    return [op.made(None if x is None else (*x[:2], *([1] * (len(x) - 2))))]


def roi_align(op: Op) -> list[Value]:
    """A grid of samples for each region."""
    x, rois = op.dims(0, exactly=4), op.dims(1, exactly=2)
    if x is None or rois is None:
        return [op.made(None)]
    same_dims(op, rois[1], 4, "the numbers of a region")
    picked = op.dims(2, exactly=1)
    if picked is not None:
        same_dims(op, picked[0], rois[0], "regions and batch_indices")
    dims = (rois[0], x[1], op.attr("output_height", 1), op.attr("output_width", 1))
    ratio = op.attr("sampling_ratio", 0) or max(1, upper(x[2]) + upper(x[3]))
    op.spend(op.count(dims) * 16 * ratio * ratio, 0)
    return [op.made(dims)]


def grid_sample(op: Op) -> list[Value]:
    """Samples at places that are contents."""
    x, grid = op.dims(0, least=3), op.dims(1, least=3)
    if x is None or grid is None:
        return [op.made(None)]
    if len(x) != len(grid) or len(x) > 5:
        refuse("GridSample: input and grid of other ranks")
    same_dims(op, grid[-1], len(x) - 2, "dimensions and coordinates")
    same_dims(op, x[0], grid[0], "the batches")
    dims = (*x[:2], *grid[1:-1])
    op.spend(64 * op.count(dims), 0)
    return [op.made(dims)]


# Norms


def channel_norm(op: Op) -> list[Value]:
    """BatchNormalization for inference, InstanceNormalization, GroupNormalization: vectors of one number a channel."""
    x = op.dims(0, least=2)
    if op.name == "BatchNormalization" and len(op.outputs) > 1:
        refuse("BatchNormalization: computes statistics, as in training", "onnx_random")
    if x is not None:
        groups = op.attr("num_groups", 1)
        for n in range(1, len(op.inputs)):
            vector = op.dims(n, exactly=1)
            if vector is not None and not (op.name == "GroupNormalization" and vector[0] == groups):
                same_dims(op, vector[0], x[1], "channels and parameters")
        if not isinstance(x[1], Expr) and x[1] % groups:
            refuse("GroupNormalization: num_groups does not divide the channels", "onnx_attribute_range")
    op.spend(8 * op.count(x), 8 * op.count(x) if op.name == "GroupNormalization" else 0)
    return [op.made(x)]


def layer_norm(op: Op) -> list[Value]:
    """Over the last dimensions. onnxruntime follows a null pointer where scale has more dimensions than the input."""
    x = op.dims(0)
    if x is None:
        refuse(f"{op.name}: the input's rank is not known", "onnx_unbounded")
    axis = op.axis(len(x), -1) if x else refuse(f"{op.name}: the input has no dimension")
    for n in (1, 2):
        extra = op.get(n)
        if extra is not None:
            if extra.dims is None or len(extra.dims) > len(x):
                refuse(f"{op.name}: scale or bias has more dimensions than the input, or none known")
            ahead = max(0, len(extra.dims) - (len(x) - axis))
            if any(entry != 1 for entry in extra.dims[:ahead]):
                refuse(f"{op.name}: scale or bias is not one number for each that is normalised")
            broadcast(op, (x, extra.dims))
    op.spend(8 * op.count(x), 0)
    small = tuple(entry if n < axis else 1 for n, entry in enumerate(x))
    kinds = [op.kind(), op.attr("stash_type", T.FLOAT), op.attr("stash_type", T.FLOAT)]
    return [op.made(x if n == 0 else small, output=n, kind=kinds[n]) for n in range(len(op.outputs))]


def norm(op: Op) -> list[Value]:
    """Norms that keep the shape; some work on a copy."""
    first = op.need(0)
    if first.dims is not None and first.dims and op.name == "LpNormalization":
        op.axis(len(first.dims), -1)
    around = op.attr("size", 1)
    op.spend((20 + 2 * around) * op.count(first.dims), 8 * op.count(first.dims))
    return same(op)


# Numbers in fewer bits


def quantize(op: Op) -> list[Value]:
    """To or from integers with scales."""
    first, scale = op.need(0), op.need(1)
    if first.dims is not None and scale.dims is not None and scale.dims not in ((), (1,)):
        axis = op.axis(len(first.dims), 1)
        if len(scale.dims) == 1 and not op.attr("block_size", 0):
            same_dims(op, scale.dims[0], first.dims[axis], "scales and what they scale")
        elif len(scale.dims) != len(first.dims):
            refuse(f"{op.name}: one scale, one for each slice, or blocks of the input's rank are expected")
    point = op.get(2)
    if (
        point is not None
        and point.dims is not None
        and scale.dims is not None
        and len(point.dims) != len(scale.dims)
    ):
        refuse(f"{op.name}: scales and zero points of other shapes")
    op.spend(4 * op.count(first.dims), 0)
    if op.name == "DequantizeLinear":
        return [op.made(first.dims, kind=op.attr("output_dtype", 0) or scale.kind)]
    return [op.made(first.dims, kind=point.kind if point else op.attr("output_dtype", 0) or T.UINT8)]


def dynamic_quantize(op: Op) -> list[Value]:
    """To 8 bits, with a scale made of the content."""
    first = op.need(0)
    op.spend(8 * op.count(first.dims), 0)
    return [op.made(first.dims, kind=T.UINT8), op.made((), kind=T.FLOAT), op.made((), kind=T.UINT8)][
        : len(op.outputs)
    ]


# Sequences of steps


def recurrent(op: Op) -> list[Value]:
    """RNN, GRU, LSTM: [steps, batch, input]; weights say how much each step costs."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op.name]
    x, w, r = op.dims(0, exactly=3), op.dims(1, exactly=3), op.dims(2, exactly=3)
    if w is None or r is None:
        refuse(f"{op.name}: the weights have no known shape", "onnx_unbounded")
    directions = 2 if op.text("direction", "forward") == "bidirectional" else 1
    hidden = op.attr("hidden_size", r[2])
    same_dims(op, w[0], directions, "directions")
    same_dims(op, r[0], directions, "directions")
    same_dims(op, w[1], gates * hidden, "hidden_size and weights")
    same_dims(op, r[1], gates * hidden, "hidden_size and weights")
    same_dims(op, r[2], hidden, "hidden_size and weights")
    bias = op.dims(3, exactly=2) if op.get(3) is not None else None
    if bias is not None:
        same_dims(op, bias[1], 2 * gates * hidden, "hidden_size and bias")
    activations = op.attr("activations")
    if activations is not None and len(activations) != {"RNN": 1, "GRU": 2, "LSTM": 3}[op.name] * directions:
        refuse(f"{op.name}: not the activations that it has", "onnx_attribute_range")
    if x is None:
        return [op.made(None, output=n) for n in range(len(op.outputs))]
    same_dims(op, x[2], w[2], "input and weights")
    batch_first = op.attr("layout", 0)
    steps, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    for n in (5, 6):
        state = op.get(n)
        dims = op.dims(n, exactly=3) if state is not None else None
        if dims is not None:
            same_dims(op, dims[2], hidden, "hidden_size and state")
            same_dims(op, dims[1 if batch_first else 0], directions, "state and directions")
    every = (batch, steps, directions, hidden) if batch_first else (steps, directions, batch, hidden)
    last = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    cells = op.count((steps, batch))
    width = gates * upper(hidden)
    op.spend(
        directions * cells * width * (2 * (upper(w[2]) + upper(hidden)) + 20), 8 * cells * width * directions
    )
    shapes: list[Dims] = [every, last, last]
    return [op.made(shapes[n], output=n) for n in range(len(op.outputs))]


def attention(op: Op) -> list[Value]:
    """Scaled dot products of queries and keys, times values."""
    q, k, v = op.dims(0, least=3), op.dims(1, least=3), op.dims(2, least=3)
    if q is None or k is None or v is None:
        return [op.made(None, output=n) for n in range(len(op.outputs))]
    if not len(q) == len(k) == len(v) <= 4:
        refuse("Attention: queries, keys and values of other ranks")
    heads, others = op.attr("q_num_heads", 0), op.attr("kv_num_heads", 0)
    if len(q) == 3 and (not heads or not others):
        refuse("Attention: no number of heads", "onnx_attribute_range")
    past = op.dims(4, exactly=4) if op.get(4) is not None else None
    before: Size = past[2] if past is not None else 0
    if op.get(4) is not None and past is None:
        before = op.sizes.fresh(0, math.inf)
    split = len(q) == 4
    batch, rows, columns = q[0], q[-2], op.sizes.add(k[-2], before)
    number: Size = q[1] if split else heads
    other: Size = k[1] if split else others
    width = v[-1] if split else op.sizes.floordiv(v[-1], others)
    depth = k[-1] if split else op.sizes.floordiv(k[-1], others)
    out: Dims = (batch, number, rows, width) if split else (batch, rows, op.sizes.mul(width, heads))
    scores = (batch, number, rows, columns)
    count = op.count(scores)
    reach = upper(depth) + upper(width)
    op.spend(
        count * (2 * reach + 24) if count else 0, 12 * count + 8 * op.count((batch, number, columns, depth))
    )
    shapes: list[Dims] = [out, (batch, other, columns, depth), (batch, other, columns, width), scores]
    return [op.made(shapes[n], output=n) for n in range(len(op.outputs))]


def stft(op: Op) -> list[Value]:
    """Spectra of frames of a signal."""
    signal, step, frame = op.dims(0, least=2), op.numbers(1), op.numbers(3)
    window_ = op.dims(2, exactly=1) if op.get(2) is not None else None
    if frame is None and window_ is not None and not isinstance(window_[0], Expr):
        frame = [int(window_[0])]
    if signal is None or not step or not frame or step[0] < 1 or frame[0] < 2:
        refuse("STFT: frame_length or frame_step is not known, or not positive", "onnx_unbounded")
    bins = frame[0] // 2 + 1 if op.attr("onesided", 1) else frame[0]
    room = op.sizes.add(signal[1], -frame[0])
    if upper(room) < 0:
        refuse("STFT: the frame is longer than the signal")
    places = op.sizes.add(op.sizes.floordiv(room, step[0]), 1)
    places = op.sizes.within(places, 0, math.inf)
    dims = (signal[0], places, bins, 2)
    # As a matrix product of each frame: more than a fast transform, never less.
    op.spend(op.count((signal[0], places)) * frame[0] * 80 * max(1, frame[0].bit_length()), 64 * frame[0])
    return [op.made(dims)]


def rotary(op: Op) -> list[Value]:
    """Rotated pairs of elements; the shape stays."""
    op.spend(8 * op.count(op.need(0).dims), 0)
    return same(op)


def dropout(op: Op) -> list[Value]:
    """Nothing at inference; a `training_mode` has to be known, and false."""
    first, training = op.need(0), op.get(2)
    if training is not None and (op.known(2) != [0] or not training.constant):
        refuse("Dropout: is in training mode, or may be", "onnx_random")
    op.spend(op.count(first.dims), 0)
    kinds: list[Number] = [first.kind, T.BOOL if op.version >= 10 else first.kind]
    return [op.made(first.dims, output=n, kind=int(kinds[n])) for n in range(len(op.outputs))]


RULES: Final[dict[str, Callable[[Op], list[Value]]]] = {
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), matmul),
    "Gemm": gemm, "Einsum": einsum, "Conv": conv, "ConvInteger": conv, "QLinearConv": conv,
    "ConvTranspose": conv_transpose,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), global_pool),
    "RoiAlign": roi_align, "GridSample": grid_sample,
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), channel_norm),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_norm),
    **dict.fromkeys(("LpNormalization", "LRN", "MeanVarianceNormalization"), norm),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
    "DynamicQuantizeLinear": dynamic_quantize,
    **dict.fromkeys(("RNN", "GRU", "LSTM"), recurrent),
    "Attention": attention, "STFT": stft, "RotaryEmbedding": rotary, "Dropout": dropout,
}  # fmt: skip
