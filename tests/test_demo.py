"""`strongroom demo` does the main job, and the recording in the README is what it prints."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from conftest import REPOSITORY

TRANSCRIPT = REPOSITORY / "docs" / "demo.txt"


@pytest.fixture(scope="module")
def docs_tool() -> ModuleType:
    """tools/docs.py, which records the demo and draws the picture."""
    spec = importlib.util.spec_from_file_location("docs_tool", REPOSITORY / "tools" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_demo_prints_what_the_recording_shows(docs_tool: ModuleType) -> None:
    """A fresh run of the demo, without digests and figures, equals the recorded transcript: `make docs` renews it."""
    fresh = docs_tool.record_demo()
    assert docs_tool.normalised(fresh) == docs_tool.normalised(TRANSCRIPT.read_text())
    for code in ("measurement_not_accepted", "channel_key_mismatch", "simulation_refused", "seal_chunk"):
        assert f"REFUSED  {code}" in docs_tool.plain(fresh), code


def test_the_picture_shows_the_transcript(docs_tool: ModuleType) -> None:
    """docs/demo.svg is made of docs/demo.txt, byte for byte."""
    assert (REPOSITORY / "docs" / "demo.svg").read_text() == docs_tool.demo_svg(TRANSCRIPT.read_text())


def test_the_demo_ends_with_commands_that_exist(docs_tool: ModuleType) -> None:
    """Every `strongroom` command in the farewell is a command."""
    from strongroom.cli import main

    farewell = docs_tool.plain(TRANSCRIPT.read_text()).split("Go on alone:")[1]
    words = [line.split()[1] for line in farewell.splitlines() if line.strip().startswith("strongroom ")]
    assert len(words) >= 5
    assert set(words) <= set(main.commands)
