"""What is known of a value before a model runs: element type, shape, small contents, what it depends on.

The rules of single operators (`shapes`, `kernels`, `learners`) get an `Op` and return such values; `look` calls
them in the order of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from strongroom.errors import AdmissionRefused
from strongroom.models.sizes import Expr, Number, Size, Sizes, is_secret, lower, upper

_T = onnx.TensorProto
T = onnx.TensorProto.DataType

MAX_DATA: Final = 512
"""Elements of a tensor whose contents are followed: shapes, axes, pads, scales; never weights."""
MAX_FACTORS: Final = 32
"""The same for constants that are no whole numbers: factors of a Resize, bounds of a Range."""
STRING_BYTES: Final = 48
"""Bytes of a string besides its text, in the engine: the object, and the least that an allocator gives."""

BITS: Final = {
    _T.FLOAT: 32, _T.DOUBLE: 64, _T.COMPLEX64: 64, _T.COMPLEX128: 128, _T.INT64: 64, _T.UINT32: 32,
    _T.UINT64: 64, _T.INT32: 32, _T.INT16: 16, _T.UINT16: 16, _T.INT8: 8, _T.UINT8: 8, _T.BOOL: 8,
    _T.FLOAT16: 16, _T.BFLOAT16: 16, _T.FLOAT8E4M3FN: 8, _T.FLOAT8E4M3FNUZ: 8, _T.FLOAT8E5M2: 8,
    _T.FLOAT8E5M2FNUZ: 8, _T.FLOAT8E8M0: 8, _T.INT4: 4, _T.UINT4: 4, _T.FLOAT4E2M1: 4, _T.INT2: 2, _T.UINT2: 2,
}  # fmt: skip
"""Element type -> bits of one element."""

INTEGERS: Final = {
    _T.INT64: (-(1 << 63), (1 << 63) - 1), _T.INT32: (-(1 << 31), (1 << 31) - 1),
    _T.INT16: (-(1 << 15), (1 << 15) - 1), _T.INT8: (-128, 127), _T.UINT8: (0, 255), _T.UINT16: (0, 65535),
    _T.UINT32: (0, (1 << 32) - 1), _T.UINT64: (0, (1 << 64) - 1), _T.BOOL: (0, 1),
}  # fmt: skip
"""Integer type -> its least and greatest value."""

TRAPS: Final = "division_traps"
"""The flag of models that divide whole numbers by what may be -1 (docs/spec/admission.md §8.3)."""

Dims: TypeAlias = tuple[Size, ...]
Data: TypeAlias = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Value:
    """A tensor before it exists.

    `dims` None: not even the rank is known. `data`: its elements as sizes, where they are few and known.
    `public`: it depends on shapes and on the model alone, not on what callers send. `constant`: the engine may
    compute it while it loads. `text`: bytes of the longest string in it.
    """

    kind: int
    dims: Dims | None
    data: Data | None = None
    public: bool = False
    constant: bool = False
    text: Number = 0

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None where it is not known."""
        return None if self.dims is None else len(self.dims)


def fixed(dims: Dims) -> tuple[int, ...] | None:
    """The dimensions as numbers, or None where one is not known."""
    numbers = tuple(int(size) for size in dims if not isinstance(size, Expr))
    return numbers if len(numbers) == len(dims) else None


def refuse(message: str, code: str = "onnx_shape") -> NoReturn:
    """Refuses the model."""
    raise AdmissionRefused(message, code=code)


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One node as its rule sees it."""

    name: str
    version: int
    """Opset of its domain that the model imports."""
    inputs: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    kinds: tuple[int | None, ...]
    """Element types of the outputs as far as the schema and the inputs give them."""
    sizes: Sizes
    spend: Callable[[Number, Number], None]
    """Takes operations, and bytes that the kernel needs beside its outputs."""
    memo: dict[str, Any]
    """What the rule proved of this very node before, in other looks."""

    def get(self, position: int) -> Value | None:
        """An input that may be absent."""
        return self.inputs[position] if position < len(self.inputs) else None

    def need(self, position: int) -> Value:
        """An input that its schema requires."""
        value = self.get(position)
        if value is None:
            refuse(f"{self.name}: input {position} is missing", "onnx_arity")
        return value

    def dims(self, position: int, *, least: int = 0, exactly: int | None = None) -> Dims | None:
        """The shape of an input, None where it is not known."""
        dims = self.need(position).dims
        if dims is not None and (len(dims) < least or (exactly is not None and len(dims) != exactly)):
            refuse(f"{self.name}: input {position} has {len(dims)} dimensions")
        return dims

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value: int, float, bytes, tuple, or the message itself."""
        return self.attributes.get(name, default)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attributes.get(name)
        return default if value is None else bytes(value).decode("utf-8", "replace")

    def axis(self, rank: int, default: int = 0, *, name: str = "axis", inserts: bool = False) -> int:
        """The attribute `axis` as a position."""
        return self.position(self.attr(name, default), rank + inserts)

    def position(self, axis: int, rank: int) -> int:
        """An axis as a position, counted from the front."""
        if not -rank <= axis < rank:
            refuse(f"{self.name}: axis {axis} of {rank}", "onnx_attribute_range")
        return axis + rank if axis < 0 else axis

    def known(self, position: int) -> list[Size] | None:
        """The elements of an input whose contents are known."""
        value = self.get(position)
        return None if value is None or value.data is None else list(value.data.reshape(-1))

    def scalar(self, position: int) -> Size | None:
        """The one element of an input whose contents are known."""
        found = self.known(position)
        if found is None:
            return None
        if len(found) != 1:
            refuse(f"{self.name}: input {position} is not one element")
        return found[0]

    def numbers(self, position: int) -> list[int] | None:
        """The same where each of them is a whole number."""
        found = self.known(position)
        if found is None:
            return None
        numbers = [int(size) for size in found if not isinstance(size, Expr)]
        return numbers if len(numbers) == len(found) else None

    def kind(self, output: int = 0) -> int:
        """Element type of an output."""
        kind = self.kinds[min(output, len(self.kinds) - 1)]  # the last one stands for all that follow
        if kind is None:
            refuse(f"{self.name}: the type of its output cannot be told", "onnx_type")
        return kind

    def made(
        self, dims: Dims | None, *, output: int = 0, kind: int | None = None, data: Data | None = None
    ) -> Value:
        """An output, that depends on all inputs."""
        return Value(
            kind=self.kind(output) if kind is None else kind,
            dims=dims,
            data=data,
            public=self.public,
            constant=self.constant,
            text=max((v.text for v in self.inputs if v is not None), default=0),
        )

    @property
    def public(self) -> bool:
        """Whether no input depends on what callers send."""
        return all(value.public for value in self.inputs if value is not None)

    @property
    def constant(self) -> bool:
        """Whether the engine can compute it while it loads."""
        return all(value.constant for value in self.inputs if value is not None)

    def count(self, dims: Dims | None) -> Number:
        """Elements at most; infinity where nothing is known."""
        return math.inf if dims is None else self.sizes.count(dims)

    def secret(self, hi: Number) -> Size:
        """A size that depends on content, at most `hi`; each is its own."""
        return self.sizes.fresh(0, hi, secret=not self.public)

    def unknown(self, data: Size | None, what: str) -> Size:
        """A dimension that an input's content gives: as known, else any."""
        if data is None:
            return self.sizes.fresh(0, math.inf, secret=not self.public)
        if upper(data) < 0:
            refuse(f"{self.name}: {what} is negative")
        return data


def same(op: Op) -> list[Value]:
    """All outputs have the shape of the first input."""
    first = op.need(0)
    op.spend(op.count(first.dims), 0)
    return [op.made(first.dims, output=n) for n in range(len(op.outputs))]


def broadcast(op: Op, shapes: Iterable[Dims | None]) -> Dims | None:
    """The shape that numpy's rule makes of several; refuses where two numbers cannot agree."""
    result: Dims = ()
    for dims in shapes:
        if dims is None:
            return None
        if dims == result:
            continue
        wide, slim = (dims, result) if len(dims) >= len(result) else (result, dims)
        ahead = len(wide) - len(slim)
        result = (*wide[:ahead], *(_together(op, a, b) for a, b in zip(wide[ahead:], slim, strict=True)))
    return result


def _together(op: Op, a: Size, b: Size) -> Size:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if not isinstance(a, Expr) and not isinstance(b, Expr):
        refuse(f"{op.name}: dimensions {a} and {b} do not go together")
    # Either they are equal or one is 1: what cannot be 1 is the result.
    if lower(a) > 1:
        return a
    if lower(b) > 1:
        return b
    return op.sizes.either(a, b)


def cells(values: Iterable[Size]) -> Data:
    """A row of sizes as data."""
    row = list(values)
    out = np.empty(len(row), dtype=object)
    out[:] = row
    return out


def without_data(value: Value) -> Value:
    """The same, contents forgotten."""
    return value if value.data is None else replace(value, data=None)


def secret_dims(value: Value) -> bool:
    """Whether its shape depends on the content of tensors."""
    return value.dims is None or any(map(is_secret, value.dims))


def same_dims(op: Op, a: Size, b: Size, what: str) -> None:
    """Refuses two known dimensions that must be one and are not."""
    if upper(a) < lower(b) or upper(b) < lower(a):
        refuse(f"{op.name}: {what} differ")
