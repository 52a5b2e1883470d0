"""One module per kind of TEE; each gives what `attester.Attester` asks for."""

from __future__ import annotations

from strongroom.attest.evidence import REPORT_DATA_SIZE
from strongroom.errors import MalformedInput


def check_report_data(report_data: bytes) -> None:
    """Returns for 64 bytes: hardware would pad or cut any other number of them silently.

    Raises:
        MalformedInput: another size (code `evidence_malformed`).
    """
    if len(report_data) != REPORT_DATA_SIZE:
        raise MalformedInput(
            f"report data: expected {REPORT_DATA_SIZE} bytes, got {len(report_data)}",
            code="evidence_malformed",
        )
