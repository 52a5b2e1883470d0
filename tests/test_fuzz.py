"""Every fuzz target runs for a moment in every test run; `make fuzz` runs them for long."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable

import pytest
from conftest import REPOSITORY

RUNS = 300
FEW = 60
"""Mutations of a target in `make check`."""


def _runner() -> tuple[
    dict[str, tuple[Callable[[bytes], None], tuple[bytes, ...]]], Callable[[bytes, random.Random], bytes]
]:
    spec = importlib.util.spec_from_file_location("fuzz_run", REPOSITORY / "fuzz" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.targets(), module.mutate


TARGETS, MUTATE = _runner()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_value_or_our_error_and_nothing_else(name: str) -> None:
    """300 mutations of the target's seeds, or as many as it says: it raises only where its oracle is broken."""
    _mutate(name, RUNS)


@pytest.mark.parametrize("name", sorted(name for name in TARGETS if not name.startswith("fuzz_run_")))
def test_a_few_give_a_value_or_our_error(name: str) -> None:
    """The same in short; those that run models take a process for each mutation and are not asked."""
    _mutate(name, FEW)


def _mutate(name: str, most: int) -> None:
    function, seeds = TARGETS[name]
    rng = random.Random(name)
    for seed in seeds:
        function(seed)
    own = getattr(sys.modules[function.__module__], "RUNS", {}).get(name, RUNS)
    for _ in range(own * most // RUNS):
        function(MUTATE(rng.choice(seeds), rng))


def test_every_parser_has_a_target() -> None:
    """The parsers written here, by area: tree documents, attestation documents, sealed containers, tokens, tensors."""
    text = " ".join(sorted(TARGETS))
    for area in (
        "keyset",
        "answer",
        "policy",
        "sealed",
        "token",
        "npy",
        "npz",
        "request",
        "json",
        "ubj",
        "onnx",
        "run_node",
        "run_parts",
        "run_worker",
        "sim",
        "form_layout",
        "form_partition",
    ):
        assert area in text, (area, text)
