"""`strongroom admit`: exit codes, the report, limits."""

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


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `strongroom admit`."""
    result = CliRunner().invoke(main, ["admit", *arguments], standalone_mode=True)
    return result.exit_code, result.output


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """An innocent model, a hostile one, one without a bound, and no model."""
    contents = {
        "good": hostile.encoded(hostile.model()),
        "bad": hostile.encoded(hostile.doubling(34)),
        "endless": hostile.encoded(hostile.loop(None)),
        "pickle": b"\x80\x04K\x01.",
        "nothing": b"hello",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return {name: str(tmp_path / name) for name in contents}


@pytest.mark.slow
def test_exit_codes(files: dict[str, str]) -> None:
    """0 admitted, 10 refused with the code, 20 unreadable."""
    code, text = run(files["good"])
    assert code == 0 and text.startswith("ADMITTED (strict)")
    code, text = run(files["bad"])
    assert code == 10 and "[onnx_memory, rule 8.2]" in text
    for name, exit_code, shown in (("pickle", 10, "format_not_accepted"), ("nothing", 20, "format_unknown")):
        code, text = run(files[name])
        assert code == exit_code and shown in text
    code, text = run(files["good"] + ".missing")
    assert code == 20 and "upload_unreadable" in text


@pytest.mark.slow
def test_the_report_is_json(files: dict[str, str]) -> None:
    """With --json, whatever the verdict."""
    code, text = run(files["bad"], "--json")
    document = json.loads(text)
    assert code == 10 and document["verdict"] == "refused" and document["code"] == "onnx_memory"
    document = json.loads(run(files["good"], "--json")[1])
    assert document["verdict"] == "admitted" and document["bounds"]["level"] == "strict"


@pytest.mark.slow
def test_levels_and_limits(files: dict[str, str]) -> None:
    """What has no bound is a matter of the level; limits are by name."""
    assert run(files["endless"])[0] == 10
    code, text = run(files["endless"], "--permissive")
    assert code == 0 and "unbounded" in text
    code, text = run(files["good"], "--limits", "operations=0")
    assert code == 10 and "onnx_compute" in text
    for wrong in ("operations", "operations=x", "level=1", "nothing=1"):
        assert run(files["good"], "--limits", wrong)[0] == 20
