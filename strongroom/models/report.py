"""The admission report: what was asked of a model, what came out, and who says so (`docs/spec/admission.md` §10).

A report is made of a proof (`Admitted`) or of a refusal, is written as canonical JSON (RFC 8785), and can be
signed with the receipt key of an attested keyset: then it says what that server found. Model owners make the
same report without a server, unsigned.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from strongroom.attest.keyset import Keyset
from strongroom.attest.strict import Members, canonical, parse_object
from strongroom.errors import AttestationRefused, Error, MalformedInput
from strongroom.models.info import FORMATS, LEVELS, Admission, Admitted, ModelInfo
from strongroom.reduction import NOT_LOOKED_AT, Precision

REPORT_TYPE: Final = "strongroom-admission-report/1"
MAX_REPORT: Final = 256 << 10
"""Bytes of a report in its envelope; one has about four thousand."""
MAX_STAGES: Final = 1024
"""As a form has (`prepared`)."""
VERDICTS: Final = ("admitted", "refused", "unreadable")
_DOMAIN: Final = b"strongroom admission report v1\x00"


@dataclass(frozen=True, slots=True)
class Rule:
    """One clause of `docs/spec/admission.md` with the codes of its refusals; a code that ends in `*` stands for all."""

    number: str
    title: str
    codes: tuple[str, ...]
    formats: tuple[str, ...] = FORMATS


_ONNX: Final = ("onnx",)
_TREES: Final = ("xgboost-json", "xgboost-ubj")
RULES: Final = (
    Rule("1.1", "size of the file", ("model_too_large",)),
    Rule("1.2", "format by content", ("format_*",)),
    Rule("1.3", "one protobuf message", ("onnx_malformed",), _ONNX),
    Rule("1.4", "one model in the file", ("onnx_merged",), _ONNX),
    Rule("1.5", "no unknown fields", ("onnx_unknown_field",), _ONNX),
    Rule("1.6", "no training graph", ("onnx_training_info",), _ONNX),
    Rule("2.1", "versions of format and operator sets", ("onnx_version",), _ONNX),
    Rule("3.1", "no data outside the file", ("onnx_external_data",), _ONNX),
    Rule("3.2", "no sparse tensors", ("onnx_sparse",), _ONNX),
    Rule("3.3", "tensors as long as their shape says", ("onnx_tensor",), _ONNX),
    Rule("4.1", "operators that exist", ("onnx_operator", "onnx_domain"), _ONNX),
    Rule("4.2", "operators that run here", ("onnx_operator_refused",), _ONNX),
    Rule("4.3", "nothing random, nothing that trains", ("onnx_random",), _ONNX),
    Rule("4.4", "number of values, none left out", ("onnx_arity",), _ONNX),
    Rule("4.5", "attributes known, typed, complete", ("onnx_attribute",), _ONNX),
    Rule("4.6", "attributes in range", ("onnx_attribute_range",), _ONNX),
    Rule("4.7", "types of values", ("onnx_type",), _ONNX),
    Rule("5.1", "names", ("onnx_name",), _ONNX),
    Rule("6.1", "each value once, before it is used", ("onnx_graph",), _ONNX),
    Rule("6.2", "nodes, tensors, levels", ("onnx_too_complex",), _ONNX),
    Rule("6.3", "functions", ("onnx_function",), _ONNX),
    Rule("7.1", "inputs and outputs that can be sent", ("onnx_io_type",), _ONNX),
    Rule("7.2", "size of metadata", ("model_metadata_too_large",)),
    Rule("8.1", "shapes fit", ("onnx_shape",)),
    Rule("8.2", "memory", ("onnx_memory",)),
    Rule("8.3", "work", ("onnx_compute",)),
    Rule("8.4", "loops", ("onnx_loop",)),
    Rule("8.5", "a bound for everything", ("onnx_unbounded",)),
    Rule("8.6", "nothing that ends a process that others share", ("onnx_traps",)),
    Rule("9.1", "ensembles of trees", ("onnx_tree",)),
    Rule("9.2", "tables of other learners", ("onnx_table",)),
    Rule("9.3", "documents of XGBoost", ("tree_*",), _TREES),
    Rule("9.4", "forests and linear models of XGBoost", ("xgboost_*",), _TREES),
    Rule("11.1", "time and memory of admission itself", ("admission_limits",)),
)
"""Every rule, in the order of the specification."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What admission found. `admission` is there where the verdict is `admitted`; `code` and `message` where not."""

    verdict: str
    level: str
    format: str
    size: int
    sha256: str
    canonical_sha256: str
    code: str
    message: str
    rules: tuple[tuple[str, str], ...]
    """(rule, result): `passed`, `refused`, `not_decided`, or `not_applicable` to this format."""
    admission: Admission | None
    precision: Precision
    """`reduction.NOT_LOOKED_AT` where nothing is known: not admitted, or by a release that did not look."""
    engine: str
    """What would run it, `onnxruntime/VERSION`; "" where nobody would."""
    partition: str
    """What was asked for: a word of `partition`; "" where it is not on a server."""
    stages: int
    """In how many that server runs it, 1 as a whole; 0 where it is not on a server."""

    def encode(self) -> bytes:
        """The report as canonical JSON."""
        bounds = None if self.admission is None else self.admission.to_json()
        precision = None if self.precision == NOT_LOOKED_AT else self.precision.to_json()
        return canonical(
            {
                "type": REPORT_TYPE,
                "verdict": self.verdict,
                "level": self.level,
                "format": self.format,
                "size": self.size,
                "sha256": self.sha256,
                "canonical_sha256": self.canonical_sha256,
                "code": self.code,
                "message": self.message,
                "rules": [{"rule": rule, "result": result} for rule, result in self.rules],
                "bounds": bounds,
                "precision": precision,
                "engine": self.engine,
                "partition": self.partition,
                "stages": self.stages,
            }
        )


def report_of(admitted: Admitted, *, size: int, engine: str) -> Report:
    """The report about an admitted model; `size`: bytes as uploaded, `engine`: what would run it."""
    info = admitted.info
    return _made(
        info.admission,
        info.precision,
        engine=engine,
        format=info.format,
        size=size,
        sha256=admitted.sha256,
        canonical_sha256=admitted.canonical_sha256,
    )


def _made(
    admission: Admission,
    precision: Precision,
    *,
    engine: str,
    format: str,
    size: int,
    sha256: str,
    canonical_sha256: str,
    partition: str = "",
    stages: int = 0,
) -> Report:
    return Report(
        verdict="admitted",
        level=admission.level,
        format=format,
        size=size,
        sha256=sha256,
        canonical_sha256=canonical_sha256,
        code="",
        message="",
        rules=tuple((r.number, "passed" if format in r.formats else "not_applicable") for r in RULES),
        admission=admission,
        precision=precision,
        engine=engine,
        partition=partition,
        stages=stages,
    )


def report_of_refusal(error: Error, *, size: int, sha256: str, format: str, level: str) -> Report:
    """The report about a model of `size` bytes with this SHA-256 (hex) that was refused with `error`."""
    place = next(
        (n for n, rule in enumerate(RULES) if any(_fits(error.code, code) for code in rule.codes)), None
    )
    results = []
    for number, rule in enumerate(RULES):
        section = rule.number.partition(".")[0]
        if number == place:
            result = "refused"
        elif format in FORMATS and format not in rule.formats:
            result = "not_applicable"
        elif place is not None and int(section) < int(RULES[place].number.partition(".")[0]) <= 9:
            result = "passed"
        else:
            result = "not_decided"
        results.append((rule.number, result))
    # What is recognised as another format was read well enough to say no.
    unreadable = isinstance(error, MalformedInput) and error.code != "format_not_accepted"
    return Report(
        verdict="unreadable" if unreadable else "refused",
        level=level,
        format=format,
        size=size,
        sha256=sha256,
        canonical_sha256="",
        code=error.code,
        message=error.message,
        rules=tuple(results),
        admission=None,
        precision=NOT_LOOKED_AT,
        engine="",
        partition="",
        stages=0,
    )


def _fits(code: str, pattern: str) -> bool:
    return code == pattern or (pattern.endswith("*") and code.startswith(pattern[:-1]))


# Signatures (§10.3)


def sign_report(report: bytes, key: Ed25519PrivateKey) -> bytes:
    """The envelope around an encoded report: its bytes and the signature of the receipt key."""
    return canonical(
        {
            "report": base64.b64encode(report).decode("ascii"),
            "signature": base64.b64encode(key.sign(_DOMAIN + report)).decode("ascii"),
        }
    )


class Model(Protocol):
    """A model as a store's record keeps it."""

    @property
    def format(self) -> str:
        """Of the upload."""

    @property
    def size(self) -> int:
        """Bytes of the upload."""

    @property
    def sha256(self) -> str:
        """Of the upload, hex."""

    @property
    def canonical_sha256(self) -> str:
        """Of what runs, hex."""

    @property
    def info(self) -> ModelInfo:
        """What admission found."""


def report_of_model(model: Model, *, key: Ed25519PrivateKey, engine: str, stages: int) -> bytes:
    """The signed report about an admitted model, from what a store's record keeps of it; `engine`: what runs it,
    `stages`: in how many.
    """
    report = _made(
        model.info.admission,
        model.info.precision,
        engine=engine,
        format=model.format,
        size=model.size,
        sha256=model.sha256,
        canonical_sha256=model.canonical_sha256,
        partition=model.info.partition,
        stages=stages,
    )
    return sign_report(report.encode(), key)


def verify_report(data: bytes, *, keyset: Keyset) -> Report:
    """The report in an envelope that the receipt key of an attested keyset signed.

    `keyset` comes out of a verdict (`attest.verify`), never from the server directly.

    Raises:
        MalformedInput: no such envelope, or no such report in it (code `report_malformed`).
        AttestationRefused: another key signed it (code `report_signature`).
    """
    code = "report_malformed"
    members = parse_object(data, limit=MAX_REPORT, what="admission report", code=code)
    read = Members(members, ("report", "signature"), what="admission report", code=code)
    report, signature = read.base64("report", MAX_REPORT), read.base64("signature", 64)
    key = load_der_public_key(keyset.key("receipt").spki)
    try:
        if not isinstance(key, Ed25519PublicKey):  # a keyset of another kind would not have been read
            raise InvalidSignature
        key.verify(signature, _DOMAIN + report)
    except InvalidSignature:
        raise AttestationRefused(
            "the server's receipt key did not sign this report", code="report_signature"
        ) from None
    return parse_report(report)


def parse_report(data: bytes) -> Report:
    """Reads what `Report.encode` wrote.

    Raises:
        MalformedInput: anything else (code `report_malformed`).
    """
    code = "report_malformed"
    names = (
        "type", "verdict", "level", "format", "size", "sha256", "canonical_sha256", "code", "message", "rules",
        "bounds", "precision", "engine", "partition", "stages",
    )  # fmt: skip
    members = parse_object(data, limit=MAX_REPORT, what="admission report", code=code)
    read = Members(members, names, what="admission report", code=code)
    if read.text("type", r"[ -~]{1,64}") != REPORT_TYPE:
        read.refuse(f"type: expected {REPORT_TYPE}")
    bounds, said = members["bounds"], members["precision"]
    try:
        admission = None if bounds is None else Admission.from_json(bounds)
        precision = NOT_LOOKED_AT if said is None else Precision.from_json(said)
    except MalformedInput:
        read.refuse("bounds, precision: expected what admission found")
    report = Report(
        verdict=read.text("verdict", "|".join(VERDICTS)),
        level=read.text("level", "|".join(LEVELS)),
        format=read.text("format", r"[a-z-]{0,32}"),
        size=read.integer("size", 0, 1 << 48),
        sha256=read.text("sha256", r"[0-9a-f]{64}"),
        canonical_sha256=read.text("canonical_sha256", r"(?:[0-9a-f]{64})?"),
        code=read.text("code", r"[a-z0-9_]{0,64}"),
        message=read.text("message", r"[^\x00-\x1f]{0,1000}"),
        rules=_results(read.array("rules", len(RULES) * 4)),
        admission=admission,
        precision=precision,
        engine=read.text("engine", r"[ -~]{0,64}"),
        partition=read.text("partition", r"(?:auto|off|[1-9][0-9]{0,2})?"),
        stages=read.integer("stages", 0, MAX_STAGES),
    )
    if (report.verdict == "admitted") != (admission is not None) or report.encode() != data:
        read.refuse("not in canonical form, or verdict and bounds disagree")
    return report


def _results(items: Any) -> tuple[tuple[str, str], ...]:
    results = []
    for item in items:
        read = Members(item, ("rule", "result"), what="admission report", code="report_malformed")
        result = read.text("result", "passed|refused|not_decided|not_applicable")
        results.append((read.text("rule", r"[0-9]{1,2}\.[0-9]{1,2}"), result))
    return tuple(results)
