"""`strongroom size`: how much memory and how many threads a server with these models needs, for its enclave."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from strongroom.cli_admit import megabytes, nursery_here, read_model
from strongroom.errors import InvalidConfig, InvalidRequest
from strongroom.sizing import Demand, Model, Sizing, gramine_size, size
from strongroom.terminal import EXIT_OK, EXIT_REFUSED, show_json

if TYPE_CHECKING:
    from strongroom.config import Config
    from strongroom.models.info import Admitted
    from strongroom.outlook import Outlook, Rates
    from strongroom.zygote import Nursery

_UNITS: Final = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30,
}  # fmt: skip


class _Bytes(click.ParamType[int]):
    """Bytes with a unit: `250MB`, `2GiB`, `1000000`."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        found = re.fullmatch(r"([0-9]{1,15})\s*([kmg]i?)?b?", str(value).strip().lower())
        if found is None:
            self.fail(f"expected a number of bytes such as 250MB or 2GiB, got {value!r}", param, ctx)
        return int(found[1]) * _UNITS[found[2] or ""]


class _Sizes(click.ParamType[tuple[int, ...]]):
    """Sizes of open dimensions: `1x128`."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        if re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){0,7}", str(value)) is None:
            self.fail(f"expected sizes of open dimensions such as 4 or 1x128, got {value!r}", param, ctx)
        return tuple(map(int, str(value).split("x")))


@click.command("size")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--config", "config_path", type=click.Path(path_type=Path), default=None, metavar="FILE",
              help="The server's configuration file: its limits decide how much runs at once.")  # fmt: skip
@click.option("--budget", type=_Bytes(), default=None, metavar="BYTES",
              help="Memory that there is, such as 250MB: what fits as a whole, in how many stages the rest would run, "
                   "at which peak and how fast; exit code 10 where it is too small.")  # fmt: skip
@click.option("--request", "sizes", type=_Sizes(), default=None, metavar="SIZES",
              help="Open dimensions of the request that --budget predicts, such as 4 (rows) or 1x128.")  # fmt: skip
@click.option("--fill", type=click.Path(path_type=Path), default=None, metavar="FILE",
              help="Write enclave size and threads into FILE (deploy/gramine/values.toml).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def size_command(
    ctx: click.Context, files: tuple[Path, ...], config_path: Path | None, budget: int | None,
    sizes: tuple[int, ...] | None, fill: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Say how much memory, and how many threads, a server of these models needs.

    FILES are models; each is examined as at its upload. From what admission bounds, and the server's own part as it
    was measured, follow the peak of the server's memory, the size of an SGX enclave and how much of it older
    processors would have to page. With --budget, a model that does not fit is cut as a server with processes of its
    own for models (Linux) would cut it, in such processes; the speed of this machine is measured for about two seconds,
    and the model is not run (docs/partitioning.md says how far such predictions were off). Needs the `server` extra.
    Exit codes: 0; 10 a model is refused, or the budget is too small; 20 unusable input.
    """
    from strongroom.config import load_config

    settings = load_config(config_path)
    if sizes is not None and budget is None:
        raise click.UsageError("--request goes with --budget")
    with nursery_here() as nursery:
        admitted = _examined(files, settings, nursery)
        models = [model for model, _ in admitted]
        found = size(models, _demand(settings))
        ahead = (
            None if budget is None else _ahead(admitted, found, settings, nursery, budget=budget, sizes=sizes)
        )
    fits = budget is None or ahead is None or not ahead.missing(budget)
    if fill is not None:
        _fill(fill, found)
    if as_json:
        show_json(_document(models, found, _demand(settings), budget=budget, ahead=ahead))
    else:
        _show(models, found, settings, budget=budget, ahead=ahead)
    ctx.exit(EXIT_OK if fits else EXIT_REFUSED)


def _examined(files: tuple[Path, ...], settings: Config, nursery: Nursery) -> list[tuple[Model, Admitted]]:
    from strongroom.admission import STANDARD_CHILD, Examiner
    from strongroom.formats import HEAD_BYTES, detect
    from strongroom.server import admission_limits

    limits = admission_limits(settings)
    examiner = Examiner(nursery, limits=STANDARD_CHILD)
    models = []
    for file in files:
        data = read_model(file, limits.model_bytes)
        count, format = len(data), detect(bytes(data[:HEAD_BYTES]))
        admitted = examiner.admit(data, format=format, limits=limits)
        model = Model(name=file.name, info=admitted.info, runs_bytes=len(admitted.onnx), upload_bytes=count)
        models.append((model, admitted))
    return models


def _demand(settings: Config) -> Demand:
    limits = settings.limits
    return Demand(
        concurrent_runs=limits.concurrent_runs,
        concurrent_uploads=limits.concurrent_uploads,
        loaded_bytes=limits.loaded_bytes,
        request_bytes=limits.request_bytes,
        response_bytes=limits.response_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What is expected of each model within the budget, and what this machine does."""

    outlooks: list[Outlook]
    rates: Rates
    resident_bytes: int
    """Of the server with all of them as wholes, at its peak."""
    apart: bool
    """Whether models run in processes of their own, so that a server's memory is what the outlooks say."""

    def missing(self, budget: int) -> int:
        """Bytes by which the budget is too small; 0 where it is not."""
        need = min(self.resident_bytes, self.peak_bytes) if self.apart else self.resident_bytes
        return max(0, need - budget)

    @property
    def peak_bytes(self) -> int:
        """With one model in memory at a time, and one request."""
        return max(outlook.peak_bytes for outlook in self.outlooks)


def _ahead(
    admitted: list[tuple[Model, Admitted]], found: Sizing, settings: Config, nursery: Nursery, *, budget: int,
    sizes: tuple[int, ...] | None,
) -> _Ahead:  # fmt: skip
    from strongroom.outlook import request_of
    from strongroom.pacing import rates

    try:
        requests = [request_of(model.info.admission, sizes) for model, _ in admitted]
    except ValueError as exc:
        raise click.UsageError(f"--request: {exc}; `strongroom admit` shows which are admitted") from exc
    here = rates()
    outlooks = [
        _outlook(model, given, request, settings, nursery, budget=budget, rates=here)
        for (model, given), request in zip(admitted, requests, strict=True)
    ]
    apart = settings.security.isolation != "in_process"
    return _Ahead(outlooks, here, found.resident_bytes, apart)


def _outlook(
    model: Model, admitted: Admitted, request: tuple[tuple[int, ...], int, int], settings: Config, nursery: Nursery,
    *, budget: int, rates: Rates,
) -> Outlook:  # fmt: skip
    from strongroom.admission import ChildLimits
    from strongroom.forms import WORTH_BYTES
    from strongroom.models.parting import stage_limit
    from strongroom.outlook import COUNTED, SLACK, room_of, staged, whole
    from strongroom.rehearsal import stage_lengths

    sizes, operations, run_bytes = request
    room = room_of(budget, run_bytes)
    loaded = model.loaded_bytes
    if loaded > room and model.runs_bytes >= WORTH_BYTES:
        # With more in `loaded_bytes` a server would not cut it.
        room = min(room, max(0, 2 * model.runs_bytes - COUNTED - SLACK) // SLACK * SLACK)
        seconds = settings.limits.preparation_s
        limits = ChildLimits(wall_s=seconds, cpu_s=seconds, memory_bytes=settings.limits.admission_bytes)
        lengths = stage_lengths(admitted.onnx, nursery, limits=limits, limit=stage_limit(room))
        if len(lengths) > 1:
            return staged(
                lengths, room=room, run_bytes=run_bytes, operations=operations, sizes=sizes, rates=rates
            )
    return whole(loaded, room=room, run_bytes=run_bytes, operations=operations, sizes=sizes, rates=rates)


def _document(
    models: list[Model], found: Sizing, demand: Demand, *, budget: int | None, ahead: _Ahead | None
) -> dict[str, Any]:
    outlooks: list[Any] = [None] * len(models)
    if ahead is not None:
        outlooks = [outlook.to_json() for outlook in ahead.outlooks]
    return {
        "models": [
            {
                "name": model.name,
                "runs_bytes": model.runs_bytes,
                "loaded_bytes": model.loaded_bytes,
                "loading_bytes": model.loading_bytes,
                "run_bytes": model.run_bytes(demand),
                "rooms": [room.to_json() for room in model.info.admission.rooms],
                "within_budget": outlook,
            }
            for model, outlook in zip(models, outlooks, strict=True)
        ],
        "isolation": "in_process",
        **found.to_json(),
        "budget_bytes": budget,
        "fits": None if budget is None or ahead is None else not ahead.missing(budget),
        "rates": None if ahead is None else ahead.rates.to_json(),
    }


def _show(
    models: list[Model], found: Sizing, settings: Config, *, budget: int | None, ahead: _Ahead | None
) -> None:
    demand = _demand(settings)
    for model in models:
        click.echo(
            f"{model.name}: loaded {megabytes(model.loaded_bytes)}, while loading {megabytes(model.loading_bytes)}, "
            f"a request up to {megabytes(model.run_bytes(demand))} (limits.run_bytes bounds it)"
        )
    click.echo(f"server memory  {megabytes(found.resident_bytes)} at its peak")
    for part in found.parts:
        click.echo(f"  {part.what:<24} {megabytes(part.size)}")
    click.echo(f"               {megabytes(found.working_bytes)} of them for warm requests")
    click.echo(f"examining      {megabytes(found.examining_bytes)} more, in processes of their own")
    click.echo(
        f"enclave        {gramine_size(found.enclave_bytes)} ({megabytes(found.address_bytes)} of addresses), and as "
        "much again for each process that examines models"
    )
    click.echo(f"threads        {found.threads}")
    if budget is not None and ahead is not None:
        _show_ahead(models, ahead, budget)
    for part_of_epc in found.to_json()["epc"]:
        beyond = part_of_epc["pages_beyond"]
        word = f"{beyond} pages of the warm part do not fit" if beyond else "the warm part fits"
        click.echo(f"{part_of_epc['part']}: {megabytes(part_of_epc['bytes'])} for enclaves, {word}")
    if settings.security.isolation != "in_process":
        click.echo(
            f"settings say isolation = {settings.security.isolation!r}: what workers take is not counted; this is for "
            "in_process, which an enclave demands"
        )
    click.echo("SGX on Ice Lake servers and later has 8 to 512 GB a socket: nothing of this is paged there")


def _show_ahead(models: list[Model], ahead: _Ahead, budget: int) -> None:
    word = "fits"
    if missing := ahead.missing(budget):
        word = f"too small by {megabytes(missing)}"
    elif ahead.resident_bytes > budget:
        word = "fits, one request and one model at a time, with processes of their own for models"
    click.echo(f"{'budget':<14} {megabytes(budget)}: {word}")
    for model, outlook in zip(models, ahead.outlooks, strict=True):
        request = "x".join(map(str, outlook.sizes)) or "any"
        stages = (
            "whole" if outlook.stages == 1 else f"{outlook.stages} stages, {outlook.staying} of them stay"
        )
        click.echo(
            f"  {model.name}: {stages}; peak {megabytes(outlook.peak_bytes)}, a warm request ({request}) "
            f"{outlook.latency_s:.2g} s on this machine as it is, {outlook.free_s:.2g} s with two cores free"
        )
        if outlook.stages > 1 and not ahead.missing(budget):
            click.echo(
                f"    with limits.loaded_bytes = {outlook.loaded_bytes} and limits.partition_bytes = "
                f"{outlook.partition_bytes}"
            )


def _fill(path: Path, found: Sizing) -> None:
    """Sets the two values where they stand, and leaves every other line as it is."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidConfig(f"{path} cannot be read", code="config_unreadable") from exc
    values = {"enclave_size": f'"{gramine_size(found.enclave_bytes)}"', "max_threads": str(found.threads)}
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^{name} = [^#\n]*?(?=[ \t]*(?:#.*)?$)", f"{name} = {value}", text)
        if count != 1:
            raise InvalidConfig(
                f"{path}: expected one line `{name} = ...`, found {count}", code="config_malformed"
            )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be written", code="output_unwritable") from exc
