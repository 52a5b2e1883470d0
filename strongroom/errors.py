"""Every error that Strongroom raises, in one tree. Families answer *whose fault*; `code` is stable, for machines.

    Error
    ├── Refused                  the other side, or the data, did not pass a check: nothing was sent, run or changed
    │   ├── AttestationRefused   evidence, keyset, channel or policy; carries the whole verdict
    │   ├── AdmissionRefused     a model that this server will not run
    │   ├── AccessRefused        who is asking may not do this
    │   └── SealRefused          sealed data is not what was sealed, or not for this code
    ├── Unusable                 input that cannot be used as it is: the caller's to mend
    │   ├── MalformedInput       not the format it claims to be
    │   ├── InvalidPolicy        a policy file that says too little, too much or nothing
    │   ├── InvalidConfig        server configuration
    │   ├── InvalidRequest       tensors or parameters that do not fit the model
    │   ├── LimitExceeded        larger, longer or more than this server takes
    │   ├── NotFound             no such model, version or path (or not for this caller)
    │   └── Conflict             in contradiction with what is already there
    ├── Unavailable              try again later: overloaded, shutting down, connection lost
    └── Failure                  our fault

No class here knows HTTP: front ends map `code` and family to their own numbers (`rest.py`, `cli.py`).
Messages say what was expected and what came; never plaintext, tensor values, keys or a foreign exception's text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from strongroom.codes import CODES as CODES

if TYPE_CHECKING:
    from strongroom.attest.bundle import Bundle
    from strongroom.attest.evidence import Verdict


class Error(Exception):
    """Root of every error raised on purpose by this package.

    `code` is a class-level default; a call site may pass a more precise one out of `CODES`.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if self.code not in CODES:
            raise AssertionError(f"error code {self.code!r} is not in strongroom.errors.CODES")

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return str(self.args[0])


class Refused(Error):
    """Something did not pass a check."""

    code = "refused"


class AttestationRefused(Refused):
    """The server's evidence, keyset or channel did not pass; `verdict` lists every check that was made.

    `bundle`: what was refused, to be kept or handed on; None where no evidence had arrived.
    """

    code = "attestation_refused"

    def __init__(self, message: str, *, code: str | None = None, verdict: Verdict | None = None) -> None:
        super().__init__(message, code=code)
        self.verdict = verdict
        self.bundle: Bundle | None = None


class AdmissionRefused(Refused):
    """The model is readable but will not be run here."""

    code = "admission_refused"


class AccessRefused(Refused):
    """The principal may not do this, or did not prove who it is."""

    code = "access_refused"


class SealRefused(Refused):
    """Sealed data failed authentication, or was sealed for other code."""

    code = "seal_refused"


class Unusable(Error):
    """Input that cannot be used as it is."""

    code = "unusable"


class MalformedInput(Unusable):
    """Bytes that are not the format they claim to be."""

    code = "malformed_input"


class InvalidPolicy(Unusable):
    """A policy that cannot be applied."""

    code = "policy_invalid"


class InvalidConfig(Unusable):
    """A server or client setting that cannot be applied."""

    code = "config_invalid"


class InvalidRequest(Unusable):
    """A request that does not fit the model or the protocol."""

    code = "request_invalid"


class LimitExceeded(Unusable):
    """More than the configured limit."""

    code = "limit_exceeded"


class NotFound(Unusable):
    """No such thing, or not visible to this caller."""

    code = "not_found"


class Conflict(Unusable):
    """Contradicts what is already there or what was declared."""

    code = "conflict"


class Unavailable(Error):
    """Not now: try again after `retry_after_s` seconds."""

    code = "unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class Failure(Error):
    """A fault of this software or its machine, not of the caller."""

    code = "internal_error"


def walk(root: type[Error] = Error) -> Iterator[type[Error]]:
    """Yields every class of the tree, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from walk(child)


def check_member(condition: bool, message: str, kind: type[Error] = MalformedInput, **kwargs: Any) -> None:
    """Raises `kind(message)` unless `condition`; for strict parsers, where the happy path should stay readable."""
    if not condition:
        raise kind(message, **kwargs)
