"""Arrays on their way to a model: values keep their meaning or are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_server import metadata

from strongroom import calls, inference, matching, npy, oip, oip_json
from strongroom.calls import Answer, ModelMetadata, TensorInfo
from strongroom.errors import Conflict, Failure, InvalidRequest

MODEL = calls.read_metadata(metadata("m", b"model"))


def model_of(datatype: str, *more: str) -> ModelMetadata:
    """A model with one input `x` of this datatype, and further inputs."""
    inputs = tuple(TensorInfo(name, d, (-1,)) for name, d in zip("xyz", (datatype, *more), strict=False))
    return replace(MODEL, inputs=inputs)


@pytest.mark.parametrize(
    ("value", "datatype", "expected"),
    [
        ([1.5], "FP32", np.float32([1.5])),
        (np.float64([0.1]), "FP32", np.float32([0.1])),
        ([1, 2], "FP64", np.float64([1, 2])),
        ([1, 2], "UINT8", np.uint8([1, 2])),
        (np.uint64([7]), "INT8", np.int8([7])),
        ([True], "BOOL", np.array([True])),
        ([True], "FP32", np.float32([1])),
        ([float("nan"), float("inf")], "FP16", np.float16([np.nan, np.inf])),
        (3.0, "FP32", np.float32(3.0)),
        (np.float32([1.0]).astype(">f4"), "FP32", np.float32([1.0])),
    ],
)
def test_values_that_fit(value: Any, datatype: str, expected: Any) -> None:
    """Floats are rounded, whole numbers keep their value, byte order does not matter."""
    fitted = inference.fit_inputs(model_of(datatype), value)["x"]
    assert fitted.dtype == np.asarray(expected).dtype
    assert fitted.shape == np.asarray(expected).shape
    np.testing.assert_array_equal(fitted, expected)


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        ([1.0], "INT64"),
        ([300], "UINT8"),
        ([-1], "UINT64"),
        ([1e300], "FP32"),
        ([70000], "FP16"),
        ([1 + 2j], "FP64"),
        (["1"], "FP32"),
        ([1], "BOOL"),
        ([1.0], "BYTES"),
        ([None], "BYTES"),
        (["\ud800"], "BYTES"),
        ([[1], [1, 2]], "FP32"),
        ([1], "BF16"),
    ],
)
def test_values_that_do_not_fit(value: Any, datatype: str) -> None:
    """Nothing is cut, wrapped or overflowed into place; the message names the input and no value."""
    with pytest.raises(InvalidRequest) as refusal:
        inference.fit_inputs(model_of(datatype), value)
    assert refusal.value.code == "input_dtype"
    assert "'x'" in refusal.value.message and "300" not in refusal.value.message


def test_strings() -> None:
    """str, bytes and numpy's own strings become bytes, in any shape."""
    for value in (["a", "ö"], [b"a", "ö".encode()], np.array(["a", "ö"])):
        assert inference.fit_inputs(model_of("BYTES"), value)["x"].tolist() == [b"a", b"\xc3\xb6"]


@pytest.mark.parametrize("value", [{}, {"x": [1], "extra": [1]}, {"other": [1]}])
def test_names_must_be_the_models(value: Any) -> None:
    """No input is left out or made up."""
    with pytest.raises(InvalidRequest) as refusal:
        inference.fit_inputs(model_of("FP32"), value)
    assert refusal.value.code == "input_names"


def test_several_inputs_need_names() -> None:
    """An array alone could be any of them."""
    with pytest.raises(InvalidRequest) as refusal:
        inference.fit_inputs(model_of("FP32", "INT64"), [1.0])
    assert refusal.value.code == "input_names"
    fitted = inference.fit_inputs(model_of("FP32", "INT64"), {"y": [1], "x": [1.0]})
    assert list(fitted) == ["x", "y"]


def test_which_outputs() -> None:
    """Array in: the primary one. Dict in: all. A name: that one. Names: those."""
    assert inference.wanted_outputs(MODEL, dict_in=False, outputs=None) == inference.Wanted(("y",), True)
    assert inference.wanted_outputs(MODEL, dict_in=True, outputs=None).names == ("y", "z", "words")
    assert inference.wanted_outputs(MODEL, dict_in=True, outputs="z") == inference.Wanted(("z",), True)
    assert inference.wanted_outputs(MODEL, dict_in=False, outputs=["z"]) == inference.Wanted(("z",), False)


@pytest.mark.parametrize("outputs", ["no", [], ["y", "y"], ["y", "no"], ""])
def test_outputs_that_are_not_there(outputs: Any) -> None:
    """Refused before anything is sent."""
    with pytest.raises(InvalidRequest) as refusal:
        inference.wanted_outputs(MODEL, dict_in=False, outputs=outputs)
    assert refusal.value.code == "output_unknown"


def request_for(model: ModelMetadata, value: Any, outputs: Any) -> calls.Request:
    """The request for these inputs and outputs."""
    wanted = inference.wanted_outputs(model, dict_in=isinstance(value, dict), outputs=outputs)
    return inference.infer_request(model, inference.fit_inputs(model, value), wanted=wanted, received=None)


def test_forms_on_the_wire() -> None:
    """One tensor: .npy; several: .npz; strings on either side: JSON. The digest goes with each."""
    two = model_of("FP32", "FP32")
    cases = [
        (MODEL, [[1.0, 2.0]], "y", "application/x-npy", "application/x-npy"),
        (MODEL, [[1.0, 2.0]], ["y", "z"], "application/x-npy", "application/x-npz"),
        (two, {"x": [1.0], "y": [2.0]}, "y", "application/x-npz", "application/x-npy"),
        (MODEL, [[1.0, 2.0]], "words", "application/json", "application/json"),
        (model_of("BYTES"), ["a"], "y", "application/json", "application/json"),
    ]
    for model, value, outputs, content, accept in cases:
        headers = dict(request_for(model, value, outputs).headers)
        assert (headers["Content-Type"], headers["Accept"]) == (content, accept)
        assert headers["Strongroom-Model-Digest"] == model.sha256
    request = request_for(MODEL, [[1.0, 2.0]], ["z", "y"])
    assert request.path == "/v2/models/m/versions/1/infer"
    assert request.query == "output=z&output=y"
    assert b"".join(request.body.chunks()) == npy.encode_npy(np.float32([[1.0, 2.0]]))


def answer(body: bytes, content: str) -> Answer:
    """An answer of the right model."""
    stated = {"strongroom-model-sha256": MODEL.sha256, "strongroom-precision": MODEL.precision}
    return Answer(200, {"content-type": content, **stated}, body)


ARRAY = np.float32([[1.0]])
JSON_ANSWER = oip_json.encode_response(
    oip.InferResponse(
        model_name="m",
        model_version="1",
        id=None,
        outputs=(oip.Tensor(name="y", datatype="FP32", array=ARRAY),),
        parameters=(),
    )
)


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (npy.encode_npy(ARRAY), "application/x-npy"),
        (npy.encode_npz({"y": ARRAY}), "application/x-npz"),
        (JSON_ANSWER, "application/json; charset=utf-8"),
    ],
)
def test_results_that_are_read(body: bytes, content: str) -> None:
    """All three forms give the same array."""
    wanted = inference.Wanted(("y",), single=True)
    result = inference.read_result(answer(body, content), metadata=MODEL, wanted=wanted)
    np.testing.assert_array_equal(result, ARRAY)


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b"", "application/x-npy"),
        (npy.encode_npy(ARRAY)[:-1], "application/x-npy"),
        (npy.encode_npz({"z": ARRAY}), "application/x-npz"),
        (b"{}", "application/json"),
        (JSON_ANSWER, "text/html"),
        (JSON_ANSWER, ""),
    ],
)
def test_results_that_are_not(body: bytes, content: str) -> None:
    """Cut, incomplete, or in a form that was not asked for: a fault of the server, never a partial result."""
    wanted = inference.Wanted(("y",), single=True)
    with pytest.raises(Failure) as refusal:
        inference.read_result(answer(body, content), metadata=MODEL, wanted=wanted)
    assert refusal.value.code == "answer_malformed"


@pytest.mark.parametrize("stated", ["int8", "FP32", "", None])
def test_a_result_in_another_precision_is_refused(stated: str | None) -> None:
    """Than the metadata says, or in one that nobody states."""
    good = answer(npy.encode_npy(ARRAY), "application/x-npy")
    others = {name: value for name, value in good.headers.items() if name != "strongroom-precision"}
    headers = others | ({} if stated is None else {"strongroom-precision": stated})
    with pytest.raises(Conflict) as refusal:
        inference.read_result(
            Answer(200, headers, good.data), metadata=MODEL, wanted=inference.Wanted(("y",), single=True)
        )
    assert refusal.value.code == "precision_refused"


@pytest.mark.parametrize(
    ("precision", "pinned"), [("fp32", "a"), ("as-uploaded", "a"), ("int8", "b"), ("fp16", "b")]
)
def test_a_call_is_tied_to_what_runs(precision: str, pinned: str) -> None:
    """The upload's digest, but of what the server made in less precision its own: one upload has several of those."""
    model = replace(MODEL, sha256="a" * 64, canonical_sha256="b" * 64, precision=precision)
    assert dict(request_for(model, [[1.0, 2.0]], None).headers)["Strongroom-Model-Digest"] == pinned * 64
    matching.check_digest(model, expected=pinned * 64)
    matching.check_received(model, sent="a" * 64)
    for check in (
        lambda: matching.check_digest(model, expected={"a": "b", "b": "a"}[pinned] * 64),
        lambda: matching.check_received(model, sent="b" * 64),
    ):
        with pytest.raises(Conflict) as refusal:
            check()
        assert refusal.value.code == "model_digest_mismatch"


def test_a_result_of_another_model_is_refused() -> None:
    """Whatever it looks like."""
    other = Answer(200, {"content-type": "application/x-npy", "strongroom-model-sha256": "0" * 64}, b"")
    with pytest.raises(Conflict) as refusal:
        inference.read_result(other, metadata=MODEL, wanted=inference.Wanted(("y",), single=True))
    assert refusal.value.code == "model_digest_mismatch"
