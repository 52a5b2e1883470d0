"""What the commands print: verdicts, tables, errors, progress; and the exit codes.

Rules
  - Data goes to standard output, everything for a person beside it to standard error.
  - Whatever rests on simulated evidence says SIMULATED.
  - Words of a server are printed without control characters (`calls.printable`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from strongroom.calls import ModelMetadata, Progress, printable
from strongroom.doctor import Report
from strongroom.errors import Error, Refused, Unavailable, Unusable

if TYPE_CHECKING:
    from strongroom.checking import CheckResult

EXIT_OK: Final = 0
EXIT_BUG: Final = 1
EXIT_REFUSED: Final = 10
EXIT_UNUSABLE: Final = 20
EXIT_UNREACHABLE: Final = 30
EXIT_INTERRUPTED: Final = 130

REFUSED_CODES: Final = frozenset({
    "admission_limits", "format_mismatch", "model_digest_mismatch", "name_taken", "onnx_compute", "onnx_loop",
    "onnx_memory", "onnx_too_complex",
})  # fmt: skip
"""Conflicts and limits that a check found: to a script they are refusals, though they are not of that family."""

SIMULATED: Final = (
    "SIMULATED: this rests on simulated evidence, which protects nothing from the server's operator"
)


@dataclass(slots=True)
class Noted:
    """What a command found out before it failed."""

    simulated: bool = False


def mark_simulated() -> None:
    """From here on whatever this command says rests on simulated evidence, also an error."""
    noted = click.get_current_context().find_object(Noted)
    if noted is not None:
        noted.simulated = True


def exit_code(error: Error) -> int:
    """The exit code for an error: 10 refused, 20 unusable input, 30 unreachable, 1 our fault."""
    if isinstance(error, Refused) or error.code in REFUSED_CODES:
        return EXIT_REFUSED
    if isinstance(error, Unusable):
        return EXIT_UNUSABLE
    return EXIT_UNREACHABLE if isinstance(error, Unavailable) else EXIT_BUG


def show_json(value: Any) -> None:
    """One JSON document on standard output; NaN and the infinities as bare literals, as in the protocol."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def show_error(error: Error, *, as_json: bool, simulated: bool) -> None:
    """An error, for a person on standard error, or as JSON on standard output.

    `simulated`: whatever it says rests on simulated evidence.
    """
    verdict = getattr(error, "verdict", None)
    simulated = simulated or (verdict is not None and verdict.simulated)
    if as_json:
        document = {"error": {"code": error.code, "message": printable(error.message, limit=2000)}}
        if verdict is not None:
            document["verdict"] = verdict.to_json()
        show_json({**document, "simulated": True} if simulated else document)
        return
    word = "refused" if exit_code(error) == EXIT_REFUSED else "error"
    click.echo(f"{word}: {printable(error.message, limit=2000)} [{error.code}]", err=True)
    note_simulated(simulated)


def show_verdict(verdict: Any) -> None:
    """One line per check: PASS or FAIL, id, title, what was expected, what came; then the verdict."""
    for check in verdict.checks:
        word = click.style("PASS", fg="green") if check.passed else click.style("FAIL", fg="red", bold=True)
        expected, got = printable(check.expected, limit=200), printable(check.got, limit=200)
        click.echo(f"{word}  {check.id:<30} {check.title}: expected {expected}; got {got}")
    for text in verdict.not_checked:
        click.secho(f"NOT CHECKED  {printable(text, limit=200)}", fg="yellow")
    failed = len(verdict.failures)
    if verdict.passed:
        click.echo(f"ACCEPTED: {len(verdict.checks)} checks passed")
    else:
        click.echo(f"REFUSED: {failed} of {len(verdict.checks)} checks failed, the first: {verdict.code}")
    if verdict.simulated:
        click.secho(SIMULATED, fg="yellow")


def note_simulated(simulated: bool) -> None:
    """Says SIMULATED beside a result."""
    if simulated:
        click.secho(SIMULATED, fg="yellow", err=True)


def show_checks(results: Sequence[CheckResult], *, as_json: bool, simulated: bool) -> int:
    """The findings of a check of the store; returns the exit code."""
    failed = [result for result in results if not result.passed]
    if as_json:
        listed = [
            {"subject": r.subject, "passed": r.passed, "code": r.code, "detail": r.detail} for r in results
        ]
        show_json({"passed": not failed, "results": listed, "simulated": simulated})
    else:
        for result in results:
            word = "PASS" if result.passed else "FAIL"
            click.echo(f"{word}  {result.subject}  {result.detail}".rstrip())
        click.echo(f"{len(results)} checked, {len(failed)} failed")
        note_simulated(simulated)
    return EXIT_REFUSED if failed else EXIT_OK


def show_models(models: Sequence[ModelMetadata]) -> None:
    """A table of model versions."""
    rows = [("NAME", "VERSION", "FORMAT", "BYTES", "ACCESS", "LOADED", "OWNER", "SHA-256")]
    rows += [
        (
            m.name,
            m.version,
            m.format,
            f"{m.size}",
            m.access,
            "yes" if m.loaded else "no",
            m.owner[:12],
            m.sha256,
        )
        for m in models
    ]
    widths = [max(len(printable(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (f"{printable(cell):<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def show_findings(report: Report) -> None:
    """One line for everything that was looked for, and what to do about it; then what `auto` takes."""
    colours = {"there": "green", "limited": "yellow", "missing": None}
    for finding in report.findings:
        word = click.style(f"{finding.state:<8}", fg=colours[finding.state])
        advice = f" -> {finding.how}" if finding.how else ""
        click.echo(f"{word} {finding.name:<16} {printable(finding.detail, limit=200)}{advice}")
    click.echo(f'platform = "auto" takes: {report.platform or "nothing here"}')


@contextmanager
def progress(label: str, *, quiet: bool) -> Iterator[Progress | None]:
    """A progress bar on standard error where that is a terminal; else None."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = max(total, 1)
            bar.update(max(done - bar.pos, 0))

        yield advance
