"""Runs the tests and mypy beside them: what `make check` and `make test` call.

    .venv/bin/python tools/suite.py [pytest's options]    # two pytest processes with half of the files each
    .venv/bin/python tools/suite.py -n 2 [...]            # one, which deals files out with pytest-xdist as it goes

1. Each half collects its own files only. pytest-xdist collects every test in every process and sends each result to a
   third: on two cores that took a third of the time of ten thousand short tests.
2. Files are dealt out by the seconds of `tests/seconds.json`, longest first, always to the half that has less so far:
   the same files give the same halves. One that is not listed yet counts as `UNLISTED`.
3. The first half's output is shown as it comes, what the others said after it, in order. The exit code is 0 if every
   one's was.
4. The halves share nothing: pytest gives each its own folder of temporary files.
5. Where servers are started, files take minutes and their time varies: there (`-n`) xdist's way wins.

`--record` writes the table from what each file took this time, for a machine with nothing else to do.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
TABLE: Final = ROOT / "tests" / "seconds.json"
MYPY: Final = [sys.executable, "-m", "mypy"]
HALVES: Final = 2
COLLECTED: Final = 0.1
"""Seconds that a file takes before its first test."""
UNLISTED: Final = 1.0
"""Seconds of a file that no run was recorded of."""


def shares(files: Mapping[str, float], *, count: int = HALVES) -> list[list[str]]:
    """Deals `files` (name -> seconds) out to `count` processes, longest first, each to the one with the least so far.

    Returns: the names of each share, sorted; together they are all of `files`, none twice.
    """
    dealt: list[list[str]] = [[] for _ in range(count)]
    taken = [0.0] * count
    for name, seconds in sorted(files.items(), key=lambda item: (-item[1], item[0])):
        least = taken.index(min(taken))
        dealt[least].append(name)
        taken[least] += seconds
    return [sorted(names) for names in dealt]


def files_of_tests(folder: Path = ROOT / "tests") -> list[str]:
    """Every file of tests below `folder`, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("test_*.py"))


def merged(reports: list[Path]) -> tuple[Counter[str], Counter[str], dict[str, float]]:
    """Outcomes, reasons of skips and seconds of each file, out of what conftest.py wrote for each half."""
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    never: set[str] = set()
    seconds: dict[str, float] = {}
    for path in reports:
        report = json.loads(path.read_text()) if path.exists() else {}
        outcomes.update(report.get("outcomes", {}))
        reasons.update(report.get("reasons", {}))
        never.update(report.get("never", ()))
        seconds.update(report.get("seconds", {}))
    return outcomes, reasons | Counter(never - reasons.keys()), seconds


def _show(reports: list[Path], *, record: bool) -> None:
    outcomes, reasons, seconds = merged(reports)
    print(f"\n{sum(reasons.values())} not exercised here, because:")
    for reason, count in sorted(reasons.items()):
        print(f"  {count} x {reason}")
    print("together: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    if record:
        rounded = {name: round(seconds.get(name, 0.0) + COLLECTED, 2) for name in files_of_tests()}
        TABLE.write_text(json.dumps(rounded, indent=0) + "\n")


def run(commands: Sequence[Sequence[str]]) -> list[int]:
    """Runs all of `commands` at once, shows what the first says as it comes and the others' words after it.

    Returns: their exit codes, in order.
    """
    codes = []
    with contextlib.ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
        running = [
            subprocess.Popen(
                command, cwd=ROOT, stdout=said[number] if number else None, stderr=subprocess.STDOUT
            )
            for number, command in enumerate(commands)
        ]
        for process, words in zip(running, said, strict=True):
            codes.append(process.wait())
            words.seek(0)
            sys.stdout.write(words.read().decode(errors="replace"))
            sys.stdout.flush()
    return codes


def main() -> int:
    """Runs everything and returns 0 if all of it passed, else 1."""
    record = "--record" in sys.argv
    options = [option for option in sys.argv[1:] if option != "--record"]
    if "-n" in options:
        return _code(run([[sys.executable, "-m", "pytest", *options], MYPY]))
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    dealt = shares({name: table.get(name, UNLISTED) for name in files_of_tests()})
    with tempfile.TemporaryDirectory(prefix="strongroom-suite-") as folder:
        reports = [Path(folder) / f"{number}.json" for number in range(HALVES)]
        commands = [
            [sys.executable, "-m", "pytest", "-p", "no:xdist", "--report", str(report), *options,
             *(f"tests/{name}" for name in names)]
            for report, names in zip(reports, dealt, strict=True)
        ]  # fmt: skip
        codes = run([*commands, MYPY])
        _show(reports, record=record)
    return _code(codes)


def _code(codes: list[int]) -> int:
    if any(codes):
        print(f"failed: exit codes {codes}, the last of them mypy's")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
