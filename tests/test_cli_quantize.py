"""`strongroom quantize`: what it writes, what it says, and its exit codes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from models.networks import images, layers, residual, words

from strongroom.cli import main
from strongroom.cli_quantize import _write
from strongroom.errors import InvalidRequest

MADE = ("--precision", "int8", "--out")


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of one command."""
    result = CliRunner().invoke(main, ["quantize", *arguments])
    return result.exit_code, result.output


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Models and examples."""
    (tmp_path / "conv").write_bytes(residual())
    (tmp_path / "layers").write_bytes(layers())
    (tmp_path / "tree").write_bytes(b'{"learner": {}, "version": [3, 2, 0]}')
    sets: dict[str, dict[str, Any]] = {
        "calibrate": images(4),
        "evaluate": {**images(3, seed=5), "labels": np.array([0, 1, 2])},
        "words": words(4),
        "wrong": {"x": words(4)["x"].astype(np.int32)},
        "unlabelled": {**images(3, seed=5), "labels": np.array([0, 1])},
    }
    for name, arrays in sets.items():
        with (tmp_path / name).open("wb") as target:
            np.savez(target, **arrays)
    names = ("conv", "layers", "tree", *sets, "out", "missing")
    return {name: str(tmp_path / name) for name in names}


def test_a_report_for_people(files: dict[str, str]) -> None:
    """Size, speed, accuracy and errors, from examples of its own."""
    code, text = run(files["conv"], "--calibrate", files["calibrate"], "--evaluate", files["evaluate"],
                     *MADE, files["out"])  # fmt: skip
    assert code == 0, text
    for word in ("static, sha256", "size", "rewritten", "speed", "accuracy", "cosine", "agreement"):
        assert word in text
    assert hashlib.sha256(Path(files["out"]).read_bytes()).hexdigest() in text


def test_a_report_as_json(files: dict[str, str]) -> None:
    """The same as one document; without --evaluate nothing is said about errors."""
    code, text = run(files["layers"], "--evaluate", files["words"], "--json", *MADE, files["out"])
    document = json.loads(text)
    assert code == 0 and document["form"] == "dynamic" and document["left"] == {}
    assert document["size"] == Path(files["out"]).stat().st_size < document["size_before"]
    assert document["evaluation"]["outputs"][0]["least_cosine"] > 0.99
    assert document["evaluation"]["accuracy"] is None and document["evaluation"]["speed"] > 0
    code, text = run(files["layers"], *MADE, files["out"] + "2")
    assert code == 0 and "NOT EVALUATED" in text


@pytest.mark.parametrize(
    ("model", "arguments", "exit_code", "shown"),
    [
        ("missing", (), 20, "upload_unreadable"),
        ("tree", (), 10, "format_mismatch"),
        ("conv", (), 10, "precision_nothing"),
        ("layers", ("--exclude", "nobody"), 20, "precision_options"),
        ("layers", ("--calibrate", "wrong"), 20, "input_dtype"),
        ("layers", ("--calibrate", "missing"), 20, "upload_unreadable"),
        ("layers", ("--calibrate", "conv"), 20, "npz_"),
        ("conv", ("--calibrate", "calibrate", "--evaluate", "unlabelled"), 20, "precision_examples"),
        ("layers", ("--precision", "fp16", "--calibrate", "words"), 20, "only int8"),
        ("layers", ("--precision", "bf16"), 20, "bf16"),
        ("layers", ("--out", "layers"), 20, "exists"),
        ("layers", ("--out", "missing/out"), 20, "output_unwritable"),
    ],
)
def test_refusals(
    files: dict[str, str], model: str, arguments: tuple[str, ...], exit_code: int, shown: str
) -> None:
    """Each with its code; nothing is written."""
    given = [files.get(word, word) for word in arguments]
    if "missing/out" in given:
        given[-1] = files["missing"] + "/out"
    code, text = run(files[model], *MADE, files["out"], *given)
    assert (code, shown in text) == (exit_code, True), text
    assert not Path(files["out"]).exists()


class FullDisk(type(Path())):
    """A path on a disk that takes the name and not the bytes."""

    def open(self, mode: str) -> Any:
        """For `_write` only."""
        assert mode == "xb"
        self.touch(exist_ok=False)
        return Path("/dev/full").open("wb")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not exercised here: the system has no /dev/full")
def test_half_a_model_is_not_left(tmp_path: Path) -> None:
    """Whoever looks there later finds nothing that looks like a model; a file that was there stays."""
    out = FullDisk(tmp_path / "model.onnx")
    with pytest.raises(InvalidRequest) as refused:
        _write(out, bytes(100_000))
    assert refused.value.code == "output_unwritable" and not out.exists()
    there = tmp_path / "there.onnx"
    there.write_bytes(b"mine")
    with pytest.raises(InvalidRequest):
        _write(there, b"new")
    assert there.read_bytes() == b"mine"
