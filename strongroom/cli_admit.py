"""`strongroom admit`: what a server would say about a model, before anybody sends it anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from strongroom.calls import printable
from strongroom.errors import Error, InvalidRequest
from strongroom.terminal import EXIT_BUG, EXIT_OK, EXIT_REFUSED, EXIT_UNUSABLE, show_json

if TYPE_CHECKING:
    from strongroom.admission import Examiner
    from strongroom.models.info import Admission, AdmissionLimits
    from strongroom.models.report import Report
    from strongroom.zygote import Nursery

_EXITS: Final = {"admitted": EXIT_OK, "refused": EXIT_REFUSED, "unreadable": EXIT_UNUSABLE}

_OTHERWISE: Final = frozenset({"level", "budget", "confined"})
"""Fields of the limits that are no numbers."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the admission report as one JSON document.")
@click.option("--strict/--permissive", default=True,
              help="Refuse what has no bound (the default), or leave it to the limits of a run.")  # fmt: skip
@click.option("--limits", "changes", multiple=True, metavar="NAME=NUMBER",
              help="Another limit than the standard one, such as operations=2000000000; may be repeated.")  # fmt: skip
@click.pass_context
def admit(ctx: click.Context, file: Path, as_json: bool, strict: bool, changes: tuple[str, ...]) -> None:
    """Examine a model as a server does at its upload: every rule, and bounds for memory and work.

    FILE is an ONNX model or an XGBoost model saved as JSON or UBJSON. It is examined in a process of its own, with
    limits on memory and time. Needs the `server` extra. Exit codes: 0 admitted; 10 refused; 20 unreadable.
    """
    limits = _limits(changes, strict=strict)
    report = _examined(read_model(file, limits.model_bytes), limits)
    if as_json:
        show_json(json.loads(report.encode()))
    else:
        _show(report)
    ctx.exit(_EXITS[report.verdict])


def read_model(file: Path, most: int) -> bytearray:
    """The file's bytes, at most one more than `most`.

    Raises:
        InvalidRequest: it cannot be read (code `upload_unreadable`).
    """
    try:
        with file.open("rb") as source:
            about = os.fstat(source.fileno())
            if not stat.S_ISREG(about.st_mode):  # a pipe does not say how much it has
                return bytearray(source.read(most + 1))
            data = bytearray(min(about.st_size, most) + 1)
            del data[source.readinto(data) :]  # one copy, where `bytearray(source.read())` has two
            return data
    except OSError as exc:
        raise InvalidRequest(f"{file} cannot be read", code="upload_unreadable") from exc


def _limits(changes: tuple[str, ...], *, strict: bool) -> AdmissionLimits:
    from strongroom.models.info import STANDARD_LIMITS

    limits = dataclasses.replace(STANDARD_LIMITS, level="strict" if strict else "permissive")
    budget = limits.budget
    for change in changes:
        name, _, number = change.partition("=")
        if not number.isdecimal() or len(number) > 18:
            raise click.UsageError(f"--limits: expected NAME=NUMBER, got {change!r}")
        if name in {field.name for field in dataclasses.fields(budget)}:
            budget = dataclasses.replace(budget, **{name: int(number)})
        elif name in {field.name for field in dataclasses.fields(limits)} - _OTHERWISE:
            given: dict[str, Any] = {name: int(number)}
            limits = dataclasses.replace(limits, **given)
        else:
            known = [f.name for kind in (budget, limits) for f in dataclasses.fields(kind)]
            names = ", ".join(sorted(set(known) - _OTHERWISE))
            raise click.UsageError(f"--limits: no limit is called {name!r}; there are {names}")
    return dataclasses.replace(limits, budget=budget)


@contextlib.contextmanager
def examiner_here() -> Iterator[Examiner]:
    """Processes that examine models as a server's do, without a server.

    Raises:
        Failure: the `server` extra is not installed, or no process can be started (code `start_refused`).
    """
    from strongroom.admission import STANDARD_CHILD, Examiner

    with nursery_here() as nursery:
        yield Examiner(nursery, limits=STANDARD_CHILD)


@contextlib.contextmanager
def nursery_here() -> Iterator[Nursery]:
    """What processes for models come from, as in a server.

    Raises:
        Failure: as `examiner_here`.
    """
    from strongroom.launch import CHILD, dependency_folders
    from strongroom.platforms import SIMULATED
    from strongroom.zygote import Launch, Nursery

    launch = Launch(
        paths=dependency_folders(SIMULATED),
        environment=CHILD,
        folder=Path("/"),
        measured=None,
        flags=("-I", "-S"),
        workers=False,
    )
    with Nursery(launch) as nursery:
        yield nursery


def _examined(data: bytearray, limits: AdmissionLimits) -> Report:
    from strongroom.formats import HEAD_BYTES, detect
    from strongroom.jobs import engine
    from strongroom.models.report import report_of, report_of_refusal

    # Of the very bytes that are examined, and now: the examiner empties `data` once it was sent.
    size, sha256, format = len(data), hashlib.sha256(data).hexdigest(), "unknown"
    try:
        format = detect(data[:HEAD_BYTES])
        with examiner_here() as examiner:
            return report_of(examiner.admit(data, format=format, limits=limits), size=size, engine=engine())
    except Error as error:
        from strongroom.terminal import exit_code

        if exit_code(error) == EXIT_BUG:
            raise
        return report_of_refusal(error, size=size, sha256=sha256, format=format, level=limits.level)


def _show(report: Report) -> None:
    if report.admission is None:
        word = "UNREADABLE" if report.verdict == "unreadable" else "REFUSED"
        rule = next((rule for rule, result in report.rules if result == "refused"), None)
        where = "" if rule is None else f", rule {rule}"
        click.echo(f"{word}  {printable(report.message, limit=500)} [{report.code}{where}]")
        return
    click.echo(f"ADMITTED ({report.level})  {report.format}, {report.size} bytes, sha256 {report.sha256}")
    click.echo(f"  runs as      sha256 {report.canonical_sha256}")
    narrow = ", ".join(f"{count} {name}" for name, count in report.precision.narrow)
    click.echo(f"  precision    {report.precision.name}{': ' + narrow if narrow else ''}")
    _show_bounds(report.admission)


def _show_bounds(found: Admission) -> None:
    click.echo(
        f"  model        {found.nodes} nodes, {found.tensors} tensors of {megabytes(found.tensor_bytes)}"
    )
    click.echo(
        f"  loading      {megabytes(found.resident_bytes)} computed and kept, "
        f"{_number(found.load_operations)} operations"
    )
    for room in found.rooms:
        size = " x ".join(map(str, room.sizes))
        upto = f"up to {size}" if size else "any request"
        click.echo(
            f"  {upto:<24} {megabytes(room.peak_bytes)} at one time, {_number(room.operations)} operations, "
            f"{room.steps} steps"
        )
    click.echo(f"  flags        {', '.join(found.flags) or 'none'}")


def megabytes(count: int) -> str:
    """For people: millions of bytes."""
    return f"{count / 1e6:.1f} MB"


def _number(count: int) -> str:
    return f"{count:.2e}" if count >= 10**6 else str(count)
