"""A request's tensors against a model's metadata: what fits becomes arrays, what does not is refused by its code."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.errors import Error, InvalidRequest, LimitExceeded
from strongroom.inputs import check_inputs, check_outputs, room_for
from strongroom.models.info import ONNX_RULES, Admission, InputRules, ModelInfo, Room, TensorSpec
from strongroom.oip import DATATYPES, Tensor, WireLimits, bytes_array, datatype_of

LIMITS = WireLimits(tensors=8, tensor_bytes=4096, total_bytes=6000, elements=1200, name_length=64)
TREES = InputRules(round_to_float32=True, reject_infinite=True, integer_columns=(1,), allow_nan=True)


ADMITTED = Admission(
    level="strict", flags=(), nodes=1, tensors=1, tensor_bytes=4, resident_bytes=0, load_operations=0,
    rooms=(
        Room(sizes=(1, 4096), peak_bytes=100, operations=10, steps=1),
        Room(sizes=(512, 600), peak_bytes=100, operations=10, steps=1),
    ),
    text_bytes=100, versions=(),
)  # fmt: skip


def info(*inputs: TensorSpec, rules: InputRules = ONNX_RULES) -> ModelInfo:
    """A model with these inputs."""
    return ModelInfo(
        format="onnx",
        inputs=inputs,
        outputs=(TensorSpec("y", "FP32", None),),
        primary_output="y",
        feature_names=(),
        notes=(),
        rules=rules,
        admission=ADMITTED,
    )


def tensor(values: Any, name: str = "x", dtype: Any = None) -> Tensor:
    """A tensor of these values."""
    array = np.asarray(values, dtype=dtype)
    return Tensor(name, datatype_of(array), array)


X = TensorSpec("x", "FP32", ("n", 2))
FEATURES = TensorSpec("x", "FP32", ("rows", 3))
ROW = np.zeros((1, 2), np.float32)


def refusal(model: ModelInfo, *tensors: Tensor, kind: type[Error] = InvalidRequest) -> str:
    """The code with which a request is refused."""
    with pytest.raises(kind) as caught:
        check_inputs(model, tensors, limits=LIMITS)
    return caught.value.code


def test_a_request_that_fits() -> None:
    """The arrays come out by name in the model's order, and are not copied."""
    model = info(X, TensorSpec("ids", "INT64", ("n", None)), TensorSpec("sr", "INT64", ()))
    sent = (
        tensor(16000, "sr"),
        tensor(np.zeros((3, 7), np.int64), "ids"),
        tensor(np.ones((3, 2), np.float32)),
    )
    got = check_inputs(model, sent, limits=LIMITS)
    assert list(got) == ["x", "ids", "sr"]
    assert got["x"] is sent[2].array and got["sr"].shape == ()


@pytest.mark.parametrize("datatype", list(DATATYPES))
def test_every_datatype_is_taken_as_it_is(datatype: str) -> None:
    """A model's own datatype needs no conversion."""
    values = bytes_array([b"a"], shape=(1,)) if datatype == "BYTES" else np.ones(1, DATATYPES[datatype])
    sent = Tensor("x", datatype, values)
    assert check_inputs(info(TensorSpec("x", datatype, None)), (sent,), limits=LIMITS)["x"] is values


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (5, 2)])
def test_a_symbol_is_any_size(shape: tuple[int, ...]) -> None:
    """Also none: an empty batch is legal."""
    check_inputs(info(X), (tensor(np.zeros(shape, np.float32)),), limits=LIMITS)


def test_a_model_that_cannot_take_nothing_is_given_something() -> None:
    """Where admission found an operator that ends the process on an empty batch, that batch is refused."""
    made = info(X)
    needy = dataclasses.replace(
        made, admission=dataclasses.replace(made.admission, flags=("no_empty_inputs",))
    )
    assert refusal(needy, tensor(np.zeros((0, 2), np.float32))) == "input_shape"
    check_inputs(needy, (tensor(np.zeros((1, 2), np.float32)),), limits=LIMITS)


def test_a_model_without_inputs_takes_none() -> None:
    """And nothing else."""
    assert check_inputs(info(), (), limits=LIMITS) == {}
    assert refusal(info(), tensor(ROW)) == "input_unknown"


def test_values_are_the_models_matter_unless_it_has_rules() -> None:
    """An ONNX model takes NaN, infinities and fractions."""
    odd = tensor([[np.nan, np.inf]], dtype=np.float32)
    check_inputs(info(X), (odd,), limits=LIMITS)


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ((), "input_missing"),
        ((tensor(ROW, "z"),), "input_unknown"),
        ((tensor(ROW), tensor(ROW, "z")), "input_unknown"),
        ((tensor(ROW), tensor(ROW)), "input_duplicate"),
        ((tensor(ROW.astype(np.float64)),), "input_dtype"),
        ((tensor(ROW.astype(np.float16)),), "input_dtype"),
        ((tensor(ROW.astype(np.int32)),), "input_dtype"),
        ((tensor(ROW[0]),), "input_rank"),
        ((tensor(ROW[None]),), "input_rank"),
        ((tensor(np.zeros((2, 1), np.float32)),), "input_shape"),
        ((tensor(np.zeros((1, 3), np.float32)),), "input_shape"),
    ],
)
def test_refusals(tensors: tuple[Tensor, ...], code: str) -> None:
    """Each request is wrong in one respect, and refused with its code."""
    assert refusal(info(X), *tensors) == code


def test_one_symbol_is_one_size() -> None:
    """Within one input and across several."""
    one = info(TensorSpec("x", "FP32", ("n", "n")))
    assert refusal(one, tensor(np.zeros((2, 3), np.float32))) == "input_symbol"
    two = info(TensorSpec("a", "FP32", ("n",)), TensorSpec("b", "FP32", ("m", "n")))
    same = (tensor(np.zeros(3, np.float32), "a"), tensor(np.zeros((5, 3), np.float32), "b"))
    check_inputs(two, same, limits=LIMITS)
    other = (same[0], tensor(np.zeros((3, 5), np.float32), "b"))
    assert refusal(two, *other) == "input_symbol"


def test_unknown_dimensions_are_free() -> None:
    """None is any size, a different one each time; no shape at all is any rank."""
    free = info(TensorSpec("x", "FP32", (None, None)), TensorSpec("y", "FP32", None))
    check_inputs(free, (tensor(np.zeros((2, 3), np.float32)), tensor(ROW[0], "y")), limits=LIMITS)


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ((tensor(np.zeros((600, 2), np.float64)),), "oip_too_many_bytes"),
        (
            (tensor(np.zeros((500, 2), np.float32)), tensor(np.zeros((400, 2), np.float32), "b")),
            "oip_too_many_bytes",
        ),
        ((tensor(np.zeros((1300, 1), np.uint8)),), "oip_too_many_elements"),
    ],
)
def test_limits_hold_for_every_front_end(tensors: tuple[Tensor, ...], code: str) -> None:
    """Whatever codec a request came through, more than the limits is refused."""
    assert refusal(info(X), *tensors, kind=LimitExceeded) == code


# Rules of tree models


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.float32, np.int8, np.int64, np.uint8, np.uint32, np.uint64]
)
def test_numbers_become_float32_where_the_rules_say_so(dtype: Any) -> None:
    """Each is rounded once, to the nearest, as XGBoost's own interface does."""
    got = check_inputs(info(FEATURES, rules=TREES), (tensor([[1, 2, 3]], dtype=dtype),), limits=LIMITS)["x"]
    assert got.dtype == np.float32 and got.tolist() == [[1.0, 2.0, 3.0]]
    fraction = tensor([[0.1, 1, 2.0000000001]])
    assert check_inputs(info(FEATURES, rules=TREES), (fraction,), limits=LIMITS)["x"].tolist() == [
        [np.float32(0.1), 1, 2]
    ]


def test_the_callers_array_is_not_changed() -> None:
    """Rounding makes a new array."""
    values = np.array([[0.1, 1, 2]])
    check_inputs(info(FEATURES, rules=TREES), (tensor(values),), limits=LIMITS)
    assert values[0, 0] == 0.1


@pytest.mark.parametrize(
    ("values", "dtype", "code"),
    [
        ([[True, False, True]], np.bool_, "input_dtype"),
        ([[np.inf, 1, 1]], np.float32, "input_infinite"),
        ([[-np.inf, 1, 1]], np.float64, "input_infinite"),
        ([[1e39, 1, 1]], np.float64, "input_infinite"),
        ([[1, 0.5, 1]], np.float32, "input_not_integer"),
        ([[1, 1, 1], [1, -0.5, 1]], np.float64, "input_not_integer"),
    ],
)
def test_rule_refusals(values: Any, dtype: Any, code: str) -> None:
    """Infinities, also those that rounding makes, and fractions in category columns."""
    assert refusal(info(FEATURES, rules=TREES), tensor(values, dtype=dtype)) == code


def test_missing_values_are_legal_also_in_category_columns() -> None:
    """NaN means missing; -1 and unseen categories are the trees' matter; fractions elsewhere are fine."""
    good = tensor([[0.5, np.nan, np.nan], [0.5, -1, 0.5], [0.5, 1e6, 0.5]])
    check_inputs(info(FEATURES, rules=TREES), (good,), limits=LIMITS)
    strict = dataclasses.replace(TREES, allow_nan=False)
    assert refusal(info(FEATURES, rules=strict), tensor([[np.nan, 1, 1]])) == "input_nan"
    assert refusal(info(FEATURES, rules=strict), tensor([[1, np.nan, 1]])) == "input_nan"


def test_strings_are_not_numbers() -> None:
    """No rule turns text into features."""
    sent = Tensor("x", "BYTES", bytes_array([b"1"] * 3, shape=(1, 3)))
    assert refusal(info(FEATURES, rules=TREES), sent) == "input_dtype"


def test_messages_hold_no_values() -> None:
    """Only names, shapes and datatypes of what is public."""
    for values in ([[np.inf, 12345.5, 1]], [[1, 12345.5, 1]]):
        with pytest.raises(InvalidRequest) as caught:
            check_inputs(info(FEATURES, rules=TREES), (tensor(values),), limits=LIMITS)
        assert "12345" not in str(caught.value)
    with pytest.raises(InvalidRequest) as caught:
        check_inputs(info(X), (tensor(ROW, "a-name-of-the-caller"),), limits=LIMITS)
    assert "caller" not in str(caught.value)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3)
SPECS = st.lists(
    st.builds(
        TensorSpec,
        st.sampled_from("ab"),
        st.sampled_from(["FP32", "INT64", "BYTES"]),
        st.none() | st.lists(st.sampled_from([None, "n", "m", 1, 2]), max_size=3).map(tuple),
    ),
    max_size=2,
    unique_by=lambda spec: spec.name,
)


@pytest.mark.slow
@given(
    SPECS, st.lists(st.tuples(st.sampled_from("abc"), SHAPES, st.sampled_from(list(DATATYPES))), max_size=3)
)
@settings(max_examples=200, deadline=None)
def test_any_request_fits_or_is_refused(
    specs: list[TensorSpec], sent: list[tuple[str, list[int], str]]
) -> None:
    """A value or `strongroom.errors.Error`, nothing else; and what is returned is what the model asks for."""
    tensors = []
    for name, shape, datatype in sent:
        values = np.zeros(shape, DATATYPES[datatype])
        if datatype == "BYTES":
            values = bytes_array([b""] * values.size, shape=tuple(shape))
        tensors.append(Tensor(name, datatype, values))
    for rules in (ONNX_RULES, dataclasses.replace(TREES, integer_columns=())):
        try:
            arrays = check_inputs(info(*specs, rules=rules), tuple(tensors), limits=LIMITS)
        except Error:
            continue
        assert list(arrays) == [spec.name for spec in specs]
        for spec in specs:
            assert arrays[spec.name].dtype == DATATYPES[spec.datatype]
            assert spec.shape is None or len(spec.shape) == arrays[spec.name].ndim


@pytest.mark.parametrize("shape", [(1, 4096), (512, 600), (1, 1), (0, 9)])
def test_a_request_fits_into_one_of_the_rooms(shape: tuple[int, int]) -> None:
    """A large batch of small things, or one large thing."""
    open_ = info(TensorSpec("x", "FP32", ("n", None)))
    room = dataclasses.replace(LIMITS, tensor_bytes=1 << 24, total_bytes=1 << 24, elements=1 << 20)
    assert check_inputs(open_, (tensor(np.zeros(shape, np.float32)),), limits=room)["x"].shape == shape


@pytest.mark.parametrize("shape", [(2, 4096), (513, 1), (1, 4097), (512, 601)])
def test_a_request_that_fits_into_no_room_is_refused(shape: tuple[int, int]) -> None:
    """Its cost was not bounded when the model was admitted."""
    open_ = info(TensorSpec("x", "FP32", ("n", None)))
    room = dataclasses.replace(LIMITS, tensor_bytes=1 << 24, total_bytes=1 << 24, elements=1 << 20)
    with pytest.raises(InvalidRequest) as caught:
        check_inputs(open_, (tensor(np.zeros(shape, np.float32)),), limits=room)
    assert caught.value.code == "input_too_large"


def test_fixed_dimensions_need_no_room() -> None:
    """Only what the model leaves open is held to one."""
    shut = info(TensorSpec("x", "FP32", (2, 500)))
    assert check_inputs(shut, (tensor(np.zeros((2, 500), np.float32)),), limits=LIMITS)


def test_strings_are_as_long_as_was_reckoned() -> None:
    """Texts are part of a model's bound on memory."""
    words = info(TensorSpec("x", "BYTES", ("n",)))
    for length, fits in ((100, True), (101, False)):
        given = Tensor("x", "BYTES", bytes_array([b"a" * length], shape=(1,)))
        if fits:
            check_inputs(words, (given,), limits=LIMITS)
            continue
        with pytest.raises(InvalidRequest) as caught:
            check_inputs(words, (given,), limits=LIMITS)
        assert caught.value.code == "input_too_large"


# Answers


@pytest.mark.parametrize(
    ("declared", "shape", "fits"),
    [
        (("n", 3), (7, 3), True),
        ((None, 3), (0, 3), True),
        (None, (1, 2, 3), True),
        ((), (), True),
        (("n", 3), (7, 4), False),
        (("n", 3), (7,), False),
        ((2,), (3,), False),
        ((), (1,), False),
        (("n", 3), (7, 3, 1), False),
    ],
)
def test_an_answer_has_the_shape_that_admission_found(
    declared: tuple[int | str | None, ...] | None, shape: tuple[int, ...], fits: bool
) -> None:
    """Its rank and its fixed sizes; symbols are whatever they are."""
    described = dataclasses.replace(info(X), outputs=(TensorSpec("y", "FP32", declared),))
    results = {"y": np.zeros(shape, np.float32)}
    if fits:
        check_outputs(described, results)
        return
    with pytest.raises(InvalidRequest) as caught:
        check_outputs(described, results)
    assert caught.value.code == "output_shape"
    check_outputs(described, {})  # it was not asked for


@pytest.mark.parametrize(("rows", "sizes"), [(1, (1, 4096)), (2, (512, 600)), (512, (512, 600)), (513, None)])
def test_a_request_has_the_cheapest_room_that_it_fits_into(rows: int, sizes: tuple[int, ...] | None) -> None:
    """None where it fits into none."""
    room = room_for(info(X), {"x": np.zeros((rows, 2), np.float32)})
    assert (room.sizes if room else None) == sizes
