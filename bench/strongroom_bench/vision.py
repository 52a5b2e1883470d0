"""Convolutional networks with their published architectures, as PyTorch's exporter writes them (batch normalisation
folded into convolutions where there is one in front).

Sources: SqueezeNet 1.0 (Iandola et al. 2016), ResNet (He et al. 2016), DenseNet (Huang et al. 2017), VGG (Simonyan and
Zisserman 2015), MobileNetV2 (Sandler et al. 2018), Inception v3 (Szegedy et al. 2016, torchvision's form without the
auxiliary head), EfficientNet-Lite4 (Google, 2020) and EfficientNetV2-L (Tan and Le 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from strongroom_bench.graph import F32, Net


def image(net: Net, size: int) -> str:
    """The input `input`, float32 [N, 3, size, size]."""
    return net.input("input", F32, ["N", 3, size, size])


def classify(net: Net, x: str, channels: int, classes: int = 1000) -> None:
    """Global average, one dense layer, the output `output` [N, classes]."""
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    net.output(net.dense(x, channels, classes), "output", ["N", classes])


def squeezenet(net: Net, *, size: int = 224, classes: int = 1000, shrink: int = 1) -> None:
    """SqueezeNet 1.0; `shrink` divides every width."""
    x = net.conv(image(net, size), 3, 96 // shrink, 7, stride=2, pad=0, bn=False, bias=True)
    x = net.pool(x, "MaxPool", 3, 2, ceil=1)
    channels = 96 // shrink
    for squeeze, expand, pooled in (
        (16, 64, False), (16, 64, False), (32, 128, True), (32, 128, False), (48, 192, False), (48, 192, False),
        (64, 256, True), (64, 256, False),
    ):  # fmt: skip
        narrow, wide = squeeze // shrink, expand // shrink
        s = net.conv(x, channels, narrow, 1, bn=False, bias=True)
        left = net.conv(s, narrow, wide, 1, bn=False, bias=True)
        x = net.op("Concat", left, net.conv(s, narrow, wide, 3, bn=False, bias=True), axis=1)
        channels = 2 * wide
        if pooled:
            x = net.pool(x, "MaxPool", 3, 2, ceil=1)
    x = net.conv(x, channels, classes, 1, bn=False, bias=True)
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    net.output(x, "output", ["N", classes])


def resnet(
    net: Net, blocks: Sequence[int], *, bottleneck: bool, size: int = 224, classes: int = 1000, base: int = 64
) -> None:
    """ResNet with these numbers of blocks; `base` is the width of the first stage."""
    x = net.conv(image(net, size), 3, base, 7, stride=2)
    x = net.pool(x, "MaxPool", 3, 2, pad=1)
    before = base
    for stage, count in enumerate(blocks):
        width = base << stage
        after = width * 4 if bottleneck else width
        for block in range(count):
            stride = 2 if stage and not block else 1
            same = stride == 1 and before == after
            skip = x if same else net.conv(x, before, after, 1, stride=stride, pad=0, act=None)
            if bottleneck:
                y = net.conv(net.conv(x, before, width, 1), width, width, 3, stride=stride)
                y = net.conv(y, width, after, 1, act=None, gain=0.1)
            else:
                y = net.conv(x, before, width, 3, stride=stride)
                y = net.conv(y, width, after, 3, act=None, gain=0.1)
            x, before = net.activate(net.op("Add", y, skip), "relu"), after
    classify(net, x, before, classes)


def vgg16(net: Net, *, size: int = 224) -> None:
    """VGG-16 without batch normalisation."""
    x, channels = image(net, size), 3
    for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            x, channels = net.conv(x, channels, width, 3, bn=False, bias=True), width
        x = net.pool(x, "MaxPool", 2, 2)
    x = net.op("Flatten", x, axis=1)
    x = net.dense(x, 512 * (size // 32) ** 2, 4096, act="relu", gain=2.0)
    x = net.dense(x, 4096, 4096, act="relu", gain=2.0)
    net.output(net.dense(x, 4096, 1000), "output", ["N", 1000])


def _inverted(
    net: Net,
    x: str,
    before: int,
    after: int,
    expand: int,
    kernel: int,
    *,
    stride: int,
    act: str,
    squeeze: int = 0,
) -> str:
    """MBConv: expand, depthwise, squeeze-and-excitation of width `squeeze`, project; skipped where it fits."""
    middle, y = before * expand, x
    if expand != 1:
        y = net.conv(y, before, middle, 1, act=act)
    y = net.conv(y, middle, middle, kernel, stride=stride, groups=middle, act=act)
    if squeeze:
        q = net.conv(net.op("GlobalAveragePool", y), middle, squeeze, 1, bn=False, bias=True, act=act)
        q = net.op("Sigmoid", net.conv(q, squeeze, middle, 1, bn=False, bias=True, act=None))
        y = net.op("Mul", y, q)
    same = stride == 1 and before == after
    y = net.conv(y, middle, after, 1, act=None, gain=0.3 if same else 1.0)
    return net.op("Add", y, x) if same else y


def _fused(
    net: Net, x: str, before: int, after: int, expand: int, kernel: int, *, stride: int, act: str
) -> str:
    """Fused-MBConv: one full convolution in place of the first two."""
    if expand == 1:
        y = net.conv(x, before, after, kernel, stride=stride, act=act, gain=0.6)
    else:
        y = net.conv(x, before, before * expand, kernel, stride=stride, act=act)
        y = net.conv(y, before * expand, after, 1, act=None, gain=0.3)
    return net.op("Add", y, x) if stride == 1 and before == after else y


def mobilenet_v2(net: Net, *, size: int = 224) -> None:
    """MobileNetV2, width 1.0."""
    x, channels = net.conv(image(net, size), 3, 32, 3, stride=2, act="relu6"), 32
    for expand, width, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            x = _inverted(net, x, channels, width, expand, 3, stride=1 if block else stride, act="relu6")
            channels = width
    classify(net, net.conv(x, channels, 1280, 1, act="relu6"), 1280)


def _round8(width: float) -> int:
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def efficientnet_lite4(net: Net, *, size: int = 300) -> None:
    """EfficientNet-Lite4: no squeeze-and-excitation, ReLU6, stem and head not scaled."""
    x, channels = net.conv(image(net, size), 3, 32, 3, stride=2, act="relu6"), 32
    stages = (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )  # fmt: skip
    for at, (count, kernel, stride, expand, width) in enumerate(stages):
        blocks = count if at in (0, len(stages) - 1) else math.ceil(count * 1.8)
        for block in range(blocks):
            step, after = 1 if block else stride, _round8(width * 1.4)
            x = _inverted(net, x, channels, after, expand, kernel, stride=step, act="relu6")
            channels = after
    classify(net, net.conv(x, channels, 1280, 1, act="relu6"), 1280)


def efficientnet_v2_l(net: Net, *, size: int = 480) -> None:
    """EfficientNetV2-L."""
    x = net.conv(image(net, size), 3, 32, 3, stride=2, act="silu")
    for fused, expand, stride, before, after, count in (
        (True, 1, 1, 32, 32, 4), (True, 4, 2, 32, 64, 7), (True, 4, 2, 64, 96, 7), (False, 4, 2, 96, 192, 10),
        (False, 6, 1, 192, 224, 19), (False, 6, 2, 224, 384, 25), (False, 6, 1, 384, 640, 7),
    ):  # fmt: skip
        for block in range(count):
            first, step = (after, 1) if block else (before, stride)
            if fused:
                x = _fused(net, x, first, after, expand, 3, stride=step, act="silu")
            else:
                x = _inverted(net, x, first, after, expand, 3, stride=step, act="silu", squeeze=first // 4)
    classify(net, net.conv(x, 640, 1280, 1, act="silu"), 1280)


def densenet121(net: Net, *, size: int = 224) -> None:
    """DenseNet-121."""
    x, channels = net.conv(image(net, size), 3, 64, 7, stride=2), 64
    x = net.pool(x, "MaxPool", 3, 2, pad=1)
    for stage, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            y = net.conv(net.activate(net.normalise(x, channels), "relu"), channels, 128, 1)
            y = net.conv(y, 128, 32, 3, bn=False, act=None, gain=2.0)
            x, channels = net.op("Concat", x, y, axis=1), channels + 32
        if stage < 3:
            y = net.activate(net.normalise(x, channels), "relu")
            y = net.conv(y, channels, channels // 2, 1, bn=False, act=None)
            x, channels = net.pool(y, "AveragePool", 2, 2), channels // 2
    classify(net, net.activate(net.normalise(x, channels), "relu"), channels)


# --- Inception v3 -------------------------------------------------------------------------------------------


def _c(
    net: Net, x: str, before: int, after: int, kernel: int | tuple[int, int], *, stride: int = 1,
    pad: int | tuple[int, int] = 0,
) -> str:  # fmt: skip
    return net.conv(x, before, after, kernel, stride=stride, pad=pad)


def _join(net: Net, *parts: str) -> str:
    return net.op("Concat", *parts, axis=1)


def _inception_a(net: Net, x: str, channels: int, pooled: int) -> str:
    return _join(
        net,
        _c(net, x, channels, 64, 1),
        _c(net, _c(net, x, channels, 48, 1), 48, 64, 5, pad=2),
        _c(net, _c(net, _c(net, x, channels, 64, 1), 64, 96, 3, pad=1), 96, 96, 3, pad=1),
        _c(net, net.pool(x, "AveragePool", 3, 1, pad=1), channels, pooled, 1),
    )


def _inception_b(net: Net, x: str, channels: int) -> str:
    double = _c(net, _c(net, _c(net, x, channels, 64, 1), 64, 96, 3, pad=1), 96, 96, 3, stride=2)
    return _join(net, _c(net, x, channels, 384, 3, stride=2), double, net.pool(x, "MaxPool", 3, 2))


def _inception_c(net: Net, x: str, width: int) -> str:
    row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))
    y = _c(net, x, 768, width, 1)
    y = _c(net, y, width, width, row[0], pad=row[1])
    y = _c(net, y, width, 192, column[0], pad=column[1])
    z, last = _c(net, x, 768, width, 1), row
    for kernel, pad in (column, row, column):
        z = _c(net, z, width, width, kernel, pad=pad)
    z = _c(net, z, width, 192, last[0], pad=last[1])
    pooled = _c(net, net.pool(x, "AveragePool", 3, 1, pad=1), 768, 192, 1)
    return _join(net, _c(net, x, 768, 192, 1), y, z, pooled)


def _inception_d(net: Net, x: str) -> str:
    y = _c(net, _c(net, x, 768, 192, 1), 192, 320, 3, stride=2)
    z = _c(net, _c(net, x, 768, 192, 1), 192, 192, (1, 7), pad=(0, 3))
    z = _c(net, _c(net, z, 192, 192, (7, 1), pad=(3, 0)), 192, 192, 3, stride=2)
    return _join(net, y, z, net.pool(x, "MaxPool", 3, 2))


def _inception_e(net: Net, x: str, channels: int) -> str:
    def fork(y: str) -> str:
        return _join(net, _c(net, y, 384, 384, (1, 3), pad=(0, 1)), _c(net, y, 384, 384, (3, 1), pad=(1, 0)))

    y = fork(_c(net, x, channels, 384, 1))
    z = fork(_c(net, _c(net, x, channels, 448, 1), 448, 384, 3, pad=1))
    pooled = _c(net, net.pool(x, "AveragePool", 3, 1, pad=1), channels, 192, 1)
    return _join(net, _c(net, x, channels, 320, 1), y, z, pooled)


def inception_v3(net: Net, *, size: int = 299) -> None:
    """Inception v3 without its auxiliary head."""
    x = _c(net, image(net, size), 3, 32, 3, stride=2)
    x = _c(net, _c(net, x, 32, 32, 3), 32, 64, 3, pad=1)
    x = _c(net, _c(net, net.pool(x, "MaxPool", 3, 2), 64, 80, 1), 80, 192, 3)
    x = net.pool(x, "MaxPool", 3, 2)
    for channels, pooled in ((192, 32), (256, 64), (288, 64)):
        x = _inception_a(net, x, channels, pooled)
    x = _inception_b(net, x, 288)
    for width in (128, 160, 160, 192):
        x = _inception_c(net, x, width)
    x = _inception_d(net, x)
    for channels in (1280, 2048):
        x = _inception_e(net, x, channels)
    classify(net, x, 2048)
