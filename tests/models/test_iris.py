"""The example model in the repository: made by its script, and meaningful."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

from strongroom.engine import onnxruntime
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS

MODEL = REPOSITORY / "examples" / "iris_model.json"


def test_the_example_names_flowers() -> None:
    """One probability for each kind: a setosa, a versicolor and a virginica are named with certainty."""
    admitted = admit(MODEL.read_bytes(), format="xgboost-json", limits=STANDARD_LIMITS)
    assert admitted.info.feature_names == ("sepal length", "sepal width", "petal length", "petal width")
    session = onnxruntime.InferenceSession(admitted.onnx, providers=["CPUExecutionProvider"])
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.0, 2.9, 4.5, 1.5], [6.3, 3.3, 6.0, 2.5]], dtype=np.float32)
    (probabilities,) = session.run(["predictions"], {"features": rows})
    assert probabilities.shape == (3, 3) and np.allclose(probabilities.sum(axis=1), 1)
    assert (probabilities.diagonal() > 0.9).all()


@pytest.mark.slow
def test_the_script_still_makes_it() -> None:
    """train_iris.py trains the very model that lies beside it, and it names most held-back flowers rightly."""
    pytest.importorskip("sklearn", reason="not exercised here: scikit-learn is not installed")
    xgboost = pytest.importorskip("xgboost", reason="not exercised here: xgboost is not installed")
    spec = importlib.util.spec_from_file_location("train_iris", REPOSITORY / "examples" / "train_iris.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model, share = script.train()
    assert share > 0.9
    if xgboost.__version__ == "3.2.0" and sys.platform == "linux":
        assert json.loads(model.save_raw("json")) == json.loads(MODEL.read_bytes())
