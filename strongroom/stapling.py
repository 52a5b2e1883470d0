"""Stapling: documents from files of the operator's that go out with every evidence answer.

DCAP bundles, chip certificates and release manifests spare clients a fetch. All of them are signed by others, so where
they come from decides nothing, and a bad one can only make clients refuse. The files are read again for every answer,
because collateral is renewed while the server runs; one that cannot be read then goes out as it last was.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

from strongroom import keys
from strongroom.attest.evidence import MAX_ENDORSEMENTS, MAX_EVIDENCE, Evidence
from strongroom.attester import Attester
from strongroom.errors import InvalidConfig

MAX_STAPLED: Final = 512 * 1024
"""Bytes of all documents together: an answer with evidence has 1 MiB, in base64."""


class StapledAttester:
    """An attester whose evidence carries the documents in `paths` besides what it staples itself."""

    def __init__(self, attester: Attester, paths: tuple[Path, ...]) -> None:
        """Reads every file once.

        Raises:
            InvalidConfig: code `endorsements_unusable`: a file cannot be read, is empty or too long, or they are too
                many.
        """
        self._attester, self._paths = attester, paths
        self._lock = threading.Lock()
        if len(paths) > MAX_ENDORSEMENTS // 2:
            raise _unusable(f"{len(paths)} files; at most {MAX_ENDORSEMENTS // 2}")
        try:
            self._documents = tuple(_read(path) for path in paths)
        except OSError as exc:
            raise _unusable("a file cannot be read") from exc
        if fault := _fault(self._documents):
            raise _unusable(fault)

    @property
    def format(self) -> str:
        """The evidence format."""
        return self._attester.format

    @property
    def measurement(self) -> str:
        """The measurement of the code that runs here."""
        return self._attester.measurement

    def evidence(self, report_data: bytes, *, now: datetime, nonce: bytes = b"") -> Evidence:
        """The attester's evidence with the documents as they are now."""
        made = self._attester.evidence(report_data, now=now, nonce=nonce)
        stapled = tuple((f"stapled-{i}", data) for i, data in enumerate(self._current()))
        return replace(made, endorsements=made.endorsements + stapled)

    def sealing_root(self) -> keys.SealingRoot:
        """The attester's."""
        return self._attester.sealing_root()

    def _current(self) -> tuple[bytes, ...]:
        with self._lock:
            try:
                found = tuple(_read(path) for path in self._paths)
            except OSError:
                return self._documents
            if not _fault(found):
                self._documents = found
            return self._documents


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_EVIDENCE + 1)


def _fault(documents: tuple[bytes, ...]) -> str:
    if any(not data or len(data) > MAX_EVIDENCE for data in documents):
        return f"a file is empty or has more than {MAX_EVIDENCE} bytes"
    total = sum(map(len, documents))
    return f"{total} bytes together; at most {MAX_STAPLED}" if total > MAX_STAPLED else ""


def _unusable(why: str) -> InvalidConfig:
    return InvalidConfig(f"endorsements: {why}", code="endorsements_unusable")
