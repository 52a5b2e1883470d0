"""Model metadata: what is written comes back, nothing else is read, and nobody but `admit` makes an `Admitted`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.errors import Error, Failure, MalformedInput
from strongroom.models.info import (
    ONNX_RULES,
    STANDARD_LIMITS,
    Admission,
    Admitted,
    InputRules,
    ModelInfo,
    Room,
    TensorSpec,
)

INFO = ModelInfo(
    format="xgboost-ubj",
    inputs=(TensorSpec("features", "FP32", ("rows", 4, None)), TensorSpec("any", "BYTES", None)),
    outputs=(TensorSpec("predictions", "FP32", ("rows",)), TensorSpec("margin", "FP32", ())),
    primary_output="predictions",
    feature_names=("größe", "b"),
    notes=(("opset", 21), ("best_score", 0.5), ("quantiles", (0.1, None, True, "x")), ("none", None)),
    rules=InputRules(round_to_float32=True, reject_infinite=True, integer_columns=(0, 3), allow_nan=True),
    admission=Admission(
        level="strict",
        flags=("a", "b"),
        nodes=1,
        tensors=2,
        tensor_bytes=3,
        resident_bytes=4,
        load_operations=5,
        rooms=(
            Room(sizes=(1, 2), peak_bytes=3, operations=4, steps=5),
            Room(sizes=(), peak_bytes=0, operations=0, steps=0),
        ),
        text_bytes=6,
        versions=(("onnx", "1"), ("rules", "1")),
    ),
)


def test_metadata_survive_json() -> None:
    """from_json(to_json()) is the same value, through JSON text, and is hashable like any proof type."""
    assert ModelInfo.from_json(json.loads(json.dumps(INFO.to_json()))) == INFO
    assert hash(ModelInfo.from_json(INFO.to_json())) == hash(INFO)
    assert InputRules.from_json(ONNX_RULES.to_json()) == ONNX_RULES


def changed(path: str, value: Any) -> Any:
    document = json.loads(json.dumps(INFO.to_json()))
    *above, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    at = document
    for step in above:
        at = at[step]
    if value is KeyError:
        del at[last]
    else:
        at[last] = value
    return document


REFUSALS = {
    "no object": [],
    "nothing": None,
    "a missing member": changed("notes", KeyError),
    "an unknown member": changed("extra", 1),
    "an unknown format": changed("format", "pickle"),
    "inputs no list": changed("inputs", {}),
    "an input no object": changed("inputs/0", "features"),
    "an input without shape": changed("inputs/0/shape", KeyError),
    "an unknown member of an input": changed("inputs/0/extra", 1),
    "a name that is no text": changed("inputs/0/name", 1),
    "an unknown datatype": changed("inputs/0/datatype", "BF16"),
    "a shape that is no list": changed("inputs/0/shape", "rows"),
    "a negative dimension": changed("inputs/0/shape", [-1]),
    "a fractional dimension": changed("inputs/0/shape", [1.5]),
    "a boolean dimension": changed("inputs/0/shape", [True]),
    "two inputs of one name": changed("inputs/1/name", "features"),
    "two outputs of one name": changed("outputs/1/name", "predictions"),
    "a primary output that is none": changed("primary_output", "features"),
    "feature names no list": changed("feature_names", "ab"),
    "a feature name that is no text": changed("feature_names", [1]),
    "notes no object": changed("notes", []),
    "a note that is an object": changed("notes/opset", {}),
    "a note that is a list of lists": changed("notes/opset", [[1]]),
    "a note that is not finite": changed("notes/opset", float("inf")),
    "rules no object": changed("rules", None),
    "a rule missing": changed("rules/allow_nan", KeyError),
    "a rule unknown": changed("rules/extra", True),
    "a rule that is no flag": changed("rules/allow_nan", 1),
    "a column that is no number": changed("rules/integer_columns", ["0"]),
    "a boolean column": changed("rules/integer_columns", [True]),
    "a negative column": changed("rules/integer_columns", [-1]),
    "columns out of order": changed("rules/integer_columns", [3, 0]),
    "a column twice": changed("rules/integer_columns", [3, 3]),
}


@pytest.mark.parametrize("document", REFUSALS.values(), ids=REFUSALS.keys())
def test_what_was_not_written_here_is_refused(document: Any) -> None:
    """Each document is wrong in one respect; sealed metadata of another release must not be half understood."""
    with pytest.raises(MalformedInput) as caught:
        ModelInfo.from_json(document)
    assert caught.value.code == "model_info_malformed"


def test_nobody_else_makes_an_admitted() -> None:
    """An Admitted is a proof: without the token of this module it cannot be made, not even as a copy."""
    members = {"info": INFO, "onnx": b"", "sha256": "", "canonical_sha256": ""}
    with pytest.raises(TypeError):
        Admitted(**members)  # type: ignore[call-arg]
    with pytest.raises(Failure):
        Admitted(**members, token=object())
    with pytest.raises(Failure):
        Admitted(**members, token=None)


def test_limits_have_no_defaults() -> None:
    """A limit that somebody forgot to pass must not be one that somebody else chose."""
    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(STANDARD_LIMITS))


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*INFO.to_json(), "name", "shape"]), inner, max_size=7)
    ),
    max_leaves=10,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*INFO.to_json(), *(f"rules/{name}" for name in INFO.rules.to_json())]), documents)
def test_any_document_gives_a_value_or_our_error(path: str, value: Any) -> None:
    """A value or strongroom.errors.Error, nothing else."""
    with contextlib.suppress(Error):
        ModelInfo.from_json(changed(path, value))
