"""No false refusals: what exporters write is admitted, runs as in bare onnxruntime, and stays within its bounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import onnx
import pytest
from conftest import SHARED
from onnx import TensorProto

from strongroom.engine import Engine
from strongroom.models import admit
from strongroom.models.info import STANDARD_BUDGET, STANDARD_LIMITS, Admitted
from strongroom.models.look import Box, Look, Plans
from strongroom.oip import bytes_array

FILES = sorted((Path(__file__).parent / "exporters").glob("*.onnx"))
TWINS = {name: vector.good for name, vector in hostile.VECTORS.items()}
SIZES = {"n": 3, "s": 5, "h": 16, "w": 24, "batch_size": 3}


def feed(data: bytes) -> dict[str, Any]:
    """A small request."""
    rng = np.random.default_rng(3)
    model = onnx.load_from_string(data)
    fixed = {tensor.name for tensor in model.graph.initializer}
    kinds = {
        TensorProto.FLOAT: np.float32, TensorProto.INT64: np.int64, TensorProto.INT32: np.int32,
        TensorProto.BOOL: np.bool_,
        TensorProto.INT8: np.int8, TensorProto.STRING: object,
    }  # fmt: skip
    arrays = {}
    for value in model.graph.input:
        if value.name in fixed:
            continue
        tensor = value.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else SIZES.get(d.dim_param, 3) for d in tensor.shape.dim
        ]
        numbers = rng.integers(0, 2, shape)
        kind = kinds[tensor.elem_type]
        arrays[value.name] = (
            bytes_array([b"%d" % n for n in numbers.reshape(-1)], shape=tuple(shape))
            if kind is object
            else np.asarray(numbers, kind)
        )
    return arrays


def bounds(data: bytes, arrays: dict[str, Any]) -> Look:
    """A look at the model for requests of exactly these sizes at most."""
    model = onnx.load_from_string(data)
    imports = {"" if e.domain == "ai.onnx" else e.domain: e.version for e in model.opset_import}
    axes = max((array.ndim for array in arrays.values()), default=1) or 1
    sizes = tuple(max((a.shape[n] for a in arrays.values() if a.ndim > n), default=1) for n in range(axes))
    plans = Plans.of(model, {})
    look = Look(model, plans, imports=imports, budget=STANDARD_BUDGET, box=Box(sizes), strict=True)
    look.run()
    return look


def run(admitted: Admitted) -> None:
    """Runs it, and compares what comes out with what was said before."""
    arrays = feed(admitted.onnx)
    found = bounds(admitted.onnx, arrays).found
    results = Engine().load(admitted).run(arrays, outputs=())
    for value, array in zip(found.outputs, results.values(), strict=True):
        assert value.dims is not None and len(value.dims) == array.ndim
        for size, actual in zip(value.dims, array.shape, strict=True):
            low, high = (size.lo, size.hi) if hasattr(size, "lo") else (size, size)
            assert low <= actual <= high
    assert sum(array.nbytes for array in results.values() if array.dtype != object) <= found.peak_bytes


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_exporters_models_are_admitted_and_run_within_their_bounds(path: Path) -> None:
    """scikit-learn, LightGBM, CatBoost, and both exporters of PyTorch."""
    admitted = admit(path.read_bytes(), format="onnx", limits=STANDARD_LIMITS)
    assert "unbounded" not in admitted.info.admission.flags
    run(admitted)


@pytest.mark.parametrize(
    "name", [n for n in TWINS if n not in ("large convolution", "iterations of iterations")]
)
def test_good_twins_run_within_their_bounds(name: str) -> None:
    """Every vector's twin, in onnxruntime: no shape is outside what was said."""
    data = hostile.encoded(TWINS[name]())
    opsets = {entry.domain: entry.version for entry in onnx.load_from_string(data).opset_import}
    if opsets[""] > 26 or onnx.load_from_string(data).ir_version > 13 or "ArrayFeature" in str(data):
        pytest.skip("not exercised here: only that the versions at the edge are admitted")
    run(admit(data, format="onnx", limits=STANDARD_LIMITS))


@pytest.mark.slow
def test_quantised_models_are_admitted(tmp_path: Path) -> None:
    """Quantise and dequantise nodes around every operator, as onnxruntime's own tool writes them."""
    pytest.importorskip("onnxruntime.quantization")
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

    source, static, dynamic = (str(tmp_path / name) for name in ("m.onnx", "s.onnx", "d.onnx"))
    made = hostile.model(
        hostile.node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), hostile.node("Relu", ["c"], ["r"]),
        hostile.node("GlobalAveragePool", ["r"], ["p"]), hostile.node("Flatten", ["p"], ["f"]),
        hostile.node("Gemm", ["f", "v"], ["y"]),
        inputs=[hostile.value("x", shape=["n", 3, 8, 8])],
        outputs=[hostile.value("y", shape=["n", 2])],
        constants=[hostile.weights([4, 3, 3, 3]), hostile.weights([4, 2], "v")],
    )  # fmt: skip
    onnx.save(made, source)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # has no types
        def __init__(self) -> None:
            self.rest = [{"x": np.random.default_rng(n).random((1, 3, 8, 8), np.float32)} for n in range(3)]

        def get_next(self) -> Any:
            return self.rest.pop() if self.rest else None

    quantize_static(source, static, Reader(), per_channel=True)
    quantize_dynamic(source, dynamic)
    for path in (static, dynamic):
        run(admit(Path(path).read_bytes(), format="onnx", limits=STANDARD_LIMITS))


@pytest.mark.slow
def test_published_architectures_are_admitted(tmp_path: Path) -> None:
    """Small forms of ResNet, SqueezeNet, BERT and GPT-2, made beside this checkout."""
    script = SHARED / "make_models.py"
    if not script.is_file():
        pytest.skip("not exercised here: the script that makes networks is not beside this checkout")
    subprocess.run(
        [sys.executable, script, "--out", tmp_path, "--group", "tiny"], check=True, capture_output=True
    )
    files = list(tmp_path.glob("*.onnx"))
    assert files
    for path in files:
        assert admit(path.read_bytes(), format="onnx", limits=STANDARD_LIMITS).info.admission.rooms
