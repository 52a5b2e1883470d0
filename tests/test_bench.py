"""The benchmarks run, and what they measure is real. No figure is asserted: speed belongs in `bench/`."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from conftest import REPOSITORY


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
