"""`bench attest`: what a client waits for before its first byte.

*Connect*: `strongroom.connect` to a server, a new connection every time, up to the verdict; beside it a plain TLS 1.3
connection to the same server with one request and answer. *Verification*: the evidence of such a connection judged
again, offline, as `strongroom.appraise_bundle` does. *Import*: `import strongroom` and `connect` in a fresh process,
less starting one that imports nothing. (What each format of real evidence takes: `bench/attest.py` in the repository.)
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import strongroom
from strongroom_bench import codec
from strongroom_bench.ours import Ours
from strongroom_bench.results import Result
from strongroom_bench.schedule import Measure, Plan, take_turns

PLAIN: Final = "tls"
LIMITS: Final = {"evidence_per_minute": 1_000_000}
"""Of the server: connecting again and again from one address is what is measured."""

Say = Callable[[str], None]


def measure(result: Result, ours: Ours, plan: Plan, *, say: Say = lambda _line: None) -> None:
    """Adds the rows `connect`, `verify` and `import`."""
    say("connecting")
    turns = take_turns({PLAIN: _plain(ours), "strongroom": _connect(ours)}, plan)
    result.add("connect", "latency", "s", turns)
    say("verifying")
    result.add("verify", "latency", "s", take_turns({"strongroom": _verify(ours)}, plan))
    say("importing")
    result.add("import", "latency", "s", take_turns({"strongroom": _import}, plan))


def _connect(ours: Ours) -> Measure:
    def once() -> float:
        started = time.perf_counter()
        client = strongroom.connect(ours.url, policy=ours.policy)
        seconds = time.perf_counter() - started
        client.close()
        return seconds

    return once


def _plain(ours: Ours) -> Measure:
    parts = urlsplit(ours.url)

    def once() -> float:
        started = time.perf_counter()
        context = ours.verified_context()
        codec.fetch_header(
            parts.hostname or "", parts.port or 443, "/v2/health/live", "Content-Length", context
        )
        return time.perf_counter() - started

    return once


def _verify(ours: Ours) -> Measure:
    bundle = ours.client.bundle
    policy = strongroom.parse_policy(ours.policy.read_text(encoding="utf-8"))

    def once() -> float:
        started = time.perf_counter()
        verdict = strongroom.appraise_bundle(bundle, policy=policy, now=bundle.verified_at)
        seconds = time.perf_counter() - started
        if not verdict.passed:
            raise RuntimeError("the evidence that was accepted is refused now")
        return seconds

    return once


def _import() -> float:
    bare, whole = _start("pass"), _start("import strongroom; strongroom.connect")
    return max(whole - bare, 1e-6)


def _start(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started
