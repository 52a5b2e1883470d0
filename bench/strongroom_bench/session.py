"""What the measuring commands have in common: starting contenders, the result's head, ending everything."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from strongroom_bench import machine
from strongroom_bench.contender import Contender, Engine, Unable
from strongroom_bench.ours import OURS, Ours
from strongroom_bench.peer import open_peer
from strongroom_bench.results import Result
from strongroom_bench.schedule import FEWEST_ROUNDS, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says about every measurement."""

    plan: Plan
    against: tuple[str, ...]
    isolation: tuple[str, ...]
    """Levels of our server, each a contender of its own; empty: one, with the server's default."""
    target: str | None
    policy: Path | None
    key: Path | None
    cache: Path
    limits: Mapping[str, int]
    say: Callable[[str], None]
    batching: bool = False
    """Whether our server takes part once more, with models whose requests may share a run."""


def new_result(command: str, baseline: str, options: Options, cores: machine.Cores) -> Result:
    """A result without rows."""
    settings = {
        "rounds": options.plan.rounds,
        "warmups": options.plan.warmups,
        "cores": cores.to_json(),
        "threads": 1,
        "batch": 1,
        "target": options.target,
        "isolation_asked_for": list(options.isolation),
    }
    return Result(
        command=command,
        baseline=baseline,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.facts(),
        versions=machine.versions(),
        settings=settings,
        trial=options.plan.rounds < FEWEST_ROUNDS,
    )


def start_ours(
    options: Options,
    cores: machine.Cores,
    *,
    isolation: str | None = None,
    name: str = OURS,
    batching: bool = False,
) -> Ours:
    """Our server, or the target."""
    return Ours(
        batching=batching,
        name=name, cores=cores, isolation=isolation, limits=options.limits, target_url=options.target,
        policy=options.policy, key=options.key,
    )  # fmt: skip


def levels(options: Options) -> list[tuple[str, str | None]]:
    """(name, isolation) of each of our servers: the first is the headline, the others have their level in the name."""
    asked = options.isolation or (None,)
    return [(OURS if at == 0 else f"{OURS}-{level}", level) for at, level in enumerate(asked)]


@contextmanager
def contenders(
    result: Result, options: Options, cores: machine.Cores, *, bare: bool
) -> Iterator[Sequence[Contender]]:
    """Bare onnxruntime (where asked for), ours, then the peers; this process on the client's core meanwhile."""
    # As Ctrl-C: what was started is ended on the way out, instead of serving on without anybody.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with machine.staying_on(cores.client):
        yield from _contenders(result, options, cores, bare=bare)


def _contenders(
    result: Result, options: Options, cores: machine.Cores, *, bare: bool
) -> Iterator[Sequence[Contender]]:
    started: list[Contender] = []
    try:
        if bare:
            started.append(Engine("bare", "bare onnxruntime", cores=cores))
        for name, level in levels(options):
            options.say(f"starting our server ({level or 'its default isolation'})")
            started.append(start_ours(options, cores, isolation=level, name=name))
        if options.batching:
            options.say("starting our server once more, with batching")
            started.append(start_ours(options, cores, name=f"{OURS}-batching", batching=True))
        for name in options.against:
            options.say(f"preparing {name}")
            try:
                started.append(open_peer(name, cache=options.cache, cores=cores))
            except Unable as reason:
                result.miss(name, "", str(reason))
        yield started
        for one in started:
            about = {"name": one.name, "title": one.title, "version": one.version, "facts": one.facts}
            result.contenders.append(about)
        result.machine["load_at_end"] = machine.load()
    finally:
        for one in reversed(started):
            one.close()
