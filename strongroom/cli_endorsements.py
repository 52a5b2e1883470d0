"""The options of commands that verify evidence: endorsements in files, and where to fetch what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from strongroom.endorsements import Fetcher

_F = TypeVar("_F", bound=Callable[..., Any])


def endorsement_options(command: _F) -> _F:
    """Adds the options; the command takes them as `endorsed` (paths) and as keywords for `fetcher_of`."""
    files = click.option(
        "--endorsements", "endorsed", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
        help="DCAP bundle, certificates, revocation list, event log, release manifest; may be repeated.",
    )  # fmt: skip
    fetch = click.option(
        "--fetch", is_flag=True,
        help="Fetch what is missing from Intel or AMD, who then know which platform you ask about.",
    )  # fmt: skip
    pccs = click.option("--pccs", metavar="URL", help="With --fetch: this PCCS instead of Intel's service.")
    kds = click.option(
        "--kds", metavar="URL", help="With --fetch: this KDS or mirror instead of AMD's service."
    )
    cache = click.option(
        "--cache", type=click.Path(path_type=Path), metavar="DIR",
        help="With --fetch or --offline: keep what was fetched there, and look there first.",
    )  # fmt: skip
    offline = click.option(
        "--offline", is_flag=True, help="With --cache: use what lies there, fetch nothing."
    )
    for option in (offline, cache, kds, pccs, fetch, files):
        command = option(command)
    return command


def fetcher_of(
    *, fetch: bool, pccs: str | None, kds: str | None, cache: Path | None, offline: bool
) -> Fetcher | None:
    """The source that the options name, None where nothing is to be fetched. Options that would do nothing are refused:
    whoever gives them expects something.
    """
    if fetch and offline:
        raise click.UsageError("--fetch and --offline exclude each other")
    if (pccs or kds) and not fetch:
        raise click.UsageError("--pccs and --kds go with --fetch")
    if offline and cache is None:
        raise click.UsageError("--offline goes with --cache: there is nothing else to look at")
    if cache is not None and not (fetch or offline):
        raise click.UsageError("--cache goes with --fetch or --offline")
    if not fetch and not offline:
        return None
    from strongroom.endorsements import AMD_KDS, INTEL_PCS, Cache, HttpFetcher, Offline

    source = HttpFetcher(pccs=pccs or INTEL_PCS, kds=kds or AMD_KDS) if fetch else Offline()
    return source if cache is None else Cache(cache, source)
