"""Less precision: what an owner asks for, what is said of a model afterwards, and the ranges of its values as a file.

Rules
  - Whatever was uploaded is looked at (`models.narrow`), and called `fp32` only where nothing in it computes with, or
    stores, less than 32 bits. What arrived in less is `as-uploaded`: nobody here says how good it is.
  - `int8` and `fp16` are said of what was made here alone, with the digest of the model that it was made from.
  - Pure, and without onnx or numpy: both ends of a connection read this.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from strongroom.errors import Conflict, InvalidRequest, MalformedInput

FP32: Final = "fp32"
AS_UPLOADED: Final = "as-uploaded"
UNKNOWN: Final = "unknown"
PRECISIONS: Final = ("int8", "fp16")
"""What is made here."""
WORDS: Final = (FP32, AS_UPLOADED, *PRECISIONS, UNKNOWN)
"""What is said of models; `unknown`: of those that an earlier release admitted, which did not look."""
FORMS: Final = ("dynamic", "static", "fp16")
METHODS: Final = ("minmax", "percentile")
RANGES: Final = "ranges"
CALIBRATION: Final = "calibration"
KINDS: Final = (RANGES, CALIBRATION)
"""What may travel with a model: ranges of its values, or examples to measure them on."""
MAX_EXCLUDED: Final = 256
"""Nodes that are left as they are; networks of which more should stay are not made smaller this way."""
MAX_NAME: Final = 512
"""Characters of a node's name, as admission takes them."""
MAX_RANGES: Final = 4 << 20
"""Bytes of a file of ranges: some 40,000 values, more than any published network has."""
RANGES_TYPE: Final = "strongroom-ranges/1"

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CODE: Final = "model_info_malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a model's owner chooses."""

    precision: str
    """One of `PRECISIONS`."""
    method: str = "minmax"
    """How ranges are taken of examples, one of `METHODS`."""
    per_channel: bool = True
    """One scale for each output channel or column of weights; else one for the whole tensor."""
    exclude: tuple[str, ...] = ()
    """Nodes that stay as they are, by their name or that of a value that they make."""

    def check(self) -> None:
        """Returns if these are options that there are.

        Raises:
            InvalidRequest: codes `precision_unsupported` (a precision that there is not, with what to use instead),
                `precision_options`.
        """
        check_precision(self.precision)
        if self.method not in METHODS:
            _refuse_options(f"expected a method among {', '.join(METHODS)}, got {self.method!r:.40}")
        if len(self.exclude) > MAX_EXCLUDED or not all(0 < len(name) <= MAX_NAME for name in self.exclude):
            _refuse_options(
                f"expected at most {MAX_EXCLUDED} nodes to exclude, each by a name of 1 to {MAX_NAME} characters"
            )

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "precision": self.precision,
            "method": self.method,
            "per_channel": self.per_channel,
            "exclude": list(self.exclude),
        }

    @classmethod
    def from_json(cls, value: object) -> Options:
        """Reads what `to_json` wrote.

        Raises:
            MalformedInput: anything else (code `model_info_malformed`).
        """
        members = _members(value, "precision", "method", "per_channel", "exclude")
        exclude = members["exclude"]
        if not isinstance(exclude, list) or not all(isinstance(name, str) for name in exclude):
            _malformed("exclude is no list of names")
        if type(members["per_channel"]) is not bool:
            _malformed("per_channel is neither true nor false")
        return cls(
            precision=_one_of(members["precision"], PRECISIONS),
            method=_one_of(members["method"], METHODS),
            per_channel=members["per_channel"],
            exclude=tuple(exclude),
        )


def check_precision(word: str) -> None:
    """Returns if `word` is one of `PRECISIONS`.

    Raises:
        InvalidRequest: it is none that can be made here; says why, and what to use (code `precision_unsupported`).
    """
    if word in PRECISIONS:
        return
    why = _NOT_MADE.get(word.lower(), "is none that is made here")
    raise InvalidRequest(
        f'precision {word!r:.20} {why}; expected "fp32" (as it is), "int8" or "fp16"',
        code="precision_unsupported",
    )


_NOT_MADE: Final = {
    "bf16": "needs kernels that onnxruntime does not have on x86-64; on processors with matrix units, int8 is what "
    "uses them",
    "int4": "needs operators outside of ai.onnx, which are not run here",
    "auto": "is the model owner's choice, which nobody makes for them",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What travels with a model in the body of its upload, in front of it."""

    kind: str
    """One of `KINDS`: ranges as `encode_ranges` writes them, or a `.npz` of examples."""
    size: int
    """Bytes."""
    sha256: str
    """Lower-case hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """What an upload asks to be made of its model."""

    options: Options
    part: Part | None = None

    def check(self) -> None:
        """Returns if this can be asked for.

        Raises:
            InvalidRequest: as `Options.check`; or something to measure with for a precision that measures nothing
                (code `precision_options`).
        """
        self.options.check()
        if self.part is not None and self.options.precision != "int8":
            _refuse_options(f"{self.part.kind}: only int8 measures activations, got {self.options.precision}")
        if self.part is not None and self.part.size < 1:
            _refuse_options(f"{self.part.kind}: expected bytes, got none")

    @property
    def form(self) -> str:
        """What comes out, one of `FORMS`."""
        return "fp16" if self.options.precision == "fp16" else "dynamic" if self.part is None else "static"


# What is said of a model


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How a model came to less precision here."""

    form: str
    """One of `FORMS`."""
    options: Options
    rewritten: tuple[tuple[str, int], ...]
    """Operator -> nodes that compute with, or read, less precision; sorted, as `left`."""
    left: tuple[tuple[str, int], ...]
    """Operator -> products with weights that stay in floating point."""
    from_sha256: str
    """SHA-256 (hex) of the canonical form that it was made from: that of the same upload without a precision."""
    ranges_sha256: str | None
    """Of the ranges that it was made between, as `encode_ranges` writes them."""
    calibration_sha256: str | None
    """Of the set that they were measured on, which was not kept; said to the model's owner only."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "form": self.form,
            "options": self.options.to_json(),
            "rewritten": dict(self.rewritten),
            "left": dict(self.left),
            "from_sha256": self.from_sha256,
            "ranges_sha256": self.ranges_sha256,
            "calibration_sha256": self.calibration_sha256,
        }

    @classmethod
    def from_json(cls, value: object) -> Made:
        """Reads what `to_json` wrote.

        Raises:
            MalformedInput: anything else (code `model_info_malformed`).
        """
        names = tuple(cls.__dataclass_fields__)
        members = _members(value, *names)
        return cls(
            form=_one_of(members["form"], FORMS),
            options=Options.from_json(members["options"]),
            rewritten=counts_of(members["rewritten"]),
            left=counts_of(members["left"]),
            from_sha256=_digest(members["from_sha256"]),
            ranges_sha256=None if members["ranges_sha256"] is None else _digest(members["ranges_sha256"]),
            calibration_sha256=(
                None if members["calibration_sha256"] is None else _digest(members["calibration_sha256"])
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What is said of a model's precision, in metadata, admission reports and results."""

    name: str
    """One of `WORDS`: what demands are compared with."""
    narrow: tuple[tuple[str, int], ...]
    """What computes with or stores less than 32 bits: operator or datatype -> how many; sorted."""
    made: Made | None = None

    @property
    def joins_rows(self) -> bool:
        """Whether an answer depends on the other rows of its request: ranges are taken of all of them. Requests of
        different callers are never put together for such a model.
        """
        return any(name == "DynamicQuantizeLinear" for name, _ in self.narrow)

    def for_others(self) -> Precision:
        """The same without the digest of a calibration set: whoever can guess a set could see by it that they are
        right, and that is for its owner alone.
        """
        return self if self.made is None else replace(self, made=replace(self.made, calibration_sha256=None))

    def to_json(self) -> dict[str, Any]:
        """The JSON object form."""
        return {
            "name": self.name,
            "narrow": dict(self.narrow),
            "made": None if self.made is None else self.made.to_json(),
        }

    @classmethod
    def from_json(cls, value: object) -> Precision:
        """Reads what `to_json` wrote.

        Raises:
            MalformedInput: anything else, or a name that does not go with the rest (code `model_info_malformed`).
        """
        members = _members(value, "name", "narrow", "made")
        found = cls(
            name=_one_of(members["name"], (FP32, AS_UPLOADED, *PRECISIONS)),
            narrow=counts_of(members["narrow"]),
            made=None if members["made"] is None else Made.from_json(members["made"]),
        )
        expected = AS_UPLOADED if found.narrow else FP32
        if found.made is not None:
            expected = found.made.options.precision if found.narrow else ""
        if found.name != expected:
            _malformed(f"{found.name} does not go with what was found")
        return found


NOT_LOOKED_AT: Final = Precision(name=UNKNOWN, narrow=())
"""Of a model whose record does not say. Not written anywhere: its absence is what it stands for."""
PLAIN: Final = Precision(name=FP32, narrow=())


def as_found(narrow: Mapping[str, int]) -> Precision:
    """What is said of a model as it arrived, by what `models.narrow` found in it."""
    found = tuple(sorted(narrow.items()))
    return Precision(name=AS_UPLOADED, narrow=found) if found else PLAIN


def counts_of(value: object) -> tuple[tuple[str, int], ...]:
    """Names with how many there are, sorted.

    Raises:
        MalformedInput: anything else (code `model_info_malformed`).
    """
    if not isinstance(value, dict) or len(value) > MAX_EXCLUDED:
        _malformed("counts are no object, or too many")
    pairs = tuple(value.items())
    if not all(isinstance(name, str) and 0 < len(name) <= 64 and name.isprintable() for name, _ in pairs):
        _malformed("a name among counts is none")
    if not all(type(count) is int and 0 < count < 1 << 32 for _, count in pairs) or list(pairs) != sorted(
        pairs
    ):
        _malformed("counts are not positive numbers, sorted by name")
    return pairs


def pinned(*, sha256: str, canonical_sha256: str, precision: str) -> str:
    """The digest (hex) that a caller pins a model by: of the bytes that its owner uploaded, but where the server made
    less precision of them of what it made. The same file has other answers in each precision, and in each of its forms.
    """
    return canonical_sha256 if precision in PRECISIONS else sha256


def check_accepted(name: str, accepted: tuple[str, ...], *, model: str) -> None:
    """Returns if a model of the precision `name` may answer whoever accepts these; () accepts all.

    Raises:
        Conflict: it may not (code `precision_refused`).
    """
    if accepted and name not in accepted:
        raise Conflict(
            f"{model}: a precision among {', '.join(accepted)} is accepted, the model's is {name}",
            code="precision_refused",
        )


# Ranges as a file


def encode_ranges(ranges: Mapping[str, tuple[float, float]], *, model: str) -> bytes:
    """The ranges of the values of a model, whose canonical SHA-256 (hex) is `model`: JSON, always the same bytes for
    the same ranges.
    """
    document = {
        "type": RANGES_TYPE,
        "model": model,
        "ranges": {name: [float(low), float(high)] for name, (low, high) in sorted(ranges.items())},
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode() + b"\n"


def parse_ranges(data: bytes | bytearray, *, model: str) -> dict[str, tuple[float, float]]:
    """Reads what `encode_ranges` wrote; line breaks and spaces do not matter.

    Raises:
        MalformedInput: no such file (code `precision_ranges_malformed`).
        InvalidRequest: the ranges of another model (code `precision_ranges`).
    """
    if len(data) > MAX_RANGES:
        _bad_ranges(f"more than {MAX_RANGES} bytes")
    try:
        document = json.loads(
            bytes(data),
            object_pairs_hook=_once,
            parse_int=_number,
            parse_float=_number,
            parse_constant=_number,
        )
    except (ValueError, RecursionError):
        _bad_ranges("no JSON text")
    if not isinstance(document, dict) or document.keys() != {"type", "model", "ranges"}:
        _bad_ranges("expected the members type, model and ranges")
    if document["type"] != RANGES_TYPE or not isinstance(document["ranges"], dict):
        _bad_ranges(f"expected the type {RANGES_TYPE}, and an object of ranges")
    found = {}
    for name, ends in document["ranges"].items():
        if not isinstance(ends, list) or len(ends) != 2 or not all(type(end) is float for end in ends):
            _bad_ranges("expected two numbers for each value")
        found[name] = (ends[0], ends[1])
    if document["model"] != model:
        raise InvalidRequest(
            f"expected ranges of the model {model}, got those of {document['model']!r:.70}",
            code="precision_ranges",
        )
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member twice")
    return found


def _number(text: str) -> float:
    value = float(text)  # what int() takes a minute for, float() does not
    if not math.isfinite(value):
        raise ValueError("no number")
    return value


def _bad_ranges(why: str) -> NoReturn:
    raise MalformedInput(f"ranges: {why}", code="precision_ranges_malformed") from None


# Strict reading of our own JSON, as in `models.info`


def _members(value: object, *names: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        _malformed(f"members expected: {', '.join(names)}")
    return value


def _one_of(value: object, words: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in words:
        _malformed(f"expected one of {', '.join(words)}")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        _malformed("a digest is not 64 lower-case hex characters")
    return value


def _malformed(why: str) -> NoReturn:
    raise MalformedInput(f"model metadata: precision: {why}", code=_CODE)


def _refuse_options(why: str) -> NoReturn:
    raise InvalidRequest(why, code="precision_options")
