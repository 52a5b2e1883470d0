"""Every clause of docs/spec/admission.md has a model that it refuses, wrong in that respect only, and a good twin."""

from __future__ import annotations

import dataclasses
import hashlib
import re

import hostile
import onnx
import pytest
from conftest import REPOSITORY

from strongroom.errors import CODES, AdmissionRefused, Error, LimitExceeded, MalformedInput
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS
from strongroom.models.operators import LEARNERS, RANGES, STANDARD, WORDS, definition
from strongroom.models.report import RULES, parse_report, report_of, report_of_refusal

PERMISSIVE = dataclasses.replace(STANDARD_LIMITS, level="permissive")
SPEC = (REPOSITORY / "docs" / "spec" / "admission.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", hostile.VECTORS)
def test_a_clause_refuses_its_vector(name: str) -> None:
    """With its code; the report names the clause, and reads back."""
    vector = hostile.VECTORS[name]
    data = hostile.encoded(vector.bad())
    with pytest.raises((AdmissionRefused, LimitExceeded, MalformedInput)) as caught:
        admit(data, format="onnx", limits=STANDARD_LIMITS)
    assert caught.value.code == vector.code
    report = report_of_refusal(
        caught.value, size=len(data), sha256=hashlib.sha256(data).hexdigest(), format="onnx", level="strict"
    )
    assert dict(report.rules)[vector.rule] == "refused"
    assert parse_report(report.encode()) == report


@pytest.mark.parametrize("name", hostile.VECTORS)
def test_its_good_twin_is_admitted(name: str) -> None:
    """Nothing else was wrong; what is written again is admitted again, and is the same."""
    data = hostile.encoded(hostile.VECTORS[name].good())
    admitted = admit(data, format="onnx", limits=STANDARD_LIMITS)
    assert admit(admitted.onnx, format="onnx", limits=STANDARD_LIMITS).onnx == admitted.onnx
    report = report_of(admitted, size=len(data), engine="onnxruntime/1")
    assert report.verdict == "admitted" and parse_report(report.encode()) == report


@pytest.mark.parametrize("name", [n for n, v in hostile.VECTORS.items() if v.code == "onnx_unbounded"])
def test_what_has_no_bound_is_admitted_where_that_is_asked_for(name: str) -> None:
    """And flagged: only limits at run time stop it."""
    admitted = admit(hostile.encoded(hostile.VECTORS[name].bad()), format="onnx", limits=PERMISSIVE)
    assert "unbounded" in admitted.info.admission.flags


@pytest.mark.parametrize("name", [n for n, v in hostile.VECTORS.items() if v.code != "onnx_unbounded"])
def test_permission_goes_no_further(name: str) -> None:
    """Every other clause holds at either level."""
    with pytest.raises(Error) as caught:
        admit(hostile.encoded(hostile.VECTORS[name].bad()), format="onnx", limits=PERMISSIVE)
    assert caught.value.code == hostile.VECTORS[name].code


def test_what_cannot_take_empty_tensors_is_flagged() -> None:
    """Where the size is the request's own; a model without such an operator takes an empty batch."""
    needy = hostile.encoded(hostile.VECTORS["rows that may be none"].good())
    assert admit(needy, format="onnx", limits=STANDARD_LIMITS).info.admission.flags == ("no_empty_inputs",)
    plain = hostile.encoded(hostile.model())
    assert admit(plain, format="onnx", limits=STANDARD_LIMITS).info.admission.flags == ()


def _division(kind: int, divisor: int | None) -> bytes:
    """`a / b`; `b` is the caller's, or what is given here."""
    inputs = [hostile.value(name, kind, [4]) for name in ("a", "b")[: 1 if divisor is not None else 2]]
    constants = [] if divisor is None else [hostile.constant("b", [divisor], kind)]
    made = hostile.model(
        hostile.node("Div", ["a", "b"]),
        inputs=inputs,
        outputs=[hostile.value("y", kind, [4])],
        constants=constants,
    )
    return hostile.encoded(made)


@pytest.mark.parametrize(
    ("kind", "divisor", "traps"),
    [
        (hostile.INT64, None, True),
        (hostile.INT64, -1, True),
        (hostile.INT64, 2, False),
        (onnx.TensorProto.INT32, None, True),
        (onnx.TensorProto.UINT64, None, False),
        (onnx.TensorProto.FLOAT, None, False),
    ],
)
def test_division_that_ends_a_process_is_flagged_and_not_shared(
    kind: int, divisor: int | None, traps: bool
) -> None:
    """8.6: where models share the server's process, one request must not end it."""
    data = _division(kind, divisor)
    flags = admit(data, format="onnx", limits=STANDARD_LIMITS).info.admission.flags
    assert ("division_traps" in flags) == traps
    shared = dataclasses.replace(STANDARD_LIMITS, confined=False)
    if traps:
        with pytest.raises(AdmissionRefused) as refused:
            admit(data, format="onnx", limits=shared)
        assert refused.value.code == "onnx_traps"
    else:
        admit(data, format="onnx", limits=shared)


def test_every_clause_has_a_vector() -> None:
    """Those about ONNX; the first two, metadata and XGBoost's documents are tested where they are enforced."""
    elsewhere = {"1.1", "1.2", "7.2", "8.6", "9.3", "9.4", "11.1"}
    assert {rule.number for rule in RULES} == {v.rule for v in hostile.VECTORS.values()} | elsewhere


def test_the_specification_numbers_the_same_clauses() -> None:
    """With the same codes, all of which exist."""
    written = dict(re.findall(r"^\| (\d+\.\d+) \| ((?:`[a-z_*]+`(?:, )?)+) \|", SPEC, re.MULTILINE))
    assert {n: tuple(re.findall("`([^`]+)`", codes)) for n, codes in written.items()} == {
        r.number: r.codes for r in RULES
    }
    for rule in RULES:
        for code in rule.codes:
            assert code in CODES or (code.endswith("*") and any(c.startswith(code[:-1]) for c in CODES))


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["", "ai.onnx.ml"])
def test_every_attribute_of_every_operator_has_a_range(domain: str) -> None:
    """Integers have a row in the table, in every version of every operator that runs here; strings words, or text."""
    text = {
        "equation", "value_string", "value_strings", "cats_strings", "classes_strings", "keys_strings",
        "values_strings", "classlabels_strings", "default_string",
    }  # fmt: skip
    versions = range(7, 29) if domain == "" else range(1, 6)
    for name in STANDARD if domain == "" else LEARNERS:
        for version in versions:
            found = definition(name, version, domain)
            for attribute, (kind, _) in (found.attributes if found else {}).items():
                assert kind not in (2, 7) or attribute in RANGES, (name, version, attribute)
                assert kind not in (3, 8) or attribute in WORDS or attribute in text, (
                    name,
                    version,
                    attribute,
                )
