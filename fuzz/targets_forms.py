"""Fuzz target of what the server believes of the processes that prepare and cut models.

Whatever bytes come, they are refused, or describe tensors that lie within the weights and stages within their bounds.
"""

from __future__ import annotations

import contextlib
import json
import math

from strongroom.models.parting import ALIGNMENT, Range
from strongroom.partitioning import TIMES, _believed
from strongroom.prepared import MAX_STAGES
from strongroom.stages import LENGTHS, MAX_RANK, MAX_TENSORS, Tensor, layout, tail

WEIGHTS = 256


def _sound(given: Tensor | Range, at: int, weights: int) -> None:
    assert at >= 0 and given.length >= 0 and at + given.length <= weights
    dims = given.dimensions if isinstance(given, Tensor) else given.dims
    assert len(dims) <= MAX_RANK and math.prod(dims) <= given.length
    given.name.encode()


def fuzz_form_layout(data: bytes) -> None:
    """The end of a stage, behind weights of which there are 256 bytes: refused, or every tensor lies in them."""
    with contextlib.suppress(ValueError):
        found = layout(memoryview(data), size=WEIGHTS + len(data))
        assert found.weights == WEIGHTS and 0 < found.graph <= len(data)
        assert len({tensor.name for tensor in found.tensors}) == len(found.tensors) <= MAX_TENSORS
        for tensor in found.tensors:
            _sound(tensor, tensor.offset, WEIGHTS)
        described = data[found.graph : len(data) - LENGTHS.size]
        assert json.loads(described) == [[*t[:2], list(t[2]), *t[3:]] for t in found.tensors]


def fuzz_form_partition(data: bytes) -> None:
    """A line of JSON and what follows it: refused, or stages that have what is there, within the weights."""
    first, _, rest = data.partition(b"\n")
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(first)
        if not isinstance(answer, dict):
            return  # which `frames` refuses
        parts = _believed(answer, bytearray(rest), weights=WEIGHTS)
        assert 1 <= len(parts) <= MAX_STAGES
        assert rest.startswith(b"".join(part.graph for part in parts)) and all(part.graph for part in parts)
        assert sum(part.weights for part in parts) <= TIMES * WEIGHTS
        for part in parts:
            end = 0
            for tensor in part.tensors:
                _sound(tensor, tensor.at, WEIGHTS)
                assert tensor.offset >= end and tensor.offset % ALIGNMENT == 0
                end = tensor.offset + tensor.length


_TENSORS = [Tensor("w", 1, (4, 4), 0, 64), Tensor("v", 7, (), 64, 8), Tensor("é\n[", 9, (0, 3), 256, 0)]
_TABLE = [[["w", 1, [4], 0, 0, 16]], [["w", 1, [4], 16, 0, 16], ["v", 2, [2, 4], 32, 64, 8]], []]
SEEDS = {
    "fuzz_form_layout": (
        tail(b"graph", _TENSORS, weights=WEIGHTS),
        tail(b"g", [], weights=WEIGHTS),
        tail(b"graph", [Tensor("w", 2, (1,) * 40, 0, 1)], weights=WEIGHTS),
        tail(b"graph", _TENSORS[:1] * 2, weights=WEIGHTS),
    ),
    "fuzz_form_partition": (
        b'{"graphs":[3,2,1]}\nabcdef' + json.dumps(_TABLE).encode(),
        b'{"graphs":[1]}\na[[]]',
        b'{"graphs":[1]}\na' + json.dumps([[["w", 2, [256], 0, 256 * n, 256] for n in range(5)]]).encode(),
    ),
}
