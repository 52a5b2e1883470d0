"""Pseudo-files through which kernels and library OSes show a TEE: one open, whole values, errors as they are.

Rules
  - A value is written by one `write` and committed by `close`: some interfaces save at the close, and report
    there what was wrong.
  - What is read is bounded. A pseudo-file says no size, so it is read to its end.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from strongroom.errors import Failure, Unavailable

TRANSIENT: Final = frozenset({errno.EBUSY, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT})
"""Errors after which the same question may be answered: somebody else was asking, or the other side was slow."""


def write_value(path: Path, data: bytes) -> None:
    """Writes all of `data` at once.

    Raises:
        OSError: the system's, also of the close.
        Failure: it took only a part (code `attester_malformed`).
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        written = os.write(descriptor, data)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)  # not in a `finally`: the error of a close is an error of the write
    if written != len(data):
        raise malformed(path.name, f"{written} of {len(data)} bytes were taken")


def read_value(path: Path, *, limit: int) -> bytes:
    """Reads to the end, at most `limit` bytes.

    Raises:
        OSError: the system's.
        Failure: there are more (code `attester_malformed`).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while piece := os.read(descriptor, limit + 1 - len(data)):
            data += piece
            if len(data) > limit:
                raise malformed(path.name, f"more than {limit} bytes")
        return data
    finally:
        os.close(descriptor)


def malformed(name: str, why: str) -> Failure:
    """The error for an interface that does not keep to its documents."""
    return Failure(f"{name}: {why}", code="attester_malformed")


def unavailable(name: str, error: OSError) -> Unavailable:
    """The error for an interface that says no; `name` says which."""
    symbol = errno.errorcode.get(error.errno or 0, "an unknown fault")
    return Unavailable(f"{name}: the platform answers {symbol}", code="attester_unavailable", retry_after_s=5)
