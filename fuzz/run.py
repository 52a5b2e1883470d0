"""Runs every fuzz target: `python fuzz/run.py [--minutes N] [NAME ...]`.

A target is a function `fuzz_<name>(data: bytes) -> None` in `fuzz/targets_*.py`. Its oracle, the same for all:
*a value or a `strongroom.errors.Error`, nothing else*; whatever else it raises is a finding. Inputs are mutations
of the seeds that a target's module offers as `SEEDS: dict[str, tuple[bytes, ...]]`, and of nothing where it offers
none. The run prints its seed; findings are written to `fuzz/findings/`.
"""

import argparse
import importlib
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B, 0x5B, 0x2D, 0x39)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to eight small changes: flips, boundary bytes, cuts, repeats, insertions."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.choice(INTERESTING)
            case 2:
                del out[at : at + rng.randint(1, 16)]
            case 3:
                out[at:at] = out[at : at + rng.randint(1, 64)]
            case 4:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                del out[at:]
    return bytes(out)


def targets() -> dict[str, tuple[Callable[[bytes], None], tuple[bytes, ...]]]:
    """Every target with its seeds."""
    sys.path.insert(0, str(HERE))
    found = {}
    for path in sorted(HERE.glob("targets_*.py")):
        module = importlib.import_module(path.stem)
        seeds = getattr(module, "SEEDS", {})
        for name, function in vars(module).items():
            if name.startswith("fuzz_") and callable(function):
                found[name] = (function, tuple(seeds.get(name, (b"",))))
    return found


def main() -> int:
    """Spreads the time evenly over the targets; exit 1 where one broke its oracle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--go-on", action="store_true", help="after a finding too")
    options = parser.parse_args()
    chosen = {n: t for n, t in targets().items() if not options.names or n in options.names}
    rng, broken = random.Random(options.seed), 0
    print(f"seed {options.seed}; {len(chosen)} targets; {options.minutes} minutes")
    for name, (function, seeds) in chosen.items():
        until, runs = time.monotonic() + options.minutes * 60 / len(chosen), 0
        while time.monotonic() < until:
            data = mutate(rng.choice(seeds), rng)
            runs += 1
            try:
                function(data)
            except Exception:
                broken += 1
                finding = HERE / "findings" / f"{name}-{options.seed}-{runs}"
                finding.parent.mkdir(exist_ok=True)
                finding.write_bytes(data)
                print(f"{name}: broke its oracle, see {finding}")
                traceback.print_exc()
                if not options.go_on:
                    break
        print(f"{name}: {runs} inputs")
    if (runs := sys.modules.get("targets_runs")) is not None:
        for (case, end, code), times in sorted(runs.SEEN.items(), key=lambda item: -item[1]):
            print(f"{times:8} {case}: {end} {code}")
        print(f"operators that ran: {len(runs.RAN)}; that never did: {' '.join(sorted(runs.never()))}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
