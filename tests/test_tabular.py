"""Files of `strongroom run`: what goes in and what comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import metadata

from strongroom import calls, tabular
from strongroom.calls import TensorInfo
from strongroom.errors import InvalidRequest

MODEL = calls.read_metadata(metadata("m", b"model"))
NAMED = replace(MODEL, feature_names=("a", "b"))


def of(datatype: str) -> calls.ModelMetadata:
    """A model with one input of this datatype."""
    return replace(MODEL, inputs=(TensorInfo("x", datatype, (-1, 2)),))


def read(folder: Path, name: str, data: bytes | str, model: calls.ModelMetadata = MODEL) -> Any:
    """What `read_inputs` makes of a file with this content."""
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return tabular.read_inputs(path, metadata=model).value


def test_csv_of_numbers(tmp_path: Path) -> None:
    """Rows and columns; an empty field is a missing value; a heading without known names is passed over."""
    assert read(tmp_path, "f.csv", "1,2\n3,4.5\n").tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert np.isnan(read(tmp_path, "f.csv", "1,\n")[0, 1])
    assert read(tmp_path, "f.csv", "\ufefflength,width\n\n1,2\n").tolist() == [[1.0, 2.0]]


def test_csv_columns_go_by_the_models_feature_names(tmp_path: Path) -> None:
    """In whatever order the file has them."""
    assert read(tmp_path, "f.csv", "b,a\n1,2\n", NAMED).tolist() == [[2.0, 1.0]]
    assert read(tmp_path, "f.csv", "1,2\n", NAMED).tolist() == [[1.0, 2.0]]


def test_csv_of_other_datatypes(tmp_path: Path) -> None:
    """Whole numbers stay whole, strings stay strings."""
    whole = read(tmp_path, "f.csv", f"{2**60 + 1},2\n", of("INT64"))
    assert whole.dtype.kind == "i" and whole[0, 0] == 2**60 + 1
    assert read(tmp_path, "f.csv", 'a,"b, c"\n', of("BYTES")).tolist() == [["a", "b, c"]]


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("1,2\n3\n", MODEL),
        ("", MODEL),
        ("1,x\n", replace(MODEL, feature_names=("p", "q"))),
        ("a,b\n", NAMED),
        ("b,a\n1\n", NAMED),
        ("b,a\n", MODEL),
        ("b,a\n1,2,3\n", NAMED),
        ("1,secret\n3,4\n", MODEL),
        ("1;2\n3;4\n", MODEL),
        ("1,2\n3,secret\n", MODEL),
        ("1.5,2\n", of("INT64")),
        ("1,2\n", replace(MODEL, inputs=MODEL.inputs * 2)),
        (b"\xff\xfe", MODEL),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str | bytes, model: calls.ModelMetadata) -> None:
    """Ragged, empty, of other features, or not of the input's datatype; a field's text is not repeated."""
    with pytest.raises(InvalidRequest) as refusal:
        read(tmp_path, "f.csv", text, model)
    assert refusal.value.code == "input_unreadable"
    assert "secret" not in refusal.value.message


@pytest.mark.parametrize(
    ("text", "model", "words"),
    [
        ("1,secret\n3,4\n", NAMED, "line 1, field 2: expected a value of FP32"),
        ("a,b\n1,2\n\n,secret\n", NAMED, "line 4, field 2: expected a value of FP32"),
        ("1;2\n3;4\n", NAMED, "expected a comma between fields"),
        ("a;b\n3;4\n", NAMED, "expected a comma between fields"),
        (",a,b\n0,1,2\n", MODEL, "line 1, field 2: expected a value of FP32 (a heading has neither"),
        ("1\t2\n", MODEL, "expected a comma between fields"),
        ("", MODEL, "there is no row in it"),
        ("\n\n", MODEL, "there is no row in it"),
        ("a,b\n", NAMED, "there is no row under its heading"),
        ("1,2\n3\n", MODEL, "line 2: expected 2 fields as in the first row, came 1"),
        ("b,a\n1\n", NAMED, "line 2: expected 2 fields as in the heading, came 1"),
        ("p,q\n1,2\n", NAMED, "its heading does not name the model's features (a, b)"),
    ],
)
def test_a_csv_that_is_refused_says_where(
    tmp_path: Path, text: str, model: calls.ModelMetadata, words: str
) -> None:
    """The line and the field, or what the whole file lacks; never the text of a field."""
    with pytest.raises(InvalidRequest) as refusal:
        read(tmp_path, "f.csv", text, model)
    assert words in refusal.value.message
    assert "secret" not in refusal.value.message


def test_null_in_json_is_a_missing_value(tmp_path: Path) -> None:
    """Of floats alone, at any depth, in both forms; as /model/predict has it."""
    assert np.isnan(np.asarray(read(tmp_path, "f.json", "[[1,null]]"))[0, 1])
    assert np.isnan(np.asarray(read(tmp_path, "f.json", '{"x":[[1,null]]}')["x"])[0, 1])
    assert read(tmp_path, "f.json", "[[1,null]]", of("INT64")) == [[1, None]]
    assert read(tmp_path, "f.json", '{"other":[null]}') == {"other": [None]}


@pytest.mark.parametrize("name", ["f.json", "g.json", "f.npy", "f.npz"])
def test_one_row_is_refused_with_what_to_write(tmp_path: Path, name: str) -> None:
    """A model of rows and columns; the hint is what a person needs who has one row."""
    (tmp_path / "f.json").write_text("[1, 2]")
    (tmp_path / "g.json").write_text('{"x": [1, 2]}')
    np.save(tmp_path / "f.npy", np.float32([1, 2]))
    np.savez(tmp_path / "f.npz", x=np.float32([1, 2]))
    with pytest.raises(InvalidRequest, match=r"one row is \[\[") as refusal:
        tabular.read_inputs(tmp_path / name, metadata=MODEL)
    assert refusal.value.code == "input_rank"


def test_one_dimension_where_the_model_takes_one(tmp_path: Path) -> None:
    """Is no row of anything."""
    vector = replace(MODEL, inputs=(TensorInfo("x", "FP32", (-1,)),))
    assert read(tmp_path, "f.json", "[1, 2]", vector) == [1, 2]


def test_a_request_keeps_the_outputs_that_it_names(tmp_path: Path) -> None:
    """An Open Inference Protocol request says what it wants; the other forms say nothing."""
    request = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}],
        "outputs": [{"name": "z"}, {"name": "y"}],
    }
    (tmp_path / "f.json").write_text(json.dumps(request))
    assert tabular.read_inputs(tmp_path / "f.json", metadata=MODEL).outputs == ("z", "y")
    (tmp_path / "f.json").write_text("[[1, 2]]")
    assert tabular.read_inputs(tmp_path / "f.json", metadata=MODEL).outputs == ()


def test_results_as_text_are_whole() -> None:
    """Every row on a line, digits that tell numbers apart, strings as text without control characters."""
    many = np.arange(4000.0).reshape(2000, 2)
    assert len(tabular.as_text(many).splitlines()) == 2000
    assert "..." not in tabular.as_text(many)
    wide = np.zeros((2, 500))
    assert len(tabular.as_text(wide).splitlines()) == 2
    assert "0.1234567890123456" in tabular.as_text(np.array([0.1234567890123456]))
    assert tabular.as_text(np.float32([[0.1]])) == "[[0.1]]"
    words = np.array([["grün".encode(), b"\x1b[2J"]], dtype=object)
    assert tabular.as_text(words) == "[['grün' '\\x1b[2J']]"
    assert tabular.as_text(np.array(b"\xff", dtype=object)) == "'\\\\xff'"


def test_json_forms(tmp_path: Path) -> None:
    """A nested list, lists by name, and an Open Inference Protocol request."""
    assert read(tmp_path, "f.json", "[[1,2]]") == [[1, 2]]
    assert read(tmp_path, "f.json", '{"x":[[1,2]]}') == {"x": [[1, 2]]}
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    assert read(tmp_path, "f.json", json.dumps(request))["x"].tolist() == [[1.0, 2.0]]


def test_arrays(tmp_path: Path) -> None:
    """.npy gives an array, .npz a dict."""
    np.save(tmp_path / "f.npy", np.float32([[1.0, 2.0]]))
    assert tabular.read_inputs(tmp_path / "f.npy", metadata=MODEL).value.tolist() == [[1.0, 2.0]]
    np.savez(tmp_path / "f.npz", x=np.float32([[1.0, 2.0]]))
    assert tabular.read_inputs(tmp_path / "f.npz", metadata=MODEL).value["x"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("name", ["f.txt", "f", "f.npy", "f.npz", "f.json", "absent.csv", "f.pkl"])
def test_files_that_are_not_what_they_are_called(tmp_path: Path, name: str) -> None:
    """Or not there, or of a kind that is not read."""
    (tmp_path / "f.txt").write_bytes(b"x")
    with pytest.raises(InvalidRequest) as refusal:
        if name.startswith("absent"):
            tabular.read_inputs(tmp_path / name, metadata=MODEL)
        read(tmp_path, name, b"\x80\x04nothing that is known")
    assert refusal.value.code == "input_unreadable"
    assert ("does not exist" in refusal.value.message) == name.startswith("absent")


def test_a_pickled_array_is_not_read(tmp_path: Path) -> None:
    """numpy would unpickle it."""
    np.save(tmp_path / "f.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidRequest) as refusal:
        tabular.read_inputs(tmp_path / "f.npy", metadata=MODEL)
    assert refusal.value.code == "npy_pickle"


def test_results_go_into_every_form_and_come_back(tmp_path: Path) -> None:
    """One array into .npy, .csv, .npz and .json; several into the last two."""
    one, two = {"y": np.float32([[1.5, 2.0]])}, {"y": np.float32([[1.5]]), "z": np.int64([7])}
    for name in ("r.npy", "r.csv", "r.npz", "r.json"):
        tabular.write_result(tmp_path / name, one, metadata=MODEL)
    assert np.load(tmp_path / "r.npy").tolist() == [[1.5, 2.0]]
    assert (tmp_path / "r.csv").read_text() == "1.5,2.0\n"
    for name in ("s.npz", "s.json"):
        tabular.write_result(tmp_path / name, two, metadata=MODEL)
    assert np.load(tmp_path / "s.npz")["z"].tolist() == [7]
    assert [o["name"] for o in json.loads((tmp_path / "s.json").read_text())["outputs"]] == ["y", "z"]


@pytest.mark.parametrize("name", ["r.npy", "r.csv", "r.txt", "r"])
def test_forms_that_cannot_hold_a_result(tmp_path: Path, name: str) -> None:
    """Two arrays in a form of one; or a form that is not written. Found out before anything runs."""
    with pytest.raises(InvalidRequest) as refusal:
        tabular.check_output(tmp_path / name, arrays=2)
    assert refusal.value.code == "output_unwritable"
    with pytest.raises(InvalidRequest) as refusal:
        tabular.write_result(tmp_path / name, {"y": np.zeros(1), "z": np.zeros(1)}, metadata=MODEL)
    assert refusal.value.code == "output_unwritable"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that is not there, or a file where a folder must be, and a folder in place of the file."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npy").mkdir()
    for path in (tmp_path / "absent" / "r.npy", tmp_path / "file" / "r.npy", tmp_path / "folder.npy"):
        with pytest.raises(InvalidRequest) as early:
            tabular.check_output(path, arrays=1)
        assert early.value.code == "output_unwritable"
    tabular.check_output(tmp_path / "r.npy", arrays=1)
    with pytest.raises(InvalidRequest) as refusal:
        tabular.write_result(tmp_path / "absent" / "r.npy", {"y": np.zeros(1)}, metadata=MODEL)
    assert refusal.value.code == "output_unwritable"
