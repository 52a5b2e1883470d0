"""Numbers of eight bits for numbers of 32: scales, zero points and rounding (ONNX, QuantizeLinear).

Rules
  - Activations are uint8 with a zero point, weights int8 without one. Zero is exact: padding and ReLU stay what
    they are.
  - Weights take 7 of the 8 bits, -63 to 63. Processors without VNNI add two products of 8 bits in a register of
    16 (VPMADDUBSW), which saturates: 2 x 255 x 127 does not fit, 2 x 255 x 63 does. So every sum is exact, and a
    model computes the same sums on every processor; the eighth bit would make results depend on it.
  - Ranges that were measured are widened to one of 64 steps per octave. Floating-point sums differ in their last
    bits from processor to processor, and with them the extremes of activations; what is made of them shall not.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from strongroom.models.rewrite import Array

WEIGHT_MAX: Final = 63
ROWS_MAX: Final = 127
"""For tables that are looked up and never multiplied: all eight bits."""
_STEPS: Final = 64
_LEAST: Final = float(np.finfo(np.float32).tiny)


def widened(value: float) -> float:
    """The next number away from zero with 6 bits after the leading one; zero stays."""
    if value == 0:
        return 0.0
    mantissa, exponent = math.frexp(abs(value))
    return math.copysign(math.ldexp(math.ceil(mantissa * 2 * _STEPS) / (2 * _STEPS), exponent), value)


def activation(low: float, high: float) -> tuple[Array, Array]:
    """Scale (float32) and zero point (uint8), both scalars, for values from `low` to `high` and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / 255, _LEAST))
    zero = np.uint8(min(255, max(0, round(-low / float(scale)))))
    return np.asarray(scale), np.asarray(zero)


def weights(
    values: Array, *, axis: int | None, most: int = WEIGHT_MAX, least: Array | None = None
) -> tuple[Array, Array]:
    """int8 values of the same shape, and float32 scales: one for each index of `axis`, or a scalar.

    `most`: the greatest magnitude. `least`: scales are at least these (see `bias`).
    """
    others = tuple(i for i in range(values.ndim) if i != axis) if axis is not None else None
    greatest = np.asarray(np.max(np.abs(values), axis=others, initial=0.0), np.float32)
    scale = np.maximum(greatest / np.float32(most), np.float32(_LEAST)).astype(np.float32)
    if least is not None:
        scale = np.maximum(scale, least if axis is not None else least.max(initial=0.0)).astype(np.float32)
    shape = [1] * values.ndim
    if axis is not None:
        shape[axis] = -1
    rounded = np.rint(values / scale.reshape(shape if axis is not None else ()))
    return np.clip(rounded, -most, most).astype(np.int8), scale


def least_scale(bias: Array, activation_scale: Array) -> Array:
    """The least scales of weights with which `bias` fits into 31 bits: a channel of tiny weights has a tiny one."""
    return (np.abs(bias).astype(np.float64) / (float(activation_scale) * 2.0**30)).astype(np.float32)


def bias(values: Array, *, activation_scale: Array, weight_scale: Array) -> tuple[Array, Array]:
    """int32 values and their float32 scales, which are products of the two, as the integer sums have them."""
    scale = (activation_scale * weight_scale).astype(np.float32)
    scale = np.maximum(scale, np.float32(_LEAST))
    wide = np.rint(values.astype(np.float64) / scale.astype(np.float64))
    return np.clip(wide, -(2**31) + 1, 2**31 - 1).astype(np.int32), scale


def finite(values: Array) -> bool:
    """Whether there is a range at all."""
    return bool(np.isfinite(values).all()) and values.size > 0
