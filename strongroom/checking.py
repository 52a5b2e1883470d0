"""Checks of a sealed store: whole, with its keys, as `strongroom check` makes them, and what shows from outside.

Rules
  - Every finding says what was looked at. What could not be looked at is a finding too, and no pass.
  - From outside nothing authenticates: a host that altered a file in its place, tags and all, is not noticed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from strongroom import disk
from strongroom.errors import Error, NotFound, SealRefused
from strongroom.sealed import HEADER_BYTES, overwrite, parse_container_header
from strongroom.state import MAX_STATE_BYTES, ModelVersion, check_header, parse_state_file


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One finding. `code` is "" where `passed`, else one of `strongroom.errors.CODES`."""

    subject: str
    passed: bool
    code: str
    detail: str


def check_record(path: Path, *, digest: str, epoch: int) -> CheckResult:
    """Whether the state file is still the one with this SHA-256 (hex), which the server wrote or opened last."""
    try:
        with disk.faults("read the store"):
            data = disk.read_small(path, limit=MAX_STATE_BYTES)
    except Error as exc:
        return CheckResult(subject="record", passed=False, code=exc.code, detail=exc.message)
    if data is None:
        detail = "the state file is gone"
        return CheckResult(subject="record", passed=False, code="store_state_missing", detail=detail)
    if not hmac.compare_digest(hashlib.sha256(data).hexdigest(), digest):
        detail = "the file is not the one that this server wrote"
        return CheckResult(subject="record", passed=False, code="store_tampered", detail=detail)
    return CheckResult(subject="record", passed=True, code="", detail=f"epoch {epoch}")


def check_left_overs(swept: int) -> tuple[CheckResult, ...]:
    """How many files of interrupted changes were removed at the opening."""
    if not swept:
        return ()
    detail = f"{swept} files of interrupted uploads or changes were removed when the store was opened"
    return (CheckResult(subject="left-overs", passed=True, code="", detail=detail),)


def check_models(
    models: tuple[ModelVersion, ...], *, read: Callable[[ModelVersion], bytearray]
) -> tuple[CheckResult, ...]:
    """Reads every model; `read` checks its tags and its SHA-256."""
    results = []
    for model in models:
        subject = f"{model.name} version {model.version}"
        try:
            overwrite(read(model))
        except NotFound:
            continue  # deleted while we were looking
        except Error as exc:
            results.append(CheckResult(subject=subject, passed=False, code=exc.code, detail=exc.message))
        else:
            detail = f"{model.size} bytes as uploaded; every tag and the SHA-256 {model.canonical_sha256} of "
            detail += "what runs are right"
            results.append(CheckResult(subject=subject, passed=True, code="", detail=detail))
    return tuple(results)


def check_forms(
    models: tuple[ModelVersion, ...], *, read: Callable[[ModelVersion], int]
) -> tuple[CheckResult, ...]:
    """Opens every prepared form; `read` checks its tags and gives its bytes, 0 where there is none."""
    results = []
    for model in models:
        subject = f"prepared form of {model.name} version {model.version}"
        try:
            size = read(model)
        except NotFound:
            continue
        except Error as exc:
            results.append(CheckResult(subject=subject, passed=False, code=exc.code, detail=exc.message))
        else:
            if size:
                detail = f"{size} bytes; every tag is right"
                results.append(CheckResult(subject=subject, passed=True, code="", detail=detail))
    return tuple(results)


def check_orphans(data: Path, *, known: set[str]) -> CheckResult:
    """Whether nothing lies among the data files that the record does not name."""
    try:
        with disk.faults("list the data files"):
            found = disk.names(data)
    except Error as exc:
        return CheckResult(subject="data files", passed=False, code=exc.code, detail=exc.message)
    strange = [name for name in found if name not in known]
    if strange:
        detail = f"{len(strange)} files that the record does not name, the first is {strange[0]!a}"
        return CheckResult(subject="data files", passed=False, code="store_orphan", detail=detail)
    detail = f"{len(found)} files, all accounted for"
    return CheckResult(subject="data files", passed=True, code="", detail=detail)


def check_outside(folder: Path, *, sealing_class: str, security: str) -> tuple[CheckResult, ...]:
    """What shows of a store without its keys: the form of the state file, for which class and configuration (hex
    SHA-256) it is sealed, and the form of every data file. Takes no lock, removes nothing.
    """
    try:
        with disk.faults("read the store"):
            data = disk.read_small(folder / "state", limit=MAX_STATE_BYTES)
            files = disk.names(folder / "data") if (folder / "data").is_dir() else []
        if data is None:
            raise SealRefused("the state file is gone", code="store_state_missing")
        header = parse_state_file(data).header
        # The measurement is the one thing that only the measured server knows of itself.
        check_header(header, sealing_class=sealing_class, sealed_for=header.sealed_for, security=security)
    except Error as exc:
        return (CheckResult(subject="record", passed=False, code=exc.code, detail=exc.message),)
    detail = f"well-formed, of store {header.store_id}, sealed for {header.sealed_for}"
    results = [CheckResult(subject="record", passed=True, code="", detail=detail)]
    bad = [(name, fault) for name in files if (fault := _form(folder / "data" / name)) is not None]
    results += [
        CheckResult(subject=f"data file {name!a}", passed=False, code=fault.code, detail=fault.message)
        for name, fault in bad
    ]
    detail = f"{len(files) - len(bad)} of {len(files)} begin as sealed files do"
    results.append(
        CheckResult(subject="data files", passed=not bad, code="seal_header" if bad else "", detail=detail)
    )
    return tuple(results)


def _form(path: Path) -> Error | None:
    """What is wrong with the start of a data file."""
    try:
        with disk.faults("read a data file"):
            fd = disk.open_to_read(path)
            try:
                raw = bytearray(min(HEADER_BYTES, disk.size(fd)))
                disk.read_at(fd, 0, memoryview(raw))
            finally:
                disk.close(fd)
        parse_container_header(bytes(raw))
    except Error as exc:
        return exc
    return None
