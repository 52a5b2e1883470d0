"""The model that a server has is the one that was meant: what a client holds against the metadata.

Pure.
"""

from __future__ import annotations

from strongroom.calls import ModelMetadata, malformed
from strongroom.errors import Conflict
from strongroom.reduction import CALIBRATION, RANGES, Reduction


def check_digest(metadata: ModelMetadata, *, expected: str | None) -> None:
    """The model behind a name is the one the caller means.

    Raises:
        Conflict: it is another (code `model_digest_mismatch`).
    """
    if expected is not None and metadata.digest != expected.lower():
        made = "" if metadata.digest == metadata.sha256 else f", which it made in {metadata.precision}"
        raise Conflict(
            f"model {metadata.id}: expected sha256 {expected.lower()}, the server has {metadata.digest}{made}",
            code="model_digest_mismatch",
        )


def check_received(metadata: ModelMetadata, *, sent: str) -> None:
    """What the server says that arrived is what was sent.

    Raises:
        Conflict: it is something else (code `model_digest_mismatch`).
    """
    if metadata.sha256 != sent:
        raise Conflict(
            f"model {metadata.id}: sent sha256 {sent}, the server has {metadata.sha256}",
            code="model_digest_mismatch",
        )


def check_made(metadata: ModelMetadata, *, asked: Reduction) -> None:
    """The server made what was asked for, of what was sent for it.

    Raises:
        Failure: it says something else (code `answer_malformed`).
    """
    made = metadata.reduced.get("made")
    part = asked.part
    kinds = {RANGES: None, CALIBRATION: None} | ({} if part is None else {part.kind: part.sha256})
    if (
        metadata.precision != asked.options.precision
        or not isinstance(made, dict)
        or made.get("form") != asked.form
        or made.get("options") != asked.options.to_json()
        or made.get("calibration_sha256") != kinds[CALIBRATION]
        or (kinds[RANGES] is not None and made.get("ranges_sha256") != kinds[RANGES])
    ):
        raise malformed("that of the model in the precision that was asked for")
