"""Trained networks that registry wheels ship: admitted and run here, they give bare onnxruntime's results bit for bit.

The packages are located, never imported: some would pull in frameworks that are not installed.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED

from strongroom.engine import Engine, onnxruntime
from strongroom.inputs import check_inputs
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS, Admitted
from strongroom.oip import Array, Tensor, WireLimits, datatype_of

pytestmark = pytest.mark.slow

ENGINE = Engine()
LIMITS = WireLimits(tensors=16, tensor_bytes=1 << 26, total_bytes=1 << 26, elements=1 << 24, name_length=512)
RATE = 16_000  # samples a second of the sound models
SMALL_LIGHT = ("squeezenet", "shufflenet", "inception_v1", "inception_v2", "densenet121", "resnet50")
"""Of onnx's nine untrained "light" networks the six that become less than 300 MB in memory."""


def located(package: str, path: str) -> Path:
    """A file of an installed package; the test is skipped where the package is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"not exercised here: the package {package} is not installed")
    return Path(spec.origin).parent / path


def tone(hertz: float, samples: int) -> Array:
    """A tone with two overtones, loud enough to be heard by every model."""
    time = np.arange(samples) / RATE
    wave = sum(np.sin(2 * np.pi * hertz * n * time) / n for n in (1, 2, 3))
    return np.asarray(0.3 * wave, np.float32)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model file and a request for it."""

    package: str
    path: str
    inputs: dict[str, Any]


def noise(*shape: int) -> Array:
    """Reproducible numbers between 0 and 1."""
    return np.random.default_rng(7).random(shape, dtype=np.float32)


SPEECH = {"input": tone(140, 576)[None], "state": np.zeros((2, 1, 128), np.float32)}
STATE = {"h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
SR = {"sr": np.array(RATE)}
FREQUENCIES = {"fmin": np.array(50, np.float32), "fmax": np.array(1000, np.float32)}
MODELS = {
    "magika": Trained(
        "magika", "models/standard_v3_3/model.onnx",
        {"bytes": np.frombuffer((Path(__file__).read_bytes()[:1024] * 2)[:2048], np.uint8)[None].astype(np.int32)}),
    "swift_f0": Trained("swift_f0", "model.onnx", {"audio": tone(440, RATE)[None], **FREQUENCIES}),
    "silero_vad": Trained("silero_vad", "data/silero_vad.onnx", {**SPEECH, **SR}),
    "silero_vad op15": Trained("silero_vad", "data/silero_vad_16k_op15.onnx", {**SPEECH, **SR}),
    "silero_vad ifless": Trained("silero_vad", "data/silero_vad_op18_ifless.onnx", {**SPEECH, **SR}),
    "silero_vad half": Trained("silero_vad", "data/silero_vad_half.onnx", SPEECH),
    "silero_vad openvino": Trained("silero_vad", "data/silero_vad_openvino_16k.onnx", SPEECH),
    "silero_vad sequence": Trained(
        "silero_vad", "data/silero_vad_16k_sequence.onnx", {"input": noise(5, 576), **STATE}),
    "basic_pitch": Trained(
        "basic_pitch", "saved_models/icassp_2022/nmp.onnx",
        {"serving_default_input_2:0": tone(440, 43_844)[None, :, None]}),
    "rapidocr detector": Trained(
        "rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", {"x": noise(1, 3, 96, 160)}),
    "rapidocr recogniser": Trained(
        "rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", {"x": noise(2, 3, 48, 160)}),
    "rapidocr classifier": Trained(
        "rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": noise(1, 3, 48, 192)}),
    "sigmoid": Trained("onnxruntime", "datasets/sigmoid.onnx", {"x": noise(3, 4, 5)}),
    "mul": Trained("onnxruntime", "datasets/mul_1.onnx", {"X": noise(3, 2)}),
    "iris": Trained("onnxruntime", "datasets/logreg_iris.onnx", {"float_input": 5 * noise(3, 2)}),
}  # fmt: skip


def admitted(path: Path) -> Admitted:
    """The file, admitted."""
    return admit(path.read_bytes(), format="onnx", limits=STANDARD_LIMITS)


def bare(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """What onnxruntime gives with its default options, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return dict(zip([out.name for out in session.get_outputs()], session.run(None, inputs), strict=True))


def through(proof: Admitted, inputs: dict[str, Any]) -> dict[str, Array]:
    """What a request gives here, checked against the metadata first."""
    tensors = tuple(Tensor(name, datatype_of(array), array) for name, array in inputs.items())
    session = ENGINE.load(proof)
    return session.run(check_inputs(proof.info, tensors, limits=LIMITS), outputs=())


def _columns(maps: list[dict[Any, float]], labels: tuple[Any, ...]) -> Array:
    return np.array([[entry[label] for label in labels] for entry in maps], np.float32)


def _compare(got: dict[str, Array], expected: dict[str, Any], proof: Admitted) -> None:
    assert list(got) == list(expected)
    for name, reference in expected.items():
        if isinstance(reference, list):  # a ZipMap's dictionaries, which are cut off here
            reference = _columns(reference, dict(proof.info.notes)[f"class_labels.{name}"])  # type: ignore[arg-type]
        assert got[name].dtype == reference.dtype and got[name].shape == reference.shape
        assert got[name].tobytes() == reference.tobytes(), name


@pytest.mark.parametrize("name", MODELS)
def test_results_are_bare_onnxruntimes_bit_for_bit(name: str) -> None:
    """Every output of every trained model, with its own kinds of inputs."""
    trained = MODELS[name]
    path = located(trained.package, trained.path)
    proof = admitted(path)
    assert {spec.name for spec in proof.info.inputs} == set(trained.inputs)
    _compare(through(proof, trained.inputs), bare(path, trained.inputs), proof)


@pytest.mark.parametrize("name", SMALL_LIGHT)
def test_networks_with_computed_weights_too(name: str) -> None:
    """onnx's light networks make their weights while they load; bounding that changes no bit of the result."""
    path = located("onnx", f"backend/test/data/light/light_{name}.onnx")
    proof = admitted(path)
    spec = proof.info.inputs[0]
    inputs = {spec.name: noise(1, 3, 224, 224)}
    _compare(through(proof, inputs), bare(path, inputs), proof)


def test_a_tone_has_its_pitch() -> None:
    """The trained model still does what it is for: 440 Hz is heard as 440 Hz, in float64."""
    trained = MODELS["swift_f0"]
    got = through(admitted(located(trained.package, trained.path)), trained.inputs)
    assert got["pitch"].dtype == np.float64
    assert abs(float(np.median(got["pitch"])) - 440) < 2


def test_python_is_known_as_python() -> None:
    """magika tells the language of this file."""
    trained = MODELS["magika"]
    path = located(trained.package, trained.path)
    labels = json.loads((path.parent / "config.min.json").read_bytes())["target_labels_space"]
    text = Path(__file__).read_bytes().strip()
    window = np.frombuffer(text[:1024] + text[-1024:], np.uint8)[None].astype(np.int32)
    scores = through(admitted(path), {"bytes": window})["target_label"][0]
    assert labels[int(scores.argmax())] == "python" and scores.max() > 0.9


CORPUS = SHARED / "hostile-models"
_DTYPES = {"string": np.object_}


def _fed(entry: dict[str, Any]) -> dict[str, Array]:
    """The corpus writes arrays as {dtype, shape, data | fill}."""
    arrays = {}
    for name, spec in entry["feed"].items():
        dtype = _DTYPES.get(spec["dtype"], spec["dtype"])
        data = spec["data"] if "data" in spec else np.full(spec["shape"], spec["fill"])
        arrays[name] = np.array(data, dtype=dtype).reshape(spec["shape"])
    return arrays


def _corpus() -> list[dict[str, Any]]:
    if not CORPUS.is_dir():
        return []
    entries = json.loads((CORPUS / "manifest.json").read_bytes())["models"]
    return [entry for entry in entries if entry["expect"]["outcome"] == "admit"]


@pytest.mark.skipif(
    not CORPUS.is_dir(), reason="not exercised here: the corpus of models is not beside this checkout"
)
@pytest.mark.parametrize("entry", _corpus(), ids=lambda entry: entry["file"])
def test_innocent_models_of_the_corpus_give_their_recorded_results(entry: dict[str, Any]) -> None:
    """Subgraphs, functions, halves, quantised and unusual names, ZipMaps, forests: within 1e-4, strings equal."""
    format = {"onnx": "onnx", "xgb_json": "xgboost-json", "xgb_ubj": "xgboost-ubj"}[entry["format"]]
    proof = admit((CORPUS / entry["file"]).read_bytes(), format=format, limits=STANDARD_LIMITS)
    inputs = _fed(entry)
    outputs = entry["outputs"]
    if format != "onnx":
        inputs, outputs = {"features": inputs["x"]}, {"predictions": outputs["y"]}
    got = through(proof, inputs)
    for name, spec in outputs.items():
        if isinstance(spec, list):
            expected = _columns(spec, dict(proof.info.notes)[f"class_labels.{name}"])  # type: ignore[arg-type]
        elif spec["dtype"] == "string":
            assert [text.decode() for text in got[name].reshape(-1)] == spec["data"]
            continue
        else:
            expected = np.array(spec["data"], spec["dtype"]).reshape(spec["shape"])
        assert got[name].dtype == expected.dtype and got[name].shape == expected.shape
        assert np.allclose(got[name], expected, atol=1e-4, rtol=1e-4)
