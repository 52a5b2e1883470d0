"""A small builder of ONNX graphs with true architectures and made-up weights, from numpy and onnx alone.

Rules
  - Weights depend on (network, tensor) only: raw bits of PCG64, whose stream numpy guarantees, keyed by SHA-256. A
    file is byte-identical from run to run and from machine to machine for the same onnx release.
  - Weights are scaled (He et al. 2015) so that activations neither vanish nor overflow: slow denormals and infinities
    would be measured otherwise.
  - A file is written tensor by tensor: memory stays near the largest one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

OPSET: Final = 17
IR_VERSION: Final = 8
F32: Final = int(TensorProto.FLOAT)
I64: Final = int(TensorProto.INT64)
_CHUNK: Final = 1 << 22
"""Floats made at a time."""

Floats = npt.NDArray[np.float32]
Pair = tuple[int, int]


def uniform(key: str, count: int) -> Floats:
    """`count` floats in [-1, 1) that depend on `key` only."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    bits = np.random.PCG64(seed)
    out = np.empty(count, np.float32)
    for start in range(0, count, _CHUNK):
        end = min(count, start + _CHUNK)
        words = bits.random_raw((end - start + 1) // 2).astype("<u8", copy=False).view("<u4")
        out[start:end] = (words[: end - start] >> 8).astype(np.float32)
    out *= np.float32(2.0 / (1 << 24))
    out -= np.float32(1.0)
    return out


@dataclass(frozen=True, slots=True)
class _Weight:
    """An initializer that is made while the file is written: uniform around `offset`, standard deviation `scale`."""

    shape: tuple[int, ...]
    scale: float
    offset: float


class Net:
    """One network under construction. Tensors are named by strings, as in ONNX.

    `parameters` counts what the reference implementation counts (torch's `sum(p.numel())`), also where a batch
    normalisation was folded into the convolution before it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.parameters = 0
        self.weights: dict[str, _Weight] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[tuple[str, npt.NDArray[Any]]] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    # --- plumbing

    def _fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output; its name."""
        output = name or self._fresh(kind.lower())
        node = f"n{len(self._nodes)}_{kind}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=node, **attributes))
        return output

    def weight(self, name: str, shape: tuple[int, ...], scale: float, offset: float = 0.0) -> str:
        """Adds a float32 initializer; its name."""
        if name in self.weights:
            raise ValueError(f"two tensors are called {name}")
        self.weights[name] = _Weight(shape, scale, offset)
        return name

    def constant(self, value: object, dtype: type[np.generic]) -> str:
        """A small initializer with this value, shared with whoever asked for the same."""
        array = np.asarray(value, dtype)
        for name, old in self._constants:
            same = old.dtype == array.dtype and old.shape == array.shape
            if same and old.tobytes() == array.tobytes():
                return name
        name = self._fresh("const")
        self._constants.append((name, array))
        return name

    def input(self, name: str, dtype: int, shape: list[int | str]) -> str:
        """Declares an input; letters are dimensions of any size."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, source: str, name: str, shape: list[int | str]) -> None:
        """Declares a float32 output."""
        self.op("Identity", source, name=name)
        self._outputs.append(helper.make_tensor_value_info(name, F32, shape))

    # --- layers

    def activate(self, x: str, kind: str | None) -> str:
        """`relu`, `relu6`, `silu`, or None for nothing."""
        if kind is None:
            return x
        if kind == "relu":
            return self.op("Relu", x)
        if kind == "relu6":
            return self.op("Clip", x, self.constant(0.0, np.float32), self.constant(6.0, np.float32))
        return self.op("Mul", x, self.op("Sigmoid", x))

    def normalise(self, x: str, channels: int) -> str:
        """Batch normalisation that stays in the graph."""
        prefix = self._fresh("bn")
        self.parameters += 2 * channels
        tensors = [
            self.weight(f"{prefix}.weight", (channels,), 0.05, 1.0),
            self.weight(f"{prefix}.bias", (channels,), 0.05),
            self.weight(f"{prefix}.mean", (channels,), 0.05),
            self.weight(f"{prefix}.var", (channels,), 0.05, 1.0),
        ]
        return self.op("BatchNormalization", x, *tensors, epsilon=1e-5)

    def conv(
        self, x: str, channels_in: int, channels: int, kernel: int | Pair, *, stride: int = 1,
        pad: int | Pair | None = None, groups: int = 1, act: str | None = "relu", bn: bool = True, bias: bool = False,
        gain: float | None = None,
    ) -> str:  # fmt: skip
        """Convolution, activation behind it. `bn`: a batch normalisation is folded into it, as exporters do."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad is None else pad
        top, left = (padding, padding) if isinstance(padding, int) else padding
        fan = channels_in // groups * height * width
        power = (2.0 if act else 1.0) if gain is None else gain
        name = self._fresh("conv")
        shape = (channels, channels_in // groups, height, width)
        tensors = [self.weight(f"{name}.weight", shape, math.sqrt(power / fan))]
        self.parameters += channels * fan + (2 * channels if bn else 0) + (channels if bias else 0)
        if bias or bn:
            tensors.append(self.weight(f"{name}.bias", (channels,), 0.05))
        y = self.op(
            "Conv", x, *tensors, kernel_shape=[height, width], strides=[stride, stride],
            pads=[top, left, top, left], dilations=[1, 1], group=groups,
        )  # fmt: skip
        return self.activate(y, act)

    def pool(self, x: str, kind: str, kernel: int, stride: int, *, pad: int = 0, ceil: int = 0) -> str:
        """`MaxPool` or `AveragePool`."""
        more: dict[str, Any] = {"count_include_pad": 1} if kind == "AveragePool" and pad else {}
        return self.op(
            kind, x, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4, ceil_mode=ceil, **more
        )  # fmt: skip

    def dense(self, x: str, width_in: int, width: int, *, act: str | None = None, gain: float = 1.0) -> str:
        """A fully connected layer on [N, width_in]."""
        name = self._fresh("fc")
        self.parameters += width_in * width + width
        y = self.op(
            "Gemm", x, self.weight(f"{name}.weight", (width, width_in), math.sqrt(gain / width_in)),
            self.weight(f"{name}.bias", (width,), 0.02), alpha=1.0, beta=1.0, transB=1,
        )  # fmt: skip
        return self.activate(y, act)

    # --- the file

    def inputs(self) -> list[tuple[str, int, list[int | str]]]:
        """(name, ONNX type, shape) of each input."""
        return [
            (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in self._inputs
        ]  # fmt: skip

    def stored_bytes(self) -> int:
        """Bytes of all weights."""
        return 4 * sum(math.prod(w.shape) for w in self.weights.values())

    def write(self, path: Path) -> str:
        """Writes the file, whole or not at all; its SHA-256 (hex)."""
        digest, part = hashlib.sha256(), path.with_name(path.name + ".part")
        with part.open("wb") as sink:
            for piece in self._pieces():
                sink.write(piece)
                digest.update(piece)
        part.replace(path)
        return digest.hexdigest()

    def _pieces(self) -> Any:
        """The serialised `ModelProto`, weights one by one: fields 7 (graph), 5 (initializer) and 9 (raw data)."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs)
        for name, array in self._constants:
            graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        opset = [helper.make_opsetid("", OPSET)]
        shell = helper.make_model(
            graph, opset_imports=opset, producer_name="strongroom-bench", ir_version=IR_VERSION
        )
        shell.ClearField("graph")
        body, heads = graph.SerializeToString(), []
        for name, weight in self.weights.items():
            size = 4 * math.prod(weight.shape)
            tensor = TensorProto(name=name, data_type=F32, dims=weight.shape)
            heads.append((name, tensor.SerializeToString() + b"\x4a" + _varint(size), size))
        total = len(body) + sum(1 + len(_varint(len(h) + n)) + len(h) + n for _, h, n in heads)
        yield shell.SerializeToString() + b"\x3a" + _varint(total) + body
        for name, head, size in heads:
            yield b"\x2a" + _varint(len(head) + size) + head
            yield self._values(name)

    def _values(self, name: str) -> memoryview:
        weight = self.weights[name]
        array = uniform(f"{self.name}/{name}", math.prod(weight.shape))
        array *= np.float32(weight.scale * math.sqrt(3.0))
        if weight.offset:
            array += np.float32(weight.offset)
        return array.astype("<f4", copy=False).data.cast("B")


def _varint(number: int) -> bytes:
    """Protocol Buffers' base-128 form."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
