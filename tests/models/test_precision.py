"""Less precision: what is rewritten and how, that it is the same bytes every time, and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models.networks import (
    FLOAT,
    convolution,
    images,
    layers,
    network,
    node,
    numbers,
    residual,
    words,
)
from onnx import helper, numpy_helper

from strongroom.engine import Engine
from strongroom.errors import AdmissionRefused, Error, InvalidRequest, LimitExceeded
from strongroom.models import admit, calibration, scales
from strongroom.models.calibration import ranges_of, requests_of
from strongroom.models.comparison import accuracy
from strongroom.models.info import STANDARD_LIMITS, Admitted
from strongroom.models.precision import Options, Reduced, measure, reduce_precision
from strongroom.observer import Observer
from strongroom.oip import Array

OBSERVER = Observer(Engine(), STANDARD_LIMITS)
INT8 = Options(precision="int8")


def admitted(data: bytes) -> Admitted:
    """The model, admitted by the standard limits."""
    return admit(data, format="onnx", limits=STANDARD_LIMITS)


def reduced(data: bytes, examples: dict[str, Array] | None = None, options: Options = INT8) -> Reduced:
    """The model in less precision; without examples the dynamic form."""
    model = admitted(data)
    ranges = None
    if examples is not None:
        requests = requests_of(model.info, examples, what="examples")
        ranges = measure(model, options=options, examples=requests, run=OBSERVER)
    return reduce_precision(model, options=options, ranges=ranges, limits=STANDARD_LIMITS)


def run(data: bytes, inputs: dict[str, Array]) -> Array:
    """The first output."""
    return next(iter(next(OBSERVER(data, [inputs], outputs=())).values()))


def error(data: bytes, made: Reduced, inputs: dict[str, Array]) -> float:
    """The root mean square of the difference over that of the reference."""
    before, after = run(data, inputs), run(made.admitted.onnx, inputs)
    assert before.shape == after.shape
    return float(np.sqrt(np.mean((before - after) ** 2) / np.mean(before**2)))


def counts(data: bytes) -> Counter[str]:
    """Operators of the outermost graph."""
    return Counter(made.op_type for made in onnx.ModelProto.FromString(data).graph.node)


# What is made


def test_a_network_of_convolutions_is_rewritten_whole() -> None:
    """Branches, pooling, depthwise and grouped convolutions, Gemm: everything; no ReLU or Clip is left to compute."""
    data = residual()
    made = reduced(data, images(6))
    assert made.form == "static" and made.left == ()
    assert dict(made.rewritten) == {
        "Conv": 3, "Add": 1, "MaxPool": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    found = counts(made.admitted.onnx)
    assert not found.keys() & {"Relu", "Clip", "BatchNormalization"}
    assert error(data, made, images(4, seed=21)) < 0.06


@pytest.mark.parametrize(
    ("changes", "bound"),
    [({"method": "percentile"}, 0.2), ({"per_channel": False}, 0.2)],
    ids=["percentile", "per tensor"],
)
def test_other_ways_to_find_scales(changes: dict[str, Any], bound: float) -> None:
    """Ranges without outliers, and one scale a tensor: other numbers, the same graph."""
    data = residual()
    examples = images(40)
    examples["x"][0, 0, 0, 0] = 30.0
    made = reduced(data, examples, Options(precision="int8", **changes))
    assert error(data, made, images(4, seed=21)) < bound
    assert made.admitted.canonical_sha256 != reduced(data, examples).admitted.canonical_sha256


def test_an_older_operator_set_is_rewritten_in_a_newer_ones_words() -> None:
    """Softmax over a flattened rest, Unsqueeze and Squeeze with attributes, Dropout: the same numbers after."""
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Softmax", ["c"], ["s"], axis=1),
        node("Unsqueeze", ["s"], ["u"], axes=[0]),
        node("Squeeze", ["u"], ["q"], axes=[0]),
        node("Dropout", ["q"], ["y"], ratio=0.5),
    ]
    data = network(*nodes, opset=11, w=convolution(4, 3))
    made = reduced(data, images(4))
    model = onnx.ModelProto.FromString(made.admitted.onnx)
    assert [entry.version for entry in model.opset_import] == [13]
    assert error(data, made, images(2, seed=21)) < 0.1
    assert run(made.admitted.onnx, images(2)).reshape(2, -1).sum(axis=1) == pytest.approx([1, 1], abs=1e-4)


def test_products_with_matrices_are_measured_at_each_request() -> None:
    """MatMul of three dimensions, a shared matrix stored once, Gemm with a transposed one, a lookup."""
    data = layers()
    made = reduced(data)
    assert made.form == "dynamic" and dict(made.rewritten) == {"Gather": 1, "Gemm": 1, "MatMul": 2}
    model = onnx.ModelProto.FromString(made.admitted.onnx)
    narrow = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert sorted(tuple(t.dims) for t in narrow) == [(32, 32), (32, 40), (50, 32)]
    assert error(data, made, words(4)) < 0.03
    assert len(made.admitted.onnx) < 0.5 * len(data)


def test_with_examples_matrices_have_fixed_ranges() -> None:
    """A row's answer does not depend on the other rows: each alone gives the same bits as all together."""
    made = reduced(layers(), words(8))
    assert made.form == "static" and dict(made.rewritten) == {"Gather": 1, "Gemm": 1, "MatMul": 2}
    together = run(made.admitted.onnx, words(4))
    for index in range(4):
        alone = run(made.admitted.onnx, {"x": words(4)["x"][index : index + 1]})
        assert np.array_equal(alone[0], together[index])


def test_what_is_zero_stays_zero() -> None:
    """An input of nothing but zeros has no range to measure, and gives what the bias says."""
    weights = numbers(32, 40)
    weights[:, 3] = 0
    data = network(node("Gemm", ["x", "w", "c"], ["y"]), x=(None, 32), w=weights, c=numbers(40, seed=2))
    zeros = {"x": np.zeros((2, 32), np.float32)}
    for made in (reduced(data), reduced(data, {"x": numbers(5, 32)})):
        assert run(made.admitted.onnx, zeros) == pytest.approx(run(data, zeros), abs=1e-2)


def test_halves() -> None:
    """Weights in 16 bits, half the size, nearly the same numbers; what does not fit into 16 bits stays."""
    data = layers()
    made = reduced(data, options=Options(precision="fp16"))
    assert made.form == "fp16" and error(data, made, words(4)) < 1e-3
    assert len(made.admitted.onnx) < 0.6 * len(data)
    large = network(
        node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "v"], ["y"]),
        x=(None, 32), w=numbers(32, 32), v=numbers(32, 32) * np.float32(1e5),
    )  # fmt: skip
    kept = onnx.ModelProto.FromString(reduced(large, options=Options(precision="fp16")).admitted.onnx)
    assert {t.name for t in kept.graph.initializer if t.data_type == FLOAT} == {"v"}


@pytest.mark.parametrize("name", ["n_c", "c"])
def test_excluded_nodes_stay_as_they_are(name: str) -> None:
    """By their own name or their output's: the node and its weights are the same, bit for bit."""
    data = residual()
    made = reduced(data, images(4), Options(precision="int8", exclude=(name,)))
    assert dict(made.left) == {"Conv": 1}
    before, after = (onnx.ModelProto.FromString(m).graph for m in (admitted(data).onnx, made.admitted.onnx))
    (old,), (new,) = ([n for n in graph.node if n.name == "n_c"] for graph in (before, after))
    assert (old.input[1:], old.output, old.attribute) == (new.input[1:], new.output, new.attribute)
    for weight in old.input[1:]:
        (was,), (now,) = ([t for t in graph.initializer if t.name == weight] for graph in (before, after))
        assert was == now
    assert error(data, made, images(4, seed=21)) < 0.06


def test_an_excluded_norm_and_table_stay() -> None:
    """BatchNormalization is not folded away, a table not rounded, in any form."""
    made = reduced(residual(), images(4), Options(precision="int8", exclude=("n_an",)))
    assert counts(made.admitted.onnx)["BatchNormalization"] == 1
    for precision in ("int8", "fp16"):
        kept = reduced(layers(), options=Options(precision=precision, exclude=("n_e",)))
        assert "table" in {t.name for t in onnx.ModelProto.FromString(kept.admitted.onnx).graph.initializer}


def test_inner_graphs_read_what_they_read_before() -> None:
    """A value that a branch of an If reads keeps its name and meaning; weights inside the branch stay."""
    inside = [helper.make_node("Add", ["c", "c"], ["t"])], [helper.make_node("Neg", ["c"], ["e"])]
    then, other = (
        helper.make_graph(nodes, nodes[0].output[0], [],
                          [helper.make_tensor_value_info(nodes[0].output[0], FLOAT, None)])
        for nodes in inside
    )  # fmt: skip
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Greater", ["m", "zero"], ["flag"]),
        node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    data = network(*nodes, w=convolution(4, 3), zero=np.array(0, np.float32))
    made = reduced(data, images(4))
    assert error(data, made, images(2, seed=21)) < 0.03


def test_constants_of_exporters_are_seen_through() -> None:
    """Constant nodes, Identity of a constant, and a transposed matrix are weights like any other."""
    value = numpy_helper.from_array(numbers(40, 32))
    nodes = [
        node("Constant", [], ["k"], value=value),
        node("Identity", ["k"], ["i"]),
        node("Transpose", ["i"], ["w"], perm=[1, 0]),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    data = network(*nodes, x=(None, 32))
    made = reduced(data)
    assert dict(made.rewritten) == {"MatMul": 1}
    assert not counts(made.admitted.onnx).keys() & {"Constant", "Identity", "Transpose"}
    assert error(data, made, {"x": numbers(4, 32, seed=9)}) < 0.03
    # In halves: the constant is a weight, and nothing else changes. Excluded, or read by name, it stays.
    halves = reduced(data, options=Options(precision="fp16"))
    assert dict(halves.rewritten) == {"Identity": 1} and len(halves.admitted.onnx) < 0.7 * len(data)
    assert counts(halves.admitted.onnx) == {"Cast": 1, "Identity": 1, "Transpose": 1, "MatMul": 1}
    assert error(data, halves, {"x": numbers(4, 32, seed=9)}) < 1e-3
    with pytest.raises(Error) as refused:
        reduced(data, options=Options(precision="fp16", exclude=("k",)))
    assert refused.value.code == "precision_nothing"


@pytest.mark.parametrize("name", ["dynamic", "static", "fp16"])
def test_the_result_is_its_own_canonical_form(name: str) -> None:
    """What is made passes admission, strict, and comes out of it as it went in."""
    made = reduced(
        layers(), words(4) if name == "static" else None,
        Options(precision="fp16" if name == "fp16" else "int8"),
    )  # fmt: skip
    again = admitted(made.admitted.onnx)
    assert made.form == name and again.onnx == made.admitted.onnx == reduced(
        layers(), words(4) if name == "static" else None,
        Options(precision="fp16" if name == "fp16" else "int8"),
    ).admitted.onnx  # fmt: skip


DIGEST = """
import sys
sys.path.insert(0, sys.argv[1])
from models.test_precision import *
print(reduced(residual(), images(6)).admitted.canonical_sha256, reduced(layers()).admitted.canonical_sha256)
"""


@pytest.mark.slow
def test_another_process_makes_the_same_bytes() -> None:
    """With another hash seed: nothing hangs on the order of a set."""
    command = [sys.executable, "-c", DIGEST, str(Path(__file__).resolve().parents[1])]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"})
    here = [reduced(residual(), images(6)), reduced(layers())]
    assert told.stdout.split() == [made.admitted.canonical_sha256 for made in here]


def test_noise_in_the_last_bits_of_activations_changes_nothing() -> None:
    """Another processor sums in another order: the ranges are the same."""

    def shaken(model: bytes, requests: Any, *, outputs: tuple[str, ...]) -> Any:
        for values in OBSERVER(model, requests, outputs=outputs):
            yield {name: value * np.float32(1 + 2e-7) for name, value in values.items()}

    model = admitted(residual())
    requests = requests_of(model.info, images(6), what="examples")
    there = measure(model, options=INT8, examples=requests, run=shaken)
    assert there == measure(model, options=INT8, examples=requests, run=OBSERVER)


# Numbers


def test_sums_of_products_fit_into_sixteen_bits() -> None:
    """Two products of the largest activation and weight: what VPMADDUBSW adds without saturating."""
    assert 2 * 255 * scales.WEIGHT_MAX <= 2**15 - 1 < 2 * 255 * 127
    values, scale = scales.weights(numbers(16, 4, 3, 3), axis=0)
    assert scale.shape == (16,) and set(np.abs(values).reshape(16, -1).max(axis=1)) == {scales.WEIGHT_MAX}


def test_widened_ranges() -> None:
    """Away from zero, by less than a 64th, the same for neighbours in float32; zero is zero."""
    assert scales.widened(0.0) == 0.0
    for value in (1e-9, 0.3, 1.0, 5.999, 1e9):
        assert value <= scales.widened(value) <= value * (1 + 1 / 64)
        assert scales.widened(-value) == -scales.widened(value)
    scale, zero = scales.activation(-1.0, 3.0)
    assert float(scale) == pytest.approx(4 / 255) and zero == 64
    assert scales.activation(0.0, 0.0)[0] > 0


def test_weights_without_any_spread() -> None:
    """A channel of zeros has a scale above zero; a bias larger than its weights allow makes them coarser."""
    values, scale = scales.weights(np.zeros((2, 3, 1, 1), np.float32), axis=0)
    assert not values.any() and (scale > 0).all()
    least = scales.least_scale(np.array([1e6, 0], np.float32), np.asarray(np.float32(1e-3)))
    _, scale = scales.weights(np.full((2, 3, 1, 1), 1e-9, np.float32), axis=0, least=least)
    whole, _ = scales.bias(
        np.array([1e6, 0], np.float32), activation_scale=np.asarray(np.float32(1e-3)), weight_scale=scale
    )
    assert 0 < whole[0] < 2**31 - 1


# Examples


def test_examples_are_rows_or_stacked() -> None:
    """Rows of an open first dimension, one more dimension for all, or one request."""
    info = admitted(residual()).info
    assert len(requests_of(info, images(3), what="e")) == 3
    assert len(requests_of(info, {"x": numbers(4, 2, 3, 12, 12)}, what="e")) == 4
    fixed = admitted(network(node("Conv", ["x", "w"], ["y"]), x=(2, 3, 12, 12), w=convolution(4, 3))).info
    assert [r["x"].shape for r in requests_of(fixed, images(2), what="e")] == [(2, 3, 12, 12)]


NAN = numbers(2, 3, 12, 12)
NAN[1, 0, 0, 0] = np.nan
INFINITE = NAN.copy()
INFINITE[1, 0, 0, 0] = np.inf


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({}, "input_missing"),
        ({"z": numbers(2, 3, 12, 12)}, "input_unknown"),
        ({**images(2), "z": numbers(2)}, "input_unknown"),
        ({"x": numbers(2, 3, 12, 12).astype(np.float64)}, "input_dtype"),
        ({"x": numbers(2, 4, 12, 12)}, "input_shape"),
        ({"x": numbers(3, 12, 12)}, "input_rank"),
        ({"x": NAN}, "precision_examples"),
        ({"x": INFINITE}, "precision_examples"),
        ({"x": numbers(0, 3, 12, 12)}, "precision_examples"),
    ],
    ids=["none", "other name", "extra", "dtype", "shape", "rank", "nan", "infinite", "empty"],
)
def test_examples_that_are_no_requests(arrays: dict[str, Array], code: str) -> None:
    """Refused by the check of requests, or because no range can be made of them."""
    with pytest.raises(InvalidRequest) as refused:
        requests_of(admitted(residual()).info, arrays, what="examples")
    assert refused.value.code == code


def test_too_many_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted before any is made."""
    monkeypatch.setattr(calibration, "MAX_EXAMPLES", 2)
    with pytest.raises(LimitExceeded) as refused:
        requests_of(admitted(residual()).info, images(3), what="examples")
    assert refused.value.code == "precision_examples"


def test_a_network_that_overflows_has_no_range() -> None:
    """Finite examples, infinite values inside."""
    data = network(
        node("Mul", ["x", "big"], ["b"]), node("Mul", ["b", "big"], ["c"]), node("Conv", ["c", "w"], ["y"]),
        big=np.array(1e30, np.float32), w=convolution(4, 3),
    )  # fmt: skip
    with pytest.raises(InvalidRequest) as refused:
        reduced(data, images(2))
    assert refused.value.code == "precision_examples"


def test_percentiles_leave_outliers_out() -> None:
    """One element in a hundred thousand does not make the range."""
    values = np.linspace(0, 1, 100_000, dtype=np.float32)
    values[0] = 1000.0
    found = ranges_of(b"", ("x",), [{"x": values}], run=OBSERVER, method="percentile")["x"]
    assert 0 <= found[0] < 1e-3 and 0.9 < found[1] < 2


@pytest.mark.parametrize(
    "ends",
    [(1.0, np.nextafter(np.float32(1), np.float32(2))), (1e36, 1e36), (0.0, 1e-45), (-3e36, 3e36)],
    ids=["two neighbours", "one large number", "subnormal", "wide"],
)
def test_percentiles_of_any_range(ends: tuple[float, float]) -> None:
    """However narrow it is beside its numbers: it has bins, and what comes out holds, with zero, the values."""
    values = np.array(ends, np.float32)
    low, high = ranges_of(b"", ("x",), [{"x": values}], run=OBSERVER, method="percentile")["x"]
    assert min(low, 0.0) <= values.min() and values.max() <= max(high, 0.0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["last", "first"])
def test_a_nan_in_any_example_is_no_range(order: tuple[int, int]) -> None:
    """Also where other examples have numbers."""
    given = [{"x": np.ones(4, np.float32)}, {"x": np.array([1, np.nan], np.float32)}]
    with pytest.raises(InvalidRequest) as refused:
        ranges_of(b"", ("x",), [given[i] for i in order], run=OBSERVER, method="minmax")
    assert refused.value.code == "precision_examples"


# Refusals

GEMM = network(node("Gemm", ["x", "w"], ["y"]), x=(None, 32), w=numbers(32, 40))


@pytest.mark.parametrize(
    ("data", "options", "examples", "code"),
    [
        (GEMM, Options(precision="int4"), None, "precision_unsupported"),
        (GEMM, Options(precision="int8", method="guess"), None, "precision_options"),
        (GEMM, Options(precision="int8", exclude=("missing",)), None, "precision_options"),
        (GEMM, Options(precision="int8", exclude=("",)), None, "precision_options"),
        (GEMM, Options(precision="int8", exclude=("y",)), None, "precision_nothing"),
        (network(node("Relu", ["x"], ["y"])), INT8, None, "precision_nothing"),
        (network(node("Relu", ["x"], ["y"])), INT8, images(2), "precision_nothing"),
        (network(node("Relu", ["x"], ["y"])), Options(precision="fp16"), None, "precision_nothing"),
        (network(node("Conv", ["x", "w"], ["y"]), w=convolution(4, 3)), INT8, None, "precision_nothing"),
        (network(node("Gemm", ["x", "w"], ["y"]), x=(None, 32), w=np.full((32, 40), np.nan, np.float32)), INT8,
         None, "precision_nothing"),
        (network(node("Gemm", ["x", "w"], ["y"], transA=1), x=(32, 32), w=numbers(32, 40)), INT8, None,
         "precision_nothing"),
        (network(node("Conv", ["x", "w"], ["y"]), opset=10, w=convolution(4, 3)), INT8, images(2),
         "precision_opset"),
        (network(node("Relu", ["x"], ["y"]), opset=10), INT8, None, "precision_opset"),
        (network(node("Relu", ["x"], ["y"]), opset=8), Options(precision="fp16"), None, "precision_opset"),
        (network(node("Conv", ["x", "w"], ["c"]), node("Dropout", ["c"], ["y", "mask"]),
                 node("Not", ["mask"], ["n"]), opset=11, w=convolution(4, 3)), INT8, images(2),
         "precision_opset"),
    ],
    ids=["precision", "method", "exclude", "exclude nothing", "all excluded", "nothing", "nothing static",
         "nothing fp16", "convolution without examples", "nan weights", "transposed input", "opset 10",
         "opset 10 dynamic", "opset 8", "mask"],
)  # fmt: skip
def test_what_cannot_be_reduced(
    data: bytes, options: Options, examples: dict[str, Array] | None, code: str
) -> None:
    """Each for its own reason; nothing is returned as it was."""
    with pytest.raises((InvalidRequest, AdmissionRefused)) as refused:
        reduced(data, examples, options)
    assert refused.value.code == code


def test_learners_are_not_networks() -> None:
    """A model of ai.onnx.ml alone has no product with weights."""
    made = helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml")
    model = onnx.ModelProto.FromString(network(made, x=(None, 4)))
    del model.opset_import[:]
    model.opset_import.add(domain="ai.onnx.ml", version=1)
    with pytest.raises(AdmissionRefused) as refused:
        reduced(model.SerializeToString())
    assert refused.value.code == "precision_nothing"


@pytest.mark.parametrize("form", ["dynamic", "static"])
def test_a_model_in_eight_bits_is_not_reduced_again(form: str) -> None:
    """Neither of what this makes."""
    made = reduced(layers(), words(2) if form == "static" else None)
    with pytest.raises(AdmissionRefused) as refused:
        reduced(made.admitted.onnx)
    assert refused.value.code == "precision_twice"


@pytest.mark.parametrize(
    "changes",
    [{"x": None}, {"other": (0.0, 1.0)}, {"x": (1.0, -1.0)}, {"x": (0.0, float("nan"))}, {"x": (0.0, 1e38)}],
    ids=["missing", "other", "reversed", "nan", "large"],
)
def test_ranges_of_something_else(changes: dict[str, Any]) -> None:
    """Exactly the values that the form needs, each from a finite number to one that is not less."""
    model = admitted(GEMM)
    ranges = {n: r for n, r in ({"x": (-1.0, 1.0)} | changes).items() if r is not None}
    assert reduce_precision(model, options=INT8, ranges={"x": (-1.0, 1.0)}, limits=STANDARD_LIMITS)
    with pytest.raises(InvalidRequest) as refused:
        reduce_precision(model, options=INT8, ranges=ranges, limits=STANDARD_LIMITS)
    assert refused.value.code == "precision_ranges"


@pytest.mark.parametrize("ends", [(0.0, 0.0), (-1e37, 1e37)], ids=["no range", "wide"])
def test_numbers_without_a_scale_are_refused(ends: tuple[float, float]) -> None:
    """Instead of a network with infinite scales, of which NaN comes; and without a warning of numpy's."""
    data = network(node("Conv", ["x", "w", "b"], ["y"]), w=np.full((4, 3, 3, 3), 1e30, np.float32),
                   b=np.full(4, 1e30, np.float32))  # fmt: skip
    with pytest.raises(AdmissionRefused) as refused:
        reduce_precision(admitted(data), options=INT8, ranges={"x": ends, "y": ends}, limits=STANDARD_LIMITS)
    assert refused.value.code == "precision_scale"


def test_a_norm_of_negative_variance_stays() -> None:
    """Its factor is no number; it is left to the engine, without a warning of numpy's."""
    parts = {n: np.full(4, v, np.float32) for n, v in (("s", 1), ("o", 0), ("m", 0), ("v", -1))}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", *parts], ["y"])]
    made = reduce_precision(
        admitted(network(*nodes, w=convolution(4, 3), **parts)), options=INT8,
        ranges={"x": (-1.0, 1.0), "c": (-1.0, 1.0)}, limits=STANDARD_LIMITS,
    )  # fmt: skip
    assert counts(made.admitted.onnx)["BatchNormalization"] == 1


def shared(count: int, side: int, **changes: Any) -> bytes:
    """One square matrix, transposed by a node of its own for each of `count` layers."""
    nodes = []
    for i in range(count):
        nodes.append(node("Transpose", ["w"], [f"t{i}"], perm=[1, 0]))
        alpha = {"alpha": 1.0 + i} if changes.get("factors") else {}
        nodes.append(node("Gemm", [f"y{i - 1}" if i else "x", f"t{i}"], [f"y{i}"], **alpha))
    nodes[-1].output[0] = "y"
    return network(*nodes, x=(1, side), w=numbers(side, side))


def test_shared_weights_are_transposed_and_rounded_once() -> None:
    """As an exporter writes layers that share their weights."""
    data = shared(8, 64)
    made = reduced(data)
    assert dict(made.rewritten) == {"Gemm": 8}
    assert len(made.admitted.onnx) < len(data)
    assert error(data, made, {"x": numbers(1, 64, seed=9)}) < 0.3


def test_a_small_file_makes_no_large_network() -> None:
    """Each Gemm with a factor of its own asks for a copy of the one matrix."""
    with pytest.raises(LimitExceeded) as refused:
        reduced(shared(40, 400, factors=True))
    assert refused.value.code == "precision_size"


def test_less_precision_takes_no_more_room() -> None:
    """Copies that stay within what rewriting may make are still no model of less bytes, and quotas count the upload."""
    data = shared(14, 500, factors=True)
    with pytest.raises(LimitExceeded, match=f"it has {len(admitted(data).onnx)}") as refused:
        reduced(data)
    assert refused.value.code == "precision_size"


def test_messages_hold_no_content() -> None:
    """Of examples or weights; a refusal names shapes, types and names only."""
    secret = np.full((2, 3, 12, 12), 1234.5, np.float32)
    secret[0, 0, 0, 0] = np.nan
    with pytest.raises(Error) as refused:
        requests_of(admitted(residual()).info, {"x": secret}, what="examples")
    assert "1234" not in refused.value.message


def test_the_digest_is_that_of_the_bytes() -> None:
    """What a report says about the result is what was made."""
    made = reduced(layers()).admitted
    assert made.canonical_sha256 == hashlib.sha256(made.onnx).hexdigest()


def test_no_sum_saturates() -> None:
    """The largest activations times the largest weights, all of one sign: every kernel gives the exact sum."""
    ones = {"x": np.full((3, 512), 2.0, np.float32)}
    data = network(node("MatMul", ["x", "w"], ["y"]), x=(None, 512), w=np.ones((512, 48), np.float32))
    for made in (reduced(data), reduced(data, ones)):
        assert run(made.admitted.onnx, ones) == pytest.approx(1024, rel=1e-3)
    planes = {"x": np.full((1, 32, 6, 6), 2.0, np.float32)}
    data = network(node("Conv", ["x", "w"], ["y"]), x=(None, 32, 6, 6), w=np.ones((16, 32, 3, 3), np.float32))
    assert run(reduced(data, planes).admitted.onnx, planes) == pytest.approx(32 * 9 * 2, rel=0.01)


@pytest.mark.slow
def test_a_trained_classifier_keeps_its_accuracy() -> None:
    """Handwritten digits of 8 x 8: three hundred that were not trained on, in every form."""
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="not exercised here: scikit-learn is not installed"
    )
    pixels, labels = datasets.load_digits(return_X_y=True)
    pixels = np.asarray(pixels / 16, np.float32)
    first = numbers(64, 256, scale=0.3)
    seen = np.maximum(pixels[:-300] @ first, 0)  # random features, and the best plane behind them
    second = np.linalg.solve(seen.T @ seen + 10 * np.eye(256), seen.T @ np.eye(10)[labels[:-300]])
    nodes = [node("MatMul", ["x", "a"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "b"], ["y"])]
    data = network(*nodes, x=(None, 64), a=first, b=np.asarray(second, np.float32))
    tests = {"x": pixels[-300:]}
    rate = accuracy([{"y": run(data, tests)}], labels[-300:], output="y")
    assert rate > 0.9
    for made in (
        reduced(data),
        reduced(data, {"x": pixels[:100]}),
        reduced(data, options=Options(precision="fp16")),
    ):
        after = run(made.admitted.onnx, tests)
        assert accuracy([{"y": after}], labels[-300:], output="y") >= rate - 0.01
        assert np.mean(after.argmax(axis=1) == run(data, tests).argmax(axis=1)) >= 0.98
