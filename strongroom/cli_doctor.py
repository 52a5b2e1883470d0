"""`strongroom doctor`: what this machine offers a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from strongroom.terminal import show_findings, show_json

if TYPE_CHECKING:
    from strongroom.doctor import Finding


@click.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE",
    help="Look at the endorsement files of this configuration, too.",
)  # fmt: skip
@click.option(
    "--endorsements", "endorsed", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Look at this file: what it is, until when it is good; may be repeated.",
)  # fmt: skip
@click.option(
    "--network", is_flag=True,
    help="Ask Intel's and AMD's services whether they answer; takes seconds. They see your address.",
)  # fmt: skip
@click.option("--pccs", metavar="URL", help="With --network: this PCCS instead of Intel's service.")
@click.option("--kds", metavar="URL", help="With --network: this KDS or mirror instead of AMD's service.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/doctor.schema.json).")
def doctor(
    config_path: Path | None, endorsed: tuple[Path, ...], network: bool, pccs: str | None, kds: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Say what this machine offers a server, what is missing, and how to get it. Changes nothing.

    Without --network nobody is asked; a machine without a network needs none of it. Exit code 0 whatever is found.
    """
    from dataclasses import replace

    from strongroom.config import load_config
    from strongroom.doctor import here
    from strongroom.surroundings import documents, kernel_synchronised, synchronisation

    if (pccs or kds) and not network:
        raise click.UsageError("--pccs and --kds go with --network")
    paths = endorsed
    if config_path is not None:
        paths = (*map(Path, load_config(config_path).endorsements), *endorsed)
    report = here()
    found = (*report.findings, synchronisation(kernel_synchronised))
    found += documents(paths, now=report.at)
    if network:
        found += _network(paths, pccs=pccs, kds=kds)
    report = replace(report, findings=found)
    if as_json:
        show_json({"platform": report.platform, "findings": [f.to_json() for f in report.findings]})
    else:
        show_findings(report)


def _network(paths: tuple[Path, ...], *, pccs: str | None, kds: str | None) -> tuple[Finding, ...]:
    from strongroom.client import SYSTEM_CLOCK
    from strongroom.endorsements import AMD_KDS, INTEL_PCS, HttpFetcher
    from strongroom.surroundings import EXAMPLE, WAIT_S, bundle_need, services

    fetcher = HttpFetcher(pccs=pccs or INTEL_PCS, kds=kds or AMD_KDS, timeout_s=WAIT_S - 1)
    return services(fetcher, need=bundle_need(paths) or EXAMPLE, now=SYSTEM_CLOCK.now())
