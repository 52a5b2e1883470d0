"""The benchmarks' models are the published architectures, and what they measure on is admitted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import pytest
from strongroom_bench.catalogue import (
    BY_NAME,
    ENTRIES,
    PAPER,
    Entry,
    inputs_of,
    make,
    network,
    select,
    trained,
)
from strongroom_bench.forest import Forest

from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS

NETWORKS = [entry for entry in ENTRIES if entry.build is not None]
TINY = [entry for entry in ENTRIES if entry.group == "tiny"]


@pytest.mark.parametrize("entry", [e for e in NETWORKS if e.parameters], ids=lambda e: e.name)
def test_a_network_has_the_published_number_of_parameters(entry: Entry) -> None:
    """As torchvision, timm and transformers count them."""
    net = network(entry)
    assert net.parameters == entry.parameters
    # Folded batch normalisations store a bias in place of four vectors, so files hold a little less, never more.
    assert 0.98 * 4 * net.parameters <= net.stored_bytes() <= 1.02 * 4 * net.parameters


def test_the_networks_span_the_papers_range() -> None:
    """Thirteen, the largest of 830 MB, and every one that the paper gives a figure for."""
    sizes = {name: network(BY_NAME[name]).stored_bytes() / 1e6 for name in PAPER}
    assert len(sizes) == 13
    assert max(sizes.values()) == pytest.approx(830, rel=0.02)
    assert {"squeezenet", "resnet50", "efficientnet_v2_l"} <= set(sizes)


@pytest.mark.parametrize("entry", TINY, ids=lambda e: e.name)
def test_small_ones_run_are_admitted_and_come_out_the_same(entry: Entry, tmp_path: Path) -> None:
    """The same builders at small scale: valid, finite, admitted by the strict rules, and the same bytes every time."""
    first, again = make(entry, tmp_path / "a"), make(entry, tmp_path / "b")
    assert first.path.read_bytes() == again.path.read_bytes()
    onnx.checker.check_model(onnx.load(first.engine_path), full_check=True)
    session = onnxruntime.InferenceSession(first.engine_path, providers=["CPUExecutionProvider"])
    form = "onnx" if entry.trees is None else "xgboost-json"
    admit(first.path.read_bytes(), format=form, limits=STANDARD_LIMITS)
    outputs = session.run(None, first.inputs)
    assert all((np.isfinite(o).all() and o.std() > 0) or o.size == 1 for o in outputs)
    assert [i.name for i in session.get_inputs()] == list(first.inputs)


def test_a_file_is_not_made_twice(tmp_path: Path) -> None:
    """What is there is taken as it is."""
    entry = BY_NAME["tiny_trees"]
    (tmp_path / entry.file).write_text("mine")
    assert make(entry, tmp_path).path.read_text() == "mine"


def test_the_trees_are_the_same_model_in_both_forms() -> None:
    """XGBoost itself reads the JSON form, and says what onnxruntime says of the ONNX form; with missing values too."""
    xgboost = pytest.importorskip("xgboost")
    forest = Forest("test", trees=7, depth=3, features=4)
    booster = xgboost.Booster()
    booster.load_model(bytearray(forest.to_xgboost()))
    rows = np.random.default_rng(4).normal(size=(200, 4)).astype(np.float32)
    rows[::9, 1] = np.nan
    expected = booster.predict(xgboost.DMatrix(rows))
    session = onnxruntime.InferenceSession(forest.to_onnx(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": rows})
    assert np.abs(got.ravel() - expected).max() < 1e-6
    assert len(np.unique(expected)) > 20


def test_inputs_are_the_same_every_time_and_of_the_right_kind() -> None:
    """Tokens within the vocabulary, images as float32; batches where asked for."""
    ids = inputs_of(BY_NAME["bert_base"])["input_ids"]
    assert ids.shape == (1, 128) and ids.dtype == np.int64 and ids.min() >= 0 and ids.max() < 30522
    image = inputs_of(BY_NAME["resnet50"], batch=2)["input"]
    assert image.shape == (2, 3, 224, 224) and image.dtype == np.float32
    digest = hashlib.sha256(inputs_of(BY_NAME["tiny_resnet"])["input"].tobytes()).hexdigest()
    assert digest.startswith("848158c908f80188")


def test_trained_networks_are_found_in_wheels() -> None:
    """Those of the development environment, without importing their packages."""
    for workload in trained():
        session = onnxruntime.InferenceSession(workload.path, providers=["CPUExecutionProvider"])
        assert {i.name for i in session.get_inputs()} == set(workload.inputs)
    assert "magika" in {w.name for w in trained()}


@pytest.mark.parametrize("word", ["resnet", "", "paper,tiny", "../squeezenet"])
def test_a_model_that_nobody_knows_is_refused(word: str, tmp_path: Path) -> None:
    """With the list of those that there are."""
    with pytest.raises(click.ClickException, match="no model is called"):
        select((word,), tmp_path)
    assert not list(tmp_path.iterdir())
