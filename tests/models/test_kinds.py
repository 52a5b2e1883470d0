"""Each kind of model that is known to harm a server has one of our own making, and is refused by its code."""

from __future__ import annotations

import json
import time

import pytest
from conftest import SHARED
from kinds import KINDS

from strongroom.errors import Error
from strongroom.formats import HEAD_BYTES, detect
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS, Admitted

CORPUS = SHARED / "hostile-models"
MOST_S = 10.0
"""Seconds of processor time for one; each takes a tenth of one."""


def _examined(data: bytes, form: str) -> Admitted:
    """As an upload is: the first bytes, then the whole."""
    detected = detect(data[:HEAD_BYTES]) if data else form
    return admit(data, format=detected, limits=STANDARD_LIMITS)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.codes])
def test_a_harmful_kind_is_refused(name: str) -> None:
    """With its code, in a moment."""
    kind = KINDS[name]
    data = kind.make()
    began = time.process_time()
    with pytest.raises(Error) as caught:
        _examined(data, kind.format)
    assert caught.value.code in kind.codes
    assert time.process_time() - began < MOST_S


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.codes])
def test_a_kind_that_is_only_harmful_with_some_data_is_admitted(name: str) -> None:
    """A size that depends on data is flagged; what certain data do is for the limits of a run."""
    admitted = _examined(KINDS[name].make(), KINDS[name].format)
    assert ("data_dependent_output" in admitted.info.admission.flags) == (name == "lk_output_size")


@pytest.mark.skipif(
    not CORPUS.is_dir(), reason="not exercised here: the corpus of hostile models is not beside this checkout"
)
def test_every_kind_of_the_corpus_has_one() -> None:
    """Whatever the corpus has, by name; innocent ones have tests of their own (test_exporters, good twins)."""
    names = {
        entry["file"].rpartition(".")[0]
        for entry in json.loads((CORPUS / "manifest.json").read_bytes())["models"]
    }
    assert {name for name in names if not name.startswith("good_")} == set(KINDS)
