"""Writes requirements.lock: every version with every hash, for Python 3.11 to 3.13, Linux and macOS, in one file.

Needs `uv` on the path. The file has five sections; `make demo` installs the first, `make test` the first three, and
the fourth (a server on a TPM; it is built from source) where libtss2 is installed; `make bench-quick` and
`make bench-report` the first and the last. With `--peers` it writes the requirements of the benchmarks' peers instead.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILE = ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate",
           "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]  # fmt: skip


def compiled(*extra: str) -> dict[str, str]:
    """Runs uv and returns requirement line -> the whole pinned block."""
    text = subprocess.run([*COMPILE, *extra], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    blocks: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            current = line
        if current:
            blocks[current] = blocks.get(current, "") + line + "\n"
    return blocks


PEERS = ROOT / "bench" / "strongroom_bench" / "peers"
HEAD = "# Written by `tools/lock.py --peers` from requirements.in; installed with --no-deps and --require-hashes.\n"


def peers() -> None:
    """Writes `requirements.txt` of each peer: exact versions of everything, for the Python that runs this.

    A line of requirements.in marked `# alone` is taken as it stands, without what it requires.
    """
    for source in sorted(PEERS.glob("*/requirements.in")):
        lines = source.read_text().splitlines()
        alone = [line.partition("#")[0].strip() for line in lines if "# alone" in line]
        rest = "\n".join(line for line in lines if "# alone" not in line)
        options = [o for o in COMPILE if o not in ("--universal", "--generate-hashes")]
        done = subprocess.run(
            [*options, "-"], check=True, capture_output=True, text=True, cwd=ROOT, input=rest
        )
        pinned = "".join(f"{line}\n" for line in alone) + done.stdout
        source.with_suffix(".txt").write_text(HEAD + hashed(pinned))


def hashed(pinned: str) -> str:
    """Exact versions -> the same with every hash, for the Python that runs this."""
    options = [o for o in COMPILE if o != "--universal"]
    return subprocess.run(
        [*options, "--no-deps", "-"], check=True, capture_output=True, text=True, cwd=ROOT, input=pinned
    ).stdout


def pinned_to(blocks: dict[str, str], folder: str) -> list[str]:
    """The options that keep a further section to the versions of earlier ones."""
    pins = Path(folder) / "pins.txt"
    pins.write_text("\n".join(line.rstrip(" \\") for line in blocks) + "\n")
    return ["--constraint", str(pins)]


def main() -> int:
    if sys.argv[1:] == ["--peers"]:
        peers()
        return 0
    demo = compiled("requirements.in")
    with tempfile.TemporaryDirectory() as folder:
        everything = compiled("requirements.in", "requirements-dev.in", *pinned_to(demo, folder))
    dev = {k: v for k, v in everything.items() if k not in demo}
    models = compiled("--no-deps", "requirements-models.in")
    head = "# Written by tools/lock.py from requirements*.in; do not edit.\n"
    with tempfile.TemporaryDirectory() as folder:
        tpm = compiled("requirements-tpm.in", *pinned_to(everything, folder))
        charts = compiled("requirements-bench.in", *pinned_to(everything, folder))
    parts = {
        "demo": demo,
        "development": dev,
        "trained models for the tests": models,
        "a server on a TPM": {k: v for k, v in tpm.items() if k not in everything},
        "the benchmarks' charts": {k: v for k, v in charts.items() if k not in demo},
    }
    text = "".join(f"# --- {title}\n{''.join(blocks.values())}" for title, blocks in parts.items())
    (ROOT / "requirements.lock").write_text(head + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
