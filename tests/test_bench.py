"""The benchmarks run and measure what they say; how fast anything is, no test says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY

BENCH = REPOSITORY / "bench" / "attest.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The benchmark with these arguments."""
    words = [sys.executable, str(BENCH), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_one_run_measures_every_format_and_a_connect(tmp_path: Path) -> None:
    """Every format has a warm and a cold figure, quotes one of dcap-qvl, and a connect is the sum of its phases."""
    report_path = tmp_path / "report.json"
    done = run("--runs", "1", "--warmups", "1", "--minted", "--json", str(report_path))
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(report_path.read_text())
    rows = {row["name"]: row for row in report["examined"]}
    assert {name.split()[0] for name in rows} == {"sgx", "tdx", "snp", "tpm", "nitro", "azure"}
    for name, row in rows.items():
        assert row["warm"]["runs"] == 1 and row["warm"]["median_ms"] > 0 and row["cold"]["median_ms"] > 0
        assert (row["dcap_qvl"] is not None) == (name.split()[0] in ("sgx", "tdx"))
        assert name in done.stdout
    connect = {name: one["median_ms"] for name, one in report["connect"].items()}
    whole = connect.pop("connect")
    assert all(one > 0 for one in connect.values())
    assert sum(connect.values()) == pytest.approx(whole, abs=0.01)
    assert report["machine"]["python"] in done.stdout


@pytest.mark.parametrize("arguments", [("--runs", "0"), ("--evidence", "nowhere"), ("--run", "1")])
def test_what_cannot_be_measured_is_refused(arguments: tuple[str, ...]) -> None:
    """No runs, no such folder, and no abbreviations."""
    done = run(*arguments)
    assert done.returncode == 2 and done.stdout == ""


def _bench(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", REPOSITORY / "bench" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_evidence_in_batches_over_tls() -> None:
    """A server of its own, a slow TEE, twenty connections: every answer verifies, and quotes are fewer than answers."""
    result = _bench("evidence_batch")._run(quotes_per_s=25, batch=1024, connections=20, seconds=0.5)
    assert result.refused == {}
    assert result.verified == result.answers > 0
    assert result.batch_max > 1
    assert result.quotes < result.answers
