"""Fuzz targets of the readers of XGBoost models, and of the writer of their ONNX form.

A value or `strongroom.errors.Error`, nothing else; and whatever is read is written as ONNX, every leaf finite.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from strongroom.errors import Error
from strongroom.models.info import STANDARD_LIMITS
from strongroom.models.tree_json import parse_json, parse_ubj
from strongroom.models.trees import to_onnx
from strongroom.models.xgboost import Linear, parse_xgboost

VECTORS = Path(__file__).resolve().parents[1] / "tests" / "vectors" / "xgboost"
NAMES = ("categorical", "dart", "linear_multiclass", "pruned", "softprob", "vector_leaf", "early_stopping")
JSON = tuple((VECTORS / f"{name}.json").read_bytes() for name in NAMES)
UBJ = tuple((VECTORS / f"{name}.ubj").read_bytes() for name in NAMES)
SEEDS = {
    "fuzz_tree_json": (b'{"a":[1,-2.5e3,NaN,true,null,"\\u00e9\\"[{"],"b":{}}', b"[[[[]]]]", JSON[2]),
    "fuzz_tree_ubj": (b"{U\x01a[$d#U\x01\x3f\x80\x00\x00U\x01b[#U\x02i\x01SU\x01x}", b"[[[Z]TF]]", UBJ[2]),
    "fuzz_xgboost_json": JSON,
    "fuzz_xgboost_ubj": UBJ,
}


def fuzz_tree_json(data: bytes) -> None:
    """Bounded JSON."""
    with contextlib.suppress(Error):
        parse_json(data, nesting=16, values=100_000)


def fuzz_tree_ubj(data: bytes) -> None:
    """Bounded UBJSON."""
    with contextlib.suppress(Error):
        parse_ubj(data, nesting=16, values=100_000)


def fuzz_xgboost_json(data: bytes) -> None:
    """A model in JSON: read, proven, written as ONNX."""
    _read_and_write(data, "xgboost-json")


def fuzz_xgboost_ubj(data: bytes) -> None:
    """A model in UBJSON: read, proven, written as ONNX."""
    _read_and_write(data, "xgboost-ubj")


def _read_and_write(data: bytes, form: str) -> None:
    try:
        model = parse_xgboost(data, format=form, limits=STANDARD_LIMITS)
    except Error:
        return
    onnx, info = to_onnx(model)
    assert onnx and info.inputs[0].shape == ("rows", model.learner.features)
    if isinstance(model, Linear):
        assert np.isfinite(model.weights).all() and np.isfinite(model.bias).all()
        return
    trees = model.trees
    assert np.isfinite(trees.leaf_values).all()
    local = np.arange(trees.left.size) - np.repeat(trees.starts[:-1], np.diff(trees.starts))
    size = np.repeat(np.diff(trees.starts), np.diff(trees.starts))
    split = trees.left >= 0
    for child in (trees.left, trees.right):
        assert ((child > local) & (child < size))[split].all()
