"""Ranges of a network's values over a set of examples: what its eight-bit form is made between.

Rules
  - Examples are requests, checked like a caller's (`inputs.check_inputs`), and finite: one NaN would make a range
    of nothing.
  - They are run one at a time, in their order, so that ranges do not depend on how they were stacked.
  - Whoever calls gives the function that runs a model: this module has no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from strongroom.errors import InvalidRequest, LimitExceeded
from strongroom.inputs import check_inputs
from strongroom.models import scales
from strongroom.models.info import ModelInfo
from strongroom.models.rewrite import Array
from strongroom.oip import Tensor, WireLimits, datatype_of

LIMITS: Final = WireLimits(
    tensors=64, tensor_bytes=1 << 30, total_bytes=1 << 30, elements=1 << 28, name_length=512
)
"""Of one set: a thousand images of 224 x 224."""
MAX_EXAMPLES: Final = 10_000
MAX_RANGE: Final = 1e37
"""Magnitude of an end of a range: its length has to be a float32."""
BINS: Final = 2048
CUT: Final = 1e-4
"""Share of a value's elements beyond the range that `percentile` takes, at both ends together."""

Request = Mapping[str, Array]


class Run(Protocol):
    """Runs one model on requests, one after the other."""

    def __call__(
        self, model: bytes, requests: Sequence[Request], *, outputs: tuple[str, ...]
    ) -> Iterator[Request]:
        """The outputs of each request, by name; () asks for all. `model` is not admitted yet."""


def requests_of(info: ModelInfo, arrays: Mapping[str, Array], *, what: str) -> tuple[Request, ...]:
    """The requests in a set of arrays by input name. `what` names the set in messages.

    Where every array has one dimension more than its input, the first counts the examples. Where every input's
    first dimension is open, is one of at least two, and all arrays are equally long, each row is an example.
    Everything else is one example.

    Raises:
        InvalidRequest: the arrays are not requests of this model, or have NaN, an infinity, or no example in
            them (codes `input_...`, `precision_examples`).
        LimitExceeded: more than `MAX_EXAMPLES` (code `precision_examples`), or larger than requests may be.
    """
    examples = tuple(_split(info, arrays, what))
    if not examples:
        raise InvalidRequest(f"{what}: expected at least one example, got none", code="precision_examples")
    found = []
    for example in examples:
        tensors = tuple(Tensor(name, datatype_of(array), array) for name, array in example.items())
        checked = check_inputs(info, tensors, limits=LIMITS)
        for name, array in checked.items():
            if not array.size:
                raise InvalidRequest(f"{what}: input {name!r} is empty", code="precision_examples")
            if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
                raise InvalidRequest(
                    f"{what}: input {name!r} has NaN or an infinity in it", code="precision_examples"
                )
        found.append(checked)
    return tuple(found)


def _split(info: ModelInfo, arrays: Mapping[str, Array], what: str) -> Iterator[dict[str, Array]]:
    shapes = {spec.name: spec.shape for spec in info.inputs if spec.shape is not None}
    known = {name: (array, shapes[name]) for name, array in arrays.items() if name in shapes}
    counts = {len(array) if array.ndim else 0 for array, _ in known.values()}
    if len(known) != len(info.inputs) or set(arrays) - set(known) or len(counts) != 1:
        yield dict(arrays)  # one request, or none of this model's: the check of requests says which
        return
    (count,) = counts
    stacked = all(array.ndim == len(shape) + 1 for array, shape in known.values())
    rows = all(
        len(shape) > 1 and not isinstance(shape[0], int) and array.ndim == len(shape)
        for array, shape in known.values()
    )
    if not (stacked or rows):
        yield dict(arrays)
        return
    if count > MAX_EXAMPLES:
        raise LimitExceeded(f"{what}: {count} examples, at most {MAX_EXAMPLES}", code="precision_examples")
    for index in range(count):
        picked = index if stacked else slice(index, index + 1)
        yield {name: np.asarray(array[picked], order="C") for name, (array, _) in known.items()}


def ranges_of(
    model: bytes, names: Sequence[str], requests: Sequence[Request], *, run: Run, method: str
) -> dict[str, tuple[float, float]]:
    """Least and greatest element of each value over all requests (`minmax`), or but for `CUT` (`percentile`),
    widened to the next step of a grid (`scales.widened`).

    `model`: the network with `names` among its outputs, but for those that are its inputs.

    Raises:
        InvalidRequest: a value is NaN, infinite or beyond `MAX_RANGE` for some example (code
            `precision_examples`); whatever `run`
            raises.
    """
    low = dict.fromkeys(names, np.inf)
    high = dict.fromkeys(names, -np.inf)
    for values in _values(model, names, requests, run):
        for name, array in values.items():
            if array.size:
                least, most = float(array.min()), float(array.max())
                _check_ends(least, most)  # here, for `min` and `max` below would pass a NaN over
                low[name], high[name] = min(low[name], least), max(high[name], most)
    _check_ends(*low.values(), *high.values())  # infinite still where no example has an element
    if method == "minmax":
        return {name: (scales.widened(low[name]), scales.widened(high[name])) for name in names}
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for values in _values(model, names, requests, run):
        for name, array in values.items():
            # In 64 bits: the edges of a narrow range are not 2048 different numbers of 32.
            wide = array.astype(np.float64)
            counts[name] += np.histogram(wide, bins=BINS, range=_spread(low[name], high[name]))[0]
    cut = {name: _cut(counts[name], *_spread(low[name], high[name])) for name in names}
    return {name: (scales.widened(least), scales.widened(most)) for name, (least, most) in cut.items()}


def _values(
    model: bytes, names: Sequence[str], requests: Sequence[Request], run: Run
) -> Iterator[dict[str, Any]]:
    inputs = tuple(name for name in names if name in requests[0])
    asked = tuple(name for name in names if name not in requests[0])
    results = run(model, requests, outputs=asked) if asked else iter([{}] * len(requests))
    for request, values in zip(requests, results, strict=True):
        yield {**{name: request[name] for name in inputs}, **values}


def _check_ends(*ends: float) -> None:
    if not all(abs(end) <= MAX_RANGE / 2 for end in ends):
        raise InvalidRequest(
            f"expected values up to {MAX_RANGE / 2:g} inside of the network, got others, or NaN, for some example",
            code="precision_examples",
        )


def _spread(low: float, high: float) -> tuple[float, float]:
    pad = max(0.5, abs(low) * 2.0**-20)  # beside a large number a half is nothing
    return (low, high) if high > low else (low - pad, low + pad)


def _cut(counts: Array, low: float, high: float) -> tuple[float, float]:
    """The edges of the bins between which all but `CUT` of the elements lie. An end at zero stays: it is a ReLU's."""
    total, width = int(counts.sum()), (high - low) / len(counts)
    left = 0.0 if low >= 0 else CUT * total / (1 if high <= 0 else 2)
    right = 0.0 if high <= 0 else CUT * total / (1 if low >= 0 else 2)
    sums = np.cumsum(counts)
    first = int(np.searchsorted(sums, left, side="right"))
    last = int(np.searchsorted(sums, total - right, side="left"))
    return low + first * width, low + (last + 1) * width
