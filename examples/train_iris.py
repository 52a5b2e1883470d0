"""Trains a small XGBoost classifier on scikit-learn's irises and saves it as JSON.

    python examples/train_iris.py [FILE]        (default: iris_model.json beside this script)

The model answers a row of four lengths in centimetres with one probability for each of setosa, versicolor and
virginica. A third of the flowers is held back, and the share of them that is named rightly is printed.
Needs `xgboost` (or `xgboost-cpu`) and `scikit-learn`; a Strongroom server needs neither.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import xgboost
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split

NAMES = ["sepal length", "sepal width", "petal length", "petal width"]
PARAMETERS = {
    "objective": "multi:softprob",
    "num_class": 3,
    "max_depth": 2,
    "eta": 0.5,
    "seed": 0,
    "nthread": 1,
}
ROUNDS = 8


def train() -> tuple[xgboost.Booster, float]:
    """The model, and the share of held-back flowers that it names rightly."""
    flowers = load_iris()
    X, X_held, y, y_held = train_test_split(
        flowers.data.astype(np.float32),
        flowers.target,
        test_size=1 / 3,
        random_state=0,
        stratify=flowers.target,
    )
    model = xgboost.train(PARAMETERS, xgboost.DMatrix(X, y, feature_names=NAMES), ROUNDS)
    probabilities = model.predict(xgboost.DMatrix(X_held, feature_names=NAMES))
    return model, float(np.mean(probabilities.argmax(axis=1) == y_held))


def main() -> None:
    """Trains, saves, and says how good it is."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("iris_model.json")
    model, share = train()
    model.save_model(path)
    print(f"{path}: {path.stat().st_size} bytes, {share:.0%} of the held-back flowers named rightly")


if __name__ == "__main__":
    main()
