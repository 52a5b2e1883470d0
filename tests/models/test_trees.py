"""The ONNX form: margins bit-equal to XGBoost's, for every booster, objective and generation that is recorded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_walk import margins
from samples import (
    NAN,
    VECTORS,
    as_json,
    categorical_tree,
    changed,
    linear,
    model,
    parse,
    tree,
    vector_tree,
)
from test_forest import chain

from strongroom.engine import onnxruntime
from strongroom.models import admit
from strongroom.models.forest import MAX_TREE_DEPTH
from strongroom.models.info import STANDARD_LIMITS, ModelInfo, TensorSpec
from strongroom.models.trees import base_margin, to_onnx
from strongroom.models.xgboost import OBJECTIVES, Forest, Linear, parse_xgboost

PARAM = "learner/learner_model_param"
MODEL = "learner/gradient_booster/model"
RECORDED = SHARED / "xgboost-models"
OWN = sorted(path.relative_to(VECTORS).with_suffix("") for path in VECTORS.rglob("*.npz"))
FORMS = {"xgboost-json": ".json", "xgboost-ubj": ".ubj"}


def session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(data: bytes, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(predictions, margin) of one thread."""
    predictions, margin = session(data).run(["predictions", "margin"], {"features": X.astype(np.float32)})
    return predictions, margin


def answer(document: dict[str, Any], X: Any) -> tuple[np.ndarray, np.ndarray]:
    return run(to_onnx(parse(document))[0], np.array(X, dtype=np.float32))


def xgboost_answer(document: dict[str, Any], X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What XGBoost itself predicts: (predict, margin). Only for documents made here."""
    xgboost = pytest.importorskip("xgboost", reason="not exercised here: xgboost is not installed")
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(as_json(document)))
    # A model without feature types takes codes as they are only if the rows say they are codes.
    types = document["learner"]["feature_types"] or None
    data = xgboost.DMatrix(X, nthread=1, feature_types=types, enable_categorical=types is not None)
    return booster.predict(data), booster.predict(data, output_margin=True)


def objective_member(name: str) -> dict[str, Any]:
    """The objective with the parameters that XGBoost wants to see, out of the vectors."""
    for path in sorted(VECTORS.glob("*.json")):
        found: dict[str, Any] = json.loads(path.read_text())["learner"]["objective"]
        if found["name"] == name:
            return found
    raise AssertionError(name)


def compare(path: Path, *, walk: bool) -> None:
    """Both forms of a recorded model give the recorded answers, and the same ONNX file."""
    with np.load(path.with_suffix(".npz")) as recorded:
        X, predict, margin = recorded["X"], recorded["predict"], recorded["margin"]
    written = []
    for form, suffix in FORMS.items():
        parsed = parse_xgboost(path.with_suffix(suffix).read_bytes(), format=form, limits=STANDARD_LIMITS)
        data, info = to_onnx(parsed)
        written.append(data)
        got_predict, got_margin = run(data, X)
        assert got_margin.shape == margin.shape and got_predict.shape == predict.shape
        assert got_margin.dtype == got_predict.dtype == np.float32
        assert [spec.shape[1:] for spec in info.outputs if spec.shape] == [
            predict.shape[1:],
            margin.shape[1:],
        ]
        if isinstance(parsed, Linear):
            assert (np.abs(got_margin - margin) <= 1e-6 * np.maximum(1, np.abs(margin))).all()
        else:
            assert got_margin.tobytes() == margin.tobytes()
            if walk:
                assert margins(parsed, X).reshape(margin.shape).tobytes() == margin.tobytes()
        assert (np.abs(got_predict - predict) <= 1e-5 * np.abs(predict)).all()
        looked = replace(info, admission=replace(info.admission, level="strict"))
        assert ModelInfo.from_json(looked.to_json()) == looked and info.format == form
    assert written[0] == written[1]


@pytest.mark.parametrize("name", OWN, ids=str)
def test_own_vectors(name: Path) -> None:
    """Margins of trees are XGBoost's to the bit, of gblinear within 1e-6 max(1, |m|); predictions within 1e-5."""
    compare(VECTORS / name, walk=True)


def _recorded() -> list[Path]:
    return sorted(path.relative_to(RECORDED).with_suffix("") for path in RECORDED.rglob("*.npz"))


@pytest.mark.skipif(
    not RECORDED.is_dir(), reason="not exercised here: ../shared/xgboost-models is not beside this checkout"
)
@pytest.mark.parametrize("name", _recorded(), ids=str)
def test_recorded_models(name: Path) -> None:
    """The same for models of real data, of 2.1.1, 3.2.0 and 3.4.1."""
    compare(RECORDED / name, walk=False)


@pytest.mark.slow
def test_the_vectors_are_what_xgboost_still_says() -> None:
    """generate.py --check trains every model anew and finds the recorded bytes."""
    xgboost = pytest.importorskip("xgboost", reason="not exercised here: xgboost is not installed")
    if xgboost.__version__ != "3.2.0" or sys.platform != "linux":
        pytest.skip("not exercised here: the vectors were trained with XGBoost 3.2.0 on Linux")
    command = [sys.executable, str(VECTORS / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout


# Metadata


def test_metadata_of_a_classifier() -> None:
    """Input, outputs, shapes and rules as requests are checked against them."""
    names = changed(model(), "learner/feature_names", ["a", "b", "c"])
    info = to_onnx(parse(names))[1]
    assert info.inputs == (TensorSpec("features", "FP32", ("rows", 3)),)
    assert info.outputs == (
        TensorSpec("predictions", "FP32", ("rows",)),
        TensorSpec("margin", "FP32", ("rows",)),
    )
    assert info.primary_output == "predictions" and info.feature_names == ("a", "b", "c")
    rules = info.rules
    assert (rules.round_to_float32, rules.reject_infinite, rules.allow_nan) == (True, True, True)
    assert rules.integer_columns == () and to_onnx(parse(model(categorical_tree())))[
        1
    ].rules.integer_columns == (1,)


def test_shapes_are_xgboosts() -> None:
    """Class numbers have one dimension though margins have two; two outputs have two."""
    wide = changed(changed(model(tree(), tree()), f"{PARAM}/num_class", "2"), f"{MODEL}/tree_info", [0, 1])
    for objective, shape in (("multi:softmax", ("rows",)), ("multi:softprob", ("rows", 2))):
        info = to_onnx(parse(changed(wide, "learner/objective", {"name": objective})))[1]
        assert [spec.shape for spec in info.outputs] == [shape, ("rows", 2)]


def test_the_written_file_is_admitted_and_valid() -> None:
    """`admit` makes the proof; the bytes are those of `to_onnx`, pass ONNX's own checker, and are always the same."""
    for document in (
        model(),
        model(categorical_tree(), tree()),
        model(vector_tree(rows=True), outputs=2),
        linear(),
    ):
        data = as_json(document)
        admitted = admit(data, format="xgboost-json", limits=STANDARD_LIMITS)
        assert admitted.onnx == to_onnx(parse(document))[0] == to_onnx(parse(document))[0]
        assert admitted.sha256 == hashlib.sha256(data).hexdigest()
        assert admitted.canonical_sha256 == hashlib.sha256(admitted.onnx).hexdigest()
        onnx.checker.check_model(onnx.load_from_string(admitted.onnx), full_check=True)


# Rows


@pytest.mark.parametrize("name", ["binary", "categorical_softprob", "vector_leaf", "linear_unscaled"])
def test_a_row_means_the_same_in_any_company(name: str) -> None:
    """One row, seven and all of them give the same bits; none gives none."""
    X = np.load(VECTORS / f"{name}.npz")["X"]
    running = session(
        to_onnx(
            parse_xgboost(
                (VECTORS / f"{name}.ubj").read_bytes(), format="xgboost-ubj", limits=STANDARD_LIMITS
            )
        )[0]
    )
    whole = running.run(None, {"features": X})
    for size in (1, 7):
        parts = [running.run(None, {"features": X[at : at + size]}) for at in range(0, len(X), size)]
        for output, together in enumerate(whole):
            assert np.concatenate([part[output] for part in parts]).tobytes() == together.tobytes()
    assert [part.shape[0] for part in running.run(None, {"features": X[:0]})] == [0, 0]


CODES = [
    -(2.0**31),
    -7,
    -1,
    -0.0,
    0,
    1,
    2,
    3,
    4,
    5,
    31,
    32,
    33,
    63,
    64,
    1000,
    2**24 - 1,
    2**24,
    2**24 + 2,
    3e38,
    NAN,
]


@pytest.mark.slow
def test_codes_that_were_never_seen_follow_xgboost() -> None:
    """Negative, unseen, huge and missing codes go where XGBoost sends them, in sets of any size and either default."""
    sets = [[0], [1, 4], [0, 31, 32, 33, 64], list(range(0, 200, 3)), [2**24 - 1]]
    trees = []
    for number, categories in enumerate(sets):
        trees.append(
            tree(
                categories=categories,
                categories_nodes=[0],
                categories_segments=[0],
                categories_sizes=[len(categories)],
                split_type=[1, 0, 0, 0, 0],
                split_indices=[1, 2, 0, 0, 0],
                split_conditions=[NAN, 0.5, 2.0**number, 100.0 * 2**number, 100.0 * 2**number],
                default_left=[number % 2, 0, 0, 0, 0],
            )
        )
    document = changed(model(*trees), "learner/feature_types", ["q", "c", "q"])
    X = np.array([[0, code, 0] for code in CODES], dtype=np.float32)
    predict, margin = answer(document, X)
    expected_predict, expected_margin = xgboost_answer(document, X)
    assert margin.tobytes() == expected_margin.tobytes() and predict.tobytes() == expected_predict.tobytes()


def test_why_category_columns_must_hold_whole_numbers() -> None:
    """XGBoost cuts a fraction off, ONNX compares as it is: the input rules name the column, so neither happens."""
    document = changed(model(categorical_tree()), "learner/feature_types", ["q", "c", "q"])
    X = np.array([[0, 1.5, 0]], dtype=np.float32)
    assert xgboost_answer(document, X)[1] != answer(document, X)[1]
    assert to_onnx(parse(document))[1].rules.integer_columns == (1,)


def test_why_infinities_are_refused() -> None:
    """XGBoost does not take them."""
    xgboost = pytest.importorskip("xgboost", reason="not exercised here: xgboost is not installed")
    with pytest.raises(xgboost.core.XGBoostError):
        xgboost_answer(model(), np.array([[np.inf, 0, 0]], dtype=np.float32))
    assert to_onnx(parse(model()))[1].rules.reject_infinite


def test_thresholds_are_compared_in_float32() -> None:
    """A row on the threshold goes right, one unit below goes left: also at the smallest and largest numbers."""
    for threshold in (0.5, -0.0, 1e-45, -1e-45, 3.4028234e38, 16777216.0):
        document = model(tree(split_conditions=[threshold, -1.5, 0.25, 2.0, -2.0]))
        exact = np.float32(threshold)
        X = np.array([[np.nextafter(exact, np.float32(-np.inf)), 0, 0], [exact, 0, 0]], dtype=np.float32)
        assert answer(document, X)[1].tolist() == [-1.5, 0.75]
        assert answer(document, X)[1].tobytes() == xgboost_answer(document, X)[1].tobytes()


# Base scores and links


@pytest.mark.slow
def test_base_scores_are_transformed_to_the_bit() -> None:
    """For any base score the margin of a tree of 0 is XGBoost's: its logarithm is the C library's, not numpy's."""
    zero = model(tree(split_conditions=[0.5, -1.5, 0.0, 0.0, 0.0]))
    X = np.zeros((1, 3), dtype=np.float32)
    draw = np.random.default_rng(11)
    for objective, scale in (("binary:logistic", 1), ("count:poisson", 50), ("survival:cox", 1e-30)):
        document = changed(zero, "learner/objective", objective_member(objective))
        for score in (draw.random(20) * scale).astype(np.float32):
            scored = changed(document, f"{PARAM}/base_score", f"[{float(score)!r}]".replace("e", "E"))
            expected = xgboost_answer(scored, X)[1]
            assert base_margin(parse(scored).learner).tobytes() == expected.tobytes()


def test_the_logarithm_is_right_over_its_whole_range() -> None:
    """Within one unit of the true logarithm from the smallest float32 to the largest, subnormal numbers included."""
    scores = np.array(
        [1e-45, 1e-40, 1.17549435e-38, 1e-20, 0.5, 1, 1.5, 2, 1e20, 3.4028234e38], dtype=np.float32
    )
    document = changed(model(), "learner/objective/name", "count:poisson")
    for score in scores:
        made = base_margin(parse(changed(document, f"{PARAM}/base_score", f"{float(score)!r}")).learner)
        true = np.log(np.float64(score))
        assert abs(float(made[0]) - true) <= np.spacing(np.float32(abs(true)) + np.float32(1e-30))


@pytest.mark.slow
@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"reg:linear"}))
def test_links_hold_at_extreme_margins(objective: str) -> None:
    """Predictions stay within 1e-5 of XGBoost's where exp overflows, underflows or is 0."""
    link, _ = OBJECTIVES[objective]
    document = changed(model(*[tree()] * 2), "learner/objective", objective_member(objective))
    if objective == "reg:quantileerror":
        document = changed(document, "learner/objective/quantile_loss_param/quantile_alpha", "[5E-1]")
    if link in ("softmax", "argmax"):
        document = changed(changed(document, f"{PARAM}/num_class", "2"), f"{MODEL}/tree_info", [0, 1])
        document = changed(document, "learner/objective/softmax_multiclass_param/num_class", "2")
    leaves = [-200.0, -95.0, -88.7, -50.0, -1e-7, 0.0, 1e-7, 30.0, 80.0, 88.0, 200.0]
    for first in leaves:
        document = changed(document, f"{MODEL}/trees/0/split_conditions", [0.5, -1.5, first, 2.0, -first])
        X = np.array([[1, 0, 0], [0, 0, 0], [0, 0, -2]], dtype=np.float32)
        predict, margin = answer(document, X)
        expected_predict, expected_margin = xgboost_answer(document, X)
        assert margin.tobytes() == expected_margin.tobytes()
        with np.errstate(invalid="ignore"):
            close = np.abs(predict - expected_predict) <= 1e-5 * np.abs(expected_predict) + 1e-37
        assert (close | (predict == expected_predict)).all(), (first, predict, expected_predict)


def test_the_old_name_of_squared_error_means_the_same() -> None:
    """reg:linear became reg:squarederror in 0.90."""
    X = np.array([[0, 0, 0], [1, NAN, -2]], dtype=np.float32)
    old = answer(changed(model(), "learner/objective/name", "reg:linear"), X)
    assert np.array_equal(old, answer(model(), X))


def test_equal_margins_give_the_first_class() -> None:
    """multi:softmax answers the smallest of several best classes, as XGBoost does."""
    document = changed(
        changed(model(*[tree()] * 3), f"{PARAM}/num_class", "3"), f"{MODEL}/tree_info", [0, 1, 2]
    )
    document = changed(
        document,
        "learner/objective",
        {"name": "multi:softmax", "softmax_multiclass_param": {"num_class": "3"}},
    )
    X = np.zeros((2, 3), dtype=np.float32)
    assert answer(document, X)[0].tolist() == [0.0, 0.0] == xgboost_answer(document, X)[0].tolist()


def test_all_iterations_are_used_as_booster_predict_does() -> None:
    """With early stopping in the file, predict() still means all trees; the note says so, and names the best."""
    xgboost = pytest.importorskip("xgboost", reason="not exercised here: xgboost is not installed")
    path = VECTORS / "early_stopping.json"
    parsed = parse_xgboost(path.read_bytes(), format="xgboost-json", limits=STANDARD_LIMITS)
    booster = xgboost.Booster({"nthread": 1}, model_file=path)
    X = np.load(path.with_suffix(".npz"))["X"]
    data = xgboost.DMatrix(X, feature_names=booster.feature_names, nthread=1)
    notes = dict(parsed.learner.notes)
    assert notes["best_iteration"] == booster.best_iteration < notes["iterations"] - 1
    margin = run(to_onnx(parsed)[0], X)[1]
    assert np.array_equal(margin, booster.predict(data, output_margin=True))
    stopped = booster.predict(data, output_margin=True, iteration_range=(0, booster.best_iteration + 1))
    assert not np.array_equal(margin, stopped)


def test_gblinear_begins_every_output_with_the_first_base_score() -> None:
    """From 3.1 on a file has a base score for each output, and gblinear uses only the first."""
    document = changed(linear(), f"{PARAM}/num_target", "2")
    document = changed(document, f"{MODEL}/weights", [0.5, -1.0, 2.0, 0.25, 1.5, -0.5, 0.125, 1.0])
    document = changed(document, f"{PARAM}/base_score", "[1E0,5E0]")
    X = np.array([[1, 2, 3], [NAN, 1, NAN], [0, 0, 0]], dtype=np.float32)
    assert answer(document, X)[1].tobytes() == xgboost_answer(document, X)[1].tobytes()
    assert answer(document, X)[1][2].tolist() == [1.125, 2.0]


# Any forest


leaf_values = st.floats(-1e3, 1e3, width=32)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.lists(leaf_values, min_size=3, max_size=3)), min_size=1, max_size=4),
    st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 4.0, NAN]), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    ),
)
def test_any_forest_runs_as_it_walks(shapes: list[tuple[bool, list[float]]], rows: list[list[float]]) -> None:
    """onnxruntime's answer to the written file is the reference walk's, to the bit."""
    trees = []
    for categorical, (first, second, third) in shapes:
        base = categorical_tree() if categorical else tree()
        trees.append({**base, "split_conditions": [0.5, 0.5, first, second, third]})
    document = model(*trees)
    X = np.array(rows, dtype=np.float32)
    parsed = parse(document)
    assert isinstance(parsed, Forest)
    assert answer(document, X)[1].tobytes() == margins(parsed, X)[:, 0].tobytes()


@pytest.mark.slow
def test_the_deepest_tree_loads_on_a_small_stack() -> None:
    """onnxruntime builds trees by recursion; the deepest admitted one fits a thread of 512 KiB.

    In a process of its own, since the opposite would be a segmentation fault.
    """
    code = (
        "import sys, threading; sys.path[:0] = sys.argv[1:]\n"
        "import conftest, test_trees\n"
        "threading.stack_size(512 * 1024)\n"
        "thread = threading.Thread(target=test_trees.load_deepest); thread.start(); thread.join()"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(here), str(here.parent), str(here.parents[1])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0 and result.stdout.strip() == "loaded", result.stderr


def load_deepest() -> None:
    for deepest in (
        chain(MAX_TREE_DEPTH),
        {**chain(MAX_TREE_DEPTH), **_first_split_on_a_set(MAX_TREE_DEPTH)},
    ):
        answer(model(deepest), [[0, 0, 0]])
    print("loaded")


def _first_split_on_a_set(levels: int) -> dict[str, Any]:
    return {
        "categories": list(range(100)),
        "categories_nodes": [0],
        "categories_segments": [0],
        "categories_sizes": [100],
        "split_type": [1] + [0] * (2 * levels),
    }
