"""Writes requirements.lock: every version with every hash, for Python 3.11 to 3.13, Linux and macOS, in one file.

Needs `uv` on the path. The file has four sections; `make demo` installs the first, `make test` the first three, and the
fourth (a server on a TPM; it is built from source) where libtss2 is installed.
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


def main() -> int:
    demo = compiled("requirements.in")
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("\n".join(line.rstrip(" \\") for line in demo) + "\n")
        everything = compiled("requirements.in", "requirements-dev.in", "--constraint", str(pins))
    dev = {k: v for k, v in everything.items() if k not in demo}
    models = compiled("--no-deps", "requirements-models.in")
    head = "# Written by tools/lock.py from requirements*.in; do not edit.\n"
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("\n".join(line.rstrip(" \\") for line in everything) + "\n")
        tpm = compiled("requirements-tpm.in", "--constraint", str(pins))
    parts = {
        "demo": demo,
        "development": dev,
        "trained models for the tests": models,
        "a server on a TPM": {k: v for k, v in tpm.items() if k not in everything},
    }
    text = "".join(f"# --- {title}\n{''.join(blocks.values())}" for title, blocks in parts.items())
    (ROOT / "requirements.lock").write_text(head + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
