"""The protocol's JSON: numbers mean one value or are refused, limits hold on what arrives, and nothing leaks."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strongroom import oip, oip_json
from strongroom.errors import Error, Failure, InvalidRequest, LimitExceeded, MalformedInput
from strongroom.oip import (
    DATATYPES,
    InferRequest,
    InferResponse,
    Tensor,
    WireLimits,
    bytes_array,
    parse_request,
    parse_response,
)
from strongroom.oip_json import encode_request, encode_response

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))

import targets_data

LIMITS = WireLimits(tensors=4, tensor_bytes=1 << 16, total_bytes=1 << 17, elements=4096, name_length=64)
RECORDED = SHARED / "oip" / "triton-2.51-recorded-http.json"


def tensor(
    data: Any, *, datatype: str = "FP32", shape: list[Any] | None = None, **more: Any
) -> dict[str, Any]:
    """One input as JSON; the shape is that of a flat list unless given."""
    return {
        "name": "x",
        "datatype": datatype,
        "shape": [len(data)] if shape is None else shape,
        "data": data,
    } | more


def body(*inputs: Any, **more: Any) -> bytes:
    """A request of these inputs."""
    return json.dumps({"inputs": list(inputs)} | more).encode()


def array(data: Any, **how: Any) -> oip.Array:
    """The array that one input becomes."""
    return parse_request(body(tensor(data, **how)), limits=LIMITS).inputs[0].array


def refusal(data: bytes, kind: type[Error] = Error, limits: WireLimits = LIMITS) -> str:
    """The code with which a request is refused."""
    with pytest.raises(kind) as caught:
        parse_request(data, limits=limits)
    return caught.value.code


# What is accepted


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name[0] in "UI"])
def test_integers_keep_their_limits(datatype: str) -> None:
    """The least and greatest integer of each type arrive unchanged."""
    info = np.iinfo(DATATYPES[datatype])
    values = [int(info.min), 0, 1, int(info.max)]
    got = array(values, datatype=datatype)
    assert got.dtype == DATATYPES[datatype] and got.tolist() == values


def test_integral_floats_stand_for_integers() -> None:
    """Generated clients send 3.0 for 3, in data and in shapes."""
    assert array([3.0, -2, 2e2], datatype="INT32").tolist() == [3, -2, 200]
    assert array([1, 2], datatype="UINT8", shape=[2.0, 1.0]).shape == (2, 1)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_floats_round_to_nearest_and_keep_special_values(datatype: str) -> None:
    """Each number becomes the nearest float of its type; NaN, infinities and -0.0 stay what they are."""
    dtype = DATATYPES[datatype]
    got = array([0.1, 1, -0.0, float("nan"), float("inf"), float("-inf")], datatype=datatype)
    assert got.dtype == dtype and got[0] == dtype.type(0.1) and got[1] == 1
    assert np.signbit(got[2]) and np.isnan(got[3]) and got[4] == np.inf and got[5] == -np.inf


def test_booleans_and_strings() -> None:
    """BOOL takes true and false, BYTES any text; strings are UTF-8."""
    assert array([True, False], datatype="BOOL").tolist() == [True, False]
    assert array(["é", "", 'a"\\[{'], datatype="BYTES").tolist() == ["é".encode(), b"", b'a"\\[{']


def test_nested_data_is_its_flat_form() -> None:
    """Lists nested as the shape says are the elements in row-major order."""
    flat = array([1, 2, 3, 4, 5, 6], shape=[1, 3, 2])
    assert np.array_equal(array([[[1, 2], [3, 4], [5, 6]]], shape=[1, 3, 2]), flat)


@pytest.mark.parametrize(("shape", "data"), [([0, 16], []), ([2, 0], [[], []]), ([], [7]), ([1, 1, 1], [7])])
def test_empty_batches_and_scalars(shape: list[int], data: list[Any]) -> None:
    """A batch of none is legal, nested or flat; a scalar is a list of one with the shape []."""
    assert array(data, shape=shape).shape == tuple(shape)


def test_names_ids_outputs_and_parameters() -> None:
    """Tensor names may hold what exporters write; unknown members are passed over."""
    data = body(
        tensor([1], name="serving/输入:0", parameters={"content_type": "np"}),
        id="42",
        outputs=[{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}],
        parameters={"s": "x", "i": 1, "f": 0.5, "b": False},
        unknown={"a": [None]},
    )
    request = parse_request(data, limits=LIMITS)
    assert (request.id, request.outputs) == ("42", ("a", "b"))
    assert request.inputs[0].name == "serving/输入:0"
    assert request.parameters == (("s", "x"), ("i", 1), ("f", 0.5), ("b", False))


def test_an_empty_id_is_none() -> None:
    """Clients that have no id send an empty one."""
    assert parse_request(body(id=""), limits=LIMITS).id is None


# What is refused: one vector a check, wrong in that respect only

REFUSED = [
    (b"", "oip_not_json"),
    (b"{", "oip_not_json"),
    (b'\xef\xbb\xbf{"inputs": []}', "oip_not_json"),
    ('{"inputs": []}'.encode("utf-16"), "oip_not_json"),
    (b'{"inputs": [], "id": "\xff"}', "oip_not_json"),
    (b"[]", "oip_not_an_object"),
    (b"null", "oip_not_an_object"),
    (b"{}", "oip_member_missing"),
    (b'{"inputs": [], "inputs": []}', "oip_duplicate_member"),
    (b'{"inputs": [], "parameters": {"a": 1, "a": 2}}', "oip_duplicate_member"),
    (b'{"inputs": 3}', "oip_member_type"),
    (b'{"inputs": [3]}', "oip_member_type"),
    (body(outputs=3), "oip_member_type"),
    (body(outputs=[{}]), "oip_member_missing"),
    (body(outputs=[{"name": "a"}, {"name": "a"}]), "oip_duplicate_tensor"),
    (body(id=7), "oip_id_type"),
    (body(id=None), "oip_id_type"),
    (body(id="a\nb"), "oip_name"),
    (body(parameters=[1]), "oip_member_type"),
    (body(parameters={"a": None}), "oip_parameter_type"),
    (body(parameters={"a": [1]}), "oip_parameter_type"),
    (body(parameters={"a": float("nan")}), "oip_parameter_type"),
    (b'{"inputs": [], "parameters": {"a": 1e999}}', "oip_parameter_type"),
    (b'{"inputs": [], "parameters": {"a": "\\ud800"}}', "oip_parameter_type"),
    (body(tensor([1]), tensor([1])), "oip_duplicate_tensor"),
    (body(tensor([1], name="")), "oip_name"),
    (body(tensor([1], name="a\x1b[31m")), "oip_name"),
    (body(tensor([1], name="\ud800")), "oip_name"),
    (body(tensor([1], name=3)), "oip_member_type"),
    (body({"datatype": "FP32", "shape": [1], "data": [1]}), "oip_member_missing"),
    (body({"name": "x", "shape": [1], "data": [1]}), "oip_member_missing"),
    (body({"name": "x", "datatype": "FP32", "data": [1]}), "oip_member_missing"),
    (body({"name": "x", "datatype": "FP32", "shape": [1]}), "oip_member_missing"),
    (body(tensor([1], datatype="INT7")), "oip_datatype"),
    (body(tensor([1], datatype="fp32")), "oip_datatype"),
    (body(tensor([1], datatype=["FP32"])), "oip_datatype"),
    (body(tensor([1], datatype="BF16")), "oip_bf16"),
    (body(tensor([1], shape=[-1])), "oip_shape"),
    (body(tensor([1], shape=[1.5])), "oip_shape"),
    (body(tensor([1], shape=[True])), "oip_shape"),
    (body(tensor([1], shape=["1"])), "oip_shape"),
    (body(tensor([1], shape=[float("nan")])), "oip_shape"),
    (body(tensor([1]) | {"shape": 1}), "oip_member_type"),
    (body(tensor([1]) | {"data": 1}), "oip_member_type"),
    (body(tensor([1]) | {"data": "1"}), "oip_member_type"),
    (body(tensor([1, 2], shape=[3])), "oip_data_shape"),
    (body(tensor([1, 2], shape=[1])), "oip_data_shape"),
    (body(tensor([], shape=[])), "oip_data_shape"),
    (body(tensor([[1, 2]], shape=[2])), "oip_data_shape"),
    (body(tensor([[1, 2], [3]], shape=[2, 2])), "oip_data_shape"),
    (body(tensor([[1, 2], 3], shape=[2, 2])), "oip_data_shape"),
    (body(tensor([[1, 2], [3, 4]], shape=[4, 1])), "oip_data_shape"),
    (body(tensor([[1]], shape=[])), "oip_data_shape"),
    (body(tensor([1, [2]], shape=[2])), "oip_value_type"),
    (body(tensor([None])), "oip_value_type"),
    (body(tensor(["1"])), "oip_value_type"),
    (body(tensor([True])), "oip_value_type"),
    (body(tensor([{}])), "oip_value_type"),
    (body(tensor([1.5], datatype="INT32")), "oip_value_type"),
    (body(tensor([float("nan")], datatype="INT32")), "oip_value_type"),
    (body(tensor([True], datatype="INT32")), "oip_value_type"),
    (body(tensor(["1"], datatype="INT32")), "oip_value_type"),
    (body(tensor([1], datatype="BOOL")), "oip_value_type"),
    (body(tensor([1], datatype="BYTES")), "oip_value_type"),
    (body(tensor([None], datatype="BYTES")), "oip_value_type"),
    (body(tensor(["\ud800"], datatype="BYTES")), "oip_bytes_not_text"),
    (body(tensor([2**31], datatype="INT32")), "oip_value_range"),
    (body(tensor([-1], datatype="UINT8")), "oip_value_range"),
    (body(tensor([-1], datatype="UINT64")), "oip_value_range"),
    (body(tensor([2**64], datatype="UINT64")), "oip_value_range"),
    (body(tensor([1e30], datatype="INT64")), "oip_value_range"),
    (b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1e999]}]}', "oip_value_type"),
    (b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1e999]}]}', "oip_value_range"),
    (body(tensor([1e39])), "oip_value_range"),
    (body(tensor([65520], datatype="FP16")), "oip_value_range"),
    (body(tensor([10**400 // 10], datatype="FP64")), "oip_value_range"),
    (body(tensor([1], parameters={"binary_data_size": 4})), "oip_extension_unsupported"),
    (body(tensor([1], parameters={"shared_memory_region": "r"})), "oip_extension_unsupported"),
    (body(outputs=[{"name": "y", "parameters": {"classification": 3}}]), "oip_extension_unsupported"),
    (body(tensor([1], parameters=3)), "oip_member_type"),
]


@pytest.mark.parametrize(
    ("data", "code"), REFUSED, ids=[f"{n}-{code}" for n, (_, code) in enumerate(REFUSED)]
)
def test_refusals(data: bytes, code: str) -> None:
    """Each request is wrong in one respect, and refused with its code."""
    assert refusal(data) == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (body(*(tensor([1], name=f"{n}") for n in range(5))), "oip_too_many_tensors"),
        (body(outputs=[{"name": f"{n}"} for n in range(5)]), "oip_too_many_tensors"),
        (body(tensor([1], name="n" * 65)), "oip_too_long_name"),
        (body(id="n" * 65), "oip_too_long_name"),
        (body(parameters={"n" * 65: 1}), "oip_too_long_name"),
        (body(parameters={f"{n}": n for n in range(65)}), "oip_too_many_parameters"),
        (body(tensor([0] * 4097, datatype="BOOL")), "oip_too_many_elements"),
        (body(*(tensor([0] * 2100, name=n) for n in "ab")), "oip_too_many_elements"),
        (body(tensor([1], shape=[1 << 40, 0])), "oip_too_many_elements"),
        (body(tensor([1], shape=[1] * 33)), "oip_too_deep"),
        (body(tensor(["s" * 65537], datatype="BYTES")), "oip_too_many_bytes"),
        (body(*(tensor(["s" * 50000], name=n, datatype="BYTES") for n in "abc")), "oip_too_many_bytes"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "oip_too_deep"),
        (b"[" * 5000, "oip_too_deep"),
        (b'{"a": [' + b"{}," * 20_000 + b"0]}", "oip_too_many_elements"),
        (b'{"a": ' + b"1" * 401 + b"}", "oip_too_many_digits"),
        (b'{"a": 0.' + b"1" * 401 + b"}", "oip_too_many_digits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits(data: bytes, code: str) -> None:
    """More than the limits is refused, whatever else the message says."""
    assert refusal(data, LimitExceeded) == code


@pytest.mark.parametrize("offset", [0, 1, 200, 399, 400, 401])
def test_a_long_number_is_found_across_pieces(offset: int) -> None:
    """The scan works on pieces of the text; a run of digits that spans two is still one number."""
    padding = b" " * (oip._SCAN - offset)
    assert refusal(padding + b"1" * 401) == "oip_too_many_digits"
    assert refusal(padding + b"1" * 400) == "oip_not_an_object"


@pytest.mark.parametrize("slashes", range(5))
@pytest.mark.parametrize("offset", range(4))
def test_escaped_quotes_are_found_across_pieces(slashes: int, offset: int) -> None:
    """A quote after an odd number of backslashes does not end a string, wherever the pieces are cut."""
    head = b'{"inputs":[],"a":"'
    text = head + b"s" * (oip._SCAN - len(head) - offset) + b"\\" * slashes + b'"' + b"[" * 50
    closing = b'"}' if slashes % 2 else b"]" * 50 + b"}"
    expected = None if slashes % 2 else "oip_too_deep"
    try:
        parse_request(text + closing, limits=LIMITS)
        assert expected is None
    except Error as exc:
        assert exc.code == expected


def test_digits_and_brackets_within_strings_do_not_count() -> None:
    """Text may be long, numeric and full of brackets."""
    text = "1" * 5000 + "[" * 5000 + "," * 30_000
    assert array([text], datatype="BYTES").tolist() == [text.encode()]


def test_the_scan_is_linear() -> None:
    """Texts made against the scan (quotes, backslashes, brackets, one endless string) cost what their length says."""
    limits = WireLimits(
        tensors=4, tensor_bytes=1 << 30, total_bytes=1 << 30, elements=1 << 30, name_length=64
    )
    for pattern in (b'"', b'\\"', b'"\\', b"[]", b"1" * 400 + b",", b'""'):
        assert refusal(b'"' + pattern * (2_000_000 // len(pattern)), limits=limits) in (
            "oip_not_json",
            "oip_not_an_object",
        )


def test_refusals_hold_no_content() -> None:
    """Neither message nor exception chain repeats what was in the request."""
    secret = "7531902468"
    for data in (
        body(tensor([int(secret)], datatype="INT8")),
        body(tensor([secret])),
        b'{"inputs": [' + secret.encode(),
        body(tensor([1], name=secret + "\n")),
        body(tensor([1], datatype=secret)),
    ):
        with pytest.raises(Error) as caught:
            parse_request(data, limits=LIMITS)
        error: BaseException | None = caught.value
        while error is not None:
            assert secret not in str(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


# Both ways


def test_requests_and_responses_survive_the_journey() -> None:
    """Every datatype, written and read again, is the same to the last bit."""
    tensors = [Tensor("s", "BYTES", bytes_array([b"a", "é".encode()], shape=(2, 1)))]
    for name, dtype in DATATYPES.items():
        if dtype.kind != "O":
            tensors.append(Tensor(name, name, np.arange(6).astype(dtype).reshape(2, 3)))
    for some in (tensors[:3], tensors[3:6], tensors[6:9], tensors[9:]):
        request = InferRequest(id="i", inputs=tuple(some), outputs=("y",), parameters=(("p", 1),))
        got = parse_request(encode_request(request), limits=LIMITS)
        assert (got.id, got.outputs, got.parameters) == ("i", ("y",), (("p", 1),))
        response = InferResponse(
            model_name="m", model_version="2", id="i", outputs=tuple(some), parameters=(("p", True),)
        )
        back = parse_response(encode_response(response), limits=LIMITS)
        assert (back.model_name, back.model_version, back.id, back.parameters) == (
            "m",
            "2",
            "i",
            (("p", True),),
        )
        for sent, one, other in zip(some, got.inputs, back.outputs, strict=True):
            for came in (one, other):
                assert (came.name, came.datatype, came.shape) == (sent.name, sent.datatype, sent.shape)
                assert came.array.tolist() == sent.array.tolist()


@pytest.mark.slow
@given(
    hnp.arrays(
        dtype=st.sampled_from([np.float16, np.float32, np.float64]),
        shape=hnp.array_shapes(max_dims=3, max_side=4),
    )
)
@settings(max_examples=100, deadline=None)
def test_every_float_survives_the_journey(values: oip.Array) -> None:
    """Denormals, signed zeros and infinities come back bit for bit; a NaN comes back as a NaN."""
    sent = Tensor("x", oip.datatype_of(values), values)
    request = InferRequest(id=None, inputs=(sent,), outputs=(), parameters=())
    got = parse_request(encode_request(request), limits=LIMITS).inputs[0].array
    number = ~np.isnan(values)
    assert got.dtype == values.dtype and np.array_equal(np.isnan(got), ~number)
    assert got[number].tobytes() == values[number].tobytes()


def test_nan_is_written_as_the_recorded_server_writes_it() -> None:
    """Bare literals, flat data, no white space."""
    values = Tensor("y", "FP32", np.array([[1, np.nan], [np.inf, -np.inf]], dtype=np.float32))
    response = InferResponse(model_name="m", model_version=None, id=None, outputs=(values,), parameters=())
    assert encode_response(response) == (
        b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[2,2],'
        b'"data":[1.0,NaN,Infinity,-Infinity]}]}'
    )


def test_bytes_that_are_no_text_have_no_json() -> None:
    """An output that is not UTF-8 is refused, not mangled."""
    value = Tensor("y", "BYTES", bytes_array([b"\xff"], shape=(1,)))
    with pytest.raises(InvalidRequest) as caught:
        encode_request(InferRequest(id=None, inputs=(value,), outputs=(), parameters=()))
    assert caught.value.code == "oip_bytes_not_text"


@pytest.mark.parametrize(
    "document",
    [
        {"outputs": []},
        {"model_name": 3, "outputs": []},
        {"model_name": "m"},
        {"model_name": "m", "model_version": 1, "outputs": []},
    ],
)
def test_malformed_responses_are_refused(document: dict[str, Any]) -> None:
    """A server's answer is read as strictly as a client's request."""
    with pytest.raises(MalformedInput):
        parse_response(json.dumps(document).encode(), limits=LIMITS)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP32", np.zeros(2)),
        ("FP33", np.zeros(2, np.float32)),
        ("FP32", np.zeros((2, 3), np.float32).T),
        ("FP64", np.zeros(2, dtype=">f8")),
    ],
)
def test_a_tensor_is_of_its_datatype_or_is_not_made(datatype: str, values: oip.Array) -> None:
    """Another dtype, byte order or memory order never gets past the constructor."""
    with pytest.raises(Failure):
        Tensor("x", datatype, values)


def test_dtypes_without_a_name_are_refused() -> None:
    """Complex numbers are none of the protocol's."""
    with pytest.raises(InvalidRequest) as caught:
        oip.datatype_of(np.zeros(1, np.complex64))
    assert caught.value.code == "oip_datatype"


@given(st.binary(max_size=200))
@example(targets_data.REQUEST)
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_request_or_are_refused(data: bytes) -> None:
    """A value or `strongroom.errors.Error`, nothing else."""
    targets_data.fuzz_oip_request(data)
    targets_data.fuzz_oip_response(data)


# What a real server took and gave

ACCEPTED_BY_BOTH = {
    "json_ok", "json_v1", "json_v9", "json_nested", "json_one_output", "json_no_content_type", "json_batch2",
    "json_empty_outputs", "err_zero_batch", "fp32_json", "fp32_json_nan", "bytes_json", "unknown_model_infer",
    "err_wrong_dtype", "err_wrong_shape", "err_bad_dim", "err_unknown_output", "err_one_missing", "err_extra_input",
}  # fmt: skip
REFUSED_HERE = {
    "err_bad_json": "oip_not_json", "err_empty": "oip_not_json", "err_array": "oip_not_an_object",
    "err_no_inputs": "oip_member_missing", "err_inputs_not_list": "oip_member_type",
    "err_duplicate_input": "oip_duplicate_tensor", "err_unknown_dtype": "oip_datatype",
    "err_short_data": "oip_data_shape", "err_long_data": "oip_data_shape", "err_negative_dim": "oip_shape",
    "err_huge_dim": "oip_too_many_elements", "err_string_for_int": "oip_value_type",
    "err_float_for_int": "oip_value_type", "err_int_overflow": "oip_value_range",
    "err_no_name": "oip_member_missing", "err_no_data": "oip_member_missing", "err_no_shape": "oip_member_missing",
    "err_id_number": "oip_id_type", "err_deep_json": "oip_too_deep", "fp32_json_null": "oip_value_type",
    "bin_no_header": "oip_not_json",
}  # fmt: skip


def _recorded() -> dict[str, Any]:
    if not RECORDED.is_file():
        pytest.skip("not exercised here: the recorded protocol exchanges are not beside this checkout")
    return {entry["name"]: entry for entry in json.loads(RECORDED.read_bytes())}


def test_recorded_requests_are_accepted_or_refused_as_stated() -> None:
    """What a recorded Triton 2.51 answered with 200 is accepted, but for integer overflow, which it truncates."""
    recorded = _recorded()
    for name in ACCEPTED_BY_BOTH:
        parse_request(base64.b64decode(recorded[name]["request"]["body_b64"]), limits=LIMITS)
    for name, code in REFUSED_HERE.items():
        assert refusal(base64.b64decode(recorded[name]["request"]["body_b64"])) == code, name


def test_recorded_responses_are_read_and_written_alike() -> None:
    """Its JSON answers parse, and what we write of them has the same members and values."""
    count = 0
    for entry in _recorded().values():
        text = entry["response"].get("body", "")
        if not text.startswith(('{"id"', '{"model_name"')) or "binary_data_size" in text:
            continue
        written = encode_response(parse_response(text.encode(), limits=LIMITS))
        forms = [json.dumps(json.loads(document), sort_keys=True) for document in (written, text)]
        assert forms[0] == forms[1]
        count += 1
    assert count > 5


@pytest.mark.parametrize("count", [0, 1, *(oip_json.SLICE + n for n in (-1, 0, 1)), 2 * oip_json.SLICE + 3])
def test_answers_that_are_written_in_slices_read_as_if_they_were_not(count: int) -> None:
    """The same bytes as the whole document in one go, whatever the size; text with every kind of escape among it."""
    numbers = Tensor(name="n", datatype="FP32", array=np.arange(count, dtype=np.float32) / 3)
    words = [f'{n}"\\\n\u2028é\U0001f600'.encode() for n in range(count)]
    texts = Tensor(name="t", datatype="BYTES", array=bytes_array(words, shape=(count, 1)))
    scalar = Tensor(name="s", datatype="INT64", array=np.array(7))
    response = oip.InferResponse(
        model_name="m", model_version="1", id="i", parameters=(("a", True),), outputs=(numbers, texts, scalar)
    )
    assert encode_response(response) == json.dumps(
        {
            "model_name": "m", "model_version": "1", "id": "i", "parameters": {"a": True},
            "outputs": [
                {"name": "n", "datatype": "FP32", "shape": [count], "data": numbers.array.tolist()},
                {"name": "t", "datatype": "BYTES", "shape": [count, 1], "data": [w.decode() for w in words]},
                {"name": "s", "datatype": "INT64", "shape": [], "data": [7]},
            ],
        },
        ensure_ascii=False, separators=(",", ":"),
    ).encode()  # fmt: skip


def test_an_answer_of_other_bytes_than_text_is_refused_in_any_slice() -> None:
    """The last element of several slices is no UTF-8: no answer at all."""
    array = bytes_array([b"a"] * oip_json.SLICE + [b"\xff"], shape=(oip_json.SLICE + 1,))
    outputs = (Tensor(name="t", datatype="BYTES", array=array),)
    with pytest.raises(InvalidRequest) as refusal:
        encode_response(
            oip.InferResponse(model_name="m", model_version=None, id=None, parameters=(), outputs=outputs)
        )
    assert refusal.value.code == "oip_bytes_not_text"
