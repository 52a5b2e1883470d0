"""Trains the small models in this folder and records what XGBoost answers: `python generate.py [--check]`.

Each is NAME.json and NAME.ubj (both of XGBoost's forms) and NAME.npz with `X` (float32 rows, NaN = missing),
`predict` and `margin` (what `xgboost.Booster` of the writing version answers). Made with XGBoost 3.2.0, the
version in requirements.lock; run with another one, the script writes into versions/VERSION/, and only the
models in which the generations of the format differ. `--check` trains anew, writes nothing, and exits 1 where
something differs.

Data come from PCG64's raw stream, which numpy promises never to change; one thread, so sums have one order.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

HERE = Path(__file__).resolve().parent
PINNED = "3.2.0"
GENERATIONS = ("categorical", "dart", "linear_multiclass", "softprob", "vector_leaf")
"""What is also recorded from other versions."""
ROWS, COLUMNS, ANSWERED = 160, 5, 24


def uniform(seed: int, *shape: int) -> np.ndarray:
    """Numbers in [0, 1) with 24 random bits each."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(40)).astype(np.float64) / 2**24).reshape(shape)


PLAIN = (uniform(1, ROWS, COLUMNS) * 4 - 2).astype(np.float32)
SCORE = (PLAIN[:, 0] + PLAIN[:, 1] * PLAIN[:, 2] + uniform(2, ROWS) - 0.5).astype(np.float64)
HOLED = np.where(uniform(3, ROWS, COLUMNS) < 0.1, np.nan, PLAIN).astype(np.float32)
CODED = np.column_stack(
    [np.floor(uniform(4, ROWS) * 40), np.floor(uniform(5, ROWS) * 3), HOLED[:, 2:]]
).astype(np.float32)
CODED[uniform(6, ROWS) < 0.05, 0] = np.nan
CODED_SCORE = (CODED[:, 0] % 7 > 3) + (CODED[:, 1] == 1) * 1.5 + PLAIN[:, 2] * 0.5
CODED_TYPES = ["c", "c", "q", "q", "q"]
LABEL = (SCORE > 0).astype(np.float64)
CLASS = np.digitize(SCORE, [-0.7, 0.7]).astype(np.float64)
POSITIVE = np.exp(SCORE * 0.5)
TARGETS = np.column_stack([SCORE, -SCORE * 2, PLAIN[:, 3]])


def codes_to_answer() -> np.ndarray:
    """Rows with codes that were never seen, negative, and beyond what float32 counts."""
    rows = CODED[:ANSWERED].copy()
    rows[0:5, 0], rows[5:10, 0], rows[10:15, 1], rows[15:20, 1] = -1, 1000, 2**24 + 2, -7
    return rows


Recipe = tuple[dict[str, Any], np.ndarray, np.ndarray, int]
RECIPES: dict[str, Recipe] = {}


def recipe(name: str, params: dict[str, Any], X: np.ndarray, y: np.ndarray, *, rounds: int = 4) -> None:
    """Adds a model to train."""
    RECIPES[name] = ({"nthread": 1, "seed": 1, "max_depth": 2, "tree_method": "hist", **params}, X, y, rounds)


recipe("squarederror", {}, HOLED, SCORE)
recipe("squaredlogerror", {"objective": "reg:squaredlogerror"}, HOLED, POSITIVE)
recipe("pseudohubererror", {"objective": "reg:pseudohubererror"}, HOLED, SCORE)
recipe("absoluteerror", {"objective": "reg:absoluteerror"}, HOLED, SCORE)
recipe(
    "quantiles", {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}, HOLED, SCORE, rounds=2
)
recipe("logistic", {"objective": "reg:logistic", "base_score": 0.3}, HOLED, LABEL)
recipe("gamma", {"objective": "reg:gamma"}, HOLED, POSITIVE)
recipe("tweedie", {"objective": "reg:tweedie", "base_score": 1.7}, HOLED, POSITIVE)
recipe("poisson", {"objective": "count:poisson"}, HOLED, np.round(POSITIVE))
recipe("cox", {"objective": "survival:cox", "base_score": 0.37}, HOLED, POSITIVE)
recipe("aft", {"objective": "survival:aft"}, HOLED, POSITIVE)
recipe("binary", {"objective": "binary:logistic", "max_depth": 3}, HOLED, LABEL)
recipe("logitraw", {"objective": "binary:logitraw"}, HOLED, LABEL)
recipe("hinge", {"objective": "binary:hinge"}, HOLED, LABEL)
recipe("softprob", {"objective": "multi:softprob", "num_class": 3}, HOLED, CLASS, rounds=2)
recipe("softmax", {"objective": "multi:softmax", "num_class": 3}, HOLED, CLASS, rounds=2)
for metric in ("pairwise", "ndcg", "map"):
    recipe(f"rank_{metric}", {"objective": f"rank:{metric}"}, HOLED, LABEL)
recipe("multi_target", {}, HOLED, TARGETS, rounds=2)
recipe("multi_label", {"objective": "binary:logistic"}, HOLED, (TARGETS > 0).astype(np.float64), rounds=2)
recipe("vector_leaf", {"multi_strategy": "multi_output_tree"}, HOLED, TARGETS)
recipe(
    "vector_leaf_softprob",
    {"multi_strategy": "multi_output_tree", "objective": "multi:softprob", "num_class": 3},
    HOLED,
    CLASS,
)
recipe(
    "dart", {"booster": "dart", "rate_drop": 0.5, "one_drop": 1, "objective": "binary:logistic"}, HOLED, LABEL
)
recipe(
    "random_forest",
    {"num_parallel_tree": 3, "subsample": 0.6, "colsample_bynode": 0.6},
    HOLED,
    SCORE,
    rounds=2,
)
recipe(
    "pruned",
    {"tree_method": "exact", "gamma": 1.0, "max_depth": 4, "objective": "binary:logistic"},
    PLAIN,
    LABEL,
)
recipe("leaf_wise", {"grow_policy": "lossguide", "max_leaves": 12, "max_depth": 0}, HOLED, SCORE, rounds=2)
recipe("single_leaves", {"gamma": 1e9, "base_score": 0.25}, HOLED, SCORE, rounds=2)
recipe("categorical", {"max_cat_to_onehot": 2}, CODED, CODED_SCORE)
recipe("categorical_one_hot", {"max_cat_to_onehot": 100}, CODED, CODED_SCORE)
recipe("categorical_softprob", {"objective": "multi:softprob", "num_class": 3}, CODED, CLASS, rounds=2)
recipe("categorical_single_leaves", {"gamma": 30.0}, CODED, CODED_SCORE, rounds=6)
recipe("categorical_dart", {"booster": "dart", "rate_drop": 0.5, "one_drop": 1}, CODED, CODED_SCORE)
recipe("linear", {"booster": "gblinear"}, HOLED, SCORE)
recipe(
    "linear_logistic",
    {"booster": "gblinear", "objective": "binary:logistic", "base_score": 0.3},
    HOLED,
    LABEL,
)
recipe(
    "linear_multiclass", {"booster": "gblinear", "objective": "multi:softprob", "num_class": 3}, HOLED, CLASS
)
SCALES = np.array([1, 10, 100, 1000, 0.01], dtype=np.float32)
recipe("linear_unscaled", {"booster": "gblinear"}, HOLED * SCALES + SCALES * 50, SCORE)
recipe("early_stopping", {"objective": "binary:logistic"}, HOLED, LABEL, rounds=12)


def train(name: str) -> tuple[xgboost.Booster, np.ndarray]:
    """The model, and the rows to answer."""
    params, X, y, rounds = RECIPES[name]
    if params["tree_method"] == "hist" and params.get("booster") == "gblinear":
        params = {key: value for key, value in params.items() if key not in ("tree_method", "max_depth")}
    kinds: dict[str, Any] = {"feature_types": CODED_TYPES, "enable_categorical": True} if X is CODED else {}
    if name == "early_stopping":
        kinds = {"feature_names": ["height", "weight", "age", "größe", "x y"]}
    data = xgboost.DMatrix(X, y, nthread=1, **kinds)
    extra: dict[str, Any] = {}
    match name:
        case "aft":
            data.set_float_info("label_lower_bound", y)
            data.set_float_info("label_upper_bound", y + 0.5)
        case "rank_pairwise" | "rank_ndcg" | "rank_map":
            data.set_group([40] * (ROWS // 40))
        case "early_stopping":
            noisy = np.where(uniform(7, 60) < 0.3, 1 - y[:60], y[:60])
            held = xgboost.DMatrix(X[:60], noisy, nthread=1, **kinds)
            extra = {"evals": [(held, "held")], "early_stopping_rounds": 3, "verbose_eval": False}
    rows = codes_to_answer() if X is CODED else X[:ANSWERED]
    return xgboost.train(params, data, rounds, **extra), rows


def files(name: str) -> dict[str, bytes]:
    """The three files of a model."""
    booster, rows = train(name)
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("json", "ubj"):
            path = Path(folder) / f"m.{form}"
            booster.save_model(path)
            made[f"{name}.{form}"] = path.read_bytes()
    kinds: dict[str, Any] = (
        {"feature_types": CODED_TYPES, "enable_categorical": True} if name.startswith("cat") else {}
    )
    data = xgboost.DMatrix(rows, nthread=1, feature_names=booster.feature_names, **kinds)
    buffer = io.BytesIO()
    answers = {"predict": booster.predict(data), "margin": booster.predict(data, output_margin=True)}
    np.savez_compressed(buffer, X=rows, **answers)
    made[f"{name}.npz"] = buffer.getvalue()
    return made


def same(old: bytes, new: bytes, name: str) -> bool:
    """Whether two files say the same: models byte by byte, arrays by content (zlib packs differently)."""
    if not name.endswith(".npz"):
        return old == new
    with np.load(io.BytesIO(old)) as a, np.load(io.BytesIO(new)) as b:
        return set(a) == set(b) and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


def main() -> int:
    """Writes or checks all models of this version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    version = xgboost.__version__
    folder = HERE if version == PINNED else HERE / "versions" / version
    names = RECIPES if version == PINNED else GENERATIONS
    action: Callable[[Path, bytes], bool] = _compare if check else _write
    if not check:
        folder.mkdir(parents=True, exist_ok=True)
    results = [action(folder / name, data) for kind in names for name, data in files(kind).items()]
    fine = all(results)
    print(f"XGBoost {version}: {len(names)} models in {folder.name}/", "" if fine else "DIFFER")
    return 0 if fine else 1


def _write(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    return True


def _compare(path: Path, data: bytes) -> bool:
    fine = path.is_file() and same(path.read_bytes(), data, path.name)
    if not fine:
        print(f"{path.name}: not what is recorded")
    return fine


if __name__ == "__main__":
    sys.exit(main())
