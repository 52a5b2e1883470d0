"""`strongroom size`: how much memory and how many threads a server with these models needs, for its enclave."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from strongroom.cli_admit import examiner_here, megabytes, read_model
from strongroom.errors import InvalidConfig, InvalidRequest
from strongroom.sizing import Demand, Model, Sizing, gramine_size, size
from strongroom.terminal import EXIT_OK, EXIT_REFUSED, show_json

if TYPE_CHECKING:
    from strongroom.config import Config

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


@click.command("size")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--config", "config_path", type=click.Path(path_type=Path), default=None, metavar="FILE",
              help="The server's configuration file: its limits decide how much runs at once.")  # fmt: skip
@click.option("--budget", type=_Bytes(), default=None, metavar="BYTES",
              help="Memory that there is, such as 250MB; exit code 10 where the server needs more.")  # fmt: skip
@click.option("--fill", type=click.Path(path_type=Path), default=None, metavar="FILE",
              help="Write enclave size and threads into FILE (deploy/gramine/values.toml).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def size_command(
    ctx: click.Context, files: tuple[Path, ...], config_path: Path | None, budget: int | None, fill: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Say how much memory, and how many threads, a server of these models needs.

    FILES are models; each is examined as at its upload. From what admission bounds, and the server's own part as it
    was measured, follow the peak of the server's memory, the size of an SGX enclave and how much of it older
    processors would have to page. Needs the `server` extra. Exit codes: 0; 10 a model is refused, or the budget is
    too small; 20 unusable input.
    """
    from strongroom.config import load_config

    settings = load_config(config_path)
    models = _examined(files, settings)
    found = size(models, _demand(settings))
    fits = budget is None or found.resident_bytes <= budget
    if fill is not None:
        _fill(fill, found)
    if as_json:
        show_json(_document(models, found, _demand(settings), budget=budget))
    else:
        _show(models, found, settings, budget=budget)
    ctx.exit(EXIT_OK if fits else EXIT_REFUSED)


def _examined(files: tuple[Path, ...], settings: Config) -> list[Model]:
    from strongroom.formats import HEAD_BYTES, detect
    from strongroom.server import admission_limits

    limits = admission_limits(settings)
    models = []
    with examiner_here() as examiner:
        for file in files:
            data = read_model(file, limits.model_bytes)
            count, format = len(data), detect(bytes(data[:HEAD_BYTES]))
            admitted = examiner.admit(data, format=format, limits=limits)
            models.append(
                Model(name=file.name, info=admitted.info, runs_bytes=len(admitted.onnx), upload_bytes=count)
            )
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


def _document(models: list[Model], found: Sizing, demand: Demand, *, budget: int | None) -> dict[str, Any]:
    return {
        "models": [
            {
                "name": model.name,
                "runs_bytes": model.runs_bytes,
                "loaded_bytes": model.loaded_bytes,
                "loading_bytes": model.loading_bytes,
                "run_bytes": model.run_bytes(demand),
                "rooms": [room.to_json() for room in model.info.admission.rooms],
            }
            for model in models
        ],
        "isolation": "in_process",
        **found.to_json(),
        "budget_bytes": budget,
        "fits": None if budget is None else found.resident_bytes <= budget,
    }


def _show(models: list[Model], found: Sizing, settings: Config, *, budget: int | None) -> None:
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
    for name, epc in (("budget", budget),) if budget is not None else ():
        word = (
            "fits" if found.resident_bytes <= epc else f"too small by {megabytes(found.resident_bytes - epc)}"
        )
        click.echo(f"{name:<14} {megabytes(epc)}: {word}")
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
