"""kill -9 at random moments of a process that uploads and deletes.

What was acknowledged stays, nothing else changes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import store_worker

WORKER = Path(store_worker.__file__)
KILLS = 220
SEED = 20261123


@pytest.mark.slow
def test_220_kills_lose_nothing_acknowledged_and_leave_nothing_half(tmp_path: Path) -> None:
    """After each kill: every acknowledged model with its bytes and SHA-256, no deleted one, no orphan, no
    half change."""
    run = subprocess.run(
        [sys.executable, WORKER, "drive", tmp_path / "store", str(SEED), str(KILLS)],
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    seen = json.loads(run.stdout)
    print(seen)
    assert seen["kills"] == KILLS
    # Not vacuous: changes went through, and kills came in the middle of changes.
    assert seen["uploads"] > 20 and seen["deletes"] > 5
    assert seen["in_flight_absent"] + seen["in_flight_present"] > KILLS // 8


@pytest.mark.slow
def test_a_worker_of_its_own_is_killed_and_its_store_opens(tmp_path: Path) -> None:
    """The same with a process that was started, not forked.

    Its acknowledged lines are what the store holds.
    """
    truth = store_worker.Truth()
    for seed in range(3):
        with subprocess.Popen(
            [sys.executable, WORKER, "work", tmp_path / "store", str(seed)], stdout=subprocess.PIPE
        ) as worker:
            assert worker.stdout is not None
            lines = [worker.stdout.readline() for _ in range(10 + 7 * seed)]
            worker.send_signal(signal.SIGKILL)
            lines += worker.stdout.readlines()
        started = truth.acknowledge(b"".join(lines).decode().splitlines())
        with store_worker.open_store(tmp_path / "store", store_worker.anchored(tmp_path / "store")) as store:
            truth.compare(store, started)
    assert truth.counts["uploads"] > 10
