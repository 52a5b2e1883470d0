"""Exactness through the whole path: over the attested channel a caller gets what the model's own library says."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, SHARED
from serving import Serving, serving

import strongroom
from strongroom.tokens import new_key_pem

OWN = sorted((REPOSITORY / "tests" / "vectors" / "xgboost").glob("*.npz"))
RECORDED = sorted((SHARED / "xgboost-models").rglob("*.npz"))
PROBABILITY_RTOL = 1e-5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One real server for the module."""
    folder = tmp_path_factory.mktemp("server")
    with serving(
        folder, settings="[limits]\nmodels_per_owner = 1000\nmodels = 1000\nevidence_per_minute = 10000"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[strongroom.Client]:
    """A principal with its own key."""
    folder = tmp_path_factory.mktemp("owner")
    (folder / "key.pem").write_bytes(new_key_pem())
    policy = server.write_policy(folder / "policy.toml")
    with strongroom.connect(server.url, policy=policy, key=folder / "key.pem") as connected:
        yield connected


def _assert_exact(client: strongroom.Client, vectors: Path) -> None:
    """Margins bit-equal for trees, 1e-6 mixed for linear models; predictions within 1e-5; JSON and UBJ the same."""
    recorded = np.load(vectors)
    answers: list[dict[str, Any]] = []
    for suffix in (".json", ".ubj"):
        model = vectors.with_suffix(suffix)
        uploaded = client.upload_model(model, name=f"{vectors.parent.name}-{vectors.stem}{suffix}")
        answers.append(uploaded.run(recorded["X"], outputs=["predictions", "margin"]))
        client.delete_model(uploaded)
    for name in ("predictions", "margin"):
        assert answers[0][name].tobytes() == answers[1][name].tobytes(), name
    margin, expected = answers[0]["margin"], recorded["margin"].astype(np.float32)
    if b'"gblinear"' in vectors.with_suffix(".json").read_bytes():
        assert (np.abs(margin - expected) <= 1e-6 * np.maximum(1, np.abs(expected))).all()
    else:
        assert margin.reshape(expected.shape).tobytes() == expected.tobytes()
    predictions = answers[0]["predictions"].reshape(recorded["predict"].shape)
    np.testing.assert_allclose(predictions, recorded["predict"], rtol=PROBABILITY_RTOL, atol=0)


@pytest.mark.parametrize("vectors", OWN, ids=lambda p: p.stem)
def test_own_xgboost_vectors_are_exact_over_the_wire(client: strongroom.Client, vectors: Path) -> None:
    """Every model that the repository carries, uploaded and run through a server, is as exact as its reference."""
    _assert_exact(client, vectors)


@pytest.mark.skipif(
    not RECORDED, reason="not exercised here: recorded XGBoost models are not beside this checkout"
)
@pytest.mark.parametrize("vectors", RECORDED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_recorded_xgboost_models_are_exact_over_the_wire(client: strongroom.Client, vectors: Path) -> None:
    """Every recorded model of three XGBoost versions, uploaded and run through a server, is exact."""
    _assert_exact(client, vectors)


def _file(package: str, *parts: str) -> Path | None:
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent.joinpath(*parts) if found and found.origin else None
    return path if path is not None and path.is_file() else None


def _feed(name: str) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(7)
    time = np.arange(16000, dtype=np.float32) / 16000
    return {
        "magika": {"bytes": rng.integers(0, 257, (3, 2048)).astype(np.int32)},
        "swift_f0": {
            "audio": np.sin(2 * np.pi * 440 * time)[None].astype(np.float32),
            "fmin": np.array(50, np.float32),
            "fmax": np.array(2000, np.float32),
        },
        "silero_vad": {
            "input": rng.standard_normal((2, 576)).astype(np.float32),
            "state": np.zeros((2, 2, 128), np.float32),
            "sr": np.array(16000, np.int64),
        },
        "basic_pitch": {"serving_default_input_2:0": rng.standard_normal((1, 43844, 1)).astype(np.float32)},
        "rapidocr_onnxruntime": {"x": rng.standard_normal((1, 3, 48, 160)).astype(np.float32)},
    }[name]


TRAINED = {
    "magika": ("models", "standard_v3_3", "model.onnx"),
    "swift_f0": ("model.onnx",),
    "silero_vad": ("data", "silero_vad.onnx"),
    "basic_pitch": ("saved_models", "icassp_2022", "nmp.onnx"),
    "rapidocr_onnxruntime": ("models", "ch_PP-OCRv4_rec_infer.onnx"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_networks_equal_bare_onnxruntime_bit_for_bit(client: strongroom.Client, name: str) -> None:
    """A trained network from a wheel answers over the attested channel as bare onnxruntime does in this process."""
    from strongroom.engine import onnxruntime

    path = _file(name, *TRAINED[name])
    if path is None:
        pytest.skip(f"not exercised here: the wheel of {name} is not installed on this Python")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    bare = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = _feed(name)
    expected = dict(zip([o.name for o in bare.get_outputs()], bare.run(None, feed), strict=True))
    model = client.upload_model(path, name=name)
    answer = model.run(feed, outputs=list(expected))
    for output, value in expected.items():
        assert answer[output].dtype == value.dtype and answer[output].shape == value.shape
        assert answer[output].tobytes() == value.tobytes(), output
    if name == "swift_f0":
        assert (
            abs(float(np.median(answer["pitch"])) - 440) < 2
        )  # and the answer means something: a 440 Hz tone
