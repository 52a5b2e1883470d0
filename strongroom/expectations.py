"""What a caller says that a model must be before it runs for them, and what they are told of it."""

from __future__ import annotations

import hmac
from dataclasses import replace

from strongroom.errors import Conflict
from strongroom.reduction import check_accepted, pinned
from strongroom.store import ModelVersion
from strongroom.tokens import Principal


def shown(model: ModelVersion, principal: Principal | None) -> ModelVersion:
    """What this caller is told of a model: the digest of its calibration set is for its owner."""
    if principal is not None and principal.id == model.owner:
        return model
    return replace(model, info=replace(model.info, precision=model.info.precision.for_others()))


def check_expected(model: ModelVersion, sha256: str | None, precision: tuple[str, ...]) -> None:
    """Returns if the model is the one with the digest that a caller pins it by (`reduction.pinned`), None for any, and
    of one of these precisions, () for all.

    Raises:
        Conflict: it is not (codes `model_digest_mismatch`, `precision_refused`).
    """
    got = pinned(
        sha256=model.sha256, canonical_sha256=model.canonical_sha256, precision=model.info.precision.name
    )
    if sha256 is not None and not hmac.compare_digest(got, sha256):
        raise Conflict(f"expected a model with SHA-256 {sha256}, got {got}", code="model_digest_mismatch")
    if precision:
        check_accepted(model.info.precision.name, precision, model=f"{model.name}/versions/{model.version}")
