"""One step of making less precision, behind `preparation`: a child of the zygote that measures or rewrites, answers
and ends.

Rules
  - One thread, no secret, no file; locked down before it looks at a byte of a model, ranges or examples, with all
    layers that the server promises.
  - It has one model and, if any, one owner's examples; neither outlives it.
  - onnxruntime is there for measuring only. Its texts stay here: errors are our own sentences.
"""

from __future__ import annotations

import socket
from typing import Any, Final

from strongroom import admission_child, frames, models
from strongroom.errors import Error, LimitExceeded
from strongroom.models import calibration
from strongroom.models.info import AdmissionLimits, Admitted, Budget, ModelInfo
from strongroom.models.precision import measure, rewrite
from strongroom.npy import decode_npz
from strongroom.preparation import MEASURE, REWRITE
from strongroom.reduction import MAX_RANGES, Options, encode_ranges, parse_ranges

FACTORS: Final = {MEASURE: 8, REWRITE: 8}
"""Bytes of memory for each byte of the model: the file, its parsed form, arrays, what is written; a session."""
PART_FACTOR: Final = 4
"""The same for each byte of ranges or examples."""


def prepare(descriptor: int) -> int:
    """Does one step; whatever goes wrong is an answer or a death. Returns the exit code."""
    try:
        with socket.socket(fileno=descriptor) as end:
            header, data = admission_child.first(end)
            _, part = frames.receive(end, most=calibration.LIMITS.total_bytes)
            if header["step"] == MEASURE:
                from strongroom import engine, observer  # noqa: F401 - files cannot be read any more below
            layers = admission_child.confine(
                end.fileno(), header["child"], FACTORS[header["step"]] * len(data) + PART_FACTOR * len(part)
            )
            if not set(header["layers"]) <= set(layers):
                return 1
            answer, made = _answer(header, data, part)
            frames.send(end, answer, made)
    except MemoryError:
        return 1  # the caller takes silence for a limit
    except Exception:  # noqa: BLE001 - a bug here must not look like a verdict: the caller sees a death
        return 1
    return 0


def _answer(header: dict[str, Any], data: bytearray, part: bytearray) -> tuple[dict[str, Any], bytes]:
    try:
        admitted = models.reopen(
            data,
            info=ModelInfo.from_json(header["info"]),
            sha256=header["sha256"],
            canonical_sha256=header["canonical_sha256"],
        )
        del data
        options = Options.from_json(header["options"])
        if header["step"] == MEASURE:
            return {}, _measured(admitted, options, part, _limits(header["limits"]))
        return _rewritten(admitted, options, part)
    except Error as error:
        return admission_child.refusal(error), b""
    except RecursionError:
        deep = LimitExceeded("the model is nested too deeply to be rewritten", code="preparation_limits")
        return admission_child.refusal(deep), b""


def _measured(admitted: Admitted, options: Options, part: bytearray, limits: AdmissionLimits) -> bytes:
    from strongroom.engine import Engine
    from strongroom.observer import Observer

    arrays = decode_npz(part, limits=calibration.LIMITS)
    examples = calibration.requests_of(admitted.info, arrays, what="the calibration set")
    ranges = measure(admitted, options=options, examples=examples, run=Observer(Engine(), limits))
    made = encode_ranges(ranges, model=admitted.canonical_sha256)
    if len(made) > MAX_RANGES:
        raise LimitExceeded(f"the ranges take more than {MAX_RANGES} bytes", code="preparation_limits")
    return made


def _rewritten(admitted: Admitted, options: Options, part: bytearray) -> tuple[dict[str, Any], bytes]:
    ranges = parse_ranges(part, model=admitted.canonical_sha256) if part else None
    made = rewrite(admitted, options=options, ranges=ranges)
    return {"rewritten": dict(made.rewritten), "left": dict(made.left)}, made.data


def _limits(given: dict[str, Any]) -> AdmissionLimits:
    return AdmissionLimits(**{**given, "budget": Budget(**given["budget"])})
