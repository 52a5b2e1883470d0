"""`strongroom bench`: one function per sub-command. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from strongroom_bench import (
    attested,
    catalogue,
    examples,
    footprint,
    latency,
    memory,
    oversubscription,
    partition,
    precision,
    throughput,
)
from strongroom_bench.contender import Unable, unknown
from strongroom_bench.machine import Cores, choose_cores, staying_on
from strongroom_bench.merge import merge
from strongroom_bench.ours import Ours
from strongroom_bench.peer import NAMES
from strongroom_bench.results import COMMANDS, Result, read, write
from strongroom_bench.schedule import PAPER_PLAN, Plan
from strongroom_bench.session import Options, contenders, levels, new_result, start_ours
from strongroom_bench.tables import render

CACHE: Final = Path.home() / ".cache" / "strongroom-bench"
SMALL: Final = ("trees30", "mlp", "trees500")
PRECISE: Final = ("trained", "resnet50", "bert_base")
BUDGETS: Final = ("100%", "75%", "50%", "30%")
QUICK: Final = ("trees30", "squeezenet", "resnet50")
MANY: Final = {
    "concurrent_requests": 512,
    "concurrent_requests_per_caller": 512,
    "waiting_runs_per_caller": 512,
}
"""`[limits]` of our server for `throughput`, whose connections are one caller's; 32 by default."""
_F = TypeVar("_F", bound=Callable[..., Any])


def _names(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _peers(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    names = _names(ctx, parameter, value)
    for name in names:
        if name not in NAMES:
            raise unknown(name, NAMES)
    return names


_against = click.option(
    "--against", default="", callback=_peers, metavar="NAME,...",
    help=f"Other servers and engines, installed on demand: {', '.join(NAMES)}.",
)  # fmt: skip
_cache = click.option(
    "--cache", type=click.Path(path_type=Path), default=CACHE, show_default="~/.cache/strongroom-bench",
    metavar="DIR", help="Where models and the environments of others are kept.",
)  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_out = click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="Write COMMAND.json there, and report.html with charts.",
)  # fmt: skip
_rounds = click.option(
    "--rounds", type=click.IntRange(min=2), default=PAPER_PLAN.rounds, show_default=True, metavar="N",
    help="Rounds that count; the method asks for 20 at least.",
)  # fmt: skip
_warmups = click.option(
    "--warmups", type=click.IntRange(min=0), default=PAPER_PLAN.warmups, show_default=True, metavar="N",
    help="Rounds before them.",
)  # fmt: skip
_isolation = click.option(
    "--isolation", default="", callback=_names, metavar="LEVEL,...",
    help="Of our server: owner, request, model, in_process; several take part side by side. Else its default.",
)  # fmt: skip
_target = click.option(
    "--target", metavar="URL", help="Measure this server instead of starting one; needs --policy."
)
_policy = click.option(
    "--policy", type=click.Path(path_type=Path, exists=True), metavar="FILE", help="Policy that accepts the target."
)  # fmt: skip
_key = click.option(
    "--key", type=click.Path(path_type=Path, exists=True), metavar="FILE",
    help="Key that may upload to the target; else a new one.",
)  # fmt: skip


def _models(default: str) -> Callable[[_F], _F]:
    return click.option(
        "--models", default=default, show_default=True, callback=_names, metavar="NAME,...",
        help="Models, or groups of them: paper, tabular, trained, tiny.",
    )  # fmt: skip


def _measuring(command: _F) -> _F:
    """The options of every measurement with a server of ours."""
    for option in (_json, _out, _cache, _warmups, _rounds, _key, _policy, _target, _isolation):
        command = option(command)
    return command


def _options(
    *, rounds: int, warmups: int, isolation: tuple[str, ...] = (), target: str | None, policy: Path | None,
    key: Path | None, cache: Path, against: tuple[str, ...] = (), limits: dict[str, int] | None = None,
    batching: bool = False,
) -> Options:  # fmt: skip
    return Options(
        plan=Plan(rounds=rounds, warmups=warmups), against=against, isolation=isolation, target=target, policy=policy,
        key=key, cache=cache, limits=limits or {}, say=_say, batching=batching,
    )  # fmt: skip


def _say(line: str) -> None:
    click.echo(f"  {line}", err=True)


def _show(result: Result, *, as_json: bool, out: Path | None) -> None:
    if out is not None:
        click.echo(f"wrote {write(result, out)}", err=True)
        _report(out)
    click.echo(json.dumps(result.to_json(), indent=1) if as_json else render(result))


def _report(folder: Path) -> None:
    from strongroom_bench.report import write_report

    paths = [folder / f"{command}.json" for command in COMMANDS]
    path = write_report(folder, [read(p) for p in paths if p.exists()])
    click.echo(f"wrote {path}", err=True)


@click.group(invoke_without_command=True, context_settings={"max_content_width": 100})
@click.option(
    "--merge", "merged", nargs=2, type=click.Path(path_type=Path), metavar="NATIVE TEE",
    help="Print the paper's tables from two results of `warm` or `cold`: of a machine without a TEE, and of one with.",
)  # fmt: skip
@click.pass_context
def main(ctx: click.Context, merged: tuple[Path, Path] | None) -> None:
    """Measure what confidentiality costs, beside bare onnxruntime and other servers (docs/benchmarks.md)."""
    if merged is not None:
        click.echo(merge(read(merged[0]), read(merged[1])))
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_models("paper,tabular")
def models(folder: Path, models: tuple[str, ...]) -> None:
    """Make the models in FOLDER: true architectures and sizes, made-up weights. Lists trained ones installed."""
    for workload in catalogue.select(models, folder):
        click.echo(f"{workload.name:20} {workload.size:>12,} bytes  {workload.title}")
    for workload in catalogue.trained():
        click.echo(
            f"{workload.name:20} {workload.size:>12,} bytes  {workload.title}; trained, in {workload.path}"
        )


def _latency(
    command: str, models: tuple[str, ...], options: Options, *, cold: bool = False, dropping: bool = False
) -> Result:
    cores = choose_cores()
    result = new_result(command, "bare", options, cores)
    result.settings["drop_caches"] = dropping
    chosen = catalogue.select(models, options.cache / "models")
    with contenders(result, options, cores, bare=True) as started:
        latency.compare(result, chosen, started, options.plan, cold=cold, dropping=dropping, say=_say)
    return result


@main.command()
@_models("paper")
@_against
@_measuring
def warm(models: tuple[str, ...], as_json: bool, out: Path | None, **options: Any) -> None:
    """Warm latency of one request, against bare onnxruntime (the paper's Tables 2 and 3)."""
    _show(_latency("warm", models, _options(**options)), as_json=as_json, out=out)


@main.command()
@_models("paper")
@_against
@click.option(
    "--drop-caches", is_flag=True,
    help="Drop the kernel's file caches before every run, as the paper does; needs root.",
)  # fmt: skip
@_measuring
def cold(models: tuple[str, ...], drop_caches: bool, as_json: bool, out: Path | None, **options: Any) -> None:
    """Cold start from the sealed store, against bare onnxruntime on the plain file (the paper's Table 4)."""
    result = _latency("cold", models, _options(**options), cold=True, dropping=drop_caches)
    _show(result, as_json=as_json, out=out)


def _rates(
    models: tuple[str, ...], options: Options, *, command: str, connections: tuple[int, ...]
) -> Result:
    cores = choose_cores()
    result = new_result(command, "strongroom", options, cores)
    chosen = catalogue.select(models, options.cache / "models")
    with contenders(result, options, cores, bare=False) as started:
        if command == "overload":
            throughput.overload(result, chosen, started, options.plan, connections=connections[0], say=_say)
        else:
            throughput.compare(result, chosen, started, options.plan, connections=connections, say=_say)
    return result


@main.command("throughput")
@_models(",".join(SMALL))
@click.option(
    "--connections", default=",".join(map(str, throughput.CONNECTIONS)), show_default=True, callback=_names,
    metavar="N,...", help="Connections at once.",
)  # fmt: skip
@click.option(
    "--batching", is_flag=True, help="Our server once more, with models whose requests may share a run."
)
@_against
@_measuring
def throughput_command(
    models: tuple[str, ...], connections: tuple[str, ...], as_json: bool, out: Path | None, **options: Any
) -> None:
    """Requests per second of small models, on 1 to 64 connections."""
    counts = tuple(_count(word) for word in connections)
    chosen = _options(**options, limits=MANY)
    _show(_rates(models, chosen, command="throughput", connections=counts), as_json=as_json, out=out)


def _count(word: str) -> int:
    if not word.isdigit() or not 1 <= int(word) <= 4096:
        raise click.BadParameter(f"expected a number of connections, 1 to 4096, got {word!r}")
    return int(word)


@main.command("overload")
@_models("trees30")
@click.option("--connections", type=click.IntRange(1, 4096), default=throughput.OVERLOAD, show_default=True)
@_against
@_measuring
def overload_command(
    models: tuple[str, ...], connections: int, as_json: bool, out: Path | None, **options: Any
) -> None:
    """Behaviour with far more connections than a server takes: before, meanwhile and afterwards."""
    result = _rates(models, _options(**options), command="overload", connections=(connections,))
    _show(result, as_json=as_json, out=out)


def _attest(options: Options) -> Result:
    cores = choose_cores()
    result = new_result("attest", attested.PLAIN, options, cores)
    with contenders(result, options, cores, bare=False) as started:
        ours = next(one for one in started if isinstance(one, Ours))
        attested.measure(result, ours, options.plan, say=_say)
    return result


@main.command("attest")
@_measuring
def attest_command(as_json: bool, out: Path | None, **options: Any) -> None:
    """Attested connect against a plain TLS connection, verification alone, and import."""
    _show(_attest(_options(**options, limits=attested.LIMITS)), as_json=as_json, out=out)


def _footprint(options: Options) -> Result:
    result = new_result("footprint", "strongroom", options, choose_cores())
    result.trial = False  # nothing is timed
    footprint.measure(result, against=options.against, cache=options.cache)
    return result


@main.command("footprint")
@_against
@_cache
@_json
@_out
@click.option(
    "--tree", type=click.Path(path_type=Path), metavar="DIR",
    help="Write the pruned environment into this new folder: what a TEE's image needs besides the interpreter.",
)  # fmt: skip
def footprint_command(
    against: tuple[str, ...], cache: Path, as_json: bool, out: Path | None, tree: Path | None
) -> None:
    """Size of what must be trusted, component by component (the paper's Figure 1)."""
    if tree is not None:
        if tree.exists():
            raise click.ClickException(f"{tree} is there already and is left as it is")
        _say(f"wrote {footprint.write_tree(tree) / 1e6:.1f} MB to {tree}")
    options = _options(
        rounds=1, warmups=0, target=None, policy=None, key=None, cache=cache, against=against
    )  # fmt: skip
    _show(_footprint(options), as_json=as_json, out=out)


def _precision(models: tuple[str, ...], options: Options) -> Result:
    cores = choose_cores()
    result = new_result("precision", precision.BASELINE, options, cores)
    networks = examples.known(models)
    with staying_on(cores.client):
        ours = start_ours(options, cores, isolation=levels(options)[0][1])
        try:
            precision.compare(
                result, networks, ours, options.plan, cores=cores, models=options.cache / "models", say=_say
            )
        finally:
            ours.close()
    return result


@main.command("precision")
@click.option(
    "--models", default=",".join(PRECISE), show_default=True, callback=_names, metavar="NAME,...",
    help="Networks, or groups of them: trained, paper, tabular, tiny.",
)  # fmt: skip
@_measuring
def precision_command(models: tuple[str, ...], as_json: bool, out: Path | None, **options: Any) -> None:
    """Latency and accuracy against precision: fp32, fp16, int8 without and with a calibration set."""
    _show(_precision(models, _options(**options)), as_json=as_json, out=out)


def _memory(models: tuple[str, ...], options: Options) -> Result:
    cores = choose_cores()
    result = new_result("memory", "strongroom", options, cores)
    chosen = catalogue.select(models, options.cache / "models")
    result.trial = False  # a peak is not a time: it does not scatter with the machine's load
    level = levels(options)[0][1]
    memory.measure(result, chosen, lambda: start_ours(options, cores, isolation=level), say=_say)
    return result


@main.command("memory")
@_models("paper")
@_isolation
@_cache
@_json
@_out
def memory_command(
    models: tuple[str, ...], isolation: tuple[str, ...], cache: Path, as_json: bool, out: Path | None
) -> None:
    """Peak resident memory of our server while one model is uploaded, and while it is served."""
    options = _options(
        rounds=1, warmups=0, isolation=isolation, target=None, policy=None, key=None, cache=cache
    )
    _show(_memory(models, options), as_json=as_json, out=out)


def _partition(
    models: tuple[str, ...], budgets: tuple[str, ...], options: Options, *, stages: int | None,
    batches: tuple[int, ...], oversubscribe: int | None,
) -> Result:  # fmt: skip
    cores = Cores(None, None)
    result = new_result("partition", partition.WHOLE, options, cores)
    for workload in catalogue.select(models, options.cache / "models"):
        for budget in [partition.budget_of(word, workload) for word in budgets]:
            loaded = 8 << 30 if oversubscribe is None else oversubscription.loaded_bytes(budget)
            limits = {"partition_bytes": budget.bytes, "loaded_bytes": loaded}
            ours = start_ours(replace(options, limits=limits), cores)
            try:
                if oversubscribe is None:
                    partition.measure(
                        result, workload, ours, budget, stages=stages, rounds=options.plan.rounds, batches=batches,
                        say=_say,
                    )  # fmt: skip
                else:
                    oversubscription.measure(
                        result, workload, ours, budget, times=oversubscribe, stages=stages,
                        rounds=options.plan.rounds, say=_say,
                    )  # fmt: skip
            except Unable as reason:
                result.miss("strongroom", f"{workload.name}, {budget.word}", str(reason))
            finally:
                ours.close()
    return result


@main.command("partition")
@_models("encoder_830mb")
@click.option("--room", default=100, show_default=True, metavar="MB",
              help="Memory of a model in stages (`limits.partition_bytes`).")  # fmt: skip
@click.option("--budgets", default="", callback=_names, metavar="BUDGET,...",
              help="Several in place of --room, a server for each: 75MB, or 50% of what the whole takes.")  # fmt: skip
@click.option("--stages", type=click.IntRange(2), metavar="N",
              help="Stages that it is cut into, or fewer; else as many as the budget wants.")  # fmt: skip
@click.option("--batches", default="4", show_default=True, callback=_names, metavar="ROWS,...",
              help="Rows of the requests that show what a batch saves.")  # fmt: skip
@click.option("--rounds", default=10, show_default=True, help="Requests of each, in turns.")
@click.option("--oversubscribe", type=click.IntRange(2, 16), metavar="N",
              help="Instead: several models that want N times the memory of all; --rounds times each.")  # fmt: skip
@_cache
@_json
@_out
def partition_command(
    models: tuple[str, ...], room: int, budgets: tuple[str, ...], stages: int | None, batches: tuple[str, ...],
    rounds: int, oversubscribe: int | None, cache: Path, as_json: bool, out: Path | None,
) -> None:  # fmt: skip
    """A model in stages against the whole, on one server: latency, memory, and what a batch saves, by budget."""
    options = _options(rounds=rounds, warmups=1, target=None, policy=None, key=None, cache=cache)
    rows = tuple(map(_count, batches))
    result = _partition(
        models, budgets or (f"{room}MB",), options, stages=stages, batches=rows, oversubscribe=oversubscribe
    )
    _show(result, as_json=as_json, out=out)


@main.command()
@_json
@_out
@_cache
def quick(as_json: bool, out: Path | None, cache: Path) -> None:
    """Ours, bare onnxruntime and the paper's Flask stack on three models, in less than two minutes."""
    options = _options(
        rounds=20, warmups=5, target=None, policy=None, key=None, cache=cache, against=("flask",)
    )  # fmt: skip
    _show(_latency("warm", QUICK, options), as_json=as_json, out=out)


@main.command("all")
@_against
@_measuring
@click.pass_context
def all_command(
    ctx: click.Context, /, out: Path | None, against: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Every measurement one after the other, into one report; hours on a busy machine. Wants --out."""
    if out is None:
        raise click.UsageError("--out says where the report goes", ctx)
    plain = _options(**options, against=against)
    _show(_latency("warm", ("paper", "trees30"), plain), as_json=as_json, out=out)
    _show(_latency("cold", ("paper",), plain, cold=True), as_json=as_json, out=out)
    many = _options(**options, against=against, limits=MANY)
    _show(
        _rates(SMALL, many, command="throughput", connections=throughput.CONNECTIONS),
        as_json=as_json,
        out=out,
    )
    _show(
        _rates(("trees30",), plain, command="overload", connections=(throughput.OVERLOAD,)),
        as_json=as_json,
        out=out,
    )
    _show(_attest(_options(**options, limits=attested.LIMITS)), as_json=as_json, out=out)
    _show(_footprint(plain), as_json=as_json, out=out)
    _show(_precision(PRECISE, plain), as_json=as_json, out=out)
    if plain.target is None:
        _show(_memory(("paper",), plain), as_json=as_json, out=out)
        staged = _partition(("resnet50",), BUDGETS, plain, stages=None, batches=(4, 8), oversubscribe=None)
        _show(staged, as_json=as_json, out=out)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def report(folder: Path) -> None:
    """Write report.html from the results that lie in FOLDER."""
    _report(folder)
