"""The heap of processes that load and run models: room in huge pages, holes given up. Each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom import heap, launch

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or heap._libc is None, reason="not exercised here: glibc on Linux"
)

HEAD = """
import ctypes
from pathlib import Path
from strongroom import heap, kernel
c = heap._libc
def huge(first, length):  # bytes in huge pages below an address and its length
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            start, end = (int(x, 16) for x in words[0].split("-"))
            inside = start < first + length and end > first
        elif inside and words[0] == "AnonHugePages:":
            found += int(words[1]) << 10
    return found
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
def written(size):
    address = c.malloc(size)
    ctypes.memset(address, 1, size)
    return address
MB = 1 << 20
"""
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def run(body: str, **environment: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(
    not THP.exists() or "[never]" in THP.read_text(),
    reason="not exercised here: no huge pages in this system",
)
def test_what_is_written_in_the_room_lies_in_huge_pages() -> None:
    found = run("""
room = heap.spacious(24 * MB)
before = huge(*room)
address = written(16 * MB)
print(room.first - 4096 <= address < room.first + room.length, before, huge(*room) >= 12 * MB)
""")
    assert found == "True 0 True"


def test_room_takes_no_memory_before_it_is_written() -> None:
    assert run("before = resident(); heap.spacious(1 << 30); print(resident() - before < 4 * MB)") == "True"


def test_where_there_is_no_room_nothing_happens() -> None:
    """A limit of address space, as templates have."""
    found = run("""
import resource
size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + 64 * MB, size + 64 * MB))
room = heap.spacious(1 << 30)
heap.loaded(room)
heap.for_runs()
print(room, bool(written(MB)))
""")
    assert found == "Room(first=0, length=0) True"


def test_what_loading_left_goes_back_and_is_not_used_again() -> None:
    found = run("""
room = heap.spacious(32 * MB)
before = resident()
holes = [written(4 * MB) for _ in range(4)]
last = written(64)  # what stays lies behind
for hole in holes: c.free(hole)
heap.loaded(room)
gone = resident() - before < 3 * MB
heap.for_runs()
blocks = [c.malloc(MB) for _ in range(8)]
print(gone, all(block > last for block in blocks))
""")
    assert found == "True True"


def test_what_a_run_freed_stays_for_the_next_within_bounds() -> None:
    """16 MB of it: without room everything would go back, and without a bound nothing."""
    found = run("""
heap.loaded(heap.spacious(4 * MB))
heap.for_runs()
before = resident()
c.free(written(8 * MB))
kept = resident() - before
blocks = [written(8 * MB) for _ in range(10)]
for block in reversed(blocks): c.free(block)
c.free(written(64 * MB))
print(kept >= 6 * MB, resident() - before <= 2 * heap.RUN_BYTES + 4 * MB)
""")
    assert found == "True True"


@pytest.mark.parametrize("asked", [True, False])
def test_threads_find_what_others_have_freed(asked: bool) -> None:
    """Without asking, each large block of each run is fresh memory: a fault for every page."""
    if not asked and THP.exists() and "[always]" in THP.read_text():
        pytest.skip("not exercised here: all memory is in huge pages, which hide the faults")
    found = run(
        f"""
import resource, threading
if {asked}:
    heap.for_threads()
faults = []
def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for block in [written(8 * MB) for _ in range(2)]:
        c.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
for _ in range(3):
    one = threading.Thread(target=use)
    one.start()
    one.join()
print(faults[-1] < 1000)
""",
        **{
            name: value
            for name, value in (launch.CHILD | launch.SERVER).items()
            if name.startswith("MALLOC_")
        },
    )
    assert found == str(asked)
