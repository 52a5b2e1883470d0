"""What callers hand in: a policy, a key, a model to upload. Paths are read here and nowhere else in the
client.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom import calls, formats, tokens
from strongroom.attest.appraise import AnyMeasurement
from strongroom.attest.eventlog import is_event_log
from strongroom.attest.policy import (
    NAMED_POLICIES,
    UNSAFE_ANY_MEASUREMENT,
    Policy,
    named_policy,
    parse_policy,
    render_policy,
)
from strongroom.attest.releases import is_manifest
from strongroom.attest.verifiers import is_collateral
from strongroom.attest.x509 import sort_documents
from strongroom.calls import Body
from strongroom.errors import InvalidPolicy, InvalidRequest, LimitExceeded, MalformedInput
from strongroom.reduction import CALIBRATION, FP32, MAX_RANGES, RANGES, Options, Part, Reduction

if TYPE_CHECKING:
    import numpy.typing as npt

PathLike: TypeAlias = str | os.PathLike[str]
PolicySource: TypeAlias = PathLike | Policy
KeySource: TypeAlias = PathLike | bytes | Ed25519PrivateKey
EndorsementSource: TypeAlias = PathLike | bytes
ModelSource: TypeAlias = PathLike | bytes | bytearray | memoryview | IO[bytes]
RangesSource: TypeAlias = PathLike | bytes
CalibrationSource: TypeAlias = PathLike | bytes | Mapping[str, "npt.ArrayLike"]

MAX_CALIBRATION: Final = 1 << 30
"""Bytes of a calibration set; servers take less (`limits.calibration_bytes`)."""
MAX_SMALL_FILE: Final = 1 << 20
"""Bytes of a file with a policy, a key or endorsements."""


def load_policy(policy: PolicySource) -> Policy:
    """A `Policy`, the path of a policy file, or the name of a built-in one ("production").

    Raises:
        InvalidPolicy: the file cannot be read, or says too little, too much or nothing; or there is no policy
        (code `policy_missing`).
    """
    return read_policy(policy)[0]


def read_policy(policy: PolicySource) -> tuple[Policy, str]:
    """As `load_policy`, with the policy's text: the file's own, or what `render_policy` writes.

    Raises:
        InvalidPolicy: as `load_policy`.
    """
    if isinstance(policy, Policy):
        return policy, render_policy(policy, heading="A policy that a program made.")
    if isinstance(policy, str) and policy in (*NAMED_POLICIES, UNSAFE_ANY_MEASUREMENT):
        return named_policy(policy), NAMED_POLICIES[policy]
    given: object = policy  # callers without types pass None
    if not isinstance(given, str | os.PathLike):
        raise InvalidPolicy(
            "a policy is a Policy, the path of a file or the name of a built-in one; without one no server "
            "is accepted",
            code="policy_missing",
        )
    try:
        text = _small_file(policy).decode("utf-8")
    except FileNotFoundError as exc:
        raise InvalidPolicy(
            f"the policy file {os.fspath(policy)!s} does not exist", code="policy_unreadable"
        ) from exc
    except (OSError, ValueError) as exc:
        raise InvalidPolicy(
            f"the policy file {os.fspath(policy)!s} cannot be read as UTF-8 text", code="policy_unreadable"
        ) from exc
    return parse_policy(text), text


def load_appraisal_policy(policy: PolicySource) -> Policy | AnyMeasurement:
    """As `load_policy`, for evidence that no connection rests on: "UNSAFE_ANY_MEASUREMENT" counts, too.

    Raises:
        InvalidPolicy: as `load_policy`.
    """
    return AnyMeasurement() if policy == UNSAFE_ANY_MEASUREMENT else load_policy(policy)


def load_key(key: KeySource | None) -> Ed25519PrivateKey | None:
    """A principal's key: the key itself, PKCS#8 PEM, or the path of a file that `strongroom keygen` wrote.

    Raises:
        MalformedInput: not an Ed25519 private key, or no readable file (code `key_unreadable`).
    """
    if key is None or isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, bytes):
        return tokens.load_key(key)
    if "-----BEGIN" in os.fspath(key):  # the key where its path belongs: no message may repeat it
        raise MalformedInput(
            "expected the path of a key file, got a key as text; keys are given as bytes",
            code="key_unreadable",
        )
    try:
        return tokens.load_key(_small_file(key))
    except FileNotFoundError as exc:
        raise MalformedInput(
            f"the key file {os.fspath(key)!s} does not exist", code="key_unreadable"
        ) from exc
    except (OSError, ValueError) as exc:
        raise MalformedInput(
            f"the key file {os.fspath(key)!s} cannot be read", code="key_unreadable"
        ) from exc


def load_endorsements(sources: Sequence[EndorsementSource]) -> tuple[tuple[str, bytes], ...]:
    """The documents in `sources`, paths or bytes, as (name, bytes): DCAP bundles, certificates, revocation lists, event
    logs, release manifests. What is none of these is somebody's mistake.

    Raises:
        InvalidRequest: a file that cannot be read, or that is too large (code `input_unreadable`).
        MalformedInput: none of these (`certificate_malformed`, `revocation_list_malformed`).
    """
    if isinstance(
        sources, str | bytes | os.PathLike
    ):  # one, or its characters: a mistake that would pass silently
        raise InvalidRequest("endorsements: expected a list of paths or bytes", code="input_unreadable")
    found = []
    for number, source in enumerate(sources):
        name = f"endorsement {number + 1}" if isinstance(source, bytes) else os.fspath(source)
        try:
            data = source if isinstance(source, bytes) else _small_file(source)
        except (OSError, ValueError) as exc:
            what = f"{name} cannot be read, or has more than {MAX_SMALL_FILE} bytes"
            raise InvalidRequest(what, code="input_unreadable") from exc
        known = is_collateral(data) or is_event_log(data) or is_manifest(data)
        if not known and sort_documents(((name, data),)).others:
            raise MalformedInput(
                f"{name}: no DCAP bundle, certificates, revocation list, event log or release manifest",
                code="certificate_malformed",
            )
        found.append((name, data))
    return tuple(found)


def _small_file(path: PathLike) -> bytes:
    with Path(path).open("rb") as file:
        data = file.read(MAX_SMALL_FILE + 1)
    if len(data) > MAX_SMALL_FILE:
        raise ValueError("too large")
    return data


@dataclass(frozen=True, slots=True)
class Upload:
    """A model that is ready to be sent: its body and its first bytes."""

    body: Body
    head: bytes


def prepare_upload(source: ModelSource) -> Upload:
    """Reads the source once, for its digest; blocking.

    Raises:
        InvalidRequest: it cannot be read, or gives text (code `upload_unreadable`).
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return Upload(Body.of(data), data[: formats.HEAD_BYTES])
    try:
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            return _upload_of_file(lambda: path.open("rb"), start=0, close=True)
        if not source.seekable():
            return _upload_of_stream(source.read())
        return _upload_of_file(lambda: source, start=source.tell(), close=False)
    except FileNotFoundError as exc:
        raise InvalidRequest(
            f"the model's file {exc.filename} does not exist", code="upload_unreadable"
        ) from exc
    except (AttributeError, OSError, TypeError, ValueError) as exc:
        what = f"{os.fspath(source)!s}" if isinstance(source, str | os.PathLike) else "the model"
        raise InvalidRequest(
            f"{what} cannot be read: pass a path, bytes or a file opened in binary mode",
            code="upload_unreadable",
        ) from exc


def _upload_of_stream(data: object) -> Upload:
    """What a stream gave. Text is refused: taken for a source it would be a path, chosen by who wrote it."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError("a text stream")
    return prepare_upload(data)


def _upload_of_file(opener: Callable[[], IO[bytes]], *, start: int, close: bool) -> Upload:
    digest, length, head = hashlib.sha256(), 0, b""
    for chunk in _read_file(opener, start=start, close=close):
        head = head or bytes(chunk[: formats.HEAD_BYTES])
        digest.update(chunk)
        length += len(chunk)

    def chunks() -> Iterator[bytes]:
        left = length
        for chunk in _read_file(opener, start=start, close=close):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
        if left:
            raise InvalidRequest("the model's file changed while it was sent", code="upload_changed")

    return Upload(Body(length=length, digest=digest.digest, chunks=chunks), head)


def _read_file(opener: Callable[[], IO[bytes]], *, start: int, close: bool) -> Iterator[bytes]:
    file = opener()
    try:
        file.seek(start)
        while chunk := file.read(calls.CHUNK):
            yield chunk
    finally:
        if close:
            file.close()


@dataclass(frozen=True, slots=True)
class Less:
    """What an upload asks to be made of its model, and the bytes that travel in front of it."""

    reduction: Reduction
    part: bytes


def prepare_reduction(
    precision: str | Options,
    *,
    calibration: CalibrationSource | None,
    ranges: RangesSource | None,
) -> Less | None:
    """What the arguments of an upload ask for, with everything read; None for a model as it is ("fp32"). Blocking.

    Raises:
        InvalidRequest: nothing that can be asked for (codes `precision_unsupported`, `precision_options`), or a file
            that cannot be read (code `upload_unreadable`).
        LimitExceeded: more than any server takes (code `calibration_too_large`).
    """
    if precision == FP32:
        if calibration is not None or ranges is not None:
            raise InvalidRequest(
                'calibration or ranges: precision "fp32" measures nothing, expected "int8"',
                code="precision_options",
            )
        return None
    options = precision if isinstance(precision, Options) else Options(precision=precision)
    options.check()
    if calibration is not None and ranges is not None:
        raise InvalidRequest("expected calibration or ranges, got both", code="precision_options")
    part, kind = b"", ""
    if calibration is not None:
        kind, part = CALIBRATION, _set_of(calibration)
    elif ranges is not None:
        kind, part = RANGES, _part_of(ranges, MAX_RANGES, RANGES)
    described = None
    if kind:
        described = Part(kind=kind, size=len(part), sha256=hashlib.sha256(part).hexdigest())
    reduction = Reduction(options=options, part=described)
    reduction.check()
    return Less(reduction, part)


def _set_of(calibration: CalibrationSource) -> bytes:
    if not isinstance(calibration, Mapping):
        return _part_of(calibration, MAX_CALIBRATION, CALIBRATION)
    import numpy as np

    from strongroom.npy import encode_npz

    try:
        arrays = {name: np.asarray(array) for name, array in calibration.items()}
    except (ValueError, TypeError) as exc:
        raise InvalidRequest(
            "calibration: expected an array for each input", code="precision_examples"
        ) from exc
    return encode_npz(arrays)


def _part_of(source: PathLike | bytes, most: int, what: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            with Path(source).open("rb") as file:
                data = file.read(most + 1)
        except (OSError, TypeError, ValueError) as exc:
            raise InvalidRequest(
                f"{what}: expected bytes, or the path of a file that can be read", code="upload_unreadable"
            ) from exc
    if len(data) > most:
        raise LimitExceeded(f"{what}: more than {most} bytes", code="calibration_too_large")
    return data
