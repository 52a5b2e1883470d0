"""Strongroom: confidential machine-learning inference. Attest the server first, then send it your model or
data.

    import strongroom

    with strongroom.connect("https://host:8443", policy="policy.toml") as client:
        print(client.model("tumour").predict(rows))

Reading order for an auditor: `attest/__init__.py` (the numbered steps of verification), `attest/policy.py`
(what is accepted), `ratls.py` (the leaf of this very connection), `sealed.py` (models at rest), `service.py`
(the data plane).

Names below are imported when they are first used, so that `import strongroom` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strongroom.attest import verify
    from strongroom.attest.bundle import Bundle, encode_bundle, parse_bundle
    from strongroom.attest.evidence import Appraised, Attested, Check, Claims, Verdict
    from strongroom.attest.policy import Policy, parse_policy
    from strongroom.attest.replay import Bundled, appraise_bundle
    from strongroom.calls import ModelMetadata, TensorInfo
    from strongroom.client import AsyncClient, AsyncModel, Client, Model, aconnect, connect
    from strongroom.errors import (
        AccessRefused,
        AdmissionRefused,
        AttestationRefused,
        Conflict,
        Error,
        Failure,
        InvalidConfig,
        InvalidPolicy,
        InvalidRequest,
        LimitExceeded,
        MalformedInput,
        NotFound,
        Refused,
        SealRefused,
        Unavailable,
        Unusable,
    )

__version__ = "0.1.0"

_HOME = {
    "strongroom.client": ("connect", "aconnect", "Client", "AsyncClient", "Model", "AsyncModel"),
    "strongroom.calls": ("ModelMetadata", "TensorInfo"),
    "strongroom.attest.policy": ("Policy", "parse_policy"),
    "strongroom.attest": ("verify",),
    "strongroom.attest.bundle": ("Bundle", "encode_bundle", "parse_bundle"),
    "strongroom.attest.replay": ("Bundled", "appraise_bundle"),
    "strongroom.attest.evidence": ("Verdict", "Check", "Claims", "Attested", "Appraised"),
    "strongroom.errors": (
        "Error",
        "Refused",
        "AttestationRefused",
        "AdmissionRefused",
        "AccessRefused",
        "SealRefused",
        "Unusable",
        "MalformedInput",
        "InvalidPolicy",
        "InvalidConfig",
        "InvalidRequest",
        "LimitExceeded",
        "NotFound",
        "Conflict",
        "Unavailable",
        "Failure",
    ),
}
_ORIGIN = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "connect", "aconnect", "Client", "AsyncClient", "Model", "AsyncModel", "ModelMetadata", "TensorInfo",
    "Policy", "parse_policy", "verify", "Verdict", "Check", "Claims", "Attested", "Appraised",
    "Bundle", "Bundled", "encode_bundle", "parse_bundle", "appraise_bundle",
    "Error", "Refused", "AttestationRefused", "AdmissionRefused", "AccessRefused", "SealRefused", "Unusable",
    "MalformedInput", "InvalidPolicy", "InvalidConfig", "InvalidRequest", "LimitExceeded", "NotFound",
    "Conflict", "Unavailable", "Failure", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name from its module (PEP 562)."""
    if name not in _ORIGIN:
        raise AttributeError(f"module 'strongroom' has no attribute {name!r}")
    value = getattr(import_module(_ORIGIN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *_ORIGIN})
