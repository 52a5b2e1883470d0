"""Shared by every test: environment that must be set before imports, and the counted list of what was not exercised."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # before anything imports onnxruntime; its wheels send telemetry by default
)

gc.disable()  # until all tests are collected: looking through what stays took a third of that time

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))  # the software TPM is there, for `make demo-tpm` too
SHARED = REPOSITORY.parent / "shared"
"""Recorded material that lies beside some checkouts; tests that need it skip, with the reason, where it is absent."""


LONGEST = (
    "tee/test_emulated.py", "test_server.py", "test_isolation_server.py", "test_reseal.py", "test_library_os.py",
    "tee/test_tpm_device.py", "test_bench.py", "test_store_kill.py", "test_tpm_server.py", "test_tpm_reseal.py",
    "test_vectors.py", "tee/test_emulated_reseal.py", "test_cli.py", "test_client_with_server.py", "test_stapling.py",
    "test_trace.py", "test_overload.py", "test_demo.py",
)  # fmt: skip
"""Files that take longest, first. `make test` hands out whole files to two processes, by itself those with the fewest
tests last, which are those that start servers: one process then waits for the other's last.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a file, and among the others, the order stays."""
    tests = REPOSITORY / "tests"
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    if missing := [path for path in places if not path.exists()]:
        raise pytest.UsageError(f"LONGEST names files that are not there: {missing}")
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What was collected stays until the end; the collector need not look at it with every test."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Names what pytest would name by its address or bytes: fresh keys must not name other tests in each process."""
    return argname if isinstance(val, bytes) or (" at 0x" in repr(val) and not callable(val)) else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--report FILE`: what `tools/suite.py` asks each half for."""
    parser.addoption(
        "--report", type=Path, help="write outcomes, reasons of skips and seconds of files there"
    )


SECONDS: Counter[str] = Counter()
"""Processor time of this process and of those it waited for, by file."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Adds up what each file takes."""
    before = _processor_time()
    try:
        return (yield)
    finally:
        SECONDS[str(item.path.relative_to(REPOSITORY / "tests"))] += _processor_time() - before


def _processor_time() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Ends every run with a counted list of what was not exercised on this machine, and why."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = text.removeprefix("Skipped: ").removeprefix("not exercised here: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    if (path := config.getoption("--report")) is not None:
        outcomes = {word: len(found) for word, found in terminalreporter.stats.items() if word in OUTCOMES}
        report = {"outcomes": outcomes, "reasons": reasons, "never": NEVER_EXERCISED, "seconds": SECONDS}
        path.write_text(json.dumps(report))
        return
    for fact in NEVER_EXERCISED:
        reasons.setdefault(fact, 1)
    terminalreporter.section("not exercised here")
    terminalreporter.write_line(f"{sum(reasons.values())} not exercised here, because:")
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"  {count} x {reason}")


OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed", "deselected")
NEVER_EXERCISED = (
    "TEE hardware: no Intel SGX, Intel TDX, AMD SEV-SNP or AWS Nitro machine and no TPM chip was used; the simulated "
    "TEE, a software TPM and emulated kernel interfaces ran",
    "macOS: written for, never run on one",
)
