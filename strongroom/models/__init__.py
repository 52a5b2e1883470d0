"""Admission: the one way from bytes of a stranger to a model that the engine runs; and the way back from a store.

Rules
  - Declared format and detected format must agree, so that nobody is shown one reading and runs another.
  - The format's own module checks and rewrites; the engine gets what was written here, not the upload.
  - Only `admit` makes an `Admitted`, and `reopen` makes it again: of bytes with the very digest that admission
    gave them, as an authenticated record says. Models are parsed and written once, not at every load.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
from dataclasses import replace
from typing import Final

from strongroom import formats
from strongroom.errors import AdmissionRefused, Conflict, LimitExceeded, SealRefused
from strongroom.models.info import _TOKEN, AdmissionLimits, Admitted, ModelInfo


def admit(data: bytes | bytearray | memoryview, *, format: str, limits: AdmissionLimits) -> Admitted:
    """Admits a model, or says why not. `format` is what the uploader states: one of `models.info.FORMATS`.

    A bytearray is the callee's: it may be emptied, because a large model is in memory several times over.

    In order: 1. size, 2. format by content, 3. declared against detected, 4. the format's own checks, 5. the
    result is ONNX by the same look that the upload got, 6. size of the metadata.

    Raises:
        LimitExceeded: larger or more complex than `limits` (`model_too_large`, `onnx_too_complex`,
            `model_metadata_too_large`, ...).
        MalformedInput: not a model (codes `format_...`, `onnx_malformed`, ...).
        Conflict: not the format it is declared to be (code `format_mismatch`).
        AdmissionRefused: a model that is not run here (codes of the format's module).
    """
    if len(data) > limits.model_bytes:
        raise LimitExceeded(
            f"the model has {len(data)} bytes, at most {limits.model_bytes}", code="model_too_large"
        )
    detected = formats.detect(memoryview(data)[: formats.HEAD_BYTES])
    if detected != format:
        raise Conflict(f"declared {format!r:.40}, the bytes are {detected}", code="format_mismatch")
    sha256 = hashlib.sha256(data).hexdigest()
    onnx, info = _convert(data, format=format, limits=limits)
    # onnxruntime tells its own format by four bytes at offset 4; what was written here must not look like it.
    if formats.detect(onnx[: formats.HEAD_BYTES]) != "onnx":
        raise AdmissionRefused("the model cannot be written so that it reads as ONNX", code="onnx_malformed")
    check_metadata(info, limits)
    return Admitted(
        info=info,
        onnx=onnx,
        sha256=sha256,
        canonical_sha256=hashlib.sha256(onnx).hexdigest(),
        token=_TOKEN,
    )


def warm() -> None:
    """Imports what admission needs, which is not imported with this package: later there may be no files."""
    import numpy.ma  # noqa: F401 - `numpy.unique` imports it when it first runs

    import strongroom.models.onnx
    import strongroom.models.trees
    import strongroom.models.xgboost  # noqa: F401 - for whoever admits later


def reopen(canonical: bytes | bytearray, *, info: ModelInfo, sha256: str, canonical_sha256: str) -> Admitted:
    """What `admit` returned once, from its `onnx` and facts out of the sealed store.

    The digests (hex) and `info` come from the authenticated record, never from a caller.

    Raises:
        SealRefused: these are not the bytes that were admitted (code `seal_digest`).
    """
    if not hmac.compare_digest(hashlib.sha256(canonical).hexdigest(), canonical_sha256):
        raise SealRefused("the model's bytes do not have the digest in the record", code="seal_digest")
    onnx = _frozen(canonical)
    return Admitted(info=info, onnx=onnx, sha256=sha256, canonical_sha256=canonical_sha256, token=_TOKEN)


def _frozen(data: bytes | bytearray) -> bytes:
    """The same as `bytes`, in pieces: a single copy of 200 MB keeps every other thread waiting for 0.2 s."""
    if isinstance(data, bytes):
        return data
    out = io.BytesIO()
    with memoryview(data) as view:
        for start in range(0, len(view), _PIECE):
            out.write(view[start : start + _PIECE])
    return out.getvalue()  # no copy: it is the buffer itself


_PIECE: Final = 1 << 20
MAX_ONNX: Final = 2 << 30
"""Bytes of a protobuf message; a forest in ONNX is larger than the file it came in."""


def check_metadata(info: ModelInfo, limits: AdmissionLimits) -> None:
    """Names and notes of one model burden everybody: the record is rewritten whole at each change (§5.4).

    Raises:
        LimitExceeded: they are larger than `limits.metadata_bytes` (code `model_metadata_too_large`).
    """
    size = len(json.dumps(info.to_json(), separators=(",", ":")))
    if size > limits.metadata_bytes:
        raise LimitExceeded(
            f"names, tensors and notes of the model take {size} bytes, at most {limits.metadata_bytes}",
            code="model_metadata_too_large",
        )


def _convert(
    data: bytes | bytearray | memoryview, *, format: str, limits: AdmissionLimits
) -> tuple[bytes, ModelInfo]:
    # Imported when needed: the client install has neither, and imports this package for `models.info`.
    if format == "onnx":
        from strongroom.models.onnx import parse_onnx

        return parse_onnx(data, limits=limits)
    from strongroom.models.onnx import examine_written
    from strongroom.models.tree_wire import apart
    from strongroom.models.trees import to_onnx
    from strongroom.models.xgboost import parse_xgboost

    onnx, info = to_onnx(parse_xgboost(data, format=format, limits=limits))
    # What is written here passes the same checks as a stranger's file, and has the same kind of bounds.
    seen = examine_written(*apart(onnx), limits=replace(limits, tensor_bytes=MAX_ONNX))
    return onnx, replace(info, admission=seen.admission, precision=seen.precision)
