"""What a front end hands to the data plane and gets back from it: values that decide nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.access import ANONYMOUS_OWNER
from strongroom.attest.evidence import Evidence
from strongroom.models.info import AdmissionLimits
from strongroom.oip import InferRequest
from strongroom.quotas import QuotaLimits
from strongroom.reduction import Reduction
from strongroom.runner import Encode
from strongroom.store import ModelVersion
from strongroom.tokens import Principal

Body: TypeAlias = AsyncIterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """How much the service takes; units and meanings are those of the settings of the same names."""

    model_bytes: int
    calibration_bytes: int
    request_bytes: int
    body_bytes_in_flight: int
    body_rate: int
    name_length: int
    quotas: QuotaLimits
    disk_free_bytes: int
    concurrent_requests: int
    concurrent_requests_per_caller: int
    queue_s: int
    evidence_per_minute: int
    evidence_waiting: int
    evidence_batch: int
    admission: AdmissionLimits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Epoch:
    """What the service knows of the key epoch that a connection belongs to for its whole life."""

    keyset_bytes: bytes
    keyset_digest: bytes
    not_after: int
    """Unix seconds."""
    boot_evidence: Evidence
    """The evidence in the TLS certificate: no nonce, so it proves nothing about now."""
    receipt_key: Ed25519PrivateKey = field(repr=False)
    """Signs what the server says about models; its public half is in the keyset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who is asking for what, as the front end received it. Nothing in it is verified but `epoch`."""

    method: str
    target: str
    """Path and query as sent: what a token for a changing call is bound to."""
    token: str | None
    address: str
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A model version as a caller may see it."""

    model: ModelVersion
    loaded: bool
    stages: int = 1
    """In which it runs, one after the other; 1: as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The body of `/model/predict`, read as far as it goes without knowing the model."""

    name: str | None
    version: int | None
    to_request: Callable[[ModelVersion], InferRequest]
    encode: Encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Time, handed in: `now` for documents, `monotonic` (seconds) for rates and deadlines."""

    now: Callable[[], datetime]
    monotonic: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What an upload is to become."""

    principal: Principal | None
    name: str
    access: str
    format: str | None
    sha256: str | None
    reduction: Reduction | None
    partition: str
    batching: bool

    @property
    def owner(self) -> str:
        """Whose model it will be."""
        return self.principal.id if self.principal else ANONYMOUS_OWNER
