"""Settings of the processes that run models."""

from __future__ import annotations

from dataclasses import dataclass

from strongroom.platform_settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """`[workers]`: processes that run models, and how much one run takes. Not for `isolation = "in_process"`."""

    processes: int = setting(
        64,
        "Processes that run models, of all models and callers together, idle ones included; above it the one not "
        "used for longest ends. Each holds a few megabytes of its own while idle.",
        unit="processes",
        low=1,
        high=10_000,
    )
    run_bytes: int = setting(
        8 << 30,
        "Memory of one run, where admission bounds it by more or not at all. Most models are bounded by less.",
        unit="bytes",
        low=16 << 20,
        high=1 << 44,
    )
    idle_bytes: int = setting(
        64 << 20,
        "Memory that a process may hold after a run, beyond what its model took when it was loaded; one that holds "
        "more ends.",
        unit="bytes",
        low=4 << 20,
        high=1 << 44,
    )
    group_bytes: int = setting(
        0,
        "Memory of all these processes together, where the server was given a cgroup to make groups in (Linux; "
        "systemd's `Delegate=`); 0: all but an eighth of what the machine, or the server's own group, has.",
        unit="bytes",
        low=0,
        high=1 << 44,
    )
    run_shortest_s: int = setting(
        10,
        "Time that any run may take; what admission bounds it by comes on top. Then its process is killed.",
        unit="seconds",
        low=1,
        high=3600,
    )
    run_longest_s: int = setting(
        300,
        "Time that no run, and no loading of a model, may take longer than.",
        unit="seconds",
        low=1,
        high=86_400,
    )
