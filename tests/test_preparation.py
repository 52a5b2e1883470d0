"""Less precision in processes that can be killed: the bytes of the owner's machine, and never a lie believed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from models.networks import images, layers, network, node, numbers, residual, words
from plane import WAITING, prepare_here, xgboost_json
from test_admission import launch

from strongroom import preparation
from strongroom.admission import STANDARD_CHILD, ChildLimits, Examiner
from strongroom.errors import (
    AdmissionRefused,
    Error,
    Failure,
    InvalidRequest,
    LimitExceeded,
    MalformedInput,
)
from strongroom.models import admit
from strongroom.models.info import STANDARD_LIMITS, Admitted
from strongroom.npy import encode_npz
from strongroom.preparation import Preparer, Waiting, prepared
from strongroom.reduction import Options, Part, Reduction, encode_ranges
from strongroom.sandbox import LAYERS
from strongroom.zygote import Nursery

INT8, FP16 = Options(precision="int8"), Options(precision="fp16")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One zygote for all tests of this module, with no engine in it: as where models run in the server."""
    with Nursery(launch()) as made:
        yield made


@pytest.fixture(scope="module")
def preparer(nursery: Nursery) -> Preparer:
    """Makes less precision in its children."""
    examiner = Examiner(nursery, limits=STANDARD_CHILD)
    return Preparer(nursery, admit=examiner.admit, limits=STANDARD_CHILD, layers=("closed_descriptors",))


def admitted(data: bytes, *, format: str = "onnx") -> Admitted:
    """The model, admitted here."""
    return admit(data, format=format, limits=STANDARD_LIMITS)


def asks(options: Options, part: bytes = b"", kind: str = "calibration") -> Reduction:
    """For something to be made, with a part."""
    said = Part(kind=kind, size=len(part), sha256=hashlib.sha256(part).hexdigest()) if part else None
    return Reduction(options=options, part=said)


def npz(**arrays: Any) -> bytes:
    """A set."""
    return encode_npz(arrays)


RESIDUAL, LAYERS_ = residual(), layers()
SET = npz(**images(4))


@pytest.mark.parametrize(
    ("data", "options", "part", "kind"),
    [
        (LAYERS_, INT8, b"", ""),
        (LAYERS_, FP16, b"", ""),
        (LAYERS_, INT8, npz(**words(3)), "calibration"),
        (RESIDUAL, INT8, SET, "calibration"),
        (RESIDUAL, dataclasses.replace(INT8, method="percentile", per_channel=False, exclude=("n_y",)), SET,
         "calibration"),
    ],
    ids=["dynamic", "halves", "static words", "static images", "options"],
)  # fmt: skip
def test_the_same_model_comes_out(
    preparer: Preparer, data: bytes, options: Options, part: bytes, kind: str
) -> None:
    """As the same functions make it in this process: bytes, metadata and what is said of them."""
    asked, model = asks(options, part, kind), admitted(data)
    there = preparer.prepare(
        model, asked=asked, part=bytearray(part), limits=STANDARD_LIMITS, waiting=WAITING
    )
    assert there == prepare_here(model, asked=asked, part=part, limits=STANDARD_LIMITS)
    assert there.canonical_sha256 == hashlib.sha256(there.onnx).hexdigest() != model.canonical_sha256
    made = there.info.precision.made
    assert made is not None and made.from_sha256 == model.canonical_sha256 and made.form == asked.form
    assert there.info.notes == model.info.notes


def test_ranges_in_the_place_of_examples(preparer: Preparer) -> None:
    """The same bytes, and another statement: no set was there."""
    model = admitted(RESIDUAL)
    measured = preparer.prepare(
        model, asked=asks(INT8, SET), part=SET, limits=STANDARD_LIMITS, waiting=WAITING
    )
    _, ranges = preparer._ask(
        preparation.MEASURE, model, asks(INT8, SET), SET, STANDARD_LIMITS, most=1 << 20, waiting=WAITING
    )
    given = preparer.prepare(
        model, asked=asks(INT8, ranges, "ranges"), part=ranges, limits=STANDARD_LIMITS, waiting=WAITING
    )
    assert given.onnx == measured.onnx
    a, b = measured.info.precision.made, given.info.precision.made
    assert a is not None and b is not None
    assert a.ranges_sha256 == b.ranges_sha256 == hashlib.sha256(ranges).hexdigest()
    assert a.calibration_sha256 == hashlib.sha256(SET).hexdigest() and b.calibration_sha256 is None


WRONG_RANGES = encode_ranges({"x": (0.0, 1.0)}, model=admitted(RESIDUAL).canonical_sha256)


def broken_set() -> bytes:
    """An archive cut short."""
    return SET[:-20]


def savez(**arrays: Any) -> bytes:
    """As numpy writes one, pickles and all."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "asked_of", "part", "kind", "refused", "code"),
    [
        (RESIDUAL, INT8, b"", "", AdmissionRefused, "precision_nothing"),
        (LAYERS_, dataclasses.replace(INT8, exclude=("nobody",)), b"", "", InvalidRequest, "precision_options"),
        (LAYERS_, dataclasses.replace(FP16, exclude=("nobody",)), b"", "", InvalidRequest, "precision_options"),
        (network(node("Relu", ["x"], ["y"])), FP16, b"", "", AdmissionRefused, "precision_nothing"),
        (network(node("Relu", ["x"], ["y"]), opset=10), INT8, b"", "", AdmissionRefused, "precision_opset"),
        (RESIDUAL, INT8, b"no archive", "calibration", MalformedInput, "npz_malformed"),
        (RESIDUAL, INT8, broken_set(), "calibration", MalformedInput, "npz_malformed"),
        (RESIDUAL, INT8, savez(x=np.array([{"a": 1}], dtype=object)), "calibration", Error, "npy_"),
        (RESIDUAL, INT8, npz(z=images(1)["x"]), "calibration", InvalidRequest, "input_unknown"),
        (RESIDUAL, INT8, npz(x=numbers(2, 4, 12, 12)), "calibration", InvalidRequest, "input_shape"),
        (RESIDUAL, INT8, npz(x=np.full((1, 3, 12, 12), np.nan, np.float32)), "calibration", InvalidRequest,
         "precision_examples"),
        (LAYERS_, INT8, npz(x=np.full((2, 7), 50)), "calibration", InvalidRequest, "run_failed"),
        (RESIDUAL, INT8, b"{}", "ranges", MalformedInput, "precision_ranges_malformed"),
        (RESIDUAL, INT8, WRONG_RANGES, "ranges", InvalidRequest, "precision_ranges"),
        (LAYERS_, INT8, WRONG_RANGES, "ranges", InvalidRequest, "precision_ranges"),
    ],
    ids=["convolutions without a set", "unknown node", "unknown node, halves", "nothing", "operator set",
         "no archive", "archive cut short", "objects", "other names", "other shape", "nan", "rows that do not run",
         "no ranges", "ranges of other values", "ranges of another model"],
)  # fmt: skip
def test_what_is_refused(
    preparer: Preparer,
    data: bytes,
    asked_of: Options,
    part: bytes,
    kind: str,
    refused: type[Error],
    code: str,
) -> None:
    """By the class and code that the same mistake has on the owner's machine."""
    with pytest.raises(refused) as caught:
        preparer.prepare(
            admitted(data),
            asked=asks(asked_of, part, kind),
            part=part,
            limits=STANDARD_LIMITS,
            waiting=WAITING,
        )
    assert caught.value.code.startswith(code)


def test_trees_are_left_alone(preparer: Preparer) -> None:
    """Before any process is made."""
    with pytest.raises(AdmissionRefused) as caught:
        model = admitted(xgboost_json(), format="xgboost-json")
        preparer.prepare(model, asked=asks(INT8), part=b"", limits=STANDARD_LIMITS, waiting=WAITING)
    assert caught.value.code == "precision_nothing"


@pytest.mark.parametrize(
    "limits",
    [
        ChildLimits(wall_s=0.001, cpu_s=50, memory_bytes=1 << 30),
        ChildLimits(wall_s=60, cpu_s=50, memory_bytes=-(64 << 20)),  # less than it has
    ],
    ids=["time", "memory"],
)
def test_limits_end_it(nursery: Nursery, limits: ChildLimits) -> None:
    """The kernel does, and the caller gets a word for it."""
    preparer = Preparer(nursery, admit=admit, limits=limits, layers=())
    wide = network(node("Gemm", ["x", "w"], ["y"]), x=(None, 1000), w=numbers(1000, 1000))
    with pytest.raises(LimitExceeded) as caught:
        preparer.prepare(admitted(wide), asked=asks(INT8), part=b"", limits=STANDARD_LIMITS, waiting=WAITING)
    assert caught.value.code == "preparation_limits"


@pytest.mark.slow
def test_processor_time_ends_it(nursery: Nursery) -> None:
    """As the kernel counts it: a set that takes longer to measure than it may."""
    limits = ChildLimits(wall_s=120, cpu_s=1, memory_bytes=1 << 30)
    preparer = Preparer(nursery, admit=admit, limits=limits, layers=())
    data, part = deep()
    asked = asks(dataclasses.replace(INT8, method="percentile"), part)
    with pytest.raises(LimitExceeded) as caught:
        preparer.prepare(admitted(data), asked=asked, part=part, limits=STANDARD_LIMITS, waiting=WAITING)
    assert caught.value.code == "preparation_limits"


def deep() -> tuple[bytes, bytes]:
    """A network, and a set that takes it seconds."""
    chain = [
        node("Gemm", [f"x{at}" if at else "x", "w"], [f"x{at + 1}" if at < 9 else "y"]) for at in range(10)
    ]
    model = network(*chain, x=(None, 1000), w=numbers(1000, 1000) / 1000)
    return model, npz(x=np.ones((4_000, 1000), np.float32))


@pytest.mark.slow
def test_who_gives_up_ends_it(nursery: Nursery) -> None:
    """What measures is killed; who had given up before gets no process to work. Neither counts as a death."""
    preparer = Preparer(nursery, admit=admit, limits=STANDARD_CHILD, layers=())
    data, part = deep()
    asked, model, waiting = (
        asks(dataclasses.replace(INT8, method="percentile"), part),
        admitted(data),
        Waiting(),
    )
    timer = threading.Timer(0.3, waiting.give_up)
    timer.start()
    for _ in range(2):
        with pytest.raises(LimitExceeded):
            preparer.prepare(model, asked=asked, part=part, limits=STANDARD_LIMITS, waiting=waiting)
    assert waiting.over and not preparer._layouts
    waiting.give_up()
    timer.join()


def test_three_deaths_renew_what_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of workers do: they share the layout of its memory. Who takes too long has not died."""

    class One:
        """What was forked."""

        end: Any = None

        @property
        def layout(self) -> type[One]:
            """Whatever is the same for all."""
            return One

        def __enter__(self) -> One:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    class Counting:
        """A nursery."""

        renewed = 0

        def fork(self, kind: bytes) -> One:
            return One()

        def renew(self, child: One) -> None:
            self.renewed += 1
            if self.renewed > 1:
                raise Failure("no", code="start_refused")

    counting: Any = Counting()
    preparer = Preparer(counting, admit=admit, limits=STANDARD_CHILD, layers=())
    found = []
    for fault in (
        TimeoutError,
        TimeoutError,
        TimeoutError,
        EOFError,
        ConnectionResetError,
        EOFError,
        EOFError,
    ):

        def dies(*_: Any, fault: type[Exception] = fault) -> None:
            raise fault

        monkeypatch.setattr(preparation, "send", dies)
        with pytest.raises(LimitExceeded):
            preparer.prepare(
                admitted(LAYERS_), asked=asks(INT8), part=b"", limits=STANDARD_LIMITS, waiting=WAITING
            )
        found.append(counting.renewed)
    assert found == [0, 0, 0, 0, 0, 1, 2]


def test_promised_layers_have_to_hold(nursery: Nursery) -> None:
    """A process in which one does not take hold does nothing at all."""
    preparer = Preparer(nursery, admit=admit, limits=STANDARD_CHILD, layers=(*LAYERS, "another"))
    with pytest.raises(LimitExceeded) as caught:
        preparer.prepare(
            admitted(LAYERS_), asked=asks(INT8), part=b"", limits=STANDARD_LIMITS, waiting=WAITING
        )
    assert caught.value.code == "preparation_limits"


# What a process says


class Lying(Preparer):
    """Gets this answer from the process that rewrites."""

    told: tuple[dict[str, Any], bytes] = ({}, b"")

    def _ask(self, *_: Any, **__: Any) -> tuple[dict[str, Any], bytearray]:
        answer, data = self.told
        return answer, bytearray(data)


@pytest.mark.parametrize(
    ("answer", "data", "code"),
    [
        ({}, b"", "internal_error"),
        ({"rewritten": {}, "left": {}, "more": 1}, b"", "internal_error"),
        ({"rewritten": {"b": 1, "a": 1}, "left": {}}, b"", "internal_error"),
        ({"rewritten": {"a\x1b": 1}, "left": {}}, b"", "internal_error"),
        ({"rewritten": {"a": -1}, "left": None}, b"", "internal_error"),
        ({"rewritten": {"MatMul": 1}, "left": {}}, b"no model", "format_unknown"),
        ({"rewritten": {"MatMul": 1}, "left": {}}, LAYERS_, "internal_error"),  # as it was
        ({"rewritten": {"MatMul": 1}, "left": {}}, RESIDUAL, "internal_error"),  # another model
    ],
)
def test_a_process_that_was_taken_over(
    nursery: Nursery, answer: dict[str, Any], data: bytes, code: str
) -> None:
    """What it says is examined like a stranger's file, and never taken for less precision where it is not."""
    lying = Lying(nursery, admit=admit, limits=STANDARD_CHILD, layers=())
    lying.told = answer, data
    with pytest.raises(Error) as caught:
        lying.prepare(admitted(LAYERS_), asked=asks(INT8), part=b"", limits=STANDARD_LIMITS, waiting=WAITING)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "InvalidRequest", "code": "no_such_code", "message": "x"},
        {"error": "InvalidRequest", "code": "precision_options", "message": "a\x1b[31m"},
        {"error": "SystemExit", "code": "precision_options", "message": "x"},
    ],
)
def test_refusals_have_a_form(answer: dict[str, Any]) -> None:
    """Known codes, printable words, known families: else it is a fault."""
    assert isinstance(preparation._refusal(answer), Failure)


@pytest.mark.slow
def test_what_is_said_has_room(nursery: Nursery) -> None:
    """Names of excluded nodes burden the record like any metadata."""
    model = admitted(LAYERS_)
    made = preparation.Preparer(nursery, admit=admit, limits=STANDARD_CHILD, layers=()).prepare(
        model, asked=asks(INT8), part=b"", limits=STANDARD_LIMITS, waiting=WAITING
    )
    size = dataclasses.replace(STANDARD_LIMITS, metadata_bytes=1000)
    with pytest.raises(LimitExceeded) as caught:
        prepared(model, admitted(made.onnx), asked=asks(INT8), counts=((), ()), ranges=b"", limits=size)
    assert caught.value.code == "model_metadata_too_large"
