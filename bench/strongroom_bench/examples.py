"""Real inputs, where there are any with right answers, for trained networks: what a precision is judged on.

    magika      files of this Python installation, of kinds that their names tell
    minilm      sentences of the standard library's documentation
    rapidocr    words of it, drawn here
    swift_f0    tones of known pitch

Networks with made-up weights have made-up inputs, and no right answers: their figures are errors and speed.

Rules
  - Calibration and evaluation never share an example.
  - Everything is found or made on this machine, the same every time for the same Python and packages.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sysconfig
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from click import ClickException

from strongroom_bench import minilm
from strongroom_bench.catalogue import BY_NAME, TOKENS, Arrays, Workload, inputs_of, make, trained

Array = npt.NDArray[Any]
Answers = Sequence[Mapping[str, Array]]
CALIBRATING: Final = 64
"""Examples that ranges are taken of."""
JUDGING: Final = 128
"""Examples that answers are compared on, of trained networks."""
MADE_UP: Final = 8
"""The same of networks with made-up weights."""
_MOST: Final = 64
"""Pieces of a sentence."""
RATE: Final = 16_000


class Missing(Exception):
    """The network, or what it is judged on, is not on this machine; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """One network with examples. `view`: of a request and its answer, the vector that errors are measured on. `right`:
    the share of answers that are right, given with the answers of the network in fp32; `said` says what it counts.
    """

    workload: Workload
    calibration: Arrays
    judging: tuple[Arrays, ...]
    source: str
    view: Callable[[Arrays, Mapping[str, Array]], Array]
    right: Callable[[Answers, Answers], float] | None = None
    said: str = ""


def _first(_request: Arrays, answer: Mapping[str, Array]) -> Array:
    return np.asarray(next(iter(answer.values())), np.float64).reshape(-1)


def _stacked(requests: Sequence[Arrays]) -> Arrays:
    """Rows of one request each, as one set."""
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def _package(name: str, install: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Missing(f"the package {name} is not installed: {install}")
    return Path(next(iter(spec.submodule_search_locations)))


def _trained(name: str, install: str) -> Workload:
    found = next((w for w in trained() if w.name == name), None)
    if found is None:
        raise Missing(f"the network is not installed: {install}")
    return found


# --- files


KINDS: Final = {
    ".py": "python", ".pyc": "pythonbytecode", ".so": "elf", ".h": "c", ".png": "png", ".svg": "svg", ".pdf": "pdf",
    ".ttf": "ttf", ".json": "json", ".js": "javascript", ".html": "html", ".css": "css", ".gz": "gzip", ".npz": "npz",
    ".pem": "pem", ".toml": "toml", ".csv": "csv", ".onnx": "onnx",
}  # fmt: skip
"""Suffix -> Magika's word for it."""
_OF_A_KIND: Final = 24
_LEAST_FILE: Final = 64


def _magika(_folder: Path) -> Examples:
    workload = _trained("magika", "pip install --no-deps magika==1.0.3")
    words = json.loads((workload.path.parent / "config.min.json").read_bytes())["target_labels_space"]
    found: dict[str, list[Path]] = {suffix: [] for suffix in KINDS}
    for root in dict.fromkeys(map(sysconfig.get_path, ("stdlib", "include", "purelib"))):
        for path in sorted(Path(root).rglob("*")):
            same = found.get(path.suffix)
            if same is not None and len(same) < _OF_A_KIND and _long_enough(path):
                same.append(path)
    pairs = [(path, words.index(KINDS[path.suffix])) for same in found.values() for path in same]
    calibrating, judging = pairs[::2][:CALIBRATING], pairs[1::2][:JUDGING]
    labels = [label for _, label in judging]

    def right(answers: Answers, _reference: Answers) -> float:
        hits = [int(a["target_label"].argmax()) == label for a, label in zip(answers, labels, strict=True)]
        return float(np.mean(hits))

    return Examples(
        workload=workload,
        calibration=_stacked([_window(path) for path, _ in calibrating]),
        judging=tuple(_window(path) for path, _ in judging),
        source=f"files of this Python installation, of {len({label for _, label in pairs})} kinds",
        view=_first,
        right=right,
        said="files named by their kind",
    )


def _long_enough(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size >= _LEAST_FILE


def _window(path: Path) -> Arrays:
    """The first and last 1024 bytes as Magika takes them: without white space at the ends, filled up with 256."""
    data = path.read_bytes()
    head, tail = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
    row = np.full(2048, 256, np.int32)
    row[: len(head)] = np.frombuffer(head, np.uint8)
    row[2048 - len(tail) :] = np.frombuffer(tail, np.uint8)
    return {"bytes": row[None]}


# --- sentences


def sentences(count: int) -> list[str]:
    """First paragraphs of what the standard library's functions and classes say of themselves, in ASCII."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        for text in (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)):
            words = " ".join((text or "").split("\n\n")[0].split())
            if 40 <= len(words) <= 240 and words.isascii():
                found[words] = None
    texts = list(found)
    if len(texts) < count:
        raise Missing(f"the standard library's sources have {len(texts)} sentences, {count} are needed")
    return texts[:: len(texts) // count][:count]


def _minilm(folder: Path) -> Examples:
    package = _package(minilm.PACKAGE, minilm.INSTALL)
    path = folder / "minilm.onnx"
    minilm.build(package, path)
    words = minilm.Tokenizer(package)
    texts = sentences(CALIBRATING + JUDGING)
    judging = tuple(words.request([text], most=_MOST) for text in texts[CALIBRATING:])

    def nearest(answers: Answers) -> Array:
        rows = np.stack([minilm.embedding(r, a) for r, a in zip(judging, answers, strict=True)])
        alike = rows @ rows.T
        np.fill_diagonal(alike, -1.0)
        return np.asarray(alike.argmax(axis=1))

    def right(answers: Answers, reference: Answers) -> float:
        return float(np.mean(nearest(answers) == nearest(reference)))

    whole = words.request([" ".join(texts)], most=TOKENS)
    return Examples(
        workload=Workload("minilm", f"MiniLM-L6, sentences, {TOKENS} tokens", path, path, whole, "trained"),
        calibration=words.request(texts[:CALIBRATING], most=_MOST, full=True),
        judging=judging,
        source="sentences of the standard library's documentation",
        view=minilm.embedding,
        right=right,
        said="sentences whose nearest is the same as in fp32",
    )


# --- drawn words


_WORD: Final = re.compile(r"\b[A-Za-z]{3,8}\b")


def _rapidocr(_folder: Path) -> Examples:
    workload = _trained("rapidocr_rec", "pip install --no-deps rapidocr-onnxruntime==1.4.4")
    try:
        from matplotlib import get_data_path
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as exc:
        raise Missing("matplotlib, which brings the faces, is not installed") from exc
    import onnx

    fonts = Path(get_data_path()) / "fonts" / "ttf"
    faces = [
        ImageFont.truetype(fonts / f"{name}.ttf", 30)
        for name in ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")
    ]
    words = list(dict.fromkeys(w for text in sentences(CALIBRATING + JUDGING) for w in _WORD.findall(text)))

    def line(at: int) -> tuple[Arrays, str]:
        text = " ".join(words[2 * at % len(words) :][:2])
        image = Image.new("RGB", (320, 48), "white")
        ImageDraw.Draw(image).text((6, 6), text, fill="black", font=faces[at % len(faces)])
        pixels = np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1)
        return {"x": np.ascontiguousarray((pixels / 255 - 0.5) / 0.5)[None]}, text

    drawn = [line(at) for at in range(CALIBRATING + JUDGING)]
    texts = [text for _, text in drawn[CALIBRATING:]]
    notes = {p.key: p.value for p in onnx.load(workload.path, load_external_data=False).metadata_props}
    alphabet = ["", *notes["character"].split("\n"), " "]

    def read(answer: Mapping[str, Array]) -> str:
        best = next(iter(answer.values()))[0].argmax(axis=-1).tolist()
        kept = [b for a, b in zip([0, *best], best, strict=False) if b != a]
        return "".join(alphabet[at] for at in kept if at < len(alphabet))

    def right(answers: Answers, _reference: Answers) -> float:
        return float(
            np.mean(
                [read(a).replace(" ", "") == t.replace(" ", "") for a, t in zip(answers, texts, strict=True)]
            )
        )

    return Examples(
        workload=workload,
        calibration=_stacked([request for request, _ in drawn[:CALIBRATING]]),
        judging=tuple(request for request, _ in drawn[CALIBRATING:]),
        source="two words each of the standard library's documentation, drawn in three faces",
        view=_first,
        right=right,
        said="lines read without a mistake",
    )


# --- tones


def _swift_f0(_folder: Path) -> Examples:
    workload = _trained("swift_f0", "pip install --no-deps swift-f0==0.3.0")
    ends = {name: value for name, value in workload.inputs.items() if name != "audio"}
    time = np.arange(RATE) / RATE
    hertz = np.geomspace(70, 1200, CALIBRATING + JUDGING)
    noise = np.random.default_rng(7)

    def tone(pitch: float) -> Arrays:
        wave = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in (1, 2, 3))
        wave = 0.3 * wave + 0.01 * noise.standard_normal(RATE)
        return {"audio": np.asarray(wave, np.float32)[None], **ends}

    calibrating = [at for at in range(len(hertz)) if at % 3 == 0]
    judging = [at for at in range(len(hertz)) if at % 3 != 0]
    stacked = [tone(hertz[at]) for at in calibrating]
    pitches = hertz[judging]

    def right(answers: Answers, _reference: Answers) -> float:
        heard = np.array([np.median(answer["pitch"]) for answer in answers])
        return float(np.mean(np.abs(heard / pitches - 1) < 0.01))

    return Examples(
        workload=workload,
        calibration={name: np.stack([request[name] for request in stacked]) for name in stacked[0]},
        judging=tuple(tone(hertz[at]) for at in judging),
        source="tones of 70 to 1200 Hz with overtones and a little noise",
        view=_first,
        right=right,
        said="tones heard within 1 %",
    )


# --- made-up weights


def _made_up(name: str, folder: Path) -> Examples:
    entry = BY_NAME[name]
    whole = inputs_of(entry, batch=3 * MADE_UP)
    rows = [{n: array[at : at + 1] for n, array in whole.items()} for at in range(3 * MADE_UP)]
    return Examples(
        workload=make(entry, folder),
        calibration=_stacked(rows[: 2 * MADE_UP]),
        judging=tuple(rows[2 * MADE_UP :]),
        source="made-up inputs, for made-up weights",
        view=_first,
    )


_FOUND: Final[Mapping[str, Callable[[Path], Examples]]] = {
    "magika": _magika,
    "minilm": _minilm,
    "rapidocr": _rapidocr,
    "swift_f0": _swift_f0,
}
TRAINED: Final = tuple(_FOUND)


def known(words: Sequence[str]) -> list[tuple[str, Callable[[Path], Examples]]]:
    """(name, what makes its examples in a folder) of each name, or group (`trained`, or one of the catalogue).

    Raises:
        ClickException: a word that names neither, or a model that is no network.
    """
    chosen: dict[str, Callable[[Path], Examples]] = {}
    networks = {name: entry for name, entry in BY_NAME.items() if entry.trees is None}
    for word in words:
        names = (
            TRAINED
            if word == "trained"
            else tuple(n for n, e in networks.items() if e.group == word) or (word,)
        )
        for name in names:
            if name not in _FOUND and name not in networks:
                raise ClickException(
                    f"no network is called {name!r}; there are {', '.join([*TRAINED, *networks])}, and the groups "
                    "trained, paper, tabular, tiny"
                )
            chosen[name] = _FOUND.get(name) or partial(_made_up, name)
    return list(chosen.items())
