"""Networks that nobody drew: whatever is joined to whatever, the eight-bit form computes nearly the same."""

from __future__ import annotations

import random

import numpy as np
import pytest
from models.networks import convolution, images, network, node, numbers
from models.test_precision import error, reduced

from strongroom.models.precision import Options
from strongroom.oip import Array

WIDE = 4
"""Channels of every value, all of which have one shape."""
KINDS = ("Conv", "Conv", "Depthwise", "Relu", "Clip", "Above", "Add", "Constant", "Mul", "Concat", "MaxPool", "Global",
         "Swish", "LeakyRelu", "Norm", "HardSigmoid", "Transpose", "MatMul", "Residual", "Identity")  # fmt: skip


class Drawn:
    """One network of a seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.seed = seed
        self.nodes = [node("Conv", ["x", "w"], ["v0"], pads=[1] * 4)]
        self.weights = {
            "w": convolution(WIDE, 3, seed=seed), "zero": np.array(0, np.float32), "below": np.array(-0.5, np.float32),
            "top": np.array(self.dice.choice([0.5, 6]), np.float32), "k": numbers(WIDE, 1, 1, seed=seed),
        }  # fmt: skip
        made = ["v0"]
        for number in range(1, self.dice.randint(4, 14)):
            self._add(
                self.dice.choice(KINDS), self.dice.choice(made[-4:]), self.dice.choice(made), f"v{number}"
            )
            made.append(f"v{number}")
        read = {name for one in self.nodes for name in one.input}
        total, *others = [name for name in made if name not in read]
        for number, name in enumerate(others):
            self.nodes.append(node("Add", [total, name], [f"t{number}"]))
            total = f"t{number}"
        weights = {k: v for k, v in self.weights.items() if any(k in one.input for one in self.nodes)}
        self.data = network(*self.nodes, y=total, **weights)

    def _weight(self, name: str, values: Array) -> str:
        self.weights[name] = values
        return name

    def _conv(self, source: str, target: str, *, group: int = 1, inputs: int = WIDE, side: int = 3) -> None:
        names = [
            source,
            self._weight(f"w_{target}", convolution(WIDE, inputs, side, self.seed + len(self.nodes), group)),
        ]
        if self.dice.random() < 0.6:
            names.append(self._weight(f"b_{target}", numbers(WIDE, seed=len(self.nodes))))
        self.nodes.append(node("Conv", names, [target], pads=[side // 2] * 4, group=group))

    def _add(self, kind: str, a: str, b: str, out: str) -> None:
        between = f"{out}_"
        if kind in ("Conv", "Depthwise"):
            self._conv(a, out, group=WIDE if kind == "Depthwise" else self.dice.choice([1, 2]))
        elif kind in ("Clip", "Above"):
            self.nodes.append(node("Clip", [a, "zero" if kind == "Clip" else "below", "top"], [out]))
        elif kind in ("Add", "Mul", "Constant"):
            self.nodes.append(
                node("Mul" if kind == "Mul" else "Add", [a, "k" if kind == "Constant" else b], [out])
            )
        elif kind == "Residual":
            self.nodes += [node("Add", [a, b], [between]), node("Relu", [between], [out])]
        elif kind == "Concat":
            self.nodes.append(node("Concat", [a, b], [between], axis=1))
            self._conv(between, out, inputs=2 * WIDE, side=1)
        elif kind == "MaxPool":
            self.nodes.append(node("MaxPool", [a], [out], kernel_shape=[3, 3], pads=[1] * 4))
        elif kind == "Global":
            self.nodes += [node("GlobalAveragePool", [a], [between]), node("Add", [between, b], [out])]
        elif kind == "Swish":
            self.nodes += [node("Sigmoid", [a], [between]), node("Mul", [a, between], [out])]
        elif kind == "Norm":
            parts = [self._weight(f"{out}_{i}", 1 + np.abs(numbers(WIDE, seed=i))) for i in range(4)]
            self.nodes.append(node("BatchNormalization", [a, *parts], [out]))
        elif kind == "Transpose":
            self.nodes += [
                node("Transpose", [a], [between], perm=[0, 1, 3, 2]),
                node("Relu", [between], [out]),
            ]
        elif kind == "MatMul":
            matrix = self._weight(f"m_{out}", numbers(12, 12, seed=len(self.nodes), scale=0.3))
            self.nodes.append(node("MatMul", [a, matrix], [out]))
        else:
            self.nodes.append(node(kind, [a], [out]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_network_by_lot(seed: int) -> None:
    """Whole, and with one node left out of it."""
    drawn = Drawn(seed)
    for exclude in ((), (drawn.dice.choice(drawn.nodes).name,)):
        made = reduced(drawn.data, images(4), Options(precision="int8", exclude=exclude))
        assert error(drawn.data, made, images(4, seed=21)) < 0.25, exclude
