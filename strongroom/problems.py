"""What an error looks like over HTTP: one table from codes and families to statuses, and the document.

Rules
  - A caller gets our own sentence and a code of `errors.CODES`: no stack trace, no foreign exception's text.
  - 4xx is the caller's to mend, 5xx ours. 429 and 503 say when to come back.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final

from strongroom.errors import (
    AccessRefused,
    AdmissionRefused,
    Conflict,
    Error,
    LimitExceeded,
    NotFound,
    Unavailable,
    Unusable,
)
from strongroom.routes import Response

FAMILIES: Final[tuple[tuple[type[Error], int], ...]] = (
    (AdmissionRefused, 422),
    (AccessRefused, 403),
    (LimitExceeded, 413),
    (NotFound, 404),
    (Conflict, 409),
    (Unavailable, 503),
    (Unusable, 400),
    (Error, 500),  # what is left is ours: faults, and sealed data that does not open
)
"""Error family -> status; the first that fits."""
CODES: Final[dict[str, int]] = {
    "admission_limits": 422,
    "body_too_slow": 408,
    "caller_too_busy": 429,
    "disk_full": 507,
    "engine_model_too_large": 507,
    "evidence_rate": 429,
    "load_limits": 422,
    "media_type_unsupported": 415,
    "method_not_allowed": 405,
    "model_reserved": 403,
    "name_taken": 409,
    "not_acceptable": 406,
    "onnx_compute": 422,
    "onnx_loop": 422,
    "onnx_memory": 422,
    "owner_bytes_quota": 507,
    "preparation_limits": 422,
    "output_shape": 422,
    "one_owner": 409,
    "owner_quota": 409,
    "owner_record_full": 409,
    "response_too_large": 400,
    "run_memory": 422,
    "run_too_long": 422,
    "store_quota": 507,
    "store_record_full": 507,
    "upload_rate": 429,
    "worker_died": 422,
}
"""Code -> status, where it is not the family's. Codes `auth_...` of `AccessRefused` are 401."""


def status_of(error: Error) -> int:
    """The HTTP status of an error."""
    if error.code in CODES:
        return CODES[error.code]
    if isinstance(error, AccessRefused) and error.code.startswith("auth_"):
        return 401
    return next(status for family, status in FAMILIES if isinstance(error, family))


def problem(error: Error, *, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """The problem document (RFC 9457) of an error."""
    status = status_of(error)
    fields = dict(headers)
    if isinstance(error, Unavailable):
        fields["Retry-After"] = str(error.retry_after_s)
    if status == 401:
        fields["WWW-Authenticate"] = "Bearer"
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.code,
    }
    return Response(json.dumps(document).encode("ascii"), status, fields, "application/problem+json")
