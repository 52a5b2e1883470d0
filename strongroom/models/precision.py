"""A network in less precision: one function of its canonical bytes, options and the ranges of its values.

The owner's machine and a server's preparation process run the same function, so that what was evaluated is what
runs (docs/precision.md).

Rules
  - It begins with what `models.admit` wrote, and what it makes is admitted by `models.admit` again: the rewriting
    is no way around any rule.
  - No file, no clock, no random number, no engine: the same model, options and ranges give the same bytes, on
    every processor. Ranges are measured apart (`measure`), and can be handed on instead of examples.
  - A model that is in eight bits already, or has nothing to rewrite, is refused rather than left as it is: nobody
    shall believe in a precision that is not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx

from strongroom import models
from strongroom.errors import AdmissionRefused, InvalidRequest, LimitExceeded
from strongroom.models import calibration, dynamic, halves, opset, static, tables
from strongroom.models.calibration import Request, Run
from strongroom.models.info import AdmissionLimits, Admitted
from strongroom.models.narrow import EIGHT_BITS
from strongroom.models.rewrite import FLOAT, SPARE, Graph, names_of, operators
from strongroom.models.simplify import lift_constants, simplify
from strongroom.models.wire import imports_of, written
from strongroom.reduction import Options as Options

MIN_OPSET: Final = {"fp16": 9, "dynamic": 11, "static": opset.LOWEST}
"""The first operator sets of ai.onnx that have what is written."""
_PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Einsum"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """A model in less precision, as it was written here: to be admitted."""

    data: bytes
    form: str
    """`dynamic`, `static` or `fp16`."""
    rewritten: tuple[tuple[str, int], ...]
    """Operator -> nodes that compute with, or read, less precision; sorted."""
    left: tuple[tuple[str, int], ...]
    """Operator -> products with weights that stay in floating point, inner graphs included; sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """A model in less precision; `form`, `rewritten` and `left` as `Rewritten` has them."""

    admitted: Admitted
    form: str
    rewritten: tuple[tuple[str, int], ...]
    left: tuple[tuple[str, int], ...]


@np.errstate(all="ignore")  # strangers' weights: what comes of them is looked at, numpy need not say it
def measure(
    admitted: Admitted, *, options: Options, examples: Sequence[Request], run: Run
) -> dict[str, tuple[float, float]]:
    """The ranges that the static form of a model needs: value -> least and greatest element over `examples`.

    `examples`: requests as `calibration.requests_of` gives them. `run`: runs the network with more outputs. The
    only step that computes in floating point, whose last bits are the processor's; ranges are on a grid.

    Raises:
        InvalidRequest: as `reduce_precision`, or examples that make values without a range (code
            `precision_examples`).
        AdmissionRefused: as `reduce_precision`.
    """
    graph, _, made_plan = _planned(admitted, "static", options)
    if not made_plan.measured:
        return {}
    observed = _observed(graph, made_plan.measured)
    return calibration.ranges_of(observed, made_plan.measured, examples, run=run, method=options.method)


def reduce_precision(
    admitted: Admitted,
    *,
    options: Options,
    ranges: Mapping[str, tuple[float, float]] | None,
    limits: AdmissionLimits,
) -> Reduced:
    """The model in `options.precision`, admitted.

    Raises:
        As `rewrite`, and as `models.admit`.
    """
    made = rewrite(admitted, options=options, ranges=ranges)
    return Reduced(
        admitted=models.admit(made.data, format="onnx", limits=limits),
        form=made.form,
        rewritten=made.rewritten,
        left=made.left,
    )


@np.errstate(all="ignore")
def rewrite(
    admitted: Admitted, *, options: Options, ranges: Mapping[str, tuple[float, float]] | None
) -> Rewritten:
    """The model in `options.precision`.

    `ranges`: with `int8` they decide the form: `static`, for convolutions and matrices, between what `measure`
    found; with None `dynamic`, for matrices alone.

    Raises:
        InvalidRequest: options that are none, or name a node that is not there (codes `precision_unsupported`,
            `precision_options`); ranges that are not those of this model's values (code `precision_ranges`).
        AdmissionRefused: nothing to rewrite, in eight bits already, or of an operator set that has not what is
            needed (codes `precision_nothing`, `precision_twice`, `precision_opset`), or numbers that have no scale
            (`precision_scale`).
        LimitExceeded: new constants take too many bytes, or what is made more than the model (code `precision_size`):
            it is stored, and quotas count uploads.
    """
    form = "fp16" if options.precision == "fp16" else "dynamic" if ranges is None else "static"
    graph, kept, made_plan = _planned(admitted, form, options)
    products = _products(graph.model)
    rewritten: tuple[Any, ...]
    if form == "fp16":
        rewritten = halves.rewrite(graph, kept=kept)
    elif ranges is None:
        rewritten = dynamic.rewrite(graph, per_channel=options.per_channel, kept=kept)
    else:
        _check_ranges(made_plan.measured, ranges)
        rewritten = static.rewrite(graph, made_plan, ranges=ranges, per_channel=options.per_channel)
    if form != "fp16":
        rewritten = (*rewritten, *tables.rewrite(graph, kept=kept))
    if not rewritten:
        raise AdmissionRefused(f"the model has nothing that {form} can be made of", code="precision_nothing")
    done = Counter(made.op_type for made in rewritten)
    left = {name: count - done[name] for name, count in products.items() if count > done[name]}
    data = _bytes(graph.finish())
    if len(data) > len(admitted.onnx) + SPARE:
        raise LimitExceeded(
            f"in less precision the model would have {len(data)} bytes, it has {len(admitted.onnx)}",
            code="precision_size",
        )
    return Rewritten(
        data=data,
        form=form,
        rewritten=tuple(sorted(done.items())),
        left=tuple(sorted(left.items())) if form != "fp16" else (),
    )


def _planned(admitted: Admitted, form: str, options: Options) -> tuple[Graph, frozenset[str], static.Plan]:
    """The graph, ready to be rewritten; the values whose nodes stay; with the static form, the plan."""
    options.check()
    model = onnx.ModelProto.FromString(admitted.onnx)
    _check(model, form)
    graph = Graph(model)
    kept = _kept(graph, options.exclude)
    if form == "static":
        opset.raise_opset(graph)
    if form == "fp16":
        lift_constants(graph, kept=kept)
    else:
        simplify(graph, kept=kept)
    return graph, kept, static.plan(graph, kept=kept) if form == "static" else static.Plan()


def _check_ranges(names: Sequence[str], ranges: Mapping[str, tuple[float, float]]) -> None:
    if set(ranges) != set(names):
        raise InvalidRequest(
            f"expected ranges of the {len(names)} values that become eight bits, got {len(ranges)}, of others",
            code="precision_ranges",
        )
    if not all(
        -calibration.MAX_RANGE <= low <= high <= calibration.MAX_RANGE for low, high in ranges.values()
    ):
        raise InvalidRequest(
            f"expected ranges from a number to one that is not less, up to {calibration.MAX_RANGE:g}",
            code="precision_ranges",
        )


def _check(model: Any, form: str) -> None:
    if EIGHT_BITS & set(operators(model.graph)):
        raise AdmissionRefused("the model computes with eight bits already", code="precision_twice")
    version = imports_of(model.opset_import).get("")
    if version is None:
        raise AdmissionRefused("the model has learners only, no network", code="precision_nothing")
    if version < MIN_OPSET[form]:
        raise AdmissionRefused(
            f"the model is of operator set {version} of ai.onnx, {form} needs {MIN_OPSET[form]}",
            code="precision_opset",
        )


def _kept(graph: Graph, names: Sequence[str]) -> frozenset[str]:
    """The values that nodes of these names make.

    Raises:
        InvalidRequest: there is no such node (code `precision_options`).
    """
    found = names_of(graph.nodes)
    for name in names:
        if name not in found:
            raise InvalidRequest(
                f"no node of the model's graph is called {name!r:.100}, or makes a value of that name",
                code="precision_options",
            )
    return frozenset(output for name in names for made in found[name] for output in made.output if output)


def _products(model: Any) -> Mapping[str, int]:
    """Operators that multiply with weights, and how many nodes there are, at any depth and in functions."""
    counts = Counter(operators(model.graph))
    for function in model.functions:
        counts.update(operators(function))
    return {name: count for name, count in counts.items() if name in _PRODUCTS}


def _observed(graph: Graph, names: Sequence[str]) -> bytes:
    """The network with the values of these names as outputs."""
    model = graph.finish()
    present = {*graph.outputs, *graph.inputs}
    for name in names:
        if name not in present:
            value = model.graph.output.add(name=name)
            value.type.tensor_type.elem_type = FLOAT
    return _bytes(model)


def _bytes(model: Any) -> bytes:
    parts, start = written(model)
    return bytes(memoryview(parts)[start:])
