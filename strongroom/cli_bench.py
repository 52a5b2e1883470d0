"""`strongroom bench`: hands over to the benchmarks, which are a distribution of their own (ADR 0013).

No server's image contains them and no measurement covers them; this is all that the measured package knows of them.
"""

from __future__ import annotations

import click

from strongroom.errors import InvalidRequest


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, add_help_option=False
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND] [OPTIONS]...")
def bench(words: tuple[str, ...]) -> None:
    """Measure what confidentiality costs (needs the extra `bench`).

    `strongroom bench --help` lists its commands; docs/benchmarks.md explains them.
    """
    try:
        from strongroom_bench.commands import main
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] == "strongroom":
            raise
        raise InvalidRequest(
            f"the benchmarks are not installed ({exc.name} is missing): pip install 'strongroom[bench]'",
            code="bench_not_installed",
        ) from exc
    main.main(args=list(words), prog_name="strongroom bench", standalone_mode=False)
