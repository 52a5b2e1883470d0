"""How an upload asks for less precision: header fields, written by the client and read by the server (docs/http.md).

    Strongroom-Precision: int8
    Strongroom-Precision-Method: percentile                    else minmax
    Strongroom-Precision-Scales: tensor                        else channel
    Strongroom-Precision-Exclude: /layer/MatMul, odd%2Cname    percent-encoded UTF-8, by commas
    Strongroom-Precision-Part: calibration; bytes=1234; sha-256=:<base64>:

Rules
  - `fp32`, or no field, is a model as it is. A field that says how, without one that says what, is a mistake and is
    refused: it would be passed over otherwise.
  - What one side writes the other reads as the same value.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final, NoReturn
from urllib.parse import quote, unquote

from strongroom.errors import InvalidRequest
from strongroom.reduction import FP32, KINDS, METHODS, WORDS, Options, Part, Reduction

PRECISION: Final = "strongroom-precision"
METHOD: Final = "strongroom-precision-method"
SCALES: Final = "strongroom-precision-scales"
EXCLUDE: Final = "strongroom-precision-exclude"
PART: Final = "strongroom-precision-part"
ACCEPT: Final = "strongroom-accept-precision"
"""What precisions of a model somebody takes results of, by commas."""
_HOW: Final = (METHOD, SCALES, EXCLUDE, PART)
_SCALES: Final = {"channel": True, "tensor": False}
_PART: Final = re.compile(r"([a-z]+); bytes=([1-9][0-9]{0,11}); sha-256=:([A-Za-z0-9+/]{43}=):", re.ASCII)


def fields_of(reduction: Reduction) -> tuple[tuple[str, str], ...]:
    """The header fields that ask for `reduction`; what is usual is left out."""
    options, part = reduction.options, reduction.part
    fields = [(PRECISION, options.precision)]
    if options.method != Options(precision="int8").method:
        fields.append((METHOD, options.method))
    if not options.per_channel:
        fields.append((SCALES, "tensor"))
    if options.exclude:
        fields.append((EXCLUDE, ", ".join(quote(name, safe="/:.") for name in options.exclude)))
    if part is not None:
        digest = base64.b64encode(bytes.fromhex(part.sha256)).decode("ascii")
        fields.append((PART, f"{part.kind}; bytes={part.size}; sha-256=:{digest}:"))
    return tuple((name.title(), value) for name, value in fields)


def read_fields(headers: Mapping[str, str]) -> Reduction | None:
    """What the fields of a request ask for; None: a model as it is. `headers`: names in lower case, or none of it.

    Raises:
        InvalidRequest: nothing that can be asked for (codes `precision_unsupported`, `precision_options`).
    """
    word = headers.get(PRECISION, FP32)
    if word == FP32:
        if given := [name.title() for name in _HOW if name in headers]:
            _refuse(f"{', '.join(given)}: how, without Strongroom-Precision, which says what")
        return None
    method = headers.get(METHOD, METHODS[0])
    scales = headers.get(SCALES, "channel")
    if scales not in _SCALES:
        _refuse("Strongroom-Precision-Scales: expected channel or tensor")
    reduction = Reduction(
        options=Options(
            precision=word,
            method=method,
            per_channel=_SCALES[scales],
            exclude=_excluded(headers.get(EXCLUDE)),
        ),
        part=_part(headers.get(PART)),
    )
    reduction.check()
    return reduction


def _excluded(value: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    try:
        return tuple(unquote(name.strip(), errors="strict") for name in value.split(","))
    except UnicodeDecodeError:
        _refuse("Strongroom-Precision-Exclude: expected percent-encoded UTF-8")


def _part(value: str | None) -> Part | None:
    if value is None:
        return None
    match = _PART.fullmatch(value)
    if match is None or match[1] not in KINDS:
        _refuse(
            f"Strongroom-Precision-Part: expected one of {', '.join(KINDS)}, then '; bytes=N; sha-256=:<base64>:'"
        )
    return Part(kind=match[1], size=int(match[2]), sha256=base64.b64decode(match[3]).hex())


def read_accepted(value: str | None) -> tuple[str, ...]:
    """The precisions in a `Strongroom-Accept-Precision` field; () where there is none: all are taken.

    Raises:
        InvalidRequest: none, or none that there is (code `precision_options`).
    """
    if value is None:
        return ()
    words = tuple(word.strip() for word in value.split(","))
    check_words(words)
    return words


def check_words(words: tuple[str, ...]) -> None:
    """Returns if these are words that are said of models' precision, at least one, each once.

    Raises:
        InvalidRequest: they are not (code `precision_options`).
    """
    if not words or len(set(words)) != len(words) or not set(words) <= set(WORDS):
        _refuse(
            f"expected precisions among {', '.join(WORDS)}, each once, got {', '.join(words)[:100] or 'none'}"
        )


def _refuse(message: str) -> NoReturn:
    raise InvalidRequest(message, code="precision_options")
