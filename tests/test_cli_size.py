"""`strongroom size`: exit codes, the document, and what it writes into the values of the manifest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY

from strongroom.cli import main

sys.path.insert(0, str(REPOSITORY / "tests" / "models"))

import hostile

VALUES = '# sizes\nenclave_size = "8G" # a power of two\nmax_threads = 4\nedmm = false\n'


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `strongroom size`."""
    result = CliRunner().invoke(main, ["size", *arguments], standalone_mode=True)
    return result.exit_code, result.output


@pytest.fixture
def good(tmp_path: Path) -> str:
    """An innocent model."""
    (tmp_path / "good.onnx").write_bytes(hostile.encoded(hostile.model()))
    return str(tmp_path / "good.onnx")


@pytest.mark.slow
def test_a_model_has_a_size_that_fills_the_manifest(tmp_path: Path, good: str) -> None:
    """0 with a table and with JSON; the two values are set and every other byte of the file stays."""
    values = tmp_path / "values.toml"
    values.write_text(VALUES)
    code, text = run(good, "--budget", "2GB", "--fill", str(values), "--json")
    document = json.loads(text)
    assert code == 0 and document["fits"] and document["enclave_bytes"] == 2 << 30
    threads = document["threads"]
    expected = VALUES.replace('"8G"', '"2G"').replace("max_threads = 4", f"max_threads = {threads}")
    assert values.read_text() == expected
    assert document["models"][0]["rooms"] and document["isolation"] == "in_process"


@pytest.mark.slow
def test_less_memory_per_run_is_less_memory(tmp_path: Path, good: str) -> None:
    """`limits.run_bytes` and `concurrent_runs` of the configuration count; a small budget is exit code 10."""
    config = tmp_path / "strongroom.toml"
    config.write_text('platform = "simulated"\n[limits]\nrun_bytes = 1048576\nconcurrent_runs = 1\n')
    code, text = run(good, "--config", str(config), "--budget", "100MB")
    assert code == 10 and "too small by" in text and "enclave        2G" in text
    assert "a request up to" in text and "SGX1, 128 MB PRM" in text


@pytest.mark.slow
def test_a_refused_model_has_no_size(tmp_path: Path) -> None:
    """Exit code 10 with the code of admission."""
    (tmp_path / "bad.onnx").write_bytes(hostile.encoded(hostile.doubling(34)))
    code, text = run(str(tmp_path / "bad.onnx"))
    assert code == 10 and "onnx_memory" in text


@pytest.mark.parametrize("budget", ["lots", "-5MB", "1.5GB", "3TB", ""])
def test_a_budget_is_bytes(good: str, budget: str) -> None:
    """Anything else is unusable, before a model is looked at."""
    code, text = run(good, "--budget", budget)
    assert code == 20 and "expected a number of bytes" in text


def test_a_missing_file_is_unusable() -> None:
    """So is no file at all."""
    assert run()[0] == 20


@pytest.mark.parametrize(
    "text", ["", 'enclave_size = "1G"\n', VALUES + "max_threads = 5\n", "#" + VALUES[8:]]
)
def test_a_file_without_the_two_values_is_left_alone(tmp_path: Path, text: str) -> None:
    """Each must stand there exactly once: nothing is guessed, nothing appended."""
    from strongroom.cli_size import _fill
    from strongroom.errors import InvalidConfig
    from strongroom.sizing import Part, Sizing

    path = tmp_path / "values.toml"
    path.write_text(text)
    found = Sizing(
        parts=(Part(what="server", size=1),), resident_bytes=1, working_bytes=1, examining_bytes=1, address_bytes=1,
        enclave_bytes=1 << 30, threads=9,
    )  # fmt: skip
    with pytest.raises(InvalidConfig) as caught:
        _fill(path, found)
    assert caught.value.code == "config_malformed" and path.read_text() == text


def test_the_memory_of_a_run_is_what_admission_is_told() -> None:
    """`limits.run_bytes` bounds all values together, and so each."""
    from strongroom.config import Config, Limits
    from strongroom.server import admission_limits

    budget = admission_limits(Config(limits=Limits(run_bytes=1 << 20))).budget
    assert budget.peak_bytes == budget.value_bytes == 1 << 20
    assert admission_limits(Config()).budget.peak_bytes == 4 << 30
