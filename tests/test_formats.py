"""Model formats are told from bytes; what is not run here is refused, by name where it is a known mistake."""

from __future__ import annotations

import gzip
import io
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strongroom.errors import MalformedInput
from strongroom.formats import HEAD_BYTES, detect

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))

import targets_data


def _code(head: bytes) -> str:
    with pytest.raises(MalformedInput) as caught:
        detect(head)
    return caught.value.code


@pytest.mark.parametrize(
    "head",
    [
        targets_data.MODEL,
        b"\x08\x08",  # IR version alone
        b"\x08",  # cut within the first field
        b"\x3a\xff\xff\xff\x7fnode",  # the graph first, longer than the head
        b"\x42\x02\x10\x0d\x08\x07\x3a\x00",  # opset import first
    ],
)
def test_protobuf_fields_of_a_model_are_onnx(head: bytes) -> None:
    """Any order of ModelProto's fields is ONNX, as far as the head goes."""
    assert detect(head) == "onnx"


@pytest.mark.parametrize("head", [b'{"version": [3]}', b' \r\n\t{\n "learner"', b"{}", b"{ \n"])
def test_an_object_in_json_is_xgboost_json(head: bytes) -> None:
    """White space before and after the brace is JSON's."""
    assert detect(head) == "xgboost-json"


@pytest.mark.parametrize("head", [b"{L\0\0\0\0\0\0\0\7learner{", b"{i\7learner{", b"{#i\1", b"{$d#i\1"])
def test_an_object_in_ubjson_is_xgboost_ubj(head: bytes) -> None:
    """A key length, or the mark of a typed or counted object, follows the brace."""
    assert detect(head) == "xgboost-ubj"


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", "{}")
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (pickle.dumps([1], protocol=0), "pickle"),
        (pickle.dumps([1], protocol=2), "pickle"),
        (pickle.dumps([1], protocol=5), "pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "pickle"),
        (_zip(), "ZIP"),
        (gzip.compress(targets_data.MODEL), "gzip"),
        (_npy(), "numpy"),
        (b"\x18\x00\x00\x00ORTM\x00\x00", "FlatBuffers"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
        (b"binf\x00\x00\x00\x3f", "old binary"),
        (b"bs64AAAA", "old binary"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b'\xef\xbb\xbf{"a": 1}', "byte-order mark"),
        (b"<?xml version='1.0'?><PMML/>", "PMML"),
    ],
)
def test_known_formats_that_are_not_run_are_named(head: bytes, word: str) -> None:
    """The refusal says what the file is."""
    with pytest.raises(MalformedInput, match=word) as caught:
        detect(head)
    assert caught.value.code == "format_not_accepted"


def test_onnx_that_onnxruntime_would_take_for_its_own_format_is_refused() -> None:
    """A ModelProto whose producer is called "ORTM..." has the FlatBuffers mark at byte 4."""
    assert _code(b"\x08\x08\x12\x06ORTM00\x3a\x00") == "format_not_accepted"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x00",
        b"hello, world",
        b"[1, 2]",
        b"{x",
        b"\x0a\x00",  # field 1 with the wire type of a message
        b"\x08\x08\x78\x00",  # an unknown field 15
        b"\xff" * 11,  # a tag of more than ten bytes
        b"\x08" + b"\xff" * 12,  # a number of more than ten bytes, then no tag of a model
    ],
)
def test_anything_else_is_unknown(head: bytes) -> None:
    """No bytes, text, other JSON, other protobuf messages."""
    assert _code(head) == "format_unknown"


def test_only_the_head_decides() -> None:
    """What follows the first kilobyte plays no part, and any bytes-like object will do."""
    head = targets_data.MODEL[:HEAD_BYTES]
    assert detect(memoryview(head)) == detect(bytearray(head)) == "onnx"


@given(st.binary(max_size=80))
@example(b"\x08" * 80)
@settings(max_examples=300, deadline=None)
def test_any_bytes_have_a_format_or_are_refused(data: bytes) -> None:
    """A value or `strongroom.errors.Error`, nothing else."""
    targets_data.fuzz_format(data)


def test_recorded_files_are_what_they_are() -> None:
    """Every XGBoost model beside this checkout is detected by its extension's format."""
    folder = SHARED / "xgboost-models"
    if not folder.is_dir():
        pytest.skip("not exercised here: the recorded XGBoost models are not beside this checkout")
    for path in [*folder.rglob("*.ubj"), *folder.rglob("*.json")]:
        if path.suffix == ".ubj" or b'"learner"' in path.read_bytes()[:4096]:
            assert detect(path.read_bytes()[:HEAD_BYTES]) == f"xgboost-{path.suffix[1:]}", path
