"""`strongroom quantize`: a model in less precision, made and judged on its owner's machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from strongroom.calls import printable
from strongroom.errors import InvalidRequest, LimitExceeded
from strongroom.reduction import FP32, METHODS, Options, encode_ranges
from strongroom.terminal import show_json

if TYPE_CHECKING:
    import numpy as np

    from strongroom.models.calibration import Request
    from strongroom.models.comparison import OutputError
    from strongroom.models.info import Admitted
    from strongroom.models.precision import Reduced
    from strongroom.observer import Observer

_F = TypeVar("_F", bound=Callable[..., Any])

PAIRS: Final = 15
"""Runs of both models, one after the other, after two of each that are not counted."""
LABELS: Final = "labels"
"""Name in the examples of an evaluation of the right answers, where the model has no input of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What the evaluation found; `speed` is how many times the reduced model is faster."""

    examples: int
    outputs: tuple[OutputError, ...]
    accuracy: tuple[float, float] | None
    speed: float
    speed_quartiles: tuple[float, float]
    milliseconds: tuple[float, float]


@click.command()
@click.argument("file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--precision", required=True, metavar="int8|fp16",
              help="int8: weights and products of eight bits; fp16: weights stored in 16.")  # fmt: skip
@click.option("--calibrate", type=click.Path(path_type=Path), metavar="FILE",
              help="Examples (.npz) to measure activations on: int8 is then static; convolutions need it.")  # fmt: skip
@click.option("--evaluate", type=click.Path(path_type=Path), metavar="FILE",
              help="Other examples (.npz) to compare both models on; with `labels`, their accuracy.")  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), default="minmax", show_default=True,
              help="How ranges are taken of the examples.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="NODE",
              help="A node to leave as it is, by its name or that of a value it makes; may be repeated.")  # fmt: skip
@click.option("--per-tensor", is_flag=True, help="One scale for a whole weight tensor, not one a channel.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE",
              help="Write the new model there; a new file.")  # fmt: skip
@click.option("--ranges-out", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the measured ranges there (JSON), for `upload --ranges`; a new file.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def quantize(
    file: Path, precision: str, calibrate: Path | None, evaluate: Path | None, method: str,
    exclude: tuple[str, ...], per_tensor: bool, out: Path, ranges_out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make MODEL, an ONNX file, in less precision, and say what that changes.

    The new file is what a server makes of the same model, options and examples, and passes the same admission.
    Needs the `server` extra. Exit codes: 0 made; 10 refused; 20 unusable options or examples.
    """
    from strongroom import models
    from strongroom.engine import Engine
    from strongroom.models.calibration import requests_of
    from strongroom.models.info import STANDARD_LIMITS
    from strongroom.models.precision import measure, reduce_precision
    from strongroom.observer import Observer

    options = Options(precision=precision, method=method, per_channel=not per_tensor, exclude=exclude)
    options.check()
    if out.exists():
        raise click.UsageError(f"--out: {out} exists")
    if ranges_out is not None and (ranges_out.exists() or calibrate is None):
        raise click.UsageError(
            f"--ranges-out: {ranges_out} exists"
            if calibrate is not None
            else "--ranges-out: needs --calibrate"
        )
    if calibrate is not None and precision != "int8":
        raise click.UsageError("--calibrate: only int8 measures activations")
    admitted = models.admit(
        _read(file, STANDARD_LIMITS.model_bytes, "model_too_large"), format="onnx", limits=STANDARD_LIMITS
    )
    observer = Observer(Engine(), STANDARD_LIMITS)
    examples = () if calibrate is None else requests_of(admitted.info, _arrays(calibrate), what="--calibrate")
    found = {} if evaluate is None else _arrays(evaluate)
    labels = None if LABELS in {spec.name for spec in admitted.info.inputs} else found.pop(LABELS, None)
    judging = requests_of(admitted.info, found, what="--evaluate") if evaluate is not None else ()
    ranges = measure(admitted, options=options, examples=examples, run=observer) if examples else None
    reduced = reduce_precision(admitted, options=options, ranges=ranges, limits=STANDARD_LIMITS)
    judged = _judge(admitted, reduced.admitted, judging, labels, observer) if judging else None
    _write(out, reduced.admitted.onnx)
    if ranges_out is not None and ranges is not None:
        _write(ranges_out, encode_ranges(ranges, model=admitted.canonical_sha256))
    if as_json:
        show_json({**_document(admitted, reduced, judged), "ranges": ranges})
    else:
        _show(admitted, reduced, judged, out)


def precision_options(command: _F) -> _F:
    """The options of an upload that say what precision the server is to make."""
    options = (
        click.option("--precision", default="fp32", show_default=True, metavar="fp32|int8|fp16",
                     help="fp32: as it is. int8, fp16: made by the server (`strongroom quantize --help`)."),
        click.option("--calibrate", type=click.Path(path_type=Path), metavar="FILE",
                     help="Examples (.npz) that travel with the model, and are not kept."),
        click.option("--ranges", type=click.Path(path_type=Path), metavar="FILE",
                     help="What `quantize --ranges-out` wrote, in their place."),
        click.option("--method", type=click.Choice(METHODS), default="minmax", show_default=True,
                     help="How ranges are taken of examples."),
        click.option("--exclude", multiple=True, metavar="NODE", help="A node to leave as it is; may be repeated."),
        click.option("--per-tensor", is_flag=True, help="One scale for a whole weight tensor, not one a channel."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def chosen(precision: str, *, method: str, exclude: tuple[str, ...], per_tensor: bool) -> str | Options:
    """What the options of `precision_options` ask for.

    Raises:
        InvalidRequest: options of how, without a precision that has them (code `precision_options`).
    """
    options = Options(precision=precision, method=method, per_channel=not per_tensor, exclude=exclude)
    if precision == FP32 and options != Options(precision=FP32):
        raise InvalidRequest(
            "--method, --exclude, --per-tensor: expected --precision int8 or fp16", code="precision_options"
        )
    return FP32 if precision == FP32 else options


def _read(file: Path, most: int, code: str) -> bytearray:
    try:
        with file.open("rb") as source:
            data = bytearray(source.read(most + 1))
    except OSError as exc:
        raise InvalidRequest(f"{file} cannot be read", code="upload_unreadable") from exc
    if len(data) > most:
        raise LimitExceeded(f"{file} has more than {most} bytes", code=code)
    return data


def _arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    from strongroom.models.calibration import LIMITS
    from strongroom.npy import decode_npz

    return decode_npz(_read(file, LIMITS.total_bytes, "oip_too_many_bytes"), limits=LIMITS)


def _write(out: Path, data: bytes) -> None:
    """A new file, whole or not at all: half a model that lies there is taken for one."""
    try:
        target = out.open("xb")
    except OSError as exc:
        raise InvalidRequest(f"{out} cannot be written", code="output_unwritable") from exc
    try:
        with target:
            target.write(data)
    except BaseException as exc:
        out.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise InvalidRequest(f"{out} cannot be written", code="output_unwritable") from exc
        raise


def _judge(
    admitted: Admitted, reduced: Admitted, requests: Sequence[Request], labels: np.ndarray[Any, Any] | None,
    observer: Observer,
) -> _Judged:  # fmt: skip
    from strongroom.models.comparison import accuracy, compare

    before, after = (list(observer(model.onnx, requests, outputs=())) for model in (admitted, reduced))
    rates = None
    if labels is not None:
        output = admitted.info.primary_output
        try:
            rates = accuracy(before, labels, output=output), accuracy(after, labels, output=output)
        except ValueError as exc:
            raise InvalidRequest(
                "--evaluate: expected one label for each row of the first output", code="precision_examples"
            ) from exc
    pairs = _time(admitted, reduced, requests, observer)
    ratios = sorted(a / b for a, b in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return _Judged(
        examples=len(requests),
        outputs=compare(before, after),
        accuracy=rates,
        speed=middle,
        speed_quartiles=(low, high),
        milliseconds=(
            1e3 * statistics.median(a for a, _ in pairs),
            1e3 * statistics.median(b for _, b in pairs),
        ),
    )


def _time(
    admitted: Admitted, reduced: Admitted, requests: Sequence[Request], observer: Observer
) -> list[tuple[float, float]]:
    """Seconds of processor time of both, in turns: what else the machine does meets them alike."""
    sessions = [observer.engine.load(model) for model in (admitted, reduced)]
    pairs = []
    for number in range(PAIRS + 2):
        times = []
        for session in sessions:
            begun = time.thread_time()  # a session runs in the calling thread, and in no other
            session.run(requests[number % len(requests)], outputs=())
            times.append(max(time.thread_time() - begun, 1e-9))
        if number >= 2:
            pairs.append((times[0], times[1]))
    for session in sessions:
        session.close()
    return pairs


def _document(admitted: Admitted, reduced: Reduced, judged: _Judged | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "form": reduced.form,
        "size": len(reduced.admitted.onnx),
        "size_before": len(admitted.onnx),
        "sha256": reduced.admitted.canonical_sha256,
        "sha256_before": admitted.canonical_sha256,
        "rewritten": dict(reduced.rewritten),
        "left": dict(reduced.left),
        "evaluation": None,
    }
    if judged is not None:
        document["evaluation"] = {
            "examples": judged.examples,
            "outputs": [output.to_json() for output in judged.outputs],
            "accuracy": None
            if judged.accuracy is None
            else dict(zip(("before", "after"), judged.accuracy, strict=True)),
            "speed": round(judged.speed, 3),
            "speed_quartiles": [round(ratio, 3) for ratio in judged.speed_quartiles],
            "milliseconds": [round(value, 3) for value in judged.milliseconds],
        }
    return document


def _show(admitted: Admitted, reduced: Reduced, judged: _Judged | None, out: Path) -> None:
    before, after = len(admitted.onnx), len(reduced.admitted.onnx)
    click.echo(f"{out}  {reduced.form}, sha256 {reduced.admitted.canonical_sha256}")
    click.echo(f"  size         {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB ({after / before:.2f})")
    click.echo(f"  rewritten    {_counts(reduced.rewritten)}")
    click.echo(f"  left         {_counts(reduced.left)}")
    if judged is None:
        click.echo("  NOT EVALUATED: give examples with --evaluate to see errors and speed")
        return
    low, high = judged.speed_quartiles
    times = "{:.2f} -> {:.2f} ms".format(*judged.milliseconds)
    click.echo(
        f"  speed        {judged.speed:.2f} x (quartiles {low:.2f} to {high:.2f}), {times}, one thread"
    )
    if judged.accuracy is not None:
        click.echo("  accuracy     {:.4f} -> {:.4f}".format(*judged.accuracy))
    for found in judged.outputs:
        click.echo(f"  output       {printable(found.name, limit=60)}, {judged.examples} examples")
        for word in ("abs", "relative"):
            numbers = (getattr(found, f"{kind}_{word}") for kind in ("p50", "p99", "max"))
            click.echo("    {:<10} median {:.3g}, 99 % {:.3g}, largest {:.3g}".format(word, *numbers))
        if found.least_cosine is not None:
            click.echo(f"    cosine     {found.least_cosine:.6f} at worst")
        if found.agreement is not None:
            click.echo(f"    agreement  {found.agreement:.4f} of answers are the same")
        if not found.finite:
            click.secho("    NOT COMPARED in full: not finite, or of another shape", fg="yellow")


def _counts(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts) or "nothing"
