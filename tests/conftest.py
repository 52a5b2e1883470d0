"""Shared by every test: environment that must be set before imports, and the counted list of what was not exercised."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # before anything imports onnxruntime; its wheels send telemetry by default
)

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))  # the software TPM is there, for `make demo-tpm` too
SHARED = REPOSITORY.parent / "shared"
"""Recorded material that lies beside some checkouts; tests that need it skip, with the reason, where it is absent."""


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Names what pytest would name by its address or bytes: fresh keys must not name other tests in each process."""
    return argname if isinstance(val, bytes) or (" at 0x" in repr(val) and not callable(val)) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Ends every run with a counted list of what was not exercised on this machine, and why."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = text.removeprefix("Skipped: ").removeprefix("not exercised here: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    for fact in NEVER_EXERCISED:
        reasons.setdefault(fact, 1)
    terminalreporter.section("not exercised here")
    terminalreporter.write_line(f"{sum(reasons.values())} not exercised here, because:")
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"  {count} x {reason}")


NEVER_EXERCISED = (
    "TEE hardware: no Intel SGX, Intel TDX, AMD SEV-SNP or AWS Nitro machine and no TPM chip was used; the simulated "
    "TEE, a software TPM and emulated kernel interfaces ran",
    "macOS: written for, never run on one",
)
