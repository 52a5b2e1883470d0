"""Admission as a whole: formats agree, digests are right, only `admit` makes proofs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from strongroom.errors import AdmissionRefused, Conflict, Error, LimitExceeded, MalformedInput, SealRefused
from strongroom.models import admit, reopen
from strongroom.models.info import STANDARD_LIMITS, Admitted, ModelInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fuzz"))

import targets_data


def xgboost_model() -> bytes:
    """The iris classifier of the examples."""
    return (Path(__file__).resolve().parents[2] / "examples" / "iris_model.json").read_bytes()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_an_onnx_model_is_admitted(kind: Any) -> None:
    """Digests are of the upload and of what the engine gets; any bytes-like object will do."""
    admitted = admit(kind(targets_data.MODEL), format="onnx", limits=STANDARD_LIMITS)
    assert admitted.sha256 == hashlib.sha256(targets_data.MODEL).hexdigest()
    assert admitted.canonical_sha256 == hashlib.sha256(admitted.onnx).hexdigest() != admitted.sha256
    assert isinstance(admitted, Admitted) and admitted.info.format == "onnx"


def test_an_xgboost_model_is_admitted_as_onnx() -> None:
    """Trees come out as an ONNX file, with their own format and digest in the metadata."""
    data = xgboost_model()
    admitted = admit(data, format="xgboost-json", limits=STANDARD_LIMITS)
    assert admitted.info.format == "xgboost-json"
    assert admitted.sha256 == hashlib.sha256(data).hexdigest()
    assert admit(admitted.onnx, format="onnx", limits=STANDARD_LIMITS).info.outputs == admitted.info.outputs


@pytest.mark.parametrize(
    ("data", "format", "kind", "code"),
    [
        (targets_data.MODEL, "xgboost-json", Conflict, "format_mismatch"),
        (b'{"version": [3, 2, 0]}', "onnx", Conflict, "format_mismatch"),
        (b'{"version": [3, 2, 0]}', "xgboost-ubj", Conflict, "format_mismatch"),
        (targets_data.MODEL, "pickle", Conflict, "format_mismatch"),
        (b"", "onnx", MalformedInput, "format_unknown"),
        (b"\x80\x04K\x01.", "onnx", MalformedInput, "format_not_accepted"),
        (b"\x18\x00\x00\x00ORTM", "onnx", MalformedInput, "format_not_accepted"),
        (targets_data.MODEL[:-1], "onnx", MalformedInput, "onnx_malformed"),
        (b'{"version": 1}', "xgboost-json", Error, None),
    ],
)
def test_refusals(data: bytes, format: str, kind: type[Error], code: str | None) -> None:
    """Declared and detected format agree, and the format's own rules hold."""
    with pytest.raises(kind) as caught:
        admit(data, format=format, limits=STANDARD_LIMITS)
    assert code is None or caught.value.code == code


def test_size_is_the_first_check() -> None:
    """What is too large is not looked at."""
    limits = dataclasses.replace(STANDARD_LIMITS, model_bytes=3)
    with pytest.raises(LimitExceeded) as caught:
        admit(b"xxxx", format="onnx", limits=limits)
    assert caught.value.code == "model_too_large"


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_what_was_admitted_is_opened_again_by_its_digest(kind: Any) -> None:
    """Without parsing it again; the same proof comes out, and other bytes are refused."""
    admitted = admit(targets_data.MODEL, format="onnx", limits=STANDARD_LIMITS)
    facts = {"info": admitted.info, "sha256": admitted.sha256, "canonical_sha256": admitted.canonical_sha256}
    again = reopen(kind(admitted.onnx), **facts)
    assert again == admitted and type(again.onnx) is bytes
    with pytest.raises(SealRefused) as caught:
        reopen(kind(targets_data.MODEL), **facts)
    assert caught.value.code == "seal_digest"


def test_a_long_model_is_copied_whole() -> None:
    """In pieces, so that other threads get their turn."""
    info = admit(targets_data.MODEL, format="onnx", limits=STANDARD_LIMITS).info
    data = bytearray(range(256)) * 9000
    digest = hashlib.sha256(data).hexdigest()
    assert reopen(data, info=info, sha256=digest, canonical_sha256=digest).onnx == data


def named_columns(length: int) -> bytes:
    """The iris classifier with four feature names of `length` characters each."""
    document = json.loads(xgboost_model())
    document["learner"]["feature_names"] = [f"{column:0{length}}" for column in range(4)]
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "format"),
    [(named_columns(500), "xgboost-json"), (targets_data.MODEL, "onnx")],
    ids=["xgboost", "onnx"],
)
def test_metadata_of_a_model_is_bounded(data: bytes, format: str) -> None:
    """Names, tensors and notes of one model are in every record and every answer: they have a limit."""
    size = len(json.dumps(admit(data, format=format, limits=STANDARD_LIMITS).info.to_json()))
    small = dataclasses.replace(STANDARD_LIMITS, metadata_bytes=size // 2)
    with pytest.raises(LimitExceeded) as caught:
        admit(data, format=format, limits=small)
    assert caught.value.code == "model_metadata_too_large"


@pytest.mark.parametrize("written", [b"\x08\x08\x12\x06ORTM00", b"{}"])
def test_what_is_written_still_reads_as_onnx(monkeypatch: pytest.MonkeyPatch, written: bytes) -> None:
    """Canonical bytes that onnxruntime, or we, would take for another format are refused."""
    info = admit(targets_data.MODEL, format="onnx", limits=STANDARD_LIMITS).info

    def disguised(*_: object, **__: object) -> tuple[bytes, ModelInfo]:
        return written, info

    monkeypatch.setattr("strongroom.models.onnx.parse_onnx", disguised)
    with pytest.raises((AdmissionRefused, MalformedInput)):
        admit(targets_data.MODEL, format="onnx", limits=STANDARD_LIMITS)


def test_importing_the_package_needs_no_onnx() -> None:
    """The client install has neither onnx nor onnxruntime, and imports `strongroom.models.info`."""
    code = "import sys, strongroom.models.info, strongroom.models as m; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
