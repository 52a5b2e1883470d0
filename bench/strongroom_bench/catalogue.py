"""Which models are measured: the paper's networks, small tabular ones, and trained ones that installed wheels carry.

The paper measured thirteen ONNX models of 31 to 830 MB; this project knows three of them, with figures. `PAPER` are
thirteen networks that span that range, those three among them.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from click import ClickException

from strongroom_bench import text, vision
from strongroom_bench.forest import Forest
from strongroom_bench.graph import F32, Net, uniform

Arrays = dict[str, npt.NDArray[Any]]
TOKENS: Final = 128
"""Tokens of a text input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model that can be made: `build` fills a `Net` (ONNX), or `trees` is an XGBoost model.

    `shape`: of one input without its batch dimension. `parameters`: the published number, None where there is none.
    """

    name: str
    group: str
    title: str
    shape: tuple[int, ...]
    build: Callable[[Net], None] | None = None
    trees: Forest | None = None
    parameters: int | None = None

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.name}.onnx" if self.build else f"{self.name}.json"


@dataclass(frozen=True, slots=True)
class Workload:
    """A model file and the inputs of one request: what every contender is given alike.

    `engine_path`: the same model as ONNX, for contenders that read nothing else.
    """

    name: str
    title: str
    path: Path
    engine_path: Path
    inputs: Arrays
    group: str = "other"
    """Of `GROUPS`, or `trained`."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


def _resnet(*blocks: int, bottleneck: bool) -> Callable[[Net], None]:
    return partial(vision.resnet, blocks=blocks, bottleneck=bottleneck)


def _mlp(net: Net) -> None:
    x = net.input("input", F32, ["N", 64])
    x = net.dense(net.dense(x, 64, 256, act="relu", gain=2.0), 256, 256, act="relu", gain=2.0)
    net.output(net.dense(x, 256, 10), "output", ["N", 10])


def _wide(net: Net) -> None:
    x = net.input("input", F32, ["N", 2048])
    for _ in range(3):
        x = net.dense(x, 2048, 2048, act="relu", gain=2.0)
    net.output(net.dense(x, 2048, 10), "output", ["N", 10])


def _deep(net: Net) -> None:
    x = net.input("input", F32, ["N", 1024])
    for _ in range(6):
        x = net.dense(x, 1024, 1024, act="relu", gain=2.0)
    net.output(net.dense(x, 1024, 10), "output", ["N", 10])


_IMAGE: Final = (3, 224, 224)
_BASE: Final = partial(text.bert, layers=12, width=768, heads=12, inner=3072)
_LARGEST: Final = partial(text.bert, layers=14, width=1024, heads=16, inner=4096)
_SMALLEST: Final = partial(text.bert, layers=2, width=32, heads=4, inner=64, vocabulary=128, positions=128)


def _net(
    name: str,
    group: str,
    title: str,
    shape: tuple[int, ...],
    build: Callable[[Net], None],
    parameters: int | None = None,
) -> Entry:
    return Entry(name=name, group=group, title=title, shape=shape, build=build, parameters=parameters)


ENTRIES: Final = (
    _net("squeezenet", "paper", "SqueezeNet 1.0", _IMAGE, vision.squeezenet, 1_248_424),
    _net("mobilenet_v2", "paper", "MobileNetV2", _IMAGE, vision.mobilenet_v2, 3_504_872),
    _net("densenet121", "paper", "DenseNet-121", _IMAGE, vision.densenet121, 7_978_856),
    _net("resnet18", "paper", "ResNet-18", _IMAGE, _resnet(2, 2, 2, 2, bottleneck=False), 11_689_512),
    _net("efficientnet_lite4", "paper", "EfficientNet-Lite4", (3, 300, 300), vision.efficientnet_lite4, 13_006_568),
    _net("inception_v3", "paper", "Inception v3", (3, 299, 299), vision.inception_v3, 23_834_568),
    _net("resnet50", "paper", "ResNet-50", _IMAGE, _resnet(3, 4, 6, 3, bottleneck=True), 25_557_032),
    _net("resnet101", "paper", "ResNet-101", _IMAGE, _resnet(3, 4, 23, 3, bottleneck=True), 44_549_160),
    _net("resnet152", "paper", "ResNet-152", _IMAGE, _resnet(3, 8, 36, 3, bottleneck=True), 60_192_808),
    _net("bert_base", "paper", "BERT-base", (TOKENS,), _BASE, 109_482_240),
    _net("efficientnet_v2_l", "paper", "EfficientNetV2-L", (3, 480, 480), vision.efficientnet_v2_l, 118_515_272),
    _net("vgg16", "paper", "VGG-16", _IMAGE, vision.vgg16, 138_357_544),
    _net("encoder_830mb", "paper", "BERT's encoder, sized to 830 MB", (TOKENS,), _LARGEST),
    Entry(
        name="trees30", group="tabular", title="XGBoost, 30 trees of depth 4", shape=(4,),
        trees=Forest("trees30", trees=30, depth=4, features=4),
    ),
    Entry(
        name="trees500", group="tabular", title="XGBoost, 500 trees of depth 8", shape=(20,),
        trees=Forest("trees500", trees=500, depth=8, features=20),
    ),
    _net("mlp", "tabular", "perceptron 64-256-256-10", (64,), _mlp),
    _net("mlp2048", "wide", "perceptron of three layers of 2048", (2048,), _wide),
    _net("mlp_deep", "wide", "perceptron of six layers of 1024", (1024,), _deep),
    _net(
        "tiny_resnet", "tiny", "ResNet of four blocks", (3, 32, 32),
        partial(vision.resnet, blocks=(1, 1, 1, 1), bottleneck=False, size=32, classes=10, base=8),
    ),
    _net(
        "tiny_squeezenet", "tiny", "SqueezeNet, an eighth wide", (3, 64, 64),
        partial(vision.squeezenet, size=64, classes=10, shrink=8),
    ),
    _net("tiny_bert", "tiny", "BERT's encoder of two layers", (16,), _SMALLEST),
    Entry(
        name="tiny_trees", group="tiny", title="XGBoost, 4 trees of depth 2", shape=(3,),
        trees=Forest("tiny_trees", trees=4, depth=2, features=3),
    ),
)  # fmt: skip
GROUPS: Final = ("paper", "tabular", "tiny")
BY_NAME: Final[Mapping[str, Entry]] = {entry.name: entry for entry in ENTRIES}
PAPER: Final = tuple(entry.name for entry in ENTRIES if entry.group == "paper")


def network(entry: Entry) -> Net:
    """The entry's graph, its weights not yet made."""
    net = Net(entry.name)
    if entry.build is None:
        raise ValueError(f"{entry.name} is no network")
    entry.build(net)
    return net


def inputs_of(entry: Entry, *, batch: int = 1) -> Arrays:
    """One request's inputs, the same every time: name -> array [batch, ...]; float32, or int64 for text."""
    shape = (batch, *entry.shape)
    count = math.prod(shape)
    if entry.build is None:
        return {"input": (uniform(f"sample/{entry.name}", count) * np.float32(1.5)).reshape(shape)}
    arrays: Arrays = {}
    net = network(entry)
    for name, kind, _shape in net.inputs():
        if kind == F32:
            arrays[name] = uniform(f"sample/{entry.name}", count).reshape(shape)
        elif name == "input_ids":
            words = net.weights["embeddings.word"].shape[0]
            spread = (uniform(f"sample/{entry.name}", count) + 1) / 2 * words
            arrays[name] = spread.astype(np.int64).clip(0, words - 1).reshape(shape)
        else:
            value = 1 if name == "attention_mask" else 0
            arrays[name] = np.full(shape, value, np.int64)
    return arrays


def make(entry: Entry, folder: Path) -> Workload:
    """Writes the entry's file, and its ONNX form where that is another, into `folder` unless they are there."""
    path = folder / entry.file
    engine_path = path.with_suffix(".onnx")
    folder.mkdir(parents=True, exist_ok=True)
    if entry.trees is not None:
        _write(path, entry.trees.to_xgboost)
        _write(engine_path, entry.trees.to_onnx)
    elif not path.exists():
        network(entry).write(path)
    return Workload(entry.name, entry.title, path, engine_path, inputs_of(entry), entry.group)


def _write(path: Path, content: Callable[[], bytes]) -> None:
    if not path.exists():
        part = path.with_name(path.name + ".part")
        part.write_bytes(content())
        part.replace(path)


# --- trained models from installed wheels -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Trained:
    name: str
    title: str
    package: str
    file: str
    inputs: Callable[[], Arrays]


def _noise(name: str, *shape: int) -> npt.NDArray[np.float32]:
    return uniform(f"sample/{name}", math.prod(shape)).reshape(shape)


TRAINED: Final = (
    _Trained(
        "magika", "Magika, file types", "magika", "models/standard_v3_3/model.onnx",
        lambda: {"bytes": (np.abs(_noise("magika", 1, 2048)) * 256).astype(np.int32)},
    ),
    _Trained(
        "basic_pitch", "Basic Pitch, notes", "basic_pitch", "saved_models/icassp_2022/nmp.onnx",
        lambda: {"serving_default_input_2:0": _noise("basic_pitch", 1, 43844, 1)},
    ),
    _Trained(
        "rapidocr_rec", "PP-OCRv4, reading", "rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx",
        lambda: {"x": _noise("rapidocr", 1, 3, 48, 320)},
    ),
    _Trained(
        "silero_vad", "Silero VAD, speech", "silero_vad", "data/silero_vad.onnx",
        lambda: {"input": _noise("silero", 1, 576), "state": np.zeros((2, 1, 128), np.float32),
                 "sr": np.array(16000, np.int64)},
    ),
    _Trained(
        "swift_f0", "SwiftF0, pitch", "swift_f0", "model.onnx",
        lambda: {"audio": _noise("swift_f0", 1, 16000), "fmin": np.array(46.875, np.float32),
                 "fmax": np.array(2093.75, np.float32)},
    ),
)  # fmt: skip


def trained() -> list[Workload]:
    """The trained networks that installed packages carry; packages are found, not imported."""
    found = []
    for one in TRAINED:
        spec = importlib.util.find_spec(one.package)
        if spec is None or not spec.submodule_search_locations:
            continue
        path = Path(next(iter(spec.submodule_search_locations))) / one.file
        if path.is_file():
            found.append(Workload(one.name, one.title, path, path, one.inputs(), "trained"))
    return found


def select(words: tuple[str, ...], folder: Path) -> list[Workload]:
    """The workloads that names or groups (`paper`, `tabular`, `tiny`, `trained`) stand for, made where missing.

    Raises:
        ClickException: a word that names neither.
    """
    chosen: dict[str, Workload] = {}
    for word in words:
        ready = {w.name: w for w in trained()}
        if word == "trained":
            chosen |= ready
        elif word in ready:
            chosen[word] = ready[word]
        elif word in GROUPS:
            chosen |= {e.name: make(e, folder) for e in ENTRIES if e.group == word}
        elif word in BY_NAME:
            chosen[word] = make(BY_NAME[word], folder)
        else:
            known = ", ".join([*GROUPS, "trained", *BY_NAME])
            raise ClickException(f"no model is called {word!r}; there are {known}")
    return list(chosen.values())
