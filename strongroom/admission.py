"""Admission in a process that can be killed: parsers and checks of a stranger's model never run in the server.

    server --> zygote --forks--> examiner: reads one model, answers, ends

Rules
  - The examiner comes from the zygote (`zygote`), which was executed before any secret existed: no key is in its
    memory. What it needs is imported already, so that it takes a few milliseconds and not seconds.
  - It has one model, one socket, and limits on memory, processor and wall time that the kernel enforces;
    whatever happens to it, the caller gets a refusal.
  - What comes back is read as strictly as a stranger's, for an examiner that was taken over says what it likes.
    The digest of what it wrote is computed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from strongroom import models
from strongroom.errors import (
    CODES,
    AdmissionRefused,
    Conflict,
    Error,
    Failure,
    LimitExceeded,
    MalformedInput,
)
from strongroom.frames import receive_frozen, send
from strongroom.models.info import AdmissionLimits, Admitted, ModelInfo
from strongroom.zygote import EXAMINER, Nursery, Timely

MESSAGE_CHARACTERS: Final = 400
"""Of a refusal's sentence."""
SPARE_S: Final = 5
"""Seconds that the answer may come later than the child's own deadline."""
KINDS: Final[Mapping[str, type[Error]]] = {
    kind.__name__: kind for kind in (AdmissionRefused, Conflict, LimitExceeded, MalformedInput, Failure)
}


class Admit(Protocol):
    """What examines models: `models.admit`, or `Examiner.admit` in a process of its own."""

    def __call__(self, data: bytearray, *, format: str, limits: AdmissionLimits) -> Admitted:
        """The model, admitted; the bytearray may be emptied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What one admission may take, enforced by the kernel."""

    wall_s: float
    cpu_s: int
    memory_bytes: int
    """Beyond what the template occupies, and besides a multiple of the model's size."""


STANDARD_CHILD: Final = ChildLimits(wall_s=60.0, cpu_s=50, memory_bytes=1 << 30)
"""The largest networks take ten seconds; the files of the hostile corpus less than one each."""


class Examiner:
    """Admits models in children of the zygote. Thread-safe."""

    def __init__(self, nursery: Nursery, *, limits: ChildLimits) -> None:
        self._nursery = nursery
        self._limits = limits

    def admit(
        self, data: bytes | bytearray | memoryview, *, format: str, limits: AdmissionLimits
    ) -> Admitted:
        """As `models.admit`, in a child. A bytearray is emptied once it was sent.

        Raises:
            LimitExceeded, MalformedInput, Conflict, AdmissionRefused: as `models.admit`; and LimitExceeded
                where the child died or took too long (code `admission_limits`).
            Unavailable: no child can be made now (code `overloaded`).
        """
        if len(data) > limits.model_bytes:
            raise LimitExceeded(
                f"the model has {len(data)} bytes, at most {limits.model_bytes}", code="model_too_large"
            )
        with self._nursery.fork(EXAMINER) as child:
            child.end.settimeout(self._limits.wall_s + SPARE_S)
            try:
                header = {
                    "format": format,
                    "limits": dataclasses.asdict(limits),
                    "child": dataclasses.asdict(self._limits),
                }
                send(child.end, header, data)
                if isinstance(data, bytearray):
                    data.clear()
                answer, canonical = receive_frozen(Timely(child.end, self._limits.wall_s + SPARE_S))
            except (OSError, EOFError, MemoryError):
                raise LimitExceeded(
                    "examining the model took more time or memory than it may", code="admission_limits"
                ) from None
        return _read(answer, canonical)


def _read(answer: Mapping[str, Any], canonical: bytes) -> Admitted:
    """What a child says, believed as far as it can be checked."""
    if set(answer) == {"error", "code", "message"}:
        kind = KINDS.get(str(answer["error"]), Failure)
        code, message = str(answer["code"]), str(answer["message"])[:MESSAGE_CHARACTERS]
        if code not in CODES or not message.isprintable():
            raise Failure("the process that examines models answers what it cannot")
        raise kind(message, code=code)
    if set(answer) != {"info", "sha256", "canonical_sha256"}:
        raise Failure("the process that examines models answers what it cannot")
    digest = str(answer["canonical_sha256"])
    return models.reopen(
        canonical,
        info=ModelInfo.from_json(answer["info"]),
        sha256=str(answer["sha256"]),
        canonical_sha256=digest,
    )
