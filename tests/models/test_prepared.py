"""Models run from prepared forms with the bits of a plain session: exporters' files, generated networks, twins."""

from __future__ import annotations

import hostile
import networks
import onnx
import pytest
from test_exporters import FILES, TWINS, feed
from test_forms import kept, nursery, put, pytestmark, source, store

from strongroom import forms as module
from strongroom.engine import Engine, InProcess
from strongroom.jobs import Job
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS
from strongroom.store import Store
from strongroom.zygote import Nursery

__all__ = ["nursery", "pytestmark", "store"]

ADMITTED_ONLY = {"large convolution", "iterations of iterations"}


def _models() -> dict[str, bytes]:
    found = {path.stem: path.read_bytes() for path in FILES}
    found |= {"residual": networks.residual(), "layers": networks.layers()}
    for name, good in list(TWINS.items())[::8]:
        data = hostile.encoded(good())
        model = onnx.load_from_string(data)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        edge = opsets[""] > 26 or model.ir_version > 13 or "ArrayFeature" in str(data)
        if name not in ADMITTED_ONLY and not edge:
            found[name] = data
    return found


def test_results_have_the_same_bits(store: Store, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte, of models of any size."""
    monkeypatch.setattr(module, "WORTH_BYTES", 1)
    models = _models()
    assert len(models) > 20
    for name, data in models.items():
        admitted = admit(data, format="onnx", limits=STANDARD_LIMITS)
        model = put(store, admitted)
        forms = kept(store, nursery)
        forms.make(model)
        assert store.form(model) is not None, name
        arrays = feed(admitted.onnx)
        wanted = Engine().load(admitted).run(arrays, outputs=())
        loaded = InProcess(Engine()).load(source(store, forms, model))
        assert store.form(model) is not None, name  # it was used
        got = loaded.run(arrays, outputs=(), job=Job(caller="a", seconds=30.0))
        for output, array in wanted.items():
            assert array.dtype == got[output].dtype and array.shape == got[output].shape, name
            assert (
                array.tolist() == got[output].tolist()
                if array.dtype == object
                else (array.tobytes() == got[output].tobytes())
            ), name
