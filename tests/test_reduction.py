"""What is asked for, what is said of a model, files of ranges, and the header fields: strict both ways."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import Conflict, Error, InvalidRequest, MalformedInput
from strongroom.reduction import (
    AS_UPLOADED,
    FP32,
    MAX_RANGES,
    NOT_LOOKED_AT,
    PLAIN,
    Made,
    Options,
    Part,
    Precision,
    Reduction,
    as_found,
    check_accepted,
    encode_ranges,
    parse_ranges,
)
from strongroom.reduction_fields import fields_of, read_accepted, read_fields

DIGEST = hashlib.sha256(b"x").hexdigest()
INT8 = Options(precision="int8")
MADE = Precision(
    name="int8",
    narrow=(("MatMulInteger", 2),),
    made=Made(
        form="static",
        options=Options(precision="int8", method="percentile", per_channel=False, exclude=("a", "ö")),
        rewritten=(("Conv", 3), ("MatMul", 2)),
        left=(("LSTM", 1),),
        from_sha256=DIGEST,
        ranges_sha256=DIGEST,
        calibration_sha256=None,
    ),
)


def code_of(action: Any, kind: type[Error] = Error) -> str:
    """The code of what it refuses with."""
    with pytest.raises(kind) as caught:
        action()
    return caught.value.code


# Options


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (Options(precision="bf16"), "precision_unsupported"),
        (Options(precision="int4"), "precision_unsupported"),
        (Options(precision=FP32), "precision_unsupported"),
        (Options(precision=""), "precision_unsupported"),
        (replace(INT8, method="guess"), "precision_options"),
        (replace(INT8, exclude=("",)), "precision_options"),
        (replace(INT8, exclude=("x" * 513,)), "precision_options"),
        (replace(INT8, exclude=("x",) * 257), "precision_options"),
    ],
)
def test_options_that_are_none(options: Options, code: str) -> None:
    """Each by its code."""
    assert code_of(options.check, InvalidRequest) == code


def test_bf16_says_why_and_what_to_use() -> None:
    """The reason, and the precision that uses the same units."""
    with pytest.raises(InvalidRequest, match=r"onnxruntime does not have on x86-64.*int8") as caught:
        Options(precision="bf16").check()
    assert '"int8" or "fp16"' in caught.value.message


@pytest.mark.parametrize("part", [Part(kind="ranges", size=0, sha256=DIGEST), None])
def test_what_cannot_be_asked_for(part: Part | None) -> None:
    """Nothing to measure with; something to measure with where nothing is measured."""
    if part is not None:
        assert code_of(Reduction(options=INT8, part=part).check) == "precision_options"
    fp16 = Reduction(options=Options(precision="fp16"), part=Part(kind="ranges", size=1, sha256=DIGEST))
    assert code_of(fp16.check) == "precision_options"


def test_forms() -> None:
    """What comes out follows from what was asked for."""
    part = Part(kind="calibration", size=1, sha256=DIGEST)
    assert Reduction(options=INT8).form == "dynamic"
    assert Reduction(options=INT8, part=part).form == "static"
    assert Reduction(options=Options(precision="fp16")).form == "fp16"


# What is said


def test_what_is_said_survives_json() -> None:
    """Of what was made, of what arrived, and of a plain model."""
    for said in (MADE, as_found({"FLOAT16": 2, "Cast": 1}), PLAIN):
        assert Precision.from_json(json.loads(json.dumps(said.to_json()))) == said
    assert as_found({}) == PLAIN and as_found({"x": 1}).name == AS_UPLOADED


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "fp32"),
        ("name", "unknown"),
        ("name", "fp16"),
        ("name", 1),
        ("narrow", {}),
        ("narrow", {"b": 1, "a": 1}),
        ("narrow", {"a": 0}),
        ("narrow", {"a": True}),
        ("narrow", {"": 1}),
        ("narrow", {"a\n": 1}),
        ("narrow", []),
        ("made", {}),
        ("made.form", "other"),
        ("made.from_sha256", DIGEST.upper()),
        ("made.from_sha256", None),
        ("made.ranges_sha256", "x"),
        ("made.calibration_sha256", 1),
        ("made.options", None),
        ("made.options.precision", "bf16"),
        ("made.options.per_channel", 1),
        ("made.options.exclude", "a"),
        ("made.options.exclude", [1]),
        ("made.options.more", 1),
        ("made.rewritten", None),
        ("more", 1),
    ],
)
def test_nothing_else_is_read(path: str, value: Any) -> None:
    """A wrong member, a wrong type, or a word that does not go with the rest."""
    document = json.loads(json.dumps(MADE.to_json()))
    *way, last = path.split(".")
    place = document
    for step in way:
        place = place[step]
    place[last] = value
    assert code_of(lambda: Precision.from_json(document), MalformedInput) == "model_info_malformed"


def test_a_model_that_was_not_looked_at_says_nothing() -> None:
    """`unknown` is the absence of a statement; it cannot be stated."""
    assert code_of(lambda: Precision.from_json(NOT_LOOKED_AT.to_json())) == "model_info_malformed"
    assert NOT_LOOKED_AT.name == "unknown"


def test_which_models_look_at_all_rows() -> None:
    """Ranges of the request are of all its rows; ranges of examples are of nobody's."""
    assert as_found({"DynamicQuantizeLinear": 1}).joins_rows
    assert not MADE.joins_rows and not PLAIN.joins_rows


def test_demands() -> None:
    """No demand takes all; `unknown` is not taken for fp32."""
    check_accepted("int8", (), model="m")
    check_accepted("int8", ("fp32", "int8"), model="m")
    for name in ("int8", "unknown", "as-uploaded"):
        assert (
            code_of(lambda name=name: check_accepted(name, ("fp32",), model="m"), Conflict)
            == "precision_refused"
        )


# Ranges


RANGES = {"b": (-1.5, 0.1), "a": (0.0, 1e-30)}


def test_ranges_survive_their_file() -> None:
    """Every bit, and the same bytes whatever the order."""
    data = encode_ranges(RANGES, model=DIGEST)
    assert parse_ranges(data, model=DIGEST) == RANGES
    assert encode_ranges(dict(reversed(RANGES.items())), model=DIGEST) == data
    spaced = json.dumps(json.loads(data), indent=1).encode()
    assert parse_ranges(spaced, model=DIGEST) == RANGES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"type": "strongroom-ranges/2", "model": "", "ranges": {}}',
        b'{"type": "strongroom-ranges/1", "model": "", "ranges": []}',
        b'{"type": "strongroom-ranges/1", "model": "", "ranges": {"a": [1]}}',
        b'{"type": "strongroom-ranges/1", "model": "", "ranges": {"a": [1, true]}}',
        b'{"type": "strongroom-ranges/1", "model": "", "ranges": {"a": ["1", 2]}}',
        b'{"type": "strongroom-ranges/1", "model": "", "ranges": {"a": [NaN, 2]}}',
        b'{"type": "strongroom-ranges/1", "model": "", "ranges": {"a": [1, 1e999]}}',
        b'{"type": "strongroom-ranges/1", "model": "", "ranges": {"a": [1, 2], "a": [1, 2]}}',
        b'{"type": "strongroom-ranges/1", "model": "", "ranges": {}, "more": 1}',
        b" " * (MAX_RANGES + 1),
        b'{"type": "strongroom-ranges/1", "model": "", "ranges": {"a": [' + b"9" * 1_000_000 + b", 1]}}",
    ],
)
def test_files_that_are_no_ranges(data: bytes) -> None:
    """Refused, and soon."""
    assert code_of(lambda: parse_ranges(data, model=""), MalformedInput) == "precision_ranges_malformed"


def test_ranges_of_another_model() -> None:
    """The file names the model that it is of."""
    data = encode_ranges(RANGES, model=DIGEST)
    assert code_of(lambda: parse_ranges(data, model="0" * 64), InvalidRequest) == "precision_ranges"


# Header fields

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
REDUCTIONS = st.builds(
    Reduction,
    options=st.builds(
        Options,
        precision=st.just("int8"),
        method=st.sampled_from(["minmax", "percentile"]),
        per_channel=st.booleans(),
        exclude=st.lists(NAMES, max_size=4).map(tuple),
    ),
    part=st.none()
    | st.builds(
        Part,
        kind=st.sampled_from(["ranges", "calibration"]),
        size=st.integers(1, 10**12 - 1),
        sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
    ),
)


@given(REDUCTIONS)
def test_what_one_side_asks_the_other_reads(asked: Reduction) -> None:
    """Whatever characters names have: header fields are printable ASCII."""
    fields = fields_of(asked)
    assert all(value.isascii() and value.isprintable() for _, value in fields)
    assert read_fields({name.lower(): value for name, value in fields}) == asked


@given(
    st.dictionaries(
        st.sampled_from(
            [f"strongroom-precision{tail}" for tail in ("", "-method", "-scales", "-exclude", "-part")]
        ),
        st.text(max_size=40) | st.sampled_from(["int8", "fp16", "minmax", "tensor", "ranges; bytes=1"]),
    )
)
def test_any_fields_give_a_value_or_our_error(fields: dict[str, str]) -> None:
    """Nothing else."""
    try:
        found = read_fields(fields)
    except InvalidRequest:
        return
    assert found is None or found.options.precision in ("int8", "fp16")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"": "bf16"}, "precision_unsupported"),
        ({"": "INT8"}, "precision_unsupported"),
        ({"-method": "minmax"}, "precision_options"),
        ({"": "fp32", "-scales": "tensor"}, "precision_options"),
        ({"": "int8", "-method": "entropy"}, "precision_options"),
        ({"": "int8", "-scales": "row"}, "precision_options"),
        ({"": "int8", "-exclude": "a,,b"}, "precision_options"),
        ({"": "int8", "-exclude": "%ff"}, "precision_options"),
        ({"": "int8", "-part": "examples; bytes=1; sha-256=:" + "A" * 43 + "=:"}, "precision_options"),
        ({"": "int8", "-part": "ranges; bytes=0; sha-256=:" + "A" * 43 + "=:"}, "precision_options"),
        ({"": "int8", "-part": "ranges; bytes=1; sha-512=:" + "A" * 43 + "=:"}, "precision_options"),
        ({"": "int8", "-part": "ranges; bytes=1"}, "precision_options"),
        ({"": "fp16", "-part": "ranges; bytes=1; sha-256=:" + "A" * 43 + "=:"}, "precision_options"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, str], code: str) -> None:
    """Each by its code; nothing is passed over."""
    given_fields = {f"strongroom-precision{tail}": value for tail, value in fields.items()}
    assert code_of(lambda: read_fields(given_fields), InvalidRequest) == code


def test_a_model_as_it_is() -> None:
    """Without a field, or with fp32."""
    assert read_fields({}) is None and read_fields({"strongroom-precision": "fp32"}) is None


def test_accepted_precisions() -> None:
    """A list of the words, or nothing."""
    assert read_accepted(None) == () and read_accepted("fp32, as-uploaded") == ("fp32", "as-uploaded")
    for value in ("", "fp32,", "fp32, fp32", "bf16", "fp32; q=1"):
        assert code_of(lambda value=value: read_accepted(value), InvalidRequest) == "precision_options"
